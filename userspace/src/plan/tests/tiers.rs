//! Policies of the whole cluster.

use super::super::Plan;
use super::*;
use crate::model::{Action, ClusterPolicy, IpBlocks, Kind, PodPeer, Tier, TierPeer, TierPort, TierRule};

const WEB: &str = "10.244.0.5";
const DB: &str = "10.244.0.6";
const OTHER: &str = "10.244.1.5";
const WORLD: &str = "203.0.113.7";

/// web and db on n1, web2 of the other team on n2, which is a node at the edge.
fn shop() -> Cluster {
    let mut cluster = cluster(2);
    pod(&mut cluster, "a/web", ("n1", WEB), &["app=web"]);
    pod(&mut cluster, "a/db", ("n1", DB), &["app=db"]);
    pod(&mut cluster, "b/web", ("n2", OTHER), &["app=web"]);
    cluster.nodes[1].labels.insert("role".to_owned(), "edge".to_owned());
    cluster
}
fn labelled(key: &str, value: &str) -> PodPeer {
    let pods = serde_json::from_value(json!({"matchLabels": {key: value}})).expect("a selector");
    PodPeer { pods, ..PodPeer::default() }
}
fn says(action: Action, peer: TierPeer, ports: Option<Vec<TierPort>>) -> TierRule {
    TierRule { name: String::new(), action, peers: vec![peer], ports }
}
fn everybody() -> TierPeer {
    TierPeer::Networks(vec!["0.0.0.0/0".parse().expect("a range")])
}
/// About all pods.
fn tier(cluster: &mut Cluster, name: &str, tier: Tier, ingress: Vec<TierRule>, egress: Vec<TierRule>) {
    let kind = Kind::ClusterNetworkPolicy;
    let (name, subject) = (name.to_owned(), PodPeer::default());
    let policy = ClusterPolicy { kind, name, tier, priority: 0, subject, ingress, egress };
    cluster.cluster_policies.push(policy);
}
fn rule(policy: &str, rule: &str) -> Option<RuleName> {
    Some(RuleName { policy: policy.to_owned(), rule: rule.to_owned() })
}
/// Who decided about a flow into db, and whether it passes.
fn decided(plan: &NodePlan, other: &str, port: u16) -> (bool, Option<RuleName>) {
    let judged = judged(&plan.rows.v4, v4(DB), INGRESS, v4(other), (TCP, port));
    let name = match judged {
        Judged::Allowed(0) | Judged::Denied(0) | Judged::NotIsolated | Judged::Closed => None,
        Judged::Allowed(rule) | Judged::Denied(rule) => Some(plan.rules.v4[rule as usize].clone()),
    };
    (judged.passes(), name)
}

#[test]
fn admin_rules_come_before_network_policies_and_baseline_rules_after() {
    let mut cluster = shop();
    let web = || TierPeer::Pods(labelled("app", "web"));
    let port = |port| Some(vec![TierPort::Range(Protocol::Tcp, port, port)]);
    let admin = vec![
        says(Action::Pass, web(), port(80)),
        says(Action::Deny, web(), port(81)),
        says(Action::Accept, web(), port(82)),
    ];
    tier(&mut cluster, "guard", Tier::Admin, admin, Vec::new());
    tier(&mut cluster, "floor", Tier::Baseline, vec![says(Action::Deny, web(), None)], Vec::new());
    let plan = planned(&cluster, "n1");
    assert_eq!(decided(&plan, WEB, 80), (false, rule("ClusterNetworkPolicy floor", "ingress[0]")));
    assert_eq!(decided(&plan, WEB, 81), (false, rule("ClusterNetworkPolicy guard", "ingress[1]")));
    assert_eq!(decided(&plan, WEB, 82), (true, rule("ClusterNetworkPolicy guard", "ingress[2]")));
    assert_eq!(decided(&plan, WORLD, 80), (true, None));

    policy(&mut cluster, "a/open", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}));
    let plan = planned(&cluster, "n1");
    assert_eq!(decided(&plan, WEB, 80), (true, rule("a/open", "ingress[0]")));
    assert_eq!(decided(&plan, WEB, 81), (false, rule("ClusterNetworkPolicy guard", "ingress[1]")));
    assert_eq!(decided(&plan, WEB, 83), (false, None));
    assert_eq!(decided(&plan, WORLD, 83), (false, None));
}

#[test]
fn a_pod_is_judged_only_in_directions_that_rules_are_about() {
    let mut cluster = shop();
    tier(&mut cluster, "out", Tier::Admin, Vec::new(), vec![says(Action::Deny, everybody(), None)]);
    let plan = planned(&cluster, "n1");
    assert_eq!(plan.rows.v4.endpoints[&v4(WEB)].isolated, EGRESS);
    assert!(plan.rows.v4.policy.keys().all(|key| key.direction == EGRESS));
    assert_eq!(allowed_by(&plan, WEB, EGRESS, WORLD, (TCP, 80)), None);
}

