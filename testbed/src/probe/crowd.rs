//! Ends that are shown, or asked about, as one: replicas of a workload, or what a namespace holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use userspace::engine::emulator::Matrix;
use userspace::error::Error;
use userspace::model::{Cluster, Labels, Pod, Who};

/// Labels that a controller gives to tell its pods from each other, or from those of its last version.
const GENERATED: [&str; 5] = [
    "pod-template-hash",
    "pod-template-generation",
    "controller-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

/// What ends are shown as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crowds {
    workloads: HashMap<Who, String>,
    namespaces: HashMap<Who, String>,
}

/// How much is shown as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everybody stands for himself.
    Each,
    /// Pods of a namespace with the same labels, but for those that tell replicas apart.
    Workload,
    /// Everything of a kind in a namespace.
    Namespace,
}

impl Crowds {
    /// The crowds of a cluster.
    pub fn of(cluster: &Cluster) -> Self {
        let mut alike: BTreeMap<_, Vec<&Pod>> = BTreeMap::new();
        // Without labels of their own pods are nobody's replicas.
        for pod in cluster.pods.iter().filter(|pod| !own_labels(pod).is_empty()) {
            alike.entry((&pod.namespace, own_labels(pod), pod.host_network)).or_default().push(pod);
        }
        let mut crowds = Self::default();
        let mut taken = BTreeSet::new();
        for pods in alike.values() {
            let mut label = workload(pods);
            // Workloads that differ by a label may share the beginning of their names.
            let mut number = 2;
            while !taken.insert(label.clone()) {
                label = format!("{} ({number})", workload(pods));
                number += 1;
            }
            crowds.workloads.extend(pods.iter().map(|pod| (Who::Pod(pod.id()), label.clone())));
        }
        let services =
            cluster.services.iter().map(|it| (Who::Service(it.id()), format!("svc:{}/*", it.namespace)));
        let nodes = cluster.nodes.iter().map(|it| (Who::Node(it.name.clone()), "node:*".to_owned()));
        let outside = cluster.externals.iter().map(|it| (Who::External(it.name.clone()), "ext:*".to_owned()));
        let pods = cluster.pods.iter().map(|it| (Who::Pod(it.id()), format!("{}/*", it.namespace)));
        let named: Vec<_> = pods.chain(services).chain(nodes).chain(outside).collect();
        let mut sizes: HashMap<String, usize> = HashMap::new();
        named.iter().for_each(|(_, label)| *sizes.entry(label.clone()).or_default() += 1);
        let sized = |(who, label): (Who, String)| match sizes[&label] {
            1 => None,
            size => Some((who, format!("{label} x{size}"))),
        };
        crowds.namespaces = named.into_iter().filter_map(sized).collect();
        crowds
    }

    /// What somebody is shown as.
    pub fn label(&self, who: &Who, level: Level) -> String {
        let label = match level {
            Level::Each => None,
            Level::Workload => self.workloads.get(who),
            Level::Namespace => self.namespaces.get(who),
        };
        label.cloned().unwrap_or_else(|| who.to_string())
    }
}

fn own_labels(pod: &Pod) -> Labels {
    let own = pod.labels.iter().filter(|(key, _)| !GENERATED.contains(&key.as_str()));
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// `shop/web-* x3`: what their names begin with.
fn workload(pods: &[&Pod]) -> String {
    let first = pods[0].id();
    if pods.len() == 1 {
        return first;
    }
    let ids: Vec<String> = pods.iter().map(|pod| pod.id()).collect();
    let same = |at: &usize| ids.iter().all(|id| id.as_bytes().get(*at) == first.as_bytes().get(*at));
    let length = (0..first.len()).take_while(same).count();
    // Names of Kubernetes are ASCII; whole words of them are kept.
    let kept = first[..length].rfind(['-', '/']).map_or(0, |at| at + 1);
    format!("{}* x{}", &first[..kept], pods.len())
}

/// A cluster with at most two pods of those that neither their text nor the plan tells apart, on two nodes if they
/// are on several: who is asked where there are too many to ask all.
///
/// # Errors
/// The cluster cannot be planned.
pub fn representatives(cluster: &Cluster) -> Result<Cluster, Error> {
    let matrix = Matrix::of(cluster, &[])?;
    let mut chosen: HashMap<_, Vec<&Pod>> = HashMap::new();
    for (end, pod) in cluster.pods.iter().enumerate() {
        let ports: Vec<_> = pod.ports.iter().map(|it| (it.port, it.protocol, it.name.clone())).collect();
        let node = (pod.host_network || !pod.host_ports.is_empty()).then_some(&pod.node);
        let key = (&pod.namespace, own_labels(pod), ports, node, matrix.class(end));
        let alike = chosen.entry(key).or_default();
        match alike.as_slice() {
            [] => alike.push(pod),
            [one] if one.node != pod.node => alike.push(pod),
            _ => {}
        }
    }
    let chosen: BTreeSet<String> = chosen.values().flatten().map(|pod| pod.id()).collect();
    let pods = cluster.pods.iter().filter(|pod| chosen.contains(&pod.id())).cloned().collect();
    Ok(Cluster { pods, ..cluster.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use userspace::model;

    const SHOP: &str = r"
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 5
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {containers: [{name: c, image: i}]}}
";

    #[test]
    fn replicas_are_shown_as_their_workload_and_a_namespace_as_one() {
        let cluster = model::load_text("test", SHOP).unwrap_or_else(|error| panic!("{error}"));
        let crowds = Crowds::of(&cluster);
        let web = Who::Pod(cluster.pods[0].id());
        let db: Who = "shop/db".parse().expect("a name");
        assert_eq!(crowds.label(&web, Level::Each), web.to_string());
        let label = crowds.label(&web, Level::Workload);
        assert!(label.starts_with("shop/web-") && label.ends_with("* x5"), "{label}");
        assert_eq!(crowds.label(&db, Level::Workload), "shop/db");
        assert_eq!(crowds.label(&db, Level::Namespace), "shop/* x6");
    }

    #[test]
    fn two_on_two_nodes_stand_for_all_replicas() {
        let cluster = model::load_text("test", SHOP).unwrap_or_else(|error| panic!("{error}"));
        let few = representatives(&cluster).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(few.pods.len(), 3);
        let of_web: Vec<_> = few.pods.iter().filter(|pod| pod.name != "db").map(|pod| &pod.node).collect();
        assert_ne!(of_web[0], of_web[1]);
    }
}
