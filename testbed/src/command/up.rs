//! Builds a cluster that stays up.

use std::path::PathBuf;

use testbed::interrupt::Interrupt;
use testbed::lab::Lab;
use testbed::progress::Progress;
use userspace::model::Objects;

use super::dataplane::Dataplane;
use super::{Answer, resolved, stored};

/// Build a cluster that stays up, until `podpath down`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kubernetes objects: files, directories, `-` for standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Where packets go
    #[arg(long, value_enum, value_name = "DATAPLANE", default_value = "ebpf")]
    dataplane: Dataplane,
}

/// Those that live in namespaces.
const ABLE: [Dataplane; 4] = [Dataplane::Ebpf, Dataplane::Iptables, Dataplane::Nftables, Dataplane::Routed];

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let dataplane = args.dataplane.among(&ABLE, "bring up a cluster")?;
    let objects = Objects::read(&args.files)?;
    let cluster = resolved(&objects)?;
    let interrupt = Interrupt::watch()?;
    let (name, nodes, pods) = (cluster.name.clone(), cluster.nodes.len(), cluster.pods.len());
    let building = Progress::start(format!("bringing up {nodes} nodes and {pods} pods on {dataplane}"));
    Lab::up(stored(&objects), cluster, dataplane.word(), &interrupt)?;
    drop(building);
    eprintln!("cluster {name} is up on {dataplane}: {nodes} nodes, {pods} pods");
    Ok(Answer::Yes)
}
