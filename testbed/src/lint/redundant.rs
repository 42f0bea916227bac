//! Policies and rules without which nothing would change.
//!
//! Two grades. Whatever pods there are: one other rule is about as many pods, peers and ports, by their
//! selectors. As the pods are now: other rules together match all that it matches, by the sets. The second is
//! exact for the cluster; the first is said where it holds.
//!
//! What is found can be removed all at once: each is judged against those that are left, the last first.

use std::collections::BTreeSet;

use super::judge::{Judge, Pieces};
use super::selector::Selector;
use super::set::{Ends, Spans};
use super::view::{Named, Policy, Rule, What, Who, without};
use super::world::{Scope, World, some_of};
use super::{Check, Found};
use crate::oracle::Direction;

/// A rule's policy, and its place among the policy's rules.
type Place = (usize, usize);

pub(super) fn look(judge: &Judge<'_>, found: &mut Found<'_>) {
    let mut sweep = Sweep { judge, gone: BTreeSet::new(), gone_policies: BTreeSet::new() };
    for (place, policy) in found.policies().collect::<Vec<_>>().into_iter().rev() {
        if policy.tier().is_some() || policy.subject.is_empty() {
            continue;
        }
        if let Some((check, words)) = sweep.policy(place, policy) {
            found.note(place, check, "spec", words);
            continue;
        }
        for (index, rule) in policy.rules.iter().enumerate().rev() {
            if let Some((check, words)) = sweep.rule(place, index, rule) {
                found.note(place, check, &rule.field, words);
            }
        }
    }
}

struct Sweep<'j, 'a> {
    judge: &'j Judge<'a>,
    /// What has been found, and counts no longer.
    gone: BTreeSet<Place>,
    gone_policies: BTreeSet<usize>,
}

/// What is to be said of a policy or rule.
type Said = (Check, (String, String));

