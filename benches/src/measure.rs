//! How it is measured.
//!
//! All variants stand side by side, so that they share the machine's moods: in every round each is measured
//! once, and every other round goes through them backwards. What is compared is a variant and `routed` in
//! the same round; of the rounds' ratios the median is told, with the lowest and the highest.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use testbed::dataplane::{self, Name, Up};
use testbed::traffic::{self, End, Ends, Limits, Transport};
use userspace::model::{self, Cluster};

use crate::matrix::{Run, Suite, Workload};
use crate::results::{self, Point, Results};

/// Two nodes with a pod each, and a Service and a policy, so that there is something to look up.
const CLUSTER: &str = include_str!("cluster.yaml");

/// The port that servers listen on.
pub(crate) const PORT: u16 = 8080;

/// CPU time stolen by the machine's host, in percent, from which a run is called noisy.
const NOISY_STEAL: f64 = 2.0;

/// Spread of `routed` over the rounds, in percent of its median, from which a run is called noisy.
const NOISY_SPREAD: f64 = 40.0;

/// One measurement of one variant.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// The variant.
    pub dataplane: String,
    /// The workload and its size.
    #[serde(flatten)]
    pub run: Run,
    /// Counted from 0.
    pub round: usize,
    /// Its figures by name.
    pub figures: BTreeMap<&'static str, f64>,
}

/// What the machine was like.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// As the CPU calls itself.
    pub cpu: String,
    /// How many there are.
    pub cpus: usize,
    /// When it began, in seconds since 1970.
    pub began_s: u64,
    /// How long it took.
    pub took_s: f64,
    /// CPU time that the machine's host took away meanwhile.
    pub steal_percent: f64,
    /// Threads that wanted a CPU in the minute before it began (`/proc/loadavg`).
    pub load: f64,
}

/// A variant that was not measured.
#[derive(Clone, Debug, Serialize)]
pub struct Absent {
    /// Its name.
    pub dataplane: String,
    /// What stood against it.
    pub why: String,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What was to be compared.
    pub suite: Suite,
    /// Where.
    pub machine: Machine,
    /// Variants that could not be started.
    pub absent: Vec<Absent>,
    /// Why the figures are less certain than they look; empty if they are not.
    pub noisy: Vec<String>,
    /// In the order they were taken.
    pub samples: Vec<Sample>,
}

/// A figure of a variant over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

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
    absent.iter().map(|absent| format!("{}: {}", absent.dataplane, absent.why)).collect::<Vec<_>>().join("; ")
}

/// Builds all variants, measures them, and removes them, whatever happens. `stop` ends it early; `said` is
/// told what is going on.
///
/// # Errors
/// [`Error`]. Nothing is left then, if not said otherwise.
pub fn compare(suite: Suite, stop: &AtomicBool, mut said: impl FnMut(&str)) -> Result<Comparison, Error> {
    let mut machine = Machine::now();
    let (begin, steal) = (Instant::now(), cpu_times());
    let (ups, absent) = build(&suite, stop, &mut said)?;
    let samples = measure_all(&suite, &ups, stop, &mut said)?;
    for up in ups {
        let dataplane = up.name();
        up.down().map_err(|source| Error::Left { dataplane, source })?;
    }
    machine.took_s = begin.elapsed().as_secs_f64();
    machine.steal_percent = steal_percent(steal, cpu_times());
    let mut comparison = Comparison { suite, machine, absent, noisy: Vec::new(), samples };
    comparison.noisy = comparison.noise();
    Ok(comparison)
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
                absent.push(Absent { dataplane: name.to_string(), why: error.to_string() });
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
                samples.push(Sample { dataplane: up.name().to_string(), run: *run, round, figures });
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
    let size = run.size;
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
    let cpu = if same_cpu { Some(0) } else { (cpus() > 1).then_some(1) };
    Ends {
        client: End { netns: up.topology().pod(client), cpu: Some(0) },
        server: End { netns: up.topology().pod(server), cpu },
        dialled: SocketAddrV4::new(address, PORT),
        listening: PORT,
    }
}

impl Comparison {
    /// As those who tell want it.
    pub fn results(self) -> Results {
        let Self { suite, machine, absent, noisy, samples } = self;
        let point = |run: Run| Point {
            workload: run.workload.to_string(),
            way: "other-node".to_owned(),
            size_bytes: run.size,
            connections: 1,
            services: 1,
            policies: 1,
            flows: 1,
        };
        Results {
            version: results::VERSION,
            suite: suite.name.to_owned(),
            rounds: suite.rounds,
            time_s: suite.time.as_secs_f64(),
            machine: results::Machine {
                kernel: machine.kernel,
                cpu: machine.cpu,
                cpus: machine.cpus,
                began_s: machine.began_s,
                took_s: machine.took_s,
                steal_percent: machine.steal_percent,
                load: machine.load,
                ..results::Machine::default()
            },
            noise: noisy,
            absent: absent
                .into_iter()
                .map(|Absent { dataplane, why }| results::Absent { variant: dataplane, why })
                .collect(),
            samples: samples
                .into_iter()
                .map(|Sample { dataplane, run, round, figures }| results::Sample {
                    variant: dataplane,
                    point: point(run),
                    round,
                    figures: figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
                    latencies_us: Vec::new(),
                })
                .collect(),
            ..Results::default()
        }
    }

