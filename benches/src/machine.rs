//! The machine that is measured on.

use std::fs;
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
        memory_bytes: memory_bytes(),
        // Of the sources when this was built, whatever stands there now: see `build.rs`.
        commit: env!("PODPATH_COMMIT").to_owned(),
        began_s: began.as_secs(),
        load: load.unwrap_or_default(),
        ..Machine::default()
    }
}

/// How many CPUs this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory of the machine, in bytes: MemTotal of /proc/meminfo; 0 where nobody tells.
fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
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
