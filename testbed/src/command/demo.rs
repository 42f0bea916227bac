//! The main job, on the embedded example.

use testbed::output;
use testbed::probe::all_pairs;
use userspace::model::Objects;

use super::dataplane::Dataplane;
use super::{Answer, bench, check, explain, resolved};

/// A shop: three nodes, Services, policies, a host outside.
const EXAMPLE: &str = include_str!("../../examples/shop.yaml");
/// Where it lies, for whoever wants to repeat a step.
const FILE: &str = "testbed/examples/shop.yaml";
/// Two packets worth a look: one that is let through to a backend, one that is not.
const WALKS: [(&str, &str); 2] =
    [("monitoring/prometheus", "svc:shop/frontend:80"), ("stranger/shell", "svc:shop/api:80")];

/// Show the main job on the embedded example: who reaches whom in a small shop, why, and at what cost
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where packets go; if left out, ebpf where that works, and the emulator where it does not
    #[arg(long, value_enum, value_name = "DATAPLANE")]
    dataplane: Option<Dataplane>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let dataplane = match args.dataplane {
        Some(one) => one.among(&check::ABLE, "show the demo")?,
        None => Dataplane::best(),
    };
    let cluster = resolved(&Objects::parse(FILE, EXAMPLE)?)?;
    output::print(&format!("$ podpath check -f {FILE} --dataplane {dataplane}\n"))?;
    let (grid, seen) = check::measure_described(&cluster, dataplane, all_pairs(&cluster))?;
    output::print(&check::tables(&cluster, &grid)?)?;
    for (from, to) in WALKS {
        output::print(&format!("\n$ podpath explain {from} {to} -f {FILE}\n"))?;
        output::print(&explain::explain(&cluster, from, to)?.walks(explain::THERE_AND_BACK))?;
    }
    if dataplane == Dataplane::Ebpf {
        output::print("\n$ podpath bench quick\n")?;
        bench::compare("quick")?;
    }
    let leaked = check::tell(&seen);
    Ok(if grid.differences == 0 && !leaked { Answer::Yes } else { Answer::No })
}
