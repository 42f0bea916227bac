//! Numbers that a node's path at work goes by: those that its rows give to the ports of Services, and to backends.

use std::collections::{HashMap, HashSet};

use dataplane::tables::{Backend, BackendId};

use super::candidate::{End, Kind};
use super::{Family, FrontendKey, Rows};

/// The numbers that rows give. Each is asked for once.
#[derive(Clone, Debug)]
pub(super) struct Held<A> {
    /// Of ports, by where they are dialled.
    ids: HashMap<FrontendKey<A>, u32>,
    /// Of backends that slots name, by the port's number and where they listen.
    named: HashMap<(u32, A, u16), u32>,
    /// Of those that none names, by where they listen: whose they are is not known.
    others: HashMap<(A, u16), Vec<u32>>,
}

impl<A: Family> Held<A> {
    /// None.
    pub(super) fn none() -> Self {
        Self { ids: HashMap::new(), named: HashMap::new(), others: HashMap::new() }
    }

    /// Those of [`Rows::frontends`], [`Rows::maglev`] and [`Rows::backends`].
    pub(super) fn of(rows: &Rows<A>) -> Self {
        let mut held = Self::none();
        let there = |number: &BackendId| {
            let row = rows.backends.get(number.0 as usize)?;
            (row.state != Backend::<A>::GONE).then(|| (row.address, row.port.host()))
        };
        let mut known = HashSet::new();
        for (key, row) in &rows.frontends {
            held.ids.insert(*key, row.id.0);
            for slots in [row.internal, row.external] {
                let run = rows.maglev.iter().skip(slots.first as usize).take(slots.count as usize);
                for number in run {
                    let Some((address, port)) = there(number) else { continue };
                    held.named.insert((row.id.0, address, port), number.0);
                    known.insert(number.0);
                }
            }
        }
        for number in (0..rows.backends.len() as u32).rev().filter(|number| !known.contains(number)) {
            if let Some(end) = there(&BackendId(number)) {
                held.others.entry(end).or_default().push(number);
            }
        }
        held
    }

    /// The highest number of a port, and of a backend.
    pub(super) fn highest(&self) -> (u32, u32) {
        let backends = self.named.values().chain(self.others.values().flatten());
        (self.ids.values().copied().max().unwrap_or(0), backends.copied().max().unwrap_or(0))
    }

    /// Of the port that is dialled at one of these.
    pub(super) fn id(&self, fronts: &[(FrontendKey<A>, Kind)]) -> Option<u32> {
        fronts.iter().find_map(|(key, _)| self.ids.get(key).copied())
    }

    /// Of an endpoint of the port with this number.
    pub(super) fn number(&mut self, id: u32, end: &End<A>) -> Option<u32> {
        let named = self.named.remove(&(id, end.address, end.port));
        named.or_else(|| self.others.get_mut(&(end.address, end.port))?.pop())
    }
}
