//! The machine that is measured on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::results::Machine;

/// As it is before anything is measured.
pub fn now() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo").lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let load = read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok());
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Machine {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: cpu.unwrap_or_else(|| "unknown".to_owned()),
        cpus: cpus(),
        memory_bytes: kernel_memory(&["MemTotal"]),
        commit: commit().unwrap_or_default(),
        began_s: began.as_secs(),
        load: load.unwrap_or_default(),
        ..Machine::default()
    }
}

/// How many CPUs this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The sum of these lines of /proc/meminfo, in bytes.
pub(crate) fn kernel_memory(lines: &[&str]) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value: u64 = value.trim().trim_end_matches("kB").trim().parse().ok()?;
        lines.contains(&name).then_some(value)
    });
    1024 * kib.sum::<u64>()
}

/// The commit that the sources stand at which this was built from, if they are still there.
fn commit() -> Option<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(sources).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let dirty =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    Some(if dirty { commit + "-dirty" } else { commit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_says_what_it_is() {
        let machine = now();
        assert!(
            machine.cpus > 0 && machine.memory_bytes > 1 << 20 && !machine.kernel.is_empty(),
            "{machine:?}"
        );
    }
}
