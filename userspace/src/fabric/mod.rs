//! What lies between the nodes and the world, as one element: frames go in, and come out later, or are lost
//! for a reason. It does no IO and has no clock: whoever runs it says what time it is. The emulator runs it
//! in virtual time on its wires, `podpath fabric` in real time on the links of a live cluster.
//!
//! What becomes of a frame, in this order:
//!
//! 1. The link's way in: what chance, delay and rate make of it ([`LinkQuality`]).
//! 2. Questions for a neighbour (ARP, neighbour solicitation) are answered here, for nodes, their pods and
//!    the gateway. Other multicast and broadcast ends here.
//! 3. The source check: a port sends from addresses that are its own: a node from its addresses (tunnels,
//!    too) and its pods', a host outside from its own. An appliance, to which a user-defined route leads,
//!    passes on what others sent, and is not checked.
//! 4. Routing: what a node sends follows user-defined routes, then the fabric's own ([`route`]). The gateway
//!    takes a hop, and answers with an ICMP error where it cannot pass a packet on; what is addressed to the
//!    very interface that it goes to passes unseen by it. A user-defined route holds neither for the
//!    appliance that it leads to, nor for what hosts outside send.
//! 5. The security group of the sending node ([`security`]).
//! 6. The load balancer's outbound rule, for a flow that a node began with the world ([`snat`]).
//! 7. The security group of the receiving node.
//! 8. The link's way out, as on the way in.
//!
//! Source: Microsoft Learn, "Virtual network traffic routing", "Network security groups", "Use Source Network
//! Address Translation (SNAT) for outbound connections".
//!
//! **Invariant:** frames that arrived, were doubled or were made here are those that left, were lost, or are
//! under way. It is asserted after every step.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::model::{Cluster, LinkQuality};

use element::Element;
use flows::Flows;
use fragments::Fragments;
use link::{Fate, Links, Way};
use route::Routes;
use seats::Seats;
use security::Security;
use snat::Outbound;

mod balancer;
mod dice;
mod element;
mod flows;
mod fragments;
mod link;
mod loss;
mod neighbour;
mod packet;
mod probe;
mod report;
mod route;
mod seats;
mod security;
mod snat;
mod standalone;
mod walk;

pub use balancer::frontends;
pub use loss::Loss;
pub use report::{
    BalancerReport, FrontendReport, LinkReport, RealReport, Report, RuleReport, SnatDestination, SnatNode,
    SnatReport,
};
pub use standalone::{Standalone, probe_address};

/// How often flows that are over are forgotten.
const SWEEP_NS: u64 = 5_000_000_000;

/// Where frames enter and leave the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// A node, by its place among [`Cluster::nodes`].
    Node(usize),
    /// A host outside, by its place among [`Cluster::externals`].
    External(usize),
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// When it happened.
    pub at_ns: u64,
    /// What the frame was given on arrival; what the fabric makes of a frame has the frame's own.
    pub tag: u32,
    /// As it left, or as it was when it was lost.
    pub frame: Vec<u8>,
    /// Where it ended.
    pub end: End,
    /// What was done to it on the way, for the walk.
    pub notes: Vec<Note>,
}

/// Where a frame ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It leaves by this port, now.
    Out(Port),
    /// It is lost.
    Lost(Loss),
    /// It was for the fabric itself: an answer to a health probe.
    Taken,
}

