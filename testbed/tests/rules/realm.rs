//! Who is where, in either family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use testbed::dataplane::chains::Family;

/// The number of the tunnel among the node's links: after the uplink and those of the pods.
pub(crate) const TUNNEL: usize = 4;

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Realm {
    pub(crate) family: Family,
    /// ICMP's protocol number.
    pub(crate) icmp: u8,
    /// The pods', in the order of their links.
    pub(crate) pods: [IpAddr; 3],
    /// Whoever sends, beside the pods: hosts behind the uplink.
    pub(crate) hosts: [IpAddr; 2],
    /// Pods of the other node, and the other node itself: beyond the tunnel, where there is one.
    pub(crate) remote: [IpAddr; 3],
    /// Addresses that nobody has: rules may lead them on.
    pub(crate) nobody: [IpAddr; 2],
    /// Another one, that rules put in a source's place.
    pub(crate) stand_in: IpAddr,
    /// A router on the way, who tells of errors.
    pub(crate) router: IpAddr,
    /// The node's, and its gateway's.
    pub(crate) node: IpAddr,
    pub(crate) gateway: IpAddr,
    /// Who sends what tells that all is through, and somebody behind the uplink who is told so.
    pub(crate) marker: IpAddr,
    pub(crate) marked: IpAddr,
    /// Lengths of ranges that rules are about.
    pub(crate) prefixes: [u8; 5],
    /// How long the nodes' subnet is.
    pub(crate) subnet: u8,
    /// Bytes of an IP header, and where its source stands in it, and its protocol.
    pub(crate) header: usize,
    pub(crate) source: usize,
    pub(crate) protocol: usize,
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(first: u16, second: u16, third: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(first, second, third, 0, 0, 0, 0, last))
}

pub(crate) const V4: Realm = Realm {
    family: Family::V4,
    icmp: 1,
    pods: [v4(10, 244, 1, 2), v4(10, 244, 1, 3), v4(10, 244, 1, 4)],
    hosts: [v4(203, 0, 113, 7), v4(198, 51, 100, 9)],
    remote: [v4(10, 244, 2, 2), v4(10, 244, 2, 3), v4(10, 240, 0, 5)],
    nobody: [v4(192, 0, 2, 1), v4(192, 0, 2, 2)],
    stand_in: v4(192, 0, 2, 9),
    router: v4(198, 51, 100, 254),
    node: v4(10, 240, 0, 4),
    gateway: v4(10, 240, 0, 1),
    marker: v4(198, 18, 0, 1),
    marked: v4(198, 18, 0, 2),
    prefixes: [32, 32, 31, 24, 8],
    subnet: 16,
    header: 20,
    source: 12,
    protocol: 9,
};

pub(crate) const V6: Realm = Realm {
    family: Family::V6,
    icmp: 58,
    pods: [v6(0xfd00, 0x244, 1, 2), v6(0xfd00, 0x244, 1, 3), v6(0xfd00, 0x244, 1, 4)],
    hosts: [v6(0x2001, 0xdb8, 7, 7), v6(0x2001, 0xdb8, 9, 9)],
    remote: [v6(0xfd00, 0x244, 2, 2), v6(0xfd00, 0x244, 2, 3), v6(0xfd00, 0x240, 0, 5)],
    nobody: [v6(0x2001, 0xdb8, 2, 1), v6(0x2001, 0xdb8, 2, 2)],
    stand_in: v6(0x2001, 0xdb8, 2, 9),
    router: v6(0x2001, 0xdb8, 9, 0xfe),
    node: v6(0xfd00, 0x240, 0, 4),
    gateway: v6(0xfd00, 0x240, 0, 1),
    marker: v6(0x2001, 0x2, 0, 1),
    marked: v6(0x2001, 0x2, 0, 2),
    prefixes: [128, 128, 127, 64, 32],
    subnet: 64,
    header: 40,
    source: 8,
    protocol: 6,
};

impl Realm {
    /// By which of the node's links somebody's packets come.
    pub(crate) fn home(&self, address: IpAddr, tunnelled: bool) -> usize {
        match self.pods.iter().position(|pod| *pod == address) {
            Some(place) => place + 1,
            None if tunnelled && self.remote.contains(&address) => TUNNEL,
            None => 0,
        }
    }

    /// Bytes of an address.
    pub(crate) fn width(&self) -> usize {
        if self.family == Family::V4 { 4 } else { 16 }
    }
}

/// Of whom a packet is.
pub(crate) fn of(packet: &[u8]) -> &'static Realm {
    if packet[0] >> 4 == 4 { &V4 } else { &V6 }
}
