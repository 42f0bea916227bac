//! Sockets that are led to a Service's backend as they connect and send: real ones, in the namespaces of a cluster
//! whose nodes' tables the tests can read.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane::Turn;
use dataplane::tables::IfIndex;
use dataplane::trace::Stage;
use dataplane::wire::{Address, V4, V6};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getpeername, setsockopt, socket, sockopt,
};
use testbed::netns::Netns;
use testbed::topology::{HOST_PEER, Layout, Topology, UPLINK, host_side};
use userspace::engine::kernel::{Kernel, Namespaces, Options, cookie_of};
use userspace::engine::{Capacities, Engine, Hook, Tracks};
use userspace::model::{Cluster, load_text};
use userspace::plan::{Homes, Links, Plan};

/// Longer than any answer takes here.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often something is looked at that is waited for.
const GLANCE: Duration = Duration::from_millis(20);
/// Where the Service is dialled, and where its endpoints listen.
const DIALLED: u16 = 80;
const LISTENING: u16 = 8080;

/// `web` and `near` on the first node, `api` on the second; the last two answer the Service.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec:
  nodeSubnets: [10.240.0.0/16, "fd00:10:240::/64"]
  podCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]
  serviceCIDRs: [10.96.0.0/16, "fd00:10:96::/112"]
  nodes: 2
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: api}
  ports:
    - {name: tcp, port: 80, targetPort: 8080}
    - {name: udp, port: 80, targetPort: 8080, protocol: UDP}
"#;

/// A cluster that is up, with servers in the pods that answer.
struct Lab {
    topology: Topology,
    plan: Plan,
    kernels: Vec<Kernel>,
    servers: Vec<Server>,
}

impl Lab {
    fn up(name: &str, change: impl FnOnce(&mut Cluster), capacities: &Capacities) -> Self {
        let name = format!("test-{}-{name}", std::process::id());
        let mut cluster = load_text("cluster", &CLUSTER.replace("NAME", &name)).expect("a cluster");
        cluster.settings.services.socket_translation = true;
        change(&mut cluster);
        let topology = Topology::build(&cluster, Layout::HOOKED).unwrap_or_else(|why| panic!("{why}"));
        let plan = Plan::of(&cluster).expect("it can be planned");
        let mut lab = Self { topology, plan, kernels: Vec::new(), servers: Vec::new() };
        for node in &cluster.nodes {
            let (links, places, _) = lab.ground(&cluster, &node.name);
            let planned = lab.plan.node(&node.name, &links).expect("it fits");
            let options = Options {
                netns: Some(lab.topology.node(&node.name).path()),
                trace: true,
                capacities: capacities.clone(),
                ..Options::default()
            };
            let mut kernel = Kernel::load(&planned, options).unwrap_or_else(|why| panic!("{why}"));
            kernel.attach(&places).unwrap_or_else(|why| panic!("{why}"));
            lab.kernels.push(kernel);
        }
        for pod in ["near", "api"] {
            let netns = lab.pod(pod, false).0;
            lab.servers.push(Server::start(pod, &netns));
        }
        lab
    }

    /// A node's interfaces and namespaces, and where its programs belong.
    fn ground(&self, cluster: &Cluster, node: &str) -> (Links, Vec<(Hook, String)>, Namespaces) {
        let netns = self.topology.node(node);
        let number = |link: &str| {
            IfIndex(netns.run(|| if_nametoindex(link).expect("it was made")).expect("it is there"))
        };
        let mut links = Links { uplink: number(UPLINK), ..Links::default() };
        let mut places =
            vec![(Hook::FromUnderlay, UPLINK.to_owned()), (Hook::FromHost, HOST_PEER.to_owned())];
        let mut namespaces = Namespaces::new();
        let mut known = |path: std::path::PathBuf| {
            let cookie = cookie_of(&path).expect("the kernel tells");
            namespaces.insert(cookie, path);
            cookie
        };
        let mut homes = Homes { node: known(netns.path()), ..Homes::default() };
        for pod in cluster.pods_on(node) {
            let side = host_side(pod);
            links.pods.insert(pod.id(), number(&side));
            homes.pods.insert(pod.id(), known(self.topology.pod(pod).path()));
            places.push((Hook::FromPod, side));
        }
        links.homes = cluster.settings.services.socket_translation.then_some(homes);
        (links, places, namespaces)
    }

