//! Every policy in one form: whom it is for, and what each of its rules matches, as sets.

use std::collections::HashMap;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{
    Action, ClusterPolicy, Key, Kind, Objects, Origin, PodPeer, Protocol, Tier, TierPeer, TierPort,
};
use userspace::plan::Bits;

use super::selector::Selector;
use super::set::{Ends, Spans};
use super::world::{Scope, World};
use crate::oracle::Direction;

/// What a policy was written as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Text<'a> {
    Network(&'a NetworkPolicy),
    Cluster(&'a ClusterPolicy),
}

/// A policy, with what it is about.
#[derive(Debug)]
pub(super) struct Policy<'a> {
    /// `NetworkPolicy shop/api`.
    pub(super) object: String,
    /// `shop/api`.
    pub(super) id: String,
    pub(super) origin: Origin,
    pub(super) text: Text<'a>,
    /// The pods that it is for, as it says it, and those there are.
    pub(super) whom: Named,
    pub(super) subject: Bits,
    /// Its rules that count: those of the directions that it is about.
    pub(super) rules: Vec<Rule>,
    /// Whether it is about ingress, and about egress.
    limits: [bool; 2],
}

/// Pods, as a policy names them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Named {
    pub(super) scope: Scope,
    pub(super) pods: Selector,
}

/// A rule of a policy.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) direction: Direction,
    /// `spec.ingress[0]`.
    pub(super) field: String,
    pub(super) action: Action,
    /// The other end is one of these; anybody if none.
    pub(super) peers: Vec<Peer>,
    pub(super) ends: Ends,
    /// The target's port is one of these; whatever it is if `None`.
    pub(super) ports: Option<Vec<Port>>,
}

/// The other end, as a rule names it.
#[derive(Debug)]
pub(super) struct Peer {
    /// `spec.ingress[0].from[1]`.
    pub(super) field: String,
    pub(super) who: Who,
    pub(super) ends: Ends,
}

#[derive(Debug, PartialEq)]
pub(super) enum Who {
    Pods(Named),
    Nodes(Selector),
    /// Ranges, each without what is taken out of it.
    Blocks(Vec<(IpNet, Vec<IpNet>)>),
}

/// A port, as a rule names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// `spec.ingress[0].ports[1]`.
    pub(super) field: String,
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Protocol(Protocol),
    Range(Protocol, u16, u16),
    /// Of the protocol, or of any.
    Named(Option<Protocol>, String),
}

impl What {
    /// The numbers, if they are the same for every target.
    pub(super) fn spans(&self) -> Option<Spans> {
        match self {
            Self::Protocol(protocol) => Some(Spans::ports(*protocol, 0, u16::MAX)),
            Self::Range(protocol, first, last) => Some(Spans::ports(*protocol, *first, *last)),
            Self::Named(..) => None,
        }
    }
}

impl Policy<'_> {
    /// Whether it has a say in this direction.
    pub(super) fn limits(&self, direction: Direction) -> bool {
        self.limits[place(direction)]
    }

    /// Without policyTypes a NetworkPolicy is about egress only as long as it has a rule of it.
    pub(super) fn isolates_by_rules(&self, direction: Direction) -> bool {
        let Text::Network(NetworkPolicy { spec: Some(spec), .. }) = self.text else { return false };
        direction == Direction::Egress && spec.policy_types.as_ref().is_none_or(Vec::is_empty)
    }

    /// When it is asked, if it is one of the whole cluster.
    pub(super) fn tier(&self) -> Option<Tier> {
        match self.text {
            Text::Network(_) => None,
            Text::Cluster(policy) => Some(policy.tier),
        }
    }
}

impl Rule {
    /// Whether it is about everybody.
    pub(super) fn is_for_anybody(&self) -> bool {
        self.peers.is_empty() && !self.ends.is_empty()
    }

    /// What it matches for a pod that the policy is for, all pieces together: who, and at which ports.
    pub(super) fn pieces(&self, world: &World<'_>, pod: usize) -> Vec<(Ends, Spans)> {
        let Some(ports) = &self.ports else {
            return vec![(self.ends.clone(), Spans::every_port())];
        };
        let (mut numbers, mut pieces) = (Spans::default(), Vec::new());
        for port in ports {
            let What::Named(protocol, name) = &port.what else {
                numbers.unite(&port.what.spans().unwrap_or_default());
                continue;
            };
            let meant = world.named.get(name.as_str()).into_iter().flatten();
            for ((of, number), pods) in meant.filter(|((of, _), _)| protocol.is_none_or(|one| one == *of)) {
                let spans = Spans::ports(*of, *number, *number);
                match self.direction {
                    Direction::Ingress if pods.contains(pod) => numbers.unite(&spans),
                    Direction::Ingress => {}
                    Direction::Egress => {
                        let pods = pods.and(&self.ends.pods);
                        pieces.push((Ends { pods, addresses: Spans::default() }, spans));
                    }
                }
            }
        }
        pieces.push((self.ends.clone(), numbers));
        pieces.retain(|(ends, ports)| !ends.is_empty() && !ports.is_empty());
        pieces
    }
}

