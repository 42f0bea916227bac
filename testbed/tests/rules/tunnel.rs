//! The tunnel between two nodes, by etherparse: what the other one sends, and what is around that which this one sends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use etherparse::{EtherType, PacketBuilder, PacketHeaders, TransportHeader};
use testbed::topology::mac;

use super::packet::{inside, protocol, source, target};
use super::realm::{self, V4};

/// The port of both ends (the testbed's, as Linux has it).
pub(crate) const PORT: u16 = 8472;
/// The network's identifier.
pub(crate) const VNI: u32 = 1;
/// What VXLAN writes before a frame: that it names a network, and which (RFC 7348, section 5).
const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0, VNI as u8, 0];
/// Bytes before a frame that is wrapped.
const BEFORE: usize = 14 + 20 + 8 + HEADER.len();

/// Where wrapped frames come from: the kernel takes a port as for its sockets, `chains` of the range that RFC 7348
/// recommends.
const SOURCE_PORTS: [RangeInclusive<u16>; 2] = [32_768..=60_999, 49_152..=u16::MAX];

/// A frame of the other node's end. It has no UDP checksum (RFC 7348, section 5): the kernel takes one for a checksum of
/// what is inside as well, and does not look at that of SCTP there.
pub(crate) fn wrapped(frame: &[u8]) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => panic!("the underlay has IPv4"),
    };
    let step = PacketBuilder::ethernet2(mac(V4.remote[2]).0, mac(V4.node).0)
        .ipv4(octets(V4.remote[2]), octets(V4.node), 64)
        .udp(50_000, PORT);
    let mut bytes = Vec::new();
    step.write(&mut bytes, &[&HEADER, frame].concat()).expect("it fits");
    bytes[14 + 20 + 6..][..2].fill(0);
    bytes
}

/// The frame that is wrapped in this one, if one is.
pub(crate) fn unwrapped(frame: &[u8]) -> Option<&[u8]> {
    let is_wrapped = frame.get(12..14) == Some(&[8, 0])
        && protocol(inside(frame)) == 17
        && frame.get(36..38) == Some(&PORT.to_be_bytes());
    frame.get(BEFORE..).filter(|_| is_wrapped)
}

/// Which ports a flow inside was wrapped with, by the kernel and by `chains`.
#[derive(Debug, Default)]
pub(crate) struct Ports(HashMap<Vec<u8>, [u16; 2]>);

impl Ports {
    /// What differs around two wrapped frames, of the kernel and of `chains`, or is wrong with one of them.
    ///
    /// Not compared is what each end may choose: whether the packet may be cut, its identification, whether it has a
    /// UDP checksum (which must be right), and its source port, which must be the same for all of a flow.
    pub(crate) fn difference(&mut self, frames: [&[u8]; 2]) -> Option<String> {
        let mut ports = [0; 2];
        let mut heads = Vec::new();
        for ((port, frame), range) in ports.iter_mut().zip(frames).zip(&SOURCE_PORTS) {
            match head(frame) {
                Ok((own, head)) if range.contains(&own) => {
                    *port = own;
                    heads.push(head);
                }
                Ok((own, _)) => {
                    return Some(format!("wrapped from port {own}, which is not among {range:?}"));
                }
                Err(why) => return Some(format!("wrapped with {why}")),
            }
        }
        if heads[0] != heads[1] {
            return Some(format!("wrapped as {:?} by the kernel, and {:?} by chains", heads[0], heads[1]));
        }
        for (number, (port, frame)) in ports.into_iter().zip(frames).enumerate() {
            let known = self.0.entry(flow(inside(&frame[BEFORE..]))).or_default();
            if known[number] != 0 && known[number] != port {
                return Some(format!("a flow wrapped from port {port}, and before from {}", known[number]));
            }
            known[number] = port;
        }
        None
    }
}

/// What tells a flow from others.
fn flow(packet: &[u8]) -> Vec<u8> {
    let transport = &packet[realm::of(packet).header..];
    let ports = match protocol(packet) {
        6 | 17 | 132 => &transport[..4],
        // Its kind and its identifier.
        _ => &[&transport[..2], &transport[4..6]].concat(),
    };
    let ends = format!("{} {} {}", source(packet), target(packet), protocol(packet));
    [ends.as_bytes(), ports].concat()
}

/// What is around a wrapped frame.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    macs: [[u8; 6]; 2],
    ends: [Ipv4Addr; 2],
    hops: u8,
    /// Its class, and its marks of congestion.
    service: (u8, u8),
    header: Vec<u8>,
}

/// Reads it, and the source port.
///
/// # Errors
/// What is wrong: a length, or a checksum.
fn head(frame: &[u8]) -> Result<(u16, Head), String> {
    let packet = PacketHeaders::from_ethernet_slice(frame).map_err(|why| why.to_string())?;
    let (Some(link), Some(etherparse::NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Udp(udp))) =
        (packet.link.and_then(|link| link.ethernet2()), &packet.net, &packet.transport)
    else {
        return Err(format!("{:?}", packet.net));
    };
    if link.ether_type != EtherType::IPV4 || ip.header_checksum != ip.calc_header_checksum() {
        return Err(format!("a wrong header checksum {:#06x}", ip.header_checksum));
    }
    if usize::from(ip.total_len) + 14 != frame.len() || usize::from(udp.length) + 34 != frame.len() {
        return Err(format!("the lengths {} and {} in {} bytes", ip.total_len, udp.length, frame.len()));
    }
    let right = udp.calc_checksum_ipv4(ip, packet.payload.slice()).map_err(|why| why.to_string())?;
    if udp.checksum != 0 && udp.checksum != right {
        return Err(format!("the UDP checksum {:#06x}, and {right:#06x} is right", udp.checksum));
    }
    let head = Head {
        macs: [link.source, link.destination],
        ends: [ip.source, ip.destination].map(Ipv4Addr::from),
        hops: ip.time_to_live,
        service: (ip.dscp.value(), ip.ecn.value()),
        header: frame[BEFORE - HEADER.len()..BEFORE].to_vec(),
    };
    Ok((udp.source_port, head))
}
