//! A link of which the kernel puts every frame that arrives into memory that it shares with this process, and that
//! takes many frames with one system call.
//!
//! Arriving frames lie in slots of equal size (`TPACKET_V2`). `TPACKET_V3`, whose blocks hold as many frames as fit,
//! was measured beside it, one core, 64 bytes of payload from one veth pair to another, CPU time of sender, forwarder
//! and kernel per frame, the least of five runs; and the time that a single frame took:
//!
//! | received by | sent by | busy, ns a frame | alone, us |
//! | --- | --- | --- | --- |
//! | `recvmmsg` | `sendmmsg` | 4600 to 7700 | 14 |
//! | `TPACKET_V3`, 1 ms | `sendmmsg` | 4200 to 4600 | 1000 |
//! | `TPACKET_V3`, 1 ms | `PACKET_TX_RING` | 4600 to 4900 | 1000 |
//! | `TPACKET_V2` | `sendmmsg` | 5200 to 5700 | 12 |
//! | `TPACKET_V2`, waits only when idle | `sendmmsg` | 4100 to 4400 | 12 |
//! | `TPACKET_V2` | `PACKET_TX_RING` | 5400 to 5700 | 13 |
//!
//! A block of `TPACKET_V3` is handed over when it is full or its time is over, and that is a millisecond at least: a
//! request and its answer would take eight of them over two nodes. What it saves is that it wakes its reader once per
//! block and not once per frame; a reader that looks again before it sleeps ([`super::polling`]) is not woken either, and
//! costs as little. A ring to send from saves nothing on a veth pair, because there the kernel makes a copy of what is
//! in it before the other end sees it (`skb_orphan_frags`), into memory that it allocates for each frame.
//!
//! Source: `linux/if_packet.h`; Documentation/networking/packet_mmap.rst.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::socket::{setsockopt, sockopt};

use super::burst::Burst;
use super::socket::{bind, packet_socket, set_option, wrong};
use super::tally::Counts;

/// Bytes before a frame in its slot: the slot's head, the sender's address and what aligns the IP header.
const HEAD: usize = 96;

/// The smallest slot: a frame of the usual size.
const SLOT: usize = 2048;

/// The kernel allocates a ring in pieces of this size, or of one slot.
const BLOCK: usize = 64 << 10;

/// One link: what arrives at it, and what is sent over it.
#[derive(Debug)]
pub(super) struct Ring {
    map: Map,
    slot: usize,
    slots: usize,
    /// The slot that is filled next.
    next: usize,
    socket: OwnedFd,
}

/// Memory shared with the kernel.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is the map's alone in this process, and no thread's own.
unsafe impl Send for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this start and length, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A frame that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// It was longer than a slot.
    Cut,
}

