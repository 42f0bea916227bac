//! Services: their virtual addresses and ports, and who answers.
//!
//! Endpoints of a Service, first that applies:
//! 1. those of its EndpointSlices, if it has any;
//! 2. the pods its selector matches, in the condition that they are in;
//! 3. none.
//!
//! Only addresses of the Service's families count. Which these are: `ipFamilies`, or those of `clusterIPs`, or
//! the cluster's first; with a policy for two, the other one as well where the cluster has it. Source:
//! Kubernetes, `pkg/registry/core/service/storage/alloc.go`.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::cluster::{Node, Pod, Service, ServiceKind, ServicePort, TrafficDistribution, TrafficPolicy};
use super::error::Origin;
use super::object::{Object, Objects};
use super::ranges::{Purpose, Ranges};
use super::resolve::{Work, listed};
use super::settings::{Model, Settings};
use super::syntax;
use crate::ipam::{self, IpFamily, Ipam};

mod endpoints;
mod frontends;
mod node_ports;

pub(super) use frontends::STATIC;

/// How long a client keeps its backend where the Service doesn't say. Source: Kubernetes, `DefaultClientIPServiceAffinitySeconds`.
const AFFINITY_S: u32 = 10_800;
/// Where source ranges were stated before there was a field for them.
pub(super) const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// A Service whose addresses may not be chosen yet.
pub(super) struct ServiceDraft<'a> {
    origin: &'a Origin,
    object: &'a core::Service,
    spec: &'a core::ServiceSpec,
    /// `namespace/name`.
    id: String,
    /// Stated, or as they were before.
    pub(super) addresses: Vec<IpAddr>,
    /// Those that it is reached by, once the cluster's are known.
    pub(super) families: Vec<IpFamily>,
    kind: ServiceKind,
    external_addresses: Vec<IpAddr>,
    frontends: frontends::Frontends,
    /// Of each of its ports.
    node_ports: Vec<Option<u16>>,
    health_check_node_port: Option<u16>,
}

/// Every Service that has a cluster address, be it stated or to be chosen.
pub(super) fn all<'a>(work: &mut Work<'a>) -> Vec<ServiceDraft<'a>> {
    let (mut drafts, mut left_out) = (Vec::new(), Vec::new());
    for entry in work.objects.iter() {
        let Object::Service(object) = &entry.object else {
            continue;
        };
        let key = entry.object.key();
        let id = format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name);
        // It has been validated.
        let Some(spec) = &object.spec else { continue };
        match without_address(spec) {
            Some(why) => left_out.push(format!("{id} ({why})")),
            None => drafts.push(ServiceDraft::new(&entry.origin, (object, spec), id)),
        }
    }
    let of_names = endpoints::of_names(work.objects);
    let notes = [
        (left_out, "Left out Services that have no address on the path"),
        (of_names, "Left out EndpointSlices of names (FQDN), which have no address on the path"),
    ];
    let notes = notes.iter().filter(|(ids, _)| !ids.is_empty());
    work.notes.extend(notes.map(|(ids, what)| format!("{what}: {}.", listed(ids))));
    drafts
}

/// What Services had before stays theirs, unless they state something else now.
pub(super) fn keep(work: &mut Work<'_>, services: &mut [ServiceDraft<'_>]) {
    for draft in services.iter_mut() {
        let Some(old) = work.before(&draft.id) else {
            continue;
        };
        let stated = draft.stated();
        let unstated = |address: &&IpAddr| !stated.iter().any(|other| other.is_ipv4() == address.is_ipv4());
        let kept: Vec<IpAddr> = old.addresses.iter().filter(unstated).copied().collect();
        draft.addresses = work.keep(&kept, &format!("Service {}", draft.id));
    }
    frontends::keep(work, services);
}

