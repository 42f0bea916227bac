//! Services: virtual addresses, the slots that spread their flows, and the endpoints behind.
//!
//! Numbers, slots and backends are the same on every node, so that a flow meets the same backend wherever it
//! enters; which of the slots a frontend names is each node's affair.
//!
//! # From plan to plan
//! What stays keeps its numbers and its slots. Only the backends of a Service that cannot be dialled any more where it
//! could be get new ones: so what flows remember of them holds no longer, and nobody is led to them who dials what is
//! another's now, or nobody's. A new number is one that none had for as long as there are
//! others. A changed set of candidates gets a new run of slots, in room that the previous plan left free: so
//! a frontend changes hands in one step, when it names the new run. Only a Maglev table that keeps its size,
//! and whoever asks it, is changed where it is: a packet reads one slot of it, and finds a backend of before
//! or after there, as it would in the one table or the other.
//!
//! # Memory
//! A Service of up to [`Slots::FEW`] candidates has a slot for each: 10,000 Services with 4 endpoints each
//! take 40,000 rows of 4 bytes in `maglev`, 40,000 of 12 in `backends` (24 in IPv6's) and 10,000 of 36 in
//! `frontends` (48): 1.0 MB. In the kernel these tables take 8, 1 and 6.5 MiB whether they are full or not (an
//! array's rows are multiples of 8 bytes there). A Maglev table of 16,381 slots for each of the Services would
//! be 655 MB, and twice that in the kernel.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dataplane::tables::{
    self, Allowed, BackendId, Backends, Frontends, Maglev, Service, ServiceId, Slots, Table,
};
use dataplane::wire::Be16;

use super::candidate::{self, Draft, End, Ground, Kind, Name, Role, Scope};
use super::diff::{Cells, ordered, write};
use super::held::Held;
use super::maglev::Taker;
use super::numbers::Turns;
use super::room::Room;
use super::{Change, Error, Family, FrontendKey, RangePrefix, Rows, maglev};
use crate::model::{self, Cluster};

/// The Services of a cluster, as rows.
#[derive(Clone, Debug)]
pub(super) struct Services<A> {
    ground: Ground,
    ports: BTreeMap<Name<A>, Arc<Port<A>>>,
    maglev: Vec<BackendId>,
    backends: Vec<tables::Backend<A>>,
    ids: Turns,
    numbers: Turns,
    room: Room,
    /// Runs that frontends of before may still name, until tables are as planned.
    given_up: Vec<Slots>,
    /// Tables may not be brought all the way to this plan.
    strayed: bool,
    /// Numbers that a path at work goes by, while the first plan is made.
    held: Held<A>,
}

/// A port as it is carried out.
#[derive(Clone, Debug)]
struct Port<A> {
    draft: Arc<Draft<A>>,
    id: ServiceId,
    /// Of each end of the draft, its number.
    numbers: Vec<BackendId>,
    runs: Vec<Run>,
}

/// A run of slots.
#[derive(Clone, Debug)]
struct Run {
    /// Who asks these candidates.
    roles: Vec<Role>,
    /// The candidates and their weights, reduced.
    candidates: Vec<(BackendId, u32)>,
    /// Their places in the draft.
    places: Vec<u32>,
    slots: Slots,
}

/// What a plan took, in case it comes to nothing, and what there was not.
#[derive(Debug, Default)]
struct Taken {
    ids: Vec<u32>,
    numbers: Vec<u32>,
    room: Vec<Slots>,
    missing_ids: usize,
    missing_numbers: usize,
    missing_slots: usize,
}

/// A change that is ready to be made.
#[derive(Debug)]
pub(super) struct Prepared<A> {
    before: BTreeMap<Name<A>, Arc<Port<A>>>,
    after: BTreeMap<Name<A>, Arc<Port<A>>>,
    taken: Taken,
}

/// The frontends of a node, and who may come by them.
pub(super) type Fronts<A> = (BTreeMap<FrontendKey<A>, Service>, BTreeMap<RangePrefix<A>, Allowed>);

