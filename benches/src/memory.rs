//! Frames pushed through the packet paths of this process, as fast as they go: in memory, where nothing but the path
//! is measured, and on real links, where input and output are part of it and a bare loop says how large a part.
//!
//! In memory the frames are datagrams of a pod to a Service whose backend is on another node: each is taken through the
//! client's node, which puts it into the tunnel, and what comes of it through the server's, which takes it out. The
//! rate is the slower one's. All flows are known: the first round is not counted.
//!
//! On real links they are sent by no socket and read by none ([`testbed::traffic::forward`]), and everything that a
//! frame needs runs on CPU 0. Nodes are joined as in the other comparisons: by a switch, or the kernel's bridge. The
//! bare loop knows no Services: its frames are for the pod itself. So what is compared with it has a Service to
//! translate as well, and its ratio is no better than it would be without.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dataplane::wire::{Be16, Mac, V4, checksum};
use testbed::dataplane::live::{self, Out, Path, Wire};
use testbed::dataplane::{self as dataplanes, Io, Name, Up, chains};
use testbed::traffic::{self, Limits};
use userspace::engine::kernel::switch::Switch;
use userspace::model::{self, Cluster};

use crate::affinity::{self, Held};
use crate::figure::RECEIVED;
use crate::matrix::{Run, Sizes, Variant, Way, Workload};
use crate::results::{Absent, Fabric, Point, Results, Sample, Spread, VERSION};
use crate::{cluster, machine, measure, noise, sample};

/// Services that a cluster has.
const SERVICES: [usize; 2] = [1, 1000];

/// Flows in memory, and on links.
const FLOWS: [usize; 3] = [1, 1024, 65_536];
const LIVE_FLOWS: usize = 1;

/// Bytes of a datagram.
const SIZE: usize = 64;

/// Frames between two looks at the clock: few, so that what disturbs some bursts leaves the others alone.
const BURST: usize = 8192;

/// Bursts of a round in memory, of which the median counts.
const BURSTS: usize = 8;

/// Frames that are let pass before they are given to whoever sends: as on links.
const BATCH: usize = 64;

