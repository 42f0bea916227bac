//! Nodes and pods: which pod is on which node, and what the input says of their addresses.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::cluster::{HostPort, Labels, Node, Pod, Protocol};
use super::endpoint::did_you_mean;
use super::error::Origin;
use super::object::Object;
use super::own::TestbedSpec;
use super::ranges::{Purpose, Ranges};
use super::resolve::{Work, listed};
use super::settings::Model;
use super::stated::{
    host_ips, host_network, host_ports, id, internal_ips, node_name, pod_ips, pod_ranges, ports, ready,
    weight,
};
use super::workload::Source;
use crate::ipam::{self, Disjoint, IpFamily};

/// Nodes where neither Node objects nor a Testbed say how many.
const NODES: i64 = 2;

/// A node whose addresses may not be chosen yet.
pub(super) struct NodeDraft<'a> {
    pub(super) name: String,
    labels: Labels,
    object: Option<&'a core::Node>,
    /// What to blame if its address can't be: where that is from, which object, which field of it.
    blame: (Origin, String, &'static str),
    pub(super) addresses: Vec<IpAddr>,
    /// The input says which it has: it gets no others, unless one is lent.
    pub(super) stated: bool,
    pub(super) pod_ranges: Vec<IpNet>,
    /// As `stated`.
    pub(super) ranges_stated: bool,
}

