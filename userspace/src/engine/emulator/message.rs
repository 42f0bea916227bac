//! The frames that hosts make and read, with `etherparse`: nothing in here knows the path's own reader of
//! bytes, so that neither can hide a mistake of the other.

use std::net::Ipv4Addr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv4Type,
    IpNumber, Ipv4Header, NetSlice, SlicedPacket, TcpHeader, TransportSlice, UdpHeader, icmpv4,
};

/// The time to live that hosts give their packets.
pub const TTL: u8 = 64;

/// An Ethernet address.
pub type Ether = [u8; 6];

/// An IPv4 packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender on the link.
    pub from: Ether,
    /// The receiver on the link.
    pub to: Ether,
    /// Source address.
    pub source: Ipv4Addr,
    /// Target address.
    pub target: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// What the packet carries.
    pub body: Body,
}

/// What an IPv4 packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A TCP segment.
    Tcp(Segment),
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
    /// An ICMP message: the packet could not be delivered.
    Unreachable {
        /// 3: nobody listens on the port.
        code: u8,
        /// The start of that packet, from its IP header on.
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

/// Why a host made nothing of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unreadable {
    /// Not an IPv4 packet, or one whose headers do not add up.
    Malformed,
    /// The IP header's checksum is wrong.
    HeaderChecksum,
    /// The checksum of TCP, UDP or ICMP is wrong.
    BodyChecksum,
    /// A piece of a packet.
    Fragment,
}

impl Message {
    /// The frame, with all lengths and checksums right.
    pub fn to_frame(&self) -> Vec<u8> {
        let (source, target) = (self.source.octets(), self.target.octets());
        let (protocol, body) = self.body.to_bytes(source, target);
        let ethernet =
            Ethernet2Header { source: self.from, destination: self.to, ether_type: EtherType::IPV4 };
        let length = u16::try_from(body.len()).expect("hosts send small packets");
        let mut ip = Ipv4Header::new(length, self.ttl, IpNumber(protocol), source, target)
            .expect("hosts send packets that fit");
        ip.header_checksum = ip.calc_header_checksum();
        let mut frame = Vec::with_capacity(14 + 20 + body.len());
        frame.extend_from_slice(&ethernet.to_bytes());
        frame.extend_from_slice(&ip.to_bytes());
        frame.extend_from_slice(&body);
        frame
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
        let Some(NetSlice::Ipv4(packet)) = sliced.net else {
            return Err(Unreadable::Malformed);
        };
        let header = packet.header();
        if Sum16BitWords::new().add_slice(header.slice()).ones_complement() != 0 {
            return Err(Unreadable::HeaderChecksum);
        }
        if header.is_fragmenting_payload() {
            return Err(Unreadable::Fragment);
        }
        let (source, target) = (header.source(), header.destination());
        let body = match sliced.transport {
            Some(transport) => Body::read(&transport, source, target)?,
            None => Body::Other {
                protocol: packet.payload_ip_number().0,
                data: packet.payload().payload.to_vec(),
            },
        };
        Ok(Self { from, to, source: source.into(), target: target.into(), ttl: header.ttl(), body })
    }
}

impl Body {
    /// Number of the protocol in an IP header.
    pub fn protocol(&self) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp { .. } => 17,
            Self::Echo { .. } | Self::Unreachable { .. } => 1,
            Self::Other { protocol, .. } => *protocol,
        }
    }

    fn to_bytes(&self, source: [u8; 4], target: [u8; 4]) -> (u8, Vec<u8>) {
        let bytes = match self {
            Self::Tcp(segment) => segment.to_bytes(source, target),
            Self::Udp { source_port, target_port, data } => {
                let length = u16::try_from(8 + data.len()).expect("hosts send small packets");
                let mut header = UdpHeader {
                    source_port: *source_port,
                    destination_port: *target_port,
                    length,
                    checksum: 0,
                };
                header.checksum =
                    header.calc_checksum_ipv4_raw(source, target, data).expect("hosts send small packets");
                [&header.to_bytes()[..], data].concat()
            }
            Self::Echo { reply, identifier, sequence, data } => {
                let header = etherparse::IcmpEchoHeader { id: *identifier, seq: *sequence };
                let kind =
                    if *reply { Icmpv4Type::EchoReply(header) } else { Icmpv4Type::EchoRequest(header) };
                control(kind, data)
            }
            Self::Unreachable { code, quote } => {
                let kind = Icmpv4Type::Unknown { type_u8: 3, code_u8: *code, bytes5to8: [0; 4] };
                control(kind, quote)
            }
            Self::Other { data, .. } => data.clone(),
        };
        (self.protocol(), bytes)
    }

    fn read(transport: &TransportSlice<'_>, source: [u8; 4], target: [u8; 4]) -> Result<Self, Unreadable> {
        match transport {
            TransportSlice::Tcp(segment) => {
                if segment.calc_checksum_ipv4(source, target) != Ok(segment.checksum()) {
                    return Err(Unreadable::BodyChecksum);
                }
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
                let absent = header.checksum == 0;
                if !absent && header.calc_checksum_ipv4_raw(source, target, data) != Ok(header.checksum) {
                    return Err(Unreadable::BodyChecksum);
                }
                let (source_port, target_port) = (header.source_port, header.destination_port);
                Ok(Self::Udp { source_port, target_port, data: data.to_vec() })
            }
            TransportSlice::Icmpv4(message) => {
                if Sum16BitWords::new().add_slice(message.slice()).ones_complement() != 0 {
                    return Err(Unreadable::BodyChecksum);
                }
                let data = message.payload().to_vec();
                Ok(match message.icmp_type() {
                    Icmpv4Type::EchoRequest(echo) => {
                        Self::Echo { reply: false, identifier: echo.id, sequence: echo.seq, data }
                    }
                    Icmpv4Type::EchoReply(echo) => {
                        Self::Echo { reply: true, identifier: echo.id, sequence: echo.seq, data }
                    }
                    Icmpv4Type::DestinationUnreachable(kind) => {
                        Self::Unreachable { code: kind.code_u8(), quote: data }
                    }
                    _ => Self::Other { protocol: 1, data: message.slice().to_vec() },
                })
            }
            TransportSlice::Igmp(message) => Ok(Self::Other { protocol: 2, data: message.slice().to_vec() }),
            TransportSlice::Icmpv6(_) => Err(Unreadable::Malformed),
        }
    }
}

