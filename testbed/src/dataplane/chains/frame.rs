//! Frames: read with etherparse, rewritten with pnet.
//!
//! A packet is read once and rewritten once, at the end of its way. Checksums are verified when it is read
//! and then computed anew over the whole packet, where `dataplane` mends them by difference: two ways to
//! the same bytes. A packet that arrives broken is refused, because a new checksum would hide that.

use std::fmt;
use std::net::Ipv4Addr;

use etherparse::{
    ArpPacketSlice, EtherType, Ethernet2Header, Icmpv4Slice, IpNumber, Ipv4Header, Ipv4HeaderSlice,
    Ipv4Slice, TcpSlice, UdpHeader, UdpSlice,
};
use pnet::packet::icmp::{self, MutableIcmpPacket};
use pnet::packet::ipv4::{self, MutableIpv4Packet};
use pnet::packet::tcp::{self, MutableTcpPacket};
use pnet::packet::udp::{self, MutableUdpPacket};

/// A hardware address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = Ethernet2Header::LEN;

/// The UDP port of VXLAN, as the Linux kernel has it (RFC 7348 has 4789).
pub const VXLAN_PORT: u16 = 8472;

/// Bytes that VXLAN puts before a packet: Ethernet 14, its own 8, UDP 8, IPv4 20.
pub const VXLAN_OVERHEAD: u32 = 50;

/// Bytes of SCTP's own header (RFC 9260, section 3.1).
const SCTP: usize = 12;

/// Transport bytes that an ICMP error quotes at least (RFC 792), and that have the ports.
const QUOTED: usize = 8;

/// Why bytes are no packet for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A header is cut off, or states what cannot be.
    #[error("malformed header")]
    Malformed,
    /// Neither IPv4 nor ARP.
    #[error("neither IPv4 nor ARP")]
    EtherType,
    /// Neither TCP, UDP, SCTP nor ICMP.
    #[error("neither TCP, UDP, SCTP nor ICMP")]
    Protocol,
    /// A part of a packet; nothing here puts them together.
    #[error("a fragment")]
    Fragment,
    /// A checksum is wrong.
    #[error("wrong checksum")]
    Checksum,
}

/// The two ends of a packet, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// As in the IP header.
    pub protocol: u8,
    /// Where it comes from.
    pub source: Ipv4Addr,
    /// For ICMP the identifier in a request, else 0.
    pub source_port: u16,
    /// Where it goes.
    pub target: Ipv4Addr,
    /// For ICMP the identifier in an answer, else 0.
    pub target_port: u16,
}

impl Tuple {
    /// The tuple of an answer.
    pub fn inverse(self) -> Self {
        Self {
            source: self.target,
            source_port: self.target_port,
            target: self.source,
            target_port: self.source_port,
            ..self
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, source, source_port, target, target_port } = self;
        write!(f, "{protocol} {source}:{source_port} -> {target}:{target_port}")
    }
}

/// What a packet is, beyond its tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment with these flags.
    Tcp {
        /// Opens a connection.
        syn: bool,
        /// Acknowledges.
        ack: bool,
        /// Has no more to send.
        fin: bool,
        /// Gives up.
        rst: bool,
    },
    /// A datagram.
    Udp,
    /// Chunks of an association.
    Sctp {
        /// The first of them is an INIT.
        init: bool,
    },
    /// An ICMP request, or the answer to one.
    Echo,
    /// An ICMP error about a packet with this tuple.
    Error(Tuple),
}

/// A whole IPv4 packet, without its Ethernet header.
#[derive(Clone, Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    /// Length of the IP header.
    header: usize,
    /// Its two ends, as they were read.
    pub tuple: Tuple,
    /// What it is.
    pub kind: Kind,
    /// It must not be cut.
    pub whole: bool,
}

