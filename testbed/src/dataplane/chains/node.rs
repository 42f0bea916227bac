//! One node's packet path, without any input or output: a frame in, a frame out.
//!
//! ```text
//! raw -> conntrack -> mangle -> nat PREROUTING -> route -> mangle, filter FORWARD -> nat POSTROUTING -> confirm
//!                               (OUTPUT)                   (INPUT, OUTPUT)
//! ```
//! The nat table sees the first packet of a connection only; the others are translated as that one was. A frame is
//! copied once, into the one that leaves, and rewritten there. The tunnel is below all this: rules see what is inside.
//!
//! The node's own stack is another one's: what it sends to pods and Services comes by [`Link::Host`], but its other
//! packets go by. So what comes from outside for the node itself, and is no Service's, leaves no connection here.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use userspace::model::Cluster;

use super::answer::{self, Answer};
use super::conntrack::{Connection, Conntrack, Direction, NotKept, State, Tracked};
use super::frame::{Address, ETHERNET, Kind, Mac, Packet, Tuple, Unreadable};
use super::plan::{BETWEEN, Error, Ground, Hop, OUT};
use super::ruleset::{SourcePorts, States, TableName};
use super::walk::{Bits, Dice, Hook, Interface, NewSource, Place, Program, Seen, Walked, World};
use super::{Family, Ruleset, tunnel};

mod tell;

/// Connections that a node keeps (nf_conntrack_max on a small machine).
const CONNECTIONS: usize = 131_072;

/// The hardware address of every pod's gateway.
const GATEWAY: Mac = [0x0a, 0x58, 169, 254, 1, 1];

/// Whom a node sees that reaches itself through a Service: its own address would not come back by the path.
pub(super) const ITSELF: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0x2a01)),
];

/// Where a packet enters or leaves a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// To the fabric.
    Uplink,
    /// To the node's own stack.
    Host,
    /// To other nodes' pods. Frames leave inside the uplink's; what is pushed here has been taken out of one.
    Tunnel,
    /// To the pod with this first address.
    Pod(IpAddr),
}

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
    Nowhere(Address),
    /// Its hops are used up.
    #[error("time to live ran out")]
    TimeExceeded,
    /// It does not fit the next link.
    #[error("longer than the link's MTU")]
    TooBig,
    /// Encapsulated by who is no node.
    #[error("{0} is no node of the cluster")]
    TunnelSource(Address),
    /// Congestion on the way through the tunnel, which its sender would not be told of.
    #[error("marked for congestion, which it is not capable of")]
    CongestionLost,
    /// A question about an address that nobody answers for.
    #[error("a question without an answer")]
    Question,
    /// The node has no such link.
    #[error("no pod with the address {0} is on this node")]
    NoLink(IpAddr),
}

/// What became of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Frames to send, and where: one at most.
    pub frames: Vec<(Link, Vec<u8>)>,
    /// Why it is not among them, if it is not; an error for its sender may be.
    pub refused: Option<Refused>,
}

/// A refusal, and what the sender is told of it.
struct Refusal {
    why: Refused,
    answer: Option<Answer>,
    /// It was on its way already: the packet that an error quotes has one hop less.
    forwarded: bool,
}

impl Refusal {
    /// One that the sender is told of.
    fn told(why: Refused, answer: Option<Answer>) -> Self {
        Self { why, answer, forwarded: false }
    }
}

impl<T: Into<Refused>> From<T> for Refusal {
    fn from(why: T) -> Self {
        Self::told(why.into(), None)
    }
}

/// How a packet leaves: where to, and as which part of which connection.
struct Way {
    hop: Hop,
    tracked: Tracked,
    takes_hop: bool,
}

/// A node's rules and connections.
#[derive(Clone, Debug)]
pub struct Node {
    v4: Program<u32>,
    v6: Program<u128>,
    state: Memory,
}

/// All but the rules.
#[derive(Clone, Debug)]
struct Memory {
    ground: Ground,
    conntrack: Conntrack,
    dice: Dice,
}

