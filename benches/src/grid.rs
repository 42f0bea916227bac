//! What it takes to say who may reach whom in a large cluster: planned, judged, and every cell looked at.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use serde_json::json;
use userspace::engine::emulator::Matrix;
use userspace::engine::emulator::matrix::Verdict;
use userspace::error::Error;
use userspace::model::{Cluster, ContainerPort, Node, Pod, Port, Protocol};

use crate::services::Figure;

/// Pods, their workloads, namespaces and nodes; each workload has two policies.
const PODS: usize = 10_000;
const WORKLOADS: usize = 500;
const NAMESPACES: usize = 100;
const NODES: usize = 100;
/// Times that all of it is done.
const TIMES: usize = 3;

/// Ports that are asked about.
const PORTS: [Port; 3] = [
    Port { number: 80, protocol: Protocol::Tcp },
    Port { number: 443, protocol: Protocol::Tcp },
    Port { number: 53, protocol: Protocol::Udp },
];

/// Times the grid of all pairs of 10,000 pods under 1,000 policies.
///
/// # Errors
/// The cluster cannot be planned.
pub fn measure(mut said: impl FnMut(&str)) -> Result<Vec<Figure>, Error> {
    let cluster = cluster();
    let (mut judged, mut looked, mut both, mut allowed) = (vec![], vec![], vec![], vec![]);
    for _ in 0..TIMES {
        said("judging each pod of 10,000 with each");
        let start = Instant::now();
        let matrix = Matrix::of(&cluster, &PORTS)?;
        judged.push(start.elapsed().as_secs_f64());
        let looking = Instant::now();
        let mut count = 0_u64;
        for from in 0..PODS {
            for to in 0..PODS {
                for port in 0..PORTS.len() {
                    count += u64::from(matrix.verdict(from, to, port) == Verdict::Allow);
                }
            }
        }
        looked.push(looking.elapsed().as_secs_f64());
        both.push(start.elapsed().as_secs_f64());
        allowed.push(count as f64 / (PODS * PODS * PORTS.len()) as f64 * 100.0);
    }
    let figures = [
        Figure::of("grid of 10,000 pods, 1,000 policies, 3 ports: judged", "s", &mut judged),
        Figure::of("its 300 million cells looked at", "s", &mut looked),
        Figure::of("both", "s", &mut both).map(|figure| figure.target("under 10")),
        Figure::of("cells allowed", "%", &mut allowed),
    ];
    Ok(figures.into_iter().flatten().collect())
}

fn cluster() -> Cluster {
    let range = |text: String| text.parse().expect("it is a range");
    let labels = |key: &str, value: String| BTreeMap::from([(key.to_owned(), value)]);
    let namespaces =
        (0..NAMESPACES).map(|it| (format!("ns{it}"), labels("team", format!("team{}", it % 10))));
    let nodes = (0..NODES).map(|it| Node {
        name: format!("n{it}"),
        labels: BTreeMap::new(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 240, 0, 4 + it as u8))],
        pod_cidrs: vec![range(format!("10.244.{it}.0/24"))],
    });
    let pods = (0..PODS).map(|it| {
        let (workload, node) = (it % WORKLOADS, it / WORKLOADS * 5 + it % 5);
        Pod {
            namespace: format!("ns{}", workload % NAMESPACES),
            name: format!("app{workload}-{}", it / WORKLOADS),
            labels: labels("app", format!("app{workload}")),
            node: format!("n{node}"),
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 244, node as u8, 2 + (it % WORKLOADS / 5) as u8))],
            ports: vec![ContainerPort { name: Some("http".to_owned()), port: 80, protocol: Protocol::Tcp }],
            ready: true,
            ..Pod::default()
        }
    });
    let policy = |name: String, workload: usize, spec: serde_json::Value| {
        let mut spec = spec;
        spec["podSelector"] = json!({"matchLabels": {"app": format!("app{workload}")}});
        let namespace = format!("ns{}", workload % NAMESPACES);
        let policy = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
        serde_json::from_value(policy).expect("it is a NetworkPolicy")
    };
    let policies = (0..WORKLOADS).flat_map(|it| {
        let near = (1..4).map(|next| format!("app{}", (it + next * NAMESPACES) % WORKLOADS)).collect::<Vec<_>>();
        let ingress = json!({"policyTypes": ["Ingress"], "ingress": [
            {"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": near}]}}],
             "ports": [{"port": "http"}, {"port": 443}]},
            {"from": [{"namespaceSelector": {"matchLabels": {"team": format!("team{}", it % 10)}}}]},
            {"from": [{"ipBlock": {"cidr": "10.244.0.0/17", "except": [format!("10.244.{}.0/24", it % 100)]}}],
             "ports": [{"port": 8000, "endPort": 8999}]}]});
        let egress = json!({"policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}, {"port": 80}]},
            {"to": [{"namespaceSelector": {"matchLabels": {"team": format!("team{}", it % 10)}}}]}]});
        [policy(format!("in{it}"), it, ingress), policy(format!("out{it}"), it, egress)]
    });
    Cluster {
        name: "grid".to_owned(),
        namespaces: namespaces.collect(),
        nodes: nodes.collect(),
        pods: pods.collect(),
        policies: policies.collect(),
        ..Cluster::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_pod_of_the_large_cluster_has_an_address_of_its_node_and_of_its_own() {
        let cluster = cluster();
        let addresses: BTreeSet<IpAddr> = cluster.pods.iter().map(Pod::address).collect();
        assert_eq!((addresses.len(), cluster.policies.len()), (PODS, 1000));
        for pod in &cluster.pods {
            let node = cluster.node(&pod.node).expect("it is there");
            assert!(node.pod_cidrs[0].contains(&pod.address()), "{}", pod.id());
        }
    }
}
