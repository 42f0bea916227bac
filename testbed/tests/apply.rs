//! Services of a cluster that is up, asked by real sockets in its namespaces, while `podpath apply` changes them: by
//! way of packets, and of sockets that are led to backends as they connect and send (`socketTranslation`).

mod command;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use command::{Stage, exits, json, kill_agent, podpath, stdout};
use serde_json::Value;
use testbed::netns::{Netns, Part};
use testbed::topology::pod_netns;
use userspace::model::Cluster;

/// Longer than any answer takes here.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than an answer takes, shorter than it is waited for one that must not come.
const SILENCE: Duration = Duration::from_millis(1500);
/// The Service's port, TCP and UDP, and another of it.
const DIALLED: u16 = 80;
const OTHER: u16 = 81;
/// The node port of the first, at every node.
const NODE_PORT: u16 = 30_080;
/// Where the endpoints listen for the first port, and for the other.
const TARGET: u16 = 8080;
const OTHER_TARGET: u16 = 8081;

/// `web` and `near` on the first node, `far` on the second; the last two answer the Services.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec:
  nodeSubnets: [10.240.0.0/16, "fd00:10:240::/64"]
  podCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]
  serviceCIDRs: [10.96.0.0/16, "fd00:10:96::/112"]
  nodes: 2
  services: {socketTranslation: TRANSLATE}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  selector: {app: api}
  ports:
    - {name: tcp, port: 80, targetPort: 8080, nodePort: 30080}
    - {name: udp, port: 80, targetPort: 8080, nodePort: 30080, protocol: UDP}
    - {name: other, port: 81, targetPort: 8081, nodePort: 30081}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  ipFamilyPolicy: RequireDualStack
  clusterIPs: [10.96.0.20, "fd00:10:96::20"]
  sessionAffinity: ClientIP
  selector: {app: api}
  ports: [{port: 80, targetPort: 8080}]
"#;

/// A Service that comes before the others in the order of names.
const EARLIER: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: api}, ports: [{port: 80, targetPort: 8081}]}
"#;

/// Nobody is let in to the endpoints.
const CLOSED: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress]}
"#;

/// A cluster that is up.
struct Lab {
    stage: Stage,
    cluster: Cluster,
}

impl Lab {
    /// Brings it up. `translate`: sockets are led.
    fn up(test: &str, translate: bool) -> Self {
        let stage = Stage::new(test);
        let file = stage.file("cluster.yaml", &CLUSTER.replace("TRANSLATE", &translate.to_string()));
        exits(&podpath(&["up", "-f", file.to_str().expect("UTF-8"), "--dataplane", "ebpf"]), 0);
        let state = testbed::state::load(&stage.name).expect("a state").expect("it is up");
        Self { stage, cluster: state.cluster }
    }

    /// `podpath apply`, or another word.
    fn tell(&self, word: &str, objects: &str) {
        let file = self.stage.file("more.yaml", objects);
        exits(&podpath(&[word, "--cluster", &self.stage.name, "-f", file.to_str().expect("UTF-8")]), 0);
    }

    /// Whether sockets are led from now on.
    fn translate(&self, translate: bool) {
        self.tell("apply", &self.object("kind: Testbed").replace("TRANSLATE", &translate.to_string()));
    }

