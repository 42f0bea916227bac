//! The frames that cases send: made with `etherparse`, then broken as the case says.

use std::net::IpAddr;

use dataplane::tables::Identity;
use dataplane::wire::{V4, V6};
use etherparse::{
    Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder,
};
use userspace::engine::emulator::discovery::Discovery;
use userspace::engine::emulator::host::{Dial, Outgoing, mac_of, quote};
use userspace::engine::emulator::message::{Body, Chunk, Flags, Message, Segment};
use userspace::engine::emulator::network::{Heard, Network, Place};
use userspace::engine::emulator::topology::UPLINK;
use userspace::engine::{Clock, Engine, Hook};
use userspace::model::{Cluster, Encapsulation, Endpoint, Protocol, Who};

use super::script::{Cut, Kind, Over, Reply, Send, Tunnel};
use super::{Failure, address_over};

/// The first byte of an IP packet in a frame.
const PACKET: usize = 14;
/// What data that has to have content says.
const DATA: &[u8] = b"podpath";

/// Whom somebody dials.
struct Target {
    address: IpAddr,
    /// None for what has no ports.
    port: Option<(Protocol, u16)>,
}

/// Makes the frame of a step; `repetition` counts up its source port. Comes back with where it goes in.
pub(super) fn make<E: Engine + Clock>(
    network: &mut Network<E>,
    cluster: &Cluster,
    send: &Send,
    repetition: u16,
) -> Result<(Place, Vec<u8>), Failure> {
    let from = host(network, cluster, &send.from)?;
    let target = send.to.as_deref().map(|to| target(cluster, to, send.over)).transpose()?;
    let gateway = match send.over {
        Some(Over::IPv6) => IpAddr::V6(V6::GATEWAY.0.into()),
        Some(Over::IPv4) | None => IpAddr::V4(V4::GATEWAY.0.into()),
    };
    let (mut place, mut frame) = if let Some(raw) = &send.raw {
        let (place, _) = network.entry(from, target.map_or(gateway, |target| target.address))?;
        (place, raw.clone())
    } else if let Some(talk) = talk(network, from, send, target.as_ref().map_or(gateway, |it| it.address))? {
        talk
    } else {
        let target = target.ok_or("it is sent to nobody: expected to")?;
        packet(network, cluster, (from, &target), (send, repetition))?
    };
    if let Some(at) = &send.at {
        let node = node_at(cluster, at)?;
        place = Place::Path { node, hook: Hook::FromUnderlay, interface: UPLINK };
        if send.raw.is_none() {
            frame[..6].copy_from_slice(&mac_of(cluster.nodes[node].address()));
        }
    }
    extend(&mut frame, &send.extensions)?;
    if let Some(cut) = send.fragment {
        frame = fragment(&frame, cut)?;
    }
    for (offset, bytes) in &send.set {
        let room = frame.get_mut(*offset..offset + bytes.len());
        room.ok_or("set: the frame ends before")?.copy_from_slice(bytes);
    }
    if let Some(length) = send.cut {
        frame.truncate(length);
    }
    Ok((place, frame))
}

/// The place of the node to which the fabric hands a frame.
fn node_at(cluster: &Cluster, name: &str) -> Result<usize, String> {
    let node = cluster.nodes.iter().position(|node| Some(node.name.as_str()) == name.strip_prefix("node:"));
    node.ok_or_else(|| format!("at: there is no node called {name:?}: expected node:name"))
}

/// A packet from somebody to a target, in a tunnel if it is to be.
fn packet<E: Engine + Clock>(
    network: &mut Network<E>,
    cluster: &Cluster,
    (from, to): (usize, &Target),
    (send, repetition): (&Send, u16),
) -> Result<(Place, Vec<u8>), Failure> {
    let over = if to.address.is_ipv4() { Over::IPv4 } else { Over::IPv6 };
    let source = match &send.source {
        Some(source) => target(cluster, source, Some(over))?.address,
        None => address_over(&send.from, &network.host_at(from).addresses, Some(over))?,
    };
    if source.is_ipv4() != to.address.is_ipv4() {
        return Err(format!("{source} and {} are of different families", to.address).into());
    }
    let body = body(send, source, to, send.source_port.wrapping_add(repetition))?;
    let sender = network.host_at(from).mac;
    let packet = Message { from: sender, to: [0; 6], source, target: to.address, ttl: send.ttl, body };
    match &send.tunnel {
        Some(tunnel) => wrap(network, cluster, (from, tunnel), packet),
        None => {
            let (place, to) = network.entry(from, to.address)?;
            Ok((place, Message { to, ..packet }.to_frame()))
        }
    }
}

