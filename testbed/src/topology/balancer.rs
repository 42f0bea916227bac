//! The load balancer's namespace, for a fabric that is the kernel's.
//!
//! ```text
//!  fabric ns                    balancer ns
//!  br0 - balancer0 ------------ eth0        a program answers here, and sends back what it has changed
//!  balancer1 ------------------ eth1        with node ports: what came here and is none of a frontend's goes on
//! ```
//!
//! It has the addresses that health probes come from, though the kernel there knows of none: what is for a frontend
//! a program takes, and answers to probes are read off the link. The fabric's routes lead frontends to it.
//!
//! Where packets reach nodes at their node ports, answers must come back through it: a rule of the fabric brings there
//! whatever leaves a node by such a port. Answers to those who dialled the node port themselves go on by a second
//! link, where the rule does not see them again.

use std::net::IpAddr;

use dataplane::wire::ip::protocol;
use userspace::fabric::{Standalone, frontends, probe_address};
use userspace::model::{Cluster, Forward};

use super::build::{forward, has_v6, noted};
use super::ground::{gateways, mac};
use super::{BALANCER, BRIDGE, Error, GATEWAY_V6, Topology, UPLINK, WORLD_GATEWAY};
use crate::fabric;
use crate::link::{Chosen, Links, Next, Route, Rule};
use crate::netns::Netns;

/// The fabric's side of the link by which goes on what is not for a frontend.
const WAY_ON: &str = "balancer1";
/// Its other end.
const PASSED: &str = "eth1";
/// The routing table of what leaves nodes by a node port.
const ANSWERS: u8 = 100;

impl Topology {
    /// Whether the cluster's frontends are at a load balancer that has a namespace of its own here.
    pub(super) fn is_balanced(&self, cluster: &Cluster) -> bool {
        self.layout.services && !fabric::is_emulated(cluster) && !frontends(cluster).is_empty()
    }

    /// The load balancer's namespace, its link to the bridge, and the ways to it.
    pub(super) fn build_balancer(&self, built: &mut Vec<Netns>) -> Result<(), Error> {
        let (fabric, netns) = (self.fabric(), noted(self.balancer(), built)?);
        let (own_mac, mtu) = (Standalone::mac(), self.cluster.settings.mtu);
        let near = self.end(&fabric, BALANCER, None, mtu);
        let far = self.end(&netns, UPLINK, Some(own_mac), mtu);
        let (mut inside, mut own) = self.linked(&near, &far)?;
        // A program in a driver must have frames as they would stand on a wire.
        inside.offload(BALANCER, false)?;
        own.offload(UPLINK, false)?;
        inside.join(BALANCER, BRIDGE)?;
        inside.spare_floods(BALANCER)?;
        inside.station(BALANCER, own_mac)?;
        inside.wait_up(BRIDGE)?;
        for address in self.probe_addresses()? {
            inside.neighbour(BRIDGE, address, own_mac)?;
            inside.route(Route::host(address, Next::Link(BRIDGE)))?;
        }
        forward(&netns, false)?;
        match self.cluster.settings.load_balancer.forward {
            Forward::NodePort => self.lead_answers_back(&netns, &mut inside, &mut own),
            Forward::FloatingIp | Forward::IpInIp => Ok(()),
        }
    }

    /// Where probes come from, of each family that the kernel speaks.
    fn probe_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let v6 = has_v6(&self.fabric())?.then_some(GATEWAY_V6.into());
        Ok(v6.into_iter().chain([WORLD_GATEWAY.into()]).map(probe_address).collect())
    }

    /// Brings what leaves nodes by node ports to the load balancer, and on from there.
    fn lead_answers_back(&self, netns: &Netns, inside: &mut Links, own: &mut Links) -> Result<(), Error> {
        let settings = &self.cluster.settings;
        let (fabric, near_mac) = (self.fabric(), mac(WORLD_GATEWAY.into()));
        let near = self.end(&fabric, WAY_ON, Some(near_mac), settings.mtu);
        self.linked(&near, &self.end(netns, PASSED, None, settings.mtu))?;
        forward(netns, true)?;
        for address in self.probe_addresses()? {
            // Answers to probes were read already.
            own.rule(Chosen::To(address), Rule::Blackhole)?;
            let gateway = if address.is_ipv4() { WORLD_GATEWAY.into() } else { GATEWAY_V6.into() };
            own.neighbour(PASSED, gateway, near_mac)?;
            // Only answers go on: a frontend's packet that is not known yet would come back for ever.
            own.route_in(ANSWERS, Route::default(gateway, PASSED))?;
        }
        let ports = settings.services.node_ports;
        for (_, subnet) in gateways(settings) {
            for protocol in [protocol::TCP, protocol::UDP] {
                for (links, link) in [(&mut *own, UPLINK), (&mut *inside, BRIDGE)] {
                    let chosen = Chosen::From { link, range: subnet, protocol, ports };
                    links.rule(chosen, Rule::Table(ANSWERS))?;
                }
            }
        }
        // Last: while the table is empty, the rules lead nowhere and answers go as before.
        for (gateway, _) in gateways(settings) {
            inside.route_in(ANSWERS, Route::default(probe_address(gateway), BRIDGE))?;
        }
        Ok(())
    }
}
