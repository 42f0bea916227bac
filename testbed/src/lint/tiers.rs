//! Policies of the whole cluster against each other, and against NetworkPolicies.

use std::collections::BTreeSet;

use userspace::model::{Action, Tier};

use super::judge::{Judge, Pieces};
use super::redundant::{covers, implies, says_all};
use super::view::{Policy, Rule, Text};
use super::world::some_of;
use super::{Check, Found};
use crate::oracle::Direction;

pub(super) fn look(judge: &Judge<'_>, found: &mut Found<'_>) {
    if judge.policies.iter().all(|policy| policy.tier().is_none()) {
        return;
    }
    for (place, policy) in found.policies() {
        match policy.tier() {
            None => overruled(judge, found, place),
            Some(tier) => {
                shadowed(judge, found, (place, tier));
                equal_priority(found, place, policy);
                if tier == Tier::Baseline {
                    baseline(judge, found, place);
                }
            }
        }
    }
}

/// Rules of a NetworkPolicy that the Admin tier leaves nothing to decide for.
fn overruled(judge: &Judge<'_>, found: &mut Found<'_>, place: usize) {
    let policy = &judge.policies[place];
    let deciding = |rule: &&Rule| !rule.ends.is_empty() && !policy.isolates_by_rules(rule.direction);
    for rule in policy.rules.iter().filter(deciding) {
        let mut by: Option<BTreeSet<usize>> = None;
        for (_, class) in judge.classes_of(place) {
            let mut deciding: Vec<(usize, Pieces)> = Vec::new();
            let mut passing: Vec<&Rule> = Vec::new();
            for (policy, other) in judge.rules(class, rule.direction, Some(Tier::Admin)) {
                if other.action == Action::Pass {
                    passing.push(other);
                } else if !passing.iter().any(|pass| pass.ends.meets(&other.ends)) {
                    deciding.push((policy, other.pieces(judge.world, class.pod)));
                }
            }
            let mut of_class = Some(BTreeSet::new());
            for piece in rule.pieces(judge.world, class.pod) {
                of_class = of_class.zip(covers(&piece, &deciding)).map(|(all, more)| &all | &more);
            }
            let Some(of_class) = of_class else {
                by = None;
                break;
            };
            by.get_or_insert_default().extend(of_class);
        }
        let Some(by) = by.filter(|by| !by.is_empty()) else { continue };
        let reason = format!(
            "the Admin tier decides all that this rule is about before NetworkPolicies are asked ({})",
            names(judge, &by)
        );
        let next = "let the policies of the Admin tier pass it on (Pass), or remove the rule".to_owned();
        found.note(place, Check::OverruledRule, &rule.field, (reason, next));
    }
}

/// Rules that come after others of their tier that decide all.
fn shadowed(judge: &Judge<'_>, found: &mut Found<'_>, (place, tier): (usize, Tier)) {
    let policy = &judge.policies[place];
    for (index, rule) in policy.rules.iter().enumerate().filter(|(_, rule)| !rule.ends.is_empty()) {
        let Some((by, earlier)) = covered(judge, (place, index), tier) else { continue };
        let always = earlier.into_iter().find(|(other, theirs)| {
            let one = &judge.policies[*other];
            implies(&policy.whom, &one.whom) && says_all(judge.world, rule, &one.rules[*theirs])
        });
        let (check, reason) = match always {
            Some((other, theirs)) => {
                let one = &judge.policies[other];
                let field = &one.rules[theirs].field;
                let by = if other == place { field.clone() } else { format!("{field} of {}", one.id) };
                let reason = format!(
                    "{by} comes first and decides all that this rule is about, whatever pods there are"
                );
                (Check::ShadowedRule, reason)
            }
            None => {
                let reason = format!(
                    "as the pods are now, earlier rules decide all that this one is about ({})",
                    names(judge, &by)
                );
                (Check::ShadowedNow, reason)
            }
        };
        let next = "put it before them, or remove it".to_owned();
        found.note(place, check, &rule.field, (reason, next));
    }
}

