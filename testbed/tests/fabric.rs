//! The emulated fabric between real namespaces: sockets of pods, nodes and the world over links that lose,
//! delay and deny. Nothing here depends on how fast the machine is.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use serde_json::Value;
use testbed::dataplane::{Name, Up};
use testbed::netns::{Netns, Part};
use userspace::fabric::{Loss, Report};
use userspace::model::{self, Cluster, Direction, FabricKind, LinkQuality, NextHop, SecurityRule, UserRoute};

const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {fabric: {kind: emulator}}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7, ports: [{port: 80}]}
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
metadata: {name: web}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.1.5}
---
apiVersion: v1
kind: Pod
metadata: {name: api}
spec: {nodeName: n2, containers: [{name: c, image: i, ports: [{containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.244.2.7}
"#;

const API: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 7);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 5);
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(20, 0, 0, 1);

/// Longer than any answer takes here, a lost first packet included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Shorter than that: how long what must not arrive is waited for.
const REFUSED: Duration = Duration::from_millis(700);

fn cluster(name: &str) -> Cluster {
    let name = format!("test-{}-{name}", std::process::id());
    let cluster = model::load_text("fabric.yaml", &CLUSTER.replace("NAME", &name));
    let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(cluster.settings.fabric.kind, FabricKind::Emulator);
    cluster
}

/// A cluster on plain kernel routing, so that what is seen is the fabric's doing.
fn up(name: &str, change: impl FnOnce(&mut Cluster)) -> Up {
    let mut cluster = cluster(name);
    change(&mut cluster);
    Up::new(&cluster, Name::Routed).unwrap_or_else(|error| panic!("{error}"))
}

fn report(up: &Up) -> Report {
    up.fabric().expect("it is emulated").report().expect("it counts")
}

fn set(up: &Up, links: &[LinkQuality]) {
    let fabric = up.fabric().expect("it is emulated").emulated("change a link of", "it");
    fabric.expect("it is emulated").set_links(links).expect("there is such a link");
}

fn quality(link: &str, change: impl FnOnce(&mut LinkQuality)) -> LinkQuality {
    let mut quality = LinkQuality { link: link.to_owned(), ..LinkQuality::default() };
    change(&mut quality);
    quality
}

fn pod(up: &Up, name: &str) -> Netns {
    let topology = up.topology();
    topology.pod(topology.cluster().pods.iter().find(|pod| pod.name == name).expect("the cluster has it"))
}

fn listen(netns: &Netns, port: u16) -> TcpListener {
    let listener = netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).expect("it runs");
    let listener = listener.expect("the port is free");
    // It holds for accept(2) as well (socket(7)).
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0))
        .expect("it can");
    listener
}

fn dial(netns: &Netns, to: (Ipv4Addr, u16), patience: Duration) -> std::io::Result<TcpStream> {
    netns.run(|| TcpStream::connect_timeout(&SocketAddr::from(to), patience)).expect("it runs")
}

/// Both ends of a new connection.
fn connected(client: &Netns, to: (Ipv4Addr, u16), listener: &TcpListener) -> (TcpStream, TcpStream) {
    let there = dial(client, to, PATIENCE).unwrap_or_else(|error| panic!("{to:?}: {error}"));
    let (here, _) = listener.accept().expect("it was dialled");
    for stream in [&there, &here] {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
    }
    (there, here)
}

/// Asserts that so many bytes arrive as they were sent.
fn carries(client: &Netns, server: &Netns, to: (Ipv4Addr, u16), bytes: usize) {
    let listener = listen(server, to.1);
    let (mut there, mut here) = connected(client, to, &listener);
    let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    let copy = sent.clone();
    let sending = thread::spawn(move || there.write_all(&copy).map(|()| there));
    let mut received = vec![0; bytes];
    here.read_exact(&mut received).unwrap_or_else(|error| panic!("{to:?}: {error}"));
    assert!(received == sent, "what arrives is what was sent");
    sending.join().expect("no panic").expect("all of it was sent");
}

fn udp(netns: &Netns, address: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind(address)).expect("it runs").expect("the port is free");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
    socket
}

