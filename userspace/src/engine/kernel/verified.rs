//! What the verifier says of programs that it accepts: numbers to watch, because they have limits.
//!
//! The loader keeps the verifier's log only of what could not be loaded. So each program is loaded twice: once as usual,
//! which tells its length and its calls, and once without a file descriptor left for it, which fails after the verifier
//! has said everything. That this process has none left lasts for as long as it looks at one program: nothing else
//! should go on in it meanwhile.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use super::bpf::{self, Command};
use super::error::{Error, sentence};
use super::{Options, cgroup, driver, object, sized, sockets, switch};
use crate::engine::Hook;
use crate::model::{Cluster, Node};
use crate::plan::{Links, NodePlan, plan};

/// The load balancer's programs that packets meet.
const BALANCER: [&str; 2] = ["balance", "pass"];
/// Bytes of an instruction.
const INSTRUCTION: usize = 8;
/// A function's room on the stack is a multiple of it, where programs are compiled (`kernel/bpf/verifier.c`).
const STACK_UNIT: u64 = 16;

/// What the verifier says of a program, and what loading it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its name.
    pub name: &'static str,
    /// Instructions that the kernel made of it.
    pub instructions: u64,
    /// Instructions that the verifier followed; it gives up at a million.
    pub verified: u64,
    /// States that it kept at a time, at most.
    pub peak_states: u64,
    /// States that it kept in all.
    pub total_states: u64,
    /// Bytes of stack along the deepest chain of calls; 512 are allowed.
    pub stack_bytes: u64,
    /// How long it took to load, once.
    pub load: Duration,
}

/// What the verifier said, and the log's own words for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    verified: u64,
    peak_states: u64,
    total_states: u64,
    /// Of each function, in the order of the instructions.
    stacks: Vec<u64>,
}

/// Has the verifier look at every program of every object, on a node that has all that a node can have, without
/// tracing. Nothing is hooked in, and nothing stays loaded.
///
/// # Errors
/// [`Error::NotBuilt`], [`Error::Object`], [`Error::Program`].
pub fn verified() -> Result<Vec<Verified>, crate::error::Error> {
    let node = everything()?;
    let names = Hook::ALL.into_iter().map(Hook::program).chain([driver::PROGRAM]).chain(cgroup::PROGRAMS);
    let mut path = path(&node)?;
    let mut all = names.map(|name| look_at(&mut path, name)).collect::<Result<Vec<_>, _>>()?;
    let mut balancer = plain(object::BALANCER)?;
    for name in BALANCER {
        all.push(look_at(&mut balancer, name)?);
    }
    all.push(look_at(&mut plain(object::SWITCH)?, switch::PROGRAM)?);
    Ok(all)
}

/// A node on which every program is loaded.
fn everything() -> Result<NodePlan, crate::error::Error> {
    let node = Node {
        name: "n1".to_owned(),
        labels: Default::default(),
        addresses: vec![Ipv4Addr::new(10, 240, 0, 4).into()],
        pod_cidrs: Vec::new(),
    };
    let cluster = Cluster { name: "verified".to_owned(), nodes: vec![node], ..Cluster::default() };
    let mut plan = plan(&cluster, "n1", &Links::default())?;
    (plan.node.sockets, plan.node.accelerated, plan.node.absent) = (1, 1, 0);
    Ok(plan)
}

fn path(node: &NodePlan) -> Result<Ebpf, crate::error::Error> {
    let options = Options::default();
    let capacities = sized(node, &options.capacities)?;
    Ok(super::object(node, (&options, true), &capacities, VerifierLogLevel::STATS)?)
}

/// An object whose constants are what they are in the file.
fn plain(object: Result<&[u8], &'static str>) -> Result<Ebpf, Error> {
    let bytes = object.map_err(Error::NotBuilt)?;
    let loaded = EbpfLoader::new().btf(None).verifier_log_level(VerifierLogLevel::STATS).load(bytes);
    loaded.map_err(|why| Error::Object { why: sentence(&why) })
}

