//! One node's packet path, without any input or output: a frame in, frames out.
//!
//! ```text
//! raw -> conntrack -> nat PREROUTING -> route -> filter FORWARD -> nat POSTROUTING -> confirm
//!                     (OUTPUT)                   (INPUT, OUTPUT)
//! ```
//! The nat table sees the first packet of a connection only; the others are translated as that one was.

use std::net::Ipv4Addr;
use std::time::Duration;

use userspace::model::Cluster;

use super::conntrack::{Connection, Conntrack, Direction, NotKept, State, Tracked};
use super::frame::{self, ETHERNET, Icmp, Kind, Mac, Packet, Unreadable, VXLAN_PORT};
use super::plan::{Error, Hop, Plan, mac};
use super::rules::{Dice, Link, Place, Seen, Walked};

/// The tunnel's network identifier.
const VNI: u32 = 1;

/// Connections that a node keeps (nf_conntrack_max on a small machine).
const CONNECTIONS: usize = 131_072;

/// The hardware address of every pod's gateway.
const GATEWAY: Mac = [0x0a, 0x58, 169, 254, 1, 1];

/// Why a packet goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no packet for us.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A rule says so.
    #[error("dropped by {0}")]
    Dropped(Place),
    /// A rule says so, and that the sender be told.
    #[error("rejected by {0}")]
    Rejected(Place),
    /// Its connection cannot be kept.
    #[error(transparent)]
    NotKept(#[from] NotKept),
    /// An address of the cluster that nobody has.
    #[error("nobody has the address {0}")]
    Nowhere(Ipv4Addr),
    /// It came through the tunnel or the uplink, for somewhere else.
    #[error("{0} is not on this node")]
    NotHere(Ipv4Addr),
    /// Its hops are used up.
    #[error("time to live ran out")]
    TimeExceeded,
    /// It does not fit a pod's link.
    #[error("longer than the link's MTU")]
    TooBig,
    /// Encapsulated by who is no node.
    #[error("{0} is no node of the cluster")]
    TunnelSource(Ipv4Addr),
    /// A question about an address that nobody answers for.
    #[error("a question without an answer")]
    Question,
}

/// What became of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Frames to send, and where.
    pub frames: Vec<(Link, Vec<u8>)>,
    /// Why it is not among them, if it is not; an error for its sender may be.
    pub refused: Option<Refused>,
}

impl From<Result<(Link, Vec<u8>), Refused>> for Pushed {
    fn from(one: Result<(Link, Vec<u8>), Refused>) -> Self {
        match one {
            Ok(sent) => Self { frames: vec![sent], refused: None },
            Err(why) => Self { frames: Vec::new(), refused: Some(why) },
        }
    }
}

/// A refusal, and what the sender is told of it.
struct Refusal {
    why: Refused,
    answer: Option<Icmp>,
}

impl<T: Into<Refused>> From<T> for Refusal {
    fn from(why: T) -> Self {
        Self { why: why.into(), answer: None }
    }
}

/// A node's rules and connections.
#[derive(Clone, Debug)]
pub struct Node {
    plan: Plan,
    conntrack: Conntrack,
    dice: Dice,
}

impl Node {
    /// The node of that name, as it is before any packet. The same seed takes the same endpoints for the
    /// same packets.
    ///
    /// # Errors
    /// The cluster has no such node, or something that is not IPv4.
    pub fn new(cluster: &Cluster, node: &str, seed: u64) -> Result<Self, Error> {
        let plan = Plan::new(cluster, node)?;
        Ok(Self { plan, conntrack: Conntrack::new(CONNECTIONS), dice: Dice::new(seed) })
    }

    /// Writes the rules anew for a cluster that has changed; connections go on.
    ///
    /// # Errors
    /// As [`Self::new`]; the old rules stay then.
    pub fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Error> {
        self.plan = Plan::new(cluster, node)?;
        Ok(())
    }

    /// What the node knows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The connections that were let through.
    pub fn connections(&self) -> Vec<Connection> {
        self.conntrack.connections()
    }

