//! Node ports: stated, kept or chosen.

use userspace::model::{Cluster, Objects, ServiceKind, TrafficPolicy};

use crate::{cluster, fault, testbed, wrong};

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

/// The node ports of a Service of the default namespace.
fn node_ports(cluster: &Cluster, name: &str) -> Vec<Option<u16>> {
    let service = cluster.service(&format!("default/{name}")).unwrap_or_else(|| panic!("no service {name}"));
    service.ports.iter().map(|port| port.node_port).collect()
}

#[test]
fn a_node_port_is_stated_or_the_lowest_free_one_above_the_band_of_those_that_are_stated() {
    let text = service("a", "type: NodePort, ports: [{port: 80}]")
        + &service("b", "type: NodePort, ports: [{port: 80, nodePort: 30086}]")
        + &service("c", "type: LoadBalancer, ports: [{port: 80, name: a}, {port: 81, name: b}]")
        + &service("d", "ports: [{port: 80}]");
    let cluster = cluster(&text);
    assert_eq!(node_ports(&cluster, "b"), [Some(30086)]);
    assert_eq!(node_ports(&cluster, "a"), [Some(30087)]);
    assert_eq!(node_ports(&cluster, "c"), [Some(30088), Some(30089)]);
    assert_eq!(node_ports(&cluster, "d"), [None]);
    let kinds: Vec<ServiceKind> = cluster.services.iter().map(|service| service.kind).collect();
    let expected =
        [ServiceKind::NodePort, ServiceKind::NodePort, ServiceKind::LoadBalancer, ServiceKind::ClusterIP];
    assert_eq!(kinds, expected);
}

#[test]
fn one_number_serves_several_protocols_of_a_service() {
    let dns = "{port: 53, name: u, protocol: UDP}, {port: 53, name: t}";
    let text = service("chosen", &format!("type: NodePort, ports: [{dns}]"))
        + &service(
            "stated",
            "type: NodePort, ports: [{port: 53, name: u, protocol: UDP}, {port: 53, name: t, nodePort: 30053}]",
        )
        + &service(
            "both",
            "type: NodePort, ports: [{port: 5, name: u, protocol: SCTP, nodePort: 30005}, {port: 5, name: t, nodePort: 30005}]",
        );
    let cluster = cluster(&text);
    assert_eq!(node_ports(&cluster, "chosen"), [Some(30086), Some(30086)]);
    assert_eq!(node_ports(&cluster, "stated"), [Some(30053), Some(30053)]);
    assert_eq!(node_ports(&cluster, "both"), [Some(30005), Some(30005)]);
}

#[test]
fn a_number_is_one_services() {
    let at = |name: &str, protocol: &str| {
        service(
            name,
            &format!("type: NodePort, ports: [{{port: 80, nodePort: 30080, protocol: {protocol}}}]"),
        )
    };
    for protocol in ["TCP", "UDP"] {
        assert_eq!(
            fault(&(at("a", "TCP") + &at("b", protocol))),
            "Service default/b: spec.ports[0].nodePort: provided port is already allocated: 30080 is Service default/a's"
        );
    }
    assert_eq!(
        fault(&service("a", "type: NodePort, ports: [{port: 80, nodePort: 80}]")),
        "Service default/a: spec.ports[0].nodePort: provided port is not in the valid range, not 80. The range of valid ports is 30000-32767"
    );
}

#[test]
fn node_ports_come_from_the_range_of_the_testbed() {
    let range = |first: u16, last: u16| {
        testbed(&format!("services: {{nodePorts: {{first: {first}, last: {last}}}}}"))
    };
    let one = |name: &str| service(name, "type: NodePort, ports: [{port: 80}]");
    let few = cluster(&(range(20000, 20015) + &one("a")));
    assert_eq!(node_ports(&few, "a"), [Some(20000)]);
    assert_eq!(few.settings.services.node_ports, (20000, 20015));
    let more = cluster(&(range(20000, 20016) + &one("a") + &one("b")));
    assert_eq!(node_ports(&more, "a"), [Some(20016)]);
    assert_eq!(node_ports(&more, "b"), [Some(20000)], "the lower band is used when the upper one is");
    assert_eq!(
        fault(&(range(20000, 20000) + &one("a") + &one("b"))),
        "Service default/b: spec.ports[0].nodePort: failed to allocate a nodePort: range is full"
    );
}