impl Packet {
    /// Reads a packet; bytes after its end (Ethernet's padding) are left out.
    ///
    /// # Errors
    /// It is not whole, not right, or not of a kind that is forwarded.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let packet = Ipv4Slice::from_slice(bytes).map_err(|_| Unreadable::Malformed)?;
        let header = packet.header();
        if header.to_header().calc_header_checksum() != header.header_checksum() {
            return Err(Unreadable::Checksum);
        }
        if packet.is_payload_fragmented() {
            return Err(Unreadable::Fragment);
        }
        let ends = (header.source_addr(), header.destination_addr());
        let (tuple, kind) = read_transport(ends, packet.payload_ip_number(), packet.payload().payload)?;
        let total = header.slice().len() + packet.payload().payload.len();
        Ok(Self {
            bytes: bytes[..total].to_vec(),
            header: header.slice().len(),
            tuple,
            kind,
            whole: header.dont_fragment(),
        })
    }

    /// Bytes of the IP packet.
    pub fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// Hops that it may still take.
    pub fn ttl(&self) -> u8 {
        self.bytes[8]
    }

    /// What follows its UDP header.
    pub fn udp_payload(&self) -> &[u8] {
        &self.bytes[self.header + UdpHeader::LEN..]
    }

    /// Gives it the ends of `to`, and takes off `hops`.
    pub fn rewrite(&mut self, to: Tuple, hops: u8) {
        let header = self.header;
        let payload = &mut self.bytes[header..];
        match self.kind {
            Kind::Tcp { .. } => {
                let mut segment = MutableTcpPacket::new(payload).expect("read saw a whole TCP header");
                segment.set_source(to.source_port);
                segment.set_destination(to.target_port);
                let sum = tcp::ipv4_checksum(&segment.to_immutable(), &to.source, &to.target);
                segment.set_checksum(sum);
            }
            Kind::Udp => {
                let mut datagram = MutableUdpPacket::new(payload).expect("read saw a whole UDP header");
                datagram.set_source(to.source_port);
                datagram.set_destination(to.target_port);
                // 0 is no checksum, and stays none; a sum of 0 is written as its other form (RFC 768).
                if datagram.get_checksum() != 0 {
                    let sum = udp::ipv4_checksum(&datagram.to_immutable(), &to.source, &to.target);
                    datagram.set_checksum(if sum == 0 { 0xffff } else { sum });
                }
            }
            Kind::Sctp { .. } => {
                payload[..2].copy_from_slice(&to.source_port.to_be_bytes());
                payload[2..4].copy_from_slice(&to.target_port.to_be_bytes());
                let sum = sctp_checksum(payload);
                payload[8..SCTP].copy_from_slice(&sum);
            }
            Kind::Error(_) => {}
            Kind::Echo => {
                payload[4..6].copy_from_slice(&(to.source_port | to.target_port).to_be_bytes());
                sum_icmp(payload);
            }
        }
        self.readdress((to.source, to.target), hops);
        self.tuple = to;
    }

    /// For an ICMP error: gives it these addresses and `quoted` as the ends of the packet it is about, and
    /// takes off `hops`.
    pub fn rewrite_error(&mut self, ends: (Ipv4Addr, Ipv4Addr), quoted: Tuple, hops: u8) {
        let payload = &mut self.bytes[self.header..];
        let quote = &mut payload[8..];
        let inner = usize::from(quote[0] & 15) * 4;
        // The quoted checksum was computed over more than is quoted: it can only be mended by difference.
        let at = match quoted.protocol {
            6 => Some(inner + 16),
            17 => Some(inner + 6),
            _ => None,
        };
        let before = words(&quote[12..20]).chain(words(&quote[inner..inner + 4])).collect::<Vec<_>>();
        let ports = [quoted.source_port, quoted.target_port];
        let addresses = [quoted.source.octets(), quoted.target.octets()].concat();
        quote[12..20].copy_from_slice(&addresses);
        if quoted.protocol == 1 {
            let id = quoted.source_port | quoted.target_port;
            quote[inner + 4..inner + 6].copy_from_slice(&id.to_be_bytes());
        } else {
            quote[inner..inner + 2].copy_from_slice(&ports[0].to_be_bytes());
            quote[inner + 2..inner + 4].copy_from_slice(&ports[1].to_be_bytes());
        }
        let after = words(&quote[12..20]).chain(words(&quote[inner..inner + 4])).collect::<Vec<_>>();
        if let Some(field) = at.and_then(|at| quote.get_mut(at..at + 2)) {
            let old = u16::from_be_bytes([field[0], field[1]]);
            if old != 0 {
                field.copy_from_slice(&mended(old, &before, &after).to_be_bytes());
            }
        }
        let mut header = MutableIpv4Packet::new(quote).expect("read saw a whole quoted header");
        let sum = ipv4::checksum(&header.to_immutable());
        header.set_checksum(sum);
        sum_icmp(payload);
        self.readdress(ends, hops);
    }

    /// The packet in a frame, given up.
    pub fn into_frame(self, from: Mac, to: Mac) -> Vec<u8> {
        framed(from, to, EtherType::IPV4, &[&self.bytes])
    }

    /// The packet in a tunnel from one node to another, given up.
    pub fn into_tunnel(self, vni: u32, macs: [Mac; 2], ends: [Ipv4Addr; 2]) -> Vec<u8> {
        let inner = framed(macs[0], macs[1], EtherType::IPV4, &[&self.bytes]);
        let vxlan = [(0x0800_0000_u32).to_be_bytes(), (vni << 8).to_be_bytes()].concat();
        // Flows take different paths, and one flow one path.
        let mut spread = u32::from(self.tuple.protocol);
        for word in [self.tuple.source.to_bits(), self.tuple.target.to_bits()] {
            spread = (spread ^ word).wrapping_mul(0x9e37_79b1);
        }
        let ports = u32::from(self.tuple.source_port) << 16 | u32::from(self.tuple.target_port);
        spread = (spread ^ ports).wrapping_mul(0x9e37_79b1) >> 18;
        let length = UdpHeader::LEN + vxlan.len() + inner.len();
        let udp = UdpHeader {
            source_port: 0xc000 | spread as u16,
            destination_port: VXLAN_PORT,
            length: length as u16,
            checksum: 0,
        };
        let [source, target] = ends.map(|end| end.octets());
        let mut ip = Ipv4Header::new(length as u16, 64, IpNumber::UDP, source, target)
            .expect("a frame of an interface's MTU fits an IPv4 packet");
        ip.dont_fragment = true;
        ip.header_checksum = ip.calc_header_checksum();
        framed(macs[0], macs[1], EtherType::IPV4, &[&ip.to_bytes(), &udp.to_bytes(), &vxlan, &inner])
    }

    /// The ICMP error about this packet, from `source` to whoever sent it. None about errors (RFC 1122,
    /// section 3.2.2).
    pub fn refusal(&self, source: Ipv4Addr, why: Icmp) -> Option<Packet> {
        if let Kind::Error(_) = self.kind {
            return None;
        }
        let quote = &self.bytes[..self.bytes.len().min(self.header + QUOTED)];
        let (kind, code, mtu) = match why {
            Icmp::PortUnreachable => (3, 3, 0),
            Icmp::TooBig(mtu) => (3, 4, mtu),
            Icmp::TimeExceeded => (11, 0, 0),
        };
        let mut icmp = vec![kind, code, 0, 0, 0, 0];
        icmp.extend_from_slice(&mtu.to_be_bytes());
        icmp.extend_from_slice(quote);
        sum_icmp(&mut icmp);
        let target = self.tuple.source;
        let mut ip = Ipv4Header::new(icmp.len() as u16, 64, IpNumber::ICMP, source.octets(), target.octets())
            .expect("a quote is short");
        ip.header_checksum = ip.calc_header_checksum();
        let tuple = Tuple { protocol: 1, source, source_port: 0, target, target_port: 0 };
        let bytes = [&ip.to_bytes()[..], &icmp].concat();
        Some(Packet {
            bytes,
            header: Ipv4Header::MIN_LEN,
            tuple,
            kind: Kind::Error(self.tuple),
            whole: false,
        })
    }

    /// New addresses, fewer hops, and the header's checksum.
    fn readdress(&mut self, (source, target): (Ipv4Addr, Ipv4Addr), hops: u8) {
        let mut header = MutableIpv4Packet::new(&mut self.bytes).expect("read saw a whole IPv4 header");
        header.set_source(source);
        header.set_destination(target);
        header.set_ttl(header.get_ttl().saturating_sub(hops));
        let sum = ipv4::checksum(&header.to_immutable());
        header.set_checksum(sum);
        (self.tuple.source, self.tuple.target) = (source, target);
    }
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Nobody listens: how `REJECT` refuses.
    PortUnreachable,
    /// It would have to be cut to this many bytes, and must not be (RFC 1191).
    TooBig(u16),
    /// Its hops are used up.
    TimeExceeded,
}