fn look_at(ebpf: &mut Ebpf, name: &'static str) -> Result<Verified, Error> {
    let failed = |why: String| Error::Program { program: name, why };
    let program =
        ebpf.program_mut(name).ok_or_else(|| failed("the object has no such program".to_owned()))?;
    let said = said(&log_of(program).map_err(failed)?).map_err(failed)?;
    let begin = Instant::now();
    load(program).map_err(|why| failed(sentence(&why)))?;
    let load = begin.elapsed();
    let fd = program.fd().map_err(|why| failed(sentence(&why)))?;
    let code = instructions(fd.as_fd()).map_err(|why| failed(why.to_string()))?;
    let stack_bytes = deepest(&code, &said.stacks).map_err(failed)?;
    let Said { verified, peak_states, total_states, .. } = said;
    let instructions = (code.len() / INSTRUCTION) as u64;
    Ok(Verified { name, instructions, verified, peak_states, total_states, stack_bytes, load })
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        other => sockets::load(other),
    }
}

/// The verifier's log of a program that it accepts.
fn log_of(program: &mut Program) -> Result<String, String> {
    let none_left = NoneLeft::from_now_on().map_err(|why| why.to_string())?;
    let loaded = load(program);
    drop(none_left);
    match loaded {
        Err(ProgramError::LoadError { io_error, verifier_log })
            if io_error.raw_os_error() == Some(libc::EMFILE) =>
        {
            Ok(verifier_log.to_string())
        }
        Err(why) => Err(sentence(&why)),
        Ok(()) => Err("it was loaded where there was no room for it: the verifier's log is lost".to_owned()),
    }
}

/// For as long as it lives this process can open nothing.
struct NoneLeft {
    limits: libc::rlimit,
}

impl NoneLeft {
    fn from_now_on() -> io::Result<Self> {
        let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: it writes one such struct.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // The lowest number that is free is what the next file would get.
        let lowest = File::open("/dev/null")?.as_raw_fd();
        set_limit(libc::rlimit { rlim_cur: lowest as libc::rlim_t, ..limits })?;
        Ok(Self { limits })
    }
}

impl Drop for NoneLeft {
    fn drop(&mut self) {
        set_limit(self.limits).expect("a process may raise its limit to where it was");
    }
}

