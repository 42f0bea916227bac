//! The tunnel between two nodes, by etherparse: what the other one sends, and what is around that which this one sends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use testbed::topology::mac;

use super::packet::{class, classify, framed, inside, protocol, source, target, udp};
use super::realm::{self, Realm, V4, V6};

/// The port of both ends (the testbed's, as Linux has it).
pub(crate) const PORT: u16 = 8472;
/// The network's identifier.
pub(crate) const VNI: u32 = 1;
/// What VXLAN writes before a frame: that it names a network, and which (RFC 7348, section 5).
const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0, VNI as u8, 0];
/// Bytes of an Ethernet header, and of one of UDP.
const ETHERNET: usize = 14;
const UDP: usize = 8;

/// Bytes before a frame that is wrapped. A packet is longer by as many then: its own Ethernet header counts, and not the
/// outer one.
pub(crate) fn before(over: &Realm) -> usize {
    ETHERNET + over.header + UDP + HEADER.len()
}

/// Where wrapped frames come from: the kernel takes a port as for its sockets, `chains` of the range that RFC 7348
/// recommends.
const SOURCE_PORTS: [RangeInclusive<u16>; 2] = [32_768..=60_999, 49_152..=u16::MAX];

/// A frame of the other node's end, of this class. Over IPv4 it has no UDP checksum (RFC 7348, section 5): the kernel takes
/// one for a checksum of what is inside as well, and does not look at that of SCTP there. Over IPv6 it has to have one,
/// unless the device is told otherwise: so what comes by the tunnel over IPv6 has no wrong checksum of SCTP.
pub(crate) fn wrapped(frame: &[u8], over: &Realm, class: u8) -> Vec<u8> {
    let [.., from] = over.remote;
    let payload = [&HEADER, frame].concat();
    let mut packet = udp((from, over.node), (50_000, PORT), &payload);
    classify(&mut packet, class);
    if over == &V4 {
        packet[over.header + 6..][..2].fill(0);
    }
    framed(mac(over.node).0, &packet)
}

/// The frame that is wrapped in this one, if one is.
pub(crate) fn unwrapped(frame: &[u8]) -> Option<&[u8]> {
    let over = match frame.get(12..ETHERNET)? {
        [8, 0] => &V4,
        [0x86, 0xdd] => &V6,
        _ => return None,
    };
    let at = ETHERNET + over.header;
    let is_wrapped = frame.get(ETHERNET + over.protocol) == Some(&17)
        && frame.get(at + 2..at + 4) == Some(&PORT.to_be_bytes());
    frame.get(before(over)..).filter(|_| is_wrapped)
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
            let known = self.0.entry(flow(inside(unwrapped(frame)?))).or_default();
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
    ends: [IpAddr; 2],
    hops: u8,
    /// What IPv6 calls the flow; 0 for IPv4.
    label: u32,
    class: u8,
    header: Vec<u8>,
}

/// Reads it, and the source port.
///
/// # Errors
/// What is wrong: a length, or a checksum.
fn head(frame: &[u8]) -> Result<(u16, Head), String> {
    let packet = PacketHeaders::from_ethernet_slice(frame).map_err(|why| why.to_string())?;
    let (Some(link), Some(net), Some(TransportHeader::Udp(udp))) =
        (packet.link.and_then(|link| link.ethernet2()), &packet.net, &packet.transport)
    else {
        return Err(format!("{:?}", packet.net));
    };
    let payload = packet.payload.slice();
    let (length, hops, label, right) = match net {
        NetHeaders::Ipv4(ip, _) if ip.header_checksum != ip.calc_header_checksum() => {
            return Err(format!("a wrong header checksum {:#06x}", ip.header_checksum));
        }
        NetHeaders::Ipv4(ip, _) => {
            (usize::from(ip.total_len), ip.time_to_live, 0, udp.calc_checksum_ipv4(ip, payload))
        }
        NetHeaders::Ipv6(ip, _) => {
            let length = V6.header + usize::from(ip.payload_length);
            (length, ip.hop_limit, ip.flow_label.value(), udp.calc_checksum_ipv6(ip, payload))
        }
        other => return Err(format!("{other:?}")),
    };
    let before = before(realm::of(inside(frame)));
    let after = frame.len() - (before - UDP - HEADER.len());
    if length + ETHERNET != frame.len() || usize::from(udp.length) != after {
        return Err(format!("the lengths {length} and {} in {} bytes", udp.length, frame.len()));
    }
    let right = right.map_err(|why| why.to_string())?;
    if udp.checksum != 0 && udp.checksum != right {
        return Err(format!("the UDP checksum {:#06x}, and {right:#06x} is right", udp.checksum));
    }
    let head = Head {
        macs: [link.source, link.destination],
        ends: [source(inside(frame)), target(inside(frame))],
        hops,
        label,
        class: class(inside(frame)),
        header: frame[before - HEADER.len()..before].to_vec(),
    };
    Ok((udp.source_port, head))
}
