//! The matrix of who may reach whom against the oracle, and against packets that walk.

#[expect(dead_code, reason = "the other tests use the rest")]
mod clusters;
#[expect(dead_code, reason = "the other tests use the rest")]
mod lot;

use clusters::Families;
use serde_json::json;
use testbed::dataplane::emulator::Emulated;
use testbed::oracle::{Expectation, Oracle};
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
fn cells<'a>(
    cluster: &'a Cluster,
    oracle: &'a Oracle<'a>,
    matrix: &'a Matrix,
) -> impl Iterator<Item = (Flow, Verdict, String)> + 'a {
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
            (!oracle.is_frontend(address, port.number, port.protocol))
                .then(|| (flow, matrix.verdict(from, to, place), format!("{judged:?}")))
        })
    })
}

/// Asserts that the oracle says the same of every cell; returns how many it speaks of, and how many it denies.
#[track_caller]
fn equals_the_oracle(cluster: &Cluster, what: &str) -> (usize, usize) {
    let matrix = Matrix::of(cluster, &PORTS).unwrap_or_else(|error| panic!("{what}: {error}"));
    let oracle = Oracle::of(cluster);
    let (mut asked, mut denied) = (0, 0);
    for (flow, verdict, judged) in cells(cluster, &oracle, &matrix) {
        let expected = match oracle.expect(&flow.from, &flow.to, flow.port, flow.protocol) {
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
    let oracle = Oracle::of(cluster);
    let cells: Vec<_> = cells(cluster, &oracle, &matrix).filter(|(flow, ..)| concerns(flow)).collect();
    let flows: Vec<Flow> = cells.iter().map(|(flow, ..)| flow.clone()).collect();
    let measured = emulated.probe(&flows).unwrap_or_else(|error| panic!("{what}: {error}"));
    for ((flow, verdict, judged), measured) in cells.iter().zip(measured) {
        let denied = measured.reason == Some(dataplane::Reason::PolicyDenied);
        assert_eq!(*verdict == Verdict::Deny, denied, "{what}: {flow}: {judged}, {measured:?}");
    }
}

/// A cluster of one family: the oracle speaks of one at a time.
fn drawn(seed: u64) -> Cluster {
    lot::Drawn::plain(seed).cluster().unwrap_or_else(|why| panic!("seed {seed}: {why}"))
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
    for seed in 0..100 {
        let cluster = drawn(seed);
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
fn the_matrix_is_the_oracle_s_on_the_example() {
    equals_the_oracle(&load(include_str!("../examples/shop.yaml")), "shop");
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

#[test]
fn a_page_says_of_every_cell_what_the_matrix_says() {
    for seed in 200..230 {
        let cluster = drawn(seed);
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
    let page = Data::of(&cluster, &PORTS[..3], None).map(|data| data.page().expect("it has a form"));
    let page = page.unwrap_or_else(|error| panic!("{error}"));
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
    assert!(["http:", "https:", "src=", "import", "fetch("].iter().all(|word| !page.contains(word)));
    assert!(page.contains("isolated by ns0/app0") && !page.contains("/*DATA*/"));
}
