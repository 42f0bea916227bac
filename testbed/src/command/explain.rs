//! The walk of one packet, and of its answers.

use std::net::IpAddr;

use testbed::output;
use userspace::engine::emulator::{Dial, Network};
use userspace::model::{Cluster, Endpoint, Found, Port};
use userspace::observe::walk;

use super::{Answer, Source};

/// Show the walk of one packet and of what answers it, stage by stage
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
}

/// Decides what would otherwise be chance, so that a walk can be repeated.
const SEED: u32 = 1;

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let subject = args.source.subject()?;
    output::print(&walk_of(subject.cluster(), &args.from, &args.to)?)?;
    Ok(Answer::Yes)
}

/// The walk, in words.
///
/// # Errors
/// A name is wrong or not in the cluster, or the cluster cannot be emulated.
pub(crate) fn walk_of(cluster: &Cluster, from: &str, to: &str) -> anyhow::Result<String> {
    let (from, to): (Endpoint, Endpoint) = (from.parse()?, to.parse()?);
    if let Found::Service(service) = cluster.find(&from.who)? {
        anyhow::bail!("cannot send from svc:{}: a Service is only an address to dial", service.id());
    }
    let target = cluster.find(&to.who)?;
    let port = to.port.map_or_else(|| only_port(&target), Ok)?;
    let IpAddr::V4(address) = target.address() else {
        anyhow::bail!(
            "cannot explain {to}: its address is not IPv4, and the emulated path speaks nothing else"
        );
    };
    let mut network = Network::new(cluster, SEED)?;
    if matches!(target, Found::Pod(_) | Found::Node(_)) {
        let host = network.host(&to.who.to_string())?;
        network.listen(host, port.protocol, port.number);
    }
    let host = network.host(&from.who.to_string())?;
    let attempt = network.connect(host, address, Dial::Port(port.protocol, port.number))?;
    Ok(walk::print(&attempt.walk, network.names()))
}

/// The one port that it declares, if it is one.
fn only_port(target: &Found<'_>) -> anyhow::Result<Port> {
    let declared: Vec<Port> = match target {
        Found::Pod(pod) => {
            pod.ports.iter().map(|port| Port { number: port.port, protocol: port.protocol }).collect()
        }
        Found::External(external) => {
            external.ports.iter().map(|port| Port { number: port.port, protocol: port.protocol }).collect()
        }
        Found::Service(service) => {
            service.ports.iter().map(|port| Port { number: port.port, protocol: port.protocol }).collect()
        }
        Found::Node(_) => Vec::new(),
    };
    let who = target.who();
    match declared.as_slice() {
        [one] => Ok(*one),
        [] => anyhow::bail!("cannot explain {who}: it declares no port; say which, as {who}:8080/tcp"),
        several => {
            let several = several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            anyhow::bail!("cannot explain {who}: it declares {several}; say which, as {who}:8080/tcp")
        }
    }
}
