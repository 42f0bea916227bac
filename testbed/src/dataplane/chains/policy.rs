//! NetworkPolicies as filter chains, one for each pod and direction that a policy selects.
//!
//! ```text
//! FORWARD, OUTPUT, INPUT -> POD-EGRESS  (by -i) -> FROM-… of the sender
//!                        -> POD-INGRESS (by -o) -> TO-…   of the receiver
//! ```
//! A pod's chain allows by writing a mark and returning, because the other end's chain has to agree too;
//! its last rule refuses. Peers are written out, one rule per address and port, as engines without sets
//! do.
//!
//! Source: Kubernetes API reference, NetworkPolicy v1.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{Cluster, Labels, Pod};

use super::conntrack::State;
use super::kube::{self, hashed};
use super::plan::{Error, v4};
use super::rules::{ChainId, Link, Match, Rule, Table, Target};

/// Written on a packet that a pod's chain allows.
const ALLOWED: u32 = 0x1_0000;

/// Seen from the pod that a policy selects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// The filter table of a node.
///
/// # Errors
/// [`Error::Family`], [`Error::Policy`].
pub(super) fn filter(cluster: &Cluster, node: &str) -> Result<Table, Error> {
    let mut filter = Table::new("filter");
    let rejects = kube::reject_without_endpoints(&mut filter, cluster)?;
    let (egress, ingress) = (filter.chain("POD-EGRESS"), filter.chain("POD-INGRESS"));
    for hook in ["INPUT", "FORWARD", "OUTPUT"] {
        let hook = filter.chain(hook);
        let known = Match::State(vec![State::Related, State::Established]);
        filter.append(hook, Rule::new([known], Target::Accept));
        filter.append(hook, Rule::new([Match::State(vec![State::Invalid])], Target::Drop));
        for next in [rejects, egress, ingress] {
            filter.append(hook, Rule::new([], Target::Jump(next)));
        }
    }
    // A node reaches its own pods, whatever policies say: it has to probe them.
    filter.append(ingress, Rule::new([Match::From(Link::Host)], Target::Return));
    for pod in cluster.pods.iter().filter(|pod| pod.node == node && !pod.host_network) {
        let link = Link::Pod(v4(pod.address(), || format!("pod {}", pod.id()))?);
        for (direction, dispatch, condition) in
            [(Direction::Egress, egress, Match::From(link)), (Direction::Ingress, ingress, Match::To(link))]
        {
            if let Some(chain) = pod_chain(&mut filter, cluster, pod, direction)? {
                let rule = Rule::new([condition], Target::Jump(chain));
                filter.append(dispatch, rule.comment(pod.id()));
            }
        }
    }
    Ok(filter)
}

/// The chain of a pod and direction, if any policy selects it.
fn pod_chain(
    filter: &mut Table,
    cluster: &Cluster,
    pod: &Pod,
    direction: Direction,
) -> Result<Option<ChainId>, Error> {
    let selecting: Vec<&NetworkPolicy> =
        cluster.policies.iter().filter(|policy| selects(policy, pod, direction)).collect();
    if selecting.is_empty() {
        return Ok(None);
    }
    let word = if direction == Direction::Egress { "FROM" } else { "TO" };
    let chain = filter.chain(&format!("{word}-{}", hashed(&pod.id())));
    filter.append(chain, Rule::new([], Target::Mark { value: 0, mask: ALLOWED }));
    for policy in selecting {
        for (ports, peers) in rules(policy, direction) {
            let allow = Allow { cluster, policy, pod, direction, ports };
            match peers {
                None => allow.anyone(filter, chain),
                Some(peers) => peers.iter().try_for_each(|peer| allow.peer(filter, chain, peer))?,
            }
        }
    }
    let allowed = Match::Mark { value: ALLOWED, mask: ALLOWED };
    filter.append(chain, Rule::new([allowed], Target::Return));
    filter.append(chain, Rule::new([], Target::Drop).comment(format!("{} is isolated", pod.id())));
    Ok(Some(chain))
}

/// One rule of a policy, for one pod it selects.
struct Allow<'a> {
    cluster: &'a Cluster,
    policy: &'a NetworkPolicy,
    pod: &'a Pod,
    direction: Direction,
    /// None: all.
    ports: Option<&'a [NetworkPolicyPort]>,
}

