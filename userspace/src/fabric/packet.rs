//! A frame's headers: where they are, what they say, and how to change them so that checksums stay as right,
//! or as wrong, as they were.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Slice, Ipv4HeaderSlice, Ipv6ExtensionSlice, Ipv6ExtensionsSlice, Ipv6HeaderSlice,
};

use super::Loss;

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;

/// TCP flags (RFC 9293, section 3.1).
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// The two ends of a flow, as one of its packets has them. Ports are 0 where the protocol has none. An echo
/// request has its identifier for a source port, the reply for a target port, so that one is the other's
/// reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Tuple {
    pub(super) protocol: u8,
    pub(super) source: (IpAddr, u16),
    pub(super) target: (IpAddr, u16),
}

impl Tuple {
    /// As a packet of the other direction has them.
    pub(super) fn reversed(self) -> Self {
        Self { source: self.target, target: self.source, ..self }
    }

    /// Whether ports mean something in its protocol.
    pub(super) fn has_ports(&self) -> bool {
        matches!(self.protocol, TCP | UDP | SCTP)
    }
}

/// Which part of a packet that was cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    /// All of it.
    Whole,
    /// The first part, with the transport header.
    First(u32),
    /// Another part.
    Later(u32),
}

/// An IP packet in a frame, or one that an ICMP error in it quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
    /// Of what comes after all IP headers.
    pub(super) protocol: u8,
    /// Time to live, or hop limit.
    pub(super) hops: u8,
    /// It must not be cut on its way: what the flag says, and every IPv6 packet.
    pub(super) whole_only: bool,
    pub(super) fragment: Fragment,
    /// Where the IP header begins.
    ip: usize,
    /// Where the transport header begins.
    transport: usize,
    /// Where the packet ends.
    end: usize,
    /// Both ports, or what stands for them; none if they are not in the frame.
    ports: Option<(u16, u16)>,
    tcp_flags: u8,
    icmp_type: Option<u8>,
    /// The packet that an ICMP error is about.
    pub(super) quoted: Option<Box<Packet>>,
}

/// An end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Target,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

impl Packet {
    /// The IP packet of a frame.
    ///
    /// # Errors
    /// [`Loss::Unreadable`]: it is none, its headers are impossible, or it ends before it should.
    pub(super) fn read(frame: &[u8]) -> Result<Self, Loss> {
        let link = Ethernet2Slice::from_slice_without_fcs(frame).map_err(|_| Loss::Unreadable)?;
        let packet = match link.ether_type() {
            EtherType::IPV4 => Self::version4(frame, ETHERNET, frame.len()),
            EtherType::IPV6 => Self::version6(frame, ETHERNET, frame.len()),
            _ => None,
        };
        let mut packet = packet.filter(|packet| packet.end <= frame.len()).ok_or(Loss::Unreadable)?;
        packet.read_transport(frame);
        packet.quoted = packet.quote(frame);
        Ok(packet)
    }

    /// An IPv4 header. What is quoted may end early, and have been counted down without its checksum.
    fn version4(frame: &[u8], ip: usize, end: usize) -> Option<Self> {
        let header = Ipv4HeaderSlice::from_slice(frame.get(ip..end)?).ok()?;
        let quoted = ip != ETHERNET;
        if !quoted && header.to_header().calc_header_checksum() != header.header_checksum() {
            return None;
        }
        let id = u32::from(header.identification());
        let transport = ip + header.slice().len();
        Some(Self {
            source: header.source_addr().into(),
            target: header.destination_addr().into(),
            protocol: header.protocol().0,
            hops: header.ttl(),
            whole_only: header.dont_fragment(),
            fragment: match (header.fragments_offset().value(), header.more_fragments()) {
                (0, false) => Fragment::Whole,
                (0, true) => Fragment::First(id),
                _ => Fragment::Later(id),
            },
            ip,
            transport,
            end: ip + usize::from(header.total_len()).max(header.slice().len()),
            ports: None,
            tcp_flags: 0,
            icmp_type: None,
            quoted: None,
        })
    }

