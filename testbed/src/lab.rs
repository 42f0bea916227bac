//! A cluster that is up: links, listeners, and whatever its dataplane runs.
//!
//! Each thing is noted in the state before it begins ([`crate::state`]), so that at any moment, also after
//! a kill, [`crate::state::down`] finds all of it. Building asks between its steps whether the user still
//! wants it; if not, or if anything fails, all of it is taken back.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use userspace::model::{Cluster, External, Node, Pod};

use crate::agents;
use crate::control;
use crate::dataplane::{Io, Name, chains, live, netfilter};
use crate::fabric;
use crate::interrupt::{Interrupt, Interrupted};
use crate::listen::{self, Client, Listener, Spec};
use crate::netns::Netns;
use crate::probe::live::standing;
use crate::state::{self, Lock, Process, State};
use crate::topology::{self, Layout, Topology, pod_netns};
use crate::witness::Watch;

/// Connections that a cluster's listeners hold at one time, 16 KiB each.
const MOST_CONNECTIONS: usize = 4096;

/// Why a cluster did not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is up already.
    #[error(
        "cannot bring up cluster {0}: it is up already; change it with `podpath apply`, or remove it with `podpath down {0}`"
    )]
    Exists(String),
    /// It is not up.
    #[error("cannot change cluster {0}: it is not up; bring it up with `podpath up -f …`")]
    Missing(String),
    /// That is settled when it comes up.
    #[error(
        "cannot change {what} while cluster {cluster} is up; remove it with `podpath down {cluster}`, and bring it up anew"
    )]
    Fixed {
        /// The cluster.
        cluster: String,
        /// The field, and of which object.
        what: &'static str,
    },
    /// There is no such dataplane to build on.
    #[error("cannot bring up a cluster on {0}: it is not made of namespaces and links")]
    Dataplane(String),
    /// The state could not be kept.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The links could not be made.
    #[error(transparent)]
    Topology(#[from] topology::Error),
    /// It cannot be carried.
    #[error(transparent)]
    Unable(#[from] netfilter::Unable),
    /// The packet path of this process does not run.
    #[error(transparent)]
    Path(#[from] live::Error),
    /// Rules could not be loaded.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// The agents could not be started, or told.
    #[error(transparent)]
    Agents(#[from] agents::Error),
    /// The fabric's process could not be started, or told.
    #[error(transparent)]
    Fabric(#[from] fabric::Error),
    /// The listeners could not be started.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// Some of the listeners could not be opened.
    #[error("{}", .0.join("; "))]
    Listeners(Vec<String>),
    /// This program could not be found on the disk.
    #[error("cannot find the path of this program, to start it again: {0}")]
    Program(io::Error),
    /// The user wants it to end.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// It failed, and then not all of it could be taken back.
    #[error("{cause}; {left}")]
    Undo {
        /// What went wrong first.
        cause: Box<Error>,
        /// What went wrong after.
        left: state::Error,
    },
}

/// A cluster that is up, and the right to change it.
#[derive(Debug)]
pub struct Lab {
    lock: Lock,
    state: State,
    /// The packet path of this process, which runs as long as this lives.
    path: Option<live::Live<chains::Live>>,
}

impl Lab {
    /// Brings a cluster up. `objects` are kept for `apply` and `get`. On `chains` its packets pass through this
    /// process, so it is up for as long as the lab lives.
    ///
    /// # Errors
    /// The first thing that went wrong. Then all is taken back, and what could not be is named as well.
    pub fn up(
        objects: Vec<Value>,
        cluster: Cluster,
        dataplane: &str,
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let layout = layout(dataplane).ok_or_else(|| Error::Dataplane(dataplane.to_owned()))?;
        if let Some(name) = filter(dataplane) {
            netfilter::check(name, &cluster)?;
        }
        let lock = state::lock(&cluster.name)?;
        if lock.load()?.is_some() {
            return Err(Error::Exists(cluster.name));
        }
        let mut lab = Self { lock, state: State::new(dataplane, objects, cluster), path: None };
        lab.lock.save(&lab.state)?;
        match lab.build(layout, interrupt) {
            Ok(()) => Ok(lab),
            Err(cause) => Err(match lab.down() {
                Ok(()) => cause,
                Err(left) => Error::Undo { cause: Box::new(cause), left },
            }),
        }
    }

    /// A cluster that is up, to be changed or removed.
    ///
    /// # Errors
    /// There is none of that name, or somebody else is changing it.
    pub fn open(cluster: &str) -> Result<Self, Error> {
        let lock = state::lock(cluster)?;
        let state = lock.load()?.ok_or_else(|| Error::Missing(cluster.to_owned()))?;
        Ok(Self { lock, state, path: None })
    }

    /// Brings it to another state: nodes, hosts outside and pods come and go, listeners with them, and the
    /// dataplane follows.
    ///
    /// # Errors
    /// [`Error::Fixed`] if something would have to change that cannot while the cluster is up; then
    /// nothing was changed. Or what went wrong on the way; what was changed by then is kept in the state.
    pub fn change(&mut self, objects: Vec<Value>, mut cluster: Cluster) -> Result<(), Error> {
        // What stays is in the same order, whatever the order in which objects now speak of it.
        let old = &self.state.cluster.nodes;
        let place = |node: &Node| old.iter().position(|one| one.name == node.name).unwrap_or(usize::MAX);
        cluster.nodes.sort_by_key(place);
        check_fixed(&self.state.cluster, &cluster)?;
        if let Some(name) = filter(&self.state.dataplane) {
            netfilter::check(name, &cluster)?;
        }
        let layout =
            layout(&self.state.dataplane).ok_or_else(|| Error::Dataplane(self.state.dataplane.clone()))?;
        let (before, after) = (standing(&self.state.cluster), standing(&cluster));
        let was = (self.state.revision, self.state.cluster.clone());
        self.state.revision += 1;
        let stale = std::mem::replace(&mut self.state.stale_rules, filter(&self.state.dataplane).is_some());
        let mut topology = Topology::existing(self.state.cluster.clone(), layout);
        let moved = self.rebuild(&mut topology, &cluster, &before);
        let built = topology.cluster();
        self.state.cluster.nodes.clone_from(&built.nodes);
        self.state.cluster.externals.clone_from(&built.externals);
        self.state.cluster.pods.clone_from(&built.pods);
        self.state.cluster.services.clone_from(&built.services);
        if let Err(error) = moved {
            self.lock.save(&self.state)?;
            return Err(error);
        }
        (self.state.objects, self.state.cluster) = (objects, cluster);
        self.lock.save(&self.state)?;
        if self.has_agents() {
            let now = (self.state.revision, self.state.cluster.clone());
            agents::apply((was.0, &was.1), (now.0, &now.1), |role, pid| self.note(&role, pid))?;
        } else if let Some(name) = filter(&self.state.dataplane) {
            let now = Topology::existing(self.state.cluster.clone(), layout);
            // Where nobody knows what is loaded, all of it is loaded anew.
            netfilter::apply(name, (!stale).then_some(&was.1), &now)?;
            self.state.stale_rules = false;
            self.lock.save(&self.state)?;
        }
        // Also where somebody cannot listen, which is his own affair.
        let led = self.lead_listeners(&before, after);
        self.tell_fabric()?;
        led
    }

    /// Lets those listen who are to, and watches for the cluster as it is now.
    fn lead_listeners(&self, before: &HashSet<Listener>, after: HashSet<Listener>) -> Result<(), Error> {
        let listeners = listeners(&self.state.cluster.name);
        listeners.remove(before.difference(&after).cloned().collect())?;
        let mut failed = listeners.add(after.into_iter().collect())?.failed;
        failed.extend(listeners.watch(Watch::over(&self.state.cluster))?.failed);
        if failed.is_empty() { Ok(()) } else { Err(Error::Listeners(failed)) }
    }

    /// Removes what is not wanted as it is, and adds what is missing: first whoever makes room goes, pods
    /// before their nodes; then nodes come before their pods.
    fn rebuild(
        &mut self,
        topology: &mut Topology,
        cluster: &Cluster,
        before: &HashSet<Listener>,
    ) -> Result<(), Error> {
        let own = listeners(&cluster.name);
        // Sockets would keep a namespace alive; and would stay there, were it made anew.
        let silence = |netns: &Netns, address: Option<IpAddr>| {
            let there = before.iter().filter(|one| one.netns == netns.name());
            let there = there.filter(|one| address.is_none_or(|address| address == one.address));
            own.remove(there.cloned().collect()).map(drop)
        };
        let old = topology.cluster().clone();
        for pod in old.pods.iter().filter(|pod| !pod_stays(pod, cluster)) {
            if !pod.host_network {
                silence(&pod_netns(&cluster.name, pod), None)?;
            }
            topology.remove_pod(&pod.namespace, &pod.name)?;
        }
        for node in old.nodes.iter().filter(|node| !stays(node, cluster)) {
            silence(&topology.node(&node.name), None)?;
            if self.has_agents() {
                self.stop_agent(&node.name)?;
            }
            topology.remove_node(&node.name)?;
        }
        for external in old.externals.iter().filter(|external| !external_stays(external, cluster)) {
            silence(&topology.world(), Some(external.address))?;
            topology.remove_external(&external.name)?;
        }
        let there = topology.cluster().clone();
        for node in cluster.nodes.iter().filter(|node| there.node(&node.name).is_none()) {
            topology.add_node(node)?;
        }
        for external in cluster.externals.iter().filter(|one| there.external(&one.name).is_none()) {
            topology.add_external(external)?;
        }
        for pod in cluster.pods.iter().filter(|pod| there.pod(&pod.id()).is_none()) {
            topology.add_pod(pod)?;
        }
        Ok(topology.change_services(cluster)?)
    }

    /// The agent of a node takes everything off it and ends; one that is no more has left that to others.
    fn stop_agent(&mut self, node: &str) -> Result<(), Error> {
        agents::stop(&self.state.cluster.name, node)?;
        let role = agents::role(node);
        for process in self.state.processes.iter().filter(|process| process.role == role) {
            process.end()?;
        }
        self.state.processes.retain(|process| process.role != role);
        Ok(self.lock.save(&self.state)?)
    }

    /// Whether its nodes have agents.
    fn has_agents(&self) -> bool {
        self.state.dataplane == "ebpf"
    }

    /// What is known of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Removes it, and all its traces.
    ///
    /// # Errors
    /// Everything that went wrong; `podpath down` tries again.
    pub fn down(self) -> Result<(), state::Error> {
        let Self { lock, path, .. } = self;
        drop(path);
        lock.down()
    }

    fn build(&mut self, layout: Layout, interrupt: &Interrupt) -> Result<(), Error> {
        let topology = Topology::build(&self.state.cluster, layout)?;
        interrupt.check()?;
        self.start_listeners()?;
        interrupt.check()?;
        if self.has_agents() {
            let (revision, cluster) = (self.state.revision, self.state.cluster.clone());
            agents::start((revision, &cluster), |role, pid| self.note(&role, pid))?;
        } else if let Some(name) = filter(&self.state.dataplane) {
            netfilter::apply(name, None, &topology)?;
        } else if self.state.dataplane == Name::Chains.to_string() {
            self.path = Some(live::Live::start(&topology, Io::default())?);
        }
        interrupt.check()?;
        // Its load balancer asks nodes at once how they are.
        self.start_fabric()?;
        interrupt.check()?;
        Ok(())
    }

    fn start_fabric(&mut self) -> Result<(), Error> {
        let cluster = self.state.cluster.clone();
        if !fabric::is_served(&cluster) {
            return Ok(());
        }
        let mut command = Command::new(std::env::current_exe().map_err(Error::Program)?);
        command.arg("fabric");
        let client = fabric::Client::of(&cluster, "start the fabric of")?;
        Ok(client.start(command, &cluster, |pid| self.note("fabric", pid))?)
    }

    /// The fabric's process goes on with the cluster as it is now; one that is no more, or not yet, is started.
    fn tell_fabric(&mut self) -> Result<(), Error> {
        if !fabric::is_served(&self.state.cluster) {
            return Ok(());
        }
        match fabric::Client::of(&self.state.cluster, "change")?.apply(&self.state.cluster) {
            Err(fabric::Error::Control(control::Error::Ask { source, .. }))
                if matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
            {
                self.start_fabric()
            }
            told => Ok(told?),
        }
    }

    fn start_listeners(&mut self) -> Result<(), Error> {
        let cluster = &self.state.cluster;
        let spec = Spec {
            control: control(&cluster.name),
            most_connections: MOST_CONNECTIONS,
            listeners: standing(cluster).into_iter().collect(),
            // Routes alone translate nothing.
            watch: (self.state.dataplane != Name::Routed.to_string()).then(|| Watch::over(cluster)),
        };
        let mut command = Command::new(std::env::current_exe().map_err(Error::Program)?);
        command.arg("serve");
        let (_, answer) = Client::start(command, &spec, |pid| self.note("listen", pid))?;
        if answer.failed.is_empty() { Ok(()) } else { Err(Error::Listeners(answer.failed)) }
    }

    /// Notes a process, before it is told to begin.
    fn note(&mut self, role: &str, pid: u32) -> Result<(), state::Error> {
        self.state.processes.push(Process::running(role, pid)?);
        self.lock.save(&self.state)
    }
}

/// Whether a node goes on as it is.
fn stays(node: &Node, after: &Cluster) -> bool {
    after
        .node(&node.name)
        .is_some_and(|other| other.addresses == node.addresses && other.pod_cidrs == node.pod_cidrs)
}

/// Whether a pod goes on as it is, and on a node that does.
fn pod_stays(pod: &Pod, after: &Cluster) -> bool {
    after.pod(&pod.id()).is_some_and(|other| {
        other.node == pod.node && other.addresses == pod.addresses && other.host_network == pod.host_network
    })
}

/// Whether a host outside goes on as it is.
fn external_stays(external: &External, after: &Cluster) -> bool {
    after.external(&external.name).is_some_and(|other| other.address == external.address)
}

/// What links and programs are built upon is settled when the cluster comes up; the rest may change.
fn check_fixed(before: &Cluster, after: &Cluster) -> Result<(), Error> {
    let fixed = |what: &'static str| Err(Error::Fixed { cluster: before.name.clone(), what });
    if before.name != after.name {
        return fixed("metadata.name of its Testbed");
    }
    // Of a node that goes on, nothing may be different; with pods on it, it cannot be made anew.
    for node in &before.nodes {
        if after.node(&node.name).is_some() && !stays(node, after) {
            return fixed("a node's addresses or podCIDRs");
        }
    }
    let (old, new) = (&before.settings, &after.settings);
    // What an emulated fabric does can change; that there is one cannot. A bridge does nothing.
    let emulated = fabric::is_emulated(before);
    let differ = [
        ("spec.model of its Testbed", old.model != new.model),
        ("spec.encapsulation of its Testbed", old.encapsulation != new.encapsulation),
        ("the tunnel's port in its Testbed", old.tunnel_port != new.tunnel_port),
        ("the node subnets of its Testbed", old.node_subnets != new.node_subnets),
        ("the pod ranges of its Testbed", old.pod_cidrs != new.pod_cidrs),
        ("the Service ranges of its Testbed", old.service_cidrs != new.service_cidrs),
        ("the virtual network's ranges in its Testbed", old.vnet_cidrs != new.vnet_cidrs),
        ("spec.services.acceleration of its Testbed", old.services.acceleration != new.services.acceleration),
        ("spec.services.nodePorts of its Testbed", old.services.node_ports != new.services.node_ports),
        ("spec.maxPods of its Testbed", old.max_pods != new.max_pods),
        ("spec.mtu of its Testbed", old.mtu != new.mtu),
        ("the masquerade's ports in its Testbed", old.masquerade_ports != new.masquerade_ports),
        ("spec.fabric.kind of its Testbed", old.fabric.kind != new.fabric.kind),
        ("spec.fabric of its Testbed", !emulated && old.fabric != new.fabric),
        ("spec.loadBalancer of its Testbed", !emulated && old.load_balancer != new.load_balancer),
    ];
    match differ.iter().find(|(_, differs)| *differs) {
        Some((what, _)) => fixed(what),
        None => Ok(()),
    }
}

/// What a dataplane wants of its links; `None` for one that has none.
fn layout(dataplane: &str) -> Option<Layout> {
    match dataplane {
        "ebpf" => Some(Layout::HOOKED),
        word => [Name::Chains, Name::Iptables, Name::Nftables, Name::Routed]
            .into_iter()
            .find(|name| name.to_string() == word)
            .map(|name| name.dataplane().layout()),
    }
}

/// The dataplane of that word, if it is rules in the kernel, which stay without a process.
fn filter(dataplane: &str) -> Option<Name> {
    [Name::Iptables, Name::Nftables].into_iter().find(|name| name.to_string() == dataplane)
}

/// Where a cluster's listeners are asked.
fn control(cluster: &str) -> PathBuf {
    state::directory(cluster).join("listen.sock")
}

/// The listeners of a cluster that is up.
pub fn listeners(cluster: &str) -> Client {
    Client::at(&control(cluster))
}