/// What is measured on links.
const LIVE: [(Name, Io); 6] = [
    (Name::Bare, Io::Ring),
    (Name::Emulator, Io::Ring),
    (Name::Chains, Io::Ring),
    (Name::Bare, Io::Plain),
    (Name::Emulator, Io::Plain),
    (Name::Chains, Io::Plain),
];

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The built-in cluster.
    #[error("cannot read the built-in cluster: {0}")]
    Cluster(#[from] model::Error),
    /// A path that cannot hold it.
    #[error("cannot make a packet path of the built-in cluster: {0}")]
    Path(#[from] live::Refusal),
    /// A frame that did not pass.
    #[error("{variant} sends nothing for a frame at the {place}'s node; is there a test that says why?")]
    Refused {
        /// Of which path.
        variant: &'static str,
        /// `client` or `server`.
        place: &'static str,
    },
    /// Traffic that did not pass.
    #[error("cannot measure {variant}: {source}")]
    Traffic {
        /// The variant.
        variant: String,
        /// What went wrong.
        source: traffic::Error,
    },
    /// Nodes that nothing joins.
    #[error(transparent)]
    Apart(#[from] measure::Apart),
    /// Clusters that are still there.
    #[error(transparent)]
    Left(#[from] measure::Left),
    /// Where threads run.
    #[error(transparent)]
    Affinity(#[from] affinity::Error),
    /// By the user.
    #[error("interrupted")]
    Interrupted,
}

/// Measures in memory, and on links where it is said what joins nodes, which root can have: so many rounds, on links
/// for so long each.
///
/// # Errors
/// [`Error`]. Nothing is left then, if not said otherwise.
pub fn measure(
    (rounds, time): (usize, Duration),
    links: Option<Fabric>,
    stop: &AtomicBool,
    mut said: impl FnMut(&str),
) -> Result<Results, Error> {
    let (begin, before) = (Instant::now(), traffic::Ticks::now());
    let mut results = Results {
        version: VERSION,
        suite: "memory".to_owned(),
        rounds,
        time_s: time.as_secs_f64(),
        fabric: links.unwrap_or_default(),
        machine: machine::now(),
        ..Results::default()
    };
    for services in SERVICES {
        for flows in FLOWS {
            check(stop)?;
            said(&format!("in memory: {services} services, {flows} flows"));
            results.samples.extend(in_memory(services, flows, rounds)?);
        }
        if links.is_some() {
            said(&format!("on links: {services} services"));
            on_links(services, (rounds, time), stop, &mut results)?;
        }
    }
    if links.is_none() {
        let absent = |(name, io)| Absent { variant: variant(name, io), why: "links need root".to_owned() };
        results.absent = LIVE.map(absent).to_vec();
    }
    results.machine.took_s = begin.elapsed().as_secs_f64();
    results.machine.steal_percent = traffic::Ticks::now().since(before).steal_percent();
    results.noise = noise::of(&results);
    Ok(results)
}

fn check(stop: &AtomicBool) -> Result<(), Error> {
    if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

fn variant(name: Name, io: Io) -> String {
    if io == Io::default() { name.to_string() } else { format!("{name}/{io}") }
}

fn point(way: &str, services: usize, flows: usize) -> Point {
    Point {
        workload: "FORWARD".to_owned(),
        way: way.to_owned(),
        size_bytes: SIZE,
        connections: 1,
        services,
        policies: 1,
        flows,
        rate_per_s: 0,
    }
}

fn small(name: &str, services: usize) -> Result<Cluster, Error> {
    Ok(cluster::of(name, Sizes { services, ..Sizes::LEAST })?)
}

/// The client's address, what it dials, and the server's.
struct Dialled {
    client: V4,
    service: SocketAddrV4,
    server: SocketAddrV4,
}

impl Dialled {
    fn of(cluster: &Cluster) -> Self {
        let pod = |name: &str| {
            v4(cluster.pod(&format!("default/{name}")).expect("the built-in cluster has it").address())
        };
        let service = cluster.services.last().expect("there is one at least");
        Self {
            client: V4(pod("client").octets()),
            service: SocketAddrV4::new(v4(service.address()), service.ports[0].port),
            server: SocketAddrV4::new(pod("server"), cluster::PORT),
        }
    }

    /// A frame for each flow: flows differ in the client's port, of which there is one less than there may be flows.
    fn frames(&self, to: SocketAddrV4, flows: usize) -> Vec<Vec<u8>> {
        let port = |flow: usize| (flow % usize::from(u16::MAX)) as u16 + 1;
        (0..flows).map(|flow| datagram((self.client, port(flow)), to)).collect()
    }
}

fn v4(address: IpAddr) -> std::net::Ipv4Addr {
    let IpAddr::V4(address) = address else { unreachable!("the built-in cluster is IPv4") };
    address
}

/// A datagram to the pod's gateway, without a checksum of its own (RFC 768).
fn datagram((client, port): (V4, u16), to: SocketAddrV4) -> Vec<u8> {
    const HEADER: usize = 20;
    const UDP: usize = 8;
    let mut frame = [Mac::GATEWAY.0, Mac::of(client).0].concat();
    frame.extend([8, 0]);
    let mut header = [0; HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((HEADER + UDP + SIZE) as u16).to_be_bytes());
    (header[8], header[9]) = (64, 17);
    header[12..16].copy_from_slice(&client.0);
    header[16..20].copy_from_slice(&to.ip().octets());
    let words: [Be16; HEADER / 2] = std::array::from_fn(|at| Be16([header[2 * at], header[2 * at + 1]]));
    header[10..12].copy_from_slice(&checksum::of(words, 0).0);
    frame.extend(header);
    for field in [port, to.port(), (UDP + SIZE) as u16, 0] {
        frame.extend(Be16::new(field).0);
    }
    frame.resize(frame.len() + SIZE, 0);
    frame
}

/// Every path in memory, in turns.
fn in_memory(services: usize, flows: usize, rounds: usize) -> Result<Vec<Sample>, Error> {
    let cluster = small("bench-memory", services)?;
    let dialled = Dialled::of(&cluster);
    let frames = dialled.frames(dialled.service, flows);
    let mut walks: [Box<dyn Walk>; 2] = [
        Box::new(Pair::<live::emulator::Node>::new("emulator", &cluster, (&dialled, &frames))?),
        Box::new(Pair::<chains::Live>::new("chains", &cluster, (&dialled, &frames))?),
    ];
    let mut samples = Vec::new();
    for round in 0..rounds {
        let turn = |at: usize| if round.is_multiple_of(2) { at } else { 1 - at };
        for walk in (0..2).map(turn) {
            let walk = &mut walks[walk];
            samples.push(Sample {
                variant: walk.variant().to_owned(),
                point: point("memory", services, flows),
                round,
                figures: figures(walk.as_mut()),
                latencies_us: Vec::new(),
            });
        }
    }
    Ok(samples)
}

/// One measurement in memory, of a dataplane that has a path in this process and knows Services.
pub(crate) fn once(name: Name, cluster: &Cluster, flows: usize) -> Result<BTreeMap<String, f64>, Error> {
    let dialled = Dialled::of(cluster);
    let frames = dialled.frames(dialled.service, flows);
    let ends = (&dialled, frames.as_slice());
    Ok(match name {
        Name::Chains => figures(&mut Pair::<chains::Live>::new("chains", cluster, ends)?),
        _ => figures(&mut Pair::<live::emulator::Node>::new("emulator", cluster, ends)?),
    })
}

fn figures(walk: &mut dyn Walk) -> BTreeMap<String, f64> {
    let (egress_ns, ingress_ns) = walk.medians();
    let figures = [
        (RECEIVED, 1e6 / egress_ns.max(ingress_ns)),
        ("ns_per_packet", egress_ns.max(ingress_ns)),
        ("egress_ns_per_packet", egress_ns),
        ("ingress_ns_per_packet", ingress_ns),
    ];
    figures.map(|(name, value)| (name.to_owned(), value)).into()
}

/// A path at the client's node and at the server's, whatever path that is.
trait Walk {
    fn variant(&self) -> &'static str;
    /// What a frame took at the client's node and at the server's, in nanoseconds: the medians of a few bursts.
    fn medians(&mut self) -> (f64, f64);
}

struct Pair<P> {
    variant: &'static str,
    client: Place<P>,
    server: Place<P>,
}

/// One node's path, and what comes to it.
struct Place<P> {
    path: P,
    at: Wire,
    frames: Vec<Vec<u8>>,
    next: usize,
}

impl<P: Path> Pair<P> {
    /// Every flow has been seen once when this returns.
    fn new(
        variant: &'static str,
        cluster: &Cluster,
        (dialled, frames): (&Dialled, &[Vec<u8>]),
    ) -> Result<Self, Error> {
        let place = |pod: &str, at, frames| {
            let pod = cluster.pod(&format!("default/{pod}")).expect("the built-in cluster has it");
            Ok::<_, Error>(Place { path: P::new(cluster, &pod.node)?, at, frames, next: 0 })
        };
        let at = Wire::Pod(IpAddr::from(dialled.client.0));
        let mut client = place("client", at, frames.to_vec())?;
        let tunnelled = client.all().ok_or(Error::Refused { variant, place: "client" })?;
        let mut server = place("server", Wire::Uplink, tunnelled)?;
        server.all().ok_or(Error::Refused { variant, place: "server" })?;
        Ok(Self { variant, client, server })
    }
}

impl<P: Path> Place<P> {
    /// What comes of each frame, if something does.
    fn all(&mut self) -> Option<Vec<Vec<u8>>> {
        let Self { path, at, frames, .. } = self;
        let passed = frames.iter().map(|frame| {
            let mut out = Out::default();
            path.pass(*at, frame, Duration::ZERO, &mut out);
            out.frames().next().map(|(_, frame)| frame.to_vec())
        });
        passed.collect()
    }

    /// What a frame takes, in nanoseconds, over one burst.
    fn burst(&mut self) -> f64 {
        let mut out = Out::default();
        let begin = Instant::now();
        for _ in 0..BURST / BATCH {
            for _ in 0..BATCH {
                self.path.pass(self.at, &self.frames[self.next], Duration::ZERO, &mut out);
                self.next = if self.next + 1 == self.frames.len() { 0 } else { self.next + 1 };
            }
            black_box(out.frames().count());
            out.clear();
        }
        begin.elapsed().as_nanos() as f64 / BURST as f64
    }
}

impl<P: Path> Walk for Pair<P> {
    fn variant(&self) -> &'static str {
        self.variant
    }

    fn medians(&mut self) -> (f64, f64) {
        let median = |place: &mut Place<P>| {
            let bursts = (0..BURSTS).map(|_| place.burst()).collect();
            Spread::of(bursts).map_or(0.0, |spread| spread.median)
        };
        (median(&mut self.client), median(&mut self.server))
    }
}

/// Every variant on links of its own, in turns.
fn on_links(
    services: usize,
    (rounds, time): (usize, Duration),
    stop: &AtomicBool,
    results: &mut Results,
) -> Result<(), Error> {
    let mut stands = Vec::new();
    let measured = build((services, results.fabric), stop, (&mut stands, &mut results.absent))
        .and_then(|()| in_rounds(&stands, services, (rounds, time), stop));
    results.samples.extend(measure::removed(stands.into_iter().map(|stand| stand.up), measured)?);
    Ok(())
}

/// A variant on links.
struct Stand {
    name: Name,
    variant: String,
    up: Up,
    /// What joins the nodes in the bridge's stead. Gone before they are.
    switch: Option<Switch>,
}

fn build(
    (services, fabric): (usize, Fabric),
    stop: &AtomicBool,
    (stands, absent): (&mut Vec<Stand>, &mut Vec<Absent>),
) -> Result<(), Error> {
    for (name, io) in LIVE {
        check(stop)?;
        let own = Variant { dataplane: name, io };
        let cluster = small(&measure::cluster_name(own, services), services)?;
        let variant = variant(name, io);
        match Up::with_io(&cluster, name, io) {
            Ok(up) => stands.push(Stand { name, variant, up, switch: None }),
            Err(error) => absent.push(Absent { variant, why: error.to_string() }),
        }
    }
    // All that are up are noted by now, and taken down where one cannot be joined.
    for stand in stands {
        stand.switch = measure::joined(&stand.up, fabric)?;
    }
    Ok(())
}

fn in_rounds(
    stands: &[Stand],
    services: usize,
    (rounds, time): (usize, Duration),
    stop: &AtomicBool,
) -> Result<Vec<Sample>, Error> {
    let mut samples = Vec::new();
    let held = Held::new()?;
    held.to(Some(0))?;
    for round in 0..rounds {
        for Stand { name, variant, up, .. } in measure::in_turn(stands, round) {
            check(stop)?;
            let figures = forwarded(*name, up, time);
            let figures = figures.map_err(|source| Error::Traffic { variant: variant.clone(), source })?;
            let point = point("other-node", services, LIVE_FLOWS);
            let variant = variant.clone();
            samples.push(Sample { variant, point, round, figures, latencies_us: Vec::new() });
        }
    }
    Ok(samples)
}

/// One measurement on links, of any dataplane that knows Services, or of the bare loop.
pub(crate) fn forwarded(
    name: Name,
    up: &Up,
    time: Duration,
) -> Result<BTreeMap<String, f64>, traffic::Error> {
    let way = if name == Name::Bare { Way::OtherNode } else { Way::Service };
    let ends = sample::ends(up, &Run::new(Workload::UdpStream, way));
    let ends = traffic::Ends { server: traffic::End { cpu: ends.client.cpu, ..ends.server }, ..ends };
    let dialled = Dialled::of(up.topology().cluster());
    let to = if name == Name::Bare { dialled.server } else { dialled.service };
    let before = up.tally();
    let packets = traffic::forward(&ends, &dialled.frames(to, LIVE_FLOWS), Limits::time(time))?;
    let after = up.tally();
    let lost = |tally: &dataplanes::Tally| tally.lost.values().sum::<u64>();
    let sent = packets.sent as f64 / packets.elapsed.as_secs_f64();
    let cpu_ns = packets.ticks.first_busy_s() * 1e9 / packets.received as f64;
    let figures = [
        (RECEIVED, packets.rate() / 1e3),
        ("sent_kpps", sent / 1e3),
        ("cpu_ns_per_packet", cpu_ns),
        ("lost", (lost(&after) - lost(&before)) as f64),
    ];
    let figures = figures.map(|(name, value)| (name.to_owned(), value));
    Ok(figures.into_iter().chain(sample::disturbed(packets.ticks, false)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_flow_pass_both_paths_in_memory() {
        let samples = in_memory(2, 16, 2).unwrap_or_else(|error| panic!("{error}"));
        let variants: Vec<_> = samples.iter().map(|sample| sample.variant.as_str()).collect();
        assert_eq!(variants, ["emulator", "chains", "chains", "emulator"]);
        assert!(samples.iter().all(|sample| sample.figures[RECEIVED] > 0.0), "{samples:?}");
    }
}
