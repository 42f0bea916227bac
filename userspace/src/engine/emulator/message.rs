//! The frames that hosts make and read, with `etherparse`: nothing in here knows the path's own reader of
//! bytes, so that neither can hide a mistake of the other.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Type, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, NetSlice,
    SlicedPacket, TcpHeader, TransportSlice, UdpHeader, icmpv4, icmpv6,
};

/// The time to live that hosts give their packets.
pub const TTL: u8 = 64;

/// An Ethernet address.
pub type Ether = [u8; 6];

/// An IP packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender on the link.
    pub from: Ether,
    /// The receiver on the link.
    pub to: Ether,
    /// Source address.
    pub source: IpAddr,
    /// Target address, of the same family.
    pub target: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// What the packet carries.
    pub body: Body,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A TCP segment.
    Tcp(Segment),
    /// An SCTP packet of one chunk.
    Sctp(Chunk),
    /// A UDP datagram.
    Udp {
        /// Source port.
        source_port: u16,
        /// Target port.
        target_port: u16,
        /// Payload.
        data: Vec<u8>,
    },
    /// An ICMP echo, or the answer to one.
    Echo {
        /// This is the answer.
        reply: bool,
        /// Identifier: who asks.
        identifier: u16,
        /// Sequence number.
        sequence: u16,
        /// What is to come back.
        data: Vec<u8>,
    },
    /// An ICMP error.
    Error {
        /// What is wrong.
        fault: Fault,
        /// The start of the packet that it is wrong with, from its IP header on.
        quote: Vec<u8>,
    },
    /// Anything else.
    Other {
        /// As in the IP header.
        protocol: u8,
        /// All of it.
        data: Vec<u8>,
    },
}

/// What an ICMP error says (RFC 792, RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens on the port.
    Port,
    /// It could not be delivered, for the reason with this code, which is another's in the other family.
    Unreachable(u8),
    /// It is longer than so many bytes, and must not be cut.
    TooBig(u32),
    /// No hop was left.
    TimeExceeded,
}

/// A TCP segment without options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Source port.
    pub source_port: u16,
    /// Target port.
    pub target_port: u16,
    /// See [`Flags`].
    pub flags: Flags,
    /// Sequence number of the first byte, or of the flag.
    pub sequence: u32,
    /// The next sequence number the sender waits for.
    pub acknowledged: u32,
    /// Payload.
    pub data: Vec<u8>,
}

