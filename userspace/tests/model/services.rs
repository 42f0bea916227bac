//! Services: their addresses, and who answers.

use userspace::model::{Backend, Cluster, Objects};

use crate::{cluster, fault, pod_at, pod_text, testbed};

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

fn slice(name: &str, service: &str, fields: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\n{fields}\n"
    )
}

/// Who is ready to answer the first port of a Service.
fn backends(cluster: &Cluster, id: &str) -> Vec<String> {
    let service = cluster.service(id).unwrap_or_else(|| panic!("no service {id}"));
    let text = |backend: &Backend| format!("{}:{}", backend.address, backend.port);
    service.ports[0].ready().map(text).collect()
}

/// Two web pods, 10.244.0.5 which is ready and 10.244.0.6 which isn't.
fn web() -> String {
    let status = |address: &str, ready: &str| {
        format!("status: {{podIP: {address}, conditions: [{{type: Ready, status: \"{ready}\"}}]}}\n")
    };
    pod_text("a", "app: web", "")
        + &status("10.244.0.5", "True")
        + &pod_text("b", "app: web", "")
        + &status("10.244.0.6", "False")
}

#[test]
fn a_selector_finds_the_pods_that_are_ready() {
    let text = web()
        + &pod_text("c", "app: web", "")
        + "status: {podIP: 10.244.0.7}\n"
        + &pod_text("d", "app: api", "");
    let both = text.clone() + &service("web", "selector: {app: web}, ports: [{port: 80, targetPort: 8080}]");
    assert_eq!(backends(&cluster(&both), "default/web"), ["10.244.0.5:8080", "10.244.0.7:8080"]);
    let all =
        text + &service("web", "publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 80}]");
    assert_eq!(backends(&cluster(&all), "default/web"), ["10.244.0.5:80", "10.244.0.6:80", "10.244.0.7:80"]);
}

#[test]
fn a_pod_that_is_being_deleted_is_no_endpoint() {
    let text = web().replacen("name: a,", "name: a, deletionTimestamp: \"2026-01-01T00:00:00Z\",", 1);
    let text = text + &service("web", "selector: {app: web}, ports: [{port: 80}]");
    assert!(backends(&cluster(&text), "default/web").is_empty());
}

#[test]
fn a_named_target_port_is_looked_up_in_each_pod() {
    let other = pod_text("c", "app: web", "").replace("8080", "9090") + "status: {podIP: 10.244.0.7}\n";
    let without = pod_text("d", "app: web", "").replace("name: http", "name: grpc");
    let text = web()
        + &other
        + &without
        + &service("web", "selector: {app: web}, ports: [{port: 80, targetPort: http}]");
    assert_eq!(backends(&cluster(&text), "default/web"), ["10.244.0.5:8080", "10.244.0.7:9090"]);
}

#[test]
fn endpoint_slices_win_over_the_selector() {
    let fields = "addressType: IPv4\nports: [{name: http, port: 8080, protocol: TCP}, {name: other, port: 1}]\nendpoints:
- {addresses: [10.244.0.9], conditions: {ready: true}}\n- {addresses: [10.244.0.10], conditions: {ready: false}}\n- {addresses: [10.244.0.11]}\n";
    let text = web()
        + &service("web", "selector: {app: web}, ports: [{name: http, port: 80}, {name: metrics, port: 81}]")
        + &slice(
            "web-b",
            "web",
            "addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.244.0.9]}, {addresses: [10.244.0.1]}]",
        )
        + &slice("web-a", "web", fields)
        + &slice(
            "web-six",
            "web",
            "addressType: IPv6\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [\"fd00::1\"]}]",
        );
    let cluster = cluster(&text);
    assert_eq!(backends(&cluster, "default/web"), ["10.244.0.9:8080", "10.244.0.11:8080", "10.244.0.1:8080"]);
    assert!(cluster.service("default/web").is_some_and(|service| service.ports[1].backends.is_empty()));
}

#[test]
fn an_endpoint_that_is_nobody_here_keeps_its_address_to_itself() {
    let text = pod_text("a", "", "n1")
        + &slice("x", "web", "addressType: IPv4\nports: [{port: 1}]\nendpoints: [{addresses: [10.244.0.2]}]");
    assert_eq!(cluster(&text).pods[0].address().to_string(), "10.244.0.3");
}

