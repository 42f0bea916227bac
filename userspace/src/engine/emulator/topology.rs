//! Who is in the cluster and how they are connected: from a [`Cluster`] to hosts, interfaces and the fabric.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use dataplane::tables::IfIndex;
use dataplane::wire::Mac;
use ipnet::IpNet;

use super::fabric::{Fabric, Port};
use super::host::{CLIENT_PORTS, Host, Listeners, NODE_PORTS, mac_of};
use super::message::Ether;
use crate::error::Error;
use crate::model::{Cluster, ContainerPort, Pod};
use crate::plan::Links;

/// The interface of every node to the fabric.
pub const UPLINK: IfIndex = IfIndex(2);
/// The interface through which a node's own packets enter the path.
pub const HOST_LINK: IfIndex = IfIndex(3);
/// The first interface of a pod.
const FIRST_POD: u32 = 10;

/// Where a host is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// Behind an interface of a node.
    Pod {
        /// The node, counted from 0.
        node: usize,
        /// The node's side of the pod's link.
        interface: IfIndex,
        /// The gateway's hardware address, once it was asked for.
        gateway: Option<Ether>,
    },
    /// It is a node's own stack.
    Node(usize),
    /// Outside, at the fabric's gateway.
    World,
}

/// Interfaces that were given out: a pod keeps its own as long as it keeps its address.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    given: BTreeMap<(String, String, IpAddr), IfIndex>,
    next: BTreeMap<String, u32>,
}

impl Interfaces {
    /// Those of a node; new pods get new ones.
    pub fn of(&mut self, cluster: &Cluster, node: &str) -> Links {
        let pods = cluster.pods.iter().filter(|pod| pod.node == node && !pod.host_network);
        let mut links = Links { uplink: UPLINK, ..Links::default() };
        for pod in pods {
            let key = (node.to_owned(), pod.id(), pod.address());
            let interface = *self.given.entry(key).or_insert_with(|| {
                let next = self.next.entry(node.to_owned()).or_insert(FIRST_POD);
                *next += 1;
                IfIndex(*next - 1)
            });
            links.pods.insert(pod.id(), interface);
        }
        links
    }
}

/// The hosts of a cluster, the fabric between them, and which addresses a node's stack hands to the path.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Pods with an interface, then nodes, then hosts outside.
    pub hosts: Vec<(Host, Seat)>,
    /// Hosts by name: `namespace/name` (a host-network pod is its node), `node:name`, `ext:name`.
    pub by_name: BTreeMap<String, usize>,
    /// Each node's own stack.
    pub stacks: Vec<usize>,
    /// Pods by node and interface.
    pub pods: BTreeMap<(usize, IfIndex), usize>,
    /// Between the nodes.
    pub fabric: Fabric,
    seed: u32,
    /// Ranges that a node's stack routes into the path.
    inside: Vec<IpNet>,
    /// Pods' addresses, wherever they are from.
    pod_addresses: BTreeSet<Ipv4Addr>,
}

