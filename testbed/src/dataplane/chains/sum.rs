//! Checksums: of IP and what it carries (RFC 1071), mended by difference (RFC 1624), and of SCTP.

use super::frame::{Address, Tuple, protocol};

/// The sum of the words of both addresses.
pub(super) fn ends(tuple: &Tuple) -> u64 {
    let words = |address: Address| -> u64 {
        if address.is_v4() {
            u64::from(address.low() >> 16) + u64::from(address.low() & 0xffff)
        } else {
            (0..8).map(|at| (address.bits() >> (16 * at)) as u64 & 0xffff).sum()
        }
    };
    words(tuple.source) + words(tuple.target)
}

/// The one's complement of a sum, so that it can be taken off by adding.
pub(super) fn negated(sum: u64) -> u64 {
    u64::from(!folded(sum))
}

pub(super) fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Mends the checksum at this place, if it is there, by the difference of the words under it (RFC 1624, equation 3).
pub(super) fn mend(bytes: &mut [u8], at: usize, difference: u64) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        let old = u16::from_be_bytes([field[0], field[1]]);
        let new = !folded(u64::from(!old) + difference);
        field.copy_from_slice(&new.to_be_bytes());
    }
}

pub(super) fn raw_sum(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(2);
    let last = pairs.remainder().first().map_or(0, |last| u64::from(*last) << 8);
    pairs.map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>() + last
}

/// The Internet checksum (RFC 1071); 0 over what holds the right one.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    !folded(raw_sum(bytes))
}

/// Writes an ICMP message's checksum, which for IPv6 is about its ends as well.
pub(super) fn sum_icmp(message: &mut [u8], ends_of: &Tuple) {
    message[2..4].fill(0);
    let pseudo = if ends_of.source.is_v4() {
        0
    } else {
        ends(ends_of) + message.len() as u64 + u64::from(protocol::ICMP_V6)
    };
    let sum = !folded(raw_sum(message) + pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// Writes a TCP segment's checksum.
pub(super) fn sum_tcp(segment: &mut [u8], ends_of: &Tuple) {
    segment[16..18].fill(0);
    let pseudo = ends(ends_of) + segment.len() as u64 + u64::from(protocol::TCP);
    let sum = !folded(raw_sum(segment) + pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// SCTP's checksum as it stands in the header: CRC32c of the whole packet, with zeros in the checksum's place. It does
/// not cover addresses. Source: RFC 9260, appendix A.
pub(super) fn sctp_checksum(packet: &[u8]) -> [u8; 4] {
    let bytes = packet.iter().enumerate();
    crc32c(bytes.map(|(at, byte)| if (8..12).contains(&at) { 0 } else { *byte })).to_le_bytes()
}

/// What is left of each byte (Castagnoli's polynomial, mirrored).
const REMAINDERS: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut left = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            left = left >> 1 ^ (0x82f6_3b78 & (left & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = left;
        byte += 1;
    }
    table
};

pub(super) fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0_u32, |sum, byte| REMAINDERS[usize::from(sum as u8 ^ byte)] ^ sum >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_castagnoli_is_that_of_its_catalogue() {
        // The check value of CRC-32/ISCSI, which is the same sum.
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
    }
}
