//! A loaded node, used again: the verifier takes half a second for its programs, and everything else is rows.

use aya::maps::PerCpuValues;
use dataplane::Verdict;
use dataplane::wire::{Address, V4, V6};

use super::error::Error;
use super::family::{Family as _, Tables};
use super::{COUNTS, Kernel, START_S, table_failed};
use crate::engine::Engine as _;
use crate::plan::NodeRows;

impl Kernel {
    /// Makes the node what it would be if it had just been loaded with these rows: no flows, nothing counted,
    /// a fixed clock where it starts. Its constants stay.
    ///
    /// # Errors
    /// As [`crate::engine::Engine::apply`]; then it is of no more use.
    pub fn renew(&mut self, rows: &NodeRows) -> Result<(), crate::error::Error> {
        self.apply(rows)?;
        V4::tables_mut(self).forget()?;
        V6::tables_mut(self).forget()?;
        for index in 0..Verdict::COUNTERS {
            let cpus = self.counts.get(&index, 0).map_err(table_failed("read", COUNTS))?.len();
            let zeros = PerCpuValues::try_from(vec![[0; 2]; cpus]).expect("one for each CPU");
            self.counts.set(index, zeros, 0).map_err(table_failed("write", COUNTS))?;
        }
        self.take_records();
        Ok(self.set_clock(START_S)?)
    }
}

impl<A: Address> Tables<A> {
    /// Removes every row that the path has written.
    fn forget(&mut self) -> Result<(), Error> {
        self.connections.clear()?;
        self.masquerades.clear()?;
        self.affinities.clear()?;
        self.fragments.clear()
    }
}
