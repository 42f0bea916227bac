//! Which CPUs the threads of this process run on: those of the dataplanes that live in it, above all.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Why threads run elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses.
    #[error("cannot choose the CPUs of this process's threads: {0}; see `taskset -p $$` for those allowed")]
    Refused(#[from] io::Error),
    /// No two listings were the same.
    #[error("cannot choose the CPUs of this process's threads: they come and go; run it again")]
    Restless,
}

/// As often all threads are listed: two are enough where none comes or goes.
const LISTINGS: usize = 1_000;

/// All threads of the process, held to some CPUs; dropped, they have those of before again.
#[derive(Debug)]
pub struct Held {
    before: CpuSet,
}

impl Held {
    /// Nothing is held yet.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new() -> Result<Self, Error> {
        let before = sched_getaffinity(Pid::from_raw(0)).map_err(io::Error::from)?;
        Ok(Self { before })
    }

    /// Every thread that there is now, to this CPU alone; to all that there were before, if none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn to(&self, cpu: Option<usize>) -> Result<(), Error> {
        let Some(cpu) = cpu else { return all_threads(&self.before) };
        let mut one = CpuSet::new();
        one.set(cpu).map_err(io::Error::from)?;
        all_threads(&one)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // What can't be given back now could not be taken either.
        let _ = all_threads(&self.before);
    }
}

fn all_threads(cpus: &CpuSet) -> Result<(), Error> {
    // A listing ends where the thread it has come to ends meanwhile (Linux, fs/proc/base.c, next_tid): those behind it
    // are not in it. No second one can name that thread again, so two that are the same are all there are.
    let mut before = BTreeSet::new();
    for _ in 0..LISTINGS {
        let threads = threads()?;
        for thread in &threads {
            match sched_setaffinity(*thread, cpus) {
                // It has ended meanwhile.
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        if threads == before {
            return Ok(());
        }
        before = threads;
    }
    Err(Error::Restless)
}

fn threads() -> io::Result<BTreeSet<Pid>> {
    let mut threads = BTreeSet::new();
    for thread in fs::read_dir("/proc/self/task")? {
        threads.extend(thread?.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw));
    }
    Ok(threads)
}
