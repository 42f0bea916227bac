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

use crate::conntrack::{self, Tracked};
use crate::flow::{self, Flow};
use crate::overlay::Carried;
use crate::platform::{Machine, Packet, Platform};
use crate::route;
use crate::tables::{Endpoint, Identity, Route};
use crate::trace::{self, Record, Stage};
use crate::wire::{Address, Family, Mac, Port, V4, V6};
use crate::{Reason, Verdict, fragment, nat, neighbour, overlay, policy, service};

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
    carried: Carried,
    from: From,
    verdict: Verdict,
}

/// What a part of a walk comes to: whether it was the last. The verdict is then the walk's, and not in here:
/// a verdict has bytes that nobody wrote, and a register that is made of such is read by nobody's leave
/// ("R0 !read_ok", kernel 6.18).
type Part = Result<bool, Reason>;

/// A packet that a pod sent.
#[inline(always)]
pub fn from_pod<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Verdict {
    let bytes = start(packet, walk, From::Pod);
    let mut part = pod_enter(platform, packet, walk);
    if let Ok(false) = part {
        part = leave(platform, packet, walk);
    }
    close(platform, walk, bytes, part)
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
            walk.verdict = neighbour::answer(packet, flow)?;
            return Ok(true);
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
    Ok(false)
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
    if let Ok(false) = part {
        part = leave(platform, packet, walk);
    }
    close(platform, walk, bytes, part)
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
    Ok(false)
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
    overlay::unwrap(platform, packet, &outer)
        .map_err(|reason| refuse(platform, outer.record(Stage::Drop), outer.length, reason))
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
    if let Ok(false) = part {
        part = arrive(platform, packet, walk);
    }
    close(platform, walk, bytes, part)
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
        fragment::follow(platform, flow)?;
        fragment::remember(platform, flow)?;
    } else {
        if flow::ethertype(packet)? != A::ETHERTYPE {
            walk.verdict = Verdict::Stack;
            return Ok(true);
        }
        let target = flow::target(packet)?;
        if !route::is_here(platform, target) {
            walk.verdict = Verdict::Stack;
            return Ok(true);
        }
        let for_node = target == platform.address();
        if let Err(reason) = flow::read(packet, flow) {
            walk.verdict = Verdict::Stack;
            return if for_node { Ok(true) } else { Err(reason) };
        }
        head(platform, packet, flow, Stage::FromUnderlay);
        if let Err(reason) = fragment::follow(platform, flow) {
            return if for_node { to_host(platform, walk) } else { Err(reason) };
        }
        let behind = nat::stands_for(platform, flow);
        let masqueraded = behind.pod != A::default();
        if for_node && !masqueraded {
            return to_host(platform, walk);
        }
        fragment::remember(platform, flow)?;
        if masqueraded {
            nat::restore(platform, packet, flow, &behind)?;
            walk.from = From::Masquerade;
        }
    }
    conntrack::track(platform, flow, &mut walk.tracked)?;
    if walk.tracked.is_new() {
        match walk.from {
            From::Masquerade => return Err(Reason::StaleMasquerade),
            From::Tunnel if !route::is_of(platform, flow.source, walk.carried.node) => {
                return Err(Reason::TunnelSpoofed);
            }
            From::World if route::is_inside(platform, flow.source) => {
                return Err(Reason::Spoofed);
            }
            _ => {}
        }
    }
    if !walk.tracked.original {
        nat::from_frontend(platform, packet, flow, &walk.tracked.connection)?;
    }
    Ok(false)
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
    if let Some(backend) = service::choose(platform, flow)? {
        nat::to_backend(packet, flow, &backend)?;
    }
    conntrack::track(platform, flow, &mut walk.tracked)?;
    if !walk.tracked.original {
        nat::from_frontend(platform, packet, flow, &walk.tracked.connection)?;
    }
    Ok(())
}

/// What it goes through last: route, then the tail that the route names.
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
    match route.kind {
        Route::HOST => {
            if new {
                conntrack::open(platform, flow, Port::default())?;
            }
            to_host(platform, walk)
        }
        Route::REMOTE => {
            overlay::fit(platform, packet, &route)?;
            if new {
                conntrack::open(platform, flow, Port::default())?;
            }
            route::pass_on(packet, flow, Mac::GATEWAY, route.mac)?;
            overlay::wrap(platform, packet, flow, &route, walk.carried.identity)?;
            to_underlay(platform, walk)
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
    walk.verdict = Verdict::Deliver(pod.interface);
    Ok(true)
}

/// To the underlay: the frame is addressed already.
#[inline(always)]
fn to_underlay<A: Address, P: Machine>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    trace::step(platform, || walk.flow.record(Stage::ToUnderlay));
    walk.verdict = Verdict::Forward(platform.node().uplink);
    Ok(true)
}

/// To the node's own stack.
#[inline(always)]
fn to_host<A: Address, P: Machine>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    trace::step(platform, || walk.flow.record(Stage::ToHost));
    walk.verdict = Verdict::Stack;
    Ok(true)
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
    (walk.from, walk.verdict) = (from, Verdict::Stack);
    bytes
}

/// Counts a walk under its verdict.
#[inline(never)]
fn close<A: Address>(platform: &mut impl Machine, walk: &Walk<A>, bytes: u32, part: Part) -> Verdict {
    if let Err(reason) = part {
        return refuse(platform, walk.flow.record(Stage::Drop), bytes, reason);
    }
    platform.count(walk.verdict, bytes);
    walk.verdict
}

/// The one place that makes a drop of a reason.
#[inline(always)]
fn refuse(platform: &mut impl Machine, record: Record, bytes: u32, reason: Reason) -> Verdict {
    platform.report(&Record { detail: reason as u8, ..record });
    platform.count(Verdict::Drop(reason), bytes);
    Verdict::Drop(reason)
}
