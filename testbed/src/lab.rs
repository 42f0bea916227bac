//! A cluster that is up: links, listeners, and whatever its dataplane runs.
//!
//! Each thing is noted in the state before it begins ([`crate::state`]), so that at any moment, also after
//! a kill, [`crate::state::down`] finds all of it. Building asks between its steps whether the user still
//! wants it; if not, or if anything fails, all of it is taken back.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use userspace::model::Cluster;

use crate::interrupt::{Interrupt, Interrupted};
use crate::listen::{self, Client, Spec};
use crate::probe::live::standing;
use crate::state::{self, Lock, Process, State};
use crate::topology::{self, Layout, Topology};

/// Connections that a cluster's listeners hold at one time, 16 KiB each.
const MOST_CONNECTIONS: usize = 4096;

/// Why a cluster did not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is up already.
    #[error("cannot bring up cluster {0}: it is up already; change it with `podpath apply`, or remove it with `podpath down {0}`")]
    Exists(String),
    /// There is no such dataplane to build on.
    #[error("cannot bring up a cluster on {0}: it is not made of namespaces and links")]
    Dataplane(String),
    /// The state could not be kept.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The links could not be made.
    #[error(transparent)]
    Topology(#[from] topology::Error),
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
        Ok(())
    }

    fn start_listeners(&mut self) -> Result<(), Error> {
        let cluster = &self.state.cluster;
        let spec = Spec {
            control: control(&cluster.name),
            most_connections: MOST_CONNECTIONS,
            listeners: standing(cluster).into_iter().collect(),
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

/// What a dataplane wants of its links; `None` for one that has none.
fn layout(dataplane: &str) -> Option<Layout> {
    match dataplane {
        "ebpf" => Some(Layout::HOOKED),
        "routed" => Some(Layout::ROUTED),
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
