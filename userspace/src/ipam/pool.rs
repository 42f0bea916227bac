//! Addresses that a node holds for pods before they start: all at once in `flat`, by the batch in
//! `flat-dynamic`.

use std::collections::VecDeque;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{BATCH, Error, FIRST_IN_SUBNET, Ipam, LOW_WATER, few, nth, offset_in, size, usable};

/// What a node of `flat` has reserved for its pods.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    free: VecDeque<IpAddr>,
    reserved: u32,
}

impl Pool {
    /// An address for a pod of this node.
    ///
    /// # Errors
    /// All are in use.
    pub fn take(&mut self, pod: &str, node: &str) -> Result<IpAddr, Error> {
        let reserved = self.reserved;
        self.free.pop_front().ok_or_else(|| Error::ReservationUsed {
            pod: pod.into(),
            node: node.into(),
            reserved,
        })
    }
}

/// A node of `flat` that joins.
#[derive(Clone, Copy, Debug)]
pub struct Join<'a> {
    /// Its name.
    pub node: &'a str,
    /// The address that it has already, in use.
    pub address: Option<IpAddr>,
    /// Pods of it that have an address of the subnet already, in use.
    pub running: u32,
    /// Pods that it may run.
    pub max_pods: u32,
}

impl Ipam {
    /// The address of a node of `flat`, and what it reserves for its pods.
    ///
    /// # Errors
    /// Fewer are left than it reserves.
    pub fn join(&mut self, subnet: IpNet, join: Join<'_>) -> Result<(IpAddr, Pool), Error> {
        let address = match join.address {
            Some(address) => address,
            None => {
                let address = self.first_free(subnet, FIRST_IN_SUBNET, 1);
                address.ok_or_else(|| self.too_large(subnet, join))?
            }
        };
        let missing = join.max_pods.saturating_sub(join.running);
        let Some(free) = self.free_after(subnet, address, missing) else {
            if join.address.is_none() {
                self.taken.remove(&address);
            }
            return Err(self.too_large(subnet, join));
        };
        Ok((address, Pool { free, reserved: join.max_pods.max(join.running) }))
    }

    fn too_large(&self, subnet: IpNet, join: Join<'_>) -> Error {
        let each = join.max_pods + 1;
        Error::ReservationTooLarge {
            node: join.node.into(),
            subnet,
            usable: few(usable(subnet)),
            reserved: few(self.in_use(subnet)),
            each,
            fit: few(usable(subnet) / u128::from(each)),
        }
    }

    /// So many free addresses, beginning after this one and going on at the start of the subnet, so that a
    /// node's are side by side where they can be; takes them, or none if there are fewer.
    fn free_after(&mut self, subnet: IpNet, address: IpAddr, count: u32) -> Option<VecDeque<IpAddr>> {
        let end = size(subnet).saturating_sub(1);
        let own = offset_in(subnet, address).unwrap_or(FIRST_IN_SUBNET).max(FIRST_IN_SUBNET);
        let places = (own..end).chain(FIRST_IN_SUBNET..own.min(end));
        let free = places.filter_map(|place| nth(subnet, place)).filter(|one| !self.taken.contains(one));
        let found: VecDeque<IpAddr> = free.take(count as usize).collect();
        if found.len() < count as usize {
            return None;
        }
        self.taken.extend(&found);
        Some(found)
    }

    /// The batches that nodes of `flat-dynamic` hold at first. `running` says for each node how many pods of
    /// it have an address of the subnet already, in use.
    pub fn batches(&mut self, subnet: IpNet, running: &[u32], max_pods: u32) -> Batches {
        let left = usable(subnet).saturating_sub(self.in_use(subnet));
        let draws = Draws::new(left, running, max_pods);
        let mut batches = Batches { subnet, free: vec![VecDeque::new(); running.len()], draws };
        for node in 0..running.len() {
            self.fill(&mut batches, node);
        }
        batches
    }

