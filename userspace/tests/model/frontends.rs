//! Frontends of the load balancer, and external addresses.

use userspace::model::{Cluster, Objects, Service, TrafficPolicy};

use crate::{cluster, external_at, fault, node_at, pod_at, testbed};

const INTERNAL: &str = "service.beta.kubernetes.io/azure-load-balancer-internal: \"true\"";

fn service(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{ports: [{{port: 80}}], {spec}}}\n"
    )
}

fn balanced(name: &str, annotations: &str) -> String {
    service(name, annotations, "type: LoadBalancer")
}

fn named<'a>(cluster: &'a Cluster, name: &str) -> &'a Service {
    cluster.service(&format!("default/{name}")).unwrap_or_else(|| panic!("no service {name}"))
}

fn frontends(cluster: &Cluster, name: &str) -> Vec<String> {
    named(cluster, name).load_balancer_addresses.iter().map(ToString::to_string).collect()
}

fn resolve(text: &str, previous: Option<&Cluster>) -> Cluster {
    let objects = Objects::parse("live.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    objects.resolve(previous).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_frontend_is_chosen_in_the_world_or_in_the_node_subnet() {
    let text = balanced("a", "")
        + &balanced("b", INTERNAL)
        + &balanced("c", "")
        + &service("d", "", "type: NodePort")
        + &service("e", INTERNAL, "type: ClusterIP");
    let cluster = cluster(&text);
    assert_eq!(frontends(&cluster, "a"), ["198.51.100.1"]);
    assert_eq!(frontends(&cluster, "b"), ["10.240.0.6"], "after the two nodes'");
    assert_eq!(frontends(&cluster, "c"), ["198.51.100.2"]);
    assert!(frontends(&cluster, "d").is_empty() && frontends(&cluster, "e").is_empty());
    let internal = |name: &str| named(&cluster, name).internal_load_balancer;
    assert_eq!([internal("a"), internal("b"), internal("e")], [false, true, false]);
}

#[test]
fn the_status_comes_before_what_is_asked_for() {
    let status = |ingress: &str| format!("status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n");
    let asks = service("a", "", "type: LoadBalancer, loadBalancerIP: 20.0.0.9");
    let has = |ingress: &str| cluster(&(asks.clone() + &status(ingress)));
    assert_eq!(frontends(&cluster(&asks), "a"), ["20.0.0.9"]);
    assert_eq!(frontends(&has("{ip: 20.0.0.1}"), "a"), ["20.0.0.1"]);
    assert_eq!(frontends(&has("{ip: 20.0.0.1, ipMode: VIP}, {ip: 20.0.0.2}"), "a"), ["20.0.0.1", "20.0.0.2"]);
    for elsewhere in ["{ip: 20.0.0.1, ipMode: Proxy}", "{hostname: lb.example.com}"] {
        let cluster = has(elsewhere);
        assert!(frontends(&cluster, "a").is_empty());
        let note = "Load balancers that are reached by a name or as a proxy are not on the path: default/a.";
        assert!(cluster.notes.contains(&note.to_owned()), "{:#?}", cluster.notes);
    }
}

#[test]
fn annotations_of_each_family_come_before_the_field() {
    let both = "service.beta.kubernetes.io/azure-load-balancer-ipv4: 20.0.0.1, service.beta.kubernetes.io/azure-load-balancer-ipv6: \"2001:db8::9\"";
    let dual = testbed("podCIDRs: [10.244.0.0/16, \"fd00:10:244::/48\"]");
    let spec = "type: LoadBalancer, loadBalancerIP: 20.0.0.2";
    let preferred = "type: LoadBalancer, ipFamilyPolicy: PreferDualStack";
    let text = dual
        + &service("a", both, spec)
        + &service("b", both, preferred).replace("20.0.0.1", "20.0.0.3").replace("::9", "::8")
        + &service("c", "", preferred);
    let cluster = cluster(&text);
    assert_eq!(frontends(&cluster, "a"), ["20.0.0.1"], "it is of one family");
    assert_eq!(frontends(&cluster, "b"), ["20.0.0.3", "2001:db8::8"]);
    assert_eq!(frontends(&cluster, "c"), ["198.51.100.1", "2001:db8:5100::1"]);
}

#[test]
fn another_load_balancers_class_has_no_frontend_unless_its_status_says_so() {
    let classy = service("a", "", "type: LoadBalancer, loadBalancerClass: example.com/metal");
    let cluster = cluster(&classy);
    assert!(frontends(&cluster, "a").is_empty());
    let note = "Services of another load balancer's class have no frontend: default/a.";
    assert!(cluster.notes.contains(&note.to_owned()), "{:#?}", cluster.notes);
    let reported = classy + "status: {loadBalancer: {ingress: [{ip: 20.0.0.1}]}}\n";
    assert_eq!(frontends(&crate::cluster(&reported), "a"), ["20.0.0.1"]);
}

#[test]
fn a_frontend_in_the_node_subnet_is_internal_whatever_the_annotation_says() {
    let text = node_at("n1", "192.168.1.10")
        + &service("a", "", "type: LoadBalancer")
        + "status: {loadBalancer: {ingress: [{ip: 192.168.1.240}]}}\n";
    assert!(named(&cluster(&text), "a").internal_load_balancer);
}

#[test]
fn load_balancers_that_are_the_nodes_themselves_are_left_out() {
    let text = node_at("n1", "192.168.1.10")
        + &service("a", "", "type: LoadBalancer")
        + "status: {loadBalancer: {ingress: [{ip: 192.168.1.10}]}}\n";
    let cluster = cluster(&text);
    assert!(frontends(&cluster, "a").is_empty());
    let note = "Load balancers whose addresses are nodes' own are left out: default/a.";
    assert!(cluster.notes.contains(&note.to_owned()), "{:#?}", cluster.notes);
}

#[test]
fn services_may_share_an_address_but_not_a_port_of_it() {
    let at = |name: &str, port: &str| {
        service(name, "", "externalIPs: [20.0.0.1]").replace("{port: 80}", &format!("{{{port}}}"))
    };
    let shared = cluster(&(at("a", "port: 80") + &at("b", "port: 81") + &at("c", "port: 80, protocol: UDP")));
    assert_eq!(named(&shared, "c").external_addresses, named(&shared, "a").external_addresses);
    assert_eq!(
        fault(&(at("a", "port: 80") + &at("b", "port: 80"))),
        "Service default/b: spec.externalIPs[0]: port 80 TCP of 20.0.0.1 is Service default/a's already"
    );
    let asks = service("b", "", "type: LoadBalancer, loadBalancerIP: 20.0.0.1");
    assert_eq!(
        fault(&(at("a", "port: 80") + &asks)),
        "Service default/b: spec.loadBalancerIP: port 80 TCP of 20.0.0.1 is Service default/a's already"
    );
}

#[test]
fn what_is_somebodys_is_no_frontend() {
    let external = service("a", "", "externalIPs: [20.0.0.1]");
    let of = "Service default/a: spec.externalIPs[0]: 20.0.0.1 is the address of";
    assert_eq!(
        fault(&(external.clone() + &external_at("w", "20.0.0.1"))),
        format!("{of} External w already")
    );
    assert_eq!(fault(&(external.clone() + &pod_at("p", "20.0.0.1"))), format!("{of} Pod default/p already"));
    assert_eq!(fault(&(external + &node_at("n1", "20.0.0.1"))), format!("{of} Node n1 already"));
    assert_eq!(
        fault(&(testbed("serviceCIDR: 10.96.0.0/16") + &service("a", "", "externalIPs: [10.96.0.9]"))),
        "Service default/a: spec.externalIPs[0]: 10.96.0.9 is inside serviceCIDR 10.96.0.0/16: it needs an address outside of it"
    );
    assert_eq!(
        fault(
            &(testbed("podCIDR: 10.244.0.0/16")
                + &service("a", "", "type: LoadBalancer, loadBalancerIP: 10.244.0.9"))
        ),
        "Service default/a: spec.loadBalancerIP: 10.244.0.9 is inside podCIDR 10.244.0.0/16: it needs an address outside of it"
    );
}

#[test]
fn ranges_that_are_chosen_leave_frontends_outside() {
    let text = service("a", "", "externalIPs: [10.244.0.9, 10.96.0.9]");
    let settings = cluster(&text).settings;
    assert_eq!(settings.pod_cidrs[0].to_string(), "10.245.0.0/16");
    assert_eq!(settings.service_cidrs[0].to_string(), "10.97.0.0/16");
}

#[test]
fn what_was_chosen_stays_while_others_come_and_go() {
    let before = resolve(&(balanced("a", "") + &balanced("b", "") + &balanced("i", INTERNAL)), None);
    let after = resolve(&(balanced("c", "") + &balanced("b", "") + &balanced("i", INTERNAL)), Some(&before));
    assert_eq!(frontends(&after, "b"), ["198.51.100.2"]);
    assert_eq!(frontends(&after, "c"), ["198.51.100.1"]);
    assert_eq!(frontends(&after, "i"), frontends(&before, "i"));
    let moved = resolve(&(balanced("b", INTERNAL) + &balanced("i", "")), Some(&after));
    assert_eq!(frontends(&moved, "b"), ["10.240.0.6"], "what is internal now has an address inside");
    assert_eq!(frontends(&moved, "i"), ["198.51.100.1"]);
}

#[test]
fn frontends_come_from_ranges_outside_of_all_others() {
    let settings = |spec: &str| cluster(&testbed(spec)).settings.load_balancer;
    assert_eq!(settings("").frontend_cidrs[0].to_string(), "198.51.100.0/24");
    assert_eq!(settings("nodeSubnet: 198.51.100.0/24").frontend_cidrs[0].to_string(), "203.0.113.0/24");
    let stated = settings("loadBalancer: {frontendCIDRs: [20.1.2.3/30]}");
    assert_eq!(stated.frontend_cidrs[0].to_string(), "20.1.2.0/30");
    let refused = |spec: &str| fault(&testbed(spec));
    assert_eq!(
        refused("loadBalancer: {frontendCIDRs: [10.240.9.0/24]}"),
        "Testbed lab: spec.loadBalancer.frontendCIDRs: 10.240.9.0/24 overlaps nodeSubnet 10.240.0.0/16: public frontends are in the world"
    );
    assert_eq!(
        refused("loadBalancer: {frontendCIDRs: [20.0.0.0/24, 21.0.0.0/24]}"),
        "Testbed lab: spec.loadBalancer.frontendCIDRs[1]: may specify no more than one CIDR for each IP family, and 21.0.0.0/24 is a second of IPv4"
    );
}

#[test]
fn a_range_of_frontends_that_is_full_says_how_large_it_was() {
    let all = testbed("loadBalancer: {frontendCIDRs: [20.0.0.0/30]}");
    let three: String = ["a", "b", "c"].map(|name| balanced(name, "")).concat();
    assert_eq!(
        crate::wrong(&(all + &three)),
        [
            "cannot give service default/c a frontend: loadBalancer.frontendCIDRs 20.0.0.0/30 has 2 usable addresses, all in use: choose a larger loadBalancer.frontendCIDRs"
        ]
    );
}

#[test]
fn policies_affinity_and_source_ranges_are_read() {
    let text = service(
        "a",
        "",
        "type: LoadBalancer, externalTrafficPolicy: Local, internalTrafficPolicy: Local, sessionAffinity: ClientIP, loadBalancerSourceRanges: [\" 20.1.0.9/16\", \"2001:db8::/32\"]",
    ) + &service(
        "b",
        "service.beta.kubernetes.io/load-balancer-source-ranges: \"10.0.0.0/8, 20.0.0.0/8\"",
        "type: LoadBalancer, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
    ) + &service("c", "", "type: NodePort");
    let cluster = cluster(&text);
    let ranges = |name: &str| -> Vec<String> {
        named(&cluster, name).source_ranges.iter().map(ToString::to_string).collect()
    };
    assert_eq!(ranges("a"), ["20.1.0.0/16", "2001:db8::/32"]);
    assert_eq!(ranges("b"), ["10.0.0.0/8", "20.0.0.0/8"]);
    let policies =
        |name: &str| (named(&cluster, name).external_policy, named(&cluster, name).internal_policy);
    assert_eq!(policies("a"), (TrafficPolicy::Local, TrafficPolicy::Local));
    assert_eq!(policies("c"), (TrafficPolicy::Cluster, TrafficPolicy::Cluster));
    let affinity = ["a", "b", "c"].map(|name| named(&cluster, name).affinity_s);
    assert_eq!(affinity, [Some(10_800), Some(60), None]);
}
