//! Rows against the text: small clusters drawn by lot, every flow judged by the plainest reading of the
//! policies and by the rows that were planned.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::*;
use crate::model::{
    Action, ClusterPolicy, IpBlocks, Kind, Labels, PodPeer, Tier, TierPeer, TierPort, TierRule,
};

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
    fn label_selector(&mut self) -> LabelSelector {
        serde_json::from_value(self.selector()).expect("a selector")
    }
    fn pod_peer(&mut self) -> PodPeer {
        let namespaces =
            [json!({}), json!({"matchLabels": {"team": "a"}}), json!({"matchLabels": {"team": "b"}})];
        let namespaces = serde_json::from_value(self.one(&namespaces).clone()).expect("a selector");
        PodPeer { namespaces, pods: self.label_selector() }
    }
    fn tier_rule(&mut self, direction: u8) -> TierRule {
        let networks =
            ["0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/24", "10.240.0.4/31", "203.0.113.0/25", "::/0"];
        let peer = |dice: &mut Self| match dice.below(if direction == EGRESS { 4 } else { 2 }) {
            0 | 1 => TierPeer::Pods(dice.pod_peer()),
            2 => TierPeer::Nodes(dice.label_selector()),
            _ => {
                let networks = (0..dice.below(3)).map(|_| dice.one(&networks).parse().expect("a range"));
                TierPeer::Networks(networks.collect())
            }
        };
        let ports = [
            TierPort::Protocol(Protocol::Udp),
            TierPort::Range(Protocol::Tcp, 80, 80),
            TierPort::Range(Protocol::Tcp, 79, 90),
            TierPort::Range(Protocol::Udp, 53, 53),
            TierPort::Named("http".to_owned()),
            TierPort::Named("dns".to_owned()),
        ];
        TierRule {
            name: String::new(),
            action: *self.one(&[Action::Accept, Action::Deny, Action::Pass]),
            peers: (0..self.below(3)).map(|_| peer(self)).collect(),
            ports: (!self.once_in(2)).then(|| (0..self.below(4)).map(|_| self.one(&ports).clone()).collect()),
        }
    }
    fn cluster_policy(&mut self, index: usize) -> ClusterPolicy {
        ClusterPolicy {
            kind: Kind::ClusterNetworkPolicy,
            name: format!("tier{index}"),
            tier: *self.one(&[Tier::Admin, Tier::Baseline]),
            priority: self.below(3) as i32,
            subject: self.pod_peer(),
            ingress: (0..self.below(4)).map(|_| self.tier_rule(INGRESS)).collect(),
            egress: (0..self.below(4)).map(|_| self.tier_rule(EGRESS)).collect(),
        }
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
        for node in &mut cluster.nodes {
            node.labels = [("app".to_owned(), (*self.one(&["x", "y"])).to_owned())].into();
        }
        for index in 0..[0, 0, 1, 2, 4][self.below(5)] {
            let policy = self.cluster_policy(index);
            cluster.cluster_policies.push(policy);
        }
        cluster.cluster_policies.sort_by_key(|policy| (policy.tier, policy.priority));
        if self.once_in(3) {
            cluster.settings.policies.ip_blocks = IpBlocks::Outside;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    NotIsolated,
    AllowedBy(RuleName),
    /// Something judges it, and nothing denies it.
    NotDenied,
    DeniedBy(RuleName),
    /// By NetworkPolicies that do not allow it.
    Denied,
}

pub(super) struct Text<'a>(pub(super) &'a Cluster);

