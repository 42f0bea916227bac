//! What stands for others, Services and ports of nodes, and who may answer there.
//!
//! A flow to a frontend is judged in this order; the numbers come back in the code.
//!
//! 1. The load balancer's addresses of a Service with source ranges are for clients inside the ranges alone,
//!    wherever these are.
//! 2. Whoever is inside the cluster, a pod or a node, is served where it is; whoever comes from outside, on the
//!    node where it comes in.
//! 3. At a cluster address `internalTrafficPolicy` and hints say which endpoints may answer. Elsewhere clients
//!    inside have all of them, and `externalTrafficPolicy` is about clients outside.
//! 4. Of these the ready ones answer; where none is ready, those that serve while they go.
//! 5. Nobody anywhere: it is refused at once. Somebody, but not here, where only those here may: it is dropped.
//! 6. Policies are judged on the endpoint. A client outside is its own address where that is kept: on the node
//!    where it comes in, in a tunnel, and with direct server return. Elsewhere the node stands for it, and which of
//!    the two a policy means is left open.
//!
//! Source: Kubernetes, "Virtual IPs and Service Proxies", "Source IP", "EndpointSlices" and
//! "Topology Aware Routing"; enhancement proposals 1669 (terminating endpoints) and 2086 (internal policy).

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use userspace::model::{
    Backend, Cluster, HostPort, Model, Node, Pod, Protocol, Service, ServicePort, TrafficPolicy,
};

use super::{Cause, Expectation, Flow, Oracle, Party, Refusal};

/// An address and a port that stand for endpoints.
pub(super) struct Frontend<'a> {
    kind: Kind<'a>,
    /// Whatever their conditions.
    endpoints: Vec<Backend>,
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Cluster(&'a Service),
    NodePort(&'a Service, &'a Node),
    External(&'a Service),
    LoadBalancer(&'a Service),
    HostPort(&'a Node),
}

/// Every address and port that stands for others.
#[derive(Debug)]
pub(super) struct Frontends<'a> {
    cluster: &'a Cluster,
    nodes: HashMap<IpAddr, &'a Node>,
    /// Services, by their places in the cluster: under each address of their own.
    at: HashMap<IpAddr, Vec<usize>>,
    /// The same under their node ports.
    node_ports: HashMap<u16, Vec<usize>>,
    /// Pods with host ports, under their node.
    host_ports: HashMap<&'a str, Vec<&'a Pod>>,
}

impl<'a> Frontends<'a> {
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        let mut frontends = Self {
            cluster,
            nodes: HashMap::new(),
            at: HashMap::new(),
            node_ports: HashMap::new(),
            host_ports: HashMap::new(),
        };
        for node in &cluster.nodes {
            for address in &node.addresses {
                frontends.nodes.entry(*address).or_insert(node);
            }
        }
        for (place, service) in cluster.services.iter().enumerate() {
            let outside = service.external_addresses.iter().chain(&service.load_balancer_addresses);
            for address in service.addresses.iter().chain(outside) {
                frontends.at.entry(*address).or_default().push(place);
            }
            for port in service.ports.iter().filter_map(|port| port.node_port) {
                frontends.node_ports.entry(port).or_default().push(place);
            }
        }
        for pod in cluster.pods.iter().filter(|pod| !pod.host_network && !pod.host_ports.is_empty()) {
            frontends.host_ports.entry(&pod.node).or_default().push(pod);
        }
        frontends
    }

    /// What the address and port stand for, if they do.
    pub(super) fn at(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<Frontend<'a>> {
        let node = self.nodes.get(&address).copied();
        let of_service = |service, one: &ServicePort| {
            let kind = kind(service, one, address, port, node)?;
            let same_family = |backend: &&Backend| backend.address.is_ipv4() == address.is_ipv4();
            (one.protocol == protocol).then(|| Frontend {
                kind,
                endpoints: one.backends.iter().filter(same_family).cloned().collect(),
            })
        };
        let own = self.at.get(&address).into_iter().flatten();
        let of_node = node.and_then(|_| self.node_ports.get(&port)).into_iter().flatten();
        let mut places: Vec<usize> = own.chain(of_node).copied().collect();
        // The first of the cluster has it.
        places.sort_unstable();
        let mut services = places.into_iter().map(|place| &self.cluster.services[place]);
        services
            .find_map(|service| service.ports.iter().find_map(|one| of_service(service, one)))
            .or_else(|| self.host_port(node?, address, (port, protocol)))
    }

    fn host_port(
        &self,
        node: &'a Node,
        address: IpAddr,
        (port, protocol): (u16, Protocol),
    ) -> Option<Frontend<'a>> {
        self.host_ports.get(node.name.as_str())?.iter().find_map(|pod| {
            let is_it = |one: &&HostPort| {
                one.port == port && one.protocol == protocol && one.address.is_none_or(|at| at == address)
            };
            let leads_to = pod.host_ports.iter().find(is_it)?.container_port;
            let mut endpoint = Backend::new(pod.address_like(address)?, leads_to);
            endpoint.node = Some(node.name.clone());
            Some(Frontend { kind: Kind::HostPort(node), endpoints: vec![endpoint] })
        })
    }
}

