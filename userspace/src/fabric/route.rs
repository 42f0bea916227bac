//! Where packets go.
//!
//! The longest prefix wins; of two that are as long, the user's. What the fabric knows by itself:
//!
//! | prefix | leads to |
//! | --- | --- |
//! | each range of the virtual network, and each node subnet | the node that has the address, or whose pod has it |
//! | in `kubenet`, each node's pod range: a row of the route table | the node |
//! | an external or load balancer address of a Service | the node to which it is brought: [`Cluster::ways_in`] |
//! | a pod's address, if it is in none of these | the pod's node: more than a cloud does, so that a host outside can dial any pod |
//! | everything else | the world: the host outside that has the address |
//!
//! A route table takes 400 routes, the user's among them (Microsoft Learn, "Azure subscription and service
//! limits": user-defined routes per route table).

use std::net::IpAddr;

use ipnet::IpNet;

use super::seats::Seats;
use super::{Error, Loss, Note, Port};
use crate::model::{Cluster, Model, NextHop, UserRoute};

/// Routes that a route table takes.
const LIMIT: usize = 400;

/// The route table, and what the fabric knows by itself.
#[derive(Debug)]
pub(super) struct Routes {
    /// Longest prefix first.
    user: Vec<UserRoute>,
    /// The virtual network.
    inside: Vec<IpNet>,
    /// Pod ranges, and the places of their nodes.
    pods: Vec<(IpNet, usize)>,
}

/// Where a user's route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) port: Port,
    /// Which route it is.
    pub(super) note: Note,
    /// It leads to an appliance, which is not the destination.
    pub(super) passes_through: bool,
}

impl Routes {
    pub(super) fn of(cluster: &Cluster) -> Result<Self, Error> {
        let settings = &cluster.settings;
        let mut user = settings.fabric.routes.clone();
        let mut pods = Vec::new();
        if settings.model == Model::Kubenet {
            for (place, node) in cluster.nodes.iter().enumerate() {
                pods.extend(node.pod_cidrs.iter().map(|range| (*range, place)));
            }
        }
        let users = user.iter().map(|route| format!("{}: {}", route.name, route.prefix));
        let ranges = pods.iter().map(|(range, place): &(IpNet, usize)| {
            format!("{range} by way of node {}", cluster.nodes[*place].name)
        });
        if let Some(route) = users.chain(ranges).nth(LIMIT) {
            return Err(Error::Routes { number: LIMIT + 1, route, limit: LIMIT });
        }
        user.sort_by_key(|route| std::cmp::Reverse(route.prefix.prefix_len()));
        let inside = settings.vnet_cidrs.iter().chain(&settings.node_subnets).copied().collect();
        Ok(Self { user, inside, pods })
    }

    /// Where a user's route leads what came in by a port; none if there is none for it.
    pub(super) fn user_way(&self, from: Port, target: IpAddr, seats: &Seats) -> Option<Result<Way, Loss>> {
        let Port::Node(_) = from else { return None };
        let route = self.user_route(from, target, seats)?;
        let appliance = match route.next_hop {
            NextHop::VirtualAppliance(address) => Some(address),
            _ => None,
        };
        let port = match route.next_hop {
            NextHop::VirtualAppliance(address) => seats.host(address).ok_or(Loss::NoAppliance),
            NextHop::VirtualNetwork => self.system_port(target, seats),
            NextHop::Internet => {
                seats.host(target).filter(|port| matches!(port, Port::External(_))).ok_or(Loss::NoRoute)
            }
            NextHop::None => Err(Loss::RouteNone),
        };
        let note = Note::Route { name: route.name.clone(), appliance };
        let passes_through = appliance.is_some_and(|address| address != target);
        Some(port.map(|port| Way { port, note, passes_through }))
    }

    /// Where the fabric itself leads.
    ///
    /// # Errors
    /// [`Loss::NoRoute`].
    pub(super) fn system_port(&self, target: IpAddr, seats: &Seats) -> Result<Port, Loss> {
        let by_range = || self.pods.iter().find(|(range, _)| range.contains(&target));
        let port = seats.owner(target).or_else(|| by_range().map(|(_, place)| Port::Node(*place)));
        port.ok_or(Loss::NoRoute)
    }

    /// The user's route for the target, unless the fabric has a longer one. Nobody is sent to himself.
    fn user_route(&self, from: Port, target: IpAddr, seats: &Seats) -> Option<&UserRoute> {
        let leads_back = |route: &UserRoute| match route.next_hop {
            NextHop::VirtualAppliance(address) => seats.host(address) == Some(from),
            _ => false,
        };
        let mut matching = self.user.iter().filter(|route| route.prefix.contains(&target));
        let route = matching.find(|route| !leads_back(route))?;
        (route.prefix.prefix_len() >= self.system_prefix_len(target, seats)).then_some(route)
    }

    /// The length of the fabric's own longest prefix that holds the target.
    fn system_prefix_len(&self, target: IpAddr, seats: &Seats) -> u8 {
        let ranges = self.inside.iter().chain(self.pods.iter().map(|(range, _)| range));
        let longest = ranges.filter(|range| range.contains(&target)).map(IpNet::prefix_len).max();
        longest.unwrap_or_else(|| match seats.owner(target) {
            Some(Port::Node(_)) => IpNet::from(target).prefix_len(),
            _ => 0,
        })
    }
}
