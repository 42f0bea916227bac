//! Takes objects out of a cluster that is up.

use std::path::PathBuf;

use testbed::interrupt::Interrupt;
use testbed::lab::Lab;
use testbed::output;
use testbed::progress::Progress;
use userspace::model::Objects;

use super::{Answer, chosen, kubectl_name, recalled, roster, stored};

/// Take objects out of a cluster that is up; with a namespace all that is in it, with a node its pods
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kubernetes objects: files, directories, `-` for standard input; only their names count
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// A cluster that is up; may be left out if it is the only one
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let named = Objects::read(&args.files)?;
    let mut lab = Lab::open(&chosen(args.cluster.as_deref())?)?;
    let mut objects = recalled(lab.state())?;
    let before = lab.state().cluster.clone();
    roster::state_nodes(&mut objects, &before, &named)?;
    // As in Kubernetes, pods go with their node unless a workload makes them anew.
    let nodes = roster::named(&named);
    let evicted =
        roster::evict(&mut objects, &before, &nodes.iter().map(String::as_str).collect::<Vec<_>>())?;
    let deleted = objects.delete(&named);
    let cluster = objects.resolve(Some(&lab.state().cluster))?;
    let _interrupt = Interrupt::watch()?;
    let changing = Progress::start(format!("changing cluster {}", cluster.name));
    lab.change(stored(&objects), cluster)?;
    drop(changing);
    let mut text: String =
        evicted.iter().map(|key| format!("{} deleted with its node\n", kubectl_name(key))).collect();
    let mut answer = Answer::Yes;
    for (key, was_there) in deleted {
        if was_there {
            text += &format!("{} deleted\n", kubectl_name(&key));
        } else {
            eprintln!("{} not found", kubectl_name(&key));
            answer = Answer::No;
        }
    }
    output::print(&text)?;
    Ok(answer)
}
