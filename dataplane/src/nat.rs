//! Other addresses and ports: of Services, and of pods that speak to the world with their node's address.
//!
//! Reads and writes `masquerades`, the frame and the [`Flow`]: both change together, and nobody parses
//! again. Drops `MasqueradeFull`, `MasqueradePortsExhausted`, `UnknownIcmp`, `SctpFragment`, `Truncated`,
//! `WriteFailed`.
//!
//! A masqueraded flow needs a port of the node's address that no other flow to the same remote end has:
//! 1. One it already has, from before: kept.
//! 2. Its own source port, if that is in the range.
//! 3. Any free one: places that the flow's hash and the number of the try say, at most [`PROBES`] of them.
//!
//! Adding the reverse row is the claim: of two CPUs that want one port exactly one gets it, and the other
//! goes on trying.
//!
//! How full the range gets: tries are independent of each other and of other flows', so no clusters form,
//! and with a share `a` of the ports taken, all of `N` tries fail with probability `a^N`. While the `C` ports
//! of a range are filled up to that share, `C * a^(N+1) / (N+1)` flows are refused on average. With
//! `N = 1024`, `C = 28,232` and `a = 0.99` that is 0.001: 999 of 1,000 times not one is refused before 99 %
//! of the ports are taken (half of the time, none before 99.6 %). Found ones cost little: `1 / (1 - a)` tries
//! on average, two at 50 %, ten at 90 %, a hundred at 99 %. Only who finds none pays for all.
//!
//! An ICMP error quotes the packet it is about; what changes in a flow changes there as well.
//!
//! SCTP's checksum covers no addresses, so only other ports change it. It follows once, when the walk has made all
//! its changes: [`seal`]. Where the sender left it to its network card there is a zero, and stays. (One in 2^32 right
//! checksums is a zero as well: with another port its packet is lost, and what is sent again in its place has
//! another.) It covers the whole packet, whose length a fragment does not say: the first one of a packet, which has
//! the ports and the checksum, is refused if a port of it had to change. SCTP cuts its messages itself, so that its
//! packets fit (RFC 9260, section 6.9).
//!
//! Source: RFC 4787 (UDP), RFC 5382 (TCP), RFC 5508 (ICMP); RFC 1624 and RFC 9260 appendix A (checksums).

mod mend;
mod quote;

use mend::{checksum_offset, follow, mend, mend_of, port_delta};
use quote::requote;

use crate::Reason;
use crate::flow::{Ends, Flow, spread};
use crate::platform::{Mend, Packet, Platform};
use crate::tables::{BackendId, Connection, Masquerade, Masqueraded, Masquerades, NotAdded, Table, Writes};
use crate::trace::{self, Record, Stage};
use crate::wire::transport::{self, sctp};
use crate::wire::{Address, Be16, Be32, Port, checksum, crc, ethernet, icmp, ip};

/// How many ports beside its own are tried before a new flow is refused.
pub const PROBES: u32 = 1024;

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
    /// Another port took the place of the client's own.
    StandIn = 4,
    /// The client's own port took its place again.
    OwnPort = 5,
}

/// The end of a flow that is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

/// Sends a packet for a Service to the backend with this address, port and number.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn to_backend<A: Address>(
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    backend: (A, Port),
    number: BackendId,
) -> Result<(), Reason> {
    flow.frontend = flow.target;
    flow.frontend_port = flow.target_port;
    flow.chosen = number;
    rewrite(packet, flow, Side::Target, backend.0, backend.1)
}

/// Lets a pod that is its own backend meet itself under another address ([`Address::ITSELF`]), so that its answer
/// comes out of it again.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn meet_itself<A: Address>(packet: &mut impl Packet, flow: &mut Flow<A>) -> Result<(), Reason> {
    rewrite(packet, flow, Side::Source, A::ITSELF, flow.source_port)
}

/// Lets another port stand for the client's own.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn stand_in<A: Address>(
    platform: &mut impl Platform<A>,
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    port: Port,
) -> Result<(), Reason> {
    note(platform, flow, Change::StandIn, (flow.source, port));
    if flow.client_port == Port::default() {
        flow.client_port = flow.source_port;
    }
    rewrite(packet, flow, Side::Source, flow.source, port)
}

