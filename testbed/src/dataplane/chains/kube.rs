//! Services as nat chains, the way kube-proxy writes them.
//!
//! ```text
//! PREROUTING, OUTPUT -> KUBE-SERVICES -> KUBE-SVC-… -> one of KUBE-SEP-… -> DNAT
//! POSTROUTING -> KUBE-POSTROUTING (marked by KUBE-MARK-MASQ), MASQ-OUTSIDE
//! ```
//! A Service is one rule in `KUBE-SERVICES`, so the last of a thousand is found after the others. Among n
//! endpoints the first is taken with a chance of 1/n, the next with 1/(n-1), and so on. A Service without
//! endpoints has no nat rule, but one in the filter table that rejects.
//!
//! Source: Kubernetes, `pkg/proxy/iptables/proxier.go` and KEP-3178 for the names and marks;
//! ip-masq-agent for the way outside.

use std::ops::RangeInclusive;

use ipnet::Ipv4Net;
use userspace::model::{Cluster, Service, ServicePort};

use super::plan::{Error, v4, v4_net};
use super::rules::{ChainId, Link, Match, Rule, Table, Target};
use crate::netns::fnv1a;

/// What `KUBE-MARK-MASQ` marks packets with that must come back this way.
const MASQUERADE: u32 = 0x4000;

/// Source ports for masqueraded connections: those that the node's own sockets leave free.
const PORTS: RangeInclusive<u16> = 32_768..=65_535;

/// The nat table of any node of the cluster.
///
/// # Errors
/// [`Error::Family`].
pub(super) fn nat(cluster: &Cluster) -> Result<Table, Error> {
    let mut nat = Table::new("nat");
    let services = nat.chain("KUBE-SERVICES");
    for hook in ["PREROUTING", "OUTPUT"] {
        let hook = nat.chain(hook);
        nat.append(hook, Rule::new([], Target::Jump(services)).comment("kubernetes service portals"));
    }
    let mark = nat.chain("KUBE-MARK-MASQ");
    nat.append(mark, Rule::new([], Target::Mark { value: MASQUERADE, mask: MASQUERADE }));
    for (service, port) in ports(cluster) {
        if port.ready().next().is_some() {
            let pods = v4_net(cluster.settings.pod_cidrs[0], "the pods")?;
            let chain = service_chain(&mut nat, service, port, mark, pods)?;
            let rule = Rule::new(dialled(service, port)?, Target::Jump(chain));
            nat.append(services, rule.comment(port_name(service, port)));
        }
    }
    postrouting(&mut nat, cluster)?;
    Ok(nat)
}

/// The filter table's `KUBE-SERVICES`: what has no endpoint is refused.
///
/// # Errors
/// [`Error::Family`].
pub(super) fn reject_without_endpoints(filter: &mut Table, cluster: &Cluster) -> Result<ChainId, Error> {
    let chain = filter.chain("KUBE-SERVICES");
    for (service, port) in ports(cluster) {
        if port.ready().next().is_none() {
            let rule = Rule::new(dialled(service, port)?, Target::Reject);
            filter.append(chain, rule.comment(format!("{} has no endpoints", port_name(service, port))));
        }
    }
    Ok(chain)
}

fn ports(cluster: &Cluster) -> impl Iterator<Item = (&Service, &ServicePort)> {
    cluster.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)))
}

fn port_name(service: &Service, port: &ServicePort) -> String {
    let name = port.name.clone().unwrap_or_else(|| format!("{}/{}", port.port, port.protocol));
    format!("{}:{name}", service.id())
}

fn dialled(service: &Service, port: &ServicePort) -> Result<Vec<Match>, Error> {
    let address = v4(service.address(), || format!("service {}", service.id()))?;
    let protocol = port.protocol.number();
    Ok(vec![Match::target(address), Match::Protocol(protocol), Match::TargetPort(port.port..=port.port)])
}

/// `KUBE-SVC-…`: to one of the endpoints' chains.
fn service_chain(
    nat: &mut Table,
    service: &Service,
    port: &ServicePort,
    mark: ChainId,
    pods: Ipv4Net,
) -> Result<ChainId, Error> {
    let name = port_name(service, port);
    let chain = nat.chain(&format!("KUBE-SVC-{}", hashed(&name)));
    // Whoever is no pod would get its answer straight from the endpoint, from an address it never dialled.
    let outside = [vec![Match::SourceNot(pods)], dialled(service, port)?].concat();
    nat.append(chain, Rule::new(outside, Target::Jump(mark)));
    let count = port.ready().count();
    for (number, backend) in port.ready().enumerate() {
        let address = v4(backend.address, || format!("an endpoint of {}", service.id()))?;
        let endpoint =
            nat.chain(&format!("KUBE-SEP-{}", hashed(&format!("{name} {address}:{}", backend.port))));
        // A pod that reaches itself through its Service must see another address than its own.
        nat.append(endpoint, Rule::new([Match::source(address)], Target::Jump(mark)));
        let protocol = Match::Protocol(port.protocol.number());
        nat.append(endpoint, Rule::new([protocol], Target::Dnat(address, backend.port)));
        let left = count - number;
        let chance = (left > 1).then(|| Match::Random(1.0 / left as f64));
        let rule = Rule::new(chance.into_iter().collect::<Vec<_>>(), Target::Jump(endpoint));
        nat.append(chain, rule.comment(format!("{name} -> {address}:{}", backend.port)));
    }
    Ok(chain)
}

/// What leaves under the node's address: marked packets, and pods' packets to the outside.
fn postrouting(nat: &mut Table, cluster: &Cluster) -> Result<(), Error> {
    let (hook, marked) = (nat.chain("POSTROUTING"), nat.chain("KUBE-POSTROUTING"));
    nat.append(hook, Rule::new([], Target::Jump(marked)).comment("kubernetes postrouting rules"));
    let not_marked = Match::MarkNot { value: MASQUERADE, mask: MASQUERADE };
    nat.append(marked, Rule::new([not_marked], Target::Return));
    nat.append(marked, Rule::new([], Target::Mark { value: MASQUERADE, mask: 0 }));
    nat.append(marked, Rule::new([], Target::Masquerade(PORTS)));
    let outside = nat.chain("MASQ-OUTSIDE");
    nat.append(hook, Rule::new([Match::To(Link::Uplink)], Target::Jump(outside)));
    for range in &cluster.settings.non_masquerade_cidrs {
        let range = v4_net(*range, "a range not to masquerade")?;
        nat.append(outside, Rule::new([Match::Target(range)], Target::Return));
    }
    let pods = v4_net(cluster.settings.pod_cidrs[0], "the pods")?;
    nat.append(outside, Rule::new([Match::Source(pods)], Target::Masquerade(PORTS)));
    Ok(())
}

/// Thirteen letters and digits that follow from the name.
pub(super) fn hashed(name: &str) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = fnv1a(name.as_bytes());
    (0..13).map(|at| char::from(DIGITS[(hash >> (5 * at)) as usize % DIGITS.len()])).collect()
}
