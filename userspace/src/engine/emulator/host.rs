//! The network stack of a pod, a node or a host outside, as far as reachability needs one: it listens,
//! answers, and dials.
//!
//! A server keeps no state, so whatever it is sent has one answer. A client has one conversation at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use etherparse::checksum::Sum16BitWords;
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use super::message::{Body, Chunk, Ether, Fault, Flags, Message, Segment, Unreadable};
use crate::health;
use crate::model::Protocol;

/// The sequence number with which every client opens.
const CLIENT_SEQUENCE: u32 = 1000;
/// The sequence number with which every server answers.
const SERVER_SEQUENCE: u32 = 5000;
/// What clients say, and servers say back.
const QUESTION: &[u8] = b"podpath";
/// Source ports that clients use: the range that Linux takes (`ip_local_port_range`).
pub const CLIENT_PORTS: RangeInclusive<u16> = 32_768..=60_999;
/// Source ports that a node's own clients use: beyond those that stand for its pods, whose replies the path
/// keeps for itself. (A live node is told so by `ip_local_port_range`.)
pub const NODE_PORTS: RangeInclusive<u16> = 61_000..=u16::MAX;

/// A network stack.
#[derive(Clone, Debug)]
pub struct Host {
    /// `namespace/name` of a pod, `node:name`, `ext:name`.
    pub name: String,
    /// Its addresses: one, or one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its hardware address, which is called after the first.
    pub mac: Ether,
    /// Another hardware address of it: a node is its pods' gateway.
    pub other_mac: Option<Ether>,
    /// Where it answers.
    pub listeners: Listeners,
    /// What it answers by HTTP on these TCP ports, whatever it is asked.
    pub pages: BTreeMap<u16, String>,
    client: Option<Client>,
    ports: RangeInclusive<u16>,
    next_port: u16,
}

/// Where a host answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// On every port.
    All,
    /// On these ports of these protocols (number in the IP header).
    Some(BTreeSet<(u8, u16)>),
}

impl Listeners {
    fn answer(&self, protocol: u8, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Some(ports) => ports.contains(&(protocol, port)),
        }
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// A conversation with a port.
    Port(Protocol, u16),
    /// An ICMP echo.
    Ping,
}

/// How far a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was heard.
    Waiting,
    /// The connection is open, the question was not answered yet.
    Open,
    /// The question was answered.
    Answered,
    /// Refused at once.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    dial: Dial,
    remote: IpAddr,
    /// Its own port, or the identifier of its echo.
    port: u16,
    progress: Progress,
}

/// A packet that a host wants to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// To whom.
    pub target: IpAddr,
    /// What.
    pub body: Body,
}

/// Why a host made nothing of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// It is broken.
    Unreadable(Unreadable),
    /// Its hardware address is another's.
    NotItsMac,
    /// Its address is another's.
    NotItsAddress,
    /// It says that it comes from the very host that receives it.
    Martian,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unreadable(Unreadable::Malformed) => "headers that do not add up",
            Self::Unreadable(Unreadable::HeaderChecksum) => "a wrong checksum of the IP header",
            Self::Unreadable(Unreadable::BodyChecksum) => "a wrong checksum of the payload",
            Self::Unreadable(Unreadable::Fragment) => "a fragment",
            Self::NotItsMac => "another's hardware address",
            Self::NotItsAddress => "another's address",
            Self::Martian => "its own address as the source",
        })
    }
}

impl Host {
    /// A host that has not spoken yet.
    pub fn new(name: String, addresses: Vec<IpAddr>, listeners: Listeners) -> Self {
        let (ports, next_port) = (CLIENT_PORTS, *CLIENT_PORTS.start());
        Self {
            name,
            mac: addresses.first().copied().map(mac_of).unwrap_or_default(),
            addresses,
            other_mac: None,
            listeners,
            pages: BTreeMap::new(),
            client: None,
            ports,
            next_port,
        }
    }

