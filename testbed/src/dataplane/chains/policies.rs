//! Policies as filter chains, one for each pod and direction that a policy is about.
//!
//! ```text
//! FORWARD -> KUBE-FORWARD: what was judged before
//! FORWARD, INPUT -> POD-EGRESS  (by -i) -> FROM-… of the sender
//! FORWARD        -> POD-INGRESS (by -o) -> TO-…   of the receiver
//!
//! FROM-…, TO-…: -> ADMIN-…, then what NetworkPolicies allow and DROP, or where there are none -> BASELINE-…
//! ```
//! A pod's chain allows by writing a mark and returning, because the other end's chain has to agree too. A node's own
//! packets come by OUTPUT, where no policy is asked: a node has to probe its pods. Peers are written out, one rule
//! per address and port, as engines without sets do. Where a pod is audited, LOG stands in the place of DROP; a kernel
//! prints that outside of its first network namespace only with `net.netfilter.nf_log_all_netns=1`.
//!
//! Source: Kubernetes API reference, NetworkPolicy v1; network-policy-api, ClusterNetworkPolicy v1alpha2.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use userspace::model::{Cluster, Established, Model, Node, Pod, Protocol, Tier};

use super::Family;
use super::ruleset::{Match, Rule, Ruleset, States, Table, TableName, Then, is};
use super::services::{PODS, hashed};
use crate::topology::{UPLINK, host_side};

mod network_policy;
mod tier;

/// Written on a packet that a pod's chain allows.
const ALLOWED: u32 = 0x1_0000;

/// As in the IP header.
const UDP: u8 = 17;

/// What lines about audited packets begin with, in the kernel's log.
const AUDIT: &str = "podpath audit: ";

/// Seen from the pod that a policy selects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// Writes what is asked first: whether the packet lies about where it comes from, and whether it was judged before.
pub(super) fn write_first(rules: &mut Ruleset, cluster: &Cluster, node: &Node) {
    let family = rules.family;
    raw(rules.table(TableName::Raw), cluster, node, family);
    let filter = rules.table(TableName::Filter);
    let invalid = || Rule::then(Then::Drop).when(Match::State(is(States::INVALID)));
    for hook in ["INPUT", "FORWARD"] {
        filter.append(hook, Rule::jump("KUBE-FORWARD").comment("kubernetes forwarding rules"));
    }
    for known in judged_already(cluster) {
        filter.append("KUBE-FORWARD", known);
    }
    filter.append("KUBE-FORWARD", invalid());
}

/// Writes what policies say.
pub(super) fn write(rules: &mut Ruleset, cluster: &Cluster, node: &Node) {
    let family = rules.family;
    let filter = rules.table(TableName::Filter);
    for hook in ["INPUT", "FORWARD"] {
        filter.append(hook, Rule::jump("POD-EGRESS").from(PODS));
    }
    filter.append("FORWARD", Rule::jump("POD-INGRESS").to(PODS));
    for chain in ["POD-EGRESS", "POD-INGRESS"] {
        filter.declare(chain);
    }
    for pod in cluster.pods.iter().filter(|pod| pod.node == node.name && !pod.host_network) {
        let link = host_side(pod);
        for direction in [Direction::Egress, Direction::Ingress] {
            let side = Side { cluster, pod, direction, family };
            if let Some(chain) = side.chain(filter) {
                let rule = Rule::jump(&chain).comment(pod.id());
                match direction {
                    Direction::Egress => filter.append("POD-EGRESS", rule.from(&link)),
                    Direction::Ingress => filter.append("POD-INGRESS", rule.to(&link)),
                }
            }
        }
    }
}

/// Packets that policies are not asked about: those of connections that they let through, or only the answers
/// among them, where a connection ends with what allowed it.
fn judged_already(cluster: &Cluster) -> Vec<Rule> {
    let state = |state| Rule::then(Then::Accept).when(Match::State(is(state)));
    match cluster.settings.policies.established {
        Established::Keep => vec![state(States::RELATED.or(States::ESTABLISHED))],
        Established::Cut => {
            vec![state(States::RELATED), state(States::ESTABLISHED).when(Match::Reply(true))]
        }
    }
}

/// A pod in a direction: whose chain is written.
#[derive(Clone, Copy)]
struct Side<'a> {
    cluster: &'a Cluster,
    pod: &'a Pod,
    direction: Direction,
    family: Family,
}

impl<'a> Side<'a> {
    /// The pod's chain, if any policy is about it.
    fn chain(self, filter: &mut Table) -> Option<String> {
        let selecting = self.network_policies();
        let admin = self.tier_chain(filter, Tier::Admin);
        let baseline = if selecting.is_empty() { self.tier_chain(filter, Tier::Baseline) } else { None };
        if selecting.is_empty() && admin.is_none() && baseline.is_none() {
            return None;
        }
        let word = if self.direction == Direction::Egress { "FROM" } else { "TO" };
        let chain = format!("{word}-{}", hashed(&self.pod.id()));
        filter.append(&chain, Rule::then(Then::Mark(0, ALLOWED)));
        if let Some(admin) = admin {
            filter.append(&chain, Rule::jump(&admin));
            filter.append(&chain, Rule::then(Then::Return).when(allowed()));
        }
        if let Some(baseline) = baseline {
            filter.append(&chain, Rule::jump(&baseline));
        }
        if !selecting.is_empty() {
            self.allow(filter, &chain, &selecting);
            filter.append(&chain, Rule::then(Then::Return).when(allowed()));
            let isolated =
                Rule::then(if self.is_audited() { Then::Log(AUDIT.to_owned()) } else { Then::Drop });
            filter.append(&chain, isolated.comment(format!("{} is isolated", self.pod.id())));
        }
        Some(chain)
    }

