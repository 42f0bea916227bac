//! NetworkPolicy.

use super::*;
use userspace::model::IpBlocks;

/// Every `(from, to)`, at 80/tcp, under one policy in `shop`, comes out as it says.
#[track_caller]
fn judge(spec: &str, flows: &[(&str, &str, &str)]) {
    let cluster = cluster(&[&policy(spec)]);
    for (from, to, expected) in flows {
        assert_eq!(word(&cluster, from, to, 80, Protocol::Tcp), *expected, "{from} -> {to} under {spec}");
    }
}

/// The same flow, `bank/till` to `shop/web`, at several ports.
#[track_caller]
fn judge_ports(spec: &str, ports: &[(u16, Protocol, &str)]) {
    let cluster = cluster(&[&policy(spec)]);
    for (port, protocol, expected) in ports {
        assert_eq!(
            word(&cluster, "bank/till", "shop/web", *port, *protocol),
            *expected,
            "{port}/{protocol} under {spec}"
        );
    }
}

use Protocol::{Sctp, Tcp, Udp};

#[test]
fn without_policies_everybody_reaches_everybody() {
    let cluster = cluster(&[]);
    let ends = ["shop/web", "shop/api", "shop/agent", "bank/till", "node:n1", "node:n2", "ext:world"];
    for from in ends {
        for to in ends {
            assert_eq!(word(&cluster, from, to, 80, Tcp), "allow", "{from} -> {to}");
        }
    }
}

#[test]
fn a_policy_without_rules_isolates_the_pods_it_selects() {
    judge(
        "{podSelector: {matchLabels: {app: web}}}",
        &[
            ("bank/till", "shop/web", "deny"),
            ("bank/till", "shop/api", "allow"),
            ("shop/web", "bank/till", "allow"),
        ],
    );
}

#[test]
fn a_policy_selects_only_pods_of_its_own_namespace() {
    judge("{podSelector: {matchLabels: {app: web}}}", &[("shop/web", "bank/till", "allow")]);
}

#[test]
fn an_empty_or_missing_pod_selector_selects_the_whole_namespace() {
    for spec in ["{podSelector: {}}", "{policyTypes: [Ingress]}"] {
        judge(
            spec,
            &[
                ("bank/till", "shop/web", "deny"),
                ("bank/till", "shop/api", "deny"),
                ("shop/api", "bank/till", "allow"),
            ],
        );
    }
}

#[test]
fn without_policy_types_ingress_is_isolated_and_egress_only_if_it_has_rules() {
    judge("{podSelector: {}}", &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "allow")]);
    judge(
        "{podSelector: {}, egress: []}",
        &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "allow")],
    );
    judge(
        "{podSelector: {}, policyTypes: [], egress: [{to: [{podSelector: {}}]}]}",
        &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "deny")],
    );
}

#[test]
fn policy_types_decide_even_against_the_rules_that_are_there() {
    judge(
        "{podSelector: {}, policyTypes: [Egress], ingress: []}",
        &[("bank/till", "shop/web", "allow"), ("shop/web", "bank/till", "deny")],
    );
    judge(
        "{podSelector: {}, policyTypes: [Ingress], egress: [{to: [{podSelector: {}}]}]}",
        &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "allow")],
    );
    judge(
        "{podSelector: {}, policyTypes: [Ingress, Egress]}",
        &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "deny")],
    );
}

#[test]
fn an_empty_rule_allows_everything_and_an_empty_list_of_rules_nothing() {
    let from_all = [("bank/till", "shop/web"), ("ext:world", "shop/web"), ("node:n2", "shop/web")];
    for (rules, expected) in [("[{}]", "allow"), ("[{from: [], ports: []}]", "allow"), ("[]", "deny")] {
        let flows = from_all.map(|(from, to)| (from, to, expected));
        judge(&format!("{{podSelector: {{}}, ingress: {rules}}}"), &flows);
    }
}

#[test]
fn a_pod_selector_alone_means_the_policys_own_namespace() {
    judge(
        "{podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
        &[("shop/web", "shop/api", "allow"), ("bank/till", "shop/api", "deny")],
    );
}

#[test]
fn an_empty_pod_selector_as_peer_means_every_pod_of_the_own_namespace() {
    judge(
        "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
        &[
            ("shop/web", "shop/api", "allow"),
            ("bank/till", "shop/api", "deny"),
            ("ext:world", "shop/api", "deny"),
        ],
    );
}

