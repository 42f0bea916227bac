//! The cluster that was asked for, with every name, address and port made concrete.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

/// Labels of a Kubernetes object.
pub type Labels = BTreeMap<String, String>;

/// Everything the packet path of a cluster depends on, and nothing else.
///
/// Built by [`super::load`] only, which has checked it: names are unique, references resolve, addresses
/// are distinct, no two ranges overlap. Nodes are inside the node subnet. A pod or Service whose address the
/// input states may be outside of its range, where the input's addresses leave no other way (pods that
/// share a subnet with nodes, say); those that were given an address here are inside. Order is that of the
/// input, so the same input gives the same cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cluster {
    /// The name of the testbed: part of every network namespace's name.
    pub name: String,
    /// Ranges and choices of the `Testbed` object, defaults filled in.
    pub settings: Settings,
    /// Namespaces and their labels, `kubernetes.io/metadata.name` included.
    pub namespaces: BTreeMap<String, Labels>,
    /// At least one.
    pub nodes: Vec<Node>,
    /// Pods that run; finished ones (phase Succeeded or Failed) are left out.
    pub pods: Vec<Pod>,
    /// Services that have something on the packet path, with their endpoints resolved.
    pub services: Vec<Service>,
    /// NetworkPolicies, validated, as they were written: planner and oracle read them each in its own way.
    pub policies: Vec<NetworkPolicy>,
    /// Hosts outside the cluster.
    pub externals: Vec<External>,
    /// What was left out, or assumed, in one sentence each, for the user's eyes.
    pub notes: Vec<String>,
}

/// The networking model: who gives pods their addresses, and how packets pass between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// A /24 per node out of a private pod CIDR; encapsulated between nodes; masqueraded on the way out.
    #[default]
    Overlay,
    /// Pods have addresses of the nodes' subnet, which each node reserves when it joins; routed natively.
    Flat,
    /// Pods have addresses of a subnet of their own, which nodes take in batches; routed natively.
    FlatDynamic,
    /// A /24 per node out of a private pod CIDR; a route table of the fabric knows which node has which;
    /// masqueraded on the way out.
    Kubenet,
}

/// How the `overlay` model wraps packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulation {
    /// RFC 7348.
    #[default]
    Vxlan,
    /// RFC 8926.
    Geneve,
}

/// The choices of the `Testbed` object.
///
/// Ranges are lists, of one range or of one of each family: the first is that of whoever has one address
/// only, and, among the node subnets, that of the underlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The networking model.
    pub model: Model,
    /// How packets are wrapped; of no effect in other models than `overlay`.
    pub encapsulation: Encapsulation,
    /// The UDP port of the tunnel.
    pub tunnel_port: u16,
    /// Where nodes get their addresses; in `flat` pods, too.
    pub node_subnets: Vec<IpNet>,
    /// Where pods get theirs: in `overlay` and `kubenet` a range for each node, in `flat-dynamic` a subnet
    /// for all. In `flat` none. A pod with an address of its own may be outside.
    pub pod_cidrs: Vec<IpNet>,
    /// Where Services get their virtual addresses.
    pub service_cidrs: Vec<IpNet>,
    /// What is reached with a pod's own address in `flat` and `flat-dynamic`: the virtual network, which
    /// holds at least the subnets of nodes and pods.
    pub vnet_cidrs: Vec<IpNet>,
    /// Pods a node takes.
    pub max_pods: u32,
    /// Of the underlay, in bytes; pods get what is left after encapsulation.
    pub mtu: u32,
    /// Destinations outside the cluster that are reached with the pod's own address.
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// The first and the last source port that may stand for a pod outside.
    pub masquerade_ports: (u16, u16),
    /// How long flows are remembered.
    pub timeouts: Timeouts,
    /// What lies between the nodes.
    pub fabric: Fabric,
    /// The cloud's load balancer.
    pub load_balancer: LoadBalancer,
}

/// Seconds without a packet after which a flow is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// A TCP connection whose handshake is not over.
    pub tcp_opening_s: u32,
    /// A TCP connection whose handshake is over.
    pub tcp_s: u32,
    /// A TCP connection that both sides have finished, or one has reset.
    pub tcp_closed_s: u32,
    /// UDP.
    pub udp_s: u32,
    /// An ICMP echo.
    pub icmp_s: u32,
    /// How long the port that stood for a closed TCP connection is given to no other: the time for which
    /// its far end may remember it (TIME_WAIT).
    pub quarantine_s: u32,
    /// How long the later fragments of a packet may follow the first.
    pub fragment_s: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_opening_s: 60,
            tcp_s: 8000,
            tcp_closed_s: 10,
            udp_s: 60,
            icmp_s: 60,
            quarantine_s: 60,
            fragment_s: 30,
        }
    }
}

