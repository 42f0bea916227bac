//! What a Testbed object says, read into values: the bounds of every field are here, in `ranges` and in
//! `fabric`, and what is left out gets its default.

use std::net::IpAddr;

use ipnet::IpNet;

use super::amount;
use super::error::Fields;
use super::fabric;
use super::own::{LoadBalancerSpec, PoliciesSpec, PortsSpec, ServicesSpec, TestbedSpec, TimeoutsSpec};
use super::ranges::{self, Purpose, Ranges};
use super::settings::{
    Acceleration, Encapsulation, Fabric, FabricKind, LoadBalancer, Model, Policies, Services, Settings,
    Timeouts,
};
use super::{syntax, words};
use crate::ipam::{self, IpFamily, SNAT_PORTS};

/// The UDP port of the overlay. Source: the default of the Linux vxlan driver and of Cilium; IANA's is 4789.
const VXLAN_PORT: u16 = 8472;
/// Source: RFC 8926, section 3.3.
const GENEVE_PORT: u16 = 6081;
/// The source ports that may stand for pods outside. Source: Linux, `ip_local_port_range`.
const MASQUERADE_PORTS: (u16, u16) = (32_768, 60_999);
/// Slots of a Maglev table. Source: Cilium, `bpf-lb-maglev-table-size`.
pub(super) const TABLE_SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];
/// The longest packet that fits what a program in a driver is given: a page, less the room before and behind it.
/// Source: Linux, `veth_xdp_set` in drivers/net/veth.c, where it is some bytes more.
const DRIVER_MTU: u32 = 3498;
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
            lent: None,
            max_pods: Model::default().max_pods(),
            mtu: 1500,
            non_masquerade_cidrs: Vec::new(),
            masquerade_ports: MASQUERADE_PORTS,
            timeouts: Timeouts::default(),
            fabric: Fabric::default(),
            services: Services::default(),
            policies: Policies::default(),
            load_balancer: LoadBalancer {
                frontend_cidrs: vec![ranges::default_frontends(IpFamily::V4)[0]],
                ..LoadBalancer::default()
            },
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
    let encapsulation =
        word("spec.encapsulation", spec.encapsulation.as_deref(), &words::ENCAPSULATIONS, fields);
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
    let masquerade_ports =
        ports_between("masqueradePorts", spec.masquerade_ports.as_ref(), MASQUERADE_PORTS, fields);
    let load_balancer = load_balancer(spec.load_balancer.as_ref(), fields);
    let fabric = fabric::read(spec, &[], fields);
    let settings = Settings {
        model,
        encapsulation,
        tunnel_port: u16::try_from(port).ok().filter(|port| *port != 0).unwrap_or(default_port),
        max_pods: if max_pods == 0 { model.max_pods() } else { max_pods },
        mtu,
        non_masquerade_cidrs: non_masquerade,
        masquerade_ports,
        timeouts: timeouts(spec.timeouts.as_ref(), fields),
        fabric,
        services: services(spec, (model, encapsulation), masquerade_ports, fields),
        policies: policies(spec.policies.as_ref(), fields),
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

/// Ports side by side; the default if none are stated.
fn ports_between(
    path: &str,
    stated: Option<&PortsSpec>,
    default: (u16, u16),
    fields: &mut Fields<'_>,
) -> (u16, u16) {
    let Some(stated) = stated else {
        return default;
    };
    let mut read = |name: &str, value: i64| {
        syntax::port(value).map_err(|why| fields.wrong(format!("spec.{path}.{name}"), why)).ok()
    };
    let (first, last) = (read("first", stated.first), read("last", stated.last));
    match (first, last) {
        (Some(first), Some(last)) if first <= last => (first, last),
        (Some(first), Some(last)) => {
            let why = format!("must be greater than or equal to `first`, not {last} (first is {first})");
            fields.wrong(format!("spec.{path}.last"), why);
            default
        }
        _ => default,
    }
}

/// `spec.services`.
fn services(
    spec: &TestbedSpec,
    (model, encapsulation): (Model, Encapsulation),
    masquerade_ports: (u16, u16),
    fields: &mut Fields<'_>,
) -> Services {
    let default = Services::default();
    let unstated = ServicesSpec::default();
    let stated = spec.services.as_ref().unwrap_or(&unstated);
    let path = |name: &str| format!("spec.services.{name}");
    let size = stated.maglev_table_size.unwrap_or(default.maglev_table_size.into());
    let known = TABLE_SIZES.into_iter().find(|prime| i64::from(*prime) == size);
    if known.is_none() {
        let primes = TABLE_SIZES.map(|prime| prime.to_string()).join(", ");
        fields.wrong(path("maglevTableSize"), format!("must be one of {primes}, not {size}"));
    }
    let node_ports =
        ports_between("services.nodePorts", stated.node_ports.as_ref(), default.node_ports, fields);
    let (first, last) = masquerade_ports;
    if node_ports.0 <= last && first <= node_ports.1 {
        let why = format!(
            "{}-{} overlaps masqueradePorts {first}-{last}: a packet to such a port would be anybody's",
            node_ports.0, node_ports.1
        );
        fields.wrong(path("nodePorts"), why);
    }
    let direct_return = stated.direct_return.unwrap_or(default.direct_return);
    if direct_return && (model, encapsulation) != (Model::Overlay, Encapsulation::Geneve) {
        let why = format!(
            "needs model overlay with encapsulation geneve, whose option carries what the backend's node has to know, not {}",
            if model == Model::Overlay { "vxlan" } else { model.name() }
        );
        fields.wrong(path("directReturn"), why);
    }
    Services {
        algorithm: word(&path("algorithm"), stated.algorithm.as_deref(), &words::ALGORITHMS, fields),
        maglev_table_size: known.unwrap_or(default.maglev_table_size),
        node_ports,
        direct_return,
        socket_translation: stated.socket_translation.unwrap_or(default.socket_translation),
        acceleration: word(
            &path("acceleration"),
            stated.acceleration.as_deref(),
            &words::ACCELERATIONS,
            fields,
        ),
    }
}

fn policies(spec: Option<&PoliciesSpec>, fields: &mut Fields<'_>) -> Policies {
    let default = Policies::default();
    let Some(spec) = spec else {
        return default;
    };
    Policies {
        audit: spec.audit.unwrap_or(default.audit),
        established: word(
            "spec.policies.established",
            spec.established.as_deref(),
            &words::ESTABLISHED,
            fields,
        ),
        ip_blocks: word("spec.policies.ipBlocks", spec.ip_blocks.as_deref(), &words::IP_BLOCKS, fields),
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
    let threshold = spec.probe_threshold.unwrap_or(default.probe_threshold.into());
    let probe_threshold = u32::try_from(threshold).ok().filter(|threshold| (1..=100).contains(threshold));
    if probe_threshold.is_none() {
        fields
            .wrong(path("probeThreshold"), format!("must be between 1 and 100, inclusive, not {threshold}"));
    }
    LoadBalancer {
        probe: word(&path("probe"), spec.probe.as_deref(), &words::PROBES, fields),
        probe_threshold: probe_threshold.unwrap_or(default.probe_threshold),
        client_affinity: spec.client_affinity.unwrap_or(default.client_affinity),
        forward: word(&path("forward"), spec.forward.as_deref(), &words::FORWARDS, fields),
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
    // The least that IPv6 links must carry (RFC 8200), after encapsulation; where the answer goes straight, that says
    // what was dialled.
    let six = |ranges: &[IpNet]| IpFamily::V6.pick(ranges).is_some();
    let outer = settings.node_subnets.first().map(|range| IpFamily::of_range(*range));
    let overhead = match (settings.model, outer) {
        (Model::Overlay, Some(IpFamily::V6)) => 70,
        (Model::Overlay, _) => 50,
        _ => 0,
    };
    let least = 1280 + overhead + if settings.services.direct_return { 24 } else { 0 };
    if (six(&settings.pod_cidrs) || six(&settings.node_subnets)) && settings.mtu < least {
        let why = format!("must be at least {least} for IPv6, not {}", settings.mtu);
        found.push(("spec.mtu".into(), why));
    }
    found.extend(acceleration_contradicts(settings));
    let ranges = Ranges::settled(settings);
    let mut named: Vec<_> = ranges.named(settings.model).collect();
    named.extend(ranges.vnet.iter().map(|range| ("vnetCIDRs", *range)));
    for frontends in &ranges.frontends {
        if let Some((name, other)) = named.iter().find(|(_, range)| ipam::overlap(*range, *frontends)) {
            let why = format!("{frontends} overlaps {name} {other}: public frontends are in the world");
            found.push(("spec.loadBalancer.frontendCIDRs".into(), why));
        }
    }
    if let Some(outbound) = settings.load_balancer.outbound {
        let path = || "spec.loadBalancer.outboundAddress".to_owned();
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

/// Why packets cannot be met in the uplink's driver, if that is asked for.
fn acceleration_contradicts(settings: &Settings) -> Option<(String, String)> {
    if settings.services.acceleration == Acceleration::Disabled {
        return None;
    }
    let why = if settings.fabric.kind == FabricKind::Emulator {
        "needs fabric.kind bridge: an emulated fabric takes nothing from a driver".to_owned()
    } else if settings.mtu > DRIVER_MTU {
        format!(
            "needs an mtu of at most {DRIVER_MTU}, as long as a frame that a driver hands out, not {}",
            settings.mtu
        )
    } else {
        return None;
    };
    Some(("spec.services.acceleration".to_owned(), why))
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
