//! A TCP connection as it looks from between its ends: which segments may follow which, and what they make of it.
//!
//! Numbers are not followed: a segment that acknowledges what was asked is taken to.
//!
//! Source: RFC 9293, section 3.3.2; states, what follows on what, and time limits as `nf_conntrack_proto_tcp.c` has them.

use super::super::frame::Kind;
use super::{Direction, Heard};

/// What a segment says, by its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Syn,
    SynAck,
    Fin,
    Ack,
    Reset,
}

impl Segment {
    /// None of flags that nobody sets together (`tcp_valid_flags`), or of what is no segment.
    pub(super) fn of(kind: Kind) -> Option<Self> {
        let Kind::Tcp { syn, ack, fin, rst } = kind else { return None };
        match (syn, ack, fin, rst) {
            (true, false, false, false) => Some(Self::Syn),
            (true, true, false, false) => Some(Self::SynAck),
            (false, true, true, false) => Some(Self::Fin),
            (false, true, false, false) => Some(Self::Ack),
            (false, _, false, true) => Some(Self::Reset),
            _ => None,
        }
    }
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing was heard yet.
    #[default]
    Unheard,
    /// Asked for, and not answered.
    Asked,
    /// Asked for by both at the same time.
    AskedByBoth,
    Answered,
    Established,
    /// One end has finished.
    Finishing,
    /// That was acknowledged.
    HalfClosed,
    /// Both have finished.
    Finished,
    /// That was acknowledged.
    Over,
    /// Given up.
    Closed,
}

/// What follows on a segment.
enum After {
    Next(State),
    /// Nothing, but it may pass: it is of an older or a newer connection.
    Aside,
    /// Nothing, and it may not pass.
    Strange,
}

impl State {
    fn after(self, segment: Segment, direction: Direction) -> After {
        use After::{Aside, Next, Strange};
        let back = direction == Direction::Reply;
        let aside_if_back = if back { Aside } else { Strange };
        match (segment, self) {
            (Segment::Reset, Self::Unheard) => Strange,
            (Segment::Reset, _) => Next(Self::Closed),
            (Segment::Syn, Self::Asked | Self::AskedByBoth) if back => Next(Self::AskedByBoth),
            (Segment::Syn, Self::Over) => Next(Self::Asked),
            (Segment::Syn, _) if back => Strange,
            (Segment::Syn, Self::Unheard | Self::Asked | Self::Closed) => Next(Self::Asked),
            (Segment::Syn, Self::AskedByBoth) => Next(self),
            (Segment::Syn, _) => Aside,
            (Segment::SynAck, Self::Unheard) => Strange,
            (Segment::SynAck, Self::Asked | Self::AskedByBoth) if back => Next(Self::Answered),
            (Segment::SynAck, Self::Answered | Self::AskedByBoth) if !back => Next(Self::Answered),
            (Segment::SynAck, _) => aside_if_back,
            (Segment::Ack, Self::Unheard) if !back => Next(Self::Established),
            // It may be about half of an older connection.
            (Segment::Ack, Self::Asked | Self::AskedByBoth) => aside_if_back,
            (Segment::Ack, Self::Answered) if !back => Next(Self::Established),
            (Segment::Fin | Segment::Ack, Self::Unheard) => Strange,
            (Segment::Fin, Self::Asked | Self::AskedByBoth) => Strange,
            (Segment::Fin, Self::Answered | Self::Established) => Next(Self::Finishing),
            (Segment::Fin, Self::Finishing | Self::HalfClosed) => Next(Self::Finished),
            (Segment::Ack, Self::Finishing) => Next(Self::HalfClosed),
            (Segment::Ack, Self::Finished) => Next(Self::Over),
            (Segment::Fin | Segment::Ack, same) => Next(same),
        }
    }
}

/// A TCP connection, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dialogue {
    state: State,
    /// An end has finished while the other had not.
    finished: bool,
    /// What was heard last, and from whom.
    last: Option<(Segment, Direction)>,
    /// A SYN was let pass, though it did not follow, and nothing was acknowledged since: its number is remembered.
    asked_aside: bool,
    /// Both have asked at the same time.
    both: bool,
    /// A SYN has come after both had finished: the other end may say that it acknowledges something else.
    doubted: bool,
}

impl Dialogue {
    /// The one that this segment opens, if it does: by asking, or because it is under way (`nf_conntrack_tcp_loose`).
    pub(super) fn open(kind: Kind) -> Option<Self> {
        let mut opened = Self::default();
        (opened.hear(kind, Direction::Original) == Heard::Own).then_some(opened)
    }

    /// A segment of this direction comes by.
    pub(super) fn hear(&mut self, kind: Kind, direction: Direction) -> Heard {
        let Some(segment) = Segment::of(kind) else { return Heard::Strange };
        let back = direction == Direction::Reply;
        let after = match self.state.after(segment, direction) {
            After::Next(State::Asked) if matches!(self.state, State::Over | State::Closed) => {
                if self.finished || self.last == Some((Segment::Reset, Direction::Original)) {
                    return Heard::Anew;
                }
                After::Aside
            }
            after => after,
        };
        let asked_again = self.last.is_some_and(|(last, who)| last == Segment::Syn && who != direction);
        let after = match after {
            After::Strange => return Heard::Strange,
            // It answers a SYN that was let pass: that was right, and what is known here was not.
            After::Aside if segment == Segment::SynAck && asked_again && self.asked_aside => State::Answered,
            After::Aside => {
                self.last = Some((segment, direction));
                self.asked_aside = segment == Segment::Syn;
                if segment == Segment::Syn && !back {
                    self.doubted = self.state == State::Finished;
                }
                return Heard::Aside;
            }
            After::Next(State::Over)
                if segment == Segment::Ack
                    && self.state == State::Finished
                    && asked_again
                    && self.doubted =>
            {
                self.doubted = false;
                return Heard::Aside;
            }
            After::Next(State::Answered) if back && segment == Segment::Ack && self.both => {
                State::Established
            }
            After::Next(after) => after,
        };
        self.both |= after == State::AskedByBoth;
        self.asked_aside &= segment != Segment::Ack;
        self.finished |= after == State::Finishing && self.state != after;
        (self.state, self.last) = (after, Some((segment, direction)));
        Heard::Own
    }

    /// Rules have told an end that it is over (`nf_conntrack_tcp_set_closing`); whether that is new.
    pub(super) fn close(&mut self) -> bool {
        let before = std::mem::replace(&mut self.state, State::Closed);
        before != State::Closed
    }

    /// Seconds that it may stay silent.
    pub(super) fn limit_s(self, replied: bool) -> u64 {
        match self.state {
            State::Established if replied => 432_000,
            State::Established => 300,
            State::Unheard | State::Asked | State::AskedByBoth | State::Finishing | State::Over => 120,
            State::Answered | State::HalfClosed => 60,
            State::Finished => 30,
            State::Closed => 10,
        }
    }

    /// Its end has begun.
    pub(super) fn is_closing(self) -> bool {
        use State::{Closed, Finished, Finishing, HalfClosed, Over};
        matches!(self.state, Finishing | HalfClosed | Finished | Over | Closed)
    }
}
