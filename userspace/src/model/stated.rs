//! What an object states of one pod or one node.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1 as core;

use super::cluster::ContainerPort;
use super::syntax;

/// `namespace/name`.
pub(super) fn id(pod: &core::Pod) -> String {
    let metadata = &pod.metadata;
    format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    )
}

/// Where it was put, if it was.
pub(super) fn node_name(pod: &core::Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// It shares its node's network namespace.
pub(super) fn host_network(pod: &core::Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// Its `Ready` condition; a pod about which nobody has reported anything is taken to be ready.
pub(super) fn ready(pod: &core::Pod) -> bool {
    match pod.status.as_ref().and_then(|status| status.conditions.as_ref()) {
        // Soon it will not be there.
        _ if pod.metadata.deletion_timestamp.is_some() => false,
        None => true,
        Some(conditions) => {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        }
    }
}

/// Of its containers, and of the init containers that go on running beside them.
pub(super) fn ports(pod: &core::Pod) -> Vec<ContainerPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let declared =
        spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    // They have been validated.
    let port = |port: &core::ContainerPort| {
        Some(ContainerPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: syntax::port(port.container_port.into()).ok()?,
            protocol: syntax::protocol(port.protocol.as_deref()).ok()?,
        })
    };
    declared.filter_map(port).collect()
}

/// The first address of the family that is on the path.
fn first_ipv4<'a>(addresses: impl Iterator<Item = &'a str>) -> Result<Option<Ipv4Addr>, String> {
    let mut other = None;
    for text in addresses.filter(|text| !text.is_empty()) {
        match syntax::host_address(text)? {
            IpAddr::V4(address) => return Ok(Some(address)),
            IpAddr::V6(address) => other = Some(address),
        }
    }
    match other {
        Some(address) => Err(format!("{address} is IPv6, which is not on the packet path yet: IPv4 only")),
        None => Ok(None),
    }
}

/// Its address, if it has one.
pub(super) fn pod_ip(pod: &core::Pod) -> Result<Option<Ipv4Addr>, String> {
    let Some(status) = &pod.status else {
        return Ok(None);
    };
    let several = status.pod_ips.iter().flatten().map(|address| address.ip.as_str());
    first_ipv4(status.pod_ip.as_deref().into_iter().chain(several))
}

/// The address of its node, as the pod knows it.
pub(super) fn host_ip(pod: &core::Pod) -> Option<Ipv4Addr> {
    let stated = pod.status.as_ref().and_then(|status| status.host_ip.as_ref());
    let shared = || host_network(pod).then(|| pod_ip(pod).ok().flatten()).flatten();
    stated.and_then(|text| text.parse().ok()).or_else(shared)
}

/// The node's address inside the cluster, if it says so.
pub(super) fn internal_ip(node: &core::Node) -> Result<Option<Ipv4Addr>, String> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    first_ipv4(
        addresses.filter(|address| address.type_ == "InternalIP").map(|address| address.address.as_str()),
    )
}

/// The range of its pods, if it has one.
pub(super) fn pod_range(node: &core::Node) -> Result<Option<Ipv4Net>, String> {
    let Some(spec) = &node.spec else {
        return Ok(None);
    };
    let several = spec.pod_cidrs.iter().flatten().map(String::as_str);
    let mut other = None;
    for text in spec.pod_cidr.as_deref().into_iter().chain(several).filter(|text| !text.is_empty()) {
        match syntax::cidr(text)? {
            IpNet::V4(range) => return Ok(Some(range.trunc())),
            IpNet::V6(range) => other = Some(range),
        }
    }
    match other {
        Some(range) => Err(format!("{range} is IPv6, which is not on the packet path yet: IPv4 only")),
        None => Ok(None),
    }
}
