//! The load balancer as an element of the emulated fabric.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::tables::Balancer as Constants;
use dataplane::verdict::Fate;
use dataplane::wire::Mac;

use super::balancer::{self, LoadBalancer, loss_of};
use super::seats::Seats;
use super::{BalancerReport, Loss, Port};
use crate::engine::emulator::balancer::Balancer;
use crate::model::Cluster;

/// Why the emulated carrier never fails.
const FITS: &str = "there is room for as many frontends as `check` allows";

/// The load balancer, its packets, and what became of them.
#[derive(Debug)]
pub(super) struct Element {
    pub(super) balancer: LoadBalancer<Balancer>,
    constants: Constants,
    /// Addresses of frontends.
    addresses: BTreeSet<IpAddr>,
    /// Packets for frontends that went to nodes.
    sent: u64,
    /// Those that did not.
    lost: BTreeMap<Loss, u64>,
    /// Answers that were made to come from frontends again.
    returned: u64,
}

impl Element {
    /// That of a cluster that [`balancer::check`] found possible.
    pub(super) fn of(cluster: &Cluster, seats: &Seats) -> Self {
        let constants = constants(cluster, seats);
        let mut element = Self {
            balancer: LoadBalancer::new(Balancer::new(constants), constants),
            constants,
            addresses: BTreeSet::new(),
            sent: 0,
            lost: BTreeMap::new(),
            returned: 0,
        };
        element.apply(cluster, seats, 0);
        element
    }

    /// Goes on with a cluster that has changed.
    pub(super) fn apply(&mut self, cluster: &Cluster, seats: &Seats, now_ns: u64) {
        self.constants = constants(cluster, seats);
        self.balancer.carrier.set_constants(self.constants);
        self.addresses = balancer::frontends(cluster);
        self.balancer.apply(cluster, self.constants, now_ns).expect(FITS);
    }

    /// Brings the tables to who is healthy now.
    pub(super) fn plan(&mut self, cluster: &Cluster, now_ns: u64) {
        self.balancer.plan(cluster, now_ns).expect(FITS);
    }

    /// Forgets pins of flows that are over, and settles slots.
    pub(super) fn sweep(&mut self, now_ns: u64) {
        self.balancer.sweep(now_ns).expect(FITS);
    }

    /// Whether it is a frontend's address.
    pub(super) fn is_frontend(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Whether packets are put into others on their way to a node.
    pub(super) fn wraps(&self) -> bool {
        self.constants.forward == Constants::IP_IN_IP
    }

    /// Whether it changes packets' ends, so that answers must come back through it.
    pub(super) fn translates(&self) -> bool {
        self.constants.forward == Constants::NODE_PORT && !self.addresses.is_empty()
    }

    /// Sends a packet for a frontend to a node: the node's hardware address, and the frame as it goes there.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn send(&mut self, frame: &[u8], now_ns: u64) -> Result<(Mac, Vec<u8>), Loss> {
        let carried = self.balancer.carrier.push(frame, balancer::seconds(now_ns));
        match carried.fate {
            Fate::Sent => {
                let mut mac = Mac::default();
                mac.0.copy_from_slice(&carried.frame[..6]);
                Ok((mac, carried.frame))
            }
            Fate::Other | Fate::Returned => Err(Loss::NoFrontend),
            Fate::Missed(miss) => Err(loss_of(miss)),
        }
    }

    /// Makes a node's answer to a frontend's client come from the frontend, if it is one.
    pub(super) fn restore(&mut self, frame: &[u8], now_ns: u64) -> Option<Vec<u8>> {
        if self.constants.forward != Constants::NODE_PORT {
            return None;
        }
        let carried = self.balancer.carrier.push(frame, balancer::seconds(now_ns));
        let returned = carried.fate == Fate::Returned;
        self.returned += u64::from(returned);
        returned.then_some(carried.frame)
    }

    /// Counts a packet for a frontend by what became of it.
    pub(super) fn count(&mut self, end: &Result<Port, Loss>) {
        match end {
            Ok(_) => self.sent += 1,
            Err(loss) => *self.lost.entry(*loss).or_default() += 1,
        }
    }

    /// What became of packets so far; none without frontends.
    pub(super) fn report(&self) -> Option<BalancerReport> {
        let Self { sent, lost, returned, .. } = self;
        self.balancer.is_used().then(|| BalancerReport {
            arrived: sent + lost.values().sum::<u64>(),
            sent: *sent,
            lost: lost.iter().map(|(loss, count)| (loss.slug().to_owned(), *count)).collect(),
            returned: *returned,
        })
    }
}

/// The gateway does the load balancer's work beside its own.
fn constants(cluster: &Cluster, seats: &Seats) -> Constants {
    balancer::constants(cluster, seats.gateway_mac(), seats.gateway_mac())
}