pub(super) fn place(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

/// The field of rules in a direction, and that of their peers.
pub(super) fn fields(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    }
}

/// Every policy of the cluster: those of the Admin tier as they are asked, NetworkPolicies, the Baseline's.
pub(super) fn policies<'a>(objects: &Objects, world: &World<'a>) -> Vec<Policy<'a>> {
    let origins: HashMap<String, Origin> =
        objects.iter().map(|entry| (entry.object.key().to_string(), entry.origin.clone())).collect();
    let mut reader = Reader { world, origins, selected: HashMap::new() };
    let of_cluster = |tier| world.cluster.cluster_policies.iter().filter(move |policy| policy.tier == tier);
    let mut policies: Vec<Policy<'a>> = Vec::new();
    policies.extend(of_cluster(Tier::Admin).map(|policy| reader.cluster(policy)));
    policies.extend(world.cluster.policies.iter().map(|policy| reader.network(policy)));
    policies.extend(of_cluster(Tier::Baseline).map(|policy| reader.cluster(policy)));
    policies
}

struct Reader<'a, 'w> {
    world: &'w World<'a>,
    origins: HashMap<String, Origin>,
    /// Who has been asked for before.
    selected: HashMap<Named, Bits>,
}

impl<'a> Reader<'a, '_> {
    fn network(&mut self, policy: &'a NetworkPolicy) -> Policy<'a> {
        let name = policy.metadata.name.clone().unwrap_or_default();
        let home = policy.metadata.namespace.clone().unwrap_or_default();
        let spec = policy.spec.clone().unwrap_or_default();
        let pods = spec.pod_selector.as_ref().map(Selector::read).unwrap_or_default();
        let whom = Named { scope: Scope::Named(home.clone()), pods };
        let types = spec.policy_types.unwrap_or_default();
        let (ingress, egress) = (spec.ingress.unwrap_or_default(), spec.egress.unwrap_or_default());
        let limits = match types.as_slice() {
            [] => [true, !egress.is_empty()],
            types => ["Ingress", "Egress"].map(|word| types.iter().any(|one| one == word)),
        };
        let ingress = ingress.into_iter().map(|rule| (Direction::Ingress, rule.from, rule.ports));
        let egress = egress.into_iter().map(|rule| (Direction::Egress, rule.to, rule.ports));
        let mut rules = Vec::new();
        let lists = [ingress.collect::<Vec<_>>(), egress.collect()];
        for (index, (direction, peers, ports)) in
            lists.into_iter().flat_map(|list| list.into_iter().enumerate())
        {
            let (list, side) = fields(direction);
            let field = format!("spec.{list}[{index}]");
            let peers = peers.unwrap_or_default();
            let peers = peers.iter().enumerate();
            let peers =
                peers.map(|(i, peer)| self.peer(format!("{field}.{side}[{i}]"), peer, &home)).collect();
            let ports: Vec<Port> = ports
                .unwrap_or_default()
                .iter()
                .enumerate()
                .map(|(i, port)| Port { field: format!("{field}.ports[{i}]"), what: what(port) })
                .collect();
            let ports = Some(ports).filter(|ports| !ports.is_empty());
            rules.push(self.rule((direction, field), Action::Accept, peers, ports));
        }
        rules.retain(|rule| limits[place(rule.direction)]);
        let key = Key { kind: Kind::NetworkPolicy, namespace: Some(home.clone()), name: name.clone() };
        self.policy(key, Text::Network(policy), whom, (rules, limits))
    }

    fn cluster(&mut self, policy: &'a ClusterPolicy) -> Policy<'a> {
        let list_of_ports = if policy.kind == Kind::ClusterNetworkPolicy { "protocols" } else { "ports" };
        let mut rules = Vec::new();
        for (direction, list) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)]
        {
            let (name, side) = fields(direction);
            for (index, rule) in list.iter().enumerate() {
                let field = format!("spec.{name}[{index}]");
                let peers = rule.peers.iter().enumerate();
                let peers =
                    peers.map(|(i, peer)| self.tier_peer(format!("{field}.{side}[{i}]"), peer)).collect();
                let ports = rule.ports.as_ref().map(|ports| {
                    let ports = ports.iter().enumerate();
                    ports
                        .map(|(i, port)| Port {
                            field: format!("{field}.{list_of_ports}[{i}]"),
                            what: tier_port(port),
                        })
                        .collect()
                });
                // Unlike a NetworkPolicy's, a rule that names nobody is about nobody.
                let mut read = self.rule((direction, field), rule.action, peers, ports);
                if rule.peers.is_empty() {
                    read.ends = Ends::default();
                }
                rules.push(read);
            }
        }
        let limits = [!policy.ingress.is_empty(), !policy.egress.is_empty()];
        let key = Key { kind: policy.kind, namespace: None, name: policy.name.clone() };
        self.policy(key, Text::Cluster(policy), named(&policy.subject), (rules, limits))
    }

    fn policy(
        &mut self,
        key: Key,
        text: Text<'a>,
        whom: Named,
        (rules, limits): (Vec<Rule>, [bool; 2]),
    ) -> Policy<'a> {
        let object = key.to_string();
        let id =
            key.namespace.as_ref().map_or_else(|| key.name.clone(), |home| format!("{home}/{}", key.name));
        let origin = self.origins.get(&object).cloned().unwrap_or_default();
        let subject = self.select(&whom);
        Policy { object, id, origin, text, whom, subject, rules, limits }
    }

    fn rule(
        &self,
        (direction, field): (Direction, String),
        action: Action,
        peers: Vec<Peer>,
        ports: Option<Vec<Port>>,
    ) -> Rule {
        let mut ends = Ends::default();
        peers.iter().for_each(|peer| ends.unite(&peer.ends));
        if peers.is_empty() {
            ends = self.world.anybody();
        }
        Rule { direction, field, action, peers, ends, ports }
    }

    fn peer(&mut self, field: String, peer: &NetworkPolicyPeer, home: &str) -> Peer {
        if let Some(block) = &peer.ip_block {
            let (whole, except) = ranges(block);
            let ends = self.world.at(without(whole, &except), false);
            return Peer { field, who: Who::Blocks(vec![(whole, except)]), ends };
        }
        let read = |selector: &Option<LabelSelector>| selector.as_ref().map(Selector::read);
        let scope = read(&peer.namespace_selector).map_or(Scope::Named(home.to_owned()), Scope::Labelled);
        let named = Named { scope, pods: read(&peer.pod_selector).unwrap_or_default() };
        self.pods(field, named)
    }

    fn tier_peer(&mut self, field: String, peer: &TierPeer) -> Peer {
        match peer {
            TierPeer::Pods(pods) => self.pods(field, named(pods)),
            TierPeer::Nodes(selector) => {
                let selector = Selector::read(selector);
                let mut addresses = Spans::default();
                let nodes = self.world.cluster.nodes.iter().filter(|node| selector.holds(&node.labels));
                for address in nodes.flat_map(|node| &node.addresses) {
                    addresses.unite(&Spans::address(*address));
                }
                Peer { field, who: Who::Nodes(selector), ends: Ends { pods: Bits::default(), addresses } }
            }
            TierPeer::Networks(networks) => {
                let mut addresses = Spans::default();
                networks.iter().for_each(|network| addresses.unite(&Spans::block(*network)));
                let blocks = networks.iter().map(|network| (*network, Vec::new())).collect();
                Peer { field, who: Who::Blocks(blocks), ends: self.world.at(addresses, true) }
            }
        }
    }

    fn pods(&mut self, field: String, named: Named) -> Peer {
        let pods = self.select(&named);
        Peer { field, who: Who::Pods(named), ends: Ends { pods, addresses: Spans::default() } }
    }

    fn select(&mut self, named: &Named) -> Bits {
        if let Some(known) = self.selected.get(named) {
            return known.clone();
        }
        let pods = self.world.select(&named.scope, &named.pods);
        self.selected.insert(named.clone(), pods.clone());
        pods
    }
}

