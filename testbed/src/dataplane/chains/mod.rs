//! `chains`: a node's packet path written the iptables way, in userspace.
//!
//! The rival of `dataplane` and a judge of it: rules in chains that are walked in order, connections of two
//! tuples, kube-proxy's chains for Services, a chain per pod for policies. It is another reading of the
//! same specifications, by other means.
//!
//! **Invariant:** nothing here uses the `dataplane` crate, nor the agent's planner: whoever agrees with this
//! does not do so because both call the same code.
//!
//! What it leaves out: fragments are dropped, not put together; IPv4 only.

pub mod conntrack;
mod deaf;
pub mod frame;
mod kube;
pub mod live;
mod network;
mod node;
mod plan;
mod policy;
pub mod rules;

pub use network::{Network, Sent, Stop};
pub use node::{Node, Pushed, Refused};
pub use plan::{Error, Hop, Plan};

use super::{Dataplane, Name};
use crate::topology::{Layout, Topology};

/// The seed of the endpoints that Services choose, where nobody asks for another.
const SEED: u64 = 1;

/// `chains` as one of the dataplanes that are compared.
#[derive(Debug, Default)]
pub struct Chains {
    live: Option<live::Live>,
}

impl Dataplane for Chains {
    fn name(&self) -> Name {
        Name::Chains
    }

    fn layout(&self) -> Layout {
        Layout::USERSPACE
    }

    fn start(&mut self, topology: &Topology) -> Result<(), super::Error> {
        self.live = Some(live::Live::start(topology, SEED)?);
        Ok(())
    }

    fn apply(&mut self, topology: &Topology) -> Result<(), super::Error> {
        match &mut self.live {
            Some(live) => Ok(live.apply(topology)?),
            None => self.start(topology),
        }
    }

    fn stop(&mut self) -> Result<(), super::Error> {
        self.live = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
