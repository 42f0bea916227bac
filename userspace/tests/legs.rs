//! Two nodes whose agents change them together: whatever packets pass between two changes of a row is judged as
//! before or as after.

use std::collections::BTreeMap;

use dataplane::tables::IfIndex;
use dataplane::trace::Stage;
use dataplane::wire::{Mac, V4};
use dataplane::{Reason, Verdict};
use userspace::engine::emulator::Emulator;
use userspace::engine::{Engine, Hook};
use userspace::model::{Cluster, load_text};
use userspace::plan::{LEGS, Legs, Links, Plan};

const UPLINK: IfIndex = IfIndex(1);

/// Three pods on two nodes; a policy of before, a policy of after, and labels.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: legs}
spec: {nodes: 2}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: TEAM}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: WEB}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: job, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: DB}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
"#;

const POLICIES: [&str; 4] = [
    "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
    "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
    "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 80, protocol: UDP}]}]}",
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 80, protocol: UDP}]}]}",
];

/// Numbers from a seed (Knuth's MMIX generator).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }

    fn cluster(&mut self) -> Cluster {
        let mut one = |of: [&'static str; 3]| of[self.below(3)];
        let (team, web, db) = (one(["a", "b", "a"]), one(["web", "other", "none"]), one(["db", "db", "web"]));
        let mut text = CLUSTER.replace("TEAM", team).replace("WEB", web).replace("DB", db);
        for (index, spec) in POLICIES.iter().enumerate() {
            if self.below(2) == 0 {
                text.push_str(&format!(
                    "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                     metadata: {{name: p{index}, namespace: shop}}\nspec: {spec}\n"
                ));
            }
        }
        load_text("the test's own", &text).unwrap_or_else(|error| panic!("{error}"))
    }
}

fn address(cluster: &Cluster, pod: &str) -> [u8; 4] {
    let pod = cluster.pod(&format!("shop/{pod}")).expect("the cluster has it");
    pod.address().to_string().parse::<std::net::Ipv4Addr>().expect("IPv4").octets()
}

/// Interfaces of the pods of a node.
fn links(cluster: &Cluster, node: &str) -> Links {
    let pods: BTreeMap<_, _> =
        cluster.pods_on(node).map(|pod| (pod.id(), interface(cluster, &pod.name))).collect();
    Links { uplink: UPLINK, pods, homes: None }
}

fn interface(cluster: &Cluster, pod: &str) -> IfIndex {
    IfIndex(100 + u32::from(address(cluster, pod)[3]) + 50 * u32::from(address(cluster, pod)[2]))
}

/// The direction in which a new flow is denied, if it does not arrive: from one pod to another, through the tunnel
/// if need be.
fn denied(
    nodes: &mut [Emulator; 2],
    cluster: &Cluster,
    (from, to): (&str, &str),
    ports: (u16, u16),
) -> Option<u8> {
    let (source, target) = (address(cluster, from), address(cluster, to));
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(Mac::of(V4(source)).0, Mac::GATEWAY.0)
        .ipv4(source, target, 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, b"new")
        .expect("a vector takes every byte");
    let place =
        |pod: &str| usize::from(cluster.pod(&format!("shop/{pod}")).is_some_and(|pod| pod.node == "n2"));
    let sent = nodes[place(from)].push(Hook::FromPod, interface(cluster, from), &frame).expect("it runs");
    let end = match sent.verdict {
        Verdict::Forward(UPLINK) => {
            nodes[place(to)].push(Hook::FromUnderlay, UPLINK, &sent.frame).expect("it runs")
        }
        _ => sent,
    };
    match end.verdict {
        Verdict::Deliver(_) => None,
        Verdict::Drop(Reason::PolicyDenied) => {
            let judged = end.records.iter().rev().find(|record| record.stage == Stage::Policy as u8);
            Some(judged.expect("every stage reports").direction)
        }
        other => panic!("{from} to {to}: {other:?}"),
    }
}

/// Where each flow is denied, each from a port that no flow before had.
fn grid(nodes: &mut [Emulator; 2], cluster: &Cluster, port: &mut u16) -> Vec<Option<u8>> {
    let pairs = [("web", "db"), ("db", "web"), ("job", "db"), ("db", "job"), ("web", "job"), ("job", "web")];
    let flows = pairs.into_iter().flat_map(|pair| [80, 81].map(|target| (pair, target)));
    flows
        .map(|(pair, target)| {
            *port += 1;
            denied(nodes, cluster, pair, (*port, target))
        })
        .collect()
}

