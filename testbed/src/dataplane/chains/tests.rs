//! Frames are made and read with etherparse; the network is two nodes in memory.

use std::net::Ipv4Addr;
use std::time::Duration;

use etherparse::{Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use userspace::model::{self, Cluster};

use super::conntrack::{Conntrack, State};
use super::frame::{Address, ETHERNET, Packet, Tuple};
use super::ruleset::{RejectWith, Rule, TableName};
use super::walk::{Dice, Hook, Interface, Program, Seen, Walked, World};
use super::{Family, Link, Network, Node, Refused, Ruleset, Sent, Stop};

mod associations;
mod connections;
mod rules;
mod told;

const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: unit}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 10.240.0.4}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.244.2.0/24}
status: {addresses: [{type: InternalIP, address: 10.240.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.1.5, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: default, labels: {app: api}}
spec:
  nodeName: n2
  containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]
status: {phase: Running, podIP: 10.244.2.7, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: default, labels: {app: db}}
spec: {nodeName: n2, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.2.8, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: default}
spec: {clusterIP: 10.96.0.10, selector: {app: api}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: default}
spec: {clusterIP: 10.96.0.11, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-takes-api, namespace: default}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 5432}]}]
"#;

const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const API: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 7);
const DB: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 8);
const N1: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
const N2: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 5);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const NOW: Duration = Duration::from_secs(1000);

fn cluster() -> Cluster {
    model::load_text("unit.yaml", CLUSTER).unwrap_or_else(|error| panic!("{error}"))
}

fn network() -> Network {
    Network::new(&cluster(), 1).unwrap_or_else(|error| panic!("{error}"))
}

fn builder(from: Ipv4Addr, to: Ipv4Addr, ttl: u8) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from.octets(), to.octets(), ttl)
}

/// A TCP segment with these flags: any of S, A, F, R.
fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: &str) -> Vec<u8> {
    let mut step = builder(from.0, to.0, 64).tcp(from.1, to.1, 7, 1000);
    for flag in flags.chars() {
        step = match flag {
            'S' => step.syn(),
            'A' => step.ack(1),
            'F' => step.fin(),
            _ => step.rst(),
        };
    }
    let mut frame = Vec::new();
    step.write(&mut frame, b"hello").expect("a vector takes all");
    frame
}

fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    builder(from.0, to.0, 64).udp(from.1, to.1).write(&mut frame, b"ping").expect("a vector takes all");
    frame
}

/// The ends of a TCP or UDP packet, and that its checksums are right.
fn ends(frame: &[u8]) -> ((Ipv4Addr, u16), (Ipv4Addr, u16)) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a whole frame");
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4 in {frame:?}") };
    let ip = ip.header();
    assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
    let (source, target) = (ip.source_addr(), ip.destination_addr());
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let sum = tcp.calc_checksum_ipv4(ip.source(), ip.destination());
            assert_eq!(sum.ok(), Some(tcp.checksum()), "the segment's checksum");
            ((source, tcp.source_port()), (target, tcp.destination_port()))
        }
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv4_raw(ip.source(), ip.destination(), udp.payload());
            assert!(header.checksum == 0 || sum.ok() == Some(header.checksum), "the datagram's checksum");
            ((source, udp.source_port()), (target, udp.destination_port()))
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
}

/// The only frame that arrived, and where.
#[track_caller]
fn only(sent: Sent) -> (Stop, Vec<u8>) {
    let [arrived] = &sent.arrived[..] else { panic!("one frame was to arrive: {sent:?}") };
    arrived.clone()
}

/// The frame goes from a pod to where it goes.
#[track_caller]
fn from_pod(network: &mut Network, pod: Ipv4Addr, frame: Vec<u8>) -> Sent {
    let node = if pod == WEB { N1 } else { N2 };
    network.send(node, Link::Pod(pod.into()), frame, NOW)
}

#[track_caller]
fn refusal(sent: &Sent) -> String {
    sent.refused.as_ref().map(|(node, why)| format!("{node}: {why}")).unwrap_or_default()
}

