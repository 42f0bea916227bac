//! Services: their virtual addresses, and who answers.
//!
//! Endpoints of a Service, first that applies:
//! 1. its EndpointSlices of IPv4 addresses, if it has any slices;
//! 2. the pods its selector matches that are ready (all of them with `publishNotReadyAddresses`);
//! 3. none.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::cluster::{Backend, Pod, Protocol, Service, ServicePort};
use super::error::Origin;
use super::object::{Object, Objects};
use super::own::TestbedSpec;
use super::ranges::Ranges;
use super::resolve::{Work, listed};
use super::syntax;
use crate::ipam::{self, Ipam};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service whose address may not be chosen yet.
pub(super) struct ServiceDraft<'a> {
    origin: &'a Origin,
    object: &'a core::Service,
    /// `namespace/name`.
    id: String,
    stated: Option<Ipv4Addr>,
    pub(super) address: Option<Ipv4Addr>,
}

/// Every Service that has a cluster address, be it stated or to be chosen.
pub(super) fn all<'a>(work: &mut Work<'a>) -> Vec<ServiceDraft<'a>> {
    let (mut drafts, mut left_out, mut more_than_that) = (Vec::new(), Vec::new(), Vec::new());
    for entry in work.objects.iter() {
        let Object::Service(object) = &entry.object else {
            continue;
        };
        let key = entry.object.key();
        let id = format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name);
        let spec = object.spec.clone().unwrap_or_default();
        if let Some(why) = without_address(&spec) {
            left_out.push(format!("{id} ({why})"));
            continue;
        }
        if has_other_ways_in(&spec) {
            more_than_that.push(id.clone());
        }
        drafts.push(ServiceDraft {
            origin: &entry.origin,
            stated: cluster_ip(&spec),
            object,
            id,
            address: None,
        });
    }
    if !left_out.is_empty() {
        work.notes
            .push(format!("Left out Services that have no address on the path: {}.", listed(&left_out)));
    }
    if !more_than_that.is_empty() {
        let names = listed(&more_than_that);
        work.notes.push(format!(
            "Only the cluster address of a Service is on the path, not node ports, load balancers, external addresses or session affinity: {names}."
        ));
    }
    drafts
}

/// What Services had before stays theirs, unless they state something else now.
pub(super) fn keep(work: &mut Work<'_>, services: &mut [ServiceDraft<'_>]) {
    let Some(previous) = work.previous else {
        return;
    };
    for draft in services.iter_mut().filter(|draft| draft.stated.is_none()) {
        let old = previous.service(&draft.id);
        draft.address = old.and_then(|old| work.keep(old.address(), &format!("Service {}", draft.id)));
    }
}

/// `spec.clusterIP`.
pub(super) fn state_addresses(work: &mut Work<'_>, services: &mut [ServiceDraft<'_>]) {
    for draft in services.iter_mut().filter(|draft| draft.address.is_none()) {
        let name = format!("Service {}", draft.id);
        match work.claim_v4(draft.stated, &name) {
            Ok(address) => draft.address = address,
            Err(why) => work.faults.of(draft.origin, name).wrong("spec.clusterIP", why),
        }
    }
}

fn without_address(spec: &core::ServiceSpec) -> Option<&'static str> {
    let family = |text: &str| text.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_ipv6());
    let stated = spec.cluster_ip.as_deref().filter(|text| !text.is_empty());
    if spec.type_.as_deref() == Some("ExternalName") {
        Some("ExternalName")
    } else if stated == Some("None") {
        Some("headless")
    } else if stated.is_some_and(family) && cluster_ip(spec).is_none() {
        Some("IPv6 only")
    } else {
        None
    }
}

fn has_other_ways_in(spec: &core::ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty())
        || spec.session_affinity.as_deref() == Some("ClientIP")
}

/// The first one of the family that is on the path.
fn cluster_ip(spec: &core::ServiceSpec) -> Option<Ipv4Addr> {
    let several = spec.cluster_ips.iter().flatten();
    spec.cluster_ip.iter().chain(several).find_map(|text| text.parse().ok())
}

