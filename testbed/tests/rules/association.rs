//! Packets of SCTP, written by hand: chunks that follow one another, and others that do not.
//!
//! Both ends of every association name the same tags, unless a packet says otherwise.

use userspace::engine::emulator::message::crc32c;

use super::draw::Lot;

/// The tags that the two ends name: who opens, and who answers.
const TAGS: [u32; 2] = [0x0a0a_0001, 0x0b0b_0002];
/// Bytes before the first chunk.
pub(crate) const HEADER: usize = 12;
/// Where the checksum is among them.
pub(crate) const CHECKSUM: std::ops::Range<usize> = 8..HEADER;

const DATA: u8 = 0;
pub(crate) const INIT: u8 = 1;
pub(crate) const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
pub(crate) const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const ERROR: u8 = 9;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;
/// An address is added (RFC 5061): a kind that moves nothing on.
const ADDRESSES: u8 = 0xc1;

/// What is said in turn, by who opens and by who answers; and at the end by either.
pub(crate) const THERE: [&[u8]; 3] = [&[INIT], &[COOKIE_ECHO, DATA], &[DATA]];
pub(crate) const BACK: [&[u8]; 3] = [&[INIT_ACK], &[COOKIE_ACK], &[SACK, DATA]];
pub(crate) const LAST: [&[u8]; 3] = [&[SHUTDOWN], &[SHUTDOWN_ACK], &[SHUTDOWN_COMPLETE]];

/// What may be said at any time: the last few must not.
const ANY: [&[u8]; 23] = [
    &[INIT],
    &[INIT_ACK],
    &[COOKIE_ECHO],
    &[COOKIE_ECHO, DATA],
    &[COOKIE_ACK],
    &[COOKIE_ACK, SACK],
    &[DATA],
    &[SACK, DATA],
    &[HEARTBEAT],
    &[HEARTBEAT],
    &[HEARTBEAT_ACK],
    &[HEARTBEAT, DATA],
    &[HEARTBEAT_ACK, HEARTBEAT],
    &[ABORT],
    &[DATA, ABORT],
    &[SHUTDOWN],
    &[SHUTDOWN_ACK],
    &[SHUTDOWN_COMPLETE],
    &[ERROR],
    &[ADDRESSES],
    &[INIT, DATA],
    &[DATA, COOKIE_ACK],
    &[],
];

/// The tag that a packet is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// The one that its receiver named; none if it is an INIT.
    Right,
    Zero,
    /// The one that its sender named.
    Own,
    /// One that nobody did.
    Wrong,
}

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Saying {
    /// Kinds of chunks.
    chunks: &'static [u8],
    tag: Tag,
    /// Its chunks have the flag that says that the tag is its sender's own.
    mirrored: bool,
    /// It names another tag than its sender did before.
    anew: bool,
    /// Its checksum is wrong.
    broken: bool,
}

impl Saying {
    /// These chunks, and nothing odd about them.
    pub(crate) fn plain(chunks: &'static [u8]) -> Self {
        Self { chunks, tag: Tag::Right, mirrored: false, anew: false, broken: false }
    }

    /// The same, with a right checksum.
    pub(crate) fn sound(self) -> Self {
        Self { broken: false, ..self }
    }

    /// Whatever.
    pub(crate) fn drawn(lot: &mut Lot) -> Self {
        let chunks = lot.one(&ANY);
        let tag = lot.one(&[Tag::Right, Tag::Right, Tag::Right, Tag::Zero, Tag::Own, Tag::Wrong]);
        Self { chunks, tag, mirrored: lot.once_in(3), anew: lot.once_in(6), broken: lot.once_in(12) }
    }

    /// The packet, from who opened or `back` to him.
    pub(crate) fn written(&self, (from, to): (u16, u16), back: bool) -> Vec<u8> {
        let [own, other] = if back { [TAGS[1], TAGS[0]] } else { TAGS };
        let tag = match self.tag {
            Tag::Right if self.chunks.first() == Some(&INIT) => 0,
            Tag::Right => other,
            Tag::Zero => 0,
            Tag::Own => own,
            Tag::Wrong => 0x0c0c_0003,
        };
        let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
        packet.extend_from_slice(&tag.to_be_bytes());
        packet.extend_from_slice(&[0; 4]);
        for kind in self.chunks {
            packet.extend_from_slice(&[*kind, u8::from(self.mirrored)]);
            let body: Vec<u8> = match *kind {
                INIT | INIT_ACK => {
                    let named = own + 0x100 * u32::from(self.anew);
                    // A window, a stream each way, the first number.
                    [&named.to_be_bytes()[..], &[0, 1, 0, 0], &[0, 1, 0, 1], &[0, 0, 0, 1]].concat()
                }
                // Number, stream, its number and protocol, and three bytes, which are filled up.
                DATA => [&[0, 0, 0, 1][..], &[0; 8], b"say"].concat(),
                ABORT | COOKIE_ACK => Vec::new(),
                _ => vec![0; 4],
            };
            packet.extend_from_slice(&(4 + body.len() as u16).to_be_bytes());
            packet.extend_from_slice(&body);
            packet.resize(packet.len().next_multiple_of(4), 0);
        }
        let sum = crc32c(&packet) ^ u32::from(self.broken);
        packet[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
        packet
    }
}

/// Whether a packet's checksum is right.
pub(crate) fn is_sound(packet: &[u8]) -> bool {
    let mut unsealed = packet.to_vec();
    unsealed[CHECKSUM].fill(0);
    packet[CHECKSUM] == crc32c(&unsealed).to_le_bytes()
}
