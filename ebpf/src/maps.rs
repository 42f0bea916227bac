//! The tables of `dataplane::tables` as eBPF maps, in that file's order, and the maps of this engine alone.
//!
//! The plain hash tables are preallocated: one that is full says so, and nothing in it is evicted.

use core::arch::asm;
use core::hint::assert_unchecked;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{self, PerCpuArray, RingBuf};
use dataplane::path::Walk;
use dataplane::tables::{
    Affinities, Backends, Connections, Endpoints, Fragments, Frontends, Holds, Homes, Identities, Maglev,
    Masquerades, Nodes, NotAdded, Policy, PolicyKey, Routes, Sockets, SourceRanges, Table, Writes,
};
use dataplane::trace::Record;
use dataplane::verdict::{Turn, Verdict};
use dataplane::wire::{Address, Plain, V4, V6};

use crate::platform::Kernel;

/// A map of the rows of `T`, found by their whole key.
type Hash<T> = maps::HashMap<<T as Table>::Key, <T as Table>::Row>;
/// A map of the rows of `T`, found by their longest matching prefix.
type Longest<T> = maps::LpmTrie<<T as Table>::Key, <T as Table>::Row>;
/// A map of the rows of `T`, found by their index.
type Array<T> = maps::Array<<T as Table>::Row>;

/// The error numbers of the kernel's map updates, negated.
const EEXIST: i32 = -17;

/// A table that has a map.
trait Mapped: Table {
    /// The kind of its map.
    type Map: Finds<Self> + 'static;
    /// Its map.
    fn map() -> &'static Self::Map;
}

/// A kind of map, and how rows of `T` are found in it.
trait Finds<T: Table + ?Sized> {
    /// The row for this key.
    fn find(&self, key: &T::Key) -> Option<*const T::Row>;
}

/// Declares the map of each table, which is called as its table is: in each line one table, or those of both
/// families.
macro_rules! mapped {
    ($($shape:ident $table:ident $(<$family:ident>)? $name:literal $(, <$other:ident> $name_of_other:literal)?;)+) => { $(
        mapped!(one $shape, $table $(<$family>)?, $name);
        $(mapped!(one $shape, $table<$other>, $name_of_other);)?
    )+ };
    (one $shape:ident, $table:ty, $name:literal) => {
        impl Mapped for $table {
            type Map = $shape<$table>;
            #[inline(always)]
            fn map() -> &'static $shape<$table> {
                #[map(name = $name)]
                static MAP: $shape<$table> = <$shape<$table>>::with_max_entries(<$table>::CAPACITY, 0);
                &MAP
            }
        }
        const _: () = assert!(same(<$table>::NAME, $name));
    };
}

mapped! {
    Hash Endpoints<V4> "endpoints", <V6> "endpoints_v6";
    Hash Frontends<V4> "frontends", <V6> "frontends_v6";
    Array Maglev<V4> "maglev", <V6> "maglev_v6";
    Array Backends<V4> "backends", <V6> "backends_v6";
    Hash Affinities<V4> "affinities", <V6> "affinities_v6";
    Longest SourceRanges<V4> "source_ranges", <V6> "source_ranges_v6";
    Hash Connections<V4> "conntrack", <V6> "conntrack_v6";
    Longest Identities<V4> "identities", <V6> "identities_v6";
    Longest Policy<V4> "policy", <V6> "policy_v6";
    Hash Masquerades<V4> "masquerades", <V6> "masquerades_v6";
    Longest Routes<V4> "routes", <V6> "routes_v6";
    Hash Nodes "nodes";
    Hash Fragments<V4> "fragments", <V6> "fragments_v6";
    Hash Homes<V4> "homes", <V6> "homes_v6";
    Hash Sockets<V4> "sockets", <V6> "sockets_v6";
}

/// Whether two names are the same.
const fn same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut at = 0;
    while at < left.len() {
        if left[at] != right[at] {
            return false;
        }
        at += 1;
    }
    true
}

impl<T: Table> Finds<T> for Hash<T> {
    #[inline(always)]
    fn find(&self, key: &T::Key) -> Option<*const T::Row> {
        self.get_ptr(key)
    }
}

impl<T: Table> Finds<T> for Longest<T> {
    #[inline(always)]
    fn find(&self, key: &T::Key) -> Option<*const T::Row> {
        self.get(Key::new(const { bits::<T>() }, *key)).map(core::ptr::from_ref)
    }
}

impl<T: Table<Key = u32>> Finds<T> for Array<T> {
    #[inline(always)]
    fn find(&self, key: &u32) -> Option<*const T::Row> {
        self.get_ptr(*key)
    }
}

/// Bits of a whole key: what a packet asks a longest-prefix table with.
const fn bits<T: Table>() -> u32 {
    size_of::<T::Key>() as u32 * 8
}

