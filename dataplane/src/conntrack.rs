//! What is known of a packet's flow: new, established, reply or related.
//!
//! Reads and writes `conntrack`. Drops `FlowConflict`, `ConntrackFull`, `UnknownIcmp`.
//!
//! Both directions of a flow share one row, found by its two ends in order. A row exists only once the
//! flow's first packet was let through, so whoever has one was judged.
//!
//! 1. No row, or its time is over: new. (An ICMP error cannot open a flow: refuse.)
//! 2. An ICMP error about the flow: related. It prolongs nothing.
//! 3. A SYN opens a connection anew if one side has finished it or reset it; or if the other side sends it,
//!    and so far it was seen from its middle on, and never answered: who opened it was a guess.
//! 4. The opener's direction, with the same translation: established. With another: a second flow would
//!    share the row, and replies could not be told apart: refuse. The path then lets another port stand for the
//!    client's own ([`find_port`]): of one client that dials an endpoint from the same port by two Services, by two
//!    nodes, or by a Service and directly. As long as one that is dialled directly goes on, so does the row that it
//!    shall not share: that is what says that another port is to be found.
//! 5. The other direction: reply.
//!
//! What TCP says is believed for how long a row lasts, never for whether a packet may pass: windows are not
//! checked, and the ends know better.
//! 6. A handshake is over when the other side has answered and a packet without SYN has come. Until then the
//!    row is short-lived, so that a flood of SYNs, answered or not, does not fill the table for hours.
//! 7. A FIN finishes its own direction only: the other may go on for as long as it likes. Both, or a RST of
//!    either side, at any time, close the connection.
//! 8. Two SYNs that cross (simultaneous open) are one flow: the second is the first one's reply.
//! 9. A packet from the middle of a connection that has no row (a SYN ACK included) is new, and judged as
//!    any: who sent it counts as its opener. So connections outlive a table that was lost, as they do with
//!    Linux (`nf_conntrack_tcp_loose`) and Cilium.
//!
//! SCTP's associations are tracked likewise, by what the first chunk of a packet is: INIT is their SYN. ABORT resets
//! one, SHUTDOWN COMPLETE is the last of both sides, and a handshake is over with the first packet that is no part of
//! it: COOKIE ACK, or what follows. The same numbers hold, and TCP's lifetimes.
//!
//! A flow that a Service translated has a second row, under what its client dialled: it says to which backend the
//! client was given, so that the flow stays there while backends come and go. It is opened with the flow's own row,
//! lives by what the client's packets say, hears from [`mirror`] what the answers say of the connection, and knows
//! the client's direction only: whatever else would come under its tuple is refused.
//! 10. A packet may find a Service where its flow found none: see [`asks`].
//! 11. A node whose clients are answered straight from the backend's ([`Connection::AWAY`]) sees no answers, and has
//!     the row under what was dialled only; the backend's node has the flow's own. Here a packet without SYN ends the
//!     handshake, for who sends it has been answered; and the opener's FIN closes the connection as far as one can
//!     know: what it still acknowledges prolongs the row by a handshake's time. If that is over too early, the next
//!     packet is one from the middle (9), and goes to the same backend as long as that may be chosen.
//!
//! A row whose time is over still keeps the port that stands for the pod outside, as long as the far end may
//! remember the connection: see [`is_spent`].
//!
//! Source: RFC 9293 section 3.3.2 (states) and 3.5 (crossing SYNs), RFC 9260 section 4 (SCTP's states), RFC 5382,
//! RFC 4787 and RFC 5508 (timeouts; ours are shorter for closed connections, as in other dataplanes, because the
//! agent sweeps rows away in their time only).

mod recall;

pub use recall::{Pod, learn, recall};

use crate::Reason;
use crate::flow::{self, Flow, mix, spread};
use crate::platform::Platform;
use crate::tables::{Connection, Connections, NotAdded, Timeouts, Tuple, Way, Writes};
use crate::trace::{Record, Stage};
use crate::wire::transport::{sctp, tcp};
use crate::wire::{Address, Port, V4, ip};

/// How a packet stands to its flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The first packet of a flow, as far as this node knows.
    #[default]
    New = 1,
    /// In the direction of the flow's first packet.
    Established = 2,
    /// In the other direction.
    Reply = 3,
    /// An ICMP error about the flow.
    Related = 4,
}