#[test]
fn a_service_without_selector_or_slices_has_nobody() {
    let cluster = cluster(&(web() + &service("web", "ports: [{port: 80}]")));
    assert!(backends(&cluster, "default/web").is_empty());
}

#[test]
fn addresses_are_honoured_or_chosen() {
    let port = "ports: [{port: 80}]";
    let dns = service("kube-dns", port).replace("name: kube-dns", "name: kube-dns, namespace: kube-system");
    let many: String = (0..9).map(|number| service(&format!("s{number}"), port)).collect();
    let text = service("fixed", &format!("clusterIP: 10.96.0.3, {port}")) + &many + &dns;
    let cluster = cluster(&text);
    let address = |id: &str| cluster.service(id).map(|service| service.address().to_string());
    assert_eq!(address("default/fixed").as_deref(), Some("10.96.0.3"));
    assert_eq!(address("default/s0").as_deref(), Some("10.96.0.2"));
    assert_eq!(address("default/s1").as_deref(), Some("10.96.0.4"));
    assert_eq!(address("default/s7").as_deref(), Some("10.96.0.11"), ".10 is kept for the DNS");
    assert_eq!(address("kube-system/kube-dns").as_deref(), Some("10.96.0.10"));
}

#[test]
fn services_without_an_address_are_left_out_with_a_note() {
    let text = web()
        + &service("db", "clusterIP: None, selector: {app: web}")
        + &service("far", "type: ExternalName, externalName: example.com");
    let cluster = cluster(&text);
    assert!(cluster.services.is_empty());
    let left_out = "Left out Services that have no address on the path: default/db (headless), default/far (ExternalName).";
    assert!(cluster.notes.contains(&left_out.to_owned()), "{:#?}", cluster.notes);
}

#[test]
fn services_that_cannot_be_are_refused() {
    let refused = |spec: &str| {
        let fault = fault(&service("web", spec));
        fault.strip_prefix("Service default/web: ").expect("the object is named").to_owned()
    };
    assert_eq!(refused("selector: {}"), "spec.ports: Required value");
    assert_eq!(
        refused("ports: [{port: 0}]"),
        "spec.ports[0].port: must be between 1 and 65535, inclusive, not 0"
    );
    assert_eq!(refused("ports: [{port: 1, name: a}, {port: 2}]"), "spec.ports[1].name: Required value");
    assert_eq!(
        refused("ports: [{port: 1, name: a}, {port: 2, name: a}]"),
        "spec.ports[1].name: Duplicate value: \"a\""
    );
    assert_eq!(
        refused("ports: [{port: 1, name: a}, {port: 1, name: b}]"),
        "spec.ports[1]: Duplicate value: port 1 TCP"
    );
    assert!(
        refused("type: ClusterIp, ports: [{port: 1}]")
            .starts_with("spec.type: Unsupported value: \"ClusterIp\"")
    );
    assert!(
        refused("clusterIP: 10.96.0, ports: [{port: 1}]")
            .starts_with("spec.clusterIP: must be a valid IP address")
    );
    assert!(
        refused("ports: [{port: 1, targetPort: a_b}]")
            .starts_with("spec.ports[0].targetPort: must contain only")
    );
}

#[test]
fn service_addresses_are_distinct_and_in_their_range() {
    let at =
        |name: &str, address: &str| service(name, &format!("clusterIP: {address}, ports: [{{port: 80}}]"));
    assert_eq!(
        fault(&(at("a", "10.96.0.7") + &at("b", "10.96.0.7"))),
        "Service default/b: spec.clusterIP: 10.96.0.7 is the address of Service default/a already"
    );
    assert_eq!(
        fault(&(pod_at("p", "10.244.0.9") + &at("b", "10.244.0.9"))),
        "Service default/b: spec.clusterIP: 10.244.0.9 is the address of Pod default/p already"
    );
    assert!(
        fault(&(testbed("serviceCIDR: 10.96.0.0/16") + &at("b", "10.97.0.9")))
            .contains("The range of valid IPs is 10.96.0.0/16")
    );
    let settings = cluster(&(at("a", "10.0.0.1") + &at("b", "10.0.181.7"))).settings;
    assert_eq!(settings.service_cidrs[0].to_string(), "10.0.0.0/16");
}

