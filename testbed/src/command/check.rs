//! Who reaches whom, measured on a dataplane, and judged.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use testbed::agents;
use testbed::dataplane::emulator::Emulated;
use testbed::dataplane::{Name, chains, netfilter};
use testbed::doctor::{self, Finding, filter};
use testbed::interrupt::Interrupt;
use testbed::lab::{self, Lab};
use testbed::netns::check_cluster;
use testbed::output::{self, Format, Paint};
use testbed::page;
use testbed::probe::crowd::{self, Crowds};
use testbed::probe::live::Live;
use testbed::probe::{self, Flow, Grid, Prober, Tables, read_flows};
use testbed::progress::Progress;
use testbed::witness::Seen;
use userspace::engine::emulator::matrix;
use userspace::model::{Cluster, Port, Protocol};

use super::dataplane::Dataplane;
use super::{Answer, Source, Subject};

/// Measure who reaches whom, and compare it with what the policies say
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Where packets go; `all` is each that keeps policies. If left out, a live cluster's own; else ebpf
    /// where that works, and the emulator where it does not or there are more than 1000 pods
    #[arg(long, value_name = "DATAPLANE", value_parser = Asked::parser())]
    dataplane: Option<Asked>,
    /// A JSON array of [from, to, port, protocol]; all pairs at all declared ports if left out
    #[arg(long, value_name = "FILE")]
    flows: Option<PathBuf>,
    /// Every pair at these ports, whatever they declare: 80/tcp,53/udp
    #[arg(long = "port", value_name = "PORTS", value_delimiter = ',', conflicts_with = "flows")]
    ports: Vec<Port>,
    /// Every pod by itself: else, of many, two are asked for all that are alike, and replicas are shown as one
    #[arg(long)]
    all: bool,
    /// Of each denial, the nearest rule that would have allowed it and what it lacks
    #[arg(long)]
    why: bool,
    /// Writes who may reach whom, by policies, as a page for a browser: each pod with each, with who decided
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How: a table is a truth table for each port, or the rows of --flows
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The value of `--dataplane`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    One(Dataplane),
    All,
}

impl Asked {
    fn parser() -> impl TypedValueParser<Value = Self> {
        let words = Dataplane::ALL.map(Dataplane::word).into_iter().chain(["all"]);
        PossibleValuesParser::new(words).map(|word| Dataplane::of(&word).map_or(Self::All, Self::One))
    }
}

/// Those that can be checked.
pub(crate) const ABLE: [Dataplane; 6] = [
    Dataplane::Ebpf,
    Dataplane::Emulator,
    Dataplane::Chains,
    Dataplane::Iptables,
    Dataplane::Nftables,
    Dataplane::Routed,
];
/// Those of them that know Services and policies.
const COMPLETE: [Dataplane; 5] =
    [Dataplane::Ebpf, Dataplane::Emulator, Dataplane::Chains, Dataplane::Iptables, Dataplane::Nftables];

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let subject = args.source.subject()?;
    let cluster = subject.cluster();
    let flows = match &args.flows {
        Some(path) => read_flows(path, cluster)?,
        None => every_flow(args, cluster)?,
    };
    let (mut grids, mut leaked) = (Vec::new(), false);
    for dataplane in chosen(args.dataplane, &subject)? {
        let (grid, seen) = measure(&subject, dataplane, answerable(dataplane, flows.clone()))?;
        leaked |= tell(&seen);
        grids.push(grid);
    }
    if let Some(path) = &args.html {
        write_page(path, args, cluster, grids.first())?;
    }
    let document = match grids.as_slice() {
        [one] => args.output.document(one)?,
        several => args.output.document(&several)?,
    };
    let text = match document {
        Some(document) => document,
        None => {
            let tables =
                grids.iter().map(|grid| shown(args, cluster, grid)).collect::<Result<Vec<_>, _>>()?;
            tables.join("\n")
        }
    };
    output::print(&text)?;
    let agree = grids.iter().all(|grid| grid.differences == 0);
    Ok(if agree && !leaked { Answer::Yes } else { Answer::No })
}

/// What was asked for; else what the cluster runs on; else the best there is.
fn chosen(asked: Option<Asked>, subject: &Subject) -> anyhow::Result<Vec<Dataplane>> {
    Ok(match asked {
        // The emulator is always among them: it runs anywhere, and knows all that can be asked.
        Some(Asked::All) => {
            let findings = doctor::examine();
            let here = COMPLETE.into_iter().filter(|one| is_here(*one, &findings));
            here.filter(|one| is_able(*one, subject.cluster(), &findings)).collect()
        }
        Some(Asked::One(one)) => vec![one.among(&ABLE, "check")?],
        None => vec![subject.runs_on().unwrap_or_else(|| fitting(subject.cluster()))],
    })
}

/// So many pods are brought up without being asked for: it takes some seconds.
const MANY_PODS: usize = 1_000;

