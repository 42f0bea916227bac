//! Pods, nodes and hosts outside that no policy of two clusters tells apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use userspace::engine::emulator::Matrix;
use userspace::model::{Cluster, ContainerPort, Labels, Pod, TierPeer, Who};

use super::Side;

/// One end, by its places in the two matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) old: usize,
    pub(super) new: usize,
    /// The node that it is, or that it is on, by its place among those of the new cluster.
    node: Option<usize>,
    pub(super) is_node: bool,
}

/// Ends whom no policy tells apart.
#[derive(Debug)]
pub(super) struct Group {
    name: String,
    names: Vec<String>,
    pub(super) members: Vec<Member>,
}

impl Group {
    pub(super) fn side(&self) -> Side {
        let name = if self.names.len() == 1 { self.names[0].clone() } else { self.name.clone() };
        Side { name, members: self.names.clone() }
    }
}

/// Everybody who is in both clusters; and who is not.
#[derive(Debug, Default)]
pub(super) struct Groups {
    pub(super) list: Vec<Group>,
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
    pub(super) renamed: usize,
}

/// What policies can know of somebody, in one cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Traits {
    labels: Labels,
    ports: Vec<(Option<String>, u16, String)>,
    blocks: Vec<usize>,
}

/// Two members, one of each side, that stand for all others; none if there is nothing to compare.
///
/// A pod reaches itself, and its node reaches it, whatever policies say: those pairs are passed over where there
/// are others.
pub(super) fn pair(from: &[Member], to: &[Member]) -> Option<(Member, Member)> {
    let all = || from.iter().flat_map(|one| to.iter().map(move |other| (*one, *other)));
    let apart = |(one, other): &(Member, Member)| one.old != other.old && one.new != other.new;
    let both_nodes = from.first()?.is_node && to.first()?.is_node;
    if both_nodes {
        return None;
    }
    let on_its_own = |(one, other): &(Member, Member)| {
        (one.is_node || other.is_node) && one.node.is_some() && one.node == other.node
    };
    all().filter(apart).find(|pair| !on_its_own(pair)).or_else(|| all().find(apart))
}

/// How many pairs of different ends there are between two groups, without pods and their own nodes.
pub(super) fn pairs(from: &Group, to: &Group) -> usize {
    let all = from.members.len() * to.members.len();
    if std::ptr::eq(from, to) {
        return all - from.members.len();
    }
    let [is_from, is_to] = [from, to].map(|group| group.members.iter().any(|one| one.is_node));
    if !is_from && !is_to {
        return all;
    }
    let (nodes, pods) = if is_from { (from, to) } else { (to, from) };
    let of: BTreeSet<Option<usize>> = nodes.members.iter().map(|node| node.node).collect();
    all - pods.members.iter().filter(|pod| pod.node.is_some() && of.contains(&pod.node)).count()
}

impl Groups {
    pub(super) fn of((old, before): (&Cluster, &Matrix), (new, after): (&Cluster, &Matrix)) -> Self {
        let judged = (Judged::of(old, new), [old, new]);
        let mut groups = Self::default();
        let mut gathered: BTreeMap<(u8, String, Traits, Traits), Group> = BTreeMap::new();
        let nodes: HashMap<&str, usize> =
            new.nodes.iter().enumerate().map(|(place, node)| (node.name.as_str(), place)).collect();
        for (pod, other) in groups.pods(old, new) {
            let name = workload(pod);
            let traits = judged.0.of_pod(other);
            let key = (0, name.clone(), traits, judged.0.of_pod(pod));
            let places = before.place(&Who::Pod(other.id())).zip(after.place(&Who::Pod(pod.id())));
            let node = nodes.get(pod.node.as_str()).copied();
            put(
                &mut gathered,
                key,
                (name, pod.id()),
                places.map(|(old, new)| Member { old, new, node, is_node: false }),
            );
        }
        for node in &new.nodes {
            let who = Who::Node(node.name.clone());
            let Some(other) = old.node(&node.name) else {
                groups.added.push(who.to_string());
                continue;
            };
            let key = (
                1,
                String::new(),
                judged.0.of_end(&other.labels, &other.addresses),
                judged.0.of_end(&node.labels, &node.addresses),
            );
            let place = nodes.get(node.name.as_str()).copied();
            let places = before.place(&who).zip(after.place(&who));
            let member = places.map(|(old, new)| Member { old, new, node: place, is_node: true });
            put(&mut gathered, key, ("nodes".to_owned(), who.to_string()), member);
        }
        let kept: BTreeSet<&str> = new.nodes.iter().map(|node| node.name.as_str()).collect();
        let gone = old.nodes.iter().filter(|node| !kept.contains(node.name.as_str()));
        groups.removed.extend(gone.map(|node| format!("node:{}", node.name)));
        groups.outside((old, before), (new, after), (&judged.0, &mut gathered));
        groups.list = gathered.into_values().collect();
        groups
    }

