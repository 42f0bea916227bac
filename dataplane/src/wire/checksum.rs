//! The Internet checksum (RFC 1071) and its correction after a change (RFC 1624).
//!
//! Sums are taken over 16-bit words as they lie in memory: one's complement addition does not mind the
//! byte order, and neither side has to swap.

use super::{Address, Be16};

/// Folds a 32-bit one's complement sum into 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum over these words and over what has this sum; words left out are zero.
#[inline(always)]
pub fn of<const N: usize>(words: [Be16; N], rest: u32) -> Be16 {
    Be16((!sum(words, rest)).to_ne_bytes())
}

/// The same sum itself, folded: what a checksum's field holds while only these words are summed up.
#[inline(always)]
pub fn sum<const N: usize>(words: [Be16; N], rest: u32) -> u16 {
    let mut sum = rest;
    for word in words {
        sum += u16::from_ne_bytes(word.0) as u32;
    }
    fold(sum)
}

/// The sum of the pseudo-header of a TCP segment or UDP datagram of that length in bytes (RFC 9293 section 3.1, RFC 768,
/// RFC 8200 section 8.1).
#[inline(always)]
pub fn pseudo<A: Address>(source: A, target: A, protocol: u8, length: u16) -> Be16 {
    let addresses = source.sum() + target.sum();
    Be16(sum([Be16([0, protocol]), Be16::new(length)], addresses).to_ne_bytes())
}

/// One's complement addition of two 32-bit sums. Without a branch for what is carried over: the verifier would follow
/// both, and both of the next addition from each.
#[inline(always)]
pub const fn add(left: u32, right: u32) -> u32 {
    let sum = left as u64 + right as u64;
    sum as u32 + (sum >> 32) as u32
}

/// What a change from one sum of words to another adds to a checksummed sum.
#[inline(always)]
pub const fn delta(from: u32, to: u32) -> u32 {
    add(!from, to)
}

/// [`delta`] for an address.
#[inline(always)]
pub fn address_delta<A: Address>(from: A, to: A) -> u32 {
    delta(from.sum(), to.sum())
}

/// [`delta`] for a port, or any other word.
#[inline(always)]
pub const fn word_delta(from: Be16, to: Be16) -> u32 {
    delta(u16::from_ne_bytes(from.0) as u32, u16::from_ne_bytes(to.0) as u32)
}

/// A sum of words, folded, to which a change adds this.
#[inline(always)]
pub const fn extended(sum: Be16, delta: u32) -> Be16 {
    Be16(fold(add(delta, u16::from_ne_bytes(sum.0) as u32)).to_ne_bytes())
}

/// The checksum after a change (RFC 1624, equation 3).
#[inline(always)]
pub const fn mended(checksum: Be16, delta: u32) -> Be16 {
    let sum = add(delta, !(u16::from_ne_bytes(checksum.0) as u32));
    Be16((!fold(sum)).to_ne_bytes())
}
