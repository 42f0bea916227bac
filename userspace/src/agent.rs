//! The agent of one node: it brings the node's packet path to what it is told, keeps what the path reports,
//! and sweeps away what is over.
//!
//! Whoever runs the cluster talks to it in lines of JSON over a socket: a [`Request`], then its [`Reply`].
//! Told to stop, it takes everything off the node. Ended by a signal, it leaves the path in place: the
//! programs go on without it, and the next agent of the node takes over the flows and replaces the programs
//! in one step.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use dataplane::Verdict;
use dataplane::tables::IfIndex;
use dataplane::trace::Record;
use dataplane::verdict::{AUDITED, Reason, Turn};
use dataplane::wire::{Be16, V6};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::engine::kernel::{Kernel, Namespaces, Options, Pins, Sweeper, Swept, cookie_of};
use crate::engine::{Engine, Hook};
use crate::error::Error;
use crate::model::{Cluster, Labels, Service};
use crate::plan::{Homes, LEGS, Legs, Links, NodeChange, NodePlan, Plan, Rules};

/// Of [`LEGS`], the one in which each node changes by itself.
const SECOND: usize = 1;

/// Reports that are kept until somebody asks for them; older ones are dropped, and counted.
const KEPT: usize = 16_384;

/// What an agent can be asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Bring the node to this: the first leg of the way, or all of it for a node that has no programs yet.
    Apply(Box<Desired>),
    /// This is different now, and nothing else is: the first leg of the way there.
    Change(Box<Change>),
    /// The next leg, all other nodes having ended the one before: there are [`LEGS`].
    Go,
    /// Let every stage report, or only what must be known of any packet.
    Trace(bool),
    /// Hand over the reports since the last time.
    Records,
    /// Say what the rules that reports name by number are called.
    Rules,
    /// Say how many packets came to which verdict, and how full the tables are that packets fill.
    Counts,
    /// Remove what is over now, not in its time.
    Sweep,
    /// Take everything off the node, and end.
    Stop,
}

/// A cluster, and where its pods are connected on this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Desired {
    /// Which state of the cluster this is: no other has the same number.
    pub revision: u64,
    /// All of it.
    pub cluster: Cluster,
    /// The node's side of each of its pods' links, by `namespace/name`.
    pub interfaces: BTreeMap<String, String>,
    /// The network namespaces of these pods, as files, by `namespace/name`.
    pub netns: BTreeMap<String, PathBuf>,
}

/// From one state of the cluster to another.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Change {
    /// The state that it leads from.
    pub from: u64,
    /// The state that it leads to.
    pub revision: u64,
    /// The Services that are new or different, by `namespace/name`; `None`: there is none any more.
    pub services: BTreeMap<String, Option<Service>>,
    /// The pod whose labels are different, by `namespace/name`, and what they are now.
    pub labels: Option<(String, Labels)>,
}

/// The agent's own network namespace, which is its node's.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// What an agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done,
    /// A change is on its way: rows that it writes.
    Changed(usize),
    /// Nothing is done: the node is at another state than the change leads from, and must be told all of it.
    Behind,
    /// Reports, in order, and how many are lost since the agent began.
    Records {
        /// The reports.
        records: Vec<Told>,
        /// Lost ones.
        lost: u64,
    },
    /// What the rules are called.
    Rules(Rules),
    /// What became of packets, and how full the tables are.
    Counts(Counts),
    /// Flows and source ports that were removed, and flows that go on.
    Swept {
        /// Flows that were over.
        connections: usize,
        /// Source ports that no flow had.
        masquerades: usize,
        /// Flows that go on.
        kept: usize,
    },
    /// It could not be done, and why.
    Failed(String),
}

/// What a node's path did, and what it still has room for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Packets and bytes that came to each verdict, where there were any: `deliver`, `forward`, `answer`,
    /// `stack`, or the slug of the reason of a drop.
    pub verdicts: BTreeMap<String, (u64, u64)>,
    /// Sockets that connected or sent to a Service: led to a `backend`, or left to the packets' path because there
    /// was no room to remember what they dialled (`full`), where there were any.
    pub sockets: BTreeMap<String, u64>,
    /// Judgements of policies that would have denied a packet and let it pass, because the pod is audited.
    #[serde(default)]
    pub audited: u64,
    /// Packets from the uplink are met in its driver.
    #[serde(default)]
    pub accelerated: bool,
    /// Rows that each table holds which packets fill, and rows that it can hold.
    pub tables: BTreeMap<String, (usize, u32)>,
}