/// How the Service's port is dialled at this address, if it is.
fn kind<'a>(
    service: &'a Service,
    one: &ServicePort,
    address: IpAddr,
    port: u16,
    node: Option<&'a Node>,
) -> Option<Kind<'a>> {
    let its_own = one.port == port;
    match node {
        // A node port is of the Service's families.
        Some(node) if one.node_port == Some(port) => {
            let families = service.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
            families.then_some(Kind::NodePort(service, node))
        }
        _ if !its_own => None,
        _ if service.addresses.contains(&address) => Some(Kind::Cluster(service)),
        _ if service.external_addresses.contains(&address) => Some(Kind::External(service)),
        _ if service.load_balancer_addresses.contains(&address) => Some(Kind::LoadBalancer(service)),
        _ => None,
    }
}

/// Where a client is served, and as whom.
#[derive(Clone, Copy)]
struct Entry<'a> {
    node: &'a Node,
    inside: bool,
}

impl<'a> Frontend<'a> {
    /// What should become of a flow to it, whichever of its ports and addresses that was.
    pub(super) fn expect(&self, flow: Flow<'_>, source: Party<'_>) -> Expectation {
        // 1.
        if let Kind::LoadBalancer(service) = self.kind
            && !service.source_ranges.is_empty()
            && !service.source_ranges.iter().any(|range| range.contains(&source.address()))
        {
            return Expectation::Deny(Cause::SourceRange);
        }
        let entries = match self.entries(flow.oracle, source) {
            Ok(entries) => entries,
            Err(open) => return Expectation::Undefined(open),
        };
        let outcomes = entries.into_iter().flat_map(|entry| match self.candidates(entry) {
            Ok(candidates) => {
                let fate = |backend: &&Backend| fate(flow, source, entry, backend);
                candidates.iter().map(fate).collect()
            }
            Err(nobody) => vec![nobody],
        });
        settled(outcomes)
    }