/// Makes a reply what its client waits for, as the flow's row says: from the Service that it dialled, to the
/// address and port that it dialled from.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn to_client<A: Address>(
    platform: &mut impl Platform<A>,
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    connection: &Connection<A>,
) -> Result<(), Reason> {
    let mut client = (flow.target, flow.target_port);
    if client.0 == A::ITSELF {
        client.0 = flow.source;
    }
    if connection.client_port != Port::default() {
        note(platform, flow, Change::OwnPort, (client.0, connection.client_port));
        flow.client_port = flow.target_port;
        client.1 = connection.client_port;
    }
    if client != (flow.target, flow.target_port) {
        rewrite(packet, flow, Side::Target, client.0, client.1)?;
    }
    if connection.frontend == A::default() {
        return Ok(());
    }
    note(platform, flow, Change::Frontend, (connection.frontend, connection.frontend_port));
    flow.backend = flow.source;
    flow.backend_port = flow.source_port;
    rewrite(packet, flow, Side::Source, connection.frontend, connection.frontend_port)
}

/// Whether a new flow to the world has a port that another may stand for. An echo's answer has none: the
/// identifier in it is the other end's.
///
/// # Errors
/// `UnknownIcmp`.
#[inline(always)]
pub fn lends<A: Address>(flow: &Flow<A>) -> Result<(), Reason> {
    if is_icmp(flow) && flow.flags == A::ICMP.echo_reply {
        return Err(Reason::UnknownIcmp);
    }
    Ok(())
}

/// Makes a packet what it was before [`to_backend`], [`stand_in`] or [`to_client`], for an error about it: who sent
/// it must know it again. `original`: it goes the way of its flow's first. Not for a pod that met itself.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn undo<A: Address>(packet: &mut impl Packet, flow: &mut Flow<A>, original: bool) -> Result<(), Reason> {
    let port = flow.client_port;
    let stood_for = port != Port::default();
    if stood_for && original {
        rewrite(packet, flow, Side::Source, flow.source, port)?;
    }
    if stood_for && !original {
        rewrite(packet, flow, Side::Target, flow.target, port)?;
    }
    if flow.frontend != A::default() {
        rewrite(packet, flow, Side::Target, flow.frontend, flow.frontend_port)?;
    }
    if flow.backend != A::default() {
        rewrite(packet, flow, Side::Source, flow.backend, flow.backend_port)?;
    }
    Ok(())
}

/// Claims a port of the node's address for a new flow to the world. `had` is the port it had when it was
/// open before; 0 if none.
///
/// # Errors
/// `MasqueradeFull`, `MasqueradePortsExhausted`.
#[inline(never)]
pub fn claim<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, had: Port) -> Result<Port, Reason> {
    let node = platform.node();
    if node.masquerade_count == 0 {
        return Err(Reason::MasqueradePortsExhausted);
    }
    let row = Masqueraded { pod: flow.source, pod_port: flow.source_port, pad: [0; 2] };
    // 1.
    if had != Port::default() && Masquerades::get(platform, &reverse(flow, had)) == Some(row) {
        return Ok(had);
    }
    let own = flow.source_port.host().wrapping_sub(node.masquerade_first);
    let hash = flow.hash(node.seed);
    let mut key = reverse(flow, Port::default());
    let found = platform.first_of(PROBES + 1, |platform, tried| {
        let mut place = spread(hash, tried, node.masquerade_count);
        // 2.
        if tried == 0 && own < node.masquerade_count {
            place = own;
        }
        key.port = Port::new(node.masquerade_first.wrapping_add(place));
        attempt(platform, &key, &row)
    });
    if found == 0 {
        return Err(Reason::MasqueradePortsExhausted);
    }
    if found == FULL {
        return Err(Reason::MasqueradeFull);
    }
    Ok(Port::new(found as u16))
}

/// What [`attempt`] gives where no more ports can be claimed: no port's number.
const FULL: u32 = 1 << 16;

