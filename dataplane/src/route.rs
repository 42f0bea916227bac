//! Destination -> local pod, remote node, world, the node itself, or nowhere.
//!
//! Reads `endpoints`, `routes`. Writes the frame's Ethernet header and hop count.
//! Drops `InvalidSource`, `Blackhole`, `TtlExceeded`.
//!
//! 1. A pod of this node: to it.
//! 2. The longest prefix in `routes` says: the node itself, another node, the world (with the node's
//!    address or the pod's own), or nowhere.
//! 3. What is passed on takes a hop; a packet without one left ends here. The node itself is no hop.
//!
//! Source: RFC 1812 sections 5.2.4.3 (longest match) and 5.3.1 (time to live).

use crate::Reason;
use crate::flow::Flow;
use crate::platform::{Packet, Platform};
use crate::tables::{Endpoint, Endpoints, IfIndex, Route, Routes, Table};
use crate::trace::{self, Record, Stage};
use crate::wire::{Address, Be16, Mac, V6, checksum, ethernet};

/// The pod a packet comes from: the one with its source address, behind this interface.
///
/// # Errors
/// `InvalidSource`.
#[inline(always)]
pub fn owner<A: Address>(
    platform: &impl Platform<A>,
    flow: &Flow<A>,
    interface: IfIndex,
) -> Result<Endpoint, Reason> {
    if !platform.node().speaks::<A>() {
        return Err(Reason::InvalidSource);
    }
    let pod = Endpoints::often(platform, &flow.sender).ok_or(Reason::InvalidSource)?;
    if pod.interface != interface {
        return Err(Reason::InvalidSource);
    }
    if flow.source != flow.sender {
        return Err(Reason::InvalidSource);
    }
    Ok(pod)
}

/// The pod of this node that has an address, if one has.
#[inline(always)]
pub fn at<A: Address>(platform: &impl Platform<A>, address: A) -> Option<Endpoint> {
    Endpoints::often(platform, &address)
}

/// Whether an address is of a pod of this node.
#[inline(always)]
pub fn is_here<A: Address>(platform: &impl Platform<A>, target: A) -> bool {
    at(platform, target).is_some()
}

/// Whether an address is a node's own.
#[inline(always)]
pub fn is_node<A: Address>(platform: &impl Platform<A>, address: A) -> bool {
    match Routes::often(platform, &address) {
        Some(route) => route.own == 1,
        None => false,
    }
}

/// Whether a backend's node can answer a client straight: the client is outside, and the backend is a pod behind the
/// tunnel. What a node itself answers does not go through its path.
#[inline(always)]
pub fn is_direct<A: Address>(platform: &impl Platform<A>, client: A, backend: A) -> bool {
    if Endpoints::often(platform, &backend).is_some() || is_inside(platform, client) {
        return false;
    }
    match Routes::often(platform, &backend) {
        Some(route) => route.kind == Route::REMOTE && route.own == 0,
        None => false,
    }
}

/// Whether an address is on the node at this end of the tunnel, so that it may send from it.
#[inline(always)]
pub fn is_of<A: Address>(platform: &impl Platform<A>, source: A, node: V6) -> bool {
    match Routes::often(platform, &source) {
        Some(route) => route.kind == Route::REMOTE && route.node == node,
        None => false,
    }
}

/// Whether an address belongs to the cluster, but comes through the tunnel only, so that nobody outside may
/// send from it.
#[inline(always)]
pub fn is_inside<A: Address>(platform: &impl Platform<A>, source: A) -> bool {
    if Endpoints::often(platform, &source).is_some() {
        return true;
    }
    match Routes::often(platform, &source) {
        Some(route) => {
            route.kind != Route::WORLD && route.kind != Route::NATIVE && route.kind != Route::ROUTED
        }
        None => false,
    }
}

/// The pod of this node that the flow's target is, if it is one.
///
/// # Errors
/// `TtlExceeded`.
#[inline(always)]
pub fn local<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
) -> Result<Option<Endpoint>, Reason> {
    // 1.
    let Some(pod) = Endpoints::often(platform, &flow.target) else {
        return Ok(None);
    };
    note(platform, flow, 0, pod.interface.0);
    // 3.
    if flow.hops <= 1 {
        return Err(Reason::TtlExceeded);
    }
    Ok(Some(pod))
}

/// What the routes say of an address, without a report.
#[inline(always)]
pub fn to<A: Address>(platform: &impl Platform<A>, address: A) -> Option<Route> {
    Routes::get(platform, &address)
}

/// Where the flow's target is, when it is no pod of this node: never a [`Route::BLACKHOLE`].
///
/// Apart from [`local`], because a value that is a pod in one branch and a route in the other has bytes
/// that neither wrote, and the verifier refuses to copy those ("R1 !read_ok", kernel 6.18). It can go when
/// every program loads with both in one enum.
///
/// # Errors
/// `Blackhole`, `TtlExceeded`.
#[inline(always)]
pub fn next_hop<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>) -> Result<Route, Reason> {
    // 2.
    let route = Routes::often(platform, &flow.target).ok_or(Reason::Blackhole)?;
    note(platform, flow, route.kind, route.id.0);
    if route.kind == Route::BLACKHOLE {
        return Err(Reason::Blackhole);
    }
    // 3.
    if route.kind != Route::HOST && flow.hops <= 1 {
        return Err(Reason::TtlExceeded);
    }
    Ok(route)
}

/// Takes a hop off a packet that has so many left and is of this protocol, and addresses its frame to the next
/// neighbour.
///
/// # Errors
/// `Truncated`.
#[inline(always)]
pub fn pass_on<A: Address>(
    packet: &mut impl Packet,
    (hops, protocol): (u8, u8),
    source: Mac,
    target: Mac,
) -> Result<(), Reason> {
    let link = ethernet::Header { target, source, ethertype: A::ETHERTYPE };
    packet.write(ethernet::TARGET, link).ok_or(Reason::Truncated)?;
    take_hop::<A>(packet, hops, protocol)?;
    if A::CHECKSUM.is_none() {
        packet.tell(hop_delta::<A>(hops, protocol));
    }
    Ok(())
}

/// Takes a hop off a packet that has so many left and is of this protocol, and is about to go into the tunnel: see
/// [`Packet::tell`].
///
/// # Errors
/// `Truncated`.
#[inline(always)]
pub fn take_hop<A: Address>(packet: &mut impl Packet, had: u8, protocol: u8) -> Result<(), Reason> {
    packet.write(ethernet::LENGTH + A::HOPS, had.wrapping_sub(1)).ok_or(Reason::Truncated)?;
    if let Some(offset) = A::CHECKSUM {
        let sum: Be16 = packet.read(ethernet::LENGTH + offset).ok_or(Reason::Truncated)?;
        let mended = checksum::mended(sum, hop_delta::<A>(had, protocol));
        packet.write(ethernet::LENGTH + offset, mended).ok_or(Reason::Truncated)?;
    }
    Ok(())
}

/// What a hop less adds to the sum of the IP header.
#[inline(always)]
fn hop_delta<A: Address>(had: u8, protocol: u8) -> u32 {
    let word = |hops| if A::VERSION == 4 { Be16([hops, protocol]) } else { Be16([protocol, hops]) };
    checksum::word_delta(word(had), word(had.wrapping_sub(1)))
}

/// Notes where a flow's target is.
#[inline(always)]
pub fn note<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, kind: u8, number: u32) {
    trace::step(platform, || Record { detail: kind, number, ..flow.record(Stage::Route) });
}
