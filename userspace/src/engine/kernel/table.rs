//! Tables in the kernel, typed as `dataplane::tables` types them.

use std::os::fd::{AsFd, AsRawFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, IterableMap, LpmTrie, Map, MapData, MapError};
use dataplane::tables::Table;
use dataplane::wire::Plain;

use super::batch;
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

/// A row of a table, or none where it is to be removed.
pub(super) type Change<K, R> = (K, Option<R>);

/// Changes were made up to one that failed.
#[derive(Debug)]
pub(super) struct Stopped {
    /// How many were made, from the first on.
    pub(super) made: usize,
    /// Why the next one was not.
    pub(super) why: Error,
}

impl Stopped {
    /// The same of more changes, of which so many came before these.
    pub(super) fn behind(self, before: usize) -> Self {
        Self { made: before + self.made, ..self }
    }
}

/// Makes changes of a map that are alike, all rows or all removals, in one call, and says how many it came to.
/// One alone is left to others, and so is what the call does not come to: they say why it can't be done if it
/// can't.
fn make<K: aya::Pod, R: Plain>(map: &MapData, alike: &[Change<K, R>]) -> usize {
    if alike.len() < 2 {
        return 0;
    }
    let map = map.fd().as_fd();
    let keys: Vec<_> = alike.iter().map(|(key, _)| *key).collect();
    let rows: Vec<_> = alike.iter().filter_map(|(_, row)| row.map(Row)).collect();
    if rows.is_empty() { batch::delete(map, &keys) } else { batch::update(map, &keys, &rows) }
}

/// Changes in their order, those in a row that are alike together.
fn alike<K, R>(changes: &[Change<K, R>]) -> impl Iterator<Item = &[Change<K, R>]> {
    changes.chunk_by(|(_, one), (_, other)| one.is_some() == other.is_some())
}

/// Bytes of memory that a map takes, as the kernel counts them.
fn bytes<T: Table>(map: &MapData) -> Result<u64, Error> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let failed = |why: String| Error::Table { tried: "measure", table: T::NAME, why };
    let info = std::fs::read_to_string(&path).map_err(|why| failed(format!("{path}: {why}")))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok())
        .ok_or_else(|| failed(format!("{path} does not say memlock")))
}

/// Says why a table could not be used.
pub(super) fn failed<T: Table>(tried: &'static str) -> impl Fn(MapError) -> Error {
    move |why| Error::Table { tried, table: T::NAME, why: sentence(&why) }
}

