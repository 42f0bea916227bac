//! Nodes and pods: which pod is on which node, and what the input says of their addresses.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1 as core;

use super::cluster::{ContainerPort, Labels, Node, Pod};
use super::endpoint::did_you_mean;
use super::error::Origin;
use super::object::Object;
use super::own::TestbedSpec;
use super::ranges::Ranges;
use super::resolve::{Work, listed};
use super::syntax;
use super::workload::Source;
use crate::ipam::{self, Ipam};

/// Nodes where neither Node objects nor a Testbed say how many.
const NODES: i64 = 2;

/// A node whose address may not be chosen yet.
pub(super) struct NodeDraft<'a> {
    pub(super) name: String,
    labels: Labels,
    object: Option<(&'a Origin, &'a core::Node)>,
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

pub(super) fn remove_finished(work: &mut Work<'_>, sources: &mut Vec<Source>) {
    let finished = |source: &Source| {
        let phase = source
            .pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let names: Vec<String> = sources
        .iter()
        .filter(|source| finished(source))
        .map(|source| id(&source.pod))
        .collect();
    sources.retain(|source| !finished(source));
    if !names.is_empty() {
        work.notes.push(format!(
            "Left out pods that have finished: {}.",
            listed(&names)
        ));
    }
}

pub(super) fn nodes<'a>(
    work: &mut Work<'a>,
    sources: &[Source],
    spec: Option<&TestbedSpec>,
) -> Vec<NodeDraft<'a>> {
    let stated = work.objects.iter().filter_map(|entry| match &entry.object {
        Object::Node(node) => Some(NodeDraft {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            object: Some((&entry.origin, node)),
            address: None,
            pod_range: None,
        }),
        _ => None,
    });
    let stated: Vec<NodeDraft<'_>> = stated.collect();
    if !stated.is_empty() {
        return stated;
    }
    let mut names: Vec<String> = Vec::new();
    for name in sources.iter().filter_map(|source| node_name(&source.pod)) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    let count = spec.and_then(|spec| spec.nodes).unwrap_or(NODES);
    for number in 1.. {
        if names.len() as i64 >= count {
            break;
        }
        let name = format!("n{number}");
        if !names.contains(&name) {
            names.push(name);
        }
    }
    work.notes.push(format!(
        "There are no Node objects: assumed nodes {}.",
        listed(&names)
    ));
    let labels =
        |name: &String| Labels::from([("kubernetes.io/hostname".to_owned(), name.clone())]);
    names
        .into_iter()
        .map(|name| NodeDraft {
            labels: labels(&name),
            name,
            object: None,
            address: None,
            pod_range: None,
        })
        .collect()
}

