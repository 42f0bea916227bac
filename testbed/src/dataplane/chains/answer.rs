//! What the sender of a refused packet is told: an ICMP error, or a reset. And who asks for a neighbour.

use super::frame::{Address, ETHERNET, HEADERS, Kind, Mac, Packet, Tuple, protocol, word};
use super::ruleset::RejectWith;
use super::sum::{sum, sum_icmp, sum_tcp};

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// How `REJECT` refuses.
    Reject(RejectWith),
    /// It would have to be cut to this many bytes, and must not be (RFC 1191, RFC 8201).
    TooBig(usize),
    /// Its hops are used up.
    TimeExceeded,
}

/// The longest ICMP error, in bytes of IP (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4).
const LONGEST: [usize; 2] = [576, 1280];

/// Errors of IPv4 say that they are network control, and ask for the service of the packet that they are about (RFC 1812,
/// section 4.3.2.5; `icmp_send`, which takes a bit of ECN for one of the service, as RFC 1349 had it).
const CONTROL: u8 = 0xc0;
const SERVICE: u8 = 0x1e;

impl Answer {
    /// Type and code, of ICMP and ICMPv6.
    fn icmp(self) -> [(u8, u8); 2] {
        match self {
            Self::Reject(RejectWith::PortUnreachable | RejectWith::TcpReset) => [(3, 3), (1, 4)],
            Self::Reject(RejectWith::HostUnreachable) => [(3, 1), (1, 3)],
            Self::Reject(RejectWith::NetUnreachable) => [(3, 0), (1, 0)],
            Self::Reject(RejectWith::ProtoUnreachable) => [(3, 2), (1, 4)],
            Self::Reject(RejectWith::AdminProhibited) => [(3, 13), (1, 1)],
            Self::Reject(RejectWith::HostProhibited) => [(3, 10), (1, 1)],
            Self::TooBig(_) => [(3, 4), (2, 0)],
            Self::TimeExceeded => [(11, 0), (3, 0)],
        }
    }

    /// Writes the answer from `source` to whoever sent a packet, as a frame without addresses yet. None about what
    /// must not be answered: errors (RFC 1122, section 3.2.2), and resets.
    pub(super) fn write(self, source: Address, packet: &Packet, frame: &[u8]) -> Option<(Packet, Vec<u8>)> {
        let body = match (self, packet.kind) {
            (_, Kind::Error(_)) => return None,
            (Self::Reject(RejectWith::TcpReset), Kind::Tcp { .. }) => reset(packet, frame)?,
            _ => self.error(packet, frame),
        };
        let is_reset = matches!((self, packet.kind), (Self::Reject(RejectWith::TcpReset), Kind::Tcp { .. }));
        let v4 = source.is_v4();
        let number = match (is_reset, v4) {
            (true, _) => protocol::TCP,
            (false, true) => protocol::ICMP,
            (false, false) => protocol::ICMP_V6,
        };
        // A reset comes from whom the packet was for.
        let source = if is_reset { packet.tuple.target } else { source };
        let target = packet.tuple.source;
        let tuple = Tuple { source, target, source_port: 0, target_port: 0, protocol: number };
        let mut answer = vec![0; ETHERNET];
        let class = if number == protocol::ICMP { CONTROL | packet.class(frame) & SERVICE } else { 0 };
        answer.extend_from_slice(&header(&tuple, class, body.len()));
        let transport = answer.len();
        answer.extend_from_slice(&body);
        if is_reset {
            sum_tcp(&mut answer[transport..], &tuple);
        } else {
            sum_icmp(&mut answer[transport..], &tuple);
        }
        let packet = Packet::read(&answer, ETHERNET).ok()?;
        Some((packet, answer))
    }

    fn error(self, packet: &Packet, frame: &[u8]) -> Vec<u8> {
        let family = usize::from(!packet.tuple.source.is_v4());
        let (kind, code) = self.icmp()[family];
        let mtu = if let Self::TooBig(mtu) = self { mtu as u32 } else { 0 };
        let quote = packet.bytes(frame);
        let room = LONGEST[family] - HEADERS[family] - 8;
        let mut error = vec![kind, code, 0, 0];
        error.extend_from_slice(&mtu.to_be_bytes());
        error.extend_from_slice(&quote[..quote.len().min(room)]);
        error
    }
}

/// An IP header before so many bytes.
fn header(tuple: &Tuple, class: u8, length: usize) -> Vec<u8> {
    let (source, target) = (tuple.source, tuple.target);
    if !source.is_v4() {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend_from_slice(&(length as u16).to_be_bytes());
        header.extend_from_slice(&[tuple.protocol, 64]);
        header.extend_from_slice(&source.bits().to_be_bytes());
        header.extend_from_slice(&target.bits().to_be_bytes());
        return header;
    }
    let mut header = vec![0x45, class];
    header.extend_from_slice(&((HEADERS[0] + length) as u16).to_be_bytes());
    // Nobody is to cut a reset: it is short, and without an identification.
    let whole = if tuple.protocol == protocol::TCP { 0x40 } else { 0 };
    header.extend_from_slice(&[0, 0, whole, 0, 64, tuple.protocol, 0, 0]);
    header.extend_from_slice(&source.low().to_be_bytes());
    header.extend_from_slice(&target.low().to_be_bytes());
    let checksum = sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// The segment that ends a connection (RFC 9293, section 3.10.7.1). None for what is one itself.
fn reset(packet: &Packet, frame: &[u8]) -> Option<Vec<u8>> {
    let Kind::Tcp { syn, ack, fin, rst } = packet.kind else { return None };
    if rst {
        return None;
    }
    let segment = packet.transport(frame);
    let number = |at: usize| Some(u32::from(word(segment, at)?) << 16 | u32::from(word(segment, at + 2)?));
    let taken = segment.len() - usize::from(segment.get(12)? >> 4) * 4 + usize::from(syn) + usize::from(fin);
    let (seq, acked, flags) = match ack {
        true => (number(8)?, 0, 4),
        false => (0, number(4)?.wrapping_add(taken as u32), 4 | 16),
    };
    let Tuple { source_port, target_port, .. } = packet.tuple;
    let mut reset = [target_port.to_be_bytes(), source_port.to_be_bytes()].concat();
    reset.extend_from_slice(&seq.to_be_bytes());
    reset.extend_from_slice(&acked.to_be_bytes());
    reset.extend_from_slice(&[5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    Some(reset)
}

/// The answer to a pod that asks for a neighbour (ARP, RFC 826): `mac`, whatever address it asks for but its own.
/// None to what is no such question.
pub(super) fn arp(frame: &[u8], mac: Mac) -> Option<[u8; 42]> {
    let question: &[u8; 28] = frame.get(ETHERNET..ETHERNET + 28)?.try_into().ok()?;
    let (asker, asked) = (&question[14..18], &question[24..28]);
    let asks = question[..8] == [0, 1, 8, 0, 6, 4, 0, 1];
    if !asks || asker == asked || asker == [0; 4] {
        return None;
    }
    let mut answer = [0; 42];
    answer[..6].copy_from_slice(&frame[6..12]);
    answer[6..12].copy_from_slice(&mac);
    answer[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    answer[22..28].copy_from_slice(&mac);
    answer[28..32].copy_from_slice(asked);
    answer[32..38].copy_from_slice(&frame[6..12]);
    answer[38..42].copy_from_slice(asker);
    Some(answer)
}