/// Sends numbered datagrams from a node to the world, and gives the numbers that arrived when none of them was under
/// way any more.
fn datagrams(up: &Up, count: u32) -> Vec<u32> {
    let (node, world) = (up.topology().node("n1"), up.topology().world());
    let (sender, receiver) = (udp(&node, (NODE, 0)), udp(&world, (WORLD, 0)));
    let to = receiver.local_addr().expect("it is bound");
    receiver.set_read_timeout(Some(REFUSED)).expect("a time is no zero");
    // All of them come before anybody reads.
    setsockopt(&receiver, sockopt::RcvBufForce, &(8 << 20)).expect("root may");
    let before = report(up).arrived;
    for number in 0..count {
        sender.send_to(&number.to_be_bytes(), to).expect("the first hop takes it");
        thread::yield_now();
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = report(up);
        if now.arrived >= before + u64::from(count) && now.under_way == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "some are still under way: {now:?}");
        thread::yield_now();
    }
    let (mut numbers, mut buffer) = (Vec::new(), [0; 4]);
    while let Ok(4) = receiver.recv(&mut buffer) {
        numbers.push(u32::from_be_bytes(buffer));
    }
    numbers
}

/// Pods, nodes and the world meet, and the fabric finds nothing wrong with what the dataplane sends.
fn all_meet_on(name: Name) {
    let up = Up::new(&cluster(&format!("meet-{name}")), name).unwrap_or_else(|error| panic!("{error}"));
    let topology = up.topology();
    let (web, world) = (pod(&up, "web"), topology.world());
    carries(&web, &pod(&up, "api"), (API, 8080), 300_000);
    carries(&web, &world, (WORLD, 8080), 300_000);
    carries(&topology.node("n1"), &topology.node("n2"), (OTHER, 8081), 1000);
    carries(&world, &pod(&up, "api"), (API, 8082), 1000);
    let report = report(&up);
    assert!(report.departed > 300, "frames of an MTU: {report:?}");
    for loss in [Loss::Spoofed, Loss::Unreadable, Loss::TooBig, Loss::NoRoute, Loss::NoNeighbour] {
        assert_eq!(report.lost.get(loss.slug()), None, "{name}: {report:?}");
    }
    up.down().expect("it goes");
}

#[test]
#[ignore = "needs root: make test"]
fn sockets_meet_over_the_emulated_fabric_on_routed() {
    all_meet_on(Name::Routed);
}

#[test]
#[ignore = "needs root: make test"]
fn sockets_meet_over_the_emulated_fabric_on_the_emulator() {
    all_meet_on(Name::Emulator);
}

#[test]
#[ignore = "needs root: make test"]
fn sockets_meet_over_the_emulated_fabric_on_ebpf() {
    all_meet_on(Name::Ebpf);
}

#[test]
#[ignore = "needs root: make test"]
fn a_lossy_link_loses_what_it_says_and_nothing_else_is_lost() {
    let up = up("loss", |_| {});
    let count = 1000;
    assert_eq!(datagrams(&up, count), (0..count).collect::<Vec<_>>(), "a perfect link");
    set(&up, &[quality("ext:world", |link| link.loss_ppm = 300_000)]);
    let arrived = datagrams(&up, count);
    let link = report(&up).links.remove(0);
    assert_eq!(link.passed_out, arrived.len() as u64);
    assert_eq!(link.passed_out + link.lost, u64::from(count));
    assert!((600..800).contains(&arrived.len()), "about 700 of {count}: {}", arrived.len());
    assert!(arrived.is_sorted(), "loss does not change the order");
    up.down().expect("it goes");
}

#[test]
#[ignore = "needs root: make test"]
fn frames_overtake_and_come_twice_where_a_link_is_told_so() {
    let up = up("order", |_| {});
    set(
        &up,
        &[quality("node:n1", |link| {
            (link.delay_ns, link.reorder_ppm, link.duplicate_ppm) = (20_000_000, 100_000, 100_000);
        })],
    );
    let before = report(&up);
    let arrived = datagrams(&up, 1000);
    let after = report(&up);
    let distinct: BTreeSet<u32> = arrived.iter().copied().collect();
    assert_eq!(distinct.len(), 1000, "none is lost");
    assert_eq!(arrived.len() as u64, after.departed - before.departed);
    // What a node says on its own (multicast) may be doubled as well, and ends at the link.
    let ended = |report: &Report| report.lost.get(Loss::EndsHere.slug()).copied().unwrap_or(0);
    let came = |report: &Report| report.arrived + report.duplicated - report.under_way;
    let lost = ended(&after) - ended(&before);
    assert_eq!(came(&after) - came(&before), arrived.len() as u64 + lost, "{after:?}");
    assert!(after.duplicated - before.duplicated >= arrived.len() as u64 - 1000);
    assert!((1050..1150).contains(&arrived.len()), "about 1100: {}", arrived.len());
    assert!(!arrived.is_sorted(), "some overtake");
    // What was not delayed is early: it stands before some smaller number.
    let late = |at: usize| arrived[at + 1..].iter().any(|number| *number < arrived[at]);
    assert!((0..arrived.len()).filter(|at| late(*at)).count() > 50);
    // A stream is whole all the same.
    carries(&up.topology().node("n1"), &up.topology().world(), (WORLD, 8080), 100_000);
    up.down().expect("it goes");
}

