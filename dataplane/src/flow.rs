//! One frame into a [`Flow`]: who speaks to whom. The only reader of header bytes.
//!
//! Reads nothing but the frame. Writes nothing.
//! Drops `Truncated`, `MalformedHeader`, `UnsupportedEtherType`, `UnsupportedProtocol`, `UnknownIcmp`,
//! `ExtensionHeader`, `NeedsNoAnswer`.
//!
//! A packet is one of five things:
//! 1. TCP, UDP or SCTP: its ports are the flow's.
//! 2. An ICMP echo: the identifier stands for the port of whoever asks, 0 for the other's.
//! 3. An ICMP error: it belongs to the flow whose packet it quotes, in that flow's other direction.
//! 4. Talk of neighbours on a link (ARP, neighbour discovery, multicast reports): no flow at all, refused as
//!    `NeedsNoAnswer`. `neighbour` knows what may be answered after all.
//! 5. A fragment that is not the first of its packet: it has no ports, until `fragment` gives it some.
//!
//! IPv6's extension headers are walked over: at most [`EXTENSIONS`] of them, and [`EXTENSION_BYTES`]. What
//! hides the transport (encryption, signatures), or says that the target is not the last one, is refused:
//! nobody could judge it.
//!
//! Source: RFC 791, RFC 792, RFC 1122 section 3.2.2 (what an error quotes); RFC 8200, RFC 4443, RFC 5095
//! (routing headers); RFC 9260 (SCTP).

mod glance;

pub use glance::{Ends, glance, glance_behind};

use crate::Reason;
use crate::platform::Packet;
use crate::tables::{BackendId, Tuple};
use crate::trace::Record;
use crate::wire::ip::extension;
use crate::wire::transport::{self, sctp, tcp, udp};
use crate::wire::{Address, Be16, Be32, Family, Mac, Port, V6, ethernet, icmp, ip};

/// Bytes that are made readable before a header is read that may be of any length: Ethernet, and the longest IPv4 and
/// TCP headers that the path looks into.
pub(crate) const HEADERS: usize = ethernet::LENGTH + 60 + tcp::LENGTH;

/// How many extension headers of IPv6 are walked over.
pub const EXTENSIONS: u32 = 4;
/// How many bytes of them. With as many in a quoted packet all that the path reads still lies within the
/// first 256 bytes of a frame.
pub const EXTENSION_BYTES: usize = 64;

/// Who speaks to whom, and where that stands in the frame. Changes together with the frame's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow<A> {
    /// The source in the IP header: for an ICMP error whoever found it, else `source`.
    pub sender: A,
    /// Where the packet comes from; for an ICMP error the far end of the flow it is about.
    pub source: A,
    /// Where it goes.
    pub target: A,
    /// TCP, UDP or SCTP port; or 0 or the identifier of an ICMP echo.
    pub source_port: Port,
    /// As `source_port`, of the target.
    pub target_port: Port,
    /// What the client dialled, if a Service translated it; else zero.
    pub frontend: A,
    /// Belongs to `frontend`.
    pub frontend_port: Port,
    /// The client's own port, if another stands for it; else 0.
    pub client_port: Port,
    /// Who answers at `target`, if a Service translated it; else 0.
    pub chosen: BackendId,
    /// As [`crate::tables::Connection::direct`].
    pub direct: u8,
    /// What answered, if a Service's address took its place; else zero.
    pub backend: A,
    /// Belongs to `backend`.
    pub backend_port: Port,
    /// Of the flow: for an ICMP error, that of the quoted packet.
    pub protocol: u8,
    /// Which piece of its packet it is.
    pub piece: Piece,
    /// TCP's flags, ICMP's type, or the type of SCTP's first chunk; 0 for UDP.
    pub flags: u8,
    /// What was changed of SCTP's first four bytes, its ports, and its checksum does not follow yet: the bytes as the
    /// checksum knows them, xor what they are, the first byte lowest.
    pub unsealed: u32,
    /// Hops it may still take (time to live), as the packet came.
    pub hops: u8,
    /// The packet is an ICMP error about this flow.
    pub error: bool,
    /// Offset of the transport header.
    pub transport: usize,
    /// Offset of the quoted IP header of an ICMP error; else 0.
    pub quoted: usize,
    /// Offset of the quoted transport header of an ICMP error; else 0.
    pub quoted_transport: usize,
    /// Where the packet ends in the frame, as its IP header says: what follows is padding.
    pub end: usize,
    /// Length of the whole frame in bytes.
    pub length: u32,
}

