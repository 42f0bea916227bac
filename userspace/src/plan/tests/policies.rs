//! Identities and policy rows.

use super::super::Plan;
use super::*;

/// web and db on n1, web2 of the other team on n2.
fn shop() -> Cluster {
    let mut cluster = cluster(2);
    pod(&mut cluster, "a/web", ("n1", "10.244.0.5"), &["app=web"]);
    pod(&mut cluster, "a/db", ("n1", "10.244.0.6"), &["app=db"]);
    pod(&mut cluster, "b/web", ("n2", "10.244.1.5"), &["app=web"]);
    cluster
}
const WEB: &str = "10.244.0.5";
const DB: &str = "10.244.0.6";
const OTHER: &str = "10.244.1.5";
const WORLD: &str = "203.0.113.7";

fn rule(policy: &str, rule: &str) -> RuleName {
    RuleName { policy: policy.to_owned(), rule: rule.to_owned() }
}

#[test]
fn without_policies_there_are_three_identities_and_no_rows() {
    let rows = planned(&shop(), "n1").rows.v4;
    assert!(rows.policy.is_empty());
    let identities: Vec<_> = rows.identities.into_iter().collect();
    let expected = [
        (prefix("0.0.0.0/0"), Identity::WORLD),
        (prefix("10.240.0.4/32"), Identity::HOST),
        (prefix("10.240.0.5/32"), Identity::REMOTE_NODE),
    ];
    assert_eq!(identities, expected);
}

#[test]
fn a_pod_is_isolated_where_policies_select_it_and_only_there() {
    let mut cluster = shop();
    policy(&mut cluster, "a/deny", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    policy(&mut cluster, "b/quiet", json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    let (one, two) = (planned(&cluster, "n1"), planned(&cluster, "n2"));
    let isolated = |plan: &NodePlan, pod| plan.rows.v4.endpoints[&v4(pod)].isolated;
    assert_eq!((isolated(&one, WEB), isolated(&one, DB), isolated(&two, OTHER)), (0, INGRESS, EGRESS));
    assert_eq!(allowed_by(&one, DB, INGRESS, WEB, (TCP, 80)), None);
    assert!(allowed_by(&one, DB, EGRESS, WEB, (TCP, 80)).is_some());
    assert_eq!(allowed_by(&two, OTHER, EGRESS, WORLD, (TCP, 80)), None);
}

#[test]
fn a_rule_lets_its_peers_through_to_its_ports() {
    let mut cluster = shop();
    let from_web = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": from_web, "ports": [{"port": 5432}]}]});
    policy(&mut cluster, "a/db", spec);
    let plan = planned(&cluster, "n1");
    assert_eq!(allowed_by(&plan, DB, INGRESS, WEB, (TCP, 5432)), Some(&rule("a/db", "ingress[0]")));
    for (other, target) in
        [(WEB, (TCP, 5433)), (WEB, (UDP, 5432)), (OTHER, (TCP, 5432)), (WORLD, (TCP, 5432))]
    {
        assert_eq!(allowed_by(&plan, DB, INGRESS, other, target), None, "{other} {target:?}");
    }
}

#[test]
fn pods_that_no_policy_tells_apart_are_one_identity() {
    let mut cluster = shop();
    for index in 10..20 {
        pod(&mut cluster, &format!("a/web-{index}"), ("n2", &format!("10.244.1.{index}")), &["app=web"]);
    }
    let spec =
        json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]});
    policy(&mut cluster, "a/p", spec);
    let (one, two) = (planned(&cluster, "n1"), planned(&cluster, "n2"));
    let web = identity(&one.rows.v4, v4(WEB));
    assert!(web >= Identity::FIRST);
    assert!((10..20).all(|index| identity(&one.rows.v4, v4(&format!("10.244.1.{index}"))) == web));
    assert_eq!([DB, OTHER, WORLD].map(|other| identity(&one.rows.v4, v4(other))), [Identity::WORLD; 3]);
    assert_eq!(one.rows.v4.policy.len(), 1);
    assert_eq!(identity(&two.rows.v4, v4(WEB)), web, "the same on every node");
}

