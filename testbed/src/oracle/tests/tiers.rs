//! Policies of the whole cluster, as their specification says.

use super::*;
use Protocol::{Sctp, Tcp, Udp};
use userspace::model::Objects;

/// A ClusterNetworkPolicy of this name for every pod, or as `spec` says.
fn cnp(name: &str, tier: &str, priority: u32, spec: &str) -> String {
    let subject = if spec.contains("subject:") { "" } else { "subject: {namespaces: {}}, " };
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{tier: {tier}, priority: {priority}, {subject}{spec}}}\n"
    )
}

/// An ingress rule for peers in flow style.
fn from(action: &str, peers: &str) -> String {
    format!("{{action: {action}, from: [{peers}]}}")
}

/// An egress rule for peers in flow style.
fn to(action: &str, peers: &str) -> String {
    format!("{{action: {action}, to: [{peers}]}}")
}

fn ingress(rules: &[String]) -> String {
    format!("ingress: [{}]", rules.join(", "))
}

fn egress(rules: &[String]) -> String {
    format!("egress: [{}]", rules.join(", "))
}

const ALL: &str = "{namespaces: {}}";
const BANK: &str = "{namespaces: {matchLabels: {team: money}}}";
const WEB: &str = "subject: {pods: {namespaceSelector: {matchLabels: {team: retail}}, podSelector: {matchLabels: {app: web}}}}, ";

/// The stage under NetworkPolicies and policies of the whole cluster.
fn under(policies: &[&str], of_cluster: &[String]) -> Cluster {
    let objects = Objects::parse("policies.yaml", &of_cluster.concat()).expect("they are sound");
    let cluster_policies = objects.resolve(None).expect("a cluster").cluster_policies;
    Cluster { cluster_policies, ..cluster(policies) }
}

#[track_caller]
fn judge(cluster: &Cluster, flows: &[(&str, &str, &str)]) {
    for (from, to, expected) in flows {
        assert_eq!(word(cluster, from, to, 80, Tcp), *expected, "{from} -> {to}");
    }
}

#[test]
fn a_rule_is_about_the_pods_of_its_subject_and_the_others_fare_as_before() {
    let cluster = under(&[], &[cnp("a", "Admin", 5, &format!("{WEB}{}", ingress(&[from("Deny", ALL)])))]);
    judge(
        &cluster,
        &[
            ("bank/till", "shop/web", "deny"),
            ("shop/api", "shop/web", "deny"),
            ("bank/till", "shop/api", "allow"),
            ("shop/web", "bank/till", "allow"),
            // Hosts outside are not pods.
            ("ext:world", "shop/web", "allow"),
        ],
    );
}

#[test]
fn a_policy_without_rules_of_a_direction_does_not_affect_it() {
    let cluster = under(&[], &[cnp("a", "Admin", 5, ""), cnp("b", "Baseline", 5, "ingress: []")]);
    judge(&cluster, &[("bank/till", "shop/web", "allow"), ("ext:world", "shop/web", "allow")]);
}

#[test]
fn the_first_rule_that_matches_decides() {
    for (rules, expected) in [
        ([from("Accept", BANK), from("Deny", ALL)], ["allow", "deny"]),
        ([from("Deny", ALL), from("Accept", BANK)], ["deny", "deny"]),
    ] {
        let cluster = under(&[], &[cnp("a", "Admin", 5, &ingress(&rules))]);
        let [bank, api] = expected;
        judge(&cluster, &[("bank/till", "shop/web", bank), ("shop/api", "shop/web", api)]);
    }
}

#[test]
fn the_lower_priority_is_asked_first() {
    let deny = |priority| cnp("deny", "Admin", priority, &ingress(&[from("Deny", ALL)]));
    let accept = |priority| cnp("accept", "Admin", priority, &ingress(&[from("Accept", BANK)]));
    for (policies, expected) in [
        ([deny(0), accept(1000)], "deny"),
        ([deny(1000), accept(0)], "allow"),
        ([accept(999), deny(1000)], "allow"),
        // Of equals, the first of the input.
        ([deny(7), accept(7)], "deny"),
        ([accept(7), deny(7)], "allow"),
    ] {
        judge(&under(&[], &policies), &[("bank/till", "shop/web", expected)]);
    }
}

