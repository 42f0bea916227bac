//! Put on and take off the tunnel: VXLAN, over IPv4 or IPv6.
//!
//! Reads `nodes`. Writes the frame. Drops `TooBig`, `UnknownTunnelSource`, `UnknownVni`, `Truncated`,
//! `MalformedHeader`, `UnsupportedEtherType`, `WriteFailed`.
//!
//! 1. What the underlay cannot take in one piece is refused, never cut.
//! 2. Only nodes of the cluster are believed.
//! 3. The network identifier says what the sender is to policies, so that the receiver need not know it.
//! 4. The source port spreads flows over the underlay's paths; replies need not use it.
//!
//! The outer UDP checksum is 0, as VXLAN recommends: the inner packet has its own (RFC 6935 for IPv6).
//!
//! Source: RFC 7348 sections 4.3 and 5.

use crate::Reason;
use crate::flow::{Datagram, Flow};
use crate::platform::{Machine, Packet};
use crate::tables::{Identity, Node, Nodes, Route, Table};
use crate::trace::{self, Record, Stage};
use crate::wire::transport::{self, udp};
use crate::wire::{Address, Be16, Be32, Family, Mac, Plain, Port, V4, V6, checksum, ethernet, ip, tunnel};

/// In the trace: the packet was encapsulated.
pub const WRAPPED: u8 = 1;
/// In the trace: the packet was taken out of the tunnel.
pub const UNWRAPPED: u8 = 2;

/// Where the outer IP header starts.
const OUTER_IP: usize = ethernet::LENGTH;

/// What a packet that came through the tunnel brings along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// What its sender is to policies; 0 if it came through no tunnel.
    pub identity: Identity,
    /// The node it came from: that node's end of the tunnel.
    pub node: V6,
    /// Length of the outer frame in bytes.
    pub length: u32,
}

impl Carried {
    /// Whether there was a tunnel at all.
    #[inline(always)]
    pub fn is_some(&self) -> bool {
        self.identity.0 != 0
    }
}

/// Length of the outer IP header.
#[inline(always)]
const fn header(outer: Family) -> usize {
    match outer {
        Family::V4 => ip::LENGTH,
        Family::V6 => ip::v6::LENGTH,
    }
}

