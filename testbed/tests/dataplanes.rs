//! Dataplanes between real namespaces: sockets of pods, nodes and the world.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use testbed::dataplane::{Name, Up};
use testbed::netns::Netns;
use testbed::traffic::{self, End, Ends, Limits, Requests, Transport};
use userspace::model::{self, Cluster};

const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7}
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
spec: {nodeName: n2, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
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
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-takes-api, namespace: default}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]
"#;

const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const API: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 7);
const DB: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 8);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// Longer than any answer takes here, a lost first packet included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shorter than that: how long what must not arrive is waited for.
const REFUSED: Duration = Duration::from_millis(700);

fn cluster(name: &str) -> Cluster {
    let name = format!("test-{}-{name}", std::process::id());
    let text = CLUSTER.replace("NAME", &name);
    model::load_text("chains.yaml", &text).unwrap_or_else(|error| panic!("{error}"))
}

fn up(name: &str, dataplane: Name) -> Up {
    Up::new(&cluster(name), dataplane).unwrap_or_else(|error| panic!("{dataplane}: {error}"))
}

/// The namespace of the pod with this name.
fn pod(up: &Up, name: &str) -> Netns {
    let topology = up.topology();
    let pod = topology.cluster().pods.iter().find(|pod| pod.name == name).expect("the cluster has it");
    topology.pod(pod)
}

/// One TCP request and its answer, or none; who the server saw.
fn asked(client: &Netns, server: &Netns, dialled: (Ipv4Addr, u16), port: u16) -> Option<SocketAddr> {
    asked_within(PATIENCE, (client, server), dialled, port)
}

fn asked_within(
    patience: Duration,
    (client, server): (&Netns, &Netns),
    dialled: (Ipv4Addr, u16),
    port: u16,
) -> Option<SocketAddr> {
    let listener = server.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).expect("it runs");
    let listener = listener.expect("the port is free");
    listener.set_nonblocking(true).expect("a socket can be");
    let asking = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&asking);
    let answering = thread::spawn(move || {
        while still.load(Ordering::Relaxed) {
            if let Ok((mut stream, peer)) = listener.accept() {
                stream.set_nonblocking(false).expect("a socket can be");
                stream.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
                let mut request = [0; 4];
                let answered = stream.read_exact(&mut request).and_then(|()| stream.write_all(&request));
                return answered.ok().map(|()| peer);
            }
            thread::yield_now();
        }
        None
    });
    let dialled = SocketAddr::from(dialled);
    let answered = client.run(|| -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&dialled, patience)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"ping")?;
        stream.read_exact(&mut [0; 4])
    });
    asking.store(false, Ordering::Relaxed);
    let seen = answering.join().expect("no panic");
    answered.expect("it runs").ok().and(seen)
}

/// One datagram and its answer, or none; who the server saw.
fn asked_by_udp(client: &Netns, server: &Netns, dialled: (Ipv4Addr, u16), port: u16) -> Option<SocketAddr> {
    asked_by_udp_within(PATIENCE, (client, server), dialled, port)
}

fn asked_by_udp_within(
    patience: Duration,
    (client, server): (&Netns, &Netns),
    dialled: (Ipv4Addr, u16),
    port: u16,
) -> Option<SocketAddr> {
    let bound = server.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).expect("it runs");
    let bound = bound.expect("the port is free");
    bound.set_read_timeout(Some(patience)).expect("a time is no zero");
    let answered = client.run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(patience))?;
        socket.connect(dialled)?;
        socket.send(b"ping")?;
        Ok(socket)
    });
    let socket = answered.expect("it runs").ok()?;
    let (_, peer) = bound.recv_from(&mut [0; 4]).ok()?;
    bound.send_to(b"pong", peer).ok()?;
    socket.recv(&mut [0; 4]).ok().map(|_| peer)
}

#[test]
#[ignore = "needs root: make test"]
fn pods_on_two_nodes_talk_over_chains_and_policies_hold() {
    pods_talk_and_policies_hold(Name::Chains);
}

#[test]
#[ignore = "needs root: make test"]
fn pods_on_two_nodes_talk_over_the_emulator_and_policies_hold() {
    pods_talk_and_policies_hold(Name::Emulator);
}

#[test]
#[ignore = "needs root: make test"]
fn pods_on_two_nodes_talk_over_ebpf_and_policies_hold() {
    pods_talk_and_policies_hold(Name::Ebpf);
}

