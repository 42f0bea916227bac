//! Pods of two nodes, with real sockets: each family inside a tunnel over each.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use dataplane::tables::{Endpoint, Identity, IfIndex, Node, NodeId, Route, RuleSet};
use dataplane::wire::{Address, Be16, Mac, V4, V6};
use dataplane::{Reason, Verdict};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use userspace::engine::kernel::{Kernel, Options};
use userspace::engine::{Count, Engine, Hook};
use userspace::plan::{NodePlan, NodeRows, Prefix, Rows, Rules};

use crate::TIMEOUTS;
use crate::netns::Netns;

/// How long a socket waits before the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for many packets of every length that segmentation makes.
const STREAM_BYTES: usize = 8 << 20;

/// One of the two nodes, with its one pod. All that differs is the number in each address.
pub(crate) struct Side {
    pub(crate) node: Netns,
    pod: Netns,
    number: u8,
}

fn v6(net: u8, number: u8) -> V6 {
    let mut address = [0; 16];
    (address[0], address[1], address[15]) = (0xfd, net, number);
    V6(address)
}

impl Side {
    pub(crate) fn pod_v4(number: u8) -> V4 {
        V4([10, 244, number, 2])
    }

    pub(crate) fn pod_v6(number: u8) -> V6 {
        v6(1, number)
    }

    pub(crate) fn node_v4(number: u8) -> V4 {
        V4([10, 240, 0, number])
    }

    pub(crate) fn node_v6(number: u8) -> V6 {
        v6(2, number)
    }

    fn new(of: &str, number: u8) -> Self {
        let side = Self {
            node: Netns::new(&format!("{of}-node{number}")),
            pod: Netns::new(&format!("{of}-pod{number}")),
            number,
        };
        side.node.ip(&[
            "link",
            "add",
            "pod0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            side.pod.name(),
        ]);
        side.node.ip(&["link", "set", "pod0", "up"]);
        let pod = &side.pod;
        let mac = Mac::of(Self::pod_v4(number)).to_string();
        pod.ip(&["link", "set", "eth0", "address", &mac, "mtu", "1400", "gso_max_size", "65000"]);
        pod.ip(&["link", "set", "eth0", "up"]);
        let gateway = Mac::GATEWAY.to_string();
        pod.ip(&["addr", "add", &format!("{}/32", Self::pod_v4(number)), "dev", "eth0"]);
        pod.ip(&["addr", "add", &format!("{}/128", Self::pod_v6(number)), "dev", "eth0", "nodad"]);
        pod.ip(&["route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink"]);
        pod.ip(&["-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "onlink"]);
        for next in ["169.254.1.1", "fe80::1"] {
            pod.ip(&["neigh", "add", next, "lladdr", &gateway, "dev", "eth0", "nud", "permanent"]);
        }
        side
    }

    /// What the node is told, with the other's end of the tunnel.
    pub(crate) fn plan(&self, tunnel: impl Fn(u8) -> V6) -> NodePlan {
        let other = 3 - self.number;
        let pod = Endpoint {
            interface: self.node.interface("pod0"),
            identity: Identity::FIRST,
            rules: RuleSet(1),
            mac: Mac::of(Self::pod_v4(self.number)),
            isolated: 0,
            flags: 0,
        };
        let remote = Route {
            node: tunnel(other),
            id: NodeId(u32::from(other)),
            mac: Mac::of(Self::node_v4(other)),
            kind: Route::REMOTE,
            own: 0,
        };
        NodePlan {
            node: Node {
                underlay: tunnel(self.number),
                uplink: self.node.interface("eth0"),
                mtu: 1500,
                seed: 7,
                timeouts: TIMEOUTS,
                mac: Mac::of(Self::node_v4(self.number)),
                tunnel_port: Be16::new(4789),
                masquerade_first: 32_768,
                masquerade_count: 1000,
                encapsulation: Node::VXLAN,
                ..Node::default()
            },
            addresses: (Self::node_v4(self.number), Self::node_v6(self.number)),
            rows: NodeRows {
                nodes: BTreeMap::from([(tunnel(other), NodeId(u32::from(other)))]),
                v4: rows((Self::pod_v4(self.number), pod), (Self::pod_v4(other), remote)),
                v6: rows((Self::pod_v6(self.number), pod), (Self::pod_v6(other), remote)),
            },
            rules: Rules::default(),
        }
    }

    fn load(&self, tunnel: impl Fn(u8) -> V6) -> Kernel {
        let options = Options { netns: Some(self.node.path()), ..Options::default() };
        let mut kernel = Kernel::load(&self.plan(tunnel), options).unwrap_or_else(|error| panic!("{error}"));
        kernel
            .attach(&[(Hook::FromUnderlay, "eth0".to_owned()), (Hook::FromPod, "pod0".to_owned())])
            .expect("attaches");
        kernel
    }
}

fn rows<A: Address>((pod, endpoint): (A, Endpoint), (far, route): (A, Route)) -> Rows<A> {
    Rows {
        endpoints: BTreeMap::from([(pod, endpoint)]),
        routes: BTreeMap::from([(Prefix { key: far, bits: A::BITS }, route)]),
        ..Rows::default()
    }
}

/// Two nodes whose uplinks are one wire.
pub(crate) fn sides(of: &str) -> (Side, Side) {
    let (left, right) = (Side::new(of, 1), Side::new(of, 2));
    left.node.ip(&[
        "link",
        "add",
        "eth0",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        right.node.name(),
    ]);
    for side in [&left, &right] {
        let mac = Mac::of(Side::node_v4(side.number)).to_string();
        side.node.ip(&["link", "set", "eth0", "address", &mac, "up"]);
    }
    (left, right)
}

/// A question over UDP, its answer, and a long stream over TCP, of which the far end counts the bytes.
fn talk(client: &Side, server: &Side, (from, to): (IpAddr, IpAddr)) {
    let (udp, tcp) = server.pod.run(|| {
        let udp = UdpSocket::bind((to, 7000)).expect("the pod has this address");
        let tcp = TcpListener::bind((to, 7000)).expect("the pod has this address");
        udp.set_read_timeout(Some(PATIENCE)).expect("any socket can wait");
        // It holds for accept(2) as well (socket(7)): a client that fails is not waited for without an end.
        let patience = TimeVal::new(PATIENCE.as_secs() as i64, 0);
        setsockopt(&tcp, sockopt::ReceiveTimeout, &patience).expect("any socket can wait");
        (udp, tcp)
    });
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut question = [0; 2000];
            let (length, asker) = udp.recv_from(&mut question).expect("the question arrives");
            assert_eq!(asker.ip(), from);
            udp.send_to(&question[..length], asker).expect("the answer leaves");
            let (mut stream, asker) = tcp.accept().expect("the connection arrives");
            assert_eq!(asker.ip(), from);
            stream.set_read_timeout(Some(PATIENCE)).expect("any socket can wait");
            let mut whole = Vec::new();
            stream.read_to_end(&mut whole).expect("the stream arrives");
            assert!(whole == pattern(), "the stream arrives as it was sent");
            stream.write_all(b"all of it").expect("the answer leaves");
        });
        client.pod.run(|| {
            let udp = UdpSocket::bind((from, 0)).expect("the pod has this address");
            udp.set_read_timeout(Some(PATIENCE)).expect("any socket can wait");
            udp.send_to(&pattern()[..1200], (to, 7000)).expect("the question leaves");
            let mut answer = [0; 2000];
            let (length, _) = udp.recv_from(&mut answer).expect("the answer arrives");
            assert_eq!(answer[..length], pattern()[..1200]);
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::new(to, 7000), PATIENCE).expect("connects");
            stream.set_read_timeout(Some(PATIENCE)).expect("any socket can wait");
            stream.set_write_timeout(Some(PATIENCE)).expect("any socket can wait");
            stream.write_all(&pattern()).expect("the stream leaves");
            stream.shutdown(std::net::Shutdown::Write).expect("it is open");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("the answer arrives");
            assert_eq!(answer, "all of it");
        });
    });
}

