//! VXLAN (RFC 7348): a whole Ethernet frame inside UDP.

use super::{Be32, ethernet, ip, transport::udp};

/// Offset of the flags word from the start of the VXLAN header.
pub const FLAGS: usize = 0;
/// Offset of the network identifier (high 24 bits).
pub const VNI: usize = 4;
/// Length of the VXLAN header.
pub const LENGTH: usize = 8;
/// The only flag: the network identifier is valid.
pub const VALID_VNI: Be32 = Be32::new(0x0800_0000);

/// What encapsulation adds to a packet whose outer IP header has `header` bytes: that, UDP and VXLAN headers,
/// and the inner Ethernet header.
#[inline(always)]
pub const fn overhead(header: usize) -> usize {
    header + udp::LENGTH + LENGTH + ethernet::LENGTH
}

const _: () = assert!(overhead(ip::LENGTH) == 50 && overhead(ip::v6::LENGTH) == 70);
