//! The load balancer: where flows go, how they get there, and who is healthy.

use super::super::Standalone;
use crate::engine::emulator::balancer::Balancer;
use crate::model::{Forward, Service, ServiceKind, ServicePort};

use super::*;

const FRONTEND: &str = "20.0.0.80";
const FRONTEND_V6: &str = "2001:db8:80::80";

/// Three nodes behind a frontend of both families, port 80; node port 30080. Whether each answers probes.
struct Balanced {
    bench: Bench,
    answers: Vec<bool>,
    cluster: Cluster,
}

impl Balanced {
    fn new(forward: Forward, change: impl FnOnce(&mut Cluster)) -> Self {
        let mut cluster = cluster(3);
        cluster.settings.load_balancer.forward = forward;
        cluster.services = vec![Service {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            kind: ServiceKind::LoadBalancer,
            load_balancer_addresses: vec![ip(FRONTEND), ip(FRONTEND_V6)],
            ports: vec![
                ServicePort { port: 80, node_port: Some(30_080), ..ServicePort::default() },
                ServicePort {
                    name: Some("dns".to_owned()),
                    port: 53,
                    protocol: crate::model::Protocol::Udp,
                    node_port: Some(30_053),
                    ..ServicePort::default()
                },
            ],
            ..Service::default()
        }];
        change(&mut cluster);
        let mut balanced = Self { bench: Bench::new(&cluster), answers: vec![true; 3], cluster };
        balanced.probe();
        balanced
    }

    /// Lets the load balancer ask, and nodes answer or not.
    fn probe(&mut self) {
        let now_ns = self.bench.now_ns;
        self.bench.fabric.probe(now_ns);
        while let Some(outcome) = self.bench.fabric.due(now_ns) {
            let End::Out(Port::Node(node)) = outcome.end else { continue };
            if let Some(answer) = self.answers[node].then(|| accept(&outcome.frame)).flatten() {
                self.bench.fabric.arrive(Port::Node(node), answer, 0, now_ns);
            }
        }
    }

    /// So many rounds of probes.
    fn rounds(&mut self, rounds: u32) {
        for _ in 0..rounds {
            self.bench.wait(5);
            self.probe();
        }
    }

    /// The node that a frame of a client outside comes to.
    fn node(&mut self, frame: Vec<u8>) -> usize {
        match self.bench.pass(WORLD, frame).end {
            End::Out(Port::Node(node)) => node,
            other => panic!("{other:?}"),
        }
    }

    /// The nodes of connections from many ports, one packet each.
    fn spread(&mut self, flags: &str) -> Vec<usize> {
        (1..=300).map(|port| self.node(tcp(&format!("203.0.113.7:{port}"), "20.0.0.80:80", flags))).collect()
    }
}

/// The answer of somebody who takes a connection.
fn accept(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Tcp(asked)) = packet.transport else { return None };
    let (from, to) = ends(frame);
    let header = asked.to_header();
    asked.syn().then(|| {
        let mut answer = etherparse::TcpHeader::new(header.destination_port, header.source_port, 1, 65_535);
        (answer.syn, answer.ack, answer.acknowledgment_number) = (true, true, header.sequence_number + 1);
        let mut frame = Vec::new();
        to_gateway(end(&to).ip(), end(&from).ip(), 64)
            .tcp_header(answer)
            .write(&mut frame, &[])
            .expect("short");
        frame
    })
}

#[test]
fn flows_of_both_families_are_spread_over_the_nodes_and_keep_theirs() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |_| {});
    let first = balanced.spread("S");
    for node in 0..3 {
        let share = first.iter().filter(|it| **it == node).count();
        assert!((60..=140).contains(&share), "node {node} has {share} of 300");
    }
    assert_eq!(balanced.spread("A"), first);
    let six = |port| tcp(&format!("[2001:db8::7]:{port}"), &format!("[{FRONTEND_V6}]:80"), "S");
    let outcome = balanced.bench.pass(Port::External(2), six(1));
    assert!(matches!(outcome.end, End::Out(Port::Node(_))), "{outcome:?}");
}

