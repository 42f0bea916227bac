//! The Testbed object: every field, its default and its bounds.

use userspace::model::{
    Acceleration, Algorithm, Direction, Encapsulation, FabricKind, Forward, LinkQuality, Model, NextHop,
    Objects, Probe, Services, Timeouts, load_text,
};

use crate::{cluster, external_at, fault, node_at, testbed, wrong};

/// What is wrong with a Testbed of this spec, its name left out.
fn refused(spec: &str) -> String {
    let fault = fault(&testbed(spec));
    fault.strip_prefix("Testbed lab: ").expect("the object is named").to_owned()
}

fn rule(fields: &str) -> String {
    format!(
        "fabric: {{securityRules: [{{name: r, priority: 100, direction: Inbound, access: Allow, {fields}}}]}}"
    )
}

fn link(fields: &str) -> String {
    format!("fabric: {{links: [{{link: \"node:n1\", {fields}}}]}}")
}

#[test]
fn everything_left_out_has_a_default() {
    let settings = cluster(&testbed("")).settings;
    assert_eq!((settings.model, settings.encapsulation), (Model::Overlay, Encapsulation::Vxlan));
    assert_eq!((settings.tunnel_port, settings.masquerade_ports), (8472, (32768, 60999)));
    assert_eq!((settings.max_pods, settings.mtu), (250, 1500));
    assert_eq!(settings.timeouts, Timeouts::default());
    assert_eq!(settings.fabric.kind, FabricKind::Bridge);
    let balancer = settings.load_balancer;
    assert_eq!((balancer.probe_interval_s, balancer.snat_ports_per_node), (5, 1024));
    assert_eq!((balancer.idle_timeout_s, balancer.outbound), (1800, None));
    assert_eq!(settings.vnet_cidrs, settings.node_subnets);
}

#[test]
fn each_model_has_its_own_number_of_pods_and_ranges() {
    let settings = |spec: &str| cluster(&testbed(spec)).settings;
    for (model, max_pods, pods) in
        [("overlay", 250, 1), ("kubenet", 110, 1), ("flat", 30, 0), ("flat-dynamic", 30, 1)]
    {
        let settings = settings(&format!("model: {model}"));
        assert_eq!((settings.max_pods, settings.pod_cidrs.len()), (max_pods, pods), "{model}");
        assert_eq!(settings.model.name(), model);
    }
    let dynamic = settings("model: flat-dynamic, podSubnet: 10.241.0.0/16");
    assert_eq!(dynamic.pod_cidrs[0].to_string(), "10.241.0.0/16");
    assert_eq!(dynamic.vnet_cidrs, [dynamic.node_subnets[0], dynamic.pod_cidrs[0]]);
}

#[test]
fn the_tunnel_is_of_one_of_two_kinds_on_a_port_of_its_own() {
    let settings = |spec: &str| cluster(&testbed(spec)).settings;
    let geneve = settings("encapsulation: geneve");
    assert_eq!((geneve.encapsulation, geneve.tunnel_port), (Encapsulation::Geneve, 6081));
    assert_eq!(settings("tunnelPort: 4789").tunnel_port, 4789);
    assert_eq!(
        refused("encapsulation: gre"),
        r#"spec.encapsulation: Unsupported value: "gre": supported values: "vxlan", "geneve""#
    );
    assert_eq!(
        refused("tunnelPort: 65536"),
        "spec.tunnelPort: must be between 1 and 65535, inclusive, not 65536"
    );
}

#[test]
fn pods_of_flat_have_no_range_of_their_own() {
    assert_eq!(
        refused("model: flat, podCIDR: 10.244.0.0/16"),
        "spec.podCIDR: Forbidden: in model flat pods have addresses of nodeSubnet, which nodes reserve"
    );
    assert_eq!(
        refused("podSubnet: 10.244.0.0/16"),
        "spec.podSubnet: Forbidden: pods have a subnet of their own in model flat-dynamic only: write podCIDR"
    );
    assert!(
        refused("model: flat-dynamic, podSubnet: 10.1.0.0/16, podCIDR: 10.2.0.0/16")
            .starts_with("spec.podSubnet: Forbidden: podCIDR is stated, too")
    );
    assert!(
        refused("nodeSubnet: 10.1.0.0/16, nodeSubnets: [10.2.0.0/16]")
            .starts_with("spec.nodeSubnets: Forbidden: nodeSubnet is stated, too")
    );
}