/// TCP's flags, as the header holds them (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Opens a connection.
    pub const SYN: Self = Self(0x02);
    /// Ends a connection at once.
    pub const RST: Self = Self(0x04);
    /// Hand the data over now.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment number counts.
    pub const ACK: Self = Self(0x10);
    /// The words for them, in the order that people write them.
    pub const WORDS: [(Self, &'static str); 6] = [
        (Self::SYN, "syn"),
        (Self::FIN, "fin"),
        (Self::RST, "rst"),
        (Self::PSH, "psh"),
        (Self::ACK, "ack"),
        (Self(0x20), "urg"),
    ];

    /// Both have a flag in common.
    pub fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A chunk of SCTP, and the header of its packet (RFC 9260, section 3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Source port.
    pub source_port: u16,
    /// Target port.
    pub target_port: u16,
    /// Verification tag: the receiver's; 0 of an INIT.
    pub tag: u32,
    /// Its type: one of [`Chunk::WORDS`], or another.
    pub kind: u8,
    /// What follows its length.
    pub value: Vec<u8>,
}

impl Chunk {
    /// User data.
    pub const DATA: u8 = 0;
    /// Opens an association.
    pub const INIT: u8 = 1;
    /// Answers [`Self::INIT`], with a cookie.
    pub const INIT_ACK: u8 = 2;
    /// Asks whether the other is there.
    pub const HEARTBEAT: u8 = 4;
    /// Answers [`Self::HEARTBEAT`].
    pub const HEARTBEAT_ACK: u8 = 5;
    /// Ends an association at once.
    pub const ABORT: u8 = 6;
    /// No more data from the sender.
    pub const SHUTDOWN: u8 = 7;
    /// Answers [`Self::SHUTDOWN`].
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Brings the cookie back.
    pub const COOKIE_ECHO: u8 = 10;
    /// Answers [`Self::COOKIE_ECHO`]: the association is open.
    pub const COOKIE_ACK: u8 = 11;
    /// Answers [`Self::SHUTDOWN_ACK`]: the association is over.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
    /// The words for them.
    pub const WORDS: [(u8, &'static str); 12] = [
        (Self::DATA, "data"),
        (Self::INIT, "init"),
        (Self::INIT_ACK, "init-ack"),
        (3, "sack"),
        (Self::HEARTBEAT, "heartbeat"),
        (Self::HEARTBEAT_ACK, "heartbeat-ack"),
        (Self::ABORT, "abort"),
        (Self::SHUTDOWN, "shutdown"),
        (Self::SHUTDOWN_ACK, "shutdown-ack"),
        (Self::COOKIE_ECHO, "cookie-echo"),
        (Self::COOKIE_ACK, "cookie-ack"),
        (Self::SHUTDOWN_COMPLETE, "shutdown-complete"),
    ];
    /// Bytes before a chunk's value: of the packet's header, and the chunk's own.
    const HEADERS: usize = 12 + 4;

    /// An INIT's value, or an INIT ACK's without its cookie: the sender's tag, a window of 65,536 bytes, one stream
    /// each way, and the first number of its data.
    pub fn opening(tag: u32, first: u32) -> Vec<u8> {
        [tag.to_be_bytes(), 65_536_u32.to_be_bytes(), [0, 1, 0, 1], first.to_be_bytes()].concat()
    }

    /// The value of a DATA chunk on stream 0: its number, the stream, its place there, no protocol, and the data.
    pub fn data(number: u32, data: &[u8]) -> Vec<u8> {
        [&number.to_be_bytes()[..], &[0; 8], data].concat()
    }

    fn to_bytes(&self) -> Vec<u8> {
        // A DATA chunk is all of its message.
        let flags = if self.kind == Self::DATA { 3 } else { 0 };
        let length = u16::try_from(4 + self.value.len()).expect("hosts send small packets");
        let [high, low] = length.to_be_bytes();
        let ports = [self.source_port.to_be_bytes(), self.target_port.to_be_bytes()].concat();
        let header = [&ports[..], &self.tag.to_be_bytes(), &[0; 4]].concat();
        let mut packet = [&header[..], &[self.kind, flags, high, low], &self.value].concat();
        packet.resize(packet.len().next_multiple_of(4), 0);
        let checksum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&checksum);
        packet
    }

    /// The first chunk of a packet. A checksum of 0 was left to a network card.
    fn read(packet: &[u8]) -> Result<Self, Unreadable> {
        let header: &[u8; Self::HEADERS] = packet.first_chunk().ok_or(Unreadable::Malformed)?;
        let [a, b, c, d, e, f, g, h, sum @ .., kind, _, high, low] = *header;
        let sum: [u8; 4] = sum;
        let unsealed = [&packet[..8], &[0; 4], &packet[12..]].concat();
        if sum != [0; 4] && sum != crc32c(&unsealed).to_le_bytes() {
            return Err(Unreadable::BodyChecksum);
        }
        let end = 12 + usize::from(u16::from_be_bytes([high, low]));
        let value = packet.get(Self::HEADERS..end).ok_or(Unreadable::Malformed)?;
        Ok(Self {
            source_port: u16::from_be_bytes([a, b]),
            target_port: u16::from_be_bytes([c, d]),
            tag: u32::from_be_bytes([e, f, g, h]),
            kind,
            value: value.to_vec(),
        })
    }
}

/// CRC32c, SCTP's checksum, bit by bit (RFC 9260, appendix A): Castagnoli's polynomial, bits reversed. In a packet its
/// lowest byte comes first.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| {
            let taken = if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            crc >> 1 ^ taken
        })
    })
}

/// Why a host made nothing of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unreadable {
    /// Not an IP packet, or one whose headers do not add up.
    Malformed,
    /// The IP header's checksum is wrong.
    HeaderChecksum,
    /// The checksum of TCP, UDP, SCTP or ICMP is wrong, or absent where it must not be (RFC 8200, section 8.1).
    BodyChecksum,
    /// A piece of a packet.
    Fragment,
}

