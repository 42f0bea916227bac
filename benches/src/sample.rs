//! One measurement of a cluster that is up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV4};
use std::ops::Range;
use std::time::Duration;

use testbed::dataplane::Up;
use testbed::traffic::{self, End, Ends, Limits, Requests, RoundTrips, Ticks, Transport};
use userspace::model::{Cluster, Service};

use crate::cluster::{CLIENT, NEIGHBOUR, NODE, PORT, SERVER};
use crate::figure::{LATENCY_P50, LATENCY_P99, RECEIVED, THROUGHPUT, TRANSACTIONS};
use crate::matrix::{Run, Way, Workload};
use crate::noise::{ELSEWHERE, STEAL};
use crate::{machine, memory};

/// The CPU of all that a packet needs, if it is one.
const CPU: usize = 0;

/// First packets of a measurement, each from a port of its own.
const FIRST_PACKETS: u16 = 350;

/// Ports that first packets may come from: below those that a kernel gives to sockets that want any. There are enough
/// for every measurement of a suite, and for all that are done again.
const FIRST_PORTS: Range<u16> = 1024..32_768;

/// The parts of round trips that a distribution is told at, beside the lowest and the highest: closer where it matters.
const PARTS: [f64; 44] = [
    0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8,
    0.825, 0.85, 0.875, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995,
    0.9975, 0.999, 0.9992, 0.9995, 0.9997, 0.9999, 0.99992, 0.99995, 0.99997, 0.99999,
];

/// Why nothing came out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Traffic did not pass.
    #[error(transparent)]
    Traffic(#[from] traffic::Error),
    /// Every port has sent to the server before, by whichever way: no packet would be the first of its flow.
    #[error(
        "no port is left that a first packet could come from: {all} were used on this cluster; measure fewer rounds",
        all = FIRST_PORTS.len()
    )]
    Ports,
}

/// The ports of a cluster's client that nothing was sent from yet.
#[derive(Clone, Debug)]
pub struct Unused(Range<u16>);

impl Default for Unused {
    fn default() -> Self {
        Self(FIRST_PORTS)
    }
}

impl Unused {
    /// Those of the next measurement. Flows by one way are known on the other's nodes, so all ways share them.
    fn take(&mut self) -> Result<Range<u16>, Error> {
        if self.0.len() < usize::from(FIRST_PACKETS) {
            return Err(Error::Ports);
        }
        let first = self.0.start;
        self.0.start += FIRST_PACKETS;
        Ok(first..self.0.start)
    }
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// By name: see [`crate::figure`].
    pub figures: BTreeMap<String, f64>,
    /// As in [`crate::results::Sample`].
    pub latencies_us: Vec<(f64, f64)>,
}

impl Measured {
    pub(crate) fn of(figures: &[(&str, f64)]) -> Self {
        let figures = figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Self { figures, latencies_us: Vec::new() }
    }

    /// Adds what the CPUs did: for each of `count`, in units of which a second has `units`. What keeps to one CPU is
    /// charged with that one's time alone.
    fn cpu(mut self, run: &Run, (name, ticks): (&str, Ticks), (count, units): (f64, f64)) -> Self {
        let busy_s = if run.spreads() { ticks.busy_s() } else { ticks.first_busy_s() };
        if count > 0.0 {
            self.figures.insert(name.to_owned(), busy_s * units / count);
        }
        self.figures.extend(disturbed(ticks, run.spreads()));
        self
    }
}

/// What somebody else did meanwhile: where all of a run keeps to one CPU, whatever the others do is somebody else's.
pub(crate) fn disturbed(ticks: Ticks, spreads: bool) -> Vec<(String, f64)> {
    if spreads {
        return vec![(STEAL.to_owned(), ticks.steal_percent())];
    }
    let mut figures = vec![(STEAL.to_owned(), ticks.steal_percent_of_first())];
    if ticks.elsewhere.1 > 0 {
        figures.push((ELSEWHERE.to_owned(), ticks.elsewhere_percent()));
    }
    figures
}

