//! What the policy table has room for.
//!
//! Rule sets that do not fit are left out whole, and their pods say so ([`Endpoint::INCOMPLETE`]): what policies
//! would have to decide about these is dropped, and everybody else is judged as always.
//!
//! 1. As few pods as possible shall suffer: the set with the most rows for each of its pods goes first, until
//!    the rest fits.
//! 2. Of those that went, the ones that fit after all come back, the last first.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use dataplane::tables::{Endpoint, RuleSet};
use dataplane::wire::Address;

use super::{NodeRows, Rows};

/// What a rule set needs, and for how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// Its rows.
    pub(super) rows: usize,
    /// The pods of the node that are judged by it.
    pub(super) pods: usize,
}

/// The sets that do not fit into a table of so many rows.
pub(super) fn left_out(demands: &BTreeMap<RuleSet, Demand>, room: usize) -> BTreeSet<RuleSet> {
    let mut needed: usize = demands.values().map(|demand| demand.rows).sum();
    if needed <= room {
        return BTreeSet::new();
    }
    let mut sets: Vec<_> = demands.iter().filter(|(_, demand)| demand.rows > 0).collect();
    sets.sort_by(|(one, left), (other, right)| {
        // Rows for each pod, without dividing.
        (right.rows * left.pods).cmp(&(left.rows * right.pods)).then(other.cmp(one))
    });
    let mut out = Vec::new();
    for (set, demand) in sets {
        if needed <= room {
            break;
        }
        needed -= demand.rows;
        out.push((*set, demand.rows));
    }
    let stays_out = |(_, rows): &(RuleSet, usize)| {
        let back = needed + rows <= room;
        needed += if back { *rows } else { 0 };
        !back
    };
    out.into_iter().rev().filter(stays_out).map(|(set, _)| set).collect()
}

impl NodeRows {
    /// These rows, without the rules of as many pods as it takes for the policy tables of IPv4 and IPv6 to hold no
    /// more rows than so many.
    pub fn fitting(&self, policy_rows: (u32, u32)) -> Cow<'_, Self> {
        let (v4, v6) = (policy_rows.0 as usize, policy_rows.1 as usize);
        if self.v4.policy.len() <= v4 && self.v6.policy.len() <= v6 {
            return Cow::Borrowed(self);
        }
        let mut rows = self.clone();
        rows.v4.fit(v4);
        rows.v6.fit(v6);
        Cow::Owned(rows)
    }
}

impl<A: Address> Rows<A> {
    fn fit(&mut self, room: usize) {
        let mut demands: BTreeMap<_, Demand> = BTreeMap::new();
        for key in self.policy.keys() {
            demands.entry(RuleSet(key.rules)).or_default().rows += 1;
        }
        for endpoint in self.endpoints.values() {
            demands.entry(endpoint.rules).or_default().pods += 1;
        }
        let out = left_out(&demands, room);
        self.policy.retain(|key, _| !out.contains(&RuleSet(key.rules)));
        for endpoint in self.endpoints.values_mut().filter(|endpoint| out.contains(&endpoint.rules)) {
            endpoint.flags |= Endpoint::INCOMPLETE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets 1, 2, ... with so many rows and pods.
    fn out(demands: &[(usize, usize)], room: usize) -> Vec<u32> {
        let demands = (1..).zip(demands);
        let demands = demands.map(|(set, (rows, pods))| (RuleSet(set), Demand { rows: *rows, pods: *pods }));
        left_out(&demands.collect(), room).into_iter().map(|set| set.0).collect()
    }

    #[test]
    fn nothing_is_left_out_where_everything_fits() {
        assert_eq!(out(&[(10, 1), (20, 1)], 30), [0; 0]);
    }

    #[test]
    fn the_set_with_the_most_rows_for_each_pod_is_left_out_first() {
        assert_eq!(out(&[(100, 50), (40, 1), (10, 1)], 120), [2]);
        assert_eq!(out(&[(100, 50), (40, 1), (10, 1)], 105), [2, 3]);
    }

    #[test]
    fn what_fits_after_all_comes_back() {
        assert_eq!(out(&[(30, 1), (100, 2)], 40), [2]);
        assert_eq!(out(&[(30, 1), (20, 1), (100, 200)], 10), [1, 2, 3]);
    }
}
