//! Namespaces and links as they really come out, and whether they really go away.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use testbed::link::Links;
use testbed::listen::{self, Client, Listener, Spec};
use testbed::netns::{self, Netns, Part};
use testbed::state::{self, State};
use testbed::topology::{self, HOST, HOST_PEER, Layout, Topology, fabric_side, host_side};
use userspace::model::{
    Cluster, ContainerPort, External, Model, Node, Pod, Protocol, Service, ServicePort, Settings,
};

/// Longer than any answer on a busy machine takes, and than it takes to build a cluster there.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster of this test process, removed when it goes out of scope.
struct Lab(Cluster);

impl Drop for Lab {
    fn drop(&mut self) {
        let down = state::down(&self.0.name);
        assert!(down.is_ok() || std::thread::panicking(), "{down:?}");
    }
}

impl Lab {
    /// Names of the namespaces that there are of it.
    fn namespaces(&self) -> Vec<String> {
        namespaces(&self.0.name)
    }
}

/// Names of the namespaces that there are of a cluster.
fn namespaces(cluster: &str) -> Vec<String> {
    let all = Netns::list("podpath-").expect("they can be listed");
    let ours = all.iter().filter(|netns| netns.cluster() == Some(cluster));
    ours.map(|netns| netns.name().to_owned()).collect()
}

/// Waits until `it` is so.
fn wait_until(what: &str, mut it: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !it() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// Two nodes with a pod each, a pod out of the range, a host-network pod, and one host outside.
fn two_nodes(name: &str) -> Lab {
    named(format!("test-{}-{name}", std::process::id()))
}

/// The same, under a name of the caller's.
fn named(name: String) -> Lab {
    let node = |name: &str, last: u8| Node {
        name: name.to_owned(),
        labels: BTreeMap::new(),
        addresses: vec![IpAddr::from([10, 240, 0, last])],
        pod_cidrs: vec![format!("10.244.{}.0/24", last - 3).parse().expect("it is a range")],
    };
    let web = Pod {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        labels: BTreeMap::new(),
        node: "n1".to_owned(),
        addresses: vec![IpAddr::from([10, 244, 1, 5])],
        host_network: false,
        ports: Vec::new(),
        ready: true,
        ..Pod::default()
    };
    let pod = |name: &str, node: &str, address: [u8; 4]| Pod {
        name: name.to_owned(),
        node: node.to_owned(),
        addresses: vec![address.into()],
        ..web.clone()
    };
    let agent = Pod { host_network: true, ..pod("agent", "n1", [10, 240, 0, 4]) };
    let pods =
        vec![web.clone(), pod("api", "n2", [10, 244, 2, 7]), pod("stray", "n2", [172, 16, 9, 9]), agent];
    let range = |text: &str| text.parse().expect("it is a range");
    Lab(Cluster {
        name,
        settings: Settings {
            model: Model::Overlay,
            node_subnets: vec![range("10.240.0.0/16")],
            pod_cidrs: vec![range("10.244.0.0/16")],
            service_cidrs: vec![range("10.96.0.0/16")],
            max_pods: 250,
            mtu: 1500,
            ..Settings::default()
        },
        namespaces: BTreeMap::new(),
        nodes: vec![node("n1", 4), node("n2", 5)],
        pods,
        services: Vec::new(),
        policies: Vec::new(),
        cluster_policies: Vec::new(),
        audited: Default::default(),
        externals: vec![External {
            name: "world".to_owned(),
            address: IpAddr::from([203, 0, 113, 7]),
            ports: Vec::new(),
        }],
        notes: Vec::new(),
    })
}

/// Sends a word over a connection from one namespace to an address in another, and gives the address
/// that the server saw.
fn reaches(from: &Netns, to: &Netns, address: IpAddr) -> IpAddr {
    let listener =
        to.run(|| TcpListener::bind((address, 0))).expect("it is there").expect("it has the address");
    let port = listener.local_addr().expect("it is bound").port();
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("somebody comes");
        let mut word = [0; 4];
        stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        stream.read_exact(&mut word).expect("a word comes");
        stream.write_all(&word).expect("it is still there");
        peer.ip()
    });
    let target = SocketAddr::from((address, port));
    let answer = from
        .run(|| -> std::io::Result<[u8; 4]> {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"ping")?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        })
        .expect("it is there");
    match answer {
        Ok(answer) => assert_eq!(&answer, b"ping"),
        Err(error) => panic!("{} to {target} in {}: {error}", from.name(), to.name()),
    }
    server.join().expect("the server is through")
}