/// Whether the underlay can take the packet once it is encapsulated.
///
/// # Errors
/// `TooBig`.
#[inline(always)]
pub fn fit(platform: &impl Machine, packet: &impl Packet, route: &Route) -> Result<(), Reason> {
    // 1.
    let outer = outer_length(packet, route.node.family());
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
fn outer_length(packet: &impl Packet, outer: Family) -> u32 {
    packet.length().wrapping_add((tunnel::overhead(header(outer)) - ethernet::LENGTH) as u32)
}

/// Encapsulates a packet that fits, for another node. `identity` is what its sender is to policies.
///
/// # Errors
/// `WriteFailed`, `Truncated`.
#[inline(always)]
pub fn wrap<A: Address>(
    platform: &mut impl Machine,
    packet: &mut impl Packet,
    flow: &Flow<A>,
    route: &Route,
    identity: Identity,
) -> Result<(), Reason> {
    let node = platform.node();
    let outer = node.underlay.family();
    let total = outer_length(packet, outer) as u16;
    packet.open_tunnel(outer).ok_or(Reason::WriteFailed)?;
    let datagram = OUTER_IP + header(outer);
    let inner = datagram + udp::LENGTH + tunnel::LENGTH;
    packet.pull((inner + ethernet::LENGTH) as u32);
    // 4.
    let port = Port::new(0xc000 | (flow.hash(node.seed) & 0x3fff) as u16);
    put(packet, ethernet::TARGET, route.mac)?;
    put(packet, ethernet::SOURCE, node.mac)?;
    match outer {
        Family::V4 => header_v4(packet, (V4::from_v6(node.underlay), V4::from_v6(route.node)), total)?,
        Family::V6 => header_v6(packet, (node.underlay, route.node), total)?,
    }
    let length = Be16::new(total.wrapping_sub(header(outer) as u16));
    put(packet, datagram + transport::SOURCE_PORT, port)?;
    put(packet, datagram + transport::TARGET_PORT, node.tunnel_port)?;
    put(packet, datagram + udp::TOTAL_LENGTH, length)?;
    put(packet, datagram + udp::CHECKSUM, Be16::new(0))?;
    put(packet, datagram + udp::LENGTH + tunnel::FLAGS, tunnel::VALID_VNI)?;
    // 3.
    put(packet, datagram + udp::LENGTH + tunnel::VNI, Be32::new(identity.0 << 8))?;
    put(packet, inner + ethernet::TARGET, route.mac)?;
    put(packet, inner + ethernet::SOURCE, Mac::GATEWAY)?;
    put(packet, inner + ethernet::TYPE, A::ETHERTYPE)?;
    trace::step(platform, || Record {
        detail: WRAPPED,
        number: identity.0,
        source: node.underlay,
        source_port: port,
        target: route.node,
        target_port: node.tunnel_port,
        ..flow.record(Stage::Overlay)
    });
    Ok(())
}

/// Writes the outer IPv4 header, its checksum included.
#[inline(always)]
fn header_v4(packet: &mut impl Packet, (from, to): (V4, V4), total: u16) -> Result<(), Reason> {
    let version_tos = Be16([ip::VERSION_4_PLAIN, 0]);
    let ttl_protocol = Be16([ip::DEFAULT_TTL, ip::protocol::UDP]);
    let total = Be16::new(total);
    put(packet, ethernet::TYPE, ethernet::IPV4)?;
    put(packet, OUTER_IP + ip::VERSION_LENGTH, version_tos)?;
    put(packet, OUTER_IP + ip::TOTAL_LENGTH, total)?;
    put(packet, OUTER_IP + ip::IDENTIFICATION, Be16::new(0))?;
    put(packet, OUTER_IP + ip::FRAGMENT, ip::DONT_FRAGMENT)?;
    put(packet, OUTER_IP + ip::TTL, ttl_protocol)?;
    let words = [version_tos, total, ip::DONT_FRAGMENT, ttl_protocol];
    put(packet, OUTER_IP + ip::CHECKSUM, checksum::of(words, from.sum() + to.sum()))?;
    put(packet, OUTER_IP + ip::SOURCE, from)?;
    put(packet, OUTER_IP + ip::TARGET, to)
}

/// Writes the outer IPv6 header.
#[inline(always)]
fn header_v6(packet: &mut impl Packet, (from, to): (V6, V6), total: u16) -> Result<(), Reason> {
    put(packet, ethernet::TYPE, ethernet::IPV6)?;
    put(packet, OUTER_IP + ip::v6::VERSION_CLASS_LABEL, Be32::new(6 << 28))?;
    put(packet, OUTER_IP + ip::v6::PAYLOAD_LENGTH, Be16::new(total.wrapping_sub(ip::v6::LENGTH as u16)))?;
    put(packet, OUTER_IP + ip::v6::NEXT_HEADER, Be16([ip::protocol::UDP, ip::DEFAULT_TTL]))?;
    put(packet, OUTER_IP + ip::v6::SOURCE, from)?;
    put(packet, OUTER_IP + ip::v6::TARGET, to)
}

/// Whether a datagram is one of the tunnel's, for this node.
#[inline(always)]
pub fn is_tunnel(node: &Node, outer: &Datagram) -> bool {
    node.encapsulation != Node::PLAIN
        && outer.target_port == node.tunnel_port
        && outer.target == node.underlay
}

/// Takes a packet out of the tunnel that it is in.
///
/// # Errors
/// `UnknownTunnelSource`, `UnknownVni`, `Truncated`, `MalformedHeader`, `UnsupportedEtherType`,
/// `WriteFailed`.
#[inline(always)]
pub fn unwrap(
    platform: &mut impl Machine,
    packet: &mut impl Packet,
    outer: &Datagram,
) -> Result<Carried, Reason> {
    // 2.
    if Nodes::get(platform, &outer.source).is_none() {
        return Err(Reason::UnknownTunnelSource);
    }
    let family = outer.source.family();
    let datagram = OUTER_IP + header(family);
    // Only headers without options are taken off: the tunnel's own never have any.
    if outer.transport != datagram {
        return Err(Reason::MalformedHeader);
    }
    let inner = datagram + udp::LENGTH + tunnel::LENGTH;
    packet.pull((inner + ethernet::LENGTH) as u32);
    let inside: Be16 = packet.read(inner + ethernet::TYPE).ok_or(Reason::Truncated)?;
    let flags: Be32 = packet.read(datagram + udp::LENGTH + tunnel::FLAGS).ok_or(Reason::Truncated)?;
    let vni: Be32 = packet.read(datagram + udp::LENGTH + tunnel::VNI).ok_or(Reason::Truncated)?;
    if flags != tunnel::VALID_VNI {
        return Err(Reason::MalformedHeader);
    }
    // 3.
    let identity = Identity(vni.host() >> 8);
    if identity.0 == 0 {
        return Err(Reason::UnknownVni);
    }
    if inside != ethernet::IPV4 && inside != ethernet::IPV6 {
        return Err(Reason::UnsupportedEtherType);
    }
    packet.close_tunnel(family).ok_or(Reason::WriteFailed)?;
    put(packet, ethernet::TYPE, inside)?;
    trace::step(platform, || Record {
        detail: UNWRAPPED,
        number: identity.0,
        ..outer.record(Stage::Overlay)
    });
    Ok(Carried { identity, node: outer.source, length: outer.length })
}

#[inline(always)]
fn put<T: Plain>(packet: &mut impl Packet, offset: usize, value: T) -> Result<(), Reason> {
    packet.write(offset, value).ok_or(Reason::Truncated)
}