    /// A frame arrives at `from`; the clock shows `now`, from any start. Frames for the node's own stack
    /// leave at [`Link::Host`], and what it sends to pods arrives there.
    pub fn push(&mut self, from: Link, frame: &[u8], now: Duration) -> Pushed {
        match frame.get(12..ETHERNET) {
            Some([8, 0]) => self.ip(from, &frame[ETHERNET..], now.as_secs()),
            Some([8, 6]) => Pushed::from(arp(from, frame).ok_or(Refused::Question)),
            Some(_) => Pushed::from(Err(Unreadable::EtherType.into())),
            None => Pushed::from(Err(Unreadable::Malformed.into())),
        }
    }

    fn ip(&mut self, from: Link, bytes: &[u8], now_s: u64) -> Pushed {
        let (from, packet) = match self.read(from, bytes) {
            Ok(read) => read,
            Err(why) => return Pushed::from(Err(why)),
        };
        match self.forward(from, &packet, now_s) {
            Ok(sent) => Pushed::from(Ok(sent)),
            Err(Refusal { why, answer }) => {
                let answer = answer.and_then(|answer| self.answer(&packet, answer));
                Pushed { frames: answer.into_iter().collect(), refused: Some(why) }
            }
        }
    }

    /// The packet, out of the tunnel if it came by it.
    fn read(&self, from: Link, bytes: &[u8]) -> Result<(Link, Packet), Refused> {
        let packet = Packet::read(bytes)?;
        if from != Link::Uplink || !self.is_tunnelled(&packet) {
            return Ok((from, packet));
        }
        if !self.plan.nodes.contains(&packet.tuple.source) {
            return Err(Refused::TunnelSource(packet.tuple.source));
        }
        let inner = frame::unwrapped(packet.udp_payload(), VNI)?;
        Ok((Link::Tunnel, Packet::read(inner)?))
    }

    fn is_tunnelled(&self, packet: &Packet) -> bool {
        let tuple = packet.tuple;
        packet.kind == Kind::Udp && tuple.target == self.plan.address && tuple.target_port == VXLAN_PORT
    }

    /// The whole way of a packet, from one link to another.
    fn forward(&mut self, from: Link, packet: &Packet, now_s: u64) -> Result<(Link, Vec<u8>), Refusal> {
        let mut seen = Seen { tuple: packet.tuple, from, to: None, state: State::New, reply: false, mark: 0 };
        if let Walked::Drop(place) = self.plan.raw.walk("PREROUTING", &mut seen, &mut self.dice) {
            return Err(Refused::Dropped(place).into());
        }
        let mut tracked = self.conntrack.track(packet, now_s);
        seen.state = tracked.state;
        seen.reply = tracked.direction == Direction::Reply;
        if from == Link::Uplink && packet.tuple.target == self.plan.address {
            let known = matches!(tracked.state, State::Established | State::Related);
            if !known {
                // The node's own affair: its own stack keeps track of it.
                return Ok(self.sent(Hop::Host, packet.clone())?);
            }
        }
        if tracked.state == State::New {
            let hook = if from == Link::Host { "OUTPUT" } else { "PREROUTING" };
            if let Walked::Dnat(address, port) = self.plan.nat.walk(hook, &mut seen, &mut self.dice) {
                Conntrack::set_target(&mut tracked.connection, address, port);
            }
        }
        let leaving = self.leaving(packet, &tracked);
        (seen.tuple.target, seen.tuple.target_port) = (leaving.target, leaving.target_port);
        let hop = self.plan.hop(leaving.target);
        self.check_hop(packet, from, hop, leaving.target)?;
        seen.to = link(hop);
        self.filter(&mut seen)?;
        if tracked.state == State::New {
            self.translate_source(&mut seen, &mut tracked)?;
            self.conntrack.confirm(tracked.connection, packet.kind, now_s)?;
        }
        let hops = u8::from(hop != Hop::Host);
        let mut packet = packet.clone();
        match (packet.kind, tracked.state) {
            (Kind::Error(_), State::Related) => {
                let (source, target, quoted) =
                    tracked.connection.leaving_error(tracked.direction, packet.tuple);
                packet.rewrite_error((source, target), quoted, hops);
            }
            _ => packet.rewrite(self.leaving(&packet, &tracked), hops),
        }
        Ok(self.sent(hop, packet)?)
    }

    /// The tuple that the packet leaves with, as far as it is known.
    fn leaving(&self, packet: &Packet, tracked: &Tracked) -> frame::Tuple {
        match tracked.state {
            State::Invalid => packet.tuple,
            State::Related => {
                let (source, target, _) = tracked.connection.leaving_error(tracked.direction, packet.tuple);
                frame::Tuple { source, target, ..packet.tuple }
            }
            State::New | State::Established => tracked.connection.leaving(tracked.direction),
        }
    }

