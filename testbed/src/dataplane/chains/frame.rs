//! Frames: read once, and rewritten where they lie.
//!
//! Of a frame only headers are looked at: a checksum is mended by the difference of what was changed (RFC 1624), so
//! one that came wrong leaves wrong, and a packet's price does not grow with its length but for the one copy into the
//! frame that leaves. What opens a connection is verified whole ([`Packet::is_sound`]), as conntrack does.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::sum::{ends, folded, mend, negated, raw_sum, sctp_checksum, sum, sum_icmp};

/// A hardware address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Bytes of the IP headers, without options.
pub(super) const HEADERS: [usize; 2] = [20, 40];

/// Bytes of SCTP's own header (RFC 9260, section 3.1).
const SCTP: usize = 12;

/// Transport bytes that an ICMP error quotes at least (RFC 792), and that have the ports.
const QUOTED: usize = 8;

/// An address of either family: IPv4 as IPv6 maps it (RFC 4291, section 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(u128);

impl Address {
    const MAPPED: u128 = 0xffff_0000_0000;

    /// Of IPv4.
    pub const fn v4(bits: u32) -> Self {
        Self(Self::MAPPED | bits as u128)
    }

    /// Of IPv6.
    pub const fn v6(bits: u128) -> Self {
        Self(bits)
    }

    /// Whether it is of IPv4.
    pub const fn is_v4(self) -> bool {
        self.0 >> 32 == Self::MAPPED >> 32
    }

    /// The address of IPv4.
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// All bits.
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::v4(address.to_bits()),
            IpAddr::V6(address) => Self::v6(address.to_bits()),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.to_bits())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            Ipv4Addr::from_bits(address.low()).into()
        } else {
            Ipv6Addr::from_bits(address.0).into()
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why bytes are no packet for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A header is cut off, or states what cannot be.
    #[error("malformed header")]
    Malformed,
    /// Neither IP nor ARP.
    #[error("neither IPv4, IPv6 nor ARP")]
    EtherType,
    /// A part of a packet; nothing here puts them together.
    #[error("a fragment")]
    Fragment,
    /// An IPv4 header's checksum is wrong.
    #[error("wrong checksum")]
    Checksum,
}

/// The two ends of a packet, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub target: Address,
    /// For ICMP the identifier in a request, else 0.
    pub source_port: u16,
    /// For ICMP the identifier in an answer, else 0.
    pub target_port: u16,
    /// As in the IP header.
    pub protocol: u8,
}

impl std::hash::Hash for Tuple {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.source.0);
        state.write_u128(self.target.0);
        let ports = u64::from(self.source_port) << 16 | u64::from(self.target_port);
        state.write_u64(ports << 8 | u64::from(self.protocol));
    }
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

/// Multiplies what it is given (Knuth, volume 3, section 6.4): nobody who could choose tuples to collide sends here.
#[derive(Clone, Copy, Default)]
pub struct Multiplied(u64);

/// Tables whose keys are addresses or tuples.
pub(super) type Fast = BuildHasherDefault<Multiplied>;

impl Hasher for Multiplied {
    fn finish(&self) -> u64 {
        // The upper bits are the good ones, and the table looks at both ends.
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u128(&mut self, words: u128) {
        self.write_u64((words >> 64) as u64 ^ (words as u64).rotate_left(17));
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
    Sctp,
    /// An ICMP request, or the answer to one.
    Echo,
    /// An ICMP error about a packet with this tuple.
    Error(Tuple),
    /// ICMP that is neither.
    Message,
    /// Another protocol.
    Other,
}

/// Where the parts of a packet are in its frame, and what they say.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Its two ends, as they were read.
    pub tuple: Tuple,
    /// What it is.
    pub kind: Kind,
    /// Hops that it may still take.
    pub hops: u8,
    /// It must not be cut.
    pub whole: bool,
    /// Where its IP header begins in the frame.
    at: usize,
    /// Where its transport header begins.
    transport: usize,
    /// Where it ends.
    end: usize,
}

/// Numbers of protocols (IANA).
pub(super) mod protocol {
    pub(in super::super) const ICMP: u8 = 1;
    pub(in super::super) const TCP: u8 = 6;
    pub(in super::super) const UDP: u8 = 17;
    pub(in super::super) const ICMP_V6: u8 = 58;
    pub(in super::super) const SCTP: u8 = 132;
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn longest(bytes: &[u8], at: usize) -> Option<u128> {
    Some(u128::from_be_bytes(bytes.get(at..at + 16)?.try_into().ok()?))
}

/// An IP header.
struct Header {
    source: Address,
    target: Address,
    protocol: u8,
    hops: u8,
    whole: bool,
    /// Bytes to the transport header, and to the end of the packet as it says.
    length: usize,
    total: usize,
}

impl Header {
    /// Reads the header at the beginning of `bytes`, which a quotation may have cut off after some of its payload.
    fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::v4(bytes).ok_or(Unreadable::Malformed)?,
            Some(6) => Self::v6(bytes).ok_or(Unreadable::Malformed)?,
            _ => Err(Unreadable::Malformed),
        }
    }

