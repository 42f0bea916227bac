//! The load balancer of a live cluster whose fabric is the kernel's bridge: a program in the kernel carries its packets
//! ([`Xdp`]), and this process probes nodes and plans who is given new flows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use userspace::engine::kernel;
use userspace::engine::kernel::balancer::{Balancer as Xdp, Mode};
use userspace::error;
use userspace::fabric::{Report, Standalone};
use userspace::model::Cluster;

use super::Error;
use crate::dataplane::live::socket::{self, Receiver, Sender};
use crate::netns::{Netns, Part};
use crate::topology::{BALANCER, UPLINK};

/// How often it is looked whether there is something to be asked.
const TURN: Duration = Duration::from_millis(100);
/// For how long nodes are waited for that do not answer their first probes.
const PATIENCE: Duration = Duration::from_secs(2);

/// A load balancer that carries packets until it is dropped.
#[derive(Debug)]
pub struct Balancer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// A node has answered, or it is time to end.
    news: Condvar,
    running: AtomicBool,
}

struct State {
    balancer: Standalone<Xdp>,
    sender: Sender,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Balancer {
    /// Starts on the links of a cluster. When this returns packets pass to the nodes that have answered.
    ///
    /// # Errors
    /// There is no room for the cluster's frontends, the program does not load, or the link cannot be read. Nothing
    /// runs then.
    pub fn start(cluster: &Cluster) -> Result<Self, Error> {
        let [own, other] = [Part::Balancer, Part::Fabric].map(|part| Netns::of(&cluster.name, part));
        let mut xdp = Xdp::load(Standalone::constants(cluster)?, false).map_err(failed)?;
        let mode = xdp.attach((&own.path(), UPLINK), (&other.path(), BALANCER)).map_err(failed)?;
        if let Mode::Generic { why } = mode {
            tracing::warn!("the load balancer's program runs in the kernel's own receive path: {why}");
        }
        let balancer = Standalone::new(cluster, xdp, Xdp::now_ns()).map_err(Error::Balancer)?;
        let socket = |source| Error::Socket {
            tried: "open a packet socket on",
            link: UPLINK.to_owned(),
            netns: own.name().to_owned(),
            source,
        };
        let opened = own.run(|| socket::open(UPLINK, if_nametoindex(UPLINK)?))?;
        let (sender, receiver) = opened.map_err(socket)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { balancer, sender }),
            news: Condvar::new(),
            running: AtomicBool::new(true),
        });
        let mut running = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        running.threads.push(named("clock").spawn(move || shared.keep_time())?);
        let shared = Arc::clone(&running.shared);
        running.threads.push(named("probes").spawn(move || shared.read(receiver))?);
        running.shared.wait();
        Ok(running)
    }

    /// Goes on with a cluster whose Services or nodes have changed.
    ///
    /// # Errors
    /// There is no room for its frontends, and nothing is changed; or a table cannot be written.
    pub fn apply(&self, cluster: &Cluster) -> Result<(), Error> {
        self.shared.lock().balancer.apply(cluster, Xdp::now_ns()).map_err(Error::Balancer)?;
        self.shared.wait();
        Ok(())
    }

    /// What became of packets so far, and who is healthy.
    ///
    /// # Errors
    /// The program's counters cannot be read.
    pub fn report(&self) -> Result<Report, Error> {
        self.shared.lock().balancer.report().map_err(Error::Balancer)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.running.store(false, Ordering::Relaxed);
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the load balancer has panicked");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is known of every node, or for long enough.
    fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while !state.balancer.knows_all() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends probes at their time, until told to stop.
    fn keep_time(&self) {
        let mut state = self.lock();
        while self.running.load(Ordering::Relaxed) {
            match state.balancer.turn(Xdp::now_ns()) {
                Ok(frames) => frames.iter().for_each(|frame| state.send(frame)),
                Err(error) => tracing::error!("the load balancer goes on as it was: {error}"),
            }
            state = self.news.wait_timeout(state, TURN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Hears the answers to probes, until told to stop or the link is gone.
    fn read(&self, mut receiver: Receiver) {
        while self.running.load(Ordering::Relaxed) {
            let frame = match receiver.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!("the load balancer's link is no longer read: {error}");
                    return;
                }
            };
            let mut state = self.lock();
            match state.balancer.hear(frame, Xdp::now_ns()) {
                Ok(Some(next)) => state.send(&next),
                Ok(None) => {}
                Err(error) => tracing::error!("the load balancer goes on as it was: {error}"),
            }
            self.news.notify_all();
        }
    }
}

impl State {
    /// A probe that is not sent is one that is not answered.
    fn send(&mut self, frame: &[u8]) {
        if let Err(error) = self.sender.send(frame) {
            tracing::debug!("a probe is not sent: {error}");
        }
    }
}

fn failed(error: kernel::Error) -> Error {
    Error::Balancer(error::Error::Kernel(error))
}
