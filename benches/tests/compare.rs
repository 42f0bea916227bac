//! The comparison on real links: its shape, never its figures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use benches::matrix::Suite;
use benches::measure::{Error, compare};
use benches::report::rows;
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
    let rows = rows(&results);
    let figures: usize = runs.iter().map(|run| run.workload.figures().len()).sum();
    assert_eq!(rows.len(), variants * figures);
    for row in rows.iter().filter(|row| row.figure != "retransmits") {
        assert!(row.spread.min > 0.0 && row.spread.min <= row.spread.median, "{row:?}");
        assert!(row.ratio_to_routed.is_none_or(|ratio| ratio.min > 0.0), "{row:?}");
        assert!(
            row.variant != "routed" || row.ratio_to_routed.is_none_or(|ratio| ratio.max == 1.0),
            "{row:?}"
        );
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