#[test]
fn an_ip_block_matches_pods_and_nodes_as_it_matches_the_world() {
    let mut cluster = shop();
    let block = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/24", "10.240.0.5/32"]}});
    policy(&mut cluster, "a/p", json!({"podSelector": {}, "ingress": [{"from": [block]}]}));
    let plan = planned(&cluster, "n1");
    for (other, allowed) in
        [(OTHER, true), (WORLD, true), (DB, false), ("10.240.0.5", false), ("10.240.0.6", true)]
    {
        assert_eq!(allowed_by(&plan, WEB, INGRESS, other, (TCP, 80)).is_some(), allowed, "{other}");
    }
    assert_eq!(identity(&plan.rows.v4, v4("10.240.0.5")), Identity::REMOTE_NODE);
}

#[test]
fn a_block_that_holds_the_own_node_s_address_means_the_own_node() {
    let mut cluster = shop();
    let spec = |range: &str| json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": range}}]}]});
    policy(&mut cluster, "a/p", spec("10.240.0.4/32"));
    let (one, two) = (planned(&cluster, "n1"), planned(&cluster, "n2"));
    assert_eq!(identity(&one.rows.v4, v4("10.240.0.4")), Identity::HOST);
    assert!(identity(&two.rows.v4, v4("10.240.0.4")) >= Identity::FIRST);
    assert!(allowed_by(&one, WEB, EGRESS, "10.240.0.4", (TCP, 10_250)).is_some());
    assert_eq!(allowed_by(&one, WEB, EGRESS, "10.240.0.5", (TCP, 10_250)), None);
}

#[test]
fn selectors_never_match_pods_in_their_node_s_network() {
    let mut cluster = shop();
    pod(&mut cluster, "a/agent", ("n2", "10.240.0.5"), &["app=web"]);
    cluster.pods[3].host_network = true;
    policy(
        &mut cluster,
        "a/p",
        json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}),
    );
    let plan = planned(&cluster, "n1");
    assert!(allowed_by(&plan, WEB, INGRESS, OTHER, (TCP, 80)).is_some());
    assert_eq!(allowed_by(&plan, WEB, INGRESS, "10.240.0.5", (TCP, 80)), None);
}

#[test]
fn an_ipv6_block_matches_nobody_and_is_not_taken_for_everybody() {
    let mut cluster = shop();
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "::/0"}}]}]});
    policy(&mut cluster, "a/p", spec);
    assert_eq!(allowed_by(&planned(&cluster, "n1"), WEB, INGRESS, OTHER, (TCP, 80)), None);
}