/// A [`Record`] in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// [`Record::number`].
    pub number: u32,
    /// [`Record::length`].
    pub length: u32,
    /// [`Record::stage`], [`Record::detail`], [`Record::direction`], [`Record::protocol`], [`Record::flags`].
    pub what: [u8; 5],
    /// [`Record::source`], [`Record::source_port`].
    pub source: (Ipv6Addr, u16),
    /// [`Record::target`], [`Record::target_port`].
    pub target: (Ipv6Addr, u16),
}

impl From<Record> for Told {
    fn from(record: Record) -> Self {
        Self {
            number: record.number,
            length: record.length,
            what: [record.stage, record.detail, record.direction, record.protocol, record.flags],
            source: (Ipv6Addr::from(record.source.0), record.source_port.host()),
            target: (Ipv6Addr::from(record.target.0), record.target_port.host()),
        }
    }
}

impl From<Told> for Record {
    fn from(told: Told) -> Self {
        let [stage, detail, direction, protocol, flags] = told.what;
        Self {
            number: told.number,
            length: told.length,
            stage,
            detail,
            direction,
            protocol,
            flags,
            pad: [0; 3],
            source: V6(told.source.0.octets()),
            target: V6(told.target.0.octets()),
            source_port: Be16::new(told.source.1),
            target_port: Be16::new(told.target.1),
        }
    }
}

/// Which node an agent is of, and where on it packets pass.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The cluster's name.
    pub cluster: String,
    /// The node's.
    pub node: String,
    /// The interface to the underlay.
    pub uplink: String,
    /// Where the node's own packets to pods arrive.
    pub host: String,
}

/// The agent. It lives in its node's network namespace.
#[derive(Debug)]
pub struct Agent {
    seat: Seat,
    running: Option<Running>,
    records: VecDeque<Record>,
    overflown: u64,
    sweeper: Sweeper,
}

/// What it has brought up.
#[derive(Debug)]
struct Running {
    kernel: Kernel,
    plan: Plan,
    /// What the node is told; its rows are those that it holds.
    node: NodePlan,
    links: Links,
    namespaces: Namespaces,
    /// [`Desired::revision`] of the state that the node is at; `None` while it may be between two.
    revision: Option<u64>,
    ahead: Option<Ahead>,
}

/// What is left of the way to another state.
#[derive(Debug)]
struct Ahead {
    legs: std::array::IntoIter<Vec<NodeChange>, LEGS>,
    /// The state that it leads to.
    revision: u64,
}

impl Running {
    /// Tells the node's programs what holds for all packets, which is part of them.
    fn tell(&mut self, node: NodePlan) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.node, node);
        if (before.node, before.addresses) == (self.node.node, self.node.addresses) {
            return Ok(());
        }
        let trace = self.kernel.tracing();
        self.kernel.reload(&self.node, trace).inspect_err(|_| {
            // Those of before go on, and the next state finds them so.
            let rows = std::mem::take(&mut self.node.rows);
            self.node = NodePlan { rows, ..before };
        })
    }

    /// Sets out on the way to another state, and goes its first leg.
    fn set_out(&mut self, legs: Legs, revision: u64) -> Result<(), Error> {
        self.ahead = Some(Ahead { legs: legs.into_iter(), revision });
        self.go()
    }

    /// Goes the next leg, if one is left.
    fn go(&mut self) -> Result<(), Error> {
        let Some(ahead) = &mut self.ahead else { return Ok(()) };
        let leg = ahead.legs.next().unwrap_or_default();
        let arrives = ahead.legs.as_slice().is_empty();
        if let Err(why) = self.kernel.change(&leg) {
            // There is no way on from half way: the next state is set out for from what the tables hold.
            self.ahead = None;
            self.node.rows.clone_from(self.kernel.rows());
            return Err(why);
        }
        leg.into_iter().for_each(|change| self.node.rows.make(change));
        if arrives {
            self.kernel.end_stale_clients(&self.namespaces)?;
            self.revision = self.ahead.take().map(|ahead| ahead.revision);
        }
        Ok(())
    }
}

impl Agent {
    /// An agent that has done nothing yet.
    pub fn new(seat: Seat) -> Self {
        Self { seat, running: None, records: VecDeque::new(), overflown: 0, sweeper: Sweeper::default() }
    }

