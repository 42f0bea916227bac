//! IPv4 (RFC 791), and the fixed header of IPv6 (RFC 8200). Offsets count from the start of the header.

use super::{Be16, checksum};

/// Offset of version (high four bits) and header length in words (low four).
pub const VERSION_LENGTH: usize = 0;
/// Offset of the differentiated services field (RFC 2474) and ECN (RFC 3168).
pub const TOS: usize = 1;
/// Offset of the length of header and payload.
pub const TOTAL_LENGTH: usize = 2;
/// Offset of the identification, which the fragments of a packet share.
pub const IDENTIFICATION: usize = 4;
/// Offset of flags (three bits) and fragment offset (thirteen, in units of eight bytes).
pub const FRAGMENT: usize = 6;
/// Offset of the time to live; the protocol follows it.
pub const TTL: usize = 8;
/// Offset of the protocol.
pub const PROTOCOL: usize = 9;
/// Offset of the header's checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address.
pub const SOURCE: usize = 12;
/// Offset of the target address.
pub const TARGET: usize = 16;
/// Length of a header without options.
pub const LENGTH: usize = 20;

/// Version 4, five words.
pub const VERSION_4_PLAIN: u8 = 0x45;
/// In [`FRAGMENT`]: do not fragment.
pub const DONT_FRAGMENT: Be16 = Be16::new(0x4000);
/// In [`FRAGMENT`], host order: more fragments follow, or an offset other than 0.
pub const IS_FRAGMENT: u16 = 0x3fff;
/// The time to live of packets that the path makes itself (IANA's recommendation).
pub const DEFAULT_TTL: u8 = 64;

/// IPv6.
pub mod v6 {
    /// Offset of version (4 bits), traffic class (8) and flow label (20).
    pub const VERSION_CLASS_LABEL: usize = 0;
    /// Offset of the length of what follows the fixed header.
    pub const PAYLOAD_LENGTH: usize = 4;
    /// Offset of the number of what follows.
    pub const NEXT_HEADER: usize = 6;
    /// Offset of the hops it may still take.
    pub const HOP_LIMIT: usize = 7;
    /// Offset of the source address.
    pub const SOURCE: usize = 8;
    /// Offset of the target address.
    pub const TARGET: usize = 24;
    /// Length of the fixed header.
    pub const LENGTH: usize = 40;
}

/// Protocol numbers (IANA).
pub mod protocol {
    /// RFC 792.
    pub const ICMP: u8 = 1;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
}

/// The checksum of a header of these words and addresses with this sum; words left out are zero.
#[inline(always)]
pub fn header_checksum(words: [Be16; 4], addresses: u32) -> Be16 {
    let mut sum = addresses;
    for word in words {
        sum += u16::from_ne_bytes(word.0) as u32;
    }
    Be16((!checksum::fold(sum)).to_ne_bytes())
}
