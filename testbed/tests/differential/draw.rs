//! Clusters, drawn from a seed: every model, encapsulation and choice of families in turn, the rest by chance.

use std::fmt::Write as _;

use dataplane::tables::Endpoint;
use userspace::engine::Capacities;
use userspace::plan::NodePlan;

pub(crate) const LABELS: [&str; 3] = ["a", "b", "c"];
pub(crate) const PORTS: [u16; 4] = [53, 80, 81, 8080];
/// Hosts outside of each family. The last of each is reached with the pods' own addresses, where any is.
pub(crate) const WORLD_V4: [&str; 3] = ["203.0.113.7", "10.0.0.1", "8.8.8.8"];
pub(crate) const WORLD_V6: [&str; 3] = ["2001:db8::7", "2001:db8:1::1", "2001:db8:8::8"];

/// The underlay, the pods' ranges and the model: what a Testbed says of them, and whether pods have IPv4 and
/// IPv6 addresses.
const SHAPES: [(&str, bool, bool); 16] = [
    ("model: overlay, podCIDRs: [10.244.0.0/16]", true, false),
    ("model: flat, nodeSubnets: [10.240.0.0/16, \"fd00:10:240::/64\"]", true, true),
    ("model: overlay, podCIDRs: [\"fd00:10:244::/48\"]", false, true),
    ("model: kubenet, podCIDRs: [10.244.0.0/16, \"fd00:10:244::/48\"]", true, true),
    ("model: overlay, encapsulation: geneve, podCIDRs: [10.244.0.0/16, \"fd00:10:244::/48\"]", true, true),
    ("model: kubenet, podCIDRs: [10.244.0.0/16]", true, false),
    (
        "model: overlay, podCIDRs: [\"fd00:10:244::/48\", 10.244.0.0/16], nodeSubnets: [\"fd00:10:240::/64\", 10.240.0.0/16]",
        true,
        true,
    ),
    ("model: flat-dynamic, podSubnets: [10.241.0.0/16, \"fd00:10:241::/64\"]", true, true),
    (
        "model: overlay, encapsulation: geneve, podCIDRs: [\"fd00:10:244::/48\"], nodeSubnets: [10.240.0.0/16]",
        false,
        true,
    ),
    ("model: flat", true, false),
    ("model: overlay, podCIDRs: [10.244.0.0/16, \"fd00:10:244::/48\"]", true, true),
    ("model: kubenet, podCIDRs: [\"fd00:10:244::/48\"]", false, true),
    (
        "model: overlay, encapsulation: geneve, podCIDRs: [10.244.0.0/16], nodeSubnets: [\"fd00:10:240::/64\"]",
        true,
        false,
    ),
    ("model: flat-dynamic, podSubnets: [10.241.0.0/16]", true, false),
    (
        "model: overlay, encapsulation: geneve, podCIDRs: [10.244.0.0/16, \"fd00:10:244::/48\"], nodeSubnets: [\"fd00:10:240::/64\", 10.240.0.0/16]",
        true,
        true,
    ),
    ("model: flat, nodeSubnets: [\"fd00:10:240::/64\"]", false, true),
];

/// How many clusters it takes until every shape was there.
pub(crate) const ROUND: u64 = SHAPES.len() as u64;

