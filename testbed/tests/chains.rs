//! `chains` in memory against the oracle: two readings of the same text that share no code. `random.rs` does it
//! on clusters drawn by lot. As root, the kernel's own tools read and write what `chains` does.

use std::process::Command;

use testbed::dataplane::chains::judge::Judge;
use testbed::dataplane::chains::{Family, Ruleset};
use testbed::dataplane::netfilter::Tool;
use testbed::netns::Netns;
use testbed::probe::{Flow, Grid, all_pairs};
use userspace::model::{self, Cluster, Protocol, Who};

#[test]
fn chains_reach_in_the_shop_exactly_whom_its_policies_let() {
    let text = include_str!("../examples/shop.yaml");
    let cluster = model::load_text("shop.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    assert!(agrees(&cluster, all_pairs(&cluster), "the shop") > 20);
}

/// Whoever is asked about in a cluster, `chains` says what the oracle does. How many flows that were.
#[track_caller]
fn agrees(cluster: &Cluster, flows: Vec<Flow>, what: &str) -> usize {
    let mut judge = Judge::new(cluster).unwrap_or_else(|error| panic!("{what}: {error}"));
    let grid = Grid::measure(cluster, flows, &mut judge).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(grid.differences, 0, "{what}\n{}", grid.differing());
    grid.rows.len()
}

/// The settings of the networking models, of both families, the one first or the other.
const MODELS: [&str; 7] = [
    "model: overlay, podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']",
    "model: overlay, encapsulation: geneve, podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']",
    "model: overlay, tunnelPort: 4789, podCIDRs: ['fd00:10:244::/48', 10.244.0.0/16]",
    "model: kubenet, podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']",
    "model: flat",
    "model: flat-dynamic, podSubnets: [10.244.0.0/16, 'fd00:10:244::/48']",
    "model: overlay, nonMasqueradeCIDRs: [203.0.113.0/24], podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']",
];

/// Three nodes; pods `web` and `api-1` on the first, `api-2` on the second, `sink` on the host's network of the third.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: services}
spec: {nodes: 3, SETTINGS, nodeSubnets: SUBNETS}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: near}
spec: {address: 203.0.113.7}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: far}
spec: {address: 198.51.100.9}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: near6}
spec: {address: '2001:db8:1::7'}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: n1, containers: [{name: c, image: i, ports: [{containerPort: 8080, hostPort: 9000}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api-1, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}, {containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api-2, labels: {app: api, only: second}}
spec: {nodeName: n2, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: sink, labels: {app: sink}}
spec: {nodeName: n3, hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 7000}]}]}
"#;

/// A Service of this name, for pods with a label, with more of a spec.
fn service(name: &str, label: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ipFamilyPolicy: PreferDualStack, \
         selector: {{{label}}}, ports: [{{name: a, port: 80, targetPort: 8080}}, \
         {{name: b, port: 53, targetPort: 5353, protocol: UDP}}], {more}}}\n"
    )
}

fn cluster(settings: &str, services: &[String]) -> Cluster {
    let six_first = settings.contains("['fd00");
    let subnets = match six_first {
        true => "['fd00:10:240::/64', 10.240.0.0/16]",
        false => "[10.240.0.0/16, 'fd00:10:240::/64']",
    };
    let text = CLUSTER.replace("SETTINGS", settings).replace("SUBNETS", subnets) + &services.concat();
    model::load_text("services.yaml", &text).unwrap_or_else(|error| panic!("{settings}: {error}"))
}

/// All pairs, and nodes as clients as well.
fn everybody(cluster: &Cluster) -> Vec<Flow> {
    let mut flows = all_pairs(cluster);
    let as_node = |flow: &Flow, node: &str| Flow { from: Who::Node(node.to_owned()), ..flow.clone() };
    let of_one: Vec<Flow> =
        flows.iter().filter(|flow| flow.from == Who::Pod("default/web".to_owned())).cloned().collect();
    for node in &cluster.nodes {
        flows.extend(of_one.iter().map(|flow| as_node(flow, &node.name)));
    }
    flows
}

