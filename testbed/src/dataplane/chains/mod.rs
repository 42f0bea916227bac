//! `chains`: a node's packet path written the iptables way, in userspace.
//!
//! The rival of `dataplane` and a judge of it: rules in chains that are walked in order, connections of two
//! tuples, kube-proxy's chains for Services, a chain per pod for policies. It is another reading of the
//! same specifications, by other means.
//!
//! **Invariant:** nothing here uses the `dataplane` crate, nor the agent's planner: whoever agrees with this
//! does not do so because both call the same code.
//!
//! What it leaves out: fragments are dropped, not put together; IPv4 only; `overlay` with VXLAN only.

pub mod conntrack;
pub mod frame;
pub mod judge;
mod kube;
mod network;
mod node;
mod plan;
mod policies;
mod policy;
pub mod rules;
pub mod ruleset;
mod services;

pub use ruleset::Ruleset;
pub use userspace::ipam::IpFamily as Family;

pub use network::{Network, Sent, Stop};
pub use node::{Node, Pushed, Refused};
pub use plan::{Error, Hop, Plan, check};

use std::net::IpAddr;
use std::time::Duration;

use userspace::model::Cluster;

use super::live::{Out, Path, Refusal, Wire};
use rules::Link;

/// The seed of the endpoints that Services choose on real links.
const SEED: u64 = 1;

impl Path for Node {
    fn new(cluster: &Cluster, node: &str) -> Result<Self, Refusal> {
        Ok(Self::new(cluster, node, SEED)?)
    }

    fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Refusal> {
        Ok(self.apply(cluster, node)?)
    }

    fn pass(&mut self, at: Wire, frame: &[u8], now: Duration, out: &mut Out) {
        let link = match at {
            Wire::Uplink => Link::Uplink,
            Wire::Host => Link::Host,
            Wire::Pod(IpAddr::V4(address)) => Link::Pod(address),
            // Plans are for IPv4 only.
            Wire::Pod(IpAddr::V6(_)) => return,
        };
        let pushed = self.push(link, frame, now);
        if let Some(why) = &pushed.refused {
            tracing::debug!("chains refused a frame from {link}: {why}");
        }
        for (link, frame) in &pushed.frames {
            let to = match *link {
                Link::Uplink | Link::Tunnel => Wire::Uplink,
                Link::Host => Wire::Host,
                Link::Pod(address) => Wire::Pod(address.into()),
            };
            out.send(to, frame);
        }
    }
}

#[cfg(test)]
mod tests;
