//! Policies as clauses: whom they mean by addresses, and which ports by numbers.
//!
//! Source: Kubernetes API reference, NetworkPolicy v1; network-policy-api, ClusterNetworkPolicy v1alpha2.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{
    Action as TierAction, Cluster, IpBlocks, Pod, PodPeer, Protocol, Tier, TierPeer, TierPort, TierRule,
};

use super::Family;
use super::decide::{Action, Clause, Ports, Range, Stage, without};
use crate::dataplane::chains::policies::has;

/// Seen from the pod that policies select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// A pod in a direction, and a family: whose clauses are wanted.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) pod: &'a Pod,
    pub(super) direction: Direction,
    pub(super) family: Family,
}

impl<'a> Side<'a> {
    /// All clauses about it, and whether a NetworkPolicy isolates it. Nothing if no policy is about it.
    pub(super) fn clauses(self) -> Option<(Vec<Clause>, bool)> {
        let selecting: Vec<&NetworkPolicy> =
            self.cluster.policies.iter().filter(|policy| self.isolates(policy)).collect();
        let mut clauses = Vec::new();
        let mut is_asked = !selecting.is_empty();
        for policy in &self.cluster.cluster_policies {
            if !self.is_among(&policy.subject, self.pod) {
                continue;
            }
            let stage = if policy.tier == Tier::Admin { Stage::Admin } else { Stage::Baseline };
            let rules = match self.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            is_asked |= !rules.is_empty();
            rules.iter().for_each(|rule| self.tier_rule(stage, rule, &mut clauses));
        }
        for policy in &selecting {
            for (peers, ports) in rules(policy, self.direction) {
                self.namespaced_rule(policy, peers, ports, &mut clauses);
            }
        }
        is_asked.then_some((clauses, !selecting.is_empty()))
    }

    fn tier_rule(self, stage: Stage, rule: &TierRule, clauses: &mut Vec<Clause>) {
        let action = match rule.action {
            TierAction::Accept => Action::Allow,
            TierAction::Deny => Action::Deny,
            TierAction::Pass => Action::Pass,
        };
        let mut add = |peers: Vec<Range>, ports: Option<Vec<Ports>>| {
            clauses.push(Clause { stage, peers, ports, action });
        };
        for peer in &rule.peers {
            match peer {
                TierPeer::Pods(wanted) => {
                    let pods = self.others().filter(|(pod, _)| self.is_among(wanted, pod));
                    let ports = |receiver: &Pod| rule.ports.as_ref().map(|it| tier_ports(it, Some(receiver)));
                    self.by_ports(pods, ports).into_iter().for_each(|(ports, peers)| add(peers, ports));
                }
                TierPeer::Nodes(wanted) => {
                    let nodes = self.cluster.nodes.iter().filter(|node| has(wanted, &node.labels));
                    let addresses = nodes.flat_map(|node| &node.addresses);
                    let ports = rule.ports.as_ref().map(|it| tier_ports(it, None));
                    add(addresses.filter_map(|address| self.family.one(*address)).collect(), ports);
                }
                TierPeer::Networks(ranges) => {
                    let ports =
                        |receiver: Option<&Pod>| rule.ports.as_ref().map(|it| tier_ports(it, receiver));
                    let ranges: Vec<Range> =
                        ranges.iter().filter_map(|range| self.family.range(*range)).collect();
                    self.in_ranges(&ranges, ports).into_iter().for_each(|(ports, peers)| add(peers, ports));
                }
            }
        }
    }

