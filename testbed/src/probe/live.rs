//! A prober for a cluster that is up: [`super::sockets`] between its namespaces.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use dataplane::Reason;
use dataplane::trace::Stage;
use dataplane::wire::{Address as _, V4, V6};
use userspace::model::{Backend, Cluster, Protocol, ServicePort, Who};
use userspace::observe::walk::{Event, Names, Step};

use super::sockets::{Dial, Dialled, dial_all};
use super::{Flow, Measured, Prober, family_of};
use crate::interrupt::Interrupt;
use crate::listen::{self, Client, Listener};
use crate::netns::{Netns, Part};
use crate::oracle::Oracle;
use crate::topology::pod_netns;

/// Why the cluster could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flow names what is not in the cluster.
    #[error("cannot ask {flow}: the cluster has no {end}")]
    Unknown {
        /// The flow.
        flow: Flow,
        /// What is missing.
        end: Who,
    },
    /// Targets cannot be made to listen.
    #[error("cannot make the targets listen: {}", .0.join("; "))]
    Listen(Vec<String>),
}

/// Dials between two looks at what was reported.
const PART: usize = 512;

/// Takes what a dataplane reported since the last time.
pub type Reports<'a> = Box<dyn FnMut() -> anyhow::Result<Vec<Step>> + 'a>;

/// Asks with real sockets, on whichever dataplane the cluster runs.
pub struct Live<'a> {
    cluster: &'a Cluster,
    oracle: Oracle<'a>,
    dataplane: &'static str,
    listeners: Client,
    interrupt: Interrupt,
    told: Option<(Reports<'a>, Names)>,
}

impl<'a> Live<'a> {
    /// A prober of a cluster whose listeners are served by `listeners`; it stops when interrupted.
    pub fn new(
        cluster: &'a Cluster,
        dataplane: &'static str,
        listeners: Client,
        interrupt: &Interrupt,
    ) -> Self {
        let oracle = Oracle::of(cluster);
        Self { cluster, oracle, dataplane, listeners, interrupt: interrupt.clone(), told: None }
    }

    /// The same, told by the dataplane who decided and why packets were dropped; every stage must report.
    pub fn told_by(self, reports: Reports<'a>, names: Names) -> Self {
        Self { told: Some((reports, names)), ..self }
    }

    /// Dials, and sets what the dataplane reported beside what the senders could tell. A part at a time:
    /// reports are kept for a while only.
    fn measure(&mut self, dials: &[Dial]) -> anyhow::Result<Vec<Measured>> {
        let mut measured = Vec::new();
        for part in dials.chunks(PART) {
            let dialled = dial_all(part, &self.interrupt)?;
            let Some((reports, names)) = &mut self.told else {
                measured.extend(dialled.into_iter().map(|one| Measured::from(one.verdict)));
                continue;
            };
            let told = Told::of(reports()?);
            measured.extend(part.iter().zip(dialled).map(|(dial, Dialled { verdict, port })| {
                let steps = told.about(dial, port);
                let decided_by = names.decider(steps).map(|rule| rule.policy);
                Measured { verdict, reason: steps.iter().find_map(reason), decided_by }
            }));
        }
        Ok(measured)
    }

    /// The flow as the sender's socket sees it.
    fn dial(&self, flow: &Flow) -> Option<Dial> {
        let (netns, own) = place(self.cluster, &flow.from)?;
        let found;
        let target = match &flow.to {
            Who::Service(_) | Who::Frontend(..) => {
                found = self.cluster.find(&flow.to).ok()?;
                found.addresses()
            }
            end => place(self.cluster, end)?.1,
        };
        let from = |target: &IpAddr| own.iter().copied().find(|own| own.is_ipv4() == target.is_ipv4());
        let mut ways = target.iter().filter_map(|target| Some((from(target)?, *target)));
        let (source, target) =
            ways.find(|(_, target)| flow.over.is_none_or(|over| family_of(*target) == over))?;
        Some(Dial { netns, source, target: SocketAddr::new(target, flow.port), protocol: flow.protocol })
    }

    /// Where somebody must listen so that a flow can be answered, declared or not.
    fn listeners(&self, flow: &Flow) -> Vec<Listener> {
        let Flow { to, port, protocol, .. } = flow;
        match to {
            Who::Service(id) | Who::Frontend(id, _) => {
                let service = self.cluster.services.iter().find(|service| service.id() == *id);
                let ports = service.into_iter().flat_map(|service| &service.ports);
                let dialled = ports.filter(|one| one.port == *port && one.protocol == *protocol);
                dialled.flat_map(|port| behind(self.cluster, port)).collect()
            }
            // Where an external says where it listens, it listens nowhere else.
            Who::External(name) if declares_ports(self.cluster, name) => Vec::new(),
            end => {
                let Some((netns, addresses)) = place(self.cluster, end) else { return Vec::new() };
                // What stands behind a port of a node listens where it is.
                let own =
                    addresses.iter().filter(|address| !self.oracle.is_frontend(**address, *port, *protocol));
                own.map(|address| listener(&netns, *address, *protocol, *port)).collect()
            }
        }
    }
}

/// Reports, by the ends of flows: address, port, protocol.
struct Told(HashMap<(V6, u16, u8), Vec<Step>>);

