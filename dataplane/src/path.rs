//! The walk of a packet, whole: every branch of the path is on this page, or on that of its tails ([`tails`]), where policies
//! are asked ([`judge`]), or of the short way ([`known`]).
//!
//! ```text
//!  from_pod --+                                        +-- to_pod       (ingress policy, hand over)
//! from_host --+-- conntrack -> service -> policy ------+
//! from_underlay --+  (out of the tunnel first)         +-- to_underlay  (overlay, or masquerade)
//!                 |-- conntrack -> service -> route ---+-- to_host
//! ```
//! Heads say where a packet comes from, tails where it goes. A stage refuses with a [`Reason`]; `refuse` is
//! the one place that makes a drop of it.

mod judge;
mod known;
mod tails;

use crate::conntrack::{self, Tracked};
use crate::flow::{self, Flow};
use crate::overlay::Carried;
use crate::platform::{Machine, Packet, Platform};
use crate::service::Choice;
use crate::tables::{Connection, Endpoint, Identity, Masqueraded, Route, Way};
use crate::trace::{self, Lap, Record, Stage};
use crate::wire::{Address, Family, Port, V4, V6};
use crate::{Reason, Verdict, balance, fragment, nat, neighbour, overlay, route, service};
pub use known::from_tunnel_known;
use tails::{fit_segments, give_up, go, to_host};

/// Where a packet came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum From {
    #[default]
    Pod,
    Host,
    Tunnel,
    World,
    /// From outside, for a port that stands for somebody.
    Masquerade,
}

/// Where a packet leaves to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    #[default]
    Pod,
    Host,
    Elsewhere,
}

