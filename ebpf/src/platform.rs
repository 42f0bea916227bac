//! What `dataplane::platform` asks of an engine, answered by the kernel.

use core::ffi::c_void;
use core::ptr::write_volatile;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::bpf_f_adj_room_encap_l2;
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_get_prandom_u32, bpf_l4_csum_replace, bpf_loop, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_pull_data,
};
use dataplane::tables::{IfIndex, Node};
use dataplane::trace::{Lap, Record};
use dataplane::verdict::{Turn, Verdict};
use dataplane::wire::{Be16, Family, Plain, V4, V6, checksum, ethernet, icmp, tunnel};
use dataplane::{Machine, Mend, MendEnd, Packet, Platform};

use crate::bytes::{bounded, constants, done, field, load, store};
use crate::{clock, handover, laps, maps, measure};

constants! {
    /// The node these programs were loaded for.
    NODE: Node;
    /// Its IPv4 address; zero if it has none.
    ADDRESS_V4: V4;
    /// Its IPv6 address; zero if it has none.
    ADDRESS_V6: V6;
    /// Not 0: every stage reports.
    TRACE: u32;
    /// Not 0: what is for the underlay goes to the uplink's other end at once.
    UPLINK_PEER: u32;
}

/// The length of what the kernel is to take for the inner link layer: the Ethernet header alone.
///
/// With the tunnel header counted in (22), the inner frame is looked for 8 bytes too early: small
/// packets still pass, and every packet that is segmented later is dropped by the uplink.
const INNER_LINK_BYTES: u64 = ethernet::LENGTH as u64;

/// What the kernel is told of an outer header.
const fn encapsulated(outer: Family) -> u32 {
    match outer {
        Family::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        Family::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    }
}

/// A packet in the kernel.
pub(crate) struct Skb {
    skb: *mut __sk_buff,
}

impl Skb {
    /// The packet a program was called with.
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// The addresses of the first byte and of the first after those that can be read directly. Asked
    /// anew for each access: the kernel moves a packet whenever it changes, and what was read before is void.
    #[inline(always)]
    fn span(&self) -> (usize, usize) {
        (field!(self.skb, __sk_buff, data) as usize, field!(self.skb, __sk_buff, data_end) as usize)
    }

    /// The address of `length` bytes at `offset`, if they can be read directly.
    #[inline(always)]
    fn place(&self, offset: usize, length: usize) -> Option<usize> {
        let (start, end) = self.span();
        let place = start + bounded(offset);
        if place + length > end { None } else { Some(place) }
    }

    /// Makes room for so many bytes between the frame's Ethernet header and its payload, or removes them.
    #[inline(always)]
    pub(crate) fn adjust(&mut self, bytes: i32, flags: u32) -> Option<()> {
        let mut flags = (flags | BPF_F_ADJ_ROOM_FIXED_GSO) as u64;
        if flags & BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64 != 0 {
            flags |= bpf_f_adj_room_encap_l2(INNER_LINK_BYTES);
        }
        // SAFETY: the helper checks the lengths.
        done(unsafe { bpf_skb_adjust_room(self.skb, bytes, BPF_ADJ_ROOM_MAC, flags) })
    }

    /// [`Packet::mend_end`] of a checksum that is left to the network card, or happens to look as if it were. One that is
    /// left does not cover the port, and that tells: the helper changes only the other.
    #[inline(always)]
    fn mend_left(&mut self, offset: usize, mend: MendEnd) -> Option<()> {
        let MendEnd { address, port, balanced, optional, left, .. } = mend;
        if port != 0 {
            self.mend(offset, Mend { delta: port, optional, ..Mend::default() })?;
            if self.read::<Be16>(offset)? == left {
                return self.write(offset, checksum::extended(left, address));
            }
        }
        self.mend(offset, Mend { delta: address, pseudo: true, balanced, optional })
    }

    /// Whether somebody may have walked the path before, and the verdict's words then.
    #[inline(always)]
    pub(crate) fn known(&self) -> Option<(u32, u32)> {
        if NODE.load().accelerated == 0 { None } else { handover::found(self.skb) }
    }