/// The two ends of a packet.
#[derive(Clone, Copy)]
enum Ends {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

impl Ends {
    fn of(source: IpAddr, target: IpAddr) -> Self {
        match (source, target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => Self::V4(source.octets(), target.octets()),
            (IpAddr::V6(source), IpAddr::V6(target)) => Self::V6(source.octets(), target.octets()),
            _ => panic!(
                "{source} and {target} cannot be in one packet: hosts send from an address like the target"
            ),
        }
    }
}

impl Message {
    /// The frame, with all lengths and checksums right.
    pub fn to_frame(&self) -> Vec<u8> {
        let ends = Ends::of(self.source, self.target);
        let body = self.body.to_bytes(ends);
        let protocol = IpNumber(self.body.protocol(self.target));
        let length = u16::try_from(body.len()).expect("hosts send small packets");
        let (ether_type, header) = match ends {
            Ends::V4(source, target) => {
                let mut ip = Ipv4Header::new(length, self.ttl, protocol, source, target)
                    .expect("hosts send packets that fit");
                ip.header_checksum = ip.calc_header_checksum();
                (EtherType::IPV4, ip.to_bytes().to_vec())
            }
            Ends::V6(source, destination) => {
                let ip = Ipv6Header {
                    payload_length: length,
                    next_header: protocol,
                    hop_limit: self.ttl,
                    source,
                    destination,
                    ..Ipv6Header::default()
                };
                (EtherType::IPV6, ip.to_bytes().to_vec())
            }
        };
        let ethernet = Ethernet2Header { source: self.from, destination: self.to, ether_type };
        [&ethernet.to_bytes()[..], &header, &body].concat()
    }

    /// Reads a frame as a host's network stack does, and checks every checksum.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(frame: &[u8]) -> Result<Self, Unreadable> {
        let sliced = SlicedPacket::from_ethernet(frame).map_err(|_| Unreadable::Malformed)?;
        let (from, to) = match sliced.link {
            Some(etherparse::LinkSlice::Ethernet2(header)) => (header.source(), header.destination()),
            _ => return Err(Unreadable::Malformed),
        };
        let (ends, ttl, payload) = match &sliced.net {
            Some(NetSlice::Ipv4(packet)) => {
                let header = packet.header();
                if Sum16BitWords::new().add_slice(header.slice()).ones_complement() != 0 {
                    return Err(Unreadable::HeaderChecksum);
                }
                if header.is_fragmenting_payload() {
                    return Err(Unreadable::Fragment);
                }
                (Ends::V4(header.source(), header.destination()), header.ttl(), packet.payload())
            }
            Some(NetSlice::Ipv6(packet)) => {
                let header = packet.header();
                // 0 would be a jumbogram's (RFC 2675), which nobody sends here; the reader takes all for it.
                if header.payload_length() == 0 {
                    return Err(Unreadable::Malformed);
                }
                if packet.is_payload_fragmented() {
                    return Err(Unreadable::Fragment);
                }
                (Ends::V6(header.source(), header.destination()), header.hop_limit(), packet.payload())
            }
            _ => return Err(Unreadable::Malformed),
        };
        let body = match sliced.transport {
            Some(transport) => Body::read(&transport, ends)?,
            None if payload.ip_number == IpNumber::SCTP => Body::Sctp(Chunk::read(payload.payload)?),
            None => Body::Other { protocol: payload.ip_number.0, data: payload.payload.to_vec() },
        };
        let (source, target) = match ends {
            Ends::V4(source, target) => (source.into(), target.into()),
            Ends::V6(source, target) => (source.into(), target.into()),
        };
        Ok(Self { from, to, source, target, ttl, body })
    }
}

