//! What an object states of one pod or one node.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::cluster::{ContainerPort, HostPort};
use super::syntax;

/// The annotation for a pod's share of the flows of each Service that it answers.
pub(super) const WEIGHT: &str = "podpath.dev/weight";
const HEAVIEST: u32 = 100;
/// The annotation of a namespace of whose pods policies only say what they would deny.
pub(super) const AUDIT: &str = "podpath.dev/audit";

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
        None => true,
        Some(conditions) => {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        }
    }
}

/// Of its containers, and of the init containers that go on running beside them.
fn declared(pod: &core::Pod) -> impl Iterator<Item = &core::ContainerPort> {
    let sidecar = |container: &&core::Container| container.restart_policy.as_deref() == Some("Always");
    let spec = pod.spec.iter();
    let containers = spec.flat_map(move |spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar))
    });
    containers.flat_map(|container| container.ports.iter().flatten())
}

/// The ports that its containers declare.
pub(super) fn ports(pod: &core::Pod) -> Vec<ContainerPort> {
    // They have been validated.
    let port = |port: &core::ContainerPort| {
        Some(ContainerPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: syntax::port(port.container_port.into()).ok()?,
            protocol: syntax::protocol(port.protocol.as_deref()).ok()?,
        })
    };
    declared(pod).filter_map(port).collect()
}

/// The ports of its node that it asks for.
pub(super) fn host_ports(pod: &core::Pod) -> Vec<HostPort> {
    // They have been validated.
    let port = |port: &core::ContainerPort| {
        Some(HostPort {
            // Any address of the node is what is meant by none.
            address: host_ip(port).ok()?.filter(|address| !address.is_unspecified()),
            port: syntax::port(port.host_port.filter(|port| *port != 0)?.into()).ok()?,
            protocol: syntax::protocol(port.protocol.as_deref()).ok()?,
            container_port: syntax::port(port.container_port.into()).ok()?,
        })
    };
    declared(pod).filter_map(port).collect()
}

/// `hostIP`, if it is stated.
pub(super) fn host_ip(port: &core::ContainerPort) -> Result<Option<IpAddr>, String> {
    port.host_ip.as_deref().filter(|text| !text.is_empty()).map(syntax::address).transpose()
}

/// Its share of the flows of each Service that it answers, if it states one.
pub(super) fn weight(metadata: &ObjectMeta) -> Result<Option<u32>, String> {
    let Some(text) = metadata.annotations.as_ref().and_then(|all| all.get(WEIGHT)) else {
        return Ok(None);
    };
    let weight = text.parse().ok().filter(|weight| (1..=HEAVIEST).contains(weight));
    weight.map(Some).ok_or_else(|| format!("must be between 1 and {HEAVIEST}, inclusive, not {text:?}"))
}

/// Whether policies only say what they would deny of the pods of this namespace.
pub(super) fn audit(metadata: &ObjectMeta) -> Result<bool, String> {
    let text = metadata.annotations.as_ref().and_then(|all| all.get(AUDIT));
    text.map_or(Ok(false), |text| text.parse().map_err(|_| syntax::unsupported(text, &["false", "true"])))
}

/// The addresses in a list that is led by a field of its own, as `podIPs` is by `podIP`: one of each family
/// at most, and the first of them is that field's.
fn led_list<T: Copy + PartialEq>(
    (name, first): (&str, Option<&str>),
    list: &[&str],
    parse: fn(&str) -> Result<T, String>,
    address: fn(T) -> IpAddr,
) -> Result<Vec<T>, String> {
    let filled = |text: &&&str| !text.is_empty();
    let first = first.filter(|text| !text.is_empty()).map(parse).transpose()?;
    let list = list.iter().filter(filled).map(|text| parse(text)).collect::<Result<Vec<T>, String>>()?;
    match (first, list.first()) {
        (Some(first), Some(other)) if first != *other => {
            Err(format!("the first must match `{name}`: {} is not {}", address(*other), address(first)))
        }
        (Some(first), None) => Ok(vec![first]),
        _ => Ok(list),
    }
}

/// Its addresses, if it has any: one, or one of each family.
pub(super) fn pod_ips(pod: &core::Pod) -> Result<Vec<IpAddr>, String> {
    let Some(status) = &pod.status else {
        return Ok(Vec::new());
    };
    let list: Vec<&str> = status.pod_ips.iter().flatten().map(|address| address.ip.as_str()).collect();
    let found = led_list(("podIP", status.pod_ip.as_deref()), &list, syntax::host_address, |one| one)?;
    syntax::one_per_family(found.iter().copied(), "IP").map(|()| found)
}

/// The addresses of its node, as the pod knows them.
pub(super) fn host_ips(pod: &core::Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let several = status.host_ips.iter().flatten().map(|address| address.ip.as_str());
    let texts: Vec<&str> = status.host_ip.as_deref().into_iter().chain(several).collect();
    let stated = first_of_each(texts.into_iter().filter_map(|text| text.parse().ok()));
    match stated.is_empty() && host_network(pod) {
        true => pod_ips(pod).unwrap_or_default(),
        false => stated,
    }
}

/// The node's addresses inside the cluster, if it states any. It may have several of a family, of which the
/// first counts.
pub(super) fn internal_ips(node: &core::Node) -> Result<Vec<IpAddr>, String> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses.filter(|address| address.type_ == "InternalIP" && !address.address.is_empty());
    let parsed = internal.map(|address| syntax::host_address(&address.address));
    parsed.collect::<Result<Vec<_>, _>>().map(first_of_each)
}

fn first_of_each(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            found.push(address);
        }
    }
    found
}

/// The ranges of its pods, if it has any: one, or one of each family.
pub(super) fn pod_ranges(node: &core::Node) -> Result<Vec<IpNet>, String> {
    let Some(spec) = &node.spec else {
        return Ok(Vec::new());
    };
    let list: Vec<&str> = spec.pod_cidrs.iter().flatten().map(String::as_str).collect();
    let range = |text: &str| syntax::cidr(text).map(|range| range.trunc());
    let found = led_list(("podCIDR", spec.pod_cidr.as_deref()), &list, range, |range| range.addr())?;
    syntax::one_per_family(found.iter().map(IpNet::addr), "CIDR").map(|()| found)
}
