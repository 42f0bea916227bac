//! Tables in memory, as the kernel's are: with a capacity, full when it is reached, and with nothing in
//! their results that depends on the order of insertion or on the run.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use dataplane::tables::{NotAdded, Table};
use dataplane::wire::Plain;

use super::frame::{bytes_of, from_bytes, zeroed};
use crate::plan::Prefix;

/// Hashes the same bytes to the same number in every run: multiply and rotate, then finish so that the
/// low bits, which choose the bucket, depend on all others.
/// Source: the finisher is that of Appleby's MurmurHash3 (`fmix64`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fixed(u64);

impl Fixed {
    #[inline]
    fn take(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Fixed {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.take(u64::from_ne_bytes(word.try_into().expect("chunks of eight")));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.take(u64::from_ne_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.take(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.take(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.take(value);
    }
    fn write_usize(&mut self, value: usize) {
        self.take(value as u64);
    }
    #[inline]
    fn finish(&self) -> u64 {
        let hash = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^ (hash >> 33)
    }
}

/// A key that is hashed as the bytes it is made of, eight at a time, and not field by field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Whole<K>(K);

impl<K: Plain> Hash for Whole<K> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(bytes_of(&self.0));
    }
}

type Map<K, R> = HashMap<Whole<K>, R, BuildHasherDefault<Fixed>>;

/// A table of [`dataplane::tables::Shape::Hash`].
#[derive(Debug)]
pub(crate) struct HashTable<T: Table> {
    rows: Map<T::Key, T::Row>,
    capacity: u32,
}

impl<T: Table> HashTable<T> {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { rows: Map::default(), capacity }
    }

    #[inline]
    pub(crate) fn row(&self, key: &T::Key) -> Option<T::Row> {
        self.rows.get(&Whole(*key)).copied()
    }

    #[inline]
    pub(crate) fn change<R>(&mut self, key: &T::Key, change: impl FnOnce(&mut T::Row) -> R) -> Option<R> {
        self.rows.get_mut(&Whole(*key)).map(change)
    }

    pub(crate) fn add(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        if self.rows.contains_key(&Whole(*key)) {
            return Err(NotAdded::Taken);
        }
        self.put(key, row)
    }

    pub(crate) fn put(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        if let Some(old) = self.rows.get_mut(&Whole(*key)) {
            *old = *row;
            return Ok(());
        }
        if self.rows.len() >= self.capacity as usize {
            return Err(NotAdded::Full);
        }
        self.rows.insert(Whole(*key), *row);
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &T::Key) {
        self.rows.remove(&Whole(*key));
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&T::Key, &T::Row) -> bool) {
        self.rows.retain(|key, row| keep(&key.0, row));
    }

    /// Every row, in the order of the keys' bytes.
    pub(crate) fn sorted(&self) -> Vec<(T::Key, T::Row)> {
        let mut rows: Vec<_> = self.rows.iter().map(|(key, row)| (key.0, *row)).collect();
        rows.sort_unstable_by(|(left, _), (right, _)| bytes_of(left).cmp(bytes_of(right)));
        rows
    }

    /// Writes or removes a row; the caller has asked whether it fits.
    pub(crate) fn set(&mut self, key: T::Key, row: Option<T::Row>) {
        match row {
            Some(row) => _ = self.rows.insert(Whole(key), row),
            None => _ = self.rows.remove(&Whole(key)),
        }
    }

    /// Replaces every row; the caller has asked whether they fit.
    pub(crate) fn replace(&mut self, rows: impl Iterator<Item = (T::Key, T::Row)>) {
        self.rows.clear();
        self.rows.extend(rows.map(|(key, row)| (Whole(key), row)));
    }
}

/// A table of [`dataplane::tables::Shape::Longest`]: a hash table for each length of prefix there is,
/// looked through from the longest on.
#[derive(Debug)]
pub(crate) struct LongestTable<T: Table> {
    lengths: Vec<Length<T>>,
    capacity: u32,
}