    /// Its address of the same family as `other`.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4())
    }

    /// Speaks from these ports from now on, first from one that the seed says: runs with other seeds shall
    /// have other flows.
    pub fn speak_from(&mut self, ports: RangeInclusive<u16>, seed: u32) {
        let count = u32::from(ports.end() - ports.start()) + 1;
        self.next_port = ports.start() + (seed % count) as u16;
        self.ports = ports;
    }

    /// Speaks from the source ports that the same host would have used next.
    pub fn go_on_from(&mut self, before: &Self) {
        self.next_port = before.next_port;
    }

    /// Starts a conversation from the next source port.
    pub fn dial(&mut self, remote: IpAddr, dial: Dial) -> Outgoing {
        let port = self.next_port;
        self.next_port = if port == *self.ports.end() { *self.ports.start() } else { port + 1 };
        let client = Client { dial, remote, port, progress: Progress::Waiting };
        self.client = Some(client);
        Outgoing { target: remote, body: client.opening() }
    }

    /// How far the last conversation came.
    pub fn progress(&self) -> Progress {
        self.client.map_or(Progress::Waiting, |client| client.progress)
    }

    /// Whether it would answer itself.
    pub fn answers(&self, dial: Dial) -> bool {
        match dial {
            Dial::Ping => true,
            Dial::Port(protocol, port) => self.listeners.answer(protocol.number(), port),
        }
    }

    /// Takes a frame, and says what is to be sent because of it.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn receive(&mut self, frame: &[u8]) -> Result<Vec<Outgoing>, Refusal> {
        let message = self.read(frame)?;
        if let Some(client) = &mut self.client
            && let Some(bodies) = client.hear(&message)
        {
            let target = client.remote;
            return Ok(bodies.into_iter().map(|body| Outgoing { target, body }).collect());
        }
        let answer = self.serve(&message, frame);
        Ok(answer.map(|body| Outgoing { target: message.source, body }).into_iter().collect())
    }

    /// Reads a frame that is for this host.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn read(&self, frame: &[u8]) -> Result<Message, Refusal> {
        let message = Message::read(frame).map_err(Refusal::Unreadable)?;
        if message.to != self.mac && Some(message.to) != self.other_mac {
            return Err(Refusal::NotItsMac);
        }
        if !self.addresses.contains(&message.target) {
            return Err(Refusal::NotItsAddress);
        }
        if self.addresses.contains(&message.source) {
            return Err(Refusal::Martian);
        }
        Ok(message)
    }

    /// The answer of a server.
    fn serve(&self, message: &Message, frame: &[u8]) -> Option<Body> {
        match &message.body {
            Body::Tcp(segment) => self.serve_tcp(segment),
            Body::Sctp(chunk) => self.serve_sctp(chunk),
            Body::Udp { source_port, target_port, data } => {
                if self.listeners.answer(17, *target_port) {
                    let (source_port, target_port) = (*target_port, *source_port);
                    return Some(Body::Udp { source_port, target_port, data: data.clone() });
                }
                Some(Body::Error { fault: Fault::Port, quote: quote(&frame[14..]) })
            }
            Body::Echo { reply: false, identifier, sequence, data } => Some(Body::Echo {
                reply: true,
                identifier: *identifier,
                sequence: *sequence,
                data: data.clone(),
            }),
            Body::Echo { reply: true, .. } | Body::Error { .. } | Body::Other { .. } => None,
        }
    }

    fn serve_tcp(&self, segment: &Segment) -> Option<Body> {
        let flags = segment.flags;
        if flags.any(Flags::RST) {
            return None;
        }
        let length = segment.data.len() as u32 + u32::from(flags.any(Flags::SYN | Flags::FIN));
        let page = self.pages.get(&segment.target_port);
        let listens = page.is_some() || self.listeners.answer(6, segment.target_port);
        let (answer, sequence, data) = if !listens || flags == (Flags::SYN | Flags::ACK) {
            let sequence = if flags.any(Flags::ACK) { segment.acknowledged } else { 0 };
            (Flags::RST | Flags::ACK, sequence, Vec::new())
        } else if flags.any(Flags::SYN) {
            (Flags::SYN | Flags::ACK, SERVER_SEQUENCE, Vec::new())
        } else if flags.any(Flags::FIN) {
            (Flags::FIN | Flags::ACK, segment.acknowledged, Vec::new())
        } else if !segment.data.is_empty() {
            let answer = match page {
                Some(page) => page.as_bytes(),
                None if segment.data.starts_with(b"GET ") => health::FINE.as_bytes(),
                None => &segment.data,
            };
            (Flags::PSH | Flags::ACK, segment.acknowledged, answer.to_vec())
        } else {
            return None;
        };
        Some(Body::Tcp(Segment {
            source_port: segment.target_port,
            target_port: segment.source_port,
            flags: answer,
            sequence,
            acknowledged: segment.sequence.wrapping_add(length),
            data,
        }))
    }

    /// An association is opened and closed; data comes back. Nothing is ever lost, so nothing is acknowledged.
    fn serve_sctp(&self, chunk: &Chunk) -> Option<Body> {
        // No state is kept, so the tag is the client's if it says so, and else that of all clients here.
        let mut tag = CLIENT_SEQUENCE;
        if let Some(said) = chunk.value.first_chunk().filter(|_| chunk.kind == Chunk::INIT) {
            tag = u32::from_be_bytes(*said);
        }
        let (kind, value) = match chunk.kind {
            Chunk::ABORT | Chunk::SHUTDOWN_COMPLETE => return None,
            _ if !self.listeners.answer(Protocol::Sctp.number(), chunk.target_port) => {
                (Chunk::ABORT, Vec::new())
            }
            Chunk::INIT => {
                const COOKIE: [u8; 8] = [0, 7, 0, 8, 1, 2, 3, 4];
                (Chunk::INIT_ACK, [&Chunk::opening(SERVER_SEQUENCE, 1)[..], &COOKIE].concat())
            }
            Chunk::COOKIE_ECHO => (Chunk::COOKIE_ACK, Vec::new()),
            Chunk::DATA => (Chunk::DATA, chunk.value.clone()),
            Chunk::HEARTBEAT => (Chunk::HEARTBEAT_ACK, chunk.value.clone()),
            Chunk::SHUTDOWN => (Chunk::SHUTDOWN_ACK, Vec::new()),
            Chunk::SHUTDOWN_ACK => (Chunk::SHUTDOWN_COMPLETE, Vec::new()),
            _ => return None,
        };
        let (source_port, target_port) = (chunk.target_port, chunk.source_port);
        Some(Body::Sctp(Chunk { source_port, target_port, tag, kind, value }))
    }
}