/// What the fabric did to a frame, beside passing it on. Its text is a line of the walk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// A user-defined route decided where it goes.
    Route {
        /// The route's name.
        name: String,
        /// The appliance's address, if it leads to one.
        appliance: Option<IpAddr>,
    },
    /// A security rule decided about its flow.
    Rule {
        /// The rule's name.
        name: String,
        /// Whether it passes.
        allow: bool,
    },
    /// Its source became the outbound rule's.
    Outbound {
        /// A node's.
        from: SocketAddr,
        /// The load balancer's.
        to: SocketAddr,
    },
    /// It is a reply to such a flow, or an error about one, and goes to the node.
    Inbound {
        /// The load balancer's.
        from: SocketAddr,
        /// A node's.
        to: SocketAddr,
    },
    /// It is a second copy, made by the link.
    Duplicate,
    /// The fabric made it: an ICMP error about the frame that it is named after.
    Made,
    /// The load balancer sends it from a frontend to a node.
    Balanced {
        /// The frontend's address.
        frontend: IpAddr,
        /// The node's name.
        node: String,
    },
    /// The load balancer makes it come from the frontend again.
    Returned {
        /// The frontend's address.
        frontend: IpAddr,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route { name, appliance: Some(address) } => write!(f, "route {name} by way of {address}"),
            Self::Route { name, appliance: None } => write!(f, "route {name}"),
            Self::Rule { name, allow } => {
                write!(f, "security rule {name} {}", if *allow { "allows" } else { "denies" })
            }
            Self::Outbound { from, to } => write!(f, "snat {from} -> {to}"),
            Self::Inbound { from, to } => write!(f, "snat undone {from} -> {to}"),
            Self::Duplicate => f.write_str("doubled by the link"),
            Self::Made => f.write_str("made by the gateway"),
            Self::Balanced { frontend, node } => write!(f, "load balancer {frontend} -> node {node}"),
            Self::Returned { frontend } => write!(f, "load balancer, from {frontend} again"),
        }
    }
}

/// Why there is no such fabric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `kubenet` needs a route for each node and family.
    #[error(
        "cannot add route {number} ({route}) to the fabric's route table: it takes {limit}; take fewer nodes, fewer user-defined routes, or a model that needs none: overlay, flat, flat-dynamic"
    )]
    Routes {
        /// Which it would be, counted from 1.
        number: usize,
        /// The route, for people.
        route: String,
        /// Routes that a table takes.
        limit: usize,
    },
    /// The outbound address has too few ports.
    #[error(
        "cannot give {nodes} nodes {each} SNAT ports each of {address}: it has {all} for them, enough for {fit} nodes; lower `loadBalancer.snatPortsPerNode`"
    )]
    SnatPorts {
        /// Nodes there are.
        nodes: usize,
        /// Ports a node is to have.
        each: u32,
        /// The outbound address.
        address: IpAddr,
        /// Ports it has.
        all: u32,
        /// Nodes that could have so many.
        fit: u32,
    },
    /// The load balancer's ring is too small.
    #[error(
        "cannot give the load balancer {ports} ports of frontends: it takes {limit}; have fewer Services of type LoadBalancer, or fewer ports in them"
    )]
    Frontends {
        /// Those that there would be.
        ports: usize,
        /// Those that there may be.
        limit: usize,
    },
    /// A link's name is that of nobody.
    #[error("cannot find link {link:?}: links are called node:name and ext:name after the cluster's hosts")]
    UnknownLink {
        /// As it was asked for.
        link: String,
    },
}

/// What lies between the nodes and the world of one cluster.
#[derive(Debug)]
pub struct Fabric {
    seats: Seats,
    routes: Routes,
    security: Option<Security>,
    outbound: Outbound,
    element: Element,
    /// What the load balancer plans by.
    cluster: Cluster,
    flows: Flows,
    fragments: Fragments,
    links: Links,
    queue: BinaryHeap<Reverse<Flight>>,
    serial: u64,
    swept_ns: u64,
    now_ns: u64,
    counters: Counters,
}

/// A frame under way, ordered by when something happens to it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    due_ns: u64,
    serial: u64,
    step: Step,
    tag: u32,
    frame: Vec<u8>,
    notes: Vec<Note>,
}

/// What happens next to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// It reaches the fabric from the link of this port.
    Enter(Port),
    /// It leaves by this port.
    Leave(Port),
    /// It is said to be lost.
    Lose(Loss),
    /// It was for the fabric itself.
    Take,
}

/// Frames so far.
#[derive(Clone, Debug, Default)]
struct Counters {
    arrived: u64,
    duplicated: u64,
    made: u64,
    departed: u64,
    taken: u64,
    lost: BTreeMap<Loss, u64>,
}

