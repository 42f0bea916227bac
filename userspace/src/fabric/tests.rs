//! A fabric with a clock, frames made and read with etherparse, and who is on it.

mod balance;
mod balancer;
mod links;
mod outbound;
mod routes;
mod security;

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice,
};

use super::packet::{ETHERNET, Packet};
use super::seats::mac_of;
use super::*;
use crate::model::{External, Labels, Node, Pod, Service, Settings};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
const N1: Port = Port::Node(0);
const N2: Port = Port::Node(1);
const WORLD: Port = Port::External(0);
const OTHER: Port = Port::External(1);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
fn end(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// Nodes n1, n2, ... at 10.240.0.4, .5, ... and fd00:240::4, ...; on each a pod, at 10.244.0.5, 10.244.1.5, ...
/// and fd00:244:0::5, ...; outside world, at 203.0.113.7, other, at 198.51.100.9, and six, at 2001:db8::7.
fn cluster(nodes: usize) -> Cluster {
    let range = |text: &str| text.parse().expect("a range");
    let external = |(name, address): (&str, &str)| External {
        name: name.to_owned(),
        address: ip(address),
        ports: Vec::new(),
    };
    let pod = |place| Pod {
        namespace: "default".to_owned(),
        name: format!("p{}", place + 1),
        labels: Labels::new(),
        node: format!("n{}", place + 1),
        addresses: vec![ip(&format!("10.244.{place}.5")), ip(&format!("fd00:244:{place:x}::5"))],
        host_network: false,
        ports: Vec::new(),
        ready: true,
        ..Pod::default()
    };
    Cluster {
        name: "lab".to_owned(),
        settings: Settings {
            node_subnets: vec![range("10.240.0.0/16"), range("fd00:240::/64")],
            pod_cidrs: vec![range("10.244.0.0/15"), range("fd00:244::/32")],
            vnet_cidrs: vec![range("10.240.0.0/16"), range("fd00:240::/64")],
            ..Settings::default()
        },
        nodes: (0..nodes).map(node).collect(),
        pods: (0..nodes.min(2)).map(pod).collect(),
        externals: [("world", "203.0.113.7"), ("other", "198.51.100.9"), ("six", "2001:db8::7")]
            .map(external)
            .to_vec(),
        ..Cluster::default()
    }
}

fn node(place: usize) -> Node {
    let (third, fourth) = ((place + 4) / 250, (place + 4) % 250);
    Node {
        name: format!("n{}", place + 1),
        labels: Labels::new(),
        addresses: vec![ip(&format!("10.240.{third}.{fourth}")), ip(&format!("fd00:240::{:x}", place + 4))],
        pod_cidrs: vec![
            format!("10.{}.{}.0/24", 244 + place / 250, place % 250).parse().expect("a range"),
            format!("fd00:244:{place:x}::/64").parse().expect("a range"),
        ],
    }
}

/// A fabric, and the time.
struct Bench {
    fabric: Fabric,
    now_ns: u64,
}

impl Bench {
    fn new(cluster: &Cluster) -> Self {
        Self { fabric: Fabric::of(cluster, 1).expect("a fabric"), now_ns: 0 }
    }

    fn with(change: impl FnOnce(&mut Cluster)) -> Self {
        let mut cluster = cluster(2);
        change(&mut cluster);
        Self::new(&cluster)
    }

    fn wait(&mut self, seconds: u64) {
        self.now_ns += seconds * SECOND;
    }

    /// Everything that comes of a frame, until nothing is under way.
    fn send(&mut self, port: Port, frame: Vec<u8>) -> Vec<Outcome> {
        self.fabric.arrive(port, frame, 7, self.now_ns);
        let mut outcomes = Vec::new();
        while let Some(due_ns) = self.fabric.next_due_ns() {
            self.now_ns = self.now_ns.max(due_ns);
            outcomes.extend(self.fabric.due(self.now_ns));
        }
        outcomes
    }

    /// The one outcome of a frame.
    fn pass(&mut self, port: Port, frame: Vec<u8>) -> Outcome {
        let mut outcomes = self.send(port, frame);
        assert_eq!(outcomes.len(), 1, "{outcomes:?}");
        let outcome = outcomes.remove(0);
        assert_eq!(outcome.tag, 7);
        if let End::Out(_) = outcome.end {
            sound(&outcome.frame);
        }
        outcome
    }

    /// Where a frame ends, of which there is one.
    fn end(&mut self, port: Port, frame: Vec<u8>) -> End {
        self.pass(port, frame).end
    }

    fn lost(&self, loss: Loss) -> u64 {
        self.fabric.report().lost.get(loss.slug()).copied().unwrap_or_default()
    }
}

/// The first headers of a frame from a host to the gateway.
fn to_gateway(from: IpAddr, to: IpAddr, hops: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
    let gateway = if from.is_ipv4() { ip("10.240.0.1") } else { ip("fd00:240::") };
    ip_headers(mac_of(from).0, mac_of(gateway).0, (from, to), hops)
}

fn ip_headers(
    from: [u8; 6],
    to: [u8; 6],
    ends: (IpAddr, IpAddr),
    hops: u8,
) -> PacketBuilderStep<etherparse::IpHeaders> {
    let builder = PacketBuilder::ethernet2(from, to);
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header =
                etherparse::Ipv4Header::new(0, hops, etherparse::IpNumber(0), from.octets(), to.octets());
            builder.ip(etherparse::IpHeaders::Ipv4(header.expect("a short packet"), Default::default()))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = etherparse::Ipv6Header {
                hop_limit: hops,
                source: from.octets(),
                destination: to.octets(),
                ..Default::default()
            };
            builder.ip(etherparse::IpHeaders::Ipv6(header, Default::default()))
        }
        _ => panic!("two families"),
    }
}