impl From {
    /// Whether it came to the node from elsewhere.
    #[inline(always)]
    fn is_elsewhere(self) -> bool {
        self as u8 >= From::Tunnel as u8
    }
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
    /// For whom the port that it came to stands.
    behind: Masqueraded<A>,
    carried: Carried,
    from: From,
    /// The way into the tunnel, if that is where it leads.
    route: Route,
    /// What the way has room for, if the packet is longer; else 0.
    room: u32,
    /// It is for a pod of this node, or came through the tunnel: the node has no part in it.
    ours: bool,
    /// Another flow has its two ends, and is translated in another way.
    conflict: bool,
    /// Where it leaves to.
    exit: Exit,
    /// The pod it is for, if that is where.
    pod: Endpoint,
    /// The pod it is from, if it is from one.
    owner: Endpoint,
    /// Which way it takes, for those of its flow that follow.
    way: Way,
    /// What the agent had written when it came.
    generation: u32,
    /// It leaves with the node's address, and this port if it is of a flow's first direction; else 0.
    lends: bool,
    port: Port,
    /// The port was claimed for it.
    claimed: bool,
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
    let bytes = packet.length();
    walk.verdict = None;
    let mut part = known::from_pod(platform, packet, walk);
    if part.is_err() && !platform.tracing() {
        // Whose it was is not told, for lack of stack; and nothing of the packet that was there before it.
        walk.flow = Flow { length: bytes, ..Flow::default() };
    }
    if part.is_ok() && walk.verdict.is_none() {
        start(platform, packet, walk, From::Pod);
        part = pod_enter(platform, packet, walk);
    }
    // Of a family that nobody has an address of, it has come to its end.
    if platform.node().speaks::<A>() {
        if part.is_ok() && walk.verdict.is_none() {
            part = meet(platform, packet, walk);
        }
        if part.is_ok() && walk.verdict.is_none() {
            part = judge::of_sender(platform, walk);
        }
        if part.is_ok() && walk.verdict.is_none() {
            part = go(platform, packet, walk);
        }
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
    // What the short way has read is not read again.
    if !walk.carried.missed
        && let Err(reason) = flow::read(packet, flow)
    {
        if reason as u8 == Reason::NeedsNoAnswer as u8 {
            neighbour::answer(packet, flow)?;
            return walk.end(Verdict::Answer);
        }
        return Err(reason);
    }
    head(platform, packet, flow, Stage::FromPod);
    let pod = route::owner(platform, flow, packet.interface())?;
    platform.lap(Lap::Route);
    walk.carried.identity = pod.identity;
    walk.owner = pod;
    // Nor does anybody look for its flow again.
    if walk.carried.missed {
        walk.tracked.forget();
        return Ok(());
    }
    enter(platform, walk)
}

/// A packet that the node itself sent to a pod or a Service.
#[inline(always)]
pub fn from_host<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Verdict {
    walk.carried = Carried::default();
    let bytes = start(platform, packet, walk, From::Host);
    let mut part = host_enter(platform, packet, walk);
    if part.is_ok() && walk.verdict.is_none() {
        part = meet(platform, packet, walk);
    }
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
    if !platform.node().speaks::<A>() {
        return Err(Reason::Blackhole);
    }
    walk.carried.identity = Identity::REMOTE_NODE;
    enter(platform, walk)
}

/// Takes what arrived at the node out of the tunnel, if it is in it: the first thing for every frame from the
/// underlay, whose family may be another one inside. What it brings along is left in `carried`, as
/// [`from_tunnel_known`] has left that. Then [`from_underlay`].
///
/// # Errors
/// What is refused here: the reason is counted already.
#[inline(always)]
pub fn from_tunnel<P: Machine, K: Packet>(platform: &mut P, packet: &mut K, carried: &mut Carried) -> Part {
    open_tunnel(platform, packet, carried)?;
    if carried.is_some() {
        return Ok(());
    }
    from_balancer(platform, packet)
}

#[inline(never)]
fn open_tunnel<P: Machine, K: Packet>(platform: &mut P, packet: &mut K, carried: &mut Carried) -> Part {
    let outer = match flow::family(packet) {
        Family::V4 => flow::datagram::<V4>(packet),
        Family::V6 => flow::datagram::<V6>(packet),
    };
    let Some(outer) = outer else {
        return Ok(());
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
    walk.carried = *carried;
    let mut bytes = start(platform, packet, walk, From::World);
    if carried.is_some() {
        bytes = carried.length;
        walk.from = From::Tunnel;
    }
    let mut part = underlay_enter(platform, packet, walk);
    // Of a family that nobody has an address of, it has come to its end.
    if platform.node().speaks::<A>() {
        if part.is_ok() && walk.verdict.is_none() {
            part = underlay_meet(platform, packet, walk);
        }
        if part.is_ok() && carried.is_some() {
            part = fit_segments(platform, packet, walk);
        }
        if part.is_ok() && walk.verdict.is_none() {
            part = go(platform, packet, walk);
        }
    }
    close(platform, packet, walk, (bytes, part))
}

/// Who speaks to whom.
#[inline(never)]
fn underlay_enter<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let Walk { flow, behind, carried, from, ours, .. } = &mut *walk;
    *ours = true;
    if *from == From::Tunnel {
        if !carried.missed {
            flow::read(packet, flow)?;
        }
        if !platform.node().speaks::<A>() {
            return Err(Reason::TunnelSpoofed);
        }
        fragment::follow(platform, flow)?;
        // An echo has no port that a Service could be dialled at.
        if carried.is_direct() && flow.protocol != A::ICMP.protocol {
            carried.tell(flow);
            return Ok(());
        }
    } else {
        if flow::ethertype(packet)? != A::ETHERTYPE {
            return walk.end(Verdict::Stack);
        }
        // A switch that has not learned yet where another node is floods what is for that one.
        if flow::link_target(packet)? != platform.node().mac {
            return walk.end(Verdict::Stack);
        }
        *ours = route::is_here(platform, flow::target(packet)?);
        if let Err(reason) = flow::read(packet, flow) {
            return if *ours { Err(reason) } else { walk.end(Verdict::Stack) };
        }
        head(platform, packet, flow, Stage::FromUnderlay);
        if !platform.node().speaks::<A>() {
            return to_host(platform, walk);
        }
        if let Err(reason) = fragment::follow(platform, flow) {
            return if *ours { Err(reason) } else { to_host(platform, walk) };
        }
    }
    if nat::stands_for(platform, flow, behind) {
        *from = From::Masquerade;
    }
    platform.lap(Lap::Parse);
    Ok(())
}

/// What goes through what comes from elsewhere: Service, then flow.
#[inline(always)]
fn underlay_meet<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    // Where its client was told to go, its Service has been found already.
    if walk.from != From::Masquerade && walk.flow.direct == 0 {
        if walk.carried.missed {
            walk.tracked.forget();
        } else if let Err(reason) = conntrack::track(platform, &walk.flow, &mut walk.tracked) {
            let others = !walk.ours && reason as u8 == Reason::UnknownIcmp as u8;
            return if others { to_host(platform, walk) } else { Err(reason) };
        }
        if walk.tracked.is_new() || walk.tracked.is_dialled() {
            pick(platform, walk)?;
        }
        // What is for nobody but the node, and no answer to what that sent through here, is its own affair.
        let known = !walk.tracked.is_new() && walk.flow.target == platform.address();
        if !walk.ours && !known && !walk.choice.is_some() {
            return to_host(platform, walk);
        }
    }
    underlay_turn(platform, packet, walk)?;
    if walk.choice.is_some() {
        serve(platform, packet, walk)?;
    } else if walk.flow.direct != 0 && walk.conflict {
        make_way(platform, packet, walk)?;
    }
    settle(platform, packet, walk)?;
    judge::of_origin(platform, walk)
}

/// Remembers its ports, if it is in fragments; and makes it one for whom the node's address stands.
#[inline(never)]
fn underlay_turn<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    fragment::remember(platform, &walk.flow)?;
    if walk.from == From::Masquerade {
        nat::restore(platform, packet, &mut walk.flow, &walk.behind)?;
        conntrack::track(platform, &walk.flow, &mut walk.tracked)?;
    } else if walk.flow.direct != 0 {
        track(platform, walk)?;
    }
    Ok(())
}

/// What every packet of the node's own pods and processes goes through first: what is known of it.
#[inline(always)]
fn enter<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    fragment::follow(platform, &mut walk.flow)?;
    fragment::remember(platform, &walk.flow)?;
    track(platform, walk)
}

