//! Which rules apply to each pod, and the policy rows that say what they come to.
//!
//! A **rule set** is a list of rules in the order in which they are asked, with the numbers that named ports
//! have on the pod, and where NetworkPolicies isolate it. Pods with the same set share its rows. The path asks
//! about the other end's identity first and about [`Identity::ANY`] then, each time by the longest prefix of
//! protocol and port, and the one row that it finds names the rule that decides (see [`settle`]).
//!
//! For a pod in a direction, among the rules that match a flow:
//! 1. The first of the Admin tier decides, unless it passes.
//! 2. Where NetworkPolicies isolate the pod, the first of theirs allows; without one the flow is denied, which
//!    is what no row at all says.
//! 3. Elsewhere the first of the Baseline tier decides, unless it passes.
//! 4. What nothing denies is allowed, by a row without a rule.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;

use dataplane::tables::{Endpoint, Identity, PolicyRow, RuleId, RuleSet};

use super::bits::Bits;
use super::identity::{Asked, Identities};
use super::numbers::Numbers;
use super::policy::{Policy, Ports, Rule, Tier};
use super::port::PortPrefix;
use super::selector::Pods;
use super::settle::{Claims, Firsts, PortRows, claim, settle};
use super::{Family, PolicyPrefix, RuleName};
use crate::model::{Action, ContainerPort, Protocol};

/// A rule as it applies to one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Clause {
    rule: RuleId,
    /// For ingress, what its named ports are on the pod.
    numbers: Vec<(Protocol, u16)>,
}

/// What a rule set is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Content {
    /// Bits [`Endpoint::INGRESS`] and [`Endpoint::EGRESS`]: where a NetworkPolicy isolates.
    isolated: u8,
    /// The first asked first.
    clauses: Vec<Clause>,
}

/// What applies to a pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Selected {
    /// Bits of [`Endpoint::isolated`].
    pub(super) isolated: u8,
    /// Its rules; 0 if there are none.
    pub(super) rules: RuleSet,
    /// The places of the policies that select it, in the order in which they are asked.
    pub(super) policies: Bits,
}

/// Rows of a node's policy table.
pub(super) type PolicyRows = BTreeMap<PolicyPrefix, PolicyRow>;

/// Peers that a set has the same rows about.
#[derive(Clone, Debug)]
struct Group {
    /// [`Endpoint::INGRESS`] or [`Endpoint::EGRESS`].
    direction: u8,
    peers: Vec<Identity>,
    rows: PortRows,
}

/// A rule set, and its rows once somebody asked for them.
#[derive(Clone, Debug)]
struct Set {
    content: Content,
    groups: OnceLock<Vec<Group>>,
}

/// Ports that a clause names, and whom it is about.
struct Named {
    firsts: Firsts,
    ports: Vec<PortPrefix>,
    about: Asked,
}

/// The rule sets of a cluster.
#[derive(Clone, Debug)]
pub(super) struct RuleSets {
    ids: Numbers<Rule>,
    rules: HashMap<RuleId, Rule>,
    /// Of each policy, its rules.
    of_policy: Vec<Vec<RuleId>>,
    /// The policies that name ports of the pods they select.
    naming: Bits,
    /// By [`RuleId`]; names of rules that are gone stay until their number is needed.
    pub(super) names: Vec<RuleName>,
    numbers: Numbers<Content>,
    sets: HashMap<RuleSet, Set>,
}

impl RuleSets {
    /// Reads the policies' rules, and finds those of every pod of the list that policies can name.
    pub(super) fn of<A: Family>(
        policies: &[Policy],
        pods: &Pods<'_, A>,
        previous: Option<&Self>,
    ) -> (Self, Vec<Selected>) {
        let naming = policies.iter().enumerate().filter(|(_, policy)| names_ingress_ports(policy));
        let mut sets = Self {
            ids: Numbers::after(previous.map(|previous| &previous.ids), 1),
            rules: HashMap::new(),
            of_policy: Vec::new(),
            naming: naming.map(|(index, _)| index).collect(),
            names: previous.map_or_else(|| vec![RuleName::default()], |previous| previous.names.clone()),
            numbers: Numbers::after(previous.map(|previous| &previous.numbers), 1),
            sets: HashMap::new(),
        };
        for policy in policies {
            let ids = policy.rules.iter().map(|rule| sets.add(rule)).collect();
            sets.of_policy.push(ids);
        }
        let mut by_pod = vec![Bits::default(); pods.list.len()];
        for (index, policy) in policies.iter().enumerate() {
            for pod in pods.select(&policy.namespaces, &policy.pods).iter() {
                by_pod[pod].insert(index);
            }
        }
        // Most pods are replicas of each other: what is equal needs to be found once.
        let mut known: HashMap<(Bits, &[ContainerPort]), Selected> = HashMap::new();
        let selected = pods.list.iter().zip(by_pod).map(|((pod, _), selecting)| {
            let ports = if sets.names_ports(&selecting) { pod.ports.as_slice() } else { &[] };
            let selected = known
                .entry((selecting, ports))
                .or_insert_with_key(|(selecting, ports)| sets.select(policies, selecting, ports));
            selected.clone()
        });
        let selected = selected.collect();
        (sets, selected)
    }