impl Node {
    /// The node of that name, as it is before any packet. The same seed takes the same endpoints for the
    /// same packets.
    ///
    /// # Errors
    /// The cluster has no such node, or asks for something that rules cannot do.
    pub fn new(cluster: &Cluster, node: &str, seed: u64) -> Result<Self, Error> {
        let planned = [Family::V4, Family::V6].map(|family| Ruleset::plan(cluster, node, family));
        let [v4, v6] = planned;
        Self::with_rules(cluster, node, [&v4?, &v6?], seed)
    }

    /// The same with rules of somebody else: of IPv4, and of IPv6.
    ///
    /// # Errors
    /// The cluster has no such node, or the rules cannot be walked.
    pub fn with_rules(
        cluster: &Cluster,
        node: &str,
        [v4, v6]: [&Ruleset; 2],
        seed: u64,
    ) -> Result<Self, Error> {
        let ground = Ground::new(cluster, node)?;
        let (v4, v6) = (Program::new(v4, &ground.interfaces)?, Program::new(v6, &ground.interfaces)?);
        let state = Memory { ground, conntrack: Conntrack::new(CONNECTIONS), dice: Dice::new(seed) };
        Ok(Self { v4, v6, state })
    }

    /// Writes the rules anew for a cluster that has changed; connections and clients' choices go on.
    ///
    /// # Errors
    /// As [`Self::new`]; the old rules stay then.
    pub fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Error> {
        let mut after = Self::new(cluster, node, 0)?;
        after.v4.remember(&self.v4);
        after.v6.remember(&self.v6);
        (self.v4, self.v6, self.state.ground) = (after.v4, after.v6, after.state.ground);
        Ok(())
    }

    /// The connections that were let through.
    pub fn connections(&self) -> Vec<Connection> {
        self.state.conntrack.connections().copied().collect()
    }

    /// A frame arrives at `from`, as [`Self::pass`] takes it; frames in memory of their own.
    pub fn push(&mut self, from: Link, frame: &[u8], now: Duration) -> Pushed {
        let mut out = Vec::new();
        let (to, refused) = self.pass(from, frame, now, &mut out);
        Pushed { frames: to.map(|to| (to, out)).into_iter().collect(), refused }
    }

    /// A frame arrives at `from`; the clock shows `now`, from any start. The frame to send is written into `out`, and
    /// the link that it leaves by is returned; and why the frame is refused, if it is, in which case what leaves is
    /// an error for its sender. Frames for the node's own stack leave at [`Link::Host`], and what it sends to pods
    /// arrives there.
    pub fn pass(
        &mut self,
        from: Link,
        frame: &[u8],
        now: Duration,
        out: &mut Vec<u8>,
    ) -> (Option<Link>, Option<Refused>) {
        let mut frame = Cow::Borrowed(frame);
        let read = match frame.get(12..ETHERNET) {
            Some([8, 0] | [0x86, 0xdd]) => self.read(from, &mut frame),
            Some([8, 6]) => return arp(from, &frame, out),
            Some(_) => Err(Unreadable::EtherType.into()),
            None => Err(Unreadable::Malformed.into()),
        };
        let (from, packet) = match read {
            Ok(read) => read,
            Err(why) => return (None, Some(why)),
        };
        let (state, now_s) = (&mut self.state, now.as_secs());
        match packet.tuple.source.is_v4() {
            true => walked(&mut self.v4, state, (from, packet, &frame), now_s, out),
            false => walked(&mut self.v6, state, (from, packet, &frame), now_s, out),
        }
    }

