//! Where policies are asked: about what a pod sends, about what comes to one, and, where flows are cut, about what
//! answers either. And whether who sends from elsewhere may say so.
//!
//! A flow that is cut ([`Node::CUT`]) ends on each node with the first packet that its policies there refuse, in
//! either direction; the next one is judged again. Its row stays as it is: it says whose packets these are, and ends
//! in its time once none come. So a flow goes on where it was if it is allowed again before that.
//!
//! Not judged again are
//! 1. what the pod's own node says to it, and answers to that: it may always reach it;
//! 2. a pod's answers to a node's address: that may stand for a client outside, whom only the tunnel named on the
//!    flow's way there. Such a flow is cut with its client's next packet;
//! 3. ICMP errors about a flow.

use super::{From, Part, Walk};
use crate::conntrack::{State, Tracked};
use crate::platform::{Machine, Platform};
use crate::policy::Question;
use crate::tables::{Endpoint, Identity, Node};
use crate::trace::Lap;
use crate::wire::Address;
use crate::{Reason, policy, route};

/// Whether policies judge a packet of its flow's first direction: if it opens the flow, or might be cut.
#[inline(always)]
fn is_judged<A>(platform: &impl Machine, tracked: &Tracked<A>) -> bool {
    tracked.is_new() || (tracked.state as u8 == State::Established as u8 && cuts(platform))
}

#[inline(always)]
fn cuts(platform: &impl Machine) -> bool {
    platform.node().established == Node::CUT
}

/// Whether a pod may send it.
#[inline(always)]
pub(super) fn of_sender<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    platform.lap(Lap::Nat);
    if !is_judged(platform, &walk.tracked) || policy::is_itself(&walk.flow) {
        return Ok(());
    }
    let first = walk.tracked.is_new();
    let asked = Question { first, ..Question::first(Endpoint::EGRESS, Identity::ANY) };
    let part = policy::judge(platform, &walk.flow, &walk.owner, asked);
    platform.lap(Lap::Policy);
    part
}

/// Whether it may come to the pod of this node that it is for.
#[inline(never)]
pub(super) fn of_receiver<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    let Walk { flow, tracked, from, pod, carried, .. } = &*walk;
    if !is_judged(platform, tracked) {
        return Ok(());
    }
    // 1.
    if *from == From::Host || (*from == From::Pod && policy::is_itself(flow)) {
        policy::waive(platform, flow);
        return Ok(());
    }
    let first = tracked.is_new();
    let asked = Question { first, ..Question::first(Endpoint::INGRESS, carried.identity) };
    let part = policy::judge(platform, flow, pod, asked);
    platform.lap(Lap::Policy);
    part
}

/// Whether an answer may still be given, where flows are cut: judged as what it answers, so before the Service's
/// address takes the place of who answers.
#[inline(always)]
pub(super) fn of_answer<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    platform.lap(Lap::Conntrack);
    if walk.tracked.state as u8 != State::Reply as u8 || !cuts(platform) || walk.flow.target == A::ITSELF {
        return Ok(());
    }
    if walk.from as u8 == From::Pod as u8 {
        of_answerer(platform, walk)?;
    }
    let part = of_client(platform, walk);
    platform.lap(Lap::Policy);
    part
}

/// For the pod that was dialled.
#[inline(never)]
fn of_answerer<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    // 1. and 2.
    if route::is_node(platform, walk.flow.target) {
        return Ok(());
    }
    policy::judge(platform, &walk.flow, &walk.owner, answer(Endpoint::INGRESS))
}

/// For the pod that has dialled.
#[inline(never)]
fn of_client<A: Address, P: Platform<A>>(platform: &mut P, walk: &mut Walk<A>) -> Part {
    let Some(pod) = route::at(platform, walk.flow.target) else {
        return Ok(());
    };
    policy::judge(platform, &walk.flow, &pod, answer(Endpoint::EGRESS))
}

#[inline(always)]
fn answer(direction: u8) -> Question {
    Question { direction, answers: true, first: false, carried: Identity::ANY }
}

/// Whether the sender of what came from elsewhere may say that it is who it is.
#[inline(never)]
pub(super) fn of_origin<A: Address, P: Platform<A>>(platform: &mut P, walk: &Walk<A>) -> Part {
    platform.lap(Lap::Nat);
    if walk.tracked.is_new() {
        let source = walk.flow.source;
        match walk.from {
            From::Masquerade => return Err(Reason::StaleMasquerade),
            // A client outside is passed on as it came.
            From::Tunnel if walk.flow.direct != 0 && route::is_inside(platform, source) => {
                return Err(Reason::TunnelSpoofed);
            }
            From::Tunnel if walk.flow.direct == 0 && !route::is_of(platform, source, walk.carried.node) => {
                return Err(Reason::TunnelSpoofed);
            }
            // Nodes dial each other's node ports by way of the underlay.
            From::World
                if route::is_inside(platform, source)
                    && !(walk.choice.is_some() && route::is_node(platform, source)) =>
            {
                return Err(Reason::Spoofed);
            }
            _ => {}
        }
    }
    Ok(())
}
