//! Policies, a table `network-policy` for each family: a chain for each pod and direction that a policy is about.
//!
//! ```text
//! prerouting, raw    -> who lies about its address, and what comes past the tunnel
//! forward, input     -> what was let through; @egress   by iifname -> from-…
//! forward                                     @ingress  by oifname -> to-…
//! from-…, to-…       -> address . protocol . port vmap { … : return, … : drop }, then address vmap { … }
//! postrouting        -> to-outside, what a pod sends outside
//! ```
//! A pod's chain allows by returning, because the other end's chain has to agree too. All policies about it are
//! worked out beforehand ([`super::decide`]), so the number of policies costs nothing on the way. Where a pod is
//! audited what would be dropped is logged, which the kernel does outside of its first network namespace only with
//! `net.netfilter.nf_log_all_netns=1`. The node's own packets to its pods are never asked about.
//!
//! kube-proxy has no part in this; engines with sets and verdict maps do it alike (kube-network-policies,
//! kube-router). Masquerading to the outside is ip-masq-agent's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use userspace::model::{Cluster, Established, Model, Node, Pod};

use super::decide::{Decision, Ports, Range, Verdict, decisions};
use super::peers::{Direction, Side};
use super::ruleset::Table;
use super::services::digits;
use super::{Family, PODS};
use crate::topology::{TUNNEL, UPLINK, host_side};

/// The table `network-policy` of a family on a node.
pub(super) fn table(cluster: &Cluster, node: &Node, family: Family) -> Table {
    let mut table = Table::default();
    let address = family.address_type();
    table.set("sources", format!("type ifname . {address};"));
    table.map("egress", "type ifname : verdict;");
    table.map("ingress", "type ifname : verdict;");
    // Only there: not every kernel can log.
    if cluster.pods_on(&node.name).any(|pod| cluster.audits(&pod.namespace)) {
        table.chain("audited", vec!["log prefix \"podpath audit: \"".to_owned()]);
    }
    table.base("guard", "filter hook prerouting priority raw", guard(cluster, node, family));
    let judged: Vec<String> = match cluster.settings.policies.established {
        Established::Keep => vec!["ct state established,related accept".to_owned()],
        Established::Cut => {
            vec![
                "ct state related accept".to_owned(),
                "ct state established ct direction reply accept".to_owned(),
            ]
        }
    };
    let egress = ["ct state invalid drop".to_owned(), "iifname vmap @egress".to_owned()];
    let ingress = ["oifname vmap @ingress".to_owned()];
    table.base("forward", "filter hook forward priority filter", [&judged[..], &egress, &ingress].concat());
    let others = [format!("iifname != {PODS} accept")];
    let neighbours = neighbours(family);
    let input = [&others[..], &neighbours, &judged, &egress].concat();
    table.base("input", "filter hook input priority filter", input);
    for pod in cluster.pods_on(&node.name).filter(|pod| !pod.host_network) {
        for own in pod.addresses.iter().filter(|it| family.has(**it)) {
            table.element("sources", format!("\"{}\" . {own}", host_side(pod)));
        }
        pod_chains(&mut table, cluster, pod, family);
    }
    masquerade(&mut table, cluster, node, family);
    table
}

/// Who asks for a neighbour is let through: without it no packet passes.
fn neighbours(family: Family) -> Vec<String> {
    match family {
        Family::Four => Vec::new(),
        Family::Six => vec!["icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept".to_owned()],
    }
}

/// What is dropped before anything is known of it.
fn guard(cluster: &Cluster, node: &Node, family: Family) -> Vec<String> {
    let (ip, settings) = (family.word(), &cluster.settings);
    let mut rules = neighbours(family);
    rules.push(format!("iifname {PODS} iifname . {ip} saddr != @sources drop"));
    if settings.model != Model::Overlay {
        return rules;
    }
    let others = cluster.nodes.iter().filter(|other| other.name != node.name);
    let others: Vec<String> =
        others.flat_map(|it| &it.addresses).filter(|it| family.has(**it)).map(IpAddr::to_string).collect();
    for range in settings.pod_cidrs.iter().filter(|range| family.has(range.addr())) {
        rules.push(format!("iifname \"{UPLINK}\" {ip} saddr {range} drop"));
        if !others.is_empty() {
            rules.push(format!(
                "iifname \"{UPLINK}\" {ip} daddr {range} {ip} saddr {{ {} }} drop",
                others.join(", ")
            ));
        }
    }
    if family.has(node.address()) {
        let tunnel = format!("iifname \"{UPLINK}\" udp dport {}", settings.tunnel_port);
        rules.push(match others.is_empty() {
            true => format!("{tunnel} {ip} daddr {} drop", node.address()),
            false => format!(
                "{tunnel} {ip} daddr {} {ip} saddr != {{ {} }} drop",
                node.address(),
                others.join(", ")
            ),
        });
    }
    rules
}

