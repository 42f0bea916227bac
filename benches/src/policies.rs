//! What policies cost before any packet is judged: to plan a node of a large cluster, and to plan it again when one
//! pod's labels change.
//!
//! Ten thousand pods in a hundred namespaces, on a hundred nodes; a thousand policies of the kinds that clusters
//! have. Every node has pods of every namespace. The memory is the most that the process ever had, the cluster's
//! description included.
//!
//! As root, also what an agent does of it from end to end: it reads what it is told, plans, and writes to the kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dataplane::tables::IfIndex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use userspace::agent;
use userspace::engine::Engine;
use userspace::engine::kernel::{Kernel, Options};
use userspace::model::{
    Action, Cluster, ClusterPolicy, ContainerPort, Kind, Labels, Node, Pod, PodPeer, Protocol, Tier,
    TierPeer, TierPort, TierRule,
};
use userspace::plan::{Links, Plan};

use crate::measure::check;
use crate::services::{Figure, ServicesError};

const NAMESPACES: u32 = 100;
/// Applications of a namespace, and replicas of each.
const APPS: u32 = 10;
const REPLICAS: u32 = 10;
const NODES: u32 = 100;
/// Times that everything is planned.
const TIMES: usize = 7;
/// Label changes, one after the other.
const CHANGES: u32 = 2000;

/// Measures all of it. Nothing of it is in the kernel.
///
/// # Errors
/// [`ServicesError`].
pub fn measure(stop: &AtomicBool, mut said: impl FnMut(&str)) -> Result<Vec<Figure>, ServicesError> {
    let cluster = cluster();
    let links = links(&cluster);
    let policies = cluster.policies.len() + cluster.cluster_policies.len();
    said(&format!("{} pods, {policies} policies", cluster.pods.len()));
    let what = format!("{} pods, {policies} policies", cluster.pods.len());
    let mut figures = Vec::new();
    let [mut times, mut rows] = [(); 2].map(|()| Vec::new());
    for _ in 0..TIMES {
        check(stop)?;
        let begin = Instant::now();
        let plan = Plan::of(&cluster).map_err(userspace::error::Error::from)?;
        let node = plan.node("n0", &links).map_err(userspace::error::Error::from)?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        rows.push(node.rows.v4.policy.len() as f64);
    }
    figures.extend(
        Figure::of(&format!("{what}: a node planned"), "ms", &mut times).map(|it| it.target("< 1000 ms")),
    );
    figures.extend(Figure::of(&format!("{what}: its policy rows"), "", &mut rows));
    figures.extend(peak_mib().and_then(|mib| {
        let figure = Figure::of(&format!("{what}: most memory"), "MiB", &mut [mib])?;
        Some(figure.target("< 500 MB"))
    }));
    said("changing the labels of one pod");
    figures.extend(changes(&cluster, &links, stop)?);
    Ok(figures)
}