/// A fragment's place in the packet it is of; all zero for a whole packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The number the sender gave the packet: 16 bits in IPv4, where whole packets have one too.
    pub identification: Be32,
    /// Where its payload starts in the packet's, in bytes.
    pub offset: u16,
    /// More follow.
    pub more: bool,
}

impl Piece {
    /// Whether it is the whole packet.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && !self.more
    }
}

impl<A: Address> Flow<A> {
    /// The key of its row in `conntrack`, and whether the source is the higher end.
    #[inline(always)]
    pub fn tuple(&self) -> (Tuple<A>, bool) {
        let source = (&self.source, self.source_port);
        ends(source, (&self.target, self.target_port), self.protocol)
    }

    /// Whether the packet asks for a new connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        let opens = self.flags == sctp::INIT && self.piece.offset == 0;
        (self.protocol == ip::protocol::TCP && self.flags & (tcp::SYN | tcp::ACK) == tcp::SYN)
            || (self.protocol == ip::protocol::SCTP && opens)
    }

    /// A hash of both ends, the same for both directions' own order: spread, not secrecy.
    /// Source: the multiply-and-shift finisher of Appleby's MurmurHash3 (`fmix32`).
    #[inline(always)]
    pub fn hash(&self, seed: u32) -> u32 {
        hash((&self.source, self.source_port), (&self.target, self.target_port), self.protocol as u32, seed)
    }

    /// A record of it, for [`crate::trace`].
    #[inline(always)]
    pub fn record(&self, stage: crate::trace::Stage) -> Record {
        Record {
            stage: stage as u8,
            length: self.length,
            protocol: self.protocol,
            flags: self.flags,
            source: self.source.to_v6(),
            target: self.target.to_v6(),
            source_port: self.source_port,
            target_port: self.target_port,
            ..Record::default()
        }
    }
}

/// The key in `conntrack` of what goes from one end to another, and whether the first one is the higher. The
/// addresses are not handed over by value: the compiler would keep both, and what is chosen of them, on the stack.
#[inline(always)]
pub fn ends<A: Address>(source: (&A, Port), target: (&A, Port), protocol: u8) -> (Tuple<A>, bool) {
    let swapped = target.0 < source.0 || (target.0 == source.0 && target.1 < source.1);
    let (low, high) = if swapped { (target.0, source.0) } else { (source.0, target.0) };
    let (low_port, high_port) = if swapped { (target.1, source.1) } else { (source.1, target.1) };
    let tuple = Tuple { low: *low, high: *high, low_port, high_port, protocol, pad: [0; 3] };
    (tuple, swapped)
}

/// See [`Flow::hash`].
#[inline(always)]
fn hash<A: Address>(source: (&A, Port), target: (&A, Port), protocol: u32, seed: u32) -> u32 {
    let ports = (source.1.host() as u32) << 16 | target.1.host() as u32;
    let mut hash = mix(seed ^ source.0.fold32());
    hash = mix(hash ^ target.0.fold32().rotate_left(16));
    mix(hash ^ ports ^ protocol)
}

