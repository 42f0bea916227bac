//! What is compared: variants, workloads, ways, sizes. Data, and nothing that runs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use testbed::dataplane::{Io, Name};

use crate::results::{Fabric, Point};

/// A dataplane, and how one in this process gets at its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// Which.
    pub dataplane: Name,
    /// Of no effect in the kernel.
    pub io: Io,
}

impl Variant {
    /// Every variant: all dataplanes as they are, the bare loop, and those of userspace with pnet's sockets.
    pub fn all() -> Vec<Self> {
        let plain = [Name::Emulator, Name::Chains, Name::Bare];
        let plain = plain.map(|dataplane| Self { dataplane, io: Io::Plain });
        Name::ALL.into_iter().chain([Name::Bare]).map(Self::from).chain(plain).collect()
    }

    /// What must hold of traffic is about these two: our own, and what it is divided by.
    pub fn must_hold(self) -> bool {
        matches!(self.dataplane, Name::Ebpf | Name::Routed)
    }

    /// Why it cannot be asked this; none if it can.
    pub fn lacks(self, run: &Run) -> Option<&'static str> {
        use Workload::{Boot, Forward, Memory, Program, Update};
        let in_process = matches!(self.dataplane, Name::Emulator | Name::Chains | Name::Bare);
        match (self.dataplane, run.workload) {
            (_, Boot) => None,
            (_, Forward) if !in_process => Some("its input and output are the kernel's"),
            (Name::Bare, Forward) if run.way == Way::Memory => Some("it has no path"),
            (Name::Routed | Name::Wire | Name::Bare, Program | Update | Memory) => Some("it has no rules"),
            (_, Forward | Program | Update | Memory)
                if run.way == Way::Memory && self.io != Io::default() =>
            {
                Some("no frames are read or sent, so it is the same as without")
            }
            (Name::Routed, _) if matches!(run.way, Way::Service | Way::NodePort) => {
                Some("it knows no Services")
            }
            (Name::Wire, _) if run.way != Way::OtherNode => Some("it is one link between two pods"),
            (Name::Bare, _) if !matches!(run.way, Way::SameNode | Way::OtherNode | Way::Memory) => {
                Some("it knows pods and nodes only")
            }
            _ => None,
        }
    }
}

impl From<Name> for Variant {
    fn from(dataplane: Name) -> Self {
        Self { dataplane, io: Io::default() }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.io == Io::default() {
            return self.dataplane.fmt(f);
        }
        f.pad(&format!("{}/{}", self.dataplane, self.io))
    }
}

impl FromStr for Variant {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::all().into_iter().find(|variant| variant.to_string() == text).ok_or(())
    }
}

/// What is asked of a variant; a kind of traffic has netperf's name where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Workload {
    /// A request and its answer over a TCP connection.
    TcpRr,
    /// The same in UDP datagrams.
    UdpRr,
    /// A TCP connection for every request.
    TcpCrr,
    /// TCP connections, filled.
    TcpStream,
    /// UDP datagrams, as many as go.
    UdpStream,
    /// A datagram from a new port, and its answer.
    FirstPacket,
    /// Frames of UDP that no socket makes or reads, as many as go.
    Forward,
    /// Everything, into an empty node.
    Program,
    /// One endpoint of one Service.
    Update,
    /// What rules or tables take.
    Memory,
    /// The cluster, until packets pass.
    Boot,
}

impl Workload {
    /// Every kind, in the order of reports.
    pub const ALL: [Self; 11] = [
        Self::TcpRr,
        Self::UdpRr,
        Self::TcpCrr,
        Self::TcpStream,
        Self::UdpStream,
        Self::FirstPacket,
        Self::Forward,
        Self::Program,
        Self::Update,
        Self::Memory,
        Self::Boot,
    ];
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TcpRr => "TCP_RR",
            Self::UdpRr => "UDP_RR",
            Self::TcpCrr => "TCP_CRR",
            Self::TcpStream => "TCP_STREAM",
            Self::UdpStream => "UDP_STREAM",
            Self::FirstPacket => "FIRST_PACKET",
            Self::Forward => "FORWARD",
            Self::Program => "PROGRAM",
            Self::Update => "UPDATE",
            Self::Memory => "MEMORY",
            Self::Boot => "BOOT",
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
    /// From a pod to another of its node.
    SameNode,
    /// To a pod of another node.
    OtherNode,
    /// The same, by the address of a Service.
    Service,
    /// From a host outside to a port of a node, and on to a pod of another node.
    NodePort,
    /// From a pod to a host outside.
    World,
    /// None: no link is passed.
    Memory,
}

