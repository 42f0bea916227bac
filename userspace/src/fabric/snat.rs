//! The load balancer's outbound rule: nodes share one public address, and each has a block of its ports.
//!
//! A flow that a node begins with the world has one of the node's ports. A port serves any number of flows
//! at once, each to another destination (address, port and protocol); so what runs out is the ports towards
//! one destination, and then the flow is refused. Ports are taken in turn, so that the one longest free
//! comes first.
//!
//! A port is free again when no packet was seen for the idle timeout; 240 seconds after the last packet of a
//! TCP connection that either side has finished, if that is sooner, and 15 seconds after a reset. So a
//! client that opens and closes connections quickly runs out, too.
//!
//! Blocks are as large as the cluster says, and a node keeps its own while it is there. The rule translates
//! TCP and UDP, and ICMP errors about such flows; nothing else gets out.
//!
//! Source: Microsoft Learn, "Use Source Network Address Translation (SNAT) for outbound connections" (64,000
//! ports an address, timers), "Outbound rules" (protocols).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::packet::{ACK, FIN, Packet, RST, SYN, TCP, Tuple, UDP};
use super::seats::{NodeId, Seats};
use super::{Error, Loss, SnatDestination, SnatNode, SnatReport};
use crate::model::Cluster;

/// The first port that is given out.
const FIRST: u16 = 1024;
/// Ports that an address gives out.
const ALL: u32 = 64_000;
const SECOND_NS: u64 = 1_000_000_000;
const AFTER_FIN_NS: u64 = 240 * SECOND_NS;
const AFTER_RST_NS: u64 = 15 * SECOND_NS;

/// The outbound rule of a cluster.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    rule: Option<Rule>,
    /// In the order of the cluster's nodes.
    blocks: Vec<Block>,
    /// Ports by the flow as its node sends it.
    ports: HashMap<Tuple, u16>,
    /// Who has a port towards a destination.
    claims: HashMap<Outside, Claim>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    address: IpAddr,
    /// Ports of a node.
    each: u32,
    idle_ns: u64,
}

/// A node's ports.
#[derive(Clone, Debug)]
struct Block {
    node: NodeId,
    name: String,
    /// Which block it is, counted from 0.
    number: u32,
    /// Where the search for the next port begins, counted in the block.
    next: u32,
    /// Ports in use towards each.
    destinations: HashMap<Destination, u32>,
    exhausted: u64,
}

/// Address, port and protocol of a host outside.
type Destination = (IpAddr, u16, u8);

/// A flow as the world sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Outside {
    port: u16,
    remote: Destination,
}

/// A port in use towards a destination.
#[derive(Clone, Copy, Debug)]
struct Claim {
    node: NodeId,
    /// The flow as its node sends it.
    inside: Tuple,
    state: State,
    free_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Finished,
    Reset,
}

impl Outbound {
    /// Whether the rule of a cluster is possible.
    ///
    /// # Errors
    /// [`Error::SnatPorts`].
    pub(super) fn check(cluster: &Cluster) -> Result<(), Error> {
        let (balancer, nodes) = (&cluster.settings.load_balancer, cluster.nodes.len());
        let each = balancer.snat_ports_per_node.max(1);
        match balancer.outbound {
            Some(address) if nodes as u64 * u64::from(each) > u64::from(ALL) => {
                Err(Error::SnatPorts { nodes, each, address, all: ALL, fit: ALL / each })
            }
            _ => Ok(()),
        }
    }

    /// Takes the rule of a cluster that [`Self::check`] found possible. While the rule stays, nodes keep
    /// their blocks, and flows their ports.
    pub(super) fn apply(&mut self, cluster: &Cluster, seats: &Seats) {
        let balancer = &cluster.settings.load_balancer;
        let rule = balancer.outbound.map(|address| Rule {
            address,
            each: balancer.snat_ports_per_node.max(1),
            idle_ns: u64::from(balancer.idle_timeout_s) * SECOND_NS,
        });
        if rule != self.rule {
            *self = Self { rule, ..Self::default() };
        }
        if rule.is_none() {
            return;
        }
        let mut old: BTreeMap<NodeId, Block> =
            self.blocks.drain(..).map(|block| (block.node, block)).collect();
        let kept: Vec<Option<Block>> = seats.nodes().map(|(_, node)| old.remove(&node)).collect();
        let taken: Vec<u32> = kept.iter().flatten().map(|block| block.number).collect();
        let mut free = (0..).filter(|number| !taken.contains(number));
        for ((name, node), block) in seats.nodes().zip(kept) {
            self.blocks.push(block.unwrap_or_else(|| Block {
                node,
                name: name.to_owned(),
                number: free.next().unwrap_or_default(),
                next: 0,
                destinations: HashMap::new(),
                exhausted: 0,
            }));
        }
        self.claims.retain(|_, claim| seats.has(claim.node));
        self.ports = self.claims.iter().map(|(outside, claim)| (claim.inside, outside.port)).collect();
    }

