//! Engine 1: the packet path in the kernel.
#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_OK;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// Frames that a pod sends, seen at the host's end of its link.
#[classifier]
pub fn from_pod(_frame: TcContext) -> i32 {
    TC_ACT_OK as i32
}

/// Never reached: the verifier refuses a program in which a panic is left.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