impl Way {
    /// Every way, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::SameNode, Self::OtherNode, Self::Service, Self::NodePort, Self::World, Self::Memory];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SameNode => "same-node",
            Self::OtherNode => "other-node",
            Self::Service => "service",
            Self::NodePort => "node-port",
            Self::World => "world",
            Self::Memory => "memory",
        })
    }
}

impl FromStr for Way {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|way| way.to_string() == text).ok_or(())
    }
}

/// What a cluster is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sizes {
    /// Services; the one that is dialled is the last.
    pub services: usize,
    /// Policies that select the servers; the one that lets the client in is the last.
    pub policies: usize,
    /// Flows between client and server, that which is measured and those that are open beside it.
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
    /// How often it is measured beside the others.
    pub often: Often,
}

/// How often a run is measured beside the others of its suite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Often {
    /// Less often.
    Less,
    /// As the suite says.
    #[default]
    AsSaid,
    /// By those more often that [`Variant::must_hold`]: a few rounds say within a tenth how two dataplanes stand, and what
    /// must hold is nearer to what does than that.
    More,
}

/// Requests per second that are offered where a rate is: most variants can answer so many on one CPU, and a variant
/// that cannot shows it.
const OFFERED: u64 = 2000;

impl Run {
    /// One connection in the smallest cluster, with a request of one byte where there is one.
    pub const fn new(workload: Workload, way: Way) -> Self {
        let size_bytes = match workload {
            Workload::TcpRr | Workload::UdpRr | Workload::TcpCrr | Workload::FirstPacket => 1,
            Workload::UdpStream | Workload::Forward => 64,
            Workload::TcpStream => 0,
            Workload::Program | Workload::Update | Workload::Memory | Workload::Boot => 0,
        };
        Self {
            workload,
            way,
            size_bytes,
            connections: 1,
            rate_per_s: 0,
            sizes: Sizes::LEAST,
            often: Often::AsSaid,
        }
    }

    const fn less(self) -> Self {
        Self { often: Often::Less, ..self }
    }

    const fn more(self) -> Self {
        Self { often: Often::More, ..self }
    }

    const fn connections(self, connections: usize) -> Self {
        Self { connections, ..self }
    }

    const fn size_bytes(self, size_bytes: usize) -> Self {
        Self { size_bytes, ..self }
    }

    const fn sizes(self, sizes: Sizes) -> Self {
        Self { sizes, ..self }
    }

    /// It passes links of a cluster that is up.
    pub const fn is_traffic(&self) -> bool {
        !matches!(self.way, Way::Memory)
    }

    /// It is done to the variant itself, and not sent anywhere.
    pub const fn goes_no_way(&self) -> bool {
        matches!(self.workload, Workload::Program | Workload::Update | Workload::Memory | Workload::Boot)
    }

    /// Client and server have a CPU each, and whatever carries packets either. Otherwise all of them share one:
    /// across CPUs a round trip is mostly the time to wake the other one up, and what a packet costs is hidden by it.
    pub const fn spreads(&self) -> bool {
        matches!(self.workload, Workload::TcpStream) && self.connections > 1
    }

    /// How often a variant goes through it, where the suite says `rounds`.
    pub fn rounds(&self, variant: Variant, rounds: usize) -> usize {
        const OF_RULES: usize = 3;
        const OF_LESS: usize = 5;
        const TIMES_MORE: usize = 3;
        match self.often {
            _ if !self.is_traffic() => rounds.min(OF_RULES),
            Often::Less => rounds.min(OF_LESS),
            Often::More if variant.must_hold() => rounds * TIMES_MORE,
            Often::More | Often::AsSaid => rounds,
        }
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
    pub variants: Vec<Variant>,
    /// What each of them goes through. The clusters of a block are all up at the same time, and every round goes
    /// through all of its runs, so that what is to be compared is measured in turn; those behind the suite's own go
    /// through what is measured more often.
    pub blocks: Vec<Vec<Run>>,
    /// How often.
    pub rounds: usize,
    /// How long each time.
    pub time: Duration,
    /// What chance in it follows from: the order in which variants take turns.
    pub seed: u64,
    /// What joins the nodes.
    pub fabric: Fabric,
    /// What packets cost in the kernel's test run, and what the verifier says of the programs, are part of it.
    pub programs: bool,
}

/// Why `--only` selects nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A word that is nothing of it.
    #[error("unknown dataplane, workload or way {word:?}: expected some of {}", words())]
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
    let variants = Variant::all().into_iter().map(|it| it.to_string());
    let workloads = Workload::ALL.iter().map(ToString::to_string);
    let ways = Way::ALL.iter().filter(|way| **way != Way::Memory).map(ToString::to_string);
    variants.chain(workloads).chain(ways).collect::<Vec<_>>().join(", ")
}

