//! The agents of a cluster that is up on `ebpf`: a process for each node, told in lines of JSON what its
//! node must hold. See [`userspace::agent`].

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use dataplane::trace::Record;
use userspace::agent::{Change, Counts, Desired, Reply, Request};
use userspace::engine::kernel::Pins;
use userspace::model::{Cluster, Node, Service};
use userspace::observe::walk::{Event, Names, Step};

use crate::control::{self, Control};
use crate::dataplane::{self as dataplanes, Name, ebpf};
use crate::netns::{Netns, Part, fnv1a};
use crate::state;
use crate::topology::{HOST_PEER, Topology, UPLINK, host_side, pod_netns};

/// The agent's program, beside this one.
const PROGRAM: &str = "podpath-agent";

/// Why a node does not hold what it must.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process could not be noted.
    #[error(transparent)]
    State(#[from] state::Error),
    /// It could not be started, or ended at once.
    #[error("cannot start the agent of node {node}: {source}; it is {}, and writes to {}", program.display(), log.display())]
    Start {
        /// The node.
        node: String,
        /// The agent's program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
        /// Where it writes what it has to say.
        log: PathBuf,
    },
    /// It does not answer.
    #[error(
        "cannot ask the agent of node {node}: {source}; if it was ended, `podpath apply` with any file starts it again"
    )]
    Ask {
        /// The node.
        node: String,
        /// Why not.
        source: io::Error,
    },
    /// The cluster's links are not as they should be.
    #[error(transparent)]
    Links(#[from] dataplanes::Error),
    /// It answered that it could not.
    #[error("cannot bring up node {node}: {why}")]
    Failed {
        /// The node.
        node: String,
        /// In its own words.
        why: String,
    },
}

impl Error {
    /// What went wrong with the process of a node's agent.
    fn of(node: &str, error: control::Error) -> Self {
        let node = node.to_owned();
        match error {
            control::Error::State(error) => Self::State(error),
            control::Error::Start { source, log, .. } => {
                Self::Start { node, program: program(), source, log }
            }
            control::Error::Ask { source, .. } => Self::Ask { node, source },
        }
    }

    /// There is no agent: it never was, or has ended.
    fn is_absence(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Ask { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
    }
}

/// A cluster, and which of the states this is that it is brought to one after the other.
pub type Stated<'a> = (u64, &'a Cluster);

/// Starts an agent for each node, one after the other, and waits until packets pass. `note` gets each
/// process's number before the process does anything. The agents outlive us.
///
/// # Errors
/// The first that did not come up. Those before it run.
pub fn start(
    now: Stated<'_>,
    mut note: impl FnMut(String, u32) -> Result<(), state::Error>,
) -> Result<(), Error> {
    now.1.nodes.iter().try_for_each(|node| start_one(now, node, &mut note))
}

/// Starts the agent of a node.
fn start_one(
    now: Stated<'_>,
    node: &Node,
    note: &mut impl FnMut(String, u32) -> Result<(), state::Error>,
) -> Result<(), Error> {
    let cluster = now.1;
    let netns = Netns::of(&cluster.name, Part::Node(&node.name));
    let mut command = Command::new(program());
    command.args(["--cluster", &cluster.name, "--node", &node.name, "--uplink", UPLINK]);
    command.args(["--host", HOST_PEER, "--netns"]).arg(netns.path());
    command.arg("--socket").arg(socket(&cluster.name, &node.name));
    let request = Request::Apply(Box::new(desired(now, &node.name)));
    let started = control(&cluster.name, &node.name)
        .start(command, &request, |number| note(role(&node.name), number))
        .map_err(|error| Error::of(&node.name, error))?;
    // One that cannot do it ends after it has said so.
    done(&node.name, started).map(drop)
}

/// Brings every node from one state of the cluster to another: agents are told the Services that are others, where
/// nothing else is, or all of it. A node that is new, or whose agent is no more, gets an agent: the programs went on
/// without it, and its flows are taken over.
///
/// # Errors
/// The first that cannot be brought there.
pub fn apply(
    before: Stated<'_>,
    now: Stated<'_>,
    mut note: impl FnMut(String, u32) -> Result<(), state::Error>,
) -> Result<(), Error> {
    let cluster = now.1;
    let change = services_alone(before.1, cluster)
        .map(|services| Request::Change(Box::new(Change { from: before.0, revision: now.0, services })));
    for node in &cluster.nodes {
        let all = || Request::Apply(Box::new(desired(now, &node.name)));
        let tell = |request: &Request| ask(&cluster.name, &node.name, request);
        let told = match &change {
            Some(change) => tell(change),
            None => tell(&all()),
        };
        let told = match told {
            Ok(Reply::Behind) => tell(&all()),
            told => told,
        };
        match told {
            Err(error) if error.is_absence() => start_one(now, node, &mut note)?,
            told => drop(told?),
        }
    }
    Ok(())
}

/// The Services that are new, different or (`None`) gone, by `namespace/name`, if nothing else of the cluster is.
fn services_alone(before: &Cluster, now: &Cluster) -> Option<BTreeMap<String, Option<Service>>> {
    let rest = |cluster: &Cluster| Cluster { services: Vec::new(), notes: Vec::new(), ..cluster.clone() };
    if rest(before) != rest(now) {
        return None;
    }
    let (old, new) = (by_id(before), by_id(now));
    let gone = old.keys().filter(|id| !new.contains_key(*id)).map(|id| (id.clone(), None));
    let other = new.iter().filter(|(id, service)| old.get(*id) != Some(service));
    Some(gone.chain(other.map(|(id, service)| (id.clone(), Some((*service).clone())))).collect())
}

