//! Packets of a flow, made by etherparse, and what two frames have in common.

use std::net::Ipv4Addr;

use etherparse::{PacketBuilder, PacketBuilderStep, TransportHeader};

use super::draw::Flow;

const ETHERNET: usize = 14;
const IP: usize = 20;
/// A window that nothing is too long for.
const WINDOW: u16 = 60_000;

/// What a TCP segment of a flow says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Syn,
    SynAck,
    Ack,
    Fin,
    Reset,
}

/// A frame for this hardware address.
pub(crate) fn framed(to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [&to[..], &[2, 0, 0, 0, 0, 9], &[8, 0], packet].concat()
}

fn ip(source: Ipv4Addr, target: Ipv4Addr) -> PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ipv4(source.octets(), target.octets(), 61)
}

fn written<T>(
    step: PacketBuilderStep<T>,
    payload: &[u8],
    write: impl Fn(PacketBuilderStep<T>, &mut Vec<u8>, &[u8]),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(step, &mut bytes, payload);
    // One that is no zero shows whether it is kept.
    bytes[4..6].copy_from_slice(&0x1234_u16.to_be_bytes());
    bytes[10..12].fill(0);
    let sum = header_checksum(&bytes[..IP]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A datagram with this payload.
pub(crate) fn datagram((source, target): (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    udp((source, target), (9, 9), payload)
}

fn udp((source, target): (Ipv4Addr, Ipv4Addr), (from, to): (u16, u16), payload: &[u8]) -> Vec<u8> {
    written(ip(source, target).udp(from, to), payload, |step, bytes, payload| {
        step.write(bytes, payload).expect("it fits");
    })
}

/// The flow's packet in the direction of its first; `says` is for TCP.
pub(crate) fn there(flow: &Flow, says: Says) -> Vec<u8> {
    let ends = (flow.source, flow.target);
    match flow.protocol {
        6 => segment(ends, flow.ports, says, (1001, 2001)),
        17 => udp(ends, flow.ports, b"ask"),
        _ => echo(ends, flow.ports.0, true),
    }
}

/// The answer to a packet as it arrived.
pub(crate) fn back(arrived: &[u8], says: Says) -> Vec<u8> {
    let (ends, ports) = ((target(arrived), source(arrived)), (port(arrived, 2), port(arrived, 0)));
    match arrived[9] {
        6 => segment(ends, ports, says, (2001, 1001)),
        17 => udp(ends, ports, b"answer"),
        // The identifier stands after type, code and checksum.
        _ => echo(ends, port(arrived, 4), false),
    }
}

/// An error about a packet as it arrived: "host unreachable" from a router, or "port unreachable" from its target.
pub(crate) fn error(arrived: &[u8], router: Option<Ipv4Addr>) -> Vec<u8> {
    let (from, code) = router.map_or((target(arrived), 3), |router| (router, 1));
    written(ip(from, source(arrived)).icmpv4_raw(3, code, [0; 4]), arrived, |step, bytes, payload| {
        step.write(bytes, payload).expect("it fits");
    })
}

fn echo((source, target): (Ipv4Addr, Ipv4Addr), number: u16, asks: bool) -> Vec<u8> {
    let step = ip(source, target);
    let step = if asks { step.icmpv4_echo_request(number, 1) } else { step.icmpv4_echo_reply(number, 1) };
    written(step, b"echo", |step, bytes, payload| step.write(bytes, payload).expect("it fits"))
}

/// A segment with the next numbers of its sender and of the other end.
fn segment(
    (source, target): (Ipv4Addr, Ipv4Addr),
    (from, to): (u16, u16),
    says: Says,
    (own, other): (u32, u32),
) -> Vec<u8> {
    let first = matches!(says, Says::Syn | Says::SynAck);
    let step = ip(source, target).tcp(from, to, own - u32::from(first), WINDOW);
    let step = match says {
        Says::Syn => step.syn(),
        Says::SynAck => step.syn().ack(other),
        Says::Ack => step.ack(other),
        Says::Fin => step.fin().ack(other),
        Says::Reset => step.rst().ack(other),
    };
    let payload: &[u8] = if says == Says::Ack { b"say" } else { b"" };
    written(step, payload, |step, bytes, payload| step.write(bytes, payload).expect("it fits"))
}

fn source(packet: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15])
}

fn target(packet: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19])
}

