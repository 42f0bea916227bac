//! Services, and what changes of them.

use std::collections::BTreeSet;

use dataplane::tables::{Backend, BackendId, Service as Row, Slots};

use super::super::{Change, Error, FrontendKey, NodeChange, Plan, RangePrefix, diff};
use super::differential::Dice;
use super::*;
use crate::model::{Algorithm, HostPort, ServiceKind, TrafficDistribution, TrafficPolicy};

const DNS: &str = "10.96.0.10";
const API: &str = "10.96.0.20";
const BALANCED: &str = "20.0.0.5";
const ROUTED: &str = "198.51.100.9";
/// Where node ports are.
const ANY: &str = "0.0.0.0";

fn rows_of(plan: &Plan, cluster: &Cluster) -> Rows<V4> {
    plan.node("n1", &links(cluster)).expect("n1 is there").rows.v4
}
fn key(address: &str, port: u16) -> FrontendKey<V4> {
    FrontendKey { address: v4(address), port, protocol: TCP }
}
/// The endpoints that a run of slots leads to, once for each slot.
fn led_to(rows: &Rows<V4>, slots: Slots) -> Vec<String> {
    let run = &rows.maglev[slots.first as usize..(slots.first + slots.count) as usize];
    run.iter().map(|id| name(&rows.backends[id.0 as usize])).collect()
}
/// Who answers inside, and outside.
fn both(rows: &Rows<V4>, address: &str, port: u16) -> [Vec<String>; 2] {
    let row = rows.frontends[&key(address, port)];
    [led_to(rows, row.internal), led_to(rows, row.external)]
}
fn state(rows: &Rows<V4>, end: &str) -> u8 {
    let row = rows.backends.iter().find(|row| name(row) == end);
    row.expect("it has a row").state
}

/// An endpoint on a node: how ready, serving and terminating it is, in this order.
fn on(node: &str, end: &str, [ready, serving, terminating]: [bool; 3]) -> model::Backend {
    let end: std::net::SocketAddr = end.parse().expect("an address and a port");
    let node = Some(node.to_owned());
    model::Backend { node, ready, serving, terminating, ..model::Backend::new(end.ip(), end.port()) }
}
const READY: [bool; 3] = [true, true, false];
const UNREADY: [bool; 3] = [false, false, false];
const GOING: [bool; 3] = [false, true, true];
const FAILING: [bool; 3] = [false, false, true];

/// A Service of every kind of address: DNS port 53, node port 30053.
fn exposed(cluster: &mut Cluster, backends: Vec<model::Backend>) -> &mut Service {
    service(cluster, DNS, 53, &[]);
    let service = cluster.services.last_mut().expect("one was added");
    service.kind = ServiceKind::LoadBalancer;
    service.external_addresses = vec![ip(ROUTED)];
    service.load_balancer_addresses = vec![ip(BALANCED)];
    service.ports[0].node_port = Some(30_053);
    service.ports[0].backends = backends;
    service
}

#[test]
fn every_backend_answers_and_nobody_else() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &["10.244.0.2:5353", "10.244.0.3:5353", "10.244.0.3:5353"]);
    let rows = planned(&cluster, "n1").rows.v4;
    let slots = answering(&rows, DNS, 53);
    assert_eq!(slots.len(), 2);
    let answering: BTreeSet<_> = slots.iter().map(String::as_str).collect();
    assert_eq!(answering, BTreeSet::from(["10.244.0.2:5353", "10.244.0.3:5353"]));
    assert_eq!(rows.backends.len(), 3, "number 0 is nobody's");
}

#[test]
fn a_service_without_backends_has_a_frontend_without_slots() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &[]);
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!(rows.frontends[&key(DNS, 53)].internal.count, 0);
    assert!(rows.maglev.is_empty() && rows.backends.is_empty());
}

#[test]
fn ipv6_services_and_backends_are_left_out() {
    let mut cluster = cluster(1);
    service(&mut cluster, "2001:db8::10", 53, &["10.244.0.2:53"]);
    service(&mut cluster, DNS, 53, &["[2001:db8::2]:53", "10.244.0.3:53"]);
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!((rows.frontends.len(), answering(&rows, DNS, 53)), (1, vec!["10.244.0.3:53".to_owned()]));
}

