//! Policies of the whole cluster, from what is written to what is meant: three kinds become one.
//!
//! Source: network-policy-api, `apis/v1alpha2` and `apis/v1alpha1`, with the validation that their CRDs demand.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{
    AdminEgressRule, AdminIngressRule, ClusterEgressRule, ClusterIngressRule, DestinationPort, NamespacedPod,
    PeerSpec, PodsSpec, PortSpec, ProtocolSpec, TransportSpec,
};
use crate::model::cluster::Protocol;
use crate::model::error::Fields;
use crate::model::object::{Kind, Object};
use crate::model::tier::{Action, ClusterPolicy, PodPeer, Tier, TierPeer, TierPort, TierRule};
use crate::model::{syntax, validate};

/// BaselineAdminNetworkPolicy states no priority: policies of its tier that do are asked first.
const LAST: i32 = 1000;
/// Ranges, or names, of one peer.
const MOST_NETWORKS: usize = 25;
const LONGEST_NAME: usize = 100;

/// How a version of the API says things.
struct Api {
    accept: &'static str,
    /// Whether there is `Pass`.
    passes: bool,
    /// Rules of a direction, peers of a rule, ports of a rule.
    most: usize,
    /// The list of ports.
    ports: &'static str,
    /// `namespaceSelector` must be there.
    both_selectors: bool,
}

const CLUSTER: Api =
    Api { accept: "Accept", passes: true, most: 25, ports: "protocols", both_selectors: false };
const ADMIN: Api = Api { accept: "Allow", passes: true, most: 100, ports: "ports", both_selectors: true };
const BASELINE: Api = Api { passes: false, ..ADMIN };

/// A policy as it is meant, and what of it can't be carried out.
pub(in crate::model) struct Reading {
    pub(in crate::model) policy: ClusterPolicy,
    /// The paths of peers that are names in the DNS. Nobody looks them up here, so they match nothing.
    pub(in crate::model) by_name: Vec<String>,
}

/// Reads a policy of the whole cluster, and notes what is wrong with its fields. None for other kinds, and where
/// there is no `spec`.
pub(in crate::model) fn read(object: &Object, fields: &mut Fields<'_>) -> Option<Reading> {
    let name = object.key().name;
    let mut reader = Reader { api: &CLUSTER, fields, by_name: Vec::new() };
    let policy = match object {
        Object::ClusterNetworkPolicy(written) => {
            let spec = reader.required("spec", written.spec.as_ref())?;
            ClusterPolicy {
                tier: reader.tier(spec.tier.as_deref()),
                priority: reader.priority(spec.priority),
                ..reader.policy(name, object.kind(), (&spec.subject, &spec.ingress, &spec.egress))
            }
        }
        Object::AdminNetworkPolicy(written) => {
            reader.api = &ADMIN;
            let spec = reader.required("spec", written.spec.as_ref())?;
            ClusterPolicy {
                priority: reader.priority(spec.priority),
                ..reader.policy(name, object.kind(), (&spec.subject, &spec.ingress, &spec.egress))
            }
        }
        Object::BaselineAdminNetworkPolicy(written) => {
            reader.api = &BASELINE;
            if name != "default" {
                let why = format!(
                    "Only one baseline admin network policy with metadata.name=\"default\" can be created in the cluster, not {name:?}"
                );
                reader.fields.wrong("metadata.name", why);
            }
            let spec = reader.required("spec", written.spec.as_ref())?;
            ClusterPolicy {
                tier: Tier::Baseline,
                priority: LAST,
                ..reader.policy(name, object.kind(), (&spec.subject, &spec.ingress, &spec.egress))
            }
        }
        _ => return None,
    };
    Some(Reading { policy, by_name: reader.by_name })
}

/// A rule of any kind.
struct Written<'a> {
    name: Option<&'a str>,
    action: Option<&'a str>,
    peers: Vec<Peer<'a>>,
    ports: Option<Vec<Port<'a>>>,
}

/// A peer of either direction.
#[derive(Clone, Copy, Default)]
struct Peer<'a> {
    namespaces: Option<&'a LabelSelector>,
    pods: Option<&'a NamespacedPod>,
    nodes: Option<&'a LabelSelector>,
    networks: Option<&'a [String]>,
    domain_names: Option<&'a [String]>,
}

/// A port of either version.
#[derive(Clone, Copy)]
enum Port<'a> {
    Cluster(&'a ProtocolSpec),
    Admin(&'a PortSpec),
}

impl<'a> From<&'a PodsSpec> for Peer<'a> {
    fn from(spec: &'a PodsSpec) -> Self {
        Self { namespaces: spec.namespaces.as_ref(), pods: spec.pods.as_ref(), ..Self::default() }
    }
}

