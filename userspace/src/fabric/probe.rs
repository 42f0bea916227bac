//! Health probes: is there anybody behind a Service on this node?
//!
//! Each node is asked about each Service of the load balancer every `probeInterval`: whether the Service's node port
//! takes a connection, or answers a request for `/` with 200; where it has a health check node port, whether that one
//! answers a request for `/healthz` with 200. What is not answered before the next probe has failed. The first
//! outcome says what a node is; after that it takes `probeThreshold` other outcomes in a row to change it. A Service
//! without TCP ports has nothing to be asked, and all nodes are healthy.
//!
//! Source: Microsoft Learn, "Azure Load Balancer health probes" (addresses, outcomes, thresholds).

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane::wire::Mac;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use super::packet::Packet;
use super::seats::mac_of;
use crate::model::{Cluster, PROBES, PROBES_V6, Probe, Protocol, Service, ServiceKind};

/// The first source port of probes.
const FIRST_PORT: u16 = 49_152;
/// The sequence number that every probe begins with.
const SEQUENCE: u32 = 7000;
const SECOND_NS: u64 = 1_000_000_000;
const WINDOW: u16 = 65_535;
const HOPS: u8 = 64;

/// Who is asked about what: `namespace/name` of the Service, name of the node.
type Asked = (String, String);

/// Who is healthy, and the probes that find out.
#[derive(Debug, Default)]
pub(super) struct Prober {
    states: BTreeMap<Asked, State>,
    /// By their source ports.
    open: BTreeMap<u16, Asked>,
    interval_ns: u64,
    threshold: u32,
    next_ns: u64,
    next_port: u16,
    mac: Mac,
    /// Somebody is not what he was.
    changed: bool,
}

#[derive(Clone, Debug)]
struct State {
    question: Question,
    healthy: Option<bool>,
    /// Outcomes in a row that say otherwise.
    streak: u32,
    /// The probe that is under way, and its outcome once there is one.
    probe: Option<(u16, Option<bool>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    node: IpAddr,
    place: usize,
    port: u16,
    /// What is asked for by HTTP; a connection is enough if nothing.
    path: Option<&'static str>,
}

/// A frame to a node.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// The node's place.
    pub(super) place: usize,
    pub(super) frame: Vec<u8>,
}

impl Prober {
    /// Asks about another cluster's Services, from this hardware address. Those that are new are asked about at once.
    pub(super) fn apply(&mut self, cluster: &Cluster, mac: Mac, now_ns: u64) {
        let settings = &cluster.settings.load_balancer;
        self.interval_ns = u64::from(settings.probe_interval_s.max(1)) * SECOND_NS;
        self.threshold = settings.probe_threshold.max(1);
        self.mac = mac;
        let mut old = std::mem::take(&mut self.states);
        for service in cluster.services.iter().filter(|service| service.kind == ServiceKind::LoadBalancer) {
            for (place, node) in cluster.nodes.iter().enumerate() {
                let Some((port, path)) = question(service, settings.probe) else { continue };
                let asked = (service.id(), node.name.clone());
                let question = Question { node: node.address(), place, port, path };
                let state = old.remove(&asked).map(|state| State { question, ..state });
                if state.is_none() {
                    self.next_ns = now_ns;
                }
                let new = State { question, healthy: None, streak: 0, probe: None };
                self.states.insert(asked, state.unwrap_or(new));
            }
        }
        let states = &self.states;
        self.open.retain(|_, asked| states.contains_key(asked));
    }

    /// Whether a node is given a Service's flows. Of which nothing is known yet is not.
    pub(super) fn is_healthy(&self, service: &str, node: &str) -> bool {
        let state = self.states.get(&(service.to_owned(), node.to_owned()));
        state.is_none_or(|state| state.healthy == Some(true))
    }

    /// Whether something is known of everybody who is asked.
    pub(super) fn knows_all(&self) -> bool {
        self.states.values().all(|state| state.healthy.is_some())
    }

    /// When there is something to be asked; none if there is nobody.
    pub(super) fn next_ns(&self) -> Option<u64> {
        (!self.states.is_empty()).then_some(self.next_ns)
    }

    /// Whether somebody is not what he was when this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Has [`Self::take_changed`] say so once more.
    pub(super) fn keep_changed(&mut self) {
        self.changed = true;
    }

