//! The machine that is measured on, and what it is like meanwhile.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::results::Machine;

/// What the CPUs have done since the machine started, in ticks (proc_stat(5)), summed over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// Something ran: threads, interrupts, and what the kernel does for packets behind both.
    pub busy: u64,
    /// Nothing had to run.
    pub idle: u64,
    /// Something had to, and the machine's host ran something else.
    pub stolen: u64,
}

impl Ticks {
    /// Until now; nothing where the kernel does not tell.
    pub fn now() -> Self {
        fs::read_to_string("/proc/stat").map(|text| Self::read(&text)).unwrap_or_default()
    }

    fn read(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        let times: Vec<u64> = line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
        let of = |places: &[usize]| places.iter().filter_map(|place| times.get(*place)).sum();
        // Guests' time, the last two, is in the first two already.
        Self { busy: of(&[0, 1, 2, 5, 6]), idle: of(&[3, 4]), stolen: of(&[7]) }
    }

    /// What has been added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            idle: self.idle.saturating_sub(before.idle),
            stolen: self.stolen.saturating_sub(before.stolen),
        }
    }

    /// Of all CPU time, in percent.
    pub fn steal_percent(self) -> f64 {
        let all = self.busy + self.idle + self.stolen;
        if all > 0 { 100.0 * self.stolen as f64 / all as f64 } else { 0.0 }
    }

    /// How long CPUs were busy, in seconds: two that were for a second come to two.
    pub fn busy_s(self) -> f64 {
        self.busy as f64 / per_second()
    }
}

impl std::ops::AddAssign for Ticks {
    fn add_assign(&mut self, other: Self) {
        self.busy += other.busy;
        self.idle += other.idle;
        self.stolen += other.stolen;
    }
}

fn per_second() -> f64 {
    // SAFETY: a system call without pointers.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// As it is before anything is measured.
pub fn now() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo").lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let memory_kib: Option<u64> = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().trim_end_matches("kB").trim().parse().ok());
    let load = read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok());
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Machine {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: cpu.unwrap_or_else(|| "unknown".to_owned()),
        cpus: cpus(),
        memory_bytes: memory_kib.unwrap_or_default() * 1024,
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
    fn what_the_host_took_is_a_part_of_all_cpu_time() {
        let before = Ticks::read("cpu  100 5 40 900 10 1 2 50 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        assert_eq!(before, Ticks { busy: 148, idle: 910, stolen: 50 });
        let passed = Ticks::read("cpu  160 5 40 920 10 1 2 70 67 7").since(before);
        assert_eq!(passed, Ticks { busy: 60, idle: 20, stolen: 20 });
        assert_eq!(passed.steal_percent(), 20.0);
        assert_eq!(Ticks::default().steal_percent(), 0.0);
    }

    #[test]
    fn a_machine_says_what_it_is() {
        let machine = now();
        assert!(machine.cpus > 0 && machine.memory_bytes > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }
}
