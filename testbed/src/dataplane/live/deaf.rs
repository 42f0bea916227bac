//! Keeps a node's own stack from seeing what a packet path in userspace already sees.
//!
//! A packet socket gets a copy; the stack gets the packet all the same, and would answer it: with a reset,
//! for a connection that it knows nothing of. So IP packets that arrive at a link are dropped behind the packet
//! sockets, at the kernel's first hook after them, by the smallest program that can. ARP passes.
//!
//! The hook is gone when its [`Deaf`] is: whatever ends the process, nothing is left on the link.
//!
//! Source: `linux/bpf.h` for numbers; kernel 6.6 for tcx.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use userspace::engine::kernel::bpf::{self, Instruction, Kind};

/// A link whose IP packets reach packet sockets only.
#[derive(Debug)]
pub(super) struct Deaf {
    _hook: OwnedFd,
}

const fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, registers, offset, value }
}

/// `__sk_buff.protocol` is at byte 16, in network order; 2 drops, -1 leaves it to the next hook.
const DROP_IP: [Instruction; 7] = [
    instruction(0x61, 0x10, 16, 0),
    instruction(0x15, 0x00, 3, 0x0800_u16.to_be() as i32),
    instruction(0x15, 0x00, 2, 0x86dd_u16.to_be() as i32),
    instruction(0xb7, 0x00, 0, -1),
    instruction(0x95, 0x00, 0, 0),
    instruction(0xb7, 0x00, 0, 2),
    instruction(0x95, 0x00, 0, 0),
];

/// `BPF_PROG_TYPE_SCHED_CLS`, `BPF_TCX_INGRESS`.
const KIND: Kind = Kind { program: 3, hook: 46 };

impl Deaf {
    /// The link of this number, in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(super) fn new(index: u32) -> io::Result<Self> {
        let program = bpf::load(KIND, &DROP_IP)?;
        Ok(Self { _hook: bpf::attach(KIND, program.as_fd(), index)? })
    }
}
