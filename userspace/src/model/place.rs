//! Nodes and pods: which pod is on which node, and what the input says of their addresses.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1 as core;

use super::cluster::{Labels, Node, Pod};
use super::endpoint::did_you_mean;
use super::error::Origin;
use super::object::Object;
use super::own::TestbedSpec;
use super::ranges::Ranges;
use super::resolve::{Work, listed};
use super::stated::{host_ip, host_network, id, internal_ip, node_name, pod_ip, pod_range, ports, ready};
use super::workload::Source;
use crate::ipam::{self, Ipam};

/// Nodes where neither Node objects nor a Testbed say how many.
const NODES: i64 = 2;

/// A node whose address may not be chosen yet.
pub(super) struct NodeDraft<'a> {
    pub(super) name: String,
    labels: Labels,
    object: Option<&'a core::Node>,
    /// What to blame if its address can't be: where that is from, which object, which field of it.
    blame: (Origin, String, &'static str),
    pub(super) address: Option<Ipv4Addr>,
    pub(super) pod_range: Option<Ipv4Net>,
}

/// A pod that may have no node or address yet.
pub(super) struct PodDraft {
    source: Source,
    namespace: String,
    pub(super) name: String,
    node: Option<String>,
    pub(super) address: Option<Ipv4Addr>,
}

/// Pods that have finished have no address any more.
pub(super) fn remove_finished(work: &mut Work<'_>, sources: &mut Vec<Source>) {
    let finished = |source: &Source| {
        let phase = source.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let names: Vec<String> =
        sources.iter().filter(|source| finished(source)).map(|source| id(&source.pod)).collect();
    sources.retain(|source| !finished(source));
    if !names.is_empty() {
        work.notes.push(format!("Left out pods that have finished: {}.", listed(&names)));
    }
}

/// The nodes that there are: those that have objects, or else those that pods name, filled up to as many as
/// are asked for.
pub(super) fn nodes<'a>(
    work: &mut Work<'a>,
    sources: &[Source],
    spec: Option<&TestbedSpec>,
) -> Vec<NodeDraft<'a>> {
    let mut nodes: Vec<NodeDraft<'a>> = Vec::new();
    for entry in work.objects.iter() {
        if let Object::Node(object) = &entry.object {
            let key = entry.object.key();
            let blame = (entry.origin.clone(), key.to_string(), "status.addresses");
            let labels = object.metadata.labels.clone().unwrap_or_default();
            nodes.push(NodeDraft {
                name: key.name,
                labels,
                object: Some(object),
                blame,
                address: None,
                pod_range: None,
            });
        }
    }
    if !nodes.is_empty() {
        return nodes;
    }
    let assumed = |name: String, blame: (Origin, String)| NodeDraft {
        labels: Labels::from([("kubernetes.io/hostname".to_owned(), name.clone())]),
        name,
        object: None,
        blame: (blame.0, blame.1, "status.hostIP"),
        address: None,
        pod_range: None,
    };
    let mut known: HashSet<&str> = HashSet::new();
    for source in sources {
        if let Some(name) = node_name(&source.pod).filter(|name| known.insert(name)) {
            nodes.push(assumed(name.to_owned(), (source.origin.clone(), source.object.clone())));
        }
    }
    let count = spec.and_then(|spec| spec.nodes).unwrap_or(NODES);
    let missing = usize::try_from(count).unwrap_or_default().saturating_sub(nodes.len());
    let names = (1..).map(|number| format!("n{number}")).filter(|name| !known.contains(name.as_str()));
    nodes.extend(names.take(missing).map(|name| assumed(name, Default::default())));
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    work.notes.push(format!("There are no Node objects: assumed nodes {}.", listed(&names)));
    nodes
}

/// Each pod, with the node that it names.
pub(super) fn pods(work: &mut Work<'_>, sources: Vec<Source>, nodes: &[String]) -> Vec<PodDraft> {
    let mut seen: HashMap<String, (Origin, String)> = HashMap::new();
    let mut drafts = Vec::new();
    let known: HashSet<&String> = nodes.iter().collect();
    for source in sources {
        let metadata = &source.pod.metadata;
        let id = id(&source.pod);
        let draft = PodDraft {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            node: node_name(&source.pod).map(str::to_owned),
            address: None,
            source,
        };
        let source = &draft.source;
        if let Some(node) = draft.node.as_ref().filter(|node| !known.contains(node)) {
            let why =
                format!("there is no node {node:?}{}", did_you_mean(node, nodes.iter().map(String::as_str)));
            work.faults
                .of(&source.origin, source.object.clone())
                .wrong(format!("{}spec.nodeName", source.prefix), why);
        }
        if let Some((origin, object)) =
            seen.insert(id.clone(), (source.origin.clone(), source.object.clone()))
        {
            let why = format!("there is a pod {id} already, from {object} ({origin})");
            work.faults.of(&source.origin, source.object.clone()).wrong("metadata.name", why);
        }
        drafts.push(draft);
    }
    drafts
}

