//! Runs a program in a pod's network namespace.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use testbed::netns::{Netns, Part};
use testbed::topology::pod_netns;
use userspace::model::{Endpoint, Found};

use super::{Answer, live};

/// Run a program where a pod is: it sees the pod's network, and everything else of this machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// namespace/pod, node:name, or ext:name
    #[arg(value_name = "POD")]
    place: String,
    /// A cluster that is up; may be left out if it is the only one
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let cluster = live(args.cluster.as_deref())?.cluster;
    let place: Endpoint = args.place.parse()?;
    let netns = match cluster.find(&place.who)? {
        Found::Pod(pod) => pod_netns(&cluster.name, pod),
        Found::Node(node) => Netns::of(&cluster.name, Part::Node(&node.name)),
        Found::External(_) => Netns::of(&cluster.name, Part::World),
        Found::Service(_) | Found::Frontend(..) => {
            anyhow::bail!("cannot run a program in {}: a Service is only an address to dial", place.who)
        }
    };
    let (program, rest) = args.command.split_first().expect("clap wants at least one word");
    // The thread inside becomes the process, so that signals and the exit code are the program's own.
    let error = netns.run(|| Command::new(program).args(rest).exec())?;
    eprintln!("error: cannot run {} in {}: {error}", program.display(), netns.name());
    Ok(Answer::Code(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }))
}
