//! The walk of one packet, and of its answers.

use std::net::IpAddr;

use dataplane::Reason;
use dataplane::trace::Stage;
use serde::Serialize;
use testbed::interrupt::Interrupt;
use testbed::output::{self, Format};
use testbed::probe::live::Live;
use testbed::probe::stitch::{there_and_back, through_fabric};
use testbed::probe::{Flow, Prober, Verdict};
use testbed::ruling::Ruling;
use testbed::spread::{Choice, kept};
use testbed::{agents, fabric, lab};
use userspace::engine::emulator::{Dial, Network};
use userspace::model::{Cluster, Endpoint, Found, Port, Protocol, Who};
use userspace::observe::walk;

use super::dataplane::Dataplane;
use super::{Answer, Source, Subject};

/// Show the walk of one packet, stage by stage, and of what answers it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// namespace/pod, node:name or ext:name
    #[arg(value_name = "FROM")]
    from: String,
    /// The same or svc:namespace/name, and a port: shop/api:8080/tcp
    #[arg(value_name = "TO")]
    to: String,
    #[command(flatten)]
    source: Source,
    /// The whole conversation, not only its first packet and what answers that
    #[arg(long)]
    all: bool,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What became of a conversation.
#[derive(Debug, Serialize)]
pub(crate) struct Explained {
    from: String,
    to: String,
    port: u16,
    protocol: Protocol,
    verdict: Verdict,
    reason: Option<&'static str>,
    decided_by: Option<String>,
    /// Why a Service gave it, or its socket, to the endpoint it went to, if one did.
    choice: Option<Choice>,
    /// What policies said of it, if any had a say.
    ruling: Option<Ruling>,
    /// Of each packet that a Service translated, whether it was chosen for that or stayed where its flow was.
    #[serde(skip)]
    kept: Vec<bool>,
    /// The stages of each packet, a line each.
    packets: Vec<Vec<String>>,
}

impl Explained {
    /// The walks of the first packets, a line for each stage, an empty line between packets. Where a Service
    /// chose, it says among whom and why; where it did not, because the flow had its endpoint, that. Below, what
    /// policies said.
    pub(crate) fn walks(&self, packets: usize) -> String {
        let (mut choice, mut kept) = (self.choice.as_ref(), self.kept.iter());
        let mut line = |line: &String| {
            let socket = line.starts_with(Stage::Socket.word());
            if !socket && !line.starts_with(Stage::Service.word()) {
                return format!("{line}\n");
            }
            if !socket && kept.next() == Some(&true) {
                return format!("{line}\n{:15}kept: its flow was given to it before\n", "");
            }
            choice.take().map_or_else(|| format!("{line}\n"), |choice| format!("{line}\n{:15}{choice}\n", ""))
        };
        let walks: Vec<String> =
            self.packets.iter().take(packets).map(|lines| lines.iter().map(&mut line).collect()).collect();
        let ruling = self.ruling.as_ref().map_or(String::new(), |ruling| format!("\n{ruling}"));
        walks.join("\n") + &ruling
    }
}

/// The first packet, and what answers it.
pub(crate) const THERE_AND_BACK: usize = 2;

/// Decides what would otherwise be chance, so that a walk can be repeated.
const SEED: u32 = 1;

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let subject = args.source.subject()?;
    let explained = match &subject {
        Subject::Live(state) if subject.runs_on() == Some(Dataplane::Ebpf) => {
            if args.all {
                anyhow::bail!(
                    "cannot show the whole conversation on a live cluster: its nodes tell packets apart by their \
                     order only; leave out --all, or name the files of the cluster with -f"
                );
            }
            explain_live(&state.cluster, &args.from, &args.to)?
        }
        _ => explain(subject.cluster(), &args.from, &args.to)?,
    };
    let packets = if args.all { usize::MAX } else { THERE_AND_BACK };
    let document = args.output.document(&explained)?;
    output::print(&document.unwrap_or_else(|| explained.walks(packets)))?;
    Ok(Answer::Yes)
}

