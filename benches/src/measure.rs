//! How it is measured.
//!
//! All variants stand side by side, so that they share the machine's moods: in every round each is measured
//! once, and every other round goes through them backwards. What is compared is a variant and `routed` in
//! the same round; of the rounds' ratios the median is told, with the lowest and the highest.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use testbed::dataplane::{self, Name, Up};
use testbed::traffic::{self, End, Ends, Limits, Transport};
use userspace::model::{self, Cluster};

use crate::machine::{self, Ticks};
use crate::matrix::{Run, Suite, Workload};
use crate::results::{Absent, Machine, Results, Sample, VERSION};

/// Two nodes with a pod each, and a Service and a policy, so that there is something to look up.
const CLUSTER: &str = include_str!("cluster.yaml");

/// The port that servers listen on.
pub(crate) const PORT: u16 = 8080;

/// CPU time stolen by the machine's host, in percent, from which a run is called noisy.
const NOISY_STEAL: f64 = 2.0;

/// Spread of `routed` over the rounds, in percent of its median, from which a run is called noisy.
const NOISY_SPREAD: f64 = 40.0;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The built-in cluster.
    #[error("cannot read the built-in cluster: {0}")]
    Cluster(#[from] model::Error),
    /// No variant at all.
    #[error("no dataplane could be started: {}", whys(.0))]
    None(Vec<Absent>),
    /// Traffic that did not pass.
    #[error("cannot measure {workload} on {dataplane}: {source}")]
    Traffic {
        /// The variant.
        dataplane: Name,
        /// The workload.
        workload: Workload,
        /// What went wrong.
        source: traffic::Error,
    },
    /// Namespaces that are still there.
    #[error("measured, but could not remove {dataplane}: {source}; try `podpath down --all`")]
    Left {
        /// The variant.
        dataplane: Name,
        /// What is left.
        source: dataplane::Error,
    },
    /// A cluster that was to be measured by itself.
    #[error("cannot build a cluster: {0}")]
    Build(#[from] dataplane::Error),
    /// By the user.
    #[error("interrupted; every namespace is removed")]
    Interrupted,
}

fn whys(absent: &[Absent]) -> String {
    absent.iter().map(|absent| format!("{}: {}", absent.variant, absent.why)).collect::<Vec<_>>().join("; ")
}

/// Builds all variants, measures them, and removes them, whatever happens. `stop` ends it early; `said` is
/// told what is going on.
///
/// # Errors
/// [`Error`]. Nothing is left then, if not said otherwise.
pub fn compare(suite: Suite, stop: &AtomicBool, mut said: impl FnMut(&str)) -> Result<Results, Error> {
    let mut machine = machine::now();
    let (begin, before) = (Instant::now(), Ticks::now());
    let (ups, absent) = build(&suite, stop, &mut said)?;
    let samples = measure_all(&suite, &ups, stop, &mut said)?;
    for up in ups {
        let dataplane = up.name();
        up.down().map_err(|source| Error::Left { dataplane, source })?;
    }
    machine.took_s = begin.elapsed().as_secs_f64();
    machine.steal_percent = Ticks::now().since(before).steal_percent();
    let mut results = Results {
        version: VERSION,
        suite: suite.name.to_owned(),
        seed: suite.seed,
        rounds: suite.rounds,
        time_s: suite.time.as_secs_f64(),
        machine,
        absent,
        samples,
        ..Results::default()
    };
    results.noise = noise(&results, &suite);
    Ok(results)
}

/// All variants that can be started, and those that cannot.
fn build(
    suite: &Suite,
    stop: &AtomicBool,
    said: &mut impl FnMut(&str),
) -> Result<(Vec<Up>, Vec<Absent>), Error> {
    let (mut ups, mut absent) = (Vec::new(), Vec::new());
    for name in &suite.dataplanes {
        check(stop)?;
        said(&format!("building {name}"));
        match Up::new(&cluster(*name)?, *name) {
            Ok(up) => ups.push(up),
            Err(error) => {
                said(&format!("leaving out {name}: {error}"));
                absent.push(Absent { variant: name.to_string(), why: error.to_string() });
            }
        }
    }
    if ups.is_empty() { Err(Error::None(absent)) } else { Ok((ups, absent)) }
}

fn measure_all(
    suite: &Suite,
    ups: &[Up],
    stop: &AtomicBool,
    said: &mut impl FnMut(&str),
) -> Result<Vec<Sample>, Error> {
    let mut samples = Vec::new();
    for round in 0..suite.rounds {
        said(&format!("round {} of {}", round + 1, suite.rounds));
        for run in &suite.runs {
            for up in in_turn(ups, round) {
                check(stop)?;
                let figures = measure(up, *run, Limits::time(suite.time));
                let figures = figures.map_err(|source| Error::Traffic {
                    dataplane: up.name(),
                    workload: run.workload,
                    source,
                })?;
                let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                let (variant, point) = (up.name().to_string(), run.point());
                samples.push(Sample { variant, point, round, figures, latencies_us: Vec::new() });
            }
        }
    }
    Ok(samples)
}

/// Forwards in even rounds, backwards in odd ones.
pub(crate) fn in_turn<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    let last = all.len().saturating_sub(1);
    all.iter().enumerate().map(move |(at, _)| &all[if round.is_multiple_of(2) { at } else { last - at }])
}

