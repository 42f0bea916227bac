//! Node subnet, pod CIDR and service CIDR: the user's, the defaults, or what the input's addresses ask for.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::cluster::{Encapsulation, Fabric, LoadBalancer, Model, Settings, Timeouts};
use super::error::Fields;
use super::own::TestbedSpec;
use super::syntax;
use crate::ipam::{self, Wish};

/// The UDP port of the overlay. Source: the default of the Linux vxlan driver and of Cilium; IANA's is 4789.
const TUNNEL_PORT: u16 = 8472;
/// The source ports that may stand for pods outside. Source: Linux, `ip_local_port_range`.
const MASQUERADE_PORTS: (u16, u16) = (32_768, 60_999);

const fn net(a: u8, b: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), 16)
}

/// A range by its name in a Testbed object, its default, and the longest prefix that leaves room for anything.
struct Range {
    name: &'static str,
    default: Ipv4Net,
    longest: u8,
    /// It has to hold every address that is stated for its kind: nodes reach each other without a router.
    must_hold: bool,
}

const NODE_SUBNET: Range = Range { name: "nodeSubnet", default: net(10, 240), longest: 29, must_hold: true };
const POD_CIDR: Range =
    Range { name: "podCIDR", default: net(10, 244), longest: ipam::POD_RANGE_PREFIX, must_hold: false };
const SERVICE_CIDR: Range =
    Range { name: "serviceCIDR", default: net(10, 96), longest: 28, must_hold: false };

/// The three ranges, node subnet first, with what a Testbed object says of each.
fn stated(spec: &TestbedSpec) -> [(Range, Option<&str>); 3] {
    [
        (NODE_SUBNET, spec.node_subnet.as_deref()),
        (POD_CIDR, spec.pod_cidr.as_deref()),
        (SERVICE_CIDR, spec.service_cidr.as_deref()),
    ]
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: Model::default(),
            encapsulation: Encapsulation::default(),
            tunnel_port: TUNNEL_PORT,
            node_subnets: vec![IpNet::V4(NODE_SUBNET.default)],
            pod_cidrs: vec![IpNet::V4(POD_CIDR.default)],
            service_cidrs: vec![IpNet::V4(SERVICE_CIDR.default)],
            vnet_cidrs: vec![IpNet::V4(NODE_SUBNET.default)],
            max_pods: ipam::MAX_PODS,
            mtu: 1500,
            non_masquerade_cidrs: Vec::new(),
            masquerade_ports: MASQUERADE_PORTS,
            timeouts: Timeouts::default(),
            fabric: Fabric::default(),
            load_balancer: LoadBalancer::default(),
        }
    }
}

/// Notes what is wrong with the ranges that a Testbed object states, each pair of them, and their defaults.
pub(super) fn fixed(spec: &TestbedSpec, fields: &mut Fields<'_>) {
    let mut ranges: Vec<(Range, Ipv4Net, bool)> = Vec::new();
    for (range, text) in stated(spec) {
        let parsed = text.map(syntax::cidr_on_path);
        let path = format!("spec.{}", range.name);
        let (value, is_stated) = match parsed {
            None => (range.default, false),
            Some(Err(why)) => {
                fields.wrong(path, why);
                continue;
            }
            Some(Ok(value)) if !(8..=range.longest).contains(&value.prefix_len()) => {
                fields.wrong(
                    path,
                    format!("must have a prefix between /8 and /{}, not {value}", range.longest),
                );
                continue;
            }
            Some(Ok(value)) => (value, true),
        };
        for (earlier, other, other_is_stated) in &ranges {
            if !ipam::overlap(value, *other) || !(is_stated || *other_is_stated) {
                continue;
            }
            // The field to blame is the one that was written.
            let (blamed, blamed_value, second, second_value, default) = match is_stated {
                true => (range.name, value, earlier.name, *other, !other_is_stated),
                false => (earlier.name, *other, range.name, value, true),
            };
            let default = if default { " (the default)" } else { "" };
            fields.wrong(
                format!("spec.{blamed}"),
                format!("{blamed_value} overlaps {second} {second_value}{default}: no two ranges may have an address in common"),
            );
        }
        ranges.push((range, value, is_stated));
    }
}

/// Addresses that the input states. A single one is a /32.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) nodes: Vec<Ipv4Net>,
    /// Pods' addresses, and the nodes' pod ranges.
    pub(super) pods: Vec<Ipv4Net>,
    pub(super) services: Vec<Ipv4Net>,
    pub(super) externals: Vec<Ipv4Net>,
}

/// The three ranges, no two of which overlap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    pub(super) node_subnet: Ipv4Net,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) service_cidr: Ipv4Net,
}

/// Chooses each range that the user hasn't stated, so that it holds the addresses given to its kind, if there
/// is a way, and nobody else's. Says so in `notes` where that isn't the default.
pub(super) fn choose(
    spec: Option<&TestbedSpec>,
    previous: Option<&Settings>,
    given: &Given,
    notes: &mut Vec<String>,
) -> Result<Ranges, ipam::Error> {
    let unstated = TestbedSpec::default();
    let [node, pod, service] = stated(spec.unwrap_or(&unstated)).map(|(range, text)| {
        // It has been validated.
        (range, text.and_then(|text| syntax::cidr_on_path(text).ok()))
    });
    let stated: Vec<Ipv4Net> = [node.1, pod.1, service.1].into_iter().flatten().collect();
    let kept = previous.cloned().unwrap_or_default();
    let mut select =
        |(range, stated): (Range, Option<Ipv4Net>), kept: IpNet, holds: &[Ipv4Net], avoid: &[&[Ipv4Net]]| {
            if let Some(stated) = stated {
                return Ok(stated);
            }
            let default = match kept {
                IpNet::V4(kept) => kept,
                IpNet::V6(_) => range.default,
            };
            let wish = Wish { name: range.name, default, holds, must_hold: range.must_hold };
            let chosen = ipam::choose(&wish, &avoid.concat())?;
            if chosen != default {
                let name = range.name;
                notes.push(format!(
                    "The addresses in the input ask for another {name} than {default}: it is {chosen}."
                ));
            }
            Ok(chosen)
        };
    let Given { nodes, pods, services, externals } = given;
    let node_subnet = select(node, kept.node_subnets[0], nodes, &[&stated, pods, services, externals])?;
    let pod_cidr = select(pod, kept.pod_cidrs[0], pods, &[&stated, &[node_subnet], services, externals])?;
    let service_cidr =
        select(service, kept.service_cidrs[0], services, &[&[node_subnet, pod_cidr], pods, externals])?;
    Ok(Ranges { node_subnet, pod_cidr, service_cidr })
}
