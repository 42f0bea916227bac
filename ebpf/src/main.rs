//! Engine 1: the packet path in the kernel, one program per hook.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "only the compiler knows which offsets are constant: see platform::bounded"
)]

mod maps;
mod platform;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use dataplane::flow::Flow;
use dataplane::overlay::Carried;
use dataplane::wire::{Family, V4, V6};
use dataplane::{Machine, Packet, Platform, Reason, Verdict, flow, path};

use crate::maps::Room;
use crate::platform::{Frame, Kernel};

/// Ingress of a pod's host-side interface: what the pod sends.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let verdict = match flow::family(&mut Frame::new(skb)) {
        Family::V4 => with_room(skb, pod::<V4>),
        Family::V6 => with_room(skb, pod::<V6>),
    };
    obey(&context, verdict)
}

/// Ingress of the uplink: what the underlay brings.
#[classifier]
pub fn from_underlay(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let mut carried = Carried::default();
    let verdict = match tunnel(skb, &mut carried) {
        Some(refused) => refused,
        None => match flow::family(&mut Frame::new(skb)) {
            Family::V4 => with_room(skb, |skb, flow| underlay::<V4>(skb, flow, &carried)),
            Family::V6 => with_room(skb, |skb, flow| underlay::<V6>(skb, flow, &carried)),
        },
    };
    obey(&context, verdict)
}

/// Ingress of the node's own gateway interface: what the node's stack sends to pods.
#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let verdict = match flow::family(&mut Frame::new(skb)) {
        Family::V4 => with_room(skb, host::<V4>),
        Family::V6 => with_room(skb, host::<V6>),
    };
    obey(&context, verdict)
}

/// Walks the path with the room it needs.
#[inline(always)]
fn with_room<A: Room>(
    skb: *mut __sk_buff,
    walk: impl FnOnce(*mut __sk_buff, &mut Flow<A>) -> Verdict,
) -> Verdict {
    let Some(flow) = A::flow() else {
        let lost = Verdict::Drop(Reason::WriteFailed);
        Kernel.count(lost, Frame::new(skb).length());
        return lost;
    };
    // SAFETY: the room is this CPU's, programs are not preempted by each other on it, and nobody else has it.
    walk(skb, unsafe { &mut *flow })
}

// Each family's walk is a function of its own, with a stack of its own: together with its callers' and with
// what it calls, it must not exceed 512 bytes.

#[inline(never)]
fn pod<A: Room>(skb: *mut __sk_buff, flow: &mut Flow<A>) -> Verdict
where
    Kernel: Platform<A>,
{
    path::from_pod(&mut Kernel, &mut Frame::new(skb), flow)
}

#[inline(never)]
fn host<A: Room>(skb: *mut __sk_buff, flow: &mut Flow<A>) -> Verdict
where
    Kernel: Platform<A>,
{
    path::from_host(&mut Kernel, &mut Frame::new(skb), flow)
}

#[inline(never)]
fn underlay<A: Room>(skb: *mut __sk_buff, flow: &mut Flow<A>, carried: &Carried) -> Verdict
where
    Kernel: Platform<A>,
{
    path::from_underlay(&mut Kernel, &mut Frame::new(skb), flow, carried)
}

/// The verdict on what is refused; else what the tunnel brought along, if the packet was in it.
#[inline(never)]
fn tunnel(skb: *mut __sk_buff, carried: &mut Carried) -> Option<Verdict> {
    match path::from_tunnel(&mut Kernel, &mut Frame::new(skb)) {
        Ok(found) => {
            *carried = found;
            None
        }
        Err(refused) => Some(refused),
    }
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
