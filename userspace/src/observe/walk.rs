//! The walk of a packet in words: one line per stage, the stage's name in the left column.
//!
//! The same text is the expectation of every case, what `podpath explain` prints, and what a live trace
//! says.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr};

use dataplane::Reason;
use dataplane::conntrack::State;
use dataplane::fragment;
use dataplane::nat::Change;
use dataplane::overlay;
use dataplane::policy::Decision;
use dataplane::reject;
use dataplane::tables::{Endpoint, IfIndex, Node, Route};
use dataplane::trace::{Record, Stage};
use dataplane::wire::ip::ecn;
use dataplane::wire::{Address, Port, V6};

use crate::engine::Hook;
use crate::engine::emulator::message::Chunk;
use crate::model::Cluster;
use crate::plan::{Links, NodePlan, Plan, RuleName, Rules};

/// Width of the left column.
const COLUMN: usize = 15;

/// One thing that happened to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which packet: they are numbered in the order in which they were sent.
    pub packet: u32,
    /// What happened.
    pub event: Event,
}

/// What can happen to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stage of a node's path said so.
    Stage {
        /// The node, counted from 0 in the order of the cluster's nodes.
        node: usize,
        /// What it said.
        record: Record,
    },
    /// It entered a node's path, which refused it, or let it pass, before it said so itself.
    Entered {
        /// The node.
        node: usize,
        /// Where.
        hook: Hook,
        /// By which interface.
        interface: IfIndex,
    },
    /// The path answered an ARP question.
    Answered {
        /// The node.
        node: usize,
        /// The pod's interface on it.
        interface: IfIndex,
    },
    /// The node's path left the packet to the node's own stack without a word.
    Ignored {
        /// The node.
        node: usize,
    },
    /// It never left its host, which spoke to itself.
    Loopback {
        /// The host's name.
        host: String,
    },
    /// The fabric did something to it, beside passing it on.
    Fabric {
        /// What, for people.
        says: String,
    },
    /// It got lost outside of any node's path.
    Lost {
        /// `fabric`, `wire` or `host`.
        place: &'static str,
        /// Why, for people.
        why: String,
    },
}

/// What interfaces, addresses and rules of a cluster are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The nodes, in the cluster's order.
    pub nodes: Vec<NodeNames>,
    /// Pods by address, as `namespace/name`.
    pub pods: BTreeMap<IpAddr, String>,
    /// The policies that select a pod (`namespace/name`), for a direction (bits of [`Endpoint::isolated`]).
    pub isolators: BTreeMap<(String, u8), Vec<String>>,
}

/// What is called how on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNames {
    /// The node's own name.
    pub name: String,
    /// Pods by their interface, as `namespace/name`.
    pub pods: BTreeMap<IfIndex, String>,
    /// Rules, by [`dataplane::tables::RuleId`].
    pub rules: Rules,
}

