//! What an engine must give the path: a packet to read and change, tables, a clock, a place for events.
//!
//! Everything that may differ between engines, or from run to run, enters here: time, the hash seed,
//! interface numbers. The path itself is a function of these.

use crate::tables::{
    Affinities, Backends, Balancer, Connections, Endpoints, Fragments, Frontends, Holds, Homes, Identities,
    IfIndex, Maglev, Masquerades, Node, Nodes, Pins, Policy, Reals, Ring, Routes, Sockets, SourceRanges,
    Virtuals, Writes,
};
use crate::trace::{Lap, Record};
use crate::verdict::{Fate, Turn, Verdict};
use crate::wire::{Address, Be16, Family, Plain, checksum};

/// A frame, from its Ethernet header on.
///
/// Offsets count from the first byte. Nothing hands out references: a frame may move whenever it is
/// changed, and the verifier forgets what it knew of it.
pub trait Packet {
    /// The interface it came in by.
    fn interface(&self) -> IfIndex;
    /// Its whole length in bytes, also where not all of it can be read directly.
    fn length(&self) -> u32;
    /// Bytes of payload in each segment that it will be cut into later; 0 if it will not be.
    fn segment(&self) -> u32;
    /// Makes the first `length` bytes readable; fewer if it is shorter.
    fn pull(&mut self, length: u32);
    /// The value at `offset`; `None` if the frame ends before.
    fn read<T: Plain>(&self, offset: usize) -> Option<T>;
    /// Replaces the value at `offset`; `None` if the frame ends before.
    fn write<T: Plain>(&mut self, offset: usize, value: T) -> Option<()>;
    /// Corrects the transport checksum at `offset` for a change elsewhere.
    fn mend(&mut self, offset: usize, mend: Mend) -> Option<()>;
    /// The same for both parts of an end at once. Without more it is one [`Self::mend`] for both, as it may be in an engine
    /// whose packets have all their checksums; where some are left to a network card, what becomes of each part of an end
    /// is another, and the engine's own answer takes this one's place.
    #[inline(always)]
    fn mend_end(&mut self, offset: usize, mend: MendEnd) -> Option<()> {
        let MendEnd { address, port, balanced, optional, .. } = mend;
        let delta = checksum::add(address, port);
        self.mend(offset, Mend { delta, pseudo: true, balanced, optional })
    }
    /// Says what a change adds to the sum of the whole packet, its checksums counted in. Of use only to an engine whose
    /// packets may come with such a sum. Nobody is told of headers that the path writes anew: what they are for leaves by a
    /// link, where that sum has no reader.
    #[inline(always)]
    fn tell(&mut self, _delta: u32) {}
    /// Makes room for a tunnel's headers (an IP header of this family, a UDP and an Ethernet header around 8
    /// bytes and `options` more) between the frame's Ethernet header and its payload. The room's content is
    /// undefined.
    fn open_tunnel(&mut self, outer: Family, options: u32) -> Option<()>;
    /// Removes that room again.
    fn close_tunnel(&mut self, outer: Family, options: u32) -> Option<()>;
    /// Cuts off what is beyond the first `length` bytes, if there is anything.
    fn trim(&mut self, length: u32) -> Option<()>;
    /// Removes the first `length` bytes behind the frame's Ethernet header.
    fn strip(&mut self, length: u32) -> Option<()>;
    /// Makes room for another IP header of this family and the 8 bytes of an ICMP header between the frame's
    /// Ethernet header and its payload. The room's content is undefined.
    fn open_error(&mut self, family: Family) -> Option<()>;
    /// Makes room for another IP header of this family behind the Ethernet header. The content of the room is
    /// undefined, and so is that of the Ethernet header.
    fn open_ip(&mut self, outer: Family) -> Option<()>;
    /// Removes an IP header of this family, behind which another of the same one follows.
    fn close_ip(&mut self, outer: Family) -> Option<()>;
}

