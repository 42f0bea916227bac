//! The cluster that was asked for, with every name, address and port made concrete.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::tier::ClusterPolicy;

/// Labels of a Kubernetes object.
pub type Labels = BTreeMap<String, String>;

/// Everything the packet path of a cluster depends on, and nothing else.
///
/// Built by [`super::load`] only, which has checked it: names are unique, references resolve, addresses
/// are distinct, no two ranges overlap. Nodes are inside the node subnet. A pod or Service whose address the
/// input states may be outside of its range, where the input's addresses leave no other way (pods that
/// share a subnet with nodes, say); those that were given an address here are inside. Order is that of the
/// input, so the same input gives the same cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Policies of the whole cluster, in the order in which they are asked: by tier, then by priority, then as
    /// in the input.
    pub cluster_policies: Vec<ClusterPolicy>,
    /// Namespaces of whose pods policies only say what they would deny (annotation `podpath.dev/audit: "true"`).
    pub audited: BTreeSet<String>,
    /// Hosts outside the cluster.
    pub externals: Vec<External>,
    /// What was left out, or assumed, in one sentence each, for the user's eyes.
    pub notes: Vec<String>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// It would answer (its condition `Ready`), on its way out or not.
    pub ready: bool,
    /// It is on its way out (`metadata.deletionTimestamp`).
    pub terminating: bool,
    /// Ports of its node that lead to it.
    pub host_ports: Vec<HostPort>,
}

/// A port of a node's address that leads to a container's (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// At this address of the node (`hostIP`); at each of its addresses if none.
    pub address: Option<IpAddr>,
    /// The node's port.
    pub port: u16,
    /// TCP when left out.
    pub protocol: Protocol,
    /// The container's.
    pub container_port: u16,
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

impl Node {
    /// The zone it is in (label `topology.kubernetes.io/zone`), if it says so.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get("topology.kubernetes.io/zone").map(String::as_str)
    }
}

impl Pod {
    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A port that a container listens on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// How far a Service can be reached from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    /// From inside the cluster, by its cluster addresses.
    #[default]
    ClusterIP,
    /// At a port of every node, as well.
    NodePort,
    /// Through the cloud's load balancer, as well.
    LoadBalancer,
}

/// Whose endpoints may answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All of them.
    #[default]
    Cluster,
    /// Those on the node where the packet comes in.
    Local,
}

/// Which endpoints are preferred (`spec.trafficDistribution`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficDistribution {
    /// Those in the client's zone (`PreferSameZone`, `PreferClose`).
    SameZone,
    /// Those on the client's node, else those in its zone (`PreferSameNode`).
    SameNode,
}

/// A Service with at least one virtual address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// The addresses clients dial (`spec.clusterIPs`, or chosen by IPAM): one, or one of each family.
    pub addresses: Vec<IpAddr>,
    /// `spec.externalIPs`: addresses of no range here, which routers outside bring to some node.
    pub external_addresses: Vec<IpAddr>,
    /// The frontends at the cloud's load balancer: stated, as they were, or chosen.
    pub load_balancer_addresses: Vec<IpAddr>,
    /// The load balancer's frontends are in the virtual network, not in the world.
    pub internal_load_balancer: bool,
    /// For clients outside (`spec.externalTrafficPolicy`).
    pub external_policy: TrafficPolicy,
    /// For clients inside (`spec.internalTrafficPolicy`).
    pub internal_policy: TrafficPolicy,
    /// Where each node says whether it has endpoints (`spec.healthCheckNodePort`, or chosen), for a load
    /// balancer with [`TrafficPolicy::Local`].
    pub health_check_node_port: Option<u16>,
    /// Who may come by the load balancer's addresses (`spec.loadBalancerSourceRanges`); everybody if empty.
    pub source_ranges: Vec<IpNet>,
    /// How long a client keeps its backend (`spec.sessionAffinity: ClientIP`); it doesn't if none.
    pub affinity_s: Option<u32>,
    /// Which endpoints are preferred; none in particular if none.
    pub distribution: Option<TrafficDistribution>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Required by Kubernetes where a Service has several ports.
    pub name: Option<String>,
    /// The port clients dial.
    pub port: u16,
    /// TCP when left out.
    pub protocol: Protocol,
    /// The port of every node's address (`nodePort`, or chosen).
    pub node_port: Option<u16>,
    /// Every endpoint of the Service's families, whatever its conditions, in the order of the pods or
    /// EndpointSlices; `targetPort` resolved for each.
    pub backends: Vec<Backend>,
}

impl ServicePort {
    /// The endpoints that are ready.
    pub fn ready(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|backend| backend.ready)
    }
}

/// One endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Where it listens.
    pub address: IpAddr,
    /// On which port.
    pub port: u16,
    /// It may be given connections: it is serving, and not on its way out; or the Service publishes endpoints
    /// that are not ready.
    pub ready: bool,
    /// It would answer.
    pub serving: bool,
    /// It is on its way out. Where no endpoint is ready, those that serve while they go are used.
    pub terminating: bool,
    /// The node it is on, if it is on one of the cluster's.
    pub node: Option<String>,
    /// The zone it is in, if that is known.
    pub zone: Option<String>,
    /// The zones whose clients should use it (`hints.forZones`); all if empty.
    pub for_zones: Vec<String>,
    /// The nodes whose clients should use it (`hints.forNodes`); all if empty.
    pub for_nodes: Vec<String>,
    /// Its share of the flows, against the others' weights: 1 where nobody says otherwise.
    pub weight: u32,
}

impl Backend {
    /// A ready endpoint of which nothing else is known.
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self {
            address,
            port,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
            weight: 1,
        }
    }
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
    /// Frontends of internal load balancers, which have addresses of the node subnets, by family as well.
    pub internal_frontends: (u64, u64),
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
            internal_frontends: (0, 0),
            notes: Vec::new(),
        }
    }
}

impl Cluster {
    /// Whether policies only say what they would deny of a pod of this namespace.
    pub fn audits(&self, namespace: &str) -> bool {
        self.settings.policies.audit || self.audited.contains(namespace)
    }

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

    /// The addresses of Services that are in no range of the cluster, external ones and the load balancer's, each
    /// with the node to which routers outside bring packets for it where no load balancer takes them: the first;
    /// with [`TrafficPolicy::Local`] the first that has an endpoint which is ready, if one has.
    pub fn ways_in(&self) -> BTreeMap<IpAddr, &Node> {
        let way = |service: &Service, address: IpAddr| {
            let mut nodes = self.nodes.iter().filter(|node| node.address_like(address).is_some());
            let answers = |node: &&Node| {
                let mut ready = service.ports.iter().flat_map(ServicePort::ready);
                ready.any(|backend| backend.node.as_ref() == Some(&node.name))
            };
            let first = nodes.clone().next();
            let local = service.external_policy == TrafficPolicy::Local;
            if local { nodes.find(answers).or(first) } else { first }
        };
        let services = self.services.iter().flat_map(|service| {
            let addresses = service.external_addresses.iter().chain(&service.load_balancer_addresses);
            addresses.filter_map(move |address| Some((*address, way(service, *address)?)))
        });
        services.collect()
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
