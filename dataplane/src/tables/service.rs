//! Keys and rows of the tables about Services.

use core::mem::size_of;

use super::{BackendId, ServiceId};
use crate::wire::{Port, V4, V6, plain};

/// Key of [`Frontends`]: what a client dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Frontend<A> {
    /// The virtual address; zero for a node port, which every node has at each of its own addresses.
    pub address: A,
    /// The Service's port, or its node port.
    pub port: Port,
    /// As in the IP header.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// Row of [`Frontends`]: a port of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Who may answer a client inside the cluster: a pod, or a node's own process.
    pub internal: Slots,
    /// Who may answer a client outside.
    pub external: Slots,
    /// Which Service, and port of it: frontends of the same port have the same number.
    pub id: ServiceId,
    /// Seconds for which a client keeps the backend it was given after its last connection; 0: it doesn't.
    pub affinity_s: u32,
    /// Bits.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl Service {
    /// In [`Service::flags`]: backends are chosen by chance, not by the flow's hash.
    pub const RANDOM: u8 = 1;
    /// In [`Service::flags`]: [`SourceRanges`] say who may come.
    pub const RANGES: u8 = 2;
    /// In [`Service::flags`]: where nobody may answer inside, that is because only this node's endpoints may:
    /// what comes is dropped, not rejected.
    pub const INTERNAL_LOCAL: u8 = 4;
    /// In [`Service::flags`]: the same, outside.
    pub const EXTERNAL_LOCAL: u8 = 8;
    /// In [`Service::flags`]: the answer goes straight back from the backend's node (direct server return).
    pub const DIRECT_RETURN: u8 = 16;
}

/// A run of [`Maglev`] slots.
///
/// Up to [`Slots::FEW`] slots are a list of candidates, each as often as its weight says: all of them are asked,
/// and the one with the highest hash of flow and [`Backend::seed`] wins (rendezvous hashing: Thaler and
/// Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998). More are a Maglev table, of which the
/// flow's hash picks a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Slots {
    /// Index of the first slot.
    pub first: u32,
    /// How many; 0 when there is nobody to answer.
    pub count: u32,
}

impl Slots {
    /// The longest list.
    pub const FEW: u32 = 16;
}

/// Row of [`Backends`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend<A> {
    /// Where it listens.
    pub address: A,
    /// A hash of its address and port: the same on every node, whatever its number.
    pub seed: u32,
    /// On which port.
    pub port: Port,
    /// One of the constants.
    pub state: u8,
    /// Zero.
    pub pad: u8,
}

impl<A> Backend<A> {
    /// There is none any more. What has a row of it still goes there, if it is a TCP connection.
    pub const GONE: u8 = 0;
    /// New flows may be given to it, where a run of slots names it.
    pub const ACTIVE: u8 = 1;
    /// It is on its way out, or not ready: no new flows; connections it has go on.
    pub const DRAINING: u8 = 2;
}

/// Key of [`Affinities`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Affinity<A> {
    /// Who dials.
    pub client: A,
    /// What.
    pub service: ServiceId,
}

/// Row of [`Affinities`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Affine {
    /// Who answered.
    pub backend: BackendId,
    /// [`Backend::seed`] of it: its number may be another's by now.
    pub seed: u32,
    /// When that is forgotten, in seconds of the engine's clock.
    pub expires_s: u32,
}

/// Key of [`SourceRanges`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SourceRange<A> {
    /// The Service.
    pub service: ServiceId,
    /// Who dials.
    pub address: A,
}

/// Row of [`SourceRanges`]: that there is one is what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Allowed {
    /// Zero.
    pub pad: u32,
}

plain!(Service, Affine, Allowed);
plain!(<A> Frontend, Backend, Affinity, SourceRange);

const _: () = assert!(size_of::<Service>() == 28 && size_of::<Affine>() == 12 && size_of::<Allowed>() == 4);
const _: () = assert!(size_of::<Frontend<V4>>() == 8 && size_of::<Frontend<V6>>() == 20);
const _: () = assert!(size_of::<Backend<V4>>() == 12 && size_of::<Backend<V6>>() == 24);
const _: () = assert!(size_of::<Affinity<V4>>() == 8 && size_of::<Affinity<V6>>() == 20);
const _: () = assert!(size_of::<SourceRange<V4>>() == 8 && size_of::<SourceRange<V6>>() == 20);
