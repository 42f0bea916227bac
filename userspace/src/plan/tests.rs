//! A small cluster to plan, and the plainest possible reader of its rows.

mod changes;
mod differential;
mod places;
mod policies;
mod services;
mod tiers;

use std::net::IpAddr;

use dataplane::tables::{Backend, Endpoint, Identity, IfIndex, PolicyKey, PolicyRow, Route};
use dataplane::wire::{Address, V4, V6};
use serde_json::{Value, json};

use super::{Links, NodePlan, PolicyPrefix, Prefix, Rows, RuleName, plan};
use crate::model::{
    self, Cluster, ContainerPort, External, Node, Pod, Protocol, Service, ServicePort, Settings,
};

const INGRESS: u8 = Endpoint::INGRESS;
const EGRESS: u8 = Endpoint::EGRESS;
const TCP: u8 = 6;
/// Rows that policy tables hold.
const ROOM: (u32, u32) = (65_536, 65_536);
const UDP: u8 = 17;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
fn v4(text: &str) -> V4 {
    let address: std::net::Ipv4Addr = text.parse().expect("an IPv4 address");
    V4(address.octets())
}
fn prefix(text: &str) -> Prefix<V4> {
    Prefix::of(text.parse().expect("a range")).expect("an IPv4 range")
}

/// Nodes n1, n2, ... at 10.240.0.4, .5, ... with ranges 10.244.0.0/24, 10.244.1.0/24, ...; namespaces a and b,
/// labelled `team: a` and `team: b`.
fn cluster(nodes: u8) -> Cluster {
    let settings = Settings {
        model: model::Model::Overlay,
        node_subnets: vec!["10.240.0.0/16".parse().expect("a range")],
        pod_cidrs: vec!["10.244.0.0/16".parse().expect("a range")],
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
        max_pods: 250,
        mtu: 1500,
        ..Settings::default()
    };
    let node = |index| Node {
        name: format!("n{}", index + 1),
        labels: model::Labels::new(),
        addresses: vec![ip(&format!("10.240.0.{}", index + 4))],
        pod_cidrs: vec![format!("10.244.{index}.0/24").parse().expect("a range")],
    };
    let namespace = |name: &str| {
        let labels = [("kubernetes.io/metadata.name", name), ("team", name)];
        (name.to_owned(), labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
    };
    Cluster {
        name: "lab".to_owned(),
        settings,
        namespaces: ["a", "b"].map(namespace).into(),
        nodes: (0..nodes).map(node).collect(),
        pods: Vec::new(),
        services: Vec::new(),
        policies: Vec::new(),
        cluster_policies: Vec::new(),
        audited: Default::default(),
        externals: Vec::new(),
        notes: Vec::new(),
    }
}

/// `id` is `namespace/name`, `labels` are `key=value`.
fn pod(cluster: &mut Cluster, id: &str, (node, address): (&str, &str), labels: &[&str]) {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    let label = |text: &&str| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    cluster.pods.push(Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels: labels.iter().filter_map(label).collect(),
        node: node.to_owned(),
        addresses: vec![ip(address)],
        host_network: false,
        ports: Vec::new(),
        ready: true,
        ..Pod::default()
    });
}
fn port(name: &str, port: u16) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), port, protocol: Protocol::Tcp }
}
fn policy(cluster: &mut Cluster, id: &str, spec: Value) {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
    cluster.policies.push(serde_json::from_value(object).expect("a NetworkPolicy"));
}
fn external(cluster: &mut Cluster, name: &str, address: &str) {
    cluster.externals.push(External { name: name.to_owned(), address: ip(address), ports: Vec::new() });
}
/// `backends` are `address:port`.
fn service(cluster: &mut Cluster, address: &str, number: u16, backends: &[&str]) {
    let backend = |text: &&str| {
        let end: std::net::SocketAddr = text.parse().expect("an address and a port");
        model::Backend::new(end.ip(), end.port())
    };
    let port = ServicePort {
        name: None,
        port: number,
        protocol: Protocol::Tcp,
        node_port: None,
        backends: backends.iter().map(backend).collect(),
    };
    cluster.services.push(Service {
        namespace: "a".to_owned(),
        name: format!("s{}", cluster.services.len()),
        addresses: vec![ip(address)],
        ports: vec![port],
        ..Service::default()
    });
}

