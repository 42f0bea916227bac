//! What the user asks for: Kubernetes objects in, [`Cluster`] out.

pub mod cluster;

pub use cluster::*;