/// Tries to claim the key's port: the port if it is the row's now, 0 if it is another's, or [`FULL`].
#[inline(always)]
fn attempt<A: Address>(platform: &mut impl Platform<A>, key: &Masquerade<A>, row: &Masqueraded<A>) -> u32 {
    let mut owner = Masquerades::get(platform, key);
    if owner.is_none() {
        match Writes::<Masquerades<A>>::add(platform, key, row) {
            Ok(()) => return key.port.host() as u32,
            Err(NotAdded::Full) => return FULL,
            // Another CPU was faster; perhaps with a packet of the same flow.
            Err(NotAdded::Taken) => owner = Masquerades::get(platform, key),
        }
    }
    if owner == Some(*row) { key.port.host() as u32 } else { 0 }
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

/// Whether the node's address and this port stand for somebody towards whoever sent the packet, who is left in
/// `behind`.
#[inline(always)]
pub fn stands_for<A: Address>(
    platform: &impl Platform<A>,
    flow: &Flow<A>,
    behind: &mut Masqueraded<A>,
) -> bool {
    if flow.target != platform.address() {
        return false;
    }
    let key = Masquerade {
        remote: flow.source,
        remote_port: flow.source_port,
        port: flow.target_port,
        protocol: flow.protocol,
        pad: [0; 3],
    };
    let Some(row) = Masquerades::get(platform, &key) else {
        return false;
    };
    *behind = row;
    true
}

/// Makes a packet for the node's address one for whom [`stands_for`] has found.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn restore<A: Address>(
    platform: &mut impl Platform<A>,
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    pod: &Masqueraded<A>,
) -> Result<(), Reason> {
    note(platform, flow, Change::Restore, (pod.pod, pod.pod_port));
    rewrite(packet, flow, Side::Target, pod.pod, pod.pod_port)
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

/// Replaces an end of a whole packet of TCP or UDP, in the frame and in `ends`: its target, or its source.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn replace<A: Address>(
    packet: &mut impl Packet,
    ends: &mut Ends<A>,
    target: bool,
    (address, port): (A, Port),
) -> Result<(), Reason> {
    let side = if target { Side::Target } else { Side::Source };
    let (old, old_port) =
        if target { (ends.target, ends.target_port) } else { (ends.source, ends.source_port) };
    replace_address(packet, ethernet::LENGTH, side, (old, address))?;
    let change = (checksum::address_delta(old, address), port_delta(old_port, port));
    let mend = mend_of::<A>(ends.protocol, change, ends.pseudo_sum());
    packet.mend_end(ends.transport + checksum_offset(ends.protocol), mend).ok_or(Reason::WriteFailed)?;
    if old_port != port {
        let offset = ends.transport + port_offset::<A>(ends.protocol, side);
        packet.write(offset, port).ok_or(Reason::Truncated)?;
    }
    if target {
        (ends.target, ends.target_port) = (address, port);
    } else {
        (ends.source, ends.source_port) = (address, port);
    }
    Ok(())
}

