//! The cloud's load balancer: a frontend's address and port -> a healthy node. A walk of its own, on no node.
//!
//! Reads `virtuals`, `ring`, `reals`, `pins`. Writes `pins`, the frame. Drops: see [`Miss`].
//!
//! A flow's hash picks a slot of its frontend's ring; the slot says who has it:
//!
//! 1. A slot whose flows all have one node: that node. No flow leaves a trace, so this costs the same whatever
//!    the number of flows.
//! 2. A slot that has moved says who has it now, and whose it was at home, when it last held the flows of one node
//!    alone. Its new flows (a TCP SYN) go to the former and are pinned: they leave a row. What is not pinned is an
//!    older flow and goes home. However often the slot moves before it settles, every flow stays where it began:
//!    the flows of its home are those without a row, all others have one.
//! 3. A datagram does not say whether it is a flow's first. For [`Balancer::drain_s`] after a move one that is not
//!    pinned counts as an old flow's, and is pinned to the slot's home; after that it is a new one's.
//! 4. Whoever does not answer probes gets no new flows and no datagrams, but keeps connections; whoever is gone
//!    gets nothing, and its flows begin anew.
//! 5. If the table of pins is full, new flows of a moved slot go home as well, as the rest of their packets will.
//! 6. Where answers come back through the load balancer, every flow is pinned: a packet from a node's port is an
//!    answer only to a flow that is pinned to that node. Such a flow that finds no room is refused.
//!
//! The element that owns the tables settles a slot (its home is who has it now) when nobody at home was sent
//! anything for as long as flows may idle, and no row pins a flow of it to a third node.
//!
//! What is not covered: a TCP connection that was open before the load balancer started, in a slot that has moved
//! since. It goes home, which may be wrong.
//!
//! How a packet reaches the node is one of three ways ([`Balancer::forward`]): as it is, to the node's hardware
//! address; to the node's address and port, with the client's own source; or in another IP packet, whose source is
//! made of the flow's hash, so that receivers that spread their load by outer addresses do so by flows.
//!
//! Source: Eisenbud et al., "Maglev", NSDI 2016, section 3.4; Olteanu et al., "Stateless Datacenter Load-balancing
//! with Beamer", NSDI 2018 (two owners of a slot); RFC 2003, RFC 2473 (IP in IP).

use crate::flow::{self, Datagram, Ends, Flow, mix};
use crate::header::{self, Header};
use crate::platform::{Balancing, Mend, Packet};
use crate::tables::{
    Balancer, Frontend, NotAdded, Pin, Pinned, Pins, Real, Reals, Ring, Slot, Table, Virtual, Virtuals,
    Writes,
};
use crate::verdict::{Fate, Miss};
use crate::wire::transport::{self, tcp, udp};
use crate::wire::{Address, Be16, Family, Mac, Port, V4, V6, checksum, ethernet, ip};

