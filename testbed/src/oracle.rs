//! Who should reach whom: NetworkPolicy as its text says, judged afresh for every flow.
//!
//! Written to be checked against the text and for nothing else: no tables, no identities, no order. It
//! shares no code with the planner, so that the two are two readings of one text.
//!
//! A flow is judged in this order; the numbers come back in the code.
//!
//! 1. A Service is only an address, and a port of a node may be: what stands behind is judged ([`service`]).
//!    Policies see the flow after translation.
//! 2. A pod always reaches itself. By way of a Service it does where its policies allow it; where they do
//!    not, Kubernetes leaves it open.
//! 3. Egress: if any policy isolates the sending pod for egress, one rule of one of them must allow it.
//! 4. A pod's own node always reaches it.
//! 5. Ingress: if any policy isolates the receiving pod for ingress, one rule of one must allow it.
//! 6. What policies allow must still be answered: hosts outside answer where they say they listen.
//!
//! A host-network pod is its node: no policy selects it, no pod selector matches it, and an `ipBlock`
//! matches it by the node's address. An `ipBlock` matches whatever has an address inside, pods too.
//!
//! Source: the API reference of NetworkPolicy (networking.k8s.io/v1), and the page "Network Policies" of
//! the Kubernetes documentation.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{Cluster, ContainerPort, Labels, Node, Pod, Protocol, Who};

mod service;

pub use service::{Standing, standings};

/// A direction, seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Into the pod.
    Ingress,
    /// Out of the pod.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What should become of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// It is answered.
    Allow,
    /// It is dropped.
    Deny(Cause),
    /// It is refused at once.
    Reject(Refusal),
    /// Kubernetes leaves it open; the sentence says what is open about it.
    Undefined(&'static str),
}

/// Why a flow should be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// These policies isolate the pod in this direction, and no rule of them allows the flow.
    Isolated {
        /// Which way.
        direction: Direction,
        /// Whose isolation: `namespace/pod`.
        pod: String,
        /// Every policy that isolates it, `namespace/name`, in the order of the cluster's.
        policies: Vec<String>,
    },
    /// Only endpoints of the node where the flow comes in may answer, and it has none.
    NoLocalBackend,
    /// The client is in none of the ranges that the Service's load balancer is for.
    SourceRange,
}

/// Why a flow should be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It arrives where nobody listens.
    NobodyListens,
    /// The Service has no endpoint that may answer, on whichever node.
    NoBackend,
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Reject(Refusal::NobodyListens) => f.write_str("reject: nobody listens there"),
            Self::Reject(Refusal::NoBackend) => f.write_str("reject: the Service has no endpoint to answer"),
            Self::Undefined(open) => write!(f, "left open: {open}"),
            Self::Deny(Cause::NoLocalBackend) => {
                f.write_str("deny: only endpoints of the node may answer, and it has none")
            }
            Self::Deny(Cause::SourceRange) => {
                f.write_str("deny: the client is in none of the Service's source ranges")
            }
            Self::Deny(Cause::Isolated { direction, pod, policies }) => {
                write!(
                    f,
                    "deny: no rule allows it, {direction} of {pod} is isolated by {}",
                    policies.join(", ")
                )
            }
        }
    }
}

/// What should become of a flow from `from` to `port` of `to`.
///
/// Pods and nodes are taken to listen wherever they are dialled: a pod's declared ports are information,
/// and do not keep it from listening on others.
pub fn expect(cluster: &Cluster, from: &Who, to: &Who, port: u16, protocol: Protocol) -> Expectation {
    let flow = Flow { cluster, port, protocol };
    let source = match party(cluster, from) {
        Some(source) => source,
        None => return Expectation::Undefined("the cluster has no such source"),
    };
    if let Who::Service(id) | Who::Frontend(id, _) = to
        && cluster.service(id).is_none()
    {
        return Expectation::Undefined("the cluster has no such Service");
    }
    let Ok(dialled) = cluster.find(to).map(|found| found.address()) else {
        return Expectation::Undefined("the cluster has no such target");
    };
    // 1.
    match (service::frontend(cluster, dialled, port, protocol), party(cluster, to)) {
        (Some(frontend), _) => frontend.expect(flow, source),
        (None, Some(target)) => flow.expect_party(source, target),
        (None, None) => Expectation::Undefined("the Service has no such port"),
    }
}

/// Whether a Service, or a pod, stands behind this address and port.
pub fn is_frontend(cluster: &Cluster, address: IpAddr, port: u16, protocol: Protocol) -> bool {
    service::frontend(cluster, address, port, protocol).is_some()
}