const _: () = assert!(bits::<Policy<V4>>() == PolicyKey::BITS && bits::<Routes<V6>>() == V6::BITS);

/// Copies a value out of a map.
#[inline(always)]
pub(crate) fn copy<T: Plain>(row: *const T) -> T {
    // SAFETY: the kernel handed out a row of this size, at a multiple of four: the compiler may take words
    // where the type alone, made of bytes in wire order, would have it take bytes. A row that is removed
    // and used again for another key meanwhile can be read torn or as the other: what the kernel promises
    // of preallocated maps, and what any packet that comes a moment later would see.
    unsafe {
        assert_unchecked(row.addr().is_multiple_of(4));
        *row
    }
}

impl<T: Mapped> Holds<T> for Kernel {
    #[inline(always)]
    fn row(&self, key: &T::Key) -> Option<T::Row> {
        T::map().find(key).map(copy)
    }
}

impl<T: Mapped<Map = Hash<T>>> Writes<T> for Kernel {
    #[inline(always)]
    fn change<R>(&mut self, key: &T::Key, change: impl FnOnce(&mut T::Row) -> R) -> Option<R> {
        let row = T::map().get_ptr_mut(key)?;
        // SAFETY: as in `copy`. Another CPU may change the row at the same time; every bit pattern is a
        // valid row, and a lost update is one packet's.
        unsafe {
            assert_unchecked(row.addr().is_multiple_of(4));
            Some(change(&mut *row))
        }
    }

    #[inline(always)]
    fn add(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        match T::map().insert(key, row, BPF_NOEXIST as u64) {
            Ok(()) => Ok(()),
            Err(EEXIST) => Err(NotAdded::Taken),
            // E2BIG and ENOMEM, and EBUSY from an interrupt: there is no row for it now.
            Err(_) => Err(NotAdded::Full),
        }
    }

    #[inline(always)]
    fn put(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        T::map().insert(key, row, BPF_ANY as u64).map_err(|_| NotAdded::Full)
    }

    #[inline(always)]
    fn remove(&mut self, key: &T::Key) {
        // That the row is gone already is as good.
        let _ = T::map().remove(key);
    }
}

/// A row of [`COUNTS`].
#[repr(C)]
struct Count {
    packets: u64,
    bytes: u64,
}

/// Packets and bytes by [`Verdict::counter`], for each CPU.
#[map(name = "counts")]
static COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Verdict::COUNTERS, 0);
/// Reports on their way to the agent.
#[map(name = "records")]
static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
/// Reports that found no room in [`RECORDS`], for each CPU.
#[map(name = "lost")]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// The second it is, and the number that chance gives, where both stand still between packets: see
/// [`crate::platform::FIXED_CLOCK`].
#[map(name = "clock")]
static CLOCK: maps::Array<u32> = maps::Array::with_max_entries(2, 0);

/// Adds a packet to a verdict's counter.
#[inline(always)]
pub(crate) fn count(verdict: Verdict, bytes: u32) {
    if let Some(count) = COUNTS.get_ptr_mut(verdict.counter()) {
        // SAFETY: the row is this CPU's, and programs are not preempted by each other on it.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes as u64;
        }
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

/// Sends a report to the agent, or counts it as lost. A function of its own: in place, the compiler gives
/// the fields of every record that the path may report places of their own on the stack.
#[inline(never)]
pub(crate) fn report(record: &Record) {
    if let Some(mut entry) = RECORDS.reserve::<Record>(0) {
        let room: &mut MaybeUninit<Record> = &mut entry;
        room.write(*record);
        entry.submit(0);
    } else if let Some(lost) = LOST.get_ptr_mut(0) {
        // SAFETY: the row is this CPU's.
        unsafe { *lost += 1 };
    }
}

/// The second that userspace wrote last.
#[inline(always)]
pub(crate) fn fixed_clock_s() -> u32 {
    CLOCK.get(0).copied().unwrap_or(0)
}

/// The number that userspace wrote last for chance.
#[inline(always)]
pub(crate) fn fixed_random() -> u32 {
    CLOCK.get(1).copied().unwrap_or(0)
}

/// The families, each with room on every CPU for a walk.
pub(crate) trait Room: Address {
    /// That room. There is always some: only the verifier cannot know it.
    fn room() -> Option<*mut Walk<Self>>;
}

/// Declares that room.
macro_rules! room {
    ($($family:ident $name:literal;)+) => { $(
        impl Room for $family {
            #[inline(always)]
            fn room() -> Option<*mut Walk<Self>> {
                #[map(name = $name)]
                static WALK: PerCpuArray<Walk<$family>> = PerCpuArray::with_max_entries(1, 0);
                WALK.get_ptr_mut(0)
            }
        }
    )+ };
}

room! {
    V4 "walk";
    V6 "walk_v6";
}
