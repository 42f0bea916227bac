//! Connection tracking and address translation, the netfilter way.
//!
//! A connection is two tuples: of its packets in the original direction as they arrive, and of the replies
//! as they arrive. Without translation one is the inverse of the other; a translation is nothing but a
//! reply tuple that is not. Both are keys of one table, so that a packet of either direction finds its
//! connection with one look-up, and leaves with the inverse of the other tuple.
//!
//! A connection is a draft until its first packet has passed every rule; only then is it kept. It is new until it is
//! answered, but the nat table is asked about its first packet alone.
//!
//! What the kernel's does and this does not: sequence numbers are not followed (as with
//! `nf_conntrack_tcp_be_liberal`), checksums are looked at in what opens a connection and in all of SCTP only, and no
//! protocol expects others.
//!
//! Source: Ayuso, "Netfilter's connection tracking system", ;login: 31(3), 2006; time limits from the
//! kernel's `Documentation/networking/nf_conntrack-sysctl.rst`; the choice of ports from `nf_nat_core.c`.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use super::frame::{Address, Fast, Kind, Packet, Tuple, protocol};
use super::ruleset::{SourcePorts, States};

mod association;
mod dialogue;

use association::Association;
use dialogue::Dialogue;

/// How a packet stands to its connection (`--ctstate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Of a connection that nobody has answered yet.
    New,
    /// Of a connection that was answered.
    Established,
    /// An error about a connection.
    Related,
    /// Of no connection, and it can open none.
    Invalid,
    /// No connection's business.
    Untracked,
}

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As the first one.
    Original,
    /// Back.
    Reply,
}

impl Direction {
    /// The other one.
    pub fn back(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// How far a connection has come, as far as time limits go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    replied: bool,
    /// Of TCP.
    dialogue: Dialogue,
    /// Of SCTP.
    association: Association,
}

impl Progress {
    /// Seconds that it may stay silent.
    fn limit_s(self, protocol: u8) -> u64 {
        match protocol {
            protocol::TCP => self.dialogue.limit_s(self.replied),
            protocol::UDP if self.replied => 120,
            protocol::SCTP => self.association.limit_s(),
            protocol::UDP | protocol::ICMP | protocol::ICMP_V6 => 30,
            _ => 600,
        }
    }

    /// It may make room where the table is full (`nf_conntrack_core.c`, `early_drop`).
    fn may_go(self, protocol: u8) -> bool {
        if protocol == protocol::SCTP {
            return !self.association.is_established();
        }
        !self.replied || self.dialogue.is_closing()
    }
}

/// What a packet is to the connection whose tuple it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// None of its own.
    Strange,
    /// It may pass, but keeps the connection no longer.
    Aside,
    /// Its own.
    Own,
    /// It begins another, in the place of one that is over.
    Anew,
}

/// A connection, kept or a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its packets as they arrive.
    pub original: Tuple,
    /// Its replies as they arrive.
    pub reply: Tuple,
    /// Bits for `--ctstate` that speak of its translation. The tuples alone do not tell: an echo's identifier is of
    /// both ends, and which translation changed it says which of them an error comes from.
    pub translated: u8,
    progress: Progress,
    expires_s: u64,
}

impl Connection {
    fn draft(original: Tuple) -> Self {
        let reply = original.inverse();
        Self { original, reply, translated: 0, progress: Progress::default(), expires_s: 0 }
    }

    /// The tuple that a packet of this direction leaves with.
    #[inline]
    pub fn leaving(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.reply.inverse(),
            Direction::Reply => self.original.inverse(),
        }
    }

    /// How an error that goes this way leaves: its addresses, and the tuple it quotes. What was not
    /// translated stays: the error may come from a router on the way.
    pub fn leaving_error(&self, direction: Direction, outer: Tuple) -> (Address, Address, Tuple) {
        let leaves = self.leaving(direction);
        let source = if self.has_new_source(direction) { leaves.source } else { outer.source };
        let target = if self.has_new_source(direction.back()) { leaves.target } else { outer.target };
        (source, target, leaves.inverse())
    }

    /// Whether packets of this direction leave with another source; those of the other do with another target
    /// (`nf_nat_packet`).
    pub fn has_new_source(&self, direction: Direction) -> bool {
        let bit = match direction {
            Direction::Original => States::SNAT,
            Direction::Reply => States::DNAT,
        };
        self.translated & bit.0 != 0
    }

    /// Whether a packet that has its tuple is its own.
    fn hear(&mut self, packet: &Packet, frame: &[u8], direction: Direction) -> Heard {
        match packet.kind {
            // One that came broken is not translated: it would leave with a right checksum.
            Kind::Sctp if !packet.is_sound(frame) => Heard::Strange,
            Kind::Sctp => self.progress.association.hear(packet.transport(frame), direction),
            Kind::Tcp { .. } => self.progress.dialogue.hear(packet.kind, direction),
            _ => Heard::Own,
        }
    }

    /// It may be silent for as long as one may that has come so far.
    fn stay(&mut self, now_s: u64) {
        self.expires_s = now_s + self.progress.limit_s(self.original.protocol);
    }
}