/// Makes the answer to a frame that a host received.
pub(super) fn reply<E: Engine + Clock>(
    network: &mut Network<E>,
    last: &Heard,
    reply: &Reply,
) -> Result<(Place, Vec<u8>), Failure> {
    let heard =
        Message::read(&last.frame).map_err(|why| format!("the last frame cannot be answered: {why:?}"))?;
    let data = vec![0; reply.size];
    let body = match (&heard.body, reply.kind) {
        (_, Some(Kind::Error(fault))) => Body::Error { fault, quote: quote(&last.frame[PACKET..]) },
        (Body::Tcp(segment), None | Some(Kind::Tcp(_))) => {
            let flags = match reply.kind {
                Some(Kind::Tcp(flags)) => Flags(flags),
                _ if segment.flags == Flags::SYN => Flags::SYN | Flags::ACK,
                _ => Flags::ACK,
            };
            let length = segment.data.len() as u32 + u32::from(segment.flags.any(Flags::SYN | Flags::FIN));
            Body::Tcp(Segment {
                source_port: segment.target_port,
                target_port: segment.source_port,
                flags,
                sequence: segment.acknowledged,
                acknowledged: segment.sequence.wrapping_add(length),
                data,
            })
        }
        (Body::Sctp(chunk), None | Some(Kind::Sctp(_))) => {
            let kind = match reply.kind {
                Some(Kind::Sctp(kind)) => kind,
                _ => answer_to(chunk.kind),
            };
            let (source_port, target_port) = (chunk.target_port, chunk.source_port);
            Body::Sctp(Chunk { source_port, target_port, tag: 1, kind, value: value_of(kind, &data) })
        }
        (Body::Udp { source_port, target_port, .. }, None | Some(Kind::Udp)) => {
            Body::Udp { source_port: *target_port, target_port: *source_port, data }
        }
        (Body::Echo { reply: false, identifier, sequence, data }, None | Some(Kind::Ping)) => {
            Body::Echo { reply: true, identifier: *identifier, sequence: *sequence, data: data.clone() }
        }
        (body, kind) => {
            return Err(format!("{kind:?} does not answer {body:?}").into());
        }
    };
    let (place, to) = network.entry(last.host, heard.source)?;
    let host = network.host_at(last.host);
    let (source, target) = (heard.target, heard.source);
    let message = Message { from: host.mac, to, source, target, ttl: reply.ttl, body };
    Ok((place, message.to_frame()))
}

/// Who sends, by its place in the network.
pub(super) fn host<E: Engine + Clock>(
    network: &Network<E>,
    cluster: &Cluster,
    name: &str,
) -> Result<usize, Failure> {
    let who = name.parse::<Endpoint>().map_err(|why| why.to_string())?.who;
    cluster.find(&who).map_err(|why| why.to_string())?;
    let name = match who {
        Who::Pod(name) => name,
        Who::Node(name) => format!("node:{name}"),
        Who::External(name) => format!("ext:{name}"),
        dialled @ (Who::Service(_) | Who::Frontend(..)) => {
            return Err(format!("{dialled} cannot send: it is an address to dial").into());
        }
    };
    Ok(network.host(&name)?)
}

/// Whom a conversation is with.
pub(super) fn dial(cluster: &Cluster, to: &str, over: Option<Over>) -> Result<(IpAddr, Dial), Failure> {
    let Target { address, port } = target(cluster, to, over)?;
    Ok((address, port.map_or(Dial::Ping, |(protocol, port)| Dial::Port(protocol, port))))
}

/// Reads a name, or an address, with its port: that of an IPv6 address behind brackets.
fn target(cluster: &Cluster, text: &str, over: Option<Over>) -> Result<Target, String> {
    if let Ok(address) = text.parse() {
        return Ok(Target { address, port: None });
    }
    let (address, port) = text.rsplit_once(':').unwrap_or((text, ""));
    if let Ok(address) = address.trim_start_matches('[').trim_end_matches(']').parse() {
        let port: userspace::model::Port = port.parse()?;
        return Ok(Target { address, port: Some((port.protocol, port.number)) });
    }
    let endpoint: Endpoint = text.parse().map_err(|why: userspace::model::EndpointError| why.to_string())?;
    let found = cluster.find(&endpoint.who).map_err(|why| why.to_string())?;
    let port = endpoint.port.map(|port| (port.protocol, port.number));
    Ok(Target { address: address_over(text, found.addresses(), over)?, port })
}

