//! Services as kube-proxy's nftables mode writes them, a table `kube-proxy` for each family.
//!
//! ```text
//! prerouting, output -> services -> @service-ips       address . protocol . port : goto service-…, external-…
//!                                   @service-nodeports           protocol . port : goto external-…
//!                                   @host-ports        address . protocol . port : goto host-port-…
//! service-… -> one of endpoint-… (numgen random) -> dnat
//! external-… -> local-…, for clients outside with policy Local; else as service-…, hints apart
//! postrouting -> masquerading (0x4000)
//! prerouting, output, before that -> @firewall-ips, the source ranges of load balancers
//! input, forward, output          -> @no-endpoint-services, @no-endpoint-nodeports; what is left at @cluster-ips
//! ```
//! What differs from kube-proxy: a client of this node is served here whichever node's port it dials, so that
//! policies see the client itself (kube-proxy leaves that to the other node); hints are about the cluster address
//! alone; endpoints have weights; `hostPort` is here as well, which container runtimes add by a plugin of their own.
//!
//! Source: Kubernetes, `pkg/proxy/nftables/README.md` and `proxier.go`; KEP-3866.

use std::net::IpAddr;

use userspace::model::{Backend, Cluster, HostPort, Node, Pod, Service, ServicePort, TrafficPolicy};

use super::super::endpoints::{Endpoints, Six};
use super::ruleset::Table;
use super::{Family, OUTSIDE, PODS};
use crate::netns::fnv1a;

/// On packets that must come back this way.
const MASQUERADE: &str = "0x4000";

/// The table `kube-proxy` of a family on a node.
pub(super) fn table(cluster: &Cluster, node: &Node, family: Family) -> Table {
    let mut table = Table::default();
    declare(&mut table, cluster, node, family);
    hooks(&mut table, cluster, family);
    for service in &cluster.services {
        for port in &service.ports {
            let one = OnePort { service, port, node, family };
            one.write(&mut table);
        }
        let addresses = service.addresses.iter().filter(|it| family.has(**it));
        addresses.for_each(|address| table.element("cluster-ips", address));
    }
    for pod in cluster.pods_on(&node.name).filter(|pod| !pod.host_network) {
        for port in &pod.host_ports {
            host_port(&mut table, (pod, port), node, family);
        }
    }
    table
}

/// Sets and maps, and which addresses are nodes'.
fn declare(table: &mut Table, cluster: &Cluster, node: &Node, family: Family) {
    let address = family.address_type();
    let dialled = format!("type {address} . inet_proto . inet_service : verdict;");
    for map in ["service-ips", "firewall-ips", "no-endpoint-services", "host-ports"] {
        table.map(map, dialled.as_str());
    }
    for map in ["service-nodeports", "no-endpoint-nodeports"] {
        table.map(map, "type inet_proto . inet_service : verdict;");
    }
    for set in ["cluster-ips", "nodeport-ips", "node-ips"] {
        table.set(set, format!("type {address};"));
    }
    for other in &cluster.nodes {
        for address in other.addresses.iter().filter(|it| family.has(**it)) {
            table.element("node-ips", address);
            if other.name == node.name {
                table.element("nodeport-ips", address);
            }
        }
    }
}

/// The chains that hang at the kernel's hooks, and those that are the same for all Services.
fn hooks(table: &mut Table, cluster: &Cluster, family: Family) {
    let ip = family.word();
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let new = |chains: &[&str]| chains.iter().map(|chain| format!("ct state new jump {chain}")).collect();
    table.base("filter-prerouting", "filter hook prerouting priority -110", new(&["firewall-check"]));
    let input = new(&["nodeport-endpoints-check", "service-endpoints-check"]);
    table.base("filter-input", "filter hook input priority -110", input);
    let forward = new(&["nodeport-endpoints-check", "service-endpoints-check", "cluster-ips-check"]);
    table.base("filter-forward", "filter hook forward priority -110", forward);
    let output = new(&["firewall-check", "nodeport-endpoints-check", "service-endpoints-check"]);
    table.base("filter-output", "filter hook output priority -110", output);
    table.base("filter-output-post-dnat", "filter hook output priority -90", new(&["cluster-ips-check"]));
    table.base("nat-prerouting", "nat hook prerouting priority -100", lines(&["jump services"]));
    table.base("nat-output", "nat hook output priority -100", lines(&["jump services"]));
    table.base("nat-postrouting", "nat hook postrouting priority srcnat", lines(&["jump masquerading"]));
    table.chain("mark-for-masquerade", vec![format!("meta mark set meta mark | {MASQUERADE}")]);
    let (first, last) = cluster.settings.masquerade_ports;
    let masquerading = vec![
        format!("meta mark & {MASQUERADE} == 0 return"),
        format!("meta mark set meta mark ^ {MASQUERADE}"),
        format!("meta l4proto {{ tcp, udp, sctp }} masquerade to :{first}-{last} fully-random"),
        "masquerade fully-random".to_owned(),
    ];
    table.chain("masquerading", masquerading);
    table.chain("reject-chain", lines(&["reject"]));
    let dialled = format!("{ip} daddr . meta l4proto . th dport");
    // Who comes from outside dials this node; who is here may mean any.
    let [from_outside, from_here] = [
        format!("{ip} daddr @nodeport-ips meta l4proto . th dport"),
        format!("iifname != {OUTSIDE} {ip} daddr @node-ips meta l4proto . th dport"),
    ];
    let services = vec![
        format!("{dialled} vmap @service-ips"),
        format!("{from_outside} vmap @service-nodeports"),
        format!("{from_here} vmap @service-nodeports"),
        format!("{dialled} vmap @host-ports"),
    ];
    table.chain("services", services);
    table.chain("firewall-check", vec![format!("{dialled} vmap @firewall-ips")]);
    table.chain("service-endpoints-check", vec![format!("{dialled} vmap @no-endpoint-services")]);
    let endless = [from_outside, from_here].map(|it| format!("{it} vmap @no-endpoint-nodeports"));
    table.chain("nodeport-endpoints-check", endless.to_vec());
    let mut unknown = vec![format!("{ip} daddr @cluster-ips reject")];
    let ranges = cluster.settings.service_cidrs.iter().filter(|range| family.has(range.addr()));
    unknown.extend(ranges.map(|range| format!("{ip} daddr {range} drop")));
    table.chain("cluster-ips-check", unknown);
}