/// A service range that was stated holds every Service; one that was chosen may not. No other range holds any.
pub(super) fn check_ranges(
    work: &mut Work<'_>,
    spec: Option<&TestbedSpec>,
    ranges: &Ranges,
    services: &[ServiceDraft<'_>],
) {
    let range = ranges.service_cidr;
    let is_stated = spec.is_some_and(|spec| spec.service_cidr.is_some());
    let mut outside = Vec::new();
    for service in services {
        let Some(address) = service.address.filter(|address| !range.contains(address)) else {
            continue;
        };
        let others = [("nodeSubnet", ranges.node_subnet), ("podCIDR", ranges.pod_cidr)];
        let why = match others.iter().find(|(_, other)| other.contains(&address)) {
            Some((name, other)) => format!("{address} is inside {name} {other}"),
            None if is_stated => format!(
                "failed to allocate IP {address}: the provided IP is not in the valid range. The range of valid IPs is {range}"
            ),
            None => {
                outside.push(service.id.clone());
                continue;
            }
        };
        work.faults.of(service.origin, format!("Service {}", service.id)).wrong("spec.clusterIP", why);
    }
    if !outside.is_empty() {
        let names = listed(&outside);
        work.notes
            .push(format!("Services with addresses of their own outside serviceCIDR {range}: {names}."));
    }
}

/// An address for every Service that has none.
pub(super) fn choose_addresses(
    ipam: &mut Ipam,
    services: &mut [ServiceDraft<'_>],
    ranges: &Ranges,
) -> Result<(), ipam::Error> {
    for service in services.iter_mut().filter(|service| service.address.is_none()) {
        service.address = Some(ipam.service(ranges.service_cidr, &service.id)?);
    }
    Ok(())
}

/// Every Service, and who answers it.
pub(super) fn with_endpoints(
    objects: &Objects,
    services: Vec<ServiceDraft<'_>>,
    pods: &[Pod],
) -> Vec<Service> {
    let mut slices: HashMap<String, Vec<&EndpointSlice>> = HashMap::new();
    for entry in objects.iter() {
        let Object::EndpointSlice(slice) = &entry.object else {
            continue;
        };
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(name) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) {
            slices.entry(format!("{namespace}/{name}")).or_default().push(slice);
        }
    }
    let settle = |draft: ServiceDraft<'_>| {
        let spec = draft.object.spec.clone().unwrap_or_default();
        let (namespace, name) = draft.id.split_once('/').expect("an id has both parts");
        let backends = |port: &core::ServicePort, protocol| match slices.get(&draft.id) {
            // 1.
            Some(slices) => from_slices(slices, port, protocol),
            // 2. and 3.
            None => {
                from_selector(&spec, port, protocol, pods.iter().filter(|pod| pod.namespace == namespace))
            }
        };
        // They have been validated.
        let settle_port = |port: &core::ServicePort| {
            let protocol = syntax::protocol(port.protocol.as_deref()).ok()?;
            let mut seen = HashSet::new();
            let mut backends = backends(port, protocol);
            backends.retain(|backend| seen.insert((backend.address, backend.port)));
            Some(ServicePort {
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: syntax::port(port.port.into()).ok()?,
                protocol,
                backends,
            })
        };
        Service {
            namespace: namespace.into(),
            name: name.into(),
            addresses: vec![draft.address.expect("every service has been given an address").into()],
            ports: spec.ports.iter().flatten().filter_map(settle_port).collect(),
        }
    };
    services.into_iter().map(settle).collect()
}

/// Every IPv4 address in an EndpointSlice.
pub(super) fn slice_addresses(objects: &Objects) -> impl Iterator<Item = Ipv4Addr> {
    let slices = objects.iter().filter_map(|entry| match &entry.object {
        Object::EndpointSlice(slice) => Some(slice),
        _ => None,
    });
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse().ok())
}

/// Slices are ordered by name, because the API gives them in no order of meaning; endpoints stay as they are.
fn from_slices(slices: &[&EndpointSlice], port: &core::ServicePort, protocol: Protocol) -> Vec<Backend> {
    let mut slices: Vec<&EndpointSlice> =
        slices.iter().copied().filter(|slice| slice.address_type == "IPv4").collect();
    slices.sort_by_key(|slice| slice.metadata.name.as_deref().unwrap_or_default());
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let mut backends = Vec::new();
    for slice in slices {
        let target = slice.ports.iter().flatten().find(|candidate| {
            name(&candidate.name) == name(&port.name)
                && syntax::protocol(candidate.protocol.as_deref()) == Ok(protocol)
        });
        let Some(Ok(target)) =
            target.and_then(|target| target.port).map(|number| syntax::port(number.into()))
        else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            // Only the first address of an endpoint counts; the others are not used by anybody (KEP-752).
            if let (true, Some(Ok(address))) = (ready, endpoint.addresses.first().map(|text| text.parse())) {
                backends.push(Backend { address, port: target });
            }
        }
    }
    backends
}

fn from_selector<'a>(
    spec: &core::ServiceSpec,
    port: &core::ServicePort,
    protocol: Protocol,
    pods: impl Iterator<Item = &'a Pod>,
) -> Vec<Backend> {
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
        return Vec::new();
    };
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let selected = pods.filter(|pod| pod.ready || unready_too);
    let selected =
        selected.filter(|pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
    let backend =
        |pod: &Pod| Some(Backend { address: pod.address(), port: target_port(port, protocol, pod)? });
    selected.filter_map(backend).collect()
}

/// A name is looked up in each pod; a pod that has no port of that name is no endpoint.
fn target_port(port: &core::ServicePort, protocol: Protocol, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => syntax::port(port.port.into()).ok(),
        Some(IntOrString::Int(number)) => syntax::port((*number).into()).ok(),
        Some(IntOrString::String(name)) => {
            let named = |candidate: &&super::cluster::ContainerPort| {
                candidate.name.as_deref() == Some(name.as_str()) && candidate.protocol == protocol
            };
            pod.ports.iter().find(named).map(|port| port.port)
        }
    }
}
