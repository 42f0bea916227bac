//! The walk of a packet, whole: every branch of the path is on this page.
//!
//! ```text
//!  from_pod --+                                  +-- to_pod       (ingress policy, hand over)
//! from_host --+-- service -> conntrack -> policy |
//! from_underlay --+  (out of the tunnel first)   +-- to_underlay  (overlay, or masquerade)
//!                 |        -> route -------------+-- to_host
//! ```
//! Heads say where a packet comes from, tails where it goes. A stage refuses with a [`Reason`]; `close` is
//! the one place that makes a drop of it.

use crate::conntrack::{self, State, Tracked};
use crate::flow::{self, Flow};
use crate::overlay::Carried;
use crate::platform::{Machine, Packet, Platform};
use crate::route;
use crate::tables::{Endpoint, Identity, Route};
use crate::trace::{self, Record, Stage};
use crate::wire::{Address, Family, Mac, Port, V4, V6};
use crate::{Reason, Verdict, fragment, mss, nat, neighbour, overlay, policy, reject, service};

/// Where a packet came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Pod,
    Host,
    Tunnel,
    World,
    /// From the world, for a port that stands for a pod.
    Masquerade,
}

/// A packet that a pod sent.
#[inline(always)]
pub fn from_pod<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
) -> Verdict {
    let bytes = start(packet, flow);
    let walked = pod_walk(platform, packet, flow);
    close(platform, flow.record(Stage::Drop), bytes, walked)
}

#[inline(always)]
fn pod_walk<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
) -> Result<Verdict, Reason> {
    if let Err(reason) = flow::read(packet, flow) {
        if reason as u8 == Reason::NeedsNoAnswer as u8 {
            return neighbour::answer(packet, flow);
        }
        return Err(reason);
    }
    head(platform, packet, flow, Stage::FromPod);
    let pod = route::owner(platform, flow, packet.interface())?;
    fragment::follow(platform, flow)?;
    fragment::remember(platform, flow)?;
    let tracked = enter(platform, packet, flow)?;
    if tracked.state as u8 == State::New as u8 && !policy::is_itself(flow) {
        policy::judge(platform, flow, &pod, (Endpoint::EGRESS, Identity::ANY))?;
    }
    leave(platform, packet, flow, &tracked, (From::Pod, pod.identity))
}

/// A packet that the node itself sent to a pod or a Service.
#[inline(always)]
pub fn from_host<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
) -> Verdict {
    let bytes = start(packet, flow);
    let walked = host_walk(platform, packet, flow);
    close(platform, flow.record(Stage::Drop), bytes, walked)
}

#[inline(always)]
fn host_walk<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
) -> Result<Verdict, Reason> {
    flow::read(packet, flow)?;
    head(platform, packet, flow, Stage::FromHost);
    fragment::follow(platform, flow)?;
    fragment::remember(platform, flow)?;
    let tracked = enter(platform, packet, flow)?;
    leave(platform, packet, flow, &tracked, (From::Host, Identity::REMOTE_NODE))
}

/// Takes what arrived at the node out of the tunnel, if it is in it: the first thing for every frame from the
/// underlay, whose family may be another one inside. Then [`from_underlay`].
///
/// # Errors
/// The verdict on what is refused here.
#[inline(always)]
pub fn from_tunnel<P: Machine, K: Packet>(platform: &mut P, packet: &mut K) -> Result<Carried, Verdict> {
    let outer = match flow::family(packet) {
        Family::V4 => flow::datagram::<V4>(packet),
        Family::V6 => flow::datagram::<V6>(packet),
    };
    let Some(outer) = outer else {
        return Ok(Carried::default());
    };
    if !overlay::is_tunnel(&platform.node(), &outer) {
        return Ok(Carried::default());
    }
    let number = packet.interface().0;
    trace::step(platform, || Record { number, ..outer.record(Stage::FromUnderlay) });
    match overlay::unwrap(platform, packet, &outer) {
        Ok(carried) => Ok(carried),
        Err(reason) => Err(close(platform, outer.record(Stage::Drop), outer.length, Err(reason))),
    }
}