/// The answer to a pod that asks for a neighbour: `mac`, whatever address it asks for but its own. None to
/// what is no such question.
pub fn arp_answer(frame: &[u8], mac: Mac) -> Option<Vec<u8>> {
    let question = ArpPacketSlice::from_slice(frame.get(ETHERNET..)?).ok()?.to_packet();
    let question = question.try_eth_ipv4().ok()?;
    let (asker, asked) = (question.sender_ipv4, question.target_ipv4);
    if question.operation.0 != 1 || asker == asked || asker == [0; 4] {
        return None;
    }
    let mut answer = question;
    answer.operation.0 = 2;
    (answer.sender_mac, answer.sender_ipv4) = (mac, asked);
    (answer.target_mac, answer.target_ipv4) = (frame[6..12].try_into().ok()?, asker);
    Some(framed(mac, answer.target_mac, EtherType::ARP, &[&answer.to_bytes()]))
}

/// The packet inside a VXLAN datagram's payload, if it is of this network.
pub fn unwrapped(payload: &[u8], vni: u32) -> Result<&[u8], Unreadable> {
    let (header, inner) = payload.split_at_checked(8).ok_or(Unreadable::Malformed)?;
    let field = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if field(0) != 0x0800_0000 || field(4) >> 8 != vni {
        return Err(Unreadable::Malformed);
    }
    match inner.get(12..ETHERNET) {
        Some([8, 0]) => Ok(&inner[ETHERNET..]),
        Some(_) => Err(Unreadable::EtherType),
        None => Err(Unreadable::Malformed),
    }
}

