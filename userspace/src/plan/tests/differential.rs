//! Rows against the text: small clusters drawn by lot, every flow judged by the plainest reading of the
//! policies and by the rows that were planned.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::*;
use crate::model::Labels;

/// Numbers by lot, the same for the same seed. Source: Steele et al., "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014 (SplitMix64).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % end as u64) as usize
    }
    /// Yes, once in `of` times.
    pub(super) fn once_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
    pub(super) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
    fn labels(&mut self) -> Vec<String> {
        let keys = ["app", "tier"].into_iter().filter(|_| !self.once_in(3)).collect::<Vec<_>>();
        keys.into_iter().map(|key| format!("{key}={}", self.one(&["x", "y", "z"]))).collect()
    }
    fn selector(&mut self) -> Value {
        let expression = |dice: &mut Self| {
            let operator = *dice.one(&["In", "NotIn", "Exists", "DoesNotExist"]);
            let values = if operator.ends_with("In") {
                vec![*dice.one(&["x", "y"]), *dice.one(&["y", "z"])]
            } else {
                vec![]
            };
            json!({"key": *dice.one(&["app", "tier", "none"]), "operator": operator, "values": values})
        };
        match self.below(4) {
            0 => json!({}),
            1 => json!({"matchLabels": {*self.one(&["app", "tier"]): *self.one(&["x", "y"])}}),
            2 => json!({"matchExpressions": [expression(self)]}),
            _ => {
                json!({"matchLabels": {"app": *self.one(&["x", "y"])}, "matchExpressions": [expression(self)]})
            }
        }
    }
    fn peer(&mut self) -> Value {
        let namespaces =
            [json!({}), json!({"matchLabels": {"team": "a"}}), json!({"matchLabels": {"team": "none"}})];
        let blocks = [
            json!({"cidr": "0.0.0.0/0"}),
            json!({"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16", "203.0.113.0/25"]}),
            json!({"cidr": "10.0.0.0/8", "except": ["10.240.0.0/29"]}),
            json!({"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24", "10.244.0.2/31"]}),
            json!({"cidr": "10.244.1.0/24"}),
            json!({"cidr": "10.240.0.5/32"}),
            json!({"cidr": "203.0.113.0/24", "except": ["203.0.113.7/32"]}),
            json!({"cidr": "::/0"}),
        ];
        match self.below(4) {
            0 => json!({"podSelector": self.selector()}),
            1 => json!({"namespaceSelector": self.one(&namespaces).clone()}),
            2 => json!({"namespaceSelector": self.one(&namespaces).clone(), "podSelector": self.selector()}),
            _ => json!({"ipBlock": self.one(&blocks).clone()}),
        }
    }
    fn rule(&mut self, peers: &str) -> Value {
        let ports = [
            json!({"port": 80}),
            json!({"port": 53, "protocol": "UDP"}),
            json!({"port": 79, "endPort": 90}),
            json!({"protocol": "UDP"}),
            json!({"port": "http"}),
            json!({"port": "dns", "protocol": "UDP"}),
        ];
        let mut rule = json!({});
        if !self.once_in(4) {
            rule[peers] = (0..self.below(3)).map(|_| self.peer()).collect();
        }
        if !self.once_in(3) {
            rule["ports"] = (0..self.below(4)).map(|_| self.one(&ports).clone()).collect();
        }
        rule
    }
    fn spec(&mut self) -> Value {
        let mut spec = json!({"podSelector": self.selector()});
        let types = [json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"]), json!([])];
        if !self.once_in(3) {
            spec["policyTypes"] = self.one(&types).clone();
        }
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            if !self.once_in(4) {
                spec[direction] = (0..self.below(4)).map(|_| self.rule(peers)).collect();
            }
        }
        spec
    }
    fn ports(&mut self) -> Vec<ContainerPort> {
        let http = port("http", *self.one(&[80, 81, 8080]));
        let dns = ContainerPort { protocol: Protocol::Udp, ..port("dns", *self.one(&[53, 80])) };
        [http, dns].into_iter().filter(|_| self.once_in(2)).collect()
    }
    pub(super) fn cluster(&mut self) -> Cluster {
        let mut cluster = cluster(3);
        for index in 0..self.below(9) {
            let id = format!("{}/p{index}", self.one(&["a", "b"]));
            let node = self.below(3);
            let host_network = self.once_in(8);
            // Now and then in another node's range.
            let range = if self.once_in(6) { self.below(3) } else { node };
            let address = if host_network {
                format!("10.240.0.{}", node + 4)
            } else {
                format!("10.244.{range}.{}", index + 1)
            };
            let labels = self.labels();
            let labels: Vec<_> = labels.iter().map(String::as_str).collect();
            pod(&mut cluster, &id, (&format!("n{}", node + 1), &address), &labels);
            cluster.pods[index].host_network = host_network;
            cluster.pods[index].ports = self.ports();
        }
        for index in 0..self.below(6) {
            let id = format!("{}/policy{index}", self.one(&["a", "b"]));
            policy(&mut cluster, &id, self.spec());
        }
        for index in 0..self.below(4) {
            let count = self.below(5);
            let backends: Vec<_> =
                (0..count).map(|place| format!("10.244.0.{place}:{}", 80 + self.below(2))).collect();
            let backends: Vec<_> = backends.iter().map(String::as_str).collect();
            service(&mut cluster, &format!("10.96.0.{index}"), 80, &backends);
        }
        cluster
    }
}

/// What the policies say, read as they stand.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    NotIsolated,
    AllowedBy(RuleName),
    Denied,
}

struct Text<'a>(&'a Cluster);

