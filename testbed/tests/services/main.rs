//! Services between real namespaces, with real sockets: what the Kubernetes end-to-end suite asks of them. The
//! title of the suite's own test stands above each.

mod balancer;
mod stage;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use stage::{
    OTHER, PATIENCE, PORT, SERVICE, SILENCE, Stage, TARGET, WORLD, back, backend, datagram, described,
    leaving, service, until, with_objects,
};
use userspace::model::Protocol::{self, Tcp, Udp};
use userspace::model::{HostPort, TrafficPolicy};

const CLUSTER_IP: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE), PORT);

/// Flows enough that each of three endpoints is given one, but for one time in a million.
const MANY: usize = 36;

/// Nobody answers in time, and nobody refuses.
#[track_caller]
fn is_dropped(stage: &Stage, from: &str, protocol: Protocol, to: SocketAddr) {
    match stage.try_ask(from, protocol, to, SILENCE) {
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
                || error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => panic!("{from} to {to}/{protocol}: {other:?}"),
    }
}

/// It is refused at once.
#[track_caller]
fn is_refused(stage: &Stage, from: &str, protocol: Protocol, to: SocketAddr) {
    let refused = stage.try_ask(from, protocol, to, PATIENCE);
    let error = refused.expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{from} to {to}/{protocol}: {error}");
}

/// "should serve a basic endpoint from pods", "should serve multiport endpoints from pods"
#[test]
#[ignore = "needs root: make test"]
fn every_endpoint_of_a_cluster_ip_answers_pods_and_nodes_by_both_protocols() {
    let stage = Stage::up(&described("basic", "overlay"));
    for protocol in [Tcp, Udp] {
        for from in ["web", "n1"] {
            assert_eq!(stage.answering(from, protocol, CLUSTER_IP, MANY), ["far", "near", "spare"], "{from}");
        }
    }
}

/// "should preserve source pod IP for traffic thru service cluster IP"
#[test]
#[ignore = "needs root: make test"]
fn an_endpoint_sees_the_pod_that_dials_its_service() {
    for model in ["overlay", "flat", "kubenet"] {
        let mut cluster = described(&format!("source-{model}"), model);
        for endpoint in ["near", "far"] {
            back(&mut cluster, &[endpoint]);
            let stage = Stage::up(&cluster);
            for (protocol, to) in [(Tcp, CLUSTER_IP), (Udp, CLUSTER_IP), (Tcp, stage.node_port("n2"))] {
                let heard = stage.ask("web", protocol, to);
                assert_eq!(
                    (heard.name.as_str(), heard.client.ip()),
                    (endpoint, stage.address("web")),
                    "{model}"
                );
            }
        }
    }
}

/// "should have session affinity work for service with type clusterIP", "… for NodePort service", "… for LoadBalancer
/// service with Local traffic policy" and its kin
#[test]
#[ignore = "needs root: make test"]
fn a_client_with_session_affinity_keeps_its_endpoint_at_every_frontend() {
    let mut cluster = described("affinity", "overlay");
    let balanced = SocketAddr::new([20, 0, 0, 9].into(), PORT);
    service(&mut cluster).affinity_s = Some(60);
    service(&mut cluster).load_balancer_addresses = vec![balanced.ip()];
    let stage = Stage::up(&cluster);
    for protocol in [Tcp, Udp] {
        let own = stage.answering("web", protocol, CLUSTER_IP, 20);
        assert_eq!(own.len(), 1);
        for to in [stage.node_port("n1"), stage.node_port("n2"), balanced] {
            assert_eq!(stage.answering("web", protocol, to, 10), own, "{to}");
        }
        for (from, to) in [("world", stage.node_port("n1")), ("other", stage.node_port("n2"))] {
            assert_eq!(stage.answering(from, protocol, to, 20).len(), 1, "{from}");
            assert_eq!(stage.answering(from, protocol, balanced, 20).len(), 1, "{from}");
        }
    }
}

/// "should be able to switch session affinity for service with type clusterIP"
#[test]
#[ignore = "needs root: make test"]
fn session_affinity_can_be_switched_on_and_off() {
    let mut cluster = described("switch", "overlay");
    let mut stage = Stage::up(&cluster);
    assert_eq!(stage.answering("web", Tcp, CLUSTER_IP, MANY).len(), 3);
    service(&mut cluster).affinity_s = Some(60);
    stage.change(&cluster);
    assert_eq!(stage.answering("web", Tcp, CLUSTER_IP, 20).len(), 1);
    service(&mut cluster).affinity_s = None;
    stage.change(&cluster);
    assert_eq!(stage.answering("web", Tcp, CLUSTER_IP, MANY).len(), 3);
}

