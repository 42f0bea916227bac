//! What a Testbed object says, read into values: the bounds of every field are here, in `ranges` and in
//! `fabric`, and what is left out gets its default.

use std::net::IpAddr;

use ipnet::IpNet;

use super::amount;
use super::error::Fields;
use super::fabric;
use super::own::{LoadBalancerSpec, TestbedSpec, TimeoutsSpec};
use super::ranges::{self, Purpose, Ranges};
use super::settings::{Encapsulation, Fabric, LoadBalancer, Model, Settings, Timeouts};
use super::syntax;
use crate::ipam::{self, IpFamily, SNAT_PORTS};

/// The UDP port of the overlay. Source: the default of the Linux vxlan driver and of Cilium; IANA's is 4789.
const VXLAN_PORT: u16 = 8472;
/// Source: RFC 8926, section 3.3.
const GENEVE_PORT: u16 = 6081;
/// The source ports that may stand for pods outside. Source: Linux, `ip_local_port_range`.
const MASQUERADE_PORTS: (u16, u16) = (32_768, 60_999);
/// A flow is remembered for a month at most.
const LONGEST_TIMEOUT_S: u32 = 30 * 24 * 3600;

impl Model {
    /// Each with its name in a Testbed object.
    pub const ALL: [(&'static str, Self); 4] = [
        ("overlay", Self::Overlay),
        ("flat", Self::Flat),
        ("flat-dynamic", Self::FlatDynamic),
        ("kubenet", Self::Kubenet),
    ];

    /// Its name in a Testbed object.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, model)| *model == self).map_or("", |(name, _)| name)
    }

    /// Pods that a node takes unless the user says otherwise. Source: AKS, "maximum pods per node".
    pub const fn max_pods(self) -> u32 {
        match self {
            Self::Overlay => ipam::MAX_PODS,
            Self::Kubenet => 110,
            Self::Flat | Self::FlatDynamic => 30,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let of = |purpose: Purpose| vec![purpose.default(IpFamily::V4)];
        Self {
            model: Model::default(),
            encapsulation: Encapsulation::default(),
            tunnel_port: VXLAN_PORT,
            node_subnets: of(Purpose::Nodes),
            pod_cidrs: of(Purpose::Pods),
            service_cidrs: of(Purpose::Services),
            vnet_cidrs: of(Purpose::Nodes),
            max_pods: Model::default().max_pods(),
            mtu: 1500,
            non_masquerade_cidrs: Vec::new(),
            masquerade_ports: MASQUERADE_PORTS,
            timeouts: Timeouts::default(),
            fabric: Fabric::default(),
            services: super::Services::default(),
            load_balancer: LoadBalancer::default(),
        }
    }
}

/// The choices of a Testbed object, its ranges apart.
///
/// The tags of security rules stand for nothing yet, because they depend on ranges that may still have to be
/// chosen: see [`fabric::read`].
pub(super) struct Choices {
    /// Everything but ranges.
    pub(super) settings: Settings,
    /// Those that are stated.
    pub(super) ranges: Ranges,
}

/// Reads a Testbed object, and notes what is wrong with its fields.
pub(super) fn read(spec: &TestbedSpec, fields: &mut Fields<'_>) -> Choices {
    let mut number = |path: &str, value: Option<i64>, (least, most): (u32, u32), default: u32| match value {
        None => default,
        Some(value) => {
            let fits = u32::try_from(value).ok().filter(|value| (least..=most).contains(value));
            fits.unwrap_or_else(|| {
                fields.wrong(path, format!("must be between {least} and {most}, inclusive, not {value}"));
                default
            })
        }
    };
    let port = number("spec.tunnelPort", spec.tunnel_port, (1, 65_535), 0);
    number("spec.nodes", spec.nodes, (1, ipam::MAX_NODES), 1);
    let max_pods = number("spec.maxPods", spec.max_pods, (1, ipam::MAX_PODS), 0);
    // The least that IPv4 hosts must take, after encapsulation (RFC 791), and the most a veth can carry.
    let mtu = number("spec.mtu", spec.mtu, (576 + 50, 65_535), 1500);
    let model = word("spec.model", spec.model.as_deref(), &Model::ALL, fields);
    let encapsulations = [("vxlan", Encapsulation::Vxlan), ("geneve", Encapsulation::Geneve)];
    let encapsulation = word("spec.encapsulation", spec.encapsulation.as_deref(), &encapsulations, fields);
    let default_port = match encapsulation {
        Encapsulation::Vxlan => VXLAN_PORT,
        Encapsulation::Geneve => GENEVE_PORT,
    };
    let ranges = ranges::stated(spec, model, fields);
    let mut non_masquerade = Vec::new();
    for (i, text) in spec.non_masquerade_cidrs.iter().enumerate() {
        match syntax::cidr(text) {
            Ok(range) => non_masquerade.push(range.trunc()),
            Err(why) => fields.wrong(format!("spec.nonMasqueradeCIDRs[{i}]"), why),
        }
    }
    let load_balancer = load_balancer(spec.load_balancer.as_ref(), fields);
    let fabric = fabric::read(spec, &[], fields);
    let settings = Settings {
        model,
        encapsulation,
        tunnel_port: u16::try_from(port).ok().filter(|port| *port != 0).unwrap_or(default_port),
        max_pods: if max_pods == 0 { model.max_pods() } else { max_pods },
        mtu,
        non_masquerade_cidrs: non_masquerade,
        masquerade_ports: masquerade_ports(spec, fields),
        timeouts: timeouts(spec.timeouts.as_ref(), fields),
        fabric,
        load_balancer,
        ..Settings::default()
    };
    Choices { settings, ranges }
}

/// One of a few words; the default if none is stated.
pub(super) fn word<T: Copy + Default>(
    path: &str,
    stated: Option<&str>,
    words: &[(&str, T)],
    fields: &mut Fields<'_>,
) -> T {
    let Some(stated) = stated else {
        return T::default();
    };
    let found = words.iter().find(|(word, _)| *word == stated).map(|(_, value)| *value);
    found.unwrap_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        fields.wrong(path, syntax::unsupported(stated, &known));
        T::default()
    })
}

