//! A cluster's packet path on one machine, and the judges of it.

pub mod agents;
pub mod case;
pub mod control;
pub mod dataplane;
pub mod diff;
pub mod doctor;
pub mod fabric;
pub mod interrupt;
pub mod lab;
pub mod link;
pub mod lint;
pub mod listen;
pub mod netns;
pub mod oracle;
pub mod output;
pub mod page;
pub mod probe;
pub mod progress;
pub mod ruling;
pub mod sound;
pub mod spread;
pub mod state;
pub mod topology;
pub mod traffic;
pub mod witness;
