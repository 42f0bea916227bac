//! Tables in the kernel, typed as `dataplane::tables` types them.

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError};
use dataplane::tables::Table;
use dataplane::wire::Plain;

use super::error::{Error, sentence};
use crate::engine::emulator::frame::bytes_of;
use crate::plan::Prefix;

/// A value as it lies in a map. The wrapper is how the loader accepts types that know nothing of it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Row<T>(pub T);

// SAFETY: a plain type is fully described by its bytes, which is what the loader asks for.
unsafe impl<T: Plain> aya::Pod for Row<T> {}

/// A hash table.
pub(super) struct HashTable<T: Table>(HashMap<MapData, Row<T::Key>, Row<T::Row>>);
/// A longest-prefix table.
pub(super) struct LongestTable<T: Table>(LpmTrie<MapData, Row<T::Key>, Row<T::Row>>);
/// A table of rows by index.
pub(super) struct ArrayTable<T: Table>(Array<MapData, Row<T::Row>>);

/// Says why a table could not be used.
pub(super) fn failed<T: Table>(tried: &'static str) -> impl Fn(MapError) -> Error {
    move |why| Error::Table { tried, table: T::NAME, why: sentence(&why) }
}

impl<T: Table> HashTable<T> {
    pub(super) fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(failed::<T>("open"))
    }

    pub(super) fn row(&self, key: &T::Key) -> Result<Option<T::Row>, Error> {
        match self.0.get(&Row(*key), 0) {
            Ok(Row(row)) => Ok(Some(row)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(why) => Err(failed::<T>("read")(why)),
        }
    }

    /// Writes the row, or removes it where there is none.
    pub(super) fn set(&mut self, key: &T::Key, row: Option<T::Row>) -> Result<(), Error> {
        match row {
            Some(row) => self.0.insert(Row(*key), Row(row), 0),
            None => gone(self.0.remove(&Row(*key))),
        }
        .map_err(failed::<T>("write"))
    }

    /// Removes every row.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        let keys = self.0.keys().collect::<Result<Vec<_>, _>>().map_err(failed::<T>("read"))?;
        keys.iter().try_for_each(|key| gone(self.0.remove(key))).map_err(failed::<T>("write"))
    }

    /// How many rows there are. Rows that come or go meanwhile may be counted or not.
    pub(super) fn count(&self) -> Result<usize, Error> {
        let mut rows = 0;
        for key in self.0.keys() {
            key.map_err(failed::<T>("read"))?;
            rows += 1;
        }
        Ok(rows)
    }

    /// Every row, in the order of the keys' bytes. Rows that come or go meanwhile may be in it or not.
    pub(super) fn sorted(&self) -> Result<Vec<(T::Key, T::Row)>, Error> {
        let mut rows = Vec::new();
        for entry in self.0.iter() {
            let (Row(key), Row(row)) = entry.map_err(failed::<T>("read"))?;
            rows.push((key, row));
        }
        rows.sort_unstable_by(|(left, _), (right, _)| bytes_of(left).cmp(bytes_of(right)));
        // A key that moved while the table was read comes twice.
        rows.dedup_by(|(left, _), (right, _)| left == right);
        Ok(rows)
    }
}

impl<T: Table> LongestTable<T> {
    pub(super) fn new(map: Map) -> Result<Self, Error> {
        LpmTrie::try_from(map).map(Self).map_err(failed::<T>("open"))
    }

    /// Writes the row, or removes it where there is none.
    pub(super) fn set(&mut self, prefix: &Prefix<T::Key>, row: Option<T::Row>) -> Result<(), Error> {
        let key = Key::new(prefix.bits, Row(prefix.key));
        match row {
            Some(row) => self.0.insert(&key, Row(row), 0),
            None => gone(self.0.remove(&key)),
        }
        .map_err(failed::<T>("write"))
    }
}

impl<T: Table> ArrayTable<T> {
    pub(super) fn new(map: Map) -> Result<Self, Error> {
        Array::try_from(map).map(Self).map_err(failed::<T>("open"))
    }

    pub(super) fn set(&mut self, index: u32, row: T::Row) -> Result<(), Error> {
        self.0.set(index, Row(row), 0).map_err(failed::<T>("write"))
    }
}

/// That a row to be removed is gone already is as good.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
