//! What lint and diff say of policies by chance, against the oracle: it says the same without all that lint calls of
//! no effect, and differs where diff says so, and nowhere else.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use testbed::diff::{Change, Difference};
use testbed::lint::{Check, Report};
use testbed::oracle::{Expectation, Oracle};
use userspace::model::{Cluster, Objects, Protocol, Who};

/// Numbers from a seed (Knuth's MMIX generator).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

const PODS: [&str; 6] = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/d"];
const PORTS: [(u16, Protocol); 4] =
    [(80, Protocol::Tcp), (81, Protocol::Tcp), (90, Protocol::Tcp), (53, Protocol::Udp)];

fn objects(chance: &mut Chance) -> Objects {
    let mut text = "apiVersion: podpath.dev/v1alpha1\nkind: Testbed\nmetadata: {name: r}\nspec: {nodes: 2}\n---\napiVersion: podpath.dev/v1alpha1\nkind: External\nmetadata: {name: w}\nspec: {address: 203.0.113.7}\n".to_owned();
    for (pod, tier) in PODS.iter().zip(["front", "back", "back", "front", "back", "front"]) {
        let (namespace, name) = pod.split_once('/').expect("both");
        let port = if name == "a" { 80 } else { 81 };
        text.push_str(&format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}, tier: {tier}}}}}\nspec: {{containers: [{{name: c, image: x, ports: [{{name: serve, containerPort: {port}}}]}}]}}\n"));
    }
    for index in 0..2 + chance.below(4) {
        let namespace = chance.of(&["x", "y"]);
        let types = chance.of(&[
            "",
            "policyTypes: [Ingress], ",
            "policyTypes: [Egress], ",
            "policyTypes: [Ingress, Egress], ",
        ]);
        let (subject, ingress, egress) = (pods(chance), rules(chance, "from"), rules(chance, "to"));
        text.push_str(&format!("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{index}, namespace: {namespace}}}\nspec: {{podSelector: {subject}, {types}ingress: [{ingress}], egress: [{egress}]}}\n"));
    }
    for index in 0..chance.below(4) {
        let tier = chance.of(&["Admin", "Baseline"]);
        let priority = chance.below(3);
        let (subject, ingress, egress) = (who(chance), tier_rules(chance, "from"), tier_rules(chance, "to"));
        text.push_str(&format!("---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: c{index}}}\nspec: {{tier: {tier}, priority: {priority}, subject: {subject}, ingress: [{ingress}], egress: [{egress}]}}\n"));
    }
    Objects::parse("random", &text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn pods(chance: &mut Chance) -> &'static str {
    chance.of(&[
        "{}",
        "{matchLabels: {tier: front}}",
        "{matchLabels: {app: a}}",
        "{matchExpressions: [{key: app, operator: In, values: [a, b]}]}",
        "{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}",
        "{matchLabels: {app: b, tier: back}}",
    ])
}

fn rules(chance: &mut Chance, side: &str) -> String {
    let rules: Vec<String> = (0..chance.below(4)).map(|_| rule(chance, side)).collect();
    rules.join(", ")
}

fn rule(chance: &mut Chance, side: &str) -> String {
    let peers: Vec<String> = (0..chance.below(3)).map(|_| peer(chance)).collect();
    let all = [
        "port: 80",
        "port: 80, endPort: 90",
        "port: serve",
        "protocol: UDP, port: 53",
        "protocol: TCP",
        "port: 81",
    ];
    let ports: Vec<String> = (0..chance.below(3)).map(|_| format!("{{{}}}", chance.of(&all))).collect();
    let list = |name: &str, items: Vec<String>| match items.is_empty() {
        true => String::new(),
        false => format!("{name}: [{}]", items.join(", ")),
    };
    let fields: Vec<String> =
        [list(side, peers), list("ports", ports)].into_iter().filter(|one| !one.is_empty()).collect();
    format!("{{{}}}", fields.join(", "))
}

