//! Sets: of pods, by their places ([`Bits`]); of addresses and of ports, by what lies side by side.

use std::net::IpAddr;

use ipnet::IpNet;
use userspace::model::Protocol;
use userspace::plan::Bits;

/// Numbers as ranges: in order, apart from each other, first and last included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Spans(Vec<(u128, u128)>);

/// IPv4 addresses lie where IPv6 maps them (RFC 4291, section 2.5.5.2), which nobody's address is in.
const MAPPED: u128 = 0xffff_0000_0000;

impl Spans {
    pub(super) fn of(first: u128, last: u128) -> Self {
        Self(vec![(first, last)])
    }

    /// The addresses of a range.
    pub(super) fn block(block: IpNet) -> Self {
        match block {
            IpNet::V4(four) => {
                let place = |address: std::net::Ipv4Addr| MAPPED + u128::from(u32::from(address));
                Self::of(place(four.network()), place(four.broadcast()))
            }
            IpNet::V6(six) => {
                let mut spans = Self::of(six.network().into(), six.broadcast().into());
                spans.subtract(&Self::of(MAPPED, MAPPED + u128::from(u32::MAX)));
                spans
            }
        }
    }

    /// One address.
    pub(super) fn address(address: IpAddr) -> Self {
        Self::block(address.into())
    }

    /// Every address of both families.
    pub(super) fn everywhere() -> Self {
        Self::of(0, u128::MAX)
    }

    /// Ports of a protocol, both included.
    pub(super) fn ports(protocol: Protocol, first: u16, last: u16) -> Self {
        let of = |port| transport(protocol, port);
        Self::of(of(first), of(last))
    }

    /// Whatever has ports, and what has none: an ICMP echo.
    pub(super) fn every_port() -> Self {
        Self::of(0, (1 << 18) - 1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, number: u128) -> bool {
        let next = self.0.partition_point(|(_, last)| *last < number);
        self.0.get(next).is_some_and(|(first, _)| *first <= number)
    }

    /// Takes in what `other` has.
    pub(super) fn unite(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        let mut all: Vec<(u128, u128)> = self.0.drain(..).chain(other.0.iter().copied()).collect();
        all.sort_unstable();
        for (first, last) in all {
            match self.0.last_mut() {
                Some((_, end)) if *end == u128::MAX || first <= *end + 1 => *end = last.max(*end),
                _ => self.0.push((first, last)),
            }
        }
    }

    /// Gives up what `other` has.
    pub(super) fn subtract(&mut self, other: &Self) {
        for &(from, to) in &other.0 {
            let mut left = Vec::with_capacity(self.0.len() + 1);
            for &(first, last) in &self.0 {
                if to < first || last < from {
                    left.push((first, last));
                    continue;
                }
                if first < from {
                    left.push((first, from - 1));
                }
                if to < last {
                    left.push((to + 1, last));
                }
            }
            self.0 = left;
        }
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        self.0.iter().any(|(first, last)| other.0.iter().any(|(from, to)| first <= to && from <= last))
    }

    /// Whether everything in it is in `other`.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(first, last)| other.0.iter().any(|(from, to)| from <= first && last <= to))
    }

    /// Its ranges.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.0.iter().copied()
    }
}

/// The place of a port among all ports of all protocols; those below `1 << 16` stand for an ICMP echo.
pub(super) fn transport(protocol: Protocol, port: u16) -> u128 {
    let place = match protocol {
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
        Protocol::Sctp => 3,
    };
    place << 16 | u128::from(port)
}

/// Other ends of flows: pods with an address of their own, and whoever else has one of these addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) pods: Bits,
    pub(super) addresses: Spans,
}

impl Ends {
    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.addresses.is_empty()
    }

    pub(super) fn unite(&mut self, other: &Self) {
        self.pods.unite(&other.pods);
        self.addresses.unite(&other.addresses);
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        self.pods.subtract(&other.pods);
        self.addresses.subtract(&other.addresses);
    }

    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.pods.is_within(&other.pods) && self.addresses.is_within(&other.addresses)
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        self.pods.meets(&other.pods) || self.addresses.meets(&other.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Spans {
        Spans::block(text.parse().expect("a range"))
    }

    #[test]
    fn a_range_without_its_halves_is_empty() {
        let mut whole = block("10.0.0.0/24");
        whole.subtract(&block("10.0.0.0/25"));
        assert!(!whole.is_empty());
        whole.subtract(&block("10.0.0.128/25"));
        assert!(whole.is_empty());
    }

    #[test]
    fn halves_side_by_side_are_the_whole() {
        let mut halves = block("10.0.0.128/25");
        halves.unite(&block("10.0.0.0/25"));
        assert_eq!(halves, block("10.0.0.0/24"));
        assert!(block("10.0.0.0/24").is_within(&halves));
        assert!(!block("10.0.0.0/23").is_within(&halves));
    }

    #[test]
    fn the_whole_of_one_family_has_nothing_of_the_other() {
        assert!(!block("::/0").meets(&block("0.0.0.0/0")));
        assert!(block("::/0").is_within(&Spans::everywhere()));
        let mut both = block("::/0");
        both.unite(&block("0.0.0.0/0"));
        assert_eq!(both, Spans::everywhere());
    }

    #[test]
    fn ports_of_one_protocol_are_not_those_of_another() {
        let dns = Spans::ports(Protocol::Udp, 53, 53);
        assert!(!dns.meets(&Spans::ports(Protocol::Tcp, 1, 65_535)));
        assert!(dns.is_within(&Spans::every_port()));
        assert!(dns.contains(transport(Protocol::Udp, 53)) && !dns.contains(transport(Protocol::Udp, 54)));
    }
}
