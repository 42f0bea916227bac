//! Tables in memory, as the kernel's are: with a capacity, full when it is reached, and with nothing in
//! their results that depends on the order of insertion or on the run.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use dataplane::tables::{NotAdded, Table};
use dataplane::wire::Plain;

use super::frame::{bytes_of, zeroed};
use crate::plan::Prefix;

/// Hashes the same bytes to the same number in every run: multiply and rotate, then finish so that the
/// low bits, which choose the bucket, depend on all others.
/// Source: the finisher is that of Appleby's MurmurHash3 (`fmix64`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fixed(u64);

impl Fixed {
    fn take(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Fixed {
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
    fn finish(&self) -> u64 {
        let hash = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^ (hash >> 33)
    }
}

type Map<K, R> = HashMap<K, R, BuildHasherDefault<Fixed>>;

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

    pub(crate) fn row(&self, key: &T::Key) -> Option<T::Row> {
        self.rows.get(key).copied()
    }

    pub(crate) fn change<R>(&mut self, key: &T::Key, change: impl FnOnce(&mut T::Row) -> R) -> Option<R> {
        self.rows.get_mut(key).map(change)
    }

    pub(crate) fn add(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        if self.rows.contains_key(key) {
            return Err(NotAdded::Taken);
        }
        self.put(key, row)
    }

    pub(crate) fn put(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        if let Some(old) = self.rows.get_mut(key) {
            *old = *row;
            return Ok(());
        }
        if self.rows.len() >= self.capacity as usize {
            return Err(NotAdded::Full);
        }
        self.rows.insert(*key, *row);
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &T::Key) {
        self.rows.remove(key);
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&T::Key, &T::Row) -> bool) {
        self.rows.retain(|key, row| keep(key, row));
    }

    /// Every row, in the order of the keys' bytes.
    pub(crate) fn sorted(&self) -> Vec<(T::Key, T::Row)> {
        let mut rows: Vec<_> = self.rows.iter().map(|(key, row)| (*key, *row)).collect();
        rows.sort_unstable_by(|(left, _), (right, _)| bytes_of(left).cmp(bytes_of(right)));
        rows
    }

    /// Writes or removes a row; the caller has asked whether it fits.
    pub(crate) fn set(&mut self, key: T::Key, row: Option<T::Row>) {
        match row {
            Some(row) => _ = self.rows.insert(key, row),
            None => _ = self.rows.remove(&key),
        }
    }

    /// Replaces every row; the caller has asked whether they fit.
    pub(crate) fn replace(&mut self, rows: impl Iterator<Item = (T::Key, T::Row)>) {
        self.rows.clear();
        self.rows.extend(rows);
    }
}

/// A table of [`dataplane::tables::Shape::Longest`]: a hash table for each length of prefix there is,
/// looked through from the longest on.
#[derive(Debug)]
pub(crate) struct LongestTable<T: Table> {
    lengths: Vec<(u32, Map<Bits, T::Row>)>,
    capacity: u32,
}

impl<T: Table> LongestTable<T> {
    const KEY_FITS: () = assert!(size_of::<T::Key>() <= size_of::<Bits>());

    pub(crate) fn new(capacity: u32) -> Self {
        let () = Self::KEY_FITS;
        Self { lengths: Vec::new(), capacity }
    }

    pub(crate) fn row(&self, key: &T::Key) -> Option<T::Row> {
        let bits = leading(key);
        self.lengths.iter().find_map(|(length, rows)| rows.get(&first(bits, *length)).copied())
    }

    /// Rows that it can hold.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Writes or removes a row; the caller has asked whether it fits.
    pub(crate) fn set(&mut self, prefix: Prefix<T::Key>, row: Option<T::Row>) {
        let key = first(leading(&prefix.key), prefix.bits);
        let place = self.lengths.binary_search_by(|(length, _)| prefix.bits.cmp(length));
        match (place, row) {
            (Ok(place), Some(row)) => _ = self.lengths[place].1.insert(key, row),
            (Err(place), Some(row)) => {
                let rows = Map::from_iter([(key, row)]);
                self.lengths.insert(place, (prefix.bits, rows));
            }
            (Ok(place), None) => {
                self.lengths[place].1.remove(&key);
                if self.lengths[place].1.is_empty() {
                    self.lengths.remove(place);
                }
            }
            (Err(_), None) => {}
        }
    }
}

/// A key's bits, the first byte's foremost, from the first number's top on.
type Bits = [u64; 3];

/// Those of a key; what it does not fill is zero.
fn leading<K: Plain>(key: &K) -> Bits {
    let mut bytes = [[0; 8]; 3];
    bytes.as_flattened_mut()[..size_of::<K>()].copy_from_slice(bytes_of(key));
    bytes.map(u64::from_be_bytes)
}

/// The first `length` of them, the others zero.
fn first(bits: Bits, length: u32) -> Bits {
    let ones = |before: u32| u64::MAX.checked_shl(64 - length.saturating_sub(before).min(64)).unwrap_or(0);
    [bits[0] & ones(0), bits[1] & ones(64), bits[2] & ones(128)]
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
