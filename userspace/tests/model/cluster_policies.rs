//! Policies of the whole cluster: read into one model, refused where their CRDs refuse them, and in order.

use userspace::model::{
    Action, Cluster, Established, IpBlocks, Kind, Objects, PodPeer, Policies, Protocol, Tier, TierPeer,
    TierPort,
};

use crate::{cluster, fault, pod_text, testbed, wrong};

/// An object of this kind, with this spec in flow style.
fn object(kind: &str, name: &str, spec: &str) -> String {
    let version = if kind == "ClusterNetworkPolicy" { "v1alpha2" } else { "v1alpha1" };
    format!(
        "---\napiVersion: policy.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

fn cnp(name: &str, spec: &str) -> String {
    object("ClusterNetworkPolicy", name, spec)
}

/// An egress rule of a ClusterNetworkPolicy that is sound otherwise.
fn egress(rule: &str) -> String {
    cnp("a", &format!("tier: Admin, priority: 5, subject: {{namespaces: {{}}}}, egress: [{{{rule}}}]"))
}

/// What is wrong with an object, after its kind and name.
fn refused(text: &str) -> String {
    let fault = fault(text);
    fault.split_once(": ").expect("the object is named").1.to_owned()
}

fn refused_egress(rule: &str) -> String {
    refused(&egress(rule))
}

fn first_peer(cluster: &Cluster) -> &TierPeer {
    &cluster.cluster_policies[0].egress[0].peers[0]
}

#[test]
fn every_field_of_a_cluster_network_policy_is_read() {
    let text = cnp(
        "a",
        "tier: Baseline, priority: 7, subject: {pods: {namespaceSelector: {matchLabels: {team: x}}, podSelector: {matchLabels: {app: y}}}},
        ingress: [{name: monitoring, action: Accept, from: [{namespaces: {}}, {pods: {podSelector: {matchLabels: {app: z}}}}],
          protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 65535}}}}, {sctp: {destinationPort: {number: 9}}}, {destinationNamedPort: http}]},
          {action: Pass, from: [{namespaces: {}}]}],
        egress: [{action: Deny, to: [{nodes: {matchLabels: {pool: a}}}, {networks: [10.0.0.1/8, \"fd00::/8\"]}]}]",
    );
    let cluster = cluster(&text);
    let [policy] = &cluster.cluster_policies[..] else { panic!("{:?}", cluster.cluster_policies) };
    assert_eq!((policy.kind, policy.name.as_str()), (Kind::ClusterNetworkPolicy, "a"));
    assert_eq!((policy.tier, policy.priority), (Tier::Baseline, 7));
    let labels = |selector: &PodPeer| {
        (
            selector.namespaces.match_labels.clone().map(|all| all["team"].clone()),
            selector.pods.match_labels.clone(),
        )
    };
    let (team, pods) = labels(&policy.subject);
    assert_eq!((team.as_deref(), pods.expect("it has labels")["app"].as_str()), (Some("x"), "y"));
    let [monitoring, pass] = &policy.ingress[..] else { panic!("{:?}", policy.ingress) };
    assert_eq!((monitoring.name.as_str(), monitoring.action), ("monitoring", Action::Accept));
    assert_eq!(monitoring.peers.len(), 2);
    assert_eq!(
        monitoring.ports.as_deref(),
        Some(
            &[
                TierPort::Range(Protocol::Tcp, 80, 80),
                TierPort::Range(Protocol::Udp, 1, 65_535),
                TierPort::Range(Protocol::Sctp, 9, 9),
                TierPort::Named("http".into()),
            ][..]
        )
    );
    assert_eq!((pass.name.as_str(), pass.action, &pass.ports), ("", Action::Pass, &None));
    let rule = &policy.egress[0];
    assert!(matches!(&rule.peers[0], TierPeer::Nodes(selector) if selector.match_labels.is_some()));
    let networks = ["10.0.0.0/8", "fd00::/8"].map(|range| range.parse().expect("a range")).to_vec();
    assert_eq!(rule.peers[1], TierPeer::Networks(networks));
}

#[test]
fn the_older_kinds_are_read_into_the_same_model() {
    let rule = "action: Allow, from: [{pods: {namespaceSelector: {}, podSelector: {}}}], ports: [{portNumber: {port: 80}}, {portRange: {protocol: UDP, start: 1, end: 2}}, {namedPort: http}]";
    let text = object(
        "BaselineAdminNetworkPolicy",
        "default",
        "subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]",
    ) + &object(
        "AdminNetworkPolicy",
        "first",
        &format!(
            "priority: 1000, subject: {{namespaces: {{}}}}, ingress: [{{{rule}}}, {{action: Pass, from: [{{namespaces: {{}}}}]}}]"
        ),
    );
    let cluster = cluster(&text);
    let [admin, baseline] = &cluster.cluster_policies[..] else { panic!("{:?}", cluster.cluster_policies) };
    assert_eq!((admin.kind, admin.tier, admin.priority), (Kind::AdminNetworkPolicy, Tier::Admin, 1000));
    assert_eq!([admin.ingress[0].action, admin.ingress[1].action], [Action::Accept, Action::Pass]);
    assert_eq!(
        admin.ingress[0].ports.as_deref(),
        Some(
            &[
                TierPort::Range(Protocol::Tcp, 80, 80),
                TierPort::Range(Protocol::Udp, 1, 2),
                TierPort::Named("http".into()),
            ][..]
        )
    );
    assert_eq!((baseline.kind, baseline.tier), (Kind::BaselineAdminNetworkPolicy, Tier::Baseline));
    assert_eq!(baseline.egress[0].action, Action::Deny);
}

#[test]
fn policies_are_in_the_order_in_which_they_are_asked() {
    let one = |name: &str, tier: &str, priority: u32| {
        cnp(name, &format!("tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}"))
    };
    let text = one("d", "Baseline", 0)
        + &one("c", "Admin", 1000)
        + &one("b", "Admin", 3)
        + &object("AdminNetworkPolicy", "a", "priority: 3, subject: {namespaces: {}}")
        + &object("BaselineAdminNetworkPolicy", "default", "subject: {namespaces: {}}");
    let cluster = cluster(&text);
    let names: Vec<&str> = cluster.cluster_policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["b", "a", "c", "d", "default"]);
}

#[test]
fn two_policies_of_one_priority_that_select_a_pod_are_noted() {
    let one = |name: &str, subject: &str, direction: &str| {
        let rule = if direction == "ingress" { "from" } else { "to" };
        let spec = format!(
            "tier: Admin, priority: 5, subject: {{pods: {{podSelector: {{matchLabels: {{{subject}}}}}}}}}, {direction}: [{{action: Deny, {rule}: [{{namespaces: {{}}}}]}}]"
        );
        cnp(name, &spec)
    };
    let notes = |text: &str| {
        let notes = cluster(&(pod_text("web", "app: web, tier: front", "") + text)).notes;
        notes.into_iter().filter(|note| note.contains("priority")).collect::<Vec<_>>()
    };
    assert_eq!(
        notes(&(one("a", "app: web", "ingress") + &one("b", "tier: front", "ingress"))),
        [
            "Policies of tier Admin with priority 5, more than one of which selects pod default/web: a, b. An implementation may ask them in any order; here it is that of the input."
        ]
    );
    // Other pods, or another direction: nothing is left open.
    assert!(notes(&(one("a", "app: web", "ingress") + &one("b", "app: api", "ingress"))).is_empty());
    assert!(notes(&(one("a", "app: web", "ingress") + &one("b", "app: web", "egress"))).is_empty());
}

#[test]
fn a_peer_by_domain_names_accepts_nothing_and_a_note_says_so() {
    let cluster =
        cluster(&egress("action: Accept, to: [{domainNames: [\"*.kubernetes.io\", kubernetes.io.]}]"));
    let rule = &cluster.cluster_policies[0].egress[0];
    assert_eq!((rule.action, rule.peers.len()), (Action::Accept, 0));
    assert!(
        cluster.notes.contains(
            &"ClusterNetworkPolicy a: spec.egress[0].to[0].domainNames: podpath looks up no names, so that the rule accepts nothing by them."
                .to_owned()
        ),
        "{:?}",
        cluster.notes
    );
    for action in ["Deny", "Pass"] {
        assert_eq!(
            refused_egress(&format!("action: {action}, to: [{{domainNames: [kubernetes.io]}}]")),
            format!("spec.egress[0].to[0].domainNames: may be used with action Accept only, not {action}")
        );
    }
    for name in ["kubernetes", "*", "a.*.b", "-a.b", "*kubernetes.io", "a..b"] {
        let fault = refused_egress(&format!("action: Accept, to: [{{domainNames: [\"{name}\"]}}]"));
        let expected = "spec.egress[0].to[0].domainNames[0]: must be a domain name of two labels at least";
        assert!(fault.starts_with(expected), "{fault}");
    }
}

#[test]
fn what_is_required_must_be_there() {
    let all = wrong(&cnp("a", "ingress: [{}]"));
    let expected = [
        "spec.tier: Required value",
        "spec.priority: Required value",
        "spec.subject: Required value",
        "spec.ingress[0].action: Required value",
        "spec.ingress[0].from: must have between 1 and 25 items, not 0",
    ];
    assert_eq!(all.len(), expected.len(), "{all:#?}");
    for wanted in expected {
        assert!(all.iter().any(|fault| fault.ends_with(wanted)), "{wanted} in {all:#?}");
    }
    let text = cnp("a", "").replace("spec: {}\n", "");
    assert_eq!(refused(&text), "spec: Required value");
}

#[test]
fn tiers_and_priorities_are_those_of_the_api() {
    let spec = |tier: &str, priority: &str| {
        cnp("a", &format!("tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}"))
    };
    assert_eq!(
        refused(&spec("admin", "1")),
        r#"spec.tier: Unsupported value: "admin": supported values: "Admin", "Baseline""#
    );
    for priority in ["-1", "1001", "4294967296"] {
        assert_eq!(
            refused(&spec("Admin", priority)),
            format!("spec.priority: must be between 0 and 1000, inclusive, not {priority}")
        );
    }
    for priority in ["0", "1000"] {
        assert_eq!(cluster(&spec("Admin", priority)).cluster_policies.len(), 1);
    }
}

#[test]
fn subjects_and_peers_say_one_thing() {
    let subject =
        |subject: &str| refused(&cnp("a", &format!("tier: Admin, priority: 1, subject: {{{subject}}}")));
    assert_eq!(subject(""), "spec.subject: must have exactly one of namespaces, pods, not none");
    assert_eq!(
        subject("namespaces: {}, pods: {podSelector: {}}"),
        "spec.subject: must have exactly one of namespaces, pods, not namespaces and pods"
    );
    assert_eq!(subject("pods: {namespaceSelector: {}}"), "spec.subject.pods.podSelector: Required value");
    assert_eq!(
        refused_egress("action: Deny, to: [{namespaces: {}}, {nodes: {}, networks: [10.0.0.0/8]}]"),
        "spec.egress[0].to[1]: must have exactly one of namespaces, pods, nodes, networks, domainNames, not nodes and networks"
    );
    assert_eq!(
        refused_egress("action: Deny, to: [{}]"),
        "spec.egress[0].to[0]: must have exactly one of namespaces, pods, nodes, networks, domainNames, not none"
    );
    assert!(
        refused_egress("action: Deny, to: [{pods: {podSelector: {matchLabels: {a/b/c: d}}}}]")
            .starts_with("spec.egress[0].to[0].pods.podSelector.matchLabels: ")
    );
}

#[test]
fn only_egress_knows_nodes_and_networks() {
    for peer in ["nodes: {}", "networks: [10.0.0.0/8]", "domainNames: [a.b]"] {
        let field = peer.split(':').next().expect("a field");
        let text = cnp(
            "a",
            &format!(
                "tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{{action: Deny, from: [{{{peer}}}]}}]"
            ),
        );
        assert_eq!(
            refused(&text),
            format!("strict decoding error: unknown field \"spec.ingress[0].from[0].{field}\"")
        );
    }
}

#[test]
fn lists_have_their_lengths() {
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let rules = |count: usize| {
        let rule = "{action: Deny, to: [{namespaces: {}}]}";
        cnp(
            "a",
            &format!(
                "tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, egress: [{}]",
                many(rule, count)
            ),
        )
    };
    assert_eq!(cluster(&rules(25)).cluster_policies[0].egress.len(), 25);
    assert_eq!(refused(&rules(26)), "spec.egress: must have between 0 and 25 items, not 26");
    let peers = |count: usize| format!("action: Deny, to: [{}]", many("{namespaces: {}}", count));
    assert_eq!(cluster(&egress(&peers(25))).cluster_policies[0].egress[0].peers.len(), 25);
    assert_eq!(refused_egress(&peers(26)), "spec.egress[0].to: must have between 1 and 25 items, not 26");
    let protocols = |count: usize| {
        format!(
            "action: Deny, to: [{{namespaces: {{}}}}], protocols: [{}]",
            many("{destinationNamedPort: a}", count)
        )
    };
    assert_eq!(
        refused_egress(&protocols(26)),
        "spec.egress[0].protocols: must have between 1 and 25 items, not 26"
    );
    assert_eq!(
        refused_egress(&protocols(0)),
        "spec.egress[0].protocols: must have between 1 and 25 items, not 0"
    );
    let networks = |count: usize| {
        let ranges: Vec<String> = (0..count).map(|i| format!("10.{i}.0.0/16")).collect();
        format!("action: Deny, to: [{{networks: [{}]}}]", ranges.join(", "))
    };
    assert!(
        matches!(first_peer(&cluster(&egress(&networks(25)))), TierPeer::Networks(all) if all.len() == 25)
    );
    assert_eq!(
        refused_egress(&networks(26)),
        "spec.egress[0].to[0].networks: must have between 1 and 25 items, not 26"
    );
    assert_eq!(
        refused_egress(&networks(0)),
        "spec.egress[0].to[0].networks: must have between 1 and 25 items, not 0"
    );
}

#[test]
fn ports_are_those_of_the_api() {
    let protocol = |text: &str| {
        refused_egress(&format!("action: Deny, to: [{{namespaces: {{}}}}], protocols: [{{{text}}}]"))
    };
    let path = "spec.egress[0].protocols[0]";
    assert_eq!(
        protocol(""),
        format!("{path}: must have exactly one of tcp, udp, sctp, destinationNamedPort, not none")
    );
    assert_eq!(
        protocol("udp: {destinationPort: {number: 1}}, destinationNamedPort: a"),
        format!(
            "{path}: must have exactly one of tcp, udp, sctp, destinationNamedPort, not udp and destinationNamedPort"
        )
    );
    assert_eq!(protocol("tcp: {}"), format!("{path}.tcp.destinationPort: Required value"));
    assert_eq!(
        protocol("tcp: {destinationPort: {}}"),
        format!("{path}.tcp.destinationPort: must have exactly one of number, range, not none")
    );
    assert_eq!(
        protocol("sctp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}"),
        format!("{path}.sctp.destinationPort: must have exactly one of number, range, not number and range")
    );
    for number in ["0", "65536", "-1"] {
        assert_eq!(
            protocol(&format!("udp: {{destinationPort: {{number: {number}}}}}")),
            format!(
                "{path}.udp.destinationPort.number: must be between 1 and 65535, inclusive, not {number}"
            )
        );
    }
    for (start, end) in [(80, 80), (81, 80)] {
        assert_eq!(
            protocol(&format!("tcp: {{destinationPort: {{range: {{start: {start}, end: {end}}}}}}}")),
            format!(
                "{path}.tcp.destinationPort.range: Start port must be less than End port, not {start} (end is {end})"
            )
        );
    }
    assert_eq!(
        protocol("tcp: {destinationPort: {range: {start: 80}}}"),
        format!("{path}.tcp.destinationPort.range.end: Required value")
    );
}

#[test]
fn actions_are_those_of_the_kind() {
    assert_eq!(
        refused_egress("action: Allow, to: [{namespaces: {}}]"),
        r#"spec.egress[0].action: Unsupported value: "Allow": supported values: "Accept", "Deny", "Pass""#
    );
    let older = |kind: &str, action: &str| {
        let priority = if kind == "AdminNetworkPolicy" { "priority: 1, " } else { "" };
        let rule = format!("{{action: {action}, to: [{{namespaces: {{}}}}]}}");
        object(kind, "default", &format!("{priority}subject: {{namespaces: {{}}}}, egress: [{rule}]"))
    };
    assert_eq!(
        refused(&older("AdminNetworkPolicy", "Accept")),
        r#"spec.egress[0].action: Unsupported value: "Accept": supported values: "Allow", "Deny", "Pass""#
    );
    assert_eq!(
        refused(&older("BaselineAdminNetworkPolicy", "Pass")),
        r#"spec.egress[0].action: Unsupported value: "Pass": supported values: "Allow", "Deny""#
    );
}

#[test]
fn a_rules_name_is_no_longer_than_a_hundred_characters() {
    let named =
        |length: usize| format!("name: {}, action: Deny, to: [{{namespaces: {{}}}}]", "ö".repeat(length));
    assert_eq!(cluster(&egress(&named(100))).cluster_policies[0].egress[0].name.chars().count(), 100);
    assert_eq!(
        refused_egress(&named(101)),
        "spec.egress[0].name: must be no more than 100 characters, not 101"
    );
}

#[test]
fn named_ports_are_pods_only() {
    for peer in ["nodes: {}", "networks: [10.0.0.0/8]", "domainNames: [a.b]"] {
        assert_eq!(
            refused_egress(&format!(
                "action: Accept, to: [{{namespaces: {{}}}}, {{{peer}}}], protocols: [{{destinationNamedPort: http}}]"
            )),
            "spec.egress[0]: networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts for networks/nodes/domainNames"
        );
    }
}

#[test]
fn networks_are_ranges_and_each_once() {
    let networks = |text: &str| refused_egress(&format!("action: Deny, to: [{{networks: [{text}]}}]"));
    let path = "spec.egress[0].to[0].networks";
    for text in ["10.0.0.0", "10.0.0.0/33", "web"] {
        let fault = networks(text);
        assert!(fault.starts_with(&format!("{path}[0]: must be a valid CIDR value")), "{fault}");
    }
    assert_eq!(networks("10.0.0.0/8, 10.0.0.0/8"), format!("{path}[1]: Duplicate value: \"10.0.0.0/8\""));
    assert_eq!(
        networks("\"::ffff:10.0.0.0/104\""),
        format!("{path}[0]: must not be an IPv4-mapped IPv6 range, as \"::ffff:10.0.0.0/104\" is")
    );
}

#[test]
fn the_older_kinds_demand_both_selectors_and_may_have_a_hundred_rules() {
    let admin = |spec: &str| {
        object("AdminNetworkPolicy", "a", &format!("priority: 1, subject: {{namespaces: {{}}}}, {spec}"))
    };
    assert_eq!(
        refused(&admin("ingress: [{action: Deny, from: [{pods: {podSelector: {}}}]}]")),
        "spec.ingress[0].from[0].pods.namespaceSelector: Required value"
    );
    let rules = |count: usize| {
        let rules = vec!["{action: Deny, from: [{namespaces: {}}]}"; count].join(", ");
        admin(&format!("ingress: [{rules}]"))
    };
    assert_eq!(cluster(&rules(100)).cluster_policies[0].ingress.len(), 100);
    assert_eq!(refused(&rules(101)), "spec.ingress: must have between 0 and 100 items, not 101");
    let port = |text: &str| {
        refused(&admin(&format!(
            "ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], ports: [{{{text}}}]}}]"
        )))
    };
    let path = "spec.ingress[0].ports[0]";
    assert_eq!(
        port("portNumber: {port: 1}, namedPort: a"),
        format!(
            "{path}: must have exactly one of portNumber, namedPort, portRange, not portNumber and namedPort"
        )
    );
    assert_eq!(port("portNumber: {protocol: TCP}"), format!("{path}.portNumber.port: Required value"));
    assert_eq!(
        port("portRange: {protocol: ICMP, start: 1, end: 2}"),
        format!(
            r#"{path}.portRange.protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP""#
        )
    );
    assert_eq!(
        port("portRange: {start: 2, end: 1}"),
        format!("{path}.portRange: Start port must be less than End port, not 2 (end is 1)")
    );
}

#[test]
fn the_baseline_of_the_older_kind_is_called_default() {
    assert_eq!(
        refused(&object("BaselineAdminNetworkPolicy", "mine", "subject: {namespaces: {}}")),
        "metadata.name: Only one baseline admin network policy with metadata.name=\"default\" can be created in the cluster, not \"mine\""
    );
}

#[test]
fn unknown_fields_and_versions_are_refused_in_the_words_of_kubectl() {
    assert_eq!(
        refused_egress("action: Deny, to: [{namespaces: {}}], ports: []"),
        r#"strict decoding error: unknown field "spec.egress[0].ports""#
    );
    assert_eq!(
        refused(&egress("action: Deny, to: [{namespaces: {}}]").replace("v1alpha2", "v1alpha1")),
        r#"no matches for kind "ClusterNetworkPolicy" in version "policy.networking.k8s.io/v1alpha1": write apiVersion: policy.networking.k8s.io/v1alpha2"#
    );
    // Antrea has a kind of this name as well.
    let text = egress("x: y").replace("policy.networking.k8s.io/v1alpha2", "crd.antrea.io/v1beta1");
    assert!(cluster(&(pod_text("web", "", "") + &text)).cluster_policies.is_empty());
}

#[test]
fn what_an_implementation_reported_is_kept_and_means_nothing() {
    let text = egress("action: Deny, to: [{namespaces: {}}]") + "status: {conditions: [{type: Ready}]}\n";
    let objects = Objects::parse("test.yaml", &text).expect("it is sound");
    let stored = serde_json::to_string(&objects).expect("objects can be written down");
    let read: Objects = serde_json::from_str(&stored).expect("and read again");
    assert_eq!(read, objects);
    assert!(stored.contains("conditions"));
}

#[test]
fn policies_of_the_cluster_live_in_no_namespace_and_are_deleted_by_name() {
    let text = egress("action: Deny, to: [{namespaces: {}}]");
    let mut objects =
        Objects::parse("test.yaml", &(pod_text("web", "", "") + &text)).expect("they are sound");
    let named =
        Objects::parse("test.yaml", &text.replace("{name: a}", "{name: a, namespace: x}")).expect("as well");
    let deleted = objects.delete(&named);
    assert_eq!(deleted[0].0.to_string(), "ClusterNetworkPolicy a");
    assert!(deleted[0].1);
    assert!(objects.resolve(None).expect("a cluster").cluster_policies.is_empty());
}

#[test]
fn policies_are_carried_out_as_the_testbed_says() {
    let policies = |spec: &str| cluster(&testbed(spec)).settings.policies;
    assert_eq!(policies(""), Policies::default());
    assert_eq!(
        policies("policies: {audit: true, established: cut, ipBlocks: outside}"),
        Policies { audit: true, established: Established::Cut, ip_blocks: IpBlocks::Outside }
    );
    assert_eq!(
        refused(&testbed("policies: {established: drop}")),
        r#"spec.policies.established: Unsupported value: "drop": supported values: "keep", "cut""#
    );
    assert_eq!(
        refused(&testbed("policies: {ipBlocks: cilium}")),
        r#"spec.policies.ipBlocks: Unsupported value: "cilium": supported values: "literal", "outside""#
    );
    assert_eq!(
        refused(&testbed("policies: {ipblocks: literal}")),
        r#"strict decoding error: unknown field "spec.policies.ipblocks""#
    );
}

#[test]
fn a_namespace_says_by_an_annotation_that_it_is_audited() {
    let namespace = |name: &str, audit: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, annotations: {{podpath.dev/audit: \"{audit}\"}}}}\n"
        )
    };
    let audited = cluster(&(namespace("shop", "true") + &namespace("bank", "false")));
    assert_eq!(
        [audited.audits("shop"), audited.audits("bank"), audited.audits("other")],
        [true, false, false]
    );
    let whole = cluster(&(namespace("bank", "false") + &testbed("policies: {audit: true}")));
    assert!(whole.audits("bank"), "the whole cluster is");
    assert_eq!(
        fault(&namespace("shop", "yes")),
        r#"Namespace shop: metadata.annotations[podpath.dev/audit]: Unsupported value: "yes": supported values: "false", "true""#
    );
}