    /// The object of the cluster whose text holds this, as it was given.
    fn object(&self, holding: &str) -> &'static str {
        CLUSTER.split("---\n").find(|text| text.contains(holding)).expect("it is one of them")
    }

    /// The namespace of a pod, or of a node, and its address of a family.
    fn place(&self, name: &str, v6: bool) -> (Netns, IpAddr) {
        if let Some(node) = self.cluster.node(name) {
            return (Netns::of(&self.stage.name, Part::Node(name)), of_family(&node.addresses, v6));
        }
        let pod = self.cluster.pod(&format!("default/{name}")).expect("the cluster has it");
        (pod_netns(&self.stage.name, pod), of_family(&pod.addresses, v6))
    }

    /// A Service's cluster address of a family, and a port.
    fn service(&self, name: &str, v6: bool, port: u16) -> SocketAddr {
        let service = self.cluster.services.iter().find(|one| one.name == name).expect("the cluster has it");
        SocketAddr::new(of_family(&service.addresses, v6), port)
    }

    fn node_port(&self, node: &str, v6: bool) -> SocketAddr {
        SocketAddr::new(self.place(node, v6).1, NODE_PORT)
    }

    /// Where the pods of the Services listen on a port.
    fn backends(&self, v6: bool, port: u16) -> [SocketAddr; 2] {
        ["near", "far"].map(|pod| SocketAddr::new(self.place(pod, v6).1, port))
    }

    /// A new connection that is answered, and says that it goes where it was dialled.
    fn talk(&self, from: &str, to: SocketAddr) -> TcpStream {
        let connected = self.try_talk(from, to, PATIENCE);
        let mut stream = connected.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        say(&mut stream).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        assert_eq!(stream.peer_addr().expect("it is connected"), to, "what {from} is told");
        stream
    }

    fn try_talk(&self, from: &str, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        inside(&self.place(from, to.is_ipv6()).0, || TcpStream::connect_timeout(&to, patience))
    }

    /// A socket in a namespace that is not connected.
    fn udp(&self, from: &str, v6: bool) -> UdpSocket {
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = inside(&self.place(from, v6).0, || UdpSocket::bind((any, 0))).expect("a port is free");
        socket.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        socket
    }

    /// One that is.
    fn connected(&self, from: &str, to: SocketAddr) -> UdpSocket {
        let socket = self.udp(from, to.is_ipv6());
        socket.connect(to).expect("nobody is asked");
        socket
    }

    /// Whom the kernel's packets of this socket go to, whatever its owner is told: its port is nobody else's in its
    /// namespace.
    fn peer(&self, from: &str, protocol: &str, local: SocketAddr) -> SocketAddr {
        let table = format!("/proc/thread-self/net/{protocol}{}", if local.is_ipv6() { "6" } else { "" });
        let text = inside(&self.place(from, local.is_ipv6()).0, || std::fs::read_to_string(table));
        let text = text.expect("it can be read");
        let ends = text.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            Some((end(fields.next()?)?, end(fields.next()?)?))
        });
        let mut peers = ends.filter(|(own, peer)| own.port() == local.port() && peer.port() != 0);
        peers.next().expect("it is connected").1
    }

    fn peer_of(&self, from: &str, stream: &TcpStream) -> SocketAddr {
        self.peer(from, "tcp", stream.local_addr().expect("it is bound"))
    }

    /// What `get dataplane` says of the first node.
    fn counts(&self) -> Value {
        json(&podpath(&["get", "dataplane", "--cluster", &self.stage.name, "-o", "json"]))["n1"].take()
    }

    /// Sockets of the first node that were led to a backend.
    fn led(&self) -> u64 {
        self.counts()["sockets"]["backend"].as_u64().unwrap_or_default()
    }

    /// Rows that the first node has of flows of a family: one of a flow, and one more where a Service's packets are
    /// translated.
    fn rows(&self, v6: bool) -> u64 {
        let table = if v6 { "conntrack_v6" } else { "conntrack" };
        self.counts()["tables"][table][0].as_u64().expect("rows and room")
    }

    fn down(self) {
        exits(&podpath(&["down", &self.stage.name]), 0);
        assert_eq!(self.stage.namespaces(), Vec::<String>::new());
    }
}

fn of_family(addresses: &[IpAddr], v6: bool) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv6() == v6).expect("both families are there")
}

/// An address and a port as proc_pid_net(5) writes them: words of the machine's order, in hexadecimal.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => Ipv4Addr::from(v4).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> T {
    netns.run(work).unwrap_or_else(|error| panic!("{error}"))
}

/// Says a word, and hears it again.
fn say(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"word")?;
    let mut heard = [0; 4];
    stream.read_exact(&mut heard)?;
    assert_eq!(&heard, b"word");
    Ok(())
}

