//! An SCTP association as it looks from between its ends: what opens it, which chunks move it on, and which tag tells
//! that a packet is of it.
//!
//! Each end names, in its INIT or INIT ACK, the tag under which the other is to send; whoever sends under another one
//! is of no association. The few chunks that may come under others have rules of their own (RFC 9260, section 8.5.1).
//!
//! Source: RFC 9260, sections 8.4 (packets of no association) and 8.5 (tags); states and time limits as
//! `nf_conntrack_proto_sctp.c` has them.

use super::{Direction, Heard};

/// Bytes before the first chunk: ports, the tag, the checksum.
const HEADER: usize = 12;
/// Bytes of a chunk's own header: kind, flags, length.
const CHUNK: usize = 4;
/// Bytes of what an INIT or an INIT ACK always says.
const TERMS: usize = 16;
/// A chunk's flag: the packet is under the tag of its sender, who knows no other.
const MIRRORED: u8 = 1;

/// Kinds of chunks (RFC 9260, section 3.2).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const HEARTBEAT: u8 = 4;
    pub(super) const HEARTBEAT_ACK: u8 = 5;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN: u8 = 7;
    pub(super) const SHUTDOWN_ACK: u8 = 8;
    pub(super) const ERROR: u8 = 9;
    pub(super) const COOKIE_ECHO: u8 = 10;
    pub(super) const COOKIE_ACK: u8 = 11;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
}

use kind::{
    ABORT, COOKIE_ACK, COOKIE_ECHO, DATA, ERROR, HEARTBEAT, HEARTBEAT_ACK, INIT, INIT_ACK, SHUTDOWN,
    SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
};

/// Those that move an association on; the others leave it where it is.
const MOVES: [u8; 11] = [
    INIT,
    INIT_ACK,
    ABORT,
    SHUTDOWN,
    SHUTDOWN_ACK,
    ERROR,
    COOKIE_ECHO,
    COOKIE_ACK,
    SHUTDOWN_COMPLETE,
    HEARTBEAT,
    HEARTBEAT_ACK,
];
/// Those that open nothing.
const FOLLOWS: [u8; 3] = [ABORT, SHUTDOWN_COMPLETE, COOKIE_ACK];
/// Those that are not held to the tag of their direction, but to what [`Association::hear`] asks of each.
const EXCEPTED: [u8; 7] =
    [INIT, SHUTDOWN_COMPLETE, COOKIE_ECHO, ABORT, SHUTDOWN_ACK, HEARTBEAT, HEARTBEAT_ACK];

/// How far an association is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing was heard yet.
    #[default]
    Unheard,
    /// Asked for and not answered, or over.
    Closed,
    /// An INIT ACK has come back.
    Answered,
    /// A COOKIE ECHO has followed.
    Echoed,
    /// A COOKIE ACK has come back.
    Established,
    /// An end has sent SHUTDOWN.
    Closing,
    /// The other has acknowledged it.
    Acknowledged,
    /// A HEARTBEAT came first: another path of an association that is elsewhere.
    Beating,
}

impl State {
    /// What follows on a chunk; none if it cannot come.
    fn after(self, kind: u8, direction: Direction) -> Option<Self> {
        if !MOVES.contains(&kind) {
            return Some(self);
        }
        let back = direction == Direction::Reply;
        Some(match (self, kind) {
            (Self::Unheard | Self::Beating, HEARTBEAT) | (Self::Beating, HEARTBEAT_ACK) if !back => {
                Self::Beating
            }
            (Self::Unheard | Self::Beating, SHUTDOWN_ACK) if !back => Self::Acknowledged,
            (Self::Beating, INIT) if !back => Self::Answered,
            (Self::Unheard | Self::Beating, _) if !back => Self::Closed,
            (Self::Beating, HEARTBEAT) => Self::Beating,
            (Self::Beating, HEARTBEAT_ACK) => Self::Established,
            (Self::Unheard | Self::Beating, _) => return None,
            (_, ABORT) => Self::Closed,
            (Self::Closing, INIT) if !back => Self::Closed,
            (Self::Closed, INIT_ACK) if back => Self::Answered,
            (Self::Answered, COOKIE_ECHO) => Self::Echoed,
            (Self::Echoed, COOKIE_ACK) => Self::Established,
            (Self::Echoed, ERROR) if back => Self::Closed,
            (Self::Established, SHUTDOWN) => Self::Closing,
            (Self::Closing, SHUTDOWN_ACK) => Self::Acknowledged,
            (Self::Acknowledged, SHUTDOWN_COMPLETE) => Self::Closed,
            (same, _) => same,
        })
    }
}

/// An association, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Association {
    state: State,
    /// Under which each direction sends; 0 is not known yet.
    tags: [u32; 2],
    /// Each direction has sent an INIT, and no COOKIE ACK has come since.
    asked: [bool; 2],
    /// Who last sent a HEARTBEAT under a tag that is not his, and was not answered.
    astray: Option<Direction>,
}

impl Association {
    /// The one that this packet opens, if it does.
    pub(super) fn open(packet: &[u8]) -> Option<Self> {
        let mut opened = Self::default();
        let tag = long(packet, 4).filter(|_| is_ordered(packet))?;
        if chunks(packet).any(|chunk| FOLLOWS.contains(&chunk.kind) || !MOVES.contains(&chunk.kind)) {
            return None;
        }
        for chunk in chunks(packet) {
            match chunk.kind {
                INIT => opened.tags[Direction::Reply as usize] = chunk.tag()?,
                HEARTBEAT => opened.tags[Direction::Original as usize] = tag,
                // It has outlived the association here: what answers has the same tag.
                SHUTDOWN_ACK => opened.tags[Direction::Reply as usize] = tag,
                _ => {}
            }
        }
        (opened.hear(packet, Direction::Original) != Heard::Strange).then_some(opened)
    }

