//! What the rows of one family say, asked once for each subject, peer and port.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use dataplane::flow::Flow;
use dataplane::policy::{self, Decision, Question};
use dataplane::tables::{Endpoint, Identity, IfIndex};
use dataplane::wire::{Be16, Mac};
use dataplane::{Platform, Reason};

use super::super::Emulator;
use super::super::frame::bytes_of;
use super::{Direction, Verdict, Why};
use crate::model::Port;
use crate::plan::{Family, PolicyPrefix, Rows, RuleName};

/// The rows of all nodes that flows are judged by, as if of one node with more room.
pub(super) struct Gathered<A: Family> {
    nodes: usize,
    /// Rule sets whose rows are here.
    known: HashSet<u32>,
    /// Pods: their nodes, and how they are judged.
    pods: BTreeMap<A, (u32, Endpoint)>,
    names: Vec<RuleName>,
    rows: Rows<A>,
}

impl<A: Family> Default for Gathered<A> {
    fn default() -> Self {
        Self {
            nodes: 0,
            known: HashSet::new(),
            pods: BTreeMap::new(),
            names: Vec::new(),
            rows: Rows::default(),
        }
    }
}

/// What [`Identity::HOST`] is on the node at this place. No planner gives numbers as high.
fn host(node: u32) -> Identity {
    Identity(u32::MAX - 1 - node)
}

/// What no row is about.
const UNHEARD: Identity = Identity(u32::MAX);

impl<A: Family> Gathered<A> {
    /// Takes the rows of the next node.
    pub(super) fn take(&mut self, rows: Rows<A>, names: Vec<RuleName>) {
        let node = self.nodes as u32;
        for (prefix, row) in rows.policy {
            // The same rule set is the same rows on every node, but for what the node itself is.
            if prefix.identity == Identity::HOST.0 {
                self.rows.policy.insert(PolicyPrefix { identity: host(node).0, ..prefix }, row);
            } else if !self.known.contains(&prefix.rules) {
                self.rows.policy.insert(prefix, row);
            }
        }
        // What addresses are is the same on every node too: the second knows what the first is to others.
        if self.nodes < 2 {
            let others = rows.identities.into_iter().filter(|(_, identity)| *identity != Identity::HOST);
            self.rows.identities.extend(others);
            self.names = names;
        }
        self.known.extend(rows.endpoints.values().map(|pod| pod.rules.0));
        self.pods.extend(rows.endpoints.into_iter().map(|(address, pod)| (address, (node, pod))));
        self.nodes += 1;
    }

    /// The rows, for an engine to hold.
    pub(super) fn rows(&mut self) -> Rows<A> {
        std::mem::take(&mut self.rows)
    }

    /// The identities that a rule set's rows in a direction are about.
    pub(super) fn heard(&self) -> HashMap<(u32, u8), BTreeSet<Identity>> {
        let mut heard: HashMap<_, BTreeSet<_>> = HashMap::new();
        for prefix in self.rows.policy.keys() {
            heard.entry((prefix.rules, prefix.direction)).or_default().insert(Identity(prefix.identity));
        }
        heard
    }
}

/// An end of flows, to the policies of one family.
#[derive(Clone, Copy, Debug)]
struct Seat {
    /// What it is to others.
    peer: u32,
    /// A pod: how it is judged, and on which node it is.
    pod: Option<(u32, u32)>,
    /// The node that it is.
    node: Option<u32>,
}

/// Everything that the rows of one family say.
#[derive(Clone, Debug, Default)]
pub(super) struct Sight {
    /// Of each end that has an address of the family.
    seats: Vec<Option<Seat>>,
    /// How many there are.
    ports: usize,
    /// By subject and port, what is said of each peer: on the way out, and in.
    ways: Vec<[u32; 2]>,
    rows: Vec<Row>,
    /// What subjects on a node may say to the node itself, for each port.
    hosts: HashMap<(u32, u32), Vec<Answer>>,
    names: Vec<RuleName>,
}

/// What a subject's rules say of every peer in a direction, at a port.
#[derive(Clone, Debug)]
struct Row {
    /// A bit for each peer: it passes.
    passes: Vec<u64>,
    /// Of all but these.
    otherwise: Answer,
    /// Peers that the rules speak of, in order.
    of: Vec<(u32, Answer)>,
}

impl Row {
    fn passes(&self, peer: u32) -> bool {
        self.passes[peer as usize / 64] >> (peer % 64) & 1 == 1
    }

    fn answer(&self, peer: u32) -> Answer {
        let at = self.of.binary_search_by_key(&peer, |(peer, _)| *peer);
        at.map_or(self.otherwise, |at| self.of[at].1)
    }
}

/// What the policy stage answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Answer {
    refused: Option<Reason>,
    /// A [`Decision`].
    decision: u8,
    /// The rule.
    number: u32,
}

