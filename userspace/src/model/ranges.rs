//! Where nodes, pods and Services get their addresses: the user's ranges, the defaults, or what the input's
//! addresses ask for.
//!
//! A list of ranges has one of each family at most. The first stands for whoever has one address only.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::error::Fields;
use super::own::TestbedSpec;
use super::settings::{Model, Settings};
use super::syntax;
use crate::ipam::{self, IpFamily, Wish};

/// What a range is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Nodes,
    Pods,
    Services,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Nodes, Self::Pods, Self::Services];

    /// What such a range is called in a Testbed object.
    pub(super) fn name(self, model: Model) -> &'static str {
        match self {
            Self::Nodes => "nodeSubnet",
            Self::Pods if model == Model::FlatDynamic => "podSubnet",
            Self::Pods => "podCIDR",
            Self::Services => "serviceCIDR",
        }
    }

    /// Taken unless the user or the input asks for another. Source: the IPv4 ranges of AKS and kubeadm, the
    /// IPv6 ones made like kind's.
    pub(super) const fn default(self, family: IpFamily) -> IpNet {
        match (family, self) {
            (IpFamily::V4, Self::Nodes) => v4(10, 240),
            (IpFamily::V4, Self::Pods) => v4(10, 244),
            (IpFamily::V4, Self::Services) => v4(10, 96),
            (IpFamily::V6, Self::Nodes) => v6(0x240, 64),
            (IpFamily::V6, Self::Pods) => v6(0x244, 48),
            (IpFamily::V6, Self::Services) => v6(0x96, 108),
        }
    }

    /// Prefixes that a range may have: the longest leaves room for one node, one node's pods, or one Service
    /// beside the API server and the DNS.
    const fn prefixes(self, family: IpFamily, model: Model) -> (u8, u8) {
        match (family, self) {
            (IpFamily::V4, Self::Nodes) => (8, 29),
            (IpFamily::V4, Self::Pods) if matches!(model, Model::FlatDynamic) => (8, 27),
            (IpFamily::V4, Self::Pods) => (8, 24),
            (IpFamily::V4, Self::Services) => (8, 28),
            (IpFamily::V6, Self::Nodes) => (16, 125),
            (IpFamily::V6, Self::Pods) if matches!(model, Model::FlatDynamic) => (16, 123),
            (IpFamily::V6, Self::Pods) => (16, 64),
            (IpFamily::V6, Self::Services) => (64, 124),
        }
    }

    /// Prefixes to try around addresses that the input states.
    const fn widths(self, family: IpFamily) -> &'static [u8] {
        match (family, self) {
            (IpFamily::V4, _) => &[16, 24, 32],
            (IpFamily::V6, Self::Nodes) => &[64, 112, 128],
            (IpFamily::V6, Self::Pods) => &[48, 56, 64],
            (IpFamily::V6, Self::Services) => &[108, 112, 120],
        }
    }
}

const fn v4(a: u8, b: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), 16))
}

const fn v6(third: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, third, 0, 0, 0, 0, 0), prefix))
}

/// The ranges of each purpose. Before they are chosen, none where nothing was stated.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    pub(super) nodes: Vec<IpNet>,
    pub(super) pods: Vec<IpNet>,
    pub(super) services: Vec<IpNet>,
    pub(super) vnet: Vec<IpNet>,
    /// Where the load balancer's frontends get theirs: in the world, outside of the others.
    pub(super) frontends: Vec<IpNet>,
    /// See [`Settings::lent`].
    pub(super) lent: Option<IpFamily>,
}

impl Ranges {
    pub(super) fn of(&self, purpose: Purpose) -> &[IpNet] {
        match purpose {
            Purpose::Nodes => &self.nodes,
            Purpose::Pods => &self.pods,
            Purpose::Services => &self.services,
        }
    }

    fn of_mut(&mut self, purpose: Purpose) -> &mut Vec<IpNet> {
        match purpose {
            Purpose::Nodes => &mut self.nodes,
            Purpose::Pods => &mut self.pods,
            Purpose::Services => &mut self.services,
        }
    }

