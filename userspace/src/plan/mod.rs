//! Pure: what each table of a node must hold, from the cluster alone. No clock, no kernel, no runtime.
//!
//! What all nodes share is found once ([`Plan::of`]); a node's rows are that, seen from the node
//! ([`Plan::node`]). A plan that follows another ([`Plan::after`]) changes as little as possible, and
//! [`diff`] says how to get there while packets pass.
//!
//! Each family is planned for itself (`family`): nothing in its tables is about the other.
//!
//! `policy` reads policies, `selector` finds the pods they name; `identity` and `ruleset` with `settle` make
//! rows of both, `fit` sees that there is room for them. `candidate` finds who may answer for a Service, `service` with `maglev` makes rows of it; `route`
//! does everything that has an address.

mod bits;
mod candidate;
mod diff;
mod error;
mod family;
mod fit;
mod hash;
mod held;
mod identity;
mod maglev;
mod memory;
mod numbers;
mod policy;
mod port;
mod prefix;
mod relabel;
mod room;
mod route;
pub mod rows;
mod ruleset;
mod selector;
mod service;
mod settle;
mod transition;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::tables::{self, IfIndex, Node};
use dataplane::wire::{Address, Mac, Port, V4, V6};
use ipnet::IpNet;

pub use bits::Bits;
pub use diff::{Change, Legs, NodeChange, Use, diff, peak};
pub use error::Error;
pub use memory::forgotten;
pub use prefix::Family;
pub use rows::*;
pub use transition::LEGS;

use crate::model::{
    Acceleration, Cluster, Encapsulation, Established, Forward, Labels, Model, Service, Settings,
};
use family::FamilyPlan;
use policy::Policy;

/// The interfaces of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// To the underlay.
    pub uplink: IfIndex,
    /// The host side of each local pod's link, by `namespace/name`.
    pub pods: BTreeMap<String, IfIndex>,
    /// The network namespaces whose sockets are translated; none where the cluster does not ask for that.
    pub homes: Option<Homes>,
}

/// The network namespaces of a node, by their cookies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Homes {
    /// The node's own.
    pub node: u64,
    /// Those of its pods, by `namespace/name`.
    pub pods: BTreeMap<String, u64>,
}

/// What all nodes of a cluster share.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What holds for every node, without what is its own.
    constants: Node,
    /// Of each node, its name and its address on the underlay.
    nodes: Vec<(String, IpAddr)>,
    v4: FamilyPlan<V4>,
    v6: FamilyPlan<V6>,
}

impl Plan {
    /// Plans a cluster. The same cluster gives the same plan.
    ///
    /// # Errors
    /// [`Error::Policy`], or [`Error::TableFull`] for what all nodes share.
    pub fn of(cluster: &Cluster) -> Result<Self, Error> {
        Self::following(cluster, None, None)
    }

    /// Plans a cluster whose packets a node's path passes already by rows of an earlier plan that nobody has any
    /// more: what these rows number of Services keeps its number, since flows of before speak of it.
    /// [`Rows::frontends`], [`Rows::maglev`] and [`Rows::backends`] are looked at.
    ///
    /// # Errors
    /// As [`Plan::of`].
    pub fn resuming(cluster: &Cluster, held: &NodeRows) -> Result<Self, Error> {
        Self::following(cluster, None, Some(held))
    }

    /// Plans a cluster that has changed: what is as before keeps its numbers and places, and nothing new
    /// takes one just given up.
    ///
    /// # Errors
    /// As [`Plan::of`].
    pub fn after(&self, cluster: &Cluster) -> Result<Self, Error> {
        Self::following(cluster, Some(self), None)
    }

    /// Tables may not be brought all the way to this plan: whatever comes after it leaves alone what they may still have
    /// of the plans before it.
    pub fn stray(&mut self) {
        self.v4.stray();
        self.v6.stray();
    }

    fn following(cluster: &Cluster, previous: Option<&Self>, held: Option<&NodeRows>) -> Result<Self, Error> {
        let policies: Arc<[_]> = Policy::all(cluster)?.into();
        let (v4, v6) = (previous.map(|previous| &previous.v4), previous.map(|previous| &previous.v6));
        Ok(Self {
            constants: constants(cluster),
            nodes: cluster.nodes.iter().map(|node| (node.name.clone(), node.address())).collect(),
            v4: FamilyPlan::following(cluster, policies.clone(), v4, held.map(|held| &held.v4))?,
            v6: FamilyPlan::following(cluster, policies, v6, held.map(|held| &held.v6))?,
        })
    }

