//! [`userspace::fabric`] on the links of a cluster's fabric namespace: a thread that reads each, and one
//! that sends what was delayed when its time has come.
//!
//! The kernel in that namespace forwards nothing and has no addresses; it drops what the sockets have read.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use userspace::fabric::{End, Fabric, Port, Report};
use userspace::model::{Cluster, LinkQuality};

use super::Error;
use super::told::{Telling, Told};
use crate::dataplane::live::socket::{self, Receiver, Sender};
use crate::netns::{Netns, Part};
use crate::topology::{WORLD, WORLD_MAC, fabric_side};

/// How long the sending thread sleeps at most, so that it sees when it is to stop.
const TURN: Duration = Duration::from_millis(100);

/// A link of the fabric's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wire {
    /// To the node at this place.
    Node(usize),
    /// To all hosts outside.
    World,
}

impl Wire {
    fn of(port: Port) -> Self {
        match port {
            Port::Node(place) => Self::Node(place),
            Port::External(_) => Self::World,
        }
    }

    fn interface(self, cluster: &Cluster) -> String {
        match self {
            Self::Node(place) => fabric_side(&cluster.nodes[place].name),
            Self::World => WORLD.to_owned(),
        }
    }
}

/// A fabric that carries frames until it is dropped.
#[derive(Debug)]
pub struct Live {
    netns: Netns,
    shared: Arc<Shared>,
    readers: BTreeMap<Wire, Reader>,
    clock: Option<JoinHandle<()>>,
}

/// A thread that reads a link.
#[derive(Debug)]
struct Reader {
    /// The link's number: one of the same name may be another.
    index: u32,
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Something is due sooner than the clock's thread thinks.
    sooner: Condvar,
    running: AtomicBool,
    start: Instant,
}

/// What is locked together: frames leave in the order in which the fabric gives them.
struct State {
    fabric: Fabric,
    senders: BTreeMap<Wire, Sender>,
    /// When the clock's thread will look again.
    wakes_ns: u64,
    /// Frames that a link did not take.
    refused: u64,
    /// The packets that are followed, if any are.
    telling: Option<Telling>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Live {
    /// Starts on the links of a cluster. Frames pass when this returns.
    ///
    /// # Errors
    /// There is no such fabric, or a link cannot be read. Nothing runs then.
    pub fn start(cluster: &Cluster) -> Result<Self, Error> {
        let state = State {
            // The links' own seeds say what chance makes of them.
            fabric: Fabric::of(cluster, 0)?,
            senders: BTreeMap::new(),
            wakes_ns: 0,
            refused: 0,
            telling: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            sooner: Condvar::new(),
            running: AtomicBool::new(true),
            start: Instant::now(),
        });
        let netns = Netns::of(&cluster.name, Part::Fabric);
        let mut live = Self { netns, shared: Arc::clone(&shared), readers: BTreeMap::new(), clock: None };
        let clock = thread::Builder::new().name("clock".to_owned()).spawn(move || shared.keep_time());
        live.clock = Some(clock?);
        live.open_links(cluster)?;
        Ok(live)
    }

    /// Goes on with a cluster that has changed, its links with it.
    ///
    /// # Errors
    /// There is no such fabric, and nothing is changed; or a link cannot be read.
    pub fn apply(&mut self, cluster: &Cluster) -> Result<(), Error> {
        self.shared.lock().fabric.apply(cluster)?;
        self.open_links(cluster)
    }

    /// See [`Fabric::set_links`].
    ///
    /// # Errors
    /// There is no such link.
    pub fn set_links(&self, links: &[LinkQuality]) -> Result<(), Error> {
        Ok(self.shared.lock().fabric.set_links(links)?)
    }

    /// What happened so far.
    pub fn report(&self) -> Report {
        let mut state = self.shared.lock();
        self.shared.send_due(&mut state);
        state.fabric.report()
    }

    /// Follows packets from now on.
    pub fn tell(&self) {
        self.shared.lock().telling = Some(Telling::default());
    }

    /// What was done to the packets that were followed, in the order in which it happened; follows none any more.
    pub fn told(&self) -> Vec<Told> {
        let mut state = self.shared.lock();
        self.shared.send_due(&mut state);
        state.telling.take().map(|telling| telling.told).unwrap_or_default()
    }