/// The best there is for a cluster of this size.
fn fitting(cluster: &Cluster) -> Dataplane {
    let pods = cluster.pods.len();
    if pods <= MANY_PODS {
        return Dataplane::best();
    }
    eprintln!(
        "note: {pods} pods are many to bring up, so the emulator is asked; --dataplane ebpf brings them up all the same"
    );
    Dataplane::Emulator
}

/// Whether a dataplane works on this machine; says why if not.
fn is_here(dataplane: Dataplane, findings: &[Finding]) -> bool {
    let missing = findings.iter().find(|one| !one.found && one.needed_for.contains(&dataplane.word()));
    if let Some(Finding { requirement, detail, .. }) = missing {
        eprintln!(
            "note: left out {dataplane}: it needs {requirement}: {detail}; `podpath doctor` says what to do"
        );
    }
    missing.is_none()
}

/// Whether a dataplane knows all that the cluster asks of it, and the kernel does; says why if not.
fn is_able(dataplane: Dataplane, cluster: &Cluster, findings: &[Finding]) -> bool {
    let suits = |name, requirement: &str| {
        let missing = findings.iter().any(|one| !one.found && one.requirement == requirement);
        if missing { filter::suits(name, cluster) } else { Ok(()) }
    };
    let checked = match dataplane {
        Dataplane::Chains => chains::check(cluster).map_err(|why| why.to_string()),
        Dataplane::Iptables => netfilter::check(Name::Iptables, cluster)
            .map_err(|why| why.to_string())
            .and_then(|()| suits(Name::Iptables, doctor::IPTABLES_OF_SOME)),
        Dataplane::Nftables => netfilter::check(Name::Nftables, cluster)
            .map_err(|why| why.to_string())
            .and_then(|()| suits(Name::Nftables, doctor::NFTABLES_OF_SOME)),
        _ => Ok(()),
    };
    if let Err(why) = &checked {
        eprintln!("note: left out {dataplane}: {why}");
    }
    checked.is_ok()
}

/// So many flows are asked without a thought; of more, those that stand for the others.
const MANY: usize = 200_000;

/// All pairs; where they are too many, those of pods that stand for all that are alike.
fn every_flow(args: &Args, cluster: &Cluster) -> anyhow::Result<Vec<Flow>> {
    let ports = (!args.ports.is_empty()).then_some(args.ports.as_slice());
    let of = |cluster: &Cluster| {
        ports.map_or_else(|| probe::all_pairs(cluster), |ports| probe::pairs_at(cluster, ports))
    };
    let count = probe::count_pairs(cluster, ports);
    if count > MANY && !args.all {
        let flows = of(&crowd::representatives(cluster)?);
        eprintln!(
            "note: {} flows stand for {count}: of pods that neither labels nor policies tell apart two are asked; \
             ask all with --all",
            flows.len()
        );
        return Ok(flows);
    }
    let flows = of(cluster);
    if flows.is_empty() {
        eprintln!(
            "note: there is nothing to ask: no pod, Service or External declares a port; say which with --port, or \
             name flows with --flows"
        );
    }
    Ok(flows)
}

/// The flows that can be answered there: where the kernel does not speak SCTP, no live pod does. Says what is left out.
fn answerable(dataplane: Dataplane, mut flows: Vec<Flow>) -> Vec<Flow> {
    if dataplane == Dataplane::Emulator || doctor::speaks_sctp() {
        return flows;
    }
    let asked = flows.len();
    flows.retain(|flow| flow.protocol != Protocol::Sctp);
    if flows.len() < asked {
        let left_out = asked - flows.len();
        eprintln!(
            "note: left out {left_out} flows over SCTP on {dataplane}: this kernel does not speak it, so no pod can \
             answer. Next: modprobe sctp, or --dataplane emulator"
        );
    }
    flows
}

fn measure(subject: &Subject, dataplane: Dataplane, flows: Vec<Flow>) -> anyhow::Result<(Grid, Seen)> {
    match subject {
        Subject::Live(state) if subject.runs_on() == Some(dataplane) => {
            let (cluster, interrupt) = (&state.cluster, Interrupt::watch()?);
            let _progress = Progress::start(format!("measuring {} flows on {dataplane}", flows.len()));
            with_prober(cluster, dataplane, &interrupt, |prober| Grid::measure(cluster, flows, prober))
        }
        _ => measure_described(subject.cluster(), dataplane, flows),
    }
}

/// Measures a cluster that is described, and not up: in this process, or on a cluster made for it.
///
/// # Errors
/// It cannot be planned, brought up, measured or removed.
pub(crate) fn measure_described(
    cluster: &Cluster,
    dataplane: Dataplane,
    flows: Vec<Flow>,
) -> anyhow::Result<(Grid, Seen)> {
    if dataplane == Dataplane::Emulator {
        let _progress = Progress::start(format!("measuring {} flows on {dataplane}", flows.len()));
        return Ok((Grid::measure(cluster, flows, &mut Emulated::new(cluster)?)?, Seen::default()));
    }
    measure_for_once(cluster, dataplane, flows)
}