/// Notes what takes the place of an end.
#[inline(always)]
pub fn note<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, change: Change, to: (A, Port)) {
    let (from, from_port) = match change {
        Change::Restore | Change::OwnPort => (flow.target, flow.target_port),
        Change::Frontend | Change::Masquerade | Change::StandIn => (flow.source, flow.source_port),
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
// A function of its own: inlined into the five places that call it, it would double the programs.
#[inline(never)]
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
    let mut pseudo = 0;
    // An error may come from a router on the way, whose address is nobody's business here.
    if side == Side::Target || flow.sender == old {
        replace_address(packet, ethernet::LENGTH, side, (old, address))?;
        pseudo = checksum::address_delta(old, address);
    }
    if flow.error {
        let quoted = requote(packet, flow, side, (old, address), (old_port, port))?;
        mend(packet, flow, A::ICMP.protocol, (if A::ICMP.pseudo { pseudo } else { 0 }, quoted))?;
    } else if flow.piece.offset == 0 {
        // Ports, and the checksum of the whole packet, are in its first fragment only.
        follow(packet, flow, pseudo, (old_port, port))?;
        if old_port != port {
            if flow.protocol == ip::protocol::SCTP {
                unseal(packet, flow, side, (old_port, port))?;
                packet.tell(checksum::word_delta(old_port, port));
            }
            let offset = flow.transport + port_offset::<A>(flow.protocol, side);
            packet.write(offset, port).ok_or(Reason::Truncated)?;
        }
    }
    // A checksum of IP's header makes up for the address, and so does one that covers it.
    let covered = flow.error || flow.piece.offset == 0 && flow.protocol != ip::protocol::SCTP;
    if A::CHECKSUM.is_none() && !covered {
        packet.tell(pseudo);
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

/// Whether the packet itself is one of ICMP's, whatever its flow.
#[inline(always)]
fn is_icmp<A: Address>(flow: &Flow<A>) -> bool {
    flow.error || flow.protocol == A::ICMP.protocol
}

/// Notes that a port of an SCTP packet changes, which its checksum has to follow.
///
/// # Errors
/// `SctpFragment`.
#[inline(always)]
fn unseal<A: Address>(
    packet: &impl Packet,
    flow: &mut Flow<A>,
    side: Side,
    (old, new): (Port, Port),
) -> Result<(), Reason> {
    let sum: Be32 = packet.read(flow.transport + sctp::CHECKSUM).ok_or(Reason::Truncated)?;
    if flow.piece.more && sum != Be32::new(0) {
        return Err(Reason::SctpFragment);
    }
    note_port(flow, side, (old, new));
    Ok(())
}

#[inline(always)]
fn note_port<A>(flow: &mut Flow<A>, side: Side, (old, new): (Port, Port)) {
    let change = (u16::from_le_bytes(old.0) ^ u16::from_le_bytes(new.0)) as u32;
    flow.unsealed ^= if side == Side::Source { change } else { change << 16 };
}

/// Makes the checksum of an SCTP packet, or of one that an ICMP error quotes, follow what has become of its ports.
///
/// # Errors
/// `Truncated`, `WriteFailed`.
#[inline(always)]
pub fn seal<A: Address>(packet: &mut impl Packet, flow: &Flow<A>) -> Result<(), Reason> {
    // What will be cut into segments gets its checksums then.
    if flow.unsealed == 0 || packet.segment() != 0 {
        return Ok(());
    }
    follow_ports(packet, flow)
}

/// [`seal`], where there is something to do: a call takes longer than to ask.
#[inline(never)]
fn follow_ports<A: Address>(packet: &mut impl Packet, flow: &Flow<A>) -> Result<(), Reason> {
    let (header, end) = if flow.error {
        (flow.quoted_transport, quoted_end(packet, flow)?)
    } else {
        (flow.transport, flow.end)
    };
    let offset = header + sctp::CHECKSUM;
    if offset + size_of::<Be32>() > flow.end {
        return Ok(());
    }
    let Some(before) = packet.read::<Be32>(offset) else {
        return Ok(());
    };
    if before == Be32::new(0) {
        return Ok(());
    }
    let added = crc::of_change(flow.unsealed, end.wrapping_sub(header) as u16);
    let after = Be32((u32::from_le_bytes(before.0) ^ added).to_le_bytes());
    packet.write(offset, after).ok_or(Reason::Truncated)?;
    if flow.error {
        let mend = Mend { delta: seal_delta(before, after), ..Mend::default() };
        packet.mend(flow.transport + icmp::CHECKSUM, mend).ok_or(Reason::WriteFailed)?;
    } else {
        packet.tell(seal_delta(before, after));
    }
    Ok(())
}

/// What another checksum of SCTP adds to the Internet's sum.
#[inline(always)]
fn seal_delta(before: Be32, after: Be32) -> u32 {
    let ([a, b, c, d], [e, f, g, h]) = (before.0, after.0);
    let high = checksum::word_delta(Be16([a, b]), Be16([e, f]));
    let low = checksum::word_delta(Be16([c, d]), Be16([g, h]));
    checksum::add(high, low)
}

/// Where the packet that an ICMP error quotes would end, were it all there. (A fragment's end is not the packet's;
/// but the checksum is wrong then whatever is done about it.)
#[inline(always)]
fn quoted_end<A: Address>(packet: &impl Packet, flow: &Flow<A>) -> Result<usize, Reason> {
    let field = if A::VERSION == 4 { ip::TOTAL_LENGTH } else { ip::v6::PAYLOAD_LENGTH };
    let stated: Be16 = packet.read(flow.quoted + field).ok_or(Reason::Truncated)?;
    let start = if A::VERSION == 4 { flow.quoted } else { flow.quoted + A::HEADER };
    Ok(start + stated.host() as usize)
}

/// Where the port of a side stands: an echo has but one, its identifier.
#[inline(always)]
fn port_offset<A: Address>(protocol: u8, side: Side) -> usize {
    if protocol == A::ICMP.protocol {
        icmp::IDENTIFIER
    } else if side == Side::Source {
        transport::SOURCE_PORT
    } else {
        transport::TARGET_PORT
    }
}