#[test]
fn services_are_the_same_on_every_node_and_whatever_their_order() {
    let mut cluster = cluster(2);
    service(&mut cluster, DNS, 53, &["10.244.0.2:53", "10.244.0.3:53", "10.244.1.3:53"]);
    service(&mut cluster, API, 80, &["10.244.0.2:80", "10.244.0.3:80"]);
    let (one, two) = (planned(&cluster, "n1").rows.v4, planned(&cluster, "n2").rows.v4);
    cluster.services.reverse();
    cluster.services.iter_mut().for_each(|service| service.ports[0].backends.reverse());
    let reversed = planned(&cluster, "n1").rows.v4;
    for other in [two, reversed] {
        assert_eq!((&one.frontends, &one.maglev), (&other.frontends, &other.maglev));
        assert_eq!(one.backends, other.backends);
    }
}

#[test]
fn what_did_not_change_keeps_its_numbers_and_its_slots() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &["10.244.0.2:53", "10.244.0.3:53"]);
    service(&mut cluster, API, 80, &["10.244.0.4:80", "10.244.0.5:80"]);
    let before = Plan::of(&cluster).expect("it can be planned");
    cluster.services[0].ports[0].backends.remove(0);
    cluster.services[0].ports[0].backends.push(model::Backend::new(ip("10.244.0.1"), 53));
    let after = before.after(&cluster).expect("it can be planned");
    let (old, new) = (rows_of(&before, &cluster), rows_of(&after, &cluster));
    assert_eq!(old.frontends[&key(API, 80)], new.frontends[&key(API, 80)]);
    assert_eq!(old.frontends[&key(DNS, 53)].id, new.frontends[&key(DNS, 53)].id);
    assert_eq!(old.maglev, new.maglev[..4]);
    assert_eq!(old.backends[2..5], new.backends[2..5]);
    assert_eq!(new.backends[1], Backend { state: Backend::<V4>::GONE, ..old.backends[1] });
    assert_eq!(name(&new.backends[5]), "10.244.0.1:53");
    assert_eq!(new.frontends[&key(DNS, 53)].internal, Slots { first: 4, count: 2 });
}

#[test]
fn room_that_was_given_up_is_used_again_one_plan_later() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &["10.244.0.2:53", "10.244.0.3:53"]);
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    for round in 0..20 {
        cluster.services[0].ports[0].backends[0].port = 1000 + round;
        plan = plan.after(&cluster).expect("it can be planned");
        let rows = rows_of(&plan, &cluster);
        let answering: BTreeSet<_> = answering(&rows, DNS, 53).into_iter().collect();
        assert!(answering.contains(&format!("10.244.0.2:{}", 1000 + round)), "{answering:?}");
        assert!(rows.maglev.len() <= 4, "{}", rows.maglev.len());
    }
}

#[test]
fn the_number_of_a_backend_that_left_is_given_to_another_only_after_all_the_others() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &["10.244.0.2:53"]);
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    let mut seen = BTreeSet::new();
    for port in 1000..1200 {
        cluster.services[0].ports[0].backends[0].port = port;
        plan = plan.after(&cluster).expect("it can be planned");
        let rows = rows_of(&plan, &cluster);
        let id = rows.maglev[rows.frontends[&key(DNS, 53)].internal.first as usize];
        assert!(seen.insert(id) && id != BackendId(0), "{id:?} came again");
    }
}

