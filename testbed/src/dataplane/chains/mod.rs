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
pub mod frame;
mod kube;
mod node;
mod plan;
mod policy;
pub mod rules;

pub use node::{Node, Pushed, Refused};
pub use plan::{Error, Hop, Plan};
