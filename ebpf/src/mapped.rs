//! Tables as eBPF maps, whatever program they are of: found, read and written.

use core::hint::assert_unchecked;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::maps;
use aya_ebpf::maps::lpm_trie::Key;
use dataplane::tables::{Holds, NotAdded, Table, Writes};
use dataplane::wire::Plain;

use crate::platform::Kernel;

/// A map of the rows of `T`, found by their whole key.
pub(crate) type Hash<T> = maps::HashMap<<T as Table>::Key, <T as Table>::Row>;
/// A map of the rows of `T`, found by their longest matching prefix.
pub(crate) type Longest<T> = maps::LpmTrie<<T as Table>::Key, <T as Table>::Row>;
/// A map of the rows of `T`, found by their index.
pub(crate) type Array<T> = maps::Array<<T as Table>::Row>;

/// The error numbers of the kernel's map updates, negated.
const EEXIST: i32 = -17;

/// What was counted under a number, by one CPU.
#[repr(C)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    bytes: u64,
}

impl Count {
    /// Adds a packet under a number.
    #[inline(always)]
    pub(crate) fn add(counts: &maps::PerCpuArray<Self>, number: u32, bytes: u32) {
        if let Some(count) = counts.get_ptr_mut(number) {
            // SAFETY: the row is this CPU's, and programs are not preempted by each other on it.
            unsafe {
                (*count).packets += 1;
                (*count).bytes += bytes as u64;
            }
        }
    }
}

/// A table that has a map.
pub(crate) trait Mapped: Table {
    /// The kind of its map.
    type Map: Finds<Self> + 'static;
    /// Its map.
    fn map() -> &'static Self::Map;
    /// The row for this key, of a table that packet after packet asks the same.
    #[inline(always)]
    fn often(key: &Self::Key) -> Option<Self::Row> {
        Self::map().find(key).map(copy)
    }
}

/// A kind of map, and how rows of `T` are found in it.
pub(crate) trait Finds<T: Table + ?Sized> {
    /// The row for this key.
    fn find(&self, key: &T::Key) -> Option<*const T::Row>;
}

/// Declares the map of each table, which is called as its table is: in each line one table, or those of both
/// families. Behind `often` stands the name of the map of a table's `answers`.
macro_rules! mapped {
    ($($shape:ident $table:ident $(<$family:ident>)? $name:literal $(often $answers:literal)?
        $(, <$other:ident> $name_of_other:literal $(often $answers_of_other:literal)?)?;)+) => { $(
        mapped!(one $shape, $table $(<$family>)?, $name $(, $answers)?);
        $(mapped!(one $shape, $table<$other>, $name_of_other $(, $answers_of_other)?);)?
    )+ };
    (one $shape:ident, $table:ty, $name:literal $(, $answers:literal)?) => {
        impl Mapped for $table {
            type Map = $shape<$table>;
            #[inline(always)]
            fn map() -> &'static $shape<$table> {
                #[map(name = $name)]
                static MAP: $shape<$table> = <$shape<$table>>::with_max_entries(<$table>::CAPACITY, 0);
                &MAP
            }
            $(
                #[inline(always)]
                fn often(key: &Self::Key) -> Option<Self::Row> {
                    #[map(name = $answers)]
                    static LAST: $crate::answers::Answers<$table> =
                        $crate::answers::Answers::with_max_entries($crate::answers::KEPT, 0);
                    $crate::answers::recalled(&LAST, key)
                }
            )?
        }
        const _: () = assert!(same(<$table>::NAME, $name));
    };
}
pub(crate) use mapped;

/// Whether two names are the same.
pub(crate) const fn same(left: &str, right: &str) -> bool {
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
        let row = self.get_ptr(key)?;
        // SAFETY: the kernel keeps the rows of such a map at multiples of eight: long ones are copied in half as many
        // steps.
        unsafe { assert_unchecked(row.addr().is_multiple_of(8)) };
        Some(row)
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
pub(crate) const fn bits<T: Table>() -> u32 {
    size_of::<T::Key>() as u32 * 8
}

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

    #[inline(always)]
    fn row_often(&self, key: &T::Key) -> Option<T::Row> {
        <T as Mapped>::often(key)
    }
}

impl<T: Mapped<Map = Hash<T>>> Writes<T> for Kernel {
    #[inline(always)]
    fn change<R>(&mut self, key: &T::Key, change: impl FnOnce(&mut T::Row) -> R) -> Option<R> {
        let row = T::map().get_ptr_mut(key)?;
        // SAFETY: as in `find`. Another CPU may change the row at the same time; every bit pattern is a
        // valid row, and a lost update is one packet's.
        unsafe {
            assert_unchecked(row.addr().is_multiple_of(8));
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
