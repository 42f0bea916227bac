//! The rules, one sentence each, and the stage on which they are tried: namespaces `shop` and `bank`; node `n1` with `shop/web`, `shop/api` and the host-network
//! pod `shop/agent`; node `n2` with `bank/till`; `ext:world` outside, which answers everywhere.

use super::*;
use userspace::model::{Backend, Endpoint, External, Labels, Service, ServicePort};

mod network_policies;
mod tiers;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn container_port(name: &str, port: u16, protocol: Protocol) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), port, protocol }
}

fn pod(id: &str, node: &str, address: &str, pairs: &[(&str, &str)]) -> Pod {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels: labels(pairs),
        node: node.to_owned(),
        addresses: vec![address.parse().expect("an address")],
        host_network: false,
        ports: vec![container_port("http", 80, Protocol::Tcp), container_port("dns", 53, Protocol::Udp)],
        ready: true,
        ..Pod::default()
    }
}

fn node(name: &str, address: &str) -> Node {
    Node {
        name: name.to_owned(),
        labels: Labels::new(),
        addresses: vec![address.parse().expect("an address")],
        pod_cidrs: Vec::new(),
    }
}

/// The stage, under these policies: YAML documents, each the `metadata` and `spec` of one.
pub(super) fn cluster(policies: &[&str]) -> Cluster {
    let agent = Pod { host_network: true, ..pod("shop/agent", "n1", "10.240.0.4", &[("app", "agent")]) };
    let namespaces = [("shop", "retail"), ("bank", "money")].map(|(name, team)| {
        (name.to_owned(), labels(&[("kubernetes.io/metadata.name", name), ("team", team)]))
    });
    let world = External {
        name: "world".to_owned(),
        address: "203.0.113.7".parse().expect("an address"),
        ports: Vec::new(),
    };
    Cluster {
        namespaces: namespaces.into(),
        nodes: vec![node("n1", "10.240.0.4"), node("n2", "10.240.0.5")],
        pods: vec![
            pod("shop/web", "n1", "10.244.1.2", &[("app", "web"), ("tier", "front")]),
            pod("shop/api", "n1", "10.244.1.3", &[("app", "api")]),
            agent,
            pod("bank/till", "n2", "10.244.2.2", &[("app", "web")]),
        ],
        externals: vec![world],
        policies: policies.iter().map(|text| serde_saphyr::from_str(text).expect("a policy")).collect(),
        ..Cluster::default()
    }
}

/// A policy in `shop` with this `spec`, as YAML in braces.
pub(super) fn policy(spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
    )
}

fn who(text: &str) -> Who {
    text.parse::<Endpoint>().expect("an endpoint").who
}

pub(super) fn word(cluster: &Cluster, from: &str, to: &str, port: u16, protocol: Protocol) -> &'static str {
    match Oracle::of(cluster).expect(&who(from), &who(to), port, protocol) {
        Expectation::Allow => "allow",
        Expectation::Audited(_) => "audited",
        Expectation::Deny(_) => "deny",
        Expectation::Reject(_) => "reject",
        Expectation::Undefined(_) => "open",
    }
}

/// Service `shop/api`: 8080/tcp goes to port 80 of these addresses.
pub(super) fn with_service(policies: &[&str], backends: &[&str]) -> Cluster {
    let backends =
        backends.iter().map(|address| Backend::new(address.parse().expect("an address"), 80)).collect();
    let port = ServicePort { port: 8080, protocol: Protocol::Tcp, backends, ..ServicePort::default() };
    let (namespace, name) = ("shop".to_owned(), "api".to_owned());
    let service = Service {
        namespace,
        name,
        addresses: vec!["10.96.0.10".parse().expect("an address")],
        ports: vec![port],
        ..Service::default()
    };
    Cluster { services: vec![service], ..cluster(policies) }
}
