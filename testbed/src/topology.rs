//! A cluster as namespaces and links: what a dataplane is put on, and nothing of what it does.
//!
//! ```text
//!  pod ns            node ns                              fabric ns            world ns
//!  eth0 ---------- pp<hash>      eth0 ------------- n<i> br0 world0 --------- eth0
//!  pod address     Mac::GATEWAY  node address         gateway address          external addresses
//!                  podpath0 - podpath1
//!                  (the node's own packets to pods and Services)
//! ```
//!
//! Pods and externals hold single addresses, of one family or both, and reach everything through a gateway;
//! only the nodes and the fabric share a subnet. The fabric knows a way to every pod by way of its node: a
//! route for each pod, or in `kubenet` one for the range of each node. `flat`, `flat-dynamic` and `kubenet`
//! live by these; in `overlay` they are there so that a client outside can dial a pod as if nothing stood
//! between. Hardware addresses follow from IP
//! addresses ([`Mac::of`]), so that a dataplane knows its neighbours without asking.
//!
//! **Invariant:** every link lives in a namespace made here, so deleting these namespaces undoes all.

mod ground;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use dataplane::wire::{Mac, V4};
use ipnet::IpNet;
use userspace::model::{Cluster, External, Node, Pod};

use crate::fabric;
use crate::link::{self, End, Links, Next, Route, pair};
use crate::netns::{self, Netns, Part, fnv1a};
use ground::{gateway_mac, gateways, on_subnets, ways_to_node, ways_to_pod};

pub use ground::{gso_max_size, mac, overhead, pod_mtu};

/// The fabric's bridge, in its namespace.
pub const BRIDGE: &str = "br0";
/// The fabric's side of the link to the world.
pub const WORLD: &str = "world0";
/// The one link of a pod or of the world, and a node's uplink.
pub const UPLINK: &str = "eth0";
/// Where a node's own packets to pods and Services leave its sockets.
pub const HOST: &str = "podpath0";
/// Where they arrive, for a dataplane to catch them.
pub const HOST_PEER: &str = "podpath1";

/// The fabric's address on the link to the world (RFC 3927 range; on that link only).
const WORLD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// What the world's hardware address is made of; it is no address of any host.
const WORLD_SIDE: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 2);
/// The hardware address of the world's one interface, which stands for all hosts outside.
pub const WORLD_MAC: Mac = {
    let [a, b, c, d] = WORLD_SIDE.octets();
    Mac([0x0a, 0x58, a, b, c, d])
};
/// The gateway of every pod.
const POD_GATEWAY: Ipv4Addr = {
    let [a, b, c, d] = V4::GATEWAY.0;
    Ipv4Addr::new(a, b, c, d)
};
/// The gateway of whoever has IPv6, as routers are called by their link-local addresses (RFC 4861).
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Kernel settings of every namespace. No reverse-path filter: packets may come back another way than
/// they would leave. No redirects: the path is ours. No limit on ICMP errors: who probes many closed ports
/// is to hear of each.
const EVERYWHERE: [(&str, &str); 8] = [
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

/// Of nodes. Local ports from 32,768 up belong to the masquerade, those from 30,000 to node ports. The
/// node's own address is the source of packets that `podpath1` receives.
const NODES: [(&str, &str); 3] = [
    ("net/ipv4/ip_local_port_range", "1024 32767"),
    ("net/ipv4/ip_local_reserved_ports", "30000-32767"),
    ("net/ipv4/conf/all/accept_local", "1"),
];

/// Of pods: container runtimes let anyone bind any port.
const PODS: [(&str, &str); 2] =
    [("net/ipv4/ip_local_port_range", "32768 60999"), ("net/ipv4/ip_unprivileged_port_start", "0")];

/// What a dataplane wants of the links that it is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// It answers pods that ask for their gateway by ARP; otherwise pods know it from the start, as they
    /// always do the one for IPv6.
    pub answers_arp: bool,
    /// The kernel forwards between the links of a node.
    pub forwarding: bool,
    /// Links may carry frames without checksums and longer than the MTU, as the kernel likes best.
    pub offload: bool,
    /// The kernel's routing table leads to every pod; otherwise a node's own packets to pods and
    /// Services go to [`HOST`], for the dataplane to catch.
    pub kernel_routes: bool,
}