fn pod_chains(table: &mut Table, cluster: &Cluster, pod: &Pod, family: Family) {
    for (direction, map, word) in
        [(Direction::Egress, "egress", "from"), (Direction::Ingress, "ingress", "to")]
    {
        let side = Side { cluster, pod, direction, family };
        let Some((clauses, isolated)) = side.clauses() else { continue };
        let deny = if cluster.audits(&pod.namespace) { "goto audited" } else { "drop" };
        let rules = rules(&decisions(&clauses, isolated, family.last()), (direction, family), deny);
        let id = pod.id();
        let name: String = format!("{word}-{}-{id}", digits(&id)).chars().take(120).collect();
        table.chain(&name, rules);
        table.lead(map, format!("\"{}\"", host_side(pod)), format!("jump {name}"));
    }
}

/// Decisions as rules: ports first, then whatever the port.
fn rules(decided: &[(Range, Decision)], (direction, family): (Direction, Family), deny: &str) -> Vec<String> {
    let word = |verdict| if verdict == Verdict::Allow { "return" } else { deny };
    let inverse = |verdict| if verdict == Verdict::Allow { Verdict::Deny } else { Verdict::Allow };
    let end = if direction == Direction::Ingress { "saddr" } else { "daddr" };
    let address = format!("{} {end}", family.word());
    let (mut rules, mut by_port, mut by_address) = (Vec::new(), Vec::new(), Vec::new());
    if let [(_, Decision { other, ports })] = decided {
        // Everybody is meant.
        let elements =
            ports.iter().map(|ports| format!("{} : {}", text_of_ports(ports), word(inverse(*other))));
        push_map(&mut rules, "meta l4proto . th dport", elements.collect());
        rules.push(word(*other).to_owned());
        return rules;
    }
    for (range, decision) in decided {
        let verdict = word(inverse(decision.other));
        let place = family.text(*range);
        by_port
            .extend(decision.ports.iter().map(|it| format!("{place} . {} : {verdict}", text_of_ports(it))));
        match by_address.last_mut() {
            Some(((_, last), other)) if *other == decision.other => *last = range.1,
            _ => by_address.push((*range, decision.other)),
        }
    }
    push_map(&mut rules, &format!("{address} . meta l4proto . th dport"), by_port);
    match by_address.as_slice() {
        [(_, other)] => rules.push(word(*other).to_owned()),
        several => {
            let elements =
                several.iter().map(|(range, other)| format!("{} : {}", family.text(*range), word(*other)));
            push_map(&mut rules, &address, elements.collect());
        }
    }
    rules
}

fn push_map(rules: &mut Vec<String>, key: &str, elements: Vec<String>) {
    if !elements.is_empty() {
        rules.push(format!("{key} vmap {{ {} }}", elements.join(", ")));
    }
}

fn text_of_ports(ports: &Ports) -> String {
    let protocol = match ports.protocol {
        6 => "tcp",
        17 => "udp",
        _ => "sctp",
    };
    match ports.range {
        (first, last) if first == last => format!("{protocol} . {first}"),
        (first, last) => format!("{protocol} . {first}-{last}"),
    }
}

impl Family {
    /// A range as nft writes it.
    fn text(self, (first, last): Range) -> String {
        let one = |number: u128| match self {
            Self::Four => IpAddr::from(Ipv4Addr::from_bits(number as u32)),
            Self::Six => Ipv6Addr::from_bits(number).into(),
        };
        if first == last { one(first).to_string() } else { format!("{}-{}", one(first), one(last)) }
    }
}

/// What pods of the node send outside leaves with the node's address.
fn masquerade(table: &mut Table, cluster: &Cluster, node: &Node, family: Family) {
    let (settings, ip) = (&cluster.settings, family.word());
    let network = match settings.model {
        Model::Flat | Model::FlatDynamic => settings.vnet_cidrs.as_slice(),
        Model::Overlay | Model::Kubenet => &[],
    };
    // Ranges that touch stay apart, so that each can be taken out as it was put in.
    table.set("inside", format!("type {}; flags interval;", family.address_type()));
    let own = cluster.pods.iter().filter(|pod| !pod.host_network).flat_map(|pod| &pod.addresses);
    let nodes = cluster.nodes.iter().flat_map(|node| &node.addresses);
    let known = own.chain(nodes).map(|address| IpNet::from(*address));
    let ranges = settings.pod_cidrs.iter().chain(&settings.non_masquerade_cidrs).chain(network).copied();
    let mut inside: Vec<IpNet> = ranges.chain(known).filter(|range| family.has(range.addr())).collect();
    inside = IpNet::aggregate(&inside);
    inside.iter().for_each(|range| table.element("inside", range));
    table.set("pods", format!("type {};", family.address_type()));
    for pod in cluster.pods_on(&node.name).filter(|pod| !pod.host_network) {
        pod.addresses.iter().filter(|it| family.has(**it)).for_each(|address| table.element("pods", address));
    }
    let (first, last) = settings.masquerade_ports;
    let out = format!("oifname \"{UPLINK}\" {ip} saddr @pods {ip} daddr != @inside");
    let rules = vec![
        format!("oifname \"{TUNNEL}\" accept"),
        format!("{out} meta l4proto {{ tcp, udp, sctp }} masquerade to :{first}-{last} fully-random"),
        format!("{out} masquerade fully-random"),
    ];
    // After kube-proxy's, which may have done it for its own reasons.
    table.base("to-outside", "nat hook postrouting priority srcnat + 5", rules);
}
