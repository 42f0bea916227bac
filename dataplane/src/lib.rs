//! The packet path of a node: one source, compiled into the kernel as eBPF and into a process as the
//! emulator. `no_std`, no dependencies, no clock, no input or output.
#![no_std]
#![deny(unsafe_code)]

pub mod path;
pub mod platform;
pub mod tables;
pub mod verdict;
pub mod wire;

pub mod header;

pub mod flow;

pub mod fragment;

pub mod neighbour;

pub mod service;

pub mod socket;

pub mod conntrack;

pub mod policy;

pub mod route;

pub mod nat;

pub mod mss;

pub mod overlay;

pub mod reject;

pub mod balance;

pub mod trace;

pub use platform::{Machine, Mend, MendEnd, Packet, Platform};
pub use verdict::{Reason, Turn, Verdict};