/// What Services state: cluster addresses, frontends and external addresses, and node ports, where those that
/// are not stated are chosen as well.
pub(super) fn state(work: &mut Work<'_>, settings: &Settings, services: &mut [ServiceDraft<'_>]) {
    for draft in services.iter_mut() {
        let name = format!("Service {}", draft.id);
        match work.claim_all(draft.stated(), &name) {
            // Those that are stated come first: the first of them is the Service's own.
            Ok(stated) => drop(draft.addresses.splice(0..0, stated)),
            Err(why) => work.faults.of(draft.origin, name).wrong("spec.clusterIP", why),
        }
    }
    frontends::state(work, services);
    node_ports::settle(work, settings, services);
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

impl<'a> ServiceDraft<'a> {
    fn new(
        origin: &'a Origin,
        (object, spec): (&'a core::Service, &'a core::ServiceSpec),
        id: String,
    ) -> Self {
        Self {
            origin,
            object,
            spec,
            id,
            addresses: Vec::new(),
            families: Vec::new(),
            kind: match spec.type_.as_deref() {
                Some("NodePort") => ServiceKind::NodePort,
                Some("LoadBalancer") => ServiceKind::LoadBalancer,
                _ => ServiceKind::ClusterIP,
            },
            external_addresses: Vec::new(),
            frontends: frontends::Frontends::default(),
            node_ports: vec![None; spec.ports.iter().flatten().count()],
            health_check_node_port: None,
        }
    }

    /// Notes what is wrong with one of its fields.
    fn wrong(&self, work: &mut Work<'_>, field: String, why: String) {
        work.faults.of(self.origin, format!("Service {}", self.id)).wrong(field, why);
    }

    fn external_policy(&self) -> TrafficPolicy {
        policy(self.spec.external_traffic_policy.as_deref())
    }

    /// It is the cluster's DNS.
    pub(super) fn is_dns(&self) -> bool {
        self.id == ipam::DNS
    }

    /// The addresses that it asks for.
    fn stated(&self) -> Vec<IpAddr> {
        let spec = self.spec;
        let several: Vec<IpAddr> =
            spec.cluster_ips.iter().flatten().filter_map(|text| text.parse().ok()).collect();
        match several.is_empty() {
            true => spec.cluster_ip.iter().filter_map(|text| text.parse().ok()).collect(),
            false => several,
        }
    }

    /// The families that it is reached by, in a cluster that has these; or the field that asks for too much.
    fn families_of(&self, cluster: &[IpFamily]) -> Result<Vec<IpFamily>, (String, String)> {
        let spec = self.spec;
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
    services: &mut [ServiceDraft<'_>],
) {
    frontends::check_ranges(work, model, ranges, services);
    let mut outside: Vec<(IpNet, Vec<String>)> =
        ranges.services.iter().map(|range| (*range, Vec::new())).collect();
    for service in services.iter() {
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

/// An address of each of its families for every Service that has none, and frontends for those of a load
/// balancer.
pub(super) fn choose_addresses(
    ipam: &mut Ipam,
    services: &mut [ServiceDraft<'_>],
    settings: &Settings,
) -> Result<(), ipam::Error> {
    for service in services.iter_mut() {
        let mut addresses = Vec::new();
        for family in &service.families {
            let known = service.addresses.iter().copied().find(|address| IpFamily::of(*address) == *family);
            let range = family.pick(&settings.service_cidrs);
            addresses.push(match (known, range) {
                (Some(address), _) => address,
                (None, Some(range)) => ipam.service(range, &service.id)?,
                (None, None) => continue,
            });
        }
        service.addresses = addresses;
    }
    frontends::choose(ipam, services, settings)
}

/// Every Service, and who answers it.
pub(super) fn with_endpoints(
    objects: &Objects,
    services: Vec<ServiceDraft<'_>>,
    (pods, nodes): (&[Pod], &[Node]),
    weights: HashMap<String, u32>,
) -> Vec<Service> {
    let crowd = endpoints::Crowd::of(objects, pods, nodes, weights);
    services.into_iter().map(|draft| draft.settle(&crowd)).collect()
}

impl ServiceDraft<'_> {
    fn settle(self, crowd: &endpoints::Crowd<'_>) -> Service {
        let spec = self.spec;
        let (namespace, name) = self.id.split_once('/').expect("an id has both parts");
        let distribution = match spec.traffic_distribution.as_deref() {
            Some("PreferSameNode") => Some(TrafficDistribution::SameNode),
            Some(_) => Some(TrafficDistribution::SameZone),
            None => None,
        };
        // They have been validated.
        let settle_port = |(place, port): (usize, &core::ServicePort)| {
            let protocol = syntax::protocol(port.protocol.as_deref()).ok()?;
            let (id, families) = (self.id.as_str(), self.families.as_slice());
            let asked = endpoints::Asked { id, spec, families, distribution, port, protocol };
            Some(ServicePort {
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: syntax::port(port.port.into()).ok()?,
                protocol,
                node_port: self.node_ports[place],
                backends: crowd.backends(&asked),
            })
        };
        let ports = spec.ports.iter().flatten().enumerate().filter_map(settle_port).collect();
        let outside = self.kind != ServiceKind::ClusterIP || !self.external_addresses.is_empty();
        Service {
            namespace: namespace.into(),
            name: name.into(),
            kind: self.kind,
            external_policy: if outside { self.external_policy() } else { TrafficPolicy::Cluster },
            internal_policy: policy(spec.internal_traffic_policy.as_deref()),
            source_ranges: source_ranges(self.object),
            affinity_s: affinity_s(spec),
            distribution,
            ports,
            health_check_node_port: self.health_check_node_port,
            addresses: self.addresses,
            external_addresses: self.external_addresses,
            internal_load_balancer: self.frontends.internal,
            load_balancer_addresses: self.frontends.addresses,
        }
    }
}

fn policy(stated: Option<&str>) -> TrafficPolicy {
    if stated == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// `spec.loadBalancerSourceRanges`, or the annotation that was there before it.
fn source_ranges(object: &core::Service) -> Vec<IpNet> {
    let (_, texts) = stated_source_ranges(object);
    // They have been validated.
    texts.iter().filter_map(|text| syntax::cidr(text).ok()).map(|range| range.trunc()).collect()
}

/// The field that states who may come by the load balancer, and what it says.
pub(super) fn stated_source_ranges(object: &core::Service) -> (String, Vec<&str>) {
    let field = object.spec.as_ref().and_then(|spec| spec.load_balancer_source_ranges.as_deref());
    if let Some(ranges) = field.filter(|ranges| !ranges.is_empty()) {
        // Blanks around them are passed over, because the annotation may have them.
        return ("spec.loadBalancerSourceRanges".into(), ranges.iter().map(|text| text.trim()).collect());
    }
    let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get(SOURCE_RANGES));
    let text = annotation.map_or("", |text| text.trim());
    let texts = if text.is_empty() { Vec::new() } else { text.split(',').map(str::trim).collect() };
    (format!("metadata.annotations[{SOURCE_RANGES}]"), texts)
}

fn affinity_s(spec: &core::ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let stated = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = stated.and_then(|client| client.timeout_seconds);
    // It has been validated.
    Some(seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_S))
}

/// Every address in an EndpointSlice.
pub(super) fn slice_addresses(objects: &Objects) -> impl Iterator<Item = IpAddr> {
    endpoints::addresses(objects)
}

/// Every address that Services have beside the cluster's ranges.
pub(super) fn outside_addresses(services: &[ServiceDraft<'_>]) -> impl Iterator<Item = IpAddr> {
    services
        .iter()
        .flat_map(|draft| draft.frontends.addresses.iter().chain(&draft.external_addresses))
        .copied()
}
