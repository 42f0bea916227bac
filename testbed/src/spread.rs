//! Where the flows of a client to a Service go: each source port dials once, on an emulated cluster, and what the
//! path made of it is counted.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use dataplane::trace::{Record, Stage};
use dataplane::wire::V6;
use dataplane::{Reason, service};
use serde::Serialize;
use userspace::engine::emulator::Network;
use userspace::engine::emulator::host::Outgoing;
use userspace::engine::emulator::message::{Body, Flags, Segment};
use userspace::model::{Algorithm, Backend, Cluster, Pod, Port, Protocol, Service, Who};
use userspace::observe::walk::{Event, Step};

use crate::oracle::{self, Standing};

/// Live nodes mix nothing into their hash, so neither do these: both choose alike.
const SEED: u32 = 0;

/// Flows to one frontend, and who answers them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Who dials.
    pub from: String,
    /// What is dialled, as it was asked for.
    pub to: String,
    /// The same, as the client dials it.
    pub target: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// The node whose path served the flows; none if no node saw them.
    pub node: Option<String>,
    /// How many were dialled.
    pub flows: usize,
    /// Every endpoint, in the order of the Service's.
    pub backends: Vec<Share>,
    /// Flows that were given to nobody, by the drop reason's slug.
    pub refused: BTreeMap<&'static str, usize>,
    /// Flows that no Service took: the address stands for nobody there.
    pub untouched: usize,
    /// How an endpoint is chosen; none if no node saw the flows.
    pub choice: Option<Choice>,
}

/// What one endpoint was given.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pod there, if it is one's.
    pub pod: Option<String>,
    /// Its node, if it is on one.
    pub node: Option<String>,
    /// Its zone, if that is known.
    pub zone: Option<String>,
    /// Whether it may be given flows, and why not.
    pub standing: Standing,
    /// How many it was given.
    pub flows: usize,
    /// Their part of all flows, 0 to 1.
    pub share: f64,
    /// The part that its weight promises, 0 to 1.
    pub expected_share: f64,
}

/// What is dialled.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Who dials.
    pub from: &'a Who,
    /// What is dialled.
    pub to: &'a Who,
    /// At which port.
    pub port: Port,
    /// From which ports, one flow each.
    pub sources: RangeInclusive<u16>,
}

/// What became of one flow.
enum Fate {
    To(SocketAddr),
    Refused(Reason),
    Untouched,
}

/// Where the path served a flow.
#[derive(Clone, Copy)]
struct Entry {
    node: usize,
    /// From a pod or process of the node.
    inside: bool,
}

/// Dials from every source port, and counts.
///
/// # Errors
/// A name is not in the cluster, or the cluster cannot be emulated.
pub fn spread(cluster: &Cluster, question: &Question<'_>) -> anyhow::Result<Spread> {
    let Question { from, to, port, sources } = question;
    let mut network = Network::new(cluster, SEED)?;
    network.hush(true);
    let host = network.host(&from.to_string())?;
    let own = network.host_at(host).addresses.clone();
    let target = SocketAddr::new(cluster.find(to)?.address_from(&own), port.number);
    if own.contains(&target.ip()) {
        anyhow::bail!(
            "cannot say where {to} leads from {from}: what it sends to its own address never leaves it"
        );
    }
    let mut entry = None;
    let mut given: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    let (mut refused, mut untouched) = (BTreeMap::new(), 0);
    for source in sources.clone() {
        let body = opening(port.protocol, source, port.number);
        let (place, frame) = network.framed(host, Outgoing { target: target.ip(), body })?;
        network.send(place, frame);
        network.run()?;
        let (at, fate) = fate(&network.take_steps());
        entry = entry.or(at);
        match fate {
            Fate::To(backend) => *given.entry(backend).or_default() += 1,
            Fate::Refused(reason) => *refused.entry(reason.slug()).or_default() += 1,
            Fate::Untouched => untouched += 1,
        }
    }
    let flows = sources.len();
    let node = entry.and_then(|entry| cluster.nodes.get(entry.node));
    let standings = node.zip(entry).map_or(Vec::new(), |(node, entry)| {
        oracle::standings(cluster, target, port.protocol, node, entry.inside)
    });
    let backends = shares(cluster, &standings, &mut given, flows);
    if let Some((stranger, _)) = given.first_key_value() {
        anyhow::bail!(
            "cannot say where {to} leads: the path sends flows to {stranger}, which is no endpoint of it"
        );
    }
    Ok(Spread {
        from: from.to_string(),
        to: to.to_string(),
        target,
        protocol: port.protocol,
        node: node.map(|node| node.name.clone()),
        flows,
        backends,
        refused,
        untouched,
        choice: node.map(|_| Choice::among(cluster, target, &standings)),
    })
}

/// Why a flow went to the endpoint that a Service gave it to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// Endpoints that there are.
    pub endpoints: usize,
    /// Those that might have answered as well, and itself.
    pub candidates: usize,
    /// The others, by why they might not.
    pub left_out: BTreeMap<Standing, usize>,
    /// Why this one of them.
    pub why: String,
}