impl Layout {
    /// A dataplane hooked into the kernel's links, such as `ebpf`.
    pub const HOOKED: Self =
        Self { answers_arp: true, forwarding: false, offload: true, kernel_routes: false };
    /// A dataplane that reads and writes frames from a process, such as `emulator` and `chains`.
    pub const USERSPACE: Self = Self { offload: false, ..Self::HOOKED };
    /// Plain kernel routing, without encapsulation and without any dataplane: `routed`.
    pub const ROUTED: Self =
        Self { answers_arp: false, forwarding: true, offload: true, kernel_routes: true };
}

/// Why the cluster could not be built, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something with a namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// Something with a link.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// Too little is left for pods.
    #[error(
        "cannot build links with an MTU of {mtu}: encapsulation takes {overhead} of it and pods need {shortest}; raise `spec.mtu`"
    )]
    Mtu {
        /// As it was asked for, in bytes.
        mtu: u32,
        /// What encapsulation takes.
        overhead: u32,
        /// What the cluster's families need.
        shortest: u32,
    },
    /// More nodes than the cloud's route table has rows.
    #[error(
        "cannot build the fabric's route table: kubenet needs a route for the pods of each node, {routes} here, and a table takes {}; have fewer nodes, or choose another `spec.model`",
        ground::MOST_ROUTES
    )]
    RouteTable {
        /// Those that it would take.
        routes: usize,
    },
    /// Something to be taken away is still in use.
    #[error("cannot remove node {node}: pod {pod} runs on it; remove the pod first")]
    InUse {
        /// The node.
        node: String,
        /// The first of its pods.
        pod: String,
    },
    /// The cluster has no such node.
    #[error("cannot place pod {pod}: there is no node {node}")]
    Node {
        /// The pod.
        pod: String,
        /// The node it names.
        node: String,
    },
    /// A node took the first address of the subnet.
    #[error("cannot build node {node}: its address {address} is the fabric's gateway; give it another one")]
    Gateway {
        /// The node.
        node: String,
        /// The address.
        address: IpAddr,
    },
    /// It failed, and then not all of it could be taken back.
    #[error("{cause}; what was built could not be removed: {}; try `podpath down`", sentences(.left))]
    Undo {
        /// What went wrong first.
        cause: Box<Error>,
        /// Everything that went wrong after.
        left: Vec<Error>,
    },
    /// Several things went wrong.
    #[error("{}", sentences(.0))]
    Several(Vec<Error>),
}

/// Errors, one after the other.
fn sentences(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// No errors are a success, and one is just itself.
fn collected(mut errors: Vec<Error>) -> Result<(), Error> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Several(errors)),
    }
}

/// The namespaces and links of a cluster that is up.
#[derive(Clone, Debug)]
pub struct Topology {
    cluster: Cluster,
    layout: Layout,
}

impl Topology {
    /// Builds everything: fabric, world, nodes, pods.
    ///
    /// # Errors
    /// The first thing that went wrong; everything built so far is removed then, and what could not be
    /// removed is named as well ([`Error::Undo`]).
    pub fn build(cluster: &Cluster, layout: Layout) -> Result<Self, Error> {
        netns::check_cluster(&cluster.name)?;
        let topology = Self { cluster: cluster.clone(), layout };
        let mut built = Vec::new();
        match topology.build_all(&mut built) {
            Ok(()) => Ok(topology),
            Err(cause) => {
                Err(undone(cause, built.iter().rev().map(|netns| netns.delete().map_err(Error::from))))
            }
        }
    }

    /// The topology of a cluster that was built before, in this process or another.
    pub fn existing(cluster: Cluster, layout: Layout) -> Self {
        Self { cluster, layout }
    }

    /// The cluster as it stands now.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The fabric's namespace.
    pub fn fabric(&self) -> Netns {
        Netns::of(&self.cluster.name, Part::Fabric)
    }

    /// The world's namespace: every External is an address in it.
    pub fn world(&self) -> Netns {
        Netns::of(&self.cluster.name, Part::World)
    }

    /// The namespace of the node of that name.
    pub fn node(&self, name: &str) -> Netns {
        Netns::of(&self.cluster.name, Part::Node(name))
    }

    /// The namespace that the pod lives in: its node's, if it uses the host's network.
    pub fn pod(&self, pod: &Pod) -> Netns {
        pod_netns(&self.cluster.name, pod)
    }

