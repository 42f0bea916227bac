//! Addresses and prefixes of one family, and the longest prefix that holds an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::wire::{Address, V4, V6};
use ipnet::IpNet;

use super::Prefix;

/// An address family that can be planned for. Addresses of the other family are left out of its plan.
pub trait Family: Address {
    /// What people call it.
    const NAME: &'static str;
    /// The address, if it is of this family.
    fn of(address: IpAddr) -> Option<Self>;
    /// The first of these that is of this family.
    fn among(addresses: &[IpAddr]) -> Option<Self> {
        addresses.iter().copied().find_map(Self::of)
    }
    /// The address with only its first `bits` bits left.
    fn masked(self, bits: u32) -> Self;
}

impl Family for V4 {
    const NAME: &'static str = "IPv4";
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(Self(address.octets())),
            IpAddr::V6(_) => None,
        }
    }
    fn masked(self, bits: u32) -> Self {
        let mask = u32::MAX.checked_shl(Self::BITS - bits).unwrap_or(0);
        Self((u32::from_be_bytes(self.0) & mask).to_be_bytes())
    }
}

impl Family for V6 {
    const NAME: &'static str = "IPv6";
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(Self(address.octets())),
        }
    }
    fn masked(self, bits: u32) -> Self {
        let mask = u128::MAX.checked_shl(Self::BITS - bits).unwrap_or(0);
        Self((u128::from_be_bytes(self.0) & mask).to_be_bytes())
    }
}

impl<A: Family> Prefix<A> {
    /// Every address.
    pub fn all() -> Self {
        Self { key: A::default(), bits: 0 }
    }
    /// One address.
    pub fn host(address: A) -> Self {
        Self { key: address, bits: A::BITS }
    }
    /// The range, if it is of this family; bits beyond its length do not count.
    pub fn of(range: IpNet) -> Option<Self> {
        let key = A::of(range.network())?;
        Some(Self { key, bits: range.prefix_len().into() })
    }
    /// Whether the address is in it.
    pub fn contains(&self, address: A) -> bool {
        address.masked(self.bits) == self.key
    }
    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.bits <= other.bits && self.contains(other.key)
    }
}

/// Rows by prefix.
#[derive(Clone, Debug)]
pub(super) struct Longest<A, R> {
    rows: BTreeMap<Prefix<A>, R>,
    lengths: BTreeSet<u32>,
}

impl<A: Family, R> Longest<A, R> {
    pub(super) fn new() -> Self {
        Self { rows: BTreeMap::new(), lengths: BTreeSet::new() }
    }
    /// Adds or replaces a row.
    pub(super) fn put(&mut self, prefix: Prefix<A>, row: R) {
        self.lengths.insert(prefix.bits);
        self.rows.insert(prefix, row);
    }
    /// Removes the row of just this prefix.
    pub(super) fn remove(&mut self, prefix: &Prefix<A>) {
        self.rows.remove(prefix);
    }
    /// The row of the longest prefix that holds the address.
    pub(super) fn find(&self, address: A) -> Option<&R> {
        self.find_shorter(address, A::BITS + 1)
    }
    /// The same among prefixes shorter than `bits`.
    pub(super) fn find_shorter(&self, address: A, bits: u32) -> Option<&R> {
        let lengths = self.lengths.range(..bits).rev();
        lengths.copied().find_map(|bits| self.rows.get(&Prefix { key: address.masked(bits), bits }))
    }
    /// Every row, in the order of its prefix.
    pub(super) fn rows(&self) -> &BTreeMap<Prefix<A>, R> {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix<V4> {
        Prefix::of(text.parse().expect("a range")).expect("IPv4")
    }

    #[test]
    fn a_prefix_holds_its_first_and_last_address_and_not_their_neighbours() {
        let range = prefix("10.1.4.0/22");
        assert!(range.contains(V4([10, 1, 4, 0])) && range.contains(V4([10, 1, 7, 255])));
        assert!(!range.contains(V4([10, 1, 3, 255])) && !range.contains(V4([10, 1, 8, 0])));
        assert!(Prefix::all().contains(V4([255; 4])));
        assert!(!Prefix::host(V4([10, 0, 0, 1])).contains(V4([10, 0, 0, 0])));
    }

    #[test]
    fn bits_beyond_the_length_of_a_range_do_not_count() {
        assert_eq!(prefix("10.1.5.9/22"), prefix("10.1.4.0/22"));
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut rows = Longest::new();
        for (text, row) in [("0.0.0.0/0", 0), ("10.0.0.0/8", 8), ("10.1.0.0/16", 16), ("10.1.2.3/32", 32)] {
            rows.put(prefix(text), row);
        }
        let find = |address| rows.find(V4(address)).copied();
        assert_eq!(find([192, 0, 2, 1]), Some(0));
        assert_eq!(find([10, 9, 9, 9]), Some(8));
        assert_eq!(find([10, 1, 9, 9]), Some(16));
        assert_eq!(find([10, 1, 2, 3]), Some(32));
        assert_eq!(rows.find_shorter(V4([10, 1, 2, 3]), 16).copied(), Some(8));
    }

    #[test]
    fn families_leave_each_other_s_addresses_alone() {
        let six: IpNet = "2001:db8::/32".parse().expect("a range");
        assert_eq!(Prefix::<V4>::of(six), None);
        assert!(
            Prefix::<V6>::of(six)
                .expect("IPv6")
                .contains(V6([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]))
        );
        assert_eq!(V6::of("10.0.0.1".parse().expect("an address")), None);
    }
}