#[test]
fn a_load_balancer_may_do_without_node_ports() {
    let text = service(
        "a",
        "type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80, name: a}, {port: 81, name: b, nodePort: 30081}]",
    );
    assert_eq!(node_ports(&cluster(&text), "a"), [None, Some(30081)]);
}

#[test]
fn only_a_load_balancer_that_keeps_to_the_node_is_asked_for_its_health() {
    let spec = |rest: &str| format!("type: LoadBalancer, ports: [{{port: 80, nodePort: 30080}}]{rest}");
    let text = service("cluster", &spec("").replace("30080", "30081"))
        + &service("local", &spec(", externalTrafficPolicy: Local"))
        + &service(
            "port",
            "type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30082}]",
        )
        + &service(
            "stated",
            &spec(", externalTrafficPolicy: Local, healthCheckNodePort: 32000").replace("30080", "30083"),
        );
    let cluster = cluster(&text);
    let health = |name: &str| {
        let service = cluster.service(&format!("default/{name}")).expect("it is there");
        (service.external_policy, service.health_check_node_port)
    };
    assert_eq!(health("cluster"), (TrafficPolicy::Cluster, None));
    assert_eq!(health("local"), (TrafficPolicy::Local, Some(30086)));
    assert_eq!(health("port"), (TrafficPolicy::Local, None));
    assert_eq!(health("stated"), (TrafficPolicy::Local, Some(32000)));
    let taken = service("a", &spec(", externalTrafficPolicy: Local, healthCheckNodePort: 30080"));
    assert_eq!(
        fault(&taken),
        "Service default/a: spec.healthCheckNodePort: provided port is already allocated: 30080 is Service default/a's"
    );
}

fn resolve(text: &str, previous: Option<&Cluster>) -> Cluster {
    let objects = Objects::parse("live.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    objects.resolve(previous).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn what_was_chosen_stays_by_the_names_of_ports() {
    let local = "type: LoadBalancer, externalTrafficPolicy: Local";
    let first = service("a", "type: NodePort, ports: [{port: 80}]")
        + &service("b", &format!("{local}, ports: [{{port: 80, name: x}}, {{port: 81, name: y}}]"));
    let before = resolve(&first, None);
    assert_eq!(node_ports(&before, "b"), [Some(30087), Some(30088)]);
    let second = service("c", "type: NodePort, ports: [{port: 80}]")
        + &service(
            "b",
            &format!("{local}, ports: [{{port: 8, name: z}}, {{port: 9, name: y}}, {{port: 10, name: x}}]"),
        );
    let after = resolve(&second, Some(&before));
    assert_eq!(node_ports(&after, "b"), [Some(30090), Some(30088), Some(30087)]);
    assert_eq!(node_ports(&after, "c"), [Some(30086)], "what was a's is free again");
    let health = |cluster: &Cluster| cluster.service("default/b").and_then(|b| b.health_check_node_port);
    assert_eq!((health(&before), health(&after)), (Some(30089), Some(30089)));
    let stated = service("b", "type: NodePort, ports: [{port: 80, name: x, nodePort: 31000}]");
    let last = resolve(&stated, Some(&after));
    assert_eq!((node_ports(&last, "b"), health(&last)), (vec![Some(31000)], None));
}

#[test]
fn everything_about_node_ports_is_reported_at_once() {
    let text = service("a", "type: NodePort, ports: [{port: 80, nodePort: 30080}]")
        + &service(
            "b",
            "type: NodePort, ports: [{port: 80, nodePort: 30080, name: a}, {port: 81, nodePort: 99, name: b}]",
        )
        + &service("c", "clusterIP: 10.96.0.9, ports: [{port: 80}]")
        + &service("d", "clusterIP: 10.96.0.9, ports: [{port: 80}]");
    assert_eq!(wrong(&text).len(), 3);
}