/// A pod that may have no node or address yet.
pub(super) struct PodDraft {
    source: Source,
    namespace: String,
    pub(super) name: String,
    pub(super) node: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    /// The input says which it has: it gets no others, unless one is lent.
    pub(super) stated: bool,
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
            nodes.push(NodeDraft::new(key.name, labels, Some(object), blame));
        }
    }
    if !nodes.is_empty() {
        return nodes;
    }
    let assumed = |name: String, blame: (Origin, String)| {
        let labels = Labels::from([("kubernetes.io/hostname".to_owned(), name.clone())]);
        NodeDraft::new(name, labels, None, (blame.0, blame.1, "status.hostIP"))
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
            addresses: Vec::new(),
            stated: false,
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
    let lent = previous.settings.lent;
    for node in nodes.iter_mut() {
        let Some(old) = previous.node(&node.name) else {
            continue;
        };
        let stated = node.object.map_or(Ok(Vec::new()), internal_ips);
        if stays(lent, stated, &old.addresses) {
            node.addresses = work.keep(&old.addresses, &format!("Node {}", node.name));
        }
        if node.object.is_none_or(|object| pod_ranges(object) == Ok(Vec::new())) {
            node.pod_ranges.clone_from(&old.pod_cidrs);
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
        let lent = lent.filter(|_| !pod.in_full());
        let stays =
            pod.node.as_ref() == Some(&old.node) && stays(lent, pod_ips(&pod.source.pod), &old.addresses);
        if stays && !old.host_network && !pod.host_network() {
            pod.addresses = work.keep(&old.addresses, &format!("Pod {}", old.id()));
        }
    }
}

/// Nothing else is stated than the addresses that somebody had: none, or all but the one that was lent.
fn stays(lent: Option<IpFamily>, stated: Result<Vec<IpAddr>, String>, had: &[IpAddr]) -> bool {
    let own = had.iter().filter(|address| lent != Some(IpFamily::of(**address)));
    stated.is_ok_and(|stated| stated.is_empty() || lent.is_some() && stated.iter().eq(own))
}

/// `InternalIP`, or what the node's pods say of it (`status.hostIPs`); and the ranges of its pods.
pub(super) fn state_node_addresses(
    work: &mut Work<'_>,
    model: Model,
    nodes: &mut [NodeDraft<'_>],
    pods: &[PodDraft],
) {
    let mut known: HashMap<&str, Vec<IpAddr>> = HashMap::new();
    for source in pods.iter().map(|pod| &pod.source) {
        let addresses = host_ips(&source.pod);
        if let (Some(node), false) = (node_name(&source.pod), addresses.is_empty()) {
            known.entry(node).or_insert(addresses);
        }
    }
    let mut ranges: Disjoint<&str> = Disjoint::default();
    let mut ignored = Vec::new();
    for node in nodes {
        let (origin, object, address_field) = &node.blame;
        if node.addresses.is_empty() {
            let stated =
                node.object.map_or(Ok(Vec::new()), internal_ips).map(|stated| match stated.is_empty() {
                    true => known.get(node.name.as_str()).cloned().unwrap_or_default(),
                    false => stated,
                });
            match stated.and_then(|addresses| work.claim_all(addresses, &format!("Node {}", node.name))) {
                Ok(addresses) => node.addresses = addresses,
                Err(why) => work.faults.of(origin, object.clone()).wrong(*address_field, why),
            }
            node.stated = !node.addresses.is_empty();
        }
        let stated = match node.object.map_or(Ok(Vec::new()), pod_ranges) {
            Ok(stated) => stated,
            Err(why) => {
                work.faults.of(origin, object.clone()).wrong("spec.podCIDR", why);
                continue;
            }
        };
        node.ranges_stated = !stated.is_empty();
        if node.ranges_stated {
            node.pod_ranges = stated;
        }
        if matches!(model, Model::Flat | Model::FlatDynamic) {
            if node.ranges_stated {
                ignored.push(node.name.clone());
            }
            node.pod_ranges.clear();
        }
        for range in &node.pod_ranges {
            if let Some((theirs, other)) = ranges.insert(*range, node.name.as_str()) {
                let why = format!("{range} overlaps {theirs} of Node {other}");
                work.faults.of(origin, object.clone()).wrong("spec.podCIDR", why);
            }
        }
    }
    if !ignored.is_empty() {
        work.notes.push(format!(
            "In model {} nodes have no ranges for their pods, so podCIDR means nothing: {}.",
            model.name(),
            listed(&ignored)
        ));
    }
}

/// `status.podIPs`.
pub(super) fn state_pod_addresses(work: &mut Work<'_>, pods: &mut [PodDraft]) {
    for pod in pods.iter_mut().filter(|pod| pod.addresses.is_empty() && !pod.host_network()) {
        let owner = format!("Pod {}", id(&pod.source.pod));
        match pod_ips(&pod.source.pod).and_then(|addresses| work.claim_all(addresses, &owner)) {
            Ok(addresses) => pod.addresses = addresses,
            Err(why) => {
                work.faults.of(&pod.source.origin, pod.source.object.clone()).wrong("status.podIP", why)
            }
        }
        pod.stated = !pod.addresses.is_empty();
    }
}

/// Ranges that were stated may not be where nodes and pods say that they are. (Those that were chosen are.)
pub(super) fn check_ranges(work: &mut Work<'_>, ranges: &Ranges, nodes: &[NodeDraft<'_>], pods: &[PodDraft]) {
    let inside = |ranges: &[IpNet], address: IpAddr| ranges.iter().any(|range| range.contains(&address));
    for node in nodes {
        let (origin, object, address_field) = &node.blame;
        let mut fields = work.faults.of(origin, object.clone());
        for address in node.addresses.iter().filter(|address| !inside(&ranges.nodes, **address)) {
            let subnets = listed(&ranges.nodes.iter().map(IpNet::to_string).collect::<Vec<_>>());
            fields.wrong(*address_field, format!("{address} is outside nodeSubnet {subnets}"));
        }
        let others = ranges.nodes.iter().map(|range| ("nodeSubnet", range));
        for (name, other) in others.chain(ranges.services.iter().map(|range| ("serviceCIDR", range))) {
            for range in node.pod_ranges.iter().filter(|range| ipam::overlap(**range, *other)) {
                fields.wrong("spec.podCIDR", format!("{range} overlaps {name} {other}"));
            }
        }
    }
    for pod in pods {
        for address in &pod.addresses {
            if let Some(services) = ranges.services.iter().find(|services| services.contains(address)) {
                let why =
                    format!("{address} is inside serviceCIDR {services}, where only Services have addresses");
                work.faults.of(&pod.source.origin, pod.source.object.clone()).wrong("status.podIP", why);
            }
        }
    }
}

/// What of the pods isn't as the input has it.
pub(super) fn note_pods(
    work: &mut Work<'_>,
    pods: &[PodDraft],
    nodes: &[NodeDraft<'_>],
    (model, ranges): (Model, &Ranges),
) {
    let nodes: HashMap<&str, &[IpAddr]> =
        nodes.iter().map(|node| (node.name.as_str(), node.addresses.as_slice())).collect();
    let purpose = if model == Model::Flat { Purpose::Nodes } else { Purpose::Pods };
    let of_pods = ranges.of(purpose);
    let (mut outside, mut moved) = (Vec::new(), Vec::new());
    for draft in pods {
        let pod = &draft.source.pod;
        if draft.host_network() {
            let stated = pod_ips(pod).unwrap_or_default();
            let node = draft.node.as_deref().and_then(|name| nodes.get(name)).copied().unwrap_or_default();
            if !node.is_empty() && !stated.iter().all(|address| node.contains(address)) {
                moved.push(id(pod));
            }
            continue;
        }
        if !draft.addresses.iter().all(|address| of_pods.iter().any(|range| range.contains(address))) {
            outside.push(id(pod));
        }
    }
    let all = of_pods.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
    let notes = [
        (outside, format!("Pods with addresses of their own outside {} {all}", purpose.name(model))),
        (moved, "Pods of the host network have the address of their node, not the one stated".into()),
    ];
    let notes = notes.iter().filter(|(ids, _)| !ids.is_empty());
    work.notes.extend(notes.map(|(ids, what)| format!("{what}: {}.", listed(ids))));
}

/// Ports of a node that pods have: at one of its addresses, or at all of them.
#[derive(Clone, Default)]
struct TakenPorts<'a>(HashMap<(u16, Protocol), Vec<(Option<IpAddr>, &'a str)>>);

