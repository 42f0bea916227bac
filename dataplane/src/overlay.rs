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
//! 6. VXLAN's reserved bits are ignored on receipt. Of Geneve's options those that may be ignored are taken off
//!    with the tunnel; a packet with one that must be understood and is not, of another version, or for the
//!    tunnel's end itself is refused.
//! 7. One option is understood: what the client dialled, where the answer is to go straight back to it from here
//!    (direct server return). It is in every packet: the node that was dialled sees no answers, so it never
//!    learns whether an earlier one has arrived. Whatever the tunnel takes in one piece is shorter by it.
//!
//! The outer UDP checksum is 0, as VXLAN and Geneve recommend: the inner packet has its own. Over IPv6 that is the
//! exception that RFC 6935 makes for tunnels, on the conditions of RFC 6936: the outer addresses are checked on
//! receipt (2), and what is inside is checked by whoever it is for.
//!
//! Source: RFC 7348 sections 4.3 and 5; RFC 8926 sections 3.3 to 3.5 and 4; RFC 6040 section 4 (normal mode).

use crate::Reason;
use crate::flow::{self, Datagram, Ends, Flow};
use crate::header::{self, Header};
use crate::platform::{Machine, Packet};
use crate::tables::{Connection, Identity, Node, Nodes, Route, Table};
use crate::trace::{self, Record, Stage};
use crate::wire::ip::ecn;
use crate::wire::transport::udp;
use crate::wire::tunnel::{geneve, option, vxlan};
use crate::wire::{Address, Be16, Be32, Family, Mac, Plain, Port, V4, V6, ethernet, ip, tunnel};

/// In the trace: the packet was encapsulated.
pub const WRAPPED: u8 = 1;
/// In the trace: the packet was taken out of the tunnel.
pub const UNWRAPPED: u8 = 2;
/// In the trace: the tunnel says that the client dialled `source`.
pub const TOLD: u8 = 3;
/// In the trace: the packet was taken out of the tunnel, which says that the client dialled `source`.
pub const HEARD: u8 = 4;

/// Where the outer IP header starts.
const OUTER_IP: usize = ethernet::LENGTH;

/// What a packet that came through the tunnel brings along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// What its sender is to policies; 0 if it came through no tunnel.
    pub identity: Identity,
    /// The node it came from: that node's end of the tunnel.
    pub node: V6,
    /// What the client dialled, if it is to be answered from here ([`Address::to_v6`]); else zero.
    pub frontend: V6,
    /// Belongs to `frontend`.
    pub frontend_port: Port,
    /// Length of the outer frame in bytes.
    pub length: u32,
    /// The short way has read the packet already, and found no row of its flow.
    pub missed: bool,
}

impl Carried {
    /// Whether there was a tunnel at all.
    #[inline(always)]
    pub fn is_some(&self) -> bool {
        self.identity.0 != 0
    }

    /// Whether its answers go straight back to its client.
    #[inline(always)]
    pub fn is_direct(&self) -> bool {
        self.frontend != V6::default()
    }

    /// Says in a flow what its client dialled, and that it is answered from here.
    #[inline(always)]
    pub fn tell<A: Address>(&self, flow: &mut Flow<A>) {
        flow.frontend = A::from_v6(self.frontend);
        flow.frontend_port = self.frontend_port;
        flow.direct = Connection::<A>::HERE;
    }
}

/// The longest IP packet that the underlay takes in one piece by a route of this kind, the tunnel's headers not
/// counted; `direct` if the tunnel has to say what the client dialled.
#[inline(always)]
pub fn room<A: Address>(node: &Node, kind: u8, direct: bool) -> u32 {
    // 1.
    if kind == Route::REMOTE {
        let around = tunnel::overhead(node.underlay.family().header()) as u32 + options::<A>(direct);
        node.mtu.saturating_sub(around)
    } else {
        node.mtu
    }
}

