//! Packets between nodes, wrapped in UDP. Source: RFC 7348 (VXLAN), RFC 8926 (Geneve).

use super::frame::{ETHERNET, HEADERS, Mac, Packet, Tuple, Unreadable};
use super::plan::Tunnel;
use super::sum::sum;

/// The tunnel's network identifier.
const VNI: u32 = 1;

/// Bytes of a UDP header, and of either tunnel's.
const UDP: usize = 8;
const TUNNEL: usize = 8;

/// The number of hops that a wrapped packet may take.
const HOPS: u8 = 64;

/// Marks of congestion (RFC 3168, section 5).
mod ecn {
    pub(super) const MASK: u8 = 3;
    pub(super) const NOT_CAPABLE: u8 = 0;
    pub(super) const CAPABLE_1: u8 = 1;
    pub(super) const CAPABLE_0: u8 = 2;
    pub(super) const EXPERIENCED: u8 = 3;
}

/// The class of what a packet of this class is wrapped in: none, but that it is capable of marks if what is inside is.
/// One that has a mark already goes without, as the kernel's devices have it (`INET_ECN_encapsulate`; RFC 3168, section
/// 9.1.1, and not RFC 6040).
pub(super) fn outside(inner: u8) -> u8 {
    match inner & ecn::MASK {
        ecn::EXPERIENCED => ecn::CAPABLE_0,
        mark => mark,
    }
}

/// The class that a packet of this class has after it came in one of the class `outer` (RFC 6040, figure 4). None if it
/// is marked and does not know of marks: then it is lost.
pub(super) fn inside(inner: u8, outer: u8) -> Option<u8> {
    let mark = match (inner & ecn::MASK, outer & ecn::MASK) {
        (ecn::NOT_CAPABLE, ecn::EXPERIENCED) => return None,
        (ecn::NOT_CAPABLE, _) => ecn::NOT_CAPABLE,
        (_, ecn::EXPERIENCED) => ecn::EXPERIENCED,
        (ecn::CAPABLE_0, ecn::CAPABLE_1) => ecn::CAPABLE_1,
        (mark, _) => mark,
    };
    Some(inner & !ecn::MASK | mark)
}

/// Bytes before the inner frame of what is wrapped towards an address like this one.
pub(super) fn before(v4: bool) -> usize {
    ETHERNET + HEADERS[usize::from(!v4)] + UDP + TUNNEL
}

/// Writes the headers before an inner frame that begins at [`before`]; it ends where `out` does. `outer` is from
/// this node to the other.
pub(super) fn wrap(tunnel: Tunnel, out: &mut [u8], outer: &Tuple, inner: &Packet, macs: [Mac; 2]) {
    let class = outside(inner.class(out));
    let v4 = outer.source.is_v4();
    let at = before(v4) - TUNNEL;
    let head: [u8; 4] = if tunnel.geneve { [0, 0, 0x65, 0x58] } else { [8, 0, 0, 0] };
    out[at..at + 4].copy_from_slice(&head);
    out[at + 4..at + 8].copy_from_slice(&(VNI << 8).to_be_bytes());
    let length = (out.len() - (at - UDP)) as u16;
    let udp = &mut out[at - UDP..at];
    // Flows take different paths, and one flow one path.
    udp[..2].copy_from_slice(&(0xc000 | spread(&inner.tuple)).to_be_bytes());
    udp[2..4].copy_from_slice(&tunnel.port.to_be_bytes());
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    // What is inside has its own sums (RFC 6935).
    udp[6..8].fill(0);
    write_ethernet(out, macs, v4);
    let ip = &mut out[ETHERNET..];
    if v4 {
        let total = HEADERS[0] as u16 + length;
        ip[..4].copy_from_slice(&[0x45, class, (total >> 8) as u8, total as u8]);
        ip[4..12].copy_from_slice(&[0, 0, 0x40, 0, HOPS, 17, 0, 0]);
        ip[12..16].copy_from_slice(&outer.source.low().to_be_bytes());
        ip[16..20].copy_from_slice(&outer.target.low().to_be_bytes());
        let checksum = sum(&ip[..20]);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        ip[..4].copy_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
        ip[4..6].copy_from_slice(&length.to_be_bytes());
        ip[6..8].copy_from_slice(&[17, HOPS]);
        ip[8..24].copy_from_slice(&outer.source.bits().to_be_bytes());
        ip[24..40].copy_from_slice(&outer.target.bits().to_be_bytes());
    }
}

/// Writes an Ethernet header: from the first to the second.
pub(super) fn write_ethernet(frame: &mut [u8], [from, to]: [Mac; 2], v4: bool) {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xdd] });
}

/// Where in a frame the inner packet's IP header is, of what came wrapped.
///
/// # Errors
/// It is not of this network, or no IP packet.
pub(super) fn unwrap(tunnel: Tunnel, frame: &[u8], packet: &Packet) -> Result<usize, Unreadable> {
    let payload = packet.udp_payload();
    let bytes = frame.get(payload.clone()).ok_or(Unreadable::Malformed)?;
    let header = bytes.get(..TUNNEL).ok_or(Unreadable::Malformed)?;
    let options = if tunnel.geneve { usize::from(header[0] & 0x3f) * 4 } else { 0 };
    let known = match tunnel.geneve {
        // Version 0, no option that must be understood.
        true => header[0] >> 6 == 0 && header[1] & 0x40 == 0 && header[2..4] == [0x65, 0x58],
        false => header[0] == 8,
    };
    if !known || header[4..7] != (VNI << 8).to_be_bytes()[..3] {
        return Err(Unreadable::Malformed);
    }
    let inner = payload.start + TUNNEL + options;
    match frame.get(inner + 12..inner + ETHERNET) {
        Some([8, 0] | [0x86, 0xdd]) => Ok(inner + ETHERNET),
        Some(_) => Err(Unreadable::EtherType),
        None => Err(Unreadable::Malformed),
    }
}

/// Fourteen bits that are the same for all packets of a flow.
fn spread(inner: &Tuple) -> u16 {
    let mut hash = u64::from(inner.protocol);
    for word in [inner.source.bits(), inner.target.bits()] {
        hash = (hash ^ word as u64 ^ (word >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    let ports = u64::from(inner.source_port) << 16 | u64::from(inner.target_port);
    ((hash ^ ports).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50) as u16
}
