//! What policies say, read into rules: one shape for NetworkPolicies and for those of the whole cluster.
//!
//! Source: Kubernetes API reference, NetworkPolicy v1; network-policy-api, `ClusterNetworkPolicy` v1alpha2.

use dataplane::tables::Endpoint;
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::selector::{Namespaces, Selector};
use super::{Error, RuleName};
use crate::model::{
    self, Action, Cluster, ClusterPolicy, IpBlocks, PodPeer, Protocol, TierPeer, TierPort, TierRule,
};

/// When a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Tier {
    /// First: policies of the whole cluster.
    Admin,
    /// Then: NetworkPolicies.
    Network,
    /// Last: policies of the whole cluster.
    Baseline,
}

/// A policy.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// `namespace/name` of a NetworkPolicy, kind and name of another.
    pub(super) name: String,
    /// When it is asked.
    pub(super) tier: Tier,
    /// Where the pods are that it may select.
    pub(super) namespaces: Namespaces,
    /// Which of them it selects.
    pub(super) pods: Selector,
    /// Bits [`Endpoint::INGRESS`] and [`Endpoint::EGRESS`]: where it has a say. There a NetworkPolicy isolates.
    pub(super) judges: u8,
    /// What it says in these directions, the first first.
    pub(super) rules: Vec<Rule>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) name: RuleName,
    /// When it is asked.
    pub(super) tier: Tier,
    /// What it does with a flow that it matches.
    pub(super) action: Action,
    /// [`Endpoint::INGRESS`] or [`Endpoint::EGRESS`].
    pub(super) direction: u8,
    /// The other end may be any of these; `None`: anybody.
    pub(super) peers: Option<Vec<Peer>>,
    /// The target's port may be any of these.
    pub(super) ports: Vec<Ports>,
}

/// The other end of a flow, as a rule describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// Pods, by their labels and their namespace's.
    Pods(Namespaces, Selector),
    /// Addresses of a range, but not of the ranges cut out of it.
    Block(IpNet, Vec<IpNet>, Reach),
    /// Nodes, by their labels.
    Nodes(Selector),
}

/// Whose addresses a range is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reach {
    /// Everybody's.
    All,
    /// Not those of pods that have one of their own.
    Outside,
}

/// Target ports, as a rule describes them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ports {
    /// Any port of any protocol.
    All,
    /// Any port of the protocol.
    Protocol(Protocol),
    /// From the first to the last, both included.
    Range(Protocol, u16, u16),
    /// Whatever the target pod calls so, of this protocol, or of any.
    Named(Option<Protocol>, String),
}

impl Policy {
    /// Reads all policies of a cluster, in the order in which they are asked.
    ///
    /// # Errors
    /// [`Error::Policy`]: a field that Kubernetes would not have accepted.
    pub(super) fn all(cluster: &Cluster) -> Result<Vec<Self>, Error> {
        let reach = match cluster.settings.policies.ip_blocks {
            IpBlocks::Literal => Reach::All,
            IpBlocks::Outside => Reach::Outside,
        };
        let mut policies =
            cluster.cluster_policies.iter().map(Self::of_cluster).collect::<Result<Vec<_>, _>>()?;
        for policy in &cluster.policies {
            policies.push(Self::read(policy, reach)?);
        }
        // Within a tier they are in order already.
        policies.sort_by_key(|policy| policy.tier);
        Ok(policies)
    }