#[test]
fn a_floating_address_reaches_the_node_unchanged_and_the_node_answers_from_it() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |_| {});
    let outcome = balanced.bench.pass(WORLD, tcp("203.0.113.7:7", "20.0.0.80:80", "S"));
    let End::Out(port @ Port::Node(_)) = outcome.end else { panic!("{outcome:?}") };
    assert_eq!(ends(&outcome.frame), ("203.0.113.7:7".to_owned(), "20.0.0.80:80".to_owned()));
    let answer = balanced.bench.pass(port, tcp("20.0.0.80:80", "203.0.113.7:7", "SA"));
    assert_eq!(answer.end, End::Out(WORLD));
    assert_eq!(ends(&answer.frame), ("20.0.0.80:80".to_owned(), "203.0.113.7:7".to_owned()));
}

#[test]
fn at_a_node_port_the_answer_comes_from_the_frontend_again_and_others_do_not() {
    let mut balanced = Balanced::new(Forward::NodePort, |_| {});
    for frame in [tcp("203.0.113.7:7", "20.0.0.80:80", "S"), udp("203.0.113.7:7", "20.0.0.80:53")] {
        let outcome = balanced.bench.pass(WORLD, frame);
        let End::Out(Port::Node(node)) = outcome.end else { panic!("{outcome:?}") };
        let (from, to) = ends(&outcome.frame);
        assert_eq!(from, "203.0.113.7:7");
        let (frontend, back) = if to.ends_with(":30080") {
            ("20.0.0.80:80", tcp(&to, &from, "SA"))
        } else {
            ("20.0.0.80:53", udp(&to, &from))
        };
        assert!(to.starts_with(&format!("10.240.0.{}:300", node + 4)), "{to}");
        let answer = balanced.bench.pass(Port::Node(node), back);
        assert_eq!((answer.end, ends(&answer.frame)), (End::Out(WORLD), (frontend.to_owned(), from)));
    }
    // Who dialled the node itself hears the node itself.
    let answer = balanced.bench.pass(N1, tcp("10.240.0.4:30080", "203.0.113.7:9", "SA"));
    assert_eq!(ends(&answer.frame).0, "10.240.0.4:30080");
}

#[test]
fn in_another_packet_the_clients_own_arrives_whole_and_the_outer_source_follows_the_flow() {
    let mut balanced = Balanced::new(Forward::IpInIp, |_| {});
    let mut sources = std::collections::BTreeSet::new();
    for port in 1..=20 {
        let sent = tcp(&format!("203.0.113.7:{port}"), "20.0.0.80:80", "S");
        let outcome = balanced.bench.send(WORLD, sent.clone()).remove(0);
        let End::Out(Port::Node(node)) = outcome.end else { panic!("{outcome:?}") };
        let outer = etherparse::Ipv4Header::from_slice(&outcome.frame[ETHERNET..]).expect("a header").0;
        assert_eq!(outer.header_checksum, outer.calc_header_checksum());
        assert_eq!((outer.protocol.0, outer.destination), (4, [10, 240, 0, node as u8 + 4]));
        assert_eq!(outer.source[..2], [198, 18]);
        sources.insert(outer.source);
        let inner = &outcome.frame[ETHERNET + 20..];
        assert_eq!(inner.len(), sent.len() - ETHERNET);
        assert_eq!(inner[12..], sent[ETHERNET + 12..], "all but hops and the header's checksum");
    }
    assert!(sources.len() > 15, "{sources:?}");
}

#[test]
fn a_client_with_affinity_always_comes_to_the_same_node() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |cluster| {
        cluster.settings.load_balancer.client_affinity = true;
    });
    let nodes = balanced.spread("S");
    assert!(nodes.iter().all(|node| *node == nodes[0]), "{nodes:?}");
}

