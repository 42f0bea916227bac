//! The comparison on real links: its shape, never its figures.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use benches::journal::{Head, Journal};
use benches::matrix::{Run, Suite, Variant, Way, Workload};
use benches::measure::{Error, compare};
use benches::results::{Machine, Results, Sample};
use testbed::netns::Netns;

/// Namespaces of this process's comparisons.
fn left() -> Vec<Netns> {
    let ours = format!("-{}-", std::process::id());
    let all = Netns::list("podpath-bench-").expect("they can be listed");
    all.into_iter().filter(|netns| netns.name().contains(&ours)).collect()
}

/// Everything that suites ask for, in the smallest cluster.
fn tiny() -> Suite {
    let mut suite =
        Suite { rounds: 1, time: Duration::from_millis(50), programs: false, ..Suite::standard() };
    suite.blocks.iter_mut().for_each(|block| block.retain(|run| run.sizes.services == 1));
    suite
}

fn measured(suite: &Suite) -> Results {
    let mut said = |what: &str| println!("{what}");
    compare(suite, &mut Journal::default(), &AtomicBool::new(false), &mut said)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The figures that a sample of this kind has at least, however few of its kind there were in so short a time.
fn figures(run: &Run) -> &'static [&'static str] {
    match run.workload {
        _ if run.rate_per_s > 0 => &["latency_us_p50", "transactions_per_s"],
        Workload::TcpRr | Workload::TcpCrr => {
            &["latency_us_p50", "transactions_per_s", "cpu_us_per_transaction"]
        }
        Workload::UdpRr => &["latency_us_p50", "transactions_per_s", "cpu_us_per_transaction", "lost"],
        Workload::FirstPacket => &["latency_us_p50", "lost"],
        Workload::TcpStream => &["throughput_gbit_per_s", "retransmits", "cpu_ms_per_gbit"],
        Workload::UdpStream => &["received_kpps", "sent_kpps", "cpu_ns_per_packet"],
        Workload::Forward => &["received_kpps"],
        Workload::Program | Workload::Boot => &["took_ms"],
        Workload::Update => &["latency_us_p50"],
        Workload::Memory => &["memory_bytes"],
    }
}

fn has_its_figures(sample: &Sample, run: &Run) {
    for name in figures(run) {
        let value = sample.figures.get(*name).unwrap_or_else(|| panic!("{sample:?} has no {name}"));
        // In so short a time nothing may be lost, and the CPUs' clock may not tick.
        let may_be_none = ["lost", "retransmits", "cpu_"].iter().any(|it| name.starts_with(it));
        assert!(*value > 0.0 || may_be_none, "{name} of {sample:?}");
    }
    let keeps = run.is_traffic() && !run.spreads();
    let others = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    assert_eq!(sample.figures.contains_key("elsewhere_percent"), keeps && others, "{sample:?}");
    let is_latency = run.is_traffic() && sample.figures.contains_key("latency_us_p50");
    assert_eq!(!sample.latencies_us.is_empty(), is_latency, "{sample:?}");
}

#[test]
#[ignore = "needs root: make test"]
fn every_variant_has_every_figure_or_says_why_not_and_nothing_stays() {
    let suite = tiny();
    let results = measured(&suite);
    for (variant, run) in suite.variants.iter().flat_map(|it| suite.runs().map(move |run| (it, run))) {
        let (name, point) = (variant.to_string(), run.point());
        let sample = results.samples.iter().find(|it| it.variant == name && it.point == point);
        match (sample, variant.lacks(run)) {
            (Some(sample), None) => has_its_figures(sample, run),
            (None, Some(why)) => {
                assert!(
                    results.absent.iter().any(|it| it.variant == name && it.why.ends_with(why)),
                    "{name}"
                );
            }
            (None, None) => panic!("{name} was not measured at {point:?}: {:?}", results.absent),
            (Some(sample), Some(why)) => panic!("{name} was measured, although {why}: {sample:?}"),
        }
    }
    let once: BTreeSet<_> = results.samples.iter().map(|it| (&it.variant, &it.point, it.round)).collect();
    assert_eq!(once.len(), results.samples.len());
    assert!(left().is_empty(), "{:?}", left());
}

#[test]
#[ignore = "needs root: make test"]
fn flows_beside_are_open_while_it_is_measured() {
    let mut suite = Suite::scale().only("ebpf,nftables,routed,udp_rr").expect("all exist");
    suite.blocks.retain(|block| block.iter().any(|run| run.sizes.flows == 1024));
    let suite = Suite { rounds: 1, time: Duration::from_millis(50), ..suite };
    let results = measured(&suite);
    assert_eq!((results.samples.len(), results.absent.len()), (3, 0), "{:?}", results.absent);
    assert!(results.samples.iter().all(|sample| sample.point.flows == 1024));
}

#[test]
#[ignore = "needs root: make test"]
fn an_interrupted_comparison_leaves_nothing_and_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = Journal::beside(&folder.path().join("results.json"));
    let suite = Suite::quick().only("routed,wire,tcp_rr,udp_stream").expect("all exist");
    let suite = Suite { rounds: 2, time: Duration::from_millis(50), ..suite };
    let head = Head::new(&suite, Machine::default());
    let (stop, mut rounds) = (AtomicBool::new(false), 0);
    let mut interrupt = |what: &str| {
        rounds += usize::from(what.starts_with("round"));
        stop.store(rounds == 6, Ordering::Relaxed);
    };
    let mut journal = Journal::begin(&path, &head).expect("a folder of our own");
    let interrupted = compare(&suite, &mut journal, &stop, &mut interrupt);
    assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");
    assert!(left().is_empty(), "{:?}", left());
    let mut journal = Journal::resume(&path, &head).unwrap_or_else(|error| panic!("{error}"));
    let mut taken = 0;
    let mut count = |what: &str| taken += usize::from(what.starts_with("round"));
    let results = compare(&suite, &mut journal, &AtomicBool::new(false), &mut count);
    let results = results.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((results.samples.len(), taken), (8, 4), "of the two rounds only the first was whole");
    let routed = Variant::from(testbed::dataplane::Name::Routed).to_string();
    let point = Run::new(Workload::TcpRr, Way::OtherNode).point();
    assert!(results.spread(&routed, &point, "latency_us_p50").is_some());
}