#[test]
fn every_kind_of_service_leads_where_the_oracle_says_in_every_model_and_family() {
    let every = [
        service("inside", "app: api", ""),
        service("nobody", "app: nobody", "type: NodePort"),
        service("ports", "app: api", "type: NodePort"),
        service("local", "app: api, only: second", "type: NodePort, externalTrafficPolicy: Local"),
        service("home", "app: api, only: second", "internalTrafficPolicy: Local"),
        service("balanced", "app: api", "type: LoadBalancer"),
        service("near-only", "app: api", "type: LoadBalancer, loadBalancerSourceRanges: [203.0.113.0/24]"),
        service(
            "balanced-local",
            "app: api, only: second",
            "type: LoadBalancer, externalTrafficPolicy: Local",
        ),
        service("elsewhere", "app: api", "externalIPs: [192.0.2.10, '2001:db8:9::1']"),
        service("elsewhere-nobody", "app: nobody", "externalIPs: [192.0.2.11]"),
        service("sticky", "app: api", "sessionAffinity: ClientIP"),
        service("sink", "app: sink", "type: NodePort").replace("targetPort: 8080", "targetPort: 7000"),
    ];
    for settings in MODELS {
        let cluster = cluster(settings, &every);
        let asked = agrees(&cluster, everybody(&cluster), settings);
        assert!(asked > 300, "{settings}: {asked} flows");
    }
}

#[test]
fn endpoints_on_their_way_out_answer_where_none_is_ready() {
    for (ready, terminating, serving) in [(false, true, true), (false, true, false), (false, false, false)] {
        let mut cluster = cluster(MODELS[0], &[service("ports", "app: api", "type: NodePort")]);
        for backend in cluster.services[0].ports.iter_mut().flat_map(|port| &mut port.backends) {
            (backend.ready, backend.terminating, backend.serving) = (ready, terminating, serving);
        }
        agrees(&cluster, everybody(&cluster), "all on their way out");
    }
}

#[test]
fn hints_are_followed_for_cluster_addresses_alone() {
    let mut cluster = cluster(MODELS[0], &[service("ports", "app: api", "type: NodePort")]);
    let closed = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: default}
spec: {podSelector: {matchLabels: {only: second}}, ingress: []}";
    cluster.policies.push(serde_saphyr::from_str(closed).expect("it is a policy"));
    for (number, node) in cluster.nodes.iter_mut().enumerate() {
        node.labels.insert("topology.kubernetes.io/zone".to_owned(), format!("z{}", number % 2));
    }
    for backend in cluster.services[0].ports.iter_mut().flat_map(|port| &mut port.backends) {
        let zone = if backend.node.as_deref() == Some("n1") { "z0" } else { "z1" };
        backend.for_zones = vec![zone.to_owned()];
    }
    let from = |pod: &str| Flow {
        from: Who::Pod(format!("default/{pod}")),
        to: Who::Service("default/ports".to_owned()),
        port: 80,
        protocol: Protocol::Tcp,
        over: None,
    };
    agrees(&cluster, vec![from("web"), from("api-1"), from("api-2")], "hints");
}

/// What the kernel has, as its own tool writes it.
fn saved(netns: &Netns, program: &str) -> String {
    let output = netns.run(|| Command::new(program).output()).expect("the namespace is there");
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; make setup"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("rules are text")
}

#[test]
#[ignore = "needs root: make test"]
fn what_iptables_saves_of_planned_rules_is_read_as_the_same_rules() {
    let affine = service(
        "sticky",
        "app: api",
        "type: LoadBalancer, sessionAffinity: ClientIP, loadBalancerSourceRanges: [203.0.113.0/24, '2001:db8::/32'], externalTrafficPolicy: Local",
    );
    let services =
        [service("ports", "app: api", "type: NodePort"), service("nobody", "app: nobody", ""), affine];
    let shop = model::load_text("shop.yaml", include_str!("../examples/shop.yaml"));
    let clusters = [cluster(MODELS[0], &services), cluster(MODELS[4], &services), shop.expect("it is sound")];
    for (flavour, suffix) in [("nf_tables", ""), ("legacy", "-legacy")] {
        for (number, cluster) in clusters.iter().enumerate() {
            for (family, word) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
                let name = format!("podpath-test-{}-saved-{number}-{word}{suffix}", std::process::id());
                let netns = Netns::create(name).unwrap_or_else(|error| panic!("{error}")).guarded();
                let planned =
                    Ruleset::plan(cluster, &cluster.nodes[0].name, family).expect("it can be planned");
                let program = format!("{word}{suffix}-restore").leak();
                let restore = Tool { program, arguments: &[], package: "iptables" };
                restore
                    .load(&netns, &planned.to_string())
                    .unwrap_or_else(|error| panic!("{flavour}: {error}"));
                let text = saved(&netns, &format!("{word}{suffix}-save"));
                let read = Ruleset::read("saved", &text, family)
                    .unwrap_or_else(|error| panic!("{flavour}: {error}"));
                assert_eq!(read.to_string(), planned.to_string(), "{flavour} {word}");
                assert_eq!(read, planned, "{flavour} {word}");
            }
        }
    }
}