impl Names {
    /// The names of a cluster, its plan's and each node's: its links and its own plan.
    pub fn of<'a>(
        cluster: &Cluster,
        plan: &Plan,
        nodes: impl Iterator<Item = (&'a Links, NodePlan)>,
    ) -> Self {
        let own = cluster.pods.iter().filter(|pod| !pod.host_network);
        let named = own.flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.id())));
        let pods: BTreeMap<_, _> = named.collect();
        let mut isolators = BTreeMap::new();
        let names = cluster.nodes.iter().zip(nodes).map(|(node, (links, planned))| {
            let v4 = planned.rows.v4.endpoints.iter().map(|(address, row)| (address.to_v6(), row));
            let v6 = planned.rows.v6.endpoints.iter().map(|(address, row)| (*address, row));
            for (address, endpoint) in v4.chain(v6) {
                let Some(pod) = pods.get(&ip(address)) else { continue };
                for direction in [Endpoint::INGRESS, Endpoint::EGRESS] {
                    if endpoint.isolated & direction != 0 {
                        let policies = plan.isolating(pod, direction).into_iter().map(str::to_owned);
                        isolators.insert((pod.clone(), direction), policies.collect());
                    }
                }
            }
            NodeNames {
                name: node.name.clone(),
                pods: links.pods.iter().map(|(pod, interface)| (*interface, pod.clone())).collect(),
                rules: planned.rules,
            }
        });
        Self { nodes: names.collect(), pods, isolators }
    }

    /// The rule that decided about a flow, for the last step in which one did; for a denial the policy that
    /// isolates the pod.
    pub fn decider(&self, steps: &[Step]) -> Option<RuleName> {
        steps.iter().rev().find_map(|step| {
            let Event::Stage { node, record } = &step.event else { return None };
            if Stage::from_number(record.stage) != Some(Stage::Policy) {
                return None;
            }
            match Decision::told(record.detail, record.number)? {
                // What passes all the same was not decided.
                (_, true) => None,
                (Decision::Allowed | Decision::DeniedByRule, _) => self.rule(*node, record).cloned(),
                (Decision::Denied, _) => {
                    let policy = self.isolators(record).first()?.clone();
                    Some(RuleName { policy, rule: String::new() })
                }
                (Decision::NotIsolated | Decision::OwnNode | Decision::Itself | Decision::Incomplete, _) => {
                    None
                }
            }
        })
    }

    fn node(&self, node: usize) -> &str {
        self.nodes.get(node).map_or("a node unknown here", |names| &names.name)
    }

    fn pod_at(&self, node: usize, interface: u32) -> String {
        let pod = self.nodes.get(node).and_then(|names| names.pods.get(&IfIndex(interface)));
        pod.cloned().unwrap_or_else(|| format!("interface {interface}"))
    }

    fn pod_of(&self, address: V6) -> String {
        let address = ip(address);
        self.pods.get(&address).cloned().unwrap_or_else(|| address.to_string())
    }

    fn rule(&self, node: usize, record: &Record) -> Option<&RuleName> {
        if record.number == 0 {
            return None;
        }
        let Rules { v4, v6 } = &self.nodes.get(node)?.rules;
        let rules = if record.source.is_v4() { v4 } else { v6 };
        rules.get(record.number as usize)
    }

    fn isolators(&self, record: &Record) -> &[String] {
        let pod = self.pod_of(judged(record));
        self.isolators.get(&(pod, record.direction)).map_or(&[], Vec::as_slice)
    }
}

/// The steps in words: a line each, an empty line between packets.
pub fn print(steps: &[Step], names: &Names) -> String {
    let mut steps: Vec<&Step> = steps.iter().collect();
    // Packets cross each other on the way: tell the story of one after the other's.
    steps.sort_by_key(|step| step.packet);
    let mut text = String::new();
    for packet in steps.chunk_by(|left, right| left.packet == right.packet) {
        let mut printed = Printed::default();
        let lines: Vec<Line> = packet.iter().filter_map(|step| printed.line(&step.event, names)).collect();
        if !text.is_empty() && !lines.is_empty() {
            text.push('\n');
        }
        for line in lines {
            writeln!(text, "{line}").expect("a String takes everything");
        }
    }
    text
}

/// A line: the stage, and what it says.
struct Line(&'static str, String);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(stage, says) = self;
        write!(f, "{}", format!("{stage:COLUMN$}{says}").trim_end())
    }
}

/// What earlier lines of a packet mean for the later ones.
#[derive(Default)]
struct Printed {
    /// How it stands to its flow.
    state: Option<State>,
    /// It was encapsulated last: where it goes has been said.
    wrapped: bool,
}

