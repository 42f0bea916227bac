//! Who should reach whom: NetworkPolicy as its text says, judged afresh for every flow.
//!
//! Written to be checked against the text and for nothing else: no tables, no identities, no order. It
//! shares no code with the planner, so that the two are two readings of one text.
//!
//! A flow is judged in this order; the numbers come back in the code.
//!
//! 1. A Service is only an address: its backends are judged. Policies see the flow after translation.
//! 2. A pod always reaches itself.
//! 3. Egress: if any policy isolates the sending pod for egress, one rule of one of them must allow it.
//! 4. A pod's own node always reaches it.
//! 5. Ingress: if any policy isolates the receiving pod for ingress, one rule of one must allow it.
//! 6. What policies allow must still be answered: hosts outside answer where they say they listen.
//!
//! A host-network pod is its node: no policy selects it, no pod selector matches it, and an `ipBlock`
//! matches it by the node's address. An `ipBlock` matches whatever has an address inside, pods too.
//!
//! Source: the API reference of NetworkPolicy (networking.k8s.io/v1), and the page "Network Policies" of
//! the Kubernetes documentation.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{Backend, Cluster, Labels, Node, Pod, Protocol};

use crate::end::End;

/// A direction, seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Into the pod.
    Ingress,
    /// Out of the pod.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What should become of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// It is answered.
    Allow,
    /// It is dropped.
    Deny(Cause),
    /// It is refused at once: it arrives where nobody listens.
    Reject,
    /// Kubernetes leaves it open; the sentence says what is open about it.
    Undefined(&'static str),
}

/// Why a flow should be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// These policies isolate the pod in this direction, and no rule of them allows the flow.
    Isolated {
        /// Which way.
        direction: Direction,
        /// Whose isolation: `namespace/pod`.
        pod: String,
        /// Every policy that isolates it, `namespace/name`, in the order of the cluster's.
        policies: Vec<String>,
    },
    /// The Service has no ready endpoint. kube-proxy refuses such a flow at once; this path drops it.
    NoBackend,
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Reject => f.write_str("reject: nobody listens there"),
            Self::Undefined(open) => write!(f, "left open: {open}"),
            Self::Deny(Cause::NoBackend) => f.write_str("deny: the Service has no ready endpoint"),
            Self::Deny(Cause::Isolated { direction, pod, policies }) => {
                write!(
                    f,
                    "deny: no rule allows it, {direction} of {pod} is isolated by {}",
                    policies.join(", ")
                )
            }
        }
    }
}

/// What should become of a flow from `from` to `port` of `to`.
///
/// Pods and nodes are taken to listen wherever they are dialled: a pod's declared ports are information,
/// and do not keep it from listening on others.
pub fn expect(cluster: &Cluster, from: &End, to: &End, port: u16, protocol: Protocol) -> Expectation {
    let flow = Flow { cluster, port, protocol };
    let source = match party(cluster, from) {
        Some(source) => source,
        None => return Expectation::Undefined("the cluster has no such source"),
    };
    match to {
        End::Service(id) => flow.expect_service(source, id),
        _ => match party(cluster, to) {
            Some(target) => flow.expect_party(source, target),
            None => Expectation::Undefined("the cluster has no such target"),
        },
    }
}

/// One end of a flow, as policies tell them apart.
#[derive(Clone, Copy)]
enum Party<'a> {
    /// A pod with an address of its own.
    Pod(&'a Pod),
    /// A node, which is also every host-network pod on it.
    Node(&'a Node),
    /// An address that is nobody's in the cluster, and the ports it says it listens on (none: on all).
    Outside(IpAddr, &'a [userspace::model::ContainerPort]),
}

impl Party<'_> {
    fn address(self) -> IpAddr {
        match self {
            Self::Pod(pod) => pod.address,
            Self::Node(node) => node.address,
            Self::Outside(address, _) => address,
        }
    }
}

fn party<'a>(cluster: &'a Cluster, end: &End) -> Option<Party<'a>> {
    match end {
        End::Pod(id) => {
            cluster.pods.iter().find(|pod| pod.id() == *id).and_then(|pod| pod_party(cluster, pod))
        }
        End::Node(name) => node_named(cluster, name).map(Party::Node),
        End::External(name) => {
            let external = cluster.externals.iter().find(|external| external.name == *name)?;
            Some(Party::Outside(external.address, &external.ports))
        }
        End::Service(_) => None,
    }
}

/// A host-network pod is its node.
fn pod_party<'a>(cluster: &'a Cluster, pod: &'a Pod) -> Option<Party<'a>> {
    if pod.host_network { node_named(cluster, &pod.node).map(Party::Node) } else { Some(Party::Pod(pod)) }
}

