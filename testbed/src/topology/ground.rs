//! What the settings of a cluster mean for its links: lengths, gateways, and the ways that the fabric knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use dataplane::wire::{Address, Mac, V4, V6, ip, tunnel};
use ipnet::IpNet;
use userspace::fabric::{frontends, probe_address};
use userspace::model::{Cluster, Forward, Model, Node, Pod, Settings};

use super::Error;

/// The shortest MTU that an IPv4 link may have (RFC 791).
const SHORTEST_MTU_V4: u32 = 68;
/// The shortest MTU that an IPv6 link may have (RFC 8200 section 5).
const SHORTEST_MTU_V6: u32 = 1280;

/// Routes that a user-defined route table of the cloud takes; in `kubenet` each node needs one.
/// Source: Azure subscription limits, "Routes per route table".
pub(super) const MOST_ROUTES: usize = 400;

/// What encapsulation takes from a packet's length, in bytes: outer IP, UDP and tunnel headers and the inner
/// Ethernet header. Nothing where packets pass between nodes as they are.
pub fn overhead(settings: &Settings) -> u32 {
    let outer = match settings.node_subnets.first() {
        Some(IpNet::V6(_)) => ip::v6::LENGTH,
        _ => ip::LENGTH,
    };
    match settings.model {
        Model::Overlay => tunnel::overhead(outer) as u32,
        Model::Flat | Model::FlatDynamic | Model::Kubenet => 0,
    }
}

/// The MTU of pods' links, in bytes: what encapsulation leaves of the underlay's.
///
/// # Errors
/// [`Error::Mtu`]: too little for a family that the cluster has.
pub fn pod_mtu(cluster: &Cluster) -> Result<u32, Error> {
    let settings = &cluster.settings;
    let v6 = [&settings.node_subnets, &settings.pod_cidrs].into_iter().flatten().any(|range| is_v6(*range));
    let shortest = if v6 { SHORTEST_MTU_V6 } else { SHORTEST_MTU_V4 };
    let (mtu, overhead) = (settings.mtu, overhead(settings));
    let left = mtu.checked_sub(overhead).filter(|left| *left >= shortest);
    left.ok_or(Error::Mtu { mtu, overhead, shortest })
}

/// The longest packet that a socket may hand down uncut, so that it is still an IP packet when wrapped, with what its
/// client dialled beside it if the tunnel has to say so.
pub fn gso_max_size(settings: &Settings) -> u32 {
    let dialled =
        if settings.services.direct_return { tunnel::option::frontend_length::<V6>() as u32 } else { 0 };
    u32::from(u16::MAX) - overhead(settings) - dialled
}

/// The fabric's own address in each subnet of the nodes: the first after the network's.
pub(super) fn gateways(settings: &Settings) -> impl Iterator<Item = (IpAddr, IpNet)> {
    settings.node_subnets.iter().map(|subnet| {
        let address = match subnet {
            IpNet::V4(range) => range.hosts().next().unwrap_or(range.addr()).into(),
            IpNet::V6(range) => Ipv6Addr::from_bits(range.network().to_bits() | 1).into(),
        };
        (address, *subnet)
    })
}

/// The fabric's hardware address, as every node's plan has it: after the first address of the first subnet.
pub(super) fn gateway_mac(settings: &Settings) -> Mac {
    let first = settings.node_subnets.first().and_then(|subnet| subnet.hosts().next());
    first.map(mac).unwrap_or_default()
}

/// The hardware address that goes with an IP address.
pub fn mac(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(address) => Mac::of(V4(address.octets())),
        IpAddr::V6(address) => Mac::of(V6(address.octets())),
    }
}

/// Addresses of the node with the prefix that says who is on its link.
pub(super) fn on_subnets(settings: &Settings, node: &Node) -> Vec<(IpAddr, u8)> {
    let prefix = |address: &IpAddr| {
        let subnet = settings.node_subnets.iter().find(|subnet| subnet.contains(address));
        subnet.map_or(IpNet::from(*address).prefix_len(), |subnet| subnet.prefix_len())
    };
    node.addresses.iter().map(|address| (*address, prefix(address))).collect()
}