/// A sequence that looks like chance and repeats with its seed (Marsaglia, "Xorshift RNGs", 2003).
pub(crate) struct Draw {
    state: u64,
}

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 11
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub(crate) fn of<T: Clone>(&mut self, these: &[T]) -> T {
        these[self.below(these.len())].clone()
    }

    /// A cluster as Kubernetes objects; `number` says which shape it has.
    pub(crate) fn objects(&mut self, number: u64) -> String {
        let (shape, v4, v6) = SHAPES[(number % ROUND) as usize];
        // Each shape comes with both, as rounds go by.
        let driver = (number % ROUND + number / ROUND).is_multiple_of(3);
        let mut text = self.testbed(shape, driver);
        let worlds = [(v4, WORLD_V4), (v6, WORLD_V6)];
        let worlds = worlds.iter().filter(|(there, _)| *there).flat_map(|(_, addresses)| addresses);
        for (index, address) in worlds.enumerate() {
            let _ = writeln!(
                text,
                "---\napiVersion: podpath.dev/v1alpha1\nkind: External\nmetadata: {{name: e{index}}}\nspec: {{address: \"{address}\"}}"
            );
        }
        for index in 0..4 + self.below(5) {
            text.push_str(&self.pod(index));
        }
        for index in 0..3 + self.below(3) {
            text.push_str(&self.service(index, (v4, v6)));
        }
        for index in 0..self.below(6) {
            text.push_str(&self.policy(index, (v4, v6)));
        }
        for index in 0..self.below(4) {
            text.push_str(&self.cluster_policy(index, (v4, v6)));
        }
        text
    }

    fn testbed(&mut self, shape: &str, driver: bool) -> String {
        let nodes = 2 + self.below(2);
        let mut spec = format!("nodes: {nodes}, {shape}");
        let least: [u32; 3] = if shape.contains("::") { [1374, 1375, 1381] } else { [626, 627, 700] };
        let mtu = if self.one_in(2) { 1500 } else { self.of(&[least[0], least[1], least[2], 1400, 2000]) };
        let _ = write!(spec, ", mtu: {mtu}");
        if !self.one_in(3) {
            let last = 40_000 + if self.one_in(2) { self.below(3) } else { self.below(12) };
            let _ = write!(spec, ", masqueradePorts: {{first: 40000, last: {last}}}");
        }
        if self.one_in(2) {
            let seconds = [5, 60, 3, 8, 4, 6, 3].map(|most| 1 + self.below(most));
            let [opening, open, closed, udp, icmp, quarantine, fragment] = seconds;
            let quarantine = quarantine - 1;
            let _ = write!(
                spec,
                ", timeouts: {{tcpOpening: {opening}s, tcpEstablished: {open}s, tcpClosed: {closed}s, udp: {udp}s, \
                 icmp: {icmp}s, quarantine: {quarantine}s, fragment: {fragment}s}}"
            );
        }
        let algorithm = if self.one_in(4) { "random" } else { "maglev" };
        let direct = shape.contains("geneve") && !self.one_in(3);
        let acceleration = if driver { "native" } else { "disabled" };
        let _ = write!(
            spec,
            ", services: {{algorithm: {algorithm}, directReturn: {direct}, acceleration: {acceleration}}}"
        );
        let established = self.of(&["keep", "cut"]);
        let _ = write!(spec, ", policies: {{audit: {}, established: {established}}}", self.one_in(6));
        if self.one_in(2) {
            spec.push_str(", nonMasqueradeCIDRs: [8.8.8.0/24, \"2001:db8:8::/48\"]");
        }
        format!(
            "apiVersion: podpath.dev/v1alpha1\nkind: Testbed\nmetadata: {{name: drawn}}\nspec: {{{spec}}}\n"
        )
    }

    fn pod(&mut self, index: usize) -> String {
        let (namespace, label) = (self.of(&["x", "y"]), self.of(&LABELS));
        // Some of each cluster's pods must be behind interfaces, and some must be selected.
        let host = if index > 3 && self.one_in(4) { "hostNetwork: true, " } else { "" };
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{index}, namespace: {namespace}, labels: {{app: {label}}}}}\n\
             spec: {{{host}containers: [{{name: c, image: x, ports: [{{containerPort: 80, name: web}}, {{containerPort: 53, protocol: UDP}}, {{containerPort: {}}}]}}]}}\n",
            8080 + self.below(2)
        )
    }

    fn service(&mut self, index: usize, (v4, v6): (bool, bool)) -> String {
        let dual = v4 && v6;
        let protocol = self.of(&["TCP", "UDP", "SCTP"]);
        let target = if protocol == "UDP" { 53 } else { 80 };
        let families = match self.below(4) {
            0 if dual => "ipFamilies: [IPv6], ",
            1 if dual => "",
            _ if dual => "ipFamilyPolicy: RequireDualStack, ",
            _ => "",
        };
        // The last label is nobody's.
        let label = self.of(&["a", "a", "b", "b", "c", "none"]);
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{index}, namespace: {}}}\n\
             spec: {{{families}{}selector: {{app: {label}}}, ports: [{{port: {}, targetPort: {target}, protocol: {protocol}}}]}}\n",
            self.of(&["x", "y"]),
            self.exposure(index, v4),
            self.of(&PORTS),
        )
    }

    /// From where a Service may be dialled, who may answer, and for how long a client stays with whom.
    fn exposure(&mut self, index: usize, v4: bool) -> String {
        let mut text =
            self.of(&["", "type: NodePort, ", "type: LoadBalancer, ", "type: LoadBalancer, "]).to_owned();
        if text.contains("LoadBalancer") && self.one_in(2) {
            text.push_str("loadBalancerSourceRanges: [203.0.113.0/25, 10.0.0.0/9, \"2001:db8::/48\"], ");
        }
        if !text.is_empty() && self.one_in(2) {
            text.push_str("externalTrafficPolicy: Local, ");
        }
        if self.one_in(4) {
            text.push_str("internalTrafficPolicy: Local, ");
        }
        if self.one_in(3) {
            let seconds = 1 + self.below(20);
            let _ = write!(
                text,
                "sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}, "
            );
        }
        if self.one_in(4) {
            let address = if v4 {
                format!("198.18.0.{}", index + 1)
            } else {
                format!("\"2001:db8:18::{}\"", index + 1)
            };
            let _ = write!(text, "externalIPs: [{address}], ");
        }
        text
    }

    fn policy(&mut self, index: usize, families: (bool, bool)) -> String {
        let selector = if self.one_in(3) { "{}".to_string() } else { self.selector() };
        let kinds = self.of(&["[Ingress]", "[Egress]", "[Ingress, Egress]"]);
        let mut text = format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: n{index}, namespace: {}}}\n\
             spec:\n  podSelector: {selector}\n  policyTypes: {kinds}\n",
            self.of(&["x", "y"])
        );
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            if kinds.to_lowercase().contains(list) && !self.one_in(4) {
                let _ = writeln!(text, "  {list}:");
                for _ in 0..1 + self.below(3) {
                    let (peer, ports) = (self.peer(families), self.ports());
                    let _ = writeln!(text, "    - {{{peers}: [{peer}], ports: [{ports}]}}");
                }
            }
        }
        text
    }

    /// A policy of the whole cluster, in either tier.
    fn cluster_policy(&mut self, index: usize, families: (bool, bool)) -> String {
        let tier = self.of(&["Admin", "Baseline"]);
        let mut text = format!(
            "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: c{index}}}\n\
             spec:\n  tier: {tier}\n  priority: {}\n  subject: {{{}}}\n",
            self.below(3),
            self.tier_pods(),
        );
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            if self.one_in(3) {
                continue;
            }
            let _ = writeln!(text, "  {list}:");
            for _ in 0..1 + self.below(3) {
                let action = self.of(&["Accept", "Deny", "Deny", "Pass"]);
                let peer = self.tier_peer(list == "egress", families);
                let ports = self.of(&[
                    "",
                    "",
                    ", protocols: [{tcp: {destinationPort: {number: 80}}}]",
                    ", protocols: [{udp: {destinationPort: {range: {start: 53, end: 81}}}}, {destinationNamedPort: web}]",
                    ", protocols: [{tcp: {destinationPort: {range: {start: 1, end: 65535}}}}, {sctp: {destinationPort: {number: 80}}}]",
                ]);
                // Only pods have names for ports.
                let is_pods = peer.starts_with("pods") || peer.starts_with("namespaces");
                let ports = if is_pods { ports } else { "" };
                let _ = writeln!(text, "    - {{action: {action}, {peers}: [{{{peer}}}]{ports}}}");
            }
        }
        text
    }

    fn tier_pods(&mut self) -> String {
        match self.below(3) {
            0 => "namespaces: {}".to_owned(),
            1 => format!(
                "namespaces: {{matchLabels: {{kubernetes.io/metadata.name: {}}}}}",
                self.of(&["x", "y"])
            ),
            _ => format!("pods: {{namespaceSelector: {{}}, podSelector: {}}}", self.selector()),
        }
    }

    fn tier_peer(&mut self, egress: bool, (v4, v6): (bool, bool)) -> String {
        match self.below(6) {
            0 if egress && v4 => "networks: [203.0.113.0/24, 10.0.0.0/9]".to_owned(),
            1 if egress && v6 => "networks: [\"2001:db8::/32\"]".to_owned(),
            2 if egress => "nodes: {}".to_owned(),
            _ => self.tier_pods(),
        }
    }

    fn selector(&mut self) -> String {
        format!("{{matchLabels: {{app: {}}}}}", self.of(&LABELS))
    }

    fn peer(&mut self, (v4, v6): (bool, bool)) -> String {
        match self.below(8) {
            0 => String::new(),
            1 | 2 => format!("{{podSelector: {}}}", self.selector()),
            3 | 4 => format!("{{namespaceSelector: {{}}, podSelector: {}}}", self.selector()),
            5 if v4 => "{ipBlock: {cidr: 0.0.0.0/0, except: [8.0.0.0/8]}}".to_string(),
            6 if v4 => "{ipBlock: {cidr: 10.240.0.0/13}}".to_string(),
            5 if v6 => "{ipBlock: {cidr: \"::/0\", except: [\"2001:db8:8::/48\"]}}".to_string(),
            _ if v6 => "{ipBlock: {cidr: \"fd00:10::/32\"}}".to_string(),
            _ => "{ipBlock: {cidr: 203.0.113.0/24}}".to_string(),
        }
    }

    fn ports(&mut self) -> String {
        match self.below(5) {
            0 => String::new(),
            1 => "{port: web}".to_string(),
            2 => self.of(&["{port: 53, protocol: UDP}", "{port: 80, protocol: SCTP}"]).to_string(),
            3 => "{port: 79, endPort: 8080}".to_string(),
            _ => "{protocol: TCP}".to_string(),
        }
    }

    /// Has the rules of some pods not fit into their node's table.
    pub(crate) fn leave_out(&mut self, plan: &mut NodePlan) {
        let (v4, v6) = (plan.rows.v4.endpoints.values_mut(), plan.rows.v6.endpoints.values_mut());
        for endpoint in v4.chain(v6) {
            if self.one_in(8) {
                endpoint.flags |= Endpoint::INCOMPLETE;
            }
        }
    }

    /// Room in the tables that the path writes to: for most of what a run brings, or for little.
    pub(crate) fn capacities(&mut self) -> Capacities {
        let mut capacities = Capacities::default();
        for (table, plenty, little) in
            [("conntrack", 600, 24), ("masquerades", 300, 4), ("fragments", 64, 3), ("affinities", 32, 2)]
        {
            for table in [table.to_owned(), format!("{table}_v6")] {
                let rows = if self.one_in(3) { little } else { plenty };
                capacities.set(&table, rows).expect("a table");
            }
        }
        capacities
    }
}
