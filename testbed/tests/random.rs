//! Clusters drawn by lot: the oracle, the emulator and `chains` say the same of every flow. They are readings of one
//! text that share no code. The matrix of who may reach whom, which asks the emulator's rows without packets, says
//! it too.
//!
//! `PODPATH_RANDOM_SEED` and `PODPATH_RANDOM_CLUSTERS` ask for others, and for more of them.

#[expect(dead_code, reason = "the other tests use the rest")]
mod command;
mod lot;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use command::{Stage, exits, json, podpath};
use dataplane::Reason;
use lot::shrink::shrink;
use lot::{Drawn, differing};
use serde_json::Value;
use testbed::dataplane::chains::judge::Judge;
use testbed::dataplane::emulator::Emulated;
use testbed::dataplane::{Name, netfilter};
use testbed::probe::{Grid, Prober, Row, Verdict};
use userspace::engine::emulator::{Matrix, matrix};
use userspace::model::{Cluster, Port, Protocol, Who};

/// How many clusters are asked about, of the plainest kind.
const PLAIN: u64 = 2000;
/// And of all kinds.
const ANY: u64 = 400;
/// How many of the first come to life, and are asked with sockets.
const LIVE: u64 = 3;

/// What came of it all, to tell whether it proves anything.
#[derive(Debug, Default)]
struct Tally {
    clusters: AtomicUsize,
    cells: AtomicUsize,
    denied: AtomicUsize,
    open: AtomicUsize,
}

impl Tally {
    fn note(&self, grid: &Grid) {
        let count = |counter: &AtomicUsize, of: &dyn Fn(&&Row) -> bool| {
            counter.fetch_add(grid.rows.iter().filter(of).count(), Ordering::Relaxed);
        };
        count(&self.cells, &|_| true);
        count(&self.denied, &|row| row.measured.verdict == Verdict::Deny);
        count(&self.open, &|row| row.expected().is_none());
    }
}

/// What differs on a drawn cluster, in words.
///
/// # Errors
/// The cluster is refused, or cannot be emulated.
fn differences(drawn: &Drawn, tally: &Tally) -> Result<Vec<String>, String> {
    let cluster = drawn.cluster()?;
    let flows = drawn.flows(&cluster);
    let measure = |prober: &mut dyn Prober| {
        Grid::measure(&cluster, flows.clone(), prober).map_err(|error| error.to_string())
    };
    let emulated = measure(&mut Emulated::new(&cluster).map_err(|error| error.to_string())?)?;
    tally.clusters.fetch_add(1, Ordering::Relaxed);
    tally.note(&emulated);
    let mut told = differing(&emulated);
    told.extend(unlike_the_matrix(&cluster, drawn, &emulated)?);
    let judged = measure(&mut Judge::new(&cluster).map_err(|error| error.to_string())?)?;
    told.extend(differing(&judged));
    Ok(told)
}

/// Flows of which the matrix says something else than became of their packets. It speaks of policies alone.
fn unlike_the_matrix(cluster: &Cluster, drawn: &Drawn, grid: &Grid) -> Result<Vec<String>, String> {
    let matrix = Matrix::of(cluster, &drawn.ports).map_err(|error| error.to_string())?;
    let place = |who: &Who| matrix.place(who);
    let told = grid.rows.iter().filter_map(|Row { flow, measured, .. }| {
        let port = Port { number: flow.port, protocol: flow.protocol };
        let at = drawn.ports.iter().position(|one| *one == port)?;
        let said = matrix.verdict(place(&flow.from)?, place(&flow.to)?, at);
        let denied = measured.reason == Some(Reason::PolicyDenied);
        ((said == matrix::Verdict::Deny) != denied).then(|| {
            let reason = measured.reason.map_or("", Reason::slug);
            format!("{flow}: the matrix says {said:?}, a packet met {} {reason}", measured.verdict)
        })
    });
    Ok(told.collect())
}

/// Looks at one cluster; shrinks it if something differs.
///
/// # Errors
/// What differs, and the objects that it takes.
fn check(seed: u64, drawn: &Drawn, tally: &Tally) -> Result<(), String> {
    match differences(drawn, tally) {
        Ok(told) if told.is_empty() => Ok(()),
        Ok(_) => {
            let unnoted = Tally::default();
            let differs = |drawn: &Drawn| differences(drawn, &unnoted).is_ok_and(|told| !told.is_empty());
            let least = shrink(drawn, differs);
            let told = differences(&least, &unnoted).unwrap_or_default();
            Err(format!("seed {seed}:\n{}\n{}", told.join("\n"), least.text()))
        }
        Err(why) => Err(format!("seed {seed}: {why}\n{}", drawn.text())),
    }
}

/// A number that the environment may ask for.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|why| panic!("{name}={text}: {why}")))
}

