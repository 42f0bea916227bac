//! Policies of the whole cluster as they are written: `policy.networking.k8s.io`, ClusterNetworkPolicy v1alpha2,
//! AdminNetworkPolicy and BaselineAdminNetworkPolicy v1alpha1.
//!
//! These are custom resources, so no published Rust types exist. Every field is optional here, and lists may be of
//! any length: what must be there, and what it may be, is said in [`read`], so that all of it is told at once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::own::null_as_default;

mod read;

pub(super) use read::{Reading, read};

/// An object of this group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource<Spec> {
    /// Group and version.
    pub api_version: String,
    /// What it is an object of.
    pub kind: String,
    /// Of the cluster: no namespace.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: ObjectMeta,
    /// What it asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<Spec>,
    /// What an implementation had to say; nothing to us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// Of tier Admin or Baseline.
pub type ClusterNetworkPolicy = Resource<ClusterNetworkPolicySpec>;
/// What tier Admin was called before.
pub type AdminNetworkPolicy = Resource<AdminNetworkPolicySpec>;
/// What tier Baseline was called before: one object at most, named `default`.
pub type BaselineAdminNetworkPolicy = Resource<BaselineAdminNetworkPolicySpec>;

/// `ClusterNetworkPolicy`, v1alpha2.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterNetworkPolicySpec {
    /// `Admin` or `Baseline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// 0 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// The pods that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<PodsSpec>,
    /// At most 25.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<ClusterIngressRule>,
    /// At most 25.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<ClusterEgressRule>,
}

/// `AdminNetworkPolicy`, v1alpha1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdminNetworkPolicySpec {
    /// 0 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// The pods that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<PodsSpec>,
    /// At most 100.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<AdminIngressRule>,
    /// At most 100.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<AdminEgressRule>,
}

/// `BaselineAdminNetworkPolicy`, v1alpha1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BaselineAdminNetworkPolicySpec {
    /// The pods that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<PodsSpec>,
    /// At most 100.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<AdminIngressRule>,
    /// At most 100.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<AdminEgressRule>,
}

/// Rules differ in how their two lists are called and in what is in them.
macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident { $peers:ident: $peer:ty, $ports:ident: $port:ty })+) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            /// At most 100 characters.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub name: Option<String>,
            /// What it does.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub action: Option<String>,
            /// One at least.
            #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
            pub $peers: Vec<$peer>,
            /// One at least, if it is there.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub $ports: Option<Vec<$port>>,
        }
    )+ };
}

rules! {
    /// What comes in, v1alpha2: `action` is `Accept`, `Deny` or `Pass`.
    ClusterIngressRule { from: PodsSpec, protocols: ProtocolSpec }
    /// What goes out, v1alpha2.
    ClusterEgressRule { to: PeerSpec, protocols: ProtocolSpec }
    /// What comes in, v1alpha1: `action` is `Allow`, `Deny` or, in AdminNetworkPolicy, `Pass`.
    AdminIngressRule { from: PodsSpec, ports: PortSpec }
    /// What goes out, v1alpha1.
    AdminEgressRule { to: PeerSpec, ports: PortSpec }
}

/// Pods, as a subject and as a peer of either direction: one field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodsSpec {
    /// All pods of such namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Such pods of such namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// Pods by two selectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedPod {
    /// Required in v1alpha1; all namespaces without it in v1alpha2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// A peer of an egress rule: one field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerSpec {
    /// As in [`PodsSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// As in [`PodsSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// Such nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// CIDRs, 1 to 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// Names in the DNS, 1 to 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
}

/// A protocol, v1alpha2: one field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProtocolSpec {
    /// RFC 9293.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TransportSpec>,
    /// RFC 768.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<TransportSpec>,
    /// RFC 9260.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<TransportSpec>,
    /// What the target pod calls so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

/// What is said of a transport protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TransportSpec {
    /// Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<DestinationPort>,
}

/// A port, or several side by side: one field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DestinationPort {
    /// 1 to 65,535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
    /// Both ends included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<RangeSpec>,
}

/// Ports side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RangeSpec {
    /// 1 to 65,535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<i64>,
    /// Above `start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<i64>,
}

/// A port, v1alpha1: one field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortSpec {
    /// By number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_number: Option<PortNumber>,
    /// What the target pod calls so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_port: Option<String>,
    /// Side by side, both ends included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range: Option<PortRange>,
}

/// A port of a protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortNumber {
    /// TCP when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// 1 to 65,535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

/// Ports of a protocol, side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRange {
    /// TCP when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// 1 to 65,535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<i64>,
    /// Above `start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<i64>,
}
