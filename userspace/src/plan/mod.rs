//! Pure: what each table of a node must hold, from the cluster alone. No clock, no kernel, no runtime.
//!
//! What all nodes share is found once ([`Plan::of`]); a node's rows are that, seen from the node
//! ([`Plan::node`]). A plan that follows another ([`Plan::after`]) changes as little as possible, and
//! [`diff`] says how to get there while packets pass.
//!
//! `policy` reads NetworkPolicies, `selector` finds the pods they name; `identity` and `ruleset` make rows
//! of both. `service` with `maglev` does Services, `route` everything that has an address.

mod bits;
mod diff;
mod error;
mod hash;
mod identity;
mod maglev;
mod numbers;
mod policy;
mod port;
mod prefix;
mod route;
pub mod rows;
mod ruleset;
mod selector;
mod service;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane::tables::{Endpoint, IfIndex, Node, RuleSet};
use dataplane::wire::{Mac, Port, V4};

pub use diff::{Change, Use, diff, peak};
pub use error::Error;
pub use prefix::Family;
pub use rows::*;

use crate::model::Cluster;
use identity::Identities;
use policy::Policy;
use route::Map;
use ruleset::RuleSets;
use selector::Pods;
use service::Services;

/// The network identifier of the overlay: one tenant, one network.
pub const VNI: u32 = 1;
/// The UDP port of the overlay. Source: the default of the Linux vxlan driver and of Cilium; IANA's is 4789.
pub const TUNNEL_PORT: u16 = 8472;
/// The first source port that may stand for a pod. Source: Linux, `ip_local_port_range`.
pub const MASQUERADE_FIRST: u16 = 32_768;
/// The last one. Source: as above.
pub const MASQUERADE_LAST: u16 = 60_999;

/// The interfaces of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// To the underlay.
    pub uplink: IfIndex,
    /// The host side of each local pod's link, by `namespace/name`.
    pub pods: BTreeMap<String, IfIndex>,
}

/// A pod on its node.
#[derive(Clone, Debug)]
struct Local<A> {
    /// `namespace/name`.
    id: String,
    address: A,
    rules: RuleSet,
    isolated: u8,
    /// The names of the policies that select it are those at these places.
    policies: bits::Bits,
}

/// What all nodes of a cluster share.
#[derive(Clone, Debug)]
pub struct Plan<A: Family = V4> {
    mtu: u32,
    seed: u32,
    /// Of each node, its name and its address.
    nodes: Vec<(String, IpAddr)>,
    /// Of each node, its address if it is of this family.
    addresses: Vec<Option<A>>,
    /// Of each node, its pods that have an address of their own.
    pods: Vec<Vec<Local<A>>>,
    /// Of each policy, its name and where it isolates.
    policies: Vec<(String, u8)>,
    identities: Identities<A>,
    sets: RuleSets,
    services: Services<A>,
    map: Map<A>,
}

impl<A: Family> Plan<A> {
    /// Plans a cluster. The same cluster gives the same plan.
    ///
    /// # Errors
    /// [`Error::Policy`], or [`Error::TableFull`] for what all nodes share.
    pub fn of(cluster: &Cluster) -> Result<Self, Error> {
        Self::following(cluster, None)
    }

    /// Plans a cluster that has changed: what is as before keeps its numbers and places, and nothing new
    /// takes one just given up.
    ///
    /// # Errors
    /// As [`Plan::of`].
    pub fn after(&self, cluster: &Cluster) -> Result<Self, Error> {
        Self::following(cluster, Some(self))
    }

    fn following(cluster: &Cluster, previous: Option<&Self>) -> Result<Self, Error> {
        let policies = cluster.policies.iter().map(Policy::read).collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<_> = cluster.nodes.iter().map(|node| A::among(&node.addresses)).collect();
        let known: Vec<_> = addresses.iter().copied().flatten().collect();
        let found = Pods::of(cluster);
        let sets = RuleSets::of(&policies, &found, previous.map(|previous| &previous.sets));
        let places: BTreeMap<_, _> =
            cluster.nodes.iter().zip(0..).map(|(node, place)| (&node.name, place)).collect();
        let mut pods = vec![Vec::new(); cluster.nodes.len()];
        for ((pod, address), selected) in found.list.iter().zip(&sets.selected) {
            let Some(place) = places.get(&pod.node) else { continue };
            let local: &mut Vec<_> = &mut pods[*place];
            let policies = selected.policies.clone();
            local.push(Local {
                id: pod.id(),
                address: *address,
                rules: selected.rules,
                isolated: selected.isolated,
                policies,
            });
        }
        Ok(Self {
            mtu: cluster.settings.mtu,
            seed: hash::mixed(cluster.name.as_bytes()) as u32,
            nodes: cluster.nodes.iter().map(|node| (node.name.clone(), node.address())).collect(),
            addresses,
            pods,
            identities: Identities::of(
                &policies,
                &found,
                &known,
                previous.map(|previous| &previous.identities),
            ),
            policies: policies.into_iter().map(|policy| (policy.name, policy.isolates)).collect(),
            sets,
            services: Services::of(cluster, previous.map(|previous| &previous.services))?,
            map: Map::of(cluster),
        })
    }

