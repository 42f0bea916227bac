//! A prober for a cluster that is up: [`super::sockets`] between its namespaces.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use userspace::model::{Backend, Cluster, Protocol, ServicePort, Who};

use super::sockets::{Dial, dial_all};
use super::{Flow, Measured, Prober};
use crate::interrupt::Interrupt;
use crate::listen::{self, Client, Listener};
use crate::netns::{Netns, Part};
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

/// Asks with real sockets, on whichever dataplane the cluster runs.
#[derive(Debug)]
pub struct Live<'a> {
    cluster: &'a Cluster,
    dataplane: &'static str,
    listeners: Client,
    interrupt: Interrupt,
}

impl<'a> Live<'a> {
    /// A prober of a cluster whose listeners are served by `listeners`; it stops when interrupted.
    pub fn new(
        cluster: &'a Cluster,
        dataplane: &'static str,
        listeners: Client,
        interrupt: &Interrupt,
    ) -> Self {
        Self { cluster, dataplane, listeners, interrupt: interrupt.clone() }
    }

    /// The flow as the sender's socket sees it.
    fn dial(&self, flow: &Flow) -> Option<Dial> {
        let (netns, source) = place(self.cluster, &flow.from)?;
        let target = match &flow.to {
            Who::Service(id) => self.cluster.services.iter().find(|service| service.id() == *id)?.address,
            end => place(self.cluster, end)?.1,
        };
        Some(Dial { netns, source, target: SocketAddr::new(target, flow.port), protocol: flow.protocol })
    }

    /// Where somebody must listen so that a flow can be answered, declared or not.
    fn listeners(&self, flow: &Flow) -> Vec<Listener> {
        let Flow { to, port, protocol, .. } = flow;
        match to {
            Who::Service(id) => {
                let service = self.cluster.services.iter().find(|service| service.id() == *id);
                let ports = service.into_iter().flat_map(|service| &service.ports);
                let dialled = ports.filter(|one| one.port == *port && one.protocol == *protocol);
                dialled.flat_map(|port| behind(self.cluster, port)).collect()
            }
            // Where an external says where it listens, it listens nowhere else.
            Who::External(name) if declares_ports(self.cluster, name) => Vec::new(),
            end => {
                let place = place(self.cluster, end);
                place
                    .map(|(netns, address)| listener(&netns, address, *protocol, *port))
                    .into_iter()
                    .collect()
            }
        }
    }
}

impl Prober for Live<'_> {
    fn dataplane(&self) -> &'static str {
        self.dataplane
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
        let verdicts = dial_all(&dials, &self.interrupt);
        // The cluster is left as it was found.
        self.listeners.remove(extra)?;
        Ok(verdicts?.into_iter().map(Measured::from).collect())
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
    Listener { netns: netns.name().to_owned(), address, protocol, port }
}

fn declares_ports(cluster: &Cluster, external: &str) -> bool {
    cluster.externals.iter().any(|one| one.name == external && !one.ports.is_empty())
}

/// Where an end lives, and its address there. Services live nowhere.
fn place(cluster: &Cluster, end: &Who) -> Option<(Netns, IpAddr)> {
    match end {
        Who::Pod(id) => {
            let pod = cluster.pods.iter().find(|pod| pod.id() == *id)?;
            Some((pod_netns(&cluster.name, pod), pod.address))
        }
        Who::Node(name) => {
            let node = cluster.nodes.iter().find(|node| node.name == *name)?;
            Some((Netns::of(&cluster.name, Part::Node(&node.name)), node.address))
        }
        Who::External(name) => {
            let external = cluster.externals.iter().find(|external| external.name == *name)?;
            Some((Netns::of(&cluster.name, Part::World), external.address))
        }
        Who::Service(_) => None,
    }
}

/// The namespace that has the address, if it is one of the cluster's or an external's.
fn owner(cluster: &Cluster, address: IpAddr) -> Option<Netns> {
    if let Some(pod) = cluster.pods.iter().find(|pod| pod.address == address) {
        return Some(pod_netns(&cluster.name, pod));
    }
    if let Some(node) = cluster.nodes.iter().find(|node| node.address == address) {
        return Some(Netns::of(&cluster.name, Part::Node(&node.name)));
    }
    let external = cluster.externals.iter().find(|external| external.address == address)?;
    let silent = external.ports.is_empty();
    silent.then(|| Netns::of(&cluster.name, Part::World))
}