impl Allow<'_> {
    fn anyone(&self, filter: &mut Table, chain: ChainId) {
        // A named port means another number at each receiver.
        if self.direction == Direction::Egress {
            for peer in self.cluster.pods.iter() {
                if let IpAddr::V4(address) = peer.address() {
                    let named = self.named_ports(peer);
                    self.append(filter, chain, Some(Match::target(address)), named);
                }
            }
        }
        let ports = self.ports_of(None);
        self.append(filter, chain, None, ports);
    }

    fn peer(&self, filter: &mut Table, chain: ChainId, peer: &NetworkPolicyPeer) -> Result<(), Error> {
        if let Some(block) = &peer.ip_block {
            return self.block(filter, chain, block);
        }
        for other in self.cluster.pods.iter().filter(|other| !other.host_network) {
            if !self.is_peer(peer, other) {
                continue;
            }
            let address = v4(other.address(), || format!("pod {}", other.id()))?;
            let ports = self.ports_of(Some(other));
            self.append(filter, chain, Some(self.at(address.into())), ports);
        }
        Ok(())
    }

    /// An ipBlock's exceptions are a chain of its own, which they leave before anything is allowed.
    fn block(&self, filter: &mut Table, chain: ChainId, block: &IPBlock) -> Result<(), Error> {
        let range = self.range(&block.cidr)?;
        let Some(except) = block.except.as_ref().filter(|except| !except.is_empty()) else {
            let ports = self.ports_of(None);
            self.append(filter, chain, Some(self.at(range)), ports);
            return Ok(());
        };
        let inside =
            filter.chain(&format!("BLOCK-{}", hashed(&format!("{chain:?} {block:?} {:?}", self.ports))));
        for range in except {
            let range = self.range(range)?;
            filter.append(inside, Rule::new([self.at(range)], Target::Return));
        }
        let ports = self.ports_of(None);
        self.append(filter, inside, None, ports);
        filter
            .append(chain, Rule::new([self.at(range)], Target::Jump(inside)).comment(policy_id(self.policy)));
        Ok(())
    }

    fn range(&self, cidr: &str) -> Result<Ipv4Net, Error> {
        cidr.parse().map_err(|_| Error::Policy { policy: policy_id(self.policy), cidr: cidr.to_owned() })
    }

    fn is_peer(&self, peer: &NetworkPolicyPeer, other: &Pod) -> bool {
        let at_home = other.namespace == namespace(self.policy);
        let nothing = Labels::new();
        let there = self.cluster.namespaces.get(&other.namespace).unwrap_or(&nothing);
        let namespace = peer.namespace_selector.as_ref().map_or(at_home, |wanted| has(wanted, there));
        namespace && peer.pod_selector.as_ref().is_none_or(|wanted| has(wanted, &other.labels))
    }

    /// The other end is in this range.
    fn at(&self, range: Ipv4Net) -> Match {
        match self.direction {
            Direction::Ingress => Match::Source(range),
            Direction::Egress => Match::Target(range),
        }
    }

    /// What the rule says of protocol and port, one per rule to write. Names are those of the receiver:
    /// the selected pod, or `other`.
    fn ports_of(&self, other: Option<&Pod>) -> Vec<Vec<Match>> {
        let Some(ports) = self.ports else { return vec![Vec::new()] };
        let receiver = if self.direction == Direction::Ingress { Some(self.pod) } else { other };
        let named = receiver.map(|pod| self.named_ports(pod)).unwrap_or_default();
        ports.iter().filter_map(numbered).chain(named).collect()
    }

    fn named_ports(&self, receiver: &Pod) -> Vec<Vec<Match>> {
        let mut found = Vec::new();
        for port in self.ports.unwrap_or_default() {
            let Some(IntOrString::String(wanted)) = &port.port else { continue };
            let protocol = protocol(port);
            let meant = receiver.ports.iter().filter(|own| own.name.as_ref() == Some(wanted));
            found.extend(meant.filter(|own| Some(own.protocol.number()) == protocol).map(|own| {
                vec![Match::Protocol(own.protocol.number()), Match::TargetPort(own.port..=own.port)]
            }));
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

/// Whether these labels are what the selector wants.
fn has(wanted: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = wanted.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && wanted.match_expressions.iter().flatten().all(|expression| {
            let (own, values) =
                (labels.get(&expression.key), expression.values.as_deref().unwrap_or_default());
            match expression.operator.as_str() {
                "In" => own.is_some_and(|own| values.contains(own)),
                "NotIn" => own.is_none_or(|own| !values.contains(own)),
                "Exists" => own.is_some(),
                "DoesNotExist" => own.is_none(),
                _ => false,
            }
        })
}

fn namespace(policy: &NetworkPolicy) -> &str {
    policy.metadata.namespace.as_deref().unwrap_or("default")
}

fn policy_id(policy: &NetworkPolicy) -> String {
    format!("{}/{}", namespace(policy), policy.metadata.name.as_deref().unwrap_or_default())
}

/// The raw table: packets that lie about where they come from.
///
/// # Errors
/// [`Error::Family`].
pub(super) fn raw(cluster: &Cluster, node: &str, pods: Ipv4Net) -> Result<Table, Error> {
    let mut raw = Table::new("raw");
    let hook = raw.chain("PREROUTING");
    for pod in cluster.pods.iter().filter(|pod| pod.node == node && !pod.host_network) {
        let address = v4(pod.address(), || format!("pod {}", pod.id()))?;
        let own = Ipv4Net::from(address);
        let rule = Rule::new([Match::From(Link::Pod(address)), Match::SourceNot(own)], Target::Drop);
        raw.append(hook, rule.comment(format!("not an address of {}", pod.id())));
    }
    let uplink = || Match::From(Link::Uplink);
    raw.append(
        hook,
        Rule::new([uplink(), Match::Source(pods)], Target::Drop).comment("a pod outside the tunnel"),
    );
    for other in &cluster.nodes {
        let address: Ipv4Addr = v4(other.address(), || format!("node {}", other.name))?;
        let matches = [uplink(), Match::source(address), Match::Target(pods)];
        raw.append(hook, Rule::new(matches, Target::Drop).comment("a node outside the tunnel"));
    }
    Ok(raw)
}
