//! The short way: for a packet of a flow that is known, between a pod of this node and one of another, about which it
//! says nothing new.
//!
//! Such a packet changes no row ([`conntrack::recall`]), and where it goes follows from rows that the agent writes:
//! as long as those are as they were, it goes where the flow's last packet went by the long way, and nobody has to
//! look for it again. All that a walk does with it is done here, with one look-up. Whatever is not as usual goes the
//! long way, and nothing is refused here that would not be there: both come to the same, and report the same.
//!
//! Where flows are cut every packet is judged, so there is no short way.

use super::{Part, Walk, close, head};
use crate::conntrack::{self, Pod, Tracked};
use crate::flow::{self, Ends, Flow};
use crate::overlay::{self, Carried, Outer};
use crate::platform::{Machine, Packet, Platform};
use crate::service::{self, Choice};
use crate::tables::{Node, Route};
use crate::trace::{self, Lap, Record, Stage};
use crate::wire::{Address, Mac, V4};
use crate::{Verdict, nat, reject, route};

/// A packet that a pod sent into the tunnel. It has come to no end where it must go the long way.
#[inline(never)]
pub(super) fn from_pod<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let mut ends = Ends::default();
    walk.carried.missed = false;
    if !is_open::<A>(platform) || !flow::glance(packet, &mut ends) || ends.hops <= 1 {
        return Ok(());
    }
    platform.lap(Lap::Parse);
    let pod = conntrack::recall(platform, &ends, &mut walk.tracked);
    platform.lap(Lap::Conntrack);
    if !pod.is(Pod::Sends) {
        miss(walk, &ends, packet.length());
        return Ok(());
    }
    let way = &walk.tracked.connection.way;
    if way.interface != packet.interface() || way.mac == Mac::default() {
        return Ok(());
    }
    let room = overlay::room::<A>(&platform.node(), Route::REMOTE, false);
    if !reject::fits(packet, (ends.transport, ends.protocol), room)? {
        return Ok(());
    }
    if platform.tracing() {
        remember(walk, &ends, packet.length());
        tell_sent(platform, packet, walk);
    }
    platform.lap(Lap::Route);
    turn(packet, &mut ends, &walk.tracked)?;
    platform.lap(Lap::Nat);
    route::take_hop::<A>(packet, ends.hops, ends.protocol)?;
    platform.lap(Lap::Route);
    let port = overlay::port(ends.hash(platform.node().seed));
    let way = &walk.tracked.connection.way;
    let outer = Outer { node: way.node, mac: way.mac, port, class: ends.class, identity: way.identity };
    overlay::put_around::<A>(platform, packet, &outer, 0)?;
    platform.lap(Lap::Overlay);
    walk.end(Verdict::Forward(platform.node().uplink))
}

/// What came through the tunnel for a flow that is known, with a packet of the family `A` inside: the short way.
/// Whether it leads to an end, which is left in `verdict`; [`super::from_tunnel`] is for the others. That one goes on
/// with `carried`, which says whether the flow has no row, and [`super::from_underlay`] with what is read in `walk`.
#[inline(always)]
pub fn from_tunnel_known<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
    (carried, verdict): (&mut Carried, &mut Verdict),
) -> bool {
    let bytes = packet.length();
    walk.verdict = None;
    let part = from_tunnel(platform, packet, walk);
    if part.is_ok() && walk.verdict.is_none() {
        *carried = Carried { missed: walk.carried.missed, ..Carried::default() };
        return false;
    }
    *verdict = close(platform, packet, walk, (bytes, part));
    true
}

/// A packet that came through a tunnel over IPv4 for a pod. It has come to no end where it must go the long way.
#[inline(never)]
fn from_tunnel<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let mut outer = Ends::<V4>::default();
    walk.carried.missed = false;
    if !is_open::<A>(platform) || !overlay::glance(&platform.node(), packet, &mut outer) {
        return Ok(());
    }
    let mut ends = Ends::default();
    if !flow::glance_behind(packet, overlay::PLAIN_V4, &mut ends) || ends.hops <= 1 {
        return Ok(());
    }
    platform.lap(Lap::Parse);
    let pod = conntrack::recall(platform, &ends, &mut walk.tracked);
    platform.lap(Lap::Conntrack);
    let length = packet.length().wrapping_sub(overlay::PLAIN_V4 as u32);
    if !pod.is(Pod::Receives) {
        ends.transport = ends.transport.wrapping_sub(overlay::PLAIN_V4);
        miss(walk, &ends, length);
        return Ok(());
    }
    let row = &walk.tracked.connection;
    // The row under what was dialled is for packets of this node's own.
    let dialled = walk.tracked.original && row.frontend != A::default();
    if dialled || row.way.node != outer.source.to_v6() {
        return Ok(());
    }
    let part = receive(platform, packet, walk, (&mut ends, length));
    if part.is_err() {
        lose(walk, &ends, length);
    }
    part
}

#[inline(always)]
fn receive<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
    (ends, length): (&mut Ends<A>, u32),
) -> Part {
    if platform.tracing() {
        remember(walk, ends, length);
        tell_received(platform, packet, walk)?;
    }
    ends.transport = ends.transport.wrapping_sub(overlay::PLAIN_V4);
    overlay::take_off(packet)?;
    platform.lap(Lap::Overlay);
    turn(packet, ends, &walk.tracked)?;
    platform.lap(Lap::Nat);
    let way = &walk.tracked.connection.way;
    route::pass_on::<A>(packet, (ends.hops, ends.protocol), Mac::GATEWAY, way.pod_mac)?;
    platform.lap(Lap::Route);
    let interface = way.interface;
    walk.end(Verdict::Deliver(interface))
}

