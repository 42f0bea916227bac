//! A packet path of this process on a cluster's real links: packet sockets on the host side of every pod's
//! link, on the uplink and on the link to the node's own stack, read and written as [`Io`] says, and one
//! [`Path`] for all of a node's.
//!
//! The kernel neither forwards ([`Layout::USERSPACE`]) nor hears what
//! the sockets hear (`deaf`). What is lost between links and path is counted ([`Tally`]).

pub mod bare;
pub(crate) mod burst;
mod deaf;
pub mod emulator;
mod io;
mod out;
mod plain;
mod polling;
mod ring;
pub(crate) mod socket;
pub(crate) mod tally;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use userspace::model::Cluster;

pub use self::io::{Io, Unknown};
pub use self::out::Out;
use self::plain::Plain;
use self::polling::Polling;
pub use self::tally::{Loss, Tally};
use crate::netns::{self, Netns};
use crate::topology::{HOST_PEER, Layout, Topology, UPLINK, host_side};

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
    /// The links it wants.
    const LAYOUT: Layout = Layout::USERSPACE;

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

impl Error {
    /// What to make of the kernel's reason why something could not be done with a link.
    fn socket(tried: &'static str, link: &str, netns: &Netns) -> impl Fn(std::io::Error) -> Self + use<> {
        let (link, netns) = (link.to_owned(), netns.name().to_owned());
        move |source| Self::Socket { tried, link: link.clone(), netns: netns.clone(), source }
    }
}

/// A path, running on every node of a cluster until it is dropped.
pub struct Live<P> {
    io: Io,
    nodes: BTreeMap<String, (Netns, Box<dyn Station>)>,
    path: PhantomData<fn() -> P>,
}

/// One node's path and links.
trait Station: Send {
    /// See [`Path::apply`].
    fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Refusal>;
    /// The links that are read, and their numbers in the node's namespace.
    fn links(&self) -> Vec<(Wire, u32)>;
    /// Reads a link from now on.
    fn open(&mut self, wire: Wire, interface: &str) -> Result<(), Error>;
    /// Reads it no more.
    fn close(&mut self, wire: Wire);
    /// What became of frames.
    fn tally(&self) -> Tally;
    /// Ends soon. Who drops it waits for that.
    fn stop(&self);
}

impl<P> fmt::Debug for Live<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("io", &self.io).finish_non_exhaustive()
    }
}

impl<P: Path> Live<P> {
    /// Starts on links that were built with [`Path::LAYOUT`].
    ///
    /// # Errors
    /// The path cannot hold the cluster, or a link cannot be read. Nothing runs then.
    pub fn start(topology: &Topology, io: Io) -> Result<Self, Error> {
        let mut live = Self { io, nodes: BTreeMap::new(), path: PhantomData };
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
            if let Some((_, station)) = self.nodes.get_mut(&node.name) {
                station.apply(cluster, &node.name)?;
                continue;
            }
            let (netns, path) = (topology.node(&node.name), P::new(cluster, &node.name)?);
            let station: Box<dyn Station> = match self.io {
                Io::Plain => Box::new(Plain::new(netns.clone(), path)),
                Io::Ring => {
                    let failed = Error::socket("wait for", "any", &netns);
                    Box::new(Polling::start(netns.clone(), path).map_err(failed)?)
                }
            };
            self.nodes.insert(node.name.clone(), (netns, station));
        }
        self.open_links(topology)
    }

    /// Opens the links that are not read yet, and gives up those that are gone.
    fn open_links(&mut self, topology: &Topology) -> Result<(), Error> {
        for (name, (netns, station)) in &mut self.nodes {
            let wanted = links_of(topology, name);
            // A link of the same name may be another.
            let found: HashMap<Wire, u32> = netns.run(|| {
                let index = |interface: &str| if_nametoindex(interface).ok();
                wanted.iter().filter_map(|(wire, name)| Some((*wire, index(name)?))).collect()
            })?;
            let mut read = station.links();
            read.retain(|(wire, index)| {
                let stays = found.get(wire) == Some(index);
                if !stays {
                    station.close(*wire);
                }
                stays
            });
            for (wire, interface) in wanted {
                if !read.iter().any(|(read, _)| *read == wire) {
                    station.open(wire, &interface)?;
                }
            }
        }
        Ok(())
    }
}

impl<P> Live<P> {
    /// What became of frames on all nodes, since each was started. A frame that crosses two nodes counts on both.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.nodes.values().for_each(|(_, station)| tally.add(&station.tally()));
        tally
    }
}

impl<P> Drop for Live<P> {
    fn drop(&mut self) {
        // All are told before any is waited for.
        self.nodes.values().for_each(|(_, station)| station.stop());
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
