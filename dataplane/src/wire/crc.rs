//! CRC32c, the checksum of SCTP, and its correction after a change.
//!
//! Bytes are read as the coefficients of a polynomial over two elements, the lowest bit of each byte for the highest
//! power, and the checksum is its remainder. Remainders add up: what a change adds to the bytes, moved to its place
//! by a power of `x`, is what it adds to the checksum. Nobody has to read the bytes that stay.
//!
//! Source: RFC 9260 appendix A; Castagnoli, Braeuer and Herrmann, "Optimization of Cyclic Redundancy-Check Codes with
//! 24 and 32 Parity Bits", 1993.

/// Castagnoli's polynomial without its highest power, the lowest bit for the highest of the others.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The remainders of `x` to the power of 8, 16, 32 and so on: of moves by 1, 2, 4 bytes, as far as 16 bits count.
const MOVES: [u32; 16] = {
    let mut moves = [0; 16];
    // x^8: bit 31 stands for 1.
    let mut power = 1 << 23;
    let mut bit = 0;
    while bit < moves.len() {
        moves[bit] = power;
        power = product(power, power);
        bit += 1;
    }
    moves
};

/// The remainder of a product.
#[inline(always)]
const fn product(mut left: u32, mut right: u32) -> u32 {
    let mut sum = 0;
    let mut bit = 0;
    while bit < 32 {
        if left >> 31 != 0 {
            sum ^= right;
        }
        left <<= 1;
        right = if right & 1 != 0 { right >> 1 ^ POLYNOMIAL } else { right >> 1 };
        bit += 1;
    }
    sum
}

/// What a change of the first four bytes adds to the checksum of so many bytes, the four included. `change` is what
/// the four were, xor what they are; both it and the checksum are read with the first byte lowest.
#[inline(always)]
pub fn of_change(change: u32, length: u16) -> u32 {
    let mut added = change;
    let mut bit = 0;
    while let Some(power) = MOVES.get(bit) {
        if length >> bit & 1 != 0 {
            added = product(added, *power);
        }
        bit += 1;
    }
    added
}
