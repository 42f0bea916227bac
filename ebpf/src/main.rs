//! Engine 1: the packet path in the kernel, one program per hook.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "only the compiler knows which offsets are constant: see bytes::bounded"
)]

mod answers;
mod bytes;
mod clock;
mod frame;
mod handover;
mod laps;
mod mapped;
mod maps;
mod measure;
mod platform;
mod socket;
mod whole;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use dataplane::overlay::{self, Carried};
use dataplane::path::Walk;
use dataplane::tables::IfIndex;
use dataplane::trace::{Lap, stopwatch};
use dataplane::wire::{Address, Family};
use dataplane::{Machine, Packet, Platform, Reason, Verdict, flow, path};

use crate::frame::Frame;
use crate::maps::Room;
use crate::platform::{Kernel, Skb};

/// Ingress of a pod's host-side interface: what the pod sends.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    laps::begin(stopwatch::FROM_POD);
    let frame = &mut Skb::new(context.skb.skb);
    let verdict = with_room(frame, |frame, room| match flow::family(frame) {
        Family::V4 => path::from_pod(&mut Kernel, frame, &mut room.v4),
        Family::V6 => path::from_pod(&mut Kernel, frame, &mut room.v6),
    });
    obey(&context, verdict)
}

/// Ingress of the uplink: what the underlay brings.
#[classifier]
pub fn from_underlay(context: TcContext) -> i32 {
    let frame = &mut Skb::new(context.skb.skb);
    if let Some((counter, interface)) = frame.known() {
        return go_on(counter, interface);
    }
    laps::begin(stopwatch::FROM_UNDERLAY);
    let verdict = with_room(frame, arrived);
    obey(&context, verdict)
}

/// The uplink's driver, where a node has this program there as well: what the underlay brings walks the path before
/// the kernel makes a packet of it. What goes out again does so at once; the rest comes to [`from_underlay`], which
/// only does what was found out here.
#[xdp]
pub fn from_wire(context: XdpContext) -> u32 {
    let frame = &mut Frame::new(context.ctx);
    if handover::open(context.ctx).is_none() {
        return XDP_PASS;
    }
    let verdict = with_room(frame, arrived);
    if level_enabled(Level::Debug) {
        log(&context, frame.interface(), verdict);
    }
    let passes = matches!(verdict, Verdict::Deliver(_) | Verdict::Stack);
    // A test run reads what became of frames that go out again.
    let done = if passes || is_asked() {
        handover::leave(context.ctx, verdict)
    } else {
        handover::close(context.ctx)
    };
    // The room was there: only the verifier cannot know it.
    if done.is_none() {
        return XDP_DROP;
    }
    // SAFETY: as in `obey`. Not `XDP_TX`: a veth whose other end has no program of its own does not wake it for that.
    match verdict {
        Verdict::Deliver(_) | Verdict::Stack => XDP_PASS,
        Verdict::Drop(_) => XDP_DROP,
        Verdict::Forward(interface) => (unsafe { bpf_redirect(interface.0, 0) }) as u32,
        Verdict::Answer | Verdict::Reject(_) => (unsafe { bpf_redirect(frame.interface().0, 0) }) as u32,
    }
}

/// Ingress of the node's own gateway interface: what the node's stack sends to pods.
#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    laps::begin(stopwatch::FROM_HOST);
    let frame = &mut Skb::new(context.skb.skb);
    let verdict = with_room(frame, |frame, room| match flow::family(frame) {
        Family::V4 => path::from_host(&mut Kernel, frame, &mut room.v4),
        Family::V6 => path::from_host(&mut Kernel, frame, &mut room.v6),
    });
    obey(&context, verdict)
}

/// Walks the path with the room it needs.
#[inline(always)]
fn with_room<K: Packet>(frame: &mut K, walk: impl FnOnce(&mut K, &mut Room) -> Verdict) -> Verdict {
    if let Some(room) = Room::of_this_cpu() {
        return walk(frame, room);
    }
    let lost = Verdict::Drop(Reason::WriteFailed);
    Kernel.count(lost, frame.length());
    lost
}

