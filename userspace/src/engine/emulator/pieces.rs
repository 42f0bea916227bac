//! Packets that arrive in fragments, put together as a host's network stack does.
//!
//! Source: RFC 791 section 3.2, RFC 8200 section 4.5; RFC 5722 (fragments that overlap spoil their packet).

use std::collections::HashMap;

/// Where an IP packet starts in a frame.
const PACKET: usize = 14;
/// The number of IPv6's fragment header (RFC 8200, section 4.5), and its length.
const FRAGMENT: u8 = 44;
const FRAGMENT_LENGTH: usize = 8;

/// What a host made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// A whole packet: the frame itself, or what its fragments were cut from.
    Whole(Vec<u8>),
    /// A fragment; others are awaited.
    Waiting,
}

/// The fragments that hosts keep until they are complete.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    packets: HashMap<Key, Vec<Piece>>,
}

/// A host, and what the fragments of a packet have in common: addresses, protocol and number.
type Key = (usize, Vec<u8>);

#[derive(Debug)]
struct Piece {
    offset: usize,
    more: bool,
    bytes: Vec<u8>,
}

impl Pieces {
    /// Takes a frame that reached a host.
    pub(super) fn join(&mut self, host: usize, frame: Vec<u8>) -> Joined {
        let Some((common, piece)) = read(&frame) else {
            return Joined::Whole(frame);
        };
        let key = (host, common);
        let pieces = self.packets.entry(key.clone()).or_default();
        let end = |piece: &Piece| piece.offset + piece.bytes.len();
        if pieces.iter().any(|had| had.offset == piece.offset && had.bytes.len() == piece.bytes.len()) {
            return Joined::Waiting;
        }
        if pieces.iter().any(|had| had.offset < end(&piece) && piece.offset < end(had)) {
            self.packets.remove(&key);
            return Joined::Waiting;
        }
        pieces.push(piece);
        pieces.sort_by_key(|piece| piece.offset);
        let joined = pieces.iter().try_fold(0, |next, piece| (piece.offset == next).then(|| end(piece)));
        if joined.is_none() || pieces.last().is_none_or(|last| last.more) {
            return Joined::Waiting;
        }
        let pieces = self.packets.remove(&key).unwrap_or_default();
        let body: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        whole(&frame, &body).map_or(Joined::Waiting, Joined::Whole)
    }
}

/// What the frame's packet has in common with its other fragments, and which piece it is; `None` if it is whole
/// or makes no sense.
fn read(frame: &[u8]) -> Option<(Vec<u8>, Piece)> {
    let packet = frame.get(PACKET..)?;
    let version = packet.first()? >> 4;
    let word = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let (common, place, start, end) = match version {
        4 => {
            let place = word(6)?;
            let place = ((place & 0x1fff) << 3, place & 0x2000 != 0);
            let common = [packet.get(12..20)?, packet.get(9..10)?, packet.get(4..6)?].concat();
            (common, place, usize::from(packet[0] & 0xf) * 4, usize::from(word(2)?))
        }
        6 if *packet.get(6)? == FRAGMENT => {
            let place = word(42)?;
            let common = [packet.get(8..41)?, packet.get(44..48)?].concat();
            (common, (place & !7, place & 1 != 0), 40 + FRAGMENT_LENGTH, 40 + usize::from(word(4)?))
        }
        _ => return None,
    };
    let (offset, more) = place;
    if offset == 0 && !more {
        return None;
    }
    Some((common, Piece { offset: usize::from(offset), more, bytes: packet.get(start..end)?.to_vec() }))
}

/// The frame of the packet with this payload that the frame's packet is a fragment of.
fn whole(frame: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = frame.get(..PACKET)?.to_vec();
    let packet = &frame[PACKET..];
    if packet.first()? >> 4 == 4 {
        let (mut header, _) = etherparse::Ipv4Header::from_slice(packet).ok()?;
        (header.more_fragments, header.fragment_offset) = (false, etherparse::IpFragOffset::ZERO);
        header.set_payload_len(body.len()).ok()?;
        header.header_checksum = header.calc_header_checksum();
        whole.extend_from_slice(&header.to_bytes());
    } else {
        let (mut header, _) = etherparse::Ipv6Header::from_slice(packet).ok()?;
        header.next_header = etherparse::IpNumber(*packet.get(40)?);
        header.payload_length = u16::try_from(body.len()).ok()?;
        whole.extend_from_slice(&header.to_bytes());
    }
    whole.extend_from_slice(body);
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fragment of an IPv4 packet between two hosts.
    fn fragment(offset: u8, more: bool, bytes: &[u8]) -> Vec<u8> {
        let mut header = etherparse::Ipv4Header::new(
            bytes.len() as u16,
            64,
            etherparse::IpNumber::UDP,
            [10, 0, 0, 1],
            [10, 0, 0, 2],
        )
        .expect("fits");
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = etherparse::IpFragOffset::try_new(u16::from(offset)).expect("small");
        header.header_checksum = header.calc_header_checksum();
        [&[0; PACKET][..], &header.to_bytes(), bytes].concat()
    }

    fn body(joined: &Joined) -> Option<&[u8]> {
        match joined {
            Joined::Whole(frame) => Some(&frame[PACKET + 20..]),
            Joined::Waiting => None,
        }
    }

    #[test]
    fn a_packet_is_complete_when_its_last_missing_fragment_comes_whatever_the_order() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.join(0, fragment(2, false, b"end")), Joined::Waiting);
        assert_eq!(pieces.join(0, fragment(1, true, b"second ")), Joined::Waiting);
        assert_eq!(pieces.join(1, fragment(0, true, b"another ")), Joined::Waiting, "another host's");
        assert_eq!(pieces.join(0, fragment(1, true, b"second ")), Joined::Waiting, "twice");
        assert_eq!(pieces.join(0, fragment(0, true, b"a first ")), Joined::Waiting, "a gap of one byte");
        let mut pieces = Pieces::default();
        assert_eq!(pieces.join(0, fragment(1, false, b"end")), Joined::Waiting);
        assert_eq!(body(&pieces.join(0, fragment(0, true, b"a first "))), Some(&b"a first end"[..]));
    }

    #[test]
    fn fragments_that_overlap_spoil_their_packet() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.join(0, fragment(0, true, b"a first one and more")), Joined::Waiting);
        assert_eq!(pieces.join(0, fragment(1, false, b"end")), Joined::Waiting);
        assert!(pieces.packets.is_empty());
    }
}
