//! Rules as they are walked, and as they are planned.

use userspace::model::{HostPort, Protocol};

use super::*;
use crate::dataplane::netfilter::nftables;

fn seen(target_port: u16) -> Seen {
    let (source, target) = (Address::from(WEB), Address::from(API));
    let tuple = Tuple { protocol: 6, source, source_port: 1, target, target_port };
    Seen { tuple, from: Interface::at(0), to: Interface::NONE, states: 2, reply: false, mark: 0 }
}

/// A program of these rules of the filter table, on a node with two interfaces.
fn program(rules: &str) -> Program<u32> {
    let text = format!("*filter\n:SIDE - [0:0]\n:OTHER - [0:0]\n{rules}\nCOMMIT\n");
    let rules = Ruleset::read("unit", &text, Family::V4).unwrap_or_else(|error| panic!("{error}"));
    let interfaces = ["eth0", "ppabc"].map(str::to_owned);
    Program::new(&rules, &interfaces).unwrap_or_else(|error| panic!("{error}"))
}

fn walk(program: &mut Program<u32>, seen: &mut Seen, dice: &mut Dice) -> Walked {
    walk_at(program, seen, dice, 0)
}

fn walk_at(program: &mut Program<u32>, seen: &mut Seen, dice: &mut Dice, now_s: u64) -> Walked {
    let own = [Address::from(N1)];
    program.walk(TableName::Filter, Hook::Forward, seen, &mut World { own: &own, now_s, dice })
}

/// Whether a packet is dropped by the one rule, which does that.
fn applies(rule: &str, seen: Seen) -> bool {
    let mut program = program(&format!("-A FORWARD {rule} -j DROP"));
    walk(&mut program, &mut seen.clone(), &mut Dice::new(1)) != Walked::Accept
}

#[test]
fn the_first_rule_that_applies_decides_and_is_named() {
    let mut program =
        program("-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT\n-A FORWARD -m comment --comment why -j DROP");
    let dice = &mut Dice::new(1);
    assert_eq!(walk(&mut program, &mut seen(80), dice), Walked::Accept);
    let Walked::Drop(line) = walk(&mut program, &mut seen(81), dice) else { panic!("it is dropped") };
    assert_eq!(program.place(line).to_string(), "filter FORWARD rule 2 (why)");
}

#[test]
fn a_chain_that_ends_or_returns_goes_on_after_the_jump_and_after_a_goto_where_that_was() {
    let mut program = program(
        "-A FORWARD -j SIDE\n-A FORWARD -m mark --mark 0x1/0x1 -j DROP\n-A FORWARD -p tcp -m tcp --dport 82 -j REJECT\n\
         -A SIDE -p tcp -m tcp --dport 80 -j RETURN\n-A SIDE -p tcp -m tcp --dport 82 -g OTHER\n-A SIDE -j MARK --set-xmark 0x1/0x1",
    );
    let dice = &mut Dice::new(1);
    assert_eq!(walk(&mut program, &mut seen(80), dice), Walked::Accept);
    assert!(matches!(walk(&mut program, &mut seen(81), dice), Walked::Drop(_)));
    assert!(matches!(
        walk(&mut program, &mut seen(82), dice),
        Walked::Reject(_, RejectWith::PortUnreachable)
    ));
}

#[test]
fn a_built_in_chain_that_ends_gives_its_policy() {
    let mut program = program(":FORWARD DROP [0:0]\n-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT");
    let dice = &mut Dice::new(1);
    assert_eq!(walk(&mut program, &mut seen(80), dice), Walked::Accept);
    let Walked::Drop(line) = walk(&mut program, &mut seen(81), dice) else { panic!("it is dropped") };
    assert_eq!(program.place(line).to_string(), "filter FORWARD policy");
}

