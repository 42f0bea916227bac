//! The load balancer in a whole cluster, in virtual time: who is healthy, and who is reached.

use dataplane::wire::V4;
use userspace::engine::emulator::host::Dial;
use userspace::engine::emulator::{Answer, Emulator, Network};
use userspace::fabric::FrontendReport;
use userspace::model::{self, Cluster, Protocol};
use userspace::observe::walk;

/// Three nodes; a pod of `web` on each of those that are named; a load balancer's frontend before them.
fn cluster(pods: &[&str], policy: &str, forward: &str) -> Cluster {
    let mut text = "apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: test}
spec: {nodes: 3, loadBalancer: {forward: FORWARD}}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: POLICY
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"
    .replace("FORWARD", forward)
    .replace("POLICY", policy);
    for (number, node) in pods.iter().enumerate() {
        text += &format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: web-{number}, labels: {{app: web}}}}
spec:
  nodeName: {node}
  containers: [{{name: web, image: web, ports: [{{containerPort: 8080}}]}}]
"
        );
    }
    model::load_text("test", &text).unwrap_or_else(|error| panic!("{error}"))
}

fn network(cluster: &Cluster) -> Network<Emulator> {
    Network::new(cluster, 7).expect("it fits")
}

/// The nodes behind the one frontend that are healthy.
fn healthy(network: &Network<Emulator>) -> Vec<String> {
    let frontends = network.fabric().report().frontends;
    let [FrontendReport { nodes, .. }] = &frontends[..] else { panic!("{frontends:?}") };
    nodes.iter().filter(|node| node.state == "healthy").map(|node| node.node.clone()).collect()
}

#[test]
fn with_local_policy_only_nodes_with_endpoints_are_healthy_and_one_that_loses_them_is_taken_out() {
    let before = cluster(&["n1", "n2"], "Local", "floating-ip");
    let mut network = network(&before);
    assert_eq!(healthy(&network), ["n1", "n2"]);
    network.apply(&cluster(&["n1"], "Local", "floating-ip")).expect("a smaller cluster");
    assert_eq!(healthy(&network), ["n1", "n2"], "nobody has asked yet");
    network.wait(5).expect("in memory");
    assert_eq!(healthy(&network), ["n1", "n2"], "one answer is not enough");
    network.wait(5).expect("in memory");
    assert_eq!(healthy(&network), ["n1"]);
    network.apply(&before).expect("as before");
    network.wait(10).expect("in memory");
    assert_eq!(healthy(&network), ["n1", "n2"]);
    assert_eq!(network.tally().dropped(), 0, "{:?}", network.tally());
    assert!(network.connections::<V4>(2).expect("in memory").is_empty(), "probes are the node's own affair");
}

#[test]
fn with_cluster_policy_every_node_answers_at_its_node_port() {
    let network = network(&cluster(&["n1"], "Cluster", "floating-ip"));
    assert_eq!(healthy(&network), ["n1", "n2", "n3"]);
}

#[test]
fn a_client_outside_reaches_the_service_in_every_forward_mode_with_either_policy() {
    for forward in ["floating-ip", "node-port", "ip-in-ip"] {
        for policy in ["Local", "Cluster"] {
            let cluster = cluster(&["n1", "n2"], policy, forward);
            let mut network = network(&cluster);
            let world = network.host("ext:world").expect("is there");
            let frontend = cluster.services[0].load_balancer_addresses[0];
            for _ in 0..20 {
                let attempt =
                    network.connect(world, frontend, Dial::Port(Protocol::Tcp, 80)).expect("in memory");
                let text = walk::print(&attempt.walk, network.names());
                assert_eq!(attempt.answer, Answer::Allow, "{forward}, {policy}:\n{text}");
                assert!(text.contains(&format!("load balancer {frontend} -> node ")), "{text}");
            }
            let report = network.fabric().report().balancer.expect("it has frontends");
            assert!(report.sent >= 20 && report.lost.is_empty(), "{forward}, {policy}: {report:?}");
            assert_eq!(report.returned > 0, forward == "node-port", "{forward}, {policy}: {report:?}");
        }
    }
}
