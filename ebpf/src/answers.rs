//! What a CPU was told last of a table: a walk through a tree takes ten times as long as to look here, and to find the
//! row of a hash table twice to four times as long.
//!
//! Only for what packets ask: a program that another may interrupt on its CPU has no use for it.

use aya_ebpf::maps::PerCpuArray;
use dataplane::flow::mix;
use dataplane::tables::Table;
use dataplane::wire::Plain;

use crate::mapped::{Finds, Mapped, copy};
use crate::maps;

/// What a CPU was told of a key. It holds as long as the agent writes nothing.
#[repr(C)]
pub(crate) struct Answer<T: Table> {
    /// What the agent had written by then.
    generation: u32,
    /// Not 0: there is a row.
    found: u32,
    key: T::Key,
    row: T::Row,
}

/// The last answers, each CPU's own.
pub(crate) type Answers<T> = PerCpuArray<Answer<T>>;

/// How many answers are kept, a power of two. A key has one place.
pub(crate) const KEPT: u32 = 256;

/// The row for this key as it was found last, or as it is found now.
#[inline(always)]
pub(crate) fn recalled<T: Mapped>(answers: &Answers<T>, key: &T::Key) -> Option<T::Row> {
    let place = answers.get_ptr_mut(place_of(key))?;
    let generation = maps::generation();
    // SAFETY: the row is this CPU's, and programs are not preempted by each other on it.
    let answer = unsafe { &mut *place };
    if generation == 0 || answer.generation != generation || answer.key != *key {
        answer.generation = generation;
        answer.key = *key;
        answer.found = 0;
        if let Some(row) = T::map().find(key) {
            answer.row = copy(row);
            answer.found = 1;
        }
    }
    if answer.found == 0 { None } else { Some(copy(&raw const answer.row)) }
}

/// Where the answer for a key is.
#[inline(always)]
fn place_of<K: Plain>(key: &K) -> u32 {
    let (words, mut hash, mut at) = ((&raw const *key).cast::<u32>(), 0, 0);
    while at < size_of::<K>() / 4 {
        // SAFETY: the word is one of the key's.
        hash = u32::rotate_left(hash, 5) ^ unsafe { words.add(at).read_unaligned() };
        at += 1;
    }
    mix(hash) & (KEPT - 1)
}
