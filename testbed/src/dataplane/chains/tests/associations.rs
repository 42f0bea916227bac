//! Associations of SCTP: what opens one, what belongs to it, and what leaves with which checksum.

use etherparse::IpNumber;

use super::*;
use crate::dataplane::chains::conntrack::Direction;
use crate::dataplane::chains::frame::Kind;
use crate::dataplane::chains::sum::sctp_checksum;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;
const DATA: u8 = 0;

/// The tags that the two ends name.
const OURS: u32 = 7;
const THEIRS: u32 = 8;

/// A packet of these chunks under a tag; those that name one name that of who sends from port 1.
fn packet((from, to): (u16, u16), tag: u32, chunks: &[u8]) -> Vec<u8> {
    naming(if from == 1 { OURS } else { THEIRS }, (from, to), tag, chunks)
}

/// The same, but that they name this one.
fn naming(named: u32, (from, to): (u16, u16), tag: u32, chunks: &[u8]) -> Vec<u8> {
    let mut packet = [&from.to_be_bytes()[..], &to.to_be_bytes(), &tag.to_be_bytes(), &[0; 4]].concat();
    for kind in chunks {
        packet.extend_from_slice(&[*kind, 0, 0, 20]);
        packet.extend_from_slice(&named.to_be_bytes());
        packet.extend_from_slice(&[0; 12]);
    }
    let sum = sctp_checksum(&packet);
    packet[8..12].copy_from_slice(&sum);
    packet
}

fn frame(ends: (Ipv4Addr, Ipv4Addr), packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    builder(ends.0, ends.1, 64).write(&mut frame, IpNumber::SCTP, packet).expect("a vector takes all");
    frame
}

fn there(tag: u32, chunks: &[u8]) -> Vec<u8> {
    frame((WEB, API), &packet((1, 2), tag, chunks))
}

fn back(tag: u32, chunks: &[u8]) -> Vec<u8> {
    frame((API, WEB), &packet((2, 1), tag, chunks))
}

/// How a packet stands to its association, which is kept if this opens it.
fn state(conntrack: &mut Conntrack, frame: &[u8], now_s: u64) -> State {
    let packet = Packet::read(frame, ETHERNET).unwrap_or_else(|error| panic!("{error}"));
    let tracked = conntrack.track(&packet, frame, now_s);
    if tracked.state == State::New && !tracked.kept {
        conntrack.confirm(tracked.connection, now_s).unwrap_or_else(|error| panic!("{error}"));
    }
    tracked.state
}

/// A table with an association that both ends have agreed to, at 0 s.
fn agreed() -> Conntrack {
    let mut conntrack = Conntrack::new(8);
    assert_eq!(state(&mut conntrack, &there(0, &[INIT]), 0), State::New);
    assert_eq!(state(&mut conntrack, &back(OURS, &[INIT_ACK]), 0), State::Established);
    assert_eq!(state(&mut conntrack, &there(THEIRS, &[COOKIE_ECHO, DATA]), 0), State::Established);
    assert_eq!(state(&mut conntrack, &back(OURS, &[COOKIE_ACK]), 0), State::Established);
    conntrack
}

#[test]
fn an_association_is_opened_by_what_may_come_first_and_by_nothing_else() {
    for (tag, chunks, opens) in [
        (0, &[INIT][..], true),
        (5, &[HEARTBEAT], true),
        (5, &[SHUTDOWN_ACK], true),
        (5, &[INIT], false),
        (0, &[INIT, DATA], false),
        (5, &[INIT_ACK], false),
        (5, &[COOKIE_ECHO], false),
        (5, &[COOKIE_ACK], false),
        (5, &[DATA], false),
        (5, &[ABORT], false),
        (5, &[SHUTDOWN], false),
        (5, &[SHUTDOWN_COMPLETE], false),
        (5, &[], false),
    ] {
        let state = state(&mut Conntrack::new(8), &there(tag, chunks), 0);
        assert_eq!(state, if opens { State::New } else { State::Invalid }, "{chunks:?} under {tag}");
    }
}

#[test]
fn what_is_under_another_tag_is_of_no_association() {
    let mut conntrack = agreed();
    for chunks in [&[DATA][..], &[COOKIE_ECHO], &[SHUTDOWN], &[ABORT], &[SHUTDOWN_COMPLETE]] {
        assert_eq!(state(&mut conntrack, &there(OURS, chunks), 0), State::Invalid, "{chunks:?}");
    }
    assert_eq!(state(&mut conntrack, &there(THEIRS, &[DATA]), 0), State::Established);
    assert_eq!(state(&mut conntrack, &back(OURS, &[DATA]), 0), State::Established);
}

#[test]
fn who_is_first_heard_to_answer_a_heartbeat_may_be_answered_under_any_tag() {
    let mut conntrack = Conntrack::new(8);
    assert_eq!(state(&mut conntrack, &there(THEIRS, &[HEARTBEAT_ACK]), 0), State::New);
    assert_eq!(state(&mut conntrack, &there(OURS, &[DATA]), 0), State::Invalid);
    assert_eq!(state(&mut conntrack, &back(OURS, &[HEARTBEAT]), 0), State::Established);
    assert_eq!(state(&mut conntrack, &back(THEIRS, &[DATA]), 0), State::Invalid);
}

#[test]
fn who_knows_no_tag_aborts_under_its_own_with_a_flag() {
    let mut mirrored = packet((2, 1), THEIRS, &[ABORT]);
    mirrored[13] = 1;
    mirrored[8..12].fill(0);
    let sum = sctp_checksum(&mirrored);
    mirrored[8..12].copy_from_slice(&sum);
    assert_eq!(state(&mut agreed(), &frame((API, WEB), &mirrored), 0), State::Established);
}

