//! The matrix of who may reach whom against the oracle, and against packets that walk.

#[expect(dead_code, reason = "the other tests use the rest")]
mod clusters;

use clusters::Families;
use serde_json::{Value, json};
use testbed::dataplane::chains::rules::Dice;
use testbed::dataplane::emulator::Emulated;
use testbed::oracle::{self, Expectation};
use testbed::page::Data;
use testbed::probe::{Flow, Prober};
use userspace::engine::emulator::Matrix;
use userspace::engine::emulator::matrix::{Direction, Verdict, Why, declared};
use userspace::model::{self, Cluster, Encapsulation, Model, Port, Protocol};

const PORTS: [Port; 4] = [
    Port { number: 80, protocol: Protocol::Tcp },
    Port { number: 53, protocol: Protocol::Udp },
    Port { number: 8080, protocol: Protocol::Tcp },
    Port { number: 80, protocol: Protocol::Sctp },
];

/// Every cell, with what it says: those that policies decide, so not what stands behind a port of a node.
fn cells<'a>(cluster: &'a Cluster, matrix: &'a Matrix) -> impl Iterator<Item = (Flow, Verdict, String)> + 'a {
    let ends = matrix.endpoints().iter().enumerate();
    let pairs = ends.clone().flat_map(move |from| ends.clone().map(move |to| (from, to)));
    pairs.flat_map(move |((from, source), (to, target))| {
        matrix.ports().iter().enumerate().filter_map(move |(place, port)| {
            let flow = Flow {
                from: source.clone(),
                to: target.clone(),
                port: port.number,
                protocol: port.protocol,
                over: None,
            };
            let address = cluster.find(target).expect("an end is in the cluster").address();
            let judged = matrix.judgements(from, to, place);
            (!oracle::is_frontend(cluster, address, port.number, port.protocol))
                .then(|| (flow, matrix.verdict(from, to, place), format!("{judged:?}")))
        })
    })
}

/// Asserts that the oracle says the same of every cell; returns how many it speaks of, and how many it denies.
#[track_caller]
fn equals_the_oracle(cluster: &Cluster, what: &str) -> (usize, usize) {
    let matrix = Matrix::of(cluster, &PORTS).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (mut asked, mut denied) = (0, 0);
    for (flow, verdict, judged) in cells(cluster, &matrix) {
        let expected = match oracle::expect(cluster, &flow.from, &flow.to, flow.port, flow.protocol) {
            Expectation::Undefined(_) => continue,
            Expectation::Deny(_) => Verdict::Deny,
            // Whether anybody listens is nothing to policies.
            Expectation::Allow | Expectation::Audited(_) | Expectation::Reject(_) => Verdict::Allow,
        };
        assert_eq!(verdict, expected, "{what}: {flow}: {judged}");
        asked += 1;
        denied += usize::from(verdict == Verdict::Deny);
    }
    (asked, denied)
}

/// Asserts that packets on the emulator fare as the matrix says.
#[track_caller]
fn equals_packets(cluster: &Cluster, what: &str) {
    let matrix = Matrix::of(cluster, &PORTS).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut emulated = Emulated::new(cluster).unwrap_or_else(|error| panic!("{what}: {error}"));
    // What touches no pod meets no policy, and may have no way.
    let concerns =
        |flow: &Flow| [&flow.from, &flow.to].into_iter().any(|who| matches!(who, model::Who::Pod(_)));
    let cells: Vec<_> = cells(cluster, &matrix).filter(|(flow, ..)| concerns(flow)).collect();
    let flows: Vec<Flow> = cells.iter().map(|(flow, ..)| flow.clone()).collect();
    let measured = emulated.probe(&flows).unwrap_or_else(|error| panic!("{what}: {error}"));
    for ((flow, verdict, judged), measured) in cells.iter().zip(measured) {
        let denied = measured.reason == Some(dataplane::Reason::PolicyDenied);
        assert_eq!(*verdict == Verdict::Deny, denied, "{what}: {flow}: {judged}, {measured:?}");
    }
}

