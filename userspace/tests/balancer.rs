//! The load balancer in a whole cluster, in virtual time: who is healthy, and where clients outside come to.

use dataplane::wire::V4;
use userspace::engine::emulator::{Answer, Dial, Emulator, Network};
use userspace::fabric::FrontendReport;
use userspace::model::{self, Cluster, Protocol};

/// Three nodes; pods of `web` on the first two, as many as said; a load balancer's frontend before them.
fn cluster(pods: &[&str], policy: &str, forward: &str) -> Cluster {
    let mut text = format!(
        "apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {{name: test}}
spec: {{nodes: 3, loadBalancer: {{forward: {forward}}}}}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {{name: world}}
spec: {{address: 203.0.113.7}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: {policy}
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    );
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
    let before = cluster(&["node-1", "node-2"], "Local", "floating-ip");
    let mut network = network(&before);
    assert_eq!(healthy(&network), ["node-1", "node-2"]);
    network.apply(&cluster(&["node-1"], "Local", "floating-ip")).expect("a smaller cluster");
    assert_eq!(healthy(&network), ["node-1", "node-2"], "nobody has asked yet");
    network.wait(5).expect("in memory");
    assert_eq!(healthy(&network), ["node-1", "node-2"], "one answer is not enough");
    network.wait(5).expect("in memory");
    assert_eq!(healthy(&network), ["node-1"]);
    network.apply(&before).expect("as before");
    network.wait(10).expect("in memory");
    assert_eq!(healthy(&network), ["node-1", "node-2"]);
    assert_eq!(network.tally().dropped(), 0, "{:?}", network.tally());
    assert!(network.connections::<V4>(2).expect("in memory").is_empty(), "probes are the node's own affair");
}

#[test]
fn with_cluster_policy_every_node_answers_at_its_node_port() {
    let network = network(&cluster(&["node-1"], "Cluster", "floating-ip"));
    assert_eq!(healthy(&network), ["node-1", "node-2", "node-3"]);
}

#[test]
fn a_client_outside_reaches_the_service_in_every_forward_mode_with_either_policy() {
    for forward in ["floating-ip", "node-port", "ip-in-ip"] {
        for policy in ["Local", "Cluster"] {
            let cluster = cluster(&["node-1", "node-2"], policy, forward);
            let mut network = network(&cluster);
            let world = network.host("ext:world").expect("is there");
            let frontend = cluster.services[0].load_balancer_addresses[0];
            for _ in 0..20 {
                let attempt = network.connect(world, frontend, Dial::Port(Protocol::Tcp, 80)).expect("runs");
                let text = userspace::observe::walk::print(&attempt.walk, network.names());
                assert_eq!(attempt.answer, Answer::Allow, "{forward}, {policy}:\n{text}");
            }
        }
    }
}
