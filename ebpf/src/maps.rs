//! The tables of `dataplane::tables` as eBPF maps, in that file's order, and the maps of this engine alone.
//!
//! The plain hash tables are preallocated: one that is full says so, and nothing in it is evicted.

use core::hint::assert_unchecked;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use dataplane::tables::{
    Backends, Connections, Endpoints, Frontends, Holds, Identities, Maglev, Masquerades, Nodes, NotAdded,
    Policy, PolicyKey, Routes, Table, Writes,
};
use dataplane::trace::Record;
use dataplane::verdict::Verdict;
use dataplane::wire::{Address, Plain, V4};

use crate::platform::Kernel;

/// A hash map of the rows of `T`.
type Hash<T> = HashMap<<T as Table>::Key, <T as Table>::Row>;
/// A longest-prefix map of the rows of `T`.
type Longest<T> = LpmTrie<<T as Table>::Key, <T as Table>::Row>;

/// The error numbers of the kernel's map updates, negated.
const EEXIST: i32 = -17;

#[map(name = "endpoints")]
static ENDPOINTS: Hash<Endpoints<V4>> = HashMap::with_max_entries(Endpoints::<V4>::CAPACITY, 0);
#[map(name = "frontends")]
static FRONTENDS: Hash<Frontends<V4>> = HashMap::with_max_entries(Frontends::<V4>::CAPACITY, 0);
#[map(name = "maglev")]
static MAGLEV: Array<<Maglev as Table>::Row> = Array::with_max_entries(Maglev::CAPACITY, 0);
#[map(name = "backends")]
static BACKENDS: Array<<Backends<V4> as Table>::Row> = Array::with_max_entries(Backends::<V4>::CAPACITY, 0);
#[map(name = "conntrack")]
static CONNTRACK: Hash<Connections<V4>> = HashMap::with_max_entries(Connections::<V4>::CAPACITY, 0);
#[map(name = "identities")]
static IDENTITIES: Longest<Identities<V4>> = LpmTrie::with_max_entries(Identities::<V4>::CAPACITY, 0);
#[map(name = "policy")]
static POLICY: Longest<Policy> = LpmTrie::with_max_entries(Policy::CAPACITY, 0);
#[map(name = "masquerades")]
static MASQUERADES: Hash<Masquerades<V4>> = HashMap::with_max_entries(Masquerades::<V4>::CAPACITY, 0);
#[map(name = "routes")]
static ROUTES: Longest<Routes<V4>> = LpmTrie::with_max_entries(Routes::<V4>::CAPACITY, 0);
#[map(name = "nodes")]
static NODES: Hash<Nodes<V4>> = HashMap::with_max_entries(Nodes::<V4>::CAPACITY, 0);

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
/// The second it is, where time stands still between packets: see [`crate::platform::FIXED_CLOCK`].
#[map(name = "clock")]
static CLOCK: Array<u32> = Array::with_max_entries(1, 0);

/// Declares tables [`Holds`] through the map of each.
macro_rules! holds {
    ($($table:ty, $map:ident, $lookup:ident, $name:literal;)+) => { $(
        impl Holds<$table> for Kernel {
            #[inline(always)]
            fn row(&self, key: &<$table as Table>::Key) -> Option<<$table as Table>::Row> {
                $lookup!($map, key, $table)
            }
        }
        // The map above is called as its table is.
        const _: () = assert!(same(<$table>::NAME, $name));
    )+ };
}

/// Copies a row out of its map.
#[inline(always)]
fn copy<T: Plain>(row: *const T) -> T {
    // SAFETY: the kernel handed out a row of this size, at a multiple of four: the compiler may take words
    // where the type alone, made of bytes in wire order, would have it take bytes. A row that is removed
    // and used again for another key meanwhile can be read torn or as the other: what the kernel promises
    // of preallocated maps, and what any packet that comes a moment later would see.
    unsafe {
        assert_unchecked(row.addr().is_multiple_of(4));
        *row
    }
}

/// Finds a row by its whole key.
macro_rules! whole {
    ($map:ident, $key:ident, $table:ty) => {
        $map.get_ptr($key).map(copy)
    };
}

/// Finds a row by its index.
macro_rules! index {
    ($map:ident, $key:ident, $table:ty) => {
        $map.get_ptr(*$key).map(copy)
    };
}

/// Finds the row with the longest matching prefix.
macro_rules! longest {
    ($map:ident, $key:ident, $table:ty) => {
        $map.get(Key::new(bits::<$table>(), *$key)).map(|row| copy(row))
    };
}

holds! {
    Endpoints<V4>, ENDPOINTS, whole, "endpoints";
    Frontends<V4>, FRONTENDS, whole, "frontends";
    Maglev, MAGLEV, index, "maglev";
    Backends<V4>, BACKENDS, index, "backends";
    Connections<V4>, CONNTRACK, whole, "conntrack";
    Identities<V4>, IDENTITIES, longest, "identities";
    Policy, POLICY, longest, "policy";
    Masquerades<V4>, MASQUERADES, whole, "masquerades";
    Routes<V4>, ROUTES, longest, "routes";
    Nodes<V4>, NODES, whole, "nodes";
}

const _: () = assert!(bits::<Policy>() == PolicyKey::BITS && bits::<Routes<V4>>() == V4::BITS);

/// Bits of a whole key: what a packet asks a longest-prefix table with.
const fn bits<T: Table>() -> u32 {
    size_of::<T::Key>() as u32 * 8
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

/// Declares tables [`Writes`] through the map of each.
macro_rules! writes {
    ($($table:ty, $map:ident;)+) => { $(
        impl Writes<$table> for Kernel {
            #[inline(always)]
            fn change<R>(
                &mut self,
                key: &<$table as Table>::Key,
                change: impl FnOnce(&mut <$table as Table>::Row) -> R,
            ) -> Option<R> {
                let row = $map.get_ptr_mut(key)?;
                // SAFETY: as in `copy`. Another CPU may change the row at the same time; every bit pattern
                // is a valid row, and a lost update is one packet's.
                unsafe {
                    assert_unchecked(row.addr().is_multiple_of(4));
                    Some(change(&mut *row))
                }
            }
            #[inline(always)]
            fn add(&mut self, key: &<$table as Table>::Key, row: &<$table as Table>::Row) -> Result<(), NotAdded> {
                match $map.insert(key, row, BPF_NOEXIST as u64) {
                    Ok(()) => Ok(()),
                    Err(EEXIST) => Err(NotAdded::Taken),
                    // E2BIG and ENOMEM, and EBUSY from an interrupt: there is no row for it now.
                    Err(_) => Err(NotAdded::Full),
                }
            }
            #[inline(always)]
            fn put(&mut self, key: &<$table as Table>::Key, row: &<$table as Table>::Row) -> Result<(), NotAdded> {
                $map.insert(key, row, BPF_ANY as u64).map_err(|_| NotAdded::Full)
            }
            #[inline(always)]
            fn remove(&mut self, key: &<$table as Table>::Key) {
                // That the row is gone already is as good.
                let _ = $map.remove(key);
            }
        }
    )+ };
}

writes! {
    Connections<V4>, CONNTRACK;
    Masquerades<V4>, MASQUERADES;
}

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

/// Sends a report to the agent, or counts it as lost.
#[inline(always)]
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
