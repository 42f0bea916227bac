//! Who gets which address, and what is refused.

use std::net::IpAddr;

use crate::{cluster, external_at, fault, node_at, pod, pod_at, pod_text, testbed, wrong};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn without_node_objects_there_are_two_nodes() {
    let cluster = cluster(&(pod_text("a", "", "") + &pod_text("b", "", "") + &pod_text("c", "", "")));
    let nodes: Vec<_> =
        cluster.nodes.iter().map(|node| (node.name.as_str(), node.address().to_string())).collect();
    assert_eq!(nodes, [("n1", "10.240.0.4".to_owned()), ("n2", "10.240.0.5".to_owned())]);
    let places: Vec<_> =
        cluster.pods.iter().map(|pod| (pod.node.as_str(), pod.address().to_string())).collect();
    let expected = [("n1", "10.244.0.2"), ("n2", "10.244.1.2"), ("n1", "10.244.0.3")];
    assert_eq!(places, expected.map(|(node, address)| (node, address.to_owned())));
    assert!(cluster.notes.contains(&"There are no Node objects: assumed nodes n1, n2.".to_owned()));
}

#[test]
fn nodes_that_pods_name_are_made_up_where_there_are_no_node_objects() {
    let cluster = cluster(&(testbed("nodes: 3") + &pod_text("a", "", "n2") + &pod_text("b", "", "worker")));
    let names: Vec<_> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["n2", "worker", "n1"]);
}

#[test]
fn a_node_that_does_not_exist_is_refused() {
    let text = node_at("worker-1", "10.240.0.9") + &pod_text("a", "", "worker-l");
    assert_eq!(
        fault(&text),
        r#"Pod default/a: spec.nodeName: there is no node "worker-l", did you mean "worker-1"?"#
    );
}

#[test]
fn stated_addresses_are_honoured_and_never_given_twice() {
    let text = node_at("n1", "10.240.0.4")
        + "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\n"
        + &pod_at("a", "10.244.0.2")
        + &pod_text("b", "", "n1");
    let cluster = cluster(&text);
    assert_eq!(cluster.node("n2").map(|node| node.address()), Some(ip("10.240.0.5")));
    assert_eq!(pod(&cluster, "default/a").address(), ip("10.244.0.2"));
    assert_eq!(pod(&cluster, "default/b").address(), ip("10.244.0.3"));
}

#[test]
fn a_nodes_own_pod_range_is_honoured_and_no_other_node_gets_it() {
    let node = |name: &str, range: &str| {
        format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {range}}}\n")
    };
    let text =
        node("n1", "") + &node("n2", "10.244.0.0/24") + &pod_text("a", "", "n1") + &pod_text("b", "", "n2");
    let cluster = cluster(&text);
    assert_eq!(pod(&cluster, "default/a").address(), ip("10.244.1.2"));
    assert_eq!(pod(&cluster, "default/b").address(), ip("10.244.0.2"));
    assert_eq!(
        fault(&(node("n1", "10.244.0.0/16") + &node("n2", "10.244.3.0/24"))),
        "Node n2: spec.podCIDR: 10.244.3.0/24 overlaps 10.244.0.0/16 of Node n1"
    );
}

#[test]
fn pod_ranges_of_other_sizes_are_kept_clear_of() {
    let text = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n".to_owned()
        + "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\nspec: {podCIDR: 10.244.0.0/23}\n"
        + "---\napiVersion: v1\nkind: Node\nmetadata: {name: n3}\nspec: {podCIDR: 10.244.2.128/25}\n"
        + "---\napiVersion: v1\nkind: Node\nmetadata: {name: n4}\n";
    let ranges: Vec<String> = cluster(&text).nodes.iter().map(|node| node.pod_cidrs[0].to_string()).collect();
    assert_eq!(ranges, ["10.244.3.0/24", "10.244.0.0/23", "10.244.2.128/25", "10.244.4.0/24"]);
}

#[test]
fn two_with_one_address_are_refused() {
    assert_eq!(
        fault(&(pod_at("a", "10.244.0.9") + &pod_at("b", "10.244.0.9"))),
        "Pod default/b: status.podIP: 10.244.0.9 is the address of Pod default/a already"
    );
    assert_eq!(
        fault(&(node_at("n1", "10.240.0.9") + &node_at("n2", "10.240.0.9"))),
        "Node n2: status.addresses: 10.240.0.9 is the address of Node n1 already"
    );
    assert_eq!(
        fault(&(pod_at("a", "10.244.0.9") + &external_at("world", "10.244.0.9"))),
        "External world: spec.address: 10.244.0.9 is the address of Pod default/a already"
    );
}

#[test]
fn pods_in_the_host_network_have_the_address_of_their_node() {
    let text = node_at("n1", "10.240.0.9")
        + &pod_text("a", "", "n1").replace("nodeName", "hostNetwork: true, nodeName")
        + "status: {podIP: 10.240.0.9}\n";
    let cluster = cluster(&text);
    assert_eq!(pod(&cluster, "default/a").address(), ip("10.240.0.9"));
    assert!(pod(&cluster, "default/a").host_network);
}

