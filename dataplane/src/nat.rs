//! Other addresses and ports: of Services, and of pods that speak to the world with their node's address.
//!
//! Reads and writes `masquerades`, the frame and the [`Flow`]: both change together, and nobody parses
//! again. Drops `MasqueradeFull`, `MasqueradePortsExhausted`, `Truncated`, `WriteFailed`.
//!
//! A masqueraded flow needs a port of the node's address that no other flow to the same remote end has:
//! 1. One it already has, from before: kept.
//! 2. Its own source port, if that is in the range.
//! 3. The next free one, from a place that the flow's hash says, for at most [`PROBES`] tries.
//!
//! Adding the reverse row is the claim: of two CPUs that want one port exactly one gets it.
//!
//! An ICMP error quotes the packet it is about; what changes in a flow changes there as well.
//!
//! Source: RFC 4787 (UDP), RFC 5382 (TCP), RFC 5508 (ICMP); RFC 1624 (checksums).

use crate::Reason;
use crate::flow::Flow;
use crate::platform::{Mend, Packet, Platform};
use crate::tables::{Backend, Connection, Masquerade, Masqueraded, Masquerades, NotAdded, Table, Writes};
use crate::trace::{self, Record, Stage};
use crate::wire::transport::{self, tcp, udp};
use crate::wire::{Address, Be16, Port, checksum, ethernet, icmp, ip};

/// How many ports are tried before a new flow is refused.
pub const PROBES: u32 = 32;

/// What was replaced, for the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Change {
    /// A reply's source became what the client dialled.
    Frontend = 1,
    /// A pod's address and port became the node's.
    Masquerade = 2,
    /// The node's address and port became the pod's again.
    Restore = 3,
}

/// The end of a flow that is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

/// Sends a packet for a Service to its backend. A pod that is its own backend meets itself under another
/// address ([`Address::ITSELF`]), so that its answer comes out of it again.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn to_backend<A: Address>(
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    backend: &Backend<A>,
) -> Result<(), Reason> {
    flow.frontend = flow.target;
    flow.frontend_port = flow.target_port;
    rewrite(packet, flow, Side::Target, backend.address, backend.port)?;
    if flow.target == flow.source {
        return rewrite(packet, flow, Side::Source, A::ITSELF, flow.source_port);
    }
    Ok(())
}

/// Makes a reply come from what its client dialled, if that was a Service.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn from_frontend<A: Address>(
    platform: &mut impl Platform<A>,
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    connection: &Connection<A>,
) -> Result<(), Reason> {
    if connection.frontend == A::default() {
        return Ok(());
    }
    if flow.target == A::ITSELF {
        rewrite(packet, flow, Side::Target, flow.source, flow.target_port)?;
    }
    note(platform, flow, Change::Frontend, (connection.frontend, connection.frontend_port));
    rewrite(packet, flow, Side::Source, connection.frontend, connection.frontend_port)
}

/// Claims a port of the node's address for a new flow to the world.
///
/// # Errors
/// `MasqueradeFull`, `MasqueradePortsExhausted`.
#[inline(always)]
pub fn claim<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>) -> Result<Port, Reason> {
    let node = platform.node();
    let row = Masqueraded { pod: flow.source, pod_port: flow.source_port, pad: [0; 2] };
    let own = flow.source_port.host().wrapping_sub(node.masquerade_first);
    let count = node.masquerade_count as u32;
    if count == 0 {
        return Err(Reason::MasqueradePortsExhausted);
    }
    // 2.
    let mut start = own as u32;
    if start >= count {
        start = flow.hash(node.seed) % count;
    }
    // 3.
    let mut tried = 0;
    while tried < PROBES {
        // No branch at the end of the range: the verifier would follow both, from each try on.
        let place = start.wrapping_add(tried) % count;
        let port = Port::new(node.masquerade_first.wrapping_add(place as u16));
        match Writes::<Masquerades<A>>::add(platform, &reverse(flow, port), &row) {
            Ok(()) => return Ok(port),
            Err(NotAdded::Full) => return Err(Reason::MasqueradeFull),
            Err(NotAdded::Taken) => {}
        }
        // 1.
        if Masquerades::get(platform, &reverse(flow, port)) == Some(row) {
            return Ok(port);
        }
        tried += 1;
    }
    Err(Reason::MasqueradePortsExhausted)
}

/// Gives a claimed port back, because the flow could not be opened after all.
#[inline(always)]
pub fn release<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, port: Port) {
    Writes::<Masquerades<A>>::remove(platform, &reverse(flow, port));
}

/// Sends a pod's packet into the world from a port of the node's address.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn masquerade<A: Address>(
    platform: &mut impl Platform<A>,
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    port: Port,
) -> Result<(), Reason> {
    let address = platform.address();
    note(platform, flow, Change::Masquerade, (address, port));
    rewrite(packet, flow, Side::Source, address, port)
}

/// Makes a packet from the world for a port of the node's address one for the pod the port stands for;
/// `false` if it stands for none.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn restore<A: Address>(
    platform: &mut impl Platform<A>,
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
) -> Result<bool, Reason> {
    if flow.target != platform.address() {
        return Ok(false);
    }
    let key = Masquerade {
        remote: flow.source,
        remote_port: flow.source_port,
        port: flow.target_port,
        protocol: flow.protocol,
        pad: [0; 3],
    };
    let Some(row) = Masquerades::get(platform, &key) else {
        return Ok(false);
    };
    note(platform, flow, Change::Restore, (row.pod, row.pod_port));
    rewrite(packet, flow, Side::Target, row.pod, row.pod_port)?;
    Ok(true)
}

