//! Who may answer for a port of a Service, and where it can be dialled: what is asked for, without a number
//! in it yet.
//!
//! 1. Candidates are the endpoints that are ready; where none is, those that serve while they terminate.
//!    Source: KEP-1669, "Proxy Terminating Endpoints".
//! 2. With policy Local, a node asks those on it, found in the same way.
//! 3. Inside, with policy Cluster, a node asks those that should be used from it, if every ready endpoint
//!    says for whom it is: for its node if there is one, else for its zone, else everyone. Source: KEP-2433,
//!    "Topology Aware Hints", KEP-3015, "PreferSameZone and PreferSameNode Traffic Distribution".

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::tables::Service;

use super::maglev::Taker;
use super::{Family, FrontendKey, hash};
use crate::model::{self, Algorithm, Backend, Cluster, ServicePort, TrafficDistribution, TrafficPolicy};

/// What all Services depend on.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    /// Of each node, its zone.
    zones: Vec<Option<Arc<str>>>,
    /// Nodes by name.
    places: HashMap<String, u32>,
    /// [`Service::RANDOM`] and [`Service::DIRECT_RETURN`].
    flags: u8,
    /// `settings.services.maglev_table_size`.
    table_size: u32,
}

impl Ground {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let settings = &cluster.settings.services;
        let random = if settings.algorithm == Algorithm::Random { Service::RANDOM } else { 0 };
        let direct = if settings.direct_return { Service::DIRECT_RETURN } else { 0 };
        Self {
            zones: cluster.nodes.iter().map(|node| node.zone().map(Arc::from)).collect(),
            places: cluster.nodes.iter().zip(0..).map(|(node, place)| (node.name.clone(), place)).collect(),
            flags: random | direct,
            table_size: settings.maglev_table_size,
        }
    }
}

/// A port of a Service, or of a node: whose number and backends are kept from plan to plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name<A> {
    /// Of a Service (`namespace/name`): protocol and port.
    Service(Arc<str>, u8, u16),
    /// Of a node, at one of its addresses: protocol and port.
    Host(Arc<str>, A, u8, u16),
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End<A> {
    pub(super) address: A,
    /// Host order.
    pub(super) port: u16,
    pub(super) taker: Taker,
    /// Somebody may be sent there.
    pub(super) active: bool,
}

/// Who asks a set of candidates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Whoever has no other.
    Everyone,
    /// The node at this place, where the policy is Local.
    On(u32),
    /// The node at this place, because endpoints say that they are for it.
    For(u32),
    /// The nodes in this zone, for the same reason.
    Zone(Arc<str>),
}

/// The place of a node that is not in the cluster.
const ELSEWHERE: u32 = u32::MAX;

/// Which candidates a node asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All there are.
    All,
    /// Those on it.
    Local,
    /// Those that should be used from it.
    Near,
}

/// What is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A cluster address.
    Cluster,
    /// A node port, or an external address.
    Exposed,
    /// An address of the load balancer.
    Balanced,
    /// A port of the node at this place.
    Host(u32),
}

/// What is asked of a port, of one family. Equal drafts are carried out alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft<A> {
    /// Every endpoint, in the order of addresses and ports.
    pub(super) ends: Vec<End<A>>,
    /// Places in `ends`, never none.
    pub(super) sets: BTreeMap<Role, Vec<u32>>,
    /// Where it is dialled.
    pub(super) fronts: Vec<(FrontendKey<A>, Kind)>,
    /// What nodes ask for a client inside that dials a cluster address.
    pub(super) inside: Scope,
    /// What nodes ask for a client outside that dials anything else.
    pub(super) outside: Scope,
    /// [`Service::affinity_s`].
    pub(super) affinity_s: u32,
    /// Those of [`Service::flags`] that all its frontends have.
    pub(super) flags: u8,
    /// Whether [`Draft::ranges`] say who may come.
    pub(super) ranged: bool,
    /// Who may come by the load balancer's addresses: prefixes.
    pub(super) ranges: Vec<(A, u32)>,
    /// The least slots of a table.
    pub(super) table_size: u32,
}

