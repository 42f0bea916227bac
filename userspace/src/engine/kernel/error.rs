//! What can fail between this process and the kernel: what was tried, on what, why.

use std::path::PathBuf;

/// Why the kernel engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This build has no eBPF object in it.
    #[error("{0}")]
    NotBuilt(&'static str),
    /// The object's maps could not be made, or its bytes not be read.
    #[error("cannot load the eBPF object: {why}: loading needs root, or CAP_BPF and CAP_NET_ADMIN")]
    Object {
        /// What the kernel or the loader says.
        why: String,
    },
    /// A program did not pass.
    #[error("cannot load {program}: the verifier refused it: {line} (full log: {})", log.display())]
    Refused {
        /// The program.
        program: &'static str,
        /// The last line of the verifier's log that says something.
        line: String,
        /// Where the whole log is.
        log: PathBuf,
    },
    /// A program could not be loaded for another reason than the verifier's.
    #[error("cannot load {program}: {why}")]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel says.
        why: String,
    },
    /// A program could not be hooked into an interface.
    #[error("cannot attach {program} to {interface}: {why}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The interface.
        interface: String,
        /// What the kernel says.
        why: String,
    },
    /// Sockets cannot be translated here.
    #[error(
        "cannot find the root of the control groups, version 2: {why}: mount it (mount -t cgroup2 none /sys/fs/cgroup/unified), or set `spec.services.socketTranslation: false`"
    )]
    NoCgroup {
        /// What is wrong.
        why: String,
    },
    /// A table could not be read or written.
    #[error("cannot {tried} table {table}: {why}")]
    Table {
        /// `read`, `write`, ...
        tried: &'static str,
        /// The table's name.
        table: &'static str,
        /// What the kernel says.
        why: String,
    },
    /// A program could not be run on a frame.
    #[error("cannot run {program} on a frame of {length} bytes from interface {interface}: {why}")]
    Run {
        /// The program.
        program: &'static str,
        /// Of the frame.
        length: usize,
        /// Its number.
        interface: u32,
        /// What the kernel says.
        why: String,
    },
    /// A program has changed a packet, but not the sum of it that came with it.
    #[error(
        "{program} leaves a frame of {length} bytes from interface {interface} with a sum that is not its own: what changes the sum of a packet must tell the kernel (CHECKSUM_COMPLETE)"
    )]
    Sum {
        /// The program.
        program: &'static str,
        /// Of the frame, as it came in.
        length: usize,
        /// Its number.
        interface: u32,
    },
    /// A file, or the BPF file system itself.
    #[error("cannot {tried} {}: {why}", path.display())]
    File {
        /// `mount`, `create`, `remove`, ...
        tried: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        why: String,
    },
}

/// An error and everything that caused it, in one line. The loader's errors name their cause, but do not
/// say it.
pub(super) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}
