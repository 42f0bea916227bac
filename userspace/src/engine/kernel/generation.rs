//! The number by which the path knows whether the agent has written since: see `Machine::generation`.

use aya::Ebpf;
use aya::maps::{Array, MapData};

use super::clock::coarse_clock_ns;
use super::error::Error;
use super::{table_failed, take, typed};
use crate::engine::after;

const GENERATION: &str = "generation";

/// The number, and where the programs read it.
pub(super) struct Generation {
    map: Array<MapData, u32>,
    number: u32,
}

impl Generation {
    /// Rows of an earlier process have numbers too, so it starts anywhere; where runs are to be repeated, and
    /// there was none before, at 0. Nothing
    /// is known before the first [`Generation::next`].
    pub(super) fn new(ebpf: &mut Ebpf, repeated: bool) -> Result<Self, Error> {
        let number = if repeated { 0 } else { (coarse_clock_ns() >> 10) as u32 };
        Ok(Self { map: typed(take(ebpf, GENERATION)?, GENERATION)?, number })
    }

    /// What it is now.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Nothing is known while tables change.
    pub(super) fn suspend(&mut self) -> Result<(), Error> {
        self.set(0)
    }

    /// They have changed.
    pub(super) fn next(&mut self) -> Result<(), Error> {
        self.number = after(self.number);
        self.set(self.number)
    }

    fn set(&mut self, number: u32) -> Result<(), Error> {
        self.map.set(0, number, 0).map_err(table_failed("write", GENERATION))
    }
}