    /// Adds a pod to the cluster: namespace, link, and the ways to it.
    ///
    /// # Errors
    /// The first thing that went wrong; the pod is removed again then.
    pub fn add_pod(&mut self, pod: &Pod) -> Result<(), Error> {
        let node = self.node_of(pod)?;
        if !pod.host_network {
            let mut built = Vec::new();
            let added = self
                .build_pod(node, pod, &mut built)
                .and_then(|()| each(&self.cluster.nodes, |node| self.lead_to_pods(node, &[pod])))
                .and_then(|()| self.lead_from_fabric(&[], &[pod]));
            if let Err(cause) = added {
                // A namespace that was there before is not ours to delete.
                let taken_back = if built.is_empty() { Ok(()) } else { self.remove_pod_links(pod) };
                return Err(undone(cause, std::iter::once(taken_back)));
            }
        }
        self.cluster.pods.push(pod.clone());
        Ok(())
    }

    /// Removes a pod: its ways, its link, its namespace. To remove one that is not there succeeds.
    ///
    /// # Errors
    /// Everything that went wrong; the pod stays in the cluster then, and removing can be tried again.
    pub fn remove_pod(&mut self, namespace: &str, name: &str) -> Result<(), Error> {
        let is_it = |pod: &Pod| pod.namespace == namespace && pod.name == name;
        if let Some(pod) = self.cluster.pods.iter().find(|pod| is_it(pod))
            && !pod.host_network
        {
            self.remove_pod_links(pod)?;
        }
        self.cluster.pods.retain(|pod| !is_it(pod));
        Ok(())
    }

    /// Adds a node: namespace, links, and the ways between it and everybody else. It has no pods yet.
    ///
    /// # Errors
    /// The first thing that went wrong; the node is removed again then.
    pub fn add_node(&mut self, node: &Node) -> Result<(), Error> {
        self.cluster.nodes.push(node.clone());
        let mut built = Vec::new();
        let pods: Vec<&Pod> = self.linked_pods().collect();
        let added = ground::check_routes(&self.cluster)
            .and_then(|()| self.build_node(node, &mut built))
            .and_then(|()| self.introduce(node, &self.cluster.nodes))
            .and_then(|()| {
                let others = self.cluster.nodes.iter().filter(|other| other.name != node.name);
                others.into_iter().try_for_each(|other| self.introduce(other, [node]))
            })
            .and_then(|()| self.lead_to_pods(node, &pods))
            .and_then(|()| self.lead_from_fabric(&[node], &[]));
        if let Err(cause) = added {
            let taken_back = if built.is_empty() { Ok(()) } else { self.remove_node_links(node) };
            self.cluster.nodes.pop();
            return Err(undone(cause, std::iter::once(taken_back)));
        }
        Ok(())
    }

    /// Removes a node that has no pods with links any more; those of its own network go with it. To remove
    /// one that is not there succeeds.
    ///
    /// # Errors
    /// [`Error::InUse`], or everything that went wrong; the node stays in the cluster then, and removing can
    /// be tried again.
    pub fn remove_node(&mut self, name: &str) -> Result<(), Error> {
        if let Some(pod) = self.linked_pods().find(|pod| pod.node == name) {
            return Err(Error::InUse { node: name.to_owned(), pod: pod.id() });
        }
        if let Some(node) = self.cluster.nodes.iter().find(|node| node.name == name) {
            self.remove_node_links(node)?;
        }
        self.cluster.nodes.retain(|node| node.name != name);
        self.cluster.pods.retain(|pod| pod.node != name);
        Ok(())
    }

    /// Adds a host outside.
    ///
    /// # Errors
    /// The first thing that went wrong; what was made by then is removed again.
    pub fn add_external(&mut self, external: &External) -> Result<(), Error> {
        if let Err(cause) = self.build_external(external) {
            return Err(undone(cause, std::iter::once(self.remove_external_links(external))));
        }
        self.cluster.externals.push(external.clone());
        Ok(())
    }

    /// Removes a host outside. To remove one that is not there succeeds.
    ///
    /// # Errors
    /// Everything that went wrong; it stays in the cluster then.
    pub fn remove_external(&mut self, name: &str) -> Result<(), Error> {
        if let Some(external) = self.cluster.externals.iter().find(|external| external.name == name) {
            self.remove_external_links(external)?;
        }
        self.cluster.externals.retain(|external| external.name != name);
        Ok(())
    }

    /// Deletes every namespace of the cluster, and with them every link.
    ///
    /// # Errors
    /// Everything that went wrong.
    pub fn delete(&self) -> Result<(), Error> {
        delete_namespaces(&self.cluster.name)
    }