/// "should have session affinity work for NodePort service", and the policy becomes `Local` meanwhile
#[test]
#[ignore = "needs root: make test"]
fn a_client_with_session_affinity_is_kept_by_no_endpoint_that_may_not_answer_it() {
    let mut cluster = described("affinity-local", "overlay");
    service(&mut cluster).affinity_s = Some(600);
    back(&mut cluster, &["far"]);
    let mut stage = Stage::up(&cluster);
    let clients = [("web", CLUSTER_IP), ("world", stage.node_port("n1"))];
    let all_are_answered_by = |stage: &Stage, endpoint: &str, when: &str| {
        for (from, to) in clients {
            assert_eq!(stage.answering(from, Tcp, to, 10), [endpoint], "{from} {when}");
        }
    };
    all_are_answered_by(&stage, "far", "at first");
    back(&mut cluster, &["near", "far"]);
    stage.change(&cluster);
    all_are_answered_by(&stage, "far", "when there is another");
    for policy in [TrafficPolicy::Local, TrafficPolicy::Cluster] {
        let service = service(&mut cluster);
        (service.internal_policy, service.external_policy) = (policy, policy);
        stage.change(&cluster);
        all_are_answered_by(&stage, "near", "since only those of its node were to answer");
    }
}

/// "should have session affinity timeout work for service with type clusterIP"
#[test]
#[ignore = "needs root: make test"]
fn session_affinity_ends_when_a_client_was_silent_for_its_time() {
    let mut cluster = described("timeout", "overlay");
    service(&mut cluster).affinity_s = Some(2);
    let stage = Stage::up(&cluster);
    let first = stage.ask("web", Tcp, CLUSTER_IP).name;
    assert_eq!(
        stage.answering("web", Tcp, CLUSTER_IP, 10),
        std::slice::from_ref(&first),
        "it is kept while it comes back"
    );
    // Each silence is longer than the affinity, so each time a new endpoint is chosen.
    let moved = until(Duration::from_secs(60), || {
        let silent = stage.socket("web", 0, Duration::from_millis(3200));
        silent.recv(&mut [0]).expect_err("nobody speaks to it");
        stage.ask("web", Tcp, CLUSTER_IP).name != first
    });
    assert!(moved, "it stays with {first}");
}

/// "should be able to create a functioning NodePort service"
#[test]
#[ignore = "needs root: make test"]
fn a_node_port_answers_at_every_node_from_outside_and_from_pods() {
    for model in ["overlay", "flat"] {
        let stage = Stage::up(&described(&format!("at-nodes-{model}"), model));
        for protocol in [Tcp, Udp] {
            for (from, node) in [("world", "n1"), ("world", "n2"), ("web", "n1"), ("web", "n2")] {
                let answering = stage.answering(from, protocol, stage.node_port(node), MANY);
                assert_eq!(answering, ["far", "near", "spare"], "{from} to {node} by {protocol} in {model}");
            }
        }
    }
}

/// "should work for type=NodePort" (external source IP preservation)
#[test]
#[ignore = "needs root: make test"]
fn external_policy_local_keeps_the_clients_address() {
    for model in ["overlay", "flat"] {
        let mut cluster = described(&format!("local-{model}"), model);
        service(&mut cluster).external_policy = TrafficPolicy::Local;
        let stage = Stage::up(&cluster);
        for protocol in [Tcp, Udp] {
            for (node, endpoints) in [("n1", &["near"][..]), ("n2", &["far", "spare"])] {
                let to = stage.node_port(node);
                assert_eq!(stage.answering("world", protocol, to, MANY), endpoints);
                assert_eq!(stage.ask("world", protocol, to).client.ip(), IpAddr::V4(WORLD));
            }
        }
    }
}

/// "should only target nodes with endpoints"
#[test]
#[ignore = "needs root: make test"]
fn external_policy_local_drops_at_a_node_without_an_endpoint_but_not_what_pods_send() {
    let mut cluster = described("local-drop", "overlay");
    service(&mut cluster).external_policy = TrafficPolicy::Local;
    back(&mut cluster, &["far"]);
    let stage = Stage::up(&cluster);
    for protocol in [Tcp, Udp] {
        is_dropped(&stage, "world", protocol, stage.node_port("n1"));
        assert_eq!(stage.ask("world", protocol, stage.node_port("n2")).name, "far");
        assert_eq!(stage.ask("web", protocol, stage.node_port("n1")).name, "far");
    }
}

