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
//! Pods and externals hold one address of 32 bits each and reach everything through a gateway; only the
//! nodes and the fabric share a subnet. The fabric knows a way to every pod by way of its node, so that
//! a client outside can dial a pod as if nothing stood between. Hardware addresses follow from IP
//! addresses ([`Mac::of`]), so that a dataplane knows its neighbours without asking.
//!
//! **Invariant:** every link lives in a namespace made here, so deleting these namespaces undoes all.

use std::net::{IpAddr, Ipv4Addr};

use dataplane::wire::{Mac, V4};
use ipnet::{IpNet, Ipv4Net};
use userspace::model::{Cluster, Node, Pod};

use crate::fabric;
use crate::link::{self, End, Links, Next, Route, pair};
use crate::netns::{self, Netns, Part, fnv1a};

/// What encapsulation takes from a packet's length, in bytes: IPv4 20, UDP 8, VXLAN 8, Ethernet 14
/// (RFC 7348).
pub const ENCAPSULATION: u32 = 50;

/// The longest packet a socket may hand down uncut, so that it is still an IP packet when wrapped.
const GSO_MAX_SIZE: u32 = 65_535 - ENCAPSULATION;

/// The shortest MTU that an IPv4 link may have (RFC 791), for pods after encapsulation.
const SHORTEST_MTU: u32 = 68;