impl Text<'_> {
    pub(super) fn said(&self, pod: &Pod, direction: u8, other: IpAddr, target: (u8, u16)) -> Said {
        if let Some(said) = self.tier(Tier::Admin, (pod, direction), other, target) {
            return said;
        }
        let network = self.network(pod, direction, other, target);
        if network != Said::NotIsolated {
            return network;
        }
        if let Some(said) = self.tier(Tier::Baseline, (pod, direction), other, target) {
            return said;
        }
        let judging = |policy: &&ClusterPolicy| {
            let rules = if direction == INGRESS { &policy.ingress } else { &policy.egress };
            self.is_named(&policy.subject, pod) && !rules.is_empty()
        };
        if self.0.cluster_policies.iter().any(|policy| judging(&policy)) {
            Said::NotDenied
        } else {
            Said::NotIsolated
        }
    }

    /// What a tier of policies of the whole cluster says; `None` if nothing, or if it passes.
    fn tier(
        &self,
        tier: Tier,
        (pod, direction): (&Pod, u8),
        other: IpAddr,
        target: (u8, u16),
    ) -> Option<Said> {
        for policy in self.0.cluster_policies.iter().filter(|policy| policy.tier == tier) {
            if !self.is_named(&policy.subject, pod) {
                continue;
            }
            let ingress = direction == INGRESS;
            let (word, rules) =
                if ingress { ("ingress", &policy.ingress) } else { ("egress", &policy.egress) };
            for (index, rule) in rules.iter().enumerate() {
                let asked = if ingress { Some(pod) } else { self.pod_at(other) };
                let port = |port: &TierPort| is_tier_port(port, asked, target);
                let matches = rule.peers.iter().any(|peer| self.is_tier_peer(peer, other))
                    && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(port));
                if !matches {
                    continue;
                }
                let policy = format!("ClusterNetworkPolicy {}", policy.name);
                let name = RuleName { policy, rule: format!("{word}[{index}]") };
                return match rule.action {
                    Action::Accept => Some(Said::AllowedBy(name)),
                    Action::Deny => Some(Said::DeniedBy(name)),
                    Action::Pass => None,
                };
            }
        }
        None
    }
    fn is_named(&self, peer: &PodPeer, pod: &Pod) -> bool {
        !pod.host_network
            && matches(&peer.namespaces, &self.0.namespaces[&pod.namespace])
            && matches(&peer.pods, &pod.labels)
    }
    fn is_tier_peer(&self, peer: &TierPeer, other: IpAddr) -> bool {
        match peer {
            TierPeer::Pods(peer) => self.pod_at(other).is_some_and(|pod| self.is_named(peer, pod)),
            TierPeer::Nodes(labels) => {
                let mut nodes = self.0.nodes.iter().filter(|node| node.addresses.contains(&other));
                nodes.any(|node| matches(labels, &node.labels))
            }
            TierPeer::Networks(networks) => networks.iter().any(|network| network.contains(&other)),
        }
    }

    /// What NetworkPolicies say.
    fn network(&self, pod: &Pod, direction: u8, other: IpAddr, target: (u8, u16)) -> Said {
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
            if self.0.settings.policies.ip_blocks == IpBlocks::Outside && self.pod_at(other).is_some() {
                return false;
            }
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

fn is_tier_port(port: &TierPort, target: Option<&Pod>, (protocol, number): (u8, u16)) -> bool {
    match port {
        TierPort::Protocol(wanted) => wanted.number() == protocol,
        TierPort::Range(wanted, first, last) => {
            wanted.number() == protocol && (first..=last).contains(&&number)
        }
        TierPort::Named(name) => target.is_some_and(|pod| {
            let mut ports = pod.ports.iter().filter(|port| port.name.as_ref() == Some(name));
            ports.any(|port| port.port == number && port.protocol.number() == protocol)
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
                        Judged::NotIsolated => Said::NotIsolated,
                        Judged::Allowed(0) => Said::NotDenied,
                        Judged::Allowed(rule) => Said::AllowedBy(plan.rules.v4[rule as usize].clone()),
                        Judged::Denied(0) => Said::Denied,
                        Judged::Denied(rule) => Said::DeniedBy(plan.rules.v4[rule as usize].clone()),
                        Judged::Closed => panic!("there is room for the rules"),
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
fn rows_say_what_the_policies_say_and_name_the_rule_that_decides() {
    let mut judgements = 0;
    for seed in 0..200 {
        judgements += compare(&Dice(seed).cluster(), seed);
    }
    assert!(judgements > 100_000, "{judgements}");
}
