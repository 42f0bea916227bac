//! What must hold, as data, and what of it does.
//!
//! A target is about the smallest point that has at least as much as it asks for: a cluster of 10,000 Services stands
//! for one of 5,000 where only that one was measured, never the other way round.

use std::fmt;

use crate::figure::{LATENCY_P50, LATENCY_P99, RECEIVED, THROUGHPUT, TOOK, TRANSACTIONS};
use crate::noise;
use crate::report::YARDSTICK;
use crate::report::words::title;
use crate::results::{Point, Results, Sample, Spread};

/// Which side of a number is good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Not more than.
    AtMost(f64),
    /// Not less than.
    AtLeast(f64),
}

/// Something that must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// What is measured, for people.
    pub measure: &'static str,
    /// What it must be.
    pub bound: Bound,
    /// What the numbers are in; empty for ratios.
    pub unit: &'static str,
    of: Of,
}

/// Where its number comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    /// A figure of a variant, divided by that of another (or of itself, elsewhere) in the same rounds.
    Ratio(&'static str, Side, Side),
    /// A figure of a variant.
    Figure(&'static str, Side),
    /// What a kind of packet costs with so many flows.
    Cost(&'static str, u32),
}

/// A variant at a point.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Side {
    variant: &'static str,
    workload: &'static str,
    way: &'static str,
    /// Any, if none.
    size_bytes: Option<usize>,
    /// At least so many.
    services: usize,
}

/// How a target was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Met,
    /// It does not.
    Missed,
    /// It was measured in a run that is invalid.
    NotJudged,
    /// Nobody knows.
    NotMeasured,
}

/// A target, and what was measured of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Which.
    pub target: Target,
    /// Over the rounds; of a packet's cost, from the quiet runs to the median.
    pub measured: Option<Spread>,
    /// At how many Services, where more were measured than it asks for.
    pub services: Option<usize>,
    /// By the median.
    pub outcome: Outcome,
}

const OTHER_NODE: &str = "other-node";
const SERVICE: &str = "service";
const EGRESS: &str = "egress to a Service";
const INGRESS: &str = "overlay ingress to a pod";

/// Every target, in the order of reports.
pub const ALL: [Target; 20] = [
    ratio(
        "ebpf: TCP request/response p50 ÷ routed",
        Bound::AtMost(0.95),
        LATENCY_P50,
        [side("ebpf", "TCP_RR", OTHER_NODE), side("routed", "TCP_RR", OTHER_NODE)],
    ),
    ratio(
        "ebpf: connect/request/close rate ÷ routed, 1 service",
        Bound::AtLeast(0.85),
        TRANSACTIONS,
        [side("ebpf", "TCP_CRR", SERVICE), side("routed", "TCP_CRR", OTHER_NODE)],
    ),
    ratio(
        "ebpf: connect/request/close rate ÷ routed, 5,000 services",
        Bound::AtLeast(0.85),
        TRANSACTIONS,
        [side("ebpf", "TCP_CRR", SERVICE).services(5000), side("routed", "TCP_CRR", OTHER_NODE)],
    ),
    ratio(
        "ebpf: connect/request/close rate at 5,000 services ÷ at 1",
        Bound::AtLeast(0.95),
        TRANSACTIONS,
        [side("ebpf", "TCP_CRR", SERVICE).services(5000), side("ebpf", "TCP_CRR", SERVICE)],
    ),
    ratio(
        "ebpf: TCP stream ÷ routed",
        Bound::AtLeast(1.0),
        THROUGHPUT,
        [side("ebpf", "TCP_STREAM", OTHER_NODE), side("routed", "TCP_STREAM", OTHER_NODE)],
    ),
    ratio(
        "ebpf: 64-byte UDP packets/s ÷ routed",
        Bound::AtLeast(1.15),
        RECEIVED,
        [side("ebpf", "UDP_STREAM", OTHER_NODE).size(64), side("routed", "UDP_STREAM", OTHER_NODE).size(64)],
    ),
    cost("pod egress to a Service, 1 flow", 180.0, EGRESS, 1),
    cost("pod egress to a Service, 1,024 flows", 200.0, EGRESS, 1024),
    cost("pod egress to a Service, 65,536 flows", 340.0, EGRESS, 65_536),
    cost("overlay ingress to a pod, 1 flow", 140.0, INGRESS, 1),
    cost("overlay ingress to a pod, 1,024 flows", 160.0, INGRESS, 1024),
    cost("overlay ingress to a pod, 65,536 flows", 300.0, INGRESS, 65_536),
    cost("new flow, egress", 450.0, "new flow, egress", 0),
    cost("new flow, ingress", 400.0, "new flow, ingress", 0),
    cost("policy deny, 1 flow", 80.0, "policy deny", 1),
    figure(
        "ebpf: 5,000 services x 3 endpoints into an empty node",
        (Bound::AtMost(100.0), "ms"),
        TOOK,
        side("ebpf", "PROGRAM", "").services(5000),
    ),
    figure(
        "ebpf: one endpoint of 5,000 services changed, p99",
        (Bound::AtMost(1000.0), "us"),
        LATENCY_P99,
        side("ebpf", "UPDATE", "").services(5000),
    ),
    figure(
        "emulator in memory, established flow",
        (Bound::AtLeast(5000.0), "kpps"),
        RECEIVED,
        side("emulator", "FORWARD", "memory"),
    ),
    ratio(
        "emulator ÷ a bare forwarding loop with the same IO",
        Bound::AtLeast(0.8),
        RECEIVED,
        [side("emulator", "FORWARD", OTHER_NODE), side("bare", "FORWARD", OTHER_NODE)],
    ),
    ratio(
        "emulator ÷ chains, 1,000 services",
        Bound::AtLeast(2.0),
        RECEIVED,
        [
            side("emulator", "FORWARD", OTHER_NODE).services(1000),
            side("chains", "FORWARD", OTHER_NODE).services(1000),
        ],
    ),
];