    /// The new pods, each with the old one that it is, or that it stands for.
    fn pods<'a>(&mut self, old: &'a Cluster, new: &'a Cluster) -> Vec<(&'a Pod, &'a Pod)> {
        let own = |cluster: &'a Cluster| cluster.pods.iter().filter(|pod| !pod.host_network);
        let known: HashMap<String, &Pod> = own(old).map(|pod| (pod.id(), pod)).collect();
        let ids: BTreeSet<String> = own(new).map(Pod::id).collect();
        // First those that are gone, then the others: all of them can stand for replicas to come.
        let mut replicas: HashMap<String, Vec<&Pod>> = HashMap::new();
        for stays in [false, true] {
            for pod in own(old).filter(|pod| ids.contains(&pod.id()) == stays) {
                replicas.entry(workload(pod)).or_default().push(pod);
            }
        }
        let mut next: HashMap<String, usize> = HashMap::new();
        let mut pairs = Vec::new();
        let mut workloads: BTreeSet<String> = BTreeSet::new();
        for pod in own(new) {
            let name = workload(pod);
            if let Some(same) = known.get(&pod.id()) {
                pairs.push((pod, *same));
            } else if let Some(others) = replicas.get(&name) {
                let turn = next.entry(name.clone()).or_default();
                pairs.push((pod, others[*turn % others.len()]));
                *turn += 1;
                self.renamed += 1;
            } else {
                self.added.push(pod.id());
            }
            workloads.insert(name);
        }
        let gone = own(old).filter(|pod| !ids.contains(&pod.id()) && !workloads.contains(&workload(pod)));
        self.removed.extend(gone.map(Pod::id));
        pairs
    }

    fn outside(
        &mut self,
        (old, before): (&Cluster, &Matrix),
        (new, after): (&Cluster, &Matrix),
        (judged, gathered): (&Judged, &mut BTreeMap<(u8, String, Traits, Traits), Group>),
    ) {
        for external in &new.externals {
            let who = Who::External(external.name.clone());
            let Some(other) = old.external(&external.name) else {
                self.added.push(who.to_string());
                continue;
            };
            let traits = |address: IpAddr| judged.of_end(&Labels::new(), &[address]);
            let key = (2, who.to_string(), traits(other.address), traits(external.address));
            let places = before.place(&who).zip(after.place(&who));
            let member = places.map(|(old, new)| Member { old, new, node: None, is_node: false });
            put(gathered, key, (who.to_string(), who.to_string()), member);
        }
        let kept: BTreeSet<&str> = new.externals.iter().map(|external| external.name.as_str()).collect();
        let gone = old.externals.iter().filter(|external| !kept.contains(external.name.as_str()));
        self.removed.extend(gone.map(|external| format!("ext:{}", external.name)));
    }
}

fn put(
    gathered: &mut BTreeMap<(u8, String, Traits, Traits), Group>,
    key: (u8, String, Traits, Traits),
    (name, member_name): (String, String),
    member: Option<Member>,
) {
    let Some(member) = member else { return };
    let group = gathered.entry(key).or_insert_with(|| Group { name, names: Vec::new(), members: Vec::new() });
    group.names.push(member_name);
    group.members.push(member);
}

/// What policies of both clusters ask about.
#[derive(Debug, Default)]
struct Judged {
    keys: BTreeSet<String>,
    ranges: Vec<IpNet>,
}