    /// Leaves the verdict where a test run hands it back: the packet's control buffer.
    #[inline(always)]
    pub(crate) fn note(&mut self, verdict: Verdict) {
        let (counter, detail) = handover::words(verdict);
        // SAFETY: as in `span`; these two words are free for programs to use.
        unsafe {
            write_volatile(&raw mut (*self.skb).cb[0], counter);
            write_volatile(&raw mut (*self.skb).cb[1], detail);
        }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn interface(&self) -> IfIndex {
        IfIndex(field!(self.skb, __sk_buff, ifindex) as u32)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        field!(self.skb, __sk_buff, len) as u32
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        field!(self.skb, __sk_buff, gso_size) as u32
    }

    #[inline(always)]
    fn pull(&mut self, length: u32) {
        let (start, end) = self.span();
        let whole = self.length();
        let wanted = if whole < length { whole } else { length };
        // Most packets lie in one piece, and no call is made for them.
        if end - start < wanted as usize {
            // SAFETY: the helper checks the length. If it fails, the reads that follow find nothing.
            unsafe { bpf_skb_pull_data(self.skb, wanted) };
        }
    }

    #[inline(always)]
    fn read<T: Plain>(&self, offset: usize) -> Option<T> {
        let place = self.place(offset, size_of::<T>())?;
        // SAFETY: the bytes lie before the end, and any bytes are a value of a plain type.
        Some(unsafe { load(place) })
    }

    #[inline(always)]
    fn write<T: Plain>(&mut self, offset: usize, value: T) -> Option<()> {
        let place = self.place(offset, size_of::<T>())?;
        // SAFETY: the bytes lie before the end, and the kernel made them the program's own.
        unsafe { store(place, value) };
        Some(())
    }

    #[inline(always)]
    fn mend(&mut self, offset: usize, mend: Mend) -> Option<()> {
        // A field size of 0 stands for a difference that is already computed. The helper alone knows
        // whether the checksum is complete, or left to the network card.
        let mut flags = 0;
        if mend.pseudo {
            flags |= BPF_F_PSEUDO_HDR as u64;
        }
        if mend.optional {
            flags |= BPF_F_MARK_MANGLED_0 as u64;
        }
        let bare = mend.optional && self.read::<Be16>(offset)? == Be16::new(0);
        // SAFETY: the helper checks the offset.
        done(unsafe { bpf_l4_csum_replace(self.skb, offset as u32, 0, mend.delta as u64, flags) })?;
        if bare && !mend.pseudo {
            // There is no checksum to make up for the change.
            self.tell(mend.delta);
        }
        if mend.pseudo && mend.balanced {
            // The helper has changed the sum of the whole packet as well, if a network card computed one, as is right for
            // IPv4 alone ("hw csum failure" in the kernel's log). Its flag `BPF_F_IPV6` would keep it from that, but kernels
            // before 6.16 refuse it: so that change is taken back. It can go when none of them is to be run on.
            self.tell(mend.delta);
        }
        Some(())
    }

    /// The helper is called only where it alone can say what the field is: a call takes as long as the rest of this.
    #[inline(always)]
    fn mend_end(&mut self, offset: usize, mend: MendEnd) -> Option<()> {
        let MendEnd { address, port, balanced, optional, left } = mend;
        let field: Be16 = self.read(offset)?;
        if field == left {
            return self.mend_left(offset, mend);
        }
        if optional && field == Be16::new(0) {
            // Nothing makes up for the port, and for the address only a checksum of IP's header.
            self.tell(if balanced { checksum::add(address, port) } else { port });
            return Some(());
        }
        let mut mended = checksum::mended(field, checksum::add(address, port));
        if optional && mended == Be16::new(0) {
            mended = Be16::new(0xffff);
        }
        self.write(offset, mended)?;
        if !balanced {
            // The checksum makes up for the address, and that of the IP header does so once more.
            self.tell(!address);
        }
        Some(())
    }

    #[inline(always)]
    fn tell(&mut self, delta: u32) {
        // SAFETY: it changes but the sum of the whole packet, where the kernel has it from a network card. Elsewhere it says
        // that there is none.
        unsafe { bpf_csum_update(self.skb, delta) };
    }

    #[inline(always)]
    fn open_tunnel(&mut self, outer: Family, options: u32) -> Option<()> {
        let mut flags = encapsulated(outer) | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
        if measure::is_measured() {
            flags = 0;
        }
        self.adjust(tunnel::overhead(outer.header()) as i32 + options as i32, flags)
    }

    /// The kernel also keeps a packet's family beside its bytes, and must be told when the one inside is
    /// another: by then it is written in the last bytes of the room.
    #[inline(always)]
    fn close_tunnel(&mut self, outer: Family, options: u32) -> Option<()> {
        let room = tunnel::overhead(outer.header()) + options as usize;
        let inside: Be16 = self.read(room + ethernet::TYPE)?;
        let flags = if inside == ethernet::IPV6 {
            BPF_F_ADJ_ROOM_DECAP_L3_IPV6
        } else {
            BPF_F_ADJ_ROOM_DECAP_L3_IPV4
        };
        self.adjust(-(room as i32), flags)
    }

    #[inline(always)]
    fn trim(&mut self, length: u32) -> Option<()> {
        if self.length() <= length {
            return Some(());
        }
        // SAFETY: the helper checks the length.
        done(unsafe { bpf_skb_change_tail(self.skb, length, 0) })
    }

    #[inline(always)]
    fn strip(&mut self, length: u32) -> Option<()> {
        if length == 0 {
            return Some(());
        }
        self.adjust(-(length as i32), 0)
    }

    #[inline(always)]
    fn open_error(&mut self, family: Family) -> Option<()> {
        self.adjust((family.header() + icmp::LENGTH) as i32, 0)
    }

    #[inline(always)]
    fn open_ip(&mut self, outer: Family) -> Option<()> {
        self.adjust(outer.header() as i32, encapsulated(outer))
    }

    #[inline(always)]
    fn close_ip(&mut self, outer: Family) -> Option<()> {
        let flags = match outer {
            Family::V4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            Family::V6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        };
        self.adjust(-(outer.header() as i32), flags)
    }
}

/// The kernel as the engine of one node. Its state is the maps.
pub(crate) struct Kernel;

impl Kernel {
    /// Whether the uplink has another end that packets may be put to, past its queue.
    #[inline(always)]
    pub(crate) fn has_uplink_peer(&self) -> bool {
        UPLINK_PEER.load() != 0
    }
}

impl Machine for Kernel {
    #[inline(always)]
    fn node(&self) -> Node {
        NODE.load()
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        clock::now_s()
    }

