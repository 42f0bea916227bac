//! Put on and take off the tunnel: VXLAN or Geneve, over IPv4 or IPv6.
//!
//! Reads `nodes`. Writes the frame. Drops `TooBig`, `UnknownTunnelSource`, `UnknownVni`, `Truncated`,
//! `MalformedHeader`, `UnsupportedEtherType`, `CongestionLost`, `WriteFailed`.
//!
//! 1. What the underlay takes in one piece includes the tunnel's headers: nothing is cut.
//! 2. Only nodes of the cluster are believed.
//! 3. The network identifier says what the sender is to policies, so that the receiver need not know it.
//! 4. The source port spreads flows over the underlay's paths; replies need not use it.
//! 5. The outer header repeats the inner one's differentiated services and ECN. When it comes off, a mark of
//!    congestion goes over to the inner one; the rest of it is the underlay's affair and goes. So are its hops,
//!    of which the tunnel takes none: to the inner packet it is one link (the pipe model of RFC 2983 and
//!    RFC 3443).
//! 6. VXLAN's reserved bits are ignored on receipt. Geneve's options are sent by nobody here: those that may be
//!    ignored are taken off with the tunnel; a packet with one that must be understood, of another version, or
//!    for the tunnel's end itself is refused.
//!
//! The outer UDP checksum is 0, as VXLAN and Geneve recommend: the inner packet has its own. Over IPv6 that is the
//! exception that RFC 6935 makes for tunnels, on the conditions of RFC 6936: the outer addresses are checked on
//! receipt (2), and what is inside is checked by whoever it is for.
//!
//! Source: RFC 7348 sections 4.3 and 5; RFC 8926 sections 3.3, 3.4 and 4; RFC 6040 section 4 (normal mode).

use crate::Reason;
use crate::flow::{Datagram, Flow};
use crate::header::{self, Header};
use crate::platform::{Machine, Packet};
use crate::tables::{Identity, Node, Nodes, Route, Table};
use crate::trace::{self, Record, Stage};
use crate::wire::ip::ecn;
use crate::wire::transport::{self, udp};
use crate::wire::tunnel::{geneve, vxlan};
use crate::wire::{Address, Be16, Be32, Family, Mac, Plain, Port, V4, V6, ethernet, ip, tunnel};

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

/// The longest IP packet that the underlay takes in one piece by a route of this kind, the tunnel's headers not
/// counted.
#[inline(always)]
pub fn room(node: &Node, kind: u8) -> u32 {
    // 1.
    if kind == Route::REMOTE {
        node.mtu.saturating_sub(tunnel::overhead(header(node.underlay.family())) as u32)
    } else {
        node.mtu
    }
}

/// Encapsulates a packet for another node. `identity` is what its sender is to policies.
///
/// # Errors
/// `TooBig`: no IP packet can be as long, however it is cut later. `WriteFailed`, `Truncated`.
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
    let around = (tunnel::overhead(header(outer)) - ethernet::LENGTH) as u32;
    let total = packet.length().wrapping_add(around);
    if total > u16::MAX as u32 {
        return Err(Reason::TooBig);
    }
    // 5.
    let class = header::class::<A>(packet, ethernet::LENGTH).ok_or(Reason::Truncated)?;
    packet.open_tunnel(outer).ok_or(Reason::WriteFailed)?;
    let datagram = OUTER_IP + header(outer);
    let inner = datagram + udp::LENGTH + tunnel::LENGTH;
    packet.pull((inner + ethernet::LENGTH) as u32);
    // 4.
    let port = Port::new(0xc000 | (flow.hash(node.seed) & 0x3fff) as u16);
    let length = (total as u16).wrapping_sub(header(outer) as u16);
    put(packet, ethernet::TARGET, route.mac)?;
    put(packet, ethernet::SOURCE, node.mac)?;
    match outer {
        Family::V4 => around_it::<V4>(packet, &node, route, class, length)?,
        Family::V6 => around_it::<V6>(packet, &node, route, class, length)?,
    }
    put(packet, datagram + transport::SOURCE_PORT, port)?;
    put(packet, datagram + transport::TARGET_PORT, node.tunnel_port)?;
    put(packet, datagram + udp::TOTAL_LENGTH, Be16::new(length))?;
    put(packet, datagram + udp::CHECKSUM, Be16::new(0))?;
    let flags = if node.encapsulation == Node::GENEVE { geneve::PLAIN } else { vxlan::VALID_VNI };
    put(packet, datagram + udp::LENGTH + tunnel::FLAGS, flags)?;
    // 3.
    put(packet, datagram + udp::LENGTH + tunnel::VNI, Be32::new(identity.0 << 8))?;
    put(packet, inner + ethernet::TARGET, route.mac)?;
    put(packet, inner + ethernet::SOURCE, Mac::GATEWAY)?;
    put(packet, inner + ethernet::TYPE, A::ETHERTYPE)?;
    trace::step(platform, || Record {
        detail: WRAPPED,
        flags: node.encapsulation,
        number: identity.0,
        source: node.underlay,
        source_port: port,
        target: route.node,
        target_port: node.tunnel_port,
        ..flow.record(Stage::Overlay)
    });
    Ok(())
}