#[test]
fn a_named_port_of_an_ingress_rule_is_the_selected_pod_s() {
    let mut cluster = shop();
    cluster.pods[0].ports = vec![port("http", 8080)];
    cluster.pods[1].ports = vec![port("http", 9090), port("admin", 1)];
    policy(&mut cluster, "a/p", json!({"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]}));
    let plan = planned(&cluster, "n1");
    let allowed = |pod, number| allowed_by(&plan, pod, INGRESS, WORLD, (TCP, number)).is_some();
    assert_eq!([(WEB, 8080), (DB, 9090)].map(|(pod, number)| allowed(pod, number)), [true, true]);
    assert_eq!([(WEB, 9090), (DB, 8080), (DB, 1)].map(|(pod, number)| allowed(pod, number)), [false; 3]);
}

#[test]
fn a_named_port_of_an_egress_rule_is_each_target_s_own() {
    let mut cluster = shop();
    cluster.pods[1].ports = vec![port("http", 9090)];
    cluster.pods[2].ports = vec![port("http", 8080), port("other", 7)];
    let to_anybody = json!({"ports": [{"port": "http"}]});
    policy(
        &mut cluster,
        "a/p",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "egress": [to_anybody]}),
    );
    let plan = planned(&cluster, "n1");
    let allowed = |pod, number| allowed_by(&plan, WEB, EGRESS, pod, (TCP, number)).is_some();
    assert_eq!([(DB, 9090), (OTHER, 8080)].map(|(pod, number)| allowed(pod, number)), [true, true]);
    let refused = [(DB, 8080), (OTHER, 9090), (OTHER, 7), (WORLD, 8080)];
    assert_eq!(refused.map(|(pod, number)| allowed(pod, number)), [false; 4]);
}

#[test]
fn a_range_of_ports_is_allowed_from_its_first_to_its_last() {
    let mut cluster = shop();
    let ports = json!([{"port": 80, "endPort": 90}, {"protocol": "UDP"}]);
    policy(&mut cluster, "a/p", json!({"podSelector": {}, "ingress": [{"ports": ports}]}));
    let plan = planned(&cluster, "n1");
    let allowed = |target| allowed_by(&plan, WEB, INGRESS, WORLD, target).is_some();
    assert_eq!([79, 80, 85, 90, 91].map(|number| allowed((TCP, number))), [false, true, true, true, false]);
    assert!(allowed((UDP, 1)) && allowed((UDP, 65_535)) && !allowed((1, 0)));
}

#[test]
fn pods_with_the_same_rules_share_them() {
    let mut cluster = shop();
    policy(&mut cluster, "a/deny", json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    policy(&mut cluster, "a/allow", json!({"podSelector": {}, "ingress": [{}]}));
    let plan = planned(&cluster, "n1");
    let rules = |pod| plan.rows.v4.endpoints[&v4(pod)].rules;
    assert_eq!(rules(WEB), rules(DB));
    assert_eq!(plan.rows.v4.policy.len(), 1);
}

#[test]
fn the_first_policy_of_several_gets_the_credit() {
    let mut cluster = shop();
    let web = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    policy(&mut cluster, "a/one", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}));
    policy(&mut cluster, "a/two", json!({"podSelector": {}, "ingress": [{"from": web}, {}]}));
    let plan = planned(&cluster, "n1");
    let credit = |other, number| allowed_by(&plan, DB, INGRESS, other, (TCP, number)).cloned();
    assert_eq!(credit(WEB, 80), Some(rule("a/one", "ingress[0]")));
    assert_eq!(credit(WEB, 81), Some(rule("a/two", "ingress[0]")));
    assert_eq!(credit(OTHER, 81), Some(rule("a/two", "ingress[1]")));
}

#[test]
fn the_policies_that_isolate_a_pod_can_be_named() {
    let mut cluster = shop();
    policy(&mut cluster, "a/in", json!({"podSelector": {}}));
    policy(&mut cluster, "a/both", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    let plan = Plan::of(&cluster).expect("it can be planned");
    assert_eq!(plan.isolating("a/web", INGRESS), ["a/in", "a/both"]);
    assert_eq!(plan.isolating("a/web", EGRESS), ["a/both"]);
    assert!(plan.isolating("b/web", INGRESS).is_empty());
}

#[test]
fn identities_are_the_same_whoever_plans_and_whatever_was_planned_before() {
    let mut cluster = cluster(2);
    for (number, app) in (2..).zip(["web", "api", "db"]) {
        let address = format!("10.244.0.{number}");
        pod(&mut cluster, &format!("a/{app}"), ("n1", &address), &[&format!("app={app}")]);
    }
    let from =
        |label: &str| json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": label}}}]}]});
    policy(&mut cluster, "a/first", from("web"));
    policy(&mut cluster, "a/second", from("api"));
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    // Policies come and go, and a pod changes its label and changes back.
    for step in 0..8 {
        match step {
            0 => cluster.policies.swap(0, 1),
            1 => policy(&mut cluster, "b/third", json!({"ingress": [{"from": [{"namespaceSelector": {}}]}]})),
            2 => drop(cluster.policies.remove(0)),
            3 => policy(&mut cluster, "a/fourth", from("db")),
            4 | 6 => cluster.pods[0].labels.insert("app".to_owned(), "api".to_owned()).map_or((), drop),
            5 | 7 => cluster.pods[0].labels.insert("app".to_owned(), "web".to_owned()).map_or((), drop),
            _ => unreachable!("there are eight steps"),
        }
        plan = plan.after(&cluster).expect("it can be planned");
        let rows = |plan: &Plan| plan.node("n2", &links(&cluster)).expect("n2 is there").rows.v4.identities;
        let anew = Plan::of(&cluster).expect("it can be planned");
        assert_eq!(rows(&plan), rows(&anew), "step {step}");
        assert!(rows(&anew).values().any(|identity| *identity >= Identity::FIRST), "step {step}");
    }
}
