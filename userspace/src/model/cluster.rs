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
}

/// The choices of the `Testbed` object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The networking model.
    pub model: Model,
    /// Where nodes get their addresses.
    pub node_subnet: IpNet,
    /// Where pods get theirs: a /24 for each node. A pod with an address of its own may be outside.
    pub pod_cidr: IpNet,
    /// Where Services get their virtual addresses.
    pub service_cidr: IpNet,
    /// Pods a node takes.
    pub max_pods: u32,
    /// Of the underlay, in bytes; pods get what is left after encapsulation.
    pub mtu: u32,
    /// Destinations outside the cluster that are reached with the pod's own address.
    pub non_masquerade_cidrs: Vec<IpNet>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The node's address on the fabric (`InternalIP`).
    pub address: IpAddr,
    /// The range its pods' addresses come from, where IPAM chooses them; always there in `overlay`. A pod with
    /// an address of its own may have one outside, or in another node's range.
    pub pod_cidr: Option<IpNet>,
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
    /// Its address; the node's own if `host_network`.
    pub address: IpAddr,
    /// It lives in its node's network namespace and has no interface of its own.
    pub host_network: bool,
    /// Declared container ports (init containers' excluded, restartable ones' included).
    pub ports: Vec<ContainerPort>,
    /// It may be an endpoint of a Service.
    pub ready: bool,
}

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
    /// The address clients dial (`spec.clusterIP`, or chosen by IPAM).
    pub address: IpAddr,
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
    /// Ready endpoints, in the order of the pods or EndpointSlices; `targetPort` resolved for each.
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
