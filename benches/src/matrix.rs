//! What is compared: dataplanes, workloads, ways, sizes. Data, and nothing that runs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use testbed::dataplane::Name;

use crate::results::Point;

/// What is asked of a dataplane; a kind of traffic has netperf's name where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Workload {
    /// A request and its answer over one TCP connection.
    TcpRr,
    /// The same in UDP datagrams.
    UdpRr,
    /// A TCP connection for every request.
    TcpCrr,
    /// TCP connections, filled.
    TcpStream,
    /// UDP datagrams, as many as go.
    UdpStream,
}

impl Workload {
    /// Every kind, in the order of reports.
    pub const ALL: [Self; 5] = [Self::TcpRr, Self::UdpRr, Self::TcpCrr, Self::TcpStream, Self::UdpStream];

    /// What is measured, in a sentence. Whether both ends share a CPU is part of it: across CPUs a round
    /// trip is mostly the time to wake one up, so latencies are taken on one.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::TcpRr => "request and answer over one TCP connection, both ends on CPU 0",
            Self::UdpRr => "request and answer in UDP datagrams, both ends on CPU 0",
            Self::TcpCrr => "connect, request, answer, close; both ends on CPU 0",
            Self::TcpStream => "one TCP connection, filled; the client on CPU 0",
            Self::UdpStream => "UDP datagrams, as many as go; the client on CPU 0",
        }
    }

    /// The figures it gives, the telling one first.
    pub const fn figures(self) -> &'static [Figure] {
        match self {
            Self::TcpRr | Self::TcpCrr => &[LATENCY_P50, LATENCY_P99, TRANSACTIONS],
            Self::UdpRr => &[LATENCY_P50, LATENCY_P99, TRANSACTIONS, LOST],
            Self::TcpStream => &[THROUGHPUT, RETRANSMITS],
            Self::UdpStream => &[PACKETS, PACKETS_SENT],
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TcpRr => "TCP_RR",
            Self::UdpRr => "UDP_RR",
            Self::TcpCrr => "TCP_CRR",
            Self::TcpStream => "TCP_STREAM",
            Self::UdpStream => "UDP_STREAM",
        })
    }
}

impl FromStr for Workload {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|workload| workload.to_string().eq_ignore_ascii_case(text)).ok_or(())
    }
}

/// The way that traffic takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// From a pod to a pod of another node.
    OtherNode,
}

impl Way {
    /// Every way, in the order of reports.
    pub const ALL: [Self; 1] = [Self::OtherNode];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OtherNode => "other-node",
        })
    }
}

/// A number that a workload gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Its name in results, the unit in it.
    pub name: &'static str,
    /// The head of its column.
    pub head: &'static str,
    /// It is compared with `routed`.
    pub compared: bool,
    /// More of it is better.
    pub more_is_better: bool,
}

const fn figure(name: &'static str, head: &'static str) -> Figure {
    Figure { name, head, compared: false, more_is_better: false }
}

const LATENCY_P50: Figure = Figure { compared: true, ..figure("latency_us_p50", "P50 us") };
const LATENCY_P99: Figure = Figure { compared: true, ..figure("latency_us_p99", "P99 us") };
const TRANSACTIONS: Figure = Figure { more_is_better: true, ..figure("transactions_per_s", "PER SECOND") };
const LOST: Figure = figure("lost", "LOST");
const THROUGHPUT: Figure =
    Figure { compared: true, more_is_better: true, ..figure("throughput_gbit_per_s", "GBIT/S") };
const RETRANSMITS: Figure = figure("retransmits", "RETRANSMITS");
const PACKETS: Figure = Figure { compared: true, more_is_better: true, ..figure("received_kpps", "KPPS") };
const PACKETS_SENT: Figure = Figure { more_is_better: true, ..figure("sent_kpps", "KPPS SENT") };

/// What a cluster is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sizes {
    /// Services; the one that is dialled is the last.
    pub services: usize,
    /// Policies that select the server or the client; those that let one to the other are the last.
    pub policies: usize,
    /// Flows between the two that are open beside those that are measured, with these counted.
    pub flows: usize,
}

impl Sizes {
    /// One of each: every function of a dataplane has something to do, and nothing to search.
    pub const LEAST: Self = Self { services: 1, policies: 1, flows: 1 };
}

/// A workload with all that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The kind.
    pub workload: Workload,
    /// Which way.
    pub way: Way,
    /// Bytes of a request, an answer or a datagram; what a stream is filled with has none.
    pub size_bytes: usize,
    /// Side by side.
    pub connections: usize,
    /// See [`Point::rate_per_s`].
    pub rate_per_s: u64,
    /// Of the cluster that it is measured on.
    pub sizes: Sizes,
}