#[test]
fn a_namespace_selector_alone_means_every_pod_of_those_namespaces() {
    judge(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: money}}}]}]}",
        &[
            ("bank/till", "shop/web", "allow"),
            ("shop/api", "shop/web", "deny"),
            ("ext:world", "shop/web", "deny"),
        ],
    );
    judge(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}",
        &[
            ("bank/till", "shop/web", "allow"),
            ("shop/api", "shop/web", "allow"),
            ("ext:world", "shop/web", "deny"),
        ],
    );
}

#[test]
fn both_selectors_in_one_peer_must_match_and_in_two_peers_either() {
    let namespace = "namespaceSelector: {matchLabels: {team: money}}";
    let pods = "podSelector: {matchLabels: {app: api}}";
    judge(
        &format!("{{podSelector: {{}}, ingress: [{{from: [{{{namespace}, {pods}}}]}}]}}"),
        &[("bank/till", "shop/web", "deny"), ("shop/api", "shop/web", "deny")],
    );
    judge(
        &format!("{{podSelector: {{}}, ingress: [{{from: [{{{namespace}}}, {{{pods}}}]}}]}}"),
        &[
            ("bank/till", "shop/web", "allow"),
            ("shop/api", "shop/web", "allow"),
            ("shop/web", "shop/api", "deny"),
        ],
    );
}

#[test]
fn expressions_of_a_selector_hold_as_their_operators_say() {
    let cases = [
        ("{key: app, operator: In, values: [web, other]}", ["allow", "deny"]),
        ("{key: app, operator: NotIn, values: [web]}", ["deny", "allow"]),
        // The key is missing on shop/api.
        ("{key: tier, operator: In, values: [front]}", ["allow", "deny"]),
        ("{key: tier, operator: NotIn, values: [front]}", ["deny", "allow"]),
        ("{key: tier, operator: NotIn, values: [back]}", ["allow", "allow"]),
        ("{key: tier, operator: Exists}", ["allow", "deny"]),
        ("{key: tier, operator: DoesNotExist}", ["deny", "allow"]),
    ];
    for (expression, [web, api]) in cases {
        let bank = policy(&format!(
            "{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{}}, podSelector: {{matchExpressions: [{expression}]}}}}]}}]}}"
        ))
        .replace("namespace: shop", "namespace: bank");
        let cluster = cluster(&[&bank]);
        assert_eq!(word(&cluster, "shop/web", "bank/till", 80, Tcp), web, "{expression}");
        assert_eq!(word(&cluster, "shop/api", "bank/till", 80, Tcp), api, "{expression}");
    }
}

#[test]
fn labels_and_expressions_of_one_selector_must_all_hold() {
    let selector = "{matchLabels: {app: web}, matchExpressions: [{key: tier, operator: Exists}, {key: x, operator: DoesNotExist}]}";
    judge(
        &format!(
            "{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{}}, podSelector: {selector}}}]}}]}}"
        ),
        &[("shop/web", "shop/api", "allow"), ("bank/till", "shop/api", "deny")],
    );
}

#[test]
fn namespaces_can_be_selected_by_the_label_that_is_their_name() {
    let selector =
        "{matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [bank]}]}";
    judge(
        &format!("{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {selector}}}]}}]}}"),
        &[("bank/till", "shop/web", "deny"), ("shop/api", "shop/web", "allow")],
    );
}

#[test]
fn an_ip_block_matches_pods_nodes_and_hosts_outside_by_address() {
    let flows = |[pod, node, outside]: [&'static str; 3]| {
        [("bank/till", "shop/web", pod), ("node:n2", "shop/web", node), ("ext:world", "shop/web", outside)]
    };
    for (cidr, expected) in [
        ("10.244.2.2/32", ["allow", "deny", "deny"]),
        ("10.240.0.0/16", ["deny", "allow", "deny"]),
        ("203.0.113.0/24", ["deny", "deny", "allow"]),
        ("0.0.0.0/0", ["allow", "allow", "allow"]),
    ] {
        judge(
            &format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}]}}"),
            &flows(expected),
        );
    }
}

#[test]
fn what_is_excepted_from_an_ip_block_is_not_matched_by_it() {
    let block = "{cidr: 0.0.0.0/0, except: [10.244.0.0/16, 203.0.113.7/32]}";
    let flows = [
        ("bank/till", "shop/web", "deny"),
        ("ext:world", "shop/web", "deny"),
        ("node:n2", "shop/web", "allow"),
    ];
    judge(&format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {block}}}]}}]}}"), &flows);
}