/// One end of a flow, as policies tell them apart.
#[derive(Clone, Copy)]
enum Party<'a> {
    /// A pod with an address of its own.
    Pod(&'a Pod),
    /// A node, which is also every host-network pod on it.
    Node(&'a Node),
    /// An address that is nobody's in the cluster, and the ports it says it listens on (none: on all).
    Outside(IpAddr, &'a [ContainerPort]),
}

impl Party<'_> {
    /// Whether both are the same pod.
    fn is(self, other: Party<'_>) -> bool {
        matches!((self, other), (Self::Pod(one), Party::Pod(other)) if one.address() == other.address())
    }

    fn address(self) -> IpAddr {
        match self {
            Self::Pod(pod) => pod.address(),
            Self::Node(node) => node.address(),
            Self::Outside(address, _) => address,
        }
    }
}

fn party<'a>(cluster: &'a Cluster, end: &Who) -> Option<Party<'a>> {
    match end {
        Who::Pod(id) => cluster.pod(id).and_then(|pod| pod_party(cluster, pod)),
        Who::Node(name) => node_named(cluster, name).map(Party::Node),
        Who::External(name) => {
            let external = cluster.externals.iter().find(|external| external.name == *name)?;
            Some(Party::Outside(external.address, &external.ports))
        }
        Who::Service(_) | Who::Frontend(..) => None,
    }
}

/// A host-network pod is its node.
fn pod_party<'a>(cluster: &'a Cluster, pod: &'a Pod) -> Option<Party<'a>> {
    if pod.host_network { node_named(cluster, &pod.node).map(Party::Node) } else { Some(Party::Pod(pod)) }
}

fn node_named<'a>(cluster: &'a Cluster, name: &str) -> Option<&'a Node> {
    cluster.nodes.iter().find(|node| node.name == name)
}

/// Whoever has the address.
fn party_at(cluster: &Cluster, address: IpAddr) -> Party<'_> {
    if let Some(node) = cluster.nodes.iter().find(|node| node.address() == address) {
        return Party::Node(node);
    }
    if let Some(pod) = cluster.pods.iter().find(|pod| pod.address() == address && !pod.host_network) {
        return Party::Pod(pod);
    }
    let external = cluster.externals.iter().find(|external| external.address == address);
    Party::Outside(address, external.map_or(&[], |external| &external.ports))
}

/// What is asked of every policy: the cluster, and where the flow goes.
#[derive(Clone, Copy)]
struct Flow<'a> {
    cluster: &'a Cluster,
    port: u16,
    protocol: Protocol,
}

impl<'a> Flow<'a> {
    fn expect_party(self, source: Party<'_>, target: Party<'a>) -> Expectation {
        // 2.
        if source.is(target) { Expectation::Allow } else { self.judge(source, target) }
    }

    fn judge(self, source: Party<'_>, target: Party<'a>) -> Expectation {
        // 3.
        if let Party::Pod(sender) = source
            && let Err(cause) = self.permitted(Direction::Egress, sender, target, target)
        {
            if let Party::Node(node) = target
                && node.name == sender.node
            {
                let open = "the documentation exempts a pod's own node from egress rules, the API reference does not";
                return Expectation::Undefined(open);
            }
            return Expectation::Deny(cause);
        }
        if let Party::Pod(receiver) = target {
            // 4.
            let own_node = matches!(source, Party::Node(node) if node.name == receiver.node);
            // 5.
            if !own_node && let Err(cause) = self.permitted(Direction::Ingress, receiver, source, target) {
                return Expectation::Deny(cause);
            }
        }
        // 6.
        if let Party::Outside(_, listening) = target
            && !listening.is_empty()
            && !listening.iter().any(|on| on.port == self.port && on.protocol == self.protocol)
        {
            return Expectation::Reject(Refusal::NobodyListens);
        }
        Expectation::Allow
    }

    /// Whether `pod`'s policies let it exchange this flow with `peer`. Without a policy that isolates it
    /// in this direction they do; otherwise a rule must.
    fn permitted(
        self,
        direction: Direction,
        pod: &Pod,
        peer: Party<'_>,
        target: Party<'_>,
    ) -> Result<(), Cause> {
        let isolating: Vec<&NetworkPolicy> =
            self.cluster.policies.iter().filter(|policy| isolates(policy, direction, pod)).collect();
        // Policies add up: one rule of any of them is enough.
        if isolating.is_empty()
            || isolating.iter().any(|policy| self.allowed_by(policy, direction, peer, target))
        {
            return Ok(());
        }
        let policies = isolating.into_iter().map(id).collect();
        Err(Cause::Isolated { direction, pod: pod.id(), policies })
    }

    /// Whether some rule of the policy matches the peer and the port both.
    fn allowed_by(
        self,
        policy: &NetworkPolicy,
        direction: Direction,
        peer: Party<'_>,
        target: Party<'_>,
    ) -> bool {
        let home = namespace(policy);
        rules(policy, direction).into_iter().any(|Rule { peers, ports }| {
            // An empty list restricts nothing, as a missing one.
            (peers.is_empty() || peers.iter().any(|one| self.peer_matches(one, home, peer)))
                && (ports.is_empty() || ports.iter().any(|one| self.port_matches(one, target)))
        })
    }

