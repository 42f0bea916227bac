//! The cloud's load balancer between real namespaces: a client outside dials its address, and the nodes behind it are
//! really probed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use userspace::model::Protocol::{Tcp, Udp};
use userspace::model::{Cluster, FabricKind, Forward, ServiceKind, TrafficPolicy};

use crate::stage::{
    Caller, PATIENCE, PORT, SILENCE, Stage, TARGET, Talk, WORLD, back, backend, described, leaving, service,
};

const FRONTEND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(20, 0, 0, 9)), PORT);
/// The Service's health check node port, where it has one.
const CHECK: u16 = 32_000;
/// Between two probes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Outcomes that it takes to change what a node is.
const THRESHOLD: u32 = 2;
/// Longer than it takes until probes say what a node is, on a machine with much else to do.
const PROBED: Duration = Duration::from_secs(20);
/// Flows enough that each node is given one, and each endpoint.
const MANY: usize = 40;

/// Between two requests of a client.
const BREATH: Duration = Duration::from_millis(10);

/// The Service `api` of kind `LoadBalancer`, behind a frontend of a load balancer that asks its nodes each second.
fn balanced(
    (test, kind): (&str, FabricKind),
    model: &str,
    forward: Forward,
    policy: TrafficPolicy,
) -> Cluster {
    let mut cluster = described(test, model);
    cluster.settings.fabric.kind = kind;
    let balancer = &mut cluster.settings.load_balancer;
    (balancer.forward, balancer.probe_threshold) = (forward, THRESHOLD);
    balancer.probe_interval_s = INTERVAL.as_secs() as u32;
    let service = service(&mut cluster);
    (service.kind, service.external_policy) = (ServiceKind::LoadBalancer, policy);
    service.load_balancer_addresses = vec![FRONTEND.ip()];
    service.health_check_node_port = (policy == TrafficPolicy::Local).then_some(CHECK);
    cluster
}

/// The nodes behind the frontend that are given new flows.
fn healthy(stage: &Stage) -> Vec<String> {
    let frontends = stage.report().frontends;
    let front = frontends.iter().find(|front| front.frontend == FRONTEND && front.protocol == 6);
    let nodes = front.expect("the Service has this port").nodes.iter();
    let given: Vec<_> = nodes.filter(|node| node.slots > 0).collect();
    assert!(given.iter().all(|node| node.state == "healthy"), "{frontends:?}");
    given.iter().map(|node| node.node.clone()).collect()
}

/// Waits until these are the nodes that are given new flows.
#[track_caller]
fn becomes_healthy(stage: &Stage, nodes: &[&str]) {
    assert!(stage.until(PROBED, || healthy(stage) == nodes), "not {nodes:?}: {:?}", stage.report().frontends);
}

/// What came to the load balancer went to a node, or was lost for these reasons alone, each of which happened.
#[track_caller]
fn accounts_for_everything(stage: &Stage, reasons: &[&str]) {
    let report = stage.report();
    let balancer = report.balancer.as_ref().expect("it has a frontend");
    assert_eq!(balancer.arrived, balancer.sent + balancer.lost.values().sum::<u64>(), "{report:?}");
    assert_eq!(balancer.lost.keys().collect::<Vec<_>>(), reasons, "{report:?}");
    // A bridge counts nothing itself.
    let emulated = report.arrived > 0;
    let lost = balancer.lost.iter().all(|(reason, count)| !emulated || report.lost[reason] == *count);
    assert!(lost && balancer.sent > 0, "{report:?}");
}

/// Each of these on either fabric.
macro_rules! on_both_fabrics {
    ($($name:ident: $body:expr;)+) => {
        mod on_the_emulated_fabric {
            use super::*;
            $(
                #[test]
                #[ignore = "needs root: make test"]
                fn $name() {
                    $body(FabricKind::Emulator);
                }
            )+
        }
        mod on_a_bridge {
            use super::*;
            $(
                #[test]
                #[ignore = "needs root: make test"]
                fn $name() {
                    $body(FabricKind::Bridge);
                }
            )+
        }
    };
}