/// The same over a connected socket.
fn say_by_udp(socket: &UdpSocket) -> io::Result<()> {
    socket.send(b"word")?;
    let mut heard = [0; 8];
    let length = socket.recv(&mut heard)?;
    assert_eq!(&heard[..length], b"word");
    Ok(())
}

/// The same over one that is not: whom the answer came from.
fn say_unconnected(socket: &UdpSocket, to: SocketAddr) -> SocketAddr {
    socket.send_to(b"word", to).unwrap_or_else(|error| panic!("to {to}: {error}"));
    let mut heard = [0; 8];
    let (length, from) = socket.recv_from(&mut heard).unwrap_or_else(|error| panic!("from {to}: {error}"));
    assert_eq!(&heard[..length], b"word");
    from
}

#[test]
#[ignore = "needs root: make test"]
fn sockets_are_led_to_backends_where_the_testbed_says_so_until_it_says_otherwise() {
    let lab = Lab::up("sockets", true);
    for v6 in [false, true] {
        let (before, mut dialled) = ((lab.led(), lab.rows(v6)), 0);
        let mut open = Vec::new();
        for from in ["web", "n1"] {
            let node_ports = ["n1", "n2"].map(|node| (lab.node_port(node, v6), TARGET));
            let first = (lab.service("api", v6, DIALLED), TARGET);
            for (to, target) in node_ports.into_iter().chain([first]) {
                let stream = lab.talk(from, to);
                let peer = lab.peer_of(from, &stream);
                assert!(lab.backends(v6, target).contains(&peer), "{from} to {to}: packets go to {peer}");
                open.push(stream);
                dialled += 1;
            }
        }
        assert_eq!(lab.led(), before.0 + dialled);
        assert_eq!(lab.rows(v6), before.1 + dialled, "a row for a flow: no packet is translated");
        let mut sticky: Vec<_> = (0..16)
            .map(|_| lab.peer_of("web", &lab.talk("web", lab.service("sticky", v6, DIALLED))))
            .collect();
        sticky.dedup();
        assert!(sticky.len() == 1 && lab.backends(v6, TARGET).contains(&sticky[0]), "{sticky:?}");
    }
    let table = podpath(&["get", "dataplane", "--cluster", &lab.stage.name]);
    assert!(stdout(&table).contains("A socket dialled a Service and was led to a backend."), "{table:?}");

    lab.translate(false);
    for v6 in [false, true] {
        let before = (lab.led(), lab.rows(v6));
        let to = [lab.service("api", v6, DIALLED), lab.node_port("n1", v6), lab.node_port("n2", v6)];
        let open = to.map(|to| {
            let stream = lab.talk("web", to);
            assert_eq!(lab.peer_of("web", &stream), to, "packets go where they are sent, and are translated");
            stream
        });
        assert_eq!((lab.led(), lab.rows(v6)), (before.0, before.1 + 2 * open.len() as u64));
    }
    lab.translate(true);
    let stream = lab.talk("web", lab.service("api", false, DIALLED));
    assert!(lab.backends(false, TARGET).contains(&lab.peer_of("web", &stream)));
    lab.down();
}

#[test]
#[ignore = "needs root: make test"]
fn datagrams_of_a_cluster_that_translates_sockets_are_answered_by_whom_they_were_sent_to() {
    let lab = Lab::up("datagrams", true);
    for v6 in [false, true] {
        let (led, rows) = (lab.led(), lab.rows(v6));
        let mut open = Vec::new();
        for to in [lab.service("api", v6, DIALLED), lab.node_port("n2", v6)] {
            let client = lab.connected("web", to);
            say_by_udp(&client).unwrap_or_else(|error| panic!("web to {to}: {error}"));
            assert_eq!(client.peer_addr().expect("it is connected"), to);
            let peer = lab.peer("web", "udp", client.local_addr().expect("it is bound"));
            assert!(lab.backends(v6, TARGET).contains(&peer), "to {to}: packets go to {peer}");
            let free = lab.udp("web", v6);
            (0..4).for_each(|_| assert_eq!(say_unconnected(&free, to), to));
            open.extend([client, free]);
        }
        assert!(lab.led() >= led + open.len() as u64);
        assert_eq!(lab.rows(v6), rows + open.len() as u64, "a row for a flow: no packet is translated");
        // One that is not connected may talk to several, and to a backend by its own name.
        let free = lab.udp("web", v6);
        let service = lab.service("api", v6, DIALLED);
        for to in [service, lab.backends(v6, TARGET)[1], service, lab.node_port("n1", v6)] {
            assert_eq!(say_unconnected(&free, to), to);
        }
    }
    lab.down();
}

