//! Before a cluster is made: does it fit its ranges, how would it in each model, and what runs out first?
//!
//! Pure arithmetic over what [`Objects::demand`](super::Objects::demand) says; nobody is given an address. The
//! numbers are those of [`crate::ipam`], which gives addresses out, so that both agree.

use ipnet::IpNet;
use serde::Serialize;

use super::cluster::Demand;
use super::ranges::{Purpose, Ranges};
use super::settings::{Model, Settings};
use crate::ipam::{
    BATCH, Draws, IpFamily, MAX_NODES, RANGE_TAKES, ROUTES, SNAT_PORTS, overlap, pod_ranges, size, usable,
};

/// Addresses of the service range that no Service gets: the first, `default/kubernetes`', and the DNS'.
const SERVICE_RANGE_TAKES: u128 = 3;

/// What is planned beside what the objects say.
#[derive(Clone, Debug, Default)]
pub struct Outlook {
    /// Nodes that there will be, instead of those of the input.
    pub nodes: Option<u64>,
    /// Nodes that an upgrade adds for its time.
    pub surge: Surge,
    /// Ranges that are reachable from the virtual network: of peered networks, or on-premises.
    pub peered: Vec<IpNet>,
}

/// How many nodes an upgrade adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surge {
    /// So many.
    Nodes(u64),
    /// Of a hundred nodes so many, rounded up.
    Percent(u64),
}

impl Default for Surge {
    /// Source: AKS, "customize node surge upgrade": one node.
    fn default() -> Self {
        Self::Nodes(1)
    }
}

impl Surge {
    fn of(self, nodes: u64) -> u64 {
        match self {
            Self::Nodes(nodes) => nodes,
            Self::Percent(percent) => (nodes * percent).div_ceil(100),
        }
    }
}

/// How a cluster fills its ranges, and how it would in each model.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Its name.
    pub cluster: String,
    /// Its model.
    pub model: Model,
    /// Nodes that there are, or will be.
    pub nodes: u64,
    /// Nodes that an upgrade adds.
    pub surge: u64,
    /// Pods with addresses of their own.
    pub pods: u64,
    /// Pods that have their node's.
    pub host_network_pods: u64,
    /// There is room for all of it, upgrades included, and no two ranges have an address in common.
    pub fits: bool,
    /// Why it doesn't fit, a sentence each.
    pub problems: Vec<String>,
    /// How full each range is.
    pub ranges: Vec<RangeUse>,
    /// Every two ranges that may not overlap.
    pub pairs: Vec<Pair>,
    /// Every model, with the same ranges.
    pub models: Vec<Fit>,
}

/// How full a range is, in addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RangeUse {
    /// Its name in a Testbed object.
    pub name: &'static str,
    /// The range.
    pub cidr: IpNet,
    /// All of it.
    pub size: u128,
    /// What can be given to anybody.
    pub usable: u128,
    /// What is somebody's, in use or not.
    pub reserved: u128,
    /// What is in use.
    pub used: u128,
    /// What is nobody's.
    pub free: u128,
}

/// Two ranges that may have no address in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Their names.
    pub names: [&'static str; 2],
    /// The ranges.
    pub cidrs: [IpNet; 2],
    /// They have.
    pub overlap: bool,
}

/// How the cluster would fit in a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fit {
    /// Which.
    pub model: Model,
    /// Pods that a node takes: as stated, or the model's own number.
    pub max_pods: u32,
    /// The most nodes that the ranges and the model allow.
    pub nodes: u64,
    /// What allows no more than that: it runs out first.
    pub limit: String,
    /// Nodes that could still join.
    pub headroom: u64,
    /// Pods with addresses of their own that run on the nodes there are, as many of those as fit.
    pub pods: u64,
    /// Of the pods that there are, those that could not start.
    pub stuck: u64,
    /// Addresses of the pod subnet that no pod can have while those run, in `flat-dynamic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stranded: Option<Stranded>,
    /// Nodes, those of an upgrade included, and pods fit.
    pub fits: bool,
}

/// Why addresses of a pod subnet are of no use to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stranded {
    /// They are in no batch, and too few for another.
    pub in_no_batch: u128,
    /// They are in batches of nodes that run as many pods as they take.
    pub in_batches: u128,
}

