//! The tables of one family, and which of the two a kernel's tables are.

use std::mem::discriminant;

use aya::Ebpf;
use dataplane::tables::{
    Affinities, Backends, Connections, Endpoints, Fragments, Frontends, Homes, Identities, Maglev,
    Masquerades, Policy, Routes, Sockets, SourceRanges, Table,
};
use dataplane::wire::{Address, V4, V6};

use super::error::Error;
use super::table::{ArrayTable, HashTable, LongestTable, Stopped};
use super::{Kernel, Pressure, take};
use crate::engine::Capacities;
use crate::plan::{Change, NodeChange};

/// The keys and rows of changes that are all of one kind.
macro_rules! of {
    ($changes:expr, $kind:ident) => {
        $changes.iter().filter_map(|change| match change {
            Change::$kind(key, row) => Some(((*key).into(), *row)),
            _ => None,
        })
    };
}

/// The tables of one family.
pub(super) struct Tables<A: Address> {
    pub(super) endpoints: HashTable<Endpoints<A>>,
    pub(super) frontends: HashTable<Frontends<A>>,
    pub(super) maglev: ArrayTable<Maglev<A>>,
    pub(super) backends: ArrayTable<Backends<A>>,
    pub(super) affinities: HashTable<Affinities<A>>,
    pub(super) source_ranges: LongestTable<SourceRanges<A>>,
    pub(super) connections: HashTable<Connections<A>>,
    pub(super) identities: LongestTable<Identities<A>>,
    pub(super) policy: LongestTable<Policy<A>>,
    pub(super) masquerades: HashTable<Masquerades<A>>,
    pub(super) routes: LongestTable<Routes<A>>,
    pub(super) fragments: HashTable<Fragments<A>>,
    pub(super) homes: HashTable<Homes<A>>,
    pub(super) sockets: HashTable<Sockets<A>>,
}

impl<A: Address> Tables<A> {
    pub(super) fn pressure(&self, capacities: &Capacities) -> Result<[Pressure; 5], Error> {
        fn of<T: Table>(table: &HashTable<T>, capacities: &Capacities) -> Result<Pressure, Error> {
            Ok(Pressure { table: T::NAME, rows: table.count()?, capacity: capacities.rows::<T>() })
        }
        Ok([
            of(&self.connections, capacities)?,
            of(&self.masquerades, capacities)?,
            of(&self.fragments, capacities)?,
            of(&self.affinities, capacities)?,
            of(&self.sockets, capacities)?,
        ])
    }

    /// Bytes of memory that each table takes, by its name.
    pub(super) fn bytes(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        Ok(vec![
            (Endpoints::<A>::NAME, self.endpoints.bytes()?),
            (Frontends::<A>::NAME, self.frontends.bytes()?),
            (Maglev::<A>::NAME, self.maglev.bytes()?),
            (Backends::<A>::NAME, self.backends.bytes()?),
            (Affinities::<A>::NAME, self.affinities.bytes()?),
            (SourceRanges::<A>::NAME, self.source_ranges.bytes()?),
            (Connections::<A>::NAME, self.connections.bytes()?),
            (Identities::<A>::NAME, self.identities.bytes()?),
            (Policy::<A>::NAME, self.policy.bytes()?),
            (Masquerades::<A>::NAME, self.masquerades.bytes()?),
            (Routes::<A>::NAME, self.routes.bytes()?),
            (Fragments::<A>::NAME, self.fragments.bytes()?),
            (Homes::<A>::NAME, self.homes.bytes()?),
            (Sockets::<A>::NAME, self.sockets.bytes()?),
        ])
    }

    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            endpoints: HashTable::new(take(ebpf, Endpoints::<A>::NAME)?)?,
            frontends: HashTable::new(take(ebpf, Frontends::<A>::NAME)?)?,
            maglev: ArrayTable::new(take(ebpf, Maglev::<A>::NAME)?)?,
            backends: ArrayTable::new(take(ebpf, Backends::<A>::NAME)?)?,
            affinities: HashTable::new(take(ebpf, Affinities::<A>::NAME)?)?,
            source_ranges: LongestTable::new(take(ebpf, SourceRanges::<A>::NAME)?)?,
            connections: HashTable::new(take(ebpf, Connections::<A>::NAME)?)?,
            identities: LongestTable::new(take(ebpf, Identities::<A>::NAME)?)?,
            policy: LongestTable::new(take(ebpf, Policy::<A>::NAME)?)?,
            masquerades: HashTable::new(take(ebpf, Masquerades::<A>::NAME)?)?,
            routes: LongestTable::new(take(ebpf, Routes::<A>::NAME)?)?,
            fragments: HashTable::new(take(ebpf, Fragments::<A>::NAME)?)?,
            homes: HashTable::new(take(ebpf, Homes::<A>::NAME)?)?,
            sockets: HashTable::new(take(ebpf, Sockets::<A>::NAME)?)?,
        })
    }

    /// Makes changes, in their order: those in a row that are of one table together.
    pub(super) fn make(&mut self, changes: &[Change<A>]) -> Result<(), Stopped> {
        let mut made = 0;
        for alike in changes.chunk_by(|one, other| discriminant(one) == discriminant(other)) {
            match alike[0] {
                Change::Endpoint(..) => self.endpoints.make(of!(alike, Endpoint)),
                Change::Frontend(..) => self.frontends.make(of!(alike, Frontend)),
                Change::Slot(..) => self.maglev.write(of!(alike, Slot)),
                Change::Backend(..) => self.backends.write(of!(alike, Backend)),
                Change::SourceRange(..) => self.source_ranges.make(of!(alike, SourceRange)),
                Change::Identity(..) => self.identities.make(of!(alike, Identity)),
                Change::Policy(..) => self.policy.make(of!(alike, Policy)),
                Change::Home(..) => self.homes.make(of!(alike, Home)),
                Change::Route(..) => self.routes.make(of!(alike, Route)),
            }
            .map_err(|stopped| stopped.behind(made))?;
            made += alike.len();
        }
        Ok(())
    }
}

impl Kernel {
    /// Writes rows. Those in a row that are of one table are written together.
    pub(super) fn write(&mut self, changes: &[NodeChange]) -> Result<(), Stopped> {
        let mut made = 0;
        for alike in changes.chunk_by(|one, other| discriminant(one) == discriminant(other)) {
            match alike[0] {
                NodeChange::Node(..) => self.nodes.make(alike.iter().filter_map(NodeChange::node)),
                NodeChange::V4(_) => {
                    self.v4.make(&alike.iter().filter_map(NodeChange::v4).collect::<Vec<_>>())
                }
                NodeChange::V6(_) => {
                    self.v6.make(&alike.iter().filter_map(NodeChange::v6).collect::<Vec<_>>())
                }
            }
            .map_err(|stopped| stopped.behind(made))?;
            made += alike.len();
        }
        Ok(())
    }
}

/// Both families' tables, by the family.
pub(super) trait Family: Address {
    fn tables(kernel: &Kernel) -> &Tables<Self>;
    fn tables_mut(kernel: &mut Kernel) -> &mut Tables<Self>;
}

impl Family for V4 {
    fn tables(kernel: &Kernel) -> &Tables<Self> {
        &kernel.v4
    }
    fn tables_mut(kernel: &mut Kernel) -> &mut Tables<Self> {
        &mut kernel.v4
    }
}

impl Family for V6 {
    fn tables(kernel: &Kernel) -> &Tables<Self> {
        &kernel.v6
    }
    fn tables_mut(kernel: &mut Kernel) -> &mut Tables<Self> {
        &mut kernel.v6
    }
}