fn masquerade_ports(spec: &TestbedSpec, fields: &mut Fields<'_>) -> (u16, u16) {
    let Some(stated) = &spec.masquerade_ports else {
        return MASQUERADE_PORTS;
    };
    let mut read = |name: &str, value: i64| {
        syntax::port(value).map_err(|why| fields.wrong(format!("spec.masqueradePorts.{name}"), why)).ok()
    };
    let (first, last) = (read("first", stated.first), read("last", stated.last));
    match (first, last) {
        (Some(first), Some(last)) if first <= last => (first, last),
        (Some(first), Some(last)) => {
            let why = format!("must be greater than or equal to `first`, not {last} (first is {first})");
            fields.wrong("spec.masqueradePorts.last", why);
            MASQUERADE_PORTS
        }
        _ => MASQUERADE_PORTS,
    }
}

/// A duration in whole seconds; the default if none is stated.
fn seconds(
    path: String,
    stated: Option<&String>,
    (least, most): (u32, u32),
    default: u32,
    fields: &mut Fields<'_>,
) -> u32 {
    let read = stated.map(|text| amount::seconds(text, least, most));
    read.unwrap_or(Ok(default)).unwrap_or_else(|why| {
        fields.wrong(path, why);
        default
    })
}

fn timeouts(spec: Option<&TimeoutsSpec>, fields: &mut Fields<'_>) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let Some(spec) = spec else {
        return timeouts;
    };
    let each = [
        ("tcpOpening", &spec.tcp_opening, 1, &mut timeouts.tcp_opening_s),
        ("tcpEstablished", &spec.tcp_established, 1, &mut timeouts.tcp_s),
        ("tcpClosed", &spec.tcp_closed, 1, &mut timeouts.tcp_closed_s),
        ("udp", &spec.udp, 1, &mut timeouts.udp_s),
        ("icmp", &spec.icmp, 1, &mut timeouts.icmp_s),
        ("quarantine", &spec.quarantine, 0, &mut timeouts.quarantine_s),
        ("fragment", &spec.fragment, 1, &mut timeouts.fragment_s),
    ];
    for (name, stated, least, value) in each {
        let path = format!("spec.timeouts.{name}");
        *value = seconds(path, stated.as_ref(), (least, LONGEST_TIMEOUT_S), *value, fields);
    }
    timeouts
}

