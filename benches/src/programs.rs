//! What the verifier says of our programs, as results hold it.

use userspace::engine::kernel::{Verified, verified};

use crate::results::Program;

/// Has the verifier look at every program: it takes seconds and root, and nothing else should go on in this process.
///
/// # Errors
/// The object is not built, or the kernel refuses a program.
pub fn measure() -> Result<Vec<Program>, userspace::error::Error> {
    let program = |verified: Verified| {
        let Verified { instructions, verified: followed, peak_states, total_states, stack_bytes, .. } =
            verified;
        Program {
            name: verified.name.to_owned(),
            instructions,
            verified: followed,
            peak_states,
            total_states,
            stack_bytes,
            load_us: verified.load.as_micros() as u64,
        }
    };
    Ok(verified()?.into_iter().map(program).collect())
}
