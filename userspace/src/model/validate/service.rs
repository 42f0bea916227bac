//! Services and EndpointSlices.
//!
//! Source: Kubernetes, `pkg/apis/core/validation` (`ValidateService`) and `pkg/apis/discovery/validation`.

use std::collections::HashSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::super::error::Fields;
use super::super::service::{STATIC, stated_source_ranges};
use super::super::syntax;
use super::{labels, note};
use crate::ipam::IpFamily;

/// A port of the node that is the kubelet's: a firewall that lets clients of a Service in lets them in there.
const KUBELET_PORT: i32 = 10_250;
/// Seconds that a client keeps its backend: a day at most.
const LONGEST_AFFINITY_S: i32 = 86_400;
const MOST_ENDPOINTS: usize = 1000;
const MOST_ADDRESSES: usize = 100;
const MOST_PORTS: usize = 20_000;
const MOST_HINTS: usize = 8;

pub(super) fn service(service: &core::Service, fields: &mut Fields<'_>) {
    let Some(spec) = &service.spec else {
        return fields.wrong("spec.ports", "Required value");
    };
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !kinds.contains(&kind) {
        fields.wrong("spec.type", syntax::unsupported(kind, &kinds));
    }
    cluster_ips(spec, fields);
    labels(spec.selector.as_ref(), "spec.selector", fields);
    let ports: &[_] = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && kind != "ExternalName" && spec.cluster_ip.as_deref() != Some("None") {
        fields.wrong("spec.ports", "Required value");
    }
    service_ports(ports, fields);
    of_kind(spec, kind, fields);
    affinity(spec, fields);
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        let outside =
            syntax::address(text).and_then(|address| syntax::not_special(address).map(|()| address));
        note(fields, &format!("spec.externalIPs[{i}]"), outside);
    }
    policies(spec, kind, fields);
    load_balancer(service, spec, kind, fields);
}

