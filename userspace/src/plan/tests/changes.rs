//! From plan to plan, row by row.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Change, FrontendKey, LEGS, NodeChange, NodeRows, Plan, Use, diff, peak};
use super::differential::Dice;
use super::*;

/// The changes of IPv4's tables: all that there are here.
fn changes(from: &Rows<V4>, to: &Rows<V4>) -> Vec<Change<V4>> {
    changes_within(from, to, ROOM.0)
}

/// The same where the policy table holds so many rows.
fn changes_within(from: &Rows<V4>, to: &Rows<V4>, policy_rows: u32) -> Vec<Change<V4>> {
    let node = |rows: &Rows<V4>| NodeRows { v4: rows.clone(), ..NodeRows::default() };
    let change = |change| match change {
        NodeChange::V4(change) => change,
        other => panic!("nothing else is different: {other:?}"),
    };
    diff(&node(from), &node(to), (policy_rows, ROOM.1)).into_iter().flatten().map(change).collect()
}

/// How much of IPv4's tables is used while changes are made.
fn used(from: &Rows<V4>, changes: &[Change<V4>]) -> Vec<Use> {
    let changes: Vec<_> = changes.iter().copied().map(NodeChange::V4).collect();
    peak(&NodeRows { v4: from.clone(), ..NodeRows::default() }, &changes)
}

/// Makes one change.
fn make(rows: &mut Rows<V4>, change: Change<V4>) {
    fn row<K: Ord, R>(rows: &mut BTreeMap<K, R>, key: K, row: Option<R>) {
        match row {
            Some(row) => drop(rows.insert(key, row)),
            None => assert!(rows.remove(&key).is_some(), "only what is there is removed"),
        }
    }
    fn cell<R: Copy>(rows: &mut Vec<R>, index: u32, row: R) {
        let length = rows.len().max(index as usize + 1);
        rows.resize(length, row);
        rows[index as usize] = row;
    }
    match change {
        Change::Endpoint(key, it) => row(&mut rows.endpoints, key, it),
        Change::Frontend(key, it) => row(&mut rows.frontends, key, it),
        Change::Slot(index, it) => cell(&mut rows.maglev, index, it),
        Change::Backend(index, it) => cell(&mut rows.backends, index, it),
        Change::SourceRange(key, it) => row(&mut rows.source_ranges, key, it),
        Change::Identity(key, it) => row(&mut rows.identities, key, it),
        Change::Policy(key, it) => row(&mut rows.policy, key, it),
        Change::Route(key, it) => row(&mut rows.routes, key, it),
        Change::Home(key, it) => row(&mut rows.homes, key, it),
    }
}

/// Some of the cluster changed: labels, pods, policies of both sorts, backends.
fn changed(cluster: &Cluster, dice: &mut Dice) -> Cluster {
    let (mut cluster, other) = (cluster.clone(), dice.cluster());
    let donors = cluster.pods.clone();
    for pod in &mut cluster.pods {
        if dice.once_in(4) {
            pod.labels = donors[dice.below(donors.len())].labels.clone();
        }
    }
    cluster.pods.retain(|_| !dice.once_in(6));
    cluster.policies.retain(|_| !dice.once_in(3));
    let start = dice.below(cluster.policies.len() + 1);
    for (mut policy, index) in other.policies.into_iter().zip(0..2) {
        policy.metadata.name = Some(format!("new{index}"));
        cluster.policies.insert(start, policy);
    }
    for (index, mut pod) in other.pods.into_iter().enumerate().filter(|(_, pod)| !pod.host_network) {
        if dice.once_in(3) {
            pod.name = format!("new{index}");
            pod.addresses = vec![ip(&format!("10.244.0.{}", 100 + index))];
            cluster.pods.push(pod);
        }
    }
    if dice.once_in(3) {
        let label = ("team".to_owned(), (*dice.one(&["a", "b"])).to_owned());
        cluster.namespaces.entry("a".to_owned()).or_default().extend([label]);
    }
    cluster.cluster_policies.retain(|_| !dice.once_in(3));
    for (mut policy, index) in other.cluster_policies.into_iter().zip(0..2) {
        policy.name = format!("new{index}");
        cluster.cluster_policies.push(policy);
    }
    cluster.cluster_policies.sort_by_key(|policy| (policy.tier, policy.priority));
    for service in &mut cluster.services {
        service.ports[0].backends.retain(|_| !dice.once_in(3));
    }
    cluster.services.retain(|_| !dice.once_in(5));
    let services = other.services.into_iter().enumerate();
    cluster.services.extend(services.map(|(index, mut service)| {
        service.addresses[0] = ip(&format!("10.96.7.{index}"));
        service
    }));
    cluster
}