#[test]
fn ranges_may_be_as_long_as_something_fits() {
    assert!(refused("model: flat-dynamic, podSubnet: 10.1.0.0/28").contains("between /8 and /27"));
    assert!(refused("nodeSubnet: 10.1.0.0/30").contains("between /8 and /29"));
    assert!(
        refused("serviceCIDRs: [\"fd00::/32\"]")
            .contains("spec.serviceCIDRs[0]: must have a prefix between /64 and /124")
    );
    assert!(
        refused("podCIDRs: [\"fd00::/65\"]")
            .contains("spec.podCIDRs[0]: must have a prefix between /16 and /64")
    );
}

#[test]
fn the_virtual_network_holds_its_subnets_and_nothing_private() {
    let settings =
        cluster(&testbed("nodeSubnet: 10.1.0.0/24, vnetCIDRs: [10.1.0.0/16, 192.168.0.0/16]")).settings;
    assert_eq!(settings.vnet_cidrs.len(), 2);
    assert_eq!(refused("vnetCIDRs: [10.1.0.0/16]"), "spec.vnetCIDRs: must hold nodeSubnet 10.240.0.0/16");
    assert_eq!(
        refused("nodeSubnet: 10.1.0.0/24, podCIDR: 10.1.128.0/20, vnetCIDRs: [10.1.0.0/16]"),
        "spec.vnetCIDRs: 10.1.0.0/16 overlaps podCIDR 10.1.128.0/20, which must be outside of the virtual network"
    );
    assert!(
        refused("vnetCIDRs: [10.0.0.0/8], podCIDR: 172.16.0.0/16")
            .contains("overlaps serviceCIDR 10.96.0.0/16 (the default)")
    );
    let flat =
        "model: flat-dynamic, vnetCIDRs: [10.1.0.0/16], nodeSubnet: 10.1.0.0/24, podSubnet: 10.1.1.0/24";
    assert_eq!(cluster(&testbed(flat)).settings.vnet_cidrs.len(), 1);
}