    /// 2. Where a client may come in: at several nodes, where somebody outside chooses.
    fn entries<'b>(&self, oracle: &Oracle<'b>, source: Party<'b>) -> Result<Vec<Entry<'b>>, &'static str>
    where
        'a: 'b,
    {
        let inside = |node| Entry { node, inside: true };
        let outside = |node| Entry { node, inside: false };
        let own = match source {
            Party::Pod(pod) => oracle.directory.node(&pod.node),
            Party::Node(node) => Some(node),
            Party::Outside(..) => None,
        };
        Ok(match (self.kind, own) {
            // Its socket knows the Service, or else the other node does.
            (Kind::NodePort(_, node) | Kind::HostPort(node), Some(own))
                if matches!(source, Party::Node(_)) && own.name != node.name =>
            {
                vec![inside(own), outside(node)]
            }
            (_, Some(own)) => vec![inside(own)],
            (Kind::Cluster(_), None) => {
                return Err("a cluster IP is promised to the inside of the cluster only");
            }
            (Kind::NodePort(_, node) | Kind::HostPort(node), None) => vec![outside(node)],
            (Kind::External(_), None) => oracle.cluster.nodes.iter().map(outside).collect(),
            (Kind::LoadBalancer(service), None) => {
                if !self.endpoints.iter().any(|backend| backend.ready) {
                    return Err(
                        "whether a load balancer without a healthy node drops or refuses is its own affair",
                    );
                }
                // It asks the nodes which of them has endpoints.
                let local = service.external_policy == TrafficPolicy::Local;
                let healthy =
                    |node: &&Node| !local || self.endpoints.iter().any(|it| it.ready && is_on(it, node));
                oracle.cluster.nodes.iter().filter(healthy).map(outside).collect()
            }
        })
    }

    /// 3. Whose endpoints may answer there, and whether hints are about it.
    fn rule(&self, entry: Entry<'_>) -> (TrafficPolicy, bool) {
        match self.kind {
            Kind::Cluster(service) => (service.internal_policy, true),
            Kind::NodePort(service, _) | Kind::External(service) | Kind::LoadBalancer(service)
                if !entry.inside =>
            {
                (service.external_policy, false)
            }
            _ => (TrafficPolicy::Cluster, false),
        }
    }

    /// 3. Who may answer there.
    ///
    /// # Errors
    /// What becomes of the flow where nobody may.
    fn candidates(&self, entry: Entry<'_>) -> Result<Vec<&Backend>, Expectation> {
        let (policy, hints) = self.rule(entry);
        let all: Vec<&Backend> = self.endpoints.iter().collect();
        let usable = usable(&all);
        // 5.
        if usable.is_empty() {
            return Err(Expectation::Reject(Refusal::NoBackend));
        }
        if policy == TrafficPolicy::Local {
            let here: Vec<&Backend> = all.into_iter().filter(|it| is_on(it, entry.node)).collect();
            let usable = self::usable(&here);
            return if usable.is_empty() {
                Err(Expectation::Deny(Cause::NoLocalBackend))
            } else {
                Ok(usable)
            };
        }
        Ok(if hints { hinted(usable, entry.node) } else { usable })
    }

    /// Each endpoint, and whether it may answer there.
    fn standings(self, entry: Entry<'_>) -> Vec<(Backend, Standing)> {
        let candidates = self.candidates(entry).unwrap_or_default();
        let local = self.rule(entry).0 == TrafficPolicy::Local;
        let standing = |it: &Backend| match () {
            () if candidates.contains(&it) => Standing::Candidate,
            () if local && !is_on(it, entry.node) => Standing::NotLocal,
            () if it.terminating => Standing::Terminating,
            () if !it.ready => Standing::NotReady,
            () if !it.for_nodes.is_empty() => Standing::OtherNode,
            () => Standing::OtherZone,
        };
        self.endpoints.iter().map(|it| (it.clone(), standing(it))).collect()
    }
}

/// Whether an endpoint may be given a new flow, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It may.
    Candidate,
    /// It is not ready.
    NotReady,
    /// It is on its way out, and others are ready or it does not serve any more.
    Terminating,
    /// It is on another node, and only those of this one may answer.
    NotLocal,
    /// It is meant for clients on other nodes.
    OtherNode,
    /// It is meant for clients in other zones.
    OtherZone,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Candidate => "may answer",
            Self::NotReady => "not ready",
            Self::Terminating => "terminating",
            Self::NotLocal => "not on this node",
            Self::OtherNode => "for other nodes",
            Self::OtherZone => "for other zones",
        })
    }
}

