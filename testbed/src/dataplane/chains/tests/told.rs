//! What the node's own packets meet that tell senders what became of theirs; and what goes over between a packet and what
//! it is wrapped in.

use super::*;
use crate::dataplane::chains::frame::Kind;
use crate::dataplane::chains::tunnel;

const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 8);
const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The node `n1` with these rules.
fn node(rules: &str) -> Node {
    let rules = Ruleset::read("unit", rules, Family::V4).unwrap_or_else(|error| panic!("{error}"));
    let none = Ruleset::new(Family::V6);
    Node::with_rules(&cluster(), "n1", [&rules, &none], 1).unwrap_or_else(|error| panic!("{error}"))
}

/// The only frame that leaves for one that a pod sends.
#[track_caller]
fn out(node: &mut Node, frame: &[u8]) -> (Link, Vec<u8>) {
    let mut pushed = node.push(Link::Pod(WEB.into()), frame, NOW);
    assert_eq!(pushed.frames.len(), 1, "{:?}", pushed.refused);
    pushed.frames.remove(0)
}

fn icmp(from: Ipv4Addr, to: Ipv4Addr, kind: Icmpv4Type, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    builder(from, to, 64).icmpv4(kind).write(&mut frame, payload).expect("a vector takes all");
    frame
}

/// The same frame, whose IPv4 header at this place has another class.
fn classed(mut frame: Vec<u8>, at: usize, class: u8) -> Vec<u8> {
    frame[at + 1] = class;
    frame[at + 10..at + 12].fill(0);
    let header = etherparse::Ipv4HeaderSlice::from_slice(&frame[at..]).expect("a header").to_header();
    frame[at + 10..at + 12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    frame
}

#[test]
fn an_echo_whose_identifier_is_taken_gets_the_first_free_one_as_if_it_had_another_target() {
    let mut node = node(&format!("*nat\n-A PREROUTING -j DNAT --to-destination {OTHER}\nCOMMIT\n"));
    let ping = |to| {
        let echo = Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id: 77, seq: 1 });
        icmp(WEB, to, echo, b"abc")
    };
    for (dialled, identifier) in [(WORLD, 77_u16), (OTHER, 0)] {
        let (link, frame) = out(&mut node, &ping(dialled));
        assert_eq!((link, &frame[30..34]), (Link::Uplink, &OTHER.octets()[..]));
        assert_eq!(frame[38..40], identifier.to_be_bytes(), "to {dialled}");
        let unreachable = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Host);
        let error = icmp(ROUTER, WEB, unreachable, &frame[14..]);
        let pushed = node.push(Link::Uplink, &error, NOW);
        let [(Link::Pod(_), error)] = &pushed.frames[..] else { panic!("it arrives: {pushed:?}") };
        assert_eq!(error[26..30], dialled.octets(), "who was dialled tells");
        assert_eq!(error[66..68], 77_u16.to_be_bytes(), "it quotes what was sent");
    }
}

#[test]
fn the_nodes_own_rules_may_refuse_what_it_tells() {
    let forward = "*filter\n-A FORWARD -j REJECT";
    for (output, told) in [("-A OUTPUT -p icmp -j ACCEPT", 1), ("-A OUTPUT -p icmp -j DROP", 0)] {
        let mut node = node(&format!("{forward}\n{output}\nCOMMIT\n"));
        let pushed = node.push(Link::Pod(WEB.into()), &udp((WEB, 1), (WORLD, 2)), NOW);
        assert!(matches!(pushed.refused, Some(Refused::Rejected(_))), "{pushed:?}");
        assert_eq!(pushed.frames.len(), told, "{output}");
    }
}

#[test]
fn the_nodes_own_rules_see_the_link_of_the_target_that_an_error_had_before_it_is_translated() {
    let mut node = node(&format!(
        "*nat\n-A PREROUTING -d {WEB} -j DNAT --to-destination {API}\nCOMMIT\n\
         *filter\n-A FORWARD -s {WEB} -j REJECT\n-A OUTPUT -o vxlan0 -j DROP\nCOMMIT\n"
    ));
    let pushed = node.push(Link::Uplink, &tcp((WORLD, 1), (WEB, 2), "S"), NOW);
    assert_eq!(pushed.refused, None);
    // The answer of who was dialled, and did not get the question: it is of no connection, but an error about it is.
    let (link, _) = out(&mut node, &tcp((WEB, 2), (WORLD, 1), "SA"));
    assert_eq!(link, Link::Uplink, "it goes to {API}");
}

