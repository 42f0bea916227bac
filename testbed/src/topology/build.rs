//! How the parts of a cluster are built, joined and taken away again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use dataplane::wire::{Address, Mac, V4, V6};
use ipnet::IpNet;
use userspace::model::{Acceleration, External, Node, Pod};

use super::ground::{self, WayIn, gateway_mac, gateways, gso_max_size, mac, on_subnets, pod_mtu};
use super::ground::{ways_to_node, ways_to_pod};
use super::{
    BRIDGE, Error, GATEWAY_V6, HOST, HOST_PEER, TUNNEL, Topology, UPLINK, WORLD, WORLD_GATEWAY, WORLD_MAC,
    collected, each, fabric_side, host_side, pod_gateway, tunnel,
};
use crate::fabric;
use crate::link::{Chosen, End, Links, Next, Route, Rule, pair};
use crate::netns::Netns;

/// Kernel settings of every namespace. No reverse-path filter: packets may come back another way than
/// they would leave. No redirects: the path is ours. No limit on ICMP errors: who probes many closed ports
/// is to hear of each. Who connects and closes ten thousand times a second takes ports again after a second: their
/// timestamps tell one connection from another (RFC 6191).
const EVERYWHERE: [(&str, &str); 9] = [
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// The same for IPv6, where the kernel has it. Links have the addresses that they are given and no others,
/// at once: none of their own making (`addr_gen_mode`), none from a router, none looked for first.
const EVERYWHERE_V6: [(&str, &str); 9] = [
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
];

/// Of nodes. Local ports from 30,000 up are node ports, and from 32,768 up the masquerade's. The node's own address is
/// the source of packets that `podpath1` receives.
const NODES: [(&str, &str); 2] =
    [("net/ipv4/ip_local_port_range", "1024 29999"), ("net/ipv4/conf/all/accept_local", "1")];

/// Of pods: container runtimes let anyone bind any port.
const PODS: [(&str, &str); 2] =
    [("net/ipv4/ip_local_port_range", "32768 60999"), ("net/ipv4/ip_unprivileged_port_start", "0")];

/// The routes of a node's own packets to ports of its own that lead elsewhere.
const INTO_THE_PATH: u8 = 100;

/// By node: address, protocol as in the IP header, and port.
pub(super) type OwnPorts = BTreeMap<String, BTreeSet<(IpAddr, u8, u16)>>;

impl Topology {
    /// [`Self::build`] without the way back: `built` has the namespaces that were made.
    pub(super) fn build_all(&self, built: &mut Vec<Netns>) -> Result<(), Error> {
        pod_mtu(&self.cluster)?;
        ground::check_routes(&self.cluster)?;
        self.check_tunnel()?;
        self.build_fabric(built)?;
        self.build_world(built)?;
        for node in &self.cluster.nodes {
            self.build_node(node, built)?;
        }
        if !self.cluster.nodes.is_empty() && !fabric::is_emulated(&self.cluster) {
            // A bridge is up as soon as one of its ports is.
            Links::open(&self.fabric())?.wait_up(BRIDGE)?;
        }
        each(&self.cluster.nodes, |node| self.introduce(node, &self.cluster.nodes))?;
        let pods: Vec<&Pod> = self.linked_pods().collect();
        for pod in &pods {
            self.build_pod(self.node_of(pod)?, pod, built)?;
        }
        each(&self.cluster.nodes, |node| self.lead_to_pods(node, &pods))?;
        let nodes: Vec<&Node> = self.cluster.nodes.iter().collect();
        self.lead_from_fabric(&nodes, &pods)?;
        if self.is_balanced(&self.cluster) {
            self.build_balancer(built)?;
        }
        let services = ground::ways_to_services(&self.cluster);
        self.lead_to_services(&services, &services)?;
        self.follow_own_ports(&OwnPorts::new())
    }

    /// The network between the nodes: one bridge, which is also their gateway.
    fn build_fabric(&self, built: &mut Vec<Netns>) -> Result<(), Error> {
        let fabric = noted(self.fabric(), built)?;
        if fabric::is_emulated(&self.cluster) {
            // The kernel has no part in it.
            return forward(&fabric, false);
        }
        forward(&fabric, true)?;
        // Where the bridge hands its frames to iptables, it would cost time in every measurement.
        for filter in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            if has_setting(&fabric, filter)? {
                fabric.set(&[(filter, "0")])?;
            }
        }
        let settings = &self.cluster.settings;
        let mut links = Links::open(&fabric)?;
        links.bridge(BRIDGE, gateway_mac(settings), settings.mtu)?;
        links.up(BRIDGE)?;
        for (gateway, subnet) in gateways(settings) {
            links.address(BRIDGE, gateway, subnet.prefix_len())?;
        }
        Ok(())
    }

    /// Everything outside: one namespace that has all externals' addresses, behind the fabric.
    fn build_world(&self, built: &mut Vec<Netns>) -> Result<(), Error> {
        let (fabric, world) = (self.fabric(), noted(self.world(), built)?);
        let (near_mac, mtu) = (mac(WORLD_GATEWAY.into()), self.cluster.settings.mtu);
        let near = self.end(&fabric, WORLD, Some(near_mac), mtu);
        let far = self.end(&world, UPLINK, Some(WORLD_MAC), mtu);
        let (mut inside, mut outside) = self.linked(&near, &far)?;
        if !fabric::is_emulated(&self.cluster) {
            inside.address(WORLD, WORLD_GATEWAY.into(), 32)?;
        }
        let v6 = has_v6(&world)?.then_some(GATEWAY_V6.into());
        for gateway in v6.into_iter().chain([WORLD_GATEWAY.into()]) {
            outside.neighbour(UPLINK, gateway, near_mac)?;
            outside.route(Route::default(gateway, UPLINK))?;
        }
        each(&self.cluster.externals, |external| self.build_external(external))
    }

    /// A host outside: an address of the world, and the fabric's way to it.
    pub(super) fn build_external(&self, external: &External) -> Result<(), Error> {
        let address = external.address;
        let whole = IpNet::from(address);
        Links::open(&self.world())?.address(UPLINK, address, whole.prefix_len())?;
        if fabric::is_emulated(&self.cluster) {
            return Ok(());
        }
        let mut inside = Links::open(&self.fabric())?;
        inside.neighbour(WORLD, address, WORLD_MAC)?;
        inside.route(Route::net(whole, Next::Link(WORLD)))?;
        Ok(())
    }

    pub(super) fn remove_external_links(&self, external: &External) -> Result<(), Error> {
        let whole = IpNet::from(external.address);
        let mut inside = Links::open(&self.fabric())?;
        inside.unroute(whole)?;
        inside.forget(WORLD, external.address)?;
        Ok(Links::open(&self.world())?.unaddress(UPLINK, external.address, whole.prefix_len())?)
    }

    /// A node: its uplink, and where its own packets to pods and Services go.
    pub(super) fn build_node(&self, node: &Node, built: &mut Vec<Netns>) -> Result<(), Error> {
        let settings = &self.cluster.settings;
        if let Some((address, _)) = gateways(settings).find(|(gateway, _)| node.addresses.contains(gateway)) {
            return Err(Error::Gateway { node: node.name.clone(), address });
        }
        let (fabric, netns) = (self.fabric(), noted(self.node(&node.name), built)?);
        netns.set(&NODES)?;
        // A node's own socket that dials from a node port would be answered as if it were a Service.
        let (first, last) = settings.services.node_ports;
        netns.set(&[("net/ipv4/ip_local_reserved_ports", &format!("{first}-{last}"))])?;
        forward(&netns, self.layout.forwarding)?;
        let (port, own_mac) = (fabric_side(&node.name), mac(node.address()));
        let near = self.end(&fabric, &port, None, settings.mtu);
        let far = self.end(&netns, UPLINK, Some(own_mac), settings.mtu);
        let (mut inside, mut uplink) = self.linked(&near, &far)?;
        let bridged = !fabric::is_emulated(&self.cluster);
        if bridged {
            inside.join(&port, BRIDGE)?;
            inside.station(&port, own_mac)?;
        }
        if settings.services.acceleration == Acceleration::Native {
            inside.face_driver(&port)?;
        }
        for (address, prefix) in on_subnets(settings, node) {
            if bridged {
                inside.neighbour(BRIDGE, address, own_mac)?;
            }
            uplink.address(UPLINK, address, prefix)?;
        }
        for (gateway, _) in gateways(settings).filter(|(it, _)| node.address_like(*it).is_some()) {
            uplink.neighbour(UPLINK, gateway, gateway_mac(settings))?;
            uplink.route(Route::default(gateway, UPLINK))?;
        }
        if self.is_tunnelled() {
            self.build_tunnel(node)?;
        }
        if self.layout.kernel_routes {
            return Ok(());
        }
        let mtu = pod_mtu(&self.cluster)?;
        let near = self.end(&netns, HOST, Some(own_mac), mtu);
        let far = self.end(&netns, HOST_PEER, Some(Mac::GATEWAY), mtu);
        self.linked(&near, &far)?;
        for address in &node.addresses {
            uplink.address(HOST, *address, IpNet::from(*address).prefix_len())?;
            // All pods are behind one neighbour, as they are for a pod: nothing is asked for.
            uplink.neighbour(HOST, pod_gateway(*address), Mac::GATEWAY)?;
        }
        for range in ground::ranges(settings) {
            if let Some(address) = node.address_like(range.addr()) {
                let next = Next::Via(pod_gateway(address), HOST);
                uplink.route(Route::net(*range, next).source(address))?;
            }
        }
        // A node that is its own backend meets itself under these.
        let itself = [IpAddr::from(V4::ITSELF.0), V6::ITSELF.0.into()];
        let into: Vec<IpAddr> = self.cluster.ways_in().into_keys().chain(itself).collect();
        lead_into_the_path(&mut uplink, node, &into)?;
        if self.layout.own_ports {
            for address in &node.addresses {
                uplink.ask_rules_first(*address)?;
                let route = Route::default(pod_gateway(*address), HOST);
                uplink.route_in(INTO_THE_PATH, route.source(*address))?;
            }
        }
        Ok(())
    }

    /// Tells a node of others, so that it need not ask for their hardware addresses.
    pub(super) fn introduce<'a>(
        &self,
        node: &Node,
        others: impl IntoIterator<Item = &'a Node>,
    ) -> Result<(), Error> {
        let mut links = Links::open(&self.node(&node.name))?;
        for other in others.into_iter().filter(|other| other.name != node.name) {
            for address in &other.addresses {
                links.neighbour(UPLINK, *address, mac(other.address()))?;
            }
            if self.is_tunnelled() {
                tunnel::lead_beyond(&mut links, node, other)?;
            }
        }
        Ok(())
    }

    /// A pod: its namespace, its link to the node, and its one way out.
    pub(super) fn build_pod(&self, node: &Node, pod: &Pod, built: &mut Vec<Netns>) -> Result<(), Error> {
        let (host_side, own_mac, mtu) = (host_side(pod), mac(pod.address()), pod_mtu(&self.cluster)?);
        let (node_netns, netns) = (self.node(&node.name), noted(self.pod(pod), built)?);
        netns.set(&PODS)?;
        let near = self.end(&node_netns, &host_side, Some(Mac::GATEWAY), mtu);
        let far = self.end(&netns, UPLINK, Some(own_mac), mtu);
        let (mut inside, mut links) = self.linked(&near, &far)?;
        for address in pod.addresses.iter().copied() {
            let gateway = pod_gateway(address);
            links.address(UPLINK, address, IpNet::from(address).prefix_len())?;
            links.route(Route::default(gateway, UPLINK))?;
            if !self.layout.answers_arp || gateway.is_ipv6() {
                links.neighbour(UPLINK, gateway, Mac::GATEWAY)?;
            }
            if self.layout.kernel_routes {
                inside.neighbour(&host_side, address, own_mac)?;
                let route = Route::host(address, Next::Link(&host_side));
                inside.route(Route { source: node.address_like(address), ..route })?;
            }
        }
        Ok(())
    }

    /// Routes on a node to those of `pods` that its general routes do not lead to.
    pub(super) fn lead_to_pods(&self, node: &Node, pods: &[&Pod]) -> Result<(), Error> {
        let mut links = Links::open(&self.node(&node.name))?;
        for pod in pods {
            for address in pod.addresses.iter().copied() {
                let Some(source) = node.address_like(address) else { continue };
                if !self.layout.kernel_routes {
                    if !self.cluster.settings.pod_cidrs.iter().any(|range| range.contains(&address)) {
                        let next = Next::Via(pod_gateway(address), HOST);
                        links.route(Route::host(address, next).source(source))?;
                    }
                } else if pod.node != node.name
                    && let Some(next) = self.node_of(pod)?.address_like(address)
                {
                    let (link, led) = match self.is_tunnelled() {
                        true => (TUNNEL, self.node_of(pod)?.pod_cidrs.iter().any(|it| it.contains(&address))),
                        false => (UPLINK, false),
                    };
                    if !led {
                        links.route(Route::host(address, Next::Via(next, link)).source(source))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Routes on the fabric to what of `nodes` and `pods` it must know a way to.
    pub(super) fn lead_from_fabric(&self, nodes: &[&Node], pods: &[&Pod]) -> Result<(), Error> {
        if fabric::is_emulated(&self.cluster) {
            return Ok(());
        }
        let (mut links, settings) = (Links::open(&self.fabric())?, &self.cluster.settings);
        let mut ways: Vec<_> = nodes.iter().flat_map(|node| ways_to_node(settings, node)).collect();
        for pod in pods {
            ways.extend(ways_to_pod(settings, self.node_of(pod)?, pod));
        }
        for (to, next) in ways {
            links.route(Route::net(to, Next::Via(next, BRIDGE)))?;
        }
        Ok(())
    }

    /// Makes the ways to Services' addresses from outside those of `after`: the fabric brings them to the load
    /// balancer or to some node, and each node's own packets go into its path.
    pub(super) fn lead_to_services(
        &self,
        before: &BTreeMap<IpAddr, WayIn>,
        after: &BTreeMap<IpAddr, WayIn>,
    ) -> Result<(), Error> {
        if !self.layout.services {
            return Ok(());
        }
        let gone: Vec<IpAddr> =
            before.keys().filter(|address| !after.contains_key(address)).copied().collect();
        if !fabric::is_emulated(&self.cluster) {
            let mut links = Links::open(&self.fabric())?;
            each(&gone, |address| Ok(links.unroute(IpNet::from(*address))?))?;
            // The node may be another one now, also because the one before is gone.
            for (address, way) in after {
                let route = Route::host(*address, Next::Via(way.next, BRIDGE));
                links.route(Route { mtu: way.mtu, ..route })?;
            }
        }
        if self.layout.kernel_routes {
            // What a node's own sockets dial is translated before it is routed for good.
            return Ok(());
        }
        let new: Vec<IpAddr> =
            after.keys().filter(|address| !before.contains_key(address)).copied().collect();
        for node in &self.cluster.nodes {
            let mut links = Links::open(&self.node(&node.name))?;
            each(&gone, |address| Ok(links.unroute(IpNet::from(*address))?))?;
            lead_into_the_path(&mut links, node, &new)?;
        }
        Ok(())
    }

    /// The ports of each node that lead elsewhere, as far as its own sockets have to be led into the path for them.
    pub(super) fn own_ports(&self) -> OwnPorts {
        let nodes = self.cluster.nodes.iter().filter(|_| self.layout.own_ports);
        nodes.map(|node| (node.name.clone(), ground::own_ports(&self.cluster, node))).collect()
    }

    /// Makes the rules for them what the cluster says now, where they were as in `before`.
    pub(super) fn follow_own_ports(&self, before: &OwnPorts) -> Result<(), Error> {
        for (name, after) in self.own_ports() {
            let before = before.get(&name).cloned().unwrap_or_default();
            if before == after {
                continue;
            }
            let mut links = Links::open(&self.node(&name))?;
            let chosen = |&(address, protocol, port): &_| Chosen::Dialled { address, protocol, port };
            for gone in before.difference(&after).map(chosen) {
                links.unrule(gone, Rule::Table(INTO_THE_PATH))?;
            }
            for new in after.difference(&before).map(chosen) {
                links.rule(new, Rule::Table(INTO_THE_PATH))?;
            }
        }
        Ok(())
    }

    /// Takes back what [`Self::add_pod`] made, and goes on where something fails.
    pub(super) fn remove_pod_links(&self, pod: &Pod) -> Result<(), Error> {
        let mut errors = Vec::new();
        let places = self.cluster.nodes.iter().map(|node| self.node(&node.name)).chain([self.fabric()]);
        for netns in places {
            // The pod's own node loses the link, and the route to it with the link.
            let removed = Links::open(&netns).and_then(|mut links| {
                links.delete(&host_side(pod))?;
                pod.addresses.iter().try_for_each(|address| links.unroute(IpNet::from(*address)))
            });
            errors.extend(removed.err().map(Error::from));
        }
        errors.extend(self.pod(pod).delete().err().map(Error::from));
        collected(errors)
    }

    /// Takes back what [`Self::add_node`] made, and goes on where something fails.
    pub(super) fn remove_node_links(&self, node: &Node) -> Result<(), Error> {
        let mut errors = Vec::new();
        let removed = Links::open(&self.fabric()).and_then(|mut links| {
            links.delete(&fabric_side(&node.name))?;
            for (to, _) in ways_to_node(&self.cluster.settings, node) {
                links.unroute(to)?;
            }
            if fabric::is_emulated(&self.cluster) {
                return Ok(());
            }
            node.addresses.iter().try_for_each(|address| links.forget(BRIDGE, *address))
        });
        errors.extend(removed.err().map(Error::from));
        for other in self.cluster.nodes.iter().filter(|other| other.name != node.name) {
            let forgotten = Links::open(&self.node(&other.name)).and_then(|mut links| {
                if self.is_tunnelled() {
                    tunnel::lead_no_more(&mut links, node)?;
                }
                node.addresses.iter().try_for_each(|address| links.forget(UPLINK, *address))
            });
            errors.extend(forgotten.err().map(Error::from));
        }
        errors.extend(self.node(&node.name).delete().err().map(Error::from));
        collected(errors)
    }

    /// Adds a pair, switches its offloads, and sees it up; gives both namespaces' links.
    pub(super) fn linked(&self, near: &End<'_>, far: &End<'_>) -> Result<(Links, Links), Error> {
        pair(near, far)?;
        let mut both = (Links::open(near.netns)?, Links::open(far.netns)?);
        for (links, end) in [(&mut both.0, near), (&mut both.1, far)] {
            // What reads frames in userspace wants them as they would stand on a real wire.
            if !self.layout.offload || fabric::is_emulated(&self.cluster) {
                links.offload(end.name, false)?;
            }
            links.up(end.name)?;
        }
        both.0.wait_up(near.name)?;
        both.1.wait_up(far.name)?;
        Ok(both)
    }

    pub(super) fn end<'a>(&self, netns: &'a Netns, name: &'a str, mac: Option<Mac>, mtu: u32) -> End<'a> {
        End { netns, name, mac, mtu, gso_max_size: gso_max_size(&self.cluster.settings) }
    }

    pub(super) fn node_of(&self, pod: &Pod) -> Result<&Node, Error> {
        let found = self.cluster.nodes.iter().find(|node| node.name == pod.node);
        found.ok_or_else(|| Error::Node { pod: pod.id(), node: pod.node.clone() })
    }

    /// The pods that have links of their own.
    pub(super) fn linked_pods(&self) -> impl Iterator<Item = &Pod> {
        self.cluster.pods.iter().filter(|pod| !pod.host_network)
    }
}

/// Routes on a node for its own packets to these addresses: into the path.
fn lead_into_the_path(links: &mut Links, node: &Node, addresses: &[IpAddr]) -> Result<(), Error> {
    each(addresses, |address| {
        let Some(source) = node.address_like(*address) else { return Ok(()) };
        let next = Next::Via(pod_gateway(*address), HOST);
        Ok(links.route(Route::host(*address, next).source(source))?)
    })
}

/// Makes a namespace with the settings of all.
///
/// # Errors
/// It is there, or cannot be made.
pub fn create(netns: Netns) -> Result<Netns, Error> {
    let netns = Netns::create(netns.name())?.guarded();
    netns.set(&EVERYWHERE)?;
    if has_v6(&netns)? {
        netns.set(&EVERYWHERE_V6)?;
    }
    Ok(netns.keep())
}

/// The same, noted as made.
pub(super) fn noted(netns: Netns, built: &mut Vec<Netns>) -> Result<Netns, Error> {
    let netns = create(netns)?;
    built.push(netns.clone());
    Ok(netns)
}

/// Lets the kernel forward between the links of a namespace, or not.
pub(super) fn forward(netns: &Netns, on: bool) -> Result<(), Error> {
    let value = if on { "1" } else { "0" };
    netns.set(&[("net/ipv4/ip_forward", value)])?;
    if has_v6(netns)? {
        netns.set(&[("net/ipv6/conf/all/forwarding", value)])?;
    }
    Ok(())
}

/// Whether the kernel speaks IPv6.
pub(super) fn has_v6(netns: &Netns) -> Result<bool, Error> {
    has_setting(netns, "net/ipv6/conf/default")
}

fn has_setting(netns: &Netns, key: &str) -> Result<bool, Error> {
    Ok(netns.run(|| Path::new("/proc/sys").join(key).exists())?)
}