impl Client {
    /// What it says first.
    fn opening(&self) -> Body {
        match self.dial {
            Dial::Ping => {
                Body::Echo { reply: false, identifier: self.port, sequence: 1, data: QUESTION.to_vec() }
            }
            Dial::Port(Protocol::Tcp, port) => self.segment(port, Flags::SYN, 0, &[]),
            Dial::Port(Protocol::Udp, port) => {
                Body::Udp { source_port: self.port, target_port: port, data: QUESTION.to_vec() }
            }
            Dial::Port(Protocol::Sctp, port) => {
                self.chunk(port, Chunk::INIT, Chunk::opening(CLIENT_SEQUENCE, 1))
            }
        }
    }

    fn chunk(&self, port: u16, kind: u8, value: Vec<u8>) -> Body {
        let tag = if kind == Chunk::INIT { 0 } else { SERVER_SEQUENCE };
        Body::Sctp(Chunk { source_port: self.port, target_port: port, tag, kind, value })
    }

    fn segment(&self, port: u16, flags: Flags, said: u32, data: &[u8]) -> Body {
        Body::Tcp(Segment {
            source_port: self.port,
            target_port: port,
            flags,
            sequence: CLIENT_SEQUENCE + said,
            acknowledged: if flags.any(Flags::ACK) { SERVER_SEQUENCE + 1 } else { 0 },
            data: data.to_vec(),
        })
    }

    /// Takes a message that belongs to the conversation, and says what it says next; `None` if it belongs
    /// to another.
    fn hear(&mut self, message: &Message) -> Option<Vec<Body>> {
        if let Body::Error { quote, .. } = &message.body {
            if self.quoted(message.target, quote) {
                self.progress = Progress::Refused;
                return Some(Vec::new());
            }
            return None;
        }
        if message.source != self.remote {
            return None;
        }
        match (&message.body, self.dial) {
            (Body::Tcp(segment), Dial::Port(Protocol::Tcp, port)) => {
                if (segment.source_port, segment.target_port) != (port, self.port) {
                    return None;
                }
                Some(self.hear_tcp(port, segment))
            }
            (Body::Sctp(chunk), Dial::Port(Protocol::Sctp, port)) => {
                if (chunk.source_port, chunk.target_port) != (port, self.port) {
                    return None;
                }
                Some(self.hear_sctp(port, chunk))
            }
            (Body::Udp { source_port, target_port, data }, Dial::Port(Protocol::Udp, port)) => {
                if (*source_port, *target_port) != (port, self.port) {
                    return None;
                }
                if data == QUESTION {
                    self.progress = Progress::Answered;
                }
                Some(Vec::new())
            }
            (Body::Echo { reply: true, identifier, data, .. }, Dial::Ping) if *identifier == self.port => {
                if data == QUESTION {
                    self.progress = Progress::Answered;
                }
                Some(Vec::new())
            }
            _ => None,
        }
    }