#[test]
fn an_exception_of_one_block_does_not_take_from_another_rule() {
    let rules = "[{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.2.0/24]}}]}, {from: [{namespaceSelector: {matchLabels: {team: money}}}]}]";
    judge(&format!("{{podSelector: {{}}, ingress: {rules}}}"), &[("bank/till", "shop/web", "allow")]);
}

#[test]
fn a_port_alone_is_tcp() {
    judge_ports(
        "{ingress: [{ports: [{port: 80}]}]}",
        &[(80, Tcp, "allow"), (80, Udp, "deny"), (81, Tcp, "deny")],
    );
}

#[test]
fn a_protocol_without_a_port_is_all_its_ports() {
    judge_ports(
        "{ingress: [{ports: [{protocol: UDP}]}]}",
        &[(53, Udp, "allow"), (9, Udp, "allow"), (53, Tcp, "deny"), (53, Sctp, "deny")],
    );
    judge_ports("{ingress: [{ports: [{}]}]}", &[(1, Tcp, "allow"), (1, Udp, "deny")]);
}

#[test]
fn an_end_port_closes_a_range_on_both_ends() {
    judge_ports(
        "{ingress: [{ports: [{port: 80, endPort: 90}]}]}",
        &[(79, Tcp, "deny"), (80, Tcp, "allow"), (90, Tcp, "allow"), (91, Tcp, "deny"), (85, Udp, "deny")],
    );
}

#[test]
fn a_named_port_is_the_receiving_pods_and_of_its_protocol() {
    judge_ports(
        "{ingress: [{ports: [{port: http}, {port: dns, protocol: UDP}]}]}",
        &[(80, Tcp, "allow"), (53, Udp, "allow"), (80, Udp, "deny"), (53, Tcp, "deny"), (81, Tcp, "deny")],
    );
    judge_ports("{ingress: [{ports: [{port: dns}]}]}", &[(53, Tcp, "deny"), (53, Udp, "deny")]);
}

#[test]
fn a_named_port_may_be_another_number_on_every_target() {
    let mut cluster = cluster(&[&policy("{policyTypes: [Egress], egress: [{ports: [{port: http}]}]}")]);
    cluster.pods[3].ports = vec![container_port("http", 8080, Tcp)];
    assert_eq!(word(&cluster, "shop/web", "shop/api", 80, Tcp), "allow");
    assert_eq!(word(&cluster, "shop/web", "bank/till", 80, Tcp), "deny");
    assert_eq!(word(&cluster, "shop/web", "bank/till", 8080, Tcp), "allow");
    assert_eq!(word(&cluster, "shop/web", "ext:world", 80, Tcp), "deny");
}

#[test]
fn peers_and_ports_of_one_rule_must_both_match() {
    let rules = "[{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {}}], ports: [{port: 443}]}]";
    let cluster = cluster(&[&policy(&format!("{{podSelector: {{}}, ingress: {rules}}}"))]);
    assert_eq!(word(&cluster, "shop/api", "shop/web", 80, Tcp), "allow");
    assert_eq!(word(&cluster, "bank/till", "shop/web", 80, Tcp), "deny");
    assert_eq!(word(&cluster, "bank/till", "shop/web", 443, Tcp), "allow");
}

#[test]
fn policies_that_select_one_pod_add_up() {
    let from_api = policy(
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}",
    );
    let from_bank =
        policy("{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: money}}}]}]}");
    let cluster = cluster(&[&from_api, &from_bank, &policy("{podSelector: {}}")]);
    for (from, expected) in [("shop/api", "allow"), ("bank/till", "allow"), ("ext:world", "deny")] {
        assert_eq!(word(&cluster, from, "shop/web", 80, Tcp), expected, "{from}");
    }
}

#[test]
fn both_ends_must_allow_a_flow() {
    let out = policy(
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: money}}}]}]}",
    );
    let closed = policy("{podSelector: {}}").replace("namespace: shop", "namespace: bank");
    let open = closed.replace("{podSelector: {}}", "{podSelector: {}, ingress: [{}]}");
    for (policies, expected) in
        [(vec![&out], "allow"), (vec![&out, &closed], "deny"), (vec![&out, &open], "allow")]
    {
        let policies: Vec<&str> = policies.into_iter().map(String::as_str).collect();
        assert_eq!(word(&cluster(&policies), "shop/web", "bank/till", 80, Tcp), expected);
    }
    // Egress refuses although ingress is open.
    assert_eq!(word(&cluster(&[&out]), "shop/web", "shop/api", 80, Tcp), "deny");
}

