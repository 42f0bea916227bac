//! Where every address is: the routes of each node.
//!
//! The same map for the whole cluster, seen from one node. The longest prefix wins:
//! 1. Everything is the world, reached with the node's address; what must not be masqueraded (where pods
//!    have addresses of the virtual network, all of that), with the pod's own. A node without an address
//!    of the family has none to lend: the world is nobody's then.
//! 2. The ranges of pods and Services belong to the cluster, and to nobody in it. What no router passes on
//!    is nobody's either.
//! 3. A node's range is on that node. On the node itself its pods are found before routes are asked, so
//!    what is left of its range is nobody's.
//! 4. A node's address is the node.
//! 5. A pod outside its node's range, and a host outside the cluster inside one of its ranges, have a row
//!    of their own.
//! 6. Where the load balancer probes nodes of IPv6 from is outside, though it is link-local.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use dataplane::tables::{NodeId, Route};
use dataplane::wire::{Mac, V6};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::prefix::Longest;
use super::{Family, Prefix, mac_of, tunnel_end};
use crate::model::{Cluster, Model, PROBES_V6};

/// Where an address is, seen from nowhere in particular. Nodes are counted along the cluster's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is this node's own.
    Node(usize),
    /// With a pod on this node, if with anybody.
    On(usize),
    /// Outside; masqueraded on the way.
    World,
    /// Outside; not masqueraded.
    Native,
    /// In the cluster, at nobody's.
    Nobody,
}

/// The map of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Map<A> {
    places: Longest<A, Place>,
    /// Of each node, its end of the tunnel and its hardware address.
    nodes: Vec<(V6, Mac)>,
    /// The way out: the first address of the nodes' first subnet.
    gateway: Mac,
    /// Packets to other nodes are encapsulated.
    overlay: bool,
}

impl<A: Family> Map<A> {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let settings = &cluster.settings;
        let virtual_network = match settings.model {
            Model::Flat | Model::FlatDynamic => settings.vnet_cidrs.as_slice(),
            Model::Overlay | Model::Kubenet => &[],
        };
        let native = settings.non_masquerade_cidrs.iter().chain(virtual_network);
        let native: Vec<_> = native.filter_map(|range| Prefix::of(*range)).collect();
        let outside = |prefix: &Prefix<A>| {
            if native.iter().any(|range| range.covers(prefix)) { Place::Native } else { Place::World }
        };
        let nobody =
            settings.pod_cidrs.iter().chain(&settings.service_cidrs).copied().chain(never_forwarded());
        let nobody = nobody.filter_map(Prefix::of).map(|range| (range, Place::Nobody));
        let ranges = cluster.nodes.iter().enumerate();
        let ranges = ranges.flat_map(|(node, it)| {
            it.pod_cidrs.iter().filter_map(move |range| Some((Prefix::of(*range)?, Place::On(node))))
        });
        let inside: Vec<_> = nobody.chain(ranges).collect();
        let mut places = Longest::new();
        // 1.
        let subnets = settings.node_subnets.iter().filter_map(|range| Prefix::of(*range));
        for prefix in native.iter().copied().chain([Prefix::all()]).chain(subnets) {
            if !inside.iter().any(|(range, _)| range.covers(&prefix)) {
                places.put(prefix, outside(&prefix));
            }
        }
        // 2. and 3.
        for (prefix, place) in inside {
            places.put(prefix, place);
        }
        // 4.
        for (node, it) in cluster.nodes.iter().enumerate() {
            if let Some(address) = A::among(&it.addresses) {
                places.put(Prefix::host(address), Place::Node(node));
            }
        }
        // 5.
        let nodes: BTreeMap<_, _> =
            cluster.nodes.iter().zip(0..).map(|(node, it)| (&node.name, it)).collect();
        for pod in cluster.pods.iter().filter(|pod| !pod.host_network) {
            let (Some(address), Some(node)) = (A::among(&pod.addresses), nodes.get(&pod.node)) else {
                continue;
            };
            if places.find(address) != Some(&Place::On(*node)) {
                places.put(Prefix::host(address), Place::On(*node));
            }
        }
        for address in cluster.externals.iter().filter_map(|external| A::of(external.address)) {
            let host = Prefix::host(address);
            if places.find(address) != Some(&outside(&host)) {
                places.put(host, outside(&host));
            }
        }
        // 6.
        let of_v6 = cluster.nodes.iter().any(|node| node.address().is_ipv6());
        if let Some(prober) = A::of(PROBES_V6).filter(|_| of_v6) {
            places.put(Prefix::host(prober), Place::World);
        }
        let gateway = settings.node_subnets.first().and_then(|subnet| subnet.hosts().next());
        let nodes = cluster.nodes.iter().map(|node| (tunnel_end(node.address()), mac_of(node.address())));
        Self {
            places,
            nodes: nodes.collect(),
            gateway: gateway.map(mac_of).unwrap_or_default(),
            overlay: settings.model == Model::Overlay,
        }
    }

    /// The routes of a node; `lends` says whether it has an address of the family.
    pub(super) fn rows(&self, own: usize, lends: bool) -> BTreeMap<Prefix<A>, Route> {
        let plain = |kind, mac| Route { node: V6::default(), id: NodeId(0), mac, kind, own: 0 };
        let nobody = plain(Route::BLACKHOLE, Mac::default());
        let other = |node: usize, mac: Mac| {
            if self.overlay {
                let (end, mac) = self.nodes[node];
                Route { node: end, id: id(node), ..plain(Route::REMOTE, mac) }
            } else {
                Route { id: id(node), ..plain(Route::ROUTED, mac) }
            }
        };
        let row = |(prefix, place): (&Prefix<A>, &Place)| {
            let route = match *place {
                Place::Node(node) if node == own => Route { own: 1, ..plain(Route::HOST, Mac::default()) },
                Place::On(node) if node == own => nobody,
                Place::Node(node) => Route { own: 1, ..other(node, self.nodes[node].1) },
                Place::On(node) => other(node, self.gateway),
                Place::World if lends => plain(Route::WORLD, self.gateway),
                Place::Native => plain(Route::NATIVE, self.gateway),
                Place::World | Place::Nobody => nobody,
            };
            (*prefix, route)
        };
        self.places.rows().iter().map(row).collect()
    }
}

/// What no router passes on: link-local addresses (RFC 3927 section 2.7, RFC 4291 section 2.5.6), groups,
/// and everybody.
fn never_forwarded() -> impl Iterator<Item = IpNet> {
    let v4 = |a, b, bits| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), bits));
    let v6 = |first, bits| IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), bits));
    let everybody = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32));
    [v4(169, 254, 16), v4(224, 0, 4), everybody, v6(0xfe80, 10), v6(0xff00, 8)].into_iter()
}

/// The number of a node by its place in the cluster.
pub(super) fn id(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}