/// Writes the outer IP header, of the family `O`; `length` is of what follows it.
#[inline(always)]
fn around_it<O: Address>(
    packet: &mut impl Packet,
    node: &Node,
    route: &Route,
    class: u8,
    length: u16,
) -> Result<(), Reason> {
    let (source, target) = (O::from_v6(node.underlay), O::from_v6(route.node));
    let header = Header { source, target, protocol: ip::protocol::UDP, class, length };
    header::write(packet, &header).ok_or(Reason::Truncated)
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
/// `UnknownTunnelSource`, `UnknownVni`, `Truncated`, `MalformedHeader`, `UnsupportedEtherType`, `CongestionLost`,
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
    let start = datagram + udp::LENGTH;
    packet.pull((start + tunnel::LENGTH + ethernet::LENGTH) as u32);
    let flags: Be32 = packet.read(start + tunnel::FLAGS).ok_or(Reason::Truncated)?;
    let vni: Be32 = packet.read(start + tunnel::VNI).ok_or(Reason::Truncated)?;
    let options = options(platform.node().encapsulation, flags)?;
    let inner = start + tunnel::LENGTH + options;
    packet.pull((inner + ethernet::LENGTH + ip::v6::LENGTH) as u32);
    let inside: Be16 = packet.read(inner + ethernet::TYPE).ok_or(Reason::Truncated)?;
    // 3.
    let identity = Identity(vni.host() >> 8);
    if identity.0 == 0 {
        return Err(Reason::UnknownVni);
    }
    let said = if inside == ethernet::IPV4 {
        Family::V4
    } else if inside == ethernet::IPV6 {
        Family::V6
    } else {
        return Err(Reason::UnsupportedEtherType);
    };
    // 5.
    let before = class(packet, said, inner + ethernet::LENGTH)? & ecn::MASK;
    let after = marked(before, class(packet, family, OUTER_IP)? & ecn::MASK)?;
    packet.close_tunnel(family, options as u32).ok_or(Reason::WriteFailed)?;
    put(packet, ethernet::TYPE, inside)?;
    if after != before {
        match said {
            Family::V4 => header::mark::<V4>(packet, after).ok_or(Reason::Truncated)?,
            Family::V6 => header::mark::<V6>(packet, after).ok_or(Reason::Truncated)?,
        }
    }
    trace::step(platform, || Record {
        detail: UNWRAPPED,
        number: identity.0,
        flags: if after == before { 0 } else { after },
        ..outer.record(Stage::Overlay)
    });
    Ok(Carried { identity, node: outer.source, length: outer.length })
}

/// The traffic class in the IP header at `offset`. The outcome of each read is asked for at once: kept for
/// later, what is not there is kept as well, out of a register that holds nothing ("R5 !read_ok", kernel 6.18).
///
/// # Errors
/// `Truncated`.
#[inline(always)]
fn class(packet: &impl Packet, family: Family, offset: usize) -> Result<u8, Reason> {
    match family {
        Family::V4 => header::class::<V4>(packet, offset).ok_or(Reason::Truncated),
        Family::V6 => header::class::<V6>(packet, offset).ok_or(Reason::Truncated),
    }
}

/// Length of the options behind the tunnel's header, after a look at its first word.
///
/// # Errors
/// `MalformedHeader`.
#[inline(always)]
fn options(encapsulation: u8, flags: Be32) -> Result<usize, Reason> {
    if encapsulation == Node::GENEVE {
        // 6.
        if flags.host() & geneve::FIXED != geneve::PLAIN.host() {
            return Err(Reason::MalformedHeader);
        }
        return Ok((flags.host() >> geneve::OPTIONS_SHIFT & geneve::OPTIONS_WORDS) as usize * 4);
    }
    if flags.host() & vxlan::VALID_VNI.host() == 0 {
        return Err(Reason::MalformedHeader);
    }
    Ok(0)
}

/// The inner packet's ECN after the tunnel (RFC 6040, figure 4), of its own and the outer header's.
///
/// # Errors
/// `CongestionLost`.
#[inline(always)]
fn marked(inner: u8, outer: u8) -> Result<u8, Reason> {
    if outer == ecn::EXPERIENCED {
        // The mark must not get lost, and a sender that does not know it understands a loss only.
        return if inner == ecn::NOT_CAPABLE { Err(Reason::CongestionLost) } else { Ok(outer) };
    }
    Ok(if outer == ecn::CAPABLE_1 && inner == ecn::CAPABLE_0 { outer } else { inner })
}

#[inline(always)]
fn put<T: Plain>(packet: &mut impl Packet, offset: usize, value: T) -> Result<(), Reason> {
    packet.write(offset, value).ok_or(Reason::Truncated)
}