/// More differences than these are not looked for, by each processor: each takes a while to shrink.
const ENOUGH: usize = 3;

/// Looks at so many clusters, on all processors.
fn check_all(clusters: u64, draw: fn(u64) -> Drawn) -> Tally {
    let first = number("PODPATH_RANDOM_SEED", 0);
    let end = first + number("PODPATH_RANDOM_CLUSTERS", clusters);
    let (next, tally) = (AtomicU64::new(first), Tally::default());
    let work = || {
        let mut wrong = Vec::new();
        while wrong.len() < ENOUGH {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            wrong.extend(check(seed, &draw(seed), &tally).err());
        }
        wrong
    };
    let wrong: Vec<String> = thread::scope(|scope| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("it does not panic")).collect()
    });
    println!("{tally:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    tally
}

/// Neither all of the cells nor none of them are denied, and few are left open, unless few clusters were asked for.
#[track_caller]
fn proves_something(tally: &Tally) {
    let [cells, denied, open] =
        [&tally.cells, &tally.denied, &tally.open].map(|it| it.load(Ordering::Relaxed));
    let few = tally.clusters.load(Ordering::Relaxed) < 100;
    assert!(few || denied > cells / 20 && denied < cells / 2 && open < cells / 20, "{tally:?}");
}

#[test]
fn oracle_emulator_and_chains_agree_about_every_cell_of_clusters_drawn_by_lot() {
    proves_something(&check_all(PLAIN, Drawn::plain));
}

#[test]
fn they_agree_about_every_cell_of_clusters_of_all_models_and_families() {
    proves_something(&check_all(ANY, Drawn::any));
}

/// What sockets meet on a drawn cluster that is brought to life is what the oracle says.
fn comes_to_life(seed: u64, drawn: &Drawn, dataplane: &str) {
    let cluster = drawn.cluster().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let stage = Stage::new(&format!("random-{dataplane}-{seed}"));
    let spoken = |flow: &&testbed::probe::Flow| flow.protocol != Protocol::Sctp;
    let flows = drawn.flows(&cluster);
    let flows: Value = (flows.iter().filter(spoken))
        .map(|flow| serde_json::json!([flow.from.to_string(), flow.to.to_string(), flow.port, flow.protocol]))
        .collect();
    let objects = stage.file("objects.yaml", &drawn.text().replace("name: drawn", "name: NAME"));
    let asked = stage.file("flows.json", &flows.to_string());
    let paths = [&objects, &asked].map(|path| path.to_str().expect("a name of our own"));
    let options = ["check", "-f", paths[0], "--flows", paths[1], "--dataplane", dataplane, "-o", "json"];
    let told = podpath(&options);
    let differing = json(&told)["flows"]
        .as_array()
        .expect("it has flows")
        .iter()
        .filter(|row| row["expected"] != Value::Null && row["expected"] != row["verdict"])
        .map(Value::to_string)
        .collect::<Vec<_>>();
    assert!(differing.is_empty(), "seed {seed} on {dataplane}:\n{}\n{}", differing.join("\n"), drawn.text());
    exits(&told, 0);
}

#[test]
#[ignore = "needs root: make test"]
fn clusters_drawn_by_lot_come_to_life_and_sockets_meet_what_the_oracle_says() {
    (0..LIVE).for_each(|seed| comes_to_life(seed, &Drawn::plain(seed), "ebpf"));
}

/// The first clusters of every model, and of every choice of families, that the kernel's packet filter can carry.
fn of_every_kind() -> Vec<(u64, Drawn)> {
    let first = number("PODPATH_RANDOM_SEED", 0);
    let mut seen = BTreeSet::new();
    let mut drawn = (first..first + 200).map(|seed| (seed, Drawn::any(seed))).collect::<Vec<_>>();
    drawn.retain(|(_, drawn)| {
        let Ok(cluster) = drawn.cluster() else { return false };
        let families = |addresses: &[IpAddr]| addresses.iter().map(IpAddr::is_ipv6).collect::<Vec<_>>();
        let of_pods = cluster.pods.iter().map(|pod| families(&pod.addresses)).max();
        let model = format!("{:?}", cluster.settings.model);
        let kind = format!("{:?} {of_pods:?}", families(&cluster.nodes[0].addresses));
        netfilter::check(Name::Nftables, &cluster).is_ok() && (seen.insert(model) | seen.insert(kind))
    });
    drawn
}

#[test]
#[ignore = "needs root: make test"]
fn clusters_of_every_kind_drawn_by_lot_come_to_life_on_the_kernels_packet_filter() {
    let drawn = of_every_kind();
    assert!(drawn.len() >= 5, "{} clusters", drawn.len());
    for (seed, drawn) in drawn {
        for dataplane in ["iptables", "nftables"] {
            comes_to_life(seed, &drawn, dataplane);
        }
    }
}
