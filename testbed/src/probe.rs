//! Who reaches whom, measured, and set beside what the oracle says.
//!
//! A [`Flow`] is a question, a [`Prober`] answers many of them, a [`Grid`] holds questions, answers and
//! expectations in the order they were asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use dataplane::Reason;
use dataplane::wire::Family;
use serde::{Serialize, Serializer};
use userspace::ipam::IpFamily;
use userspace::model::{Cluster, ContainerPort, Directory, Node, Port, Protocol, Service, Way, Who};

use crate::oracle::{Expectation, Oracle};

pub mod crowd;
pub mod denials;
mod flows;
pub mod live;
mod print;
mod sctp;
pub mod sockets;
pub mod stitch;

pub use flows::{FlowsError, read_flows};
pub use print::Tables;

/// A question: is `to` reached from `from`, at this port?
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Flow {
    /// Who sends; never a Service.
    #[serde(serialize_with = "as_text")]
    pub from: Who,
    /// Who is dialled.
    #[serde(serialize_with = "as_text")]
    pub to: Who,
    /// The port dialled: a Service's own, not its backends'.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
    /// Over which family: none if there is one only, or if it does not matter which.
    #[serde(serialize_with = "as_word", skip_serializing_if = "Option::is_none")]
    pub over: Option<Family>,
}

/// A family in Kubernetes' word.
fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn as_word<S: Serializer>(family: &Option<Family>, serializer: S) -> Result<S::Ok, S::Error> {
    family.map(word).serialize(serializer)
}

fn as_text<S: Serializer>(who: &Who, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(who)
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:{}/{}", self.from, self.to, self.port, self.protocol)?;
        self.over.map_or(Ok(()), |over| write!(f, " over {}", word(over)))
    }
}

/// What became of a flow, as its sender can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Answered.
    Allow,
    /// No answer: dropped on the way.
    Deny,
    /// Refused at once, by a reset or an ICMP error.
    Reject,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Reject => "reject",
        })
    }
}

/// A prober's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What became of the flow.
    pub verdict: Verdict,
    /// Why a packet of it was dropped, where the dataplane tells.
    pub reason: Option<Reason>,
    /// The policy, `namespace/name`, that decided; where one did and the dataplane tells.
    pub decided_by: Option<String>,
}

impl From<Verdict> for Measured {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, reason: None, decided_by: None }
    }
}

/// A way to find out what becomes of flows.
///
/// It sees to it that targets listen where they are dialled, unless they are externals that declare other
/// ports: what is asked is what the network does, and a pod may listen on ports it does not declare.
pub trait Prober {
    /// The value of `--dataplane`.
    fn dataplane(&self) -> &'static str;
    /// Whether a node stands for each client outside that it sends on to another, whatever the model: policies see
    /// the node then.
    fn stands_in(&self) -> bool {
        false
    }
    /// Measures every flow: as many answers, in the same order. All ends exist in the cluster.
    ///
    /// # Errors
    /// It could not be measured: a namespace is gone, an engine refused. A flow that does not arrive is
    /// not an error.
    fn probe(&mut self, flows: &[Flow]) -> anyhow::Result<Vec<Measured>>;
}

/// A flow, measured and judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The question.
    pub flow: Flow,
    /// The prober's answer.
    pub measured: Measured,
    /// The oracle's.
    pub expectation: Expectation,
}

impl Row {
    /// The verdict the oracle expects; `None` where Kubernetes leaves it open.
    pub fn expected(&self) -> Option<Verdict> {
        match self.expectation {
            Expectation::Allow | Expectation::Audited(_) => Some(Verdict::Allow),
            Expectation::Deny(_) => Some(Verdict::Deny),
            Expectation::Reject(_) => Some(Verdict::Reject),
            Expectation::Undefined(_) => None,
        }
    }

    /// Whether the two answers differ. What is left open differs from nothing.
    pub fn differs(&self) -> bool {
        self.expected().is_some_and(|expected| expected != self.measured.verdict)
    }
}

/// The keys of `check -o json`.
impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Keys<'a> {
            #[serde(flatten)]
            flow: &'a Flow,
            verdict: Verdict,
            reason: Option<&'static str>,
            decided_by: Option<&'a str>,
            expected: Option<Verdict>,
        }
        Keys {
            flow: &self.flow,
            verdict: self.measured.verdict,
            reason: self.measured.reason.map(Reason::slug),
            decided_by: self.measured.decided_by.as_deref(),
            expected: self.expected(),
        }
        .serialize(serializer)
    }
}

