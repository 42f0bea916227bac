//! What is known of a packet's flow: new, established, reply or related.
//!
//! Reads and writes `conntrack`. Drops `FlowConflict`, `ConntrackFull`, `UnknownIcmp`.
//!
//! Both directions of a flow share one row, found by its two ends in order. A row exists only once the
//! flow's first packet was let through, so whoever has one was judged.
//!
//! 1. No row, or its time is over: new. (An ICMP error cannot open a flow: refuse.)
//! 2. An ICMP error about the flow: related.
//! 3. A SYN for a connection that is closing or closed opens it anew.
//! 4. The opener's direction, with the same translation: established. With another: a second flow would
//!    share the row, and replies could not be told apart: refuse.
//! 5. The other direction: reply.
//!
//! Source: RFC 9293 section 3.3.2 (states), RFC 5382 and RFC 4787 (timeouts; ours are shorter for closed
//! connections, as in other dataplanes, because the agent sweeps rows away in their time only).

use crate::Reason;
use crate::flow::Flow;
use crate::platform::Platform;
use crate::tables::{Connection, Connections, Writes};
use crate::trace::{self, Record, Stage};
use crate::wire::transport::tcp;
use crate::wire::{Address, Port, ip};

/// How a packet stands to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The first packet of a flow, as far as this node knows.
    New = 1,
    /// In the direction of the flow's first packet.
    Established = 2,
    /// In the other direction.
    Reply = 3,
    /// An ICMP error about the flow.
    Related = 4,
}

/// A packet's place in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked<A> {
    /// How the packet stands to its flow.
    pub state: State,
    /// It goes the way of the flow's first packet.
    pub original: bool,
    /// The flow's row; all zero if it is new.
    pub connection: Connection<A>,
}

/// Seconds without a packet after which a flow ends.
pub mod timeout_s {
    /// A TCP connection that was answered.
    pub const TCP: u32 = 8000;
    /// A TCP connection that was not answered yet.
    pub const TCP_OPENING: u32 = 60;
    /// A TCP connection that both sides have finished, or one has reset.
    pub const TCP_CLOSED: u32 = 10;
    /// UDP and ICMP.
    pub const OTHER: u32 = 60;
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

const CLOSING: u8 = OPENER_FINISHED | OTHER_FINISHED | RESET;

/// Finds the packet's flow and moves its state on.
///
/// # Errors
/// `FlowConflict`, `UnknownIcmp`.
#[inline(always)]
pub fn track<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>) -> Result<Tracked<A>, Reason> {
    let (tuple, from_high) = flow.tuple();
    let now_s = platform.now_s();
    let seen = Writes::<Connections<A>>::change(platform, &tuple, |row| advance(row, flow, from_high, now_s));
    let tracked = match seen {
        // 1.
        None => new(),
        Some(seen) => seen?,
    };
    if flow.error && tracked.state as u8 == State::New as u8 {
        return Err(Reason::UnknownIcmp);
    }
    trace::step(platform, || Record { detail: tracked.state as u8, ..flow.record(Stage::Conntrack) });
    Ok(tracked)
}

/// Starts tracking a flow whose first packet was let through.
///
/// # Errors
/// `ConntrackFull`.
#[inline(always)]
pub fn open<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    masquerade_port: Port,
) -> Result<(), Reason> {
    let (tuple, from_high) = flow.tuple();
    let mut row = Connection {
        frontend: flow.frontend,
        frontend_port: flow.frontend_port,
        masquerade_port,
        expires_s: 0,
        flags: from_high as u8 * OPENED_BY_HIGH,
        pad: [0; 3],
    };
    observe(&mut row, flow, true);
    row.expires_s = platform.now_s().wrapping_add(lifetime_s(row.flags, flow.protocol));
    if Writes::<Connections<A>>::put(platform, &tuple, &row).is_err() {
        return Err(Reason::ConntrackFull);
    }
    platform.report(&flow.record(Stage::Open));
    Ok(())
}

/// Whether a row's time is over: the path takes it for absent, the agent removes it.
#[inline(always)]
pub fn is_over<A>(row: &Connection<A>, now_s: u32) -> bool {
    row.expires_s <= now_s
}

#[inline(always)]
fn new<A: Address>() -> Tracked<A> {
    Tracked { state: State::New, original: true, connection: Connection::default() }
}

#[inline(always)]
fn advance<A: Address>(
    row: &mut Connection<A>,
    flow: &Flow<A>,
    from_high: bool,
    now_s: u32,
) -> Result<Tracked<A>, Reason> {
    // 1.
    if is_over(row, now_s) {
        return Ok(new());
    }
    let original = (row.flags & OPENED_BY_HIGH != 0) == from_high;
    // 2.
    if flow.error {
        return Ok(Tracked { state: State::Related, original, connection: *row });
    }
    // 3.
    let opens = flow.protocol == ip::protocol::TCP && flow.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if opens && row.flags & CLOSING != 0 {
        return Ok(new());
    }
    // 4.
    if original && (row.frontend != flow.frontend || row.frontend_port != flow.frontend_port) {
        return Err(Reason::FlowConflict);
    }
    observe(row, flow, original);
    row.expires_s = now_s.wrapping_add(lifetime_s(row.flags, flow.protocol));
    // 5.
    let state = if original { State::Established } else { State::Reply };
    Ok(Tracked { state, original, connection: *row })
}

/// Notes what a packet says of its flow.
#[inline(always)]
fn observe<A>(row: &mut Connection<A>, flow: &Flow<A>, original: bool) {
    if !original {
        row.flags |= ANSWERED;
    }
    if flow.protocol == ip::protocol::TCP {
        if flow.flags & tcp::FIN != 0 {
            row.flags |= if original { OPENER_FINISHED } else { OTHER_FINISHED };
        }
        if flow.flags & tcp::RST != 0 {
            row.flags |= RESET;
        }
    }
}

#[inline(always)]
fn lifetime_s(flags: u8, protocol: u8) -> u32 {
    let finished = flags & (OPENER_FINISHED | OTHER_FINISHED) == OPENER_FINISHED | OTHER_FINISHED;
    if protocol != ip::protocol::TCP {
        timeout_s::OTHER
    } else if flags & RESET != 0 || finished {
        timeout_s::TCP_CLOSED
    } else if flags & ANSWERED == 0 {
        timeout_s::TCP_OPENING
    } else {
        timeout_s::TCP
    }
}
