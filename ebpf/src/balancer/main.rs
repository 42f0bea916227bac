//! The cloud's load balancer in the kernel: what comes in by its one interface goes out there again (`XDP_TX`).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "only the compiler knows which offsets are constant: see bytes::bounded"
)]

#[path = "../bytes.rs"]
mod bytes;
#[path = "../clock.rs"]
mod clock;
#[path = "../frame.rs"]
mod frame;
#[path = "../mapped.rs"]
mod mapped;
mod maps;
mod measure;
mod platform;
#[path = "../whole.rs"]
mod whole;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use dataplane::verdict::Fate;
use dataplane::wire::{Be16, V4, V6, ethernet};
use dataplane::{Packet, balance};

use crate::frame::Frame;
use crate::platform::Kernel;

/// Whatever arrives at the load balancer.
#[xdp]
pub fn balance(context: XdpContext) -> u32 {
    let frame = &mut Frame::new(context.ctx);
    let fate = if frame.read::<Be16>(ethernet::TYPE) == Some(ethernet::IPV6) {
        balance::carry::<V6, _, _>(&mut Kernel, frame)
    } else {
        balance::carry::<V4, _, _>(&mut Kernel, frame)
    };
    match fate {
        Fate::Sent | Fate::Returned => XDP_TX,
        Fate::Other => XDP_PASS,
        Fate::Missed(_) => XDP_DROP,
    }
}

/// Lets everything pass: for the other end of the load balancer's link, which takes frames by NAPI once it has a
/// program, and only then lets this end send back what came in.
#[xdp]
pub fn pass(_context: XdpContext) -> u32 {
    XDP_PASS
}
