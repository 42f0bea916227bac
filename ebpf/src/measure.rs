//! How long a program of the path takes, for a test run that repeats: `restore` makes the frame what it was before the
//! last repeat changed it, and one of the next flow; then the program under test has it.
//!
//! A frame that the path has put into the tunnel is longer, one that it took out is shorter: room is taken away, or
//! made, and all headers are written anew out of a template. What that costs is measured with a program in the other's
//! place that does nothing, or that makes as much room: once, or in two halves. The difference of those two is what it
//! costs to make room. That is the path's own to pay where it makes room, and is paid by `restore` for a frame that the
//! path took room away from.
//!
//! No program takes room away in halves. The kernel moves the Ethernet header by `rep movsb`, for which some processors
//! (AMD's family 25) take seven times as long where it goes forward by less than 32 bytes: 134 cycles instead of 20. The
//! path's own step is longer and costs nothing of this.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::TcContext;
use dataplane::Packet;
use dataplane::wire::transport::{tcp, udp};
use dataplane::wire::{Be16, Mac, Plain, Port, V4, ethernet, ip, tunnel};

use crate::bytes::{constants, load};
use crate::platform::Skb;

constants! {
    /// Not 0: what goes into the tunnel can be put there again and again. The kernel is not told then that its
    /// headers are a tunnel's, because it takes that once for a packet: it does not note where the inner ones are.
    MEASURED: u32;
}

/// Whether runs are to be repeated.
#[inline(always)]
pub(crate) fn is_measured() -> bool {
    MEASURED.load() != 0
}

/// Bytes that a tunnel takes over IPv4.
const TUNNEL: i32 = tunnel::overhead(ip::LENGTH) as i32;
/// Flows come from so many addresses, one after the other.
const SOURCES: u32 = 32;

/// What the frame is to be.
#[repr(C)]
struct Template {
    /// The mask of the flow's number: flows less one, a power of two.
    mask: u32,
    /// The number of the next flow.
    next: u32,
    /// The length of the frame.
    length: u32,
    /// Not 0: it is in a tunnel.
    tunnelled: u32,
    /// The tunnel's headers, if it is in one: Ethernet and IP.
    outer: Network,
    /// Those behind.
    datagram: [u8; udp::LENGTH + tunnel::LENGTH],
    /// The segment's.
    inner: Network,
    transport: [u8; tcp::LENGTH],
}

/// Headers of Ethernet and IP.
#[repr(C)]
struct Network {
    link: [u8; ethernet::LENGTH],
    start: [u8; ip::SOURCE],
    addresses: [u8; ip::LENGTH - ip::SOURCE],
}

const _: () = assert!(size_of::<Template>() == 120);

/// The program under test.
#[map(name = "tested")]
static TESTED: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map(name = "template")]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);

/// Declares programs that stand in the place of the one under test and do no more than to make room for a tunnel's
/// headers, in so many steps.
macro_rules! stand_ins {
    ($($(#[$doc:meta])* $name:ident: $times:literal;)+) => { $(
        $(#[$doc])*
        #[classifier]
        pub fn $name(context: TcContext) -> i32 {
            let mut frame = Skb::new(context.skb.skb);
            let mut times = 0;
            while times < $times {
                if frame.adjust(TUNNEL / $times, 0).is_none() {
                    return TC_ACT_SHOT;
                }
                times += 1;
            }
            TC_ACT_UNSPEC
        }
    )+ };
}

stand_ins! {
    /// In one step.
    open_once: 1;
    /// In two halves.
    open_twice: 2;
}

/// Does nothing.
#[classifier]
pub fn trivial(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Makes the frame a segment of the next flow, and tail-calls.
#[classifier]
pub fn restore(context: TcContext) -> i32 {
    let frame = &mut Skb::new(context.skb.skb);
    if rewrite(frame).is_some() {
        // SAFETY: the kernel checks the place. It comes back only if there is no program.
        let _ = unsafe { TESTED.tail_call(&context, 0) };
    }
    TC_ACT_SHOT
}

#[inline(always)]
fn rewrite(frame: &mut Skb) -> Option<()> {
    let place = TEMPLATE.get_ptr_mut(0)?;
    // SAFETY: the row is there; one program at a time writes it.
    let template = unsafe { &mut *place };
    let number = template.next;
    template.next = number.wrapping_add(1);
    let longer = template.length.wrapping_sub(frame.length()) as i32;
    if longer != 0 {
        frame.adjust(longer, 0)?;
    }
    // A multiplication by an odd number: every flow once before any comes again, in no order.
    let flow = number.wrapping_mul(0x9e37_79b1) & template.mask;
    if template.tunnelled == 0 {
        return segment(frame, 0, template, flow);
    }
    network(frame, 0, &template.outer, 0)?;
    frame.write(DATAGRAM, copied::<u64>(&template.datagram, 0))?;
    frame.write(DATAGRAM + udp::LENGTH, copied::<u64>(&template.datagram, udp::LENGTH))?;
    segment(frame, TUNNEL as usize, template, flow)
}

/// Where the transport's header stands behind headers of Ethernet and IP.
const DATAGRAM: usize = ethernet::LENGTH + ip::LENGTH;

/// Writes the segment that begins at `start`.
#[inline(always)]
fn segment(frame: &mut Skb, start: usize, template: &Template, flow: u32) -> Option<()> {
    network(frame, start, &template.inner, flow % SOURCES)?;
    let header: tcp::Header = copied(&template.transport, 0);
    let source_port = Port::new(header.source_port.host().wrapping_add((flow / SOURCES) as u16));
    frame.write(start + DATAGRAM, tcp::Header { source_port, ..header })
}

/// Writes headers as a program reads them, at once: a processor waits when it reads more than what was written last,
/// and of what a network card has written it never does. They come from the address that is so far behind the
/// template's.
#[inline(always)]
fn network(frame: &mut Skb, start: usize, headers: &Network, behind: u32) -> Option<()> {
    frame.write(start + ethernet::TARGET, copied::<Mac>(&headers.link, ethernet::TARGET))?;
    frame.write(start + ethernet::SOURCE, copied::<Mac>(&headers.link, ethernet::SOURCE))?;
    frame.write(start + ethernet::TYPE, copied::<Be16>(&headers.link, ethernet::TYPE))?;
    let network = start + ethernet::LENGTH;
    frame.write(network, copied::<ip::Start>(&headers.start, 0))?;
    let mut addresses: ip::Addresses<V4> = copied(&headers.addresses, 0);
    addresses.source = V4(u32::from_be_bytes(addresses.source.0).wrapping_add(behind).to_be_bytes());
    frame.write(network + ip::SOURCE, addresses)
}

/// What stands at an offset of a part of the template.
#[inline(always)]
fn copied<T: Plain>(part: &impl Sized, offset: usize) -> T {
    // SAFETY: callers name a place in the part.
    unsafe { load((&raw const *part) as usize + offset) }
}
