//! podpath's own kinds, `podpath.dev/v1alpha1`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};

/// What the cluster is like beyond its Kubernetes objects. At most one; its name is the cluster's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Testbed {
    /// `podpath.dev/v1alpha1`.
    pub api_version: String,
    /// `Testbed`.
    pub kind: String,
    /// The name is a DNS label of at most 40 bytes; `lab` when left out.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: ObjectMeta,
    /// Every field has a default.
    #[serde(default, deserialize_with = "null_as_default")]
    pub spec: TestbedSpec,
}

/// The choices; see [`super::Settings`] for their meaning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TestbedSpec {
    /// `overlay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A CIDR; 10.240.0.0/16 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_subnet: Option<String>,
    /// A CIDR; 10.244.0.0/16 by default.
    #[serde(rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    pub pod_cidr: Option<String>,
    /// A CIDR; 10.96.0.0/16 by default.
    #[serde(rename = "serviceCIDR", skip_serializing_if = "Option::is_none")]
    pub service_cidr: Option<String>,
    /// Pods a node takes; 250 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pods: Option<i64>,
    /// How many nodes there are where no Node objects say so; 2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i64>,
    /// Bytes; 1500 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// Destinations outside the cluster that are reached with the pod's own address; none by default.
    #[serde(
        rename = "nonMasqueradeCIDRs",
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub non_masquerade_cidrs: Vec<String>,
}

/// A host outside the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct External {
    /// `podpath.dev/v1alpha1`.
    pub api_version: String,
    /// `External`.
    pub kind: String,
    /// Names are unique, as everywhere.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: ObjectMeta,
    /// What it is.
    pub spec: ExternalSpec,
}

/// Where the host is, and what it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExternalSpec {
    /// IPv4 or IPv6.
    pub address: String,
    /// Where it listens; none declared means that it answers on every port.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ExternalPort>,
}

/// A port that a host outside listens on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExternalPort {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// 1 to 65,535.
    pub port: i64,
    /// TCP when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// A field without a value (`spec:`) is a field left out, as in Kubernetes' own kinds.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