impl Segment {
    fn to_bytes(&self, source: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut header = TcpHeader::new(self.source_port, self.target_port, self.sequence, 64_240);
        header.acknowledgment_number = self.acknowledged;
        header.fin = self.flags.any(Flags::FIN);
        header.syn = self.flags.any(Flags::SYN);
        header.rst = self.flags.any(Flags::RST);
        header.psh = self.flags.any(Flags::PSH);
        header.ack = self.flags.any(Flags::ACK);
        header.urg = self.flags.any(Flags(0x20));
        header.checksum =
            header.calc_checksum_ipv4_raw(source, target, &self.data).expect("hosts send small packets");
        [&header.to_bytes()[..], &self.data].concat()
    }
}

fn control(kind: Icmpv4Type, data: &[u8]) -> Vec<u8> {
    let header = etherparse::Icmpv4Header::with_checksum(kind, data);
    [&header.to_bytes()[..], data].concat()
}

/// The two ends of an ARP question or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// This is the answer.
    pub reply: bool,
    /// Hardware address of the sender.
    pub sender_mac: Ether,
    /// Address of the sender.
    pub sender: Ipv4Addr,
    /// Hardware address of the target; zero in a question.
    pub target_mac: Ether,
    /// Address of the target.
    pub target: Ipv4Addr,
}

impl Arp {
    /// The frame: a question goes to everybody, an answer to who asked.
    pub fn to_frame(&self) -> Vec<u8> {
        let operation = if self.reply { ArpOperation::REPLY } else { ArpOperation::REQUEST };
        let packet: ArpPacket = ArpEthIpv4Packet {
            operation,
            sender_mac: self.sender_mac,
            sender_ipv4: self.sender.octets(),
            target_mac: self.target_mac,
            target_ipv4: self.target.octets(),
        }
        .into();
        let destination = if self.reply { self.target_mac } else { [0xff; 6] };
        let ethernet = Ethernet2Header { source: self.sender_mac, destination, ether_type: EtherType::ARP };
        [&ethernet.to_bytes()[..], &packet.to_bytes()].concat()
    }

    /// Reads a frame; `None` if it is no ARP for IPv4 over Ethernet.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let Some(NetSlice::Arp(slice)) = SlicedPacket::from_ethernet(frame).ok()?.net else {
            return None;
        };
        let packet = slice.to_packet();
        if packet.hw_addr_type != ArpHardwareId::ETHERNET {
            return None;
        }
        let packet = packet.try_eth_ipv4().ok()?;
        Some(Self {
            reply: packet.operation == ArpOperation::REPLY,
            sender_mac: packet.sender_mac,
            sender: packet.sender_ipv4.into(),
            target_mac: packet.target_mac,
            target: packet.target_ipv4.into(),
        })
    }
}

/// The code of [`Body::Unreachable`] for a port on which nobody listens.
pub const PORT_UNREACHABLE: u8 = icmpv4::CODE_DST_UNREACH_PORT;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: Body) -> Message {
        Message {
            from: [2, 0, 0, 0, 0, 1],
            to: [2, 0, 0, 0, 0, 2],
            source: Ipv4Addr::new(10, 0, 0, 1),
            target: Ipv4Addr::new(10, 0, 0, 2),
            ttl: 64,
            body,
        }
    }

    fn bodies() -> Vec<Body> {
        vec![
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
            Body::Unreachable { code: PORT_UNREACHABLE, quote: vec![0x45; 28] },
            Body::Other { protocol: 132, data: vec![1; 20] },
        ]
    }

    #[test]
    fn what_was_written_is_what_is_read() {
        for body in bodies() {
            let message = message(body);
            assert_eq!(Message::read(&message.to_frame()), Ok(message));
        }
    }

    #[test]
    fn a_flipped_bit_behind_the_ethernet_header_never_reads_as_the_same_message() {
        for body in bodies() {
            let message = message(body);
            let frame = message.to_frame();
            for bit in 14 * 8..frame.len() * 8 {
                let mut broken = frame.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(Message::read(&broken).as_ref(), Ok(&message), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_read_without_panic() {
        for body in bodies() {
            let frame = message(body).to_frame();
            for length in 0..frame.len() {
                assert!(Message::read(&frame[..length]).is_err(), "{length} bytes");
            }
        }
    }

    #[test]
    fn an_arp_question_and_its_answer_read_as_written() {
        for reply in [false, true] {
            let arp = Arp {
                reply,
                sender_mac: [2; 6],
                sender: Ipv4Addr::new(10, 0, 0, 1),
                target_mac: if reply { [3; 6] } else { [0; 6] },
                target: Ipv4Addr::new(169, 254, 1, 1),
            };
            assert_eq!(Arp::read(&arp.to_frame()), Some(arp));
        }
    }
}