/// The walk of what the underlay brings.
#[inline(always)]
fn arrived<K: Packet>(frame: &mut K, room: &mut Room) -> Verdict {
    let mut verdict = Verdict::Stack;
    let known = match overlay::inside(frame) {
        Family::V4 => walk_short(frame, &mut room.v4, &mut room.carried, &mut verdict),
        Family::V6 => walk_short(frame, &mut room.v6, &mut room.carried, &mut verdict),
    };
    if !known {
        let part = path::from_tunnel(&mut Kernel, frame, &mut room.carried);
        Kernel.lap(Lap::Overlay);
        match part {
            Err(reason) => lose(reason, &mut verdict),
            Ok(()) => match flow::family(frame) {
                Family::V4 => walk_on(frame, &room.carried, &mut room.v4, &mut verdict),
                Family::V6 => walk_on(frame, &room.carried, &mut room.v6, &mut verdict),
            },
        }
    }
    verdict
}

/// Says that a frame is dropped. A function of its own: in place, the compiler puts the verdict together out of bytes
/// that nobody wrote ("R1 !read_ok", kernel 6.18). It can go when the programs load without.
#[inline(never)]
fn lose(reason: Reason, verdict: &mut Verdict) {
    *verdict = Verdict::Drop(reason);
}

/// Walks the short way, if that leads to an end.
#[inline(never)]
fn walk_short<A: Address, K: Packet>(
    frame: &mut K,
    walk: &mut Walk<A>,
    carried: &mut Carried,
    verdict: &mut Verdict,
) -> bool
where
    Kernel: Platform<A>,
{
    path::from_tunnel_known(&mut Kernel, frame, walk, (carried, verdict))
}

/// Walks on out of the tunnel. A function of its own: opening the tunnel needs most of the stack.
#[inline(never)]
fn walk_on<A: Address, K: Packet>(frame: &mut K, carried: &Carried, walk: &mut Walk<A>, verdict: &mut Verdict)
where
    Kernel: Platform<A>,
{
    *verdict = path::from_underlay(&mut Kernel, frame, walk, carried);
}

/// Whether a test run reads the verdict: one that traces, or one whose clock is told.
#[inline(always)]
fn is_asked() -> bool {
    Kernel.tracing() || clock::is_fixed()
}

/// Does what the path says.
#[inline(always)]
fn obey(context: &TcContext, verdict: Verdict) -> i32 {
    Kernel.lap(Lap::Rest);
    let mut frame = Skb::new(context.skb.skb);
    if is_asked() {
        frame.note(verdict);
    }
    // Asked here, because a call takes longer than the answer.
    if level_enabled(Level::Debug) {
        log(context, frame.interface(), verdict);
    }
    // SAFETY: these only note where to; the kernel checks the interface when the program has returned.
    let action = match verdict {
        Verdict::Deliver(interface) => (unsafe { bpf_redirect_peer(interface.0, 0) }) as i32,
        Verdict::Forward(interface) if Kernel.has_uplink_peer() => {
            (unsafe { bpf_redirect_peer(interface.0, 0) }) as i32
        }
        Verdict::Forward(interface) => (unsafe { bpf_redirect(interface.0, 0) }) as i32,
        Verdict::Answer | Verdict::Reject(_) => (unsafe { bpf_redirect(frame.interface().0, 0) }) as i32,
        Verdict::Stack => TC_ACT_OK as i32,
        Verdict::Drop(_) => TC_ACT_SHOT,
    };
    laps::end(Lap::Redirect);
    action
}

/// Does what the program in the driver has found out, which has sent on or dropped all but what is for a pod or the
/// node's own stack.
#[inline(always)]
fn go_on(counter: u32, interface: u32) -> i32 {
    if counter != const { Verdict::Deliver(IfIndex(0)).counter() } {
        return TC_ACT_OK as i32;
    }
    // SAFETY: as in `obey`.
    (unsafe { bpf_redirect_peer(interface, 0) }) as i32
}

/// Says so in the programs' own log, where somebody reads it. A function of its own, for the sake of its
/// caller's stack.
#[inline(never)]
fn log<C: EbpfContext>(context: &C, interface: IfIndex, verdict: Verdict) {
    debug!(context, "interface {}, verdict {}", interface.0, verdict.counter());
}
