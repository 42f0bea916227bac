//! The way from one plan's judgements to the next one's, while flows are judged.
//!
//! A flow is judged by the rules of a pod and the identity of its peer. Rows change one at a time, so a pod may
//! have its new rules while its peer has its old identity, or the other way round, and what comes of that may be
//! what neither plan says. Where a change is of both kinds, there are stops on the way:
//!
//! 1. Peers whose identity changes are given, one by one, an identity for the time being: to the rules of
//!    before it means what they were, to new rules what they will be.
//! 2. Pods get their new rules, one by one. Rules that others had already, or still have, are there twice for as
//!    long: once for each meaning.
//! 3. Peers get their new identity, one by one, and pods that judge by a copy get the rules themselves.
//!
//! Between nodes, what the tunnel carries says who a packet is from, and a node may be at the rules of before while
//! another is at those of after. So a change is made in [`LEGS`], of which no node of a cluster begins one before
//! all have ended the one before it:
//!
//! 1. Pods whose identity changes say nothing of it, so that whoever receives their packets asks the address; those
//!    that go are gone.
//! 2. Each node by itself changes what it judges by, as above.
//! 3. Everybody knows the new identities: pods say them, and those that come are there.
//!
//! A client outside that comes by way of another node is known by its number alone, which that node changes in the
//! second leg by itself: where its identity changes, it may be met by rules about anybody alone for as long.
//!
//! Where the table has no room for all of this, the pods whose rules change are closed for as long: see
//! [`Endpoint::INCOMPLETE`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dataplane::tables::{Endpoint, Identity, PolicyRow};

use super::identity::NUMBERS;
use super::{Family, PolicyPrefix, Prefix, hash};

/// How many legs a change has.
pub const LEGS: usize = 3;

/// The tables that judge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judges<'a, A> {
    pub(super) policy: &'a BTreeMap<PolicyPrefix, PolicyRow>,
    pub(super) identities: &'a BTreeMap<Prefix<A>, Identity>,
    pub(super) endpoints: &'a BTreeMap<A, Endpoint>,
}

/// The tables that judge, at a stop.
#[derive(Clone, Debug)]
pub(super) struct Judging<A> {
    policy: BTreeMap<PolicyPrefix, PolicyRow>,
    identities: BTreeMap<Prefix<A>, Identity>,
    endpoints: BTreeMap<A, Endpoint>,
}

impl<A> Judging<A> {
    /// These tables, to be looked at.
    pub(super) fn seen(&self) -> Judges<'_, A> {
        Judges { policy: &self.policy, identities: &self.identities, endpoints: &self.endpoints }
    }
}

/// The pods of a node, by their addresses.
type Pods<A> = BTreeMap<A, Endpoint>;

/// The pods of a node at the begin and at the end of the second leg: those that stay, and those of them silent whose
/// identity changes.
pub(super) fn hushed<A: Family>(from: &Pods<A>, to: &Pods<A>) -> (Pods<A>, Pods<A>) {
    let (mut begin, mut end) = (from.clone(), to.clone());
    begin.retain(|pod, row| to.get(pod).is_some_and(|next| next.interface == row.interface));
    end.retain(|pod, _| begin.contains_key(pod));
    for (row, next) in begin.values_mut().zip(end.values_mut()) {
        if row.identity != next.identity {
            (row.identity, next.identity) = (ASK, ASK);
        }
    }
    (begin, end)
}

/// The stops of the second leg between two plans' tables, if the policy table holds so many rows.
///
/// `taken` are identities that others have, whom these tables do not speak of.
pub(super) fn stops<A: Family>(
    from: Judges<'_, A>,
    to: Judges<'_, A>,
    (room, taken): (usize, &dyn Fn(Identity) -> bool),
) -> Vec<Judging<A>> {
    let moving = moving(from, to);
    // Nobody comes into what is empty before everything is there.
    let stops = if moving.is_empty() || from.identities.is_empty() {
        Vec::new()
    } else {
        let renamed = Renamed::of(from, to, taken);
        if renamed.concern(&moving) { between(from, to, &moving, &renamed) } else { Vec::new() }
    };
    let steps = stops.iter().map(|stop| &stop.policy).chain([to.policy]);
    let before = [from.policy].into_iter().chain(stops.iter().map(|stop| &stop.policy));
    let fits = before.zip(steps).all(|(one, other)| {
        let new = other.keys().filter(|key| !one.contains_key(key)).count();
        one.len() + new <= room
    });
    if fits { stops } else { closed(from, to) }
}

/// The pods whose rules change.
fn moving<A: Family>(from: Judges<'_, A>, to: Judges<'_, A>) -> BTreeSet<A> {
    let judged = |endpoint: &Endpoint| (endpoint.rules, endpoint.isolated, endpoint.flags);
    let pods = from.endpoints.keys();
    let moves = |pod: &&A| from.endpoints.get(pod).map(judged) != to.endpoints.get(pod).map(judged);
    pods.filter(moves).copied().collect()
}

