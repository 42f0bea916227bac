//! podpath's own kinds, `podpath.dev/v1alpha1`, as they are written.
//!
//! What the fields may be is said where they are read: `choice`, `ranges` and `fabric`; the words, and the bounds that
//! do not depend on other fields, also here, for the schema (`schema`). Comments are what editors show of a field.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::choice::TABLE_SIZES;
use super::schema::{Metadata, Named, PortRange};
use super::settings::Model;
use super::words;
use crate::ipam::{MAX_NODES, MAX_PODS, SNAT_PORTS};

/// Of both kinds.
pub(super) const API_VERSION: &str = "podpath.dev/v1alpha1";

/// What the cluster is like beyond its Kubernetes objects. At most one; its name is the cluster's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Testbed {
    /// `podpath.dev/v1alpha1`.
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// `Testbed`.
    #[schemars(extend("const" = "Testbed"))]
    pub kind: String,
    /// The name is a DNS label of at most 40 bytes; `lab` when left out.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(with = "Metadata")]
    pub metadata: ObjectMeta,
    /// Every field has a default.
    #[serde(default, deserialize_with = "null_as_default")]
    pub spec: TestbedSpec,
}

/// The choices. Every field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(deny_unknown_fields)]
pub struct TestbedSpec {
    /// `overlay` (the default), `flat`, `flat-dynamic` or `kubenet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&Model::ALL)))]
    pub model: Option<String>,
    /// `vxlan` (the default) or `geneve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::ENCAPSULATIONS)))]
    pub encapsulation: Option<String>,
    /// 8472 by default, 6081 with `geneve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub tunnel_port: Option<i64>,
    /// A CIDR; 10.240.0.0/16 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_subnet: Option<String>,
    /// `nodeSubnet` as a list: of one range, or of one of each family.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub node_subnets: Vec<String>,
    /// A CIDR; 10.244.0.0/16 by default.
    #[serde(rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    pub pod_cidr: Option<String>,
    /// `podCIDR` as a list: of one range, or of one of each family.
    #[serde(
        rename = "podCIDRs",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub pod_cidrs: Vec<String>,
    /// What `podCIDR` is called in `flat-dynamic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_subnet: Option<String>,
    /// `podSubnet` as a list: of one range, or of one of each family.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub pod_subnets: Vec<String>,
    /// A CIDR; 10.96.0.0/16 by default.
    #[serde(rename = "serviceCIDR", skip_serializing_if = "Option::is_none")]
    pub service_cidr: Option<String>,
    /// `serviceCIDR` as a list: of one range, or of one of each family.
    #[serde(
        rename = "serviceCIDRs",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub service_cidrs: Vec<String>,
    /// The virtual network; by default the subnets that are in it.
    #[serde(
        rename = "vnetCIDRs",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub vnet_cidrs: Vec<String>,
    /// Pods a node takes; by default 250 in `overlay`, 110 in `kubenet`, 30 in the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PODS))]
    pub max_pods: Option<i64>,
    /// How many nodes there are where no Node objects say so; 2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_NODES))]
    pub nodes: Option<i64>,
    /// Bytes; 1500 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 626, max = 65_535))]
    pub mtu: Option<i64>,
    /// Destinations outside the cluster that are reached with the pod's own address; none by default.
    #[serde(
        rename = "nonMasqueradeCIDRs",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub non_masquerade_cidrs: Vec<String>,
    /// The source ports that may stand for pods outside; 32768 to 60999 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade_ports: Option<PortsSpec>,
    /// How long flows are remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSpec>,
    /// What lies between the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric: Option<FabricSpec>,
    /// How Services are carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<ServicesSpec>,
    /// How policies are carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<PoliciesSpec>,
    /// The cloud's load balancer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSpec>,
}

/// Ports side by side, both ends included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct PortsSpec {
    /// 1 to 65,535.
    #[schemars(range(min = 1, max = 65_535))]
    pub first: i64,
    /// Not below `first`.
    #[schemars(range(min = 1, max = 65_535))]
    pub last: i64,
}

/// How long flows are remembered, as durations: `60s`, `1h30m`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(deny_unknown_fields)]
pub struct TimeoutsSpec {
    /// A TCP connection whose handshake is not over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_opening: Option<String>,
    /// A TCP connection whose handshake is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_established: Option<String>,
    /// A TCP connection that both sides have finished, or one has reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_closed: Option<String>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<String>,
    /// An ICMP echo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
    /// How long the port of a closed TCP connection is given to no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
    /// How long the later fragments of a packet may follow the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment: Option<String>,
}

/// What lies between the nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(deny_unknown_fields)]
pub struct FabricSpec {
    /// `bridge` or `emulator`; by default what the rest needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::FABRICS)))]
    pub kind: Option<String>,
    /// User-defined routes.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteSpec>,
    /// The network security group.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub security_rules: Vec<SecurityRuleSpec>,
    /// Links that are not perfect.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkSpec>,
}