fn frontends(rows: &Rows<V4>) -> BTreeMap<FrontendKey<V4>, BTreeSet<String>> {
    let keys = rows.frontends.keys();
    keys.map(|key| (*key, answering(rows, &key.address.to_string(), key.port).into_iter().collect()))
        .collect()
}

/// Two plans of a node, one after the other, and the interfaces in both.
fn step(seed: u64) -> (Rows<V4>, Rows<V4>) {
    let mut dice = Dice(seed);
    let cluster = dice.cluster();
    let next = changed(&cluster, &mut dice);
    let both = [&cluster, &next].map(|cluster| cluster.pods.iter());
    let pods: BTreeSet<_> = both.into_iter().flatten().map(Pod::id).collect();
    let pods = pods.into_iter().zip(101..).map(|(pod, index)| (pod, IfIndex(index))).collect();
    let links = Links { uplink: IfIndex(1), pods, homes: None };
    let before = Plan::of(&cluster).expect("it can be planned");
    let after = before.after(&next).expect("it can be planned");
    let rows = |plan: &Plan| plan.node("n1", &links).expect("n1 is there").rows.v4;
    (rows(&before), rows(&after))
}

#[test]
fn the_changes_lead_from_one_plan_s_rows_to_the_other_s() {
    for seed in 0..300 {
        let (from, to) = step(seed);
        let mut rows = from.clone();
        let mut most: Vec<_> = used(&from, &[]).into_iter().map(|used| used.rows).collect();
        let changes = changes(&from, &to);
        for change in &changes {
            make(&mut rows, *change);
            for (most, used) in most.iter_mut().zip(used(&rows, &[])) {
                *most = used.rows.max(*most);
            }
        }
        for (most, bound) in most.into_iter().zip(used(&from, &changes)) {
            assert_eq!(most, bound.rows, "seed {seed}: {}", bound.table);
        }
        rows.maglev.truncate(to.maglev.len());
        rows.backends.truncate(to.backends.len());
        assert_eq!(rows, to, "seed {seed}");
        assert!(super::changes::changes(&to, &to).is_empty());
    }
}

#[test]
fn at_every_step_a_service_leads_to_its_backends_of_before_or_after() {
    for seed in 0..300 {
        let (from, to) = step(seed);
        let (before, after) = (frontends(&from), frontends(&to));
        let mut rows = from.clone();
        for change in changes(&from, &to) {
            make(&mut rows, change);
            // Slots change by the hundred; what is seen of them is looked at now and then.
            if matches!(change, Change::Slot(index, _) if index % 50 != 0) {
                continue;
            }
            for (key, ends) in frontends(&rows) {
                let known = [before.get(&key), after.get(&key)];
                assert!(known.contains(&Some(&ends)), "seed {seed}: {key:?}: {ends:?}, {known:?}");
            }
        }
    }
}

#[test]
fn where_a_way_is_given_up_a_service_leads_to_backends_that_it_has_in_one_of_the_three_plans() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let cluster = dice.cluster();
        let clusters = [changed(&cluster, &mut dice), changed(&cluster, &mut dice)];
        let pods = [&cluster, &clusters[0], &clusters[1]].map(|cluster| cluster.pods.iter());
        let pods: BTreeSet<_> = pods.into_iter().flatten().map(Pod::id).collect();
        let pods = pods.into_iter().zip(101..).map(|(pod, index)| (pod, IfIndex(index))).collect();
        let links = Links { uplink: IfIndex(1), pods, homes: None };
        let rows = |plan: &Plan| plan.node("n1", &links).expect("n1 is there").rows.v4;
        let first = Plan::of(&cluster).expect("it can be planned");
        let mut second = first.after(&clusters[0]).expect("it can be planned");
        let mut now = rows(&first);
        let way = changes(&now, &rows(&second));
        way[..dice.below(way.len() + 1)].iter().for_each(|change| make(&mut now, *change));
        second.stray();
        let third = second.after(&clusters[1]).expect("it can be planned");
        let plans = [&first, &second, &third].map(|plan| frontends(&rows(plan)));
        for change in changes(&now, &rows(&third)) {
            make(&mut now, change);
            for (key, ends) in frontends(&now) {
                let known: BTreeSet<_> = plans.iter().filter_map(|plan| plan.get(&key)).flatten().collect();
                assert!(ends.iter().all(|end| known.contains(end)), "seed {seed}: {key:?}: {ends:?}");
            }
        }
    }
}