/// How a cluster fills its ranges, and how it would in each model.
pub fn plan(demand: &Demand, outlook: &Outlook) -> Plan {
    let nodes = outlook.nodes.unwrap_or(demand.nodes);
    let crowd = Crowd {
        nodes,
        surge: outlook.surge.of(nodes),
        pods: demand.pods + demand.daemons * nodes,
        host_pods: demand.host_pods + demand.host_daemons * nodes,
    };
    let fits: Vec<Fit> = Model::ALL.iter().map(|(_, model)| Rules::of(demand, *model).fit(&crowd)).collect();
    let settings = &demand.settings;
    let pairs = pairs(settings, &outlook.peered);
    let ranges = ranges(demand, &crowd);
    let rules = Rules::of(demand, settings.model);
    let problems = problems(demand, &crowd, &rules.fit(&crowd), &pairs);
    Plan {
        cluster: demand.name.clone(),
        model: settings.model,
        nodes,
        surge: crowd.surge,
        pods: crowd.pods,
        host_network_pods: crowd.host_pods,
        fits: problems.is_empty(),
        problems,
        ranges,
        pairs,
        models: fits,
    }
}

/// Who wants to have room.
struct Crowd {
    nodes: u64,
    surge: u64,
    pods: u64,
    host_pods: u64,
}

impl Crowd {
    /// Pods of the host network on so many of the nodes.
    fn host_pods_on(&self, nodes: u64) -> u64 {
        self.host_pods * nodes / self.nodes.max(1)
    }
}

/// A model, and the ranges it has to do with.
struct Rules<'a> {
    model: Model,
    max_pods: u32,
    settings: &'a Settings,
    /// The cluster's, or the defaults where its own model has none.
    pod_cidrs: Vec<IpNet>,
    /// As [`Demand::internal_frontends`].
    frontends: (u64, u64),
}

impl<'a> Rules<'a> {
    fn of(demand: &'a Demand, model: Model) -> Self {
        let settings = &demand.settings;
        let families = settings.node_subnets.iter().map(|subnet| IpFamily::of_range(*subnet));
        let pod_cidrs = match settings.pod_cidrs.as_slice() {
            [] => families.map(|family| Purpose::Pods.default(family)).collect(),
            stated => stated.to_vec(),
        };
        let max_pods = demand.max_pods.unwrap_or(model.max_pods());
        Self { model, max_pods, settings, pod_cidrs, frontends: demand.internal_frontends }
    }

    /// What internal load balancers leave of a node subnet.
    fn left_of(&self, subnet: IpNet) -> u128 {
        usable(subnet).saturating_sub(of_family(self.frontends, subnet))
    }

    /// What allows only so many nodes, each with its name.
    fn limits(&self) -> Vec<(String, u128)> {
        let mut limits = vec![(format!("{MAX_NODES} nodes of a cluster"), u128::from(MAX_NODES))];
        for subnet in &self.settings.node_subnets {
            let name = format!("nodeSubnet {subnet}");
            limits.push(match self.model {
                Model::Flat => {
                    let each = u128::from(self.max_pods) + 1;
                    (format!("{name}, {each} each"), self.left_of(*subnet) / each)
                }
                _ => (name, self.left_of(*subnet)),
            });
        }
        let name = Purpose::Pods.name(self.model);
        for pod_cidr in self.pod_cidrs.iter().filter(|_| self.model != Model::Flat) {
            limits.push(match self.model {
                Model::FlatDynamic => {
                    let batches = usable(*pod_cidr) / u128::from(BATCH);
                    (format!("{name} {pod_cidr}, a batch of {BATCH} each"), batches)
                }
                _ => {
                    let prefix = IpFamily::of_range(*pod_cidr).pod_range_prefix();
                    (format!("{name} {pod_cidr}, a /{prefix} each"), pod_ranges(*pod_cidr))
                }
            });
        }
        if self.model == Model::Kubenet {
            let own = self.settings.fabric.routes.len() as u64;
            let fit = ROUTES.saturating_sub(own) / self.pod_cidrs.len().max(1) as u64;
            limits.push((format!("route table of {ROUTES}"), fit.into()));
        }
        let balancer = &self.settings.load_balancer;
        if let Some(outbound) = balancer.outbound {
            let each = balancer.snat_ports_per_node;
            limits.push((format!("ports of {outbound}, {each} each"), (SNAT_PORTS / each).into()));
        }
        limits
    }

