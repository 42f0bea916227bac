//! What the kernel's verifier says of programs.

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::{Program, ProgramError};
use tracing::warn;

use super::error::{Error, sentence};
use super::{Kernel, cgroup, driver, sockets};
use crate::engine::Hook;

impl Kernel {
    /// How many instructions the verifier walked for each program that is loaded: its limit is a million.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn verified_instructions(&self) -> Result<Vec<(&'static str, u32)>, Error> {
        let sockets = cgroup::PROGRAMS.into_iter().filter(|_| self.has_sockets());
        let driver = Some(driver::PROGRAM).filter(|_| self.is_accelerated());
        let programs = Hook::ALL.into_iter().map(Hook::program).chain(driver).chain(sockets);
        let verified = programs.map(|name| {
            let program = self.ebpf.program(name).expect("it was loaded from this object");
            let info = program.info().map_err(|why| Error::Program { program: name, why: sentence(&why) })?;
            Ok((name, info.verified_instruction_count().unwrap_or(0)))
        });
        verified.collect()
    }
}

/// Has the verifier look at a program.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Error::Program { program: name, why: "the object has no such program".to_owned() })?;
    said(
        name,
        match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            other => sockets::load(other),
        },
    )
}

/// What became of a program that the verifier looked at.
pub(super) fn said(program: &'static str, loaded: Result<(), ProgramError>) -> Result<(), Error> {
    match loaded {
        Ok(()) => Ok(()),
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            let text = verifier_log.to_string();
            let Some(line) = meaningful(&text) else {
                return Err(Error::Program { program, why: io_error.to_string() });
            };
            Err(Error::Refused { program, line: line.to_owned(), log: keep_log(program, &text) })
        }
        Err(why) => Err(Error::Program { program, why: sentence(&why) }),
    }
}

/// The last line of a verifier's log that says something: statistics come after it.
fn meaningful(log: &str) -> Option<&str> {
    let statistics = ["processed ", "verification time ", "stack depth ", "max_states"];
    let says = |line: &&str| !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start));
    log.lines().map(str::trim).rfind(says)
}

/// Writes a verifier's log where people look for it: among what the build makes, if this runs there.
fn keep_log(program: &str, log: &str) -> PathBuf {
    let folder = if Path::new("target").is_dir() {
        Path::new("target/verifier").to_owned()
    } else {
        std::env::temp_dir().join("podpath-verifier")
    };
    let path = folder.join(format!("{program}.log"));
    if let Err(why) = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, log)) {
        warn!("cannot write {}: {why}", path.display());
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_says_why_is_found_above_the_statistics() {
        let log = "0: (b7) r0 = 1\nR3 invalid mem access 'scalar'\nverification time 12 usec\n\
                   stack depth 0\nprocessed 4284 insns (limit 1000000) max_states_per_insn 7\n\n";
        assert_eq!(meaningful(log), Some("R3 invalid mem access 'scalar'"));
        assert_eq!(meaningful("processed 0 insns\n"), None);
    }
}
