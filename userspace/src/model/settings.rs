//! The choices of the `Testbed` object, made concrete.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ipam::IpFamily;

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
    /// The family that only hosts outside brought in. Pods and nodes have an address of it to meet such hosts;
    /// between two that have one of another family in common it counts for nothing.
    pub lent: Option<IpFamily>,
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
    /// How Services are carried out.
    pub services: Services,
    /// How policies are.
    pub policies: Policies,
    /// The cloud's load balancer.
    pub load_balancer: LoadBalancer,
}

/// How Services are carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// How a backend is chosen for a new flow.
    pub algorithm: Algorithm,
    /// Slots of a Maglev table: a prime, see `plan::maglev`. A Service with more endpoints than that is good
    /// for has a larger one, one with few has none.
    pub maglev_table_size: u32,
    /// The first and the last node port.
    pub node_ports: (u16, u16),
    /// Answers go straight from the backend's node to a client outside, which is seen by its own address,
    /// instead of back through the node where the packet came in, which stands for the client.
    pub direct_return: bool,
    /// Sockets inside the cluster are connected to a backend right away.
    pub socket_translation: bool,
    /// Where a node meets what comes to it from outside.
    pub acceleration: Acceleration,
}

/// Where a node meets what comes to it from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// Where the kernel has made a packet of it.
    #[default]
    Disabled,
    /// Before that, in the uplink's driver: what only passes through the node, to a backend elsewhere or back from
    /// one, goes out again from there.
    Native,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Maglev,
            maglev_table_size: 16_381,
            node_ports: (30_000, 32_767),
            direct_return: false,
            socket_translation: false,
            acceleration: Acceleration::Disabled,
        }
    }
}

/// How policies are carried out, where Kubernetes leaves it open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// What policies would deny passes, and is noted, for all pods of the cluster.
    pub audit: bool,
    /// What becomes of a flow that was allowed when it began.
    pub established: Established,
    /// Whom an `ipBlock` may match.
    pub ip_blocks: IpBlocks,
}

/// What becomes of a flow that was allowed when it began, and would not be now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// It goes on: policies judge a flow's first packet.
    #[default]
    Keep,
    /// It ends: policies judge every packet.
    Cut,
}

/// Whom an `ipBlock` may match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpBlocks {
    /// Whoever has an address inside.
    #[default]
    Literal,
    /// Whoever has, but no pod with an address of its own: those are matched by their labels only.
    Outside,
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// By the flow's hash: the same on every node, and little changes when endpoints do.
    #[default]
    Maglev,
    /// By chance.
    Random,
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
    /// After so many probes in a row with another outcome, a node counts as healthy, or no longer.
    pub probe_threshold: u32,
    /// How nodes are probed where a Service has no health check node port, which is always asked by HTTP.
    pub probe: Probe,
    /// One client's connections all go to the same node; else each goes where its hash says.
    pub client_affinity: bool,
    /// How packets reach a node.
    pub forward: Forward,
    /// Where frontends get their addresses, one range or one of each family.
    pub frontend_cidrs: Vec<IpNet>,
    /// The outbound rule: the public address that nodes have in the world. None: their own.
    pub outbound: Option<IpAddr>,
    /// Source ports of it that each node has, towards each remote address and port.
    pub snat_ports_per_node: u32,
    /// Without a packet, after which a flow's port is free again.
    pub idle_timeout_s: u32,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self {
            probe_interval_s: 5,
            probe_threshold: 2,
            probe: Probe::Tcp,
            client_affinity: false,
            forward: Forward::FloatingIp,
            frontend_cidrs: Vec::new(),
            outbound: None,
            snat_ports_per_node: 1024,
            idle_timeout_s: 1800,
        }
    }
}

/// How the load balancer probes a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// The Service's node port takes a connection.
    #[default]
    Tcp,
    /// The Service's node port answers a request for `/` with 200.
    Http,
}

/// How the load balancer hands a packet to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forward {
    /// As it is, to the frontend's address and port; the answer does not come through the load balancer.
    #[default]
    FloatingIp,
    /// To the node's address and the Service's node port; the answer comes back through the load balancer.
    NodePort,
    /// As it is, in another IP packet to the node (RFC 2003, RFC 2473); the answer does not come through the
    /// load balancer.
    IpInIp,
}