#[test]
#[ignore = "needs root: make test"]
fn a_security_rule_denies_a_real_connection_and_replies_pass() {
    let up = up("deny", |cluster| {
        cluster.settings.fabric.security_rules = vec![SecurityRule {
            name: "allow-80".to_owned(),
            priority: 100,
            direction: Direction::Inbound,
            allow: true,
            protocol: Some(6),
            sources: Vec::new(),
            source_ports: Vec::new(),
            targets: Vec::new(),
            target_ports: vec![(80, 80)],
        }];
    });
    let (node, world) = (up.topology().node("n1"), up.topology().world());
    let (open, closed) = (listen(&node, 80), listen(&node, 81));
    connected(&world, (NODE, 80), &open);
    let refused = dial(&world, (NODE, 81), REFUSED).expect_err("the default rules deny it");
    assert_eq!(refused.kind(), ErrorKind::TimedOut);
    drop(closed);
    carries(&node, &world, (WORLD, 8080), 10_000);
    carries(&node, &up.topology().node("n2"), (OTHER, 81), 1000);
    let report = report(&up);
    assert!(report.lost[Loss::SecurityDenied.slug()] >= 1, "{report:?}");
    let hits = |name: &str| report.rules.iter().find(|rule| rule.name == name).map(|rule| rule.hits);
    assert_eq!(hits("allow-80"), Some(1));
    assert!(hits("DenyAllInBound") >= Some(1), "{report:?}");
    up.down().expect("it goes");
}

#[test]
#[ignore = "needs root: make test"]
fn an_appliance_passes_on_what_a_route_leads_to_it() {
    let up = up("appliance", |cluster| {
        cluster.settings.fabric.routes = vec![UserRoute {
            name: "firewall".to_owned(),
            prefix: "0.0.0.0/0".parse().expect("a range"),
            next_hop: NextHop::VirtualAppliance(OTHER.into()),
        }];
    });
    // A link that is perfect, and said to be, is counted.
    set(&up, &[quality("node:n2", |_| {})]);
    let (node, world) = (up.topology().node("n1"), up.topology().world());
    carries(&node, &world, (WORLD, 8080), 50_000);
    let link = report(&up).links.remove(0);
    assert!(link.passed_out >= 35 && link.passed_in >= 35, "all of it goes by way of n2: {link:?}");
    up.down().expect("it goes");
}

#[test]
#[ignore = "needs root: make test"]
fn the_ports_of_the_outbound_rule_run_out_and_the_report_says_towards_whom() {
    let up = up("snat", |cluster| {
        let balancer = &mut cluster.settings.load_balancer;
        (balancer.outbound, balancer.snat_ports_per_node) = (Some(PUBLIC.into()), 8);
    });
    let (node, world) = (up.topology().node("n1"), up.topology().world());
    let (first, second) = (listen(&world, 80), listen(&world, 81));
    let open: Vec<_> = (0..8).map(|_| connected(&node, (WORLD, 80), &first)).collect();
    let seen: BTreeSet<SocketAddr> =
        open.iter().map(|(_, here)| here.peer_addr().expect("it is connected")).collect();
    assert!(seen.iter().all(|peer| peer.ip() == IpAddr::V4(PUBLIC) && (1024..1032).contains(&peer.port())));
    assert_eq!(seen.len(), 8);
    let ninth = dial(&node, (WORLD, 80), REFUSED).expect_err("there is no ninth port");
    assert_eq!(ninth.kind(), ErrorKind::TimedOut);
    let mut other = connected(&node, (WORLD, 81), &second);
    other.0.write_all(b"ping").expect("it is open");
    other.1.read_exact(&mut [0; 4]).expect("another destination has ports of its own");
    let report = report(&up);
    let snat = &report.snat.as_ref().expect("there is a rule").nodes[0];
    assert!(snat.exhausted >= 1 && snat.flows == 9, "{snat:?}");
    let top = &snat.destinations[0];
    assert_eq!((top.remote, top.used), (SocketAddr::from((WORLD, 80)), 8));
    assert_eq!(report.lost[Loss::SnatPortsExhausted.slug()], snat.exhausted);
    // An error about a translated datagram reaches the socket that sent it.
    let socket = udp(&node, (NODE, 0));
    socket.connect((WORLD, 9)).expect("a socket can be");
    socket.send(b"anybody?").expect("the first hop takes it");
    let refused = socket.recv(&mut [0; 8]).expect_err("nobody listens there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    up.down().expect("it goes");
}

/// A cluster that is up by the command line, taken down whatever happens.
struct Stage {
    directory: tempfile::TempDir,
    name: String,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = podpath(&["down", &self.name]);
    }
}

