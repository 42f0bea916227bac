//! What is done to a cluster next: mostly what could happen there, so that walks get far; often with frames
//! that came out of a node before.

use std::collections::VecDeque;
use std::net::IpAddr;

use dataplane::Verdict;
use dataplane::tables::IfIndex;
use dataplane::wire::Mac;
use userspace::engine::Hook;
use userspace::engine::emulator::topology::{HOST_LINK, UPLINK};
use userspace::model;
use userspace::plan::{Links, NodePlan};

use super::bytes::{Layout, TCP, pieces};
use super::cluster::{Act, shortest};
use super::draw::{Draw, WORLD_V4, WORLD_V6};
use super::packet::{LONGEST, Link, address};

/// A frame that came out of a node.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    /// The node it came out of.
    pub(crate) node: usize,
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
}

/// Somebody with an address.
#[derive(Clone, Copy, Debug)]
struct Party {
    address: IpAddr,
    /// The node it is or is on.
    node: usize,
    /// For a pod, the node's side of its link.
    interface: IfIndex,
    /// For a pod, what the tunnel says of it.
    identity: u32,
}

/// Who is in a cluster, and what has just happened there.
pub(crate) struct Scene {
    pods: Vec<Party>,
    nodes: Vec<Party>,
    /// What clients dial: a Service's address, its protocol and port.
    services: Vec<(IpAddr, u8, u16)>,
    /// Those of it that are dialled from outside.
    frontends: Vec<(IpAddr, u8, u16)>,
    /// How many rows there may be of backends.
    ends: usize,
    /// What dialling comes to.
    backends: Vec<(IpAddr, u8, u16)>,
    world: Vec<IpAddr>,
    link: Link,
    /// The uplink's hardware address on each node.
    macs: Vec<Mac>,
    has_tunnel: bool,
    /// Frames that came out of nodes, the newest last.
    flights: VecDeque<Flight>,
    /// Frames that entered nodes, the newest last.
    past: VecDeque<(usize, Hook, IfIndex, Vec<u8>)>,
    /// What is to be done soon.
    coming: Vec<Act>,
}

/// What becomes of a backend: mostly it takes new flows.
const STATES: [u8; 5] = {
    type Row = dataplane::tables::Backend<dataplane::wire::V4>;
    [Row::ACTIVE, Row::ACTIVE, Row::ACTIVE, Row::DRAINING, Row::GONE]
};
/// How many frames are remembered.
const MEMORY: usize = 96;

impl Scene {
    pub(crate) fn new(cluster: &model::Cluster, nodes: &[(NodePlan, Links)]) -> Self {
        let mut pods = Vec::new();
        for (place, (plan, _)) in nodes.iter().enumerate() {
            let party = |address, endpoint: &dataplane::tables::Endpoint| Party {
                address,
                node: place,
                interface: endpoint.interface,
                identity: endpoint.identity.0,
            };
            pods.extend(plan.rows.v4.endpoints.iter().map(|(key, row)| party(IpAddr::from(key.0), row)));
            pods.extend(plan.rows.v6.endpoints.iter().map(|(key, row)| party(IpAddr::from(key.0), row)));
        }
        let node = |(place, node): (usize, &model::Node)| {
            let party = |address: &IpAddr| Party {
                address: *address,
                node: place,
                interface: HOST_LINK,
                identity: 6,
            };
            node.addresses.iter().map(party).collect::<Vec<_>>()
        };
        let own: Vec<IpAddr> = cluster.nodes.iter().flat_map(|node| node.addresses.iter().copied()).collect();
        let (mut services, mut backends, mut frontends) = (Vec::new(), Vec::new(), Vec::new());
        for service in &cluster.services {
            for port in &service.ports {
                let protocol = port.protocol.number();
                services.extend(service.addresses.iter().map(|address| (*address, protocol, port.port)));
                let outside = service.external_addresses.iter().chain(&service.load_balancer_addresses);
                frontends.extend(outside.map(|address| (*address, protocol, port.port)));
                let node_ports = own.iter().zip(std::iter::repeat(port.node_port));
                frontends.extend(node_ports.filter_map(|(own, port)| Some((*own, protocol, port?))));
                backends.extend(port.backends.iter().map(|one| (one.address, protocol, one.port)));
            }
        }
        services.extend(&frontends);
        let settings = &cluster.settings;
        Self {
            pods,
            ends: backends.len(),
            frontends,
            nodes: cluster.nodes.iter().enumerate().flat_map(node).collect(),
            services,
            backends,
            world: WORLD_V4.iter().chain(&WORLD_V6).map(|text| text.parse().expect("an address")).collect(),
            link: Link {
                mtu: settings.mtu as usize,
                tunnel_port: settings.tunnel_port,
                geneve: settings.encapsulation == model::Encapsulation::Geneve,
            },
            macs: nodes.iter().map(|(plan, _)| plan.node.mac).collect(),
            has_tunnel: settings.model == model::Model::Overlay,
            flights: VecDeque::new(),
            past: VecDeque::new(),
            coming: Vec::new(),
        }
    }