/// A number in which every bit depends on all of the given ones.
#[inline(always)]
pub fn mix(mut hash: u32) -> u32 {
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// A place below `count` for a try: as good as random, the same every time, and another for each try.
/// Source: Lemire, "Fast random integer generation in an interval", 2019 (a product in place of a division).
#[inline(always)]
pub fn spread(hash: u32, tried: u32, count: u16) -> u16 {
    let random = mix(hash ^ tried.wrapping_mul(0x9e37_79b9));
    ((random as u64 * count as u64) >> 32) as u16
}

/// The type of what the frame carries.
///
/// # Errors
/// `Truncated`.
#[inline(always)]
pub fn ethertype(packet: &mut impl Packet) -> Result<Be16, Reason> {
    packet.pull(HEADERS as u32);
    packet.read(ethernet::TYPE).ok_or(Reason::Truncated)
}

/// Which instantiation of the path a frame is for: its EtherType decides, and what is neither IPv6 nor
/// anything else the path knows is IPv4's to refuse. Every engine can read an Ethernet header at once.
#[inline(always)]
pub fn family(packet: &impl Packet) -> Family {
    if packet.read(ethernet::TYPE) == Some(ethernet::IPV6) { Family::V6 } else { Family::V4 }
}

/// What a tunnel's outer packet says: an IP packet that is not in fragments, with UDP in it but for
/// [`wrapped`]'s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it ([`Address::to_v6`]).
    pub source: V6,
    /// Whom it is for.
    pub target: V6,
    /// The source's port.
    pub source_port: Port,
    /// The target's port.
    pub target_port: Port,
    /// As in its header.
    pub protocol: u8,
    /// Offset of the UDP header.
    pub transport: usize,
    /// Length of the whole frame in bytes.
    pub length: u32,
}

impl Datagram {
    /// A record of it, for [`crate::trace`].
    #[inline(always)]
    pub fn record(&self, stage: crate::trace::Stage) -> Record {
        Record {
            stage: stage as u8,
            length: self.length,
            protocol: self.protocol,
            source: self.source,
            target: self.target,
            source_port: self.source_port,
            target_port: self.target_port,
            ..Record::default()
        }
    }
}

/// The UDP datagram that the frame carries directly behind its IP header, if it does. What is broken is the
/// walk's to refuse.
#[inline(always)]
pub fn datagram<A: Address>(packet: &mut impl Packet) -> Option<Datagram> {
    let carried = ethertype(packet).ok()?;
    if carried != A::ETHERTYPE {
        return None;
    }
    let network = header::<A>(packet, ethernet::LENGTH).ok()?;
    if network.protocol != ip::protocol::UDP || !network.piece.is_whole() {
        return None;
    }
    Some(Datagram {
        source: network.source.to_v6(),
        target: network.target.to_v6(),
        source_port: packet.read(network.transport + transport::SOURCE_PORT)?,
        target_port: packet.read(network.transport + transport::TARGET_PORT)?,
        protocol: ip::protocol::UDP,
        transport: network.transport,
        length: packet.length(),
    })
}

/// The outer packet of what the load balancer has put into another of the same family, if the frame carries such a
/// thing: without ports, for it has none.
#[inline(always)]
pub fn wrapped<A: Address>(packet: &mut impl Packet) -> Option<Datagram> {
    let carried = ethertype(packet).ok()?;
    if carried != A::ETHERTYPE {
        return None;
    }
    let network = header::<A>(packet, ethernet::LENGTH).ok()?;
    let inside = if A::VERSION == 4 { ip::protocol::IPV4 } else { ip::protocol::IPV6 };
    if network.protocol != inside || !network.piece.is_whole() {
        return None;
    }
    if network.transport != ethernet::LENGTH + A::HEADER {
        return None;
    }
    Some(Datagram {
        source: network.source.to_v6(),
        target: network.target.to_v6(),
        source_port: Port::default(),
        target_port: Port::default(),
        protocol: inside,
        transport: network.transport,
        length: packet.length(),
    })
}

/// Which interface the frame is for.
///
/// # Errors
/// `Truncated`.
#[inline(always)]
pub fn link_target(packet: &impl Packet) -> Result<Mac, Reason> {
    packet.read(ethernet::TARGET).ok_or(Reason::Truncated)
}

/// The target address of the frame's IP packet.
///
/// # Errors
/// `Truncated`.
#[inline(always)]
pub fn target<A: Address>(packet: &impl Packet) -> Result<A, Reason> {
    packet.read(ethernet::LENGTH + A::TARGET).ok_or(Reason::Truncated)
}

