//! Many rows of a map in one call: a call of its own for each would be most of what a row costs.

use std::os::fd::{AsRawFd, BorrowedFd};

use aya::Pod;

use super::bpf::{self, Command};

/// The part of `union bpf_attr` that these commands read (`batch`).
#[derive(Debug, Default)]
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Adds or replaces the rows of a map, one after the other in one call, and says how many it came to: all, unless
/// one could not be written, or the kernel cannot do this with this kind of map.
///
/// The sizes of keys and rows must be the map's.
pub(super) fn update<K: Pod, R: Pod>(map: BorrowedFd<'_>, keys: &[K], rows: &[R]) -> usize {
    assert_eq!(keys.len(), rows.len(), "a row for each key");
    let batch = Batch {
        keys: keys.as_ptr() as u64,
        values: rows.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Batch::default()
    };
    // SAFETY: the kernel reads `count` keys and as many rows of the map's sizes, which are theirs, out of slices
    // that are as long and live until the call is over.
    unsafe { call(Command::MapUpdateBatch, batch) }
}

/// Removes the rows of these keys, in the same way.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> usize {
    let batch = Batch {
        keys: keys.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Batch::default()
    };
    // SAFETY: as in `update`; no rows are read.
    unsafe { call(Command::MapDeleteBatch, batch) }
}

/// Has the kernel do it, and says how many rows it came to.
///
/// # Safety
/// The command is one of the two, and what `batch` points to is as long as it says.
unsafe fn call(command: Command, mut batch: Batch) -> usize {
    let asked = batch.count;
    // SAFETY: `Batch` is what these commands read, and they write to nothing that it points to; that this is there is
    // the caller's word.
    if unsafe { bpf::call(command, &mut batch) }.is_ok() {
        return asked as usize;
    }
    // The kernel sets the count once it has begun. It has not come to all of them, or it would not have failed.
    if batch.count < asked { batch.count as usize } else { 0 }
}
