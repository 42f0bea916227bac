//! The comparison is a program of its own, `podpath-bench`, beside this one.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use super::Answer;

/// Compare the dataplanes: everything after `bench` goes to podpath-bench
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// See `podpath bench --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    rest: Vec<OsString>,
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The program is not there.
    #[error("cannot start {}: {why}; build it with `cargo build -p podpath-benches`", program.display())]
    Start {
        /// Where it should be.
        program: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// It said why, and ended.
    #[error("cannot compare the dataplanes: podpath-bench ended with {0}")]
    Ended(ExitStatus),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let program = program()?;
    // Comes back only if it could not be started.
    let why = Command::new(&program).args(&args.rest).exec();
    Err(Error::Start { program, why }.into())
}

/// Runs a suite to its end.
///
/// # Errors
/// It could not be started, or did not succeed.
pub(crate) fn compare(suite: &str) -> anyhow::Result<()> {
    let program = program()?;
    match Command::new(&program).arg(suite).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Ended(status).into()),
        Err(why) => Err(Error::Start { program, why }.into()),
    }
}

fn program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("podpath-bench"))
}