    #[inline(always)]
    fn random(&mut self) -> u32 {
        if let Some(number) = clock::fixed(1) {
            return number;
        }
        // SAFETY: it only gives a number.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        maps::generation()
    }

    #[inline(always)]
    fn tracing(&self) -> bool {
        TRACE.load() != 0
    }

    #[inline(always)]
    fn report(&mut self, record: &Record) {
        maps::report(record);
    }

    #[inline(always)]
    fn lap(&mut self, lap: Lap) {
        laps::lap(lap);
    }

    #[inline(always)]
    fn count(&mut self, verdict: Verdict, bytes: u32) {
        maps::count(verdict, bytes);
    }

    #[inline(always)]
    fn count_turn(&mut self, turn: Turn) {
        maps::count_turn(turn);
    }

    #[inline(always)]
    fn count_audited(&mut self) {
        maps::count_audited();
    }

    /// By the kernel's own loop, whose body the verifier follows once instead of every time (Linux 5.17).
    #[inline(always)]
    fn first_of(&mut self, times: u32, attempt: impl FnMut(&mut Self, u32) -> u32) -> u32 {
        let mut search = Search { attempt, found: 0 };
        let body = next_of(&search);
        // SAFETY: the body is called before the helper returns, and with this very search.
        unsafe { bpf_loop(times, body as *const () as *mut c_void, (&raw mut search).cast(), 0) };
        search.found
    }
}

impl Platform<V4> for Kernel {
    #[inline(always)]
    fn address(&self) -> V4 {
        ADDRESS_V4.load()
    }
}

impl Platform<V6> for Kernel {
    #[inline(always)]
    fn address(&self) -> V6 {
        ADDRESS_V6.load()
    }
}

/// What [`Kernel::first_of`] looks for, and has found.
struct Search<F> {
    attempt: F,
    found: u32,
}

/// One attempt, as the kernel's loop calls it: it goes on for as long as that gives 0.
unsafe extern "C" fn attempt<F: FnMut(&mut Kernel, u32) -> u32>(number: u32, search: *mut Search<F>) -> i64 {
    // SAFETY: the loop hands on what it was given: see `Kernel::first_of`.
    let search = unsafe { &mut *search };
    search.found = (search.attempt)(&mut Kernel, number);
    if search.found == 0 { 0 } else { 1 }
}

/// The [`attempt`] for the closure of this search, whose type has no name.
#[inline(always)]
fn next_of<F: FnMut(&mut Kernel, u32) -> u32>(
    _: &Search<F>,
) -> unsafe extern "C" fn(u32, *mut Search<F>) -> i64 {
    attempt::<F>
}
