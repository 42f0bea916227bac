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
use dataplane::wire::{Address, Family};
use dataplane::{Machine, Packet, Platform, Reason, Verdict, flow, path};

use crate::maps::Room;
use crate::platform::{Frame, Kernel};

/// Ingress of a pod's host-side interface: what the pod sends.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    let frame = &mut Frame::new(context.skb.skb);
    let verdict = with_room(frame, |frame, room| match flow::family(frame) {
        Family::V4 => path::from_pod(&mut Kernel, frame, &mut room.v4),
        Family::V6 => path::from_pod(&mut Kernel, frame, &mut room.v6),
    });
    obey(&context, verdict)
}

/// Ingress of the uplink: what the underlay brings.
#[classifier]
pub fn from_underlay(context: TcContext) -> i32 {
    let frame = &mut Frame::new(context.skb.skb);
    let verdict = with_room(frame, arrived);
    obey(&context, verdict)
}

/// Ingress of the node's own gateway interface: what the node's stack sends to pods.
#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    let frame = &mut Frame::new(context.skb.skb);
    let verdict = with_room(frame, |frame, room| match flow::family(frame) {
        Family::V4 => path::from_host(&mut Kernel, frame, &mut room.v4),
        Family::V6 => path::from_host(&mut Kernel, frame, &mut room.v6),
    });
    obey(&context, verdict)
}

/// Walks the path with the room it needs.
#[inline(always)]
fn with_room(frame: &mut Frame, walk: impl FnOnce(&mut Frame, &mut Room) -> Verdict) -> Verdict {
    if let Some(room) = Room::of_this_cpu() {
        return walk(frame, room);
    }
    let lost = Verdict::Drop(Reason::WriteFailed);
    Kernel.count(lost, frame.length());
    lost
}

/// The walk of what the underlay brings.
#[inline(always)]
fn arrived(frame: &mut Frame, room: &mut Room) -> Verdict {
    room.carried = Carried::default();
    if let Err(reason) = path::from_tunnel(&mut Kernel, frame, &mut room.carried) {
        return Verdict::Drop(reason);
    }
    let mut verdict = Verdict::Stack;
    match flow::family(frame) {
        Family::V4 => walk_on(frame, &room.carried, &mut room.v4, &mut verdict),
        Family::V6 => walk_on(frame, &room.carried, &mut room.v6, &mut verdict),
    }
    verdict
}

/// Walks on out of the tunnel. A function of its own: opening the tunnel needs most of the stack.
#[inline(never)]
fn walk_on<A: Address>(frame: &mut Frame, carried: &Carried, walk: &mut Walk<A>, verdict: &mut Verdict)
where
    Kernel: Platform<A>,
{
    *verdict = path::from_underlay(&mut Kernel, frame, walk, carried);
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
