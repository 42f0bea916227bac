//! The walk of a packet, whole: every branch of the path is on this page.
//!
//! ```text
//!  from_pod --+                                  +-- to_pod       (ingress policy, hand over)
//! from_host --+-- service -> conntrack -> policy |
//! from_underlay --+  (out of the tunnel first)   +-- to_underlay  (overlay, or masquerade)
//!                 |        -> route -------------+-- to_host
//! ```
//! Heads say where a packet comes from, tails where it goes. A stage refuses with a [`Reason`]; `refuse` is
//! the one place that makes a drop of it.

use crate::conntrack::{self, State, Tracked};
use crate::flow::{self, Flow};
use crate::overlay::Carried;
use crate::platform::{Machine, Packet, Platform};
use crate::route;
use crate::service::Choice;
use crate::tables::{Connection, Endpoint, Identity, Route};
use crate::trace::{self, Record, Stage};
use crate::wire::{Address, Family, Mac, Port, V4, V6};
use crate::{Reason, Verdict, balance, fragment, mss, nat, neighbour, overlay, policy, reject, service};

/// Where a packet came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum From {
    #[default]
    Pod,
    Host,
    Tunnel,
    World,
    /// From the world, for a port that stands for a pod.
    Masquerade,
    /// From whom the node itself sent a packet to, for the node.
    Peer,
}

/// What is known of a packet on its way. The engine has room for one.
///
/// The parts of a walk are functions of their own and leave here what the next one needs: a program in the
/// kernel has 512 bytes of stack for a function and all that it calls, and addresses of sixteen bytes soon
/// fill them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk<A> {
    flow: Flow<A>,
    tracked: Tracked<A>,
    /// Where a Service sends it.
    choice: Choice<A>,
    carried: Carried,
    from: From,
    /// The way into the tunnel, if that is where it leads.
    route: Route,
    /// What the way has room for, if the packet is longer; else 0.
    room: u32,
    /// The end of it, once it has come to one.
    verdict: Option<Verdict>,
}

impl<A> Walk<A> {
    /// Ends here.
    #[inline(always)]
    fn end(&mut self, verdict: Verdict) -> Part {
        self.verdict = Some(verdict);
        Ok(())
    }
}

/// What a part of a walk comes to. If it goes well, and to no end, the next part goes on.
///
/// Verdicts are not handed back by value: those that name no interface leave their other bytes undefined, and
/// where the compiler lets a pointer stand there the verifier refuses it ("bitwise operator &= on pointer
/// prohibited", kernel 6.18). It can go when every program loads without.
type Part = Result<(), Reason>;

/// A packet that a pod sent.
#[inline(always)]
pub fn from_pod<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Verdict {
    let bytes = start(packet, walk, From::Pod);
    let mut part = pod_enter(platform, packet, walk);
    if part.is_ok() && walk.verdict.is_none() {
        part = go(platform, packet, walk);
    }
    close(platform, packet, walk, (bytes, part))
}

#[inline(never)]
fn pod_enter<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let flow = &mut walk.flow;
    if let Err(reason) = flow::read(packet, flow) {
        if reason as u8 == Reason::NeedsNoAnswer as u8 {
            neighbour::answer(packet, flow)?;
            return walk.end(Verdict::Answer);
        }
        return Err(reason);
    }
    head(platform, packet, flow, Stage::FromPod);
    let pod = route::owner(platform, flow, packet.interface())?;
    walk.carried.identity = pod.identity;
    enter(platform, packet, walk)?;
    if walk.tracked.is_new() && !policy::is_itself(&walk.flow) {
        policy::judge(platform, &walk.flow, &pod, (Endpoint::EGRESS, Identity::ANY))?;
    }
    Ok(())
}

/// A packet that the node itself sent to a pod or a Service.
#[inline(always)]
pub fn from_host<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Verdict {
    let bytes = start(packet, walk, From::Host);
    let mut part = host_enter(platform, packet, walk);
    if part.is_ok() && walk.verdict.is_none() {
        part = go(platform, packet, walk);
    }
    close(platform, packet, walk, (bytes, part))
}

#[inline(never)]
fn host_enter<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    flow::read(packet, &mut walk.flow)?;
    head(platform, packet, &walk.flow, Stage::FromHost);
    walk.carried.identity = Identity::REMOTE_NODE;
    enter(platform, packet, walk)?;
    Ok(())
}