/// A packet's place in its flow. The row stands where it can be copied to eight bytes at a time, as it lies in its table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Tracked<A> {
    /// The flow's row; of a new one the row that is over, or all zero.
    pub connection: Connection<A>,
    /// How the packet stands to its flow.
    pub state: State,
    /// It goes the way of the flow's first packet.
    pub original: bool,
}

impl<A> Tracked<A> {
    /// Whether nobody has judged its flow yet.
    #[inline(always)]
    pub fn is_new(&self) -> bool {
        self.state as u8 == State::New as u8
    }

    /// Whether the row found is the one under what the client dialled: the flow's own is still to be found.
    #[inline(always)]
    pub fn is_dialled(&self) -> bool {
        !self.is_new() && is_dialled(&self.connection)
    }
}

impl<A: Address> Tracked<A> {
    /// What was found says nothing of the packet: it is of a new flow.
    #[inline(always)]
    pub fn forget(&mut self) {
        *self = Self { state: State::New, original: true, connection: Connection::default() };
    }
}

/// In [`Connection::flags`]: the higher end of the tuple opened the flow.
pub const OPENED_BY_HIGH: u8 = 1;
/// In [`Connection::flags`]: the other side has answered.
pub const ANSWERED: u8 = 2;
/// In [`Connection::flags`]: the opener has no more to send (FIN).
pub const OPENER_FINISHED: u8 = 4;
/// In [`Connection::flags`]: the other side has no more to send (FIN).
pub const OTHER_FINISHED: u8 = 8;
/// In [`Connection::flags`]: one side has reset the connection (RST).
pub const RESET: u8 = 16;
/// In [`Connection::flags`]: a packet of a TCP connection without SYN has come, or its first was no SYN.
pub const SETTLED: u8 = 32;

/// How many ports are tried that might stand for a client's own.
pub const PORTS: u32 = 64;
/// The first of them: beyond those that say what is spoken (RFC 6335, section 6).
const FIRST_PORT: u16 = 1024;
/// What [`attempt`] gives where there is room for no more rows: no port's number.
const FULL: u32 = 1 << 16;

const FINISHED: u8 = OPENER_FINISHED | OTHER_FINISHED;

/// Finds the packet's flow, moves its state on, and leaves the packet's place in it in `tracked`.
///
/// # Errors
/// `FlowConflict`, `UnknownIcmp`.
// A function of its own, as `open`: the stack, see `path::Walk`.
#[inline(never)]
pub fn track<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    tracked: &mut Tracked<A>,
) -> Result<(), Reason> {
    let (tuple, from_high) = flow.tuple();
    let now_s = platform.now_s();
    let timeouts = platform.node().timeouts;
    let seen = Writes::<Connections<A>>::change(platform, &tuple, |row| {
        let seen = advance(row, flow, from_high, now_s);
        if seen as u8 == Seen::Conflict as u8 && !is_dialled(row) && flow.frontend == A::default() {
            let lasts_s = longest_s(flow.protocol, &timeouts);
            row.expires_s = now_s.wrapping_add(lasts_s);
        }
        // An error prolongs nothing.
        if seen as u8 == Seen::Onward as u8 && !flow.error {
            row.expires_s = now_s.wrapping_add(lifetime_s(row, flow.protocol, &timeouts));
        }
        tracked.connection = *row;
        seen
    });
    // 1.
    let seen = match seen {
        None => {
            tracked.connection = Connection::default();
            Seen::Over
        }
        Some(seen) => seen,
    };
    if seen as u8 == Seen::Conflict as u8 {
        return Err(if flow.error { Reason::UnknownIcmp } else { Reason::FlowConflict });
    }
    if seen as u8 == Seen::Over as u8 {
        if flow.error {
            return Err(Reason::UnknownIcmp);
        }
        (tracked.state, tracked.original) = (State::New, true);
    } else {
        tracked.original = is_original(&tracked.connection, from_high);
        // 5.
        tracked.state = if tracked.original { State::Established } else { State::Reply };
        if flow.error {
            tracked.state = State::Related;
        }
    }
    Ok(())
}

/// Notes a packet's place in its flow. Whether anybody is told is asked here, because a call takes longer than the answer.
#[inline(always)]
pub fn note<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, tracked: &Tracked<A>) {
    if platform.tracing() {
        tell(platform, flow, tracked);
    }
}

#[inline(never)]
fn tell<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, tracked: &Tracked<A>) {
    platform.report(&Record { detail: tracked.state as u8, ..flow.record(Stage::Conntrack) });
}

