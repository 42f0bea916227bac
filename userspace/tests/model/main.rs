//! Kubernetes objects in, a cluster out, or an error that says what to mend.

mod addresses;
mod capacity;
mod cluster_policies;
mod dump;
mod endpoints;
mod families;
mod frontends;
mod host_ports;
mod live;
mod masquerade;
mod models;
mod names;
mod node_ports;
mod policies;
mod reading;
mod schema;
mod services;
mod testbed;
mod workloads;

use userspace::model::{Cluster, Pod, load_text};

/// The cluster of a text that is sound.
fn cluster(text: &str) -> Cluster {
    load_text("test.yaml", text).unwrap_or_else(|error| panic!("{error}"))
}

/// Everything that is wrong with a text, a line each.
fn wrong(text: &str) -> Vec<String> {
    let error = load_text("test.yaml", text).expect_err("this text must be refused");
    error.each().iter().map(ToString::to_string).collect()
}

/// The one thing that is wrong with a text, without the name of the file.
fn fault(text: &str) -> String {
    let faults = wrong(text);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    let (place, rest) = faults[0].split_once(": ").expect("file and line come first");
    assert!(place.starts_with("test.yaml"), "{place}");
    rest.to_owned()
}

fn pod<'a>(cluster: &'a Cluster, id: &str) -> &'a Pod {
    cluster.pod(id).unwrap_or_else(|| panic!("no pod {id}"))
}

/// A pod with these labels, on this node if it isn't empty.
fn pod_text(name: &str, labels: &str, node: &str) -> String {
    let node = if node.is_empty() { String::new() } else { format!("nodeName: {node}, ") };
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{{labels}}}}}
spec: {{{node}containers: [{{name: c, image: x, ports: [{{containerPort: 8080, name: http}}]}}]}}
"
    )
}

/// A pod that has an address.
fn pod_at(name: &str, address: &str) -> String {
    format!("{}status: {{podIP: {address}}}\n", pod_text(name, "", ""))
}

fn node_at(name: &str, address: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Node
metadata: {{name: {name}}}
status: {{addresses: [{{type: InternalIP, address: {address}}}]}}
"
    )
}

fn testbed(spec: &str) -> String {
    format!(
        "---\napiVersion: podpath.dev/v1alpha1\nkind: Testbed\nmetadata: {{name: lab}}\nspec: {{{spec}}}\n"
    )
}

fn external_at(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: podpath.dev/v1alpha1\nkind: External\nmetadata: {{name: {name}}}\nspec: {{address: \"{address}\"}}\n"
    )
}
