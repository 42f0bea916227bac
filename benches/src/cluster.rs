//! The cluster that is measured on, filled as a point asks for.

use std::net::{IpAddr, Ipv4Addr};

use userspace::model::{self, Backend, Cluster, Service, ServicePort};

use crate::matrix::Sizes;

/// Two nodes, a client, two servers, a host outside; a Service; a policy to fill with, and one that lets the client in.
const CLUSTER: &str = include_str!("cluster.yaml");

/// The port that servers listen on.
pub(crate) const PORT: u16 = 8080;

/// Who dials, and the node it is on.
pub(crate) const CLIENT: &str = "default/client";
pub(crate) const NODE: &str = "n1";
/// Who answers: on the other node, and on the client's own.
pub(crate) const SERVER: &str = "default/server";
pub(crate) const NEIGHBOUR: &str = "default/neighbour";

/// Endpoints of each Service that is only there.
pub(crate) const ENDPOINTS: u32 = 3;

/// The first address of those that filling policies allow, that filling Services have, and that their endpoints have.
const FILLERS: [u8; 4] = [172, 16, 0, 0];
const SERVICES: [u8; 4] = [10, 112, 0, 0];
const BACKENDS: [u8; 4] = [10, 128, 0, 0];

/// A cluster of that name and these sizes. What is dialled stands behind everything else, so that who looks through
/// lists has to look through all of them; the policies that only fill allow one address each, and select the servers.
///
/// # Errors
/// [`model::Error`]: the built-in cluster cannot be read.
pub(crate) fn of(name: &str, sizes: Sizes) -> Result<Cluster, model::Error> {
    let mut cluster = model::load_text("the built-in cluster", CLUSTER)?;
    cluster.name = name.to_owned();
    let dialled = std::mem::take(&mut cluster.services);
    let room = sizes.services.saturating_sub(dialled.len());
    cluster.services = (0..room as u32).map(|index| service(index, ENDPOINTS)).collect();
    cluster.services.extend(dialled.into_iter().take(sizes.services));
    let policies = std::mem::take(&mut cluster.policies);
    if let [filler, last] = policies.as_slice() {
        let fillers = (0..sizes.policies.saturating_sub(1) as u32).map(|index| {
            let mut filler = filler.clone();
            filler.metadata.name = Some(format!("filler-{index:05}"));
            let blocks = filler.spec.iter_mut().flat_map(|spec| spec.ingress.iter_mut().flatten());
            let peers = blocks.flat_map(|rule| rule.from.iter_mut().flatten());
            for block in peers.filter_map(|peer| peer.ip_block.as_mut()) {
                // Apart by two: who joins neighbouring ranges into one has nothing to join.
                block.cidr = format!("{}/32", address(FILLERS, 2 * index));
            }
            filler
        });
        cluster.policies = fillers.chain([last.clone()]).take(sizes.policies).collect();
    }
    Ok(cluster)
}

/// Service number `index`, with so many endpoints, that no other has.
pub(crate) fn service(index: u32, endpoints: u32) -> Service {
    let end = |place| Backend::new(address(BACKENDS, index * 16 + place), PORT);
    Service {
        namespace: "bench".to_owned(),
        name: format!("s{index:05}"),
        addresses: vec![address(SERVICES, index)],
        ports: vec![ServicePort {
            port: 80,
            backends: (0..endpoints).map(end).collect(),
            ..ServicePort::default()
        }],
        ..Service::default()
    }
}

fn address(first: [u8; 4], index: u32) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes(first) + index).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn cluster(services: usize, policies: usize) -> Cluster {
        of("bench-test", Sizes { services, policies, flows: 1 }).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn there_are_as_many_as_were_asked_for_and_none_twice() {
        for (services, policies) in [(0, 0), (1, 1), (10_000, 1000)] {
            let cluster = cluster(services, policies);
            let addresses: BTreeSet<_> = cluster.services.iter().map(Service::address).collect();
            let names: BTreeSet<_> = cluster.policies.iter().map(|it| &it.metadata.name).collect();
            assert_eq!((addresses.len(), names.len()), (services, policies));
            assert_eq!((cluster.services.len(), cluster.policies.len()), (services, policies));
            let texts: BTreeSet<_> = cluster.policies.iter().map(|it| format!("{:?}", it.spec)).collect();
            assert_eq!(texts.len(), policies, "no two allow the same");
        }
    }

    #[test]
    fn what_is_dialled_stands_last() {
        let cluster = cluster(100, 10);
        let service = cluster.services.last().expect("there are 100");
        assert_eq!(service.id(), "default/server");
        let backends: Vec<_> = service.ports.iter().flat_map(|port| &port.backends).collect();
        let server = cluster.pod("default/server").expect("the server").address();
        assert!(backends.len() == 2 && backends.iter().all(|it| it.address == server), "{backends:?}");
        let last = cluster.policies.last().and_then(|policy| policy.metadata.name.as_deref());
        assert_eq!(last, Some("server-takes-client"));
    }

    #[test]
    fn the_servers_are_on_another_node_and_on_the_clients_own() {
        let cluster = cluster(1, 1);
        let names: Vec<_> = cluster.pods.iter().map(|pod| (pod.name.as_str(), pod.node.as_str())).collect();
        assert_eq!(names, [("client", "n1"), ("server", "n2"), ("neighbour", "n1")]);
    }
}