#[test]
fn a_full_service_range_says_how_large_it_was() {
    let services: String =
        (0..14).map(|number| service(&format!("s{number}"), "ports: [{port: 80}]")).collect();
    let error = crate::wrong(&(testbed("serviceCIDR: 10.96.0.0/28") + &services));
    assert_eq!(
        error,
        [
            "cannot give service default/s13 an address: serviceCIDR 10.96.0.0/28 has 16 addresses, all in use or reserved (.0, .1 and .10): choose a larger serviceCIDR"
        ]
    );
}

/// What is wrong with a Service of this spec, which has a port: field and reason.
fn refused(spec: &str) -> String {
    let fault = fault(&service("web", &format!("ports: [{{port: 80}}], {spec}")));
    fault.strip_prefix("Service default/web: ").expect("the object is named").to_owned()
}

#[test]
fn only_some_types_have_node_ports_and_virtual_addresses() {
    let of = |spec: &str| {
        let fault = fault(&service("web", spec));
        fault.strip_prefix("Service default/web: ").expect("the object is named").to_owned()
    };
    assert_eq!(
        of("ports: [{port: 80, nodePort: 30080}]"),
        "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"
    );
    for kind in ["NodePort", "LoadBalancer"] {
        assert_eq!(
            of(&format!("type: {kind}, clusterIP: None, ports: [{{port: 80}}]")),
            format!("spec.clusterIPs[0]: may not be set to 'None' for {kind} services")
        );
    }
    assert_eq!(
        of("type: LoadBalancer, ports: [{port: 10250}]"),
        "spec.ports[0].port: may not expose port 10250 externally since it is used by kubelet"
    );
    assert_eq!(
        of("type: NodePort, ports: [{port: 80, nodePort: 70000}]"),
        "spec.ports[0].nodePort: must be between 1 and 65535, inclusive, not 70000"
    );
    assert_eq!(
        of(
            "type: NodePort, ports: [{port: 80, name: a, nodePort: 30080}, {port: 81, name: b, nodePort: 30080}]"
        ),
        "spec.ports[1].nodePort: Duplicate value: 30080"
    );
}

#[test]
fn an_external_name_is_a_name_and_nothing_else() {
    let of = |spec: &str| {
        let fault = fault(&service("far", &format!("type: ExternalName, {spec}")));
        fault.strip_prefix("Service default/far: ").expect("the object is named").to_owned()
    };
    assert_eq!(of("externalName: \"\""), "spec.externalName: Required value");
    assert!(of("externalName: a_b").starts_with("spec.externalName: a lowercase RFC 1123 subdomain"));
    let forbidden = "Forbidden: may not be set for ExternalName services";
    for (field, name) in [
        ("clusterIP: 10.96.0.9", "clusterIPs"),
        ("ipFamilies: [IPv4]", "ipFamilies"),
        ("ipFamilyPolicy: SingleStack", "ipFamilyPolicy"),
    ] {
        assert_eq!(of(&format!("externalName: example.com., {field}")), format!("spec.{name}: {forbidden}"));
    }
}

#[test]
fn traffic_policies_are_for_those_that_have_such_traffic() {
    assert_eq!(
        refused("externalTrafficPolicy: Local"),
        "spec.externalTrafficPolicy: may only be set for externally-accessible services: type NodePort or LoadBalancer, or externalIPs"
    );
    assert_eq!(
        cluster(&service(
            "web",
            "externalTrafficPolicy: Local, externalIPs: [20.0.0.1], ports: [{port: 80}]"
        ))
        .services
        .len(),
        1
    );
    assert_eq!(
        refused("type: NodePort, externalTrafficPolicy: Lokal"),
        r#"spec.externalTrafficPolicy: Unsupported value: "Lokal": supported values: "Cluster", "Local""#
    );
    assert_eq!(
        refused("internalTrafficPolicy: Node"),
        r#"spec.internalTrafficPolicy: Unsupported value: "Node": supported values: "Cluster", "Local""#
    );
    assert_eq!(
        refused("trafficDistribution: PreferFar"),
        r#"spec.trafficDistribution: Unsupported value: "PreferFar": supported values: "PreferClose", "PreferSameNode", "PreferSameZone""#
    );
    for spec in ["type: LoadBalancer", "type: NodePort, externalTrafficPolicy: Local"] {
        assert_eq!(
            refused(&format!("{spec}, healthCheckNodePort: 32000")),
            "spec.healthCheckNodePort: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local', not 32000"
        );
    }
}