    /// The public address, if there is a rule.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.rule.map(|rule| rule.address)
    }

    /// The address and port that a flow of a node has in the world.
    ///
    /// # Errors
    /// [`Loss::SnatPortsExhausted`], [`Loss::SnatProtocol`].
    pub(super) fn translate(
        &mut self,
        node: NodeId,
        flow: Tuple,
        packet: &Packet,
        now_ns: u64,
    ) -> Result<(IpAddr, u16), Loss> {
        let rule = self.rule.ok_or(Loss::SnatNoFlow)?;
        if !matches!(flow.protocol, TCP | UDP) {
            return Err(Loss::SnatProtocol);
        }
        let remote = (flow.target.0, flow.target.1, flow.protocol);
        let port = match self.ports.get(&flow) {
            Some(port) => *port,
            None => self.claim(rule, node, flow, now_ns)?,
        };
        if let Some(claim) = self.claims.get_mut(&Outside { port, remote }) {
            claim.touch(packet, rule.idle_ns, now_ns);
        }
        Ok((rule.address, port))
    }

    /// The node's end of the flow that a packet from the world to the public address belongs to.
    pub(super) fn restore(&mut self, flow: Tuple, packet: &Packet, now_ns: u64) -> Option<(IpAddr, u16)> {
        let rule = self.rule?;
        let remote = (flow.source.0, flow.source.1, flow.protocol);
        let claim = self.claims.get_mut(&Outside { port: flow.target.1, remote })?;
        if claim.free_ns <= now_ns {
            return None;
        }
        claim.touch(packet, rule.idle_ns, now_ns);
        Some(claim.inside.source)
    }

    /// The node's end of the flow that a packet was of which an ICMP error from the world quotes.
    pub(super) fn quoted_by_world(&self, quoted: Tuple) -> Option<(IpAddr, u16)> {
        let remote = (quoted.target.0, quoted.target.1, quoted.protocol);
        let claim = self.claims.get(&Outside { port: quoted.source.1, remote })?;
        Some(claim.inside.source)
    }

    /// The public end of the flow that a packet was of which an ICMP error from a node quotes.
    pub(super) fn quoted_by_node(&self, quoted: Tuple) -> Option<(IpAddr, u16)> {
        let port = self.ports.get(&quoted.reversed())?;
        Some((self.rule?.address, *port))
    }

    /// Takes a port for a flow.
    fn claim(&mut self, rule: Rule, node: NodeId, inside: Tuple, now_ns: u64) -> Result<u16, Loss> {
        let remote = (inside.target.0, inside.target.1, inside.protocol);
        let place = self.blocks.iter().position(|block| block.node == node).ok_or(Loss::SnatNoFlow)?;
        let block = &mut self.blocks[place];
        let (first, next) = (block.first(rule.each), block.next);
        let found = (0..rule.each).map(|step| (next + step) % rule.each).find(|offset| {
            let outside = Outside { port: first + *offset as u16, remote };
            self.claims.get(&outside).is_none_or(|claim| claim.free_ns <= now_ns)
        });
        let Some(offset) = found else {
            block.exhausted += 1;
            return Err(Loss::SnatPortsExhausted);
        };
        block.next = (offset + 1) % rule.each;
        *block.destinations.entry(remote).or_default() += 1;
        let outside = Outside { port: first + offset as u16, remote };
        self.release(outside);
        self.ports.insert(inside, outside.port);
        let claim = Claim { node, inside, state: State::Open, free_ns: now_ns };
        self.claims.insert(outside, claim);
        Ok(outside.port)
    }

    /// Gives a port back, if it is taken.
    fn release(&mut self, outside: Outside) {
        let Some(claim) = self.claims.remove(&outside) else { return };
        self.ports.remove(&claim.inside);
        let block = self.blocks.iter_mut().find(|block| block.node == claim.node);
        if let Some(used) = block.and_then(|block| block.destinations.get_mut(&outside.remote)) {
            *used -= 1;
        }
    }

    /// Gives back the ports of flows that are over.
    pub(super) fn sweep(&mut self, now_ns: u64) {
        let over = self.claims.iter().filter(|(_, claim)| claim.free_ns <= now_ns);
        for outside in over.map(|(outside, _)| *outside).collect::<Vec<_>>() {
            self.release(outside);
        }
        for block in &mut self.blocks {
            block.destinations.retain(|_, used| *used > 0);
        }
    }

    pub(super) fn report(&self) -> Option<SnatReport> {
        let rule = self.rule?;
        let nodes = self.blocks.iter().map(|block| block.report(rule.each)).collect();
        Some(SnatReport { address: rule.address, nodes })
    }
}

impl Block {
    /// Its first port.
    fn first(&self, each: u32) -> u16 {
        // All blocks together have 64,000 ports at most.
        FIRST + (self.number * each) as u16
    }

    fn report(&self, each: u32) -> SnatNode {
        let mut destinations: Vec<SnatDestination> = self
            .destinations
            .iter()
            .filter(|(_, used)| **used > 0)
            .map(|((address, port, protocol), used)| SnatDestination {
                remote: SocketAddr::new(*address, *port),
                protocol: *protocol,
                used: *used,
            })
            .collect();
        destinations.sort_by_key(|one| (std::cmp::Reverse(one.used), one.remote, one.protocol));
        let flows = destinations.iter().map(|one| u64::from(one.used)).sum();
        destinations.truncate(SnatNode::TOP);
        let first = self.first(each);
        let ports = (first, first + (each - 1) as u16);
        SnatNode { node: self.name.clone(), ports, flows, exhausted: self.exhausted, destinations }
    }
}

impl Claim {
    /// A packet of the flow, in either direction.
    fn touch(&mut self, packet: &Packet, idle_ns: u64, now_ns: u64) {
        if packet.protocol == TCP {
            self.state = match self.state {
                _ if packet.has(RST) => State::Reset,
                _ if packet.has(SYN) && !packet.has(ACK) => State::Open,
                State::Open if packet.has(FIN) => State::Finished,
                state => state,
            };
        }
        let left_ns = match self.state {
            State::Open => idle_ns,
            State::Finished => idle_ns.min(AFTER_FIN_NS),
            State::Reset => idle_ns.min(AFTER_RST_NS),
        };
        self.free_ns = now_ns.saturating_add(left_ns);
    }
}
