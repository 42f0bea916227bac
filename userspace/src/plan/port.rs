//! Protocols and ports, as prefixes of a policy key's last 24 bits.

use dataplane::tables::PolicyKey;

/// Target ports that a policy row is about. In order, a prefix comes right before all those that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PortPrefix {
    /// As in the IP header; 0 where the prefix leaves it out.
    pub(super) protocol: u8,
    /// Host order; the bits that the prefix leaves out are 0.
    pub(super) port: u16,
    /// [`PolicyKey::FIXED_BITS`] to [`PolicyKey::BITS`].
    pub(super) bits: u32,
}

impl PortPrefix {
    /// Any protocol, any port.
    pub(super) const ALL: Self = Self { bits: PolicyKey::FIXED_BITS, protocol: 0, port: 0 };
    /// Bits of a prefix that names a protocol and no port.
    const PROTOCOL_BITS: u32 = PolicyKey::FIXED_BITS + u8::BITS;

    /// Any port of the protocol.
    pub(super) const fn any(protocol: u8) -> Self {
        Self { bits: Self::PROTOCOL_BITS, protocol, port: 0 }
    }
    /// One port.
    pub(super) const fn one(protocol: u8, port: u16) -> Self {
        Self { bits: PolicyKey::BITS, protocol, port }
    }
    /// The ports from `first` to `last`, both included, in as few prefixes as possible.
    pub(super) fn range(protocol: u8, first: u16, last: u16) -> Vec<Self> {
        let mut prefixes = Vec::new();
        let (mut next, end) = (u32::from(first), u32::from(last) + 1);
        while next < end {
            // The largest block that starts here: as aligned as `next` is, and no longer than what is left.
            let free = next.trailing_zeros().min((end - next).ilog2()).min(u16::BITS);
            prefixes.push(Self { bits: PolicyKey::BITS - free, protocol, port: next as u16 });
            next += 1 << free;
        }
        prefixes
    }
    /// Whether all of `other` is in it.
    pub(super) fn holds(self, other: Self) -> bool {
        let bits = |prefix: Self| u32::from(prefix.protocol) << u16::BITS | u32::from(prefix.port);
        self.bits <= other.bits && (bits(self) ^ bits(other)) >> (PolicyKey::BITS - self.bits) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_becomes_prefixes_that_hold_each_of_its_ports_once_and_no_other() {
        for (first, last) in
            [(1, 65_535), (80, 80), (80, 90), (0, 65_535), (32_768, 60_999), (65_535, 65_535)]
        {
            let prefixes = PortPrefix::range(6, first, last);
            for port in 0..=u16::MAX {
                let holding = prefixes.iter().filter(|prefix| prefix.holds(PortPrefix::one(6, port))).count();
                assert_eq!(holding, usize::from((first..=last).contains(&port)), "{first}-{last}: {port}");
            }
        }
    }

    #[test]
    fn a_range_takes_as_few_prefixes_as_possible() {
        assert_eq!(PortPrefix::range(6, 0, 65_535), [PortPrefix::any(6)]);
        assert_eq!(PortPrefix::range(6, 80, 80), [PortPrefix::one(6, 80)]);
        assert_eq!(PortPrefix::range(17, 80, 95), [PortPrefix { bits: 92, protocol: 17, port: 80 }]);
        assert_eq!(PortPrefix::range(6, 1, 65_534).len(), 30);
        assert_eq!(PortPrefix::range(6, 90, 80), []);
    }

    #[test]
    fn a_prefix_holds_itself_and_what_is_narrower_and_comes_right_before_it() {
        let prefixes = [
            PortPrefix::ALL,
            PortPrefix::any(6),
            PortPrefix { bits: 81, protocol: 6, port: 0 },
            PortPrefix::one(6, 0),
            PortPrefix { bits: 81, protocol: 6, port: 0x8000 },
            PortPrefix::one(6, 0x8001),
            PortPrefix::any(17),
        ];
        assert!(prefixes.is_sorted());
        let held = |prefix: PortPrefix| prefixes.iter().filter(|other| prefix.holds(**other)).count();
        assert_eq!(prefixes.map(held), [7, 5, 2, 1, 2, 1, 1]);
    }
}