/// Takes what arrived at the node out of the tunnel, if it is in it: the first thing for every frame from the
/// underlay, whose family may be another one inside. What it brings along is left in `carried`, which knows of
/// nothing yet. Then [`from_underlay`].
///
/// # Errors
/// What is refused here: the reason is counted already.
#[inline(always)]
pub fn from_tunnel<P: Machine, K: Packet>(platform: &mut P, packet: &mut K, carried: &mut Carried) -> Part {
    let outer = match flow::family(packet) {
        Family::V4 => flow::datagram::<V4>(packet),
        Family::V6 => flow::datagram::<V6>(packet),
    };
    let Some(outer) = outer else {
        return from_balancer(platform, packet);
    };
    if !overlay::is_tunnel(&platform.node(), &outer) {
        return Ok(());
    }
    let number = packet.interface().0;
    trace::step(platform, || Record { number, ..outer.record(Stage::FromUnderlay) });
    overlay::unwrap(platform, packet, &outer, carried)
        .inspect_err(|reason| refuse(platform, outer.record(Stage::Drop), outer.length, *reason))
}

/// Takes what the load balancer has put into another packet out of that. Nobody else may do so towards the node:
/// what is refused is counted already.
#[inline(never)]
fn from_balancer<P: Machine, K: Packet>(platform: &mut P, packet: &mut K) -> Part {
    let node = platform.node();
    if node.balanced == 0 {
        return Ok(());
    }
    let Some(outer) = balance::outer(packet) else {
        return Ok(());
    };
    let mut part = Ok(());
    if balance::is_outer(outer.source) {
        let number = packet.interface().0;
        trace::step(platform, || Record { number, ..outer.record(Stage::FromUnderlay) });
        if packet.close_ip(outer.source.family()).is_none() {
            part = Err(Reason::WriteFailed);
        }
    } else if outer.target == node.underlay {
        part = Err(Reason::UnknownTunnelSource);
    }
    part.inspect_err(|reason| refuse(platform, outer.record(Stage::Drop), outer.length, *reason))
}

/// A packet that arrived at the node, out of the tunnel if it was in it. What is for neither the node's pods
/// nor its tunnel is the node's own affair.
#[inline(always)]
pub fn from_underlay<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
    carried: &Carried,
) -> Verdict {
    let mut bytes = start(packet, walk, From::World);
    walk.carried = *carried;
    if carried.is_some() {
        bytes = carried.length;
        walk.from = From::Tunnel;
    }
    let mut part = underlay_enter(platform, packet, walk);
    if part.is_ok() && walk.from == From::Tunnel {
        part = fit_segments(platform, packet, walk);
    }
    if part.is_ok() && walk.verdict.is_none() {
        part = arrive(platform, packet, walk);
    }
    if part.is_ok() {
        part = nat::seal(packet, &walk.flow);
    }
    close(platform, packet, walk, (bytes, part))
}

#[inline(never)]
fn underlay_enter<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let flow = &mut walk.flow;
    if walk.from == From::Tunnel {
        flow::read(packet, flow)?;
        if walk.carried.is_direct() {
            flow.frontend = A::from_v6(walk.carried.frontend);
            flow.frontend_port = walk.carried.frontend_port;
            flow.direct = Connection::<A>::HERE;
        }
        fragment::follow(platform, flow)?;
        fragment::remember(platform, flow)?;
    } else {
        if flow::ethertype(packet)? != A::ETHERTYPE {
            return walk.end(Verdict::Stack);
        }
        let target = flow::target(packet)?;
        if !route::is_here(platform, target) {
            return walk.end(Verdict::Stack);
        }
        let for_node = target == platform.address();
        if let Err(reason) = flow::read(packet, flow) {
            return if for_node { walk.end(Verdict::Stack) } else { Err(reason) };
        }
        head(platform, packet, flow, Stage::FromUnderlay);
        if let Err(reason) = fragment::follow(platform, flow) {
            return if for_node { to_host(platform, walk) } else { Err(reason) };
        }
        let behind = nat::stands_for(platform, flow);
        let masqueraded = behind.pod != A::default();
        if for_node && !masqueraded {
            // What answers a packet that the node sent through here came from where that went.
            if !conntrack::knows(platform, flow) {
                return to_host(platform, walk);
            }
            walk.from = From::Peer;
        }
        fragment::remember(platform, flow)?;
        if masqueraded {
            nat::restore(platform, packet, flow, &behind)?;
            walk.from = From::Masquerade;
        }
    }
    conntrack::track(platform, flow, &mut walk.tracked)?;
    conntrack::note(platform, flow, &walk.tracked);
    if walk.tracked.is_new() {
        match walk.from {
            From::Masquerade => return Err(Reason::StaleMasquerade),
            // A client outside, whom the other node passes on as it came.
            From::Tunnel if flow.direct != 0 => {
                if route::is_inside(platform, flow.source) {
                    return Err(Reason::TunnelSpoofed);
                }
            }
            From::Tunnel if !route::is_of(platform, flow.source, walk.carried.node) => {
                return Err(Reason::TunnelSpoofed);
            }
            From::World if route::is_inside(platform, flow.source) => {
                return Err(Reason::Spoofed);
            }
            _ => {}
        }
    }
    answer(platform, packet, walk)
}

