//! NetworkPolicies: what one of them allows has the mark, and the rest is refused.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{IpBlocks, Pod};

use super::{Asked, Direction, Side, allow, has};
use crate::dataplane::chains::ruleset::{Rule, Table, Then};
use crate::dataplane::chains::services::hashed;

impl<'a> Side<'a> {
    /// Those that isolate the pod.
    pub(super) fn network_policies(self) -> Vec<&'a NetworkPolicy> {
        let policies = self.cluster.policies.iter();
        policies.filter(|policy| selects(policy, self.pod, self.direction)).collect()
    }

    /// Rules that mark what these policies allow.
    pub(super) fn allow(self, filter: &mut Table, chain: &str, policies: &[&NetworkPolicy]) {
        for policy in policies {
            for (place, (ports, peers)) in rules(policy, self.direction).into_iter().enumerate() {
                let allow = Allow { side: self, policy, place, ports, chain };
                match peers {
                    None => allow.anyone(filter),
                    Some(peers) => peers.iter().for_each(|peer| allow.peer(filter, peer)),
                }
            }
        }
    }
}

/// One rule of a policy, for one pod it selects.
struct Allow<'a> {
    side: Side<'a>,
    policy: &'a NetworkPolicy,
    /// The rule's, from 0.
    place: usize,
    /// None: all.
    ports: Option<&'a [NetworkPolicyPort]>,
    /// The pod's chain.
    chain: &'a str,
}

impl Allow<'_> {
    fn anyone(&self, filter: &mut Table) {
        // A named port means another number at each receiver.
        if self.side.direction == Direction::Egress {
            for (peer, address) in self.side.others() {
                self.append(filter, self.chain, Some(address.into()), &self.named_ports(peer));
            }
        }
        self.append(filter, self.chain, None, &self.ports_of(None));
    }

    fn peer(&self, filter: &mut Table, peer: &NetworkPolicyPeer) {
        if let Some(block) = &peer.ip_block {
            return self.block(filter, block);
        }
        for (other, address) in self.side.others().filter(|(other, _)| self.is_peer(peer, other)) {
            self.append(filter, self.chain, Some(address.into()), &self.ports_of(Some(other)));
        }
    }

    /// An ipBlock's exceptions are a chain of its own, which they leave before anything is allowed. So do pods, where
    /// blocks are not about them. Of those in it only pods are known by name, so a port's name is theirs.
    fn block(&self, filter: &mut Table, block: &IPBlock) {
        let own = |text: &str| self.side.own(text.parse().ok()?);
        let Some(range) = own(&block.cidr) else { return };
        let mut except: Vec<IpNet> = block.except.iter().flatten().filter_map(|text| own(text)).collect();
        if self.side.cluster.settings.policies.ip_blocks == IpBlocks::Outside {
            let inside = self.side.others().filter(|(_, address)| range.contains(address));
            except.extend(inside.map(|(_, address)| IpNet::from(address)));
        }
        for (other, address) in self.side.others().filter(|_| self.side.receiver(None).is_none()) {
            if range.contains(&address) && !except.iter().any(|range| range.contains(&address)) {
                self.append(filter, self.chain, Some(address.into()), &self.named_ports(other));
            }
        }
        let ports = self.ports_of(None);
        if except.is_empty() {
            return self.append(filter, self.chain, Some(range), &ports);
        }
        let whom = format!("{} {} {} {block:?}", self.chain, policy_id(self.policy), self.place);
        let inside = format!("BLOCK-{}", hashed(&whom));
        if !filter.chains.contains_key(&inside) {
            for range in except {
                filter.append(&inside, self.side.at(range, Rule::then(Then::Return)));
            }
            self.append(filter, &inside, None, &ports);
        }
        let jump = self.side.at(range, Rule::jump(&inside));
        filter.append(self.chain, jump.comment(policy_id(self.policy)));
    }

    fn is_peer(&self, peer: &NetworkPolicyPeer, other: &Pod) -> bool {
        let at_home = other.namespace == namespace(self.policy);
        let wanted = peer.namespace_selector.as_ref();
        let namespace = wanted.map_or(at_home, |wanted| self.side.namespace_is(wanted, other));
        namespace && peer.pod_selector.as_ref().is_none_or(|wanted| has(wanted, &other.labels))
    }

    /// What the rule says of protocol and port, one per rule to write. Names are those of the receiver:
    /// the selected pod, or `other`.
    fn ports_of(&self, other: Option<&Pod>) -> Vec<Option<Asked>> {
        let Some(ports) = self.ports else { return vec![None] };
        let named = self.side.receiver(other).map(|pod| self.named_ports(pod)).unwrap_or_default();
        ports.iter().filter_map(numbered).map(Some).chain(named).collect()
    }

    fn named_ports(&self, receiver: &Pod) -> Vec<Option<Asked>> {
        let mut found = Vec::new();
        for port in self.ports.unwrap_or_default() {
            let Some(IntOrString::String(wanted)) = &port.port else { continue };
            let protocol = protocol(port);
            let meant = receiver.ports.iter().filter(|own| own.name.as_ref() == Some(wanted));
            let meant = meant.filter(|own| Some(own.protocol.number()) == protocol);
            found.extend(meant.map(|own| Some(Asked::of(own.protocol, own.port, own.port))));
        }
        found
    }

    fn append(&self, filter: &mut Table, chain: &str, peer: Option<IpNet>, ports: &[Option<Asked>]) {
        for port in ports {
            let rule = Asked::narrow(*port, allow()).comment(policy_id(self.policy));
            filter.append(chain, peer.map_or(rule.clone(), |range| self.side.at(range, rule)));
        }
    }
}

