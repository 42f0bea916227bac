//! The places where the packet path runs: one trait, the kernel and the emulator.

use std::net::SocketAddr;

use dataplane::Verdict;
use dataplane::tables::{
    Affine, Affinity, Connection, Fragment, Fragmented, IfIndex, Masquerade, Masqueraded, Tuple,
};
use dataplane::trace::Record;
use dataplane::wire::{Address, V4, V6};

use crate::error::Error;
use crate::plan::{Legs, NodeChange, NodeRows};

pub mod balancer;
pub mod capacity;
pub mod emulator;
pub mod kernel;

pub use capacity::Capacities;

/// Where a packet enters the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// From a pod of the node.
    FromPod,
    /// From the uplink.
    FromUnderlay,
    /// From the node's own stack.
    FromHost,
}

/// What became of a frame that was pushed through a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Where it goes.
    pub verdict: Verdict,
    /// The frame afterwards; as it was changed so far, if it was dropped.
    pub frame: Vec<u8>,
    /// What the stages reported, in order.
    pub records: Vec<Record>,
}

/// A socket of a node that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialling {
    /// The socket's cookie.
    pub socket: u64,
    /// That of the network namespace it is in.
    pub netns: u64,
    /// Whom it dials.
    pub target: SocketAddr,
    /// As in the IP header.
    pub protocol: u8,
}

/// How many packets and bytes came to a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Their bytes as they arrived.
    pub bytes: u64,
}

/// Rows of [`dataplane::tables::Connections`].
pub type Flows<A> = Vec<(Tuple<A>, Connection<A>)>;

/// Rows of [`dataplane::tables::Masquerades`].
pub type Claims<A> = Vec<(Masquerade<A>, Masqueraded<A>)>;

/// Rows of [`dataplane::tables::Fragments`].
pub type Pieces<A> = Vec<(Fragment<A>, Fragmented)>;

/// Rows of [`dataplane::tables::Affinities`].
pub type Clients<A> = Vec<(Affinity<A>, Affine)>;

/// The number that follows on the one by which the path knows whether the agent has written
/// ([`dataplane::Machine::generation`]): never 0.
fn after(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// One node's packet path, running somewhere.
pub trait Engine: Tracks<V4> + Tracks<V6> {
    /// The changes that bring the tables the agent writes to exactly these rows: only what differs, in an order in
    /// which no packet meets a row that points to one not yet there.
    ///
    /// # Errors
    /// A table that is too small, by name.
    fn legs(&self, rows: &NodeRows) -> Result<Legs, Error>;
    /// Makes changes, in their order: a leg, or a part of one.
    ///
    /// # Errors
    /// As [`Engine::legs`]; nothing was changed then. Or what the kernel refused.
    fn change(&mut self, changes: &[NodeChange]) -> Result<(), Error>;
    /// Brings the tables to exactly these rows, whatever other nodes are at.
    ///
    /// # Errors
    /// A table that is too small, by name; nothing was changed then. Or what the kernel refused.
    fn apply(&mut self, rows: &NodeRows) -> Result<(), Error> {
        self.legs(rows)?.iter().try_for_each(|leg| self.change(leg))
    }
    /// Pushes one frame through a hook.
    ///
    /// # Errors
    /// The engine could not run it; the path's own refusals are verdicts.
    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, Error>;
    /// Where a socket that connects is led: to `target` itself, unless the node translates sockets and it is a
    /// Service. What was reported on the way comes with it. In the kernel sockets alone can ask: there is no
    /// answer but `target`.
    ///
    /// # Errors
    /// The engine could not run it.
    fn lead(&mut self, dialling: &Dialling) -> Result<(SocketAddr, Vec<Record>), Error> {
        Ok((dialling.target, Vec::new()))
    }
    /// A socket that was led somewhere is closed.
    fn hang_up(&mut self, socket: u64) {
        let _ = socket;
    }
    /// Packets and bytes by verdict: see [`dataplane::verdict::Verdict::counter`].
    ///
    /// # Errors
    /// The table could not be read.
    fn counts(&self) -> Result<Vec<Count>, Error>;
}

/// What an engine remembers of the packets of one family.
pub trait Tracks<A: Address> {
    /// The tracked flows, in the order of their tuples' bytes.
    ///
    /// # Errors
    /// The table could not be read.
    fn connections(&self) -> Result<Flows<A>, Error>;
    /// The source ports in use, in the order of their keys' bytes.
    ///
    /// # Errors
    /// The table could not be read.
    fn masquerades(&self) -> Result<Claims<A>, Error>;
    /// The packets in fragments, in the order of their keys' bytes.
    ///
    /// # Errors
    /// The table could not be read.
    fn fragments(&self) -> Result<Pieces<A>, Error>;
    /// The clients that Services remember, in the order of their keys' bytes.
    ///
    /// # Errors
    /// The table could not be read.
    fn affinities(&self) -> Result<Clients<A>, Error>;
}

/// An engine whose clock can be moved on by hand: what cases need to see rows expire.
pub trait Clock {
    /// Seconds of the engine's clock: what rows' `expires_s` are compared with.
    ///
    /// # Errors
    /// The clock could not be read.
    fn now_s(&self) -> Result<u32, Error>;
    /// Lets `seconds` pass: afterwards every tracked flow is that much nearer to its end.
    ///
    /// # Errors
    /// The engine could not change its clock, or its rows.
    fn wait(&mut self, seconds: u32) -> Result<(), Error>;
    /// The number that chance gives the next packet; of no effect where chance is the kernel's.
    ///
    /// # Errors
    /// The engine could not be told.
    fn set_random(&mut self, number: u32) -> Result<(), Error>;
    /// Removes what the path has written and is of no more use, as the agent does now and then.
    ///
    /// # Errors
    /// The engine could not read or change its rows.
    fn sweep(&mut self) -> Result<(), Error>;
}
