//! What the CPUs did meanwhile.

use std::fs;

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
    /// What of `busy` was on CPUs other than the first, and how long these were there in all: where whatever is
    /// measured keeps to the first, that is somebody else's.
    pub elsewhere: (u64, u64),
    /// What of `stolen` was taken from these.
    pub stolen_elsewhere: u64,
}

impl Ticks {
    /// Until now; nothing where the kernel does not tell.
    pub fn now() -> Self {
        fs::read_to_string("/proc/stat").map(|text| Self::read(&text)).unwrap_or_default()
    }

    fn read(text: &str) -> Self {
        let mut lines = text.lines().map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            let times: Vec<u64> = words.filter_map(|time| time.parse().ok()).collect();
            let of = |places: &[usize]| places.iter().filter_map(|place| times.get(*place)).sum();
            // Guests' time, the last two, is in the first two already.
            (name, of(&[0, 1, 2, 5, 6]), of(&[3, 4]), of(&[7]))
        });
        let (_, busy, idle, stolen) = lines.next().unwrap_or_default();
        let others = lines.filter(|(name, ..)| name.starts_with("cpu") && *name != "cpu0");
        let mut ticks = Self { busy, idle, stolen, ..Self::default() };
        for (_, busy, idle, stolen) in others {
            ticks.elsewhere.0 += busy;
            ticks.elsewhere.1 += busy + idle + stolen;
            ticks.stolen_elsewhere += stolen;
        }
        ticks
    }

    /// What has been added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            idle: self.idle.saturating_sub(before.idle),
            stolen: self.stolen.saturating_sub(before.stolen),
            elsewhere: (
                self.elsewhere.0.saturating_sub(before.elsewhere.0),
                self.elsewhere.1.saturating_sub(before.elsewhere.1),
            ),
            stolen_elsewhere: self.stolen_elsewhere.saturating_sub(before.stolen_elsewhere),
        }
    }

    /// What of all CPU time was stolen, in percent.
    pub fn steal_percent(self) -> f64 {
        percent(self.stolen, self.busy + self.idle + self.stolen)
    }

    /// The same of the first CPU's time alone: what counts where whatever is measured keeps to it.
    pub fn steal_percent_of_first(self) -> f64 {
        let all = self.busy + self.idle + self.stolen;
        percent(self.stolen.saturating_sub(self.stolen_elsewhere), all.saturating_sub(self.elsewhere.1))
    }

    /// How busy CPUs other than the first were, in percent; nothing where there is one only.
    pub fn elsewhere_percent(self) -> f64 {
        percent(self.elsewhere.0, self.elsewhere.1)
    }

    /// How long CPUs were busy, in seconds: two that were for a second come to two.
    pub fn busy_s(self) -> f64 {
        self.busy as f64 / per_second()
    }

    /// How long the first CPU was busy, in seconds.
    pub fn first_busy_s(self) -> f64 {
        self.busy.saturating_sub(self.elsewhere.0) as f64 / per_second()
    }
}

fn percent(part: u64, all: u64) -> f64 {
    if all > 0 { 100.0 * part as f64 / all as f64 } else { 0.0 }
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
        assert_eq!(before, Ticks { busy: 148, idle: 910, stolen: 50, ..Ticks::default() });
        let passed = Ticks::read("cpu  160 5 40 920 10 1 2 70 67 7").since(before);
        assert_eq!(passed, Ticks { busy: 60, idle: 20, stolen: 20, ..Ticks::default() });
        assert_eq!(passed.steal_percent(), 20.0);
        assert_eq!(Ticks::default().steal_percent(), 0.0);
    }

    #[test]
    fn what_other_cpus_did_is_told_apart() {
        let text = "cpu  90 0 0 105 0 0 0 5\ncpu0 80 0 0 20 0 0 0 0\ncpu1 10 0 0 25 0 0 0 5\ncpu2 0 0 0 60 0\nintr 7 7 7 7\n";
        let ticks = Ticks::read(text);
        assert_eq!((ticks.busy, ticks.elsewhere), (90, (10, 100)));
        assert_eq!(ticks.elsewhere_percent(), 10.0);
        assert_eq!(ticks.first_busy_s() * 9.0, ticks.busy_s() * 8.0);
        assert_eq!((ticks.steal_percent(), ticks.steal_percent_of_first()), (2.5, 0.0));
    }
}