/// A port by number, a range, or a protocol alone. None if it is a name.
fn numbered(port: &NetworkPolicyPort) -> Option<Asked> {
    let protocol = protocol(port)?;
    match port.port {
        None => Some(Asked(protocol, None)),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(first).ok()?;
            let last = port.end_port.map_or(Some(first), |last| u16::try_from(last).ok())?;
            Some(Asked(protocol, Some((first, last))))
        }
        Some(IntOrString::String(_)) => None,
    }
}

fn protocol(port: &NetworkPolicyPort) -> Option<u8> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        Some("SCTP") => Some(132),
        Some(_) => None,
    }
}

/// Ports and peers of one rule; none: all.
type Clause<'a> = (Option<&'a [NetworkPolicyPort]>, Option<&'a [NetworkPolicyPeer]>);

fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<Clause<'_>> {
    fn some<T>(list: &Option<Vec<T>>) -> Option<&[T]> {
        list.as_deref().filter(|list| !list.is_empty())
    }
    let Some(spec) = &policy.spec else { return Vec::new() };
    match direction {
        Direction::Ingress => {
            spec.ingress.iter().flatten().map(|rule| (some(&rule.ports), some(&rule.from))).collect()
        }
        Direction::Egress => {
            spec.egress.iter().flatten().map(|rule| (some(&rule.ports), some(&rule.to))).collect()
        }
    }
}

/// Whether the policy isolates the pod in this direction.
fn selects(policy: &NetworkPolicy, pod: &Pod, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let isolates = match (&spec.policy_types, direction) {
        (Some(types), Direction::Ingress) if !types.is_empty() => types.iter().any(|kind| kind == "Ingress"),
        (Some(types), Direction::Egress) if !types.is_empty() => types.iter().any(|kind| kind == "Egress"),
        (_, Direction::Ingress) => true,
        (_, Direction::Egress) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    };
    isolates
        && namespace(policy) == pod.namespace
        && spec.pod_selector.as_ref().is_none_or(|wanted| has(wanted, &pod.labels))
}

fn namespace(policy: &NetworkPolicy) -> &str {
    policy.metadata.namespace.as_deref().unwrap_or("default")
}

fn policy_id(policy: &NetworkPolicy) -> String {
    format!("{}/{}", namespace(policy), policy.metadata.name.as_deref().unwrap_or_default())
}