/// The rows of one length of prefix.
#[derive(Debug)]
struct Length<T: Table> {
    bits: u32,
    mask: Mask,
    /// By keys of which no bit is set behind the prefix.
    rows: Map<T::Key, T::Row>,
}

impl<T: Table> LongestTable<T> {
    const KEY_FITS: () = assert!(size_of::<T::Key>() <= size_of::<Mask>());

    pub(crate) fn new(capacity: u32) -> Self {
        let () = Self::KEY_FITS;
        Self { lengths: Vec::new(), capacity }
    }

    #[inline]
    pub(crate) fn row(&self, key: &T::Key) -> Option<T::Row> {
        self.lengths.iter().find_map(|length| length.rows.get(&Whole(masked(key, &length.mask))).copied())
    }

    /// Rows that it can hold.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Writes or removes a row; the caller has asked whether it fits.
    pub(crate) fn set(&mut self, prefix: Prefix<T::Key>, row: Option<T::Row>) {
        let mask = mask(prefix.bits);
        let key = Whole(masked(&prefix.key, &mask));
        let place = self.lengths.binary_search_by(|length| prefix.bits.cmp(&length.bits));
        match (place, row) {
            (Ok(place), Some(row)) => _ = self.lengths[place].rows.insert(key, row),
            (Err(place), Some(row)) => {
                let rows = Map::from_iter([(key, row)]);
                self.lengths.insert(place, Length { bits: prefix.bits, mask, rows });
            }
            (Ok(place), None) => {
                self.lengths[place].rows.remove(&key);
                if self.lengths[place].rows.is_empty() {
                    self.lengths.remove(place);
                }
            }
            (Err(_), None) => {}
        }
    }
}

/// The bits of a key that a prefix says, in words as they lie in memory.
type Mask = [u64; 3];

/// The first `bits`, of each byte the highest first.
fn mask(bits: u32) -> Mask {
    let mut bytes = [[0_u8; 8]; 3];
    for (place, byte) in (0..).step_by(8).zip(bytes.as_flattened_mut()) {
        *byte = u8::MAX.checked_shl(8 - bits.saturating_sub(place).min(8)).unwrap_or(0);
    }
    bytes.map(u64::from_ne_bytes)
}

/// A key without the bits behind a prefix.
#[inline]
fn masked<K: Plain>(key: &K, mask: &Mask) -> K {
    let mut bytes = [[0; 8]; 3];
    bytes.as_flattened_mut()[..size_of::<K>()].copy_from_slice(bytes_of(key));
    for (word, mask) in bytes.iter_mut().zip(mask) {
        *word = (u64::from_ne_bytes(*word) & mask).to_ne_bytes();
    }
    from_bytes(bytes.as_flattened()).expect("a key is no longer than a mask")
}

/// A table of [`dataplane::tables::Shape::Array`]: rows that were never written are zero.
#[derive(Debug)]
pub(crate) struct ArrayTable<T: Table> {
    rows: Vec<T::Row>,
    capacity: u32,
}

impl<T: Table<Key = u32>> ArrayTable<T> {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { rows: Vec::new(), capacity }
    }

    pub(crate) fn row(&self, index: &u32) -> Option<T::Row> {
        let index = *index;
        if index >= self.capacity {
            return None;
        }
        Some(self.rows.get(index as usize).copied().unwrap_or_else(zeroed))
    }

    /// Writes a row; the caller has asked whether it fits.
    pub(crate) fn set(&mut self, index: u32, row: T::Row) {
        let index = index as usize;
        if index >= self.rows.len() {
            self.rows.resize_with(index + 1, zeroed);
        }
        self.rows[index] = row;
    }

    /// Replaces every row; the caller has asked whether they fit.
    pub(crate) fn replace(&mut self, rows: &[T::Row]) {
        self.rows.clear();
        self.rows.extend_from_slice(rows);
    }
}

#[cfg(test)]
mod tests {
    use dataplane::tables::{Backend, Backends, Identities, Identity, NodeId, Nodes};
    use dataplane::wire::{Address, V4};

    use super::*;

