//! A cluster, as one node has to know it: rules, and where every address is.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use userspace::model::{Cluster, Encapsulation, Forward, Model, Node, Settings};

use super::frame::{Address, Fast, HEADERS, Mac};
use super::walk::Interface;
use super::{Family, Ruleset, policies, ruleset, services};
use crate::topology::{TUNNEL, UPLINK, host_side};

/// Why a cluster cannot be written as rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It asks for something that rules cannot do.
    #[error("cannot write rules for {what}: {why}; choose `ebpf` or `emulator`")]
    Setting {
        /// The field, and what it says.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The cluster has no such node.
    #[error("cannot write rules for node {node}: the cluster has none of that name")]
    Node {
        /// As it was asked for.
        node: String,
    },
    /// They cannot be walked.
    #[error(transparent)]
    Rules(#[from] ruleset::Error),
}

/// Checks that a cluster asks for nothing that rules cannot do.
///
/// # Errors
/// [`Error::Setting`].
pub fn check(cluster: &Cluster) -> Result<(), Error> {
    let settings = &cluster.settings;
    if settings.services.direct_return {
        let why = "a rule sends an answer back by the node that translated its request";
        return Err(Error::Setting { what: "direct server return", why });
    }
    if forwards_in_ip(cluster) {
        let why = "`chains` takes nothing out of IP in IP";
        return Err(Error::Setting { what: "a load balancer that forwards in IP in IP", why });
    }
    Ok(())
}

/// Whether a load balancer sends packets in packets, which rules cannot take out: one that has no address sends none.
pub(crate) fn forwards_in_ip(cluster: &Cluster) -> bool {
    let has_frontends = cluster.services.iter().any(|service| !service.load_balancer_addresses.is_empty());
    cluster.settings.load_balancer.forward == Forward::IpInIp && has_frontends
}

impl Ruleset {
    /// The rules of one node for one family, as the kernel of the node would want them: its links are called as in
    /// the testbed (the uplink [`UPLINK`], the tunnel [`TUNNEL`], a pod's link by [`host_side`]), and its own packets
    /// have no link to come from. They masquerade as the address that the kernel finds for the link by which a packet
    /// leaves: whatever link has one is to have the node's.
    ///
    /// # Errors
    /// [`Error::Node`]: the cluster has no such node. [`Error::Setting`].
    pub fn plan(cluster: &Cluster, node: &str, family: Family) -> Result<Self, Error> {
        check(cluster)?;
        let node = find(cluster, node)?;
        let mut rules = Self::new(family);
        policies::write_first(&mut rules, cluster, node);
        services::write(&mut rules, cluster, node);
        policies::write(&mut rules, cluster, node);
        Ok(rules)
    }
}

fn find<'a>(cluster: &'a Cluster, node: &str) -> Result<&'a Node, Error> {
    cluster.node(node).ok_or_else(|| Error::Node { node: node.to_owned() })
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// A pod of this node, by its place.
    Pod(usize),
    /// Another node, through the tunnel, by its place.
    Node(usize),
    /// The node itself.
    Host,
    /// By the fabric.
    Outside,
    /// Nowhere: an address of the cluster that nobody has.
    Nowhere,
}

/// What carries packets between nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tunnel {
    /// Its UDP port.
    pub(super) port: u16,
    /// Geneve; else VXLAN.
    pub(super) geneve: bool,
}

/// A neighbour: its first address, which it is called by, and its hardware address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbour {
    pub(super) address: IpAddr,
    pub(super) mac: Mac,
}

/// Where everybody is, as a node sees it.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    /// The node's own addresses; the first is the tunnel's end.
    pub(super) own: Vec<Address>,
    pub(super) mac: Mac,
    /// Its gateway's.
    pub(super) gateway: Mac,
    pub(super) tunnel: Option<Tunnel>,
    /// The longest packet for a pod, and for the uplink, in bytes.
    pub(super) mtu: [usize; 2],
    /// The other nodes, in the cluster's order.
    pub(super) nodes: Vec<Neighbour>,
    /// The node's pods with links of their own, in the cluster's order.
    pub(super) pods: Vec<Neighbour>,
    /// What rules call the links: the uplink, the tunnel, those of the pods.
    pub(super) interfaces: Vec<String>,
    hops: HashMap<Address, Hop, Fast>,
    /// Ranges whose addresses have a hop of their own, or nobody.
    inside: Vec<IpNet>,
}

/// The uplink, as rules number it.
pub(super) const OUT: usize = 0;
/// The tunnel.
pub(super) const BETWEEN: usize = 1;
/// The first pod.
const FIRST_POD: usize = 2;

