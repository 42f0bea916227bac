//! `spec.fabric` of a Testbed object: user-defined routes, security rules in Azure's own words, and links
//! that are not perfect.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::amount;
use super::choice::word;
use super::endpoint::did_you_mean;
use super::error::Fields;
use super::own::{FabricSpec, LinkSpec, RouteSpec, SecurityRuleSpec, TestbedSpec};
use super::settings::{Fabric, FabricKind, LinkQuality, Model, NextHop, SecurityRule, Settings, UserRoute};
use super::{syntax, words};
use crate::ipam::overlap;

/// Where Azure's health probes come from, and what `AzureLoadBalancer` stands for. Source: Azure, "What is IP
/// address 168.63.129.16?".
pub(crate) const PROBES: IpAddr = IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16));
/// Where they come from to nodes that have IPv6 only. Source: Microsoft Learn, "Azure Load Balancer health probes".
pub(crate) const PROBES_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc));
/// Frames that wait for their turn. Source: tc-netem(8), `limit`.
const QUEUE: u32 = 1000;
const LONGEST_DELAY_NS: u64 = 10_000_000_000;

/// Reads `spec.fabric`, and notes what is wrong with it. `inside` is what the tag `VirtualNetwork` stands for.
pub(super) fn read(spec: &TestbedSpec, inside: &[IpNet], fields: &mut Fields<'_>) -> Fabric {
    let unstated = FabricSpec::default();
    let fabric = spec.fabric.as_ref().unwrap_or(&unstated);
    let routes: Vec<UserRoute> = routes(&fabric.routes, fields);
    let security_rules = security_rules(&fabric.security_rules, inside, fields);
    let links = links(&fabric.links, fields);
    let outbound = spec.load_balancer.as_ref().is_some_and(|balancer| balancer.outbound_address.is_some());
    let needs = [
        ("fabric.routes", !fabric.routes.is_empty()),
        ("fabric.securityRules", !fabric.security_rules.is_empty()),
        ("fabric.links", !fabric.links.is_empty()),
        ("loadBalancer.outboundAddress", outbound),
    ];
    let needs: Vec<&str> = needs.into_iter().filter(|(_, stated)| *stated).map(|(name, _)| name).collect();
    let stated = word("spec.fabric.kind", fabric.kind.as_deref(), &words::FABRICS, fields);
    let kind = match (fabric.kind.as_deref(), needs.is_empty()) {
        (None, false) => FabricKind::Emulator,
        (Some("bridge"), false) => {
            let why =
                format!("the kernel's bridge has no {}: write emulator, or leave kind out", needs.join(", "));
            fields.wrong("spec.fabric.kind", why);
            stated
        }
        _ => stated,
    };
    Fabric { kind, routes, security_rules, links }
}

/// What the tag `VirtualNetwork` stands for: the virtual network, and the prefixes of route tables, the default
/// route's excepted. Source: Azure, "Virtual network service tags".
pub(crate) fn inside(settings: &Settings) -> Vec<IpNet> {
    let mut inside = settings.vnet_cidrs.clone();
    if settings.model == Model::Kubenet {
        inside.extend(&settings.pod_cidrs);
    }
    let prefixes = settings.fabric.routes.iter().map(|route| route.prefix);
    inside.extend(prefixes.filter(|prefix| prefix.prefix_len() > 0));
    inside
}

fn routes(specs: &[RouteSpec], fields: &mut Fields<'_>) -> Vec<UserRoute> {
    let (mut names, mut prefixes) = (HashSet::new(), HashSet::new());
    let mut routes = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let path = |field: &str| format!("spec.fabric.routes[{i}].{field}");
        name_once(&path("name"), &spec.name, &mut names, fields);
        let prefix = match syntax::cidr(&spec.prefix) {
            Ok(prefix) => prefix.trunc(),
            Err(why) => {
                fields.wrong(path("prefix"), why);
                continue;
            }
        };
        if !prefixes.insert(prefix) {
            fields.wrong(path("prefix"), format!("Duplicate value: \"{prefix}\""));
        }
        let address = spec.next_hop_address.as_deref().map(syntax::host_address);
        let next_hop = match (spec.next_hop_type.as_str(), address) {
            ("VirtualAppliance", Some(Ok(address))) if address.is_ipv4() == prefix.addr().is_ipv4() => {
                NextHop::VirtualAppliance(address)
            }
            ("VirtualAppliance", Some(Ok(address))) => {
                fields.wrong(
                    path("nextHopAddress"),
                    format!("must be of the family of {prefix}, not \"{address}\""),
                );
                continue;
            }
            ("VirtualAppliance", None) => {
                fields.wrong(path("nextHopAddress"), "Required value: where VirtualAppliance is");
                continue;
            }
            (_, Some(Err(why))) => {
                fields.wrong(path("nextHopAddress"), why);
                continue;
            }
            (other, Some(Ok(_))) => {
                fields.wrong(
                    path("nextHopAddress"),
                    format!("Forbidden: only VirtualAppliance has one, not {other}"),
                );
                continue;
            }
            ("VirtualNetwork", None) => NextHop::VirtualNetwork,
            ("Internet", None) => NextHop::Internet,
            ("None", None) => NextHop::None,
            (other, None) => {
                fields.wrong(path("nextHopType"), syntax::unsupported(other, &words::NEXT_HOPS));
                continue;
            }
        };
        routes.push(UserRoute { name: spec.name.clone(), prefix, next_hop });
    }
    routes
}