/// On a cluster of its own, removed again: also on errors, and when the user has enough of it.
fn measure_for_once(
    cluster: &Cluster,
    dataplane: Dataplane,
    flows: Vec<Flow>,
) -> anyhow::Result<(Grid, Seen)> {
    let interrupt = Interrupt::watch()?;
    let twin = Cluster { name: for_once(&cluster.name), ..cluster.clone() };
    let building = Progress::start(format!("bringing up {} pods on {dataplane}", twin.pods.len()));
    let lab = Lab::up(Vec::new(), twin.clone(), dataplane.word(), &interrupt)?;
    drop(building);
    let measuring = Progress::start(format!("measuring {} flows on {dataplane}", flows.len()));
    let measured = with_prober(&twin, dataplane, &interrupt, |prober| Grid::measure(cluster, flows, prober));
    drop(measuring);
    let removing = Progress::start("removing the cluster");
    let removed = lab.down();
    drop(removing);
    let grid = measured?;
    removed?;
    Ok(grid)
}

/// Asks on a cluster that is up.
fn with_prober(
    cluster: &Cluster,
    dataplane: Dataplane,
    interrupt: &Interrupt,
    ask: impl FnOnce(&mut dyn Prober) -> anyhow::Result<Grid>,
) -> anyhow::Result<(Grid, Seen)> {
    let mut prober = Live::new(cluster, dataplane.word(), lab::listeners(&cluster.name), interrupt);
    let grid = match dataplane {
        Dataplane::Ebpf => {
            let names = agents::names(cluster)?;
            let reports = || {
                let (steps, lost) = agents::take_steps(cluster)?;
                if lost > 0 {
                    eprintln!("note: {lost} reports were lost: some reasons are missing");
                }
                Ok(steps)
            };
            agents::trace(cluster, true)?;
            let measured = ask(&mut prober.told_by(Box::new(reports), names));
            agents::trace(cluster, false)?;
            measured
        }
        // Routes are part of the links, rules stay without a process, and `chains` runs as long as its lab.
        _ => ask(&mut prober),
    }?;
    Ok((grid, lab::listeners(&cluster.name).seen()?.unwrap_or_default()))
}

/// Says what the witness in the world saw that must not be; whether there was anything.
pub(crate) fn tell(seen: &Seen) -> bool {
    if seen.missed > 0 {
        eprintln!("note: the witness in the world did not hear {} packets", seen.missed);
    }
    if seen.leaked == 0 {
        return false;
    }
    let paint = Paint::stderr();
    eprintln!(
        "{} {} packets came to the world with a pod's address, where a node's must stand",
        paint.bad("error:"),
        seen.leaked
    );
    seen.leaks.iter().for_each(|leak| eprintln!("    {leak}"));
    true
}

/// A name for a throw-away twin of a cluster: at most 40 bytes, and nobody else's.
fn for_once(name: &str) -> String {
    let suffix = format!("check-{}", std::process::id());
    let kept: String = name.chars().take(39 - suffix.len()).collect();
    let twin = format!("{}-{suffix}", kept.trim_end_matches('-'));
    // A name that was cut may end in a word that names of namespaces keep for themselves.
    if check_cluster(&twin).is_ok() { twin } else { suffix }
}

/// Writes a cluster's page, at the ports that were asked about.
fn write_page(path: &Path, args: &Args, cluster: &Cluster, grid: Option<&Grid>) -> anyhow::Result<()> {
    let ports = if args.ports.is_empty() { matrix::declared(cluster) } else { args.ports.clone() };
    let page = page::Data::of(cluster, &ports, grid)?.page()?;
    std::fs::write(path, page)
        .map_err(|why| anyhow::anyhow!("cannot write the page to {}: {why}", path.display()))
}

/// A grid as it was asked for, for people.
fn shown(args: &Args, cluster: &Cluster, grid: &Grid) -> anyhow::Result<String> {
    if args.flows.is_some() || args.output == Format::Wide {
        return Ok(with_differences(grid, &grid.lines()));
    }
    let mut tables = Tables::of(grid).with_denials(cluster)?;
    if args.why {
        tables = tables.with_nearest();
    }
    if !args.all {
        tables = tables.grouped(Crowds::of(cluster));
    }
    Ok(with_differences(grid, &tables.text(Paint::stdout())))
}

/// The truth tables of a grid, for people.
///
/// # Errors
/// The cluster cannot be planned.
pub(crate) fn tables(cluster: &Cluster, grid: &Grid) -> anyhow::Result<String> {
    let tables = Tables::of(grid).with_denials(cluster)?;
    Ok(with_differences(grid, &tables.text(Paint::stdout())))
}

fn with_differences(grid: &Grid, rows: &str) -> String {
    let paint = Paint::stdout();
    let differing = grid.differing();
    let gap = if differing.is_empty() { "" } else { "\n" };
    let summary =
        if grid.differences == 0 { paint.good(&grid.summary()) } else { paint.bad(&grid.summary()) };
    format!("{rows}{gap}{differing}\n{summary}\n")
}