    /// Each of them with its name, the virtual network left out.
    pub(super) fn named(&self, model: Model) -> impl Iterator<Item = (&'static str, IpNet)> {
        Purpose::ALL
            .into_iter()
            .flat_map(move |purpose| self.of(purpose).iter().map(move |range| (purpose.name(model), *range)))
    }

    /// Those that a cluster has.
    pub(super) fn settled(settings: &Settings) -> Self {
        Self {
            nodes: settings.node_subnets.clone(),
            pods: settings.pod_cidrs.clone(),
            services: settings.service_cidrs.clone(),
            vnet: settings.vnet_cidrs.clone(),
            frontends: settings.load_balancer.frontend_cidrs.clone(),
            lent: settings.lent,
        }
    }

    /// Puts them where they belong.
    pub(super) fn settle(self, settings: &mut Settings) {
        settings.node_subnets = self.nodes;
        settings.pod_cidrs = self.pods;
        settings.service_cidrs = self.services;
        settings.vnet_cidrs = self.vnet;
        settings.load_balancer.frontend_cidrs = self.frontends;
        settings.lent = self.lent;
    }

    /// The families of the cluster as far as it has been stated: those of its pods, or else of its Services,
    /// or else of its nodes.
    fn families(&self) -> Vec<IpFamily> {
        let lists = [&self.pods, &self.services, &self.nodes];
        let first = lists.into_iter().find(|list| !list.is_empty());
        first.into_iter().flatten().map(|range| IpFamily::of_range(*range)).collect()
    }
}

/// Ranges for frontends, the first that overlaps no other. Source: RFC 5737 and RFC 3849, which keep them for
/// examples, so that nobody has them.
pub(super) const fn default_frontends(family: IpFamily) -> [IpNet; 3] {
    const fn v4(a: u8, b: u8, c: u8) -> IpNet {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), 24))
    }
    const fn v6(third: u16) -> IpNet {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, 0), 112))
    }
    match family {
        IpFamily::V4 => [v4(198, 51, 100), v4(203, 0, 113), v4(192, 0, 2)],
        IpFamily::V6 => [v6(0x5100), v6(0x5101), v6(0x5102)],
    }
}

/// In these models the pods' range is not of the virtual network.
const fn pods_are_private(model: Model) -> bool {
    matches!(model, Model::Overlay | Model::Kubenet)
}

/// The ranges that a Testbed object states; notes what is wrong with them, each pair of them, and their
/// defaults.
pub(super) fn stated(spec: &TestbedSpec, model: Model, fields: &mut Fields<'_>) -> Ranges {
    let mut ranges = Ranges::default();
    for purpose in Purpose::ALL {
        let list = match purpose {
            Purpose::Nodes => list("nodeSubnet", spec.node_subnet.as_ref(), &spec.node_subnets, fields),
            Purpose::Pods => pod_list(spec, model, fields),
            Purpose::Services => list("serviceCIDR", spec.service_cidr.as_ref(), &spec.service_cidrs, fields),
        };
        *ranges.of_mut(purpose) = one_of_each(list, |family| purpose.prefixes(family, model), fields);
    }
    let frontends = spec.load_balancer.as_ref().map(|balancer| balancer.frontend_cidrs.as_slice());
    let frontends = list("loadBalancer.frontendCIDR", None, frontends.unwrap_or_default(), fields);
    ranges.frontends = one_of_each(frontends, |family| (0, family.bits()), fields);
    let vnet = list("vnetCIDR", None, &spec.vnet_cidrs, fields);
    ranges.vnet = vnet
        .into_iter()
        .filter_map(|(path, text)| syntax::cidr(text).map_err(|why| fields.wrong(path, why)).ok())
        .map(|range| range.trunc())
        .collect();
    check_families(&ranges, model, fields);
    check_pairs(&ranges, model, fields);
    ranges
}

/// A range by itself or a list of them, each with the path of its field.
fn list<'a>(
    name: &str,
    one: Option<&'a String>,
    several: &'a [String],
    fields: &mut Fields<'_>,
) -> Vec<(String, &'a str)> {
    match one {
        Some(_) if !several.is_empty() => {
            fields.wrong(
                format!("spec.{name}s"),
                format!("Forbidden: {name} is stated, too: keep one of them"),
            );
            Vec::new()
        }
        Some(text) => vec![(format!("spec.{name}"), text)],
        None => several
            .iter()
            .enumerate()
            .map(|(i, text)| (format!("spec.{name}s[{i}]"), text.as_str()))
            .collect(),
    }
}

