//! Which row the path finds for a port: it must say what the tiers decide.
//!
//! The path asks for the longest prefix among the rows about a peer, and where none holds the port, among
//! those about anybody. What is decided is a matter of all clauses that hold the port, whichever of the two
//! they are about. Between two borders of prefixes these are the same clauses; so each prefix is decided
//! once, from the widest to the narrowest, and gets a row where what is found without one is something else.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::tables::{PolicyRow, RuleId};

use super::policy::Tier;
use super::port::PortPrefix;

/// Of the clauses that hold a port, the first of each tier, by its place in the rule set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Firsts([usize; 3]);

/// No clause of the tier.
const NONE: usize = usize::MAX;

impl Firsts {
    /// No clause.
    pub(super) const NOBODY: Self = Self([NONE; 3]);

    /// This clause of this tier alone.
    pub(super) fn one(tier: Tier, place: usize) -> Self {
        let mut firsts = Self::NOBODY;
        firsts.0[tier as usize] = place;
        firsts
    }
    /// The first of both.
    fn and(self, other: Option<&Self>) -> Self {
        let other = other.unwrap_or(&Self::NOBODY);
        Self(std::array::from_fn(|tier| self.0[tier].min(other.0[tier])))
    }
    /// The place of the tier's first.
    pub(super) fn of(self, tier: Tier) -> Option<usize> {
        Some(self.0[tier as usize]).filter(|place| *place != NONE)
    }
}

/// Ports, and the clauses that name just them.
pub(super) type Claims = BTreeMap<PortPrefix, Firsts>;

/// Adds a clause that names these ports.
pub(super) fn claim(claims: &mut Claims, port: PortPrefix, firsts: Firsts) {
    let known = claims.entry(port).or_insert(Firsts::NOBODY);
    *known = known.and(Some(&firsts));
}

/// Rows about one peer, or about anybody, in the order of their ports.
pub(super) type PortRows = Vec<(PortPrefix, PolicyRow)>;

/// What no row at all says, where a row must say so: denied, and not by a rule.
const DENIED: PolicyRow = PolicyRow::deny(RuleId(0));

/// A prefix on the way down to narrower ones.
struct Level {
    port: PortPrefix,
    firsts: Firsts,
    /// The rows that are found from here, if nothing narrower has one.
    own: Option<PolicyRow>,
    anybody: Option<PolicyRow>,
}