#[test]
#[ignore = "needs root: make test"]
fn with_kernel_routes_everybody_reaches_everybody_with_their_own_address() {
    let lab = two_nodes("routed");
    let topology = Topology::build(&lab.0, Layout::ROUTED).expect("the cluster is built");
    everybody_reaches_everybody(&lab, &topology);
}

/// From everywhere to everywhere, with one's own address.
fn everybody_reaches_everybody(lab: &Lab, topology: &Topology) {
    let [web, api, stray, agent] = &lab.0.pods[..] else { unreachable!("there are four") };
    let external = lab.0.externals[0].address;
    let places = [
        (topology.pod(web), web.address()),
        (topology.pod(api), api.address()),
        (topology.pod(stray), stray.address()),
        (topology.pod(agent), agent.address()),
        (topology.node("n2"), lab.0.nodes[1].address()),
        (topology.world(), external),
    ];
    for (from, source) in &places {
        for (to, address) in &places {
            if from != to {
                assert_eq!(reaches(from, to, *address), *source, "{} to {}", from.name(), to.name());
            }
        }
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_switch_hands_frames_from_node_to_node_past_the_bridge_for_as_long_as_it_lives() {
    let lab = two_nodes("switch");
    let topology = Topology::build(&lab.0, Layout::ROUTED).expect("the cluster is built");
    let [web, api, ..] = &lab.0.pods[..] else { unreachable!("there are four") };
    // What the bridge has sent to the other node.
    let bridged = |topology: &Topology| packets(&topology.fabric(), &fabric_side("n2"), SENT);
    let asked = || {
        let before = bridged(&topology);
        reaches(&topology.pod(web), &topology.pod(api), api.address());
        bridged(&topology) - before
    };
    assert!(asked() > 0, "a connection takes the bridge");
    let switch = topology.switch().expect("it is built").expect("there is a bridge");
    assert_eq!(asked(), 0, "nothing of a connection takes the bridge");
    everybody_reaches_everybody(&lab, &topology);
    drop(switch);
    assert!(asked() > 0, "a connection takes the bridge again");
}

#[test]
#[ignore = "needs root: make test"]
fn a_nodes_own_packets_to_pods_and_services_come_out_where_a_dataplane_catches_them() {
    let lab = two_nodes("own");
    let topology = Topology::build(&lab.0, Layout::HOOKED).expect("the cluster is built");
    let node = topology.node("n1");
    for target in ["10.244.1.5:80", "10.244.2.7:80", "172.16.9.9:80", "10.96.0.10:80"] {
        let before = received(&node, HOST_PEER);
        let source = node.run(|| -> io::Result<SocketAddr> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(target)?;
            socket.send(b"ping")?;
            socket.local_addr()
        });
        let source = source.expect("it is there").expect("there is a route");
        assert_eq!(source.ip(), lab.0.nodes[0].address(), "to {target}");
        assert!(
            (1024..30_000).contains(&source.port()),
            "{source} is a port of the masquerade or a node port"
        );
        wait_until("the packet is there", || received(&node, HOST_PEER) > before);
    }
    assert!(Links::open(&node).expect("it opens").has(HOST).expect("it answers"));
}

/// Where a link's packets stand in the kernel's table of links: those it has received, and those it was given to send.
const RECEIVED: usize = 1;
const SENT: usize = 9;

/// Packets that a link has received.
fn received(netns: &Netns, link: &str) -> u64 {
    packets(netns, link, RECEIVED)
}

/// A number of a link's packets.
fn packets(netns: &Netns, link: &str, column: usize) -> u64 {
    let table = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
    let table = table.expect("it is there").expect("it can be read");
    let row =
        table.lines().find_map(|line| line.trim().strip_prefix(&format!("{link}:"))).expect("it is a link");
    row.split_whitespace().nth(column).expect("it has so many").parse().expect("it is a number")
}

#[test]
#[ignore = "needs root: make test"]
fn without_offload_frames_are_what_would_stand_on_a_real_wire() {
    let lab = two_nodes("frames");
    let layout = Layout { answers_arp: false, ..Layout::USERSPACE };
    let topology = Topology::build(&lab.0, layout).expect("the cluster is built");
    let web = &lab.0.pods[0];
    let caught = topology.node("n1").run(|| catch(&host_side(web))).expect("it is there").expect("it opens");
    let sent = topology.pod(web).run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(&[7; 1000], "203.0.113.7:53"));
    assert_eq!(sent.expect("it is there").expect("it is sent"), 1000);
    let frame = caught.recv_timeout(PATIENCE).expect("the frame is there");
    let parsed = etherparse::PacketHeaders::from_ethernet_slice(&frame).expect("it is a frame");
    let Some(etherparse::NetHeaders::Ipv4(ip, _)) = parsed.net else { panic!("it is not IPv4") };
    let udp = parsed.transport.and_then(|transport| transport.udp()).expect("it is UDP");
    let expected = udp.calc_checksum_ipv4(&ip, parsed.payload.slice()).expect("it is short enough");
    assert_eq!(udp.checksum, expected);
}

