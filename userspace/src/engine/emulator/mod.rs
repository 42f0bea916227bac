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
}