fn set_limit(limits: libc::rlimit) -> io::Result<()> {
    // SAFETY: it reads one such struct.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads the statistics at the end of a verifier's log.
fn said(log: &str) -> Result<Said, String> {
    let unknown = || format!("the verifier's log has no statistics that are known here: {}", log.trim());
    let mut said = Said::default();
    for line in log.lines().map(str::trim) {
        if let Some(stacks) = line.strip_prefix("stack depth ") {
            said.stacks = stacks
                .split('+')
                .map(|depth| depth.parse().ok())
                .collect::<Option<_>>()
                .ok_or_else(unknown)?;
        } else if line.starts_with("processed ") {
            let words: Vec<&str> = line.split(' ').collect();
            let after = |word: &str| {
                let at = words.iter().position(|it| *it == word)?;
                words.get(at + 1)?.parse().ok()
            };
            said.verified = after("processed").ok_or_else(unknown)?;
            said.peak_states = after("peak_states").ok_or_else(unknown)?;
            said.total_states = after("total_states").ok_or_else(unknown)?;
        }
    }
    if said.verified > 0 && !said.stacks.is_empty() { Ok(said) } else { Err(unknown()) }
}

/// The instructions that the kernel made of a loaded program (`struct bpf_prog_info`).
fn instructions(program: BorrowedFd) -> io::Result<Vec<u8>> {
    let length = info(program, &mut [])?;
    let mut code = vec![0; length];
    info(program, &mut code)?;
    Ok(code)
}

/// How many bytes of instructions there are; they are written to `code`, as far as it goes.
fn info(program: BorrowedFd, code: &mut [u8]) -> io::Result<usize> {
    /// The first members of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind_and_number: [u32; 2],
        tag: [u8; 8],
        compiled_bytes: u32,
        bytes: u32,
        compiled: u64,
        code: u64,
    }
    /// The members of `union bpf_attr` that this command reads and writes.
    #[repr(C)]
    struct Parameters {
        program: u32,
        length: u32,
        info: u64,
    }
    let mut info = Info::default();
    (info.bytes, info.code) = (code.len() as u32, code.as_mut_ptr() as u64);
    let mut parameters = Parameters {
        program: program.as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: the kernel reads and writes as much of `info` as there is of it, and writes no more bytes of instructions
    // than that says there is room for in `code`; both are borrowed for that.
    unsafe { bpf::call(Command::ObjGetInfoByFd, &mut parameters)? };
    Ok(info.bytes as usize)
}

/// Bytes of stack along the deepest chain of calls, of a program whose functions need so many each.
fn deepest(code: &[u8], stacks: &[u64]) -> Result<u64, String> {
    let calls = calls(code);
    let starts: BTreeSet<usize> = calls.iter().map(|(_, to)| *to).chain([0]).collect();
    let starts: Vec<usize> = starts.into_iter().collect();
    if starts.len() != stacks.len() {
        let (found, said) = (starts.len(), stacks.len());
        return Err(format!("its instructions call {found} functions, and the verifier told of {said}"));
    }
    let function = |at: usize| starts.partition_point(|start| *start <= at) - 1;
    let calls: Vec<(usize, usize)> =
        calls.iter().map(|(from, to)| (function(*from), function(*to))).collect();
    let mut depths = vec![0; stacks.len()];
    // No program recurses: after as many turns as there are functions nothing grows any more.
    for _ in 0..stacks.len() {
        for at in 0..stacks.len() {
            let below = calls.iter().filter(|(from, _)| *from == at).map(|(_, to)| depths[*to]);
            depths[at] = stacks[at].next_multiple_of(STACK_UNIT) + below.max().unwrap_or(0);
        }
    }
    Ok(depths[0])
}

/// From which instruction to which: calls of the program's own functions, and those that it hands to the kernel's.
fn calls(code: &[u8]) -> Vec<(usize, usize)> {
    /// BPF_JMP | BPF_CALL, and BPF_LD | BPF_IMM | BPF_DW; and what the source register says of each
    /// (BPF_PSEUDO_CALL, BPF_PSEUDO_FUNC).
    const CALL: (u8, u8) = (0x85, 1);
    const ADDRESS: (u8, u8) = (0x18, 4);
    let mut calls = Vec::new();
    for (at, one) in code.chunks_exact(INSTRUCTION).enumerate() {
        let distance = match (one[0], one[1] >> 4) {
            CALL => i32::from(i16::from_ne_bytes([one[2], one[3]])),
            ADDRESS => i32::from_ne_bytes([one[4], one[5], one[6], one[7]]),
            _ => continue,
        };
        if let Some(to) = (at + 1).checked_add_signed(distance as isize) {
            calls.push((at, to));
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "verification time 1234 usec\nstack depth 136+0+24\nprocessed 4284 insns (limit 1000000) \
                       max_states_per_insn 7 total_states 431 peak_states 99 mark_read 12\n";

    #[test]
    fn the_statistics_are_read_off_the_end_of_the_log() {
        let read = said(LOG).expect("it has them");
        let wanted = Said { verified: 4284, peak_states: 99, total_states: 431, stacks: vec![136, 0, 24] };
        assert_eq!(read, wanted);
        let error = said("R3 invalid mem access\n").expect_err("no statistics");
        assert!(error.contains("R3 invalid mem access"), "{error}");
    }

    /// An instruction that calls forward, or does nothing at 0.
    fn call(distance: i16) -> [u8; 8] {
        let [low, high] = distance.to_ne_bytes();
        if distance == 0 { [0x95, 0, 0, 0, 0, 0, 0, 0] } else { [0x85, 0x10, low, high, 0, 0, 0, 0] }
    }

    #[test]
    fn the_deepest_chain_is_not_the_sum_of_all_functions() {
        // The first calls the second and the third, which calls the second as well.
        let code = [call(2), call(3), call(0), call(0), call(0), call(-3), call(0)].concat();
        let starts = calls(&code);
        assert_eq!(starts, [(0, 3), (1, 5), (5, 3)]);
        assert_eq!(deepest(&code, &[100, 32, 16]), Ok(112 + 16 + 32));
        assert!(deepest(&code, &[100, 32]).is_err_and(|why| why.contains("3 functions")));
    }
}
