//! Who should reach whom: policies as their text says, judged afresh for every flow.
//!
//! Written to be checked against the text and for nothing else: no tables, no identities. It shares no code with
//! the planner, so that the two are two readings of one text.
//!
//! A flow is judged in this order; the numbers come back in the code.
//!
//! 0. Who has no address of a family that the other has is told so at once, by its own stack.
//! 1. A Service is only an address, and a port of a node may be: what stands behind is judged ([`service`]).
//!    Policies see the flow after translation.
//! 2. A pod always reaches itself. By way of a Service it does where its policies allow it; where they do
//!    not, Kubernetes leaves it open.
//! 3. Egress: the sending pod's policies must permit it ([`tier`], [`network_policy`]).
//! 4. A pod's own node always reaches it.
//! 5. Ingress: the receiving pod's policies must permit it.
//! 6. What a pod's policies deny passes all the same where they are audited.
//! 7. What policies let through must still be answered: hosts outside answer where they say they listen.
//!
//! A host-network pod is its node: no policy selects it, no pod selector matches it, and what is said of
//! addresses and nodes matches it as it does the node.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use userspace::model::{Cluster, ContainerPort, Directory, Kind, Node, Pod, Protocol, Tier, Who};

mod labels;
mod network_policy;
mod service;
mod tier;

pub use network_policy::isolates;
pub use service::{Standing, standings};
pub use tier::concerns;

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
    /// It is answered, although policies deny it: they are audited. This is the first that does.
    Audited(Cause),
    /// It is dropped.
    Deny(Cause),
    /// It is refused at once.
    Reject(Refusal),
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
        policies: Arc<[String]>,
    },
    /// A rule of a policy of the whole cluster denies it.
    Rule {
        /// Which way.
        direction: Direction,
        /// Whose policy it is: `namespace/pod`.
        pod: String,
        /// What the policy was written as.
        kind: Kind,
        /// The policy's name.
        policy: String,
        /// The rule's place in the policy's list for this direction, from 0.
        rule: usize,
        /// The rule's name; may be empty.
        name: String,
    },
    /// Only endpoints of the node where the flow comes in may answer, and it has none.
    NoLocalBackend,
    /// The client is in none of the ranges that the Service's load balancer is for.
    SourceRange,
}

/// Why a flow should be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It arrives where nobody listens.
    NobodyListens,
    /// The Service has no endpoint that may answer, on whichever node.
    NoBackend,
    /// One end has IPv4 addresses only, the other IPv6 ones only.
    NoFamily,
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Audited(cause) => write!(f, "allow, audited: {cause}"),
            Self::Reject(Refusal::NobodyListens) => f.write_str("reject: nobody listens there"),
            Self::Reject(Refusal::NoFamily) => {
                f.write_str("reject: the two have no family of addresses in common")
            }
            Self::Reject(Refusal::NoBackend) => f.write_str("reject: the Service has no endpoint to answer"),
            Self::Undefined(open) => write!(f, "left open: {open}"),
            Self::Deny(cause) => write!(f, "deny: {cause}"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLocalBackend => f.write_str("only endpoints of the node may answer, and it has none"),
            Self::SourceRange => f.write_str("the client is in none of the Service's source ranges"),
            Self::Isolated { direction, pod, policies } => {
                let policies = policies.join(", ");
                write!(f, "no rule allows it, {direction} of {pod} is isolated by {policies}")
            }
            Self::Rule { direction, pod, kind, policy, rule, name } => {
                let name = if name.is_empty() { String::new() } else { format!(" ({name})") };
                write!(f, "{direction} of {pod}: {} {policy}, rule {rule}{name}", kind.name())
            }
        }
    }
}

/// Who is asked: a cluster, with everybody in it under name and address, so that many may ask.
///
/// Nothing is judged beforehand. Only which policies isolate a pod is remembered once it was found, for it is the
/// same for all of the pod's flows.
#[derive(Debug)]
pub struct Oracle<'a> {
    cluster: &'a Cluster,
    directory: Directory<'a>,
    nodes: HashMap<IpAddr, &'a Node>,
    pods: HashMap<IpAddr, &'a Pod>,
    frontends: service::Frontends<'a>,
    policies: network_policy::Policies<'a>,
    /// A node stands for each client outside that it sends on to another.
    stands_in: bool,
}

impl<'a> Oracle<'a> {
    /// The oracle of a cluster.
    pub fn of(cluster: &'a Cluster) -> Self {
        // Of two with one address the first is meant.
        let pods = cluster.pods.iter().rev().filter(|pod| !pod.host_network);
        Self {
            cluster,
            directory: Directory::of(cluster),
            nodes: cluster.nodes.iter().rev().map(|node| (node.address(), node)).collect(),
            pods: pods.map(|pod| (pod.address(), pod)).collect(),
            frontends: service::Frontends::of(cluster),
            policies: network_policy::Policies::of(cluster),
            stands_in: false,
        }
    }

    /// The same of a dataplane that cannot keep a client's address: a node stands for each client outside that it
    /// sends on to an endpoint on another node, in a tunnel too.
    pub fn where_nodes_stand_in(self, stands_in: bool) -> Self {
        Self { stands_in, ..self }
    }

