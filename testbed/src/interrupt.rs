//! Ctrl-C, noticed and remembered: whoever has something to take back asks between its steps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// The user wants it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Whether SIGINT, SIGTERM or SIGHUP came.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches from now on, to the end of the process: these signals no longer end it by themselves.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn watch() -> io::Result<Self> {
        let interrupt = Self::default();
        let flag = interrupt.0.clone();
        let (ready, watching) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let watched = runtime.and_then(|runtime| {
                runtime.block_on(async {
                    let mut interrupt = signal(SignalKind::interrupt())?;
                    let mut terminate = signal(SignalKind::terminate())?;
                    let mut hangup = signal(SignalKind::hangup())?;
                    // Nobody waits any more if the process ends meanwhile.
                    let _ = ready.send(Ok(()));
                    loop {
                        tokio::select! {
                            _ = interrupt.recv() => {}
                            _ = terminate.recv() => {}
                            _ = hangup.recv() => {}
                        }
                        flag.store(true, Ordering::Relaxed);
                    }
                })
            });
            let watched: io::Result<()> = watched;
            let _ = ready.send(watched);
        });
        watching.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(interrupt)
    }

    /// Goes on, or not.
    ///
    /// # Errors
    /// [`Interrupted`], if a signal came.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}