/// A packet that arrived at the node, out of the tunnel if it was in it. What is for neither the node's pods
/// nor its tunnel is the node's own affair.
#[inline(always)]
pub fn from_underlay<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
    carried: &Carried,
) -> Verdict {
    let mut bytes = start(packet, flow);
    if carried.is_some() {
        bytes = carried.length;
    }
    let walked = underlay_walk(platform, packet, flow, carried);
    close(platform, flow.record(Stage::Drop), bytes, walked)
}

#[inline(always)]
fn underlay_walk<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
    carried: &Carried,
) -> Result<Verdict, Reason> {
    let mut from = From::World;
    if carried.is_some() {
        from = From::Tunnel;
        flow::read(packet, flow)?;
        fragment::follow(platform, flow)?;
        fragment::remember(platform, flow)?;
    } else {
        if flow::ethertype(packet)? != A::ETHERTYPE {
            return Ok(Verdict::Stack);
        }
        let target = flow::target(packet)?;
        if !route::is_here(platform, target) {
            return Ok(Verdict::Stack);
        }
        let for_node = target == platform.address();
        if let Err(reason) = flow::read(packet, flow) {
            return if for_node { Ok(Verdict::Stack) } else { Err(reason) };
        }
        head(platform, packet, flow, Stage::FromUnderlay);
        if let Err(reason) = fragment::follow(platform, flow) {
            return if for_node { to_host(platform, flow) } else { Err(reason) };
        }
        let pod = nat::stands_for(platform, flow);
        if pod.is_none() && for_node {
            return to_host(platform, flow);
        }
        fragment::remember(platform, flow)?;
        if let Some(pod) = pod {
            nat::restore(platform, packet, flow, &pod)?;
            from = From::Masquerade;
        }
    }
    let tracked = conntrack::track(platform, flow)?;
    if tracked.state as u8 == State::New as u8 {
        match from {
            From::Masquerade => return Err(Reason::StaleMasquerade),
            From::Tunnel if !route::is_of(platform, flow.source, carried.node) => {
                return Err(Reason::TunnelSpoofed);
            }
            From::World if route::is_inside(platform, flow.source) => {
                return Err(Reason::Spoofed);
            }
            _ => {}
        }
    }
    if !tracked.original {
        nat::from_frontend(platform, packet, flow, &tracked.connection)?;
    }
    if let Some(pod) = route::local(platform, flow)? {
        return to_pod(platform, packet, flow, &tracked, (pod, from, carried.identity));
    }
    if route::next_hop(platform, flow)?.kind != Route::HOST {
        return Err(Reason::NotLocal);
    }
    // The node's answers are tracked, so an ICMP error among them needs a flow to be about.
    if tracked.state as u8 == State::New as u8 {
        conntrack::open(platform, flow, Port::default())?;
    }
    to_host(platform, flow)
}

/// What every packet of the node's own pods and processes goes through first: Service, then flow.
#[inline(always)]
fn enter<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
) -> Result<Tracked<A>, Reason> {
    if let Some(backend) = service::choose(platform, flow)? {
        nat::to_backend(packet, flow, &backend)?;
    }
    let tracked = conntrack::track(platform, flow)?;
    if !tracked.original {
        nat::from_frontend(platform, packet, flow, &tracked.connection)?;
    }
    Ok(tracked)
}

