//! The walk of one packet, and of its answers.

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
    let cluster = subject.cluster();
    let (from, to): (Endpoint, Endpoint) = (args.from.parse()?, args.to.parse()?);
    if let Found::Service(service) = cluster.find(&from.who)? {
        anyhow::bail!("cannot send from svc:{}: a Service is only an address to dial", service.id());
    }
    let target = cluster.find(&to.who)?;
    let port = to.port.map_or_else(|| only_port(&target), Ok)?;
    let std::net::IpAddr::V4(address) = target.address() else {
        anyhow::bail!(
            "cannot explain {to}: its address is not IPv4, and the emulated path speaks nothing else"
        );
    };
    let walk = walked(cluster, &from, address, port)?;
    output::print(&walk)?;
    Ok(Answer::Yes)
}

fn walked(
    cluster: &Cluster,
    from: &Endpoint,
    target: std::net::Ipv4Addr,
    port: Port,
) -> anyhow::Result<String> {
    let mut network = Network::new(cluster, SEED)?;
    let host = network.host(&from.who.to_string())?;
    let attempt = network.connect(host, target, Dial::Port(port.protocol, port.number))?;
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
