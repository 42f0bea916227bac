//! Which rules apply to each pod, and the policy rows that say what they allow.
//!
//! A **rule set** is a list of rules, with the numbers that named ports have on the pod. Pods with the same
//! list share the set, and so its rows. Rows only ever allow; the path asks about the other end's identity
//! first and about [`Identity::ANY`] then, each time by the longest prefix of protocol and port.
//!
//! Where several rules allow the same flow, the first of them in the order of the policies gets the credit:
//! rows are arranged so that the one row that is found names it (see [`settle`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;

use dataplane::tables::{Endpoint, Identity, PolicyRow, RuleId, RuleSet};

use super::bits::Bits;
use super::identity::Identities;
use super::numbers::Numbers;
use super::policy::{Policy, Ports, Rule};
use super::port::PortPrefix;
use super::selector::Pods;
use super::{Family, PolicyPrefix, RuleName};
use crate::model::{Pod, Protocol};

/// A rule as it applies to one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Clause {
    rule: RuleId,
    /// For ingress, what its named ports are on the pod.
    numbers: Vec<(Protocol, u16)>,
}

/// What applies to a pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Selected {
    /// Bits of [`Endpoint::isolated`].
    pub(super) isolated: u8,
    /// The rules that then allow something; 0 if there are none.
    pub(super) rules: RuleSet,
    /// The places of the policies that select it, in the cluster's order.
    pub(super) policies: Bits,
}

/// A port that a pod has a name for.
type NamedPort<'a> = (Protocol, u16, &'a str);

/// What a rule set allows: by direction and identity, in rows.
type Allowed = BTreeMap<(u8, Identity), BTreeMap<PortPrefix, RuleId>>;

/// A rule set, and its rows once somebody asked for them.
#[derive(Clone, Debug)]
struct Set {
    clauses: Vec<Clause>,
    allowed: OnceLock<Allowed>,
}

/// The rule sets of a cluster.
#[derive(Clone, Debug)]
pub(super) struct RuleSets {
    ids: Numbers<Rule>,
    rules: HashMap<RuleId, Rule>,
    /// By [`RuleId`]; names of rules that are gone stay until their number is needed.
    pub(super) names: Vec<RuleName>,
    numbers: Numbers<Vec<Clause>>,
    sets: HashMap<RuleSet, Set>,
    /// For each pod of the list that policies can name.
    pub(super) selected: Vec<Selected>,
}