/// Length of the options that the tunnel needs.
#[inline(always)]
const fn options<A: Address>(direct: bool) -> u32 {
    if direct { option::frontend_length::<A>() as u32 } else { 0 }
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
    let options = options::<A>(flow.direct != 0);
    // 5.
    let class = header::class::<A>(packet, ethernet::LENGTH).ok_or(Reason::Truncated)?;
    let port = port(flow.hash(node.seed));
    let outer = Outer { node: route.node, mac: route.mac, port, class, identity };
    put_around::<A>(platform, packet, &outer, options)?;
    // 7.
    if flow.direct != 0 {
        let start = OUTER_IP + node.underlay.family().header() + udp::LENGTH;
        let flags = geneve::PLAIN.host() | geneve::CRITICAL | (options / 4) << geneve::OPTIONS_SHIFT;
        put(packet, start + tunnel::FLAGS, Be32::new(flags))?;
        dialled(platform, packet, flow, start + tunnel::LENGTH)?;
    }
    note(platform, flow, &outer);
    Ok(())
}

/// What an outer header says that is not the same for all of a node's packets.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Whose end of the tunnel it is for.
    pub node: V6,
    /// The neighbour that takes it.
    pub mac: Mac,
    /// The source port.
    pub port: Port,
    /// The inner packet's differentiated services and ECN.
    pub class: u8,
    /// What the sender is to policies.
    pub identity: Identity,
}

/// The source port of a flow with this hash.
#[inline(always)]
pub fn port(hash: u32) -> Port {
    // 4.
    Port::new(0xc000 | (hash & 0x3fff) as u16)
}

/// Puts the tunnel's headers around a packet, with room for options that is not written. Headers are written whole,
/// because every write is checked.
///
/// # Errors
/// As [`wrap`].
#[inline(always)]
pub fn put_around<A: Address>(
    platform: &impl Machine,
    packet: &mut impl Packet,
    outer: &Outer,
    options: u32,
) -> Result<(), Reason> {
    let family = platform.node().underlay.family();
    let around = (tunnel::overhead(family.header()) - ethernet::LENGTH) as u32 + options;
    let total = packet.length().wrapping_add(around);
    if total > u16::MAX as u32 {
        return Err(Reason::TooBig);
    }
    packet.open_tunnel(family, options).ok_or(Reason::WriteFailed)?;
    let datagram = OUTER_IP + family.header();
    let inner = datagram + udp::LENGTH + tunnel::LENGTH + options as usize;
    packet.pull((inner + ethernet::LENGTH) as u32);
    let length = (total as u16).wrapping_sub(family.header() as u16);
    match family {
        Family::V4 => around_it::<V4>(platform, packet, outer, length)?,
        Family::V6 => around_it::<V6>(platform, packet, outer, length)?,
    }
    let node = platform.node();
    let header = tunnel::Header {
        datagram: udp::Header {
            source_port: outer.port,
            target_port: node.tunnel_port,
            total_length: Be16::new(length),
            checksum: Be16::new(0),
        },
        flags: if node.encapsulation == Node::GENEVE { geneve::PLAIN } else { vxlan::VALID_VNI },
        // 3.
        vni: Be32::new(outer.identity.0 << 8),
    };
    put(packet, datagram, header)?;
    let link = ethernet::Header { target: outer.mac, source: Mac::GATEWAY, ethertype: A::ETHERTYPE };
    put(packet, inner, link)
}

/// Notes that a packet was put into the tunnel.
#[inline(always)]
pub fn note<A: Address>(platform: &mut impl Machine, flow: &Flow<A>, outer: &Outer) {
    let node = platform.node();
    trace::step(platform, || Record {
        detail: WRAPPED,
        flags: node.encapsulation,
        number: outer.identity.0,
        source: node.underlay,
        source_port: outer.port,
        target: outer.node,
        target_port: node.tunnel_port,
        ..flow.record(Stage::Overlay)
    });
}

/// Writes the option that says what the client dialled.
#[inline(always)]
fn dialled<A: Address>(
    platform: &mut impl Machine,
    packet: &mut impl Packet,
    flow: &Flow<A>,
    at: usize,
) -> Result<(), Reason> {
    put(packet, at, Be32::new(option::frontend::<A>()))?;
    put(packet, at + option::ADDRESS, flow.frontend)?;
    put(packet, at + option::ADDRESS + size_of::<A>(), flow.frontend_port)?;
    put(packet, at + option::ADDRESS + size_of::<A>() + size_of::<Port>(), Be16::new(0))?;
    trace::step(platform, || Record {
        detail: TOLD,
        source: flow.frontend.to_v6(),
        source_port: flow.frontend_port,
        ..flow.record(Stage::Overlay)
    });
    Ok(())
}

