//! What makes a run invalid, or what was measured at one of its points.

use std::collections::BTreeMap;

use testbed::dataplane::Name;

use crate::figure;
use crate::matrix::Workload;
use crate::report::words::title;
use crate::results::{Results, Sample, Spread};

/// The figure of a sample that says what of the machine's CPU time was stolen while it was taken.
pub const STEAL: &str = "steal_percent";

/// The figure of a sample that keeps to one CPU which says how busy the others were: with something else.
pub const ELSEWHERE: &str = "elsewhere_percent";

/// How busy they may be, in percent. Whoever runs there runs on the one CPU as well.
const MOST_ELSEWHERE: f64 = 10.0;

/// CPU time that the machine's host may take while one sample is taken, in percent, before it is taken again.
pub const MOST_STEAL_OF_ONE: f64 = 5.0;

/// The same on average over the samples that count: of those that were taken again nothing is told but the time.
const MOST_STEAL: f64 = 2.0;

/// The same over all of the run's time: a host as busy as this disturbs also where no tick tells it.
const MOST_STEAL_OF_ALL: f64 = 10.0;

/// How wide the middle half of the yardstick's rounds may be, in percent of their median.
const MOST_SPREAD: f64 = 25.0;

/// The part of the points that may be wider before nothing of the run is to be quoted.
const MOST_WIDE: f64 = 0.25;

/// Rounds of the yardstick that its spread is judged by at least.
const FEWEST_ROUNDS: usize = 3;

fn mean(samples: &[Sample], figure: &str) -> Option<f64> {
    let all: Vec<f64> = samples.iter().filter_map(|sample| sample.figures.get(figure).copied()).collect();
    (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
}

/// Why a run is invalid, a sentence each; nothing, if it is valid.
pub fn of(results: &Results) -> Vec<String> {
    let mut noise = Vec::new();
    let stolen = mean(&results.samples, STEAL).unwrap_or(results.machine.steal_percent);
    if stolen > MOST_STEAL {
        noise.push(format!(
            "the machine's host took away {stolen:.1} % of the CPU time of what counts, more than {MOST_STEAL} %"
        ));
    }
    let all = results.machine.steal_percent;
    if all > MOST_STEAL_OF_ALL {
        noise.push(format!(
            "the machine's host took away {all:.1} % of all CPU time, more than {MOST_STEAL_OF_ALL} %"
        ));
    }
    if let Some(percent) = mean(&results.samples, ELSEWHERE).filter(|percent| *percent > MOST_ELSEWHERE) {
        noise.push(format!(
            "CPUs that were to stay idle were busy for {percent:.0} % of the time, more than {MOST_ELSEWHERE} %: \
             something else was running"
        ));
    }
    let known = yardsticks(results).values().any(|values| values.len() >= FEWEST_ROUNDS);
    if results.samples.iter().any(is_traffic) && !known {
        noise.push(format!(
            "nothing says how noisy it was: {} was not measured in {FEWEST_ROUNDS} rounds",
            Name::Routed
        ));
    }
    let (wide, all) = (unsteady(results), yardsticks(results).len());
    let widest = wide.iter().max_by(|one, other| one.1.total_cmp(&other.1));
    if let Some((what, percent)) = widest.filter(|_| wide.len() as f64 > MOST_WIDE * all as f64) {
        let many = wide.len();
        noise.push(format!(
            "at {many} of {all} points the middle half of routed's rounds is wider than {MOST_SPREAD} % of their \
             median, at most {percent:.0} % ({what})"
        ));
    }
    noise
}

/// The points at which the yardstick wavers too much, so that nothing is to be quoted that was divided by it there: their
/// titles, and how much.
pub fn unsteady(results: &Results) -> Vec<(String, f64)> {
    let spread = yardsticks(results).into_iter().filter(|(_, values)| values.len() >= FEWEST_ROUNDS);
    spread
        .filter_map(|(what, values)| Some((what, middle_half(values)?)))
        .filter(|(_, percent)| *percent > MOST_SPREAD)
        .collect()
}

/// The yardstick's telling figure at each point of traffic, over the rounds.
fn yardsticks(results: &Results) -> BTreeMap<String, Vec<f64>> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let yardstick = Name::Routed.to_string();
    let own = results.samples.iter().filter(|it| it.variant == yardstick && is_traffic(it));
    for sample in own {
        let telling = figure::ALL.iter().find_map(|figure| sample.figures.get(figure.name));
        all.entry(title(&sample.point)).or_default().extend(telling);
    }
    all
}