impl Body {
    /// Number of the protocol in an IP header of the target's family.
    pub fn protocol(&self, target: IpAddr) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp { .. } => 17,
            Self::Sctp(_) => IpNumber::SCTP.0,
            Self::Echo { .. } | Self::Error { .. } => icmp(target),
            Self::Other { protocol, .. } => *protocol,
        }
    }

    fn to_bytes(&self, ends: Ends) -> Vec<u8> {
        match self {
            Self::Tcp(segment) => segment.to_bytes(ends),
            Self::Sctp(chunk) => chunk.to_bytes(),
            Self::Udp { source_port, target_port, data } => {
                let length = u16::try_from(8 + data.len()).expect("hosts send small packets");
                let mut header = UdpHeader {
                    source_port: *source_port,
                    destination_port: *target_port,
                    length,
                    checksum: 0,
                };
                header.checksum = match ends {
                    Ends::V4(source, target) => header.calc_checksum_ipv4_raw(source, target, data),
                    Ends::V6(source, target) => header.calc_checksum_ipv6_raw(source, target, data),
                }
                .expect("hosts send small packets");
                [&header.to_bytes()[..], data].concat()
            }
            Self::Echo { reply, identifier, sequence, data } => {
                let header = etherparse::IcmpEchoHeader { id: *identifier, seq: *sequence };
                match (ends, *reply) {
                    (Ends::V4(..), true) => control(Icmpv4Type::EchoReply(header), data),
                    (Ends::V4(..), false) => control(Icmpv4Type::EchoRequest(header), data),
                    (Ends::V6(..), true) => control_v6(ends, Icmpv6Type::EchoReply(header), data),
                    (Ends::V6(..), false) => control_v6(ends, Icmpv6Type::EchoRequest(header), data),
                }
            }
            Self::Error { fault, quote } => fault.to_bytes(ends, quote),
            Self::Other { data, .. } => data.clone(),
        }
    }

    fn read(transport: &TransportSlice<'_>, ends: Ends) -> Result<Self, Unreadable> {
        let checked = |sound: bool| if sound { Ok(()) } else { Err(Unreadable::BodyChecksum) };
        match transport {
            TransportSlice::Tcp(segment) => {
                let sum = match ends {
                    Ends::V4(source, target) => segment.calc_checksum_ipv4(source, target),
                    Ends::V6(source, target) => segment.calc_checksum_ipv6(source, target),
                };
                checked(sum == Ok(segment.checksum()))?;
                Ok(Self::Tcp(Segment {
                    source_port: segment.source_port(),
                    target_port: segment.destination_port(),
                    flags: Flags(segment.slice()[13]),
                    sequence: segment.sequence_number(),
                    acknowledged: segment.acknowledgment_number(),
                    data: segment.payload().to_vec(),
                }))
            }
            TransportSlice::Udp(datagram) => {
                let (header, data) = (datagram.to_header(), datagram.payload());
                let sound = match ends {
                    Ends::V4(source, target) => {
                        header.checksum == 0
                            || header.calc_checksum_ipv4_raw(source, target, data) == Ok(header.checksum)
                    }
                    Ends::V6(source, target) => {
                        header.calc_checksum_ipv6_raw(source, target, data) == Ok(header.checksum)
                    }
                };
                checked(sound)?;
                let (source_port, target_port) = (header.source_port, header.destination_port);
                Ok(Self::Udp { source_port, target_port, data: data.to_vec() })
            }
            TransportSlice::Icmpv4(message) => {
                checked(Sum16BitWords::new().add_slice(message.slice()).ones_complement() == 0)?;
                Ok(control_read(message))
            }
            TransportSlice::Icmpv6(message) => {
                let Ends::V6(source, target) = ends else { return Err(Unreadable::Malformed) };
                checked(message.is_checksum_valid(source, target))?;
                Ok(control_v6_read(message))
            }
            TransportSlice::Igmp(message) => Ok(Self::Other { protocol: 2, data: message.slice().to_vec() }),
        }
    }
}

/// The number of ICMP in an IP header of this address's family.
fn icmp(address: IpAddr) -> u8 {
    if address.is_ipv4() { IpNumber::ICMP.0 } else { IpNumber::IPV6_ICMP.0 }
}