fn name_once<'a>(path: &str, name: &'a str, names: &mut HashSet<&'a str>, fields: &mut Fields<'_>) {
    if name.is_empty() {
        fields.wrong(path, "Required value");
    } else if !names.insert(name) {
        fields.wrong(path, format!("Duplicate value: {name:?}"));
    }
}

fn security_rules(
    specs: &[SecurityRuleSpec],
    inside: &[IpNet],
    fields: &mut Fields<'_>,
) -> Vec<SecurityRule> {
    let (mut names, mut priorities) = (HashSet::new(), HashSet::new());
    let mut rules = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let path = format!("spec.fabric.securityRules[{i}]");
        name_once(&format!("{path}.name"), &spec.name, &mut names, fields);
        let Some(rule) = security_rule(spec, &path, inside, fields) else {
            continue;
        };
        if !priorities.insert((rule.direction, rule.priority)) {
            let why = format!("Duplicate value: {} ({})", rule.priority, spec.direction);
            fields.wrong(format!("{path}.priority"), why);
        }
        rules.push(rule);
    }
    rules.sort_by_key(|rule| rule.priority);
    rules
}

fn security_rule(
    spec: &SecurityRuleSpec,
    path: &str,
    inside: &[IpNet],
    fields: &mut Fields<'_>,
) -> Option<SecurityRule> {
    let priority = u16::try_from(spec.priority).ok().filter(|priority| (100..=4096).contains(priority));
    if priority.is_none() {
        let why = format!("must be between 100 and 4096, inclusive, not {}", spec.priority);
        fields.wrong(format!("{path}.priority"), why);
    }
    let direction = word(&format!("{path}.direction"), Some(&spec.direction), &words::DIRECTIONS, fields);
    let allow = word(&format!("{path}.access"), Some(&spec.access), &words::ACCESSES, fields);
    let protocol =
        word(&format!("{path}.protocol"), spec.protocol.as_deref(), &words::SECURITY_PROTOCOLS, fields);
    let mut addresses = |name: &str, list: &[String]| {
        let path = format!("{path}.{name}");
        any_of(&path, list, fields, |text| prefixes(text, inside))
    };
    let sources = addresses("sourceAddressPrefixes", &spec.source_address_prefixes);
    let targets = addresses("destinationAddressPrefixes", &spec.destination_address_prefixes);
    let mut ports = |name: &str, list: &[IntOrString]| {
        let path = format!("{path}.{name}");
        let list: Vec<String> = list
            .iter()
            .map(|port| match port {
                IntOrString::Int(number) => number.to_string(),
                IntOrString::String(text) => text.clone(),
            })
            .collect();
        let ports = any_of(&path, &list, fields, |text| port_range(text).map(|range| vec![range]));
        if protocol == Some(1) && !ports.is_empty() {
            fields.wrong(path, "Forbidden: Icmp has no ports: write *, or leave it out");
        }
        ports
    };
    let source_ports = ports("sourcePortRanges", &spec.source_port_ranges);
    let target_ports = ports("destinationPortRanges", &spec.destination_port_ranges);
    Some(SecurityRule {
        name: spec.name.clone(),
        priority: priority?,
        direction: direction?,
        allow: allow?,
        protocol,
        sources,
        source_ports,
        targets,
        target_ports,
    })
}

/// What each item of a list stands for, together; nothing, which is any, if one of them is `*`.
fn any_of<T>(
    path: &str,
    list: &[String],
    fields: &mut Fields<'_>,
    read: impl Fn(&str) -> Result<Vec<T>, String>,
) -> Vec<T> {
    let mut found = Vec::new();
    for (i, text) in list.iter().enumerate().filter(|(_, text)| *text != "*") {
        match read(text) {
            Ok(each) => found.extend(each),
            Err(why) => fields.wrong(format!("{path}[{i}]"), why),
        }
    }
    if list.iter().any(|text| text == "*") { Vec::new() } else { found }
}

fn prefixes(text: &str, inside: &[IpNet]) -> Result<Vec<IpNet>, String> {
    match text {
        "VirtualNetwork" => Ok(inside.to_vec()),
        "Internet" => {
            let outside: Vec<IpNet> = [Ipv4Net::default().into(), Ipv6Net::default().into()]
                .into_iter()
                .flat_map(|all| without(all, inside))
                .collect();
            match outside.is_empty() {
                true => Err("nothing is left for Internet: vnetCIDRs and fabric.routes, which are VirtualNetwork, cover every address".into()),
                false => Ok(outside),
            }
        }
        "AzureLoadBalancer" => Ok(vec![PROBES.into()]),
        _ if text.contains('/') => Ok(vec![syntax::cidr(text)?.trunc()]),
        _ => match text.parse::<IpAddr>() {
            Ok(address) => Ok(vec![address.into()]),
            Err(_) => Err(format!(
                "must be an address, a CIDR, * or one of the tags VirtualNetwork, Internet and AzureLoadBalancer, not {text:?}: other tags stand for nothing here"
            )),
        },
    }
}