    /// See [`super::Plan::stray`].
    pub(super) fn stray(&mut self) {
        self.ids.stray();
        self.numbers.stray();
    }

    fn add(&mut self, rule: &Rule) -> RuleId {
        let id = self.ids.give(rule);
        let length = self.names.len().max(id as usize + 1);
        self.names.resize(length, RuleName::default());
        self.names[id as usize] = rule.name.clone();
        self.rules.insert(RuleId(id), rule.clone());
        RuleId(id)
    }

    fn names_ports(&self, selecting: &Bits) -> bool {
        selecting.iter().any(|policy| self.naming.contains(policy))
    }

    /// What applies to a pod with such ports that these policies select.
    pub(super) fn select(
        &mut self,
        policies: &[Policy],
        selecting: &Bits,
        ports: &[ContainerPort],
    ) -> Selected {
        let (mut judged, mut isolated) = (0, 0);
        for policy in selecting.iter().map(|index| &policies[index]) {
            judged |= policy.judges;
            isolated |= if policy.tier == Tier::Network { policy.judges } else { 0 };
        }
        let ids = selecting.iter().flat_map(|index| &self.of_policy[index]);
        let clauses: Vec<_> = ids.map(|id| Clause::of(*id, &self.rules[id], ports)).collect();
        let rules = if clauses.is_empty() {
            RuleSet(0)
        } else {
            let content = Content { isolated, clauses };
            let rules = RuleSet(self.numbers.give(&content));
            self.sets.entry(rules).or_insert_with(|| Set { content, groups: OnceLock::new() });
            rules
        };
        Selected { isolated: judged, rules, policies: selecting.clone() }
    }

    fn groups<A: Family>(&self, rules: RuleSet, identities: &Identities<A>) -> &[Group] {
        let Some(set) = self.sets.get(&rules) else { return &[] };
        set.groups.get_or_init(|| {
            let directions = [Endpoint::INGRESS, Endpoint::EGRESS].into_iter();
            directions.flat_map(|direction| self.of_direction(set, direction, identities)).collect()
        })
    }

    /// How many rows [`RuleSets::write`] writes.
    pub(super) fn size<A: Family>(&self, rules: RuleSet, identities: &Identities<A>, own: Identity) -> usize {
        let groups = self.groups(rules, identities).iter();
        let size = |group: &Group| {
            let peers = group.peers.len() + usize::from(group.peers.binary_search(&own).is_ok());
            peers * group.rows.len()
        };
        groups.map(size).sum()
    }

    /// Writes the rows of a rule set. `own` is what the node's own address would be if it were another's:
    /// it is [`Identity::HOST`] here, but rules that name its address mean it.
    pub(super) fn write<A: Family>(
        &self,
        rules: RuleSet,
        identities: &Identities<A>,
        own: Identity,
        rows: &mut PolicyRows,
    ) {
        for group in self.groups(rules, identities) {
            for peer in &group.peers {
                group.write(rules, (*peer, own), rows);
            }
        }
    }

    /// Writes the rows of a rule set that are about this peer.
    pub(super) fn write_about<A: Family>(
        &self,
        rules: RuleSet,
        identities: &Identities<A>,
        (peer, own): (Identity, Identity),
        rows: &mut PolicyRows,
    ) {
        let groups = self.groups(rules, identities).iter();
        for group in groups.filter(|group| group.peers.binary_search(&peer).is_ok()) {
            group.write(rules, (peer, own), rows);
        }
    }