/// The rows about a peer, given the claims of clauses about it, the claims of those about anybody and the rows
/// that these have. `decide` says what becomes of a flow, given the first of all clauses that hold it; `None`
/// is denied, and not by a rule.
pub(super) fn settle(
    own: &Claims,
    any: &Claims,
    anybody: &PortRows,
    decide: impl Fn(Firsts) -> Option<PolicyRow>,
) -> PortRows {
    let anybody: BTreeMap<_, _> = anybody.iter().copied().collect();
    let ports: BTreeSet<_> = own.keys().chain(any.keys()).copied().chain([PortPrefix::ALL]).collect();
    let mut above: Vec<Level> = Vec::new();
    let mut rows = PortRows::new();
    // A prefix comes right before all that it holds: those above it are those that hold it.
    for port in ports {
        while above.last().is_some_and(|level| !level.port.holds(port)) {
            above.pop();
        }
        let wider = above.last().map(|level| (level.firsts, level.own, level.anybody));
        let (firsts, mut found, wider) = wider.unwrap_or((Firsts::NOBODY, None, None));
        let firsts = firsts.and(own.get(&port)).and(any.get(&port));
        let anybody = anybody.get(&port).copied().or(wider);
        let decided = decide(firsts).unwrap_or(DENIED);
        if decided != found.or(anybody).unwrap_or(DENIED) {
            rows.push((port, decided));
            found = Some(decided);
        }
        above.push(Level { port, firsts, own: found, anybody });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIXES: [PortPrefix; 5] = [
        PortPrefix::ALL,
        PortPrefix::any(6),
        PortPrefix { bits: 94, protocol: 6, port: 80 },
        PortPrefix::one(6, 80),
        PortPrefix::one(17, 80),
    ];

    /// What a clause of the Admin or the Baseline tier does.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Does {
        Accept,
        Deny,
        Pass,
    }

    /// A clause at a place in the order: whom it is about, its tier, what it does, its port.
    type Clause = (bool, Tier, Does, PortPrefix);

    /// What becomes of a flow, step by step, given the clauses that match it.
    fn judged(clauses: &[Clause], isolated: bool, matches: impl Fn(&Clause) -> bool) -> PolicyRow {
        for tier in [Tier::Admin, Tier::Network, Tier::Baseline] {
            let mut of_tier = (1..).zip(clauses).filter(|(_, clause)| clause.1 == tier && matches(clause));
            match of_tier.next() {
                Some((rule, (_, _, Does::Accept, _))) => return PolicyRow::allow(RuleId(rule)),
                Some((rule, (_, _, Does::Deny, _))) => return PolicyRow::deny(RuleId(rule)),
                Some((_, (_, _, Does::Pass, _))) => {}
                None if tier == Tier::Network && isolated => return DENIED,
                None => {}
            }
        }
        PolicyRow::allow(RuleId(0))
    }

    /// The row that the path finds: the longest prefix among the peer's rows, then among anybody's.
    fn found(rows: &PortRows, anybody: &PortRows, port: PortPrefix) -> PolicyRow {
        let longest = |rows: &PortRows| {
            let holding = rows.iter().filter(|(prefix, _)| prefix.holds(port));
            holding.max_by_key(|(prefix, _)| prefix.bits).map(|(_, row)| *row)
        };
        longest(rows).or_else(|| longest(anybody)).unwrap_or(DENIED)
    }

    fn rows(clauses: &[Clause], isolated: bool) -> (PortRows, PortRows) {
        let (mut own, mut any) = (Claims::new(), Claims::new());
        for (place, (about_peer, tier, _, port)) in clauses.iter().enumerate() {
            claim(if *about_peer { &mut own } else { &mut any }, *port, Firsts::one(*tier, place));
        }
        let decide = |firsts: Firsts| {
            let matches = |clause: &Clause| {
                let place = clauses.iter().position(|other| std::ptr::eq(other, clause));
                firsts.of(clause.1) == place
            };
            Some(judged(clauses, isolated, matches)).filter(|row| *row != DENIED)
        };
        let anybody = settle(&any, &Claims::new(), &PortRows::new(), decide);
        (settle(&own, &any, &anybody, decide), anybody)
    }

    fn check(clauses: &[Clause], isolated: bool) {
        let (own, anybody) = rows(clauses, isolated);
        for port in [(6, 80), (6, 81), (6, 9), (17, 80), (17, 9)] {
            let port = PortPrefix::one(port.0, port.1);
            let matching = |clause: &Clause| clause.3.holds(port);
            let expected = judged(clauses, isolated, matching);
            assert_eq!(
                found(&own, &anybody, port),
                expected,
                "{clauses:?} {isolated} {port:?}: {own:?} {anybody:?}"
            );
            let others = judged(clauses, isolated, |clause| !clause.0 && matching(clause));
            assert_eq!(found(&PortRows::new(), &anybody, port), others, "{clauses:?} {isolated} {port:?}");
        }
    }

    /// Every clause that there can be in these tiers.
    fn clauses() -> Vec<Clause> {
        let mut all = Vec::new();
        for (tier, actions) in [
            (Tier::Admin, &[Does::Accept, Does::Deny, Does::Pass] as &[_]),
            (Tier::Network, &[Does::Accept]),
            (Tier::Baseline, &[Does::Accept, Does::Deny, Does::Pass]),
        ] {
            for does in actions {
                for about_peer in [true, false] {
                    all.extend(PREFIXES.map(|port| (about_peer, tier, *does, port)));
                }
            }
        }
        all
    }

    #[test]
    fn any_two_clauses_are_found_as_the_tiers_decide() {
        let all = clauses();
        for isolated in [true, false] {
            check(&[], isolated);
            for first in &all {
                check(&[*first], isolated);
                for second in &all {
                    if first.1 <= second.1 {
                        check(&[*first, *second], isolated);
                    }
                }
            }
        }
    }

    #[test]
    fn any_way_to_give_ports_to_three_clauses_is_found_as_the_tiers_decide() {
        let actions = [Does::Accept, Does::Deny, Does::Pass];
        let tiers = [
            [Tier::Admin, Tier::Admin, Tier::Network],
            [Tier::Admin, Tier::Network, Tier::Baseline],
            [Tier::Admin, Tier::Baseline, Tier::Baseline],
        ];
        let ways = 2 * PREFIXES.len();
        for (tiers, mixture) in tiers.iter().flat_map(|tiers| (0..9).map(move |mixture| (tiers, mixture))) {
            for way in 0..ways.pow(3) {
                let (mut rest, mut mixture) = (way, mixture);
                let clauses = tiers.map(|tier| {
                    let (about_peer, port) = (rest % 2 == 0, PREFIXES[rest / 2 % PREFIXES.len()]);
                    rest /= ways;
                    let does = if tier == Tier::Network { Does::Accept } else { actions[mixture % 3] };
                    mixture /= if tier == Tier::Network { 1 } else { 3 };
                    (about_peer, tier, does, port)
                });
                check(&clauses, way % 3 != 0);
            }
        }
    }

    #[test]
    fn what_a_wider_row_says_already_takes_no_row() {
        let accept = |about_peer, port| (about_peer, Tier::Network, Does::Accept, port);
        let (own, _) = rows(&[accept(true, PortPrefix::ALL), accept(true, PortPrefix::one(6, 80))], true);
        assert_eq!(own, [(PortPrefix::ALL, PolicyRow::allow(RuleId(1)))]);
        let (own, anybody) =
            rows(&[accept(false, PortPrefix::ALL), accept(true, PortPrefix::one(6, 80))], true);
        assert_eq!((own.len(), anybody.len()), (0, 1));
    }

    #[test]
    fn what_nothing_denies_is_allowed_by_a_row_without_a_rule() {
        let deny = (true, Tier::Admin, Does::Deny, PortPrefix::one(6, 80));
        let (own, anybody) = rows(&[deny], false);
        assert_eq!(anybody, [(PortPrefix::ALL, PolicyRow::allow(RuleId(0)))]);
        assert_eq!(own, [(PortPrefix::one(6, 80), PolicyRow::deny(RuleId(1)))]);
    }

    #[test]
    fn what_is_passed_to_network_policies_that_do_not_allow_it_is_denied_without_a_rule() {
        let pass = (true, Tier::Admin, Does::Pass, PortPrefix::one(6, 80));
        let accept = (true, Tier::Admin, Does::Accept, PortPrefix::ALL);
        let (own, anybody) = rows(&[pass, accept], true);
        assert!(anybody.is_empty());
        assert_eq!(own, [(PortPrefix::ALL, PolicyRow::allow(RuleId(2))), (PortPrefix::one(6, 80), DENIED)]);
    }
}
