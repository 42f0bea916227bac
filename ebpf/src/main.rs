//! Engine 1: the packet path in the kernel, one program per hook.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "only the compiler knows which offsets are constant: see bytes::bounded"
)]

mod bytes;
mod clock;
mod mapped;
mod maps;
mod platform;
mod socket;

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use dataplane::overlay::Carried;
use dataplane::path::Walk;
use dataplane::wire::{Family, V4, V6};
use dataplane::{Machine, Packet, Platform, Reason, Verdict, flow, path};

use crate::maps::Room;
use crate::platform::{Frame, Kernel};

/// Ingress of a pod's host-side interface: what the pod sends.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    let frame = &mut Frame::new(context.skb.skb);
    let verdict = match flow::family(frame) {
        Family::V4 => with_room::<V4>(frame, path::from_pod),
        Family::V6 => with_room::<V6>(frame, path::from_pod),
    };
    obey(&context, verdict)
}

/// Ingress of the uplink: what the underlay brings.
#[classifier]
pub fn from_underlay(context: TcContext) -> i32 {
    let frame = &mut Frame::new(context.skb.skb);
    let mut carried = Carried::default();
    let mut verdict = Verdict::Stack;
    match path::from_tunnel(&mut Kernel, frame, &mut carried) {
        Err(reason) => verdict = Verdict::Drop(reason),
        Ok(()) => match flow::family(frame) {
            Family::V4 => underlay::<V4>(frame, &carried, &mut verdict),
            Family::V6 => underlay::<V6>(frame, &carried, &mut verdict),
        },
    }
    obey(&context, verdict)
}

/// Ingress of the node's own gateway interface: what the node's stack sends to pods.
#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    let frame = &mut Frame::new(context.skb.skb);
    let verdict = match flow::family(frame) {
        Family::V4 => with_room::<V4>(frame, path::from_host),
        Family::V6 => with_room::<V6>(frame, path::from_host),
    };
    obey(&context, verdict)
}

/// Walks the path with the room it needs.
#[inline(always)]
fn with_room<A: Room>(
    frame: &mut Frame,
    walk: impl FnOnce(&mut Kernel, &mut Frame, &mut Walk<A>) -> Verdict,
) -> Verdict {
    let Some(room) = A::room() else {
        let lost = Verdict::Drop(Reason::WriteFailed);
        Kernel.count(lost, frame.length());
        return lost;
    };
    // SAFETY: the room is this CPU's, programs are not preempted by each other on it, and nobody else has it.
    walk(&mut Kernel, frame, unsafe { &mut *room })
}

/// Walks on out of the tunnel. A function of its own: opening the tunnel needs most of the stack.
#[inline(never)]
fn underlay<A: Room>(frame: &mut Frame, carried: &Carried, verdict: &mut Verdict)
where
    Kernel: Platform<A>,
{
    *verdict = with_room::<A>(frame, |kernel, frame, walk| path::from_underlay(kernel, frame, walk, carried));
}

/// Does what the path says.
#[inline(always)]
fn obey(context: &TcContext, verdict: Verdict) -> i32 {
    let mut frame = Frame::new(context.skb.skb);
    if Kernel.tracing() {
        frame.note(verdict);
    }
    // Asked here, because a call takes longer than the answer.
    if level_enabled(Level::Debug) {
        log(context, verdict);
    }
    // SAFETY: these only note where to; the kernel checks the interface when the program has returned.
    match verdict {
        Verdict::Deliver(interface) => (unsafe { bpf_redirect_peer(interface.0, 0) }) as i32,
        Verdict::Forward(interface) => (unsafe { bpf_redirect(interface.0, 0) }) as i32,
        Verdict::Answer | Verdict::Reject(_) => (unsafe { bpf_redirect(frame.interface().0, 0) }) as i32,
        Verdict::Stack => TC_ACT_OK as i32,
        Verdict::Drop(_) => TC_ACT_SHOT,
    }
}

/// Says so in the programs' own log, where somebody reads it. A function of its own, for the sake of its
/// caller's stack.
#[inline(never)]
fn log(context: &TcContext, verdict: Verdict) {
    let interface = Frame::new(context.skb.skb).interface().0;
    debug!(context, "interface {}, verdict {}", interface, verdict.counter());
}

/// Never reached: a panic that can happen is a loop without end, and the verifier refuses it.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
