//! A test run of a frame as most network cards hand it over: with the sum of the whole packet (`CHECKSUM_COMPLETE`).
//!
//! The kernel believes a transport's checksum by that sum, without looking at the packet again. Whoever changes bytes
//! must see to it that the sum stays theirs, or the kernel logs `hw csum failure` and sums up everything itself, for
//! every packet. A veth's packets have no such sum, so nothing but this run can tell (Linux 6.11).

use std::os::fd::{AsFd, AsRawFd};

use aya::programs::SchedClassifier;
use dataplane::tables::IfIndex;

use super::bpf::{self, Command};
use super::error::Error;
use super::run::{self, Buffers};
use super::{Kernel, inside, scheduled};
use crate::engine::{Engine, Hook, Outcome};

/// A flag of a test run: the packet comes with the sum, and must end with the right one.
const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// The part of `union bpf_attr` that the command reads and writes (`test`).
#[derive(Debug, Default)]
#[repr(C)]
struct Test {
    program: u32,
    returned: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

impl Kernel {
    /// [`Engine::push`] of a frame that comes with the sum of its packet, as a network card computes it. What came in by a
    /// driver's program has none.
    ///
    /// # Errors
    /// As [`Engine::push`]; [`Error::Sum`] where the sum is not that of the packet afterwards. The path has done its work
    /// then as well, but the frame is not handed back.
    pub fn push_summed(
        &mut self,
        hook: Hook,
        interface: IfIndex,
        frame: &[u8],
    ) -> Result<Outcome, crate::error::Error> {
        if hook == Hook::FromUnderlay && self.is_accelerated() {
            return self.push(hook, interface, frame);
        }
        self.take_records();
        let (ebpf, name) = (&mut self.ebpf, hook.program());
        let ran = inside(self.netns.as_ref(), || {
            let mut buffers = Buffers::new(interface, frame);
            let length = test_run(scheduled(ebpf, name)?, frame, &mut buffers);
            let length = length.map_err(|why| failed(name, interface, (frame.len(), &why)))?;
            buffers.outcome(length).map_err(|why| run::failed(name, interface, (frame.len(), why)))
        });
        let (verdict, frame) = ran??;
        Ok(Outcome { verdict, frame, records: self.take_records() })
    }
}

fn failed(program: &'static str, interface: IfIndex, (length, why): (usize, &std::io::Error)) -> Error {
    if why.raw_os_error() == Some(libc::EBADMSG) {
        return Error::Sum { program, length, interface: interface.0 };
    }
    run::failed(program, interface, (length, why.to_string()))
}

/// Has the kernel run it, and says how long the frame is then.
fn test_run(program: &SchedClassifier, frame: &[u8], buffers: &mut Buffers) -> std::io::Result<u32> {
    let program = program.fd().map_err(std::io::Error::other)?.as_fd().as_raw_fd();
    let mut test = Test {
        program: program as u32,
        data_size_in: frame.len() as u32,
        data_size_out: buffers.frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: buffers.frame.as_mut_ptr() as u64,
        repeat: 1,
        context_size_in: buffers.context.len() as u32,
        context_size_out: buffers.after.len() as u32,
        context_in: buffers.context.as_ptr() as u64,
        context_out: buffers.after.as_mut_ptr() as u64,
        flags: CHECKSUM_COMPLETE,
        ..Test::default()
    };
    // SAFETY: the kernel reads the frame and a context, and writes to two buffers, which are borrowed for that: as many
    // bytes of each as they have.
    unsafe { bpf::call(Command::ProgTestRun, &mut test)? };
    Ok(test.data_size_out)
}