    /// Of the sets whose rows were asked for, those that `kept` names learn that there is another identity; the
    /// others' rows are forgotten.
    pub(super) fn learn<A: Family>(
        &mut self,
        identity: Identity,
        identities: &Identities<A>,
        kept: &BTreeSet<RuleSet>,
    ) {
        let mut learnt = Vec::new();
        let asked =
            self.sets.iter().filter(|(rules, set)| kept.contains(rules) && set.groups.get().is_some());
        for (rules, set) in asked {
            for direction in [Endpoint::INGRESS, Endpoint::EGRESS] {
                let rows = self.about(set, direction, identity, identities);
                if !rows.is_empty() {
                    learnt.push((*rules, direction, rows));
                }
            }
        }
        for (_, set) in self.sets.iter_mut().filter(|(rules, _)| !kept.contains(rules)) {
            set.groups = OnceLock::new();
        }
        for (rules, direction, rows) in learnt {
            if let Some(groups) = self.sets.get_mut(&rules).and_then(|set| set.groups.get_mut()) {
                join(groups, direction, identity, rows);
            }
        }
    }

    /// Nobody has this identity any more.
    pub(super) fn forget(&mut self, identity: Identity) {
        for groups in self.sets.values_mut().filter_map(|set| set.groups.get_mut()) {
            for group in groups {
                if let Ok(place) = group.peers.binary_search(&identity) {
                    group.peers.remove(place);
                }
            }
        }
    }

    /// What the clauses of a direction name.
    fn named<A: Family>(&self, set: &Set, direction: u8, identities: &Identities<A>) -> Vec<Named> {
        let mut named = Vec::new();
        for (place, clause) in set.content.clauses.iter().enumerate() {
            let rule = &self.rules[&clause.rule];
            if rule.direction != direction {
                continue;
            }
            let firsts = Firsts::one(rule.tier, place);
            let peers = rule.peers.as_deref();
            named.push(Named { firsts, ports: clause.prefixes(rule), about: identities.asked(peers, None) });
            for (port, serving) in named_targets(rule, identities) {
                named.push(Named {
                    firsts,
                    ports: vec![port],
                    about: identities.asked(peers, Some(serving)),
                });
            }
        }
        named.retain(|named| !named.ports.is_empty());
        named
    }

    /// The rows about each peer in a direction.
    fn of_direction<A: Family>(&self, set: &Set, direction: u8, identities: &Identities<A>) -> Vec<Group> {
        if !self.speaks(set, direction) {
            return Vec::new();
        }
        let named = self.named(set, direction, identities);
        let (any, anybody) = self.anybody(set, direction, &named);
        let mut about: BTreeMap<Identity, Vec<usize>> = BTreeMap::new();
        for (index, named) in named.iter().enumerate() {
            for identity in identities.matching(&named.about) {
                about.entry(identity).or_default().push(index);
            }
        }
        // Peers that the same clauses are about have the same rows.
        let mut alike: BTreeMap<Vec<usize>, Vec<Identity>> = BTreeMap::new();
        for (identity, clauses) in about {
            alike.entry(clauses).or_default().push(identity);
        }
        let own = alike.into_iter().map(|(clauses, peers)| {
            let own = claims(clauses.into_iter().map(|index| &named[index]));
            let rows = settle(&own, &any, &anybody, |firsts| self.decide(set, direction, firsts));
            Group { direction, peers, rows }
        });
        let mut groups: Vec<_> = own.filter(|group| !group.rows.is_empty()).collect();
        groups.push(Group { direction, peers: vec![Identity::ANY], rows: anybody });
        groups
    }

    /// The rows about one peer in a direction.
    fn about<A: Family>(
        &self,
        set: &Set,
        direction: u8,
        identity: Identity,
        identities: &Identities<A>,
    ) -> PortRows {
        let named = self.named(set, direction, identities);
        let own = claims(named.iter().filter(|named| identities.matches(&named.about, identity)));
        if own.is_empty() {
            return PortRows::new();
        }
        let (any, anybody) = self.anybody(set, direction, &named);
        settle(&own, &any, &anybody, |firsts| self.decide(set, direction, firsts))
    }

    /// What clauses about anybody claim, and the rows that this takes.
    fn anybody(&self, set: &Set, direction: u8, named: &[Named]) -> (Claims, PortRows) {
        let any = claims(named.iter().filter(|named| named.about.is_anybody()));
        let none = (Claims::new(), PortRows::new());
        let rows = settle(&any, &none.0, &none.1, |firsts| self.decide(set, direction, firsts));
        (any, rows)
    }

    /// Whether some rule of the set is about this direction.
    fn speaks(&self, set: &Set, direction: u8) -> bool {
        set.content.clauses.iter().any(|clause| self.rules[&clause.rule].direction == direction)
    }