/// The labels of one pod after the other change: of one on the node, then of one elsewhere.
fn changes(cluster: &Cluster, links: &Links, stop: &AtomicBool) -> Result<Vec<Figure>, ServicesError> {
    let mut plan = Plan::of(cluster).map_err(userspace::error::Error::from)?;
    let node = plan.node("n0", links).map_err(userspace::error::Error::from)?;
    let mut kernel = match nix::unistd::geteuid().is_root() {
        true => Some(Kernel::load(&node, Options::default())?),
        false => None,
    };
    let [mut relabelled, mut anew, mut told, mut all_told] = [(); 4].map(|()| Vec::new());
    for change in 0..CHANGES {
        check(stop)?;
        // A step that leads through all of them.
        let step = if change % 2 == 0 { change * NODES } else { change * 7919 };
        let pod = &cluster.pods[step as usize % cluster.pods.len()];
        let mut labels = pod.labels.clone();
        match change % 3 {
            0 => _ = labels.insert("app".to_owned(), format!("app{}", change % APPS)),
            1 => _ = labels.insert("tier".to_owned(), "nobody".to_owned()),
            _ => _ = labels.remove("app"),
        }
        let begin = Instant::now();
        let request = agent::Change { labels: Some((pod.id(), labels)), ..agent::Change::default() };
        let request: agent::Change = through_json(&request);
        let read = Instant::now();
        let (pod, labels) = request.labels.expect("it was told");
        let legs = plan.relabel(("n0", links), &pod, &labels).map_err(userspace::error::Error::from)?;
        relabelled.push(read.elapsed().as_secs_f64() * 1e3);
        if let Some(kernel) = &mut kernel {
            legs.iter().try_for_each(|leg| kernel.change(leg))?;
            told.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    let mut changed = cluster.clone();
    for change in 0..TIMES {
        check(stop)?;
        changed.pods[change * 100].labels.insert("tier".to_owned(), "other".to_owned());
        let begin = Instant::now();
        let desired: Cluster = through_json(&changed);
        let read = Instant::now();
        plan = plan.after(&desired).map_err(userspace::error::Error::from)?;
        let node = plan.node("n0", links).map_err(userspace::error::Error::from)?;
        anew.push(read.elapsed().as_secs_f64() * 1e3);
        if let Some(kernel) = &mut kernel {
            kernel.apply(&node.rows)?;
            all_told.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    let figures = [
        Figure::of("one pod's labels change: planned", "ms", &mut relabelled)
            .map(|it| it.target("< 20 ms at p99")),
        Figure::of("the same, with all planned anew", "ms", &mut anew),
        Figure::of("one pod's labels change: told, planned and written to the kernel", "ms", &mut told)
            .map(|it| it.target("< 20 ms at p99")),
        Figure::of("the same, with all told, planned and compared anew", "ms", &mut all_told),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// What an agent reads of what it is told.
fn through_json<T: Serialize + for<'a> Deserialize<'a>>(told: &T) -> T {
    let line = serde_json::to_vec(told).expect("it has no keys that JSON has not");
    serde_json::from_slice(&line).expect("its own output")
}

/// The most memory that the process had, if the kernel says so.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / 1024.0)
}

fn links(cluster: &Cluster) -> Links {
    let pods = cluster.pods.iter().filter(|pod| pod.node == "n0").zip(10..);
    let pods = pods.map(|(pod, index)| (pod.id(), IfIndex(index))).collect();
    Links { uplink: IfIndex(1), pods, homes: None }
}

fn labels(labels: &[(&str, String)]) -> Labels {
    labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

fn cluster() -> Cluster {
    let node = |index: u32| Node {
        name: format!("n{index}"),
        labels: labels(&[("topology.kubernetes.io/zone", format!("z{}", index % 3))]),
        addresses: vec![address([10, 240, 0, 4], index)],
        pod_cidrs: Vec::new(),
    };
    let namespace = |index: u32| {
        let team = [("team", format!("team{}", index % 10)), ("stage", stage(index).to_owned())];
        (format!("ns{index}"), labels(&team))
    };
    let mut cluster = Cluster {
        name: "bench".to_owned(),
        namespaces: (0..NAMESPACES).map(namespace).collect(),
        nodes: (0..NODES).map(node).collect(),
        ..Cluster::default()
    };
    for index in 0..NAMESPACES * APPS * REPLICAS {
        cluster.pods.push(pod(index));
    }
    for index in 0..NAMESPACES {
        let namespace = format!("ns{index}");
        for (name, spec) in specs(index) {
            let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
            cluster
                .policies
                .push(serde_json::from_value(object).expect("the benchmark's own policies are valid"));
        }
    }
    cluster.cluster_policies = [Tier::Admin, Tier::Baseline].into_iter().flat_map(tier).collect();
    cluster
}

fn stage(index: u32) -> &'static str {
    ["production", "staging", "test"][index as usize % 3]
}

fn address(first: [u8; 4], index: u32) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes(first) + index).into()
}

/// Replica after replica of each application, namespace after namespace, on one node after the other.
fn pod(index: u32) -> Pod {
    let (replica, app) = (index / (NAMESPACES * APPS), index / NAMESPACES % APPS);
    let namespace = index % NAMESPACES;
    let port =
        |name: &str, port| ContainerPort { name: Some(name.to_owned()), port, protocol: Protocol::Tcp };
    let all = [
        ("app", format!("app{app}")),
        ("tier", ["front", "middle", "back"][app as usize % 3].to_owned()),
        ("pod-template-hash", format!("{namespace}-{app}")),
        ("statefulset.kubernetes.io/pod-name", format!("app{app}-{replica}")),
    ];
    Pod {
        namespace: format!("ns{namespace}"),
        name: format!("app{app}-{replica}"),
        labels: labels(&all),
        node: format!("n{}", (index / NAMESPACES + namespace) % NODES),
        addresses: vec![address([10, 128, 0, 0], index)],
        ports: vec![port("http", 8080 + app as u16 % 2), port("metrics", 9090)],
        ready: true,
        ..Pod::default()
    }
}

/// The NetworkPolicies of a namespace: nine or ten.
fn specs(namespace: u32) -> Vec<(String, Value)> {
    let both = json!(["Ingress", "Egress"]);
    let dns = json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]);
    let resolver = json!({"namespaceSelector": {"matchLabels": {"team": "team0"}},
        "podSelector": {"matchLabels": {"app": "app0"}}});
    let monitoring = json!({"namespaceSelector": {"matchLabels": {"team": "team1"}},
        "podSelector": {"matchLabels": {"tier": "back"}}});
    let world = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"]}});
    let partner = json!({"ipBlock": {"cidr": format!("203.0.{namespace}.0/24")}});
    let mut specs = vec![
        ("deny".to_owned(), json!({"podSelector": {}, "policyTypes": both})),
        (
            "dns".to_owned(),
            json!({"podSelector": {}, "policyTypes": ["Egress"],
            "egress": [{"to": [resolver], "ports": dns}]}),
        ),
        (
            "metrics".to_owned(),
            json!({"podSelector": {}, "ingress": [{"from": [monitoring],
            "ports": [{"port": "metrics"}]}]}),
        ),
    ];
    for app in 0..5 {
        // Each tier talks to the next one.
        let one = json!({"podSelector": {"matchLabels": {"app": format!("app{app}")}}});
        let ports =
            if app % 2 == 0 { json!([{"port": "http"}]) } else { json!([{"port": 8080, "endPort": 8089}]) };
        specs.push((
            format!("app{app}"),
            json!({
                "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values":
                    [format!("app{}", app + 1), format!("app{}", app + 5)]}]},
                "ingress": [{"from": [one], "ports": ports}],
            }),
        ));
    }
    if !namespace.is_multiple_of(5) {
        specs.push((
            "out".to_owned(),
            json!({"podSelector": {"matchLabels": {"tier": "front"}},
            "policyTypes": ["Egress"], "egress": [{"to": [world, partner], "ports": [{"port": 443}]}]}),
        ));
    }
    let stage = json!({"namespaceSelector": {"matchLabels": {"stage": stage(namespace)}}});
    specs.push((
        "stage".to_owned(),
        json!({"podSelector": {"matchLabels": {"tier": "front"}},
        "ingress": [{"from": [stage], "ports": [{"port": 8443}]}]}),
    ));
    specs
}