/// A port of a Service in a family, on a node.
#[derive(Clone, Copy)]
struct OnePort<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    node: &'a Node,
    family: Family,
}

impl OnePort<'_> {
    fn write(self, table: &mut Table) {
        let Self { service, port, node, family } = self;
        let six: Six = family == Family::Six;
        let of = |addresses: &[IpAddr]| -> Vec<IpAddr> {
            addresses.iter().copied().filter(|it| family.has(*it)).collect()
        };
        let own = of(&service.addresses);
        let outside = [of(&service.external_addresses), of(&service.load_balancer_addresses)].concat();
        let node_port = port.node_port.filter(|_| !own.is_empty());
        self.guard(table, &of(&service.load_balancer_addresses));
        let endpoints = Endpoints::of(port, node, six);
        if endpoints.all.is_empty() {
            for address in own.iter().chain(&outside) {
                table.lead("no-endpoint-services", self.dialled(*address), "goto reject-chain");
            }
            if let Some(number) = node_port {
                table.lead("no-endpoint-nodeports", self.at(number), "goto reject-chain");
            }
            return;
        }
        let internal = match service.internal_policy {
            TrafficPolicy::Cluster => &endpoints.hinted,
            TrafficPolicy::Local => &endpoints.local,
        };
        let cluster_chain = self.service_chain(table, "service", internal);
        for address in own {
            match internal.is_empty() {
                true => table.lead("no-endpoint-services", self.dialled(address), "drop"),
                false => table.lead("service-ips", self.dialled(address), format!("goto {cluster_chain}")),
            }
        }
        if outside.is_empty() && node_port.is_none() {
            return;
        }
        let external = self.external_chain(table, &endpoints, (internal, cluster_chain));
        for address in outside {
            table.lead("service-ips", self.dialled(address), format!("goto {external}"));
        }
        if let Some(number) = node_port {
            table.lead("service-nodeports", self.at(number), format!("goto {external}"));
        }
    }

    /// Who may come by the load balancer's addresses.
    fn guard(self, table: &mut Table, addresses: &[IpAddr]) {
        if self.service.source_ranges.is_empty() || addresses.is_empty() {
            return;
        }
        let name = self.name("firewall");
        let ranges = self.service.source_ranges.iter().filter(|range| self.family.has(range.addr()));
        let pass = ranges.map(|range| format!("{} saddr {range} return", self.family.word()));
        table.chain(&name, pass.chain(["drop".to_owned()]).collect());
        for address in addresses {
            table.lead("firewall-ips", self.dialled(*address), format!("goto {name}"));
        }
    }

    /// The chain for clients at a node port or at an address outside of the cluster's ranges.
    fn external_chain(
        self,
        table: &mut Table,
        endpoints: &Endpoints<'_>,
        (internal, cluster_chain): (&[&Backend], String),
    ) -> String {
        let inside = match endpoints.all == internal {
            true => cluster_chain,
            false => self.service_chain(table, "all", &endpoints.all),
        };
        if self.service.external_policy == TrafficPolicy::Cluster {
            return inside;
        }
        let outside = match endpoints.local.is_empty() {
            true => "drop".to_owned(),
            false => {
                let name = self.name("local");
                let lines = self.choice(table, &endpoints.local);
                table.chain(&name, lines);
                format!("goto {name}")
            }
        };
        let name = self.name("external");
        table.chain(&name, vec![format!("iifname {OUTSIDE} {outside}"), format!("goto {inside}")]);
        name
    }

    /// A chain that gives a flow to one of these. The answer to whoever is no pod must come back this way.
    fn service_chain(self, table: &mut Table, word: &str, endpoints: &[&Backend]) -> String {
        let name = self.name(word);
        if !endpoints.is_empty() {
            let mut rules = vec![format!("iifname != {PODS} jump mark-for-masquerade")];
            rules.extend(self.choice(table, endpoints));
            table.chain(&name, rules);
        }
        name
    }

    /// The rules that choose one of these, and the chains of each.
    fn choice(self, table: &mut Table, endpoints: &[&Backend]) -> Vec<String> {
        let (mut rules, mut shares, mut total) = (Vec::new(), Vec::new(), 0_u64);
        for backend in endpoints {
            let (chain, place) = (self.endpoint(table, backend), self.place(backend));
            if self.service.affinity_s.is_some() {
                rules.push(format!("{} saddr @affinity-{place} goto {chain}", self.family.word()));
            }
            let weight = u64::from(backend.weight);
            let share = match weight {
                1 => total.to_string(),
                _ => format!("{total}-{}", total + weight - 1),
            };
            shares.push(format!("{share} : goto {chain}"));
            total += weight;
        }
        rules.push(format!("numgen random mod {total} vmap {{ {} }}", shares.join(", ")));
        rules
    }

    /// The chain of an endpoint.
    fn endpoint(self, table: &mut Table, backend: &Backend) -> String {
        let (name, ip) = (format!("endpoint-{}", self.place(backend)), self.family.word());
        if table.has_chain(&name) {
            return name;
        }
        // A pod that reaches itself through its Service must see another address than its own.
        let mut rules = vec![format!("{ip} saddr {} jump mark-for-masquerade", backend.address)];
        if let Some(seconds) = self.service.affinity_s {
            let set = format!("affinity-{}", self.place(backend));
            let head = format!(
                "type {}; flags dynamic,timeout; timeout {seconds}s; size 65535;",
                self.family.address_type()
            );
            table.set(&set, head);
            rules.push(format!("update @{set} {{ {ip} saddr }}"));
        }
        let protocol = self.port.protocol.to_string().to_lowercase();
        let target = std::net::SocketAddr::new(backend.address, backend.port);
        rules.push(format!("meta l4proto {protocol} dnat to {target}"));
        table.chain(&name, rules);
        name
    }

    /// What tells an endpoint of this port from all others. With affinity, the time too: it is the set's for good.
    fn place(self, backend: &Backend) -> String {
        let id = format!("{} {:?}", self.id(), self.service.affinity_s);
        format!("{}-{}-{}", digits(&id), text_of(backend.address), backend.port)
    }

    /// `namespace/name/protocol/port`.
    fn id(self) -> String {
        let protocol = self.port.protocol.to_string().to_lowercase();
        let port = self.port.name.clone().unwrap_or_else(|| self.port.port.to_string());
        format!("{}/{protocol}/{port}", self.service.id())
    }

    /// A chain's name, which says whose it is, as long as a name may be (128 bytes).
    fn name(self, word: &str) -> String {
        let id = self.id();
        let whole = format!("{word}-{}-{id}", digits(&id));
        whole.chars().take(120).collect()
    }

    fn dialled(self, address: IpAddr) -> String {
        format!("{address} . {}", self.at(self.port.port))
    }

    fn at(self, number: u16) -> String {
        format!("{} . {number}", self.port.protocol.to_string().to_lowercase())
    }
}

