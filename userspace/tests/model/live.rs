//! A cluster that is already there, and objects that come and go.

use userspace::model::{Change, Cluster, Objects};

use crate::{node_at, pod_at, pod_text};

fn objects(text: &str) -> Objects {
    Objects::parse("live.yaml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn resolve(objects: &Objects, previous: Option<&Cluster>) -> Cluster {
    objects.resolve(previous).unwrap_or_else(|error| panic!("{error}"))
}

fn places(cluster: &Cluster) -> Vec<String> {
    cluster.pods.iter().map(|pod| format!("{} {} {}", pod.name, pod.node, pod.address())).collect()
}

fn service(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
    )
}

#[test]
fn applying_says_what_it_did_as_kubectl_does() {
    let mut live = objects(&(pod_text("a", "", "") + &pod_text("b", "", "")));
    let changes = live
        .apply(objects(&(pod_text("b", "", "") + &pod_text("a", "app: web", "") + &pod_text("c", "", ""))));
    let words: Vec<_> = changes.iter().map(|(key, change)| (key.to_string(), *change)).collect();
    assert_eq!(
        words,
        [
            ("Pod default/b".to_owned(), Change::Unchanged),
            ("Pod default/a".to_owned(), Change::Configured),
            ("Pod default/c".to_owned(), Change::Created)
        ]
    );
    assert_eq!(live.iter().count(), 3);
}

#[test]
fn what_was_chosen_stays_when_others_come_and_go() {
    let mut live = objects(
        &(pod_text("a", "", "")
            + &pod_text("b", "", "")
            + &pod_text("c", "", "")
            + &service("x")
            + &service("y")),
    );
    let before = resolve(&live, None);
    assert_eq!(places(&before), ["a n1 10.244.0.2", "b n2 10.244.1.2", "c n1 10.244.0.3"]);
    live.delete(&objects(&(pod_text("a", "", "") + &service("x"))));
    live.apply(objects(&(pod_text("d", "", "") + &service("z"))));
    let after = resolve(&live, Some(&before));
    assert_eq!(places(&after), ["b n2 10.244.1.2", "c n1 10.244.0.3", "d n1 10.244.0.2"]);
    assert_eq!(after.service("default/y"), before.service("default/y"));
    assert_eq!(after.nodes, before.nodes);
}

#[test]
fn a_cluster_keeps_its_name_and_ranges() {
    let testbed = crate::testbed("podCIDR: 10.99.0.0/16, mtu: 9000, timeouts: {udp: 30s}")
        .replace("name: lab", "name: blue");
    let before = resolve(&objects(&(testbed + &pod_text("a", "", ""))), None);
    let after = resolve(&objects(&pod_text("a", "", "")), Some(&before));
    assert_eq!((after.name.as_str(), &after.settings), ("blue", &before.settings));
    assert_eq!(after.settings.timeouts.udp_s, 30);
}

#[test]
fn what_is_not_masqueraded_goes_with_the_object_that_said_so() {
    let testbed = crate::testbed("nonMasqueradeCIDRs: [10.0.0.0/8]");
    let before = resolve(&objects(&(testbed + &pod_text("a", "", ""))), None);
    assert_eq!(before.settings.non_masquerade_cidrs.len(), 1);
    let after = resolve(&objects(&pod_text("a", "", "")), Some(&before));
    assert!(after.settings.non_masquerade_cidrs.is_empty());
}

#[test]
fn a_pod_whose_node_goes_finds_another() {
    let mut live = objects(
        &(node_at("w1", "10.240.0.10")
            + &node_at("w2", "10.240.0.11")
            + &pod_text("a", "", "")
            + &pod_text("b", "", "")),
    );
    let before = resolve(&live, None);
    live.delete(&objects(&node_at("w1", "10.240.0.10")));
    let after = resolve(&live, Some(&before));
    assert_eq!(places(&after), ["a w2 10.244.1.3", "b w2 10.244.1.2"]);
}

#[test]
fn a_new_object_may_not_take_an_address_that_is_in_use() {
    let mut live = objects(&pod_text("a", "", ""));
    let before = resolve(&live, None);
    live.apply(objects(&pod_at("b", "10.244.0.2")));
    let error = live.resolve(Some(&before)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "live.yaml:2: Pod default/b: status.podIP: 10.244.0.2 is the address of Pod default/a already"
    );
}

#[test]
fn deleting_a_namespace_deletes_what_is_in_it() {
    let inside = pod_text("a", "", "").replace("name: a", "name: a, namespace: shop");
    let mut live = objects(&(inside + &pod_text("b", "", "")));
    let named = objects("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    let results: Vec<_> =
        live.delete(&named).into_iter().map(|(key, was_there)| (key.to_string(), was_there)).collect();
    assert_eq!(results, [("Namespace shop".to_owned(), true)]);
    assert_eq!(places(&resolve(&live, None)), ["b n1 10.244.0.2"]);
    let again: Vec<bool> = live.delete(&named).into_iter().map(|(_, was_there)| was_there).collect();
    assert_eq!(again, [false]);
}

#[test]
fn a_cluster_survives_being_written_down() {
    let before = resolve(&objects(&(pod_text("a", "app: web", "") + &service("x"))), None);
    let written = serde_json::to_string(&before).expect("plain data");
    let read: Cluster = serde_json::from_str(&written).expect("what was written");
    assert_eq!(
        (read.nodes, read.pods, read.services, read.settings),
        (before.nodes, before.pods, before.services, before.settings)
    );
}
