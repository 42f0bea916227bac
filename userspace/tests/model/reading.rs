//! Files, syntax, kinds and unknown fields.

use std::fs;

use userspace::model::{Error, Objects, load, load_text};

use crate::{cluster, fault, pod_text, wrong};

#[test]
fn yaml_documents_lists_and_json_read_alike() {
    let yaml = pod_text("a", "app: web", "n1") + &pod_text("b", "", "n2");
    let json = r#"{"apiVersion":"v1","kind":"PodList","metadata":{},"items":[
        {"metadata":{"name":"a","labels":{"app":"web"}},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"x","ports":[{"containerPort":8080,"name":"http"}]}]}},
        {"metadata":{"name":"b","labels":{}},"spec":{"nodeName":"n2","containers":[{"name":"c","image":"x","ports":[{"containerPort":8080,"name":"http"}]}]}}]}"#;
    let list = format!("apiVersion: v1\nkind: List\nitems: [{json}]\n");
    let stream = json
        .replace("PodList", "List")
        .replace("{\"metadata\":{\"name\"", "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\"");
    let expected = cluster(&yaml);
    assert_eq!(expected.pods.len(), 2);
    for text in [json, &list, &stream] {
        assert_eq!(cluster(text).pods, expected.pods);
    }
}

#[test]
fn json_objects_may_follow_each_other_without_separators() {
    let one = |name: &str| format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}}}}"#);
    assert_eq!(cluster(&format!("{}{}\n{}", one("a"), one("b"), one("c"))).pods.len(), 3);
}

#[test]
fn empty_documents_and_comments_are_passed_over() {
    let text = format!("# nothing\n---\n---\n# still nothing\n{}---\n", pod_text("a", "", ""));
    assert_eq!(cluster(&text).pods.len(), 1);
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_no_trouble() {
    let text = format!("\u{feff}{}", pod_text("a", "", "").replace('\n', "\r\n"));
    assert_eq!(cluster(&text).pods[0].name, "a");
}

#[test]
fn malformed_yaml_is_refused_with_file_and_line() {
    let error = load_text("x.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a\n").unwrap_err();
    assert!(error.to_string().starts_with("cannot parse x.yaml:"), "{error}");
    let error = load_text("x.yaml", "apiVersion: v1\nkind: Pod\n  metadata: 1\n").unwrap_err();
    assert!(error.to_string().starts_with("cannot parse x.yaml:3: "), "{error}");
}

#[test]
fn malformed_json_is_refused_with_file_and_line() {
    let error = load_text("x.json", "{\"apiVersion\": \"v1\",\n \"kind\": }").unwrap_err();
    assert_eq!(error.to_string(), "cannot parse x.json:2: expected value");
}

#[test]
fn a_key_written_twice_is_refused() {
    let yaml = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  name: b\n";
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","name":"b"}}"#;
    assert_eq!(
        load_text("x.yaml", yaml).unwrap_err().to_string(),
        r#"cannot parse x.yaml:5: duplicate field "name""#
    );
    assert_eq!(
        load_text("x.json", json).unwrap_err().to_string(),
        r#"cannot parse x.json:1: duplicate field "name""#
    );
}

#[test]
fn every_unknown_field_is_refused_in_the_words_of_kubectl() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: api, namespace: shop, lables: {}}
spec:\n  podSelector: {}\n  ingress:\n  - ports: [{port: 1}, {port: 2, prot: TCP}]\n";
    assert_eq!(
        fault(text),
        r#"NetworkPolicy shop/api: strict decoding error: unknown field "metadata.lables", unknown field "spec.ingress[0].ports[1].prot""#
    );
}

#[test]
fn unknown_fields_of_our_own_kinds_are_refused_too() {
    let text = "apiVersion: podpath.dev/v1alpha1\nkind: Testbed\nmetadata: {name: lab}\nspec: {podCidr: 10.0.0.0/8}\n";
    assert_eq!(fault(text), r#"Testbed lab: strict decoding error: unknown field "spec.podCidr""#);
}

#[test]
fn unknown_fields_of_objects_from_a_server_are_passed_over() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, uid: 1-2}\nspec: {containers: [], fromTheFuture: 1}\n";
    assert_eq!(cluster(text).pods.len(), 1);
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_path() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {version: 1}}\n";
    assert_eq!(fault(text), "Pod a: metadata.labels.version: invalid type: integer `1`, expected a string");
}