impl Run {
    /// One connection to a pod of another node, in the smallest cluster.
    pub const fn new(workload: Workload, size_bytes: usize) -> Self {
        Self { workload, way: Way::OtherNode, size_bytes, connections: 1, rate_per_s: 0, sizes: Sizes::LEAST }
    }

    /// As results name it.
    pub fn point(self) -> Point {
        Point {
            workload: self.workload.to_string(),
            way: self.way.to_string(),
            size_bytes: self.size_bytes,
            connections: self.connections,
            services: self.sizes.services,
            policies: self.sizes.policies,
            flows: self.sizes.flows,
            rate_per_s: self.rate_per_s,
        }
    }
}

/// A comparison to be made.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// The variants.
    pub dataplanes: Vec<Name>,
    /// What each of them goes through.
    pub runs: Vec<Run>,
    /// How often.
    pub rounds: usize,
    /// How long each time.
    pub time: Duration,
    /// What chance in it follows from.
    pub seed: u64,
}

/// Why `--only` selects nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A word that is neither.
    #[error("unknown dataplane or workload {word:?}: expected some of {}", words())]
    Word {
        /// As it was given.
        word: String,
    },
    /// Words that exist, but leave nothing over.
    #[error("nothing is left to measure with --only {only}: suite {suite} has none of it")]
    Nothing {
        /// As it was given.
        only: String,
        /// Its name.
        suite: &'static str,
    },
}

fn words() -> String {
    let names = Name::ALL.iter().map(Name::to_string);
    names.chain(Workload::ALL.iter().map(Workload::to_string)).collect::<Vec<_>>().join(", ")
}

impl Suite {
    /// The first look: less than 25 seconds, the cluster's building included.
    pub fn quick() -> Self {
        Self {
            name: "quick",
            dataplanes: vec![Name::Ebpf, Name::Chains, Name::Routed, Name::Wire],
            runs: vec![Run::new(Workload::TcpRr, 1), Run::new(Workload::TcpStream, 0)],
            rounds: 5,
            time: Duration::from_millis(300),
            seed: 1,
        }
    }

    /// The whole comparison: minutes.
    pub fn standard() -> Self {
        let runs = [
            (Workload::TcpRr, 1),
            (Workload::TcpRr, 1024),
            (Workload::UdpRr, 1),
            (Workload::TcpCrr, 1),
            (Workload::TcpStream, 0),
            (Workload::UdpStream, 64),
            (Workload::UdpStream, 1400),
        ];
        Self {
            name: "standard",
            dataplanes: Name::ALL.to_vec(),
            runs: runs.map(|(workload, size)| Run::new(workload, size)).to_vec(),
            rounds: 7,
            time: Duration::from_secs(1),
            seed: 1,
        }
    }

    /// What is left when only these words are wanted, parted by commas: names of dataplanes and workloads.
    /// Where none of a sort is named, all of it stays.
    ///
    /// # Errors
    /// [`Error`].
    pub fn only(mut self, only: &str) -> Result<Self, Error> {
        let (mut dataplanes, mut workloads) = (Vec::new(), Vec::new());
        for word in only.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match (word.parse::<Name>(), word.parse::<Workload>()) {
                (Ok(name), _) => dataplanes.push(name),
                (_, Ok(workload)) => workloads.push(workload),
                _ => return Err(Error::Word { word: word.to_owned() }),
            }
        }
        self.dataplanes.retain(|name| dataplanes.is_empty() || dataplanes.contains(name));
        self.runs.retain(|run| workloads.is_empty() || workloads.contains(&run.workload));
        if self.dataplanes.is_empty() || self.runs.is_empty() {
            return Err(Error::Nothing { only: only.to_owned(), suite: self.name });
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_fits_into_its_time_even_with_warm_up_and_building() {
        let Suite { dataplanes, runs, rounds, time, .. } = Suite::quick();
        let measured = time.mul_f64(1.1) * (dataplanes.len() * runs.len() * rounds) as u32;
        assert!(measured < Duration::from_secs(18), "{measured:?}");
    }

    #[test]
    fn only_takes_dataplanes_and_workloads_in_one_list() {
        let suite = Suite::standard().only("routed,wire,udp_rr").expect("all exist");
        assert_eq!(suite.dataplanes, [Name::Routed, Name::Wire]);
        assert_eq!(suite.runs, [Run::new(Workload::UdpRr, 1)]);
    }

    #[test]
    fn only_names_the_word_it_does_not_know() {
        let error = Suite::quick().only("routed,udprr").expect_err("there is no udprr");
        assert!(error.to_string().contains("\"udprr\"") && error.to_string().contains("UDP_RR"), "{error}");
        assert!(matches!(Suite::quick().only("udp_rr"), Err(Error::Nothing { .. })));
    }

    #[test]
    fn a_point_says_all_that_belongs_to_a_run() {
        let point = Run::new(Workload::TcpRr, 1).point();
        assert_eq!(point, crate::results::tests::point());
    }
}
