//! A node's namespace with links whose other ends nobody listens to but this test, and rules in its kernel.

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use pnet::datalink::{Channel, Config, DataLinkSender};
use testbed::dataplane::chains::Family;
use testbed::dataplane::netfilter::{RESTORE, RESTORE_V6};
use testbed::link::{End, Links, Next, Route, Vxlan, pair};
use testbed::netns::{Guard, Netns};
use testbed::topology::{self, host_side, mac};

use super::clusters::capture::{self, Capture};
use super::packet::{inside, source, target};
use super::realm::{Realm, TUNNEL, V4, V6};
use super::tunnel;

/// The uplink, and the pods' links, whose names follow from the pods'.
pub(crate) static LINKS: LazyLock<[String; 4]> = LazyLock::new(|| {
    let cluster = super::cluster(None);
    let pod = |place: usize| host_side(&cluster.pods[place]);
    ["eth0".to_owned(), pod(0), pod(1), pod(2)]
});
/// The longest packets of a link.
const MTU: u32 = 1500;
/// Longer than the kernel takes for anything here.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time limits of the kernel that are a few seconds long.
const SILENCE: [&str; 8] = [
    "net/netfilter/nf_conntrack_tcp_timeout_close",
    "net/netfilter/nf_conntrack_sctp_timeout_closed",
    "net/netfilter/nf_conntrack_sctp_timeout_cookie_wait",
    "net/netfilter/nf_conntrack_sctp_timeout_cookie_echoed",
    "net/netfilter/nf_conntrack_sctp_timeout_shutdown_sent",
    "net/netfilter/nf_conntrack_sctp_timeout_shutdown_recd",
    "net/netfilter/nf_conntrack_sctp_timeout_shutdown_ack_sent",
    "net/netfilter/nf_conntrack_sctp_timeout_heartbeat_sent",
];

/// The node, and the far ends of its links.
pub(crate) struct Ground {
    node: Guard,
    /// Kept: what is sent and heard there ends with it.
    _ends: Guard,
    senders: Vec<Box<dyn DataLinkSender>>,
    heard: Vec<Capture>,
    markers: u32,
    realm: &'static Realm,
    /// Whose addresses nodes are called by.
    first: &'static Realm,
}

impl Ground {
    /// Makes it, with these rules in the kernel.
    pub(crate) fn new(
        name: &str,
        realm: &'static Realm,
        tunnel: Option<&'static Realm>,
        rules: &str,
    ) -> Self {
        let first = tunnel.unwrap_or(&V4);
        let made = |side: &str| {
            let netns = Netns::named(format!("podpath-test-{}-{name}-{side}", std::process::id()));
            topology::create(netns).unwrap_or_else(|error| panic!("{error}")).guarded()
        };
        let (node, ends) = (made("node"), made("ends"));
        // Whether a segment fits into a window is not what rules are about.
        node.set(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]).expect("root may");
        // Packets that the node makes have labels by lot.
        node.set(&[("net/ipv6/auto_flowlabels", "0")]).expect("root may");
        // Nobody at the other ends looks for routers or neighbours.
        ends.set(&[("net/ipv6/conf/default/disable_ipv6", "1")]).expect("root may");
        let tool = if realm.family == Family::V4 { RESTORE } else { RESTORE_V6 };
        tool.load(&node, rules).unwrap_or_else(|error| panic!("{error}\n{rules}"));
        node.set(&[("net/netfilter/nf_conntrack_tcp_be_liberal", "1")]).expect("root may");
        // Everybody is told.
        node.set(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv6/icmp/ratelimit", "0")]).expect("root may");
        // No connection is over because the machine was slow.
        node.set(&SILENCE.map(|limit| (limit, "600"))).expect("root may");
        LINKS.iter().zip(own_macs(first)).for_each(|(link, mac)| {
            let mtu = tunnel.filter(|_| *link != LINKS[0]).map_or(MTU, tunnel_mtu);
            let near = End { netns: &node, name: link, mac: Some(mac), mtu, gso_max_size: 65_535 };
            pair(&near, &End { netns: &ends, mac: None, ..near }).unwrap_or_else(|error| panic!("{error}"));
        });
        lead(&node, first).unwrap_or_else(|error| panic!("{error}"));
        if let Some(over) = tunnel {
            lead_beyond(&node, over).unwrap_or_else(|error| panic!("{error}"));
        }
        let mut far = Links::open(&ends).expect("it is there");
        for link in LINKS.iter() {
            far.offload(link, false).and_then(|()| far.up(link)).unwrap_or_else(|error| panic!("{error}"));
        }
        let mut near = Links::open(&node).expect("it is there");
        LINKS.iter().for_each(|link| near.wait_up(link).unwrap_or_else(|error| panic!("{error}")));
        wait_for_own_addresses(&node);
        let senders = LINKS.iter().map(|link| sender(&ends, link)).collect();
        let heard = LINKS.iter().map(|link| capture::at(&ends, link)).collect();
        Self { node, _ends: ends, senders, heard, markers: 0, realm, first }
    }

