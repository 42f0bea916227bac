//! Put on and take off the tunnel: VXLAN over IPv4.
//!
//! Reads `nodes`. Writes the frame. Drops `TooBig`, `UnknownTunnelSource`, `UnknownVni`, `Truncated`,
//! `MalformedHeader`, `UnsupportedEtherType`, `WriteFailed`.
//!
//! 1. What the underlay cannot take in one piece is refused, never cut.
//! 2. Only nodes of the cluster are believed, and only its own network identifier.
//! 3. The source port spreads flows over the underlay's paths; replies need not use it.
//!
//! The outer UDP checksum is 0, as VXLAN recommends over IPv4: the inner packet has its own.
//!
//! Source: RFC 7348 sections 4.3 and 5.

use crate::Reason;
use crate::flow::Flow;
use crate::platform::{Packet, Platform};
use crate::tables::{Nodes, Route, Table};
use crate::trace::{self, Record, Stage};
use crate::wire::transport::{self, udp};
use crate::wire::{Address, Be16, Be32, Mac, Port, ethernet, ip, tunnel};

/// In the trace: the packet was encapsulated.
pub const WRAPPED: u8 = 1;
/// In the trace: the packet was taken out of the tunnel.
pub const UNWRAPPED: u8 = 2;

/// Where the tunnel's header starts in an encapsulated frame.
const OUTER_IP: usize = ethernet::LENGTH;
const OUTER_UDP: usize = OUTER_IP + ip::LENGTH;
const OUTER_VXLAN: usize = OUTER_UDP + udp::LENGTH;
const INNER_ETHERNET: usize = OUTER_VXLAN + tunnel::LENGTH;

/// Whether the underlay can take the packet once it is encapsulated.
///
/// # Errors
/// `TooBig`.
#[inline(always)]
pub fn fit<A: Address>(platform: &impl Platform<A>, packet: &impl Packet) -> Result<(), Reason> {
    // 1.
    let outer = outer_length(packet);
    if packet.segment() == 0 && outer > platform.node().mtu {
        return Err(Reason::TooBig);
    }
    if outer > u16::MAX as u32 {
        return Err(Reason::TooBig);
    }
    Ok(())
}

/// The length of the outer IP packet around this frame's packet.
#[inline(always)]
fn outer_length(packet: &impl Packet) -> u32 {
    packet.length().wrapping_add((tunnel::OVERHEAD - ethernet::LENGTH) as u32)
}

/// Encapsulates a packet that fits, for another node.
///
/// # Errors
/// `WriteFailed`, `Truncated`.
#[inline(always)]
pub fn wrap<A: Address>(
    platform: &mut impl Platform<A>,
    packet: &mut impl Packet,
    flow: &Flow<A>,
    route: &Route<A>,
) -> Result<(), Reason> {
    let node = platform.node();
    let outer = outer_length(packet);
    packet.open_tunnel().ok_or(Reason::WriteFailed)?;
    packet.pull((INNER_ETHERNET + ethernet::LENGTH) as u32);
    let total = Be16::new(outer as u16);
    let length = Be16::new((outer as u16).wrapping_sub(ip::LENGTH as u16));
    // 3.
    let port = Port::new(0xc000 | (flow.hash(node.seed) & 0x3fff) as u16);
    put(packet, ethernet::TARGET, route.mac)?;
    put(packet, ethernet::SOURCE, node.mac)?;
    put(packet, ethernet::TYPE, A::ETHERTYPE)?;
    outer_header(packet, (node.address, route.node), total)?;
    put(packet, OUTER_UDP + transport::SOURCE_PORT, port)?;
    put(packet, OUTER_UDP + transport::TARGET_PORT, node.tunnel_port)?;
    put(packet, OUTER_UDP + udp::TOTAL_LENGTH, length)?;
    put(packet, OUTER_UDP + udp::CHECKSUM, Be16::new(0))?;
    put(packet, OUTER_VXLAN + tunnel::FLAGS, tunnel::VALID_VNI)?;
    put(packet, OUTER_VXLAN + tunnel::VNI, Be32::new(node.vni << 8))?;
    put(packet, INNER_ETHERNET + ethernet::TARGET, route.mac)?;
    put(packet, INNER_ETHERNET + ethernet::SOURCE, Mac::GATEWAY)?;
    put(packet, INNER_ETHERNET + ethernet::TYPE, A::ETHERTYPE)?;
    trace::step(platform, || Record {
        detail: WRAPPED,
        number: node.vni,
        source: node.address.to_v6(),
        source_port: port,
        target: route.node.to_v6(),
        target_port: node.tunnel_port,
        ..flow.record(Stage::Overlay)
    });
    Ok(())
}