#[inline(always)]
fn reverse<A: Address>(flow: &Flow<A>, port: Port) -> Masquerade<A> {
    Masquerade {
        remote: flow.target,
        remote_port: flow.target_port,
        port,
        protocol: flow.protocol,
        pad: [0; 3],
    }
}

#[inline(always)]
fn note<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, change: Change, to: (A, Port)) {
    let (from, from_port) = match change {
        Change::Restore => (flow.target, flow.target_port),
        Change::Frontend | Change::Masquerade => (flow.source, flow.source_port),
    };
    trace::step(platform, || Record {
        detail: change as u8,
        source: from.to_v6(),
        source_port: from_port,
        target: to.0.to_v6(),
        target_port: to.1,
        ..flow.record(Stage::Nat)
    });
}

/// Replaces one end of the flow, in the frame and in `flow`.
#[inline(always)]
fn rewrite<A: Address>(
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    side: Side,
    address: A,
    port: Port,
) -> Result<(), Reason> {
    let (old, old_port) = match side {
        Side::Source => (flow.source, flow.source_port),
        Side::Target => (flow.target, flow.target_port),
    };
    // An error may come from a router on the way, whose address is nobody's business here.
    if side == Side::Target || flow.sender == old {
        replace_address(packet, ethernet::LENGTH, side, (old, address))?;
    }
    if flow.error {
        requote(packet, flow, side, (old, address), (old_port, port))?;
    } else {
        if flow.protocol != ip::protocol::ICMP {
            mend(packet, flow, checksum::address_delta(old, address), true)?;
        }
        if old_port != port {
            mend(packet, flow, checksum::word_delta(old_port, port), false)?;
            let offset = port_offset(flow.protocol, side);
            packet.write(flow.transport + offset, port).ok_or(Reason::Truncated)?;
        }
    }
    match side {
        Side::Source => {
            if flow.sender == old {
                flow.sender = address;
            }
            flow.source = address;
            flow.source_port = port;
        }
        Side::Target => {
            flow.target = address;
            flow.target_port = port;
        }
    }
    Ok(())
}

/// Replaces an address in the IP header at `offset`.
#[inline(always)]
fn replace_address<A: Address>(
    packet: &mut impl Packet,
    offset: usize,
    side: Side,
    (old, new): (A, A),
) -> Result<(), Reason> {
    if let Some(sum) = A::CHECKSUM {
        let before: Be16 = packet.read(offset + sum).ok_or(Reason::Truncated)?;
        let after = checksum::mended(before, checksum::address_delta(old, new));
        packet.write(offset + sum, after).ok_or(Reason::Truncated)?;
    }
    let field = if side == Side::Source { A::SOURCE } else { A::TARGET };
    packet.write(offset + field, new).ok_or(Reason::Truncated)
}

/// Corrects the packet's transport checksum.
#[inline(always)]
fn mend<A>(packet: &mut impl Packet, flow: &Flow<A>, delta: u32, pseudo: bool) -> Result<(), Reason> {
    let offset = match flow.protocol {
        ip::protocol::TCP => tcp::CHECKSUM,
        ip::protocol::UDP => udp::CHECKSUM,
        _ => icmp::CHECKSUM,
    };
    let optional = flow.protocol == ip::protocol::UDP;
    packet.mend(flow.transport + offset, Mend { delta, pseudo, optional }).ok_or(Reason::WriteFailed)
}

/// Where the port of a side stands: an echo has but one, its identifier.
#[inline(always)]
fn port_offset(protocol: u8, side: Side) -> usize {
    if protocol == ip::protocol::ICMP {
        icmp::IDENTIFIER
    } else if side == Side::Source {
        transport::SOURCE_PORT
    } else {
        transport::TARGET_PORT
    }
}

/// Replaces one end of the flow in the packet that an ICMP error quotes: there the sides are the other way
/// round. The quoted checksums follow, and the error's own checksum follows everything.
#[inline(always)]
fn requote<A: Address>(
    packet: &mut impl Packet,
    flow: &Flow<A>,
    side: Side,
    (old, new): (A, A),
    (old_port, new_port): (Port, Port),
) -> Result<(), Reason> {
    let inside = if side == Side::Source { Side::Target } else { Side::Source };
    // The header's own checksum moves by as much as the address, the other way: no change in the sum.
    replace_address(packet, flow.quoted, inside, (old, new))?;
    let mut delta = 0;
    if A::CHECKSUM.is_none() {
        delta = checksum::address_delta(old, new);
    }
    let ports = checksum::word_delta(old_port, new_port);
    packet
        .write(flow.quoted_transport + port_offset(flow.protocol, inside), new_port)
        .ok_or(Reason::Truncated)?;
    delta = checksum::add(delta, ports);
    // TCP's checksum lies beyond the eight bytes that are quoted for certain.
    if flow.protocol == ip::protocol::UDP {
        let offset = flow.quoted_transport + udp::CHECKSUM;
        let before: Be16 = packet.read(offset).ok_or(Reason::Truncated)?;
        if before != Be16::new(0) {
            let after = checksum::mended(before, checksum::add(ports, checksum::address_delta(old, new)));
            packet.write(offset, after).ok_or(Reason::Truncated)?;
            delta = checksum::add(delta, checksum::word_delta(before, after));
        }
    }
    if flow.protocol == ip::protocol::ICMP {
        let offset = flow.quoted_transport + icmp::CHECKSUM;
        let before: Be16 = packet.read(offset).ok_or(Reason::Truncated)?;
        let after = checksum::mended(before, ports);
        packet.write(offset, after).ok_or(Reason::Truncated)?;
        delta = checksum::add(delta, checksum::word_delta(before, after));
    }
    let error = Mend { delta, pseudo: false, optional: false };
    packet.mend(flow.transport + icmp::CHECKSUM, error).ok_or(Reason::WriteFailed)
}