/// Ten policies of the whole cluster.
fn tier(tier: Tier) -> impl Iterator<Item = ClusterPolicy> {
    let selector = |key: &str, value: String| {
        serde_json::from_value(json!({"matchLabels": {key: value}})).expect("a selector")
    };
    (0..10).map(move |index| {
        let team = PodPeer { namespaces: selector("team", format!("team{index}")), ..PodPeer::default() };
        let others = PodPeer { namespaces: selector("stage", stage(index).to_owned()), ..PodPeer::default() };
        let rule = |action, peer, port| TierRule {
            name: String::new(),
            action,
            peers: vec![peer],
            ports: Some(vec![TierPort::Range(Protocol::Tcp, port, port)]),
        };
        let first = if tier == Tier::Admin { Action::Pass } else { Action::Accept };
        let metadata = "169.254.169.254/32".parse().expect("a range");
        ClusterPolicy {
            kind: Kind::ClusterNetworkPolicy,
            name: format!("{tier}-{index}").to_lowercase(),
            tier,
            priority: index as i32,
            subject: team.clone(),
            ingress: vec![
                rule(first, TierPeer::Pods(team), 22),
                rule(Action::Deny, TierPeer::Pods(others), 22),
            ],
            egress: vec![rule(Action::Deny, TierPeer::Networks(vec![metadata]), 80)],
        }
    })
}
