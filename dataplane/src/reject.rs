//! Answer a packet that goes no further: it is too big, or nobody is there to take it.
//!
//! Reads the frame. Makes of it an ICMP error, or a TCP reset. Drops `TooBig`, `NoBackend`.
//!
//! 1. What the way takes in one piece passes. Of a packet that will be cut into segments, each segment counts.
//! 2. Nobody is told about an ICMP error, nor about a fragment other than the first, nor about what was for more
//!    than one, or is from no single host (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4).
//! 3. Nobody is told about an IPv4 packet that may be cut: it is dropped. The path cuts nothing, and makes no
//!    sender look for a fault where it made none.
//! 4. Everybody else whose packet is too big gets an error, a pod from the address that is its gateway, with as much of
//!    its packet as the family's rules let an error quote, in whole words of four bytes, and no more than fits.
//! 5. Where a Service has nobody to answer, the answer is the one of a host on which nobody listens, from the
//!    address that was dialled: TCP gets a reset (which is itself never answered), everything else an error that
//!    the port is unreachable.
//!
//! An error is never longer than [`longest`], and one answers one packet. What a pod or the node itself sent is
//! answered over the sender's own link, which nobody shares; there is nothing that a limit of their rate would
//! protect. Who dials from outside is answered by the neighbour that passed the packet on, with 28 bytes more
//! (IPv6: 48) than the packet has at most.
//!
//! Source: RFC 792 and RFC 1191 (IPv4), RFC 4443 sections 3.1 and 3.2 and RFC 8201 (IPv6), RFC 9293 section
//! 3.10.7.1 (resets); Kubernetes, "Virtual IPs and Service Proxies" (kube-proxy rejects likewise).

use crate::Reason;
use crate::flow::Flow;
use crate::header::{self, Header};
use crate::platform::{Machine, Mend, Packet};
use crate::trace::{self, Record, Stage};
use crate::wire::transport::{self, tcp, udp};
use crate::wire::{Address, Be16, Be32, Mac, V4, V6, checksum, ethernet, icmp, ip};

/// In the trace: the sender is told for what size there is room.
pub const ROOM: u8 = 1;
/// In the trace: the sender's connection is reset.
pub const RESET: u8 = 2;
/// In the trace: the sender is told that nobody is at the port.
pub const UNREACHABLE: u8 = 3;

/// Bytes that are summed in one step; quotes are so many times a whole number long.
const STEP: usize = 4;

/// The longest error of a family, in bytes of its IP packet (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
#[inline(always)]
pub const fn longest<A: Address>() -> usize {
    if A::VERSION == 4 { 576 } else { 1280 }
}

/// The longest quote of such an error.
const fn longest_quote<A: Address>() -> usize {
    longest::<A>() - A::HEADER - icmp::LENGTH
}

/// Whether an IP packet of at most `room` bytes may take this frame's, whose transport header of that protocol stands
/// there.
///
/// # Errors
/// `Truncated`.
#[inline(always)]
pub fn fits(packet: &impl Packet, (transport, protocol): (usize, u8), room: u32) -> Result<bool, Reason> {
    // 1.
    let segment = packet.segment();
    if segment == 0 {
        return Ok(packet.length() <= room + ethernet::LENGTH as u32);
    }
    let mut headers = transport + udp::LENGTH;
    if protocol == ip::protocol::TCP {
        let length: u8 = packet.read(transport + tcp::DATA_OFFSET).ok_or(Reason::Truncated)?;
        headers = transport + (length >> 4) as usize * 4;
    }
    Ok(headers as u32 + segment <= room + ethernet::LENGTH as u32)
}

/// Makes the frame, as its sender sent it, an error that goes back to the sender: there is `room` for IP packets
/// of so many bytes.
///
/// # Errors
/// `TooBig`: the packet is dropped, and nobody is told.
#[inline(always)]
pub fn too_big<A: Address>(
    platform: &mut impl Machine,
    packet: &mut impl Packet,
    flow: &Flow<A>,
    room: u32,
    teller: A,
) -> Result<(), Reason> {
    // 2.
    if !may_be_answered(packet, flow) {
        return Err(Reason::TooBig);
    }
    // 3.
    if A::VERSION == 4 {
        let fragment: Be16 = packet.read(ethernet::LENGTH + ip::FRAGMENT).ok_or(Reason::TooBig)?;
        if fragment.host() & ip::DONT_FRAGMENT.host() == 0 {
            return Err(Reason::TooBig);
        }
    }
    // 4.
    let code = if A::VERSION == 4 { icmp::FRAGMENTATION_NEEDED } else { 0 };
    let complaint = Complaint {
        source: teller,
        kind: Be16([A::ICMP.too_big, code]),
        rest: Be32::new(room),
        most: if room < longest::<A>() as u32 { room } else { longest::<A>() as u32 },
        reason: Reason::TooBig,
    };
    error(packet, flow, &complaint)?;
    trace::step(platform, || Record { detail: ROOM, number: room, ..flow.record(Stage::Reject) });
    Ok(())
}

