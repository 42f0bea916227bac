//! How nodes and pods come by their addresses in each networking model, and when there are none left.

use userspace::model::{Cluster, Objects};

use crate::{cluster, external_at, node_at, pod, pod_at, pod_text, testbed, wrong};

fn pods(count: usize, node: &str) -> String {
    (0..count).map(|number| pod_text(&format!("p{number}"), "", node)).collect()
}

fn objects(text: &str) -> Objects {
    Objects::parse("live.yaml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn resolve(text: &str, previous: &Cluster) -> Result<Cluster, String> {
    objects(text).resolve(Some(previous)).map_err(|error| error.to_string())
}

fn node_text(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

fn nodes(names: &[&str]) -> String {
    names.iter().map(|name| node_text(name)).collect()
}

fn node_addresses(cluster: &Cluster) -> Vec<String> {
    cluster.nodes.iter().map(|node| format!("{} {}", node.name, node.address())).collect()
}

fn pod_addresses(cluster: &Cluster) -> Vec<String> {
    cluster.pods.iter().map(|pod| format!("{} {} {}", pod.name, pod.node, pod.address())).collect()
}

#[test]
fn a_node_of_flat_reserves_an_address_for_itself_and_each_pod() {
    let cluster = cluster(&(testbed("model: flat") + &pods(3, "")));
    assert_eq!(node_addresses(&cluster), ["n1 10.240.0.4", "n2 10.240.0.35"]);
    assert_eq!(pod_addresses(&cluster), ["p0 n1 10.240.0.5", "p1 n2 10.240.0.36", "p2 n1 10.240.0.6"]);
    assert!(cluster.nodes.iter().all(|node| node.pod_cidrs.is_empty()));
}

#[test]
fn the_ninth_flat_node_of_a_24_fails_to_join() {
    let text = |nodes: u32| testbed(&format!("model: flat, nodeSubnet: 10.240.0.0/24, nodes: {nodes}"));
    assert_eq!(cluster(&text(8)).nodes.len(), 8);
    assert_eq!(
        wrong(&text(9)),
        [
            "cannot give node n9 addresses: subnet 10.240.0.0/24 has 251 usable, 248 reserved (flat reserves 31 per node; 8 nodes fit): choose a larger nodeSubnet, or a smaller maxPods"
        ]
    );
}

#[test]
fn a_flat_node_that_goes_makes_room_for_another() {
    let bed = testbed("model: flat, nodeSubnet: 10.240.0.0/24");
    let names: Vec<String> = (1..=8).map(|number| format!("w{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let before = cluster(&(bed.clone() + &nodes(&names) + &pod_text("a", "", "w2")));
    let ninth =
        resolve(&(bed.clone() + &nodes(&names) + &nodes(&["w9"]) + &pod_text("a", "", "w2")), &before);
    assert!(ninth.is_err_and(|error| error.contains("cannot give node w9 addresses")));
    let others = [&names[1..], &["w9"]].concat();
    let after = resolve(&(bed + &nodes(&others) + &pod_text("a", "", "w2")), &before).expect("one has gone");
    assert_eq!(pod(&after, "default/a").address(), pod(&before, "default/a").address());
    assert_eq!(after.nodes[..7], before.nodes[1..]);
    assert_eq!(after.node("w9").map(|node| node.address()), before.node("w1").map(|node| node.address()));
}

#[test]
fn a_flat_node_has_no_more_addresses_than_it_reserved() {
    let text = testbed("model: flat, maxPods: 2, nodes: 1") + &pods(3, "n1");
    assert_eq!(
        wrong(&text),
        [
            "cannot give pod default/p2 an address: node n1 reserved 2 for its pods when it joined (maxPods), all in use: place it on another node, or choose a larger maxPods"
        ]
    );
}

#[test]
fn flat_pods_keep_what_they_state_and_it_counts_as_reserved() {
    let bed = testbed("model: flat, nodeSubnet: 10.240.0.0/28, maxPods: 4, nodes: 2");
    // 11 usable: 5 for each of two nodes. `a` runs on n2, which has the fewest pods.
    let text =
        bed + &node_at("n1", "10.240.0.4") + &node_text("n2") + &pod_at("a", "10.240.0.14") + &pods(3, "n1");
    let cluster = cluster(&text);
    assert_eq!(pod(&cluster, "default/a").address().to_string(), "10.240.0.14");
    assert_eq!(pod(&cluster, "default/p2").address().to_string(), "10.240.0.7");
    assert_eq!(cluster.node("n2").map(|node| node.address().to_string()).as_deref(), Some("10.240.0.9"));
}

#[test]
fn a_flat_subnet_is_found_around_nodes_and_pods() {
    let text = testbed("model: flat")
        + &node_at("n1", "10.1.0.4")
        + &pod_at("a", "10.1.0.5")
        + &external_at("x", "10.240.0.9");
    let cluster = cluster(&text);
    assert_eq!(cluster.settings.node_subnets[0].to_string(), "10.1.0.0/16");
    assert_eq!(cluster.settings.vnet_cidrs, cluster.settings.node_subnets);
    assert!(cluster.notes.iter().all(|note| !note.contains("outside")), "{:?}", cluster.notes);
}

#[test]
fn nodes_of_flat_have_no_ranges_for_their_pods_even_if_their_objects_say_so() {
    let text = testbed("model: flat") + &node_text("n1") + "spec: {podCIDR: 10.244.1.0/24}\n";
    let cluster = cluster(&text);
    assert!(cluster.nodes[0].pod_cidrs.is_empty());
    assert!(cluster.notes.contains(
        &"In model flat nodes have no ranges for their pods, so podCIDR means nothing: n1.".to_owned()
    ));
}

#[test]
fn kubenet_has_400_routes_so_400_nodes() {
    let text = |nodes: u32, more: &str| {
        testbed(&format!(
            "model: kubenet, nodes: {nodes}, podCIDR: 10.128.0.0/9, serviceCIDR: 10.64.0.0/16, nodeSubnet: 10.0.0.0/16{more}"
        ))
    };
    let full = cluster(&text(400, ""));
    assert_eq!(full.nodes[399].pod_cidrs[0].to_string(), "10.129.143.0/24");
    assert_eq!(
        wrong(&text(401, "")),
        [
            "cannot give node n401 a route: a route table holds 400, 1 for each node, so 400 nodes fit: choose another model"
        ]
    );
    let own = ", fabric: {routes: [{name: a, prefix: 0.0.0.0/0, nextHopType: Internet}]}";
    assert_eq!(
        wrong(&text(400, own)),
        [
            "cannot give node n400 a route: a route table holds 400, 1 for each node and 1 taken by fabric.routes, so 399 nodes fit: choose another model"
        ]
    );
}

#[test]
fn kubenet_with_two_families_has_two_routes_for_each_node() {
    let spec = "model: kubenet, nodes: 201, podCIDRs: [10.244.0.0/16, \"fd00:1::/48\"]";
    assert_eq!(
        wrong(&testbed(spec)),
        [
            "cannot give node n201 a route: a route table holds 400, 2 for each node, so 200 nodes fit: choose another model"
        ]
    );
}

#[test]
fn pods_of_flat_dynamic_have_addresses_of_their_nodes_batches() {
    let text = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/24") + &pods(3, "");
    let cluster = cluster(&text);
    assert_eq!(node_addresses(&cluster), ["n1 10.240.0.4", "n2 10.240.0.5"]);
    assert_eq!(pod_addresses(&cluster), ["p0 n1 10.241.0.4", "p1 n2 10.241.0.20", "p2 n1 10.241.0.5"]);
}

#[test]
fn a_node_of_flat_dynamic_asks_for_another_batch_when_fewer_than_8_are_free() {
    let bed = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/24");
    let addresses = |count: usize| {
        let on_second = pod_text("last", "", "n2");
        let cluster = cluster(&(bed.clone() + &pods(count, "n1") + &nodes(&["n1", "n2", "n3"]) + &on_second));
        let last = cluster.pods[count - 1].address().to_string();
        (last, pod(&cluster, "default/last").address().to_string())
    };
    // n1, n2 and n3 joined with a batch each; n1's second begins after theirs, at .52.
    assert_eq!(addresses(16), ("10.241.0.19".into(), "10.241.0.20".into()));
    assert_eq!(addresses(17), ("10.241.0.52".into(), "10.241.0.20".into()));
}

#[test]
fn pods_of_flat_dynamic_fail_to_start_when_no_whole_batch_is_left() {
    // 27 usable: one batch, and 11 that no node can have.
    let bed = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/27, nodes: 1");
    assert_eq!(cluster(&(bed.clone() + &pods(16, "n1"))).pods.len(), 16);
    assert_eq!(
        wrong(&(bed + &pods(17, "n1"))),
        [
            "cannot start pod default/p16: node n1 has no free address, and pod subnet 10.241.0.0/27 has 11 left, fewer than a batch of 16: of 27 usable 16 are pods', 11 are stranded (11 too few for a batch, 0 in batches of other nodes): choose a larger podSubnet"
        ]
    );
}

#[test]
fn what_other_nodes_hold_is_stranded_too() {
    let bed = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/26, nodes: 2, maxPods: 40");
    // 59 usable: three batches. n1 has two of them, n2 one, in which 15 are free.
    let error = wrong(&(bed + &pod_text("b", "", "n2") + &pods(33, "n1")));
    assert!(error[0].contains("cannot start pod default/p32"), "{error:?}");
    assert!(error[0].contains("of 59 usable 33 are pods', 26 are stranded (11 too few for a batch, 15 in batches of other nodes)"), "{error:?}");
}

#[test]
fn a_node_of_flat_dynamic_holds_no_more_than_its_pods_can_need() {
    let bed = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/24, nodes: 1, maxPods: 16");
    assert_eq!(
        wrong(&(bed + &pods(17, "n1"))),
        [
            "cannot start pod default/p16: node n1 has batches for the 16 pods that it takes (maxPods), all in use: place it on another node, or choose a larger maxPods"
        ]
    );
}

#[test]
fn batches_come_back_when_pods_go() {
    let bed = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/26, nodes: 3");
    // Three batches: n1 joins with one, n2 and n3 with one each; nothing is left for a second.
    let before = cluster(&(bed.clone() + &pods(16, "n1")));
    let more = resolve(&(bed.clone() + &pods(17, "n1")), &before);
    assert!(more.is_err_and(|error| error.contains("cannot start pod default/p16")));
    // A node that has gone has given its batch back.
    let fewer = bed.replace("nodes: 3", "nodes: 2");
    let after = resolve(&(fewer + &pods(17, "n1")), &before).expect("n3's batch is free");
    assert_eq!(after.pods[..16], before.pods);
    assert_eq!(pod(&after, "default/p16").address().to_string(), "10.241.0.20");
    // And so have pods: n1 needs one batch for eight.
    let few = resolve(&(bed.clone() + &pods(8, "n1") + &nodes(&["n1", "n2", "n3"])), &after)
        .expect("most are gone");
    assert_eq!(pod_addresses(&few), pod_addresses(&before)[..8]);
}

#[test]
fn batches_in_use_come_before_batches_that_are_wished_for() {
    let bed = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/26, nodes: 2");
    let text = bed.clone() + &pods(9, "n1") + &pod_text("b", "", "n2");
    let before = cluster(&text);
    // n1 has two batches now, n2 the third; n1 would like more than it needs, n2 needs what it has.
    let after = resolve(&(text.clone() + &pod_text("c", "", "n2")), &before).expect("n2 has a batch");
    assert_eq!(after.pods[..10], before.pods);
    assert_eq!(pod(&after, "default/c").node, "n2");
}

#[test]
fn a_cluster_may_change_its_model_between_two_of_its_lives() {
    let before = cluster(&(testbed("model: flat") + &pods(1, "n1")));
    let after = resolve(&(testbed("") + &pods(1, "n1")), &before).expect("it has room");
    assert_eq!(after.nodes[0].addresses, before.nodes[0].addresses);
    assert_eq!(after.settings.pod_cidrs[0].to_string(), "10.244.0.0/16");
    assert_eq!(after.nodes[0].pod_cidrs.len(), 1);
}