    /// Sends a frame into a link, wrapped in `outer` if that is the tunnel, and gives what the kernel sends for it, and by
    /// which link; what leaves by the tunnel leaves by the uplink.
    pub(crate) fn push(&mut self, link: usize, frame: &[u8], outer: u8) -> Vec<(usize, Vec<u8>)> {
        self.send(link, frame, outer);
        let mut came = Vec::new();
        self.markers += 1;
        for to in 0..LINKS.len() {
            let target = if to == 0 { self.realm.marked } else { self.realm.pods[to - 1] };
            let marker = super::packet::datagram((self.realm.marker, target), &self.markers.to_be_bytes());
            // By the link that the frame took: it cannot overtake it.
            self.send(link, &super::packet::framed(own_macs(self.first)[link].0, &marker), 0);
            self.wait_for_the_marker(to, &mut came);
        }
        came
    }

    fn wait_for_the_marker(&self, to: usize, came: &mut Vec<(usize, Vec<u8>)>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_of = |frame: &Vec<u8>| is_of(self.realm, tunnel::unwrapped(frame).unwrap_or(frame));
            for frame in self.heard[to].frames().into_iter().filter(is_of) {
                let is_marker = source(inside(&frame)) == self.realm.marker;
                if !is_marker {
                    came.push((to, frame));
                } else if frame.ends_with(&self.markers.to_be_bytes()) {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "no marker came out of {} of {}", LINKS[to], self.node.name());
            std::thread::yield_now();
        }
    }

