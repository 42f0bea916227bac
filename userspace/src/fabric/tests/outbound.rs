//! The load balancer's outbound rule.

use super::*;

const PUBLIC: &str = "20.0.0.1";

/// Nodes with so many ports each.
fn with(each: u32) -> Bench {
    Bench::with(|cluster| balance(cluster, PUBLIC, each))
}

fn balance(cluster: &mut Cluster, address: &str, each: u32) {
    let balancer = &mut cluster.settings.load_balancer;
    (balancer.outbound, balancer.snat_ports_per_node) = (Some(ip(address)), each);
}

/// The port that a packet got on its way out.
fn port(bench: &mut Bench, from: Port, frame: Vec<u8>) -> u16 {
    let passed = bench.pass(from, frame);
    assert!(matches!(passed.end, End::Out(Port::External(_))), "{passed:?}");
    let source = end(&ends(&passed.frame).0);
    assert_eq!(source.ip(), ip(PUBLIC));
    source.port()
}

const EXHAUSTED: End = End::Lost(Loss::SnatPortsExhausted);
const NO_FLOW: End = End::Lost(Loss::SnatNoFlow);

#[test]
fn a_nodes_packet_to_the_world_gets_the_public_address_and_the_reply_finds_back() {
    let mut bench = with(64);
    for (sent, reply, public) in [
        (udp("10.240.0.4:1000", "203.0.113.7:53"), "udp", "20.0.0.1:1024"),
        (tcp("10.240.0.4:1000", "203.0.113.7:80", "S"), "tcp", "20.0.0.1:1025"),
    ] {
        let passed = bench.pass(N1, sent);
        assert_eq!(passed.end, End::Out(WORLD));
        let (source, target) = ends(&passed.frame);
        assert_eq!(source, public);
        assert_eq!(passed.notes[0].to_string(), format!("snat 10.240.0.4:1000 -> {public}"));
        let answer = if reply == "udp" { udp(&target, &source) } else { tcp(&target, &source, "SA") };
        let back = bench.pass(WORLD, answer);
        assert_eq!(back.end, End::Out(N1));
        assert_eq!(ends(&back.frame), (target, "10.240.0.4:1000".to_owned()));
        assert_eq!(back.notes[0].to_string(), format!("snat undone {public} -> 10.240.0.4:1000"));
    }
}

#[test]
fn a_flow_keeps_its_port_and_each_node_has_its_own_block() {
    let mut bench = with(64);
    let (one, two) = (udp("10.240.0.4:1000", "203.0.113.7:53"), udp("10.240.0.4:1001", "203.0.113.7:53"));
    assert_eq!(port(&mut bench, N1, one.clone()), 1024);
    assert_eq!(port(&mut bench, N1, two), 1025);
    assert_eq!(port(&mut bench, N1, one), 1024);
    assert_eq!(port(&mut bench, N2, udp("10.240.0.5:1000", "203.0.113.7:53")), 1088);
}

#[test]
fn what_runs_out_is_the_ports_towards_one_destination() {
    let mut bench = with(8);
    for source in 0..8 {
        port(&mut bench, N1, tcp(&format!("10.240.0.4:{}", 1000 + source), "203.0.113.7:80", "S"));
    }
    let next = |target: &str| tcp("10.240.0.4:1008", target, "S");
    assert_eq!(bench.end(N1, next("203.0.113.7:80")), EXHAUSTED);
    assert_eq!(port(&mut bench, N1, next("203.0.113.7:81")), 1024, "another port of the same host");
    assert_eq!(port(&mut bench, N1, next("198.51.100.9:80")), 1025, "another address");
    assert_eq!(port(&mut bench, N1, udp("10.240.0.4:1008", "203.0.113.7:80")), 1026, "another protocol");
    assert_eq!(port(&mut bench, N2, tcp("10.240.0.5:1008", "203.0.113.7:80", "S")), 1032, "another node");
    assert_eq!(bench.lost(Loss::SnatPortsExhausted), 1);
    let report = bench.fabric.report().snat.expect("there is a rule");
    let node = &report.nodes[0];
    assert_eq!((report.address, &*node.node, node.ports), (ip(PUBLIC), "n1", (1024, 1031)));
    assert_eq!((node.flows, node.exhausted), (11, 1));
    let top = SnatDestination { remote: end("203.0.113.7:80"), protocol: 6, used: 8 };
    assert_eq!((node.destinations.len(), &node.destinations[0]), (4, &top));
}

#[test]
fn a_port_is_free_again_after_the_idle_timeout_and_each_packet_counts() {
    let mut bench = with(1);
    let sent = |source: u16| udp(&format!("10.240.0.4:{source}"), "203.0.113.7:53");
    port(&mut bench, N1, sent(1));
    bench.wait(1799);
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:53", "20.0.0.1:1024")), End::Out(N1));
    bench.wait(1799);
    assert_eq!(bench.end(N1, sent(2)), EXHAUSTED, "the reply was a packet");
    bench.wait(1);
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:53", "20.0.0.1:1024")), NO_FLOW);
    assert_eq!(port(&mut bench, N1, sent(2)), 1024);
    assert_eq!(bench.end(N1, sent(1)), EXHAUSTED);
}

