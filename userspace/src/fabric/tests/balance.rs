//! Whatever arrives, whole or broken: every frame leaves, is lost for a reason, or is under way.

use crate::model::{
    Direction, Forward, NextHop, Protocol, SecurityRule, Service, ServiceKind, ServicePort, UserRoute,
};

use super::super::dice::Dice;
use super::*;

/// Everything at once: rules, routes, an outbound rule with few ports, and links of every kind.
fn everything() -> Cluster {
    let mut cluster = cluster(3);
    let settings = &mut cluster.settings;
    settings.load_balancer.outbound = Some(ip("20.0.0.1"));
    settings.load_balancer.snat_ports_per_node = 4;
    settings.fabric.security_rules = vec![SecurityRule {
        name: "some".to_owned(),
        priority: 100,
        direction: Direction::Inbound,
        allow: true,
        protocol: None,
        sources: Vec::new(),
        source_ports: Vec::new(),
        targets: Vec::new(),
        target_ports: vec![(1, 3)],
    }];
    settings.fabric.routes = vec![UserRoute {
        name: "appliance".to_owned(),
        prefix: "198.51.100.0/24".parse().expect("a range"),
        next_hop: NextHop::VirtualAppliance(ip("10.240.0.6")),
    }];
    settings.fabric.links = vec![
        quality("node:n1", |link| {
            (link.delay_ns, link.jitter_ns, link.loss_ppm) = (MILLISECOND, MILLISECOND, 10_000);
            (link.duplicate_ppm, link.reorder_ppm) = (20_000, 30_000);
        }),
        quality("ext:world", |link| (link.rate_bps, link.queue) = (2_000_000, 3)),
    ];
    cluster.settings.load_balancer.forward = Forward::NodePort;
    // Nobody answers the probes of the one; the other has nothing that could be probed.
    let balanced = |address, protocol| Service {
        name: format!("{protocol}"),
        kind: ServiceKind::LoadBalancer,
        load_balancer_addresses: vec![ip(address)],
        ports: vec![ServicePort { port: 2, protocol, node_port: Some(30_002), ..ServicePort::default() }],
        ..Service::default()
    };
    cluster.services = vec![balanced("20.0.0.80", Protocol::Tcp), balanced("20.0.0.81", Protocol::Udp)];
    cluster
}

const ADDRESSES: [&str; 11] = [
    "20.0.0.80",
    "20.0.0.81",
    "10.240.0.4",
    "10.240.0.5",
    "10.240.0.6",
    "10.244.1.5",
    "203.0.113.7",
    "198.51.100.9",
    "20.0.0.1",
    "192.0.2.1",
    "10.240.0.1",
];
const SIX: [&str; 4] = ["fd00:240::4", "fd00:240::5", "2001:db8::7", "fd00:244:1::5"];

fn frame(dice: &mut Dice) -> Vec<u8> {
    let mut pick = |end: usize| dice.below(end as u64) as usize;
    let family: &[&str] = if pick(3) == 0 { &SIX } else { &ADDRESSES };
    let (from, to) = (family[pick(family.len())], family[pick(family.len())]);
    let (source, target) = (ip(from), ip(to));
    let ends = [source, target].map(|address| SocketAddr::new(address, 1 + pick(9) as u16).to_string());
    match pick(5) {
        0 => udp(&ends[0], &ends[1]),
        1 | 2 => tcp(&ends[0], &ends[1], ["S", "A", "FA", "R", "SA"][pick(5)]),
        3 => ping(from, to, pick(2) == 0),
        _ => {
            let about = udp(&ends[1], &ends[0]);
            unreachable(from, to, &about, pick(60))
        }
    }
}

#[test]
fn of_100000_frames_whole_and_broken_every_one_is_accounted_for() {
    let mut fabric = Fabric::of(&everything(), 3).expect("a fabric");
    let mut dice = Dice::new(9);
    let (mut now_ns, mut out, mut lost) = (0, 0, 0);
    for number in 0..100_000 {
        let mut frame = frame(&mut dice);
        match dice.below(10) {
            0 => frame.truncate(dice.below(frame.len() as u64) as usize),
            1 | 2 => {
                let at = dice.below(frame.len() as u64) as usize;
                frame[at] = dice.roll() as u8;
            }
            3 if frame[12..14] == [8, 0] => {
                // Its time has run out, or it is a later piece of a packet, or the first.
                let (at, value) = [(22, 1), (21, 1), (20, 0x20)][dice.below(3) as usize];
                frame[at] = value;
                recount(&mut frame);
            }
            _ => {}
        }
        let any = [N1, N2, Port::Node(2), WORLD, OTHER, Port::External(2)][dice.below(6) as usize];
        // Most senders are who they say they are.
        let own = Packet::read(&frame).ok().and_then(|packet| fabric.seats.owner(packet.source));
        let port = own.filter(|_| !dice.happens(100_000)).unwrap_or(any);
        now_ns += dice.below(100_000);
        fabric.arrive(port, frame, number, now_ns);
        while let Some(outcome) = fabric.due(now_ns) {
            assert!(outcome.at_ns <= now_ns);
            let count = if matches!(outcome.end, End::Out(_)) { &mut out } else { &mut lost };
            *count += 1;
        }
        if number % 100 > 0 {
            continue;
        }
        let report = fabric.report();
        let entered = report.arrived + report.duplicated + report.made;
        assert_eq!(entered, out + lost + report.under_way);
        assert_eq!((report.departed, report.lost.values().sum::<u64>()), (out, lost));
    }
    let report = fabric.report();
    assert_eq!(report.arrived, 100_000);
    assert!(report.departed > 10_000 && report.duplicated > 100, "{report:?}");
    // The draw reaches every corner but those that need a cluster of their own.
    let untouched =
        [Loss::RouteNone, Loss::NoAppliance, Loss::TooBig, Loss::FlowsExhausted, Loss::BalancerFull];
    for loss in Loss::ALL.iter().filter(|loss| !untouched.contains(loss)) {
        assert!(report.lost.contains_key(loss.slug()), "{loss} never happened: {report:?}");
    }
}

#[test]
fn the_same_seed_makes_the_same_of_the_same_frames() {
    let outcomes = || {
        let mut fabric = Fabric::of(&everything(), 3).expect("a fabric");
        let mut dice = Dice::new(4);
        for number in 0..2000 {
            fabric.arrive(N1, frame(&mut dice), number, u64::from(number) * 1000);
        }
        std::iter::from_fn(|| fabric.due(u64::MAX)).collect::<Vec<_>>()
    };
    assert!(outcomes() == outcomes());
}

#[test]
fn addresses_and_ports_of_broken_packets_are_rewritten_without_harm() {
    let mut bench = Bench::with(|cluster| {
        cluster.settings.load_balancer.outbound = Some(ip("20.0.0.1"));
    });
    let mut dice = Dice::new(11);
    for _ in 0..20_000 {
        let mut sent = tcp("10.240.0.4:1000", "203.0.113.7:80", "S");
        let at = 34 + dice.below(20) as usize;
        sent[at] = dice.roll() as u8;
        bench.send(N1, sent.clone());
        let mut about = unreachable("203.0.113.7", "20.0.0.1", &sent, 20 + dice.below(30) as usize);
        let at = 42 + dice.below(about.len() as u64 - 42) as usize;
        about[at] = dice.roll() as u8;
        bench.send(WORLD, about);
    }
    assert_eq!(bench.fabric.report().under_way, 0);
}