on_both_fabrics! {
    a_client_is_answered_at_a_floating_ip_and_seen_as_the_policy_promises:
        |kind| answers_in_mode(("float", kind), Forward::FloatingIp);
    a_client_is_answered_through_node_ports_and_seen_as_the_policy_promises:
        |kind| answers_in_mode(("port", kind), Forward::NodePort);
    a_client_is_answered_by_ip_in_ip_and_seen_as_the_policy_promises:
        |kind| answers_in_mode(("ipip", kind), Forward::IpInIp);
    with_local_policy_a_node_whose_endpoint_goes_is_taken_out_by_its_probes_and_flows_elsewhere_stay:
        endpoints_come_and_go;
    with_cluster_policy_node_ports_are_probed_and_without_endpoints_no_node_is_given_flows:
        node_ports_are_probed;
    no_request_is_lost_at_the_load_balancer_during_a_rolling_update: endpoints_are_replaced;
    clients_of_node_ports_are_answered_beside_the_load_balancer_and_of_no_frontend_not: beside_the_frontend;
}

/// A client outside is answered by every endpoint, in this mode, and each sees whom the policy promises: the client
/// with `Local`; with `Cluster` the client or the node that the load balancer chose.
fn answers_in_mode((word, kind): (&str, FabricKind), forward: Forward) {
    for (model, policy) in [
        ("overlay", TrafficPolicy::Local),
        ("overlay", TrafficPolicy::Cluster),
        ("flat", TrafficPolicy::Local),
    ] {
        let test = format!("lb-{word}-{model}-{policy:?}").to_lowercase();
        let cluster = balanced((&test, kind), model, forward, policy);
        let stage = Stage::up(&cluster);
        becomes_healthy(&stage, &["n1", "n2"]);
        for protocol in [Tcp, Udp] {
            let heard: Vec<_> = (0..MANY).map(|_| stage.ask("world", protocol, FRONTEND)).collect();
            for name in ["near", "far", "spare"] {
                let by = heard.iter().filter(|heard| heard.name == name);
                let seen: Vec<IpAddr> = by.map(|heard| heard.client.ip()).collect();
                assert!(!seen.is_empty(), "{name} answers nobody in {word}, {model}, {policy:?}");
                let other = stage.address(if name == "near" { "n2" } else { "n1" });
                let promised = |client: &IpAddr| {
                    *client == IpAddr::V4(WORLD) || (policy == TrafficPolicy::Cluster && *client == other)
                };
                assert!(seen.iter().all(promised), "{name} in {word}, {model}, {policy:?}: {seen:?}");
            }
        }
        // Segments as long as they come: those that do not fit with another header are told so, and come shorter.
        let body: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
        let heard = stage.call("world", 0, FRONTEND, PATIENCE).and_then(|mut talk| talk.say(&body));
        let heard = heard.unwrap_or_else(|error| panic!("{word}, {model}, {policy:?}: {error}"));
        assert!(heard.body == body, "{word}, {model}, {policy:?}: {} bytes", heard.body.len());
        // On a bridge the router knows what the load balancer's way takes, and says so before it comes to that.
        let too_big = kind == FabricKind::Emulator && forward == Forward::IpInIp && model == "flat";
        accounts_for_everything(&stage, if too_big { &["too-big"] } else { &[] });
        let returned = stage.report().balancer.expect("it has a frontend").returned;
        assert_eq!(returned > 0, forward == Forward::NodePort, "{word}, {model}, {policy:?}");
    }
}

