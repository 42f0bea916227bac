//! From plan to plan, row by row.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Change, FrontendKey, NodeChange, NodeRows, Plan, Use, diff, peak};
use super::differential::Dice;
use super::*;

/// The changes of IPv4's tables: all that there are here.
fn changes(from: &Rows<V4>, to: &Rows<V4>) -> Vec<Change<V4>> {
    let node = |rows: &Rows<V4>| NodeRows { v4: rows.clone(), ..NodeRows::default() };
    let change = |change| match change {
        NodeChange::V4(change) => change,
        other => panic!("nothing else is different: {other:?}"),
    };
    diff(&node(from), &node(to)).into_iter().map(change).collect()
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

/// Some of the cluster changed: labels, pods, policies, backends.
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
    let links = links(&cluster);
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
fn at_every_step_a_pod_whose_rules_stay_is_judged_as_before_or_after() {
    for seed in 0..300 {
        let (from, to) = step(seed);
        let stay: Vec<_> =
            from.endpoints.iter().filter(|(pod, row)| to.endpoints.get(pod) == Some(row)).collect();
        let others = [
            "10.244.0.1",
            "10.244.0.2",
            "10.244.1.3",
            "10.244.2.4",
            "10.240.0.4",
            "10.240.0.5",
            "203.0.113.7",
        ];
        let mut rows = from.clone();
        for change in changes(&from, &to) {
            make(&mut rows, change);
            if !matches!(change, Change::Identity(..) | Change::Policy(..)) {
                continue;
            }
            for (pod, _) in &stay {
                for (other, direction) in
                    others.iter().flat_map(|other| [(v4(other), INGRESS), (v4(other), EGRESS)])
                {
                    for target in [(TCP, 80), (UDP, 53)] {
                        let allowed =
                            |rows: &Rows<V4>| judged(rows, **pod, direction, other, target).passes();
                        let now = allowed(&rows);
                        assert!(
                            now == allowed(&from) || now == allowed(&to),
                            "seed {seed}: {pod} {other} {target:?}"
                        );
                    }
                }
            }
        }
    }
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
