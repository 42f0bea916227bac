//! Services: virtual addresses, the slots that spread their flows, and the endpoints behind.
//!
//! The same on every node, so that a flow meets the same backend wherever it enters.
//!
//! In a plan that follows another, a set of backends keeps its run of slots, and a changed set gets a new
//! run in room that the previous plan left free: so a Service changes hands in one step, when its frontend
//! names the new run, and never shows a half-written one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dataplane::tables::{self, BackendId, Backends, Maglev, Service, ServiceId, Slots, Table};
use dataplane::wire::Be16;

use super::numbers::Numbers;
use super::{Error, Family, FrontendKey, hash, maglev};
use crate::model::Cluster;

/// An endpoint: address and port, host order.
type End<A> = (A, u16);

/// The Services of a cluster, as rows.
#[derive(Clone, Debug)]
pub(super) struct Services<A> {
    pub(super) frontends: BTreeMap<FrontendKey<A>, Service>,
    pub(super) maglev: Vec<BackendId>,
    pub(super) backends: Vec<tables::Backend<A>>,
    ids: Numbers<End<A>>,
    /// By the backends of the run, in the order of their addresses and ports.
    runs: HashMap<Vec<BackendId>, Slots>,
}

impl<A: Family> Services<A> {
    /// Spreads every Service port over its backends. What is of another family is left out.
    ///
    /// # Errors
    /// [`Error::TableFull`]: `maglev` or `backends`.
    pub(super) fn of(cluster: &Cluster, previous: Option<&Self>) -> Result<Self, Error> {
        let mut frontends = BTreeMap::new();
        for service in &cluster.services {
            let Some(address) = A::among(&service.addresses) else { continue };
            for port in &service.ports {
                let key = FrontendKey { address, port: port.port, protocol: port.protocol.number() };
                let ends = port.ready().filter_map(|backend| Some((A::of(backend.address)?, backend.port)));
                frontends.insert(key, ends.collect::<BTreeSet<End<A>>>());
            }
        }
        let ends: BTreeSet<_> = frontends.values().flatten().copied().collect();
        fits::<Backends<A>>(ends.len())?;
        let mut ids = Numbers::after(previous.map(|previous| &previous.ids), 1);
        let highest = ends.iter().map(|end| ids.give(end)).max();
        if highest.is_some_and(|highest| highest >= Backends::<A>::CAPACITY) {
            // No number is left that the previous plan did not use: start again, as if it had not been.
            return Self::of(cluster, None);
        }
        let sets: BTreeSet<_> = frontends.values().filter(|ends| !ends.is_empty()).collect();
        fits::<Maglev<A>>(sets.iter().map(|ends| maglev::size(ends.len()) as usize).sum())?;
        let Some(runs) = lay_out(&sets, &ids, previous.map(|previous| &previous.runs)) else {
            return Self::of(cluster, None);
        };
        let mut services = Self {
            maglev: previous.map(|previous| previous.maglev.clone()).unwrap_or_default(),
            backends: previous.map(|previous| previous.backends.clone()).unwrap_or_default(),
            frontends: BTreeMap::new(),
            ids,
            runs,
        };
        services.write_backends(&ends);
        services.write_runs(&sets, previous);
        services.frontends =
            frontends.into_iter().zip(1..).map(|((key, ends), id)| (key, services.row(&ends, id))).collect();
        Ok(services)
    }

    fn slots_of(&self, ends: &BTreeSet<End<A>>) -> Slots {
        self.runs.get(&numbers(ends, &self.ids)).copied().unwrap_or(Slots { first: 0, count: 0 })
    }

    fn row(&self, ends: &BTreeSet<End<A>>, id: u32) -> Service {
        let slots = self.slots_of(ends);
        Service { internal: slots, external: slots, id: ServiceId(id), ..Service::default() }
    }

    /// Rows that no backend has any more stay as they were: packets on their way may still ask for them.
    fn write_backends(&mut self, ends: &BTreeSet<End<A>>) {
        let numbers: Vec<_> = numbers(ends, &self.ids).into_iter().map(|id| id.0 as usize).collect();
        let length = numbers.iter().max().map_or(0, |highest| highest + 1);
        self.backends.resize(length, tables::Backend::default());
        for (number, (address, port)) in numbers.into_iter().zip(ends) {
            self.backends[number] = tables::Backend {
                address: *address,
                seed: hash::mixed(format!("{address}:{port}").as_bytes()) as u32,
                port: Be16::new(*port),
                state: tables::Backend::<A>::ACTIVE,
                pad: 0,
            };
        }
    }

    /// Writes the runs that are new, and leaves room between runs as it was, for the same reason.
    fn write_runs(&mut self, sets: &BTreeSet<&BTreeSet<End<A>>>, previous: Option<&Self>) {
        let length = self.runs.values().map(|slots| slots.first + slots.count).max().unwrap_or(0);
        self.maglev.resize(length as usize, BackendId(0));
        for ends in sets {
            let ids = numbers(ends, &self.ids);
            let slots = self.slots_of(ends);
            if previous.is_some_and(|previous| previous.runs.contains_key(&ids)) {
                continue;
            }
            let names: Vec<_> = ends.iter().map(|(address, port)| format!("{address}:{port}")).collect();
            for (slot, place) in (slots.first..).zip(maglev::slots(&names)) {
                self.maglev[slot as usize] = ids[place as usize];
            }
        }
    }
}

fn numbers<A: Family>(ends: &BTreeSet<End<A>>, ids: &Numbers<End<A>>) -> Vec<BackendId> {
    ends.iter().filter_map(|end| ids.find(end)).map(BackendId).collect()
}

fn fits<T: Table>(needed: usize) -> Result<(), Error> {
    if needed > T::CAPACITY as usize {
        return Err(Error::full::<T>("the cluster's Services", needed));
    }
    Ok(())
}

/// A run of slots for each set of backends; `None` if there is no room beside the runs of the previous plan.
fn lay_out<A: Family>(
    sets: &BTreeSet<&BTreeSet<End<A>>>,
    ids: &Numbers<End<A>>,
    previous: Option<&HashMap<Vec<BackendId>, Slots>>,
) -> Option<HashMap<Vec<BackendId>, Slots>> {
    let mut taken: Vec<_> = previous.into_iter().flat_map(HashMap::values).collect();
    taken.sort_by_key(|slots| slots.first);
    // From where to where each gap reaches.
    let mut gaps = Vec::new();
    let mut end = 0;
    for slots in taken {
        gaps.push((end, slots.first));
        end = slots.first + slots.count;
    }
    gaps.push((end, Maglev::<A>::CAPACITY));
    let mut runs = HashMap::new();
    for ends in sets {
        let ids = numbers(ends, ids);
        let kept = previous.and_then(|previous| previous.get(&ids)).copied();
        let slots = match kept {
            Some(slots) => slots,
            None => {
                let count = maglev::size(ends.len());
                let (start, _) = gaps.iter_mut().find(|(start, end)| end - *start >= count)?;
                *start += count;
                Slots { first: *start - count, count }
            }
        };
        runs.insert(ids, slots);
    }
    Some(runs)
}