/// What it goes through last: route, then the tail that the route names. `identity` is what other nodes take
/// the sender for.
#[inline(always)]
fn leave<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
    tracked: &Tracked<A>,
    (from, identity): (From, Identity),
) -> Result<Verdict, Reason> {
    let new = tracked.state as u8 == State::New as u8;
    if let Some(pod) = route::local(platform, flow)? {
        return to_pod(platform, packet, flow, tracked, (pod, from, identity));
    }
    let route = route::next_hop(platform, flow)?;
    let room = overlay::room(&platform.node(), route.kind);
    if route.kind != Route::HOST && !reject::fits(packet, flow, room)? {
        nat::undo(packet, flow)?;
        return reject::too_big(platform, packet, flow, room);
    }
    match route.kind {
        Route::HOST => {
            if new {
                conntrack::open(platform, flow, Port::default())?;
            }
            to_host(platform, flow)
        }
        Route::REMOTE => {
            mss::lower(platform, packet, flow, room)?;
            if new {
                conntrack::open(platform, flow, Port::default())?;
            }
            route::pass_on(packet, flow, Mac::GATEWAY, route.mac)?;
            overlay::wrap(platform, packet, flow, &route, identity)?;
            to_underlay(platform, flow)
        }
        Route::WORLD => {
            let mut port = tracked.connection.masquerade_port;
            // A flow may also have been opened while its target was still somewhere else.
            if new || (tracked.original && port == Port::default()) {
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
            to_underlay(platform, flow)
        }
        // Route::ROUTED, Route::NATIVE.
        _ => {
            if new {
                conntrack::open(platform, flow, Port::default())?;
            }
            route::pass_on(packet, flow, platform.node().mac, route.mac)?;
            to_underlay(platform, flow)
        }
    }
}

/// To a pod of this node, if its policies agree.
#[inline(always)]
fn to_pod<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    flow: &mut Flow<A>,
    tracked: &Tracked<A>,
    (pod, from, identity): (Endpoint, From, Identity),
) -> Result<Verdict, Reason> {
    if tracked.state as u8 == State::New as u8 {
        if from == From::Host || (from == From::Pod && policy::is_itself(flow)) {
            policy::waive(platform, flow, &pod);
        } else {
            policy::judge(platform, flow, &pod, (Endpoint::INGRESS, identity))?;
        }
        conntrack::open(platform, flow, Port::default())?;
    }
    if from as u8 == From::Tunnel as u8 {
        let room = overlay::room(&platform.node(), Route::REMOTE);
        mss::lower(platform, packet, flow, room)?;
    }
    route::pass_on(packet, flow, Mac::GATEWAY, pod.mac)?;
    trace::step(platform, || Record { number: pod.interface.0, ..flow.record(Stage::ToPod) });
    Ok(Verdict::Deliver(pod.interface))
}

/// To the underlay: the frame is addressed already.
#[inline(always)]
fn to_underlay<A: Address, P: Machine>(platform: &mut P, flow: &Flow<A>) -> Result<Verdict, Reason> {
    trace::step(platform, || flow.record(Stage::ToUnderlay));
    Ok(Verdict::Forward(platform.node().uplink))
}

/// To the node's own stack.
#[inline(always)]
fn to_host<A: Address, P: Machine>(platform: &mut P, flow: &Flow<A>) -> Result<Verdict, Reason> {
    trace::step(platform, || flow.record(Stage::ToHost));
    Ok(Verdict::Stack)
}

/// The head's line in the trace.
#[inline(always)]
fn head<A: Address, P: Machine, K: Packet>(platform: &mut P, packet: &K, flow: &Flow<A>, stage: Stage) {
    let interface = packet.interface().0;
    trace::step(platform, || Record { number: interface, ..flow.record(stage) });
}

/// Begins with a flow of which nothing is known. The length the frame arrives with.
#[inline(always)]
fn start<A: Address>(packet: &impl Packet, flow: &mut Flow<A>) -> u32 {
    let bytes = packet.length();
    *flow = Flow { length: bytes, ..Flow::default() };
    bytes
}

/// Makes a walk's end a verdict, and counts it.
#[inline(always)]
fn close(
    platform: &mut impl Machine,
    record: Record,
    bytes: u32,
    walked: Result<Verdict, Reason>,
) -> Verdict {
    let verdict = match walked {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    };
    if let Verdict::Reject(reason) | Verdict::Drop(reason) = verdict {
        platform.report(&Record { detail: reason as u8, ..record });
    }
    platform.count(verdict, bytes);
    verdict
}
