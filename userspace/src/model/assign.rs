//! What the input leaves open is chosen: each model gives nodes and pods their addresses in its own way.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::place::{NodeDraft, PodDraft};
use super::settings::{Model, Settings};
use crate::ipam::{Error, IpFamily, Ipam, Join, ROUTES};

/// An address of each family for every node and pod that has been placed and doesn't state its own.
pub(super) fn addresses(
    ipam: &mut Ipam,
    settings: &Settings,
    nodes: &mut [NodeDraft<'_>],
    pods: &mut [PodDraft],
) -> Result<(), Error> {
    let mut places = Places::new(settings, nodes, pods);
    match settings.model {
        Model::Overlay | Model::Kubenet => places.give_out_node_ranges(ipam)?,
        Model::Flat => places.give_out_reservations(ipam)?,
        Model::FlatDynamic => places.give_out_batches(ipam)?,
    }
    places.share_with_host_network();
    Ok(())
}

/// The family's member of a list that has one of each at most.
fn pick(family: IpFamily, addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| IpFamily::of(*address) == family)
}

/// Who is where.
struct Places<'a, 'n> {
    settings: &'a Settings,
    nodes: &'a mut [NodeDraft<'n>],
    pods: &'a mut [PodDraft],
    /// The node of each pod, by its place among the nodes.
    homes: Vec<usize>,
}

impl<'a, 'n> Places<'a, 'n> {
    fn new(settings: &'a Settings, nodes: &'a mut [NodeDraft<'n>], pods: &'a mut [PodDraft]) -> Self {
        let places: HashMap<&str, usize> =
            nodes.iter().enumerate().map(|(place, node)| (node.name.as_str(), place)).collect();
        let home = |pod: &PodDraft| {
            let node = pod.node.as_deref().and_then(|name| places.get(name)).copied();
            node.expect("every pod has been placed on a node that exists")
        };
        let homes = pods.iter().map(home).collect();
        Self { settings, nodes, pods, homes }
    }

    /// Of `overlay` and `kubenet`.
    fn give_out_node_ranges(&mut self, ipam: &mut Ipam) -> Result<(), Error> {
        for range in self.nodes.iter().flat_map(|node| &node.pod_ranges) {
            ipam.reserve_pod_range(*range);
        }
        for place in 0..self.nodes.len() {
            if self.settings.model == Model::Kubenet {
                self.route(place)?;
            }
            self.node_addresses(ipam, place)?;
            let node = &mut self.nodes[place];
            for pod_cidr in self.settings.pod_cidrs.iter().filter(|_| !node.ranges_stated) {
                let family = IpFamily::of_range(*pod_cidr);
                // A route leads to an address of its family; a tunnel carries either.
                let reached =
                    self.settings.model == Model::Overlay || pick(family, &node.addresses).is_some();
                if reached && family.pick(&node.pod_ranges).is_none() {
                    node.pod_ranges.push(ipam.pod_range(*pod_cidr, &node.name)?);
                }
            }
        }
        let lent = self.settings.lent;
        for (pod, home) in self.pods.iter_mut().zip(&self.homes).filter(|(pod, _)| !pod.host_network()) {
            let node = &self.nodes[*home];
            for range in &node.pod_ranges {
                let family = IpFamily::of_range(*range);
                if pod.wants(family, lent) && pick(family, &pod.addresses).is_none() {
                    pod.addresses.push(ipam.pod(*range, &pod.id(), &node.name)?);
                }
            }
        }
        Ok(())
    }

    /// The route table has room for the node's pod ranges.
    fn route(&self, place: usize) -> Result<(), Error> {
        let each = self.settings.pod_cidrs.len().max(1) as u64;
        let own = self.settings.fabric.routes.len() as u64;
        let fit = ROUTES.saturating_sub(own) / each;
        if (place as u64) < fit {
            return Ok(());
        }
        Err(Error::RouteTableFull { node: self.nodes[place].name.clone(), each, own, fit })
    }

    /// An address of the node subnets that the node alone has.
    fn node_addresses(&mut self, ipam: &mut Ipam, place: usize) -> Result<(), Error> {
        let node = &mut self.nodes[place];
        for subnet in &self.settings.node_subnets {
            let family = IpFamily::of_range(*subnet);
            if node.wants(family, self.settings.lent) && pick(family, &node.addresses).is_none() {
                node.addresses.push(ipam.node(*subnet, &node.name)?);
            }
        }
        Ok(())
    }

    /// How many pods of each node have an address of this subnet already.
    fn running(&self, subnet: IpNet) -> Vec<u32> {
        let mut running = vec![0; self.nodes.len()];
        for (pod, home) in self.pods.iter().zip(&self.homes) {
            running[*home] += u32::from(pod.addresses.iter().any(|address| subnet.contains(address)));
        }
        running
    }

    /// Of `flat`.
    fn give_out_reservations(&mut self, ipam: &mut Ipam) -> Result<(), Error> {
        for subnet in &self.settings.node_subnets {
            let family = IpFamily::of_range(*subnet);
            let running = self.running(*subnet);
            let mut pools = BTreeMap::new();
            for (place, node) in self.nodes.iter_mut().enumerate() {
                let address = pick(family, &node.addresses);
                if !node.wants(family, self.settings.lent) && address.is_none() {
                    continue;
                }
                let max_pods = self.settings.max_pods;
                let join = Join { node: &node.name, address, running: running[place], max_pods };
                let (chosen, pool) = ipam.join(*subnet, join)?;
                if address.is_none() {
                    node.addresses.push(chosen);
                }
                pools.insert(place, pool);
            }
            let wanting = |pod: &PodDraft| !pod.host_network() && pod.wants(family, self.settings.lent);
            for (pod, home) in self.pods.iter_mut().zip(&self.homes).filter(|(pod, _)| wanting(pod)) {
                if let (Some(pool), None) = (pools.get_mut(home), pick(family, &pod.addresses)) {
                    pod.addresses.push(pool.take(&pod.id(), &self.nodes[*home].name)?);
                }
            }
        }
        Ok(())
    }

    /// Of `flat-dynamic`.
    fn give_out_batches(&mut self, ipam: &mut Ipam) -> Result<(), Error> {
        for place in 0..self.nodes.len() {
            self.node_addresses(ipam, place)?;
        }
        for subnet in &self.settings.pod_cidrs {
            let family = IpFamily::of_range(*subnet);
            let mut batches = ipam.batches(*subnet, &self.running(*subnet), self.settings.max_pods);
            let wanting = |pod: &PodDraft| !pod.host_network() && pod.wants(family, self.settings.lent);
            for (pod, home) in self.pods.iter_mut().zip(&self.homes).filter(|(pod, _)| wanting(pod)) {
                let node = &self.nodes[*home];
                if pick(family, &node.addresses).is_some() && pick(family, &pod.addresses).is_none() {
                    pod.addresses.push(ipam.start(&mut batches, (*home, &node.name), &pod.id())?);
                }
            }
        }
        Ok(())
    }

    fn share_with_host_network(&mut self) {
        for (pod, home) in self.pods.iter_mut().zip(&self.homes).filter(|(pod, _)| pod.host_network()) {
            pod.addresses.clone_from(&self.nodes[*home].addresses);
        }
    }
}