#[test]
fn a_node_that_fails_its_probes_gets_no_new_flows_but_keeps_connections_until_it_is_back() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |_| {});
    let before = balanced.spread("S");
    balanced.answers[1] = false;
    // An outcome comes with the next probe: two of them make the threshold.
    balanced.rounds(2);
    assert_eq!(balanced.spread("S"), before, "one failure is not enough");
    balanced.rounds(1);
    let new: Vec<usize> = (301..=600)
        .map(|port| balanced.node(tcp(&format!("203.0.113.7:{port}"), "20.0.0.80:80", "S")))
        .collect();
    assert!(!new.contains(&1), "{new:?}");
    assert_eq!(balanced.spread("A"), before, "connections stay");
    balanced.answers[1] = true;
    balanced.rounds(2);
    let kept: Vec<usize> = (301..=600)
        .map(|port| balanced.node(tcp(&format!("203.0.113.7:{port}"), "20.0.0.80:80", "A")))
        .collect();
    assert_eq!(kept, new, "what began elsewhere stays there");
    assert_eq!(balanced.spread("A"), before);
    let fresh: Vec<usize> = (601..=900)
        .map(|port| balanced.node(tcp(&format!("203.0.113.7:{port}"), "20.0.0.80:80", "S")))
        .collect();
    assert!(fresh.contains(&1));
}

#[test]
fn connections_outlive_two_moves_of_their_slots() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |_| {});
    let first = balanced.spread("S");
    balanced.answers[0] = false;
    balanced.rounds(3);
    let mut second = Vec::new();
    for port in 1001..=1300 {
        second.push(balanced.node(tcp(&format!("203.0.113.7:{port}"), "20.0.0.80:80", "S")));
    }
    balanced.answers[1] = false;
    balanced.rounds(3);
    for (port, node) in (1001..=1300).zip(&second) {
        assert_eq!(balanced.node(tcp(&format!("203.0.113.7:{port}"), "20.0.0.80:80", "A")), *node, "{port}");
    }
    assert_eq!(balanced.spread("A"), first);
}

#[test]
fn a_slot_settles_once_nobody_goes_home_any_more() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |cluster| {
        cluster.settings.load_balancer.idle_timeout_s = 30;
    });
    let before = balanced.spread("S");
    balanced.answers[2] = false;
    balanced.rounds(3);
    assert_eq!(balanced.spread("A"), before);
    balanced.rounds(12);
    assert!(!balanced.spread("A").contains(&2), "all have been silent for longer than flows may idle");
}

#[test]
fn datagrams_go_home_for_a_while_and_then_to_who_has_the_slot() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |_| {});
    let ask = |balanced: &mut Balanced, ports: std::ops::Range<u16>| -> Vec<usize> {
        ports.map(|port| balanced.node(udp(&format!("203.0.113.7:{port}"), "20.0.0.80:53"))).collect()
    };
    balanced.answers[0] = false;
    balanced.rounds(3);
    let without = ask(&mut balanced, 1..200);
    assert!(!without.contains(&0), "nobody unhealthy gets datagrams");
    balanced.answers[0] = true;
    balanced.rounds(2);
    assert_eq!(ask(&mut balanced, 1..200), without, "pinned");
    balanced.bench.wait(61);
    balanced.probe();
    assert!(ask(&mut balanced, 1000..1200).contains(&0));
}

#[test]
fn what_nobody_healthy_stands_behind_is_dropped_and_so_is_an_unknown_port() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |_| {});
    assert_eq!(
        balanced.bench.end(WORLD, tcp("203.0.113.7:7", "20.0.0.80:81", "S")),
        End::Lost(Loss::NoFrontend)
    );
    balanced.answers = vec![false; 3];
    balanced.rounds(3);
    assert_eq!(
        balanced.bench.end(WORLD, tcp("203.0.113.7:9000", "20.0.0.80:80", "S")),
        End::Lost(Loss::NoHealthyNode)
    );
    let report = balanced.bench.fabric.report();
    let states: Vec<_> = report.frontends[0].nodes.iter().map(|node| node.state.as_str()).collect();
    assert_eq!(states, ["unhealthy"; 3]);
    assert_eq!(balanced.bench.lost(Loss::NoHealthyNode), 1);
}

#[test]
fn a_fragment_for_a_frontend_is_refused() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |_| {});
    let mut frame = udp("203.0.113.7:7", "20.0.0.80:53");
    frame[ETHERNET + 6] = 0x20;
    recount(&mut frame);
    assert_eq!(balanced.bench.end(WORLD, frame), End::Lost(Loss::BalancerFragment));
}

