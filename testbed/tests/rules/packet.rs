//! Packets of a flow, made by etherparse, and what two frames have in common.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep, TransportHeader};

use super::association::{self, Saying};
use super::draw::Flow;
use super::realm::{self, Realm};

const ETHERNET: usize = 14;
/// A window that nothing is too long for.
const WINDOW: u16 = 60_000;

/// What a packet of a flow says, of TCP or SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Syn,
    SynAck,
    Ack,
    Fin,
    Reset,
    Chunks(Saying),
}

/// A frame for this hardware address.
pub(crate) fn framed(to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind = if realm::of(packet) == &realm::V4 { [8, 0] } else { [0x86, 0xdd] };
    [&to[..], &[2, 0, 0, 0, 0, 9], &kind, packet].concat()
}

fn ip(source: IpAddr, target: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => PacketBuilder::ipv4(source.octets(), target.octets(), 61),
        (IpAddr::V6(source), IpAddr::V6(target)) => PacketBuilder::ipv6(source.octets(), target.octets(), 61),
        _ => panic!("{source} and {target} are of one family"),
    }
}

fn written<T>(
    step: PacketBuilderStep<T>,
    payload: &[u8],
    write: impl Fn(PacketBuilderStep<T>, &mut Vec<u8>, &[u8]),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(step, &mut bytes, payload);
    if realm::of(&bytes) == &realm::V6 {
        return bytes;
    }
    // One that is no zero shows whether it is kept.
    bytes[4..6].copy_from_slice(&0x1234_u16.to_be_bytes());
    seal(&mut bytes);
    bytes
}

/// Gives a packet a class: differentiated services and ECN.
pub(crate) fn classify(packet: &mut [u8], class: u8) {
    if realm::of(packet) == &realm::V6 {
        packet[..2].copy_from_slice(&(0x6000 | u16::from(class) << 4).to_be_bytes());
        return;
    }
    packet[1] = class;
    seal(packet);
}

/// The class of a packet.
pub(crate) fn class(packet: &[u8]) -> u8 {
    if realm::of(packet) == &realm::V6 { packet[0] << 4 | packet[1] >> 4 } else { packet[1] }
}