#[test]
fn a_pod_in_the_host_network_tells_where_its_node_is() {
    let host_pod = |address: &str| {
        let text = pod_text("a", "", "n7").replace("nodeName", "hostNetwork: true, nodeName");
        text + &format!("status: {{podIP: {address}}}\n")
    };
    let alone = cluster(&host_pod("172.18.0.3"));
    assert_eq!(alone.node("n7").map(|node| node.address()), Some(ip("172.18.0.3")));
    let both = cluster(&(node_at("n7", "10.240.0.9") + &host_pod("172.18.0.3")));
    assert_eq!(pod(&both, "default/a").address(), ip("10.240.0.9"));
    assert_eq!(
        both.notes,
        ["Pods of the host network have the address of their node, not the one stated: default/a."]
    );
}

#[test]
fn pods_know_the_addresses_of_nodes_that_have_no_objects() {
    let cluster = cluster(&(pod_text("a", "", "n7") + "status: {hostIP: 172.18.0.3}\n"));
    assert_eq!(cluster.node("n7").map(|node| node.address()), Some(ip("172.18.0.3")));
}

#[test]
fn ranges_follow_the_stated_addresses() {
    let text = node_at("n1", "192.168.10.1")
        + &node_at("n2", "192.168.10.2")
        + &pod_at("a", "192.168.1.11")
        + &pod_at("b", "192.168.4.44");
    let settings = cluster(&text).settings;
    assert_eq!(settings.node_subnets[0].to_string(), "192.168.10.0/24");
    assert_eq!(settings.pod_cidrs[0].to_string(), "192.168.0.0/21");
    assert_eq!(settings.service_cidrs[0].to_string(), "10.96.0.0/16");
}

#[test]
fn pods_that_share_a_subnet_with_nodes_keep_their_addresses() {
    let text = node_at("n1", "10.1.0.4")
        + &pod_at("a", "10.1.0.5")
        + &node_at("n2", "10.1.0.6")
        + &pod_at("b", "10.1.0.7")
        + &pod_text("c", "", "n1");
    let cluster = cluster(&text);
    assert_eq!(cluster.settings.node_subnets[0].to_string(), "10.1.0.0/28");
    assert_eq!(pod(&cluster, "default/b").address(), ip("10.1.0.7"));
    assert_eq!(pod(&cluster, "default/c").address(), ip("10.244.0.2"));
    assert!(
        cluster.notes.iter().any(|note| note.starts_with("Pods with addresses of their own outside podCIDR"))
    );
}

#[test]
fn ranges_keep_clear_of_hosts_outside() {
    let text = pod_text("a", "", "")
        + &external_at("far", "10.244.9.9")
        + &external_at("near", "10.240.0.4")
        + &external_at("six", "2606:4700::1");
    let cluster = cluster(&text);
    assert_eq!(cluster.externals.len(), 3);
    assert_eq!(cluster.settings.node_subnets[0].to_string(), "10.241.0.0/16");
    assert_eq!(cluster.settings.pod_cidrs[0].to_string(), "10.245.0.0/16");
}

#[test]
fn a_host_outside_may_not_be_inside_a_stated_range() {
    assert_eq!(
        fault(&(testbed("podCIDR: 10.244.0.0/16") + &external_at("world", "10.244.9.9"))),
        "External world: spec.address: 10.244.9.9 is inside podCIDR 10.244.0.0/16: a host outside the cluster needs an address outside of it"
    );
}

#[test]
fn overlapping_ranges_are_refused_naming_both() {
    assert_eq!(
        fault(&testbed("podCIDR: 10.0.0.0/16, serviceCIDR: 10.0.8.0/24")),
        "Testbed lab: spec.serviceCIDR: 10.0.8.0/24 overlaps podCIDR 10.0.0.0/16: no two ranges may have an address in common"
    );
    assert_eq!(
        fault(&testbed("serviceCIDR: 10.244.8.0/24")),
        "Testbed lab: spec.serviceCIDR: 10.244.8.0/24 overlaps podCIDR 10.244.0.0/16 (the default): no two ranges may have an address in common"
    );
    assert_eq!(
        fault(&testbed("nodeSubnet: 10.96.8.0/24")),
        "Testbed lab: spec.nodeSubnet: 10.96.8.0/24 overlaps serviceCIDR 10.96.0.0/16 (the default): no two ranges may have an address in common"
    );
}