fn load(text: &str) -> Cluster {
    model::load_text("test", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn the_matrix_is_the_oracle_s_and_the_packets_on_clusters_of_every_model() {
    let models = [
        (Model::Overlay, Encapsulation::Vxlan, Families::V4),
        (Model::Overlay, Encapsulation::Geneve, Families::Both),
        (Model::Overlay, Encapsulation::Vxlan, Families::V6First),
        (Model::Kubenet, Encapsulation::Vxlan, Families::V4),
        (Model::Flat, Encapsulation::Vxlan, Families::V4),
        (Model::FlatDynamic, Encapsulation::Vxlan, Families::V4),
    ];
    let policies = [
        json!({"podSelector": {}}),
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 80}]}]}),
        json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "203.0.113.0/24"}},
                                                        {"ipBlock": {"cidr": "2001:db8::/32"}}]}]}),
    ];
    for (model, encapsulation, families) in models {
        for spec in &policies {
            let mut cluster = clusters::cluster("matrix", model, encapsulation, families);
            cluster.namespaces.insert("default".to_owned(), model::Labels::new());
            let policy = json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec});
            cluster.policies = vec![serde_json::from_value(policy).expect("a NetworkPolicy")];
            let what = format!("{model:?} {families:?} {spec}");
            let (asked, denied) = equals_the_oracle(&cluster, &what);
            assert!(asked > 50 && denied > 0, "{what}: {asked} {denied}");
            equals_packets(&cluster, &what);
        }
    }
}

#[test]
fn the_matrix_is_the_oracle_s_and_the_packets_on_clusters_drawn_by_lot() {
    let (mut asked, mut denied) = (0, 0);
    for seed in 0..150 {
        let text = drawn(&mut Dice::new(seed)).to_string();
        let cluster = load(&text);
        let what = format!("seed {seed}");
        let counts = equals_the_oracle(&cluster, &what);
        (asked, denied) = (asked + counts.0, denied + counts.1);
        if seed < 25 {
            equals_packets(&cluster, &what);
        }
    }
    assert!(denied > asked / 10 && denied < asked * 9 / 10, "{denied} of {asked}");
}

#[test]
fn the_matrix_is_the_oracle_s_on_the_examples() {
    for text in [include_str!("../examples/shop.yaml")] {
        equals_the_oracle(&load(text), "shop");
    }
}

