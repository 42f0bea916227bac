//! Connection tracking and address translation, the netfilter way.
//!
//! A connection is two tuples: of its packets in the original direction as they arrive, and of the replies
//! as they arrive. Without translation one is the inverse of the other; a translation is nothing but a
//! reply tuple that is not. Both are keys of one table, so that a packet of either direction finds its
//! connection with one look-up, and leaves with the inverse of the other tuple.
//!
//! A connection is a draft until its first packet has passed every rule; only then is it kept.
//!
//! Source: Ayuso, "Netfilter's connection tracking system", ;login: 31(3), 2006; time limits from the
//! kernel's `Documentation/networking/nf_conntrack-sysctl.rst`.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::frame::{Kind, Packet, Tuple};

/// How a packet stands to its connection (`--ctstate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The first of its connection.
    New,
    /// Of a connection that was let through.
    Established,
    /// An error about such a connection.
    Related,
    /// Of no connection, and it can open none.
    Invalid,
}

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As the first one.
    Original,
    /// Back.
    Reply,
}

/// How far a connection has come, as far as time limits go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    replied: bool,
    /// One per direction: it has sent a FIN.
    finished: [bool; 2],
    reset: bool,
}

impl Progress {
    /// Seconds that it may stay silent.
    fn limit_s(self, protocol: u8) -> u64 {
        let closing = self.finished.contains(&true);
        match protocol {
            6 if self.reset => 10,
            6 if closing || !self.replied => 120,
            6 => 432_000,
            17 if self.replied => 120,
            _ => 30,
        }
    }
}

/// A connection, kept or a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its packets as they arrive.
    pub original: Tuple,
    /// Its replies as they arrive.
    pub reply: Tuple,
    progress: Progress,
    expires_s: u64,
}

impl Connection {
    fn draft(original: Tuple) -> Self {
        Self { original, reply: original.inverse(), progress: Progress::default(), expires_s: 0 }
    }

    fn arriving(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.original,
            Direction::Reply => self.reply,
        }
    }

    /// The tuple that a packet of this direction leaves with.
    pub fn leaving(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.reply.inverse(),
            Direction::Reply => self.original.inverse(),
        }
    }

    /// How an error that goes this way leaves: its addresses, and the tuple it quotes. What was not
    /// translated stays: the error may come from a router on the way.
    pub fn leaving_error(&self, direction: Direction, outer: Tuple) -> (Ipv4Addr, Ipv4Addr, Tuple) {
        let (arrives, leaves) = (self.arriving(direction), self.leaving(direction));
        let source = if arrives.source == leaves.source { outer.source } else { leaves.source };
        let target = if arrives.target == leaves.target { outer.target } else { leaves.target };
        (source, target, leaves.inverse())
    }

    fn observe(&mut self, kind: Kind, direction: Direction, now_s: u64) {
        self.progress.replied |= direction == Direction::Reply;
        if let Kind::Tcp { fin, rst, .. } = kind {
            self.progress.finished[direction as usize] |= fin;
            self.progress.reset |= rst;
        }
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
    /// Its connection: a draft, if it is new.
    pub connection: Connection,
}

/// Why a connection is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// The table is full of connections that are not over.
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
    connections: HashMap<u64, Connection>,
    tuples: HashMap<Tuple, (u64, Direction)>,
    capacity: usize,
    next: u64,
    swept_s: u64,
}

/// Seconds between two searches for connections that are over.
const SWEEP_S: u64 = 30;

impl Conntrack {
    /// A table for so many connections.
    pub fn new(capacity: usize) -> Self {
        Self { connections: HashMap::new(), tuples: HashMap::new(), capacity, next: 0, swept_s: 0 }
    }

    /// The connections, in the order they came.
    pub fn connections(&self) -> Vec<Connection> {
        let mut ids: Vec<&u64> = self.connections.keys().collect();
        ids.sort();
        ids.into_iter().map(|id| self.connections[id]).collect()
    }

