//! NetworkPolicy: if any isolates a pod in a direction, one rule of one of them must allow a flow.
//!
//! An `ipBlock` matches whatever has an address inside, pods too, unless the cluster's settings say that it is
//! about others than pods.
//!
//! Source: the API reference of NetworkPolicy (networking.k8s.io/v1), and the page "Network Policies" of
//! the Kubernetes documentation.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{Cluster, IpBlocks, Pod};

use super::labels::selects;
use super::{Cause, Direction, End, Party};

/// The policies of a cluster, and what was found out about whom they isolate.
#[derive(Debug)]
pub(super) struct Policies<'a> {
    all: &'a [NetworkPolicy],
    /// Places in the cluster's list.
    by_namespace: HashMap<&'a str, Vec<usize>>,
    /// By namespace and name of the pod: for ingress, and for egress.
    isolating: HashMap<(&'a str, &'a str), [OnceLock<Isolating>; 2]>,
}

/// The policies that isolate a pod in a direction, by their places in the cluster's list, in that order.
#[derive(Debug)]
struct Isolating {
    places: Vec<usize>,
    names: Arc<[String]>,
}

impl<'a> Policies<'a> {
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        let mut by_namespace: HashMap<_, Vec<usize>> = HashMap::new();
        for (place, policy) in cluster.policies.iter().enumerate() {
            by_namespace.entry(namespace(policy)).or_default().push(place);
        }
        let names = cluster.pods.iter().map(|pod| (pod.namespace.as_str(), pod.name.as_str()));
        let isolating = names.map(|name| (name, Default::default())).collect();
        Self { all: &cluster.policies, by_namespace, isolating }
    }

    fn isolating<'b>(&'b self, pod: &'b Pod, direction: Direction) -> &'b Isolating {
        let known = &self.isolating[&(pod.namespace.as_str(), pod.name.as_str())];
        known[direction as usize].get_or_init(|| {
            let places = self.by_namespace.get(pod.namespace.as_str()).into_iter().flatten().copied();
            let places: Vec<_> =
                places.filter(|place| isolates(&self.all[*place], direction, pod)).collect();
            Isolating { names: places.iter().map(|place| id(&self.all[*place])).collect(), places }
        })
    }
}

impl End<'_> {
    /// Whether they let the flow through; nothing where none isolates the pod in this direction.
    pub(super) fn network_policies(self) -> Option<Result<(), Cause>> {
        let policies = &self.flow.oracle.policies;
        let isolating = policies.isolating(self.pod, self.direction);
        if isolating.places.is_empty() {
            return None;
        }
        // Policies add up: one rule of any of them is enough.
        if isolating.places.iter().any(|place| self.allowed_by(&policies.all[*place])) {
            return Some(Ok(()));
        }
        let policies = Arc::clone(&isolating.names);
        Some(Err(Cause::Isolated { direction: self.direction, pod: self.pod.id(), policies }))
    }

    /// Whether some rule of the policy matches the peer and the port both.
    fn allowed_by(self, policy: &NetworkPolicy) -> bool {
        let home = namespace(policy);
        rules(policy, self.direction).into_iter().any(|Rule { peers, ports }| {
            // An empty list restricts nothing, as a missing one.
            (peers.is_empty() || peers.iter().any(|one| self.is_peer(one, home)))
                && (ports.is_empty() || ports.iter().any(|one| self.is_port(one)))
        })
    }

    /// Whether the other end is one the rule speaks of. `home` is the policy's namespace.
    fn is_peer(self, rule: &NetworkPolicyPeer, home: &str) -> bool {
        let cluster = self.flow.oracle.cluster;
        if let Some(block) = &rule.ip_block {
            let skipped = matches!(self.peer, Party::Pod(_))
                && cluster.settings.policies.ip_blocks == IpBlocks::Outside;
            return !skipped && block_holds(block, self.peer.address());
        }
        // Selectors select pods, and nothing else.
        let Party::Pod(pod) = self.peer else { return false };
        let in_namespace = match &rule.namespace_selector {
            Some(selector) => {
                cluster.namespaces.get(&pod.namespace).is_some_and(|labels| selects(selector, labels))
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
    fn is_port(self, rule: &NetworkPolicyPort) -> bool {
        let protocol = rule.protocol.as_deref().unwrap_or("TCP");
        if protocol != self.flow.protocol.to_string() {
            return false;
        }
        match &rule.port {
            None => true,
            Some(IntOrString::Int(first)) => {
                (*first..=rule.end_port.unwrap_or(*first)).contains(&i32::from(self.flow.port))
            }
            Some(IntOrString::String(name)) => match self.target {
                Party::Pod(pod) => pod.ports.iter().any(|port| {
                    port.name.as_ref() == Some(name)
                        && port.protocol == self.flow.protocol
                        && port.port == self.flow.port
                }),
                // Nodes and hosts outside have no named ports.
                Party::Node(_) | Party::Outside(..) => false,
            },
        }
    }
}

/// Whether the policy selects the pod, and limits this direction.
pub fn isolates(policy: &NetworkPolicy, direction: Direction, pod: &Pod) -> bool {
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
