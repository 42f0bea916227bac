//! Policies of the whole cluster: of the rules of a tier that are for a pod, the first that matches decides.
//!
//! Rules that pass end the tier, and the next is asked: after the Admin tier that is NetworkPolicy, which decides
//! for every pod that one of its policies isolates, so that the Baseline tier is about the others.
//!
//! Source: network-policy-api, the API reference of ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2).

use userspace::model::{Action, Cluster, ClusterPolicy, Pod, PodPeer, Tier, TierPeer, TierPort, TierRule};

use super::labels::selects;
use super::{Cause, Direction, End, Party};

impl End<'_> {
    /// What the policies of a tier say of the flow; nothing where they leave it to the next tier.
    pub(super) fn tier(self, tier: Tier) -> Option<Result<(), Cause>> {
        // They are in the order of their priorities.
        let policies = self.flow.oracle.cluster.cluster_policies.iter();
        let ours =
            policies.filter(|policy| policy.tier == tier && concerns(policy, self.flow.oracle.cluster, self.pod));
        let mut rules = ours.flat_map(|policy| {
            let rules = match self.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            rules.iter().enumerate().map(move |(place, rule)| (policy, place, rule))
        });
        let (policy, place, rule) = rules.find(|(_, _, rule)| self.matches(rule))?;
        match rule.action {
            Action::Accept => Some(Ok(())),
            Action::Pass => None,
            Action::Deny => Some(Err(Cause::Rule {
                direction: self.direction,
                pod: self.pod.id(),
                kind: policy.kind,
                policy: policy.name.clone(),
                rule: place,
                name: rule.name.clone(),
            })),
        }
    }

    /// Whether the other end is one of the rule's peers, and the port one of its ports.
    fn matches(self, rule: &TierRule) -> bool {
        rule.peers.iter().any(|peer| self.is_among(peer))
            && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|port| self.goes_to(port)))
    }

    fn is_among(self, peer: &TierPeer) -> bool {
        match (peer, self.peer) {
            (TierPeer::Pods(pods), Party::Pod(pod)) => selected(pods, self.flow.oracle.cluster, pod),
            (TierPeer::Nodes(nodes), Party::Node(node)) => selects(nodes, &node.labels),
            // Whoever it is: traffic inside the cluster as well.
            (TierPeer::Networks(ranges), peer) => ranges.iter().any(|range| range.contains(&peer.address())),
            (TierPeer::Pods(_) | TierPeer::Nodes(_), _) => false,
        }
    }

    fn goes_to(self, port: &TierPort) -> bool {
        let flow = self.flow;
        match (port, self.target) {
            (TierPort::Protocol(protocol), _) => *protocol == flow.protocol,
            (TierPort::Range(protocol, first, last), _) => {
                *protocol == flow.protocol && (*first..=*last).contains(&flow.port)
            }
            (TierPort::Named(name), Party::Pod(pod)) => pod.ports.iter().any(|port| {
                port.name.as_ref() == Some(name) && port.protocol == flow.protocol && port.port == flow.port
            }),
            // Nobody else has named ports.
            (TierPort::Named(_), Party::Node(_) | Party::Outside(..)) => false,
        }
    }
}

/// Whether the policy is for this pod: its subject. No host-network pod is.
pub fn concerns(policy: &ClusterPolicy, cluster: &Cluster, pod: &Pod) -> bool {
    !pod.host_network && selected(&policy.subject, cluster, pod)
}

fn selected(pods: &PodPeer, cluster: &Cluster, pod: &Pod) -> bool {
    let namespace = cluster.namespaces.get(&pod.namespace);
    namespace.is_some_and(|labels| selects(&pods.namespaces, labels)) && selects(&pods.pods, &pod.labels)
}
