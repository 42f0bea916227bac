//! Questions for a neighbour, which the fabric answers itself, as a cloud's does: for nodes, for pods by way
//! of their nodes, and for the gateway. Nobody is answered about himself: silence says that an address is
//! free (RFC 5227, RFC 4862).
//!
//! And what the gateway has to say of packets that it cannot pass on.

use std::net::IpAddr;

use dataplane::wire::Mac;
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, EtherType, Ethernet2Slice, Icmpv4Type, Icmpv6Slice,
    Icmpv6Type, IpNumber, Ipv6Header, PacketBuilder, icmpv4, icmpv6,
};

use super::packet::Packet;
use super::seats::Seats;
use super::{Loss, Port};

/// How many hops the gateway's own packets may take.
const HOPS: u8 = 64;
/// What a neighbour's word comes with, so that it is known to be from this link (RFC 4861, section 7.1.2).
const FROM_THIS_LINK: u8 = 255;
/// An IPv4 error is at most so long (RFC 1812, section 4.3.2.3), an IPv6 one this (RFC 4443, section 3.3).
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;

/// What a frame on a link asks.
enum Question {
    /// Nothing.
    No,
    /// Who has this address.
    Who(IpAddr),
    /// Something that has no answer here.
    Other,
}

/// The answer to a frame that asks for a neighbour; none if it is not for the link alone.
///
/// # Errors
/// [`Loss::EndsHere`]: it is, but there is nothing to answer.
pub(super) fn answer(frame: &[u8], from: Port, seats: &Seats) -> Option<Result<Vec<u8>, Loss>> {
    let link = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    let address = match question(&link) {
        Question::No => return None,
        Question::Other => return Some(Err(Loss::EndsHere)),
        Question::Who(address) => address,
    };
    let mac = match seats.owner(address) {
        Some(port @ Port::Node(_)) if port != from => Some(seats.mac(port)),
        None if seats.is_gateway_address(address) => Some(seats.gateway_mac()),
        _ => None,
    };
    let answer = mac.and_then(|mac| match address {
        IpAddr::V4(_) => arp(&link, mac),
        IpAddr::V6(_) => advertisement(&link, mac),
    });
    Some(answer.ok_or(Loss::EndsHere))
}

fn question(link: &Ethernet2Slice<'_>) -> Question {
    let to_many = link.destination()[0] & 1 == 1;
    let otherwise = if to_many { Question::Other } else { Question::No };
    match link.ether_type() {
        EtherType::ARP => {
            let arp = ArpPacketSlice::from_slice(link.payload_slice()).ok();
            match arp.and_then(|arp| ArpEthIpv4Packet::try_from(arp.to_packet()).ok()) {
                Some(arp) if arp.operation == ArpOperation::REQUEST => {
                    Question::Who(IpAddr::V4(arp.target_ipv4.into()))
                }
                _ => Question::Other,
            }
        }
        EtherType::IPV6 => match discovery(link) {
            Some((kind, target)) => match (kind, target) {
                // Whoever asks from nowhere looks whether an address is free.
                (135, Some((source, target))) if !source.is_unspecified() => Question::Who(target),
                _ => Question::Other,
            },
            None => otherwise,
        },
        _ => otherwise,
    }
}

/// Type of a message of neighbour discovery (RFC 4861), who asks, and for whom.
fn discovery(link: &Ethernet2Slice<'_>) -> Option<(u8, Option<(IpAddr, IpAddr)>)> {
    let (header, rest) = Ipv6Header::from_slice(link.payload_slice()).ok()?;
    if header.next_header != IpNumber::IPV6_ICMP {
        return None;
    }
    let kind = Icmpv6Slice::from_slice(rest).ok()?.type_u8();
    let target = rest.get(8..24).and_then(|target| <[u8; 16]>::try_from(target).ok());
    let ends = target.map(|target| (IpAddr::from(header.source), IpAddr::from(target)));
    (133..=137).contains(&kind).then_some((kind, ends))
}

fn arp(link: &Ethernet2Slice<'_>, mac: Mac) -> Option<Vec<u8>> {
    let asked = ArpPacketSlice::from_slice(link.payload_slice()).ok()?.to_packet();
    let asked = ArpEthIpv4Packet::try_from(asked).ok()?;
    let answer = ArpEthIpv4Packet {
        operation: ArpOperation::REPLY,
        sender_mac: mac.0,
        sender_ipv4: asked.target_ipv4,
        target_mac: asked.sender_mac,
        target_ipv4: asked.sender_ipv4,
    };
    let builder = PacketBuilder::ethernet2(mac.0, link.source()).arp(answer.into());
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).ok()?;
    Some(frame)
}

fn advertisement(link: &Ethernet2Slice<'_>, mac: Mac) -> Option<Vec<u8>> {
    let (_, ends) = discovery(link)?;
    let (IpAddr::V6(asker), IpAddr::V6(target)) = ends? else { return None };
    let solicited = NeighborAdvertisementHeader { router: false, solicited: true, r#override: true };
    let builder = PacketBuilder::ethernet2(mac.0, link.source())
        .ipv6(target.octets(), asker.octets(), FROM_THIS_LINK)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(solicited));
    // The target, and its hardware address as an option: type 2, one unit of eight bytes.
    let payload = [&target.octets()[..], &[2, 1], &mac.0].concat();
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, &payload).ok()?;
    Some(frame)
}

/// What the gateway tells the sender of a packet that it cannot pass on for this reason; none if the reason
/// or the packet is of a kind that nobody is told of. With the reason comes how long a packet may be.
pub(super) fn complaint(
    (loss, room): (Loss, usize),
    frame: &[u8],
    packet: &Packet,
    seats: &Seats,
) -> Option<Vec<u8>> {
    if !packet.deserves_error() {
        return None;
    }
    let mtu = u32::try_from(room).unwrap_or(u32::MAX);
    let link = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    let ethernet = PacketBuilder::ethernet2(seats.gateway_mac().0, link.source());
    let quoted = packet.bytes(frame);
    let mut answer = Vec::new();
    match (seats.gateway_like(packet.source)?, packet.source) {
        (IpAddr::V4(gateway), IpAddr::V4(sender)) => {
            let next_hop_mtu = mtu.try_into().unwrap_or(u16::MAX);
            let what = match loss {
                Loss::TtlExceeded => Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
                Loss::TooBig if packet.whole_only => {
                    Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                        next_hop_mtu,
                    })
                }
                _ => return None,
            };
            let quoted = &quoted[..quoted.len().min(LONGEST_V4 - 28)];
            let builder = ethernet.ipv4(gateway.octets(), sender.octets(), HOPS).icmpv4(what);
            builder.write(&mut answer, quoted).ok()?;
        }
        (IpAddr::V6(gateway), IpAddr::V6(sender)) => {
            let what = match loss {
                Loss::TtlExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
                Loss::TooBig => Icmpv6Type::PacketTooBig { mtu },
                _ => return None,
            };
            let quoted = &quoted[..quoted.len().min(LONGEST_V6 - 48)];
            let builder = ethernet.ipv6(gateway.octets(), sender.octets(), HOPS).icmpv6(what);
            builder.write(&mut answer, quoted).ok()?;
        }
        _ => return None,
    }
    Some(answer)
}
