//! Programs that trace, and programs that do not: the ones at work, and the others, kept for the next time. The
//! verifier takes seconds for all of them, and they differ in nothing else.

use super::{Kernel, Options};
use crate::plan::NodePlan;

impl Kernel {
    /// Lets every stage report, or only what must be known of any packet: programs that do so take the place of
    /// these, on the same flows. Those that were at work before are kept until the node's rows change.
    ///
    /// # Errors
    /// As [`Kernel::load`] and [`Kernel::attach`]; the programs at work go on then.
    pub fn trace(&mut self, plan: &NodePlan, on: bool) -> Result<(), crate::error::Error> {
        if self.tracing() == on {
            return Ok(());
        }
        // Without pins, the flows are each program's own.
        if self.options.pins.is_none() {
            return self.reload(plan, on);
        }
        let places: Vec<_> = self.hooked.keys().cloned().collect();
        let mut next = match self.spare.take() {
            Some(mut spare) => {
                // Another kernel's tables of Services have been pinned since.
                spare.held = false;
                spare
            }
            None => Box::new(Self::load(plan, Options { trace: on, ..self.options.clone() })?),
        };
        if let Err(why) = next.attach(&places) {
            // What has changed hands goes back; where it failed it may fail again.
            self.held = false;
            let _ = self.attach(&places);
            return Err(why.into());
        }
        std::mem::swap(self, &mut next);
        // There is one reader of reports, which knows how far it has read.
        std::mem::swap(&mut self.events, &mut next.events);
        self.spare = Some(next);
        Ok(())
    }
}