    fn fit(&self, crowd: &Crowd) -> Fit {
        let limits = self.limits();
        // Of several that are alike the one that was named first.
        let (limit, most) =
            limits.into_iter().min_by_key(|(_, nodes)| *nodes).expect("a cluster has a limit");
        let most = u64::try_from(most).expect("a cluster's limit is small");
        let joined = crowd.nodes.min(most);
        let mut headroom = most.saturating_sub(crowd.nodes);
        let host_pods = crowd.host_pods_on(joined);
        let places = (joined * u64::from(self.max_pods)).saturating_sub(host_pods);
        let (mut pods, mut running, mut stranded) = (places, crowd.pods.min(places), None);
        match self.model {
            Model::Flat => {}
            Model::Overlay | Model::Kubenet => {
                for pod_cidr in &self.pod_cidrs {
                    let prefix = IpFamily::of_range(*pod_cidr).pod_range_prefix();
                    let range = IpNet::new(pod_cidr.addr(), prefix).expect("a prefix of its family");
                    let each = u64::try_from(size(range) - RANGE_TAKES).unwrap_or(u64::MAX);
                    pods = pods.min(joined.saturating_mul(each));
                }
                running = crowd.pods.min(pods);
            }
            Model::FlatDynamic => {
                for subnet in &self.pod_cidrs {
                    let full = self.spread(*subnet, joined, host_pods, u64::MAX);
                    let now = self.spread(*subnet, joined, host_pods, crowd.pods);
                    pods = pods.min(u64::try_from(full.running()).unwrap_or(u64::MAX));
                    running = running.min(u64::try_from(now.running()).unwrap_or(u64::MAX));
                    let batches = u64::try_from(now.left() / u128::from(BATCH)).unwrap_or(u64::MAX);
                    headroom = headroom.min(batches);
                    stranded.get_or_insert(Stranded { in_no_batch: full.left(), in_batches: full.spare() });
                }
            }
        }
        let stuck = crowd.pods - running;
        let fits = crowd.nodes <= most && headroom >= crowd.surge && stuck == 0;
        Fit {
            model: self.model,
            max_pods: self.max_pods,
            nodes: most,
            limit,
            headroom,
            pods,
            stuck,
            stranded,
            fits,
        }
    }

    /// The batches of a pod subnet when so many pods, spread evenly over the nodes, have started, or as many
    /// of them as could.
    fn spread(&self, subnet: IpNet, nodes: u64, host_pods: u64, pods: u64) -> Draws {
        let share = |node: u64| host_pods / nodes + u64::from(node < host_pods % nodes);
        let mut places: Vec<u64> =
            (0..nodes).map(|node| u64::from(self.max_pods).saturating_sub(share(node))).collect();
        let mut draws = Draws::new(usable(subnet), &vec![0; places.len()], self.max_pods);
        let mut waiting = pods;
        // One on each node, then a second on each, as the scheduler would, which knows nothing of addresses:
        // a pod that can't start has a place all the same.
        while waiting > 0 && places.iter().any(|free| *free > 0) {
            for (node, free) in places.iter_mut().enumerate().filter(|(_, free)| **free > 0) {
                if let Some(fewer) = waiting.checked_sub(1) {
                    (waiting, *free) = (fewer, *free - 1);
                    draws.start(node);
                }
            }
        }
        draws
    }
}

/// Every range of the cluster, and how full it is.
fn ranges(demand: &Demand, crowd: &Crowd) -> Vec<RangeUse> {
    let settings = &demand.settings;
    let rules = Rules::of(demand, settings.model);
    let fit = rules.fit(crowd);
    let (nodes, pods) = (u128::from(crowd.nodes.min(fit.nodes)), u128::from(crowd.pods - fit.stuck));
    let row = |name, cidr: IpNet, usable: u128, reserved: u128, used: u128| RangeUse {
        name,
        cidr,
        size: size(cidr),
        usable,
        reserved,
        used,
        free: usable.saturating_sub(reserved),
    };
    let mut rows = Vec::new();
    for cidr in &settings.node_subnets {
        let (reserved, used) = match settings.model {
            Model::Flat => (nodes * (u128::from(rules.max_pods) + 1), nodes + pods),
            _ => (nodes, nodes),
        };
        let frontends = of_family(demand.internal_frontends, *cidr);
        rows.push(row("nodeSubnet", *cidr, usable(*cidr), reserved + frontends, used + frontends));
    }
    for cidr in &settings.pod_cidrs {
        let name = Purpose::Pods.name(settings.model);
        rows.push(if settings.model == Model::FlatDynamic {
            let joined = crowd.nodes.min(fit.nodes);
            let draws = rules.spread(*cidr, joined, crowd.host_pods_on(joined), crowd.pods);
            row(name, *cidr, usable(*cidr), usable(*cidr) - draws.left(), draws.running())
        } else {
            let ranges = pod_ranges(*cidr);
            let each = size(*cidr) / ranges.max(1) - RANGE_TAKES;
            row(name, *cidr, ranges * each, nodes * each, pods)
        });
    }
    for cidr in &settings.service_cidrs {
        let used = of_family(demand.services, *cidr);
        rows.push(row("serviceCIDR", *cidr, size(*cidr) - SERVICE_RANGE_TAKES, used, used));
    }
    let subnets: Vec<RangeUse> = rows.clone();
    // Unless it is stated the virtual network is the subnets, which have been told.
    let larger = |cidr: &&IpNet| !subnets.iter().any(|row| row.cidr == **cidr);
    for cidr in settings.vnet_cidrs.iter().filter(larger) {
        let inside = || subnets.iter().filter(|row| cidr.contains(&row.cidr));
        let reserved = inside().map(|row| row.size).sum();
        rows.push(row("vnetCIDRs", *cidr, size(*cidr), reserved, inside().map(|row| row.used).sum()));
    }
    rows
}

