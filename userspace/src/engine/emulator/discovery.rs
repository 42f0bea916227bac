//! How hosts find the hardware address of a neighbour: ARP in IPv4 (RFC 826), neighbour discovery in IPv6
//! (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{
    ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacket, Icmpv6Slice, Icmpv6Type, NetSlice,
    PacketBuilder, SlicedPacket, TransportSlice,
};

use super::message::Ether;

/// What neighbours' questions come with, so that they are known to be from this link.
const HOPS: u8 = 255;
/// Options: the hardware address of whoever asks, of what is asked for; one unit of eight bytes each.
const SOURCE_MAC: [u8; 2] = [1, 1];
const TARGET_MAC: [u8; 2] = [2, 1];

/// A question for a neighbour, or the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// This is the answer.
    pub answer: bool,
    /// Hardware address of the sender: that of `sender`.
    pub sender_mac: Ether,
    /// Whoever asks, or is asked for.
    pub sender: IpAddr,
    /// Hardware address of the target; zero in a question.
    pub target_mac: Ether,
    /// Whoever is asked for, or asked. Of the sender's family.
    pub target: IpAddr,
}

impl Discovery {
    /// The frame: a question goes to everybody whom it may concern, an answer to who asked.
    pub fn to_frame(&self) -> Vec<u8> {
        match (self.sender, self.target) {
            (IpAddr::V4(sender), IpAddr::V4(target)) => self.arp(sender, target),
            (IpAddr::V6(sender), IpAddr::V6(target)) if self.answer => self.advertisement(sender, target),
            (IpAddr::V6(sender), IpAddr::V6(target)) => self.solicitation(sender, target),
            (sender, target) => panic!("{sender} cannot ask for {target}: hosts ask from an address like it"),
        }
    }

    fn arp(&self, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let packet: ArpPacket = ArpEthIpv4Packet {
            operation: if self.answer { ArpOperation::REPLY } else { ArpOperation::REQUEST },
            sender_mac: self.sender_mac,
            sender_ipv4: sender.octets(),
            target_mac: self.target_mac,
            target_ipv4: target.octets(),
        }
        .into();
        let to = if self.answer { self.target_mac } else { [0xff; 6] };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.sender_mac, to)
            .arp(packet)
            .write(&mut frame)
            .expect("a vector takes everything");
        frame
    }

    fn solicitation(&self, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let [.., a, b, c] = target.octets();
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
        let payload = [&target.octets()[..], &SOURCE_MAC, &self.sender_mac].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.sender_mac, [0x33, 0x33, 0xff, a, b, c])
            .ipv6(sender.octets(), group.octets(), HOPS)
            .icmpv6(Icmpv6Type::NeighborSolicitation)
            .write(&mut frame, &payload)
            .expect("a vector takes everything");
        frame
    }

    fn advertisement(&self, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let says = NeighborAdvertisementHeader { router: false, solicited: true, r#override: true };
        let payload = [&sender.octets()[..], &TARGET_MAC, &self.sender_mac].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.sender_mac, self.target_mac)
            .ipv6(sender.octets(), target.octets(), HOPS)
            .icmpv6(Icmpv6Type::NeighborAdvertisement(says))
            .write(&mut frame, &payload)
            .expect("a vector takes everything");
        frame
    }

    /// Reads a frame; `None` if it neither asks nor answers.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        match (&sliced.net, &sliced.transport) {
            (Some(NetSlice::Arp(slice)), _) => {
                let packet = slice.to_packet();
                if packet.hw_addr_type != ArpHardwareId::ETHERNET {
                    return None;
                }
                let packet = packet.try_eth_ipv4().ok()?;
                Some(Self {
                    answer: packet.operation == ArpOperation::REPLY,
                    sender_mac: packet.sender_mac,
                    sender: IpAddr::V4(packet.sender_ipv4.into()),
                    target_mac: packet.target_mac,
                    target: IpAddr::V4(packet.target_ipv4.into()),
                })
            }
            (Some(NetSlice::Ipv6(packet)), Some(TransportSlice::Icmpv6(message))) => {
                let header = packet.header();
                let (source, target) = (header.source(), header.destination());
                if header.hop_limit() != HOPS || !message.is_checksum_valid(source, target) {
                    return None;
                }
                Self::read_v6(message, (source.into(), target.into()))
            }
            _ => None,
        }
    }

    fn read_v6(message: &Icmpv6Slice<'_>, (source, to): (Ipv6Addr, Ipv6Addr)) -> Option<Self> {
        let asked: [u8; 16] = message.payload().get(..16)?.try_into().ok()?;
        let option: [u8; 2] = message.payload().get(16..18)?.try_into().ok()?;
        let sender_mac: Ether = message.payload().get(18..24)?.try_into().ok()?;
        let asked = Ipv6Addr::from(asked);
        let (answer, sender, target) = match (message.icmp_type(), option) {
            (Icmpv6Type::NeighborSolicitation, SOURCE_MAC) => (false, source, asked),
            (Icmpv6Type::NeighborAdvertisement(_), TARGET_MAC) => (true, asked, to),
            _ => return None,
        };
        Some(Self { answer, sender_mac, sender: sender.into(), target_mac: [0; 6], target: target.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_and_its_answer_read_as_written() {
        for (sender, target) in [("10.0.0.1", "169.254.1.1"), ("fd00::5", "fe80::1")] {
            for answer in [false, true] {
                let written = Discovery {
                    answer,
                    sender_mac: [2; 6],
                    sender: sender.parse().expect("an address"),
                    target_mac: [0; 6],
                    target: target.parse().expect("an address"),
                };
                assert_eq!(Discovery::read(&written.to_frame()), Some(written));
            }
        }
    }

    #[test]
    fn a_question_in_ipv6_that_a_router_passed_on_is_none() {
        let (sender, target) =
            ("fd00::5".parse().expect("an address"), "fe80::1".parse().expect("an address"));
        let question = Discovery { answer: false, sender_mac: [2; 6], sender, target_mac: [0; 6], target };
        let mut frame = question.to_frame();
        frame[14 + 7] -= 1;
        assert_eq!(Discovery::read(&frame), None);
    }
}
