//! One frame through a program, without an interface: the kernel's own test run (`BPF_PROG_TEST_RUN`).

use aya::programs::SchedClassifier;
use aya::{TestRun, TestRunOptions};
use dataplane::tables::IfIndex;
use dataplane::{Reason, Verdict};

use super::error::{Error, sentence};

/// Bytes of the context (`struct __sk_buff`), and where in it are the interface that the frame came in by
/// and the first two words of the control buffer. The layout is part of the kernel's interface.
const CONTEXT: usize = 192;
const INTERFACE: usize = 40;
const CONTROL: usize = 48;

/// Room for the headers that a tunnel puts before a frame: over IPv6, with an address of IPv6 that was dialled.
pub(super) const TUNNEL_BYTES: usize = 94;

/// What a test run reads beside the frame, and has room to write.
pub(super) struct Buffers {
    pub(super) context: [u8; CONTEXT],
    pub(super) after: [u8; CONTEXT],
    pub(super) frame: Vec<u8>,
}

impl Buffers {
    /// Those for a frame that comes in by an interface of this thread's namespace.
    pub(super) fn new(interface: IfIndex, frame: &[u8]) -> Self {
        let mut context = [0; CONTEXT];
        context[INTERFACE..][..4].copy_from_slice(&interface.0.to_ne_bytes());
        Self { context, after: [0; CONTEXT], frame: vec![0; frame.len() + TUNNEL_BYTES] }
    }

    /// The verdict, and the frame, which has so many bytes after the run.
    pub(super) fn outcome(mut self, length: u32) -> Result<(Verdict, Vec<u8>), String> {
        self.frame.truncate(length as usize);
        let interface = IfIndex(word(&self.after, CONTROL + 4));
        let verdict = verdict(word(&self.after, CONTROL), interface).ok_or_else(|| {
            "it does not say its verdict: load it with tracing on, or with a fixed clock".to_owned()
        })?;
        Ok((verdict, self.frame))
    }
}

/// Says why a frame of so many bytes could not be run.
pub(super) fn failed(program: &'static str, interface: IfIndex, (length, why): (usize, String)) -> Error {
    Error::Run { program, length, interface: interface.0, why }
}

/// Runs a frame through a program as if it had come in by an interface of this thread's namespace: the
/// verdict, and the frame as it is then. Only a program that was loaded with tracing on, or with a
/// fixed clock, says its verdict.
pub(super) fn run(
    program: &SchedClassifier,
    name: &'static str,
    interface: IfIndex,
    frame: &[u8],
) -> Result<(Verdict, Vec<u8>), Error> {
    let failed = |why: String| failed(name, interface, (frame.len(), why));
    let mut buffers = Buffers::new(interface, frame);
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut buffers.frame),
        ctx_in: Some(&buffers.context),
        ctx_out: Some(&mut buffers.after),
        // A second run would see what the first made of the frame.
        repeat: 1,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(|why| failed(sentence(&why)))?;
    buffers.outcome(result.data_size_out).map_err(failed)
}

fn word(context: &[u8; CONTEXT], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&context[offset..offset + 4]);
    u32::from_ne_bytes(bytes)
}

/// The verdict with this counter: see `words` in `ebpf/src/handover.rs`.
pub(super) fn verdict(counter: u32, interface: IfIndex) -> Option<Verdict> {
    let rejected = interface != IfIndex(0);
    let drop = |reason: &Reason| {
        if rejected { Verdict::Reject(*reason) } else { Verdict::Drop(*reason) }
    };
    let drops = Reason::ALL.iter().map(drop);
    [Verdict::Deliver(interface), Verdict::Forward(interface), Verdict::Answer, Verdict::Stack]
        .into_iter()
        .chain(drops)
        .find(|verdict| verdict.counter() == counter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_is_known_by_its_counter() {
        let delivered = Verdict::Deliver(IfIndex(7));
        assert_eq!(verdict(delivered.counter(), IfIndex(7)), Some(delivered));
        for reason in Reason::ALL {
            let dropped = Verdict::Drop(*reason);
            assert_eq!(verdict(dropped.counter(), IfIndex(0)), Some(dropped));
            let rejected = Verdict::Reject(*reason);
            assert_eq!(verdict(rejected.counter(), IfIndex(1)), Some(rejected));
        }
        assert_eq!(verdict(0, IfIndex(0)), None);
    }
}