    /// The packet, out of the tunnel if it came by it, and the interface that it came in by.
    fn read(&self, from: Link, frame: &mut Cow<'_, [u8]>) -> Result<(Interface, Packet), Refused> {
        let packet = Packet::read(frame, ETHERNET)?;
        let ground = &self.state.ground;
        let from = match from {
            Link::Host => Interface::NONE,
            Link::Tunnel => Interface::at(BETWEEN),
            Link::Pod(address) => {
                let place = ground.pod(address).ok_or(Refused::NoLink(address))?;
                Ground::interface(Hop::Pod(place))
            }
            Link::Uplink => match ground.tunnel {
                Some(tunnel)
                    if packet.kind == Kind::Udp
                        && packet.tuple.target_port == tunnel.port
                        && ground.is_own(packet.tuple.target) =>
                {
                    if !ground.is_node(packet.tuple.source) {
                        return Err(Refused::TunnelSource(packet.tuple.source));
                    }
                    let inner = tunnel::unwrap(tunnel, frame, &packet)?;
                    let (outer, packet) = (packet.class(frame), Packet::read(frame, inner)?);
                    let before = packet.class(frame);
                    let class = tunnel::inside(before, outer).ok_or(Refused::CongestionLost)?;
                    if class != before {
                        packet.set_class(frame.to_mut(), class);
                    }
                    return Ok((Interface::at(BETWEEN), packet));
                }
                _ => Interface::at(OUT),
            },
        };
        Ok((from, packet))
    }
}

/// What becomes of a packet, written into `out`.
fn walked<A: Bits>(
    rules: &mut Program<A>,
    state: &mut Memory,
    (from, packet, frame): (Interface, Packet, &[u8]),
    now_s: u64,
    out: &mut Vec<u8>,
) -> (Option<Link>, Option<Refused>) {
    let mut tracked = None;
    match forward(rules, state, (from, &mut tracked), (&packet, frame), now_s) {
        Ok(way) => match state.send(&way, packet, frame, out) {
            Ok(to) => (Some(to), None),
            Err(why) => (None, Some(why)),
        },
        Err(refusal) => {
            // Before its connection is looked for nothing is answered.
            let told = tracked.and_then(|tracked| {
                tell::tell(rules, state, (&refusal, &tracked), (packet, frame), (now_s, out))
            });
            (told, Some(refusal.why))
        }
    }
}

/// The whole way of a packet, from one link to another; and how it stands to its connection, as soon as that is known.
fn forward<A: Bits>(
    rules: &mut Program<A>,
    state: &mut Memory,
    (from, stands): (Interface, &mut Option<Tracked>),
    (packet, frame): (&Packet, &[u8]),
    now_s: u64,
) -> Result<Way, Refusal> {
    let states = States::INVALID.0;
    let (first, to) = match from {
        Interface::NONE => (Hook::Output, Ground::interface(state.ground.hop(packet.tuple.target))),
        _ => (Hook::Prerouting, Interface::NONE),
    };
    let mut seen = Seen { tuple: packet.tuple, from, to, states, reply: false, mark: 0 };
    let mut world = World { own: &state.ground.own, now_s, dice: &mut state.dice };
    ask(rules, TableName::Raw, first, &mut seen, &mut world)?;
    let tracked = stands.insert(state.conntrack.track(packet, frame, now_s));
    (seen.states, seen.reply) = (tracked.states(), tracked.direction == Direction::Reply);
    let (hop, takes_hop) = forward_tracked(rules, state, packet, (tracked, first, seen), now_s)?;
    Ok(Way { hop, tracked: *tracked, takes_hop })
}

