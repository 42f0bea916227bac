//! How long the path's programs take, in the kernel's own test run (`BPF_PROG_TEST_RUN`), repeated: see
//! `ebpf/src/measure.rs`, whose programs stand before the one under test and in its place.

use std::time::Duration;

use aya::maps::{Array, ProgramArray};
use aya::programs::ProgramError;
use aya::{Ebpf, TestRun, TestRunOptions};

use super::error::{Error, sentence};
use super::{Kernel, laps, scheduled, table_failed};
use crate::engine::Hook;

const RESTORE: &str = "restore";
const TESTED: &str = "tested";
const TEMPLATE: &str = "template";
/// Those that are loaded beside the path's.
pub(super) const PROGRAMS: [&str; 5] = [RESTORE, "trivial", "open_once", "open_twice", laps::CALIBRATE];
/// Bytes of a tunnel's headers over IPv4, and of a segment's: Ethernet, IPv4 and TCP without options.
const TUNNEL: usize = 50;
const SEGMENT: usize = 54;
/// Words of the template before its bytes, and of those.
const HEAD: usize = 4;
const WORDS: usize = HEAD + (TUNNEL + SEGMENT) / 4;

/// What is timed behind the program that restores the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tested {
    /// The path's program at a hook.
    Path(Hook),
    /// One that does nothing.
    Trivial,
    /// One that makes room for a tunnel's headers over IPv4, in so many steps: one or two.
    Opening(u8),
}

impl Tested {
    fn program(self) -> &'static str {
        match self {
            Self::Path(hook) => hook.program(),
            Self::Trivial => "trivial",
            Self::Opening(1) => "open_once",
            Self::Opening(_) => "open_twice",
        }
    }
}

/// A frame of which each repeat has the next flow's: from the next of 32 addresses behind its own, and then by the
/// next port.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    /// The first one: a TCP segment over IPv4, without options; or such a one in a tunnel over IPv4.
    pub first: &'a [u8],
    /// Whether it is in a tunnel.
    pub tunnelled: bool,
    /// How many flows there are: a power of two.
    pub flows: u32,
}

impl Kernel {
    /// How long a frame takes on average of so many repeats, with what makes it one of the next flow. The next call
    /// goes on with the flow behind the last one's. Only for a node that was loaded to be measured.
    ///
    /// # Errors
    /// [`Error::Run`], [`Error::Table`].
    pub fn time(&mut self, tested: Tested, frames: &Frames<'_>, repeat: u32) -> Result<Duration, Error> {
        let (name, frame) = (tested.program(), frames.first);
        let failed = |why: String| Error::Run { program: name, length: frame.len(), interface: 0, why };
        let target = scheduled(&mut self.ebpf, name)?
            .fd()
            .and_then(|fd| fd.try_clone().map_err(ProgramError::IOError))
            .map_err(|why| failed(sentence(&why)))?;
        let mut tail =
            ProgramArray::try_from(map(&mut self.ebpf, TESTED)?).map_err(table_failed("open", TESTED))?;
        tail.set(0, &target, 0).map_err(table_failed("write", TESTED))?;
        let mut template =
            Array::try_from(map(&mut self.ebpf, TEMPLATE)?).map_err(table_failed("open", TEMPLATE))?;
        let before: [u32; WORDS] = template.get(&0, 0).map_err(table_failed("read", TEMPLATE))?;
        let next = words(frames, before[1])
            .ok_or_else(|| failed("it has no headers of TCP, or its flows are no power of two".to_owned()))?;
        template.set(0, next, 0).map_err(table_failed("write", TEMPLATE))?;
        let options = TestRunOptions { data_in: Some(frame), repeat, ..Default::default() };
        let result =
            scheduled(&mut self.ebpf, RESTORE)?.test_run(options).map_err(|why| failed(sentence(&why)))?;
        Ok(result.duration)
    }
}

/// The row of the template.
fn words(frames: &Frames<'_>, next: u32) -> Option<[u32; WORDS]> {
    if !frames.flows.is_power_of_two() {
        return None;
    }
    let mut bytes = [0; TUNNEL + SEGMENT];
    let start = if frames.tunnelled { 0 } else { TUNNEL };
    let headers = frames.first.get(..bytes.len() - start)?;
    bytes[start..].copy_from_slice(headers);
    let mut words = [0; WORDS];
    words[..HEAD].copy_from_slice(&[
        frames.flows - 1,
        next,
        frames.first.len() as u32,
        u32::from(frames.tunnelled),
    ]);
    for (word, bytes) in words[HEAD..].iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Some(words)
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut aya::maps::Map, Error> {
    ebpf.map_mut(name).ok_or_else(|| Error::Object { why: format!("it has no map {name}") })
}
