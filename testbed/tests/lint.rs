//! `podpath lint`: each thing that it looks for, found where it is and not where it is not.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A shop with DNS and monitoring, in which nothing is wrong.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: lint}
spec: {nodes: 2POLICIES}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: monitoring, labels: {team: observability}}
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  containers:
    - {name: c, image: x, ports: [{name: dns, containerPort: 53, protocol: UDP}, {name: dns-tcp, containerPort: 53}]}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: kube-system, labels: {k8s-app: proxy}}
spec: {hostNetwork: true, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}
spec: {containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {containers: [{name: c, image: x, ports: [{name: http, containerPort: 9000}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.80, selector: {app: api}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: prometheus, namespace: monitoring, labels: {app: prometheus}}
spec: {containers: [{name: c, image: x, ports: [{containerPort: 9090}]}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: void}
"#;

/// A NetworkPolicy of namespace `shop` with this spec.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

/// A ClusterNetworkPolicy with this spec.
fn of_cluster(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

fn podpath(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podpath"));
    command.args(arguments).stdin(Stdio::null()).output().expect("it was built")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("it writes UTF-8")
}

/// What lint says of a text.
fn lint(text: &str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("there is room");
    let file = directory.path().join("cluster.yaml");
    std::fs::write(&file, text).expect("there is room");
    podpath(&[&["lint", "-f", file.to_str().expect("UTF-8")], arguments].concat())
}

/// What lint finds in the shop with these policies: as `check object field`.
#[track_caller]
fn found_with(choices: &str, policies: &[String]) -> Vec<String> {
    let text = CLUSTER.replace("POLICIES", choices) + &policies.concat();
    let output = lint(&text, &["-o", "json"]);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let findings = report["findings"].as_array().expect("a list");
    let text = |finding: &Value, field: &str| finding[field].as_str().expect("text").to_owned();
    let one = |finding: &Value| {
        let object = text(finding, "object");
        let (_, name) = object.rsplit_once(['/', ' ']).expect("a kind and a name");
        format!("{} {name} {}", text(finding, "check"), text(finding, "field"))
    };
    findings.iter().map(one).collect()
}

#[track_caller]
fn finds(policies: &[String], expected: &[&str]) {
    assert_eq!(found_with("", policies), expected);
}

#[test]
fn a_cluster_as_it_should_be_yields_nothing() {
    let clean = [
        policy("deny", "podSelector: {}, policyTypes: [Ingress, Egress]"),
        policy(
            "web",
            "podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress],
             ingress: [{from: [{namespaceSelector: {matchLabels: {team: observability}}}], ports: [{port: http}]}],
             egress: [{to: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: http}]}]",
        ),
        policy(
            "api",
            "podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress],
             ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 9000}]}]",
        ),
        policy(
            "dns",
            "podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels:
             {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}],
             ports: [{port: 53, protocol: UDP}, {port: 53}]}]",
        ),
    ];
    finds(&clean, &[]);
    let shop = podpath(&["lint", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shop.yaml")]);
    assert_eq!((stdout(&shop), shop.status.code()), ("ok: nothing found\n", Some(0)));
}

#[test]
fn demands_of_one_key_that_exclude_each_other_are_found_wherever_they_stand() {
    let never = "{matchLabels: {app: web}, matchExpressions: [{key: app, operator: NotIn, values: [web]}]}";
    finds(
        &[
            policy("a", &format!("podSelector: {never}")),
            policy(
                "b",
                &format!(
                    "podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{from: [{{podSelector: {never}}}]}}]"
                ),
            ),
        ],
        &[
            "contradictory-selector a spec.podSelector",
            "contradictory-selector b spec.ingress[0].from[0].podSelector",
        ],
    );
}

#[test]
fn rules_of_a_direction_that_is_not_listed_are_found() {
    finds(
        &[policy("a", "podSelector: {}, policyTypes: [Ingress], egress: [{}]")],
        &["unlisted-direction a spec.egress"],
    );
    finds(&[policy("a", "podSelector: {}, egress: []")], &["egress-not-limited a spec.egress"]);
}

#[test]
fn typos_are_found_with_the_nearest_label() {
    let typo = policy(
        "a",
        "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: wbe}}}]}]",
    );
    finds(std::slice::from_ref(&typo), &["label-typo a spec.ingress[0].from[0].podSelector"]);
    let text = lint(&(CLUSTER.replace("POLICIES", "") + &typo), &[]);
    assert!(
        stdout(&text).contains(
            "no pod of namespace shop has app=wbe (did you mean app=web?), so the rule matches nothing."
        ),
        "{text:?}"
    );
    finds(&[policy("a", "podSelector: {matchLabels: {appp: api}}")], &["label-typo a spec.podSelector"]);
    // A value that is to be kept out, and is nobody's, keeps nobody out.
    finds(
        &[policy(
            "a",
            "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [observabilty]}]}}]}]",
        )],
        &["label-typo a spec.ingress[0].from[0].namespaceSelector"],
    );
}

#[test]
fn selectors_that_select_nobody_are_found() {
    finds(
        &[
            policy("a", "podSelector: {matchLabels: {app: cache}}"),
            policy(
                "b",
                "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: cache}}}, {namespaceSelector: {matchLabels: {team: finance}}}]}]",
            ),
        ],
        &[
            "selects-nothing a spec.podSelector",
            "no-such-pod b spec.ingress[0].from[0].podSelector",
            "no-such-namespace b spec.ingress[0].from[1].namespaceSelector",
        ],
    );
    let in_void = policy("a", "podSelector: {}").replace("namespace: shop", "namespace: void");
    finds(&[in_void], &["selects-nothing a spec.podSelector"]);
    finds(
        &[policy(
            "a",
            "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, cache]}]}}]}]",
        )],
        &["unknown-value a spec.ingress[0].from[0].podSelector"],
    );
    finds(
        &[of_cluster(
            "c",
            "tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {matchLabels: {pool: gpu}}}]}]",
        )],
        &["no-such-node c spec.egress[0].to[0]"],
    );
}

#[test]
fn pods_of_the_host_network_are_no_pods_to_selectors() {
    let proxy = policy("a", "podSelector: {matchLabels: {k8s-app: proxy}}")
        .replace("namespace: shop", "namespace: kube-system");
    finds(&[proxy], &["host-network-pod a spec.podSelector"]);
}

#[test]
fn blocks_that_hold_nothing_or_the_cluster_are_found() {
    let to = |block: &str| {
        policy(
            "a",
            &format!(
                "podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{from: [{{ipBlock: {{{block}}}}}]}}]"
            ),
        )
    };
    for (block, check) in [
        ("cidr: 203.0.113.0/24, except: [203.0.113.0/25, 203.0.113.128/25]", "excepted-block"),
        ("cidr: 10.244.0.0/16", "block-of-pods"),
        ("cidr: 10.96.0.80/32", "block-of-services"),
        ("cidr: 10.240.0.0/16", "block-of-nodes"),
        ("cidr: 0.0.0.0/0", "wide-block"),
    ] {
        finds(&[to(block)], &[&format!("{check} a spec.ingress[0].from[0].ipBlock")]);
    }
    finds(&[to("cidr: 203.0.113.0/24")], &[]);
    finds(&[to("cidr: 0.0.0.0/0, except: [10.0.0.0/8]")], &[]);
    assert_eq!(
        found_with(", policies: {ipBlocks: outside}", &[to("cidr: 10.244.0.0/16")]),
        ["block-only-pods a spec.ingress[0].from[0].ipBlock"]
    );
}

#[test]
fn ports_that_no_target_has_are_found() {
    let at = |port: &str| {
        policy(
            "a",
            &format!("podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{ports: [{{{port}}}]}}]"),
        )
    };
    for (port, check) in [
        ("port: 9001", "no-such-port"),
        ("port: htpp", "no-such-port"),
        ("port: 9000, protocol: UDP", "protocol-mismatch"),
        ("port: http, protocol: SCTP", "protocol-mismatch"),
        ("port: 80", "service-port"),
    ] {
        finds(&[at(port)], &[&format!("{check} a spec.ingress[0].ports[0]")]);
    }
    finds(&[at("port: 9000")], &[]);
    finds(&[at("port: 8000, endPort: 9500")], &[]);
    finds(&[at("port: 9000, endPort: 9000")], &["equal-end-port a spec.ingress[0].ports[0].endPort"]);
    finds(
        &[policy("a", "podSelector: {}, ingress: [{ports: [{port: http}]}]")],
        &["named-port-differs a spec.ingress[0].ports[0]"],
    );
}

#[test]
fn what_yaml_says_and_nobody_means_is_found() {
    finds(
        &[policy("a", "podSelector: {}, ingress: [{from: [], ports: []}]")],
        &["empty-list a spec.ingress[0].from", "empty-list a spec.ingress[0].ports"],
    );
    finds(
        &[policy(
            "a",
            "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: observability}}}, {podSelector: {matchLabels: {app: prometheus}}}]}]",
        )],
        &["or-not-and a spec.ingress[0].from[1]", "no-such-pod a spec.ingress[0].from[1].podSelector"],
    );
    let alone =
        policy("a", "podSelector: {matchLabels: {app: prometheus}}, ingress: [{from: [{podSelector: {}}]}]");
    finds(
        &[alone.replace("namespace: shop", "namespace: monitoring")],
        &["own-namespace-only a spec.ingress[0].from[0].podSelector"],
    );
}

#[test]
fn what_another_says_too_is_found() {
    let narrow = "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 9000}]}]";
    let wide = "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {}}]}]";
    finds(&[policy("narrow", narrow), policy("wide", wide)], &["redundant-policy narrow spec"]);
    let both = "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {}}]}, {from: [{podSelector: {matchLabels: {app: web}}}]}]";
    finds(&[policy("a", both)], &["redundant-rule a spec.ingress[1]"]);
    // By another label of the same pod: true now, and not of every pod to come.
    let now = "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}, {from: [{podSelector: {matchLabels: {tier: front}}}]}]";
    finds(&[policy("a", now)], &["covered-now a spec.ingress[1]"]);
    // Its isolation is what it is for.
    finds(&[policy("deny", "podSelector: {}"), policy("a", wide)], &[]);
    finds(
        &[policy("deny", "podSelector: {}"), policy("again", "podSelector: {matchLabels: {app: api}}")],
        &["redundant-policy again spec"],
    );
}

#[test]
fn rules_of_tiers_that_decide_nothing_are_found() {
    let all = "tier: Admin, priority: PRIORITY, subject: {namespaces: {}}, ingress: [RULES]";
    let admin = |name: &str, priority: &str, rules: &str| {
        of_cluster(name, &all.replace("PRIORITY", priority).replace("RULES", rules))
    };
    let (deny, allow) = (
        "{action: Deny, from: [{namespaces: {}}]}",
        "{action: Accept, from: [{namespaces: {matchLabels: {team: shop}}}]}",
    );
    finds(&[admin("a", "1", &format!("{deny}, {allow}"))], &["shadowed-rule a spec.ingress[1]"]);
    finds(&[admin("a", "1", deny), admin("b", "2", allow)], &["shadowed-rule b spec.ingress[0]"]);
    finds(
        &[admin("a", "1", deny), admin("b", "1", allow)],
        &["shadowed-rule b spec.ingress[0]", "equal-priority b spec.ingress[0]"],
    );
    let web = "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]";
    finds(&[admin("a", "1", deny), policy("np", web)], &["overruled-rule np spec.ingress[0]"]);
    // What the Admin tier passes on is for NetworkPolicies to decide.
    let pass = deny.replace("Deny", "Pass");
    finds(
        &[admin("a", "1", &format!("{pass}, {deny}")), policy("np", web)],
        &["shadowed-rule a spec.ingress[1]"],
    );
    let fronts = "{action: Accept, from: [{pods: {podSelector: {matchLabels: {tier: front}}}}]}, {action: Accept, from: [{pods: {podSelector: {matchLabels: {app: web}}}}]}";
    finds(&[admin("a", "1", fronts)], &["shadowed-now a spec.ingress[1]"]);
    let baseline = admin("b", "1", &pass).replace("Admin", "Baseline");
    finds(&[baseline], &["baseline-pass b spec.ingress[0]"]);
    let of_api = "tier: Baseline, priority: 1, subject: {pods: {podSelector: {matchLabels: {app: api}}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]";
    finds(&[policy("np", web), of_cluster("b", of_api)], &["unreached-baseline b spec.ingress"]);
}

#[test]
fn forgotten_dns_is_found() {
    let to_api = "{to: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 9000}]}";
    let web = |more: &str| {
        policy(
            "web",
            &format!(
                "podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{to_api}{more}]"
            ),
        )
    };
    finds(&[web("")], &["dns-egress web spec.egress"]);
    let dns = ", {to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}MORE]}";
    finds(&[web(&dns.replace("MORE", ""))], &["dns-tcp web spec.egress"]);
    finds(&[web(&dns.replace("MORE", ", {port: 53}"))], &[]);
    // A resolver on the node, by its address.
    finds(
        &[web(
            ", {to: [{ipBlock: {cidr: 169.254.20.10/32}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}",
        )],
        &[],
    );
    // Who may go nowhere needs no names.
    finds(&[policy("sealed", "podSelector: {}, policyTypes: [Egress]")], &[]);
    // The Admin tier lets it pass.
    let admin = of_cluster(
        "dns",
        "tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{pods: {podSelector: {matchLabels: {k8s-app: kube-dns}}}}]}]",
    );
    finds(&[admin, web("")], &[]);
}

#[test]
fn flows_that_only_one_end_allows_are_found() {
    let into_api = policy(
        "api",
        "podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 9000}]}]",
    );
    let out_of_web = |port: &str| {
        policy(
            "web",
            &format!(
                "podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{{to: [{{podSelector: {{matchLabels: {{app: api}}}}}}], ports: [{{port: {port}}}]}}, {{ports: [{{port: 53, protocol: UDP}}, {{port: 53}}]}}]"
            ),
        )
    };
    finds(&[into_api.clone(), out_of_web("9000")], &[]);
    finds(
        &[
            into_api.clone(),
            policy("sealed", "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]"),
        ],
        &["half-open api spec.ingress[0]"],
    );
    // They name each other, and not the same port.
    assert_eq!(
        found_with("", &[into_api, out_of_web("9001")])
            .into_iter()
            .filter(|one| one.starts_with("half-open"))
            .collect::<Vec<_>>(),
        ["half-open api spec.ingress[0]", "half-open web spec.egress[0]"]
    );
}

#[test]
fn findings_have_the_lines_of_their_fields() {
    let text = CLUSTER.replace("POLICIES", "")
        + "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: a
  namespace: shop
spec:
  podSelector:
    matchLabels: {app: api}
  ingress:
    - ports:
        - port: 9000
    - from:
        - podSelector: {matchLabels: {app: web}}
        - podSelector:
            matchLabels:
              app: wbe
";
    let line = 1 + text.lines().position(|line| line == "        - podSelector:").expect("it is there");
    let output = lint(&text, &["-o", "json", "--only", "label-typo"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["findings"][0]["line"], line, "{report}");
    let file = report["findings"][0]["file"].as_str().expect("text");
    assert!(file.ends_with("cluster.yaml"), "{file}");
}

#[test]
fn severity_decides_about_the_exit_code() {
    let note = policy(
        "a",
        "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]",
    );
    let text = CLUSTER.replace("POLICIES", "") + &note;
    assert_eq!(lint(&text, &[]).status.code(), Some(0));
    assert_eq!(lint(&text, &["--fail-on", "note"]).status.code(), Some(1));
    assert_eq!(lint(&text, &["--fail-on", "note", "--skip", "wide-block"]).status.code(), Some(0));
    assert_eq!(lint(&text, &["--fail-on", "note", "--only", "dns-egress,label-typo"]).status.code(), Some(0));
    let warning = text + &policy("b", "podSelector: {matchLabels: {app: cache}}");
    assert_eq!(lint(&warning, &[]).status.code(), Some(1));
    assert_eq!(lint(&warning, &["--fail-on", "error"]).status.code(), Some(0));
}

#[test]
fn what_cannot_be_read_is_not_judged() {
    for (arguments, why) in [
        (&["lint", "-f", "/nowhere.yaml"] as &[&str], "cannot read /nowhere.yaml"),
        (&["lint"], "--filename"),
        (&["lint", "-f", "x", "--only", "typo"], "invalid value 'typo'"),
    ] {
        let output = podpath(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(why), "{arguments:?}: {said}");
    }
}

#[test]
fn help_has_the_table_of_checks() {
    let help = podpath(&["lint", "--help"]);
    for slug in ["contradictory-selector", "dns-egress", "covered-now", "half-open"] {
        assert!(stdout(&help).contains(slug), "{slug}");
    }
}