/// `InternalIP`; or what the node's pods say of it (`status.hostIP`); or what it was before.
pub(super) fn state_node_addresses(
    work: &mut Work<'_>,
    nodes: &mut [NodeDraft<'_>],
    sources: &[Source],
) {
    let mut host_ips: HashMap<&str, Ipv4Addr> = HashMap::new();
    for source in sources {
        let host_ip = source
            .pod
            .status
            .as_ref()
            .and_then(|status| status.host_ip.as_deref());
        if let (Some(node), Some(Ok(address))) = (node_name(&source.pod), host_ip.map(str::parse)) {
            host_ips.entry(node).or_insert(address);
        }
    }
    let mut ranges: Vec<(String, Ipv4Net)> = Vec::new();
    for node in nodes {
        let owner = format!("Node {}", node.name);
        let mut wrong = Vec::new();
        if let Some((_, object)) = node.object {
            match internal_ip(object) {
                Ok(address) => node.address = address,
                Err(why) => wrong.push(("status.addresses", why)),
            }
            match pod_range(object) {
                Ok(range) => node.pod_range = range,
                Err(why) => wrong.push(("spec.podCIDR", why)),
            }
        }
        node.address = node
            .address
            .or_else(|| host_ips.get(node.name.as_str()).copied());
        if let Some(previous) = work.previous.and_then(|cluster| cluster.node(&node.name)) {
            node.address = node
                .address
                .or_else(|| ipv4(previous.address).filter(|old| work.is_free((*old).into())));
            node.pod_range = node.pod_range.or(match previous.pod_cidr {
                Some(IpNet::V4(range)) => Some(range),
                _ => None,
            });
        }
        if let Some(Err(why)) = node
            .address
            .map(|address| work.claim(address.into(), &owner))
        {
            wrong.push(("status.addresses", why));
        }
        if let Some(range) = node.pod_range {
            if let Some((other, theirs)) = ranges
                .iter()
                .find(|(_, theirs)| ipam::overlap(*theirs, range))
            {
                wrong.push((
                    "spec.podCIDR",
                    format!("{range} overlaps {theirs} of Node {other}"),
                ));
            }
            ranges.push((node.name.clone(), range));
        }
        if let Some((origin, _)) = node.object {
            let mut fields = work.faults.of(origin, owner);
            wrong
                .into_iter()
                .for_each(|(path, why)| fields.wrong(path, why));
        }
    }
}

pub(super) fn pods(work: &mut Work<'_>, sources: Vec<Source>, nodes: &[String]) -> Vec<PodDraft> {
    let mut seen: HashMap<String, (Origin, String)> = HashMap::new();
    let mut drafts = Vec::new();
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
        if let Some(node) = draft.node.as_ref().filter(|node| !nodes.contains(node)) {
            let why = format!(
                "there is no node {node:?}{}",
                did_you_mean(node, nodes.iter().map(String::as_str))
            );
            work.faults
                .of(&source.origin, source.object.clone())
                .wrong(format!("{}spec.nodeName", source.prefix), why);
        }
        if let Some((origin, object)) =
            seen.insert(id.clone(), (source.origin.clone(), source.object.clone()))
        {
            let why = format!("there is a pod {id} already, from {object} ({origin})");
            work.faults
                .of(&source.origin, source.object.clone())
                .wrong("metadata.name", why);
        }
        drafts.push(draft);
    }
    drafts
}

/// `status.podIP`, and after all of them what pods had before.
pub(super) fn state_pod_addresses(work: &mut Work<'_>, pods: &mut [PodDraft]) {
    for pod in pods.iter_mut().filter(|pod| !host_network(&pod.source.pod)) {
        let stated = pod_ip(&pod.source.pod).and_then(|address| {
            let claimed = address
                .map(|address| work.claim(address.into(), &format!("Pod {}", id(&pod.source.pod))));
            claimed.transpose().map(|_| address)
        });
        match stated {
            Ok(address) => pod.address = address,
            Err(why) => {
                work.faults
                    .of(&pod.source.origin, pod.source.object.clone())
                    .wrong("status.podIP", why);
            }
        }
    }
    let Some(previous) = work.previous else {
        return;
    };
    let known: HashMap<String, &Pod> = previous.pods.iter().map(|pod| (pod.id(), pod)).collect();
    for pod in pods {
        let Some(old) = known.get(&id(&pod.source.pod)) else {
            continue;
        };
        if previous.node(&old.node).is_some() {
            pod.node.get_or_insert_with(|| old.node.clone());
        }
        let stays = pod.node.as_ref() == Some(&old.node) && pod.address.is_none();
        let own = !old.host_network && !host_network(&pod.source.pod);
        if stays
            && own
            && work
                .claim(old.address, &format!("Pod {}", old.id()))
                .is_ok()
        {
            pod.address = ipv4(old.address);
        }
    }
}

