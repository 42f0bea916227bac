//! What there is in the cluster for policies to speak of, by label, by address and by port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use userspace::model::{Cluster, IpBlocks, Labels, Model, Pod, Protocol};
use userspace::plan::Bits;

use super::selector::{Demand, Selector};
use super::set::{Ends, Spans, transport};

/// Labelled things by label.
#[derive(Debug, Default)]
pub(super) struct Index<'a> {
    count: usize,
    keys: HashMap<&'a str, HashMap<&'a str, Bits>>,
}

impl<'a> Index<'a> {
    fn of(things: impl Iterator<Item = &'a Labels>) -> Self {
        let mut index = Self::default();
        for labels in things {
            for (key, value) in labels {
                index.keys.entry(key).or_default().entry(value).or_default().insert(index.count);
            }
            index.count += 1;
        }
        index
    }

    /// The places of the things that the selector selects.
    pub(super) fn select(&self, selector: &Selector) -> Bits {
        let mut selected = Bits::below(self.count);
        for (key, demand) in &selector.0 {
            selected = self.meeting(key, demand, selected);
        }
        selected
    }

    /// Those of `among` that meet what is demanded of one key.
    pub(super) fn meeting(&self, key: &str, demand: &Demand, mut among: Bits) -> Bits {
        let (listed, any) = (self.with_values(key, &demand.values), self.with_key(key));
        let mut fitting = if demand.except { any.clone() } else { listed.clone() };
        if demand.except {
            fitting.subtract(&listed);
        }
        if !demand.absent {
            return among.and(&fitting);
        }
        let mut wrong = any;
        wrong.subtract(&fitting);
        among.subtract(&wrong);
        among
    }

    fn with_values(&self, key: &str, values: &BTreeSet<String>) -> Bits {
        let mut bits = Bits::default();
        if let Some(by_value) = self.keys.get(key) {
            values.iter().filter_map(|value| by_value.get(value.as_str())).for_each(|one| bits.unite(one));
        }
        bits
    }

    fn with_key(&self, key: &str) -> Bits {
        let mut bits = Bits::default();
        self.keys.get(key).into_iter().flat_map(HashMap::values).for_each(|one| bits.unite(one));
        bits
    }

    /// Every label that one of `among` has, and how many have it.
    pub(super) fn labels(&self, among: &Bits) -> Vec<(&'a str, &'a str, usize)> {
        let all = self.keys.iter().flat_map(|(key, values)| {
            values.iter().map(|(value, bits)| (*key, *value, bits.and(among).len()))
        });
        let mut labels: Vec<_> = all.filter(|(_, _, count)| *count > 0).collect();
        labels.sort_unstable();
        labels
    }
}

/// The namespaces that a peer or a subject is in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Scope {
    /// This one.
    Named(String),
    /// Those with such labels.
    Labelled(Selector),
}

/// Where a Service sends what is dialled at a port of it.
#[derive(Debug)]
pub(super) struct Leads<'a> {
    /// `namespace/name`.
    pub(super) service: String,
    /// What is dialled.
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// The pods behind it, and the port of them.
    pub(super) pods: Bits,
    pub(super) targets: BTreeSet<u16>,
    /// Where its endpoints are that are no pods with an address of their own.
    pub(super) elsewhere: Vec<IpAddr>,
    /// `metadata.name`.
    pub(super) name: &'a str,
}

/// The cluster, indexed.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub(super) cluster: &'a Cluster,
    /// The pods with an address of their own, in the cluster's order. Sets of pods count along this list.
    pub(super) pods: Vec<&'a Pod>,
    pub(super) labels: Index<'a>,
    /// Pods that are their node, in the same way: no policy is for them.
    pub(super) host_pods: Vec<&'a Pod>,
    pub(super) host_labels: Index<'a>,
    /// Each namespace in order. Sets of namespaces count along this list.
    pub(super) namespaces: Vec<&'a str>,
    pub(super) namespace_labels: Index<'a>,
    /// The pods of each namespace, and those that are their node.
    members: Vec<(Bits, Bits)>,
    by_address: BTreeMap<u128, usize>,
    /// The pods that declare a port, by its place among ports.
    pub(super) declared: BTreeMap<u128, Bits>,
    /// The pods that declare no port at all.
    pub(super) portless: Bits,
    /// What the ports are called, and of which pods.
    pub(super) named: HashMap<&'a str, BTreeMap<(Protocol, u16), Bits>>,
    pub(super) services: Vec<Leads<'a>>,
}