fn framed(from: Mac, to: Mac, ether_type: EtherType, parts: &[&[u8]]) -> Vec<u8> {
    let header = Ethernet2Header { source: from, destination: to, ether_type };
    let mut frame = header.to_bytes().to_vec();
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

/// Reads what follows the IP header, and verifies its checksum.
fn read_transport(
    (source, target): (Ipv4Addr, Ipv4Addr),
    protocol: IpNumber,
    payload: &[u8],
) -> Result<(Tuple, Kind), Unreadable> {
    let between =
        |source_port, target_port| Tuple { protocol: protocol.0, source, source_port, target, target_port };
    match protocol {
        IpNumber::TCP => {
            let segment = TcpSlice::from_slice(payload).map_err(|_| Unreadable::Malformed)?;
            let sum = segment.calc_checksum_ipv4(source.octets(), target.octets());
            if sum != Ok(segment.checksum()) {
                return Err(Unreadable::Checksum);
            }
            let (syn, ack, fin, rst) = (segment.syn(), segment.ack(), segment.fin(), segment.rst());
            let tuple = between(segment.source_port(), segment.destination_port());
            Ok((tuple, Kind::Tcp { syn, ack, fin, rst }))
        }
        IpNumber::UDP => {
            let datagram = UdpSlice::from_slice(payload).map_err(|_| Unreadable::Malformed)?;
            let header = datagram.to_header();
            let sum = header.calc_checksum_ipv4_raw(source.octets(), target.octets(), datagram.payload());
            if header.checksum != 0 && sum != Ok(header.checksum) {
                return Err(Unreadable::Checksum);
            }
            Ok((between(header.source_port, header.destination_port), Kind::Udp))
        }
        IpNumber::SCTP => {
            let (header, chunks) = payload.split_at_checked(SCTP).ok_or(Unreadable::Malformed)?;
            let first = chunks.first().ok_or(Unreadable::Malformed)?;
            if header[8..] != sctp_checksum(payload) {
                return Err(Unreadable::Checksum);
            }
            let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
            Ok((between(port(0), port(2)), Kind::Sctp { init: *first == 1 }))
        }
        IpNumber::ICMP => {
            let message = Icmpv4Slice::from_slice(payload).map_err(|_| Unreadable::Malformed)?;
            if pnet::packet::util::checksum(payload, 1) != message.checksum() {
                return Err(Unreadable::Checksum);
            }
            let [high, low, ..] = message.bytes5to8();
            let id = u16::from_be_bytes([high, low]);
            match message.type_u8() {
                8 => Ok((between(id, 0), Kind::Echo)),
                0 => Ok((between(0, id), Kind::Echo)),
                3 | 4 | 11 | 12 => Ok((between(0, 0), Kind::Error(quoted(message.payload())?))),
                _ => Err(Unreadable::Protocol),
            }
        }
        _ => Err(Unreadable::Protocol),
    }
}

/// The tuple of the packet that an ICMP error quotes.
fn quoted(quote: &[u8]) -> Result<Tuple, Unreadable> {
    let header = Ipv4HeaderSlice::from_slice(quote).map_err(|_| Unreadable::Malformed)?;
    let rest = &quote[header.slice().len()..];
    let word = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    if rest.len() < QUOTED {
        return Err(Unreadable::Malformed);
    }
    let (source_port, target_port) = match (header.protocol(), rest[0]) {
        (IpNumber::TCP | IpNumber::UDP | IpNumber::SCTP, _) => (word(0), word(2)),
        (IpNumber::ICMP, 8) => (word(4), 0),
        (IpNumber::ICMP, 0) => (0, word(4)),
        _ => return Err(Unreadable::Protocol),
    };
    let (source, target) = (header.source_addr(), header.destination_addr());
    Ok(Tuple { protocol: header.protocol().0, source, source_port, target, target_port })
}

/// SCTP's checksum as it stands in the header: CRC32c of the whole packet, with zeros in the checksum's place. It does
/// not cover addresses. Source: RFC 9260, appendix A.
pub(super) fn sctp_checksum(packet: &[u8]) -> [u8; 4] {
    let bytes = packet.iter().enumerate();
    crc32c(bytes.map(|(at, byte)| if (8..SCTP).contains(&at) { 0 } else { *byte })).to_le_bytes()
}

/// Bit by bit, the lowest first (Castagnoli's polynomial, mirrored).
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}

