//! Who may reach whom: what policies say of every pair of ends at some ports, for a whole cluster at once.
//!
//! Nobody sends a packet. Of each flow the path's policy stage alone is asked ([`dataplane::policy::judge`]), on
//! the rows that are planned for the nodes; and it is asked once for all flows that those rows cannot tell apart:
//!
//! - As the pod that is judged: pods with one rule set, isolated in the same directions, are one **subject**.
//! - As the other end: addresses of one identity are one **peer**.
//! - A pod's own node is a peer of its own, to the pods on it.
//!
//! What the walk decides before it asks holds here as well: a pod reaches itself, and its node reaches it.
//!
//! What is asked about is the flow as policies see it: after a Service's address, or a node's port, was replaced
//! by what is behind it. Whether there is a way, and whether anybody listens, is not asked.

mod sight;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::OnceLock;

use dataplane::tables::{Endpoint, IfIndex};
use dataplane::wire::{V4, V6};

use super::Emulator;
use crate::engine::Capacities;
use crate::error::Error;
use crate::ipam::IpFamily;
use crate::model::{Cluster, Port, Who};
use crate::plan::{Links, NodeRows, Plan, RuleName};
use sight::{Asking, Gathered, Sight};

/// Who may reach whom at which ports.
#[derive(Clone, Debug)]
pub struct Matrix {
    ends: Vec<Who>,
    places: HashMap<Who, usize>,
    ports: Vec<Port>,
    plan: Plan,
    v4: Sight,
    v6: Sight,
    /// See [`Settings::lent`](crate::model::Settings::lent).
    lent: Option<Over>,
    classes: Vec<u32>,
    /// Of each end, the policies that isolate it: on the way out, and in. Found when somebody asks.
    isolating: Vec<[OnceLock<Vec<String>>; 2]>,
}

/// What policies say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It is dropped.
    Deny,
}

/// A direction, seen from the pod that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Out of the pod.
    Egress,
    /// Into the pod.
    Ingress,
}

/// What one end of a flow had to say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Decided {
    /// Whether the pod at the source was judged, or the one at the target.
    pub direction: Direction,
    /// Over which family.
    pub over: Over,
    /// What follows: a flow that is denied may pass where policies are only tried out.
    pub verdict: Verdict,
    /// Why.
    pub why: Why,
}

/// A family of addresses, in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Over {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why an end of a flow lets it pass, or does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// A pod always reaches itself.
    Itself,
    /// A pod's own node always reaches it.
    OwnNode,
    /// No policy has a say about the pod in this direction.
    NotIsolated,
    /// This rule allows it.
    AllowedBy(RuleName),
    /// Policies of the whole cluster have a say, and none denies it.
    NotDenied,
    /// These policies isolate the pod, by name, and no rule allows it.
    Isolated(Vec<String>),
    /// This rule denies it.
    DeniedBy(RuleName),
    /// What policies say of the pod did not fit into its node's table.
    Incomplete,
}

impl Why {
    /// Whether it speaks against the flow.
    pub fn denies(&self) -> bool {
        matches!(self, Self::Isolated(_) | Self::DeniedBy(_) | Self::Incomplete)
    }
}

impl Decided {
    /// It is about packets of IPv4.
    pub fn is_over_v4(&self) -> bool {
        self.over == Over::V4
    }

    /// The pod at the source was judged.
    pub fn is_of_source(&self) -> bool {
        self.direction == Direction::Egress
    }

    /// It was denied, and passes: policies are only tried out on the pod.
    pub fn audited(&self) -> bool {
        self.verdict == Verdict::Allow && self.why.denies()
    }
}