impl Choice {
    /// The choice among these.
    pub fn among(cluster: &Cluster, target: SocketAddr, standings: &[(Backend, Standing)]) -> Self {
        let mut left_out = BTreeMap::new();
        for (_, standing) in standings.iter().filter(|(_, standing)| *standing != Standing::Candidate) {
            *left_out.entry(*standing).or_default() += 1;
        }
        let candidates: Vec<&Backend> =
            standings.iter().filter(|(_, it)| *it == Standing::Candidate).map(|(it, _)| it).collect();
        let affinity_s = service_at(cluster, target).and_then(|service| service.affinity_s);
        let why = match (candidates.len(), affinity_s, cluster.settings.services.algorithm) {
            (0 | 1, ..) => "there is no other".to_owned(),
            (_, Some(seconds), _) => {
                format!("session affinity, {seconds}s after the client's last connection")
            }
            (_, None, Algorithm::Maglev) => "by the flow's hash".to_owned(),
            (_, None, Algorithm::Random) => "by chance".to_owned(),
        };
        let going = !candidates.is_empty() && candidates.iter().all(|it| !it.ready);
        let why = if going { format!("none is ready, so those that go: {why}") } else { why };
        Self { endpoints: standings.len(), candidates: candidates.len(), left_out, why }
    }

    /// That of the first packet or socket that a Service translated; none if none did.
    pub fn of(cluster: &Cluster, steps: &[Step]) -> Option<Self> {
        let mut inside = false;
        for step in steps {
            let Event::Stage { node, record } = &step.event else { continue };
            match Stage::from_number(record.stage) {
                Some(Stage::FromPod | Stage::FromHost) => inside = true,
                Some(stage @ (Stage::Service | Stage::Socket)) => {
                    inside |= stage as u8 == Stage::Socket as u8;
                    let target = SocketAddr::new(ip(record.source), record.source_port.host());
                    let numbered = |protocol: &Protocol| protocol.number() == record.protocol;
                    let protocol =
                        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(numbered)?;
                    let node = cluster.nodes.get(*node)?;
                    let standings = oracle::standings(cluster, target, protocol, node, inside);
                    return Some(Self::among(cluster, target, &standings));
                }
                _ => {}
            }
        }
        None
    }
}

/// Of each packet that a Service translated, in their order: whether it stayed with the endpoint that its flow was
/// given before, and nothing was chosen.
pub fn kept(steps: &[Step]) -> Vec<bool> {
    let mut translated: Vec<(u32, bool)> = steps
        .iter()
        .filter_map(|step| match &step.event {
            Event::Stage { record, .. } if record.stage == Stage::Service as u8 => {
                Some((step.packet, record.detail == service::KEPT))
            }
            _ => None,
        })
        .collect();
    translated.sort_by_key(|(packet, _)| *packet);
    translated.into_iter().map(|(_, kept)| kept).collect()
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoints, candidates, left_out, why } = self;
        write!(f, "{candidates} of {endpoints} endpoints may answer")?;
        if !left_out.is_empty() {
            let left_out = left_out.iter().map(|(standing, count)| format!("{count} {standing}"));
            write!(f, " ({})", left_out.collect::<Vec<_>>().join(", "))?;
        }
        write!(f, ": {why}")
    }
}

/// The Service that an address and port of it, or of a node, stands for.
fn service_at(cluster: &Cluster, target: SocketAddr) -> Option<&Service> {
    let at_a_node = cluster.nodes.iter().any(|node| node.addresses.contains(&target.ip()));
    cluster.services.iter().find(|service| {
        let own = [&service.addresses, &service.external_addresses, &service.load_balancer_addresses];
        let node_port = || service.ports.iter().any(|port| port.node_port == Some(target.port()));
        own.iter().any(|addresses| addresses.contains(&target.ip())) || (at_a_node && node_port())
    })
}

/// The first packet of a flow.
fn opening(protocol: Protocol, source_port: u16, target_port: u16) -> Body {
    match protocol {
        Protocol::Tcp => {
            Body::Tcp(Segment { source_port, target_port, flags: Flags::SYN, ..Segment::default() })
        }
        Protocol::Udp => Body::Udp { source_port, target_port, data: b"where".to_vec() },
        Protocol::Sctp => {
            // The ports, then a verification tag and a checksum of zero.
            let ports = [source_port.to_be_bytes(), target_port.to_be_bytes()].concat();
            Body::Other { protocol: protocol.number(), data: [ports, vec![0; 8]].concat() }
        }
    }
}

/// Where the packet was translated or dropped first, and what became of it there.
fn fate(steps: &[Step]) -> (Option<Entry>, Fate) {
    let mut inside = false;
    for step in steps {
        let Event::Stage { node, record } = &step.event else { continue };
        let entry = Some(Entry { node: *node, inside });
        match Stage::from_number(record.stage) {
            Some(Stage::FromPod | Stage::FromHost) => inside = true,
            Some(Stage::Service) => return (entry, Fate::To(backend(record))),
            Some(Stage::Drop) => {
                return (entry, Reason::from_number(record.detail).map_or(Fate::Untouched, Fate::Refused));
            }
            _ => {}
        }
    }
    (None, Fate::Untouched)
}