#[test]
fn every_condition_and_its_contrary_say_the_opposite() {
    let from = |interface, to| Seen { from: interface, to, ..seen(80) };
    let (uplink, pod, host) = (Interface::at(0), Interface::at(1), Interface::NONE);
    let marked = Seen { mark: 0x4001, ..seen(80) };
    for (rule, packet, holds) in [
        ("{} -s 10.244.1.0/24", seen(80), true),
        ("{} -s 10.244.2.0/24", seen(80), false),
        ("{} -d 10.244.2.7/32", seen(80), true),
        ("{} -i eth0", from(uplink, host), true),
        ("{} -i eth0", from(pod, host), false),
        ("{} -i eth1", from(uplink, host), false),
        ("{} -i pp+", from(pod, host), true),
        ("{} -i pp+", from(uplink, host), false),
        ("{} -i pp+", from(host, uplink), false),
        ("{} -o pp+", from(uplink, pod), true),
        ("{} -o eth0", from(pod, host), false),
        ("{} -p tcp", seen(80), true),
        ("{} -p udp", seen(80), false),
        ("-p tcp -m tcp {} --dport 70:90", seen(80), true),
        ("-p tcp -m tcp {} --dport 81:90", seen(80), false),
        ("-p tcp -m tcp {} --sport 1", seen(80), true),
        ("-p tcp -m multiport {} --dports 1,79:81", seen(80), true),
        ("-p tcp -m multiport {} --sports 2,80", seen(80), false),
        ("-p tcp -m multiport {} --ports 2,80", seen(80), true),
        ("-m conntrack {} --ctstate INVALID,NEW", seen(80), true),
        ("-m conntrack {} --ctstate ESTABLISHED", seen(80), false),
        ("-m mark {} --mark 0x4000/0x4000", marked, true),
        ("-m mark {} --mark 0x4000", marked, false),
        ("-m addrtype {} --dst-type LOCAL", seen(80), false),
        (
            "-m addrtype {} --src-type LOCAL",
            Seen { tuple: Tuple { source: N1.into(), ..seen(80).tuple }, ..seen(80) },
            true,
        ),
    ] {
        assert_eq!(applies(&rule.replace("{} ", ""), packet), holds, "{rule}");
        assert_eq!(applies(&rule.replace("{}", "!"), packet), !holds, "! {rule}");
    }
    assert!(applies("-m conntrack --ctdir ORIGINAL", seen(80)));
    assert!(applies("-m conntrack --ctdir REPLY", Seen { reply: true, ..seen(80) }));
}

#[test]
fn chains_that_lead_back_to_themselves_or_too_deep_are_refused() {
    let mut rules = Ruleset::new(Family::V4);
    let filter = rules.table(TableName::Filter);
    filter.append("ONE", Rule::jump("OTHER"));
    filter.declare("OTHER");
    let compiled =
        |rules: &Ruleset| Program::<u32>::new(rules, &[]).map(drop).map_err(|error| error.to_string());
    assert_eq!(compiled(&rules), Ok(()));
    let mut round = rules.clone();
    round.table(TableName::Filter).append("OTHER", Rule::jump("ONE"));
    assert!(compiled(&round).is_err_and(|error| error.contains("leads back to itself")));
    let mut nowhere = rules.clone();
    nowhere.table(TableName::Filter).append("OTHER", Rule::jump("NOWHERE"));
    assert!(compiled(&nowhere).is_err_and(|error| error.contains("leads to NOWHERE")));
    for depth in 0..17 {
        rules.table(TableName::Filter).append(&format!("D{depth}"), Rule::jump(&format!("D{}", depth + 1)));
    }
    rules.table(TableName::Filter).declare("D17");
    assert!(compiled(&rules).is_err_and(|error| error.contains("more than 16 chains")));
}

#[test]
fn one_in_three_takes_every_third_packet() {
    for packet in 0..3 {
        let rule = format!("-A FORWARD -m statistic --mode nth --every 3 --packet {packet} -j DROP");
        let (mut program, dice) = (program(&rule), &mut Dice::new(1));
        let walked: Vec<bool> =
            (0..6).map(|_| walk(&mut program, &mut seen(80), dice) == Walked::Accept).collect();
        let expected: Vec<bool> = (0..6).map(|number| number % 3 != packet).collect();
        assert_eq!(walked, expected);
    }
}

#[test]
fn what_counts_before_the_port_is_asked_for_counts_other_ports_too() {
    let mut program =
        program("-A FORWARD -p tcp -m statistic --mode nth --every 2 --packet 1 -m tcp --dport 80 -j DROP");
    let dice = &mut Dice::new(1);
    let mut drops = |port| walk(&mut program, &mut seen(port), dice) != Walked::Accept;
    assert_eq!([81, 80, 80, 81, 80, 80].map(&mut drops), [false, true, false, false, false, true]);
}