/// What the packet carries.
fn body(send: &Send, source: IpAddr, target: &Target, source_port: u16) -> Result<Body, String> {
    let kind = match (send.kind, target.port) {
        (Some(kind), _) => kind,
        (None, Some((Protocol::Tcp, _))) => Kind::Tcp(Flags::SYN.0),
        (None, Some((Protocol::Udp, _))) => Kind::Udp,
        (None, Some((Protocol::Sctp, _))) => Kind::Sctp(Chunk::INIT),
        (None, None) => Kind::Ping,
    };
    let port = || target.port.map(|(_, port)| port).ok_or("there is no port: expected to: name:port");
    let filled = |minimum: usize| DATA.iter().copied().cycle().take(send.size.max(minimum)).collect();
    Ok(match kind {
        Kind::Tcp(flags) => Body::Tcp(Segment {
            source_port,
            target_port: port()?,
            flags: Flags(flags),
            sequence: 1,
            acknowledged: u32::from(Flags(flags).any(Flags::ACK)),
            data: filled(if Flags(flags).any(Flags::PSH) { DATA.len() } else { 0 }),
        }),
        Kind::Udp => Body::Udp { source_port, target_port: port()?, data: filled(DATA.len()) },
        Kind::Ping => {
            Body::Echo { reply: false, identifier: source_port, sequence: 1, data: filled(DATA.len()) }
        }
        Kind::Sctp(kind) => {
            let value = value_of(kind, &filled(if kind == Chunk::DATA { DATA.len() } else { 0 }));
            let tag = u32::from(kind != Chunk::INIT);
            Body::Sctp(Chunk { source_port, target_port: port()?, tag, kind, value })
        }
        Kind::Error(fault) => {
            // About a packet that the target never sent.
            let data = Vec::new();
            let about = Message {
                from: [0; 6],
                to: [0; 6],
                source: target.address,
                target: source,
                ttl: 64,
                body: Body::Udp { source_port: 40_000, target_port: 53, data },
            };
            Body::Error { fault, quote: quote(&about.to_frame()[PACKET..]) }
        }
        Kind::WhoHas | Kind::RouterSolicitation | Kind::ListenerReport => {
            return Err("what neighbours say to each other goes through no tunnel".to_owned());
        }
    })
}

/// The chunk that answers one of this type.
fn answer_to(kind: u8) -> u8 {
    match kind {
        Chunk::INIT => Chunk::INIT_ACK,
        Chunk::COOKIE_ECHO => Chunk::COOKIE_ACK,
        Chunk::SHUTDOWN => Chunk::SHUTDOWN_ACK,
        Chunk::SHUTDOWN_ACK => Chunk::SHUTDOWN_COMPLETE,
        _ => Chunk::DATA,
    }
}

/// What a chunk of this type holds beside this data.
fn value_of(kind: u8, data: &[u8]) -> Vec<u8> {
    match kind {
        Chunk::DATA => Chunk::data(1, data),
        Chunk::INIT | Chunk::INIT_ACK => [&Chunk::opening(1, 1)[..], data].concat(),
        _ => data.to_vec(),
    }
}

/// What a host says to its neighbours alone, if that is what is sent.
fn talk<E: Engine + Clock>(
    network: &mut Network<E>,
    from: usize,
    send: &Send,
    target: IpAddr,
) -> Result<Option<(Place, Vec<u8>)>, Failure> {
    const HOPS: u8 = 255;
    const EVERYBODY: [u8; 6] = [0x33, 0x33, 0, 0, 0, 0x16];
    if send.tunnel.is_some() {
        return Ok(None);
    }
    let (kind, group, payload) = match send.kind {
        Some(Kind::WhoHas) => {
            let (place, _) = network.entry(from, target)?;
            let host = network.host_at(from);
            let own = host.address_like(target).ok_or("it has no address of that family")?;
            let sender = send.source.as_deref().map_or(Ok(own), str::parse);
            let sender = sender.map_err(|_| "source: expected an address")?;
            let sender_mac = host.mac;
            let question = Discovery { answer: false, sender_mac, sender, target_mac: [0; 6], target };
            return Ok(Some((place, question.to_frame())));
        }
        // RFC 4861, section 4.1, and RFC 3810, section 5.2: to all routers, and to all of their kind.
        Some(Kind::RouterSolicitation) => (133, [0xff02, 0, 0, 0, 0, 0, 0, 2], Vec::new()),
        Some(Kind::ListenerReport) => (143, [0xff02, 0, 0, 0, 0, 0, 0, 0x16], Vec::new()),
        _ => return Ok(None),
    };
    let group = std::net::Ipv6Addr::from(group);
    let (place, _) = network.entry(from, group.into())?;
    let host = network.host_at(from);
    let Some(IpAddr::V6(source)) = host.address_like(group.into()) else {
        return Err("it has no IPv6 address".into());
    };
    let kind = Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: [0; 4] };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(host.mac, EVERYBODY)
        .ipv6(source.octets(), group.octets(), HOPS)
        .icmpv6(kind)
        .write(&mut frame, &payload)
        .map_err(|why| why.to_string())?;
    Ok(Some((place, frame)))
}