/// "should work from pods", "should handle updates to ExternalTrafficPolicy field"
#[test]
#[ignore = "needs root: make test"]
fn external_policy_cluster_lets_the_node_stand_for_the_client_across_nodes_alone() {
    for model in ["overlay", "flat"] {
        let mut cluster = described(&format!("cluster-{model}"), model);
        back(&mut cluster, &["far"]);
        let mut stage = Stage::up(&cluster);
        for protocol in [Tcp, Udp] {
            let across = stage.ask("world", protocol, stage.node_port("n1"));
            assert_eq!(across.client.ip(), stage.address("n1"), "{model}");
            let straight = stage.ask("world", protocol, stage.node_port("n2"));
            assert_eq!(straight.client.ip(), IpAddr::V4(WORLD), "{model}");
        }
        service(&mut cluster).external_policy = TrafficPolicy::Local;
        stage.change(&cluster);
        is_dropped(&stage, "world", Tcp, stage.node_port("n1"));
    }
}

/// "should respect internalTrafficPolicy=Local Pod to Pod", "… Pod (hostNetwork: true) to Pod"
#[test]
#[ignore = "needs root: make test"]
fn internal_policy_local_leaves_the_endpoints_of_the_clients_node() {
    let mut cluster = described("internal", "overlay");
    service(&mut cluster).internal_policy = TrafficPolicy::Local;
    let mut stage = Stage::up(&cluster);
    for (from, endpoints) in [("web", &["near"][..]), ("n1", &["near"]), ("n2", &["far", "spare"])] {
        assert_eq!(stage.answering(from, Tcp, CLUSTER_IP, MANY), endpoints);
    }
    back(&mut cluster, &["far"]);
    stage.change(&cluster);
    is_dropped(&stage, "web", Tcp, CLUSTER_IP);
    is_dropped(&stage, "web", Udp, CLUSTER_IP);
    assert_eq!(stage.ask("web", Tcp, stage.node_port("n1")).name, "far");
}

/// "should allow pods to hairpin back to themselves through services"
#[test]
#[ignore = "needs root: make test"]
fn a_pod_reaches_itself_through_its_service() {
    let mut cluster = described("hairpin", "overlay");
    back(&mut cluster, &["near"]);
    let stage = Stage::up(&cluster);
    for protocol in [Tcp, Udp] {
        for to in [CLUSTER_IP, stage.node_port("n1"), stage.node_port("n2")] {
            assert_eq!(stage.ask("near", protocol, to).name, "near", "{to}");
        }
    }
}

/// "should be rejected when no endpoints exist", "should be rejected for evicted pods (no endpoints exist)"
#[test]
#[ignore = "needs root: make test"]
fn a_service_without_endpoints_refuses_at_once() {
    let mut cluster = described("refused", "overlay");
    back(&mut cluster, &[]);
    let stage = Stage::up(&cluster);
    for protocol in [Tcp, Udp] {
        for from in ["web", "n1"] {
            is_refused(&stage, from, protocol, CLUSTER_IP);
        }
        is_refused(&stage, "web", protocol, stage.node_port("n2"));
        is_refused(&stage, "world", protocol, stage.node_port("n1"));
    }
}

/// "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service", "… a NodePort service"
#[test]
#[ignore = "needs root: make test"]
fn a_udp_client_with_one_port_recovers_when_its_endpoint_is_replaced() {
    let mut cluster = described("udp", "overlay");
    back(&mut cluster, &["near"]);
    let mut stage = Stage::up(&cluster);
    let node_port = stage.node_port("n1");
    let patience = Duration::from_millis(200);
    let clients = [("web", CLUSTER_IP), ("web", node_port), ("n2", CLUSTER_IP), ("world", node_port)];
    let sockets = clients.map(|(from, to)| {
        let socket = stage.socket(from, 0, patience);
        socket.connect(to).expect("it has a route");
        socket
    });
    let ask = |socket: &std::net::UdpSocket| datagram(socket, b"who").map(|heard| heard.name).ok();
    for socket in &sockets {
        assert!(until(PATIENCE, || ask(socket).as_deref() == Some("near")));
    }
    back(&mut cluster, &["far"]);
    stage.change(&cluster);
    stage.silence("near");
    for (socket, (from, to)) in sockets.iter().zip(clients) {
        // The suite gives it a minute.
        assert!(until(PATIENCE, || ask(socket).as_deref() == Some("far")), "{from} to {to}");
    }
}