/// The rows of the fabric's route table that a node brings along: in `kubenet` one for the range of its pods,
/// by way of the node.
pub(super) fn ways_to_node(settings: &Settings, node: &Node) -> Vec<(IpNet, IpAddr)> {
    if settings.model != Model::Kubenet {
        return Vec::new();
    }
    let way = |range: &IpNet| Some((*range, node.address_like(range.addr())?));
    node.pod_cidrs.iter().filter_map(way).collect()
}

/// The rows that a pod on this node brings along: one for each address, by way of the node, that the node's
/// own do not lead to.
pub(super) fn ways_to_pod(settings: &Settings, node: &Node, pod: &Pod) -> Vec<(IpNet, IpAddr)> {
    let led = |address: &IpAddr| {
        settings.model == Model::Kubenet && node.pod_cidrs.iter().any(|range| range.contains(address))
    };
    let addresses = pod.addresses.iter().filter(|address| !led(address));
    addresses.filter_map(|address| Some((IpNet::from(*address), node.address_like(*address)?))).collect()
}

/// Where the fabric brings what is for an address of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WayIn {
    /// The neighbour: a node, or the load balancer.
    pub(super) next: IpAddr,
    /// The longest packet that may go there, if that is less than an MTU.
    pub(super) mtu: Option<u32>,
}

/// The ways to Services from outside, by their external and load balancer addresses.
pub(super) fn ways_to_services(cluster: &Cluster) -> BTreeMap<IpAddr, WayIn> {
    let frontends = frontends(cluster);
    let ways = cluster.ways_in().into_iter().filter_map(|(address, node)| {
        let to_balancer =
            WayIn { next: probe_address(address), mtu: balanced_mtu(&cluster.settings, address) };
        let way = if frontends.contains(&address) {
            to_balancer
        } else {
            WayIn { next: node.address_like(address)?, mtu: None }
        };
        Some((address, way))
    });
    ways.collect()
}

/// The ports of a node's own addresses that lead elsewhere, with their protocol as in the IP header: node ports, in the
/// families of their Services, and its pods' host ports.
pub(super) fn own_ports(cluster: &Cluster, node: &Node) -> BTreeSet<(IpAddr, u8, u16)> {
    let of_services = cluster.services.iter().flat_map(|service| {
        let ports = service.ports.iter().filter_map(|port| Some((port.protocol.number(), port.node_port?)));
        ports.flat_map(|(protocol, port)| {
            let is_its = |own: &&IpAddr| service.addresses.iter().any(|it| it.is_ipv4() == own.is_ipv4());
            node.addresses.iter().filter(is_its).map(move |own| (*own, protocol, port))
        })
    });
    let of_pods = cluster.pods_on(&node.name).filter(|pod| !pod.host_network).flat_map(|pod| {
        pod.host_ports.iter().flat_map(|port| {
            let is_its = |own: &&IpAddr| port.address.is_none_or(|only| only == **own);
            node.addresses.iter().filter(is_its).map(|own| (*own, port.protocol.number(), port.port))
        })
    });
    of_services.chain(of_pods).collect()
}

/// The longest packet that the load balancer takes for a frontend, where it puts it into another one.
fn balanced_mtu(settings: &Settings, frontend: IpAddr) -> Option<u32> {
    let header = if frontend.is_ipv4() { V4::HEADER } else { V6::HEADER };
    (settings.load_balancer.forward == Forward::IpInIp).then(|| settings.mtu.saturating_sub(header as u32))
}

/// Checks that the cloud's route table would take what the cluster's nodes need.
///
/// # Errors
/// [`Error::RouteTable`].
pub(super) fn check_routes(cluster: &Cluster) -> Result<(), Error> {
    let routes = |v6: bool| {
        let all = cluster.nodes.iter().flat_map(|node| ways_to_node(&cluster.settings, node));
        all.filter(|(range, _)| is_v6(*range) == v6).count()
    };
    match routes(false).max(routes(true)) {
        routes if routes > MOST_ROUTES => Err(Error::RouteTable { routes }),
        _ => Ok(()),
    }
}

/// Where a node's own packets go to pods and Services: the ranges of both.
pub(super) fn ranges(settings: &Settings) -> impl Iterator<Item = &IpNet> {
    settings.pod_cidrs.iter().chain(&settings.service_cidrs)
}

fn is_v6(range: IpNet) -> bool {
    matches!(range, IpNet::V6(_))
}