    /// Reads a policy of the whole cluster.
    ///
    /// # Errors
    /// [`Error::Policy`]: a selector that Kubernetes would not have accepted.
    fn of_cluster(policy: &ClusterPolicy) -> Result<Self, Error> {
        let name = format!("{} {}", policy.kind.name(), policy.name);
        let error = |part: &str, why| Error::Policy { policy: name.clone(), part: part.to_owned(), why };
        let tier = match policy.tier {
            model::Tier::Admin => Tier::Admin,
            model::Tier::Baseline => Tier::Baseline,
        };
        let (namespaces, pods) = pods(&policy.subject).map_err(|why| error("subject", why))?;
        let ingress = policy.ingress.iter().map(|rule| (Endpoint::INGRESS, "ingress", rule)).enumerate();
        let egress = policy.egress.iter().map(|rule| (Endpoint::EGRESS, "egress", rule)).enumerate();
        let mut rules = Vec::new();
        for (index, (direction, word, rule)) in ingress.chain(egress) {
            let place = format!("{word}[{index}]");
            let peers = tier_peers(rule).map_err(|why| error(&place, why))?;
            let ports = rule.ports.as_ref().map_or_else(|| vec![Ports::All], |ports| tier_ports(ports));
            let name = RuleName { policy: name.clone(), rule: place };
            rules.push(Rule { name, tier, action: rule.action, direction, peers: Some(peers), ports });
        }
        let judges = rules.iter().fold(0, |bits, rule| bits | rule.direction);
        Ok(Self { name, tier, namespaces, pods, judges, rules })
    }

    /// Reads a NetworkPolicy. Rules in a direction that it does not isolate say nothing, and are left out.
    ///
    /// # Errors
    /// [`Error::Policy`]: a field that Kubernetes would not have accepted.
    fn read(policy: &NetworkPolicy, reach: Reach) -> Result<Self, Error> {
        let namespace = policy.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = format!("{namespace}/{}", policy.metadata.name.as_deref().unwrap_or_default());
        let policy_name = format!("NetworkPolicy {name}");
        let error =
            |part: &str, why| Error::Policy { policy: policy_name.clone(), part: part.to_owned(), why };
        let spec = policy.spec.clone().unwrap_or_default();
        let ingress = spec.ingress.unwrap_or_default();
        let egress = spec.egress.unwrap_or_default();
        let judges = isolates(&spec.policy_types.unwrap_or_default(), !egress.is_empty())
            .map_err(|why| error("policyTypes", why))?;
        let pods = Selector::read(&spec.pod_selector.unwrap_or_default())
            .map_err(|why| error("podSelector", why))?;
        let ingress = ingress.into_iter().map(|rule| (Endpoint::INGRESS, "ingress", rule.from, rule.ports));
        let egress = egress.into_iter().map(|rule| (Endpoint::EGRESS, "egress", rule.to, rule.ports));
        let mut rules = Vec::new();
        for (index, (direction, word, peers, ports)) in ingress.enumerate().chain(egress.enumerate()) {
            let rule = format!("{word}[{index}]");
            let ports = ports_of(&ports.unwrap_or_default()).map_err(|why| error(&rule, why))?;
            let peers = peers_of(&peers.unwrap_or_default(), (&namespace, reach));
            let peers = peers.map_err(|why| error(&rule, why))?;
            if judges & direction != 0 {
                let name = RuleName { policy: name.clone(), rule };
                let (tier, action) = (Tier::Network, Action::Accept);
                rules.push(Rule { name, tier, action, direction, peers, ports });
            }
        }
        let namespaces = Namespaces::Named(namespace);
        Ok(Self { name, tier: Tier::Network, namespaces, pods, judges, rules })
    }
}

/// Where a policy isolates: as it says, or ingress always and egress if it has rules for it.
fn isolates(types: &[String], has_egress: bool) -> Result<u8, String> {
    if types.is_empty() {
        return Ok(Endpoint::INGRESS | if has_egress { Endpoint::EGRESS } else { 0 });
    }
    types.iter().try_fold(0, |bits, word| match word.as_str() {
        "Ingress" => Ok(bits | Endpoint::INGRESS),
        "Egress" => Ok(bits | Endpoint::EGRESS),
        other => Err(format!("{other:?} is neither Ingress nor Egress")),
    })
}