fn load_balancer(spec: Option<&LoadBalancerSpec>, fields: &mut Fields<'_>) -> LoadBalancer {
    let default = LoadBalancer::default();
    let Some(spec) = spec else {
        return default;
    };
    let path = |name: &str| format!("spec.loadBalancer.{name}");
    let outbound = spec.outbound_address.as_deref().and_then(|text| {
        syntax::host_address(text).map_err(|why| fields.wrong(path("outboundAddress"), why)).ok()
    });
    let ports = spec.snat_ports_per_node.map_or(Ok(default.snat_ports_per_node), |ports| {
        // Source: Azure Load Balancer, which gives ports in multiples of 8.
        let fits =
            u32::try_from(ports).ok().filter(|ports| (8..=SNAT_PORTS).contains(ports) && ports % 8 == 0);
        fits.ok_or_else(|| {
            format!("must be a multiple of 8 between 8 and {SNAT_PORTS}, inclusive, not {ports}")
        })
    });
    let snat_ports_per_node = ports.unwrap_or_else(|why| {
        fields.wrong(path("snatPortsPerNode"), why);
        default.snat_ports_per_node
    });
    LoadBalancer {
        probe_interval_s: seconds(
            path("probeInterval"),
            spec.probe_interval.as_ref(),
            (1, 3600),
            default.probe_interval_s,
            fields,
        ),
        outbound,
        snat_ports_per_node,
        // Source: Azure Load Balancer, whose longest is 120 minutes.
        idle_timeout_s: seconds(
            path("idleTimeout"),
            spec.idle_timeout.as_ref(),
            (1, 7200),
            default.idle_timeout_s,
            fields,
        ),
        ..default
    }
}

/// What a Testbed object can't say of a cluster once its ranges are known: the field, and why.
pub(super) fn contradictions(settings: &Settings, externals: &[(String, IpAddr)]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut inside = vec![("nodeSubnet", &settings.node_subnets)];
    if settings.model == Model::FlatDynamic {
        inside.push(("podSubnet", &settings.pod_cidrs));
    }
    for (name, subnet) in inside.iter().flat_map(|(name, list)| list.iter().map(move |one| (name, one))) {
        if !settings.vnet_cidrs.iter().any(|range| range.contains(subnet)) {
            found.push(("spec.vnetCIDRs".into(), format!("must hold {name} {subnet}")));
        }
    }
    // The least that IPv6 links must carry (RFC 8200), after encapsulation.
    let six = |ranges: &[IpNet]| IpFamily::V6.pick(ranges).is_some();
    let outer = settings.node_subnets.first().map(|range| IpFamily::of_range(*range));
    let overhead = match (settings.model, outer) {
        (Model::Overlay, Some(IpFamily::V6)) => 70,
        (Model::Overlay, _) => 50,
        _ => 0,
    };
    if (six(&settings.pod_cidrs) || six(&settings.node_subnets)) && settings.mtu < 1280 + overhead {
        let why = format!("must be at least {} for IPv6, not {}", 1280 + overhead, settings.mtu);
        found.push(("spec.mtu".into(), why));
    }
    if let Some(outbound) = settings.load_balancer.outbound {
        let path = || "spec.loadBalancer.outboundAddress".to_owned();
        let ranges = Ranges::settled(settings);
        let mut named: Vec<_> = ranges.named(settings.model).collect();
        named.extend(ranges.vnet.iter().map(|range| ("vnetCIDRs", *range)));
        if let Some((name, range)) = named.iter().find(|(_, range)| range.contains(&outbound)) {
            let why = format!("{outbound} is inside {name} {range}: nodes have it in the world only");
            found.push((path(), why));
        }
        if let Some((name, _)) = externals.iter().find(|(_, address)| *address == outbound) {
            found.push((path(), format!("{outbound} is the address of External {name} already")));
        }
    }
    found
}

/// What it can't say of one once its nodes are known.
pub(super) fn node_contradictions(
    spec: &TestbedSpec,
    settings: &Settings,
    nodes: &[(String, Vec<IpAddr>)],
    externals: &[(String, IpAddr)],
) -> Vec<(String, String)> {
    let mut found = fabric::contradictions(spec, &settings.fabric, nodes, externals);
    let each = settings.load_balancer.snat_ports_per_node;
    let fit = (SNAT_PORTS / each) as usize;
    if let Some(outbound) = settings.load_balancer.outbound.filter(|_| nodes.len() > fit) {
        let why = format!(
            "{each} for each of {} nodes is more than the {SNAT_PORTS} ports of outboundAddress {outbound}: {fit} nodes fit",
            nodes.len()
        );
        found.push(("spec.loadBalancer.snatPortsPerNode".into(), why));
    }
    found
}
