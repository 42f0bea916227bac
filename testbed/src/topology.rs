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
//! Where Services have frontends at a load balancer, and the fabric is the kernel's, the load balancer has a
//! namespace of its own beside the nodes, on the same bridge.
//!
//! **Invariant:** every link lives in a namespace made here, so deleting these namespaces undoes all.

mod balancer;
mod build;
mod ground;
mod switch;
mod tunnel;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::wire::{Mac, V4};
use userspace::model::{Cluster, External, Node, Pod};

use crate::link;
use crate::netns::{self, Netns, Part, fnv1a};

pub use build::create;
pub use ground::{gso_max_size, mac, overhead, pod_mtu};

/// The fabric's bridge, in its namespace.
pub const BRIDGE: &str = "br0";
/// The fabric's side of the link to the world.
pub const WORLD: &str = "world0";
/// The one link of a pod or of the world, and a node's uplink.
pub const UPLINK: &str = "eth0";
/// The kernel's device of a node that leads to other nodes' pods, where packets between nodes are encapsulated.
pub const TUNNEL: &str = "vxlan0";
/// The fabric's side of the link to the load balancer, a port of the bridge.
pub const BALANCER: &str = "balancer0";
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
    /// The kernel's own tunnel carries what nodes send to each other, where the model is `overlay`.
    pub tunnel: bool,
    /// Somebody on the nodes answers for Services: the fabric leads to their addresses outside of its ranges.
    pub services: bool,
    /// A node's own sockets are led into the path where they dial a port of the node that leads elsewhere: a node port,
    /// or a pod's host port. Otherwise such a packet never leaves the node's stack.
    pub own_ports: bool,
}

impl Layout {
    /// A dataplane hooked into the kernel's links, such as `ebpf`.
    pub const HOOKED: Self = Self {
        answers_arp: true,
        forwarding: false,
        offload: true,
        kernel_routes: false,
        tunnel: false,
        services: true,
        own_ports: false,
    };
    /// A dataplane that reads and writes frames from a process, such as `emulator` and `chains`.
    pub const USERSPACE: Self = Self { offload: false, ..Self::HOOKED };
    /// Plain kernel routing, without encapsulation and without any dataplane: `routed`.
    pub const ROUTED: Self = Self {
        answers_arp: false,
        forwarding: true,
        offload: true,
        kernel_routes: true,
        tunnel: false,
        services: false,
        own_ports: false,
    };
    /// The kernel's routing, its tunnel and its packet filter, such as `iptables` and `nftables`.
    pub const NETFILTER: Self = Self { tunnel: true, services: true, ..Self::ROUTED };
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
    /// The kernel's tunnel is of one kind.
    #[error(
        "cannot build the tunnel between the nodes: `spec.encapsulation` is geneve, and this dataplane has only the kernel's VXLAN device; choose vxlan, or `--dataplane ebpf` or `emulator`"
    )]
    Geneve,
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

    /// The load balancer's namespace. There is none where the fabric is emulated, where the kernel alone routes, or
    /// before there is a frontend.
    pub fn balancer(&self) -> Netns {
        Netns::of(&self.cluster.name, Part::Balancer)
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
        let before = self.own_ports();
        self.cluster.pods.push(pod.clone());
        self.follow_own_ports(&before).map_err(|cause| {
            let taken_back = self.remove_pod(&pod.namespace, &pod.name);
            undone(cause, std::iter::once(taken_back))
        })
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
        let before = self.own_ports();
        self.cluster.pods.retain(|pod| !is_it(pod));
        self.follow_own_ports(&before)
    }

    /// Adds a node: namespace, links, and the ways between it and everybody else. It has no pods yet.
    ///
    /// # Errors
    /// The first thing that went wrong; the node is removed again then.
    pub fn add_node(&mut self, node: &Node) -> Result<(), Error> {
        let before = self.own_ports();
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
            .and_then(|()| self.lead_from_fabric(&[node], &[]))
            .and_then(|()| self.follow_own_ports(&before));
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

    /// Takes over the Services of a cluster that has the same nodes, and leads to the addresses that they have
    /// outside of its ranges. With the first frontend comes the load balancer; it stays when the last one goes.
    ///
    /// # Errors
    /// The first thing that went wrong. The rules for nodes' own ports are as they were then, and it can be tried again.
    pub fn change_services(&mut self, after: &Cluster) -> Result<(), Error> {
        if self.is_balanced(after) && !self.balancer().exists() {
            let mut built = Vec::new();
            if let Err(cause) = self.build_balancer(&mut built) {
                return Err(undone(cause, built.iter().map(|netns| netns.delete().map_err(Error::from))));
            }
        }
        let ways = [&self.cluster, after].map(ground::ways_to_services);
        self.lead_to_services(&ways[0], &ways[1])?;
        let before = self.own_ports();
        let services = std::mem::replace(&mut self.cluster.services, after.services.clone());
        self.follow_own_ports(&before).map_err(|cause| {
            let tried = self.own_ports();
            self.cluster.services = services;
            undone(cause, std::iter::once(self.follow_own_ports(&tried)))
        })
    }

    /// Deletes every namespace of the cluster, and with them every link.
    ///
    /// # Errors
    /// Everything that went wrong.
    pub fn delete(&self) -> Result<(), Error> {
        delete_namespaces(&self.cluster.name)
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
            ..Pod::default()
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
