//! `ebpf`: the packet path in the kernel, loaded by this process and gone with it; what `podpath-agent`
//! does on a node that is to stay.
//!
//! One thread keeps what is loaded: it sweeps what is over, and applies changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::tables::{IfIndex, Node};
use nix::net::if_::if_nametoindex;
use userspace::engine::kernel::{Kernel, Namespaces, Options, Stopwatch, Sweeper, Times, cookie_of};
use userspace::engine::{Engine, Hook};
use userspace::observe::walk::Names;
use userspace::plan::{Homes, LEGS, Links, NodePlan, Plan};

use super::{Dataplane, Error, Name};
use userspace::model::Node as ClusterNode;

use crate::topology::{HOST_PEER, Layout, Topology, UPLINK, host_side};

/// How often it is looked whether it is time to sweep.
const GLANCE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Ebpf {
    running: Option<Running>,
    /// One in so many packets is timed; 0: none.
    timed: u32,
    stopwatches: Stopwatches,
}

/// What the programs of nodes have timed: of those that the dataplane was started on.
#[derive(Clone, Debug, Default)]
pub struct Stopwatches(Arc<Mutex<Vec<Stopwatch>>>);

impl Stopwatches {
    /// What was timed at a hook, of all nodes together.
    ///
    /// # Errors
    /// A stopwatch cannot be read.
    pub fn times(&self, hook: Hook) -> Result<Times, userspace::error::Error> {
        let stopwatches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Times::default();
        for stopwatch in stopwatches.iter() {
            all = all + stopwatch.times(hook)?;
        }
        Ok(all)
    }
}

impl Ebpf {
    /// One that times one in so many packets, by lot, and what it times.
    pub fn timed(every: u32) -> (Self, Stopwatches) {
        let stopwatches = Stopwatches::default();
        (Self { running: None, timed: every, stopwatches: stopwatches.clone() }, stopwatches)
    }
}

/// The thread that keeps the nodes.
#[derive(Debug)]
struct Running {
    /// What the next plan follows.
    plan: Plan,
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<Result<(), userspace::error::Error>>,
}

/// Go on with these plans, a node each, and say whether that went well.
type Order = (Vec<Planned>, mpsc::Sender<Result<(), userspace::error::Error>>);

/// A node's plan, and where its programs belong.
#[derive(Debug)]
struct Planned {
    node: String,
    netns: PathBuf,
    plan: NodePlan,
    places: Vec<(Hook, String)>,
    namespaces: Namespaces,
}

impl Dataplane for Ebpf {
    fn name(&self) -> Name {
        Name::Ebpf
    }

    fn layout(&self) -> Layout {
        Layout::HOOKED
    }

    fn start(&mut self, topology: &Topology) -> Result<(), Error> {
        let plan = Plan::of(topology.cluster()).map_err(userspace::error::Error::from)?;
        let (planned, _) = planned(topology, &plan)?;
        let mut nodes = Nodes { timed: self.timed, loaded: BTreeMap::new() };
        nodes.apply(planned)?;
        if self.timed != 0 {
            let taken = nodes.loaded.values_mut().map(|loaded| loaded.kernel.take_stopwatch());
            let taken = taken.collect::<Result<Vec<_>, _>>().map_err(userspace::error::Error::from)?;
            *self.stopwatches.0.lock().unwrap_or_else(PoisonError::into_inner) = taken;
        }
        let (orders, received) = mpsc::channel();
        let thread = std::thread::spawn(move || nodes.keep(&received));
        self.running = Some(Running { plan, orders, thread });
        Ok(())
    }

