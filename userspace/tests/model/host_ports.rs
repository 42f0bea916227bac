//! Ports of a node that lead to a pod.

use userspace::model::{HostPort, Protocol};

use crate::{cluster, fault, pod, wrong};

/// A pod with this port, on this node if it isn't empty.
fn with_port(name: &str, port: &str, node: &str) -> String {
    let node = if node.is_empty() { String::new() } else { format!("nodeName: {node}, ") };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{node}containers: [{{name: c, image: x, ports: [{{containerPort: 8080, {port}}}]}}]}}\n"
    )
}

#[test]
fn a_host_port_is_at_one_address_of_the_node_or_at_all() {
    let text = with_port("a", "hostPort: 80", "n1")
        + &with_port("b", "hostPort: 53, protocol: UDP, hostIP: 10.240.0.4", "n1")
        + &with_port("c", "hostPort: 81, hostIP: 0.0.0.0", "n1")
        + &with_port("d", "hostPort: 0", "n1");
    let cluster = cluster(&text);
    let ports = |name: &str| pod(&cluster, &format!("default/{name}")).host_ports.clone();
    let port = |port: u16| HostPort { address: None, port, protocol: Protocol::Tcp, container_port: 8080 };
    assert_eq!(ports("a"), [port(80)]);
    let address = "10.240.0.4".parse().ok();
    assert_eq!(ports("b"), [HostPort { address, port: 53, protocol: Protocol::Udp, container_port: 8080 }]);
    assert_eq!(ports("c"), [port(81)]);
    assert!(ports("d").is_empty());
}

#[test]
fn a_pod_of_the_host_network_has_its_ports_itself() {
    let text = with_port("a", "hostPort: 8080", "n1").replace("spec: {", "spec: {hostNetwork: true, ");
    assert!(cluster(&text).pods[0].host_ports.is_empty());
}

#[test]
fn pods_are_placed_where_their_host_ports_are_free() {
    let text = with_port("a", "hostPort: 80", "") + &with_port("b", "hostPort: 80", "");
    let cluster = cluster(&text);
    assert_ne!(pod(&cluster, "default/a").node, pod(&cluster, "default/b").node);
    let after = with_port("a", "hostPort: 80", "n1")
        + &with_port("b", "hostPort: 80", "n1").replace("nodeName: n1, ", "");
    assert_eq!(pod(&crate::cluster(&after), "default/b").node, "n2");
    let three = text + &with_port("c", "hostPort: 80", "");
    assert_eq!(
        wrong(&three),
        [
            "cannot place pod default/c: every node with room for it has its host port in use (80 TCP): add a node, or remove the hostPort"
        ]
    );
}

#[test]
fn two_pods_of_one_node_cannot_have_the_same_port_of_it() {
    let both = |one: &str, other: &str| with_port("a", one, "n1") + &with_port("b", other, "n1");
    assert_eq!(
        fault(&both("hostPort: 80", "hostPort: 80, hostIP: 10.240.0.4")),
        "Pod default/b: spec.containers[*].ports[*].hostPort: 80 TCP of node n1 is pod default/a's already: the scheduler would not place this one there"
    );
    for (one, other) in [
        ("hostPort: 80", "hostPort: 80, protocol: UDP"),
        ("hostPort: 80, hostIP: 10.240.0.4", "hostPort: 80, hostIP: 127.0.0.1"),
    ] {
        assert_eq!(cluster(&both(one, other)).pods.len(), 2);
    }
}
