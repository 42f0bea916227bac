//! Time for a node in the kernel: its own, or one that is moved on by hand.

use dataplane::tables::{Affine, Connection, Fragmented};
use dataplane::wire::{V4, V6};

use super::error::Error;
use super::family::Family;
use super::{CLOCK, Kernel, RANDOM, Sweeper, table_failed};
use crate::engine::Clock;

impl Kernel {
    /// Moves the end of every flow of a family nearer.
    fn hasten<A: Family>(&mut self, seconds: u32) -> Result<(), Error> {
        let tables = A::tables_mut(self);
        for (key, row) in tables.connections.sorted()? {
            let expires_s = row.expires_s.saturating_sub(seconds);
            tables.connections.set(&key, Some(Connection { expires_s, ..row }))?;
        }
        for (key, row) in tables.affinities.sorted()? {
            let expires_s = row.expires_s.saturating_sub(seconds);
            tables.affinities.set(&key, Some(Affine { expires_s, ..row }))?;
        }
        for (key, row) in tables.fragments.sorted()? {
            let expires_s = row.expires_s.saturating_sub(seconds);
            tables.fragments.set(&key, Some(Fragmented { expires_s, ..row }))?;
        }
        Ok(())
    }
}

impl Clock for Kernel {
    fn now_s(&self) -> Result<u32, crate::error::Error> {
        if self.options.fixed_clock {
            return Ok(self.clock.get(&0, 0).map_err(table_failed("read", CLOCK))?);
        }
        Ok(coarse_clock_s())
    }

    /// Moves a fixed clock on. Where the clock is the kernel's, every flow's end is moved nearer instead.
    fn wait(&mut self, seconds: u32) -> Result<(), crate::error::Error> {
        if self.options.fixed_clock {
            let now_s = self.now_s()?;
            return Ok(self.set_clock(now_s.saturating_add(seconds))?);
        }
        self.hasten::<V4>(seconds)?;
        Ok(self.hasten::<V6>(seconds)?)
    }

    fn set_random(&mut self, number: u32) -> Result<(), crate::error::Error> {
        Ok(self.clock.set(RANDOM, number, 0).map_err(table_failed("write", CLOCK))?)
    }

    fn sweep(&mut self) -> Result<(), crate::error::Error> {
        let mut sweeper = Sweeper::default();
        // A source port goes only when it is seen without a flow a second time.
        sweeper.sweep(self)?;
        sweeper.sweep(self).map(|_| ())
    }
}

/// The clock that the programs ask: the kernel's coarse monotonic one.
pub(super) fn coarse_clock_s() -> u32 {
    (coarse_clock_ns() / 1_000_000_000) as u32
}

/// As [`coarse_clock_s`], in nanoseconds.
pub(super) fn coarse_clock_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which is there.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    assert_eq!(code, 0, "every Linux has this clock");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
