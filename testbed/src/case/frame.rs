//! The frames that cases send: made with `etherparse`, then broken as the case says.

use std::net::Ipv4Addr;

use dataplane::tables::Identity;
use dataplane::wire::V4;
use etherparse::{IpFragOffset, Ipv4Header};
use userspace::engine::emulator::host::{Dial, Outgoing, mac_of};
use userspace::engine::emulator::message::{Arp, Body, Flags, Message, PORT_UNREACHABLE, Segment};
use userspace::engine::emulator::network::{Heard, Network, Place};
use userspace::engine::{Clock, Engine};
use userspace::model::{Cluster, Encapsulation, Endpoint, Protocol, Who};

use super::script::{Cut, Kind, Reply, Send, Tunnel};
use super::{Failure, v4};

/// The first byte of an IP packet in a frame.
const PACKET: usize = 14;
/// What data that has to have content says.
const DATA: &[u8] = b"podpath";

/// Whom somebody dials.
struct Target {
    address: Ipv4Addr,
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
    let target = send.to.as_deref().map(|to| target(cluster, to)).transpose()?;
    let (place, mut frame) = if let Some(raw) = &send.raw {
        let (place, _) = network.entry(from, target.map_or(V4::GATEWAY.0.into(), |target| target.address))?;
        (place, raw.clone())
    } else if send.kind == Some(Kind::Arp) {
        ask(network, from, target.map_or(V4::GATEWAY.0.into(), |target| target.address))?
    } else {
        let target = target.ok_or("it is sent to nobody: expected to")?;
        let source = send.source.as_deref().map(|source| self::target(cluster, source)).transpose()?;
        let source = source.map_or(network.host_at(from).address, |source| source.address);
        let body = body(send, source, &target, send.source_port.wrapping_add(repetition))?;
        let packet = Message {
            from: network.host_at(from).mac,
            to: [0; 6],
            source,
            target: target.address,
            ttl: send.ttl,
            body,
        };
        match &send.tunnel {
            Some(tunnel) => wrap(network, cluster, (from, tunnel), packet)?,
            None => {
                let (place, to) = network.entry(from, target.address)?;
                (place, Message { to, ..packet }.to_frame())
            }
        }
    };
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
        (_, Some(Kind::Unreachable)) => {
            // RFC 792: the header and eight bytes more.
            let packet = &last.frame[PACKET..];
            let quote = packet[..(usize::from(packet[0] & 0xf) * 4 + 8).min(packet.len())].to_vec();
            Body::Unreachable { code: PORT_UNREACHABLE, quote }
        }
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
        (Body::Udp { source_port, target_port, .. }, None | Some(Kind::Udp)) => {
            Body::Udp { source_port: *target_port, target_port: *source_port, data }
        }
        (Body::Echo { reply: false, identifier, sequence, data }, None | Some(Kind::Ping)) => {
            Body::Echo { reply: true, identifier: *identifier, sequence: *sequence, data: data.clone() }
        }
        (body, kind) => {
            return Err(format!("{kind:?} does not answer protocol {}", body.protocol()).into());
        }
    };
    let (place, to) = network.entry(last.host, heard.source)?;
    let host = network.host_at(last.host);
    let message =
        Message { from: host.mac, to, source: host.address, target: heard.source, ttl: reply.ttl, body };
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
        Who::Service(name) => return Err(format!("svc:{name} cannot send: it is an address to dial").into()),
    };
    Ok(network.host(&name)?)
}

/// Whom a conversation is with.
pub(super) fn dial(cluster: &Cluster, to: &str) -> Result<(Ipv4Addr, Dial), Failure> {
    let Target { address, port } = target(cluster, to)?;
    Ok((address, port.map_or(Dial::Ping, |(protocol, port)| Dial::Port(protocol, port))))
}

/// Reads a name, or an address, with its port.
fn target(cluster: &Cluster, text: &str) -> Result<Target, String> {
    let (address, port) = text.split_once(':').map_or((text, None), |(address, port)| (address, Some(port)));
    if let Ok(address) = address.parse() {
        let port = port.map(str::parse::<userspace::model::Port>).transpose()?;
        return Ok(Target { address, port: port.map(|port| (port.protocol, port.number)) });
    }
    let endpoint: Endpoint = text.parse().map_err(|why: userspace::model::EndpointError| why.to_string())?;
    let found = cluster.find(&endpoint.who).map_err(|why| why.to_string())?;
    let port = endpoint.port.map(|port| (port.protocol, port.number));
    Ok(Target { address: v4(found.address())?, port })
}

/// What the packet carries.
fn body(send: &Send, source: Ipv4Addr, target: &Target, source_port: u16) -> Result<Body, String> {
    let kind = match (send.kind, target.port) {
        (Some(kind), _) => kind,
        (None, Some((Protocol::Tcp, _))) => Kind::Tcp(Flags::SYN.0),
        (None, Some((Protocol::Udp, _))) => Kind::Udp,
        (None, Some((Protocol::Sctp, _))) => Kind::Sctp,
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
        Kind::Sctp => {
            let ports = [source_port.to_be_bytes(), port()?.to_be_bytes()].concat();
            Body::Other { protocol: Protocol::Sctp.number(), data: [ports, filled(8)].concat() }
        }
        Kind::Unreachable => {
            // About a packet that the target never sent.
            let mut quoted =
                Ipv4Header::new(8, 64, etherparse::IpNumber::UDP, target.address.octets(), source.octets())
                    .map_err(|why| why.to_string())?;
            quoted.header_checksum = quoted.calc_header_checksum();
            let quote = [&quoted.to_bytes()[..], &[0x9c, 0x40, 0, 53, 0, 8, 0, 0]].concat();
            Body::Unreachable { code: PORT_UNREACHABLE, quote }
        }
        Kind::Arp => return Err("an ARP question carries nothing".to_owned()),
    })
}

/// An ARP question from a pod.
fn ask<E: Engine + Clock>(
    network: &mut Network<E>,
    from: usize,
    target: Ipv4Addr,
) -> Result<(Place, Vec<u8>), Failure> {
    let (place, _) = network.entry(from, target)?;
    let host = network.host_at(from);
    let (sender_mac, sender) = (host.mac, host.address);
    Ok((place, Arp { reply: false, sender_mac, sender, target_mac: [0; 6], target }.to_frame()))
}

/// Puts a packet into a tunnel's (RFC 7348, RFC 8926), as the node at its other end would send it.
fn wrap<E: Engine + Clock>(
    network: &mut Network<E>,
    cluster: &Cluster,
    (from, tunnel): (usize, &Tunnel),
    packet: Message,
) -> Result<(Place, Vec<u8>), Failure> {
    let to = target(cluster, &tunnel.to)?.address;
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
    let (mut header, payload) = Ipv4Header::from_slice(frame.get(PACKET..).unwrap_or_default())
        .map_err(|why| format!("fragment: {why}"))?;
    let end = cut.offset + cut.length;
    let piece = payload
        .get(usize::from(cut.offset)..usize::from(end))
        .ok_or_else(|| format!("fragment: the packet has {} bytes of payload only", payload.len()))?;
    header.identification = cut.identification;
    header.dont_fragment = false;
    header.more_fragments = usize::from(end) < payload.len();
    header.fragment_offset =
        IpFragOffset::try_new(cut.offset / 8).map_err(|why| format!("fragment: {why}"))?;
    header.set_payload_len(piece.len()).map_err(|why| format!("fragment: {why}"))?;
    header.header_checksum = header.calc_header_checksum();
    Ok([&frame[..PACKET], &header.to_bytes(), piece].concat())
}
