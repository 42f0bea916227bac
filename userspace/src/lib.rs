//! The agent: what the user asked for, planned into the packet path's tables, and the engines that hold them.

pub mod agent;
pub mod engine;
pub mod error;
pub mod fabric;
pub mod health;
pub mod ipam;
pub mod model;
pub mod observe;
pub mod plan;
pub mod toolchain;