fn pod_list<'a>(spec: &'a TestbedSpec, model: Model, fields: &mut Fields<'_>) -> Vec<(String, &'a str)> {
    let cidrs = list("podCIDR", spec.pod_cidr.as_ref(), &spec.pod_cidrs, fields);
    let subnets = list("podSubnet", spec.pod_subnet.as_ref(), &spec.pod_subnets, fields);
    let refused = match (model, cidrs.first(), subnets.first()) {
        (Model::Flat, Some((path, _)), _) | (Model::Flat, _, Some((path, _))) => {
            Some((path, "Forbidden: in model flat pods have addresses of nodeSubnet, which nodes reserve"))
        }
        (Model::FlatDynamic, Some(_), Some((path, _))) => {
            Some((path, "Forbidden: podCIDR is stated, too, and means the same: keep one of them"))
        }
        (Model::Overlay | Model::Kubenet, _, Some((path, _))) => Some((
            path,
            "Forbidden: pods have a subnet of their own in model flat-dynamic only: write podCIDR",
        )),
        _ => None,
    };
    match refused {
        Some((path, why)) => {
            fields.wrong(path.clone(), why);
            Vec::new()
        }
        None => [cidrs, subnets].concat(),
    }
}

/// The ranges of a list that are sound, one of each family at most.
fn one_of_each(
    list: Vec<(String, &str)>,
    prefixes: impl Fn(IpFamily) -> (u8, u8),
    fields: &mut Fields<'_>,
) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = Vec::new();
    for (path, text) in list {
        let range = match syntax::cidr(text) {
            Ok(range) => range.trunc(),
            Err(why) => {
                fields.wrong(path, why);
                continue;
            }
        };
        let family = IpFamily::of_range(range);
        let (shortest, longest) = prefixes(family);
        if !(shortest..=longest).contains(&range.prefix_len()) {
            fields.wrong(path, format!("must have a prefix between /{shortest} and /{longest}, not {range}"));
        } else if family.pick(&ranges).is_some() {
            fields.wrong(path, format!("may specify no more than one CIDR for each IP family, and {range} is a second of {family}"));
        } else {
            ranges.push(range);
        }
    }
    ranges
}

/// What is routed natively needs nodes of its family; and a Service needs pods of its.
fn check_families(ranges: &Ranges, model: Model, fields: &mut Fields<'_>) {
    let has = |ranges: &[IpNet], family: IpFamily| ranges.is_empty() || family.pick(ranges).is_some();
    let pods = if model == Model::Flat { &ranges.nodes } else { &ranges.pods };
    for family in IpFamily::ALL {
        let name = Purpose::Pods.name(model);
        if let Some(range) = family.pick(&ranges.pods)
            && model != Model::Overlay
            && !has(&ranges.nodes, family)
        {
            let why =
                format!("{range} is {family}, and pods are routed to nodes, so nodeSubnet needs {family}");
            fields.wrong(format!("spec.{name}"), why);
        }
        if let Some(range) = family.pick(&ranges.services)
            && !has(pods, family)
        {
            let why = format!("{range} is {family}, and no pod has an address of that family");
            fields.wrong("spec.serviceCIDR", why);
        }
    }
}

