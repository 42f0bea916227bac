//! VXLAN (RFC 7348) and Geneve (RFC 8926): a whole Ethernet frame inside UDP. Offsets count from the start of the
//! tunnel's header.

use super::{Be32, ethernet, ip, transport::udp};

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
    /// are for the tunnel's end itself; the flag of options that must be understood; the type of what follows.
    pub const FIXED: u32 = 0xc0c0_ffff;
    /// In host order: how far right the length of the options stands.
    pub const OPTIONS_SHIFT: u32 = 24;
    /// The bits of the options' length, in words.
    pub const OPTIONS_WORDS: u32 = 0x3f;
}

/// What encapsulation adds to a packet whose outer IP header has `header` bytes: that, UDP and tunnel headers,
/// and the inner Ethernet header.
#[inline(always)]
pub const fn overhead(header: usize) -> usize {
    header + udp::LENGTH + LENGTH + ethernet::LENGTH
}

const _: () = assert!(overhead(ip::LENGTH) == 50 && overhead(ip::v6::LENGTH) == 70);