/// "should preserve TCP connections to a pod that is terminating", graceful termination
#[test]
#[ignore = "needs root: make test"]
fn a_connection_outlives_its_endpoint_in_the_service() {
    let mut cluster = described("drain", "overlay");
    back(&mut cluster, &["far"]);
    let mut stage = Stage::up(&cluster);
    let to = [("web", CLUSTER_IP), ("web", stage.node_port("n1")), ("world", stage.node_port("n1"))];
    let mut talks = to.map(|(from, to)| stage.call(from, 0, to, PATIENCE).expect("it answers"));
    let mut all_say = |word: &[u8], when: &str| {
        for (talk, (from, to)) in talks.iter_mut().zip(to) {
            let heard = talk.say(word).unwrap_or_else(|error| panic!("{from} to {to} {when}: {error}"));
            assert_eq!(heard.name, "far");
        }
    };
    all_say(b"one", "at first");
    let endpoints = vec![leaving(backend(&cluster, "far")), backend(&cluster, "near")];
    service(&mut cluster).ports.iter_mut().for_each(|port| port.backends.clone_from(&endpoints));
    stage.change(&cluster);
    all_say(b"two", "while its endpoint goes");
    assert_eq!(stage.answering("web", Tcp, CLUSTER_IP, 10), ["near"]);
    back(&mut cluster, &["near"]);
    stage.change(&cluster);
    all_say(b"three", "when its endpoint is gone from the Service");
    back(&mut cluster, &[]);
    stage.change(&cluster);
    all_say(b"four", "without any endpoint");
}

/// "should not lose requests while endpoints roll" (graceful termination, no request lost)
#[test]
#[ignore = "needs root: make test"]
fn no_request_is_lost_during_a_rolling_update() {
    let mut cluster = described("rolling", "overlay");
    let pods = ["near", "far", "spare"];
    let mut stage = Stage::up(&cluster);
    for round in 0..12 {
        // One goes, after it was told; the others answer. Then it is back, as another would be.
        let (gone, rest) = (pods[round % 3], [pods[(round + 1) % 3], pods[(round + 2) % 3]]);
        let mut endpoints: Vec<_> = rest.iter().map(|pod| backend(&cluster, pod)).collect();
        let mut under_way = stage.call("web", 0, CLUSTER_IP, PATIENCE).expect("it answers");
        let name = under_way.say(b"who").expect("it answers").name;
        endpoints.push(leaving(backend(&cluster, gone)));
        service(&mut cluster).ports.iter_mut().for_each(|port| port.backends.clone_from(&endpoints));
        stage.change(&cluster);
        for (from, to) in [("web", CLUSTER_IP), ("n2", CLUSTER_IP), ("world", stage.node_port("n1"))] {
            let mut expected = rest.map(str::to_owned);
            expected.sort_unstable();
            let answering = stage.answering(from, Tcp, to, 20);
            assert!(answering.iter().all(|one| expected.contains(one)), "{from}: {answering:?}");
        }
        assert_eq!(under_way.say(b"still").expect("it goes on").name, name, "in round {round}");
        back(&mut cluster, &rest);
        stage.change(&cluster);
        stage.answering("web", Tcp, CLUSTER_IP, 20);
        assert_eq!(under_way.say(b"still").expect("it goes on").name, name, "in round {round}");
    }
}

