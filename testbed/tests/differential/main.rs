//! One path, compiled twice: the emulator and the kernel give the same verdict, bytes, reports and rows for
//! every frame of every case, and of a seeded random run. So does the emulator with all packets on the long way, which
//! takes no root. A run that differs is shrunk to the frames that it takes, and written to `target/differential/`.

mod bytes;
mod cluster;
mod draw;
mod kinds;
#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "../lot/mod.rs"]
mod lot;
mod packet;
mod scene;
mod twins;
mod ways;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use dataplane::Verdict;
use testbed::case::{self, Case};
use testbed::dataplane::emulator::Emulated;
use testbed::netns::{Guard, Netns};
use testbed::probe::Grid;
use userspace::engine::Capacities;
use userspace::engine::emulator::topology::Interfaces;
use userspace::model::load_text;
use userspace::plan::{Links, NodePlan, Plan};

use cluster::{Act, Cluster, Differences, Pair};
use kinds::Kinds;
use scene::Scene;
use twins::Twins;
use ways::Ways;

/// More than any cluster here has interfaces on a node: test runs name the interface a frame came in by.
const INTERFACES: usize = 48;

/// A namespace with interfaces 2 to [`INTERFACES`], which test runs may name.
fn interfaces(purpose: &str) -> Guard {
    let name = format!("podpath-test-{}-{purpose}", std::process::id());
    let netns = Netns::create(name).expect("a namespace");
    let mut links = testbed::link::Links::open(&netns).expect("netlink");
    for index in 2..=INTERFACES {
        links.bridge(&format!("t{index}"), dataplane::wire::Mac::GATEWAY, 1500).expect("an interface");
    }
    netns.guarded()
}

#[test]
#[ignore = "needs root: make test"]
fn every_case_is_the_same_in_both_engines() {
    let guard = interfaces("cases");
    let told = guard.run(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let paths = case::all(&folder).expect("the cases can be listed");
        let told: Vec<_> = paths.iter().filter_map(|path| case_differs::<Twins>(path, true)).collect();
        (paths.len(), told)
    });
    let (cases, told) = told.expect("the namespace can be entered");
    assert!(cases >= 25, "only {cases} cases");
    assert!(told.is_empty(), "{} of {cases} cases differ:\n\n{}", told.len(), told.join("\n"));
}

#[test]
fn the_short_way_of_known_flows_comes_to_what_the_long_way_does_in_every_case() {
    let paths = case::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")).expect("they can be listed");
    let ways = paths.iter().flat_map(|path| [true, false].map(|traced| (path, traced)));
    let told: Vec<_> = ways.filter_map(|(path, traced)| case_differs::<Ways>(path, traced)).collect();
    assert!(paths.len() >= 25, "only {} cases", paths.len());
    assert!(told.is_empty(), "{}", told.join("\n"));
}

/// What differs between the two of a pair in a case, or between the case and what both do.
fn case_differs<P: Pair + 'static>(path: &Path, traced: bool) -> Option<String> {
    let told = |why: String| format!("{}: {why}", path.display());
    let case = match Case::read(path) {
        Ok(case) => case,
        Err(why) => return Some(told(why.to_string())),
    };
    let differences: Differences = Rc::new(RefCell::new(Vec::new()));
    let (capacities, list) = (case.capacities.clone(), Rc::clone(&differences));
    let ran = case.run(Box::new(move |plan| P::new(plan, &capacities, traced, Rc::clone(&list))));
    let mut all = differences.borrow().clone();
    match ran {
        // What every stage says is in no walk where none is told.
        Ok(ran) if traced => all.extend(case.differs(&ran)),
        Ok(_) => {}
        Err(why) => all.push(why.to_string()),
    }
    (!all.is_empty()).then(|| told(all.join("\n")))
}

#[test]
#[ignore = "needs root: make test"]
fn random_clusters_and_packets_are_the_same_in_both_engines() {
    let length = Length::asked_for();
    let guard = interfaces("random");
    let told = guard
        .run(|| random_runs::<Twins>(&length, Manner { traced: true, again: false }))
        .expect("the namespace can be entered");
    println!("{} packets, from seed {} on:\n{}", told.packets, length.seed, told.kinds);
    assert!(told.differences.is_empty(), "{}", told.differences.join("\n\n"));
    assert_eq!(told.packets, length.clusters * length.each, "packets were left out");
    assert!(told.kinds.missing().is_empty(), "never seen: {}", told.kinds.missing().join(", "));
}

