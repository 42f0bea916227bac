//! One thread for a node, that looks at the rings of all of its links in turn ([`Ring`]).
//!
//! It takes up to [`TURN`] frames of a link through the path, sends what comes of them in one call for each link they
//! leave by, and goes on with the next link. Where nothing has come it sleeps until the kernel wakes it; but after a
//! turn of several frames it first lets others run and looks again, because on a busy node being woken for every frame
//! costs more than the frame.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use userspace::model::Cluster;

use super::burst::Burst;
use super::deaf::Deaf;
use super::ring::{Arrived, Ring};
use super::socket;
use super::tally::{Counts, Loss, Tally};
use super::{Error, Out, Path, Refusal, Station, Wire, lock};
use crate::netns::Netns;

/// Frames of a link before it is the next one's turn.
const TURN: u64 = 64;

/// How often a busy node looks again before it sleeps.
const LOOKS: u32 = 4;

/// How long it sleeps at most, so that it sees when it is to stop.
const SLEEP: Duration = Duration::from_millis(100);

/// How long after a ring with longer slots could not be had another one is tried for.
const AGAIN: Duration = Duration::from_secs(1);

/// Bytes for what arrives at a pod's link: a TCP sender's window.
const POD: usize = 2 << 20;

/// Bytes for what arrives at a link that many share.
const SHARED: usize = 8 << 20;

/// A node whose links are looked at until it is dropped.
#[derive(Debug)]
pub(super) struct Polling<P> {
    netns: Netns,
    node: Arc<Node<P>>,
    thread: Option<JoinHandle<()>>,
}

struct Node<P> {
    netns: Netns,
    running: AtomicBool,
    /// Whoever wants the desk comes by here first, so that a busy thread cannot keep others from it.
    door: Mutex<()>,
    desk: Mutex<Desk<P>>,
    epoll: Epoll,
    counts: Counts,
    start: Instant,
}

struct Desk<P> {
    path: P,
    links: Vec<Link>,
}

struct Link {
    wire: Wire,
    /// Its number: one of the same name may be another.
    index: u32,
    interface: String,
    /// When the ring was opened, in bytes.
    mtu: usize,
    ring: Ring,
    /// When another ring may be tried for, since the node's start.
    widens_from: Duration,
    _deaf: Deaf,
}

impl<P> std::fmt::Debug for Node<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("start", &self.start).finish_non_exhaustive()
    }
}

impl<P: Path> Polling<P> {
    /// A node without links.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(super) fn start(netns: Netns, path: P) -> io::Result<Self> {
        let mut polling = Self::at_rest(netns, path)?;
        let looking = Arc::clone(&polling.node);
        let thread = thread::Builder::new().name("links".to_owned()).spawn(move || looking.run())?;
        polling.thread = Some(thread);
        Ok(polling)
    }

    /// A node whose links nobody looks at yet.
    fn at_rest(netns: Netns, path: P) -> io::Result<Self> {
        let node = Arc::new(Node {
            netns: netns.clone(),
            running: AtomicBool::new(true),
            door: Mutex::default(),
            desk: Mutex::new(Desk { path, links: Vec::new() }),
            epoll: Epoll::new()?,
            counts: Counts::default(),
            start: Instant::now(),
        });
        Ok(Self { netns, node, thread: None })
    }
}

impl<P: Path> Station for Polling<P> {
    fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Refusal> {
        self.node.desk().path.apply(cluster, node)
    }

    fn links(&self) -> Vec<(Wire, u32)> {
        self.node.desk().links.iter().map(|link| (link.wire, link.index)).collect()
    }

    fn open(&mut self, wire: Wire, interface: &str) -> Result<(), Error> {
        let failed = |tried| Error::socket(tried, interface, &self.netns);
        let (index, mtu, deaf, ring) = self.netns.run(|| {
            let index = if_nametoindex(interface).map_err(|errno| failed("find")(errno.into()))?;
            let mtu = socket::mtu(interface).map_err(failed("ask for the MTU of"))?;
            let deaf = Deaf::new(index).map_err(failed("keep the kernel's own stack off"))?;
            let ring = Ring::open(index, mtu, room(wire)).map_err(failed("share memory for"))?;
            Ok::<_, Error>((index, mtu, deaf, ring))
        })??;
        let mut desk = self.node.desk();
        self.node.epoll.add(ring.as_fd()).map_err(failed("wait for"))?;
        let (interface, widens_from) = (interface.to_owned(), Duration::ZERO);
        desk.links.push(Link { wire, index, interface, mtu, ring, widens_from, _deaf: deaf });
        Ok(())
    }