/// "should only target nodes with endpoints"
fn endpoints_come_and_go(kind: FabricKind) {
    let mut cluster = balanced(("lb-local", kind), "overlay", Forward::FloatingIp, TrafficPolicy::Local);
    back(&mut cluster, &["near", "far"]);
    let mut stage = Stage::up(&cluster);
    becomes_healthy(&stage, &["n1", "n2"]);
    assert_eq!(stage.answering("world", Tcp, FRONTEND, MANY), ["far", "near"]);
    let mut talks = talks_with(&stage, "far", 3);
    back(&mut cluster, &["far"]);
    let changed = Instant::now();
    stage.change(&cluster);
    becomes_healthy(&stage, &["n2"]);
    // The first failure may come at once; those that are missing, an interval later each.
    assert!(changed.elapsed() >= INTERVAL * (THRESHOLD - 1), "{:?}", changed.elapsed());
    for protocol in [Tcp, Udp] {
        assert_eq!(stage.answering("world", protocol, FRONTEND, MANY), ["far"]);
        assert_eq!(stage.ask("world", protocol, FRONTEND).client.ip(), IpAddr::V4(WORLD));
    }
    for talk in &mut talks {
        assert_eq!(talk.say(b"still").expect("it goes on").name, "far");
    }
    // Where nobody is left, new flows are dropped, and those that stand go on.
    let endpoints = vec![leaving(backend(&cluster, "far"))];
    service(&mut cluster).ports.iter_mut().for_each(|port| port.backends.clone_from(&endpoints));
    stage.change(&cluster);
    becomes_healthy(&stage, &[]);
    stage.try_ask("world", Tcp, FRONTEND, SILENCE).expect_err("no node is given new flows");
    for talk in &mut talks {
        assert_eq!(talk.say(b"still").expect("it goes on").name, "far");
    }
    back(&mut cluster, &["near", "far"]);
    stage.change(&cluster);
    becomes_healthy(&stage, &["n1", "n2"]);
    assert_eq!(stage.answering("world", Tcp, FRONTEND, MANY), ["far", "near"]);
    for talk in &mut talks {
        assert_eq!(talk.say(b"still").expect("it goes on").name, "far");
    }
    accounts_for_everything(&stage, &["no-healthy-node"]);
}

/// So many connections through the load balancer that an endpoint answers.
fn talks_with(stage: &Stage, endpoint: &str, count: usize) -> Vec<Talk> {
    let dialled = (0..count * MANY).map(|_| stage.call("world", 0, FRONTEND, PATIENCE).expect("it answers"));
    let answered = dialled.filter_map(|mut talk| {
        let by = talk.say(b"who").expect("it answers").name;
        (by == endpoint).then_some(talk)
    });
    let talks: Vec<_> = answered.take(count).collect();
    assert_eq!(talks.len(), count, "{endpoint} answers one of several");
    talks
}

fn node_ports_are_probed(kind: FabricKind) {
    let mut cluster = balanced(("lb-cluster", kind), "overlay", Forward::NodePort, TrafficPolicy::Cluster);
    back(&mut cluster, &["far"]);
    let mut stage = Stage::up(&cluster);
    becomes_healthy(&stage, &["n1", "n2"]);
    assert_eq!(stage.answering("world", Tcp, FRONTEND, MANY), ["far"]);
    back(&mut cluster, &[]);
    stage.change(&cluster);
    becomes_healthy(&stage, &[]);
    for protocol in [Tcp, Udp] {
        stage.try_ask("world", protocol, FRONTEND, SILENCE).expect_err("no node is given flows");
    }
    back(&mut cluster, &["near"]);
    stage.change(&cluster);
    becomes_healthy(&stage, &["n1", "n2"]);
    for protocol in [Tcp, Udp] {
        assert_eq!(stage.ask("world", protocol, FRONTEND).name, "near");
    }
    accounts_for_everything(&stage, &["no-healthy-node"]);
}

fn beside_the_frontend(kind: FabricKind) {
    let cluster = balanced(("lb-beside", kind), "overlay", Forward::NodePort, TrafficPolicy::Cluster);
    let stage = Stage::up(&cluster);
    becomes_healthy(&stage, &["n1", "n2"]);
    for protocol in [Tcp, Udp] {
        assert_eq!(stage.ask("world", protocol, FRONTEND).body, b"who");
        for node in ["n1", "n2"] {
            let answering = stage.answering("world", protocol, stage.node_port(node), MANY);
            assert_eq!(answering, ["far", "near", "spare"], "{protocol} at {node}");
        }
        let other = SocketAddr::new(FRONTEND.ip(), PORT + 1);
        stage.try_ask("world", protocol, other, SILENCE).expect_err("it is no frontend's port");
    }
    accounts_for_everything(&stage, &["no-frontend"]);
}

