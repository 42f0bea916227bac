//! IPv4, IPv6, and both: what has which addresses.

use std::net::IpAddr;

use userspace::ipam::IpFamily;
use userspace::model::{Cluster, Objects, Pod};

use crate::{cluster, fault, node_at, pod, pod_text, testbed, wrong};

/// Ranges of both families, IPv4 first.
const DUAL: &str = "podCIDRs: [10.244.0.0/16, \"fd00:10:244::/48\"]";

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn pod_ips(name: &str, addresses: &[&str]) -> String {
    let list: Vec<String> = addresses.iter().map(|address| format!("{{ip: \"{address}\"}}")).collect();
    format!(
        "{}status: {{podIP: \"{}\", podIPs: [{}]}}\n",
        pod_text(name, "app: web", ""),
        addresses[0],
        list.join(", ")
    )
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}], selector: {{app: web}}, {spec}}}\n"
    )
}

fn services(cluster: &Cluster) -> Vec<String> {
    cluster.services.iter().map(|service| texts(&service.addresses).join(" ")).collect()
}

fn refused(service: &str) -> String {
    let fault = fault(service);
    fault.strip_prefix("Service default/web: ").expect("the object is named").to_owned()
}

#[test]
fn ranges_that_are_left_out_are_of_the_families_of_those_that_are_stated() {
    let ranges = |spec: &str| {
        let settings = cluster(&testbed(spec)).settings;
        let all = [settings.node_subnets, settings.pod_cidrs, settings.service_cidrs];
        all.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    let [nodes, pods, services] = ranges(DUAL);
    assert_eq!(nodes, "10.240.0.0/16 fd00:10:240::/64");
    assert_eq!(pods, "10.244.0.0/16 fd00:10:244::/48");
    assert_eq!(services, "10.96.0.0/16 fd00:10:96::/108");
    assert_eq!(ranges("podCIDR: \"fd00:1::/56\""), ["fd00:10:240::/64", "fd00:1::/56", "fd00:10:96::/108"]);
    assert_eq!(
        ranges("serviceCIDRs: [\"fd00:2::/112\", 10.9.0.0/16], nodeSubnet: 10.240.0.0/16"),
        ["10.240.0.0/16", "fd00:10:244::/48 10.244.0.0/16", "fd00:2::/112 10.9.0.0/16"]
    );
}

#[test]
fn everybody_has_an_address_of_each_family_the_first_ranges_first() {
    let text = testbed(DUAL) + &pod_text("a", "", "n1") + &pod_text("b", "", "n2");
    let cluster = cluster(&text);
    assert_eq!(texts(&cluster.nodes[1].addresses), ["10.240.0.5", "fd00:10:240::5"]);
    let ranges: Vec<String> = cluster.nodes[1].pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.244.1.0/24", "fd00:10:244:1::/64"]);
    assert_eq!(texts(&pod(&cluster, "default/b").addresses), ["10.244.1.2", "fd00:10:244:1::2"]);
    let six_first = testbed("podCIDRs: [\"fd00:10:244::/48\", 10.244.0.0/16]") + &pod_text("a", "", "n1");
    assert_eq!(texts(&crate::cluster(&six_first).pods[0].addresses), ["fd00:10:244::2", "10.244.0.2"]);
}

#[test]
fn six_alone_works_in_every_model() {
    for (model, spec, expected) in [
        ("overlay", "podCIDR: \"fd00:1::/48\"", "fd00:1::2"),
        ("kubenet", "podCIDR: \"fd00:1::/48\"", "fd00:1::2"),
        ("flat", "nodeSubnet: \"fd00:1::/64\"", "fd00:1::5"),
        ("flat-dynamic", "podSubnet: \"fd00:1::/64\"", "fd00:1::4"),
    ] {
        let cluster = cluster(&(testbed(&format!("model: {model}, {spec}")) + &pod_text("a", "", "n1")));
        assert_eq!(texts(&cluster.pods[0].addresses), [expected], "{model}");
        assert!(cluster.nodes.iter().all(|node| node.addresses.iter().all(IpAddr::is_ipv6)), "{model}");
    }
}

#[test]
fn an_overlay_of_both_families_runs_on_nodes_of_one() {
    let cluster =
        cluster(&(testbed(&format!("nodeSubnet: 10.240.0.0/16, {DUAL}")) + &pod_text("a", "", "n1")));
    assert_eq!(texts(&cluster.nodes[0].addresses), ["10.240.0.4"]);
    assert_eq!(cluster.pods[0].addresses.len(), 2);
    assert_eq!(
        fault(&testbed(&format!("model: kubenet, nodeSubnet: 10.240.0.0/16, {DUAL}"))),
        "Testbed lab: spec.podCIDR: fd00:10:244::/48 is IPv6, and pods are routed to nodes, so nodeSubnet needs IPv6"
    );
}

#[test]
fn flat_models_have_both_families_too() {
    let on_each = pod_text("x", "", "n1") + &pod_text("a", "", "n2");
    let flat = cluster(&(testbed("model: flat, nodeSubnets: [10.1.0.0/24, \"fd00:1::/64\"]") + &on_each));
    assert_eq!(texts(&flat.nodes[1].addresses), ["10.1.0.35", "fd00:1::23"]);
    assert_eq!(texts(&flat.pods[1].addresses), ["10.1.0.36", "fd00:1::24"]);
    let spec = "model: flat-dynamic, podSubnets: [10.1.0.0/24, \"fd00:1::/64\"]";
    let dynamic = cluster(&(testbed(spec) + &on_each));
    assert_eq!(texts(&dynamic.pods[1].addresses), ["10.1.0.20", "fd00:1::14"]);
}

#[test]
fn addresses_that_are_stated_are_all_there_are() {
    let text = testbed(DUAL)
        + &node_at("n1", "10.240.0.9")
        + &pod_ips("both", &["fd00:10:244::9", "10.244.0.9"])
        + &pod_ips("six", &["fd00:10:244::8"])
        + &pod_text("chosen", "", "");
    let cluster = cluster(&text);
    assert_eq!(texts(&cluster.nodes[0].addresses), ["10.240.0.9"]);
    assert_eq!(texts(&pod(&cluster, "default/both").addresses), ["fd00:10:244::9", "10.244.0.9"]);
    assert_eq!(texts(&pod(&cluster, "default/six").addresses), ["fd00:10:244::8"]);
    assert_eq!(texts(&pod(&cluster, "default/chosen").addresses), ["10.244.0.2", "fd00:10:244::2"]);
    assert_eq!(
        pod(&cluster, "default/both").address_like("10.0.0.1".parse().expect("an address")),
        "10.244.0.9".parse().ok()
    );
}

#[test]
fn a_node_states_addresses_and_pod_ranges_of_both_families() {
    let text = "---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.7.0/24, podCIDRs: [10.244.7.0/24, \"fd00:7::/64\"]}
status: {addresses: [{type: InternalIP, address: 10.240.0.9}, {type: Hostname, address: n1}, {type: InternalIP, address: 10.240.0.10}, {type: InternalIP, address: \"fd00:2::9\"}]}
".to_owned() + &pod_text("a", "", "n1") + &pod_text("h", "", "n1").replace("nodeName", "hostNetwork: true, nodeName");
    let cluster = cluster(&text);
    assert_eq!(texts(&cluster.nodes[0].addresses), ["10.240.0.9", "fd00:2::9"]);
    assert_eq!(texts(&pod(&cluster, "default/a").addresses), ["10.244.7.2", "fd00:7::2"]);
    assert_eq!(pod(&cluster, "default/h").addresses, cluster.nodes[0].addresses);
    assert_eq!(cluster.settings.node_subnets[1].to_string(), "fd00:2::/64");
    assert_eq!(cluster.settings.pod_cidrs[1].to_string(), "fd00:7::/48");
}

#[test]
fn without_a_testbed_the_families_are_those_of_the_input() {
    let both = cluster(&(pod_ips("a", &["10.244.3.3", "fd00:1::3"]) + &pod_text("b", "", "")));
    assert_eq!(pod(&both, "default/b").addresses.len(), 2);
    let six = cluster(&(pod_ips("a", &["fd00:1::3"]) + &pod_text("b", "", "")));
    assert_eq!(texts(&pod(&six, "default/b").addresses), ["fd00:1:0:1::2"]);
    assert!(six.nodes[0].address().is_ipv6());
}

#[test]
fn nodes_may_have_a_family_that_no_pod_has() {
    let node = "---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 10.240.0.9}, {type: InternalIP, address: \"fd00:2::9\"}]}
";
    let text = node.to_owned()
        + &pod_ips("a", &["10.244.0.9"])
        + &pod_text("b", "", "")
        + &service("web", "ipFamilyPolicy: PreferDualStack");
    let cluster = cluster(&text);
    assert_eq!(cluster.settings.node_subnets.len(), 2);
    assert_eq!(pod(&cluster, "default/b").addresses.len(), 1);
    assert_eq!(services(&cluster), ["10.96.0.2"]);
}

#[test]
fn two_of_one_family_are_refused() {
    assert_eq!(
        fault(&pod_ips("a", &["10.244.0.2", "10.244.0.3"])),
        "Pod default/a: status.podIP: may specify no more than one IP for each IP family"
    );
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.1.0.0/24, 10.2.0.0/24]}\n";
    assert_eq!(fault(node), "Node n1: spec.podCIDR: may specify no more than one CIDR for each IP family");
    assert_eq!(
        fault(&testbed("podCIDRs: [10.1.0.0/16, 10.2.0.0/16]")),
        "Testbed lab: spec.podCIDRs[1]: may specify no more than one CIDR for each IP family, and 10.2.0.0/16 is a second of IPv4"
    );
    assert!(
        fault(&(pod_text("a", "", "") + "status: {podIP: 10.244.0.2, podIPs: [{ip: 10.244.0.3}]}\n"))
            .contains("status.podIP: the first must match `podIP`: 10.244.0.3 is not 10.244.0.2")
    );
}

#[test]
fn services_have_one_family_unless_they_ask_for_two() {
    let text = testbed(DUAL)
        + &service("single", "")
        + &service("six", "ipFamilies: [IPv6]")
        + &service("prefer", "ipFamilyPolicy: PreferDualStack")
        + &service("require", "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6]")
        + &service("one-stated", "ipFamilyPolicy: PreferDualStack, clusterIP: \"fd00:10:96::9\"")
        + &service(
            "both",
            "ipFamilyPolicy: RequireDualStack, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9, \"fd00:10:96::8\"]",
        );
    assert_eq!(
        services(&cluster(&text)),
        [
            "10.96.0.2",
            "fd00:10:96::2",
            "10.96.0.3 fd00:10:96::3",
            "fd00:10:96::4 10.96.0.4",
            "fd00:10:96::9 10.96.0.5",
            "10.96.0.9 fd00:10:96::8",
        ]
    );
    let single = testbed("") + &service("prefer", "ipFamilyPolicy: PreferDualStack");
    assert_eq!(services(&cluster(&single)), ["10.96.0.2"]);
}

#[test]
fn the_dns_has_the_tenth_address_of_each_family() {
    let dns = service("kube-dns", "ipFamilyPolicy: RequireDualStack")
        .replace("kube-dns}", "kube-dns, namespace: kube-system}");
    assert_eq!(services(&cluster(&(testbed(DUAL) + &dns))), ["10.96.0.10 fd00:10:96::a"]);
}

#[test]
fn services_that_the_api_server_refuses_are_refused_in_its_words() {
    let web = |spec: &str| service("web", spec);
    assert_eq!(
        refused(&web("ipFamilyPolicy: RequireDualStack")),
        "spec.ipFamilyPolicy: this cluster is not configured for dual-stack services"
    );
    assert_eq!(
        refused(&(testbed("podCIDR: 10.244.0.0/16") + &web("ipFamilies: [IPv6]"))),
        "spec.ipFamilies[0]: IPv6 is not configured on this cluster"
    );
    assert_eq!(
        refused(&(testbed("podCIDR: 10.244.0.0/16") + &web("clusterIP: \"fd00::9\""))),
        "spec.clusterIPs[0]: IPv6 is not configured on this cluster"
    );
    assert_eq!(
        refused(&web("ipFamilies: [IPv4, IPv6]")),
        "spec.ipFamilyPolicy: must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"
    );
    assert_eq!(
        refused(&web("clusterIPs: [10.96.0.9, \"fd00::9\"]")),
        "spec.ipFamilyPolicy: must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"
    );
    assert_eq!(
        refused(&web("ipFamilyPolicy: PreferDualStack, clusterIPs: [10.96.0.9, 10.96.0.8]")),
        "spec.clusterIPs: may specify no more than one IP for each IP family"
    );
    assert_eq!(
        refused(&web("clusterIP: 10.96.0.9, ipFamilies: [IPv6]")),
        "spec.clusterIPs[0]: expected an IPv6 value as indicated by `ipFamilies[0]`, not 10.96.0.9"
    );
    assert_eq!(
        refused(&web("clusterIP: 10.96.0.9, clusterIPs: [10.96.0.8]")),
        "spec.clusterIPs[0]: must match `clusterIP`, not \"10.96.0.8\" (clusterIP is \"10.96.0.9\")"
    );
    assert_eq!(
        refused(&web("ipFamilies: [IPv5]")),
        r#"spec.ipFamilies[0]: Unsupported value: "IPv5": supported values: "IPv4", "IPv6""#
    );
    assert_eq!(
        refused(&web("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv4]")),
        r#"spec.ipFamilies[1]: Duplicate value: "IPv4""#
    );
    assert!(
        refused(&web("ipFamilyPolicy: Dual")).starts_with("spec.ipFamilyPolicy: Unsupported value: \"Dual\"")
    );
}

#[test]
fn only_endpoints_of_a_services_families_answer_it() {
    let backends = |spec: &str| -> Vec<String> {
        let text = testbed(DUAL)
            + &pod_ips("both", &["10.244.0.9", "fd00:10:244::9"])
            + &pod_ips("six", &["fd00:10:244::8"])
            + &service("web", spec);
        let cluster = cluster(&text);
        cluster.services[0].ports[0].backends.iter().map(|backend| backend.address.to_string()).collect()
    };
    assert_eq!(backends(""), ["10.244.0.9"]);
    assert_eq!(backends("ipFamilies: [IPv6]"), ["fd00:10:244::9", "fd00:10:244::8"]);
    assert_eq!(
        backends("ipFamilyPolicy: RequireDualStack"),
        ["10.244.0.9", "fd00:10:244::9", "fd00:10:244::8"]
    );
}

#[test]
fn endpoint_slices_have_a_family_each() {
    let slice = |family: &str, address: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-{}, labels: {{kubernetes.io/service-name: web}}}}\naddressType: {family}\nports: [{{port: 80}}]\nendpoints: [{{addresses: [\"{address}\"]}}]\n",
            family.to_lowercase()
        )
    };
    let text = testbed(DUAL)
        + &slice("IPv6", "fd00:10:244::7")
        + &slice("IPv4", "10.244.0.7")
        + &service("web", "ipFamilyPolicy: PreferDualStack");
    let backends = &cluster(&text).services[0].ports[0].backends;
    let addresses: Vec<String> = backends.iter().map(|backend| backend.address.to_string()).collect();
    assert_eq!(addresses, ["10.244.0.7", "fd00:10:244::7"]);
    assert!(
        fault(&slice("IPv6", "10.244.0.7"))
            .ends_with("endpoints[0].addresses[0]: must be an IPv6 address, not \"10.244.0.7\"")
    );
}

#[test]
fn a_service_keeps_its_address_when_it_gets_another_family() {
    let objects = |spec: &str| {
        Objects::parse("live.yaml", &(testbed(DUAL) + &service("x", "") + &service("web", spec)))
            .expect("sound")
    };
    let before = objects("").resolve(None).expect("there is room");
    assert_eq!(services(&before)[1], "10.96.0.3");
    let after = objects("ipFamilyPolicy: PreferDualStack").resolve(Some(&before)).expect("there is room");
    assert_eq!(services(&after)[1], "10.96.0.3 fd00:10:96::2");
    let again = objects("").resolve(Some(&after)).expect("there is room");
    assert_eq!(services(&again)[1], "10.96.0.3");
}

#[test]
fn nodes_and_pods_of_both_families_stay_as_they_were() {
    let text = |pods: &str| testbed(DUAL) + pods;
    let both = pod_text("a", "", "") + &pod_text("b", "", "");
    let objects = |pods: &str| Objects::parse("live.yaml", &text(pods)).expect("sound");
    let before = objects(&both).resolve(None).expect("there is room");
    let after = objects(&(pod_text("c", "", "n1") + &pod_text("b", "", "")))
        .resolve(Some(&before))
        .expect("there is room");
    assert_eq!(after.nodes, before.nodes);
    let b = |cluster: &Cluster| -> Pod { pod(cluster, "default/b").clone() };
    assert_eq!(b(&after), b(&before));
    assert_eq!(texts(&pod(&after, "default/c").addresses), ["10.244.0.2", "fd00:10:244::2"]);
}

#[test]
fn ranges_of_six_run_out_as_others_do() {
    assert_eq!(
        wrong(&testbed("podCIDR: \"fd00:1::/63\", nodes: 3")),
        [
            "cannot give node n3 a pod range: podCIDR fd00:1::/63 holds 2 of size /64, one for each node, all in use: choose a larger podCIDR"
        ]
    );
    assert!(
        wrong(&testbed("podCIDR: \"fd00:1::/48\", nodeSubnet: \"fd00:2::/125\", nodes: 4"))[0]
            .contains("subnet fd00:2::/125 has 3 usable (8 less the 5 that the platform takes)")
    );
}

#[test]
fn a_cluster_that_is_up_gets_a_second_family_and_keeps_what_it_has() {
    let objects = |spec: &str| {
        Objects::parse("live.yaml", &(testbed(spec) + &pod_text("a", "", "n1") + &service("x", "")))
            .expect("sound")
    };
    for model in ["overlay", "kubenet"] {
        let before = objects(&format!("model: {model}")).resolve(None).expect("there is room");
        let after =
            objects(&format!("model: {model}, {DUAL}")).resolve(Some(&before)).expect("there is room");
        assert_eq!(texts(&after.nodes[1].addresses), ["10.240.0.5", "fd00:10:240::5"]);
        assert_eq!(texts(&after.pods[0].addresses), ["10.244.0.2", "fd00:10:244::2"]);
        assert_eq!(after.services[0].addresses, before.services[0].addresses);
        assert_eq!(after.settings.service_cidrs.len(), 2);
    }
}

#[test]
fn an_address_of_four_written_as_one_of_six_is_refused() {
    assert_eq!(
        fault(&pod_ips("a", &["::ffff:10.244.0.2"])),
        "Pod default/a: status.podIP: must not be an IPv4-mapped IPv6 address, as \"::ffff:10.244.0.2\" is"
    );
}

/// A host outside, with an IPv6 address.
const OUTSIDE: &str = "---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: six}
spec: {address: \"2606:4700::1111\"}
";

fn pod_ip(name: &str, address: &str) -> String {
    format!("{}status: {{podIP: {address}}}\n", pod_text(name, "app: web", "n1"))
}

#[test]
fn a_host_outside_brings_in_its_family_where_nobody_says_which_pods_have() {
    let text = node_at("n1", "10.240.0.9") + &pod_ip("a", "10.244.0.9") + &pod_text("b", "", "") + OUTSIDE;
    let dual = service("web", "ipFamilyPolicy: PreferDualStack");
    let cluster = cluster(&(text.clone() + &dual));
    assert_eq!(cluster.settings.lent, Some(IpFamily::V6));
    assert_eq!(texts(&cluster.nodes[0].addresses), ["10.240.0.9", "fd00:10:240::4"]);
    assert_eq!(texts(&pod(&cluster, "default/a").addresses), ["10.244.0.9", "fd00:10:244::2"]);
    assert_eq!(texts(&pod(&cluster, "default/b").addresses), ["10.244.0.2", "fd00:10:244::3"]);
    assert_eq!(services(&cluster), ["10.96.0.2"], "no Service has it");
    // Whoever is there keeps what he was lent, whoever else comes.
    let more =
        node_at("n1", "10.240.0.9") + &pod_ip("c", "10.244.0.7") + &text[node_at("n1", "10.240.0.9").len()..];
    let more = more + &pod_ips("d", &["10.244.0.6"]);
    let objects = Objects::parse("test", &more).expect("it is sound");
    let later = objects.resolve(Some(&cluster)).expect("it is sound");
    assert_eq!(later.nodes, cluster.nodes);
    assert_eq!(texts(&pod(&later, "default/d").addresses), ["10.244.0.6"], "it says that this is all");
    for id in ["default/a", "default/b"] {
        assert_eq!(pod(&later, id), pod(&cluster, id));
    }
    assert_eq!(texts(&pod(&later, "default/c").addresses), ["10.244.0.7", "fd00:10:244::4"]);
}

#[test]
fn nobody_is_lent_a_family_where_it_is_said_which_pods_have() {
    for stated in [
        testbed("podCIDR: 10.244.0.0/16") + &pod_ip("a", "10.244.0.9"),
        pod_ips("a", &["10.244.0.9"]) + &pod_ip("b", "10.244.0.8"),
        "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.244.7.0/24}\n".to_owned()
            + &pod_ip("a", "10.244.7.9"),
    ] {
        let cluster = cluster(&(stated.clone() + OUTSIDE));
        assert_eq!(cluster.settings.lent, None, "{stated}");
        assert!(cluster.pods.iter().all(|pod| pod.addresses.len() == 1), "{stated}");
    }
}
