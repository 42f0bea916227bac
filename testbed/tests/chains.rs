//! `chains` in memory against the oracle: two readings of the same text that share no code. The emulator
//! is the third.

use serde_json::{Value, json};
use testbed::dataplane::chains::judge::Judge;
use testbed::dataplane::chains::rules::Dice;
use testbed::dataplane::emulator::Emulated;
use testbed::probe::{Grid, Prober, all_pairs};
use userspace::model::{self, Cluster};

/// Flows on which the prober and the oracle differ.
fn differences(cluster: &Cluster, prober: &mut dyn Prober) -> Vec<String> {
    let flows = all_pairs(cluster);
    let grid = Grid::measure(cluster, flows, prober).unwrap_or_else(|error| panic!("{error}"));
    assert!(grid.rows.len() > 20, "{} flows", grid.rows.len());
    let different = grid.rows.iter().filter(|row| row.differs());
    let name = &grid.dataplane;
    different
        .map(|row| format!("{}: {name}: {} instead of {:?}", row.flow, row.measured.verdict, row.expectation))
        .collect()
}

#[test]
fn chains_reach_in_the_shop_exactly_whom_its_policies_let() {
    let text = include_str!("../examples/shop.yaml");
    let cluster = model::load_text("shop.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    let mut judge = Judge::new(&cluster).unwrap_or_else(|error| panic!("{error}"));
    let different = differences(&cluster, &mut judge);
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn chains_emulator_and_oracle_agree_about_clusters_drawn_by_lot() {
    for seed in 0..100 {
        let text = drawn(&mut Dice::new(seed)).to_string();
        let cluster =
            model::load_text("drawn", &text).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
        let mut judge = Judge::new(&cluster).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut emulated = Emulated::new(&cluster).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut different = differences(&cluster, &mut judge);
        different.extend(differences(&cluster, &mut emulated));
        assert!(different.is_empty(), "seed {seed}:\n{}\n{text}", different.join("\n"));
    }
}

#[test]
fn chains_emulator_and_oracle_agree_about_policies_of_the_whole_cluster() {
    for seed in 0..150 {
        let text = tiered(&mut Dice::new(seed)).to_string();
        let cluster =
            model::load_text("drawn", &text).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
        assert!(!cluster.cluster_policies.is_empty());
        let mut judge = Judge::new(&cluster).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut emulated = Emulated::new(&cluster).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut different = differences(&cluster, &mut judge);
        different.extend(differences(&cluster, &mut emulated));
        assert!(different.is_empty(), "seed {seed}:\n{}\n{text}", different.join("\n"));
    }
}

/// One of these.
fn one<T: Clone>(dice: &mut Dice, of: &[T]) -> T {
    of[(dice.roll() % of.len() as u64) as usize].clone()
}

/// Once in so many times.
fn once_in(dice: &mut Dice, times: u64) -> bool {
    dice.roll().is_multiple_of(times)
}

const NAMESPACES: [&str; 2] = ["red", "blue"];
const APPS: [&str; 3] = ["web", "api", "db"];

/// Two nodes, two namespaces, six pods, two Services, a host outside, and some policies.
fn drawn(dice: &mut Dice) -> Value {
    let mut items = vec![
        json!({"apiVersion": "podpath.dev/v1alpha1", "kind": "Testbed", "metadata": {"name": "drawn"},
               "spec": {"nodes": 2}}),
        json!({"apiVersion": "podpath.dev/v1alpha1", "kind": "External", "metadata": {"name": "world"},
               "spec": {"address": "203.0.113.7", "ports": [{"port": 80, "protocol": "TCP"}]}}),
    ];
    for namespace in NAMESPACES {
        items.push(json!({"apiVersion": "v1", "kind": "Namespace",
                          "metadata": {"name": namespace, "labels": {"colour": namespace}}}));
        for app in APPS {
            // A named port that means another number in each pod.
            let named = one(dice, &[8080, 9090]);
            items.push(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": app, "namespace": namespace, "labels": {"app": app}},
                "spec": {"containers": [{"name": "c", "image": "i", "ports": [
                    {"name": "http", "containerPort": named},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}}));
        }
        items.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front", "namespace": namespace},
            "spec": {"selector": {"app": one(dice, &["web", "api", "nobody"])},
                     "ports": [{"port": 80, "targetPort": "http"}]}}));
    }
    for number in 0..1 + dice.roll() % 5 {
        items.push(policy(dice, number));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// The same, with policies of the whole cluster, and carried out in any way.
fn tiered(dice: &mut Dice) -> Value {
    let mut list = drawn(dice);
    list["items"][0]["spec"]["policies"] = json!({
        "audit": once_in(dice, 8),
        "established": one(dice, &["keep", "cut"]),
        "ipBlocks": one(dice, &["literal", "outside"]),
    });
    // The first namespace comes after the Testbed and the host outside.
    list["items"][2]["metadata"]["annotations"] = json!({"podpath.dev/audit": once_in(dice, 6).to_string()});
    if let Value::Array(items) = &mut list["items"] {
        for number in 0..1 + dice.roll() % 4 {
            items.push(tier_policy(dice, number));
        }
    }
    list
}

fn tier_policy(dice: &mut Dice, number: u64) -> Value {
    let mut spec = json!({
        "tier": one(dice, &["Admin", "Admin", "Baseline"]),
        "priority": dice.roll() % 5,
        "subject": pods(dice),
    });
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules_of = (0..dice.roll() % 4).map(|_| tier_rule(dice, peers)).collect::<Vec<_>>();
        spec[rules] = json!(rules_of);
    }
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
           "metadata": {"name": format!("c{number}")}, "spec": spec})
}