fn by_id(cluster: &Cluster) -> BTreeMap<String, &Service> {
    cluster.services.iter().map(|service| (service.id(), service)).collect()
}

/// Takes everything off a node, and ends its agent. What one that is no more has left is removed.
///
/// # Errors
/// It cannot.
pub fn stop(cluster: &str, node: &str) -> Result<(), Error> {
    match ask(cluster, node, &Request::Stop) {
        Err(error) if error.is_absence() => {
            Ok(Pins::of(cluster, node).remove().map_err(|source| dataplanes::Error::Ebpf(source.into()))?)
        }
        asked => asked.map(drop),
    }
}

/// What the agent of a node is called among the processes of a cluster.
pub fn role(node: &str) -> String {
    format!("agent of {node}")
}

/// Lets every stage on every node report, or only what must be known of any packet.
///
/// # Errors
/// The first that cannot.
pub fn trace(cluster: &Cluster, on: bool) -> Result<(), Error> {
    ask_all(cluster, &Request::Trace(on)).map(drop)
}

/// What the nodes reported since the last time, and how many reports were lost since the agents began.
///
/// # Errors
/// An agent does not answer.
pub fn take_steps(cluster: &Cluster) -> Result<(Vec<Step>, u64), Error> {
    let (mut steps, mut all_lost) = (Vec::new(), 0);
    for (node, reply) in ask_all(cluster, &Request::Records)?.into_iter().enumerate() {
        if let Reply::Records { records, lost } = reply {
            all_lost += lost;
            let events = records.into_iter().map(|told| Event::Stage { node, record: Record::from(told) });
            steps.extend(events.map(|event| Step { packet: 0, event }));
        }
    }
    Ok((steps, all_lost))
}

/// What interfaces, addresses and rules of a cluster that is up are called. Rules have the numbers that the
/// agents gave them: these follow from all that the cluster has been, not only from what it is.
///
/// # Errors
/// The cluster cannot be planned, a link is missing, or an agent does not answer.
pub fn names(cluster: &Cluster) -> Result<Names, Error> {
    let layout = Name::Ebpf.dataplane().layout();
    let mut names = ebpf::names(&Topology::existing(cluster.clone(), layout))?;
    for (node, reply) in names.nodes.iter_mut().zip(ask_all(cluster, &Request::Rules)?) {
        if let Reply::Rules(rules) = reply {
            node.rules = rules;
        }
    }
    Ok(names)
}

/// What became of packets on each node, and how full its tables are, by the node's name.
///
/// # Errors
/// An agent does not answer.
pub fn counts(cluster: &Cluster) -> Result<BTreeMap<String, Counts>, Error> {
    let replies = ask_all(cluster, &Request::Counts)?;
    let named = cluster.nodes.iter().zip(replies).filter_map(|(node, reply)| match reply {
        Reply::Counts(counts) => Some((node.name.clone(), counts)),
        _ => None,
    });
    Ok(named.collect())
}

/// The replies of all, in the order of the nodes. All are asked at one time: what is asked may take each of them
/// seconds.
fn ask_all(cluster: &Cluster, request: &Request) -> Result<Vec<Reply>, Error> {
    thread::scope(|scope| {
        let asked = |node| scope.spawn(move || ask(&cluster.name, node, request));
        let asked: Vec<_> = cluster.nodes.iter().map(|node| asked(&node.name)).collect();
        let reply = |asked: thread::ScopedJoinHandle<'_, _>| {
            asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        asked.into_iter().map(reply).collect()
    })
}

/// The reply of the agent of a node.
fn ask(cluster: &str, node: &str, request: &Request) -> Result<Reply, Error> {
    let asked = control(cluster, node).ask(request);
    done(node, asked.map_err(|error| Error::of(node, error))?)
}

fn done(node: &str, reply: Reply) -> Result<Reply, Error> {
    match reply {
        Reply::Failed(why) => Err(Error::Failed { node: node.to_owned(), why }),
        reply => Ok(reply),
    }
}

/// What a node must hold.
fn desired((revision, cluster): Stated<'_>, node: &str) -> Desired {
    let pods = || cluster.pods_on(node).filter(|pod| !pod.host_network);
    let interfaces: BTreeMap<String, String> = pods().map(|pod| (pod.id(), host_side(pod))).collect();
    let netns = pods().map(|pod| (pod.id(), pod_netns(&cluster.name, pod).path())).collect();
    Desired { revision, cluster: cluster.clone(), interfaces, netns }
}

/// The agent's program.
fn program() -> PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name(PROGRAM)
}

/// The process of a node's agent.
fn control(cluster: &str, node: &str) -> Control {
    Control::new("the agent", &socket(cluster, node))
}

/// Where the agent of a node is asked. A socket's path is shorter than a node's name may be.
fn socket(cluster: &str, node: &str) -> PathBuf {
    state::directory(cluster).join(format!("agent-{:016x}.sock", fnv1a(node.as_bytes())))
}
