//! A whole cluster in this process: nodes, pods, the fabric between them and the hosts outside, in virtual
//! time. Nothing happens by itself: frames fly until none is under way.
//!
//! **Invariant:** what hosts sent is what hosts received and what was dropped, for a reason that is counted.
//! And no pod's address reaches the world that must not: see [`super::leak`].

mod rows;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;

use dataplane::Verdict;
use dataplane::tables::IfIndex;
use dataplane::trace::Stage;
use dataplane::wire::{Mac, V4, V6};

use super::discovery::Discovery;
use super::host::{Host, Listeners, Outgoing};
use super::leak::{Leak, Watch};
use super::message::{Ether, Message, TTL};
use super::pieces::{Joined, Pieces};
use super::tally::{Loss, Tally};
use super::topology::{HOST_LINK, Interfaces, Seat, Topology, UPLINK};
use crate::engine::{Clock, Engine, Hook};
use crate::error::Error;
use crate::fabric::{End, Fabric, Port};
use crate::model::{Cluster, Protocol};
use crate::observe::walk::{Event, Names, Step};
use crate::plan::{LEGS, NodePlan, Plan};

/// How long a frame takes between a host and its node.
const LINK_NS: u64 = 5_000;
/// How long it takes across the fabric.
const FABRIC_NS: u64 = 50_000;
const SECOND_NS: u64 = 1_000_000_000;

/// Makes the engine of a node.
pub type Make<E> = Box<dyn FnMut(&NodePlan) -> Result<E, Error>>;

/// A cluster whose every node runs on an engine `E`.
pub struct Network<E> {
    make: Make<E>,
    seed: u32,
    engines: Vec<(String, E)>,
    interfaces: Interfaces,
    plan: Option<Plan>,
    topology: Topology,
    fabric: Fabric,
    /// Frames that the fabric has added to those that hosts sent.
    added: u64,
    watch: Watch,
    names: Names,
    queue: BinaryHeap<Reverse<Flight>>,
    now_ns: u64,
    serial: u64,
    packets: u32,
    /// Sockets that have dialled.
    sockets: u64,
    tally: Tally,
    steps: Vec<Step>,
    quiet: bool,
    heard: Option<Heard>,
    pieces: Pieces,
}

/// A frame that a host received while the hosts were quiet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The host, by its place.
    pub host: usize,
    /// As it arrived.
    pub frame: Vec<u8>,
}

/// A point where frames enter something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A node's path.
    Path {
        /// The node, counted from 0.
        node: usize,
        /// Where it enters.
        hook: Hook,
        /// By which interface.
        interface: IfIndex,
    },
    /// The fabric.
    Fabric(Port),
    /// A host, by its place.
    Host(usize),
}

/// A frame under way, ordered by when it arrives.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    due_ns: u64,
    serial: u64,
    packet: u32,
    place: Place,
    frame: Vec<u8>,
}

impl<E: Engine + Clock> Network<E> {
    /// A cluster on engines that `make` makes, one for each node. The seed decides what would otherwise be
    /// chance, so that a run can be repeated.
    ///
    /// # Errors
    /// The cluster cannot be planned, or an engine cannot be made.
    pub fn with(cluster: &Cluster, seed: u32, make: Make<E>) -> Result<Self, Error> {
        let mut network = Self {
            make,
            seed,
            engines: Vec::new(),
            interfaces: Interfaces::default(),
            plan: None,
            topology: Topology::default(),
            fabric: Fabric::of(cluster, u64::from(seed))?,
            added: 0,
            watch: Watch::default(),
            names: Names::default(),
            queue: BinaryHeap::new(),
            now_ns: 0,
            serial: 0,
            packets: 0,
            sockets: 0,
            tally: Tally::default(),
            steps: Vec::new(),
            quiet: false,
            heard: None,
            pieces: Pieces::default(),
        };
        network.apply(cluster)?;
        Ok(network)
    }

