//! Frames, made beforehand, through whatever is between two links: as many as go.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};

use super::{Ends, Error, Limits, Packets, Ticks, Transport};
use crate::dataplane::live::burst::Burst;
use crate::dataplane::live::socket::{bind, packet_socket, statistics};
use crate::dataplane::live::tally::Counts;
use crate::netns::Netns;
use crate::topology::UPLINK;

/// Frames handed to the kernel at a time.
const BATCH: usize = 32;

/// Frames that may be on their way. More would only fill queues, and be lost there at the cost of those that are not.
const WINDOW: u64 = 256;

/// How long nothing may arrive before what is on its way counts as lost.
const QUIET: Duration = Duration::from_millis(50);

/// Sends frames in turn over the client's link, and counts packets of IPv4 that arrive at the server's: no socket
/// reads or writes them, so that what is measured is what lies between. They are UDP to the port that the server
/// listens on, or answered with errors. A frame that does not arrive is waited for only as long as nothing arrives.
///
/// # Errors
/// A link is not there, or nothing arrived.
pub fn forward(ends: &Ends, frames: &[Vec<u8>], limits: Limits) -> Result<Packets, Error> {
    let _listening = ends.receiver()?;
    let sending = open(&ends.client.netns, 0)?;
    let arriving = open(&ends.server.netns, libc::ETH_P_IP)?;
    // Nobody reads them: they are counted, and dropped.
    let _ = setsockopt(&arriving, sockopt::RcvBuf, &0);
    let mut flood = Flood { sending, arriving, frames, next: 0, on_their_way: 0 };
    ends.client.netns.run(|| {
        ends.client.pin()?;
        flood.pour(limits.warm_up, u64::MAX).map_err(ends.broken(Transport::Udp))?;
        let packets = flood.pour(limits.time, limits.count).map_err(ends.broken(Transport::Udp))?;
        if packets.received == 0 { Err(ends.silent(Transport::Udp)) } else { Ok(packets) }
    })?
}

fn open(netns: &Netns, protocol: libc::c_int) -> Result<OwnedFd, Error> {
    let opened = netns.run(|| {
        let index = if_nametoindex(UPLINK)?;
        let socket = packet_socket()?;
        bind(&socket, index, protocol)?;
        Ok(socket)
    })?;
    opened.map_err(|source| Error::Frames { netns: netns.name().to_owned(), source })
}

struct Flood<'a> {
    sending: OwnedFd,
    arriving: OwnedFd,
    frames: &'a [Vec<u8>],
    /// The frame that is sent next.
    next: usize,
    on_their_way: u64,
}

impl Flood<'_> {
    /// Sends for so long, or so many, and waits for what is on its way.
    fn pour(&mut self, time: Duration, most: u64) -> io::Result<Packets> {
        let (ticks, begin, counts) = (Ticks::now(), Instant::now(), Counts::default());
        let (mut burst, mut received, mut sent) = (Burst::default(), 0, 0);
        self.on_their_way = 0;
        while begin.elapsed() < time && sent < most {
            let frames = self.frames;
            for _ in 0..BATCH {
                burst.push(&frames[self.next]);
                self.next = (self.next + 1) % frames.len();
            }
            burst.send(&self.sending, &counts);
            burst = burst.again();
            let taken = counts.tally().sent;
            self.on_their_way += taken - sent;
            sent = taken;
            received += self.wait_for(WINDOW)?;
        }
        received += self.wait_for(0)?;
        let (elapsed, ticks) = (begin.elapsed(), Ticks::now().since(ticks));
        Ok(Packets { sent, received, elapsed, ticks })
    }

    /// Waits until no more than so many frames are on their way, or nothing arrives any more; how many arrived.
    fn wait_for(&mut self, most: u64) -> io::Result<u64> {
        let (mut last, mut received) = (Instant::now(), 0);
        loop {
            let arrived = u64::from(statistics(&self.arriving)?.tp_packets);
            if arrived > 0 {
                last = Instant::now();
            }
            received += arrived;
            self.on_their_way = self.on_their_way.saturating_sub(arrived);
            if self.on_their_way > most && last.elapsed() > QUIET {
                self.on_their_way = 0;
            }
            if self.on_their_way <= most {
                return Ok(received);
            }
            // Who is to forward them may share this CPU.
            thread::yield_now();
        }
    }
}
