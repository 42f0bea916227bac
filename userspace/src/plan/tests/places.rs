//! Nodes, endpoints, routes.

use dataplane::tables::{NodeId, RuleSet};
use dataplane::wire::{Mac, Port};

use super::super::Error;
use super::*;

/// Two nodes; web on n1, api on n2.
fn pair() -> Cluster {
    let mut cluster = cluster(2);
    pod(&mut cluster, "a/web", ("n1", "10.244.0.5"), &["app=web"]);
    pod(&mut cluster, "a/api", ("n2", "10.244.1.7"), &["app=api"]);
    cluster
}

#[test]
fn a_node_knows_itself() {
    let node = planned(&pair(), "n1").node;
    assert_eq!((node.underlay, node.uplink, node.mtu), (v4("10.240.0.4").to_v6(), IfIndex(1), 1500));
    assert_eq!(node.mac, Mac([0x0a, 0x58, 10, 240, 0, 4]));
    assert_eq!(
        (node.tunnel_port, node.masquerade_first, node.masquerade_count),
        (Port::new(8472), 32_768, 28_232)
    );
    assert_eq!(node.seed, planned(&pair(), "n2").node.seed);
    assert_ne!(node.seed, planned(&Cluster { name: "other".to_owned(), ..pair() }, "n1").node.seed);
}

#[test]
fn endpoints_are_the_pods_of_the_node_that_have_an_address_of_their_own() {
    let mut cluster = pair();
    pod(&mut cluster, "a/agent", ("n1", "10.240.0.4"), &[]);
    cluster.pods[2].host_network = true;
    pod(&mut cluster, "a/six", ("n1", "2001:db8::1"), &[]);
    let endpoints = planned(&cluster, "n1").rows.v4.endpoints;
    let mac = Mac([0x0a, 0x58, 10, 244, 0, 5]);
    let (identity, rules) = (Identity::WORLD, RuleSet(0));
    let web = Endpoint { interface: IfIndex(101), identity, rules, mac, isolated: 0, flags: 0 };
    assert_eq!(endpoints.into_iter().collect::<Vec<_>>(), [(v4("10.244.0.5"), web)]);
}

#[test]
fn every_address_is_somewhere() {
    let mut cluster = pair();
    cluster.settings.non_masquerade_cidrs = vec!["172.16.0.0/12".parse().expect("a range")];
    let rows = planned(&cluster, "n1").rows.v4;
    let gateway = Mac([0x0a, 0x58, 10, 240, 0, 1]);
    let expected = [
        ("10.240.0.4", Route::HOST, NodeId(0), Mac::default()),
        ("10.240.0.5", Route::REMOTE, NodeId(2), Mac([0x0a, 0x58, 10, 240, 0, 5])),
        ("10.240.9.9", Route::WORLD, NodeId(0), gateway),
        ("10.244.0.9", Route::BLACKHOLE, NodeId(0), Mac::default()),
        ("10.244.1.7", Route::REMOTE, NodeId(2), Mac([0x0a, 0x58, 10, 240, 0, 5])),
        ("10.244.77.1", Route::BLACKHOLE, NodeId(0), Mac::default()),
        ("10.96.0.10", Route::BLACKHOLE, NodeId(0), Mac::default()),
        ("172.20.0.1", Route::NATIVE, NodeId(0), gateway),
        ("203.0.113.7", Route::WORLD, NodeId(0), gateway),
    ];
    for (address, kind, id, mac) in expected {
        let route = route(&rows, address);
        assert_eq!((route.kind, route.id, route.mac), (kind, id, mac), "{address}");
        let node = if kind == Route::REMOTE { v4("10.240.0.5").to_v6() } else { V6::default() };
        assert_eq!(route.node, node, "{address}");
    }
}

#[test]
fn a_pod_outside_its_node_s_range_has_a_route_of_its_own() {
    let mut cluster = pair();
    pod(&mut cluster, "a/stray", ("n2", "10.244.0.200"), &[]);
    pod(&mut cluster, "a/far", ("n2", "192.168.1.1"), &[]);
    let rows = planned(&cluster, "n1").rows.v4;
    for address in ["10.244.0.200", "192.168.1.1"] {
        assert_eq!((route(&rows, address).kind, route(&rows, address).id), (Route::REMOTE, NodeId(2)));
    }
    assert!(planned(&cluster, "n2").rows.v4.endpoints.contains_key(&v4("10.244.0.200")));
    let known: Vec<_> =
        rows.routes.keys().filter(|prefix| prefix.bits == 32).map(|prefix| prefix.key).collect();
    let known: Vec<_> = known.into_iter().filter(|address| *address != V4([255; 4])).collect();
    assert_eq!(known, ["10.240.0.4", "10.240.0.5", "10.244.0.200", "192.168.1.1"].map(v4));
}

#[test]
fn a_host_outside_is_outside_even_inside_a_range_of_the_cluster() {
    let mut cluster = pair();
    external(&mut cluster, "printer", "10.244.50.1");
    external(&mut cluster, "world", "203.0.113.7");
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!(route(&rows, "10.244.50.1").kind, Route::WORLD);
    assert!(!rows.routes.contains_key(&prefix("203.0.113.7/32")), "the world has it already");
}

