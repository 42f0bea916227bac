//! What clauses in an order say of every address and port, as ranges that nowhere overlap: so one look-up in a map
//! decides, however many policies there are.
//!
//! The address space is cut where any clause begins or ends. In each piece the same clauses matter; of those the
//! first that matches a protocol and port decides. Pieces side by side that come out the same are joined again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The first and the last of addresses side by side, as numbers.
pub(super) type Range = (u128, u128);

/// Ports side by side of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ports {
    /// As in the IP header.
    pub(super) protocol: u8,
    /// The first and the last.
    pub(super) range: (u16, u16),
}

/// When a clause is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// First: one that passes leads to the next stage.
    Admin,
    /// Where the pod is isolated: what nobody allows is denied.
    Namespaced,
    /// Where it is not.
    Baseline,
}

/// What a clause does with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Deny,
    /// The next stage goes on.
    Pass,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    Allow,
    Deny,
}

/// If the other end is in one of these ranges, and the flow goes to one of these ports, then this.
#[derive(Clone, Debug)]
pub(super) struct Clause {
    pub(super) stage: Stage,
    pub(super) peers: Vec<Range>,
    /// Any, and any protocol, if none.
    pub(super) ports: Option<Vec<Ports>>,
    pub(super) action: Action,
}

/// What becomes of flows with one other end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Decision {
    /// Whatever the protocol and port, but for these.
    pub(super) other: Verdict,
    /// The exceptions: each is not as `other`.
    pub(super) ports: Vec<Ports>,
}

/// The decisions about all addresses up to `last`, in their order, one after the other without a gap.
///
/// Clauses of one stage stand in the order in which they are asked. `isolated`: the pod has a NetworkPolicy.
pub(super) fn decisions(clauses: &[Clause], isolated: bool, last: u128) -> Vec<(Range, Decision)> {
    let mut edges: BTreeMap<u128, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    edges.entry(0).or_default();
    for (place, clause) in clauses.iter().enumerate() {
        for (first, end) in joined(&clause.peers) {
            edges.entry(first).or_default().0.push(place);
            if end < last {
                edges.entry(end + 1).or_default().1.push(place);
            }
        }
    }
    let ends = edges.keys().skip(1).map(|next| next - 1).chain([last]).collect::<Vec<_>>();
    let (mut active, mut known) = (BTreeSet::new(), HashMap::new());
    let mut decided: Vec<(Range, Decision)> = Vec::new();
    for ((first, (begin, stop)), end) in edges.into_iter().zip(ends) {
        active.retain(|place| !stop.contains(place));
        active.extend(begin);
        let here: Vec<usize> = active.iter().copied().collect();
        let decision = known.entry(here).or_insert_with_key(|here| {
            let here: Vec<&Clause> = here.iter().map(|place| &clauses[*place]).collect();
            decide(&here, isolated)
        });
        match decided.last_mut() {
            Some((range, before)) if before == decision => range.1 = end,
            _ => decided.push(((first, end), decision.clone())),
        }
    }
    decided
}

/// What these clauses say, all of which are about the other end.
fn decide(clauses: &[&Clause], isolated: bool) -> Decision {
    let other = verdict(clauses, isolated, None);
    let mut exceptions = Vec::new();
    for protocol in [6, 17, 132] {
        let own = clauses.iter().filter_map(|clause| clause.ports.as_ref()).flatten();
        let mut cuts = BTreeSet::from([0_u32]);
        for Ports { range: (first, last), .. } in own.filter(|ports| ports.protocol == protocol) {
            cuts.extend([u32::from(*first), u32::from(*last) + 1]);
        }
        cuts.remove(&0x1_0000);
        let ends: Vec<u32> = cuts.iter().skip(1).map(|next| next - 1).chain([0xffff]).collect();
        for (first, last) in cuts.into_iter().zip(ends) {
            let (first, last) = (first as u16, last as u16);
            if verdict(clauses, isolated, Some((protocol, first))) == other {
                continue;
            }
            match exceptions.last_mut() {
                Some(Ports { protocol: same, range }) if *same == protocol && range.1 + 1 == first => {
                    range.1 = last;
                }
                _ => exceptions.push(Ports { protocol, range: (first, last) }),
            }
        }
    }
    Decision { other, ports: exceptions }
}

