//! Virtual address -> backend.
//!
//! Reads `frontends`, `routes`, `source_ranges`, `maglev`, `backends`, `endpoints`. Reads and writes `affinities`.
//! Drops `NoBackend`, `NoLocalBackend`, `SourceRange`.
//!
//! 1. A packet whose client was given to a backend before goes there again: a connection under way in any case,
//!    also to one that is on its way out or gone. What asks for a new connection, and every datagram, goes there as
//!    long as the backend is active.
//! 2. The target is no Service's address and port, and no node port at an address of a node: nothing to do.
//! 3. Who comes from outside the ranges of a Service that has some: refuse.
//! 4. A client that a Service with affinity gave to a backend goes there again, for as long as the Service says
//!    after its last new connection, and as that backend is active; and on this node, where only such may answer.
//! 5. Nobody may answer: refuse. Where only this node's endpoints may, others may have some: nobody is told.
//! 6. The hash of the flow, or chance, picks a slot, and the slot names the backend. The same flow always picks the
//!    same slot, and few slots change hands when endpoints come or go. Where there is no room to remember it, a client
//!    with affinity goes by the hash of its address alone, and most keep their backend even so.
//!
//! Source: Eisenbud et al., "Maglev", NSDI 2016, section 3.4; Kubernetes, "Virtual IPs and Service Proxies", and API
//! reference, Service v1 (`sessionAffinity`, `externalTrafficPolicy`, `internalTrafficPolicy`,
//! `loadBalancerSourceRanges`).

use crate::Reason;
use crate::flow::{Flow, mix};
use crate::platform::Platform;
use crate::tables::{
    Affine, Affinities, Affinity, Backend, BackendId, Backends, Connection, Endpoints, Frontend, Frontends,
    Maglev, Routes, Service, Slots, SourceRange, SourceRanges, Table, Writes,
};
use crate::trace::{self, Record, Stage};
use crate::wire::{Address, Port, ip};

/// Where a Service sends a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice<A> {
    /// The backend's address; zero: the target is no Service's.
    pub address: A,
    /// The backend's port.
    pub port: Port,
    /// Its number.
    pub backend: BackendId,
    /// The port that stands for the client's own; 0 if none does.
    pub client_port: Port,
    /// The flow was given to it before.
    pub kept: bool,
    /// It is on its way out, and takes the flow because nobody else does: a datagram is given to whom there is then.
    pub leaving: bool,
    /// The backend's node is to answer the client straight, and tracks the flow between the two alone.
    pub direct: bool,
}

impl<A: Address> Choice<A> {
    /// Whether there is one.
    #[inline(always)]
    pub fn is_some(&self) -> bool {
        self.address != A::default()
    }
}

/// Leaves in `choice` where the client of this flow was given before, if it may still go there: `row` is the one
/// under what it dialled.
#[inline(always)]
pub fn keep<A: Address>(
    platform: &impl Platform<A>,
    flow: &Flow<A>,
    row: &Connection<A>,
    choice: &mut Choice<A>,
) {
    // 1.
    let under_way = flow.error || (ip::protocol::connects(flow.protocol) && !flow.is_syn());
    if !under_way && !is_active(platform, row) {
        return;
    }
    *choice = Choice {
        address: row.frontend,
        port: row.frontend_port,
        backend: row.backend,
        client_port: row.client_port,
        kept: true,
        leaving: false,
        direct: row.direct == Connection::<A>::AWAY,
    };
}

/// Whether the backend of a row under what was dialled takes new flows. Its number may be another's by now.
#[inline(always)]
fn is_active<A: Address>(platform: &impl Platform<A>, row: &Connection<A>) -> bool {
    let Some(backend) = Backends::get(platform, &row.backend.0) else {
        return false;
    };
    backend.state == Backend::<A>::ACTIVE
        && backend.address == row.frontend
        && backend.port == row.frontend_port
}

/// Leaves in `choice` the backend that the flow's target stands for, if it is a Service. `external`: it comes from
/// outside the cluster.
///
/// # Errors
/// `NoBackend`, `NoLocalBackend`, `SourceRange`.
#[inline(always)]
pub fn choose<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    external: bool,
    choice: &mut Choice<A>,
) -> Result<(), Reason> {
    let mut service = Service::default();
    find(platform, flow, &mut service);
    // 2.
    if service.id.0 == 0 {
        return Ok(());
    }
    // 3.
    if service.flags & Service::RANGES != 0 {
        let asked = SourceRange { service: service.id, address: flow.source };
        if SourceRanges::get(platform, &asked).is_none() {
            return Err(Reason::SourceRange);
        }
    }
    // 5.
    let mut slots = service.internal;
    let mut local = service.flags & Service::INTERNAL_LOCAL != 0;
    if external {
        slots = service.external;
        local = service.flags & Service::EXTERNAL_LOCAL != 0;
        choice.direct = service.flags & Service::DIRECT_RETURN != 0;
    }
    if slots.count == 0 {
        return Err(if local { Reason::NoLocalBackend } else { Reason::NoBackend });
    }
    if service.affinity_s != 0 {
        return choose_for_client(platform, flow, &service, (slots, local), choice);
    }
    // 6.
    let mut hash = flow.hash(platform.node().seed);
    if service.flags & Service::RANDOM != 0 {
        hash = platform.random();
    }
    spread(platform, slots, hash, choice).map(|_| ())
}

