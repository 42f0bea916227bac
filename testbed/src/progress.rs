//! What is going on, on stderr, where it takes longer than a second.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(1);

/// Something under way. It is silent for a second; then a terminal shows a line that counts the seconds
/// and is gone at the end, and anything else gets the line once.
#[derive(Debug)]
pub struct Progress {
    done: Option<mpsc::Sender<()>>,
    watcher: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins, as `measuring 120 flows`; ends when dropped.
    pub fn start(what: impl Into<String>) -> Self {
        let (done, ended) = mpsc::channel();
        let what = what.into();
        let watcher = std::thread::spawn(move || tell(&what, &ended));
        Self { done: Some(done), watcher: Some(watcher) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(watcher) = self.watcher.take() {
            // It only writes to stderr; if that panicked there is nobody to tell.
            let _ = watcher.join();
        }
    }
}

/// What stderr refuses, it refuses.
fn tell(what: &str, ended: &mpsc::Receiver<()>) {
    let (start, terminal) = (Instant::now(), io::stderr().is_terminal());
    let mut shown = false;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(PATIENCE) {
        if terminal {
            let _ = write!(io::stderr(), "\r{what} … {} s", start.elapsed().as_secs());
        } else if !shown {
            let _ = writeln!(io::stderr(), "{what} …");
        }
        shown = true;
    }
    if shown && terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}