/// Interface 1 leads to the underlay, 101, 102, ... to the pods in the cluster's order.
fn links(cluster: &Cluster) -> Links {
    let pods = cluster.pods.iter().zip(101..).map(|(pod, index)| (pod.id(), IfIndex(index)));
    Links { uplink: IfIndex(1), pods: pods.collect(), homes: None }
}
fn planned(cluster: &Cluster, node: &str) -> NodePlan {
    plan(cluster, node, &links(cluster)).expect("it can be planned")
}

/// The row of the longest prefix that holds the address.
fn longest<R: Copy>(rows: &std::collections::BTreeMap<Prefix<V4>, R>, address: V4) -> Option<R> {
    let holding = rows.iter().filter(|(prefix, _)| prefix.contains(address));
    holding.max_by_key(|(prefix, _)| prefix.bits).map(|(_, row)| *row)
}
fn route(rows: &Rows<V4>, address: &str) -> Route {
    longest(&rows.routes, v4(address)).expect("every address has a route")
}
fn identity(rows: &Rows<V4>, address: V4) -> Identity {
    longest(&rows.identities, address).expect("every address has an identity")
}
/// What the path answers when it judges a flow for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    NotIsolated,
    /// By this rule; by none that denies it if 0.
    Allowed(u32),
    /// By this rule; by isolation if 0.
    Denied(u32),
    /// It has no room for the rules.
    Closed,
}

impl Judged {
    fn passes(self) -> bool {
        matches!(self, Self::NotIsolated | Self::Allowed(_))
    }
}

fn judged(rows: &Rows<V4>, pod: V4, direction: u8, other: V4, target: (u8, u16)) -> Judged {
    judged_as(rows, pod, direction, identity(rows, other), target)
}
/// The same about a peer of this identity.
fn judged_as(rows: &Rows<V4>, pod: V4, direction: u8, peer: Identity, (protocol, port): (u8, u16)) -> Judged {
    let endpoint = rows.endpoints[&pod];
    if endpoint.isolated & direction == 0 {
        return Judged::NotIsolated;
    }
    if endpoint.flags & Endpoint::INCOMPLETE != 0 {
        return Judged::Closed;
    }
    let found = |identity: Identity| {
        let (rules, identity) = (endpoint.rules.0, identity.0);
        let wanted = u32::from(protocol) << 16 | u32::from(port);
        // One look-up for each length that a prefix may have.
        (PolicyKey::FIXED_BITS..=PolicyKey::BITS).rev().find_map(|bits| {
            let kept = wanted & u32::MAX.checked_shl(PolicyKey::BITS - bits).unwrap_or(0) & 0xff_ffff;
            let (protocol, port) = ((kept >> 16) as u8, kept as u16);
            rows.policy.get(&PolicyPrefix { rules, identity, direction, protocol, port, bits }).copied()
        })
    };
    match found(peer).or_else(|| found(Identity::ANY)) {
        Some(row) if row.action == PolicyRow::ALLOW => Judged::Allowed(row.rule.0),
        Some(row) => Judged::Denied(row.rule.0),
        None => Judged::Denied(0),
    }
}
/// The name of the rule that allows a flow, the empty one where nothing judges or denies it; `None` where it is
/// denied.
fn allowed_by<'a>(
    plan: &'a NodePlan,
    pod: &str,
    direction: u8,
    other: &str,
    target: (u8, u16),
) -> Option<&'a RuleName> {
    match judged(&plan.rows.v4, v4(pod), direction, v4(other), target) {
        Judged::NotIsolated => Some(&plan.rules.v4[0]),
        Judged::Allowed(rule) => Some(&plan.rules.v4[rule as usize]),
        Judged::Denied(_) | Judged::Closed => None,
    }
}
/// Who answers at each slot of a frontend.
fn answering(rows: &Rows<V4>, address: &str, port: u16) -> Vec<String> {
    let key = super::FrontendKey { address: v4(address), port, protocol: TCP };
    let slots = rows.frontends[&key].internal;
    let backends = (slots.first..slots.first + slots.count).map(|slot| rows.maglev[slot as usize]);
    backends.map(|id| name(&rows.backends[id.0 as usize])).collect()
}
fn name(backend: &Backend<V4>) -> String {
    format!("{}:{}", backend.address, backend.port)
}