#[test]
fn an_admins_accept_opens_what_network_policies_close() {
    let closed = policy("{podSelector: {}, policyTypes: [Ingress, Egress]}");
    let cluster = under(&[&closed], &[cnp("a", "Admin", 5, &ingress(&[from("Accept", BANK)]))]);
    judge(
        &cluster,
        &[
            ("bank/till", "shop/web", "allow"),
            ("ext:world", "shop/web", "deny"),
            // At the other end egress is closed still.
            ("shop/api", "shop/web", "deny"),
            ("shop/web", "bank/till", "deny"),
        ],
    );
}

#[test]
fn an_admins_deny_closes_what_network_policies_open() {
    let open = policy("{podSelector: {}, ingress: [{}]}");
    let cluster = under(&[&open], &[cnp("a", "Admin", 5, &ingress(&[from("Deny", BANK)]))]);
    judge(&cluster, &[("bank/till", "shop/web", "deny"), ("shop/api", "shop/web", "allow")]);
}

#[test]
fn what_an_admin_passes_is_for_network_policies_and_skips_the_rest_of_the_tier() {
    let tier = [
        cnp("first", "Admin", 1, &ingress(&[from("Pass", BANK), from("Deny", BANK)])),
        cnp("later", "Admin", 2, &ingress(&[from("Deny", ALL)])),
    ];
    judge(&under(&[], &tier), &[("bank/till", "shop/web", "allow"), ("shop/api", "shop/web", "deny")]);
    let closed = policy("{podSelector: {matchLabels: {app: web}}}");
    judge(
        &under(&[&closed], &tier),
        &[("bank/till", "shop/web", "deny"), ("bank/till", "shop/api", "allow")],
    );
}

#[test]
fn a_baseline_is_only_for_pods_that_no_network_policy_isolates() {
    let baseline = [cnp("base", "Baseline", 5, &ingress(&[from("Deny", ALL)]))];
    judge(&under(&[], &baseline), &[("bank/till", "shop/web", "deny"), ("ext:world", "shop/web", "allow")]);
    let open = policy("{podSelector: {matchLabels: {app: web}}, ingress: [{}]}");
    judge(
        &under(&[&open], &baseline),
        &[("bank/till", "shop/web", "allow"), ("bank/till", "shop/api", "deny")],
    );
    // Isolated for egress alone, it is none of those for ingress.
    let out = policy("{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{}]}");
    judge(&under(&[&out], &baseline), &[("bank/till", "shop/web", "deny")]);
    // An Accept of a baseline opens nothing that they close.
    let closed = policy("{podSelector: {}}");
    let accept = [cnp("base", "Baseline", 5, &ingress(&[from("Accept", ALL)]))];
    judge(&under(&[&closed], &accept), &[("bank/till", "shop/web", "deny")]);
}

#[test]
fn what_a_baseline_passes_is_allowed_as_all_is_that_nobody_denies() {
    let baseline = [cnp("base", "Baseline", 5, &ingress(&[from("Pass", BANK), from("Deny", ALL)]))];
    judge(&under(&[], &baseline), &[("bank/till", "shop/web", "allow"), ("shop/api", "shop/web", "deny")]);
}

#[test]
fn an_admin_decides_before_a_baseline_whatever_their_priorities() {
    let tiers = [
        cnp("base", "Baseline", 0, &ingress(&[from("Deny", ALL)])),
        cnp("admin", "Admin", 1000, &ingress(&[from("Accept", BANK)])),
    ];
    judge(&under(&[], &tiers), &[("bank/till", "shop/web", "allow"), ("shop/api", "shop/web", "deny")]);
}

#[test]
fn both_ends_are_judged() {
    let tiers = [
        cnp("in", "Admin", 1, &format!("{WEB}{}", ingress(&[from("Accept", ALL)]))),
        cnp("out", "Admin", 2, &egress(&[to("Deny", "{pods: {podSelector: {matchLabels: {app: web}}}}")])),
    ];
    judge(
        &under(&[], &tiers),
        &[
            ("shop/api", "shop/web", "deny"),
            ("shop/api", "bank/till", "deny"),
            ("shop/web", "shop/api", "allow"),
            ("ext:world", "shop/web", "allow"),
        ],
    );
}

