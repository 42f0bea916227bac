//! What the path makes itself, judged by decoders that share nothing with it: the tunnel's frames and the errors
//! about what does not fit, in every mix of families and kinds of tunnel.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use dataplane::tables::{
    Backend, BackendId, Endpoint, Identity, IfIndex, Node, NodeId, Route, RuleSet, Service, ServiceId, Slots,
    Timeouts,
};
use dataplane::wire::{Address, Be16, Mac, V4, V6};
use dataplane::{Reason, Verdict};
use etherparse::{
    IpHeaders, PacketBuilder, PacketBuilderStep, PacketHeaders, PayloadSlice, TcpHeader, TcpOptionElement,
    TransportHeader,
};
use userspace::engine::emulator::Emulator;
use userspace::engine::{Engine, Hook};
use userspace::plan::{FrontendKey, NodePlan, NodeRows, Prefix, Rows, Rules};

const UPLINK: IfIndex = IfIndex(2);
const POD: IfIndex = IfIndex(7);
const MTU: u32 = 1500;
const UNDERLAY: [V6; 2] = [
    V6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 240, 0, 4]),
    V6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
];
const PODS: (V4, V6) = (V4([10, 244, 0, 2]), V6([0xfd, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]));
const OTHERS: (V4, V6) = (V4([10, 244, 1, 2]), V6([0xfd, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]));
/// What a client outside dials, to be answered straight by the pod on the other node; and the client.
const DIALLED: (V4, V6) =
    (V4([198, 51, 100, 1]), V6([0x20, 1, 0xd, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
const CLIENTS: (V4, V6) =
    (V4([203, 0, 113, 7]), V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]));

/// The node at the other end of the tunnel.
fn beyond(mut underlay: V6) -> V6 {
    underlay.0[15] += 1;
    underlay
}

/// A node with a pod, and a pod on another node.
fn node(encapsulation: u8, underlay: V6) -> Emulator {
    between(encapsulation, (underlay, beyond(underlay)), (PODS, OTHERS))
}

/// The node where a client's packets come out of the tunnel that it dialled at [`node`].
fn other_node(underlay: V6) -> Emulator {
    between(Node::GENEVE, (beyond(underlay), underlay), (OTHERS, PODS))
}

/// The first of two nodes, each with a pod.
fn between(encapsulation: u8, ends: (V6, V6), pods: ((V4, V6), (V4, V6))) -> Emulator {
    fn rows<A: Address>(pod: A, other: A, node: V6, outside: (A, A)) -> Rows<A> {
        let endpoint = Endpoint {
            interface: POD,
            identity: Identity::FIRST,
            rules: RuleSet(1),
            mac: Mac::of(pod),
            isolated: 0,
            flags: 0,
        };
        let remote =
            Route { node, id: NodeId(2), mac: Mac::of(V4([10, 240, 0, 5])), kind: Route::REMOTE, own: 0 };
        let world = Route { mac: Mac::of(V4([10, 240, 0, 1])), kind: Route::WORLD, ..Route::default() };
        let (dialled, client) = outside;
        let slots = Slots { first: 0, count: 1 };
        let flags = Service::DIRECT_RETURN;
        let service =
            Service { internal: slots, external: slots, id: ServiceId(1), flags, ..Service::default() };
        let state = Backend::<A>::ACTIVE;
        let backend = Backend { address: other, seed: 1, port: Be16::new(80), state, pad: 0 };
        Rows {
            endpoints: BTreeMap::from([(pod, endpoint)]),
            frontends: BTreeMap::from([(FrontendKey { address: dialled, port: 80, protocol: 6 }, service)]),
            maglev: vec![BackendId(1)],
            backends: vec![Backend::default(), backend],
            routes: BTreeMap::from([
                (Prefix { key: other, bits: A::BITS }, remote),
                (Prefix { key: client, bits: A::BITS }, world),
            ]),
            ..Rows::default()
        }
    }
    let timeouts = Timeouts { tcp_opening_s: 60, udp_s: 60, icmp_s: 60, ..Timeouts::default() };
    let plan = NodePlan {
        node: Node {
            underlay: ends.0,
            uplink: UPLINK,
            mtu: MTU,
            seed: 7,
            timeouts,
            mac: Mac::of(V4([10, 240, 0, 4])),
            tunnel_port: Be16::new(if encapsulation == Node::GENEVE { 6081 } else { 4789 }),
            encapsulation,
            ..Node::default()
        },
        addresses: (V4([10, 240, 0, 4]), UNDERLAY[1]),
        rows: NodeRows {
            nodes: BTreeMap::from([(ends.1, NodeId(2))]),
            v4: rows(pods.0.0, pods.1.0, ends.1, (DIALLED.0, CLIENTS.0)),
            v6: rows(pods.0.1, pods.1.1, ends.1, (DIALLED.1, CLIENTS.1)),
        },
        rules: Rules::default(),
    };
    Emulator::new(&plan).expect("tables have room for two pods")
}

/// A SYN or a datagram with `payload` bytes from the pod to the one on the other node.
fn packet(six: bool, tcp: bool, payload: usize) -> Vec<u8> {
    let ether = PacketBuilder::ethernet2(Mac::of(PODS.0).0, Mac::GATEWAY.0);
    let ip = if six { ether.ipv6(PODS.1.0, OTHERS.1.0, 64) } else { ether.ipv4(PODS.0.0, OTHERS.0.0, 64) };
    let ports = (40_000, if tcp { 80 } else { 40_001 });
    finished(ip, ports, if tcp { Some(false) } else { None }, payload)
}

/// A client's SYN to what it dials.
fn dialling(six: bool) -> Vec<u8> {
    let ether = PacketBuilder::ethernet2(Mac::of(V4([10, 240, 0, 1])).0, Mac::of(V4([10, 240, 0, 4])).0);
    let (client, dialled) = (CLIENTS, DIALLED);
    let ip =
        if six { ether.ipv6(client.1.0, dialled.1.0, 64) } else { ether.ipv4(client.0.0, dialled.0.0, 64) };
    finished(ip, (40_000, 80), Some(false), 0)
}

/// The answer of the pod on the other node to that.
fn answering(six: bool) -> Vec<u8> {
    let ether = PacketBuilder::ethernet2(Mac::of(OTHERS.0).0, Mac::GATEWAY.0);
    let (pod, client) = (OTHERS, CLIENTS);
    let ip = if six { ether.ipv6(pod.1.0, client.1.0, 64) } else { ether.ipv4(pod.0.0, client.0.0, 64) };
    finished(ip, (80, 40_000), Some(true), 0)
}

/// A SYN, whether it answers one, or a datagram.
fn finished(
    ip: PacketBuilderStep<etherparse::IpHeaders>,
    (from, to): (u16, u16),
    syn: Option<bool>,
    payload: usize,
) -> Vec<u8> {
    let data: Vec<u8> = (0..payload).map(|index| index as u8).collect();
    let mut frame = Vec::new();
    if let Some(answers) = syn {
        let mut syn = TcpHeader::new(from, to, 1, 64_000);
        (syn.syn, syn.ack) = (true, answers);
        // Behind one byte, so that it lies across the words that are summed.
        let options = [TcpOptionElement::Noop, TcpOptionElement::MaximumSegmentSize(8960)];
        syn.set_options(&options).expect("five bytes");
        ip.tcp_header(syn).write(&mut frame, &data).expect("a vector takes every byte");
    } else {
        ip.udp(from, to).write(&mut frame, &data).expect("a vector takes every byte");
    }
    frame
}

/// What IP packets there is room for.
fn room(underlay: V6) -> u16 {
    MTU as u16 - if underlay == UNDERLAY[0] { 50 } else { 70 }
}

/// Every frame that the path makes of these packets, with what `tshark` is to call its layers.
fn made() -> Vec<(Vec<u8>, String)> {
    let mut frames = Vec::new();
    for (encapsulation, tunnel) in [(Node::VXLAN, "vxlan"), (Node::GENEVE, "geneve")] {
        for underlay in UNDERLAY {
            for six in [false, true] {
                let mut node = node(encapsulation, underlay);
                let (outer, inner) =
                    (if underlay == UNDERLAY[0] { "ip" } else { "ipv6" }, if six { "ipv6" } else { "ip" });
                for tcp in [false, true] {
                    let sent = node.push(Hook::FromPod, POD, &packet(six, tcp, if tcp { 0 } else { 500 }));
                    let sent = sent.expect("the emulator runs");
                    assert_eq!(sent.verdict, Verdict::Forward(UPLINK));
                    let last = if tcp { "tcp" } else { "udp:data" };
                    frames.push((
                        sent.frame,
                        format!("eth:ethertype:{outer}:udp:{tunnel}:eth:ethertype:{inner}:{last}"),
                    ));
                }
                let error =
                    node.push(Hook::FromPod, POD, &packet(six, false, 1450)).expect("the emulator runs");
                assert_eq!(error.verdict, Verdict::Reject(Reason::TooBig));
                if encapsulation == Node::GENEVE {
                    let dialled = node.push(Hook::FromUnderlay, UPLINK, &dialling(six));
                    let dialled = dialled.expect("the emulator runs");
                    assert_eq!(dialled.verdict, Verdict::Forward(UPLINK));
                    let layers = format!("eth:ethertype:{outer}:udp:geneve:eth:ethertype:{inner}:tcp");
                    frames.push((dialled.frame, layers));
                }
                let icmp = if six { "ipv6:icmpv6:ipv6:udp:data" } else { "ip:icmp:ip:udp:data" };
                frames.push((error.frame, format!("eth:ethertype:{icmp}")));
            }
        }
    }
    frames
}

/// The one's complement sum of these bytes.
fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[test]
fn an_error_about_a_packet_that_does_not_fit_says_what_does_and_quotes_it() {
    for underlay in UNDERLAY {
        for six in [false, true] {
            let sent = packet(six, false, 1450);
            let answer =
                node(Node::VXLAN, underlay).push(Hook::FromPod, POD, &sent).expect("the emulator runs");
            assert_eq!(answer.verdict, Verdict::Reject(Reason::TooBig));
            let frame = answer.frame;
            assert_eq!((&frame[..6], &frame[6..12]), (&sent[6..12], &sent[..6]), "back to the pod");
            let headers = PacketHeaders::from_ethernet_slice(&frame).expect("a whole packet");
            let (from, to) = match headers.net.and_then(|net| match net {
                etherparse::NetHeaders::Ipv4(header, _) => {
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    Some((IpAddr::from(header.source), IpAddr::from(header.destination)))
                }
                etherparse::NetHeaders::Ipv6(header, _) => {
                    Some((IpAddr::from(header.source), IpAddr::from(header.destination)))
                }
                etherparse::NetHeaders::Arp(_) => None,
            }) {
                Some(ends) => ends,
                None => panic!("an IP packet"),
            };
            let (longest, header, message) = if six { (1280, 40, [2, 0]) } else { (576, 20, [3, 4]) };
            assert_eq!(frame.len() - 14, longest, "as long as it may be");
            let icmp = &frame[14 + header..];
            assert_eq!(icmp[..2], message);
            assert_eq!(u16::from_be_bytes([icmp[6], icmp[7]]), room(underlay), "what fits");
            assert_eq!(icmp[8..], sent[14..14 + icmp.len() - 8], "the packet as it was sent");
            let mut summed = icmp.to_vec();
            if six {
                assert_eq!(from, IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)));
                assert_eq!(to, IpAddr::V6(Ipv6Addr::from(PODS.1.0)));
                summed.extend_from_slice(&frame[14 + 8..14 + 40]);
                summed.extend_from_slice(&[0, 0, (icmp.len() >> 8) as u8, icmp.len() as u8, 0, 0, 0, 58]);
            } else {
                assert_eq!(from, IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)));
                assert_eq!(to, IpAddr::V4(Ipv4Addr::from(PODS.0.0)));
            }
            assert_eq!(sum(&summed), 0xffff, "its checksum is right");
        }
    }
}