impl<A: Family> Services<A> {
    /// Plans the Services and host ports of a cluster. What is of another family is left out. Without a previous
    /// plan, numbers are those of the rows that are held, where these know them.
    ///
    /// # Errors
    /// [`Error::TableFull`]: `frontends`, `maglev` or `backends`.
    pub(super) fn of(
        cluster: &Cluster,
        previous: Option<&Self>,
        held: Option<&Rows<A>>,
    ) -> Result<Self, Error> {
        let ground = Ground::of(cluster);
        let mut next = match previous {
            Some(previous) => Self { ground, ..previous.clone() },
            None => Self::none(ground, held.map_or_else(Held::none, Held::of)),
        };
        next.begin();
        let mut drafts = candidate::host_ports(&next.ground, cluster);
        let services = cluster.services.iter();
        drafts.extend(services.flat_map(|service| candidate::ports(&next.ground, service)));
        let before = std::mem::take(&mut next.ports);
        let prepared = next.find_room(drafts, before)?;
        next.write_all(&prepared);
        next.ports = prepared.after;
        next.held = Held::none();
        Ok(next)
    }

    fn none(ground: Ground, held: Held<A>) -> Self {
        let (id, number) = held.highest();
        Self {
            ground,
            ports: BTreeMap::new(),
            maglev: Vec::new(),
            backends: Vec::new(),
            ids: Turns::new(1, 2 * Frontends::<A>::CAPACITY, id),
            numbers: Turns::new(1, Backends::<A>::CAPACITY - 1, number),
            room: Room::new(Maglev::<A>::CAPACITY),
            given_up: Vec::new(),
            strayed: false,
            held,
        }
    }

    /// Prepares one Service as it is now, or its end.
    ///
    /// # Errors
    /// As [`Services::of`]; nothing has changed then.
    pub(super) fn prepare(
        &mut self,
        id: &str,
        service: Option<&model::Service>,
    ) -> Result<Prepared<A>, Error> {
        self.begin();
        let drafts = service.map(|service| candidate::ports(&self.ground, service)).unwrap_or_default();
        let id: Arc<str> = id.into();
        let all = Name::Service(id.clone(), u8::MIN, u16::MIN)..=Name::Service(id, u8::MAX, u16::MAX);
        let before = self.ports.range(all).map(|(name, port)| (name.clone(), port.clone())).collect();
        self.find_room(drafts.into_iter().collect(), before)
    }

    /// Tables are as planned, unless they have strayed: what was given up on the way there is free.
    fn begin(&mut self) {
        if !std::mem::take(&mut self.strayed) {
            let runs = std::mem::take(&mut self.given_up);
            runs.iter().for_each(|slots| self.room.give_back(slots.first, slots.count));
        }
    }

    /// Tables may not be brought all the way to this plan.
    pub(super) fn stray(&mut self) {
        self.strayed = true;
    }

    /// Takes back what was prepared.
    pub(super) fn undo(&mut self, prepared: &Prepared<A>) {
        self.give_back(&prepared.taken);
    }

    /// Makes the change that was prepared, and says what it changes on the node at this place.
    pub(super) fn commit(&mut self, prepared: Prepared<A>, node: u32) -> Vec<Change<A>> {
        let cells = self.write_all(&prepared);
        let Prepared { before, after, .. } = prepared;
        let rows = |ports: &BTreeMap<_, _>| {
            let (frontends, source_ranges) = self.fronts_of(ports.values(), node);
            Rows { frontends, source_ranges, ..Rows::default() }
        };
        let changes = ordered(&rows(&before), &rows(&after), &cells, (0, &|_| false)).concat();
        before.keys().for_each(|name| _ = self.ports.remove(name));
        self.ports.extend(after);
        changes
    }

