//! The comparison is a program of its own, `podpath-bench`, beside this one.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::Answer;

/// Compare the dataplanes: everything after `bench` goes to podpath-bench
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// See `podpath bench --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    rest: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let program = std::env::current_exe()?.with_file_name("podpath-bench");
    // Comes back only if it could not be started.
    let error = Command::new(&program).args(&args.rest).exec();
    anyhow::bail!(
        "cannot start {}: {error}; build it with `cargo build -p podpath-benches`",
        program.display()
    )
}