impl Fabric {
    /// The fabric of a cluster, with its links, routes, security rules and outbound rule. The seed decides,
    /// with each link's own, what would otherwise be chance.
    ///
    /// # Errors
    /// Its route table or its outbound address is too small, or a link has nobody's name.
    pub fn of(cluster: &Cluster, seed: u64) -> Result<Self, Error> {
        Outbound::check(cluster)?;
        balancer::check(cluster)?;
        let seats = Seats::of(cluster, None);
        let mut outbound = Outbound::default();
        outbound.apply(cluster, &seats);
        Ok(Self {
            routes: Routes::of(cluster)?,
            security: Security::of(cluster),
            outbound,
            element: Element::of(cluster, &seats),
            cluster: cluster.clone(),
            flows: Flows::default(),
            fragments: Fragments::default(),
            links: Links::of(&cluster.settings.fabric.links, &seats, seed)?,
            seats,
            queue: BinaryHeap::new(),
            serial: 0,
            swept_ns: 0,
            now_ns: 0,
            counters: Counters::default(),
        })
    }

    /// Goes on with a cluster that has changed. Flows, ports of the outbound rule and frames under way stay,
    /// unless their node is gone; links change only if the cluster's did, so that what [`Self::set_links`]
    /// said holds on.
    ///
    /// # Errors
    /// As [`Self::of`]; nothing is changed then.
    pub fn apply(&mut self, cluster: &Cluster) -> Result<(), Error> {
        Outbound::check(cluster)?;
        balancer::check(cluster)?;
        let seats = Seats::of(cluster, Some(&self.seats));
        let routes = Routes::of(cluster)?;
        self.links.apply(&cluster.settings.fabric.links, &seats)?;
        self.security = Security::of(cluster).map(|new| new.counting_on(self.security.as_ref()));
        self.outbound.apply(cluster, &seats);
        self.flows.retain_nodes(&seats);
        let moved: Vec<_> = self.queue.drain().map(|flight| flight.0.moved(&self.seats, &seats)).collect();
        self.queue = moved.into_iter().map(Reverse).collect();
        self.element.apply(cluster, &seats, self.now_ns);
        self.cluster = cluster.clone();
        (self.seats, self.routes) = (seats, routes);
        Ok(())
    }

    /// Makes these the qualities of the links, and every other link perfect. Frames that are under way
    /// arrive as they would have. A link whose quality stays goes on with its chance; another begins anew.
    ///
    /// # Errors
    /// [`Error::UnknownLink`]; nothing is changed then.
    pub fn set_links(&mut self, links: &[LinkQuality]) -> Result<(), Error> {
        self.links.set(links, &self.seats)
    }

    /// A frame arrives at a port. `tag` comes back with whatever becomes of it. Time must not go back.
    pub fn arrive(&mut self, port: Port, frame: Vec<u8>, tag: u32, now_ns: u64) {
        self.counters.arrived += 1;
        self.now_ns = self.now_ns.max(now_ns);
        let flight =
            Flight { due_ns: now_ns, serial: 0, step: Step::Enter(port), tag, frame, notes: Vec::new() };
        self.cross_link(flight, port, Way::In);
        self.check();
    }