    /// Reads the links that are not read yet, and gives up those that are gone.
    fn open_links(&mut self, cluster: &Cluster) -> Result<(), Error> {
        let wanted: Vec<Wire> = (0..cluster.nodes.len()).map(Wire::Node).chain([Wire::World]).collect();
        let mut indices = BTreeMap::new();
        for wire in wanted {
            let interface = wire.interface(cluster);
            let index = self.netns.run(|| if_nametoindex(interface.as_str()))?;
            let index = index.map_err(|errno| self.failed("find", &interface, errno.into()))?;
            indices.insert(wire, index);
        }
        let is_wanted = |wire: &Wire, reader: &Reader| {
            let dead = reader.thread.as_ref().is_none_or(JoinHandle::is_finished);
            indices.get(wire) == Some(&reader.index) && !dead
        };
        let gone: Vec<Wire> = self
            .readers
            .iter()
            .filter(|(wire, reader)| !is_wanted(wire, reader))
            .map(|(wire, _)| *wire)
            .collect();
        for wire in gone {
            self.shared.lock().senders.remove(&wire);
            self.readers.remove(&wire);
        }
        for (wire, index) in indices {
            if !self.readers.contains_key(&wire) {
                let reader = self.open(wire, &wire.interface(cluster), index)?;
                self.readers.insert(wire, reader);
            }
        }
        Ok(())
    }

    /// Reads a link from now on.
    fn open(&self, wire: Wire, interface: &str, index: u32) -> Result<Reader, Error> {
        let opened = self.netns.run(|| socket::open(interface, index))?;
        let (sender, receiver) =
            opened.map_err(|source| self.failed("open a packet socket on", interface, source))?;
        self.shared.lock().senders.insert(wire, sender);
        let running = Arc::new(AtomicBool::new(true));
        let (shared, still) = (Arc::clone(&self.shared), Arc::clone(&running));
        let thread = thread::Builder::new()
            .name(interface.to_owned())
            .spawn(move || shared.read(wire, receiver, &still))
            .map_err(|source| self.failed("start a thread for", interface, source))?;
        Ok(Reader { index, running, thread: Some(thread) })
    }

    fn failed(&self, tried: &'static str, link: &str, source: io::Error) -> Error {
        let (link, netns) = (link.to_owned(), self.netns.name().to_owned());
        Error::Socket { tried, link, netns, source }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        join(self.thread.take());
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.shared.running.store(false, Ordering::Relaxed);
        self.shared.sooner.notify_all();
        // All are told before any is waited for.
        for reader in self.readers.values() {
            reader.running.store(false, Ordering::Relaxed);
        }
        join(self.clock.take());
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the fabric has panicked");
    }
}

impl Shared {
    /// A panic elsewhere has ended the fabric's own asserts, not the data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Lets every frame of a link into the fabric, until told to stop or the link is gone.
    fn read(&self, wire: Wire, mut receiver: Receiver, running: &AtomicBool) {
        while running.load(Ordering::Relaxed) {
            let frame = match receiver.next() {
                Ok(Some(frame)) => frame.to_vec(),
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!("{wire:?} is no longer read: {error}");
                    return;
                }
            };
            let mut state = self.lock();
            let port = match wire {
                Wire::Node(place) => Port::Node(place),
                // What nobody outside may send is refused as the first one's.
                Wire::World => state.fabric.world_port(&frame).unwrap_or(Port::External(0)),
            };
            let tag = state.telling.as_mut().map_or(0, |telling| telling.tag(&frame));
            state.fabric.arrive(port, frame, tag, self.now_ns());
            self.send_due(&mut state);
            let next_ns = state.fabric.next_due_ns();
            if next_ns.is_some_and(|next_ns| next_ns < state.wakes_ns) {
                self.sooner.notify_one();
            }
        }
    }

    /// Sends delayed frames at their time, until told to stop.
    fn keep_time(&self) {
        let mut state = self.lock();
        while self.running.load(Ordering::Relaxed) {
            let now_ns = self.now_ns();
            if state.fabric.next_probe_ns().is_some_and(|due_ns| due_ns <= now_ns) {
                state.fabric.probe(now_ns);
            }
            self.send_due(&mut state);
            let now_ns = self.now_ns();
            let turn_ns = now_ns + TURN.as_nanos() as u64;
            state.wakes_ns = state.fabric.next_due_ns().map_or(turn_ns, |next_ns| next_ns.min(turn_ns));
            let left = Duration::from_nanos(state.wakes_ns.saturating_sub(now_ns));
            let waited = self.sooner.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends what is due. A frame that a link does not take is lost behind the fabric, as on any wire.
    fn send_due(&self, state: &mut State) {
        while let Some(mut outcome) = state.fabric.due(self.now_ns()) {
            if let Some(telling) = &mut state.telling {
                telling.note(&outcome);
            }
            let port = match outcome.end {
                End::Out(port) => port,
                End::Lost(loss) => {
                    tracing::trace!("lost a frame: {}", loss.sentence());
                    continue;
                }
                End::Taken => continue,
            };
            let wire = Wire::of(port);
            if wire == Wire::World {
                // One interface stands for all hosts outside.
                outcome.frame[..6].copy_from_slice(&WORLD_MAC.0);
            }
            let sent = state.senders.get_mut(&wire).map(|sender| sender.send(&outcome.frame));
            if !matches!(sent, Some(Ok(()))) {
                state.refused += 1;
                tracing::debug!("{wire:?} did not take a frame, {} so far: {sent:?}", state.refused);
            }
        }
    }
}