fn sum_icmp(message: &mut [u8]) {
    let mut message = MutableIcmpPacket::new(message).expect("read saw a whole ICMP header");
    let sum = icmp::checksum(&message.to_immutable());
    message.set_checksum(sum);
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

/// A checksum after some of the words below it changed (RFC 1624, equation 3).
fn mended(sum: u16, before: &[u16], after: &[u16]) -> u16 {
    let mut total = u32::from(!sum);
    total += before.iter().map(|word| u32::from(!word)).sum::<u32>();
    total += after.iter().map(|word| u32::from(*word)).sum::<u32>();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_castagnoli_is_that_of_its_catalogue() {
        // The check value of CRC-32/ISCSI, which is the same sum.
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
    }

    #[test]
    fn an_association_is_read_and_rewritten_and_a_broken_one_refused() {
        let (source, target) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut init = [&[0x13, 0x88, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 4]].concat();
        let sum = sctp_checksum(&init);
        init[8..SCTP].copy_from_slice(&sum);
        let bytes = |chunks: &[u8]| {
            let mut ip =
                Ipv4Header::new(chunks.len() as u16, 64, IpNumber::SCTP, source.octets(), target.octets())
                    .expect("it is short");
            ip.header_checksum = ip.calc_header_checksum();
            [&ip.to_bytes()[..], chunks].concat()
        };
        let mut packet = Packet::read(&bytes(&init)).expect("it is sound");
        assert_eq!(packet.kind, Kind::Sctp { init: true });
        assert_eq!((packet.tuple.source_port, packet.tuple.target_port), (5000, 80));
        packet.rewrite(Tuple { target_port: 8080, ..packet.tuple }, 1);
        assert_eq!(Packet::read(&packet.bytes).expect("it is sound").tuple, packet.tuple);
        init[3] = 81;
        assert_eq!(Packet::read(&bytes(&init)).err(), Some(Unreadable::Checksum));
    }
}