    fn v4(bytes: &[u8]) -> Option<Result<Self, Unreadable>> {
        let length = usize::from(bytes[0] & 15) * 4;
        let header = bytes.get(..length).filter(|_| length >= HEADERS[0])?;
        let total = usize::from(word(header, 2)?);
        let pieces = word(header, 6)?;
        if total < length {
            return None;
        }
        if pieces & 0x3fff != 0 {
            return Some(Err(Unreadable::Fragment));
        }
        Some(Ok(Self {
            source: Address::v4(long(header, 12)?),
            target: Address::v4(long(header, 16)?),
            protocol: header[9],
            hops: header[8],
            whole: pieces & 0x4000 != 0,
            length,
            total,
        }))
    }

    fn v6(bytes: &[u8]) -> Option<Result<Self, Unreadable>> {
        let header = bytes.get(..HEADERS[1])?;
        let total = HEADERS[1] + usize::from(word(header, 4)?);
        let (mut protocol, mut length) = (header[6], HEADERS[1]);
        // Hop-by-hop options, routing, destination options (RFC 8200, section 4).
        while matches!(protocol, 0 | 43 | 60) {
            let next = bytes.get(length..length + 8)?;
            protocol = next[0];
            length += 8 + usize::from(next[1]) * 8;
        }
        if protocol == 44 {
            return Some(Err(Unreadable::Fragment));
        }
        (length <= total).then_some(())?;
        Some(Ok(Self {
            source: Address::v6(longest(header, 8)?),
            target: Address::v6(longest(header, 24)?),
            protocol,
            hops: header[7],
            whole: true,
            length,
            total,
        }))
    }

    fn between(&self, source_port: u16, target_port: u16) -> Tuple {
        let Self { source, target, protocol, .. } = *self;
        Tuple { source, target, source_port, target_port, protocol }
    }
}

impl Packet {
    /// Reads the packet whose IP header is at this place of a frame; bytes after its end are left out.
    ///
    /// # Errors
    /// It is not whole, or not right.
    pub fn read(frame: &[u8], at: usize) -> Result<Self, Unreadable> {
        let bytes = frame.get(at..).ok_or(Unreadable::Malformed)?;
        let header = Header::read(bytes)?;
        if header.source.is_v4() && sum(&bytes[..header.length]) != 0 {
            return Err(Unreadable::Checksum);
        }
        let packet = bytes.get(..header.total).ok_or(Unreadable::Malformed)?;
        let (tuple, kind) = read_transport(&header, &packet[header.length..]).ok_or(Unreadable::Malformed)?;
        Ok(Self {
            tuple,
            kind,
            hops: header.hops,
            whole: header.whole,
            at,
            transport: at + header.length,
            end: at + header.total,
        })
    }

    /// Bytes of the IP packet.
    pub fn length(&self) -> usize {
        self.end - self.at
    }