/// Receives the first IPv4 frame on a link of this thread's namespace.
fn catch(link: &str) -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let name = |one: &pnet::datalink::NetworkInterface| one.name == link;
    let interface = pnet::datalink::interfaces().into_iter().find(name).ok_or(io::ErrorKind::NotFound)?;
    let config = pnet::datalink::Config { read_timeout: Some(PATIENCE), ..Default::default() };
    let pnet::datalink::Channel::Ethernet(_, mut frames) = pnet::datalink::channel(&interface, config)?
    else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(frame) = frames.next() {
            if frame.get(12..14) == Some(&[8, 0]) {
                let _ = sender.send(frame.to_vec());
                return;
            }
        }
    });
    Ok(receiver)
}

#[test]
#[ignore = "needs root: make test"]
fn a_pod_comes_and_goes_while_the_cluster_is_up() {
    let lab = two_nodes("apply");
    let mut topology = Topology::build(&lab.0, Layout::ROUTED).expect("the cluster is built");
    let before = lab.namespaces();
    let late = Pod {
        name: "late".to_owned(),
        addresses: vec![IpAddr::from([10, 244, 1, 6])],
        ..lab.0.pods[0].clone()
    };
    topology.add_pod(&late).expect("it is added");
    let (late_netns, api) = (topology.pod(&late), topology.pod(&lab.0.pods[1]));
    assert_eq!(reaches(&api, &late_netns, late.address()), lab.0.pods[1].address());
    assert_eq!(reaches(&late_netns, &topology.world(), lab.0.externals[0].address), late.address());

    let again = topology.add_pod(&late);
    assert!(matches!(again, Err(topology::Error::Netns(netns::Error::Exists { .. }))), "{again:?}");
    assert_eq!(reaches(&api, &late_netns, late.address()), lab.0.pods[1].address(), "and it is still there");

    for _ in 0..2 {
        topology.remove_pod("default", "late").expect("it is removed");
        assert_eq!(lab.namespaces(), before);
        let mut links = Links::open(&topology.node("n1")).expect("it opens");
        assert!(!links.has(&host_side(&late)).expect("it answers"));
    }
    topology.add_pod(&late).expect("it is added once more");
    assert_eq!(reaches(&api, &late_netns, late.address()), lab.0.pods[1].address());
}