    /// Remembers what came of a frame.
    pub(crate) fn note(&mut self, act: &Act, verdict: Verdict, frame: &[u8]) {
        let Act::Frame { node, hook, interface, frame: entered } = act else { return };
        if matches!(verdict, Verdict::Forward(_) | Verdict::Deliver(_) | Verdict::Stack | Verdict::Reject(_))
        {
            self.flights.push_back(Flight { node: *node, verdict, frame: frame.to_vec() });
        }
        self.past.push_back((*node, *hook, *interface, entered.clone()));
        if self.flights.len() > MEMORY {
            self.flights.pop_front();
        }
        if self.past.len() > MEMORY {
            self.past.pop_front();
        }
    }

    fn whose(&self, address: IpAddr) -> Option<Party> {
        self.nodes.iter().chain(&self.pods).find(|party| party.address == address).copied()
    }
}

impl Draw {
    /// Something to do to a cluster.
    pub(crate) fn act(&mut self, scene: &mut Scene) -> Act {
        if self.one_in(150) {
            return Act::Wait(1 + self.below(30) as u32);
        }
        if self.one_in(400) {
            return Act::Sweep;
        }
        if scene.ends > 0 && self.one_in(60) {
            return Act::Backend { number: 1 + self.below(scene.ends), state: self.of(&STATES) };
        }
        if self.one_in(60) {
            return Act::Turn(self.below(64));
        }
        if !scene.coming.is_empty() && !self.one_in(4) {
            return scene.coming.remove(0);
        }
        let (node, hook, interface, mut frame) = match self.below(10) {
            0..=3 => self.continued(scene),
            4..=5 => self.repeated(scene),
            _ => None,
        }
        .unwrap_or_else(|| self.fresh(scene));
        // A switch floods now and then.
        if hook == Hook::FromUnderlay
            && !self.one_in(40)
            && let Some(target) = frame.get_mut(..6)
        {
            target.copy_from_slice(&scene.macs[node].0);
        }
        frame.truncate(LONGEST);
        if self.one_in(14) {
            let size = self.of(&[8, 8, 16, 24, 32, 64, 256, 512]);
            let identification = self.below(12) as u32;
            let mut cut = pieces(&frame, size, identification);
            cut.truncate(8);
            self.lay_out(scene, (node, hook, interface), cut.clone());
            frame = cut.swap_remove(0);
        } else if self.one_in(14) {
            self.corrupt(&mut frame);
        } else if self.one_in(28) {
            let least = shortest(&frame).min(frame.len());
            frame.truncate(least + self.below((frame.len() - least).max(1)));
        } else if self.one_in(40) {
            frame.resize(frame.len() + self.below(30), 0);
        }
        entering((node, hook, interface), frame)
    }

    /// Has the pieces of a packet follow, mostly in order.
    fn lay_out(&mut self, scene: &mut Scene, place: (usize, Hook, IfIndex), cut: Vec<Vec<u8>>) {
        // The first goes ahead, unless they come out of order.
        let mut order: Vec<usize> = (1..cut.len()).collect();
        if self.one_in(5) {
            order.reverse();
            order.push(0);
        }
        if self.one_in(5) {
            order.push(self.below(cut.len()));
        }
        let acts = order.into_iter().map(|at| entering(place, cut[at].clone()));
        scene.coming.extend(acts);
    }

    /// What becomes of a frame that came out of a node: it enters the next, or something comes back for it.
    fn continued(&mut self, scene: &Scene) -> Option<(usize, Hook, IfIndex, Vec<u8>)> {
        if scene.flights.is_empty() {
            return None;
        }
        // Mostly one of the latest.
        let reach = if self.one_in(3) { scene.flights.len() } else { scene.flights.len().min(12) };
        let flight = &scene.flights[scene.flights.len() - 1 - self.below(reach)];
        let layout = Layout::of(&flight.frame)?;
        let target = address(layout.target(&flight.frame));
        match flight.verdict {
            Verdict::Forward(_) => match scene.whose(target) {
                Some(party) if !self.one_in(16) => {
                    let mut frame = flight.frame.clone();
                    if self.one_in(8) {
                        self.remark(&mut frame);
                    }
                    Some((party.node, Hook::FromUnderlay, UPLINK, frame))
                }
                // The underlay complains, or whoever it was for answers.
                Some(_) => Some((flight.node, Hook::FromUnderlay, UPLINK, self.complaint(&flight.frame)?)),
                None => Some((flight.node, Hook::FromUnderlay, UPLINK, self.answer(&flight.frame)?)),
            },
            // Once more, but without whatever was translated on the way.
            Verdict::Deliver(_) if self.one_in(8) => {
                let party = scene.whose(address(layout.source(&flight.frame)))?;
                let (hook, interface) = match party.interface {
                    HOST_LINK => (Hook::FromHost, HOST_LINK),
                    interface => (Hook::FromPod, interface),
                };
                Some((party.node, hook, interface, flight.frame.clone()))
            }
            Verdict::Deliver(interface) => {
                let answer = self.answer(&flight.frame)?;
                Some((flight.node, Hook::FromPod, interface, answer))
            }
            Verdict::Stack => Some((flight.node, Hook::FromHost, HOST_LINK, self.answer(&flight.frame)?)),
            _ => {
                let party = scene.whose(target)?;
                Some((party.node, Hook::FromUnderlay, UPLINK, flight.frame.clone()))
            }
        }
    }