impl Judged {
    fn of(old: &Cluster, new: &Cluster) -> Self {
        let mut judged = Self::default();
        let mut ranges = BTreeSet::new();
        for cluster in [old, new] {
            for spec in cluster.policies.iter().filter_map(|policy| policy.spec.as_ref()) {
                judged.selector(spec.pod_selector.as_ref());
                let from = spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
                let to = spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten());
                from.chain(to).for_each(|peer| judged.peer(peer, &mut ranges));
            }
            for policy in &cluster.cluster_policies {
                judged.selector(Some(&policy.subject.pods));
                for peer in policy.ingress.iter().chain(&policy.egress).flat_map(|rule| &rule.peers) {
                    match peer {
                        TierPeer::Pods(pods) => judged.selector(Some(&pods.pods)),
                        TierPeer::Nodes(selector) => judged.selector(Some(selector)),
                        TierPeer::Networks(networks) => ranges.extend(networks.iter().copied()),
                    }
                }
            }
        }
        judged.ranges = ranges.into_iter().collect();
        judged
    }

    fn selector(&mut self, selector: Option<&LabelSelector>) {
        let Some(selector) = selector else { return };
        self.keys.extend(selector.match_labels.iter().flatten().map(|(key, _)| key.clone()));
        self.keys.extend(selector.match_expressions.iter().flatten().map(|one| one.key.clone()));
    }

    fn peer(&mut self, peer: &NetworkPolicyPeer, ranges: &mut BTreeSet<IpNet>) {
        self.selector(peer.pod_selector.as_ref());
        let Some(block) = &peer.ip_block else { return };
        let texts = [&block.cidr].into_iter().chain(block.except.iter().flatten());
        // Validation has read them.
        ranges.extend(texts.filter_map(|text| text.parse::<IpNet>().ok()));
    }

    fn of_pod(&self, pod: &Pod) -> Traits {
        let port = |port: &ContainerPort| (port.name.clone(), port.port, port.protocol.to_string());
        Traits {
            ports: pod.ports.iter().filter(|port| port.name.is_some()).map(port).collect(),
            ..self.of_end(&pod.labels, &pod.addresses)
        }
    }

    fn of_end(&self, labels: &Labels, addresses: &[IpAddr]) -> Traits {
        let known = labels.iter().filter(|(key, _)| self.keys.contains(*key));
        let inside = |range: &IpNet| addresses.iter().any(|address| range.contains(address));
        let blocks = self.ranges.iter().enumerate().filter(|(_, range)| inside(range));
        Traits {
            labels: known.map(|(key, value)| (key.clone(), value.clone())).collect(),
            ports: Vec::new(),
            blocks: blocks.map(|(place, _)| place).collect(),
        }
    }
}

/// `shop/api` for the pods of workload `api`: their names without what makes each its own.
fn workload(pod: &Pod) -> String {
    let Pod { namespace, name, labels, .. } = pod;
    let own = labels.get("batch.kubernetes.io/job-name").map(String::as_str);
    let hash =
        labels.get("pod-template-hash").and_then(|hash| Some(name.rsplit_once(&format!("-{hash}"))?.0));
    let ordinal =
        labels.get("statefulset.kubernetes.io/pod-name").and_then(|_| Some(name.rsplit_once('-')?.0));
    let stem = own.or(hash).or(ordinal).or_else(|| {
        // Generated endings have no vowels. Source: Kubernetes, `apimachinery/pkg/util/rand`.
        let (stem, ending) = name.rsplit_once('-')?;
        let made_up =
            ending.len() == 5 && ending.chars().all(|char| "bcdfghjklmnpqrstvwxz2456789".contains(char));
        made_up.then_some(stem)
    });
    format!("{namespace}/{}", stem.unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, labels: &[(&str, &str)]) -> String {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        workload(&Pod { namespace: "shop".into(), name: name.into(), labels, ..Pod::default() })
    }

    #[test]
    fn pods_of_a_workload_have_its_name() {
        assert_eq!(named("api-7d9f8b6c5d-x2x4z", &[("pod-template-hash", "7d9f8b6c5d")]), "shop/api");
        assert_eq!(named("db-0", &[("statefulset.kubernetes.io/pod-name", "db-0")]), "shop/db");
        assert_eq!(named("agent-x7k2p", &[]), "shop/agent");
        assert_eq!(named("redis-slave", &[]), "shop/redis-slave");
        assert_eq!(named("web-1", &[]), "shop/web-1");
    }
}