#[test]
fn a_service_that_loses_an_address_gets_new_backends_and_one_that_gains_one_keeps_its_own() {
    let number = |plan: &Plan, cluster: &Cluster| {
        let rows = rows_of(plan, cluster);
        let row = rows.frontends[&key(DNS, 53)];
        (row.id, rows.maglev[row.internal.first as usize])
    };
    let mut less = cluster(1);
    exposed(&mut less, vec![on("n1", "10.244.0.2:5353", READY)]).external_addresses.clear();
    let mut more = less.clone();
    more.services[0].external_addresses = vec![ip(ROUTED)];
    let first = Plan::of(&less).expect("it can be planned");
    let second = first.after(&more).expect("it can be planned");
    assert_eq!(number(&second, &more), number(&first, &less));
    let third = second.after(&less).expect("it can be planned");
    let ((id, old), (same, new)) = (number(&second, &more), number(&third, &less));
    assert!(same == id && new != old, "{id:?} {old:?}, {same:?} {new:?}");
    let rows = rows_of(&third, &less);
    let states = [old, new].map(|number| rows.backends[number.0 as usize].state);
    assert_eq!(states, [Backend::<V4>::GONE, Backend::<V4>::ACTIVE]);
}

#[test]
fn a_backend_is_kept_apart_for_each_service_that_it_is_behind() {
    let mut cluster = cluster(1);
    service(&mut cluster, DNS, 53, &["10.244.0.2:53"]);
    service(&mut cluster, API, 53, &["10.244.0.2:53"]);
    cluster.services[0].ports[0].backends[0].ready = false;
    let rows = planned(&cluster, "n1").rows.v4;
    let states: Vec<_> = rows.backends[1..].iter().map(|row| (name(row), row.state)).collect();
    let both =
        [Backend::<V4>::DRAINING, Backend::<V4>::ACTIVE].map(|state| ("10.244.0.2:53".to_owned(), state));
    assert_eq!(states, both);
    assert_eq!(rows.backends[1].seed, rows.backends[2].seed, "the same place is as likely in both");
}

#[test]
fn more_slots_than_the_table_holds_are_refused_by_name() {
    let mut cluster = cluster(1);
    for index in 0..16 {
        let backends: Vec<_> = (0..700)
            .map(|place| format!("10.244.{}.{}:{}", place / 250, place % 250 + 1, 80 + index))
            .collect();
        let backends: Vec<_> = backends.iter().map(String::as_str).collect();
        service(&mut cluster, &format!("10.96.1.{index}"), 80, &backends);
    }
    let error = Plan::of(&cluster).expect_err("too many");
    assert!(
        matches!(error, Error::TableFull { table: "maglev", needed: 2_097_136, capacity: 1_048_576, .. }),
        "{error}"
    );
}

#[test]
fn every_address_of_a_service_leads_to_the_same_candidates() {
    let mut cluster = cluster(2);
    exposed(&mut cluster, vec![on("n1", "10.244.0.2:53", READY), on("n2", "10.244.1.2:53", READY)]);
    let rows = planned(&cluster, "n1").rows.v4;
    let first = rows.frontends[&key(DNS, 53)];
    for (address, port) in [(ANY, 30_053), (ROUTED, 53), (BALANCED, 53)] {
        assert_eq!(rows.frontends[&key(address, port)], first, "{address}");
    }
    assert_eq!((rows.frontends.len(), rows.maglev.len(), first.internal), (4, 2, first.external));
}

#[test]
fn with_policy_local_inside_a_cluster_address_leads_to_the_clients_own_node_and_others_to_all() {
    let mut cluster = cluster(3);
    let backends = vec![on("n1", "10.244.0.2:53", READY), on("n2", "10.244.1.2:53", READY)];
    exposed(&mut cluster, backends).internal_policy = TrafficPolicy::Local;
    let rows = planned(&cluster, "n1").rows.v4;
    let all = ["10.244.0.2:53", "10.244.1.2:53"];
    assert_eq!(both(&rows, DNS, 53), [&all[..1], &all[..]]);
    assert_eq!(both(&rows, BALANCED, 53), [&all[..], &all[..]]);
    let elsewhere = planned(&cluster, "n3").rows.v4.frontends[&key(DNS, 53)];
    assert_eq!((elsewhere.internal.count, elsewhere.external.count), (0, 2));
    assert_eq!(elsewhere.flags, Row::INTERNAL_LOCAL);
}

