//! What becomes of a frame between its two links: the steps of [`super`], with their numbers.

use std::net::{IpAddr, SocketAddr};

use dataplane::wire::{Address, Mac, V4, V6};

use super::link::Way;
use super::packet::{ETHERNET, Packet, Side, Tuple};
use super::probe::{Prober, Sent};
use super::{Fabric, Flight, Loss, Note, Port, Step, neighbour};
use crate::model::Direction;

/// Where a packet goes.
struct Hop {
    /// Where it came in.
    from: Port,
    port: Port,
    /// The gateway passes it on.
    routed: bool,
    /// To an appliance on its way.
    passes_through: bool,
}

impl Fabric {
    /// A frame comes off the link of a port: it goes on by another's, or is lost.
    pub(super) fn enter(&mut self, from: Port, mut flight: Flight) {
        let now_ns = flight.due_ns;
        // 2.
        if let Some(answer) = neighbour::answer(&flight.frame, from, &self.seats) {
            return match answer {
                Ok(frame) => self.leave(Flight { frame, ..flight }, from),
                Err(loss) => self.schedule(flight, now_ns, Step::Lose(loss)),
            };
        }
        if self.take(from, &flight) {
            return self.schedule(flight, now_ns, Step::Take);
        }
        let passed = Packet::read(&flight.frame).and_then(|packet| self.pass(from, packet, &mut flight));
        match passed {
            Ok(port) => self.leave(flight, port),
            Err(loss) => {
                self.complain(loss, from, &flight);
                self.schedule(flight, now_ns, Step::Lose(loss));
            }
        }
    }

    /// Step 8: a frame goes over the link of the port that it leaves by.
    fn leave(&mut self, mut flight: Flight, port: Port) {
        flight.step = Step::Leave(port);
        self.cross_link(flight, port, Way::Out);
    }

    /// The gateway tells the sender, if there is anything to be told.
    fn complain(&mut self, loss: Loss, to: Port, flight: &Flight) {
        if !matches!(loss, Loss::TtlExceeded | Loss::TooBig) {
            return;
        }
        let packet = Packet::read(&flight.frame).ok();
        let made = packet.and_then(|packet| {
            let room = self.room(packet.target);
            neighbour::complaint((loss, room), &flight.frame, &packet, &self.seats)
        });
        if let Some(frame) = made {
            self.counters.made += 1;
            let (due_ns, tag, step) = (flight.due_ns, flight.tag, Step::Leave(to));
            self.leave(Flight { due_ns, serial: 0, step, tag, frame, notes: vec![Note::Made] }, to);
        }
    }

    /// Steps 3 to 7: the port that a packet leaves by, and the packet as it leaves.
    fn pass(&mut self, from: Port, mut packet: Packet, flight: &mut Flight) -> Result<Port, Loss> {
        // 3.
        let direct = matches!(from, Port::Node(_)) && self.element.is_frontend(packet.source);
        if !direct && !self.seats.may_send_from(from, packet.source) {
            return Err(Loss::Spoofed);
        }
        if self.element.is_frontend(packet.target) {
            return self.balance(from, packet, flight);
        }
        // 4. Until it is clear that it can be passed on, nothing is changed: the gateway may have to quote it.
        let for_rule = self.outbound.address() == Some(packet.target);
        let hop = if for_rule { None } else { Some(self.hop(from, &packet, flight)?) };
        let routed = hop.as_ref().is_none_or(|hop| hop.routed);
        if routed && packet.hops <= 1 {
            return Err(Loss::TtlExceeded);
        }
        if packet.bytes(&flight.frame).len() > self.room(packet.target) {
            return Err(Loss::TooBig);
        }
        let flow = self.flow(&packet, flight.due_ns)?;
        let port = match (hop, flow) {
            (Some(hop), None) => hop.port,
            // 5. to 7.
            (Some(hop), Some(flow)) => {
                self.judge_and_translate(&hop, flow, &mut packet, flight)?;
                hop.port
            }
            // 6., undone.
            (None, Some(flow)) => self.restore(flow, &mut packet, flight)?,
            (None, None) => return Err(Loss::SnatNoFlow),
        };
        if routed {
            packet.take_hop(&mut flight.frame);
            flight.frame[6..12].copy_from_slice(&self.seats.gateway_mac().0);
        }
        flight.frame[..6].copy_from_slice(&self.seats.mac(port).0);
        Ok(port)
    }

    /// The longest packet that reaches this address: the load balancer may put another header before it.
    fn room(&self, target: IpAddr) -> usize {
        let wrapped = self.element.is_frontend(target) && self.element.wraps();
        let header = if target.is_ipv4() { V4::HEADER } else { V6::HEADER };
        self.seats.mtu().saturating_sub(if wrapped { header } else { 0 })
    }

