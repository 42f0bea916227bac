//! Services: their virtual addresses, and who answers.
//!
//! Endpoints of a Service, first that applies:
//! 1. its EndpointSlices, if it has any;
//! 2. the pods its selector matches that are ready (all of them with `publishNotReadyAddresses`);
//! 3. none.
//!
//! Only addresses of the Service's families count. Which these are: `ipFamilies`, or those of `clusterIPs`, or
//! the cluster's first; with a policy for two, the other one as well where the cluster has it. Source:
//! Kubernetes, `pkg/registry/core/service/storage/alloc.go`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::cluster::{Backend, Pod, Protocol, Service, ServicePort};
use super::error::Origin;
use super::object::{Object, Objects};
use super::ranges::{Purpose, Ranges};
use super::resolve::{Work, listed};
use super::settings::Model;
use super::syntax;
use crate::ipam::{self, IpFamily, Ipam};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service whose addresses may not be chosen yet.
pub(super) struct ServiceDraft<'a> {
    origin: &'a Origin,
    object: &'a core::Service,
    /// `namespace/name`.
    id: String,
    /// Stated, or as they were before.
    pub(super) addresses: Vec<IpAddr>,
    /// Those that it is reached by, once the cluster's are known.
    pub(super) families: Vec<IpFamily>,
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
        let (addresses, families) = (Vec::new(), Vec::new());
        drafts.push(ServiceDraft { origin: &entry.origin, object, id, addresses, families });
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
    for draft in services.iter_mut() {
        let Some(old) = previous.service(&draft.id) else {
            continue;
        };
        let stated = draft.stated();
        let unstated = |address: &&IpAddr| !stated.iter().any(|other| other.is_ipv4() == address.is_ipv4());
        let kept: Vec<IpAddr> = old.addresses.iter().filter(unstated).copied().collect();
        draft.addresses = work.keep(&kept, &format!("Service {}", draft.id));
    }
}

/// `spec.clusterIPs`.
pub(super) fn state_addresses(work: &mut Work<'_>, services: &mut [ServiceDraft<'_>]) {
    for draft in services.iter_mut() {
        let name = format!("Service {}", draft.id);
        match work.claim_all(draft.stated(), &name) {
            // Those that are stated come first: the first of them is the Service's own.
            Ok(stated) => drop(draft.addresses.splice(0..0, stated)),
            Err(why) => work.faults.of(draft.origin, name).wrong("spec.clusterIP", why),
        }
    }
}

fn without_address(spec: &core::ServiceSpec) -> Option<&'static str> {
    if spec.type_.as_deref() == Some("ExternalName") {
        Some("ExternalName")
    } else if spec.cluster_ip.as_deref() == Some("None") {
        Some("headless")
    } else {
        None
    }
}

fn has_other_ways_in(spec: &core::ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty())
        || spec.session_affinity.as_deref() == Some("ClientIP")
}

impl ServiceDraft<'_> {
    /// It is the cluster's DNS.
    pub(super) fn is_dns(&self) -> bool {
        self.id == ipam::DNS
    }

    /// The addresses that it asks for.
    fn stated(&self) -> Vec<IpAddr> {
        let Some(spec) = &self.object.spec else {
            return Vec::new();
        };
        let several: Vec<IpAddr> =
            spec.cluster_ips.iter().flatten().filter_map(|text| text.parse().ok()).collect();
        match several.is_empty() {
            true => spec.cluster_ip.iter().filter_map(|text| text.parse().ok()).collect(),
            false => several,
        }
    }

    /// The families that it is reached by, in a cluster that has these; or the field that asks for too much.
    fn families_of(&self, cluster: &[IpFamily]) -> Result<Vec<IpFamily>, (String, String)> {
        let spec = self.object.spec.clone().unwrap_or_default();
        let stated: &[String] = spec.ip_families.as_deref().unwrap_or_default();
        let policy = spec.ip_family_policy.as_deref().unwrap_or("SingleStack");
        if policy == "RequireDualStack" && cluster.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            return Err(("spec.ipFamilyPolicy".into(), why.into()));
        }
        let mut families = Vec::new();
        for (i, name) in stated.iter().enumerate() {
            let family = if name == "IPv4" { IpFamily::V4 } else { IpFamily::V6 };
            if !cluster.contains(&family) {
                return Err((
                    format!("spec.ipFamilies[{i}]"),
                    format!("{name} is not configured on this cluster"),
                ));
            }
            families.push(family);
        }
        for (i, address) in self.stated().into_iter().enumerate().skip(families.len()) {
            let family = IpFamily::of(address);
            if !cluster.contains(&family) {
                return Err((
                    format!("spec.clusterIPs[{i}]"),
                    format!("{family} is not configured on this cluster"),
                ));
            }
            families.push(family);
        }
        if families.is_empty() {
            // What it had before leads; a cluster's first family else.
            let first = self.addresses.first().map(|address| IpFamily::of(*address));
            families.extend(first.or(cluster.first().copied()));
        }
        if policy != "SingleStack" {
            let others: Vec<IpFamily> =
                cluster.iter().copied().filter(|family| !families.contains(family)).collect();
            families.extend(others);
        }
        Ok(families)
    }
}