    fn hear_tcp(&mut self, port: u16, segment: &Segment) -> Vec<Body> {
        let opened =
            segment.flags == (Flags::SYN | Flags::ACK) && segment.acknowledged == CLIENT_SEQUENCE + 1;
        if segment.flags.any(Flags::RST) {
            self.progress = Progress::Refused;
        } else if opened && self.progress == Progress::Waiting {
            self.progress = Progress::Open;
            return vec![
                self.segment(port, Flags::ACK, 1, &[]),
                self.segment(port, Flags::PSH | Flags::ACK, 1, QUESTION),
            ];
        } else if segment.data == QUESTION && self.progress == Progress::Open {
            self.progress = Progress::Answered;
        }
        Vec::new()
    }

    fn hear_sctp(&mut self, port: u16, chunk: &Chunk) -> Vec<Body> {
        let question = Chunk::data(1, QUESTION);
        if chunk.tag != CLIENT_SEQUENCE {
            return Vec::new();
        }
        match (chunk.kind, self.progress) {
            (Chunk::ABORT, _) => self.progress = Progress::Refused,
            (Chunk::INIT_ACK, Progress::Waiting) => {
                // The cookie is the last of its parameters.
                let cookie = chunk.value.get(20..).unwrap_or_default().to_vec();
                return vec![self.chunk(port, Chunk::COOKIE_ECHO, cookie)];
            }
            (Chunk::COOKIE_ACK, Progress::Waiting) => {
                self.progress = Progress::Open;
                return vec![self.chunk(port, Chunk::DATA, question)];
            }
            (Chunk::DATA, Progress::Open) if chunk.value == question => self.progress = Progress::Answered,
            _ => {}
        }
        Vec::new()
    }

    /// Whether an ICMP error quotes the conversation's own packet, exactly as it was sent.
    fn quoted(&self, own: IpAddr, quote: &[u8]) -> bool {
        let Some((ends, number, rest)) = quoted(quote) else {
            return false;
        };
        let Dial::Port(protocol, port) = self.dial else {
            return false;
        };
        let [a, b, c, d, ..] = *rest else {
            return false;
        };
        number == protocol.number()
            && ends == (own, self.remote)
            && (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])) == (self.port, port)
    }
}

/// The ends and the protocol of a quoted packet with an intact header, and what follows the header.
fn quoted(quote: &[u8]) -> Option<((IpAddr, IpAddr), u8, &[u8])> {
    if let Ok(header) = Ipv4HeaderSlice::from_slice(quote) {
        let intact = Sum16BitWords::new().add_slice(header.slice()).ones_complement() == 0;
        let ends = (header.source_addr().into(), header.destination_addr().into());
        return intact.then_some((ends, header.protocol().0, &quote[header.slice().len()..]));
    }
    let header = Ipv6HeaderSlice::from_slice(quote).ok()?;
    let ends = (header.source_addr().into(), header.destination_addr().into());
    Some((ends, header.next_header().0, &quote[header.slice().len()..]))
}

/// As much of a packet as an ICMP error about it quotes: in IPv4 the header and eight bytes more (RFC 792),
/// in IPv6 all that fits into the smallest packet that every link takes (RFC 4443, section 3.1).
pub fn quote(packet: &[u8]) -> Vec<u8> {
    const LONGEST_V6: usize = 1280 - 40 - 8;
    let length = match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0xf) * 4 + 8,
        _ => LONGEST_V6,
    };
    packet[..length.min(packet.len())].to_vec()
}