    /// The IP packet.
    pub fn bytes<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[self.at..self.end]
    }

    /// What follows its IP header.
    pub(super) fn transport<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[self.transport..self.end]
    }

    /// What follows its UDP header, and where in the frame that is.
    pub(super) fn udp_payload(&self) -> std::ops::Range<usize> {
        self.transport + 8..self.end
    }

    /// Whether its transport checksum is right, where it has one.
    pub fn is_sound(&self, frame: &[u8]) -> bool {
        let payload = &frame[self.transport..self.end];
        match self.tuple.protocol {
            protocol::ICMP if self.tuple.source.is_v4() => sum(payload) == 0,
            protocol::UDP if self.tuple.source.is_v4() && word(payload, 6) == Some(0) => true,
            protocol::TCP | protocol::UDP | protocol::ICMP_V6 => {
                let words = folded(ends(&self.tuple) + u64::from(self.tuple.protocol) + payload.len() as u64);
                folded(u64::from(words) + raw_sum(payload)) == 0xffff
            }
            protocol::SCTP => payload.get(8..SCTP) == Some(&sctp_checksum(payload)),
            _ => true,
        }
    }

    /// The same packet in another frame, where its IP header is at another place.
    pub fn moved(self, to: usize) -> Self {
        let moved = |place: usize| place - self.at + to;
        Self { at: to, transport: moved(self.transport), end: moved(self.end), ..self }
    }

    /// Gives it the ends of `to` in its frame.
    pub fn readdress(&mut self, frame: &mut [u8], to: Tuple) {
        let from = std::mem::replace(&mut self.tuple, to);
        if from == to {
            return;
        }
        let addresses = ends(&to) + negated(ends(&from));
        let ports = u64::from(to.source_port)
            + u64::from(to.target_port)
            + u64::from(!from.source_port)
            + u64::from(!from.target_port);
        write_ends(&mut frame[self.at..], &to, addresses);
        let payload = &mut frame[self.transport..self.end];
        match (self.kind, to.protocol) {
            (Kind::Tcp { .. }, _) => {
                write_ports(payload, &to);
                mend(payload, 16, addresses + ports);
            }
            (Kind::Udp, _) => {
                write_ports(payload, &to);
                // 0 is no checksum, and stays none; a sum of 0 is written as its other form (RFC 768).
                if word(payload, 6) != Some(0) {
                    mend(payload, 6, addresses + ports);
                    if word(payload, 6) == Some(0) {
                        payload[6..8].fill(0xff);
                    }
                }
            }
            // Its checksum does not cover addresses.
            (Kind::Sctp, _) if (from.source_port, from.target_port) != (to.source_port, to.target_port) => {
                write_ports(payload, &to);
                let sum = sctp_checksum(payload);
                payload[8..SCTP].copy_from_slice(&sum);
            }
            (Kind::Echo, of) => {
                payload[4..6].copy_from_slice(&(to.source_port | to.target_port).to_be_bytes());
                mend(payload, 2, if of == protocol::ICMP { ports } else { addresses + ports });
            }
            (_, protocol::ICMP_V6) => mend(payload, 2, addresses),
            _ => {}
        }
    }

    /// For an ICMP error: gives it these addresses, and `quoted` as the ends of the packet that it is about.
    pub fn readdress_error(&mut self, frame: &mut [u8], ends_of: (Address, Address), quoted: Tuple) {
        let from = self.tuple;
        (self.tuple.source, self.tuple.target) = ends_of;
        write_ends(&mut frame[self.at..], &self.tuple, ends(&self.tuple) + negated(ends(&from)));
        let payload = &mut frame[self.transport..self.end];
        let quote = &mut payload[8..];
        // What is quoted was read: it has a whole header, and ports.
        let (Ok(header), Kind::Error(before)) = (Header::read(quote), self.kind) else { return };
        let addresses = ends(&quoted) + negated(ends(&before));
        write_ends(quote, &quoted, addresses);
        let inner = &mut quote[header.length..];
        let ports = u64::from(quoted.source_port)
            + u64::from(quoted.target_port)
            + u64::from(!before.source_port)
            + u64::from(!before.target_port);
        // The quoted checksum was computed over more than may be quoted: it can only be mended by difference.
        match quoted.protocol {
            protocol::ICMP | protocol::ICMP_V6 => {
                inner[4..6].copy_from_slice(&(quoted.source_port | quoted.target_port).to_be_bytes());
                mend(inner, 2, if quoted.protocol == protocol::ICMP { ports } else { addresses + ports });
            }
            protocol::TCP => {
                write_ports(inner, &quoted);
                mend(inner, 16, addresses + ports);
            }
            protocol::UDP => {
                write_ports(inner, &quoted);
                if word(inner, 6) != Some(0) {
                    mend(inner, 6, addresses + ports);
                }
            }
            protocol::SCTP => {
                write_ports(inner, &quoted);
                // That of SCTP cannot: it is that of what is quoted, if it is quoted itself.
                if inner.len() >= SCTP && before != quoted {
                    let sum = sctp_checksum(inner);
                    inner[8..SCTP].copy_from_slice(&sum);
                }
            }
            _ => {}
        }
        sum_icmp(payload, &self.tuple);
        self.kind = Kind::Error(quoted);
    }

    /// Its differentiated services and ECN.
    pub(super) fn class(&self, frame: &[u8]) -> u8 {
        match (self.tuple.source.is_v4(), frame[self.at], frame[self.at + 1]) {
            (true, _, class) => class,
            (false, first, second) => first << 4 | second >> 4,
        }
    }

    /// Gives it others.
    pub(super) fn set_class(&self, frame: &mut [u8], class: u8) {
        let header = &mut frame[self.at..];
        if self.tuple.source.is_v4() {
            let before = u64::from(header[1]);
            header[1] = class;
            mend(header, 10, u64::from(class) + negated(before));
        } else {
            header[0] = header[0] & 0xf0 | class >> 4;
            header[1] = header[1] & 0x0f | class << 4;
        }
    }

    /// Takes a hop off.
    pub fn take_hop(&mut self, frame: &mut [u8]) {
        self.hops = self.hops.saturating_sub(1);
        let header = &mut frame[self.at..];
        if self.tuple.source.is_v4() {
            let before = word(header, 8).unwrap_or_default();
            header[8] = self.hops;
            let after = word(header, 8).unwrap_or_default();
            mend(header, 10, u64::from(after) + u64::from(!before));
        } else {
            header[7] = self.hops;
        }
    }
}