impl Matrix {
    /// Asks about every pod, node and host outside of a cluster, each with each, at these ports.
    ///
    /// # Errors
    /// [`Error::Plan`]: the cluster cannot be planned.
    pub fn of(cluster: &Cluster, ports: &[Port]) -> Result<Self, Error> {
        let plan = Plan::of(cluster)?;
        let mut on: BTreeMap<&str, Links> = BTreeMap::new();
        for pod in cluster.pods.iter().filter(|pod| !pod.host_network) {
            // Which one it is says nothing to policies.
            on.entry(&pod.node).or_default().pods.insert(pod.id(), IfIndex(1));
        }
        let (mut v4, mut v6) = (Gathered::<V4>::default(), Gathered::<V6>::default());
        let mut last = None;
        for node in &cluster.nodes {
            let mut planned = plan.node(&node.name, &on.remove(node.name.as_str()).unwrap_or_default())?;
            v4.take(std::mem::take(&mut planned.rows.v4), std::mem::take(&mut planned.rules.v4));
            v6.take(std::mem::take(&mut planned.rows.v6), std::mem::take(&mut planned.rules.v6));
            last = Some(planned);
        }
        let stands = stands(cluster);
        let of = |v4: bool| -> Vec<(Option<IpAddr>, Option<usize>)> {
            let one = |stand: &Stand<'_>| stand.addresses.iter().copied().find(|it| it.is_ipv4() == v4);
            stands.iter().map(|stand| (one(stand), stand.node)).collect()
        };
        let (of_v4, of_v6) = (of(true), of(false));
        let ends: Vec<Who> = stands.into_iter().map(|stand| stand.who).collect();
        let mut matrix = Self {
            places: ends.iter().cloned().zip(0..).collect(),
            classes: Vec::new(),
            isolating: ends.iter().map(|_| Default::default()).collect(),
            ends,
            ports: ports.to_vec(),
            plan,
            v4: Sight::default(),
            v6: Sight::default(),
            lent: cluster.settings.lent.map(|lent| if lent == IpFamily::V4 { Over::V4 } else { Over::V6 }),
        };
        let Some(mut one) = last else { return Ok(matrix) };
        let heard = (v4.heard(), v6.heard());
        one.rows = NodeRows { v4: v4.rows(), v6: v6.rows(), ..NodeRows::default() };
        let mut engine = Emulator::with_capacities(&one, &boundless()?)?;
        matrix.v4 = Asking::new(&mut engine, v4, heard.0, ports).sight(&of_v4);
        matrix.v6 = Asking::new(&mut engine, v6, heard.1, ports).sight(&of_v6);
        let mut classes = HashMap::new();
        let class = |end| {
            let next = classes.len() as u32;
            *classes.entry((matrix.v4.sort(end), matrix.v6.sort(end))).or_insert(next)
        };
        matrix.classes = (0..matrix.ends.len()).map(class).collect();
        Ok(matrix)
    }

    /// Pods, then nodes, then hosts outside, each in the cluster's order.
    pub fn endpoints(&self) -> &[Who] {
        &self.ends
    }

    /// Where somebody stands in [`Matrix::endpoints`].
    pub fn place(&self, who: &Who) -> Option<usize> {
        self.places.get(who).copied()
    }

    /// The ports that were asked about, in that order.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// What policies say of a flow between two of [`Matrix::endpoints`], to one of [`Matrix::ports`], all by
    /// their places. Between two that have both families it must be allowed over each, or, if one of them is lent,
    /// over the other; between two that have none in common nothing is denied.
    pub fn verdict(&self, from: usize, to: usize, port: usize) -> Verdict {
        let passes = |over| !self.counts(over, from, to) || self.sight(over).passes(from, to, port);
        if passes(Over::V4) && passes(Over::V6) { Verdict::Allow } else { Verdict::Deny }
    }

    fn sight(&self, over: Over) -> &Sight {
        if over == Over::V4 { &self.v4 } else { &self.v6 }
    }

    /// Whether what is said over a family is said of two ends: of one that is lent only if they have no other.
    fn counts(&self, over: Over, from: usize, to: usize) -> bool {
        let other = if over == Over::V4 { Over::V6 } else { Over::V4 };
        self.lent != Some(over) || !self.sight(other).joins(from, to)
    }

    /// What each end has to say, the source first: the pods among them, that is. Both are asked, also where the
    /// first denies it.
    pub fn judgements(&self, from: usize, to: usize, port: usize) -> Vec<Decided> {
        let v4 = self.judgements_over(Over::V4, from, to, port);
        v4.into_iter().chain(self.judgements_over(Over::V6, from, to, port)).collect()
    }

