//! Engine 2: the packet path in this process, with no privilege and no clock but its own.
//!
//! [`Emulator`] is one node; [`Network`] is a cluster of nodes on any engine, with hosts that speak.

pub mod balancer;
pub mod connect;
pub mod discovery;
pub mod frame;
pub mod host;
pub mod leak;
pub mod matrix;
pub mod message;
pub mod network;
pub mod node;
mod pieces;
mod tables;
pub mod tally;
pub mod topology;

pub use connect::{Answer, Attempt};
pub use frame::Frame;
pub use host::Dial;
pub use matrix::Matrix;
pub use network::Network;
pub use node::Emulator;

use dataplane::Machine;

use crate::error::Error;
use crate::model::Cluster;

impl Network<Emulator> {
    /// A cluster of emulated nodes.
    ///
    /// # Errors
    /// The cluster cannot be planned, or does not fit into the tables.
    pub fn new(cluster: &Cluster, seed: u32) -> Result<Self, Error> {
        Self::with(cluster, seed, Box::new(Emulator::new))
    }

    /// Lets so much time pass that every flow is over, and the agents sweep them away: whoever asks about
    /// many flows does so now and then, or the tables fill up.
    ///
    /// # Errors
    /// None that this engine has.
    pub fn settle(&mut self) -> Result<(), Error> {
        let longest_s = (0..self.nodes()).filter_map(|node| {
            let it = self.engine(node)?.node().timeouts;
            Some(it.tcp_s.max(it.udp_s).max(it.icmp_s).max(it.tcp_opening_s).max(it.quarantine_s))
        });
        let longest_s = longest_s.max();
        self.wait(longest_s.unwrap_or(0))?;
        self.sweep()
    }
}
