//! Services as kubectl shows them, and every endpoint of theirs.

use std::net::SocketAddr;

use serde::Serialize;
use testbed::oracle::Standing;
use testbed::output::{Format, columns};
use userspace::model::{Backend, Protocol, Service, ServicePort, TrafficDistribution, TrafficPolicy};

use super::listed;

/// Endpoints that fit on a line.
const SHOWN: usize = 3;

/// Columns and their order are kubectl's; wide adds what decides who answers.
pub(super) fn services(services: &[Service], format: Format) -> String {
    let row = |service: &Service| {
        let outside = service.load_balancer_addresses.iter().chain(&service.external_addresses);
        [
            service.namespace.clone(),
            service.name.clone(),
            format!("{:?}", service.kind),
            listed(service.addresses.iter().map(ToString::to_string)),
            listed(outside.map(ToString::to_string)),
            listed(service.ports.iter().map(dialled)),
        ]
    };
    let head = ["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)"];
    if format != Format::Wide {
        return columns(head, services.iter().map(row));
    }
    let [namespace, name, kind, address, outside, ports] = head;
    let rows = services.iter().map(|service| {
        let [namespace, name, kind, address, outside, ports] = row(service);
        let all = service.ports.iter().map(|port| port.backends.len()).sum::<usize>();
        let ready = service.ports.iter().map(|port| port.ready().count()).sum::<usize>();
        [
            namespace,
            name,
            kind,
            address,
            outside,
            ports,
            format!("{ready}/{all}"),
            format!("{:?}", service.external_policy),
            internal(service),
            service.affinity_s.map_or("-".to_owned(), |seconds| format!("{seconds}s")),
            service.health_check_node_port.map_or("-".to_owned(), |port| port.to_string()),
            listed(service.source_ranges.iter().map(ToString::to_string)),
        ]
    });
    let more = ["READY", "EXTERNAL", "INTERNAL", "AFFINITY", "HEALTH-CHECK", "SOURCE-RANGES"];
    let [ready, external, internal, affinity, health, ranges] = more;
    columns(
        [namespace, name, kind, address, outside, ports, ready, external, internal, affinity, health, ranges],
        rows,
    )
}

/// `80/TCP`, and with a node port `80:30080/TCP`.
fn dialled(port: &ServicePort) -> String {
    let node_port = port.node_port.map_or(String::new(), |number| format!(":{number}"));
    format!("{}{node_port}/{}", port.port, port.protocol)
}

/// The policy for clients inside, and which endpoints are preferred.
fn internal(service: &Service) -> String {
    let distribution = match service.distribution {
        None => "",
        Some(TrafficDistribution::SameZone) => ",PreferSameZone",
        Some(TrafficDistribution::SameNode) => ",PreferSameNode",
    };
    format!("{:?}{distribution}", service.internal_policy)
}

/// An endpoint, and whether it is used.
#[derive(Serialize)]
struct Row<'a> {
    namespace: &'a str,
    service: &'a str,
    /// The name of the Service's port.
    port_name: Option<&'a str>,
    service_port: u16,
    protocol: Protocol,
    #[serde(flatten)]
    backend: &'a Backend,
    used: String,
}

/// One line for each Service, and wide for each endpoint.
pub(super) fn endpoints(services: &[Service], format: Format) -> anyhow::Result<String> {
    let rows: Vec<Row<'_>> = services.iter().flat_map(of_service).collect();
    if let Some(document) = format.document(&rows)? {
        return Ok(document);
    }
    if format == Format::Wide {
        let rows = rows.iter().map(|row| {
            let backend = row.backend;
            [
                row.namespace.to_owned(),
                row.service.to_owned(),
                format!("{}/{}", row.service_port, row.protocol),
                SocketAddr::new(backend.address, backend.port).to_string(),
                backend.node.clone().unwrap_or_else(|| "-".to_owned()),
                backend.zone.clone().unwrap_or_else(|| "-".to_owned()),
                conditions(backend),
                backend.weight.to_string(),
                row.used.clone(),
            ]
        });
        let head =
            ["NAMESPACE", "SERVICE", "PORT", "ENDPOINT", "NODE", "ZONE", "CONDITIONS", "WEIGHT", "USED"];
        return Ok(columns(head, rows));
    }
    let ready = |service: &Service| {
        let ready = service.ports.iter().flat_map(ServicePort::ready);
        let ends: Vec<String> =
            ready.map(|backend| SocketAddr::new(backend.address, backend.port).to_string()).collect();
        match ends.len().checked_sub(SHOWN) {
            None | Some(0) => listed(ends.into_iter()),
            Some(more) => format!("{} + {more} more...", ends[..SHOWN].join(",")),
        }
    };
    let rows =
        services.iter().map(|service| [service.namespace.clone(), service.name.clone(), ready(service)]);
    Ok(columns(["NAMESPACE", "NAME", "ENDPOINTS"], rows))
}

fn of_service(service: &Service) -> impl Iterator<Item = Row<'_>> {
    service.ports.iter().flat_map(move |port| {
        port.backends.iter().map(move |backend| Row {
            namespace: &service.namespace,
            service: &service.name,
            port_name: port.name.as_deref(),
            service_port: port.port,
            protocol: port.protocol,
            backend,
            used: used(service, port, backend),
        })
    })
}

fn conditions(backend: &Backend) -> String {
    let all = [("ready", backend.ready), ("serving", backend.serving), ("terminating", backend.terminating)];
    listed(all.into_iter().filter(|(_, is)| *is).map(|(name, _)| name.to_owned()))
}

/// Whether it may answer, and whom; or why not.
fn used(service: &Service, port: &ServicePort, backend: &Backend) -> String {
    let same_family = |other: &&Backend| other.address.is_ipv4() == backend.address.is_ipv4();
    let nobody_is_ready = !port.ready().any(|other| same_family(&other));
    let serves_while_it_goes = nobody_is_ready && backend.serving && backend.terminating;
    if !backend.ready && !serves_while_it_goes {
        let why = if backend.terminating { Standing::Terminating } else { Standing::NotReady };
        return format!("no: {why}");
    }
    let mut only = Vec::new();
    if serves_while_it_goes {
        only.push("none is ready".to_owned());
    }
    let hinted = |hints: fn(&Backend) -> &Vec<String>| {
        port.ready().filter(same_family).all(|other| !hints(other).is_empty()) && backend.ready
    };
    if service.internal_policy == TrafficPolicy::Local {
        only.push("inside for clients of its node".to_owned());
    } else if hinted(|it| &it.for_nodes) {
        only.push(format!("for clients of nodes {}", backend.for_nodes.join(" ")));
    } else if hinted(|it| &it.for_zones) {
        only.push(format!("for clients of zones {}", backend.for_zones.join(" ")));
    }
    if service.external_policy == TrafficPolicy::Local {
        only.push("outside for clients that come in at its node".to_owned());
    }
    if only.is_empty() { "yes".to_owned() } else { format!("yes: {}", only.join(", ")) }
}
