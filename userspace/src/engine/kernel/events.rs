//! Reports out of the kernel: a ring buffer, and the number of those that found no room in it.

use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use dataplane::trace::Record;

use super::error::Error;
use super::{LOST, RECORDS, table_failed, typed};
use crate::engine::emulator::frame::from_bytes;

/// The reading end. There can be but one: who reads takes away.
pub(super) struct Events {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl Events {
    pub(super) fn new(records: Map, lost: Map) -> Result<Self, Error> {
        Ok(Self { ring: typed(records, RECORDS)?, lost: typed(lost, LOST)? })
    }

    /// What has come since the last time, in order.
    pub(super) fn take(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(bytes) = self.ring.next() {
            records.extend(from_bytes::<Record>(&bytes));
        }
        records
    }

    pub(super) fn lost(&self) -> Result<u64, Error> {
        let lost = self.lost.get(&0, 0).map_err(table_failed("read", LOST))?;
        Ok(lost.iter().sum())
    }
}