#[test]
fn ranges_that_are_not_masqueraded_do_not_reach_into_the_cluster() {
    let mut cluster = pair();
    cluster.settings.non_masquerade_cidrs =
        ["10.0.0.0/8", "10.244.1.128/25", "10.96.0.0/16"].map(|text| text.parse().expect("a range")).into();
    external(&mut cluster, "printer", "10.244.50.1");
    let rows = planned(&cluster, "n1").rows.v4;
    for (address, kind) in [
        ("10.1.1.1", Route::NATIVE),
        ("10.240.9.9", Route::NATIVE),
        ("10.240.0.5", Route::REMOTE),
        ("10.244.1.200", Route::REMOTE),
        ("10.244.50.1", Route::NATIVE),
        ("10.96.0.1", Route::BLACKHOLE),
        ("203.0.113.7", Route::WORLD),
    ] {
        assert_eq!(route(&rows, address).kind, kind, "{address}");
    }
}

#[test]
fn nodes_are_all_the_others_counted_in_the_cluster_s_order() {
    let nodes = planned(&cluster(3), "n2").rows.nodes;
    assert_eq!(
        nodes.into_iter().collect::<Vec<_>>(),
        [(v4("10.240.0.4").to_v6(), NodeId(1)), (v4("10.240.0.6").to_v6(), NodeId(3))]
    );
}

#[test]
fn what_cannot_be_planned_says_why_and_what_to_do() {
    let cluster = pair();
    let unknown = plan(&cluster, "n9", &links(&cluster)).expect_err("no such node");
    assert!(unknown.to_string().contains("n9") && unknown.to_string().contains("n1, n2"), "{unknown}");
    let without = plan(&cluster, "n1", &Links::default()).expect_err("no link");
    assert_eq!(without, Error::NoInterface { node: "n1".to_owned(), pod: "a/web".to_owned() });
}

#[test]
fn a_node_with_more_pods_than_its_table_holds_is_refused_by_name() {
    let mut cluster = cluster(1);
    for index in 0..1025 {
        pod(
            &mut cluster,
            &format!("a/p{index}"),
            ("n1", &format!("10.244.{}.{}", index / 250, index % 250 + 1)),
            &[],
        );
    }
    let error = plan(&cluster, "n1", &links(&cluster)).expect_err("too many").to_string();
    assert!(
        error.contains("node n1: table endpoints holds 1024 rows, 1025 are needed: place fewer"),
        "{error}"
    );
}

#[test]
fn an_ipv6_plan_is_made_of_the_ipv6_half() {
    let mut cluster = pair();
    cluster.nodes[0].addresses[0] = ip("2001:db8::4");
    cluster.settings.node_subnets[0] = "2001:db8::/64".parse().expect("a range");
    pod(&mut cluster, "a/six", ("n1", "2001:db8:1::5"), &[]);
    let plan = planned(&cluster, "n1");
    assert_eq!((plan.rows.v6.endpoints.len(), plan.rows.nodes.len()), (1, 1));
    assert_eq!(plan.node.underlay, plan.addresses.1, "its end of the tunnel is its first address");
    assert_eq!(plan.addresses.0, V4::default());
    let world = longest_v6(&plan.rows.v6.routes, "2001:db8:ffff::1");
    assert_eq!(world.kind, Route::WORLD);
    assert_eq!(route(&plan.rows.v4, "203.0.113.7").kind, Route::BLACKHOLE, "it has no address to lend");
}

#[test]
fn a_family_is_absent_until_a_range_a_node_or_a_pod_is_of_it() {
    let absent = |cluster: &Cluster| planned(cluster, "n1").node.absent;
    let four = cluster(1);
    assert_eq!(absent(&four), dataplane::tables::Node::NO_V6);
    let (mut of_pod, mut of_node, mut of_range, mut six) = (cluster(1), cluster(1), cluster(1), cluster(1));
    pod(&mut of_pod, "a/six", ("n1", "2001:db8:1::5"), &[]);
    of_node.nodes[0].addresses.push(ip("2001:db8::4"));
    of_range.settings.service_cidrs.push("fd00:10:96::/112".parse().expect("a range"));
    assert_eq!([of_pod, of_node, of_range].map(|cluster| absent(&cluster)), [0; 3]);
    let ranges = &mut six.settings;
    ranges.node_subnets = vec!["2001:db8::/64".parse().expect("a range")];
    (ranges.pod_cidrs, ranges.service_cidrs) = (Vec::new(), Vec::new());
    six.nodes[0].addresses = vec![ip("2001:db8::4")];
    six.nodes[0].pod_cidrs.clear();
    assert_eq!(absent(&six), dataplane::tables::Node::NO_V4);
}

/// The row of the longest prefix that holds the address.
fn longest_v6(rows: &std::collections::BTreeMap<Prefix<V6>, Route>, address: &str) -> Route {
    let address = V6(address.parse::<std::net::Ipv6Addr>().expect("an address").octets());
    let holding = rows.iter().filter(|(prefix, _)| prefix.contains(address));
    *holding.max_by_key(|(prefix, _)| prefix.bits).expect("every address has a route").1
}
