//! From one plan's rows to another's, one row at a time.
//!
//! The order is such that no packet, whenever it comes, meets a row that points to one not there:
//! 1. First what is new or different, and what is pointed to before what points to it: backends, their
//!    slots, frontends; policy rows, the identities they speak of, the endpoints they judge; routes; sockets' homes.
//! 2. Then what is gone, in the opposite order; backends that get no new flows any more come last of all.
//! 3. Of prefixes, the longer is written first and removed last, so that what is found for a packet changes once.
//! 4. What judges goes there by way of stops, where it takes them, and in legs that the nodes of a cluster make
//!    together (`transition`). Pods that come are there last of all, and those that go are gone first.
//!
//! Between two plans where one follows the other, a Service leads to its backends of before or after, and a flow
//! is judged, for a pod in a direction, as before or as after. A pod that is new is judged from its first packet.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use dataplane::tables::{
    Allowed, Backend, BackendId, Backends, Cookie, Endpoint, Endpoints, Frontends, Home, Homes, Identities,
    Identity, Maglev, NodeId, Nodes, Policy, PolicyRow, Route, Routes, Service, SourceRanges, Table,
};
use dataplane::wire::{Address, V4, V6};

use super::transition::{Judges, LEGS, hushed, stops};
use super::{Family, FrontendKey, NodeRows, PolicyPrefix, Prefix, RangePrefix, Rows};

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

/// Changes of a node in legs, each in the order to make it in. No node of a cluster begins a leg before all others
/// have ended the one before it.
pub type Legs = [Vec<NodeChange>; LEGS];

/// The changes that turn the rows `from` into the rows `to`. The policy tables of IPv4 and IPv6 hold so many rows:
/// where there is no room for the rules of before and after beside each other, pods are closed in between.
pub fn diff(from: &NodeRows, to: &NodeRows, policy_rows: (u32, u32)) -> Legs {
    let mut legs =
        both(of_family(&from.v4, &to.v4, policy_rows.0), of_family(&from.v6, &to.v6, policy_rows.1));
    // Nothing of a node is taken before it is known who its pods are.
    let new = to.nodes.iter().filter(|(key, row)| from.nodes.get(key) != Some(row));
    let new = new.map(|(key, row)| NodeChange::Node(*key, Some(*row)));
    let gone = from.nodes.keys().filter(|key| !to.nodes.contains_key(key));
    legs[LEGS - 1].extend(new.chain(gone.map(|key| NodeChange::Node(*key, None))));
    legs
}

/// Those of both families.
pub(super) fn both(v4: FamilyLegs<V4>, v6: FamilyLegs<V6>) -> Legs {
    let mut legs = v4.map(|leg| leg.into_iter().map(NodeChange::V4).collect::<Vec<_>>());
    for (leg, more) in legs.iter_mut().zip(v6) {
        leg.extend(more.into_iter().map(NodeChange::V6));
    }
    legs
}

/// [`Legs`] of the tables of one family.
pub(super) type FamilyLegs<A> = [Vec<Change<A>>; LEGS];

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

fn of_family<A: Family>(from: &Rows<A>, to: &Rows<A>, policy_rows: u32) -> FamilyLegs<A> {
    let cells = Cells {
        slots: different(&from.maglev, &to.maglev).collect(),
        backends: different(&from.backends, &to.backends).collect(),
    };
    ordered(from, to, &cells, (policy_rows as usize, &|_| false))
}

/// The changes that write the cells, and turn the other rows of `from` into those of `to`, if the policy table
/// has room for so many, and others have identities that these rows do not speak of.
pub(super) fn ordered<A: Family>(
    from: &Rows<A>,
    to: &Rows<A>,
    cells: &Cells<A>,
    room: (usize, &dyn Fn(Identity) -> bool),
) -> FamilyLegs<A> {
    let (begin, end) = hushed(&from.endpoints, &to.endpoints);
    let (mut hush, mut changes, mut call) = (Vec::new(), Vec::new(), Vec::new());
    put(&mut hush, &from.endpoints, &begin, Change::Endpoint);
    remove(&mut hush, &from.endpoints, &begin, Change::Endpoint);
    put(&mut call, &end, &to.endpoints, Change::Endpoint);
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
    // 4.
    let mut at = Judges { policy: &from.policy, identities: &from.identities, endpoints: &begin };
    let last = Judges { policy: &to.policy, identities: &to.identities, endpoints: &end };
    let stops = stops(at, last, room);
    for stop in &stops {
        at.write(stop.seen(), &mut changes);
        at.remove(stop.seen(), &mut changes);
        at = stop.seen();
    }
    at.write(last, &mut changes);
    put(&mut changes, &from.routes, &to.routes, Change::Route);
    put(&mut changes, &from.homes, &to.homes, Change::Home);
    // 2.
    remove(&mut changes, &from.homes, &to.homes, Change::Home);
    remove(&mut changes, &from.routes, &to.routes, Change::Route);
    at.remove(last, &mut changes);
    remove(&mut changes, &from.frontends, &to.frontends, Change::Frontend);
    remove(&mut changes, &from.source_ranges, &to.source_ranges, Change::SourceRange);
    changes.extend(backends(false));
    [hush, changes, call]
}