    /// Brings the nodes to another state of the cluster, as an agent does: how many clients were ended.
    fn apply(&mut self, cluster: &Cluster) -> usize {
        self.plan = self.plan.after(cluster).expect("it can be planned");
        let mut ended = 0;
        for (place, node) in cluster.nodes.iter().enumerate() {
            let (links, _, namespaces) = self.ground(cluster, &node.name);
            let planned = self.plan.node(&node.name, &links).expect("it fits");
            self.kernels[place].apply(&planned.rows).expect("they can be written");
            ended += self.kernels[place].end_stale_clients(&namespaces).unwrap_or_else(|why| panic!("{why}"));
        }
        ended
    }

    fn pod(&self, name: &str, v6: bool) -> (Netns, IpAddr) {
        let pod = self.topology.cluster().pods.iter().find(|pod| pod.name == name).expect("it is there");
        (self.topology.pod(pod), one_of(&pod.addresses, v6))
    }

    fn node(&self, v6: bool) -> (Netns, IpAddr) {
        let node = &self.topology.cluster().nodes[0];
        (self.topology.node(&node.name), one_of(&node.addresses, v6))
    }

    /// The Service, as it is dialled.
    fn service(&self, v6: bool) -> SocketAddr {
        SocketAddr::new(one_of(&self.topology.cluster().services[0].addresses, v6), DIALLED)
    }

    /// The clients' node.
    fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernels[0]
    }

    /// Sockets that were led to a backend, and those that were left alone for want of room.
    fn turns(&self) -> (u64, u64) {
        let counts = self.kernels[0].counts().expect("they can be read");
        let of = |turn: Turn| counts[turn.counter() as usize].packets;
        (of(Turn::Backend), of(Turn::Full))
    }

    /// Flows of a family that the clients' node tracks, and how many of them a Service translated.
    fn flows<A: Address>(&self) -> (usize, usize)
    where
        Kernel: Tracks<A>,
    {
        let flows = Tracks::<A>::connections(&self.kernels[0]).expect("they can be read");
        let translated = flows.iter().filter(|(_, row)| row.frontend != A::default()).count();
        (flows.len(), translated)
    }

    /// Rows of a table of the clients' node.
    fn rows(&self, table: &str) -> usize {
        let pressure = self.kernels[0].pressure().expect("it can be read");
        pressure.iter().find(|of| of.table == table).expect("there is such a table").rows
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.servers.clear();
        self.kernels.clear();
        let left = self.topology.delete();
        if !thread::panicking() {
            left.expect("it can be removed");
        }
    }
}

fn one_of(addresses: &[IpAddr], v6: bool) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv6() == v6).expect("both families are there")
}