/// Lets one end dial the other on a cluster that is up, while every stage of every node reports.
///
/// # Errors
/// A name is wrong or not in the cluster, or the cluster does not answer.
fn explain_live(cluster: &Cluster, from: &str, to: &str) -> anyhow::Result<Explained> {
    let (from, to): (Endpoint, Endpoint) = (from.parse()?, to.parse()?);
    let own = cluster.find(&from.who)?.address();
    let client = match own {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let port = to.port.map_or_else(|| only_port(&cluster.find(&to.who)?), Ok)?;
    let flow = Flow {
        from: from.who.clone(),
        to: to.who.clone(),
        port: port.number,
        protocol: port.protocol,
        over: None,
    };
    let (interrupt, names) = (Interrupt::watch()?, agents::names(cluster)?);
    let mut reported = Vec::new();
    let reports = || {
        let (steps, _) = agents::take_steps(cluster)?;
        reported.extend(steps.iter().cloned());
        Ok(steps)
    };
    // Nodes tell of all but what the fabric does to the packets of a host outside.
    let outside = matches!(from.who, Who::External(_)) && fabric::is_emulated(cluster);
    let fabric = outside.then(|| fabric::Client::of(cluster, "follow packets in")).transpose()?;
    fabric.iter().try_for_each(fabric::Client::tell)?;
    // What was dropped before is another packet's story.
    if let Err(error) = agents::trace(cluster, true).and_then(|()| agents::take_steps(cluster)) {
        // Nodes that can be told are to go on as they were; why others cannot is said already.
        let _ = agents::trace(cluster, false);
        return Err(error.into());
    }
    let listeners = lab::listeners(&cluster.name);
    let mut prober = Live::new(cluster, Dataplane::Ebpf.word(), listeners, &interrupt)
        .told_by(Box::new(reports), names.clone());
    let measured = prober.probe(&[flow]);
    drop(prober);
    agents::trace(cluster, false)?;
    let measured =
        measured?.pop().ok_or_else(|| anyhow::anyhow!("cannot explain {to}: it was not dialled"))?;
    let told = fabric.map(|fabric| fabric.told()).transpose()?.unwrap_or_default();
    let steps = through_fabric(there_and_back(&reported, cluster, client), &told, own);
    let text = walk::print(&steps, &names);
    Ok(Explained {
        from: from.who.to_string(),
        to: to.who.to_string(),
        port: port.number,
        protocol: port.protocol,
        verdict: measured.verdict,
        reason: measured.reason.map(Reason::slug),
        decided_by: measured.decided_by,
        choice: Choice::of(cluster, &steps),
        ruling: Ruling::of(cluster, &from.who, &steps)?,
        kept: kept(&steps),
        packets: text.split("\n\n").map(|walk| walk.lines().map(str::to_owned).collect()).collect(),
    })
}

/// Lets one end dial the other on an emulated cluster.
///
/// # Errors
/// A name is wrong or not in the cluster, or the cluster cannot be emulated.
pub(crate) fn explain(cluster: &Cluster, from: &str, to: &str) -> anyhow::Result<Explained> {
    let (from, to): (Endpoint, Endpoint) = (from.parse()?, to.parse()?);
    if let Found::Service(_) | Found::Frontend(..) = cluster.find(&from.who)? {
        anyhow::bail!("cannot send from {}: a Service is only an address to dial", from.who);
    }
    let target = cluster.find(&to.who)?;
    let port = to.port.map_or_else(|| only_port(&target), Ok)?;
    let mut network = Network::new(cluster, SEED)?;
    if matches!(target, Found::Pod(_) | Found::Node(_)) {
        let host = network.host(&to.who.to_string())?;
        network.listen(host, port.protocol, port.number);
    }
    let host = network.host(&from.who.to_string())?;
    let address = target.address_from(&network.host_at(host).addresses);
    let attempt = network.connect(host, address, Dial::Port(port.protocol, port.number))?;
    let text = walk::print(&attempt.walk, network.names());
    let packets = text.split("\n\n").map(|walk| walk.lines().map(str::to_owned).collect()).collect();
    Ok(Explained {
        from: from.who.to_string(),
        to: to.who.to_string(),
        port: port.number,
        protocol: port.protocol,
        verdict: attempt.answer.into(),
        reason: attempt.reason.map(Reason::slug),
        decided_by: attempt.rule.map(|rule| rule.policy),
        choice: Choice::of(cluster, &attempt.walk),
        ruling: Ruling::of(cluster, &from.who, &attempt.walk)?,
        kept: kept(&attempt.walk),
        packets,
    })
}

/// The one port that it declares, if it is one.
pub(super) fn only_port(target: &Found<'_>) -> anyhow::Result<Port> {
    let declared: Vec<Port> = match target {
        Found::Pod(pod) => {
            pod.ports.iter().map(|port| Port { number: port.port, protocol: port.protocol }).collect()
        }
        Found::External(external) => {
            external.ports.iter().map(|port| Port { number: port.port, protocol: port.protocol }).collect()
        }
        Found::Service(service) | Found::Frontend(service, _) => {
            service.ports.iter().map(|port| Port { number: port.port, protocol: port.protocol }).collect()
        }
        Found::Node(_) => Vec::new(),
    };
    let who = target.who();
    match declared.as_slice() {
        [one] => Ok(*one),
        [] => anyhow::bail!("cannot dial {who}: it declares no port; say which, as {who}:8080/tcp"),
        several => {
            let several = several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            anyhow::bail!("cannot dial {who}: it declares {several}; say which, as {who}:8080/tcp")
        }
    }
}
