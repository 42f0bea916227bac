//! What the load balancer's tables hold, whatever engine has them.

use std::collections::BTreeMap;

use dataplane::tables::{Pin, Pinned, Real, Reals, Ring, Slot, Table as _, Virtual, Virtuals};
use dataplane::verdict::Fate;
use dataplane::wire::{Address, V4, V6};

use super::Count;
use super::capacity::fits;
use crate::error::Error;
use crate::plan::FrontendKey;

/// Whoever carries packets by these tables, as their owner sees it.
pub trait Carrier: Keeps<V4> + Keeps<V6> {
    /// Brings the tables to exactly these rows; pins stay.
    ///
    /// # Errors
    /// [`Error::TableTooSmall`], and nothing was changed then; or a table cannot be written.
    fn apply(&mut self, rows: &Rows) -> Result<(), Error>;

    /// Packets and bytes by [`Fate::counter`].
    ///
    /// # Errors
    /// They cannot be read.
    fn counts(&self) -> Result<Vec<Count>, Error>;
}

/// What a [`Carrier`] keeps of a family's flows.
pub trait Keeps<A: Address> {
    /// The pins, in the order of their keys' bytes.
    ///
    /// # Errors
    /// The table cannot be read.
    fn pins(&self) -> Result<Vec<(Pin<A>, Pinned)>, Error>;

    /// Forgets a pin, if there is one, of which no packet came since `seen_s`.
    ///
    /// # Errors
    /// The table cannot be written.
    fn forget(&mut self, pin: &Pin<A>, seen_s: u32) -> Result<(), Error>;

    /// When a flow of a slot that has moved was sent home last, in seconds of the engine's clock; 0 if none was.
    ///
    /// # Errors
    /// The table cannot be read.
    fn at_home_s(&self, slot: u32) -> Result<u32, Error>;
}

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

impl<A: Address> FamilyRows<A> {
    /// Whether the tables hold them.
    pub(super) fn fit(&self) -> Result<(), Error> {
        fits::<Virtuals<A>>(self.virtuals.len(), Virtuals::<A>::CAPACITY)?;
        fits::<Ring<A>>(self.ring.len(), Ring::<A>::CAPACITY)?;
        fits::<Reals<A>>(self.reals.len(), Reals::<A>::CAPACITY)
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
