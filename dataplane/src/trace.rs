//! What each stage reports.
//!
//! Two kinds of reports come out of the path: the steps of a packet, only while the engine is tracing
//! (free when it is not: the engine answers with a constant), and what must be known of any packet, which
//! is a drop, or that audit let it pass. Which flows there are the tables say.

use crate::platform::Machine;
use crate::wire::{Port, V6, plain};

/// The stages, as the left column of a printed walk names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Head: from the pod behind the interface `number`.
    FromPod = 1,
    /// Head: from the uplink.
    FromUnderlay = 2,
    /// Head: from the node's own stack.
    FromHost = 3,
    /// `source` (the frontend) was replaced by `target` (the backend); `detail` is [`crate::service::CHOSEN`] or
    /// [`crate::service::KEPT`].
    Service = 4,
    /// `detail` is a [`crate::conntrack::State`].
    Conntrack = 5,
    /// `detail` is a [`crate::policy::Decision`], `direction` its direction, `number` its rule or 0; of an answer that
    /// was judged, the ends are those of what it answers. Always reported where [`crate::policy::AUDITED`] is added to
    /// `detail` and the packet is its flow's first.
    Policy = 6,
    /// `detail` is a kind of [`crate::tables::Route`] (0: a pod of this node), `number` the node.
    Route = 7,
    /// `source` was replaced by `target`: as [`crate::nat::Change`] in `detail` says.
    Nat = 8,
    /// `detail` 1: wrapped, from `source` to `target` with network identifier `number`, as the kind of
    /// [`crate::tables::Node::encapsulation`] in `flags` says; 2: unwrapped, and marked with the ECN in `flags`
    /// unless that is 0; 3: the other node is told that the client dialled `source`; 4: as 2, and was told that.
    Overlay = 9,
    /// Tail: to the pod behind the interface `number`.
    ToPod = 10,
    /// Tail: to the underlay.
    ToUnderlay = 11,
    /// Tail: to the node's own stack.
    ToHost = 12,
    /// The packet was dropped; `detail` is the [`crate::Reason`]. Always reported.
    Drop = 13,
    /// Head or tail of an ARP question that the path answered itself.
    Arp = 15,
    /// `detail` is [`crate::fragment::FIRST`] or [`crate::fragment::LATER`], `number` the place in the packet.
    Fragment = 16,
    /// The packet's sender is told that it goes no further: `detail` is [`crate::reject::ROOM`] (for `number`
    /// bytes), [`crate::reject::RESET`] or [`crate::reject::UNREACHABLE`].
    Reject = 17,
    /// A TCP SYN's largest segment was lowered from `source_port` to `target_port` bytes.
    Mss = 18,
    /// A socket dialled `source` (the frontend) and was led to `target` (the backend).
    Socket = 28,
}

impl Stage {
    /// Every stage, with the word for it.
    pub const ALL: &'static [(Stage, &'static str)] = &[
        (Stage::FromPod, "from_pod"),
        (Stage::FromUnderlay, "from_underlay"),
        (Stage::FromHost, "from_host"),
        (Stage::Service, "service"),
        (Stage::Conntrack, "conntrack"),
        (Stage::Policy, "policy"),
        (Stage::Route, "route"),
        (Stage::Nat, "nat"),
        (Stage::Overlay, "overlay"),
        (Stage::ToPod, "to_pod"),
        (Stage::ToUnderlay, "to_underlay"),
        (Stage::ToHost, "to_host"),
        (Stage::Drop, "drop"),
        (Stage::Arp, "arp"),
        (Stage::Fragment, "fragment"),
        (Stage::Reject, "reject"),
        (Stage::Mss, "mss"),
        (Stage::Socket, "socket"),
    ];

    /// The stage with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().map(|(stage, _)| *stage).find(|stage| *stage as u8 == number)
    }
    /// The word for it.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(stage, _)| *stage == self).map_or("", |(_, word)| word)
    }
}