/// To whom it is for, on this node.
#[inline(never)]
fn arrive<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    if let Some(pod) = route::local(platform, &walk.flow)? {
        return to_pod(platform, packet, walk, &pod);
    }
    if route::next_hop(platform, &walk.flow)?.kind != Route::HOST {
        return Err(Reason::NotLocal);
    }
    // The node's answers are tracked, so an ICMP error among them needs a flow to be about.
    if walk.tracked.is_new() {
        conntrack::open(platform, &walk.flow, Port::default())?;
    }
    to_host(platform, walk)
}

/// What every packet of the node's own pods and processes goes through first: Service, then flow.
#[inline(always)]
fn enter<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Result<(), Reason> {
    let flow = &mut walk.flow;
    fragment::follow(platform, flow)?;
    fragment::remember(platform, flow)?;
    conntrack::track(platform, flow, &mut walk.tracked)?;
    if conntrack::asks(flow, &walk.tracked) {
        serve(platform, packet, walk)?;
    }
    conntrack::note(platform, &walk.flow, &walk.tracked);
    answer(platform, packet, walk)
}

/// To a backend, if a Service is dialled: the one that the client was given before, or one that is chosen now.
/// Then the flow is the one between client and backend.
#[inline(never)]
fn serve<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let Walk { flow, tracked, choice, .. } = walk;
    *choice = Choice::default();
    if tracked.is_dialled() {
        service::keep(platform, flow, &tracked.connection, choice);
        if !choice.is_some() {
            tracked.forget();
        }
    }
    if !choice.is_some() {
        service::choose(platform, flow, false, choice)?;
    }
    if !choice.is_some() {
        return Ok(());
    }
    service::note(platform, flow, choice);
    nat::to_backend(packet, flow, (choice.address, choice.port), choice.backend)?;
    conntrack::track(platform, flow, tracked)?;
    // Who has a row of the flow needs none to be opened, but the other one.
    if !tracked.is_new() && !choice.kept {
        return conntrack::dial(platform, flow);
    }
    Ok(())
}

/// What answers the client of a Service comes from what that dialled.
#[inline(always)]
fn answer<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let row = &walk.tracked.connection;
    if walk.tracked.original || row.frontend == A::default() {
        return Ok(());
    }
    conntrack::mirror(platform, &walk.flow, row);
    nat::from_frontend(platform, packet, &mut walk.flow, row)
}

/// What it goes through last.
#[inline(always)]
fn go<A: Address, P: Platform<A>, K: Packet>(platform: &mut P, packet: &mut K, walk: &mut Walk<A>) -> Part {
    // What its client sends comes through the tunnel, though this goes another way.
    if is_direct_reply(walk) {
        fit_segments(platform, packet, walk)?;
    }
    leave(platform, packet, walk)?;
    if walk.room != 0 {
        return turn_back(platform, packet, walk);
    }
    nat::seal(packet, &walk.flow)?;
    if walk.verdict.is_some() {
        return Ok(());
    }
    fit_segments(platform, packet, walk)?;
    to_tunnel(platform, packet, walk)
}

/// Whether it is an answer that goes straight to a client who dialled another node.
#[inline(always)]
fn is_direct_reply<A>(walk: &Walk<A>) -> bool {
    let Tracked { state, connection, .. } = &walk.tracked;
    *state as u8 == State::Reply as u8 && connection.direct == Connection::<A>::HERE
}

/// An answer to who sent it, because it is too big.
#[inline(never)]
fn turn_back<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    nat::undo(packet, &mut walk.flow)?;
    reject::too_big(platform, packet, &walk.flow, walk.room)?;
    walk.end(Verdict::Reject(Reason::TooBig))
}

/// What a connection through the tunnel may put into one segment.
#[inline(never)]
fn fit_segments<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let room =
        overlay::room::<A>(&platform.node(), Route::REMOTE, walk.flow.direct != 0 || is_direct_reply(walk));
    mss::lower(platform, packet, &walk.flow, room)
}