fn peer(chance: &mut Chance) -> String {
    let namespaces = chance.of(&["{}", "{matchLabels: {kubernetes.io/metadata.name: x}}"]);
    match chance.below(4) {
        0 => format!("{{podSelector: {}}}", pods(chance)),
        1 => format!("{{namespaceSelector: {namespaces}, podSelector: {}}}", pods(chance)),
        2 => format!("{{namespaceSelector: {namespaces}}}"),
        _ => format!(
            "{{ipBlock: {{cidr: {}}}}}",
            chance.of(&["203.0.113.0/24", "0.0.0.0/0", "10.244.0.0/24", "10.240.0.0/16"])
        ),
    }
}

fn who(chance: &mut Chance) -> String {
    match chance.below(3) {
        0 => "{namespaces: {}}".to_owned(),
        1 => "{namespaces: {matchLabels: {kubernetes.io/metadata.name: x}}}".to_owned(),
        _ => format!("{{pods: {{podSelector: {}}}}}", pods(chance)),
    }
}

fn tier_rules(chance: &mut Chance, side: &str) -> String {
    let mut rules = Vec::new();
    for _ in 0..chance.below(4) {
        let action = chance.of(&["Accept", "Deny", "Pass"]);
        let peer = match chance.below(4) {
            0 if side == "to" => "{networks: [203.0.113.0/24, 10.244.0.0/24]}".to_owned(),
            1 if side == "to" => "{nodes: {}}".to_owned(),
            _ => who(chance),
        };
        let ports = chance.of(&[
            "",
            ", protocols: [{tcp: {destinationPort: {number: 80}}}]",
            ", protocols: [{tcp: {destinationPort: {range: {start: 80, end: 90}}}}]",
        ]);
        rules.push(format!("{{action: {action}, {side}: [{peer}]{ports}}}"));
    }
    rules.join(", ")
}

/// What the oracle says of every flow.
fn grid(cluster: &Cluster) -> Vec<String> {
    let pods = PODS.iter().map(|pod| Who::Pod((*pod).to_owned()));
    let nodes = cluster.nodes.iter().map(|node| Who::Node(node.name.clone()));
    let ends: Vec<Who> = pods.chain(nodes).chain([Who::External("w".into())]).collect();
    let (oracle, mut grid) = (Oracle::of(cluster), Vec::new());
    for (from, to) in ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to))) {
        for (port, protocol) in PORTS {
            let denied = matches!(oracle.expect(from, to, port, protocol), Expectation::Deny(_));
            grid.push(format!("{from} {to} {port}/{protocol}: {}", if denied { "deny" } else { "pass" }));
        }
    }
    grid
}

/// Takes out what is redundant: whole policies, and rules.
fn without(cluster: &Cluster, report: &Report) -> Cluster {
    let mut left = cluster.clone();
    let mut redundant: Vec<(&str, &str)> =
        report.findings.iter().map(|finding| (finding.object.as_str(), finding.field.as_str())).collect();
    // From the last rule of a policy to the first, so that places stay what they are.
    redundant.reverse();
    redundant.dedup();
    for (object, field) in redundant {
        let (list, index) = field.trim_end_matches(']').split_once('[').unwrap_or((field, "0"));
        let index: usize = index.parse().expect("a number");
        if let Some(name) = object.strip_prefix("ClusterNetworkPolicy ") {
            let policy =
                left.cluster_policies.iter_mut().find(|policy| policy.name == name).expect("it is there");
            let rules = if list == "spec.ingress" { &mut policy.ingress } else { &mut policy.egress };
            rules.remove(index);
            continue;
        }
        if list == "spec" {
            left.policies.retain(|policy| title(policy) != object);
            continue;
        }
        let spec = left
            .policies
            .iter_mut()
            .find(|policy| title(policy) == object)
            .and_then(|policy| policy.spec.as_mut());
        let spec = spec.expect("it is there, with a spec");
        match list {
            "spec.ingress" => drop(spec.ingress.as_mut().expect("it has rules").remove(index)),
            "spec.egress" => drop(spec.egress.as_mut().expect("it has rules").remove(index)),
            other => panic!("{other}"),
        }
    }
    left
}

fn title(policy: &NetworkPolicy) -> String {
    let name = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("NetworkPolicy {}/{}", name(&policy.metadata.namespace), name(&policy.metadata.name))
}