fn named(peer: &PodPeer) -> Named {
    Named { scope: Scope::Labelled(Selector::read(&peer.namespaces)), pods: Selector::read(&peer.pods) }
}

/// The ranges of a block that the model has validated.
fn ranges(block: &IPBlock) -> (IpNet, Vec<IpNet>) {
    let read = |text: &String| text.parse::<IpNet>().ok();
    let whole = read(&block.cidr).expect("validation has read it");
    (whole, block.except.iter().flatten().filter_map(read).collect())
}

/// A range without what is taken out of it.
pub(super) fn without(whole: IpNet, except: &[IpNet]) -> Spans {
    let mut spans = Spans::block(whole);
    except.iter().for_each(|range| spans.subtract(&Spans::block(*range)));
    spans
}

fn what(port: &NetworkPolicyPort) -> What {
    let protocol = match port.protocol.as_deref() {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    // It has been validated: 1 to 65,535.
    let number = |port: i32| u16::try_from(port).unwrap_or_default();
    match &port.port {
        None => What::Protocol(protocol),
        Some(IntOrString::Int(first)) => {
            What::Range(protocol, number(*first), number(port.end_port.unwrap_or(*first)))
        }
        Some(IntOrString::String(name)) => What::Named(Some(protocol), name.clone()),
    }
}

fn tier_port(port: &TierPort) -> What {
    match port {
        TierPort::Protocol(protocol) => What::Protocol(*protocol),
        TierPort::Range(protocol, first, last) => What::Range(*protocol, *first, *last),
        TierPort::Named(name) => What::Named(None, name.clone()),
    }
}
