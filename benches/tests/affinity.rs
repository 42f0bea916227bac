//! Threads of this process, held to CPUs: a process of its own, because every thread in it is held.

use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use benches::affinity::Held;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Whoever holds threads holds those of the other tests too.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A thread that says, asked, on how many CPUs it may run.
struct Other {
    ask: Sender<Sender<usize>>,
    thread: JoinHandle<()>,
}

impl Other {
    fn start() -> Self {
        let (ask, asked) = mpsc::channel::<Sender<usize>>();
        let thread = thread::spawn(move || {
            while let Ok(answer) = asked.recv() {
                answer.send(cpus()).expect("who asked waits");
            }
        });
        let other = Self { ask, thread };
        other.cpus();
        other
    }

    fn cpus(&self) -> usize {
        let (answer, answered) = mpsc::channel();
        self.ask.send(answer).expect("it waits");
        answered.recv().expect("it answers")
    }

    fn end(self) {
        drop(self.ask);
        self.thread.join().expect("it ends");
    }
}

fn cpus() -> usize {
    let cpus = sched_getaffinity(Pid::from_raw(0)).expect("its own");
    (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu) == Ok(true)).count()
}

#[test]
fn threads_that_run_already_are_held_too_and_freed_again() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let other = Other::start();
    let before = other.cpus();
    let held = Held::new().expect("our own");
    held.to(Some(0)).expect("there is one");
    assert_eq!(other.cpus(), 1);
    held.to(None).expect("as before");
    assert_eq!(other.cpus(), before);
    held.to(Some(0)).expect("there is one");
    drop(held);
    assert_eq!(other.cpus(), before);
    other.end();
}

#[test]
fn threads_that_end_meanwhile_hide_none_that_stay() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let held = Held::new().expect("our own");
    for round in 0..1_000 {
        let ending: Vec<_> =
            (0..20).map(|at| thread::spawn(move || busy(Duration::from_micros(200 + 7 * at)))).collect();
        let other = Other::start();
        held.to(Some(0)).expect("there is one");
        assert_eq!(other.cpus(), 1, "round {round}");
        other.end();
        ending.into_iter().for_each(|thread| thread.join().expect("it ends"));
        held.to(None).expect("as before");
    }
}

fn busy(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {}
}