    /// Brings the network to another state of the cluster, without touching the flows that its nodes track.
    ///
    /// # Errors
    /// The cluster cannot be planned (then nothing was changed), or an engine refused its rows.
    pub fn apply(&mut self, cluster: &Cluster) -> Result<(), Error> {
        let links: Vec<_> =
            cluster.nodes.iter().map(|node| self.interfaces.of(cluster, &node.name)).collect();
        let mut topology = Topology::of(cluster, &links, self.seed);
        topology.inherit(&self.topology);
        let plan = match &self.plan {
            Some(previous) => previous.after(cluster)?,
            None => Plan::of(cluster)?,
        };
        let mut plans = Vec::with_capacity(links.len());
        for (node, links) in cluster.nodes.iter().zip(&links) {
            let mut plan = plan.node(&node.name, links)?;
            plan.node.seed ^= self.seed;
            plans.push(plan);
        }
        self.fabric.apply(cluster)?;
        let mut made = Vec::new();
        let mut ways = Vec::new();
        for (node, plan) in cluster.nodes.iter().zip(&plans) {
            match self.engines.iter().position(|(name, _)| *name == node.name) {
                Some(place) => ways.push((place, self.engines[place].1.legs(&plan.rows)?)),
                None => made.push((node.name.clone(), (self.make)(plan)?)),
            }
        }
        for leg in 0..LEGS {
            ways.iter().try_for_each(|(place, legs)| self.engines[*place].1.change(&legs[leg]))?;
        }
        let mut engines: BTreeMap<String, E> = self.engines.drain(..).chain(made).collect();
        let kept = cluster.nodes.iter().filter_map(|node| engines.remove_entry(&node.name));
        self.engines = kept.collect();
        self.names = Names::of(cluster, &plan, links.iter().zip(plans));
        self.topology = topology;
        self.watch.apply(cluster);
        self.plan = Some(plan);
        if self.fabric.next_probe_ns().is_some_and(|due_ns| due_ns <= self.now_ns) {
            self.probe()?;
        }
        Ok(())
    }