/// Whether a tracked packet may still be for a Service: it is of a new flow, or of one whose client dialled a
/// Service; or there may be a Service by now where its flow found none, as long as nobody has answered, or as it
/// goes into the world. Replies never are.
#[inline(always)]
pub fn asks<A: Address>(flow: &Flow<A>, tracked: &Tracked<A>) -> bool {
    if tracked.is_new() || tracked.is_dialled() {
        return true;
    }
    if !tracked.original || flow.error {
        return false;
    }
    // 10.
    let row = &tracked.connection;
    let open_end = row.flags & ANSWERED == 0 || row.masquerade_port != Port::default();
    flow.is_syn() || (flow.protocol == ip::protocol::UDP && open_end)
}

/// Starts tracking a flow whose first packet was let through, under its two ends. [`dial`] comes first, if a
/// Service has translated it.
///
/// # Errors
/// `ConntrackFull`.
#[inline(never)]
pub fn open<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    masquerade_port: Port,
    way: &Way,
) -> Result<(), Reason> {
    let (tuple, from_high) = flow.tuple();
    let mut row = first(platform, flow, from_high);
    row.way = recall::taken(way, from_high);
    row.frontend = flow.frontend;
    row.frontend_port = flow.frontend_port;
    row.masquerade_port = masquerade_port;
    row.client_port = flow.client_port;
    // 11.
    let elsewhere = flow.direct == Connection::<A>::AWAY;
    if !elsewhere && Writes::<Connections<A>>::put(platform, &tuple, &row).is_err() {
        return Err(Reason::ConntrackFull);
    }
    Ok(())
}

/// Remembers under what its client dialled where a packet went that a Service has translated.
///
/// # Errors
/// `ConntrackFull`.
#[inline(never)]
pub fn dial<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, way: &Way) -> Result<(), Reason> {
    let (tuple, from_high) = dialled_by(flow);
    let mut row = first(platform, flow, from_high);
    row.way = recall::taken(way, from_high);
    row.flags |= Connection::<A>::DIALLED;
    row.frontend = flow.target;
    row.frontend_port = flow.target_port;
    if flow.client_port != Port::default() {
        row.client_port = flow.source_port;
    }
    if Writes::<Connections<A>>::put(platform, &tuple, &row).is_err() {
        return Err(Reason::ConntrackFull);
    }
    Ok(())
}

/// Takes back what [`dial`] has remembered, because the flow could not be opened after all.
#[inline(always)]
pub fn forget<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>) {
    if flow.frontend != A::default() && flow.direct != Connection::<A>::HERE {
        Writes::<Connections<A>>::remove(platform, &dialled_by(flow).0);
    }
}

/// Finds a port that stands for the client's own, because its own would make the flow one with another: the one
/// that this flow has already, or one that is free. That is claimed by a row which is over already, so that it says
/// nothing of the flow before that is let through.
///
/// # Errors
/// `FlowConflict`: none of [`PORTS`] is free. `ConntrackFull`.
#[inline(always)]
pub fn find_port<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    port: &mut Port,
) -> Result<(), Reason> {
    let own = if flow.client_port == Port::default() { flow.source_port } else { flow.client_port };
    let claim = Connection {
        frontend: flow.frontend,
        frontend_port: flow.frontend_port,
        client_port: own,
        expires_s: platform.now_s(),
        ..Connection::default()
    };
    let hash = flow.hash(mix(platform.node().seed ^ flow.frontend.fold32() ^ own.host() as u32));
    let found = platform.first_of(PORTS, |platform, tried| {
        let place = spread(hash, tried, u16::MAX - FIRST_PORT);
        let port = Port::new(FIRST_PORT.wrapping_add(place));
        let (tuple, _) = flow::ends((&flow.source, port), (&flow.target, flow.target_port), flow.protocol);
        attempt(platform, &tuple, &claim, port)
    });
    if found == FULL {
        return Err(Reason::ConntrackFull);
    }
    if found == 0 {
        return Err(Reason::FlowConflict);
    }
    *port = Port::new(found as u16);
    Ok(())
}

/// The port, if the flow of the claim may have it; 0 if another has it, or [`FULL`].
#[inline(always)]
fn attempt<A: Address>(
    platform: &mut impl Platform<A>,
    tuple: &Tuple<A>,
    claim: &Connection<A>,
    port: Port,
) -> u32 {
    let free = Writes::<Connections<A>>::change(platform, tuple, |row| {
        let same = row.frontend == claim.frontend
            && row.frontend_port == claim.frontend_port
            && row.client_port == claim.client_port;
        is_over(row, claim.expires_s) || (same && !is_dialled(row))
    });
    match free {
        Some(true) => port.host() as u32,
        Some(false) => 0,
        None => match Writes::<Connections<A>>::add(platform, tuple, claim) {
            Ok(()) => port.host() as u32,
            Err(NotAdded::Full) => FULL,
            // Another CPU was faster.
            Err(NotAdded::Taken) => 0,
        },
    }
}

