//! Does a cluster fit before it is made? The worked examples that every planner must reproduce, and that this one
//! agrees with what gives the addresses out.

use userspace::model::capacity::{Fit, Outlook, Plan, Stranded, Surge, plan, spelled};
use userspace::model::{Model, Objects};

use crate::{external_at, node_at, pod_text, testbed, wrong};

/// Without anything that is added by an upgrade.
const STILL: Outlook = Outlook { nodes: None, surge: Surge::Nodes(0), peered: Vec::new() };

fn planned(text: &str, outlook: &Outlook) -> Plan {
    let objects = Objects::parse("plan.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    plan(&objects.demand().unwrap_or_else(|error| panic!("{error}")), outlook)
}

fn fit(plan: &Plan, model: Model) -> &Fit {
    plan.models.iter().find(|fit| fit.model == model).expect("every model is planned")
}

fn deployment(replicas: u32) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec: {{replicas: {replicas}, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{name: c, image: x}}]}}}}}}\n"
    )
}

/// A DaemonSet whose pods have their node's address, as AKS' system pods have.
fn daemon(name: &str, host_network: bool) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: {name}}}\nspec: {{selector: {{matchLabels: {{a: {name}}}}}, template: {{metadata: {{labels: {{a: {name}}}}}, spec: {{hostNetwork: {host_network}, containers: [{{name: c, image: x}}]}}}}}}\n"
    )
}

fn system_pods() -> String {
    (0..6).map(|number| daemon(&format!("system{number}"), true)).collect()
}

#[test]
fn a_24_holds_8_nodes_in_flat_and_251_in_overlay() {
    let text = testbed("model: flat, nodeSubnet: 10.240.0.0/24, nodes: 8");
    let eight = planned(&text, &STILL);
    assert!(eight.fits, "{:?}", eight.problems);
    assert_eq!(fit(&eight, Model::Flat).nodes, 8);
    assert_eq!(fit(&eight, Model::Flat).limit, "nodeSubnet 10.240.0.0/24, 31 each");
    assert_eq!(fit(&eight, Model::Overlay).nodes, 251);
    let nine = planned(&text, &Outlook { nodes: Some(9), ..STILL });
    assert_eq!(
        nine.problems,
        ["9 nodes are more than nodeSubnet 10.240.0.0/24, 31 each allows: 8 fit in flat."]
    );
}

#[test]
fn kubenet_is_full_at_400_nodes() {
    let text =
        testbed("model: kubenet, podCIDR: 10.128.0.0/9, serviceCIDR: 10.64.0.0/16, nodeSubnet: 10.0.0.0/16");
    let full = planned(&text, &Outlook { nodes: Some(400), ..STILL });
    assert!(full.fits, "{:?}", full.problems);
    let over = planned(&text, &Outlook { nodes: Some(401), ..STILL });
    assert_eq!(over.problems, ["401 nodes are more than route table of 400 allows: 400 fit in kubenet."]);
    let upgrade = planned(&text, &Outlook { nodes: Some(400), ..Outlook::default() });
    assert_eq!(
        upgrade.problems,
        ["An upgrade adds 1 to 400 nodes, which is more than route table of 400 allows: 400 fit in kubenet."]
    );
}

#[test]
fn of_251_usable_addresses_198_are_of_use_to_nodes_of_32_pods() {
    // Six pods of each node have its address, so 26 need one of their own. Seven nodes hold two batches for
    // them, and the eighth the fifteenth batch: 7 * 26 + 16. Source: github.com/Azure/AKS, issue 4035.
    let text =
        testbed("model: flat-dynamic, podSubnet: 10.241.0.0/24, nodes: 8, maxPods: 32") + &system_pods();
    let all = planned(&(text.clone() + &deployment(208)), &STILL);
    let dynamic = fit(&all, Model::FlatDynamic);
    assert_eq!((dynamic.pods, dynamic.stuck), (198, 10));
    assert_eq!(dynamic.stranded, Some(Stranded { in_no_batch: 11, in_batches: 42 }));
    assert_eq!(
        all.problems,
        [
            "10 of 208 pods do not start: 198 run on 8 nodes, which take 32 each (maxPods) and whole batches of 16: at most 198 run then, and 53 addresses are stranded, 11 in no batch and 42 in batches of full nodes."
        ]
    );
    let row = all.ranges.iter().find(|row| row.name == "podSubnet").expect("it has a row");
    assert_eq!((row.usable, row.reserved, row.used, row.free), (251, 240, 198, 11));
    // What gives addresses out comes to the same end.
    assert!(
        wrong(&(text + &deployment(208)))[0]
            .contains("of 251 usable 135 are pods', 116 are stranded (11 too few for a batch, 105 in batches of other nodes)")
    );
}