    /// A packet of this direction comes by. What a strange one says before that which makes it strange is noted.
    pub(super) fn hear(&mut self, packet: &[u8], direction: Direction) -> Heard {
        let Some(tag) = long(packet, 4).filter(|_| is_ordered(packet)) else { return Heard::Strange };
        let has = |kinds: &[u8]| chunks(packet).any(|chunk| kinds.contains(&chunk.kind));
        let (own, other) = (direction as usize, 1 - direction as usize);
        if !has(&EXCEPTED) && tag != self.tags[own] {
            return Heard::Strange;
        }
        let mut heard = Heard::Own;
        for chunk in chunks(packet) {
            match chunk.kind {
                INIT if tag != 0 => return Heard::Strange,
                COOKIE_ECHO if tag != self.tags[own] => return Heard::Strange,
                ABORT | SHUTDOWN_COMPLETE => {
                    let whose = if chunk.flags & MIRRORED == 0 { own } else { other };
                    if tag != self.tags[whose] {
                        return Heard::Strange;
                    }
                }
                COOKIE_ACK => self.asked = [false; 2],
                HEARTBEAT | HEARTBEAT_ACK if self.tags[own] == 0 => self.tags[own] = tag,
                HEARTBEAT | HEARTBEAT_ACK if tag == self.tags[own] => self.astray = None,
                HEARTBEAT | HEARTBEAT_ACK if has(&[DATA]) || heard == Heard::Aside => return Heard::Strange,
                HEARTBEAT => {
                    self.astray = Some(direction);
                    heard = Heard::Aside;
                    continue;
                }
                // Both have begun anew, and the answer shows the tag of one.
                HEARTBEAT_ACK if self.astray.is_some_and(|who| who != direction) => {
                    self.astray = None;
                    (self.tags[own], self.tags[other]) = (tag, 0);
                }
                HEARTBEAT_ACK => return Heard::Strange,
                _ => {}
            }
            let Some(after) = self.state.after(chunk.kind, direction) else { return Heard::Strange };
            if matches!(chunk.kind, INIT | INIT_ACK) {
                let Some(named) = chunk.tag() else { return Heard::Strange };
                if !self.may_name(chunk.kind, named, direction) {
                    return Heard::Strange;
                }
                self.tags[other] = named;
            }
            // Asking for what was not answered, or is over, again and again keeps nothing.
            if chunk.kind == INIT && [self.state, after] == [State::Closed; 2] {
                heard = Heard::Aside;
            }
            self.state = after;
        }
        heard
    }

    /// Whether the sender may name this tag; notes who asks.
    fn may_name(&mut self, kind: u8, named: u32, direction: Direction) -> bool {
        let (own, other) = (direction as usize, 1 - direction as usize);
        if kind == INIT {
            // One that was sent before says nothing new.
            if self.state != State::Unheard && self.tags[other] == named {
                return true;
            }
            if self.asked == [true; 2] {
                self.asked[other] = false;
            }
            self.asked[own] = true;
            return true;
        }
        // Both asked at the same time: each has named its tag already. And whoever was not asked has no other.
        let known = self.tags[other];
        let asked_anew = self.asked[other] && !self.asked[own];
        known == named || asked_anew || known == 0 && !self.asked[other]
    }

    /// Seconds that it may stay silent.
    pub(super) fn limit_s(self) -> u64 {
        match self.state {
            State::Unheard | State::Closed => 10,
            State::Answered | State::Echoed | State::Closing | State::Acknowledged => 3,
            State::Established => 210,
            State::Beating => 30,
        }
    }

    /// Both ends have agreed to it, and neither wants to end it.
    pub(super) fn is_established(self) -> bool {
        self.state == State::Established
    }
}

/// A part of a packet.
struct Chunk<'a> {
    kind: u8,
    flags: u8,
    /// With its header; 0 is wrong.
    length: usize,
    /// All of the packet that follows its header.
    rest: &'a [u8],
}

impl Chunk<'_> {
    /// The tag that an INIT or INIT ACK names.
    fn tag(&self) -> Option<u32> {
        long(self.rest.get(..TERMS)?, 0)
    }
}

/// The chunks of a packet, up to one without a length.
fn chunks(packet: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut left = packet.get(HEADER..);
    std::iter::from_fn(move || {
        let (header, rest) = left?.split_first_chunk::<CHUNK>()?;
        let [kind, flags, length @ ..] = *header;
        let length = usize::from(u16::from_be_bytes(length));
        left = if length == 0 { None } else { left?.get(length.next_multiple_of(4)..) };
        Some(Chunk { kind, flags, length, rest })
    })
}

/// Whether there are chunks, and those that have to be alone or first are so.
fn is_ordered(packet: &[u8]) -> bool {
    let mut alone = false;
    let ordered = chunks(packet).enumerate().all(|(place, chunk)| {
        alone |= matches!(chunk.kind, INIT | INIT_ACK | SHUTDOWN_COMPLETE);
        let first = alone || matches!(chunk.kind, COOKIE_ACK | COOKIE_ECHO);
        chunk.length != 0 && (place == 0 || !first)
    });
    ordered && chunks(packet).next().is_some()
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