/// A 16-bit field of the transport header.
fn port(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[IP + at], packet[IP + at + 1]])
}

/// The packet in a frame.
pub(crate) fn inside(frame: &[u8]) -> &[u8] {
    &frame[ETHERNET..]
}

/// What differs between the kernel's frame and that of `chains`, which they send for `sent`; `made` by the node itself
/// if it is an answer to its sender.
///
/// Compared is every byte, but for these: the identification of packets that the node makes, which the kernel counts
/// or draws; and where a source port (or an echo's identifier) had to be another, which one that is: then it must be
/// another in both. Checksums must be right in both.
pub(crate) fn difference(kernel: &[u8], chains: &[u8], sent: &[u8], made: bool) -> Option<String> {
    for (whose, frame) in [("the kernel's", kernel), ("chains'", chains)] {
        if let Err(why) = sums(frame) {
            return Some(format!("{whose} frame has {why}"));
        }
    }
    let [mut one, mut other] = [kernel, chains].map(<[u8]>::to_vec);
    for frame in [&mut one, &mut other] {
        frame[ETHERNET + 10..ETHERNET + 12].fill(0);
        if made {
            frame[ETHERNET + 4..ETHERNET + 6].fill(0);
        }
        clear_checksum(frame);
    }
    let place = match inside(kernel)[9] {
        6 | 17 => Some(0),
        _ if inside(kernel)[IP] == 8 => Some(4),
        _ => None,
    };
    if let Some(place) = place.filter(|_| !made && one.len() == other.len()) {
        let [own, theirs, before] = [inside(kernel), inside(chains), sent].map(|packet| port(packet, place));
        if own != before && theirs != before && own != theirs {
            for frame in [&mut one, &mut other] {
                frame[ETHERNET + IP + place..ETHERNET + IP + place + 2].fill(0);
            }
        }
    }
    (one != other).then(|| format!("kernel {}\n  chains {}", hex(&one), hex(&other)))
}

/// Bytes, for people.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(2)
        .map(|pair| pair.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + " ")
        .collect()
}

fn clear_checksum(frame: &mut [u8]) {
    let at = match frame[ETHERNET + 9] {
        6 => 16,
        17 => 6,
        _ => 2,
    };
    frame[ETHERNET + IP + at..ETHERNET + IP + at + 2].fill(0);
}

/// Whether the checksums of a frame are right: its header's, and its transport's.
fn sums(frame: &[u8]) -> Result<(), String> {
    let packet = etherparse::PacketHeaders::from_ethernet_slice(frame).map_err(|why| why.to_string())?;
    let Some(etherparse::NetHeaders::Ipv4(ip, _)) = &packet.net else { return Err("no IPv4".to_owned()) };
    if ip.header_checksum != ip.calc_header_checksum() {
        return Err(format!("a wrong header checksum {:#06x}", ip.header_checksum));
    }
    let payload = packet.payload.slice();
    let (own, right) = match &packet.transport {
        Some(TransportHeader::Tcp(tcp)) => {
            (tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).map_err(|why| why.to_string())?)
        }
        Some(TransportHeader::Udp(udp)) => {
            (udp.checksum, udp.calc_checksum_ipv4(ip, payload).map_err(|why| why.to_string())?)
        }
        Some(TransportHeader::Icmpv4(icmp)) => (icmp.checksum, icmp.icmp_type.calc_checksum(payload)),
        _ => return Err(format!("the protocol {:?}", ip.protocol)),
    };
    if own == right { Ok(()) } else { Err(format!("the checksum {own:#06x}, and {right:#06x} is right")) }
}

fn header_checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
