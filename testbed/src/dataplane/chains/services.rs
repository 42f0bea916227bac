//! Services as chains, the way kube-proxy writes them.
//!
//! ```text
//! nat     PREROUTING, OUTPUT -> KUBE-SERVICES -> KUBE-SVC-…                       -> one of KUBE-SEP-… -> DNAT
//!                                             -> KUBE-FW-… -> KUBE-EXT-… -> KUBE-SVC-… or KUBE-SVL-…
//!                                             -> KUBE-NODEPORTS -> KUBE-EXT-…
//!                            -> CNI-HOSTPORT-DNAT -> CNI-DN-… -> DNAT
//!         POSTROUTING        -> KUBE-POSTROUTING (marked by KUBE-MARK-MASQ), MASQ-OUTSIDE
//! filter  INPUT, FORWARD, OUTPUT -> KUBE-PROXY-FIREWALL, KUBE-SERVICES, KUBE-EXTERNAL-SERVICES
//! ```
//! An address and port of a Service is one rule in `KUBE-SERVICES`, so the last of a thousand is found after the
//! others. Among n endpoints the first is taken with a chance of 1/n, the next with 1/(n-1), and so on. A Service
//! without endpoints has no nat rule, but one in the filter table that rejects; what the nat table left alone for
//! want of an endpoint here, or of a range that its sender is in, the filter table drops.
//!
//! | chain | endpoints |
//! | --- | --- |
//! | `KUBE-SVC-` | all that may answer |
//! | `KUBE-SVH-` | those that hints name for this node, where they are not all |
//! | `KUBE-SVL-` | those on this node |
//!
//! Pods of this node are known by their links' names (kube-proxy's `--detect-local-mode=InterfaceNamePrefix`). They
//! are served here under their own addresses, wherever the frontend is: other nodes' ports as well, which kube-proxy
//! leaves to those nodes, where the pod would be seen as the node that it was sent on by.
//!
//! Source: Kubernetes, `pkg/proxy/iptables/proxier.go` and KEP-3178 for the names and marks, `pkg/proxy/topology.go`
//! for who may answer; CNI's portmap plugin for host ports; ip-masq-agent for the way outside.

use std::net::IpAddr;

use ipnet::IpNet;
use userspace::model::{Backend, Cluster, Model, Node, Service, ServicePort, TrafficPolicy};

use super::Family;
use super::ruleset::{
    End, Match, Recent, RejectWith, Rule, Ruleset, SourcePorts, States, Table, TableName, Then, is, not,
};
use crate::netns::fnv1a;
use crate::topology::UPLINK;

/// The names of pods' links, as [`crate::topology::host_side`] makes them.
pub(super) const PODS: &str = "pp+";

/// What `KUBE-MARK-MASQ` marks packets with that must come back this way.
const MASQUERADE: u32 = 0x4000;

/// Writes the Services' chains of a node.
pub(super) fn write(rules: &mut Ruleset, cluster: &Cluster, node: &Node) {
    let family = rules.family;
    let ports: Vec<Port<'_>> = cluster
        .services
        .iter()
        .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
        .map(|(service, port)| Port::of((service, port), node, family))
        .collect();
    let nat = rules.table(TableName::Nat);
    for hook in ["PREROUTING", "OUTPUT"] {
        nat.append(hook, Rule::jump("KUBE-SERVICES").comment("kubernetes service portals"));
    }
    nat.declare("KUBE-NODEPORTS");
    nat.append("KUBE-MARK-MASQ", Rule::then(Then::Mark(MASQUERADE, MASQUERADE)));
    for port in ports.iter().filter(|port| !port.all.is_empty()) {
        port.translate(nat);
    }
    lead_to_node_ports(nat, cluster, node, family);
    host_ports(nat, cluster, family);
    postrouting(nat, cluster, node, family);
    refuse(rules, &ports);
}

/// What of the filter table is about Services.
fn refuse(rules: &mut Ruleset, ports: &[Port<'_>]) {
    let filter = rules.table(TableName::Filter);
    for chain in ["KUBE-PROXY-FIREWALL", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"] {
        filter.declare(chain);
        for hook in ["INPUT", "FORWARD", "OUTPUT"] {
            let new = Match::State(is(States::NEW));
            filter.append(hook, Rule::jump(chain).when(new).comment("kubernetes service portals"));
        }
    }
    for port in ports {
        port.refuse(filter);
    }
}

/// A Service's port on a node, and who may answer there.
struct Port<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
    name: String,
    /// All that may answer.
    all: Vec<&'a Backend>,
    /// Those that hints name for clients here.
    hinted: Vec<&'a Backend>,
    /// Those on this node.
    local: Vec<&'a Backend>,
}