/// Whose identity changes.
struct Renamed<A> {
    /// By prefix, what it was and what it will be, if that is something else; and those that are in one plan
    /// only and keep what they were.
    prefixes: BTreeMap<Prefix<A>, (Identity, Identity)>,
    /// What stands for each change meanwhile; the new identity itself, where nobody had it.
    meanwhile: BTreeMap<(Identity, Identity), Identity>,
}

impl<A: Family> Renamed<A> {
    fn of(from: Judges<'_, A>, to: Judges<'_, A>, taken: &dyn Fn(Identity) -> bool) -> Self {
        let (was, will) = (Holders::of(from.identities), Holders::of(to.identities));
        let differing = from.identities.iter().filter(|(prefix, row)| to.identities.get(prefix) != Some(row));
        let new = to.identities.keys().filter(|prefix| !from.identities.contains_key(prefix));
        let prefixes: BTreeMap<_, _> = differing
            .map(|(prefix, _)| prefix)
            .chain(new)
            .map(|prefix| (*prefix, (was.holder(prefix), will.holder(prefix))))
            .collect();
        let pairs: BTreeSet<_> = prefixes.values().filter(|(old, new)| old != new).copied().collect();
        let asked = from.policy.keys().map(|key| Identity(key.identity));
        let was: BTreeSet<_> = from.identities.values().copied().chain(asked).collect();
        let will: BTreeSet<_> = to.identities.values().copied().collect();
        let mut ways: HashMap<Identity, usize> = HashMap::new();
        pairs.iter().for_each(|(_, new)| *ways.entry(*new).or_default() += 1);
        let (mut meanwhile, mut given) = (BTreeMap::new(), BTreeSet::new());
        for (old, new) in pairs {
            let nobodys = |identity| !was.contains(&identity) && !taken(identity);
            let free =
                |identity| nobodys(identity) && !will.contains(&identity) && !given.contains(&identity);
            let plain = ways[&new] == 1 && nobodys(new);
            let identity = if plain { new } else { between_identities(old, new, free) };
            given.insert(identity);
            meanwhile.insert((old, new), identity);
        }
        Self { prefixes, meanwhile }
    }

    /// Whether a pod that moves may have a peer that is renamed.
    fn concern(&self, moving: &BTreeSet<A>) -> bool {
        let mut peers = self.prefixes.iter().filter(|(_, (old, new))| old != new);
        match (peers.next(), peers.next()) {
            (None, _) => false,
            // A pod is no peer of itself.
            (Some((prefix, _)), None) => moving.iter().any(|pod| prefix.bits < A::BITS || prefix.key != *pod),
            (Some(_), Some(_)) => true,
        }
    }

    /// What stands for a prefix meanwhile.
    fn at(&self, prefix: &Prefix<A>) -> Option<Identity> {
        let (old, new) = self.prefixes.get(prefix)?;
        Some(self.meanwhile.get(&(*old, *new)).copied().unwrap_or(*old))
    }
}

/// Identities by prefix, to be asked what holds for the whole of one.
struct Holders<'a, A> {
    rows: &'a BTreeMap<Prefix<A>, Identity>,
    lengths: BTreeSet<u32>,
}

impl<'a, A: Family> Holders<'a, A> {
    fn of(rows: &'a BTreeMap<Prefix<A>, Identity>) -> Self {
        Self { rows, lengths: rows.keys().map(|prefix| prefix.bits).collect() }
    }
    fn holder(&self, prefix: &Prefix<A>) -> Identity {
        let shorter = self.lengths.range(..=prefix.bits).rev();
        let mut holding =
            shorter.filter_map(|bits| self.rows.get(&Prefix { key: prefix.key.masked(*bits), bits: *bits }));
        holding.next().copied().unwrap_or(Identity::WORLD)
    }
}