    /// Step 4: where a packet goes.
    fn hop(&self, from: Port, packet: &Packet, flight: &mut Flight) -> Result<Hop, Loss> {
        let addressed = match from {
            Port::Node(_) => {
                let mac = target_mac(&flight.frame);
                let neighbour = self.seats.neighbour(mac);
                if neighbour.is_none() && !self.seats.is_gateway(mac) {
                    return Err(Loss::NoNeighbour);
                }
                neighbour
            }
            // Hosts outside have one neighbour.
            Port::External(_) => None,
        };
        if let Some(way) = self.routes.user_way(from, packet.target, &self.seats) {
            let way = way?;
            flight.notes.push(way.note);
            let routed = addressed != Some(way.port);
            return Ok(Hop { from, port: way.port, routed, passes_through: way.passes_through });
        }
        match addressed {
            Some(port) => Ok(Hop { from, port, routed: false, passes_through: false }),
            None => {
                let port = self.routes.system_port(packet.target, &self.seats)?;
                Ok(Hop { from, port, routed: true, passes_through: false })
            }
        }
    }

    /// The flow of a packet, or of the one that it quotes, as that one's replies have it; none if nobody
    /// wants to know.
    fn flow(&mut self, packet: &Packet, now_ns: u64) -> Result<Option<Flow>, Loss> {
        if self.security.is_none() && self.outbound.address().is_none() && !self.element.translates() {
            return Ok(None);
        }
        let own = self.fragments.tuple(packet, now_ns)?;
        let quoted = packet.quoted.as_ref().and_then(|quoted| quoted.tuple());
        Ok(Some(Flow { own, quoted }))
    }

    /// Steps 5 to 7.
    fn judge_and_translate(
        &mut self,
        hop: &Hop,
        flow: Flow,
        packet: &mut Packet,
        flight: &mut Flight,
    ) -> Result<(), Loss> {
        if let Port::Node(place) = hop.from {
            // 5.
            let began = self.judge(place, Direction::Outbound, flow, flight)?;
            if self.answer(packet, flight)? {
                return Ok(());
            }
            let to_world = matches!(hop.port, Port::External(_)) && !hop.passes_through;
            // 6.
            if to_world && began == Direction::Outbound {
                self.translate(flow, packet, flight)?;
            }
        }
        if let Port::Node(place) = hop.port {
            // 7.
            self.judge(place, Direction::Inbound, flow, flight)?;
        }
        Ok(())
    }

    /// Whether a node's interface lets a packet pass, and in which direction its flow began.
    fn judge(
        &mut self,
        place: usize,
        direction: Direction,
        flow: Flow,
        flight: &mut Flight,
    ) -> Result<Direction, Loss> {
        let (now_ns, node) = (flight.due_ns, self.seats.id(place).ok_or(Loss::NoNeighbour)?);
        let known = flow.quoted.map_or(flow.own, Tuple::reversed);
        if let Some(began) = self.flows.began(node, direction, known, now_ns) {
            return Ok(began);
        }
        if let Some(security) = &mut self.security {
            let (name, allow) = security.decide(direction, &flow.own);
            flight.notes.push(Note::Rule { name, allow });
            if !allow {
                return Err(Loss::SecurityDenied);
            }
        }
        // An error is no flow.
        if flow.quoted.is_none() {
            self.flows.begin(node, direction, flow.own, now_ns)?;
        }
        Ok(direction)
    }

    /// Step 6: gives a packet from a node the outbound rule's address. What pods send from their own addresses is
    /// none of the rule's: it is a reply, or was meant to keep its address.
    fn translate(&mut self, flow: Flow, packet: &mut Packet, flight: &mut Flight) -> Result<(), Loss> {
        let alike = self.outbound.address().is_some_and(|one| one.is_ipv4() == packet.source.is_ipv4());
        let Some(Port::Node(place)) = self.seats.host(packet.source).filter(|_| alike) else {
            return Ok(());
        };
        if let Some(quoted) = flow.quoted {
            let to = self.outbound.quoted_by_node(quoted).ok_or(Loss::SnatProtocol)?;
            packet.rewrite_error(&mut flight.frame, Side::Source, to);
            return Ok(());
        }
        let node = self.seats.id(place).ok_or(Loss::NoNeighbour)?;
        let to = self.outbound.translate(node, flow.own, packet, flight.due_ns)?;
        packet.rewrite(&mut flight.frame, Side::Source, to);
        let (from, to) = (SocketAddr::from(flow.own.source), SocketAddr::from(to));
        flight.notes.push(Note::Outbound { from, to });
        Ok(())
    }

