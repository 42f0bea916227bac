//! The pods that workload objects stand for, where the input doesn't hold those pods themselves.
//!
//! Names are as Kubernetes makes them, but always the same for the same input. What decides on which nodes
//! pods may run (node selectors, affinity, taints) is not followed: pods are spread.

use std::collections::HashSet;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::cluster::Labels;
use super::error::Origin;
use super::object::{Entry, Kind, Object, Objects};
use super::selector;

/// A pod, and the object to blame for it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) origin: Origin,
    /// The pod itself or its workload: `Deployment shop/api`.
    pub(super) object: String,
    /// What precedes the pod's own field paths: `spec.template.` for a workload's.
    pub(super) prefix: &'static str,
    pub(super) pod: Pod,
    /// It is on its node because every node has one.
    pub(super) daemon: bool,
    /// The place of its object in the input.
    place: usize,
}

/// Every pod of the input and of its workloads, except for DaemonSets'.
pub(super) fn pods(objects: &Objects) -> Vec<Source> {
    let owned = Owned::of(objects);
    let mut sources = Vec::new();
    for (place, entry) in objects.iter().enumerate() {
        match &entry.object {
            Object::Pod(pod) => sources.push(Source {
                origin: entry.origin.clone(),
                object: entry.object.key().to_string(),
                prefix: "",
                pod: (**pod).clone(),
                daemon: false,
                place,
            }),
            _ if owned.has_pods_of(entry) => {}
            workload => sources.extend(replicas(workload).into_iter().map(|pod| source(entry, place, pod))),
        }
    }
    sources
}

/// A pod on each of these nodes for every DaemonSet, put in among the others in the order of the input.
pub(super) fn add_daemons(objects: &Objects, nodes: &[String], sources: &mut Vec<Source>) {
    let owned = Owned::of(objects);
    for (place, entry) in objects.iter().enumerate() {
        let Object::DaemonSet(workload) = &entry.object else {
            continue;
        };
        if owned.has_pods_of(entry) {
            continue;
        }
        for node in nodes {
            let name = format!("{}-{}", name(&workload.metadata), suffix(&[name(&workload.metadata), node]));
            let mut pod = from_template(&workload.spec.template, &workload.metadata, name, []);
            pod.spec.get_or_insert_default().node_name = Some(node.clone());
            sources.push(source(entry, place, pod));
        }
    }
    sources.sort_by_key(|source| source.place);
}

fn source(entry: &Entry, place: usize, pod: Pod) -> Source {
    Source {
        origin: entry.origin.clone(),
        object: entry.object.key().to_string(),
        prefix: "spec.template.",
        pod,
        daemon: matches!(entry.object, Object::DaemonSet(_)),
        place,
    }
}

fn replicas(workload: &Object) -> Vec<Pod> {
    match workload {
        Object::Deployment(deployment) => {
            let spec = &deployment.spec;
            let template =
                serde_json::to_string(&spec.template).expect("string keys and finite numbers only");
            let hash = encode(fnv(&[&template]), 10);
            let set = format!("{}-{hash}", name(&deployment.metadata));
            numbered(&set, spec.replicas, |name| {
                let hash = ("pod-template-hash".to_owned(), hash.clone());
                from_template(&spec.template, &deployment.metadata, name, [hash])
            })
        }
        Object::ReplicaSet(set) => {
            let spec = &set.spec;
            let template = spec.template.clone().unwrap_or_default();
            numbered(name(&set.metadata), spec.replicas, |name| {
                from_template(&template, &set.metadata, name, [])
            })
        }
        Object::StatefulSet(set) => {
            let spec = &set.spec;
            let first = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
            let ordinals = first..first + spec.replicas.unwrap_or(1).max(0);
            let pod = |ordinal: i32| {
                let name = format!("{}-{ordinal}", name(&set.metadata));
                let labels = [
                    ("statefulset.kubernetes.io/pod-name".to_owned(), name.clone()),
                    ("apps.kubernetes.io/pod-index".to_owned(), ordinal.to_string()),
                ];
                from_template(&spec.template, &set.metadata, name, labels)
            };
            ordinals.map(pod).collect()
        }
        Object::Job(job) => job_pods(job),
        _ => Vec::new(),
    }
}