/// Flows that are judged for the pods of the node: pod, direction, peer, target.
type Flow = (V4, u8, V4, (u8, u16));

fn flows(from: &Rows<V4>, to: &Rows<V4>) -> Vec<Flow> {
    let pods: BTreeSet<_> = from.endpoints.keys().chain(to.endpoints.keys()).copied().collect();
    let others = ["10.244.0.3", "10.244.1.2", "10.244.1.3", "10.244.2.4", "10.240.0.5", "203.0.113.7"];
    let others: BTreeSet<_> = others.map(v4).into_iter().chain(pods.iter().copied()).collect();
    let mut flows = Vec::new();
    for pod in &pods {
        for other in others.iter().filter(|other| *other != pod) {
            for direction in [INGRESS, EGRESS] {
                flows.extend([(TCP, 80), (UDP, 53)].map(|target| (*pod, direction, *other, target)));
            }
        }
    }
    flows
}

/// What is judged of a flow; `None` where the pod is not there. What comes from a pod of the node comes with what
/// its endpoint says of it, where that says something.
fn now(rows: &Rows<V4>, (pod, direction, other, target): Flow) -> Option<Judged> {
    rows.endpoints.get(&pod)?;
    let carried = rows.endpoints.get(&other).filter(|_| direction == INGRESS).map(|peer| peer.identity);
    let says = |carried: &Identity| *carried >= Identity::FIRST || *carried == Identity::WORLD;
    let peer = carried.filter(says).unwrap_or_else(|| identity(rows, other));
    Some(judged_as(rows, pod, direction, peer, target))
}

/// Makes the changes one by one, and tells of every verdict that differs from both those of before and after.
fn each_step(from: &Rows<V4>, to: &Rows<V4>, changes: &[Change<V4>], mut third: impl FnMut(Flow, Judged)) {
    let flows = flows(from, to);
    let known: Vec<_> = flows.iter().map(|flow| (now(from, *flow), now(to, *flow))).collect();
    let mut rows = from.clone();
    for change in changes {
        make(&mut rows, *change);
        if !matches!(change, Change::Identity(..) | Change::Policy(..) | Change::Endpoint(..)) {
            continue;
        }
        for (flow, (before, after)) in flows.iter().zip(&known) {
            let judged = now(&rows, *flow);
            if let Some(judged) = judged.filter(|judged| ![*before, *after].contains(&Some(*judged))) {
                third(*flow, judged);
            }
        }
    }
}

#[test]
fn at_every_step_every_flow_is_judged_as_before_or_as_after() {
    for seed in 0..150 {
        let (from, to) = step(seed);
        each_step(&from, &to, &changes(&from, &to), |flow, judged| {
            panic!("seed {seed}: {flow:?}: {judged:?}");
        });
    }
}

/// The nodes of a cluster, from one plan to the other; and who has which address in either.
struct Nodes {
    from: Vec<Rows<V4>>,
    to: Vec<Rows<V4>>,
    pods: BTreeSet<V4>,
}

/// A step of a cluster of three nodes. Some pods that go leave their address to others, on whatever node.
fn step_of_all(seed: u64) -> Nodes {
    let mut dice = Dice(seed);
    let cluster = dice.cluster();
    let mut next = changed(&cluster, &mut dice);
    for gone in cluster.pods.iter().filter(|pod| !pod.host_network) {
        if next.pod(&gone.id()).is_none() && dice.once_in(2) {
            let (name, node) = (format!("again-{}", gone.name), format!("n{}", dice.below(3) + 1));
            let labels = dice.one(&cluster.pods).labels.clone();
            next.pods.push(Pod { name, node, labels, ..gone.clone() });
        }
    }
    let plan = Plan::of(&cluster).expect("it can be planned");
    nodes(&plan, &cluster, (&plan.after(&next).expect("it can be planned"), &next))
}

