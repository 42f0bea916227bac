//! Links that are not perfect. Counts are those of the seed, and within four standard deviations of what
//! chance makes of the settings.

use super::*;

const FRAMES: u64 = 20_000;

/// So many frames from n1 to n2, `gap_ns` apart; what came of them in order, by their tags.
fn run(links: Vec<LinkQuality>, frames: u64, gap_ns: u64) -> (Vec<Outcome>, Report) {
    let mut bench = Bench::with(|cluster| cluster.settings.fabric.links = links);
    let frame = udp("10.240.0.4:1", "10.240.0.5:2");
    let mut outcomes = Vec::new();
    for number in 0..frames {
        let now_ns = number * gap_ns;
        bench.fabric.arrive(N1, frame.clone(), number as u32, now_ns);
        outcomes.extend(std::iter::from_fn(|| bench.fabric.due(now_ns)));
    }
    outcomes.extend(std::iter::from_fn(|| bench.fabric.due(u64::MAX)));
    let report = bench.fabric.report();
    assert_eq!(report.under_way, 0);
    (outcomes, report)
}

fn arrived(outcomes: &[Outcome]) -> Vec<(u32, u64)> {
    let out = outcomes.iter().filter(|outcome| matches!(outcome.end, End::Out(_)));
    out.map(|outcome| (outcome.tag, outcome.at_ns)).collect()
}

/// Asserts that something that happens `ppm` times in a million happened about so often.
fn about(count: u64, ppm: u32) {
    let p = f64::from(ppm) / 1e6;
    let (expected, deviation) = (p * FRAMES as f64, (p * (1.0 - p) * FRAMES as f64).sqrt());
    assert!((count as f64 - expected).abs() < 4.0 * deviation, "{count} where {expected} are expected");
}

#[test]
fn a_perfect_link_takes_no_time_and_keeps_the_order() {
    let (outcomes, _) = run(Vec::new(), 100, 5);
    let expected: Vec<_> = (0..100).map(|number| (number, u64::from(number) * 5)).collect();
    assert_eq!(arrived(&outcomes), expected);
}

#[test]
fn a_delay_is_added_on_each_link() {
    let links = vec![
        quality("node:n1", |link| link.delay_ns = 3 * MILLISECOND),
        quality("node:n2", |link| link.delay_ns = 4 * MILLISECOND),
    ];
    let (outcomes, _) = run(links, 100, 5);
    let expected: Vec<_> = (0..100).map(|number| (number, u64::from(number) * 5 + 7 * MILLISECOND)).collect();
    assert_eq!(arrived(&outcomes), expected);
}

#[test]
fn jitter_spreads_the_delay_evenly() {
    let links = vec![quality("node:n1", |link| {
        (link.delay_ns, link.jitter_ns) = (10 * MILLISECOND, 2 * MILLISECOND);
    })];
    let (outcomes, _) = run(links, FRAMES, MILLISECOND);
    let delays: Vec<u64> =
        arrived(&outcomes).iter().map(|(tag, at_ns)| at_ns - u64::from(*tag) * MILLISECOND).collect();
    assert_eq!(delays.len() as u64, FRAMES);
    assert!(delays.iter().all(|delay| (8 * MILLISECOND..=12 * MILLISECOND).contains(delay)));
    for quarter in 8..12 {
        let range = quarter * MILLISECOND..(quarter + 1) * MILLISECOND;
        about(delays.iter().filter(|delay| range.contains(delay)).count() as u64, 250_000);
    }
    let disorder = arrived(&outcomes).windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
    assert!(disorder > 0, "frames a millisecond apart overtake where the jitter is two");
}

#[test]
fn loss_is_as_frequent_as_it_is_said_and_counted() {
    let (outcomes, report) = run(vec![quality("node:n2", |link| link.loss_ppm = 100_000)], FRAMES, 1000);
    about(FRAMES - arrived(&outcomes).len() as u64, 100_000);
    let lost = report.lost[Loss::LinkLoss.slug()];
    assert_eq!(lost + arrived(&outcomes).len() as u64, FRAMES);
    assert_eq!((report.links[0].lost, report.links[0].passed_out), (lost, FRAMES - lost));
}

#[test]
fn a_second_copy_is_counted_and_says_so() {
    let (outcomes, report) = run(vec![quality("node:n2", |link| link.duplicate_ppm = 50_000)], FRAMES, 1000);
    about(report.duplicated, 50_000);
    let copies = outcomes.iter().filter(|outcome| outcome.notes.contains(&Note::Duplicate)).count() as u64;
    assert_eq!((copies, report.departed), (report.duplicated, FRAMES + copies));
    assert_eq!(report.links[0].duplicated, copies);
}

#[test]
fn frames_that_overtake_are_not_delayed_and_the_others_keep_their_order() {
    let links = vec![quality("node:n1", |link| {
        (link.delay_ns, link.reorder_ppm) = (10 * MILLISECOND, 20_000);
    })];
    let (outcomes, _) = run(links, FRAMES, MILLISECOND);
    let delay = |(tag, at_ns): &(u32, u64)| at_ns - u64::from(*tag) * MILLISECOND;
    let (early, delayed): (Vec<_>, Vec<_>) = arrived(&outcomes).into_iter().partition(|one| delay(one) == 0);
    about(early.len() as u64, 20_000);
    assert!(delayed.iter().all(|one| delay(one) == 10 * MILLISECOND));
    assert!(delayed.is_sorted());
}