/// A port of this node that leads to a pod.
fn host_port(table: &mut Table, (pod, port): (&Pod, &HostPort), node: &Node, family: Family) {
    let Some(target) = pod.addresses.iter().copied().find(|it| family.has(*it)) else { return };
    let (name, ip) = (format!("host-port-{}-{}", digits(&pod.id()), port.port), family.word());
    let protocol = port.protocol.to_string().to_lowercase();
    // At each address a port of one number may lead elsewhere.
    let place = port.address.map(|address| format!("-{}", text_of(address))).unwrap_or_default();
    let name = format!("{name}-{protocol}{place}");
    let to = std::net::SocketAddr::new(target, port.container_port);
    let rules = vec![
        format!("{ip} saddr {target} jump mark-for-masquerade"),
        format!("meta l4proto {protocol} dnat to {to}"),
    ];
    table.chain(&name, rules);
    let at = port.address.map_or_else(|| node.addresses.clone(), |address| vec![address]);
    for address in at.into_iter().filter(|it| family.has(*it)) {
        table.lead("host-ports", format!("{address} . {protocol} . {}", port.port), format!("goto {name}"));
    }
}

/// Eight letters and digits that follow from a name.
pub(super) fn digits(name: &str) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = fnv1a(name.as_bytes());
    (0..8).map(|at| char::from(DIGITS[(hash >> (5 * at)) as usize % DIGITS.len()])).collect()
}

/// An address as it may stand in a name.
fn text_of(address: IpAddr) -> String {
    address.to_string().replace(':', ".")
}
