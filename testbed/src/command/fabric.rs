//! Runs the fabric of a cluster that is up; started by `up`, never by a person.

use super::Answer;

/// Carry frames between nodes and world, as told on standard input
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<Answer> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    testbed::fabric::serve_from_stdin()?;
    Ok(Answer::Yes)
}