/// Peers of a NetworkPolicy in this namespace, whose blocks reach so far.
fn peers_of(peers: &[NetworkPolicyPeer], place: (&str, Reach)) -> Result<Option<Vec<Peer>>, String> {
    if peers.is_empty() {
        return Ok(None);
    }
    peers.iter().map(|peer| Peer::read(peer, place)).collect::<Result<_, _>>().map(Some)
}

fn pods(peer: &PodPeer) -> Result<(Namespaces, Selector), String> {
    Ok((Namespaces::Labelled(Selector::read(&peer.namespaces)?), Selector::read(&peer.pods)?))
}

/// Peers of a rule of the whole cluster. Networks are literally everybody with an address there.
fn tier_peers(rule: &TierRule) -> Result<Vec<Peer>, String> {
    let mut peers = Vec::new();
    for peer in &rule.peers {
        match peer {
            TierPeer::Pods(peer) => {
                let (namespaces, selector) = pods(peer)?;
                peers.push(Peer::Pods(namespaces, selector));
            }
            TierPeer::Nodes(labels) => peers.push(Peer::Nodes(Selector::read(labels)?)),
            TierPeer::Networks(ranges) => {
                peers.extend(ranges.iter().map(|range| Peer::Block(*range, Vec::new(), Reach::All)));
            }
        }
    }
    Ok(peers)
}

fn tier_ports(ports: &[TierPort]) -> Vec<Ports> {
    let port = |port: &TierPort| match port {
        TierPort::Protocol(protocol) => Ports::Protocol(*protocol),
        TierPort::Range(protocol, first, last) => Ports::Range(*protocol, *first, *last),
        TierPort::Named(name) => Ports::Named(None, name.clone()),
    };
    ports.iter().map(port).collect()
}

impl Peer {
    fn read(peer: &NetworkPolicyPeer, (namespace, reach): (&str, Reach)) -> Result<Self, String> {
        match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), None, None) => {
                let except = block.except.iter().flatten().map(|text| range(text));
                Ok(Self::Block(range(&block.cidr)?, except.collect::<Result<_, _>>()?, reach))
            }
            (Some(_), _, _) => Err("a peer with ipBlock may have no selector".to_owned()),
            (None, None, None) => Err("a peer has neither selector nor ipBlock".to_owned()),
            (None, namespaces, pods) => {
                let namespaces = match namespaces {
                    Some(selector) => Namespaces::Labelled(Selector::read(selector)?),
                    None => Namespaces::Named(namespace.to_owned()),
                };
                let pods = pods.as_ref().map(Selector::read).transpose()?;
                Ok(Self::Pods(namespaces, pods.unwrap_or_default()))
            }
        }
    }
}

fn range(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| format!("{text:?} is not a range of addresses, as 10.0.0.0/8 is"))
}

fn ports_of(ports: &[NetworkPolicyPort]) -> Result<Vec<Ports>, String> {
    if ports.is_empty() {
        return Ok(vec![Ports::All]);
    }
    ports.iter().map(Ports::read).collect()
}

impl Ports {
    fn read(port: &NetworkPolicyPort) -> Result<Self, String> {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => return Err(format!("protocol {other:?} is none of TCP, UDP, SCTP")),
        };
        match (&port.port, port.end_port) {
            (None, None) => Ok(Self::Protocol(protocol)),
            (Some(IntOrString::String(name)), None) => Ok(Self::Named(Some(protocol), name.clone())),
            (Some(IntOrString::Int(first)), last) => {
                let (first, last) = (number(*first)?, number(last.unwrap_or(*first))?);
                if last < first {
                    return Err(format!("endPort {last} is lower than port {first}"));
                }
                Ok(Self::Range(protocol, first, last))
            }
            (_, Some(last)) => Err(format!("endPort {last} needs a port that is a number")),
        }
    }
}