    /// The next thing that has happened until `now_ns`, which is the present: in the order in which it
    /// happened; none if nothing has any more. To be called until then.
    pub fn due(&mut self, now_ns: u64) -> Option<Outcome> {
        self.now_ns = self.now_ns.max(now_ns);
        self.sweep(now_ns);
        while self.next_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            let Reverse(flight) = self.queue.pop()?;
            let end = match flight.step {
                Step::Enter(port) => {
                    self.enter(port, flight);
                    self.check();
                    continue;
                }
                Step::Leave(port) => {
                    self.counters.departed += 1;
                    End::Out(port)
                }
                Step::Lose(loss) => {
                    *self.counters.lost.entry(loss).or_default() += 1;
                    End::Lost(loss)
                }
                Step::Take => {
                    self.counters.taken += 1;
                    End::Taken
                }
            };
            self.check();
            let Flight { due_ns, tag, frame, notes, .. } = flight;
            return Some(Outcome { at_ns: due_ns, tag, frame, end, notes });
        }
        None
    }

    /// When [`Self::due`] has something next; none if nothing is under way. It may be past.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse(flight)| flight.due_ns)
    }

    /// When the load balancer probes its nodes next; none if it has none.
    pub fn next_probe_ns(&self) -> Option<u64> {
        self.element.balancer.prober.next_ns()
    }

    /// Sends the load balancer's probes of this moment, if it is time for any.
    pub fn probe(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        for sent in self.element.balancer.prober.ask(now_ns) {
            self.send_probe(sent);
        }
        self.replan();
        self.check();
    }

    /// Frames so far that nobody sent: copies that links made, and what the gateway had to say.
    pub fn added(&self) -> u64 {
        self.counters.duplicated + self.counters.made
    }

    /// The port of the host outside that a frame from the world is of, by its source address: for whoever
    /// has one wire for all of them. An appliance outside is taken for any source that is nobody's.
    pub fn world_port(&self, frame: &[u8]) -> Option<Port> {
        self.seats.world_port(frame)
    }

    /// What happened so far.
    pub fn report(&self) -> Report {
        let Counters { arrived, duplicated, made, departed, taken, lost } = &self.counters;
        Report {
            arrived: *arrived,
            duplicated: *duplicated,
            made: *made,
            departed: *departed,
            taken: *taken,
            under_way: self.queue.len() as u64,
            lost: lost.iter().map(|(loss, count)| (loss.slug().to_owned(), *count)).collect(),
            links: self.links.report(),
            rules: self.security.as_ref().map(Security::report).unwrap_or_default(),
            flows: self.flows.len() as u64,
            snat: self.outbound.report(),
            balancer: self.element.report(),
            frontends: self.element.balancer.frontends(),
        }
    }

    /// Forgets flows that are over, now and then.
    fn sweep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            self.flows.sweep(now_ns);
            self.outbound.sweep(now_ns);
            self.element.sweep(now_ns);
        }
    }

    /// Puts a frame in the queue.
    fn schedule(&mut self, flight: Flight, due_ns: u64, step: Step) {
        self.serial += 1;
        self.queue.push(Reverse(Flight { due_ns, serial: self.serial, step, ..flight }));
    }

    /// A frame goes over the link of a port: it comes to its step later, twice or never.
    fn cross_link(&mut self, flight: Flight, port: Port, way: Way) {
        let (step, now_ns) = (flight.step, flight.due_ns);
        let Fate { first, second } = self.links.cross(port, way, flight.frame.len(), now_ns);
        if let Some(second) = second {
            self.counters.duplicated += 1;
            let mut copy = Flight { frame: flight.frame.clone(), notes: flight.notes.clone(), ..flight };
            copy.notes.push(Note::Duplicate);
            self.land(copy, second, step);
        }
        self.land(flight, first, step);
    }

    fn land(&mut self, flight: Flight, fate: Result<u64, Loss>, step: Step) {
        let now_ns = flight.due_ns;
        match fate {
            Ok(due_ns) => self.schedule(flight, due_ns, step),
            Err(loss) => self.schedule(flight, now_ns, Step::Lose(loss)),
        }
    }

    /// The invariant of the module.
    fn check(&self) {
        let Counters { arrived, duplicated, made, departed, taken, lost } = &self.counters;
        let ended = departed + taken + lost.values().sum::<u64>() + self.queue.len() as u64;
        assert_eq!(arrived + duplicated + made, ended, "every frame leaves, is lost or is under way");
    }
}

impl Flight {
    /// The same flight among other seats; lost if its port is no more.
    fn moved(mut self, before: &Seats, after: &Seats) -> Self {
        let place = |port| before.moved(port, after);
        self.step = match self.step {
            Step::Enter(port) => place(port).map_or(Step::Lose(Loss::NoNeighbour), Step::Enter),
            Step::Leave(port) => place(port).map_or(Step::Lose(Loss::NoNeighbour), Step::Leave),
            Step::Lose(loss) => Step::Lose(loss),
            Step::Take => Step::Take,
        };
        self
    }
}

#[cfg(test)]
mod tests;