/// Answers whoever asks with its own name and the client's address, by TCP and UDP, in both families.
struct Server {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(name: &'static str, netns: &Netns) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), LISTENING);
        let (tcp, udp) = inside(netns, || {
            (
                TcpListener::bind(any).expect("the port is free"),
                UdpSocket::bind(any).expect("the port is free"),
            )
        });
        tcp.set_nonblocking(true).expect("it can be");
        udp.set_read_timeout(Some(GLANCE)).expect("it is not zero");
        let (ended, told) = (Arc::clone(&over), Arc::clone(&over));
        let threads = vec![
            thread::spawn(move || accept(name, &tcp, &ended)),
            thread::spawn(move || {
                while !told.load(Ordering::Relaxed) {
                    if let Ok((_, peer)) = udp.recv_from(&mut [0; 16]) {
                        let _ = udp.send_to(answer(name, peer).as_bytes(), peer);
                    }
                }
            }),
        ];
        Self { over, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One question after the other of every client that comes.
fn accept(name: &str, listener: &TcpListener, over: &AtomicBool) {
    let mut streams: Vec<(TcpStream, SocketAddr)> = Vec::new();
    while !over.load(Ordering::Relaxed) {
        if let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(true).expect("it can be");
            streams.push((stream, peer));
        }
        streams.retain_mut(|(stream, peer)| match io::Read::read(stream, &mut [0; 16]) {
            Ok(0) => false,
            Ok(_) => io::Write::write_all(stream, answer(name, *peer).as_bytes()).is_ok(),
            Err(why) => why.kind() == ErrorKind::WouldBlock,
        });
        thread::park_timeout(Duration::from_millis(1));
    }
}

fn answer(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}", peer.ip().to_canonical())
}

fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> T {
    netns.run(work).unwrap_or_else(|why| panic!("{why}"))
}

/// Who answered, and as whom it sees its client.
type Answered = (String, IpAddr);

fn heard(bytes: &[u8]) -> Answered {
    let text = std::str::from_utf8(bytes).expect("servers speak UTF-8");
    let (name, address) = text.split_once(' ').expect("a name and an address");
    (name.to_owned(), address.parse().expect("an address"))
}

/// A TCP connection out of a namespace.
fn dial(netns: &Netns, to: SocketAddr) -> TcpStream {
    let stream = inside(netns, || TcpStream::connect_timeout(&to, PATIENCE));
    let stream = stream.unwrap_or_else(|why| panic!("{} to {to}: {why}", netns.name()));
    stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    stream
}

fn ask(stream: &mut TcpStream) -> Answered {
    io::Write::write_all(stream, b"who?").expect("it goes on");
    let mut bytes = [0; 64];
    let length = io::Read::read(stream, &mut bytes).expect("it is answered");
    heard(&bytes[..length])
}

/// A UDP socket in a namespace that is not connected yet.
fn udp(netns: &Netns, v6: bool) -> UdpSocket {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = inside(netns, || UdpSocket::bind((any, 0))).expect("a port is free");
    socket.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    socket
}

/// Asks over a connected UDP socket.
fn ask_by_udp(socket: &UdpSocket) -> io::Result<Answered> {
    socket.send(b"who?")?;
    let mut bytes = [0; 64];
    let length = socket.recv(&mut bytes)?;
    Ok(heard(&bytes[..length]))
}

/// Asks over one that is not connected: whom the answer came from as well.
fn ask_unconnected(socket: &UdpSocket, to: SocketAddr) -> (Answered, SocketAddr) {
    socket.send_to(b"who?", to).expect("it can be sent");
    let mut bytes = [0; 64];
    let (length, from) = socket.recv_from(&mut bytes).unwrap_or_else(|why| panic!("asking {to}: {why}"));
    (heard(&bytes[..length]), from)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        thread::park_timeout(GLANCE);
    }
}

/// An IPv4 address as an IPv6 socket names it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_connection_goes_to_the_backend_itself_and_is_told_that_it_goes_where_it_dialled() {
    let mut lab = Lab::up("tcp", |_| {}, &Capacities::default());
    for v6 in [false, true] {
        let service = lab.service(v6);
        for (netns, source) in [lab.pod("web", v6), lab.node(v6)] {
            lab.kernel().take_records();
            let mut stream = dial(&netns, service);
            let (_, seen) = ask(&mut stream);
            assert_eq!(seen, source, "nobody stands between");
            assert_eq!(stream.peer_addr().expect("it is connected"), service);
            let records = lab.kernel().take_records();
            let says = |stage: Stage| records.iter().filter(|one| one.stage == stage as u8).count();
            assert_eq!((says(Stage::Socket), says(Stage::Service)), (1, 0), "no packet needs translation");
        }
    }
    assert_eq!(lab.turns(), (4, 0));
    let translated = (lab.flows::<V4>(), lab.flows::<V6>());
    assert!(matches!(translated, ((1.., 0), (1.., 0))), "rows, and those of Services: {translated:?}");
}

