//! Who answers a Service, and in what condition.
//!
//! Source: Kubernetes, `staging/src/k8s.io/endpointslice` (the controller that makes EndpointSlices of pods) and
//! `pkg/proxy/endpointslicecache.go` (what a node makes of them).

use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::cluster::{Backend, ContainerPort, Node, Pod, Protocol, TrafficDistribution};
use super::super::object::{Object, Objects};
use super::super::syntax;
use crate::ipam::IpFamily;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Everybody who may answer a Service, so that each is found without asking all.
pub(super) struct Crowd<'a> {
    /// By the Service's `namespace/name`, ordered by name: the API gives them in no order of meaning.
    slices: HashMap<String, Vec<&'a EndpointSlice>>,
    /// By namespace and each label, in the order of the cluster.
    labelled: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Pod>>,
    /// `namespace/name` by address, of pods that have it to themselves.
    owners: HashMap<IpAddr, String>,
    nodes: HashMap<&'a str, &'a Node>,
    /// Of pods that state one, by `namespace/name`.
    weights: HashMap<String, u32>,
}

/// A port of a Service, and whom it asks for.
pub(super) struct Asked<'a> {
    /// `namespace/name`.
    pub(super) id: &'a str,
    pub(super) spec: &'a core::ServiceSpec,
    /// Only endpoints of these count.
    pub(super) families: &'a [IpFamily],
    pub(super) distribution: Option<TrafficDistribution>,
    pub(super) port: &'a core::ServicePort,
    pub(super) protocol: Protocol,
}

impl<'a> Crowd<'a> {
    pub(super) fn of(
        objects: &'a Objects,
        pods: &'a [Pod],
        nodes: &'a [Node],
        weights: HashMap<String, u32>,
    ) -> Self {
        let mut slices: HashMap<String, Vec<&EndpointSlice>> = HashMap::new();
        for slice in all_slices(objects) {
            slices.entry(service_of(slice)).or_default().push(slice);
        }
        for several in slices.values_mut() {
            several.sort_by_key(|slice| slice.metadata.name.as_deref().unwrap_or_default());
        }
        let mut labelled: HashMap<_, Vec<&Pod>> = HashMap::new();
        for pod in pods {
            for (key, value) in &pod.labels {
                let key = (pod.namespace.as_str(), key.as_str(), value.as_str());
                labelled.entry(key).or_default().push(pod);
            }
        }
        let alone = pods.iter().filter(|pod| !pod.host_network);
        Self {
            slices,
            labelled,
            owners: alone.flat_map(|pod| pod.addresses.iter().map(|one| (*one, pod.id()))).collect(),
            nodes: nodes.iter().map(|node| (node.name.as_str(), node)).collect(),
            weights,
        }
    }

    /// Every endpoint of a service port, each address and port once.
    pub(super) fn backends(&self, asked: &Asked<'_>) -> Vec<Backend> {
        let found = match self.slices.get(asked.id) {
            Some(slices) => self.in_slices(slices, asked),
            None => self.behind_selector(asked),
        };
        let mut places: HashMap<(IpAddr, u16), usize> = HashMap::new();
        let mut backends: Vec<Backend> = Vec::new();
        for backend in found {
            match places.get(&(backend.address, backend.port)) {
                Some(place) => unite(&mut backends[*place], backend),
                None => {
                    places.insert((backend.address, backend.port), backends.len());
                    backends.push(backend);
                }
            }
        }
        backends
    }

    fn in_slices(&self, slices: &[&EndpointSlice], asked: &Asked<'_>) -> Vec<Backend> {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let mut backends = Vec::new();
        for slice in slices {
            if !asked.families.iter().any(|family| family.to_string() == slice.address_type) {
                continue;
            }
            let target = slice.ports.iter().flatten().find(|candidate| {
                name(&candidate.name) == name(&asked.port.name)
                    && syntax::protocol(candidate.protocol.as_deref()) == Ok(asked.protocol)
            });
            let number = target.and_then(|target| target.port).map(|number| syntax::port(number.into()));
            let Some(Ok(port)) = number else {
                continue;
            };
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            let endpoints = slice.endpoints.iter().flatten();
            backends.extend(endpoints.filter_map(|endpoint| self.listed(endpoint, namespace, port)));
        }
        backends
    }