/// Reads what follows the IP header.
fn read_transport(header: &Header, payload: &[u8]) -> Option<(Tuple, Kind)> {
    let ports = || Some(header.between(word(payload, 0)?, word(payload, 2)?));
    match header.protocol {
        protocol::TCP => {
            let offset = usize::from(payload.get(12)? >> 4) * 4;
            (offset >= 20 && offset <= payload.len()).then_some(())?;
            let flags = payload[13];
            let has = |bit: u8| flags & bit != 0;
            Some((ports()?, Kind::Tcp { fin: has(1), syn: has(2), rst: has(4), ack: has(16) }))
        }
        protocol::UDP => {
            let length = usize::from(word(payload, 4)?);
            (payload.len() >= 8 && (8..=payload.len()).contains(&length)).then_some(())?;
            Some((ports()?, Kind::Udp))
        }
        protocol::SCTP => {
            (payload.len() >= SCTP).then_some(())?;
            Some((ports()?, Kind::Sctp))
        }
        protocol::ICMP if header.source.is_v4() => read_icmp(header, payload, ((8, 0), &[3, 4, 5, 11, 12])),
        protocol::ICMP_V6 if !header.source.is_v4() => {
            read_icmp(header, payload, ((128, 129), &[1, 2, 3, 4]))
        }
        _ => Some((header.between(0, 0), Kind::Other)),
    }
}

/// Reads an ICMP message, of which these types are an echo's request and answer, and these are errors.
fn read_icmp(
    header: &Header,
    message: &[u8],
    ((request, answer), errors): ((u8, u8), &[u8]),
) -> Option<(Tuple, Kind)> {
    let (kind, id) = (*message.first()?, word(message.get(..8)?, 4)?);
    if kind == request {
        return Some((header.between(id, 0), Kind::Echo));
    }
    if kind == answer {
        return Some((header.between(0, id), Kind::Echo));
    }
    let about = errors.contains(&kind).then(|| quoted(&message[8..])).flatten();
    Some((header.between(0, 0), about.map_or(Kind::Message, Kind::Error)))
}

/// The tuple of the packet that an ICMP error quotes.
fn quoted(quote: &[u8]) -> Option<Tuple> {
    let header = Header::read(quote).ok()?;
    let rest = quote.get(header.length..).filter(|rest| rest.len() >= QUOTED)?;
    let both = || Some(header.between(word(rest, 0)?, word(rest, 2)?));
    match (header.protocol, rest[0]) {
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => both(),
        (protocol::ICMP, 8) | (protocol::ICMP_V6, 128) => Some(header.between(word(rest, 4)?, 0)),
        (protocol::ICMP, 0) | (protocol::ICMP_V6, 129) => Some(header.between(0, word(rest, 4)?)),
        _ => None,
    }
}

/// Writes addresses into an IP header, whose checksum differs by so much then, if it has one.
fn write_ends(header: &mut [u8], to: &Tuple, difference: u64) {
    if to.source.is_v4() {
        header[12..16].copy_from_slice(&to.source.low().to_be_bytes());
        header[16..20].copy_from_slice(&to.target.low().to_be_bytes());
        mend(header, 10, difference);
    } else {
        header[8..24].copy_from_slice(&to.source.bits().to_be_bytes());
        header[24..40].copy_from_slice(&to.target.bits().to_be_bytes());
    }
}

fn write_ports(payload: &mut [u8], to: &Tuple) {
    payload[..2].copy_from_slice(&to.source_port.to_be_bytes());
    payload[2..4].copy_from_slice(&to.target_port.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_association_is_read_and_readdressed_and_a_broken_one_is_not_sound() {
        let mut init = [&[0x13, 0x88, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 4]].concat();
        let sum_of = sctp_checksum(&init);
        init[8..SCTP].copy_from_slice(&sum_of);
        let mut bytes =
            [&[0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 132, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2][..], &init].concat();
        let header = sum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&header.to_be_bytes());
        let mut packet = Packet::read(&bytes, 0).expect("it is sound");
        assert_eq!(packet.kind, Kind::Sctp);
        assert_eq!((packet.tuple.source_port, packet.tuple.target_port), (5000, 80));
        assert!(packet.is_sound(&bytes));
        let tuple = packet.tuple;
        packet.readdress(&mut bytes, Tuple { target_port: 8080, target: Address::v4(0x0a00_0003), ..tuple });
        let read = Packet::read(&bytes, 0).expect("its header is right");
        assert_eq!(read.tuple, packet.tuple);
        assert!(read.is_sound(&bytes));
        bytes[23] = 81;
        assert!(!Packet::read(&bytes, 0).expect("its header is right").is_sound(&bytes));
    }
}