    /// [`Self::build`] without the way back: `built` has the namespaces that were made.
    fn build_all(&self, built: &mut Vec<Netns>) -> Result<(), Error> {
        pod_mtu(&self.cluster)?;
        ground::check_routes(&self.cluster)?;
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
        self.lead_from_fabric(&nodes, &pods)
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
    fn build_external(&self, external: &External) -> Result<(), Error> {
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

    fn remove_external_links(&self, external: &External) -> Result<(), Error> {
        let whole = IpNet::from(external.address);
        let mut inside = Links::open(&self.fabric())?;
        inside.unroute(whole)?;
        inside.forget(WORLD, external.address)?;
        Ok(Links::open(&self.world())?.unaddress(UPLINK, external.address, whole.prefix_len())?)
    }

    /// A node: its uplink, and where its own packets to pods and Services go.
    fn build_node(&self, node: &Node, built: &mut Vec<Netns>) -> Result<(), Error> {
        let settings = &self.cluster.settings;
        if let Some((address, _)) = gateways(settings).find(|(gateway, _)| node.addresses.contains(gateway)) {
            return Err(Error::Gateway { node: node.name.clone(), address });
        }
        let (fabric, netns) = (self.fabric(), noted(self.node(&node.name), built)?);
        netns.set(&NODES)?;
        forward(&netns, self.layout.forwarding)?;
        let (port, own_mac) = (fabric_side(&node.name), mac(node.address()));
        let near = self.end(&fabric, &port, None, settings.mtu);
        let far = self.end(&netns, UPLINK, Some(own_mac), settings.mtu);
        let (mut inside, mut uplink) = self.linked(&near, &far)?;
        let bridged = !fabric::is_emulated(&self.cluster);
        if bridged {
            inside.join(&port, BRIDGE)?;
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
        Ok(())
    }

    /// Tells a node of others, so that it need not ask for their hardware addresses.
    fn introduce<'a>(&self, node: &Node, others: impl IntoIterator<Item = &'a Node>) -> Result<(), Error> {
        let mut links = Links::open(&self.node(&node.name))?;
        for other in others.into_iter().filter(|other| other.name != node.name) {
            for address in &other.addresses {
                links.neighbour(UPLINK, *address, mac(other.address()))?;
            }
        }
        Ok(())
    }

    /// A pod: its namespace, its link to the node, and its one way out.
    fn build_pod(&self, node: &Node, pod: &Pod, built: &mut Vec<Netns>) -> Result<(), Error> {
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
    fn lead_to_pods(&self, node: &Node, pods: &[&Pod]) -> Result<(), Error> {
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
                    links.route(Route::host(address, Next::Via(next, UPLINK)))?;
                }
            }
        }
        Ok(())
    }

    /// Routes on the fabric to what of `nodes` and `pods` it must know a way to.
    fn lead_from_fabric(&self, nodes: &[&Node], pods: &[&Pod]) -> Result<(), Error> {
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

    /// Takes back what [`Self::add_pod`] made, and goes on where something fails.
    fn remove_pod_links(&self, pod: &Pod) -> Result<(), Error> {
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
    fn remove_node_links(&self, node: &Node) -> Result<(), Error> {
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
                node.addresses.iter().try_for_each(|address| links.forget(UPLINK, *address))
            });
            errors.extend(forgotten.err().map(Error::from));
        }
        errors.extend(self.node(&node.name).delete().err().map(Error::from));
        collected(errors)
    }

    /// Adds a pair, switches its offloads, and sees it up; gives both namespaces' links.
    fn linked(&self, near: &End<'_>, far: &End<'_>) -> Result<(Links, Links), Error> {
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

    fn end<'a>(&self, netns: &'a Netns, name: &'a str, mac: Option<Mac>, mtu: u32) -> End<'a> {
        End { netns, name, mac, mtu, gso_max_size: gso_max_size(&self.cluster.settings) }
    }

    fn node_of(&self, pod: &Pod) -> Result<&Node, Error> {
        let found = self.cluster.nodes.iter().find(|node| node.name == pod.node);
        found.ok_or_else(|| Error::Node { pod: pod.id(), node: pod.node.clone() })
    }

    /// The pods that have links of their own.
    fn linked_pods(&self) -> impl Iterator<Item = &Pod> {
        self.cluster.pods.iter().filter(|pod| !pod.host_network)
    }
}