/// `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`, by themselves and beside each other. Whether the
/// cluster has the families is seen when its ranges are known.
fn cluster_ips(spec: &core::ServiceSpec, fields: &mut Fields<'_>) {
    let several: &[String] = spec.cluster_ips.as_deref().unwrap_or_default();
    let addresses = several.iter().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip));
    let address = spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip));
    for (path, text) in address.chain(addresses).filter(|(_, text)| !text.is_empty() && *text != "None") {
        note(fields, &path, syntax::host_address(text));
    }
    let first = spec.cluster_ip.as_ref().filter(|text| !text.is_empty());
    if let (Some(first), Some(other)) = (first, several.first())
        && first != other
    {
        fields.wrong(
            "spec.clusterIPs[0]",
            format!("must match `clusterIP`, not {other:?} (clusterIP is {first:?})"),
        );
    }
    if several.len() > 2 {
        fields.wrong("spec.clusterIPs", "may only hold up to 2 values");
    }
    let parsed: Vec<IpAddr> = several.iter().filter_map(|text| text.parse().ok()).collect();
    note(fields, "spec.clusterIPs", syntax::one_per_family(parsed.iter().copied(), "IP"));
    let families: &[String] = spec.ip_families.as_deref().unwrap_or_default();
    for (i, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        if !["IPv4", "IPv6"].contains(&family.as_str()) {
            fields.wrong(path, syntax::unsupported(family, &["IPv4", "IPv6"]));
        } else if families[..i].contains(family) {
            fields.wrong(path, format!("Duplicate value: {family:?}"));
        }
    }
    let alone = first.and_then(|text| text.parse().ok()).filter(|_| parsed.is_empty());
    for (i, (address, family)) in alone.iter().chain(&parsed).zip(families).enumerate() {
        let is = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if is != family {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`, not {address}");
            fields.wrong(format!("spec.clusterIPs[{i}]"), why);
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    let policy = spec.ip_family_policy.as_deref().unwrap_or("SingleStack");
    let two = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
    if !policies.contains(&policy) {
        fields.wrong("spec.ipFamilyPolicy", syntax::unsupported(policy, &policies));
    } else if policy == "SingleStack" && parsed.len() == 2 {
        fields.wrong("spec.ipFamilyPolicy", format!("{two} cluster IPs are specified"));
    } else if policy == "SingleStack" && families.len() == 2 && spec.cluster_ip.as_deref() != Some("None") {
        fields.wrong("spec.ipFamilyPolicy", format!("{two} IP families are specified"));
    }
}

fn service_ports(ports: &[core::ServicePort], fields: &mut Fields<'_>) {
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        note(fields, &format!("{path}.port"), syntax::port(port.port.into()));
        let protocol = note(fields, &format!("{path}.protocol"), syntax::protocol(port.protocol.as_deref()));
        if let Some(target) = &port.target_port {
            note(fields, &format!("{path}.targetPort"), syntax::port_or_name(target));
        }
        match port.name.as_deref().unwrap_or_default() {
            "" if ports.len() > 1 => fields.wrong(format!("{path}.name"), "Required value"),
            "" => {}
            name => {
                note(fields, &format!("{path}.name"), syntax::dns_label(name, 63));
                if !names.insert(name) {
                    fields.wrong(format!("{path}.name"), format!("Duplicate value: {name:?}"));
                }
            }
        }
        if let Some(number) = port.node_port.filter(|number| *number != 0) {
            let path = format!("{path}.nodePort");
            let sound = note(fields, &path, syntax::port(number.into())).is_some();
            if sound && protocol.is_some_and(|protocol| !node_ports.insert((number, protocol))) {
                fields.wrong(path, format!("Duplicate value: {number}"));
            }
        }
        if let Some(protocol) = protocol.filter(|protocol| !numbers.insert((port.port, *protocol))) {
            fields.wrong(path, format!("Duplicate value: port {} {protocol}", port.port));
        }
    }
}

/// What only some types of Services may have, or must.
fn of_kind(spec: &core::ServiceSpec, kind: &str, fields: &mut Fields<'_>) {
    let ports = || spec.ports.iter().flatten().enumerate();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    match kind {
        "ClusterIP" => {
            for (i, _) in ports().filter(|(_, port)| port.node_port.is_some_and(|number| number != 0)) {
                let why = "Forbidden: may not be used when `type` is 'ClusterIP'";
                fields.wrong(format!("spec.ports[{i}].nodePort"), why);
            }
        }
        "LoadBalancer" | "NodePort" => {
            if headless {
                fields.wrong("spec.clusterIPs[0]", format!("may not be set to 'None' for {kind} services"));
            }
            for (i, _) in ports().filter(|(_, port)| kind == "LoadBalancer" && port.port == KUBELET_PORT) {
                let why =
                    format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
                fields.wrong(format!("spec.ports[{i}].port"), why);
            }
        }
        "ExternalName" => {
            let stated = [
                (
                    "clusterIPs",
                    spec.cluster_ip.as_ref().is_some_and(|ip| !ip.is_empty()) || spec.cluster_ips.is_some(),
                ),
                ("ipFamilies", spec.ip_families.as_ref().is_some_and(|families| !families.is_empty())),
                ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
            ];
            for (name, _) in stated.iter().filter(|(_, stated)| *stated) {
                fields.wrong(format!("spec.{name}"), "Forbidden: may not be set for ExternalName services");
            }
            match spec.external_name.as_deref().map(|name| name.strip_suffix('.').unwrap_or(name)) {
                None | Some("") => fields.wrong("spec.externalName", "Required value"),
                Some(name) => drop(note(fields, "spec.externalName", syntax::dns_subdomain(name))),
            }
        }
        _ => {}
    }
}

fn affinity(spec: &core::ServiceSpec, fields: &mut Fields<'_>) {
    let affinity = spec.session_affinity.as_deref().unwrap_or("None");
    let path = "spec.sessionAffinityConfig";
    match (affinity, &spec.session_affinity_config) {
        ("ClientIP", Some(config)) => {
            let timeout = config.client_ip.as_ref().and_then(|client| client.timeout_seconds);
            let wrong = timeout.filter(|timeout| !(1..=LONGEST_AFFINITY_S).contains(timeout));
            if let Some(timeout) = wrong {
                let why = format!("must be between 1 and {LONGEST_AFFINITY_S}, inclusive, not {timeout}");
                fields.wrong(format!("{path}.clientIP.timeoutSeconds"), why);
            }
        }
        ("None", Some(_)) => {
            fields.wrong(path, "Forbidden: must not be set when session affinity is None");
        }
        ("ClientIP" | "None", None) => {}
        (other, _) => {
            fields.wrong("spec.sessionAffinity", syntax::unsupported(other, &["ClientIP", "None"]));
        }
    }
}

fn policies(spec: &core::ServiceSpec, kind: &str, fields: &mut Fields<'_>) {
    let policies = ["Cluster", "Local"];
    let external = spec.external_traffic_policy.as_deref().filter(|policy| !policy.is_empty());
    let accessible = matches!(kind, "LoadBalancer" | "NodePort")
        || kind == "ClusterIP" && spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty());
    match external {
        Some(_) if !accessible => {
            fields.wrong(
                "spec.externalTrafficPolicy",
                "may only be set for externally-accessible services: type NodePort or LoadBalancer, or externalIPs",
            );
        }
        Some(policy) if !policies.contains(&policy) => {
            fields.wrong("spec.externalTrafficPolicy", syntax::unsupported(policy, &policies));
        }
        _ => {}
    }
    if let Some(policy) = spec.internal_traffic_policy.as_deref().filter(|policy| !policies.contains(policy))
    {
        fields.wrong("spec.internalTrafficPolicy", syntax::unsupported(policy, &policies));
    }
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    let distribution = spec.traffic_distribution.as_deref();
    if let Some(other) = distribution.filter(|distribution| !distributions.contains(distribution)) {
        fields.wrong("spec.trafficDistribution", syntax::unsupported(other, &distributions));
    }
    if let Some(number) = spec.health_check_node_port.filter(|number| *number != 0) {
        match kind == "LoadBalancer" && external == Some("Local") {
            true => drop(note(fields, "spec.healthCheckNodePort", syntax::port(number.into()))),
            false => fields.wrong(
                "spec.healthCheckNodePort",
                format!("may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local', not {number}"),
            ),
        }
    }
}

fn load_balancer(service: &core::Service, spec: &core::ServiceSpec, kind: &str, fields: &mut Fields<'_>) {
    let (ranges, texts) = stated_source_ranges(service);
    for (i, text) in texts.iter().enumerate() {
        // The annotation is one text.
        let path = if ranges.starts_with("spec") { format!("{ranges}[{i}]") } else { ranges.clone() };
        note(fields, &path, syntax::cidr(text));
    }
    let only = [
        (ranges, !texts.is_empty()),
        ("spec.allocateLoadBalancerNodePorts".into(), spec.allocate_load_balancer_node_ports.is_some()),
        ("spec.loadBalancerClass".into(), spec.load_balancer_class.is_some()),
    ];
    for (path, _) in only.into_iter().filter(|(_, stated)| *stated && kind != "LoadBalancer") {
        fields.wrong(path, "Forbidden: may only be used when `type` is 'LoadBalancer'");
    }
    if let Some(class) = &spec.load_balancer_class {
        note(fields, "spec.loadBalancerClass", syntax::label_key(class));
    }
    if let Some(address) = spec.load_balancer_ip.as_deref().filter(|text| !text.is_empty()) {
        note(fields, "spec.loadBalancerIP", syntax::host_address(address));
    }
    let annotations = service.metadata.annotations.as_ref();
    for (family, name) in STATIC {
        let Some(text) = annotations.and_then(|all| all.get(name)) else { continue };
        let verdict = syntax::host_address(text).and_then(|address| match IpFamily::of(address) == family {
            true => Ok(address),
            false => Err(format!("must be an {family} address, not {text:?}")),
        });
        note(fields, &format!("metadata.annotations[{name}]"), verdict);
    }
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    for (i, ingress) in status.iter().flat_map(|status| status.ingress.iter().flatten()).enumerate() {
        let path = format!("status.loadBalancer.ingress[{i}]");
        let address = ingress.ip.as_deref().filter(|text| !text.is_empty());
        if let Some(text) = address {
            note(fields, &format!("{path}.ip"), syntax::host_address(text));
        }
        let path = format!("{path}.ipMode");
        match ingress.ip_mode.as_deref() {
            Some("VIP" | "Proxy") if address.is_some() => {}
            None => {}
            Some("VIP" | "Proxy") => {
                fields.wrong(path, "Forbidden: may not be specified when `ip` is not set")
            }
            Some(other) => fields.wrong(path, syntax::unsupported(other, &["Proxy", "VIP"])),
        }
    }
}

pub(super) fn endpoint_slice(slice: &EndpointSlice, fields: &mut Fields<'_>) {
    let families = ["FQDN", "IPv4", "IPv6"];
    if !families.contains(&slice.address_type.as_str()) {
        fields.wrong("addressType", syntax::unsupported(&slice.address_type, &families));
    }
    let ports: &[_] = slice.ports.as_deref().unwrap_or_default();
    at_most(ports.len(), MOST_PORTS, "ports", fields);
    let mut names = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            note(fields, &format!("ports[{i}].name"), syntax::dns_label(name, 63));
        }
        if !names.insert(name) {
            fields.wrong(format!("ports[{i}].name"), format!("Duplicate value: {name:?}"));
        }
        if let Some(number) = port.port {
            note(fields, &format!("ports[{i}].port"), syntax::port(number.into()));
        }
        note(fields, &format!("ports[{i}].protocol"), syntax::protocol(port.protocol.as_deref()));
    }
    let endpoints: &[_] = slice.endpoints.as_deref().unwrap_or_default();
    at_most(endpoints.len(), MOST_ENDPOINTS, "endpoints", fields);
    for (i, endpoint) in endpoints.iter().enumerate() {
        self::endpoint(endpoint, &slice.address_type, &format!("endpoints[{i}]"), fields);
    }
}

fn endpoint(endpoint: &Endpoint, family: &str, path: &str, fields: &mut Fields<'_>) {
    if endpoint.addresses.is_empty() {
        fields.wrong(format!("{path}.addresses"), "Required value: must contain at least 1 address");
    }
    at_most(endpoint.addresses.len(), MOST_ADDRESSES, &format!("{path}.addresses"), fields);
    for (i, text) in endpoint.addresses.iter().enumerate() {
        let verdict = match family {
            "IPv4" | "IPv6" => {
                syntax::address(text).and_then(|address| match IpFamily::of(address).to_string() == family {
                    true => syntax::not_special(address),
                    false => Err(format!("must be an {family} address, not {text:?}")),
                })
            }
            "FQDN" => syntax::full_name(text),
            // That is wrong already.
            _ => Ok(()),
        };
        note(fields, &format!("{path}.addresses[{i}]"), verdict);
    }
    if let Some(node) = &endpoint.node_name {
        note(fields, &format!("{path}.nodeName"), syntax::dns_subdomain(node));
    }
    let hints = endpoint.hints.iter();
    let zones = hints.clone().flat_map(|hints| hints.for_zones.iter().flatten());
    let nodes = hints.flat_map(|hints| hints.for_nodes.iter().flatten());
    hint(
        zones.map(|zone| zone.name.as_str()),
        syntax::label_value,
        &format!("{path}.hints.forZones"),
        fields,
    );
    hint(
        nodes.map(|node| node.name.as_str()),
        syntax::dns_subdomain,
        &format!("{path}.hints.forNodes"),
        fields,
    );
}

/// The zones or nodes that an endpoint is for, each once.
fn hint<'a>(
    names: impl Iterator<Item = &'a str>,
    sound: fn(&str) -> syntax::Verdict,
    path: &str,
    fields: &mut Fields<'_>,
) {
    let mut seen = HashSet::new();
    for (i, name) in names.enumerate() {
        note(fields, &format!("{path}[{i}].name"), sound(name));
        if !seen.insert(name) {
            fields.wrong(format!("{path}[{i}].name"), format!("Duplicate value: {name:?}"));
        }
    }
    at_most(seen.len(), MOST_HINTS, path, fields);
}

fn at_most(count: usize, most: usize, path: &str, fields: &mut Fields<'_>) {
    if count > most {
        fields.wrong(path, format!("Too many: {count}: must have at most {most} items"));
    }
}