    #[test]
    fn a_mask_has_as_many_bits_as_its_prefix_and_they_are_the_first() {
        let bytes = |bits| mask(bits).map(u64::to_ne_bytes).as_flattened().to_vec();
        assert_eq!(bytes(0), [0; 24]);
        assert_eq!(bytes(12)[..3], [0xff, 0xf0, 0]);
        assert_eq!(bytes(96)[11..13], [0xff, 0]);
        assert_eq!(bytes(192), [0xff; 24]);
    }

    const ONE: V4 = V4([10, 0, 0, 1]);
    const TWO: V4 = V4([10, 0, 0, 2]);

    #[test]
    fn a_full_table_takes_changes_but_no_more_rows() {
        let (one, two) = (ONE.to_v6(), TWO.to_v6());
        let mut table = HashTable::<Nodes>::new(1);
        assert_eq!(table.add(&one, &NodeId(1)), Ok(()));
        assert_eq!(table.add(&one, &NodeId(2)), Err(NotAdded::Taken));
        assert_eq!(table.put(&one, &NodeId(2)), Ok(()));
        assert_eq!(table.put(&two, &NodeId(3)), Err(NotAdded::Full));
        assert_eq!(table.add(&two, &NodeId(3)), Err(NotAdded::Full));
        assert_eq!(table.row(&one), Some(NodeId(2)));
        table.remove(&one);
        assert_eq!(table.add(&two, &NodeId(3)), Ok(()));
        assert_eq!(table.sorted(), [(two, NodeId(3))]);
    }

    #[test]
    fn rows_come_in_the_order_of_their_keys_bytes() {
        let mut table = HashTable::<Nodes>::new(300);
        for last in (0..=255).rev() {
            table.put(&V4([10, 0, last, 255 - last]).to_v6(), &NodeId(u32::from(last))).expect("fits");
        }
        let order: Vec<u32> = table.sorted().into_iter().map(|(_, node)| node.0).collect();
        assert_eq!(order, (0..=255).collect::<Vec<u32>>());
    }

    #[test]
    fn the_longest_prefix_wins_and_the_empty_one_takes_the_rest() {
        let mut table = LongestTable::<Identities<V4>>::new(10);
        let prefix = |a, b, c, d, bits| Prefix { key: V4([a, b, c, d]), bits };
        let rows = [
            (prefix(10, 0, 0, 0, 8), Identity(8)),
            (prefix(0, 0, 0, 0, 0), Identity(99)),
            (prefix(10, 0, 0, 1, 32), Identity(32)),
            (prefix(10, 0, 0, 0, 31), Identity(31)),
        ];
        rows.into_iter().for_each(|(prefix, row)| table.set(prefix, Some(row)));
        assert_eq!(table.row(&ONE), Some(Identity(32)));
        assert_eq!(table.row(&V4([10, 0, 0, 0])), Some(Identity(31)));
        assert_eq!(table.row(&TWO), Some(Identity(8)));
        assert_eq!(table.row(&V4([11, 0, 0, 0])), Some(Identity(99)));
        table.set(prefix(10, 0, 0, 1, 32), None);
        assert_eq!(table.row(&ONE), Some(Identity(31)));
    }

    #[test]
    fn a_longest_prefix_table_without_the_empty_prefix_may_find_nothing() {
        let mut table = LongestTable::<Identities<V4>>::new(10);
        table.set(Prefix { key: ONE, bits: 32 }, Some(Identity(1)));
        assert_eq!(table.row(&TWO), None);
    }

    #[test]
    fn every_index_below_the_capacity_of_an_array_has_a_row() {
        let mut table = ArrayTable::<Backends<V4>>::new(3);
        let backend = Backend { address: ONE, port: dataplane::wire::Be16::new(80), ..Backend::default() };
        table.replace(&[backend]);
        assert_eq!(table.row(&0), Some(backend));
        assert_eq!(table.row(&2).map(|row| row.address), Some(V4([0; 4])));
        assert_eq!(table.row(&3), None);
    }
}