#[test]
fn with_policy_local_outside_only_clients_outside_are_kept_on_the_node() {
    let mut cluster = cluster(3);
    let backends = vec![on("n1", "10.244.0.2:53", READY), on("n2", "10.244.1.2:53", READY)];
    exposed(&mut cluster, backends).external_policy = TrafficPolicy::Local;
    let all = ["10.244.0.2:53", "10.244.1.2:53"];
    for (address, port) in [(ANY, 30_053), (ROUTED, 53), (BALANCED, 53)] {
        let rows = planned(&cluster, "n2").rows.v4;
        assert_eq!(both(&rows, address, port), [&all[..], &all[1..]], "{address}");
        let elsewhere = planned(&cluster, "n3").rows.v4.frontends[&key(address, port)];
        assert_eq!((elsewhere.internal.count, elsewhere.external.count), (2, 0), "{address}");
        assert_eq!(elsewhere.flags, Row::EXTERNAL_LOCAL);
    }
    assert_eq!(both(&planned(&cluster, "n3").rows.v4, DNS, 53), [&all[..], &all[..]]);
}

#[test]
fn where_there_is_nobody_anywhere_no_policy_is_to_blame() {
    let mut cluster = cluster(1);
    let service = exposed(&mut cluster, vec![on("n1", "10.244.0.2:53", UNREADY)]);
    (service.internal_policy, service.external_policy) = (TrafficPolicy::Local, TrafficPolicy::Local);
    let rows = planned(&cluster, "n1").rows.v4;
    assert!(
        rows.frontends.values().all(|row| row.flags == 0 && row.internal.count + row.external.count == 0)
    );
}

#[test]
fn those_that_serve_while_they_go_answer_only_where_nobody_is_ready() {
    let mut cluster = cluster(3);
    let service = exposed(
        &mut cluster,
        vec![
            on("n1", "10.244.0.2:53", GOING),
            on("n1", "10.244.0.3:53", FAILING),
            on("n2", "10.244.1.2:53", READY),
            on("n2", "10.244.1.3:53", GOING),
        ],
    );
    service.external_policy = TrafficPolicy::Local;
    let (one, two) = (planned(&cluster, "n1").rows.v4, planned(&cluster, "n2").rows.v4);
    assert_eq!(both(&one, ANY, 30_053), [["10.244.1.2:53"], ["10.244.0.2:53"]]);
    assert_eq!(both(&two, ANY, 30_053), [["10.244.1.2:53"], ["10.244.1.2:53"]]);
    let states = ["10.244.0.2:53", "10.244.0.3:53", "10.244.1.2:53", "10.244.1.3:53"];
    let (active, draining) = (Backend::<V4>::ACTIVE, Backend::<V4>::DRAINING);
    assert_eq!(states.map(|end| state(&one, end)), [active, draining, active, draining]);
    cluster.services[0].ports[0].backends[2].ready = false;
    let rows = planned(&cluster, "n3").rows.v4;
    assert_eq!(both(&rows, DNS, 53)[0], ["10.244.0.2:53", "10.244.1.3:53"]);
    assert_eq!(states.map(|end| state(&rows, end)), [active, draining, draining, active]);
}

#[test]
fn a_backend_drains_while_it_is_known_and_is_gone_when_it_is_not() {
    let mut cluster = cluster(1);
    exposed(&mut cluster, vec![on("n1", "10.244.0.2:53", READY), on("n1", "10.244.0.3:53", READY)]);
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    let number = rows_of(&plan, &cluster).backends.iter().position(|row| name(row) == "10.244.0.2:53");
    let number = number.expect("it has a row");
    let mut states = vec![];
    for conditions in [Some(READY), Some(GOING), Some(READY), Some(UNREADY), None] {
        cluster.services[0].ports[0].backends.retain(|backend| backend.address == ip("10.244.0.3"));
        let backend = conditions.map(|conditions| on("n1", "10.244.0.2:53", conditions));
        cluster.services[0].ports[0].backends.extend(backend);
        plan = plan.after(&cluster).expect("it can be planned");
        let row = rows_of(&plan, &cluster).backends[number];
        assert_eq!(name(&row), "10.244.0.2:53");
        states.push(row.state);
    }
    let (active, draining) = (Backend::<V4>::ACTIVE, Backend::<V4>::DRAINING);
    assert_eq!(states, [active, draining, active, draining, Backend::<V4>::GONE]);
}