/// Writes the checksum of an IPv4 header.
fn seal(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = header_checksum(&packet[..realm::V4.header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A datagram with this payload.
pub(crate) fn datagram((source, target): (IpAddr, IpAddr), payload: &[u8]) -> Vec<u8> {
    udp((source, target), (9, 9), payload)
}

pub(crate) fn udp((source, target): (IpAddr, IpAddr), (from, to): (u16, u16), payload: &[u8]) -> Vec<u8> {
    written(ip(source, target).udp(from, to), payload, |step, bytes, payload| {
        step.write(bytes, payload).expect("it fits");
    })
}

/// The flow's packet in the direction of its first; `says` is for TCP and SCTP.
pub(crate) fn there(flow: &Flow, says: Says) -> Vec<u8> {
    let ends = (flow.source, flow.target);
    match (flow.protocol, says) {
        (_, Says::Chunks(saying)) => chunks(ends, &saying.written(flow.ports, false)),
        (6, _) => segment(ends, flow.ports, says, (1001, 2001)),
        (17, _) => udp(ends, flow.ports, b"ask"),
        _ => echo(ends, flow.ports.0, true),
    }
}

/// The answer to a packet as it arrived.
pub(crate) fn back(arrived: &[u8], says: Says) -> Vec<u8> {
    let (ends, ports) = ((target(arrived), source(arrived)), (port(arrived, 2), port(arrived, 0)));
    match (protocol(arrived), says) {
        (_, Says::Chunks(saying)) => chunks(ends, &saying.written(ports, true)),
        (6, _) => segment(ends, ports, says, (2001, 1001)),
        (17, _) => udp(ends, ports, b"answer"),
        // The identifier stands after type, code and checksum.
        _ => echo(ends, port(arrived, 4), false),
    }
}

/// An error about a packet as it arrived: "host unreachable" from a router, or "port unreachable" from its target.
pub(crate) fn error(arrived: &[u8], router: Option<IpAddr>) -> Vec<u8> {
    let (from, to) = (router.unwrap_or(target(arrived)), source(arrived));
    if from.is_ipv4() {
        let code = if router.is_some() { 1 } else { 3 };
        let step = ip(from, to).icmpv4_raw(3, code, [0; 4]);
        return written(step, arrived, |step, bytes, payload| step.write(bytes, payload).expect("it fits"));
    }
    let code = if router.is_some() { 3 } else { 4 };
    let step = ip(from, to).icmpv6_raw(1, code, [0; 4]);
    written(step, arrived, |step, bytes, payload| step.write(bytes, payload).expect("it fits"))
}

fn echo((source, target): (IpAddr, IpAddr), number: u16, asks: bool) -> Vec<u8> {
    let (step, v4) = (ip(source, target), source.is_ipv4());
    if v4 {
        let step = if asks { step.icmpv4_echo_request(number, 1) } else { step.icmpv4_echo_reply(number, 1) };
        return written(step, b"echo", |step, bytes, payload| step.write(bytes, payload).expect("it fits"));
    }
    let step = if asks { step.icmpv6_echo_request(number, 1) } else { step.icmpv6_echo_reply(number, 1) };
    written(step, b"echo", |step, bytes, payload| step.write(bytes, payload).expect("it fits"))
}

fn chunks((source, target): (IpAddr, IpAddr), packet: &[u8]) -> Vec<u8> {
    written(ip(source, target), packet, |step, bytes, payload| {
        step.write(bytes, IpNumber::SCTP, payload).expect("it fits");
    })
}

/// A segment with the next numbers of its sender and of the other end.
fn segment(
    (source, target): (IpAddr, IpAddr),
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
        Says::Chunks(_) => panic!("no segment has chunks"),
    };
    let payload: &[u8] = if says == Says::Ack { b"say" } else { b"" };
    written(step, payload, |step, bytes, payload| step.write(bytes, payload).expect("it fits"))
}

fn address(packet: &[u8], at: usize) -> IpAddr {
    match packet[at..at + realm::of(packet).width()] {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        ref bytes => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("so long is an address")).into(),
    }
}

pub(crate) fn source(packet: &[u8]) -> IpAddr {
    address(packet, realm::of(packet).source)
}

pub(crate) fn target(packet: &[u8]) -> IpAddr {
    let Realm { source, .. } = realm::of(packet);
    address(packet, source + realm::of(packet).width())
}

/// As in the IP header.
pub(crate) fn protocol(packet: &[u8]) -> u8 {
    packet[realm::of(packet).protocol]
}

/// A 16-bit field of the transport header.
fn port(packet: &[u8], at: usize) -> u16 {
    let start = realm::of(packet).header + at;
    u16::from_be_bytes([packet[start], packet[start + 1]])
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
/// another in both, also where an error quotes what was sent to it, or where what was sent to it leaves as it came; and
/// [`Chosen`] tells whether it is another than before.
/// Checksums must be right in both; one of SCTP that was sent wrong must be the same still.
pub(crate) fn difference(kernel: &[u8], chains: &[u8], sent: [&[u8]; 2], made: bool) -> Option<String> {
    for (whose, frame, sent) in [("the kernel's", kernel, sent[0]), ("chains'", chains, sent[1])] {
        let of_sctp = [inside(frame), sent].map(protocol) == [132; 2];
        let [own, before] = [inside(frame), sent].map(|packet| &packet[realm::of(packet).header..]);
        let stays = of_sctp && !association::is_sound(before);
        if stays && own[association::CHECKSUM] != before[association::CHECKSUM] {
            return Some(format!("{whose} frame has another checksum than the wrong one that was sent"));
        }
        if !stays && let Err(why) = sums(frame) {
            return Some(format!("{whose} frame has {why}"));
        }
    }
    let mut frames = [kernel, chains].map(<[u8]>::to_vec);
    let Realm { header, icmp, .. } = *realm::of(inside(kernel));
    for frame in &mut frames {
        if realm::of(inside(frame)) == &realm::V4 {
            frame[ETHERNET + 10..ETHERNET + 12].fill(0);
            if made {
                frame[ETHERNET + 4..ETHERNET + 6].fill(0);
            }
        }
        clear_checksum(frame, ETHERNET);
    }
    let asks = if icmp == realm::V4.icmp { 8 } else { 128 };
    let place = match protocol(inside(kernel)) {
        6 | 17 | 132 => Some(0),
        _ if inside(kernel)[header] == asks => Some(4),
        _ => None,
    };
    let is_as_long = frames[0].len() == frames[1].len();
    if let Some(place) = place.filter(|_| !made && is_as_long) {
        forget_chosen(&mut frames, ETHERNET + header + place, port(sent[0], place));
        let to = |packet| port(packet, 2);
        if place == 0 && [inside(kernel), inside(chains)].map(to) == sent.map(to) {
            frames.iter_mut().for_each(|frame| frame[ETHERNET + header + 2..][..2].fill(0));
        }
    }
    let [from_kernel, from_chains] = [(kernel, sent[0]), (chains, sent[1])]
        .map(|(frame, sent)| protocol(inside(frame)) == 6 && port(inside(frame), 0) == port(sent, 2));
    if made && is_as_long && from_kernel && from_chains {
        // A reset comes from the port that what was sent was for: in each from its own.
        frames.iter_mut().for_each(|frame| frame[ETHERNET + header..][..2].fill(0));
    } else if made && is_as_long && protocol(inside(kernel)) == 6 {
        // Or it is of another connection, and translated as that.
        forget_chosen(&mut frames, ETHERNET + header, port(sent[0], 2));
    }
    let quote = ETHERNET + header + 8;
    if place.is_none() && is_as_long && kernel.len() >= quote + header + 4 {
        let quoted = if made { sent[0] } else { &sent[0][header + 8..] };
        for place in [0, 2] {
            if forget_chosen(&mut frames, quote + header + place, port(quoted, place)) {
                frames.iter_mut().for_each(|frame| clear_checksum(frame, quote));
            }
        }
    }
    if made && sent[0] != sent[1] && is_as_long {
        for (frame, sent) in frames.iter_mut().zip(sent) {
            // Hops and the header's checksum may have changed before it was refused: the transport's part has not.
            let (quote, own) = (quote + header, &sent[header..]);
            if frame.get(quote..).is_some_and(|quoted| !quoted.is_empty() && own.starts_with(quoted)) {
                frame.truncate(quote);
            }
        }
    }
    let [one, other] = frames;
    (one != other).then(|| format!("kernel {}\n  chains {}", hex(&one), hex(&other)))
}

/// Who sent from which port (or with which identifier), and by which address he is known instead.
type Sender = (IpAddr, u16, u8, IpAddr);

/// The ports that stand for others, of the kernel and of `chains`, by whom they stand for.
#[derive(Debug, Default)]
pub(crate) struct Chosen(HashMap<Sender, Vec<[u16; 2]>>);

impl Chosen {
    /// What differs in that a sender of `sent` who had to get another port gets the one that he got before, or a new one.
    pub(crate) fn difference(&mut self, frames: [&[u8]; 2], sent: &[u8]) -> Option<String> {
        let place = if [6, 17, 132].contains(&protocol(sent)) { 0 } else { 4 };
        let [own, theirs] = frames.map(|frame| port(inside(frame), place));
        let before = port(sent, place);
        if own == before || theirs == before {
            return None;
        }
        let sender = (source(sent), before, protocol(sent), source(inside(frames[0])));
        let known = self.0.entry(sender).or_default();
        let differs = known.iter().find(|[one, other]| (*one == own) != (*other == theirs)).copied();
        known.push([own, theirs]);
        differs.map(|before| {
            format!("port {own} by the kernel and {theirs} by chains for {sender:?}, and before {before:?}")
        })
    }
}

/// Clears a port that had to be another than `before`, and is another in each of two frames; whether it is so.
fn forget_chosen(frames: &mut [Vec<u8>; 2], at: usize, before: u16) -> bool {
    let [own, theirs] = frames.each_ref().map(|frame| u16::from_be_bytes([frame[at], frame[at + 1]]));
    let is_chosen = own != before && theirs != before && own != theirs;
    if is_chosen {
        frames.iter_mut().for_each(|frame| frame[at..at + 2].fill(0));
    }
    is_chosen
}

/// Bytes, for people.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(2)
        .map(|pair| pair.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + " ")
        .collect()
}

/// Clears the transport's checksum of the packet whose IP header is at this place of a frame.
fn clear_checksum(frame: &mut [u8], packet: usize) {
    let at = match protocol(&frame[packet..]) {
        6 => 16..18,
        17 => 6..8,
        132 => association::CHECKSUM,
        _ => 2..4,
    };
    let start = packet + realm::of(&frame[packet..]).header;
    frame[start..][at].fill(0);
}

/// Whether the checksums of a frame are right: its header's, and its transport's.
fn sums(frame: &[u8]) -> Result<(), String> {
    let packet = etherparse::PacketHeaders::from_ethernet_slice(frame).map_err(|why| why.to_string())?;
    let payload = packet.payload.slice();
    let crc = || if association::is_sound(payload) { Ok(()) } else { Err("a wrong CRC32c".to_owned()) };
    let (own, right) = match (&packet.net, &packet.transport) {
        (Some(etherparse::NetHeaders::Ipv4(ip, _)), transport) => {
            if ip.header_checksum != ip.calc_header_checksum() {
                return Err(format!("a wrong header checksum {:#06x}", ip.header_checksum));
            }
            match transport {
                Some(TransportHeader::Tcp(tcp)) => (tcp.checksum, tcp.calc_checksum_ipv4(ip, payload)),
                Some(TransportHeader::Udp(udp)) => (udp.checksum, udp.calc_checksum_ipv4(ip, payload)),
                Some(TransportHeader::Icmpv4(icmp)) => {
                    (icmp.checksum, Ok(icmp.icmp_type.calc_checksum(payload)))
                }
                None if ip.protocol == IpNumber::SCTP => return crc(),
                _ => return Err(format!("the protocol {:?}", ip.protocol)),
            }
        }
        (Some(etherparse::NetHeaders::Ipv6(ip, _)), transport) => match transport {
            Some(TransportHeader::Tcp(tcp)) => (tcp.checksum, tcp.calc_checksum_ipv6(ip, payload)),
            Some(TransportHeader::Udp(udp)) => (udp.checksum, udp.calc_checksum_ipv6(ip, payload)),
            Some(TransportHeader::Icmpv6(icmp)) => {
                (icmp.checksum, icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload))
            }
            None if ip.next_header == IpNumber::SCTP => return crc(),
            _ => return Err(format!("the protocol {:?}", ip.next_header)),
        },
        (net, transport) => return Err(format!("{net:?} and {transport:?}")),
    };
    let right = right.map_err(|why| why.to_string())?;
    if own == right { Ok(()) } else { Err(format!("the checksum {own:#06x}, and {right:#06x} is right")) }
}

fn header_checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