impl<'a> World<'a> {
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        let (host_pods, pods): (Vec<&Pod>, Vec<&Pod>) = cluster.pods.iter().partition(|pod| pod.host_network);
        let namespaces: Vec<&str> = cluster.namespaces.keys().map(String::as_str).collect();
        let places: HashMap<&str, usize> =
            namespaces.iter().enumerate().map(|(index, name)| (*name, index)).collect();
        let mut members = vec![(Bits::default(), Bits::default()); namespaces.len()];
        for (index, pod) in pods.iter().enumerate() {
            if let Some(place) = places.get(pod.namespace.as_str()) {
                members[*place].0.insert(index);
            }
        }
        for (index, pod) in host_pods.iter().enumerate() {
            if let Some(place) = places.get(pod.namespace.as_str()) {
                members[*place].1.insert(index);
            }
        }
        let mut world = Self {
            cluster,
            labels: Index::of(pods.iter().map(|pod| &pod.labels)),
            host_labels: Index::of(host_pods.iter().map(|pod| &pod.labels)),
            namespace_labels: Index::of(cluster.namespaces.values()),
            pods,
            host_pods,
            namespaces,
            members,
            by_address: BTreeMap::new(),
            declared: BTreeMap::new(),
            portless: Bits::default(),
            named: HashMap::new(),
            services: Vec::new(),
        };
        world.index_pods();
        world.index_services();
        world
    }

    fn index_pods(&mut self) {
        for (index, pod) in self.pods.iter().enumerate() {
            for address in &pod.addresses {
                self.by_address.extend(Spans::address(*address).iter().map(|(place, _)| (place, index)));
            }
            if pod.ports.is_empty() {
                self.portless.insert(index);
            }
            for port in &pod.ports {
                self.declared.entry(transport(port.protocol, port.port)).or_default().insert(index);
                if let Some(name) = &port.name {
                    let numbers = self.named.entry(name).or_default();
                    numbers.entry((port.protocol, port.port)).or_default().insert(index);
                }
            }
        }
    }

    fn index_services(&mut self) {
        for service in &self.cluster.services {
            for port in &service.ports {
                let mut leads = Leads {
                    service: service.id(),
                    port: port.port,
                    protocol: port.protocol,
                    pods: Bits::default(),
                    targets: BTreeSet::new(),
                    elsewhere: Vec::new(),
                    name: &service.name,
                };
                for backend in &port.backends {
                    leads.targets.insert(backend.port);
                    match self.pod_at(backend.address) {
                        Some(pod) => leads.pods.insert(pod),
                        None => leads.elsewhere.push(backend.address),
                    }
                }
                self.services.push(leads);
            }
        }
    }

    fn pod_at(&self, address: IpAddr) -> Option<usize> {
        let (place, _) = Spans::address(address).iter().next()?;
        self.by_address.get(&place).copied()
    }

    /// Every pod with an address of its own.
    pub(super) fn everybody(&self) -> Bits {
        Bits::below(self.pods.len())
    }

    /// The pods with an address among these.
    pub(super) fn pods_at(&self, addresses: &Spans) -> Bits {
        let within = addresses.iter().flat_map(|(first, last)| self.by_address.range(first..=last));
        within.map(|(_, pod)| *pod).collect()
    }

    /// The nodes with an address among these, by name.
    pub(super) fn nodes_at(&self, addresses: &Spans) -> Vec<&'a str> {
        let within = |address: &IpAddr| Spans::address(*address).is_within(addresses);
        let nodes = self.cluster.nodes.iter().filter(|node| node.addresses.iter().any(within));
        nodes.map(|node| node.name.as_str()).collect()
    }

    pub(super) fn namespaces_of(&self, scope: &Scope) -> Bits {
        match scope {
            Scope::Named(name) => self.namespaces.binary_search(&name.as_str()).into_iter().collect(),
            Scope::Labelled(selector) => self.namespace_labels.select(selector),
        }
    }

    /// The pods of these namespaces; and those of them that are their node.
    pub(super) fn members(&self, namespaces: &Bits) -> (Bits, Bits) {
        let mut all = (Bits::default(), Bits::default());
        for namespace in namespaces.iter() {
            let (own, host) = &self.members[namespace];
            all.0.unite(own);
            all.1.unite(host);
        }
        all
    }

    /// The pods with an address of their own that are in these namespaces and have such labels.
    pub(super) fn select(&self, scope: &Scope, selector: &Selector) -> Bits {
        let (own, _) = self.members(&self.namespaces_of(scope));
        if selector.is_everything() { own } else { own.and(&self.labels.select(selector)) }
    }

    /// Those who have an address of a block of a NetworkPolicy (`literal` or not), or of a policy of the
    /// whole cluster, which means pods always.
    pub(super) fn at(&self, addresses: Spans, of_cluster: bool) -> Ends {
        let literal = of_cluster || self.cluster.settings.policies.ip_blocks == IpBlocks::Literal;
        let pods = if literal { self.pods_at(&addresses) } else { Bits::default() };
        Ends { pods, addresses }
    }

    /// Everybody there is, and could be.
    pub(super) fn anybody(&self) -> Ends {
        Ends { pods: self.everybody(), addresses: Spans::everywhere() }
    }

    /// Where pods have their addresses, and none but they.
    pub(super) fn pod_ranges(&self) -> Spans {
        let mut ranges = Spans::default();
        if self.cluster.settings.model != Model::Flat {
            let stated = self.cluster.nodes.iter().flat_map(|node| &node.pod_cidrs);
            for range in self.cluster.settings.pod_cidrs.iter().chain(stated) {
                ranges.unite(&Spans::block(*range));
            }
        }
        for address in self.pods.iter().flat_map(|pod| &pod.addresses) {
            ranges.unite(&Spans::address(*address));
        }
        ranges
    }

    /// `web, api-1 and 3 more`, in the order of the cluster.
    pub(super) fn named_pods(&self, pods: &Bits) -> String {
        some_of(pods.iter().map(|index| self.pods[index].id()), pods.len())
    }
}

/// `a, b, c and 4 more`.
pub(super) fn some_of(names: impl Iterator<Item = String>, count: usize) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = names.take(SHOWN).collect();
    match count.saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `1 pod`, `2 pods`.
pub(super) fn count_of(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