impl Fault {
    fn to_bytes(self, ends: Ends, quote: &[u8]) -> Vec<u8> {
        let (kind, code, rest) = match (ends, self) {
            (Ends::V4(..), Self::Port) => (3, icmpv4::CODE_DST_UNREACH_PORT, 0),
            (Ends::V4(..), Self::Unreachable(code)) => (3, code, 0),
            (Ends::V4(..), Self::TooBig(mtu)) => (3, icmpv4::CODE_DST_UNREACH_NEED_FRAG, mtu),
            (Ends::V4(..), Self::TimeExceeded) => (11, 0, 0),
            (Ends::V6(..), Self::Port) => (1, icmpv6::CODE_DST_UNREACH_PORT, 0),
            (Ends::V6(..), Self::Unreachable(code)) => (1, code, 0),
            (Ends::V6(..), Self::TooBig(mtu)) => (2, 0, mtu),
            (Ends::V6(..), Self::TimeExceeded) => (3, 0, 0),
        };
        let bytes5to8 = u32::to_be_bytes(rest);
        match ends {
            Ends::V4(..) => control(Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8 }, quote),
            Ends::V6(..) => {
                control_v6(ends, Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8 }, quote)
            }
        }
    }
}

fn control_read(message: &etherparse::Icmpv4Slice<'_>) -> Body {
    let data = message.payload().to_vec();
    let fault = match (message.type_u8(), message.code_u8()) {
        (3, icmpv4::CODE_DST_UNREACH_PORT) => Fault::Port,
        (3, icmpv4::CODE_DST_UNREACH_NEED_FRAG) => Fault::TooBig(u32::from_be_bytes(message.bytes5to8())),
        (3, code) => Fault::Unreachable(code),
        (11, 0) => Fault::TimeExceeded,
        _ => {
            return match message.icmp_type() {
                Icmpv4Type::EchoRequest(echo) => {
                    Body::Echo { reply: false, identifier: echo.id, sequence: echo.seq, data }
                }
                Icmpv4Type::EchoReply(echo) => {
                    Body::Echo { reply: true, identifier: echo.id, sequence: echo.seq, data }
                }
                _ => Body::Other { protocol: IpNumber::ICMP.0, data: message.slice().to_vec() },
            };
        }
    };
    Body::Error { fault, quote: data }
}

fn control_v6_read(message: &etherparse::Icmpv6Slice<'_>) -> Body {
    let data = message.payload().to_vec();
    let fault = match (message.type_u8(), message.code_u8()) {
        (1, icmpv6::CODE_DST_UNREACH_PORT) => Fault::Port,
        (1, code) => Fault::Unreachable(code),
        (2, 0) => Fault::TooBig(u32::from_be_bytes(message.bytes5to8())),
        (3, 0) => Fault::TimeExceeded,
        _ => {
            return match message.icmp_type() {
                Icmpv6Type::EchoRequest(echo) => {
                    Body::Echo { reply: false, identifier: echo.id, sequence: echo.seq, data }
                }
                Icmpv6Type::EchoReply(echo) => {
                    Body::Echo { reply: true, identifier: echo.id, sequence: echo.seq, data }
                }
                _ => Body::Other { protocol: IpNumber::IPV6_ICMP.0, data: message.slice().to_vec() },
            };
        }
    };
    Body::Error { fault, quote: data }
}

impl Segment {
    fn to_bytes(&self, ends: Ends) -> Vec<u8> {
        let mut header = TcpHeader::new(self.source_port, self.target_port, self.sequence, 64_240);
        header.acknowledgment_number = self.acknowledged;
        header.fin = self.flags.any(Flags::FIN);
        header.syn = self.flags.any(Flags::SYN);
        header.rst = self.flags.any(Flags::RST);
        header.psh = self.flags.any(Flags::PSH);
        header.ack = self.flags.any(Flags::ACK);
        header.urg = self.flags.any(Flags(0x20));
        header.checksum = match ends {
            Ends::V4(source, target) => header.calc_checksum_ipv4_raw(source, target, &self.data),
            Ends::V6(source, target) => header.calc_checksum_ipv6_raw(source, target, &self.data),
        }
        .expect("hosts send small packets");
        [&header.to_bytes()[..], &self.data].concat()
    }
}

fn control(kind: Icmpv4Type, data: &[u8]) -> Vec<u8> {
    let header = etherparse::Icmpv4Header::with_checksum(kind, data);
    [&header.to_bytes()[..], data].concat()
}

