//! What NetworkPolicies say, read into rules.
//!
//! Source: Kubernetes API reference, NetworkPolicy v1.

use dataplane::tables::Endpoint;
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::selector::{Namespaces, Selector};
use super::{Error, RuleName};
use crate::model::Protocol;

/// A NetworkPolicy.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// `namespace/name`.
    pub(super) name: String,
    /// Where the pods are that it may select.
    pub(super) namespaces: Namespaces,
    /// Which of them it selects.
    pub(super) pods: Selector,
    /// Bits [`Endpoint::INGRESS`] and [`Endpoint::EGRESS`]: where it isolates them.
    pub(super) isolates: u8,
    /// What it allows in these directions.
    pub(super) rules: Vec<Rule>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) name: RuleName,
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
    Block(IpNet, Vec<IpNet>),
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
    /// Whatever the target pod calls so.
    Named(Protocol, String),
}

impl Policy {
    /// Reads a policy. Rules in a direction that it does not isolate say nothing, and are left out.
    ///
    /// # Errors
    /// [`Error::Policy`]: a field that Kubernetes would not have accepted.
    pub(super) fn read(policy: &NetworkPolicy) -> Result<Self, Error> {
        let namespace = policy.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = format!("{namespace}/{}", policy.metadata.name.as_deref().unwrap_or_default());
        let error = |part: &str, why| Error::Policy { policy: name.clone(), part: part.to_owned(), why };
        let spec = policy.spec.clone().unwrap_or_default();
        let ingress = spec.ingress.unwrap_or_default();
        let egress = spec.egress.unwrap_or_default();
        let isolates = isolates(&spec.policy_types.unwrap_or_default(), !egress.is_empty())
            .map_err(|why| error("policyTypes", why))?;
        let pods = Selector::read(&spec.pod_selector.unwrap_or_default())
            .map_err(|why| error("podSelector", why))?;
        let ingress = ingress.into_iter().map(|rule| (Endpoint::INGRESS, "ingress", rule.from, rule.ports));
        let egress = egress.into_iter().map(|rule| (Endpoint::EGRESS, "egress", rule.to, rule.ports));
        let mut rules = Vec::new();
        for (index, (direction, word, peers, ports)) in ingress.enumerate().chain(egress.enumerate()) {
            let rule = format!("{word}[{index}]");
            let ports = ports_of(&ports.unwrap_or_default()).map_err(|why| error(&rule, why))?;
            let peers = peers_of(&peers.unwrap_or_default(), &namespace).map_err(|why| error(&rule, why))?;
            if isolates & direction != 0 {
                let name = RuleName { policy: name.clone(), rule };
                rules.push(Rule { name, direction, peers, ports });
            }
        }
        Ok(Self { name, namespaces: Namespaces::Named(namespace), pods, isolates, rules })
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

fn peers_of(peers: &[NetworkPolicyPeer], namespace: &str) -> Result<Option<Vec<Peer>>, String> {
    if peers.is_empty() {
        return Ok(None);
    }
    peers.iter().map(|peer| Peer::read(peer, namespace)).collect::<Result<_, _>>().map(Some)
}

impl Peer {
    fn read(peer: &NetworkPolicyPeer, namespace: &str) -> Result<Self, String> {
        match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), None, None) => {
                let except = block.except.iter().flatten().map(|text| range(text));
                Ok(Self::Block(range(&block.cidr)?, except.collect::<Result<_, _>>()?))
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
            (Some(IntOrString::String(name)), None) => Ok(Self::Named(protocol, name.clone())),
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
        Policy::read(&serde_json::from_value(object).expect("a NetworkPolicy"))
    }
    fn valid(spec: Value) -> Policy {
        read(spec).expect("valid")
    }

    #[test]
    fn without_policy_types_ingress_is_isolated_and_egress_where_it_has_rules() {
        assert_eq!(valid(json!({})).isolates, Endpoint::INGRESS);
        assert_eq!(valid(json!({"egress": []})).isolates, Endpoint::INGRESS);
        assert_eq!(valid(json!({"egress": [{}]})).isolates, Endpoint::INGRESS | Endpoint::EGRESS);
    }

    #[test]
    fn policy_types_say_what_is_isolated_and_other_rules_say_nothing() {
        let policy = valid(json!({"policyTypes": ["Egress"], "ingress": [{}], "egress": [{}]}));
        assert_eq!(policy.isolates, Endpoint::EGRESS);
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
            Ports::Named(Protocol::Tcp, "web".to_owned()),
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
