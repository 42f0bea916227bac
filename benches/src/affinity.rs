//! Which CPUs the threads of this process run on: those of the dataplanes that live in it, above all.

use std::fs;
use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Why threads run elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("cannot choose the CPUs of this process's threads: {0}; see `taskset -p $$` for those allowed")]
pub struct Error(#[from] io::Error);

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
    for thread in fs::read_dir("/proc/self/task")? {
        let Some(id) = thread?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match sched_setaffinity(Pid::from_raw(id), cpus) {
            // It has ended meanwhile.
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn threads_that_run_already_are_held_too_and_freed_again() {
        let (ask, asked) = mpsc::channel::<()>();
        let (answer, answered) = mpsc::channel();
        let other = thread::spawn(move || {
            while asked.recv().is_ok() {
                let cpus = sched_getaffinity(Pid::from_raw(0)).expect("its own");
                answer
                    .send((0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu) == Ok(true)).count())
                    .expect("kept");
            }
        });
        let cpus = || {
            ask.send(()).expect("it waits");
            answered.recv().expect("it answers")
        };
        let before = cpus();
        let held = Held::new().expect("our own");
        held.to(Some(0)).expect("there is one");
        assert_eq!(cpus(), 1);
        held.to(None).expect("as before");
        assert_eq!(cpus(), before);
        drop(ask);
        other.join().expect("it ends");
    }
}