/// What they go through then: Service, then flow.
#[inline(always)]
fn meet<A: Address, P: Platform<A>, K: Packet>(platform: &mut P, packet: &mut K, walk: &mut Walk<A>) -> Part {
    if walk.conflict {
        make_way(platform, packet, walk)?;
    }
    if conntrack::asks(&walk.flow, &walk.tracked) {
        pick(platform, walk)?;
        if walk.choice.is_some() {
            serve(platform, packet, walk)?;
        }
    }
    settle(platform, packet, walk)
}

/// Notes its place in its flow. What answers a client comes from what that dialled, to where it dialled from.
#[inline(always)]
fn settle<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    conntrack::note(platform, &walk.flow, &walk.tracked);
    judge::of_answer(platform, walk)?;
    let row = &walk.tracked.connection;
    if walk.tracked.original || (row.frontend == A::default() && row.client_port == Port::default()) {
        return Ok(());
    }
    conntrack::mirror(platform, &walk.flow, row);
    answer(platform, packet, walk)
}

/// Finds its flow, and whether another port would help if there is another there.
#[inline(always)]
fn track<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    walk.conflict = false;
    if let Err(reason) = conntrack::track(platform, &walk.flow, &mut walk.tracked) {
        if reason as u8 != Reason::FlowConflict as u8 {
            return Err(reason);
        }
        walk.conflict = true;
    }
    Ok(())
}

/// Where a Service sends it, if one is dialled: to whom the client was given before, or to whom is chosen now.
#[inline(never)]
fn pick<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    platform.lap(Lap::Conntrack);
    let Walk { flow, tracked, choice, from, .. } = walk;
    if tracked.is_dialled() {
        service::keep(platform, flow, &tracked.connection, choice);
        platform.lap(Lap::Service);
        if choice.is_some() {
            return Ok(());
        }
        tracked.forget();
    }
    service::choose(platform, flow, *from == From::World, choice)?;
    choice.direct = choice.direct && route::is_direct(platform, flow.source, choice.address);
    platform.lap(Lap::Service);
    Ok(())
}

/// To the backend that was picked: from here on the flow is the one between that and the client.
#[inline(always)]
fn serve<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    turn(platform, packet, walk)?;
    if walk.conflict {
        make_way(platform, packet, walk)?;
    }
    // Who has a row of the flow needs none to be opened, but the other one.
    if !walk.tracked.is_new() && !walk.choice.kept {
        conntrack::dial(platform, &walk.flow, &Way::default())?;
    }
    Ok(())
}

#[inline(never)]
fn turn<A: Address, P: Platform<A>, K: Packet>(platform: &mut P, packet: &mut K, walk: &mut Walk<A>) -> Part {
    let Walk { flow, choice, from, .. } = &mut *walk;
    service::note(platform, flow, choice);
    nat::to_backend(packet, flow, (choice.address, choice.port), choice.backend)?;
    // A pod that is its own backend.
    if flow.target == flow.source && !from.is_elsewhere() {
        nat::meet_itself(packet, flow)?;
    }
    if choice.direct {
        flow.direct = Connection::<A>::AWAY;
        walk.conflict = false;
        return Ok(());
    }
    if choice.client_port != Port::default() {
        nat::stand_in(platform, packet, flow, choice.client_port)?;
    }
    platform.lap(Lap::Nat);
    track(platform, walk)
}

/// Another port for the client: a flow of its own with the same two ends goes another way.
#[inline(always)]
fn make_way<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    stand_in(platform, packet, walk)?;
    conntrack::track(platform, &walk.flow, &mut walk.tracked)
}

#[inline(never)]
fn stand_in<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    let mut port = Port::default();
    conntrack::find_port(platform, &walk.flow, &mut port)?;
    nat::stand_in(platform, packet, &mut walk.flow, port)
}

#[inline(never)]
fn answer<A: Address, P: Platform<A>, K: Packet>(
    platform: &mut P,
    packet: &mut K,
    walk: &mut Walk<A>,
) -> Part {
    nat::to_client(platform, packet, &mut walk.flow, &walk.tracked.connection)
}

/// The head's line in the trace.
#[inline(always)]
fn head<A: Address, P: Machine, K: Packet>(platform: &mut P, packet: &K, flow: &Flow<A>, stage: Stage) {
    let interface = packet.interface().0;
    trace::step(platform, || Record { number: interface, ..flow.record(stage) });
    platform.lap(Lap::Parse);
}

/// Begins a walk of which nothing is known but where it begins, and what the short way has read. The length the frame
/// arrives with.
#[inline(always)]
fn start<A: Address, P: Machine>(platform: &P, packet: &impl Packet, walk: &mut Walk<A>, from: From) -> u32 {
    let bytes = packet.length();
    walk.generation = platform.generation();
    if !walk.carried.missed {
        walk.flow = Flow { length: bytes, ..Flow::default() };
    }
    walk.from = from;
    walk.choice = Choice::default();
    walk.conflict = false;
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
