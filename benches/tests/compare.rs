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
    let comparison =
        compare(suite, &AtomicBool::new(false), |_| {}).unwrap_or_else(|error| panic!("{error}"));
    assert!(comparison.absent.is_empty(), "{:?}", comparison.absent);
    assert_eq!(comparison.samples.len(), 3 * variants * runs.len());
    let results = comparison.results();
    for sample in &results.samples {
        assert!(
            sample.figures.iter().all(|(name, value)| name == "retransmits" || *value > 0.0),
            "{sample:?}"
        );
    }
    for point in results.points() {
        let own = ("routed", point);
        for figure in results
            .samples
            .iter()
            .filter(|sample| sample.point == *point)
            .flat_map(|sample| sample.figures.keys())
        {
            let ratio = results.ratio(own, own, figure);
            assert!(ratio.is_none_or(|ratio| ratio.min == 1.0 && ratio.max == 1.0), "{figure}: {ratio:?}");
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