/// A change that a transport checksum has to follow (RFC 1624).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mend {
    /// The one's complement sum of what came in, less what went out, in memory order.
    pub delta: u32,
    /// The change is in the pseudo-header. A checksum that the sender left to its network card covers
    /// only that yet.
    pub pseudo: bool,
    /// Of a change in the pseudo-header: the sum of the whole packet stays, because the IP header has no checksum of its
    /// own that makes up for the address once more (IPv6).
    pub balanced: bool,
    /// It is UDP's, where 0 means that there is none (RFC 768; over IPv6, RFC 6936).
    pub optional: bool,
}

/// A change of an address and a port of a whole packet that its transport checksum has to follow, as [`Mend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MendEnd {
    /// What it adds to the sum of the pseudo-header; 0 if the checksum covers none.
    pub address: u32,
    /// What it adds to the sum of the rest; 0 if the port is the same.
    pub port: u32,
    /// As [`Mend::balanced`].
    pub balanced: bool,
    /// As [`Mend::optional`].
    pub optional: bool,
    /// The sum of the pseudo-header before, or 0: the field holds this where the sender left it to its network card.
    pub left: Be16,
}

/// An engine, for one node: what is the same for both address families.
pub trait Machine: Holds<Nodes> {
    /// The node the path runs on.
    fn node(&self) -> Node;
    /// Seconds of a clock that does not go back.
    fn now_s(&self) -> u32;
    /// A number that nobody can foretell, except where runs are to be repeated.
    fn random(&mut self) -> u32;
    /// A number that is another after every change of the tables that the agent writes; 0 while they change.
    fn generation(&self) -> u32;
    /// Whether every stage reports, or only what must be known of any packet.
    fn tracing(&self) -> bool;
    /// Takes a report. What can't be taken is counted by the engine.
    fn report(&mut self, record: &Record);
    /// What the walk has done since it last said so was this. Of use only to an engine that takes its time.
    #[inline(always)]
    fn lap(&mut self, _lap: Lap) {}
    /// Counts a packet and its bytes under its verdict.
    fn count(&mut self, verdict: Verdict, bytes: u32);
    /// Counts what became of an address that a socket dialled.
    fn count_turn(&mut self, turn: Turn);
    /// Counts that a packet passed which policies deny, under [`crate::verdict::AUDITED`].
    fn count_audited(&mut self);
    /// Makes up to `times` attempts, numbered from 0, until one gives another number than 0: that number; 0
    /// if none does. For more attempts than a verifier would follow one by one.
    #[inline(always)]
    fn first_of(&mut self, times: u32, mut attempt: impl FnMut(&mut Self, u32) -> u32) -> u32
    where
        Self: Sized,
    {
        let mut number = 0;
        while number < times {
            let found = attempt(self, number);
            if found != 0 {
                return found;
            }
            number += 1;
        }
        0
    }
}

/// An engine, for one node and one address family.
pub trait Platform<A: Address>:
    Machine
    + Holds<Endpoints<A>>
    + Holds<Frontends<A>>
    + Holds<Maglev<A>>
    + Holds<Backends<A>>
    + Holds<SourceRanges<A>>
    + Writes<Affinities<A>>
    + Holds<Identities<A>>
    + Holds<Policy<A>>
    + Holds<Routes<A>>
    + Writes<Connections<A>>
    + Writes<Masquerades<A>>
    + Writes<Fragments<A>>
    + Holds<Homes<A>>
    + Writes<Sockets<A>>
{
    /// The node's own address of this family; zero if it has none.
    fn address(&self) -> A;
}

/// An engine, for the load balancer and one address family.
pub trait Balancing<A: Address>:
    Holds<Virtuals<A>> + Holds<Ring<A>> + Holds<Reals<A>> + Writes<Pins<A>>
{
    /// What it is to do.
    fn balancer(&self) -> Balancer;
    /// Seconds of a clock that does not go back.
    fn now_s(&self) -> u32;
    /// Notes that a flow of a moved slot was sent home.
    fn at_home(&mut self, slot: u32, now_s: u32);
    /// Counts a packet and its bytes under its fate.
    fn count(&mut self, fate: Fate, bytes: u32);
}