fn pattern() -> Vec<u8> {
    (0..STREAM_BYTES).map(|place| (place * 7 + place / 251) as u8).collect()
}

fn count(kernel: &Kernel, verdict: Verdict) -> Count {
    kernel.counts().expect("readable")[verdict.counter() as usize]
}

/// Both families through a tunnel over one of them.
fn through(of: &str, tunnel: fn(u8) -> V6) {
    let (left, right) = sides(of);
    let (sends, takes) = (left.load(tunnel), right.load(tunnel));
    let ends: [(IpAddr, IpAddr); 2] = [
        (Side::pod_v4(1).0.into(), Side::pod_v4(2).0.into()),
        (Side::pod_v6(1).0.into(), Side::pod_v6(2).0.into()),
    ];
    let mut before = Count::default();
    for (from, to) in ends {
        talk(&left, &right, (from, to));
        let forwarded = count(&sends, Verdict::Forward(IfIndex(0)));
        let (packets, bytes) = (forwarded.packets - before.packets, forwarded.bytes - before.bytes);
        println!("{from} to {to}: {bytes} bytes in {packets} packets into the tunnel");
        assert!(bytes as usize > STREAM_BYTES, "all of it went through the tunnel");
        assert!(bytes / packets > 4000, "the stream went in packets that are cut into segments later");
        before = forwarded;
    }
    for kernel in [&sends, &takes] {
        for reason in Reason::ALL {
            // What the pods' stacks say of themselves when their links come up is nobody's.
            if !matches!(
                reason,
                Reason::NeedsNoAnswer | Reason::OwnAddressAsked | Reason::InvalidSource | Reason::Blackhole
            ) {
                assert_eq!(count(kernel, Verdict::Drop(*reason)).packets, 0, "{}", reason.slug());
            }
        }
    }
}

#[test]
#[ignore = "needs root: make test"]
fn both_families_go_through_a_tunnel_over_ipv4_also_in_packets_to_be_segmented() {
    through("tunnel4", |number| Side::node_v4(number).to_v6());
}

#[test]
#[ignore = "needs root: make test"]
fn both_families_go_through_a_tunnel_over_ipv6_also_in_packets_to_be_segmented() {
    through("tunnel6", Side::node_v6);
}