fn backend(record: &Record) -> SocketAddr {
    SocketAddr::new(ip(record.target), record.target_port.host())
}

fn ip(V6(bytes): V6) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

/// Every endpoint with what it was given, which is taken from `given`.
fn shares(
    cluster: &Cluster,
    standings: &[(Backend, Standing)],
    given: &mut BTreeMap<SocketAddr, usize>,
    flows: usize,
) -> Vec<Share> {
    let weight = |standing: &(Backend, Standing)| match standing {
        (backend, Standing::Candidate) => f64::from(backend.weight),
        _ => 0.0,
    };
    let all: f64 = standings.iter().map(weight).sum();
    let part = |of: f64, all: f64| if all > 0.0 { of / all } else { 0.0 };
    standings
        .iter()
        .map(|one| {
            let (backend, standing) = one;
            let address = SocketAddr::new(backend.address, backend.port);
            let count = given.remove(&address).unwrap_or(0);
            let at = |pod: &&Pod| pod.addresses.contains(&backend.address);
            Share {
                address,
                pod: cluster.pods.iter().find(at).map(Pod::id),
                node: backend.node.clone(),
                zone: backend.zone.clone(),
                standing: *standing,
                flows: count,
                share: part(count as f64, flows as f64),
                expected_share: part(weight(one), all),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use userspace::model::{Endpoint, load_text};

    use super::*;

    const CLUSTER: &str = r"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: spread}
spec: {nodes: 2}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  replicas: 4
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, protocol: UDP, port: 53}]}
---
apiVersion: v1
kind: Service
metadata: {name: none}
spec: {selector: {app: none}, ports: [{port: 80}]}
";

    fn asked(cluster: &Cluster, to: &str, sources: RangeInclusive<u16>) -> Spread {
        let Endpoint { who, port } = to.parse().unwrap();
        let from = Who::Pod("default/web".to_owned());
        let question = Question { from: &from, to: &who, port: port.unwrap(), sources };
        spread(cluster, &question).unwrap()
    }

    #[test]
    fn flows_are_spread_evenly_over_endpoints_of_one_weight() {
        let cluster = load_text("spread", CLUSTER).unwrap();
        for to in ["svc:default/api:80", "svc:default/api:53/udp"] {
            let spread = asked(&cluster, to, 2000..=2999);
            assert_eq!((spread.node.as_deref(), spread.flows, spread.backends.len()), (Some("n1"), 1000, 4));
            assert_eq!(spread.backends.iter().map(|one| one.flows).sum::<usize>(), 1000);
            assert_eq!((spread.refused.len(), spread.untouched), (0, 0));
            for one in &spread.backends {
                // Five standard deviations of 1,000 draws at a quarter.
                assert!((one.share - 0.25).abs() < 5.0 * 0.0137, "{one:?}");
                assert!((one.expected_share - 0.25).abs() < f64::EPSILON);
                assert!(one.pod.as_ref().is_some_and(|pod| pod.starts_with("default/api-")), "{one:?}");
            }
        }
    }

    #[test]
    fn the_same_port_always_leads_to_the_same_endpoint() {
        let cluster = load_text("spread", CLUSTER).unwrap();
        let one = asked(&cluster, "svc:default/api:80", 40_000..=40_000);
        assert_eq!(one.backends.iter().filter(|share| share.flows == 1).count(), 1);
        assert_eq!(one.clone(), asked(&cluster, "svc:default/api:80", 40_000..=40_000));
        let choice = one.choice.unwrap();
        assert_eq!(choice.to_string(), "4 of 4 endpoints may answer: by the flow's hash");
    }

    #[test]
    fn a_choice_says_who_is_left_out_and_why() {
        let mut cluster = load_text("spread", CLUSTER).unwrap();
        let service = &mut cluster.services[0];
        service.affinity_s = Some(60);
        let backends = &mut service.ports[0].backends;
        (backends[0].ready, backends[0].serving) = (false, false);
        (backends[1].ready, backends[1].terminating) = (false, true);
        let said =
            |cluster: &Cluster| asked(cluster, "svc:default/api:80", 1..=1).choice.unwrap().to_string();
        assert_eq!(
            said(&cluster),
            "2 of 4 endpoints may answer (1 not ready, 1 terminating): session affinity, 60s after the client's \
             last connection"
        );
        let backends = &mut cluster.services[0].ports[0].backends;
        backends.truncate(2);
        assert_eq!(
            said(&cluster),
            "1 of 2 endpoints may answer (1 not ready): none is ready, so those that go: there is no other"
        );
    }

    #[test]
    fn what_nobody_answers_is_counted_by_its_reason() {
        let cluster = load_text("spread", CLUSTER).unwrap();
        let spread = asked(&cluster, "svc:default/none:80", 2000..=2009);
        assert_eq!(spread.refused, BTreeMap::from([("no-backend", 10)]));
        assert!(spread.backends.is_empty());
    }
}