#[test]
fn a_pod_reaches_a_pod_on_another_node_with_its_own_address() {
    let mut network = network();
    let (stop, frame) = only(from_pod(&mut network, WEB, tcp((WEB, 40_000), (API, 8080), "S")));
    assert_eq!(stop, Stop::Pod(API.into()));
    assert_eq!(ends(&frame), ((WEB, 40_000), (API, 8080)));
    assert_eq!(frame[14 + 8], 62, "two nodes took a hop each");
    assert_eq!(&frame[..6], [0x0a, 0x58, 10, 244, 2, 7], "the pod's hardware address");
}

#[test]
fn between_nodes_a_packet_travels_in_vxlan() {
    let mut node = Node::new(&cluster(), "n1", 1).unwrap_or_else(|error| panic!("{error}"));
    let pushed = node.push(Link::Pod(WEB.into()), &udp((WEB, 5000), (API, 53)), NOW);
    let [(Link::Uplink, frame)] = &pushed.frames[..] else { panic!("one frame on the uplink: {pushed:?}") };
    let ((source, source_port), target) = ends(frame);
    assert_eq!((source, target), (N1, (N2, 8472)));
    assert!(source_port >= 49_152, "a port that spreads flows");
    assert_eq!(&frame[42..50], [8, 0, 0, 0, 0, 0, 1, 0], "VXLAN, network 1");
    assert_eq!(ends(&frame[50..]), ((WEB, 5000), (API, 53)));
}

#[test]
fn a_service_is_translated_there_and_back() {
    let mut network = network();
    let (stop, frame) = only(from_pod(&mut network, WEB, tcp((WEB, 40_000), (SERVICE, 80), "S")));
    assert_eq!((stop, ends(&frame)), (Stop::Pod(API.into()), ((WEB, 40_000), (API, 8080))));
    let (stop, frame) = only(from_pod(&mut network, API, tcp((API, 8080), (WEB, 40_000), "SA")));
    assert_eq!((stop, ends(&frame)), (Stop::Pod(WEB.into()), ((SERVICE, 80), (WEB, 40_000))));
    let (stop, frame) = only(from_pod(&mut network, WEB, tcp((WEB, 40_000), (SERVICE, 80), "A")));
    assert_eq!((stop, ends(&frame)), (Stop::Pod(API.into()), ((WEB, 40_000), (API, 8080))));
}

#[test]
fn a_pod_that_reaches_itself_through_its_service_sees_its_nodes_address() {
    let mut network = network();
    let (stop, frame) = only(from_pod(&mut network, API, tcp((API, 40_000), (SERVICE, 80), "S")));
    assert_eq!((stop, ends(&frame)), (Stop::Pod(API.into()), ((N2, 40_000), (API, 8080))));
    let (stop, frame) = only(from_pod(&mut network, API, tcp((API, 8080), (N2, 40_000), "SA")));
    assert_eq!((stop, ends(&frame)), (Stop::Pod(API.into()), ((SERVICE, 80), (API, 40_000))));
}

#[test]
fn a_service_without_endpoints_is_rejected_with_an_icmp_error() {
    let mut network = network();
    let sent = from_pod(&mut network, WEB, tcp((WEB, 40_000), (NOBODY, 80), "S"));
    assert!(refusal(&sent).starts_with("n1: rejected by filter KUBE-SERVICES"), "{}", refusal(&sent));
    let (stop, frame) = only(sent);
    assert_eq!(stop, Stop::Pod(WEB.into()));
    let sliced = SlicedPacket::from_ethernet(&frame).expect("a whole frame");
    let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("no ICMP") };
    assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 3));
    assert_eq!(&icmp.payload()[16..20], &NOBODY.octets(), "it quotes the address that was dialled");
}

#[test]
fn what_leaves_the_cluster_has_the_nodes_address_and_its_reply_returns_to_the_pod() {
    let mut network = network();
    for frame in [tcp((WEB, 40_000), (WORLD, 80), "S"), udp((WEB, 40_000), (WORLD, 53))] {
        let (stop, out) = only(from_pod(&mut network, WEB, frame));
        let (source, target) = ends(&out);
        assert_eq!((stop, source.0, target.0), (Stop::Outside, N1, WORLD));
        let answer = if target.1 == 80 { tcp(target, source, "SA") } else { udp(target, source) };
        let (stop, frame) = only(network.send(N1, Link::Uplink, answer, NOW));
        assert_eq!((stop, ends(&frame)), (Stop::Pod(WEB.into()), (target, (WEB, 40_000))));
    }
}