    /// The frontends of the node at this place.
    pub(super) fn fronts(&self, node: u32) -> Fronts<A> {
        self.fronts_of(self.ports.values(), node)
    }
    /// The slots up to the last that is in use, or was.
    pub(super) fn maglev(&self) -> &[BackendId] {
        &self.maglev
    }
    /// The backends up to the last that is there, or was.
    pub(super) fn backends(&self) -> &[tables::Backend<A>] {
        &self.backends
    }

    fn fronts_of<'a>(&self, ports: impl Iterator<Item = &'a Arc<Port<A>>>, node: u32) -> Fronts<A>
    where
        A: 'a,
    {
        let (mut frontends, mut ranges) = Fronts::default();
        for port in ports {
            for (key, kind) in &port.draft.fronts {
                if !matches!(kind, Kind::Host(place) if *place != node) {
                    frontends.insert(*key, port.row(&self.ground, *kind, node));
                }
            }
            let balanced = port.draft.fronts.iter().any(|(_, kind)| *kind == Kind::Balanced);
            for (address, bits) in port.draft.ranges.iter().filter(|_| balanced) {
                let prefix = RangePrefix { service: port.id.0, address: *address, bits: *bits };
                ranges.insert(prefix, Allowed::default());
            }
        }
        (frontends, ranges)
    }

    /// Finds numbers and room for the drafts, which come in place of the ports of before.
    ///
    /// # Errors
    /// [`Error::TableFull`]; nothing was taken then.
    fn find_room(
        &mut self,
        drafts: BTreeMap<Name<A>, Arc<Draft<A>>>,
        before: BTreeMap<Name<A>, Arc<Port<A>>>,
    ) -> Result<Prepared<A>, Error> {
        let mut taken = Taken::default();
        let mut after = BTreeMap::new();
        for (name, draft) in drafts {
            let port = match before.get(&name) {
                Some(port) if port.draft == draft => port.clone(),
                previous => Arc::new(self.port(draft, previous.map(AsRef::as_ref), &mut taken)),
            };
            after.insert(name, port);
        }
        if let Err(error) = self.fits(&taken) {
            self.give_back(&taken);
            return Err(error);
        }
        Ok(Prepared { before, after, taken })
    }

    /// Writes what is new, and gives up what is gone.
    fn write_all(&mut self, prepared: &Prepared<A>) -> Cells<A> {
        let Prepared { before, after, .. } = prepared;
        let mut written = Cells::default();
        let same = |one: Option<&Arc<Port<A>>>, other| one.is_some_and(|one| Arc::ptr_eq(one, other));
        for (name, port) in after.iter().filter(|(name, port)| !same(before.get(name), port)) {
            self.write(port, before.get(name).map(AsRef::as_ref), &mut written);
        }
        for (name, port) in before.iter().filter(|(name, port)| !same(after.get(name), port)) {
            self.give_up(port, after.get(name).map(AsRef::as_ref), &mut written);
        }
        written
    }

    fn fits(&self, taken: &Taken) -> Result<(), Error> {
        let what = "the cluster's Services";
        if taken.missing_ids > 0 {
            return Err(Error::full::<Frontends<A>>(what, self.ids.taken() + taken.missing_ids));
        }
        if taken.missing_numbers > 0 {
            return Err(Error::full::<Backends<A>>(what, self.numbers.taken() + taken.missing_numbers));
        }
        if taken.missing_slots > 0 {
            return Err(Error::full::<Maglev<A>>(what, self.room.taken() + taken.missing_slots));
        }
        Ok(())
    }

    fn give_back(&mut self, taken: &Taken) {
        taken.ids.iter().for_each(|id| self.ids.give_back(*id));
        taken.numbers.iter().for_each(|number| self.numbers.give_back(*number));
        taken.room.iter().for_each(|slots| self.room.give_back(slots.first, slots.count));
    }

    /// Numbers for a port, and room for its runs.
    fn port(&mut self, draft: Arc<Draft<A>>, before: Option<&Port<A>>, taken: &mut Taken) -> Port<A> {
        let held = self.held.id(&draft.fronts);
        let id = before.map_or_else(|| ServiceId(taken.id(&mut self.ids, held)), |before| before.id);
        let kept = before.filter(|before| before.fronts_are_in(&draft));
        let known = |end: &End<A>| kept.and_then(|before| before.number(end));
        let number = |end| {
            known(end)
                .unwrap_or_else(|| BackendId(taken.number(&mut self.numbers, self.held.number(id.0, end))))
        };
        let numbers: Vec<_> = draft.ends.iter().map(number).collect();
        let mut runs = groups(&draft, &numbers);
        let olds = before.map(|before| &before.runs[..]).unwrap_or_default();
        let asked_alike = before.is_some_and(|before| before.draft.asked_like(&draft))
            && olds.iter().map(|run| &run.roles).eq(runs.iter().map(|run| &run.roles));
        for run in &mut runs {
            let same = olds
                .iter()
                .find(|old| old.candidates == run.candidates && old.slots.count == run.slots.count);
            run.slots.first = same.map_or(NOWHERE, |old| old.slots.first);
        }
        let kept: Vec<_> = runs.iter().map(|run| run.slots.first).collect();
        for run in runs.iter_mut().filter(|run| run.slots.first == NOWHERE) {
            let is_place = |old: &&Run| {
                asked_alike
                    && run.slots.count > Slots::FEW
                    && (&old.roles, old.slots.count) == (&run.roles, run.slots.count)
                    && !kept.contains(&old.slots.first)
            };
            run.slots.first = match olds.iter().find(is_place) {
                Some(old) => old.slots.first,
                None => taken.room(&mut self.room, run.slots.count),
            };
        }
        Port { draft, id, numbers, runs }
    }

    /// Writes what is new or different of a port.
    fn write(&mut self, port: &Port<A>, before: Option<&Port<A>>, written: &mut Cells<A>) {
        for (end, number) in port.draft.ends.iter().zip(&port.numbers) {
            let row = tables::Backend {
                address: end.address,
                seed: end.taker.hash as u32,
                port: Be16::new(end.port),
                state: if end.active { tables::Backend::<A>::ACTIVE } else { tables::Backend::<A>::DRAINING },
                pad: 0,
            };
            if write(&mut self.backends, number.0, row) {
                written.backends.push((number.0, row));
            }
        }
        let olds = before.map(|before| &before.runs[..]).unwrap_or_default();
        for run in &port.runs {
            if olds.iter().any(|old| (old.slots, &old.candidates) == (run.slots, &run.candidates)) {
                continue;
            }
            let hashes = run.places.iter().map(|place| port.draft.ends[*place as usize].taker.hash);
            let weights = run.candidates.iter().map(|(_, weight)| *weight);
            let takers: Vec<_> = hashes.zip(weights).map(|(hash, weight)| Taker { hash, weight }).collect();
            for (slot, place) in (run.slots.first..).zip(maglev::slots(&takers, run.slots.count)) {
                let number = run.candidates[place as usize].0;
                if write(&mut self.maglev, slot, number) {
                    written.slots.push((slot, number));
                }
            }
        }
    }

    /// Gives up what a port had that `after` has not. Slots stay as they were: packets on their way may still
    /// ask for them.
    fn give_up(&mut self, port: &Port<A>, after: Option<&Port<A>>, written: &mut Cells<A>) {
        if after.is_none() {
            self.ids.give_back(port.id.0);
        }
        for (end, number) in port.draft.ends.iter().zip(&port.numbers) {
            if after.is_some_and(|after| after.number(end) == Some(*number)) {
                continue;
            }
            let row = &mut self.backends[number.0 as usize];
            row.state = tables::Backend::<A>::GONE;
            written.backends.push((number.0, *row));
            self.numbers.give_back(number.0);
        }
        let stays =
            |old: &&Run| after.is_some_and(|after| after.runs.iter().any(|run| run.slots == old.slots));
        for Run { slots, .. } in port.runs.iter().filter(|old| !stays(old)) {
            self.given_up.push(*slots);
        }
    }
}