/// Rules at these sizes: all of them, one of them, and what they take.
fn rules(sizes: Sizes) -> [Run; 3] {
    [Workload::Program, Workload::Update, Workload::Memory]
        .map(|workload| Run::new(workload, Way::Memory).sizes(sizes))
}

impl Suite {
    /// The first look: less than a minute, the clusters' building included.
    pub fn quick() -> Self {
        use {Way::*, Workload::*};
        let runs = vec![
            Run::new(TcpRr, OtherNode),
            Run::new(TcpCrr, OtherNode),
            Run::new(TcpCrr, Service),
            Run::new(TcpStream, OtherNode),
            Run::new(UdpStream, OtherNode),
        ];
        Self {
            name: "quick",
            variants: Name::ALL.into_iter().map(Variant::from).collect(),
            blocks: vec![runs],
            rounds: 5,
            time: Duration::from_millis(120),
            seed: 1,
            fabric: Fabric::Switch,
            programs: false,
        }
    }

    /// The whole comparison: less than 25 minutes.
    pub fn standard() -> Self {
        use {Way::*, Workload::*};
        let among = |services| Sizes { services, ..Sizes::LEAST };
        let mut runs = vec![
            Run::new(TcpRr, SameNode),
            Run::new(TcpRr, OtherNode).more(),
            Run::new(TcpRr, OtherNode).connections(32),
            Run { rate_per_s: OFFERED, ..Run::new(TcpRr, OtherNode) },
            Run::new(TcpRr, Service),
            Run::new(TcpRr, NodePort),
            Run::new(TcpRr, World),
            Run::new(UdpRr, OtherNode),
            Run::new(UdpRr, OtherNode).connections(32),
            Run::new(TcpCrr, OtherNode).more(),
            Run::new(TcpCrr, Service).more(),
            Run::new(TcpCrr, Service).sizes(among(1000)),
            Run::new(TcpCrr, Service).sizes(among(5000)).more(),
            Run::new(TcpCrr, NodePort),
            Run::new(TcpStream, OtherNode).more(),
            Run::new(TcpStream, OtherNode).connections(8),
            Run::new(UdpStream, OtherNode).more(),
            Run::new(UdpStream, OtherNode).size_bytes(1400),
            Run::new(FirstPacket, OtherNode),
            Run::new(FirstPacket, Service),
        ];
        runs.extend(Self::other_ways().map(Run::less));
        runs.extend(rules(Sizes::LEAST).into_iter().chain(rules(among(5000))));
        // Its frames are for the Service, which only the bare loop does not know.
        runs.extend([Run::new(Forward, OtherNode), Run::new(Forward, OtherNode).sizes(among(1000))]);
        runs.extend([Run::new(Forward, Way::Memory), Run::new(Boot, Way::Memory)]);
        Self {
            name: "standard",
            variants: Variant::all(),
            blocks: vec![runs],
            rounds: 7,
            time: Duration::from_millis(350),
            seed: 1,
            fabric: Fabric::Switch,
            programs: true,
        }
    }

    /// What [`Suite::standard`] has of each kind of traffic beside the ways that it is judged by, so that every kind goes
    /// every way.
    fn other_ways() -> impl Iterator<Item = Run> {
        use {Way::*, Workload::*};
        let ways: [(Workload, &[Way]); 5] = [
            (UdpRr, &[SameNode, Service, NodePort, World]),
            (TcpCrr, &[SameNode, World]),
            (TcpStream, &[SameNode, Service, NodePort, World]),
            (UdpStream, &[SameNode, Service, NodePort, World]),
            (FirstPacket, &[SameNode, NodePort, World]),
        ];
        ways.into_iter().flat_map(|(workload, ways)| ways.iter().map(move |way| Run::new(workload, *way)))
    }