    fn version6(frame: &[u8], ip: usize, end: usize) -> Option<Self> {
        let header = Ipv6HeaderSlice::from_slice(frame.get(ip..end)?).ok()?;
        let first = ip + header.slice().len();
        let last = first + usize::from(header.payload_length());
        let (extensions, protocol, rest, _) =
            Ipv6ExtensionsSlice::from_slice_lax(header.next_header(), &frame[first..last.min(end)]);
        let mut fragment = Fragment::Whole;
        for extension in extensions {
            if let Ipv6ExtensionSlice::Fragment(part) = extension {
                fragment = match (part.fragment_offset().value(), part.more_fragments()) {
                    (0, false) => Fragment::Whole,
                    (0, true) => Fragment::First(part.identification()),
                    _ => Fragment::Later(part.identification()),
                };
            }
        }
        Some(Self {
            source: header.source_addr().into(),
            target: header.destination_addr().into(),
            protocol: protocol.0,
            hops: header.hop_limit(),
            whole_only: true,
            fragment,
            ip,
            transport: last.min(end) - rest.len(),
            end: last,
            ports: None,
            tcp_flags: 0,
            icmp_type: None,
            quoted: None,
        })
    }

    /// Ports, flags and types, as far as they are in the frame.
    fn read_transport(&mut self, frame: &[u8]) {
        if matches!(self.fragment, Fragment::Later(_)) {
            return;
        }
        let bytes = frame.get(self.transport..self.end.min(frame.len())).unwrap_or_default();
        let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        match self.protocol {
            TCP | UDP | SCTP => {
                self.ports = word(0).zip(word(2));
                if self.protocol == TCP {
                    self.tcp_flags = bytes.get(13).copied().unwrap_or_default();
                }
            }
            ICMP | ICMPV6 => {
                self.icmp_type = bytes.first().copied();
                let request = if self.protocol == ICMP { 8 } else { 128 };
                let reply = if self.protocol == ICMP { 0 } else { 129 };
                self.ports = match self.icmp_type {
                    Some(kind) if kind == request => word(4).map(|id| (id, 0)),
                    Some(kind) if kind == reply => word(4).map(|id| (0, id)),
                    kind => kind.map(|_| (0, 0)),
                };
            }
            _ => self.ports = Some((0, 0)),
        }
    }

    /// What an ICMP error quotes (RFC 792, RFC 4443).
    fn quote(&self, frame: &[u8]) -> Option<Box<Self>> {
        let (at, end) = (self.transport + 8, self.end.min(frame.len()));
        let mut quoted = match (self.protocol, self.icmp_type?) {
            (ICMP, 3 | 4 | 5 | 11 | 12) => Self::version4(frame, at, end)?,
            (ICMPV6, 1..=4) => Self::version6(frame, at, end)?,
            _ => return None,
        };
        quoted.end = quoted.end.min(end);
        quoted.read_transport(frame);
        Some(Box::new(quoted))
    }

    /// Its flow, by its own ports; none if they are not in the frame.
    pub(super) fn tuple(&self) -> Option<Tuple> {
        self.ports.map(|ports| self.with_ports(ports))
    }

    /// Its flow, if these are its ports.
    pub(super) fn with_ports(&self, (source, target): (u16, u16)) -> Tuple {
        Tuple { protocol: self.protocol, source: (self.source, source), target: (self.target, target) }
    }

    /// Whether all of these TCP flags are set.
    pub(super) fn has(&self, flags: u8) -> bool {
        self.tcp_flags & flags == flags
    }

    /// Whether an ICMP error may be sent about it (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
    pub(super) fn deserves_error(&self) -> bool {
        let error = match (self.protocol, self.icmp_type) {
            (ICMP, Some(kind)) => !matches!(kind, 0 | 8 | 13 | 14),
            (ICMPV6, Some(kind)) => kind < 128,
            _ => false,
        };
        !error && !matches!(self.fragment, Fragment::Later(_)) && !self.source.is_unspecified()
    }