    /// Whether `peer` is one the rule speaks of. `home` is the policy's namespace.
    fn peer_matches(self, rule: &NetworkPolicyPeer, home: &str, peer: Party<'_>) -> bool {
        if let Some(block) = &rule.ip_block {
            return block_holds(block, peer.address());
        }
        // Selectors select pods, and nothing else.
        let Party::Pod(pod) = peer else { return false };
        let in_namespace = match &rule.namespace_selector {
            Some(selector) => {
                self.cluster.namespaces.get(&pod.namespace).is_some_and(|labels| selects(selector, labels))
            }
            // Without one, the policy's own namespace is meant.
            None => pod.namespace == home,
        };
        match (&rule.pod_selector, &rule.namespace_selector) {
            (Some(selector), _) => in_namespace && selects(selector, &pod.labels),
            (None, Some(_)) => in_namespace,
            // A peer that says nothing is not valid, and is nobody.
            (None, None) => false,
        }
    }

    /// Whether the flow goes to a port the rule speaks of. Names are the receiving pod's own.
    fn port_matches(self, rule: &NetworkPolicyPort, target: Party<'_>) -> bool {
        let protocol = rule.protocol.as_deref().unwrap_or("TCP");
        if protocol != self.protocol.to_string() {
            return false;
        }
        match &rule.port {
            None => true,
            Some(IntOrString::Int(first)) => {
                (*first..=rule.end_port.unwrap_or(*first)).contains(&i32::from(self.port))
            }
            Some(IntOrString::String(name)) => match target {
                Party::Pod(pod) => pod.ports.iter().any(|port| {
                    port.name.as_ref() == Some(name)
                        && port.protocol == self.protocol
                        && port.port == self.port
                }),
                // Nodes and hosts outside have no named ports.
                Party::Node(_) | Party::Outside(..) => false,
            },
        }
    }
}

/// Whether the policy selects the pod, and limits this direction.
pub fn isolates(policy: &NetworkPolicy, direction: Direction, pod: &Pod) -> bool {
    let Some(spec) = &policy.spec else {
        return false;
    };
    namespace(policy) == pod.namespace
        // A missing selector is an empty one, which selects every pod of the namespace.
        && spec.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
        && limits(spec, direction)
}

/// `policyTypes`. Where it is missing or empty: ingress always, egress if there are egress rules.
fn limits(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    match (spec.policy_types.as_deref().unwrap_or_default(), direction) {
        ([], Direction::Ingress) => true,
        ([], Direction::Egress) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        (types, Direction::Ingress) => types.iter().any(|one| one == "Ingress"),
        (types, Direction::Egress) => types.iter().any(|one| one == "Egress"),
    }
}