    /// A frame like one that entered before: again, or what comes next in its flow.
    fn repeated(&mut self, scene: &Scene) -> Option<(usize, Hook, IfIndex, Vec<u8>)> {
        if scene.past.is_empty() {
            return None;
        }
        let (node, hook, interface, frame) = self.of_deque(&scene.past);
        let frame = if self.one_in(5) { frame } else { self.sequel(&frame)? };
        Some((node, hook, interface, frame))
    }

    fn of_deque<T: Clone>(&mut self, these: &VecDeque<T>) -> T {
        these[self.below(these.len())].clone()
    }

    /// A frame that begins something.
    fn fresh(&mut self, scene: &Scene) -> (usize, Hook, IfIndex, Vec<u8>) {
        match self.below(10) {
            0..=5 if !scene.pods.is_empty() => self.a_pods_frame(scene),
            6 => {
                let node = self.of(&scene.nodes);
                let target = self.target(scene, node.address.is_ipv6());
                let frame = if self.one_in(20) {
                    self.link_talk(node.address, target)
                } else {
                    self.packet((node.address, target), scene.link)
                };
                (node.node, Hook::FromHost, HOST_LINK, frame)
            }
            7..=8 if scene.has_tunnel => self.through_the_tunnel(scene),
            _ if !scene.frontends.is_empty() && self.one_in(2) => self.dialled_outside(scene),
            _ => {
                let to = if self.one_in(3) { self.of(&scene.nodes) } else { self.a_pod(scene) };
                let from = self.source(scene, to.address.is_ipv6());
                let frame = self.packet((from, to.address), scene.link);
                (to.node, Hook::FromUnderlay, UPLINK, frame)
            }
        }
    }

    /// A Service is dialled from outside, or somebody there pretends to be one.
    fn dialled_outside(&mut self, scene: &Scene) -> (usize, Hook, IfIndex, Vec<u8>) {
        let (address, protocol, port) = self.of(&scene.frontends);
        let six = address.is_ipv6();
        if self.one_in(6) {
            let pod = self.a_pod(scene);
            if pod.address.is_ipv6() == six {
                let frame = self.pretend((address, pod.address), (protocol, port));
                return (pod.node, Hook::FromUnderlay, UPLINK, frame);
            }
        }
        let source = self.source(scene, six);
        let frame = self.dial((source, address), (protocol, port), scene.link);
        let node = scene.whose(address).map_or_else(|| self.of(&scene.nodes).node, |party| party.node);
        (node, Hook::FromUnderlay, UPLINK, frame)
    }

    fn a_pods_frame(&mut self, scene: &Scene) -> (usize, Hook, IfIndex, Vec<u8>) {
        let pod = self.of(&scene.pods);
        let six = pod.address.is_ipv6();
        let target = self.target(scene, six);
        if self.one_in(20) {
            return (pod.node, Hook::FromPod, pod.interface, self.link_talk(pod.address, target));
        }
        let source = if self.one_in(20) { self.source(scene, six) } else { pod.address };
        let mut frame = match self.below(8) {
            0 | 1 => self.dialled(scene, source),
            // Always the same place in the world, so that ports of the node's run out.
            2 => scene.world.iter().find(|address| address.is_ipv6() == six).and_then(|world| {
                (source.is_ipv6() == six).then(|| self.dial((source, *world), (TCP, 80), scene.link))
            }),
            _ => None,
        }
        .unwrap_or_else(|| self.packet((source, target), scene.link));
        if self.one_in(60) {
            // Of no kind that the path knows, or of the other kind than its packet.
            let kinds: [[u8; 2]; 4] = [[0x88, 0xcc], [0x81, 0], [0x86, 0xdd], [8, 0]];
            frame[12..14].copy_from_slice(&self.of(&kinds));
        }
        (pod.node, Hook::FromPod, pod.interface, frame)
    }