#[test]
#[ignore = "needs root: make test"]
fn each_port_of_a_service_leads_to_its_own_and_policies_judge_who_was_led() {
    let lab = Lab::up("ports", true);
    for v6 in [false, true] {
        let stream = lab.talk("web", lab.service("api", v6, OTHER));
        let peer = lab.peer_of("web", &stream);
        assert!(lab.backends(v6, OTHER_TARGET).contains(&peer), "{peer}");
    }
    let explained =
        podpath(&["explain", "--cluster", &lab.stage.name, "default/web", "svc:default/api:81/tcp"]);
    exits(&explained, 0);
    let walk = stdout(&explained);
    assert!(walk.starts_with("socket         10.96.0.10:81 -> 10.244."), "{explained:?}");
    assert!(walk.contains("2 of 2 endpoints may answer: by the flow's hash"), "{walk}");
    assert!(!walk.contains("\nservice ") && walk.contains("\nto_pod         default/web "), "{walk}");

    lab.tell("apply", CLOSED);
    for v6 in [false, true] {
        let refused =
            lab.try_talk("web", lab.service("api", v6, DIALLED), SILENCE).expect_err("nobody is let in");
        assert_eq!(refused.kind(), ErrorKind::TimedOut, "{refused}");
    }
    let denied = podpath(&["explain", "--cluster", &lab.stage.name, "default/web", "svc:default/api:81/tcp"]);
    exits(&denied, 0);
    let walk = stdout(&denied);
    assert!(walk.starts_with("socket ") && walk.contains("isolated by default/closed"), "{walk}");
    assert!(walk.contains("drop           policy-denied"), "{walk}");
    lab.tell("delete", CLOSED);
    lab.talk("web", lab.service("api", false, DIALLED));
    lab.down();
}

#[test]
#[ignore = "needs root: make test"]
fn a_client_by_udp_stays_when_an_agent_is_replaced_and_is_told_when_its_backend_goes() {
    let lab = Lab::up("pinned", true);
    let service = lab.service("api", false, DIALLED);
    let client = lab.connected("web", service);
    say_by_udp(&client).expect("it is answered");
    // A plan that knew nothing of the one before would give this Service the numbers of the other's backends.
    lab.tell("apply", EARLIER);
    kill_agent(&lab.stage.name, "n1");
    lab.tell("apply", &EARLIER.replace("8081", "8082"));
    say_by_udp(&client).expect("its backend is who it was");
    kill_agent(&lab.stage.name, "n1");
    lab.tell("delete", EARLIER);
    say_by_udp(&client).expect("its backend is who it was");

    for v6 in [false, true] {
        let service = lab.service("api", v6, DIALLED);
        let client = lab.connected("web", service);
        say_by_udp(&client).expect("it is answered");
        let local = client.local_addr().expect("it is bound");
        let backend = lab.peer("web", "udp", local);
        let [near, _] = lab.backends(v6, TARGET);
        let pod = if backend == near { "name: near" } else { "name: far" };
        // Out of the Service, and back again.
        lab.tell("apply", &lab.object(pod).replace("{app: api}", "{app: nobody}"));
        let told = client.recv(&mut [0; 8]).expect_err("its backend is gone");
        assert_eq!(told.kind(), ErrorKind::ConnectionAborted, "{told}");
        client.connect(service).expect("nobody is asked");
        say_by_udp(&client).expect("it is answered again");
        assert_ne!(lab.peer("web", "udp", client.local_addr().expect("it is bound")), backend);
        lab.tell("apply", lab.object(pod));
    }
    lab.down();
}