impl Printed {
    fn line(&mut self, event: &Event, names: &Names) -> Option<Line> {
        Some(match event {
            Event::Stage { node, record } => return self.stage(*node, record, names),
            Event::Entered { node, hook, interface } => {
                let stage = match hook {
                    Hook::FromPod => Stage::FromPod,
                    Hook::FromUnderlay => Stage::FromUnderlay,
                    Hook::FromHost => Stage::FromHost,
                };
                let head = Record { stage: stage as u8, number: interface.0, ..Record::default() };
                return self.stage(*node, &head, names);
            }
            Event::Answered { interface, node } => {
                let pod = names.pod_at(*node, interface.0);
                Line("neighbour", format!("{pod} is answered by its gateway"))
            }
            Event::Ignored { node } => Line("to_host", format!("{}  not for the path", names.node(*node))),
            Event::Loopback { host } => Line("loopback", host.clone()),
            Event::Fabric { says } => Line("fabric", says.clone()),
            Event::Lost { place, why } => Line(place, why.clone()),
        })
    }

    fn stage(&mut self, node: usize, record: &Record, names: &Names) -> Option<Line> {
        let stage = Stage::from_number(record.stage)?;
        let wrapped = std::mem::take(&mut self.wrapped);
        let says = match stage {
            Stage::FromPod => format!("{}  {}", names.node(node), names.pod_at(node, record.number)),
            Stage::FromUnderlay | Stage::FromHost => names.node(node).to_owned(),
            Stage::Service | Stage::Socket => change(record),
            Stage::Conntrack => self.conntrack(record),
            Stage::Policy => policy(node, record, names),
            Stage::Route => route(node, record, names),
            Stage::Nat => nat(record),
            Stage::Overlay if record.detail == overlay::WRAPPED => {
                self.wrapped = true;
                let (source, target) = (ip(record.source), ip(record.target));
                let tunnel = if record.flags == Node::GENEVE { "geneve" } else { "vxlan" };
                format!("{tunnel} vni {}, {source} -> {target}", record.number)
            }
            Stage::Overlay if record.detail == overlay::TOLD => {
                format!("direct, the client dialled {}", end(record.source, record.source_port))
            }
            Stage::Overlay if record.detail == overlay::HEARD => {
                let dialled = end(record.source, record.source_port);
                format!("unwrap{}, the client dialled {dialled}", mark(record.flags))
            }
            Stage::Overlay => format!("unwrap{}", mark(record.flags)),
            Stage::Reject => match record.detail {
                reject::RESET => "the sender gets a reset".to_owned(),
                reject::UNREACHABLE => "the sender is told that nobody is at the port".to_owned(),
                _ => format!("the sender is told that there is room for {} bytes", record.number),
            },
            Stage::Mss => format!("{} -> {}", record.source_port, record.target_port),
            Stage::ToPod => format!("{}  {}", names.pod_at(node, record.number), self.flow(record)),
            Stage::ToUnderlay if wrapped => return None,
            Stage::ToUnderlay | Stage::ToHost => format!("{}  {}", names.node(node), self.flow(record)),
            Stage::Drop => {
                let reason = Reason::from_number(record.detail)?;
                format!("{}: {}", reason.slug(), reason.sentence())
            }
            Stage::Arp => String::new(),
            Stage::Fragment if record.detail == fragment::FIRST => {
                "the first, its ports are remembered".to_owned()
            }
            Stage::Fragment => format!("from byte {}, goes with the first", record.number),
        };
        Some(Line(stage.word(), says))
    }

    fn conntrack(&mut self, record: &Record) -> String {
        let state = [State::New, State::Established, State::Reply, State::Related]
            .into_iter()
            .find(|state| *state as u8 == record.detail);
        self.state = state;
        match state {
            Some(State::New) => "new".to_owned(),
            Some(State::Established) => "established".to_owned(),
            Some(State::Reply) => "reply".to_owned(),
            Some(State::Related) => "related".to_owned(),
            None => format!("state {}", record.detail),
        }
    }

