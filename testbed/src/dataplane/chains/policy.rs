//! Policies as filter chains, one for each pod and direction that a policy is about.
//!
//! ```text
//! FORWARD, OUTPUT, INPUT -> POD-EGRESS  (by -i) -> FROM-… of the sender
//!                        -> POD-INGRESS (by -o) -> TO-…   of the receiver
//!
//! FROM-…, TO-…: -> ADMIN-…, then what NetworkPolicies allow and DROP, or where there are none -> BASELINE-…
//! ```
//! A pod's chain allows by writing a mark and returning, because the other end's chain has to agree too.
//! Peers are written out, one rule per address and port, as engines without sets do. Where a pod is audited, LOG
//! stands in the place of DROP.
//!
//! Source: Kubernetes API reference, NetworkPolicy v1; network-policy-api, ClusterNetworkPolicy v1alpha2.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use userspace::model::{Cluster, Established, Pod, Protocol, Tier};

use super::conntrack::State;
use super::kube::{self, hashed};
use super::plan::{Error, v4};
use super::rules::{ChainId, Link, Match, Rule, Table, Target};

mod network_policy;
mod tier;

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
/// [`Error::Family`].
pub(super) fn filter(cluster: &Cluster, node: &str) -> Result<Table, Error> {
    let mut filter = Table::new("filter");
    let rejects = kube::reject_without_endpoints(&mut filter, cluster)?;
    let (egress, ingress) = (filter.chain("POD-EGRESS"), filter.chain("POD-INGRESS"));
    for hook in ["INPUT", "FORWARD", "OUTPUT"] {
        let hook = filter.chain(hook);
        for known in judged_already(cluster) {
            filter.append(hook, Rule::new(known, Target::Accept));
        }
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
            let side = Side { cluster, pod, direction };
            if let Some(chain) = side.chain(&mut filter)? {
                let rule = Rule::new([condition], Target::Jump(chain));
                filter.append(dispatch, rule.comment(pod.id()));
            }
        }
    }
    Ok(filter)
}

/// Packets that policies are not asked about: those of connections that they let through, or only the answers
/// among them, where a connection ends with what allowed it.
fn judged_already(cluster: &Cluster) -> Vec<Vec<Match>> {
    match cluster.settings.policies.established {
        Established::Keep => vec![vec![Match::State(vec![State::Related, State::Established])]],
        Established::Cut => vec![
            vec![Match::State(vec![State::Related])],
            vec![Match::State(vec![State::Established]), Match::Reply],
        ],
    }
}

/// A pod in a direction: whose chain is written.
#[derive(Clone, Copy)]
struct Side<'a> {
    cluster: &'a Cluster,
    pod: &'a Pod,
    direction: Direction,
}

impl<'a> Side<'a> {
    /// The pod's chain, if any policy is about it.
    fn chain(self, filter: &mut Table) -> Result<Option<ChainId>, Error> {
        let selecting = self.network_policies();
        let admin = self.tier_chain(filter, Tier::Admin)?;
        let baseline = if selecting.is_empty() { self.tier_chain(filter, Tier::Baseline)? } else { None };
        if selecting.is_empty() && admin.is_none() && baseline.is_none() {
            return Ok(None);
        }
        let word = if self.direction == Direction::Egress { "FROM" } else { "TO" };
        let chain = filter.chain(&format!("{word}-{}", hashed(&self.pod.id())));
        filter.append(chain, Rule::new([], Target::Mark { value: 0, mask: ALLOWED }));
        if let Some(admin) = admin {
            filter.append(chain, Rule::new([], Target::Jump(admin)));
            filter.append(chain, Rule::new([allowed()], Target::Return));
        }
        if let Some(baseline) = baseline {
            filter.append(chain, Rule::new([], Target::Jump(baseline)));
        }
        if !selecting.is_empty() {
            self.allow(filter, chain, &selecting)?;
            filter.append(chain, Rule::new([allowed()], Target::Return));
            let isolated = Rule::new([], if self.is_audited() { Target::Log } else { Target::Drop });
            filter.append(chain, isolated.comment(format!("{} is isolated", self.pod.id())));
        }
        Ok(Some(chain))
    }

    /// What its policies would deny passes.
    fn is_audited(self) -> bool {
        self.cluster.audits(&self.pod.namespace)
    }

    /// The other end is in this range.
    fn at(self, range: Ipv4Net) -> Match {
        match self.direction {
            Direction::Ingress => Match::Source(range),
            Direction::Egress => Match::Target(range),
        }
    }

    /// The pod that a flow goes to, whose ports have names, where the other end is `other`.
    fn receiver(self, other: Option<&'a Pod>) -> Option<&'a Pod> {
        if self.direction == Direction::Ingress { Some(self.pod) } else { other }
    }

    /// Every other end that is a pod with an address of its own, and the address.
    fn others(self) -> impl Iterator<Item = Result<(&'a Pod, Ipv4Addr), Error>> {
        let pods = self.cluster.pods.iter().filter(|pod| !pod.host_network);
        pods.map(|pod| Ok((pod, v4(pod.address(), || format!("pod {}", pod.id()))?)))
    }

    fn namespace_is(self, wanted: &LabelSelector, pod: &Pod) -> bool {
        match self.cluster.namespaces.get(&pod.namespace) {
            Some(labels) => has(wanted, labels),
            None => has(wanted, &BTreeMap::new()),
        }
    }
}

/// The packet has the mark.
fn allowed() -> Match {
    Match::Mark { value: ALLOWED, mask: ALLOWED }
}

/// Ports of a protocol, side by side.
fn ports(protocol: Protocol, first: u16, last: u16) -> Vec<Match> {
    vec![Match::Protocol(protocol.number()), Match::TargetPort(first..=last)]
}

/// A range, if packets here can have such addresses: they are all IPv4.
fn v4_range(range: IpNet) -> Option<Ipv4Net> {
    match range {
        IpNet::V4(range) => Some(range),
        IpNet::V6(_) => None,
    }
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