/// Writes the outer headers up to IP's, of the family `O`; `length` is of what follows that.
#[inline(always)]
fn around_it<O: Address>(
    platform: &impl Machine,
    packet: &mut impl Packet,
    outer: &Outer,
    length: u16,
) -> Result<(), Reason> {
    let node = platform.node();
    put(packet, ethernet::TARGET, outer.mac)?;
    put(packet, ethernet::SOURCE, node.mac)?;
    let (source, target) = (O::from_v6(node.underlay), O::from_v6(outer.node));
    let header = Header { source, target, protocol: ip::protocol::UDP, class: outer.class, length };
    header::write(packet, &header).ok_or(Reason::Truncated)
}

/// Whether a datagram is one of the tunnel's, for this node.
#[inline(always)]
pub fn is_tunnel(node: &Node, outer: &Datagram) -> bool {
    node.encapsulation != Node::PLAIN
        && outer.target_port == node.tunnel_port
        && outer.target == node.underlay
}

/// Bytes that a tunnel over IPv4 takes whose headers have no options.
pub const PLAIN_V4: usize = tunnel::overhead(ip::LENGTH);

/// The family of the packet inside, if the frame is in a tunnel over IPv4 in the usual way.
#[inline(always)]
pub fn inside(packet: &mut impl Packet) -> Family {
    packet.pull((PLAIN_V4 + ethernet::LENGTH) as u32);
    let Some(inside) = packet.read::<Be16>(PLAIN_V4 + ethernet::TYPE) else {
        return Family::V4;
    };
    if inside == ethernet::IPV6 { Family::V6 } else { Family::V4 }
}

/// Whether a frame is in the node's tunnel over IPv4 in the usual way: without options, without a mark of congestion,
/// and with an identity. Others are [`unwrap`]'s to judge. Leaves in `outer` who sent it.
#[inline(always)]
pub fn glance(node: &Node, packet: &mut impl Packet, outer: &mut Ends<V4>) -> bool {
    if node.encapsulation == Node::PLAIN || !flow::glance(packet, outer) {
        return false;
    }
    if outer.protocol != ip::protocol::UDP
        || outer.target_port != node.tunnel_port
        || outer.target.to_v6() != node.underlay
        || outer.class & ecn::CAPABLE_1 != 0
    {
        return false;
    }
    let Some(header) = packet.read::<tunnel::Header>(OUTER_IP + ip::LENGTH) else {
        return false;
    };
    let plain = if node.encapsulation == Node::GENEVE {
        header.flags == geneve::PLAIN
    } else {
        header.flags.host() & vxlan::VALID_VNI.host() != 0
    };
    plain && header.vni.host() >> 8 != 0
}

/// Takes off what [`glance`] has found to be as usual; the Ethernet header that is left is the outer one.
///
/// # Errors
/// `WriteFailed`.
#[inline(always)]
pub fn take_off(packet: &mut impl Packet) -> Result<(), Reason> {
    packet.close_tunnel(Family::V4, 0).ok_or(Reason::WriteFailed)
}

/// Notes that a packet is taken out of the tunnel, before it is.
#[inline(always)]
pub fn note_off(platform: &mut impl Machine, packet: &impl Packet, outer: &Datagram) {
    let vni: Be32 = packet.read(outer.transport + udp::LENGTH + tunnel::VNI).unwrap_or_default();
    trace::step(platform, || Record {
        detail: UNWRAPPED,
        number: vni.host() >> 8,
        ..outer.record(Stage::Overlay)
    });
}