impl<'a> Port<'a> {
    fn of((service, port): (&'a Service, &'a ServicePort), node: &Node, family: Family) -> Self {
        let of_family = |backend: &&Backend| Family::of(backend.address) == family;
        let backends = || port.backends.iter().filter(of_family);
        let here = |backend: &&Backend| backend.node.as_deref() == Some(&node.name);
        let all = answering(backends().collect());
        let hinted = hinted(&all, node);
        let name = port.name.clone().unwrap_or_else(|| format!("{}/{}", port.port, port.protocol));
        let local = answering(backends().filter(here).collect());
        Self { service, port, family, name: format!("{}:{name}", service.id()), all, hinted, local }
    }

    fn hashed(&self, word: &str) -> String {
        format!("{word}-{}", hashed(&self.name))
    }

    fn number(&self) -> u8 {
        self.port.protocol.number()
    }

    /// The addresses of this family among these.
    fn own(&self, addresses: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> {
        let family = self.family;
        addresses.iter().copied().filter(move |address| Family::of(*address) == family)
    }

    /// A rule for what is sent to the port at this address.
    fn dialled(&self, address: IpAddr, rule: Rule) -> Rule {
        rule.target(address).ports(self.number(), self.port.port, self.port.port)
    }

    /// Whether the Service has node ports for this family.
    fn node_port(&self) -> Option<u16> {
        self.own(&self.service.addresses).next().and(self.port.node_port)
    }

    /// The chain that a cluster address leads to, and its endpoints.
    fn internal(&self) -> (String, &[&'a Backend]) {
        if self.service.internal_policy == TrafficPolicy::Local {
            (self.hashed("KUBE-SVL"), &self.local)
        } else if self.hinted.len() < self.all.len() {
            (self.hashed("KUBE-SVH"), &self.hinted)
        } else {
            (self.hashed("KUBE-SVC"), &self.all)
        }
    }

    /// Its part of the nat table.
    fn translate(&self, nat: &mut Table) {
        let (internal, endpoints) = self.internal();
        for address in self.own(&self.service.addresses).filter(|_| !endpoints.is_empty()) {
            let rule = self.dialled(address, Rule::jump(&internal));
            nat.append("KUBE-SERVICES", rule.comment(format!("{} cluster IP", self.name)));
            // Whoever is no pod here would get its answer straight from the endpoint, from an address it never dialled.
            let mut outside = self.dialled(address, Rule::jump("KUBE-MARK-MASQ"));
            outside.from = Some(not(PODS.to_owned()));
            nat.append(&internal, outside.comment(format!("{} cluster IP", self.name)));
        }
        let external = self.hashed("KUBE-EXT");
        let mut reached = false;
        for address in self.own(&self.service.external_addresses) {
            let rule = self.dialled(address, Rule::jump(&external));
            nat.append("KUBE-SERVICES", rule.comment(format!("{} external IP", self.name)));
            reached = true;
        }
        for address in self.own(&self.service.load_balancer_addresses) {
            let chain = self.load_balancer(nat, &external);
            let rule = self.dialled(address, Rule::jump(&chain));
            nat.append("KUBE-SERVICES", rule.comment(format!("{} loadbalancer IP", self.name)));
            reached = true;
        }
        if let Some(port) = self.node_port() {
            let rule = Rule::jump(&external).ports(self.number(), port, port);
            nat.append("KUBE-NODEPORTS", rule.comment(&self.name));
            reached = true;
        }
        if reached {
            self.external(nat, &external);
        }
        if !endpoints.is_empty() {
            self.choose(nat, &internal, endpoints);
        }
        let all = self.hashed("KUBE-SVC");
        if reached && internal != all {
            self.choose(nat, &all, &self.all);
        }
        let local = self.hashed("KUBE-SVL");
        if reached && internal != local && self.is_external_local() && !self.local.is_empty() {
            self.choose(nat, &local, &self.local);
        }
    }

    fn is_external_local(&self) -> bool {
        self.service.external_policy == TrafficPolicy::Local
    }

    /// Source ranges of this family, unless there are none of any.
    fn source_ranges(&self) -> Option<impl Iterator<Item = IpNet>> {
        let ranges = &self.service.source_ranges;
        let own = ranges.iter().copied().filter(|range| Family::of_range(*range) == self.family);
        (!ranges.is_empty()).then_some(own)
    }

    /// `KUBE-FW-…`: only who is in a range comes by the load balancer. The filter table drops the others.
    fn load_balancer(&self, nat: &mut Table, external: &str) -> String {
        let Some(ranges) = self.source_ranges() else { return external.to_owned() };
        let chain = self.hashed("KUBE-FW");
        nat.declare(&chain);
        if nat.chains[&chain].rules.is_empty() {
            for range in ranges {
                let rule = Rule::jump(external).source(range);
                nat.append(&chain, rule.comment(format!("{} loadbalancer IP", self.name)));
            }
        }
        chain
    }

    /// `KUBE-EXT-…`: pods here have every endpoint; others have those of this node under their own addresses, or
    /// every one under the node's.
    fn external(&self, nat: &mut Table, chain: &str) {
        let (all, mark) = (self.hashed("KUBE-SVC"), "KUBE-MARK-MASQ");
        let pods = format!("pod traffic for {} external destinations", self.name);
        nat.append(chain, Rule::jump(&all).from(PODS).comment(pods));
        if !self.is_external_local() {
            let whom = format!("masquerade traffic for {} external destinations", self.name);
            nat.append(chain, Rule::jump(mark).comment(whom));
            nat.append(chain, Rule::jump(&all));
            return;
        }
        let local = || Match::Local(End::Source, false);
        let whom = format!("masquerade LOCAL traffic for {} external destinations", self.name);
        nat.append(chain, Rule::jump(mark).when(local()).comment(whom));
        let whom = format!("route LOCAL traffic for {} external destinations", self.name);
        nat.append(chain, Rule::jump(&all).when(local()).comment(whom));
        if !self.local.is_empty() {
            nat.append(chain, Rule::jump(&self.hashed("KUBE-SVL")));
        }
    }

    /// To one of the endpoints' chains: the one that the client had before, or by chance.
    fn choose(&self, nat: &mut Table, chain: &str, endpoints: &[&Backend]) {
        if let Some(seconds) = self.service.affinity_s {
            for backend in endpoints {
                let endpoint = self.endpoint(nat, backend);
                let list = Recent { name: endpoint.clone(), set: false, seconds: Some(seconds), reap: true };
                let rule = Rule::jump(&endpoint).when(Match::Recent(is(list)));
                nat.append(chain, rule.comment(self.to(backend)));
            }
        }
        // None is 0.
        let weight = |backend: &&Backend| u64::from(backend.weight);
        let mut left: u64 = endpoints.iter().map(weight).sum();
        for backend in endpoints {
            let own = weight(backend);
            let mut rule = Rule::jump(&self.endpoint(nat, backend));
            if own < left {
                rule = rule.when(Match::chance(own as f64 / left as f64));
            }
            left -= own;
            nat.append(chain, rule.comment(self.to(backend)));
        }
    }

    fn to(&self, backend: &Backend) -> String {
        format!("{} -> {}", self.name, std::net::SocketAddr::new(backend.address, backend.port))
    }

    /// `KUBE-SEP-…`: one endpoint.
    fn endpoint(&self, nat: &mut Table, backend: &Backend) -> String {
        let name = self.to(backend);
        let chain = format!("KUBE-SEP-{}", hashed(&name));
        if nat.chains.contains_key(&chain) {
            return chain;
        }
        // A pod that reaches itself through its Service must see another address than its own.
        nat.append(&chain, Rule::jump("KUBE-MARK-MASQ").source(backend.address).comment(&self.name));
        let mut rule = Rule::then(Then::Dnat(backend.address, Some(backend.port))).protocol(self.number());
        if self.service.affinity_s.is_some() {
            let list = Recent { name: chain.clone(), set: true, seconds: None, reap: false };
            rule = rule.when(Match::Recent(is(list)));
        }
        nat.append(&chain, rule.comment(&self.name));
        chain
    }

    /// Its part of the filter table.
    fn refuse(&self, filter: &mut Table) {
        for address in self.own(&self.service.load_balancer_addresses) {
            let Some(ranges) = self.source_ranges() else { continue };
            let chain = self.hashed("KUBE-FW");
            let rule = self.dialled(address, Rule::jump(&chain));
            filter.append("KUBE-PROXY-FIREWALL", rule.comment(format!("{} loadbalancer IP", self.name)));
            if filter.chains.contains_key(&chain) {
                continue;
            }
            for range in ranges {
                filter.append(&chain, Rule::then(Then::Return).source(range));
            }
            let whom = format!("other traffic to {} will be dropped", self.name);
            filter.append(&chain, Rule::then(Then::Drop).comment(whom));
        }
        let (_, internal) = self.internal();
        if let Some((then, why)) = self.refusal(internal.is_empty()) {
            for address in self.own(&self.service.addresses) {
                let rule = self.dialled(address, Rule::then(then.clone()));
                filter.append("KUBE-SERVICES", rule.comment(format!("{} {why}", self.name)));
            }
        }
        let Some((then, why)) = self.refusal(self.is_external_local() && self.local.is_empty()) else {
            return;
        };
        let whom = format!("{} {why}", self.name);
        let outside = [&self.service.external_addresses, &self.service.load_balancer_addresses];
        for address in outside.into_iter().flat_map(|addresses| self.own(addresses)) {
            let rule = self.dialled(address, Rule::then(then.clone()));
            filter.append("KUBE-EXTERNAL-SERVICES", rule.comment(&whom));
        }
        if let Some(port) = self.node_port() {
            let rule = Rule::then(then).ports(self.number(), port, port);
            let rule = rule.when(Match::Local(End::Target, false));
            filter.append("KUBE-EXTERNAL-SERVICES", rule.comment(&whom));
        }
    }

    /// What becomes of who finds nobody, and why: nobody anywhere, or `nobody_here`.
    fn refusal(&self, nobody_here: bool) -> Option<(Then, &'static str)> {
        if self.all.is_empty() {
            return Some((Then::Reject(RejectWith::PortUnreachable), "has no endpoints"));
        }
        nobody_here.then_some((Then::Drop, "has no local endpoints"))
    }
}

/// Those that are ready; without any, those that serve while they go.
fn answering(of: Vec<&Backend>) -> Vec<&Backend> {
    let ready: Vec<&Backend> = of.iter().copied().filter(|backend| backend.ready).collect();
    if ready.is_empty() {
        of.into_iter().filter(|backend| backend.terminating && backend.serving).collect()
    } else {
        ready
    }
}

/// Those meant for clients on the node, or else in its zone; all, where one of them has no such hint or none is
/// meant.
fn hinted<'a>(all: &[&'a Backend], node: &Node) -> Vec<&'a Backend> {
    let meant = |hints: fn(&Backend) -> &[String], own: Option<&str>| -> Vec<&'a Backend> {
        if all.iter().any(|backend| hints(backend).is_empty()) {
            return Vec::new();
        }
        let is_meant = |backend: &&Backend| hints(backend).iter().any(|hint| Some(hint.as_str()) == own);
        all.iter().copied().filter(is_meant).collect()
    };
    let by_node = meant(|backend| &backend.for_nodes, Some(&node.name));
    let by_zone = meant(|backend| &backend.for_zones, node.zone());
    [by_node, by_zone].into_iter().find(|found| !found.is_empty()).unwrap_or_else(|| all.to_vec())
}