    fn close(&mut self, wire: Wire) {
        let mut desk = self.node.desk();
        // Who waits for its socket waits for it no more when that is closed.
        for mut link in desk.links.extract_if(.., |link| link.wire == wire) {
            self.node.counts.lost(Loss::Down, link.ring.stop(link.index));
            self.node.count_overrun(&link);
        }
    }

    fn tally(&self) -> Tally {
        for link in &self.node.desk().links {
            self.node.count_overrun(link);
        }
        self.node.counts.tally()
    }

    fn stop(&self) {
        self.node.running.store(false, Ordering::Relaxed);
    }
}

impl<P> Drop for Polling<P> {
    fn drop(&mut self) {
        self.node.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that reads links has panicked");
        }
    }
}

impl<P> Node<P> {
    fn desk(&self) -> MutexGuard<'_, Desk<P>> {
        let _door = lock(&self.door);
        lock(&self.desk)
    }

    fn count_overrun(&self, link: &Link) {
        match socket::overrun(&link.ring) {
            Ok(frames) => self.counts.lost(Loss::Overrun, frames),
            Err(error) => tracing::warn!("nobody knows what {:?} had no room for: {error}", link.wire),
        }
    }
}

impl<P: Path> Node<P> {
    /// Takes whatever comes through the path, until told to stop.
    fn run(&self) {
        let (mut out, mut burst, mut looks) = (Out::default(), Burst::default(), 0);
        while self.running.load(Ordering::Relaxed) {
            // Not in the `match` itself: it would keep the desk until its end, and so while this thread sleeps.
            let frames = self.turn(self.start.elapsed(), &mut self.desk(), &mut out, &mut burst);
            match frames {
                0 if looks == 0 => self.sleep(),
                0 => {
                    looks -= 1;
                    thread::yield_now();
                }
                1 => {}
                _ => looks = LOOKS,
            }
        }
    }

    /// Every link's turn, so long after the node's start; how many frames there were.
    fn turn(&self, now: Duration, desk: &mut Desk<P>, out: &mut Out, burst: &mut Burst<'static>) -> u64 {
        let mut all = 0;
        for place in 0..desk.links.len() {
            let Desk { path, links } = desk;
            let Link { wire, ring, .. } = &mut links[place];
            let (mut frames, mut kept, mut cut) = (0, 0, 0);
            while frames + cut < TURN {
                let before = out.len();
                let whole = ring.next(|arrived| match arrived {
                    Arrived::Whole(frame) => {
                        path.pass(*wire, frame, now, out);
                        true
                    }
                    Arrived::Cut => false,
                });
                match whole {
                    None => break,
                    Some(true) => (frames, kept) = (frames + 1, kept + u64::from(out.len() == before)),
                    Some(false) => cut += 1,
                }
            }
            if frames + cut == 0 {
                continue;
            }
            self.counts.received(frames, kept);
            self.counts.lost(Loss::TooLong, cut);
            if cut > 0 && links[place].widens_from <= now {
                self.widen(&mut links[place], now);
            }
            self.flush(links, out, burst);
            all += frames + cut;
        }
        all
    }

    /// A link of which frames were cut gets a ring with longer slots, if that is because its MTU was raised since. Where
    /// that cannot be had its own goes on, and the next frame that is cut asks again.
    fn widen(&self, link: &mut Link, now: Duration) {
        let told = self.netns.run(|| socket::mtu(&link.interface));
        let Ok(Ok(mtu)) = told else {
            return tracing::warn!("nobody knows the MTU of {}: {told:?}", link.interface);
        };
        if mtu <= link.mtu {
            return;
        }
        let bytes = room(link.wire);
        let made = self.netns.run(|| {
            let ring = Ring::deaf(mtu, bytes)?;
            self.epoll.add(ring.as_fd())?;
            Ok(ring)
        });
        self.replace(link, made.unwrap_or_else(|error| Err(io::Error::other(error))), (mtu, now));
    }