    /// The names of its cluster.
    pub fn directory(&self) -> &Directory<'a> {
        &self.directory
    }

    /// What should become of a flow from `from` to `port` of `to`.
    ///
    /// Pods and nodes are taken to listen wherever they are dialled: a pod's declared ports are information,
    /// and do not keep it from listening on others.
    pub fn expect(&self, from: &Who, to: &Who, port: u16, protocol: Protocol) -> Expectation {
        let flow = Flow { oracle: self, port, protocol };
        let source = match self.party(from) {
            Some(source) => source,
            None => return Expectation::Undefined("the cluster has no such source"),
        };
        if let Who::Service(id) | Who::Frontend(id, _) = to
            && self.directory.service(id).is_none()
        {
            return Expectation::Undefined("the cluster has no such Service");
        }
        let Ok(found) = self.directory.find(to) else {
            return Expectation::Undefined("the cluster has no such target");
        };
        // 0.
        let joins = |own: &IpAddr| found.addresses().iter().any(|other| own.is_ipv4() == other.is_ipv4());
        if self.directory.find(from).is_ok_and(|from| !from.addresses().iter().any(joins)) {
            return Expectation::Reject(Refusal::NoFamily);
        }
        // 1.
        match (self.frontends.at(found.address(), port, protocol), self.party(to)) {
            (Some(frontend), _) => frontend.expect(flow, source),
            (None, Some(target)) => flow.expect_party(source, target),
            (None, None) => Expectation::Undefined("the Service has no such port"),
        }
    }

    /// Whether a Service, or a pod, stands behind this address and port.
    pub fn is_frontend(&self, address: IpAddr, port: u16, protocol: Protocol) -> bool {
        self.frontends.at(address, port, protocol).is_some()
    }

    fn party(&self, end: &Who) -> Option<Party<'a>> {
        match end {
            Who::Pod(id) => self.pod_party(self.directory.pod(id)?),
            Who::Node(name) => self.directory.node(name).map(Party::Node),
            Who::External(name) => {
                let external = self.directory.external(name)?;
                Some(Party::Outside(external.address, &external.ports))
            }
            Who::Service(_) | Who::Frontend(..) => None,
        }
    }

    /// A host-network pod is its node.
    fn pod_party(&self, pod: &'a Pod) -> Option<Party<'a>> {
        if pod.host_network { self.directory.node(&pod.node).map(Party::Node) } else { Some(Party::Pod(pod)) }
    }

    /// Whoever has the address.
    fn party_at(&self, address: IpAddr) -> Party<'a> {
        if let Some(node) = self.nodes.get(&address) {
            return Party::Node(node);
        }
        if let Some(pod) = self.pods.get(&address) {
            return Party::Pod(pod);
        }
        let external = self.cluster.externals.iter().find(|external| external.address == address);
        Party::Outside(address, external.map_or(&[], |external| &external.ports))
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
    Outside(IpAddr, &'a [ContainerPort]),
}

impl Party<'_> {
    /// Whether both are the same pod.
    fn is(self, other: Party<'_>) -> bool {
        matches!((self, other), (Self::Pod(one), Party::Pod(other)) if one.address() == other.address())
    }

    fn address(self) -> IpAddr {
        match self {
            Self::Pod(pod) => pod.address(),
            Self::Node(node) => node.address(),
            Self::Outside(address, _) => address,
        }
    }
}

/// What is asked of every policy: who judges, and where the flow goes.
#[derive(Clone, Copy)]
struct Flow<'a> {
    oracle: &'a Oracle<'a>,
    port: u16,
    protocol: Protocol,
}

impl<'a> Flow<'a> {
    fn expect_party(self, source: Party<'_>, target: Party<'a>) -> Expectation {
        // 2.
        if source.is(target) { Expectation::Allow } else { self.judge(source, target) }
    }

    fn judge(self, source: Party<'_>, target: Party<'a>) -> Expectation {
        let mut audited = None;
        // 3.
        if let Party::Pod(pod) = source {
            let own_node = matches!(target, Party::Node(node) if node.name == pod.node);
            let end = End { flow: self, direction: Direction::Egress, pod, peer: target, target };
            match end.permitted() {
                Ok(()) => {}
                // 6.
                Err(cause) if self.oracle.cluster.audits(&pod.namespace) => audited = Some(cause),
                Err(Cause::Isolated { .. }) if own_node => {
                    let open = "the documentation exempts a pod's own node from egress rules, the API reference does not";
                    return Expectation::Undefined(open);
                }
                Err(cause) => return Expectation::Deny(cause),
            }
        }
        if let Party::Pod(pod) = target {
            // 4.
            let own_node = matches!(source, Party::Node(node) if node.name == pod.node);
            let end = End { flow: self, direction: Direction::Ingress, pod, peer: source, target };
            // 5.
            match end.permitted() {
                _ if own_node => {}
                Ok(()) => {}
                // 6.
                Err(cause) if self.oracle.cluster.audits(&pod.namespace) => audited = audited.or(Some(cause)),
                Err(cause) => return Expectation::Deny(cause),
            }
        }
        // 7.
        if let Party::Outside(_, listening) = target
            && !listening.is_empty()
            && !listening.iter().any(|on| on.port == self.port && on.protocol == self.protocol)
        {
            return Expectation::Reject(Refusal::NobodyListens);
        }
        audited.map_or(Expectation::Allow, Expectation::Audited)
    }
}

/// A flow at one of its ends, as the policies of the pod there see it.
#[derive(Clone, Copy)]
struct End<'a> {
    flow: Flow<'a>,
    direction: Direction,
    /// Whose policies are asked.
    pod: &'a Pod,
    /// The other end.
    peer: Party<'a>,
    /// Whoever the flow goes to: named ports are its own.
    target: Party<'a>,
}

impl End<'_> {
    /// Whether the pod's policies let the flow through: the first tier that has something to say decides; if none
    /// has, it passes.
    fn permitted(self) -> Result<(), Cause> {
        self.tier(Tier::Admin)
            .or_else(|| self.network_policies())
            .or_else(|| self.tier(Tier::Baseline))
            .unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests;
