//! The nodes of a cluster that is up, as objects that come and go.

use serde_json::{Value, json};
use userspace::model::{self, Cluster, Key, Kind, Labels, Objects};

use super::stored;

/// Makes objects of the nodes that were only assumed, if `others` speak of nodes: else the first Node object
/// would be the only node.
///
/// # Errors
/// Never, but for names that no Node may have.
pub(crate) fn state_nodes(
    objects: &mut Objects,
    cluster: &Cluster,
    others: &Objects,
) -> Result<(), model::Error> {
    let is_node = |objects: &Objects| objects.iter().any(|entry| entry.object.kind() == Kind::Node);
    if is_node(others) && !is_node(objects) {
        objects.apply(nodes(cluster.nodes.iter().map(|node| (node.name.as_str(), &node.labels)))?);
    }
    Ok(())
}

/// Node objects of these names and labels, which state nothing else.
///
/// # Errors
/// A name that no Node may have; there are none at all.
pub(crate) fn nodes<'a>(of: impl Iterator<Item = (&'a str, &'a Labels)>) -> Result<Objects, model::Error> {
    let node = |(name, labels): (&str, &Labels)| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
    listed("nodes", of.map(node).collect())
}

/// Takes the pods out that go with these nodes: those that no workload makes anew elsewhere. Says which.
///
/// # Errors
/// Never: they are objects already.
pub(crate) fn evict(
    objects: &mut Objects,
    cluster: &Cluster,
    nodes: &[&str],
) -> Result<Vec<Key>, model::Error> {
    let bare = |value: &Value| {
        let name = |field| value.pointer(field).and_then(Value::as_str);
        let namespace = name("/metadata/namespace").unwrap_or("default");
        let pod = cluster.pod(&format!("{namespace}/{}", name("/metadata/name").unwrap_or_default()));
        value["kind"] == "Pod" && pod.is_some_and(|pod| nodes.contains(&pod.node.as_str()))
    };
    let going: Vec<Value> = stored(objects).into_iter().filter(bare).collect();
    if going.is_empty() {
        return Ok(Vec::new());
    }
    let gone = objects.delete(&listed("pods", going)?);
    Ok(gone.into_iter().map(|(key, _)| key).collect())
}

/// The names of the nodes among the objects.
pub(crate) fn named(objects: &Objects) -> Vec<String> {
    let nodes = objects.iter().filter(|entry| entry.object.kind() == Kind::Node);
    nodes.map(|entry| entry.object.key().name).collect()
}

fn listed(name: &str, items: Vec<Value>) -> Result<Objects, model::Error> {
    Objects::parse(name, &json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())
}