const fn side(variant: &'static str, workload: &'static str, way: &'static str) -> Side {
    Side { variant, workload, way, size_bytes: None, services: 0 }
}

const fn ratio(measure: &'static str, bound: Bound, figure: &'static str, sides: [Side; 2]) -> Target {
    let [own, yardstick] = sides;
    Target { measure, bound, unit: "", of: Of::Ratio(figure, own, yardstick) }
}

const fn figure(
    measure: &'static str,
    (bound, unit): (Bound, &'static str),
    figure: &'static str,
    of: Side,
) -> Target {
    Target { measure, bound, unit, of: Of::Figure(figure, of) }
}

/// In the kernel's test run, without its harness. 0 flows: as many as were measured.
const fn cost(measure: &'static str, ns: f64, packet: &'static str, flows: u32) -> Target {
    Target { measure, bound: Bound::AtMost(ns), unit: "ns", of: Of::Cost(packet, flows) }
}

impl Side {
    const fn services(self, services: usize) -> Self {
        Self { services, ..self }
    }

    const fn size(self, bytes: usize) -> Self {
        Self { size_bytes: Some(bytes), ..self }
    }

    /// The point that it is about, if the variant was measured there.
    fn point(self, results: &Results) -> Option<&Point> {
        self.least(&results.samples, None)
    }

    /// The same for what another variant's figure is divided by: it took turns with it, if it can be on a cluster of the
    /// same sizes. Of the same variant elsewhere, only the first.
    fn yardstick<'a>(self, results: &'a Results, own: (Side, &Point)) -> Option<&'a Point> {
        let sizes = Some(own.1).filter(|_| own.0.variant != self.variant);
        let other = |point: &&Point| own.0.variant != self.variant || *point != own.1;
        self.least(results.beside(own.1), sizes).filter(other)
    }

    fn is_about(self, point: &Point) -> bool {
        point.workload == self.workload
            // What is done to a variant itself goes no way.
            && (self.way.is_empty() || point.way == self.way)
            && point.services >= self.services
            && self.size_bytes.is_none_or(|size| point.size_bytes == size)
    }

    fn least<'a>(self, samples: &'a [Sample], sizes: Option<&Point>) -> Option<&'a Point> {
        let own = samples.iter().filter(|sample| sample.variant == self.variant);
        let fits = own.map(|sample| &sample.point).filter(|point| self.is_about(point));
        // One policy rather than none: what is judged has all its functions on.
        fits.min_by_key(|point| {
            let Point { services, policies, connections, flows, size_bytes, rate_per_s, .. } = **point;
            let other = |of: &Point| (of.services, of.policies, of.flows) != (services, policies, flows);
            let least = (services == 0, services, policies == 0, policies, connections, flows, size_bytes);
            (rate_per_s, sizes.is_some_and(other), least)
        })
    }
}

