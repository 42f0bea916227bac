//! The path's reading and rewriting of IPv6, and its answers to neighbours, against an independent maker
//! and reader of packets.

use std::net::Ipv6Addr;

use dataplane::flow::{self, EXTENSION_BYTES, Flow, Piece};
use dataplane::tables::{BackendId, IfIndex};
use dataplane::wire::{Be16, Be32, Mac, V6};
use dataplane::{Reason, nat, neighbour};
use etherparse::icmpv6::{
    DestUnreachableCode, ParameterProblemCode, ParameterProblemHeader, TimeExceededCode,
};
use etherparse::{
    IcmpEchoHeader, Icmpv6Slice, Icmpv6Type, IpHeaders, NetHeaders, PacketBuilder, PacketBuilderStep,
    PacketHeaders, TransportHeader,
};
use userspace::engine::emulator::Frame;

const POD: V6 = V6([0xfd, 0, 0, 0x24, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
const PEER: V6 = V6([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
const ROUTER: V6 = V6([0x20, 0x01, 0x0d, 0xb8, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const OTHER: V6 = V6([0xfd, 0, 0, 0x24, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xab, 9]);
const POD_MAC: [u8; 6] = [2; 6];

/// Where an IP packet starts, and what a plain header leads to.
const IP: usize = 14;
const TRANSPORT: usize = 54;

fn ip() -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2(POD_MAC, [4; 6]).ipv6(POD.0, PEER.0, 17)
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

fn message(kind: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
    from((POD, PEER), kind, payload)
}

fn from((source, target): (V6, V6), kind: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let ip = PacketBuilder::ethernet2(POD_MAC, [4; 6]).ipv6(source.0, target.0, 17);
    ip.icmpv6(kind).write(&mut frame, payload).expect("a vector takes everything");
    frame
}

fn echo(id: u16, reply: bool) -> Vec<u8> {
    let header = IcmpEchoHeader { id, seq: 1 };
    message(if reply { Icmpv6Type::EchoReply(header) } else { Icmpv6Type::EchoRequest(header) }, b"ping")
}

/// Every error there is, sent to the pod by a router about its packet `about`.
fn errors(about: &[u8]) -> Vec<Vec<u8>> {
    let problem = ParameterProblemHeader { code: ParameterProblemCode::ErroneousHeaderField, pointer: 4 };
    [
        Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        Icmpv6Type::PacketTooBig { mtu: 1280 },
        Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
        Icmpv6Type::ParameterProblem(problem),
    ]
    .into_iter()
    .map(|kind| from((ROUTER, POD), kind, &about[IP..]))
    .collect()
}

/// The frame with these extension headers (their numbers, and their bytes but the first) before its transport.
fn extended(frame: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut extended = frame[..TRANSPORT].to_vec();
    let mut next = frame[IP + 6];
    let mut chain = Vec::new();
    for (kind, rest) in headers.iter().rev() {
        let header: Vec<u8> = std::iter::once(next).chain(rest.iter().copied()).collect();
        chain.splice(0..0, header);
        next = *kind;
    }
    extended[IP + 6] = next;
    let payload = u16::try_from(chain.len() + frame.len() - TRANSPORT).expect("a small packet");
    extended[IP + 4..IP + 6].copy_from_slice(&payload.to_be_bytes());
    extended.extend(chain);
    extended.extend(&frame[TRANSPORT..]);
    extended
}

/// Eight bytes of options (one that pads), without the number of what follows.
const OPTIONS: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

fn read(bytes: &[u8]) -> Result<Flow<V6>, Reason> {
    let mut flow = Flow::default();
    flow::read(&mut Frame::new(bytes, IfIndex(1)), &mut flow)?;
    Ok(flow)
}

/// Whether the packet's transport checksum is right: that of an error's quote too.
fn is_sound(packet: &[u8]) -> bool {
    let headers = PacketHeaders::from_ip_slice(packet).expect("an IP packet");
    let Some(NetHeaders::Ipv6(ip, _)) = headers.net else { panic!("an IPv6 packet") };
    let payload = headers.payload.slice();
    match headers.transport.expect("a transport header") {
        TransportHeader::Tcp(header) => {
            header.checksum == header.calc_checksum_ipv6(&ip, payload).expect("short")
        }
        TransportHeader::Udp(header) => {
            header.checksum == header.calc_checksum_ipv6(&ip, payload).expect("short")
        }
        TransportHeader::Icmpv6(_) => {
            let message = Icmpv6Slice::from_slice(&packet[40..]).expect("a message");
            let quotes = message.type_u8() < 128;
            message.is_checksum_valid(ip.source, ip.destination) && (!quotes || is_sound(message.payload()))
        }
        other => panic!("{other:?} is not IPv6's"),
    }
}

#[test]
fn ports_are_read_where_an_independent_maker_put_them() {
    for frame in [tcp(b"x"), udp(b"x")] {
        let flow = read(&frame).expect("a sound frame");
        assert_eq!((flow.source, flow.source_port.host()), (POD, 40_000));
        assert_eq!((flow.sender, flow.target), (POD, PEER));
        assert_eq!((flow.hops, flow.transport, flow.length as usize), (17, TRANSPORT, frame.len()));
        assert_eq!(flow.piece, Piece::default());
    }
    assert_eq!(read(&tcp(b"")).expect("a sound frame").flags, 0x02);
}

#[test]
fn an_echo_and_its_answer_are_two_directions_of_one_flow() {
    let question = read(&echo(77, false)).expect("a sound frame");
    let mut answer = read(&echo(77, true)).expect("a sound frame");
    assert_eq!((question.protocol, question.source_port.host(), question.target_port.host()), (58, 77, 0));
    std::mem::swap(&mut answer.source, &mut answer.target);
    let (asked, asked_high) = question.tuple();
    let (answered, answered_high) = answer.tuple();
    assert_eq!(asked, answered);
    assert_ne!(asked_high, answered_high);
}

#[test]
fn every_error_belongs_to_the_other_direction_of_the_flow_it_quotes() {
    let options = extended(&udp(b"question"), &[(DESTINATION, &OPTIONS)]);
    for quoted in [tcp(b""), udp(b"question"), echo(9, false), options] {
        let flow = read(&quoted).expect("a sound frame");
        for error in errors(&quoted) {
            let error = read(&error).expect("a sound frame");
            assert!(error.error);
            assert_eq!(error.sender, ROUTER, "whoever found it");
            assert_eq!((error.source, error.target), (flow.target, flow.source));
            assert_eq!((error.source_port, error.target_port), (flow.target_port, flow.source_port));
            assert_eq!(error.tuple().0, flow.tuple().0);
        }
    }
}

#[test]
fn an_error_about_something_else_is_no_flow_s() {
    let of_the_pod = message(Icmpv6Type::PacketTooBig { mtu: 1280 }, &udp(b"x")[IP..]);
    assert_eq!(read(&errors(&of_the_pod)[0]), Err(Reason::UnknownIcmp), "about an error");
    let mut astray = errors(&udp(b"x")).remove(0);
    astray[IP + 39] ^= 1;
    assert_eq!(read(&astray), Err(Reason::UnknownIcmp), "for somebody else than sent what it quotes");
    let mut later = extended(&udp(b"x"), &[(FRAGMENT, &[0, 0x00, 0x08, 0, 0, 0, 9])]);
    assert_eq!(read(&errors(&later)[1]), Err(Reason::UnknownIcmp), "its ports are not in it");
    later[IP + 40 + 3] = 0x01;
    read(&errors(&later)[1]).expect("the first fragment says the ports");
}

#[test]
fn a_frame_cut_anywhere_is_refused_and_nothing_else_happens() {
    let chain: [(u8, &[u8]); 2] = [(HOP_BY_HOP, &OPTIONS), (DESTINATION, &OPTIONS)];
    let mut whole = vec![tcp(b"payload"), udp(b"payload"), echo(3, false), extended(&tcp(b"x"), &chain)];
    whole.extend(errors(&extended(&udp(b"payload"), &chain)));
    for whole in whole {
        for length in 0..whole.len() {
            let refused = read(&whole[..length]).expect_err("a cut frame");
            assert_eq!(refused, Reason::Truncated, "cut at {length} of {}", whole.len());
        }
        read(&whole).expect("the whole frame");
    }
}

#[test]
fn extension_headers_are_walked_over() {
    let routed: [u8; 7] = [0, 4, 0, 0, 0, 0, 0];
    let chains: [&[(u8, &[u8])]; 4] = [
        &[(HOP_BY_HOP, &OPTIONS)],
        &[(DESTINATION, &OPTIONS)],
        &[(HOP_BY_HOP, &OPTIONS), (ROUTING, &routed), (DESTINATION, &OPTIONS)],
        &[(HOP_BY_HOP, &OPTIONS), (DESTINATION, &OPTIONS), (ROUTING, &routed), (DESTINATION, &OPTIONS)],
    ];
    for chain in chains {
        for frame in [tcp(b"x"), udp(b"x"), echo(5, false)] {
            let plain = read(&frame).expect("a sound frame");
            let flow = read(&extended(&frame, chain)).expect("a chain that is walked over");
            assert_eq!(flow.tuple(), plain.tuple());
            assert_eq!((flow.transport, flow.flags), (TRANSPORT + 8 * chain.len(), plain.flags));
        }
    }
}

#[test]
fn extension_headers_that_hide_or_mislead_are_refused() {
    let refused = |headers: &[(u8, &[u8])]| read(&extended(&udp(b"payload"), headers));
    let long = |units: u8| {
        let mut header = vec![units, 1, units * 8 + 4];
        header.resize(usize::from(units) * 8 + 7, 0);
        header
    };
    let option: (u8, &[u8]) = (DESTINATION, &OPTIONS);
    assert_eq!(refused(&[option; 5]), Err(Reason::ExtensionHeader), "five");
    refused(&[option; 4]).expect("four");
    let units = u8::try_from(EXTENSION_BYTES / 8).expect("few");
    assert_eq!(refused(&[(DESTINATION, &long(units))]), Err(Reason::ExtensionHeader), "too long");
    refused(&[(DESTINATION, &long(units - 1))]).expect("just so long");
    assert_eq!(refused(&[option, (HOP_BY_HOP, &OPTIONS)]), Err(Reason::ExtensionHeader), "must be first");
    for (kind, name) in [(50, "ESP"), (51, "AH"), (135, "mobility"), (139, "HIP"), (140, "shim6")] {
        assert_eq!(refused(&[(kind, &OPTIONS)]), Err(Reason::ExtensionHeader), "{name}");
    }
    let stops: [u8; 7] = [0, 4, 1, 0, 0, 0, 0];
    assert_eq!(refused(&[(ROUTING, &stops)]), Err(Reason::ExtensionHeader), "not its last target");
    let first: (u8, &[u8]) = (FRAGMENT, &[0, 0, 1, 0, 0, 0, 9]);
    assert_eq!(refused(&[first, first]), Err(Reason::ExtensionHeader), "a fragment of a fragment");
}

#[test]
fn a_fragment_says_which_piece_of_which_packet_it_is() {
    let piece = |place: [u8; 2]| {
        let rest = [0, place[0], place[1], 0xde, 0xad, 0xbe, 0xef];
        let mut flow = Flow::<V6>::default();
        let bytes = extended(&udp(b"payload"), &[(HOP_BY_HOP, &OPTIONS), (FRAGMENT, &rest)]);
        let read = flow::read(&mut Frame::new(&bytes, IfIndex(1)), &mut flow);
        assert_eq!((flow.protocol, flow.transport), (17, TRANSPORT + 16));
        (read, flow.piece)
    };
    let identification = Be32::new(0xdead_beef);
    let fragment = |offset, more| (Ok(()), Piece { identification, offset, more });
    assert_eq!(piece([0x00, 0x01]), fragment(0, true));
    assert_eq!(piece([0x05, 0xa9]), fragment(1448, true));
    assert_eq!(piece([0xff, 0xf8]), fragment(65_528, false));
    let whole = Piece { identification, offset: 0, more: false };
    assert_eq!(piece([0x00, 0x00]), (Ok(()), whole), "in one piece (RFC 6946)");
}

#[test]
fn impossible_headers_are_refused_by_name() {
    let changed = |offset: usize, value: u8| {
        let mut frame = udp(b"payload");
        frame[offset] = value;
        read(&frame).expect_err("an impossible frame")
    };
    assert_eq!(changed(14, 0x45), Reason::MalformedHeader, "version 4 in an IPv6 frame");
    assert_eq!(changed(18, 0xff), Reason::Truncated, "a packet longer than its frame");
    assert_eq!(changed(20, 47), Reason::UnsupportedProtocol, "GRE");
    assert_eq!(changed(20, 1), Reason::UnsupportedProtocol, "IPv4's ICMP");
    assert_eq!(changed(20, 59), Reason::UnsupportedProtocol, "nothing follows");
    assert_eq!(changed(12, 0x08), Reason::UnsupportedEtherType, "not IPv6 at all");
    let mut short = extended(&udp(b"payload"), &[(DESTINATION, &OPTIONS)]);
    short[IP + 5] = 7;
    assert_eq!(read(&short), Err(Reason::MalformedHeader), "a packet shorter than its headers");
    assert_eq!(read(&message(unknown(100), b"")), Err(Reason::UnsupportedProtocol), "an experiment");
}

fn unknown(type_u8: u8) -> Icmpv6Type {
    Icmpv6Type::Unknown { type_u8, code_u8: 0, bytes5to8: [0; 4] }
}

#[test]
fn any_bytes_at_all_give_a_flow_or_a_reason() {
    // A fixed sequence (Knuth's linear congruence), so that a failure repeats.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let chain: [(u8, &[u8]); 2] = [(HOP_BY_HOP, &OPTIONS), (FRAGMENT, &[0, 0, 0, 0, 0, 0, 9])];
    let makers = [tcp(b"payload"), extended(&udp(b"payload"), &chain), errors(&udp(b"payload")).remove(0)];
    let mut read_some = 0;
    for _ in 0..20_000 {
        let mut frame = makers[usize::from(next()) % 3].clone();
        for _ in 0..=next() % 4 {
            let at = next() as usize % frame.len();
            frame[at] = next();
        }
        frame.truncate(frame.len() - next() as usize % 8);
        read_some += usize::from(read(&frame).is_ok());
    }
    assert!((1_000..19_000).contains(&read_some), "{read_some} of 20,000 changed frames could be read");
}

/// The frame after its target, `from`, became `to`.
fn redirected(frame: &[u8], to: (V6, u16)) -> Vec<u8> {
    let mut frame = Frame::new(frame, IfIndex(1));
    let mut flow = Flow::default();
    flow::read(&mut frame, &mut flow).expect("a sound frame");
    nat::to_backend(&mut frame, &mut flow, (to.0, Be16::new(to.1)), BackendId(1)).expect("a whole frame");
    assert_eq!((flow.target, flow.target_port.host()), to);
    if flow.target == flow.source {
        nat::meet_itself(&mut frame, &mut flow).expect("a whole frame");
    }
    frame.bytes().to_vec()
}

#[test]
fn every_checksum_follows_a_rewritten_address() {
    let chain: [(u8, &[u8]); 1] = [(DESTINATION, &OPTIONS)];
    for frame in [tcp(b"payload"), udp(b"odd"), echo(7, false)] {
        for (to, port) in [(OTHER, 8080), (POD, 53), (PEER, 1)] {
            // An echo's answerer has no port.
            let port = if frame[IP + 6] == 58 { 0 } else { port };
            let changed = redirected(&frame, (to, port));
            assert!(is_sound(&changed[IP..]), "to {to} port {port}");
            let ip = PacketHeaders::from_ethernet_slice(&changed).expect("a packet").net.expect("IP");
            let ip = ip.ipv6_ref().expect("IPv6").0.clone();
            assert_eq!(ip.destination, to.0);
            let itself = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 169, 254, 42, 1]);
            assert_eq!(Ipv6Addr::from(ip.source), if to == POD { itself } else { POD.0.into() });
            if frame[IP + 6] != 58 {
                let with_options = redirected(&extended(&frame, &chain), (to, port));
                assert_eq!(with_options[TRANSPORT + 8..], changed[TRANSPORT..], "behind options the same");
            }
        }
    }
}

#[test]
fn an_error_is_rewritten_outside_and_in_what_it_quotes() {
    for quoted in [tcp(b"payload"), udp(b"odd"), echo(7, false)] {
        for error in errors(&quoted) {
            assert!(is_sound(&error[IP..]), "before");
            let port = if quoted[IP + 6] == 58 { 7 } else { 40_001 };
            let changed = redirected(&error, (OTHER, port));
            assert!(is_sound(&changed[IP..]), "type {} about protocol {}", error[TRANSPORT], quoted[IP + 6]);
            assert_eq!(changed[IP + 24..IP + 40], OTHER.0, "whom the error is for");
            assert_eq!(changed[IP + 8..IP + 24], ROUTER.0, "whoever found it stays");
            assert_eq!(changed[TRANSPORT + 8 + 8..TRANSPORT + 8 + 24], OTHER.0, "who sent what it quotes");
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_and_never_comes_about() {
    let mut absent = udp(b"payload");
    absent[TRANSPORT + 6..TRANSPORT + 8].fill(0);
    let changed = redirected(&absent, (OTHER, 53));
    assert_eq!(changed[TRANSPORT + 6..TRANSPORT + 8], [0, 0], "whoever sends none (RFC 6936) still does");
    // Among all payloads of two bytes one makes the sum to all ones, which must not be written as zero.
    let mut all_ones = 0;
    for word in 0..=u16::MAX {
        let changed = redirected(&udp(&word.to_be_bytes()), (OTHER, 53));
        assert_ne!(changed[TRANSPORT + 6..TRANSPORT + 8], [0, 0], "payload {word:#x}");
        if changed[TRANSPORT + 6..TRANSPORT + 8] == [0xff, 0xff] {
            assert!(is_sound(&changed[IP..]));
            all_ones += 1;
        }
    }
    assert!(all_ones > 0, "the case came up");
}

/// A pod's question who has `asked`, from `asker`, as Linux asks it.
fn solicitation(asker: V6, asked: V6, hops: u8) -> Vec<u8> {
    let mut payload = asked.0.to_vec();
    payload.extend([1, 1]);
    payload.extend(POD_MAC);
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&asked.0[13..]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(POD_MAC, [0x33, 0x33, 0xff, 0, 0, 1])
        .ipv6(asker.0, group, hops)
        .icmpv6(unknown(135))
        .write(&mut frame, &payload)
        .expect("a vector takes everything");
    frame
}

/// What a pod's frame that is no flow is answered with.
fn answer(bytes: &[u8]) -> Result<Vec<u8>, Reason> {
    let mut frame = Frame::new(bytes, IfIndex(1));
    let mut flow = Flow::<V6>::default();
    assert_eq!(flow::read(&mut frame, &mut flow), Err(Reason::NeedsNoAnswer), "no flow");
    neighbour::answer(&mut frame, &flow)?;
    Ok(frame.bytes().to_vec())
}

#[test]
fn a_pod_that_asks_for_a_neighbour_is_answered() {
    let gateway = V6::GATEWAY;
    let mut longer = solicitation(POD, gateway, 255);
    longer[IP + 5] += 8;
    longer.extend([14, 1, 1, 2, 3, 4, 5, 6]);
    for question in [solicitation(POD, gateway, 255), solicitation(POD, OTHER, 255), longer] {
        let answer = answer(&question).expect("an answer");
        let headers = PacketHeaders::from_ethernet_slice(&answer).expect("a packet");
        let ip = headers.net.as_ref().and_then(|net| net.ipv6_ref()).expect("IPv6").0.clone();
        let ethernet = headers.link.expect("Ethernet").ethernet2().expect("Ethernet II");
        assert_eq!((ethernet.source, ethernet.destination), (Mac::GATEWAY.0, POD_MAC));
        assert_eq!((ip.source.to_vec(), ip.destination), (question[62..78].to_vec(), POD.0));
        assert_eq!((ip.hop_limit, ip.payload_length), (255, 32));
        assert_eq!(answer.len(), 86, "what else the question said is cut off");
        let message = Icmpv6Slice::from_slice(&answer[TRANSPORT..]).expect("a message");
        assert!(message.is_checksum_valid(ip.source, ip.destination));
        let Icmpv6Type::NeighborAdvertisement(says) = message.icmp_type() else { panic!("{message:?}") };
        assert!(says.router && says.solicited && says.r#override);
        assert_eq!(message.payload()[..16], question[62..78]);
        assert_eq!(message.payload()[16..18], [2, 1]);
        assert_eq!(message.payload()[18..], Mac::GATEWAY.0);
    }
}

#[test]
fn a_pod_that_looks_for_a_duplicate_of_its_address_hears_nothing() {
    let mut without_option = solicitation(V6::default(), POD, 255);
    without_option.truncate(78);
    without_option[IP + 5] = 24;
    assert_eq!(answer(&without_option), Err(Reason::OwnAddressAsked));
    assert_eq!(answer(&solicitation(V6::default(), POD, 255)), Err(Reason::OwnAddressAsked));
    assert_eq!(answer(&solicitation(POD, POD, 255)), Err(Reason::OwnAddressAsked));
}

#[test]
fn a_question_that_came_over_a_router_or_makes_no_sense_is_refused() {
    assert_eq!(answer(&solicitation(POD, OTHER, 254)), Err(Reason::MalformedHeader), "passed on");
    let group = V6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(answer(&solicitation(POD, group, 255)), Err(Reason::MalformedHeader), "a group");
    let mut coded = solicitation(POD, OTHER, 255);
    coded[TRANSPORT + 1] = 1;
    assert_eq!(answer(&coded), Err(Reason::MalformedHeader), "a code");
    let mut short = solicitation(POD, OTHER, 255);
    short.truncate(78);
    short[IP + 5] = 24;
    assert_eq!(answer(&short), Err(Reason::MalformedHeader), "no room for the answer");
    let options = extended(&solicitation(POD, OTHER, 255), &[(DESTINATION, &OPTIONS)]);
    assert_eq!(answer(&options), Err(Reason::MalformedHeader), "options");
    let cut = solicitation(POD, OTHER, 255);
    let mut cut = cut[..70].to_vec();
    cut[IP + 5] = 16;
    assert_eq!(answer(&cut), Err(Reason::Truncated), "half an address");
}

#[test]
fn what_else_neighbours_say_needs_no_answer() {
    // Listeners (RFC 2710), routers and neighbours (RFC 4861), listeners again (RFC 3810).
    for kind in [130, 131, 132, 133, 134, 136, 137, 143] {
        assert_eq!(answer(&message(unknown(kind), &[0; 24])), Err(Reason::NeedsNoAnswer), "type {kind}");
    }
    // As Linux sends it: with a router alert for every hop (RFC 2711).
    let report = extended(&message(unknown(143), &[0; 20]), &[(HOP_BY_HOP, &[0, 5, 2, 0, 0, 1, 0])]);
    assert_eq!(answer(&report), Err(Reason::NeedsNoAnswer));
}

#[test]
fn independent_checksums_agree_that_the_makers_here_are_sound() {
    for frame in [tcp(b"x"), udp(b"x"), echo(1, false)] {
        assert!(is_sound(&frame[IP..]));
        let mut broken = frame.clone();
        *broken.last_mut().expect("a payload") ^= 1;
        assert!(!is_sound(&broken[IP..]), "the judge sees a changed byte");
    }
}