/// The source addresses of what the load balancer wraps: of a range that no network has (RFC 2544), with the flow's
/// hash in its last two bytes.
pub const OUTER_V4: V4 = V4([198, 18, 0, 0]);
/// The same of IPv6: of the range that is discarded (RFC 6666), with the hash in its last four bytes.
pub const OUTER_V6: V6 = V6([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

/// Whether an outer packet comes from the load balancer.
#[inline(always)]
pub fn is_outer(source: V6) -> bool {
    let number = u128::from_be_bytes(source.0);
    number >> 16 == u128::from_be_bytes(v4_mapped(OUTER_V4)) >> 16
        || number >> 32 == u128::from_be_bytes(OUTER_V6.0) >> 32
}

/// The outer packet of a frame that carries another of its own family in it.
#[inline(always)]
pub fn outer(packet: &mut impl Packet) -> Option<Datagram> {
    match flow::family(packet) {
        Family::V4 => flow::wrapped::<V4>(packet),
        Family::V6 => flow::wrapped::<V6>(packet),
    }
}

const fn v4_mapped(address: V4) -> [u8; 16] {
    let [a, b, c, d] = address.0;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// [`Real::sum`] of a node with this address: everything in an outer IPv4 header but its length, its class, and the
/// last two bytes of its source. 0 over IPv6, which has no such sum.
pub fn outer_sum<A: Address>(node: A) -> u32 {
    if A::FAMILY == Family::V6 {
        return 0;
    }
    let words =
        [Be16([ip::VERSION_4_PLAIN, 0]), ip::DONT_FRAGMENT, Be16([ip::DEFAULT_TTL, ip::protocol::IPV4])];
    words.iter().fold(OUTER_V4.sum() + node.sum(), |sum, word| sum + u16::from_ne_bytes(word.0) as u32)
}

/// Walks one frame through the load balancer.
#[inline(always)]
pub fn carry<A: Address, B: Balancing<A>, K: Packet>(balancer: &mut B, packet: &mut K) -> Fate {
    let bytes = packet.length();
    let mut ends = Ends::default();
    let fate = match walk(balancer, packet, &mut ends) {
        Ok(fate) => fate,
        Err(miss) => Fate::Missed(miss),
    };
    balancer.count(fate, bytes);
    fate
}

#[inline(always)]
fn walk<A: Address, B: Balancing<A>, K: Packet>(
    balancer: &mut B,
    packet: &mut K,
    ends: &mut Ends<A>,
) -> Result<Fate, Miss> {
    if !flow::glance(packet, ends) {
        uncommon(packet, ends)?;
    }
    let key = Frontend { address: ends.target, port: ends.target_port, protocol: ends.protocol, pad: 0 };
    let Some(service) = Virtuals::get(balancer, &key) else {
        return back(balancer, packet, ends);
    };
    if service.flags & Virtual::RETURN != 0 {
        return Ok(Fate::Other);
    }
    if service.flags & Virtual::ADDRESS != 0 {
        return Err(Miss::NoFrontend);
    }
    let constants = balancer.balancer();
    let hash = hash(ends, &constants);
    let slot = place_of(&service, hash);
    let row = Ring::<A>::get(balancer, &slot).unwrap_or_default();
    // 1.
    let mut real = row.now as u32;
    if row.moved_s != 0 || service.flags & Virtual::PINS != 0 {
        let mut place = Place { slot, row, service, real };
        moved(balancer, ends, &mut place, constants.drain_s)?;
        real = place.real;
    }
    let real = Reals::get(balancer, &real).unwrap_or_default();
    if real.state == Real::<A>::GONE {
        return Err(Miss::NoHealthyNode);
    }
    send(packet, ends, &real, (&constants, hash))
}

/// What is no plain TCP segment or UDP datagram: with options or extensions, an ICMP error, a fragment, or broken.
#[inline(never)]
fn uncommon<A: Address, K: Packet>(packet: &mut K, ends: &mut Ends<A>) -> Result<(), Miss> {
    let mut flow = Flow::default();
    if flow::read(packet, &mut flow).is_err() {
        return Err(Miss::Unreadable);
    }
    if !flow.piece.is_whole() {
        return Err(Miss::Fragment);
    }
    *ends = Ends {
        source: flow.source,
        target: flow.target,
        source_port: flow.source_port,
        target_port: flow.target_port,
        protocol: flow.protocol,
        flags: if flow.error { 0 } else { flow.flags },
        class: header::class::<A>(packet, ethernet::LENGTH).ok_or(Miss::Unreadable)?,
        hops: flow.hops,
        error: flow.error,
        transport: flow.transport,
        ..Ends::default()
    };
    Ok(())
}

/// A hash of the flow, or of its client alone.
#[inline(always)]
fn hash<A: Address>(ends: &Ends<A>, constants: &Balancer) -> u32 {
    let client = mix(constants.seed ^ ends.source.fold32());
    if constants.client_affinity != 0 {
        return client;
    }
    let ports = (ends.source_port.host() as u32) << 16 | ends.target_port.host() as u32;
    mix(client ^ ends.target.fold32().rotate_left(16) ^ ports ^ ends.protocol as u32)
}

/// The slot of a hash.
#[inline(always)]
fn place_of(service: &Virtual, hash: u32) -> u32 {
    service.first.wrapping_add(((hash as u64 * service.count as u64) >> 32) as u32)
}

/// The slot of a flow that is pinned, of the frontend's port with this key and row.
pub fn slot<A: Address>(pin: &Pin<A>, key: &Frontend<A>, service: &Virtual, constants: &Balancer) -> u32 {
    let ends = Ends {
        source: pin.client,
        source_port: pin.port,
        target: key.address,
        target_port: key.port,
        protocol: key.protocol,
        ..Ends::default()
    };
    place_of(service, hash(&ends, constants))
}

/// Where in the ring a flow is.
struct Place {
    slot: u32,
    row: Slot,
    service: Virtual,
    /// Who has it.
    real: u32,
}

/// Finds who has a flow of a slot that has moved, or of a frontend whose flows are all pinned.
#[inline(always)]
fn moved<A: Address, B: Balancing<A>>(
    balancer: &mut B,
    ends: &Ends<A>,
    place: &mut Place,
    drain_s: u32,
) -> Result<(), Miss> {
    let (row, now_s) = (place.row, balancer.now_s());
    let key = Pin { client: ends.source, port: ends.source_port, number: place.service.number };
    let connection = ends.protocol == ip::protocol::TCP;
    let first = connection && ends.flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;
    let now = Pinned { real: row.now as u32, seen_s: now_s };
    // 2. Without asking whether it has a row, which takes as long again: almost always it has none.
    if first && now.real != 0 && Writes::<Pins<A>>::add(balancer, &key, &now).is_ok() {
        place.real = now.real;
        return Ok(());
    }
    let pinned = Writes::<Pins<A>>::change(balancer, &key, |pinned| {
        pinned.seen_s = now_s;
        pinned.real
    });
    let goes_on = connection && !first;
    // 4.
    if let Some(real) = pinned
        && takes::<A, B>(balancer, real, goes_on)
    {
        place.real = real;
        return Ok(());
    }
    let always = place.service.flags & Virtual::PINS != 0;
    let home = row.home as u32;
    // 3.
    let old = goes_on || (!connection && now_s.wrapping_sub(row.moved_s) < drain_s);
    if old && takes::<A, B>(balancer, home, goes_on) {
        if !connection || always {
            let full = pin::<A, B>(balancer, &key, Pinned { real: home, seen_s: now_s });
            if full && always {
                return Err(Miss::PinsFull);
            }
        }
        if row.moved_s != 0 {
            balancer.at_home(place.slot, now_s);
        }
        place.real = home;
        return Ok(());
    }
    // 2.
    if now.real == 0 {
        return Err(Miss::NoHealthyNode);
    }
    if pin::<A, B>(balancer, &key, now) {
        // 6.
        if always {
            return Err(Miss::PinsFull);
        }
        // 5.
        if takes::<A, B>(balancer, home, true) {
            balancer.at_home(place.slot, now_s);
            place.real = home;
            return Ok(());
        }
    }
    place.real = now.real;
    Ok(())
}

/// Whether a node takes a packet: of a connection that goes on, or of another flow.
#[inline(always)]
fn takes<A: Address, B: Balancing<A>>(balancer: &B, real: u32, goes_on: bool) -> bool {
    let state = match Reals::get(balancer, &real) {
        Some(real) => real.state,
        None => Real::<A>::GONE,
    };
    state == Real::<A>::ACTIVE || (goes_on && state == Real::<A>::DRAINING)
}

/// Writes a row; whether there is no room for it.
#[inline(always)]
fn pin<A: Address, B: Balancing<A>>(balancer: &mut B, key: &Pin<A>, row: Pinned) -> bool {
    matches!(Writes::<Pins<A>>::put(balancer, key, &row), Err(NotAdded::Full))
}

/// Hands a packet to a node.
#[inline(always)]
fn send<A: Address, K: Packet>(
    packet: &mut K,
    ends: &Ends<A>,
    real: &Real<A>,
    (constants, hash): (&Balancer, u32),
) -> Result<Fate, Miss> {
    if constants.forward == Balancer::IP_IN_IP {
        wrap(packet, ends.class, real, hash).ok_or(Miss::WriteFailed)?;
    } else if constants.forward == Balancer::NODE_PORT {
        if ends.error || ends.protocol == ip::protocol::SCTP {
            return Err(Miss::Untranslatable);
        }
        let (from, to) = ((ends.target, ends.target_port), (real.address, real.port));
        rewrite(packet, ends, (A::TARGET, transport::TARGET_PORT), from, to).ok_or(Miss::WriteFailed)?;
    }
    address(packet, real.mac, constants.mac).ok_or(Miss::WriteFailed)?;
    Ok(Fate::Sent)
}

/// A packet that is for no port of a frontend: an answer from behind one, or nobody's; or for its address all the
/// same.
#[inline(always)]
fn back<A: Address, B: Balancing<A>, K: Packet>(
    balancer: &mut B,
    packet: &mut K,
    ends: &Ends<A>,
) -> Result<Fate, Miss> {
    let constants = balancer.balancer();
    let mut returned = false;
    if constants.forward == Balancer::NODE_PORT && !ends.error {
        answered(balancer, packet, ends, &mut returned)?;
    }
    if returned {
        return Ok(Fate::Returned);
    }
    let key = Frontend { address: ends.target, port: Be16::new(0), protocol: 0, pad: 0 };
    if Virtuals::get(balancer, &key).is_some() { Err(Miss::NoFrontend) } else { Ok(Fate::Other) }
}

/// Makes an answer of a node's port come from the frontend, if its flow is pinned to that node.
#[inline(never)]
fn answered<A: Address, B: Balancing<A>, K: Packet>(
    balancer: &mut B,
    packet: &mut K,
    ends: &Ends<A>,
    returned: &mut bool,
) -> Result<(), Miss> {
    let key = Frontend { address: ends.source, port: ends.source_port, protocol: ends.protocol, pad: 0 };
    let Some(service) = Virtuals::get(balancer, &key) else {
        return Ok(());
    };
    if service.flags & Virtual::RETURN == 0 {
        return Ok(());
    }
    let (now_s, constants) = (balancer.now_s(), balancer.balancer());
    let key = Pin { client: ends.target, port: ends.target_port, number: service.number };
    let pinned = Writes::<Pins<A>>::change(balancer, &key, |pinned| {
        pinned.seen_s = now_s;
        pinned.real
    });
    // 6.
    if pinned.unwrap_or(0) != service.first {
        return Ok(());
    }
    let Some(real) = Reals::get(balancer, &service.first) else {
        return Ok(());
    };
    let (from, to) = ((ends.source, ends.source_port), (real.frontend, real.frontend_port));
    rewrite(packet, ends, (A::SOURCE, transport::SOURCE_PORT), from, to).ok_or(Miss::WriteFailed)?;
    address(packet, constants.gateway, constants.mac).ok_or(Miss::WriteFailed)?;
    *returned = true;
    Ok(())
}

#[inline(always)]
fn address(packet: &mut impl Packet, to: Mac, from: Mac) -> Option<()> {
    packet.write(ethernet::TARGET, to)?;
    packet.write(ethernet::SOURCE, from)
}

/// Puts the packet into another one, to the node. Of an outer IPv4 header all is known before but its length, its
/// class and half of its source; its checksum is completed, not counted anew.
#[inline(always)]
fn wrap<A: Address>(packet: &mut impl Packet, class: u8, real: &Real<A>, hash: u32) -> Option<()> {
    const START: usize = ethernet::LENGTH;
    let length = packet.length().wrapping_sub(START as u32) as u16;
    let [a, b, c, d] = hash.to_be_bytes();
    packet.open_ip(A::FAMILY)?;
    if A::FAMILY == Family::V6 {
        let mut source = OUTER_V6;
        source.0[12..].copy_from_slice(&[a, b, c, d]);
        let (source, target) = (A::from_v6(source), real.address);
        return header::write(
            packet,
            &Header { source, target, protocol: ip::protocol::IPV6, class, length },
        );
    }
    let total_length = Be16::new(length.wrapping_add(ip::LENGTH as u16));
    let [first, second, ..] = OUTER_V4.0;
    let source = A::from_v6(V4([first, second, c, d]).to_v6());
    let start = ip::Start {
        version_length: ip::VERSION_4_PLAIN,
        class,
        total_length,
        identification: Be16::new(0),
        fragment: ip::DONT_FRAGMENT,
        ttl: ip::DEFAULT_TTL,
        protocol: ip::protocol::IPV4,
        checksum: checksum::of([total_length, Be16([0, class]), Be16([c, d])], real.sum),
    };
    packet.write(ethernet::TYPE, ethernet::IPV4)?;
    packet.write(START, start)?;
    packet.write(START + A::SOURCE, ip::Addresses { source, target: real.address })
}

/// Replaces an end of a packet; the fields are those of its address and its port.
#[inline(always)]
fn rewrite<A: Address>(
    packet: &mut impl Packet,
    ends: &Ends<A>,
    (address_field, port_field): (usize, usize),
    (old, old_port): (A, Port),
    (new, new_port): (A, Port),
) -> Option<()> {
    if let Some(field) = A::CHECKSUM {
        let sum: Be16 = packet.read(ethernet::LENGTH + field)?;
        let sum = checksum::mended(sum, checksum::address_delta(old, new));
        packet.write(ethernet::LENGTH + field, sum)?;
    }
    let delta = checksum::add(checksum::address_delta(old, new), checksum::word_delta(old_port, new_port));
    let optional = ends.protocol == ip::protocol::UDP;
    let field = if optional { udp::CHECKSUM } else { tcp::CHECKSUM };
    let mend = Mend { delta, pseudo: true, balanced: A::CHECKSUM.is_none(), optional };
    packet.mend(ends.transport + field, mend)?;
    packet.write(ethernet::LENGTH + address_field, new)?;
    packet.write(ends.transport + port_field, new_port)
}