fn udp(from: &str, to: &str) -> Vec<u8> {
    let (from, to) = (end(from), end(to));
    let builder = to_gateway(from.ip(), to.ip(), 64).udp(from.port(), to.port());
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").expect("a short packet");
    frame
}

/// A TCP segment with these of the flags S, A, F and R.
fn tcp(from: &str, to: &str, flags: &str) -> Vec<u8> {
    let (from, to) = (end(from), end(to));
    let mut header = etherparse::TcpHeader::new(from.port(), to.port(), 1000, 65_535);
    (header.syn, header.ack) = (flags.contains('S'), flags.contains('A'));
    (header.fin, header.rst) = (flags.contains('F'), flags.contains('R'));
    let builder = to_gateway(from.ip(), to.ip(), 64).tcp_header(header);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"odd").expect("a short packet");
    frame
}

/// An echo request; its reply if `request` is not.
fn ping(from: &str, to: &str, request: bool) -> Vec<u8> {
    let (from, to) = (ip(from), ip(to));
    let echo = etherparse::IcmpEchoHeader { id: 77, seq: 1 };
    let builder = to_gateway(from, to, 64);
    let mut frame = Vec::new();
    let written = if from.is_ipv4() {
        use etherparse::Icmpv4Type::{EchoReply, EchoRequest};
        builder.icmpv4(if request { EchoRequest(echo) } else { EchoReply(echo) }).write(&mut frame, b"ping")
    } else {
        use etherparse::Icmpv6Type::{EchoReply, EchoRequest};
        builder.icmpv6(if request { EchoRequest(echo) } else { EchoReply(echo) }).write(&mut frame, b"ping")
    };
    written.expect("a short packet");
    frame
}

/// "Port unreachable", about so many bytes of the packet in a frame.
fn unreachable(from: &str, to: &str, about: &[u8], bytes: usize) -> Vec<u8> {
    let (from, to) = (ip(from), ip(to));
    let about = &about[ETHERNET..];
    let quoted = &about[..about.len().min(bytes)];
    let builder = to_gateway(from, to, 64);
    let mut frame = Vec::new();
    let written = if from.is_ipv4() {
        builder.icmpv4_raw(3, 3, [0; 4]).write(&mut frame, quoted)
    } else {
        builder.icmpv6_raw(1, 4, [0; 4]).write(&mut frame, quoted)
    };
    written.expect("a short packet");
    frame
}