/// A node subnet that was stated may not be where the nodes say that they are.
pub(super) fn check_range(
    work: &mut Work<'_>,
    spec: Option<&TestbedSpec>,
    ranges: &Ranges,
    nodes: &[NodeDraft<'_>],
) {
    if spec.is_none_or(|spec| spec.node_subnet.is_none()) {
        return;
    }
    for node in nodes {
        if let (Some((origin, _)), Some(address)) = (node.object, node.address)
            && !ranges.node_subnet.contains(&address)
        {
            let why = format!(
                "{address} is outside the Testbed's nodeSubnet {}",
                ranges.node_subnet
            );
            work.faults
                .of(origin, format!("Node {}", node.name))
                .wrong("status.addresses", why);
        }
    }
}

/// What of the pods isn't as the input has it.
pub(super) fn note_pods(work: &mut Work<'_>, pods: &[PodDraft], ranges: &Ranges) {
    let outside = |pod: &&PodDraft| {
        pod.address
            .is_some_and(|address| !ranges.pod_cidr.contains(&address))
    };
    let outside: Vec<String> = pods
        .iter()
        .filter(|pod| !host_network(&pod.source.pod))
        .filter(outside)
        .map(|pod| id(&pod.source.pod))
        .collect();
    if !outside.is_empty() {
        let names = listed(&outside);
        work.notes.push(format!(
            "Pods with addresses of their own outside podCIDR {}: {names}.",
            ranges.pod_cidr
        ));
    }
    let host_port = |pod: &&PodDraft| {
        let containers = pod.source.pod.spec.iter().flat_map(|spec| &spec.containers);
        containers
            .flat_map(|container| container.ports.iter().flatten())
            .any(|port| port.host_port.is_some_and(|port| port != 0))
    };
    let with_ports: Vec<String> = pods
        .iter()
        .filter(|pod| !host_network(&pod.source.pod))
        .filter(host_port)
        .map(|pod| id(&pod.source.pod))
        .collect();
    if !with_ports.is_empty() {
        work.notes.push(format!(
            "Host ports are not on the path, only the pods' own: {}.",
            listed(&with_ports)
        ));
    }
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
    let places: HashMap<&str, usize> = nodes
        .iter()
        .enumerate()
        .map(|(place, node)| (node.name.as_str(), place))
        .collect();
    for place in pods
        .iter()
        .filter_map(|pod| places.get(pod.node.as_deref()?))
    {
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
    let nodes: HashMap<&str, &NodeDraft<'_>> = nodes
        .iter()
        .map(|node| (node.name.as_str(), node))
        .collect();
    for pod in pods.iter_mut().filter(|pod| pod.address.is_none()) {
        let node = pod
            .node
            .as_deref()
            .and_then(|name| nodes.get(name))
            .expect("every pod has been placed on a node that exists");
        pod.address = if host_network(&pod.source.pod) {
            node.address
        } else {
            let range = node
                .pod_range
                .expect("every node has been given a pod range");
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
            address: self
                .address
                .expect("every node has been given an address")
                .into(),
            pod_cidr: self.pod_range.map(IpNet::V4),
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
            address: self
                .address
                .expect("every pod has been given an address")
                .into(),
        }
    }
}

/// `namespace/name`.
fn id(pod: &core::Pod) -> String {
    let metadata = &pod.metadata;
    format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    )
}

/// Where it was put, if it was.
fn node_name(pod: &core::Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

fn host_network(pod: &core::Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// Its `Ready` condition; a pod about which nobody has reported anything is taken to be ready.
fn ready(pod: &core::Pod) -> bool {
    match pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
    {
        None => true,
        Some(conditions) => conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
    }
}

/// Of its containers, and of the init containers that go on running beside them.
fn ports(pod: &core::Pod) -> Vec<ContainerPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let declared = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
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
        match syntax::address(text)? {
            IpAddr::V4(address) => return Ok(Some(address)),
            IpAddr::V6(address) => other = Some(address),
        }
    }
    match other {
        Some(address) => Err(format!(
            "{address} is IPv6, which is not on the packet path yet: IPv4 only"
        )),
        None => Ok(None),
    }
}

fn pod_ip(pod: &core::Pod) -> Result<Option<Ipv4Addr>, String> {
    let Some(status) = &pod.status else {
        return Ok(None);
    };
    let several = status
        .pod_ips
        .iter()
        .flatten()
        .map(|address| address.ip.as_str());
    first_ipv4(status.pod_ip.as_deref().into_iter().chain(several))
}

fn internal_ip(node: &core::Node) -> Result<Option<Ipv4Addr>, String> {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    first_ipv4(
        addresses
            .filter(|address| address.type_ == "InternalIP")
            .map(|address| address.address.as_str()),
    )
}

fn pod_range(node: &core::Node) -> Result<Option<Ipv4Net>, String> {
    let Some(spec) = &node.spec else {
        return Ok(None);
    };
    let several = spec.pod_cidrs.iter().flatten().map(String::as_str);
    let mut other = None;
    for text in spec
        .pod_cidr
        .as_deref()
        .into_iter()
        .chain(several)
        .filter(|text| !text.is_empty())
    {
        match syntax::cidr(text)? {
            IpNet::V4(range) => return Ok(Some(range.trunc())),
            IpNet::V6(range) => other = Some(range),
        }
    }
    match other {
        Some(range) => Err(format!(
            "{range} is IPv6, which is not on the packet path yet: IPv4 only"
        )),
        None => Ok(None),
    }
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
