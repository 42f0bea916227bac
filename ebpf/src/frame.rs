//! A frame in a network driver, before the kernel makes anything of it: `dataplane::Packet`, answered by XDP.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use dataplane::tables::IfIndex;
use dataplane::wire::{Be16, Family, Plain, checksum, ethernet, icmp, tunnel};
use dataplane::{Mend, Packet};

use crate::bytes::{bounded, done, field, load, store};

/// A frame in the driver's own memory. It lies in one piece, and its checksums are complete.
pub(crate) struct Frame {
    context: *mut xdp_md,
}

impl Frame {
    /// The frame a program was called with.
    pub(crate) fn new(context: *mut xdp_md) -> Self {
        Self { context }
    }

    #[inline(always)]
    fn place(&self, offset: usize, length: usize) -> Option<usize> {
        let place = field!(self.context, xdp_md, data) as usize + bounded(offset);
        if place + length > field!(self.context, xdp_md, data_end) as usize { None } else { Some(place) }
    }

    /// Moves the first byte by so many, backwards if there are less than none.
    #[inline(always)]
    pub(crate) fn move_head(&mut self, bytes: i32) -> Option<()> {
        // SAFETY: the helper checks the length.
        done(unsafe { bpf_xdp_adjust_head(self.context, bytes) })
    }

    /// Moves the Ethernet header to a new first byte, so many bytes from the old one.
    #[inline(always)]
    fn adjust(&mut self, bytes: i32) -> Option<()> {
        let start: [u32; 3] = [self.read(0)?, self.read(4)?, self.read(8)?];
        let kind: Be16 = self.read(ethernet::TYPE)?;
        self.move_head(-bytes)?;
        self.write(0, start[0])?;
        self.write(4, start[1])?;
        self.write(8, start[2])?;
        self.write(ethernet::TYPE, kind)
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn interface(&self) -> IfIndex {
        IfIndex(field!(self.context, xdp_md, ingress_ifindex) as u32)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        (field!(self.context, xdp_md, data_end) - field!(self.context, xdp_md, data)) as u32
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn pull(&mut self, _length: u32) {}

    #[inline(always)]
    fn read<T: Plain>(&self, offset: usize) -> Option<T> {
        let place = self.place(offset, size_of::<T>())?;
        // SAFETY: the bytes lie before the end, and any bytes are a value of a plain type.
        Some(unsafe { load(place) })
    }

    #[inline(always)]
    fn write<T: Plain>(&mut self, offset: usize, value: T) -> Option<()> {
        let place = self.place(offset, size_of::<T>())?;
        // SAFETY: the bytes lie before the end, and the driver made them the program's own.
        unsafe { store(place, value) };
        Some(())
    }

    #[inline(always)]
    fn mend(&mut self, offset: usize, mend: Mend) -> Option<()> {
        let old: Be16 = self.read(offset)?;
        if mend.optional && old == Be16::new(0) {
            return Some(());
        }
        let mut new = checksum::mended(old, mend.delta);
        if mend.optional && new == Be16::new(0) {
            new = Be16::new(0xffff);
        }
        self.write(offset, new)
    }

    #[inline(always)]
    fn open_tunnel(&mut self, outer: Family, options: u32) -> Option<()> {
        self.adjust(tunnel::overhead(outer.header()) as i32 + options as i32)
    }

    /// Only from around a packet, as the kernel has it.
    #[inline(always)]
    fn close_tunnel(&mut self, outer: Family, options: u32) -> Option<()> {
        let room = tunnel::overhead(outer.header()) + options as usize;
        let inside: Be16 = self.read(room + ethernet::TYPE)?;
        let least = if inside == ethernet::IPV6 { Family::V6 } else { Family::V4 }.header();
        self.read::<u8>(ethernet::LENGTH + room + least - 1)?;
        self.adjust(-(room as i32))
    }

    #[inline(always)]
    fn trim(&mut self, length: u32) -> Option<()> {
        let whole = self.length();
        if whole <= length {
            return Some(());
        }
        // SAFETY: the helper checks the length.
        done(unsafe { bpf_xdp_adjust_tail(self.context, length as i32 - whole as i32) })
    }

    #[inline(always)]
    fn strip(&mut self, length: u32) -> Option<()> {
        if length == 0 {
            return Some(());
        }
        self.adjust(-(length as i32))
    }

    #[inline(always)]
    fn open_error(&mut self, family: Family) -> Option<()> {
        self.adjust((family.header() + icmp::LENGTH) as i32)
    }

    /// Whoever opens it writes all of the Ethernet header.
    #[inline(always)]
    fn open_ip(&mut self, outer: Family) -> Option<()> {
        self.move_head(-(outer.header() as i32))
    }

    #[inline(always)]
    fn close_ip(&mut self, outer: Family) -> Option<()> {
        self.adjust(-(outer.header() as i32))
    }
}