pub(crate) fn check(stop: &AtomicBool) -> Result<(), Error> {
    if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// The built-in cluster, for one variant of this process.
pub(crate) fn cluster(name: Name) -> Result<Cluster, Error> {
    let mut cluster = model::load_text("the built-in cluster", CLUSTER)?;
    cluster.name = format!("bench-{name}-{}", std::process::id());
    Ok(cluster)
}

/// One measurement.
fn measure(up: &Up, run: Run, limits: Limits) -> Result<BTreeMap<&'static str, f64>, traffic::Error> {
    let same_cpu = !matches!(run.workload, Workload::TcpStream | Workload::UdpStream);
    let ends = ends(up, same_cpu);
    let size = run.size_bytes;
    Ok(match run.workload {
        Workload::TcpRr => figures_of(&traffic::request_response(&ends, Transport::Tcp, size, limits)?),
        Workload::UdpRr => {
            let trips = traffic::request_response(&ends, Transport::Udp, size, limits)?;
            let mut figures = figures_of(&trips);
            figures.insert("lost", trips.lost as f64);
            figures
        }
        Workload::TcpCrr => figures_of(&traffic::connect_request_close(&ends, size, limits)?),
        Workload::TcpStream => {
            let streamed = traffic::stream(&ends, limits)?;
            BTreeMap::from([
                ("throughput_gbit_per_s", streamed.rate_bits() / 1e9),
                ("retransmits", streamed.retransmits as f64),
            ])
        }
        Workload::UdpStream => {
            let packets = traffic::packet_rate(&ends, size, limits)?;
            let sent = packets.sent as f64 / packets.elapsed.as_secs_f64();
            BTreeMap::from([("received_kpps", packets.rate() / 1e3), ("sent_kpps", sent / 1e3)])
        }
    })
}

fn figures_of(trips: &traffic::RoundTrips) -> BTreeMap<&'static str, f64> {
    BTreeMap::from([
        ("latency_us_p50", trips.quantile_us(0.5)),
        ("latency_us_p99", trips.quantile_us(0.99)),
        ("transactions_per_s", trips.rate()),
    ])
}

/// From the first pod to the second. The CPU of the server matters to latency only; where it does not, the
/// server keeps off the client's, if there is another.
fn ends(up: &Up, same_cpu: bool) -> Ends {
    let pods = &up.topology().cluster().pods;
    let [client, server] = &pods[..] else { unreachable!("the built-in cluster has two pods") };
    let IpAddr::V4(address) = server.address() else { unreachable!("the built-in cluster is IPv4") };
    let cpu = if same_cpu { Some(0) } else { (machine::cpus() > 1).then_some(1) };
    Ends {
        client: End { netns: up.topology().pod(client), cpu: Some(0) },
        server: End { netns: up.topology().pod(server), cpu },
        dialled: SocketAddrV4::new(address, PORT),
        listening: PORT,
    }
}

/// What makes the figures of a run uncertain; nothing, if it is valid.
fn noise(results: &Results, suite: &Suite) -> Vec<String> {
    let mut noise = Vec::new();
    let Machine { steal_percent, load, cpus, .. } = results.machine;
    if steal_percent > NOISY_STEAL {
        noise.push(format!("the machine's host took away {steal_percent:.1} % of the CPU time"));
    }
    if load > cpus as f64 {
        noise.push(format!("{load} threads wanted the {cpus} CPUs in the minute before it began"));
    }
    for run in &suite.runs {
        let telling = run.workload.figures()[0];
        if let Some(spread) = results.spread(&Name::Routed.to_string(), &run.point(), telling.name)
            && spread.percent() > NOISY_SPREAD
        {
            let percent = spread.percent();
            noise.push(format!("{} on routed is spread over {percent:.0} % of its median", run.workload));
        }
    }
    noise
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn a_yardstick_that_wavers_makes_a_run_noisy() {
        let suite = Suite { runs: vec![Run::new(Workload::TcpRr, 1)], ..Suite::quick() };
        let mut results = results();
        results.machine.cpus = 1;
        assert_eq!(noise(&results, &suite), ["TCP_RR on routed is spread over 83 % of its median"]);
    }

    #[test]
    fn every_other_round_goes_backwards() {
        let all = [1, 2, 3];
        assert_eq!(in_turn(&all, 0).collect::<Vec<_>>(), [&1, &2, &3]);
        assert_eq!(in_turn(&all, 1).collect::<Vec<_>>(), [&3, &2, &1]);
    }

    #[test]
    fn the_built_in_cluster_has_two_pods_on_two_nodes() {
        let cluster = cluster(Name::Wire).unwrap_or_else(|error| panic!("{error}"));
        let [client, server] = &cluster.pods[..] else { panic!("{:?}", cluster.pods) };
        assert_ne!(client.node, server.node);
        assert!(cluster.name.starts_with("bench-wire-"));
    }
}
