//! The IP headers that the path writes itself: around what goes into the tunnel, and of errors.
//!
//! Source: RFC 791, RFC 6864 (a packet that is never cut needs no identification), RFC 8200.

use crate::platform::Packet;
use crate::wire::{Address, Be16, Be32, checksum, ethernet, ip};

/// What such a header says; hops are [`ip::DEFAULT_TTL`].
#[derive(Clone, Copy, Debug)]
pub struct Header<A> {
    /// Who sends.
    pub source: A,
    /// Whom it is for.
    pub target: A,
    /// What follows.
    pub protocol: u8,
    /// Differentiated services and ECN, as [`class`] reads them.
    pub class: u8,
    /// How many bytes follow.
    pub length: u16,
}

/// Writes a header, and its type, behind the frame's hardware addresses; `None` if the frame ends before. An IPv4
/// packet may not be cut by routers, as an IPv6 one.
#[inline(always)]
pub fn write<A: Address>(packet: &mut impl Packet, header: &Header<A>) -> Option<()> {
    const START: usize = ethernet::LENGTH;
    packet.write(ethernet::TYPE, A::ETHERTYPE)?;
    if A::VERSION == 4 {
        let total_length = Be16::new(header.length.wrapping_add(ip::LENGTH as u16));
        let words = [
            Be16([ip::VERSION_4_PLAIN, header.class]),
            total_length,
            ip::DONT_FRAGMENT,
            Be16([ip::DEFAULT_TTL, header.protocol]),
        ];
        let start = ip::Start {
            version_length: ip::VERSION_4_PLAIN,
            class: header.class,
            total_length,
            identification: Be16::new(0),
            fragment: ip::DONT_FRAGMENT,
            ttl: ip::DEFAULT_TTL,
            protocol: header.protocol,
            checksum: checksum::of(words, header.source.sum() + header.target.sum()),
        };
        packet.write(START, start)?;
    } else {
        let start = ip::v6::Start {
            version_class_label: Be32::new(6 << 28 | (header.class as u32) << 20),
            payload_length: Be16::new(header.length),
            next_header: header.protocol,
            hop_limit: ip::DEFAULT_TTL,
        };
        packet.write(START, start)?;
    }
    packet.write(START + A::SOURCE, ip::Addresses { source: header.source, target: header.target })
}

/// The byte of differentiated services (RFC 2474) and ECN (RFC 3168) in the header at `offset`; `None` if the
/// frame ends before.
#[inline(always)]
pub fn class<A: Address>(packet: &impl Packet, offset: usize) -> Option<u8> {
    if A::VERSION == 4 {
        return packet.read(offset + ip::TOS);
    }
    let start: Be16 = packet.read(offset + ip::v6::VERSION_CLASS_LABEL)?;
    Some((start.host() >> 4) as u8)
}

/// Replaces the ECN bits of the frame's own header; `None` if the frame ends before.
#[inline(always)]
pub fn mark<A: Address>(packet: &mut impl Packet, ecn: u8) -> Option<()> {
    const START: usize = ethernet::LENGTH;
    let before: Be16 = packet.read(START)?;
    let shift = if A::VERSION == 4 { 0 } else { 4 };
    let marked = before.host() & !((ip::ecn::MASK as u16) << shift) | (ecn as u16) << shift;
    let after = Be16::new(marked);
    packet.write(START, after)?;
    if let Some(offset) = A::CHECKSUM {
        let sum: Be16 = packet.read(START + offset)?;
        packet.write(START + offset, checksum::mended(sum, checksum::word_delta(before, after)))?;
    } else {
        packet.tell(checksum::word_delta(before, after));
    }
    Some(())
}
