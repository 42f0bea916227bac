//! What became of every frame that hosts sent, or that was put in for them.

use std::collections::BTreeMap;

use dataplane::Reason;

use super::host::Refusal;
use crate::fabric;

/// What became of the frames that hosts sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that hosts sent, or that were put in for them.
    pub sent: u64,
    /// Frames that hosts took.
    pub delivered: u64,
    /// Frames that ended elsewhere, by why.
    pub dropped: BTreeMap<Loss, u64>,
}

impl Tally {
    /// Frames that ended elsewhere.
    pub fn dropped(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// Where and why a frame ended before it reached a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loss {
    /// A node's path refused it.
    Path(Reason),
    /// The fabric could not deliver it.
    Fabric(fabric::Loss),
    /// A host would not take it.
    Host(Refusal),
    /// The path sent it where there is nobody.
    Nowhere,
}