impl<T: Table> HashTable<T> {
    pub(super) fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(failed::<T>("open"))
    }

    pub(super) fn map(&self) -> &MapData {
        self.0.map()
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

    /// Makes changes, in their order.
    pub(super) fn make(
        &mut self,
        changes: impl Iterator<Item = Change<T::Key, T::Row>>,
    ) -> Result<(), Stopped> {
        let changes: Vec<_> = changes.map(|(key, row)| (Row(key), row)).collect();
        let mut made = 0;
        for alike in alike(&changes) {
            let done = make(self.0.map(), alike);
            made += done;
            for (Row(key), row) in &alike[done..] {
                self.set(key, *row).map_err(|why| Stopped { made, why })?;
                made += 1;
            }
        }
        Ok(())
    }

    /// Bytes of memory that it takes.
    pub(super) fn bytes(&self) -> Result<u64, Error> {
        bytes::<T>(self.0.map())
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

    /// Makes changes, in their order.
    pub(super) fn make(
        &mut self,
        changes: impl Iterator<Item = Change<Prefix<T::Key>, T::Row>>,
    ) -> Result<(), Stopped> {
        let key = |prefix: Prefix<T::Key>| Key::new(prefix.bits, Row(prefix.key));
        let changes: Vec<_> = changes.map(|(prefix, row)| (key(prefix), row)).collect();
        let mut made = 0;
        for alike in alike(&changes) {
            let done = make(self.0.map(), alike);
            made += done;
            for (key, row) in &alike[done..] {
                let written = match row {
                    Some(row) => self.0.insert(key, Row(*row), 0),
                    None => gone(self.0.remove(key)),
                };
                written.map_err(|why| Stopped { made, why: failed::<T>("write")(why) })?;
                made += 1;
            }
        }
        Ok(())
    }

    /// Bytes of memory that it takes.
    pub(super) fn bytes(&self) -> Result<u64, Error> {
        bytes::<T>(self.0.map())
    }
}

impl<T: Table> ArrayTable<T> {
    pub(super) fn new(map: Map) -> Result<Self, Error> {
        Array::try_from(map).map(Self).map_err(failed::<T>("open"))
    }

    pub(super) fn map(&self) -> &MapData {
        self.0.map()
    }

    /// The row at this place.
    pub(super) fn row(&self, index: u32) -> Result<T::Row, Error> {
        self.0.get(&index, 0).map(|Row(row)| row).map_err(failed::<T>("read"))
    }

    /// Every row.
    pub(super) fn all(&self) -> Result<Vec<T::Row>, Error> {
        (0..self.0.len()).map(|index| self.row(index)).collect()
    }

    /// Writes rows, in their order.
    pub(super) fn write(&mut self, rows: impl Iterator<Item = (u32, T::Row)>) -> Result<(), Stopped> {
        let rows: Vec<_> = rows.map(|(index, row)| (index, Some(row))).collect();
        let done = make(self.0.map(), &rows);
        for (made, (index, row)) in rows.iter().enumerate().skip(done) {
            let Some(row) = row else { continue };
            let written = self.0.set(*index, Row(*row), 0);
            written.map_err(|why| Stopped { made, why: failed::<T>("write")(why) })?;
        }
        Ok(())
    }

    /// Bytes of memory that it takes.
    pub(super) fn bytes(&self) -> Result<u64, Error> {
        bytes::<T>(self.0.map())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dataplane::tables::{
        Allowed, Backend, BackendId, Frontend, Frontends, Node, Service, ServiceId, Slots,
    };
    use dataplane::wire::{Be16, V4, V6};

    use super::*;
    use crate::engine::kernel::{Kernel, Options};
    use crate::engine::{Capacities, Engine};
    use crate::plan::{FrontendKey, NodePlan, NodeRows, RangePrefix, Rows, Rules};

    const NODE: V4 = V4([10, 240, 0, 4]);

    /// Services from 10.96.0.0 on, so many of them, each with a slot, a backend and a range.
    fn rows(services: u32) -> NodeRows {
        let mut rows = Rows::<V4>::default();
        rows.backends.push(Backend::default());
        for index in 0..services {
            let address = |first: u32| V4((first + index).to_be_bytes());
            let key = FrontendKey { address: address(0x0a60_0000), port: 80, protocol: 6 };
            let slots = Slots { first: index, count: 1 };
            let service =
                Service { internal: slots, external: slots, id: ServiceId(index + 1), ..Service::default() };
            rows.frontends.insert(key, service);
            rows.maglev.push(BackendId(index + 1));
            let backend =
                Backend { address: address(0x0af4_0000), port: Be16::new(8080), ..Backend::default() };
            rows.backends.push(Backend { seed: index, state: Backend::<V4>::ACTIVE, ..backend });
            let range = RangePrefix { service: index + 1, address: V4([203, 0, 113, 0]), bits: 24 };
            rows.source_ranges.insert(range, Allowed::default());
        }
        NodeRows { v4: rows, ..NodeRows::default() }
    }

    /// Asserts that the kernel's tables hold these rows.
    fn assert_holds(kernel: &Kernel, rows: &NodeRows) {
        let (tables, rows) = (&kernel.v4, &rows.v4);
        let found = tables.frontends.sorted().expect("it can be read");
        let expected: Vec<_> = rows.frontends.iter().map(|(key, row)| (Frontend::from(*key), *row)).collect();
        assert_eq!(found.len(), expected.len());
        assert!(expected.iter().all(|row| found.contains(row)));
        let slots =
            (0..rows.maglev.len() as u32).map(|index| tables.maglev.0.get(&index, 0).expect("in it").0);
        assert!(slots.eq(rows.maglev.iter().copied()));
        let backends =
            (0..rows.backends.len() as u32).map(|index| tables.backends.0.get(&index, 0).expect("in it").0);
        assert!(backends.eq(rows.backends.iter().copied()));
        let ranges: BTreeMap<_, _> = tables
            .source_ranges
            .0
            .iter()
            .map(|range| {
                let (key, row) = range.expect("it can be read");
                (({ key.data() }.0.service.0, key.prefix_len()), row.0)
            })
            .collect();
        let expected = rows.source_ranges.keys().map(|range| (range.service, 32 + range.bits));
        assert!(ranges.into_keys().eq(expected));
    }

    fn loaded(rows: NodeRows) -> Kernel {
        let node = Node { mtu: 1500, ..Node::default() };
        let plan = NodePlan { node, addresses: (NODE, V6::default()), rows, rules: Rules::default() };
        Kernel::load(&plan, Options::default()).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn many_rows_at_once_are_written_and_removed_like_single_ones() {
        let mut kernel = loaded(rows(3000));
        assert_holds(&kernel, &rows(3000));
        for services in [3001, 1000, 1, 0, 2000] {
            let next = kept(rows(services), &kernel.rows);
            kernel.apply(&next).expect("it fits");
            assert_holds(&kernel, &next);
        }
    }

    /// `next`, and what arrays keep of `before` behind that.
    fn kept(mut next: NodeRows, before: &NodeRows) -> NodeRows {
        next.v4.maglev.extend(before.v4.maglev.iter().skip(next.v4.maglev.len()));
        next.v4.backends.extend(before.v4.backends.iter().skip(next.v4.backends.len()));
        next
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn what_a_change_has_written_until_it_failed_is_taken_back_by_the_next_one() {
        let node = Node { mtu: 1500, ..Node::default() };
        let plan =
            NodePlan { node, addresses: (NODE, V6::default()), rows: rows(10), rules: Rules::default() };
        let mut capacities = Capacities::default();
        capacities.set(Frontends::<V4>::NAME, 20).expect("there is such a table");
        let options = Options { capacities, ..Options::default() };
        let mut kernel = Kernel::load(&plan, options).unwrap_or_else(|error| panic!("{error}"));
        // Nobody knows of these, and with them the table is full too soon.
        let others: Vec<FrontendKey<V4>> = (0..5)
            .map(|index| FrontendKey { address: V4([192, 0, 2, index]), port: 80, protocol: 6 })
            .collect();
        for key in &others {
            kernel.v4.frontends.set(&(*key).into(), Some(Service::default())).expect("there is room");
        }
        kernel.apply(&rows(20)).expect_err("five of its frontends find no room");
        for key in &others {
            kernel.v4.frontends.set(&(*key).into(), None).expect("it is there");
        }
        assert_eq!(kernel.rows.v4.frontends.len(), 15);
        assert_eq!(kernel.rows.v4.source_ranges.len(), 20, "ranges are written before frontends");
        assert_holds(&kernel, &kernel.rows);
        let half = kernel.rows.clone();
        kernel.apply(&rows(10)).expect("what was written can be removed");
        assert_holds(&kernel, &kept(rows(10), &half));
        kernel.apply(&rows(20)).expect("there is room now");
        assert_holds(&kernel, &rows(20));
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn rows_that_are_gone_already_do_not_stand_in_the_way_of_others() {
        let mut kernel = loaded(rows(100));
        for index in [0, 17, 18, 99] {
            let key = FrontendKey { address: V4([10, 96, 0, index]), port: 80, protocol: 6 };
            kernel.v4.frontends.set(&key.into(), None).expect("it is there");
        }
        let next =
            NodeRows { v4: Rows { frontends: BTreeMap::new(), ..rows(100).v4 }, ..NodeRows::default() };
        kernel.apply(&next).expect("all are to go");
        assert_holds(&kernel, &next);
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn the_kernel_takes_many_rows_of_every_shape_in_one_call() {
        let kernel = loaded(NodeRows::default());
        let (tables, rows) = (&kernel.v4, rows(10).v4);
        let frontends = rows.frontends.into_iter().map(|(key, row)| (Row(Frontend::from(key)), Some(row)));
        assert_eq!(make(tables.frontends.0.map(), &frontends.collect::<Vec<_>>()), 10);
        let slots = (0..).zip(rows.maglev).map(|(index, row)| (index, Some(row)));
        assert_eq!(make(tables.maglev.0.map(), &slots.collect::<Vec<_>>()), 10);
        let ranges = rows.source_ranges.into_iter().map(|(range, row)| (Prefix::from(range), row));
        let ranges = ranges.map(|(range, row)| (Key::new(range.bits, Row(range.key)), Some(row)));
        let mut ranges: Vec<_> = ranges.collect();
        assert_eq!(make(tables.source_ranges.0.map(), &ranges), 10);
        ranges.iter_mut().for_each(|(_, row)| *row = None);
        assert_eq!(make(tables.source_ranges.0.map(), &ranges), 10);
        assert_eq!(make(tables.source_ranges.0.map(), &ranges), 0, "they are gone");
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn every_table_says_what_memory_it_takes() {
        let memory = loaded(rows(1)).memory().expect("the kernel tells");
        let bytes = |table| memory.iter().find(|(name, _)| *name == table).expect("it is one of them").1;
        assert!(bytes("maglev") >= 4 << 20 && bytes("backends") >= 12 * 65_536 && bytes("frontends_v6") > 0);
        assert_eq!(memory.len(), 29);
    }
}
