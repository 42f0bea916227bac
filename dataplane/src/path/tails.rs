//! The last parts of a walk: where a packet goes, and what it needs for that.

use super::{Exit, From, Part, Walk, judge};
use crate::conntrack::{State, Tracked};
use crate::flow::Flow;
use crate::platform::{Machine, Packet, Platform};
use crate::tables::{Connection, Route, Way};
use crate::trace::{self, Lap, Record, Stage};
use crate::wire::{Address, Mac, Port, ip};
use crate::{Reason, Verdict, conntrack, mss, nat, overlay, policy, reject, route};

/// What it goes through last: route, then the tail that the route names.
#[inline(always)]
pub(super) fn go<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    platform.lap(Lap::Nat);
    leave(platform, packet, walk)?;
    platform.lap(Lap::Route);
    if walk.room != 0 {
        return turn_back(platform, packet, walk);
    }
    if walk.exit as u8 == Exit::Pod as u8 {
        judge::of_receiver(platform, walk)?;
    }
    if walk.lends {
        lend(platform, walk)?;
        platform.lap(Lap::Nat);
    }
    if walk.tracked.is_new() || walk.claimed {
        open(platform, walk)?;
    } else if walk.way.generation != 0 {
        conntrack::learn(platform, &walk.flow, &walk.way);
    }
    platform.lap(Lap::Conntrack);
    if walk.port != Port::default() {
        borrow(platform, packet, walk)?;
    }
    nat::seal(packet, &walk.flow)?;
    platform.lap(Lap::Nat);
    match walk.exit {
        Exit::Pod => return to_pod(platform, packet, walk),
        Exit::Host => return to_host(platform, walk),
        Exit::Elsewhere => {}
    }
    let remote = walk.route.kind == Route::REMOTE;
    // What a client who is answered straight sends comes through the tunnel all the same.
    if remote || is_direct_reply(walk) {
        fit_segments(platform, packet, walk)?;
        platform.lap(Lap::Rest);
    }
    if !remote {
        return to_neighbour(platform, packet, walk);
    }
    to_tunnel(platform, packet, walk)
}

/// Whether it is an answer that goes straight to a client who dialled another node.
#[inline(always)]
fn is_direct_reply<A>(walk: &Walk<A>) -> bool {
    let Tracked { state, connection, .. } = &walk.tracked;
    *state as u8 == State::Reply as u8 && connection.direct == Connection::<A>::HERE
}

/// Starts tracking its flow: under what was dialled, and under its two ends. Both, or neither.
#[inline(always)]
fn open<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    let mut part = Ok(());
    // Who was told by another node what was dialled has no use for the first: nobody dials that here.
    if walk.flow.frontend != A::default() && walk.flow.direct != Connection::<A>::HERE {
        part = conntrack::dial(platform, &walk.flow, &walk.way);
    }
    if part.is_ok() {
        part = conntrack::open(platform, &walk.flow, walk.port, &walk.way);
    }
    if part.is_err() {
        take_back(platform, walk);
    }
    part
}

/// Its flow could not be opened after all.
#[inline(never)]
fn take_back<A: Address, P: Platform<A>>(platform: &mut P, walk: &Walk<A>) {
    conntrack::forget(platform, &walk.flow);
    if walk.claimed {
        nat::release(platform, &walk.flow, walk.port);
    }
}

/// An answer to who sent it, because it is too big.
#[inline(never)]
fn turn_back<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let teller = match walk.from {
        From::Pod | From::Host => reject::gateway(),
        From::World => platform.address(),
        // They fit what they came through.
        From::Tunnel | From::Masquerade => return Err(Reason::TooBig),
    };
    nat::undo(packet, &mut walk.flow, walk.tracked.original)?;
    reject::too_big(platform, packet, &walk.flow, walk.room, teller)?;
    walk.end(Verdict::Reject(Reason::TooBig))
}

/// What a connection through the tunnel may put into one segment.
#[inline(never)]
pub(super) fn fit_segments<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let room =
        overlay::room::<A>(&platform.node(), Route::REMOTE, walk.flow.direct != 0 || is_direct_reply(walk));
    mss::lower(platform, packet, &walk.flow, room)
}

/// Where to, and whether there is a way.
#[inline(never)]
fn leave<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    (walk.lends, walk.port, walk.claimed) = (false, Port::default(), false);
    walk.way = Way::default();
    let Walk { flow, tracked, choice, from, exit, pod: place, room, lends, route: next, .. } = &mut *walk;
    if let Some(pod) = route::local(platform, flow)? {
        (*exit, *place) = (Exit::Pod, pod);
        note_way(walk);
        return Ok(());
    }
    let route = route::next_hop(platform, flow)?;
    if route.kind == Route::HOST {
        // The node's answers are tracked, so an ICMP error among them needs a flow to be about.
        *exit = Exit::Host;
        return Ok(());
    }
    // What comes from elsewhere goes elsewhere only by way of a Service.
    let serves = from.is_elsewhere() && choice.is_some();
    let answers = !tracked.original && tracked.connection.frontend != A::default();
    if from.is_elsewhere() && !serves && !answers {
        return Err(Reason::NotLocal);
    }
    let most = overlay::room::<A>(&platform.node(), route.kind, flow.direct != 0);
    if !reject::fits(packet, (flow.transport, flow.protocol), most)? {
        *room = most;
        return Ok(());
    }
    // Replies leave as they are: to whoever reached a pod from outside, or a Service.
    *lends = tracked.original && (serves || route.kind == Route::WORLD);
    (*exit, *next) = (Exit::Elsewhere, route);
    note_way(walk);
    Ok(())
}