#[test]
fn a_pod_always_reaches_itself() {
    judge("{podSelector: {}, policyTypes: [Ingress, Egress]}", &[("shop/web", "shop/web", "allow")]);
}

#[test]
fn a_pods_own_node_always_reaches_it_and_another_node_does_not() {
    judge(
        "{podSelector: {}}",
        &[
            ("node:n1", "shop/web", "allow"),
            ("node:n2", "shop/web", "deny"),
            ("shop/agent", "shop/web", "allow"),
        ],
    );
}

#[test]
fn the_way_out_to_the_own_node_is_left_open_where_no_rule_allows_it() {
    judge(
        "{podSelector: {}, policyTypes: [Egress]}",
        &[
            ("shop/web", "node:n1", "open"),
            ("shop/web", "shop/agent", "open"),
            ("shop/web", "node:n2", "deny"),
        ],
    );
    judge(
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.240.0.4/32}}]}]}",
        &[
            ("shop/web", "node:n1", "allow"),
            ("shop/web", "shop/agent", "allow"),
            ("shop/web", "node:n2", "deny"),
        ],
    );
}

#[test]
fn no_policy_selects_a_host_network_pod() {
    judge(
        "{podSelector: {}, policyTypes: [Ingress, Egress]}",
        &[("bank/till", "shop/agent", "allow"), ("shop/agent", "bank/till", "allow")],
    );
}

#[test]
fn a_host_network_pod_is_matched_as_its_node_and_not_by_selectors() {
    let select = |peer: &str| {
        policy(&format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}"))
            .replace("namespace: shop", "namespace: bank")
    };
    for (peer, expected) in [
        ("{namespaceSelector: {}, podSelector: {matchLabels: {app: agent}}}", "deny"),
        ("{namespaceSelector: {}}", "deny"),
        ("{ipBlock: {cidr: 10.240.0.4/32}}", "allow"),
    ] {
        let cluster = cluster(&[&select(peer)]);
        assert_eq!(word(&cluster, "shop/agent", "bank/till", 80, Tcp), expected, "{peer}");
    }
}

#[test]
fn a_peer_that_says_nothing_is_nobody() {
    judge(
        "{podSelector: {}, ingress: [{from: [{}]}]}",
        &[("bank/till", "shop/web", "deny"), ("ext:world", "shop/web", "deny")],
    );
}

#[test]
fn an_external_answers_only_where_it_says_it_listens() {
    let mut cluster = cluster(&[]);
    cluster.externals[0].ports = vec![container_port("http", 80, Tcp)];
    assert_eq!(word(&cluster, "shop/web", "ext:world", 80, Tcp), "allow");
    assert_eq!(word(&cluster, "shop/web", "ext:world", 80, Udp), "reject");
    assert_eq!(word(&cluster, "shop/web", "ext:world", 443, Tcp), "reject");
}

#[test]
fn a_service_is_judged_on_its_backend_and_the_backends_port() {
    let at = |port: u16| {
        policy(&format!(
            "{{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{ports: [{{port: {port}}}]}}]}}"
        ))
    };
    for (port, expected) in [(80, "allow"), (8080, "deny")] {
        let cluster = with_service(&[&at(port)], &["10.244.1.3"]);
        assert_eq!(word(&cluster, "bank/till", "svc:shop/api", 8080, Tcp), expected, "{port}");
    }
    // A rule for the virtual address itself opens nothing.
    let virtual_only = policy(
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.10/32}}]}]}",
    );
    let cluster = with_service(&[&virtual_only], &["10.244.2.2"]);
    assert_eq!(word(&cluster, "shop/web", "svc:shop/api", 8080, Tcp), "deny");
}

#[test]
fn a_service_whose_backends_fare_differently_is_left_open() {
    let no_api = policy("{podSelector: {matchLabels: {app: api}}}");
    for (backends, expected) in
        [(&["10.244.1.2", "10.244.1.3"][..], "open"), (&["10.244.1.2"], "allow"), (&["10.244.1.3"], "deny")]
    {
        let cluster = with_service(&[&no_api], backends);
        assert_eq!(word(&cluster, "bank/till", "svc:shop/api", 8080, Tcp), expected, "{backends:?}");
    }
}

