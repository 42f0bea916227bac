//! The path's reading of frames, against an independent maker of packets.

use dataplane::flow::{self, Ends, Flow};
use dataplane::tables::IfIndex;
use dataplane::wire::{Address, Be16, Be32, Family, V4, V6, checksum, crc};
use dataplane::{Packet, Reason};
use etherparse::{Icmpv4Type, PacketBuilder, icmpv4};
use userspace::engine::emulator::Frame;
use userspace::engine::emulator::message::crc32c;

const POD: [u8; 4] = [10, 244, 1, 5];
const PEER: [u8; 4] = [203, 0, 113, 7];
const ROUTER: [u8; 4] = [198, 51, 100, 1];

fn ip() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(POD, PEER, 17)
}

fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip().tcp(40_000, 443, 1, 1024).syn().write(&mut frame, payload).expect("a vector takes everything");
    frame
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip().udp(40_000, 53).write(&mut frame, payload).expect("a vector takes everything");
    frame
}

fn echo(id: u16, reply: bool) -> Vec<u8> {
    let header = etherparse::IcmpEchoHeader { id, seq: 1 };
    let kind = if reply { Icmpv4Type::EchoReply(header) } else { Icmpv4Type::EchoRequest(header) };
    let mut frame = Vec::new();
    ip().icmpv4(kind).write(&mut frame, b"ping").expect("a vector takes everything");
    frame
}

/// What a router sends back to the pod about `about`: the pod's packet did not get through.
fn unreachable(about: &[u8]) -> Vec<u8> {
    let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
    let mut frame = Vec::new();
    let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(ROUTER, POD, 17);
    ip.icmpv4(kind).write(&mut frame, &about[14..]).expect("a vector takes everything");
    frame
}

fn read(bytes: &[u8]) -> Result<Flow<V4>, Reason> {
    let mut flow = Flow::default();
    flow::read(&mut Frame::new(bytes, IfIndex(1)), &mut flow)?;
    Ok(flow)
}

#[test]
fn tcp_and_udp_ports_are_read_where_an_independent_maker_put_them() {
    for frame in [tcp(b"x"), udp(b"x")] {
        let flow = read(&frame).expect("a sound frame");
        assert_eq!((flow.source, flow.source_port.host()), (V4(POD), 40_000));
        assert_eq!(flow.target, V4(PEER));
        assert_eq!((flow.hops, flow.transport, flow.length as usize), (17, 34, frame.len()));
    }
    assert_eq!(read(&tcp(b"")).expect("a sound frame").flags, 0x02);
}

#[test]
fn a_checksum_of_sctp_follows_a_port_as_if_it_were_computed_anew() {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    for length in (4..300).chain([511, 512, 1480, 4096, 65_535]) {
        let mut bytes: Vec<u8> = (0..length).map(|_| next() as u8).collect();
        let (before, change) = (crc32c(&bytes), next());
        for (byte, changed) in bytes.iter_mut().zip(change.to_le_bytes()) {
            *byte ^= changed;
        }
        assert_eq!(before ^ crc::of_change(change, length), crc32c(&bytes), "{length} bytes");
    }
}

#[test]
fn an_echo_and_its_answer_are_two_directions_of_one_flow() {
    let question = read(&echo(77, false)).expect("a sound frame");
    let mut answer = read(&echo(77, true)).expect("a sound frame");
    std::mem::swap(&mut answer.source, &mut answer.target);
    let (asked, asked_high) = question.tuple();
    let (answered, answered_high) = answer.tuple();
    assert_eq!(asked, answered);
    assert_ne!(asked_high, answered_high);
}

#[test]
fn an_icmp_error_belongs_to_the_other_direction_of_the_flow_it_quotes() {
    for quoted in [tcp(b""), udp(b"question"), echo(9, false)] {
        let flow = read(&quoted).expect("a sound frame");
        let error = read(&unreachable(&quoted)).expect("a sound frame");
        assert!(error.error);
        assert_eq!(error.sender, V4(ROUTER), "whoever found it");
        assert_eq!((error.source, error.target), (flow.target, flow.source));
        assert_eq!((error.source_port, error.target_port), (flow.target_port, flow.source_port));
        assert_eq!(error.tuple().0, flow.tuple().0);
    }
}

#[test]
fn an_icmp_error_for_somebody_else_than_it_quotes_is_refused() {
    let mut error = unreachable(&udp(b"question"));
    error[14 + 19] ^= 1;
    assert_eq!(read(&error), Err(Reason::UnknownIcmp));
}

#[test]
fn a_frame_cut_anywhere_is_refused_and_nothing_else_happens() {
    for whole in [tcp(b"payload"), udp(b"payload"), echo(3, false), unreachable(&udp(b"payload"))] {
        for length in 0..whole.len() {
            let refused = read(&whole[..length]).expect_err("a cut frame");
            assert_eq!(refused, Reason::Truncated, "cut at {length} of {}", whole.len());
        }
        read(&whole).expect("the whole frame");
    }
}