/// A rule of either direction.
struct Rule<'a> {
    /// `from` or `to`.
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<Rule<'_>> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    match direction {
        Direction::Ingress => (spec.ingress.iter().flatten())
            .map(|rule| Rule {
                peers: rule.from.as_deref().unwrap_or_default(),
                ports: rule.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
        Direction::Egress => (spec.egress.iter().flatten())
            .map(|rule| Rule {
                peers: rule.to.as_deref().unwrap_or_default(),
                ports: rule.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
    }
}

/// Whether all of a selector's requirements hold; one without any selects everything.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let mut equal = selector.match_labels.iter().flatten();
    let mut required = selector.match_expressions.iter().flatten();
    equal.all(|(key, value)| labels.get(key) == Some(value)) && required.all(|one| holds(one, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = |value: &String| requirement.values.iter().flatten().any(|one| one == value);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        // Also where the key is missing.
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // There is no other operator.
        _ => false,
    }
}

/// Whether the address lies in the block, and in none of its exceptions.
fn block_holds(block: &IPBlock, address: IpAddr) -> bool {
    let inside = |range: &str| range.parse::<IpNet>().is_ok_and(|range| range.contains(&address));
    inside(&block.cidr) && !block.except.iter().flatten().any(|range| inside(range))
}

/// The namespace a policy is in; `default` where it says none.
fn namespace(policy: &NetworkPolicy) -> &str {
    policy.metadata.namespace.as_deref().unwrap_or("default")
}

/// `namespace/name`.
fn id(policy: &NetworkPolicy) -> String {
    format!("{}/{}", namespace(policy), policy.metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    //! The rules of NetworkPolicy, one sentence each.
    //!
    //! The stage: namespaces `shop` and `bank`; node `n1` with `shop/web`, `shop/api` and the host-network
    //! pod `shop/agent`; node `n2` with `bank/till`; `ext:world` outside, which answers everywhere.

    use super::*;
    use userspace::model::{Backend, Endpoint, External, Service, ServicePort};

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn container_port(name: &str, port: u16, protocol: Protocol) -> ContainerPort {
        ContainerPort { name: Some(name.to_owned()), port, protocol }
    }

    fn pod(id: &str, node: &str, address: &str, pairs: &[(&str, &str)]) -> Pod {
        let (namespace, name) = id.split_once('/').unwrap();
        Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: labels(pairs),
            node: node.to_owned(),
            addresses: vec![address.parse().unwrap()],
            host_network: false,
            ports: vec![container_port("http", 80, Protocol::Tcp), container_port("dns", 53, Protocol::Udp)],
            ready: true,
            ..Pod::default()
        }
    }

    fn node(name: &str, address: &str) -> Node {
        Node {
            name: name.to_owned(),
            labels: Labels::new(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: Vec::new(),
        }
    }

    /// The stage, under these policies: YAML documents, each the `metadata` and `spec` of one.
    pub(super) fn cluster(policies: &[&str]) -> Cluster {
        let agent = Pod { host_network: true, ..pod("shop/agent", "n1", "10.240.0.4", &[("app", "agent")]) };
        let namespaces = [("shop", "retail"), ("bank", "money")].map(|(name, team)| {
            (name.to_owned(), labels(&[("kubernetes.io/metadata.name", name), ("team", team)]))
        });
        let world =
            External { name: "world".to_owned(), address: "203.0.113.7".parse().unwrap(), ports: Vec::new() };
        Cluster {
            namespaces: namespaces.into(),
            nodes: vec![node("n1", "10.240.0.4"), node("n2", "10.240.0.5")],
            pods: vec![
                pod("shop/web", "n1", "10.244.1.2", &[("app", "web"), ("tier", "front")]),
                pod("shop/api", "n1", "10.244.1.3", &[("app", "api")]),
                agent,
                pod("bank/till", "n2", "10.244.2.2", &[("app", "web")]),
            ],
            externals: vec![world],
            policies: policies.iter().map(|text| serde_saphyr::from_str(text).unwrap()).collect(),
            ..Cluster::default()
        }
    }

    /// A policy in `shop` with this `spec`, as YAML in braces.
    pub(super) fn policy(spec: &str) -> String {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
        )
    }

    fn who(text: &str) -> Who {
        text.parse::<Endpoint>().unwrap().who
    }

    pub(super) fn word(
        cluster: &Cluster,
        from: &str,
        to: &str,
        port: u16,
        protocol: Protocol,
    ) -> &'static str {
        match expect(cluster, &who(from), &who(to), port, protocol) {
            Expectation::Allow => "allow",
            Expectation::Deny(_) => "deny",
            Expectation::Reject(_) => "reject",
            Expectation::Undefined(_) => "open",
        }
    }

    /// Every `(from, to)`, at 80/tcp, under one policy in `shop`, comes out as it says.
    #[track_caller]
    fn judge(spec: &str, flows: &[(&str, &str, &str)]) {
        let cluster = cluster(&[&policy(spec)]);
        for (from, to, expected) in flows {
            assert_eq!(word(&cluster, from, to, 80, Protocol::Tcp), *expected, "{from} -> {to} under {spec}");
        }
    }

    /// The same flow, `bank/till` to `shop/web`, at several ports.
    #[track_caller]
    fn judge_ports(spec: &str, ports: &[(u16, Protocol, &str)]) {
        let cluster = cluster(&[&policy(spec)]);
        for (port, protocol, expected) in ports {
            assert_eq!(
                word(&cluster, "bank/till", "shop/web", *port, *protocol),
                *expected,
                "{port}/{protocol} under {spec}"
            );
        }
    }

    use Protocol::{Sctp, Tcp, Udp};

    #[test]
    fn without_policies_everybody_reaches_everybody() {
        let cluster = cluster(&[]);
        let ends = ["shop/web", "shop/api", "shop/agent", "bank/till", "node:n1", "node:n2", "ext:world"];
        for from in ends {
            for to in ends {
                assert_eq!(word(&cluster, from, to, 80, Tcp), "allow", "{from} -> {to}");
            }
        }
    }

    #[test]
    fn a_policy_without_rules_isolates_the_pods_it_selects() {
        judge(
            "{podSelector: {matchLabels: {app: web}}}",
            &[
                ("bank/till", "shop/web", "deny"),
                ("bank/till", "shop/api", "allow"),
                ("shop/web", "bank/till", "allow"),
            ],
        );
    }

    #[test]
    fn a_policy_selects_only_pods_of_its_own_namespace() {
        judge("{podSelector: {matchLabels: {app: web}}}", &[("shop/web", "bank/till", "allow")]);
    }

    #[test]
    fn an_empty_or_missing_pod_selector_selects_the_whole_namespace() {
        for spec in ["{podSelector: {}}", "{policyTypes: [Ingress]}"] {
            judge(
                spec,
                &[
                    ("bank/till", "shop/web", "deny"),
                    ("bank/till", "shop/api", "deny"),
                    ("shop/api", "bank/till", "allow"),
                ],
            );
        }
    }

    #[test]
    fn without_policy_types_ingress_is_isolated_and_egress_only_if_it_has_rules() {
        judge("{podSelector: {}}", &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "allow")]);
        judge(
            "{podSelector: {}, egress: []}",
            &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "allow")],
        );
        judge(
            "{podSelector: {}, policyTypes: [], egress: [{to: [{podSelector: {}}]}]}",
            &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "deny")],
        );
    }

    #[test]
    fn policy_types_decide_even_against_the_rules_that_are_there() {
        judge(
            "{podSelector: {}, policyTypes: [Egress], ingress: []}",
            &[("bank/till", "shop/web", "allow"), ("shop/web", "bank/till", "deny")],
        );
        judge(
            "{podSelector: {}, policyTypes: [Ingress], egress: [{to: [{podSelector: {}}]}]}",
            &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "allow")],
        );
        judge(
            "{podSelector: {}, policyTypes: [Ingress, Egress]}",
            &[("bank/till", "shop/web", "deny"), ("shop/web", "bank/till", "deny")],
        );
    }

    #[test]
    fn an_empty_rule_allows_everything_and_an_empty_list_of_rules_nothing() {
        let from_all = [("bank/till", "shop/web"), ("ext:world", "shop/web"), ("node:n2", "shop/web")];
        for (rules, expected) in [("[{}]", "allow"), ("[{from: [], ports: []}]", "allow"), ("[]", "deny")] {
            let flows = from_all.map(|(from, to)| (from, to, expected));
            judge(&format!("{{podSelector: {{}}, ingress: {rules}}}"), &flows);
        }
    }

    #[test]
    fn a_pod_selector_alone_means_the_policys_own_namespace() {
        judge(
            "{podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
            &[("shop/web", "shop/api", "allow"), ("bank/till", "shop/api", "deny")],
        );
    }

    #[test]
    fn an_empty_pod_selector_as_peer_means_every_pod_of_the_own_namespace() {
        judge(
            "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
            &[
                ("shop/web", "shop/api", "allow"),
                ("bank/till", "shop/api", "deny"),
                ("ext:world", "shop/api", "deny"),
            ],
        );
    }

    #[test]
    fn a_namespace_selector_alone_means_every_pod_of_those_namespaces() {
        judge(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: money}}}]}]}",
            &[
                ("bank/till", "shop/web", "allow"),
                ("shop/api", "shop/web", "deny"),
                ("ext:world", "shop/web", "deny"),
            ],
        );
        judge(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}",
            &[
                ("bank/till", "shop/web", "allow"),
                ("shop/api", "shop/web", "allow"),
                ("ext:world", "shop/web", "deny"),
            ],
        );
    }

    #[test]
    fn both_selectors_in_one_peer_must_match_and_in_two_peers_either() {
        let namespace = "namespaceSelector: {matchLabels: {team: money}}";
        let pods = "podSelector: {matchLabels: {app: api}}";
        judge(
            &format!("{{podSelector: {{}}, ingress: [{{from: [{{{namespace}, {pods}}}]}}]}}"),
            &[("bank/till", "shop/web", "deny"), ("shop/api", "shop/web", "deny")],
        );
        judge(
            &format!("{{podSelector: {{}}, ingress: [{{from: [{{{namespace}}}, {{{pods}}}]}}]}}"),
            &[
                ("bank/till", "shop/web", "allow"),
                ("shop/api", "shop/web", "allow"),
                ("shop/web", "shop/api", "deny"),
            ],
        );
    }

    #[test]
    fn expressions_of_a_selector_hold_as_their_operators_say() {
        let cases = [
            ("{key: app, operator: In, values: [web, other]}", ["allow", "deny"]),
            ("{key: app, operator: NotIn, values: [web]}", ["deny", "allow"]),
            // The key is missing on shop/api.
            ("{key: tier, operator: In, values: [front]}", ["allow", "deny"]),
            ("{key: tier, operator: NotIn, values: [front]}", ["deny", "allow"]),
            ("{key: tier, operator: NotIn, values: [back]}", ["allow", "allow"]),
            ("{key: tier, operator: Exists}", ["allow", "deny"]),
            ("{key: tier, operator: DoesNotExist}", ["deny", "allow"]),
        ];
        for (expression, [web, api]) in cases {
            let bank = policy(&format!(
                "{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{}}, podSelector: {{matchExpressions: [{expression}]}}}}]}}]}}"
            ))
            .replace("namespace: shop", "namespace: bank");
            let cluster = cluster(&[&bank]);
            assert_eq!(word(&cluster, "shop/web", "bank/till", 80, Tcp), web, "{expression}");
            assert_eq!(word(&cluster, "shop/api", "bank/till", 80, Tcp), api, "{expression}");
        }
    }

    #[test]
    fn labels_and_expressions_of_one_selector_must_all_hold() {
        let selector = "{matchLabels: {app: web}, matchExpressions: [{key: tier, operator: Exists}, {key: x, operator: DoesNotExist}]}";
        judge(
            &format!(
                "{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{}}, podSelector: {selector}}}]}}]}}"
            ),
            &[("shop/web", "shop/api", "allow"), ("bank/till", "shop/api", "deny")],
        );
    }

    #[test]
    fn namespaces_can_be_selected_by_the_label_that_is_their_name() {
        let selector =
            "{matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [bank]}]}";
        judge(
            &format!("{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {selector}}}]}}]}}"),
            &[("bank/till", "shop/web", "deny"), ("shop/api", "shop/web", "allow")],
        );
    }

    #[test]
    fn an_ip_block_matches_pods_nodes_and_hosts_outside_by_address() {
        let flows = |[pod, node, outside]: [&'static str; 3]| {
            [
                ("bank/till", "shop/web", pod),
                ("node:n2", "shop/web", node),
                ("ext:world", "shop/web", outside),
            ]
        };
        for (cidr, expected) in [
            ("10.244.2.2/32", ["allow", "deny", "deny"]),
            ("10.240.0.0/16", ["deny", "allow", "deny"]),
            ("203.0.113.0/24", ["deny", "deny", "allow"]),
            ("0.0.0.0/0", ["allow", "allow", "allow"]),
        ] {
            judge(
                &format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}]}}"),
                &flows(expected),
            );
        }
    }

    #[test]
    fn what_is_excepted_from_an_ip_block_is_not_matched_by_it() {
        let block = "{cidr: 0.0.0.0/0, except: [10.244.0.0/16, 203.0.113.7/32]}";
        let flows = [
            ("bank/till", "shop/web", "deny"),
            ("ext:world", "shop/web", "deny"),
            ("node:n2", "shop/web", "allow"),
        ];
        judge(&format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {block}}}]}}]}}"), &flows);
    }

    #[test]
    fn an_exception_of_one_block_does_not_take_from_another_rule() {
        let rules = "[{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.2.0/24]}}]}, {from: [{namespaceSelector: {matchLabels: {team: money}}}]}]";
        judge(&format!("{{podSelector: {{}}, ingress: {rules}}}"), &[("bank/till", "shop/web", "allow")]);
    }

    #[test]
    fn a_port_alone_is_tcp() {
        judge_ports(
            "{ingress: [{ports: [{port: 80}]}]}",
            &[(80, Tcp, "allow"), (80, Udp, "deny"), (81, Tcp, "deny")],
        );
    }

    #[test]
    fn a_protocol_without_a_port_is_all_its_ports() {
        judge_ports(
            "{ingress: [{ports: [{protocol: UDP}]}]}",
            &[(53, Udp, "allow"), (9, Udp, "allow"), (53, Tcp, "deny"), (53, Sctp, "deny")],
        );
        judge_ports("{ingress: [{ports: [{}]}]}", &[(1, Tcp, "allow"), (1, Udp, "deny")]);
    }

    #[test]
    fn an_end_port_closes_a_range_on_both_ends() {
        judge_ports(
            "{ingress: [{ports: [{port: 80, endPort: 90}]}]}",
            &[
                (79, Tcp, "deny"),
                (80, Tcp, "allow"),
                (90, Tcp, "allow"),
                (91, Tcp, "deny"),
                (85, Udp, "deny"),
            ],
        );
    }

    #[test]
    fn a_named_port_is_the_receiving_pods_and_of_its_protocol() {
        judge_ports(
            "{ingress: [{ports: [{port: http}, {port: dns, protocol: UDP}]}]}",
            &[
                (80, Tcp, "allow"),
                (53, Udp, "allow"),
                (80, Udp, "deny"),
                (53, Tcp, "deny"),
                (81, Tcp, "deny"),
            ],
        );
        judge_ports("{ingress: [{ports: [{port: dns}]}]}", &[(53, Tcp, "deny"), (53, Udp, "deny")]);
    }

    #[test]
    fn a_named_port_may_be_another_number_on_every_target() {
        let mut cluster = cluster(&[&policy("{policyTypes: [Egress], egress: [{ports: [{port: http}]}]}")]);
        cluster.pods[3].ports = vec![container_port("http", 8080, Tcp)];
        assert_eq!(word(&cluster, "shop/web", "shop/api", 80, Tcp), "allow");
        assert_eq!(word(&cluster, "shop/web", "bank/till", 80, Tcp), "deny");
        assert_eq!(word(&cluster, "shop/web", "bank/till", 8080, Tcp), "allow");
        assert_eq!(word(&cluster, "shop/web", "ext:world", 80, Tcp), "deny");
    }

    #[test]
    fn peers_and_ports_of_one_rule_must_both_match() {
        let rules = "[{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {}}], ports: [{port: 443}]}]";
        let cluster = cluster(&[&policy(&format!("{{podSelector: {{}}, ingress: {rules}}}"))]);
        assert_eq!(word(&cluster, "shop/api", "shop/web", 80, Tcp), "allow");
        assert_eq!(word(&cluster, "bank/till", "shop/web", 80, Tcp), "deny");
        assert_eq!(word(&cluster, "bank/till", "shop/web", 443, Tcp), "allow");
    }

    #[test]
    fn policies_that_select_one_pod_add_up() {
        let from_api = policy(
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}",
        );
        let from_bank = policy(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: money}}}]}]}",
        );
        let cluster = cluster(&[&from_api, &from_bank, &policy("{podSelector: {}}")]);
        for (from, expected) in [("shop/api", "allow"), ("bank/till", "allow"), ("ext:world", "deny")] {
            assert_eq!(word(&cluster, from, "shop/web", 80, Tcp), expected, "{from}");
        }
    }

    #[test]
    fn both_ends_must_allow_a_flow() {
        let out = policy(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: money}}}]}]}",
        );
        let closed = policy("{podSelector: {}}").replace("namespace: shop", "namespace: bank");
        let open = closed.replace("{podSelector: {}}", "{podSelector: {}, ingress: [{}]}");
        for (policies, expected) in
            [(vec![&out], "allow"), (vec![&out, &closed], "deny"), (vec![&out, &open], "allow")]
        {
            let policies: Vec<&str> = policies.into_iter().map(String::as_str).collect();
            assert_eq!(word(&cluster(&policies), "shop/web", "bank/till", 80, Tcp), expected);
        }
        // Egress refuses although ingress is open.
        assert_eq!(word(&cluster(&[&out]), "shop/web", "shop/api", 80, Tcp), "deny");
    }

    #[test]
    fn a_pod_always_reaches_itself() {
        judge("{podSelector: {}, policyTypes: [Ingress, Egress]}", &[("shop/web", "shop/web", "allow")]);
    }

    #[test]
    fn a_pods_own_node_always_reaches_it_and_another_node_does_not() {
        judge(
            "{podSelector: {}}",
            &[
                ("node:n1", "shop/web", "allow"),
                ("node:n2", "shop/web", "deny"),
                ("shop/agent", "shop/web", "allow"),
            ],
        );
    }

    #[test]
    fn the_way_out_to_the_own_node_is_left_open_where_no_rule_allows_it() {
        judge(
            "{podSelector: {}, policyTypes: [Egress]}",
            &[
                ("shop/web", "node:n1", "open"),
                ("shop/web", "shop/agent", "open"),
                ("shop/web", "node:n2", "deny"),
            ],
        );
        judge(
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.240.0.4/32}}]}]}",
            &[
                ("shop/web", "node:n1", "allow"),
                ("shop/web", "shop/agent", "allow"),
                ("shop/web", "node:n2", "deny"),
            ],
        );
    }

    #[test]
    fn no_policy_selects_a_host_network_pod() {
        judge(
            "{podSelector: {}, policyTypes: [Ingress, Egress]}",
            &[("bank/till", "shop/agent", "allow"), ("shop/agent", "bank/till", "allow")],
        );
    }

    #[test]
    fn a_host_network_pod_is_matched_as_its_node_and_not_by_selectors() {
        let select = |peer: &str| {
            policy(&format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}"))
                .replace("namespace: shop", "namespace: bank")
        };
        for (peer, expected) in [
            ("{namespaceSelector: {}, podSelector: {matchLabels: {app: agent}}}", "deny"),
            ("{namespaceSelector: {}}", "deny"),
            ("{ipBlock: {cidr: 10.240.0.4/32}}", "allow"),
        ] {
            let cluster = cluster(&[&select(peer)]);
            assert_eq!(word(&cluster, "shop/agent", "bank/till", 80, Tcp), expected, "{peer}");
        }
    }

    #[test]
    fn a_peer_that_says_nothing_is_nobody() {
        judge(
            "{podSelector: {}, ingress: [{from: [{}]}]}",
            &[("bank/till", "shop/web", "deny"), ("ext:world", "shop/web", "deny")],
        );
    }

    #[test]
    fn an_external_answers_only_where_it_says_it_listens() {
        let mut cluster = cluster(&[]);
        cluster.externals[0].ports = vec![container_port("http", 80, Tcp)];
        assert_eq!(word(&cluster, "shop/web", "ext:world", 80, Tcp), "allow");
        assert_eq!(word(&cluster, "shop/web", "ext:world", 80, Udp), "reject");
        assert_eq!(word(&cluster, "shop/web", "ext:world", 443, Tcp), "reject");
    }

    /// Service `shop/api`: 8080/tcp goes to port 80 of these addresses.
    pub(super) fn with_service(policies: &[&str], backends: &[&str]) -> Cluster {
        let backends = backends.iter().map(|address| Backend::new(address.parse().unwrap(), 80)).collect();
        let port = ServicePort { port: 8080, protocol: Tcp, backends, ..ServicePort::default() };
        let (namespace, name) = ("shop".to_owned(), "api".to_owned());
        let service = Service {
            namespace,
            name,
            addresses: vec!["10.96.0.10".parse().unwrap()],
            ports: vec![port],
            ..Service::default()
        };
        Cluster { services: vec![service], ..cluster(policies) }
    }

    #[test]
    fn a_service_is_judged_on_its_backend_and_the_backends_port() {
        let at = |port: u16| {
            policy(&format!(
                "{{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{ports: [{{port: {port}}}]}}]}}"
            ))
        };
        for (port, expected) in [(80, "allow"), (8080, "deny")] {
            let cluster = with_service(&[&at(port)], &["10.244.1.3"]);
            assert_eq!(word(&cluster, "bank/till", "svc:shop/api", 8080, Tcp), expected, "{port}");
        }
        // A rule for the virtual address itself opens nothing.
        let virtual_only = policy(
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.10/32}}]}]}",
        );
        let cluster = with_service(&[&virtual_only], &["10.244.2.2"]);
        assert_eq!(word(&cluster, "shop/web", "svc:shop/api", 8080, Tcp), "deny");
    }

    #[test]
    fn a_service_whose_backends_fare_differently_is_left_open() {
        let no_api = policy("{podSelector: {matchLabels: {app: api}}}");
        for (backends, expected) in [
            (&["10.244.1.2", "10.244.1.3"][..], "open"),
            (&["10.244.1.2"], "allow"),
            (&["10.244.1.3"], "deny"),
        ] {
            let cluster = with_service(&[&no_api], backends);
            assert_eq!(word(&cluster, "bank/till", "svc:shop/api", 8080, Tcp), expected, "{backends:?}");
        }
    }

    #[test]
    fn a_service_that_no_one_backs_refuses_and_a_port_it_lacks_is_left_open() {
        let cluster = with_service(&[], &[]);
        let dial = |port| {
            expect(&cluster, &Who::Pod("shop/web".into()), &Who::Service("shop/api".into()), port, Tcp)
        };
        assert_eq!(dial(8080), Expectation::Reject(Refusal::NoBackend));
        assert!(matches!(dial(81), Expectation::Undefined(_)));
    }

    #[test]
    fn a_pod_reaches_itself_through_its_service_and_against_its_policies_it_is_left_open() {
        let closed = policy("{podSelector: {}, policyTypes: [Ingress, Egress]}");
        for (policies, expected) in [(&[][..], "allow"), (&[closed.as_str()], "open")] {
            let cluster = with_service(policies, &["10.244.1.3"]);
            assert_eq!(word(&cluster, "shop/api", "svc:shop/api", 8080, Tcp), expected);
        }
    }

    #[test]
    fn a_cluster_ip_dialled_from_outside_is_left_open() {
        let cluster = with_service(&[], &["10.244.1.3"]);
        assert_eq!(word(&cluster, "ext:world", "svc:shop/api", 8080, Tcp), "open");
    }

    #[test]
    fn a_service_backed_by_a_node_or_a_host_outside_is_judged_by_their_addresses() {
        let block = policy(
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
        );
        for (backend, expected) in
            [("203.0.113.7", "allow"), ("10.240.0.5", "deny"), ("198.51.100.1", "deny")]
        {
            let cluster = with_service(&[&block], &[backend]);
            assert_eq!(word(&cluster, "shop/web", "svc:shop/api", 8080, Tcp), expected, "{backend}");
        }
    }

    #[test]
    fn a_denial_names_the_direction_and_every_policy_that_isolates() {
        let one = policy("{podSelector: {}}");
        let other = one.replace("name: p", "name: q");
        let cluster = cluster(&[&one, &other]);
        let expectation =
            expect(&cluster, &Who::Pod("bank/till".into()), &Who::Pod("shop/web".into()), 80, Tcp);
        assert_eq!(
            expectation.to_string(),
            "deny: no rule allows it, ingress of shop/web is isolated by shop/p, shop/q"
        );
    }
}
