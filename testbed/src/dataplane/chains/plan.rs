//! A cluster, as one node has to know it: rules, and where every address is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use userspace::model::{Cluster, Encapsulation, Model};

use super::frame::{Mac, VXLAN_OVERHEAD};
use super::rules::Table;
use super::{Family, Ruleset, kube, policies, policy, rules, services};

/// Why a cluster cannot be written as rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Rules are written for IPv4.
    #[error("cannot write rules for {whose}: {address} is not IPv4; `chains` knows IPv4 only")]
    Family {
        /// Whose address it is.
        whose: String,
        /// The address or range.
        address: String,
    },
    /// Rules are written for one way between nodes.
    #[error(
        "cannot write rules for {what}: `chains` knows the overlay model with VXLAN only; choose `ebpf` or `emulator`"
    )]
    Model {
        /// The field, and what it says.
        what: String,
    },
    /// The cluster has no such node.
    #[error("cannot write rules for node {node}: the cluster has none of that name")]
    Node {
        /// As it was asked for.
        node: String,
    },
    /// Rules that never end.
    #[error(transparent)]
    Rules(#[from] rules::Error),
}

/// Checks that a cluster is one that rules can be written for: `overlay`, VXLAN, IPv4.
///
/// # Errors
/// [`Error::Model`], [`Error::Family`].
pub fn check(cluster: &Cluster) -> Result<(), Error> {
    let settings = &cluster.settings;
    match (settings.model, settings.encapsulation) {
        (Model::Overlay, Encapsulation::Vxlan) => {}
        (Model::Overlay, Encapsulation::Geneve) => {
            return Err(Error::Model { what: "encapsulation geneve".to_owned() });
        }
        (Model::Flat, _) => return Err(Error::Model { what: "model flat".to_owned() }),
        (Model::FlatDynamic, _) => return Err(Error::Model { what: "model flat-dynamic".to_owned() }),
        (Model::Kubenet, _) => return Err(Error::Model { what: "model kubenet".to_owned() }),
    }
    let nodes = cluster.nodes.iter().map(|node| (format!("node {}", node.name), &node.addresses));
    let pods = cluster.pods.iter().map(|pod| (format!("pod {}", pod.id()), &pod.addresses));
    let services =
        cluster.services.iter().map(|service| (format!("service {}", service.id()), &service.addresses));
    for (whose, addresses) in nodes.chain(pods).chain(services) {
        addresses.iter().try_for_each(|address| v4(*address, || whose.clone()).map(drop))?;
    }
    Ok(())
}

impl Ruleset {
    /// The rules of one node for one family, as the kernel of the node would want them: its links are called as in
    /// the testbed (the uplink [`UPLINK`](crate::topology::UPLINK), the tunnel [`TUNNEL`](crate::topology::TUNNEL), a
    /// pod's link by [`host_side`](crate::topology::host_side)), and its own packets have no link to come from. They
    /// masquerade as the address that the kernel finds for the link by which a packet leaves: no link but the uplink
    /// and the tunnel is to have one, and that is the node's.
    ///
    /// # Errors
    /// [`Error::Node`]: the cluster has no such node.
    pub fn plan(cluster: &Cluster, node: &str, family: Family) -> Result<Self, Error> {
        let node = cluster.node(node).ok_or_else(|| Error::Node { node: node.to_owned() })?;
        let mut rules = Self::new(family);
        policies::write_first(&mut rules, cluster, node);
        services::write(&mut rules, cluster, node);
        policies::write(&mut rules, cluster, node);
        Ok(rules)
    }
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A pod of this node.
    Pod(Ipv4Addr),
    /// Another node, through the tunnel.
    Node(Ipv4Addr),
    /// The node itself.
    Host,
    /// Outside, by way of the fabric.
    Outside,
    /// Nowhere: an address of the cluster that nobody has.
    Nowhere,
}