/// Takes a packet out of the tunnel that it is in, and leaves in `carried` what it brings along.
///
/// # Errors
/// `UnknownTunnelSource`, `UnknownVni`, `Truncated`, `MalformedHeader`, `UnsupportedEtherType`, `CongestionLost`,
/// `WriteFailed`.
#[inline(always)]
pub fn unwrap(
    platform: &mut impl Machine,
    packet: &mut impl Packet,
    outer: &Datagram,
    carried: &mut Carried,
) -> Result<(), Reason> {
    // 2.
    if Nodes::often(platform, &outer.source).is_none() {
        return Err(Reason::UnknownTunnelSource);
    }
    let family = outer.source.family();
    let datagram = OUTER_IP + family.header();
    // Only headers without options are taken off: the tunnel's own never have any.
    if outer.transport != datagram {
        return Err(Reason::MalformedHeader);
    }
    let start = datagram + udp::LENGTH;
    packet.pull((start + tunnel::LENGTH + ethernet::LENGTH) as u32);
    let flags: Be32 = packet.read(start + tunnel::FLAGS).ok_or(Reason::Truncated)?;
    let vni: Be32 = packet.read(start + tunnel::VNI).ok_or(Reason::Truncated)?;
    let options = announced(platform.node().encapsulation, flags)?;
    let inner = start + tunnel::LENGTH + options;
    packet.pull((inner + ethernet::LENGTH + ip::v6::LENGTH) as u32);
    let missed = carried.missed;
    *carried = Carried { node: outer.source, length: outer.length, missed, ..Carried::default() };
    if platform.node().encapsulation == Node::GENEVE && flags.host() & geneve::CRITICAL != 0 {
        understand(packet, start + tunnel::LENGTH, inner, carried)?;
    }
    let inside: Be16 = packet.read(inner + ethernet::TYPE).ok_or(Reason::Truncated)?;
    // 3.
    carried.identity = Identity(vni.host() >> 8);
    if carried.identity.0 == 0 {
        return Err(Reason::UnknownVni);
    }
    let said = if inside == ethernet::IPV4 {
        Family::V4
    } else if inside == ethernet::IPV6 {
        Family::V6
    } else {
        return Err(Reason::UnsupportedEtherType);
    };
    // 7.
    if carried.is_direct() && carried.frontend.family() as u8 != said as u8 {
        return Err(Reason::MalformedHeader);
    }
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
    let direct = carried.is_direct();
    trace::step(platform, || Record {
        detail: if direct { HEARD } else { UNWRAPPED },
        number: carried.identity.0,
        flags: if after == before { 0 } else { after },
        source: if direct { carried.frontend } else { outer.source },
        source_port: if direct { carried.frontend_port } else { outer.source_port },
        ..outer.record(Stage::Overlay)
    });
    Ok(())
}

/// Reads the options between `at` and `end`, of which one at least must be understood.
///
/// # Errors
/// `MalformedHeader`, `Truncated`.
#[inline(always)]
fn understand(packet: &impl Packet, mut at: usize, end: usize, carried: &mut Carried) -> Result<(), Reason> {
    let mut read = 0;
    while read < geneve::OPTIONS_WORDS {
        if at >= end {
            return Ok(());
        }
        let first: Be32 = packet.read(at).ok_or(Reason::Truncated)?;
        let first = first.host() & !option::RESERVED;
        let next = at + option::HEADER + (first & option::WORDS) as usize * 4;
        if next > end {
            return Err(Reason::MalformedHeader);
        }
        // 7.
        if first == option::frontend::<V4>() {
            frontend::<V4>(packet, at + option::ADDRESS, carried)?;
        } else if first == option::frontend::<V6>() {
            frontend::<V6>(packet, at + option::ADDRESS, carried)?;
        } else if first & option::CRITICAL != 0 {
            // 6.
            return Err(Reason::MalformedHeader);
        }
        at = next;
        read += 1;
    }
    // As many as there is room for, and none of them says anything.
    Ok(())
}

/// Reads what the client dialled: once, and something that can be dialled.
#[inline(always)]
fn frontend<A: Address>(packet: &impl Packet, at: usize, carried: &mut Carried) -> Result<(), Reason> {
    let address: A = packet.read(at).ok_or(Reason::Truncated)?;
    if address == A::default() || carried.is_direct() {
        return Err(Reason::MalformedHeader);
    }
    carried.frontend = address.to_v6();
    carried.frontend_port = packet.read(at + size_of::<A>()).ok_or(Reason::Truncated)?;
    Ok(())
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
fn announced(encapsulation: u8, flags: Be32) -> Result<usize, Reason> {
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