    /// What its policies would deny passes.
    fn is_audited(self) -> bool {
        self.cluster.audits(&self.pod.namespace)
    }

    /// The same rule, where the other end is in this range.
    fn at(self, range: IpNet, rule: Rule) -> Rule {
        match self.direction {
            Direction::Ingress => rule.source(range),
            Direction::Egress => rule.target(range),
        }
    }

    /// The pod that a flow goes to, whose ports have names, where the other end is `other`.
    fn receiver(self, other: Option<&'a Pod>) -> Option<&'a Pod> {
        if self.direction == Direction::Ingress { Some(self.pod) } else { other }
    }

    /// Every other end that is a pod with an address of its own in this family, and the address.
    fn others(self) -> impl Iterator<Item = (&'a Pod, IpAddr)> {
        let pods = self.cluster.pods.iter().filter(|pod| !pod.host_network);
        pods.filter_map(move |pod| Some((pod, address(pod, self.family)?)))
    }

    /// A range, if packets here can have such addresses.
    fn own(self, range: IpNet) -> Option<IpNet> {
        (Family::of_range(range) == self.family).then_some(range)
    }

    fn namespace_is(self, wanted: &LabelSelector, pod: &Pod) -> bool {
        match self.cluster.namespaces.get(&pod.namespace) {
            Some(labels) => has(wanted, labels),
            None => has(wanted, &BTreeMap::new()),
        }
    }
}

/// The pod's address of the family.
fn address(pod: &Pod, family: Family) -> Option<IpAddr> {
    pod.addresses.iter().copied().find(|address| Family::of(*address) == family)
}

/// The packet has the mark.
fn allowed() -> Match {
    Match::Mark(is((ALLOWED, ALLOWED)))
}

/// The rule that gives it the mark.
fn allow() -> Rule {
    Rule::then(Then::Mark(ALLOWED, ALLOWED))
}

/// What a rule says of protocol and port: a protocol, and ports of it side by side if not all.
#[derive(Clone, Copy)]
struct Asked(u8, Option<(u16, u16)>);

impl Asked {
    fn of(protocol: Protocol, first: u16, last: u16) -> Self {
        Self(protocol.number(), Some((first, last)))
    }

    /// The same rule, for this alone; for anything, if it says nothing.
    fn narrow(asked: Option<Self>, rule: Rule) -> Rule {
        match asked {
            None => rule,
            Some(Self(protocol, None)) => rule.protocol(protocol),
            Some(Self(protocol, Some((first, last)))) => rule.ports(protocol, first, last),
        }
    }
}

/// Whether these labels are what a selector wants (labels of Kubernetes, "set-based requirements").
pub(in crate::dataplane) fn has(wanted: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
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

/// The raw table: packets that lie about where they come from.
fn raw(raw: &mut Table, cluster: &Cluster, node: &Node, family: Family) {
    let drop = || Rule::then(Then::Drop);
    raw.append("PREROUTING", Rule::jump("POD-SOURCES").from(PODS));
    raw.declare("POD-SOURCES");
    for pod in cluster.pods_on(&node.name).filter(|pod| !pod.host_network) {
        if let Some(own) = address(pod, family) {
            let rule = Rule::then(Then::Return).source(own).from(&host_side(pod));
            raw.append("POD-SOURCES", rule.comment(format!("the address of {}", pod.id())));
        }
    }
    raw.append("POD-SOURCES", drop().comment("not an address of the pod"));
    if cluster.settings.model != Model::Overlay {
        return;
    }
    raw.declare("NODE-SOURCES");
    for range in cluster.settings.pod_cidrs.iter().filter(|range| Family::of_range(**range) == family) {
        let rule = drop().from(UPLINK).source(*range);
        raw.append("PREROUTING", rule.comment("a pod outside the tunnel"));
        raw.append("PREROUTING", Rule::jump("NODE-SOURCES").from(UPLINK).target(*range));
    }
    let nodes = cluster.nodes.iter().flat_map(|other| &other.addresses);
    for address in nodes.filter(|address| Family::of(**address) == family) {
        raw.append("NODE-SOURCES", drop().source(*address).comment("a node outside the tunnel"));
    }
    if Family::of(node.address()) == family {
        tunnel_ends(raw, cluster, node, family);
    }
}

/// Who may put packets into the tunnel: what comes out of it is believed to be from a pod.
fn tunnel_ends(raw: &mut Table, cluster: &Cluster, node: &Node, family: Family) {
    let port = cluster.settings.tunnel_port;
    let jump = Rule::jump("TUNNEL-ENDS").from(UPLINK).target(node.address()).ports(UDP, port, port);
    raw.append("PREROUTING", jump.comment("into the tunnel"));
    let others = cluster.nodes.iter().filter(|other| other.name != node.name);
    for address in others.flat_map(|other| &other.addresses).filter(|it| Family::of(**it) == family) {
        raw.append("TUNNEL-ENDS", Rule::then(Then::Return).source(*address));
    }
    raw.append("TUNNEL-ENDS", Rule::then(Then::Drop).comment("not a node"));
}