#[test]
fn a_connection_through_the_tunnel_agrees_on_segments_that_fit_it() {
    for underlay in UNDERLAY {
        for six in [false, true] {
            let outer = if underlay == UNDERLAY[0] { 50 } else { 70 };
            let sent = node(Node::GENEVE, underlay).push(Hook::FromPod, POD, &packet(six, true, 0));
            let frame = sent.expect("the emulator runs").frame;
            let inside = PacketHeaders::from_ethernet_slice(&frame[outer..]).expect("a whole packet");
            let Some(TransportHeader::Tcp(tcp)) = inside.transport else { panic!("a segment") };
            let said: Vec<_> = tcp.options_iterator().filter_map(Result::ok).collect();
            let most = room(underlay) - if six { 60 } else { 40 };
            assert!(said.contains(&TcpOptionElement::MaximumSegmentSize(most)), "{said:?}, not {most}");
            let PayloadSlice::Tcp(data) = inside.payload else { panic!("a segment") };
            let (_, rest) = frame[outer + 14..].split_at(0);
            let (ip, ..) = IpHeaders::from_slice(rest).expect("an IP packet");
            let right = match ip {
                IpHeaders::Ipv4(header, _) => tcp.calc_checksum_ipv4(&header, data),
                IpHeaders::Ipv6(header, _) => tcp.calc_checksum_ipv6(&header, data),
            };
            assert_eq!(tcp.checksum, right.expect("short enough"), "its checksum followed");
        }
    }
}

