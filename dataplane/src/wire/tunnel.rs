//! VXLAN (RFC 7348) and Geneve (RFC 8926): a whole Ethernet frame inside UDP. Offsets count from the start of the
//! tunnel's header.

use core::mem::size_of;

use super::{Address, Be32, V4, V6, ethernet, ip, plain, transport::udp};

/// A header, in Geneve without its options, and that of UDP before it, as they lie in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// Before it.
    pub datagram: udp::Header,
    /// At [`FLAGS`].
    pub flags: Be32,
    /// At [`VNI`].
    pub vni: Be32,
}

plain!(Header);

const _: () = assert!(size_of::<Header>() == udp::LENGTH + LENGTH);

/// Offset of the first word: flags, and in Geneve what follows.
pub const FLAGS: usize = 0;
/// Offset of the network identifier (high 24 bits); the low 8 bits are reserved.
pub const VNI: usize = 4;
/// Length of the header, in Geneve without its options.
pub const LENGTH: usize = 8;

/// VXLAN's first word: a flag, and reserved bits that are sent as zero and ignored on receipt.
pub mod vxlan {
    use super::Be32;

    /// The only flag: the network identifier is valid.
    pub const VALID_VNI: Be32 = Be32::new(0x0800_0000);
}

/// Geneve's first word: version (2 bits), length of the options in words (6), two flags, reserved bits (6), and
/// the type of what follows (16).
pub mod geneve {
    use super::Be32;

    /// Version 0, no options, no flags, an Ethernet frame (0x6558) follows.
    pub const PLAIN: Be32 = Be32::new(0x6558);
    /// In host order, everything that must be as in [`PLAIN`]: the version; the flag of control packets, which
    /// are for the tunnel's end itself; the type of what follows.
    pub const FIXED: u32 = 0xc080_ffff;
    /// In host order: there are options that must be understood.
    pub const CRITICAL: u32 = 0x0040_0000;
    /// In host order: how far right the length of the options stands.
    pub const OPTIONS_SHIFT: u32 = 24;
    /// The bits of the options' length, in words.
    pub const OPTIONS_WORDS: u32 = 0x3f;
}

/// Geneve's options (RFC 8926 section 3.5). Each starts with a word: class (16 bits), type (8, of which the first
/// says that it must be understood), reserved bits (3), and the length of what follows in words (5).
pub mod option {
    use super::Address;

    /// Length of an option's first word.
    pub const HEADER: usize = 4;
    /// Offset of the address in [`frontend`].
    pub const ADDRESS: usize = HEADER;
    /// In host order: the option must be understood.
    pub const CRITICAL: u32 = 0x8000;
    /// In host order: bits that are sent as zero and ignored on receipt.
    pub const RESERVED: u32 = 0xe0;
    /// In host order: the length of what follows, in words.
    pub const WORDS: u32 = 0x1f;

    /// The first word, in host order, of the option that says what the client dialled: an address of the family,
    /// its port, two bytes of zero. Of a class for experiments (RFC 8926 section 7), and to be understood: a node
    /// that doesn't know it could not answer the client.
    #[inline(always)]
    pub const fn frontend<A: Address>() -> u32 {
        0xff70_8100 | ((frontend_length::<A>() - HEADER) as u32 / 4)
    }

    /// Its length in bytes.
    #[inline(always)]
    pub const fn frontend_length<A: Address>() -> usize {
        HEADER + size_of::<A>() + 4
    }
}

/// What encapsulation adds to a packet whose outer IP header has `header` bytes: that, UDP and tunnel headers,
/// and the inner Ethernet header.
#[inline(always)]
pub const fn overhead(header: usize) -> usize {
    header + udp::LENGTH + LENGTH + ethernet::LENGTH
}

const _: () = assert!(overhead(ip::LENGTH) == 50 && overhead(ip::v6::LENGTH) == 70);
const _: () = assert!(option::frontend_length::<V4>() == 12 && option::frontend_length::<V6>() == 24);
const _: () = assert!(option::frontend::<V4>() == 0xff70_8102 && option::frontend::<V6>() == 0xff70_8105);
