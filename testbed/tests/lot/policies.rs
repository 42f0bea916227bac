//! Policies drawn by lot: NetworkPolicy, ClusterNetworkPolicy, and the two that came before it.

use serde_json::{Value, json};

use super::{APPS, Kind, Lot, NAMESPACES};

/// The networks that policies may be about.
struct Blocks {
    /// Each with parts of it that may be left out.
    cidrs: Vec<(&'static str, Vec<&'static str>)>,
}

impl Blocks {
    /// Of pods, nodes, hosts outside, and the world, of the families that the cluster has.
    fn of(kind: Kind) -> Self {
        let four = [
            ("0.0.0.0/0", vec!["10.244.0.0/16", "203.0.113.0/24", "0.0.0.0/1", "10.240.0.0/16"]),
            ("10.244.0.0/16", vec!["10.244.1.0/24", "10.244.0.0/29", "10.244.0.2/32"]),
            ("10.244.0.0/24", vec!["10.244.0.8/29", "10.244.0.3/32", "10.244.0.0/25"]),
            ("10.244.0.2/31", vec!["10.244.0.3/32"]),
            ("10.240.0.0/16", vec!["10.240.0.4/32", "10.240.0.0/28"]),
            ("10.240.0.4/31", vec!["10.240.0.5/32"]),
            ("10.0.0.0/8", vec!["10.244.0.0/17", "10.128.0.0/9"]),
            ("203.0.113.0/24", vec!["203.0.113.0/28", "203.0.113.7/32"]),
            ("203.0.113.7/32", vec![]),
            ("198.51.100.0/24", vec!["198.51.100.8/29"]),
        ];
        let six = [
            ("::/0", vec!["fd00::/8", "2001:db8:1::/48", "::/1"]),
            ("fd00:10:244::/48", vec!["fd00:10:244:1::/64", "fd00:10:244::2/128"]),
            ("fd00:10:244::/64", vec!["fd00:10:244::/125"]),
            ("fd00:10:240::/64", vec!["fd00:10:240::4/127"]),
            ("2001:db8::/32", vec!["2001:db8:1::7/128", "2001:db8:2::/48"]),
            ("2001:db8:1::/48", vec!["2001:db8:1::/64"]),
        ];
        let mut cidrs = Vec::new();
        if kind.has(false) {
            cidrs.extend(four);
        }
        if kind.has(true) {
            cidrs.extend(six);
        }
        Self { cidrs }
    }
}

/// All policies of a cluster: none, or several of each.
pub(super) fn all(lot: &mut Lot, kind: Kind) -> Vec<Value> {
    let blocks = Blocks::of(kind);
    let mut drawn = Vec::new();
    let whole = lot.once_in(2);
    for number in 0..lot.below(5) + u64::from(!whole) {
        drawn.push(network_policy(lot, &blocks, number));
    }
    if whole {
        for number in 0..1 + lot.below(4) {
            drawn.push(cluster_policy(lot, &blocks, number));
        }
        if lot.once_in(4) {
            drawn.push(baseline_admin(lot, &blocks));
        }
    }
    drawn
}

/// `networking.k8s.io/v1`.
fn network_policy(lot: &mut Lot, blocks: &Blocks, number: u64) -> Value {
    let mut spec = json!({"podSelector": pods(lot)});
    let types: &[&[&str]] = &[&[], &["Ingress"], &["Egress"], &["Ingress", "Egress"], &["Egress", "Ingress"]];
    let types = lot.one(types);
    // Left out, they are Ingress, and Egress where there are egress rules.
    if !types.is_empty() {
        spec["policyTypes"] = json!(types);
    }
    for (direction, rules, peers) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
        // Rules of a direction that the policy is not about count for nothing.
        if types.contains(&direction) || lot.once_in(4) {
            match lot.below(6) {
                0 => {}
                1 => spec[rules] = json!([]),
                2 => spec[rules] = json!([{}]),
                _ => spec[rules] = lot.several((1, 3), |lot| rule(lot, blocks, peers)),
            }
        }
    }
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": format!("p{number}"), "namespace": lot.one(&NAMESPACES[..2])}, "spec": spec})
}

