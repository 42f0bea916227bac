//! Policies of the whole cluster: a chain for each tier, pod and direction, rules in the order in which they are asked.
//!
//! | action | targets |
//! | --- | --- |
//! | Accept | the mark, RETURN |
//! | Deny | DROP; where the pod is audited the mark, LOG, RETURN |
//! | Pass | RETURN |

use ipnet::IpNet;
use userspace::model::{Action, ClusterPolicy, Pod, PodPeer, Tier, TierPeer, TierPort, TierRule};

use super::{AUDIT, Asked, Direction, Side, allow, allowed, has};
use crate::dataplane::chains::Family;
use crate::dataplane::chains::ruleset::{Rule, Table, Then};
use crate::dataplane::chains::services::hashed;

impl<'a> Side<'a> {
    /// The tier's chain, if it has rules for the pod.
    pub(super) fn tier_chain(self, filter: &mut Table, tier: Tier) -> Option<String> {
        let policies = self.cluster.cluster_policies.iter();
        let ours = policies.filter(|policy| policy.tier == tier && self.is_among(&policy.subject, self.pod));
        let rules: Vec<(&ClusterPolicy, usize, &TierRule)> = ours
            .flat_map(|policy| {
                let rules = match self.direction {
                    Direction::Ingress => &policy.ingress,
                    Direction::Egress => &policy.egress,
                };
                rules.iter().enumerate().map(move |(place, rule)| (policy, place, rule))
            })
            .collect();
        if rules.is_empty() {
            return None;
        }
        let word = if tier == Tier::Admin { "ADMIN" } else { "BASELINE" };
        let way = if self.direction == Direction::Egress { "from" } else { "to" };
        let chain = format!("{word}-{}", hashed(&format!("{way} {}", self.pod.id())));
        filter.declare(&chain);
        for (policy, place, rule) in rules {
            let whose = format!("{} {} rule {place}", policy.kind.name(), policy.name);
            self.append_rule(filter, &chain, rule, &whose);
        }
        Some(chain)
    }

    fn append_rule(self, filter: &mut Table, chain: &str, rule: &TierRule, whose: &str) {
        let audited = rule.action == Action::Deny && self.is_audited();
        let then = match rule.action {
            Action::Pass => Rule::then(Then::Return),
            Action::Deny if !audited => Rule::then(Then::Drop),
            Action::Accept | Action::Deny => allow(),
        };
        let marks = audited || rule.action == Action::Accept;
        for (other, peer) in self.peers(rule) {
            for port in self.ports_of(rule, other) {
                let rule = Asked::narrow(port, self.at(peer, then.clone()));
                filter.append(chain, rule.comment(whose));
            }
        }
        if audited {
            filter.append(chain, Rule::then(Then::Log(AUDIT.to_owned())).when(allowed()).comment(whose));
        }
        if marks {
            filter.append(chain, Rule::then(Then::Return).when(allowed()));
        }
    }

    /// The rule's peers by their addresses, and who they are, if they are pods.
    fn peers(self, rule: &TierRule) -> Vec<(Option<&'a Pod>, IpNet)> {
        let mut found = Vec::new();
        for peer in &rule.peers {
            match peer {
                TierPeer::Pods(pods) => {
                    let ours = self.others().filter(|(pod, _)| self.is_among(pods, pod));
                    found.extend(ours.map(|(pod, address)| (Some(pod), address.into())));
                }
                TierPeer::Nodes(wanted) => {
                    let nodes = self.cluster.nodes.iter().filter(|node| has(wanted, &node.labels));
                    let addresses = nodes.flat_map(|node| &node.addresses);
                    let ours = addresses.filter(|address| Family::of(**address) == self.family);
                    found.extend(ours.map(|address| (None, (*address).into())));
                }
                TierPeer::Networks(ranges) => {
                    let ours = ranges.iter().filter_map(|range| self.own(*range));
                    found.extend(ours.map(|range| (None, range)));
                }
            }
        }
        found
    }

    /// What the rule says of protocol and port, one per rule to write, where the other end is `other`.
    fn ports_of(self, rule: &TierRule, other: Option<&'a Pod>) -> Vec<Option<Asked>> {
        let Some(wanted) = &rule.ports else { return vec![None] };
        let named = |name: &String| {
            let own = self.receiver(other).into_iter().flat_map(|pod| &pod.ports);
            let meant = own.filter(|port| port.name.as_ref() == Some(name));
            meant.map(|port| Some(Asked::of(port.protocol, port.port, port.port))).collect::<Vec<_>>()
        };
        let each = wanted.iter().flat_map(|port| match port {
            TierPort::Protocol(protocol) => vec![Some(Asked(protocol.number(), None))],
            TierPort::Range(protocol, first, last) => vec![Some(Asked::of(*protocol, *first, *last))],
            TierPort::Named(name) => named(name),
        });
        each.collect()
    }

    fn is_among(self, pods: &PodPeer, pod: &Pod) -> bool {
        self.namespace_is(&pods.namespaces, pod) && has(&pods.pods, &pod.labels)
    }
}
