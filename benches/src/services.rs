//! What Services cost: to program many of them, to change one among many, to reach one among many.
//!
//! Programming is that of one node by its engine in the kernel: what is planned for it, and written into its
//! tables. How a cluster's description comes to the node is not in it. Reaching one is a TCP connection for
//! every request, to a Service with one endpoint, on two clusters that stand side by side: one has that Service
//! alone, the other ten thousand more. Two others tell what it saves to lead sockets to their backends, and two what it
//! does to meet packets in the driver.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use dataplane::tables::Slots;
use serde::Serialize;
use testbed::dataplane::{Name, Up};
use userspace::engine::Engine;
use userspace::engine::kernel::{Kernel, Options};
use userspace::model::{Acceleration, Cluster, Node, Service};
use userspace::plan::{Links, NodePlan, NodeRows, Plan};

use crate::cluster::{self, service};
use crate::figure::{RECEIVED, THROUGHPUT, TRANSACTIONS};
use crate::matrix::{Run, Sizes, Way, Workload};
use crate::measure::{Error, check, in_turn, removed};
use crate::sample::{self, Measured};

/// Services that there are, and endpoints behind each.
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 4;
/// Endpoints of the one Service with a table, and its slots.
const MANY: u32 = 150;
const TABLE: u32 = 65_521;
/// Times that an empty node is programmed.
const TIMES: usize = 7;
/// Changes that are made one after the other.
const CHANGES: u32 = 3000;

/// A number, over all times that it was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What is measured.
    pub figure: String,
    /// In what.
    pub unit: &'static str,
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// Below which ninety-nine in a hundred are, where there are as many.
    pub p99: Option<f64>,
    /// The highest.
    pub max: f64,
    /// What it should be.
    pub target: Option<&'static str>,
}

impl Figure {
    /// The figure of these values; none of none.
    pub(crate) fn of(figure: &str, unit: &'static str, values: &mut [f64]) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let p99 = (values.len() >= 100).then(|| values[values.len() * 99 / 100]);
        let median = values[values.len() / 2];
        Some(Self { figure: figure.to_owned(), unit, median, min, p99, max, target: None })
    }
    /// What it should be.
    pub(crate) fn target(self, target: &'static str) -> Self {
        Self { target: Some(target), ..self }
    }
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// The cluster could not be planned, or the kernel refused.
    #[error("cannot measure programming: {0}")]
    Engine(#[from] userspace::error::Error),
    /// Traffic did not pass.
    #[error(transparent)]
    Measure(#[from] Error),
}

/// How often reaching a Service is measured, and for how long each time.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// How often.
    pub rounds: usize,
    /// How long.
    pub time: Duration,
}

/// Measures all of it, in the kernel: it needs root.
///
/// # Errors
/// [`ServicesError`].
pub fn measure(
    rounds: Rounds,
    stop: &AtomicBool,
    mut said: impl FnMut(&str),
) -> Result<Vec<Figure>, ServicesError> {
    said("programming an empty node");
    let all = cluster(SERVICES, ENDPOINTS);
    let mut kernel = loaded(&all)?;
    let mut figures = from_nothing(&mut kernel, &all, stop)?;
    figures.extend(memory(&kernel)?);
    said("changing one endpoint of one Service");
    figures.extend(changes(&mut kernel, &all, stop)?);
    said("changing one endpoint of a Service with many");
    let mut with_table = cluster(SERVICES, ENDPOINTS);
    with_table.services.push(service(SERVICES, MANY));
    with_table.settings.services.maglev_table_size = TABLE;
    figures.extend(table_changes(&mut kernel, &with_table, stop)?);
    drop(kernel);
    figures.extend(rates(rounds, stop, &mut said)?);
    figures.extend(sockets(rounds, stop, &mut said)?);
    figures.extend(drivers(rounds, stop, &mut said)?);
    Ok(figures)
}

fn address(first: [u8; 4], index: u32) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes(first) + index).into()
}