impl<A: Family> Draft<A> {
    /// A port of a Service; none where it has no cluster address of the family.
    pub(super) fn of(ground: &Ground, service: &model::Service, port: &ServicePort) -> Option<Self> {
        A::among(&service.addresses)?;
        let local = |policy, other| if policy == TrafficPolicy::Local { Scope::Local } else { other };
        let inside = local(service.internal_policy, Scope::Near);
        let outside = local(service.external_policy, Scope::All);
        let backends = distinct(port);
        let sets = sets(ground, service, &backends, (inside, outside));
        let mut ends: Vec<_> = backends.iter().map(|(address, backend)| end(*address, backend)).collect();
        for place in sets.values().flatten() {
            ends[*place as usize].active = true;
        }
        let ranges = service.source_ranges.iter();
        Some(Self {
            ends,
            sets,
            fronts: fronts(service, port),
            inside,
            outside,
            affinity_s: service.affinity_s.unwrap_or(0),
            flags: ground.flags,
            ranged: !service.source_ranges.is_empty(),
            ranges: ranges
                .filter_map(|range| Some((A::of(range.network())?, range.prefix_len().into())))
                .collect(),
            table_size: ground.table_size,
        })
    }

    /// Whether every node asks the candidates of the same roles as in `other`, if both have the same roles.
    pub(super) fn asked_like(&self, other: &Self) -> bool {
        (self.inside, self.outside, &self.fronts) == (other.inside, other.outside, &other.fronts)
    }

    /// Which set the node at this place asks.
    pub(super) fn role(&self, ground: &Ground, scope: Scope, place: u32) -> Role {
        let there = |role: &Role| self.sets.contains_key(role);
        match scope {
            Scope::All => Role::Everyone,
            Scope::Local => Role::On(place),
            Scope::Near => {
                let zone = ground.zones[place as usize].clone().map(Role::Zone);
                [Some(Role::For(place)), zone].into_iter().flatten().find(there).unwrap_or(Role::Everyone)
            }
        }
    }
}

/// The endpoints of the family, each once, in the order of addresses and ports. Of one that is listed again,
/// what lets it be used counts.
fn distinct<A: Family>(port: &ServicePort) -> Vec<(A, &Backend)> {
    let backends = port.backends.iter();
    let mut backends: Vec<_> =
        backends.filter_map(|backend| Some((A::of(backend.address)?, backend))).collect();
    let merit = |backend: &Backend| (!backend.ready, !backend.serving, backend.terminating);
    backends.sort_by(|(left, one), (right, other)| {
        let place = |address: &A, backend: &Backend| (*address, backend.port, merit(backend));
        place(left, one).cmp(&place(right, other)).then_with(|| other.weight.cmp(&one.weight))
    });
    backends.dedup_by(|(left, one), (right, other)| (&left, one.port) == (&right, other.port));
    backends
}

fn end<A: Family>(address: A, backend: &Backend) -> End<A> {
    let hash = hash::mixed(format!("{address}:{}", backend.port).as_bytes());
    End { address, port: backend.port, taker: Taker { hash, weight: backend.weight.max(1) }, active: false }
}

/// The candidates of these endpoints: places.
fn candidates<A>(backends: &[(A, &Backend)], of: impl Iterator<Item = u32> + Clone) -> Vec<u32> {
    let those = |may: fn(&Backend) -> bool| -> Vec<u32> {
        of.clone().filter(|place| may(backends[*place as usize].1)).collect()
    };
    let ready = those(|backend| backend.ready);
    if ready.is_empty() { those(|backend| backend.serving && backend.terminating) } else { ready }
}

fn sets<A>(
    ground: &Ground,
    service: &model::Service,
    backends: &[(A, &Backend)],
    (inside, outside): (Scope, Scope),
) -> BTreeMap<Role, Vec<u32>> {
    let mut sets = BTreeMap::new();
    sets.insert(Role::Everyone, candidates(backends, 0..backends.len() as u32));
    if inside == Scope::Local || outside == Scope::Local {
        let mut on: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (place, (_, backend)) in (0..).zip(backends) {
            let node = backend.node.as_ref().and_then(|node| ground.places.get(node));
            node.into_iter().for_each(|node| on.entry(*node).or_default().push(place));
        }
        let on = on.into_iter().map(|(node, places)| (Role::On(node), places));
        sets.extend(on.map(|(role, places)| (role, candidates(backends, places.into_iter()))));
    }
    if inside == Scope::Near {
        let nodes = |backend: &Backend| -> Vec<Role> {
            let places = nodes_of(service, backend).map(|node| ground.places.get(node));
            places.map(|place| Role::For(place.copied().unwrap_or(ELSEWHERE))).collect()
        };
        sets.extend(hinted(backends, nodes));
        let zones = |backend: &Backend| -> Vec<Role> {
            zones_of(service, backend).map(|zone| Role::Zone(zone.into())).collect()
        };
        sets.extend(hinted(backends, zones));
    }
    sets.retain(|_, places: &mut Vec<u32>| !places.is_empty());
    sets
}

