//! Processes of a cluster that outlive us: started with a line of JSON, and asked over a unix socket, a line
//! there and a line back.
//!
//! A process waits for its first line before it does anything, and ends when there is none; so that it never
//! runs when whoever started it was killed before noting it ([`crate::state`]). It answers that line when it
//! is ready, and not before.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::state;

/// How long a process may take to answer: to open thousands of sockets, or to have the kernel's verifier walk every
/// program.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a process does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be noted.
    #[error(transparent)]
    State(#[from] state::Error),
    /// It could not be started, or ended at once.
    #[error("cannot start {what}: {source}; see {}", log.display())]
    Start {
        /// `the listeners` and the like.
        what: &'static str,
        /// Why not.
        source: io::Error,
        /// Where the process writes what it has to say.
        log: PathBuf,
    },
    /// It does not answer, or not in its language.
    #[error("cannot ask {what} at {}: {source}; is the cluster up?", control.display())]
    Ask {
        /// `the listeners` and the like.
        what: &'static str,
        /// The socket.
        control: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Where a running process is asked.
#[derive(Clone, Debug)]
pub struct Control {
    what: &'static str,
    socket: PathBuf,
}

impl Control {
    /// The process that takes requests at this socket; `what` it is called in errors.
    pub fn new(what: &'static str, socket: &Path) -> Self {
        Self { what, socket: socket.to_owned() }
    }

    /// Starts a process with `command` and tells it to begin; gives its first answer. `note` gets the
    /// process's number before the process does anything. The process outlives us; what it has to say goes to
    /// a file beside its socket.
    ///
    /// # Errors
    /// It cannot be started or noted, or it does not answer. Then no process is left.
    pub fn start<A: for<'a> Deserialize<'a>>(
        &self,
        mut command: Command,
        spec: &impl Serialize,
        note: impl FnOnce(u32) -> Result<(), state::Error>,
    ) -> Result<A, Error> {
        let log = self.socket.with_extension("log");
        let failed = |source| Error::Start { what: self.what, source, log: log.clone() };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        command
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(theirs))
            .stderr(File::create(&log).map_err(failed)?)
            .current_dir("/")
            .process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        // Our copy of its output ends here, so that its end is the end of ours.
        drop(command);
        let started = note(child.id()).map_err(Error::from).and_then(|()| {
            let mut input = child.stdin.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
            write_line(&mut input, spec).map_err(failed)?;
            read_line(&mut BufReader::new(ours)).map_err(failed)
        });
        started.inspect_err(|_| {
            // It may have ended by itself, and is not ours to keep.
            let _ = child.kill();
            let _ = child.wait();
        })
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// [`Error::Ask`].
    pub fn ask<A: for<'a> Deserialize<'a>>(&self, request: &impl Serialize) -> Result<A, Error> {
        let asked = || -> io::Result<A> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write_line(&mut stream, request)?;
            read_line(&mut BufReader::new(stream))
        };
        asked().map_err(|source| Error::Ask { what: self.what, control: self.socket.clone(), source })
    }
}

/// Writes a value as a line.
///
/// # Errors
/// The other end is gone.
pub(crate) fn write_line(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// One line; none is an end that came too early.
///
/// # Errors
/// The end, or a line that is no such value.
pub(crate) fn read_line<T: for<'a> Deserialize<'a>>(from: &mut impl BufRead) -> io::Result<T> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}
