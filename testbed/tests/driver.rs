//! Nodes that meet packets in their uplinks' drivers, between real namespaces: what only passes through a node goes
//! out again before its kernel makes anything of it, and all else arrives as ever.

#[expect(dead_code, reason = "the tests of whole clusters use the rest")]
mod clusters;

use std::net::{IpAddr, SocketAddr};

use dataplane::wire::{Mac, V4, V6};

use clusters::sockets::{ask, ask_by_udp, is_refused, ping, pour, pour_by};
use clusters::{Families, Site, WORLD, WORLD_V6, capture, cluster};
use testbed::dataplane::Name;
use userspace::model::{Acceleration, Encapsulation, Model};

/// The node port of the Service `api`, whose pod is on the second node.
const NODE_PORT: u16 = 30_080;
/// One of nobody's.
const NOBODYS: u16 = 30_081;

/// A cluster whose nodes have programs in their drivers.
fn up(name: &str, model: Model, families: Families, direct: bool) -> Site {
    let encapsulation = if direct { Encapsulation::Geneve } else { Encapsulation::Vxlan };
    let mut cluster = cluster(name, model, encapsulation, families);
    let services = &mut cluster.settings.services;
    (services.direct_return, services.acceleration) = (direct, Acceleration::Native);
    for port in &mut cluster.services[0].ports {
        port.node_port = Some(NODE_PORT);
        for backend in &mut port.backends {
            backend.node = Some("n2".to_owned());
        }
    }
    Site::up(cluster, Name::Ebpf)
}

/// The host outside, in a family.
fn outside(v6: bool) -> IpAddr {
    if v6 { WORLD_V6.into() } else { WORLD.into() }
}

/// A client outside dials the node that has no backend, which stands for it unless it is answered straight: its
/// kernel sees nothing of that.
fn passes_through(site: &Site, direct: bool) {
    // A bridge that has not learned yet where another node is floods what is for that one.
    let own = match site.node("n1", site.families()[0]).1 {
        IpAddr::V4(address) => Mac::of(V4(address.octets())),
        IpAddr::V6(address) => Mac::of(V6(address.octets())),
    };
    for v6 in site.families() {
        let ((api, address), (n1, dialled)) = (site.pod("api", v6), site.node("n1", v6));
        let (world, client) = (site.world(), outside(v6));
        let (server, dialled) = (SocketAddr::new(address, 8080), SocketAddr::new(dialled, NODE_PORT));
        let (seen, heard) = (capture::at(&n1, "eth0"), capture::at(&api, "eth0"));
        let shown = if direct { client } else { dialled.ip() };
        assert_eq!(ask((&world, client), (&api, server), dialled), shown, "by TCP");
        assert_eq!(ask_by_udp((&world, client), (&api, server), dialled), shown, "by UDP");
        pour_by((&world, client), (&api, server), dialled);
        let checked = heard.check();
        assert!(checked > 10, "{checked} packets with checksums came to {address}");
        let seen = seen.frames();
        let its_own = |frame: &&Vec<u8>| frame.starts_with(&own.0) && capture::is_tcp_or_udp(frame);
        let seen = seen.iter().filter(its_own).count();
        assert_eq!(seen, 0, "the kernel of the node that was dialled has seen packets of {client}");
    }
}

/// What is for a pod of the node itself, or for the node, arrives: from outside, from the other node, and back.
fn arrives(site: &Site) {
    for v6 in site.families() {
        let ((web, from), (api, address)) = (site.pod("web", v6), site.pod("api", v6));
        let (world, client) = (site.world(), outside(v6));
        let ((n1, own), (_, other)) = (site.node("n1", v6), site.node("n2", v6));
        let server = SocketAddr::new(address, 8080);
        let heard = capture::at(&api, "eth0");
        assert_eq!(ask((&world, client), (&api, server), SocketAddr::new(other, NODE_PORT)), client);
        ask((&web, from), (&api, server), SocketAddr::new(site.service(v6), 80));
        ask_by_udp((&web, from), (&api, server), SocketAddr::new(site.service(v6), 80));
        pour((&web, from), (&api, server));
        pour_by((&world, client), (&api, server), SocketAddr::new(other, NODE_PORT));
        let checked = heard.check();
        assert!(checked > 10, "{checked} packets with checksums came to {address}");
        pour((&api, address), (&web, SocketAddr::new(from, 8080)));
        // The pod goes out, and its answers come back.
        ask((&web, from), (&world, SocketAddr::new(client, 8080)), SocketAddr::new(client, 8080));
        ping(&n1, other);
        ping(&world, own);
        pour((&n1, own), (&api, server));
        is_refused((&world, client), SocketAddr::new(own, NOBODYS));
    }
}

#[test]
#[ignore = "needs root: make test"]
fn what_passes_through_a_node_does_so_in_its_driver_and_the_rest_arrives() {
    let site = up("driver", Model::Overlay, Families::Both, false);
    passes_through(&site, false);
    arrives(&site);
    site.turn_offload_off();
    passes_through(&site, false);
    arrives(&site);
}

#[test]
#[ignore = "needs root: make test"]
fn clients_who_are_answered_straight_pass_through_in_the_driver_too() {
    let site = up("driver-direct", Model::Overlay, Families::V6First, true);
    passes_through(&site, true);
    arrives(&site);
}

#[test]
#[ignore = "needs root: make test"]
fn without_a_tunnel_what_passes_through_does_so_in_the_driver_too() {
    let site = up("driver-kubenet", Model::Kubenet, Families::V4, false);
    passes_through(&site, false);
    arrives(&site);
}