fn job_pods(job: &Job) -> Vec<Pod> {
    let Some(spec) = &job.spec else {
        return Vec::new();
    };
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    let finished = conditions.into_iter().flatten().any(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    });
    if finished || spec.suspend == Some(true) {
        return Vec::new();
    }
    let parallel = spec.parallelism.unwrap_or(1);
    let count = spec.completions.map_or(parallel, |completions| completions.min(parallel));
    let job_name = name(&job.metadata);
    numbered(job_name, Some(count), |name| {
        let labels =
            ["job-name", "batch.kubernetes.io/job-name"].map(|key| (key.to_owned(), job_name.to_owned()));
        from_template(&spec.template, &job.metadata, name, labels)
    })
}

/// `set-x7k2p`, as many as there are replicas (1 when left out).
fn numbered(set: &str, replicas: Option<i32>, pod: impl Fn(String) -> Pod) -> Vec<Pod> {
    let name = |index: i32| format!("{set}-{}", suffix(&[set, &index.to_string()]));
    (0..replicas.unwrap_or(1)).map(|index| pod(name(index))).collect()
}

fn from_template<const N: usize>(
    template: &PodTemplateSpec,
    workload: &ObjectMeta,
    name: String,
    labels: [(String, String); N],
) -> Pod {
    let mut all: Labels =
        template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
    all.extend(labels);
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: workload.namespace.clone(),
            labels: Some(all),
            annotations: template.metadata.as_ref().and_then(|metadata| metadata.annotations.clone()),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

fn suffix(parts: &[&str]) -> String {
    encode(fnv(parts), 5)
}

/// Letters that can't spell a word, as Kubernetes uses for names it makes up.
fn encode(mut number: u64, length: usize) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::with_capacity(length);
    for _ in 0..length {
        text.push(char::from(LETTERS[(number % LETTERS.len() as u64) as usize]));
        number /= LETTERS.len() as u64;
    }
    text
}

/// FNV-1a, 64 bits, of the parts with a zero byte after each.
fn fnv(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Which workloads have pods (or ReplicaSets that stand for them) in the input.
struct Owned<'a> {
    /// Kind, namespace and name of every object that another one names as its controller.
    owners: HashSet<(&'a str, &'a str, &'a str)>,
    /// Namespace and labels of the pods that come from a server.
    dumped: Vec<(&'a str, &'a Labels)>,
}

impl<'a> Owned<'a> {
    fn of(objects: &'a Objects) -> Self {
        let mut owned = Self { owners: HashSet::new(), dumped: Vec::new() };
        for entry in objects.iter() {
            let metadata = entry.object.metadata();
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            if matches!(entry.object.kind(), Kind::Pod | Kind::ReplicaSet) {
                let owners = metadata.owner_references.iter().flatten();
                owned
                    .owners
                    .extend(owners.map(|owner| (owner.kind.as_str(), namespace, owner.name.as_str())));
            }
            if let (Object::Pod(_), Some(_), Some(labels)) = (&entry.object, &metadata.uid, &metadata.labels)
            {
                owned.dumped.push((namespace, labels));
            }
        }
        owned
    }

    fn has_pods_of(&self, entry: &Entry) -> bool {
        let metadata = entry.object.metadata();
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        if self.owners.contains(&(entry.object.kind().name(), namespace, name(metadata))) {
            return true;
        }
        let selector = pod_selector(&entry.object).filter(|_| metadata.uid.is_some());
        selector.is_some_and(|selector| {
            self.dumped
                .iter()
                .any(|(theirs, labels)| *theirs == namespace && selector::matches(selector, labels))
        })
    }
}

fn pod_selector(workload: &Object) -> Option<&LabelSelector> {
    match workload {
        Object::Deployment(workload) => Some(&workload.spec.selector),
        Object::StatefulSet(workload) => Some(&workload.spec.selector),
        Object::DaemonSet(workload) => Some(&workload.spec.selector),
        Object::ReplicaSet(workload) => Some(&workload.spec.selector),
        Object::Job(workload) => workload.spec.as_ref().and_then(|spec| spec.selector.as_ref()),
        _ => None,
    }
}