impl Bound {
    /// Whether a number is on its good side.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

impl Target {
    /// Where the variant was measured that all others are divided by, if that is what this one's number is.
    fn yardstick<'a>(&self, results: &'a Results) -> Option<&'a Point> {
        let Of::Ratio(_, own, yardstick) = self.of else { return None };
        let by = yardstick.yardstick(results, (own, own.point(results)?))?;
        (yardstick.variant == YARDSTICK).then_some(by)
    }

    fn measured(&self, results: &Results) -> Option<(Spread, Option<usize>)> {
        let more = |side: Side, point: &Point| Some(point.services).filter(|has| *has > side.services.max(1));
        match self.of {
            Of::Ratio(figure, own, yardstick) => {
                let point = own.point(results)?;
                let by = yardstick.yardstick(results, (own, point))?;
                let spread = results.ratio((own.variant, point), (yardstick.variant, by), figure)?;
                Some((spread, more(own, point)))
            }
            Of::Figure(figure, of) => {
                let point = of.point(results)?;
                Some((results.spread(of.variant, point, figure)?, more(of, point)))
            }
            Of::Cost(packet, flows) => {
                let mut alike = results.costs.iter().filter(|cost| cost.packet == packet);
                let cost = alike.find(|cost| flows == 0 || cost.flows == flows)?;
                Some((cost.spread(), None))
            }
        }
    }
}