fn rule(lot: &mut Lot, blocks: &Blocks, peers: &str) -> Value {
    let mut rule = json!({});
    match lot.below(6) {
        0 => {}
        1 => rule[peers] = json!([]),
        _ => rule[peers] = lot.several((1, 2), |lot| peer(lot, blocks)),
    }
    match lot.below(6) {
        0 | 1 => {}
        2 => rule["ports"] = json!([]),
        _ => rule["ports"] = lot.several((1, 3), port),
    }
    rule
}

fn peer(lot: &mut Lot, blocks: &Blocks) -> Value {
    match lot.below(5) {
        0 => json!({"podSelector": pods(lot)}),
        1 => json!({"namespaceSelector": namespaces(lot)}),
        2 => json!({"namespaceSelector": namespaces(lot), "podSelector": pods(lot)}),
        _ => {
            let (cidr, within) = lot.one(&blocks.cidrs);
            let mut block = json!({"cidr": cidr});
            if !within.is_empty() && lot.once_in(2) {
                block["except"] = lot.several((1, 2), |lot| json!(lot.one(&within)));
            }
            json!({"ipBlock": block})
        }
    }
}

fn port(lot: &mut Lot) -> Value {
    let mut port = match lot.below(4) {
        0 => return json!({"port": lot.one(&["http", "dns", "none"]), "protocol": protocol(lot)}),
        1 => {
            let (first, last) = range(lot);
            json!({"port": first, "endPort": last})
        }
        2 => json!({"port": lot.one(&[80, 8080, 53, 81])}),
        _ => json!({}),
    };
    if !lot.once_in(3) {
        port["protocol"] = json!(protocol(lot));
    }
    port
}

fn protocol(lot: &mut Lot) -> &'static str {
    lot.one(&["TCP", "TCP", "TCP", "UDP", "UDP", "SCTP"])
}

/// The first and the last port of a range, with ends at every kind of boundary.
fn range(lot: &mut Lot) -> (u16, u16) {
    let ranges = [
        (80, 80),
        (79, 80),
        (80, 81),
        (1, 65_535),
        (1, 79),
        (81, 65_535),
        (8000, 8999),
        (8001, 8998),
        (32_767, 32_768),
        (32_768, 65_535),
        (1, 32_767),
        (53, 8080),
        (8080, 9000),
        (7999, 8079),
        (65_535, 65_535),
        (1, 1),
    ];
    lot.one(&ranges)
}

/// A selector of pods.
fn pods(lot: &mut Lot) -> Value {
    let keys: [(&str, &[&str]); 3] = [("app", &APPS), ("tier", &super::TIERS), ("absent", &["x"])];
    selector(lot, &keys)
}

/// A selector of namespaces.
fn namespaces(lot: &mut Lot) -> Value {
    let keys: [(&str, &[&str]); 3] =
        [("colour", &NAMESPACES), ("team", &["a", "b"]), ("kubernetes.io/metadata.name", &NAMESPACES)];
    selector(lot, &keys)
}

fn selector(lot: &mut Lot, keys: &[(&str, &[&str])]) -> Value {
    let mut selector = json!({});
    // The first key is the one that is always there.
    match lot.below(5) {
        0 | 1 => {}
        2 | 3 => selector["matchLabels"] = json!({keys[0].0: lot.one(keys[0].1)}),
        _ => {
            let (key, values) = lot.one(keys);
            selector["matchLabels"] = json!({key: lot.one(values)});
        }
    }
    if lot.once_in(3) {
        selector["matchExpressions"] = lot.several((1, 2), |lot| {
            let (key, values) = lot.one(keys);
            match lot.below(4) {
                0 => json!({"key": key, "operator": "Exists"}),
                1 => json!({"key": key, "operator": "DoesNotExist"}),
                two => {
                    let operator = if two == 2 { "In" } else { "NotIn" };
                    let values = lot.several((1, 2), |lot| json!(lot.one(values)));
                    json!({"key": key, "operator": operator, "values": values})
                }
            }
        });
    }
    selector
}

