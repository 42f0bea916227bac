//! Workloads stand for the pods they would create, unless the input holds these pods.

use std::collections::BTreeSet;

use crate::{cluster, fault, node_at, pod_text, wrong};

/// A workload of this kind in namespace `shop`, with `app` as its label and the given fields in its spec.
fn workload(kind: &str, name: &str, fields: &str) -> String {
    let group = if kind == "Job" { "batch" } else { "apps" };
    let selector =
        if kind == "Job" { String::new() } else { format!("selector: {{matchLabels: {{app: {name}}}}}, ") };
    format!(
        "---
apiVersion: {group}/v1
kind: {kind}
metadata: {{name: {name}, namespace: shop}}
spec: {{{fields}{selector}template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: [{{name: c, image: x, ports: [{{containerPort: 80, name: http}}]}}]}}}}}}
"
    )
}

fn names(text: &str) -> Vec<String> {
    cluster(text).pods.iter().map(|pod| pod.id()).collect()
}

#[test]
fn a_deployment_becomes_its_replicas() {
    let cluster = cluster(&workload("Deployment", "api", "replicas: 3, "));
    assert_eq!(cluster.pods.len(), 3);
    for pod in &cluster.pods {
        let parts: Vec<&str> = pod.name.split('-').collect();
        assert_eq!((parts[0], parts[1].len(), parts[2].len()), ("api", 10, 5), "{}", pod.name);
        assert_eq!(pod.labels["pod-template-hash"], parts[1]);
        assert_eq!(pod.labels["app"], "api");
        assert_eq!((pod.namespace.as_str(), pod.ports[0].port, pod.ready), ("shop", 80, true));
    }
    let distinct: BTreeSet<&String> = cluster.pods.iter().map(|pod| &pod.name).collect();
    assert_eq!(distinct.len(), 3);
    let nodes: Vec<&str> = cluster.pods.iter().map(|pod| pod.node.as_str()).collect();
    assert_eq!(nodes, ["n1", "n2", "n1"]);
}

#[test]
fn names_stay_when_replicas_are_added() {
    let (few, many) = (
        names(&workload("Deployment", "api", "replicas: 2, ")),
        names(&workload("Deployment", "api", "replicas: 4, ")),
    );
    assert_eq!(few, many[..2]);
}

#[test]
fn replicas_left_out_are_one_and_none_is_none() {
    let both = workload("Deployment", "a", "") + &workload("ReplicaSet", "b", "replicas: 0, ");
    assert_eq!(names(&both).len(), 1);
}

#[test]
fn a_stateful_set_counts_its_pods() {
    assert_eq!(names(&workload("StatefulSet", "db", "replicas: 2, ")), ["shop/db-0", "shop/db-1"]);
    assert_eq!(names(&workload("StatefulSet", "db", "ordinals: {start: 5}, ")), ["shop/db-5"]);
}

#[test]
fn a_daemon_set_has_a_pod_on_every_node() {
    let nodes: String = (1..=3).map(|n| node_at(&format!("w{n}"), &format!("10.240.0.{}", n + 9))).collect();
    let cluster = cluster(&(workload("DaemonSet", "agent", "") + &pod_text("a", "", "") + &nodes));
    let places: Vec<&str> = cluster.pods.iter().map(|pod| pod.node.as_str()).collect();
    assert_eq!(places, ["w1", "w2", "w3", "w1"]);
    assert!(cluster.pods[0].name.starts_with("agent-"));
    assert_eq!(cluster.pods[3].id(), "default/a");
}

#[test]
fn a_job_runs_as_many_pods_as_it_may_at_once() {
    assert_eq!(names(&workload("Job", "once", "")).len(), 1);
    assert_eq!(names(&workload("Job", "wide", "parallelism: 4, completions: 3, ")).len(), 3);
    assert_eq!(
        names(&(workload("Job", "not-yet", "suspend: true, ") + &pod_text("a", "", ""))),
        ["default/a"]
    );
    let done = workload("Job", "done", "")
        + "status: {conditions: [{type: Complete, status: \"True\"}]}\n"
        + &pod_text("a", "", "");
    assert_eq!(names(&done), ["default/a"]);
}