#[test]
fn a_closed_connection_holds_its_port_for_240_seconds_and_a_reset_one_for_15() {
    for (flags, seconds) in [("FA", 240), ("R", 15)] {
        let mut bench = with(1);
        let sent = |source: u16, flags| tcp(&format!("10.240.0.4:{source}"), "203.0.113.7:80", flags);
        port(&mut bench, N1, sent(1, "S"));
        assert_eq!(bench.end(WORLD, tcp("203.0.113.7:80", "20.0.0.1:1024", flags)), End::Out(N1));
        bench.wait(seconds - 1);
        assert_eq!(bench.end(N1, sent(2, "S")), EXHAUSTED, "{flags}");
        bench.wait(1);
        assert_eq!(port(&mut bench, N1, sent(2, "S")), 1024, "{flags}");
    }
}

#[test]
fn a_new_connection_from_the_same_port_opens_a_closed_one_anew() {
    let mut bench = with(1);
    let sent = |flags| tcp("10.240.0.4:1", "203.0.113.7:80", flags);
    port(&mut bench, N1, sent("S"));
    port(&mut bench, N1, sent("FA"));
    bench.wait(100);
    port(&mut bench, N1, sent("S"));
    bench.wait(1000);
    assert_eq!(bench.end(WORLD, tcp("203.0.113.7:80", "20.0.0.1:1024", "A")), End::Out(N1));
}

#[test]
fn ports_are_taken_in_turn_so_that_the_one_longest_free_comes_first() {
    let mut bench = with(4);
    let mut taken = Vec::new();
    for source in 0..6 {
        taken.push(port(
            &mut bench,
            N1,
            tcp(&format!("10.240.0.4:{}", 1000 + source), "203.0.113.7:80", "R"),
        ));
        bench.wait(15);
    }
    assert_eq!(taken, [1024, 1025, 1026, 1027, 1024, 1025]);
}

#[test]
fn what_the_rule_does_not_translate_does_not_get_out_and_what_is_not_its_business_does() {
    let mut bench = with(8);
    assert_eq!(bench.end(N1, ping("10.240.0.4", "203.0.113.7", true)), End::Lost(Loss::SnatProtocol));
    // To another node, and from a pod's own address.
    let passed = bench.pass(N1, udp("10.240.0.4:1", "10.240.0.5:2"));
    assert_eq!(ends(&passed.frame).0, "10.240.0.4:1");
    let passed = bench.pass(N1, udp("10.244.0.5:1", "203.0.113.7:2"));
    assert_eq!(ends(&passed.frame).0, "10.244.0.5:1");
    // The other family has no public address.
    let passed = bench.pass(N1, udp("[fd00:240::4]:1", "[2001:db8::7]:2"));
    assert_eq!(ends(&passed.frame).0, "[fd00:240::4]:1");
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:1", "20.0.0.1:1024")), NO_FLOW);
    assert_eq!(bench.end(WORLD, ping("203.0.113.7", "20.0.0.1", true)), NO_FLOW);
}

#[test]
fn replies_to_whoever_dialled_a_node_keep_the_nodes_address() {
    let mut bench = with(8);
    assert_eq!(bench.end(WORLD, tcp("203.0.113.7:1000", "10.240.0.4:80", "S")), End::Out(N1));
    let passed = bench.pass(N1, tcp("10.240.0.4:80", "203.0.113.7:1000", "SA"));
    assert_eq!(ends(&passed.frame).0, "10.240.0.4:80");
}

#[test]
fn errors_about_a_translated_packet_find_the_sender_with_what_he_sent() {
    for (address, from, to, port) in [
        (PUBLIC, "10.240.0.4:1000", "203.0.113.7:53", WORLD),
        ("2001:db8:1::1", "[fd00:240::4]:1000", "[2001:db8::7]:53", Port::External(2)),
    ] {
        let mut bench = Bench::with(|cluster| balance(cluster, address, 8));
        let remote = end(to).ip().to_string();
        for sent in [udp(from, to), tcp(from, to, "S")] {
            let outside = bench.pass(N1, sent.clone());
            // Whole, and as short as it may be.
            for bytes in [200, if address == PUBLIC { 28 } else { 48 }] {
                let back = bench.pass(port, unreachable(&remote, address, &outside.frame, bytes));
                assert_eq!(back.end, End::Out(N1));
                assert_eq!(quoted_ends(&back.frame), (from.to_owned(), to.to_owned()));
                assert_eq!(ends(&back.frame).1, SocketAddr::new(end(from).ip(), 0).to_string());
            }
        }
        let stranger = udp(&SocketAddr::new(ip(address), 9).to_string(), to);
        assert_eq!(bench.end(port, unreachable(&remote, address, &stranger, 28)), NO_FLOW);
    }
}