    /// A figure of a variant over the rounds, if it was measured.
    pub fn spread(&self, dataplane: &str, run: Run, figure: &str) -> Option<Spread> {
        Spread::of(self.rounds(dataplane, run, figure).into_values().collect())
    }

    /// The same, as ratio to `routed` in the same round.
    pub fn ratio(&self, dataplane: &str, run: Run, figure: &str) -> Option<Spread> {
        let yardstick = self.rounds(&Name::Routed.to_string(), run, figure);
        let own = self.rounds(dataplane, run, figure);
        let paired = own.into_iter().filter_map(|(round, value)| {
            let measure = yardstick.get(&round).copied().filter(|measure| *measure > 0.0);
            measure.map(|measure| value / measure)
        });
        Spread::of(paired.collect())
    }

    fn rounds(&self, dataplane: &str, run: Run, figure: &str) -> BTreeMap<usize, f64> {
        let own = self.samples.iter().filter(|sample| sample.dataplane == dataplane && sample.run == run);
        own.filter_map(|sample| Some((sample.round, *sample.figures.get(figure)?))).collect()
    }

    /// What makes the figures uncertain.
    fn noise(&self) -> Vec<String> {
        let mut noise = Vec::new();
        let steal = self.machine.steal_percent;
        if steal > NOISY_STEAL {
            noise.push(format!("the machine's host took away {steal:.1} % of the CPU time"));
        }
        let Machine { load, cpus, .. } = self.machine;
        if load > cpus as f64 {
            noise.push(format!("{load} threads wanted the {cpus} CPUs in the minute before it began"));
        }
        for run in &self.suite.runs {
            let telling = run.workload.figures()[0];
            if let Some(spread) = self.spread(&Name::Routed.to_string(), *run, telling.name)
                && spread.percent() > NOISY_SPREAD
            {
                let percent = spread.percent();
                noise.push(format!("{} on routed is spread over {percent:.0} % of its median", run.workload));
            }
        }
        noise
    }
}

impl Spread {
    /// Of any numbers, if there are some.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let even = values.len().is_multiple_of(2);
        let median = if even { (values[half - 1] + values[half]) / 2.0 } else { values[half] };
        Some(Self { median, min, max })
    }

    /// From the lowest to the highest, in percent of the median.
    fn percent(self) -> f64 {
        if self.median > 0.0 { 100.0 * (self.max - self.min) / self.median } else { 0.0 }
    }
}

impl Machine {
    /// As it is before anything was measured.
    fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo").lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_owned())
        });
        let load = read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok());
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu.unwrap_or_else(|| "unknown".to_owned()),
            cpus: cpus(),
            began_s: began.as_secs(),
            load: load.unwrap_or_default(),
            ..Self::default()
        }
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Stolen and all CPU time since boot, in ticks (proc_stat(5)).
fn cpu_times() -> io::Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let times: Vec<u64> = line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
    // Guests' time, the last two, is in the first two already.
    Ok((times.get(7).copied().unwrap_or_default(), times.iter().take(8).sum()))
}

/// 0 where the kernel does not tell.
fn steal_percent(before: io::Result<(u64, u64)>, after: io::Result<(u64, u64)>) -> f64 {
    let (Ok(before), Ok(after)) = (before, after) else { return 0.0 };
    let (stolen, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    if all > 0 { 100.0 * stolen as f64 / all as f64 } else { 0.0 }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const RUN: Run = Run { workload: Workload::TcpRr, size: 1 };

    /// Three rounds of two variants, without any machine.
    pub(crate) fn comparison() -> Comparison {
        let mut samples = Vec::new();
        for (round, (routed, chains)) in [(5.0, 50.0), (10.0, 60.0), (6.0, 90.0)].into_iter().enumerate() {
            for (name, value) in [(Name::Routed, routed), (Name::Chains, chains)] {
                let figures = BTreeMap::from([("latency_us_p50", value), ("latency_us_p99", 2.0 * value)]);
                samples.push(Sample { dataplane: name.to_string(), run: RUN, round, figures });
            }
        }
        let suite = Suite { runs: vec![RUN], rounds: 3, ..Suite::quick() };
        let absent = vec![Absent { dataplane: "ebpf".to_owned(), why: "no object".to_owned() }];
        Comparison { suite, machine: Machine::default(), absent, noisy: Vec::new(), samples }
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_not_of_medians() {
        let ratio = comparison().ratio("chains", RUN, "latency_us_p50").expect("both were measured");
        assert_eq!(ratio, Spread { median: 10.0, min: 6.0, max: 15.0 });
    }

    #[test]
    fn what_was_not_measured_has_no_figures() {
        let comparison = comparison();
        assert_eq!(comparison.spread("wire", RUN, "latency_us_p50"), None);
        assert_eq!(comparison.ratio("chains", RUN, "lost"), None);
    }

    #[test]
    fn a_yardstick_that_wavers_makes_a_run_noisy() {
        let noise = comparison().noise();
        assert_eq!(noise, ["TCP_RR on routed is spread over 83 % of its median"]);
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
