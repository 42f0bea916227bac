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

/// Half bytes of a checksum.
const HALVES: usize = 8;

/// What the values of each half byte of a checksum become when they are moved by 1, 2, 4 bytes and so on, as far as 16
/// bits count. They are looked up, because in a product every bit is a step of its own.
const MOVES: [[[u32; 16]; HALVES]; 16] = {
    let mut moves = [[[0; 16]; HALVES]; 16];
    // x^8: bit 31 stands for 1.
    let mut power = 1 << 23;
    let mut bit = 0;
    while bit < moves.len() {
        moves[bit] = halves(power);
        power = product(power, power);
        bit += 1;
    }
    moves
};

/// The remainders of the products of all half bytes.
const fn halves(power: u32) -> [[u32; 16]; HALVES] {
    let mut halves = [[0; 16]; HALVES];
    let mut at = 0;
    while at < HALVES * 16 {
        let (half, value) = (at / 16, at % 16);
        halves[half][value] = product((value as u32) << (4 * half), power);
        at += 1;
    }
    halves
}

/// The remainder of a product.
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
    while let Some(halves) = MOVES.get(bit) {
        if length >> bit & 1 != 0 {
            added = moved(added, halves);
        }
        bit += 1;
    }
    added
}

#[inline(always)]
fn moved(mut checksum: u32, halves: &[[u32; 16]; HALVES]) -> u32 {
    let mut moved = 0;
    for values in halves {
        moved ^= values[(checksum & 0xf) as usize];
        checksum >>= 4;
    }
    moved
}