#[test]
fn rules_of_sources_count_the_reset_of_what_is_not_kept_but_no_error() {
    for (reset, masqueraded) in [("tcp-reset", true), ("icmp-port-unreachable", false)] {
        let mut node = node(&format!(
            "*nat\n-A POSTROUTING -m statistic --mode nth --every 2 --packet 1 -j MASQUERADE\nCOMMIT\n\
             *filter\n-A FORWARD -p tcp -m tcp --dport 81 -j REJECT --reject-with {reset}\nCOMMIT\n"
        ));
        let told = node.push(Link::Pod(WEB.into()), &tcp((WEB, 1), (WORLD, 81), "S"), NOW);
        assert_eq!(told.frames.len(), 1, "{reset}");
        let (_, frame) = out(&mut node, &tcp((WEB, 1), (WORLD, 80), "S"));
        assert_eq!(ends(&frame).0.0 == N1, masqueraded, "{reset}");
    }
}

#[test]
fn a_reset_about_a_packet_of_no_connection_ends_the_one_that_it_is_of() {
    let mut node = node(
        "*filter\n-A FORWARD -m conntrack --ctstate INVALID -p tcp -j REJECT --reject-with tcp-reset\nCOMMIT\n",
    );
    out(&mut node, &tcp((WEB, 1), (WORLD, 80), "S"));
    assert_eq!(node.connections().len(), 1);
    let (link, frame) = out(&mut node, &tcp((WEB, 1), (WORLD, 80), "A"));
    let packet = Packet::read(&frame, ETHERNET).unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!((link, packet.kind), (Link::Pod(_), Kind::Tcp { rst: true, .. })), "{packet:?}");
    assert_eq!(node.connections().len(), 0);
}

#[test]
fn an_error_asks_for_the_service_of_the_packet_that_it_is_about() {
    let mut node = node("*filter\n-A FORWARD -j REJECT\nCOMMIT\n");
    let (_, error) = out(&mut node, &classed(udp((WEB, 1), (WORLD, 2)), ETHERNET, 0xba));
    assert_eq!(error[15], 0xda);
}

#[test]
fn what_wraps_a_packet_is_marked_as_it_is_but_for_congestion_that_was_met_before() {
    let mut node = node("");
    for (inner, outer) in [(0, 0), (1, 1), (2, 2), (3, 2), (0xb8, 0), (0xbb, 2)] {
        let (link, frame) = out(&mut node, &classed(udp((WEB, 1), (API, 2)), ETHERNET, inner));
        assert_eq!((link, frame[15], frame[65]), (Link::Uplink, outer, inner));
    }
}

#[test]
fn congestion_that_is_met_in_the_tunnel_goes_over_to_a_packet_that_knows_of_it() {
    let expected = [(0, [0, 0, 0, 4]), (1, [1, 1, 1, 3]), (2, [2, 1, 2, 3]), (3, [3, 3, 3, 3])];
    let mut sender = Node::new(&cluster(), "n2", 1).unwrap_or_else(|error| panic!("{error}"));
    for (inner, after) in expected {
        for (outer, after) in (0..).zip(after) {
            let mut node = node("");
            let sent = classed(udp((API, 1), (WEB, 2)), ETHERNET, inner);
            let pushed = sender.push(Link::Pod(API.into()), &sent, NOW);
            let wrapped = classed(pushed.frames[0].1.clone(), ETHERNET, 0x40 | outer);
            let pushed = node.push(Link::Uplink, &wrapped, NOW);
            let arrived = pushed.frames.first().map(|(_, frame)| frame[15]);
            assert_eq!(arrived, (after < 4).then_some(after), "{inner} in {outer}: {:?}", pushed.refused);
            // Its checksums are right.
            pushed.frames.iter().for_each(|(_, frame)| assert_eq!(ends(frame).0, (API, 1)));
            assert_eq!(tunnel::inside(0x80 | inner, outer), arrived.map(|class| 0x80 | class));
        }
    }
}
