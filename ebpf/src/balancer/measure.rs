//! How long the load balancer takes, for a test run that repeats: `restore` makes the frame what it was before the
//! last repeat changed it, and one of the next flow; then the program under test has it.
//!
//! A frame that was wrapped has grown at its front: it is cut to its length again, from there, and its headers are
//! written anew out of a template.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;
use dataplane::Packet;
use dataplane::flow::mix;
use dataplane::wire::{Be16, V4, V6, ethernet, ip, transport};

use crate::platform::Frame;

/// The program under test.
#[map(name = "tested")]
static TESTED: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// The mask of the flow's number (flows less one, a power of two), the length of the frame, the number of the next
/// flow.
#[map(name = "template")]
static TEMPLATE: Array<[u32; 4]> = Array::with_max_entries(1, 0);

/// Does nothing.
#[xdp]
pub fn empty(_context: XdpContext) -> u32 {
    XDP_DROP
}

/// Does nothing, and lets the frame go where the load balancer's would.
#[xdp]
pub fn trivial(_context: XdpContext) -> u32 {
    XDP_TX
}

/// Makes the frame a segment of the next flow, and tail-calls.
#[xdp]
pub fn restore(context: XdpContext) -> u32 {
    let frame = &mut Frame::new(context.ctx);
    if rewrite(frame).is_some() {
        // SAFETY: the kernel checks the place. It comes back only if there is no program.
        let _ = unsafe { TESTED.tail_call(&context, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn rewrite(frame: &mut Frame) -> Option<()> {
    const START: usize = ethernet::LENGTH;
    let template = TEMPLATE.get_ptr_mut(0)?;
    // SAFETY: the row is there; one program at a time writes it.
    let [mask, length, number, v6] = unsafe { *template };
    // SAFETY: as above.
    unsafe { (*template)[2] = number + 1 };
    let grown = frame.length().wrapping_sub(length);
    if grown != 0 {
        frame.move_head((grown & 0xff) as i32)?;
    }
    // A multiplication by an odd number: every flow once before any comes again, in no order.
    let flow = number.wrapping_mul(0x9e37_79b1) & mask;
    let [_, a, b, c] = mix(flow).to_be_bytes();
    let port = Be16::new(1024 | flow as u16 & 0x7fff);
    if v6 != 0 {
        frame.write(ethernet::TYPE, ethernet::IPV6)?;
        let mut source = V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        source.0[13] = a;
        source.0[14] = b;
        source.0[15] = c;
        frame.write(START + ip::v6::SOURCE, source)?;
        return frame.write(START + ip::v6::LENGTH + transport::SOURCE_PORT, port);
    }
    frame.write(ethernet::TYPE, ethernet::IPV4)?;
    frame.write(START + ip::SOURCE, V4([11, a, b, c]))?;
    frame.write(START + ip::LENGTH + transport::SOURCE_PORT, port)
}
