//! What a fabric did so far, and what it holds, as plain data; the names are those of counters and JSON.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::model::{Direction, LinkQuality};

/// What a fabric did so far, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Frames that arrived.
    pub arrived: u64,
    /// Frames that links doubled.
    pub duplicated: u64,
    /// ICMP errors that the gateway made, and health probes.
    pub made: u64,
    /// Frames that left.
    pub departed: u64,
    /// Frames that were for the fabric itself: answers to health probes.
    #[serde(default)]
    pub taken: u64,
    /// Frames that are under way.
    pub under_way: u64,
    /// Frames that were lost, by the slug of the [`Loss`]; those of which there was none are left out.
    pub lost: BTreeMap<String, u64>,
    /// What happened on each link.
    pub links: Vec<LinkReport>,
    /// Security rules in the order they are asked, outbound first.
    pub rules: Vec<RuleReport>,
    /// Flows that the security groups hold.
    pub flows: u64,
    /// Source ports of the outbound rule, if there is one.
    pub snat: Option<SnatReport>,
    /// The load balancer's packets, if it has frontends.
    #[serde(default)]
    pub balancer: Option<BalancerReport>,
    /// The load balancer's frontends.
    #[serde(default)]
    pub frontends: Vec<FrontendReport>,
}

/// What became of the packets that came to the load balancer for a frontend; and of their answers, where these
/// come back through it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerReport {
    /// Packets for a frontend's address: those that were sent and those that were lost.
    pub arrived: u64,
    /// Packets that went to a node.
    pub sent: u64,
    /// Packets that did not, by the slug of the [`Loss`](super::Loss). An emulated fabric's own count has them as
    /// well.
    pub lost: BTreeMap<String, u64>,
    /// Answers that were made to come from the frontend again.
    pub returned: u64,
}

/// A port of a frontend at the load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendReport {
    /// Address and port.
    pub frontend: SocketAddr,
    /// As in the IP header.
    pub protocol: u8,
    /// The nodes behind it.
    pub nodes: Vec<RealReport>,
}

/// A node behind a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealReport {
    /// The node's name.
    pub node: String,
    /// `healthy` or `unhealthy`.
    pub state: String,
    /// Slots of the ring that it has: its share of new flows.
    pub slots: u32,
}

/// One link, with what it does now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Its name is in it.
    pub quality: LinkQuality,
    /// Frames from the host: that passed.
    pub passed_in: u64,
    /// Frames to the host: that passed.
    pub passed_out: u64,
    /// Lost by chance, both ways.
    pub lost: u64,
    /// Lost for want of room, both ways.
    pub queue_full: u64,
    /// Doubled, both ways.
    pub duplicated: u64,
}

/// A security rule, and the flows that it decided about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// Seen from the node's interface.
    pub direction: Direction,
    /// Of the rules of its direction, the lowest is asked first.
    pub priority: u16,
    /// The rule's.
    pub name: String,
    /// Whether it allows.
    pub allow: bool,
    /// Packets that no flow had, and that it decided about.
    pub hits: u64,
}

/// The outbound rule's source ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatReport {
    /// The public address.
    pub address: IpAddr,
    /// Of each node, in the order of the cluster.
    pub nodes: Vec<SnatNode>,
}

/// The source ports of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatNode {
    /// The node's name.
    pub node: String,
    /// Its first and its last port.
    pub ports: (u16, u16),
    /// Flows that have one. A port may serve several destinations at once.
    pub flows: u64,
    /// Packets that found none free.
    pub exhausted: u64,
    /// Destinations by ports in use, most first; at most [`SnatNode::TOP`].
    pub destinations: Vec<SnatDestination>,
}

impl SnatNode {
    /// Destinations that a report names.
    pub const TOP: usize = 5;
}

/// Where a node's flows go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatDestination {
    /// Address and port.
    pub remote: SocketAddr,
    /// As in the IP header.
    pub protocol: u8,
    /// Ports in use towards it, of all the node has.
    pub used: u32,
}