#[test]
fn what_both_plans_allow_always_passes_and_what_both_deny_at_the_same_end_never_does() {
    let (mut looks, mut changed) = (0, 0);
    for seed in 0..40 {
        let mut chance = Chance(seed);
        let (cluster, next) = (chance.cluster(), chance.cluster());
        let before = Plan::of(&cluster).expect("it can be planned");
        let after = before.after(&next).expect("it can be planned");
        let planned = |plan: &Plan, node| plan.node(node, &links(&cluster, node)).expect("it is there");
        let made =
            |plan: &Plan| ["n1", "n2"].map(|node| Emulator::new(&planned(plan, node)).expect("it fits"));
        let mut port = 1024;
        let old = grid(&mut made(&before), &cluster, &mut port);
        let new = grid(&mut made(&after), &cluster, &mut port);
        let mut nodes = made(&before);
        let ways: Vec<_> = ["n1", "n2"]
            .iter()
            .zip(&nodes)
            .map(|(node, engine)| engine.legs(&planned(&after, node).rows).expect("it fits"))
            .collect();
        go(&mut nodes, &ways, &cluster, (&mut chance, &mut port), |leg, now| {
            looks += 1;
            for ((flow, now), (old, new)) in now.iter().enumerate().zip(old.iter().zip(&new)) {
                let place = format!("seed {seed}, leg {leg}: flow {flow}");
                assert!(old != new || now.is_some() == old.is_some(), "{place}: {now:?}, not {old:?}");
            }
        });
        assert_eq!(grid(&mut nodes, &cluster, &mut port), new, "seed {seed}");
        changed += usize::from(old != new);
    }
    assert!(looks > 500 && changed > 15, "{looks} looks, {changed} changes");
}

#[test]
fn where_a_way_is_given_up_what_all_three_plans_agree_on_holds_on_the_way_to_the_next() {
    let (mut looks, mut changed) = (0, 0);
    for seed in 0..200 {
        let mut chance = Chance(seed);
        let clusters = [chance.cluster(), chance.cluster(), chance.cluster()];
        let planned = |plan: &Plan, at: usize| {
            ["n1", "n2"].map(|node| plan.node(node, &links(&clusters[at], node)).expect("it is there"))
        };
        let made =
            |plan: &Plan, at: usize| planned(plan, at).map(|node| Emulator::new(&node).expect("it fits"));
        let first = Plan::of(&clusters[0]).expect("it can be planned");
        let mut second = first.after(&clusters[1]).expect("it can be planned");
        let mut nodes = made(&first, 0);
        // Some legs are gone, and of the next each node goes a part.
        let whole = chance.below(LEGS);
        for (node, to) in nodes.iter_mut().zip(planned(&second, 1)) {
            let legs = node.legs(&to.rows).expect("it fits");
            legs[..whole].iter().for_each(|leg| node.change(leg).expect("it fits"));
            node.change(&legs[whole][..chance.below(legs[whole].len() + 1)]).expect("it fits");
        }
        second.stray();
        let third = second.after(&clusters[2]).expect("it can be planned");
        let mut port = 1024;
        let plans = [(&first, 0), (&second, 1), (&third, 2)];
        let grids = plans.map(|(plan, at)| grid(&mut made(plan, at), &clusters[at], &mut port));
        let ways: Vec<_> = nodes
            .iter()
            .zip(planned(&third, 2))
            .map(|(node, to)| node.legs(&to.rows).expect("it fits"))
            .collect();
        go(&mut nodes, &ways, &clusters[2], (&mut chance, &mut port), |leg, now| {
            looks += 1;
            for (flow, now) in now.iter().enumerate() {
                let [one, two, three] = [0, 1, 2].map(|at: usize| grids[at][flow]);
                let agree = one == two && two == three;
                let place = format!("seed {seed}, leg {leg}: flow {flow}");
                assert!(!agree || now.is_some() == one.is_some(), "{place}: {now:?}, not {one:?}");
            }
        });
        assert_eq!(grid(&mut nodes, &clusters[2], &mut port), grids[2], "seed {seed}");
        changed += usize::from(grids[1] != grids[2]);
    }
    assert!(looks > 500 && changed > 15, "{looks} looks, {changed} changes");
}

/// Takes both nodes over all legs, a change of either at a time, and shows after each, with the leg that it is of, where
/// every flow is denied then.
fn go(
    nodes: &mut [Emulator; 2],
    ways: &[Legs],
    cluster: &Cluster,
    (chance, port): (&mut Chance, &mut u16),
    mut looked: impl FnMut(usize, &[Option<u8>]),
) {
    for leg in 0..LEGS {
        let mut made = [0, 0];
        while let Some(node) = turn(ways, leg, made, chance) {
            nodes[node].change(&ways[node][leg][made[node]..=made[node]]).expect("it fits");
            made[node] += 1;
            looked(leg, &grid(nodes, cluster, port));
        }
        *port = if *port > 40_000 { 1024 } else { *port };
    }
}

/// The node whose next change is made, if one has any left in this leg.
fn turn(ways: &[Legs], leg: usize, made: [usize; 2], chance: &mut Chance) -> Option<usize> {
    let left: Vec<_> = (0..2).filter(|node| made[*node] < ways[*node][leg].len()).collect();
    (!left.is_empty()).then(|| left[chance.below(left.len())])
}
