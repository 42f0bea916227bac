//! The load balancer by itself, where the rest of the fabric is the kernel's: its tables follow from the cluster and
//! from the answers to its probes; somebody else carries its packets by them.
//!
//! It does no IO but for the carrier's tables, and has no clock: whoever runs it says what time it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane::tables::Balancer as Constants;
use dataplane::verdict::{Fate, Miss};
use dataplane::wire::Mac;

use super::balancer::{self, LoadBalancer, loss_of};
use super::packet::Packet;
use super::probe::Prober;
use super::seats::{gateway_mac_of, mac_of};
use super::{BalancerReport, Report, SWEEP_NS};
use crate::engine::balancer::Carrier;
use crate::error::Error;
use crate::model::{Cluster, PROBES, PROBES_V6};

/// A load balancer on a link of its own beside the nodes.
#[derive(Debug)]
pub struct Standalone<C> {
    balancer: LoadBalancer<C>,
    constants: Constants,
    /// What is planned by.
    cluster: Cluster,
    swept_ns: u64,
}

impl Standalone<()> {
    /// The hardware address of its link.
    pub fn mac() -> Mac {
        mac_of(PROBES)
    }

    /// What its carrier is to do.
    ///
    /// # Errors
    /// There is no room for the cluster's frontends.
    pub fn constants(cluster: &Cluster) -> Result<Constants, super::Error> {
        balancer::check(cluster)?;
        Ok(balancer::constants(cluster, Self::mac(), gateway_mac_of(cluster)))
    }
}

impl<C: Carrier> Standalone<C> {
    /// That of a cluster, with a carrier that does what [`Standalone::constants`] say and has no rows yet. No node
    /// is healthy before it was heard of.
    ///
    /// # Errors
    /// There is no room for the cluster's frontends, or the carrier does not take the rows.
    pub fn new(cluster: &Cluster, carrier: C, now_ns: u64) -> Result<Self, Error> {
        let constants = Standalone::constants(cluster)?;
        let balancer = LoadBalancer::new(carrier, constants);
        let mut new = Self { balancer, constants, cluster: cluster.clone(), swept_ns: now_ns };
        new.apply(cluster, now_ns)?;
        Ok(new)
    }

    /// Goes on with a cluster whose Services or nodes have changed; its settings have not.
    ///
    /// # Errors
    /// As [`Self::new`]; where there is no room nothing is changed.
    pub fn apply(&mut self, cluster: &Cluster, now_ns: u64) -> Result<(), Error> {
        balancer::check(cluster)?;
        self.cluster = cluster.clone();
        self.balancer.apply(cluster, self.constants, now_ns)
    }

    /// What is to be sent at this moment: probes, if it is time for any. And what is over is forgotten, now and then.
    ///
    /// # Errors
    /// The carrier's tables cannot be read, or written.
    pub fn turn(&mut self, now_ns: u64) -> Result<Vec<Vec<u8>>, Error> {
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            self.balancer.sweep(now_ns)?;
        }
        let sent = self.balancer.prober.ask(now_ns);
        match self.replan(now_ns) {
            // Probes that are not sent would count as failed. The next turn tries the plan again.
            Err(error) if sent.is_empty() => Err(error),
            _ => Ok(sent.into_iter().map(|sent| sent.frame).collect()),
        }
    }

    /// A frame has come that was not for a frontend: if it answers a probe, what is said to it.
    ///
    /// # Errors
    /// The carrier does not take the rows.
    pub fn hear(&mut self, frame: &[u8], now_ns: u64) -> Result<Option<Vec<u8>>, Error> {
        if !Packet::read(frame).as_ref().is_ok_and(Prober::is_answer) {
            return Ok(None);
        }
        let next = self.balancer.prober.hear(frame);
        self.replan(now_ns)?;
        Ok(next.map(|sent| sent.frame))
    }

    /// Whether it has heard of every node, or waited for it in vain.
    pub fn knows_all(&self) -> bool {
        self.balancer.prober.knows_all()
    }

    /// What became of packets so far, and who is healthy.
    ///
    /// # Errors
    /// The carrier's counters cannot be read.
    pub fn report(&self) -> Result<Report, Error> {
        let counts = self.balancer.carrier.counts()?;
        let count = |fate: Fate| counts.get(fate.counter() as usize).map_or(0, |count| count.packets);
        let mut lost: BTreeMap<String, u64> = BTreeMap::new();
        for miss in Miss::ALL {
            let packets = count(Fate::Missed(miss));
            if packets > 0 {
                *lost.entry(loss_of(miss).slug().to_owned()).or_default() += packets;
            }
        }
        let (sent, returned) = (count(Fate::Sent), count(Fate::Returned));
        let balancer = BalancerReport { arrived: sent + lost.values().sum::<u64>(), sent, lost, returned };
        Ok(Report { balancer: Some(balancer), frontends: self.balancer.frontends(), ..Report::default() })
    }

    fn replan(&mut self, now_ns: u64) -> Result<(), Error> {
        if !self.balancer.prober.take_changed() {
            return Ok(());
        }
        let planned = self.balancer.plan(&self.cluster, now_ns);
        if planned.is_err() {
            // Once more at the next turn.
            self.balancer.prober.keep_changed();
        }
        planned
    }
}

/// Where probes come from, of the family of an address: that is where their answers go, and on its link the load
/// balancer's own address.
pub fn probe_address(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { PROBES } else { PROBES_V6 }
}
