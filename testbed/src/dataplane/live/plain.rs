//! A thread for each link of a node, that takes one frame at a time from pnet through the path.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::net::if_::if_nametoindex;
use userspace::model::Cluster;

use super::deaf::Deaf;
use super::socket::{self, Receiver, Sender, Statistics};
use super::tally::{Counts, Loss, Tally};
use super::{Error, Out, Path, Refusal, Station, Wire, lock};
use crate::netns::Netns;

/// A node whose links are read until it is dropped.
#[derive(Debug)]
pub(super) struct Plain<P> {
    netns: Netns,
    shared: Arc<Shared<P>>,
    ports: HashMap<Wire, Port>,
}

/// A link that is read.
#[derive(Debug)]
struct Port {
    index: u32,
    statistics: Statistics,
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _deaf: Deaf,
}

struct Shared<P> {
    path: Mutex<P>,
    senders: RwLock<HashMap<Wire, Mutex<Sender>>>,
    counts: Counts,
    start: Instant,
}

impl<P> std::fmt::Debug for Shared<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("start", &self.start).finish_non_exhaustive()
    }
}

impl<P: Path> Plain<P> {
    /// A node without links.
    pub(super) fn new(netns: Netns, path: P) -> Self {
        let shared = Shared {
            path: Mutex::new(path),
            senders: RwLock::default(),
            counts: Counts::default(),
            start: Instant::now(),
        };
        Self { netns, shared: Arc::new(shared), ports: HashMap::new() }
    }
}

impl<P: Path> Station for Plain<P> {
    fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Refusal> {
        lock(&self.shared.path).apply(cluster, node)
    }

    fn links(&self) -> Vec<(Wire, u32)> {
        let reads = |port: &Port| port.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        self.ports.iter().filter(|(_, port)| reads(port)).map(|(wire, port)| (*wire, port.index)).collect()
    }

    fn open(&mut self, wire: Wire, interface: &str) -> Result<(), Error> {
        // One that is no longer read.
        self.close(wire);
        let failed = |tried| Error::socket(tried, interface, &self.netns);
        let (index, deaf, (sender, receiver)) = self.netns.run(|| {
            let index = if_nametoindex(interface).map_err(|errno| failed("find")(errno.into()))?;
            let deaf = Deaf::new(index).map_err(failed("keep the kernel's own stack off"))?;
            let opened = socket::open(interface, index).map_err(failed("open a packet socket on"))?;
            Ok::<_, Error>((index, deaf, opened))
        })??;
        let statistics = receiver.statistics().map_err(failed("count what is lost on"))?;
        write(&self.shared.senders).insert(wire, Mutex::new(sender));
        let running = Arc::new(AtomicBool::new(true));
        let (shared, still) = (Arc::clone(&self.shared), Arc::clone(&running));
        let thread = thread::Builder::new()
            .name(interface.to_owned())
            .spawn(move || shared.read(wire, receiver, &still))
            .map_err(failed("start a thread for"))?;
        self.ports.insert(wire, Port { index, statistics, running, thread: Some(thread), _deaf: deaf });
        Ok(())
    }

    fn close(&mut self, wire: Wire) {
        write(&self.shared.senders).remove(&wire);
        if let Some(port) = self.ports.remove(&wire) {
            self.shared.count_overrun(wire, &port);
        }
    }

    fn tally(&self) -> Tally {
        for (wire, port) in &self.ports {
            self.shared.count_overrun(*wire, port);
        }
        self.shared.counts.tally()
    }

    fn stop(&self) {
        for port in self.ports.values() {
            port.running.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that reads a link has panicked");
        }
    }
}

impl<P> Shared<P> {
    fn count_overrun(&self, wire: Wire, port: &Port) {
        match port.statistics.overrun() {
            Ok(frames) => self.counts.lost(Loss::Overrun, frames),
            Err(error) => tracing::warn!("nobody knows what {wire:?} had no room for: {error}"),
        }
    }

    /// Sends a frame.
    fn send(&self, to: Wire, frame: &[u8]) {
        let senders = self.senders.read().unwrap_or_else(PoisonError::into_inner);
        match senders.get(&to).map(|sender| lock(sender).send(frame)) {
            Some(Ok(())) => self.counts.sent(1),
            Some(Err(error)) => self.counts.lost(Loss::of(&error), 1),
            None => self.counts.lost(Loss::NoLink, 1),
        }
    }
}

impl<P: Path> Shared<P> {
    /// Takes every frame of a link through the path, until told to stop or the link cannot be read. One that is
    /// down is waited for.
    fn read(&self, link: Wire, mut receiver: Receiver, running: &AtomicBool) {
        let mut out = Out::default();
        while running.load(Ordering::Relaxed) {
            let frame = match receiver.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => continue,
                // A link that goes down says so once, and may come back; one that is gone is closed by its owner.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
                Err(error) => {
                    tracing::warn!("{link:?} is no longer read: {error}");
                    return;
                }
            };
            lock(&self.path).pass(link, frame, self.start.elapsed(), &mut out);
            self.counts.received(1, u64::from(out.is_empty()));
            for (to, frame) in out.frames() {
                self.send(to, frame);
            }
            out.clear();
        }
    }
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
