//! Why a flow is denied that no rule allows: the rule that came nearest to it, and what it lacks.
//!
//! Reads policies as they were written, for people: what is denied, and by whom, is not decided here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::engine::emulator::matrix::{Direction, Why};
use crate::model::{
    Action, Cluster, ClusterPolicy, ContainerPort, IpBlocks, Labels, Node, Pod, PodPeer, Port, Tier,
    TierPeer, TierPort, Who,
};
use crate::plan::RuleName;

/// A rule that would have allowed a flow, were it not for this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// The rule.
    pub rule: RuleName,
    /// What keeps it from matching, a sentence without its end each: at least one.
    pub lacks: Vec<String>,
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RuleName { policy, rule } = &self.rule;
        write!(f, "nearest: {policy} {rule} would allow it, but {}", self.lacks.join(", and "))
    }
}

/// The rule that came nearest to allowing a flow for the pod at one of its ends, which denies it for this reason:
/// of all rules that would have been asked before, the one that lacks least, and of several the first. None if there
/// is none.
///
/// Ends are those that policies see: after translation.
pub fn nearest(
    cluster: &Cluster,
    (from, to): (&Who, &Who),
    port: Port,
    direction: Direction,
    why: &Why,
) -> Option<Nearest> {
    let (from, to) = (Party::of(cluster, from)?, Party::of(cluster, to)?);
    let (judged, peer) = if direction == Direction::Egress { (from, to) } else { (to, from) };
    let judged = judged.pod()?;
    let flow = Flow { cluster, peer, target: to, port };
    let of_tier = |tier: Tier| {
        let policies = cluster.cluster_policies.iter().filter(move |policy| policy.tier == tier);
        policies.flat_map(move |policy| flow.of_tier(policy, judged, direction))
    };
    let network = cluster.policies.iter().flat_map(|policy| flow.of_policy(policy, judged, direction));
    let denier = if let Why::DeniedBy(rule) = why { Some(rule) } else { None };
    let asked = of_tier(Tier::Admin).chain(network.map(|near| (Action::Accept, near)));
    let asked = asked.chain(of_tier(Tier::Baseline)).take_while(|(_, near)| Some(&near.rule) != denier);
    // Baseline policies are not asked where a NetworkPolicy isolates the pod.
    let unheard = |near: &Nearest| {
        let of = |policy: &&ClusterPolicy| near.rule.policy == name(policy) && policy.tier == Tier::Baseline;
        denier.is_none() && cluster.cluster_policies.iter().any(|policy| of(&policy))
    };
    let could = asked.filter(|(action, near)| *action == Action::Accept && !near.lacks.is_empty());
    could.map(|(_, near)| near).filter(|near| !unheard(near)).min_by_key(|near| near.lacks.len())
}

/// As a policy of the whole cluster is called: by kind and name.
fn name(policy: &ClusterPolicy) -> String {
    format!("{} {}", policy.kind.name(), policy.name)
}

/// An end of a flow, as policies see it.
#[derive(Clone, Copy)]
enum Party<'a> {
    Pod(&'a Pod),
    /// A node, or a pod that lives in its network.
    Node(&'a Node),
    Outside(&'a str, IpAddr),
}

impl<'a> Party<'a> {
    fn of(cluster: &'a Cluster, who: &'a Who) -> Option<Self> {
        match who {
            Who::Pod(id) => {
                let pod = cluster.pod(id)?;
                Some(if pod.host_network { Self::Node(cluster.node(&pod.node)?) } else { Self::Pod(pod) })
            }
            Who::Node(name) => cluster.node(name).map(Self::Node),
            Who::External(name) => {
                let external = cluster.external(name)?;
                Some(Self::Outside(name, external.address))
            }
            Who::Service(_) | Who::Frontend(..) => None,
        }
    }

    fn pod(self) -> Option<&'a Pod> {
        if let Self::Pod(pod) = self { Some(pod) } else { None }
    }

    fn addresses(self) -> Vec<IpAddr> {
        match self {
            Self::Pod(pod) => pod.addresses.clone(),
            Self::Node(node) => node.addresses.clone(),
            Self::Outside(_, address) => vec![address],
        }
    }

    fn ports(self) -> &'a [ContainerPort] {
        if let Self::Pod(pod) = self { &pod.ports } else { &[] }
    }
}

