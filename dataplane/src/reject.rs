//! Tell a sender that its packet is too big, and for what size there is room.
//!
//! Reads the frame. Makes an ICMP error of it. Drops `TooBig`.
//!
//! 1. What the way takes in one piece passes. Of a packet that will be cut into segments, each segment counts.
//! 2. Nobody is told about an ICMP error, nor about a fragment other than the first (RFC 1812 section 4.3.2.7,
//!    RFC 4443 section 2.4).
//! 3. Nobody is told about an IPv4 packet that may be cut: it is dropped. The path cuts nothing, and makes no
//!    sender look for a fault where it made none.
//! 4. Everybody else gets an error from the address that is its gateway, with as much of its packet as the
//!    family's rules let an error quote, in whole words of four bytes, and no more than fits.
//!
//! An error is never longer than the packet it is about, or than [`longest`]; it goes back over the sender's own
//! link, which nobody shares: there is nothing that a limit of their rate would protect.
//!
//! Source: RFC 792 and RFC 1191 (IPv4), RFC 4443 section 3.2 and RFC 8201 (IPv6).

use crate::Reason;
use crate::flow::Flow;
use crate::header::{self, Header};
use crate::platform::{Machine, Packet};
use crate::trace::{self, Record, Stage};
use crate::wire::transport::{tcp, udp};
use crate::wire::{Address, Be16, Be32, Mac, V4, V6, checksum, ethernet, icmp, ip};

/// Bytes that are summed in one step; quotes are so many times a whole number long.
const STEP: usize = 4;
/// The longest quote of both families.
const LONGEST_QUOTE: usize = longest::<V6>() - ip::v6::LENGTH - icmp::LENGTH;

/// The longest error of a family, in bytes of its IP packet (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
#[inline(always)]
pub const fn longest<A: Address>() -> usize {
    if A::VERSION == 4 { 576 } else { 1280 }
}

/// Whether an IP packet of at most `room` bytes may take this frame's.
///
/// # Errors
/// `Truncated`.
#[inline(always)]
pub fn fits<A: Address>(packet: &impl Packet, flow: &Flow<A>, room: u32) -> Result<bool, Reason> {
    // 1.
    let segment = packet.segment();
    if segment == 0 {
        return Ok(packet.length() <= room + ethernet::LENGTH as u32);
    }
    let mut headers = flow.transport + udp::LENGTH;
    if flow.protocol == ip::protocol::TCP {
        let length: u8 = packet.read(flow.transport + tcp::DATA_OFFSET).ok_or(Reason::Truncated)?;
        headers = flow.transport + (length >> 4) as usize * 4;
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
) -> Result<(), Reason> {
    // 2.
    if flow.error || flow.piece.offset != 0 {
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
    error(packet, flow.sender, room).ok_or(Reason::TooBig)?;
    trace::step(platform, || Record { number: room, ..flow.record(Stage::Reject) });
    Ok(())
}

/// Makes the frame an error about its packet, to `sender`.
#[inline(always)]
fn error<A: Address>(packet: &mut impl Packet, sender: A, room: u32) -> Option<()> {
    let message = ethernet::LENGTH + A::HEADER;
    let quote = message + icmp::LENGTH;
    let length = quotable::<A>(packet, room);
    packet.trim((ethernet::LENGTH + length) as u32)?;
    packet.open_error(A::FAMILY)?;
    packet.pull((quote + length) as u32);
    let source = gateway::<A>();
    let header = Header {
        source,
        target: sender,
        protocol: A::ICMP.protocol,
        class: ip::NETWORK_CONTROL,
        length: (icmp::LENGTH + length) as u16,
    };
    header::write(packet, &header)?;
    let kind = Be16([A::ICMP.too_big, if A::VERSION == 4 { icmp::FRAGMENTATION_NEEDED } else { 0 }]);
    let room = Be32::new(room);
    let [_, _, high, low] = room.0;
    let mut sum = sum(packet, quote, length)?;
    let mut words = [kind, Be16([high, low]), Be16::default(), Be16::default()];
    if A::ICMP.pseudo {
        sum += source.sum() + sender.sum();
        words = [kind, Be16([high, low]), Be16::new(header.length), Be16([0, header.protocol])];
    }
    packet.write(message + icmp::TYPE, kind)?;
    packet.write(message + icmp::CHECKSUM, checksum::of(words, sum))?;
    packet.write(message + icmp::MTU, room)?;
    let to: Mac = packet.read(ethernet::SOURCE)?;
    let from: Mac = packet.read(ethernet::TARGET)?;
    packet.write(ethernet::TARGET, to)?;
    packet.write(ethernet::SOURCE, from)
}

/// How many bytes of the frame's packet an error quotes.
#[inline(always)]
fn quotable<A: Address>(packet: &impl Packet, room: u32) -> usize {
    let mut most = longest::<A>();
    if room < most as u32 {
        most = room as usize;
    }
    most = most.saturating_sub(A::HEADER + icmp::LENGTH);
    let length = (packet.length() as usize).saturating_sub(ethernet::LENGTH);
    (if length < most { length } else { most }) & !(STEP - 1)
}

/// The sum of everything from `offset` on, folded into 16 bits, if that is `length` bytes.
///
/// The frame's end is what ends it early: of two bounds, one of them unknown, the compiler makes a third, by which
/// the verifier sees no end ("sequence of 8193 jumps is too complex", kernel 6.18).
#[inline(always)]
fn sum(packet: &impl Packet, offset: usize, length: usize) -> Option<u32> {
    let mut sum = 0u64;
    let mut summed = 0;
    while summed < LONGEST_QUOTE {
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

/// The pod's end of the link knows its other end by this address only.
#[inline(always)]
fn gateway<A: Address>() -> A {
    A::from_v6(if A::VERSION == 4 { V4::GATEWAY.to_v6() } else { V6::GATEWAY })
}