fn tier_rule(dice: &mut Dice, peers: &str) -> Value {
    let addresses = [
        json!({"nodes": {}}),
        json!({"nodes": {"matchLabels": {"pool": "none"}}}),
        json!({"networks": ["203.0.113.0/24"]}),
        json!({"networks": ["0.0.0.0/0", "::/0"]}),
        json!({"networks": ["10.244.0.0/24"]}),
    ];
    let by_address = peers == "to" && once_in(dice, 3);
    let mut of = vec![pods(dice)];
    if by_address {
        of.push(one(dice, &addresses));
    }
    let mut rule = json!({"action": one(dice, &["Accept", "Deny", "Deny", "Pass"]), peers: of});
    if !once_in(dice, 3) {
        let mut ports = vec![
            json!({"tcp": {"destinationPort": {"number": 8080}}}),
            json!({"tcp": {"destinationPort": {"range": {"start": 8000, "end": 8999}}}}),
            json!({"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}}),
            json!({"sctp": {"destinationPort": {"number": 80}}}),
        ];
        if !by_address {
            ports.extend([json!({"destinationNamedPort": "http"}), json!({"destinationNamedPort": "dns"})]);
        }
        rule["protocols"] = json!([one(dice, &ports), one(dice, &ports)]);
    }
    rule
}

/// As a subject, or as a peer.
fn pods(dice: &mut Dice) -> Value {
    let namespaces =
        if once_in(dice, 2) { json!({}) } else { json!({"matchLabels": {"colour": one(dice, &NAMESPACES)}}) };
    if once_in(dice, 2) {
        return json!({"namespaces": namespaces});
    }
    json!({"pods": {"namespaceSelector": namespaces, "podSelector": selector(dice)}})
}

fn policy(dice: &mut Dice, number: u64) -> Value {
    let types: &[&[&str]] = &[&["Ingress"], &["Egress"], &["Ingress", "Egress"]];
    let types = one(dice, types);
    let mut spec = json!({"podSelector": selector(dice), "policyTypes": types});
    for (direction, rules, peers) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
        if types.contains(&direction) {
            let rules_of = (0..dice.roll() % 3).map(|_| rule(dice, peers)).collect::<Vec<_>>();
            spec[rules] = json!(rules_of);
        }
    }
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": format!("p{number}"), "namespace": one(dice, &NAMESPACES)}, "spec": spec})
}

fn rule(dice: &mut Dice, peers: &str) -> Value {
    let mut rule = json!({});
    if !once_in(dice, 4) {
        rule[peers] = json!((0..1 + dice.roll() % 2).map(|_| peer(dice)).collect::<Vec<_>>());
    }
    if !once_in(dice, 3) {
        rule["ports"] = json!((0..1 + dice.roll() % 2).map(|_| port(dice)).collect::<Vec<_>>());
    }
    rule
}

fn peer(dice: &mut Dice) -> Value {
    match dice.roll() % 4 {
        0 => json!({"podSelector": selector(dice)}),
        1 => json!({"namespaceSelector": {"matchLabels": {"colour": one(dice, &NAMESPACES)}}}),
        2 => json!({"namespaceSelector": {}, "podSelector": selector(dice)}),
        // Addresses outside: what a block says of pods is open.
        _ if once_in(dice, 2) => json!({"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.0/28"]}}),
        _ => json!({"ipBlock": {"cidr": "203.0.113.0/24"}}),
    }
}

fn port(dice: &mut Dice) -> Value {
    one(
        dice,
        &[
            json!({"port": "http"}),
            json!({"port": 8080}),
            json!({"port": 8000, "endPort": 8999}),
            json!({"protocol": "UDP", "port": "dns"}),
            json!({"protocol": "UDP"}),
            json!({"port": 80}),
        ],
    )
}

fn selector(dice: &mut Dice) -> Value {
    match dice.roll() % 3 {
        0 => json!({}),
        1 => json!({"matchLabels": {"app": one(dice, &APPS)}}),
        _ => json!({"matchExpressions": [
            {"key": "app", "operator": one(dice, &["In", "NotIn"]), "values": [one(dice, &APPS)]}]}),
    }
}
