//! `chains` as a prober, in memory: a request and its answer for every flow, over all nodes of a cluster.
//! It needs no root, and what it says owes nothing to the path it judges.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{IpNumber, PacketBuilder};
use userspace::model::{Cluster, Who};

use super::frame::{ETHERNET, Kind, Packet};
use super::node::{ITSELF, Link};
use super::sum::sctp_checksum;
use super::{Error, Network, Sent, Stop};
use crate::probe::{Flow, Measured, Prober, Verdict, family_of};

/// The seed of the endpoints that Services choose.
const SEED: u64 = 1;

/// The first port that senders use; every flow has its own.
const FIRST_PORT: u16 = 20_000;

/// Asks on a cluster in memory.
#[derive(Debug)]
pub struct Judge<'a> {
    cluster: &'a Cluster,
    network: Network,
    /// Addresses that a node's own packets reach by way of its path.
    caught: HashSet<IpAddr>,
    asked: u32,
}

/// Somebody who sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// By its first address.
    Pod(IpAddr),
    /// The same.
    Node(IpAddr),
    World(IpAddr),
}

/// Both ends of what is asked, and how.
#[derive(Clone, Copy, Debug)]
struct Asks {
    protocol: u8,
    source: SocketAddr,
    target: SocketAddr,
}

impl Asks {
    fn answer(self) -> Self {
        Self { source: self.target, target: self.source, ..self }
    }

    fn of(packet: &Packet) -> Self {
        let tuple = packet.tuple;
        let end = |address, port| SocketAddr::new(IpAddr::from(address), port);
        Self {
            protocol: tuple.protocol,
            source: end(tuple.source, tuple.source_port),
            target: end(tuple.target, tuple.target_port),
        }
    }
}

impl<'a> Judge<'a> {
    /// The cluster, before any packet.
    ///
    /// # Errors
    /// It asks for something that rules cannot do.
    pub fn new(cluster: &'a Cluster) -> Result<Self, Error> {
        let pods = cluster.pods.iter().filter(|pod| !pod.host_network).flat_map(|pod| &pod.addresses);
        let services = cluster.services.iter().flat_map(|service| &service.addresses);
        let mut caught: HashSet<IpAddr> = pods.chain(services).copied().collect();
        caught.extend(cluster.ways_in().into_keys().chain(ITSELF));
        Ok(Self { cluster, network: Network::new(cluster, SEED)?, caught, asked: 0 })
    }