    /// An endpoint as its slice has it.
    fn listed(&self, endpoint: &Endpoint, namespace: &str, port: u16) -> Option<Backend> {
        // Only the first address of an endpoint counts; the others are not used by anybody (KEP-752).
        let address = endpoint.addresses.first()?.parse().ok()?;
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let node = endpoint.node_name.as_deref().and_then(|name| self.nodes.get(name));
        let hints = endpoint.hints.clone().unwrap_or_default();
        let pod = match &endpoint.target_ref {
            Some(target) if target.kind.as_deref() == Some("Pod") => {
                let namespace = target.namespace.as_deref().unwrap_or(namespace);
                Some(format!("{namespace}/{}", target.name.as_deref().unwrap_or_default()))
            }
            _ => self.owners.get(&address).cloned(),
        };
        Some(Backend {
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            node: node.map(|node| node.name.clone()),
            zone: endpoint.zone.clone().or_else(|| node?.zone().map(str::to_owned)),
            for_zones: hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
            for_nodes: hints.for_nodes.into_iter().flatten().map(|node| node.name).collect(),
            weight: pod.map_or(1, |id| self.weight(&id)),
            ..Backend::new(address, port)
        })
    }

    fn weight(&self, pod: &str) -> u32 {
        self.weights.get(pod).copied().unwrap_or(1)
    }

    /// The pods that a Service's selector matches, in the order of the cluster.
    fn selected(&self, asked: &Asked<'_>) -> Vec<&'a Pod> {
        let namespace = asked.id.split_once('/').map_or("", |(namespace, _)| namespace);
        let Some(selector) = &asked.spec.selector else {
            return Vec::new();
        };
        let none = Vec::new();
        let with = selector.iter().map(|(key, value)| {
            self.labelled.get(&(namespace, key.as_str(), value.as_str())).unwrap_or(&none)
        });
        let fewest = with.min_by_key(|pods| pods.len()).unwrap_or(&none);
        let matches = |pod: &&&Pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        fewest.iter().filter(matches).copied().collect()
    }

    fn behind_selector(&self, asked: &Asked<'_>) -> Vec<Backend> {
        let unready_too = asked.spec.publish_not_ready_addresses == Some(true);
        let mut backends = Vec::new();
        for pod in self.selected(asked) {
            let Some(port) = target_port(asked.port, asked.protocol, pod) else {
                continue;
            };
            let zone = self.nodes.get(pod.node.as_str()).and_then(|node| node.zone());
            for address in &pod.addresses {
                if !asked.families.contains(&IpFamily::of(*address)) {
                    continue;
                }
                let mut backend = Backend {
                    ready: unready_too || pod.ready && !pod.terminating,
                    serving: pod.ready,
                    terminating: pod.terminating,
                    node: Some(pod.node.clone()),
                    zone: zone.map(str::to_owned),
                    weight: self.weight(&pod.id()),
                    ..Backend::new(*address, port)
                };
                hint(&mut backend, asked.distribution);
                backends.push(backend);
            }
        }
        backends
    }
}

/// An endpoint that is ready is for the clients beside it. Source: Kubernetes,
/// `staging/src/k8s.io/endpointslice/trafficdist`.
fn hint(backend: &mut Backend, distribution: Option<TrafficDistribution>) {
    if !backend.ready || distribution.is_none() {
        return;
    }
    backend.for_zones.extend(backend.zone.clone());
    if distribution == Some(TrafficDistribution::SameNode) {
        backend.for_nodes.extend(backend.node.clone());
    }
}

/// One endpoint in two slices, which change one after the other: it is what the better of them says.
fn unite(known: &mut Backend, other: Backend) {
    known.ready |= other.ready;
    known.serving |= other.serving;
    known.terminating &= other.terminating;
    known.node = known.node.take().or(other.node);
    known.zone = known.zone.take().or(other.zone);
}

/// A name is looked up in each pod; a pod that has no port of that name is no endpoint.
fn target_port(port: &core::ServicePort, protocol: Protocol, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => syntax::port(port.port.into()).ok(),
        Some(IntOrString::Int(number)) => syntax::port((*number).into()).ok(),
        Some(IntOrString::String(name)) => {
            let named = |candidate: &&ContainerPort| {
                candidate.name.as_deref() == Some(name.as_str()) && candidate.protocol == protocol
            };
            pod.ports.iter().find(named).map(|port| port.port)
        }
    }
}

fn all_slices(objects: &Objects) -> impl Iterator<Item = &EndpointSlice> {
    objects.iter().filter_map(|entry| match &entry.object {
        Object::EndpointSlice(slice) => Some(&**slice),
        _ => None,
    })
}

/// The Service whose endpoints are in a slice; empty names if it says none.
fn service_of(slice: &EndpointSlice) -> String {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    format!("{namespace}/{}", name.map_or("", String::as_str))
}

/// EndpointSlices whose endpoints are names, which nobody looks up on the path.
pub(super) fn of_names(objects: &Objects) -> Vec<String> {
    let named = all_slices(objects).filter(|slice| slice.address_type == "FQDN");
    let id = |slice: &EndpointSlice| {
        let metadata = &slice.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default())
    };
    named.map(id).collect()
}

/// Every address in an EndpointSlice.
pub(super) fn addresses(objects: &Objects) -> impl Iterator<Item = IpAddr> {
    let endpoints = all_slices(objects).flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse().ok())
}