    /// The probes of this moment, if it is time for any. What the last ones did not find out has failed.
    pub(super) fn ask(&mut self, now_ns: u64) -> Vec<Sent> {
        if self.next_ns().is_none_or(|next_ns| next_ns > now_ns) {
            return Vec::new();
        }
        self.next_ns = now_ns + self.interval_ns;
        self.open.clear();
        let asked: Vec<Asked> = self.states.keys().cloned().collect();
        let mut sent = Vec::new();
        for asked in asked {
            if self.states.get(&asked).is_some_and(|state| matches!(state.probe, Some((_, None)))) {
                self.conclude(&asked, false);
            }
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT).max(FIRST_PORT);
            let port = self.next_port;
            let Some(state) = self.states.get_mut(&asked) else { continue };
            state.probe = Some((port, None));
            let question = state.question;
            self.open.insert(port, asked);
            sent.extend(self.segment(&question, port, (Flags::Syn, 0, 0), &[]));
        }
        sent
    }

    /// Whether a packet is an answer to a probe.
    pub(super) fn is_answer(packet: &Packet) -> bool {
        packet.target == PROBES || packet.target == PROBES_V6
    }

    /// A node's answer to a probe: what is said to it.
    pub(super) fn hear(&mut self, frame: &[u8]) -> Option<Sent> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
        let port = tcp.destination_port();
        let asked = self.open.get(&port)?.clone();
        let question = self.states.get(&asked)?.question;
        if tcp.source_port() != question.port {
            return None;
        }
        if tcp.rst() {
            self.conclude(&asked, false);
            return None;
        }
        let heard = tcp.sequence_number();
        if tcp.syn() && tcp.ack() {
            let Some(path) = question.path else {
                self.conclude(&asked, true);
                return self.segment(&question, port, (Flags::Rst, 1, heard.wrapping_add(1)), &[]);
            };
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", question.node);
            return self.segment(&question, port, (Flags::Ack, 1, heard.wrapping_add(1)), request.as_bytes());
        }
        if tcp.payload().is_empty() {
            return None;
        }
        let good = tcp.payload().starts_with(b"HTTP/1.1 200 ") || tcp.payload().starts_with(b"HTTP/1.0 200 ");
        let acknowledged = heard.wrapping_add(tcp.payload().len() as u32);
        let said = tcp.acknowledgment_number().wrapping_sub(SEQUENCE);
        self.conclude(&asked, good);
        self.segment(&question, port, (Flags::Rst, said, acknowledged), &[])
    }

    /// A probe has an outcome.
    fn conclude(&mut self, asked: &Asked, good: bool) {
        let threshold = self.threshold;
        let Some(state) = self.states.get_mut(asked) else { return };
        match &mut state.probe {
            Some((_, outcome @ None)) => *outcome = Some(good),
            // Only the first answer counts.
            _ => return,
        }
        match state.healthy {
            None => (state.healthy, self.changed) = (Some(good), true),
            Some(is) if is == good => state.streak = 0,
            Some(_) => {
                state.streak += 1;
                if state.streak >= threshold {
                    (state.healthy, state.streak, self.changed) = (Some(good), 0, true);
                }
            }
        }
    }

    /// A segment to a node: flags, how much was said before, and what is acknowledged.
    fn segment(
        &self,
        question: &Question,
        port: u16,
        (flags, said, heard): (Flags, u32, u32),
        data: &[u8],
    ) -> Option<Sent> {
        let ethernet = PacketBuilder::ethernet2(self.mac.0, mac_of(question.node).0);
        let ip = match (question.node, PROBES, PROBES_V6) {
            (IpAddr::V4(node), IpAddr::V4(own), _) => ethernet.ipv4(own.octets(), node.octets(), HOPS),
            (IpAddr::V6(node), _, IpAddr::V6(own)) => ethernet.ipv6(own.octets(), node.octets(), HOPS),
            _ => return None,
        };
        let tcp = ip.tcp(port, question.port, SEQUENCE.wrapping_add(said), WINDOW);
        let tcp = match flags {
            Flags::Syn => tcp.syn(),
            Flags::Ack if data.is_empty() => tcp.ack(heard),
            Flags::Ack => tcp.ack(heard).psh(),
            Flags::Rst => tcp.ack(heard).rst(),
        };
        let mut frame = Vec::with_capacity(tcp.size(data.len()));
        tcp.write(&mut frame, data).ok()?;
        Some(Sent { place: question.place, frame })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flags {
    Syn,
    Ack,
    Rst,
}

/// The port at which a Service is asked for on every node, and for what; none if there is none.
fn question(service: &Service, probe: Probe) -> Option<(u16, Option<&'static str>)> {
    if let Some(port) = service.health_check_node_port {
        return Some((port, Some("/healthz")));
    }
    let port =
        service.ports.iter().filter(|port| port.protocol == Protocol::Tcp).find_map(|port| port.node_port)?;
    Some((port, (probe == Probe::Http).then_some("/")))
}