    /// How it goes with size: each of Services, policies and flows alone, the others at their least.
    pub fn scale() -> Self {
        use {Way::*, Workload::*};
        let mut blocks = Vec::new();
        for services in [1, 100, 1000, 10_000] {
            let sizes = Sizes { services, ..Sizes::LEAST };
            let traffic = [
                Run::new(TcpCrr, OtherNode),
                Run::new(TcpCrr, Service),
                Run::new(TcpRr, Service),
                Run::new(UdpStream, Service),
                Run::new(FirstPacket, Service),
                // What they are compared with, in the same rounds.
                Run::new(TcpRr, OtherNode),
                Run::new(UdpStream, OtherNode),
                Run::new(FirstPacket, OtherNode),
            ];
            blocks.push(traffic.map(|run| run.sizes(sizes)).into_iter().chain(rules(sizes)).collect());
        }
        // One policy is among the Services' sizes already, with the way to the other node.
        for policies in [0, 10, 100, 1000] {
            let sizes = Sizes { policies, ..Sizes::LEAST };
            let traffic = [
                Run::new(TcpCrr, OtherNode),
                Run::new(TcpRr, OtherNode),
                Run::new(UdpStream, OtherNode),
                Run::new(FirstPacket, OtherNode),
            ];
            blocks.push(traffic.map(|run| run.sizes(sizes)).into_iter().chain(rules(sizes)).collect());
        }
        for flows in [1, 1024, 65_536] {
            let sizes = Sizes { flows, ..Sizes::LEAST };
            let traffic =
                [Run::new(UdpRr, OtherNode), Run::new(TcpCrr, OtherNode), Run::new(UdpStream, OtherNode)];
            let traffic = traffic.map(|run| run.sizes(sizes)).into_iter();
            // The others are among the Services' sizes already, where there is one flow.
            blocks.push(traffic.filter(|run| flows > 1 || run.workload == UdpRr).collect());
        }
        let variants = Name::ALL.into_iter().map(Variant::from).collect();
        let time = Duration::from_millis(500);
        Self {
            name: "scale",
            variants,
            blocks,
            rounds: 5,
            time,
            seed: 1,
            fabric: Fabric::Switch,
            programs: false,
        }
    }