    /// Plans one Service (`namespace/name`) as it is now, or its end, and says what that changes on a node,
    /// in the order to change it in: what [`Plan::after`] and [`diff`] come to where all else is as before,
    /// in a time that does not grow with the cluster.
    ///
    /// # Errors
    /// [`Error::UnknownNode`], or [`Error::TableFull`]; the plan is as it was then.
    pub fn change(
        &mut self,
        node: &str,
        id: &str,
        service: Option<&Service>,
    ) -> Result<Vec<NodeChange>, Error> {
        let place = self.place(node)?;
        let v4 = self.v4.prepare(id, service)?;
        let v6 = match self.v6.prepare(id, service) {
            Ok(v6) => v6,
            Err(error) => {
                self.v4.undo(&v4);
                return Err(error);
            }
        };
        let v4 = self.v4.commit(v4, place).into_iter().map(NodeChange::V4);
        Ok(v4.chain(self.v6.commit(v6, place).into_iter().map(NodeChange::V6)).collect())
    }

    /// The labels of a pod (`namespace/name`) are others now: says what that changes for policies on a node, in legs.
    /// That is what [`Plan::after`] and [`diff`] come to where all else is as before, in a time that hardly grows with
    /// the cluster. Services lead to other pods by [`Plan::change`]. Nothing changes for a pod without an address of
    /// its own.
    ///
    /// Who changes more than one pod begins with [`Plan::after`]: flows between two that are relabelled one after the
    /// other would be judged, in between, as nobody asked for.
    ///
    /// # Errors
    /// [`Error::UnknownNode`], [`Error::NoInterface`]; the plan is as it was then.
    pub fn relabel(
        &mut self,
        (node, links): (&str, &Links),
        pod: &str,
        labels: &Labels,
    ) -> Result<Legs, Error> {
        let place = self.place(node)?;
        self.v4.linked((place, links))?;
        self.v6.linked((place, links))?;
        let v4 = self.v4.relabel((place, links), pod, labels)?;
        let v6 = self.v6.relabel((place, links), pod, labels)?;
        Ok(diff::both(v4, v6))
    }

    /// A sentence for each family in which the policy table of the node has no room for the rules of all its
    /// pods.
    ///
    /// # Errors
    /// [`Error::UnknownNode`].
    pub fn notes(&self, node: &str) -> Result<Vec<String>, Error> {
        let place = self.place(node)?;
        Ok(self.v4.note(place).into_iter().chain(self.v6.note(place)).collect())
    }

    fn place(&self, name: &str) -> Result<usize, Error> {
        self.nodes.iter().position(|(node, _)| node == name).ok_or_else(|| {
            let known: Vec<_> = self.nodes.iter().map(|(node, _)| node.as_str()).collect();
            Error::UnknownNode { node: name.to_owned(), known: known.join(", ") }
        })
    }

    /// What the node of this name must hold.
    ///
    /// # Errors
    /// [`Error::UnknownNode`], [`Error::NoInterface`], [`Error::TableFull`].
    pub fn node(&self, name: &str, links: &Links) -> Result<NodePlan, Error> {
        let place = self.place(name)?;
        let (v4, v6) = (self.v4.node(place, links)?, self.v6.node(place, links)?);
        let underlay = self.nodes[place].1;
        let node = Node {
            underlay: tunnel_end(underlay),
            uplink: links.uplink,
            mac: mac_of(underlay),
            ..self.constants
        };
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != place);
        let nodes = others.map(|(other, (_, address))| (tunnel_end(*address), route::id(other))).collect();
        Ok(NodePlan {
            node,
            addresses: (v4.address, v6.address),
            rows: NodeRows { nodes, v4: v4.rows, v6: v6.rows },
            rules: self.rules(),
        })
    }

    /// The names of all rules.
    pub fn rules(&self) -> Rules {
        Rules { v4: self.v4.sets.names.clone(), v6: self.v6.sets.names.clone() }
    }

    /// The policies that have a say about a pod (`namespace/name`) in a direction,
    /// [`tables::Endpoint::INGRESS`] or [`tables::Endpoint::EGRESS`], by name. NetworkPolicies that isolate it
    /// are named alone: where none of their rules allows a flow, they are why it is refused. Policies of the
    /// whole cluster refuse by a rule, which the row names.
    pub fn isolating(&self, pod: &str, direction: u8) -> Vec<&str> {
        let policies = self.v4.isolating(pod, direction);
        if policies.is_empty() { self.v6.isolating(pod, direction) } else { policies }
    }
}