#[test]
fn timeouts_are_durations_in_whole_seconds() {
    let timeouts = cluster(&testbed(
        "timeouts: {tcpOpening: 5s, tcpEstablished: 1h30m, tcpClosed: 1s, udp: 1.5m, icmp: 2s, quarantine: 0s, fragment: 7s}",
    ))
    .settings
    .timeouts;
    let expected = Timeouts {
        tcp_opening_s: 5,
        tcp_s: 5400,
        tcp_closed_s: 1,
        udp_s: 90,
        icmp_s: 2,
        quarantine_s: 0,
        fragment_s: 7,
    };
    assert_eq!(timeouts, expected);
    let udp = |text: &str| refused(&format!("timeouts: {{udp: \"{text}\"}}"));
    for text in ["60", "", "s", "1d", "1s2", "-1s", "1,5s", "one"] {
        assert_eq!(
            udp(text),
            format!("spec.timeouts.udp: must be a duration like 20ms, 60s or 1h30m, not {text:?}")
        );
    }
    assert_eq!(udp("1500ms"), r#"spec.timeouts.udp: must be whole seconds, not "1500ms""#);
    assert_eq!(udp("0s"), r#"spec.timeouts.udp: must be between 1s and 720h, inclusive, not "0s""#);
    assert_eq!(udp("721h"), r#"spec.timeouts.udp: must be between 1s and 720h, inclusive, not "721h""#);
    assert!(udp("99999999999999999999h").contains("must be a duration"));
    assert!(
        wrong(&testbed("timeouts: {udp: 60}"))[0]
            .contains("spec.timeouts.udp: invalid type: integer `60`, expected a string")
    );
}

#[test]
fn masquerade_ports_are_first_and_last() {
    let ports = |spec: &str| cluster(&testbed(spec)).settings.masquerade_ports;
    assert_eq!(ports("masqueradePorts: {first: 40000, last: 40000}"), (40000, 40000));
    assert_eq!(
        refused("masqueradePorts: {first: 5, last: 4}"),
        "spec.masqueradePorts.last: must be greater than or equal to `first`, not 4 (first is 5)"
    );
    assert!(
        refused("masqueradePorts: {first: 0, last: 4}")
            .starts_with("spec.masqueradePorts.first: must be between")
    );
    assert!(refused("masqueradePorts: {first: 1}").contains("missing field `last`"));
}

#[test]
fn routes_lead_somewhere() {
    let text = testbed(
        "fabric: {routes: [{name: fw, prefix: 0.0.0.0/0, nextHopType: VirtualAppliance, nextHopAddress: 10.240.0.5},
          {name: gone, prefix: 198.51.100.7/24, nextHopType: None},
          {name: out, prefix: 203.0.113.0/24, nextHopType: Internet},
          {name: in, prefix: 10.0.0.0/8, nextHopType: VirtualNetwork}]}",
    );
    let fabric = cluster(&text).settings.fabric;
    assert_eq!(fabric.kind, FabricKind::Emulator, "the bridge knows no such routes");
    let hops: Vec<NextHop> = fabric.routes.iter().map(|route| route.next_hop).collect();
    let appliance = NextHop::VirtualAppliance("10.240.0.5".parse().expect("an address"));
    assert_eq!(hops, [appliance, NextHop::None, NextHop::Internet, NextHop::VirtualNetwork]);
    assert_eq!(fabric.routes[1].prefix.to_string(), "198.51.100.0/24");
}

#[test]
fn routes_that_lead_nowhere_are_refused() {
    let route = |fields: &str| refused(&format!("fabric: {{routes: [{{name: r, {fields}}}]}}"));
    assert_eq!(
        route("prefix: 0.0.0.0/0, nextHopType: VirtualAppliance"),
        "spec.fabric.routes[0].nextHopAddress: Required value: where VirtualAppliance is"
    );
    assert_eq!(
        route("prefix: 0.0.0.0/0, nextHopType: VirtualAppliance, nextHopAddress: 10.9.9.9"),
        "spec.fabric.routes[0].nextHopAddress: 10.9.9.9 is the address of no node and no External, so nobody would pass packets on"
    );
    assert!(
        route("prefix: \"::/0\", nextHopType: VirtualAppliance, nextHopAddress: 10.240.0.4")
            .contains("must be of the family of ::/0")
    );
    assert_eq!(
        route("prefix: 0.0.0.0/0, nextHopType: Internet, nextHopAddress: 10.240.0.4"),
        "spec.fabric.routes[0].nextHopAddress: Forbidden: only VirtualAppliance has one, not Internet"
    );
    assert_eq!(
        route("prefix: 0.0.0.0/0, nextHopType: Vnet"),
        r#"spec.fabric.routes[0].nextHopType: Unsupported value: "Vnet": supported values: "Internet", "None", "VirtualAppliance", "VirtualNetwork""#
    );
    let twice = "{name: r, prefix: 10.9.0.0/16, nextHopType: None}";
    assert_eq!(
        wrong(&testbed(&format!("fabric: {{routes: [{twice}, {twice}]}}"))),
        [
            r#"test.yaml:2: Testbed lab: spec.fabric.routes[1].name: Duplicate value: "r""#,
            r#"test.yaml:2: Testbed lab: spec.fabric.routes[1].prefix: Duplicate value: "10.9.0.0/16""#
        ]
    );
}

#[test]
fn security_rules_are_azures_in_the_order_of_their_priorities() {
    let text = testbed(
        r#"fabric: {securityRules: [
          {name: all, priority: 4096, direction: Inbound, access: Deny, protocol: "*", sourceAddressPrefixes: ["*"], sourcePortRanges: ["*"], destinationAddressPrefixes: ["*"], destinationPortRanges: ["*"]},
          {name: web, priority: 100, direction: Inbound, access: Allow, protocol: Tcp, sourceAddressPrefixes: [203.0.113.7, 198.51.100.0/24], destinationPortRanges: [80, "8000-8010"]},
          {name: out, priority: 100, direction: Outbound, access: Allow, protocol: Icmp}]}"#,
    );
    let rules = cluster(&text).settings.fabric.security_rules;
    let names: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["web", "out", "all"]);
    let web = &rules[0];
    assert_eq!(
        (web.priority, web.direction, web.allow, web.protocol),
        (100, Direction::Inbound, true, Some(6))
    );
    assert_eq!(
        web.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["203.0.113.7/32", "198.51.100.0/24"]
    );
    assert_eq!(web.target_ports, [(80, 80), (8000, 8010)]);
    assert!(web.source_ports.is_empty() && web.targets.is_empty());
    assert_eq!(rules[1].protocol, Some(1));
    let all = &rules[2];
    assert!(!all.allow && all.sources.is_empty() && all.target_ports.is_empty());
}