    /// A ring that hears nothing yet takes the place of a link's. What its own was not asked for by then is lost.
    fn replace(&self, link: &mut Link, made: io::Result<Ring>, (mtu, now): (usize, Duration)) {
        let listening = made.and_then(|ring| {
            // First, so that no frame comes twice.
            self.counts.lost(Loss::Down, link.ring.stop(link.index));
            self.count_overrun(link);
            ring.listen(link.index).map(|()| ring)
        });
        match listening {
            Ok(ring) => (link.ring, link.mtu) = (ring, mtu),
            Err(error) => {
                link.widens_from = now + AGAIN;
                tracing::error!(
                    "cannot read {} in frames of {mtu} bytes: {error}; longer ones than {} are lost until it can",
                    link.interface,
                    link.mtu
                );
                // It fails for a link that is gone, and nothing comes from there.
                if let Err(error) = link.ring.listen(link.index) {
                    tracing::warn!("{} is no longer read: {error}", link.interface);
                }
            }
        }
    }

    /// Sends all that there is.
    fn flush(&self, links: &[Link], out: &mut Out, memory: &mut Burst<'static>) {
        while !out.is_empty() {
            let mut burst = std::mem::take(memory).again();
            let to = out.take_link(|frame| burst.push(frame));
            match links.iter().find(|link| Some(link.wire) == to) {
                Some(link) => link.ring.send(&mut burst, &self.counts),
                None => self.counts.lost(Loss::NoLink, burst.len() as u64),
            }
            *memory = burst.again();
        }
        out.clear();
    }

    /// Until there is something to read.
    fn sleep(&self) {
        match self.epoll.wait(SLEEP) {
            Ok(false) => {}
            // A link that is gone says so once; one that is down may come back.
            Ok(true) => {
                for link in &self.desk().links {
                    if let Some(error) = link.ring.error() {
                        tracing::debug!("{:?} cannot be read: {error}", link.wire);
                    }
                }
            }
            Err(error) => tracing::warn!("cannot wait for frames: {error}"),
        }
    }
}

/// Bytes for what arrives at a link.
fn room(wire: Wire) -> usize {
    if matches!(wire, Wire::Pod(_)) { POD } else { SHARED }
}

/// What waits for many sockets at once.
struct Epoll(OwnedFd);