/// Node ports come last: the node's own, and for its pods those of the other nodes.
fn lead_to_node_ports(nat: &mut Table, cluster: &Cluster, node: &Node, family: Family) {
    let whom = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
    if nat.chains["KUBE-NODEPORTS"].rules.is_empty() {
        nat.declare("KUBE-SERVICES");
        return;
    }
    let others = cluster.nodes.iter().filter(|other| other.name != node.name);
    for address in others.flat_map(|other| &other.addresses).filter(|address| Family::of(**address) == family)
    {
        let rule = Rule::jump("KUBE-NODEPORTS").target(*address).from(PODS);
        nat.append("KUBE-SERVICES", rule.comment("other nodes' ports are served where the pod is"));
    }
    let local = Match::Local(End::Target, false);
    nat.append("KUBE-SERVICES", Rule::jump("KUBE-NODEPORTS").when(local).comment(whom));
}

/// Ports of nodes that lead to pods, at whichever node they are dialled.
fn host_ports(nat: &mut Table, cluster: &Cluster, family: Family) {
    const CHAIN: &str = "CNI-HOSTPORT-DNAT";
    let of_family = |address: &&IpAddr| Family::of(**address) == family;
    for pod in cluster.pods.iter().filter(|pod| !pod.host_network) {
        let (Some(node), Some(own)) = (cluster.node(&pod.node), pod.addresses.iter().find(of_family)) else {
            continue;
        };
        for port in &pod.host_ports {
            let at = |address: &&IpAddr| port.address.is_none_or(|at| at == **address);
            let number = port.protocol.number();
            // At each address a port of one number may lead elsewhere.
            let place = port.address.map(|address| format!(" {address}")).unwrap_or_default();
            for address in node.addresses.iter().filter(of_family).filter(at) {
                let chain =
                    format!("CNI-DN-{}", hashed(&format!("{} {number} {}{place}", pod.id(), port.port)));
                let rule = Rule::jump(&chain).target(*address).ports(number, port.port, port.port);
                nat.append(CHAIN, rule.comment(format!("host port of {}", pod.id())));
                if !nat.chains.contains_key(&chain) {
                    nat.append(&chain, Rule::jump("KUBE-MARK-MASQ").source(*own));
                    let dnat = Then::Dnat(*own, Some(port.container_port));
                    nat.append(&chain, Rule::then(dnat).protocol(number));
                }
            }
        }
    }
    if nat.chains.contains_key(CHAIN) {
        for hook in ["PREROUTING", "OUTPUT"] {
            nat.append(hook, Rule::jump(CHAIN));
        }
    }
}

