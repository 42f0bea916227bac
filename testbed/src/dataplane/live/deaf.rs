//! Keeps a node's own stack from seeing what a packet path in userspace already sees.
//!
//! A packet socket gets a copy; the stack gets the packet all the same, and would answer it: with a reset,
//! for a connection that it knows nothing of. So IP packets that arrive at a link are dropped behind the packet
//! sockets, at the kernel's first hook after them, by the smallest program that can. ARP passes.
//!
//! The hook is gone when its [`Deaf`] is: whatever ends the process, nothing is left on the link.
//!
//! Source: bpf(2); `linux/bpf.h` for numbers; kernel 6.6 for tcx.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A link whose IP packets reach packet sockets only.
#[derive(Debug)]
pub(super) struct Deaf {
    _hook: OwnedFd,
}

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Target register in the low half, source register in the high one.
    registers: u8,
    offset: i16,
    value: i32,
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

const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const PROGRAM_KIND: u32 = 3;
/// `BPF_TCX_INGRESS`.
const HOOK: u32 = 46;

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The part of `union bpf_attr` that attaches one.
#[repr(C)]
struct Attach {
    program: u32,
    target: u32,
    hook: u32,
    flags: u32,
}

impl Deaf {
    /// The link of this number, in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(super) fn new(index: u32) -> io::Result<Self> {
        let license = c"GPL";
        let load = Load {
            kind: PROGRAM_KIND,
            count: DROP_IP.len() as u32,
            instructions: DROP_IP.as_ptr() as u64,
            license: license.as_ptr() as u64,
        };
        let program = bpf(PROG_LOAD, &load)?;
        let attach = Attach { program: program.as_raw_fd() as u32, target: index, hook: HOOK, flags: 0 };
        Ok(Self { _hook: bpf(LINK_CREATE, &attach)? })
    }
}

/// One call of bpf(2) that gives a file descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes, and what they point to; all outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_long)
    };
    match i32::try_from(fd) {
        // SAFETY: both commands give a descriptor that is ours alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
