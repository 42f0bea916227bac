//! From one plan's rows to another's, one row at a time.
//!
//! The order is such that no packet, whenever it comes, meets a row that points to one not there:
//! 1. First what is new or different, and what is pointed to before what points to it: backends, their
//!    slots, frontends; policy rows, the identities they speak of, the endpoints they judge; routes; sockets' homes.
//! 2. Then what is gone, in the opposite order; backends that get no new flows any more come last of all.
//!
//! Between two plans where one follows the other, a Service leads to its backends of before or after, and
//! a pod whose rules stay is judged as before or after. Where a change gives a pod new rules and the other
//! end a new identity at once, a new flow between them may meet the one without the other, for as long as
//! the changes take: rows can be changed only one at a time.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use dataplane::tables::{
    Allowed, Backend, BackendId, Backends, Cookie, Endpoint, Endpoints, Frontends, Home, Homes, Identities,
    Identity, Maglev, NodeId, Nodes, Policy, PolicyRow, Route, Routes, Service, SourceRanges, Table,
};
use dataplane::wire::{Address, V4, V6};

use super::{FrontendKey, NodeRows, PolicyPrefix, Prefix, RangePrefix, Rows};

/// One change of one table of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// Of [`Nodes`]. A row that is `None` is removed.
    Node(V6, Option<NodeId>),
    /// Of a table of IPv4.
    V4(Change<V4>),
    /// Of a table of IPv6.
    V6(Change<V6>),
}

impl NodeChange {
    /// The row, if it is of [`Nodes`].
    pub fn node(&self) -> Option<(V6, Option<NodeId>)> {
        if let Self::Node(key, row) = self { Some((*key, *row)) } else { None }
    }
    /// The change, if it is of a table of IPv4.
    pub fn v4(&self) -> Option<Change<V4>> {
        if let Self::V4(change) = self { Some(*change) } else { None }
    }
    /// The change, if it is of a table of IPv6.
    pub fn v6(&self) -> Option<Change<V6>> {
        if let Self::V6(change) = self { Some(*change) } else { None }
    }
}

/// The changes that turn the rows `from` into the rows `to`, in the order to make them in.
pub fn diff(from: &NodeRows, to: &NodeRows) -> Vec<NodeChange> {
    let new = to.nodes.iter().filter(|(key, row)| from.nodes.get(key) != Some(row));
    let mut changes: Vec<_> = new.map(|(key, row)| NodeChange::Node(*key, Some(*row))).collect();
    changes.extend(of_family(&from.v4, &to.v4).into_iter().map(NodeChange::V4));
    changes.extend(of_family(&from.v6, &to.v6).into_iter().map(NodeChange::V6));
    let gone = from.nodes.keys().filter(|key| !to.nodes.contains_key(key));
    changes.extend(gone.map(|key| NodeChange::Node(*key, None)));
    changes
}

/// One change of one table of a family. A row that is `None` is removed; arrays only ever get rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<A: Address> {
    /// Of [`Endpoints`].
    Endpoint(A, Option<Endpoint>),
    /// Of [`Frontends`].
    Frontend(FrontendKey<A>, Option<Service>),
    /// Of [`SourceRanges`].
    SourceRange(RangePrefix<A>, Option<Allowed>),
    /// Of [`Maglev`].
    Slot(u32, BackendId),
    /// Of [`Backends`].
    Backend(u32, Backend<A>),
    /// Of [`Identities`].
    Identity(Prefix<A>, Option<Identity>),
    /// Of [`Policy`].
    Policy(PolicyPrefix, Option<PolicyRow>),
    /// Of [`Routes`].
    Route(Prefix<A>, Option<Route>),
    /// Of [`Homes`].
    Home(Cookie, Option<Home<A>>),
}

/// Rows of a family by index, as they shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cells<A> {
    /// Of [`Maglev`].
    pub(super) slots: Vec<(u32, BackendId)>,
    /// Of [`Backends`].
    pub(super) backends: Vec<(u32, Backend<A>)>,
}

fn of_family<A: Address>(from: &Rows<A>, to: &Rows<A>) -> Vec<Change<A>> {
    let cells = Cells {
        slots: different(&from.maglev, &to.maglev).collect(),
        backends: different(&from.backends, &to.backends).collect(),
    };
    ordered(from, to, &cells)
}