#[test]
#[ignore = "needs root: make test"]
fn where_a_node_cannot_follow_a_service_the_ports_of_the_others_lead_where_they_did() {
    const NODE_PORT: u16 = 32_080;
    let lab = two_nodes("own-ports");
    // The way to Services' addresses outside is another thing that a node may refuse, and none of it here.
    let layout = Layout { own_ports: true, services: false, ..Layout::USERSPACE };
    let mut topology = Topology::build(&lab.0, layout).expect("the cluster is built");
    let mut after = lab.0.clone();
    after.services = vec![Service {
        namespace: "default".to_owned(),
        name: "api".to_owned(),
        addresses: vec![IpAddr::from([10, 96, 0, 10])],
        ports: vec![ServicePort { port: 80, node_port: Some(NODE_PORT), ..ServicePort::default() }],
        ..Service::default()
    }];
    topology.node("n2").delete().expect("it is there");
    topology.change_services(&after).expect_err("a node is gone");
    // What is led into the path is answered by nobody.
    let dialled = SocketAddr::new(lab.0.node("n1").expect("the cluster has it").address(), NODE_PORT);
    let dial = || TcpStream::connect_timeout(&dialled, PATIENCE);
    let error = topology.node("n1").run(dial).expect("it runs").expect_err("nobody listens");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}

#[test]
#[ignore = "needs root: make test"]
fn a_build_that_fails_leaves_nothing_of_its_own_and_all_of_others() {
    let mut lab = two_nodes("fails");
    let other = Netns::of(&lab.0.name, Part::Pod("default", "stray"));
    let other = Netns::create(other.name()).expect("it is made").guarded();
    let built = Topology::build(&lab.0, Layout::HOOKED);
    assert!(matches!(built, Err(topology::Error::Netns(netns::Error::Exists { .. }))), "{built:?}");
    assert_eq!(lab.namespaces(), [other.name()]);
    drop(other);

    lab.0.nodes[1].addresses[0] = IpAddr::from([10, 240, 0, 1]);
    let built = Topology::build(&lab.0, Layout::HOOKED);
    assert!(matches!(built, Err(topology::Error::Gateway { .. })), "{built:?}");
    assert_eq!(lab.namespaces(), [""; 0]);
}

/// The name of the cluster that another test wants this process to build, and to be killed for.
const CLUSTER: &str = "PODPATH_TEST_CLUSTER";

#[test]
#[ignore = "needs root: make test"]
fn a_cluster_is_taken_down_once_and_for_all() {
    let name = std::env::var(CLUSTER).unwrap_or_else(|_| format!("test-{}-down", std::process::id()));
    let lab = named(name);
    let cluster = &lab.0;
    let lock = state::lock(&cluster.name).expect("nobody else has it");
    lock.save(&State::new("routed", Vec::new(), cluster.clone())).expect("it is written");
    Topology::build(cluster, Layout::ROUTED).expect("the cluster is built");

    let busy = state::down(&cluster.name);
    assert!(matches!(busy, Err(state::Error::Busy { .. })), "{busy:?}");
    drop(lock);
    let kept = state::load(&cluster.name).expect("it can be read").expect("there is one");
    assert_eq!(kept.cluster.pods, cluster.pods);
    assert!(state::list().expect("they can be listed").contains(&cluster.name));

    let neighbour = Netns::of(&format!("{}-b", cluster.name), Part::Fabric);
    let neighbour = Netns::create(neighbour.name()).expect("it is made").guarded();
    for _ in 0..2 {
        state::down(&cluster.name).expect("it goes down");
        assert_eq!(lab.namespaces(), [""; 0]);
        assert!(!state::directory(&cluster.name).exists());
        assert!(!state::list().expect("they can be listed").contains(&cluster.name));
    }
    assert!(neighbour.exists(), "a cluster with a name alike is another cluster");
}