impl<'a> From<&'a PeerSpec> for Peer<'a> {
    fn from(spec: &'a PeerSpec) -> Self {
        Self {
            namespaces: spec.namespaces.as_ref(),
            pods: spec.pods.as_ref(),
            nodes: spec.nodes.as_ref(),
            networks: spec.networks.as_deref(),
            domain_names: spec.domain_names.as_deref(),
        }
    }
}

macro_rules! written {
    ($($rule:ident: $peers:ident, $ports:ident of $port:ident;)+) => { $(
        impl<'a> From<&'a $rule> for Written<'a> {
            fn from(rule: &'a $rule) -> Self {
                Self {
                    name: rule.name.as_deref(),
                    action: rule.action.as_deref(),
                    peers: rule.$peers.iter().map(Peer::from).collect(),
                    ports: rule.$ports.as_ref().map(|ports| ports.iter().map(Port::$port).collect()),
                }
            }
        }
    )+ };
}

written! {
    ClusterIngressRule: from, protocols of Cluster;
    ClusterEgressRule: to, protocols of Cluster;
    AdminIngressRule: from, ports of Admin;
    AdminEgressRule: to, ports of Admin;
}

impl Port<'_> {
    fn is_named(self) -> bool {
        match self {
            Self::Cluster(spec) => spec.destination_named_port.is_some(),
            Self::Admin(spec) => spec.named_port.is_some(),
        }
    }
}

struct Reader<'a, 'f> {
    api: &'static Api,
    fields: &'a mut Fields<'f>,
    by_name: Vec<String>,
}

