//! What the load balancer's tables hold, whatever engine has them.

use std::collections::BTreeMap;

use dataplane::tables::{Real, Slot, Virtual};
use dataplane::verdict::Fate;
use dataplane::wire::{Address, V4, V6};

use crate::plan::FrontendKey;

/// Every row that is not the walk's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// The tables of IPv4.
    pub v4: FamilyRows<V4>,
    /// The tables of IPv6.
    pub v6: FamilyRows<V6>,
}

/// Those of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyRows<A: Address> {
    /// See [`dataplane::tables::Virtuals`].
    pub virtuals: BTreeMap<FrontendKey<A>, Virtual>,
    /// See [`dataplane::tables::Ring`]; shorter than the table: the rest is never read.
    pub ring: Vec<Slot>,
    /// See [`dataplane::tables::Reals`]; shorter than the table: the rest is never read.
    pub reals: Vec<Real<A>>,
}

impl<A: Address> Default for FamilyRows<A> {
    fn default() -> Self {
        Self { virtuals: BTreeMap::new(), ring: Vec::new(), reals: Vec::new() }
    }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Where it goes.
    pub fate: Fate,
    /// The frame afterwards; as it was changed so far, if it was refused.
    pub frame: Vec<u8>,
}