/// The rows of all nodes by two plans.
fn nodes(before: &Plan, cluster: &Cluster, (after, next): (&Plan, &Cluster)) -> Nodes {
    let both = || cluster.pods.iter().chain(&next.pods);
    let names: BTreeSet<_> = both().map(Pod::id).collect();
    let pods = names.into_iter().zip(101..).map(|(pod, index)| (pod, IfIndex(index))).collect();
    let links = Links { uplink: IfIndex(1), pods, homes: None };
    let rows = |plan: &Plan| {
        let nodes = ["n1", "n2", "n3"].into_iter();
        nodes.map(|node| plan.node(node, &links).expect("it is there").rows.v4).collect()
    };
    let own = both().filter(|pod| !pod.host_network);
    let pods = own.map(|pod| v4(&pod.address().to_string())).collect();
    Nodes { from: rows(before), to: rows(after), pods }
}

/// What is judged of a flow, wherever its pod is; what comes from another pod comes with what its node says of it.
/// `None` where the pod is not there, or whoever would send.
fn anywhere(
    nodes: &[Rows<V4>],
    pods: &BTreeSet<V4>,
    (pod, direction, other, target): Flow,
) -> Option<Judged> {
    let at = |pod: &V4| nodes.iter().position(|rows| rows.endpoints.contains_key(pod));
    let rows = &nodes[at(&pod)?];
    let sends = direction == INGRESS && pods.contains(&other);
    let carried = if sends { Some(nodes[at(&other)?].endpoints[&other].identity) } else { None };
    let says = |carried: &Identity| *carried >= Identity::FIRST || *carried == Identity::WORLD;
    let peer = carried.filter(says).unwrap_or_else(|| identity(rows, other));
    Some(judged_as(rows, pod, direction, peer, target))
}

/// Makes the changes of all nodes leg by leg, within a leg in any order, and looks at every flow after each.
fn together(way: &Nodes, dice: &mut Dice, place: &str) -> usize {
    let Nodes { from, to, pods } = way;
    let node = |rows: &Rows<V4>| NodeRows { v4: rows.clone(), ..NodeRows::default() };
    let ways: Vec<_> = from.iter().zip(to).map(|(from, to)| diff(&node(from), &node(to), ROOM)).collect();
    let mut flows = Vec::new();
    for (from, to) in from.iter().zip(to) {
        flows.extend(self::flows(from, to));
    }
    let known: Vec<_> =
        flows.iter().map(|flow| (anywhere(from, pods, *flow), anywhere(to, pods, *flow))).collect();
    let (mut rows, mut steps) = (from.clone(), 0);
    for leg in 0..LEGS {
        let mut left: Vec<_> =
            ways.iter().enumerate().map(|(node, legs)| (node, legs[leg].iter().peekable())).collect();
        loop {
            left.retain_mut(|(_, changes)| changes.peek().is_some());
            if left.is_empty() {
                break;
            }
            let place_in = dice.below(left.len());
            let (node, changes) = &mut left[place_in];
            let Some(NodeChange::V4(change)) = changes.next().copied() else { continue };
            make(&mut rows[*node], change);
            if let Change::Identity(_, Some(identity)) = change {
                assert!(identity.0 < 1 << 24, "{place}: the tunnel has no room for {identity:?}");
            }
            if !matches!(change, Change::Identity(..) | Change::Policy(..) | Change::Endpoint(..)) {
                continue;
            }
            steps += 1;
            for (flow, (before, after)) in flows.iter().zip(&known) {
                let judged = anywhere(&rows, pods, *flow);
                let as_known = judged.is_none() || [*before, *after].contains(&judged);
                assert!(as_known, "{place}, leg {leg}: {flow:?}: {judged:?}, not {before:?} or {after:?}");
            }
        }
    }
    steps
}

#[test]
fn between_nodes_every_flow_is_judged_as_before_or_as_after_at_every_step() {
    let mut steps = 0;
    for seed in 0..100 {
        steps += together(&step_of_all(seed), &mut Dice(seed ^ 77), &format!("seed {seed}"));
    }
    assert!(steps > 5_000, "{steps}");
}