#[test]
fn the_tunnel_takes_packets_from_nodes_alone() {
    let rules = Ruleset::plan(&cluster(), "n1", Family::V4).unwrap_or_else(|error| panic!("{error}"));
    let mut program =
        Program::<u32>::new(&rules, &["eth0".to_owned()]).unwrap_or_else(|error| panic!("{error}"));
    let mut walked = |source: Ipv4Addr, target_port| {
        let tuple = Tuple {
            protocol: 17,
            source: Address::from(source),
            source_port: 1,
            target: Address::from(N1),
            target_port,
        };
        let (own, dice) = ([Address::from(N1)], &mut Dice::new(1));
        let mut world = World { own: &own, now_s: 0, dice };
        program.walk(TableName::Raw, Hook::Prerouting, &mut Seen { tuple, ..seen(0) }, &mut world)
    };
    let tunnel = cluster().settings.tunnel_port;
    assert_eq!(walked(N2, tunnel), Walked::Accept);
    assert_eq!(walked(WORLD, tunnel + 1), Walked::Accept);
    assert!(matches!(walked(WORLD, tunnel), Walked::Drop(_)));
    assert!(matches!(walked(WEB, tunnel), Walked::Drop(_)), "a pod is no node");
}

#[test]
fn host_ports_of_one_number_at_different_addresses_lead_to_different_ports() {
    let mut cluster = cluster();
    let second = Ipv4Addr::new(10, 240, 0, 44).into();
    cluster.nodes[0].addresses.push(second);
    let port = |address, container_port| HostPort {
        address: Some(address),
        port: 8000,
        protocol: Protocol::Tcp,
        container_port,
    };
    let web = cluster.pods.iter_mut().find(|pod| pod.name == "web").expect("it is there");
    web.host_ports = vec![port(N1.into(), 1), port(second, 2)];
    let text =
        Ruleset::plan(&cluster, "n1", Family::V4).unwrap_or_else(|error| panic!("{error}")).to_string();
    for target in ["10.244.1.5:1", "10.244.1.5:2"] {
        assert!(text.contains(&format!("DNAT --to-destination {target}\n")), "{text}");
    }
    let text = nftables::plan(&cluster, "n1").to_string();
    assert!(text.contains("dnat to 10.244.1.5:1\n") && text.contains("dnat to 10.244.1.5:2\n"), "{text}");
}

#[test]
fn chance_is_fair_and_the_same_for_the_same_seed() {
    let run = |seed| {
        let (mut program, mut dice) =
            (program("-A FORWARD -m statistic --mode random --probability 0.25 -j DROP"), Dice::new(seed));
        (0..4000)
            .map(|_| walk(&mut program, &mut seen(80), &mut dice) != Walked::Accept)
            .collect::<Vec<bool>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
    let taken = run(7).into_iter().filter(|taken| *taken).count();
    assert!((900..1100).contains(&taken), "{taken} of 4000");
}

#[test]
fn a_source_that_was_noted_is_known_for_so_many_seconds() {
    let mut program = program(
        "-A FORWARD -m recent --rcheck --seconds 10 --reap --name X --rsource -j DROP\n\
         -A FORWARD -p tcp -m tcp --dport 80 -m recent --set --name X --rsource -j ACCEPT",
    );
    let mut at =
        |now_s, port| walk_at(&mut program, &mut seen(port), &mut Dice::new(1), now_s) == Walked::Accept;
    assert!(at(5, 81), "nobody noted it");
    assert!(at(5, 80), "it is noted");
    assert!(!at(15, 81), "it is known");
    assert!(at(16, 81), "it is too long ago");
}

#[test]
fn a_list_of_sources_forgets_the_one_noted_first_for_the_hundred_and_first() {
    let mut program = program(
        "-A FORWARD -p tcp -m tcp --dport 80 -m recent --set --name X --rsource -j ACCEPT\n\
         -A FORWARD -m recent --rcheck --name X --rsource -j DROP",
    );
    let mut from = |source: u32, port| {
        let mut seen = seen(port);
        seen.tuple.source = Address::v4(source);
        walk_at(&mut program, &mut seen, &mut Dice::new(1), u64::from(source)) == Walked::Accept
    };
    for source in 1..=101 {
        assert!(from(source, 80));
    }
    assert!(from(1, 81), "it made room");
    assert!(!from(2, 81) && !from(101, 81));
}

#[test]
fn planned_rules_are_written_as_iptables_save_writes_them_and_read_as_the_same() {
    for family in [Family::V4, Family::V6] {
        let rules = Ruleset::plan(&cluster(), "n2", family).unwrap_or_else(|error| panic!("{error}"));
        let text = rules.to_string();
        assert_eq!(Ruleset::read("planned", &text, family), Ok(rules));
    }
    let rules = Ruleset::plan(&cluster(), "n2", Family::V4).unwrap_or_else(|error| panic!("{error}"));
    let text = rules.to_string();
    for line in [
        "-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment \"default/api:80/TCP cluster IP\" -m tcp --dport 80 -j KUBE-SVC-",
        "-j DNAT --to-destination 10.244.2.7:8080",
        "-A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m comment --comment \"default/nobody:80/TCP has no endpoints\" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}
