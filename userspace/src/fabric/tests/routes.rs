//! User-defined routes, appliances, and kubenet's route table.

use crate::model::{Model, NextHop, UserRoute};

use super::*;

fn route(name: &str, prefix: &str, next_hop: NextHop) -> UserRoute {
    UserRoute { name: name.to_owned(), prefix: prefix.parse().expect("a range"), next_hop }
}

fn with(routes: Vec<UserRoute>) -> Bench {
    let mut cluster = cluster(3);
    cluster.settings.fabric.routes = routes;
    Bench::new(&cluster)
}

fn by(appliance: &str) -> NextHop {
    NextHop::VirtualAppliance(ip(appliance))
}

const N3: Port = Port::Node(2);

#[test]
fn a_packet_for_the_world_goes_to_the_appliance_which_passes_it_on() {
    let mut bench = with(vec![route("firewall", "0.0.0.0/0", by("10.240.0.6"))]);
    let passed = bench.pass(N1, udp("10.240.0.4:1", "203.0.113.7:2"));
    assert_eq!(passed.end, End::Out(N3));
    assert_eq!(passed.frame[..6], mac_of(ip("10.240.0.6")).0);
    assert_eq!(ends(&passed.frame), ("10.240.0.4:1".to_owned(), "203.0.113.7:2".to_owned()));
    assert_eq!(passed.notes[0].to_string(), "route firewall by way of 10.240.0.6");
    // The appliance is not sent to itself, and may pass on what others sent.
    assert_eq!(bench.end(N3, udp("10.240.0.4:1", "203.0.113.7:2")), End::Out(WORLD));
    // The way back is the fabric's own.
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:2", "10.240.0.4:1")), End::Out(N1));
}

#[test]
fn an_appliance_may_be_a_host_outside() {
    let mut bench = with(vec![route("firewall", "0.0.0.0/0", by("198.51.100.9"))]);
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.7:2")), End::Out(OTHER));
    let frame = udp("10.240.0.4:1", "203.0.113.7:2");
    assert_eq!(bench.fabric.world_port(&frame), Some(OTHER));
    assert_eq!(bench.end(OTHER, frame), End::Out(WORLD));
}

#[test]
fn the_longest_prefix_wins_and_the_users_route_wins_over_one_of_the_fabrics_that_is_as_long() {
    let mut bench = with(vec![
        route("all", "0.0.0.0/0", by("10.240.0.6")),
        route("none", "203.0.113.0/24", NextHop::None),
        route("one", "203.0.113.7/32", NextHop::Internet),
    ]);
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.7:2")), End::Out(WORLD), "/32");
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.8:2")), End::Lost(Loss::RouteNone), "/24");
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "198.51.100.9:2")), End::Out(N3), "/0");
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "10.240.0.5:2")), End::Out(N2), "the network's own /16");
    let mut bench = with(vec![route("inside", "10.240.0.0/16", by("10.240.0.6"))]);
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "10.240.0.5:2")), End::Out(N3), "as long, and the user's");
    let mut frame = udp("10.240.0.4:1", "10.240.0.5:2");
    frame[..6].copy_from_slice(&mac_of(ip("10.240.0.5")).0);
    assert_eq!(bench.end(N1, frame), End::Out(N3), "also to a neighbour that is addressed itself");
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:1", "10.240.0.5:2")), End::Out(N2), "not for the world");
}

#[test]
fn what_a_route_leads_to_must_be_there() {
    let mut bench = with(vec![
        route("gone", "203.0.113.0/24", by("10.240.0.99")),
        route("internet", "10.240.0.0/17", NextHop::Internet),
        route("network", "198.51.100.0/24", NextHop::VirtualNetwork),
    ]);
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.7:2")), End::Lost(Loss::NoAppliance));
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "10.240.0.5:2")), End::Lost(Loss::NoRoute));
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "198.51.100.9:2")), End::Out(OTHER));
}

#[test]
fn a_packet_that_appliances_send_in_circles_ends_when_its_time_does() {
    let mut bench = with(vec![
        route("one", "203.0.113.0/24", by("10.240.0.5")),
        route("other", "203.0.112.0/22", by("10.240.0.6")),
    ]);
    let (mut port, mut frame) = (N1, udp("10.240.0.4:1", "203.0.113.7:2"));
    for _ in 0..64 {
        let outcomes = bench.send(port, frame);
        let Some(Outcome { end: End::Out(next), frame: passed, .. }) = outcomes.first() else {
            panic!("{outcomes:?}");
        };
        if outcomes.len() == 2 {
            assert_eq!(outcomes[1].end, End::Lost(Loss::TtlExceeded));
            return;
        }
        (port, frame) = (*next, passed.clone());
        frame[..6].copy_from_slice(&mac_of(ip("10.240.0.1")).0);
    }
    panic!("it goes round for ever");
}

#[test]
fn in_kubenet_the_route_table_leads_a_nodes_pod_range_to_the_node() {
    let mut kubenet = cluster(2);
    kubenet.settings.model = Model::Kubenet;
    let mut bench = Bench::new(&kubenet);
    assert_eq!(bench.end(N1, udp("10.244.0.5:1", "10.244.1.77:2")), End::Out(N2));
    assert_eq!(bench.end(N1, udp("[fd00:244::5]:1", "[fd00:244:1::77]:2")), End::Out(N2));
    let mut overlay = Bench::new(&cluster(2));
    assert_eq!(overlay.end(N1, udp("10.244.0.5:1", "10.244.1.77:2")), End::Lost(Loss::NoRoute));
}

#[test]
fn a_route_table_takes_400_routes() {
    let mut kubenet = cluster(401);
    kubenet.settings.model = Model::Kubenet;
    kubenet.nodes.iter_mut().for_each(|node| node.pod_cidrs.truncate(1));
    let why = Fabric::of(&kubenet, 1).map(drop).expect_err("one too many");
    assert_eq!(
        why.to_string(),
        "cannot add route 401 (10.245.150.0/24 by way of node n401) to the fabric's route table: it takes 400; \
         take fewer nodes, fewer user-defined routes, or a model that needs none: overlay, flat, flat-dynamic"
    );
    kubenet.nodes.pop();
    let mut fabric = Fabric::of(&kubenet, 1).expect("400 are fine");
    kubenet.settings.fabric.routes = vec![route("firewall", "0.0.0.0/0", by("10.240.0.6"))];
    assert!(matches!(fabric.apply(&kubenet), Err(Error::Routes { number: 401, .. })));
    kubenet.settings.model = Model::Flat;
    fabric.apply(&kubenet).expect("flat needs no routes");
}
