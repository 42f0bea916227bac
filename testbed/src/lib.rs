//! A cluster's packet path on one machine, and the judges of it.

pub mod link;
pub mod listen;
pub mod netns;
pub mod state;
pub mod topology;