impl Reader<'_, '_> {
    fn required<T>(&mut self, path: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.fields.wrong(path, "Required value");
        }
        value
    }

    /// Notes that not exactly one of a few fields is there; true if one is.
    fn one_of(&mut self, path: &str, named: &[(&str, bool)]) -> bool {
        let set: Vec<&str> = named.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
        if set.len() != 1 {
            let all: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
            let found = if set.is_empty() { "none".to_owned() } else { set.join(" and ") };
            self.fields.wrong(path, format!("must have exactly one of {}, not {found}", all.join(", ")));
        }
        set.len() == 1
    }

    fn count(&mut self, path: &str, count: usize, (least, most): (usize, usize)) {
        if !(least..=most).contains(&count) {
            self.fields.wrong(path, format!("must have between {least} and {most} items, not {count}"));
        }
    }

    fn tier(&mut self, stated: Option<&str>) -> Tier {
        match self.required("spec.tier", stated) {
            Some("Baseline") => Tier::Baseline,
            Some("Admin") | None => Tier::Admin,
            Some(other) => {
                self.fields.wrong("spec.tier", syntax::unsupported(other, &["Admin", "Baseline"]));
                Tier::Admin
            }
        }
    }

    fn priority(&mut self, stated: Option<i64>) -> i32 {
        let Some(stated) = self.required("spec.priority", stated) else { return 0 };
        let fits = i32::try_from(stated).ok().filter(|priority| (0..=LAST).contains(priority));
        fits.unwrap_or_else(|| {
            let why = format!("must be between 0 and {LAST}, inclusive, not {stated}");
            self.fields.wrong("spec.priority", why);
            0
        })
    }

    /// What all kinds have; tier and priority are for those that state them.
    fn policy<'a, I, E>(
        &mut self,
        name: String,
        kind: Kind,
        (subject, ingress, egress): (&'a Option<PodsSpec>, &'a [I], &'a [E]),
    ) -> ClusterPolicy
    where
        Written<'a>: From<&'a I> + From<&'a E>,
    {
        let subject = self.required("spec.subject", subject.as_ref()).and_then(|subject| {
            let peer = Peer::from(subject);
            let named = [("namespaces", peer.namespaces.is_some()), ("pods", peer.pods.is_some())];
            self.one_of("spec.subject", &named).then(|| self.pods("spec.subject", peer)).flatten()
        });
        ClusterPolicy {
            kind,
            name,
            tier: Tier::Admin,
            priority: 0,
            subject: subject.unwrap_or_default(),
            ingress: self.rules("ingress", "from", ingress.iter().map(Written::from).collect()),
            egress: self.rules("egress", "to", egress.iter().map(Written::from).collect()),
        }
    }

    fn rules(&mut self, direction: &str, list: &str, rules: Vec<Written<'_>>) -> Vec<TierRule> {
        self.count(&format!("spec.{direction}"), rules.len(), (0, self.api.most));
        let read = |(i, rule)| self.rule(&format!("spec.{direction}[{i}]"), list, &rule);
        rules.into_iter().enumerate().map(read).collect()
    }

    fn rule(&mut self, path: &str, list: &str, rule: &Written<'_>) -> TierRule {
        let name = rule.name.unwrap_or_default();
        let length = name.chars().count();
        if length > LONGEST_NAME {
            let why = format!("must be no more than {LONGEST_NAME} characters, not {length}");
            self.fields.wrong(format!("{path}.name"), why);
        }
        let action = self.action(&format!("{path}.action"), rule.action);
        self.count(&format!("{path}.{list}"), rule.peers.len(), (1, self.api.most));
        let named = rule.ports.iter().flatten().any(|port| port.is_named());
        let no_pods =
            |peer: &Peer<'_>| peer.nodes.is_some() || peer.networks.is_some() || peer.domain_names.is_some();
        if named && rule.peers.iter().any(no_pods) {
            let why = "networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts for networks/nodes/domainNames";
            self.fields.wrong(path, why);
        }
        let peers = rule.peers.iter().enumerate();
        let peers =
            peers.filter_map(|(i, peer)| self.peer(&format!("{path}.{list}[{i}]"), list, *peer, action));
        let peers = peers.collect();
        let ports = rule.ports.as_ref().map(|ports| {
            let path = format!("{path}.{}", self.api.ports);
            self.count(&path, ports.len(), (1, self.api.most));
            let ports = ports.iter().enumerate();
            ports.filter_map(|(i, port)| self.port(&format!("{path}[{i}]"), *port)).collect()
        });
        TierRule { name: name.to_owned(), action: action.unwrap_or(Action::Deny), peers, ports }
    }

    fn action(&mut self, path: &str, stated: Option<&str>) -> Option<Action> {
        let stated = self.required(path, stated)?;
        let mut known = vec![(self.api.accept, Action::Accept), ("Deny", Action::Deny)];
        if self.api.passes {
            known.push(("Pass", Action::Pass));
        }
        let found = known.iter().find(|(word, _)| *word == stated).map(|(_, action)| *action);
        if found.is_none() {
            let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            self.fields.wrong(path, syntax::unsupported(stated, &words));
        }
        found
    }

    fn peer(&mut self, path: &str, list: &str, peer: Peer<'_>, action: Option<Action>) -> Option<TierPeer> {
        let mut named = vec![("namespaces", peer.namespaces.is_some()), ("pods", peer.pods.is_some())];
        if list == "to" {
            named.push(("nodes", peer.nodes.is_some()));
            named.push(("networks", peer.networks.is_some()));
            named.push(("domainNames", peer.domain_names.is_some()));
        }
        if !self.one_of(path, &named) {
            return None;
        }
        if let Some(nodes) = peer.nodes {
            validate::label_selector(nodes, &format!("{path}.nodes"), self.fields);
            return Some(TierPeer::Nodes(nodes.clone()));
        }
        if let Some(networks) = peer.networks {
            return Some(TierPeer::Networks(self.networks(&format!("{path}.networks"), networks)));
        }
        if let Some(names) = peer.domain_names {
            self.domain_names(format!("{path}.domainNames"), names, action);
            return None;
        }
        self.pods(path, peer).map(TierPeer::Pods)
    }

    fn pods(&mut self, path: &str, peer: Peer<'_>) -> Option<PodPeer> {
        if let Some(namespaces) = peer.namespaces {
            validate::label_selector(namespaces, &format!("{path}.namespaces"), self.fields);
            return Some(PodPeer { namespaces: namespaces.clone(), ..PodPeer::default() });
        }
        let pods = peer.pods?;
        let required = self.api.both_selectors;
        let mut selector = |name: &str, stated: &Option<LabelSelector>, required: bool| {
            let path = format!("{path}.pods.{name}");
            match stated {
                Some(selector) => validate::label_selector(selector, &path, self.fields),
                None if required => self.fields.wrong(path, "Required value"),
                None => {}
            }
            stated.clone().unwrap_or_default()
        };
        Some(PodPeer {
            namespaces: selector("namespaceSelector", &pods.namespace_selector, required),
            pods: selector("podSelector", &pods.pod_selector, true),
        })
    }

    fn networks(&mut self, path: &str, texts: &[String]) -> Vec<IpNet> {
        self.count(path, texts.len(), (1, MOST_NETWORKS));
        let mut ranges = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let path = format!("{path}[{i}]");
            match syntax::cidr(text) {
                _ if texts[..i].contains(text) => {
                    self.fields.wrong(path, format!("Duplicate value: {text:?}"));
                }
                Ok(IpNet::V6(range)) if range.addr().to_ipv4_mapped().is_some() => {
                    self.fields.wrong(path, format!("must not be an IPv4-mapped IPv6 range, as {text:?} is"));
                }
                Ok(range) => ranges.push(range.trunc()),
                Err(why) => self.fields.wrong(path, why),
            }
        }
        ranges
    }

    fn domain_names(&mut self, path: String, names: &[String], action: Option<Action>) {
        self.count(&path, names.len(), (1, MOST_NETWORKS));
        for (i, name) in names.iter().enumerate() {
            if let Err(why) = syntax::domain_name(name) {
                self.fields.wrong(format!("{path}[{i}]"), why);
            }
        }
        if let Some(action @ (Action::Deny | Action::Pass)) = action {
            let why = format!("may be used with action {} only, not {action:?}", self.api.accept);
            self.fields.wrong(path, why);
        } else {
            self.by_name.push(path);
        }
    }

    fn port(&mut self, path: &str, port: Port<'_>) -> Option<TierPort> {
        match port {
            Port::Cluster(spec) => self.protocol(path, spec),
            Port::Admin(spec) => self.admin_port(path, spec),
        }
    }

    /// v1alpha2.
    fn protocol(&mut self, path: &str, spec: &ProtocolSpec) -> Option<TierPort> {
        let ProtocolSpec { tcp, udp, sctp, destination_named_port: named } = spec;
        let set = [
            ("tcp", tcp.is_some()),
            ("udp", udp.is_some()),
            ("sctp", sctp.is_some()),
            ("destinationNamedPort", named.is_some()),
        ];
        if !self.one_of(path, &set) {
            return None;
        }
        match (tcp, udp, sctp) {
            (Some(spec), ..) => self.transport(&format!("{path}.tcp"), Protocol::Tcp, spec),
            (_, Some(spec), _) => self.transport(&format!("{path}.udp"), Protocol::Udp, spec),
            (.., Some(spec)) => self.transport(&format!("{path}.sctp"), Protocol::Sctp, spec),
            (None, None, None) => self.named(&format!("{path}.destinationNamedPort"), named.as_deref()),
        }
    }

    fn transport(&mut self, path: &str, protocol: Protocol, spec: &TransportSpec) -> Option<TierPort> {
        let path = format!("{path}.destinationPort");
        let DestinationPort { number, range } = self.required(&path, spec.destination_port.as_ref())?;
        if !self.one_of(&path, &[("number", number.is_some()), ("range", range.is_some())]) {
            return None;
        }
        match range {
            Some(range) => self.range(&format!("{path}.range"), protocol, (range.start, range.end)),
            None => self.single(&format!("{path}.number"), protocol, *number),
        }
    }

    /// v1alpha1.
    fn admin_port(&mut self, path: &str, spec: &PortSpec) -> Option<TierPort> {
        let PortSpec { port_number, named_port, port_range } = spec;
        let set = [
            ("portNumber", port_number.is_some()),
            ("namedPort", named_port.is_some()),
            ("portRange", port_range.is_some()),
        ];
        if !self.one_of(path, &set) {
            return None;
        }
        match (port_number, port_range) {
            (Some(one), _) => {
                let protocol = self.stated_protocol(&format!("{path}.portNumber"), one.protocol.as_deref());
                self.single(&format!("{path}.portNumber.port"), protocol, one.port)
            }
            (None, Some(range)) => {
                let protocol = self.stated_protocol(&format!("{path}.portRange"), range.protocol.as_deref());
                self.range(&format!("{path}.portRange"), protocol, (range.start, range.end))
            }
            (None, None) => self.named(&format!("{path}.namedPort"), named_port.as_deref()),
        }
    }

    fn stated_protocol(&mut self, path: &str, stated: Option<&str>) -> Protocol {
        let protocol = syntax::protocol(stated);
        protocol.map_err(|why| self.fields.wrong(format!("{path}.protocol"), why)).unwrap_or_default()
    }

    fn named(&mut self, path: &str, name: Option<&str>) -> Option<TierPort> {
        let name = self.required(path, name.filter(|name| !name.is_empty()))?;
        Some(TierPort::Named(name.to_owned()))
    }

    fn single(&mut self, path: &str, protocol: Protocol, stated: Option<i64>) -> Option<TierPort> {
        self.number(path, stated).map(|port| TierPort::Range(protocol, port, port))
    }

    fn range(
        &mut self,
        path: &str,
        protocol: Protocol,
        (start, end): (Option<i64>, Option<i64>),
    ) -> Option<TierPort> {
        let start = self.number(&format!("{path}.start"), start);
        let end = self.number(&format!("{path}.end"), end);
        let (start, end) = start.zip(end)?;
        if start >= end {
            let why = format!("Start port must be less than End port, not {start} (end is {end})");
            self.fields.wrong(path, why);
        }
        Some(TierPort::Range(protocol, start, end))
    }

    fn number(&mut self, path: &str, stated: Option<i64>) -> Option<u16> {
        let stated = self.required(path, stated)?;
        syntax::port(stated).map_err(|why| self.fields.wrong(path, why)).ok()
    }
}
