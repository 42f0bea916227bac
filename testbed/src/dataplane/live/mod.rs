//! A packet path of this process on a cluster's real links: packet sockets on the host side of every pod's
//! link, on the uplink and on the link to the node's own stack; one thread for each, and one [`Path`] for
//! all of a node's.
//!
//! The kernel neither forwards ([`Layout::USERSPACE`](crate::topology::Layout::USERSPACE)) nor hears what
//! the sockets hear ([`Deaf`]).

mod deaf;
pub mod emulator;
mod io;
mod out;
pub(crate) mod socket;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use userspace::model::Cluster;

use self::deaf::Deaf;
use self::socket::{Receiver, Sender};
use crate::netns::{self, Netns};
use crate::topology::{HOST_PEER, Topology, UPLINK, host_side};

pub use self::io::{Io, Unknown};
pub use self::out::Out;

/// A link of a node that frames come and go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wire {
    /// To the fabric.
    Uplink,
    /// To the node's own stack.
    Host,
    /// To the pod with this address as its first.
    Pod(IpAddr),
}

/// Why a path cannot be made of a cluster.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// One node's packet path in this process. It neither waits nor looks at a clock.
pub trait Path: Sized + Send + 'static {
    /// The path of the node of that name, before any packet.
    ///
    /// # Errors
    /// The cluster has something that the path cannot hold.
    fn new(cluster: &Cluster, node: &str) -> Result<Self, Refusal>;

    /// Goes on with a cluster that has changed; connections go on.
    ///
    /// # Errors
    /// As [`Self::new`]; nothing is changed then.
    fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Refusal>;

    /// A frame arrives, at `now` from any start; what is to be sent for it goes to `out`.
    fn pass(&mut self, at: Wire, frame: &[u8], now: Duration, out: &mut Out);
}

/// Why a path does not run on a cluster, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster has something that the path cannot hold.
    #[error(transparent)]
    Path(#[from] Refusal),
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// No packet socket.
    #[error("cannot {tried} link {link} in network namespace {netns}: {source}")]
    Socket {
        /// What was tried.
        tried: &'static str,
        /// The link's name.
        link: String,
        /// The node's namespace.
        netns: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// A path, running on every node of a cluster until it is dropped.
#[derive(Debug)]
pub struct Live<P> {
    io: Io,
    nodes: BTreeMap<String, Station<P>>,
}

/// One node: what its threads share, and the threads.
#[derive(Debug)]
struct Station<P> {
    netns: Netns,
    shared: Arc<Shared<P>>,
    ports: HashMap<Wire, Port>,
}

/// A link that is read.
#[derive(Debug)]
struct Port {
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _deaf: Deaf,
}

struct Shared<P> {
    path: Mutex<P>,
    senders: RwLock<HashMap<Wire, Mutex<Sender>>>,
    start: Instant,
}

impl<P> std::fmt::Debug for Shared<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("start", &self.start).finish_non_exhaustive()
    }
}

impl<P: Path> Live<P> {
    /// Starts on links that were built with [`Layout::USERSPACE`](crate::topology::Layout::USERSPACE).
    ///
    /// # Errors
    /// The path cannot hold the cluster, or a link cannot be read. Nothing runs then.
    pub fn start(topology: &Topology, io: Io) -> Result<Self, Error> {
        let mut live = Self { io, nodes: BTreeMap::new() };
        live.apply(topology)?;
        Ok(live)
    }

    /// Goes on with a cluster whose nodes, pods, Services or policies have changed; connections go on.
    ///
    /// # Errors
    /// As [`Self::start`]; what did not fail is applied.
    pub fn apply(&mut self, topology: &Topology) -> Result<(), Error> {
        let cluster = topology.cluster();
        self.nodes.retain(|name, _| cluster.node(name).is_some());
        for node in &cluster.nodes {
            if let Some(station) = self.nodes.get(&node.name) {
                lock(&station.shared.path).apply(cluster, &node.name)?;
                continue;
            }
            let shared = Shared {
                path: Mutex::new(P::new(cluster, &node.name)?),
                senders: RwLock::default(),
                start: Instant::now(),
            };
            let netns = topology.node(&node.name);
            let station = Station { netns, shared: Arc::new(shared), ports: HashMap::new() };
            self.nodes.insert(node.name.clone(), station);
        }
        self.open_links(topology)
    }

