//! The policies of the whole cluster in the order in which they are asked, and what to say about them.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::{Labels, Pod};
use super::cluster_policy::{self, Reading};
use super::error::Faults;
use super::object::{Object, Objects};
use super::resolve::{Work, listed};
use super::tier::{ClusterPolicy, PodPeer, Tier, TierRule};
use super::{selector, stated};

/// Every policy of the whole cluster, by tier, then by priority, then as in the input.
pub(super) fn policies(
    work: &mut Work<'_>,
    namespaces: &BTreeMap<String, Labels>,
    pods: &[Pod],
) -> Vec<ClusterPolicy> {
    let mut policies = Vec::new();
    for entry in work.objects.iter() {
        let title = entry.object.key().to_string();
        // They have been validated.
        let mut known = Faults::default();
        let read = cluster_policy::read(&entry.object, &mut known.of(&entry.origin, title.clone()));
        let Some(Reading { policy, by_name }) = read else {
            continue;
        };
        for path in by_name {
            work.notes.push(format!(
                "{title}: {path}: podpath looks up no names, so that the rule accepts nothing by them."
            ));
        }
        policies.push(policy);
    }
    policies.sort_by_key(rank);
    work.notes.extend(policies.chunk_by(|one, other| rank(one) == rank(other)).filter_map(|equals| {
        let shared = shared(equals, namespaces, pods)?;
        let names: Vec<String> = equals.iter().map(|policy| policy.name.clone()).collect();
        let (tier, priority) = (equals[0].tier, equals[0].priority);
        Some(format!(
            "Policies of tier {tier} with priority {priority}, more than one of which selects pod {shared}: {}. An implementation may ask them in any order; here it is that of the input.",
            listed(&names)
        ))
    }));
    policies
}

fn rank(policy: &ClusterPolicy) -> (Tier, i32) {
    (policy.tier, policy.priority)
}

/// The first pod that two of these policies select, with rules of one direction.
fn shared(policies: &[ClusterPolicy], namespaces: &BTreeMap<String, Labels>, pods: &[Pod]) -> Option<String> {
    let directions: [fn(&ClusterPolicy) -> &[TierRule]; 2] =
        [|policy| &policy.ingress, |policy| &policy.egress];
    directions.iter().find_map(|rules| {
        let subjects: Vec<&PodPeer> = policies
            .iter()
            .filter(|policy| !rules(policy).is_empty())
            .map(|policy| &policy.subject)
            .collect();
        if subjects.len() < 2 {
            return None;
        }
        // Those that select a namespace, found once for all of its pods.
        let of_namespace: BTreeMap<&String, Vec<&&PodPeer>> = namespaces
            .iter()
            .map(|(name, labels)| {
                let here = |subject: &&&PodPeer| selector::matches(&subject.namespaces, labels);
                (name, subjects.iter().filter(here).collect())
            })
            .collect();
        let twice = |pod: &&Pod| {
            let here = of_namespace.get(&pod.namespace).into_iter().flatten();
            let selecting = here.filter(|subject| selector::matches(&subject.pods, &pod.labels));
            !pod.host_network && selecting.take(2).count() == 2
        };
        pods.iter().find(twice).map(Pod::id)
    })
}

/// The namespaces of whose pods policies only say what they would deny.
pub(super) fn audited(objects: &Objects) -> BTreeSet<String> {
    let namespace = |object: &Object| match object {
        Object::Namespace(namespace) => {
            // It has been validated.
            stated::audit(&namespace.metadata).unwrap_or_default().then(|| object.key().name)
        }
        _ => None,
    };
    objects.iter().filter_map(|entry| namespace(&entry.object)).collect()
}