/// Gives a changed IPv4 header its checksum.
fn recount(frame: &mut [u8]) {
    let mut header = etherparse::Ipv4Header::from_slice(&frame[ETHERNET..]).expect("a header").0;
    header.header_checksum = header.calc_header_checksum();
    let bytes = header.to_bytes();
    frame[ETHERNET..ETHERNET + bytes.len()].copy_from_slice(&bytes);
}

/// Both ends of a packet; without ports they are 0.
fn ends(frame: &[u8]) -> (String, String) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a sound packet");
    let ports = match &packet.transport {
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        _ => (0, 0),
    };
    let (source, target) = addresses(&packet);
    (SocketAddr::new(source, ports.0).to_string(), SocketAddr::new(target, ports.1).to_string())
}

/// Both ends of the packet that an ICMP error quotes, whose first eight bytes after the IP header are ports.
fn quoted_ends(frame: &[u8]) -> (String, String) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a sound packet");
    let quoted = match packet.transport {
        Some(TransportSlice::Icmpv4(error)) => error.payload(),
        Some(TransportSlice::Icmpv6(error)) => error.payload(),
        other => panic!("no ICMP: {other:?}"),
    };
    let packet = etherparse::LaxSlicedPacket::from_ip(quoted).expect("the header is whole");
    let (source, target, rest) = match packet.net.expect("an IP header") {
        etherparse::LaxNetSlice::Ipv4(it) => {
            let header = it.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum, "the quoted header's checksum");
            (it.header().source_addr().into(), it.header().destination_addr().into(), it.payload().payload)
        }
        etherparse::LaxNetSlice::Ipv6(it) => {
            (it.header().source_addr().into(), it.header().destination_addr().into(), it.payload().payload)
        }
        other => panic!("no IP: {other:?}"),
    };
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    (SocketAddr::new(source, port(0)).to_string(), SocketAddr::new(target, port(2)).to_string())
}

fn addresses(packet: &SlicedPacket<'_>) -> (IpAddr, IpAddr) {
    match packet.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(it) => (it.header().source_addr().into(), it.header().destination_addr().into()),
        NetSlice::Ipv6(it) => (it.header().source_addr().into(), it.header().destination_addr().into()),
        NetSlice::Arp(_) => panic!("no IP packet"),
    }
}

/// Asserts that every checksum of a frame is right, as etherparse sees it.
fn sound(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a sound packet");
    let Some(net) = &packet.net else { return };
    let (v4, v6) = match net {
        NetSlice::Ipv4(it) => {
            let header = it.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum, "the IP header's checksum");
            (Some(header), None)
        }
        NetSlice::Ipv6(it) => (None, Some(it.header().to_header())),
        NetSlice::Arp(_) => return,
    };
    match &packet.transport {
        Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
            let expected = match (v4, v6) {
                (Some(ip), _) => udp.to_header().calc_checksum_ipv4(&ip, udp.payload()),
                (_, Some(ip)) => udp.to_header().calc_checksum_ipv6(&ip, udp.payload()),
                _ => panic!("no IP header"),
            };
            assert_eq!(udp.checksum(), expected.expect("a short packet"), "UDP's checksum");
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let expected = match (v4, v6) {
                (Some(ip), _) => tcp.calc_checksum_ipv4(ip.source, ip.destination),
                (_, Some(ip)) => tcp.calc_checksum_ipv6(ip.source, ip.destination),
                _ => panic!("no IP header"),
            };
            assert_eq!(tcp.checksum(), expected.expect("a short packet"), "TCP's checksum");
        }
        Some(TransportSlice::Icmpv4(it)) => assert!(is_right_v4(it), "ICMP's checksum"),
        Some(TransportSlice::Icmpv6(it)) => {
            let header = v6.expect("ICMPv6 is in IPv6");
            assert!(is_right_v6(it, header.source, header.destination), "ICMPv6's checksum");
        }
        _ => {}
    }
}

fn is_right_v4(it: &Icmpv4Slice<'_>) -> bool {
    it.icmp_type().calc_checksum(it.payload()) == it.checksum()
}

fn is_right_v6(it: &Icmpv6Slice<'_>, source: [u8; 16], target: [u8; 16]) -> bool {
    it.icmp_type().calc_checksum(source, target, it.payload()).is_ok_and(|sum| sum == it.checksum())
}