/// What a walk spends its time on: where one of them ends the engine is told so, with [`Machine::lap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lap {
    /// Finding out what the packet is, from its bytes and what is known of its fragments.
    Parse = 0,
    /// Which backend it is for.
    Service = 1,
    /// Looking for its flow, and noting it.
    Conntrack = 2,
    /// Asking policies.
    Policy = 3,
    /// Where to, and the Ethernet header and hops for that.
    Route = 4,
    /// Other addresses and ports in its place, and the choice of them.
    Nat = 5,
    /// Into the tunnel, or out of it.
    Overlay = 6,
    /// What the engine does with the verdict.
    Redirect = 7,
    /// What belongs to none of them: counting, segment sizes, an answer to whoever is refused.
    Rest = 8,
}

impl Lap {
    /// Each, with the word for it, in the order of their numbers.
    pub const ALL: [(Lap, &'static str); 9] = [
        (Lap::Parse, "parse"),
        (Lap::Service, "service"),
        (Lap::Conntrack, "conntrack"),
        (Lap::Policy, "policy"),
        (Lap::Route, "route"),
        (Lap::Nat, "nat"),
        (Lap::Overlay, "overlay"),
        (Lap::Redirect, "redirect"),
        (Lap::Rest, "rest"),
    ];
}

/// The shape of a stopwatch in the kernel, in words of eight bytes: those who time and those who read agree on it by
/// these. A row has [`stopwatch::HEAD`] words, then [`stopwatch::HOOKS`] times [`stopwatch::TIMES`], of which the first
/// [`stopwatch::TOTALS`] are packets and their nanoseconds, and the others [`stopwatch::LAPS`] pairs, by [`Lap`]:
/// nanoseconds, and how often they were measured.
pub mod stopwatch {
    /// Rooms for hooks: a power of two, so that a mask keeps a number within them.
    pub const HOOKS: usize = 4;
    /// Rooms for laps: the same.
    pub const LAPS: usize = 16;
    /// Words about the packet that is being timed.
    pub const HEAD: usize = 4;
    /// Words of a hook before its laps.
    pub const TOTALS: usize = 2;
    /// Words of a hook.
    pub const TIMES: usize = TOTALS + 2 * LAPS;
    /// Words of a row.
    pub const WORDS: usize = HEAD + HOOKS * TIMES;

    /// The room of laps in which nothing is done.
    pub const CALIBRATE: usize = 0;
    /// The room of what pods send.
    pub const FROM_POD: usize = 1;
    /// The room of what comes in by the uplink.
    pub const FROM_UNDERLAY: usize = 2;
    /// The room of what the node's own stack sends.
    pub const FROM_HOST: usize = 3;

    const _: () = assert!(super::Lap::ALL.len() <= LAPS && FROM_HOST < HOOKS);
    const _: () = assert!(HOOKS.is_power_of_two() && LAPS.is_power_of_two());
}

/// One report: which stage, and what it saw. The meaning of the fields is each [`Stage`]'s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// A number: an interface, a node, a rule, a network identifier.
    pub number: u32,
    /// The length of the frame in bytes.
    pub length: u32,
    /// A [`Stage`].
    pub stage: u8,
    /// What the stage says.
    pub detail: u8,
    /// For policy: [`crate::tables::Endpoint::INGRESS`] or [`crate::tables::Endpoint::EGRESS`].
    pub direction: u8,
    /// As in the IP header.
    pub protocol: u8,
    /// TCP's flags, or ICMP's type.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// An address.
    pub source: V6,
    /// An address.
    pub target: V6,
    /// Belongs to `source`.
    pub source_port: Port,
    /// Belongs to `target`.
    pub target_port: Port,
}

plain!(Record);
const _: () = assert!(core::mem::size_of::<Record>() == 52);

/// Reports a step of the walk, if the engine is tracing.
#[inline(always)]
pub fn step<P: Machine>(platform: &mut P, record: impl FnOnce() -> Record) {
    if platform.tracing() {
        platform.report(&record());
    }
}