    /// The packet's bytes.
    pub(super) fn bytes<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.ip..self.end.min(frame.len())).unwrap_or_default()
    }

    /// Takes a hop off.
    pub(super) fn take_hop(&mut self, frame: &mut [u8]) {
        self.hops -= 1;
        if self.source.is_ipv4() {
            let protocol = frame[self.ip + 9];
            swap(frame, self.ip + 8, &[self.hops, protocol], &[self.ip + 10]);
        } else {
            frame[self.ip + 7] = self.hops;
        }
    }

    /// Gives one end another address, of the same family, and another port if its ports are in the frame.
    pub(super) fn rewrite(&mut self, frame: &mut [u8], side: Side, to: (IpAddr, u16)) {
        let transport = self.transport_checksum(frame);
        let (address, port) = to;
        let mut sums: Vec<Sum> = transport.into_iter().collect();
        if self.ports.is_some() && matches!(self.protocol, TCP | UDP) {
            let at = self.transport + if side == Side::Source { 0 } else { 2 };
            swap_all(frame, at, &port.to_be_bytes(), &sums);
            self.ports = self.ports.map(|(source, target)| match side {
                Side::Source => (port, target),
                Side::Target => (source, port),
            });
        }
        let (source, target) = match self.source {
            IpAddr::V4(_) => (self.ip + 12, self.ip + 16),
            IpAddr::V6(_) => (self.ip + 8, self.ip + 24),
        };
        if self.source.is_ipv4() {
            sums.push(Sum { at: self.ip + 10, never_zero: false });
        }
        let at = if side == Side::Source { source } else { target };
        match address {
            IpAddr::V4(address) => swap_all(frame, at, &address.octets(), &sums),
            IpAddr::V6(address) => swap_all(frame, at, &address.octets(), &sums),
        }
        match side {
            Side::Source => self.source = address,
            Side::Target => self.target = address,
        }
    }

    /// Gives one end of an ICMP error another address, and the quoted packet's opposite end the address and
    /// the port that it had when its sender sent it.
    pub(super) fn rewrite_error(&mut self, frame: &mut [u8], side: Side, to: (IpAddr, u16)) {
        if let Some(mut quoted) = self.quoted.take() {
            let end = self.end.min(frame.len());
            let before = sum(&frame[quoted.ip..end]);
            quoted.rewrite(frame, side.other(), to);
            let after = sum(&frame[quoted.ip..end]);
            adjust(frame, &Sum { at: self.transport + 2, never_zero: false }, before, after);
            self.quoted = Some(quoted);
        }
        self.rewrite(frame, side, to);
    }

    /// The checksum that covers addresses and ports, if it is in the frame and says anything.
    fn transport_checksum(&self, frame: &[u8]) -> Option<Sum> {
        if matches!(self.fragment, Fragment::Later(_)) {
            return None;
        }
        let at = self.transport
            + match self.protocol {
                TCP => 16,
                UDP => 6,
                ICMPV6 => 2,
                _ => return None,
            };
        let field = frame.get(at..at + 2).filter(|_| at + 2 <= self.end)?;
        // RFC 768: zero says that there is none.
        let none = self.protocol == UDP && field == [0, 0];
        (!none).then_some(Sum { at, never_zero: self.protocol == UDP })
    }
}

/// An Internet checksum in a frame.
#[derive(Clone, Copy, Debug)]
struct Sum {
    at: usize,
    /// Zero is written as its other form (RFC 768).
    never_zero: bool,
}

fn swap(frame: &mut [u8], at: usize, new: &[u8], sums: &[usize]) {
    let sums: Vec<Sum> = sums.iter().map(|at| Sum { at: *at, never_zero: false }).collect();
    swap_all(frame, at, new, &sums);
}

/// Writes other bytes, at an even distance from where the checksums begin, and corrects these.
fn swap_all(frame: &mut [u8], at: usize, new: &[u8], sums: &[Sum]) {
    let old = &mut frame[at..at + new.len()];
    let (before, after) = (sum(old), sum(new));
    old.copy_from_slice(new);
    for one in sums {
        adjust(frame, one, before, after);
    }
}

/// Equation 3 of RFC 1624: what a checksum becomes when a part of what it covers does.
fn adjust(frame: &mut [u8], field: &Sum, before: u16, after: u16) {
    let old = u16::from_be_bytes([frame[field.at], frame[field.at + 1]]);
    let mut new = !fold(u64::from(!old) + u64::from(!before) + u64::from(after));
    if field.never_zero && new == 0 {
        new = 0xffff;
    }
    frame[field.at..field.at + 2].copy_from_slice(&new.to_be_bytes());
}

/// The ones' complement sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match word {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    });
    fold(words.sum())
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