impl RuleSets {
    /// Finds the rules of every pod.
    pub(super) fn of<A: Family>(policies: &[Policy], pods: &Pods<'_, A>, previous: Option<&Self>) -> Self {
        let mut sets = Self {
            ids: Numbers::after(previous.map(|previous| &previous.ids), 1),
            rules: HashMap::new(),
            names: previous.map_or_else(|| vec![RuleName::default()], |previous| previous.names.clone()),
            numbers: Numbers::after(previous.map(|previous| &previous.numbers), 1),
            sets: HashMap::new(),
            selected: Vec::new(),
        };
        let ids: Vec<Vec<_>> =
            policies.iter().map(|policy| policy.rules.iter().map(|rule| sets.add(rule)).collect()).collect();
        let mut by_pod = vec![Bits::default(); pods.list.len()];
        for (index, policy) in policies.iter().enumerate() {
            for pod in pods.select(&policy.namespaces, &policy.pods).iter() {
                by_pod[pod].insert(index);
            }
        }
        let names_ports = policies.iter().enumerate().filter(|(_, policy)| names_ingress_ports(policy));
        let names_ports: Bits = names_ports.map(|(index, _)| index).collect();
        // Most pods are replicas of each other: what is equal needs to be found once.
        let mut known: HashMap<(Bits, Vec<NamedPort<'_>>), Selected> = HashMap::new();
        for ((pod, _), selecting) in pods.list.iter().zip(by_pod) {
            let mut by_port = selecting.clone();
            by_port.intersect(&names_ports);
            let named = pod.ports.iter().filter(|_| !by_port.is_empty());
            let named = named.filter_map(|port| Some((port.protocol, port.port, port.name.as_deref()?)));
            let selected = known.entry((selecting, named.collect())).or_insert_with_key(|(selecting, _)| {
                let isolated = selecting.iter().fold(0, |bits, index| bits | policies[index].isolates);
                let ids = selecting.iter().flat_map(|index| &ids[index]);
                let clauses: Vec<_> = ids.map(|id| Clause::of(*id, &sets.rules[id], pod)).collect();
                let rules =
                    if clauses.is_empty() { RuleSet(0) } else { RuleSet(sets.numbers.give(&clauses)) };
                sets.sets.entry(rules).or_insert_with(|| Set { clauses, allowed: OnceLock::new() });
                Selected { isolated, rules, policies: selecting.clone() }
            });
            sets.selected.push(selected.clone());
        }
        sets
    }

    fn add(&mut self, rule: &Rule) -> RuleId {
        let id = self.ids.give(rule);
        let length = self.names.len().max(id as usize + 1);
        self.names.resize(length, RuleName::default());
        self.names[id as usize] = rule.name.clone();
        self.rules.insert(RuleId(id), rule.clone());
        RuleId(id)
    }

    /// Writes the rows of a rule set. `own` is what the node's own address would be if it were another's:
    /// it is [`Identity::HOST`] here, but rules that name its address mean it.
    pub(super) fn write<A: Family>(
        &self,
        rules: RuleSet,
        identities: &Identities<A>,
        own: Identity,
        rows: &mut BTreeMap<PolicyPrefix, PolicyRow>,
    ) {
        let Some(set) = self.sets.get(&rules) else { return };
        let allowed = set.allowed.get_or_init(|| {
            let directions = [Endpoint::INGRESS, Endpoint::EGRESS];
            directions.into_iter().flat_map(|direction| self.allowed(set, direction, identities)).collect()
        });
        for ((direction, identity), ports) in allowed {
            let host = (*identity == own).then_some(Identity::HOST);
            for identity in host.into_iter().chain([*identity]) {
                rows.extend(ports.iter().map(|(port, rule)| {
                    let prefix = PolicyPrefix {
                        rules: rules.0,
                        identity: identity.0,
                        direction: *direction,
                        protocol: port.protocol,
                        port: port.port,
                        bits: port.bits,
                    };
                    (prefix, PolicyRow::allow(*rule))
                }));
            }
        }
    }

    /// What the set allows in one direction.
    fn allowed<A: Family>(&self, set: &Set, direction: u8, identities: &Identities<A>) -> Allowed {
        let mut any = Claims::new();
        let mut by_identity: BTreeMap<Identity, Claims> = BTreeMap::new();
        for (order, clause) in set.clauses.iter().enumerate() {
            let rule = &self.rules[&clause.rule];
            if rule.direction != direction {
                continue;
            }
            let peers: Option<BTreeSet<Identity>> = rule
                .peers
                .as_ref()
                .map(|peers| peers.iter().flat_map(|peer| identities.matched_by(peer)).copied().collect());
            for port in clause.prefixes(rule) {
                match &peers {
                    None => claim(&mut any, port, order),
                    Some(peers) => {
                        peers
                            .iter()
                            .for_each(|peer| claim(by_identity.entry(*peer).or_default(), port, order));
                    }
                }
            }
            for (port, serving) in named_targets(rule, identities) {
                let meant = |peer: &&Identity| peers.as_ref().is_none_or(|peers| peers.contains(peer));
                for peer in serving.iter().filter(meant) {
                    claim(by_identity.entry(*peer).or_default(), port, order);
                }
            }
        }
        let name = |claims: Claims| -> BTreeMap<PortPrefix, RuleId> {
            claims.into_iter().map(|(port, order)| (port, set.clauses[order].rule)).collect()
        };
        // Identities that the same rules match have the same rows.
        let mut settled: HashMap<Claims, BTreeMap<PortPrefix, RuleId>> = HashMap::new();
        let mut allowed = Allowed::new();
        for (identity, own) in by_identity {
            let rows = settled.entry(own).or_insert_with_key(|own| name(settle(own, &any)));
            allowed.insert((direction, identity), rows.clone());
        }
        allowed.insert((direction, Identity::ANY), name(settle(&any, &Claims::new())));
        allowed
    }
}

fn names_ingress_ports(policy: &Policy) -> bool {
    let ingress = policy.rules.iter().filter(|rule| rule.direction == Endpoint::INGRESS);
    ingress.flat_map(|rule| &rule.ports).any(|port| matches!(port, Ports::Named(..)))
}

impl Clause {
    fn of(id: RuleId, rule: &Rule, pod: &Pod) -> Self {
        let mut numbers = BTreeSet::new();
        if rule.direction == Endpoint::INGRESS {
            for port in &rule.ports {
                let Ports::Named(protocol, name) = port else { continue };
                let named = pod.ports.iter().filter(|port| port.protocol == *protocol);
                let named = named.filter(|port| port.name.as_ref() == Some(name));
                numbers.extend(named.map(|port| (port.protocol, port.port)));
            }
        }
        Self { rule: id, numbers: numbers.into_iter().collect() }
    }
    /// The ports that it allows whoever the other end is.
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

/// The ports that an egress rule names, as they are on each target that has them.
fn named_targets<'a, A: Family>(
    rule: &'a Rule,
    identities: &'a Identities<A>,
) -> impl Iterator<Item = (PortPrefix, &'a [Identity])> {
    let ports = rule.ports.iter().filter(|_| rule.direction == Endpoint::EGRESS);
    ports.flat_map(|port| {
        let named = match port {
            Ports::Named(protocol, name) => Some((*protocol, name)),
            _ => None,
        };
        named.into_iter().flat_map(|(protocol, name)| {
            let numbers = identities.named(protocol, name);
            numbers.map(move |(number, serving)| (PortPrefix::one(protocol.number(), number), serving))
        })
    })
}

/// Ports, and the first rule that allows each, by its place in the set.
type Claims = BTreeMap<PortPrefix, usize>;

/// Rules come in order, so the first that claims a port keeps it.
fn claim(claims: &mut Claims, port: PortPrefix, order: usize) {
    claims.entry(port).or_insert(order);
}

/// The rows for an identity, given what its own rules claim and what rules about anybody claim.
///
/// Whatever is found first, by the longest prefix and before the rows for anybody are asked, must name the
/// first rule of all that allow the flow.
/// 1. A claim that a wider one precedes is left out: the wider row will be found instead.
/// 2. A claim of the identity's own rules is needed.
/// 3. A claim of the others is needed where a wider row of the identity's own would be found before it.
fn settle(own: &Claims, any: &Claims) -> Claims {
    let mut rows = Claims::new();
    let first = |port: &PortPrefix| own.get(port).into_iter().chain(any.get(port)).min().copied();
    let ports: BTreeSet<_> = own.keys().chain(any.keys()).copied().collect();
    for port in ports {
        let Some(order) = first(&port) else { continue };
        // 1.
        if port.wider().filter_map(|wider| first(&wider)).any(|wider| wider <= order) {
            continue;
        }
        // 2. and 3.
        if own.get(&port) == Some(&order) || port.wider().any(|wider| rows.contains_key(&wider)) {
            rows.insert(port, order);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule that the path credits: the longest prefix among the identity's rows, then among anybody's.
    fn found(rows: &Claims, any: &Claims, port: PortPrefix) -> Option<usize> {
        let longest = |claims: &Claims| {
            let holding = port.wider().chain([port]).filter_map(|prefix| claims.get(&prefix).copied());
            holding.last()
        };
        longest(rows).or_else(|| longest(any))
    }

    #[test]
    fn the_first_rule_that_allows_a_port_is_the_one_found() {
        let prefixes = [
            PortPrefix::ALL,
            PortPrefix::any(6),
            PortPrefix { bits: 94, protocol: 6, port: 80 },
            PortPrefix::one(6, 80),
            PortPrefix::one(6, 81),
            PortPrefix::one(17, 80),
        ];
        // Every way to give the prefixes rules 0 to 5 of the identity's own, of anybody's, or none.
        for ways in 0..3_u32.pow(prefixes.len() as u32) {
            for turn in 0..prefixes.len() {
                let (mut own, mut any) = (Claims::new(), Claims::new());
                for (index, prefix) in prefixes.iter().enumerate() {
                    let order = (index * 5 + turn) % prefixes.len();
                    match ways / 3_u32.pow(index as u32) % 3 {
                        0 => claim(&mut own, *prefix, order),
                        1 => claim(&mut any, *prefix, order),
                        _ => {}
                    }
                }
                let (rows, anybody) = (settle(&own, &any), settle(&any, &Claims::new()));
                for port in [(6, 80), (6, 81), (6, 82), (6, 9), (17, 80), (17, 9)] {
                    let port = PortPrefix::one(port.0, port.1);
                    let claims = port.wider().chain([port]).filter_map(|prefix| {
                        own.get(&prefix).into_iter().chain(any.get(&prefix)).min().copied()
                    });
                    assert_eq!(found(&rows, &anybody, port), claims.min(), "{own:?} {any:?} {port:?}");
                }
            }
        }
    }

    #[test]
    fn a_claim_that_a_wider_one_precedes_takes_no_row() {
        let own = Claims::from([(PortPrefix::ALL, 0), (PortPrefix::one(6, 80), 1)]);
        assert_eq!(settle(&own, &Claims::new()), Claims::from([(PortPrefix::ALL, 0)]));
        assert_eq!(settle(&Claims::from([(PortPrefix::one(6, 80), 1)]), &own), Claims::new());
    }
}