/// Makes the frame, as its sender sent it, the answer of a host on which nobody listens.
///
/// # Errors
/// `NoBackend`: the packet is dropped, and nobody is told.
#[inline(always)]
pub fn nobody_there<A: Address>(
    platform: &mut impl Machine,
    packet: &mut impl Packet,
    flow: &Flow<A>,
) -> Result<(), Reason> {
    // 2.
    if !may_be_answered(packet, flow) {
        return Err(Reason::NoBackend);
    }
    // 5.
    if flow.protocol == ip::protocol::TCP {
        reset(packet, flow).ok_or(Reason::NoBackend)?;
        trace::step(platform, || Record { detail: RESET, ..flow.record(Stage::Reject) });
        return Ok(());
    }
    let complaint = Complaint {
        source: flow.target,
        kind: Be16([A::ICMP.unreachable, A::ICMP.port_unreachable]),
        rest: Be32::new(0),
        most: longest::<A>() as u32,
        reason: Reason::NoBackend,
    };
    error(packet, flow, &complaint)?;
    trace::step(platform, || Record { detail: UNREACHABLE, ..flow.record(Stage::Reject) });
    Ok(())
}

/// Whether anybody may be told what became of the packet.
#[inline(always)]
fn may_be_answered<A: Address>(packet: &impl Packet, flow: &Flow<A>) -> bool {
    if flow.error || flow.piece.offset != 0 || !flow.sender.is_one_host() {
        return false;
    }
    let to: Option<Mac> = packet.read(ethernet::TARGET);
    to.is_some_and(|to| !to.is_group())
}

/// What an ICMP error says.
struct Complaint<A> {
    /// Who says it.
    source: A,
    /// Type and code.
    kind: Be16,
    /// The rest of its header.
    rest: Be32,
    /// The most bytes that its IP packet may have.
    most: u32,
    /// Why the packet it is about is refused.
    reason: Reason,
}

/// Makes the frame an error about its packet, to who sent that.
///
/// # Errors
/// The complaint's reason: there is no room for it.
// A function of its own, whoever complains: the sum of a quote is long.
#[inline(never)]
fn error<A: Address>(
    packet: &mut impl Packet,
    flow: &Flow<A>,
    complaint: &Complaint<A>,
) -> Result<(), Reason> {
    quote(packet, flow, complaint).ok_or(complaint.reason)
}

#[inline(always)]
fn quote<A: Address>(packet: &mut impl Packet, flow: &Flow<A>, complaint: &Complaint<A>) -> Option<()> {
    let message = ethernet::LENGTH + A::HEADER;
    let quote = message + icmp::LENGTH;
    let length = quotable(packet, flow, complaint.most);
    packet.trim((ethernet::LENGTH + length) as u32)?;
    packet.open_error(A::FAMILY)?;
    packet.pull((quote + length) as u32);
    let (source, target) = (complaint.source, flow.sender);
    let header = Header {
        source,
        target,
        protocol: A::ICMP.protocol,
        class: ip::NETWORK_CONTROL,
        length: (icmp::LENGTH + length) as u16,
    };
    header::write(packet, &header)?;
    let [a, b, c, d] = complaint.rest.0;
    let mut sum = sum::<A>(packet, quote, length)?;
    let mut words = [complaint.kind, Be16([a, b]), Be16([c, d]), Be16::default(), Be16::default()];
    if A::ICMP.pseudo {
        sum += source.sum() + target.sum();
        words = [
            complaint.kind,
            Be16([a, b]),
            Be16([c, d]),
            Be16::new(header.length),
            Be16([0, header.protocol]),
        ];
    }
    packet.write(message + icmp::TYPE, complaint.kind)?;
    packet.write(message + icmp::CHECKSUM, checksum::of(words, sum))?;
    packet.write(message + icmp::REST, complaint.rest)?;
    turn(packet)
}

/// How many bytes of the frame's packet an error of at most so many bytes quotes: nothing of what only pads the
/// frame.
#[inline(always)]
fn quotable<A: Address>(packet: &impl Packet, flow: &Flow<A>, most: u32) -> usize {
    let most = (most as usize).saturating_sub(A::HEADER + icmp::LENGTH);
    let length = end(packet, flow).saturating_sub(ethernet::LENGTH);
    (if length < most { length } else { most }) & !(STEP - 1)
}

/// Where the packet ends in the frame. What will be cut into segments later may say anything of its length.
#[inline(always)]
fn end<A>(packet: &impl Packet, flow: &Flow<A>) -> usize {
    if packet.segment() == 0 { flow.end } else { packet.length() as usize }
}

