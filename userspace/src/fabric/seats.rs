//! Who is connected to the fabric: which port, which addresses, which hardware address.
//!
//! Hardware addresses follow from IP addresses ([`Mac::of`]). An interface answers to that of each of its
//! addresses; what the fabric delivers bears that of the first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use dataplane::wire::{Mac, V4};
use ipnet::IpNet;

use super::Port;
use super::packet::Packet;
use crate::model::{Cluster, NextHop};

/// A node, whatever its place: its number stays while it is in the cluster, and is not given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(u32);

/// Everybody who is connected.
#[derive(Clone, Debug, Default)]
pub(super) struct Seats {
    nodes: Vec<Seat>,
    externals: Vec<Seat>,
    ids: BTreeMap<String, NodeId>,
    next: u32,
    by_address: HashMap<IpAddr, Port>,
    /// Pods with addresses of their own, and the places of their nodes.
    pods: HashMap<IpAddr, usize>,
    /// Addresses of Services, and the places of the nodes to which they are brought.
    ways_in: HashMap<IpAddr, usize>,
    by_mac: HashMap<Mac, usize>,
    gateways: Vec<IpAddr>,
    appliances: HashSet<Port>,
    /// What clients dial, where any node may answer from it because the backend's own one does.
    shared: HashSet<IpAddr>,
    mtu: usize,
}

#[derive(Clone, Debug)]
struct Seat {
    name: String,
    mac: Mac,
}

impl Seats {
    /// Those of a cluster; nodes that were there before keep their numbers.
    pub(super) fn of(cluster: &Cluster, before: Option<&Self>) -> Self {
        let gateways = cluster.settings.node_subnets.iter().map(gateway_of).collect();
        let mut seats = Self {
            next: before.map_or(0, |before| before.next),
            gateways,
            mtu: cluster.settings.mtu as usize,
            ..Self::default()
        };
        for (place, node) in cluster.nodes.iter().enumerate() {
            let known = before.and_then(|before| before.ids.get(&node.name));
            let id = known.copied().unwrap_or_else(|| {
                seats.next += 1;
                NodeId(seats.next)
            });
            seats.ids.insert(node.name.clone(), id);
            seats.nodes.push(Seat { name: node.name.clone(), mac: mac_of(node.address()) });
            for address in &node.addresses {
                seats.by_address.insert(*address, Port::Node(place));
                seats.by_mac.insert(mac_of(*address), place);
            }
            let pods = cluster.pods_on(&node.name).filter(|pod| !pod.host_network);
            seats.pods.extend(pods.flat_map(|pod| &pod.addresses).map(|address| (*address, place)));
        }
        for (place, external) in cluster.externals.iter().enumerate() {
            seats.externals.push(Seat { name: external.name.clone(), mac: mac_of(external.address) });
            seats.by_address.insert(external.address, Port::External(place));
        }
        let place = |name: &str| cluster.nodes.iter().position(|node| node.name == name);
        let ways_in = cluster.ways_in();
        seats.ways_in =
            ways_in.iter().filter_map(|(address, node)| Some((*address, place(&node.name)?))).collect();
        for route in &cluster.settings.fabric.routes {
            if let NextHop::VirtualAppliance(address) = route.next_hop {
                seats.appliances.extend(seats.by_address.get(&address));
            }
        }
        if cluster.settings.services.direct_return {
            let nodes = cluster.nodes.iter().flat_map(|node| &node.addresses);
            seats.shared = nodes.chain(ways_in.keys()).copied().collect();
        }
        seats
    }

    /// The port of this name: `node:…` or `ext:…`.
    pub(super) fn by_name(&self, link: &str) -> Option<Port> {
        let place = |seats: &[Seat], name: &str| seats.iter().position(|seat| seat.name == name);
        match link.split_once(':')? {
            ("node", name) => place(&self.nodes, name).map(Port::Node),
            ("ext", name) => place(&self.externals, name).map(Port::External),
            _ => None,
        }
    }

    /// The port that the host behind `port` has among other seats; none if it is gone.
    pub(super) fn moved(&self, port: Port, after: &Self) -> Option<Port> {
        match port {
            Port::Node(place) => after.by_name(&format!("node:{}", self.nodes.get(place)?.name)),
            Port::External(place) => after.by_name(&format!("ext:{}", self.externals.get(place)?.name)),
        }
    }