/// Nodes n1 and n2 in zone a, n3 in zone b, n4 in none.
fn zoned() -> Cluster {
    let mut cluster = cluster(4);
    for (node, zone) in cluster.nodes.iter_mut().zip(["a", "a", "b"]) {
        node.labels.insert("topology.kubernetes.io/zone".to_owned(), zone.to_owned());
    }
    let end = |node, zone: &str, end| model::Backend { zone: Some(zone.to_owned()), ..on(node, end, READY) };
    let backends = vec![
        end("n1", "a", "10.244.0.2:53"),
        end("n2", "a", "10.244.1.2:53"),
        end("n3", "b", "10.244.2.2:53"),
    ];
    exposed(&mut cluster, backends);
    cluster
}
fn near(cluster: &Cluster) -> [String; 4] {
    ["n1", "n2", "n3", "n4"].map(|node| {
        let rows = planned(cluster, node).rows.v4;
        assert_eq!(both(&rows, BALANCED, 53).map(|ends| ends.len()), [3, 3], "for cluster addresses alone");
        let ends = both(&rows, DNS, 53)[0].clone();
        ends.iter().filter_map(|end| end.split('.').nth(2)).collect::<Vec<_>>().join(" ")
    })
}

#[test]
fn clients_stay_in_their_zone_where_the_service_wants_that() {
    let mut cluster = zoned();
    assert_eq!(near(&cluster), ["0 1 2", "0 1 2", "0 1 2", "0 1 2"]);
    cluster.services[0].distribution = Some(TrafficDistribution::SameZone);
    assert_eq!(near(&cluster), ["0 1", "0 1", "2", "0 1 2"]);
    cluster.services[0].distribution = Some(TrafficDistribution::SameNode);
    assert_eq!(near(&cluster), ["0", "1", "2", "0 1 2"]);
    cluster.services[0].ports[0].backends[1].node = Some("n1".to_owned());
    assert_eq!(near(&cluster), ["0 1", "0 1", "2", "0 1 2"], "n2 has none: its zone has");
    cluster.services[0].internal_policy = TrafficPolicy::Local;
    assert_eq!(near(&cluster), ["0 1", "", "2", ""], "never where the policy is Local");
}

#[test]
fn hints_count_only_if_every_ready_endpoint_has_them() {
    let mut cluster = zoned();
    let hint = |cluster: &mut Cluster, place: usize, zones: &[&str]| {
        cluster.services[0].ports[0].backends[place].for_zones =
            zones.iter().map(|&zone| zone.into()).collect();
    };
    hint(&mut cluster, 0, &["a"]);
    hint(&mut cluster, 1, &["b", "a"]);
    assert_eq!(near(&cluster), ["0 1 2", "0 1 2", "0 1 2", "0 1 2"]);
    hint(&mut cluster, 2, &["c"]);
    assert_eq!(near(&cluster), ["0 1", "0 1", "1", "0 1 2"]);
    for (place, node) in ["n2", "elsewhere", "n4"].into_iter().enumerate() {
        cluster.services[0].ports[0].backends[place].for_nodes = vec![node.to_owned()];
    }
    assert_eq!(near(&cluster), ["0 1", "0", "1", "2"], "a hint for the node comes before one for its zone");
}

#[test]
fn a_hint_of_an_endpoint_that_is_not_ready_does_not_count() {
    let mut cluster = zoned();
    cluster.services[0].distribution = Some(TrafficDistribution::SameZone);
    let unzoned = on("n4", "10.244.3.2:53", UNREADY);
    cluster.services[0].ports[0].backends.push(unzoned);
    assert_eq!(near(&cluster), ["0 1", "0 1", "2", "0 1 2"]);
    for backend in &mut cluster.services[0].ports[0].backends {
        (backend.ready, backend.terminating) = (false, backend.serving);
    }
    assert_eq!(near(&cluster), ["0 1 2", "0 1 2", "0 1 2", "0 1 2"]);
}