    /// Every run, in the order of the blocks.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.blocks.iter().flatten()
    }

    /// What is left when only these words are wanted, parted by commas: names of dataplanes, workloads and ways.
    /// Where none of a sort is named, all of it stays; but what goes no way at all goes none of those that are named,
    /// and stays only if it is named itself.
    ///
    /// # Errors
    /// [`Error`].
    pub fn only(mut self, only: &str) -> Result<Self, Error> {
        let (mut variants, mut workloads, mut ways) = (Vec::new(), Vec::new(), Vec::new());
        for word in only.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            if let Ok(variant) = word.parse::<Variant>() {
                variants.push(variant);
            } else if let Ok(workload) = word.parse::<Workload>() {
                workloads.push(workload);
            } else if let Ok(way) = word.parse::<Way>() {
                ways.push(way);
            } else {
                return Err(Error::Word { word: word.to_owned() });
            }
        }
        self.variants.retain(|variant| variants.is_empty() || variants.contains(variant));
        self.programs &=
            workloads.is_empty() && ways.is_empty() && self.variants.contains(&Name::Ebpf.into());
        for block in &mut self.blocks {
            block.retain(|run| workloads.is_empty() || workloads.contains(&run.workload));
            block.retain(|run| {
                let asked = run.goes_no_way() && workloads.contains(&run.workload);
                ways.is_empty() || ways.contains(&run.way) || asked
            });
        }
        self.blocks.retain(|block| !block.is_empty());
        if self.variants.is_empty() || self.blocks.is_empty() {
            return Err(Error::Nothing { only: only.to_owned(), suite: self.name });
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// How long the traffic of a suite takes at least.
    fn shortest(suite: &Suite) -> Duration {
        let traffic = suite.runs().filter(|run| run.is_traffic());
        let samples: usize = traffic
            .map(|run| {
                let can = suite.variants.iter().filter(|it| it.lacks(run).is_none());
                can.map(|it| run.rounds(*it, suite.rounds)).sum::<usize>()
            })
            .sum();
        // With the warm-up before it, and what ends it.
        (suite.time.mul_f64(1.1) + Duration::from_millis(50)) * samples as u32
    }

    #[test]
    fn suites_fit_into_their_time_and_leave_some_for_building() {
        for (suite, most_s) in [(Suite::quick(), 45), (Suite::standard(), 17 * 60), (Suite::scale(), 30 * 60)]
        {
            let shortest = shortest(&suite);
            assert!(shortest < Duration::from_secs(most_s), "{}: {shortest:?}", suite.name);
        }
    }

    #[test]
    fn no_suite_asks_for_a_point_twice() {
        for suite in [Suite::quick(), Suite::standard(), Suite::scale()] {
            let points: BTreeSet<_> = suite.runs().map(|run| run.point()).collect();
            assert_eq!(points.len(), suite.runs().count(), "{}", suite.name);
        }
    }

    #[test]
    fn whatever_goes_by_a_service_has_the_same_to_the_other_node_beside_it() {
        for block in [Suite::quick(), Suite::scale()].iter().flat_map(|suite| &suite.blocks) {
            for run in block.iter().filter(|run| run.way == Way::Service) {
                let bare = Run { way: Way::OtherNode, ..*run };
                assert!(block.contains(&bare), "{run:?}");
            }
        }
    }

    #[test]
    fn every_size_that_is_to_be_compared_is_in_a_suite() {
        let scale = Suite::scale();
        let sizes = |of: fn(&Sizes) -> usize| scale.runs().map(|run| of(&run.sizes)).collect::<BTreeSet<_>>();
        assert_eq!(sizes(|it| it.services), BTreeSet::from([1, 100, 1000, 10_000]));
        assert_eq!(sizes(|it| it.policies), BTreeSet::from([0, 1, 10, 100, 1000]));
        assert_eq!(sizes(|it| it.flows), BTreeSet::from([1, 1024, 65_536]));
        let standard = Suite::standard();
        let kinds: BTreeSet<_> = standard.runs().map(|run| run.workload).collect();
        let ways: BTreeSet<_> = standard.runs().map(|run| run.way).collect();
        assert_eq!((kinds.len(), ways.len()), (Workload::ALL.len(), Way::ALL.len()));
        let sent = [
            Workload::TcpRr,
            Workload::UdpRr,
            Workload::TcpCrr,
            Workload::TcpStream,
            Workload::UdpStream,
            Workload::FirstPacket,
        ];
        for (workload, way) in sent.into_iter().flat_map(|it| Way::ALL.map(|way| (it, way))) {
            let has = standard.runs().any(|run| (run.workload, run.way) == (workload, way));
            assert_eq!(has, way != Way::Memory, "{workload}, {way}");
        }
        assert!(standard.runs().any(|run| run.rate_per_s > 0));
    }

    #[test]
    fn only_takes_dataplanes_workloads_and_ways_in_one_list() {
        let suite = Suite::standard().only("routed,chains/plain,tcp_crr,service").expect("all exist");
        let names: Vec<_> = suite.variants.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["routed", "chains/plain"]);
        let left: Vec<_> = suite.runs().map(|run| (run.workload, run.way, run.sizes.services)).collect();
        assert_eq!(left, [1, 1000, 5000].map(|services| (Workload::TcpCrr, Way::Service, services)));
    }

    #[test]
    fn what_goes_no_way_stays_beside_a_way_only_if_it_is_named() {
        let left = |only: &str| {
            let suite = Suite::standard().only(only).expect("all exist");
            suite.runs().map(|run| run.workload).collect::<BTreeSet<_>>()
        };
        assert!(!left("service").contains(&Workload::Program));
        assert_eq!(left("service,tcp_crr,program"), BTreeSet::from([Workload::TcpCrr, Workload::Program]));
        assert_eq!(left("boot,world"), BTreeSet::from([Workload::Boot]));
    }

    #[test]
    fn only_names_the_word_it_does_not_know() {
        let error = Suite::quick().only("routed,udprr").expect_err("there is no udprr");
        let text = error.to_string();
        assert!(["\"udprr\"", "UDP_RR", "node-port"].iter().all(|word| text.contains(word)), "{text}");
        assert!(matches!(Suite::quick().only("udp_rr"), Err(Error::Nothing { .. })));
    }

    #[test]
    fn a_point_says_all_that_belongs_to_a_run() {
        let point = Run::new(Workload::TcpRr, Way::OtherNode).point();
        assert_eq!(point, crate::results::tests::point());
    }

    #[test]
    fn who_knows_no_services_says_so() {
        let lacks = |name: Name, way| Variant::from(name).lacks(&Run::new(Workload::TcpRr, way));
        assert_eq!(lacks(Name::Routed, Way::Service), Some("it knows no Services"));
        assert_eq!(lacks(Name::Routed, Way::World), None);
        assert_eq!(lacks(Name::Wire, Way::World), Some("it is one link between two pods"));
        assert!(Way::ALL.iter().all(|way| lacks(Name::Ebpf, *way).is_none()));
    }
}