/// Writes the outer IPv4 header, its checksum included.
#[inline(always)]
fn outer_header<A: Address>(packet: &mut impl Packet, (from, to): (A, A), total: Be16) -> Result<(), Reason> {
    let version_tos = Be16([ip::VERSION_4_PLAIN, 0]);
    let ttl_protocol = Be16([ip::DEFAULT_TTL, ip::protocol::UDP]);
    put(packet, OUTER_IP + ip::VERSION_LENGTH, version_tos)?;
    put(packet, OUTER_IP + ip::TOTAL_LENGTH, total)?;
    put(packet, OUTER_IP + ip::IDENTIFICATION, Be16::new(0))?;
    put(packet, OUTER_IP + ip::FRAGMENT, ip::DONT_FRAGMENT)?;
    put(packet, OUTER_IP + ip::TTL, ttl_protocol)?;
    let words = [version_tos, total, ip::DONT_FRAGMENT, ttl_protocol];
    put(packet, OUTER_IP + ip::CHECKSUM, ip::header_checksum(words, from.sum() + to.sum()))?;
    put(packet, OUTER_IP + ip::SOURCE, from)?;
    put(packet, OUTER_IP + ip::TARGET, to)
}

/// Takes the packet out of the tunnel, if it is in it. `outer` is the flow of the frame as it arrived.
///
/// # Errors
/// `UnknownTunnelSource`, `UnknownVni`, `Truncated`, `MalformedHeader`, `UnsupportedEtherType`,
/// `WriteFailed`.
#[inline(always)]
pub fn unwrap<A: Address>(
    platform: &mut impl Platform<A>,
    packet: &mut impl Packet,
    outer: &Flow<A>,
) -> Result<bool, Reason> {
    let node = platform.node();
    if outer.protocol != ip::protocol::UDP || outer.error {
        return Ok(false);
    }
    if outer.target_port != node.tunnel_port || outer.target != node.address {
        return Ok(false);
    }
    // 2.
    if Nodes::get(platform, &outer.source).is_none() {
        return Err(Reason::UnknownTunnelSource);
    }
    // Only headers without options are taken off: the tunnel's own never have any.
    if outer.transport != OUTER_UDP {
        return Err(Reason::MalformedHeader);
    }
    packet.pull((INNER_ETHERNET + ethernet::LENGTH) as u32);
    let inner: Be16 = packet.read(INNER_ETHERNET + ethernet::TYPE).ok_or(Reason::Truncated)?;
    let flags: Be32 = packet.read(OUTER_VXLAN + tunnel::FLAGS).ok_or(Reason::Truncated)?;
    let vni: Be32 = packet.read(OUTER_VXLAN + tunnel::VNI).ok_or(Reason::Truncated)?;
    if flags != tunnel::VALID_VNI {
        return Err(Reason::MalformedHeader);
    }
    if vni.host() >> 8 != node.vni {
        return Err(Reason::UnknownVni);
    }
    if inner != A::ETHERTYPE {
        return Err(Reason::UnsupportedEtherType);
    }
    packet.close_tunnel().ok_or(Reason::WriteFailed)?;
    trace::step(platform, || Record { detail: UNWRAPPED, number: node.vni, ..outer.record(Stage::Overlay) });
    Ok(true)
}

#[inline(always)]
fn put<T: crate::wire::Plain>(packet: &mut impl Packet, offset: usize, value: T) -> Result<(), Reason> {
    packet.write(offset, value).ok_or(Reason::Truncated)
}
