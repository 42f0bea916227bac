//! One path, compiled twice: the emulator and the kernel give the same verdict, bytes, reports and rows for
//! every frame of every case, and of a seeded random run. A run that differs is shrunk to the frames that
//! it takes, and written to `target/differential/`.

mod draw;
mod twins;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use testbed::case::{self, Case};
use testbed::link::Links;
use testbed::netns::{Guard, Netns};
use userspace::engine::Capacities;
use userspace::model::load_text;

use twins::{Act, Cluster, Differences, Twins};

/// Frames of the random run, all seeds together.
const PACKETS: usize = 12_000;
const SEEDS: u64 = 12;
/// More than any cluster here has interfaces on a node: test runs name the interface a frame came in by.
const INTERFACES: usize = 48;

/// A namespace with interfaces 2 to [`INTERFACES`], which test runs may name.
fn interfaces() -> Guard {
    let netns = Netns::create(format!("podpath-test-{}-twins", std::process::id())).expect("a namespace");
    let mut links = Links::open(&netns).expect("netlink");
    for index in 2..=INTERFACES {
        links.bridge(&format!("t{index}"), dataplane::wire::Mac::GATEWAY, 1500).expect("an interface");
    }
    netns.guarded()
}

#[test]
#[ignore = "needs root: make test"]
fn every_case_is_the_same_in_both_engines() {
    let guard = interfaces();
    let told = guard.run(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let paths = case::all(&folder).expect("the cases can be listed");
        let told: Vec<_> = paths.iter().filter_map(|path| case_differs(path)).collect();
        (paths.len(), told)
    });
    let (cases, told) = told.expect("the namespace can be entered");
    assert!(cases >= 25, "only {cases} cases");
    assert!(told.is_empty(), "{} of {cases} cases differ:\n\n{}", told.len(), told.join("\n"));
}

/// What differs between the engines in a case, or between the case and what both do.
fn case_differs(path: &Path) -> Option<String> {
    let told = |why: String| format!("{}: {why}", path.display());
    let case = match Case::read(path) {
        Ok(case) => case,
        Err(why) => return Some(told(why.to_string())),
    };
    let differences: Differences = Rc::new(RefCell::new(Vec::new()));
    let (capacities, list) = (case.capacities.clone(), Rc::clone(&differences));
    let ran = case.run(Box::new(move |plan| Twins::new(plan, &capacities, Rc::clone(&list))));
    let mut all = differences.borrow().clone();
    match ran {
        Ok(ran) => all.extend(case.differs(&ran)),
        Err(why) => all.push(why.to_string()),
    }
    (!all.is_empty()).then(|| told(all.join("\n")))
}

#[test]
#[ignore = "needs root: make test"]
fn random_clusters_and_packets_are_the_same_in_both_engines() {
    let guard = interfaces();
    let told = guard.run(|| (1..=SEEDS).map(random_run).collect::<Vec<_>>());
    let told = told.expect("the namespace can be entered");
    let packets: usize = told.iter().map(|(packets, ..)| packets).sum();
    let kinds = told.iter().fold(twins::Kinds::default(), |sum, (_, kinds, _)| sum.and(kinds));
    println!("{packets} packets, verdicts: {kinds}");
    let differences: Vec<_> = told.iter().filter_map(|(.., difference)| difference.clone()).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    assert!(packets >= 10_000, "only {packets} packets");
    assert!(kinds.are_varied(), "a run that never gets anywhere shows nothing: {kinds}");
}

/// Draws a cluster and packets, and runs them through both engines.
fn random_run(seed: u64) -> (usize, twins::Kinds, Option<String>) {
    let mut draw = draw::Draw::new(seed);
    let objects = draw.objects();
    let model = load_text(&format!("seed {seed}"), &objects).expect("drawn objects are sound");
    let mut capacities = Capacities::default();
    if draw.one_in(3) {
        capacities.set("conntrack", 24).expect("a table");
        capacities.set("masquerades", 12).expect("a table");
    }
    let mut cluster = Cluster::new(&model, &capacities).expect("engines for the cluster");
    let mut acts = Vec::new();
    let packets = PACKETS / SEEDS as usize;
    for _ in 0..packets {
        let act = draw.act(&model, &cluster);
        acts.push(act.clone());
        if let Some(difference) = cluster.perform(&act, false) {
            let shrunk = shrink(acts, |acts| differs(&model, &capacities, acts));
            return (packets, cluster.kinds(), Some(keep(seed, &objects, &shrunk, &difference)));
        }
    }
    let last = cluster.compare_rows();
    (packets, cluster.kinds(), last.map(|difference| keep(seed, &objects, &acts, &difference)))
}

/// Whether these acts, on fresh engines, end in a difference.
fn differs(model: &userspace::model::Cluster, capacities: &Capacities, acts: &[Act]) -> bool {
    let mut cluster = Cluster::new(model, capacities).expect("engines for the cluster");
    acts.iter().any(|act| cluster.perform(act, true).is_some())
}

/// Leaves out what is not needed for a difference: halves, quarters, and so on down to single acts, as
/// often as there is patience for (delta debugging: Zeller and Hildebrandt, 2002).
fn shrink(mut acts: Vec<Act>, differs: impl Fn(&[Act]) -> bool) -> Vec<Act> {
    let mut patience = 60;
    let mut length = acts.len() / 2;
    while length > 0 {
        let mut start = 0;
        while start + length <= acts.len() && patience > 0 {
            patience -= 1;
            let rest = [&acts[..start], &acts[start + length..]].concat();
            if !rest.is_empty() && differs(&rest) {
                acts = rest;
            } else {
                start += length;
            }
        }
        length /= 2;
    }
    acts
}

/// Writes the run to a file, and says where and what.
fn keep(seed: u64, objects: &str, acts: &[Act], difference: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/differential");
    let file: PathBuf = folder.join(format!("seed-{seed}.txt"));
    let lines: Vec<String> = acts.iter().map(ToString::to_string).collect();
    let text = format!("{difference}\n\n{}\n\n{objects}", lines.join("\n"));
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, &text));
    let place = match written {
        Ok(()) => format!("kept in {}", file.display()),
        Err(why) => format!("not kept: {why}"),
    };
    let shown = lines.iter().rev().take(8).rev().cloned().collect::<Vec<_>>().join("\n");
    format!("seed {seed} ({place}), {} acts are enough; the last:\n{shown}\n{difference}", acts.len())
}
