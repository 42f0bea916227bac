//! Direct server return between real namespaces: a client outside dials one node, and the pod on another answers it
//! straight.

mod clusters;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use clusters::sockets::{ask, ask_by_udp, dial_from, listener, pour_by};
use clusters::{Families, Site, WORLD, WORLD_V6, capture, cluster};
use testbed::dataplane::Name;
use userspace::model::{Encapsulation, Model};

/// The node port of the Service `api`, whose pod is on the second node.
const NODE_PORT: u16 = 30_080;
/// Of the tunnel.
const GENEVE: [u8; 2] = 6081_u16.to_be_bytes();

/// A cluster whose Service is answered straight.
fn up(name: &str, families: Families, dataplane: Name) -> Site {
    let mut cluster = cluster(name, Model::Overlay, Encapsulation::Geneve, families);
    cluster.settings.tunnel_port = u16::from_be_bytes(GENEVE);
    cluster.settings.services.direct_return = true;
    for port in &mut cluster.services[0].ports {
        port.node_port = Some(NODE_PORT);
        for backend in &mut port.backends {
            backend.node = Some("n2".to_owned());
        }
    }
    Site::up(cluster, dataplane)
}

/// The host outside, in a family.
fn outside(v6: bool) -> IpAddr {
    if v6 { WORLD_V6.into() } else { WORLD.into() }
}

/// Whether a frame is one of the tunnel's.
fn is_tunnels(frame: &[u8]) -> bool {
    let transport = match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.get(23) == Some(&17) => 34,
        Some([0x86, 0xdd]) if frame.get(20) == Some(&17) => 54,
        _ => return false,
    };
    frame.get(transport + 2..transport + 4) == Some(&GENEVE)
}

/// The pod sees the client, and the node that was dialled sees nothing of the answers.
fn is_answered_straight(site: &Site) {
    for v6 in site.families() {
        let ((api, address), (n1, dialled)) = (site.pod("api", v6), site.node("n1", v6));
        let (world, client) = (site.world(), outside(v6));
        let (n2, _) = site.node("n2", v6);
        let (back, there) = (capture::at(&n1, "eth0"), capture::at(&n2, "eth0"));
        let (server, dialled) = (SocketAddr::new(address, 8080), SocketAddr::new(dialled, NODE_PORT));
        assert_eq!(ask((&world, client), (&api, server), dialled), client, "by TCP");
        assert_eq!(ask_by_udp((&world, client), (&api, server), dialled), client, "by UDP");
        assert!(
            there.frames().iter().any(|frame| is_tunnels(frame)),
            "what is asked comes through the tunnel"
        );
        let answers = back.frames().into_iter().filter(|frame| is_tunnels(frame)).count();
        assert_eq!(answers, 0, "answers came to the node that was dialled");
    }
}

/// Much data comes through the tunnel whole, in packets as long as the kernel likes.
fn much_is_taken(site: &Site) {
    for v6 in site.families() {
        let ((api, address), (_, dialled)) = (site.pod("api", v6), site.node("n1", v6));
        let (world, client) = (site.world(), outside(v6));
        let heard = capture::at(&api, "eth0");
        let server = SocketAddr::new(address, 8080);
        pour_by((&world, client), (&api, server), SocketAddr::new(dialled, NODE_PORT));
        let checked = heard.check();
        assert!(checked > 10, "{checked} packets with checksums came to {address}");
    }
}

/// One client, one port, two nodes, one pod: two connections, both of which go on.
fn two_nodes_are_dialled_from_one_port(site: &Site) {
    for v6 in site.families() {
        let ((api, address), (_, first)) = (site.pod("api", v6), site.node("n1", v6));
        let (_, second) = site.node("n2", v6);
        let (world, client) = (site.world(), SocketAddr::new(outside(v6), 41_000));
        let listener = listener((&api, SocketAddr::new(address, 8080)));
        let mut connections = [second, first].map(|node| {
            let dialled = SocketAddr::new(node, NODE_PORT);
            let asking = dial_from((&world, client), dialled);
            let asking = asking.unwrap_or_else(|error| panic!("{client} to {dialled}: {error}"));
            let (answering, seen) = listener.accept().expect("it is connected");
            (asking, answering, seen)
        });
        let [(.., one), (.., other)] = &connections;
        assert_eq!((one.ip(), other.ip()), (client.ip(), client.ip()));
        assert_eq!(one.port(), client.port());
        assert_ne!(other.port(), client.port(), "the pod would take it for the first");
        for (number, (asking, answering, _)) in connections.iter_mut().enumerate() {
            let word = [number as u8; 4];
            let mut heard = [0; 4];
            asking.write_all(&word).and_then(|()| answering.read_exact(&mut heard)).expect("it arrives");
            assert_eq!(heard, word);
            answering.write_all(&word).and_then(|()| asking.read_exact(&mut heard)).expect("it arrives");
            assert_eq!(heard, word);
        }
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_client_outside_is_answered_straight_by_the_pod_that_sees_it() {
    let site = up("direct", Families::Both, Name::Ebpf);
    is_answered_straight(&site);
    much_is_taken(&site);
    two_nodes_are_dialled_from_one_port(&site);
    site.turn_offload_off();
    is_answered_straight(&site);
    much_is_taken(&site);
}

#[test]
#[ignore = "needs root: make test"]
fn a_client_outside_is_answered_straight_over_an_underlay_of_ipv6() {
    let site = up("direct-v6", Families::V6First, Name::Ebpf);
    is_answered_straight(&site);
    much_is_taken(&site);
}

#[test]
#[ignore = "needs root: make test"]
fn a_client_outside_is_answered_straight_over_the_emulator() {
    let site = up("direct-emulator", Families::Both, Name::Emulator);
    is_answered_straight(&site);
    much_is_taken(&site);
    two_nodes_are_dialled_from_one_port(&site);
}