    /// The packet's ends, and what it is. The client's port says nothing, so it is left out.
    fn flow(&self, record: &Record) -> String {
        let (mut source, mut target) =
            (end(record.source, record.source_port), end(record.target, record.target_port));
        match self.state {
            Some(State::Related) => {
                let about = kind(&Record { flags: 0, ..*record });
                let icmp = if record.source.is_v4() { 1 } else { 58 };
                let error = kind(&Record { protocol: icmp, ..*record });
                return format!("{source} -> {target} {error} about {about}");
            }
            Some(State::Reply) => target = ip(record.target).to_string(),
            _ => source = ip(record.source).to_string(),
        }
        format!("{source} -> {target} {}", kind(record))
    }
}

/// The protocol, and TCP's flags, ICMP's type or SCTP's chunk.
fn kind(record: &Record) -> String {
    const FLAGS: [(u8, &str); 5] = [(2, "syn"), (1, "fin"), (4, "rst"), (8, "psh"), (16, "ack")];
    match record.protocol {
        6 => FLAGS
            .iter()
            .filter(|(bit, _)| record.flags & bit != 0)
            .fold("tcp".to_owned(), |text, (_, flag)| text + " " + flag),
        17 => "udp".to_owned(),
        1 => match record.flags {
            0 => "icmp echo reply".to_owned(),
            3 => "icmp unreachable".to_owned(),
            8 => "icmp echo".to_owned(),
            11 => "icmp time exceeded".to_owned(),
            number => format!("icmp type {number}"),
        },
        58 => match record.flags {
            0 => "icmpv6".to_owned(),
            1 => "icmpv6 unreachable".to_owned(),
            2 => "icmpv6 too big".to_owned(),
            3 => "icmpv6 time exceeded".to_owned(),
            128 => "icmpv6 echo".to_owned(),
            129 => "icmpv6 echo reply".to_owned(),
            number => format!("icmpv6 type {number}"),
        },
        132 => match Chunk::WORDS.iter().find(|(number, _)| *number == record.flags) {
            // Data, or what does not say what it is: a fragment, or what an error quotes.
            Some((Chunk::DATA, _)) => "sctp".to_owned(),
            Some((_, word)) => format!("sctp {word}"),
            None => format!("sctp chunk {}", record.flags),
        },
        number => format!("protocol {number}"),
    }
}

fn policy(node: usize, record: &Record, names: &Names) -> String {
    let direction = if record.direction == Endpoint::EGRESS { "egress" } else { "ingress" };
    let pod = names.pod_of(judged(record));
    let by = || match names.rule(node, record) {
        Some(RuleName { policy, rule }) => format!("{policy} {rule}"),
        None => format!("rule {}", record.number),
    };
    let Some((decision, audited)) = Decision::told(record.detail, record.number) else {
        return format!("{direction} decision {}", record.detail);
    };
    let mut text = match decision {
        Decision::NotIsolated => format!("{direction} allow, no policy selects {pod}"),
        Decision::Allowed if record.number == 0 => format!("{direction} allow, no policy denies it"),
        Decision::Allowed => format!("{direction} allow by {}", by()),
        Decision::Denied => {
            let isolators = names.isolators(record).join(", ");
            format!("{direction} deny, isolated by {isolators} and no rule allows")
        }
        Decision::DeniedByRule => format!("{direction} deny by {}", by()),
        Decision::Incomplete => format!("{direction} undecided, the rules of {pod} do not fit"),
        Decision::OwnNode => format!("{direction} allow, from the pod's own node"),
        Decision::Itself => format!("{direction} allow, from the pod itself"),
    };
    if audited {
        text += ": audit lets it pass";
    }
    text
}

/// The address of the pod whose policies were asked.
fn judged(record: &Record) -> V6 {
    if record.direction == Endpoint::EGRESS { record.source } else { record.target }
}

