//! Where flows to a Service go.

use serde::Serialize;
use testbed::oracle::Standing;
use testbed::output::{self, Format, columns};
use testbed::spread::{Question, Share, Spread, spread};
use userspace::model::Endpoint;

use super::explain::only_port;
use super::{Answer, Source};

/// Which source port comes first: those below are not for clients.
const FIRST: u16 = 1024;

/// Show where flows of a client to a Service would go
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// namespace/pod, node:name or ext:name
    #[arg(value_name = "CLIENT")]
    client: String,
    /// svc:namespace/name, with @lb or @external at its other addresses, or node:name for a port of a node; and a
    /// port: svc:shop/api@lb:80/tcp
    #[arg(value_name = "SERVICE")]
    service: String,
    #[command(flatten)]
    source: Source,
    /// How many flows, one from each source port from 1024 on
    #[arg(short = 'n', long = "flows", value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u16).range(1..=10_000), conflicts_with = "port")]
    flows: u16,
    /// The one flow from this source port, and why it goes there
    #[arg(short, long, value_name = "SRC", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The answer about one flow.
#[derive(Debug, Serialize)]
struct One {
    #[serde(flatten)]
    spread: Spread,
    /// The port that it comes from.
    source_port: u16,
}

/// Exit code 1: not every flow finds somebody to answer it.
pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let subject = args.source.subject()?;
    let cluster = subject.cluster();
    let (from, to): (Endpoint, Endpoint) = (args.client.parse()?, args.service.parse()?);
    if from.port.is_some() {
        anyhow::bail!(
            "cannot dial from {from}: a client has no port of its own; name the source port with --port"
        );
    }
    if from.who.to_string().starts_with("svc:") {
        anyhow::bail!("cannot dial from {from}: a Service is only an address to dial");
    }
    cluster.find(&from.who)?;
    let port = to.port.map_or_else(|| only_port(&cluster.find(&to.who)?), Ok)?;
    let sources = match args.port {
        Some(source) => source..=source,
        None => FIRST..=FIRST + args.flows - 1,
    };
    let spread = spread(cluster, &Question { from: &from.who, to: &to.who, port, sources })?;
    let found: usize = spread.backends.iter().map(|share| share.flows).sum();
    let answer = if found == spread.flows { Answer::Yes } else { Answer::No };
    let text = match args.port {
        None => args.output.document(&spread)?.unwrap_or_else(|| table(&spread)),
        Some(source_port) => {
            let one = One { spread, source_port };
            args.output.document(&one)?.unwrap_or_else(|| sentence(&one))
        }
    };
    output::print(&text)?;
    Ok(answer)
}

/// `svc:shop/api at 10.96.0.10:80/tcp`.
fn dialled(spread: &Spread) -> String {
    format!("{} at {}/{}", spread.to, spread.target, spread.protocol.to_string().to_lowercase())
}

fn served(spread: &Spread) -> String {
    spread.node.as_ref().map_or("; no node sees it".to_owned(), |node| format!(", on {node}"))
}

fn table(spread: &Spread) -> String {
    let head =
        format!("{} flows from {} to {}{}", spread.flows, spread.from, dialled(spread), served(spread));
    let percent = |part: f64| format!("{:.1} %", 100.0 * part);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows = spread.backends.iter().map(|one| {
        [
            one.address.to_string(),
            or_dash(&one.pod),
            or_dash(&one.node),
            or_dash(&one.zone),
            one.flows.to_string(),
            percent(one.share),
            percent(one.expected_share),
            left_out(one),
        ]
    });
    let titles = ["BACKEND", "POD", "NODE", "ZONE", "FLOWS", "SHARE", "EXPECTED", "LEFT OUT"];
    let rows = if spread.backends.is_empty() { String::new() } else { columns(titles, rows) };
    let because = spread.choice.as_ref().filter(|choice| choice.endpoints > 0);
    let because = because.map_or(String::new(), |choice| format!("{choice}\n"));
    format!("{head}\n{}{because}{rows}", nobody(spread))
}

fn left_out(share: &Share) -> String {
    if share.standing == Standing::Candidate { String::new() } else { share.standing.to_string() }
}

/// What was given to nobody, a line each.
fn nobody(spread: &Spread) -> String {
    let refused = spread.refused.iter().map(|(slug, count)| {
        let sentence = dataplane::Reason::from_slug(slug).map_or("", dataplane::Reason::sentence);
        format!("{count} dropped: {slug}: {sentence}\n")
    });
    let untouched = spread.untouched;
    let untouched = (untouched > 0).then(|| format!("{untouched} stay as they are: no Service is there\n"));
    refused.chain(untouched).collect()
}

fn sentence(one: &One) -> String {
    let One { spread, source_port } = one;
    let head = format!("{}:{source_port} to {}{}", spread.from, dialled(spread), served(spread));
    let goes = spread.backends.iter().find(|share| share.flows > 0).map(|share| {
        let place = [&share.pod, &share.node].into_iter().flatten().cloned().collect::<Vec<_>>().join(" on ");
        let place = if place.is_empty() { place } else { format!(", {place}") };
        format!("goes to    {}{place}\n", share.address)
    });
    let because = spread.choice.as_ref().map(|choice| format!("because    {choice}\n"));
    let others = spread.backends.iter().filter(|share| share.standing != Standing::Candidate);
    let others = others.map(|share| format!("left out   {}, {}\n", share.address, share.standing));
    let lines = [Some(nobody(spread)), goes, because, Some(others.collect())];
    format!("{head}\n{}", lines.into_iter().flatten().collect::<String>())
}