/// All that a node's packet path has to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The node's own address.
    pub address: Ipv4Addr,
    /// Its gateway's hardware address.
    pub gateway: Mac,
    /// The longest packet for a pod, in bytes.
    pub mtu: u16,
    /// The other nodes.
    pub nodes: Vec<Ipv4Addr>,
    /// Drops before anything else.
    pub raw: Table,
    /// Lets pass or refuses.
    pub filter: Table,
    /// Translates addresses.
    pub nat: Table,
    hops: HashMap<Ipv4Addr, Hop>,
    /// Ranges whose addresses have a hop of their own, or nobody.
    inside: [Ipv4Net; 2],
}

impl Plan {
    /// What the node of that name has to know.
    ///
    /// # Errors
    /// The cluster has no such node, or something that is not IPv4.
    pub fn new(cluster: &Cluster, node: &str) -> Result<Self, Error> {
        check(cluster)?;
        let settings = &cluster.settings;
        let own = cluster.nodes.iter().find(|own| own.name == node);
        let own = own.ok_or_else(|| Error::Node { node: node.to_owned() })?;
        let address = v4(own.address(), || format!("node {node}"))?;
        let pods = v4_net(settings.pod_cidrs[0], "the pods")?;
        let subnet = v4_net(settings.node_subnets[0], "the nodes")?;
        let (raw, nat) = (policy::raw(cluster, node, pods)?, kube::nat(cluster)?);
        let filter = policy::filter(cluster, node)?;
        for table in [&raw, &nat, &filter] {
            table.check()?;
        }
        let others = cluster.nodes.iter().filter(|other| other.name != node);
        let nodes: Vec<Ipv4Addr> = others
            .map(|other| v4(other.address(), || format!("node {}", other.name)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            address,
            gateway: mac(subnet.hosts().next().unwrap_or(subnet.addr())),
            mtu: settings.mtu.saturating_sub(VXLAN_OVERHEAD).min(u32::from(u16::MAX)) as u16,
            hops: hops(cluster, node, &nodes)?,
            nodes,
            raw,
            filter,
            nat,
            inside: [pods, v4_net(settings.service_cidrs[0], "the services")?],
        })
    }

    /// Where packets to this address go.
    pub fn hop(&self, target: Ipv4Addr) -> Hop {
        if let Some(hop) = self.hops.get(&target) {
            return *hop;
        }
        if target == self.address {
            Hop::Host
        } else if self.inside.iter().any(|range| range.contains(&target)) {
            Hop::Nowhere
        } else {
            Hop::Outside
        }
    }

    /// The addresses of the node's pods.
    pub fn pods(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.hops.values().filter_map(|hop| match hop {
            Hop::Pod(address) => Some(*address),
            _ => None,
        })
    }
}

fn hops(cluster: &Cluster, node: &str, nodes: &[Ipv4Addr]) -> Result<HashMap<Ipv4Addr, Hop>, Error> {
    let mut hops: HashMap<Ipv4Addr, Hop> =
        nodes.iter().map(|address| (*address, Hop::Node(*address))).collect();
    let at: HashMap<&str, IpAddr> =
        cluster.nodes.iter().map(|node| (node.name.as_str(), node.address())).collect();
    for pod in cluster.pods.iter().filter(|pod| !pod.host_network) {
        let address = v4(pod.address(), || format!("pod {}", pod.id()))?;
        let hop = if pod.node == node {
            Hop::Pod(address)
        } else {
            let host = at.get(pod.node.as_str()).ok_or_else(|| Error::Node { node: pod.node.clone() })?;
            Hop::Node(v4(*host, || format!("node {}", pod.node))?)
        };
        hops.insert(address, hop);
    }
    Ok(hops)
}

/// The hardware address that goes with an IP address everywhere in the testbed.
pub(super) fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

pub(super) fn v4(address: IpAddr, whose: impl FnOnce() -> String) -> Result<Ipv4Addr, Error> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(Error::Family { whose: whose(), address: address.to_string() }),
    }
}

pub(super) fn v4_net(range: IpNet, whose: &str) -> Result<Ipv4Net, Error> {
    match range {
        IpNet::V4(range) => Ok(range),
        IpNet::V6(range) => Err(Error::Family { whose: whose.to_owned(), address: range.to_string() }),
    }
}
