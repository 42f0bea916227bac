//! `wire`: one veth pair between two pods, without node or fabric: the limit that no dataplane passes.
//!
//! It joins the first two pods of the cluster that have links, wherever they run; there is nothing else.

use std::net::IpAddr;

use ::dataplane::wire::Mac;
use ipnet::IpNet;
use userspace::model::{Cluster, Pod};

use super::{Dataplane, Error, Name};
use crate::link::{End, Links, Next, Route, pair};
use crate::netns::Guard;
use crate::topology::{Layout, Topology, UPLINK, create, gso_max_size, mac, pod_mtu, pod_netns};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Wire;

impl Dataplane for Wire {
    fn name(&self) -> Name {
        Name::Wire
    }

    fn layout(&self) -> Layout {
        Layout::ROUTED
    }

    fn build(&self, cluster: &Cluster) -> Result<Topology, Error> {
        crate::netns::check_cluster(&cluster.name)?;
        let mut pods = cluster.pods.iter().filter(|pod| !pod.host_network);
        let (Some(one), Some(other)) = (pods.next(), pods.next()) else {
            return Err(Error::TooFewPods { cluster: cluster.name.clone() });
        };
        // Guards take away what is made, if the rest fails.
        let (near, far) = (Side::new(cluster, one)?, Side::new(cluster, other)?);
        pair(&near.end(cluster)?, &far.end(cluster)?)?;
        near.lead_to(&far)?;
        far.lead_to(&near)?;
        for side in [&near, &far] {
            Links::open(&side.netns)?.wait_up(UPLINK)?;
        }
        near.keep();
        far.keep();
        Ok(Topology::existing(cluster.clone(), self.layout()))
    }

    /// The kernel needs nothing more.
    fn start(&mut self, _: &Topology) -> Result<(), Error> {
        Ok(())
    }

    fn apply(&mut self, _: &Topology) -> Result<(), Error> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// One end of the cable.
struct Side {
    netns: Guard,
    addresses: Vec<IpAddr>,
    mac: Mac,
}

impl Side {
    fn new(cluster: &Cluster, pod: &Pod) -> Result<Self, Error> {
        let netns = create(pod_netns(&cluster.name, pod))?.guarded();
        Ok(Self { netns, addresses: pod.addresses.clone(), mac: mac(pod.address()) })
    }

    /// As a pod's link is on every other dataplane, its MTU too.
    fn end(&self, cluster: &Cluster) -> Result<End<'_>, Error> {
        let (mtu, gso_max_size) = (pod_mtu(cluster)?, gso_max_size(&cluster.settings));
        Ok(End { netns: &self.netns, name: UPLINK, mac: Some(self.mac), mtu, gso_max_size })
    }

    fn lead_to(&self, other: &Self) -> Result<(), Error> {
        let mut links = Links::open(&self.netns)?;
        links.up(UPLINK)?;
        for address in &self.addresses {
            links.address(UPLINK, *address, IpNet::from(*address).prefix_len())?;
        }
        for address in &other.addresses {
            links.neighbour(UPLINK, *address, other.mac)?;
            links.route(Route::host(*address, Next::Link(UPLINK)))?;
        }
        Ok(())
    }

    /// It stays when this value goes.
    fn keep(self) {
        self.netns.keep();
    }
}