#[test]
fn a_rate_lets_frames_wait_their_turn_and_a_full_queue_loses_the_rest() {
    let length = udp("10.240.0.4:1", "10.240.0.5:2").len() as u64;
    // One frame a millisecond.
    let links = vec![quality("node:n1", |link| (link.rate_bps, link.queue) = (length * 8 * 1000, 10))];
    let (outcomes, report) = run(links.clone(), 100, 0);
    let expected: Vec<_> = (0..11).map(|number| (number, u64::from(number + 1) * MILLISECOND)).collect();
    assert_eq!(arrived(&outcomes), expected, "one is being sent, and ten wait");
    assert_eq!(report.lost, BTreeMap::from([(Loss::LinkQueueFull.slug().to_owned(), 89)]));
    assert_eq!(report.links[0].queue_full, 89);
    let (outcomes, _) = run(links.clone(), 100, MILLISECOND);
    assert_eq!(arrived(&outcomes).len(), 100, "who comes no faster than the rate never waits");
    let (outcomes, _) = run(links, 200, MILLISECOND / 2);
    let (first, last) = (arrived(&outcomes)[0].1, arrived(&outcomes).last().expect("some").1);
    let passed = arrived(&outcomes).len() as u64;
    assert_eq!(last - first, (passed - 1) * MILLISECOND, "what passes does so at the rate");
}

#[test]
fn each_link_and_direction_has_a_chance_of_its_own_which_the_seed_repeats() {
    let lossy =
        |link: &str, seed| quality(link, |quality| (quality.loss_ppm, quality.seed) = (500_000, seed));
    let lost = |links| arrived(&run(links, 200, 1).0);
    assert_eq!(lost(vec![lossy("node:n1", 0)]), lost(vec![lossy("node:n1", 0)]));
    assert_ne!(lost(vec![lossy("node:n1", 0)]), lost(vec![lossy("node:n1", 1)]));
    assert_ne!(lost(vec![lossy("node:n1", 0)]), lost(vec![lossy("node:n2", 0)]));
    let mut bench = Bench::with(|cluster| cluster.settings.fabric.links = vec![lossy("node:n1", 0)]);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        there.push(bench.end(N1, udp("10.240.0.4:1", "10.240.0.5:2")) == End::Out(N2));
        back.push(bench.end(N2, udp("10.240.0.5:2", "10.240.0.4:1")) == End::Out(N1));
    }
    assert_ne!(there, back);
}

#[test]
fn what_is_not_lost_has_the_same_delay_whatever_the_loss() {
    let jittery = |loss_ppm| {
        let links = vec![quality("node:n1", |link| {
            (link.jitter_ns, link.delay_ns, link.loss_ppm) = (MILLISECOND, MILLISECOND, loss_ppm);
        })];
        arrived(&run(links, 500, 0).0)
    };
    let all = jittery(0);
    let some = jittery(300_000);
    assert!(some.len() < all.len() && some.iter().all(|one| all.contains(one)));
}

#[test]
fn links_change_while_frames_are_under_way_and_an_unknown_link_changes_nothing() {
    let mut bench = Bench::with(|_| {});
    let frame = udp("10.240.0.4:1", "10.240.0.5:2");
    let slow = quality("node:n1", |link| link.delay_ns = SECOND);
    bench.fabric.set_links(std::slice::from_ref(&slow)).expect("n1 is a node");
    bench.fabric.arrive(N1, frame.clone(), 1, 0);
    bench.fabric.set_links(&[]).expect("a perfect link");
    bench.fabric.arrive(N1, frame, 2, 1);
    let order: Vec<_> =
        std::iter::from_fn(|| bench.fabric.due(SECOND)).map(|one| (one.tag, one.at_ns)).collect();
    assert_eq!(order, [(2, 1), (1, SECOND)]);
    bench.fabric.set_links(std::slice::from_ref(&slow)).expect("n1 is a node");
    let why = bench.fabric.set_links(&[quality("node:n9", |_| {})]).expect_err("there is no n9");
    assert_eq!(
        why.to_string(),
        "cannot find link \"node:n9\": links are called node:name and ext:name after the cluster's hosts"
    );
    assert_eq!(bench.fabric.report().links[0].quality, slow);
}

#[test]
fn what_was_said_of_links_holds_until_the_cluster_says_otherwise() {
    let mut cluster = cluster(2);
    let mut bench = Bench::new(&cluster);
    let slow = |link: &str| quality(link, |link| link.delay_ns = SECOND);
    let links = |bench: &Bench| -> Vec<String> {
        bench.fabric.report().links.into_iter().map(|link| link.quality.link).collect()
    };
    bench.fabric.set_links(&[slow("node:n1")]).expect("n1 is a node");
    cluster.pods.clear();
    bench.fabric.apply(&cluster).expect("fewer pods");
    assert_eq!(links(&bench), ["node:n1"]);
    cluster.settings.fabric.links = vec![slow("ext:world")];
    bench.fabric.apply(&cluster).expect("another link");
    assert_eq!(links(&bench), ["ext:world"]);
}