/// The largest segment that a frame's SYN says, the frame's IP packet at `offset`.
fn segment_size(frame: &[u8], offset: usize) -> (IpHeaders, u16) {
    let inside = PacketHeaders::from_ethernet_slice(&frame[offset..]).expect("a whole packet");
    let Some(TransportHeader::Tcp(tcp)) = inside.transport else { panic!("a segment") };
    let said = tcp.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::MaximumSegmentSize(most)) => Some(most),
        _ => None,
    });
    let (ip, ..) = IpHeaders::from_slice(&frame[offset + 14..]).expect("an IP packet");
    (ip, said.expect("it says so"))
}

#[test]
fn what_a_client_dialled_goes_through_the_tunnel_and_both_ends_leave_room_for_it() {
    for underlay in UNDERLAY {
        for six in [false, true] {
            let (outer, option) = (if underlay == UNDERLAY[0] { 50 } else { 70 }, if six { 24 } else { 12 });
            let most = room(underlay) - option - if six { 60 } else { 40 };
            let asked = dialling(six);
            let sent = node(Node::GENEVE, underlay).push(Hook::FromUnderlay, UPLINK, &asked);
            let sent = sent.expect("the emulator runs");
            assert_eq!(sent.verdict, Verdict::Forward(UPLINK));
            assert_eq!(sent.frame.len(), asked.len() + outer + usize::from(option));
            let geneve = outer;
            let words = (option / 4) as u8;
            assert_eq!(sent.frame[geneve - 8..geneve - 4], [words, 0x40, 0x65, 0x58], "must be understood");
            let told = &sent.frame[geneve..geneve + usize::from(option)];
            assert_eq!(told[..4], [0xff, 0x70, 0x81, words - 1], "of a class for experiments");
            let dialled = if six { DIALLED.1.0.to_vec() } else { DIALLED.0.0.to_vec() };
            assert_eq!(told[4..], [&dialled[..], &[0, 80, 0, 0]].concat());
            assert_eq!(segment_size(&sent.frame, outer + usize::from(option)).1, most);
            let mut other = other_node(underlay);
            let came = other.push(Hook::FromUnderlay, UPLINK, &sent.frame).expect("the emulator runs");
            assert_eq!(came.verdict, Verdict::Deliver(POD));
            let answer = other.push(Hook::FromPod, POD, &answering(six)).expect("the emulator runs");
            assert_eq!(answer.verdict, Verdict::Forward(UPLINK));
            let (ip, said) = segment_size(&answer.frame, 0);
            assert_eq!(said, most, "what the client may send goes through the tunnel");
            let (source, target) = match ip {
                IpHeaders::Ipv4(header, _) => (header.source.to_vec(), header.destination.to_vec()),
                IpHeaders::Ipv6(header, _) => (header.source.to_vec(), header.destination.to_vec()),
            };
            assert_eq!(source, dialled, "straight, from what was dialled");
            assert_eq!(target, if six { CLIENTS.1.0.to_vec() } else { CLIENTS.0.0.to_vec() });
        }
    }
}