#[test]
#[ignore = "needs root: make test"]
fn a_pod_with_address_and_port_of_one_that_is_gone_is_answered_by_whom_it_dials() {
    let mut lab = Lab::up("reused", false);
    let [v4, v6] = [false, true].map(|v6| lab.place("web", v6).1);
    const PORT: u16 = 20_000;
    for (own, v6) in [(v4, false), (v6, true)] {
        let to = lab.service("api", v6, DIALLED);
        let client = inside(&lab.place("web", v6).0, || UdpSocket::bind((own, PORT))).expect("it is free");
        client.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        assert_eq!(say_unconnected(&client, to), to);
    }
    let web = lab.object("name: web");
    lab.tell("delete", web);
    let status = format!("status: {{podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n");
    lab.tell("apply", &(web.replace("name: web,", "name: late,") + &status));
    lab.cluster = testbed::state::load(&lab.stage.name).expect("a state").expect("it is up").cluster;
    for (own, v6) in [(v4, false), (v6, true)] {
        let client = inside(&lab.place("late", v6).0, || UdpSocket::bind((own, PORT))).expect("it is free");
        client.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        // One of them answered the other pod under the Service's name.
        for to in lab.backends(v6, TARGET).into_iter().chain([lab.service("api", v6, DIALLED)]) {
            (0..2).for_each(|_| assert_eq!(say_unconnected(&client, to), to));
        }
    }
    lab.down();
}

/// One whose nodes are asked whether they have endpoints of it.
const ASKED: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: asked}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 31000
  selector: {app: asked}
  ports: [{port: 80, targetPort: 8080}]
"#;

#[test]
#[ignore = "needs root: make test"]
fn a_health_check_node_port_says_how_many_endpoints_its_node_has() {
    let lab = Lab::up("health", false);
    lab.tell("apply", ASKED);
    let asks = |node: &str| -> (String, Value) {
        let to = SocketAddr::new(lab.place(node, false).1, 31_000);
        let connected = lab.try_talk("web", to, PATIENCE);
        let mut stream = connected.unwrap_or_else(|error| panic!("to {to}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").expect("it listens");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers, and ends");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        let status = head.lines().next().expect("a status").to_owned();
        (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}")))
    };
    let is = |node: &str, endpoints: u64| {
        let (status, said) = asks(node);
        let word = if endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
        assert_eq!(status, format!("HTTP/1.1 {word}"), "{node}");
        assert_eq!(said["localEndpoints"], endpoints, "{node}");
        let service = serde_json::json!({"namespace": "default", "name": "asked"});
        assert_eq!((&said["service"], &said["serviceProxyHealthy"]), (&service, &true.into()), "{node}");
    };
    ["n1", "n2"].iter().for_each(|node| is(node, 0));
    lab.tell("apply", &lab.object("metadata: {name: far").replace("{app: api}", "{app: asked}"));
    is("n1", 0);
    is("n2", 1);
    lab.tell("apply", lab.object("metadata: {name: far"));
    is("n2", 0);
    lab.down();
}

/// Says that it is over when it is dropped, whatever fails: who asks until then is waited for.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_pod_that_terminates_keeps_its_connections_and_no_request_is_lost() {
    let lab = Lab::up("drain", false);
    let service = lab.service("api", false, DIALLED);
    let mut all: Vec<_> = (0..32).map(|_| lab.talk("web", service)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let ending = Ending(&over);
        let requests = scope.spawn(|| {
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                drop(lab.talk("web", service));
                answered += 1;
            }
            answered
        });
        let near = lab.object("metadata: {name: near");
        let leaving =
            near.replace("{name: near,", "{name: near, deletionTimestamp: \"2026-01-01T00:00:00Z\",");
        lab.tell("apply", &leaving);
        all.iter_mut().try_for_each(say).expect("a connection goes on while its pod terminates");
        all.clear();
        lab.tell("delete", near);
        (0..32).for_each(|_| drop(lab.talk("web", service)));
        drop(ending);
        let answered = requests.join().expect("every request is answered");
        assert!(answered > 0, "somebody asked all the while");
    });
    lab.down();
}
