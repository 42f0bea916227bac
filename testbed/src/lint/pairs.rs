//! Flows that a rule at one end allows by name, and that the policies at the other end deny.

use super::judge::Judge;
use super::set::{Spans, transport};
use super::view::{Policy, Rule, Who};
use super::world::World;
use super::{Check, Found};
use crate::oracle::Direction;
use userspace::model::{Action, Protocol};
use userspace::plan::Bits;

pub(super) fn look(judge: &Judge<'_>, found: &mut Found<'_>) {
    for (place, policy) in found.policies().filter(|(_, policy)| policy.tier().is_none()) {
        for rule in policy.rules.iter().filter(|rule| rule.action == Action::Accept && names_pods(rule)) {
            if let Some(words) = half_open(judge, policy, rule) {
                found.note(place, Check::HalfOpen, &rule.field, words);
            }
        }
    }
}

/// It names pods by labels, and nobody else: not whoever there is.
fn names_pods(rule: &Rule) -> bool {
    !rule.ends.pods.is_empty()
        && rule.peers.iter().all(|peer| match &peer.who {
            Who::Pods(named) => !named.pods.is_everything(),
            Who::Nodes(_) | Who::Blocks(_) => false,
        })
}

/// What is to be said if no flow of the rule passes the other end.
fn half_open(judge: &Judge<'_>, policy: &Policy<'_>, rule: &Rule) -> Option<(String, String)> {
    let (peers, world) = (&rule.ends.pods, judge.world);
    let other = match rule.direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    };
    let mut isolating: Vec<usize> = Vec::new();
    let mut classes: Vec<usize> = peers.iter().map(|pod| judge.class_of[pod]).collect();
    classes.sort_unstable();
    classes.dedup();
    for class in classes {
        let of_class = &judge.classes[class];
        // Its policies must have a say, and those of the cluster are meant to be above what rules name.
        if !judge.is_isolated(of_class, other) {
            return None;
        }
        isolating.extend(judge.asked(of_class, other, None).map(|(place, _)| place));
        // A pod always reaches itself, which is not what the rule is for.
        let mut those = policy.subject.clone();
        if of_class.pods.len() == 1 {
            those.subtract(&of_class.pods);
        }
        if some_pass(judge, (class, other), &those, &ports(world, policy, rule)) {
            return None;
        }
    }
    isolating.sort_unstable();
    isolating.dedup();
    let names = isolating.iter().map(|place| judge.policies[*place].id.clone());
    let names = super::world::some_of(names, isolating.len());
    let (subject, peers) = (world.named_pods(&policy.subject), world.named_pods(peers));
    let (reason, way) = match rule.direction {
        Direction::Ingress => (
            format!(
                "lets {peers} in, but their own egress is limited by {names}, which lets them to none of {subject} at these ports"
            ),
            "an egress rule to these pods and ports",
        ),
        Direction::Egress => (
            format!(
                "lets {subject} out to {peers}, but the ingress of those is limited by {names}, which lets none of them in at these ports"
            ),
            "an ingress rule from these pods at these ports",
        ),
    };
    Some((reason, format!("add {way} there, or remove this rule")))
}

/// A port of each span that the rule is about, and the edges of it; a common one if it is about all.
fn ports(world: &World<'_>, policy: &Policy<'_>, rule: &Rule) -> Vec<u128> {
    let targets: &Bits = match rule.direction {
        Direction::Ingress => &policy.subject,
        Direction::Egress => &rule.ends.pods,
    };
    let mut spans = Spans::default();
    let stands_for = policy.subject.iter().next().unwrap_or_default();
    rule.pieces(world, stands_for).iter().for_each(|(_, ports)| spans.unite(ports));
    let mut ports: Vec<u128> = Vec::new();
    for pod in targets.iter() {
        ports.extend(world.pods[pod].ports.iter().map(|port| transport(port.protocol, port.port)));
    }
    ports.sort_unstable();
    ports.dedup();
    ports.retain(|port| spans.contains(*port));
    let edges = spans.iter().flat_map(|(first, last)| [first, last]);
    ports.extend(edges.filter(|port| *port >= transport(Protocol::Tcp, 0)));
    ports
}

fn some_pass(
    judge: &Judge<'_>,
    (class, direction): (usize, Direction),
    those: &Bits,
    ports: &[u128],
) -> bool {
    ports.iter().any(|port| judge.allowed(class, direction, *port).pods.meets(those))
}