/// Clusters that have IPv6 in a tunnel over IPv4, by their seeds: of both encapsulations.
const V6_IN_V4: [u64; 3] = [4, 8, 10];

const UNTRACED: Manner = Manner { traced: false, again: true };

#[test]
#[ignore = "needs root: make test"]
fn random_packets_that_nobody_traces_are_the_same_in_both_engines() {
    let guard = interfaces("untraced");
    let told = guard.run(|| {
        let mut told = Told::default();
        for seed in V6_IN_V4 {
            random_run::<Twins>(seed, 1250, (UNTRACED, &mut told));
        }
        told
    });
    let told = told.expect("the namespace can be entered");
    assert!(told.differences.is_empty(), "{}", told.differences.join("\n\n"));
    told.assert_known();
}

#[test]
fn the_short_way_of_random_flows_comes_to_what_the_long_way_does() {
    let length = Length { seed: 1, clusters: draw::ROUND as usize, each: 1250 };
    for traced in [true, false] {
        let told = random_runs::<Ways>(&length, Manner { traced, again: true });
        assert!(told.differences.is_empty(), "{}", told.differences.join("\n\n"));
        told.assert_known();
    }
}

/// How many clusters of those that `tests/random.rs` draws are asked about here, too.
const GRIDS: u64 = 24;

#[test]
#[ignore = "needs root: make test"]
fn who_reaches_whom_by_lot_is_the_oracle_s_and_the_same_in_both_engines() {
    let guard = interfaces("grids");
    let told = guard.run(|| (0..GRIDS).filter_map(grid_differs).collect::<Vec<_>>());
    let told = told.expect("the namespace can be entered");
    assert!(told.is_empty(), "{} of {GRIDS} differ:\n\n{}", told.len(), told.join("\n\n"));
}

/// What differs between the engines about a drawn cluster's flows, or between both and the oracle.
fn grid_differs(seed: u64) -> Option<String> {
    let drawn = lot::Drawn::any(seed);
    let cluster = drawn.cluster().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let differences = Differences::default();
    let list = Rc::clone(&differences);
    let make = move |plan: &NodePlan| Twins::new(plan, &Capacities::default(), true, Rc::clone(&list));
    let twins = Emulated::on(&cluster, Box::new(make));
    let mut twins = twins.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let grid = Grid::measure(&cluster, drawn.flows(&cluster), &mut twins);
    let grid = grid.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    assert!(grid.rows.len() > 20, "seed {seed}: {} flows", grid.rows.len());
    let mut told = differences.borrow().clone();
    told.extend(lot::differing(&grid));
    (!told.is_empty()).then(|| format!("seed {seed}:\n{}\n{}", told.join("\n"), drawn.text()))
}

/// How long a random run is, and where it starts.
struct Length {
    seed: u64,
    clusters: usize,
    /// Packets for each.
    each: usize,
}

impl Length {
    /// What `make test` runs; or what the environment asks for: `PODPATH_DIFFERENTIAL_PACKETS`, at least
    /// that many, and `PODPATH_DIFFERENTIAL_SEED`, the first cluster's.
    fn asked_for() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<u64>().unwrap_or_else(|why| panic!("{name}={text}: {why}")))
        };
        let seed = number("PODPATH_DIFFERENTIAL_SEED").unwrap_or(1);
        match number("PODPATH_DIFFERENTIAL_PACKETS") {
            None => Self { seed, clusters: draw::ROUND as usize, each: 1250 },
            // Making a cluster takes as long as thousands of packets.
            Some(packets) => Self { seed, clusters: packets.div_ceil(10_000) as usize, each: 10_000 },
        }
    }
}

/// How a random run goes.
#[derive(Clone, Copy)]
struct Manner {
    /// Every stage reports.
    traced: bool,
    /// What passes comes once more at once, and finds its flow known.
    again: bool,
}

