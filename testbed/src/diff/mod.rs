//! Which flows open and close between two sets of objects: what policies say of both, compared.
//!
//! Nobody sends a packet, and no Service is dialled: policies are asked about the pods behind Services. Everybody
//! whom no policy of the two sets tells apart is one **group**, as are ports between which no policy draws a line;
//! so of each two groups, two members are asked about, and stand for all.
//!
//! ```text
//! groups   pods, nodes and hosts outside that no policy tells apart      ports   the same of ports
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use userspace::engine::emulator::Matrix;
use userspace::engine::emulator::matrix::{Decided, Verdict, Why};
use userspace::error::Error;
use userspace::model::Cluster;

mod groups;
mod ports;

use groups::{Group, Groups};
use ports::Stretch;

/// What differs: the document of `podpath diff -o json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What was denied, and is allowed.
    pub opened: Vec<Change>,
    /// What was allowed, and is denied.
    pub closed: Vec<Change>,
    /// Pods, nodes and hosts outside that are there in the new set only: no flow of theirs is compared.
    pub added: Vec<String>,
    /// Those that are there in the old set only.
    pub removed: Vec<String>,
    /// Pods that stand for others of the same workload, which have other names in the other set.
    pub renamed: usize,
}

/// Flows that changed, and in the same way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// Groups that send.
    pub from: Vec<Side>,
    /// Groups that are dialled.
    pub to: Vec<Side>,
    /// `8080/tcp`, `9000-9099/tcp`, `other ports/udp`.
    pub ports: Vec<String>,
    /// Who decided before: words.
    pub before: String,
    /// Who decides now.
    pub after: String,
    /// The policy of which a rule decided before, or the first of those that isolated; none where none did.
    pub before_policies: Vec<String>,
    /// The same now.
    pub after_policies: Vec<String>,
    /// How many pairs of ends there are; a pod and its own node are none.
    pub pairs: usize,
}

/// Ends whom no policy tells apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Side {
    /// `shop/api` for one pod, or for the pods of a workload; else the first of them.
    pub name: String,
    /// Every one, as on the command line.
    pub members: Vec<String>,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.members.len() {
            1 => f.write_str(&self.name),
            count => write!(f, "{} ({count})", self.name),
        }
    }
}

/// Which way a flow changed, and who decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    opened: bool,
    before: Voice,
    after: Voice,
}

/// Who decided about a flow: in words, and the policies among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Voice {
    words: String,
    policies: Vec<String>,
}

impl Difference {
    /// Compares two clusters; the new one should have been resolved with the old, so that whoever is in both
    /// has the same address.
    ///
    /// # Errors
    /// [`Error::Plan`]: one of them cannot be planned.
    pub fn between(old: &Cluster, new: &Cluster) -> Result<Self, Error> {
        let stretches = ports::stretches(old, new);
        let asked: Vec<_> = stretches.iter().map(|stretch| stretch.port).collect();
        let (before, after) = (Matrix::of(old, &asked)?, Matrix::of(new, &asked)?);
        let groups = Groups::of((old, &before), (new, &after));
        let compared = Compared { groups: &groups.list, stretches: &stretches, before, after };
        let mut difference = compared.difference();
        difference.added = groups.added;
        difference.removed = groups.removed;
        difference.renamed = groups.renamed;
        Ok(difference)
    }
}

struct Compared<'a> {
    groups: &'a [Group],
    stretches: &'a [Stretch],
    before: Matrix,
    after: Matrix,
}