#[test]
fn two_pods_with_the_same_port_to_the_same_host_outside_are_told_apart() {
    let mut network = network();
    let mut sources = Vec::new();
    for pod in [API, DB] {
        let (_, frame) = only(from_pod(&mut network, pod, udp((pod, 40_000), (WORLD, 53))));
        sources.push((pod, ends(&frame).0));
    }
    assert_ne!(sources[0].1, sources[1].1);
    for (pod, source) in sources {
        let (stop, frame) = only(network.send(N2, Link::Uplink, udp((WORLD, 53), source), NOW));
        assert_eq!((stop, ends(&frame).1), (Stop::Pod(pod.into()), (pod, 40_000)));
    }
}

#[test]
fn a_source_keeps_the_port_that_it_was_given() {
    let mut network = network();
    let mut given = |pod, port| {
        let (_, frame) = only(from_pod(&mut network, pod, udp((pod, 40_000), (WORLD, port))));
        ends(&frame).0.1
    };
    assert_eq!(given(API, 53), 40_000);
    let other = given(DB, 53);
    assert_ne!(other, 40_000, "that is taken");
    assert_eq!(given(DB, 54), other, "that would be free");
    assert_eq!(given(API, 54), 40_000);
}

#[test]
fn what_arrives_for_the_node_itself_goes_to_its_stack_and_leaves_no_connection() {
    let mut network = network();
    let (stop, _) = only(network.send(N1, Link::Uplink, tcp((WORLD, 5000), (N1, 22), "S"), NOW));
    assert_eq!(stop, Stop::Host(N1.into()));
    assert!(network.node(N1).is_some_and(|node| node.connections().is_empty()));
}

#[test]
fn a_policy_refuses_what_it_does_not_allow_and_names_the_pod() {
    let mut network = network();
    let allowed = from_pod(&mut network, API, tcp((API, 40_000), (DB, 5432), "S"));
    assert_eq!(only(allowed).0, Stop::Pod(DB.into()));
    let other_port = from_pod(&mut network, API, tcp((API, 40_000), (DB, 5433), "S"));
    let other_pod = from_pod(&mut network, WEB, tcp((WEB, 40_000), (DB, 5432), "S"));
    for sent in [other_port, other_pod] {
        assert!(sent.arrived.is_empty());
        assert!(refusal(&sent).contains("default/db is isolated"), "{}", refusal(&sent));
    }
}

/// A policy of tier Admin that denies what comes to `db` from `api`.
const DENY: &str = r#"
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: closed}
spec:
  tier: Admin
  priority: 1
  subject: {pods: {podSelector: {matchLabels: {app: db}}}}
  ingress: [{action: Deny, from: [{pods: {podSelector: {matchLabels: {app: api}}}}]}]
"#;