impl<'a> Sweep<'_, 'a> {
    fn policy(&mut self, place: usize, policy: &Policy<'a>) -> Option<Said> {
        if !self.still_isolated(place, policy) {
            return None;
        }
        let own: Vec<Place> = (0..policy.rules.len()).map(|index| (place, index)).collect();
        let mut others: BTreeSet<usize> = BTreeSet::new();
        let mut always = true;
        for (&at, rule) in own.iter().zip(&policy.rules) {
            if rule.ends.is_empty() {
                return None;
            }
            let (witness, by) = self.covered(at, rule, &own)?;
            others.extend(by);
            always &= witness.is_some();
        }
        if own.is_empty() {
            let (by, implied) = self.same_isolation(place, policy)?;
            others.insert(by);
            always = implied;
        }
        self.gone.extend(own);
        self.gone_policies.insert(place);
        let names = self.names(&others);
        Some(if always {
            let reason = format!("{names} says all that this policy does, whatever pods there are");
            (Check::RedundantPolicy, (reason, "remove it, or say what it is to add".into()))
        } else {
            let reason =
                format!("as the pods are now, nothing would change without it: {names} does the same");
            (Check::CoveredNow, (reason, "keep it if pods to come need it; else remove it".into()))
        })
    }

    /// Whether every pod that it isolates would be isolated without it.
    fn still_isolated(&self, place: usize, policy: &Policy<'a>) -> bool {
        [Direction::Ingress, Direction::Egress].into_iter().filter(|one| policy.limits(*one)).all(
            |direction| {
                self.judge.classes_of(place).all(|(_, class)| {
                    let mut asked = self.judge.asked(class, direction, None);
                    asked.any(|(other, _)| other != place && !self.gone_policies.contains(&other))
                })
            },
        )
    }

    /// For a policy without rules: another without rules that is for the same pods; and whether it always is.
    fn same_isolation(&self, place: usize, policy: &Policy<'a>) -> Option<(usize, bool)> {
        let same = self.judge.policies.iter().enumerate().filter(|(other, one)| {
            let about = |direction| one.limits(direction) || !policy.limits(direction);
            *other != place
                && !self.gone_policies.contains(other)
                && one.tier().is_none()
                && one.rules.is_empty()
                && about(Direction::Ingress)
                && about(Direction::Egress)
                && policy.subject.is_within(&one.subject)
        });
        same.map(|(other, one)| (other, implies(&policy.whom, &one.whom))).max_by_key(|(_, always)| *always)
    }

    fn rule(&mut self, place: usize, index: usize, rule: &Rule) -> Option<Said> {
        if rule.ends.is_empty() || self.judge.policies[place].isolates_by_rules(rule.direction) {
            return None;
        }
        let (witness, others) = self.covered((place, index), rule, &[(place, index)])?;
        self.gone.insert((place, index));
        Some(match witness {
            Some((other, theirs)) => {
                let by = match other == place {
                    true => self.judge.policies[other].rules[theirs].field.clone(),
                    false => format!(
                        "{} of {}",
                        self.judge.policies[other].rules[theirs].field, self.judge.policies[other].id
                    ),
                };
                let reason = format!("{by} allows all that this rule does, whatever pods there are");
                (Check::RedundantRule, (reason, "remove it, or say what it is to add".into()))
            }
            None => {
                let reason = format!(
                    "as the pods are now, nothing would change without it: {} allows the same",
                    self.names(&others)
                );
                (Check::CoveredNow, (reason, "keep it if pods to come need it; else remove it".into()))
            }
        })
    }

    /// Whether other rules match all that this one does, for every pod that it is for: which one always does,
    /// if there is one, and whose rules do now.
    fn covered(&self, at: Place, rule: &Rule, except: &[Place]) -> Option<(Option<Place>, BTreeSet<usize>)> {
        let mut by: BTreeSet<usize> = BTreeSet::new();
        let mut candidates: BTreeSet<Place> = BTreeSet::new();
        for (_, class) in self.judge.classes_of(at.0) {
            let others: Vec<(Place, &Rule)> = self.others(class.policies.as_slice(), rule, except);
            let pieces: Vec<(usize, Pieces)> = others
                .iter()
                .map(|((policy, _), other)| (*policy, other.pieces(self.judge.world, class.pod)))
                .collect();
            for piece in rule.pieces(self.judge.world, class.pod) {
                by.extend(covers(&piece, &pieces)?);
            }
            candidates.extend(others.iter().map(|(place, _)| *place));
        }
        if by.is_empty() {
            // It matches nothing at all, which is another finding.
            return None;
        }
        let policy = &self.judge.policies[at.0];
        let always = candidates.into_iter().find(|(other, index)| {
            let theirs = &self.judge.policies[*other];
            implies(&policy.whom, &theirs.whom) && says_all(self.judge.world, rule, &theirs.rules[*index])
        });
        Some((always, by))
    }

    fn others(&self, policies: &[usize], rule: &Rule, except: &[Place]) -> Vec<(Place, &Rule)> {
        let all = policies.iter().filter(|policy| self.judge.policies[**policy].tier().is_none());
        let rules = all.flat_map(|policy| {
            let rules = self.judge.policies[*policy].rules.iter().enumerate();
            rules.map(|(index, other)| ((*policy, index), other))
        });
        let others = rules.filter(|(place, other)| {
            other.direction == rule.direction
                && !except.contains(place)
                && !self.gone.contains(place)
                && other.ends.meets(&rule.ends)
        });
        others.collect()
    }

    fn names(&self, policies: &BTreeSet<usize>) -> String {
        some_of(policies.iter().map(|place| self.judge.policies[*place].id.clone()), policies.len())
    }
}

