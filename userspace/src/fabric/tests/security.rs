//! Security groups.

use crate::model::{Direction, SecurityRule};

use super::*;

fn rule(name: &str, priority: u16, direction: Direction, allow: bool) -> SecurityRule {
    SecurityRule {
        name: name.to_owned(),
        priority,
        direction,
        allow,
        protocol: None,
        sources: Vec::new(),
        source_ports: Vec::new(),
        targets: Vec::new(),
        target_ports: Vec::new(),
    }
}

fn to_port(rule: SecurityRule, port: u16) -> SecurityRule {
    SecurityRule { target_ports: vec![(port, port)], ..rule }
}

fn with(rules: Vec<SecurityRule>) -> Bench {
    Bench::with(|cluster| cluster.settings.fabric.security_rules = rules)
}

const DENIED: End = End::Lost(Loss::SecurityDenied);

#[test]
fn the_first_rule_by_priority_decides_whatever_the_order_they_are_written_in() {
    let mut bench = with(vec![
        to_port(rule("deny-80", 200, Direction::Inbound, false), 80),
        to_port(rule("allow-80", 100, Direction::Inbound, true), 80),
        to_port(rule("deny-81", 100, Direction::Inbound, false), 81),
        to_port(rule("allow-81", 200, Direction::Inbound, true), 81),
    ]);
    let passed = bench.pass(WORLD, tcp("203.0.113.7:1000", "10.240.0.4:80", "S"));
    assert_eq!(passed.end, End::Out(N1));
    assert_eq!(passed.notes, [Note::Rule { name: "allow-80".to_owned(), allow: true }]);
    let denied = bench.pass(WORLD, tcp("203.0.113.7:1000", "10.240.0.4:81", "S"));
    assert_eq!(denied.end, DENIED);
    assert_eq!(denied.notes, [Note::Rule { name: "deny-81".to_owned(), allow: false }]);
    let hits: Vec<(String, u64)> =
        bench.fabric.report().rules.into_iter().map(|rule| (rule.name, rule.hits)).collect();
    for (name, expected) in [("allow-80", 1), ("deny-81", 1), ("deny-80", 0), ("DenyAllInBound", 0)] {
        assert!(hits.contains(&(name.to_owned(), expected)), "{name}: {hits:?}");
    }
}

#[test]
fn without_a_rule_of_the_users_nothing_is_denied_and_nothing_remembered() {
    let mut bench = with(Vec::new());
    assert_eq!(bench.end(WORLD, tcp("203.0.113.7:1000", "10.240.0.4:80", "S")), End::Out(N1));
    assert_eq!(bench.fabric.report().flows, 0);
    assert!(bench.fabric.report().rules.is_empty());
}

#[test]
fn with_one_rule_the_clouds_defaults_come_last() {
    let mut bench = with(vec![to_port(rule("allow-80", 100, Direction::Inbound, true), 80)]);
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:1", "10.240.0.4:9")), DENIED, "DenyAllInBound");
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "10.240.0.5:9")), End::Out(N2), "AllowVnetInBound");
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.7:9")), End::Out(WORLD), "AllowInternetOutBound");
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:1", "10.244.1.5:9")), DENIED, "pods are not in the network");
    let mut probing = Bench::with(|cluster| {
        cluster.settings.fabric.security_rules = vec![rule("deny-out", 100, Direction::Outbound, false)];
        cluster.externals[0].address = ip("168.63.129.16");
    });
    assert_eq!(probing.end(WORLD, udp("168.63.129.16:1", "10.240.0.4:9")), End::Out(N1), "health probes");
}

#[test]
fn replies_and_errors_about_a_flow_that_was_let_through_pass() {
    let mut bench = with(vec![rule("deny-in", 100, Direction::Inbound, false)]);
    let sent = udp("10.240.0.4:1000", "203.0.113.7:53");
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:53", "10.240.0.4:1000")), DENIED);
    assert_eq!(bench.end(N1, sent.clone()), End::Out(WORLD));
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:53", "10.240.0.4:1000")), End::Out(N1));
    assert_eq!(bench.end(WORLD, unreachable("203.0.113.7", "10.240.0.4", &sent, 28)), End::Out(N1));
    let other = udp("10.240.0.4:1001", "203.0.113.7:53");
    assert_eq!(bench.end(WORLD, unreachable("203.0.113.7", "10.240.0.4", &other, 28)), DENIED);
    assert_eq!(bench.end(N1, ping("10.240.0.4", "203.0.113.7", true)), End::Out(WORLD));
    assert_eq!(bench.end(WORLD, ping("203.0.113.7", "10.240.0.4", false)), End::Out(N1));
    assert_eq!(bench.end(WORLD, ping("203.0.113.7", "10.240.0.4", true)), DENIED);
    assert_eq!(bench.end(N1, ping("fd00:240::4", "2001:db8::7", true)), End::Out(Port::External(2)));
    assert_eq!(bench.end(Port::External(2), ping("2001:db8::7", "fd00:240::4", false)), End::Out(N1));
    assert_eq!(bench.end(Port::External(2), ping("2001:db8::7", "fd00:240::4", true)), DENIED);
}

