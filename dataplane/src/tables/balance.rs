//! Keys and rows of the load balancer's tables: see [`crate::balance`].

use core::mem::size_of;

use crate::wire::{Mac, Port, V4, V6, plain};

/// Row of [`super::Virtuals`]: a port of a frontend; with [`Virtual::RETURN`], where answers to one come from; with
/// [`Virtual::ADDRESS`], a frontend's address, under port and protocol 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Virtual {
    /// The first slot of its run of [`super::Ring`]; with [`Virtual::RETURN`] the row of [`super::Reals`].
    pub first: u32,
    /// How many slots.
    pub count: u32,
    /// Which frontend and port it is: part of the key of [`super::Pins`].
    pub number: u16,
    /// Bits.
    pub flags: u8,
    /// Zero.
    pub pad: u8,
}

impl Virtual {
    /// In [`Virtual::flags`]: every flow is pinned, because its answers come back through here.
    pub const PINS: u8 = 1;
    /// In [`Virtual::flags`]: what comes from this address and port may be an answer.
    pub const RETURN: u8 = 2;
    /// In [`Virtual::flags`]: the address is a frontend's, and what comes to it by no port of one is lost.
    pub const ADDRESS: u8 = 4;
}

/// Row of [`super::Ring`]: who has a slot. 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    /// Who is given new flows, as a number of [`super::Reals`].
    pub now: u16,
    /// Who has the connections that are not pinned.
    pub home: u16,
    /// When `now` changed last, in seconds of the engine's clock; 0 once the slot has settled, and holds flows of
    /// `now` alone.
    pub moved_s: u32,
}

/// Row of [`super::Reals`]: a node as one of those behind a frontend's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Real<A> {
    /// The node.
    pub address: A,
    /// The frontend that it stands behind.
    pub frontend: A,
    /// The sum of what an outer IPv4 header to this node always says: see [`crate::balance`].
    pub sum: u32,
    /// The node's port.
    pub port: Port,
    /// The frontend's port.
    pub frontend_port: Port,
    /// The node's hardware address.
    pub mac: Mac,
    /// One of the constants.
    pub state: u8,
    /// Zero.
    pub pad: u8,
}

impl<A> Real<A> {
    /// It is behind the frontend no longer: nothing goes there.
    pub const GONE: u8 = 0;
    /// It may be given flows.
    pub const ACTIVE: u8 = 1;
    /// It does not answer probes: no new flows, and no more datagrams; connections that it has go on.
    pub const DRAINING: u8 = 2;
}

/// Key of [`super::Pins`]: a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Pin<A> {
    /// Who dials.
    pub client: A,
    /// From which port.
    pub port: Port,
    /// What: [`Virtual::number`].
    pub number: u16,
}

/// Row of [`super::Pins`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pinned {
    /// Who has the flow, as a number of [`super::Reals`].
    pub real: u32,
    /// When its last packet came, in seconds of the engine's clock.
    pub seen_s: u32,
}

/// What a load balancer's program must know of it; constant while it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Balancer {
    /// Mixed into every hash.
    pub seed: u32,
    /// For how long after a slot has moved a datagram of no known flow counts as one of an old flow, in seconds.
    pub drain_s: u32,
    /// Its own hardware address.
    pub mac: Mac,
    /// The hardware address of whoever knows the way to clients.
    pub gateway: Mac,
    /// One of the constants.
    pub forward: u8,
    /// 1: a client's flows all have one slot; else 0.
    pub client_affinity: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl Balancer {
    /// To the node's hardware address, as it is.
    pub const FLOATING_IP: u8 = 0;
    /// To the node's address and port.
    pub const NODE_PORT: u8 = 1;
    /// In another IP packet to the node.
    pub const IP_IN_IP: u8 = 2;
}

plain!(Virtual, Slot, Pinned, Balancer);
plain!(<A> Real, Pin);

const _: () = assert!(size_of::<Virtual>() == 12 && size_of::<Slot>() == 8 && size_of::<Pinned>() == 8);
const _: () = assert!(size_of::<Real<V4>>() == 24 && size_of::<Real<V6>>() == 48);
const _: () = assert!(size_of::<Pin<V4>>() == 8 && size_of::<Pin<V6>>() == 20);
const _: () = assert!(size_of::<Balancer>() == 24);
