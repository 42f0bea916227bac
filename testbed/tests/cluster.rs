//! Clusters of every model between real namespaces, with real sockets: who reaches whom, and under which
//! address. What no packet may do, a witness in the world watches all the while.

mod clusters;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use clusters::sockets::{PATIENCE, ask, ask_by_udp, is_refused, ping, pour};
use clusters::{Families, PEER, Site, WORLD, WORLD_V6, capture, cluster};
use dataplane::wire::Mac;
use etherparse::PacketBuilder;
use testbed::dataplane::{Name, Up};
use testbed::netns::Netns;
use testbed::topology::UPLINK;
use userspace::model::{Cluster, Encapsulation, Model, Service};

/// Everybody asks everybody, in each family that the cluster has.
fn all_is_reached(site: &Site) {
    for v6 in site.families() {
        pods_are_reached(site, v6);
        services_are_reached(site, v6);
        nodes_reach_pods(site, v6);
        the_world_is_reached(site, v6);
        the_world_reaches_pods(site, v6);
    }
}

/// Pod to pod, on the same node and across, by TCP, UDP and ping, under their own addresses.
fn pods_are_reached(site: &Site, v6: bool) {
    let (web, source) = site.pod("web", v6);
    for other in ["near", "api"] {
        let (netns, address) = site.pod(other, v6);
        let target = SocketAddr::new(address, 8080);
        assert_eq!(ask((&web, source), (&netns, target), target), source, "web to {other} by TCP");
        assert_eq!(ask_by_udp((&web, source), (&netns, target), target), source, "web to {other} by UDP");
        ping(&web, address);
    }
}

/// The Service's one endpoint is on the other node.
fn services_are_reached(site: &Site, v6: bool) {
    let ((web, source), (api, address)) = (site.pod("web", v6), site.pod("api", v6));
    let (dialled, listening) = (SocketAddr::new(site.service(v6), 80), SocketAddr::new(address, 8080));
    assert_eq!(ask((&web, source), (&api, listening), dialled), source);
    assert_eq!(ask_by_udp((&web, source), (&api, listening), dialled), source);
}

/// Nodes reach their own pods, those of others, and Services.
fn nodes_reach_pods(site: &Site, v6: bool) {
    let (node, source) = site.node("n1", v6);
    for pod in ["web", "api"] {
        let (netns, address) = site.pod(pod, v6);
        let target = SocketAddr::new(address, 8080);
        assert_eq!(ask((&node, source), (&netns, target), target), source, "n1 to {pod}");
        ping(&node, address);
    }
    let (api, address) = site.pod("api", v6);
    let (dialled, listening) = (SocketAddr::new(site.service(v6), 80), SocketAddr::new(address, 8080));
    assert_eq!(ask((&node, source), (&api, listening), dialled), source);
    let (web, from) = site.pod("web", v6);
    let target = SocketAddr::new(source, 22);
    assert_eq!(ask((&web, from), (&node, target), target), from, "a pod reaches its node");
}

/// The world sees the node's address; what belongs to the virtual network of a flat model sees the pod's.
fn the_world_is_reached(site: &Site, v6: bool) {
    let ((web, own), (_, node)) = (site.pod("web", v6), site.node("n1", v6));
    let world: IpAddr = if v6 { WORLD_V6.into() } else { WORLD.into() };
    let target = SocketAddr::new(world, 80);
    assert_eq!(ask((&web, own), (&site.world(), target), target), node);
    assert_eq!(ask_by_udp((&web, own), (&site.world(), target), target), node);
    ping(&web, world);
    if site.is_flat() && !v6 {
        let target = SocketAddr::new(PEER.into(), 80);
        assert_eq!(ask((&web, own), (&site.world(), target), target), own);
        ping(&web, PEER.into());
    }
}

/// Who is dialled from outside answers under its own address.
fn the_world_reaches_pods(site: &Site, v6: bool) {
    let (api, address) = site.pod("api", v6);
    let world: IpAddr = if v6 { WORLD_V6.into() } else { WORLD.into() };
    let target = SocketAddr::new(address, 8080);
    assert_eq!(ask((&site.world(), world), (&api, target), target), world);
    assert_eq!(ask_by_udp((&site.world(), world), (&api, target), target), world);
}