/// What nodes and pods had before stays theirs, unless they state something else now.
pub(super) fn keep(work: &mut Work<'_>, nodes: &mut [NodeDraft<'_>], pods: &mut [PodDraft]) {
    let Some(previous) = work.previous else {
        return;
    };
    for node in nodes.iter_mut() {
        let Some(old) = previous.node(&node.name) else {
            continue;
        };
        if node.object.is_none_or(|object| internal_ip(object) == Ok(None)) {
            node.address = work.keep(old.address(), &format!("Node {}", node.name));
        }
        if let (Some(IpNet::V4(range)), true) =
            (old.pod_cidrs.first().copied(), node.object.is_none_or(|object| pod_range(object) == Ok(None)))
        {
            node.pod_range = Some(range);
        }
    }
    let names: HashSet<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let known: HashMap<String, &Pod> = previous.pods.iter().map(|pod| (pod.id(), pod)).collect();
    for pod in pods {
        let Some(old) = known.get(&id(&pod.source.pod)) else {
            continue;
        };
        if names.contains(old.node.as_str()) {
            pod.node.get_or_insert_with(|| old.node.clone());
        }
        let stays = pod.node.as_ref() == Some(&old.node) && pod_ip(&pod.source.pod) == Ok(None);
        if stays && !old.host_network && !host_network(&pod.source.pod) {
            pod.address = work.keep(old.address(), &format!("Pod {}", old.id()));
        }
    }
}

/// `InternalIP`, or what the node's pods say of it (`status.hostIP`).
pub(super) fn state_node_addresses(work: &mut Work<'_>, nodes: &mut [NodeDraft<'_>], pods: &[PodDraft]) {
    let mut host_ips: HashMap<&str, Ipv4Addr> = HashMap::new();
    for source in pods.iter().map(|pod| &pod.source) {
        if let (Some(node), Some(address)) = (node_name(&source.pod), host_ip(&source.pod)) {
            host_ips.entry(node).or_insert(address);
        }
    }
    let mut ranges: Vec<(&str, Ipv4Net)> = Vec::new();
    for node in nodes {
        let (origin, object, address_field) = &node.blame;
        if node.address.is_none() {
            let stated = node.object.map_or(Ok(None), internal_ip);
            let stated = stated.map(|stated| stated.or_else(|| host_ips.get(node.name.as_str()).copied()));
            match stated.and_then(|address| work.claim_v4(address, &format!("Node {}", node.name))) {
                Ok(address) => node.address = address,
                Err(why) => work.faults.of(origin, object.clone()).wrong(*address_field, why),
            }
        }
        let stated = node.object.map_or(Ok(None), pod_range);
        let distinct = stated.and_then(|stated| {
            let Some(range) = stated.or(node.pod_range) else {
                return Ok(None);
            };
            match ranges.iter().find(|(_, other)| ipam::overlap(*other, range)) {
                Some((other, theirs)) => Err(format!("{range} overlaps {theirs} of Node {other}")),
                None => Ok(Some(range)),
            }
        });
        match distinct {
            Ok(range) => node.pod_range = range,
            Err(why) => work.faults.of(origin, object.clone()).wrong("spec.podCIDR", why),
        }
        ranges.extend(node.pod_range.map(|range| (node.name.as_str(), range)));
    }
}

/// `status.podIP`.
pub(super) fn state_pod_addresses(work: &mut Work<'_>, pods: &mut [PodDraft]) {
    for pod in pods.iter_mut().filter(|pod| pod.address.is_none() && !host_network(&pod.source.pod)) {
        let owner = format!("Pod {}", id(&pod.source.pod));
        match pod_ip(&pod.source.pod).and_then(|address| work.claim_v4(address, &owner)) {
            Ok(address) => pod.address = address,
            Err(why) => {
                work.faults.of(&pod.source.origin, pod.source.object.clone()).wrong("status.podIP", why)
            }
        }
    }
}

/// Ranges that were stated may not be where nodes and pods say that they are. (Those that were chosen are.)
pub(super) fn check_ranges(work: &mut Work<'_>, ranges: &Ranges, nodes: &[NodeDraft<'_>], pods: &[PodDraft]) {
    let (subnet, services) = (ranges.node_subnet, ranges.service_cidr);
    for node in nodes {
        let (origin, object, address_field) = &node.blame;
        let mut fields = work.faults.of(origin, object.clone());
        if let Some(address) = node.address.filter(|address| !subnet.contains(address)) {
            fields.wrong(*address_field, format!("{address} is outside nodeSubnet {subnet}"));
        }
        for (name, other) in [("nodeSubnet", subnet), ("serviceCIDR", services)] {
            if let Some(range) = node.pod_range.filter(|range| ipam::overlap(*range, other)) {
                fields.wrong("spec.podCIDR", format!("{range} overlaps {name} {other}"));
            }
        }
    }
    for pod in pods {
        if let Some(address) = pod.address.filter(|address| services.contains(address)) {
            let why =
                format!("{address} is inside serviceCIDR {services}, where only Services have addresses");
            work.faults.of(&pod.source.origin, pod.source.object.clone()).wrong("status.podIP", why);
        }
    }
}