#[test]
fn without_room_for_both_pods_are_closed_and_never_judged_otherwise() {
    let mut closed = 0;
    for seed in 0..150 {
        let (from, to) = step(seed);
        let room = from.policy.len().max(to.policy.len()) as u32;
        let changes = changes_within(&from, &to, room);
        each_step(&from, &to, &changes, |flow, judged| {
            assert_eq!(judged, Judged::Closed, "seed {seed}: {flow:?}");
            closed += 1;
        });
        let used = used(&from, &changes).into_iter().find(|used| used.table == "policy");
        assert!(used.is_some_and(|used| used.rows <= room as usize), "seed {seed}: {used:?}, {room}");
        let mut rows = from.clone();
        changes.iter().for_each(|change| make(&mut rows, *change));
        assert_eq!((rows.policy, rows.identities, rows.endpoints), (to.policy, to.identities, to.endpoints));
    }
    assert!(closed > 0);
}

#[test]
fn a_new_pod_is_judged_from_its_first_packet() {
    let mut cluster = cluster(1);
    pod(&mut cluster, "a/web", ("n1", "10.244.0.5"), &["app=web"]);
    policy(&mut cluster, "a/deny", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    let before = planned(&cluster, "n1").rows.v4;
    pod(&mut cluster, "a/db", ("n1", "10.244.0.6"), &["app=db"]);
    let after = planned(&cluster, "n1").rows.v4;
    let mut rows = before.clone();
    let mut seen = false;
    for change in changes(&before, &after) {
        make(&mut rows, change);
        if let Some(judged) = now(&rows, (v4("10.244.0.6"), INGRESS, v4("10.244.0.5"), (TCP, 80))) {
            assert_eq!(judged, Judged::Denied(0));
            seen = true;
        }
    }
    assert!(seen);
}

#[test]
fn new_labels_of_a_pod_come_to_what_a_plan_of_everything_says() {
    let mut judgements = 0;
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut cluster = dice.cluster();
        let links = links(&cluster);
        let mut plan = Plan::of(&cluster).expect("it can be planned");
        let mut rows = plan.node("n1", &links).expect("n1 is there").rows;
        for turn in 0..6 {
            if cluster.pods.is_empty() {
                break;
            }
            let index = dice.below(cluster.pods.len());
            let donors = dice.cluster().pods;
            let labels = donors.first().map(|pod| pod.labels.clone()).unwrap_or_default();
            cluster.pods[index].labels = labels.clone();
            let id = cluster.pods[index].id();
            let before = rows.v4.clone();
            let legs = plan.relabel(("n1", &links), &id, &labels).expect("all pods have interfaces");
            let changes = legs.concat();
            changes.iter().for_each(|change| rows.make(*change));
            let place = format!("seed {seed}, turn {turn}: {id}");
            assert_eq!(rows, plan.node("n1", &links).expect("n1 is there").rows, "{place}");
            let changes: Vec<_> = changes.iter().filter_map(NodeChange::v4).collect();
            each_step(&before, &rows.v4, &changes, |flow, judged| panic!("{place}: {flow:?}: {judged:?}"));

            let fresh = planned(&cluster, "n1");
            let changed = plan.node("n1", &links).expect("n1 is there");
            let named = |plan: &NodePlan, flow| {
                let name = |rule: u32| plan.rules.v4[rule as usize].clone();
                now(&plan.rows.v4, flow).map(|judged| match judged {
                    Judged::Allowed(rule) | Judged::Denied(rule) => (judged.passes(), Some(name(rule))),
                    Judged::NotIsolated | Judged::Closed => (judged.passes(), None),
                })
            };
            assert_eq!(fresh.rows.v4.policy.len(), changed.rows.v4.policy.len(), "{place}");
            for flow in flows(&fresh.rows.v4, &changed.rows.v4) {
                assert_eq!(named(&changed, flow), named(&fresh, flow), "{place}: {flow:?}");
                judgements += 1;
            }
        }
    }
    assert!(judgements > 5000, "{judgements}");
}