#[test]
#[ignore = "needs root: make test"]
fn tshark_has_nothing_to_complain_of() {
    let frames = made();
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    // The classic format, of Ethernet frames (draft-ietf-opsawg-pcap, section 4).
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for (frame, _) in &frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(frame);
    }
    file.write_all(&bytes).expect("a temporary file takes it");
    let ran = Command::new("tshark")
        .arg("-r")
        .arg(file.path())
        // Every checksum is checked; tunnels over IPv6 may go without UDP's (RFC 6935).
        .args([
            "-o",
            "ip.check_checksum:TRUE",
            "-o",
            "tcp.check_checksum:TRUE",
            "-o",
            "udp.check_checksum:TRUE",
        ])
        .args(["-o", "udp.ignore_ipv6_zero_checksum:TRUE"])
        // The same connection is opened once in each tunnel: nothing is sent twice.
        .args(["-o", "tcp.analyze_sequence_numbers:FALSE"])
        .args(["-T", "fields", "-E", "separator=|"])
        .args(["-e", "frame.protocols", "-e", "_ws.expert.severity", "-e", "_ws.expert.message"])
        .output()
        .expect("tshark is installed: make setup");
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(text.lines().count(), frames.len(), "{text}");
    for (line, (_, layers)) in text.lines().zip(&frames) {
        let mut fields = line.split('|');
        assert_eq!(fields.next(), Some(layers.as_str()), "{line}");
        // Chat (0x200000) is what a SYN is called; notes, warnings and errors are above.
        let severities = fields.next().unwrap_or_default();
        for severity in severities.split(',').filter(|severity| !severity.is_empty()) {
            let severity: u32 = severity.parse().expect("a number");
            assert!(severity <= 0x0020_0000, "{line}");
        }
    }
}
