//! Frames as bytes: where what is in them, what would come back for them, their checksums anew, their pieces.

use etherparse::checksum::Sum16BitWords;
use userspace::engine::emulator::message::crc32c;

/// Length of an Ethernet header: where an IP packet starts.
pub(crate) const IP: usize = 14;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;

/// Where what is in an IP packet that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) six: bool,
    /// Offset of the IP header.
    pub(crate) ip: usize,
    /// Of the transport header.
    pub(crate) transport: usize,
    /// Of the first byte that is not the packet's.
    pub(crate) end: usize,
    pub(crate) protocol: u8,
    /// It is in pieces.
    pub(crate) piece: bool,
    /// It is one of them, and not the first.
    pub(crate) later: bool,
}

impl Layout {
    /// Of the packet whose header is at `ip`.
    pub(crate) fn at(frame: &[u8], ip: usize) -> Option<Self> {
        let packet = frame.get(ip..)?;
        let six = packet.first()? >> 4 == 6;
        let (length, mut at) = if six { (40 + word(packet, 4)?, 40) } else { (word(packet, 2)?, 0) };
        let mut layout =
            Self { six, ip, transport: 0, end: ip + length, protocol: 0, piece: false, later: false };
        if six {
            layout.protocol = *packet.get(6)?;
            while matches!(layout.protocol, 0 | 43 | 44 | 60) {
                let next = *packet.get(at)?;
                let more = usize::from(*packet.get(at + 1)?);
                if layout.protocol == 44 {
                    let place = word(packet, at + 2)?;
                    (layout.piece, layout.later) = (place & 0xfff9 != 0, place >> 3 != 0);
                    at += 8;
                } else {
                    at += 8 + 8 * more;
                }
                layout.protocol = next;
                if layout.later {
                    break;
                }
            }
        } else {
            at = usize::from(packet[0] & 0xf) * 4;
            layout.protocol = *packet.get(9)?;
            let place = word(packet, 6)?;
            (layout.piece, layout.later) = (place & 0x3fff != 0, place & 0x1fff != 0);
        }
        layout.transport = ip + at;
        let least = ip + if six { 40 } else { 20 };
        (layout.end <= frame.len() && (least..=layout.end).contains(&layout.transport)).then_some(layout)
    }

    /// Of the packet in a frame, if it is an IP packet.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        match frame.get(12..IP)? {
            [0x08, 0x00] | [0x86, 0xdd] => Self::at(frame, IP),
            _ => None,
        }
    }

    /// Where the addresses are, and how long one is.
    pub(crate) fn addresses(&self) -> (usize, usize) {
        if self.six { (self.ip + 8, 16) } else { (self.ip + 12, 4) }
    }

    pub(crate) fn source<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let (at, length) = self.addresses();
        &frame[at..at + length]
    }

    pub(crate) fn target<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let (at, length) = self.addresses();
        &frame[at + length..at + 2 * length]
    }

    /// Makes the checksums of the packet right, as far as it has any that can be told from here.
    pub(crate) fn seal(&self, frame: &mut [u8]) {
        if !self.six {
            frame[self.ip + 10..self.ip + 12].fill(0);
            let sum = Sum16BitWords::new().add_slice(&frame[self.ip..self.transport]);
            put(frame, self.ip + 10, sum.ones_complement().to_be());
        }
        if !self.piece {
            self.seal_transport(frame);
        }
    }

    fn seal_transport(&self, frame: &mut [u8]) {
        if self.protocol == SCTP && self.transport + 12 <= self.end {
            let field = self.transport + 8..self.transport + 12;
            frame[field.clone()].fill(0);
            let sum = crc32c(&frame[self.transport..self.end]).to_le_bytes();
            frame[field].copy_from_slice(&sum);
        }
        let (offset, pseudo) = match (self.protocol, self.six) {
            (TCP, _) => (16, true),
            (UDP, _) => (6, true),
            (ICMP, false) => (2, false),
            (ICMPV6, true) => (2, true),
            _ => return,
        };
        let at = self.transport + offset;
        if at + 2 > self.end {
            return;
        }
        frame[at..at + 2].fill(0);
        let mut sum = Sum16BitWords::new();
        if pseudo {
            let length = (self.end - self.transport) as u32;
            let (addresses, each) = self.addresses();
            sum = sum
                .add_slice(&frame[addresses..addresses + 2 * each])
                .add_4bytes(length.to_be_bytes())
                .add_2bytes([0, self.protocol]);
        }
        let sum = sum.add_slice(&frame[self.transport..self.end]);
        let sum =
            if self.protocol == UDP { sum.to_ones_complement_with_no_zero() } else { sum.ones_complement() };
        put(frame, at, sum.to_be());
    }
}