/// Of a count of each family, that of a range's.
fn of_family((four, six): (u64, u64), range: IpNet) -> u128 {
    match IpFamily::of_range(range) {
        IpFamily::V4 => four.into(),
        IpFamily::V6 => six.into(),
    }
}

/// Every two ranges that may not have an address in common: the cluster's own, and each of them beside what is
/// reachable from it.
fn pairs(settings: &Settings, peered: &[IpNet]) -> Vec<Pair> {
    let own: Vec<_> = Ranges::settled(settings).named(settings.model).collect();
    let vnet = settings.vnet_cidrs.iter().map(|range| ("vnetCIDRs", *range));
    let vnet: Vec<_> = vnet.filter(|(_, range)| !own.iter().any(|(_, other)| other == range)).collect();
    let mut pairs = Vec::new();
    let mut add = |(a, first): (&'static str, IpNet), (b, second): (&'static str, IpNet)| {
        if IpFamily::of_range(first) == IpFamily::of_range(second) {
            pairs.push(Pair { names: [a, b], cidrs: [first, second], overlap: overlap(first, second) });
        }
    };
    for (place, one) in own.iter().enumerate() {
        own[place + 1..].iter().for_each(|other| add(*one, *other));
        let inside = vnet.iter().filter(|(_, range)| {
            let subnet =
                one.0 == "nodeSubnet" || settings.model == Model::FlatDynamic && one.0 == "podSubnet";
            !(subnet && range.contains(&one.1))
        });
        inside.for_each(|other| add(*one, *other));
    }
    for one in own.iter().chain(&vnet) {
        peered.iter().for_each(|range| add(*one, ("peered", *range)));
    }
    pairs
}

/// Why the cluster doesn't fit.
fn problems(demand: &Demand, crowd: &Crowd, fit: &Fit, pairs: &[Pair]) -> Vec<String> {
    let mut problems = Vec::new();
    let Crowd { nodes, surge, pods, .. } = crowd;
    let (model, limit) = (fit.model.name(), &fit.limit);
    if *nodes > fit.nodes {
        problems.push(format!("{nodes} nodes are more than {limit} allows: {} fit in {model}.", fit.nodes));
    } else if nodes + surge > fit.nodes {
        problems.push(format!(
            "An upgrade adds {surge} to {nodes} nodes, which is more than {limit} allows: {} fit in {model}.",
            fit.nodes
        ));
    } else if *surge > fit.headroom {
        problems.push(format!(
            "An upgrade adds {surge} to {nodes} nodes, and when all pods run that can, the pod subnet has {} whole batches of {BATCH} left.",
            fit.headroom
        ));
    }
    let joined = nodes.min(&fit.nodes);
    if fit.stuck > 0 {
        let mut why =
            format!("{} of {pods} pods do not start: {} run on {joined} nodes", fit.stuck, pods - fit.stuck);
        match fit.stranded {
            Some(Stranded { in_no_batch, in_batches }) => {
                why += &format!(
                    ", which take {} each (maxPods) and whole batches of {BATCH}: at most {} run then, and {} addresses are stranded, {in_no_batch} in no batch and {in_batches} in batches of full nodes.",
                    fit.max_pods,
                    fit.pods,
                    in_no_batch + in_batches
                )
            }
            None => why += &format!(", which take {} each (maxPods).", fit.max_pods),
        }
        problems.push(why);
    }
    for cidr in &demand.settings.service_cidrs {
        let room = size(*cidr) - SERVICE_RANGE_TAKES;
        let wanted = of_family(demand.services, *cidr);
        if wanted > room {
            problems
                .push(format!("{wanted} Services are more than serviceCIDR {cidr} has room for: {room}."));
        }
    }
    for Pair { names: [a, b], cidrs: [first, second], .. } in pairs.iter().filter(|pair| pair.overlap) {
        problems
            .push(format!("{a} {first} overlaps {b} {second}: no two ranges may have an address in common."));
    }
    problems
}

/// A count as it stands in tables: of the large ones of IPv6 nobody wants every digit.
pub fn spelled(count: u128) -> String {
    match count {
        0..=0xff_ffff_ffff => count.to_string(),
        _ => format!("2^{}", count.ilog2() + u32::from(!count.is_power_of_two())),
    }
}