/// Sends a run's traffic for a time, after a tenth of it to warm up. `unused` belongs to the cluster.
///
/// # Errors
/// [`Error`].
pub fn measure(up: &Up, run: &Run, unused: &mut Unused, time: Duration) -> Result<Measured, Error> {
    let (ends, limits, size) = (ends(up, run), Limits::time(time), run.size_bytes);
    let requests = Requests { size, connections: run.connections, rate_per_s: run.rate_per_s };
    Ok(match run.workload {
        Workload::TcpRr => {
            exchanged(run, &traffic::request_response(&ends, Transport::Tcp, requests, limits)?)
        }
        Workload::UdpRr => {
            exchanged(run, &traffic::request_response(&ends, Transport::Udp, requests, limits)?)
        }
        Workload::TcpCrr => exchanged(run, &traffic::connect_request_close(&ends, size, limits)?),
        Workload::FirstPacket => {
            let limits = Limits { warm_up: Duration::from_millis(2), ..limits };
            exchanged(run, &traffic::first_packets(&ends, size, unused.take()?, limits)?)
        }
        Workload::TcpStream => {
            let streamed = traffic::stream(&ends, run.connections, limits)?;
            let gbit = streamed.bytes as f64 * 8.0 / 1e9;
            let figures =
                [(THROUGHPUT, streamed.rate_bits() / 1e9), ("retransmits", streamed.retransmits as f64)];
            Measured::of(&figures).cpu(run, ("cpu_ms_per_gbit", streamed.ticks), (gbit, 1e3))
        }
        Workload::UdpStream => {
            let packets = traffic::packet_rate(&ends, size, limits)?;
            let sent = packets.sent as f64 / packets.elapsed.as_secs_f64();
            let figures = [(RECEIVED, packets.rate() / 1e3), ("sent_kpps", sent / 1e3)];
            let received = packets.received as f64;
            Measured::of(&figures).cpu(run, ("cpu_ns_per_packet", packets.ticks), (received, 1e9))
        }
        Workload::Forward => {
            let figures = memory::forwarded(up.name(), up, time)?;
            Measured { figures, ..Measured::default() }
        }
        Workload::Program | Workload::Update | Workload::Memory | Workload::Boot => {
            unreachable!("whoever measures sends only traffic here")
        }
    })
}

/// Percentiles, the distribution, the rate, and what it cost.
fn exchanged(run: &Run, trips: &RoundTrips) -> Measured {
    const PERCENTILES: [(&str, f64); 5] = [
        (LATENCY_P50, 0.5),
        ("latency_us_p90", 0.9),
        (LATENCY_P99, 0.99),
        ("latency_us_p999", 0.999),
        ("latency_us_p9999", 0.9999),
    ];
    let told = PERCENTILES.into_iter().filter(|(_, part)| is_told(*part, trips.histogram.len()));
    let told: Vec<_> = told.map(|(name, part)| (name, trips.quantile_us(part))).collect();
    let mut measured = Measured::of(&told);
    measured.latencies_us = distribution(trips);
    let figures = &mut measured.figures;
    if matches!(run.workload, Workload::UdpRr | Workload::FirstPacket) {
        figures.insert("lost".to_owned(), trips.lost as f64);
    }
    // Between first packets sockets are made, which is no part of them.
    if run.workload != Workload::FirstPacket {
        figures.insert(TRANSACTIONS.to_owned(), trips.rate());
    }
    // Who waits for a request to be due keeps the CPU busy.
    let counts = run.workload != Workload::FirstPacket && run.rate_per_s == 0;
    let transactions = if counts { trips.answered as f64 } else { 0.0 };
    measured.cpu(run, ("cpu_us_per_transaction", trips.ticks), (transactions, 1e6))
}

/// Whether so many round trips have one at least beyond this part of them: the longest is no percentile.
fn is_told(part: f64, count: u64) -> bool {
    // 0.9999 falls short of it by less than this.
    (1.0 - part) * count as f64 >= 1.0 - 1e-9
}

/// From the shortest to the longest, four digits exact; parts that so few round trips do not tell apart are left out.
fn distribution(trips: &RoundTrips) -> Vec<(f64, f64)> {
    let rounded = |value: f64| (value * 1e3).round() / 1e3;
    let count = trips.histogram.len();
    let told = PARTS.into_iter().filter(|part| is_told(*part, count));
    let ends = [(0.0, trips.histogram.min() as f64 / 1e3), (1.0, trips.histogram.max() as f64 / 1e3)];
    let middle = told.map(|part| (part, trips.quantile_us(part)));
    let all = [ends[0]].into_iter().chain(middle).chain([ends[1]]);
    all.map(|(part, value)| (part, rounded(value))).collect()
}

/// Opens flows between the client and the server of the other node, or keeps them alive.
///
/// # Errors
/// As [`traffic::open_flows`].
pub fn open_flows(up: &Up, count: usize) -> Result<usize, traffic::Error> {
    traffic::open_flows(&ends(up, &Run::new(Workload::UdpRr, Way::OtherNode)), count)
}

/// Who sends to whom, and from which CPU.
pub(crate) fn ends(up: &Up, run: &Run) -> Ends {
    let topology = up.topology();
    let cluster = topology.cluster();
    let pod = |id: &str| topology.pod(cluster.pod(id).expect("the built-in cluster has it"));
    let from = if run.way == Way::NodePort { topology.world() } else { pod(CLIENT) };
    let to = match run.way {
        Way::World => topology.world(),
        Way::SameNode => pod(NEIGHBOUR),
        Way::OtherNode | Way::Service | Way::NodePort | Way::Memory => pod(SERVER),
    };
    let other = if machine::cpus() > 1 { CPU + 1 } else { CPU };
    Ends {
        client: End { netns: from, cpu: Some(CPU) },
        server: End { netns: to, cpu: Some(if run.spreads() { other } else { CPU }) },
        dialled: dialled(cluster, run.way),
        listening: PORT,
    }
}