/// The two stops where rules and identities both change.
fn between<A: Family>(
    from: Judges<'_, A>,
    to: Judges<'_, A>,
    moving: &BTreeSet<A>,
    renamed: &Renamed<A>,
) -> Vec<Judging<A>> {
    let used: BTreeSet<_> = from.endpoints.values().map(|endpoint| endpoint.rules.0).collect();
    let joined = moving.iter().filter_map(|pod| to.endpoints.get(pod)).map(|endpoint| endpoint.rules.0);
    let joined: BTreeSet<_> = joined.collect();
    let twins: BTreeMap<_, _> = joined.intersection(&used).copied().zip(MEANWHILE..).collect();

    let mut policy = from.policy.clone();
    policy.extend(to.policy.iter().filter(|(key, _)| !used.contains(&key.rules)));
    for (rules, twin) in &twins {
        let rows =
            to.policy.range(of_set(*rules)).map(|(key, row)| (PolicyPrefix { rules: *twin, ..*key }, *row));
        policy.extend(rows);
    }
    for ((old, new), meanwhile) in &renamed.meanwhile {
        let mut copy = |rows: &BTreeMap<_, _>, (rules, identity): (u32, Identity), target| {
            let about = about(rows, rules, identity);
            policy.extend(
                about
                    .into_iter()
                    .map(|(key, row)| (PolicyPrefix { rules: target, identity: meanwhile.0, ..key }, row)),
            );
        };
        used.iter().for_each(|rules| copy(from.policy, (*rules, *old), *rules));
        joined.difference(&used).for_each(|rules| copy(to.policy, (*rules, *new), *rules));
        twins.iter().for_each(|(rules, twin)| copy(to.policy, (*rules, *new), *twin));
    }

    let mut identities = from.identities.clone();
    for prefix in renamed.prefixes.keys() {
        identities.extend(renamed.at(prefix).map(|identity| (*prefix, identity)));
    }
    let first = Judging { policy, identities, endpoints: from.endpoints.clone() };

    let mut second = first.clone();
    for (pod, endpoint) in to.endpoints {
        let mut endpoint = *endpoint;
        if moving.contains(pod)
            && let Some(twin) = twins.get(&endpoint.rules.0)
        {
            endpoint.rules.0 = *twin;
        }
        second.endpoints.insert(*pod, endpoint);
    }
    vec![first, second]
}

/// What stands for a change of identity: by what it leads from and to, since the tunnel may carry it to nodes that
/// change as well.
fn between_identities(old: Identity, new: Identity, free: impl Fn(Identity) -> bool) -> Identity {
    let (first, count) = NUMBERS;
    let hash = hash::mixed([old.0.to_be_bytes(), new.0.to_be_bytes()].as_flattened());
    let mut place = (hash % u64::from(count)) as u32;
    while !free(Identity(first + place)) {
        place = (place + 1) % count;
    }
    Identity(first + place)
}

/// The first number of a rule set that no plan gives.
const MEANWHILE: u32 = 1 << 31;

/// An identity that says nothing: whoever receives it asks the address.
const ASK: Identity = Identity::REMOTE_NODE;

/// The keys of a rule set, from the first to the last there can be.
fn of_set(rules: u32) -> std::ops::RangeInclusive<PolicyPrefix> {
    let first = PolicyPrefix { rules, identity: 0, direction: 0, protocol: 0, port: 0, bits: 0 };
    let last = PolicyPrefix { identity: u32::MAX, ..last_about(first) };
    first..=last
}

/// The rows of a rule set that are about this identity.
fn about(
    rows: &BTreeMap<PolicyPrefix, PolicyRow>,
    rules: u32,
    identity: Identity,
) -> Vec<(PolicyPrefix, PolicyRow)> {
    let first = PolicyPrefix { rules, identity: identity.0, direction: 0, protocol: 0, port: 0, bits: 0 };
    rows.range(first..=last_about(first)).map(|(key, row)| (*key, *row)).collect()
}

fn last_about(key: PolicyPrefix) -> PolicyPrefix {
    PolicyPrefix { direction: u8::MAX, protocol: u8::MAX, port: u16::MAX, bits: u32::MAX, ..key }
}

/// The two stops where whoever is judged by something that changes is closed: what is gone goes, then what is new
/// comes.
fn closed<A: Family>(from: Judges<'_, A>, to: Judges<'_, A>) -> Vec<Judging<A>> {
    let kept = |key: &PolicyPrefix, row: &PolicyRow| to.policy.get(key) == Some(row);
    let gone = from.policy.iter().filter(|(key, row)| !kept(key, row)).map(|(key, _)| key.rules);
    let new = to.policy.iter().filter(|(key, row)| from.policy.get(key) != Some(row));
    let changing: BTreeSet<_> = gone.chain(new.map(|(key, _)| key.rules)).collect();
    let mut endpoints = from.endpoints.clone();
    for (pod, endpoint) in &mut endpoints {
        let next = to.endpoints.get(pod);
        if changing.contains(&endpoint.rules.0) || next.map(|next| next.rules) != Some(endpoint.rules) {
            endpoint.flags |= Endpoint::INCOMPLETE;
        }
    }
    let policy = from.policy.iter().filter(|(key, row)| kept(key, row));
    let policy = policy.map(|(key, row)| (*key, *row)).collect();
    let second = Judging {
        policy: to.policy.clone(),
        identities: to.identities.clone(),
        endpoints: endpoints.clone(),
    };
    vec![Judging { policy, identities: from.identities.clone(), endpoints }, second]
}