/// A node, and Services.
fn cluster(services: u32, endpoints: u32) -> Cluster {
    let node = Node {
        name: "n1".to_owned(),
        labels: Default::default(),
        addresses: vec![address([10, 240, 0, 4], 0)],
        pod_cidrs: Vec::new(),
    };
    Cluster {
        name: "bench".to_owned(),
        nodes: vec![node],
        services: (0..services).map(|index| service(index, endpoints)).collect(),
        ..Cluster::default()
    }
}

/// A node with nothing in its tables.
fn loaded(cluster: &Cluster) -> Result<Kernel, ServicesError> {
    let empty = Cluster { services: Vec::new(), ..cluster.clone() };
    let plan = planned(&Plan::of(&empty).map_err(userspace::error::Error::from)?)?;
    Ok(Kernel::load(&NodePlan { rows: NodeRows::default(), ..plan }, Options::default())?)
}

fn planned(plan: &Plan) -> Result<NodePlan, ServicesError> {
    Ok(plan.node("n1", &Links::default()).map_err(userspace::error::Error::from)?)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// All Services into a node that has none.
fn from_nothing(
    kernel: &mut Kernel,
    cluster: &Cluster,
    stop: &AtomicBool,
) -> Result<Vec<Figure>, ServicesError> {
    let [mut plans, mut writes, mut all] = [(); 3].map(|()| Vec::new());
    for _ in 0..TIMES {
        check(stop)?;
        kernel.apply(&NodeRows::default())?;
        let begin = Instant::now();
        let rows = planned(&Plan::of(cluster).map_err(userspace::error::Error::from)?)?.rows;
        plans.push(ms(begin));
        let write = Instant::now();
        kernel.apply(&rows)?;
        writes.push(ms(write));
        all.push(ms(begin));
    }
    let what = |part: &str| format!("{SERVICES} Services x {ENDPOINTS} endpoints into an empty node: {part}");
    let figures = [
        Figure::of(&what("planned"), "ms", &mut plans),
        Figure::of(&what("written"), "ms", &mut writes),
        Figure::of(&what("all"), "ms", &mut all).map(|all| all.target("< 300 ms")),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// What the tables of Services take.
fn memory(kernel: &Kernel) -> Result<Vec<Figure>, ServicesError> {
    let memory = kernel.memory().map_err(userspace::error::Error::from)?;
    let of_services = ["frontends", "maglev", "backends", "affinities", "source_ranges"];
    let tables = memory.into_iter().filter(|(table, _)| of_services.contains(table));
    let figure = |(table, bytes): (&str, u64)| {
        Figure::of(&format!("memory of table {table}"), "KiB", &mut [bytes as f64 / 1024.0])
    };
    Ok(tables.filter_map(figure).collect())
}

/// An endpoint goes or comes, of one Service after the other.
fn changes(kernel: &mut Kernel, cluster: &Cluster, stop: &AtomicBool) -> Result<Vec<Figure>, ServicesError> {
    let mut plan = Plan::of(cluster).map_err(userspace::error::Error::from)?;
    kernel.apply(&planned(&plan)?.rows)?;
    let mut services = cluster.services.clone();
    let mut times = Times::default();
    for change in 0..CHANGES {
        check(stop)?;
        // A step that leads through all of them.
        let service = &mut services[(change * 7919 % SERVICES) as usize];
        let backend = &mut service.ports[0].backends[0];
        backend.ready = !backend.ready;
        times.change(&mut plan, kernel, service)?;
    }
    let mut figures = times.figures("one endpoint among them changes", "< 1000 us at p99");
    let mut anew = Vec::new();
    for change in 0..20 {
        check(stop)?;
        let mut changed = Cluster { services: services.clone(), ..cluster.clone() };
        changed.services[change].ports[0].backends.truncate(3);
        let begin = Instant::now();
        let next = plan.after(&changed).map_err(userspace::error::Error::from)?;
        kernel.apply(&planned(&next)?.rows)?;
        anew.push(ms(begin));
        (plan, services) = (next, changed.services);
    }
    figures.extend(Figure::of("the same, with all planned and compared anew", "ms", &mut anew));
    Ok(figures)
}

/// An endpoint goes or comes of the Service with a table.
fn table_changes(
    kernel: &mut Kernel,
    cluster: &Cluster,
    stop: &AtomicBool,
) -> Result<Vec<Figure>, ServicesError> {
    let mut plan = Plan::of(cluster).map_err(userspace::error::Error::from)?;
    let rows = planned(&plan)?.rows;
    let slots: Vec<Slots> = rows.v4.frontends.values().map(|row| row.internal).collect();
    assert!(slots.iter().any(|slots| slots.count == TABLE), "it has a table of that size");
    kernel.apply(&rows)?;
    let Some(mut service) = cluster.services.last().cloned() else { return Ok(Vec::new()) };
    let mut times = Times::default();
    for change in 0..CHANGES / 3 {
        check(stop)?;
        // One after the other goes and comes back: never is more than one away.
        let backend = &mut service.ports[0].backends[(change / 2 * 7 % MANY) as usize];
        backend.ready = !backend.ready;
        times.change(&mut plan, kernel, &service)?;
    }
    let what = format!("one endpoint of {MANY} behind a table of {TABLE} slots changes");
    Ok(times.figures(&what, "< 2000 us at p99"))
}

/// How long changes took, in microseconds.
#[derive(Debug, Default)]
struct Times {
    planned: Vec<f64>,
    written: Vec<f64>,
    all: Vec<f64>,
}

impl Times {
    fn change(
        &mut self,
        plan: &mut Plan,
        kernel: &mut Kernel,
        service: &Service,
    ) -> Result<(), ServicesError> {
        let id = service.id();
        let begin = Instant::now();
        let changes = plan.change("n1", &id, Some(service)).map_err(userspace::error::Error::from)?;
        self.planned.push(ms(begin) * 1e3);
        let write = Instant::now();
        kernel.change(&changes)?;
        self.written.push(ms(write) * 1e3);
        self.all.push(ms(begin) * 1e3);
        Ok(())
    }

    fn figures(mut self, what: &str, target: &'static str) -> Vec<Figure> {
        let figures = [
            Figure::of(&format!("{what}: planned"), "us", &mut self.planned),
            Figure::of(&format!("{what}: written"), "us", &mut self.written),
            Figure::of(&format!("{what}: all"), "us", &mut self.all).map(|all| all.target(target)),
        ];
        figures.into_iter().flatten().collect()
    }
}

/// Connections per second to one Service, alone and among all the others, and how the two compare.
fn rates(
    rounds: Rounds,
    stop: &AtomicBool,
    said: &mut impl FnMut(&str),
) -> Result<Vec<Figure>, ServicesError> {
    let alone = |cluster: &mut Cluster| cluster.name += "-1";
    let among = |cluster: &mut Cluster| {
        cluster.name += "-many";
        // The one that is dialled is the last.
        cluster.services.splice(0..0, (0..SERVICES).map(|index| service(index, ENDPOINTS)));
    };
    let ups = both(alone, among)?;
    let measured = in_rounds(&ups, Run::new(Workload::TcpCrr, Way::Service), rounds, stop, said);
    let [mut one, mut many] = removed(ups, measured)?;
    let mut ratios = ratios(&many, &one);
    let figures = [
        Figure::of("connections to the only Service", "/s", &mut one),
        Figure::of(&format!("connections to one among {SERVICES} more"), "/s", &mut many),
        Figure::of("the latter to the former, in the same round", "", &mut ratios)
            .map(|ratio| ratio.target(">= 0.95")),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// Connections and requests per second to one Service, with sockets that are led to its backend as they connect
/// and with packets that are translated, and how the two compare.
fn sockets(
    rounds: Rounds,
    stop: &AtomicBool,
    said: &mut impl FnMut(&str),
) -> Result<Vec<Figure>, ServicesError> {
    let led = |cluster: &mut Cluster| {
        cluster.name += "-led";
        cluster.settings.services.socket_translation = true;
    };
    let ups = both(led, |cluster| cluster.name += "-not")?;
    let kinds =
        [(Workload::TcpCrr, "connections to a Service"), (Workload::TcpRr, "requests over one connection")];
    let measured = kinds.map(|(workload, _)| Run::new(workload, Way::Service));
    let measured = measured
        .into_iter()
        .map(|run| in_rounds(&ups, run, rounds, stop, said))
        .collect::<Result<Vec<_>, _>>();
    let mut figures = Vec::new();
    for ((_, what), [mut led, mut translated]) in kinds.into_iter().zip(removed(ups, measured)?) {
        let mut ratios = ratios(&led, &translated);
        figures.extend([
            Figure::of(&format!("{what}, sockets led"), "/s", &mut led),
            Figure::of(&format!("{what}, packets translated"), "/s", &mut translated),
            Figure::of("the former to the latter, in the same round", "", &mut ratios),
        ]);
    }
    Ok(figures.into_iter().flatten().collect())
}

/// What passes from outside through a node to a pod on another, there in the driver of its uplink and behind that, and
/// how the two compare.
fn drivers(
    rounds: Rounds,
    stop: &AtomicBool,
    said: &mut impl FnMut(&str),
) -> Result<Vec<Figure>, ServicesError> {
    let native = |cluster: &mut Cluster| {
        cluster.name += "-native";
        cluster.settings.services.acceleration = Acceleration::Native;
        cluster.policies.clear();
    };
    let behind = |cluster: &mut Cluster| {
        cluster.name += "-behind";
        cluster.policies.clear();
    };
    let ups = both(native, behind)?;
    let kinds = [
        (Workload::TcpRr, "requests over one connection to a node port", "/s"),
        (Workload::TcpCrr, "connections to a node port", "/s"),
        (Workload::UdpStream, "datagrams to a node port", "/s"),
        (Workload::TcpStream, "bits over one connection to a node port", "/s"),
    ];
    let measured = kinds.map(|(workload, ..)| Run::new(workload, Way::NodePort));
    let measured = measured
        .into_iter()
        .map(|run| in_rounds(&ups, run, rounds, stop, said))
        .collect::<Result<Vec<_>, _>>();
    let mut figures = Vec::new();
    for ((_, what, unit), [mut native, mut behind]) in kinds.into_iter().zip(removed(ups, measured)?) {
        let mut ratios = ratios(&native, &behind);
        figures.extend([
            Figure::of(&format!("{what}, in the driver"), unit, &mut native),
            Figure::of(&format!("{what}, behind it"), unit, &mut behind),
            Figure::of("the former to the latter, in the same round", "", &mut ratios),
        ]);
    }
    Ok(figures.into_iter().flatten().collect())
}

/// Two clusters side by side: the built-in one, changed in two ways.
fn both(one: impl FnOnce(&mut Cluster), other: impl FnOnce(&mut Cluster)) -> Result<[Up; 2], ServicesError> {
    let name = format!("bench-ebpf-{}", std::process::id());
    let mut first = cluster::of(&name, Sizes::LEAST).map_err(Error::from)?;
    let mut second = first.clone();
    one(&mut first);
    other(&mut second);
    let up = |cluster| Up::new(cluster, Name::Ebpf).map_err(Error::from);
    Ok([up(&first)?, up(&second)?])
}

/// What the two come to per second, the one and the other in turn in every round.
fn in_rounds(
    ups: &[Up; 2],
    run: Run,
    rounds: Rounds,
    stop: &AtomicBool,
    said: &mut impl FnMut(&str),
) -> Result<[Vec<f64>; 2], Error> {
    let mut rates = [Vec::new(), Vec::new()];
    let both: Vec<_> = ups.iter().enumerate().collect();
    for round in 0..rounds.rounds {
        let workload = run.workload;
        said(&format!("{workload}: round {} of {}", round + 1, rounds.rounds));
        for (place, up) in in_turn(&both, round) {
            check(stop)?;
            let mut unused = sample::Unused::default();
            let measured = sample::measure(up, &run, &mut unused, rounds.time);
            let failed = |source| Error::Traffic { dataplane: Name::Ebpf, workload: run.workload, source };
            rates[*place].push(rate(&measured.map_err(failed)?));
        }
    }
    Ok(rates)
}

/// What there is of it per second: round trips, connections, datagrams received, bits.
fn rate(measured: &Measured) -> f64 {
    let figure = |name: &str, unit: f64| measured.figures.get(name).map(|value| value * unit);
    let rates = [figure(TRANSACTIONS, 1.0), figure(RECEIVED, 1e3), figure(THROUGHPUT, 1e9)];
    rates.into_iter().flatten().next().unwrap_or_default()
}

/// What the one comes to against the other, round by round.
fn ratios(one: &[f64], other: &[f64]) -> Vec<f64> {
    one.iter().zip(other).map(|(one, other)| one / other).collect()
}

/// The figures below each other, for people.
#[derive(Debug)]
pub struct Below<'a>(pub &'a [Figure]);

impl fmt::Display for Below<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.0.iter().map(|figure| figure.figure.len()).max().unwrap_or(0);
        writeln!(f, "{:widest$}  {:>10} {:>10} {:>10} {:>10}", "", "median", "min", "p99", "max")?;
        for figure in self.0 {
            let number = |value: f64| match value {
                value if value < 10.0 => format!("{value:.3}"),
                value if value < 1000.0 => format!("{value:.1}"),
                value => format!("{value:.0}"),
            };
            let Figure { figure, unit, median, min, p99, max, target } = figure;
            let p99 = p99.map(number).unwrap_or_default();
            let (median, min, max) = (number(*median), number(*min), number(*max));
            let target = target.map(|target| format!("target {target}")).unwrap_or_default();
            let line =
                format!("{figure:widest$}  {median:>10} {min:>10} {p99:>10} {max:>10} {unit:4}{target}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A line for every figure.
pub fn csv(figures: &[Figure]) -> String {
    let mut text = "figure,unit,median,min,p99,max,target\n".to_owned();
    for figure in figures {
        let Figure { figure, unit, median, min, p99, max, target } = figure;
        let p99 = p99.map(|p99| format!("{p99:.3}")).unwrap_or_default();
        let target = target.unwrap_or_default();
        writeln!(text, "{figure},{unit},{median:.3},{min:.3},{p99},{max:.3},{target}")
            .expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_a_p99_where_there_are_a_hundred() {
        let mut values: Vec<_> = (0..200).rev().map(f64::from).collect();
        let figure = Figure::of("x", "us", &mut values).expect("there are some");
        assert_eq!((figure.min, figure.median, figure.p99, figure.max), (0.0, 100.0, Some(198.0), 199.0));
        let figure = Figure::of("x", "us", &mut [3.0, 1.0]).expect("there are some").target("< 4 us");
        assert_eq!((figure.median, figure.p99), (3.0, None));
        let text = Below(std::slice::from_ref(&figure)).to_string();
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("us  target < 4 us")), "{text}");
        assert_eq!(csv(&[figure]).lines().nth(1), Some("x,us,3.000,1.000,,3.000,< 4 us"));
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn a_node_port_is_dialled_in_the_driver_and_behind_it() {
        let rounds = Rounds { rounds: 3, time: Duration::from_millis(200) };
        let figures = drivers(rounds, &AtomicBool::new(false), &mut |_| {});
        let figures = figures.unwrap_or_else(|error| panic!("{error}"));
        println!("{}", Below(&figures));
        assert_eq!(figures.len(), 12);
        assert!(figures.iter().all(|figure| figure.min > 0.0), "{figures:?}");
    }

    #[test]
    fn no_two_services_share_an_address() {
        let cluster = cluster(SERVICES, ENDPOINTS);
        let mut addresses: Vec<_> = cluster.services.iter().map(Service::address).collect();
        let ends = cluster.services.iter().flat_map(|service| &service.ports[0].backends);
        addresses.extend(ends.map(|backend| backend.address));
        addresses.extend(service(SERVICES, MANY).ports[0].backends.iter().map(|backend| backend.address));
        let many = addresses.len();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), many);
        assert_eq!(many as u32, SERVICES * (1 + ENDPOINTS) + MANY);
    }
}