    /// Does what is asked.
    pub fn serve(&mut self, request: &Request) -> Reply {
        let done = match request {
            Request::Apply(desired) => self.apply(desired).map(|()| Reply::Done),
            Request::Change(change) => self.change(change),
            Request::Go => self.go().map(|()| Reply::Done),
            Request::Trace(on) => self.trace(*on).map(|()| Reply::Done),
            Request::Records => self.hand_over(),
            Request::Rules => self.rules(),
            Request::Counts => self.counts(),
            Request::Sweep => self.sweep().map(|swept| Reply::Swept {
                connections: swept.connections,
                masquerades: swept.masquerades,
                kept: swept.kept,
            }),
            Request::Stop => self.stop().map(|()| Reply::Done),
        };
        done.unwrap_or_else(|why| Reply::Failed(why.to_string()))
    }

    /// Plans, and sets out for there. Programs are where packets pass before their pods are known.
    fn apply(&mut self, desired: &Desired) -> Result<(), Error> {
        let pins = Pins::of(&self.seat.cluster, &self.seat.node);
        let plan = match &mut self.running {
            Some(running) => {
                if running.revision.is_none() {
                    running.plan.stray();
                }
                running.plan.after(&desired.cluster)?
            }
            None => first_plan(&desired.cluster, &pins)?,
        };
        let (links, namespaces) = self.links(desired)?;
        let mut node = plan.node(&self.seat.node, &links)?;
        plan.notes(&self.seat.node)?.iter().for_each(|note| tracing::warn!("{note}"));
        let pods = desired.interfaces.values().map(|link| (Hook::FromPod, link.clone()));
        let own = [(Hook::FromUnderlay, self.seat.uplink.clone()), (Hook::FromHost, self.seat.host.clone())];
        let places: Vec<_> = pods.chain(own).collect();
        if let Some(running) = &mut self.running {
            (running.revision, running.ahead) = (None, None);
            let legs = running.kernel.legs(&node.rows)?;
            running.kernel.attach(&places)?;
            node.rows = std::mem::take(&mut running.node.rows);
            running.tell(node)?;
            (running.plan, running.links, running.namespaces) = (plan, links, namespaces);
            return running.set_out(legs, desired.revision);
        }
        let mut kernel = Kernel::load(&node, Options { pins: Some(pins), ..Options::default() })?;
        kernel.attach(&places)?;
        kernel.end_stale_clients(&namespaces)?;
        let revision = Some(desired.revision);
        self.running = Some(Running { kernel, plan, node, links, namespaces, revision, ahead: None });
        Ok(())
    }

    /// Plans what is different now, and sets out for there: nothing else is looked at.
    fn change(&mut self, change: &Change) -> Result<Reply, Error> {
        let Some(running) = &mut self.running else { return Err(self.idle()) };
        if running.revision != Some(change.from) {
            return Ok(Reply::Behind);
        }
        running.revision = None;
        let mut legs = Legs::default();
        if let Some((pod, labels)) = &change.labels {
            legs = running.plan.relabel((&self.seat.node, &running.links), pod, labels)?;
        }
        for (id, service) in &change.services {
            legs[SECOND].extend(running.plan.change(&self.seat.node, id, service.as_ref())?);
        }
        let written = legs.iter().map(Vec::len).sum();
        running.set_out(legs, change.revision)?;
        Ok(Reply::Changed(written))
    }