/// What leaves under the node's address: marked packets, and pods' packets to the outside.
fn postrouting(nat: &mut Table, cluster: &Cluster, node: &Node, family: Family) {
    nat.append("POSTROUTING", Rule::jump("KUBE-POSTROUTING").comment("kubernetes postrouting rules"));
    let unmarked = Match::Mark(not((MASQUERADE, MASQUERADE)));
    nat.append("KUBE-POSTROUTING", Rule::then(Then::Return).when(unmarked));
    nat.append("KUBE-POSTROUTING", Rule::then(Then::Mark(MASQUERADE, 0)));
    masquerade(nat, "KUBE-POSTROUTING", cluster);
    nat.append("POSTROUTING", Rule::jump("MASQ-OUTSIDE").to(UPLINK));
    nat.declare("MASQ-OUTSIDE");
    let settings = &cluster.settings;
    let own = |ranges: &'_ [IpNet]| -> Vec<IpNet> {
        ranges.iter().copied().filter(|range| Family::of_range(*range) == family).collect()
    };
    let mut inside = own(&settings.non_masquerade_cidrs);
    match settings.model {
        Model::Overlay => {}
        Model::Kubenet => inside.extend(own(&settings.pod_cidrs)),
        Model::Flat | Model::FlatDynamic => inside.extend(own(&settings.vnet_cidrs)),
    }
    for range in inside {
        nat.append("MASQ-OUTSIDE", Rule::then(Then::Return).target(range));
    }
    let ranges = own(&settings.pod_cidrs);
    let elsewhere = cluster.pods.iter().filter(|pod| !pod.host_network);
    // Pods may have addresses outside of the range; those of other nodes do not leave here.
    let strays = elsewhere.flat_map(|pod| pod.addresses.iter().map(move |address| (pod, *address)));
    let strays = strays.filter(|(_, address)| Family::of(*address) == family);
    let strays: Vec<(bool, IpNet)> = strays
        .filter(|(_, address)| !ranges.iter().any(|range| range.contains(address)))
        .map(|(pod, address)| (pod.node == node.name, IpNet::from(address)))
        .collect();
    if settings.model == Model::Kubenet {
        for (_, address) in &strays {
            nat.append("MASQ-OUTSIDE", Rule::then(Then::Return).target(*address));
        }
    }
    for range in ranges.iter().chain(strays.iter().filter(|(here, _)| *here).map(|(_, address)| address)) {
        nat.append("MASQ-OUTSIDE", Rule::jump("MASQ-POD").source(*range));
    }
    nat.declare("MASQ-POD");
    masquerade(nat, "MASQ-POD", cluster);
}

/// The node's address instead of the packet's own, and a port of those that its own sockets leave free.
fn masquerade(nat: &mut Table, chain: &str, cluster: &Cluster) {
    let (first, last) = cluster.settings.masquerade_ports;
    for protocol in [6, 17, 132] {
        let among = SourcePorts { among: Some(first..=last), random: false };
        nat.append(chain, Rule::then(Then::Masquerade(among)).protocol(protocol));
    }
    nat.append(chain, Rule::then(Then::Masquerade(SourcePorts::default())));
}

/// Thirteen letters and digits that follow from the name.
pub(super) fn hashed(name: &str) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = fnv1a(name.as_bytes());
    (0..13).map(|at| char::from(DIGITS[(hash >> (5 * at)) as usize % DIGITS.len()])).collect()
}