/// Traffic that the yardstick passes too: what has no CPU time of its own is none, and frames that no socket sends are
/// for paths of this process alone.
fn is_traffic(sample: &Sample) -> bool {
    sample.figures.contains_key(STEAL) && sample.point.workload != Workload::Forward.to_string()
}

/// How far the quartiles are apart, in percent of the median.
fn middle_half(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let (low, high) = (values[last / 4], values[last - last / 4]);
    let median = Spread::of(values)?.median;
    (median > 0.0).then(|| 100.0 * (high - low) / median)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    fn with_steal(percent: f64) -> Results {
        let mut results = results();
        results.machine.cpus = 2;
        for sample in &mut results.samples {
            sample.figures.insert(STEAL.to_owned(), percent);
        }
        results.machine.steal_percent = percent;
        results
    }

    #[test]
    fn a_yardstick_that_wavers_makes_a_run_invalid() {
        let noise = of(&with_steal(0.0));
        assert_eq!(noise.len(), 1, "{noise:?}");
        assert!(
            noise[0].contains("at 1 of 1 points")
                && noise[0].contains("at most 83 % (TCP_RR, other node, 1 B)"),
            "{noise:?}"
        );
    }

    #[test]
    fn one_point_among_many_at_which_the_yardstick_wavers_is_named_alone() {
        let mut results = with_steal(0.0);
        let wavers = results.samples[0].point.clone();
        let own = results.samples.iter().filter(|it| it.variant == "routed" && it.point == wavers);
        let steady: Vec<Sample> = own
            .flat_map(|sample| (1..5).map(|connections| (sample.clone(), connections)))
            .map(|(mut sample, connections)| {
                sample.point.connections += connections;
                sample.figures.insert(figure::LATENCY_P50.to_owned(), 5.0);
                sample
            })
            .collect();
        results.samples.extend(steady);
        assert_eq!(of(&results), [""; 0]);
        let named: Vec<_> = unsteady(&results).into_iter().map(|(what, _)| what).collect();
        assert_eq!(named, [title(&wavers)]);
    }

    #[test]
    fn one_round_that_falls_out_of_line_does_not() {
        let mut results = with_steal(0.0);
        let quiet = results.samples.iter().filter(|it| it.variant == "routed").cloned().collect::<Vec<_>>();
        results.samples = (0..7)
            .map(|round| {
                let mut sample = quiet[0].clone();
                let value = if round == 3 { 50.0 } else { 5.0 + round as f64 / 10.0 };
                sample.figures.insert(figure::LATENCY_P50.to_owned(), value);
                Sample { round, ..sample }
            })
            .collect();
        assert_eq!(of(&results), [""; 0]);
    }

    #[test]
    fn what_was_stolen_from_samples_that_were_taken_again_does_not_count() {
        let mut results = with_steal(1.0);
        results.machine.steal_percent = 9.7;
        assert!(of(&results).iter().all(|noise| !noise.contains("took away")), "{:?}", of(&results));
    }

    #[test]
    fn stolen_time_and_somebody_else_who_runs_are_named() {
        let mut results = with_steal(9.7);
        results.samples.truncate(1);
        results.samples[0].figures.insert(ELSEWHERE.to_owned(), 35.0);
        let noise = of(&results);
        assert_eq!(noise.len(), 3, "{noise:?}");
        assert!(noise[0].contains("9.7 %") && noise[1].contains("busy for 35 %"), "{noise:?}");
        assert_eq!(noise[2], "nothing says how noisy it was: routed was not measured in 3 rounds");
        results.samples[0].point.workload = Workload::Forward.to_string();
        assert_eq!(of(&results).len(), 2, "routed passes no frames of that kind");
    }
}