/// Reads the frame's IP packet into `flow`. Of what is `NeedsNoAnswer` protocol, type, offset and addresses
/// are read as well.
///
/// # Errors
/// See the head of this module.
#[inline(always)]
pub fn read<A: Address>(packet: &mut impl Packet, flow: &mut Flow<A>) -> Result<(), Reason> {
    let carried = ethertype(packet)?;
    if A::VERSION == 4 && carried == ethernet::ARP {
        // 4.
        return Err(Reason::NeedsNoAnswer);
    }
    if carried != A::ETHERTYPE {
        return Err(Reason::UnsupportedEtherType);
    }
    let network = network::<A>(packet, ethernet::LENGTH)?;
    let end = whole::<A>(packet, network.transport)?;
    *flow = Flow {
        sender: network.source,
        source: network.source,
        target: network.target,
        protocol: network.protocol,
        piece: network.piece,
        hops: packet.read(ethernet::LENGTH + A::HOPS).ok_or(Reason::Truncated)?,
        transport: network.transport,
        end,
        length: packet.length(),
        ..Flow::default()
    };
    if flow.piece.offset != 0 {
        // 5.
        return later(flow);
    }
    if flow.protocol == ip::protocol::TCP {
        // 1.
        holds(flow, flow.transport + tcp::LENGTH)?;
        ports(packet, flow)?;
        // The last byte of the plain header, so that nobody later meets half of one.
        packet.read::<u8>(flow.transport + tcp::LENGTH - 1).ok_or(Reason::Truncated)?;
        flow.flags = packet.read(flow.transport + tcp::FLAGS).ok_or(Reason::Truncated)?;
        return Ok(());
    }
    if flow.protocol == ip::protocol::UDP {
        holds(flow, flow.transport + udp::LENGTH)?;
        ports(packet, flow)?;
        packet.read::<u8>(flow.transport + udp::LENGTH - 1).ok_or(Reason::Truncated)?;
        return Ok(());
    }
    if flow.protocol == ip::protocol::SCTP {
        holds(flow, flow.transport + sctp::LENGTH)?;
        ports(packet, flow)?;
        packet.read::<u8>(flow.transport + sctp::LENGTH - 1).ok_or(Reason::Truncated)?;
        flow.flags = packet.read(flow.transport + sctp::CHUNK).ok_or(Reason::Truncated)?;
        return Ok(());
    }
    if flow.protocol == A::ICMP.protocol {
        return message(packet, flow);
    }
    Err(Reason::UnsupportedProtocol)
}

/// Checks that the packet, or the first fragment of one, goes on up to `end`: that a header is whole. What
/// seems to follow in a short frame is padding, or would come in a fragment that nobody judges (RFC 1858).
#[inline(always)]
fn holds<A>(flow: &Flow<A>, end: usize) -> Result<(), Reason> {
    if flow.end < end {
        return Err(Reason::MalformedHeader);
    }
    Ok(())
}

/// Checks a fragment that is not the first. It has no ports, and must not pretend to hold some more of the
/// header they stand in (RFC 3128).
#[inline(always)]
fn later<A: Address>(flow: &mut Flow<A>) -> Result<(), Reason> {
    if flow.protocol == ip::protocol::TCP || flow.protocol == ip::protocol::SCTP {
        let header = if flow.protocol == ip::protocol::TCP { tcp::LENGTH } else { sctp::LENGTH };
        if (flow.piece.offset as usize) < header {
            return Err(Reason::MalformedHeader);
        }
        return Ok(());
    }
    if flow.protocol == ip::protocol::UDP || flow.protocol == A::ICMP.protocol {
        return Ok(());
    }
    if A::VERSION == 6 && ip::protocol::is_extension(flow.protocol) {
        return Err(Reason::ExtensionHeader);
    }
    Err(Reason::UnsupportedProtocol)
}

/// What an IP header says, its extensions included.
struct Network<A> {
    source: A,
    target: A,
    protocol: u8,
    piece: Piece,
    /// Offset of what follows.
    transport: usize,
}

#[inline(always)]
fn network<A: Address>(packet: &mut impl Packet, offset: usize) -> Result<Network<A>, Reason> {
    let mut network = header::<A>(packet, offset)?;
    if A::VERSION == 6 && ip::protocol::is_extension(network.protocol) {
        packet.pull((offset + A::HEADER + EXTENSION_BYTES + tcp::LENGTH) as u32);
        extensions(packet, &mut network, offset + A::HEADER + EXTENSION_BYTES)?;
    }
    Ok(network)
}

