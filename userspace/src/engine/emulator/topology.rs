//! Who is in the cluster and how they are connected: from a [`Cluster`] to hosts, interfaces and the fabric.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::tables::IfIndex;
use dataplane::wire::{Address, Mac, V4, V6};
use ipnet::IpNet;

use super::host::{CLIENT_PORTS, Host, Listeners, NODE_PORTS, mac_of};
use super::message::Ether;
use crate::health;
use crate::model::{Cluster, ContainerPort, Pod};
use crate::plan::{Homes, Links};

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
        /// The hardware address of the gateway of each family, IPv4's first, once it was asked for.
        gateways: [Option<Ether>; 2],
    },
    /// It is the stack of a node, counted from 0.
    Node(usize),
    /// Outside, at the fabric's gateway; counted from 0.
    World(usize),
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
        if cluster.settings.services.socket_translation {
            let pods = links.pods.iter().map(|(pod, interface)| (pod.clone(), netns_of(*interface)));
            links.homes = Some(Homes { node: NODE_NETNS, pods: pods.collect() });
        }
        links
    }
}

/// The cookie of a node's own network namespace.
pub const NODE_NETNS: u64 = 1;

/// The cookie of the network namespace of the pod behind an interface: no other of its node has it.
pub fn netns_of(interface: IfIndex) -> u64 {
    NODE_NETNS + u64::from(interface.0)
}

/// The hosts of a cluster, and whom a node's stack hands packets to: the path, or the fabric.
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
    /// Hosts outside, in the cluster's order.
    pub world: Vec<usize>,
    /// The hardware address of the fabric's gateway.
    pub gateway: Ether,
    seed: u32,
    /// Ranges that a node's stack routes into the path.
    inside: Vec<IpNet>,
    /// Pods' addresses, wherever they are from.
    pod_addresses: BTreeSet<IpAddr>,
    /// Addresses of Services, in no range of the cluster.
    service_addresses: BTreeSet<IpAddr>,
    /// Nodes' addresses.
    node_addresses: BTreeSet<IpAddr>,
}

impl Topology {
    /// Lays out a cluster. `links` are each node's, in the order of the cluster's nodes.
    pub fn of(cluster: &Cluster, links: &[Links], seed: u32) -> Self {
        let settings = &cluster.settings;
        let itself = [IpAddr::from(V4::ITSELF.0), V6::ITSELF.0.into()].map(IpNet::from);
        let mut topology = Self {
            gateway: settings
                .node_subnets
                .first()
                .map(|subnet| mac_of(gateway_of(subnet)))
                .unwrap_or_default(),
            seed,
            inside: settings.pod_cidrs.iter().chain(&settings.service_cidrs).copied().chain(itself).collect(),
            service_addresses: cluster.ways_in().into_keys().collect(),
            ..Self::default()
        };
        let nodes: BTreeMap<&str, usize> =
            cluster.nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index)).collect();
        for pod in cluster.pods.iter().filter(|pod| !pod.host_network) {
            let node = nodes[pod.node.as_str()];
            let interface = links[node].pods[&pod.id()];
            let host = Host::new(pod.id(), pod.addresses.clone(), pod_listeners(cluster, pod));
            let place = topology.seat(host, Seat::Pod { node, interface, gateways: [None; 2] });
            topology.pods.insert((node, interface), place);
            topology.pod_addresses.extend(&pod.addresses);
        }
        for (index, node) in cluster.nodes.iter().enumerate() {
            let name = format!("node:{}", node.name);
            let mut host = Host::new(name, node.addresses.clone(), node_listeners(cluster, &node.name));
            host.other_mac = Some(Mac::GATEWAY.0);
            host.pages = health::pages(cluster, node).collect();
            let place = topology.seat(host, Seat::Node(index));
            topology.stacks.push(place);
            topology.node_addresses.extend(&node.addresses);
        }
        for pod in cluster.pods.iter().filter(|pod| pod.host_network) {
            topology.by_name.insert(pod.id(), topology.stacks[nodes[pod.node.as_str()]]);
        }
        for (index, external) in cluster.externals.iter().enumerate() {
            let name = format!("ext:{}", external.name);
            let listeners = match external.ports.as_slice() {
                [] => Listeners::All,
                ports => Listeners::Some(ports.iter().map(numbers).collect()),
            };
            let host = Host::new(name, vec![external.address], listeners);
            let place = topology.seat(host, Seat::World(index));
            topology.world.push(place);
        }
        topology
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
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.pod_addresses.contains(&address)
            || self.service_addresses.contains(&address)
            || self.inside.iter().any(|range| range.contains(&address))
    }

    /// The hardware address to which a host on the nodes' network sends packets for `address`.
    pub fn neighbour(&self, address: IpAddr) -> Ether {
        if self.node_addresses.contains(&address) { mac_of(address) } else { self.gateway }
    }
}

/// A pod listens where it says it does and where Services send to; one that says nothing, everywhere.
fn pod_listeners(cluster: &Cluster, pod: &Pod) -> Listeners {
    if pod.ports.is_empty() {
        return Listeners::All;
    }
    let mut ports: BTreeSet<_> = pod.ports.iter().map(numbers).collect();
    ports.extend(backends(cluster, &pod.addresses));
    Listeners::Some(ports)
}

/// A node's stack listens for the pods that live in it.
fn node_listeners(cluster: &Cluster, node: &str) -> Listeners {
    let pods = cluster.pods.iter().filter(|pod| pod.host_network && pod.node == node);
    let mut ports = BTreeSet::new();
    for pod in pods {
        ports.extend(pod.ports.iter().map(numbers));
        ports.extend(backends(cluster, &pod.addresses));
    }
    Listeners::Some(ports)
}

/// Where Services expect somebody at these addresses.
fn backends<'a>(cluster: &'a Cluster, addresses: &'a [IpAddr]) -> impl Iterator<Item = (u8, u16)> + 'a {
    let ports = cluster.services.iter().flat_map(|service| &service.ports);
    ports.flat_map(move |port| {
        let here = port.backends.iter().filter(move |backend| addresses.contains(&backend.address));
        here.map(|backend| (port.protocol.number(), backend.port))
    })
}

fn numbers(port: &ContainerPort) -> (u8, u16) {
    (port.protocol.number(), port.port)
}

/// The gateway of the nodes' network: the first usable address of it.
fn gateway_of(subnet: &IpNet) -> IpAddr {
    subnet.hosts().next().unwrap_or_else(|| subnet.addr())
}
