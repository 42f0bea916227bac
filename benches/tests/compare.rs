//! The comparison on real links: its shape, never its figures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use benches::matrix::Suite;
use benches::measure::{Error, compare};
use testbed::netns::Netns;

/// Namespaces of this process's comparisons.
fn left() -> Vec<Netns> {
    let ours = format!("-{}-", std::process::id());
    let all = Netns::list("podpath-bench-").expect("they can be listed");
    all.into_iter().filter(|netns| netns.name().contains(&ours)).collect()
}

#[test]
#[ignore = "needs root: make test"]
fn every_repeat_is_there_every_ratio_is_positive_and_nothing_stays() {
    let suite = Suite { rounds: 3, time: Duration::from_millis(50), ..Suite::quick() };
    let (variants, runs) = (suite.dataplanes.len(), suite.runs.clone());
    let results = compare(suite, &AtomicBool::new(false), |_| {}).unwrap_or_else(|error| panic!("{error}"));
    assert!(results.absent.is_empty(), "{:?}", results.absent);
    assert_eq!(results.samples.len(), 3 * variants * runs.len());
    for sample in &results.samples {
        let positive = |(name, value): (&String, &f64)| name == "retransmits" || *value > 0.0;
        assert!(sample.figures.iter().all(positive), "{sample:?}");
    }
    for run in &runs {
        let point = run.point();
        for figure in run.workload.figures() {
            let own = results.ratio(("routed", &point), ("routed", &point), figure.name);
            assert!(own.is_none_or(|own| own.min == 1.0 && own.max == 1.0), "{own:?}");
        }
    }
    assert!(left().is_empty(), "{:?}", left());
}

#[test]
#[ignore = "needs root: make test"]
fn an_interrupted_comparison_leaves_nothing() {
    let stop = AtomicBool::new(false);
    let interrupt = |what: &str| {
        if what.starts_with("round") {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let suite = Suite::quick().only("routed,wire").expect("both exist");
    assert!(matches!(compare(suite, &stop, interrupt), Err(Error::Interrupted)));
    assert!(left().is_empty(), "{:?}", left());
}
