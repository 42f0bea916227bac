//! What the CPUs did meanwhile.

use std::fs;
use std::ops::AddAssign;

/// What all CPUs of the machine have done since it started, in ticks (proc_stat(5)).
///
/// It is the machine's time and not the threads', because most of what a packet costs is done by the kernel behind
/// whatever thread happens to run. What else the machine does is in it as well.
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

    /// What of all CPU time was stolen, in percent.
    pub fn steal_percent(self) -> f64 {
        let all = self.busy + self.idle + self.stolen;
        if all > 0 { 100.0 * self.stolen as f64 / all as f64 } else { 0.0 }
    }

    /// How long CPUs were busy, in seconds: two that were for a second come to two.
    pub fn busy_s(self) -> f64 {
        self.busy as f64 / per_second()
    }
}

impl AddAssign for Ticks {
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
}