/// Judges every target; none by an invalid run, or by a yardstick that wavers.
pub fn judge(results: &Results) -> Vec<Judged> {
    let unsteady = noise::unsteady(results);
    let wavers = |target: &Target| {
        let by = target.yardstick(results).map(title);
        unsteady.iter().any(|(what, _)| by.as_ref() == Some(what))
    };
    let judged = ALL.into_iter().map(|target| {
        let (measured, services) = target.measured(results).unzip();
        let outcome = match measured {
            None => Outcome::NotMeasured,
            Some(_) if !results.noise.is_empty() || wavers(&target) => Outcome::NotJudged,
            Some(Spread { median, .. }) if target.bound.holds(median) => Outcome::Met,
            Some(_) => Outcome::Missed,
        };
        Judged { target, measured, services: services.flatten(), outcome }
    });
    judged.collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotJudged => "not judged: too noisy",
            Self::NotMeasured => "not measured",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::matrix::{Often, Suite, Variant};
    use crate::report::fixture::rich;

    fn judged(results: &Results, measure: &str) -> Judged {
        let all = judge(results);
        let found = all.into_iter().find(|judged| judged.target.measure == measure);
        found.unwrap_or_else(|| panic!("there is no target {measure}"))
    }

    #[test]
    fn every_target_of_a_full_run_is_judged_and_none_of_an_empty_one() {
        let open = judge(&rich()).into_iter().filter(|judged| judged.outcome == Outcome::NotMeasured);
        assert_eq!(open.map(|judged| judged.target.measure).collect::<Vec<_>>(), [""; 0]);
        let empty = judge(&Results::default());
        assert!(empty.iter().all(|judged| judged.outcome == Outcome::NotMeasured), "{empty:?}");
    }

    #[test]
    fn what_must_hold_beside_routed_is_measured_more_often_than_the_rest() {
        let suite = Suite::standard();
        let often: Vec<_> = suite.runs().filter(|run| run.often == Often::More).collect();
        let (mut asked, mut wanted) = (BTreeSet::new(), 0);
        for target in &ALL {
            let Of::Ratio(_, own, by) = target.of else { continue };
            if by.variant != YARDSTICK && by.variant != own.variant {
                continue;
            }
            wanted += 1;
            for side in [own, by] {
                let run = often.iter().find(|run| side.is_about(&run.point()));
                asked.insert(run.unwrap_or_else(|| panic!("{}: {side:?}", target.measure)).point());
                let variant: Variant = side.variant.parse().unwrap_or_else(|()| panic!("{side:?}"));
                assert!(variant.must_hold(), "{side:?}");
            }
        }
        assert_eq!((wanted, asked.len()), (6, often.len()), "and nothing else is");
    }

    #[test]
    fn the_median_of_the_rounds_ratios_judges() {
        let mut results = rich();
        let measure = "ebpf: TCP request/response p50 ÷ routed";
        assert_eq!(judged(&results, measure).outcome, Outcome::Met);
        for sample in results.samples.iter_mut().filter(|sample| sample.variant == "ebpf") {
            sample.figures.entry(LATENCY_P50.to_owned()).and_modify(|value| *value *= 1.2);
        }
        let missed = judged(&results, measure);
        assert_eq!(missed.outcome, Outcome::Missed, "{missed:?}");
        assert!(missed.measured.is_some_and(|spread| spread.min < spread.median), "{missed:?}");
    }

    #[test]
    fn an_invalid_run_judges_nothing() {
        let judged = judge(&Results { noise: vec!["noise".to_owned()], ..rich() });
        assert!(judged.iter().all(|judged| judged.outcome == Outcome::NotJudged), "{judged:?}");
        let nothing = judge(&Results { noise: vec!["noise".to_owned()], ..Results::default() });
        assert!(nothing.iter().all(|judged| judged.outcome == Outcome::NotMeasured), "{nothing:?}");
    }

    #[test]
    fn where_the_yardstick_wavers_nothing_is_judged_by_it_and_all_else_is() {
        let mut results = rich();
        let before = judge(&results);
        let measure = "ebpf: TCP request/response p50 ÷ routed";
        let of_routed = |it: &&mut Sample| it.variant == YARDSTICK && it.point.workload == "TCP_RR";
        for sample in results.samples.iter_mut().filter(of_routed) {
            let factor = 1.0 + sample.round as f64;
            sample.figures.entry(LATENCY_P50.to_owned()).and_modify(|value| *value *= factor);
            sample.figures.insert(noise::STEAL.to_owned(), 0.0);
        }
        assert_eq!(judged(&results, measure).outcome, Outcome::NotJudged);
        let alike =
            judge(&results).into_iter().zip(&before).filter(|(now, then)| now.outcome == then.outcome);
        assert_eq!(alike.count(), before.len() - 1);
    }

    #[test]
    fn more_services_than_asked_for_stand_for_them_and_are_named_but_fewer_never_do() {
        let mut results = rich();
        let measure = "ebpf: connect/request/close rate ÷ routed, 5,000 services";
        assert_eq!(judged(&results, measure).services, None);
        results.samples.retain(|sample| sample.point.services != 5000);
        assert_eq!(judged(&results, measure).services, Some(10_000));
        results.samples.retain(|sample| sample.point.services < 5000);
        assert_eq!(judged(&results, measure).outcome, Outcome::NotMeasured);
    }

    #[test]
    fn what_did_not_take_turns_is_not_divided() {
        let mut results = rich();
        let measure = "ebpf: connect/request/close rate at 5,000 services ÷ at 1";
        assert_eq!(judged(&results, measure).outcome, Outcome::Met);
        results.samples.sort_by_key(|sample| (sample.point.services, sample.round));
        assert_eq!(judged(&results, measure).outcome, Outcome::NotMeasured);
    }

    #[test]
    fn the_cost_of_a_packet_is_judged_at_its_number_of_flows() {
        let mut results = rich();
        let measure = "pod egress to a Service, 1,024 flows";
        for cost in results.costs.iter_mut().filter(|cost| cost.packet == EGRESS && cost.flows == 1024) {
            (cost.median_ns, cost.quiet_ns) = (200.0, 190.0);
        }
        let met = judged(&results, measure);
        assert_eq!((met.outcome, met.measured.map(|spread| spread.min)), (Outcome::Met, Some(190.0)));
        results.costs.retain(|cost| cost.flows != 1024);
        assert_eq!(judged(&results, measure).outcome, Outcome::NotMeasured);
    }
}
