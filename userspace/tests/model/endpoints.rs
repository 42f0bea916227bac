//! Endpoints, and the condition that each is in.

use userspace::model::{Backend, Cluster};

use crate::{cluster, fault, node_at, pod_text};

fn service(spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{ports: [{{port: 80}}], {spec}}}\n"
    )
}

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{endpoints}]\n"
    )
}

fn endpoints(text: &str) -> Vec<Backend> {
    cluster(text).service("default/web").expect("it is there").ports[0].backends.clone()
}

/// Ready, serving, terminating.
fn conditions(text: &str) -> Vec<(bool, bool, bool)> {
    endpoints(text).iter().map(|one| (one.ready, one.serving, one.terminating)).collect()
}

/// A node in a zone.
fn zoned(name: &str, address: &str, zone: &str) -> String {
    node_at(name, address).replace(
        &format!("name: {name}"),
        &format!("name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}"),
    )
}

/// A web pod whose condition Ready is this.
fn web(name: &str, ready: &str, node: &str) -> String {
    pod_text(name, "app: web", node)
        + &format!("status: {{conditions: [{{type: Ready, status: \"{ready}\"}}]}}\n")
}

fn terminating(pod: &str) -> String {
    pod.replacen("metadata: {", "metadata: {deletionTimestamp: \"2026-01-01T00:00:00Z\", ", 1)
}

#[test]
fn pods_are_in_the_condition_that_the_controller_would_give_them() {
    let pods = web("a", "True", "n1")
        + &web("b", "False", "n1")
        + &terminating(&web("c", "True", "n2"))
        + &terminating(&web("d", "False", "n2"));
    let text = pods.clone() + &service("selector: {app: web}");
    assert_eq!(
        conditions(&text),
        [(true, true, false), (false, false, false), (false, true, true), (false, false, true)]
    );
    let all = pods + &service("selector: {app: web}, publishNotReadyAddresses: true");
    assert_eq!(
        conditions(&all),
        [(true, true, false), (true, false, false), (true, true, true), (true, false, true)]
    );
}

#[test]
fn a_pod_that_terminates_stays_in_the_cluster() {
    let cluster = cluster(&terminating(&web("a", "True", "n1")));
    assert_eq!((cluster.pods[0].terminating, cluster.pods[0].ready), (true, true));
}

#[test]
fn what_a_slice_leaves_out_has_a_meaning() {
    let text = service("")
        + &slice(
            "a",
            "{addresses: [10.244.0.1]}, {addresses: [10.244.0.2], conditions: {ready: false}}, {addresses: [10.244.0.3], conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.244.0.4], conditions: {}}",
        );
    assert_eq!(
        conditions(&text),
        [(true, true, false), (false, false, false), (false, true, true), (true, true, false)]
    );
}

#[test]
fn node_and_zone_are_the_pods_or_what_the_slice_says() {
    let nodes = zoned("n1", "10.240.0.4", "z1") + &node_at("n2", "10.240.0.5");
    let place = |backend: &Backend| (backend.node.clone(), backend.zone.clone());
    let some = |text: &str| Some(text.to_owned());
    let selected =
        nodes.clone() + &web("a", "True", "n1") + &web("b", "True", "n2") + &service("selector: {app: web}");
    let places: Vec<_> = endpoints(&selected).iter().map(place).collect();
    assert_eq!(places, [(some("n1"), some("z1")), (some("n2"), None)]);
    let listed = nodes
        + &service("")
        + &slice(
            "a",
            "{addresses: [10.244.0.1], nodeName: n1}, {addresses: [10.244.0.2], nodeName: n2, zone: z9}, {addresses: [10.244.0.3], nodeName: gone}, {addresses: [10.244.0.4]}",
        );
    let places: Vec<_> = endpoints(&listed).iter().map(place).collect();
    assert_eq!(places, [(some("n1"), some("z1")), (some("n2"), some("z9")), (None, None), (None, None)]);
}