#[test]
fn a_node_that_leaves_takes_its_connections_along_and_only_those() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |_| {});
    let before = balanced.spread("S");
    balanced.cluster.nodes.pop();
    balanced.bench.fabric.apply(&balanced.cluster).expect("a smaller cluster");
    let after = balanced.spread("A");
    for (before, after) in before.iter().zip(&after) {
        assert!(*before == 2 || before == after, "{before} -> {after}");
        assert_ne!(*after, 2);
    }
}

#[test]
fn a_frontend_keeps_its_slots_while_hundreds_of_others_come_and_go() {
    let mut balanced = Balanced::new(Forward::NodePort, |_| {});
    let before = balanced.spread("S");
    for turn in 0..300 {
        let mut other = balanced.cluster.services[0].clone();
        other.name = format!("other-{turn}");
        other.load_balancer_addresses = vec![ip(&format!("20.0.1.{}", turn % 250))];
        let mut cluster = balanced.cluster.clone();
        cluster.services.push(other);
        balanced.bench.fabric.apply(&cluster).expect("there is room");
    }
    assert_eq!(balanced.spread("A"), before);
    let cluster = balanced.cluster.clone();
    balanced.bench.fabric.apply(&cluster).expect("there is room");
    assert_eq!(balanced.spread("S"), before);
}

#[test]
fn ways_back_from_more_nodes_than_there_is_room_for_are_refused() {
    let mut cluster = Balanced::new(Forward::NodePort, |_| {}).cluster;
    let port = cluster.services[0].ports[0].clone();
    cluster.services[0].ports =
        (0..100).map(|number| ServicePort { port: 1000 + number, ..port.clone() }).collect();
    let node = cluster.nodes[0].clone();
    cluster.nodes = (0..200).map(|number| Node { name: format!("m{number}"), ..node.clone() }).collect();
    let refused = super::super::balancer::check(&cluster).expect_err("200 nodes, 200 ports");
    assert!(refused.to_string().contains("200 ports of frontends: it takes 81"), "{refused}");
}

#[test]
fn nodes_that_have_ipv6_only_are_asked_as_often_as_is_stated() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |cluster| {
        cluster.settings.load_balancer.probe_interval_s = 2;
        cluster.nodes.iter_mut().for_each(|node| node.addresses.retain(IpAddr::is_ipv6));
        cluster.services[0].load_balancer_addresses = vec![ip(FRONTEND_V6)];
    });
    let mut asked = Vec::new();
    for _ in 0..6 {
        balanced.bench.wait(1);
        let now_ns = balanced.bench.now_ns;
        balanced.bench.fabric.probe(now_ns);
        let probes: Vec<_> = std::iter::from_fn(|| balanced.bench.fabric.due(now_ns)).collect();
        for probe in &probes {
            let (_, to) = ends(&probe.frame);
            assert!(to.starts_with("[fd00:240::"), "{to}");
        }
        asked.push(probes.len());
    }
    assert_eq!(asked, [0, 3, 0, 3, 0, 3]);
}

#[test]
fn with_local_policy_the_health_check_node_port_is_asked_for_by_http() {
    let mut balanced = Balanced::new(Forward::FloatingIp, |cluster| {
        cluster.services[0].health_check_node_port = Some(32_000);
    });
    balanced.bench.wait(5);
    let now_ns = balanced.bench.now_ns;
    balanced.bench.fabric.probe(now_ns);
    let asked = balanced.bench.fabric.due(now_ns).expect("a probe");
    let (from, to) = ends(&asked.frame);
    assert!(from.starts_with("168.63.129.16:"), "{from}");
    assert_eq!(to, "10.240.0.4:32000");
    let accepted = accept(&asked.frame).expect("a SYN");
    balanced.bench.fabric.arrive(N1, accepted, 0, now_ns);
    let outcomes: Vec<_> = std::iter::from_fn(|| balanced.bench.fabric.due(now_ns)).collect();
    let request = outcomes.iter().find(|outcome| outcome.frame.windows(13).any(|it| it == b"GET /healthz "));
    assert!(request.is_some(), "{outcomes:?}");
}