    /// Opens the links that are not read yet, and gives up those that are gone.
    fn open_links(&mut self, topology: &Topology) -> Result<(), Error> {
        for (name, station) in &mut self.nodes {
            let wanted = links_of(topology, name);
            let gone: Vec<Wire> =
                station.ports.keys().filter(|link| !wanted.contains_key(link)).copied().collect();
            for link in gone {
                write(&station.shared.senders).remove(&link);
                station.ports.remove(&link);
            }
            for (link, interface) in wanted {
                if !station.ports.contains_key(&link) {
                    let port = station.open(link, &interface)?;
                    station.ports.insert(link, port);
                }
            }
        }
        Ok(())
    }
}

impl<P: Path> Station<P> {
    /// Reads a link from now on.
    fn open(&self, link: Wire, interface: &str) -> Result<Port, Error> {
        let failed = |tried| {
            let (interface, netns) = (interface.to_owned(), self.netns.name().to_owned());
            move |source| Error::Socket { tried, link: interface, netns, source }
        };
        let (deaf, (sender, receiver)) = self.netns.run(|| {
            let index = if_nametoindex(interface).map_err(|errno| failed("find")(errno.into()))?;
            let deaf = Deaf::new(index).map_err(failed("keep the kernel's own stack off"))?;
            Ok::<_, Error>((deaf, socket::open(interface, index).map_err(failed("open a packet socket on"))?))
        })??;
        write(&self.shared.senders).insert(link, Mutex::new(sender));
        let running = Arc::new(AtomicBool::new(true));
        let (shared, still) = (Arc::clone(&self.shared), Arc::clone(&running));
        let name = interface.to_owned();
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || shared.read(link, receiver, &still))
            .map_err(failed("start a thread for"))?;
        Ok(Port { running, thread: Some(thread), _deaf: deaf })
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

impl<P> Drop for Live<P> {
    fn drop(&mut self) {
        // All are told before any is waited for.
        for port in self.nodes.values().flat_map(|station| station.ports.values()) {
            port.running.store(false, Ordering::Relaxed);
        }
    }
}

impl<P: Path> Shared<P> {
    /// Pushes every frame of a link, until told to stop or the link is gone.
    fn read(&self, link: Wire, mut receiver: Receiver, running: &AtomicBool) {
        let mut out = Out::default();
        while running.load(Ordering::Relaxed) {
            let frame = match receiver.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!("{link:?} is no longer read: {error}");
                    return;
                }
            };
            lock(&self.path).pass(link, frame, self.start.elapsed(), &mut out);
            for (to, frame) in out.frames() {
                self.send(to, frame);
            }
            out.clear();
        }
    }

    /// Sends a frame; one that the link does not take is lost, as on any wire.
    fn send(&self, to: Wire, frame: &[u8]) {
        let senders = self.senders.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = senders.get(&to)
            && let Err(error) = lock(sender).send(frame)
        {
            tracing::debug!("lost a frame to {to:?}: {error}");
        }
    }
}

/// The links of a node, and what they are called in its namespace.
fn links_of(topology: &Topology, node: &str) -> HashMap<Wire, String> {
    let mut links = HashMap::from([(Wire::Uplink, UPLINK.to_owned()), (Wire::Host, HOST_PEER.to_owned())]);
    for pod in topology.cluster().pods.iter().filter(|pod| pod.node == node && !pod.host_network) {
        links.insert(Wire::Pod(pod.address()), host_side(pod));
    }
    links
}

/// A panic elsewhere leaves nothing half done: what is locked is changed whole or not at all.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
