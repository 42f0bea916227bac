//! Whether a pod's address gets out.
//!
//! **Invariant:** in the models whose pods have addresses of their own making (`overlay`, `kubenet`), nothing
//! reaches the world from a pod's address, and no ICMP error tells one, unless
//! 1. the destination is in `nonMasqueradeCIDRs`, or
//! 2. it answers a host outside that dialled the pod's address itself. (The fabric lets it, so that policies
//!    about outside clients can be tried.)

use std::collections::BTreeSet;
use std::net::IpAddr;

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use ipnet::IpNet;

use crate::model::{Cluster, Model};

/// Who looks at what leaves the nodes.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Nobody's address is hidden.
    open: bool,
    pods: BTreeSet<IpAddr>,
    nodes: BTreeSet<IpAddr>,
    native: Vec<IpNet>,
    /// What hosts outside sent to pods.
    dialled: BTreeSet<Ends>,
}

/// A packet's ends, as far as it tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ends {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    /// Source and target port; of an echo its identifier twice; zeroes where it has none.
    ports: (u16, u16),
}

impl Ends {
    fn reversed(self) -> Self {
        let (source, target) = self.ports;
        Self { source: self.target, target: self.source, ports: (target, source), ..self }
    }

    /// Whether both are of one flow, as far as they tell: fragments do not tell their ports.
    fn is_of_one_flow_with(self, other: Self) -> bool {
        let silent = self.ports == (0, 0) || other.ports == (0, 0);
        (self.source, self.target, self.protocol) == (other.source, other.target, other.protocol)
            && (silent || self.ports == other.ports)
    }
}

/// A packet that told the world a pod's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The pod's address.
    pub pod: IpAddr,
    /// Where it went.
    pub target: IpAddr,
}

impl Watch {
    /// Looks at this cluster from now on.
    pub fn apply(&mut self, cluster: &Cluster) {
        let settings = &cluster.settings;
        self.open = matches!(settings.model, Model::Flat | Model::FlatDynamic);
        self.pods = cluster
            .pods
            .iter()
            .filter(|pod| !pod.host_network)
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        self.nodes = cluster.nodes.iter().flat_map(|node| node.addresses.iter().copied()).collect();
        self.native.clone_from(&settings.non_masquerade_cidrs);
    }

    /// A frame that a host outside hands to the fabric.
    pub fn from_world(&mut self, frame: &[u8]) {
        if let Some((ends, _)) = read(frame)
            && self.pods.contains(&ends.target)
        {
            self.dialled.insert(ends);
        }
    }

    /// A frame that a node hands to the fabric.
    ///
    /// # Errors
    /// It tells the world a pod's address.
    pub fn from_node(&self, frame: &[u8]) -> Result<(), Leak> {
        let Some((ends, quoted)) = read(frame) else { return Ok(()) };
        let target = ends.target;
        let inside = self.pods.contains(&target) || self.nodes.contains(&target);
        if self.open || inside || self.native.iter().any(|range| range.contains(&target)) {
            return Ok(());
        }
        // What an error is about came from its target.
        let (told, about) = match quoted {
            Some(quoted) => ([ends.source, quoted.target], quoted),
            None => ([ends.source; 2], ends.reversed()),
        };
        match told.into_iter().find(|address| self.pods.contains(address)) {
            Some(pod) if !self.dialled.iter().any(|dialled| dialled.is_of_one_flow_with(about)) => {
                Err(Leak { pod, target })
            }
            _ => Ok(()),
        }
    }
}

/// The ends of a frame's packet, and those of the packet that it quotes.
fn read(frame: &[u8]) -> Option<(Ends, Option<Ends>)> {
    ends(&LaxSlicedPacket::from_ethernet(frame).ok()?)
}