#[test]
fn what_would_be_too_long_in_another_packet_is_lost_and_its_sender_is_told_how_long_it_may_be() {
    let mut balanced = Balanced::new(Forward::IpInIp, |_| {});
    let six = Port::External(2);
    for (port, from, to, header) in
        [(WORLD, "203.0.113.7", FRONTEND, 20), (six, "2001:db8::7", FRONTEND_V6, 40)]
    {
        let room = 1500 - header;
        let mut frame = |length: usize| {
            let mut frame = Vec::new();
            let builder = to_gateway(ip(from), ip(to), 64).udp(7, 53);
            builder.write(&mut frame, &vec![0; length - header - 8]).expect("a packet");
            balanced.bench.send(port, frame)
        };
        let fits = frame(room);
        assert!(matches!(fits[0].end, End::Out(Port::Node(_))), "{fits:?}");
        assert_eq!(fits[0].frame.len(), ETHERNET + 1500);
        let outcomes = frame(room + 1);
        assert_eq!(outcomes.last().map(|lost| lost.end), Some(End::Lost(Loss::TooBig)), "{to}");
        let told = SlicedPacket::from_ethernet(&outcomes[0].frame).expect("a sound packet");
        let says = match told.transport {
            Some(TransportSlice::Icmpv4(told)) => told.icmp_type(),
            Some(TransportSlice::Icmpv6(told)) => {
                assert_eq!(told.icmp_type(), etherparse::Icmpv6Type::PacketTooBig { mtu: 1460 });
                continue;
            }
            other => panic!("{other:?}"),
        };
        let next_hop_mtu = 1480;
        let needed = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
        assert_eq!(says, etherparse::Icmpv4Type::DestinationUnreachable(needed));
    }
}

#[test]
fn what_came_for_frontends_is_what_was_sent_and_what_was_lost_and_each_loss_has_its_reason() {
    let mut balanced = Balanced::new(Forward::NodePort, |_| {});
    balanced.spread("S");
    for _ in 0..3 {
        balanced.bench.end(WORLD, tcp("203.0.113.7:7", "20.0.0.80:81", "S"));
    }
    balanced.answers = vec![false; 3];
    balanced.rounds(3);
    balanced.bench.end(WORLD, tcp("203.0.113.7:9000", "20.0.0.80:80", "S"));
    let report = balanced.bench.fabric.report().balancer.expect("it has frontends");
    assert_eq!((report.arrived, report.sent), (304, 300));
    let lost = [("no-frontend", 3), ("no-healthy-node", 1)].map(|(slug, count)| (slug.to_owned(), count));
    assert_eq!(report.lost, lost.into());
}

#[test]
fn beside_a_bridge_it_probes_from_its_own_link_and_gives_flows_to_whoever_answers() {
    let cluster = Balanced::new(Forward::FloatingIp, |_| {}).cluster;
    let constants = Standalone::constants(&cluster).expect("there is room");
    let mut alone = Standalone::new(&cluster, Balancer::new(constants), 0).expect("there is room");
    let probes = alone.turn(0).expect("nothing can fail");
    assert_eq!(probes.len(), 3);
    assert!(probes.iter().all(|probe| probe[6..12] == Standalone::mac().0), "{probes:02x?}");
    for probe in &probes[..2] {
        let answer = accept(probe).expect("it asks for a connection");
        assert!(alone.hear(&answer, 0).expect("nothing can fail").is_some(), "it is over then");
    }
    assert!(!alone.knows_all(), "the third has said nothing");
    assert_eq!(alone.hear(&tcp("10.240.0.4:80", "203.0.113.7:49154", "SA"), 0).expect("it can't"), None);
    alone.turn(5_000_000_000).expect("nothing can fail");
    assert!(alone.knows_all(), "its time is over");
    let report = alone.report().expect("nothing can fail");
    let states = |front: usize| report.frontends[front].nodes.iter().map(|node| node.state.as_str());
    assert!(!report.frontends.is_empty());
    for front in 0..report.frontends.len() {
        assert!(states(front).eq(["healthy", "healthy", "unhealthy"]), "{report:?}");
    }
    let others = Cluster { services: Vec::new(), ..cluster };
    alone.apply(&others, 6_000_000_000).expect("there is room");
    assert!(alone.knows_all() && alone.report().expect("it can't").frontends.is_empty());
}