/// A packet's place in its connection.
#[derive(Clone, Copy, Debug)]
pub struct Tracked {
    /// How it stands.
    pub state: State,
    /// Which way it goes.
    pub direction: Direction,
    /// Its connection: a draft, if it is its first.
    pub connection: Connection,
    /// The connection is kept, and its translation settled.
    pub kept: bool,
}

impl Tracked {
    /// Bits for `--ctstate`.
    #[inline]
    pub fn states(&self) -> u8 {
        let state = match self.state {
            State::New => States::NEW,
            State::Established => States::ESTABLISHED,
            State::Related => States::RELATED,
            State::Invalid => return States::INVALID.0,
            State::Untracked => return States::UNTRACKED.0,
        };
        state.0 | self.connection.translated
    }
}

/// Why a connection is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// The table is full, and none that may go was found.
    #[error("the connection table is full")]
    Full,
    /// Another connection's packets would be taken for its own.
    #[error("another connection uses its addresses and ports")]
    Clash,
    /// There is no port left to be told apart by.
    #[error("no free source port")]
    Ports,
}

/// All connections of a node.
#[derive(Clone, Debug)]
pub struct Conntrack {
    /// By number; those that are over leave room.
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    tuples: HashMap<Tuple, (u32, Direction), Fast>,
    /// Whose source is translated, by what it was, the last one last.
    given: HashMap<Source, Vec<u32>, Fast>,
    capacity: usize,
    swept_s: u64,
    /// Where the last search for one that may go ended.
    cursor: usize,
}

/// Seconds between two searches for connections that are over.
const SWEEP_S: u64 = 30;

/// Places where one that may go is looked for in a full table.
const EARLY: usize = 64;

impl Conntrack {
    /// A table for so many connections.
    pub fn new(capacity: usize) -> Self {
        Self {
            connections: Vec::new(),
            free: Vec::new(),
            tuples: HashMap::default(),
            given: HashMap::default(),
            capacity,
            swept_s: 0,
            cursor: 0,
        }
    }