fn with(more: &str) -> Network {
    let text = format!("{CLUSTER}{more}");
    let cluster = model::load_text("unit.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
    Network::new(&cluster, 1).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn an_admin_refuses_what_a_network_policy_allows_and_the_rule_is_named() {
    let sent = from_pod(&mut with(DENY), API, tcp((API, 40_000), (DB, 5432), "S"));
    assert!(sent.arrived.is_empty());
    assert!(refusal(&sent).contains("ClusterNetworkPolicy closed rule 0"), "{}", refusal(&sent));
    let passes = DENY.replace("Deny", "Pass");
    let sent = from_pod(&mut with(&passes), API, tcp((API, 40_000), (DB, 5432), "S"));
    assert_eq!(only(sent).0, Stop::Pod(DB.into()));
}

#[test]
fn what_is_denied_to_an_audited_pod_is_logged_and_passes() {
    let audited = "---
apiVersion: v1
kind: Namespace
metadata: {name: default, annotations: {podpath.dev/audit: \"true\"}}
";
    for more in [audited.to_owned(), format!("{audited}{DENY}")] {
        let mut network = with(&more);
        for port in [5432, 5433] {
            let sent = from_pod(&mut network, API, tcp((API, 40_000), (DB, port), "S"));
            assert_eq!(only(sent).0, Stop::Pod(DB.into()), "port {port}");
        }
    }
}

#[test]
fn a_revoked_connection_goes_on_or_ends_as_the_testbed_says() {
    for (established, arrives) in [("keep", true), ("cut", false)] {
        let text = CLUSTER.replace(
            "metadata: {name: unit}",
            &format!("metadata: {{name: unit}}\nspec: {{policies: {{established: {established}}}}}"),
        );
        let load = |text: &str| model::load_text("unit.yaml", text).unwrap_or_else(|error| panic!("{error}"));
        let (before, after) = (load(&text), load(&format!("{text}{DENY}")));
        let mut node = Node::new(&before, "n2", 1).unwrap_or_else(|error| panic!("{error}"));
        let arrived = |node: &mut Node, from: Ipv4Addr, frame: Vec<u8>| {
            !node.push(Link::Pod(from.into()), &frame, NOW).frames.is_empty()
        };
        assert!(arrived(&mut node, API, tcp((API, 40_000), (DB, 5432), "S")));
        assert!(arrived(&mut node, DB, tcp((DB, 5432), (API, 40_000), "SA")));
        node.apply(&after, "n2").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(arrived(&mut node, API, tcp((API, 40_000), (DB, 5432), "A")), arrives, "{established}");
        assert!(arrived(&mut node, DB, tcp((DB, 5432), (API, 40_000), "A")), "an answer");
    }
}

#[test]
fn an_isolated_pod_may_answer_whom_it_dialled() {
    let mut network = network();
    let (stop, _) = only(from_pod(&mut network, DB, udp((DB, 999), (WEB, 53))));
    assert_eq!(stop, Stop::Pod(WEB.into()));
    let (stop, _) = only(from_pod(&mut network, WEB, udp((WEB, 53), (DB, 999))));
    assert_eq!(stop, Stop::Pod(DB.into()));
}

#[test]
fn a_node_reaches_its_own_isolated_pod_but_not_another_nodes() {
    let mut network = network();
    let (stop, _) = only(network.send(N2, Link::Host, tcp((N2, 2000), (DB, 1), "S"), NOW));
    assert_eq!(stop, Stop::Pod(DB.into()));
    assert!(network.send(N1, Link::Host, tcp((N1, 2000), (DB, 1), "S"), NOW).arrived.is_empty());
}

#[test]
fn a_pod_cannot_send_under_anothers_address() {
    let sent = from_pod(&mut network(), WEB, udp((API, 1), (DB, 2)));
    assert!(refusal(&sent).contains("not an address of the pod"), "{}", refusal(&sent));
}

#[test]
fn an_address_that_nobody_has_is_refused() {
    let nobody = Ipv4Addr::new(10, 244, 9, 9);
    let sent = from_pod(&mut network(), WEB, udp((WEB, 1), (nobody, 2)));
    assert_eq!(sent.refused.map(|(_, why)| why), Some(Refused::Nowhere(nobody.into())));
}

#[test]
fn whoever_is_no_node_cannot_use_the_tunnel() {
    let mut node = Node::new(&cluster(), "n1", 1).unwrap_or_else(|error| panic!("{error}"));
    let pushed = node.push(Link::Pod(WEB.into()), &udp((WEB, 5000), (API, 53)), NOW);
    let mut frame = pushed.frames[0].1.clone();
    frame[26..30].copy_from_slice(&WORLD.octets());
    frame[24..26].fill(0);
    let sum = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).expect("a header").to_header();
    frame[24..26].copy_from_slice(&sum.calc_header_checksum().to_be_bytes());
    let sent = network().send(N2, Link::Uplink, frame, NOW);
    assert_eq!(sent.refused.map(|(_, why)| why), Some(Refused::TunnelSource(WORLD.into())));
}

#[test]
fn a_packet_whose_hops_are_used_up_comes_back_as_an_error() {
    let mut frame = Vec::new();
    builder(WEB, API, 1).udp(1, 2).write(&mut frame, b"").expect("a vector takes all");
    let sent = from_pod(&mut network(), WEB, frame);
    assert_eq!(sent.refused.clone().map(|(_, why)| why), Some(Refused::TimeExceeded));
    let (stop, frame) = only(sent);
    assert_eq!((stop, frame[34]), (Stop::Pod(WEB.into()), 11));
}

#[test]
fn an_error_about_a_translated_packet_reaches_the_client_as_if_about_what_it_sent() {
    let mut network = network();
    let (_, arrived) = only(from_pod(&mut network, WEB, tcp((WEB, 40_000), (SERVICE, 80), "S")));
    let mut error = Vec::new();
    let unreachable = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    builder(API, WEB, 64)
        .icmpv4(unreachable)
        .write(&mut error, &arrived[14..42])
        .expect("a vector takes all");
    let (stop, frame) = only(from_pod(&mut network, API, error));
    assert_eq!(stop, Stop::Pod(WEB.into()));
    let sliced = SlicedPacket::from_ethernet(&frame).expect("a whole frame");
    let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("no ICMP") };
    let quote = icmp.payload();
    assert_eq!(&quote[16..20], &SERVICE.octets());
    assert_eq!(&quote[20..24], [40_000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat());
    assert_eq!(&frame[26..30], &SERVICE.octets(), "it comes from the address that was dialled");
}

#[test]
fn ping_passes_and_is_masqueraded_by_its_identifier() {
    let mut network = network();
    let echo = |from, to, kind| {
        let mut frame = Vec::new();
        builder(from, to, 64).icmpv4(kind).write(&mut frame, b"abc").expect("a vector takes all");
        frame
    };
    let header = |id| etherparse::IcmpEchoHeader { id, seq: 1 };
    let (stop, out) =
        only(from_pod(&mut network, WEB, echo(WEB, WORLD, Icmpv4Type::EchoRequest(header(77)))));
    let id = u16::from_be_bytes([out[38], out[39]]);
    assert_eq!((stop, &out[26..30]), (Stop::Outside, &N1.octets()[..]));
    let (stop, back) =
        only(network.send(N1, Link::Uplink, echo(WORLD, N1, Icmpv4Type::EchoReply(header(id))), NOW));
    assert_eq!((stop, &back[38..40]), (Stop::Pod(WEB.into()), &77_u16.to_be_bytes()[..]));
}

#[test]
fn a_pod_that_asks_for_its_gateway_is_answered_but_not_about_itself() {
    let mut node = Node::new(&cluster(), "n1", 1).unwrap_or_else(|error| panic!("{error}"));
    let question = |asked: [u8; 4]| {
        let mut frame = [[0xff; 6], [0x0a, 0x58, 10, 244, 1, 5]].concat();
        frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0x0a, 0x58, 10, 244, 1, 5, 10, 244, 1, 5]);
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&asked);
        frame
    };
    let pushed = node.push(Link::Pod(WEB.into()), &question([169, 254, 1, 1]), NOW);
    let [(Link::Pod(to), answer)] = &pushed.frames[..] else { panic!("an answer: {pushed:?}") };
    assert_eq!(*to, WEB);
    assert_eq!(&answer[6..12], [0x0a, 0x58, 169, 254, 1, 1]);
    assert_eq!(&answer[20..22], [0, 2]);
    assert_eq!(&answer[28..32], [169, 254, 1, 1]);
    assert_eq!(
        node.push(Link::Pod(WEB.into()), &question(WEB.octets()), NOW).refused,
        Some(Refused::Question)
    );
}

#[test]
fn bytes_that_are_cut_off_anywhere_are_refused_and_never_panic() {
    let mut network = network();
    let frame = tcp((WEB, 40_000), (SERVICE, 80), "S");
    for length in 0..frame.len() {
        assert!(from_pod(&mut network, WEB, frame[..length].to_vec()).refused.is_some(), "{length} bytes");
    }
    for position in 14..frame.len() {
        let mut broken = frame.clone();
        broken[position] ^= 0x55;
        from_pod(&mut network, WEB, broken);
    }
}