    /// Finds the packet's connection and moves it on, or drafts one.
    pub fn track(&mut self, packet: &Packet, now_s: u64) -> Tracked {
        self.sweep(now_s);
        if let Kind::Error(about) = packet.kind {
            return self.related(packet, about, now_s);
        }
        if let Some((id, direction)) = self.live(&packet.tuple, now_s) {
            let connection = self.connections.get_mut(&id).expect("every tuple belongs to a connection");
            let opens = matches!(packet.kind, Kind::Tcp { syn: true, ack: false, .. });
            let Progress { finished, reset, .. } = connection.progress;
            if opens && (reset || finished.contains(&true)) {
                // The same ports again: a new connection takes the place of the one that is closing.
                self.remove(id);
            } else {
                connection.observe(packet.kind, direction, now_s);
                return Tracked { state: State::Established, direction, connection: *connection };
            }
        }
        let answers = match packet.kind {
            Kind::Tcp { rst, .. } => rst,
            Kind::Echo => packet.tuple.source_port == 0 && packet.tuple.target_port != 0,
            Kind::Sctp { init } => !init,
            Kind::Udp | Kind::Error(_) => false,
        };
        let state = if answers { State::Invalid } else { State::New };
        Tracked { state, direction: Direction::Original, connection: Connection::draft(packet.tuple) }
    }

    /// Gives the draft a new target.
    pub fn set_target(draft: &mut Connection, address: Ipv4Addr, port: u16) {
        draft.reply.source = address;
        draft.reply.source_port = port;
    }

    /// Gives the draft a new source address, and one of `ports` if its own is not among them or taken.
    /// The search starts at `start`.
    ///
    /// # Errors
    /// [`NotKept::Ports`].
    pub fn set_source(
        &self,
        draft: &mut Connection,
        address: Ipv4Addr,
        ports: &RangeInclusive<u16>,
        start: u64,
    ) -> Result<(), NotKept> {
        draft.reply.target = address;
        let (first, count) = (*ports.start(), u64::from(*ports.end() - *ports.start()) + 1);
        let own = draft.reply.target_port;
        let others = (0..count).map(|step| first + ((start + step) % count) as u16);
        for port in std::iter::once(own).filter(|own| ports.contains(own)).chain(others) {
            draft.reply.target_port = port;
            if !self.tuples.contains_key(&draft.reply) {
                return Ok(());
            }
        }
        Err(NotKept::Ports)
    }

    /// Keeps a draft whose first packet passed.
    ///
    /// # Errors
    /// It cannot be kept: the packet must not pass.
    pub fn confirm(&mut self, mut draft: Connection, kind: Kind, now_s: u64) -> Result<(), NotKept> {
        if self.connections.len() >= self.capacity {
            self.remove_ended(now_s);
            if self.connections.len() >= self.capacity {
                return Err(NotKept::Full);
            }
        }
        for tuple in [draft.original, draft.reply] {
            if self.live(&tuple, now_s).is_some() {
                return Err(NotKept::Clash);
            }
        }
        draft.observe(kind, Direction::Original, now_s);
        let id = self.next;
        self.next += 1;
        self.tuples.insert(draft.original, (id, Direction::Original));
        self.tuples.insert(draft.reply, (id, Direction::Reply));
        self.connections.insert(id, draft);
        Ok(())
    }

    /// The connection that an error is about. It travels against the packet that it quotes.
    fn related(&mut self, packet: &Packet, about: Tuple, now_s: u64) -> Tracked {
        let found = self.live(&about.inverse(), now_s);
        let draft = Connection::draft(packet.tuple);
        found.map_or(
            Tracked { state: State::Invalid, direction: Direction::Original, connection: draft },
            |(id, direction)| {
                let connection = self.connections[&id];
                Tracked { state: State::Related, direction, connection }
            },
        )
    }

    /// The connection of a tuple, unless its time is over: then it is forgotten.
    fn live(&mut self, tuple: &Tuple, now_s: u64) -> Option<(u64, Direction)> {
        let (id, direction) = *self.tuples.get(tuple)?;
        if self.connections[&id].expires_s > now_s {
            return Some((id, direction));
        }
        self.remove(id);
        None
    }

    fn sweep(&mut self, now_s: u64) {
        if now_s >= self.swept_s + SWEEP_S {
            self.swept_s = now_s;
            self.remove_ended(now_s);
        }
    }

    fn remove_ended(&mut self, now_s: u64) {
        let ended = self.connections.iter().filter(|(_, connection)| connection.expires_s <= now_s);
        for id in ended.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            self.tuples.remove(&connection.original);
            self.tuples.remove(&connection.reply);
        }
    }
}
