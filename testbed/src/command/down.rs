//! Removes clusters, whatever is left of them.

use testbed::{lab, state};

use super::check::tell;
use super::{Answer, chosen};

/// Remove a cluster that is up
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which; may be left out if it is the only one
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Remove every cluster on this machine
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let names = if args.all { state::list()? } else { vec![chosen(args.name.as_deref())?] };
    let (mut failed, mut leaked) = (Vec::new(), false);
    for name in &names {
        // Whoever could say so may be gone already: then nobody saw anything.
        leaked |= lab::listeners(name).seen().is_ok_and(|seen| tell(&seen.unwrap_or_default()));
        match state::down(name) {
            Ok(()) => eprintln!("cluster {name} is down"),
            Err(error) => failed.push(error.to_string()),
        }
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
    if names.is_empty() {
        eprintln!("no cluster is up");
    }
    Ok(if leaked { Answer::No } else { Answer::Yes })
}