#[test]
fn affinity_lasts_a_day_at_most() {
    assert_eq!(
        refused("sessionAffinity: Client"),
        r#"spec.sessionAffinity: Unsupported value: "Client": supported values: "ClientIP", "None""#
    );
    assert_eq!(
        refused("sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}"),
        "spec.sessionAffinityConfig: Forbidden: must not be set when session affinity is None"
    );
    for timeout in [0, 86_401] {
        assert_eq!(
            refused(&format!(
                "sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {timeout}}}}}"
            )),
            format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: must be between 1 and 86400, inclusive, not {timeout}"
            )
        );
    }
}

#[test]
fn what_is_a_load_balancers_is_for_load_balancers() {
    let forbidden = "Forbidden: may only be used when `type` is 'LoadBalancer'";
    for (field, name) in [
        ("loadBalancerSourceRanges: [10.0.0.0/8]", "loadBalancerSourceRanges"),
        ("allocateLoadBalancerNodePorts: false", "allocateLoadBalancerNodePorts"),
        ("loadBalancerClass: a/b", "loadBalancerClass"),
    ] {
        assert_eq!(refused(&format!("type: NodePort, {field}")), format!("spec.{name}: {forbidden}"));
    }
    assert!(
        refused("type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/8, ten]")
            .starts_with("spec.loadBalancerSourceRanges[1]: must be a valid CIDR value")
    );
    assert!(
        refused("type: LoadBalancer, loadBalancerIP: ten")
            .starts_with("spec.loadBalancerIP: must be a valid IP address")
    );
    let annotated = |name: &str, value: &str, kind: &str| {
        let text = service("web", &format!("type: {kind}, ports: [{{port: 80}}]"));
        fault(&text.replace(
            "{name: web}",
            &format!("{{name: web, annotations: {{service.beta.kubernetes.io/{name}: \"{value}\"}}}}"),
        ))
    };
    let ranges =
        "Service default/web: metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]";
    assert_eq!(
        annotated("load-balancer-source-ranges", "10.0.0.0/8", "ClusterIP"),
        format!("{ranges}: {forbidden}")
    );
    assert!(
        annotated("load-balancer-source-ranges", "10.0.0.0/8, x", "LoadBalancer")
            .starts_with(&format!("{ranges}: must be a valid CIDR value"))
    );
    assert_eq!(
        annotated("azure-load-balancer-ipv4", "2001:db8::1", "LoadBalancer"),
        "Service default/web: metadata.annotations[service.beta.kubernetes.io/azure-load-balancer-ipv4]: must be an IPv4 address, not \"2001:db8::1\""
    );
    assert_eq!(
        fault(
            &(testbed("loadBalancer: {forward: node-port}")
                + &service(
                    "web",
                    "type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]"
                ))
        ),
        "Service default/web: spec.allocateLoadBalancerNodePorts: the load balancer of this cluster forwards to node ports (loadBalancer.forward of the Testbed), so none may be missing"
    );
}