/// No two ranges may have an address in common, those that are not stated included.
fn check_pairs(ranges: &Ranges, model: Model, fields: &mut Fields<'_>) {
    let families = ranges.families();
    let families = if families.is_empty() { vec![IpFamily::V4] } else { families };
    let mut seen: Vec<(&str, IpNet, bool)> = Vec::new();
    for purpose in Purpose::ALL.into_iter().filter(|one| model != Model::Flat || *one != Purpose::Pods) {
        let name = purpose.name(model);
        let stated = ranges.of(purpose).iter().map(|range| (*range, true));
        let defaults = families.iter().map(|family| (purpose.default(*family), false));
        let defaults = defaults.filter(|_| ranges.of(purpose).is_empty());
        for (value, is_stated) in stated.chain(defaults) {
            for (earlier, other, other_is_stated) in &seen {
                if !ipam::overlap(value, *other) || !(is_stated || *other_is_stated) {
                    continue;
                }
                // The field to blame is the one that was written.
                let (blamed, blamed_value, second, second_value, default) = match is_stated {
                    true => (name, value, *earlier, *other, !other_is_stated),
                    false => (*earlier, *other, name, value, true),
                };
                let default = if default { " (the default)" } else { "" };
                fields.wrong(
                    format!("spec.{blamed}"),
                    format!("{blamed_value} overlaps {second} {second_value}{default}: no two ranges may have an address in common"),
                );
            }
            let outside =
                purpose == Purpose::Services || (purpose == Purpose::Pods && pods_are_private(model));
            if let Some(vnet) = ranges.vnet.iter().find(|vnet| outside && ipam::overlap(value, **vnet)) {
                let default = if is_stated { "" } else { " (the default)" };
                let why = format!(
                    "{vnet} overlaps {name} {value}{default}, which must be outside of the virtual network"
                );
                fields.wrong("spec.vnetCIDRs", why);
            }
            seen.push((name, value, is_stated));
        }
    }
}

/// Addresses that the input states. A single one is a /32 or a /128.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) nodes: Vec<IpNet>,
    /// Pods' addresses, and the nodes' pod ranges.
    pub(super) pods: Vec<IpNet>,
    pub(super) services: Vec<IpNet>,
    pub(super) externals: Vec<IpNet>,
    /// Of load balancers, and external addresses of Services.
    pub(super) frontends: Vec<IpNet>,
    /// Somebody says which families pods have: a pod by `podIPs`, a node by its pods' ranges.
    pub(super) in_full: bool,
}

impl Given {
    /// The families that ranges for a purpose need, in the order of their first appearance: nodes may have
    /// addresses of a family that no pod has, and Services have those of pods and whatever they state.
    fn families(&self, purpose: Purpose, chosen: &Ranges) -> Vec<IpFamily> {
        let mut families = Vec::new();
        let pods = if chosen.pods.is_empty() { &chosen.nodes } else { &chosen.pods };
        for range in self.nodes.iter().chain(&self.pods).chain(&self.services) {
            let family = IpFamily::of_range(*range);
            let stated = self.of(purpose).iter().any(|other| IpFamily::of_range(*other) == family);
            let needed = match purpose {
                Purpose::Nodes => true,
                Purpose::Pods => self.pods.is_empty() || stated,
                Purpose::Services => stated || family.pick(pods).is_some(),
            };
            if needed && !families.contains(&family) {
                families.push(family);
            }
        }
        if families.is_empty() { vec![IpFamily::V4] } else { families }
    }

    /// The family that hosts outside have and pods do not, unless it is said which pods have.
    fn lent(&self) -> Option<IpFamily> {
        let family = |range: &IpNet| IpFamily::of_range(*range);
        let own = self.families(Purpose::Pods, &Ranges::default());
        let missing = self.externals.iter().map(family).find(|family| !own.contains(family));
        missing.filter(|_| !self.in_full)
    }

    fn of(&self, purpose: Purpose) -> &[IpNet] {
        match purpose {
            Purpose::Nodes => &self.nodes,
            Purpose::Pods => &self.pods,
            Purpose::Services => &self.services,
        }
    }
}

/// What ranges are chosen from.
pub(super) struct Choice<'a> {
    pub(super) model: Model,
    /// Those of the Testbed object.
    pub(super) stated: Ranges,
    pub(super) previous: Option<&'a Settings>,
    pub(super) given: Given,
}

