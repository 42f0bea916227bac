//! What lies between the nodes: a switch for them, and a router to the world.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use etherparse::{Ethernet2Slice, Ipv4HeaderSlice};

use super::message::Ether;

/// Where a frame may leave the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// To a node, counted from 0.
    Node(usize),
    /// To a host outside, by its place among the network's hosts.
    World(usize),
}

/// The nodes' network and its gateway.
#[derive(Clone, Debug, Default)]
pub struct Fabric {
    /// Hardware address of the gateway.
    pub gateway: Ether,
    /// The largest IP packet it takes, in bytes.
    pub mtu: usize,
    /// What is on the nodes' network, by hardware address.
    pub neighbours: BTreeMap<Ether, Port>,
    /// Where the gateway sends packets: the neighbour's hardware address, and its port.
    pub routes: BTreeMap<Ipv4Addr, (Ether, Port)>,
}

/// Why the fabric did not pass on a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Undelivered {
    /// The gateway knows no route.
    NoRoute(Ipv4Addr),
    /// Nobody has the hardware address.
    NoNeighbour,
    /// The gateway would have been one hop too many.
    TimeToLive,
    /// Longer than the fabric's MTU.
    TooBig,
    /// Not an IPv4 packet with a sound header.
    Unreadable,
}

impl std::fmt::Display for Undelivered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoRoute(address) => write!(f, "no route to {address}"),
            Self::NoNeighbour => f.write_str("nobody has this hardware address"),
            Self::TimeToLive => f.write_str("the time to live ran out at the gateway"),
            Self::TooBig => f.write_str("longer than the MTU"),
            Self::Unreadable => f.write_str("no IPv4 packet with a sound header"),
        }
    }
}

impl Fabric {
    /// Passes a frame on: by hardware address between nodes, by IP address through the gateway, which takes
    /// a hop.
    ///
    /// # Errors
    /// Why it ends here.
    pub fn pass_on(&self, frame: &mut [u8]) -> Result<Port, Undelivered> {
        let link = Ethernet2Slice::from_slice_without_fcs(frame).map_err(|_| Undelivered::Unreadable)?;
        let (target, ethertype) = (link.destination(), link.ether_type());
        if link.payload_slice().len() > self.mtu {
            return Err(Undelivered::TooBig);
        }
        if target != self.gateway {
            return self.neighbours.get(&target).copied().ok_or(Undelivered::NoNeighbour);
        }
        if ethertype != etherparse::EtherType::IPV4 {
            return Err(Undelivered::Unreadable);
        }
        let header =
            Ipv4HeaderSlice::from_slice(link.payload_slice()).map_err(|_| Undelivered::Unreadable)?;
        let mut header = header.to_header();
        if header.calc_header_checksum() != header.header_checksum {
            return Err(Undelivered::Unreadable);
        }
        let address = Ipv4Addr::from(header.destination);
        let (neighbour, port) = self.routes.get(&address).copied().ok_or(Undelivered::NoRoute(address))?;
        if header.time_to_live <= 1 {
            return Err(Undelivered::TimeToLive);
        }
        header.time_to_live -= 1;
        header.header_checksum = header.calc_header_checksum();
        frame[..6].copy_from_slice(&neighbour);
        frame[6..12].copy_from_slice(&self.gateway);
        let bytes = header.to_bytes();
        frame[14..14 + bytes.len()].copy_from_slice(&bytes);
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::mac_of;
    use super::super::message::{Body, Message};
    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
    const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
    const GATEWAY: Ether = [2, 0, 0, 0, 0, 1];

    fn fabric() -> Fabric {
        Fabric {
            gateway: GATEWAY,
            mtu: 100,
            neighbours: BTreeMap::from([(mac_of(NODE), Port::Node(0))]),
            routes: BTreeMap::from([
                (NODE, (mac_of(NODE), Port::Node(0))),
                (WORLD, (mac_of(WORLD), Port::World(5))),
            ]),
        }
    }

    fn message(to: Ether, target: Ipv4Addr, ttl: u8, length: usize) -> Message {
        let body = Body::Udp { source_port: 1, target_port: 2, data: vec![0; length] };
        Message { from: mac_of(NODE), to, source: NODE, target, ttl, body }
    }

    #[test]
    fn nodes_reach_each_other_by_hardware_address_and_nothing_changes() {
        let sent = message(mac_of(NODE), WORLD, 1, 8).to_frame();
        let mut frame = sent.clone();
        assert_eq!(fabric().pass_on(&mut frame), Ok(Port::Node(0)));
        assert_eq!(frame, sent);
    }

    #[test]
    fn the_gateway_takes_a_hop_and_addresses_the_next_neighbour() {
        let mut frame = message(GATEWAY, WORLD, 2, 8).to_frame();
        assert_eq!(fabric().pass_on(&mut frame), Ok(Port::World(5)));
        let passed = Message::read(&frame).expect("a sound packet");
        assert_eq!((passed.from, passed.to, passed.ttl), (GATEWAY, mac_of(WORLD), 1));
    }

    #[test]
    fn what_leads_nowhere_ends_here() {
        let nowhere = Ipv4Addr::new(198, 51, 100, 1);
        for (sent, expected) in [
            (message(GATEWAY, nowhere, 64, 8), Undelivered::NoRoute(nowhere)),
            (message(GATEWAY, WORLD, 1, 8), Undelivered::TimeToLive),
            (message(GATEWAY, WORLD, 64, 73), Undelivered::TooBig),
            (message([9; 6], WORLD, 64, 8), Undelivered::NoNeighbour),
        ] {
            assert_eq!(fabric().pass_on(&mut sent.to_frame()), Err(expected));
        }
        assert_eq!(fabric().pass_on(&mut [0; 9]), Err(Undelivered::Unreadable));
    }
}
