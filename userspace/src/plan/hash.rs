//! Hashes that are the same on every machine and in every version.

/// 64-bit FNV-1a. Source: RFC 9923, "The FNV Non-Cryptographic Hash Algorithm".
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// FNV-1a, then stirred until every bit of the result depends on every bit of the input: short names that
/// differ in their last byte alone are then far apart. Source: the finaliser of MurmurHash3 (`fmix64`).
pub(super) fn mixed(bytes: &[u8]) -> u64 {
    let mut hash = fnv1a(bytes);
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_gives_the_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn neighbours_are_far_apart_once_mixed() {
        for bit in 0..8 {
            let differing = (mixed(b"10.0.0.1")
                ^ mixed(&[b"10.0.0.".as_slice(), &[b'1' ^ 1 << bit]].concat()))
            .count_ones();
            assert!((16..=48).contains(&differing), "{differing} bits");
        }
    }
}