#[test]
fn a_pod_subnet_of_251_has_a_batch_for_15_nodes() {
    let text = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/24, nodes: 15");
    let plan = planned(&(text + &deployment(240)), &STILL);
    let dynamic = fit(&plan, Model::FlatDynamic);
    assert_eq!((dynamic.nodes, dynamic.pods, dynamic.stuck), (15, 240, 0));
    assert_eq!(dynamic.limit, "podSubnet 10.241.0.0/24, a batch of 16 each");
    assert_eq!(dynamic.stranded, Some(Stranded { in_no_batch: 11, in_batches: 0 }));
}

#[test]
fn an_upgrade_needs_a_batch_that_pods_have_left() {
    let text = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/26, nodes: 2") + &deployment(18);
    assert_eq!(
        planned(&text, &Outlook::default()).problems,
        [
            "An upgrade adds 1 to 2 nodes, and when all pods run that can, the pod subnet has 0 whole batches of 16 left."
        ]
    );
    let fewer = testbed("model: flat-dynamic, podSubnet: 10.241.0.0/26, nodes: 2") + &deployment(16);
    assert!(planned(&fewer, &Outlook::default()).fits);
}

#[test]
fn flat_needs_room_for_nodes_and_surge_with_all_their_pods() {
    // (nodes + surge) * (max-pods + 1): 6 and a third of them, 2, take all 8 times 31.
    let text = testbed("model: flat, nodeSubnet: 10.240.0.0/24, nodes: 6");
    assert!(planned(&text, &Outlook { surge: Surge::Percent(33), ..STILL }).fits);
    let more = planned(&text, &Outlook { surge: Surge::Percent(34), ..STILL });
    assert_eq!(more.surge, 3);
    assert_eq!(
        more.problems,
        [
            "An upgrade adds 3 to 6 nodes, which is more than nodeSubnet 10.240.0.0/24, 31 each allows: 8 fit in flat."
        ]
    );
    assert_eq!(fit(&more, Model::Flat).headroom, 2);
}

#[test]
fn overlay_needs_a_24_of_the_pod_cidr_for_each_node_and_its_surge() {
    let text = testbed("podCIDR: 10.244.0.0/22, nodes: 4");
    assert!(planned(&text, &STILL).fits);
    assert_eq!(
        planned(&text, &Outlook::default()).problems,
        [
            "An upgrade adds 1 to 4 nodes, which is more than podCIDR 10.244.0.0/22, a /24 each allows: 4 fit in overlay."
        ]
    );
}

#[test]
fn the_ranges_say_what_is_reserved_used_and_free() {
    let text = testbed(
        "model: flat, nodeSubnet: 10.240.0.0/24, vnetCIDRs: [10.240.0.0/16], serviceCIDR: 10.96.0.0/24, nodes: 3",
    ) + &deployment(10)
        + &daemon("log", false)
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
    let plan = planned(&text, &STILL);
    assert_eq!((plan.pods, plan.nodes), (13, 3));
    let rows: Vec<_> = plan
        .ranges
        .iter()
        .map(|row| (row.name, row.cidr.to_string(), [row.size, row.usable, row.reserved, row.used, row.free]))
        .collect();
    assert_eq!(
        rows,
        [
            ("nodeSubnet", "10.240.0.0/24".to_owned(), [256, 251, 93, 16, 158]),
            ("serviceCIDR", "10.96.0.0/24".to_owned(), [256, 253, 1, 1, 252]),
            ("vnetCIDRs", "10.240.0.0/16".to_owned(), [65536, 65536, 256, 16, 65280]),
        ]
    );
    let overlay = planned(&(testbed("podCIDR: 10.244.0.0/22") + &deployment(10)), &STILL);
    let row = overlay.ranges.iter().find(|row| row.name == "podCIDR").expect("it has a row");
    assert_eq!([row.size, row.usable, row.reserved, row.used, row.free], [1024, 1012, 506, 10, 506]);
}