impl Stage {
    fn new(test: &str) -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        Self { directory, name: format!("test-{}-{test}", std::process::id()) }
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.directory.path().join("cluster.yaml");
        std::fs::write(&path, text.replace("NAME", &self.name)).expect("there is room");
        path
    }

    /// Runs a command on this cluster.
    fn run(&self, arguments: &[&str]) -> Output {
        podpath(&[arguments, &["--cluster", &self.name]].concat())
    }

    /// The fabric's report.
    fn report(&self) -> Value {
        let shown = self.run(&["get", "fabric", "-o", "json"]);
        succeeded(&shown);
        serde_json::from_slice(&shown.stdout).expect("it is JSON")
    }
}

fn podpath(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podpath"));
    command.args(arguments).stdin(Stdio::null()).output().expect("it was built")
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs root: make test"]
fn links_of_a_cluster_that_is_up_are_changed_by_command_and_the_fabric_ends_with_it() {
    let stage = Stage::new("link");
    let file = stage.file(CLUSTER);
    let file = file.to_str().expect("it is UTF-8");
    succeeded(&podpath(&["up", "-f", file, "--dataplane", "routed"]));
    let web = Netns::of(&stage.name, Part::Pod("default", "web"));
    let reached = |patience| dial(&web, (API, 8080), patience).is_ok();
    assert!(reached(PATIENCE));
    succeeded(&stage.run(&["link", "node:n2", "--loss", "100%"]));
    assert!(!reached(REFUSED));
    let lost = stage.report()["lost"]["link-loss"].as_u64();
    assert!(lost >= Some(1), "{lost:?}");
    // An apply that says nothing of links leaves them alone.
    succeeded(&stage.run(&["apply", "-f", file]));
    assert_eq!(stage.report()["links"][0]["quality"]["loss_ppm"], 1_000_000);
    succeeded(&stage.run(&["link", "node:n2", "--perfect"]));
    assert!(reached(PATIENCE));
    let table = stage.run(&["get", "fabric"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(Loss::LinkLoss.sentence()), "{table}");
    for (arguments, why) in [
        (&["link", "node:n9", "--loss", "1%"][..], "cannot find link \"node:n9\""),
        (&["link", "node:n2", "--loss", "many"], "must be a percentage"),
        (&["link", "node:n2"], "required"),
        (&["link", "node:n2", "--delay", "1ms", "--jitter", "2ms"], "--jitter is more than --delay"),
    ] {
        let refused = stage.run(arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(why), "{said}");
    }
    // A fabric that was ended is started again by the next apply.
    kill_fabric(&stage);
    assert!(!reached(REFUSED));
    succeeded(&stage.run(&["apply", "-f", file]));
    assert!(reached(PATIENCE));
    // A rule of the Testbed can change while the cluster is up.
    let denying = CLUSTER.replace(
        "{kind: emulator}",
        "{kind: emulator, securityRules: [{name: deny, priority: 100, direction: Inbound, access: Deny}]}",
    );
    let denying = stage.file(&denying);
    succeeded(&stage.run(&["apply", "-f", denying.to_str().expect("it is UTF-8")]));
    assert!(!reached(REFUSED));
    let log = PathBuf::from(format!("/run/podpath/{}/fabric.log", stage.name));
    assert!(log.exists());
    succeeded(&podpath(&["down", &stage.name]));
    assert!(!log.exists());
    let left: Vec<_> = Netns::list("podpath-").expect("they can be listed");
    assert!(left.iter().all(|netns| netns.cluster() != Some(&stage.name)), "{left:?}");
}

/// A load balancer before `api`, which asks nodes each second whether they have an endpoint.
const BALANCED: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  clusterIP: 10.96.0.10
  selector: {app: api}
  ports: [{port: 80, targetPort: 8080}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.1}]}}