    /// Step 6, undone: gives a packet from the world to the outbound rule's address back to its node. It is a reply: the
    /// node's security group lets it pass.
    fn restore(&mut self, flow: Flow, packet: &mut Packet, flight: &mut Flight) -> Result<Port, Loss> {
        let to = match flow.quoted {
            Some(quoted) => self.outbound.quoted_by_world(quoted),
            None => self.outbound.restore(flow.own, packet, flight.due_ns),
        };
        let to = to.ok_or(Loss::SnatNoFlow)?;
        let Some(port @ Port::Node(place)) = self.seats.host(to.0) else { return Err(Loss::SnatNoFlow) };
        let from = SocketAddr::from(flow.quoted.map_or(flow.own.target, |quoted| quoted.source));
        flight.notes.push(Note::Inbound { from, to: SocketAddr::from(to) });
        if flow.quoted.is_some() {
            packet.rewrite_error(&mut flight.frame, Side::Target, to);
            return Ok(port);
        }
        packet.rewrite(&mut flight.frame, Side::Target, to);
        let reply = Tuple { target: to, ..flow.own };
        let node = self.seats.id(place).ok_or(Loss::NoNeighbour)?;
        self.flows.begin(node, Direction::Outbound, reply.reversed(), flight.due_ns)?;
        Ok(port)
    }
}

/// The load balancer's part.
impl Fabric {
    /// Whether a frame is an answer to one of its probes; then it is heard.
    fn take(&mut self, from: Port, flight: &Flight) -> bool {
        let Port::Node(_) = from else { return false };
        if !Packet::read(&flight.frame).as_ref().is_ok_and(Prober::is_answer) {
            return false;
        }
        if let Some(next) = self.element.balancer.prober.hear(&flight.frame) {
            self.send_probe(next);
        }
        self.replan();
        true
    }

    /// Sends a probe to its node, if the node's security group lets it pass.
    pub(super) fn send_probe(&mut self, sent: Sent) {
        let (place, due_ns) = (sent.place, self.now_ns);
        let step = Step::Leave(Port::Node(place));
        let mut flight = Flight { due_ns, serial: 0, step, tag: 0, frame: sent.frame, notes: Vec::new() };
        let Ok(packet) = Packet::read(&flight.frame) else { return };
        self.counters.made += 1;
        let judged = match self.flow(&packet, due_ns) {
            Ok(Some(flow)) => self.judge(place, Direction::Inbound, flow, &mut flight).map(drop),
            Ok(None) => Ok(()),
            Err(loss) => Err(loss),
        };
        match judged {
            Ok(()) => self.leave(flight, Port::Node(place)),
            Err(loss) => self.schedule(flight, due_ns, Step::Lose(loss)),
        }
    }

    /// Plans anew if somebody is not what he was.
    pub(super) fn replan(&mut self) {
        if self.element.balancer.prober.take_changed() {
            self.element.plan(&self.cluster, self.now_ns);
        }
    }

    /// A packet for a frontend: to a node. It is counted, whatever becomes of it.
    fn balance(&mut self, from: Port, packet: Packet, flight: &mut Flight) -> Result<Port, Loss> {
        let end = self.choose_node(from, packet, flight);
        self.element.count(&end);
        end
    }

    fn choose_node(&mut self, from: Port, mut packet: Packet, flight: &mut Flight) -> Result<Port, Loss> {
        if packet.hops <= 1 {
            return Err(Loss::TtlExceeded);
        }
        if packet.bytes(&flight.frame).len() > self.room(packet.target) {
            return Err(Loss::TooBig);
        }
        let now_ns = flight.due_ns;
        let before = self.flow(&packet, now_ns)?;
        if let (Port::Node(place), Some(flow)) = (from, before) {
            self.judge(place, Direction::Outbound, flow, flight)?;
        }
        let frontend = packet.target;
        // The hop is the client's packet's, not that of one around it.
        let mut offered = flight.frame.clone();
        packet.take_hop(&mut offered);
        let (mac, frame) = self.element.send(&offered, now_ns)?;
        let Some(port @ Port::Node(place)) = self.seats.neighbour(mac) else { return Err(Loss::NoNeighbour) };
        let node = self.seats.node_name(place).unwrap_or_default().to_owned();
        flight.frame = frame;
        if !self.element.wraps() {
            packet = Packet::read(&flight.frame)?;
        }
        flight.notes.push(Note::Balanced { frontend, node });
        if let Some(flow) = self.flow(&packet, now_ns)? {
            self.judge(place, Direction::Inbound, flow, flight)?;
        }
        Ok(port)
    }

    /// A packet of a node that answers a frontend's client comes from the frontend again; whether it is one.
    fn answer(&mut self, packet: &mut Packet, flight: &mut Flight) -> Result<bool, Loss> {
        let Some(frame) = self.element.restore(&flight.frame, flight.due_ns) else { return Ok(false) };
        flight.frame = frame;
        *packet = Packet::read(&flight.frame)?;
        flight.notes.push(Note::Returned { frontend: packet.source });
        Ok(true)
    }
}

/// What is to be known of a packet to find its flow.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// Its own ends.
    own: Tuple,
    /// Those of the packet that it quotes, if it is an ICMP error.
    quoted: Option<Tuple>,
}

fn target_mac(frame: &[u8]) -> Mac {
    let mut mac = Mac::default();
    mac.0.copy_from_slice(&frame[..ETHERNET][..6]);
    mac
}
