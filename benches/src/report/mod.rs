//! How results are told: tables for people, a page with drawings, JSON with everything, CSV with the raw figures; how
//! two of them differ; and the README's part of them.

mod command;
mod compare;
mod csv;
#[cfg(test)]
pub(crate) mod fixture;
mod page;
mod readme;
mod table;
pub(crate) mod words;

pub use command::{Command, Output, tell};
pub use compare::{Change, Comparison, Verdict, compare};
pub use csv::csv;
pub use page::page;
pub use readme::{block, replaced};
pub use table::Table;

use crate::results::{Point, Results, Spread};

/// The variant that others are compared with.
const YARDSTICK: &str = "routed";

/// What a variant's figure at a point is compared with: `routed` at the same point; or, because `routed` has no
/// Services, the same traffic to the other node, with as little beside it as was measured.
fn yardstick<'a>(results: &'a Results, point: &'a Point) -> Option<&'a Point> {
    let of_routed = || results.samples.iter().filter(|sample| sample.variant == YARDSTICK);
    if let Some(same) = of_routed().find(|sample| sample.point == *point) {
        return Some(&same.point);
    }
    let alike = of_routed().map(|sample| &sample.point).filter(|other| {
        other.way == "other-node"
            && (&other.workload, other.size_bytes, other.connections, other.rate_per_s)
                == (&point.workload, point.size_bytes, point.connections, point.rate_per_s)
    });
    alike.min_by_key(|other| (other.services, other.policies, other.flows))
}

/// A variant's figure as ratio to [`yardstick`]'s in the same rounds.
fn to_routed(results: &Results, variant: &str, point: &Point, figure: &str) -> Option<Spread> {
    results.ratio((variant, point), (YARDSTICK, yardstick(results, point)?), figure)
}