/// Who reaches whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grid {
    /// The name of the testbed.
    pub cluster: String,
    /// The value of `--dataplane`.
    pub dataplane: String,
    /// In the order asked.
    #[serde(rename = "flows")]
    pub rows: Vec<Row>,
    /// Rows whose verdict is not the expected one.
    pub differences: usize,
}

impl Grid {
    /// Measures flows and sets the oracle's expectations beside them.
    ///
    /// Between two that have both families a flow is measured and judged over each. Its row tells of both
    /// where they are alike; else of the one that differs from what is expected, or is not let through.
    ///
    /// # Errors
    /// The prober's.
    pub fn measure(cluster: &Cluster, flows: Vec<Flow>, prober: &mut dyn Prober) -> anyhow::Result<Self> {
        let seen = [Family::V4, Family::V6].map(|family| seen_over(cluster, family));
        let oracle = |of| Oracle::of(of).where_nodes_stand_in(prober.stands_in());
        let (oracles, whole) = ([oracle(&seen[0]), oracle(&seen[1])], oracle(cluster));
        let ways: Vec<Vec<Family>> = flows.iter().map(|flow| families(whole.directory(), flow)).collect();
        let asked: Vec<Flow> = (flows.iter().zip(&ways))
            .flat_map(|(flow, ways)| {
                let several = ways.len() > 1;
                ways.iter().map(move |way| Flow { over: several.then_some(*way), ..flow.clone() })
            })
            .collect();
        let mut measured = asked.iter().cloned().zip(prober.probe(&asked)?);
        let rows: Vec<Row> = (flows.into_iter().zip(ways))
            .map(|(flow, ways)| {
                let rows = ways.iter().filter_map(|way| {
                    let (flow, measured) = measured.next()?;
                    let oracle = &oracles[usize::from(*way == Family::V6)];
                    let expectation = expected(oracle, &flow);
                    Some(Row { flow, measured, expectation })
                });
                united(rows.collect()).unwrap_or_else(|| {
                    // A socket of one family has no way to an address of the other: it is told so at once.
                    let expectation = expected(&whole, &flow);
                    Row { flow, measured: Verdict::Reject.into(), expectation }
                })
            })
            .collect();
        Ok(Self {
            cluster: cluster.name.clone(),
            dataplane: prober.dataplane().to_owned(),
            differences: rows.iter().filter(|row| row.differs()).count(),
            rows,
        })
    }
}

fn expected(oracle: &Oracle<'_>, Flow { from, to, port, protocol, .. }: &Flow) -> Expectation {
    oracle.expect(from, to, *port, *protocol)
}

/// One row for a flow that was measured over each family; none if it was over none.
fn united(mut rows: Vec<Row>) -> Option<Row> {
    let alike = rows.windows(2).all(|pair| {
        pair[0].measured.verdict == pair[1].measured.verdict && pair[0].differs() == pair[1].differs()
    });
    let telling = rows
        .iter()
        .position(Row::differs)
        .or_else(|| rows.iter().position(|row| row.measured.verdict != Verdict::Allow));
    let at = telling.filter(|_| !alike).unwrap_or(0);
    if rows.is_empty() {
        return None;
    }
    let mut row = rows.swap_remove(at);
    row.flow.over = row.flow.over.filter(|_| !alike);
    Some(row)
}

/// The families in which both ends have an address, a lent one only where there is no other; any if one end is not
/// in the cluster at all.
fn families(directory: &Directory<'_>, flow: &Flow) -> Vec<Family> {
    let (Ok(from), Ok(to)) = (directory.find(&flow.from), directory.find(&flow.to)) else {
        return vec![Family::V4];
    };
    let has = |addresses: &[IpAddr], family| addresses.iter().any(|address| family_of(*address) == family);
    let both = [Family::V4, Family::V6].into_iter();
    let mut both: Vec<Family> =
        both.filter(|family| has(from.addresses(), *family) && has(to.addresses(), *family)).collect();
    if both.len() > 1 {
        let lent = directory
            .cluster()
            .settings
            .lent
            .map(|lent| if lent == IpFamily::V4 { Family::V4 } else { Family::V6 });
        both.retain(|family| lent != Some(*family));
    }
    both
}