    fn namespaced_rule(
        self,
        policy: &NetworkPolicy,
        peers: &[NetworkPolicyPeer],
        ports: &[NetworkPolicyPort],
        clauses: &mut Vec<Clause>,
    ) {
        let numbered = |receiver: Option<&Pod>| (!ports.is_empty()).then(|| numbers(ports, receiver));
        let mut add = |peers: Vec<Range>, ports: Option<Vec<Ports>>| {
            clauses.push(Clause { stage: Stage::Namespaced, peers, ports, action: Action::Allow });
        };
        let everywhere = [self.family.all()];
        if peers.is_empty() {
            self.in_ranges(&everywhere, numbered).into_iter().for_each(|(ports, peers)| add(peers, ports));
        }
        for peer in peers {
            let meant = match &peer.ip_block {
                Some(block) => self.in_ranges(&self.block(block), numbered),
                None => {
                    let pods = self.others().filter(|(pod, _)| self.is_peer(policy, peer, pod));
                    self.by_ports(pods, |receiver| numbered(Some(receiver)))
                }
            };
            meant.into_iter().for_each(|(ports, peers)| add(peers, ports));
        }
    }

    /// Whoever is in these ranges, by the ports that are meant there: of those only pods have names for ports.
    fn in_ranges(
        self,
        ranges: &[Range],
        ports: impl Fn(Option<&Pod>) -> Option<Vec<Ports>>,
    ) -> Vec<(Option<Vec<Ports>>, Vec<Range>)> {
        let receiver = (self.direction == Direction::Ingress).then_some(self.pod);
        let mut meant = vec![(ports(receiver), ranges.to_vec())];
        if self.direction == Direction::Egress {
            let inside = |address: u128| ranges.iter().any(|(a, b)| (*a..=*b).contains(&address));
            let pods = self.others().filter(|(_, range)| inside(range.0));
            meant.extend(self.by_ports(pods, |receiver| ports(Some(receiver))));
        }
        meant
    }

    /// Pods by the ports that are meant where the flow arrives: at this pod, or at the other.
    fn by_ports(
        self,
        pods: impl Iterator<Item = (&'a Pod, Range)>,
        ports: impl Fn(&Pod) -> Option<Vec<Ports>>,
    ) -> Vec<(Option<Vec<Ports>>, Vec<Range>)> {
        let mut by_ports: BTreeMap<Option<Vec<Ports>>, Vec<Range>> = BTreeMap::new();
        for (other, range) in pods {
            let receiver = if self.direction == Direction::Ingress { self.pod } else { other };
            by_ports.entry(ports(receiver)).or_default().push(range);
        }
        by_ports.into_iter().collect()
    }

    /// Every pod with an address of its own, and the address.
    fn others(self) -> impl Iterator<Item = (&'a Pod, Range)> {
        let pods = self.cluster.pods.iter().filter(|pod| !pod.host_network);
        pods.filter_map(move |pod| {
            Some((pod, pod.addresses.iter().find_map(|address| self.family.one(*address))?))
        })
    }

    /// The addresses that a block means.
    fn block(self, block: &IPBlock) -> Vec<Range> {
        let range = |text: &String| self.family.range(text.parse().ok()?);
        let Some(whole) = range(&block.cidr) else { return Vec::new() };
        let mut holes: Vec<Range> = block.except.iter().flatten().filter_map(range).collect();
        if self.cluster.settings.policies.ip_blocks == IpBlocks::Outside {
            holes.extend(self.others().map(|(_, range)| range));
        }
        without(whole, &holes)
    }

    fn isolates(self, policy: &NetworkPolicy) -> bool {
        let Some(spec) = &policy.spec else { return false };
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let limits = |word: &str| types.iter().any(|kind| kind == word);
        let is_limited = match self.direction {
            Direction::Ingress => types.is_empty() || limits("Ingress"),
            Direction::Egress if types.is_empty() => spec.egress.iter().flatten().next().is_some(),
            Direction::Egress => limits("Egress"),
        };
        is_limited
            && home(policy) == self.pod.namespace
            && spec.pod_selector.as_ref().is_none_or(|wanted| has(wanted, &self.pod.labels))
    }

    fn is_peer(self, policy: &NetworkPolicy, peer: &NetworkPolicyPeer, pod: &Pod) -> bool {
        let lives_there = match &peer.namespace_selector {
            Some(wanted) => self.namespace_is(wanted, pod),
            None => pod.namespace == home(policy),
        };
        let says_something = peer.namespace_selector.is_some() || peer.pod_selector.is_some();
        says_something
            && lives_there
            && peer.pod_selector.as_ref().is_none_or(|wanted| has(wanted, &pod.labels))
    }

    fn is_among(self, wanted: &PodPeer, pod: &Pod) -> bool {
        !pod.host_network && self.namespace_is(&wanted.namespaces, pod) && has(&wanted.pods, &pod.labels)
    }

    fn namespace_is(self, wanted: &LabelSelector, pod: &Pod) -> bool {
        self.cluster.namespaces.get(&pod.namespace).is_some_and(|labels| has(wanted, labels))
    }
}

/// The namespace that a policy is in.
fn home(policy: &NetworkPolicy) -> &str {
    policy.metadata.namespace.as_deref().unwrap_or("default")
}

/// Peers and ports of a policy's rules for a direction; an empty list restricts nothing.
fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<(&[NetworkPolicyPeer], &[NetworkPolicyPort])> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    match direction {
        Direction::Ingress => (spec.ingress.iter().flatten())
            .map(|rule| (rule.from.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default()))
            .collect(),
        Direction::Egress => (spec.egress.iter().flatten())
            .map(|rule| (rule.to.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default()))
            .collect(),
    }
}