#[test]
#[ignore = "needs root: make test"]
fn an_ipv6_socket_that_dials_an_ipv4_address_is_led_and_told_alike() {
    let lab = Lab::up("mapped", |_| {}, &Capacities::default());
    let ((web, source), service) = (lab.pod("web", false), lab.service(false));
    let as_v6 = mapped(service);
    let mut stream = inside(&web, || {
        let made = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&made, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
        connect(made.as_raw_fd(), &SockaddrStorage::from(as_v6))?;
        Ok::<_, nix::Error>(TcpStream::from(made))
    })
    .expect("it connects");
    assert_eq!(ask(&mut stream).1, source);
    let told: SockaddrStorage = getpeername(stream.as_raw_fd()).expect("it is connected");
    assert_eq!(told, SockaddrStorage::from(as_v6));

    let socket = udp(&web, true);
    let ((_, seen), from) = ask_unconnected(&socket, as_v6);
    assert_eq!((seen, from), (source, as_v6));
    socket.connect(as_v6).expect("nobody is asked");
    assert_eq!(ask_by_udp(&socket).expect("it is answered").1, source);
    assert_eq!(socket.peer_addr().expect("it is connected"), as_v6);
    assert_eq!(lab.turns(), (3, 0));
    assert_eq!(lab.flows::<V4>().1, 0, "no packet needed translation");
}

#[test]
#[ignore = "needs root: make test"]
fn datagrams_go_to_the_backend_itself_and_answers_come_from_what_was_dialled() {
    let lab = Lab::up("udp", |_| {}, &Capacities::default());
    for v6 in [false, true] {
        let ((web, source), service) = (lab.pod("web", v6), lab.service(v6));
        let connected = udp(&web, v6);
        connected.connect(service).expect("nobody is asked");
        assert_eq!(ask_by_udp(&connected).expect("it is answered").1, source);
        assert_eq!(connected.peer_addr().expect("it is connected"), service);

        let free = udp(&web, v6);
        let ((first, seen), from) = ask_unconnected(&free, service);
        assert_eq!((seen, from), (source, service), "of {first}");
        for _ in 0..8 {
            let ((name, _), from) = ask_unconnected(&free, service);
            assert_eq!((name, from), (first.clone(), service), "a socket stays with its backend");
        }
        // Named itself, the backend answers as itself.
        let (_, backend) = lab.pod(&first, v6);
        let backend = SocketAddr::new(backend, LISTENING);
        assert_eq!(ask_unconnected(&free, backend).1, backend);
    }
    assert_eq!((lab.flows::<V4>().1, lab.flows::<V6>().1), (0, 0), "no packet needed translation");
}