    /// The number of the node at a place.
    pub(super) fn id(&self, place: usize) -> Option<NodeId> {
        self.ids.get(&self.nodes.get(place)?.name).copied()
    }

    /// Whether the node with this number is still there.
    pub(super) fn has(&self, id: NodeId) -> bool {
        self.ids.values().any(|known| *known == id)
    }

    /// The nodes in order of their places: name and number.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&str, NodeId)> {
        self.nodes.iter().filter_map(|seat| Some((seat.name.as_str(), *self.ids.get(&seat.name)?)))
    }

    /// The node or host outside that has the address itself.
    pub(super) fn host(&self, address: IpAddr) -> Option<Port> {
        self.by_address.get(&address).copied()
    }

    /// Where packets to the address leave: to whoever has it, to the node of the pod that has it, or to the node
    /// to which a Service's are brought.
    pub(super) fn owner(&self, address: IpAddr) -> Option<Port> {
        let place = || self.pods.get(&address).or_else(|| self.ways_in.get(&address));
        self.host(address).or_else(|| place().map(|place| Port::Node(*place)))
    }

    /// The node whose interface has the hardware address.
    pub(super) fn neighbour(&self, mac: Mac) -> Option<Port> {
        self.by_mac.get(&mac).map(|place| Port::Node(*place))
    }

    /// The name of the node at a place.
    pub(super) fn node_name(&self, place: usize) -> Option<&str> {
        self.nodes.get(place).map(|seat| seat.name.as_str())
    }

    /// Whether it is the gateway's hardware address.
    pub(super) fn is_gateway(&self, mac: Mac) -> bool {
        self.gateways.iter().any(|gateway| mac_of(*gateway) == mac)
    }

    /// The gateway of the address's family, or of any if there is none.
    pub(super) fn gateway_like(&self, address: IpAddr) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    }

    /// Whether the address is a gateway's.
    pub(super) fn is_gateway_address(&self, address: IpAddr) -> bool {
        self.gateways.contains(&address)
    }

    /// The hardware address of the interface behind a port; the gateway's for a port of nobody.
    pub(super) fn mac(&self, port: Port) -> Mac {
        let seat = match port {
            Port::Node(place) => self.nodes.get(place),
            Port::External(place) => self.externals.get(place),
        };
        seat.map_or_else(|| self.gateway_mac(), |seat| seat.mac)
    }

    /// The gateway's hardware address.
    pub(super) fn gateway_mac(&self) -> Mac {
        self.gateways.first().map_or_else(Mac::default, |gateway| mac_of(*gateway))
    }

    /// Whether the host behind the port may send from this address.
    pub(super) fn may_send_from(&self, port: Port, source: IpAddr) -> bool {
        self.appliances.contains(&port)
            || self.host(source) == Some(port)
            || matches!(port, Port::Node(place)
                if self.pods.get(&source) == Some(&place)
                    || self.ways_in.get(&source) == Some(&place)
                    || self.shared.contains(&source))
    }

    /// See [`super::Fabric::world_port`].
    pub(super) fn world_port(&self, frame: &[u8]) -> Option<Port> {
        let source = Packet::read(frame).ok()?.source;
        let own = self.host(source).filter(|port| matches!(port, Port::External(_)));
        let appliance = || self.appliances.iter().find(|port| matches!(port, Port::External(_)));
        own.or_else(|| appliance().copied())
    }

    /// The longest IP packet, in bytes.
    pub(super) fn mtu(&self) -> usize {
        self.mtu
    }
}

/// The gateway's hardware address in a cluster.
pub(super) fn gateway_mac_of(cluster: &Cluster) -> Mac {
    cluster.settings.node_subnets.first().map_or_else(Mac::default, |subnet| mac_of(gateway_of(subnet)))
}

/// The gateway of a subnet: its first usable address.
fn gateway_of(subnet: &IpNet) -> IpAddr {
    subnet.hosts().next().unwrap_or_else(|| subnet.addr())
}

/// The hardware address of an interface with this address.
pub(super) fn mac_of(address: IpAddr) -> Mac {
    let [.., a, b, c, d] = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    Mac::of(V4([a, b, c, d]))
}