#[test]
fn tags_stand_for_ranges() {
    let sources = |spec: &str, tag: &str| -> Vec<String> {
        let text = testbed(&format!("{spec}{}", rule(&format!("sourceAddressPrefixes: [{tag}]"))));
        cluster(&text).settings.fabric.security_rules[0].sources.iter().map(ToString::to_string).collect()
    };
    assert_eq!(sources("", "VirtualNetwork"), ["10.240.0.0/16"]);
    assert_eq!(sources("model: kubenet, ", "VirtualNetwork"), ["10.240.0.0/16", "10.244.0.0/16"]);
    assert_eq!(sources("", "AzureLoadBalancer"), ["168.63.129.16/32"]);
    let internet = sources("vnetCIDRs: [128.0.0.0/1, 64.0.0.0/2], nodeSubnet: 192.168.0.0/16, ", "Internet");
    assert_eq!(internet, ["0.0.0.0/2", "::/0"]);
    // Each other range of a family appears once, and the network itself not at all.
    let internet = sources("", "Internet");
    let holds = |address: &str| {
        let address = address.parse::<std::net::IpAddr>().expect("an address");
        internet
            .iter()
            .filter(|range| range.parse::<ipnet::IpNet>().expect("a range").contains(&address))
            .count()
    };
    assert_eq!(
        (holds("10.240.3.4"), holds("10.239.255.255"), holds("10.241.0.0"), holds("fd00::1")),
        (0, 1, 1, 1)
    );
}