/// What lies between the nodes and the world.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// Who carries frames in a live cluster. The emulator always has its own.
    pub kind: FabricKind,
    /// User-defined routes: for packets that nodes and pods send. The longest prefix wins, also over what
    /// the fabric knows by itself.
    pub routes: Vec<UserRoute>,
    /// The network security group of every node's interface, by priority.
    pub security_rules: Vec<SecurityRule>,
    /// Links that are not perfect.
    pub links: Vec<LinkQuality>,
}

/// Who carries frames between the namespaces of a live cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FabricKind {
    /// The kernel's bridge and routes: fast, and without any opinion.
    #[default]
    Bridge,
    /// The emulator's fabric in a process of its own: what security rules, user-defined routes, imperfect
    /// links and the load balancer's outbound rule need.
    Emulator,
}

/// A user-defined route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRoute {
    /// For people.
    pub name: String,
    /// For whom it holds.
    pub prefix: IpNet,
    /// Where such packets go.
    pub next_hop: NextHop,
}

/// Where a user-defined route leads. The words are the cloud's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHop {
    /// To the node or external host with this address, which passes them on.
    VirtualAppliance(IpAddr),
    /// To wherever the fabric itself would send them.
    VirtualNetwork,
    /// To the world.
    Internet,
    /// Nowhere.
    None,
}

/// A rule of a network security group. The first that matches, in the order of priorities, decides for a
/// flow's first packet; the flow's others follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityRule {
    /// For people.
    pub name: String,
    /// 100 to 4096, each once per direction; lower comes first.
    pub priority: u16,
    /// To a node's interface, or from it.
    pub direction: Direction,
    /// Whether the flow passes.
    pub allow: bool,
    /// As in the IP header; any if none.
    pub protocol: Option<u8>,
    /// Any of these; any at all if empty.
    pub sources: Vec<IpNet>,
    /// Any of these ranges, both ends in them; any at all if empty.
    pub source_ports: Vec<(u16, u16)>,
    /// As `sources`.
    pub targets: Vec<IpNet>,
    /// As `source_ports`.
    pub target_ports: Vec<(u16, u16)>,
}

/// Seen from a node's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To it.
    Inbound,
    /// From it.
    Outbound,
}

/// How frames fare on the link between a host and the fabric, in each direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkQuality {
    /// `node:name` or `ext:name`.
    pub link: String,
    /// Added to each frame's way.
    pub delay_ns: u64,
    /// At most so much more or less, evenly.
    pub jitter_ns: u64,
    /// Of a million frames, so many are lost.
    pub loss_ppm: u32,
    /// Of a million, so many arrive twice.
    pub duplicate_ppm: u32,
    /// Of a million, so many overtake: they are not delayed.
    pub reorder_ppm: u32,
    /// Bits per second; 0: as fast as they come.
    pub rate_bps: u64,
    /// Frames that wait for their turn where there is a rate; more are lost.
    pub queue: u32,
    /// What chance starts from.
    pub seed: u64,
}

/// The cloud's load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancer {
    /// Between two health probes.
    pub probe_interval_s: u32,
    /// The outbound rule: the public address that nodes have in the world. None: their own.
    pub outbound: Option<IpAddr>,
    /// Source ports of it that each node has, towards each remote address and port.
    pub snat_ports_per_node: u32,
    /// Without a packet, after which a flow's port is free again.
    pub idle_timeout_s: u32,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self { probe_interval_s: 5, outbound: None, snat_ports_per_node: 1024, idle_timeout_s: 1800 }
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The node's addresses on the fabric (`InternalIP`): one, or one of each family. The first is the
    /// tunnel's end.
    pub addresses: Vec<IpAddr>,
    /// The ranges its pods' addresses come from, one of each family, where IPAM chooses them out of such: in
    /// `overlay` and `kubenet`. A pod with an address of its own may have one outside, or in another node's
    /// range.
    pub pod_cidrs: Vec<IpNet>,
}

