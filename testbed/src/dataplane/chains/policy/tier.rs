//! Policies of the whole cluster: a chain for each tier, pod and direction, rules in the order in which they are asked.
//!
//! | action | targets |
//! | --- | --- |
//! | Accept | the mark, RETURN |
//! | Deny | DROP; where the pod is audited the mark, LOG, RETURN |
//! | Pass | RETURN |

use std::net::IpAddr;

use userspace::model::{Action, ClusterPolicy, Pod, PodPeer, Tier, TierPeer, TierPort, TierRule};

use super::{ALLOWED, Direction, Side, allowed, has, ports, v4_range};
use crate::dataplane::chains::kube::hashed;
use crate::dataplane::chains::plan::Error;
use crate::dataplane::chains::rules::{ChainId, Match, Rule, Table, Target};

impl<'a> Side<'a> {
    /// The tier's chain, if it has rules for the pod.
    pub(super) fn tier_chain(self, filter: &mut Table, tier: Tier) -> Result<Option<ChainId>, Error> {
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
            return Ok(None);
        }
        let word = if tier == Tier::Admin { "ADMIN" } else { "BASELINE" };
        let way = if self.direction == Direction::Egress { "from" } else { "to" };
        let chain = filter.chain(&format!("{word}-{}", hashed(&format!("{way} {}", self.pod.id()))));
        for (policy, place, rule) in rules {
            let whose = format!("{} {} rule {place}", policy.kind.name(), policy.name);
            self.append_rule(filter, chain, rule, &whose)?;
        }
        Ok(Some(chain))
    }

    fn append_rule(
        self,
        filter: &mut Table,
        chain: ChainId,
        rule: &TierRule,
        whose: &str,
    ) -> Result<(), Error> {
        let audited = rule.action == Action::Deny && self.is_audited();
        let target = match rule.action {
            Action::Pass => Target::Return,
            Action::Deny if !audited => Target::Drop,
            Action::Accept | Action::Deny => Target::Mark { value: ALLOWED, mask: ALLOWED },
        };
        let marks = matches!(target, Target::Mark { .. });
        for matches in self.clauses(rule)? {
            filter.append(chain, Rule::new(matches, target.clone()).comment(whose));
        }
        if audited {
            filter.append(chain, Rule::new([allowed()], Target::Log).comment(whose));
        }
        if marks {
            filter.append(chain, Rule::new([allowed()], Target::Return));
        }
        Ok(())
    }

    /// What a rule matches, one by one.
    fn clauses(self, rule: &TierRule) -> Result<Vec<Vec<Match>>, Error> {
        let mut clauses = Vec::new();
        for (other, peer) in self.peers(rule)? {
            for port in self.ports_of(rule, other) {
                clauses.push([vec![peer.clone()], port].concat());
            }
        }
        Ok(clauses)
    }

    /// The rule's peers by their addresses, and who they are, if they are pods.
    fn peers(self, rule: &TierRule) -> Result<Vec<(Option<&'a Pod>, Match)>, Error> {
        let mut found = Vec::new();
        for peer in &rule.peers {
            match peer {
                TierPeer::Pods(pods) => {
                    for other in self.others() {
                        let (pod, address) = other?;
                        if self.is_among(pods, pod) {
                            found.push((Some(pod), self.at(address.into())));
                        }
                    }
                }
                TierPeer::Nodes(wanted) => {
                    let nodes = self.cluster.nodes.iter().filter(|node| has(wanted, &node.labels));
                    let addresses = nodes.flat_map(|node| &node.addresses);
                    found.extend(addresses.filter_map(|address| match address {
                        IpAddr::V4(address) => Some((None, self.at((*address).into()))),
                        IpAddr::V6(_) => None,
                    }));
                }
                TierPeer::Networks(ranges) => {
                    let ranges = ranges.iter().filter_map(|range| v4_range(*range));
                    found.extend(ranges.map(|range| (None, self.at(range))));
                }
            }
        }
        Ok(found)
    }

    /// What the rule says of protocol and port, one per rule to write, where the other end is `other`.
    fn ports_of(self, rule: &TierRule, other: Option<&'a Pod>) -> Vec<Vec<Match>> {
        let Some(wanted) = &rule.ports else { return vec![Vec::new()] };
        let named = |name: &String| {
            let own = self.receiver(other).into_iter().flat_map(|pod| &pod.ports);
            let meant = own.filter(|port| port.name.as_ref() == Some(name));
            meant.map(|port| ports(port.protocol, port.port, port.port)).collect::<Vec<_>>()
        };
        let each = wanted.iter().flat_map(|port| match port {
            TierPort::Protocol(protocol) => vec![vec![Match::Protocol(protocol.number())]],
            TierPort::Range(protocol, first, last) => vec![ports(*protocol, *first, *last)],
            TierPort::Named(name) => named(name),
        });
        each.collect()
    }

    fn is_among(self, pods: &PodPeer, pod: &Pod) -> bool {
        self.namespace_is(&pods.namespaces, pod) && has(&pods.pods, &pod.labels)
    }
}
