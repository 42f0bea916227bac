//! A switch between nodes: a frame for the station behind one of its ports is put to that port's other end at once.
//!
//! What a bridge sends out of a port waits in the queue of that port's other end, which costs more than the packet
//! path's own programs. Here it does not (`bpf_redirect_peer`). Whatever is for nobody that it knows goes on to the
//! bridge that the port belongs to.
#![no_std]
#![no_main]

#[path = "../whole.rs"]
mod whole;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::{bpf_redirect_peer, bpf_skb_change_type};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use dataplane::wire::{Mac, ethernet};

/// As many ports as a bridge of the kernel has.
const PORTS: u32 = 1024;
/// The kernel's mark of a frame that is for this machine (`PACKET_HOST`, linux/if_packet.h).
const FOR_US: u32 = 0;

/// The port that each station is behind, by the station's hardware address: the port's interface.
#[map(name = "stations")]
static STATIONS: HashMap<Mac, u32> = HashMap::with_max_entries(PORTS, 0);

/// Ingress of a port.
#[classifier]
pub fn switch(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    if context.data() + ethernet::LENGTH > context.data_end() {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the bytes lie before the end, and an address may lie anywhere.
    let target = unsafe { &*((context.data() + ethernet::TARGET) as *const Mac) };
    // SAFETY: an interface is a word, read at once.
    let Some(port) = (unsafe { STATIONS.get(target) }) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the context is valid as long as the program runs.
    let (interface, kind) = unsafe { ((*skb).ifindex, (*skb).pkt_type) };
    // A bridge does not send a frame back to where it came from either.
    if *port == interface {
        return TC_ACT_UNSPEC;
    }
    // To the port it is for somebody else, and the kernel behind the other end would not take it.
    if kind != FOR_US {
        // SAFETY: the helper checks the type.
        unsafe { bpf_skb_change_type(skb, FOR_US) };
    }
    // SAFETY: it only notes where to; the kernel checks the interface when the program has returned.
    (unsafe { bpf_redirect_peer(*port, 0) }) as i32
}