/// Much data, in packets as long as the kernel likes: every checksum is right where they arrive.
fn checksums_are_right(site: &Site) {
    for v6 in site.families() {
        let ((web, own), (api, address)) = (site.pod("web", v6), site.pod("api", v6));
        let world: IpAddr = if v6 { WORLD_V6.into() } else { WORLD.into() };
        for (netns, address) in [(api, address), (site.world(), world)] {
            let heard = capture::at(&netns, "eth0");
            pour((&web, own), (&netns, SocketAddr::new(address, 8081)));
            let checked = heard.check();
            assert!(checked > 10, "{checked} packets with checksums came to {address}");
        }
    }
}

/// A Service that nobody stands behind, at the same ports as the other: pods and nodes are refused at once, by TCP and
/// UDP, over IPv4 and IPv6. (Kubernetes' end-to-end suite: "should be rejected when no endpoints exist".)
fn a_service_without_endpoints_refuses(dataplane: Name) {
    let mut cluster =
        cluster(&format!("nobody-{dataplane}"), Model::Overlay, Encapsulation::Vxlan, Families::Both);
    let nobody = ["10.96.0.20", "fd00:96::20"].map(|text| text.parse::<IpAddr>().expect("an address"));
    let mut ports = cluster.services[0].ports.clone();
    ports.iter_mut().for_each(|port| port.backends.clear());
    let name = "nobody".to_owned();
    let empty = Service { name, addresses: nobody.to_vec(), ports, ..cluster.services[0].clone() };
    cluster.services.push(empty);
    let site = Site::up(cluster, dataplane);
    for address in nobody {
        let dialled = SocketAddr::new(address, 80);
        let ((web, own), (node, nodes)) =
            (site.pod("web", address.is_ipv6()), site.node("n1", address.is_ipv6()));
        is_refused((&web, own), dialled);
        if dataplane == Name::Iptables || dataplane == Name::Nftables {
            // A node's own datagram does not leave: the socket is told so at once, in other words.
            let sent = node.run(|| UdpSocket::bind((nodes, 0))?.send_to(b"x", dialled));
            let error = sent.expect("it runs").expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        } else {
            is_refused((&node, nodes), dialled);
        }
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_service_without_endpoints_refuses_tcp_and_udp_at_once() {
    a_service_without_endpoints_refuses(Name::Ebpf);
}

#[test]
#[ignore = "needs root: make test"]
fn a_service_without_endpoints_refuses_tcp_and_udp_at_once_over_the_emulator() {
    a_service_without_endpoints_refuses(Name::Emulator);
}

#[test]
#[ignore = "needs root: make test"]
fn a_service_without_endpoints_refuses_tcp_and_udp_at_once_over_the_kernels_packet_filter() {
    a_service_without_endpoints_refuses(Name::Iptables);
    a_service_without_endpoints_refuses(Name::Nftables);
}

/// A datagram of a pod around a frame, as a tunnel of its own sends it: its checksum is there, and that of the datagram
/// inside is left to the link. Where the latter begins and stands, for the link.
fn packed((from, to): (SocketAddr, SocketAddr), mac: [u8; 6]) -> (Vec<u8>, u16, u16) {
    const INSIDE: ([u8; 4], [u8; 4]) = ([192, 168, 7, 1], [192, 168, 7, 2]);
    const HEADER: usize = 8;
    let told = |written: Result<(), etherparse::err::packet::BuildWriteError>| written.expect("it fits");
    let mut inside = vec![0x08, 0, 0, 0, 0, 0, 7, 0];
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(INSIDE.0, INSIDE.1, 64).udp(7, 7);
    told(builder.write(&mut inside, b"whatever is inside"));
    let mut frame = Vec::new();
    let around = PacketBuilder::ethernet2(mac, Mac::GATEWAY.0);
    let around = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => around.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => around.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of one family"),
    };
    told(around.udp(from.port(), to.port()).write(&mut frame, &inside));
    // The sum of the pseudo-header alone takes the place of the whole one (RFC 768).
    let transport = frame.len() - inside.len() + HEADER + 14 + 20;
    let length = (frame.len() - transport) as u32;
    let words = [INSIDE.0, INSIDE.1].concat();
    let words = words.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>() + 17 + length;
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[transport + 6..transport + 8].copy_from_slice(&(sum as u16).to_be_bytes());
    (frame, transport as u16, 6)
}

#[test]
#[ignore = "needs root: make test"]
fn a_pods_own_tunnel_reaches_a_service_with_its_checksums() {
    let name = "packed";
    let cluster = cluster(name, Model::Overlay, Encapsulation::Vxlan, Families::Both);
    let site = Site::up(cluster, Name::Ebpf);
    for v6 in [false, true] {
        let ((web, own), (api, address)) = (site.pod("web", v6), site.pod("api", v6));
        // The first packet of a flow, and one that finds it known.
        let heard = capture::at(&api, UPLINK);
        let (from, to) = (SocketAddr::new(own, 50_000), SocketAddr::new(site.service(v6), 80));
        for _ in 0..2 {
            let (frame, start, place) = packed((from, to), [2, 0, 0, 0, 0, 9]);
            capture::send_with_a_sum_left(&web, UPLINK, (&frame, start, place));
        }
        let (mut seen, begin) = (0, Instant::now());
        while seen < 2 {
            assert!(begin.elapsed() < PATIENCE, "{seen} of 2 datagrams came to {address}");
            seen += heard.check_datagrams(8080);
        }
    }
}

/// The kernel's tunnel is VXLAN: whoever asks for another is told so, and nothing is left of the attempt.
fn is_left_to_others(cluster: &Cluster, dataplane: Name) {
    let error = Up::new(cluster, dataplane).expect_err("it cannot be carried").to_string();
    assert!(error.contains("spec.encapsulation") && error.contains("choose `--dataplane ebpf`"), "{error}");
    let left = Netns::list(&format!("podpath-{}-", cluster.name)).expect("they can be listed");
    assert!(left.is_empty(), "{left:?}");
}

macro_rules! models {
    ($($name:ident: $model:expr, $encapsulation:expr, $families:expr;)+) => { $(
        mod $name {
            use super::*;

            fn up(dataplane: Name, which: &str) -> Site {
                let name = format!("{}-{which}", stringify!($name).replace('_', "-"));
                Site::up(cluster(&name, $model, $encapsulation, $families), dataplane)
            }

            #[test]
            #[ignore = "needs root: make test"]
            fn all_is_reached_under_the_right_addresses() {
                all_is_reached(&up(Name::Ebpf, "ebpf"));
            }

            #[test]
            #[ignore = "needs root: make test"]
            fn all_is_reached_under_the_right_addresses_over_the_emulator() {
                all_is_reached(&up(Name::Emulator, "emulator"));
            }

            #[test]
            #[ignore = "needs root: make test"]
            fn all_is_reached_under_the_right_addresses_over_the_kernels_packet_filter() {
                for dataplane in [Name::Iptables, Name::Nftables] {
                    if $encapsulation == Encapsulation::Geneve {
                        let name = format!("{}-{dataplane}", stringify!($name).replace('_', "-"));
                        is_left_to_others(&cluster(&name, $model, $encapsulation, $families), dataplane);
                    } else {
                        all_is_reached(&up(dataplane, &dataplane.to_string()));
                    }
                }
            }

            #[test]
            #[ignore = "needs root: make test"]
            fn pods_are_reached_over_plain_routing_and_over_a_cable() {
                let site = up(Name::Routed, "routed");
                for v6 in site.families() {
                    pods_are_reached(&site, v6);
                    the_world_reaches_pods(&site, v6);
                }
                drop(site);
                let site = up(Name::Wire, "wire");
                for v6 in site.families() {
                    let ((web, own), (near, address)) = (site.pod("web", v6), site.pod("near", v6));
                    pour((&web, own), (&near, SocketAddr::new(address, 8081)));
                }
            }

            #[test]
            #[ignore = "needs root: make test"]
            fn checksums_are_right_over_the_emulator() {
                checksums_are_right(&up(Name::Emulator, "sums"));
            }

            #[test]
            #[ignore = "needs root: make test"]
            fn checksums_are_right_with_offload() {
                checksums_are_right(&up(Name::Ebpf, "offload"));
            }

            #[test]
            #[ignore = "needs root: make test"]
            fn checksums_are_right_without_offload() {
                let site = up(Name::Ebpf, "plain");
                site.turn_offload_off();
                checksums_are_right(&site);
            }
        }
    )+ };
}

models! {
    overlay_vxlan: Model::Overlay, Encapsulation::Vxlan, Families::V4;
    overlay_geneve: Model::Overlay, Encapsulation::Geneve, Families::V4;
    flat: Model::Flat, Encapsulation::Vxlan, Families::V4;
    flat_dynamic: Model::FlatDynamic, Encapsulation::Vxlan, Families::V4;
    kubenet: Model::Kubenet, Encapsulation::Vxlan, Families::V4;
    dual_stack: Model::Overlay, Encapsulation::Vxlan, Families::Both;
    underlay_v6: Model::Overlay, Encapsulation::Vxlan, Families::V6First;
}