#[test]
#[ignore = "needs root: make test"]
fn clients_of_a_backend_that_goes_connect_anew_by_udp_and_go_on_by_tcp() {
    let mut lab = Lab::up("gone", |_| {}, &Capacities::default());
    let cluster = lab.topology.cluster().clone();
    for v6 in [false, true] {
        let ((web, _), (_, gone), service) = (lab.pod("web", v6), lab.pod("api", v6), lab.service(v6));
        // Clients of that backend: others are let go.
        let mut streams = (0..64).map(|_| dial(&web, service));
        let mut stream = streams.find_map(|mut one| (ask(&mut one).0 == "api").then_some(one));
        let stream = stream.as_mut().expect("one of two answers a client of 64");
        let led = |_| {
            let socket = udp(&web, v6);
            socket.connect(service).expect("nobody is asked");
            (ask_by_udp(&socket).expect("it is answered").0 == "api").then_some(socket)
        };
        let client = (0..64).find_map(led).expect("one of two answers a client of 64");
        let free = (0..64).map(|_| udp(&web, v6)).find(|one| ask_unconnected(one, service).0.0 == "api");
        let free = free.expect("one of two answers a client of 64");
        let direct = udp(&web, v6);
        direct.connect((gone, LISTENING)).expect("nobody is asked");

        let mut without = cluster.clone();
        for port in &mut without.services[0].ports {
            port.backends.retain(|backend| backend.address != gone);
        }
        let start = Instant::now();
        assert_eq!(lab.apply(&without), 1, "the connected one, and no other");
        let told = client.recv(&mut [0; 16]).expect_err("it is ended").kind();
        assert_eq!(told, ErrorKind::ConnectionAborted);
        client.connect(service).expect("nobody is asked");
        assert_eq!(ask_by_udp(&client).expect("it is answered").0, "near");
        println!("IPv{}: a client of UDP was back after {:?}", if v6 { 6 } else { 4 }, start.elapsed());

        assert_eq!(ask_unconnected(&free, service).0.0, "near", "chosen anew");
        assert_eq!(ask_by_udp(&direct).expect("it dialled the backend itself").0, "api");
        assert_eq!(ask(stream).0, "api", "a connection goes on");
        assert_eq!(lab.apply(&cluster), 0, "nobody is ended by an endpoint that comes");
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_socket_for_which_there_is_no_room_is_translated_packet_by_packet() {
    let mut capacities = Capacities::default();
    capacities.set("sockets", 1).expect("there is such a table");
    let lab = Lab::up("full", |_| {}, &capacities);
    let ((web, source), service) = (lab.pod("web", false), lab.service(false));
    let mut first = dial(&web, service);
    assert_eq!((ask(&mut first).1, lab.turns()), (source, (1, 0)));
    let mut second = dial(&web, service);
    assert_eq!((ask(&mut second).1, lab.turns()), (source, (1, 1)));
    assert_eq!(second.peer_addr().expect("it is connected"), service);
    let free = udp(&web, false);
    assert_eq!(ask_unconnected(&free, service).1, service);
    assert_eq!(lab.turns(), (1, 2));
    assert!(lab.flows::<V4>().1 > 0, "packets were translated");
    // The next has the room of the first again.
    drop(first);
    wait_until("the first socket is forgotten", || lab.rows("sockets") == 0);
    assert_eq!((ask(&mut dial(&web, service)).1, lab.turns()), (source, (2, 2)));
}

#[test]
#[ignore = "needs root: make test"]
fn what_a_socket_dialled_is_forgotten_when_it_is_closed() {
    let lab = Lab::up("close", |_| {}, &Capacities::default());
    for (v6, table) in [(false, "sockets"), (true, "sockets_v6")] {
        let ((web, _), service) = (lab.pod("web", v6), lab.service(v6));
        let mut stream = dial(&web, service);
        ask(&mut stream);
        let (connected, free) = (udp(&web, v6), udp(&web, v6));
        connected.connect(service).expect("nobody is asked");
        ask_unconnected(&free, service);
        assert_eq!(lab.rows(table), 3);
        drop((stream, connected, free));
        wait_until("what they dialled is forgotten", || lab.rows(table) == 0);
    }
}

#[test]
#[ignore = "needs root: make test"]
fn sockets_of_other_namespaces_are_left_alone() {
    let lab = Lab::up("others", |_| {}, &Capacities::default());
    let service = lab.service(false);
    // The cluster's virtual address is somebody's own elsewhere.
    let elsewhere =
        Netns::create(format!("podpath-test-{}-elsewhere", std::process::id())).expect("a namespace");
    let elsewhere = elsewhere.guarded();
    inside(&elsewhere, || {
        let set = std::process::Command::new("ip")
            .args(["address", "add", &format!("{}/32", service.ip()), "dev", "lo"])
            .status();
        assert!(set.expect("ip runs").success());
    });
    let listener = inside(&elsewhere, || TcpListener::bind(service)).expect("the address is there");
    // It holds for accept(2) as well (socket(7)): who was led elsewhere does not come.
    let patience = nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0);
    setsockopt(&listener, sockopt::ReceiveTimeout, &patience).expect("any socket can wait");
    let stream = dial(&elsewhere, service);
    assert_eq!(stream.peer_addr().expect("it is connected"), service);
    let (_, peer) = listener.accept().expect("it came here");
    assert_eq!(peer.ip(), service.ip());
    assert_eq!((lab.turns(), lab.rows("sockets")), ((0, 0), 0));
}

#[test]
#[ignore = "needs root: make test"]
fn nothing_is_led_anywhere_unless_it_is_asked_for() {
    let off = |cluster: &mut Cluster| {
        cluster.settings.services = userspace::model::Settings::default().services;
    };
    let lab = Lab::up("off", off, &Capacities::default());
    let ((web, source), service) = (lab.pod("web", false), lab.service(false));
    let mut stream = dial(&web, service);
    assert_eq!(ask(&mut stream).1, source);
    assert_eq!(stream.peer_addr().expect("it is connected"), service);
    assert_eq!(lab.turns(), (0, 0));
    assert!(lab.flows::<V4>().1 > 0, "packets were translated");
}