fn control_v6(ends: Ends, kind: Icmpv6Type, data: &[u8]) -> Vec<u8> {
    let Ends::V6(source, target) = ends else { panic!("ICMPv6 goes between IPv6 addresses") };
    let header = etherparse::Icmpv6Header::with_checksum(kind, source, target, data)
        .expect("hosts send small packets");
    [&header.to_bytes()[..], data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(source: &str, target: &str, body: Body) -> Message {
        let (from, to) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let address = |text: &str| text.parse().expect("an address");
        Message { from, to, source: address(source), target: address(target), ttl: 64, body }
    }

    fn messages() -> Vec<Message> {
        let bodies = vec![
            Body::Tcp(Segment {
                source_port: 40_000,
                target_port: 80,
                flags: Flags::PSH | Flags::ACK,
                sequence: 7,
                acknowledged: 9,
                data: b"odd".to_vec(),
            }),
            Body::Udp { source_port: 40_000, target_port: 53, data: b"question".to_vec() },
            Body::Echo { reply: false, identifier: 5, sequence: 1, data: b"abc".to_vec() },
            Body::Echo { reply: true, identifier: 5, sequence: 1, data: b"abc".to_vec() },
            Body::Error { fault: Fault::Port, quote: vec![0x45; 28] },
            Body::Error { fault: Fault::Unreachable(0), quote: vec![0x45; 28] },
            Body::Error { fault: Fault::TooBig(1400), quote: vec![0x45; 28] },
            Body::Error { fault: Fault::TimeExceeded, quote: vec![0x45; 28] },
            Body::Sctp(Chunk {
                source_port: 40_000,
                target_port: 80,
                tag: 7,
                kind: Chunk::DATA,
                value: Chunk::data(1, b"odd"),
            }),
            Body::Other { protocol: 47, data: vec![1; 20] },
        ];
        let both = bodies.into_iter().flat_map(|body| {
            [message("10.0.0.1", "10.0.0.2", body.clone()), message("fd00::1", "fd00::2", body)]
        });
        both.collect()
    }

    #[test]
    fn what_was_written_is_what_is_read() {
        for message in messages() {
            assert_eq!(Message::read(&message.to_frame()), Ok(message));
        }
    }

    #[test]
    fn a_flipped_bit_behind_the_ethernet_header_never_reads_as_the_same_message() {
        // IPv6's traffic class and flow label are covered by no checksum, and hosts do not look at them.
        let unread = 14 * 8 + 4..18 * 8;
        for message in messages() {
            let frame = message.to_frame();
            for bit in 14 * 8..frame.len() * 8 {
                if message.source.is_ipv6() && unread.contains(&bit) {
                    continue;
                }
                let mut broken = frame.clone();
                broken[bit / 8] ^= 1 << (7 - bit % 8);
                let read = Message::read(&broken);
                assert_ne!(read.as_ref(), Ok(&message), "bit {bit} of {message:?}");
            }
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_read_without_panic() {
        for message in messages() {
            let frame = message.to_frame();
            for length in 0..frame.len() {
                assert!(Message::read(&frame[..length]).is_err(), "{length} bytes of {message:?}");
            }
        }
    }

    #[test]
    fn the_checksum_of_sctp_is_castagnolis() {
        // The check value of CRC-32C, and the first of those in RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn an_sctp_checksum_may_be_left_to_a_network_card() {
        let body = Body::Sctp(Chunk { kind: Chunk::COOKIE_ACK, tag: 9, ..Chunk::default() });
        let mut frame = message("10.0.0.1", "10.0.0.2", body.clone()).to_frame();
        frame[14 + 20 + 8..14 + 20 + 12].fill(0);
        assert_eq!(Message::read(&frame).map(|message| message.body), Ok(body));
    }

    #[test]
    fn a_udp_packet_over_ipv6_needs_its_checksum() {
        let body = Body::Udp { source_port: 1, target_port: 2, data: Vec::new() };
        for (source, target, checksum, expected) in [
            ("10.0.0.1", "10.0.0.2", 14 + 20 + 6, None),
            ("fd00::1", "fd00::2", 14 + 40 + 6, Some(Unreadable::BodyChecksum)),
        ] {
            let mut frame = message(source, target, body.clone()).to_frame();
            frame[checksum..checksum + 2].fill(0);
            assert_eq!(Message::read(&frame).err(), expected);
        }
    }
}