#[test]
fn a_pod_that_only_cluster_policies_select_has_a_row_that_allows_what_nothing_denies() {
    let mut cluster = shop();
    let deny = says(Action::Deny, TierPeer::Pods(labelled("app", "web")), None);
    tier(&mut cluster, "in", Tier::Admin, vec![deny], Vec::new());
    let rows = planned(&cluster, "n1").rows.v4;
    let any = rows.policy.iter().filter(|(key, _)| key.identity == Identity::ANY.0);
    let any: Vec<_> = any.map(|(key, row)| (key.bits, *row)).collect();
    assert_eq!(any, [(PolicyKey::FIXED_BITS, PolicyRow::allow(dataplane::tables::RuleId(0)))]);
}

#[test]
fn nodes_are_matched_by_their_labels_and_so_is_the_own_node() {
    let mut cluster = shop();
    let selector = serde_json::from_value(json!({"matchLabels": {"role": "edge"}})).expect("a selector");
    let egress = vec![says(Action::Deny, TierPeer::Nodes(selector), None)];
    tier(&mut cluster, "edge", Tier::Admin, Vec::new(), egress);
    let (one, two) = (planned(&cluster, "n1"), planned(&cluster, "n2"));
    let passes = |plan, pod, node| allowed_by(plan, pod, EGRESS, node, (TCP, 22)).is_some();
    assert!(passes(&one, WEB, "10.240.0.4") && !passes(&one, WEB, "10.240.0.5"));
    assert!(passes(&two, OTHER, "10.240.0.4") && !passes(&two, OTHER, "10.240.0.5"));
    assert_eq!(identity(&two.rows.v4, v4("10.240.0.5")), Identity::HOST);
}

#[test]
fn a_named_port_of_a_cluster_policy_is_of_any_protocol() {
    let mut cluster = shop();
    cluster.pods[1].ports =
        vec![port("dns", 53), ContainerPort { protocol: Protocol::Udp, ..port("dns", 5353) }];
    let dns = || Some(vec![TierPort::Named("dns".to_owned())]);
    let deny = || says(Action::Deny, TierPeer::Pods(PodPeer::default()), dns());
    tier(&mut cluster, "dns", Tier::Admin, vec![deny()], vec![deny()]);
    let plan = planned(&cluster, "n1");
    for (pod, direction, other) in [(DB, INGRESS, WEB), (WEB, EGRESS, DB)] {
        let passes = |target| allowed_by(&plan, pod, direction, other, target).is_some();
        let ports = [(TCP, 53), (UDP, 5353), (TCP, 5353), (UDP, 53)];
        assert_eq!(ports.map(passes), [false, false, true, true], "{pod}");
    }
}

#[test]
fn networks_hold_pods_even_where_blocks_of_network_policies_are_about_the_outside() {
    let mut cluster = shop();
    cluster.settings.policies.ip_blocks = IpBlocks::Outside;
    let all = json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]);
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": all}]});
    policy(&mut cluster, "a/out", spec);
    let plan = planned(&cluster, "n1");
    let passes = |plan: &NodePlan, other| allowed_by(plan, WEB, EGRESS, other, (TCP, 80)).is_some();
    assert!(passes(&plan, WORLD) && passes(&plan, "10.240.0.5") && !passes(&plan, OTHER));

    let egress = vec![says(Action::Accept, everybody(), None)];
    tier(&mut cluster, "all", Tier::Admin, Vec::new(), egress);
    let plan = planned(&cluster, "n1");
    assert!(passes(&plan, WORLD) && passes(&plan, OTHER));
}

#[test]
fn a_rule_without_peers_matches_nobody() {
    let mut cluster = shop();
    let nobody = TierRule { name: String::new(), action: Action::Deny, peers: Vec::new(), ports: None };
    tier(&mut cluster, "none", Tier::Admin, vec![nobody], Vec::new());
    assert_eq!(decided(&planned(&cluster, "n1"), WEB, 80), (true, None));
}

#[test]
fn pods_are_audited_by_their_namespace() {
    let mut cluster = shop();
    cluster.audited.insert("b".to_owned());
    let flags = |cluster: &Cluster, node, pod| planned(cluster, node).rows.v4.endpoints[&v4(pod)].flags;
    assert_eq!((flags(&cluster, "n1", WEB), flags(&cluster, "n2", OTHER)), (0, Endpoint::AUDIT));
    cluster.settings.policies.audit = true;
    assert_eq!(flags(&cluster, "n1", WEB), Endpoint::AUDIT);
}

#[test]
fn cluster_policies_are_named_where_no_network_policy_isolates() {
    let mut cluster = shop();
    let all = || vec![says(Action::Deny, TierPeer::Pods(PodPeer::default()), None)];
    tier(&mut cluster, "guard", Tier::Admin, all(), Vec::new());
    policy(&mut cluster, "a/in", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    let plan = Plan::of(&cluster).expect("it can be planned");
    assert_eq!(plan.isolating("a/db", INGRESS), ["a/in"]);
    assert_eq!(plan.isolating("a/web", INGRESS), ["ClusterNetworkPolicy guard"]);
    assert!(plan.isolating("a/web", EGRESS).is_empty());
}