#[test]
fn security_rules_that_cannot_be_are_refused() {
    let refused = |fields: &str| {
        let fault = refused(&rule(fields));
        fault.strip_prefix("spec.fabric.securityRules[0].").expect("its path").to_owned()
    };
    assert_eq!(
        refused("sourceAddressPrefixes: [Storage]"),
        r#"sourceAddressPrefixes[0]: must be an address, a CIDR, * or one of the tags VirtualNetwork, Internet and AzureLoadBalancer, not "Storage": other tags stand for nothing here"#
    );
    assert_eq!(
        refused("protocol: Icmp, destinationPortRanges: [80]"),
        "destinationPortRanges: Forbidden: Icmp has no ports: write *, or leave it out"
    );
    assert_eq!(
        refused("destinationPortRanges: [\"90-80\"]"),
        r#"destinationPortRanges[0]: must be a port, a range like 8000-8010, or *, not "90-80""#
    );
    assert!(refused("protocol: Esp").starts_with("protocol: Unsupported value: \"Esp\""));
    let rules = |fields: &str| {
        wrong(&testbed(&format!("fabric: {{securityRules: [{fields}]}}")))
            .iter()
            .map(|fault| fault.split_once("securityRules").expect("its path").1.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        rules("{name: r, priority: 99, direction: In, access: allow}"),
        [
            "[0].priority: must be between 100 and 4096, inclusive, not 99",
            r#"[0].direction: Unsupported value: "In": supported values: "Inbound", "Outbound""#,
            r#"[0].access: Unsupported value: "allow": supported values: "Allow", "Deny""#
        ]
    );
    let one = "{name: NAME, priority: 100, direction: Inbound, access: Allow}";
    let two = format!("{}, {}", one.replace("NAME", "a"), one.replace("NAME", "b"));
    assert_eq!(rules(&two), ["[1].priority: Duplicate value: 100 (Inbound)"]);
}

#[test]
fn prefixes_of_routes_are_of_the_virtual_network_except_for_the_default_routes() {
    let route =
        |name: &str, prefix: &str| format!("{{name: {name}, prefix: \"{prefix}\", nextHopType: None}}");
    let text = |routes: &[String]| {
        let rule =
            "{name: r, priority: 100, direction: Inbound, access: Allow, sourceAddressPrefixes: [Internet]}";
        testbed(&format!("fabric: {{routes: [{}], securityRules: [{rule}]}}", routes.join(", ")))
    };
    let sources =
        |routes: &[String]| cluster(&text(routes)).settings.fabric.security_rules[0].sources.clone();
    assert_eq!(sources(&[route("all", "0.0.0.0/0")]), sources(&[]));
    let six = sources(&[route("low", "0.0.0.0/1"), route("high", "128.0.0.0/1")]);
    assert_eq!(six.iter().map(ToString::to_string).collect::<Vec<_>>(), ["::/0"]);
    let halves = [("a", "0.0.0.0/1"), ("b", "128.0.0.0/1"), ("c", "::/1"), ("d", "8000::/1")];
    let halves = halves.map(|(name, prefix)| route(name, prefix));
    assert!(fault(&text(&halves)).ends_with(
        "sourceAddressPrefixes[0]: nothing is left for Internet: vnetCIDRs and fabric.routes, which are VirtualNetwork, cover every address"
    ));
}

#[test]
fn links_have_every_flaw_that_was_asked_for() {
    let text = testbed(
        "fabric: {links: [{link: \"node:n1\", delay: 20ms, jitter: 500us, loss: 1%, duplicate: 0.05%, reorder: 100%, rate: 100mbit, queue: 7, seed: 42}, {link: \"ext:world\", rate: 1.5gbit}]}",
    ) + &external_at("world", "203.0.113.7");
    let links = cluster(&text).settings.fabric.links;
    let expected = LinkQuality {
        link: "node:n1".into(),
        delay_ns: 20_000_000,
        jitter_ns: 500_000,
        loss_ppm: 10_000,
        duplicate_ppm: 500,
        reorder_ppm: 1_000_000,
        rate_bps: 100_000_000,
        queue: 7,
        seed: 42,
    };
    assert_eq!(links[0], expected);
    assert_eq!((links[1].rate_bps, links[1].queue), (1_500_000_000, 1000));
}

#[test]
fn links_that_cannot_be_are_refused() {
    let refused = |fields: &str| {
        let fault = refused(&link(fields));
        fault.strip_prefix("spec.fabric.links[0].").expect("its path").to_owned()
    };
    assert!(refused("loss: 101%").starts_with("loss: must be a percentage between 0% and 100%"));
    assert!(refused("loss: \"0.1\"").starts_with("loss: must be a percentage"));
    assert!(refused("rate: 100mb").starts_with("rate: must be a rate like 512kbit, 100mbit or 1gbit"));
    assert!(refused("delay: 11s").starts_with("delay: must be at most 10s"));
    assert!(refused("delay: 1ms, jitter: 2ms").starts_with("jitter: must not be more than `delay`"));
    assert!(refused("reorder: 1%").starts_with("reorder: needs a `delay`"));
    assert!(refused("queue: 5").starts_with("queue: needs a `rate`"));
    assert!(refused("queue: 0, rate: 1mbit").starts_with("queue: must be between 1 and 1000000"));
    assert!(
        wrong(&(testbed("fabric: {links: [{link: \"node:n3\"}]}") + &node_at("n1", "10.240.0.4")))[0]
            .contains(r#"spec.fabric.links[0].link: there is no "node:n3", did you mean "node:n1"?: links are node:NAME and ext:NAME"#)
    );
}

#[test]
fn a_bridge_has_none_of_what_only_the_emulator_can() {
    let kind = |spec: &str| cluster(&testbed(spec)).settings.fabric.kind;
    assert_eq!(kind("fabric: {kind: emulator}"), FabricKind::Emulator);
    assert_eq!(kind("loadBalancer: {outboundAddress: 20.0.0.1}"), FabricKind::Emulator);
    assert_eq!(kind("loadBalancer: {probeInterval: 1s}"), FabricKind::Bridge);
    assert_eq!(
        refused(
            "fabric: {kind: bridge, links: [{link: \"node:n1\"}]}, loadBalancer: {outboundAddress: 20.0.0.1}"
        ),
        "spec.fabric.kind: the kernel's bridge has no fabric.links, loadBalancer.outboundAddress: write emulator, or leave kind out"
    );
    assert!(refused("fabric: {kind: ebpf}").contains(r#"supported values: "bridge", "emulator""#));
}

#[test]
fn the_load_balancer_has_ports_for_every_node_or_is_refused() {
    let balancer = cluster(&testbed(
        "loadBalancer: {probeInterval: 15s, outboundAddress: 20.0.0.1, snatPortsPerNode: 64, idleTimeout: 4m}",
    ))
    .settings
    .load_balancer;
    assert_eq!(
        (balancer.probe_interval_s, balancer.snat_ports_per_node, balancer.idle_timeout_s),
        (15, 64, 240)
    );
    assert_eq!(balancer.outbound, "20.0.0.1".parse().ok());
    assert_eq!(
        refused("loadBalancer: {snatPortsPerNode: 100}"),
        "spec.loadBalancer.snatPortsPerNode: must be a multiple of 8 between 8 and 64000, inclusive, not 100"
    );
    assert!(refused("loadBalancer: {idleTimeout: 121m}").contains("must be between 1s and 2h"));
    assert!(
        refused("loadBalancer: {outboundAddress: 10.240.0.9}")
            .contains("10.240.0.9 is inside nodeSubnet 10.240.0.0/16")
    );
    assert_eq!(
        refused("nodes: 63, loadBalancer: {outboundAddress: 20.0.0.1}"),
        "spec.loadBalancer.snatPortsPerNode: 1024 for each of 63 nodes is more than the 64000 ports of outboundAddress 20.0.0.1: 62 nodes fit"
    );
    let taken = testbed("loadBalancer: {outboundAddress: 20.0.0.1}") + &external_at("world", "20.0.0.1");
    assert!(fault(&taken).contains("20.0.0.1 is the address of External world already"));
}

#[test]
fn six_needs_links_that_carry_it() {
    let overlay = "podCIDRs: [10.244.0.0/16, \"fd00:1::/48\"], mtu: ";
    assert_eq!(refused(&format!("{overlay}1329")), "spec.mtu: must be at least 1330 for IPv6, not 1329");
    assert_eq!(cluster(&testbed(&format!("{overlay}1330"))).settings.mtu, 1330);
    assert!(refused("podCIDR: \"fd00:1::/48\", mtu: 1349").contains("at least 1350"));
    let direct = "podCIDR: \"fd00:1::/48\", encapsulation: geneve, services: {directReturn: true}, mtu: 1373";
    assert!(refused(direct).contains("at least 1374"), "what was dialled goes along");
    assert!(refused("model: flat, nodeSubnet: \"fd00:1::/64\", mtu: 1279").contains("at least 1280"));
}

#[test]
fn unknown_fields_are_refused_however_deep() {
    for (spec, path) in [
        ("timeouts: {tcp: 1s}", "spec.timeouts.tcp"),
        ("fabric: {links: [{link: x, dely: 1ms}]}", "spec.fabric.links[0].dely"),
        ("loadBalancer: {probes: tcp}", "spec.loadBalancer.probes"),
        ("services: {maglev: 251}", "spec.services.maglev"),
    ] {
        let error = load_text("test.yaml", &testbed(spec)).expect_err("it is misspelt").to_string();
        assert!(error.contains(&format!("unknown field {path:?}")), "{error}");
    }
}

#[test]
fn fields_without_a_value_are_fields_left_out() {
    let spec = "timeouts: , fabric: {routes: , links: }, loadBalancer: , nodeSubnets: , podCIDR: ";
    assert_eq!(cluster(&testbed(spec)).settings, cluster(&testbed("")).settings);
}

#[test]
fn a_testbed_survives_being_written_down() {
    let text = testbed(
        r#"model: kubenet, encapsulation: geneve, tunnelPort: 1, nodeSubnets: [10.1.0.0/16, "fd00:1::/64"], podCIDRs: [10.2.0.0/16, "fd00:2::/48"],
          serviceCIDRs: [10.3.0.0/16, "fd00:3::/112"], vnetCIDRs: [10.1.0.0/16, "fd00:1::/48"], maxPods: 9, nodes: 3, mtu: 1400,
          nonMasqueradeCIDRs: [10.9.0.0/16], masqueradePorts: {first: 1, last: 2}, timeouts: {udp: 1s, quarantine: 0s},
          fabric: {kind: emulator, routes: [{name: a, prefix: 10.8.0.0/16, nextHopType: VirtualAppliance, nextHopAddress: 10.1.0.4}],
            securityRules: [{name: a, priority: 100, direction: Inbound, access: Deny, protocol: Tcp, sourceAddressPrefixes: [Internet], destinationPortRanges: [80, 90-99]}],
            links: [{link: "node:n1", delay: 2ms, loss: 1%, rate: 1mbit, queue: 3, seed: 4}]},
          loadBalancer: {probeInterval: 1s, outboundAddress: 20.0.0.1, snatPortsPerNode: 8, idleTimeout: 9s}"#,
    );
    let objects = Objects::parse("x.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
    let written = serde_json::to_string(&objects).expect("objects are plain data");
    let read: Objects = serde_json::from_str(&written).expect("what was written");
    assert_eq!(read, objects);
    let settings =
        |objects: &Objects| objects.resolve(None).unwrap_or_else(|error| panic!("{error}")).settings;
    assert_eq!(settings(&read), settings(&objects));
}

#[test]
fn services_are_carried_out_as_stated() {
    let services = |spec: &str| cluster(&testbed(spec)).settings.services;
    assert_eq!(services(""), Services::default());
    let stated = services(
        "encapsulation: geneve, services: {algorithm: random, maglevTableSize: 251, nodePorts: {first: 100, last: 200}, directReturn: true, socketTranslation: true, acceleration: native}",
    );
    assert_eq!(stated.acceleration, Acceleration::Native);
    assert_eq!(
        (stated.algorithm, stated.maglev_table_size, stated.node_ports),
        (Algorithm::Random, 251, (100, 200))
    );
    assert!(stated.direct_return && stated.socket_translation);
    assert_eq!(
        refused("services: {algorithm: rendezvous}"),
        r#"spec.services.algorithm: Unsupported value: "rendezvous": supported values: "maglev", "random""#
    );
    assert_eq!(
        refused("services: {maglevTableSize: 1000}"),
        "spec.services.maglevTableSize: must be one of 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071, not 1000"
    );
    assert_eq!(
        refused("services: {nodePorts: {first: 31000, last: 30000}}"),
        "spec.services.nodePorts.last: must be greater than or equal to `first`, not 30000 (first is 31000)"
    );
}

#[test]
fn a_port_of_a_node_is_one_services_or_stands_for_a_pod_outside() {
    assert_eq!(
        refused("services: {nodePorts: {first: 30000, last: 32768}}"),
        "spec.services.nodePorts: 30000-32768 overlaps masqueradePorts 32768-60999: a packet to such a port would be anybody's"
    );
    assert_eq!(
        refused("masqueradePorts: {first: 1024, last: 30000}"),
        "spec.services.nodePorts: 30000-32767 overlaps masqueradePorts 1024-30000: a packet to such a port would be anybody's"
    );
}

#[test]
fn direct_return_needs_an_option_to_travel_in() {
    let why = |found: &str| {
        format!(
            "spec.services.directReturn: needs model overlay with encapsulation geneve, whose option carries what the backend's node has to know, not {found}"
        )
    };
    assert_eq!(refused("services: {directReturn: true}"), why("vxlan"));
    assert_eq!(refused("model: flat, encapsulation: geneve, services: {directReturn: true}"), why("flat"));
}

#[test]
fn acceleration_needs_a_driver_that_takes_frames_whole() {
    assert_eq!(
        refused("services: {acceleration: generic}"),
        r#"spec.services.acceleration: Unsupported value: "generic": supported values: "disabled", "native""#
    );
    assert_eq!(
        refused("services: {acceleration: native}, fabric: {kind: emulator}"),
        "spec.services.acceleration: needs fabric.kind bridge: an emulated fabric takes nothing from a driver"
    );
    assert_eq!(
        refused("services: {acceleration: native}, mtu: 3499"),
        "spec.services.acceleration: needs an mtu of at most 3498, as long as a frame that a driver hands out, not 3499"
    );
}

#[test]
fn the_load_balancer_probes_and_forwards_as_stated() {
    let balancer = |spec: &str| cluster(&testbed(spec)).settings.load_balancer;
    let default = balancer("");
    assert_eq!((default.probe, default.probe_threshold, default.client_affinity), (Probe::Tcp, 2, false));
    assert_eq!(default.forward, Forward::FloatingIp);
    let stated = balancer(
        "loadBalancer: {probe: http, probeThreshold: 3, clientAffinity: true, forward: ip-in-ip, frontendCIDRs: [20.0.0.0/24]}",
    );
    assert_eq!((stated.probe, stated.probe_threshold, stated.client_affinity), (Probe::Http, 3, true));
    assert_eq!(
        (stated.forward, stated.frontend_cidrs[0].to_string()),
        (Forward::IpInIp, "20.0.0.0/24".into())
    );
    assert_eq!(
        refused("loadBalancer: {forward: dsr}"),
        r#"spec.loadBalancer.forward: Unsupported value: "dsr": supported values: "floating-ip", "node-port", "ip-in-ip""#
    );
    assert_eq!(
        refused("loadBalancer: {probeThreshold: 0}"),
        "spec.loadBalancer.probeThreshold: must be between 1 and 100, inclusive, not 0"
    );
}