/// Puts a packet into a tunnel's (RFC 7348, RFC 8926), as the node at its other end would send it.
fn wrap<E: Engine + Clock>(
    network: &mut Network<E>,
    cluster: &Cluster,
    (from, tunnel): (usize, &Tunnel),
    packet: Message,
) -> Result<(Place, Vec<u8>), Failure> {
    let to = target(cluster, &tunnel.to, None)?.address;
    let inside = Message { to: mac_of(to), ..packet }.to_frame();
    let vni = tunnel.vni.unwrap_or(Identity::WORLD.0);
    let options = tunnel.options.as_deref().map(super::script::hex).transpose()?.unwrap_or_default();
    let start = match cluster.settings.encapsulation {
        Encapsulation::Vxlan => [8, 0, 0, 0],
        Encapsulation::Geneve => [(options.len() / 4) as u8, 0, 0x65, 0x58],
    };
    let header = [&start, &(vni << 8).to_be_bytes(), &options[..]].concat();
    let body = Body::Udp {
        source_port: 0xc001,
        target_port: cluster.settings.tunnel_port,
        data: [header, inside].concat(),
    };
    Ok(network.framed(from, Outgoing { target: to, body })?)
}

/// Cuts a fragment out of the packet of a frame.
fn fragment(frame: &[u8], cut: Cut) -> Result<Vec<u8>, String> {
    let wrong = |why: String| format!("fragment: {why}");
    let packet = frame.get(PACKET..).unwrap_or_default();
    let end = cut.offset + cut.length;
    let piece_of = |payload: &[u8]| {
        let piece = payload.get(usize::from(cut.offset)..usize::from(end)).map(<[u8]>::to_vec);
        let more = usize::from(end) < payload.len();
        let piece =
            piece.ok_or_else(|| wrong(format!("the packet has {} bytes of payload only", payload.len())));
        Ok::<_, String>((piece?, more))
    };
    let offset = IpFragOffset::try_new(cut.offset / 8).map_err(|why| wrong(why.to_string()))?;
    if packet.first().is_some_and(|first| first >> 4 == 6) {
        let (mut header, payload) = Ipv6Header::from_slice(packet).map_err(|why| wrong(why.to_string()))?;
        let (piece, more) = piece_of(payload)?;
        let number = u32::from(cut.identification);
        let place = Ipv6FragmentHeader::new(header.next_header, offset, more, number).to_bytes();
        header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
        header.set_payload_length(place.len() + piece.len()).map_err(|why| wrong(why.to_string()))?;
        return Ok([&frame[..PACKET], &header.to_bytes(), &place, &piece].concat());
    }
    let (mut header, payload) = Ipv4Header::from_slice(packet).map_err(|why| wrong(why.to_string()))?;
    let (piece, more) = piece_of(payload)?;
    (header.identification, header.dont_fragment) = (cut.identification, false);
    (header.more_fragments, header.fragment_offset) = (more, offset);
    header.set_payload_len(piece.len()).map_err(|why| wrong(why.to_string()))?;
    header.header_checksum = header.calc_header_checksum();
    Ok([&frame[..PACKET], &header.to_bytes(), &piece].concat())
}

/// Puts extension headers of eight bytes between the IPv6 header of a frame and what follows it (RFC 8200,
/// section 4).
fn extend(frame: &mut Vec<u8>, extensions: &[u8]) -> Result<(), String> {
    const NEXT_HEADER: usize = PACKET + 6;
    const END: usize = PACKET + 40;
    if extensions.is_empty() {
        return Ok(());
    }
    if frame.len() < END || frame[PACKET] >> 4 != 6 {
        return Err("extensions: only IPv6 packets have them".to_owned());
    }
    for kind in extensions.iter().rev() {
        // Of options one that pads; of a routing header type 4 with no stop left; of a fragment, a whole one.
        let rest = match IpNumber(*kind) {
            IpNumber::IPV6_ROUTE_HEADER => [0, 4, 0, 0, 0, 0, 0],
            IpNumber::IPV6_FRAGMENTATION_HEADER => [0, 0, 0, 0, 0, 0, 1],
            _ => [0, 1, 4, 0, 0, 0, 0],
        };
        let header = [frame[NEXT_HEADER]].into_iter().chain(rest);
        frame.splice(END..END, header);
        frame[NEXT_HEADER] = *kind;
    }
    let payload = u16::try_from(frame.len() - END).map_err(|_| "extensions: the packet is too long")?;
    frame[PACKET + 4..NEXT_HEADER].copy_from_slice(&payload.to_be_bytes());
    Ok(())
}