fn route(node: usize, record: &Record, names: &Names) -> String {
    match record.detail {
        0 => format!("pod {}", names.pod_at(node, record.number)),
        Route::HOST => "host".to_owned(),
        kind @ (Route::REMOTE | Route::ROUTED) => {
            let node = (record.number as usize).checked_sub(1).map_or("unknown", |index| names.node(index));
            format!("{} {node}", if kind == Route::REMOTE { "remote" } else { "routed" })
        }
        Route::WORLD => "world".to_owned(),
        Route::NATIVE => "world, with the pod's own address".to_owned(),
        Route::BLACKHOLE => "blackhole".to_owned(),
        kind => format!("kind {kind}"),
    }
}

/// What the tunnel's outer header added to a packet's ECN.
fn mark(added: u8) -> &'static str {
    match added {
        ecn::EXPERIENCED => ", congestion experienced",
        ecn::CAPABLE_1 => ", ect(1)",
        _ => "",
    }
}

fn nat(record: &Record) -> String {
    let word = match record.detail {
        number if number == Change::Frontend as u8 => "frontend",
        number if number == Change::Masquerade as u8 => "masquerade",
        number if number == Change::Restore as u8 => "restore",
        number if number == Change::StandIn as u8 => "another port",
        number if number == Change::OwnPort as u8 => "own port",
        _ => "change",
    };
    format!("{word} {}", change(record))
}

fn change(record: &Record) -> String {
    format!("{} -> {}", end(record.source, record.source_port), end(record.target, record.target_port))
}