#[test]
fn nodes_reach_each_other_by_hardware_address_and_nothing_changes() {
    let mut bench = Bench::with(|_| {});
    for (from, to) in [("10.240.0.4", "10.240.0.5"), ("10.240.0.4", "10.244.1.5")] {
        let mut frame = udp(&format!("{from}:1"), &format!("{to}:2"));
        frame[..6].copy_from_slice(&mac_of(ip("10.240.0.5")).0);
        let passed = bench.pass(N1, frame.clone());
        assert_eq!((passed.end, passed.frame), (End::Out(N2), frame));
    }
}

#[test]
fn the_gateway_takes_a_hop_and_addresses_the_next_neighbour() {
    let mut bench = Bench::with(|_| {});
    for (from, to, port, gateway) in [
        ("10.240.0.4", "203.0.113.7", WORLD, "10.240.0.1"),
        ("10.240.0.4", "10.240.0.5", N2, "10.240.0.1"),
        ("fd00:240::4", "2001:db8::7", Port::External(2), "10.240.0.1"),
    ] {
        let (from, to) = (SocketAddr::new(ip(from), 1), SocketAddr::new(ip(to), 2));
        let passed = bench.pass(N1, udp(&from.to_string(), &to.to_string()));
        assert_eq!(passed.end, End::Out(port));
        let packet = Packet::read(&passed.frame).expect("a sound packet");
        assert_eq!(packet.hops, 63);
        assert_eq!(passed.frame[..6], mac_of(to.ip()).0);
        assert_eq!(passed.frame[6..12], mac_of(ip(gateway)).0);
    }
}

#[test]
fn a_host_outside_reaches_nodes_and_any_pod_and_a_pod_answers_from_its_own_address() {
    let mut bench = Bench::with(|_| {});
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:1", "10.240.0.5:2")), End::Out(N2));
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:1", "10.244.1.5:2")), End::Out(N2));
    assert_eq!(bench.end(N2, udp("10.244.1.5:2", "203.0.113.7:1")), End::Out(WORLD));
    assert_eq!(bench.end(WORLD, udp("203.0.113.7:1", "198.51.100.9:2")), End::Out(OTHER));
}

#[test]
fn nobody_sends_from_an_address_that_is_not_his() {
    let mut bench = Bench::with(|_| {});
    for (port, from) in [
        (N1, "10.240.0.5:1"),
        (N1, "10.244.1.5:1"),
        (N1, "203.0.113.7:1"),
        (WORLD, "10.240.0.4:1"),
        (OTHER, "203.0.113.7:1"),
    ] {
        assert_eq!(bench.end(port, udp(from, "10.240.0.5:2")), End::Lost(Loss::Spoofed), "{from}");
    }
    assert_eq!(bench.end(N1, udp("[fd00:240::5]:1", "[2001:db8::7]:2")), End::Lost(Loss::Spoofed));
    assert_eq!(bench.lost(Loss::Spoofed), 6);
}

#[test]
fn with_direct_return_a_node_answers_from_what_was_dialled_at_another() {
    let mut bench = Bench::with(|cluster| {
        cluster.settings.services.direct_return = true;
        let external_addresses = vec![ip("198.51.100.80")];
        cluster.services = vec![Service { external_addresses, ..Service::default() }];
    });
    for from in ["10.240.0.5:30080", "[fd00:240::5]:30080", "198.51.100.80:80"] {
        let to = if from.starts_with('[') { "[2001:db8::7]:2" } else { "203.0.113.7:2" };
        assert!(matches!(bench.end(N1, udp(from, to)), End::Out(_)), "{from}");
        assert_eq!(bench.end(N1, udp(from, to)), bench.end(N2, udp(from, to)), "{from}");
    }
    for from in ["10.244.1.5:1", "203.0.113.7:1"] {
        assert_eq!(bench.end(N1, udp(from, "10.240.0.5:2")), End::Lost(Loss::Spoofed), "{from}");
    }
    assert_eq!(bench.end(WORLD, udp("10.240.0.4:1", "10.240.0.5:2")), End::Lost(Loss::Spoofed));
}

