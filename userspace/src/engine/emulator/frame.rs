//! A frame in memory, as the path reads and changes it.

use bytes::BytesMut;
use dataplane::tables::IfIndex;
use dataplane::wire::{Be16, Family, Plain, ethernet, icmp, tunnel};
use dataplane::{Mend, Packet};

/// Room that a new frame leaves before its first byte: one tunnel's headers and some to spare.
const HEAD_ROOM: usize = 96;

/// A frame from its Ethernet header on, with room to grow at its front.
///
/// All of it can always be read, and it is never cut into segments: [`Packet::pull`] has nothing to do
/// and [`Packet::segment`] is 0.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Head room, then the frame.
    buffer: BytesMut,
    /// Where the frame starts.
    start: usize,
    interface: IfIndex,
}

impl Frame {
    /// A copy of `bytes` that came in by `interface`.
    pub fn new(bytes: &[u8], interface: IfIndex) -> Self {
        let mut buffer = BytesMut::with_capacity(HEAD_ROOM + bytes.len());
        buffer.resize(HEAD_ROOM, 0);
        buffer.extend_from_slice(bytes);
        Self { buffer, start: HEAD_ROOM, interface }
    }

    /// Becomes a copy of other bytes, that came in by `interface`. Its memory is used again.
    pub fn refill(&mut self, bytes: &[u8], interface: IfIndex) {
        // What is in the head room does not matter.
        self.buffer.resize(HEAD_ROOM, 0);
        self.buffer.extend_from_slice(bytes);
        (self.start, self.interface) = (HEAD_ROOM, interface);
    }

    /// Its bytes, Ethernet header first.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Makes room behind the Ethernet header, as `bpf_skb_adjust_room` does in its mode `BPF_ADJ_ROOM_MAC`: the
    /// Ethernet header moves to the front.
    fn open(&mut self, room: usize) -> Option<()> {
        self.bytes().get(..ethernet::LENGTH)?;
        if self.start < room {
            let grow = HEAD_ROOM + room;
            let mut grown = BytesMut::zeroed(grow);
            grown.extend_from_slice(&self.buffer);
            self.buffer = grown;
            self.start += grow;
        }
        let from = self.start;
        self.start -= room;
        self.buffer.copy_within(from..from + ethernet::LENGTH, self.start);
        self.buffer[self.start + ethernet::LENGTH..from + ethernet::LENGTH].fill(0);
        Some(())
    }
}

impl Packet for Frame {
    #[inline]
    fn interface(&self) -> IfIndex {
        self.interface
    }

    #[inline]
    fn length(&self) -> u32 {
        u32::try_from(self.bytes().len()).unwrap_or(u32::MAX)
    }

    #[inline]
    fn segment(&self) -> u32 {
        0
    }

    #[inline]
    fn pull(&mut self, _length: u32) {}

    #[inline]
    fn read<T: Plain>(&self, offset: usize) -> Option<T> {
        from_bytes(self.buffer.get(self.start.checked_add(offset)?..)?)
    }

    #[inline]
    fn write<T: Plain>(&mut self, offset: usize, value: T) -> Option<()> {
        let bytes = self.buffer.get_mut(self.start.checked_add(offset)?..)?;
        bytes.get_mut(..size_of::<T>())?.copy_from_slice(bytes_of(&value));
        Some(())
    }

    /// As Linux does for a packet whose checksum is complete (`bpf_l4_csum_replace` with a difference,
    /// `inet_proto_csum_replace_by_diff`).
    fn mend(&mut self, offset: usize, mend: Mend) -> Option<()> {
        let old: u16 = self.read(offset)?;
        if mend.optional && old == 0 {
            return Some(());
        }
        let mut new = mended(old, mend.delta);
        if mend.optional && new == 0 {
            new = 0xffff;
        }
        self.write(offset, new)
    }

    fn open_tunnel(&mut self, outer: Family, options: u32) -> Option<()> {
        self.open(tunnel::overhead(outer.header()) + options as usize)
    }

    /// As `bpf_skb_adjust_room` does: a header at least of the family inside must be left.
    fn close_tunnel(&mut self, outer: Family, options: u32) -> Option<()> {
        let overhead = tunnel::overhead(outer.header()) + options as usize;
        let inside: Be16 = self.read(overhead + ethernet::TYPE)?;
        let inside = if inside == ethernet::IPV6 { Family::V6 } else { Family::V4 };
        if self.bytes().len() < ethernet::LENGTH + overhead + inside.header() {
            return None;
        }
        self.strip(u32::try_from(overhead).ok()?)
    }

    fn trim(&mut self, length: u32) -> Option<()> {
        self.buffer.truncate(self.start.saturating_add(length as usize));
        Some(())
    }

    fn strip(&mut self, length: u32) -> Option<()> {
        self.bytes().get(..ethernet::LENGTH + length as usize)?;
        let from = self.start;
        self.start += length as usize;
        self.buffer.copy_within(from..from + ethernet::LENGTH, self.start);
        Some(())
    }

    fn open_error(&mut self, family: Family) -> Option<()> {
        self.open(family.header() + icmp::LENGTH)
    }

    fn open_ip(&mut self, outer: Family) -> Option<()> {
        self.open(outer.header())
    }

    /// As `bpf_skb_adjust_room` does: a header of the family must be left.
    fn close_ip(&mut self, outer: Family) -> Option<()> {
        if self.bytes().len() < ethernet::LENGTH + 2 * outer.header() {
            return None;
        }
        let from = self.start;
        self.start += outer.header();
        self.buffer.copy_within(from..from + ethernet::LENGTH, self.start);
        Some(())
    }
}