    /// An address for a pod that starts on a node; the node asks for another batch when few are left.
    ///
    /// # Errors
    /// The node has none left, and cannot have another batch.
    pub fn start(&mut self, batches: &mut Batches, place: (usize, &str), pod: &str) -> Result<IpAddr, Error> {
        let (node, name) = place;
        if !batches.draws.start(node) {
            let Draws { left, ref nodes, max_pods } = batches.draws;
            if nodes[node].held >= max_pods {
                return Err(Error::BatchesUsed { pod: pod.into(), node: name.into(), max_pods });
            }
            return Err(Error::PodSubnetUsed {
                pod: pod.into(),
                node: name.into(),
                subnet: batches.subnet,
                usable: few(usable(batches.subnet)),
                left: few(left),
                running: few(batches.draws.running()),
                elsewhere: few(batches.draws.spare()),
            });
        }
        let address = batches.free[node].pop_front().expect("the node had a free address to give");
        self.fill(batches, node);
        Ok(address)
    }

    /// Finds the addresses of the batches that a node has drawn.
    fn fill(&mut self, batches: &mut Batches, node: usize) {
        let Drawn { held, used } = batches.draws.nodes[node];
        while batches.free[node].len() < (held - used) as usize {
            let address = self.first_free(batches.subnet, FIRST_IN_SUBNET, 1);
            batches.free[node].push_back(address.expect("drawn batches were left in the subnet"));
        }
    }
}

/// The batches of one pod subnet, and whose they are.
#[derive(Clone, Debug)]
pub struct Batches {
    subnet: IpNet,
    free: Vec<VecDeque<IpAddr>>,
    draws: Draws,
}

/// How many addresses a node of `flat-dynamic` has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Drawn {
    held: u32,
    used: u32,
}

/// How nodes draw on a pod subnet, counted: what `flat-dynamic` comes down to.
///
/// 1. A node takes whole batches of [`BATCH`], and only those.
/// 2. It asks for one whenever it has fewer than [`LOW_WATER`] free, the first time when it joins; not if
///    what it has is enough for all pods that it may run.
/// 3. A node has never more batches than its pods ask for: what is too much has been given back.
///
/// Source: Azure CNI, "dynamic IP allocation", IP address planning; azure-container-networking, IPAM pool
/// monitor (batch 16, request below half a batch, at most the node's maximum of pods).
#[derive(Clone, Debug)]
pub struct Draws {
    /// Addresses that are in nobody's batch.
    left: u128,
    nodes: Vec<Drawn>,
    max_pods: u32,
}

impl Draws {
    /// Nodes that run so many pods each, on what is left of a subnet beside those pods' addresses.
    pub fn new(left: u128, running: &[u32], max_pods: u32) -> Self {
        let nodes = running.iter().map(|used| Drawn { held: *used, used: *used }).collect();
        let mut draws = Self { left, nodes, max_pods };
        // Batches that are in use, and a node's first, come before those that are wished for.
        for (node, used) in running.iter().enumerate() {
            draws.draw(node, (*used).max(1).next_multiple_of(BATCH) - used);
        }
        for node in 0..running.len() {
            draws.ask(node);
        }
        draws
    }

    /// A pod starts on a node; false if there is no address for it.
    pub fn start(&mut self, node: usize) -> bool {
        let drawn = &mut self.nodes[node];
        if drawn.used == drawn.held {
            return false;
        }
        drawn.used += 1;
        self.ask(node);
        true
    }

    /// Pods that have an address.
    pub fn running(&self) -> u128 {
        self.nodes.iter().map(|drawn| u128::from(drawn.used)).sum()
    }

    /// Addresses in nobody's batch.
    pub fn left(&self) -> u128 {
        self.left
    }

    /// Addresses that nodes have and don't need now.
    pub fn spare(&self) -> u128 {
        self.nodes.iter().map(|drawn| u128::from(drawn.held - drawn.used)).sum()
    }

    // 2.
    fn ask(&mut self, node: usize) {
        let Drawn { held, used } = self.nodes[node];
        if held - used < LOW_WATER && held < self.max_pods {
            self.draw(node, BATCH);
        }
    }

    // 1.
    fn draw(&mut self, node: usize, count: u32) {
        if let Some(left) = self.left.checked_sub(count.into()) {
            self.left = left;
            self.nodes[node].held += count;
        }
    }
}
