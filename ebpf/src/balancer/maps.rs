//! The load balancer's tables as eBPF maps.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{self, PerCpuArray};
use dataplane::tables::{Pins, Reals, Ring, Table, Virtuals};
use dataplane::verdict::Fate;
use dataplane::wire::{V4, V6};

use crate::mapped::{Array, Hash, Mapped, mapped, same};

mapped! {
    Hash Virtuals<V4> "virtuals", <V6> "virtuals_v6";
    Array Ring<V4> "ring", <V6> "ring_v6";
    Array Reals<V4> "reals", <V6> "reals_v6";
    Hash Pins<V4> "pins", <V6> "pins_v6";
}

/// A row of [`COUNTS`].
#[repr(C)]
struct Count {
    packets: u64,
    bytes: u64,
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
/// The second it is, where it stands still between packets: see [`crate::platform::FIXED_CLOCK`].
#[map(name = "clock")]
static CLOCK: maps::Array<u32> = maps::Array::with_max_entries(1, 0);

/// Adds a packet to a fate's counter.
#[inline(always)]
pub(crate) fn count(fate: Fate, bytes: u32) {
    if let Some(count) = COUNTS.get_ptr_mut(fate.counter()) {
        // SAFETY: the row is this CPU's, and programs are not preempted by each other on it.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes as u64;
        }
    }
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

/// The second that userspace wrote last.
#[inline(always)]
pub(crate) fn fixed_clock_s() -> u32 {
    CLOCK.get(0).copied().unwrap_or(0)
}