fn node_named<'a>(cluster: &'a Cluster, name: &str) -> Option<&'a Node> {
    cluster.nodes.iter().find(|node| node.name == name)
}

/// Whoever has the address.
fn party_at(cluster: &Cluster, address: IpAddr) -> Party<'_> {
    if let Some(node) = cluster.nodes.iter().find(|node| node.address == address) {
        return Party::Node(node);
    }
    if let Some(pod) = cluster.pods.iter().find(|pod| pod.address == address && !pod.host_network) {
        return Party::Pod(pod);
    }
    let external = cluster.externals.iter().find(|external| external.address == address);
    Party::Outside(address, external.map_or(&[], |external| &external.ports))
}

/// What is asked of every policy: the cluster, and where the flow goes.
#[derive(Clone, Copy)]
struct Flow<'a> {
    cluster: &'a Cluster,
    port: u16,
    protocol: Protocol,
}

impl<'a> Flow<'a> {
    /// 1. A Service is judged on its backends, at their ports.
    fn expect_service(self, source: Party<'_>, id: &str) -> Expectation {
        let Some(service) = self.cluster.services.iter().find(|service| service.id() == id) else {
            return Expectation::Undefined("the cluster has no such Service");
        };
        if let Party::Outside(..) = source {
            return Expectation::Undefined("a cluster IP is promised to the inside of the cluster only");
        }
        let dialled =
            |port: &&userspace::model::ServicePort| port.port == self.port && port.protocol == self.protocol;
        let Some(port) = service.ports.iter().find(dialled) else {
            return Expectation::Undefined("the Service has no such port");
        };
        let mut outcomes = port.backends.iter().map(|Backend { address, port }| {
            Flow { port: *port, ..self }.expect_party(source, party_at(self.cluster, *address))
        });
        let Some(first) = outcomes.next() else {
            return Expectation::Deny(Cause::NoBackend);
        };
        // Backends denied by different policies are all denied.
        let alike = |other: Expectation| std::mem::discriminant(&other) == std::mem::discriminant(&first);
        if outcomes.all(alike) {
            first
        } else {
            Expectation::Undefined("the Service's backends fare differently, and which one is chosen is open")
        }
    }

    fn expect_party(self, source: Party<'_>, target: Party<'a>) -> Expectation {
        // 2.
        if let (Party::Pod(one), Party::Pod(other)) = (source, target)
            && one.address == other.address
        {
            return Expectation::Allow;
        }
        // 3.
        if let Party::Pod(sender) = source
            && let Err(cause) = self.permitted(Direction::Egress, sender, target, target)
        {
            if let Party::Node(node) = target
                && node.name == sender.node
            {
                let open = "the documentation exempts a pod's own node from egress rules, the API reference does not";
                return Expectation::Undefined(open);
            }
            return Expectation::Deny(cause);
        }
        if let Party::Pod(receiver) = target {
            // 4.
            let own_node = matches!(source, Party::Node(node) if node.name == receiver.node);
            // 5.
            if !own_node && let Err(cause) = self.permitted(Direction::Ingress, receiver, source, target) {
                return Expectation::Deny(cause);
            }
        }
        // 6.
        if let Party::Outside(_, listening) = target
            && !listening.is_empty()
            && !listening.iter().any(|on| on.port == self.port && on.protocol == self.protocol)
        {
            return Expectation::Reject;
        }
        Expectation::Allow
    }

    /// Whether `pod`'s policies let it exchange this flow with `peer`. Without a policy that isolates it
    /// in this direction they do; otherwise a rule must.
    fn permitted(
        self,
        direction: Direction,
        pod: &Pod,
        peer: Party<'_>,
        target: Party<'_>,
    ) -> Result<(), Cause> {
        let isolating: Vec<&NetworkPolicy> =
            self.cluster.policies.iter().filter(|policy| isolates(policy, direction, pod)).collect();
        // Policies add up: one rule of any of them is enough.
        if isolating.is_empty()
            || isolating.iter().any(|policy| self.allowed_by(policy, direction, peer, target))
        {
            return Ok(());
        }
        let policies = isolating.into_iter().map(id).collect();
        Err(Cause::Isolated { direction, pod: pod.id(), policies })
    }