/// A number of two bytes.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let two = bytes.get(at..at + 2)?;
    Some(usize::from(u16::from_be_bytes([two[0], two[1]])))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The same with its ends swapped: what might come back, but for TCP's flags.
pub(crate) fn turned(frame: &[u8]) -> Option<Vec<u8>> {
    let layout = Layout::of(frame)?;
    let mut turned = frame.to_vec();
    let (source, target) = (layout.source(frame), layout.target(frame));
    let (addresses, length) = layout.addresses();
    turned[addresses..addresses + length].copy_from_slice(target);
    turned[addresses + length..addresses + 2 * length].copy_from_slice(source);
    let hops = layout.ip + if layout.six { 7 } else { 8 };
    turned[hops] = 64;
    let at = layout.transport;
    if !layout.later && at + 8 <= layout.end {
        match (layout.protocol, turned[at]) {
            (TCP | UDP | SCTP, _) => {
                turned[at..at + 2].copy_from_slice(&frame[at + 2..at + 4]);
                turned[at + 2..at + 4].copy_from_slice(&frame[at..at + 2]);
            }
            (ICMP, 0) => turned[at] = 8,
            (ICMP, 8) => turned[at] = 0,
            (ICMPV6, 128) => turned[at] = 129,
            (ICMPV6, 129) => turned[at] = 128,
            _ => {}
        }
    }
    layout.seal(&mut turned);
    Some(turned)
}

/// A packet in pieces of `size` bytes of payload, a multiple of 8, each a frame of its own; the whole if it
/// cannot be cut.
pub(crate) fn pieces(frame: &[u8], size: usize, identification: u32) -> Vec<Vec<u8>> {
    let Some(layout) = Layout::of(frame).filter(|layout| !layout.piece && layout.transport < layout.end)
    else {
        return vec![frame.to_vec()];
    };
    // What follows IPv6's extension headers is what is cut here: they would all be in every piece.
    let payload = &frame[layout.transport..layout.end];
    let count = payload.len().div_ceil(size);
    let mut pieces = Vec::new();
    for (index, part) in payload.chunks(size).enumerate() {
        let more = u16::from(index + 1 < count);
        let place = (index * size) as u16;
        let mut piece = frame[..layout.transport].to_vec();
        if layout.six {
            let [a, b, c, d] = identification.to_be_bytes();
            let [high, low] = (place | more).to_be_bytes();
            piece.extend_from_slice(&[layout.protocol, 0, high, low, a, b, c, d]);
            name_next(&mut piece, layout.transport, 44);
            let length = (piece.len() - IP - 40 + part.len()) as u16;
            put(&mut piece, IP + 4, length);
        } else {
            put(&mut piece, IP + 2, (layout.transport - IP + part.len()) as u16);
            put(&mut piece, IP + 4, identification as u16);
            put(&mut piece, IP + 6, (more << 13) | (place >> 3));
        }
        piece.extend_from_slice(part);
        if let Some(layout) = Layout::of(&piece).filter(|layout| !layout.six) {
            layout.seal(&mut piece);
        }
        pieces.push(piece);
    }
    pieces
}

/// Says in the last of the IPv6 headers before `end` that `next` follows it.
fn name_next(frame: &mut [u8], end: usize, next: u8) {
    let (mut field, mut at) = (IP + 6, IP + 40);
    while at < end {
        field = at;
        at += if frame[at + 1] == 0 { 8 } else { 8 + 8 * usize::from(frame[at + 1]) };
    }
    frame[field] = next;
}