    fn send(&mut self, link: usize, frame: &[u8], outer: u8) {
        let (link, frame) = into_link(link, frame, (self.first, outer));
        let sent = self.senders[link].send_to(&frame, None).expect("it takes frames");
        sent.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Whether a frame is of a family, and not the node's own talk about neighbours and routers on its links.
fn is_of(realm: &Realm, frame: &[u8]) -> bool {
    let own = match realm.family {
        Family::V4 => [0x08, 0x00],
        Family::V6 => [0x86, 0xdd],
    };
    let is_talk = |address: IpAddr| match address {
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.is_multicast() || address.is_unspecified()
        }
        IpAddr::V4(_) => false,
    };
    frame.get(12..14) == Some(&own)
        && ![source(inside(frame)), target(inside(frame))].into_iter().any(is_talk)
}

/// What is sent where, so that a frame comes by a link: by the tunnel it comes inside one on the uplink, of this class,
/// between addresses of `over`.
pub(crate) fn into_link(link: usize, frame: &[u8], (over, class): (&Realm, u8)) -> (usize, Vec<u8>) {
    if link == TUNNEL { (0, tunnel::wrapped(frame, over, class)) } else { (link, frame.to_vec()) }
}

/// The hardware addresses of the node's ends of its links, and of the tunnel.
pub(crate) fn own_macs(first: &Realm) -> [dataplane::wire::Mac; 5] {
    let gateway = dataplane::wire::Mac::GATEWAY;
    [mac(first.node), gateway, gateway, gateway, mac(first.node)]
}

/// The longest packets that leave by the tunnel.
fn tunnel_mtu(over: &Realm) -> u32 {
    MTU - tunnel::before(over) as u32
}

/// Addresses, routes and neighbours of the node.
fn lead(node: &Netns, first: &Realm) -> Result<(), testbed::link::Error> {
    let mut links = Links::open(node)?;
    for link in LINKS.iter() {
        links.offload(link, false)?;
        links.up(link)?;
    }
    // As all of the testbed has it: of the first address that a host may have.
    let subnet = IpNet::new(first.node, first.subnet).expect("a prefix").trunc();
    let gateway = mac(subnet.hosts().next().expect("it has hosts"));
    for realm in [&V4, &V6] {
        links.address("eth0", realm.node, realm.subnet)?;
        links.neighbour("eth0", realm.gateway, gateway)?;
        links.route(Route::default(realm.gateway, "eth0"))?;
        for ((link, pod), first) in LINKS[1..].iter().zip(realm.pods).zip(V4.pods) {
            links.neighbour(link, pod, mac(first))?;
            links.route(Route::host(pod, Next::Link(link)).source(realm.node))?;
        }
    }
    Ok(())
}

/// Waits until the node takes what is for its own addresses of IPv6: the kernel gets around to that later, even where it
/// need not ask whether others have them.
fn wait_for_own_addresses(node: &Netns) {
    let IpAddr::V6(own) = V6.node else { panic!("{} is no address of IPv6", V6.node) };
    let is_own = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let flags = fields.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        // The first is the address, then its length; of the flags the highest says "local".
        line.starts_with(&format!("{:032x} 80 ", own.to_bits()))
            && flags.is_some_and(|flags| flags >> 31 == 1)
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let routes = node.run(|| std::fs::read_to_string("/proc/thread-self/net/ipv6_route"));
        if routes.expect("it runs").expect("the kernel has IPv6").lines().any(is_own) {
            return;
        }
        assert!(Instant::now() < deadline, "{own} is not led to {} itself", node.name());
        std::thread::yield_now();
    }
}

/// The tunnel to the other node, as the testbed lays it.
fn lead_beyond(node: &Netns, over: &Realm) -> Result<(), testbed::link::Error> {
    let mut links = Links::open(node)?;
    let [.., end] = over.remote;
    let far = mac(end);
    links.vxlan(&Vxlan {
        name: topology::TUNNEL,
        over: "eth0",
        v6: over == &V6,
        vni: tunnel::VNI,
        port: tunnel::PORT,
        mac: mac(over.node),
        mtu: tunnel_mtu(over),
        gso_max_size: 65_535,
    })?;
    links.neighbour("eth0", end, far)?;
    for (realm, whole) in [(&V4, 32), (&V6, 128)] {
        links.address(topology::TUNNEL, realm.node, whole)?;
    }
    links.offload(topology::TUNNEL, false)?;
    links.up(topology::TUNNEL)?;
    links.beyond(topology::TUNNEL, far, (end, "eth0"))?;
    for realm in [&V4, &V6] {
        let [pods @ .., other] = realm.remote;
        links.neighbour(topology::TUNNEL, other, far)?;
        links.route(Route::host(other, Next::Link(topology::TUNNEL)).source(realm.node))?;
        for pod in pods {
            links.route(Route::host(pod, Next::Via(other, topology::TUNNEL)).source(realm.node))?;
        }
    }
    Ok(())
}

fn sender(netns: &Netns, link: &str) -> Box<dyn DataLinkSender> {
    let opened = netns.run(|| {
        let interface = pnet::datalink::interfaces().into_iter().find(|one| one.name == link)?;
        match pnet::datalink::channel(&interface, Config::default()) {
            Ok(Channel::Ethernet(sender, _)) => Some(sender),
            _ => None,
        }
    });
    opened.expect("it runs").expect("the link is there")
}