/// Of frames that are longer than a program in a driver takes.
#[test]
#[ignore = "needs root: make test"]
fn on_a_bridge_of_jumbo_frames_a_client_is_answered_through_the_load_balancer() {
    for forward in [Forward::FloatingIp, Forward::NodePort] {
        let test = format!("lb-jumbo-{}", forward as u8);
        let mut cluster = balanced((&test, FabricKind::Bridge), "flat", forward, TrafficPolicy::Local);
        cluster.settings.mtu = 9000;
        let stage = Stage::up(&cluster);
        becomes_healthy(&stage, &["n1", "n2"]);
        let body: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
        let heard = stage.call("world", 0, FRONTEND, PATIENCE).and_then(|mut talk| talk.say(&body));
        assert!(heard.expect("it is answered").body == body);
        accounts_for_everything(&stage, &[]);
    }
}

/// Requests of several clients, one after the other, each over a connection of its own.
#[derive(Default)]
struct Requests {
    sent: AtomicUsize,
    /// By who answered.
    answered: Mutex<BTreeMap<String, usize>>,
    over: AtomicBool,
}

impl Requests {
    /// Sends them until told to stop.
    fn send(&self, client: &Caller) {
        while !self.over.load(Ordering::Relaxed) {
            self.sent.fetch_add(1, Ordering::Relaxed);
            match client.call(0, FRONTEND, PATIENCE).and_then(|mut talk| talk.say(b"who")) {
                Ok(heard) => {
                    assert_eq!(heard.client.ip(), IpAddr::V4(WORLD));
                    *self.answered.lock().expect("nobody panics").entry(heard.name).or_default() += 1;
                }
                Err(error) => eprintln!("a request is lost: {error}"),
            }
            thread::park_timeout(BREATH);
        }
    }

    /// How many an endpoint has answered.
    fn answered_by(&self, endpoint: &str) -> usize {
        self.answered.lock().expect("nobody panics").get(endpoint).copied().unwrap_or(0)
    }

    fn answered(&self) -> usize {
        self.answered.lock().expect("nobody panics").values().sum()
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until as many were answered as were sent so far, and many more: all clients have gone on.
    #[track_caller]
    fn go_on(&self, stage: &Stage) {
        let sent = self.sent();
        assert!(stage.until(PROBED, || self.answered() >= sent + MANY), "the clients go on");
    }
}

/// Ends requests, whatever becomes of the test.
struct Ending<'a>(&'a Requests);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// KEP-1669: with `externalTrafficPolicy: Local`, while a node's last endpoint is on its way out, the node's health
/// check fails, and the endpoint answers what still comes until the load balancer has understood.
fn endpoints_are_replaced(kind: FabricKind) {
    let mut cluster = balanced(("lb-rolling", kind), "overlay", Forward::FloatingIp, TrafficPolicy::Local);
    back(&mut cluster, &["near", "far"]);
    let mut stage = Stage::up(&cluster);
    becomes_healthy(&stage, &["n1", "n2"]);
    let requests = Requests::default();
    thread::scope(|scope| {
        let _ending = Ending(&requests);
        for _ in 0..3 {
            let (client, requests) = (stage.caller("world"), &requests);
            scope.spawn(move || requests.send(&client));
        }
        for (gone, stays, node) in [("near", "far", "n2"), ("far", "near", "n1"), ("near", "far", "n2")] {
            requests.go_on(&stage);
            let endpoints = vec![leaving(backend(&cluster, gone)), backend(&cluster, stays)];
            service(&mut cluster).ports.iter_mut().for_each(|port| port.backends.clone_from(&endpoints));
            stage.change(&cluster);
            let before = requests.answered_by(gone);
            becomes_healthy(&stage, &[node]);
            assert!(requests.answered_by(gone) > before, "{gone} answers while it is on its way out");
            requests.go_on(&stage);
            let before = requests.answered_by(gone);
            back(&mut cluster, &[stays]);
            stage.change(&cluster);
            stage.silence(gone);
            requests.go_on(&stage);
            assert_eq!(requests.answered_by(gone), before, "nothing is sent to {gone} any more");
            // Another has come in its place.
            stage.serve(gone, TARGET);
            back(&mut cluster, &["near", "far"]);
            stage.change(&cluster);
            becomes_healthy(&stage, &["n1", "n2"]);
        }
        requests.go_on(&stage);
    });
    assert_eq!(requests.sent(), requests.answered(), "every request that was sent was answered");
    assert!(requests.answered() > 10 * MANY, "{}", requests.answered());
    accounts_for_everything(&stage, &[]);
}