/// The gateway of a pod, or of a node on its way to pods, for the family of this address.
pub fn pod_gateway(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => POD_GATEWAY.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// Deletes every namespace whose name says that it belongs to `cluster`, whoever made it.
///
/// # Errors
/// Everything that went wrong.
pub fn delete_namespaces(cluster: &str) -> Result<(), Error> {
    let all = Netns::list(&format!("podpath-{cluster}-"))?;
    let ours = all.iter().filter(|netns| netns.cluster() == Some(cluster));
    collected(ours.filter_map(|netns| netns.delete().err()).map(Error::from).collect())
}

/// The namespace that a pod of `cluster` lives in.
pub fn pod_netns(cluster: &str, pod: &Pod) -> Netns {
    if pod.host_network {
        return Netns::of(cluster, Part::Node(&pod.node));
    }
    Netns::of(cluster, Part::Pod(&pod.namespace, &pod.name))
}

/// The name of the link in the node's namespace that leads to the pod: `pp` and eleven letters or
/// digits that follow from namespace and name, 13 bytes of the 15 that Linux allows.
pub fn host_side(pod: &Pod) -> String {
    link_name("pp", &pod.id())
}

/// The name of the link in the fabric's namespace that leads to the node of this name: as [`host_side`] makes
/// it, but for its first letters.
pub fn fabric_side(node: &str) -> String {
    link_name("pn", node)
}

/// Two letters, and eleven letters or digits that follow from a name.
fn link_name(kind: &str, name: &str) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let hash = fnv1a(name.as_bytes());
    let digit = |at: u32| char::from(DIGITS[(hash >> (5 * at)) as usize % DIGITS.len()]);
    kind.chars().chain((0..11).map(digit)).collect()
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
fn noted(netns: Netns, built: &mut Vec<Netns>) -> Result<Netns, Error> {
    let netns = create(netns)?;
    built.push(netns.clone());
    Ok(netns)
}

/// Lets the kernel forward between the links of a namespace, or not.
fn forward(netns: &Netns, on: bool) -> Result<(), Error> {
    let value = if on { "1" } else { "0" };
    netns.set(&[("net/ipv4/ip_forward", value)])?;
    if has_v6(netns)? {
        netns.set(&[("net/ipv6/conf/all/forwarding", value)])?;
    }
    Ok(())
}

/// Whether the kernel speaks IPv6.
fn has_v6(netns: &Netns) -> Result<bool, Error> {
    has_setting(netns, "net/ipv6/conf/default")
}

fn has_setting(netns: &Netns, key: &str) -> Result<bool, Error> {
    Ok(netns.run(|| Path::new("/proc/sys").join(key).exists())?)
}

/// Calls `work` for each, up to the first error.
fn each<T>(all: &[T], work: impl FnMut(&T) -> Result<(), Error>) -> Result<(), Error> {
    all.iter().try_for_each(work)
}

/// `cause`, and what went wrong when its traces were removed.
fn undone(cause: Error, steps: impl Iterator<Item = Result<(), Error>>) -> Error {
    let left: Vec<Error> = steps.filter_map(Result::err).collect();
    if left.is_empty() { cause } else { Error::Undo { cause: Box::new(cause), left } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str) -> Pod {
        Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: Default::default(),
            node: "n1".to_owned(),
            addresses: vec![IpAddr::from([10, 244, 1, 5])],
            host_network: false,
            ports: Vec::new(),
            ready: true,
        }
    }

    #[test]
    fn the_name_of_a_pods_link_follows_from_its_name_and_fits() {
        let web = host_side(&pod("default", "web"));
        assert_eq!(web, host_side(&pod("default", "web")));
        assert_ne!(web, host_side(&pod("default", "api")));
        assert!(web.len() <= 15 && web.starts_with("pp"), "{web}");
    }

    #[test]
    fn a_host_network_pod_lives_in_its_nodes_namespace() {
        let agent = Pod { host_network: true, ..pod("kube-system", "agent") };
        assert_eq!(pod_netns("lab", &agent), Netns::of("lab", Part::Node("n1")));
    }

    #[test]
    fn an_undo_that_fails_names_the_cause_and_what_is_left() {
        let cause = Error::Mtu { mtu: 60, overhead: 50, shortest: 68 };
        let left = Error::Node { pod: "a/b".to_owned(), node: "n9".to_owned() };
        let message = undone(cause, std::iter::once(Err(left))).to_string();
        assert!(message.contains("MTU of 60") && message.contains("no node n9"), "{message}");
    }
}
