//! What the program in the driver ([`crate::from_wire`]) leaves for the one behind it, so that no packet is walked
//! twice: the verdict, in the bytes before the frame that the kernel keeps with a packet.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::bpf_xdp_adjust_meta;
use dataplane::verdict::Verdict;

use crate::bytes::{done, field, load, store};

/// Bytes of a verdict: its two [`words`].
const LENGTH: usize = 8;

/// A verdict in words: its counter, and the interface it names, or 1 for the one that shares its counter.
#[inline(always)]
pub(crate) fn words(verdict: Verdict) -> (u32, u32) {
    let detail = match verdict {
        Verdict::Deliver(interface) | Verdict::Forward(interface) => interface.0,
        Verdict::Reject(_) => 1,
        Verdict::Answer | Verdict::Stack | Verdict::Drop(_) => 0,
    };
    (verdict.counter(), detail)
}

/// Makes room for a verdict; `None` where the driver has none.
#[inline(always)]
pub(crate) fn open(context: *mut xdp_md) -> Option<()> {
    // SAFETY: the helper checks the length.
    done(unsafe { bpf_xdp_adjust_meta(context, -(LENGTH as i32)) })
}

/// Removes that room again: whoever else gets the frame is to find nothing.
#[inline(always)]
pub(crate) fn close(context: *mut xdp_md) -> Option<()> {
    // SAFETY: as in `open`.
    done(unsafe { bpf_xdp_adjust_meta(context, LENGTH as i32) })
}

/// Leaves the verdict there.
#[inline(always)]
pub(crate) fn leave(context: *mut xdp_md, verdict: Verdict) -> Option<()> {
    let place = field!(context, xdp_md, data_meta) as usize;
    if place + LENGTH > field!(context, xdp_md, data) as usize {
        return None;
    }
    let (counter, detail) = words(verdict);
    // SAFETY: the bytes lie before the frame, and are the program's own.
    unsafe {
        store(place, counter);
        store(place + 4, detail);
    }
    Some(())
}

/// The words that were left for a packet, if there are any.
#[inline(always)]
pub(crate) fn found(skb: *mut __sk_buff) -> Option<(u32, u32)> {
    let place = field!(skb, __sk_buff, data_meta) as usize;
    if place + LENGTH > field!(skb, __sk_buff, data) as usize {
        return None;
    }
    // SAFETY: the bytes lie before the packet, and any bytes are numbers.
    unsafe { Some((load(place), load(place + 4))) }
}