#[test]
fn y_is_a_name_where_text_belongs_and_yes_is_true_where_a_boolean_does() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: y, namespace: n, labels: {on: off}}\nspec: {hostNetwork: yes, containers: []}\n";
    let pod = &cluster(text).pods[0];
    assert_eq!((pod.id().as_str(), pod.labels["on"].as_str(), pod.host_network), ("n/y", "off", true));
    let text = text.replace("yes", "maybe");
    assert_eq!(fault(&text), "Pod n/y: spec.hostNetwork: invalid type: string \"maybe\", expected a boolean");
}

#[test]
fn other_kinds_are_skipped_and_one_note_says_so() {
    let others = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: y}
---\napiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n";
    let cluster = cluster(&(pod_text("a", "", "") + others));
    assert!(cluster.policies.is_empty());
    assert_eq!(
        cluster.notes[0],
        "Skipped objects of kinds that podpath does not read: ConfigMap (2), NetworkPolicy (1)."
    );
}

#[test]
fn a_known_kind_in_a_version_that_is_gone_is_refused() {
    let text = "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\n";
    assert_eq!(
        fault(text),
        r#"NetworkPolicy a: no matches for kind "NetworkPolicy" in version "extensions/v1beta1": write apiVersion: networking.k8s.io/v1"#
    );
}

#[test]
fn objects_without_kind_or_name_are_refused() {
    assert_eq!(fault("apiVersion: v1\nmetadata: {name: a}\n"), "object a: kind not set");
    assert!(fault("apiVersion: v1\nkind: Pod\nmetadata: {}\n").contains("metadata.name: Required value"));
    assert!(fault("just text\n").contains("not an object"));
}

#[test]
fn input_without_any_object_of_use_is_refused() {
    let error = load_text("x.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n").unwrap_err();
    assert!(matches!(error, Error::NoObjects { .. }), "{error}");
}

#[test]
fn the_same_object_twice_is_refused_naming_both_places() {
    let text = pod_text("a", "", "") + &pod_text("a", "", "");
    assert_eq!(
        wrong(&text),
        ["test.yaml:7: Pod default/a: is there already, from test.yaml:2: rename or remove one of them"]
    );
}

#[test]
fn items_of_a_list_are_reported_at_their_own_lines() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: B}\n";
    assert!(wrong(text)[0].starts_with("test.yaml:7: Pod default/B: metadata.name: "));
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: A, labels: {-x: y}}\n---\napiVersion: v1\nkind: Pod\nmetdata: {}\n---\nkind: 1\n";
    let faults = wrong(text);
    assert_eq!(faults.len(), 4, "{faults:#?}");
}

#[test]
fn directories_give_their_manifests_in_order_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file in it");
    write("20.yml", &pod_text("b", "", ""));
    write("10.yaml", &pod_text("a", "", ""));
    write("30.json", r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#);
    write("README.md", "not: [a manifest");
    fs::create_dir(folder.path().join("deeper.yaml")).expect("a directory in it");
    let cluster = load(&[folder.path().into()]).unwrap();
    assert_eq!(cluster.pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let missing = folder.path().join("missing.yaml");
    let error = load(&[missing.clone(), folder.path().into()]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("cannot read {}: No such file", missing.display())), "{text}");
    assert!(text.contains("no file in it ends in .yaml, .yml or .json"), "{text}");
}

#[test]
fn objects_survive_being_written_down() {
    let text = pod_text("a", "app: web", "n1")
        + &crate::testbed("maxPods: 3, nonMasqueradeCIDRs: [10.0.0.0/8]")
        + &crate::external_at("world", "203.0.113.7");
    let objects = Objects::parse("x.yaml", &text).unwrap();
    let written = serde_json::to_string(&objects).expect("objects are plain data");
    assert_eq!(serde_json::from_str::<Objects>(&written).expect("what was written"), objects);
}

#[test]
fn a_large_dump_is_no_budget_breach() {
    // The parser's own limit is 250,000 nodes in a text.
    let ones = "1,".repeat(251_000);
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large}}\ndata: [{ones}]\n{}",
        pod_text("a", "", "")
    );
    assert_eq!(cluster(&text).pods.len(), 1);
}