impl Told {
    fn of(steps: Vec<Step>) -> Self {
        let mut told: HashMap<_, Vec<Step>> = HashMap::new();
        for step in steps {
            if let Event::Stage { record, .. } = &step.event {
                let ends = [(record.source, record.source_port), (record.target, record.target_port)];
                for (address, port) in ends {
                    told.entry((address, port.host(), record.protocol)).or_default().push(step.clone());
                }
            }
        }
        Self(told)
    }

    /// Those about the packets of one dial, both ways: its sender's port is nobody else's.
    fn about(&self, dial: &Dial, port: u16) -> &[Step] {
        let address = match dial.source {
            IpAddr::V4(address) => V4(address.octets()).to_v6(),
            IpAddr::V6(address) => V6(address.octets()),
        };
        self.0.get(&(address, port, dial.protocol.number())).map_or(&[], Vec::as_slice)
    }
}

/// Why a packet was dropped, if this is the report of it.
fn reason(step: &Step) -> Option<Reason> {
    match &step.event {
        Event::Stage { record, .. } if record.stage == Stage::Drop as u8 => {
            Reason::from_number(record.detail)
        }
        _ => None,
    }
}

impl Prober for Live<'_> {
    fn dataplane(&self) -> &'static str {
        self.dataplane
    }

    /// kube-proxy's rules masquerade whom they send on.
    fn stands_in(&self) -> bool {
        matches!(self.dataplane, "chains" | "iptables" | "nftables")
    }

    fn probe(&mut self, flows: &[Flow]) -> anyhow::Result<Vec<Measured>> {
        let dials: Vec<Dial> = flows
            .iter()
            .map(|flow| {
                self.dial(flow).ok_or_else(|| {
                    let known = place(self.cluster, &flow.from).is_some();
                    let end = if known { &flow.to } else { &flow.from };
                    Error::Unknown { flow: flow.clone(), end: end.clone() }
                })
            })
            .collect::<Result<_, _>>()?;
        let standing = standing(self.cluster);
        let wanted: HashSet<Listener> = flows.iter().flat_map(|flow| self.listeners(flow)).collect();
        let extra: Vec<Listener> = wanted.into_iter().filter(|one| !standing.contains(one)).collect();
        let answer = self.listeners.add(extra.clone())?;
        if !answer.failed.is_empty() {
            return Err(Error::Listen(answer.failed).into());
        }
        let measured = self.measure(&dials);
        // The cluster is left as it was found.
        self.listeners.remove(extra)?;
        measured
    }
}

/// What listens as long as the cluster is up: where pods and externals say they do, and where Services
/// send to.
pub fn standing(cluster: &Cluster) -> HashSet<Listener> {
    let ports = cluster.services.iter().flat_map(|service| &service.ports);
    listen::declared(cluster).into_iter().chain(ports.flat_map(|port| behind(cluster, port))).collect()
}

/// Where the backends of a Service's port listen.
fn behind(cluster: &Cluster, port: &ServicePort) -> Vec<Listener> {
    let place = |backend: &Backend| {
        let netns = owner(cluster, backend.address)?;
        Some(listener(&netns, backend.address, port.protocol, backend.port))
    };
    port.backends.iter().filter_map(place).collect()
}

fn listener(netns: &Netns, address: IpAddr, protocol: Protocol, port: u16) -> Listener {
    Listener { netns: netns.name().to_owned(), address, protocol, port, page: None }
}

fn declares_ports(cluster: &Cluster, external: &str) -> bool {
    cluster.externals.iter().any(|one| one.name == external && !one.ports.is_empty())
}

/// Where an end lives, and its addresses there. Services live nowhere.
fn place<'a>(cluster: &'a Cluster, end: &Who) -> Option<(Netns, &'a [IpAddr])> {
    match end {
        Who::Pod(id) => {
            let pod = cluster.pods.iter().find(|pod| pod.id() == *id)?;
            Some((pod_netns(&cluster.name, pod), &pod.addresses))
        }
        Who::Node(name) => {
            let node = cluster.nodes.iter().find(|node| node.name == *name)?;
            Some((Netns::of(&cluster.name, Part::Node(&node.name)), &node.addresses))
        }
        Who::External(name) => {
            let external = cluster.externals.iter().find(|external| external.name == *name)?;
            Some((Netns::of(&cluster.name, Part::World), std::slice::from_ref(&external.address)))
        }
        Who::Service(_) | Who::Frontend(..) => None,
    }
}

/// The namespace that has the address, if it is one of the cluster's or an external's.
fn owner(cluster: &Cluster, address: IpAddr) -> Option<Netns> {
    if let Some(pod) = cluster.pods.iter().find(|pod| pod.addresses.contains(&address)) {
        return Some(pod_netns(&cluster.name, pod));
    }
    if let Some(node) = cluster.nodes.iter().find(|node| node.addresses.contains(&address)) {
        return Some(Netns::of(&cluster.name, Part::Node(&node.name)));
    }
    let external = cluster.externals.iter().find(|external| external.address == address)?;
    let silent = external.ports.is_empty();
    silent.then(|| Netns::of(&cluster.name, Part::World))
}