/// What of the pods isn't as the input has it.
pub(super) fn note_pods(work: &mut Work<'_>, pods: &[PodDraft], nodes: &[NodeDraft<'_>], ranges: &Ranges) {
    let nodes: HashMap<&str, Option<Ipv4Addr>> =
        nodes.iter().map(|node| (node.name.as_str(), node.address)).collect();
    let (mut outside, mut moved, mut with_ports) = (Vec::new(), Vec::new(), Vec::new());
    for draft in pods {
        let pod = &draft.source.pod;
        if host_network(pod) {
            let stated = pod_ip(pod).ok().flatten();
            let node = draft.node.as_deref().and_then(|name| nodes.get(name).copied().flatten());
            if stated.is_some() && node.is_some() && stated != node {
                moved.push(id(pod));
            }
            continue;
        }
        if draft.address.is_some_and(|address| !ranges.pod_cidr.contains(&address)) {
            outside.push(id(pod));
        }
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
        if ports.any(|port| port.host_port.is_some_and(|port| port != 0)) {
            with_ports.push(id(pod));
        }
    }
    let notes = [
        (outside, format!("Pods with addresses of their own outside podCIDR {}", ranges.pod_cidr)),
        (moved, "Pods of the host network have the address of their node, not the one stated".into()),
        (with_ports, "Host ports are not on the path, only the pods' own".into()),
    ];
    let notes = notes.iter().filter(|(ids, _)| !ids.is_empty());
    work.notes.extend(notes.map(|(ids, what)| format!("{what}: {}.", listed(ids))));
}

/// What the input leaves open for the nodes: addresses, and where their pods get theirs.
pub(super) fn choose_node_addresses(
    ipam: &mut Ipam,
    nodes: &mut [NodeDraft<'_>],
    ranges: &Ranges,
) -> Result<(), ipam::Error> {
    for range in nodes.iter().filter_map(|node| node.pod_range) {
        ipam.reserve_pod_range(range);
    }
    for node in nodes {
        if node.address.is_none() {
            node.address = Some(ipam.node(ranges.node_subnet, &node.name)?);
        }
        if node.pod_range.is_none() {
            node.pod_range = Some(ipam.pod_range(ranges.pod_cidr, &node.name)?);
        }
    }
    Ok(())
}

/// Every pod without a node goes to the one that has the fewest, the first of these if there are several.
pub(super) fn spread(
    pods: &mut [PodDraft],
    nodes: &[NodeDraft<'_>],
    max_pods: u32,
) -> Result<(), ipam::Error> {
    let mut counts = vec![0_u32; nodes.len()];
    let places: HashMap<&str, usize> =
        nodes.iter().enumerate().map(|(place, node)| (node.name.as_str(), place)).collect();
    for place in pods.iter().filter_map(|pod| places.get(pod.node.as_deref()?)) {
        counts[*place] += 1;
    }
    for pod in pods.iter_mut().filter(|pod| pod.node.is_none()) {
        let emptiest = (0..nodes.len()).min_by_key(|place| counts[*place]);
        let Some(place) = emptiest.filter(|place| counts[*place] < max_pods) else {
            let count = nodes.len() as u64;
            return Err(ipam::Error::NodesFull {
                pod: id(&pod.source.pod),
                nodes: count,
                max_pods,
                capacity: count * u64::from(max_pods),
            });
        };
        counts[place] += 1;
        pod.node = Some(nodes[place].name.clone());
    }
    Ok(())
}

/// An address for every pod that has none: the node's own in the host network, else one of the node's range.
pub(super) fn choose_pod_addresses(
    ipam: &mut Ipam,
    pods: &mut [PodDraft],
    nodes: &[NodeDraft<'_>],
) -> Result<(), ipam::Error> {
    let nodes: HashMap<&str, &NodeDraft<'_>> = nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    for pod in pods.iter_mut().filter(|pod| pod.address.is_none()) {
        let node = pod
            .node
            .as_deref()
            .and_then(|name| nodes.get(name))
            .expect("every pod has been placed on a node that exists");
        pod.address = if host_network(&pod.source.pod) {
            node.address
        } else {
            let range = node.pod_range.expect("every node has been given a pod range");
            Some(ipam.pod(range, &id(&pod.source.pod), &node.name)?)
        };
    }
    Ok(())
}

impl NodeDraft<'_> {
    /// Everything about it has been chosen.
    pub(super) fn settle(self) -> Node {
        Node {
            name: self.name,
            labels: self.labels,
            addresses: vec![self.address.expect("every node has been given an address").into()],
            pod_cidrs: self.pod_range.map(IpNet::V4).into_iter().collect(),
        }
    }
}

impl PodDraft {
    /// Everything about it has been chosen.
    pub(super) fn settle(self) -> Pod {
        let pod = self.source.pod;
        Pod {
            host_network: host_network(&pod),
            ports: ports(&pod),
            ready: ready(&pod),
            namespace: self.namespace,
            name: self.name,
            labels: pod.metadata.labels.unwrap_or_default(),
            node: self.node.expect("every pod has been placed"),
            addresses: vec![self.address.expect("every pod has been given an address").into()],
        }
    }
}
