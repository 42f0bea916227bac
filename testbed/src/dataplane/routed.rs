//! `routed`: the kernel's own routing between pods, with an address of each pod known to every node. No
//! encapsulation, no Services, no policies: what is left of a packet path when nothing is done but to
//! deliver. The yardstick of the comparison.

use super::{Dataplane, Error, Name};
use crate::topology::{Layout, Topology};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Routed;

impl Dataplane for Routed {
    fn name(&self) -> Name {
        Name::Routed
    }

    fn layout(&self) -> Layout {
        Layout::ROUTED
    }

    /// The links carry their routes: nothing is to be started.
    fn start(&mut self, _: &Topology) -> Result<(), Error> {
        Ok(())
    }

    fn apply(&mut self, _: &Topology) -> Result<(), Error> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