/// Ports of a NetworkPolicy by number. Names are those of the receiver; who is no pod has none.
fn numbers(ports: &[NetworkPolicyPort], receiver: Option<&Pod>) -> Vec<Ports> {
    let mut found = Vec::new();
    for port in ports {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(_) => continue,
        };
        match &port.port {
            None => found.push(some(protocol, 0, u16::MAX)),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                if let (Ok(first), Ok(last)) = (u16::try_from(*first), u16::try_from(last)) {
                    found.push(some(protocol, first, last));
                }
            }
            Some(IntOrString::String(name)) => {
                let named = named(receiver, name).filter(|it| it.protocol == protocol.number());
                found.extend(named);
            }
        }
    }
    found.sort_unstable();
    found
}

/// The same of a policy of the whole cluster.
fn tier_ports(ports: &[TierPort], receiver: Option<&Pod>) -> Vec<Ports> {
    let mut found = Vec::new();
    for port in ports {
        match port {
            TierPort::Protocol(protocol) => found.push(some(*protocol, 0, u16::MAX)),
            TierPort::Range(protocol, first, last) => found.push(some(*protocol, *first, *last)),
            TierPort::Named(name) => found.extend(named(receiver, name)),
        }
    }
    found.sort_unstable();
    found
}

fn named<'a>(receiver: Option<&'a Pod>, name: &'a str) -> impl Iterator<Item = Ports> + use<'a> {
    let own = receiver.into_iter().flat_map(|pod| &pod.ports);
    own.filter(move |port| port.name.as_deref() == Some(name))
        .map(|port| some(port.protocol, port.port, port.port))
}

fn some(protocol: Protocol, first: u16, last: u16) -> Ports {
    Ports { protocol: protocol.number(), range: (first, last) }
}

impl Family {
    /// The last address.
    pub(super) fn last(self) -> u128 {
        if self == Self::Four { u128::from(u32::MAX) } else { u128::MAX }
    }

    /// All addresses.
    fn all(self) -> Range {
        (0, self.last())
    }

    /// One address, if it is of the family.
    fn one(self, address: IpAddr) -> Option<Range> {
        self.range(IpNet::from(address))
    }

    /// A range, if it is of the family.
    fn range(self, range: IpNet) -> Option<Range> {
        match (self, range) {
            (Self::Four, IpNet::V4(range)) => {
                Some((range.network().to_bits().into(), range.broadcast().to_bits().into()))
            }
            (Self::Six, IpNet::V6(range)) => Some((range.network().to_bits(), range.broadcast().to_bits())),
            _ => None,
        }
    }
}