#[test]
fn every_pair_of_ranges_is_looked_at_and_peered_ones_too() {
    let text = testbed("") + &pod_text("a", "", "");
    let peered = vec!["10.244.8.0/24".parse().expect("a range"), "192.168.0.0/16".parse().expect("a range")];
    let plan = planned(&text, &Outlook { peered, ..STILL });
    assert!(!plan.fits);
    assert_eq!(plan.pairs.len(), 9, "{:#?}", plan.pairs);
    assert_eq!(
        plan.problems,
        ["podCIDR 10.244.0.0/16 overlaps peered 10.244.8.0/24: no two ranges may have an address in common."]
    );
}

#[test]
fn a_service_range_inside_the_pod_range_is_refused_naming_both() {
    let error =
        Objects::parse("plan.yaml", &testbed("podCIDR: 10.0.0.0/16, serviceCIDR: 10.0.8.0/24")).unwrap_err();
    assert!(
        error.to_string().contains("spec.serviceCIDR: 10.0.8.0/24 overlaps podCIDR 10.0.0.0/16"),
        "{error}"
    );
}

#[test]
fn pods_need_places_and_services_addresses() {
    let text = testbed("nodes: 2, maxPods: 10, serviceCIDR: 10.96.0.0/28") + &deployment(21);
    let services: String = (0..14)
        .map(|number| format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\nspec: {{ports: [{{port: 80}}]}}\n"))
        .collect();
    assert_eq!(
        planned(&(text + &services), &STILL).problems,
        [
            "1 of 21 pods do not start: 20 run on 2 nodes, which take 10 each (maxPods).",
            "14 Services are more than serviceCIDR 10.96.0.0/28 has room for: 13."
        ]
    );
}

#[test]
fn pods_of_the_host_network_take_a_place_but_no_address() {
    let plan = planned(&(testbed("nodes: 2, maxPods: 10") + &system_pods() + &deployment(8)), &STILL);
    assert_eq!((plan.host_network_pods, plan.pods), (12, 8));
    assert!(plan.fits);
    assert_eq!(fit(&plan, Model::Overlay).pods, 8);
}

#[test]
fn the_load_balancers_ports_are_enough_for_62_nodes() {
    let text = testbed("loadBalancer: {outboundAddress: 20.0.0.1}, nodes: 2");
    let plan = planned(&text, &STILL);
    assert_eq!(
        (fit(&plan, Model::Overlay).nodes, fit(&plan, Model::Overlay).limit.as_str()),
        (62, "ports of 20.0.0.1, 1024 each")
    );
    assert!(!planned(&text, &Outlook { nodes: Some(62), ..Outlook::default() }).fits);
}

#[test]
fn models_have_their_own_number_of_pods_unless_one_is_stated() {
    let numbers = |spec: &str| {
        planned(&testbed(spec), &STILL).models.iter().map(|fit| fit.max_pods).collect::<Vec<_>>()
    };
    assert_eq!(numbers("model: flat"), [250, 30, 30, 110]);
    assert_eq!(numbers("model: flat, maxPods: 30"), [30, 30, 30, 30]);
}

#[test]
fn a_range_may_have_room_for_half_of_mankind() {
    let plan = planned(&testbed("podCIDR: \"fd00:1::/48\""), &STILL);
    assert!(plan.fits);
    assert_eq!(fit(&plan, Model::Overlay).nodes, 5000);
    let sizes: Vec<String> = plan.ranges.iter().map(|row| spelled(row.size)).collect();
    assert_eq!(sizes, ["2^64", "2^80", "1048576"]);
}

#[test]
fn a_cluster_that_is_full_can_still_be_planned() {
    let text = testbed("model: flat, nodeSubnet: 10.240.0.0/29")
        + &node_at("a", "10.240.0.4")
        + &node_at("b", "10.240.0.5")
        + &external_at("world", "203.0.113.7");
    assert_eq!(
        planned(&text, &STILL).problems,
        ["2 nodes are more than nodeSubnet 10.240.0.0/29, 31 each allows: 0 fit in flat."]
    );
}

/// A cluster really comes out of this text.
fn resolves(text: &str) -> bool {
    Objects::parse("plan.yaml", text).is_ok_and(|objects| objects.resolve(None).is_ok())
}

#[test]
fn as_many_nodes_fit_as_can_really_join() {
    for (model, spec) in [
        (Model::Overlay, "podCIDR: 10.244.0.0/22"),
        (Model::Overlay, "nodeSubnet: 10.240.0.0/29"),
        (Model::Overlay, "podCIDRs: [10.244.0.0/16, \"fd00:1::/62\"]"),
        (Model::Kubenet, "nodeSubnet: 10.240.0.0/28"),
        (Model::Flat, "nodeSubnet: 10.240.0.0/26, maxPods: 9"),
        (Model::FlatDynamic, "podSubnet: 10.241.0.0/26"),
    ] {
        // In flat-dynamic it is the pods of a node that can't start.
        let text = |nodes: u64| {
            testbed(&format!("model: {}, {spec}, nodes: {nodes}", model.name())) + &daemon("log", false)
        };
        let most = fit(&planned(&text(1), &STILL), model).nodes;
        assert!(resolves(&text(most)), "{most} nodes of {}, {spec}", model.name());
        assert!(!resolves(&text(most + 1)), "{} nodes of {}, {spec}", most + 1, model.name());
    }
}

#[test]
fn as_many_pods_start_as_was_planned() {
    for (model, spec, range) in [
        ("overlay", "maxPods: 7", 12..=16),
        ("flat", "maxPods: 7", 12..=16),
        ("flat-dynamic", "podSubnet: 10.241.0.0/26, maxPods: 40", 28..=50),
        ("flat-dynamic", "podSubnet: 10.241.0.0/25, maxPods: 20", 36..=42),
    ] {
        let mut outcomes = [0, 0];
        for pods in range {
            let text = testbed(&format!("model: {model}, nodes: 2, {spec}")) + &deployment(pods);
            let plan = planned(&text, &STILL);
            assert_eq!(plan.fits, resolves(&text), "{pods} pods in {model}, {spec}: {:?}", plan.problems);
            outcomes[usize::from(plan.fits)] += 1;
        }
        assert!(outcomes.iter().all(|count| *count > 0), "both ways: {model}, {spec}");
    }
}

#[test]
fn frontends_of_internal_load_balancers_take_addresses_of_nodes() {
    let balanced = |name: &str, annotation: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotation}}}}}\nspec: {{type: LoadBalancer, ports: [{{port: 80}}]{spec}}}\n"
        )
    };
    let internal = "service.beta.kubernetes.io/azure-load-balancer-internal: \"true\"";
    let text = testbed("nodeSubnet: 10.240.0.0/29, vnetCIDRs: [10.240.0.0/16], nodes: 2")
        + &balanced("a", internal, "")
        + &balanced("b", "", "")
        + &balanced("c", internal, ", loadBalancerIP: 10.240.9.9");
    let still = planned(&text, &STILL);
    assert!(still.fits, "{:?}", still.problems);
    let nodes = still.ranges.iter().find(|range| range.name == "nodeSubnet").expect("it is there");
    assert_eq!((nodes.usable, nodes.reserved, nodes.used, nodes.free), (3, 3, 3, 0));
    assert_eq!(fit(&still, Model::Overlay).nodes, 2, "one of three is the frontend of `a`");
    let upgraded = planned(&text, &Outlook { surge: Surge::Nodes(1), ..STILL });
    assert_eq!(
        upgraded.problems,
        [
            "An upgrade adds 1 to 2 nodes, which is more than nodeSubnet 10.240.0.0/29 allows: 2 fit in overlay."
        ]
    );
}