/// Route, then the tail that the route names.
#[inline(never)]
fn leave<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    if let Some(pod) = route::local(platform, &walk.flow)? {
        return to_pod(platform, packet, walk, &pod);
    }
    let Walk { flow, tracked, .. } = walk;
    let new = tracked.is_new();
    let route = route::next_hop(platform, flow)?;
    let room = overlay::room::<A>(&platform.node(), route.kind, flow.direct != 0);
    if route.kind != Route::HOST && !reject::fits(packet, flow, room)? {
        walk.room = room;
        return Ok(());
    }
    match route.kind {
        Route::HOST => {
            if new {
                conntrack::open(platform, flow, Port::default())?;
            }
            to_host(platform, walk)
        }
        Route::REMOTE => {
            if new {
                conntrack::open(platform, flow, Port::default())?;
            }
            walk.route = route;
            Ok(())
        }
        Route::WORLD => {
            let mut port = tracked.connection.masquerade_port;
            // A flow may also have been opened while its target was still somewhere else.
            if new || (tracked.original && port == Port::default()) {
                nat::lends(flow)?;
                port = nat::claim(platform, flow, port)?;
                if let Err(reason) = conntrack::open(platform, flow, port) {
                    nat::release(platform, flow, port);
                    return Err(reason);
                }
            }
            // Replies to whoever reached the pod from outside leave as they are.
            if tracked.original {
                nat::masquerade(platform, packet, flow, port)?;
            }
            route::pass_on(packet, flow, platform.node().mac, route.mac)?;
            to_underlay(platform, walk)
        }
        // Route::ROUTED, Route::NATIVE.
        _ => {
            if new {
                conntrack::open(platform, flow, Port::default())?;
            }
            route::pass_on(packet, flow, platform.node().mac, route.mac)?;
            to_underlay(platform, walk)
        }
    }
}

/// To a pod of this node, if its policies agree.
#[inline(always)]
fn to_pod<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
    pod: &Endpoint,
) -> Part {
    let Walk { flow, tracked, carried, from, .. } = walk;
    if tracked.is_new() {
        if *from == From::Host || (*from == From::Pod && policy::is_itself(flow)) {
            policy::waive(platform, flow, pod);
        } else {
            policy::judge(platform, flow, pod, (Endpoint::INGRESS, carried.identity))?;
        }
        conntrack::open(platform, flow, Port::default())?;
    }
    route::pass_on(packet, flow, Mac::GATEWAY, pod.mac)?;
    trace::step(platform, || Record { number: pod.interface.0, ..flow.record(Stage::ToPod) });
    walk.end(Verdict::Deliver(pod.interface))
}

/// To another node, through the tunnel.
#[inline(never)]
fn to_tunnel<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let Walk { flow, route, carried, .. } = walk;
    route::pass_on(packet, flow, Mac::GATEWAY, route.mac)?;
    overlay::wrap(platform, packet, flow, route, carried.identity)?;
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
fn to_host<A: Address, P: Machine>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    trace::step(platform, || walk.flow.record(Stage::ToHost));
    walk.end(Verdict::Stack)
}

/// The head's line in the trace.
#[inline(always)]
fn head<A: Address, P: Machine, K: Packet>(platform: &mut P, packet: &K, flow: &Flow<A>, stage: Stage) {
    let interface = packet.interface().0;
    trace::step(platform, || Record { number: interface, ..flow.record(stage) });
}

/// Begins a walk of which nothing is known but where it begins. The length the frame arrives with.
#[inline(always)]
fn start<A: Address>(packet: &impl Packet, walk: &mut Walk<A>, from: From) -> u32 {
    let bytes = packet.length();
    walk.flow = Flow { length: bytes, ..Flow::default() };
    walk.from = from;
    walk.room = 0;
    walk.verdict = None;
    bytes
}

/// Counts the end of a walk. One that comes to none cannot be; its packet would be the node's own affair.
#[inline(always)]
fn close<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
    (bytes, part): (u32, Part),
) -> Verdict {
    if let Err(reason) = part {
        give_up(platform, packet, walk, reason);
    }
    let verdict = walk.verdict.unwrap_or(Verdict::Stack);
    match verdict {
        Verdict::Drop(reason) | Verdict::Reject(reason) => drop(platform, &walk.flow, bytes, reason),
        _ => platform.count(verdict, bytes),
    }
    verdict
}

/// The end of a walk that was refused. Who finds nobody at a Service is told so here, whatever part of the walk asked
/// for a backend.
#[inline(never)]
fn give_up<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
    reason: Reason,
) {
    walk.verdict = Some(Verdict::Drop(reason));
    // What came through the tunnel has no link to go back over.
    if reason as u8 == Reason::NoBackend as u8
        && walk.from as u8 != From::Tunnel as u8
        && reject::nobody_there(platform, packet, &walk.flow).is_ok()
    {
        walk.verdict = Some(Verdict::Reject(reason));
    }
}

/// [`refuse`], for a packet whose flow is known.
#[inline(never)]
fn drop<A: Address>(platform: &mut impl Machine, flow: &Flow<A>, bytes: u32, reason: Reason) {
    refuse(platform, flow.record(Stage::Drop), bytes, reason);
}

/// The one place that makes a drop of a reason.
#[inline(always)]
fn refuse(platform: &mut impl Machine, record: Record, bytes: u32, reason: Reason) {
    platform.report(&Record { detail: reason as u8, ..record });
    platform.count(Verdict::Drop(reason), bytes);
}