/// A pod, or a replica that a workload object would create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The name of the node it runs on; always one of [`Cluster::nodes`].
    pub node: String,
    /// Its addresses (`podIPs`): one, or one of each family; the node's own if `host_network`.
    pub addresses: Vec<IpAddr>,
    /// It lives in its node's network namespace and has no interface of its own.
    pub host_network: bool,
    /// Declared container ports (init containers' excluded, restartable ones' included).
    pub ports: Vec<ContainerPort>,
    /// It may be an endpoint of a Service.
    pub ready: bool,
}

/// Who has one address, or one of each family.
macro_rules! addressed {
    ($($name:ident),+) => { $(
        impl $name {
            /// The first address, which is there always: that of whoever is asked for one.
            pub fn address(&self) -> IpAddr {
                self.addresses.first().copied().expect("resolving gives everybody an address")
            }

            /// The address of the same family as `other`.
            pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
                self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4())
            }
        }
    )+ };
}

addressed!(Node, Pod, Service);

impl Pod {
    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A port that a container listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// Named ports are how `targetPort` and policies may speak of it.
    pub name: Option<String>,
    /// 1 to 65,535.
    pub port: u16,
    /// TCP when left out.
    pub protocol: Protocol,
}

/// Transport protocols that Kubernetes knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// The number in an IP header (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A Service with at least one virtual address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The addresses clients dial (`spec.clusterIPs`, or chosen by IPAM): one, or one of each family.
    pub addresses: Vec<IpAddr>,
    /// One entry per `spec.ports`.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// One port of a Service, and who answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Required by Kubernetes where a Service has several ports.
    pub name: Option<String>,
    /// The port clients dial.
    pub port: u16,
    /// TCP when left out.
    pub protocol: Protocol,
    /// Ready endpoints of the Service's families, in the order of the pods or EndpointSlices; `targetPort`
    /// resolved for each.
    pub backends: Vec<Backend>,
}

/// One endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Where it listens.
    pub address: IpAddr,
    /// On which port.
    pub port: u16,
}

/// A host outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// `metadata.name`.
    pub name: String,
    /// Anywhere outside the cluster's ranges.
    pub address: IpAddr,
    /// Where it listens; none declared means that it answers on every port.
    pub ports: Vec<ContainerPort>,
}

/// What objects ask of the ranges before anybody is given an address: what planning goes by.
#[derive(Clone, Debug)]
pub struct Demand {
    /// As [`Cluster::name`].
    pub name: String,
    /// With the ranges that were chosen.
    pub settings: Settings,
    /// Pods a node takes, if the input says so.
    pub max_pods: Option<u32>,
    /// Nodes that there are.
    pub nodes: u64,
    /// Pods with addresses of their own, except for those of DaemonSets.
    pub pods: u64,
    /// Pods that have their node's address, except for those of DaemonSets.
    pub host_pods: u64,
    /// Pods with addresses of their own that each node has because of DaemonSets.
    pub daemons: u64,
    /// Pods with the node's address that each node has because of DaemonSets.
    pub host_daemons: u64,
    /// Services with an IPv4 address, and with an IPv6 address; not the cluster's DNS, which has one of its own.
    pub services: (u64, u64),
    /// As [`Cluster::notes`].
    pub notes: Vec<String>,
}

impl Demand {
    /// Nobody asks for anything.
    pub fn of(settings: Settings) -> Self {
        Self {
            name: "lab".into(),
            settings,
            max_pods: None,
            nodes: 0,
            pods: 0,
            host_pods: 0,
            daemons: 0,
            host_daemons: 0,
            services: (0, 0),
            notes: Vec::new(),
        }
    }
}

impl Cluster {
    /// The pod with this `namespace/name`.
    pub fn pod(&self, id: &str) -> Option<&Pod> {
        let (namespace, name) = id.split_once('/')?;
        self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The Service with this `namespace/name`.
    pub fn service(&self, id: &str) -> Option<&Service> {
        let (namespace, name) = id.split_once('/')?;
        self.services.iter().find(|service| service.namespace == namespace && service.name == name)
    }

    /// The host outside the cluster of this name.
    pub fn external(&self, name: &str) -> Option<&External> {
        self.externals.iter().find(|external| external.name == name)
    }

    /// The pods on a node, in the order of the input.
    pub fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| pod.node == node)
    }
}