    fn apply(&mut self, topology: &Topology) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let plan = running.plan.after(topology.cluster()).map_err(userspace::error::Error::from)?;
        let (planned, _) = planned(topology, &plan)?;
        running.plan = plan;
        let (answer, applied) = mpsc::channel();
        if running.orders.send((planned, answer)).is_ok()
            && let Ok(applied) = applied.recv()
        {
            return Ok(applied?);
        }
        self.stop()
    }

    fn stop(&mut self) -> Result<(), Error> {
        let Some(Running { orders, thread, .. }) = self.running.take() else { return Ok(()) };
        drop(orders);
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

/// What interfaces, addresses and rules of a cluster are called, on the links that it has.
///
/// # Errors
/// The cluster cannot be planned, or a link is missing.
pub fn names(topology: &Topology) -> Result<Names, Error> {
    let plan = Plan::of(topology.cluster()).map_err(userspace::error::Error::from)?;
    Ok(planned(topology, &plan)?.1)
}

/// What each node must hold, on the links that it has.
fn planned(topology: &Topology, plan: &Plan) -> Result<(Vec<Planned>, Names), Error> {
    let cluster = topology.cluster();
    let (mut planned, mut links) = (Vec::new(), Vec::new());
    for node in &cluster.nodes {
        let pods = cluster.pods.iter().filter(|pod| pod.node == node.name && !pod.host_network);
        let sides: BTreeMap<String, String> = pods.map(|pod| (pod.id(), host_side(pod))).collect();
        let netns = topology.node(&node.name);
        let numbered = netns.run(|| -> Result<Links, nix::Error> {
            let number = |link: &str| if_nametoindex(link).map(IfIndex);
            let pods = sides.iter().map(|(pod, side)| Ok((pod.clone(), number(side)?)));
            let pods = pods.collect::<Result<_, nix::Error>>()?;
            Ok(Links { uplink: number(UPLINK)?, pods, homes: None })
        })?;
        let mut numbered =
            numbered.map_err(|errno| Error::Number { netns: netns.name().to_owned(), why: errno })?;
        let ends = [(Hook::FromUnderlay, UPLINK.to_owned()), (Hook::FromHost, HOST_PEER.to_owned())];
        let places = sides.into_values().map(|side| (Hook::FromPod, side)).chain(ends).collect();
        let namespaces = homes(topology, node, &mut numbered).map_err(userspace::error::Error::from)?;
        let plan = plan.node(&node.name, &numbered).map_err(userspace::error::Error::from)?;
        planned.push(Planned { node: node.name.clone(), netns: netns.path(), plan, places, namespaces });
        links.push(numbered);
    }
    let plans = planned.iter().map(|one| one.plan.clone());
    let names = Names::of(cluster, plan, links.iter().zip(plans));
    Ok((planned, names))
}

/// Notes the cookies of a node's network namespaces, where its sockets are translated: the namespaces by these.
fn homes(
    topology: &Topology,
    node: &ClusterNode,
    links: &mut Links,
) -> Result<Namespaces, userspace::engine::kernel::Error> {
    let mut namespaces = Namespaces::new();
    let cluster = topology.cluster();
    if !cluster.settings.services.socket_translation {
        return Ok(namespaces);
    }
    let mut known = |path: PathBuf| {
        let cookie = cookie_of(&path)?;
        namespaces.insert(cookie, path);
        Ok(cookie)
    };
    let own = known(topology.node(&node.name).path())?;
    let pods = cluster.pods_on(&node.name).filter(|pod| !pod.host_network);
    let pods = pods.map(|pod| Ok((pod.id(), known(topology.pod(pod).path())?)));
    links.homes = Some(Homes { node: own, pods: pods.collect::<Result<_, _>>()? });
    Ok(namespaces)
}

/// What is loaded on a node, and what it was loaded with.
#[derive(Debug)]
struct Loaded {
    kernel: Kernel,
    sweeper: Sweeper,
    /// What holds for all packets, and is part of the programs.
    constants: Node,
}

/// What is loaded, and how.
#[derive(Debug)]
struct Nodes {
    /// As [`Ebpf::timed`].
    timed: u32,
    /// By the nodes' names.
    loaded: BTreeMap<String, Loaded>,
}

impl Nodes {
    /// The thread: ends, and takes everything off, when nobody can give orders any more.
    fn keep(mut self, orders: &mpsc::Receiver<Order>) -> Result<(), userspace::error::Error> {
        let mut swept = Instant::now();
        loop {
            match orders.recv_timeout(GLANCE) {
                // Nobody waits for the answer any more if it cannot be sent.
                Ok((planned, answer)) => drop(answer.send(self.apply(planned))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            for Loaded { kernel, sweeper, .. } in self.loaded.values_mut() {
                if swept.elapsed() >= sweeper.interval() {
                    sweeper.sweep(kernel)?;
                    swept = Instant::now();
                }
            }
        }
        self.loaded.into_values().try_for_each(|loaded| Ok(loaded.kernel.remove()?))
    }

    /// Brings every node to its plan, together: those that are new too. Those that are no more go with their links.
    fn apply(&mut self, planned: Vec<Planned>) -> Result<(), userspace::error::Error> {
        let Self { timed, loaded: nodes } = self;
        nodes.retain(|name, _| planned.iter().any(|one| one.node == *name));
        let mut ways = Vec::new();
        for Planned { node, netns, mut plan, places, namespaces } in planned {
            let constants = plan.node;
            if let Some(loaded) = nodes.get_mut(&node) {
                let legs = loaded.kernel.legs(&plan.rows)?;
                loaded.kernel.attach(&places)?;
                if loaded.constants != constants {
                    let trace = loaded.kernel.tracing();
                    plan.rows = loaded.kernel.rows().clone();
                    loaded.kernel.reload(&plan, trace)?;
                    loaded.constants = constants;
                }
                ways.push((node, legs, namespaces));
                continue;
            }
            let options = Options { netns: Some(netns), timed: *timed, ..Options::default() };
            let mut kernel = Kernel::load(&plan, options)?;
            kernel.attach(&places)?;
            nodes.insert(node, Loaded { kernel, sweeper: Sweeper::default(), constants });
        }
        for leg in 0..LEGS {
            for (node, legs, namespaces) in &ways {
                let Some(loaded) = nodes.get_mut(node) else { continue };
                loaded.kernel.change(&legs[leg])?;
                if leg + 1 == LEGS {
                    loaded.kernel.end_stale_clients(namespaces)?;
                }
            }
        }
        Ok(())
    }
}
