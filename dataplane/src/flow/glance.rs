//! The ends of a frame that is as almost all are, at the least cost.

use super::Flow;
use crate::platform::Packet;
use crate::wire::transport::{tcp, udp};
use crate::wire::{Address, Be16, Port, checksum, ethernet, ip};

/// The two ends of a packet, and no more than the load balancer and the path's short way want to know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends<A> {
    /// As [`super::Flow::source`].
    pub source: A,
    /// As [`super::Flow::target`].
    pub target: A,
    /// As [`super::Flow::source_port`].
    pub source_port: Port,
    /// As [`super::Flow::target_port`].
    pub target_port: Port,
    /// As [`super::Flow::protocol`].
    pub protocol: u8,
    /// TCP's flags; 0 for UDP.
    pub flags: u8,
    /// Differentiated services and ECN, as [`crate::header::class`] reads them.
    pub class: u8,
    /// As [`super::Flow::hops`].
    pub hops: u8,
    /// As [`super::Flow::error`].
    pub error: bool,
    /// As [`super::Flow::transport`].
    pub transport: usize,
    /// How many bytes follow the IP header, if it was glanced at.
    pub length: u16,
}

impl<A: Address> Ends<A> {
    /// The sum of its pseudo-header.
    #[inline(always)]
    pub fn pseudo_sum(&self) -> Be16 {
        checksum::pseudo(self.source, self.target, self.protocol, self.length)
    }

    /// As [`super::Flow::hash`].
    #[inline(always)]
    pub fn hash(&self, seed: u32) -> u32 {
        let target = (&self.target, self.target_port);
        super::hash((&self.source, self.source_port), target, self.protocol as u32, seed)
    }
}

impl<A: Address> Flow<A> {
    /// The flow of a frame of `length` bytes that was glanced at, as [`super::read`] reads it: but for the number that
    /// the sender gave the packet, which nobody asks of a whole one.
    #[inline(always)]
    pub fn of(ends: &Ends<A>, length: u32) -> Self {
        Self {
            sender: ends.source,
            source: ends.source,
            target: ends.target,
            source_port: ends.source_port,
            target_port: ends.target_port,
            protocol: ends.protocol,
            flags: ends.flags,
            hops: ends.hops,
            transport: ends.transport,
            end: ends.transport + ends.length as usize,
            length,
            ..Self::default()
        }
    }
}

/// Reads the ends of a frame that is as almost all are: a whole packet of TCP or UDP, right behind an IP header
/// without options. Whether it is; others, and broken ones, are for [`super::read`].
///
/// No more is made readable than is read: what follows TCP's headers lies in pages of its own, and to make it readable
/// is to copy the packet's head, which takes longer than the rest of the way.
#[inline(always)]
pub fn glance<A: Address>(packet: &mut impl Packet, ends: &mut Ends<A>) -> bool {
    glance_behind(packet, 0, ends)
}

/// The same of a frame that begins at `start`.
#[inline(always)]
pub fn glance_behind<A: Address>(packet: &mut impl Packet, start: usize, ends: &mut Ends<A>) -> bool {
    packet.pull((start + ethernet::LENGTH + A::HEADER + tcp::LENGTH) as u32);
    usual(packet, start, ends).unwrap_or(false)
}

/// Each header is read at once, because every read is checked.
#[inline(always)]
fn usual<A: Address>(packet: &impl Packet, start: usize, ends: &mut Ends<A>) -> Option<bool> {
    if packet.read::<Be16>(start + ethernet::TYPE)? != A::ETHERTYPE {
        return Some(false);
    }
    let network = start + ethernet::LENGTH;
    let (plain, length);
    if A::VERSION == 4 {
        let header: ip::Start = packet.read(network)?;
        let whole = header.fragment.host() & (ip::MORE_FRAGMENTS | ip::FRAGMENT_OFFSET) == 0;
        plain = header.version_length == ip::VERSION_4_PLAIN && whole;
        length = header.total_length.host() as usize;
        ends.class = header.class;
        ends.protocol = header.protocol;
        ends.hops = header.ttl;
    } else {
        let header: ip::v6::Start = packet.read(network)?;
        plain = header.version_class_label.host() >> 28 == 6;
        length = header.payload_length.host() as usize + A::HEADER;
        ends.class = (header.version_class_label.host() >> 20) as u8;
        ends.protocol = header.next_header;
        ends.hops = header.hop_limit;
    }
    let connection = ends.protocol == ip::protocol::TCP;
    if !plain || (!connection && ends.protocol != ip::protocol::UDP) {
        return Some(false);
    }
    let least = A::HEADER + if connection { tcp::LENGTH } else { udp::LENGTH };
    if network + length > packet.length() as usize || length < least {
        return Some(false);
    }
    let addresses: ip::Addresses<A> = packet.read(network + A::SOURCE)?;
    ends.source = addresses.source;
    ends.target = addresses.target;
    ends.transport = network + A::HEADER;
    ends.length = length.wrapping_sub(A::HEADER) as u16;
    if connection {
        let transport: tcp::Header = packet.read(network + A::HEADER)?;
        ends.source_port = transport.source_port;
        ends.target_port = transport.target_port;
        ends.flags = transport.flags;
    } else {
        let transport: udp::Header = packet.read(network + A::HEADER)?;
        ends.source_port = transport.source_port;
        ends.target_port = transport.target_port;
        ends.flags = 0;
    }
    Some(true)
}