#[test]
fn impossible_headers_are_refused_by_name() {
    let changed = |offset: usize, value: u8| {
        let mut frame = udp(b"payload");
        frame[offset] = value;
        read(&frame).expect_err("an impossible frame")
    };
    assert_eq!(changed(14, 0x65), Reason::MalformedHeader, "version 6 in an IPv4 frame");
    assert_eq!(changed(14, 0x44), Reason::MalformedHeader, "a header of 16 bytes");
    assert_eq!(changed(17, 19), Reason::MalformedHeader, "a packet shorter than its header");
    assert_eq!(changed(14, 0x4f), Reason::MalformedHeader, "a header longer than its packet");
    assert_eq!(changed(16, 0xff), Reason::Truncated, "a packet longer than its frame");
    assert_eq!(changed(23, 47), Reason::UnsupportedProtocol, "GRE");
    assert_eq!(changed(12, 0x86), Reason::UnsupportedEtherType, "no IP at all");
}

#[test]
fn any_bytes_at_all_give_a_flow_or_a_reason() {
    // A fixed sequence (Knuth's linear congruence), so that a failure repeats.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let mut read_some = 0;
    for _ in 0..20_000 {
        let mut frame = if next() & 1 == 0 { tcp(b"payload") } else { unreachable(&udp(b"payload")) };
        for _ in 0..=next() % 4 {
            let at = next() as usize % frame.len();
            frame[at] = next();
        }
        frame.truncate(frame.len() - next() as usize % 8);
        read_some += usize::from(read(&frame).is_ok());
    }
    assert!((1_000..19_000).contains(&read_some), "{read_some} of 20,000 changed frames could be read");
}

/// What a glance at a frame says of its flow, if it is one of those that a glance is enough for.
fn glanced<A: Address>(bytes: &[u8]) -> Option<Flow<A>> {
    let mut ends = Ends::default();
    let frame = &mut Frame::new(bytes, IfIndex(1));
    flow::glance(frame, &mut ends).then(|| Flow::of(&ends, frame.length()))
}

#[test]
fn whatever_a_glance_is_enough_for_is_read_as_the_same_flow() {
    fn is_alike<A: Address>(bytes: &[u8]) -> bool {
        let Some(glanced) = glanced::<A>(bytes) else { return false };
        let mut flow = Flow::default();
        flow::read(&mut Frame::new(bytes, IfIndex(1)), &mut flow)
            .unwrap_or_else(|reason| panic!("{reason:?}: {bytes:02x?}"));
        // A whole packet's is nobody's concern.
        flow.piece.identification = Be32::default();
        assert_eq!(flow, glanced, "{bytes:02x?}");
        true
    }
    let six = |tcp: bool| {
        let mut frame = Vec::new();
        let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([0xfd; 16], [0x20; 16], 17);
        let written = match tcp {
            true => ip.tcp(40_000, 443, 1, 1024).ack(7).write(&mut frame, b"payload"),
            false => ip.udp(40_000, 53).write(&mut frame, b"payload"),
        };
        written.expect("a vector takes everything");
        frame
    };
    let whole = [tcp(b"payload"), udp(b"payload"), six(true), six(false)];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut enough = [0; 4];
    for _ in 0..40_000 {
        let kind = next() % whole.len();
        let mut frame = whole[kind].clone();
        // Most of it is headers, and some bytes of it padding.
        for _ in 0..next() % 4 {
            let at = 12 + next() % (frame.len() - 12);
            frame[at] = next() as u8;
        }
        frame.resize(frame.len() + next() % 8 - next() % 8, 0);
        enough[kind] += usize::from(if kind < 2 { is_alike::<V4>(&frame) } else { is_alike::<V6>(&frame) });
    }
    assert!(enough.iter().all(|enough| (1_000..9_000).contains(enough)), "{enough:?} of 10,000 each");
}

#[test]
fn a_tunnel_s_room_opens_behind_the_ethernet_header_and_closes_without_a_trace() {
    let whole = tcp(b"payload");
    for (outer, options, room) in [(Family::V4, 0, 50), (Family::V6, 0, 70), (Family::V6, 24, 94)] {
        let mut frame = Frame::new(&whole, IfIndex(1));
        frame.open_tunnel(outer, options).expect("room");
        assert_eq!(frame.length() as usize, whole.len() + room);
        assert_eq!(frame.read::<V4>(14 + room + V4::SOURCE), Some(V4(POD)));
        frame.close_tunnel(outer, options).expect("room");
        assert_eq!(frame.bytes(), whole);
    }
}

#[test]
fn a_segment_and_the_sum_of_its_pseudo_header_are_what_its_checksum_covers() {
    for frame in [tcp(b"hi"), udp(b"hi")] {
        let mut ends = Ends::<V4>::default();
        assert!(flow::glance(&mut Frame::new(&frame, IfIndex(1)), &mut ends));
        let words = frame[ends.transport..].chunks_exact(2);
        let segment = words.map(|word| u32::from(u16::from_ne_bytes([word[0], word[1]]))).sum();
        assert_eq!(checksum::of([ends.pseudo_sum()], segment), Be16::new(0), "protocol {}", ends.protocol);
    }
}

#[test]
fn a_sum_that_is_left_to_the_network_card_follows_an_address() {
    let mut ends = Ends::<V4>::default();
    assert!(flow::glance(&mut Frame::new(&tcp(b"hi"), IfIndex(1)), &mut ends));
    for target in [V4([10, 96, 0, 1]), V4([255; 4]), V4::default()] {
        let delta = checksum::address_delta(ends.target, target);
        let sum = checksum::extended(ends.pseudo_sum(), delta);
        assert_eq!(sum, Ends { target, ..ends }.pseudo_sum(), "{target}");
    }
}