    /// What becomes of a flow, given the first clause of each tier that matches it; `None`: NetworkPolicies
    /// isolate the pod, and none of their rules allows it.
    fn decide(&self, set: &Set, direction: u8, firsts: Firsts) -> Option<PolicyRow> {
        for tier in [Tier::Admin, Tier::Network, Tier::Baseline] {
            let first = firsts.of(tier).map(|place| set.content.clauses[place].rule);
            match first.map(|id| (self.rules[&id].action, id)) {
                // 1., 2., 3.
                Some((Action::Accept, rule)) => return Some(PolicyRow::allow(rule)),
                Some((Action::Deny, rule)) => return Some(PolicyRow::deny(rule)),
                Some((Action::Pass, _)) => {}
                None if tier == Tier::Network && set.content.isolated & direction != 0 => return None,
                None => {}
            }
        }
        // 4.
        Some(PolicyRow::allow(RuleId(0)))
    }
}

impl Group {
    /// Writes the rows about one of the peers, once more if it is the node itself.
    fn write(&self, rules: RuleSet, (peer, own): (Identity, Identity), rows: &mut PolicyRows) {
        let host = (peer == own).then_some(Identity::HOST);
        for identity in host.into_iter().chain([peer]) {
            rows.extend(self.rows.iter().map(|(port, row)| {
                let prefix = PolicyPrefix {
                    rules: rules.0,
                    identity: identity.0,
                    direction: self.direction,
                    protocol: port.protocol,
                    port: port.port,
                    bits: port.bits,
                };
                (prefix, *row)
            }));
        }
    }
}

/// Adds a peer to those that have the same rows in this direction.
fn join(groups: &mut Vec<Group>, direction: u8, peer: Identity, rows: PortRows) {
    // Rows about anybody are looked for under no peer, and stay alone.
    let alike = |group: &&mut Group| {
        group.direction == direction && group.rows == rows && group.peers != [Identity::ANY]
    };
    match groups.iter_mut().find(alike) {
        Some(group) => {
            if let Err(place) = group.peers.binary_search(&peer) {
                group.peers.insert(place, peer);
            }
        }
        None => groups.push(Group { direction, peers: vec![peer], rows }),
    }
}

fn claims<'a>(named: impl Iterator<Item = &'a Named>) -> Claims {
    let mut claims = Claims::new();
    for named in named {
        named.ports.iter().for_each(|port| claim(&mut claims, *port, named.firsts));
    }
    claims
}

fn names_ingress_ports(policy: &Policy) -> bool {
    let ingress = policy.rules.iter().filter(|rule| rule.direction == Endpoint::INGRESS);
    ingress.flat_map(|rule| &rule.ports).any(|port| matches!(port, Ports::Named(..)))
}

impl Clause {
    fn of(id: RuleId, rule: &Rule, ports: &[ContainerPort]) -> Self {
        let mut numbers = BTreeSet::new();
        if rule.direction == Endpoint::INGRESS {
            for port in &rule.ports {
                let Ports::Named(protocol, name) = port else { continue };
                let named = ports.iter().filter(|port| port.name.as_ref() == Some(name));
                let named = named.filter(|port| protocol.is_none_or(|protocol| protocol == port.protocol));
                numbers.extend(named.map(|port| (port.protocol, port.port)));
            }
        }
        Self { rule: id, numbers: numbers.into_iter().collect() }
    }
    /// The ports that it is about whoever the other end is.
    fn prefixes(&self, rule: &Rule) -> Vec<PortPrefix> {
        let numbers = self.numbers.iter().map(|(protocol, port)| PortPrefix::one(protocol.number(), *port));
        let ports = rule.ports.iter().flat_map(|port| match port {
            Ports::All => vec![PortPrefix::ALL],
            Ports::Protocol(protocol) => vec![PortPrefix::any(protocol.number())],
            Ports::Range(protocol, first, last) => PortPrefix::range(protocol.number(), *first, *last),
            Ports::Named(..) => Vec::new(),
        });
        ports.chain(numbers).collect()
    }
}

/// The ports that an egress rule names, and the number of the feature of the targets that call them so.
fn named_targets<A: Family>(rule: &Rule, identities: &Identities<A>) -> Vec<(PortPrefix, u32)> {
    let mut targets = Vec::new();
    for port in rule.ports.iter().filter(|_| rule.direction == Endpoint::EGRESS) {
        let Ports::Named(protocol, name) = port else { continue };
        let numbers = identities.named(name);
        let numbers = numbers.filter(|(of, ..)| protocol.is_none_or(|protocol| protocol == *of));
        targets
            .extend(numbers.map(|(of, number, feature)| (PortPrefix::one(of.number(), *number), *feature)));
    }
    targets
}