#[test]
fn rules_that_the_table_has_no_room_for_close_their_own_pods_alone() {
    let mut cluster = cluster(1);
    pod(&mut cluster, "a/web", ("n1", "10.244.0.5"), &["app=web"]);
    pod(&mut cluster, "a/db", ("n1", "10.244.0.6"), &["app=db"]);
    // Thirty prefixes of ports, for each of so many peers that are told apart.
    let peers: Vec<_> = (0..2200_u32)
        .map(|index| json!({"ipBlock": {"cidr": format!("20.0.{}.{}/32", index / 256, index % 256)}}))
        .collect();
    let ports = json!([{"port": 1, "endPort": 65_534}]);
    let spec =
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": peers, "ports": ports}]});
    policy(&mut cluster, "a/huge", spec);
    policy(&mut cluster, "a/small", json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{}]}));
    let plan = Plan::of(&cluster).expect("it can be planned");
    let rows = plan.node("n1", &links(&cluster)).expect("n1 is there").rows.v4;
    assert_eq!(rows.policy.len(), 1);
    let judged = |pod, direction| judged(&rows, v4(pod), direction, v4("20.0.0.0"), (TCP, 80));
    assert_eq!(judged("10.244.0.5", INGRESS), Judged::Closed);
    assert_eq!(judged("10.244.0.5", EGRESS), Judged::NotIsolated);
    assert!(matches!(judged("10.244.0.6", INGRESS), Judged::Allowed(_)));
    let notes = plan.notes("n1").expect("n1 is there");
    assert!(notes.len() == 1 && notes[0].contains("a/web") && !notes[0].contains("a/db"), "{notes:?}");
}

#[test]
fn rules_are_there_before_the_endpoint_that_they_judge() {
    let mut cluster = cluster(1);
    pod(&mut cluster, "a/web", ("n1", "10.244.0.5"), &[]);
    let before = planned(&cluster, "n1").rows.v4;
    policy(&mut cluster, "a/p", json!({"podSelector": {}, "ingress": [{}]}));
    let after = planned(&cluster, "n1").rows.v4;
    let kinds = |from, to| {
        changes(from, to).into_iter().map(|change| matches!(change, Change::Policy(..))).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&before, &after), [true, false]);
    assert_eq!(kinds(&after, &before), [false, true]);
}

#[test]
fn a_policy_that_others_join_keeps_its_rows() {
    let mut cluster = cluster(1);
    pod(&mut cluster, "a/web", ("n1", "10.244.0.5"), &["app=web"]);
    pod(&mut cluster, "b/web", ("n1", "10.244.0.6"), &["app=web"]);
    policy(
        &mut cluster,
        "a/one",
        json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}),
    );
    let plan = Plan::of(&cluster).expect("it can be planned");
    policy(&mut cluster, "b/other", json!({"podSelector": {}, "ingress": [{}]}));
    cluster.policies.reverse();
    let next = plan.after(&cluster).expect("it can be planned");
    let rows = |plan: &Plan| plan.node("n1", &links(&cluster)).expect("n1 is there").rows.v4;
    let changes = changes(&rows(&plan), &rows(&next));
    let new =
        |change: &&Change<V4>| matches!(change, Change::Policy(_, Some(_)) | Change::Endpoint(_, Some(_)));
    assert_eq!((changes.len(), changes.iter().filter(new).count()), (2, 2), "{changes:?}");
}

#[test]
fn a_service_that_loses_an_address_gets_new_backends_and_one_that_gains_one_keeps_its_own() {
    let key = FrontendKey { address: v4("10.96.0.10"), port: 53, protocol: TCP };
    let number = |plan: &Plan, cluster: &Cluster| {
        let rows = plan.node("n1", &links(cluster)).expect("n1 is there").rows.v4;
        let row = rows.frontends[&key];
        let number = rows.maglev[row.internal.first as usize];
        (row.id, number, rows.backends)
    };
    let mut less = cluster(1);
    service(&mut less, "10.96.0.10", 53, &["10.244.0.2:5353"]);
    let mut more = less.clone();
    more.services[0].external_addresses = vec![ip("198.51.100.9")];
    let first = Plan::of(&less).expect("it can be planned");
    let second = first.after(&more).expect("it can be planned");
    assert_eq!(number(&second, &more), number(&first, &less));
    let third = second.after(&less).expect("it can be planned");
    let ((id, old, _), (same, new, backends)) = (number(&second, &more), number(&third, &less));
    assert!(same == id && new != old, "{id:?} {old:?}, {same:?} {new:?}");
    let states = [old, new].map(|number| backends[number.0 as usize].state);
    assert_eq!(states, [Backend::<V4>::GONE, Backend::<V4>::ACTIVE]);
}