#[test]
fn hints_are_the_slices_or_what_the_controller_would_make_of_the_distribution() {
    let hints = |text: &str| -> Vec<(Vec<String>, Vec<String>)> {
        endpoints(text).into_iter().map(|one| (one.for_zones, one.for_nodes)).collect()
    };
    let some = |text: &str| vec![text.to_owned()];
    let nodes = zoned("n1", "10.240.0.4", "z1");
    let pods = nodes.clone() + &web("a", "True", "n1") + &web("b", "False", "n1");
    let spread = |how: &str| hints(&(pods.clone() + &service(&format!("selector: {{app: web}}{how}"))));
    assert_eq!(spread(""), [(vec![], vec![]), (vec![], vec![])]);
    for zone in ["PreferClose", "PreferSameZone"] {
        assert_eq!(
            spread(&format!(", trafficDistribution: {zone}")),
            [(some("z1"), vec![]), (vec![], vec![])]
        );
    }
    let same_node = spread(", trafficDistribution: PreferSameNode");
    assert_eq!(same_node, [(some("z1"), some("n1")), (vec![], vec![])]);
    let listed = nodes
        + &service("trafficDistribution: PreferSameNode")
        + &slice(
            "a",
            "{addresses: [10.244.0.1], hints: {forZones: [{name: z2}], forNodes: [{name: n1}]}}, {addresses: [10.244.0.2]}",
        );
    assert_eq!(hints(&listed), [(some("z2"), some("n1")), (vec![], vec![])]);
}

#[test]
fn an_endpoint_in_two_slices_is_one_as_good_as_the_better_of_them() {
    let text = service("")
        + &slice(
            "a",
            "{addresses: [10.244.0.1], conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.244.0.2]}",
        )
        + &slice("b", "{addresses: [10.244.0.1], nodeName: n1}");
    assert_eq!(conditions(&text), [(true, true, false), (true, true, false)]);
    assert_eq!(endpoints(&text)[0].node.as_deref(), Some("n1"));
}

#[test]
fn slices_of_names_are_left_out_with_a_note() {
    let names = slice("a", "{addresses: [www.example.com]}").replace("IPv4", "FQDN");
    let cluster: Cluster = cluster(&(service("") + &names));
    assert!(cluster.services[0].ports[0].backends.is_empty());
    let note = "Left out EndpointSlices of names (FQDN), which have no address on the path: default/a.";
    assert!(cluster.notes.contains(&note.to_owned()), "{:#?}", cluster.notes);
}

#[test]
fn a_pods_share_of_the_flows_is_what_its_annotation_says() {
    let weighted = |weight: &str| {
        web("a", "True", "n1").replacen(
            "metadata: {",
            &format!("metadata: {{annotations: {{podpath.dev/weight: \"{weight}\"}}, "),
            1,
        )
    };
    let pods = weighted("3") + &web("b", "True", "n1");
    let weights = |text: &str| -> Vec<u32> { endpoints(text).iter().map(|one| one.weight).collect() };
    assert_eq!(weights(&(pods.clone() + &service("selector: {app: web}"))), [3, 1]);
    let target = "targetRef: {kind: Pod, name: a}";
    let listed = format!("{{addresses: [10.244.0.77], {target}}}, {{addresses: [10.244.0.2]}}");
    let pods = pods.replacen("status: {", "status: {podIP: 10.244.0.2, ", 1);
    assert_eq!(weights(&(pods + &service("") + &slice("s", &listed))), [3, 3], "by name or by address");
    for wrong in ["0", "101", "heavy"] {
        assert_eq!(
            fault(&weighted(wrong)),
            format!(
                "Pod default/a: metadata.annotations[podpath.dev/weight]: must be between 1 and 100, inclusive, not {wrong:?}"
            )
        );
    }
}

#[test]
fn replicas_have_the_weight_of_their_template() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}, annotations: {podpath.dev/weight: \"7\"}}\n    spec: {containers: [{name: c, image: x}]}\n";
    assert_eq!(endpoints(&(text.to_owned() + &service("selector: {app: web}")))[0].weight, 7);
}
