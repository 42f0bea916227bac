//! The tables of `dataplane::tables` as eBPF maps, in that file's order, and the maps of this engine alone.
//!
//! The plain hash tables are preallocated: one that is full says so, and nothing in it is evicted.

use core::arch::asm;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{self, PerCpuArray, RingBuf};
use dataplane::overlay::Carried;
use dataplane::path::Walk;
use dataplane::tables::{
    Affinities, Backends, Connections, Endpoints, Fragments, Frontends, Homes, Identities, Maglev,
    Masquerades, Nodes, Policy, PolicyKey, Routes, Sockets, SourceRanges, Table,
};
use dataplane::trace::Record;
use dataplane::verdict::{AUDITED, Turn, Verdict};
use dataplane::wire::{Address, V4, V6};

use crate::mapped::{Array, Count, Hash, Longest, Mapped, bits, mapped, same};

mapped! {
    Hash Endpoints<V4> "endpoints" often "last_endpoints", <V6> "endpoints_v6" often "last_ends_v6";
    Hash Frontends<V4> "frontends", <V6> "frontends_v6";
    Array Maglev<V4> "maglev", <V6> "maglev_v6";
    Array Backends<V4> "backends", <V6> "backends_v6";
    Hash Affinities<V4> "affinities", <V6> "affinities_v6";
    Longest SourceRanges<V4> "source_ranges", <V6> "source_ranges_v6";
    Hash Connections<V4> "conntrack", <V6> "conntrack_v6";
    Longest Identities<V4> "identities" often "last_identities", <V6> "identities_v6" often "last_ids_v6";
    Longest Policy<V4> "policy" often "last_policy", <V6> "policy_v6" often "last_policy_v6";
    Hash Masquerades<V4> "masquerades", <V6> "masquerades_v6";
    Longest Routes<V4> "routes" often "last_routes", <V6> "routes_v6" often "last_routes_v6";
    Hash Nodes "nodes" often "last_nodes";
    Hash Fragments<V4> "fragments", <V6> "fragments_v6";
    Hash Homes<V4> "homes", <V6> "homes_v6";
    Hash Sockets<V4> "sockets", <V6> "sockets_v6";
}

const _: () = assert!(bits::<Policy<V4>>() == PolicyKey::BITS && bits::<Routes<V6>>() == V6::BITS);

/// Packets and bytes by [`Verdict::counter`], for each CPU.
#[map(name = "counts")]
static COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Verdict::COUNTERS, 0);
/// What the agent has written, as a number: see `Machine::generation`.
#[map(name = "generation")]
static GENERATION: maps::Array<u32> = maps::Array::with_max_entries(1, 0);
/// Reports on their way to the agent.
#[map(name = "records")]
static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
/// Reports that found no room in [`RECORDS`], for each CPU.
#[map(name = "lost")]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Adds a packet to a verdict's counter.
#[inline(always)]
pub(crate) fn count(verdict: Verdict, bytes: u32) {
    Count::add(&COUNTS, verdict.counter(), bytes);
}

/// What the agent has written.
#[inline(always)]
pub(crate) fn generation() -> u32 {
    match GENERATION.get_ptr(0) {
        // SAFETY: a word, which the agent writes at once.
        Some(row) => unsafe { row.read_volatile() },
        None => 0,
    }
}

/// Adds a packet that passed though policies deny it.
#[inline(always)]
pub(crate) fn count_audited() {
    if let Some(count) = COUNTS.get_ptr_mut(AUDITED) {
        // SAFETY: as in `count`.
        unsafe { (*count).packets += 1 }
    }
}

/// Adds a call to a turn's counter. In one step: another call may come in between.
#[inline(always)]
pub(crate) fn count_turn(turn: Turn) {
    if let Some(count) = COUNTS.get_ptr_mut(turn.counter()) {
        // SAFETY: the row is there as long as the map, and everybody who writes this one does so in one step.
        unsafe {
            asm!(
                "lock *(u64 *)({place} + 0) += {one}",
                place = in(reg) &raw mut (*count).packets,
                one = in(reg) 1_u64,
                options(nostack),
            );
        }
    }
}

/// Leaves a report to the agent, which looks from time to time and need not be woken, or counts it as lost. A function
/// of its own: in place, the compiler gives the fields of every record that the path may report places of their own on
/// the stack.
#[inline(never)]
pub(crate) fn report(record: &Record) {
    if let Some(mut entry) = RECORDS.reserve::<Record>(0) {
        let room: &mut MaybeUninit<Record> = &mut entry;
        room.write(*record);
        entry.submit(BPF_RB_NO_WAKEUP as u64);
    } else if let Some(lost) = LOST.get_ptr_mut(0) {
        // SAFETY: the row is this CPU's.
        unsafe { *lost += 1 };
    }
}

/// What a packet needs on its way. It is no program's stack: that has 512 bytes.
pub(crate) struct Room {
    pub(crate) carried: Carried,
    pub(crate) v4: Walk<V4>,
    pub(crate) v6: Walk<V6>,
}

impl Room {
    /// This CPU's. There always is one: only the verifier cannot know it.
    #[inline(always)]
    pub(crate) fn of_this_cpu() -> Option<&'static mut Self> {
        #[map(name = "room")]
        static ROOM: PerCpuArray<Room> = PerCpuArray::with_max_entries(1, 0);
        // SAFETY: programs are not preempted by each other on their CPU, each asks once, and the row is there as long
        // as the map.
        ROOM.get_ptr_mut(0).map(|room| unsafe { &mut *room })
    }
}
