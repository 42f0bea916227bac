//! bpf(2) itself, for what the loader (aya 0.14) has no way to ask: many rows at once, a program of a few instructions
//! without an object file, another program for a control group's link, a test run with flags, and the instructions
//! that the kernel made of a program.
//!
//! Source: bpf(2); `linux/bpf.h` for numbers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya::maps::MapType;
use aya::sys::is_map_supported;

/// What can be asked (`enum bpf_cmd`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(super) enum Command {
    ProgLoad = 5,
    ObjGet = 7,
    ProgTestRun = 10,
    ObjGetInfoByFd = 15,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// Asks the kernel for something, and hands back what it answers: 0, or a number of the command's own.
///
/// # Safety
/// `attributes` begins as `union bpf_attr` does for the command, consists of plain numbers, and has no padding, which
/// the kernel would read. As it describes them, what its addresses point to is there until the call is over, and may
/// be written to where the command writes.
pub(super) unsafe fn call<A>(command: Command, attributes: &mut A) -> io::Result<libc::c_int> {
    let attributes: *mut A = attributes;
    // SAFETY: the kernel reads and writes no more of the attributes than it is told there are, and they are borrowed for
    // writing until the call is over. What they point to is the caller's word.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, attributes, size_of::<A>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as libc::c_int) }
}

/// Asks for something that is answered by a file descriptor.
///
/// # Safety
/// As for [`call`]; and the command's answer is a new file descriptor.
pub(super) unsafe fn open<A>(command: Command, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's word.
    let fd = unsafe { call(command, attributes)? };
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// Target register in the low half, source register in the high one.
    pub registers: u8,
    /// From the next instruction, or in memory.
    pub offset: i16,
    /// A constant.
    pub value: i32,
}

/// What a program is, and where it is hooked in.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// `enum bpf_prog_type`.
    pub program: u32,
    /// `enum bpf_attach_type`.
    pub hook: u32,
}

/// Loads a program that needs no maps.
///
/// # Errors
/// The kernel's reason.
pub fn load(kind: Kind, code: &[Instruction]) -> io::Result<OwnedFd> {
    /// Up to what the kernel expects the program to be hooked into.
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log: [u64; 2],
        flags: [u32; 2],
        name: [u8; 16],
        interface: u32,
        expected: u32,
    }
    let mut load = Load {
        kind: kind.program,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log: [0; 2],
        flags: [0; 2],
        name: [0; 16],
        interface: 0,
        expected: kind.hook,
    };
    // SAFETY: the kernel reads so many instructions, and the license up to its end; it has no room to log into. Its
    // answer is the program.
    unsafe { open(Command::ProgLoad, &mut load) }
}

/// Hooks a program into a network interface of this number, or into the control group of this descriptor, for as long as
/// the link is open.
///
/// # Errors
/// The kernel's reason.
pub fn attach(kind: Kind, program: BorrowedFd<'_>, target: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        program: u32,
        target: u32,
        hook: u32,
        flags: u32,
    }
    let mut create = Create { program: program.as_raw_fd() as u32, target, hook: kind.hook, flags: 0 };
    // SAFETY: these attributes point to nothing. The kernel's answer is the link.
    unsafe { open(Command::LinkCreate, &mut create) }
}

/// Whether maps can be made: makes a small one, and forgets it.
///
/// # Errors
/// The kernel's reason.
pub fn try_out() -> io::Result<()> {
    match is_map_supported(MapType::Array) {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        Err(why) => Err(why.io_error),
    }
}