/// A rule's policy, and its place among the policy's rules.
type Place = (usize, usize);

/// Whose earlier rules decide all of a rule, for every pod that it is for, and which these rules are.
fn covered(
    judge: &Judge<'_>,
    (place, index): Place,
    tier: Tier,
) -> Option<(BTreeSet<usize>, BTreeSet<Place>)> {
    let rule = &judge.policies[place].rules[index];
    let (mut by, mut earlier) = (BTreeSet::new(), BTreeSet::new());
    for (_, class) in judge.classes_of(place) {
        let mut pieces: Vec<(usize, Pieces)> = Vec::new();
        for (policy, _) in judge.asked(class, rule.direction, Some(tier)).filter(|(other, _)| *other <= place)
        {
            for (at, other) in judge.policies[policy].rules.iter().enumerate() {
                if other.direction == rule.direction && (policy, at) < (place, index) {
                    pieces.push((policy, other.pieces(judge.world, class.pod)));
                    earlier.insert((policy, at));
                }
            }
        }
        for piece in rule.pieces(judge.world, class.pod) {
            by.extend(covers(&piece, &pieces)?);
        }
    }
    (!by.is_empty()).then_some((by, earlier))
}

/// Policies of one tier and one priority that say different things of the same flows.
fn equal_priority(found: &mut Found<'_>, place: usize, policy: &Policy<'_>) {
    let Text::Cluster(text) = policy.text else { return };
    for (_, other) in found.policies().filter(|(other, _)| *other < place) {
        let Text::Cluster(theirs) = other.text else { continue };
        let same = theirs.tier == text.tier && theirs.priority == text.priority;
        if !same || !policy.subject.meets(&other.subject) {
            continue;
        }
        let pairs = policy.rules.iter().flat_map(|one| other.rules.iter().map(move |two| (one, two)));
        let conflict = pairs
            .filter(|(one, two)| one.direction == two.direction)
            .find(|(one, two)| one.action != two.action && one.ends.meets(&two.ends) && ports_meet(one, two));
        let Some((one, two)) = conflict else { continue };
        let reason = format!(
            "{} has priority {} in tier {}, too, and its {} contradicts this rule: which of the two decides is left open",
            other.id, text.priority, text.tier, two.field
        );
        let next = "give one of the two policies another priority".to_owned();
        found.note(place, Check::EqualPriority, &one.field, (reason, next));
    }
}

/// Whether both may be about one port; names are taken to be any.
fn ports_meet(one: &Rule, other: &Rule) -> bool {
    let (Some(ports), Some(others)) = (&one.ports, &other.ports) else { return true };
    ports.iter().any(|port| {
        others.iter().any(|other| match (port.what.spans(), other.what.spans()) {
            (Some(spans), Some(others)) => spans.meets(&others),
            _ => true,
        })
    })
}

/// What has no effect in the last tier.
fn baseline(judge: &Judge<'_>, found: &mut Found<'_>, place: usize) {
    let policy = &judge.policies[place];
    for rule in policy.rules.iter().filter(|rule| rule.action == Action::Pass) {
        let reason =
            "Pass ends the Baseline tier, and no tier comes after it: the flow is allowed, as by Accept";
        let next = "write Accept, or remove the rule";
        found.note(place, Check::BaselinePass, &rule.field, (reason.into(), next.into()));
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        let mut classes = judge.classes_of(place).peekable();
        if policy.limits(direction)
            && classes.peek().is_some()
            && classes.all(|(_, class)| judge.is_isolated(class, direction))
        {
            let reason = format!(
                "NetworkPolicies are for every pod that this policy is for ({}), so its {direction} rules are never asked",
                judge.world.named_pods(&policy.subject)
            );
            let next =
                "keep it for pods to come; what must hold for these goes into the Admin tier".to_owned();
            found.note(place, Check::UnreachedBaseline, &format!("spec.{direction}"), (reason, next));
        }
    }
}

fn names(judge: &Judge<'_>, policies: &BTreeSet<usize>) -> String {
    some_of(policies.iter().map(|place| judge.policies[*place].id.clone()), policies.len())
}