/// Notes under what its client dialled what an answer says of the connection; `row` is the flow's own.
#[inline(always)]
pub fn mirror<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, row: &Connection<A>) {
    // What else may be said changes nothing.
    let dialled = row.frontend != A::default() && row.direct == 0;
    if dialled && flow.protocol == ip::protocol::TCP && flow.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
        answered(platform, flow, row);
    }
    let turns = said_by(flow.flags) != SETTLED || flow.flags == sctp::COOKIE_ACK;
    if flow.protocol == ip::protocol::SCTP && flow.piece.offset == 0 && turns {
        answered(platform, flow, row);
    }
}

#[inline(never)]
fn answered<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, row: &Connection<A>) {
    let mut client = (&flow.target, flow.target_port);
    if row.client_port != Port::default() {
        client.1 = row.client_port;
    }
    let (tuple, _) = dialled(client, &flow.source, (&row.frontend, row.frontend_port), flow.protocol);
    let now_s = platform.now_s();
    let timeouts = platform.node().timeouts;
    Writes::<Connections<A>>::change(platform, &tuple, |row| {
        let here = row.frontend == flow.source && row.frontend_port == flow.source_port;
        if here && !flow.error && !is_over(row, now_s) {
            observe(row, flow, false);
            row.expires_s = now_s.wrapping_add(lifetime_s(row, flow.protocol, &timeouts));
        }
    });
}

/// The key under what the client of a translated packet dialled, and whether the client is the higher end.
#[inline(always)]
fn dialled_by<A: Address>(flow: &Flow<A>) -> (Tuple<A>, bool) {
    let mut client = (&flow.source, flow.source_port);
    if flow.client_port != Port::default() {
        client.1 = flow.client_port;
    }
    dialled(client, &flow.target, (&flow.frontend, flow.frontend_port), flow.protocol)
}

/// The key under what a client dialled; a pod that is its own backend goes there by another address.
#[inline(always)]
fn dialled<A: Address>(
    client: (&A, Port),
    backend: &A,
    frontend: (&A, Port),
    protocol: u8,
) -> (Tuple<A>, bool) {
    let address = if *client.0 == A::ITSELF { backend } else { client.0 };
    flow::ends((address, client.1), frontend, protocol)
}

/// The row that a flow's first packet makes.
#[inline(always)]
fn first<A: Address>(platform: &impl Platform<A>, flow: &Flow<A>, from_high: bool) -> Connection<A> {
    let mut row = Connection {
        backend: flow.chosen,
        direct: flow.direct,
        flags: from_high as u8 * OPENED_BY_HIGH,
        ..Connection::default()
    };
    if ip::protocol::connects(flow.protocol) && !flow.is_syn() {
        row.flags |= SETTLED;
    }
    observe(&mut row, flow, true);
    let timeouts = platform.node().timeouts;
    row.expires_s = platform.now_s().wrapping_add(lifetime_s(&row, flow.protocol, &timeouts));
    row
}

/// Whether a row's time is over: the path takes it for absent.
#[inline(always)]
pub fn is_over<A>(row: &Connection<A>, now_s: u32) -> bool {
    row.expires_s <= now_s
}

/// Whether a row is of no more use, so that the agent removes it, and with it the claim to its port.
///
/// Whoever closes a TCP connection in order remembers it for a while (TIME_WAIT, RFC 9293 section 3.3.2) and
/// refuses what looks like an old packet of it. So the port that stood for the pod goes to no other flow for
/// `quarantine_s` after the last packet. The very same flow may have it again at once: its SYN continues the
/// sequence numbers. A reset leaves nothing behind.
#[inline(always)]
pub fn is_spent<A>(row: &Connection<A>, protocol: u8, now_s: u32, timeouts: &Timeouts) -> bool {
    if !is_over(row, now_s) {
        return false;
    }
    let remembered = protocol == ip::protocol::TCP
        && row.masquerade_port != Port::default()
        && row.flags & (FINISHED | RESET) == FINISHED;
    if !remembered {
        return true;
    }
    let last_s = row.expires_s.wrapping_sub(timeouts.tcp_closed_s);
    now_s.wrapping_sub(last_s) >= timeouts.quarantine_s
}