/// A range without others, as the fewest ranges.
fn without(range: IpNet, others: &[IpNet]) -> Vec<IpNet> {
    if others.iter().any(|other| other.contains(&range)) {
        return Vec::new();
    }
    if !others.iter().any(|other| overlap(*other, range)) {
        return vec![range];
    }
    halves(range).into_iter().flat_map(|half| without(half, others)).collect()
}

/// The two halves of a range that is more than an address.
fn halves(range: IpNet) -> [IpNet; 2] {
    let prefix = range.prefix_len() + 1;
    let bit = u32::from(range.max_prefix_len() - prefix);
    let upper: IpAddr = match range.network() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | 1 << bit).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | 1 << bit).into(),
    };
    [range.network(), upper].map(|first| IpNet::new(first, prefix).expect("a prefix of its family"))
}

/// `80` or `8000-8010`. 0 is a port to a security group, if not to anybody else.
fn port_range(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("must be a port, a range like 8000-8010, or *, not {text:?}")),
    }
}

fn links(specs: &[LinkSpec], fields: &mut Fields<'_>) -> Vec<LinkQuality> {
    let mut names = HashSet::new();
    let mut links = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let path = |field: &str| format!("spec.fabric.links[{i}].{field}");
        name_once(&path("link"), &spec.link, &mut names, fields);
        let mut read = |field: &str, text: Option<&String>, parse: fn(&str) -> Result<u64, String>| {
            text.map_or(Ok(0), |text| parse(text)).unwrap_or_else(|why| {
                fields.wrong(path(field), why);
                0
            })
        };
        let parts = |text: &str| amount::percentage(text).map(u64::from);
        let quality = LinkQuality {
            link: spec.link.clone(),
            delay_ns: read("delay", spec.delay.as_ref(), delay),
            jitter_ns: read("jitter", spec.jitter.as_ref(), delay),
            loss_ppm: read("loss", spec.loss.as_ref(), parts) as u32,
            duplicate_ppm: read("duplicate", spec.duplicate.as_ref(), parts) as u32,
            reorder_ppm: read("reorder", spec.reorder.as_ref(), parts) as u32,
            rate_bps: read("rate", spec.rate.as_ref(), amount::rate),
            queue: queue(spec.queue).unwrap_or(QUEUE),
            seed: spec.seed.unwrap_or(0),
        };
        if spec.queue.is_some() && queue(spec.queue).is_none() {
            fields.wrong(path("queue"), "must be between 1 and 1000000, inclusive");
        }
        if quality.jitter_ns > quality.delay_ns {
            fields
                .wrong(path("jitter"), "must not be more than `delay`: no frame arrives before it was sent");
        }
        if quality.reorder_ppm > 0 && quality.delay_ns == 0 {
            fields.wrong(
                path("reorder"),
                "needs a `delay`: frames that overtake are those that are not delayed",
            );
        }
        if spec.queue.is_some() && spec.rate.is_none() {
            fields.wrong(path("queue"), "needs a `rate`: without one no frame waits");
        }
        links.push(quality);
    }
    links
}

fn queue(stated: Option<i64>) -> Option<u32> {
    u32::try_from(stated?).ok().filter(|frames| (1..=1_000_000).contains(frames))
}

fn delay(text: &str) -> Result<u64, String> {
    let delay = amount::duration(text)?;
    (delay <= LONGEST_DELAY_NS).then_some(delay).ok_or_else(|| format!("must be at most 10s, not {text:?}"))
}

/// Next hops and links must be somebody's: the field, and why it isn't.
pub(super) fn contradictions(
    spec: &TestbedSpec,
    fabric: &Fabric,
    nodes: &[(String, Vec<IpAddr>)],
    externals: &[(String, IpAddr)],
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let names = nodes.iter().map(|(name, _)| format!("node:{name}"));
    let names: Vec<String> = names.chain(externals.iter().map(|(name, _)| format!("ext:{name}"))).collect();
    let links = spec.fabric.iter().flat_map(|fabric| &fabric.links).enumerate();
    for (i, link) in links.filter(|(_, link)| !names.contains(&link.link)) {
        let hint = did_you_mean(&link.link, names.iter().map(String::as_str));
        let why = format!("there is no {:?}{hint}: links are node:NAME and ext:NAME", link.link);
        found.push((format!("spec.fabric.links[{i}].link"), why));
    }
    let addresses: HashSet<IpAddr> = nodes
        .iter()
        .flat_map(|(_, addresses)| addresses.iter().copied())
        .chain(externals.iter().map(|(_, address)| *address))
        .collect();
    for (i, route) in fabric.routes.iter().enumerate() {
        if let NextHop::VirtualAppliance(address) = route.next_hop
            && !addresses.contains(&address)
        {
            let why = format!(
                "{address} is the address of no node and no External, so nobody would pass packets on"
            );
            found.push((format!("spec.fabric.routes[{i}].nextHopAddress"), why));
        }
    }
    found
}
