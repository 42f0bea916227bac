//! All nodes of a cluster and the fabric between them, in memory: what a frame comes to in the end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use userspace::model::Cluster;

use super::frame::{ETHERNET, Packet};
use super::node::{Link, Node, Refused};
use super::plan::{Error, mac};

/// Where a frame leaves the nodes' hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stop {
    /// The pod with this first address.
    Pod(IpAddr),
    /// The stack of the node with this first address.
    Host(IpAddr),
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

/// The nodes of a cluster, by their first addresses.
#[derive(Clone, Debug)]
pub struct Network {
    nodes: BTreeMap<IpAddr, (String, Node)>,
    /// The node that the fabric brings an address to.
    ways: HashMap<IpAddr, IpAddr>,
}

impl Network {
    /// All nodes of the cluster, before any packet.
    ///
    /// # Errors
    /// The cluster asks for something that rules cannot do.
    pub fn new(cluster: &Cluster, seed: u64) -> Result<Self, Error> {
        let mut nodes = BTreeMap::new();
        let mut ways: HashMap<IpAddr, IpAddr> =
            cluster.ways_in().into_iter().map(|(address, node)| (address, node.address())).collect();
        for node in &cluster.nodes {
            nodes.insert(node.address(), (node.name.clone(), Node::new(cluster, &node.name, seed)?));
            let pods = cluster.pods_on(&node.name).filter(|pod| !pod.host_network);
            let own = pods.flat_map(|pod| &pod.addresses).chain(&node.addresses);
            ways.extend(own.map(|address| (*address, node.address())));
        }
        Ok(Self { nodes, ways })
    }

    /// The node with this first address.
    pub fn node(&self, address: impl Into<IpAddr>) -> Option<&Node> {
        self.nodes.get(&address.into()).map(|(_, node)| node)
    }

    /// A frame arrives at a link of the node with this first address, and goes as far as it goes.
    pub fn send(&mut self, node: impl Into<IpAddr>, link: Link, frame: Vec<u8>, now: Duration) -> Sent {
        self.follow(VecDeque::from([(node.into(), link, frame)]), now)
    }

    /// A frame for this address is handed to the fabric, and goes as far as it goes.
    pub fn send_outside(&mut self, target: IpAddr, frame: Vec<u8>, now: Duration) -> Sent {
        match self.ways.get(&target).copied() {
            Some(node) => self.send(node, Link::Uplink, frame, now),
            None => Sent { arrived: vec![(Stop::Outside, frame)], refused: None },
        }
    }

    fn follow(&mut self, mut waiting: VecDeque<(IpAddr, Link, Vec<u8>)>, now: Duration) -> Sent {
        let mut sent = Sent::default();
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

    /// The node that a frame on the fabric is for: its neighbour's, or the gateway brings it there.
    fn neighbour(&self, frame: &[u8]) -> Option<IpAddr> {
        let to = self.nodes.keys().copied().find(|address| frame.starts_with(&mac(*address)));
        to.or_else(|| {
            let packet = Packet::read(frame, ETHERNET).ok()?;
            self.ways.get(&packet.tuple.target.into()).copied()
        })
    }
}
