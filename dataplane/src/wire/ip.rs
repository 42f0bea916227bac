//! IPv4 (RFC 791), and the fixed header of IPv6 (RFC 8200). Offsets count from the start of the header.

use core::mem::size_of;

use super::{Be16, V4, V6, plain};

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

/// What stands before the addresses in a header, as it lies in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Start {
    /// At [`VERSION_LENGTH`].
    pub version_length: u8,
    /// At [`TOS`].
    pub class: u8,
    /// At [`TOTAL_LENGTH`].
    pub total_length: Be16,
    /// At [`IDENTIFICATION`].
    pub identification: Be16,
    /// At [`FRAGMENT`].
    pub fragment: Be16,
    /// At [`TTL`].
    pub ttl: u8,
    /// At [`PROTOCOL`].
    pub protocol: u8,
    /// At [`CHECKSUM`].
    pub checksum: Be16,
}

/// The addresses of a header of either family, as they lie in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Addresses<A> {
    /// At [`super::Address::SOURCE`].
    pub source: A,
    /// At [`super::Address::TARGET`].
    pub target: A,
}

plain!(Start);
plain!(<A> Addresses);

const _: () = assert!(size_of::<Start>() == SOURCE && size_of::<Addresses<V4>>() == LENGTH - SOURCE);
const _: () = assert!(size_of::<Addresses<V6>>() == v6::LENGTH - v6::SOURCE);

/// Version 4, five words.
pub const VERSION_4_PLAIN: u8 = 0x45;
/// In [`FRAGMENT`]: do not fragment.
pub const DONT_FRAGMENT: Be16 = Be16::new(0x4000);
/// In [`FRAGMENT`], host order: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// In [`FRAGMENT`], host order: where the fragment starts.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
/// In [`TOS`]: what the network says about itself (RFC 4594, section 3.1).
pub const NETWORK_CONTROL: u8 = 0xc0;
/// The time to live of packets that the path makes itself (IANA's recommendation).
pub const DEFAULT_TTL: u8 = 64;

/// IPv6.
pub mod v6 {
    use core::mem::size_of;

    use crate::wire::{Be16, Be32, plain};

    /// As [`super::Start`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[repr(C)]
    pub struct Start {
        /// At [`VERSION_CLASS_LABEL`].
        pub version_class_label: Be32,
        /// At [`PAYLOAD_LENGTH`].
        pub payload_length: Be16,
        /// At [`NEXT_HEADER`].
        pub next_header: u8,
        /// At [`HOP_LIMIT`].
        pub hop_limit: u8,
    }

    plain!(Start);

    const _: () = assert!(size_of::<Start>() == SOURCE);

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
    /// Version 6, no traffic class, no flow label.
    pub const VERSION_6_PLAIN: Be32 = Be32::new(6 << 28);
}

/// IPv6's extension headers (RFC 8200, section 4). Offsets count from the start of each.
pub mod extension {
    /// Offset of the number of what follows.
    pub const NEXT_HEADER: usize = 0;
    /// Offset of the length in units of eight bytes, the first eight not counted.
    pub const LENGTH: usize = 1;
    /// Offset of the stops a routing header has left before the final target.
    pub const SEGMENTS_LEFT: usize = 3;
    /// Offset of a fragment's place in its packet: thirteen bits in units of eight bytes, two of nothing, one
    /// of [`MORE_FRAGMENTS`].
    pub const FRAGMENT: usize = 2;
    /// In [`FRAGMENT`], host order: more fragments follow.
    pub const MORE_FRAGMENTS: u16 = 1;
    /// Offset of the identification, which the fragments of a packet share.
    pub const IDENTIFICATION: usize = 4;
    /// Length of a fragment's header.
    pub const FRAGMENT_LENGTH: usize = 8;
}

/// The last two bits of [`TOS`], and of IPv6's traffic class (RFC 3168, section 5).
pub mod ecn {
    /// Which bits they are.
    pub const MASK: u8 = 3;
    /// The sender does not know such marks.
    pub const NOT_CAPABLE: u8 = 0;
    /// It does: the second of two ways to say so (RFC 8311).
    pub const CAPABLE_1: u8 = 1;
    /// It does.
    pub const CAPABLE_0: u8 = 2;
    /// A queue on the way was congested.
    pub const EXPERIENCED: u8 = 3;
}

/// Protocol numbers (IANA).
pub mod protocol {
    /// RFC 792.
    pub const ICMP: u8 = 1;
    /// An IPv4 packet (RFC 2003).
    pub const IPV4: u8 = 4;
    /// An IPv6 packet (RFC 2473).
    pub const IPV6: u8 = 41;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
    /// RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// RFC 9260.
    pub const SCTP: u8 = 132;
    /// Options for every hop (RFC 8200, section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// Stops on the way (RFC 8200, section 4.4).
    pub const ROUTING: u8 = 43;
    /// A fragment (RFC 8200, section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// Encrypted payload (RFC 4303).
    pub const ESP: u8 = 50;
    /// Signed payload (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// Options for the target (RFC 8200, section 4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// Mobility (RFC 6275).
    pub const MOBILITY: u8 = 135;
    /// Host identity (RFC 7401).
    pub const HOST_IDENTITY: u8 = 139;
    /// Several addresses for one host (RFC 5533).
    pub const SHIM6: u8 = 140;

    /// Whether its header begins with two ports.
    #[inline(always)]
    pub const fn has_ports(protocol: u8) -> bool {
        protocol == TCP || protocol == UDP || protocol == SCTP
    }

    /// Whether its ends open connections and close them.
    #[inline(always)]
    pub const fn connects(protocol: u8) -> bool {
        protocol == TCP || protocol == SCTP
    }

    /// Whether it is one of IPv6's extension headers (IANA's list), known to the path or not.
    #[inline(always)]
    pub const fn is_extension(protocol: u8) -> bool {
        protocol == HOP_BY_HOP
            || protocol == ROUTING
            || protocol == FRAGMENT
            || protocol == ESP
            || protocol == AUTHENTICATION
            || protocol == DESTINATION_OPTIONS
            || protocol == MOBILITY
            || protocol == HOST_IDENTITY
            || protocol == SHIM6
    }
}
