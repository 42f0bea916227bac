//! All nodes of a cluster and the fabric between them, in memory: what a frame comes to in the end.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use userspace::model::Cluster;

use super::node::{Node, Refused};
use super::plan::{Error, mac, v4};
use super::rules::Link;

/// Where a frame leaves the nodes' hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stop {
    /// The pod with this address.
    Pod(Ipv4Addr),
    /// The stack of the node with this address.
    Host(Ipv4Addr),
    /// The fabric, which takes what is for no node.
    Outside,
}

/// What became of a frame that was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The frames that arrived somewhere: itself, or an error about it.
    pub arrived: Vec<(Stop, Vec<u8>)>,
    /// The node that refused it, and why.
    pub refused: Option<(String, Refused)>,
}

/// The nodes of a cluster.
#[derive(Clone, Debug)]
pub struct Network {
    nodes: BTreeMap<Ipv4Addr, (String, Node)>,
}

impl Network {
    /// All nodes of the cluster, before any packet.
    ///
    /// # Errors
    /// Something that is not IPv4.
    pub fn new(cluster: &Cluster, seed: u64) -> Result<Self, Error> {
        let mut nodes = BTreeMap::new();
        for node in &cluster.nodes {
            let address = v4(node.address(), || format!("node {}", node.name))?;
            nodes.insert(address, (node.name.clone(), Node::new(cluster, &node.name, seed)?));
        }
        Ok(Self { nodes })
    }

    /// The node with this address.
    pub fn node(&self, address: Ipv4Addr) -> Option<&Node> {
        self.nodes.get(&address).map(|(_, node)| node)
    }

    /// A frame arrives at a link of the node with this address, and goes as far as it goes.
    pub fn send(&mut self, node: Ipv4Addr, link: Link, frame: Vec<u8>, now: Duration) -> Sent {
        let mut sent = Sent::default();
        let mut waiting = VecDeque::from([(node, link, frame)]);
        while let Some((address, link, frame)) = waiting.pop_front() {
            let Some((name, node)) = self.nodes.get_mut(&address) else { continue };
            let pushed = node.push(link, &frame, now);
            sent.refused = sent.refused.or(pushed.refused.map(|why| (name.clone(), why)));
            for (link, frame) in pushed.frames {
                match link {
                    Link::Pod(pod) => sent.arrived.push((Stop::Pod(pod), frame)),
                    Link::Host => sent.arrived.push((Stop::Host(address), frame)),
                    Link::Uplink | Link::Tunnel => match self.neighbour(&frame) {
                        Some(next) => waiting.push_back((next, Link::Uplink, frame)),
                        None => sent.arrived.push((Stop::Outside, frame)),
                    },
                }
            }
        }
        sent
    }

    /// The node that a frame on the fabric is for.
    fn neighbour(&self, frame: &[u8]) -> Option<Ipv4Addr> {
        self.nodes.keys().copied().find(|address| frame.starts_with(&mac(*address)))
    }
}