impl fmt::Display for Party<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(pod) => write!(f, "{}", pod.id()),
            Self::Node(node) => write!(f, "node:{}", node.name),
            Self::Outside(name, _) => write!(f, "ext:{name}"),
        }
    }
}

/// What is asked of every rule.
#[derive(Clone, Copy)]
struct Flow<'a> {
    cluster: &'a Cluster,
    /// The end that the rule describes.
    peer: Party<'a>,
    target: Party<'a>,
    port: Port,
}

impl Flow<'_> {
    fn of_policy(&self, policy: &NetworkPolicy, judged: &Pod, direction: Direction) -> Vec<Nearest> {
        let home = policy.metadata.namespace.as_deref().unwrap_or("default");
        let Some(spec) = &policy.spec else { return Vec::new() };
        let selector = spec.pod_selector.clone().unwrap_or_default();
        if home != judged.namespace || !missing(&selector, &judged.labels, "").is_empty() {
            return Vec::new();
        }
        let name = format!("{home}/{}", policy.metadata.name.as_deref().unwrap_or_default());
        let rules: Vec<_> = match direction {
            Direction::Ingress => {
                spec.ingress.iter().flatten().map(|rule| (rule.from.clone(), rule.ports.clone())).collect()
            }
            Direction::Egress => {
                spec.egress.iter().flatten().map(|rule| (rule.to.clone(), rule.ports.clone())).collect()
            }
        };
        let near = rules.into_iter().enumerate().map(|(place, (peers, ports))| {
            let peers = peers.unwrap_or_default();
            let mut lacks = least(peers.iter().map(|peer| self.peer(peer, home)));
            lacks.extend(self.ports(&ports.unwrap_or_default().iter().map(Asked::from).collect::<Vec<_>>()));
            Nearest { rule: RuleName { policy: name.clone(), rule: format!("{direction}[{place}]") }, lacks }
        });
        near.collect()
    }

    /// Rules of a policy of the whole cluster, and what each does.
    fn of_tier(&self, policy: &ClusterPolicy, judged: &Pod, direction: Direction) -> Vec<(Action, Nearest)> {
        if !self.pods(&policy.subject, Party::Pod(judged)).is_empty() {
            return Vec::new();
        }
        let rules = if direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
        let near = rules.iter().enumerate().map(|(place, rule)| {
            let nobody = || vec!["it is about nobody who has an address".to_owned()];
            let peers = rule.peers.iter().map(|peer| self.tier_peer(peer));
            let mut lacks = if rule.peers.is_empty() { nobody() } else { least(peers) };
            lacks.extend(self.ports(&rule.ports.iter().flatten().map(Asked::from).collect::<Vec<_>>()));
            let rule_name = RuleName { policy: name(policy), rule: format!("{direction}[{place}]") };
            (rule.action, Nearest { rule: rule_name, lacks })
        });
        near.collect()
    }

    fn peer(&self, peer: &NetworkPolicyPeer, home: &str) -> Vec<String> {
        if let Some(block) = &peer.ip_block {
            let outside = self.cluster.settings.policies.ip_blocks == IpBlocks::Outside;
            if outside && matches!(self.peer, Party::Pod(_)) {
                return vec![format!("{} is a pod, and an ipBlock is about others here", self.peer)];
            }
            let except: Vec<&str> = block.except.iter().flatten().map(String::as_str).collect();
            return self.in_range(&block.cidr, &except);
        }
        let Party::Pod(pod) = self.peer else { return vec![format!("{} is no pod", self.peer)] };
        let mut lacks = match &peer.namespace_selector {
            None if pod.namespace == home => Vec::new(),
            None => vec![format!("{} is not in namespace {home}", self.peer)],
            Some(selector) => self.namespace(selector, pod),
        };
        if let Some(selector) = &peer.pod_selector {
            lacks.extend(missing(selector, &pod.labels, &pod.id()));
        }
        lacks
    }

    fn tier_peer(&self, peer: &TierPeer) -> Vec<String> {
        match (peer, self.peer) {
            (TierPeer::Pods(pods), _) => self.pods(pods, self.peer),
            (TierPeer::Nodes(selector), Party::Node(node)) => {
                missing(selector, &node.labels, &self.peer.to_string())
            }
            (TierPeer::Nodes(_), _) => vec![format!("{} is no node", self.peer)],
            (TierPeer::Networks(ranges), _) => {
                least(ranges.iter().map(|range| self.in_range(&range.to_string(), &[])))
            }
        }
    }

    fn pods(&self, peer: &PodPeer, who: Party<'_>) -> Vec<String> {
        let Party::Pod(pod) = who else { return vec![format!("{who} is no pod")] };
        let mut lacks = self.namespace(&peer.namespaces, pod);
        lacks.extend(missing(&peer.pods, &pod.labels, &pod.id()));
        lacks
    }

    fn namespace(&self, selector: &LabelSelector, pod: &Pod) -> Vec<String> {
        let none = BTreeMap::new();
        let labels = self.cluster.namespaces.get(&pod.namespace).unwrap_or(&none);
        missing(selector, labels, &format!("namespace {}", pod.namespace))
    }

    fn in_range(&self, range: &str, except: &[&str]) -> Vec<String> {
        let addresses = self.peer.addresses();
        let within = |range: &str| {
            let range = range.parse::<IpNet>();
            range.is_ok_and(|range| addresses.iter().any(|address| range.contains(address)))
        };
        let shown = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !within(range) {
            return vec![format!("{} ({shown}) is not in {range}", self.peer)];
        }
        let out = except.iter().find(|range| within(range));
        out.map(|out| format!("{} ({shown}) is in {out}, which {range} leaves out", self.peer))
            .into_iter()
            .collect()
    }

    /// What the ports of a rule lack; none restrict nothing.
    fn ports(&self, ports: &[Asked]) -> Option<String> {
        if ports.is_empty() || ports.iter().any(|port| port.holds(self.port, self.target.ports())) {
            return None;
        }
        let Port { number, protocol } = self.port;
        let elsewhere = ports.iter().find(|port| {
            let other = port.protocol.is_some_and(|other| other != protocol);
            other
                && Asked { protocol: Some(protocol), ..(*port).clone() }.holds(self.port, self.target.ports())
        });
        if let Some(Asked { protocol: Some(other), .. }) = elsewhere {
            return Some(format!("it is about port {number} over {other}, not {protocol}"));
        }
        let mut unnamed = ports.iter().filter_map(|port| match &port.what {
            What::Named(name) if !self.target.ports().iter().any(|it| it.name.as_ref() == Some(name)) => {
                Some(format!(" ({} has no port of the name {name})", self.target))
            }
            _ => None,
        });
        let listed = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Some(format!("it is about {listed}, not {}{}", self.port, unnamed.next_back().unwrap_or_default()))
    }
}