impl<A: Address> Judges<'_, A> {
    /// What is new or different in `to`.
    fn write(self, to: Judges<'_, A>, changes: &mut Vec<Change<A>>) {
        // 3.
        let begin = changes.len();
        put(changes, self.policy, to.policy, Change::Policy);
        changes[begin..].sort_by_key(|change| Reverse(length(change)));
        let begin = changes.len();
        put(changes, self.identities, to.identities, Change::Identity);
        changes[begin..].sort_by_key(|change| Reverse(length(change)));
        put(changes, self.endpoints, to.endpoints, Change::Endpoint);
    }
    /// What is gone in `to`.
    fn remove(self, to: Judges<'_, A>, changes: &mut Vec<Change<A>>) {
        remove(changes, self.endpoints, to.endpoints, Change::Endpoint);
        // 3.
        let begin = changes.len();
        remove(changes, self.identities, to.identities, Change::Identity);
        changes[begin..].sort_by_key(length);
        let begin = changes.len();
        remove(changes, self.policy, to.policy, Change::Policy);
        changes[begin..].sort_by_key(length);
    }
}

/// How long the prefix is that judges.
fn length<A: Address>(change: &Change<A>) -> u32 {
    match change {
        Change::Policy(key, _) => key.bits,
        Change::Identity(key, _) => key.bits,
        _ => 0,
    }
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

    /// Whether a change is of a frontend that remembers its clients: before or after it.
    pub fn remembers(&self, change: &NodeChange) -> bool {
        match change {
            NodeChange::V4(Change::Frontend(key, row)) => self.v4.remembers(key, row.as_ref()),
            NodeChange::V6(Change::Frontend(key, row)) => self.v6.remembers(key, row.as_ref()),
            _ => false,
        }
    }
}

impl<A: Address> Rows<A> {
    fn remembers(&self, key: &FrontendKey<A>, after: Option<&Service>) -> bool {
        self.frontends.get(key).into_iter().chain(after).any(|service| service.affinity_s != 0)
    }

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
pub fn peak<'a>(from: &NodeRows, changes: impl IntoIterator<Item = &'a NodeChange>) -> Vec<Use> {
    let mut nodes = Peak::of(from.nodes.len());
    let (mut v4, mut v6) = (FamilyPeak::of(&from.v4), FamilyPeak::of(&from.v6));
    let (mut now_v4, mut now_v6) = (Now::default(), Now::default());
    for change in changes {
        match change {
            NodeChange::Node(key, row) => nodes.change(from.nodes.contains_key(key), row.is_some()),
            NodeChange::V4(change) => v4.change(&from.v4, &mut now_v4, change),
            NodeChange::V6(change) => v6.change(&from.v6, &mut now_v6, change),
        }
    }
    [nodes.used::<Nodes>()].into_iter().chain(v4.used()).chain(v6.used()).collect()
}

/// [`Use`] of the tables of one family that holds these rows.
pub(super) fn used<A: Address>(rows: &Rows<A>) -> [Use; 9] {
    FamilyPeak::of(rows).used()
}

/// Of the tables whose keys may change several times, whether a key that did has a row.
#[derive(Default)]
struct Now<A> {
    policy: BTreeMap<PolicyPrefix, bool>,
    identities: BTreeMap<Prefix<A>, bool>,
    endpoints: BTreeMap<A, bool>,
}

/// Whether a key has a row, and notes whether it has one from here on.
fn had<K: Copy + Ord, R>(from: &BTreeMap<K, R>, now: &mut BTreeMap<K, bool>, key: &K, put: bool) -> bool {
    now.insert(*key, put).unwrap_or_else(|| from.contains_key(key))
}

/// How many rows a table has, and has had at most.
#[derive(Clone, Copy, Debug)]
struct Peak {
    rows: usize,
    most: usize,
}

impl Peak {
    fn of(rows: usize) -> Self {
        Self { rows, most: rows }
    }
    /// A key gets or loses its row, and had one or none.
    fn change(&mut self, had: bool, put: bool) {
        match (put, had) {
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

    fn change(&mut self, from: &Rows<A>, now: &mut Now<A>, change: &Change<A>) {
        match change {
            Change::Endpoint(key, row) => {
                let had = had(&from.endpoints, &mut now.endpoints, key, row.is_some());
                self.endpoints.change(had, row.is_some());
            }
            Change::Frontend(key, row) => {
                self.frontends.change(from.frontends.contains_key(key), row.is_some());
            }
            Change::SourceRange(key, row) => {
                self.source_ranges.change(from.source_ranges.contains_key(key), row.is_some());
            }
            Change::Slot(index, _) => self.maglev.reach(*index),
            Change::Backend(index, _) => self.backends.reach(*index),
            Change::Identity(key, row) => {
                let had = had(&from.identities, &mut now.identities, key, row.is_some());
                self.identities.change(had, row.is_some());
            }
            Change::Policy(key, row) => {
                let had = had(&from.policy, &mut now.policy, key, row.is_some());
                self.policy.change(had, row.is_some());
            }
            Change::Route(key, row) => self.routes.change(from.routes.contains_key(key), row.is_some()),
            Change::Home(key, row) => self.homes.change(from.homes.contains_key(key), row.is_some()),
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
