//! The kernel's own tunnel between nodes, as flannel's VXLAN backend lays it.
//!
//! ```text
//!  10.244.2.0/24   via 10.240.0.5 dev vxlan0      the other node's pods
//!  10.240.0.5      dev vxlan0                     what is for the other node itself: a pod's address stays inside
//!  10.240.0.5      has 0a:58:0a:f0:00:05          the neighbour, told for good
//!  0a:58:…:05      is beyond 10.240.0.5           where to send what is wrapped
//!  10.244.0.0/16   blackhole                      pods that nobody has
//! ```
//! The device has the node's own addresses, so that a node is the same to others whichever way it sends. Wrapped
//! packets are bound to the uplink, which is why the route to the other node through the tunnel is not for them.
//!
//! Source: flannel, `Documentation/backends.md`, VXLAN; ip-link(8).

use ipnet::IpNet;
use userspace::model::{Encapsulation, Model, Node};

use super::ground::{gso_max_size, mac, pod_mtu};
use super::{Error, TUNNEL, Topology, UPLINK};
use crate::link::{self, Links, Next, Route, Vxlan};

/// The network's identifier: one network for all, as policies are not the tunnel's affair here.
const VNI: u32 = 1;

impl Topology {
    /// Whether the kernel's tunnel is between the nodes.
    pub(super) fn is_tunnelled(&self) -> bool {
        self.layout.tunnel && self.cluster.settings.model == Model::Overlay
    }

    /// Checks that the kernel's tunnel is of the kind that the cluster asks for.
    ///
    /// # Errors
    /// [`Error::Geneve`].
    pub(super) fn check_tunnel(&self) -> Result<(), Error> {
        let geneve = self.cluster.settings.encapsulation == Encapsulation::Geneve;
        if geneve && self.is_tunnelled() { Err(Error::Geneve) } else { Ok(()) }
    }

    /// A node's end of the tunnel, and no way for pods that nobody has.
    pub(super) fn build_tunnel(&self, node: &Node) -> Result<(), Error> {
        let settings = &self.cluster.settings;
        let mut links = Links::open(&self.node(&node.name))?;
        links.vxlan(&Vxlan {
            name: TUNNEL,
            over: UPLINK,
            v6: node.address().is_ipv6(),
            vni: VNI,
            port: settings.tunnel_port,
            mac: mac(node.address()),
            mtu: pod_mtu(&self.cluster)?,
            gso_max_size: gso_max_size(settings),
        })?;
        for address in &node.addresses {
            links.address(TUNNEL, *address, IpNet::from(*address).prefix_len())?;
        }
        links.up(TUNNEL)?;
        for range in &settings.pod_cidrs {
            links.route(Route::net(*range, Next::Blackhole))?;
        }
        Ok(())
    }
}

/// Tells a node where another one is, beyond the tunnel, and which pods.
pub(super) fn lead_beyond(links: &mut Links, node: &Node, other: &Node) -> Result<(), link::Error> {
    let far = mac(other.address());
    links.beyond(TUNNEL, far, (other.address(), UPLINK))?;
    for address in &other.addresses {
        let Some(source) = node.address_like(*address) else { continue };
        links.neighbour(TUNNEL, *address, far)?;
        links.route(Route::host(*address, Next::Link(TUNNEL)).source(source))?;
    }
    for range in &other.pod_cidrs {
        let (Some(next), Some(source)) = (other.address_like(range.addr()), node.address_like(range.addr()))
        else {
            continue;
        };
        links.route(Route::net(*range, Next::Via(next, TUNNEL)).source(source))?;
    }
    Ok(())
}

/// Forgets what [`lead_beyond`] told of another node.
pub(super) fn lead_no_more(links: &mut Links, other: &Node) -> Result<(), link::Error> {
    for range in &other.pod_cidrs {
        links.unroute(*range)?;
    }
    for address in &other.addresses {
        links.unroute(IpNet::from(*address))?;
        links.forget(TUNNEL, *address)?;
    }
    links.not_beyond(TUNNEL, mac(other.address()), (other.address(), UPLINK))
}