/// What one end of a flow says.
pub(super) struct Said {
    pub(super) direction: Direction,
    pub(super) verdict: Verdict,
    decision: u8,
    number: u32,
}

impl Said {
    fn new(direction: Direction, answer: Answer) -> Self {
        let verdict = if answer.refused.is_none() { Verdict::Allow } else { Verdict::Deny };
        Self { direction, verdict, decision: answer.decision, number: answer.number }
    }

    fn waived(decision: Decision) -> Self {
        let answer = Answer { refused: None, decision: decision as u8, number: 0 };
        Self::new(Direction::Ingress, answer)
    }

    /// In words; `isolating` finds the policies that isolate the pod.
    pub(super) fn why(&self, sight: &Sight, isolating: impl FnOnce() -> Vec<String>) -> Why {
        let rule = || sight.names.get(self.number as usize).cloned().unwrap_or_default();
        match Decision::told(self.decision, self.number).map(|(decision, _)| decision) {
            Some(Decision::Itself) => Why::Itself,
            Some(Decision::OwnNode) => Why::OwnNode,
            Some(Decision::Allowed) if self.number == 0 => Why::NotDenied,
            Some(Decision::Allowed) => Why::AllowedBy(rule()),
            Some(Decision::Denied) => Why::Isolated(isolating()),
            Some(Decision::DeniedByRule) => Why::DeniedBy(rule()),
            Some(Decision::Incomplete) => Why::Incomplete,
            Some(Decision::NotIsolated) | None => Why::NotIsolated,
        }
    }
}

impl Sight {
    /// Whether both ends have an address of the family.
    pub(super) fn joins(&self, from: usize, to: usize) -> bool {
        self.seats[from].is_some() && self.seats[to].is_some()
    }

    /// Whether a flow passes; it does between two that are not both of the family.
    pub(super) fn passes(&self, from: usize, to: usize, port: usize) -> bool {
        let (Some(source), Some(target)) = (&self.seats[from], &self.seats[to]) else { return true };
        if from == to {
            return true;
        }
        if let Some((subject, node)) = source.pod {
            let passes = if target.node == Some(node) {
                self.hosts[&(subject, node)][port].refused.is_none()
            } else {
                self.row(subject, port, Direction::Egress).passes(target.peer)
            };
            if !passes {
                return false;
            }
        }
        match target.pod {
            Some((subject, node)) if source.node != Some(node) => {
                self.row(subject, port, Direction::Ingress).passes(source.peer)
            }
            _ => true,
        }
    }

    /// What the pods among the two ends of a flow say; nothing between two that are not both of the family.
    pub(super) fn said(&self, from: usize, to: usize, port: usize) -> Vec<Said> {
        let (Some(source), Some(target)) = (&self.seats[from], &self.seats[to]) else { return Vec::new() };
        let mut said = Vec::new();
        if from == to {
            said.extend(source.pod.map(|_| Said::waived(Decision::Itself)));
            return said;
        }
        if let Some((subject, node)) = source.pod {
            let answer = if target.node == Some(node) {
                self.hosts[&(subject, node)][port]
            } else {
                self.row(subject, port, Direction::Egress).answer(target.peer)
            };
            said.push(Said::new(Direction::Egress, answer));
        }
        if let Some((subject, node)) = target.pod {
            said.push(if source.node == Some(node) {
                Said::waived(Decision::OwnNode)
            } else {
                let answer = self.row(subject, port, Direction::Ingress).answer(source.peer);
                Said::new(Direction::Ingress, answer)
            });
        }
        said
    }

    /// What tells an end from others: what it is to them, how it is judged, the node that it is.
    pub(super) fn sort(&self, end: usize) -> Option<(u32, Option<u32>, Option<u32>)> {
        self.seats[end].map(|seat| (seat.peer, seat.pod.map(|(subject, _)| subject), seat.node))
    }

    fn row(&self, subject: u32, port: usize, direction: Direction) -> &Row {
        let ways = self.ways[subject as usize * self.ports + port];
        &self.rows[ways[direction as usize] as usize]
    }
}

/// Places for things, in the order in which they are first met.
struct Places<K> {
    given: HashMap<K, u32>,
}

impl<K: std::hash::Hash + Eq> Places<K> {
    fn new() -> Self {
        Self { given: HashMap::new() }
    }

    fn of(&mut self, thing: K) -> u32 {
        let next = self.given.len() as u32;
        *self.given.entry(thing).or_insert(next)
    }
}

/// The policy stage, and who asks it what.
pub(super) struct Asking<'a, A: Family> {
    engine: &'a mut Emulator,
    gathered: Gathered<A>,
    /// By rule set and direction, the identities that rows are about.
    heard: HashMap<(u32, u8), BTreeSet<Identity>>,
    ports: &'a [Port],
}