"#;

#[test]
#[ignore = "needs root: make test"]
fn explain_and_get_show_what_the_load_balancer_of_a_cluster_that_is_up_does() {
    let stage = Stage::new("balanced");
    let labelled = CLUSTER
        .replace("metadata: {name: api}", "metadata: {name: api, labels: {app: api}}")
        .replace("{kind: emulator}", "{kind: emulator}, loadBalancer: {probeInterval: 1s}");
    let file = stage.file(&(labelled.clone() + BALANCED));
    succeeded(&podpath(&["up", "-f", file.to_str().expect("it is UTF-8")]));
    waits_for(&stage, ["unhealthy", "healthy"]);
    let explain = || {
        let explained = stage.run(&["explain", "ext:world", "svc:default/api@lb"]);
        succeeded(&explained);
        String::from_utf8_lossy(&explained.stdout).into_owned()
    };
    let walk = explain();
    let hop = "fabric         load balancer 198.51.100.1 -> node n2\nfrom_underlay  n2\n";
    assert!(
        walk.starts_with(hop) && walk.contains("service        198.51.100.1:80 -> 10.244.2.7:8080"),
        "{walk}"
    );
    // Its endpoint is gone.
    let file = stage.file(&(labelled + &BALANCED.replace("{app: api}", "{app: nobody}")));
    succeeded(&stage.run(&["apply", "-f", file.to_str().expect("it is UTF-8")]));
    waits_for(&stage, ["unhealthy", "unhealthy"]);
    let walk = explain();
    assert_eq!(
        walk.trim_end(),
        format!("fabric         no-healthy-node: {}", Loss::NoHealthyNode.sentence())
    );
    let shown = stage.run(&["get", "fabric"]);
    let table = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(table.contains("LOAD BALANCER") && table.contains("198.51.100.1:80/tcp"), "{table}");
    let balancer = &stage.report()["balancer"];
    let count = |name: &str| balancer[name].as_u64().expect("a number");
    let lost = balancer["lost"]["no-healthy-node"].as_u64().expect("it happened");
    assert!(count("sent") > 0 && count("arrived") == count("sent") + lost, "{balancer}");
}

#[test]
#[ignore = "needs root: make test"]
fn a_cluster_on_a_bridge_says_that_it_has_no_links_to_change() {
    let stage = Stage::new("bridge");
    let file = stage.file(&CLUSTER.replace("emulator", "bridge"));
    succeeded(&podpath(&["up", "-f", file.to_str().expect("it is UTF-8"), "--dataplane", "routed"]));
    for arguments in [&["link", "node:n1", "--loss", "1%"][..], &["get", "fabric"]] {
        let refused = stage.run(arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("the kernel's bridge") && said.contains("kind: emulator"), "{said}");
    }
}

/// How long is waited for nodes to become what probes say of them.
fn waits_for(stage: &Stage, states: [&str; 2]) {
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        let nodes = stage.report()["frontends"][0]["nodes"].clone();
        if nodes[0]["state"] == states[0] && nodes[1]["state"] == states[1] {
            return;
        }
        assert!(Instant::now() < deadline, "{states:?} never came: {nodes}");
        thread::park_timeout(Duration::from_millis(100));
    }
}