/// Two pods, one that no one may reach but the other, at http.
const TWO: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: n1, containers: [
  {name: c, image: i, ports: [{containerPort: 80, name: http}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {nodeName: n2, containers: [
  {name: c, image: i, ports: [{containerPort: 5432}, {containerPort: 53, protocol: UDP}]}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}
"#;

#[test]
fn a_cell_says_who_decided_and_by_which_rule() {
    let cluster = load(TWO);
    let ports = declared(&cluster);
    let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["53/udp", "80/tcp", "5432/tcp"]);
    let matrix = Matrix::of(&cluster, &ports).expect("it can be planned");
    let place = |name: &str| matrix.place(&name.parse().expect("a name")).expect("it is there");
    let (web, db) = (place("default/web"), place("default/db"));
    let why = |from, to, port| {
        let decided = matrix.decided_by(from, to, port).expect("a pod is concerned");
        (decided.direction, decided.verdict, decided.why)
    };
    let (into, allow, deny) = (Direction::Ingress, Verdict::Allow, Verdict::Deny);
    match why(web, db, 2) {
        (Direction::Ingress, Verdict::Allow, Why::AllowedBy(rule)) => {
            assert_eq!((rule.policy.as_str(), rule.rule.as_str()), ("default/db", "ingress[0]"));
        }
        other => panic!("{other:?}"),
    }
    let isolated = Why::Isolated(vec!["default/db".to_owned()]);
    assert_eq!(why(web, db, 0), (into, deny, isolated.clone()));
    assert_eq!(why(place("node:n1"), db, 2), (into, deny, isolated));
    assert_eq!(why(place("node:n2"), db, 2), (into, allow, Why::OwnNode));
    assert_eq!(why(db, db, 2), (into, allow, Why::Itself));
    assert_eq!(why(db, web, 1), (into, allow, Why::NotIsolated));
    assert_eq!(matrix.decided_by(place("node:n1"), place("node:n2"), 0), None);
}

/// One of these.
fn one<T: Clone>(dice: &mut Dice, of: &[T]) -> T {
    of[(dice.roll() % of.len() as u64) as usize].clone()
}

fn once_in(dice: &mut Dice, times: u64) -> bool {
    dice.roll().is_multiple_of(times)
}

const NAMESPACES: [&str; 3] = ["red", "blue", "grey"];
const APPS: [&str; 3] = ["web", "api", "db"];

/// Three nodes, three namespaces, nine pods, some of which live in their node's network; two hosts outside, and some
/// policies.
fn drawn(dice: &mut Dice) -> Value {
    let external = |name: &str, address: &str| {
        json!({"apiVersion": "podpath.dev/v1alpha1", "kind": "External", "metadata": {"name": name},
               "spec": {"address": address}})
    };
    let mut items = vec![external("near", "203.0.113.7"), external("far", "198.51.100.9")];
    for number in 1..=3 {
        items.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{number}")},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("10.240.0.{}", 3 + number)}]}}));
    }
    for namespace in NAMESPACES {
        let audited = if once_in(dice, 6) { "true" } else { "false" };
        items.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace,
            "labels": {"colour": namespace}, "annotations": {"podpath.dev/audit": audited}}}));
        for app in APPS {
            let mut labels = json!({"app": app});
            if once_in(dice, 2) {
                labels["tier"] = json!(one(dice, &["front", "back"]));
            }
            items.push(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": app, "namespace": namespace, "labels": labels},
                "spec": {"nodeName": format!("n{}", 1 + dice.roll() % 3), "hostNetwork": once_in(dice, 8),
                    "containers": [{"name": "c", "image": "i", "ports": [
                        {"name": "http", "containerPort": one(dice, &[80, 8080])},
                        {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}}));
        }
    }
    for number in 0..1 + dice.roll() % 6 {
        items.push(policy(dice, number));
    }
    for number in 0..dice.roll() % 4 {
        items.push(cluster_policy(dice, number));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn cluster_policy(dice: &mut Dice, number: u64) -> Value {
    let subjects = [
        json!({"namespaces": {}}),
        json!({"namespaces": {"matchLabels": {"colour": one(dice, &NAMESPACES)}}}),
        json!({"pods": {"namespaceSelector": {}, "podSelector": selector(dice)}}),
    ];
    let ports = [
        json!({"tcp": {"destinationPort": {"number": 80}}}),
        json!({"udp": {"destinationPort": {"range": {"start": 1, "end": 99}}}}),
        json!({"destinationNamedPort": "http"}),
    ];
    let mut spec = json!({"tier": one(dice, &["Admin", "Baseline"]), "priority": number, "subject": one(dice, &subjects)});
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        let rule = |dice: &mut Dice| {
            let mut of = vec![
                json!({"namespaces": {"matchLabels": {"colour": one(dice, &NAMESPACES)}}}),
                json!({"pods": {"namespaceSelector": {}, "podSelector": selector(dice)}}),
            ];
            if peers == "to" {
                of.push(
                    json!({"networks": [one(dice, &["203.0.113.0/24", "10.244.1.0/24", "10.240.0.4/31"])]}),
                );
                of.push(
                    json!({"nodes": {"matchExpressions": [{"key": "pool", "operator": "DoesNotExist"}]}}),
                );
            }
            let peer = one(dice, &of);
            // What is no pod has no named ports.
            let known =
                if peer.get("networks").or(peer.get("nodes")).is_some() { &ports[..2] } else { &ports };
            let mut rule = json!({"action": one(dice, &["Accept", "Deny", "Pass"]), peers: [peer]});
            if once_in(dice, 2) {
                rule["protocols"] = json!([one(dice, known)]);
            }
            rule
        };
        spec[rules] = (0..dice.roll() % 3).map(|_| rule(dice)).collect();
    }
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
           "metadata": {"name": format!("c{number}")}, "spec": spec})
}

fn policy(dice: &mut Dice, number: u64) -> Value {
    let types: &[&[&str]] = &[&["Ingress"], &["Egress"], &["Ingress", "Egress"]];
    let types = one(dice, types);
    let mut spec = json!({"podSelector": selector(dice), "policyTypes": types});
    for (direction, rules, peers) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
        if types.contains(&direction) {
            spec[rules] = (0..dice.roll() % 3).map(|_| rule(dice, peers)).collect();
        }
    }
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": format!("p{number}"), "namespace": one(dice, &NAMESPACES)}, "spec": spec})
}