impl<'a, A: Family> Asking<'a, A>
where
    Emulator: Platform<A>,
{
    /// Asks an engine that holds the gathered rows.
    pub(super) fn new(
        engine: &'a mut Emulator,
        gathered: Gathered<A>,
        heard: HashMap<(u32, u8), BTreeSet<Identity>>,
        ports: &'a [Port],
    ) -> Self {
        Self { engine, gathered, heard, ports }
    }

    /// Judges each with each. Of every end it is given the address of the family, and which node it is.
    pub(super) fn sight(mut self, ends: &[(Option<IpAddr>, Option<usize>)]) -> Sight {
        let (mut subjects, mut places, mut peers) = (Vec::new(), Places::new(), Places::new());
        let mut seat = |(address, node): &(Option<IpAddr>, Option<usize>)| {
            let address = A::of((*address)?)?;
            let peer = peers.of(policy::identity(&*self.engine, address, Identity::ANY));
            let pod = self.gathered.pods.get(&address).map(|(on, endpoint)| {
                let subject = subject(endpoint);
                let place = places.of(bytes_of(&subject).to_vec());
                if place as usize == subjects.len() {
                    subjects.push(subject);
                }
                (place, *on)
            });
            Some(Seat { peer, pod, node: node.map(|node| node as u32) })
        };
        let seats: Vec<_> = ends.iter().map(&mut seat).collect();
        let mut rows = Rowed { places: Places::new(), rows: Vec::new(), peers: peers.given };
        let mut ways = Vec::with_capacity(subjects.len() * self.ports.len());
        for subject in &subjects {
            for port in self.ports {
                let [out, into] = [Endpoint::EGRESS, Endpoint::INGRESS];
                ways.push([
                    self.row(&mut rows, subject, out, *port),
                    self.row(&mut rows, subject, into, *port),
                ]);
            }
        }
        let on: BTreeSet<_> = seats.iter().flatten().filter_map(|seat| seat.pod).collect();
        let ports = self.ports;
        let mut to_host = |(subject, node): (u32, u32)| {
            let pod = subjects[subject as usize];
            let answers = ports.iter().map(|port| self.ask(&pod, Endpoint::EGRESS, host(node), *port));
            ((subject, node), answers.collect())
        };
        let hosts = on.into_iter().map(&mut to_host).collect();
        Sight { seats, ports: ports.len(), ways, rows: rows.rows, hosts, names: self.gathered.names }
    }

    /// What a subject says of every peer.
    fn row(&mut self, rows: &mut Rowed, subject: &Endpoint, direction: u8, port: Port) -> u32 {
        let heard = self.heard.remove(&(subject.rules.0, direction)).unwrap_or_default();
        let otherwise = self.ask(subject, direction, UNHEARD, port);
        let of = heard.iter().filter_map(|identity| {
            let peer = *rows.peers.get(identity)?;
            Some((peer, self.ask(subject, direction, *identity, port)))
        });
        let mut of: Vec<_> = of.filter(|(_, answer)| *answer != otherwise).collect();
        of.sort_unstable_by_key(|(peer, _)| *peer);
        self.heard.insert((subject.rules.0, direction), heard);
        rows.place(otherwise, of)
    }

    fn ask(&mut self, subject: &Endpoint, direction: u8, peer: Identity, port: Port) -> Answer {
        let flow = Flow::<A> {
            protocol: port.protocol.number(),
            target_port: Be16::new(port.number),
            ..Flow::default()
        };
        let refused = policy::judge(self.engine, &flow, subject, Question::first(direction, peer)).err();
        let noted = self.engine.take_records().pop().unwrap_or_default();
        Answer { refused, decision: noted.detail, number: noted.number }
    }
}

/// Rows, each once.
struct Rowed {
    places: Places<(Answer, Vec<(u32, Answer)>)>,
    rows: Vec<Row>,
    peers: HashMap<Identity, u32>,
}

impl Rowed {
    fn place(&mut self, otherwise: Answer, of: Vec<(u32, Answer)>) -> u32 {
        let place = self.places.of((otherwise, of.clone()));
        if place as usize == self.rows.len() {
            let all = if otherwise.refused.is_none() { u64::MAX } else { 0 };
            let mut passes = vec![all; self.peers.len().div_ceil(64)];
            for (peer, answer) in &of {
                let bit = 1 << (peer % 64);
                let word = &mut passes[*peer as usize / 64];
                *word = if answer.refused.is_none() { *word | bit } else { *word & !bit };
            }
            self.rows.push(Row { passes, otherwise, of });
        }
        place
    }
}

/// What a pod's row says of how it is judged, and nothing else of it.
fn subject(pod: &Endpoint) -> Endpoint {
    Endpoint { interface: IfIndex(0), identity: Identity::ANY, mac: Mac::default(), ..*pod }
}