/// Who stands behind this address and port, and which of them may answer a client that is served on `node`:
/// `inside`, because it is a pod or process of this node; or it comes in there from outside. Nothing if nobody
/// stands behind it.
pub fn standings(
    cluster: &Cluster,
    target: SocketAddr,
    protocol: Protocol,
    node: &Node,
    inside: bool,
) -> Vec<(Backend, Standing)> {
    let frontends = Frontends::of(cluster);
    let found = frontends.at(target.ip(), target.port(), protocol);
    found.map_or(Vec::new(), |frontend| frontend.standings(Entry { node, inside }))
}

fn is_on(backend: &Backend, node: &Node) -> bool {
    backend.node.as_ref() == Some(&node.name)
}

/// 4. Those that are ready; if none is, those that serve while they go.
fn usable<'b>(of: &[&'b Backend]) -> Vec<&'b Backend> {
    let ready: Vec<_> = of.iter().copied().filter(|it| it.ready).collect();
    if !ready.is_empty() {
        return ready;
    }
    of.iter().copied().filter(|it| it.serving && it.terminating).collect()
}

/// Those that are for this node, or else for its zone. Hints count where every ready endpoint has them, and one
/// of them is meant.
fn hinted<'b>(of: Vec<&'b Backend>, node: &Node) -> Vec<&'b Backend> {
    let for_node = |it: &&Backend| it.for_nodes.contains(&node.name);
    let for_zone = |it: &&Backend| node.zone().is_some_and(|zone| it.for_zones.iter().any(|one| one == zone));
    let by_node: Vec<_> = of.iter().copied().filter(for_node).collect();
    let by_zone: Vec<_> = of.iter().copied().filter(for_zone).collect();
    if !by_node.is_empty() && of.iter().all(|it| !it.for_nodes.is_empty()) {
        by_node
    } else if !by_zone.is_empty() && of.iter().all(|it| !it.for_zones.is_empty()) {
        by_zone
    } else {
        of
    }
}

/// 6. What should become of a flow that this endpoint is given.
fn fate(flow: Flow<'_>, source: Party<'_>, entry: Entry<'_>, backend: &Backend) -> Expectation {
    let (flow, target) = (Flow { port: backend.port, ..flow }, flow.oracle.party_at(backend.address));
    let settings = &flow.oracle.cluster.settings;
    let sent_on = settings.model == Model::Overlay || settings.services.direct_return;
    let kept = entry.inside || is_on(backend, entry.node) || sent_on && !flow.oracle.stands_in;
    let itself = flow.judge(source, target);
    if !kept && !alike(&itself, &flow.judge(Party::Node(entry.node), target)) {
        return Expectation::Undefined(
            "a node stands for the client on the way, and a policy may mean either of the two",
        );
    }
    match itself {
        Expectation::Deny(_) if source.is(target) => {
            Expectation::Undefined("whether a pod's policies are about itself behind a Service is undecided")
        }
        outcome => outcome,
    }
}

/// What is the same for all. Endpoints denied by different policies are all denied.
fn settled(outcomes: impl IntoIterator<Item = Expectation>) -> Expectation {
    let mut outcomes = outcomes.into_iter();
    let Some(first) = outcomes.next() else {
        return Expectation::Undefined("there is no node where it could come in");
    };
    if outcomes.all(|other| alike(&other, &first)) {
        first
    } else {
        Expectation::Undefined("the Service's backends fare differently, and which one is chosen is open")
    }
}

/// Whether the two come out the same, whatever the cause.
fn alike(one: &Expectation, other: &Expectation) -> bool {
    let passes = |it: &Expectation| matches!(it, Expectation::Allow | Expectation::Audited(_));
    std::mem::discriminant(one) == std::mem::discriminant(other) || passes(one) && passes(other)
}

#[cfg(test)]
mod tests {
    //! On the oracle's stage, with a Service `shop/api`: 8080/tcp at the cluster address, 30080 at nodes, goes
    //! to port 80 of `shop/api` on `n1` and of `bank/till` on `n2`.

    use userspace::model::Protocol::Tcp;
    use userspace::model::Who;

