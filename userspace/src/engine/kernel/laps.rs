//! Where packets' time goes in programs that time them: see `ebpf/src/laps.rs`.

use std::fmt;
use std::ops::{Add, Sub};

use aya::maps::{MapData, PerCpuArray};
use aya::{TestRun, TestRunOptions};
use dataplane::trace::Lap;
use dataplane::trace::stopwatch::{self, HEAD, TIMES, TOTALS, WORDS};

use super::error::{Error, sentence};
use super::{Kernel, scheduled, table_failed, take, typed};
use crate::engine::Hook;

const STOPWATCH: &str = "stopwatch";
/// The program that measures what a lap takes by itself.
pub(super) const CALIBRATE: &str = "calibrate";

const LAPS: usize = Lap::ALL.len();

/// A test run takes no frame that is shorter than its headers.
const FRAME: [u8; 64] = [0; 64];

/// The stopwatches of a node's programs, one for each CPU.
pub struct Stopwatch(PerCpuArray<MapData, [u64; WORDS]>);

impl fmt::Debug for Stopwatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopwatch").finish_non_exhaustive()
    }
}

/// What was timed at a hook, of all CPUs together, since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Packets that were timed.
    pub packets: u64,
    /// Nanoseconds from the beginning to the end of each. All laps together come to the same, unless a packet is on its
    /// way while they are read.
    pub whole_ns: u64,
    /// Nanoseconds of a lap, and how often it was taken, in the order of [`Lap::ALL`].
    pub laps: [(u64, u64); LAPS],
}

impl Times {
    /// What a lap of these took on average, in nanoseconds; 0 if there was none.
    pub fn lap_ns(&self, lap: Lap) -> f64 {
        let (ns, count) = self.laps[lap as usize];
        if count == 0 { 0.0 } else { ns as f64 / count as f64 }
    }

    /// What each lap takes of a packet on average, in nanoseconds, without the `own_ns` that it takes by itself, in the
    /// order of [`Lap::ALL`]. It may be less than nothing: a program that looks at the clock cannot do two things at a
    /// time meanwhile, and so little is left of a lap in which nothing is done.
    pub fn net_ns(&self, own_ns: f64) -> [f64; LAPS] {
        let packets = self.packets.max(1) as f64;
        self.laps.map(|(ns, count)| (ns as f64 - count as f64 * own_ns) / packets)
    }

    /// As a stopwatch has it.
    fn of(words: &[u64]) -> Self {
        let mut times = Self { packets: words[0], whole_ns: words[1], ..Self::default() };
        for (lap, words) in times.laps.iter_mut().zip(words[TOTALS..].chunks_exact(2)) {
            *lap = (words[0], words[1]);
        }
        times
    }
}

/// What was timed here and there.
impl Add for Times {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let mut laps = self.laps;
        for (lap, other) in laps.iter_mut().zip(other.laps) {
            *lap = (lap.0 + other.0, lap.1 + other.1);
        }
        Self { packets: self.packets + other.packets, whole_ns: self.whole_ns + other.whole_ns, laps }
    }
}

/// What was timed since then.
impl Sub for Times {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let mut laps = self.laps;
        for (lap, before) in laps.iter_mut().zip(before.laps) {
            *lap = (lap.0 - before.0, lap.1 - before.1);
        }
        Self { packets: self.packets - before.packets, whole_ns: self.whole_ns - before.whole_ns, laps }
    }
}

impl Stopwatch {
    /// What was timed at a hook.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn times(&self, hook: Hook) -> Result<Times, Error> {
        self.read(match hook {
            Hook::FromPod => stopwatch::FROM_POD,
            Hook::FromUnderlay => stopwatch::FROM_UNDERLAY,
            Hook::FromHost => stopwatch::FROM_HOST,
        })
    }

    /// What [`Kernel::calibrate`] has timed.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn calibration(&self) -> Result<Times, Error> {
        self.read(stopwatch::CALIBRATE)
    }

    fn read(&self, place: usize) -> Result<Times, Error> {
        let rows = self.0.get(&0, 0).map_err(table_failed("read", STOPWATCH))?;
        let of = |row: &[u64; WORDS]| Times::of(&row[HEAD + place * TIMES..][..TIMES]);
        Ok(rows.iter().map(of).fold(Times::default(), Add::add))
    }
}

impl Kernel {
    /// The stopwatches of its programs, for whoever asks first.
    ///
    /// # Errors
    /// [`Error::Object`] for everybody else; [`Error::Table`].
    pub fn take_stopwatch(&mut self) -> Result<Stopwatch, Error> {
        Ok(Stopwatch(typed(take(&mut self.ebpf, STOPWATCH)?, STOPWATCH)?))
    }

    /// Takes laps in which nothing is done, of so many packets: what they say is what a lap takes by itself. Only for a
    /// node that was loaded to be measured, and to be timed.
    ///
    /// # Errors
    /// [`Error::Run`].
    pub fn calibrate(&mut self, repeat: u32) -> Result<(), Error> {
        let options = TestRunOptions { data_in: Some(&FRAME), repeat, ..Default::default() };
        let run = scheduled(&mut self.ebpf, CALIBRATE)?.test_run(options);
        let failed =
            |why| Error::Run { program: CALIBRATE, length: FRAME.len(), interface: 0, why: sentence(&why) };
        run.map(drop).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(packets: u64, each: [(u64, u64); 2]) -> Times {
        let mut laps = [(0, 0); LAPS];
        laps[..2].copy_from_slice(&each);
        Times { packets, whole_ns: each[0].0 + each[1].0, laps }
    }

    #[test]
    fn what_a_lap_takes_by_itself_is_taken_off_for_each_and_may_leave_less_than_nothing() {
        let times = times(10, [(1000, 20), (100, 10)]);
        assert_eq!(times.net_ns(20.0)[..3], [60.0, -10.0, 0.0]);
        assert_eq!((times.lap_ns(Lap::Parse), times.lap_ns(Lap::Rest)), (50.0, 0.0));
    }

    #[test]
    fn laps_stand_at_their_numbers() {
        assert!(Lap::ALL.iter().enumerate().all(|(at, (lap, _))| *lap as usize == at), "{:?}", Lap::ALL);
    }

    #[test]
    fn rows_of_cpus_are_added_and_what_was_before_is_taken_off() {
        let mut words = [0; TIMES];
        words[..6].copy_from_slice(&[2, 90, 50, 2, 40, 4]);
        let both = Times::of(&words) + Times::of(&words);
        assert_eq!(both, times(4, [(100, 4), (80, 8)]));
        assert_eq!(both - times(2, [(50, 2), (40, 4)]), times(2, [(50, 2), (40, 4)]));
    }
}
