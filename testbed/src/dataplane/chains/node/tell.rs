//! What the sender of a refused packet is told, and the rules on the way there.
//!
//! An error and a reset are the node's own packets: they leave by OUTPUT and POSTROUTING, and may be refused there. They
//! are of the connection of what was refused (`nf_ct_attach`), and go its other way. What is of no connection is told so
//! by a packet that is looked up as any other: an error may be about a connection, and a reset may end one.
//!
//! What is left out: a rule that rejects such a packet drops it. The kernel would tell whoever a reset says it is from.

use std::borrow::Cow;

use super::{
    Answer, Bits, Direction, Ground, Hook, Interface, Kind, Link, Memory, Packet, Program, Refusal, Seen,
    State, States, TableName, Tracked, Tuple, Way, World, ask, leaving,
};
use crate::dataplane::chains::ruleset::RejectWith;

/// Writes what the sender of a refused packet is told into `out`, as things are at `now_s`, if anything is.
pub(super) fn tell<A: Bits>(
    rules: &mut Program<A>,
    state: &mut Memory,
    (refusal, refused): (&Refusal, &Tracked),
    (mut packet, frame): (Packet, &[u8]),
    (now_s, out): (u64, &mut Vec<u8>),
) -> Option<Link> {
    let what = refusal.answer?;
    let mut frame = Cow::Borrowed(frame);
    if refusal.forwarded {
        packet.take_hop(frame.to_mut());
    }
    let of = attached(refused);
    let goes_to = leaving(&packet, refused);
    let own = state.ground.is_own(goes_to.target).then_some(goes_to.target);
    let own = own.or(state.ground.own_like(packet.tuple.target))?;
    // Who was dialled answers, if it was another than whom the packet went to.
    let as_dialled = of.is_some_and(|of| of.connection.has_new_source(of.direction));
    let source = if as_dialled { packet.tuple.target } else { own };
    let (answer, bytes) = what.write(source, &packet, &frame)?;
    if of.is_some() && what == Answer::Reject(RejectWith::TcpReset) {
        state.conntrack.close(&refused.connection, now_s);
    }
    let is_reset = matches!(answer.kind, Kind::Tcp { .. });
    let tuple = match of {
        None => answer.tuple,
        // Its source is translated last of all.
        Some(_) if is_reset => {
            Tuple { source: goes_to.target, source_port: goes_to.target_port, ..packet.tuple.inverse() }
        }
        Some(_) => Tuple { source: own, ..answer.tuple },
    };
    let way = outwards(rules, state, (of, tuple), (&answer, &bytes), now_s)?;
    match of {
        Some(_) => state.deliver(&way, &answer, &bytes, out),
        None => state.send(&way, answer, &bytes, out).ok(),
    }
}

/// How what is said about a packet stands to the packet's connection; none if it has none.
fn attached(refused: &Tracked) -> Option<Tracked> {
    let is_of_one = !matches!(refused.state, State::Invalid | State::Untracked);
    is_of_one.then_some(Tracked { state: State::Related, direction: refused.direction.back(), ..*refused })
}

/// The way of the node's own packet past its rules, which see it with the ends of `tuple`; none if they refuse it.
fn outwards<A: Bits>(
    rules: &mut Program<A>,
    state: &mut Memory,
    (of, tuple): (Option<Tracked>, Tuple),
    (answer, bytes): (&Packet, &[u8]),
    now_s: u64,
) -> Option<Way> {
    let states = of.map_or(States::INVALID.0, |of| of.states());
    let reply = of.is_some_and(|of| of.direction == Direction::Reply);
    let to = Ground::interface(state.ground.hop(tuple.target));
    let mut seen = Seen { tuple, from: Interface::NONE, to, states, reply, mark: 0 };
    let mut world = World { own: &state.ground.own, now_s, dice: &mut state.dice };
    ask(rules, TableName::Raw, Hook::Output, &mut seen, &mut world).ok()?;
    let tracked = of.unwrap_or_else(|| state.conntrack.track(answer, bytes, now_s));
    (seen.states, seen.reply) = (tracked.states(), tracked.direction == Direction::Reply);
    ask(rules, TableName::Mangle, Hook::Output, &mut seen, &mut world).ok()?;
    if of.is_none() {
        let leaving = leaving(answer, &tracked);
        (seen.tuple.target, seen.tuple.target_port) = (leaving.target, leaving.target_port);
    }
    // All of OUTPUT sees the link of the target that it had (`nf_hook_state`).
    ask(rules, TableName::Filter, Hook::Output, &mut seen, &mut world).ok()?;
    let hop = state.ground.hop(seen.tuple.target);
    seen.to = Ground::interface(hop);
    ask(rules, TableName::Mangle, Hook::Postrouting, &mut seen, &mut world).ok()?;
    if of.is_some() && !tracked.kept && matches!(answer.kind, Kind::Tcp { .. }) {
        // Its connection has no source yet, and is not kept: rules count the reset (`nf_nat_inet_fn`: errors alone are
        // translated without them).
        rules.walk(TableName::Nat, Hook::Postrouting, &mut seen, &mut world);
    }
    Some(Way { hop, tracked, takes_hop: false })
}

impl Memory {
    /// Writes a packet into the frame that leaves, as it is.
    fn deliver(&self, way: &Way, packet: &Packet, bytes: &[u8], out: &mut Vec<u8>) -> Option<Link> {
        let at = self.begin(way.hop, out);
        out.extend_from_slice(packet.bytes(bytes));
        // Who has no way to an address cannot answer it either.
        self.address(way.hop, &packet.moved(at), out).ok()
    }
}