    fn go(&mut self) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Err(self.idle()) };
        running.go()
    }

    /// Interfaces by number, and network namespaces by cookie, where the cluster translates sockets.
    fn links(&self, desired: &Desired) -> Result<(Links, Namespaces), Error> {
        let number = |link: &str| {
            let numbered = if_nametoindex(link).map(IfIndex);
            numbered.map_err(|why| Error::NoLink {
                node: self.seat.node.clone(),
                link: link.to_owned(),
                why: why.desc(),
            })
        };
        let pods = desired.interfaces.iter().map(|(pod, link)| Ok((pod.clone(), number(link)?)));
        let pods = pods.collect::<Result<_, Error>>()?;
        let mut links = Links { uplink: number(&self.seat.uplink)?, pods, homes: None };
        let mut namespaces = Namespaces::new();
        if desired.cluster.settings.services.socket_translation {
            let mut known = |path: &Path| {
                let cookie = cookie_of(path)?;
                namespaces.insert(cookie, path.to_owned());
                Ok::<_, Error>(cookie)
            };
            let node = known(Path::new(OWN_NETNS))?;
            let pods = desired.netns.iter().map(|(pod, path)| Ok((pod.clone(), known(path)?)));
            links.homes = Some(Homes { node, pods: pods.collect::<Result<_, Error>>()? });
        }
        Ok((links, namespaces))
    }

    fn trace(&mut self, on: bool) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Err(self.idle()) };
        running.kernel.trace(&running.node, on)
    }

    /// Takes reports out of the kernel before its buffer is full.
    pub fn collect(&mut self) {
        let Some(running) = &mut self.running else { return };
        for record in running.kernel.take_records() {
            if self.records.len() == KEPT {
                self.records.pop_front();
                self.overflown += 1;
            }
            self.records.push_back(record);
        }
    }

    fn hand_over(&mut self) -> Result<Reply, Error> {
        self.collect();
        let Some(running) = &self.running else { return Err(self.idle()) };
        let lost = running.kernel.lost()? + self.overflown;
        Ok(Reply::Records { records: self.records.drain(..).map(Told::from).collect(), lost })
    }

    fn rules(&self) -> Result<Reply, Error> {
        let Some(running) = &self.running else { return Err(self.idle()) };
        Ok(Reply::Rules(running.plan.rules()))
    }

    fn counts(&mut self) -> Result<Reply, Error> {
        let Some(running) = &self.running else { return Err(self.idle()) };
        let none = IfIndex(0);
        let verdicts = [
            ("deliver", Verdict::Deliver(none)),
            ("forward", Verdict::Forward(none)),
            ("answer", Verdict::Answer),
            ("stack", Verdict::Stack),
        ];
        let drops = Reason::ALL.iter().map(|reason| (reason.slug(), Verdict::Drop(*reason)));
        let counts = running.kernel.counts()?;
        let named = verdicts.into_iter().chain(drops).filter_map(|(name, verdict)| {
            let count = counts.get(verdict.counter() as usize)?;
            (count.packets > 0).then(|| (name.to_owned(), (count.packets, count.bytes)))
        });
        let verdicts = named.collect();
        let turns =
            [("backend", Turn::Backend), ("full", Turn::Full)].into_iter().filter_map(|(name, turn)| {
                let count = counts.get(turn.counter() as usize)?;
                (count.packets > 0).then(|| (name.to_owned(), count.packets))
            });
        let sockets = turns.collect();
        let audited = counts.get(AUDITED as usize).map_or(0, |count| count.packets);
        let tables = running.kernel.pressure()?.into_iter();
        let tables = tables.map(|of| (of.table.to_owned(), (of.rows, of.capacity))).collect();
        let accelerated = running.kernel.is_accelerated();
        Ok(Reply::Counts(Counts { verdicts, sockets, audited, accelerated, tables }))
    }

    /// Removes what is over.
    ///
    /// # Errors
    /// The tables could not be read or written.
    pub fn sweep(&mut self) -> Result<Swept, Error> {
        let Some(running) = &mut self.running else { return Ok(Swept::default()) };
        self.sweeper.sweep(&mut running.kernel)
    }

    /// How long to wait until the next sweep.
    pub fn until_sweep(&self) -> std::time::Duration {
        self.sweeper.interval()
    }

    fn stop(&mut self) -> Result<(), Error> {
        match self.running.take() {
            Some(running) => Ok(running.kernel.remove()?),
            None => Ok(()),
        }
    }

    fn idle(&self) -> Error {
        Error::Idle { node: self.seat.node.clone() }
    }
}

/// The plan of an agent that begins: where its node's programs go on without one, it goes on with their numbers.
fn first_plan(cluster: &Cluster, pins: &Pins) -> Result<Plan, Error> {
    match Kernel::held(pins) {
        Ok(Some(held)) => return Ok(Plan::resuming(cluster, &held)?),
        Ok(None) => {}
        Err(why) => warn!("backends get new numbers, and some clients others of them: {why}"),
    }
    Ok(Plan::of(cluster)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_the_same_after_its_way_through_json() {
        let record = Record {
            number: 7,
            length: 98,
            stage: 5,
            detail: 1,
            direction: 2,
            protocol: 6,
            flags: 0x12,
            pad: [0; 3],
            source: V6([1; 16]),
            target: V6([2; 16]),
            source_port: Be16::new(40_000),
            target_port: Be16::new(443),
        };
        let json = serde_json::to_string(&Told::from(record)).expect("plain fields");
        assert_eq!(Record::from(serde_json::from_str::<Told>(&json).expect("its own output")), record);
    }
}
