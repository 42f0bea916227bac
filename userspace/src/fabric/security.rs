//! Security groups: which flows a node's interface lets out, and which it lets in.
//!
//! Every node's interface has the same group. Its rules are asked in the order of their priorities, and the
//! first that matches decides; for a flow's first packet only: what belongs to a flow that was let through,
//! in either direction, passes, and so do ICMP errors about it ([`super::flows`]). A rule that names ports
//! matches protocols that have them, and one for ICMP matches ICMPv6, too.
//!
//! A group with no rule of the user's lets everything through, and remembers nothing. With one, these come
//! last, as they do in the cloud:
//!
//! | priority | inbound | outbound |
//! | --- | --- | --- |
//! | 65000 | `AllowVnetInBound`: the virtual network, to the virtual network | `AllowVnetOutBound`: the same |
//! | 65001 | `AllowAzureLoadBalancerInBound`: health probes | `AllowInternetOutBound`: everything else |
//! | 65500 | `DenyAllInBound` | `DenyAllOutBound` |
//!
//! The virtual network is its ranges, `kubenet`'s pod range, and the prefixes of user-defined routes: with a
//! default route among these it is everything, in the cloud as here.
//!
//! Source: Microsoft Learn, "Network security groups" and "Virtual network service tags".

use std::net::IpAddr;

use ipnet::IpNet;

use super::RuleReport;
use super::packet::{ICMP, ICMPV6, Tuple};
use crate::model::{Cluster, Direction, PROBES, SecurityRule, virtual_network};

/// The rules of every node's interface.
#[derive(Debug)]
pub(super) struct Security {
    /// In the order they are asked, outbound first.
    rules: Vec<(SecurityRule, u64)>,
}

impl Security {
    /// None if the user has no rules.
    pub(super) fn of(cluster: &Cluster) -> Option<Self> {
        let fabric = &cluster.settings.fabric;
        if fabric.security_rules.is_empty() {
            return None;
        }
        let mut rules = fabric.security_rules.clone();
        rules.extend(defaults(cluster));
        rules.sort_by_key(|rule| (rule.direction == Direction::Inbound, rule.priority));
        Some(Self { rules: rules.into_iter().map(|rule| (rule, 0)).collect() })
    }

    /// Rules that stay go on counting.
    pub(super) fn counting_on(mut self, before: Option<&Self>) -> Self {
        let old = before.map_or(&[][..], |before| &before.rules);
        for (rule, hits) in &mut self.rules {
            *hits = old.iter().find(|(known, _)| known == rule).map_or(0, |(_, hits)| *hits);
        }
        self
    }

    /// The name of the rule that decides about a flow, and whether it lets it through.
    pub(super) fn decide(&mut self, direction: Direction, flow: &Tuple) -> (String, bool) {
        let found =
            self.rules.iter_mut().find(|(rule, _)| rule.direction == direction && matches(rule, flow));
        // The last rule of each direction matches everything.
        let (rule, hits) = found.expect("every direction has a rule for everything");
        *hits += 1;
        (rule.name.clone(), rule.allow)
    }

    pub(super) fn report(&self) -> Vec<RuleReport> {
        let row = |(rule, hits): &(SecurityRule, u64)| RuleReport {
            direction: rule.direction,
            priority: rule.priority,
            name: rule.name.clone(),
            allow: rule.allow,
            hits: *hits,
        };
        self.rules.iter().map(row).collect()
    }
}

fn matches(rule: &SecurityRule, flow: &Tuple) -> bool {
    let address = |ranges: &[IpNet], address: IpAddr| {
        ranges.is_empty() || ranges.iter().any(|range| range.contains(&address))
    };
    let port = |ranges: &[(u16, u16)], port: u16| {
        ranges.is_empty()
            || flow.has_ports() && ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
    };
    let protocol = if flow.protocol == ICMPV6 { ICMP } else { flow.protocol };
    rule.protocol.is_none_or(|one| one == protocol || one == flow.protocol)
        && address(&rule.sources, flow.source.0)
        && address(&rule.targets, flow.target.0)
        && port(&rule.source_ports, flow.source.1)
        && port(&rule.target_ports, flow.target.1)
}

/// What comes after the user's rules.
fn defaults(cluster: &Cluster) -> [SecurityRule; 6] {
    use Direction::{Inbound, Outbound};
    let rule = |name: &str, priority, direction, allow, ends: [&[IpNet]; 2]| SecurityRule {
        name: name.to_owned(),
        priority,
        direction,
        allow,
        protocol: None,
        sources: ends[0].to_vec(),
        source_ports: Vec::new(),
        targets: ends[1].to_vec(),
        target_ports: Vec::new(),
    };
    let network = virtual_network(&cluster.settings);
    let (inside, any): ([&[IpNet]; 2], [&[IpNet]; 2]) = ([&network, &network], [&[], &[]]);
    [
        rule("AllowVnetOutBound", 65000, Outbound, true, inside),
        rule("AllowInternetOutBound", 65001, Outbound, true, any),
        rule("DenyAllOutBound", 65500, Outbound, false, any),
        rule("AllowVnetInBound", 65000, Inbound, true, inside),
        rule("AllowAzureLoadBalancerInBound", 65001, Inbound, true, [&[PROBES.into()], &[]]),
        rule("DenyAllInBound", 65500, Inbound, false, any),
    ]
}
