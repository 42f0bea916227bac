//! The ends of a frame that is as almost all are, at the least cost.

use crate::platform::Packet;
use crate::wire::transport::tcp;
use crate::wire::{Address, Be16, Port, ethernet, ip};

/// The two ends of a packet, and no more than the load balancer wants to know of it.
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
    /// As [`super::Flow::error`].
    pub error: bool,
    /// As [`super::Flow::transport`].
    pub transport: usize,
}

/// Reads the ends of a frame that is as almost all are: a whole packet of TCP or UDP, right behind an IP header
/// without options. Whether it is; others, and broken ones, are for [`super::read`].
#[inline(always)]
pub fn glance<A: Address>(packet: &mut impl Packet, ends: &mut Ends<A>) -> bool {
    usual(packet, ends).unwrap_or(false)
}

/// Each header is read at once, because every read is checked.
#[inline(always)]
fn usual<A: Address>(packet: &mut impl Packet, ends: &mut Ends<A>) -> Option<bool> {
    const START: usize = ethernet::LENGTH;
    if packet.read::<Be16>(ethernet::TYPE)? != A::ETHERTYPE {
        return Some(false);
    }
    let (plain, length);
    if A::VERSION == 4 {
        let header: ip::Start = packet.read(START)?;
        let whole = header.fragment.host() & (ip::MORE_FRAGMENTS | ip::FRAGMENT_OFFSET) == 0;
        plain = header.version_length == ip::VERSION_4_PLAIN && whole;
        length = header.total_length.host() as usize;
        ends.class = header.class;
        ends.protocol = header.protocol;
    } else {
        let header: ip::v6::Start = packet.read(START)?;
        plain = header.version_class_label.host() >> 28 == 6;
        length = header.payload_length.host() as usize + A::HEADER;
        ends.class = (header.version_class_label.host() >> 20) as u8;
        ends.protocol = header.next_header;
    }
    let connection = ends.protocol == ip::protocol::TCP;
    if !plain || (!connection && ends.protocol != ip::protocol::UDP) {
        return Some(false);
    }
    if START + length > packet.length() as usize || length < A::HEADER + tcp::LENGTH {
        return Some(false);
    }
    let addresses: ip::Addresses<A> = packet.read(START + A::SOURCE)?;
    // Of a short datagram not all of this is there.
    let transport: tcp::Header = packet.read(START + A::HEADER)?;
    ends.source = addresses.source;
    ends.target = addresses.target;
    ends.source_port = transport.source_port;
    ends.target_port = transport.target_port;
    ends.flags = if connection { transport.flags } else { 0 };
    ends.transport = START + A::HEADER;
    Some(true)
}