/// A checksum after a change (RFC 1624, equation 3), in memory order: all in 32 bits, as Linux'
/// `csum_replace_by_diff` computes it, because which of the two zeroes comes out depends on that.
fn mended(checksum: u16, delta: u32) -> u16 {
    let (sum, carry) = delta.overflowing_add(!u32::from(checksum));
    let sum = sum + u32::from(carry);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The bytes of a value, as they lie in frames and tables.
#[inline]
pub(crate) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` vouches that there is no padding, so every byte is initialised; the slice borrows
    // the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// The value whose bytes these begin with; `None` if they are too few.
#[inline]
pub(crate) fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: the bytes are there, `Plain` vouches that every bit pattern is a value, and the read asks
    // for no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The value of which every byte is zero: what an array holds where nothing was written.
pub(crate) fn zeroed<T: Plain>() -> T {
    // SAFETY: `Plain` vouches that every bit pattern is a value.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u8) -> Frame {
        Frame::new(&(0..length).collect::<Vec<_>>(), IfIndex(3))
    }

    #[test]
    fn reading_past_the_end_gives_nothing() {
        let frame = frame(20);
        assert_eq!(frame.read::<Be16>(18), Some(Be16([18, 19])));
        assert_eq!(frame.read::<Be16>(19), None);
        assert_eq!(frame.read::<u8>(usize::MAX), None);
    }

    #[test]
    fn writing_past_the_end_changes_nothing() {
        let mut frame = frame(20);
        assert_eq!(frame.write(19, Be16::new(7)), None);
        assert_eq!(frame.write(usize::MAX, Be16::new(7)), None);
        assert_eq!(frame.bytes(), (0..20).collect::<Vec<u8>>());
        assert_eq!(frame.write(18, Be16::new(7)), Some(()));
        assert_eq!(frame.bytes()[18..], [0, 7]);
    }

    #[test]
    fn a_tunnel_opens_behind_the_ethernet_header_and_closes_again() {
        let mut frame = frame(60);
        for options in [0, 12, 24] {
            frame.open_tunnel(Family::V4, options).expect("has an Ethernet header");
        }
        assert_eq!(frame.length(), 60 + 150 + 36);
        assert_eq!(frame.bytes()[..14], (0..14).collect::<Vec<u8>>());
        assert_eq!(frame.bytes()[200..], (14..60).collect::<Vec<u8>>());
        for options in [24, 12, 0] {
            frame.close_tunnel(Family::V4, options).expect("was opened");
        }
        assert_eq!(frame.bytes(), (0..60).collect::<Vec<u8>>());
    }

    #[test]
    fn a_tunnel_does_not_close_on_less_than_an_ip_header() {
        assert_eq!(frame(83).close_tunnel(Family::V4, 0), None);
        assert_eq!(frame(84).close_tunnel(Family::V4, 0), Some(()));
        assert_eq!(frame(87).close_tunnel(Family::V4, 4), None);
        assert_eq!(frame(88).close_tunnel(Family::V4, 4), Some(()));
    }

    #[test]
    fn a_tunnel_does_not_open_without_an_ethernet_header() {
        assert_eq!(frame(13).open_tunnel(Family::V4, 0), None);
    }

    #[test]
    fn an_absent_udp_checksum_stays_absent() {
        let mut frame = Frame::new(&[0, 0], IfIndex(1));
        frame.mend(0, Mend { delta: 0x1234, optional: true, ..Mend::default() }).expect("fits");
        assert_eq!(frame.bytes(), [0, 0]);
        frame.mend(0, Mend { delta: 0x1234, ..Mend::default() }).expect("fits");
        assert_ne!(frame.bytes(), [0, 0]);
    }

    #[test]
    fn a_udp_checksum_never_becomes_absent() {
        // A sum of 0xffff is a checksum of 0: make one by mending with what is missing to it.
        for old in [1_u16, 0x1234, 0xfffe] {
            let delta = u32::from(old);
            assert_eq!(mended(old, delta), 0, "the change was chosen so");
            let mut frame = Frame::new(&old.to_ne_bytes(), IfIndex(1));
            frame.mend(0, Mend { delta, optional: true, ..Mend::default() }).expect("fits");
            assert_eq!(frame.bytes(), [0xff, 0xff]);
        }
    }

    #[test]
    fn a_mended_checksum_is_the_one_computed_anew() {
        // An independent sum, over big-endian words and 64 bits.
        fn checksum(words: &[u16]) -> u16 {
            let mut sum: u64 = words.iter().map(|word| u64::from(*word)).sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            !(sum as u16)
        }
        let mut words = [0x4500_u16, 0x0054, 0x1c46, 0x4000, 0x4001, 0xac10, 0x0a63, 0xac10, 0x0a0c];
        let mut state = 1_u32;
        for round in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let index = state as usize % words.len();
            let to = (state >> 16) as u16;
            let before = checksum(&words);
            let from = std::mem::replace(&mut words[index], to);
            let memory = |word: u16| u32::from(u16::from_ne_bytes(word.to_be_bytes()));
            let delta = {
                let (sum, carry) = (!memory(from)).overflowing_add(memory(to));
                sum + u32::from(carry)
            };
            let mut frame = Frame::new(&before.to_be_bytes(), IfIndex(1));
            frame.mend(0, Mend { delta, ..Mend::default() }).expect("fits");
            assert_eq!(frame.bytes(), checksum(&words).to_be_bytes(), "round {round}");
        }
    }
}