fn ends(packet: &LaxSlicedPacket<'_>) -> Option<(Ends, Option<Ends>)> {
    let (source, target, payload) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            (IpAddr::V4(ip.header().source_addr()), IpAddr::V4(ip.header().destination_addr()), ip.payload())
        }
        LaxNetSlice::Ipv6(ip) => {
            (IpAddr::V6(ip.header().source_addr()), IpAddr::V6(ip.header().destination_addr()), ip.payload())
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let quoted = |quote: &[u8]| Some(ends(&LaxSlicedPacket::from_ip(quote).ok()?)?.0);
    let (ports, quoted) = match packet.transport.as_ref() {
        Some(TransportSlice::Tcp(it)) => ((it.source_port(), it.destination_port()), None),
        Some(TransportSlice::Udp(it)) => ((it.source_port(), it.destination_port()), None),
        Some(TransportSlice::Icmpv4(it)) if matches!(it.type_u8(), 3 | 11 | 12) => {
            ((0, 0), quoted(it.payload()))
        }
        Some(TransportSlice::Icmpv6(it)) if it.type_u8() < 128 => ((0, 0), quoted(it.payload())),
        Some(TransportSlice::Icmpv4(it)) => (identifier(it.bytes5to8()), None),
        Some(TransportSlice::Icmpv6(it)) => (identifier(it.bytes5to8()), None),
        _ if payload.ip_number == IpNumber::SCTP && !payload.fragmented => {
            (payload.payload.first_chunk().map_or((0, 0), ports), None)
        }
        _ => ((0, 0), None),
    };
    let protocol = payload.ip_number.0;
    Some((Ends { source, target, protocol, ports }, quoted))
}

fn ports([a, b, c, d]: &[u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
}

fn identifier([a, b, ..]: [u8; 4]) -> (u16, u16) {
    let identifier = u16::from_be_bytes([a, b]);
    (identifier, identifier)
}

#[cfg(test)]
mod tests {
    use super::super::host::quote;
    use super::super::message::{Body, Fault, Message};
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn udp(source: &str, target: &str, ports: (u16, u16)) -> Vec<u8> {
        let body = Body::Udp { source_port: ports.0, target_port: ports.1, data: vec![1, 2] };
        frame(source, target, body)
    }

    fn frame(source: &str, target: &str, body: Body) -> Vec<u8> {
        let (source, target) = (address(source), address(target));
        Message { from: [2; 6], to: [4; 6], source, target, ttl: 64, body }.to_frame()
    }

    fn watch() -> Watch {
        Watch {
            pods: ["10.244.1.5", "fd00:1::5"].map(address).into(),
            nodes: [address("10.240.0.4")].into(),
            native: vec!["198.51.100.0/24".parse().expect("a range")],
            ..Watch::default()
        }
    }

    #[test]
    fn a_pod_s_address_must_not_reach_the_world() {
        for (pod, world) in [("10.244.1.5", "203.0.113.7"), ("fd00:1::5", "2001:db8::7")] {
            let leak = Leak { pod: address(pod), target: address(world) };
            assert_eq!(watch().from_node(&udp(pod, world, (1, 2))), Err(leak));
            let fault = Fault::TimeExceeded;
            let about = quote(&udp(world, pod, (2, 1))[14..]);
            let error = frame(
                if leak.pod.is_ipv4() { "10.240.0.4" } else { "fd00::4" },
                world,
                Body::Error { fault, quote: about },
            );
            assert_eq!(watch().from_node(&error), Err(leak), "an error that quotes it");
            let open = Watch { open: true, ..watch() };
            assert_eq!(open.from_node(&udp(pod, world, (1, 2))), Ok(()));
        }
        assert_eq!(watch().from_node(&udp("10.240.0.4", "203.0.113.7", (1, 2))), Ok(()));
        assert_eq!(watch().from_node(&udp("10.244.1.5", "10.240.0.4", (1, 2))), Ok(()), "inside");
        assert_eq!(watch().from_node(&udp("10.244.1.5", "198.51.100.9", (1, 2))), Ok(()), "not masqueraded");
    }

    #[test]
    fn who_was_dialled_may_answer_and_say_what_was_wrong() {
        let mut watch = watch();
        let question = udp("203.0.113.7", "10.244.1.5", (40_000, 53));
        let answer = udp("10.244.1.5", "203.0.113.7", (53, 40_000));
        let wrong = frame(
            "10.244.1.5",
            "203.0.113.7",
            Body::Error { fault: Fault::Port, quote: quote(&question[14..]) },
        );
        for frame in [&answer, &wrong] {
            assert!(watch.from_node(frame).is_err(), "nobody asked yet");
        }
        watch.from_world(&question);
        for frame in [&answer, &wrong] {
            assert_eq!(watch.from_node(frame), Ok(()));
        }
        assert!(watch.from_node(&udp("10.244.1.5", "203.0.113.7", (53, 40_001))).is_err(), "another flow");
    }
}