    /// A Service is dialled, or one of its backends as if there were none.
    fn dialled(&mut self, scene: &Scene, source: IpAddr) -> Option<Vec<u8>> {
        let these = if self.one_in(3) { &scene.backends } else { &scene.services };
        let alike: Vec<_> =
            these.iter().filter(|(address, ..)| address.is_ipv6() == source.is_ipv6()).collect();
        if alike.is_empty() {
            return None;
        }
        let (target, protocol, port) = *self.of(&alike);
        Some(self.dial((source, target), (protocol, port), scene.link))
    }

    fn a_pod(&mut self, scene: &Scene) -> Party {
        if scene.pods.is_empty() { self.of(&scene.nodes) } else { self.of(&scene.pods) }
    }

    /// A frame in the tunnel, from a pod of one node to one of another, as it should be or not quite.
    fn through_the_tunnel(&mut self, scene: &Scene) -> (usize, Hook, IfIndex, Vec<u8>) {
        let (from, to) = (self.a_pod(scene), self.a_pod(scene));
        let six = to.address.is_ipv6();
        let source = if from.address.is_ipv6() == six && !self.one_in(if scene.link.geneve { 3 } else { 8 }) {
            from.address
        } else {
            self.source(scene, six)
        };
        let inner = self.packet((source, to.address), scene.link);
        let end = |node: usize| scene.nodes.iter().find(|one| one.node == node).map(|one| one.address);
        let outer_to = end(to.node).unwrap_or(to.address);
        let like = |address: &IpAddr| address.is_ipv6() == outer_to.is_ipv6();
        let outer_from = if self.one_in(8) { None } else { end(from.node).filter(like) };
        let outer_from = outer_from.unwrap_or_else(|| self.source(scene, outer_to.is_ipv6()));
        let identity = match self.below(12) {
            0 => 0,
            1 => self.below(300) as u32,
            2 => 6,
            _ => from.identity,
        };
        let mut frame = self.wrapped((outer_from, outer_to), &inner, identity, scene.link);
        if self.one_in(6) {
            self.remark(&mut frame);
        }
        (to.node, Hook::FromUnderlay, UPLINK, frame)
    }

    /// Somebody of a family who may send.
    fn source(&mut self, scene: &Scene, six: bool) -> IpAddr {
        let lists = [&scene.nodes, &scene.pods, &scene.pods];
        match self.below(6) {
            0..=2 => self.one_of(scene.world.iter().copied(), six),
            3 => self.stray(six),
            _ => {
                let list = self.of(&lists);
                self.one_of(list.iter().map(|party| party.address), six)
            }
        }
    }

    /// Somebody of a family whom one would speak to.
    fn target(&mut self, scene: &Scene, six: bool) -> IpAddr {
        match self.below(14) {
            0 => self.stray(six),
            1 => self.one_of(scene.nodes.iter().map(|party| party.address), six),
            2..=4 => self.one_of(scene.world.iter().copied(), six),
            5..=8 => self.one_of(scene.services.iter().map(|(address, ..)| *address), six),
            _ => self.one_of(scene.pods.iter().map(|party| party.address), six),
        }
    }

    fn one_of(&mut self, addresses: impl Iterator<Item = IpAddr>, six: bool) -> IpAddr {
        let alike: Vec<_> = addresses.filter(|address| address.is_ipv6() == six).collect();
        if alike.is_empty() { self.stray(six) } else { self.of(&alike) }
    }

    /// An address that is perhaps nobody's.
    fn stray(&mut self, six: bool) -> IpAddr {
        let low = self.below(0x400) as u32;
        if six {
            let text = self.of(&[
                "fd00:10:244::",
                "fd00:10:240::",
                "fd00:10:96::",
                "fd00:10:241::",
                "fe80::",
                "ff02::",
            ]);
            let base: std::net::Ipv6Addr = text.parse().expect("an address");
            return std::net::Ipv6Addr::from(
                u128::from(base) + (u128::from(low >> 8) << 64) + u128::from(low & 0xff),
            )
            .into();
        }
        let base =
            self.of(&[0x0af4_0000_u32, 0x0af0_0000, 0x0a60_0000, 0x0af1_0000, 0xa9fe_0000, 0xe000_0000]);
        std::net::Ipv4Addr::from(base + low).into()
    }
}

/// A frame enters a node there, no shorter than both engines take.
fn entering((node, hook, interface): (usize, Hook, IfIndex), mut frame: Vec<u8>) -> Act {
    frame.resize(frame.len().max(shortest(&frame)), 0);
    Act::Frame { node, hook, interface, frame }
}
