//! What `dataplane::platform` asks of the load balancer's engine, answered by XDP.

use dataplane::platform::Balancing;
use dataplane::tables::Balancer;
use dataplane::verdict::Fate;
use dataplane::wire::Address;

use crate::bytes::constants;
use crate::{clock, maps};

constants! {
    /// What the program was loaded to do.
    BALANCER: Balancer;
}

/// The kernel as the load balancer's engine. Its state is the maps.
pub(crate) struct Kernel;

impl<A: Address> Balancing<A> for Kernel
where
    dataplane::tables::Virtuals<A>: crate::mapped::Mapped,
    dataplane::tables::Ring<A>: crate::mapped::Mapped,
    dataplane::tables::Reals<A>: crate::mapped::Mapped,
    dataplane::tables::Pins<A>: crate::mapped::Mapped<Map = crate::mapped::Hash<dataplane::tables::Pins<A>>>,
{
    #[inline(always)]
    fn balancer(&self) -> Balancer {
        BALANCER.load()
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        clock::now_s()
    }

    #[inline(always)]
    fn at_home(&mut self, slot: u32, now_s: u32) {
        maps::at_home(A::VERSION == 6, slot, now_s);
    }

    #[inline(always)]
    fn count(&mut self, fate: Fate, bytes: u32) {
        maps::count(fate, bytes);
    }
}