/// The changes that write the cells, and turn the other rows of `from` into those of `to`.
pub(super) fn ordered<A: Address>(from: &Rows<A>, to: &Rows<A>, cells: &Cells<A>) -> Vec<Change<A>> {
    let mut changes = Vec::new();
    let backends = |active: bool| {
        let cells = cells.backends.iter();
        let cells = cells.filter(move |(_, row)| (row.state == Backend::<A>::ACTIVE) == active);
        cells.map(|(index, row)| Change::Backend(*index, *row))
    };
    // 1.
    changes.extend(backends(true));
    changes.extend(cells.slots.iter().map(|(index, row)| Change::Slot(*index, *row)));
    put(&mut changes, &from.source_ranges, &to.source_ranges, Change::SourceRange);
    put(&mut changes, &from.frontends, &to.frontends, Change::Frontend);
    put(&mut changes, &from.policy, &to.policy, Change::Policy);
    put(&mut changes, &from.identities, &to.identities, Change::Identity);
    put(&mut changes, &from.endpoints, &to.endpoints, Change::Endpoint);
    put(&mut changes, &from.routes, &to.routes, Change::Route);
    put(&mut changes, &from.homes, &to.homes, Change::Home);
    // 2.
    remove(&mut changes, &from.homes, &to.homes, Change::Home);
    remove(&mut changes, &from.routes, &to.routes, Change::Route);
    remove(&mut changes, &from.endpoints, &to.endpoints, Change::Endpoint);
    remove(&mut changes, &from.identities, &to.identities, Change::Identity);
    remove(&mut changes, &from.policy, &to.policy, Change::Policy);
    remove(&mut changes, &from.frontends, &to.frontends, Change::Frontend);
    remove(&mut changes, &from.source_ranges, &to.source_ranges, Change::SourceRange);
    changes.extend(backends(false));
    changes
}

fn put<A: Address, K: Copy + Ord, R: Copy + PartialEq>(
    changes: &mut Vec<Change<A>>,
    from: &BTreeMap<K, R>,
    to: &BTreeMap<K, R>,
    change: impl Fn(K, Option<R>) -> Change<A>,
) {
    let new = to.iter().filter(|(key, row)| from.get(key) != Some(row));
    changes.extend(new.map(|(key, row)| change(*key, Some(*row))));
}

/// What `to` has elsewhere or otherwise than `from`.
fn different<R: Copy + PartialEq>(from: &[R], to: &[R]) -> impl Iterator<Item = (u32, R)> {
    let rows = (0..).zip(to).enumerate();
    rows.filter(|(place, (_, row))| from.get(*place) != Some(row)).map(|(_, (index, row))| (index, *row))
}

fn remove<A: Address, K: Copy + Ord, R: Copy>(
    changes: &mut Vec<Change<A>>,
    from: &BTreeMap<K, R>,
    to: &BTreeMap<K, R>,
    change: impl Fn(K, Option<R>) -> Change<A>,
) {
    let gone = from.keys().filter(|key| !to.contains_key(key));
    changes.extend(gone.map(|key| change(*key, None)));
}

impl NodeRows {
    /// Makes a change.
    pub fn make(&mut self, change: NodeChange) {
        match change {
            NodeChange::Node(key, row) => set(&mut self.nodes, key, row),
            NodeChange::V4(change) => self.v4.make(change),
            NodeChange::V6(change) => self.v6.make(change),
        }
    }
}

impl<A: Address> Rows<A> {
    /// Makes a change.
    pub fn make(&mut self, change: Change<A>) {
        match change {
            Change::Endpoint(key, row) => set(&mut self.endpoints, key, row),
            Change::Frontend(key, row) => set(&mut self.frontends, key, row),
            Change::SourceRange(key, row) => set(&mut self.source_ranges, key, row),
            Change::Slot(index, row) => _ = write(&mut self.maglev, index, row),
            Change::Backend(index, row) => _ = write(&mut self.backends, index, row),
            Change::Identity(key, row) => set(&mut self.identities, key, row),
            Change::Policy(key, row) => set(&mut self.policy, key, row),
            Change::Route(key, row) => set(&mut self.routes, key, row),
            Change::Home(key, row) => set(&mut self.homes, key, row),
        }
    }
}

fn set<K: Ord, R>(rows: &mut BTreeMap<K, R>, key: K, row: Option<R>) {
    match row {
        Some(row) => _ = rows.insert(key, row),
        None => _ = rows.remove(&key),
    }
}

/// Writes a row, and says whether another was there, or none.
pub(super) fn write<R: Copy + Default + PartialEq>(rows: &mut Vec<R>, index: u32, row: R) -> bool {
    let index = index as usize;
    let grown = index >= rows.len();
    if grown {
        rows.resize(index + 1, R::default());
    }
    let other = grown || rows[index] != row;
    rows[index] = row;
    other
}

