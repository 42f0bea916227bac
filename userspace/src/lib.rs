//! The agent: what the user asked for, planned into the packet path's tables, and the engines that hold them.

pub mod ipam;
pub mod model;