/// Chooses each range that the user hasn't stated, so that it holds the addresses given to its kind, if there
/// is a way, and nobody else's. Says so in `notes` where that isn't the default.
pub(super) fn choose(choice: Choice<'_>, notes: &mut Vec<String>) -> Result<Ranges, ipam::Error> {
    let Choice { model, stated, previous, given } = &choice;
    let kept = previous.map(Ranges::settled).unwrap_or_default();
    let leading = [stated.families(), kept.families()].into_iter().find(|list| !list.is_empty());
    let lent = match &leading {
        None => given.lent(),
        Some(_) => kept.lent.filter(|_| stated.families().is_empty()),
    };
    let mut chosen = Ranges { vnet: stated.vnet.clone(), lent, ..Ranges::default() };
    for purpose in Purpose::ALL.into_iter().filter(|one| *model != Model::Flat || *one != Purpose::Pods) {
        let mut list = stated.of(purpose).to_vec();
        if list.is_empty() {
            let kept = kept.of(purpose);
            let mut families = leading.clone().unwrap_or_else(|| given.families(purpose, &chosen));
            // No Service has an address that is lent.
            families.retain(|family| purpose != Purpose::Services || lent != Some(*family));
            families.extend(lent.filter(|lent| purpose != Purpose::Services && !families.contains(lent)));
            // A family that the cluster gets now joins those that it has.
            let had: Vec<IpFamily> = kept.iter().map(|range| IpFamily::of_range(*range)).collect();
            let new = families.iter().filter(|family| !had.contains(family));
            let families: Vec<IpFamily> = had.iter().chain(new).copied().collect();
            for family in families {
                let default = family.pick(kept).unwrap_or(purpose.default(family));
                let range = one(&choice, (purpose, default), &chosen)?;
                if range != default {
                    let name = purpose.name(*model);
                    notes.push(format!(
                        "The addresses in the input ask for another {name} than {default}: it is {range}."
                    ));
                }
                list.push(range);
            }
        }
        *chosen.of_mut(purpose) = list;
    }
    if chosen.vnet.is_empty() {
        chosen.vnet.clone_from(&chosen.nodes);
        if *model == Model::FlatDynamic {
            chosen.vnet.extend(&chosen.pods);
        }
    }
    for family in chosen.services.iter().map(|range| IpFamily::of_range(*range)).collect::<Vec<_>>() {
        let others = [&chosen.nodes, &chosen.pods, &chosen.services, &chosen.vnet];
        let free =
            |range: &IpNet| !others.iter().any(|list| list.iter().any(|one| ipam::overlap(*one, *range)));
        let kept = family.pick(&kept.frontends).into_iter().chain(default_frontends(family));
        let unstated = || kept.into_iter().find(free);
        chosen.frontends.extend(family.pick(&stated.frontends).or_else(unstated));
    }
    Ok(chosen)
}

/// A range for a purpose, beside those that are stated or have been chosen.
fn one(
    choice: &Choice<'_>,
    (purpose, default): (Purpose, IpNet),
    chosen: &Ranges,
) -> Result<IpNet, ipam::Error> {
    let Choice { model, stated, given, .. } = choice;
    let family = IpFamily::of_range(default);
    let same = |ranges: &[IpNet]| -> Vec<IpNet> {
        ranges.iter().copied().filter(|range| IpFamily::of_range(*range) == family).collect()
    };
    let flat_nodes = *model == Model::Flat && purpose == Purpose::Nodes;
    let mut avoid = Vec::new();
    for other in Purpose::ALL.into_iter().filter(|other| *other != purpose) {
        avoid.extend(same(stated.of(other)));
        avoid.extend(same(chosen.of(other)));
        // Pods of flat are to be inside. Service ranges are chosen last, when nodes are in their subnet.
        let inside =
            flat_nodes && other == Purpose::Pods || purpose == Purpose::Services && other == Purpose::Nodes;
        if !inside {
            avoid.extend(same(given.of(other)));
        }
    }
    avoid.extend(same(&given.externals));
    // Frontends may be internal, and the others at the nodes' door.
    if purpose != Purpose::Nodes {
        avoid.extend(same(&given.frontends));
    }
    if purpose == Purpose::Services || (purpose == Purpose::Pods && pods_are_private(*model)) {
        avoid.extend(same(&stated.vnet));
    }
    let holds = same(given.of(purpose));
    let wish = Wish {
        name: purpose.name(*model),
        default,
        holds: &holds,
        // Nodes reach each other without a router.
        must_hold: purpose == Purpose::Nodes,
        widths: purpose.widths(family),
    };
    if flat_nodes {
        // Pods of their own addresses may lie outside where there is no other way.
        let all = [holds.as_slice(), &same(&given.pods)].concat();
        if let Ok(range) = ipam::choose(&Wish { holds: &all, ..wish.clone() }, &avoid) {
            return Ok(range);
        }
    }
    ipam::choose(&wish, &avoid)
}
