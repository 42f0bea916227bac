//! Puts objects into a cluster that is up.

use std::path::PathBuf;

use testbed::interrupt::Interrupt;
use testbed::lab::Lab;
use testbed::output;
use testbed::progress::Progress;
use userspace::model::{Change, Objects};

use super::{Answer, chosen, kubectl_name, recalled, roster, stored};

/// Put objects into a cluster that is up, each in the place of the one with its name
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kubernetes objects: files, directories, `-` for standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// A cluster that is up; may be left out if it is the only one
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let wanted = Objects::read(&args.files)?;
    let mut lab = Lab::open(&chosen(args.cluster.as_deref())?)?;
    let mut objects = recalled(lab.state())?;
    roster::state_nodes(&mut objects, &lab.state().cluster, &wanted)?;
    let changes = objects.apply(wanted);
    let cluster = objects.resolve(Some(&lab.state().cluster))?;
    // From here on a change is seen through: half of it would be no cluster that anybody asked for.
    let _interrupt = Interrupt::watch()?;
    let changing = Progress::start(format!("changing cluster {}", cluster.name));
    lab.change(stored(&objects), cluster)?;
    drop(changing);
    let mut text = String::new();
    for (key, change) in changes {
        let word = match change {
            Change::Created => "created",
            Change::Configured => "configured",
            Change::Unchanged => "unchanged",
        };
        text += &format!("{} {word}\n", kubectl_name(&key));
    }
    output::print(&text)?;
    Ok(Answer::Yes)
}