    /// The connections, in no order that means anything.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.connections.iter().flatten()
    }

    /// Finds the packet's connection and moves it on, or drafts one.
    pub fn track(&mut self, packet: &Packet, frame: &[u8], now_s: u64) -> Tracked {
        if now_s >= self.swept_s + SWEEP_S {
            self.swept_s = now_s;
            self.remove_ended(now_s);
        }
        if let Kind::Error(about) = packet.kind {
            return self.related(packet, about, now_s);
        }
        if let Some((id, direction)) = self.live(&packet.tuple, now_s)
            && let Some(connection) = &mut self.connections[id as usize]
        {
            match connection.hear(packet, frame, direction) {
                Heard::Strange => {
                    let connection = Connection::draft(packet.tuple);
                    return Tracked { state: State::Invalid, direction, connection, kept: false };
                }
                Heard::Anew => self.remove(id),
                heard => {
                    // Refused by its first answer, or given up before one: nothing is kept of it.
                    let ends =
                        matches!(packet.kind, Kind::Tcp { rst: true, .. }) && !connection.progress.replied;
                    connection.progress.replied |= direction == Direction::Reply;
                    if heard == Heard::Own {
                        connection.stay(now_s);
                    }
                    let answered = direction == Direction::Reply || connection.progress.replied;
                    let state = if answered { State::Established } else { State::New };
                    let connection = *connection;
                    if ends {
                        self.remove(id);
                    }
                    return Tracked { state, direction, connection, kept: true };
                }
            }
        }
        let association = match packet.kind {
            Kind::Sctp => Association::open(packet.transport(frame)),
            _ => None,
        };
        let dialogue = Dialogue::open(packet.kind);
        let opens = match packet.kind {
            Kind::Tcp { .. } => dialogue.is_some(),
            Kind::Echo => packet.tuple.target_port == 0,
            Kind::Sctp => association.is_some(),
            Kind::Udp | Kind::Other => true,
            Kind::Error(_) | Kind::Message => false,
        };
        let state = match packet.kind {
            // Neighbour discovery and its like.
            Kind::Message if packet.tuple.protocol == protocol::ICMP_V6 => State::Untracked,
            _ if opens && packet.is_sound(frame) => State::New,
            _ => State::Invalid,
        };
        let mut connection = Connection::draft(packet.tuple);
        connection.progress.association = association.unwrap_or_default();
        connection.progress.dialogue = dialogue.unwrap_or_default();
        Tracked { state, direction: Direction::Original, connection, kept: false }
    }

    /// Gives the draft a target: a new one, or the one it has. An echo whose identifier would be taken for another's gets
    /// the first free one here, whatever its target (`nf_nat_l4proto_unique_tuple`: one identifier for either
    /// direction, and it is not drawn for a target). Ports can only be told apart by their source, later.
    pub fn set_target(&self, draft: &mut Connection, address: Address, port: Option<u16>) {
        let before = draft.reply;
        draft.reply.source = address;
        if let Some(port) = port {
            draft.reply.source_port = port;
        }
        if is_icmp(draft.original.protocol) && self.tuples.contains_key(&draft.reply) {
            // If none is free it is not kept in the end.
            let _ = self.find_port(draft, &(0..=u16::MAX), || 0);
        }
        if draft.reply != before {
            draft.translated |= States::DNAT.0;
        }
    }

    /// Gives the draft a new source address, and a port by which it is told apart: its own if that is free and among
    /// those that may be, else one that the same source was given before, else one from a place that chance says on.
    ///
    /// # Errors
    /// [`NotKept::Ports`].
    pub fn set_source(
        &self,
        draft: &mut Connection,
        address: Address,
        ports: &SourcePorts,
        mut dice: impl FnMut() -> u64,
    ) -> Result<(), NotKept> {
        let before = draft.reply;
        draft.reply.target = address;
        let own = before.target_port;
        let may_be = |port| ports.among.as_ref().is_none_or(|among| among.contains(&port));
        let stays = before.target == address && may_be(own);
        if !ports.random
            && !stays
            && let Some(port) = self.given(before, address, may_be)
        {
            draft.reply.target_port = port;
            if !self.tuples.contains_key(&draft.reply) {
                draft.translated |= States::SNAT.0;
                return Ok(());
            }
            draft.reply.target_port = own;
        }
        if ports.random || !may_be(own) || self.tuples.contains_key(&draft.reply) {
            let among = ports.among.clone().unwrap_or_else(|| class(draft.original.protocol, own));
            if !has_ports(draft.original.protocol) {
                return Err(NotKept::Ports);
            }
            self.find_port(draft, &among, &mut dice)?;
        }
        if draft.reply != before {
            draft.translated |= States::SNAT.0;
        }
        Ok(())
    }

    /// The port that goes with an address for the source of a draft in whose `reply` it still has its own, by the last
    /// connection of the same source that was given one (`find_appropriate_src`).
    fn given(&self, reply: Tuple, address: Address, may_be: impl Fn(u16) -> bool) -> Option<u16> {
        let ids = self.given.get(&Source::of(reply.inverse()))?;
        let replies = ids.iter().rev().filter_map(|id| self.connections[*id as usize]).map(|own| own.reply);
        replies
            .filter(|own| own.target == address && may_be(own.target_port))
            .map(|own| own.target_port)
            .next()
    }

    /// Gives the draft the first free port, or identifier, from a place that chance says on.
    fn find_port(
        &self,
        draft: &mut Connection,
        among: &RangeInclusive<u16>,
        mut dice: impl FnMut() -> u64,
    ) -> Result<(), NotKept> {
        let (first, count) = (*among.start(), u64::from(*among.end() - *among.start()) + 1);
        // Fewer and fewer each time, as the kernel looks for one: a port that is hard to find is not to take for ever.
        let mut tries = count.min(MOST_TRIES);
        loop {
            let start = dice();
            for step in 0..tries {
                let port = first + (start.wrapping_add(step) % count) as u16;
                draft.reply.target_port = port;
                if !self.tuples.contains_key(&draft.reply) {
                    return Ok(());
                }
            }
            if tries >= count || tries < 16 {
                return Err(NotKept::Ports);
            }
            tries /= 2;
        }
    }

    /// An end of a kept connection has been told that it is over (`nf_conntrack_tcp_set_closing`): it may be silent for
    /// a short time only.
    pub fn close(&mut self, connection: &Connection, now_s: u64) {
        if let Some((id, _)) = self.live(&connection.original, now_s)
            && let Some(own) = &mut self.connections[id as usize]
            && own.original.protocol == protocol::TCP
            && own.progress.dialogue.close()
        {
            own.stay(now_s);
        }
    }

    /// Keeps a draft whose first packet passed.
    ///
    /// # Errors
    /// It cannot be kept: the packet must not pass.
    pub fn confirm(&mut self, mut draft: Connection, now_s: u64) -> Result<(), NotKept> {
        if self.tuples.len() / 2 >= self.capacity {
            if now_s > self.swept_s {
                self.swept_s = now_s;
                self.remove_ended(now_s);
            }
            if self.tuples.len() / 2 >= self.capacity && !self.drop_early() {
                return Err(NotKept::Full);
            }
        }
        for tuple in [draft.original, draft.reply] {
            if self.live(&tuple, now_s).is_some() {
                return Err(NotKept::Clash);
            }
        }
        draft.stay(now_s);
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.connections.push(None);
                self.connections.len() as u32 - 1
            }
        };
        if draft.has_new_source(Direction::Original) {
            self.given.entry(Source::of(draft.original)).or_default().push(id);
        }
        self.tuples.insert(draft.original, (id, Direction::Original));
        self.tuples.insert(draft.reply, (id, Direction::Reply));
        self.connections[id as usize] = Some(draft);
        Ok(())
    }

    /// The connection that an error is about. It travels against the packet that it quotes.
    fn related(&mut self, packet: &Packet, about: Tuple, now_s: u64) -> Tracked {
        let found = self.live(&about.inverse(), now_s);
        let draft = Connection::draft(packet.tuple);
        let none =
            Tracked { state: State::Invalid, direction: Direction::Original, connection: draft, kept: false };
        found.map_or(none, |(id, direction)| {
            let connection = self.connections[id as usize].unwrap_or(draft);
            Tracked { state: State::Related, direction, connection, kept: true }
        })
    }

    /// The connection of a tuple, unless its time is over: then it is forgotten.
    #[inline]
    fn live(&mut self, tuple: &Tuple, now_s: u64) -> Option<(u32, Direction)> {
        let (id, direction) = *self.tuples.get(tuple)?;
        if self.connections[id as usize].as_ref().is_some_and(|connection| connection.expires_s > now_s) {
            return Some((id, direction));
        }
        self.remove(id);
        None
    }

    /// Forgets a connection whose end hurts least, if one is among the next few; whether there was one.
    fn drop_early(&mut self) -> bool {
        for _ in 0..EARLY.min(self.connections.len()) {
            self.cursor = (self.cursor + 1) % self.connections.len();
            let may_go = |own: &Connection| own.progress.may_go(own.original.protocol);
            if self.connections[self.cursor].as_ref().is_some_and(may_go) {
                self.remove(self.cursor as u32);
                return true;
            }
        }
        false
    }

    fn remove_ended(&mut self, now_s: u64) {
        let ended = |connection: &Connection| connection.expires_s <= now_s;
        for id in 0..self.connections.len() {
            if self.connections[id].as_ref().is_some_and(ended) {
                self.remove(id as u32);
            }
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(connection) = self.connections[id as usize].take() {
            self.tuples.remove(&connection.original);
            self.tuples.remove(&connection.reply);
            if connection.has_new_source(Direction::Original) {
                self.forget_given(Source::of(connection.original), id);
            }
            self.free.push(id);
        }
    }

    fn forget_given(&mut self, source: Source, id: u32) {
        if let Some(ids) = self.given.get_mut(&source) {
            ids.retain(|own| *own != id);
            if ids.is_empty() {
                self.given.remove(&source);
            }
        }
    }
}

/// An address, a port, a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(Address, u16, u8);

impl Source {
    fn of(tuple: Tuple) -> Self {
        Self(tuple.source, tuple.source_port, tuple.protocol)
    }
}

/// Ports that are tried in a row (`NF_NAT_MAX_ATTEMPTS`).
const MOST_TRIES: u64 = 128;

/// Whether a protocol's packets can be told apart by a number of their source.
fn has_ports(protocol: u8) -> bool {
    use protocol::{SCTP, TCP, UDP};
    matches!(protocol, TCP | UDP | SCTP) || is_icmp(protocol)
}

fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, protocol::ICMP | protocol::ICMP_V6)
}

/// The ports that may stand for one where no rule says which: those that mean as much.
fn class(protocol: u8, port: u16) -> RangeInclusive<u16> {
    match port {
        _ if is_icmp(protocol) => 0..=u16::MAX,
        0..512 => 1..=511,
        512..1024 => 600..=1023,
        1024.. => 1024..=u16::MAX,
    }
}