#[test]
#[ignore = "needs root: make test"]
fn what_a_killed_build_leaves_is_taken_down() {
    let myself = std::env::current_exe().expect("it runs");
    for namespaces_made in [1, 3, 5, 7] {
        let cluster = format!("test-{}-killed-{namespaces_made}", std::process::id());
        let mut child = Command::new(&myself)
            .args(["--exact", "a_cluster_is_taken_down_once_and_for_all", "--include-ignored"])
            .env(CLUSTER, &cluster)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_until("the namespaces are there, or were", || {
            namespaces(&cluster).len() >= namespaces_made
                || child.try_wait().is_ok_and(|ended| ended.is_some())
        });
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        state::down(&cluster).expect("it goes down");
        assert_eq!(namespaces(&cluster), [""; 0]);
        assert!(!state::directory(&cluster).exists());
        // The other one that the child may have begun.
        state::down(&format!("{cluster}-b")).expect("it goes down");
    }
}

#[test]
#[ignore = "needs root: make test"]
fn namespaces_without_a_state_are_taken_down_and_a_broken_state_is_no_hindrance() {
    let lab = two_nodes("stateless");
    Topology::build(&lab.0, Layout::HOOKED).expect("the cluster is built");
    assert!(state::list().expect("they can be listed").contains(&lab.0.name));
    let directory = state::directory(&lab.0.name);
    std::fs::create_dir_all(&directory).expect("there is room");
    std::fs::write(directory.join("state.json"), "{").expect("there is room");
    state::down(&lab.0.name).expect("it goes down");
    assert_eq!(lab.namespaces(), [""; 0]);
    assert!(!directory.exists());
}

#[test]
#[ignore = "needs root: make test"]
fn processes_of_a_cluster_end_with_it() {
    let lab = two_nodes("processes");
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat starts");
    let lock = state::lock(&lab.0.name).expect("nobody else has it");
    let mut state = State::new("emulator", Vec::new(), lab.0.clone());
    state.processes.push(state::Process::running("cat", child.id()).expect("it runs"));
    lock.save(&state).expect("it is written");
    lock.down().expect("it goes down");
    assert!(!child.wait().expect("it is ours").success());
}

/// A server for the cluster in a thread of this process, and who to ask.
struct Listening {
    client: Client,
    first: listen::Answer,
    thread: Option<std::thread::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Listening {
    fn start(listeners: Vec<Listener>, most_connections: usize) -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        let control = directory.path().join("listen.sock");
        let client = Client::at(&control);
        let (sender, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let ready = |answer: &listen::Answer| sender.send(answer.clone()).map_err(io::Error::other);
            listen::serve(Spec { control, most_connections, listeners, watch: None }, ready)
                .expect("it serves");
        });
        let first = ready.recv_timeout(PATIENCE).expect("it is ready");
        Self { client, first, thread: Some(thread), _directory: directory }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.client.stop().expect("it stops");
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends");
        }
    }
}

/// The two-node cluster, where web declares ports of all protocols and the host outside one.
fn with_ports(name: &str) -> Lab {
    let mut lab = two_nodes(name);
    let port = |port, protocol| ContainerPort { name: None, port, protocol };
    lab.0.pods[0].ports = vec![
        port(80, Protocol::Tcp),
        port(80, Protocol::Tcp),
        port(53, Protocol::Udp),
        port(7, Protocol::Sctp),
    ];
    lab.0.externals[0].ports = vec![port(443, Protocol::Tcp)];
    lab
}

/// A connection from inside a namespace.
fn dial(from: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("it is there")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends a word and takes it back.
fn say(stream: &mut TcpStream) -> io::Result<()> {
    let mut echo = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut echo)?;
    assert_eq!(&echo, b"ping");
    Ok(())
}

