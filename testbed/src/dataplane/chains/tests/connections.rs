//! Connections: what opens one, what belongs to it, when it is over.

use super::*;
use crate::dataplane::chains::conntrack::Tracked;

fn tracked(conntrack: &mut Conntrack, frame: &[u8], now_s: u64) -> (Packet, Tracked) {
    let packet = Packet::read(frame, ETHERNET).unwrap_or_else(|error| panic!("{error}"));
    (packet, conntrack.track(&packet, frame, now_s))
}

fn state(conntrack: &mut Conntrack, frame: &[u8], now_s: u64) -> State {
    tracked(conntrack, frame, now_s).1.state
}

/// The first packet of a connection passes.
fn opened(conntrack: &mut Conntrack, frame: &[u8], now_s: u64) {
    let (_, tracked) = tracked(conntrack, frame, now_s);
    assert_eq!((tracked.state, tracked.kept), (State::New, false));
    conntrack.confirm(tracked.connection, now_s).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_connection_is_kept_only_once_its_first_packet_passed() {
    let mut conntrack = Conntrack::new(8);
    let syn = tcp((WEB, 1), (API, 2), "S");
    assert_eq!(state(&mut conntrack, &syn, 0), State::New);
    assert_eq!(state(&mut conntrack, &syn, 0), State::New);
    opened(&mut conntrack, &syn, 0);
    assert!(tracked(&mut conntrack, &syn, 0).1.kept);
    assert_eq!(state(&mut conntrack, &syn, 0), State::New, "nobody has answered");
    assert_eq!(state(&mut conntrack, &tcp((API, 2), (WEB, 1), "SA"), 0), State::Established);
    assert_eq!(state(&mut conntrack, &tcp((WEB, 1), (API, 2), "A"), 0), State::Established);
}

#[test]
fn a_silent_connection_ends_and_an_answered_one_later() {
    let mut conntrack = Conntrack::new(8);
    let (there, back) = (udp((WEB, 1), (API, 2)), udp((API, 2), (WEB, 1)));
    opened(&mut conntrack, &there, 0);
    assert_eq!(state(&mut conntrack, &there, 31), State::New);
    opened(&mut conntrack, &there, 40);
    assert_eq!(state(&mut conntrack, &back, 50), State::Established);
    assert_eq!(state(&mut conntrack, &there, 160), State::Established);
}

#[test]
fn the_same_ports_open_a_new_connection_once_both_sides_have_finished_the_old_one() {
    let mut conntrack = Conntrack::new(8);
    let (there, back) = (|flags| tcp((WEB, 1), (API, 2), flags), |flags| tcp((API, 2), (WEB, 1), flags));
    opened(&mut conntrack, &there("S"), 0);
    assert!(tracked(&mut conntrack, &there("S"), 1).1.kept, "a SYN sent again");
    state(&mut conntrack, &back("SA"), 2);
    state(&mut conntrack, &back("FA"), 2);
    assert!(tracked(&mut conntrack, &there("S"), 3).1.kept, "one side has not");
    state(&mut conntrack, &there("FA"), 4);
    assert!(tracked(&mut conntrack, &there("S"), 4).1.kept, "that was not acknowledged");
    // The first one may be about the SYN.
    state(&mut conntrack, &back("A"), 5);
    assert!(tracked(&mut conntrack, &there("S"), 5).1.kept);
    state(&mut conntrack, &back("A"), 5);
    assert!(tracked(&mut conntrack, &there("S"), 5).1.kept, "nor was it now, for all that is known");
    state(&mut conntrack, &there("A"), 5);
    assert!(!tracked(&mut conntrack, &there("S"), 6).1.kept);
}

#[test]
fn a_connection_that_was_given_up_makes_way_for_the_next_if_its_opener_did_so() {
    for opener in [true, false] {
        let mut conntrack = Conntrack::new(8);
        let (there, back) = (|flags| tcp((WEB, 1), (API, 2), flags), |flags| tcp((API, 2), (WEB, 1), flags));
        opened(&mut conntrack, &there("S"), 0);
        state(&mut conntrack, &back("SA"), 0);
        state(&mut conntrack, &if opener { there("R") } else { back("R") }, 0);
        assert_eq!(tracked(&mut conntrack, &there("S"), 1).1.kept, !opener);
        let mut last = || state(&mut conntrack, &back("SA"), 1);
        assert_eq!(last(), if opener { State::Invalid } else { State::Established }, "it is taken up");
    }
}

#[test]
fn an_answer_that_takes_nothing_up_passes_and_what_follows_it_does_not() {
    let mut conntrack = Conntrack::new(8);
    opened(&mut conntrack, &tcp((WEB, 1), (API, 2), "S"), 0);
    assert_eq!(state(&mut conntrack, &tcp((API, 2), (WEB, 1), "FA"), 0), State::Invalid);
    assert_eq!(state(&mut conntrack, &tcp((API, 2), (WEB, 1), "A"), 0), State::Established);
    assert_eq!(state(&mut conntrack, &tcp((WEB, 1), (API, 2), "A"), 0), State::Invalid);
}

#[test]
fn only_a_syn_that_was_let_pass_is_taken_up_where_all_is_over() {
    for (again, taken_up) in [(false, false), (true, true)] {
        let mut conntrack = Conntrack::new(8);
        let (there, back) = (|flags| tcp((WEB, 1), (API, 2), flags), |flags| tcp((API, 2), (WEB, 1), flags));
        opened(&mut conntrack, &there("S"), 0);
        let (_, Tracked { connection, .. }) = tracked(&mut conntrack, &there("S"), 0);
        conntrack.close(&connection, 0);
        if again {
            state(&mut conntrack, &there("S"), 0);
        }
        assert_eq!(state(&mut conntrack, &back("SA"), 0), State::Established);
        state(&mut conntrack, &back("FA"), 0);
        state(&mut conntrack, &there("FA"), 0);
        state(&mut conntrack, &back("A"), 0);
        assert_eq!(!tracked(&mut conntrack, &there("S"), 0).1.kept, taken_up);
    }
}

#[test]
fn a_connection_whose_end_was_told_that_it_is_over_ends_soon() {
    let mut conntrack = Conntrack::new(8);
    opened(&mut conntrack, &tcp((WEB, 1), (API, 2), "S"), 0);
    let (_, Tracked { connection, .. }) = tracked(&mut conntrack, &tcp((API, 2), (WEB, 1), "SA"), 0);
    conntrack.close(&connection, 0);
    assert_eq!(state(&mut conntrack, &tcp((WEB, 1), (API, 2), "A"), 9), State::Established);
    assert_eq!(state(&mut conntrack, &tcp((API, 2), (WEB, 1), "A"), 18), State::Established);
    assert_eq!(state(&mut conntrack, &tcp((API, 2), (WEB, 1), "SA"), 29), State::Invalid);
}

#[test]
fn a_full_table_lets_go_of_a_connection_that_nobody_answered() {
    let mut conntrack = Conntrack::new(2);
    opened(&mut conntrack, &udp((WEB, 1), (API, 2)), 0);
    opened(&mut conntrack, &udp((WEB, 2), (API, 2)), 0);
    assert_eq!(state(&mut conntrack, &udp((API, 2), (WEB, 1)), 0), State::Established);
    opened(&mut conntrack, &udp((WEB, 3), (API, 2)), 0);
    assert_eq!(state(&mut conntrack, &udp((WEB, 1), (API, 2)), 0), State::Established);
    assert_eq!(conntrack.connections().count(), 2);
    assert!(!tracked(&mut conntrack, &udp((WEB, 2), (API, 2)), 0).1.kept, "it made room");
}

#[test]
fn a_full_table_takes_no_more_until_answered_connections_end() {
    let mut conntrack = Conntrack::new(1);
    opened(&mut conntrack, &udp((WEB, 1), (API, 2)), 0);
    assert_eq!(state(&mut conntrack, &udp((API, 2), (WEB, 1)), 0), State::Established);
    let (_, tracked) = tracked(&mut conntrack, &udp((WEB, 3), (API, 2)), 1);
    let draft = tracked.connection;
    assert!(conntrack.confirm(draft, 1).is_err());
    assert!(conntrack.confirm(draft, 121).is_ok());
}

#[test]
fn whoever_goes_on_before_his_syn_is_answered_is_of_no_connection() {
    let mut conntrack = Conntrack::new(8);
    let there = |flags| tcp((WEB, 1), (API, 2), flags);
    opened(&mut conntrack, &there("S"), 0);
    for flags in ["A", "FA"] {
        assert_eq!(state(&mut conntrack, &there(flags), 0), State::Invalid, "{flags}");
    }
    assert_eq!(state(&mut conntrack, &there("S"), 0), State::New, "a SYN sent again");
    assert_eq!(state(&mut conntrack, &tcp((API, 2), (WEB, 1), "SA"), 0), State::Established);
    assert_eq!(state(&mut conntrack, &there("A"), 0), State::Established);
    let other = tcp((WEB, 3), (API, 2), "A");
    opened(&mut conntrack, &other, 0);
    assert!(tracked(&mut conntrack, &other, 0).1.kept, "it was under way when it was met");
}

#[test]
fn of_a_connection_that_is_reset_before_it_was_answered_nothing_is_kept() {
    let there = |flags| tcp((WEB, 1), (API, 2), flags);
    let back = |flags| tcp((API, 2), (WEB, 1), flags);
    for (reset, stands) in [(there("R"), State::New), (back("RA"), State::Established)] {
        let mut conntrack = Conntrack::new(8);
        opened(&mut conntrack, &there("S"), 0);
        assert_eq!(state(&mut conntrack, &reset, 0), stands);
        assert_eq!(conntrack.connections().count(), 0);
        assert_eq!(state(&mut conntrack, &back("SA"), 0), State::Invalid);
    }
    let mut conntrack = Conntrack::new(8);
    opened(&mut conntrack, &there("S"), 0);
    state(&mut conntrack, &back("SA"), 0);
    state(&mut conntrack, &there("R"), 0);
    assert_eq!(state(&mut conntrack, &back("A"), 0), State::Established, "it was answered");
}

#[test]
fn an_error_or_an_answer_about_nothing_is_invalid() {
    let mut conntrack = Conntrack::new(8);
    for flags in ["R", "SA", "FA", "SR"] {
        assert_eq!(state(&mut conntrack, &tcp((WEB, 1), (API, 2), flags), 0), State::Invalid, "{flags}");
    }
    assert_eq!(state(&mut conntrack, &tcp((WEB, 1), (API, 2), "A"), 0), State::New, "it is under way");
    let mut broken = udp((WEB, 1), (API, 2));
    broken[14 + 20 + 8] ^= 1;
    assert_eq!(state(&mut conntrack, &broken, 0), State::Invalid, "its checksum is wrong");
    let quoted = udp((API, 1), (WEB, 2));
    let mut frame = Vec::new();
    let unreachable = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    builder(WEB, API, 64).icmpv4(unreachable).write(&mut frame, &quoted[14..42]).expect("a vector takes all");
    assert_eq!(state(&mut conntrack, &frame, 0), State::Invalid);
}