/// What the alternative lacks that lacks least; nothing if there are none to choose from.
fn least(of: impl Iterator<Item = Vec<String>>) -> Vec<String> {
    of.min_by_key(Vec::len).unwrap_or_default()
}

/// A port that a rule is about.
#[derive(Clone, Debug)]
struct Asked {
    /// None: any.
    protocol: Option<crate::model::Protocol>,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    All,
    Range(u16, u16),
    Named(String),
}

impl Asked {
    fn holds(&self, port: Port, on_target: &[ContainerPort]) -> bool {
        if self.protocol.is_some_and(|protocol| protocol != port.protocol) {
            return false;
        }
        match &self.what {
            What::All => true,
            What::Range(first, last) => (*first..=*last).contains(&port.number),
            What::Named(name) => on_target.iter().any(|it| {
                it.name.as_ref() == Some(name) && (it.port, it.protocol) == (port.number, port.protocol)
            }),
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.map(|protocol| format!("/{}", protocol.to_string().to_lowercase()));
        let protocol = protocol.unwrap_or_default();
        match &self.what {
            What::All => write!(f, "any port{protocol}"),
            What::Range(first, last) if first == last => write!(f, "{first}{protocol}"),
            What::Range(first, last) => write!(f, "{first}-{last}{protocol}"),
            What::Named(name) => write!(f, "port {name}{protocol}"),
        }
    }
}

impl From<&NetworkPolicyPort> for Asked {
    fn from(port: &NetworkPolicyPort) -> Self {
        use crate::model::Protocol::{Sctp, Tcp, Udp};
        let word = port.protocol.as_deref().unwrap_or("TCP");
        let protocol = [Tcp, Udp, Sctp].into_iter().find(|one| one.to_string() == word);
        let number = |number: i32| u16::try_from(number).unwrap_or_default();
        let what = match &port.port {
            None => What::All,
            Some(IntOrString::Int(first)) => {
                What::Range(number(*first), number(port.end_port.unwrap_or(*first)))
            }
            Some(IntOrString::String(name)) => What::Named(name.clone()),
        };
        Self { protocol, what }
    }
}

impl From<&TierPort> for Asked {
    fn from(port: &TierPort) -> Self {
        match port {
            TierPort::Protocol(protocol) => Self { protocol: Some(*protocol), what: What::All },
            TierPort::Range(protocol, first, last) => {
                Self { protocol: Some(*protocol), what: What::Range(*first, *last) }
            }
            TierPort::Named(name) => Self { protocol: None, what: What::Named(name.clone()) },
        }
    }
}

/// What labels lack that a selector demands, a demand each; `whose` they are.
fn missing(selector: &LabelSelector, labels: &Labels, whose: &str) -> Vec<String> {
    let equal = selector.match_labels.iter().flatten().filter_map(|(key, value)| match labels.get(key) {
        Some(has) if has == value => None,
        Some(has) => Some(format!("{whose} has label {key}={has}, not {key}={value}")),
        None => Some(format!("{whose} has no label {key}={value}")),
    });
    let demands = selector.match_expressions.iter().flatten();
    equal.chain(demands.filter_map(|demand| unmet(demand, labels, whose))).collect()
}

fn unmet(demand: &LabelSelectorRequirement, labels: &Labels, whose: &str) -> Option<String> {
    let key = &demand.key;
    let value = labels.get(key);
    let values: Vec<&str> = demand.values.iter().flatten().map(String::as_str).collect();
    let listed = value.is_some_and(|value| values.contains(&value.as_str()));
    let shown = value.map_or(String::new(), |value| format!("{key}={value}"));
    match demand.operator.as_str() {
        "In" if !listed && value.is_none() => {
            Some(format!("{whose} has no label {key} (one of {})", values.join(", ")))
        }
        "In" if !listed => Some(format!("{whose} has label {shown}, none of {}", values.join(", "))),
        "NotIn" if listed => Some(format!("{whose} has label {shown}, which is left out")),
        "Exists" if value.is_none() => Some(format!("{whose} has no label {key}")),
        "DoesNotExist" if value.is_some() => {
            Some(format!("{whose} has label {shown}, and must not have {key}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    /// What the nearest rule lacks for `flow` into `shop/api`, given these ingress rules.
    #[track_caller]
    fn near(rules: &str, from: &str, port: &str) -> Option<String> {
        let text = format!(
            r#"
{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{team: sales}}}}}}
---
{{apiVersion: v1, kind: Namespace, metadata: {{name: bank}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: api, namespace: shop, labels: {{app: api}}}},
  spec: {{containers: [{{name: c, image: i, ports: [{{containerPort: 8080, name: http}}]}}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: shop, labels: {{app: web}}}}, spec: {{containers: [{{name: c, image: i}}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: till, namespace: bank}}, spec: {{containers: [{{name: c, image: i}}]}}}}
---
{{apiVersion: podpath.dev/v1alpha1, kind: External, metadata: {{name: world}}, spec: {{address: 203.0.113.7}}}}
---
{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}},
  spec: {{podSelector: {{matchLabels: {{app: api}}}}, policyTypes: [Ingress], ingress: {rules}}}}}
"#
        );
        let cluster = model::load_text("test", &text).unwrap_or_else(|error| panic!("{error}"));
        let (from, to) = (from.parse().expect("a name"), "shop/api".parse().expect("a name"));
        let port = port.parse().expect("a port");
        let why = Why::Isolated(vec!["shop/p".to_owned()]);
        nearest(&cluster, (&from, &to), port, Direction::Ingress, &why).map(|near| near.to_string())
    }

    const FROM_WEB: &str = "[{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}]";

    #[test]
    fn a_rule_for_the_right_peer_at_another_port_says_which_ports_it_is_about() {
        let expected = "nearest: shop/p ingress[0] would allow it, but it is about 8080/tcp, not 80/tcp";
        assert_eq!(near(FROM_WEB, "shop/web", "80/tcp").as_deref(), Some(expected));
    }

    #[test]
    fn a_rule_for_the_right_port_over_another_protocol_says_so() {
        let expected =
            "nearest: shop/p ingress[0] would allow it, but it is about port 8080 over TCP, not UDP";
        assert_eq!(near(FROM_WEB, "shop/web", "8080/udp").as_deref(), Some(expected));
    }

    #[test]
    fn a_rule_for_other_labels_says_which_are_missing() {
        let rules = "[{from: [{namespaceSelector: {matchLabels: {team: sales}}, podSelector: {matchLabels: {app: web}}}]}]";
        let lacks = near(rules, "bank/till", "80/tcp").expect("there is a rule");
        assert!(
            lacks.ends_with("but namespace bank has no label team=sales, and bank/till has no label app=web")
        );
        let lacks = near(FROM_WEB, "shop/api", "8080/tcp").expect("there is a rule");
        assert!(lacks.ends_with("but shop/api has label app=api, not app=web"), "{lacks}");
        let lacks = near(FROM_WEB, "ext:world", "8080/tcp").expect("there is a rule");
        assert!(lacks.ends_with("but ext:world is no pod"), "{lacks}");
    }

    #[test]
    fn an_address_outside_of_a_block_or_left_out_of_it_is_named() {
        let block = |block: &str| near(&format!("[{{from: [{{ipBlock: {block}}}]}}]"), "ext:world", "80/tcp");
        let lacks = block("{cidr: 198.51.100.0/24}").expect("there is a rule");
        assert!(lacks.ends_with("but ext:world (203.0.113.7) is not in 198.51.100.0/24"), "{lacks}");
        let lacks = block("{cidr: 203.0.113.0/24, except: [203.0.113.0/28]}").expect("there is a rule");
        assert!(lacks.ends_with("is in 203.0.113.0/28, which 203.0.113.0/24 leaves out"), "{lacks}");
    }

    #[test]
    fn a_named_port_that_the_target_does_not_have_is_named() {
        let lacks = near("[{ports: [{port: https}]}]", "shop/web", "8080/tcp").expect("there is a rule");
        assert!(lacks.ends_with("not 8080/tcp (shop/api has no port of the name https)"), "{lacks}");
    }

    #[test]
    fn of_several_rules_the_one_that_lacks_least_is_named() {
        let rules = "[{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 9}]}, {from: [{podSelector: {matchLabels: {app: cart}}}]}]";
        let lacks = near(rules, "shop/web", "80/tcp").expect("there is a rule");
        assert!(lacks.starts_with("nearest: shop/p ingress[1] "), "{lacks}");
        assert_eq!(near("[]", "shop/web", "80/tcp"), None);
    }

    #[test]
    fn what_a_rule_denies_only_rules_before_it_could_have_allowed() {
        let text = r"
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: api, namespace: shop, labels: {app: api}}, spec: {containers: [{name: c, image: i}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: lock}
spec:
  tier: Admin
  priority: 5
  subject: {namespaces: {}}
  ingress:
  - {action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: cart}}}}]}
  - {action: Deny, from: [{namespaces: {}}]}
  - {action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 9}}}]}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {podSelector: {}, ingress: [{ports: [{port: 9}]}]}}
";
        let cluster = model::load_text("test", text).unwrap_or_else(|error| panic!("{error}"));
        let (web, api) = ("shop/web".parse().expect("a name"), "shop/api".parse().expect("a name"));
        let port = "80/tcp".parse().expect("a port");
        let lock = |rule: &str| RuleName { policy: "ClusterNetworkPolicy lock".into(), rule: rule.into() };
        let near = |why| nearest(&cluster, (&web, &api), port, Direction::Ingress, &why);
        let by_rule = near(Why::DeniedBy(lock("ingress[1]"))).expect("one comes before");
        assert_eq!(by_rule.rule, lock("ingress[0]"));
        assert_eq!(by_rule.lacks, ["shop/web has label app=web, not app=cart"]);
        let isolated = near(Why::Isolated(vec!["shop/p".into()])).expect("several could have");
        assert_eq!(isolated.lacks.len(), 1);
    }
}
