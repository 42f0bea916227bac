//! `chains` as a prober, in memory: a request and its answer for every flow, over all nodes of a cluster.
//! It needs no root, and what it says owes nothing to the path it judges.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use etherparse::{IpNumber, PacketBuilder};
use userspace::model::{Cluster, Who};

use super::frame::{ETHERNET, Kind, Packet, Tuple, sctp_checksum};
use super::rules::Link;
use super::{Error, Network, Sent, Stop};
use crate::probe::{Flow, Measured, Prober, Verdict};

/// The seed of the endpoints that Services choose.
const SEED: u64 = 1;

/// The first port that senders use; every flow has its own.
const FIRST_PORT: u16 = 20_000;

/// Asks on a cluster in memory.
#[derive(Debug)]
pub struct Judge<'a> {
    cluster: &'a Cluster,
    network: Network,
    asked: u32,
}

/// Somebody who sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Pod(Ipv4Addr),
    Node(Ipv4Addr),
    World(Ipv4Addr),
}

impl<'a> Judge<'a> {
    /// The cluster, before any packet.
    ///
    /// # Errors
    /// Something that is not IPv4.
    pub fn new(cluster: &'a Cluster) -> Result<Self, Error> {
        Ok(Self { cluster, network: Network::new(cluster, SEED)?, asked: 0 })
    }

    fn ask(&mut self, flow: &Flow) -> anyhow::Result<Verdict> {
        let (from, target) = (self.place(&flow.from)?, self.address(&flow.to)?);
        if from.address() == target {
            // Itself: no packet ever leaves it.
            return Ok(if self.listens(flow) { Verdict::Allow } else { Verdict::Reject });
        }
        self.asked += 1;
        // An hour between two flows: none meets what is left of another.
        let now = Duration::from_secs(3600 * u64::from(self.asked));
        let asks = Tuple {
            protocol: flow.protocol.number(),
            source: from.address(),
            source_port: FIRST_PORT + (self.asked % 10_000) as u16,
            target,
            target_port: flow.port,
        };
        let sent = self.send(from, &asks, Way::There, now);
        let Some((place, arrived)) = self.arrival(&sent) else { return Ok(Verdict::Deny) };
        if let Kind::Error(_) = arrived.kind {
            return Ok(Verdict::Reject);
        }
        if !self.listens(flow) {
            return Ok(Verdict::Reject);
        }
        let sent = self.send(place, &arrived.tuple.inverse(), Way::Back, now);
        let back = self
            .arrival(&sent)
            .is_some_and(|(place, answer)| place == from && answer.tuple == asks.inverse());
        Ok(if back { Verdict::Allow } else { Verdict::Deny })
    }

    /// Externals that declare ports answer on those only.
    fn listens(&self, flow: &Flow) -> bool {
        let Who::External(name) = &flow.to else { return true };
        let external = self.cluster.externals.iter().find(|external| external.name == *name);
        external.is_none_or(|external| {
            let same = |port: &userspace::model::ContainerPort| {
                port.port == flow.port && port.protocol == flow.protocol
            };
            external.ports.is_empty() || external.ports.iter().any(same)
        })
    }

    fn address(&self, who: &Who) -> anyhow::Result<Ipv4Addr> {
        match self.cluster.find(who)?.address() {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(address) => {
                anyhow::bail!("cannot ask {who}: {address} is not IPv4, and chains knows only that")
            }
        }
    }

    fn place(&self, who: &Who) -> anyhow::Result<Place> {
        let address = self.address(who)?;
        Ok(match who {
            Who::External(_) => Place::World(address),
            // A pod on the host's network is its node.
            _ if self.network.node(address).is_some() => Place::Node(address),
            _ => Place::Pod(address),
        })
    }