/// Makes the frame the reset that a connection gets which is not there.
#[inline(always)]
fn reset<A: Address>(packet: &mut impl Packet, flow: &Flow<A>) -> Option<()> {
    if flow.flags & tcp::RST != 0 {
        return None;
    }
    let words: u8 = packet.read(flow.transport + tcp::DATA_OFFSET)?;
    let header = (words >> 4) as usize * 4;
    let (start, end) = (flow.transport + header, end(packet, flow));
    if header < tcp::LENGTH || end < start {
        return None;
    }
    let mut sequence: Be32 = packet.read(flow.transport + tcp::ACKNOWLEDGMENT)?;
    let (mut acknowledgment, mut flags) = (Be32::new(0), tcp::RST);
    if flow.flags & tcp::ACK == 0 {
        let first: Be32 = packet.read(flow.transport + tcp::SEQUENCE)?;
        let opens = (flow.flags & tcp::SYN != 0) as u32;
        let ends = (flow.flags & tcp::FIN != 0) as u32;
        let length = ((end - start) as u32).wrapping_add(opens + ends);
        sequence = Be32::new(0);
        acknowledgment = Be32::new(first.host().wrapping_add(length));
        flags = tcp::RST | tcp::ACK;
    }
    // Options and extensions go, and the segment stays where the kernel knows its checksum to be.
    let segment = ethernet::LENGTH + A::HEADER;
    packet.strip((flow.transport - segment) as u32)?;
    packet.trim((segment + tcp::LENGTH) as u32)?;
    let header = Header {
        source: flow.target,
        target: flow.sender,
        protocol: ip::protocol::TCP,
        class: 0,
        length: tcp::LENGTH as u16,
    };
    header::write(packet, &header)?;
    let ([a, b, c, d], [e, f, g, h]) = (sequence.0, acknowledgment.0);
    let offset_flags = Be16([(tcp::LENGTH as u8 / 4) << 4, flags]);
    packet.write(segment + transport::SOURCE_PORT, flow.target_port)?;
    packet.write(segment + transport::TARGET_PORT, flow.source_port)?;
    packet.write(segment + tcp::SEQUENCE, sequence)?;
    packet.write(segment + tcp::ACKNOWLEDGMENT, acknowledgment)?;
    packet.write(segment + tcp::DATA_OFFSET, offset_flags)?;
    packet.write(segment + tcp::WINDOW, Be16::new(0))?;
    packet.write(segment + tcp::URGENT, Be16::new(0))?;
    let addresses = header.source.sum() + header.target.sum();
    let (length, protocol) = (Be16::new(header.length), Be16([0, header.protocol]));
    let pseudo = checksum::of([length, protocol], addresses);
    let whole = checksum::of(
        [
            length,
            protocol,
            flow.target_port,
            flow.source_port,
            Be16([a, b]),
            Be16([c, d]),
            Be16([e, f]),
            Be16([g, h]),
            offset_flags,
        ],
        addresses,
    );
    // A checksum that the sender left to its network card covers the pseudo-header only, and nobody but the engine
    // knows of it: so that is written, and the rest is a change for the engine to follow.
    packet.write(segment + tcp::CHECKSUM, inverted(pseudo))?;
    let delta = checksum::word_delta(pseudo, inverted(whole));
    packet.mend(segment + tcp::CHECKSUM, Mend { delta, ..Mend::default() })?;
    turn(packet)
}

#[inline(always)]
fn inverted(word: Be16) -> Be16 {
    let [high, low] = word.0;
    Be16([!high, !low])
}

/// Sends the frame back to whom it came from on the link.
#[inline(always)]
fn turn(packet: &mut impl Packet) -> Option<()> {
    let to: Mac = packet.read(ethernet::SOURCE)?;
    let from: Mac = packet.read(ethernet::TARGET)?;
    packet.write(ethernet::TARGET, to)?;
    packet.write(ethernet::SOURCE, from)
}

/// The sum of everything from `offset` on, folded into 16 bits, if that is `length` bytes.
///
/// The frame's end is what ends it early: of two bounds, one of them unknown, the compiler makes a third, by which
/// the verifier sees no end ("sequence of 8193 jumps is too complex", kernel 6.18).
#[inline(always)]
fn sum<A: Address>(packet: &impl Packet, offset: usize, length: usize) -> Option<u32> {
    let mut sum = 0u64;
    let mut summed = 0;
    while summed < const { longest_quote::<A>() } {
        let Some(word) = packet.read::<u32>(offset + summed) else {
            break;
        };
        sum += word as u64;
        summed += STEP;
    }
    if summed != length {
        return None;
    }
    Some(checksum::fold(checksum::add(sum as u32, (sum >> 32) as u32)) as u32)
}

/// Who tells a pod: its end of the link knows its other end by this address only.
#[inline(always)]
pub fn gateway<A: Address>() -> A {
    A::from_v6(if A::VERSION == 4 { V4::GATEWAY.to_v6() } else { V6::GATEWAY })
}
