//! Addresses and capacity before a cluster is made.

use std::path::PathBuf;

use ipnet::IpNet;
use testbed::output::{self, Format, Paint, columns};
use userspace::ipam::MAX_NODES;
use userspace::model::Objects;
use userspace::model::capacity::{self, Outlook, Pair, Plan, Surge, spelled};

use super::Answer;

/// Show how a cluster would fill its ranges, how it would fit in each model, and what runs out first
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kubernetes objects: files, directories, `-` for standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Nodes that an upgrade adds for its time: so many, or of a hundred so many
    #[arg(long, value_name = "N|P%", default_value = "1", value_parser = surge)]
    max_surge: Surge,
    /// Nodes that there will be, instead of those of the input
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=u64::from(MAX_NODES)))]
    nodes: Option<u64>,
    /// A range that is reachable from the virtual network, peered or on-premises; may be given again
    #[arg(long, value_name = "CIDR", value_parser = range)]
    peered: Vec<IpNet>,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

fn surge(text: &str) -> Result<Surge, String> {
    let number = |text: &str, most: u64| text.parse().ok().filter(|number: &u64| *number <= most);
    let surge = match text.strip_suffix('%') {
        Some(percent) => number(percent, 100).map(Surge::Percent),
        None => number(text, MAX_NODES.into()).map(Surge::Nodes),
    };
    surge.ok_or_else(|| format!("must be a number of nodes up to {MAX_NODES}, or a percentage up to 100%"))
}

fn range(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .map(|range| range.trunc())
        .map_err(|_| "must be a range like 10.1.0.0/16".to_owned())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let demand = Objects::read(&args.files)?.demand()?;
    for note in &demand.notes {
        eprintln!("note: {note}");
    }
    let outlook = Outlook { nodes: args.nodes, surge: args.max_surge, peered: args.peered.clone() };
    let plan = capacity::plan(&demand, &outlook);
    let text = match args.output.document(&plan)? {
        Some(document) => document,
        None => tables(&plan, args.output),
    };
    output::print(&text)?;
    Ok(if plan.fits { Answer::Yes } else { Answer::No })
}

fn tables(plan: &Plan, format: Format) -> String {
    let Plan { cluster, model, nodes, surge, pods, host_network_pods, .. } = plan;
    let name = model.name();
    let head = format!(
        "cluster {cluster}, model {name}: {nodes} nodes, {surge} more in an upgrade; {pods} pods with addresses of their own, {host_network_pods} with their node's\n"
    );
    let overlapping = plan.pairs.iter().any(|pair| pair.overlap);
    let mut parts = vec![head, ranges(plan), models(plan)];
    if overlapping || format == Format::Wide {
        parts.push(pairs(plan));
    }
    let paint = Paint::stdout();
    parts.push(match plan.fits {
        true => format!("{} it fits, upgrades included\n", paint.good("ok:")),
        false => plan.problems.iter().map(|why| format!("{} {why}\n", paint.bad("problem:"))).collect(),
    });
    parts.join("\n")
}

fn ranges(plan: &Plan) -> String {
    let rows = plan.ranges.iter().map(|range| {
        let counts = [range.size, range.usable, range.reserved, range.used, range.free].map(spelled);
        let [size, usable, reserved, used, free] = counts;
        [range.name.to_owned(), range.cidr.to_string(), size, usable, reserved, used, free]
    });
    columns(["RANGE", "CIDR", "SIZE", "USABLE", "RESERVED", "USED", "FREE"], rows)
}

fn models(plan: &Plan) -> String {
    let rows = plan.models.iter().map(|fit| {
        let own = if fit.model == plan.model { "* " } else { "  " };
        let pods = match (fit.stuck, fit.stranded) {
            (0, _) => fit.pods.to_string(),
            (stuck, _) => format!("{} ({stuck} stuck)", fit.pods),
        };
        [
            format!("{own}{}", fit.model.name()),
            fit.max_pods.to_string(),
            fit.nodes.to_string(),
            fit.headroom.to_string(),
            pods,
            if fit.fits { "yes" } else { "no" }.to_owned(),
            fit.limit.clone(),
        ]
    });
    columns(["  MODEL", "MAX PODS", "NODES FIT", "HEADROOM", "PODS FIT", "FITS", "RUNS OUT FIRST"], rows)
}

fn pairs(plan: &Plan) -> String {
    let rows = plan.pairs.iter().map(|Pair { names, cidrs, overlap }| {
        let [first, second] = [0, 1].map(|place| format!("{} {}", names[place], cidrs[place]));
        [first, second, if *overlap { "overlap" } else { "apart" }.to_owned()]
    });
    columns(["RANGE", "AND", "ARE"], rows)
}