#[test]
fn external_addresses_mean_the_same_everywhere() {
    for (address, why) in [
        ("0.0.0.0", "may not be unspecified (0.0.0.0 or ::)"),
        ("127.0.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        ("169.254.1.1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        ("fe80::1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        ("224.0.0.9", "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
        ("ff02::1", "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ] {
        assert_eq!(
            refused(&format!("externalIPs: [\"{address}\"]")),
            format!("spec.externalIPs[0]: {why}, not {address:?}")
        );
    }
    assert!(refused("externalIPs: [ten]").starts_with("spec.externalIPs[0]: must be a valid IP address"));
}

#[test]
fn everything_that_is_wrong_with_a_service_is_said_at_once() {
    let text = service(
        "web",
        "type: NodePort, sessionAffinity: x, externalTrafficPolicy: y, internalTrafficPolicy: z, ports: [{port: 0}], externalIPs: [127.0.0.1], loadBalancerClass: c",
    );
    assert_eq!(crate::wrong(&text).len(), 6);
}

#[test]
fn what_a_status_says_of_the_load_balancer_is_read() {
    let of = |ingress: &str| {
        let text = service("web", "type: LoadBalancer, ports: [{port: 80}]");
        fault(&(text + &format!("status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n")))
    };
    let path = "Service default/web: status.loadBalancer.ingress[0]";
    assert!(of("{ip: here}").starts_with(&format!("{path}.ip: must be a valid IP address")));
    assert_eq!(
        of("{hostname: a.b, ipMode: VIP}"),
        format!("{path}.ipMode: Forbidden: may not be specified when `ip` is not set")
    );
    assert_eq!(
        of("{ip: 20.0.0.1, ipMode: Vip}"),
        format!(r#"{path}.ipMode: Unsupported value: "Vip": supported values: "Proxy", "VIP""#)
    );
}

#[test]
fn slices_that_cannot_be_are_refused() {
    let of = |fields: &str| {
        let fault = fault(&slice("s", "web", fields));
        fault.strip_prefix("EndpointSlice default/s: ").expect("the object is named").to_owned()
    };
    let endpoint = |fields: &str| of(&format!("addressType: IPv4\nendpoints: [{{{fields}}}]"));
    assert_eq!(
        of("addressType: ipv4\nendpoints: []"),
        r#"addressType: Unsupported value: "ipv4": supported values: "FQDN", "IPv4", "IPv6""#
    );
    assert_eq!(
        endpoint("addresses: []"),
        "endpoints[0].addresses: Required value: must contain at least 1 address"
    );
    assert_eq!(
        endpoint("addresses: [\"fd00::1\"]"),
        "endpoints[0].addresses[0]: must be an IPv4 address, not \"fd00::1\""
    );
    assert_eq!(
        endpoint("addresses: [127.0.0.1]"),
        "endpoints[0].addresses[0]: may not be in the loopback range (127.0.0.0/8, ::1/128), not \"127.0.0.1\""
    );
    let many: Vec<String> = (1..=101).map(|number| format!("10.0.0.{number}")).collect();
    assert_eq!(
        endpoint(&format!("addresses: [{}]", many.join(", "))),
        "endpoints[0].addresses: Too many: 101: must have at most 100 items"
    );
    assert!(
        endpoint("addresses: [10.0.0.1], nodeName: N1").starts_with("endpoints[0].nodeName: a lowercase")
    );
    assert_eq!(
        endpoint("addresses: [10.0.0.1], hints: {forZones: [{name: a}, {name: a}]}"),
        "endpoints[0].hints.forZones[1].name: Duplicate value: \"a\""
    );
    let zones: Vec<String> = (1..=9).map(|number| format!("{{name: z{number}}}")).collect();
    assert_eq!(
        endpoint(&format!("addresses: [10.0.0.1], hints: {{forZones: [{}]}}", zones.join(", "))),
        "endpoints[0].hints.forZones: Too many: 9: must have at most 8 items"
    );
    assert_eq!(
        of("addressType: IPv4\nports: [{name: a, port: 1}, {name: a, port: 2}]\nendpoints: []"),
        "ports[1].name: Duplicate value: \"a\""
    );
    assert_eq!(
        of("addressType: FQDN\nendpoints: [{addresses: [here]}]"),
        "endpoints[0].addresses[0]: should be a domain with at least two segments separated by dots, not \"here\""
    );
}

#[test]
fn a_cluster_with_services_is_read_back_as_it_was_written() {
    let text = web()
        + &service(
            "web",
            "type: LoadBalancer, externalTrafficPolicy: Local, externalIPs: [20.0.0.1], sessionAffinity: ClientIP, trafficDistribution: PreferSameNode, loadBalancerSourceRanges: [10.0.0.0/8], selector: {app: web}, ports: [{port: 80}]",
        )
        + &testbed(
            "encapsulation: geneve, services: {algorithm: random, directReturn: true}, loadBalancer: {forward: ip-in-ip, probe: http}",
        );
    let cluster = cluster(&text);
    let written = serde_json::to_string(&cluster).unwrap_or_else(|error| panic!("{error}"));
    let back: Cluster = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (&back.services, &back.pods, &back.settings),
        (&cluster.services, &cluster.pods, &cluster.settings)
    );
    let objects = Objects::parse("a.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
    let written = serde_json::to_string(&objects).unwrap_or_else(|error| panic!("{error}"));
    let again: Objects = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}"));
    let resolved = again.resolve(Some(&back)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(resolved.services, cluster.services, "and nothing that was chosen is chosen again");
    assert_eq!(resolved.settings, cluster.settings);
}