    fn ask(&mut self, flow: &Flow) -> anyhow::Result<Verdict> {
        let (from, to) = (self.cluster.find(&flow.from)?, self.cluster.find(&flow.to)?);
        let over = |address: &&IpAddr| flow.over == Some(family_of(**address));
        let target =
            to.addresses().iter().find(over).copied().unwrap_or_else(|| to.address_from(from.addresses()));
        let Some(source) = from.addresses().iter().copied().find(|own| own.is_ipv4() == target.is_ipv4())
        else {
            // Its own stack has no way there.
            return Ok(Verdict::Reject);
        };
        let from = self.place(&flow.from, from.addresses());
        if source == target && matches!(from, Place::Pod(_)) {
            // Itself: no packet ever leaves it.
            return Ok(if self.listens(flow) { Verdict::Allow } else { Verdict::Reject });
        }
        self.asked += 1;
        // An hour between two flows: none meets what is left of another.
        let now = Duration::from_secs(3600 * u64::from(self.asked));
        let asks = Asks {
            protocol: flow.protocol.number(),
            source: SocketAddr::new(source, FIRST_PORT + (self.asked % 10_000) as u16),
            target: SocketAddr::new(target, flow.port),
        };
        let sent = self.send(from, asks, Way::There, now);
        let Some((place, arrived)) = self.arrival(&sent) else { return Ok(Verdict::Deny) };
        if let Kind::Error(_) = arrived.kind {
            return Ok(Verdict::Reject);
        }
        if !self.listens(flow) {
            return Ok(Verdict::Reject);
        }
        let sent = self.send(place, Asks::of(&arrived).answer(), Way::Back, now);
        let back = self.arrival(&sent).is_some_and(|(place, answer)| {
            let answer = Asks::of(&answer);
            place == from && (answer.source, answer.target) == (asks.target, asks.source)
        });
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

    fn place(&self, who: &Who, addresses: &[IpAddr]) -> Place {
        let node =
            self.cluster.nodes.iter().find(|node| addresses.iter().any(|own| node.addresses.contains(own)));
        match (who, node) {
            (Who::External(_), _) => Place::World(addresses[0]),
            // A pod on the host's network is its node.
            (_, Some(node)) => Place::Node(node.address()),
            (_, None) => Place::Pod(addresses[0]),
        }
    }

    /// Lets somebody send a packet, and follows it to its end.
    fn send(&mut self, from: Place, asks: Asks, way: Way, now: Duration) -> Sent {
        let (frame, target) = (frame(asks, way), asks.target.ip());
        match from {
            Place::Pod(address) => match self.node_of(address) {
                Some(node) => self.network.send(node, Link::Pod(address), frame, now),
                None => Sent::default(),
            },
            Place::Node(node) if self.caught.contains(&target) || self.is_of(node, target) => {
                self.network.send(node, Link::Host, frame, now)
            }
            Place::Node(_) | Place::World(_) => self.network.send_outside(target, frame, now),
        }
    }

    /// Whether the address is the node's, whose first this is.
    fn is_of(&self, node: IpAddr, address: IpAddr) -> bool {
        self.cluster.nodes.iter().any(|one| one.address() == node && one.addresses.contains(&address))
    }

    /// Where a packet came to its end, and how it looks there.
    fn arrival(&self, sent: &Sent) -> Option<(Place, Packet)> {
        let (stop, frame) = sent.arrived.first()?;
        let packet = Packet::read(frame, ETHERNET).ok()?;
        let target = IpAddr::from(packet.tuple.target);
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

    /// The first address of the node that the pod with this address runs on.
    fn node_of(&self, pod: IpAddr) -> Option<IpAddr> {
        let pod = self.cluster.pods.iter().find(|one| one.address() == pod && !one.host_network)?;
        Some(self.cluster.node(&pod.node)?.address())
    }
}

impl Prober for Judge<'_> {
    fn dataplane(&self) -> &'static str {
        "chains"
    }

    /// Its rules masquerade whom they send on, as kube-proxy's.
    fn stands_in(&self) -> bool {
        true
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

/// A datagram, or what opens a connection or an association, or its answer; of another protocol nothing but its
/// header.
fn frame(asks: Asks, way: Way) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([0; 6], [0; 6]);
    let ip = match (asks.source.ip(), asks.target.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => ethernet.ipv4(source.octets(), target.octets(), 64),
        (source, target) => ethernet.ipv6(as_v6(source), as_v6(target), 64),
    };
    let (from, to) = (asks.source.port(), asks.target.port());
    let mut frame = Vec::new();
    let written = match asks.protocol {
        6 => {
            let segment = ip.tcp(from, to, 1, 65_535).syn();
            let segment = if way == Way::Back { segment.ack(2) } else { segment };
            segment.write(&mut frame, &[])
        }
        17 => ip.udp(from, to).write(&mut frame, b"?"),
        132 => ip.write(&mut frame, IpNumber::SCTP, &association(from, to, way)),
        other => ip.write(&mut frame, IpNumber(other), &[]),
    };
    written.expect("a vector takes all");
    frame
}

fn as_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// An INIT, or an INIT ACK, as short as can be (RFC 9260, section 3.3.2).
fn association(from: u16, to: u16, way: Way) -> Vec<u8> {
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    let (kind, tag) = if way == Way::There { (1, 0) } else { (2, 1) };
    let header = [&ports[..], &[0, 0, 0, tag], &[0; 4]].concat();
    let chunk = [kind, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let mut packet = [&header[..], &chunk].concat();
    let sum = sctp_checksum(&packet);
    packet[8..12].copy_from_slice(&sum);
    packet
}