#[test]
fn a_workload_whose_pods_are_in_the_input_is_not_expanded() {
    let owned = |name: &str, kind: &str, owner: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {owner}, uid: u-1}}]}}\n"
        )
    };
    let set = workload("ReplicaSet", "api-5d", "replicas: 1, ").replace(
        "namespace: shop",
        "namespace: shop, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: api, uid: u-2}]",
    );
    let text = workload("Deployment", "api", "replicas: 1, ")
        + &set
        + &owned("api-5d-x", "ReplicaSet", "api-5d")
        + &workload("StatefulSet", "db", "replicas: 3, ")
        + &owned("db-0", "StatefulSet", "db");
    assert_eq!(names(&text), ["shop/api-5d-x", "shop/db-0"]);
}

#[test]
fn a_replica_set_stands_for_its_deployment() {
    let set = workload("ReplicaSet", "api-5d", "replicas: 2, ").replace(
        "namespace: shop",
        "namespace: shop, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: api, uid: u-2}]",
    );
    let pods = names(&(workload("Deployment", "api", "replicas: 2, ") + &set));
    assert_eq!(pods.len(), 2);
    assert!(pods.iter().all(|pod| pod.starts_with("shop/api-5d-")));
}

#[test]
fn in_a_dump_pods_that_a_workload_selects_are_its_own() {
    let from_server = |text: String| text.replace("namespace: shop", "namespace: shop, uid: u-1");
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, uid: u-2, labels: {app: api}}\n";
    let text = from_server(workload("Deployment", "api", "replicas: 3, ")) + pod;
    assert_eq!(names(&text), ["shop/p"]);
    // Written by hand, both are meant.
    assert_eq!(names(&(workload("Deployment", "api", "replicas: 3, ") + pod)).len(), 4);
}

#[test]
fn pods_that_have_finished_are_left_out_and_give_their_addresses_back() {
    let text = pod_text("done", "", "")
        + "status: {phase: Succeeded, podIP: 10.244.0.2}\n"
        + &pod_text("gone", "", "")
        + "status: {phase: Failed}\n"
        + &pod_text("a", "", "")
        + "status: {phase: Running, podIP: 10.244.0.2}\n";
    let cluster = cluster(&text);
    assert_eq!(cluster.pods.len(), 1);
    assert!(
        cluster.notes.contains(&"Left out pods that have finished: default/done, default/gone.".to_owned())
    );
}

#[test]
fn sidecars_ports_count_and_init_containers_do_not() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  initContainers:\n  - {name: i, image: x, ports: [{containerPort: 1}]}\n  - {name: s, image: x, restartPolicy: Always, ports: [{containerPort: 2, protocol: UDP}]}\n  containers:\n  - {name: c, image: x, ports: [{containerPort: 3}]}\n";
    let cluster = cluster(text);
    let ports: Vec<_> =
        cluster.pods[0].ports.iter().map(|port| (port.port, port.protocol.number())).collect();
    assert_eq!(ports, [(3, 6), (2, 17)]);
}

#[test]
fn workloads_that_cannot_be_are_refused() {
    assert_eq!(
        fault(&workload("Deployment", "api", "replicas: -1, ")),
        "Deployment shop/api: spec.replicas: must be greater than or equal to 0, not -1"
    );
    let text = workload("Deployment", "api", "").replace("labels: {app: api}", "labels: {app: web}");
    assert_eq!(
        fault(&text),
        "Deployment shop/api: spec.template.metadata.labels: `selector` does not match template `labels`"
    );
    let text = workload("DaemonSet", "api", "").replace("containerPort: 80", "containerPort: 0");
    assert_eq!(
        fault(&text),
        "DaemonSet shop/api: spec.template.spec.containers[0].ports[0].containerPort: must be between 1 and 65535, inclusive, not 0"
    );
}

#[test]
fn a_pod_that_is_called_as_a_workloads_would_be_is_refused() {
    let text = pod_text("db-0", "", "").replace("name: db-0", "name: db-0, namespace: shop")
        + &workload("StatefulSet", "db", "replicas: 1, ");
    assert_eq!(
        wrong(&text),
        [
            "test.yaml:7: StatefulSet shop/db: metadata.name: there is a pod shop/db-0 already, from Pod shop/db-0 (test.yaml:2)"
        ]
    );
}