/// [`choose`], where the client goes where it went. `local`: of the backends, only this node's may answer.
#[inline(always)]
fn choose_for_client<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    service: &Service,
    (slots, local): (Slots, bool),
    choice: &mut Choice<A>,
) -> Result<(), Reason> {
    // 4.
    let client = Affinity { client: flow.source, service: service.id };
    let now_s = platform.now_s();
    let mut seed = 0;
    if let Some(row) = Affinities::get(platform, &client)
        && !is_over(&row, now_s)
        && let Some(backend) = Backends::get(platform, &row.backend.0)
        && backend.state == Backend::<A>::ACTIVE
        && backend.seed == row.seed
        && (!local || is_here(platform, backend.address))
    {
        seed = row.seed;
        *choice = Choice { address: backend.address, port: backend.port, backend: row.backend, ..*choice };
    }
    if !choice.is_some() {
        seed = spread(platform, slots, flow.hash(platform.node().seed), choice)?;
    }
    let expires_s = now_s.wrapping_add(service.affinity_s);
    let row = Affine { backend: choice.backend, seed, expires_s };
    if Writes::<Affinities<A>>::put(platform, &client, &row).is_err() {
        // 6.
        let hash = mix(platform.node().seed ^ flow.source.fold32());
        spread(platform, slots, hash, choice)?;
    }
    Ok(())
}

/// Whether a backend is a pod of this node, or the node itself.
#[inline(always)]
fn is_here<A: Address>(platform: &impl Platform<A>, backend: A) -> bool {
    if backend == platform.address() {
        return true;
    }
    Endpoints::get(platform, &backend).is_some()
}

/// Whether a row of `affinities` is over: the path takes it for absent, the agent removes it.
#[inline(always)]
pub fn is_over(row: &Affine, now_s: u32) -> bool {
    row.expires_s <= now_s
}

/// Leaves in `choice` the backend that a hash picks among these slots. Its seed.
///
/// # Errors
/// `NoBackend`.
#[inline(always)]
fn spread<A: Address>(
    platform: &mut impl Platform<A>,
    slots: Slots,
    hash: u32,
    choice: &mut Choice<A>,
) -> Result<u32, Reason> {
    let slot = if slots.count <= Slots::FEW {
        slots.first.wrapping_add(winner(platform, slots, hash))
    } else {
        slots.first.wrapping_add(hash % slots.count)
    };
    let number = Maglev::<A>::get(platform, &slot).ok_or(Reason::NoBackend)?;
    let backend = Backends::get(platform, &number.0).ok_or(Reason::NoBackend)?;
    let leaving = backend.state != Backend::<A>::ACTIVE;
    *choice = Choice { address: backend.address, port: backend.port, backend: number, leaving, ..*choice };
    Ok(backend.seed)
}

/// In [`Record::detail`]: the backend was chosen for this packet.
pub const CHOSEN: u8 = 0;
/// In [`Record::detail`]: the flow was given to it before.
pub const KEPT: u8 = 1;

/// Notes that a packet goes where `choice` says.
#[inline(always)]
pub fn note<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, choice: &Choice<A>) {
    trace::step(platform, || Record {
        detail: if choice.kept { KEPT } else { CHOSEN },
        source: flow.target.to_v6(),
        source_port: flow.target_port,
        target: choice.address.to_v6(),
        target_port: choice.port,
        ..flow.record(Stage::Service)
    });
}

/// Leaves in `service` the row of what the flow dials, if it is a Service. Sockets ask as well, so no answer of before
/// will do: see [`Table::often`](crate::tables::Table::often).
#[inline(always)]
fn find<A: Address>(platform: &impl Platform<A>, flow: &Flow<A>, service: &mut Service) {
    let key = Frontend { address: flow.target, port: flow.target_port, protocol: flow.protocol, pad: 0 };
    if let Some(row) = Frontends::get(platform, &key) {
        *service = row;
        return;
    }
    let node = platform.node();
    if flow.target_port.host().wrapping_sub(node.node_port_first) >= node.node_port_count {
        return;
    }
    if let Some(route) = Routes::get(platform, &flow.target)
        && route.own == 1
        && let Some(row) = Frontends::get(platform, &Frontend { address: A::default(), ..key })
    {
        *service = row;
    }
}

/// The place in a short list of the one that a flow with this hash prefers. A backend that is listed again has
/// another chance each time.
#[inline(always)]
fn winner<A: Address>(platform: &mut impl Platform<A>, slots: Slots, hash: u32) -> u32 {
    let mut contest = Contest { first: slots.first, hash, ..Contest::default() };
    platform.first_of(slots.count, |platform, at| {
        contest.ask(platform, at);
        // All of them are asked.
        0
    });
    contest.place
}

/// Who won so far. In one piece, because what it is for the kernel's loop to reach costs stack by the piece.
#[derive(Default)]
struct Contest {
    first: u32,
    hash: u32,
    place: u32,
    best: u32,
    last: u32,
    again: u32,
}

impl Contest {
    #[inline(always)]
    fn ask<A: Address>(&mut self, platform: &impl Platform<A>, at: u32) {
        let Some(backend) = Maglev::<A>::get(platform, &self.first.wrapping_add(at)) else {
            return;
        };
        let Some(row) = Backends::<A>::get(platform, &backend.0) else {
            return;
        };
        self.again = if backend.0 == self.last { self.again.wrapping_add(0x9e37_79b9) } else { 0 };
        self.last = backend.0;
        let score = mix(self.hash ^ row.seed.wrapping_add(self.again));
        if score >= self.best {
            (self.place, self.best) = (at, score);
        }
    }
}