    /// A host by name: `namespace/name`, `node:name`, `ext:name`.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn host(&self, name: &str) -> Result<usize, Error> {
        self.topology.by_name.get(name).copied().ok_or_else(|| Error::Unknown { name: name.to_owned() })
    }

    /// A host by its place.
    pub fn host_at(&self, place: usize) -> &Host {
        &self.topology.hosts[place].0
    }

    /// Where a host is attached.
    pub(super) fn seat(&self, place: usize) -> Seat {
        self.topology.hosts[place].1
    }

    /// A cookie that no socket had before.
    pub(super) fn next_socket(&mut self) -> u64 {
        self.sockets += 1;
        self.sockets
    }

    /// Notes what happens to the first packet before there is one.
    pub(super) fn note(&mut self, event: Event) {
        self.steps.push(Step { packet: 1, event });
    }

    pub(super) fn host_mut(&mut self, place: usize) -> &mut Host {
        &mut self.topology.hosts[place].0
    }

    /// Lets a host listen on one more port.
    pub fn listen(&mut self, host: usize, protocol: Protocol, port: u16) {
        if let Listeners::Some(ports) = &mut self.topology.hosts[host].0.listeners {
            ports.insert((protocol.number(), port));
        }
    }

    /// What things are called here.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What became of all frames so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// A node's engine, by its place among the cluster's nodes.
    pub fn engine(&mut self, node: usize) -> Option<&mut E> {
        self.engines.get_mut(node).map(|(_, engine)| engine)
    }

    /// What lies between the nodes and the world.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Seconds of a node's clock.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn now_s(&self, node: usize) -> Result<u32, Error> {
        self.engines[node].1.now_s()
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.engines.len()
    }

    /// Lets time pass on every node.
    ///
    /// # Errors
    /// An engine could not move its clock.
    pub fn wait(&mut self, seconds: u32) -> Result<(), Error> {
        let end_ns = self.now_ns + u64::from(seconds) * SECOND_NS;
        while let Some(due_ns) = self.fabric.next_probe_ns().filter(|due_ns| *due_ns <= end_ns) {
            self.advance(due_ns)?;
            self.probe()?;
        }
        self.advance(end_ns)
    }

    /// Lets the load balancer probe its nodes, if it is time, and nobody hear of it.
    fn probe(&mut self) -> Result<(), Error> {
        let (steps, quiet) = (self.steps.len(), std::mem::replace(&mut self.quiet, false));
        let heard = self.heard.take();
        self.fabric.probe(self.now_ns);
        self.added_by_fabric();
        self.run()?;
        self.steps.truncate(steps);
        (self.quiet, self.heard) = (quiet, heard);
        Ok(())
    }

    /// Lets the nodes' agents sweep away what is of no more use.
    ///
    /// # Errors
    /// As [`Clock::sweep`].
    pub fn sweep(&mut self) -> Result<(), Error> {
        self.engines.iter_mut().try_for_each(|(_, engine)| engine.sweep())
    }

    /// Hosts only receive from now on (`true`), or answer as well.
    pub fn hush(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// What happened since the last time.
    pub fn take_steps(&mut self) -> Vec<Step> {
        self.packets = 0;
        std::mem::take(&mut self.steps)
    }

    /// The frame that a quiet host received last, since the last time.
    pub fn take_heard(&mut self) -> Option<Heard> {
        self.heard.take()
    }

    /// The frame in which a host sends a packet, and where it goes in.
    ///
    /// # Errors
    /// [`Error::NoAddress`], or the engine failed.
    pub fn framed(&mut self, host: usize, outgoing: Outgoing) -> Result<(Place, Vec<u8>), Error> {
        let (place, to) = self.entry(host, outgoing.target)?;
        let sender = self.host_at(host);
        let message = Message {
            from: sender.mac,
            to,
            source: address_of(sender, outgoing.target)?,
            target: outgoing.target,
            ttl: TTL,
            body: outgoing.body,
        };
        Ok((place, message.to_frame()))
    }

    /// Where a host's packets for `target` go in, and the hardware address they are for. A pod asks for its
    /// gateway first, if it has not yet; without an answer it sends to nobody's address.
    ///
    /// # Errors
    /// [`Error::NoAddress`], or the engine failed.
    pub fn entry(&mut self, host: usize, target: IpAddr) -> Result<(Place, Ether), Error> {
        Ok(match self.topology.hosts[host].1 {
            Seat::Pod { node, interface, gateways } => {
                let gateway = match gateways[family(target)] {
                    Some(gateway) => gateway,
                    None => self.ask(host, target)?,
                };
                (Place::Path { node, hook: Hook::FromPod, interface }, gateway)
            }
            Seat::Node(node) if self.topology.is_inside(target) => {
                (Place::Path { node, hook: Hook::FromHost, interface: HOST_LINK }, Mac::GATEWAY.0)
            }
            Seat::Node(node) => (Place::Fabric(Port::Node(node)), self.topology.neighbour(target)),
            Seat::World(external) => (Place::Fabric(Port::External(external)), self.topology.gateway),
        })
    }

    /// Lets a pod ask for its gateway on the way to `target`; nobody's hardware address if there is no answer.
    fn ask(&mut self, host: usize, target: IpAddr) -> Result<Ether, Error> {
        let asker = self.host_at(host);
        let question = Discovery {
            answer: false,
            sender_mac: asker.mac,
            sender: address_of(asker, target)?,
            target_mac: [0; 6],
            target: gateway(target),
        };
        let (steps, packets) = (self.steps.len(), self.packets);
        if let Seat::Pod { node, interface, .. } = self.topology.hosts[host].1 {
            self.send(Place::Path { node, hook: Hook::FromPod, interface }, question.to_frame());
            self.run()?;
        }
        // The walk is about the packet, not about how its sender found its first neighbour.
        self.steps.truncate(steps);
        self.packets = packets;
        match self.topology.hosts[host].1 {
            Seat::Pod { gateways, .. } => Ok(gateways[family(target)].unwrap_or_default()),
            Seat::Node(_) | Seat::World(_) => Ok([0; 6]),
        }
    }

    /// Puts a frame in, as if somebody there had sent it.
    pub fn send(&mut self, place: Place, frame: Vec<u8>) {
        self.tally.sent += 1;
        self.packets += 1;
        self.schedule(LINK_NS, self.packets, place, frame);
    }

    fn schedule(&mut self, delay_ns: u64, packet: u32, place: Place, frame: Vec<u8>) {
        self.serial += 1;
        let flight = Flight { due_ns: self.now_ns + delay_ns, serial: self.serial, packet, place, frame };
        self.queue.push(Reverse(flight));
    }

    /// Lets frames fly until none is under way.
    ///
    /// # Errors
    /// [`Error::Leaked`], or an engine failed.
    pub fn run(&mut self) -> Result<(), Error> {
        loop {
            let next_ns = self.queue.peek().map(|Reverse(flight)| flight.due_ns);
            let fabric_ns = self.fabric.next_due_ns();
            if let Some(due_ns) = fabric_ns.filter(|due_ns| next_ns.is_none_or(|next_ns| *due_ns <= next_ns))
            {
                self.advance(due_ns)?;
                self.cross();
                continue;
            }
            let Some(Reverse(flight)) = self.queue.pop() else { break };
            self.advance(flight.due_ns)?;
            match flight.place {
                Place::Path { node, hook, interface } => self.walk(flight, node, hook, interface)?,
                Place::Fabric(port) => self.enter(port, flight)?,
                Place::Host(host) => self.arrive(host, flight)?,
            }
        }
        let accounted = self.tally.delivered + self.tally.dropped();
        assert_eq!(self.tally.sent, accounted, "every frame is delivered or dropped: {:?}", self.tally);
        Ok(())
    }

    /// Moves the clock on, and those of the engines by the whole seconds that have passed.
    fn advance(&mut self, now_ns: u64) -> Result<(), Error> {
        let now_ns = now_ns.max(self.now_ns);
        let seconds = now_ns / SECOND_NS - self.now_ns / SECOND_NS;
        self.now_ns = now_ns;
        if seconds > 0 {
            let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
            self.engines.iter_mut().try_for_each(|(_, engine)| engine.wait(seconds))?;
        }
        Ok(())
    }

    /// A frame goes through a node's path.
    fn walk(&mut self, flight: Flight, node: usize, hook: Hook, interface: IfIndex) -> Result<(), Error> {
        let Flight { packet, frame, .. } = flight;
        let outcome = self.engines[node].1.push(hook, interface, &frame)?;
        let says = |stages: &[Stage]| {
            outcome.records.iter().any(|record| stages.iter().any(|stage| record.stage == *stage as u8))
        };
        if !says(&[Stage::FromPod, Stage::FromUnderlay, Stage::FromHost]) {
            self.steps.push(Step { packet, event: Event::Entered { node, hook, interface } });
        }
        let silent = !says(&[Stage::ToHost]);
        self.steps.extend(
            outcome.records.into_iter().map(|record| Step { packet, event: Event::Stage { node, record } }),
        );
        match outcome.verdict {
            Verdict::Deliver(interface) => match self.topology.pods.get(&(node, interface)) {
                Some(host) => self.schedule(LINK_NS, packet, Place::Host(*host), outcome.frame),
                None => self.lose(packet, Loss::Nowhere),
            },
            Verdict::Forward(UPLINK) => {
                self.schedule(FABRIC_NS, packet, Place::Fabric(Port::Node(node)), outcome.frame);
            }
            Verdict::Forward(_) => self.lose(packet, Loss::Nowhere),
            Verdict::Answer => match self.topology.pods.get(&(node, interface)) {
                Some(host) => {
                    self.steps.push(Step { packet, event: Event::Answered { node, interface } });
                    self.schedule(LINK_NS, packet, Place::Host(*host), outcome.frame);
                }
                None => self.lose(packet, Loss::Nowhere),
            },
            Verdict::Stack => {
                if silent {
                    self.steps.push(Step { packet, event: Event::Ignored { node } });
                }
                self.schedule(0, packet, Place::Host(self.topology.stacks[node]), outcome.frame);
            }
            Verdict::Reject(reason) => {
                self.count(Loss::Path(reason));
                self.tally.sent += 1;
                let place = match hook {
                    Hook::FromPod => {
                        self.topology.pods.get(&(node, interface)).map(|host| Place::Host(*host))
                    }
                    Hook::FromHost => Some(Place::Host(self.topology.stacks[node])),
                    Hook::FromUnderlay => Some(Place::Fabric(Port::Node(node))),
                };
                match place {
                    Some(place) => self.schedule(LINK_NS, packet, place, outcome.frame),
                    None => self.lose(packet, Loss::Nowhere),
                }
            }
            Verdict::Drop(reason) => self.count(Loss::Path(reason)),
        }
        Ok(())
    }

    /// A frame enters the fabric.
    fn enter(&mut self, port: Port, flight: Flight) -> Result<(), Error> {
        match port {
            Port::Node(node) => self.watch.from_node(&flight.frame).map_err(|Leak { pod, target }| {
                Error::Leaked { node: self.engines[node].0.clone(), pod, target }
            })?,
            Port::External(_) => self.watch.from_world(&flight.frame),
        }
        self.fabric.arrive(port, flight.frame, flight.packet, self.now_ns);
        Ok(())
    }

    /// Frames leave the fabric, or are lost in it.
    fn cross(&mut self) {
        while let Some(outcome) = self.fabric.due(self.now_ns) {
            let packet = outcome.tag;
            let notes = outcome.notes.into_iter().map(|note| Event::Fabric { says: note.to_string() });
            self.steps.extend(notes.map(|event| Step { packet, event }));
            match outcome.end {
                End::Out(Port::Node(node)) => {
                    let place = Place::Path { node, hook: Hook::FromUnderlay, interface: UPLINK };
                    self.schedule(FABRIC_NS, packet, place, outcome.frame);
                }
                End::Out(Port::External(external)) => {
                    let host = self.topology.world[external];
                    self.schedule(FABRIC_NS, packet, Place::Host(host), outcome.frame);
                }
                End::Lost(loss) => self.lose(packet, Loss::Fabric(loss)),
                End::Taken => self.tally.delivered += 1,
            }
        }
        self.added_by_fabric();
    }

    /// Frames that the fabric itself has sent count as sent.
    fn added_by_fabric(&mut self) {
        let added = self.fabric.added();
        self.tally.sent += added - self.added;
        self.added = added;
    }

    /// A frame reaches a host.
    fn arrive(&mut self, host: usize, flight: Flight) -> Result<(), Error> {
        let Flight { packet, frame, .. } = flight;
        if let Some(answer) = Discovery::read(&frame) {
            self.tally.delivered += 1;
            self.learn(host, &answer);
            self.heard = Some(Heard { host, frame });
            return Ok(());
        }
        let frame = match self.pieces.join(host, frame.clone()) {
            Joined::Whole(frame) => frame,
            Joined::Waiting => {
                self.tally.delivered += 1;
                self.heard = Some(Heard { host, frame });
                return Ok(());
            }
        };
        let receiver = &mut self.topology.hosts[host].0;
        let taken =
            if self.quiet { receiver.read(&frame).map(|_| Vec::new()) } else { receiver.receive(&frame) };
        match taken {
            Ok(answers) => {
                self.tally.delivered += 1;
                if self.quiet {
                    self.heard = Some(Heard { host, frame });
                }
                for answer in answers {
                    let (place, frame) = self.framed(host, answer)?;
                    self.send(place, frame);
                }
            }
            Err(why) => self.lose(packet, Loss::Host(why)),
        }
        Ok(())
    }

    fn learn(&mut self, host: usize, answer: &Discovery) {
        let (asker, seat) = &mut self.topology.hosts[host];
        if let Seat::Pod { gateways, .. } = seat
            && answer.answer
            && asker.addresses.contains(&answer.target)
            && answer.sender == gateway(answer.target)
        {
            gateways[family(answer.target)] = Some(answer.sender_mac);
        }
    }

    /// Notes that a frame got lost outside of the path, which does not say so itself.
    fn lose(&mut self, packet: u32, loss: Loss) {
        let (place, why) = match loss {
            Loss::Path(reason) => ("drop", reason.slug().to_owned()),
            Loss::Fabric(why) => ("fabric", format!("{}: {}", why.slug(), why.sentence())),
            Loss::Host(why) => ("host", format!("refused: {why}")),
            Loss::Nowhere => ("node", "nothing is behind this interface".to_owned()),
        };
        self.steps.push(Step { packet, event: Event::Lost { place, why } });
        self.count(loss);
    }

    fn count(&mut self, loss: Loss) {
        *self.tally.dropped.entry(loss).or_default() += 1;
    }
}

/// The place of an address's family among things that are there for both.
fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

/// The gateway of every pod, in the family of this address.
fn gateway(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { IpAddr::V4(V4::GATEWAY.0.into()) } else { IpAddr::V6(V6::GATEWAY.0.into()) }
}

/// The address from which a host sends to `target`.
fn address_of(host: &Host, target: IpAddr) -> Result<IpAddr, Error> {
    host.address_like(target).ok_or_else(|| Error::NoAddress { host: host.name.clone(), target })
}