#[test]
fn networks_match_whoever_has_an_address_inside_pods_too() {
    for (network, pod, node, world) in [
        ("10.244.2.2/32", "deny", "allow", "allow"),
        ("10.240.0.0/16", "allow", "deny", "allow"),
        ("203.0.113.0/24", "allow", "allow", "deny"),
        ("0.0.0.0/0", "deny", "deny", "deny"),
        ("\"::/0\"", "allow", "allow", "allow"),
    ] {
        let rule = to("Deny", &format!("{{networks: [192.0.2.0/24, {network}]}}"));
        let mut cluster = under(&[], &[cnp("a", "Admin", 5, &egress(&[rule]))]);
        // What a NetworkPolicy's ipBlock is about does not change what these are.
        cluster.settings.policies.ip_blocks = userspace::model::IpBlocks::Outside;
        judge(
            &cluster,
            &[
                ("shop/web", "bank/till", pod),
                ("shop/web", "node:n2", node),
                ("shop/web", "ext:world", world),
            ],
        );
    }
}

#[test]
fn nodes_match_by_their_labels_with_all_host_network_pods_on_them() {
    let deny = |nodes: &str| cnp("a", "Admin", 5, &egress(&[to("Deny", &format!("{{nodes: {nodes}}}"))]));
    let mut cluster = under(&[], &[deny("{matchLabels: {pool: one}}")]);
    cluster.nodes[0].labels = labels(&[("pool", "one")]);
    judge(
        &cluster,
        &[
            ("bank/till", "node:n1", "deny"),
            ("bank/till", "shop/agent", "deny"),
            ("bank/till", "node:n2", "allow"),
            ("bank/till", "shop/web", "allow"),
            ("shop/web", "ext:world", "allow"),
            // A pod's own node is a node.
            ("shop/web", "node:n1", "deny"),
            ("shop/web", "shop/agent", "deny"),
        ],
    );
    // An empty selector is every node.
    judge(&under(&[], &[deny("{}")]), &[("shop/web", "node:n2", "deny"), ("shop/web", "bank/till", "allow")]);
}

#[test]
fn a_pods_own_node_always_reaches_it_and_a_pod_itself() {
    let tiers = [
        cnp("in", "Admin", 1, &ingress(&[from("Deny", ALL)])),
        cnp("out", "Admin", 1, &egress(&[to("Deny", "{networks: [0.0.0.0/0]}")])),
    ];
    judge(
        &under(&[], &tiers),
        &[
            ("node:n1", "shop/web", "allow"),
            ("shop/agent", "shop/web", "allow"),
            ("shop/web", "shop/web", "allow"),
            ("shop/web", "node:n1", "deny"),
        ],
    );
}

#[test]
fn host_network_pods_are_no_subject_and_no_pod_peer() {
    let tiers =
        [cnp("a", "Admin", 1, &format!("{}, {}", ingress(&[from("Deny", ALL)]), egress(&[to("Deny", ALL)])))];
    judge(
        &under(&[], &tiers),
        &[
            ("shop/agent", "bank/till", "allow"),
            ("bank/till", "shop/agent", "allow"),
            ("shop/agent", "ext:world", "allow"),
            ("shop/api", "shop/web", "deny"),
        ],
    );
}

#[test]
fn pods_as_peers_must_match_both_of_their_selectors() {
    let peer =
        "{pods: {namespaceSelector: {matchLabels: {team: money}}, podSelector: {matchLabels: {app: web}}}}";
    let cluster = under(&[], &[cnp("a", "Admin", 1, &ingress(&[from("Deny", peer)]))]);
    judge(
        &cluster,
        &[
            ("bank/till", "shop/api", "deny"),
            ("shop/web", "shop/api", "allow"),
            ("shop/api", "shop/web", "allow"),
        ],
    );
}

#[test]
fn ports_are_numbers_ranges_and_names_of_the_target() {
    let rule = |ports: &str| {
        let rule = format!("{{action: Deny, from: [{ALL}], protocols: [{ports}]}}");
        under(&[], &[cnp("a", "Admin", 1, &ingress(&[rule]))])
    };
    for (ports, expected) in [
        ("{tcp: {destinationPort: {number: 80}}}", ["deny", "allow", "allow", "allow"]),
        ("{udp: {destinationPort: {range: {start: 1, end: 80}}}}", ["allow", "allow", "deny", "allow"]),
        ("{sctp: {destinationPort: {range: {start: 80, end: 81}}}}", ["allow", "allow", "allow", "deny"]),
        ("{tcp: {destinationPort: {range: {start: 80, end: 81}}}}", ["deny", "deny", "allow", "allow"]),
        ("{destinationNamedPort: http}", ["deny", "allow", "allow", "allow"]),
        ("{destinationNamedPort: dns}", ["allow", "allow", "allow", "allow"]),
        ("{destinationNamedPort: none}", ["allow", "allow", "allow", "allow"]),
    ] {
        let cluster = rule(ports);
        let flows = [(80, Tcp), (81, Tcp), (80, Udp), (80, Sctp)];
        for ((port, protocol), expected) in flows.into_iter().zip(expected) {
            let found = word(&cluster, "bank/till", "shop/web", port, protocol);
            assert_eq!(found, expected, "{port}/{protocol} under {ports}");
        }
    }
}