/// The ready endpoints by who should use them, if all of them say so.
fn hinted<A>(backends: &[(A, &Backend)], says: impl Fn(&Backend) -> Vec<Role>) -> BTreeMap<Role, Vec<u32>> {
    let mut hinted: BTreeMap<Role, Vec<u32>> = BTreeMap::new();
    for (place, (_, backend)) in (0..).zip(backends).filter(|(_, (_, backend))| backend.ready) {
        let roles = says(backend);
        if roles.is_empty() {
            return BTreeMap::new();
        }
        roles.into_iter().for_each(|role| hinted.entry(role).or_default().push(place));
    }
    hinted
}

/// The nodes whose clients should use an endpoint: those it names, or its own where the Service wants that.
fn nodes_of<'a>(service: &model::Service, backend: &'a Backend) -> impl Iterator<Item = &'a String> {
    let own = service.distribution == Some(TrafficDistribution::SameNode) && backend.for_nodes.is_empty();
    backend.for_nodes.iter().chain(backend.node.iter().filter(move |_| own))
}

/// The zones whose clients should use it, found in the same way.
fn zones_of<'a>(service: &model::Service, backend: &'a Backend) -> impl Iterator<Item = &'a str> {
    let own = service.distribution.is_some() && backend.for_zones.is_empty();
    let zones = backend.for_zones.iter().chain(backend.zone.iter().filter(move |_| own));
    zones.map(String::as_str)
}

/// Where a port is dialled. Of an address that is both, it is the load balancer's.
fn fronts<A: Family>(service: &model::Service, port: &ServicePort) -> Vec<(FrontendKey<A>, Kind)> {
    let protocol = port.protocol.number();
    let at = |addresses: &[IpAddr], kind| {
        let addresses: Vec<A> = addresses.iter().copied().filter_map(A::of).collect();
        addresses.into_iter().map(move |address| (FrontendKey { address, port: port.port, protocol }, kind))
    };
    let node_port = port.node_port.map(|port| FrontendKey { address: A::default(), port, protocol });
    at(&service.addresses, Kind::Cluster)
        .chain(node_port.map(|key| (key, Kind::Exposed)))
        .chain(at(&service.external_addresses, Kind::Exposed))
        .chain(at(&service.load_balancer_addresses, Kind::Balanced))
        .collect()
}

/// Every port of a Service.
pub(super) fn ports<A: Family>(ground: &Ground, service: &model::Service) -> Vec<(Name<A>, Arc<Draft<A>>)> {
    let id: Arc<str> = service.id().into();
    let draft = |port: &ServicePort| {
        let name = Name::Service(id.clone(), port.protocol.number(), port.port);
        Some((name, Arc::new(Draft::of(ground, service, port)?)))
    };
    service.ports.iter().filter_map(draft).collect()
}

/// The nodes' ports that lead to pods (`hostPort`). Whether a pod is ready does not matter; where one is on its
/// way out and another has come for it, it is the other's.
pub(super) fn host_ports<A: Family>(ground: &Ground, cluster: &Cluster) -> BTreeMap<Name<A>, Arc<Draft<A>>> {
    let addresses: HashMap<_, _> =
        cluster.nodes.iter().map(|node| (&node.name, A::among(&node.addresses))).collect();
    let mut found = BTreeMap::new();
    let pods = cluster.pods.iter().filter(|pod| !pod.host_network);
    // Whoever comes later replaces.
    for pod in pods.clone().filter(|pod| pod.terminating).chain(pods.filter(|pod| !pod.terminating)) {
        let (Some(pod_address), Some(place)) = (A::among(&pod.addresses), ground.places.get(&pod.node))
        else {
            continue;
        };
        for port in &pod.host_ports {
            let asked = port.address.filter(|address| !address.is_unspecified());
            let Some(address) = asked.map_or_else(|| addresses.get(&pod.node).copied().flatten(), A::of)
            else {
                continue;
            };
            let key = FrontendKey { address, port: port.port, protocol: port.protocol.number() };
            let name = Name::Host(pod.node.as_str().into(), address, key.protocol, key.port);
            let backend = Backend::new(pod.address(), port.container_port);
            let end = End { active: true, ..end(pod_address, &backend) };
            let draft = Draft {
                ends: vec![end],
                sets: [(Role::Everyone, vec![0])].into(),
                fronts: vec![(key, Kind::Host(*place))],
                inside: Scope::All,
                outside: Scope::All,
                affinity_s: 0,
                flags: 0,
                ranged: false,
                ranges: Vec::new(),
                table_size: ground.table_size,
            };
            found.insert(name, Arc::new(draft));
        }
    }
    found
}