#[test]
fn a_nodes_error_about_a_reply_speaks_of_the_public_address() {
    let mut bench = with(8);
    port(&mut bench, N1, udp("10.240.0.4:1000", "203.0.113.7:53"));
    let reply = bench.pass(WORLD, udp("203.0.113.7:53", "20.0.0.1:1024"));
    let told = bench.pass(N1, unreachable("10.240.0.4", "203.0.113.7", &reply.frame, 28));
    assert_eq!(told.end, End::Out(WORLD));
    assert_eq!(ends(&told.frame).0, "20.0.0.1:0");
    assert_eq!(quoted_ends(&told.frame), ("203.0.113.7:53".to_owned(), "20.0.0.1:1024".to_owned()));
}

#[test]
fn a_datagram_without_a_checksum_stays_without_and_a_wrong_one_stays_wrong() {
    let mut bench = with(8);
    let mut frame = udp("10.240.0.4:1000", "203.0.113.7:53");
    frame[40..42].copy_from_slice(&[0, 0]);
    assert_eq!(bench.pass(N1, frame).frame[40..42], [0, 0]);
    let mut frame = udp("10.240.0.4:1001", "203.0.113.7:53");
    frame[42] ^= 0xff;
    let outcome = bench.send(N1, frame).remove(0);
    assert_eq!(outcome.end, End::Out(WORLD));
    let mut mended = outcome.frame;
    mended[42] ^= 0xff;
    sound(&mended);
}

#[test]
fn every_port_and_checksum_comes_out_right() {
    let mut bench = with(32_000);
    for source in (1..=65_535_u16).step_by(97) {
        let (from, to) = (format!("10.240.0.5:{source}"), format!("203.0.113.7:{}", source ^ 0x5555));
        let passed = bench.pass(N2, udp(&from, &to));
        let (source, target) = ends(&passed.frame);
        assert_eq!(ends(&bench.pass(WORLD, udp(&target, &source)).frame), (to, from));
    }
}

#[test]
fn with_security_rules_the_rule_sees_the_nodes_own_address_and_replies_pass() {
    use crate::model::{Direction, SecurityRule};
    let mut bench = Bench::with(|cluster| {
        balance(cluster, PUBLIC, 8);
        cluster.settings.fabric.security_rules = vec![SecurityRule {
            name: "deny-n1".to_owned(),
            priority: 100,
            direction: Direction::Outbound,
            allow: false,
            protocol: None,
            sources: vec!["10.240.0.4/32".parse().expect("a range")],
            source_ports: Vec::new(),
            targets: Vec::new(),
            target_ports: Vec::new(),
        }];
    });
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "203.0.113.7:2")), End::Lost(Loss::SecurityDenied));
    assert_eq!(port(&mut bench, N2, udp("10.240.0.5:1", "203.0.113.7:2")), 1032);
    bench.wait(1000);
    assert_eq!(
        bench.end(WORLD, udp("203.0.113.7:2", "20.0.0.1:1032")),
        End::Out(N2),
        "as long as the rule knows the flow"
    );
}

#[test]
fn nodes_keep_their_blocks_and_flows_when_others_come_and_go() {
    let mut cluster = cluster(2);
    balance(&mut cluster, PUBLIC, 8);
    let mut bench = Bench::new(&cluster);
    let sent = udp("10.240.0.5:1000", "203.0.113.7:53");
    assert_eq!(port(&mut bench, N2, sent.clone()), 1032);
    cluster.nodes[0] = node(9);
    cluster.pods.clear();
    cluster.nodes.push(node(10));
    bench.fabric.apply(&cluster).expect("three nodes");
    assert_eq!(port(&mut bench, N2, sent), 1032);
    assert_eq!(port(&mut bench, N1, udp("10.240.0.13:1", "203.0.113.7:53")), 1024, "n1's block is free");
    assert_eq!(port(&mut bench, Port::Node(2), udp("10.240.0.14:1", "203.0.113.7:53")), 1040);
}

#[test]
fn an_address_has_64000_ports_for_its_nodes() {
    let mut cluster = cluster(63);
    balance(&mut cluster, PUBLIC, 1024);
    let why = Fabric::of(&cluster, 1).map(drop).expect_err("one node too many");
    assert_eq!(
        why.to_string(),
        "cannot give 63 nodes 1024 SNAT ports each of 20.0.0.1: it has 64000 for them, enough for 62 nodes; \
         lower `loadBalancer.snatPortsPerNode`"
    );
    cluster.nodes.pop();
    Fabric::of(&cluster, 1).expect("62 nodes fit");
}