/// The IP header at `offset`, without IPv6's extensions.
#[inline(always)]
fn header<A: Address>(packet: &impl Packet, offset: usize) -> Result<Network<A>, Reason> {
    let target = packet.read(offset + A::TARGET).ok_or(Reason::Truncated)?;
    let source = packet.read(offset + A::SOURCE).ok_or(Reason::Truncated)?;
    let protocol = packet.read(offset + A::PROTOCOL).ok_or(Reason::Truncated)?;
    let version_length: u8 = packet.read(offset + ip::VERSION_LENGTH).ok_or(Reason::Truncated)?;
    if version_length >> 4 != A::VERSION {
        return Err(Reason::MalformedHeader);
    }
    let mut length = ip::v6::LENGTH;
    let mut piece = Piece::default();
    if A::VERSION == 4 {
        length = (version_length & 0xf) as usize * 4;
        if length < ip::LENGTH {
            return Err(Reason::MalformedHeader);
        }
        let identification: Be16 = packet.read(offset + ip::IDENTIFICATION).ok_or(Reason::Truncated)?;
        let fragment: Be16 = packet.read(offset + ip::FRAGMENT).ok_or(Reason::Truncated)?;
        piece = Piece {
            identification: Be32::new(identification.host() as u32),
            offset: (fragment.host() & ip::FRAGMENT_OFFSET) << 3,
            more: fragment.host() & ip::MORE_FRAGMENTS != 0,
        };
    }
    Ok(Network { source, target, protocol, piece, transport: offset + length })
}

/// Moves `network` behind the extension headers of its packet, which must end at `end`.
#[inline(always)]
fn extensions<A: Address>(packet: &impl Packet, network: &mut Network<A>, end: usize) -> Result<(), Reason> {
    let mut walked = 0;
    while walked < EXTENSIONS {
        let kind = network.protocol;
        // What else a fragment carries is in the first one only.
        if !ip::protocol::is_extension(kind) || network.piece.offset != 0 {
            return Ok(());
        }
        let at = network.transport;
        network.protocol = packet.read(at + extension::NEXT_HEADER).ok_or(Reason::Truncated)?;
        let units: u8 = packet.read(at + extension::LENGTH).ok_or(Reason::Truncated)?;
        let mut length = units as usize * 8 + 8;
        if kind == ip::protocol::FRAGMENT {
            length = extension::FRAGMENT_LENGTH;
            piece(packet, at, &mut network.piece)?;
        } else if kind == ip::protocol::ROUTING {
            let left: u8 = packet.read(at + extension::SEGMENTS_LEFT).ok_or(Reason::Truncated)?;
            if left != 0 {
                return Err(Reason::ExtensionHeader);
            }
        } else if kind == ip::protocol::HOP_BY_HOP {
            if walked != 0 {
                return Err(Reason::ExtensionHeader);
            }
        } else if kind != ip::protocol::DESTINATION_OPTIONS {
            return Err(Reason::ExtensionHeader);
        }
        network.transport = at + length;
        if network.transport > end {
            return Err(Reason::ExtensionHeader);
        }
        walked += 1;
    }
    if ip::protocol::is_extension(network.protocol) && network.piece.offset == 0 {
        return Err(Reason::ExtensionHeader);
    }
    Ok(())
}

/// Reads IPv6's fragment header at `offset`, of which a packet has one.
#[inline(always)]
fn piece(packet: &impl Packet, offset: usize, piece: &mut Piece) -> Result<(), Reason> {
    if *piece != Piece::default() {
        return Err(Reason::ExtensionHeader);
    }
    let place: Be16 = packet.read(offset + extension::FRAGMENT).ok_or(Reason::Truncated)?;
    piece.identification = packet.read(offset + extension::IDENTIFICATION).ok_or(Reason::Truncated)?;
    piece.offset = place.host() & !7;
    piece.more = place.host() & extension::MORE_FRAGMENTS != 0;
    Ok(())
}