fn end(address: V6, port: Port) -> String {
    let (address, port) = (ip(address), port.host());
    match address {
        _ if port == 0 => address.to_string(),
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

fn ip(V6(bytes): V6) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

#[cfg(test)]
mod tests {
    use dataplane::wire::{Be16, V4};

    use super::*;

    const WEB: V4 = V4([10, 244, 1, 5]);
    const API: V4 = V4([10, 244, 2, 7]);

    fn names() -> Names {
        let node = |name: &str, pod: &str, rules| NodeNames {
            name: name.to_owned(),
            pods: BTreeMap::from([(IfIndex(3), pod.to_owned())]),
            rules,
        };
        let rule = RuleName { policy: "shop/api-from-web".to_owned(), rule: "ingress[0]".to_owned() };
        Names {
            nodes: vec![
                node("n1", "default/web", Rules::default()),
                node("n2", "default/api", Rules { v4: vec![RuleName::default(), rule], ..Rules::default() }),
            ],
            pods: BTreeMap::from([
                (ip(WEB.to_v6()), "default/web".to_owned()),
                (ip(API.to_v6()), "default/api".to_owned()),
            ]),
            isolators: BTreeMap::from([(
                ("default/api".to_owned(), Endpoint::INGRESS),
                vec!["shop/deny-all".to_owned()],
            )]),
        }
    }

    fn step(node: usize, stage: Stage, change: impl FnOnce(&mut Record)) -> Step {
        let mut record = Record {
            stage: stage as u8,
            protocol: 6,
            flags: 2,
            number: 3,
            source: WEB.to_v6(),
            source_port: Be16::new(40_000),
            target: API.to_v6(),
            target_port: Be16::new(8080),
            ..Record::default()
        };
        change(&mut record);
        Step { packet: 0, event: Event::Stage { node, record } }
    }

    #[test]
    fn a_walk_to_a_remote_pod_reads_as_a_story() {
        let steps = [
            step(0, Stage::FromPod, |_| ()),
            step(0, Stage::Service, |record| {
                (record.source, record.source_port) = (V4([10, 96, 0, 10]).to_v6(), Be16::new(80));
            }),
            step(0, Stage::Conntrack, |record| record.detail = State::New as u8),
            step(0, Stage::Policy, |record| {
                (record.detail, record.direction) = (Decision::NotIsolated as u8, Endpoint::EGRESS);
            }),
            step(0, Stage::Route, |record| (record.detail, record.number) = (Route::REMOTE, 2)),
            step(0, Stage::Overlay, |record| {
                (record.detail, record.number, record.flags) = (overlay::WRAPPED, 1, Node::VXLAN);
                (record.source, record.target) = (V4([10, 240, 0, 4]).to_v6(), V4([10, 240, 0, 5]).to_v6());
            }),
            step(0, Stage::ToUnderlay, |_| ()),
            step(1, Stage::FromUnderlay, |_| ()),
            step(1, Stage::Overlay, |record| record.detail = overlay::UNWRAPPED),
            step(1, Stage::Policy, |record| {
                (record.detail, record.direction, record.number) =
                    (Decision::Allowed as u8, Endpoint::INGRESS, 1);
            }),
            step(1, Stage::ToPod, |_| ()),
        ];
        let expected = "\
from_pod       n1  default/web
service        10.96.0.10:80 -> 10.244.2.7:8080
conntrack      new
policy         egress allow, no policy selects default/web
route          remote n2
overlay        vxlan vni 1, 10.240.0.4 -> 10.240.0.5
from_underlay  n2
overlay        unwrap
policy         ingress allow by shop/api-from-web ingress[0]
to_pod         default/api  10.244.1.5 -> 10.244.2.7:8080 tcp syn
";
        assert_eq!(print(&steps, &names()), expected);
        let decider = names().decider(&steps).expect("a rule decided");
        assert_eq!((decider.policy.as_str(), decider.rule.as_str()), ("shop/api-from-web", "ingress[0]"));
    }

    #[test]
    fn a_denial_names_the_policy_that_isolates_the_pod() {
        let steps = [
            step(1, Stage::Policy, |record| {
                (record.detail, record.direction) = (Decision::Denied as u8, Endpoint::INGRESS);
            }),
            step(1, Stage::Drop, |record| record.detail = Reason::PolicyDenied as u8),
        ];
        let expected = "\
policy         ingress deny, isolated by shop/deny-all and no rule allows
drop           policy-denied: A policy isolates the pod and no rule of it allows the flow, or a rule denies it.
";
        assert_eq!(print(&steps, &names()), expected);
        assert_eq!(names().decider(&steps).expect("a policy decided").policy, "shop/deny-all");
        // A row may say so as well: it is then no rule's.
        let mut by_row = steps;
        if let Event::Stage { record, .. } = &mut by_row[0].event {
            (record.detail, record.number) = (Decision::DeniedByRule as u8, 0);
        }
        assert_eq!(print(&by_row, &names()), expected);
        assert_eq!(names().decider(&by_row).expect("a policy decided").policy, "shop/deny-all");
    }

    #[test]
    fn a_denial_by_a_rule_names_it_and_what_audit_lets_pass_decides_nothing() {
        let judged = |detail: u8| {
            step(1, Stage::Policy, move |record| {
                (record.detail, record.direction, record.number) = (detail, Endpoint::INGRESS, 1);
            })
        };
        let (denied, waived) =
            (Decision::DeniedByRule as u8, Decision::DeniedByRule as u8 | dataplane::policy::AUDITED);
        let text = print(&[judged(denied), judged(waived)], &names());
        let expected = "\
policy         ingress deny by shop/api-from-web ingress[0]
policy         ingress deny by shop/api-from-web ingress[0]: audit lets it pass
";
        assert_eq!(text, expected);
        assert_eq!(names().decider(&[judged(denied)]).expect("a rule decided").policy, "shop/api-from-web");
        assert_eq!(names().decider(&[judged(waived)]), None);
    }

    #[test]
    fn packets_that_cross_are_told_one_after_the_other() {
        let lost =
            |packet, why: &str| Step { packet, event: Event::Lost { place: "fabric", why: why.to_owned() } };
        let steps = [lost(2, "two"), lost(1, "one"), lost(2, "more of two")];
        let expected = "\
fabric         one

fabric         two
fabric         more of two
";
        assert_eq!(print(&steps, &names()), expected);
    }
}