fn rule(dice: &mut Dice, peers: &str) -> Value {
    let ports = [
        json!({"port": 80}),
        json!({"port": "http"}),
        json!({"port": 8000, "endPort": 8999}),
        json!({"port": "dns", "protocol": "UDP"}),
        json!({"protocol": "UDP"}),
        json!({"protocol": "SCTP", "port": 80}),
    ];
    let mut rule = json!({});
    if !once_in(dice, 4) {
        rule[peers] = (0..1 + dice.roll() % 2).map(|_| peer(dice)).collect();
    }
    if !once_in(dice, 3) {
        rule["ports"] = (0..1 + dice.roll() % 2).map(|_| one(dice, &ports)).collect();
    }
    rule
}

fn peer(dice: &mut Dice) -> Value {
    let blocks = [
        json!({"cidr": "203.0.113.0/24", "except": ["203.0.113.0/28"]}),
        json!({"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"]}),
        json!({"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24"]}),
        json!({"cidr": "10.240.0.4/31"}),
        json!({"cidr": "198.51.100.9/32"}),
    ];
    match dice.roll() % 4 {
        0 => json!({"podSelector": selector(dice)}),
        1 => json!({"namespaceSelector": {"matchLabels": {"colour": one(dice, &NAMESPACES)}}}),
        2 => json!({"namespaceSelector": {}, "podSelector": selector(dice)}),
        _ => json!({"ipBlock": one(dice, &blocks)}),
    }
}

fn selector(dice: &mut Dice) -> Value {
    let expression = |dice: &mut Dice| match dice.roll() % 4 {
        0 => json!({"key": "tier", "operator": "Exists"}),
        1 => json!({"key": "tier", "operator": "DoesNotExist"}),
        2 => json!({"key": "app", "operator": "NotIn", "values": [one(dice, &APPS)]}),
        _ => json!({"key": "tier", "operator": "In", "values": [one(dice, &["front", "back"])]}),
    };
    match dice.roll() % 3 {
        0 => json!({}),
        1 => json!({"matchLabels": {"app": one(dice, &APPS)}}),
        _ => json!({"matchExpressions": [expression(dice)]}),
    }
}

#[test]
fn a_page_says_of_every_cell_what_the_matrix_says() {
    for seed in 200..230 {
        let cluster = load(&drawn(&mut Dice::new(seed)).to_string());
        let matrix = Matrix::of(&cluster, &PORTS).unwrap_or_else(|error| panic!("{error}"));
        let data = Data::of(&cluster, &PORTS, None).unwrap_or_else(|error| panic!("{error}"));
        let count = matrix.endpoints().len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            for port in 0..PORTS.len() {
                let (passes, why) = data.cell(from, to, port);
                let flow = format!("seed {seed}: {} {}", matrix.endpoints()[from], matrix.endpoints()[to]);
                assert_eq!(*passes, matrix.verdict(from, to, port) == Verdict::Allow, "{flow}: {why}");
                if let Some(decided) = matrix.decided_by(from, to, port) {
                    assert!(why.contains(&decided.why.to_string()), "{flow}: {why}, not {}", decided.why);
                }
            }
        }
    }
}

#[test]
fn the_page_of_a_thousand_pods_is_small_and_asks_nobody_for_anything() {
    let mut items = vec![];
    for number in 0..100 {
        let (namespace, app) = (format!("ns{}", number % 20), format!("app{number}"));
        items.push(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": app, "namespace": namespace},
            "spec": {"replicas": 10, "selector": {"matchLabels": {"app": app}}, "template": {
                "metadata": {"labels": {"app": app}},
                "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}}}));
        items.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": app, "namespace": namespace},
            "spec": {"podSelector": {"matchLabels": {"app": app}}, "ingress": [{
                "from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": format!("app{}", number / 2)}}}],
                "ports": [{"port": 80}]}]}}));
    }
    items
        .push(json!({"apiVersion": "podpath.dev/v1alpha1", "kind": "Testbed", "metadata": {"name": "large"},
                      "spec": {"nodes": 10, "maxPods": 110}}));
    let cluster = load(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    assert_eq!(cluster.pods.len(), 1000);
    let page = Data::of(&cluster, &PORTS[..3], None).and_then(|data| Ok(data.page().expect("it has a form")));
    let page = page.unwrap_or_else(|error| panic!("{error}"));
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
    assert!(["http:", "https:", "src=", "import", "fetch("].iter().all(|word| !page.contains(word)));
    assert!(page.contains("isolated by ns0/app0") && !page.contains("/*DATA*/"));
}