#[test]
fn a_few_backends_are_listed_as_often_as_their_weights_say() {
    let mut cluster = cluster(1);
    let weighted = |end, weight| model::Backend { weight, ..on("n1", end, READY) };
    let backends = vec![weighted("10.244.0.2:53", 20), weighted("10.244.0.3:53", 60)];
    exposed(&mut cluster, backends);
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!(both(&rows, DNS, 53)[0], ["10.244.0.2:53", "10.244.0.3:53", "10.244.0.3:53", "10.244.0.3:53"]);
    cluster.services[0].ports[0].backends[0].weight = 7;
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!(rows.frontends[&key(DNS, 53)].internal.count, 16_381, "7 to 60 can be told in no short list");
}

#[test]
fn source_ranges_are_those_of_the_load_balancers_addresses() {
    let mut cluster = cluster(1);
    let ranges = ["203.0.113.0/24", "10.244.0.7/32", "2001:db8::/32"];
    exposed(&mut cluster, vec![]).source_ranges =
        ranges.map(|range| range.parse().expect("a range")).to_vec();
    let rows = planned(&cluster, "n1").rows.v4;
    let row = rows.frontends[&key(BALANCED, 53)];
    assert_eq!((row.flags, rows.frontends[&key(ROUTED, 53)].flags), (Row::RANGES, 0));
    let prefix = |address, bits| RangePrefix { service: row.id.0, address: v4(address), bits };
    let expected = [prefix("10.244.0.7", 32), prefix("203.0.113.0", 24)];
    assert_eq!(rows.source_ranges.into_keys().collect::<Vec<_>>(), expected);
    cluster.services[0].source_ranges.retain(|range| range.network().is_ipv6());
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!(rows.frontends[&key(BALANCED, 53)].flags, Row::RANGES, "nobody was named: nobody may come");
    assert!(rows.source_ranges.is_empty());
}

#[test]
fn choices_of_the_cluster_and_of_the_service_are_on_every_frontend() {
    let mut cluster = cluster(1);
    exposed(&mut cluster, vec![]).affinity_s = Some(10_800);
    cluster.settings.services.algorithm = Algorithm::Random;
    cluster.settings.services.direct_return = true;
    for row in planned(&cluster, "n1").rows.v4.frontends.values() {
        assert_eq!((row.affinity_s, row.flags), (10_800, Row::RANDOM | Row::DIRECT_RETURN));
    }
}

#[test]
fn a_host_port_leads_to_its_pod_from_its_own_node_alone() {
    let mut cluster = cluster(2);
    pod(&mut cluster, "a/old", ("n1", "10.244.0.2"), &[]);
    pod(&mut cluster, "a/web", ("n1", "10.244.0.3"), &[]);
    let port = |address: Option<&str>, port| HostPort {
        address: address.map(ip),
        port,
        protocol: Protocol::Tcp,
        container_port: 80,
    };
    cluster.pods[1].ready = false;
    cluster.pods[1].host_ports = vec![port(None, 8080), port(Some("10.240.9.9"), 81), port(Some("::1"), 82)];
    cluster.pods[0].host_ports = vec![port(Some("0.0.0.0"), 8080)];
    cluster.pods[0].terminating = true;
    let rows = planned(&cluster, "n1").rows.v4;
    assert_eq!(both(&rows, "10.240.0.4", 8080), [["10.244.0.3:80"], ["10.244.0.3:80"]]);
    assert_eq!(both(&rows, "10.240.9.9", 81)[0], ["10.244.0.3:80"]);
    assert_eq!(rows.frontends.len(), 2);
    assert!(planned(&cluster, "n2").rows.v4.frontends.is_empty());
    cluster.pods.pop();
    assert_eq!(both(&planned(&cluster, "n1").rows.v4, "10.240.0.4", 8080)[1], ["10.244.0.2:80"]);
}

/// Endpoints 10.244.x.y:80, so many of them.
fn many(number: usize) -> Vec<model::Backend> {
    let end = |place| on("n1", &format!("10.244.{}.{}:80", place / 250, place % 250 + 1), READY);
    (0..number).map(end).collect()
}