impl Text<'_> {
    fn said(&self, pod: &Pod, direction: u8, other: IpAddr, target: (u8, u16)) -> Said {
        let mut said = Said::NotIsolated;
        for policy in &self.0.policies {
            let spec = policy.spec.clone().unwrap_or_default();
            let selector = spec.pod_selector.clone().unwrap_or_default();
            let namespace = policy.metadata.namespace.clone().unwrap_or_default();
            if pod.namespace != namespace || !matches(&selector, &pod.labels) || !isolates(policy, direction)
            {
                continue;
            }
            if said == Said::NotIsolated {
                said = Said::Denied;
            }
            let ingress = spec.ingress.iter().flatten().map(|rule| ("ingress", &rule.from, &rule.ports));
            let egress = spec.egress.iter().flatten().map(|rule| ("egress", &rule.to, &rule.ports));
            let rules: Vec<_> = if direction == INGRESS { ingress.collect() } else { egress.collect() };
            for (index, (word, peers, ports)) in rules.into_iter().enumerate() {
                let peers = peers.clone().unwrap_or_default();
                let ports = ports.clone().unwrap_or_default();
                let peer = peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer, &namespace, other));
                let asked = if direction == INGRESS { Some(pod) } else { self.pod_at(other) };
                let port = ports.is_empty() || ports.iter().any(|port| is_port(port, asked, target));
                if said == Said::Denied && peer && port {
                    let name = policy.metadata.name.clone().unwrap_or_default();
                    let policy = format!("{namespace}/{name}");
                    said = Said::AllowedBy(RuleName { policy, rule: format!("{word}[{index}]") });
                }
            }
        }
        said
    }
    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.0.pods.iter().find(|pod| pod.address() == address && !pod.host_network)
    }
    fn is_peer(&self, peer: &NetworkPolicyPeer, namespace: &str, other: IpAddr) -> bool {
        if let Some(block) = &peer.ip_block {
            let holds =
                |text: &String| text.parse::<ipnet::IpNet>().is_ok_and(|range| range.contains(&other));
            return holds(&block.cidr) && !block.except.iter().flatten().any(holds);
        }
        let Some(pod) = self.pod_at(other) else { return false };
        let in_namespace = match &peer.namespace_selector {
            Some(selector) => matches(selector, &self.0.namespaces[&pod.namespace]),
            None => pod.namespace == namespace,
        };
        in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| matches(selector, &pod.labels))
    }
}

fn isolates(policy: &NetworkPolicy, direction: u8) -> bool {
    let spec = policy.spec.clone().unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    if direction == INGRESS {
        types.is_empty() || types.iter().any(|word| word == "Ingress")
    } else {
        types.iter().any(|word| word == "Egress")
            || types.is_empty() && spec.egress.is_some_and(|rules| !rules.is_empty())
    }
}

fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let label = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    selector.match_labels.iter().flatten().all(label)
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = labels.get(&expression.key);
            let listed =
                value.is_some_and(|value| expression.values.iter().flatten().any(|other| other == value));
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

fn is_port(port: &NetworkPolicyPort, target: Option<&Pod>, (protocol, number): (u8, u16)) -> bool {
    let wanted = if port.protocol.as_deref() == Some("UDP") { UDP } else { TCP };
    wanted == protocol
        && match &port.port {
            None => true,
            Some(IntOrString::Int(first)) => {
                (*first..=port.end_port.unwrap_or(*first)).contains(&number.into())
            }
            Some(IntOrString::String(name)) => target.is_some_and(|pod| {
                pod.ports.iter().any(|port| {
                    port.name.as_ref() == Some(name)
                        && port.port == number
                        && port.protocol.number() == protocol
                })
            }),
        }
}

/// Every flow of the cluster that is worth asking about, and what the rows say of it.
fn compare(cluster: &Cluster, seed: u64) -> usize {
    let mut others: Vec<IpAddr> = cluster.pods.iter().map(|pod| pod.address()).collect();
    others.extend(cluster.nodes.iter().map(|node| node.address()));
    others
        .extend(["10.244.0.3", "10.244.9.9", "10.9.9.9", "203.0.113.7", "203.0.113.200", "8.8.8.8"].map(ip));
    let targets =
        [(TCP, 78), (TCP, 79), (TCP, 80), (TCP, 90), (TCP, 91), (TCP, 8080), (UDP, 53), (UDP, 80), (1, 0)];
    let mut judgements = 0;
    for node in &cluster.nodes {
        let plan = planned(cluster, &node.name);
        for pod in cluster.pods.iter().filter(|pod| pod.node == node.name && !pod.host_network) {
            for (direction, other) in
                [INGRESS, EGRESS].into_iter().flat_map(|way| others.iter().map(move |it| (way, *it)))
            {
                for target in targets {
                    let own = v4(&pod.address().to_string());
                    let said = match judged(&plan.rows.v4, own, direction, v4(&other.to_string()), target) {
                        Some(0) => Said::NotIsolated,
                        Some(rule) => Said::AllowedBy(plan.rules.v4[rule as usize].clone()),
                        None => Said::Denied,
                    };
                    let expected = Text(cluster).said(pod, direction, other, target);
                    let flow = format!("seed {seed}: {} direction {direction} {other} {target:?}", pod.id());
                    assert_eq!(said, expected, "{flow}");
                    judgements += 1;
                }
            }
        }
    }
    judgements
}

#[test]
fn rows_say_what_the_policies_say_and_credit_the_first_rule_that_allows() {
    let mut judgements = 0;
    for seed in 0..150 {
        judgements += compare(&Dice(seed).cluster(), seed);
    }
    assert!(judgements > 100_000, "{judgements}");
}
