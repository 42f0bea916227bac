//! Who may answer a Service on a node, in the order in which kube-proxy asks.
//!
//! 1. Endpoints that are ready; where none is, those that serve while they go.
//! 2. With policy `Local` the same among those of the node.
//! 3. At the cluster address hints choose among the first, where every one of these has some and one is meant.
//!
//! Source: Kubernetes, "Virtual IPs and Service Proxies", "EndpointSlices" and "Topology Aware Routing"; enhancement
//! proposals 1669 and 2086.

use userspace::model::{Backend, Node, ServicePort};

/// Whether an address is of IPv6.
pub(super) type Six = bool;

/// The endpoints of a service port, as one node uses them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoints<'a> {
    /// All that may answer, wherever they are.
    pub(super) all: Vec<&'a Backend>,
    /// Those of them that are meant for clients of this node.
    pub(super) hinted: Vec<&'a Backend>,
    /// Those of the node that may answer, asked by themselves.
    pub(super) local: Vec<&'a Backend>,
}

impl<'a> Endpoints<'a> {
    /// Those of one family.
    pub(super) fn of(port: &'a ServicePort, node: &Node, six: Six) -> Self {
        let family: Vec<_> = port.backends.iter().filter(|it| it.address.is_ipv6() == six).collect();
        let is_here = |it: &&Backend| it.node.as_deref() == Some(node.name.as_str());
        let here = family.iter().copied().filter(is_here).collect();
        let all = answering(family);
        Self { hinted: meant_for(&all, node), local: answering(here), all }
    }
}

/// 1.
fn answering(of: Vec<&Backend>) -> Vec<&Backend> {
    if of.iter().any(|it| it.ready) {
        return of.into_iter().filter(|it| it.ready).collect();
    }
    of.into_iter().filter(|it| it.serving && it.terminating).collect()
}

/// 3.
fn meant_for<'a>(all: &[&'a Backend], node: &Node) -> Vec<&'a Backend> {
    let here: Vec<_> = all.iter().copied().filter(|it| it.for_nodes.contains(&node.name)).collect();
    if !here.is_empty() && all.iter().all(|it| !it.for_nodes.is_empty()) {
        return here;
    }
    let in_zone = |it: &&Backend| node.zone().is_some_and(|own| it.for_zones.iter().any(|zone| zone == own));
    let near: Vec<_> = all.iter().copied().filter(in_zone).collect();
    if !near.is_empty() && all.iter().all(|it| !it.for_zones.is_empty()) {
        return near;
    }
    all.to_vec()
}