/// What leads to the server by this way.
pub(crate) fn dialled(cluster: &Cluster, way: Way) -> SocketAddrV4 {
    let pod = |id: &str| cluster.pod(id).expect("the built-in cluster has it").address();
    let (address, port) = match way {
        Way::SameNode => (pod(NEIGHBOUR), PORT),
        Way::OtherNode | Way::Memory => (pod(SERVER), PORT),
        Way::Service => (service(cluster).address(), service(cluster).ports[0].port),
        Way::NodePort => {
            let node = cluster.node(NODE).expect("the client's node is in the cluster");
            let port = service(cluster).ports[0].node_port;
            (node.address(), port.expect("the built-in Service has one"))
        }
        Way::World => (cluster.externals.first().expect("the built-in cluster has one").address, PORT),
    };
    let IpAddr::V4(address) = address else { unreachable!("the built-in cluster is IPv4") };
    SocketAddrV4::new(address, port)
}

/// The one that is dialled.
fn service(cluster: &Cluster) -> &Service {
    cluster.services.last().expect("who goes by a Service has one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Suite;
    use testbed::dataplane::Name;

    #[test]
    fn what_keeps_to_one_cpu_is_not_charged_with_the_work_of_others_and_says_how_much_there_was() {
        let ticks = Ticks { busy: 90, idle: 105, stolen: 5, elsewhere: (10, 100), stolen_elsewhere: 5 };
        let measured = |connections| {
            let run = Run { connections, ..Run::new(Workload::TcpStream, Way::OtherNode) };
            Measured::default().cpu(&run, ("cpu", ticks), (1.0, 1.0)).figures
        };
        let (one, spread) = (measured(1), measured(8));
        assert_eq!((one["cpu"], spread["cpu"]), (ticks.first_busy_s(), ticks.busy_s()));
        assert_eq!((one[ELSEWHERE], spread.get(ELSEWHERE)), (10.0, None));
        assert_eq!((one[STEAL], spread[STEAL]), (0.0, 2.5));
    }

    #[test]
    fn no_port_opens_a_flow_twice_and_there_are_enough_for_every_suite() {
        let mut unused = Unused::default();
        let taken: Vec<_> = std::iter::from_fn(|| unused.take().ok()).collect();
        assert!(taken.windows(2).all(|pair| pair[0].end == pair[1].start), "{taken:?}");
        for suite in [Suite::standard(), Suite::scale()] {
            let most = suite.blocks.iter().flat_map(|block| {
                let first = block.iter().filter(|run| run.workload == Workload::FirstPacket);
                let sizes = first.clone().map(|run| run.sizes);
                let rounds = suite.rounds;
                sizes.map(move |sizes| {
                    let alike = first.clone().filter(|run| run.sizes == sizes);
                    alike.map(|run| run.rounds(Name::Ebpf.into(), rounds)).sum::<usize>()
                })
            });
            let most = most.max().unwrap_or_default() * (crate::measure::REPEATS + 1);
            assert!(0 < most && most <= taken.len(), "{}: {most} of {}", suite.name, taken.len());
        }
        assert!(unused.take().expect_err("all are used").to_string().contains("31744 were used"));
    }

    #[test]
    fn a_distribution_ascends_and_ends_where_so_few_tell_nothing_more() {
        let histogram = (1..=1000_u64).fold(
            hdrhistogram::Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).expect("sound bounds"),
            |mut all, value| {
                all.saturating_record(value * 1000);
                all
            },
        );
        let trips = RoundTrips {
            histogram,
            answered: 1000,
            lost: 3,
            elapsed: Duration::from_secs(1),
            ticks: Ticks::default(),
        };
        let told = distribution(&trips);
        assert!(told.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{told:?}");
        assert_eq!(told.iter().map(|it| it.0).find(|part| *part > 0.9991), Some(1.0));
        let measured = exchanged(&Run::new(Workload::UdpRr, Way::OtherNode), &trips);
        assert_eq!((measured.figures["lost"], measured.figures["transactions_per_s"]), (3.0, 1000.0));
        let has = |name: &str| measured.figures.contains_key(name);
        assert!(has("latency_us_p999") && !has("latency_us_p9999"), "1000 have none beyond 99.99 %");
        let p99 = measured.figures["latency_us_p99"];
        assert!((990.0..992.0).contains(&p99), "{p99}");
    }
}