#[test]
fn an_association_is_over_ten_seconds_after_its_abort_and_three_after_its_shutdown() {
    for (chunk, limit_s) in [(DATA, 210), (ABORT, 10), (SHUTDOWN, 3)] {
        for (now_s, stands) in [(limit_s - 1, State::Established), (limit_s, State::Invalid)] {
            let mut conntrack = agreed();
            state(&mut conntrack, &there(THEIRS, &[chunk]), 0);
            assert_eq!(state(&mut conntrack, &back(OURS, &[DATA]), now_s), stands, "{chunk} at {now_s} s");
        }
    }
}

#[test]
fn an_init_once_more_is_of_the_same_association() {
    let mut conntrack = agreed();
    state(&mut conntrack, &there(THEIRS, &[ABORT]), 0);
    assert_eq!(state(&mut conntrack, &there(0, &[INIT]), 1), State::Established);
    assert_eq!(conntrack.connections().count(), 1);
}

#[test]
fn an_association_that_nobody_answers_ends_though_it_is_asked_for_again() {
    let mut conntrack = Conntrack::new(8);
    let init = there(0, &[INIT]);
    for (now_s, begins) in [(0, true), (9, false), (10, true)] {
        let packet = Packet::read(&init, ETHERNET).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(conntrack.track(&packet, &init, now_s).kept, !begins, "{now_s} s");
        assert_eq!(state(&mut conntrack, &init, now_s), State::New);
    }
}

#[test]
fn where_both_ends_ask_neither_answers_with_another_tag_also_if_one_asks_once_more() {
    let answer = frame((API, WEB), &naming(THEIRS + 1, (2, 1), OURS, &[INIT_ACK]));
    for again in [false, true] {
        let mut conntrack = Conntrack::new(8);
        state(&mut conntrack, &there(0, &[INIT]), 0);
        assert_eq!(state(&mut conntrack, &back(0, &[INIT]), 0), State::Established);
        if again {
            assert_eq!(state(&mut conntrack, &there(0, &[INIT]), 0), State::Established);
        }
        assert_eq!(state(&mut conntrack, &answer, 0), State::Invalid);
        assert_eq!(state(&mut conntrack, &back(OURS, &[INIT_ACK]), 0), State::Established);
    }
}

#[test]
fn a_broken_packet_is_of_no_association_wherever_it_comes() {
    let mut conntrack = agreed();
    let mut broken = there(THEIRS, &[DATA]);
    *broken.last_mut().expect("it is not empty") ^= 1;
    assert_eq!(state(&mut conntrack, &broken, 0), State::Invalid);
    assert_eq!(state(&mut Conntrack::new(8), &broken, 0), State::Invalid);
}

#[test]
fn an_error_quotes_a_translated_packet_with_a_right_checksum() {
    let quoted = packet((1, 2), 0, &[INIT]);
    let mut error = Vec::new();
    let unreachable = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    builder(API, N1, 64)
        .icmpv4(unreachable)
        .write(&mut error, &frame((N1, API), &quoted)[ETHERNET..])
        .expect("a vector takes all");
    let mut packet = Packet::read(&error, ETHERNET).unwrap_or_else(|error| panic!("{error}"));
    let Kind::Error(about) = packet.kind else { panic!("{packet:?}") };
    let before = Tuple { source: WEB.into(), source_port: 3, ..about };
    packet.readdress_error(&mut error, (API.into(), WEB.into()), before);
    let inner = &error[ETHERNET + 20 + 8..];
    let read = Packet::read(inner, 0).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read.tuple, before);
    assert!(read.is_sound(inner));
    assert!(Packet::read(&error, ETHERNET).is_ok_and(|packet| packet.is_sound(&error)));
}

#[test]
fn a_table_that_is_full_lets_go_of_what_was_not_agreed_to() {
    let mut conntrack = Conntrack::new(1);
    state(&mut conntrack, &there(0, &[INIT]), 0);
    assert_eq!(state(&mut conntrack, &frame((DB, API), &packet((1, 2), 0, &[INIT])), 1), State::New);
    let [connection] = conntrack.connections().collect::<Vec<_>>()[..] else { panic!("one is kept") };
    assert_eq!(connection.leaving(Direction::Original).source, DB.into());
}

#[test]
fn an_error_about_a_packet_of_no_association_is_translated_as_one_about_an_association() {
    let rules =
        "*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n*filter\n-A FORWARD -i eth0 -j REJECT\nCOMMIT\n";
    let rules = Ruleset::read("unit", rules, Family::V4).unwrap_or_else(|error| panic!("{error}"));
    let none = Ruleset::new(Family::V6);
    let mut node = Node::with_rules(&cluster(), "n1", [&rules, &none], 1).expect("it can be walked");
    let init = frame((WEB, WORLD), &packet((1, 2), 0, &[INIT]));
    assert_eq!(node.push(Link::Pod(WEB.into()), &init, NOW).refused, None);
    // Past the translation, to an address that the association is not known by outside.
    let astray = frame((WORLD, WEB), &packet((2, 1), OURS, &[INIT_ACK]));
    let pushed = node.push(Link::Uplink, &astray, NOW);
    let [(Link::Uplink, error)] = &pushed.frames[..] else { panic!("it is told: {pushed:?}") };
    let error = Packet::read(error, ETHERNET).unwrap_or_else(|error| panic!("{error}"));
    let Kind::Error(about) = error.kind else { panic!("{error:?}") };
    assert_eq!((about.source, about.target), (WORLD.into(), N1.into()));
}
