//! The ends of a frame that is as almost all are, at the least cost.

use crate::platform::Packet;
use crate::wire::transport::{self, tcp};
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

#[inline(always)]
fn usual<A: Address>(packet: &mut impl Packet, ends: &mut Ends<A>) -> Option<bool> {
    let start = ethernet::LENGTH;
    let behind = start + A::HEADER;
    if packet.read::<Be16>(ethernet::TYPE)? != A::ETHERTYPE {
        return Some(false);
    }
    let first: u8 = packet.read(start)?;
    let plain = if A::VERSION == 4 {
        let fragment: Be16 = packet.read(start + ip::FRAGMENT)?;
        let parts = Be16::new(ip::MORE_FRAGMENTS | ip::FRAGMENT_OFFSET);
        let stated: Be16 = packet.read(start + ip::TOTAL_LENGTH)?;
        first == ip::VERSION_4_PLAIN
            && u16::from_ne_bytes(fragment.0) & u16::from_ne_bytes(parts.0) == 0
            && (stated.host() as u32).wrapping_add(start as u32) <= packet.length()
            && stated.host() as usize >= A::HEADER + tcp::LENGTH
    } else {
        let stated: Be16 = packet.read(start + ip::v6::PAYLOAD_LENGTH)?;
        first >> 4 == 6
            && (stated.host() as u32).wrapping_add(behind as u32) <= packet.length()
            && stated.host() as usize >= tcp::LENGTH
    };
    ends.protocol = packet.read(start + A::PROTOCOL)?;
    let connection = ends.protocol == ip::protocol::TCP;
    if !plain || (!connection && ends.protocol != ip::protocol::UDP) {
        return Some(false);
    }
    // Of a short datagram this is not there.
    packet.read::<u8>(behind + tcp::LENGTH - 1)?;
    let flags: u8 = packet.read(behind + tcp::FLAGS)?;
    ends.flags = if connection { flags } else { 0 };
    ends.source = packet.read(start + A::SOURCE)?;
    ends.target = packet.read(start + A::TARGET)?;
    ends.source_port = packet.read(behind + transport::SOURCE_PORT)?;
    ends.target_port = packet.read(behind + transport::TARGET_PORT)?;
    ends.transport = behind;
    Some(true)
}