/// Where a run is that has no place yet.
const NOWHERE: u32 = u32::MAX;

impl Taken {
    fn id(&mut self, ids: &mut Turns, held: Option<u32>) -> u32 {
        match ids.claim(held) {
            Some(id) => {
                self.ids.push(id);
                id
            }
            None => {
                self.missing_ids += 1;
                0
            }
        }
    }
    fn number(&mut self, numbers: &mut Turns, held: Option<u32>) -> u32 {
        match numbers.claim(held) {
            Some(number) => {
                self.numbers.push(number);
                number
            }
            None => {
                self.missing_numbers += 1;
                0
            }
        }
    }
    fn room(&mut self, room: &mut Room, count: u32) -> u32 {
        match room.take(count) {
            Some(first) => {
                self.room.push(Slots { first, count });
                first
            }
            None => {
                self.missing_slots += count as usize;
                0
            }
        }
    }
}

impl<A: Family> Port<A> {
    fn number(&self, end: &End<A>) -> Option<BackendId> {
        let place = |other: &End<A>| (other.address, other.port).cmp(&(end.address, end.port));
        self.draft.ends.binary_search_by(place).ok().map(|place| self.numbers[place])
    }

    /// Whether it can still be dialled wherever it could be.
    fn fronts_are_in(&self, draft: &Draft<A>) -> bool {
        self.draft.fronts.iter().all(|(key, _)| draft.fronts.iter().any(|(other, _)| other == key))
    }