/// An address' family.
pub(crate) fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// The cluster as one family shows it: everybody who has an address of it has no other.
fn seen_over(cluster: &Cluster, family: Family) -> Cluster {
    let mut seen = cluster.clone();
    let keep = |addresses: &mut Vec<IpAddr>| {
        if addresses.iter().any(|address| family_of(*address) == family) {
            addresses.retain(|address| family_of(*address) == family);
        }
    };
    seen.nodes.iter_mut().for_each(|node| keep(&mut node.addresses));
    seen.pods.iter_mut().for_each(|pod| keep(&mut pod.addresses));
    for service in &mut seen.services {
        keep(&mut service.addresses);
        keep(&mut service.external_addresses);
        keep(&mut service.load_balancer_addresses);
        let only = service.addresses.first().map(|address| family_of(*address));
        for port in &mut service.ports {
            port.backends.retain(|backend| Some(family_of(backend.address)) == only);
        }
    }
    seen
}

/// Every pair at every declared port: from each pod and external, to each port that a pod, a Service or
/// an external declares. Ports of nodes, which every node may have, are dialled where it may matter: see
/// [`node_ports`]. A Service's addresses outside of the cluster's ranges are dialled from everywhere. Left out:
/// what never touches the cluster (external to external), and cluster IPs dialled from outside.
pub fn all_pairs(cluster: &Cluster) -> Vec<Flow> {
    let targets = targets(cluster, None);
    sources(cluster).flat_map(|from| dial(from, &targets)).collect()
}

/// Every pair at these ports: as [`all_pairs`], but pods and externals are dialled at each of them, whatever they
/// declare.
pub fn pairs_at(cluster: &Cluster, ports: &[Port]) -> Vec<Flow> {
    let targets = targets(cluster, Some(ports));
    sources(cluster).flat_map(|from| dial(from, &targets)).collect()
}

/// How many flows [`all_pairs`], or [`pairs_at`] these ports, are at most.
pub fn count_pairs(cluster: &Cluster, ports: Option<&[Port]>) -> usize {
    let targets: usize = targets(cluster, ports).iter().map(|target| target.ports.len()).sum();
    sources(cluster).count() * targets
}

fn sources(cluster: &Cluster) -> impl Iterator<Item = Who> + '_ {
    let pods = cluster.pods.iter().map(|pod| Who::Pod(pod.id()));
    pods.chain(cluster.externals.iter().map(|external| Who::External(external.name.clone())))
}

/// Somebody to dial.
struct Target {
    who: Who,
    ports: BTreeSet<(u16, Protocol)>,
    /// Also from outside.
    everywhere: bool,
}

fn dial(from: Who, targets: &[Target]) -> impl Iterator<Item = Flow> + '_ {
    let outside = matches!(from, Who::External(_));
    let targets = targets.iter().filter(move |target| target.everywhere || !outside);
    targets.flat_map(move |target| {
        let from = from.clone();
        target.ports.iter().map(move |(port, protocol)| Flow {
            from: from.clone(),
            to: target.who.clone(),
            port: *port,
            protocol: *protocol,
            over: None,
        })
    })
}

/// Everybody who may be dialled, in order, at these ports or at those that they declare.
fn targets(cluster: &Cluster, asked: Option<&[Port]>) -> Vec<Target> {
    let asked: Option<BTreeSet<_>> =
        asked.map(|ports| ports.iter().map(|port| (port.number, port.protocol)).collect());
    let declared = |ports: &[ContainerPort]| -> BTreeSet<_> {
        asked.clone().unwrap_or_else(|| ports.iter().map(|port| (port.port, port.protocol)).collect())
    };
    // Only a Service's own ports are translated, and a node's are those of all its pods.
    let own = |ports: BTreeSet<(u16, Protocol)>| -> BTreeSet<_> {
        asked.as_ref().map_or(ports.clone(), |asked| ports.intersection(asked).copied().collect())
    };
    let target = |who, ports, everywhere| Target { who, ports, everywhere };
    let of_service = |service: &Service| own(service.ports.iter().map(|it| (it.port, it.protocol)).collect());
    let mut targets = Vec::new();
    for pod in &cluster.pods {
        targets.push(target(Who::Pod(pod.id()), declared(&pod.ports), true));
    }
    for (node, ports) in node_ports(cluster) {
        targets.push(target(Who::Node(node.to_owned()), own(ports), true));
    }
    for service in &cluster.services {
        for way in [Way::LoadBalancer, Way::External] {
            let to = Who::Frontend(service.id(), way);
            // Not every Service has such an address.
            if cluster.find(&to).is_ok() {
                targets.push(target(to, of_service(service), true));
            }
        }
    }
    for service in &cluster.services {
        targets.push(target(Who::Service(service.id()), of_service(service), false));
    }
    for external in &cluster.externals {
        targets.push(target(Who::External(external.name.clone()), declared(&external.ports), false));
    }
    targets
}

