//! The programs that run as sockets connect, send, receive, ask and close: hooked into the root of the control
//! groups, so that whoever enters a pod's network namespace is met by them, whatever control group it is in.
//!
//! The root has them of every node of every cluster, up to 64 of a kind. Each knows its own node's network
//! namespaces and lets all others pass.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, Program, ProgramError};

use super::bpf::{self, Command, Instruction, Kind};
use super::error::{Error, sentence};
use super::hook::Hooked;
use super::pin::Pins;

/// The programs.
pub(super) const PROGRAMS: [&str; 9] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "sock_release",
];

/// What stands in a pin's name where others have an interface.
const PLACE: &str = "cgroup";
/// The most programs of a kind that a control group takes (`BPF_CGROUP_MAX_PROGS`).
const MOST: u32 = 64;

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, `BPF_CGROUP_INET4_CONNECT`.
const CONNECT4: Kind = Kind { program: 18, hook: 10 };
/// The shortest program there is: `r0 = 1; exit`.
const LET_PASS: [Instruction; 2] = [
    Instruction { code: 0xb7, registers: 0, offset: 0, value: 1 },
    Instruction { code: 0x95, registers: 0, offset: 0, value: 0 },
];

/// The root of the control groups, version 2, wherever it is mounted.
///
/// # Errors
/// [`Error::NoCgroup`].
pub fn root() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|why| Error::NoCgroup { why: format!("/proc/self/mounts: {why}") })?;
    mounted(&mounts, |kind, _| kind == "cgroup2")
        .ok_or_else(|| Error::NoCgroup { why: "it is not mounted".to_owned() })
}

/// Where the first file system is mounted whose kind and options are asked for, by the text of /proc/self/mounts.
pub fn mounted(mounts: &str, is_it: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        // As proc(5) writes a blank in a path.
        is_it(kind, options).then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

/// Whether sockets can be translated here: hooks a program that lets everything pass into the root, takes it off
/// again, and asks for a network namespace's cookie. Where the root is.
///
/// # Errors
/// [`Error::NoCgroup`], or [`Error::Attach`] with what the kernel says.
pub fn try_out() -> Result<PathBuf, Error> {
    let root = root()?;
    let tried = File::open(&root).and_then(|cgroup| {
        let program = bpf::load(CONNECT4, &LET_PASS)?;
        drop(bpf::attach(CONNECT4, program.as_fd(), cgroup.as_raw_fd() as u32)?);
        super::netns::cookie()
    });
    let failed = |why: io::Error| Error::Attach {
        program: "connect4",
        interface: root.display().to_string(),
        why: why.to_string(),
    };
    tried.map_err(failed)?;
    Ok(root)
}

/// Where the link of a program is pinned.
pub(super) fn pin(pins: &Pins, name: &str) -> PathBuf {
    pins.link(name, PLACE)
}

/// Hooks a program in, in place of the one that may be there from before.
pub(super) fn attach(
    program: &mut Program,
    name: &'static str,
    root: &Path,
    pins: Option<&Pins>,
) -> Result<Hooked, Error> {
    let failed = |why: String| Error::Attach { program: name, interface: root.display().to_string(), why };
    let pin = pins.map(|pins| pin(pins, name));
    if let Some(pin) = &pin
        && pin.exists()
    {
        let fd = program.fd().map_err(|why| failed(sentence(&why)))?.as_fd();
        replace(pin, fd).map_err(|why| failed(format!("{}: {why}", pin.display())))?;
        return PinnedLink::from_pin(pin).map(Hooked::Pinned).map_err(|why| failed(sentence(&why)));
    }
    let cgroup = File::open(root).map_err(|why| failed(why.to_string()))?;
    let link = link(program, &cgroup).map_err(failed)?;
    match pin {
        Some(pin) => link.pin(&pin).map(Hooked::Pinned).map_err(|why| failed(sentence(&why))),
        None => Ok(Hooked::Held(link, 0)),
    }
}

/// Makes the link: if it is there, the program is called.
fn link(program: &mut Program, cgroup: &File) -> Result<FdLink, String> {
    // A control group's links are several in any mode; this is the one that the kernel takes.
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSockAddr(program) => {
            let link = program.attach(cgroup, MODE).and_then(|id| program.take_link(id));
            FdLink::try_from(link.map_err(|why| refusal(&why))?).map_err(|why| sentence(&why))
        }
        Program::CgroupSock(program) => {
            let link = program.attach(cgroup, MODE).and_then(|id| program.take_link(id));
            FdLink::try_from(link.map_err(|why| refusal(&why))?).map_err(|why| sentence(&why))
        }
        _ => Err(sentence(&ProgramError::UnexpectedProgramType)),
    }
}

/// Why a control group takes no more.
fn refusal(why: &ProgramError) -> String {
    // One says what the kernel answered by being that error, the other by having it as its cause.
    let answer = match why {
        ProgramError::IOError(error) => Some(error),
        ProgramError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    };
    if answer.and_then(io::Error::raw_os_error) == Some(libc::E2BIG) {
        return format!(
            "it has {MOST} of this kind, the most that the kernel takes, and each node that translates \
             sockets needs one; take a cluster down, have fewer nodes, or set \
             `spec.services.socketTranslation: false`"
        );
    }
    sentence(why)
}

/// Puts the program into a pinned link, in one step (`BPF_LINK_UPDATE`, which the loader has for other links
/// only).
fn replace(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Get {
        path: u64,
        fd: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Update {
        link: u32,
        program: u32,
        flags: u32,
        old: u32,
    }
    let path = std::ffi::CString::new(pin.as_os_str().as_bytes())?;
    let mut get = Get { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads the path up to its end. Its answer is the link.
    let link = unsafe { bpf::open(Command::ObjGet, &mut get)? };
    let mut update =
        Update { link: link.as_raw_fd() as u32, program: program.as_raw_fd() as u32, flags: 0, old: 0 };
    // SAFETY: these attributes point to nothing.
    unsafe { bpf::call(Command::LinkUpdate, &mut update) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_found_among_the_mounts() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw,relatime 0 0\n";
        assert_eq!(
            mounted(mounts, |kind, _| kind == "cgroup2"),
            Some(PathBuf::from("/sys/fs/cgroup/uni fied"))
        );
        assert_eq!(mounted("proc /proc proc rw 0 0\n", |kind, _| kind == "cgroup2"), None);
    }

    #[test]
    fn a_full_control_group_says_how_many_it_takes() {
        let full = ProgramError::IOError(io::Error::from_raw_os_error(libc::E2BIG));
        assert!(refusal(&full).contains("64"), "{}", refusal(&full));
        let other = ProgramError::IOError(io::Error::from_raw_os_error(libc::EPERM));
        assert!(!refusal(&other).contains("64"), "{}", refusal(&other));
    }
}