    /// Lets somebody send a packet, and follows it to its end.
    fn send(&mut self, from: Place, tuple: &Tuple, way: Way, now: Duration) -> Sent {
        let frame = frame(tuple, way);
        let settings = &self.cluster.settings;
        let caught = [settings.pod_cidrs[0], settings.service_cidrs[0]];
        match from {
            Place::Pod(address) => match self.node_of(address) {
                Some(node) => self.network.send(node, Link::Pod(address), frame, now),
                None => Sent::default(),
            },
            Place::Node(node) if caught.iter().any(|range| range.contains(&IpAddr::V4(tuple.target))) => {
                self.network.send(node, Link::Host, frame, now)
            }
            Place::Node(_) | Place::World(_) => self.fabric(tuple.target, frame, now),
        }
    }

    /// What the fabric does with a packet: to a node, to a pod by way of its node, or outside.
    fn fabric(&mut self, target: Ipv4Addr, frame: Vec<u8>, now: Duration) -> Sent {
        let node = if self.network.node(target).is_some() { Some(target) } else { self.node_of(target) };
        match node {
            Some(node) => self.network.send(node, Link::Uplink, frame, now),
            None => Sent { arrived: vec![(Stop::Outside, frame)], refused: None },
        }
    }

    /// Where a packet came to its end, and how it looks there.
    fn arrival(&self, sent: &Sent) -> Option<(Place, Packet)> {
        let (stop, frame) = sent.arrived.first()?;
        let packet = Packet::read(&frame[ETHERNET..]).ok()?;
        let target = packet.tuple.target;
        let place = match stop {
            Stop::Pod(address) => Place::Pod(*address),
            Stop::Host(address) => Place::Node(*address),
            Stop::Outside => {
                let known = self.cluster.externals.iter().any(|external| external.address == target);
                known.then_some(Place::World(target))?
            }
        };
        Some((place, packet))
    }

    /// The address of the node that the pod with this address runs on.
    fn node_of(&self, pod: Ipv4Addr) -> Option<Ipv4Addr> {
        let pod = self.cluster.pods.iter().find(|one| one.address() == pod && !one.host_network)?;
        match self.cluster.nodes.iter().find(|node| node.name == pod.node)?.address() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }
}

impl Place {
    fn address(self) -> Ipv4Addr {
        match self {
            Self::Pod(address) | Self::Node(address) | Self::World(address) => address,
        }
    }
}

impl Prober for Judge<'_> {
    fn dataplane(&self) -> &'static str {
        "chains"
    }

    fn probe(&mut self, flows: &[Flow]) -> anyhow::Result<Vec<Measured>> {
        flows.iter().map(|flow| Ok(self.ask(flow)?.into())).collect()
    }
}

/// A question or its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

/// A datagram, or what opens a connection or an association, or its answer. Nothing that is read, if it is none of
/// them: the path refuses what it does not know.
fn frame(tuple: &Tuple, way: Way) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2([0; 6], [0; 6]).ipv4(tuple.source.octets(), tuple.target.octets(), 64);
    let mut frame = Vec::new();
    let written = match tuple.protocol {
        6 => {
            let segment = ip.tcp(tuple.source_port, tuple.target_port, 1, 65_535).syn();
            let segment = if way == Way::Back { segment.ack(2) } else { segment };
            segment.write(&mut frame, &[])
        }
        17 => ip.udp(tuple.source_port, tuple.target_port).write(&mut frame, b"?"),
        132 => ip.write(&mut frame, IpNumber::SCTP, &association(tuple, way)),
        other => ip.write(&mut frame, IpNumber(other), &[]),
    };
    written.expect("a vector takes all");
    frame
}

/// An INIT, or an INIT ACK, as short as can be (RFC 9260, section 3.3.2).
fn association(tuple: &Tuple, way: Way) -> Vec<u8> {
    let ports = [tuple.source_port.to_be_bytes(), tuple.target_port.to_be_bytes()].concat();
    let (kind, tag) = if way == Way::There { (1, 0) } else { (2, 1) };
    let header = [&ports[..], &[0, 0, 0, tag], &[0; 4]].concat();
    let chunk = [kind, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let mut packet = [&header[..], &chunk].concat();
    let sum = sctp_checksum(&packet);
    packet[8..12].copy_from_slice(&sum);
    packet
}