impl Ring {
    /// Reads the link of that number and MTU, in the calling thread's namespace, into `bytes` of memory. It hears what
    /// arrives, and not what it sends itself.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(super) fn open(index: u32, mtu: usize, bytes: usize) -> io::Result<Self> {
        let ring = Self::deaf(mtu, bytes)?;
        ring.listen(index)?;
        Ok(ring)
    }

    /// One for a link of that MTU, in the calling thread's namespace, that hears nothing yet.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(super) fn deaf(mtu: usize, bytes: usize) -> io::Result<Self> {
        let socket = packet_socket()?;
        let slot = (mtu + HEAD).next_power_of_two().max(SLOT);
        let block = slot.max(BLOCK);
        let length = bytes.next_multiple_of(block);
        let slots = length / slot;
        set_option(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))?;
        let request = libc::tpacket_req {
            tp_block_size: block as libc::c_uint,
            tp_block_nr: (length / block) as libc::c_uint,
            tp_frame_size: slot as libc::c_uint,
            tp_frame_nr: slots as libc::c_uint,
        };
        set_option(&socket, libc::PACKET_RX_RING, &request)?;
        let map = Map::new(&socket, length)?;
        // With less room a burst waits for its end.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &(8 << 20));
        Ok(Self { map, slot, slots, next: 0, socket })
    }

    /// Hears what arrives at the link of that number from now on.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(super) fn listen(&self, index: u32) -> io::Result<()> {
        bind(&self.socket, index, libc::ETH_P_ALL)
    }

    /// Shows the next frame to `take`, if one has arrived, and gives its memory back.
    #[inline]
    pub(super) fn next<R>(&mut self, take: impl FnOnce(Arrived<'_>) -> R) -> Option<R> {
        // SAFETY: `next` is below `slots`, so the slot is inside the map.
        let slot = unsafe { self.map.start.add(self.next * self.slot) };
        let head = slot.cast::<libc::tpacket2_hdr>();
        // SAFETY: a slot begins with its head, aligned as such; who owns it is written by kernel and process in turns.
        let status = unsafe { AtomicU32::from_ptr(&raw mut (*head.as_ptr()).tp_status) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the slot is ours until its status says otherwise.
        let head = unsafe { head.read() };
        let (start, length) = (usize::from(head.tp_mac), head.tp_snaplen as usize);
        let arrived = if head.tp_snaplen < head.tp_len || start + length > self.slot {
            Arrived::Cut
        } else {
            // SAFETY: these bytes are inside the slot, which nobody writes until it is given back below.
            Arrived::Whole(unsafe { std::slice::from_raw_parts(slot.add(start).as_ptr(), length) })
        };
        let taken = take(arrived);
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = if self.next + 1 == self.slots { 0 } else { self.next + 1 };
        Some(taken)
    }

    /// Hears nothing any more; how many frames have arrived that nobody has taken. `index` is the link's number.
    pub(super) fn stop(&mut self, index: u32) -> u64 {
        // It fails for a link that is gone, and nothing comes from there.
        let _ = bind(&self.socket, index, 0);
        let mut left = 0;
        while left < self.slots as u64 && self.next(|_| ()).is_some() {
            left += 1;
        }
        left
    }

    /// Sends frames, and counts what became of each.
    pub(super) fn send(&self, burst: &mut Burst<'_>, counts: &Counts) {
        burst.send(&self.socket, counts);
    }

    /// What is wrong with the link, if something has happened to it since the last time.
    pub(super) fn error(&self) -> Option<io::Error> {
        wrong(&self.socket)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Map {
    fn new(socket: &OwnedFd, length: usize) -> io::Result<Self> {
        let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new map, at a place of the kernel's choice.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, shared, socket.as_raw_fd(), 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::socket::statistics;
    use super::*;
    use crate::link::Links;
    use crate::netns::Netns;

    #[test]
    #[ignore = "needs root: make test"]
    fn what_nobody_has_taken_of_a_link_is_known_when_it_is_given_up() {
        const FRAMES: usize = 10;
        // What is sent over the loopback arrives there.
        const LOOPBACK: u32 = 1;
        let name = format!("podpath-test-{}-ring", std::process::id());
        let netns = Netns::create(name).expect("the name is free").guarded();
        Links::open(&netns).and_then(|mut links| links.up("lo")).expect("every namespace has one");
        let open = || Ring::open(LOOPBACK, 1500, 64 << 10);
        let mut ring = netns.run(open).expect("it runs").expect("there is memory");
        let frame = [0; 60];
        let mut burst = Burst::default();
        (0..FRAMES).for_each(|_| burst.push(&frame));
        ring.send(&mut burst, &Counts::default());
        let (begin, mut arrived) = (Instant::now(), 0);
        while arrived < FRAMES as u32 && begin.elapsed() < Duration::from_secs(20) {
            arrived += statistics(&ring).expect("it is a packet socket").tp_packets;
        }
        assert_eq!(ring.next(|frame| frame == Arrived::Whole(&[0; 60])), Some(true));
        assert_eq!(ring.stop(LOOPBACK), FRAMES as u64 - 1);
        assert_eq!(ring.stop(LOOPBACK), 0, "what was counted is not counted again");
    }
}