/// Ports of nodes to dial. A Service's node port is the same at every node but for this: whether there is an
/// endpoint on it. So one node with an endpoint and one without stand for all. Host ports are their pod's node's.
fn node_ports(cluster: &Cluster) -> BTreeMap<&str, BTreeSet<(u16, Protocol)>> {
    let mut at: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
    for port in cluster.services.iter().flat_map(|service| &service.ports) {
        let Some(number) = port.node_port else { continue };
        let has_endpoint = |node: &&Node| port.ready().any(|it| it.node.as_ref() == Some(&node.name));
        let with = cluster.nodes.iter().find(has_endpoint);
        let without = cluster.nodes.iter().find(|node| !has_endpoint(node));
        for node in with.into_iter().chain(without) {
            at.entry(&node.name).or_default().insert((number, port.protocol));
        }
    }
    for pod in &cluster.pods {
        for port in &pod.host_ports {
            at.entry(&pod.node).or_default().insert((port.port, port.protocol));
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::oracle::{Cause, Direction};
    use crate::output::Paint;
    use userspace::model::{Backend, Endpoint, External, HostPort, Node, Pod, Service, ServicePort};

    fn port(port: u16, protocol: Protocol) -> ContainerPort {
        ContainerPort { name: None, port, protocol }
    }

    fn pod(id: &str, address: &str, ports: Vec<ContainerPort>) -> Pod {
        let (namespace, name) = id.split_once('/').unwrap();
        Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: Default::default(),
            node: "n1".to_owned(),
            addresses: vec![address.parse().unwrap()],
            host_network: false,
            ports,
            ready: true,
            ..Pod::default()
        }
    }

    fn cluster() -> Cluster {
        let node = Node {
            name: "n1".to_owned(),
            labels: Default::default(),
            addresses: vec!["10.240.0.4".parse().unwrap()],
            pod_cidrs: Vec::new(),
        };
        let service = Service {
            namespace: "shop".to_owned(),
            name: "api".to_owned(),
            addresses: vec!["10.96.0.10".parse().unwrap()],
            ports: vec![ServicePort { port: 80, ..ServicePort::default() }],
            ..Service::default()
        };
        let world = External {
            name: "world".to_owned(),
            address: "203.0.113.7".parse().unwrap(),
            ports: vec![port(443, Protocol::Tcp)],
        };
        Cluster {
            name: "lab".to_owned(),
            namespaces: [("shop".to_owned(), Default::default())].into(),
            nodes: vec![node],
            pods: vec![
                pod("shop/web", "10.244.1.2", Vec::new()),
                pod(
                    "shop/api",
                    "10.244.1.3",
                    vec![port(80, Protocol::Tcp), port(53, Protocol::Udp), port(80, Protocol::Tcp)],
                ),
            ],
            services: vec![service],
            externals: vec![world],
            ..Cluster::default()
        }
    }

    fn who(text: &str) -> Who {
        text.parse::<Endpoint>().unwrap().who
    }

    fn flow(from: &str, to: &str, port: u16, protocol: Protocol) -> Flow {
        Flow { from: who(from), to: who(to), port, protocol, over: None }
    }

    /// Answers with what it was given.
    struct Told(Vec<Measured>);

    impl Prober for Told {
        fn dataplane(&self) -> &'static str {
            "told"
        }
        fn probe(&mut self, _: &[Flow]) -> anyhow::Result<Vec<Measured>> {
            Ok(self.0.clone())
        }
    }

    fn denied(reason: Reason) -> Measured {
        Measured { reason: Some(reason), ..Verdict::Deny.into() }
    }

    fn grid() -> Grid {
        let flows = vec![
            flow("shop/web", "shop/api", 80, Protocol::Tcp),
            flow("shop/web", "svc:shop/api", 80, Protocol::Tcp),
            flow("ext:world", "shop/api", 80, Protocol::Tcp),
            flow("shop/web", "ext:world", 80, Protocol::Udp),
        ];
        let answers = vec![
            Verdict::Allow.into(),
            Measured { reason: Some(Reason::NoBackend), ..Verdict::Reject.into() },
            denied(Reason::Blackhole),
            Verdict::Reject.into(),
        ];
        Grid::measure(&cluster(), flows, &mut Told(answers)).unwrap()
    }

    #[test]
    fn all_pairs_are_each_source_to_each_declared_port_once() {
        let asked: Vec<String> = all_pairs(&cluster()).iter().map(ToString::to_string).collect();
        let from_a_pod = |from: &str| {
            ["shop/api:53/UDP", "shop/api:80/TCP", "svc:shop/api:80/TCP", "ext:world:443/TCP"]
                .map(|to| format!("{from} -> {to}"))
        };
        let from_outside = ["shop/api:53/UDP", "shop/api:80/TCP"].map(|to| format!("ext:world -> {to}"));
        let mut expected = [from_a_pod("shop/web"), from_a_pod("shop/api")].concat();
        expected.extend(from_outside);
        let sorted = |mut list: Vec<String>| {
            list.sort();
            list
        };
        assert_eq!(sorted(asked), sorted(expected));
    }

    #[test]
    fn ports_of_nodes_and_addresses_outside_are_dialled_from_outside_too() {
        let mut cluster = cluster();
        let node = cluster.nodes[0].clone();
        cluster.nodes.extend(["n2", "n3"].map(|name| Node { name: name.to_owned(), ..node.clone() }));
        let port = &mut cluster.services[0].ports[0];
        port.node_port = Some(30_080);
        let address = "10.244.1.3".parse().unwrap();
        let backend = Backend { node: Some("n2".to_owned()), ..Backend::new(address, 80) };
        port.backends = vec![backend];
        cluster.services[0].external_addresses = vec!["192.0.2.1".parse().unwrap()];
        cluster.pods[0].host_ports =
            vec![HostPort { address: None, port: 9000, protocol: Protocol::Udp, container_port: 53 }];
        let asked: Vec<String> = all_pairs(&cluster).iter().map(ToString::to_string).collect();
        for from in ["shop/web", "shop/api", "ext:world"] {
            let to_nodes: Vec<_> =
                asked.iter().filter_map(|flow| flow.strip_prefix(&format!("{from} -> node:"))).collect();
            assert_eq!(to_nodes, ["n1:9000/UDP", "n1:30080/TCP", "n2:30080/TCP"]);
            assert!(asked.contains(&format!("{from} -> svc:shop/api@external:80/TCP")), "{asked:?}");
        }
    }

    #[test]
    fn a_grid_counts_the_rows_that_differ_from_the_oracle() {
        let grid = grid();
        assert_eq!(grid.differences, 1);
        assert_eq!(grid.rows.iter().map(Row::differs).collect::<Vec<_>>(), [false, false, true, false]);
        assert_eq!(grid.summary(), "4 flows on told, 1 difference");
    }

    #[test]
    fn json_has_the_documented_keys_in_the_order_asked() {
        let json = serde_json::to_string(&grid()).unwrap();
        let begins = concat!(
            r#"{"cluster":"lab","dataplane":"told","flows":["#,
            r#"{"from":"shop/web","to":"shop/api","port":80,"protocol":"TCP","verdict":"allow","#,
            r#""reason":null,"decided_by":null,"expected":"allow"},"#,
            r#"{"from":"shop/web","to":"svc:shop/api","port":80,"protocol":"TCP","verdict":"reject","#,
            r#""reason":"no-backend","decided_by":null,"expected":"reject"},"#,
        );
        assert!(json.starts_with(begins), "{json}");
        assert!(json.ends_with(r#""expected":"reject"}],"differences":1}"#), "{json}");
    }

    #[test]
    fn what_is_left_open_is_null_and_differs_from_nothing() {
        let flows = vec![flow("ext:world", "svc:shop/api", 80, Protocol::Tcp)];
        let grid = Grid::measure(&cluster(), flows, &mut Told(vec![Verdict::Deny.into()])).unwrap();
        assert_eq!(grid.differences, 0);
        assert!(serde_json::to_string(&grid).unwrap().contains(r#""expected":null"#));
    }

    #[test]
    fn a_flow_between_two_of_both_families_is_measured_over_each_and_told_once() {
        let mut cluster = cluster();
        for (pod, address) in cluster.pods.iter_mut().zip(["fd00:1::2", "fd00:1::3"]) {
            pod.addresses.push(address.parse().unwrap());
        }
        let ask = |answers: [Verdict; 2]| {
            let flows = vec![flow("shop/web", "shop/api", 80, Protocol::Tcp)];
            let answers = answers.map(Measured::from).to_vec();
            Grid::measure(&cluster, flows, &mut Told(answers)).unwrap()
        };
        let grid = ask([Verdict::Allow, Verdict::Allow]);
        assert_eq!((grid.rows.len(), grid.rows[0].flow.over, grid.differences), (1, None, 0));
        for (answers, over) in
            [([Verdict::Deny, Verdict::Allow], Family::V4), ([Verdict::Allow, Verdict::Deny], Family::V6)]
        {
            let grid = ask(answers);
            assert_eq!((grid.rows.len(), grid.rows[0].flow.over, grid.differences), (1, Some(over), 1));
            assert_eq!(grid.rows[0].measured.verdict, Verdict::Deny);
            let json = serde_json::to_string(&grid).unwrap();
            assert!(json.contains(&format!(r#""over":"{}""#, word(over))), "{json}");
        }
    }

    #[test]
    fn a_family_that_is_lent_counts_only_where_there_is_no_other() {
        let mut cluster = cluster();
        cluster.settings.lent = Some(IpFamily::V6);
        for (pod, address) in cluster.pods.iter_mut().zip(["fd00:1::2", "fd00:1::3"]) {
            pod.addresses.push(address.parse().unwrap());
        }
        cluster.externals[0].address = "2001:db8::7".parse().unwrap();
        let flows = vec![
            flow("shop/web", "shop/api", 80, Protocol::Tcp),
            flow("shop/web", "ext:world", 443, Protocol::Tcp),
        ];
        let answers = vec![Verdict::Allow.into(); 2];
        let grid = Grid::measure(&cluster, flows, &mut Told(answers)).unwrap();
        assert_eq!((grid.rows.len(), grid.differences), (2, 0));
    }

    #[test]
    fn who_has_no_family_in_common_is_told_at_once() {
        let mut cluster = cluster();
        cluster.externals[0].address = "2001:db8::7".parse().unwrap();
        let flows = vec![flow("shop/web", "ext:world", 443, Protocol::Tcp)];
        let grid = Grid::measure(&cluster, flows, &mut Told(Vec::new())).unwrap();
        assert_eq!((grid.rows[0].measured.verdict, grid.differences), (Verdict::Reject, 0));
    }

    #[test]
    fn a_truth_table_is_printed_for_each_port() {
        let expected = [
            "80/TCP     1 2",
            "shop/web   . R",
            "ext:world  !",
            "  1 shop/api",
            "  2 svc:shop/api",
            "",
            "80/UDP    1",
            "shop/web  R",
            "  1 ext:world",
            "",
            "  . reaches   X denied   R rejected at once   ! differs from expected",
        ];
        let text = Tables::of(&grid()).text(Paint::default());
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn replicas_are_shown_as_one_where_there_are_too_many_columns() {
        let mut cluster = cluster();
        let replica = |number: u32| Pod {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..pod(&format!("shop/web-{number}"), &format!("10.244.2.{number}"), Vec::new())
        };
        cluster.pods.extend((1..=60).map(replica));
        let tcp = userspace::model::Port { number: 80, protocol: Protocol::Tcp };
        let pods_only = |flow: &Flow| matches!((&flow.from, &flow.to), (Who::Pod(_), Who::Pod(_)));
        let flows: Vec<Flow> = pairs_at(&cluster, &[tcp]).into_iter().filter(pods_only).collect();
        // Some reach the api, and none themselves.
        let answer = |flow: &Flow| {
            let odd = flow.from.to_string().ends_with('1') && flow.to == who("shop/api");
            let verdict = if odd || flow.from == flow.to { Verdict::Deny } else { Verdict::Allow };
            Measured::from(verdict)
        };
        let answers = flows.iter().map(answer).collect();
        let mut grid = Grid::measure(&cluster, flows, &mut Told(answers)).unwrap();
        for row in &mut grid.rows {
            row.expectation = Expectation::Undefined("nothing is expected");
        }
        let text = Tables::of(&grid).grouped(crowd::Crowds::of(&cluster)).text(Paint::default());
        let expected = [
            "80/TCP          1 2 3",
            "shop/web        X . .",
            "shop/api        . X .",
            "shop/web-* x60  . ~ .",
            "  1 shop/web",
            "  2 shop/api",
            "  3 shop/web-* x60",
            "",
            "  . reaches   X denied   R rejected at once   ! differs from expected   ~ some of them",
            "  replicas are shown as one; see each with --all, or in a page with --html FILE",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn rows_that_differ_are_listed_with_both_sides() {
        let mut grid = grid();
        assert_eq!(
            grid.differing(),
            "! ext:world -> shop/api:80/TCP\n    measured  deny: blackhole\n    expected  allow\n"
        );
        let row = &mut grid.rows[2];
        row.measured = Verdict::Allow.into();
        row.expectation = Expectation::Deny(Cause::Isolated {
            direction: Direction::Ingress,
            pod: "shop/api".to_owned(),
            policies: ["shop/api-allow".to_owned()].into(),
        });
        assert!(grid.differing().ends_with(
            "expected  deny: no rule allows it, ingress of shop/api is isolated by shop/api-allow\n"
        ));
    }

    #[test]
    fn lines_are_in_columns_and_mark_what_differs() {
        let lines = grid().lines();
        let third = lines.lines().nth(3).unwrap();
        let cells: Vec<&str> = third.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells, ["ext:world", "shop/api", "80/TCP", "deny", "allow !", "blackhole", "-"]);
    }

    fn read(text: &str) -> Result<Vec<Flow>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        read_flows(file.path(), &cluster())
            .map_err(|error| error.to_string().replace(file.path().to_str().unwrap(), "flows.json"))
    }

    #[test]
    fn a_flows_file_comes_back_row_by_row_duplicates_too() {
        let flows = read(
            r#"[["shop/web", "svc:shop/api", 80, "TCP"], ["ext:world", "shop/api", 53, "udp"], ["shop/web", "svc:shop/api", 80, "TCP"]]"#,
        )
        .unwrap();
        let service = flow("shop/web", "svc:shop/api", 80, Protocol::Tcp);
        assert_eq!(flows, [service.clone(), flow("ext:world", "shop/api", 53, Protocol::Udp), service]);
        assert_eq!(read("[]").unwrap(), []);
    }

    #[test]
    fn a_bad_row_is_named_with_file_row_and_field() {
        let good = r#"["shop/web", "shop/api", 80, "TCP"]"#;
        for (row, error) in [
            (
                r#"["shop/wbe", "shop/api", 80, "TCP"]"#,
                r#"from: unknown pod "shop/wbe", did you mean "shop/web"?"#,
            ),
            (
                r#"["svc:shop/api", "shop/api", 80, "TCP"]"#,
                "from: svc:shop/api cannot send: a Service is only an address to dial",
            ),
            (r#"["shop/web", 7, 80, "TCP"]"#, "to: expected a name, found a number"),
            (r#"["shop/web", "shop/api", 0, "TCP"]"#, "port: expected 1 to 65535, found 0"),
            (r#"["shop/web", "shop/api", "80", "TCP"]"#, r#"port: expected 1 to 65535, found "80""#),
            (
                r#"["shop/web", "shop/api", 80, "ICMP"]"#,
                r#"protocol: expected "TCP", "UDP" or "SCTP", found "ICMP""#,
            ),
            (
                r#"["shop/web", "shop/api", 80]"#,
                "length: expected [from, to, port, protocol], found 3 values",
            ),
            ("{}", "length: expected [from, to, port, protocol], found an object"),
        ] {
            assert_eq!(read(&format!("[{good}, {row}]")), Err(format!("flows.json: row 2: {error}")));
        }
    }

    #[test]
    fn a_flows_file_that_is_no_array_says_what_was_expected() {
        let error = read("{}").unwrap_err();
        assert_eq!(
            error,
            "flows.json: cannot read flows: it is an object; expected a JSON array of [from, to, port, protocol]"
        );
        assert!(read("[[").unwrap_err().starts_with("flows.json: cannot read flows: EOF"));
        let missing = read_flows(std::path::Path::new("/nowhere/flows.json"), &cluster()).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read flows from /nowhere/flows.json: "));
    }
}