/// The fabric's bridge, in its namespace.
const BRIDGE: &str = "br0";
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
    /// It answers pods that ask for their gateway (ARP); otherwise pods know it from the start.
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
    /// Links are built for IPv4.
    #[error(
        "cannot give {whose} the address {address}: links are built for IPv4 only; leave IPv6 out of the cluster"
    )]
    Family {
        /// Whose address it is.
        whose: String,
        /// The address or range.
        address: String,
    },
    /// Nothing is left for pods.
    #[error(
        "cannot build links with an MTU of {mtu}: encapsulation takes 50 of it and IPv4 needs 68; raise `spec.mtu`"
    )]
    Mtu {
        /// As it was asked for, in bytes.
        mtu: u32,
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
        address: Ipv4Addr,
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
                .and_then(|()| self.lead_to_pods_from_fabric(&[pod]));
            if let Err(cause) = added {
                // A namespace that was there before is not ours to delete.
                let taken_back = if built.is_empty() { Ok(()) } else { self.remove_links(pod) };
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
            self.remove_links(pod)?;
        }
        self.cluster.pods.retain(|pod| !is_it(pod));
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
        self.build_fabric(built)?;
        self.build_world(built)?;
        for (number, node) in self.cluster.nodes.iter().enumerate() {
            self.build_node(number, node, built)?;
        }
        if !self.cluster.nodes.is_empty() && !fabric::is_emulated(&self.cluster) {
            // A bridge is up as soon as one of its ports is.
            Links::open(&self.fabric())?.wait_up(BRIDGE)?;
        }
        let pods: Vec<&Pod> = self.cluster.pods.iter().filter(|pod| !pod.host_network).collect();
        for pod in &pods {
            self.build_pod(self.node_of(pod)?, pod, built)?;
        }
        each(&self.cluster.nodes, |node| self.lead_to_pods(node, &pods))?;
        self.lead_to_pods_from_fabric(&pods)
    }

    /// The network between the nodes: one bridge, which is also their gateway.
    fn build_fabric(&self, built: &mut Vec<Netns>) -> Result<(), Error> {
        let fabric = create(self.fabric(), built)?;
        fabric.set(&EVERYWHERE)?;
        if fabric::is_emulated(&self.cluster) {
            // The kernel has no part in it.
            return Ok(fabric.set(&[("net/ipv4/ip_forward", "0")])?);
        }
        fabric.set(&[("net/ipv4/ip_forward", "1")])?;
        // Where the bridge hands its frames to iptables, it would cost time in every measurement.
        let filter = "net/bridge/bridge-nf-call-iptables";
        if fabric.run(|| std::path::Path::new("/proc/sys").join(filter).exists())? {
            fabric.set(&[(filter, "0")])?;
        }
        let (gateway, subnet) = (self.gateway()?, self.node_subnet()?);
        let mut links = Links::open(&fabric)?;
        links.bridge(BRIDGE, mac(gateway), self.mtu()?)?;
        links.address(BRIDGE, gateway, subnet.prefix_len())?;
        links.up(BRIDGE)?;
        Ok(())
    }

    /// Everything outside: one namespace that has all externals' addresses, behind the fabric.
    fn build_world(&self, built: &mut Vec<Netns>) -> Result<(), Error> {
        let (fabric, world) = (self.fabric(), create(self.world(), built)?);
        world.set(&EVERYWHERE)?;
        let (near_mac, far_mac) = (mac(WORLD_GATEWAY), mac(WORLD_SIDE));
        let near = self.end(&fabric, WORLD, Some(near_mac), self.mtu()?);
        let far = self.end(&world, UPLINK, Some(far_mac), self.mtu()?);
        let (mut inside, mut outside) = self.linked(&near, &far)?;
        let bridged = !fabric::is_emulated(&self.cluster);
        if bridged {
            inside.address(WORLD, WORLD_GATEWAY, 32)?;
        }
        outside.neighbour(UPLINK, WORLD_GATEWAY, near_mac)?;
        outside.route(Route::default(Next::Via(WORLD_GATEWAY, UPLINK)))?;
        for external in &self.cluster.externals {
            let address = v4(external.address, || format!("external {}", external.name))?;
            outside.address(UPLINK, address, 32)?;
            if bridged {
                inside.neighbour(WORLD, address, far_mac)?;
                inside.route(Route::host(address, Next::Link(WORLD)))?;
            }
        }
        Ok(())
    }

    /// A node: its uplink, and where its own packets to pods and Services go.
    fn build_node(&self, number: usize, node: &Node, built: &mut Vec<Netns>) -> Result<(), Error> {
        let (gateway, address) = (self.gateway()?, node_address(node)?);
        if address == gateway {
            return Err(Error::Gateway { node: node.name.clone(), address });
        }
        let (fabric, netns) = (self.fabric(), create(self.node(&node.name), built)?);
        netns.set(&EVERYWHERE)?;
        netns.set(&NODES)?;
        netns.set(&[("net/ipv4/ip_forward", if self.layout.forwarding { "1" } else { "0" })])?;
        let port = fabric_port(number);
        let near = self.end(&fabric, &port, None, self.mtu()?);
        let far = self.end(&netns, UPLINK, Some(mac(address)), self.mtu()?);
        let (mut inside, mut uplink) = self.linked(&near, &far)?;
        if !fabric::is_emulated(&self.cluster) {
            inside.join(&port, BRIDGE)?;
            inside.neighbour(BRIDGE, address, mac(address))?;
        }
        uplink.address(UPLINK, address, self.node_subnet()?.prefix_len())?;
        uplink.neighbour(UPLINK, gateway, mac(gateway))?;
        uplink.route(Route::default(Next::Via(gateway, UPLINK)))?;
        if self.layout.kernel_routes {
            return Ok(());
        }
        let near = self.end(&netns, HOST, Some(mac(address)), self.pod_mtu()?);
        let far = self.end(&netns, HOST_PEER, Some(Mac::GATEWAY), self.pod_mtu()?);
        self.linked(&near, &far)?;
        uplink.address(HOST, address, 32)?;
        // All pods are behind one neighbour, as they are for a pod: nothing is asked for.
        uplink.neighbour(HOST, POD_GATEWAY, Mac::GATEWAY)?;
        for range in [self.pod_cidr()?, self.service_cidr()?] {
            uplink.route(Route::net(range, Next::Via(POD_GATEWAY, HOST)).source(address))?;
        }
        Ok(())
    }

    /// A pod: its namespace, its link to the node, and its one way out.
    fn build_pod(&self, node: &Node, pod: &Pod, built: &mut Vec<Netns>) -> Result<(), Error> {
        let (address, host_side) = (pod_address(pod)?, host_side(pod));
        let (node_netns, netns) = (self.node(&node.name), create(self.pod(pod), built)?);
        netns.set(&EVERYWHERE)?;
        netns.set(&PODS)?;
        let near = self.end(&node_netns, &host_side, Some(Mac::GATEWAY), self.pod_mtu()?);
        let far = self.end(&netns, UPLINK, Some(mac(address)), self.pod_mtu()?);
        let (mut inside, mut links) = self.linked(&near, &far)?;
        links.address(UPLINK, address, 32)?;
        links.route(Route::default(Next::Via(POD_GATEWAY, UPLINK)))?;
        if !self.layout.answers_arp {
            links.neighbour(UPLINK, POD_GATEWAY, Mac::GATEWAY)?;
        }
        if self.layout.kernel_routes {
            inside.neighbour(&host_side, address, mac(address))?;
            let source = node_address(node)?;
            inside.route(Route::host(address, Next::Link(&host_side)).source(source))?;
        }
        Ok(())
    }

    /// Routes on a node to those of `pods` that its general routes do not lead to.
    fn lead_to_pods(&self, node: &Node, pods: &[&Pod]) -> Result<(), Error> {
        let mut links = Links::open(&self.node(&node.name))?;
        let source = node_address(node)?;
        for pod in pods {
            let address = pod_address(pod)?;
            if !self.layout.kernel_routes {
                if !self.pod_cidr()?.contains(&address) {
                    links.route(Route::host(address, Next::Via(POD_GATEWAY, HOST)).source(source))?;
                }
            } else if pod.node != node.name {
                let next = node_address(self.node_of(pod)?)?;
                links.route(Route::host(address, Next::Via(next, UPLINK)))?;
            }
        }
        Ok(())
    }

    /// Routes on the fabric to `pods`, by way of their nodes.
    fn lead_to_pods_from_fabric(&self, pods: &[&Pod]) -> Result<(), Error> {
        if fabric::is_emulated(&self.cluster) {
            return Ok(());
        }
        let mut links = Links::open(&self.fabric())?;
        for pod in pods {
            let next = node_address(self.node_of(pod)?)?;
            links.route(Route::host(pod_address(pod)?, Next::Via(next, BRIDGE)))?;
        }
        Ok(())
    }

    /// Takes back what [`Self::add_pod`] made, and goes on where something fails.
    fn remove_links(&self, pod: &Pod) -> Result<(), Error> {
        let to = Ipv4Net::from(pod_address(pod)?);
        let mut errors = Vec::new();
        let places = self.cluster.nodes.iter().map(|node| self.node(&node.name)).chain([self.fabric()]);
        for netns in places {
            // The pod's own node loses the link, and the route to it with the link.
            let removed = Links::open(&netns).and_then(|mut links| {
                links.delete(&host_side(pod))?;
                links.unroute(to)
            });
            errors.extend(removed.err().map(Error::from));
        }
        errors.extend(self.pod(pod).delete().err().map(Error::from));
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
        End { netns, name, mac, mtu, gso_max_size: GSO_MAX_SIZE }
    }

    fn node_of(&self, pod: &Pod) -> Result<&Node, Error> {
        let found = self.cluster.nodes.iter().find(|node| node.name == pod.node);
        found.ok_or_else(|| Error::Node { pod: pod.id(), node: pod.node.clone() })
    }

    fn mtu(&self) -> Result<u32, Error> {
        Ok(self.pod_mtu()? + ENCAPSULATION)
    }

    fn pod_mtu(&self) -> Result<u32, Error> {
        let mtu = self.cluster.settings.mtu;
        let left = mtu.checked_sub(ENCAPSULATION).filter(|left| *left >= SHORTEST_MTU);
        left.ok_or(Error::Mtu { mtu })
    }

    fn node_subnet(&self) -> Result<Ipv4Net, Error> {
        v4_net(self.cluster.settings.node_subnets[0], "the node subnet")
    }

    fn pod_cidr(&self) -> Result<Ipv4Net, Error> {
        v4_net(self.cluster.settings.pod_cidrs[0], "the pods")
    }

    fn service_cidr(&self) -> Result<Ipv4Net, Error> {
        v4_net(self.cluster.settings.service_cidrs[0], "Services")
    }

    /// The fabric's own address: the first usable one of the node subnet.
    fn gateway(&self) -> Result<Ipv4Addr, Error> {
        let subnet = self.node_subnet()?;
        Ok(subnet.hosts().next().unwrap_or(subnet.addr()))
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

/// The fabric's side of the uplink of the node at this place.
pub fn fabric_port(place: usize) -> String {
    format!("n{place}")
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
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let hash = fnv1a(pod.id().as_bytes());
    let digit = |at: u32| char::from(DIGITS[(hash >> (5 * at)) as usize % DIGITS.len()]);
    "pp".chars().chain((0..11).map(digit)).collect()
}

/// Makes the namespace and notes that it is made.
fn create(netns: Netns, built: &mut Vec<Netns>) -> Result<Netns, Error> {
    let netns = Netns::create(netns.name())?;
    built.push(netns.clone());
    Ok(netns)
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

fn mac(address: Ipv4Addr) -> Mac {
    Mac::of(V4(address.octets()))
}

fn v4(address: IpAddr, whose: impl FnOnce() -> String) -> Result<Ipv4Addr, Error> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(Error::Family { whose: whose(), address: address.to_string() }),
    }
}

fn v4_net(range: IpNet, whose: &str) -> Result<Ipv4Net, Error> {
    match range {
        IpNet::V4(range) => Ok(range),
        IpNet::V6(range) => Err(Error::Family { whose: whose.to_owned(), address: range.to_string() }),
    }
}

fn node_address(node: &Node) -> Result<Ipv4Addr, Error> {
    v4(node.address(), || format!("node {}", node.name))
}

fn pod_address(pod: &Pod) -> Result<Ipv4Addr, Error> {
    v4(pod.address(), || format!("pod {}", pod.id()))
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
        let cause = Error::Mtu { mtu: 60 };
        let left = Error::Node { pod: "a/b".to_owned(), node: "n9".to_owned() };
        let message = undone(cause, std::iter::once(Err(left))).to_string();
        assert!(message.contains("MTU of 60") && message.contains("no node n9"), "{message}");
    }
}
