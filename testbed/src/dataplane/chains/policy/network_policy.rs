//! NetworkPolicies: what one of them allows has the mark, and the rest is refused.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{IpBlocks, Pod};

use super::{ALLOWED, Direction, Side, has, v4_range};
use crate::dataplane::chains::kube::hashed;
use crate::dataplane::chains::plan::Error;
use crate::dataplane::chains::rules::{ChainId, Match, Rule, Table, Target};

impl<'a> Side<'a> {
    /// Those that isolate the pod.
    pub(super) fn network_policies(self) -> Vec<&'a NetworkPolicy> {
        let policies = self.cluster.policies.iter();
        policies.filter(|policy| selects(policy, self.pod, self.direction)).collect()
    }

    /// Rules that mark what these policies allow.
    pub(super) fn allow(
        self,
        filter: &mut Table,
        chain: ChainId,
        policies: &[&NetworkPolicy],
    ) -> Result<(), Error> {
        for policy in policies {
            for (ports, peers) in rules(policy, self.direction) {
                let allow = Allow { side: self, policy, ports };
                match peers {
                    None => allow.anyone(filter, chain)?,
                    Some(peers) => peers.iter().try_for_each(|peer| allow.peer(filter, chain, peer))?,
                }
            }
        }
        Ok(())
    }
}

/// One rule of a policy, for one pod it selects.
struct Allow<'a> {
    side: Side<'a>,
    policy: &'a NetworkPolicy,
    /// None: all.
    ports: Option<&'a [NetworkPolicyPort]>,
}

impl Allow<'_> {
    fn anyone(&self, filter: &mut Table, chain: ChainId) -> Result<(), Error> {
        // A named port means another number at each receiver.
        if self.side.direction == Direction::Egress {
            for other in self.side.others() {
                let (peer, address) = other?;
                let named = self.named_ports(peer);
                self.append(filter, chain, Some(Match::target(address)), named);
            }
        }
        let ports = self.ports_of(None);
        self.append(filter, chain, None, ports);
        Ok(())
    }

    fn peer(&self, filter: &mut Table, chain: ChainId, peer: &NetworkPolicyPeer) -> Result<(), Error> {
        if let Some(block) = &peer.ip_block {
            return self.block(filter, chain, block);
        }
        for other in self.side.others() {
            let (other, address) = other?;
            if self.is_peer(peer, other) {
                let ports = self.ports_of(Some(other));
                self.append(filter, chain, Some(self.side.at(address.into())), ports);
            }
        }
        Ok(())
    }

    /// An ipBlock's exceptions are a chain of its own, which they leave before anything is allowed. So do pods, where
    /// blocks are not about them. Of those in it only pods are known by name, so a port's name is theirs.
    fn block(&self, filter: &mut Table, chain: ChainId, block: &IPBlock) -> Result<(), Error> {
        let Some(range) = range(&block.cidr) else { return Ok(()) };
        let mut except: Vec<Ipv4Net> =
            block.except.iter().flatten().filter_map(|text| self::range(text)).collect();
        for other in self.side.others() {
            let address: Ipv4Addr = other?.1;
            let about_others = self.side.cluster.settings.policies.ip_blocks == IpBlocks::Outside;
            if about_others && range.contains(&address) {
                except.push(address.into());
            }
        }
        for other in self.side.others().filter(|_| self.side.receiver(None).is_none()) {
            let (other, address) = other?;
            if range.contains(&address) && !except.iter().any(|range| range.contains(&address)) {
                self.append(filter, chain, Some(self.side.at(address.into())), self.named_ports(other));
            }
        }
        let ports = self.ports_of(None);
        if except.is_empty() {
            self.append(filter, chain, Some(self.side.at(range)), ports);
            return Ok(());
        }
        let inside =
            filter.chain(&format!("BLOCK-{}", hashed(&format!("{chain:?} {block:?} {:?}", self.ports))));
        for range in except {
            filter.append(inside, Rule::new([self.side.at(range)], Target::Return));
        }
        self.append(filter, inside, None, ports);
        let jump = Rule::new([self.side.at(range)], Target::Jump(inside));
        filter.append(chain, jump.comment(policy_id(self.policy)));
        Ok(())
    }

    fn is_peer(&self, peer: &NetworkPolicyPeer, other: &Pod) -> bool {
        let at_home = other.namespace == namespace(self.policy);
        let wanted = peer.namespace_selector.as_ref();
        let namespace = wanted.map_or(at_home, |wanted| self.side.namespace_is(wanted, other));
        namespace && peer.pod_selector.as_ref().is_none_or(|wanted| has(wanted, &other.labels))
    }

    /// What the rule says of protocol and port, one per rule to write. Names are those of the receiver:
    /// the selected pod, or `other`.
    fn ports_of(&self, other: Option<&Pod>) -> Vec<Vec<Match>> {
        let Some(ports) = self.ports else { return vec![Vec::new()] };
        let named = self.side.receiver(other).map(|pod| self.named_ports(pod)).unwrap_or_default();
        ports.iter().filter_map(numbered).chain(named).collect()
    }

    fn named_ports(&self, receiver: &Pod) -> Vec<Vec<Match>> {
        let mut found = Vec::new();
        for port in self.ports.unwrap_or_default() {
            let Some(IntOrString::String(wanted)) = &port.port else { continue };
            let protocol = protocol(port);
            let meant = receiver.ports.iter().filter(|own| own.name.as_ref() == Some(wanted));
            let meant = meant.filter(|own| Some(own.protocol.number()) == protocol);
            found.extend(meant.map(|own| super::ports(own.protocol, own.port, own.port)));
        }
        found
    }

    fn append(&self, filter: &mut Table, chain: ChainId, peer: Option<Match>, ports: Vec<Vec<Match>>) {
        for port in ports {
            let matches: Vec<Match> = peer.clone().into_iter().chain(port).collect();
            let allow = Rule::new(matches, Target::Mark { value: ALLOWED, mask: ALLOWED });
            filter.append(chain, allow.comment(policy_id(self.policy)));
        }
    }
}

/// A block's range, if it is of addresses that packets here can have.
fn range(cidr: &str) -> Option<Ipv4Net> {
    v4_range(cidr.parse().ok()?)
}

/// A port by number, a range, or a protocol alone. None if it is a name.
fn numbered(port: &NetworkPolicyPort) -> Option<Vec<Match>> {
    let protocol = Match::Protocol(protocol(port)?);
    match port.port {
        None => Some(vec![protocol]),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(first).ok()?;
            let last = port.end_port.map_or(Some(first), |last| u16::try_from(last).ok())?;
            Some(vec![protocol, Match::TargetPort(first..=last)])
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
