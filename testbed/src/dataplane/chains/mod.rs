//! `chains`: a node's packet path written the iptables way, in userspace.
//!
//! The rival of `dataplane` and a judge of it: rules in chains that are walked in order, connections of two
//! tuples, kube-proxy's chains for Services, a chain per pod for policies. It is another reading of the
//! same specifications, by other means, and its rules are the very text that `iptables` loads into the kernel
//! ([`Ruleset`]).
//!
//! **Invariant:** nothing here uses the `dataplane` crate, nor the agent's planner: whoever agrees with this
//! does not do so because both call the same code.
//!
//! What a packet costs:
//!
//! | step | price |
//! | --- | --- |
//! | raw | of a pod's packets, every one: half the node's pods on average, a rule each; of others two or three rules |
//! | conntrack | one look-up in a hash table; a new connection three more, and two rows, three if its source is translated |
//! | nat | every address and port of every Service before the one that is dialled, then its endpoints, half of them on average: a connection's first packet |
//! | filter | two rules for an answered connection; for a new one the pods of the node, both ways, then every peer of every policy that is about the two |
//! | rewriting | the headers, checksums by difference; one copy of the frame |
//!
//! What it leaves out: fragments are dropped, not put together, and what is too long and may be cut is dropped, not
//! cut; rules do not see wrapped packets from outside, as the kernel's do. A client outside whose endpoint is on another node is seen there as the node it came by, as
//! everywhere with kube-proxy, in the tunnel as well.

mod answer;
pub mod conntrack;
pub mod frame;
pub mod judge;
mod network;
mod node;
mod plan;
pub(in crate::dataplane) mod policies;
pub mod ruleset;
mod services;
mod sum;
mod tunnel;
pub mod walk;

pub use network::{Network, Sent, Stop};
pub use node::{Link, Node, Pushed, Refused};
pub(crate) use plan::forwards_in_ip;
pub use plan::{Error, check};
pub use ruleset::Ruleset;
pub use userspace::ipam::IpFamily as Family;

use std::time::Duration;

use userspace::model::Cluster;

use super::live::{Out, Path, Refusal, Wire};
use crate::topology::Layout;

/// The seed of the endpoints that Services choose on real links.
const SEED: u64 = 1;

/// A node and the memory that its frames are written in.
#[derive(Debug)]
pub struct Live {
    node: Node,
    frame: Vec<u8>,
}

impl Path for Live {
    /// The kernel's rules meet what a node's own sockets dial at the node itself; ours have to be led to it.
    const LAYOUT: Layout = Layout { own_ports: true, ..Layout::USERSPACE };

    fn new(cluster: &Cluster, node: &str) -> Result<Self, Refusal> {
        Ok(Self { node: Node::new(cluster, node, SEED)?, frame: Vec::new() })
    }

    fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Refusal> {
        Ok(self.node.apply(cluster, node)?)
    }

    fn pass(&mut self, at: Wire, frame: &[u8], now: Duration, out: &mut Out) {
        let link = match at {
            Wire::Uplink => Link::Uplink,
            Wire::Host => Link::Host,
            Wire::Pod(address) => Link::Pod(address),
        };
        let (to, refused) = self.node.pass(link, frame, now, &mut self.frame);
        if let Some(why) = refused {
            tracing::debug!("chains refused a frame from {at:?}: {why}");
        }
        if let Some(to) = to {
            let to = match to {
                Link::Uplink | Link::Tunnel => Wire::Uplink,
                Link::Host => Wire::Host,
                Link::Pod(address) => Wire::Pod(address),
            };
            out.send(to, &self.frame);
        }
    }
}

#[cfg(test)]
mod tests;