#[test]
fn a_named_port_is_of_any_protocol_and_its_own_number_on_every_target() {
    let rule = format!("{{action: Deny, to: [{ALL}], protocols: [{{destinationNamedPort: dns}}]}}");
    let mut cluster = under(&[], &[cnp("a", "Admin", 1, &egress(&[rule]))]);
    cluster.pods[3].ports = vec![container_port("dns", 5353, Udp), container_port("dns", 5300, Tcp)];
    for (to, port, protocol, expected) in [
        ("shop/web", 53, Udp, "deny"),
        ("shop/web", 53, Tcp, "allow"),
        ("bank/till", 53, Udp, "allow"),
        ("bank/till", 5353, Udp, "deny"),
        ("bank/till", 5300, Tcp, "deny"),
        ("bank/till", 5353, Tcp, "allow"),
    ] {
        assert_eq!(word(&cluster, "shop/api", to, port, protocol), expected, "{to}:{port}/{protocol}");
    }
}

#[test]
fn a_rule_of_names_in_the_dns_accepts_nothing() {
    let tiers = [cnp(
        "a",
        "Admin",
        1,
        &egress(&[to("Accept", "{domainNames: [example.com]}"), to("Deny", "{networks: [0.0.0.0/0]}")]),
    )];
    judge(&under(&[], &tiers), &[("shop/web", "ext:world", "deny")]);
}

#[test]
fn the_older_kinds_say_the_same_in_other_words() {
    let older = |kind: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}, subject: {{namespaces: {{}}}}}}\n"
        )
    };
    let tiers = [
        older("BaselineAdminNetworkPolicy", "default", &ingress(&[from("Deny", ALL)])),
        older("AdminNetworkPolicy", "bank", &format!("priority: 10, {}", ingress(&[from("Allow", BANK)]))),
    ];
    let cluster = under(&[], &tiers);
    judge(&cluster, &[("bank/till", "shop/web", "allow"), ("shop/api", "shop/web", "deny")]);
}

#[test]
fn a_service_is_judged_by_what_stands_behind_it() {
    let rule = |network: &str| egress(&[to("Deny", &format!("{{networks: [{network}]}}"))]);
    for (network, expected) in [("10.96.0.0/16", "allow"), ("10.244.1.3/32", "deny")] {
        let cluster_policies = under(&[], &[cnp("a", "Admin", 1, &rule(network))]).cluster_policies;
        let cluster = Cluster { cluster_policies, ..with_service(&[], &["10.244.1.3"]) };
        assert_eq!(word(&cluster, "shop/web", "svc:shop/api", 8080, Tcp), expected, "{network}");
    }
}

#[test]
fn a_denial_names_the_policy_and_the_rule() {
    let named =
        "{name: no-money, action: Deny, from: [{namespaces: {matchLabels: {team: money}}}]}".to_owned();
    let tiers = [cnp("base", "Baseline", 1, &ingress(&[from("Accept", WEB_POD), named]))];
    let mut cluster = under(&[], &tiers);
    let flow = |cluster: &Cluster| {
        Oracle::of(cluster).expect(&who("bank/till"), &who("shop/api"), 80, Tcp).to_string()
    };
    let cause = "ingress of shop/api: ClusterNetworkPolicy base, rule 1 (no-money)";
    assert_eq!(flow(&cluster), format!("deny: {cause}"));
    cluster.audited.insert("shop".to_owned());
    assert_eq!(flow(&cluster), format!("allow, audited: {cause}"));
}

const WEB_POD: &str =
    "{pods: {namespaceSelector: {matchLabels: {team: retail}}, podSelector: {matchLabels: {app: web}}}}";