/// Where a packet goes whose connection is known, if it has one, and whether that takes a hop; `first` is the hook that
/// it came by.
fn forward_tracked<A: Bits>(
    rules: &mut Program<A>,
    state: &mut Memory,
    packet: &Packet,
    (tracked, first, mut seen): (&mut Tracked, Hook, Seen),
    now_s: u64,
) -> Result<(Hop, bool), Refusal> {
    let Memory { ground, conntrack, dice } = state;
    let mut world = World { own: &ground.own, now_s, dice };
    let from = seen.from;
    let from_outside = [OUT, BETWEEN].map(Interface::at).contains(&from);
    ask(rules, TableName::Mangle, first, &mut seen, &mut world)?;
    if from_outside && tracked.state == State::Invalid && ground.is_own(packet.tuple.target) {
        // An answer to what the node's own stack sent past us: that keeps track of it.
        return Ok((Hop::Host, false));
    }
    let opens = tracked.state == State::New && !tracked.kept;
    if opens {
        let own = tracked.connection.reply.source;
        let (address, port) = match rules.walk(TableName::Nat, first, &mut seen, &mut world) {
            Walked::Dnat(number) => (rules.target(number).address, rules.target(number).port),
            _ => (own, None),
        };
        conntrack.set_target(&mut tracked.connection, address, port);
        seen.states = tracked.states();
    }
    let leaving = leaving(packet, tracked);
    (seen.tuple.target, seen.tuple.target_port) = (leaving.target, leaving.target_port);
    let hop = ground.hop(leaving.target);
    let takes_hop = hop != Hop::Host && from != Interface::NONE;
    fits(ground, packet, hop, takes_hop)?;
    if first != Hook::Output {
        seen.to = Ground::interface(hop);
    }
    judge(rules, (first, hop), &mut seen, &mut world)
        .map_err(|refusal| Refusal { forwarded: takes_hop, ..refusal })?;
    seen.to = Ground::interface(hop);
    if hop == Hop::Nowhere {
        // A Service without endpoints was rejected; what is left has no home at all.
        return Err(Refused::Nowhere(leaving.target).into());
    }
    let last = if hop == Hop::Host { Hook::Input } else { Hook::Postrouting };
    if last == Hook::Postrouting {
        ask(rules, TableName::Mangle, last, &mut seen, &mut world)?;
    }
    // What the node's own stack would answer past us is not kept, unless it was translated: then it answers us.
    let past_us = hop == Hop::Host && (from == Interface::NONE || from == Interface::at(OUT));
    let translated = tracked.connection.translated & States::DNAT.0 != 0;
    if opens && (!past_us || translated || from == Interface::NONE) {
        let draft = &mut tracked.connection;
        let walked = rules.walk(TableName::Nat, last, &mut seen, &mut world);
        let asked = new_source(rules, walked, draft.reply.target, past_us);
        let address = asked.address.or(ground.own_like(draft.reply.target)).unwrap_or(draft.reply.target);
        conntrack.set_source(draft, address, &asked.ports, || world.dice.roll())?;
        conntrack.confirm(*draft, now_s)?;
    }
    Ok((hop, takes_hop))
}

/// The source that a connection gets: what a rule says, or else its own. Whoever is not translated must be told apart
/// all the same, and what is answered past us must come back.
fn new_source<A: Bits>(rules: &Program<A>, walked: Walked, own: Address, past_us: bool) -> NewSource {
    let address = match walked {
        Walked::Snat(number) => return rules.source(number).clone(),
        _ if past_us => ITSELF[usize::from(!own.is_v4())].into(),
        _ => own,
    };
    NewSource { address: Some(address), ports: SourcePorts::default() }
}

/// Asks who lets a packet through that came by this hook and goes there.
fn judge<A: Bits>(
    rules: &mut Program<A>,
    (first, hop): (Hook, Hop),
    seen: &mut Seen,
    world: &mut World<'_>,
) -> Result<(), Refusal> {
    let second = match (first, hop) {
        (Hook::Output, _) => Hook::Output,
        (_, Hop::Host) => Hook::Input,
        _ => Hook::Forward,
    };
    if second != first {
        ask(rules, TableName::Mangle, second, seen, world)?;
    }
    ask(rules, TableName::Filter, second, seen, world)
}

/// Asks a table's rules that do not translate.
fn ask<A: Bits>(
    rules: &mut Program<A>,
    table: TableName,
    hook: Hook,
    seen: &mut Seen,
    world: &mut World<'_>,
) -> Result<(), Refusal> {
    match rules.walk(table, hook, seen, world) {
        Walked::Drop(line) => Err(Refused::Dropped(rules.place(line)).into()),
        Walked::Reject(line, with) => {
            Err(Refusal::told(Refused::Rejected(rules.place(line)), Some(Answer::Reject(with))))
        }
        Walked::Accept | Walked::Dnat(_) | Walked::Snat(_) => Ok(()),
    }
}

/// The tuple that the packet leaves with, as far as it is known.
fn leaving(packet: &Packet, tracked: &Tracked) -> Tuple {
    match tracked.state {
        State::Invalid | State::Untracked => packet.tuple,
        State::Related => {
            let (source, target, _) = tracked.connection.leaving_error(tracked.direction, packet.tuple);
            Tuple { source, target, ..packet.tuple }
        }
        State::New | State::Established => tracked.connection.leaving(tracked.direction),
    }
}