/// Checks that the frame is as long as its IP header says. One that will be cut into segments later may
/// say anything: its length field counts one segment, or all of them. Returns where it ends by that.
#[inline(always)]
fn whole<A: Address>(packet: &impl Packet, transport: usize) -> Result<usize, Reason> {
    let stated = if A::VERSION == 4 {
        packet.read::<Be16>(ethernet::LENGTH + ip::TOTAL_LENGTH).ok_or(Reason::Truncated)?.host() as usize
    } else {
        let payload: Be16 =
            packet.read(ethernet::LENGTH + ip::v6::PAYLOAD_LENGTH).ok_or(Reason::Truncated)?;
        payload.host() as usize + ip::v6::LENGTH
    };
    if ethernet::LENGTH + stated < transport {
        return Err(Reason::MalformedHeader);
    }
    if packet.segment() == 0 && (packet.length() as usize) < ethernet::LENGTH + stated {
        return Err(Reason::Truncated);
    }
    Ok(ethernet::LENGTH + stated)
}

#[inline(always)]
fn ports<A>(packet: &impl Packet, flow: &mut Flow<A>) -> Result<(), Reason> {
    flow.source_port = packet.read(flow.transport + transport::SOURCE_PORT).ok_or(Reason::Truncated)?;
    flow.target_port = packet.read(flow.transport + transport::TARGET_PORT).ok_or(Reason::Truncated)?;
    Ok(())
}

#[inline(always)]
fn message<A: Address>(packet: &mut impl Packet, flow: &mut Flow<A>) -> Result<(), Reason> {
    holds(flow, flow.transport + icmp::LENGTH)?;
    packet.read::<u8>(flow.transport + icmp::LENGTH - 1).ok_or(Reason::Truncated)?;
    flow.flags = packet.read(flow.transport + icmp::TYPE).ok_or(Reason::Truncated)?;
    if flow.flags == A::ICMP.echo {
        // 2.
        flow.source_port = packet.read(flow.transport + icmp::IDENTIFIER).ok_or(Reason::Truncated)?;
        return Ok(());
    }
    if flow.flags == A::ICMP.echo_reply {
        flow.target_port = packet.read(flow.transport + icmp::IDENTIFIER).ok_or(Reason::Truncated)?;
        return Ok(());
    }
    if A::ICMP.is_error(flow.flags) {
        // 3.
        return quoted(packet, flow);
    }
    if A::VERSION == 6 && icmp::neighbour::is_talk(flow.flags) {
        // 4.
        return Err(Reason::NeedsNoAnswer);
    }
    Err(Reason::UnsupportedProtocol)
}

/// Makes `flow` the other direction of the flow that an ICMP error quotes.
#[inline(always)]
fn quoted<A: Address>(packet: &mut impl Packet, flow: &mut Flow<A>) -> Result<(), Reason> {
    flow.quoted = flow.transport + icmp::LENGTH;
    packet.pull((flow.quoted + 60 + tcp::LENGTH) as u32);
    let inside = network::<A>(packet, flow.quoted)?;
    if inside.piece.offset != 0 {
        return Err(Reason::UnknownIcmp);
    }
    packet.read::<u8>(inside.transport + icmp::QUOTED - 1).ok_or(Reason::Truncated)?;
    holds(flow, inside.transport + icmp::QUOTED)?;
    // It goes to whoever sent what it is about, or it is no answer to it.
    if inside.source != flow.target {
        return Err(Reason::UnknownIcmp);
    }
    flow.error = true;
    flow.quoted_transport = inside.transport;
    flow.protocol = inside.protocol;
    flow.source = inside.target;
    flow.target = inside.source;
    if ip::protocol::has_ports(inside.protocol) {
        flow.source_port = packet.read(inside.transport + transport::TARGET_PORT).ok_or(Reason::Truncated)?;
        flow.target_port = packet.read(inside.transport + transport::SOURCE_PORT).ok_or(Reason::Truncated)?;
        return Ok(());
    }
    if inside.protocol != A::ICMP.protocol {
        return Err(Reason::UnsupportedProtocol);
    }
    let kind: u8 = packet.read(inside.transport + icmp::TYPE).ok_or(Reason::Truncated)?;
    let identifier = packet.read(inside.transport + icmp::IDENTIFIER).ok_or(Reason::Truncated)?;
    if kind == A::ICMP.echo {
        flow.target_port = identifier;
    } else if kind == A::ICMP.echo_reply {
        flow.source_port = identifier;
    } else {
        return Err(Reason::UnknownIcmp);
    }
    Ok(())
}