/// The newest of the cluster's kinds, or AdminNetworkPolicy.
fn cluster_policy(lot: &mut Lot, blocks: &Blocks, number: u64) -> Value {
    // Some have the same.
    let priority = lot.below(4);
    let api = if lot.once_in(4) { Api::Admin } else { Api::Cluster };
    let mut spec = json!({"priority": priority, "subject": tier_pods(lot)});
    if api == Api::Cluster {
        spec["tier"] = json!(lot.one(&["Admin", "Admin", "Baseline"]));
    }
    tier_rules(lot, (blocks, api), &mut spec);
    match api {
        Api::Cluster => {
            json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
                               "metadata": {"name": format!("c{number}")}, "spec": spec})
        }
        _ => json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
                    "metadata": {"name": format!("a{number}")}, "spec": spec}),
    }
}

fn baseline_admin(lot: &mut Lot, blocks: &Blocks) -> Value {
    let mut spec = json!({"subject": tier_pods(lot)});
    tier_rules(lot, (blocks, Api::Baseline), &mut spec);
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "BaselineAdminNetworkPolicy",
           "metadata": {"name": "default"}, "spec": spec})
}

/// Versions say the same things in other words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Api {
    Cluster,
    Admin,
    Baseline,
}

fn tier_rules(lot: &mut Lot, (blocks, api): (&Blocks, Api), spec: &mut Value) {
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        if !lot.once_in(4) {
            spec[rules] = lot.several((0, 4), |lot| tier_rule(lot, (blocks, api), peers));
        }
    }
}

fn tier_rule(lot: &mut Lot, (blocks, api): (&Blocks, Api), peers: &str) -> Value {
    let actions: &[&str] = match api {
        Api::Cluster => &["Accept", "Deny", "Pass"],
        Api::Admin => &["Allow", "Deny", "Pass"],
        Api::Baseline => &["Allow", "Deny"],
    };
    let action = lot.one(actions);
    let by_address = peers == "to" && lot.once_in(2);
    let mut of = vec![if by_address { address_peer(lot, blocks) } else { tier_pods(lot) }];
    if lot.once_in(3) {
        of.push(tier_pods(lot));
    }
    if by_address && api == Api::Cluster && action == "Accept" && lot.once_in(6) {
        of.push(json!({"domainNames": ["example.com"]}));
    }
    let mut rule = json!({"action": action, peers: of});
    if lot.once_in(4) {
        rule["name"] = json!("named");
    }
    if !lot.once_in(3) {
        let ports = if api == Api::Cluster { "protocols" } else { "ports" };
        rule[ports] = lot.several((1, 2), |lot| tier_port(lot, api, by_address));
    }
    rule
}

fn address_peer(lot: &mut Lot, blocks: &Blocks) -> Value {
    match lot.below(3) {
        0 => json!({"nodes": selector(lot, &[("pool", &["cpu", "gpu"]), ("absent", &["x"])])}),
        _ => {
            // The same one twice is refused.
            let (first, other) = (lot.one(&blocks.cidrs).0, lot.one(&blocks.cidrs).0);
            let networks = if first == other || lot.once_in(2) { vec![first] } else { vec![first, other] };
            json!({"networks": networks})
        }
    }
}

/// As a subject, or as a peer.
fn tier_pods(lot: &mut Lot) -> Value {
    match lot.below(3) {
        0 => json!({"namespaces": namespaces(lot)}),
        _ => json!({"pods": {"namespaceSelector": namespaces(lot), "podSelector": pods(lot)}}),
    }
}

/// What is no pod has no names for its ports.
fn tier_port(lot: &mut Lot, api: Api, by_address: bool) -> Value {
    let kinds = if by_address { 2 } else { 3 };
    let (kind, protocol, number) = (lot.below(kinds), protocol(lot), lot.one(&[80, 8080, 53, 81]));
    let (start, mut end) = range(lot);
    let start = start.min(65_534);
    end = end.max(start + 1);
    let name = lot.one(&["http", "dns"]);
    match (api, kind) {
        (Api::Cluster, 0) => json!({protocol.to_lowercase(): {"destinationPort": {"number": number}}}),
        (Api::Cluster, 1) => {
            json!({protocol.to_lowercase(): {"destinationPort": {"range": {"start": start, "end": end}}}})
        }
        (Api::Cluster, _) => json!({"destinationNamedPort": name}),
        (_, 0) => json!({"portNumber": {"protocol": protocol, "port": number}}),
        (_, 1) => json!({"portRange": {"protocol": protocol, "start": start, "end": end}}),
        _ => json!({"namedPort": name}),
    }
}