/// What becomes of a flow to this port, or of one whose protocol has none.
fn verdict(clauses: &[&Clause], isolated: bool, to: Option<(u8, u16)>) -> Verdict {
    let first = |stage| {
        let mut asked = clauses.iter().filter(|clause| clause.stage == stage);
        asked.find(|clause| is_about(clause, to)).map(|clause| clause.action)
    };
    let decided = match first(Stage::Admin) {
        None | Some(Action::Pass) if isolated => Some(first(Stage::Namespaced).unwrap_or(Action::Deny)),
        None | Some(Action::Pass) => first(Stage::Baseline),
        decided => decided,
    };
    if decided == Some(Action::Deny) { Verdict::Deny } else { Verdict::Allow }
}

fn is_about(clause: &Clause, to: Option<(u8, u16)>) -> bool {
    let Some(ports) = &clause.ports else { return true };
    to.is_some_and(|(protocol, port)| {
        ports.iter().any(|it| it.protocol == protocol && (it.range.0..=it.range.1).contains(&port))
    })
}

/// The same addresses in ranges that neither overlap nor touch, in their order.
pub(super) fn joined(ranges: &[Range]) -> Vec<Range> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut joined: Vec<Range> = Vec::new();
    for (first, last) in sorted {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// The addresses of `range` that are in none of `holes`.
pub(super) fn without(range: Range, holes: &[Range]) -> Vec<Range> {
    let (mut left, mut next) = (Vec::new(), Some(range.0));
    for (first, last) in joined(holes) {
        let Some(from) = next else { break };
        if last < from || first > range.1 {
            continue;
        }
        if first > from {
            left.push((from, first - 1));
        }
        next = last.checked_add(1);
    }
    left.extend(next.filter(|from| *from <= range.1).map(|from| (from, range.1)));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clause(stage: Stage, peers: Range, ports: Option<(u16, u16)>, action: Action) -> Clause {
        let ports = ports.map(|range| vec![Ports { protocol: 6, range }]);
        Clause { stage, peers: vec![peers], ports, action }
    }

    /// What the ranges say of one address and port.
    fn said(decided: &[(Range, Decision)], address: u128, port: u16) -> Verdict {
        let holding: Vec<_> = decided.iter().filter(|((a, b), _)| (*a..=*b).contains(&address)).collect();
        assert_eq!(holding.len(), 1, "{address} in {decided:?}");
        let decision = &holding[0].1;
        let is_exception = decision.ports.iter().any(|it| (it.range.0..=it.range.1).contains(&port));
        match (decision.other, is_exception) {
            (Verdict::Allow, false) | (Verdict::Deny, true) => Verdict::Allow,
            _ => Verdict::Deny,
        }
    }

    #[test]
    fn ranges_say_of_every_address_and_port_what_the_first_clause_that_matches_says() {
        use Action::{Allow, Deny, Pass};
        use Stage::{Admin, Baseline, Namespaced};
        let mut dice = crate::dataplane::chains::walk::Dice::new(7);
        for _ in 0..400 {
            let mut clauses: Vec<Clause> = (0..dice.roll() % 7)
                .map(|_| {
                    let stage = [Admin, Namespaced, Baseline][(dice.roll() % 3) as usize];
                    let first = u128::from(dice.roll() % 30);
                    let peers = (first, (first + u128::from(dice.roll() % 12)).min(31));
                    let low = (dice.roll() % 10) as u16;
                    let ports =
                        (!dice.roll().is_multiple_of(3)).then_some((low, low + (dice.roll() % 4) as u16));
                    let action = [Allow, Deny, Pass][(dice.roll() % 3) as usize];
                    clause(stage, peers, ports, if stage == Namespaced { Allow } else { action })
                })
                .collect();
            clauses.sort_by_key(|clause| clause.stage);
            let isolated = clauses.iter().any(|clause| clause.stage == Namespaced);
            let decided = decisions(&clauses, isolated, 31);
            for address in 0..32 {
                let here: Vec<&Clause> = clauses
                    .iter()
                    .filter(|clause| clause.peers.iter().any(|(a, b)| (*a..=*b).contains(&address)))
                    .collect();
                for port in 0..16 {
                    let expected = verdict(&here, isolated, Some((6, port)));
                    assert_eq!(said(&decided, address, port), expected, "{address}:{port} {clauses:?}");
                }
            }
        }
    }

    #[test]
    fn a_hole_leaves_what_is_beside_it() {
        assert_eq!(without((0, 9), &[(3, 4)]), [(0, 2), (5, 9)]);
        assert_eq!(without((0, 9), &[(0, 4), (4, 9)]), []);
        assert_eq!(without((5, 9), &[(0, 5), (9, 12), (20, 30)]), [(6, 8)]);
        assert_eq!(without((0, u128::MAX), &[(1, u128::MAX)]), [(0, 0)]);
    }
}