    fn slots(&self, ground: &Ground, scope: Scope, node: u32) -> Slots {
        let role = self.draft.role(ground, scope, node);
        let run = self.runs.iter().find(|run| run.roles.contains(&role));
        run.map(|run| run.slots).unwrap_or_default()
    }

    /// The row of a frontend on the node at this place.
    fn row(&self, ground: &Ground, kind: Kind, node: u32) -> Service {
        let Draft { inside, outside, affinity_s, flags, ranged, .. } = *self.draft;
        let (internal, external) = match kind {
            Kind::Cluster => (inside, Scope::All),
            Kind::Exposed | Kind::Balanced => (Scope::All, outside),
            Kind::Host(_) => (Scope::All, Scope::All),
        };
        // Where there is nobody anywhere, it is not for the policy's sake.
        let local = |scope, flag| if scope == Scope::Local && !self.runs.is_empty() { flag } else { 0 };
        let ranges = if kind == Kind::Balanced && ranged { Service::RANGES } else { 0 };
        Service {
            internal: self.slots(ground, internal, node),
            external: self.slots(ground, external, node),
            id: self.id,
            affinity_s,
            flags: flags
                | ranges
                | local(internal, Service::INTERNAL_LOCAL)
                | local(external, Service::EXTERNAL_LOCAL),
            pad: [0; 3],
        }
    }
}

/// The runs that a port needs: those who ask the same candidates share one. They have no place yet.
fn groups<A: Family>(draft: &Draft<A>, numbers: &[BackendId]) -> Vec<Run> {
    let mut groups: Vec<(Vec<Role>, &[u32])> = Vec::new();
    let mut found: HashMap<&[u32], usize> = HashMap::new();
    for (role, places) in &draft.sets {
        let group = *found.entry(places).or_insert(groups.len());
        if group == groups.len() {
            groups.push((Vec::new(), places));
        }
        groups[group].0.push(role.clone());
    }
    let run = |(roles, places): (Vec<Role>, &[u32])| {
        let mut weights: Vec<_> =
            places.iter().map(|place| draft.ends[*place as usize].taker.weight).collect();
        maglev::reduce(&mut weights);
        let count = maglev::count(&weights, draft.table_size);
        let candidates = places.iter().map(|place| numbers[*place as usize]).zip(weights).collect();
        Run { roles, candidates, places: places.to_vec(), slots: Slots { first: NOWHERE, count } }
    };
    groups.into_iter().map(run).collect()
}