    /// What the node of this name must hold.
    ///
    /// # Errors
    /// [`Error::UnknownNode`], [`Error::OtherFamily`], [`Error::NoInterface`], [`Error::TableFull`].
    pub fn node(&self, name: &str, links: &Links) -> Result<NodePlan<A>, Error> {
        let place = self.nodes.iter().position(|(node, _)| node == name).ok_or_else(|| {
            let known: Vec<_> = self.nodes.iter().map(|(node, _)| node.as_str()).collect();
            Error::UnknownNode { node: name.to_owned(), known: known.join(", ") }
        })?;
        let (node, address) = &self.nodes[place];
        let address = A::of(*address).ok_or_else(|| Error::OtherFamily {
            node: node.clone(),
            address: *address,
            family: A::NAME,
        })?;
        let rows = self.rows(place, address, links)?;
        for used in peak(&Rows::default(), &rows) {
            if used.rows > used.capacity as usize {
                return Err(Error::table_full(&format!("node {node}"), used.table, used.rows, used.capacity));
            }
        }
        let node = Node {
            address,
            uplink: links.uplink,
            mtu: self.mtu,
            vni: VNI,
            seed: self.seed,
            mac: Mac::of(address),
            tunnel_port: Port::new(TUNNEL_PORT),
            masquerade_first: MASQUERADE_FIRST,
            masquerade_count: MASQUERADE_LAST - MASQUERADE_FIRST + 1,
        };
        Ok(NodePlan { node, rows, rules: self.sets.names.clone() })
    }

    fn rows(&self, place: usize, address: A, links: &Links) -> Result<Rows<A>, Error> {
        let mut endpoints = BTreeMap::new();
        let mut policy = BTreeMap::new();
        let mut written = bits::Bits::default();
        let own = self.identities.of_node(address);
        for pod in &self.pods[place] {
            let interface = links.pods.get(&pod.id).copied().ok_or_else(|| Error::NoInterface {
                node: self.nodes[place].0.clone(),
                pod: pod.id.clone(),
            })?;
            let (rules, isolated) = (pod.rules, pod.isolated);
            endpoints.insert(
                pod.address,
                Endpoint { interface, rules, mac: Mac::of(pod.address), isolated, pad: 0 },
            );
            if !written.contains(rules.0 as usize) {
                written.insert(rules.0 as usize);
                self.sets.write(rules, &self.identities, own, &mut policy);
            }
        }
        let others = self.addresses.iter().enumerate().filter(|(node, _)| *node != place);
        Ok(Rows {
            endpoints,
            frontends: self.services.frontends.clone(),
            maglev: self.services.maglev.clone(),
            backends: self.services.backends.clone(),
            identities: self.identities.rows(address),
            policy,
            routes: self.map.rows(place, &self.addresses),
            nodes: others.filter_map(|(node, address)| Some(((*address)?, route::id(node)))).collect(),
        })
    }

    /// The policies that isolate a pod (`namespace/name`) in a direction, [`Endpoint::INGRESS`] or
    /// [`Endpoint::EGRESS`], by name: where none of their rules allows a flow, they are why it is refused.
    pub fn isolating(&self, pod: &str, direction: u8) -> Vec<&str> {
        let pod = self.pods.iter().flatten().find(|local| local.id == pod);
        let selecting =
            pod.into_iter().flat_map(|pod| pod.policies.iter()).map(|place| &self.policies[place]);
        let isolating = selecting.filter(|(_, isolates)| isolates & direction != 0);
        isolating.map(|(name, _)| name.as_str()).collect()
    }
}

/// What one node of a cluster must hold. Who asks for several nodes, or for the next plan, keeps a [`Plan`].
///
/// # Errors
/// As [`Plan::of`] and [`Plan::node`].
pub fn plan(cluster: &Cluster, node: &str, links: &Links) -> Result<NodePlan<V4>, Error> {
    Plan::of(cluster)?.node(node, links)
}