const FOUND: [Check; 6] = [
    Check::RedundantPolicy,
    Check::RedundantRule,
    Check::CoveredNow,
    Check::ShadowedRule,
    Check::ShadowedNow,
    Check::OverruledRule,
];

#[test]
fn without_what_decides_nothing_the_oracle_says_the_same() {
    let mut found = [0; FOUND.len()];
    for seed in 0..400 {
        let objects = objects(&mut Chance(seed));
        let cluster = objects.resolve(None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let report = Report::of(&objects, &cluster, |check| FOUND.contains(&check));
        for finding in &report.findings {
            let place = FOUND.iter().position(|check| check.slug() == finding.check);
            found[place.expect("nothing else was wanted")] += 1;
        }
        let (before, after) = (grid(&cluster), grid(&without(&cluster, &report)));
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before, after, "seed {seed}: {:#?}\n{:#?}", report.findings, cluster);
        }
    }
    assert!(found.iter().all(|count| *count >= 5), "too few to prove anything: {found:?}");
}

/// Flows as `from to port`, without those between a pod and its own node: they are left open, or always pass.
fn flows(cluster: &Cluster, changes: &[Change], ports: &[u16]) -> BTreeSet<String> {
    let mut flows = BTreeSet::new();
    for change in changes {
        let pairs = change.from.iter().flat_map(|from| change.to.iter().map(move |to| (from, to)));
        let pairs = pairs.flat_map(|(from, to)| {
            from.members.iter().flat_map(|from| to.members.iter().map(move |to| (from.as_str(), to.as_str())))
        });
        let at = ports.iter().filter(|port| change.ports.iter().any(|spelled| holds(spelled, **port)));
        let at: Vec<&u16> = at.collect();
        for (from, to) in pairs.filter(|(from, to)| from != to && !is_its_node(cluster, from, to)) {
            flows.extend(at.iter().map(|port| format!("{from} {to} {port}")));
        }
    }
    flows
}

/// Whether a port over TCP is among `80-90/tcp`.
fn holds(spelled: &str, port: u16) -> bool {
    if spelled == "every port" {
        return true;
    }
    let Some(numbers) = spelled.strip_suffix("/tcp") else { return false };
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok();
    matches!((number(first), number(last)), (Some(first), Some(last)) if (first..=last).contains(&port))
}

fn is_its_node(cluster: &Cluster, from: &str, to: &str) -> bool {
    let on = |pod: &str, node: &str| {
        cluster.pod(pod).is_some_and(|pod| node.strip_prefix("node:") == Some(pod.node.as_str()))
    };
    on(from, to) || on(to, from)
}

#[test]
fn what_opens_and_closes_is_where_the_oracle_says_something_else() {
    // Every pod declares one of these, so each is a stretch of its own.
    const ASKED: [u16; 2] = [80, 81];
    let mut seen = [0, 0];
    for seed in 0..50 {
        let [old, new] = [seed, seed + 1000].map(|seed| objects(&mut Chance(seed)));
        let old = old.resolve(None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let new = new.resolve(Some(&old)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let difference =
            Difference::between(&old, &new).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let [mut opened, mut closed] = [BTreeSet::new(), BTreeSet::new()];
        for (before, after) in grid(&old).iter().zip(&grid(&new)).filter(|(before, after)| before != after) {
            let (flow, was) = before.split_once("/TCP: ").unwrap_or((before, "another protocol"));
            let (ends, port) = flow.rsplit_once(' ').expect("it has a port");
            let (from, to) = ends.split_once(' ').expect("it has two ends");
            let asked = port.parse().is_ok_and(|port: u16| ASKED.contains(&port));
            if !asked || is_its_node(&old, from, to) {
                continue;
            }
            let list = if was == "deny" { &mut opened } else { &mut closed };
            assert!(was == "deny" || was == "pass", "{before} {after}");
            list.insert(flow.to_owned());
        }
        assert_eq!(flows(&old, &difference.opened, &ASKED), opened, "seed {seed}");
        assert_eq!(flows(&old, &difference.closed, &ASKED), closed, "seed {seed}");
        seen = [seen[0] + opened.len(), seen[1] + closed.len()];
    }
    assert!(seen.iter().all(|count| *count > 100), "too few to prove anything: {seen:?}");
}