/// Kills the process of the fabric, or of the load balancer beside a bridge, and waits until it has ended.
fn kill_fabric(stage: &Stage) {
    let state = testbed::state::load(&stage.name).expect("a state").expect("the cluster is up");
    let fabric = state.processes.iter().rfind(|process| process.role == "fabric").expect("it was noted");
    let pid = Pid::from_raw(i32::try_from(fabric.pid).expect("a process's number"));
    kill(pid, Signal::SIGKILL).expect("it runs");
    let deadline = Instant::now() + PATIENCE;
    while fabric.runs() {
        assert!(Instant::now() < deadline, "it was killed");
        thread::yield_now();
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_bridge_has_a_load_balancer_from_its_first_frontend_on_and_none_on_plain_routing() {
    let stage = Stage::new("beside");
    let plain = CLUSTER
        .replace("metadata: {name: api}", "metadata: {name: api, labels: {app: api}}")
        .replace("fabric: {kind: emulator}", "loadBalancer: {probeInterval: 1s}");
    let with = |text: &str| stage.file(&(plain.clone() + text)).to_str().expect("it is UTF-8").to_owned();
    let own = Netns::of(&stage.name, Part::Balancer);
    let has_none = || {
        let refused = stage.run(&["get", "fabric"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!own.exists() && refused.status.code() == Some(2), "{said}");
        assert!(said.contains("the kernel's bridge"), "{said}");
    };
    succeeded(&podpath(&["up", "-f", &with(BALANCED), "--dataplane", "routed"]));
    has_none();
    succeeded(&podpath(&["down", &stage.name]));
    succeeded(&podpath(&["up", "-f", &with("")]));
    has_none();
    succeeded(&stage.run(&["apply", "-f", &with(BALANCED)]));
    waits_for(&stage, ["unhealthy", "healthy"]);
    let world = Netns::of(&stage.name, Part::World);
    let reached = |patience| dial(&world, (Ipv4Addr::new(198, 51, 100, 1), 80), patience).is_ok();
    assert!(reached(PATIENCE));
    let refused = stage.run(&["link", "node:n1", "--loss", "1%"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("kind: emulator"), "{said}");
    // Its program ends with its process, which takes the kernel a moment.
    kill_fabric(&stage);
    let deadline = Instant::now() + PATIENCE;
    while reached(REFUSED) {
        assert!(Instant::now() < deadline, "somebody still carries packets");
    }
    succeeded(&stage.run(&["apply", "-f", &with(BALANCED)]));
    waits_for(&stage, ["unhealthy", "healthy"]);
    assert!(reached(PATIENCE));
    // Its endpoint is gone.
    succeeded(&stage.run(&["apply", "-f", &with(&BALANCED.replace("{app: api}", "{app: nobody}"))]));
    waits_for(&stage, ["unhealthy", "unhealthy"]);
    assert!(!reached(REFUSED));
    let shown = stage.run(&["get", "fabric"]);
    let table = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(table.starts_with("LOAD BALANCER") && table.contains(Loss::NoHealthyNode.sentence()), "{table}");
    let balancer = &stage.report()["balancer"];
    let count = |name: &str| balancer[name].as_u64().expect("a number");
    let lost = balancer["lost"]["no-healthy-node"].as_u64().expect("it happened");
    assert!(count("sent") > 0 && count("arrived") == count("sent") + lost, "{balancer}");
    // The last frontend goes; and then all of it.
    let last = stage.file(BALANCED);
    succeeded(&stage.run(&["delete", "-f", last.to_str().expect("it is UTF-8")]));
    assert_eq!(stage.report()["frontends"], Value::Array(Vec::new()));
    succeeded(&podpath(&["down", &stage.name]));
    assert!(!own.exists());
}

/// Two nodes without IPv4, and a Service behind a frontend. Probes come as seldom as they do by themselves: on a busy
/// machine an answer within a second may be missed, and then nobody is given flows.
const SIX: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec:
  nodes: 2
  nodeSubnets: ["fd00:10:240::/64"]
  podCIDRs: ["fd00:10:244::/48"]
  serviceCIDRs: ["fd00:10:96::/112"]
  fabric: {kind: KIND}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: "2001:db8::7"}
---
apiVersion: v1
kind: Pod
metadata: {name: api, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, image: i, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  type: LoadBalancer
  selector: {app: api}
  ports: [{port: 80, targetPort: 8080}]
"#;

#[test]
#[ignore = "needs root: make test"]
fn nodes_that_have_ipv6_only_answer_probes_and_are_given_flows() {
    for kind in ["bridge", "emulator"] {
        let stage = Stage::new(&format!("six-{kind}"));
        let file = stage.file(&SIX.replace("KIND", kind));
        succeeded(&podpath(&["up", "-f", file.to_str().expect("it is UTF-8")]));
        waits_for(&stage, ["healthy", "healthy"]);
        let checked = stage.run(&["check"]);
        let table = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success() && table.contains("svc:default/api@lb"), "{kind}: {table}");
        assert!(stage.report()["balancer"]["sent"].as_u64() > Some(0), "{kind}");
    }
}