#[test]
fn a_service_that_no_one_backs_refuses_and_a_port_it_lacks_is_left_open() {
    let cluster = with_service(&[], &[]);
    let dial = |port| {
        Oracle::of(&cluster).expect(&Who::Pod("shop/web".into()), &Who::Service("shop/api".into()), port, Tcp)
    };
    assert_eq!(dial(8080), Expectation::Reject(Refusal::NoBackend));
    assert!(matches!(dial(81), Expectation::Undefined(_)));
}

#[test]
fn a_pod_reaches_itself_through_its_service_and_against_its_policies_it_is_left_open() {
    let closed = policy("{podSelector: {}, policyTypes: [Ingress, Egress]}");
    for (policies, expected) in [(&[][..], "allow"), (&[closed.as_str()], "open")] {
        let cluster = with_service(policies, &["10.244.1.3"]);
        assert_eq!(word(&cluster, "shop/api", "svc:shop/api", 8080, Tcp), expected);
    }
}

#[test]
fn a_cluster_ip_dialled_from_outside_is_left_open() {
    let cluster = with_service(&[], &["10.244.1.3"]);
    assert_eq!(word(&cluster, "ext:world", "svc:shop/api", 8080, Tcp), "open");
}

#[test]
fn a_service_backed_by_a_node_or_a_host_outside_is_judged_by_their_addresses() {
    let block = policy(
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
    );
    for (backend, expected) in [("203.0.113.7", "allow"), ("10.240.0.5", "deny"), ("198.51.100.1", "deny")] {
        let cluster = with_service(&[&block], &[backend]);
        assert_eq!(word(&cluster, "shop/web", "svc:shop/api", 8080, Tcp), expected, "{backend}");
    }
}

#[test]
fn a_denial_names_the_direction_and_every_policy_that_isolates() {
    let one = policy("{podSelector: {}}");
    let other = one.replace("name: p", "name: q");
    let cluster = cluster(&[&one, &other]);
    let expectation =
        Oracle::of(&cluster).expect(&Who::Pod("bank/till".into()), &Who::Pod("shop/web".into()), 80, Tcp);
    assert_eq!(
        expectation.to_string(),
        "deny: no rule allows it, ingress of shop/web is isolated by shop/p, shop/q"
    );
}

#[test]
fn ip_blocks_are_not_about_pods_where_the_cluster_says_so() {
    let all = "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}";
    let mut cluster = cluster(&[&policy(all)]);
    cluster.settings.policies.ip_blocks = IpBlocks::Outside;
    for (from, to, expected) in [
        ("bank/till", "shop/web", "deny"),
        ("shop/web", "bank/till", "deny"),
        ("ext:world", "shop/web", "allow"),
        ("node:n2", "shop/web", "allow"),
        // It has its node's address, and none of its own.
        ("shop/agent", "shop/web", "allow"),
        ("shop/web", "ext:world", "allow"),
    ] {
        assert_eq!(word(&cluster, from, to, 80, Tcp), expected, "{from} -> {to}");
    }
}

#[test]
fn what_is_denied_passes_where_the_pod_that_denies_it_is_audited() {
    let closed = policy("{podSelector: {}, policyTypes: [Ingress, Egress]}");
    let mut cluster = cluster(&[&closed, &closed.replace("namespace: shop", "namespace: bank")]);
    cluster.audited.insert("shop".to_owned());
    assert_eq!(word(&cluster, "ext:world", "shop/web", 80, Tcp), "audited");
    assert_eq!(word(&cluster, "shop/web", "shop/web", 80, Tcp), "allow");
    // What one end lets pass for the record, the other denies in earnest.
    assert_eq!(word(&cluster, "shop/web", "bank/till", 80, Tcp), "deny");
    assert_eq!(word(&cluster, "bank/till", "shop/web", 80, Tcp), "deny");
    cluster.settings.policies.audit = true;
    let expectation = Oracle::of(&cluster).expect(&who("bank/till"), &who("shop/web"), 80, Tcp);
    assert_eq!(
        expectation.to_string(),
        "allow, audited: no rule allows it, egress of bank/till is isolated by bank/p"
    );
}