impl Epoll {
    fn new() -> io::Result<Self> {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and ours alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits for this socket as well, until it is closed.
    fn add(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut wanted = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        let (own, socket) = (self.0.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: the kernel reads one event, which outlives the call.
        let added = unsafe { libc::epoll_ctl(own, libc::EPOLL_CTL_ADD, socket, &raw mut wanted) };
        if added < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until there is something to read, or for that long; whether something is wrong with a socket.
    fn wait(&self, longest: Duration) -> io::Result<bool> {
        const AT_ONCE: usize = 16;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; AT_ONCE];
        let (own, longest) = (self.0.as_raw_fd(), longest.as_millis() as libc::c_int);
        // SAFETY: the kernel writes at most so many events, and how many they are is what it returns.
        let count = unsafe { libc::epoll_wait(own, events.as_mut_ptr(), AT_ONCE as libc::c_int, longest) };
        match usize::try_from(count) {
            Ok(count) => Ok(events[..count].iter().any(|event| event.events & libc::EPOLLERR as u32 != 0)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Links;
    use crate::netns::Guard;

    /// A path that frames end in.
    struct End;

    impl Path for End {
        fn new(_: &Cluster, _: &str) -> Result<Self, Refusal> {
            Ok(Self)
        }

        fn apply(&mut self, _: &Cluster, _: &str) -> Result<(), Refusal> {
            Ok(())
        }

        fn pass(&mut self, _: Wire, _: &[u8], _: Duration, _: &mut Out) {}
    }

    const LOOPBACK: &str = "lo";

    /// A node that reads the loopback of a namespace of its own, at which arrives what is sent over it.
    fn looped(
        purpose: &str,
        start: impl FnOnce(Netns, End) -> io::Result<Polling<End>>,
    ) -> (Guard, Polling<End>) {
        let name = format!("podpath-test-{}-{purpose}", std::process::id());
        let netns = Netns::create(name).expect("the name is free").guarded();
        Links::open(&netns).and_then(|mut links| links.up(LOOPBACK)).expect("every namespace has one");
        let mut polling = start((*netns).clone(), End).expect("a thread can be had");
        polling.open(Wire::Uplink, LOOPBACK).expect("it is there");
        (netns, polling)
    }

    /// Sends frames over the link until the path has had another one.
    fn is_heard(polling: &Polling<End>) {
        let (begin, before) = (Instant::now(), polling.tally().received);
        while polling.tally().received == before {
            assert!(begin.elapsed() < Duration::from_secs(20), "nobody hears: {:?}", polling.tally());
            let mut burst = Burst::default();
            burst.push(&[0; 60]);
            let desk = polling.node.desk();
            desk.links[0].ring.send(&mut burst, &polling.node.counts);
        }
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn a_link_whose_ring_cannot_be_replaced_keeps_its_own_and_asks_again() {
        let (netns, polling) = looped("kept", Polling::start);
        is_heard(&polling);
        let bytes = room(Wire::Uplink);
        let refused = Err(io::Error::from_raw_os_error(libc::ENOMEM));
        polling.node.replace(&mut polling.node.desk().links[0], refused, (9000, Duration::ZERO));
        assert_eq!(polling.node.desk().links[0].widens_from, AGAIN);
        is_heard(&polling);
        let made = netns.run(|| Ring::deaf(9000, bytes)).expect("it runs");
        let made = made.and_then(|ring| polling.node.epoll.add(ring.as_fd()).map(|()| ring));
        polling.node.replace(&mut polling.node.desk().links[0], made, (9000, AGAIN));
        assert_eq!(polling.node.desk().links[0].mtu, 9000);
        is_heard(&polling);
    }

    /// Has a frame arrive that is too long for the slots of a usual link, and the node take its turn at this time: how
    /// many were taken whole, and how many were cut.
    fn long_frame(polling: &Polling<End>, now: Duration) -> (u64, u64) {
        let (begin, before) = (Instant::now(), polling.tally());
        let (mut out, mut burst) = (Out::default(), Burst::default());
        burst.push(&[0; 5000]);
        let mut desk = polling.node.desk();
        desk.links[0].ring.send(&mut burst, &polling.node.counts);
        while polling.node.turn(now, &mut desk, &mut out, &mut Burst::default()) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(20), "it does not arrive");
        }
        drop(desk);
        let cut = |tally: &Tally| tally.lost.get(&Loss::TooLong).copied().unwrap_or(0);
        let after = polling.tally();
        (after.received - before.received, cut(&after) - cut(&before))
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn another_ring_is_tried_for_a_second_after_one_could_not_be_had_and_not_before() {
        const MTU: usize = 1500;
        const NOW: Duration = Duration::from_secs(100);
        let (netns, polling) = looped("again", Polling::at_rest);
        let refused = Err(io::Error::from_raw_os_error(libc::ENOMEM));
        {
            let link = &mut polling.node.desk().links[0];
            // As if the loopback's MTU had been raised since.
            let ring = netns.run(|| Ring::open(link.index, MTU, room(link.wire))).expect("it runs");
            (link.ring, link.mtu) = (ring.expect("there is memory"), MTU);
            polling.node.replace(link, refused, (65_536, NOW));
        }
        let early = NOW + AGAIN - Duration::from_nanos(1);
        assert_eq!((long_frame(&polling, early), polling.node.desk().links[0].mtu), ((0, 1), MTU));
        assert_eq!(long_frame(&polling, NOW + AGAIN), (0, 1), "the one that asks is cut");
        assert!(polling.node.desk().links[0].mtu > MTU);
        assert_eq!(long_frame(&polling, NOW + AGAIN), (1, 0));
    }
}