    use super::super::tests::{cluster, policy, with_service, word};
    use super::*;

    const API: &str = "10.244.1.3";
    const TILL: &str = "10.244.2.2";

    fn stage(policies: &[&str], change: impl FnOnce(&mut Service)) -> Cluster {
        let mut cluster = with_service(policies, &[API, TILL]);
        let service = &mut cluster.services[0];
        service.ports[0].node_port = Some(30_080);
        service.external_addresses = vec!["192.0.2.10".parse().unwrap()];
        service.load_balancer_addresses = vec!["20.0.0.9".parse().unwrap()];
        for (backend, node) in service.ports[0].backends.iter_mut().zip(["n1", "n2"]) {
            backend.node = Some(node.to_owned());
        }
        change(service);
        cluster
    }

    fn only(service: &mut Service, address: &str) {
        service.ports[0].backends.retain(|backend| backend.address.to_string() == address);
    }

    /// What becomes of a flow from `from` to an address.
    fn at(cluster: &Cluster, from: &str, address: &str, port: u16) -> &'static str {
        let from = match from {
            "ext:world" => Party::Outside("203.0.113.7".parse().unwrap(), &[]),
            pod => Party::Pod(cluster.pod(pod).unwrap()),
        };
        let oracle = Oracle::of(cluster);
        let found = oracle.frontends.at(address.parse().unwrap(), port, Tcp).expect("it is a frontend");
        match found.expect(Flow { oracle: &oracle, port, protocol: Tcp }, from) {
            Expectation::Allow => "allow",
            Expectation::Audited(_) => "audited",
            Expectation::Deny(Cause::NoLocalBackend) => "not here",
            Expectation::Deny(Cause::SourceRange) => "out of range",
            Expectation::Deny(_) => "deny",
            Expectation::Reject(_) => "reject",
            Expectation::Undefined(_) => "open",
        }
    }

    #[test]
    fn every_frontend_of_a_service_leads_to_its_endpoints() {
        let cluster = stage(&[], |_| ());
        for from in ["shop/web", "bank/till", "ext:world"] {
            for (address, port) in
                [("10.240.0.4", 30_080), ("10.240.0.5", 30_080), ("192.0.2.10", 8080), ("20.0.0.9", 8080)]
            {
                assert_eq!(at(&cluster, from, address, port), "allow", "{from} to {address}");
            }
        }
        assert_eq!(at(&cluster, "shop/web", "10.96.0.10", 8080), "allow");
        // What is dialled by name is found by its address as well.
        assert_eq!(word(&cluster, "shop/web", "node:n2", 30_080, Tcp), "allow");
        for (address, port) in [("10.96.0.10", 30_080), ("192.0.2.10", 80), ("10.240.0.4", 8080)] {
            assert!(
                !Oracle::of(&cluster).is_frontend(address.parse().unwrap(), port, Tcp),
                "{address}:{port}"
            );
        }
        assert!(!Oracle::of(&cluster).is_frontend("10.240.0.4".parse().unwrap(), 30_080, Protocol::Udp));
    }

    #[test]
    fn whoever_dials_a_service_without_endpoints_is_refused_but_by_a_load_balancer() {
        let cluster = stage(&[], |service| service.ports[0].backends.clear());
        for from in ["shop/web", "ext:world"] {
            assert_eq!(at(&cluster, from, "10.240.0.5", 30_080), "reject");
            assert_eq!(at(&cluster, from, "192.0.2.10", 8080), "reject");
        }
        assert_eq!(at(&cluster, "shop/web", "20.0.0.9", 8080), "reject");
        assert_eq!(at(&cluster, "ext:world", "20.0.0.9", 8080), "open");
    }

    #[test]
    fn external_policy_local_drops_at_nodes_without_an_endpoint_and_is_not_about_pods() {
        let cluster = stage(&[], |service| {
            service.external_policy = TrafficPolicy::Local;
            only(service, TILL);
        });
        assert_eq!(at(&cluster, "ext:world", "10.240.0.4", 30_080), "not here");
        assert_eq!(at(&cluster, "ext:world", "10.240.0.5", 30_080), "allow");
        assert_eq!(at(&cluster, "shop/web", "10.240.0.4", 30_080), "allow");
        // Which node a router chooses is open; a load balancer asks which ones have endpoints.
        assert_eq!(at(&cluster, "ext:world", "192.0.2.10", 8080), "open");
        assert_eq!(at(&cluster, "ext:world", "20.0.0.9", 8080), "allow");
    }

    #[test]
    fn internal_policy_local_is_about_the_cluster_address_and_the_clients_node() {
        let cluster = stage(&[], |service| {
            service.internal_policy = TrafficPolicy::Local;
            only(service, API);
        });
        assert_eq!(at(&cluster, "shop/web", "10.96.0.10", 8080), "allow");
        assert_eq!(at(&cluster, "bank/till", "10.96.0.10", 8080), "not here");
        assert_eq!(at(&cluster, "bank/till", "10.240.0.5", 30_080), "allow");
        let none = stage(&[], |service| {
            service.internal_policy = TrafficPolicy::Local;
            service.ports[0].backends.clear();
        });
        assert_eq!(at(&none, "shop/web", "10.96.0.10", 8080), "reject");
    }

    #[test]
    fn those_that_serve_while_they_go_answer_where_none_is_ready() {
        let going = |service: &mut Service, ready: bool, serving: bool| {
            only(service, API);
            let backend = &mut service.ports[0].backends[0];
            (backend.ready, backend.serving, backend.terminating) = (ready, serving, true);
        };
        for (serving, expected) in [(true, "allow"), (false, "reject")] {
            let cluster = stage(&[], |service| going(service, false, serving));
            assert_eq!(at(&cluster, "ext:world", "10.240.0.4", 30_080), expected);
            assert_eq!(at(&cluster, "shop/web", "10.96.0.10", 8080), expected);
        }
        // One that is ready elsewhere is no reason not to use what is here, with policy Local.
        let cluster = stage(&[], |service| {
            service.external_policy = TrafficPolicy::Local;
            let backend = &mut service.ports[0].backends[0];
            (backend.ready, backend.serving, backend.terminating) = (false, true, true);
        });
        assert_eq!(at(&cluster, "ext:world", "10.240.0.4", 30_080), "allow");
    }

    #[test]
    fn source_ranges_are_about_the_load_balancers_addresses_and_everybody() {
        let cluster = stage(&[], |service| service.source_ranges = vec!["203.0.113.0/24".parse().unwrap()]);
        assert_eq!(at(&cluster, "ext:world", "20.0.0.9", 8080), "allow");
        assert_eq!(at(&cluster, "shop/web", "20.0.0.9", 8080), "out of range");
        for (address, port) in [("10.240.0.4", 30_080), ("192.0.2.10", 8080), ("10.96.0.10", 8080)] {
            assert_eq!(at(&cluster, "shop/web", address, port), "allow", "{address}");
        }
    }

    #[test]
    fn a_client_outside_is_judged_by_its_own_address_where_that_is_kept() {
        let world_only = policy(
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
        );
        let cluster = |model, direct| {
            let mut cluster = stage(&[&world_only], |service| only(service, API));
            (cluster.settings.model, cluster.settings.services.direct_return) = (model, direct);
            cluster
        };
        for (model, direct, node, expected) in [
            (Model::Overlay, false, "10.240.0.4", "allow"),
            (Model::Overlay, false, "10.240.0.5", "allow"),
            (Model::Flat, false, "10.240.0.4", "allow"),
            (Model::Flat, false, "10.240.0.5", "open"),
            (Model::Flat, true, "10.240.0.5", "allow"),
        ] {
            let cluster = cluster(model, direct);
            assert_eq!(at(&cluster, "ext:world", node, 30_080), expected, "{model:?} {direct} {node}");
        }
    }

    #[test]
    fn an_endpoint_that_may_not_answer_says_why() {
        let standings = |change: fn(&mut Service), inside| {
            let cluster = stage(&[], change);
            let target = if inside { "10.96.0.10:8080" } else { "10.240.0.4:30080" };
            let all = standings(&cluster, target.parse().unwrap(), Tcp, &cluster.nodes[0], inside);
            all.into_iter().map(|(_, standing)| standing).collect::<Vec<_>>()
        };
        use Standing::{Candidate, NotLocal, NotReady, OtherZone, Terminating};
        assert_eq!(standings(|_| (), true), [Candidate, Candidate]);
        let local = |service: &mut Service| service.external_policy = TrafficPolicy::Local;
        assert_eq!(standings(local, false), [Candidate, NotLocal]);
        assert_eq!(standings(local, true), [Candidate, Candidate]);
        let going = |service: &mut Service| {
            let backend = &mut service.ports[0].backends[0];
            (backend.ready, backend.terminating) = (false, true);
        };
        assert_eq!(standings(going, true), [Terminating, Candidate]);
        let starting = |service: &mut Service| {
            let backend = &mut service.ports[0].backends[1];
            (backend.ready, backend.serving) = (false, false);
        };
        assert_eq!(standings(starting, true), [Candidate, NotReady]);
        let hints = |service: &mut Service| {
            for (backend, zone) in service.ports[0].backends.iter_mut().zip(["a", "b"]) {
                backend.for_zones = vec![zone.to_owned()];
            }
        };
        let mut cluster = stage(&[], hints);
        cluster.nodes[0].labels.insert("topology.kubernetes.io/zone".to_owned(), "b".to_owned());
        let target = "10.96.0.10:8080".parse().unwrap();
        let all = super::standings(&cluster, target, Tcp, &cluster.nodes[0], true);
        assert_eq!(all.into_iter().map(|(_, it)| it).collect::<Vec<_>>(), [OtherZone, Candidate]);
    }

    #[test]
    fn hints_are_followed_where_every_endpoint_has_them() {
        let closed = policy("{podSelector: {matchLabels: {app: api}}, ingress: []}");
        let zones = |of: [&str; 2]| {
            let mut cluster = stage(&[&closed], |service| {
                for (backend, zone) in service.ports[0].backends.iter_mut().zip(of) {
                    backend.for_zones = if zone.is_empty() { Vec::new() } else { vec![zone.to_owned()] };
                }
            });
            for (node, zone) in cluster.nodes.iter_mut().zip(["a", "b"]) {
                node.labels.insert("topology.kubernetes.io/zone".to_owned(), zone.to_owned());
            }
            cluster
        };
        // `shop/api` is closed, `bank/till` is not.
        assert_eq!(at(&zones(["a", "b"]), "bank/till", "10.96.0.10", 8080), "allow");
        assert_eq!(at(&zones(["a", "b"]), "shop/web", "10.96.0.10", 8080), "deny");
        assert_eq!(at(&zones(["", "b"]), "bank/till", "10.96.0.10", 8080), "open");
        assert_eq!(at(&zones(["c", "c"]), "bank/till", "10.96.0.10", 8080), "open");
    }

    #[test]
    fn a_host_port_leads_to_its_pod_on_its_node_alone() {
        let mut cluster = cluster(&[]);
        let port = HostPort { address: None, port: 9000, protocol: Tcp, container_port: 80 };
        cluster.pods.iter_mut().find(|pod| pod.id() == "bank/till").unwrap().host_ports = vec![port];
        assert_eq!(at(&cluster, "ext:world", "10.240.0.5", 9000), "allow");
        assert!(!Oracle::of(&cluster).is_frontend("10.240.0.4".parse().unwrap(), 9000, Tcp));
        let (from, to) = (Who::Pod("shop/web".to_owned()), Who::Node("n2".to_owned()));
        assert_eq!(Oracle::of(&cluster).expect(&from, &to, 9000, Tcp), Expectation::Allow);
    }
}
