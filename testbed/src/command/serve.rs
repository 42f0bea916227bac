//! Runs the listeners of a cluster that is up; started by `up`, never by a person.

use super::Answer;
use testbed::listen;

/// Listen in every pod, as told on standard input
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<Answer> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    listen::serve_from_stdin()?;
    Ok(Answer::Yes)
}