impl Ground {
    /// Where everybody is for the node of that name.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub(super) fn new(cluster: &Cluster, node: &str) -> Result<Self, Error> {
        let (own, settings) = (find(cluster, node)?, &cluster.settings);
        let named = |address: IpAddr| Neighbour { address, mac: mac(address) };
        let others: Vec<&Node> = cluster.nodes.iter().filter(|other| other.name != node).collect();
        let pods: Vec<_> = cluster.pods_on(node).filter(|pod| !pod.host_network).collect();
        let names = [UPLINK.to_owned(), TUNNEL.to_owned()].into_iter();
        let subnet = settings.node_subnets.first();
        let gateway = subnet.and_then(|subnet| subnet.hosts().next());
        let tunnel = (settings.model == Model::Overlay).then_some(Tunnel {
            port: settings.tunnel_port,
            geneve: settings.encapsulation == Encapsulation::Geneve,
        });
        let mut inside = settings.service_cidrs.clone();
        if matches!(settings.model, Model::Overlay | Model::Kubenet) {
            inside.extend(&settings.pod_cidrs);
        }
        Ok(Self {
            own: own.addresses.iter().copied().map(Address::from).collect(),
            mac: mac(own.address()),
            gateway: gateway.map(mac).unwrap_or_default(),
            tunnel,
            mtu: [settings.mtu as usize - overhead(settings, own.address()), settings.mtu as usize],
            nodes: others.iter().map(|other| named(other.address())).collect(),
            pods: pods.iter().map(|pod| named(pod.address())).collect(),
            interfaces: names.chain(pods.iter().map(|pod| host_side(pod))).collect(),
            hops: hops(cluster, own, &others),
            inside,
        })
    }

    /// Where packets to this address go.
    pub(super) fn hop(&self, target: Address) -> Hop {
        match self.hops.get(&target) {
            Some(hop) => *hop,
            None if self.inside.iter().any(|range| range.contains(&IpAddr::from(target))) => Hop::Nowhere,
            None => Hop::Outside,
        }
    }

    /// The link that a hop leaves by, as rules number it.
    pub(super) fn interface(hop: Hop) -> Interface {
        match hop {
            Hop::Pod(place) => Interface::at(FIRST_POD + place),
            Hop::Node(_) => Interface::at(BETWEEN),
            Hop::Outside | Hop::Nowhere => Interface::at(OUT),
            Hop::Host => Interface::NONE,
        }
    }

    /// The pod's place whose first address this is.
    pub(super) fn pod(&self, address: IpAddr) -> Option<usize> {
        match self.hops.get(&address.into()) {
            Some(Hop::Pod(place)) if self.pods[*place].address == address => Some(*place),
            _ => None,
        }
    }

    /// The node's address of the same family.
    pub(super) fn own_like(&self, other: Address) -> Option<Address> {
        self.own.iter().copied().find(|own| own.is_v4() == other.is_v4())
    }

    /// Whether the packet's target is the node itself.
    pub(super) fn is_own(&self, target: Address) -> bool {
        self.own.contains(&target)
    }

    /// Whether somebody at the tunnel's other end is a node.
    pub(super) fn is_node(&self, source: Address) -> bool {
        self.nodes.iter().any(|node| Address::from(node.address) == source)
    }
}

/// What encapsulation takes of a packet's length: outer IP, UDP and tunnel headers, and the inner Ethernet header.
fn overhead(settings: &Settings, outer: IpAddr) -> usize {
    match settings.model {
        Model::Overlay => (HEADERS[usize::from(outer.is_ipv6())] + 8 + 8 + 14).min(settings.mtu as usize),
        Model::Flat | Model::FlatDynamic | Model::Kubenet => 0,
    }
}

fn hops(cluster: &Cluster, own: &Node, others: &[&Node]) -> HashMap<Address, Hop, Fast> {
    let tunnelled = cluster.settings.model == Model::Overlay;
    let between = |place: usize| if tunnelled { Hop::Node(place) } else { Hop::Outside };
    let places: HashMap<&str, usize> =
        others.iter().enumerate().map(|(place, node)| (node.name.as_str(), place)).collect();
    let mut hops = HashMap::default();
    let mut here = 0;
    for pod in cluster.pods.iter().filter(|pod| !pod.host_network) {
        let hop = match places.get(pod.node.as_str()) {
            Some(place) => between(*place),
            None => {
                here += 1;
                Hop::Pod(here - 1)
            }
        };
        hops.extend(pod.addresses.iter().map(|address| (Address::from(*address), hop)));
    }
    for (place, node) in others.iter().enumerate() {
        hops.extend(node.addresses.iter().map(|address| (Address::from(*address), between(place))));
    }
    hops.extend(own.addresses.iter().map(|address| (Address::from(*address), Hop::Host)));
    hops
}

/// The hardware address that goes with an IP address everywhere in the testbed.
pub(super) fn mac(address: IpAddr) -> Mac {
    let bits = match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address.to_bits() as u32,
    };
    let [a, b, c, d] = bits.to_be_bytes();
    [0x0a, 0x58, a, b, c, d]
}
