//! What a node says on a Service's health check node port: whether it has endpoints of the Service.
//!
//! Source: Kubernetes, `pkg/proxy/healthcheck/service_health.go`: status, headers and body are kube-proxy's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Cluster, Node, Service};

/// What somebody answers by HTTP who has nothing to say.
pub const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// The ready endpoints of a Service on a node: addresses, whatever their ports.
pub fn local_endpoints(service: &Service, node: &Node) -> usize {
    let family = node.address().is_ipv4();
    let ready = service.ports.iter().flat_map(|port| port.ready());
    let here = ready.filter(|backend| backend.node.as_ref() == Some(&node.name));
    let addresses: BTreeSet<IpAddr> = here.map(|backend| backend.address).collect();
    let alike = addresses.iter().filter(|address| address.is_ipv4() == family).count();
    if alike > 0 { alike } else { addresses.len() }
}

/// The whole answer to a request for `/healthz`.
pub fn page(service: &Service, node: &Node) -> String {
    let endpoints = local_endpoints(service, node);
    let status = if endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {:?},\n\t\t\"name\": {:?}\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": true\n}}",
        service.namespace, service.name
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {endpoints}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The health check node ports of a node, each with what it answers.
pub fn pages<'a>(cluster: &'a Cluster, node: &'a Node) -> impl Iterator<Item = (u16, String)> + 'a {
    cluster
        .services
        .iter()
        .filter_map(move |service| Some((service.health_check_node_port?, page(service, node))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backend, ServicePort};

    fn service(nodes: &[&str]) -> Service {
        let backends = (1..).zip(nodes).map(|(last, node)| Backend {
            node: Some((*node).to_owned()),
            ..Backend::new(IpAddr::from([10, 244, 0, last]), 8080)
        });
        Service {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            health_check_node_port: Some(32_000),
            ports: vec![ServicePort { backends: backends.collect(), ..ServicePort::default() }],
            ..Service::default()
        }
    }

    fn node(name: &str) -> Node {
        let addresses = vec![IpAddr::from([10, 240, 0, 4])];
        Node { name: name.to_owned(), labels: Default::default(), addresses, pod_cidrs: Vec::new() }
    }

    #[test]
    fn a_node_with_endpoints_says_how_many_and_one_without_says_503() {
        let service = service(&["n1", "n1", "n2"]);
        let has = page(&service, &node("n1"));
        assert!(has.starts_with("HTTP/1.1 200 OK\r\n"), "{has}");
        assert!(has.contains("X-Load-Balancing-Endpoint-Weight: 2\r\n"), "{has}");
        let (_, body) = has.split_once("\r\n\r\n").expect("a head and a body");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["localEndpoints"], 2);
        assert_eq!(body["service"]["namespace"], "shop");
        assert_eq!(body["serviceProxyHealthy"], true);
        let none = page(&service, &node("n3"));
        assert!(none.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{none}");
        assert!(none.contains("\"localEndpoints\": 0"), "{none}");
    }
}