impl Compared<'_> {
    fn difference(&self) -> Difference {
        // Groups that send, by what changed for which target; then targets of which the same is true.
        let mut by_target: BTreeMap<(Turn, Vec<usize>, usize), BTreeSet<usize>> = BTreeMap::new();
        for (from, to) in self.differing() {
            let members = [from, to].map(|place| self.groups[place].members.as_slice());
            let Some(pair) = groups::pair(members[0], members[1]) else { continue };
            for (turn, ports) in self.turns(pair) {
                by_target.entry((turn, ports, to)).or_default().insert(from);
            }
        }
        let mut alike: BTreeMap<(Turn, Vec<usize>, BTreeSet<usize>), Vec<usize>> = BTreeMap::new();
        for ((turn, ports, to), from) in by_target {
            alike.entry((turn, ports, from)).or_default().push(to);
        }
        let mut difference = Difference::default();
        for ((turn, ports, from), to) in alike {
            let change = self.change(&turn, &ports, (&from, &to));
            if turn.opened { difference.opened.push(change) } else { difference.closed.push(change) }
        }
        difference.opened.sort();
        difference.closed.sort();
        difference
    }

    /// Groups between which something may have changed. Groups have names of their own; those that fare alike in
    /// both clusters, whatever they are called, are looked at together.
    fn differing(&self) -> Vec<(usize, usize)> {
        let mut kinds: BTreeMap<_, (Vec<usize>, Vec<groups::Member>)> = BTreeMap::new();
        for (place, group) in self.groups.iter().enumerate() {
            for member in &group.members {
                let classes = (self.before.class(member.old), self.after.class(member.new), member.is_node);
                let (places, members) = kinds.entry(classes).or_default();
                if places.last() != Some(&place) {
                    places.push(place);
                }
                members.push(*member);
            }
        }
        let mut differing = BTreeSet::new();
        for (from, senders) in kinds.values() {
            for (to, receivers) in kinds.values() {
                let Some(pair) = groups::pair(senders, receivers) else { continue };
                if (0..self.stretches.len()).any(|port| self.has_changed(pair, port)) {
                    differing.extend(from.iter().flat_map(|one| to.iter().map(move |other| (*one, *other))));
                }
            }
        }
        differing.into_iter().collect()
    }

    fn has_changed(&self, (from, to): (groups::Member, groups::Member), port: usize) -> bool {
        self.before.verdict(from.old, to.old, port) != self.after.verdict(from.new, to.new, port)
    }

    /// At which ports flows between two ends changed, by how they did.
    fn turns(&self, (from, to): (groups::Member, groups::Member)) -> BTreeMap<Turn, Vec<usize>> {
        let mut turns: BTreeMap<Turn, Vec<usize>> = BTreeMap::new();
        for port in 0..self.stretches.len() {
            if !self.has_changed((from, to), port) {
                continue;
            }
            let turn = Turn {
                opened: self.after.verdict(from.new, to.new, port) == Verdict::Allow,
                before: voice(self.before.decided_by(from.old, to.old, port)),
                after: voice(self.after.decided_by(from.new, to.new, port)),
            };
            turns.entry(turn).or_default().push(port);
        }
        turns
    }

    fn change(&self, turn: &Turn, ports: &[usize], (from, to): (&BTreeSet<usize>, &[usize])) -> Change {
        let side = |place: &usize| self.groups[*place].side();
        let pairs = from.iter().flat_map(|one| to.iter().map(move |other| (one, other)));
        let pairs = pairs.map(|(one, other)| groups::pairs(&self.groups[*one], &self.groups[*other]));
        Change {
            from: from.iter().map(side).collect(),
            to: to.iter().map(side).collect(),
            ports: ports::spelled(self.stretches, ports),
            before: turn.before.words.clone(),
            after: turn.after.words.clone(),
            before_policies: turn.before.policies.clone(),
            after_policies: turn.after.policies.clone(),
            pairs: pairs.sum(),
        }
    }
}

fn voice(decided: Option<Decided>) -> Voice {
    let silent = || Voice { words: "no policy has a say".to_owned(), policies: Vec::new() };
    let Some(decided) = decided else { return silent() };
    let tried = if decided.audited() { ", tried out only" } else { "" };
    match decided.why {
        Why::Itself | Why::OwnNode | Why::NotIsolated => silent(),
        Why::NotDenied => Voice { words: "no policy denies it".to_owned(), policies: Vec::new() },
        Why::Incomplete => Voice {
            words: format!("denied: {} does not fit into the table", decided.direction),
            policies: Vec::new(),
        },
        Why::DeniedBy(rule) => {
            let words = format!("denied by {} {}{tried}", rule.policy, rule.rule);
            Voice { words, policies: vec![rule.policy] }
        }
        Why::AllowedBy(rule) => {
            Voice { words: format!("allowed by {} {}", rule.policy, rule.rule), policies: vec![rule.policy] }
        }
        Why::Isolated(policies) => Voice {
            words: format!("denied: {} isolated by {}{tried}", decided.direction, policies.join(", ")),
            policies,
        },
    }
}
