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

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use dataplane::{Packet, Platform, Verdict, path};

use crate::platform::{Frame, Kernel};

/// Ingress of a pod's host-side interface: what the pod sends.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    let mut frame = Frame::new(context.skb.skb);
    let verdict = path::from_pod(&mut Kernel, &mut frame);
    obey(&context, frame, verdict)
}

/// Ingress of the uplink: what the underlay brings.
#[classifier]
pub fn from_underlay(context: TcContext) -> i32 {
    let mut frame = Frame::new(context.skb.skb);
    let verdict = path::from_underlay(&mut Kernel, &mut frame);
    obey(&context, frame, verdict)
}

/// Ingress of the node's own gateway interface: what the node's stack sends to pods.
#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    let mut frame = Frame::new(context.skb.skb);
    let verdict = path::from_host(&mut Kernel, &mut frame);
    obey(&context, frame, verdict)
}

/// Does what the path says.
#[inline(always)]
fn obey(context: &TcContext, mut frame: Frame, verdict: Verdict) -> i32 {
    if Kernel.tracing() {
        frame.note(verdict);
    }
    debug!(context, "interface {}, verdict {}", frame.interface().0, verdict.counter());
    // SAFETY: these only note where to; the kernel checks the interface when the program has returned.
    match verdict {
        Verdict::Deliver(interface) => (unsafe { bpf_redirect_peer(interface.0, 0) }) as i32,
        Verdict::Forward(interface) => (unsafe { bpf_redirect(interface.0, 0) }) as i32,
        Verdict::Answer => (unsafe { bpf_redirect(frame.interface().0, 0) }) as i32,
        Verdict::Stack => TC_ACT_OK as i32,
        Verdict::Drop(_) => TC_ACT_SHOT,
    }
}

/// Never reached: a panic that can happen is a loop without end, and the verifier refuses it.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
