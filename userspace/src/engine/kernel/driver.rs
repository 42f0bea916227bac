//! The program in the uplink's driver, where a node has one: `from_wire`, which walks the path of
//! [`Hook::FromUnderlay`] before the kernel makes a packet of a frame.
//!
//! A veth takes back what the program sends on only if its other end takes frames by NAPI (`gro` switched on there), and
//! what arrives must bear whole checksums (sending them left to a card switched off there).

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{TestRun, TestRunOptions};
use dataplane::Verdict;
use dataplane::tables::{IfIndex, Node};

use super::error::{Error, sentence};
use super::hook::{Hooked, hook_in};
use super::pin::Pins;
use super::run::{self, TUNNEL_BYTES};
use super::{Kernel, inside};
use crate::engine::Hook;

/// The program.
pub(super) const PROGRAM: &str = "from_wire";

/// The context of a test run (`struct xdp_md`) in words: where the frame begins and ends, where what is kept before
/// it begins, and the interface that it came in by. The layout is part of the kernel's interface.
const CONTEXT: usize = 6;
const DATA: usize = 0;
const DATA_END: usize = 1;
const INTERFACE: usize = 3;
/// Bytes of the verdict before the frame: see `ebpf/src/handover.rs`.
const SAID: usize = 8;

impl Kernel {
    /// Whether packets from the uplink are met in its driver.
    pub fn is_accelerated(&self) -> bool {
        has_program(&self.node)
    }

    /// Hooks the program into the uplinks among these places.
    pub(super) fn attach_drivers(&mut self, places: &[(Hook, String)]) -> Result<(), Error> {
        let mut hooked = Vec::new();
        if self.is_accelerated() {
            let mut before = std::mem::take(&mut self.drivers);
            for (_, interface) in places.iter().filter(|(hook, _)| *hook == Hook::FromUnderlay) {
                let held = before.iter().position(|(at, held)| at == interface && held.is_held_at(interface));
                if let Some(held) = held {
                    hooked.push(before.swap_remove(held));
                    continue;
                }
                let (program, pins) = (program(&mut self.ebpf)?, self.options.pins.as_ref());
                let link = inside(self.netns.as_ref(), || attach(program, interface, pins))??;
                hooked.push((interface.clone(), link));
            }
        }
        self.drivers = hooked;
        Ok(())
    }

    /// Where the program's links are pinned.
    pub(super) fn driver_pins(&self, pins: &Pins) -> Vec<PathBuf> {
        self.drivers.iter().map(|(interface, _)| pins.link(PROGRAM, interface)).collect()
    }
}

/// Whether a node has the program.
pub(super) fn has_program(node: &Node) -> bool {
    node.accelerated != 0
}

/// Hooks the program in, in place of the one that may be there from before. Called inside the namespace.
fn attach(program: &mut Xdp, interface: &str, pins: Option<&Pins>) -> Result<Hooked, Error> {
    hook_in(
        program,
        (PROGRAM, interface),
        pins,
        (replace, |program: &mut Xdp| {
            let id = program.attach(interface, XdpMode::Driver);
            let link = id.and_then(|id| program.take_link(id)).map_err(|why| sentence(&why))?;
            FdLink::try_from(link).map_err(|why| sentence(&why))
        }),
    )
}

/// Puts the program into a pinned link, in one step; `None` if the link is dead.
fn replace(program: &mut Xdp, pin: &Path) -> Option<PinnedLink> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?).try_into().ok()?;
    let id = program.attach_to_link(link).ok()?;
    // The pin holds the link; this handle of it is not needed any more.
    drop(program.take_link(id).ok()?);
    PinnedLink::from_pin(pin).ok()
}

/// Runs a frame through the program as if it had come in by an interface of this thread's namespace: see
/// [`run::run`].
pub(super) fn run(ebpf: &mut Ebpf, interface: IfIndex, frame: &[u8]) -> Result<(Verdict, Vec<u8>), Error> {
    let failed =
        |why: String| Error::Run { program: PROGRAM, length: frame.len(), interface: interface.0, why };
    let mut context = [0_u32; CONTEXT];
    context[DATA_END] = u32::try_from(frame.len()).map_err(|why| failed(why.to_string()))?;
    context[INTERFACE] = interface.0;
    let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut after = vec![0; context.len()];
    let mut out = vec![0; SAID + frame.len() + TUNNEL_BYTES];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ctx_out: Some(&mut after),
        // A second run would see what the first made of the frame.
        repeat: 1,
        ..TestRunOptions::default()
    };
    let result = program(ebpf)?.test_run(options).map_err(|why| failed(sentence(&why)))?;
    out.truncate(result.data_size_out as usize);
    let silent =
        || failed("it does not say its verdict: load it with tracing on, or with a fixed clock".to_owned());
    // What is kept before the frame is handed back with it.
    if word(&after, DATA) != Some(SAID as u32) {
        return Err(silent());
    }
    let said = word(&out, 0).zip(word(&out, 1)).ok_or_else(silent)?;
    let verdict = run::verdict(said.0, IfIndex(said.1)).ok_or_else(silent)?;
    Ok((verdict, out.split_off(SAID)))
}

/// The word at a place, counted in words.
fn word(bytes: &[u8], place: usize) -> Option<u32> {
    let bytes = bytes.get(place * 4..place * 4 + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, Error> {
    let failed = |why: String| Error::Program { program: PROGRAM, why };
    let program =
        ebpf.program_mut(PROGRAM).ok_or_else(|| failed("the object has no such program".to_owned()))?;
    program.try_into().map_err(|why: ProgramError| failed(sentence(&why)))
}