/// Whether a packet may take another hop, and fits the link there.
fn fits(ground: &Ground, packet: &Packet, hop: Hop, takes_hop: bool) -> Result<(), Refusal> {
    if hop == Hop::Host {
        return Ok(());
    }
    if takes_hop && packet.hops <= 1 {
        return Err(Refusal::told(Refused::TimeExceeded, Some(Answer::TimeExceeded)));
    }
    let mtu = ground.mtu[usize::from(hop == Hop::Outside)];
    if packet.length() > mtu {
        let answer = packet.whole.then_some(Answer::TooBig(mtu));
        return Err(Refusal::told(Refused::TooBig, answer));
    }
    Ok(())
}

impl Memory {
    /// Writes a packet into the frame that leaves, as its connection has it.
    fn send(&self, way: &Way, packet: Packet, frame: &[u8], out: &mut Vec<u8>) -> Result<Link, Refused> {
        let at = self.begin(way.hop, out);
        out.extend_from_slice(packet.bytes(frame));
        let mut packet = packet.moved(at);
        let Tracked { state, direction, connection, .. } = &way.tracked;
        match (packet.kind, state) {
            (_, State::Invalid | State::Untracked) => {}
            (Kind::Error(_), State::Related) => {
                let (source, target, quoted) = connection.leaving_error(*direction, packet.tuple);
                packet.readdress_error(out, (source, target), quoted);
            }
            _ => packet.readdress(out, connection.leaving(*direction)),
        }
        if way.takes_hop {
            packet.take_hop(out);
        }
        self.address(way.hop, &packet, out)
    }

    /// Makes room for the headers of a hop; where the packet's own begins then.
    fn begin(&self, hop: Hop, out: &mut Vec<u8>) -> usize {
        let wrapped = match (hop, self.ground.own.first()) {
            (Hop::Node(_), Some(own)) => tunnel::before(own.is_v4()),
            _ => 0,
        };
        out.clear();
        out.resize(wrapped + ETHERNET, 0);
        wrapped + ETHERNET
    }

    /// Writes the headers of a hop before the packet.
    fn address(&self, hop: Hop, inner: &Packet, out: &mut [u8]) -> Result<Link, Refused> {
        let Ground { mac, gateway, tunnel, nodes, pods, own, .. } = &self.ground;
        let v4 = inner.tuple.source.is_v4();
        Ok(match (hop, tunnel, own.first()) {
            (Hop::Pod(place), ..) => {
                tunnel::write_ethernet(out, [GATEWAY, pods[place].mac], v4);
                Link::Pod(pods[place].address)
            }
            (Hop::Host, ..) => {
                tunnel::write_ethernet(out, [GATEWAY, *mac], v4);
                Link::Host
            }
            (Hop::Node(place), Some(tunnel), Some(own)) => {
                let node = nodes[place];
                let macs = [*mac, node.mac];
                let target = Address::from(node.address);
                let outer = Tuple { source: *own, target, source_port: 0, target_port: 0, protocol: 17 };
                tunnel::write_ethernet(&mut out[tunnel::before(own.is_v4())..], macs, v4);
                tunnel::wrap(*tunnel, out, &outer, inner, macs);
                Link::Uplink
            }
            (Hop::Nowhere, ..) => return Err(Refused::Nowhere(inner.tuple.target)),
            (Hop::Outside | Hop::Node(_), ..) => {
                tunnel::write_ethernet(out, [*mac, *gateway], v4);
                Link::Uplink
            }
        })
    }
}

/// The answer to a pod's question for a neighbour. The fabric knows nodes without asking, and the host has
/// no neighbour.
fn arp(from: Link, frame: &[u8], out: &mut Vec<u8>) -> (Option<Link>, Option<Refused>) {
    match answer::arp(frame, GATEWAY) {
        Some(answer) if matches!(from, Link::Pod(_)) => {
            out.clear();
            out.extend_from_slice(&answer);
            (Some(from), None)
        }
        _ => (None, Some(Refused::Question)),
    }
}