/// Whether others match all of a piece; whose are used for it.
pub(super) fn covers((ends, ports): &(Ends, Spans), others: &[(usize, Pieces)]) -> Option<BTreeSet<usize>> {
    let meeting: Vec<(usize, &(Ends, Spans))> = others
        .iter()
        .flat_map(|(policy, pieces)| pieces.iter().map(move |piece| (*policy, piece)))
        .filter(|(_, (theirs, at))| at.meets(ports) && theirs.meets(ends))
        .collect();
    // Between two of these numbers, the same pieces are about every port.
    let mut starts: BTreeSet<u128> = ports.iter().map(|(first, _)| first).collect();
    for (_, (_, at)) in &meeting {
        let edges = at.iter().flat_map(|(first, last)| [first, last + 1]);
        starts.extend(edges.filter(|edge| ports.contains(*edge)));
    }
    let mut by = BTreeSet::new();
    for start in starts {
        let mut left = ends.clone();
        for (policy, (theirs, at)) in &meeting {
            if at.contains(start) && theirs.meets(&left) {
                left.subtract(theirs);
                by.insert(*policy);
            }
        }
        if !left.is_empty() {
            return None;
        }
    }
    Some(by)
}

/// Whether the second names all pods that the first does, whatever there is.
pub(super) fn implies(one: &Named, other: &Named) -> bool {
    let scope = match (&one.scope, &other.scope) {
        (Scope::Named(name), Scope::Named(others)) => name == others,
        (Scope::Labelled(selector), Scope::Labelled(others)) => selector.implies(others),
        (Scope::Labelled(selector), Scope::Named(name)) => selector.only_namespace() == Some(name),
        (Scope::Named(name), Scope::Labelled(selector)) => {
            let own = Selector::default().with_namespace(name);
            own.implies(selector)
        }
    };
    scope && one.pods.implies(&other.pods)
}

/// Whether the second rule matches all that the first does, whatever there is.
pub(super) fn says_all(world: &World<'_>, one: &Rule, other: &Rule) -> bool {
    let peer = |who: &Who| match who {
        Who::Pods(named) => other.peers.iter().any(|peer| match &peer.who {
            Who::Pods(theirs) => implies(named, theirs),
            Who::Nodes(_) | Who::Blocks(_) => false,
        }),
        Who::Nodes(selector) => other.peers.iter().any(|peer| match &peer.who {
            Who::Nodes(theirs) => selector.implies(theirs),
            Who::Pods(_) | Who::Blocks(_) => false,
        }),
        Who::Blocks(blocks) => {
            let of = |blocks: &[_]| {
                let mut all = Spans::default();
                blocks.iter().for_each(|(whole, except): &(_, Vec<_>)| all.unite(&without(*whole, except)));
                all
            };
            let theirs = other.peers.iter().filter_map(|peer| match &peer.who {
                Who::Blocks(theirs) => Some(of(theirs)),
                Who::Pods(_) | Who::Nodes(_) => None,
            });
            let mut all = Spans::default();
            theirs.for_each(|one| all.unite(&one));
            of(blocks).is_within(&all)
        }
    };
    let peers =
        other.is_for_anybody() || (!one.is_for_anybody() && one.peers.iter().all(|one| peer(&one.who)));
    debug_assert!(!peers || one.ends.is_within(&other.ends) || world.pods.is_empty());
    peers && ports_within(one, other)
}

fn ports_within(one: &Rule, other: &Rule) -> bool {
    let Some(theirs) = &other.ports else { return true };
    let Some(ports) = &one.ports else { return false };
    let mut numbers = Spans::default();
    theirs.iter().filter_map(|port| port.what.spans()).for_each(|spans| numbers.unite(&spans));
    ports.iter().all(|port| match &port.what {
        What::Named(protocol, name) => theirs.iter().any(|theirs| match &theirs.what {
            What::Named(of, other) => name == other && (of.is_none() || of == protocol),
            What::Protocol(of) => *protocol == Some(*of),
            What::Range(..) => false,
        }),
        what => what.spans().is_some_and(|spans| spans.is_within(&numbers)),
    })
}