#[test]
fn a_table_that_keeps_its_size_changes_where_it_is_and_each_slot_by_itself() {
    let mut cluster = cluster(1);
    exposed(&mut cluster, many(100));
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    let before = rows_of(&plan, &cluster);
    cluster.services[0].ports[0].backends.remove(42);
    let changes = plan.change("n1", "a/s0", Some(&cluster.services[0])).expect("it can be planned");
    let moved = changes.iter().filter(|change| matches!(change, NodeChange::V4(Change::Slot(..)))).count();
    assert!((656..1200).contains(&moved), "{moved} of 65,521");
    let gone = changes.len() - moved;
    assert!(
        gone == 1
            && matches!(changes.last(), Some(NodeChange::V4(Change::Backend(_, row))) if row.state == Backend::<V4>::GONE)
    );
    let after = rows_of(&plan, &cluster);
    assert_eq!((&before.frontends, before.maglev.len()), (&after.frontends, 65_521));
    assert_eq!(both(&after, DNS, 53)[0].iter().collect::<BTreeSet<_>>().len(), 99);
}

#[test]
fn a_table_that_others_ask_for_from_here_on_is_a_new_one() {
    let mut cluster = cluster(2);
    exposed(&mut cluster, many(20));
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    let before = rows_of(&plan, &cluster);
    cluster.services[0].internal_policy = TrafficPolicy::Local;
    cluster.services[0].ports[0].backends.push(on("n2", "10.244.1.1:80", READY));
    plan = plan.after(&cluster).expect("it can be planned");
    let after = rows_of(&plan, &cluster);
    let (old, new) = (before.frontends[&key(DNS, 53)], after.frontends[&key(DNS, 53)]);
    assert_eq!(new.internal, old.internal, "n1 asks the same as before");
    assert_ne!(new.external, old.external);
    let run = old.internal.first as usize..(old.internal.first + old.internal.count) as usize;
    assert_eq!(before.maglev[run.clone()], after.maglev[run]);
}

/// The same Services, one of them changed a little.
fn altered(cluster: &mut Cluster, dice: &mut Dice) -> String {
    let place = dice.below(cluster.services.len());
    let nodes = cluster.nodes.len();
    let service = &mut cluster.services[place];
    match dice.below(6) {
        0 => service.external_policy = TrafficPolicy::Local,
        1 => service.internal_policy = TrafficPolicy::Local,
        2 => service.ports[0].node_port = Some(30_000 + place as u16),
        3 => service.source_ranges.push("203.0.113.0/24".parse().expect("a range")),
        4 => service.ports[0].backends.retain(|_| !dice.once_in(3)),
        _ => {
            for _ in 0..dice.below(8) {
                let node = format!("n{}", dice.below(nodes) + 1);
                let end = format!("10.244.{}.{}:80", dice.below(3), dice.below(250) + 1);
                service.ports[0].backends.push(on(&node, &end, *dice.one(&[READY, READY, GOING, UNREADY])));
            }
        }
    }
    service.id()
}

#[test]
fn a_change_of_one_service_comes_to_what_a_plan_of_all_of_them_says() {
    let mut dice = Dice(7);
    let mut cluster = cluster(2);
    for place in 0..5 {
        exposed(&mut cluster, many(10)).load_balancer_addresses = vec![ip(&format!("20.0.0.{place}"))];
        let service = cluster.services.last_mut().expect("one was added");
        service.addresses = vec![ip(&format!("10.96.0.{place}"))];
        (service.external_addresses, service.ports[0].node_port) = (vec![], None);
    }
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    let mut rows = plan.node("n2", &links(&cluster)).expect("n2 is there").rows;
    for round in 0..400 {
        let id = altered(&mut cluster, &mut dice);
        let asked = plan.after(&cluster).expect("it can be planned");
        let service = cluster.services.iter().find(|service| service.id() == id);
        let changes = plan.change("n2", &id, service).expect("it can be planned");
        changes.into_iter().for_each(|change| rows.make(change));
        assert_eq!(rows, plan.node("n2", &links(&cluster)).expect("n2 is there").rows, "round {round}");
        let all = asked.node("n2", &links(&cluster)).expect("n2 is there").rows;
        assert!(diff(&rows, &all, ROOM).is_empty(), "round {round}");
    }
    let id = cluster.services.pop().expect("there are five").id();
    plan.change("n2", &id, None).expect("it can be planned");
    let frontends = plan.node("n2", &links(&cluster)).expect("n2 is there").rows.v4.frontends;
    assert!(!frontends.contains_key(&key("10.96.0.4", 53)) && frontends.contains_key(&key("10.96.0.3", 53)));
}