/// What a row says of a packet.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Seen {
    /// The row's flow is over, and the packet of another.
    Over,
    /// The packet is of the row's flow.
    Onward,
    /// It would be of a second flow in the same row.
    Conflict,
}

/// Moves a row on by a packet.
#[inline(always)]
fn advance<A: Address>(row: &mut Connection<A>, flow: &Flow<A>, from_high: bool, now_s: u32) -> Seen {
    // 1.
    if is_over(row, now_s) {
        return Seen::Over;
    }
    let original = is_original(row, from_high);
    if is_dialled(row) && !original {
        return Seen::Conflict;
    }
    // 2.
    if flow.error {
        return Seen::Onward;
    }
    // 3.
    if flow.is_syn() {
        let guessed = row.flags & (SETTLED | ANSWERED) == SETTLED;
        if row.flags & (FINISHED | RESET) != 0 || (guessed && !original) {
            return Seen::Over;
        }
    }
    // 4.
    // What goes to a backend is nobody's reply.
    if (original || flow.frontend != A::default()) && !is_dialled(row) && !is_same(row, flow) {
        return Seen::Conflict;
    }
    observe(row, flow, original);
    Seen::Onward
}

/// Whether a packet that goes the way of the row's first one is translated as that was.
#[inline(always)]
fn is_same<A: Address>(row: &Connection<A>, flow: &Flow<A>) -> bool {
    row.frontend == flow.frontend
        && row.frontend_port == flow.frontend_port
        && row.client_port == flow.client_port
}

/// Whether a row is one under what a client dialled.
#[inline(always)]
fn is_dialled<A>(row: &Connection<A>) -> bool {
    row.flags & Connection::<A>::DIALLED != 0
}

/// Whether a packet with its source at the higher end, or the lower, goes the way of the flow's first.
#[inline(always)]
fn is_original<A>(row: &Connection<A>, from_high: bool) -> bool {
    (row.flags & OPENED_BY_HIGH != 0) == from_high
}

/// Notes what a packet says of its flow.
#[inline(always)]
fn observe<A>(row: &mut Connection<A>, flow: &Flow<A>, original: bool) {
    if !original {
        row.flags |= ANSWERED;
    }
    // Only a first fragment has flags.
    if flow.piece.offset != 0 {
        return;
    }
    if flow.protocol == ip::protocol::SCTP {
        row.flags |= said_by(flow.flags);
    }
    if flow.protocol == ip::protocol::TCP {
        if flow.flags & tcp::SYN == 0 {
            row.flags |= SETTLED;
        }
        if flow.flags & tcp::FIN != 0 {
            row.flags |= if original { OPENER_FINISHED } else { OTHER_FINISHED };
        }
        if flow.flags & tcp::RST != 0 {
            row.flags |= RESET;
        }
    }
}

/// What an SCTP packet says whose first chunk has this type.
#[inline(always)]
fn said_by(chunk: u8) -> u8 {
    if chunk == sctp::INIT || chunk == sctp::INIT_ACK || chunk == sctp::COOKIE_ECHO {
        return 0;
    }
    if chunk == sctp::ABORT {
        return SETTLED | RESET;
    }
    if chunk == sctp::SHUTDOWN_COMPLETE {
        return SETTLED | FINISHED;
    }
    SETTLED
}

/// The lifetime of a flow that goes on.
#[inline(always)]
fn longest_s(protocol: u8, timeouts: &Timeouts) -> u32 {
    let row = Connection::<V4> { flags: ANSWERED | SETTLED, ..Connection::default() };
    lifetime_s(&row, protocol, timeouts)
}

#[inline(always)]
fn lifetime_s<A>(row: &Connection<A>, protocol: u8, timeouts: &Timeouts) -> u32 {
    let flags = row.flags;
    if protocol == ip::protocol::UDP {
        return timeouts.udp_s;
    }
    if !ip::protocol::connects(protocol) {
        return timeouts.icmp_s;
    }
    // 7.
    if flags & RESET != 0 || flags & FINISHED == FINISHED {
        return timeouts.tcp_closed_s;
    }
    // 6.
    if flags & (ANSWERED | SETTLED) == ANSWERED | SETTLED {
        return timeouts.tcp_s;
    }
    // 11.
    if row.direct == Connection::<A>::AWAY && flags & (SETTLED | OPENER_FINISHED) == SETTLED {
        return timeouts.tcp_s;
    }
    timeouts.tcp_opening_s
}
