//! Services: their addresses, and who answers.

use userspace::model::{Backend, Cluster};

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