/// The hardware address of the interface that carries `address`: `0a:58` and the address's last four bytes,
/// as the CNI plugins do.
pub fn mac_of(address: IpAddr) -> Ether {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let [.., a, b, c, d] = octets;
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of both families.
    fn host(last: u8, listeners: &[(u8, u16)]) -> Host {
        let listeners = Listeners::Some(listeners.iter().copied().collect());
        let addresses = vec![
            IpAddr::V4([10, 0, 0, last].into()),
            IpAddr::V6([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into()),
        ];
        Host::new(format!("h{last}"), addresses, listeners)
    }

    fn frame(from: &Host, to: &Host, outgoing: &Outgoing) -> Vec<u8> {
        let target = outgoing.target;
        let source = from.address_like(target).expect("it has both families");
        Message { from: from.mac, to: to.mac, source, target, ttl: 64, body: outgoing.body.clone() }
            .to_frame()
    }

    /// Lets two hosts speak until neither has more to say; how many frames it took.
    fn converse(client: &mut Host, (server, family): (&mut Host, usize), dial: Dial) -> usize {
        let mut to_server = vec![client.dial(server.addresses[family], dial)];
        let mut frames = 0;
        while !to_server.is_empty() {
            let mut to_client = Vec::new();
            for outgoing in to_server.drain(..) {
                frames += 1;
                to_client.extend(server.receive(&frame(client, server, &outgoing)).expect("is for it"));
            }
            for outgoing in to_client {
                frames += 1;
                to_server.extend(client.receive(&frame(server, client, &outgoing)).expect("is for it"));
            }
        }
        frames
    }

    #[test]
    fn a_client_talks_to_a_listener() {
        let mut server = host(2, &[(6, 80), (17, 53), (132, 7)]);
        for family in [0, 1] {
            for (dial, frames) in [
                (Dial::Port(Protocol::Tcp, 80), 5),
                (Dial::Port(Protocol::Udp, 53), 2),
                (Dial::Port(Protocol::Sctp, 7), 6),
                (Dial::Ping, 2),
            ] {
                let mut client = host(1, &[]);
                assert_eq!(converse(&mut client, (&mut server, family), dial), frames);
                assert_eq!(client.progress(), Progress::Answered, "{dial:?}");
            }
        }
    }

    #[test]
    fn where_nobody_listens_the_client_is_refused() {
        let mut server = host(2, &[(6, 80), (17, 53)]);
        for family in [0, 1] {
            for dial in
                [Dial::Port(Protocol::Tcp, 53), Dial::Port(Protocol::Udp, 80), Dial::Port(Protocol::Sctp, 80)]
            {
                let mut client = host(1, &[]);
                assert_eq!(converse(&mut client, (&mut server, family), dial), 2);
                assert_eq!(client.progress(), Progress::Refused, "{dial:?}");
            }
        }
    }

    #[test]
    fn what_is_for_another_is_not_taken() {
        let (mut client, mut server, other) = (host(1, &[]), host(2, &[]), host(3, &[]));
        for family in [0, 1] {
            let outgoing = client.dial(other.addresses[family], Dial::Ping);
            assert_eq!(server.receive(&frame(&client, &other, &outgoing)), Err(Refusal::NotItsMac));
            assert_eq!(server.receive(&frame(&client, &server, &outgoing)), Err(Refusal::NotItsAddress));
            let itself = server.dial(server.addresses[family], Dial::Ping);
            assert_eq!(server.receive(&frame(&server, &server, &itself)), Err(Refusal::Martian));
        }
    }

    #[test]
    fn an_error_quotes_what_its_family_asks_for() {
        let [v4, v6] = [0, 1].map(|family| {
            let (mut client, server) = (host(1, &[]), host(2, &[]));
            let outgoing = client.dial(server.addresses[family], Dial::Port(Protocol::Udp, 9));
            frame(&client, &server, &outgoing)[14..].to_vec()
        });
        assert_eq!(quote(&v4), v4[..28]);
        assert_eq!(quote(&v6), v6, "all of it");
        assert_eq!(quote(&[&v6[..], &[0; 2000]].concat()).len(), 1232);
    }

    #[test]
    fn source_ports_start_over_at_the_end_of_their_range() {
        let mut client = host(1, &[]);
        client.speak_from(7..=9, 5);
        let ports: Vec<u16> = (0..3)
            .map(|_| {
                match client.dial(std::net::Ipv4Addr::LOCALHOST.into(), Dial::Port(Protocol::Udp, 1)).body {
                    Body::Udp { source_port, .. } => source_port,
                    body => panic!("dialled UDP, said {body:?}"),
                }
            })
            .collect();
        assert_eq!(ports, [9, 7, 8]);
    }
}