/// A user-defined route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct RouteSpec {
    /// Each once.
    pub name: String,
    /// A CIDR, each once.
    pub prefix: String,
    /// `VirtualAppliance`, `VirtualNetwork`, `Internet` or `None`.
    #[schemars(extend("enum" = words::NEXT_HOPS))]
    pub next_hop_type: String,
    /// That of a node or an External, for `VirtualAppliance` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop_address: Option<String>,
}

/// A rule of the network security group. What is left out is any.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct SecurityRuleSpec {
    /// Each once.
    pub name: String,
    /// 100 to 4096, each once per direction.
    #[schemars(range(min = 100, max = 4096))]
    pub priority: i64,
    /// `Inbound` or `Outbound`.
    #[schemars(extend("enum" = words::of(&words::DIRECTIONS)))]
    pub direction: String,
    /// `Allow` or `Deny`.
    #[schemars(extend("enum" = words::of(&words::ACCESSES)))]
    pub access: String,
    /// `Tcp`, `Udp`, `Icmp` or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::SECURITY_PROTOCOLS)))]
    pub protocol: Option<String>,
    /// Addresses, CIDRs, `VirtualNetwork`, `Internet`, `AzureLoadBalancer` or `*`.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub source_address_prefixes: Vec<String>,
    /// `80`, `8000-8010` or `*`.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<PortRange>")]
    pub source_port_ranges: Vec<IntOrString>,
    /// Addresses, CIDRs, `VirtualNetwork`, `Internet`, `AzureLoadBalancer` or `*`.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub destination_address_prefixes: Vec<String>,
    /// `80`, `8000-8010` or `*`.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<PortRange>")]
    pub destination_port_ranges: Vec<IntOrString>,
}

/// How frames fare on a link, in each direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct LinkSpec {
    /// `node:name` or `ext:name`, each once.
    pub link: String,
    /// A duration up to 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// A duration not above `delay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// A percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// A percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<String>,
    /// A percentage; only with a `delay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reorder: Option<String>,
    /// `100mbit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Frames; 1000 by default. Only with a `rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue: Option<i64>,
    /// 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// How Services are carried out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(deny_unknown_fields)]
pub struct ServicesSpec {
    /// `maglev` (the default) or `random`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::ALGORITHMS)))]
    pub algorithm: Option<String>,
    /// One of ten primes; 16381 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = TABLE_SIZES))]
    pub maglev_table_size: Option<i64>,
    /// 30000 to 32767 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_ports: Option<PortsSpec>,
    /// False by default; needs model `overlay` with `geneve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_return: Option<bool>,
    /// False by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_translation: Option<bool>,
    /// `disabled` (the default) or `native`; needs `fabric.kind` `bridge`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::ACCELERATIONS)))]
    pub acceleration: Option<String>,
}

/// How policies are carried out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(deny_unknown_fields)]
pub struct PoliciesSpec {
    /// False by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<bool>,
    /// `keep` (the default) or `cut`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::ESTABLISHED)))]
    pub established: Option<String>,
    /// `literal` (the default) or `outside`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::IP_BLOCKS)))]
    pub ip_blocks: Option<String>,
}

/// The cloud's load balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(deny_unknown_fields)]
pub struct LoadBalancerSpec {
    /// `tcp` (the default) or `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::PROBES)))]
    pub probe: Option<String>,
    /// A duration; 5s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<String>,
    /// 2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub probe_threshold: Option<i64>,
    /// False by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_affinity: Option<bool>,
    /// `floating-ip` (the default), `node-port` or `ip-in-ip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::of(&words::FORWARDS)))]
    pub forward: Option<String>,
    /// Where public frontends get their addresses: CIDRs, one of each family at most.
    #[serde(
        rename = "frontendCIDRs",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub frontend_cidrs: Vec<String>,
    /// The outbound rule's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_address: Option<String>,
    /// 1024 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8, max = SNAT_PORTS), extend("multipleOf" = 8))]
    pub snat_ports_per_node: Option<i64>,
    /// A duration; 30m by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
}

/// A host outside the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct External {
    /// `podpath.dev/v1alpha1`.
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// `External`.
    #[schemars(extend("const" = "External"))]
    pub kind: String,
    /// Names are unique, as everywhere.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(required, with = "Named")]
    pub metadata: ObjectMeta,
    /// What it is.
    pub spec: ExternalSpec,
}

/// Where the host is, and what it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ExternalSpec {
    /// IPv4 or IPv6.
    pub address: String,
    /// Where it listens; none declared means that it answers on every port.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ExternalPort>,
}

/// A port that a host outside listens on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ExternalPort {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// 1 to 65,535.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i64,
    /// TCP when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = words::PROTOCOLS))]
    pub protocol: Option<String>,
}

/// A field without a value (`spec:`) is a field left out, as in Kubernetes' own kinds.
pub(super) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
