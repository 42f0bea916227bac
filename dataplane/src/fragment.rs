//! Fragments -> the ports that only the first one of a packet says.
//!
//! Reads and writes `fragments`. Drops `UnknownFragment`, `FragmentsFull`.
//!
//! Nothing is put together here: each fragment goes its own way, which is the first one's.
//!
//! 1. A whole packet: nothing to do.
//! 2. The first fragment: its ports are remembered for `fragment_s`. Once more (a duplicate, or another that
//!    claims the same bytes): the newest is remembered, and judged like any.
//! 3. A later one: it takes the ports of the first. Its place in the packet does not matter, so duplicates
//!    and overlaps pass; whoever puts the packet together refuses those (RFC 5722). None can change what was
//!    judged: ports are in first fragments only, and `flow` refuses what overlaps the rest of TCP's header.
//! 4. One whose first did not come before it: refused. A later one never opens a flow of its own making.
//!
//! Fragments are known by the addresses they arrive with, before any translation, and keep their number when
//! they are masqueraded. Two pods that give packets to the same host the same number at the same time can
//! therefore be mistaken for each other there, as behind any translator (RFC 6864, section 5.3): the
//! checksum tells, and the packet is lost.
//!
//! An ICMP error is about ports that are not its own packet's: its first fragment, which has all that the
//! path needs, passes, and is not remembered.
//!
//! Source: RFC 791 section 3.2, RFC 8200 section 4.5; RFC 1858 and RFC 3128 (what overlaps may hide).

use crate::Reason;
use crate::flow::Flow;
use crate::platform::Platform;
use crate::tables::{Fragment, Fragmented, Fragments, Table, Writes};
use crate::trace::{self, Record, Stage};
use crate::wire::{Address, Port};

/// In the trace: the first, whose ports are remembered.
pub const FIRST: u8 = 1;
/// In the trace: a later one, which has the first one's ports now.
pub const LATER: u8 = 2;

/// Gives a later fragment the ports of its first.
///
/// # Errors
/// `UnknownFragment`.
#[inline(always)]
pub fn follow<A: Address>(platform: &mut impl Platform<A>, flow: &mut Flow<A>) -> Result<(), Reason> {
    // 1., 2.
    if flow.piece.offset == 0 {
        return Ok(());
    }
    // 4.
    let first = Fragments::get(platform, &key(flow)).ok_or(Reason::UnknownFragment)?;
    if is_over(&first, platform.now_s()) {
        return Err(Reason::UnknownFragment);
    }
    // 3.
    flow.source_port = first.source_port;
    flow.target_port = first.target_port;
    if flow.protocol == A::ICMP.protocol {
        flow.flags = if flow.source_port == Port::default() { A::ICMP.echo_reply } else { A::ICMP.echo };
    }
    note(platform, flow, LATER);
    Ok(())
}

/// Remembers the ports of a first fragment, before anything of it is translated.
///
/// # Errors
/// `FragmentsFull`.
#[inline(always)]
pub fn remember<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>) -> Result<(), Reason> {
    // 1., 3.
    if flow.piece.is_whole() || flow.piece.offset != 0 || flow.error {
        return Ok(());
    }
    // 2.
    let expires_s = platform.now_s().wrapping_add(platform.node().timeouts.fragment_s);
    let row = Fragmented { source_port: flow.source_port, target_port: flow.target_port, expires_s };
    if Writes::<Fragments<A>>::put(platform, &key(flow), &row).is_err() {
        return Err(Reason::FragmentsFull);
    }
    note(platform, flow, FIRST);
    Ok(())
}

/// Whether a row's time is over: the path takes it for absent, the agent removes it.
#[inline(always)]
pub fn is_over(row: &Fragmented, now_s: u32) -> bool {
    row.expires_s <= now_s
}

#[inline(always)]
fn key<A: Address>(flow: &Flow<A>) -> Fragment<A> {
    Fragment {
        source: flow.source,
        target: flow.target,
        identification: flow.piece.identification,
        protocol: flow.protocol,
        pad: [0; 3],
    }
}

#[inline(always)]
fn note<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, which: u8) {
    trace::step(platform, || Record {
        detail: which,
        number: flow.piece.offset as u32,
        ..flow.record(Stage::Fragment)
    });
}
