//! The main job, on the embedded example.

use testbed::output;
use testbed::probe::{Grid, all_pairs};
use userspace::model::Objects;

use super::dataplane::Dataplane;
use super::{Answer, check, explain, resolved};

/// A shop: three nodes, Services, policies, a host outside.
const EXAMPLE: &str = include_str!("../../examples/shop.yaml");

/// Measure the embedded example: who reaches whom in a small shop, and the walk of one packet
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where packets go
    #[arg(long, value_enum, value_name = "DATAPLANE", default_value = "emulator")]
    dataplane: Dataplane,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let dataplane = args.dataplane.among(&check::ABLE, "show the demo")?;
    let cluster = resolved(&Objects::parse("the example", EXAMPLE)?)?;
    eprintln!(
        "A shop on {} nodes with {} pods, {} Services and {} policies; its objects are Kubernetes' own.",
        cluster.nodes.len(),
        cluster.pods.len(),
        cluster.services.len(),
        cluster.policies.len()
    );
    let flows = all_pairs(&cluster);
    let grid: Grid = check::measure_described(&cluster, dataplane, flows)?;
    output::print(&check::table(&grid, false))?;
    Ok(if grid.differences == 0 { Answer::Yes } else { Answer::No })
}