fn number(port: i32) -> Result<u16, String> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("port {port} is not in 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(spec: Value) -> Result<Policy, Error> {
        let object = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec});
        Policy::read(&serde_json::from_value(object).expect("a NetworkPolicy"), Reach::All)
    }
    fn valid(spec: Value) -> Policy {
        read(spec).expect("valid")
    }

    #[test]
    fn without_policy_types_ingress_is_isolated_and_egress_where_it_has_rules() {
        assert_eq!(valid(json!({})).judges, Endpoint::INGRESS);
        assert_eq!(valid(json!({"egress": []})).judges, Endpoint::INGRESS);
        assert_eq!(valid(json!({"egress": [{}]})).judges, Endpoint::INGRESS | Endpoint::EGRESS);
    }

    #[test]
    fn policy_types_say_what_is_isolated_and_other_rules_say_nothing() {
        let policy = valid(json!({"policyTypes": ["Egress"], "ingress": [{}], "egress": [{}]}));
        assert_eq!(policy.judges, Endpoint::EGRESS);
        let names: Vec<_> = policy.rules.iter().map(|rule| rule.name.rule.as_str()).collect();
        assert_eq!(names, ["egress[0]"]);
    }

    #[test]
    fn empty_and_missing_lists_leave_peers_and_ports_open() {
        for rule in [json!({}), json!({"from": [], "ports": []})] {
            let policy = valid(json!({"ingress": [rule]}));
            assert_eq!((&policy.rules[0].peers, &policy.rules[0].ports), (&None, &vec![Ports::All]));
        }
    }

    #[test]
    fn a_port_is_a_protocol_a_number_a_range_or_a_name() {
        let policy = valid(json!({"ingress": [{"ports": [
            {"protocol": "UDP"}, {"port": 80}, {"port": 80, "endPort": 90, "protocol": "SCTP"}, {"port": "web"}
        ]}]}));
        let expected = [
            Ports::Protocol(Protocol::Udp),
            Ports::Range(Protocol::Tcp, 80, 80),
            Ports::Range(Protocol::Sctp, 80, 90),
            Ports::Named(Some(Protocol::Tcp), "web".to_owned()),
        ];
        assert_eq!(policy.rules[0].ports, expected);
    }

    #[test]
    fn a_pod_selector_alone_stays_in_the_policy_s_namespace() {
        let policy = valid(json!({"ingress": [{"from": [{"podSelector": {}}, {"namespaceSelector": {}}]}]}));
        let named = Peer::Pods(Namespaces::Named("a".to_owned()), Selector::default());
        let labelled = Peer::Pods(Namespaces::Labelled(Selector::default()), Selector::default());
        assert_eq!(policy.rules[0].peers, Some(vec![named, labelled]));
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused_with_its_place_and_reason() {
        let cases = [
            (json!({"policyTypes": ["Sideways"]}), "policyTypes", "Sideways"),
            (json!({"ingress": [{"from": [{}]}]}), "ingress[0]", "neither selector nor ipBlock"),
            (
                json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]}),
                "ingress[0]",
                "no selector",
            ),
            (json!({"egress": [{}, {"to": [{"ipBlock": {"cidr": "ten"}}]}]}), "egress[1]", "\"ten\""),
            (json!({"ingress": [{"ports": [{"port": 0}]}]}), "ingress[0]", "1 to 65535"),
            (json!({"ingress": [{"ports": [{"port": 9, "endPort": 8}]}]}), "ingress[0]", "lower"),
            (json!({"ingress": [{"ports": [{"port": "web", "endPort": 8}]}]}), "ingress[0]", "needs a port"),
            (json!({"ingress": [{"ports": [{"endPort": 8}]}]}), "ingress[0]", "needs a port"),
            (json!({"ingress": [{"ports": [{"protocol": "ICMP"}]}]}), "ingress[0]", "ICMP"),
        ];
        for (spec, part, why) in cases {
            let message = read(spec).expect_err("invalid").to_string();
            assert!(message.contains("a/p") && message.contains(part) && message.contains(why), "{message}");
        }
    }
}