    /// Whether some rule of the policy matches the peer and the port both.
    fn allowed_by(
        self,
        policy: &NetworkPolicy,
        direction: Direction,
        peer: Party<'_>,
        target: Party<'_>,
    ) -> bool {
        let home = namespace(policy);
        rules(policy, direction).into_iter().any(|Rule { peers, ports }| {
            // An empty list restricts nothing, as a missing one.
            (peers.is_empty() || peers.iter().any(|one| self.peer_matches(one, home, peer)))
                && (ports.is_empty() || ports.iter().any(|one| self.port_matches(one, target)))
        })
    }

    /// Whether `peer` is one the rule speaks of. `home` is the policy's namespace.
    fn peer_matches(self, rule: &NetworkPolicyPeer, home: &str, peer: Party<'_>) -> bool {
        if let Some(block) = &rule.ip_block {
            return block_holds(block, peer.address());
        }
        // Selectors select pods, and nothing else.
        let Party::Pod(pod) = peer else { return false };
        let in_namespace = match &rule.namespace_selector {
            Some(selector) => {
                self.cluster.namespaces.get(&pod.namespace).is_some_and(|labels| selects(selector, labels))
            }
            // Without one, the policy's own namespace is meant.
            None => pod.namespace == home,
        };
        match (&rule.pod_selector, &rule.namespace_selector) {
            (Some(selector), _) => in_namespace && selects(selector, &pod.labels),
            (None, Some(_)) => in_namespace,
            // A peer that says nothing is not valid, and is nobody.
            (None, None) => false,
        }
    }

    /// Whether the flow goes to a port the rule speaks of. Names are the receiving pod's own.
    fn port_matches(self, rule: &NetworkPolicyPort, target: Party<'_>) -> bool {
        let protocol = rule.protocol.as_deref().unwrap_or("TCP");
        if protocol != self.protocol.to_string() {
            return false;
        }
        match &rule.port {
            None => true,
            Some(IntOrString::Int(first)) => {
                (*first..=rule.end_port.unwrap_or(*first)).contains(&i32::from(self.port))
            }
            Some(IntOrString::String(name)) => match target {
                Party::Pod(pod) => pod.ports.iter().any(|port| {
                    port.name.as_ref() == Some(name)
                        && port.protocol == self.protocol
                        && port.port == self.port
                }),
                // Nodes and hosts outside have no named ports.
                Party::Node(_) | Party::Outside(..) => false,
            },
        }
    }
}

/// Whether the policy selects the pod, and limits this direction.
fn isolates(policy: &NetworkPolicy, direction: Direction, pod: &Pod) -> bool {
    let Some(spec) = &policy.spec else {
        return false;
    };
    namespace(policy) == pod.namespace
        // A missing selector is an empty one, which selects every pod of the namespace.
        && spec.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
        && limits(spec, direction)
}

/// `policyTypes`. Where it is missing or empty: ingress always, egress if there are egress rules.
fn limits(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    match (spec.policy_types.as_deref().unwrap_or_default(), direction) {
        ([], Direction::Ingress) => true,
        ([], Direction::Egress) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        (types, Direction::Ingress) => types.iter().any(|one| one == "Ingress"),
        (types, Direction::Egress) => types.iter().any(|one| one == "Egress"),
    }
}

/// A rule of either direction.
struct Rule<'a> {
    /// `from` or `to`.
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<Rule<'_>> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    match direction {
        Direction::Ingress => (spec.ingress.iter().flatten())
            .map(|rule| Rule {
                peers: rule.from.as_deref().unwrap_or_default(),
                ports: rule.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
        Direction::Egress => (spec.egress.iter().flatten())
            .map(|rule| Rule {
                peers: rule.to.as_deref().unwrap_or_default(),
                ports: rule.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
    }
}

/// Whether all of a selector's requirements hold; one without any selects everything.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let mut equal = selector.match_labels.iter().flatten();
    let mut required = selector.match_expressions.iter().flatten();
    equal.all(|(key, value)| labels.get(key) == Some(value)) && required.all(|one| holds(one, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = |value: &String| requirement.values.iter().flatten().any(|one| one == value);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        // Also where the key is missing.
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // There is no other operator.
        _ => false,
    }
}

/// Whether the address lies in the block, and in none of its exceptions.
fn block_holds(block: &IPBlock, address: IpAddr) -> bool {
    let inside = |range: &str| range.parse::<IpNet>().is_ok_and(|range| range.contains(&address));
    inside(&block.cidr) && !block.except.iter().flatten().any(|range| inside(range))
}

/// The namespace a policy is in; `default` where it says none.
fn namespace(policy: &NetworkPolicy) -> &str {
    policy.metadata.namespace.as_deref().unwrap_or("default")
}

/// `namespace/name`.
fn id(policy: &NetworkPolicy) -> String {
    format!("{}/{}", namespace(policy), policy.metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests;