    /// Who decided about a flow: the first end that denies it; where none does, the last that a rule allows it;
    /// else the last that had anything to say. None where no pod is concerned.
    pub fn decided_by(&self, from: usize, to: usize, port: usize) -> Option<Decided> {
        let mut all = self.judgements(from, to, port);
        let denied = all.iter().position(|one| one.verdict == Verdict::Deny);
        let said = |one: &Decided| matches!(one.why, Why::AllowedBy(_)) || one.why.denies();
        let at = denied.or_else(|| all.iter().rposition(said)).or_else(|| all.len().checked_sub(1))?;
        Some(all.swap_remove(at))
    }

    /// A number for all ends that fare alike, with everybody but themselves and pods' own nodes: these flows are
    /// allowed whatever class they are of, or, from a pod to its node, judged for each pod.
    pub fn class(&self, end: usize) -> u32 {
        self.classes[end]
    }

    /// The policies that isolate an end in a direction, by name; none for whom none selects.
    pub fn isolating(&self, end: usize, direction: Direction) -> &[String] {
        self.isolating[end][direction as usize].get_or_init(|| {
            let bit = if direction == Direction::Egress { Endpoint::EGRESS } else { Endpoint::INGRESS };
            self.plan.isolating(&self.ends[end].to_string(), bit).into_iter().map(str::to_owned).collect()
        })
    }

    fn judgements_over(&self, over: Over, from: usize, to: usize, port: usize) -> Vec<Decided> {
        if !self.counts(over, from, to) {
            return Vec::new();
        }
        let sight = self.sight(over);
        let decided = sight.said(from, to, port).into_iter().map(|said| {
            let judged = if said.direction == Direction::Egress { from } else { to };
            let isolating = || self.isolating(judged, said.direction).to_vec();
            Decided {
                direction: said.direction,
                over,
                verdict: said.verdict,
                why: said.why(sight, isolating),
            }
        });
        decided.collect()
    }
}

/// Somebody who can send, and where.
struct Stand<'a> {
    who: Who,
    addresses: &'a [IpAddr],
    /// The node that it is, by its place.
    node: Option<usize>,
}

fn stands(cluster: &Cluster) -> Vec<Stand<'_>> {
    let places: HashMap<&str, usize> =
        cluster.nodes.iter().zip(0..).map(|(node, place)| (node.name.as_str(), place)).collect();
    let pods = cluster.pods.iter().map(|pod| Stand {
        who: Who::Pod(pod.id()),
        addresses: &pod.addresses,
        node: places.get(pod.node.as_str()).copied().filter(|_| pod.host_network),
    });
    let nodes = cluster.nodes.iter().enumerate().map(|(place, node)| Stand {
        who: Who::Node(node.name.clone()),
        addresses: &node.addresses,
        node: Some(place),
    });
    let outside = cluster.externals.iter().map(|external| Stand {
        who: Who::External(external.name.clone()),
        addresses: std::slice::from_ref(&external.address),
        node: None,
    });
    pods.chain(nodes).chain(outside).collect()
}

/// Room for the rows of all nodes.
fn boundless() -> Result<Capacities, Error> {
    let mut capacities = Capacities::default();
    for table in ["policy", "policy_v6", "identities", "identities_v6"] {
        capacities.set(table, u32::MAX)?;
    }
    Ok(capacities)
}

/// The ports that pods of a cluster declare, each once, in order: what to ask about if nobody says so.
pub fn declared(cluster: &Cluster) -> Vec<Port> {
    let ports = cluster.pods.iter().flat_map(|pod| &pod.ports);
    let ports: BTreeSet<Port> =
        ports.map(|port| Port { number: port.port, protocol: port.protocol }).collect();
    ports.into_iter().collect()
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("allowed, a pod reaches itself"),
            Self::OwnNode => f.write_str("allowed, from the pod's own node"),
            Self::NotIsolated => f.write_str("allowed, no policy selects it"),
            Self::AllowedBy(RuleName { policy, rule }) => write!(f, "allowed by {policy} {rule}"),
            Self::NotDenied => f.write_str("allowed, no policy denies it"),
            Self::DeniedBy(RuleName { policy, rule }) => write!(f, "denied by {policy} {rule}"),
            Self::Incomplete => f.write_str("denied, its rules did not fit into the node's table"),
            Self::Isolated(policies) => {
                write!(f, "isolated by {}, and no rule allows it", policies.join(", "))
            }
        }
    }
}