/// Whether there is a short way: not where flows are cut, or nobody has an address of the family; and not for IPv6 while
/// every stage reports, because what is reported needs more stack than is left ("combined stack size of 4 calls is 528",
/// kernel 6.18).
#[inline(always)]
fn is_open<A: Address>(platform: &impl Machine) -> bool {
    let node = platform.node();
    node.speaks::<A>() && node.established != Node::CUT && !(A::VERSION == 6 && platform.tracing())
}

/// To the backend that the client was given before; or, of an answer, from what the client dialled.
#[inline(always)]
fn turn<A: Address>(packet: &mut impl Packet, ends: &mut Ends<A>, tracked: &Tracked<A>) -> Part {
    let row = &tracked.connection;
    if row.frontend == A::default() {
        return Ok(());
    }
    nat::replace(packet, ends, tracked.original, (row.frontend, row.frontend_port))
}

/// Notes whether its flow has no row: then nobody looks for one again, or reads the packet.
#[inline(always)]
fn miss<A: Address>(walk: &mut Walk<A>, ends: &Ends<A>, length: u32) {
    if walk.tracked.is_new() {
        walk.carried.missed = true;
        walk.flow = Flow::of(ends, length);
    }
}

/// It is lost on the way: what is reported of that is about this packet, and not about the one before it.
#[inline(never)]
fn lose<A: Address>(walk: &mut Walk<A>, ends: &Ends<A>, length: u32) {
    remember(walk, ends, length);
}

/// Leaves in the walk what else the long way would have found out, for those who are told.
#[inline(always)]
fn remember<A: Address>(walk: &mut Walk<A>, ends: &Ends<A>, length: u32) {
    walk.flow = Flow::of(ends, length);
    let row = &walk.tracked.connection;
    walk.choice = Choice::default();
    if walk.tracked.original {
        walk.choice.address = row.frontend;
        walk.choice.port = row.frontend_port;
        walk.choice.kept = true;
    }
}

/// What the long way reports of such a packet.
#[inline(never)]
fn tell_sent<A: Address, P: Platform<A>, K: Packet>(platform: &mut P, packet: &mut K, walk: &mut Walk<A>) {
    tell_head(platform, packet, walk);
    tell_turn(platform, walk);
    find_next_hop(platform, walk);
    tell_next_hop(platform, walk);
    tell_outer(platform, walk);
    tell_tail(platform, walk);
}

/// The same of one that came through the tunnel.
#[inline(never)]
fn tell_received<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    tell_tunnel(platform, packet);
    tell_turn(platform, walk);
    tell_pod(platform, walk)
}

#[inline(never)]
fn tell_tunnel<P: Machine, K: Packet>(platform: &mut P, packet: &mut K) {
    let Some(outer) = flow::datagram::<V4>(packet) else {
        return;
    };
    let number = packet.interface().0;
    trace::step(platform, || Record { number, ..outer.record(Stage::FromUnderlay) });
    overlay::note_off(platform, packet, &outer);
}

#[inline(never)]
fn tell_pod<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    route::local(platform, &walk.flow)?;
    let number = walk.tracked.connection.way.interface.0;
    trace::step(platform, || Record { number, ..walk.flow.record(Stage::ToPod) });
    Ok(())
}

#[inline(never)]
fn tell_head<A: Address, P: Platform<A>, K: Packet>(platform: &mut P, packet: &mut K, walk: &mut Walk<A>) {
    head(platform, packet, &walk.flow, Stage::FromPod);
}

/// Other ends take the place of the packet's in the walk as well. Each report is a function's of its own, beside the
/// others and not inside them: the stack.
#[inline(always)]
fn tell_turn<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) {
    tell_backend(platform, walk);
    conntrack::note(platform, &walk.flow, &walk.tracked);
    tell_frontend(platform, walk);
}

#[inline(never)]
fn tell_backend<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) {
    if walk.choice.is_some() {
        service::note(platform, &walk.flow, &walk.choice);
        (walk.flow.target, walk.flow.target_port) = (walk.choice.address, walk.choice.port);
    }
}

#[inline(never)]
fn tell_frontend<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) {
    let row = &walk.tracked.connection;
    if !walk.tracked.original && row.frontend != A::default() {
        nat::note(platform, &walk.flow, nat::Change::Frontend, (row.frontend, row.frontend_port));
        (walk.flow.source, walk.flow.source_port) = (row.frontend, row.frontend_port);
    }
}

#[inline(never)]
fn find_next_hop<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) {
    walk.route = Route::default();
    if let Some(route) = route::to(platform, walk.flow.target) {
        walk.route = route;
    }
}

#[inline(never)]
fn tell_next_hop<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) {
    route::note(platform, &walk.flow, walk.route.kind, walk.route.id.0);
}

#[inline(never)]
fn tell_outer<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) {
    let way = walk.tracked.connection.way;
    let port = overlay::port(walk.flow.hash(platform.node().seed));
    let outer = Outer { node: way.node, mac: way.mac, port, class: 0, identity: way.identity };
    overlay::note(platform, &walk.flow, &outer);
}

#[inline(never)]
fn tell_tail<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) {
    trace::step(platform, || walk.flow.record(Stage::ToUnderlay));
}