#[test]
#[ignore = "needs root: make test"]
fn declared_ports_are_answered_and_all_others_refused() {
    let lab = with_ports("listen");
    let topology = Topology::build(&lab.0, Layout::ROUTED).expect("the cluster is built");
    let listening = Listening::start(listen::declared(&lab.0), 100);
    // TCP and UDP of the pod, TCP outside; SCTP where the kernel speaks it.
    assert_eq!(listening.first.open + listening.first.unsupported.len(), 4, "{:?}", listening.first);
    assert_eq!(listening.first.failed, [""; 0]);
    let (web, api) = (&lab.0.pods[0], topology.pod(&lab.0.pods[1]));

    let mut stream = dial(&api, (web.address(), 80).into()).expect("it is listened on");
    say(&mut stream).expect("it is echoed");
    stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    assert_eq!(stream.read(&mut [0]).expect("its end comes back as well"), 0);
    say(&mut dial(&api, (lab.0.externals[0].address, 443).into()).expect("it is listened on")).expect("echo");
    let refused = dial(&api, (web.address(), 81).into()).expect_err("nobody listens");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

    for port in 1000..1020 {
        let closed = api.run(|| UdpSocket::bind("0.0.0.0:0")).expect("it is there").expect("it opens");
        closed.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        closed.connect((web.address(), port)).expect("there is a route");
        closed.send(b"ping").expect("it is sent");
        let refused = closed.recv(&mut [0]).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "port {port}");
    }

    let datagrams = api.run(|| UdpSocket::bind("0.0.0.0:0")).expect("it is there").expect("it opens");
    datagrams.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    datagrams.send_to(b"ping", (web.address(), 53)).expect("it is sent");
    let mut echo = [0; 8];
    let (length, from) = datagrams.recv_from(&mut echo).expect("it is echoed");
    assert_eq!((&echo[..length], from), (&b"ping"[..], SocketAddr::from((web.address(), 53))));
}

#[test]
#[ignore = "needs root: make test"]
fn listeners_come_and_go_and_take_their_connections_along() {
    let lab = with_ports("live");
    let topology = Topology::build(&lab.0, Layout::ROUTED).expect("the cluster is built");
    let listening = Listening::start(Vec::new(), 100);
    let (world, web) = (topology.world(), topology.pod(&lab.0.pods[0]));
    let address = lab.0.externals[0].address;
    let dns = listen::external(&lab.0, address, Protocol::Tcp, 853);
    for _ in 0..2 {
        let answer = listening.client.add(vec![dns.clone()]).expect("it answers");
        assert_eq!((answer.open, answer.failed.len()), (1, 0), "{answer:?}");
    }
    let mut stream = dial(&web, (address, 853).into()).expect("it is listened on");
    say(&mut stream).expect("it is echoed");
    for _ in 0..2 {
        assert_eq!(listening.client.remove(vec![dns.clone()]).expect("it answers").open, 0);
    }
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "the connection has ended");
    assert!(dial(&web, (address, 853).into()).is_err(), "and nobody listens any more");

    let nowhere = Listener { netns: "podpath-none-fabric".to_owned(), ..dns.clone() };
    let answer = listening.client.add(vec![nowhere, dns]).expect("it answers");
    assert_eq!((answer.open, answer.failed.len()), (1, 1), "{answer:?}");
    assert!(world.exists());
}

#[test]
#[ignore = "needs root: make test"]
fn more_connections_than_there_is_room_for_wait_for_their_turn() {
    let lab = with_ports("room");
    let topology = Topology::build(&lab.0, Layout::ROUTED).expect("the cluster is built");
    let _listening = Listening::start(listen::declared(&lab.0), 2);
    let (api, target) = (topology.pod(&lab.0.pods[1]), SocketAddr::from((lab.0.pods[0].address(), 80)));
    let mut streams: Vec<TcpStream> = (0..5).map(|_| dial(&api, target).expect("it is taken")).collect();
    // Whoever has a turn and goes makes room for the next.
    for stream in &mut streams[..2] {
        say(stream).expect("it has its turn");
    }
    while let Some(mut stream) = (!streams.is_empty()).then(|| streams.remove(0)) {
        say(&mut stream).expect("its turn comes");
    }
}