/// What came of random runs.
#[derive(Default)]
struct Told {
    packets: usize,
    kinds: Kinds,
    /// Frames that found their flow's way known: of IPv4, and of IPv6.
    known: [usize; 2],
    differences: Vec<String>,
}

impl Told {
    /// The short way was gone often enough, in both families.
    fn assert_known(&self) {
        println!("{:?} packets of {} found a way, of IPv4 and of IPv6", self.known, self.packets);
        assert!(self.known.iter().all(|found| *found >= 20), "{:?} packets of IPv4 and IPv6", self.known);
    }
}

/// More differences are not looked for: each takes a while to shrink.
const ENOUGH: usize = 4;

fn random_runs<P: Pair>(length: &Length, manner: Manner) -> Told {
    let mut told = Told::default();
    let (start, mut said) = (Instant::now(), Instant::now());
    for (done, seed) in (length.seed..).take(length.clusters).enumerate() {
        random_run::<P>(seed, length.each, (manner, &mut told));
        if told.differences.len() >= ENOUGH {
            break;
        }
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            let rate = told.packets as f64 / start.elapsed().as_secs_f64();
            println!(
                "{} of {} clusters, {} packets, {rate:.0} a second",
                done + 1,
                length.clusters,
                told.packets
            );
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds:.0} s, {:.0} packets a second", told.packets as f64 / seconds);
    told
}

/// A drawn cluster, planned.
struct Drawn {
    objects: String,
    capacities: Capacities,
    nodes: Vec<(NodePlan, Links)>,
    traced: bool,
}

impl Drawn {
    fn twice<P: Pair>(&self) -> Cluster<P> {
        Cluster::new(&self.nodes, &self.capacities, self.traced).expect("engines for the cluster")
    }
}

/// Draws a cluster and packets, and runs them through both of each pair, where every stage reports or none does.
fn random_run<P: Pair>(seed: u64, packets: usize, (manner, told): (Manner, &mut Told)) {
    let mut draw = draw::Draw::new(seed);
    let objects = draw.objects(seed);
    let model = load_text(&format!("seed {seed}"), &objects)
        .unwrap_or_else(|why| panic!("drawn objects are sound: {why}\n{objects}"));
    let capacities = draw.capacities();
    let plan = Plan::of(&model).expect("drawn clusters can be planned");
    let mut interfaces = Interfaces::default();
    let nodes = model.nodes.iter().map(|node| {
        let links = interfaces.of(&model, &node.name);
        let mut plan = plan.node(&node.name, &links).expect("every node is planned");
        draw.leave_out(&mut plan);
        (plan, links)
    });
    let drawn = Drawn { objects, capacities, nodes: nodes.collect(), traced: manner.traced };
    let mut cluster = drawn.twice::<P>();
    let mut scene = Scene::new(&model, &drawn.nodes);
    let (mut acts, mut sent) = (Vec::new(), 0);
    while sent < packets && cluster.difference().is_none() {
        let act = draw.act(&mut scene);
        acts.push(act.clone());
        let Some(outcome) = cluster.perform(&act, false) else { continue };
        sent += 1;
        scene.note(&act, outcome.verdict, &outcome.frame);
        if manner.again && matches!(outcome.verdict, Verdict::Forward(_) | Verdict::Deliver(_)) {
            cluster.perform(&act, false);
            acts.push(act);
        }
    }
    cluster.compare_rows();
    told.packets += sent;
    told.known = std::array::from_fn(|at| told.known[at] + cluster.known()[at]);
    told.kinds = std::mem::take(&mut told.kinds).and(cluster.kinds());
    if let Some(difference) = cluster.difference() {
        drop(cluster);
        let shrunk = shrink(acts, |acts| differs::<P>(&drawn, acts).is_some());
        let difference = differs::<P>(&drawn, &shrunk).unwrap_or(difference);
        told.differences.push(keep(seed, &drawn.objects, &shrunk, &difference));
    }
}

/// What differs when these acts are done on fresh engines.
fn differs<P: Pair>(drawn: &Drawn, acts: &[Act]) -> Option<String> {
    let mut cluster = drawn.twice::<P>();
    acts.iter().find_map(|act| {
        cluster.perform(act, true);
        cluster.difference()
    })
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