    fn check_hop(&self, packet: &Packet, from: Link, hop: Hop, target: Ipv4Addr) -> Result<(), Refusal> {
        let own = matches!(hop, Hop::Pod(_) | Hop::Host);
        if matches!(from, Link::Tunnel | Link::Uplink) && !own {
            return Err(Refused::NotHere(target).into());
        }
        if hop == Hop::Host {
            return Ok(());
        }
        if packet.ttl() <= 1 {
            return Err(Refusal { why: Refused::TimeExceeded, answer: Some(Icmp::TimeExceeded) });
        }
        if packet.length() > u32::from(self.plan.mtu) {
            let answer = packet.whole.then_some(Icmp::TooBig(self.plan.mtu));
            return Err(Refusal { why: Refused::TooBig, answer });
        }
        Ok(())
    }

    fn filter(&mut self, seen: &mut Seen) -> Result<(), Refusal> {
        let hook = match (seen.from, seen.to) {
            (Link::Host, _) => "OUTPUT",
            (_, Some(Link::Host)) => "INPUT",
            _ => "FORWARD",
        };
        match self.plan.filter.walk(hook, seen, &mut self.dice) {
            Walked::Drop(place) => Err(Refused::Dropped(place).into()),
            Walked::Reject(place) => {
                Err(Refusal { why: Refused::Rejected(place), answer: Some(Icmp::PortUnreachable) })
            }
            // A Service without endpoints was rejected; what is left has no home at all.
            _ if seen.to.is_none() => Err(Refused::Nowhere(seen.tuple.target).into()),
            _ => Ok(()),
        }
    }

    fn translate_source(&mut self, seen: &mut Seen, tracked: &mut Tracked) -> Result<(), Refusal> {
        let draft = &mut tracked.connection;
        let all = 1..=u16::MAX;
        let (address, ports) = match self.plan.nat.walk("POSTROUTING", seen, &mut self.dice) {
            Walked::Masquerade(ports) => (self.plan.address, ports),
            Walked::Snat(address) => (address, all),
            _ => return Ok(()),
        };
        let start = self.dice.roll();
        Ok(self.conntrack.set_source(draft, address, &ports, start)?)
    }

    /// An error for the sender of a refused packet, on its way.
    fn answer(&self, packet: &Packet, what: Icmp) -> Option<(Link, Vec<u8>)> {
        let answer = packet.refusal(self.plan.address, what)?;
        // Who has no way to an address cannot answer it either.
        self.sent(self.plan.hop(answer.tuple.target), answer).ok()
    }

    /// The frame that carries a packet over its next hop, and where it leaves.
    fn sent(&self, hop: Hop, packet: Packet) -> Result<(Link, Vec<u8>), Refused> {
        let (own, address) = (mac(self.plan.address), self.plan.address);
        Ok(match hop {
            Hop::Pod(pod) => (Link::Pod(pod), packet.into_frame(GATEWAY, mac(pod))),
            Hop::Host => (Link::Host, packet.into_frame(GATEWAY, own)),
            Hop::Outside => (Link::Uplink, packet.into_frame(own, self.plan.gateway)),
            Hop::Node(node) => (Link::Uplink, packet.into_tunnel(VNI, [own, mac(node)], [address, node])),
            Hop::Nowhere => return Err(Refused::Nowhere(packet.tuple.target)),
        })
    }
}

/// The answer to a pod's question for a neighbour. The fabric knows nodes without asking, and the host has
/// no neighbour.
fn arp(from: Link, frame: &[u8]) -> Option<(Link, Vec<u8>)> {
    matches!(from, Link::Pod(_))
        .then(|| frame::arp_answer(frame, GATEWAY))
        .flatten()
        .map(|answer| (from, answer))
}

/// Where packets of this hop leave, as rules see it.
fn link(hop: Hop) -> Option<Link> {
    match hop {
        Hop::Pod(address) => Some(Link::Pod(address)),
        Hop::Node(_) => Some(Link::Tunnel),
        Hop::Host => Some(Link::Host),
        Hop::Outside => Some(Link::Uplink),
        Hop::Nowhere => None,
    }
}