#[test]
fn what_leads_nowhere_ends_here() {
    let mut bench = Bench::with(|_| {});
    assert_eq!(bench.end(N1, udp("10.240.0.4:1", "192.0.2.1:2")), End::Lost(Loss::NoRoute));
    let mut frame = udp("10.240.0.4:1", "203.0.113.7:2");
    frame[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    assert_eq!(bench.end(N1, frame), End::Lost(Loss::NoNeighbour));
    let mut frame = udp("10.240.0.4:1", "203.0.113.7:2");
    frame[..6].copy_from_slice(&[0xff; 6]);
    assert_eq!(bench.end(N1, frame), End::Lost(Loss::EndsHere));
    let mut frame = udp("10.240.0.4:1", "203.0.113.7:2");
    frame[24] ^= 1;
    assert_eq!(bench.end(N1, frame), End::Lost(Loss::Unreadable), "the header's checksum is wrong");
    let mut frame = udp("10.240.0.4:1", "203.0.113.7:2");
    frame.truncate(40);
    assert_eq!(bench.end(N1, frame), End::Lost(Loss::Unreadable));
    assert_eq!(bench.end(N1, vec![0; 9]), End::Lost(Loss::Unreadable));
}

#[test]
fn the_gateway_tells_the_sender_that_time_ran_out_and_quotes_what_was_sent() {
    let mut bench = Bench::with(|_| {});
    for (from, to, gateway) in
        [("10.240.0.4", "203.0.113.7", "10.240.0.1:0"), ("fd00:240::4", "2001:db8::7", "[fd00:240::]:0")]
    {
        let mut sent = Vec::new();
        to_gateway(ip(from), ip(to), 1).udp(1, 2).write(&mut sent, b"hello").expect("a short packet");
        let outcomes = bench.send(N1, sent.clone());
        let [told, lost] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert_eq!((lost.end, &lost.frame), (End::Lost(Loss::TtlExceeded), &sent));
        assert_eq!((told.end, &told.notes[..]), (End::Out(N1), &[Note::Made][..]));
        sound(&told.frame);
        assert_eq!(ends(&told.frame).0, gateway);
        assert_eq!(quoted_ends(&told.frame), ends(&sent));
        assert_eq!(told.frame[..6], sent[6..12]);
    }
    assert_eq!(bench.fabric.report().made, 2);
}

#[test]
fn the_gateway_tells_the_sender_how_long_a_packet_may_be() {
    let mut bench = Bench::with(|cluster| cluster.settings.mtu = 600);
    let mut sent = Vec::new();
    let builder = to_gateway(ip("fd00:240::4"), ip("2001:db8::7"), 64).udp(1, 2);
    builder.write(&mut sent, &[0; 700]).expect("a short packet");
    let outcomes = bench.send(N1, sent);
    assert_eq!(outcomes.last().map(|lost| lost.end), Some(End::Lost(Loss::TooBig)));
    let packet = SlicedPacket::from_ethernet(&outcomes[0].frame).expect("a sound packet");
    let Some(TransportSlice::Icmpv6(told)) = packet.transport else { panic!("no ICMPv6") };
    assert_eq!(told.icmp_type(), etherparse::Icmpv6Type::PacketTooBig { mtu: 600 });
    sound(&outcomes[0].frame);
}

#[test]
fn an_error_about_an_error_is_never_sent() {
    let mut bench = Bench::with(|_| {});
    let mut frame = Vec::new();
    let about = udp("203.0.113.7:2", "10.240.0.4:1");
    let builder = to_gateway(ip("10.240.0.4"), ip("203.0.113.7"), 1).icmpv4_raw(3, 3, [0; 4]);
    builder.write(&mut frame, &about[ETHERNET..]).expect("a short packet");
    assert_eq!(bench.end(N1, frame), End::Lost(Loss::TtlExceeded));
}

#[test]
fn questions_for_neighbours_and_the_gateway_are_answered_and_for_oneself_are_not() {
    let mut bench = Bench::with(|_| {});
    let mut ask = |target: &str| {
        let IpAddr::V4(target) = ip(target) else { panic!("ARP asks for IPv4") };
        let question = etherparse::ArpEthIpv4Packet {
            operation: etherparse::ArpOperation::REQUEST,
            sender_mac: mac_of(ip("10.240.0.4")).0,
            sender_ipv4: [10, 240, 0, 4],
            target_mac: [0; 6],
            target_ipv4: target.octets(),
        };
        let builder = PacketBuilder::ethernet2(question.sender_mac, [0xff; 6]).arp(question.into());
        let mut frame = Vec::new();
        builder.write(&mut frame).expect("an ARP packet");
        let passed = bench.pass(N1, frame);
        (passed.end, passed.frame[22..28].to_vec())
    };
    assert_eq!(ask("10.240.0.5"), (End::Out(N1), mac_of(ip("10.240.0.5")).0.to_vec()));
    assert_eq!(ask("10.244.1.5"), (End::Out(N1), mac_of(ip("10.240.0.5")).0.to_vec()));
    assert_eq!(ask("10.240.0.1"), (End::Out(N1), mac_of(ip("10.240.0.1")).0.to_vec()));
    assert_eq!(ask("10.240.0.4").0, End::Lost(Loss::EndsHere));
    assert_eq!(ask("10.240.0.99").0, End::Lost(Loss::EndsHere));
}

#[test]
fn a_neighbour_solicitation_is_answered_with_the_neighbours_hardware_address() {
    let mut bench = Bench::with(|_| {});
    let mut ask = |asker: &str, target: &str| {
        let (IpAddr::V6(from), IpAddr::V6(target)) = (ip(asker), ip(target)) else { panic!("IPv6 only") };
        let many = [0x33, 0x33, 0xff, 0, 0, 5];
        let builder = PacketBuilder::ethernet2(mac_of(ip("10.240.0.4")).0, many)
            .ipv6(from.octets(), ip6("ff02::1:ff00:5"), 255)
            .icmpv6(etherparse::Icmpv6Type::NeighborSolicitation);
        let mut frame = Vec::new();
        builder.write(&mut frame, &target.octets()).expect("a short packet");
        bench.pass(N1, frame)
    };
    let told = ask("fe80::1", "fd00:240::5");
    assert_eq!(told.end, End::Out(N1));
    assert_eq!(ends(&told.frame), ("[fd00:240::5]:0".to_owned(), "[fe80::1]:0".to_owned()));
    assert_eq!(told.frame[told.frame.len() - 6..], mac_of(ip("10.240.0.5")).0);
    assert_eq!(ask("::", "fd00:240::5").end, End::Lost(Loss::EndsHere), "silence says that it is free");
}

fn ip6(text: &str) -> [u8; 16] {
    let IpAddr::V6(address) = ip(text) else { panic!("IPv6 only") };
    address.octets()
}

#[test]
fn frames_under_way_follow_their_host_to_its_new_place_or_are_lost_with_it() {
    let mut cluster = cluster(3);
    cluster.settings.fabric.links = vec![quality("node:n2", |link| link.delay_ns = SECOND)];
    let mut bench = Bench::new(&cluster);
    let frame = udp("10.240.0.4:1", "10.240.0.5:2");
    bench.fabric.arrive(N1, frame.clone(), 1, 0);
    assert_eq!(bench.fabric.due(SECOND / 2), None);
    cluster.nodes.reverse();
    bench.fabric.apply(&cluster).expect("the same cluster in another order");
    assert_eq!(bench.fabric.due(SECOND).map(|outcome| outcome.end), Some(End::Out(Port::Node(1))));
    bench.fabric.arrive(Port::Node(2), frame, 1, SECOND);
    assert_eq!(bench.fabric.due(SECOND), None);
    cluster.nodes.remove(1);
    cluster.pods.retain(|pod| pod.node != "n2");
    cluster.settings.fabric.links.clear();
    bench.fabric.apply(&cluster).expect("a smaller cluster");
    assert_eq!(bench.fabric.due(2 * SECOND).map(|one| one.end), Some(End::Lost(Loss::NoNeighbour)));
}

fn quality(link: &str, change: impl FnOnce(&mut LinkQuality)) -> LinkQuality {
    let mut quality = LinkQuality { link: link.to_owned(), ..LinkQuality::default() };
    change(&mut quality);
    quality
}
