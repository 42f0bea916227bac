//! `ebpf`: the packet path in the kernel, loaded from this process, gone with it. What `podpath-agent` does
//! on a node that is to stay.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ::dataplane::tables::IfIndex;
use nix::net::if_::if_nametoindex;
use userspace::engine::kernel::{Kernel, Options, Sweeper};
use userspace::engine::{Engine, Hook};
use userspace::plan::{Links, plan};

use super::{Dataplane, Error, Name};
use crate::topology::{HOST_PEER, Layout, Topology, UPLINK, host_side};

/// See the module.
#[derive(Debug, Default)]
pub struct Ebpf {
    nodes: Vec<Station>,
}

/// The programs and tables of one node, and who sweeps them.
struct Station {
    name: String,
    kernel: Arc<Mutex<Kernel>>,
    running: Arc<AtomicBool>,
    sweeper: Option<JoinHandle<()>>,
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Dataplane for Ebpf {
    fn name(&self) -> Name {
        Name::Ebpf
    }

    fn layout(&self) -> Layout {
        Layout::HOOKED
    }

    fn start(&mut self, topology: &Topology) -> Result<(), Error> {
        let mut nodes = Vec::new();
        for node in &topology.cluster().nodes {
            nodes.push(Station::new(topology, &node.name)?);
        }
        self.nodes = nodes;
        Ok(())
    }

    fn apply(&mut self, topology: &Topology) -> Result<(), Error> {
        self.nodes.iter().try_for_each(|station| station.apply(topology))
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.nodes.clear();
        Ok(())
    }
}

impl Station {
    fn new(topology: &Topology, name: &str) -> Result<Self, Error> {
        let (links, places) = links(topology, name)?;
        let plan = plan(topology.cluster(), name, &links).map_err(userspace::error::Error::from)?;
        let netns = Some(topology.node(name).path());
        let mut kernel = Kernel::load(&plan, Options { netns, ..Options::default() })?;
        kernel.attach(&places).map_err(userspace::error::Error::from)?;
        let (kernel, running) = (Arc::new(Mutex::new(kernel)), Arc::new(AtomicBool::new(true)));
        let mut station = Self { name: name.to_owned(), kernel, running, sweeper: None };
        let (kernel, running) = (Arc::clone(&station.kernel), Arc::clone(&station.running));
        station.sweeper = Some(thread::spawn(move || sweep(&kernel, &running)));
        Ok(station)
    }

    fn apply(&self, topology: &Topology) -> Result<(), Error> {
        let (links, places) = links(topology, &self.name)?;
        let plan = plan(topology.cluster(), &self.name, &links).map_err(userspace::error::Error::from)?;
        let mut kernel = lock(&self.kernel);
        // A program that meets no row yet drops; the rows come first all the same.
        kernel.apply(&plan.rows)?;
        kernel.attach(&places).map_err(userspace::error::Error::from)?;
        Ok(())
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.thread().unpark();
            if sweeper.join().is_err() {
                tracing::error!("the thread that sweeps node {} has panicked", self.name);
            }
        }
    }
}

/// Removes what is over, now and then, as long as the node runs.
fn sweep(kernel: &Mutex<Kernel>, running: &AtomicBool) {
    let mut sweeper = Sweeper::default();
    let mut last = Instant::now();
    while running.load(Ordering::Relaxed) {
        let left = sweeper.interval().saturating_sub(last.elapsed());
        if !left.is_zero() {
            thread::park_timeout(left);
            continue;
        }
        if let Err(error) = sweeper.sweep(&mut lock(kernel)) {
            tracing::warn!("{error}");
        }
        last = Instant::now();
    }
}

/// The links of a node as the planner wants them, and where programs go.
fn links(topology: &Topology, node: &str) -> Result<(Links, Vec<(Hook, String)>), Error> {
    let pods = topology.cluster().pods.iter().filter(|pod| pod.node == node && !pod.host_network);
    let pods: Vec<(String, String)> = pods.map(|pod| (pod.id(), host_side(pod))).collect();
    let netns = topology.node(node);
    let found = netns.run(|| {
        let index = |link: &str| {
            let missing = |_| Error::NoLink { link: link.to_owned(), netns: netns.name().to_owned() };
            if_nametoindex(link).map(IfIndex).map_err(missing)
        };
        let mut links = Links { uplink: index(UPLINK)?, ..Links::default() };
        for (id, link) in &pods {
            links.pods.insert(id.clone(), index(link)?);
        }
        Ok::<_, Error>(links)
    })??;
    let mut places = vec![(Hook::FromUnderlay, UPLINK.to_owned()), (Hook::FromHost, HOST_PEER.to_owned())];
    places.extend(pods.into_iter().map(|(_, link)| (Hook::FromPod, link)));
    Ok((found, places))
}

/// A panic elsewhere leaves no table half written: rows are written one by one, whole.
fn lock(kernel: &Mutex<Kernel>) -> MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}