/// What holds for every node of the cluster.
fn constants(cluster: &Cluster) -> Node {
    let Settings { model, encapsulation, timeouts, masquerade_ports: (first, last), .. } = cluster.settings;
    Node {
        mtu: cluster.settings.mtu,
        seed: hash::mixed(cluster.name.as_bytes()) as u32,
        timeouts: tables::Timeouts {
            tcp_opening_s: timeouts.tcp_opening_s,
            tcp_s: timeouts.tcp_s,
            tcp_closed_s: timeouts.tcp_closed_s,
            udp_s: timeouts.udp_s,
            icmp_s: timeouts.icmp_s,
            quarantine_s: timeouts.quarantine_s,
            fragment_s: timeouts.fragment_s,
        },
        tunnel_port: Port::new(cluster.settings.tunnel_port),
        masquerade_first: first,
        masquerade_count: (last - first).saturating_add(1),
        node_port_first: cluster.settings.services.node_ports.0,
        node_port_count: (cluster.settings.services.node_ports.1 - cluster.settings.services.node_ports.0)
            .saturating_add(1),
        encapsulation: match (model, encapsulation) {
            (Model::Overlay, Encapsulation::Vxlan) => Node::VXLAN,
            (Model::Overlay, Encapsulation::Geneve) => Node::GENEVE,
            (Model::Flat | Model::FlatDynamic | Model::Kubenet, _) => Node::PLAIN,
        },
        sockets: u8::from(cluster.settings.services.socket_translation),
        accelerated: u8::from(cluster.settings.services.acceleration == Acceleration::Native),
        balanced: u8::from(cluster.settings.load_balancer.forward == Forward::IpInIp),
        established: match cluster.settings.policies.established {
            Established::Keep => Node::KEEP,
            Established::Cut => Node::CUT,
        },
        absent: absent(cluster),
        ..Node::default()
    }
}

/// [`Node::absent`]: the families that neither a range of the cluster is of, nor a node, a pod or a Service.
fn absent(cluster: &Cluster) -> u8 {
    let Settings { node_subnets, pod_cidrs, service_cidrs, .. } = &cluster.settings;
    let ranges = cluster.nodes.iter().flat_map(|node| &node.pod_cidrs);
    let ranges = ranges.chain(node_subnets).chain(pod_cidrs).chain(service_cidrs).map(IpNet::addr);
    let own = cluster.nodes.iter().flat_map(|node| &node.addresses).copied();
    let pods = cluster.pods.iter().flat_map(|pod| &pod.addresses).copied();
    let services = cluster.services.iter().flat_map(|service| {
        [&service.addresses, &service.external_addresses, &service.load_balancer_addresses]
    });
    let all = ranges.chain(own).chain(pods).chain(services.flatten().copied());
    all.fold(Node::NO_V4 | Node::NO_V6, |absent, address| {
        absent & !(if address.is_ipv4() { Node::NO_V4 } else { Node::NO_V6 })
    })
}

/// A node's end of the tunnel, as tables name it.
fn tunnel_end(address: IpAddr) -> V6 {
    match address {
        IpAddr::V4(address) => V4(address.octets()).to_v6(),
        IpAddr::V6(address) => V6(address.octets()),
    }
}

/// The hardware address of the interface that is called after this address.
fn mac_of(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(address) => Mac::of(V4(address.octets())),
        IpAddr::V6(address) => Mac::of(V6(address.octets())),
    }
}

/// What one node of a cluster must hold. Who asks for several nodes, or for the next plan, keeps a [`Plan`].
///
/// # Errors
/// As [`Plan::of`] and [`Plan::node`].
pub fn plan(cluster: &Cluster, node: &str, links: &Links) -> Result<NodePlan, Error> {
    Plan::of(cluster)?.node(node, links)
}