/// How much of a table is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The table's name.
    pub table: &'static str,
    /// Rows it must hold.
    pub rows: usize,
    /// Rows it holds, unless the engine was told otherwise.
    pub capacity: u32,
}

/// The most rows that each table holds at any time while these changes are made, in their order.
pub fn peak(from: &NodeRows, changes: &[NodeChange]) -> Vec<Use> {
    let mut nodes = Peak::of(from.nodes.len());
    let (mut v4, mut v6) = (FamilyPeak::of(&from.v4), FamilyPeak::of(&from.v6));
    for change in changes {
        match change {
            NodeChange::Node(key, row) => nodes.change(&from.nodes, key, row.is_some()),
            NodeChange::V4(change) => v4.change(&from.v4, change),
            NodeChange::V6(change) => v6.change(&from.v6, change),
        }
    }
    [nodes.used::<Nodes>()].into_iter().chain(v4.used()).chain(v6.used()).collect()
}

/// [`Use`] of the tables of one family that holds these rows.
pub(super) fn used<A: Address>(rows: &Rows<A>) -> [Use; 9] {
    FamilyPeak::of(rows).used()
}

/// How many rows a table has, and has had at most. Every key changes once.
#[derive(Clone, Copy, Debug)]
struct Peak {
    rows: usize,
    most: usize,
}

impl Peak {
    fn of(rows: usize) -> Self {
        Self { rows, most: rows }
    }
    fn change<K: Ord, R>(&mut self, from: &BTreeMap<K, R>, key: &K, put: bool) {
        match (put, from.contains_key(key)) {
            (true, false) => self.rows += 1,
            (false, true) => self.rows -= 1,
            (true, true) | (false, false) => {}
        }
        self.most = self.most.max(self.rows);
    }
    fn reach(&mut self, index: u32) {
        self.most = self.most.max(index as usize + 1);
    }
    fn used<T: Table>(&self) -> Use {
        Use { table: T::NAME, rows: self.most, capacity: T::CAPACITY }
    }
}

/// [`Peak`] of each table of a family.
struct FamilyPeak<A> {
    endpoints: Peak,
    frontends: Peak,
    maglev: Peak,
    backends: Peak,
    source_ranges: Peak,
    identities: Peak,
    policy: Peak,
    routes: Peak,
    homes: Peak,
    family: PhantomData<A>,
}

impl<A: Address> FamilyPeak<A> {
    fn of(rows: &Rows<A>) -> Self {
        Self {
            endpoints: Peak::of(rows.endpoints.len()),
            frontends: Peak::of(rows.frontends.len()),
            maglev: Peak::of(rows.maglev.len()),
            backends: Peak::of(rows.backends.len()),
            source_ranges: Peak::of(rows.source_ranges.len()),
            identities: Peak::of(rows.identities.len()),
            policy: Peak::of(rows.policy.len()),
            routes: Peak::of(rows.routes.len()),
            homes: Peak::of(rows.homes.len()),
            family: PhantomData,
        }
    }

    fn change(&mut self, from: &Rows<A>, change: &Change<A>) {
        match change {
            Change::Endpoint(key, row) => self.endpoints.change(&from.endpoints, key, row.is_some()),
            Change::Frontend(key, row) => self.frontends.change(&from.frontends, key, row.is_some()),
            Change::SourceRange(key, row) => {
                self.source_ranges.change(&from.source_ranges, key, row.is_some());
            }
            Change::Slot(index, _) => self.maglev.reach(*index),
            Change::Backend(index, _) => self.backends.reach(*index),
            Change::Identity(key, row) => self.identities.change(&from.identities, key, row.is_some()),
            Change::Policy(key, row) => self.policy.change(&from.policy, key, row.is_some()),
            Change::Route(key, row) => self.routes.change(&from.routes, key, row.is_some()),
            Change::Home(key, row) => self.homes.change(&from.homes, key, row.is_some()),
        }
    }

    fn used(&self) -> [Use; 9] {
        [
            self.endpoints.used::<Endpoints<A>>(),
            self.frontends.used::<Frontends<A>>(),
            self.maglev.used::<Maglev<A>>(),
            self.backends.used::<Backends<A>>(),
            self.source_ranges.used::<SourceRanges<A>>(),
            self.identities.used::<Identities<A>>(),
            self.policy.used::<Policy<A>>(),
            self.routes.used::<Routes<A>>(),
            self.homes.used::<Homes<A>>(),
        ]
    }
}
