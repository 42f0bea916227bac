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
use dataplane::wire::transport::tcp;
use dataplane::wire::{Address, Be16, Port, V4, V6, ethernet, ip};

use crate::frame::Frame;

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
    let template = TEMPLATE.get_ptr_mut(0)?;
    // SAFETY: the row is there; one program at a time writes it.
    let [mask, length, number, v6] = unsafe { *template };
    // SAFETY: as above.
    unsafe { (*template)[2] = number + 1 };
    // By nothing as well, so that it costs the same whatever stands behind.
    let grown = frame.length().wrapping_sub(length);
    frame.move_head((grown & 0xff) as i32)?;
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
        return come_from(frame, source, port);
    }
    frame.write(ethernet::TYPE, ethernet::IPV4)?;
    come_from(frame, V4([11, a, b, c]), port)
}

/// Writes who sends the frame. Headers are written as a program reads them, at once: a processor waits when it reads
/// more than what was written last, and of what a network card has written it never does.
#[inline(always)]
fn come_from<A: Address>(frame: &mut Frame, source: A, source_port: Port) -> Option<()> {
    const START: usize = ethernet::LENGTH;
    let addresses: ip::Addresses<A> = frame.read(START + A::SOURCE)?;
    frame.write(START + A::SOURCE, ip::Addresses { source, ..addresses })?;
    let transport: tcp::Header = frame.read(START + A::HEADER)?;
    frame.write(START + A::HEADER, tcp::Header { source_port, ..transport })
}