impl Topology {
    /// Lays out a cluster. `links` are each node's, in the order of the cluster's nodes.
    ///
    /// # Errors
    /// [`Error::WrongFamily`].
    pub fn of(cluster: &Cluster, links: &[Links], seed: u32) -> Result<Self, Error> {
        let gateway = gateway_of(&cluster.settings.node_subnets[0])?;
        let mut topology = Self {
            fabric: Fabric {
                gateway: mac_of(gateway),
                mtu: cluster.settings.mtu as usize,
                ..Fabric::default()
            },
            seed,
            inside: vec![cluster.settings.pod_cidrs[0], cluster.settings.service_cidrs[0]],
            ..Self::default()
        };
        let nodes: BTreeMap<&str, usize> =
            cluster.nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index)).collect();
        for pod in cluster.pods.iter().filter(|pod| !pod.host_network) {
            let node = nodes[pod.node.as_str()];
            let address = v4(pod.id(), pod.address())?;
            let node_address = v4(format!("node {}", pod.node), cluster.nodes[node].address())?;
            let interface = links[node].pods[&pod.id()];
            let host = Host::new(pod.id(), address, pod_listeners(cluster, pod));
            let place = topology.seat(host, Seat::Pod { node, interface, gateway: None });
            topology.pods.insert((node, interface), place);
            topology.pod_addresses.insert(address);
            topology.fabric.routes.insert(address, (mac_of(node_address), Port::Node(node)));
        }
        for (index, node) in cluster.nodes.iter().enumerate() {
            let name = format!("node:{}", node.name);
            let address = v4(name.clone(), node.address())?;
            let mut host = Host::new(name, address, node_listeners(cluster, &node.name));
            host.other_mac = Some(Mac::GATEWAY.0);
            let place = topology.seat(host, Seat::Node(index));
            topology.stacks.push(place);
            topology.fabric.neighbours.insert(mac_of(address), Port::Node(index));
            topology.fabric.routes.insert(address, (mac_of(address), Port::Node(index)));
        }
        for pod in cluster.pods.iter().filter(|pod| pod.host_network) {
            topology.by_name.insert(pod.id(), topology.stacks[nodes[pod.node.as_str()]]);
        }
        for external in &cluster.externals {
            let name = format!("ext:{}", external.name);
            let address = v4(name.clone(), external.address)?;
            let listeners = match external.ports.as_slice() {
                [] => Listeners::All,
                ports => Listeners::Some(ports.iter().map(numbers).collect()),
            };
            let place = topology.seat(Host::new(name, address, listeners), Seat::World);
            topology.fabric.routes.insert(address, (mac_of(address), Port::World(place)));
        }
        Ok(topology)
    }

    /// Lets hosts that were there before go on with the source ports they had not used yet.
    pub fn inherit(&mut self, before: &Self) {
        for (host, _) in &mut self.hosts {
            if let Some(place) = before.by_name.get(&host.name) {
                host.go_on_from(&before.hosts[*place].0);
            }
        }
    }

    fn seat(&mut self, mut host: Host, seat: Seat) -> usize {
        let ports = if matches!(seat, Seat::Node(_)) { NODE_PORTS } else { CLIENT_PORTS };
        host.speak_from(ports, self.seed);
        let place = self.hosts.len();
        self.by_name.insert(host.name.clone(), place);
        self.hosts.push((host, seat));
        place
    }

    /// Whether a node's stack routes packets for this address into the path, rather than out of its uplink.
    pub fn is_inside(&self, address: Ipv4Addr) -> bool {
        self.pod_addresses.contains(&address)
            || self.inside.iter().any(|range| range.contains(&IpAddr::V4(address)))
    }

    /// The hardware address to which a host on the nodes' network sends packets for `address`.
    pub fn neighbour(&self, address: Ipv4Addr) -> Ether {
        let mac = mac_of(address);
        if self.fabric.neighbours.contains_key(&mac) { mac } else { self.fabric.gateway }
    }
}

/// A pod listens where it says it does and where Services send to; one that says nothing, everywhere.
fn pod_listeners(cluster: &Cluster, pod: &Pod) -> Listeners {
    if pod.ports.is_empty() {
        return Listeners::All;
    }
    let mut ports: BTreeSet<_> = pod.ports.iter().map(numbers).collect();
    ports.extend(backends(cluster, pod.address()));
    Listeners::Some(ports)
}

/// A node's stack listens for the pods that live in it.
fn node_listeners(cluster: &Cluster, node: &str) -> Listeners {
    let pods = cluster.pods.iter().filter(|pod| pod.host_network && pod.node == node);
    let mut ports = BTreeSet::new();
    for pod in pods {
        ports.extend(pod.ports.iter().map(numbers));
        ports.extend(backends(cluster, pod.address()));
    }
    Listeners::Some(ports)
}

/// Where Services expect somebody at this address.
fn backends(cluster: &Cluster, address: IpAddr) -> impl Iterator<Item = (u8, u16)> {
    let ports = cluster.services.iter().flat_map(|service| &service.ports);
    ports.flat_map(move |port| {
        let here = port.backends.iter().filter(move |backend| backend.address == address);
        here.map(|backend| (port.protocol.number(), backend.port))
    })
}

fn numbers(port: &ContainerPort) -> (u8, u16) {
    (port.protocol.number(), port.port)
}

/// The gateway of the nodes' network: the first usable address of it.
fn gateway_of(subnet: &IpNet) -> Result<Ipv4Addr, Error> {
    let first = subnet.hosts().next().unwrap_or_else(|| subnet.addr());
    v4("the gateway of the nodes' network".to_owned(), first)
}

/// An address of the family that the emulated network speaks.
pub(crate) fn v4(who: String, address: IpAddr) -> Result<Ipv4Addr, Error> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(Error::WrongFamily { who, address }),
    }
}