impl<'a> TakenPorts<'a> {
    /// Whose the port is already, if somebody's. Source: Kubernetes, `pkg/scheduler/framework/plugins/nodeports`.
    fn owner(&self, port: &HostPort) -> Option<&'a str> {
        let taken = self.0.get(&(port.port, port.protocol))?;
        let meets = |other: &Option<IpAddr>| match (other, port.address) {
            (Some(one), Some(other)) => *one == other,
            _ => true,
        };
        taken.iter().find(|(address, _)| meets(address)).map(|(_, owner)| *owner)
    }

    fn take(&mut self, ports: &[HostPort], owner: &'a str) {
        for port in ports {
            self.0.entry((port.port, port.protocol)).or_default().push((port.address, owner));
        }
    }
}

/// Every pod without a node goes to the one that has the fewest among those whose ports it asks for are free,
/// the first of these if there are several. Two pods that state the same node cannot have the same port of it.
pub(super) fn spread(
    work: &mut Work<'_>,
    pods: &mut [PodDraft],
    nodes: &[NodeDraft<'_>],
    max_pods: u32,
) -> Result<(), ipam::Error> {
    let mut counts = vec![0_u32; nodes.len()];
    let places: HashMap<&str, usize> =
        nodes.iter().enumerate().map(|(place, node)| (node.name.as_str(), place)).collect();
    let asked: Vec<(String, Vec<HostPort>)> =
        pods.iter().map(|pod| (pod.id(), host_ports(&pod.source.pod))).collect();
    let mut taken = vec![TakenPorts::default(); nodes.len()];
    for (pod, (id, ports)) in pods.iter().zip(&asked) {
        let Some(place) = pod.node.as_deref().and_then(|node| places.get(node)).copied() else {
            continue;
        };
        counts[place] += 1;
        let source = &pod.source;
        if let Some((port, owner)) = ports.iter().find_map(|port| Some((port, taken[place].owner(port)?))) {
            let why = format!(
                "{} {} of node {} is pod {owner}'s already: the scheduler would not place this one there",
                port.port, port.protocol, nodes[place].name
            );
            let field = format!("{}spec.containers[*].ports[*].hostPort", source.prefix);
            work.faults.of(&source.origin, source.object.clone()).wrong(field, why);
        }
        taken[place].take(ports, id);
    }
    for (pod, (id, ports)) in pods.iter_mut().zip(&asked).filter(|(pod, _)| pod.node.is_none()) {
        let free = |place: &usize| ports.iter().all(|port| taken[*place].owner(port).is_none());
        let has_room = |place: &usize| counts[*place] < max_pods;
        if !(0..nodes.len()).any(|place| has_room(&place)) {
            let count = nodes.len() as u64;
            let capacity = count * u64::from(max_pods);
            return Err(ipam::Error::NodesFull { pod: id.clone(), nodes: count, max_pods, capacity });
        }
        let Some(place) = (0..nodes.len()).filter(has_room).filter(free).min_by_key(|place| counts[*place])
        else {
            let all: Vec<String> =
                ports.iter().map(|port| format!("{} {}", port.port, port.protocol)).collect();
            return Err(ipam::Error::HostPortsTaken { pod: id.clone(), ports: listed(&all) });
        };
        counts[place] += 1;
        taken[place].take(ports, id);
        pod.node = Some(nodes[place].name.clone());
    }
    Ok(())
}

/// The shares of pods that state one, by `namespace/name`.
pub(super) fn weights(pods: &[PodDraft]) -> HashMap<String, u32> {
    // They have been validated.
    let weights = pods.iter().filter_map(|pod| Some((pod.id(), weight(&pod.source.pod.metadata).ok()??)));
    weights.collect()
}

impl<'a> NodeDraft<'a> {
    fn new(
        name: String,
        labels: Labels,
        object: Option<&'a core::Node>,
        blame: (Origin, String, &'static str),
    ) -> Self {
        Self {
            name,
            labels,
            object,
            blame,
            addresses: Vec::new(),
            stated: false,
            pod_ranges: Vec::new(),
            ranges_stated: false,
        }
    }

    /// Whether it is to have an address of a family.
    pub(super) fn wants(&self, family: IpFamily, lent: Option<IpFamily>) -> bool {
        !self.stated || lent == Some(family)
    }

    /// Everything about it has been chosen.
    pub(super) fn settle(self) -> Node {
        Node { name: self.name, labels: self.labels, addresses: self.addresses, pod_cidrs: self.pod_ranges }
    }
}

impl PodDraft {
    /// `namespace/name`.
    pub(super) fn id(&self) -> String {
        id(&self.source.pod)
    }

    /// It has the addresses of its node.
    pub(super) fn host_network(&self) -> bool {
        host_network(&self.source.pod)
    }

    /// A DaemonSet stands for it.
    pub(super) fn is_daemon(&self) -> bool {
        self.source.daemon
    }

    /// As [`NodeDraft::wants`].
    pub(super) fn wants(&self, family: IpFamily, lent: Option<IpFamily>) -> bool {
        !self.stated || lent == Some(family) && !self.in_full()
    }

    /// Its addresses are stated as those of a running pod are, one for each of its families.
    pub(super) fn in_full(&self) -> bool {
        let list = self.source.pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
        list.is_some_and(|list| !list.is_empty())
    }

    /// Everything about it has been chosen.
    pub(super) fn settle(self) -> Pod {
        let pod = self.source.pod;
        Pod {
            host_network: host_network(&pod),
            ports: ports(&pod),
            ready: ready(&pod),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            host_ports: if host_network(&pod) { Vec::new() } else { host_ports(&pod) },
            namespace: self.namespace,
            name: self.name,
            labels: pod.metadata.labels.unwrap_or_default(),
            node: self.node.expect("every pod has been placed"),
            addresses: self.addresses,
        }
    }
}