/// "should fallback to terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Cluster",
/// "… internalTrafficPolicy=Local", "… externalTrafficPolicy=Cluster", "… externalTrafficPolicy=Local"
#[test]
#[ignore = "needs root: make test"]
fn endpoints_on_their_way_out_answer_where_none_is_ready() {
    let mut cluster = described("terminating", "overlay");
    let endpoints = vec![leaving(backend(&cluster, "near")), leaving(backend(&cluster, "far"))];
    service(&mut cluster).ports.iter_mut().for_each(|port| port.backends.clone_from(&endpoints));
    let mut stage = Stage::up(&cluster);
    assert_eq!(stage.answering("web", Tcp, CLUSTER_IP, MANY), ["far", "near"]);
    assert_eq!(stage.answering("world", Tcp, stage.node_port("n1"), MANY), ["far", "near"]);
    (service(&mut cluster).internal_policy, service(&mut cluster).external_policy) =
        (TrafficPolicy::Local, TrafficPolicy::Local);
    stage.change(&cluster);
    assert_eq!(stage.answering("web", Tcp, CLUSTER_IP, 10), ["near"]);
    assert_eq!(stage.answering("world", Tcp, stage.node_port("n2"), 10), ["far"]);
    // With one that is ready, they are done.
    let endpoints = vec![leaving(backend(&cluster, "near")), backend(&cluster, "spare")];
    let service = service(&mut cluster);
    (service.internal_policy, service.external_policy) = (TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    service.ports.iter_mut().for_each(|port| port.backends.clone_from(&endpoints));
    stage.change(&cluster);
    assert_eq!(stage.answering("web", Tcp, CLUSTER_IP, 10), ["spare"]);
}

/// "should create endpoints for unready pods"
#[test]
#[ignore = "needs root: make test"]
fn a_service_that_publishes_endpoints_which_are_not_ready_uses_them() {
    const SLOW: &str = r#"
---
apiVersion: v1
kind: Pod
metadata: {name: slow, labels: {app: slow}}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
status: {phase: Running, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {clusterIP: 10.96.0.20, publishNotReadyAddresses: true, selector: {app: slow}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {clusterIP: 10.96.0.21, selector: {app: slow}, ports: [{port: 80, targetPort: 8080}]}
"#;
    let stage = Stage::up(&with_objects("unready", "overlay", SLOW));
    assert_eq!(stage.ask("web", Tcp, "10.96.0.20:80".parse().expect("it is one")).name, "slow");
    is_refused(&stage, "web", Tcp, "10.96.0.21:80".parse().expect("it is one"));
}

/// "should function for pod-Service: http with large requests", "should handle large requests: http", "… udp"
#[test]
#[ignore = "needs root: make test"]
fn large_requests_and_answers_pass_the_overlay() {
    let mut cluster = described("large", "overlay");
    back(&mut cluster, &["far"]);
    let stage = Stage::up(&cluster);
    let body: Vec<u8> = (0..256 << 10).map(|at: u32| (at % 251) as u8).collect();
    for (from, to) in [("web", CLUSTER_IP), ("n1", CLUSTER_IP), ("world", stage.node_port("n1"))] {
        let heard = stage.call(from, 0, to, PATIENCE).and_then(|mut talk| talk.say(&body));
        let heard = heard.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        assert!(heard.name == "far" && heard.body == body, "{from} to {to}: {} bytes", heard.body.len());
        // In fragments, both ways; those of a client outside are too long for the tunnel, and nobody cuts them.
        if from == "world" {
            continue;
        }
        let socket = stage.socket(from, 0, PATIENCE);
        socket.connect(to).expect("it has a route");
        let heard =
            datagram(&socket, &body[..8192]).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        assert!(heard.body == body[..8192], "{from} to {to} by UDP: {} bytes", heard.body.len());
    }
}

/// "should be able to update service type to NodePort listening on same port number but different protocols",
/// "HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol"
#[test]
#[ignore = "needs root: make test"]
fn a_host_port_leads_to_its_pod_from_everywhere_and_keeps_the_client() {
    let mut cluster = described("host-port", "overlay");
    let far = cluster.pods.iter_mut().find(|pod| pod.name == "far").expect("it is in the text");
    far.host_ports = [Tcp, Udp]
        .map(|protocol| HostPort { address: None, port: 9000, protocol, container_port: TARGET })
        .to_vec();
    let stage = Stage::up(&cluster);
    let to = SocketAddr::new(stage.address("n2"), 9000);
    for protocol in [Tcp, Udp] {
        for from in ["world", "web", "spare", "n1"] {
            assert_eq!(stage.ask(from, protocol, to).name, "far", "{from} by {protocol}");
        }
        assert_eq!(stage.ask("world", protocol, to).client.ip(), IpAddr::V4(WORLD));
    }
    is_refused(&stage, "world", Tcp, SocketAddr::new(stage.address("n1"), 9000));
}

/// "should serve endpoints on same port and different protocols", "should serve multiport endpoints from pods"
#[test]
#[ignore = "needs root: make test"]
fn a_named_target_port_is_each_pods_own_and_several_ports_lead_to_their_own() {
    const NAMED: &str = r#"
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: named}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{name: web, containerPort: 8001}, {name: admin, containerPort: 9001}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: named}}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{name: web, containerPort: 8002}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: named}
spec:
  clusterIP: 10.96.0.20
  selector: {app: named}
  ports: [{name: web, port: 80, targetPort: web}, {name: admin, port: 81, targetPort: admin}]