#[test]
fn a_change_that_does_not_fit_changes_nothing() {
    let mut cluster = cluster(1);
    for index in 0..8 {
        exposed(&mut cluster, many(700)).addresses = vec![ip(&format!("10.96.1.{index}"))];
    }
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    let before = rows_of(&plan, &cluster);
    let mut more = cluster.services[0].clone();
    more.name = "more".to_owned();
    more.addresses = vec![ip("10.96.2.1")];
    let error = plan.change("n1", "a/more", Some(&more)).expect_err("there is room for eight").to_string();
    assert!(
        error.ends_with(
            "set a smaller services.maglevTableSize, or ask for fewer Services with many endpoints"
        ),
        "{error}"
    );
    assert_eq!(rows_of(&plan, &cluster), before);
    more.ports[0].backends.truncate(8);
    let changes = plan.change("n1", "a/more", Some(&more)).expect("this one fits");
    assert!(matches!(changes[0], NodeChange::V4(Change::Backend(..))) && changes.len() == 8 + 8 + 4);
}

#[test]
fn a_plan_that_resumes_keeps_the_numbers_of_the_rows_and_gives_none_of_them_to_others() {
    let mut dice = Dice(11);
    let mut cluster = cluster(2);
    for place in 0..5 {
        exposed(&mut cluster, many([3, 10, 40][place % 3])).addresses = vec![ip(&format!("10.96.0.{place}"))];
        let service = cluster.services.last_mut().expect("one was added");
        service.load_balancer_addresses = vec![ip(&format!("20.0.0.{place}"))];
        (service.external_addresses, service.ports[0].node_port) = (vec![], None);
    }
    let mut plan = Plan::of(&cluster).expect("it can be planned");
    for round in 0..60 {
        altered(&mut cluster, &mut dice);
        plan = plan.after(&cluster).expect("it can be planned");
        let node = plan.node("n1", &links(&cluster)).expect("n1 is there").rows;
        let (held, mut next) = (&node.v4, cluster.clone());
        service(&mut next, "10.96.9.9", 53, &["10.244.9.1:80", "10.244.9.2:80"]);
        let resumed = rows_of(&Plan::resuming(&next, &node).expect("it can be planned"), &next);
        let numbers = |rows: &Rows<V4>, slots: Slots| -> BTreeSet<u32> {
            (slots.first..slots.first + slots.count).map(|slot| rows.maglev[slot as usize].0).collect()
        };
        for (key, row) in &held.frontends {
            let now = resumed.frontends[key];
            assert_eq!(now.id, row.id, "round {round}: {key:?}");
            assert_eq!(
                numbers(&resumed, now.internal),
                numbers(held, row.internal),
                "round {round}: {key:?}"
            );
            assert_eq!(
                numbers(&resumed, now.external),
                numbers(held, row.external),
                "round {round}: {key:?}"
            );
        }
        // Those that nobody is led to keep a number of theirs as well: whoever is still on the way to them.
        for (number, row) in
            held.backends.iter().enumerate().filter(|(_, row)| row.state != Backend::<V4>::GONE)
        {
            assert_eq!(name(&resumed.backends[number]), name(row), "round {round}: backend {number}");
        }
        let new = resumed.frontends[&key("10.96.9.9", 53)];
        assert!(held.frontends.values().all(|row| row.id != new.id));
        assert!(numbers(&resumed, new.internal).iter().all(|number| *number as usize >= held.backends.len()));
    }
}