fn pods_talk_and_policies_hold(dataplane: Name) {
    let up = up(&format!("policy-{dataplane}"), dataplane);
    let (web, api, db) = (pod(&up, "web"), pod(&up, "api"), pod(&up, "db"));
    assert_eq!(asked(&web, &api, (API, 8080), 8080).map(|peer| peer.ip()), Some(WEB.into()));
    assert_eq!(asked_by_udp(&web, &api, (API, 5353), 5353).map(|peer| peer.ip()), Some(WEB.into()));
    assert_eq!(asked(&api, &db, (DB, 5432), 5432).map(|peer| peer.ip()), Some(API.into()));
    assert_eq!(asked_within(REFUSED, (&web, &db), (DB, 5432), 5432), None, "a policy refuses it");
    assert_eq!(asked_by_udp_within(REFUSED, (&web, &db), (DB, 5353), 5353), None, "a policy refuses it");
    assert_eq!(asked_by_udp(&db, &web, (WEB, 5353), 5353).map(|peer| peer.ip()), Some(DB.into()));
    up.down().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
#[ignore = "needs root: make test"]
fn a_service_and_the_world_are_reached_over_chains_under_the_right_addresses() {
    let up = addresses_are_right(Name::Chains);
    let api = pod(&up, "api");
    assert!(asked(&api, &api, (SERVICE, 80), 8080).is_some(), "a pod reaches itself through its Service");
    up.down().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
#[ignore = "needs root: make test"]
fn a_service_and_the_world_are_reached_over_the_emulator_under_the_right_addresses() {
    let up = addresses_are_right(Name::Emulator);
    up.down().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
#[ignore = "needs root: make test"]
fn a_service_and_the_world_are_reached_over_ebpf_under_the_right_addresses() {
    let up = addresses_are_right(Name::Ebpf);
    up.down().unwrap_or_else(|error| panic!("{error}"));
}

fn addresses_are_right(dataplane: Name) -> Up {
    let up = up(&format!("service-{dataplane}"), dataplane);
    let (web, api, world) = (pod(&up, "web"), pod(&up, "api"), up.topology().world());
    let node = up.topology().node("n1");
    assert_eq!(asked(&web, &api, (SERVICE, 80), 8080).map(|peer| peer.ip()), Some(WEB.into()));
    assert_eq!(asked(&web, &world, (WORLD, 80), 80).map(|peer| peer.ip()), Some(NODE.into()));
    assert_eq!(asked_by_udp(&web, &world, (WORLD, 53), 53).map(|peer| peer.ip()), Some(NODE.into()));
    assert_eq!(asked(&node, &api, (API, 8080), 8080).map(|peer| peer.ip()), Some(NODE.into()));
    assert_eq!(asked(&node, &api, (SERVICE, 80), 8080).map(|peer| peer.ip()), Some(NODE.into()));
    assert!(asked(&world, &node, (NODE, 22), 22).is_some(), "the node's own sockets are reached");
    assert!(asked(&node, &world, (WORLD, 80), 80).is_some(), "and reach the world");
    assert!(asked(&web, &node, (NODE, 22), 22).is_some(), "a pod reaches its node");
    up
}

#[test]
#[ignore = "needs root: make test"]
fn every_kind_of_traffic_is_measured_on_every_dataplane_and_nothing_stays() {
    for name in Name::ALL {
        let up = Up::new(&cluster(&name.to_string()), name).unwrap_or_else(|error| panic!("{error}"));
        let cluster = up.topology().cluster().name.clone();
        let end = |name| End { netns: pod(&up, name), cpu: Some(0) };
        let dialled = SocketAddrV4::new(API, 8080);
        let ends = Ends { client: end("web"), server: end("api"), dialled, listening: 8080 };
        let limits = Limits { warm_up: Duration::ZERO, time: PATIENCE, count: 200 };
        for transport in [Transport::Tcp, Transport::Udp] {
            let trips = traffic::request_response(&ends, transport, Requests::of(1), limits);
            let trips = trips.unwrap_or_else(|error| panic!("{name} {transport}: {error}"));
            assert_eq!(trips.histogram.len() + trips.lost, 200);
            assert!(trips.quantile_us(0.5) > 0.0);
        }
        let trips = traffic::connect_request_close(&ends, 1, Limits { count: 20, ..limits });
        assert_eq!(trips.unwrap_or_else(|error| panic!("{name}: {error}")).histogram.len(), 20);
        let streamed = traffic::stream(&ends, 1, Limits::time(Duration::from_millis(200)));
        assert!(streamed.unwrap_or_else(|error| panic!("{name}: {error}")).bytes > 0);
        let packets = traffic::packet_rate(&ends, 64, Limits { count: 1000, ..limits });
        let packets = packets.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(packets.received > 0 && packets.received <= packets.sent);
        up.down().unwrap_or_else(|error| panic!("{error}"));
        let left = Netns::list(&format!("podpath-{cluster}-")).expect("they can be listed");
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_run_against_nobody_ends_with_an_error_that_says_where() {
    let up = up("nobody", Name::Chains);
    let (web, db) = (pod(&up, "web"), pod(&up, "db"));
    let end = |netns: &Netns| End { netns: netns.clone(), cpu: None };
    let dialled = SocketAddrV4::new(DB, 5432);
    let ends = Ends { client: end(&web), server: end(&db), dialled, listening: 5432 };
    let limits = Limits { warm_up: Duration::ZERO, time: Duration::from_millis(600), count: 1 };
    let error = traffic::request_response(&ends, Transport::Udp, Requests::of(1), limits)
        .expect_err("a policy refuses it");
    assert!(error.to_string().contains("10.244.2.8:5432/udp"), "{error}");
    let error = traffic::request_response(&ends, Transport::Tcp, Requests::of(1), limits)
        .expect_err("a policy refuses it");
    assert!(error.to_string().contains("10.244.2.8:5432/tcp"), "{error}");
}