"#;
    let mut stage = Stage::up(&with_objects("named", "overlay", NAMED));
    stage.serve("one", 8001);
    stage.serve("one", 9001);
    stage.serve("two", 8002);
    let at = |port| SocketAddr::new([10, 96, 0, 20].into(), port);
    assert_eq!(stage.answering("web", Tcp, at(80), MANY), ["one", "two"]);
    assert_eq!(stage.answering("web", Tcp, at(81), 10), ["one"]);
}

/// "should be possible to connect to a service via ExternalIP when the external IP is not assigned to a node"
#[test]
#[ignore = "needs root: make test"]
fn an_external_address_answers_from_outside_from_pods_and_from_nodes() {
    let mut cluster = described("external", "overlay");
    let mut stage = Stage::up(&cluster);
    let at = |last| SocketAddr::new([192, 0, 2, last].into(), PORT);
    let pinned = stage.socket("web", 0, SILENCE);
    pinned.connect(at(10)).expect("it has a route");
    for last in [10, 11] {
        // An address that is given while the cluster is up leads there as well, and the one before no more.
        service(&mut cluster).external_addresses = vec![at(last).ip()];
        stage.change(&cluster);
        for protocol in [Tcp, Udp] {
            for from in ["world", "web", "n1", "n2"] {
                let answering = stage.answering(from, protocol, at(last), MANY);
                assert_eq!(answering, ["far", "near", "spare"], "{from} by {protocol}");
            }
        }
        // One that has been answered there all the while is led there no more.
        assert_eq!(datagram(&pinned, b"who").is_ok(), last == 10);
    }
    assert!(stage.try_ask("world", Tcp, at(10), SILENCE).is_err());
}

/// "should only allow access from service loadbalancer source ranges"
#[test]
#[ignore = "needs root: make test"]
fn source_ranges_limit_who_reaches_the_load_balancers_address_and_nothing_else() {
    let mut cluster = described("ranges", "overlay");
    let to = SocketAddr::new([20, 0, 0, 9].into(), PORT);
    let service = service(&mut cluster);
    service.load_balancer_addresses = vec![to.ip()];
    service.source_ranges = vec!["203.0.113.0/24".parse().expect("it is one")];
    let mut stage = Stage::up(&cluster);
    for protocol in [Tcp, Udp] {
        assert_eq!(stage.answering("world", protocol, to, MANY).len(), 3);
        for from in ["other", "web"] {
            is_dropped(&stage, from, protocol, to);
        }
        assert_eq!(stage.answering("other", protocol, stage.node_port("n1"), MANY).len(), 3);
    }
    let open = format!("{}/32", OTHER).parse().expect("it is one");
    stage::service(&mut cluster).source_ranges = vec![open];
    stage.change(&cluster);
    assert_eq!(stage.answering("other", Tcp, to, MANY).len(), 3);
    is_dropped(&stage, "world", Tcp, to);
}

/// "should be able to connect to terminating and unready endpoints": one client's port, by several ways at one time
#[test]
#[ignore = "needs root: make test"]
fn one_port_of_a_client_may_reach_one_endpoint_by_several_ways_at_one_time() {
    for model in ["overlay", "flat"] {
        let mut cluster = described(&format!("collision-{model}"), model);
        back(&mut cluster, &["far"]);
        let stage = Stage::up(&cluster);
        let (n1, n2) = (stage.node_port("n1"), stage.node_port("n2"));
        let straight = SocketAddr::new(stage.address("far"), TARGET);
        for (from, ways) in [("world", &[n1, n2][..]), ("web", &[CLUSTER_IP, n1, n2, straight])] {
            let mut talks: Vec<_> = ways
                .iter()
                .map(|to| {
                    let talk = stage.call(from, 23_456, *to, PATIENCE);
                    talk.unwrap_or_else(|error| panic!("{from} to {to} in {model}: {error}"))
                })
                .collect();
            for round in 0..3_u8 {
                for (talk, to) in talks.iter_mut().zip(ways) {
                    let heard = talk.say(&[round]);
                    let heard = heard.unwrap_or_else(|error| panic!("{from} to {to} in {model}: {error}"));
                    assert_eq!((heard.name.as_str(), heard.body), ("far", vec![round]));
                }
            }
        }
    }
}
