//! The load balancer's tables as eBPF maps.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{self, PerCpuArray};
use dataplane::tables::{Pins, Reals, Ring, Table, Virtuals};
use dataplane::verdict::Fate;
use dataplane::wire::{V4, V6};

use crate::mapped::{Array, Count, Hash, Mapped, mapped, same};

mapped! {
    Hash Virtuals<V4> "virtuals", <V6> "virtuals_v6";
    Array Ring<V4> "ring", <V6> "ring_v6";
    Array Reals<V4> "reals", <V6> "reals_v6";
    Hash Pins<V4> "pins", <V6> "pins_v6";
}

/// Packets and bytes by [`Fate::counter`], for each CPU.
#[map(name = "counts")]
static COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Fate::COUNTERS, 0);
/// When a flow of a moved slot was sent home last, by slot: in seconds of the clock.
#[map(name = "at_home")]
static AT_HOME: maps::Array<u32> = maps::Array::with_max_entries(Ring::<V4>::CAPACITY, 0);
/// As [`AT_HOME`].
#[map(name = "at_home_v6")]
static AT_HOME_V6: maps::Array<u32> = maps::Array::with_max_entries(Ring::<V6>::CAPACITY, 0);

/// Adds a packet to a fate's counter.
#[inline(always)]
pub(crate) fn count(fate: Fate, bytes: u32) {
    Count::add(&COUNTS, fate.counter(), bytes);
}

/// Notes when a flow was sent home.
#[inline(always)]
pub(crate) fn at_home(v6: bool, slot: u32, now_s: u32) {
    let map = if v6 { &AT_HOME_V6 } else { &AT_HOME };
    if let Some(row) = map.get_ptr_mut(slot) {
        // SAFETY: a word; of two that are written at the same time either is right.
        unsafe { row.write(now_s) };
    }
}
