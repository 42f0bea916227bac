//! From plan to plan, row by row.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Change, FrontendKey, NodeChange, NodeRows, Plan, Use, diff, peak};
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
    diff(&node(from), &node(to), (policy_rows, ROOM.1)).into_iter().map(change).collect()
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
            let changes = plan.relabel(("n1", &links), &id, &labels).expect("all pods have interfaces");
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
