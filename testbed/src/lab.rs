//! A cluster that is up: links, listeners, and whatever its dataplane runs.
//!
//! Each thing is noted in the state before it begins ([`crate::state`]), so that at any moment, also after
//! a kill, [`crate::state::down`] finds all of it. Building asks between its steps whether the user still
//! wants it; if not, or if anything fails, all of it is taken back.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use userspace::model::{Cluster, Pod};

use crate::agents;
use crate::dataplane::Name;
use crate::interrupt::{Interrupt, Interrupted};
use crate::listen::{self, Client, Listener, Spec};
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
        /// `its nodes` and the like.
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
    /// The agents could not be started, or told.
    #[error(transparent)]
    Agents(#[from] agents::Error),
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
}

impl Lab {
    /// Brings a cluster up. `objects` are kept for `apply` and `get`.
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
        let lock = state::lock(&cluster.name)?;
        if lock.load()?.is_some() {
            return Err(Error::Exists(cluster.name));
        }
        let mut lab = Self { lock, state: State::new(dataplane, objects, cluster) };
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
        Ok(Self { lock, state })
    }

    /// Brings it to another state: pods come and go, listeners with them, and the dataplane follows.
    ///
    /// # Errors
    /// [`Error::Fixed`] if something would have to change that cannot while the cluster is up; then
    /// nothing was changed. Or what went wrong on the way; what was changed by then is kept in the state.
    pub fn change(&mut self, objects: Vec<Value>, mut cluster: Cluster) -> Result<(), Error> {
        // Nodes are numbered by their places, whatever the order in which objects now speak of them.
        let old = &self.state.cluster.nodes;
        cluster.nodes.sort_by_key(|node| old.iter().position(|one| one.name == node.name));
        check_fixed(&self.state.cluster, &cluster)?;
        let layout =
            layout(&self.state.dataplane).ok_or_else(|| Error::Dataplane(self.state.dataplane.clone()))?;
        let (before, after) = (standing(&self.state.cluster), standing(&cluster));
        let mut topology = Topology::existing(self.state.cluster.clone(), layout);
        let moved = Self::move_pods(&mut topology, &cluster, &before);
        self.state.cluster.pods.clone_from(&topology.cluster().pods);
        if let Err(error) = moved {
            self.lock.save(&self.state)?;
            return Err(error);
        }
        (self.state.objects, self.state.cluster) = (objects, cluster);
        self.lock.save(&self.state)?;
        if self.state.dataplane == "ebpf" {
            let cluster = self.state.cluster.clone();
            agents::apply(&cluster, |role, pid| self.note(&role, pid))?;
        }
        let listeners = listeners(&self.state.cluster.name);
        listeners.remove(before.difference(&after).cloned().collect())?;
        let answer = listeners.add(after.into_iter().collect())?;
        if answer.failed.is_empty() { Ok(()) } else { Err(Error::Listeners(answer.failed)) }
    }

    /// Removes the pods that are not wanted as they are, and adds those that are missing.
    fn move_pods(
        topology: &mut Topology,
        cluster: &Cluster,
        before: &HashSet<Listener>,
    ) -> Result<(), Error> {
        let same = |one: &Pod, other: &Pod| {
            one.id() == other.id()
                && one.node == other.node
                && one.address() == other.address()
                && one.host_network == other.host_network
        };
        let old = topology.cluster().pods.clone();
        for pod in old.iter().filter(|pod| !cluster.pods.iter().any(|other| same(pod, other))) {
            // Its sockets would keep its namespace alive; and would stay there, were it made anew.
            let netns = pod_netns(&cluster.name, pod);
            let own = before.iter().filter(|one| !pod.host_network && one.netns == netns.name());
            listeners(&cluster.name).remove(own.cloned().collect())?;
            topology.remove_pod(&pod.namespace, &pod.name)?;
        }
        for pod in cluster.pods.iter().filter(|pod| !old.iter().any(|other| same(pod, other))) {
            topology.add_pod(pod)?;
        }
        Ok(())
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
        self.lock.down()
    }

    fn build(&mut self, layout: Layout, interrupt: &Interrupt) -> Result<(), Error> {
        Topology::build(&self.state.cluster, layout)?;
        interrupt.check()?;
        self.start_listeners()?;
        interrupt.check()?;
        if self.state.dataplane == "ebpf" {
            let cluster = self.state.cluster.clone();
            agents::start(&cluster, |role, pid| self.note(&role, pid))?;
        }
        interrupt.check()?;
        Ok(())
    }

    fn start_listeners(&mut self) -> Result<(), Error> {
        let cluster = &self.state.cluster;
        let spec = Spec {
            control: control(&cluster.name),
            most_connections: MOST_CONNECTIONS,
            listeners: standing(cluster).into_iter().collect(),
            watch: (self.state.dataplane == "ebpf").then(|| Watch::over(cluster)),
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

/// Nodes, externals and settings are built once.
fn check_fixed(before: &Cluster, after: &Cluster) -> Result<(), Error> {
    let nodes = |cluster: &Cluster| -> Vec<_> {
        cluster.nodes.iter().map(|node| (node.name.clone(), node.address())).collect()
    };
    let externals = |cluster: &Cluster| -> Vec<_> {
        cluster.externals.iter().map(|external| (external.name.clone(), external.address)).collect()
    };
    let what = if before.name != after.name {
        "its name"
    } else if before.settings != after.settings {
        "its Testbed's settings"
    } else if nodes(before) != nodes(after) {
        "its nodes"
    } else if externals(before) != externals(after) {
        "its externals"
    } else {
        return Ok(());
    };
    Err(Error::Fixed { cluster: before.name.clone(), what })
}

/// What a dataplane wants of its links; `None` for one that has none.
fn layout(dataplane: &str) -> Option<Layout> {
    match dataplane {
        "ebpf" => Some(Layout::HOOKED),
        "chains" => Some(Name::Chains.dataplane().layout()),
        "routed" => Some(Name::Routed.dataplane().layout()),
        _ => None,
    }
}

/// Where a cluster's listeners are asked.
fn control(cluster: &str) -> PathBuf {
    state::directory(cluster).join("listen.sock")
}

/// The listeners of a cluster that is up.
pub fn listeners(cluster: &str) -> Client {
    Client::at(&control(cluster))
}
