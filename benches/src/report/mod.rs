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
pub(crate) use table::write_stages;

use crate::results::{Point, Results, Spread};

/// The variant that others are compared with.
pub(crate) const YARDSTICK: &str = "routed";

/// What a variant's figure at a point is compared with: `routed` at the same point; or, because `routed` has no
/// Services, the same traffic to the other node, on a cluster of the same sizes, or of as many Services, or else of as
/// little as was measured. It is always one that took turns with the point: see [`Results::beside`].
fn yardstick<'a>(results: &'a Results, point: &'a Point) -> Option<&'a Point> {
    let of_routed = || results.beside(point).iter().filter(|sample| sample.variant == YARDSTICK);
    if let Some(same) = of_routed().find(|sample| sample.point == *point) {
        return Some(&same.point);
    }
    let alike = of_routed().map(|sample| &sample.point).filter(|other| {
        other.way == "other-node"
            && (&other.workload, other.size_bytes, other.connections, other.rate_per_s)
                == (&point.workload, point.size_bytes, point.connections, point.rate_per_s)
    });
    let sizes = |it: &Point| (it.services, it.policies, it.flows);
    alike.min_by_key(|other| (sizes(other) != sizes(point), other.services != point.services, sizes(other)))
}

/// A variant's figure as ratio to [`yardstick`]'s in the same rounds.
fn to_routed(results: &Results, variant: &str, point: &Point, figure: &str) -> Option<Spread> {
    results.ratio((variant, point), (YARDSTICK, yardstick(results, point)?), figure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{point, results};

    #[test]
    fn a_point_is_paired_with_its_own_sizes_and_never_with_another_blocks() {
        let mut results = results();
        let measured = std::mem::take(&mut results.samples);
        let service = |services| Point { way: "service".to_owned(), services, ..point() };
        let of = |services, variant: &'static str, point: Point| {
            let own = measured.iter().filter(move |it| it.variant == variant).cloned();
            own.map(move |it| crate::results::Sample { point: Point { services, ..point.clone() }, ..it })
        };
        let mut block = |services: usize, routed_at: &[usize]| {
            let mut samples: Vec<_> = of(services, "chains", service(services)).collect();
            routed_at.iter().for_each(|at| samples.extend(of(*at, "routed", point())));
            samples.sort_by_key(|sample| sample.round);
            results.samples.extend(samples);
        };
        block(1000, &[1, 1000]);
        block(5000, &[2]);
        block(10_000, &[]);
        let paired = |services| yardstick(&results, &service(services)).map(|point| point.services);
        assert_eq!([1000, 5000, 10_000].map(paired), [Some(1000), Some(2), None]);
    }
}