/// Which way it goes, if that is between a pod of this node and another node, for those of its flow that follow.
/// What is not as usual in other ways has no use for it, but does no harm: see [`conntrack::recall`].
#[inline(always)]
fn note_way<A: Address>(walk: &mut Walk<A>) {
    let Walk { flow, from, choice, exit, owner, pod, route, carried, way, generation, .. } = walk;
    let usual = flow.protocol == ip::protocol::TCP || flow.protocol == ip::protocol::UDP;
    if !usual || flow.error || flow.direct != 0 || !flow.piece.is_whole() {
        return;
    }
    // Who it is for is asked each time.
    if choice.leaving && flow.protocol == ip::protocol::UDP {
        return;
    }
    let sent = *from as u8 == From::Pod as u8 && *exit as u8 == Exit::Elsewhere as u8;
    let received = *from as u8 == From::Tunnel as u8 && *exit as u8 == Exit::Pod as u8;
    if sent && route.kind == Route::REMOTE {
        (way.node, way.mac, way.high) = (route.node, route.mac, 0);
        (way.interface, way.identity, way.pod_mac) = (owner.interface, owner.identity, owner.mac);
        way.generation = *generation;
    }
    if received {
        (way.node, way.high) = (carried.node, 1);
        (way.interface, way.identity, way.pod_mac) = (pod.interface, pod.identity, pod.mac);
        way.generation = *generation;
    }
}

/// A port of the node's address for what only the node may say.
#[inline(never)]
fn lend<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    let Walk { flow, tracked, carried, route, from, port, claimed, .. } = walk;
    if from.is_elsewhere() && route.kind == Route::REMOTE {
        // The tunnel says what the client is: its address says no more than the node's.
        carried.identity = policy::identity(platform, flow.source, carried.identity);
    }
    // The backend's node answers for itself.
    if flow.direct != 0 {
        return Ok(());
    }
    *port = tracked.connection.masquerade_port;
    // A flow may also have been opened while its target was still somewhere else.
    if tracked.is_new() || *port == Port::default() {
        nat::lends(flow)?;
        *port = nat::claim(platform, flow, *port)?;
        *claimed = true;
    }
    Ok(())
}

/// Leaves with the port that was lent to it.
#[inline(never)]
fn borrow<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    nat::masquerade(platform, packet, &mut walk.flow, walk.port)
}

/// To a pod of this node.
#[inline(never)]
fn to_pod<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let Walk { flow, pod, .. } = &mut *walk;
    route::pass_on::<A>(packet, hop(flow), Mac::GATEWAY, pod.mac)?;
    platform.lap(Lap::Route);
    trace::step(platform, || Record { number: pod.interface.0, ..flow.record(Stage::ToPod) });
    let interface = pod.interface;
    walk.end(Verdict::Deliver(interface))
}

/// What a packet has of hops to lose one of them.
#[inline(always)]
fn hop<A>(flow: &Flow<A>) -> (u8, u8) {
    (flow.hops, flow.protocol)
}

/// To whom the underlay knows the way: [`Route::WORLD`], [`Route::ROUTED`], [`Route::NATIVE`].
#[inline(never)]
fn to_neighbour<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    route::pass_on::<A>(packet, hop(&walk.flow), platform.node().mac, walk.route.mac)?;
    platform.lap(Lap::Route);
    to_underlay(platform, walk)
}

/// To another node, through the tunnel.
#[inline(never)]
fn to_tunnel<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let Walk { flow, route, carried, .. } = walk;
    route::take_hop::<A>(packet, flow.hops, flow.protocol)?;
    platform.lap(Lap::Route);
    overlay::wrap(platform, packet, flow, route, carried.identity)?;
    platform.lap(Lap::Overlay);
    to_underlay(platform, walk)
}

/// To the underlay: the frame is addressed already.
#[inline(always)]
fn to_underlay<A: Address, P: Machine>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    trace::step(platform, || walk.flow.record(Stage::ToUnderlay));
    walk.end(Verdict::Forward(platform.node().uplink))
}

/// To the node's own stack.
#[inline(always)]
pub(super) fn to_host<A: Address, P: Machine>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    trace::step(platform, || walk.flow.record(Stage::ToHost));
    walk.end(Verdict::Stack)
}

/// The end of a walk that was refused. Who finds nobody at a Service is told so here, whatever part of the walk asked
/// for a backend.
#[inline(always)]
pub(super) fn give_up<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
    reason: Reason,
) {
    walk.verdict = Some(Verdict::Drop(reason));
    // What came through the tunnel has no link to go back over.
    if reason as u8 == Reason::NoBackend as u8
        && walk.from as u8 != From::Tunnel as u8
        && turn_away(platform, packet, walk).is_ok()
    {
        walk.verdict = Some(Verdict::Reject(reason));
    }
}

/// An answer to who sent it, because there is nobody to answer.
#[inline(never)]
fn turn_away<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    nat::undo(packet, &mut walk.flow, true)?;
    reject::nobody_there(platform, packet, &walk.flow)
}