#[test]
fn a_testbed_states_what_the_cluster_is_like() {
    let text = testbed("model: overlay, nodeSubnet: 172.16.0.0/24, podCIDR: 172.20.0.0/16, serviceCIDR: 172.30.0.0/24, maxPods: 30, nodes: 4, mtu: 9000, nonMasqueradeCIDRs: [10.0.0.7/8]").replace("name: lab", "name: blue");
    let cluster = cluster(&text);
    assert_eq!(cluster.name, "blue");
    assert_eq!(cluster.nodes.len(), 4);
    assert_eq!(cluster.nodes[3].address(), ip("172.16.0.7"));
    assert_eq!(cluster.nodes[3].pod_cidrs, ["172.20.3.0/24".parse().expect("a range")]);
    assert_eq!((cluster.settings.max_pods, cluster.settings.mtu), (30, 9000));
    assert_eq!(cluster.settings.non_masquerade_cidrs[0].to_string(), "10.0.0.0/8");
}

#[test]
fn a_testbed_without_a_spec_is_all_defaults() {
    let cluster = cluster("apiVersion: podpath.dev/v1alpha1\nkind: Testbed\nspec:\n");
    assert_eq!((cluster.name.as_str(), cluster.nodes.len(), cluster.settings.max_pods), ("lab", 2, 250));
}

#[test]
fn what_a_testbed_cannot_be_is_refused() {
    assert_eq!(
        fault(&testbed("model: bridge")),
        r#"Testbed lab: spec.model: Unsupported value: "bridge": supported values: "overlay", "flat", "flat-dynamic", "kubenet""#
    );
    assert_eq!(
        fault(&testbed("maxPods: 251")),
        "Testbed lab: spec.maxPods: must be between 1 and 250, inclusive, not 251"
    );
    assert!(
        fault(&testbed("podCIDR: 10.244.0.0/25"))
            .contains("spec.podCIDR: must have a prefix between /8 and /24")
    );
    let long = "a".repeat(41);
    assert!(
        fault(&testbed("").replace("lab", &long)).contains("metadata.name: must be no more than 40 bytes")
    );
    let both = testbed("") + &testbed("").replace("lab", "other");
    assert!(fault(&both).contains(r#"there is a Testbed "lab" already"#));
}

#[test]
fn addresses_must_be_where_a_testbed_says() {
    assert_eq!(
        fault(&(testbed("nodeSubnet: 10.1.0.0/16") + &node_at("n1", "10.2.0.4"))),
        "Node n1: status.addresses: 10.2.0.4 is outside nodeSubnet 10.1.0.0/16"
    );
    assert_eq!(
        fault(&(testbed("serviceCIDR: 10.96.0.0/16") + &pod_at("a", "10.96.0.7"))),
        "Pod default/a: status.podIP: 10.96.0.7 is inside serviceCIDR 10.96.0.0/16, where only Services have addresses"
    );
}

#[test]
fn exhausted_ranges_say_how_many_there_were() {
    let pods: String = (0..3).map(|number| pod_text(&format!("p{number}"), "", "")).collect();
    assert_eq!(
        wrong(&(testbed("nodes: 1, maxPods: 2") + &pods)),
        [
            "cannot place pod default/p2: 1 nodes take 2 pods each (maxPods), all 2 places are in use: add a node"
        ]
    );
    assert_eq!(
        wrong(&testbed("nodes: 4, nodeSubnet: 10.240.0.0/29")),
        [
            "cannot give node n4 an address: subnet 10.240.0.0/29 has 3 usable (8 less the 5 that the platform takes), all in use: choose a larger nodeSubnet"
        ]
    );
    assert_eq!(
        wrong(&testbed("nodes: 3, podCIDR: 10.244.0.0/23")),
        [
            "cannot give node n3 a pod range: podCIDR 10.244.0.0/23 holds 2 of size /24, one for each node, all in use: choose a larger podCIDR"
        ]
    );
}

#[test]
fn a_node_subnet_of_a_24_holds_251_nodes_in_overlay() {
    assert_eq!(cluster(&testbed("nodes: 251, nodeSubnet: 10.240.0.0/24")).nodes.len(), 251);
    assert!(wrong(&testbed("nodes: 252, nodeSubnet: 10.240.0.0/24"))[0].contains("has 251 usable"));
}

#[test]
fn the_same_input_gives_the_same_cluster() {
    let text = pod_text("a", "", "")
        + &pod_text("b", "", "")
        + &node_at("n1", "10.240.0.9")
        + &external_at("world", "1.1.1.1");
    let once = serde_json::to_string(&cluster(&text)).expect("plain data");
    assert_eq!(once, serde_json::to_string(&cluster(&text)).expect("plain data"));
}

#[test]
fn an_address_must_be_one_hosts() {
    for address in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        assert!(
            fault(&external_at("world", address)).contains("spec.address: must be the address of one host")
        );
        assert!(fault(&pod_at("a", address)).contains("status.podIP: must be the address of one host"));
    }
}

#[test]
fn nodes_too_far_apart_for_one_subnet_are_refused() {
    assert!(
        wrong(&(node_at("n1", "10.0.0.4") + &node_at("n2", "192.168.0.4")))[0]
            .starts_with("cannot choose a nodeSubnet")
    );
}