#[test]
fn a_flow_is_judged_at_both_its_nodes() {
    let mut bench = with(vec![SecurityRule {
        sources: vec!["10.240.0.4/32".parse().expect("a range")],
        ..to_port(rule("deny-out-9", 100, Direction::Outbound, false), 9)
    }]);
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "10.240.0.5:9")), DENIED);
    assert_eq!(bench.end(N2, udp("10.240.0.5:1", "10.240.0.4:9")), End::Out(N1));
    assert_eq!(bench.end(N1, udp("10.240.0.4:9", "10.240.0.5:1")), End::Out(N2), "a reply");
    // The flow is a row at either node.
    assert_eq!(bench.fabric.report().flows, 2);
}

#[test]
fn a_flow_without_packets_is_forgotten_after_four_minutes() {
    let mut bench = with(vec![rule("deny-in", 100, Direction::Inbound, false)]);
    let reply = udp("203.0.113.7:53", "10.240.0.4:1000");
    assert_eq!(bench.end(N1, udp("10.240.0.4:1000", "203.0.113.7:53")), End::Out(WORLD));
    bench.wait(239);
    assert_eq!(bench.end(WORLD, reply.clone()), End::Out(N1));
    bench.wait(239);
    assert_eq!(bench.end(WORLD, reply.clone()), End::Out(N1), "each packet counts");
    bench.wait(240);
    assert_eq!(bench.end(WORLD, reply), DENIED);
    assert_eq!(bench.fabric.report().flows, 0);
}

#[test]
fn a_rule_that_names_ports_or_a_protocol_matches_only_those() {
    let mut bench = with(vec![
        to_port(rule("deny-9", 100, Direction::Outbound, false), 9),
        SecurityRule {
            protocol: Some(6),
            ..to_port(rule("deny-tcp-10", 110, Direction::Outbound, false), 10)
        },
    ]);
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.7:9")), DENIED);
    assert_eq!(bench.end(N1, tcp("10.240.0.4:1", "203.0.113.7:10", "S")), DENIED);
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.7:10")), End::Out(WORLD));
    assert_eq!(bench.end(N1, ping("10.240.0.4", "203.0.113.7", true)), End::Out(WORLD), "ping has no ports");
    let icmp = SecurityRule { protocol: Some(1), ..rule("deny-icmp", 100, Direction::Outbound, false) };
    let mut bench = with(vec![icmp]);
    assert_eq!(bench.end(N1, ping("10.240.0.4", "203.0.113.7", true)), DENIED);
    assert_eq!(bench.end(N1, ping("fd00:240::4", "2001:db8::7", true)), DENIED);
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.7:10")), End::Out(WORLD));
}

#[test]
fn a_changed_rule_is_for_new_flows() {
    let mut cluster = cluster(2);
    cluster.settings.fabric.security_rules = vec![to_port(rule("in-80", 100, Direction::Inbound, true), 80)];
    let mut bench = Bench::new(&cluster);
    let (old, new) = ("203.0.113.7:1000", "203.0.113.7:1001");
    assert_eq!(bench.end(WORLD, tcp(old, "10.240.0.4:80", "S")), End::Out(N1));
    cluster.settings.fabric.security_rules[0].allow = false;
    bench.fabric.apply(&cluster).expect("a rule has changed");
    assert_eq!(bench.end(WORLD, tcp(old, "10.240.0.4:80", "A")), End::Out(N1));
    assert_eq!(bench.end(WORLD, tcp(new, "10.240.0.4:80", "S")), DENIED);
}

#[test]
fn later_pieces_of_a_packet_follow_the_first_and_are_lost_without_it() {
    let mut bench = with(vec![to_port(rule("in-80", 100, Direction::Inbound, true), 80)]);
    let piece = |id: u16, offset: u16, more: bool| {
        let mut frame = udp("203.0.113.7:1000", "10.240.0.4:80");
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        let flags = (offset / 8) | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&flags.to_be_bytes());
        recount(&mut frame);
        frame
    };
    assert_eq!(bench.end(WORLD, piece(5, 8, false)), End::Lost(Loss::FragmentWithoutFirst));
    for (offset, more) in [(0, true), (8, true), (16, false)] {
        assert_eq!(bench.end(WORLD, piece(5, offset, more)), End::Out(N1));
    }
    bench.wait(30);
    assert_eq!(bench.end(WORLD, piece(5, 8, false)), End::Lost(Loss::FragmentWithoutFirst));
}