/// Finds the families of each Service, and takes back what it has of others.
pub(super) fn find_families(work: &mut Work<'_>, ranges: &Ranges, services: &mut [ServiceDraft<'_>]) {
    let cluster: Vec<IpFamily> = ranges.services.iter().map(|range| IpFamily::of_range(*range)).collect();
    for service in services {
        match service.families_of(&cluster) {
            Ok(families) => {
                service.addresses.retain(|address| families.contains(&IpFamily::of(*address)));
                service.families = families;
            }
            Err((field, why)) => {
                work.faults.of(service.origin, format!("Service {}", service.id)).wrong(field, why);
            }
        }
    }
}

/// A service range that was stated holds every Service; one that was chosen may not. No other range holds any.
pub(super) fn check_ranges(
    work: &mut Work<'_>,
    (model, stated): (Model, &[IpNet]),
    ranges: &Ranges,
    services: &[ServiceDraft<'_>],
) {
    let mut outside: Vec<(IpNet, Vec<String>)> =
        ranges.services.iter().map(|range| (*range, Vec::new())).collect();
    for service in services {
        for address in &service.addresses {
            let family = IpFamily::of(*address);
            let Some((range, names)) =
                outside.iter_mut().find(|(range, _)| IpFamily::of_range(*range) == family)
            else {
                continue;
            };
            if range.contains(address) {
                continue;
            }
            let mut others = ranges.named(model).filter(|(name, _)| *name != Purpose::Services.name(model));
            let why = match others.find(|(_, other)| other.contains(address)) {
                Some((name, other)) => format!("{address} is inside {name} {other}"),
                None if !stated.is_empty() => format!(
                    "failed to allocate IP {address}: the provided IP is not in the valid range. The range of valid IPs is {range}"
                ),
                None => {
                    names.push(service.id.clone());
                    continue;
                }
            };
            work.faults.of(service.origin, format!("Service {}", service.id)).wrong("spec.clusterIP", why);
        }
    }
    for (range, names) in outside.iter().filter(|(_, names)| !names.is_empty()) {
        let names = listed(names);
        work.notes
            .push(format!("Services with addresses of their own outside serviceCIDR {range}: {names}."));
    }
}

/// An address of each of its families for every Service that has none.
pub(super) fn choose_addresses(
    ipam: &mut Ipam,
    services: &mut [ServiceDraft<'_>],
    ranges: &Ranges,
) -> Result<(), ipam::Error> {
    for service in services.iter_mut() {
        let mut addresses = Vec::new();
        for family in &service.families {
            let known = service.addresses.iter().copied().find(|address| IpFamily::of(*address) == *family);
            let range = family.pick(&ranges.services);
            addresses.push(match (known, range) {
                (Some(address), _) => address,
                (None, Some(range)) => ipam.service(range, &service.id)?,
                (None, None) => continue,
            });
        }
        service.addresses = addresses;
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
            Some(slices) => from_slices(slices, port, protocol, &draft.families),
            // 2. and 3.
            None => {
                let pods = pods.iter().filter(|pod| pod.namespace == namespace);
                from_selector(&spec, port, protocol, pods, &draft.families)
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
                node_port: None,
                backends,
            })
        };
        Service {
            namespace: namespace.into(),
            name: name.into(),
            addresses: draft.addresses.clone(),
            ports: spec.ports.iter().flatten().filter_map(settle_port).collect(),
            ..Service::default()
        }
    };
    services.into_iter().map(settle).collect()
}

/// Every address in an EndpointSlice.
pub(super) fn slice_addresses(objects: &Objects) -> impl Iterator<Item = IpAddr> {
    let slices = objects.iter().filter_map(|entry| match &entry.object {
        Object::EndpointSlice(slice) => Some(slice),
        _ => None,
    });
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse().ok())
}

/// Slices are ordered by name, because the API gives them in no order of meaning; endpoints stay as they are.
fn from_slices(
    slices: &[&EndpointSlice],
    port: &core::ServicePort,
    protocol: Protocol,
    families: &[IpFamily],
) -> Vec<Backend> {
    let ours =
        |slice: &&EndpointSlice| families.iter().any(|family| family.to_string() == slice.address_type);
    let mut slices: Vec<&EndpointSlice> = slices.iter().copied().filter(ours).collect();
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
                backends.push(Backend::new(address, target));
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
    families: &[IpFamily],
) -> Vec<Backend> {
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
        return Vec::new();
    };
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let selected = pods.filter(|pod| pod.ready || unready_too);
    let selected =
        selected.filter(|pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
    let backends = |pod: &'a Pod| {
        let target = target_port(port, protocol, pod);
        let ours = pod.addresses.iter().filter(|address| families.contains(&IpFamily::of(**address)));
        ours.filter_map(move |address| Some(Backend::new(*address, target?)))
    };
    selected.flat_map(backends).collect()
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
