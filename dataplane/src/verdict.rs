//! What becomes of a packet: the one list of verdicts, and the one list of drop reasons.

use crate::tables::IfIndex;

/// What a hook does with the packet it was given. Exactly one of these, for every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Into the pod behind this host-side interface.
    Deliver(IfIndex),
    /// Out of this interface (the uplink), to the neighbour already written into the frame.
    Forward(IfIndex),
    /// Back out of the interface it came from: an answer the path made itself (ARP, neighbour discovery).
    Answer,
    /// Up to the node's own network stack, unchanged or as the path rewrote it.
    #[default]
    Stack,
    /// Nowhere; but an error about it, or a reset, which the path made of the frame, goes back out of the
    /// interface it came from. Counted as a drop, under its reason.
    Reject(Reason),
    /// Nowhere. Counted under its reason.
    Drop(Reason),
}

/// What became of a Service's address that a socket dialled, where the node translates sockets. No packet is
/// there yet, so this is no verdict; it is counted beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A backend's address took its place.
    Backend,
    /// It was left alone, because what the socket dialled could not be remembered: its packets are translated
    /// one by one.
    Full,
}

impl Turn {
    /// The index of its counter, which is no verdict's.
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        match self {
            Self::Backend => 5,
            Self::Full => 6,
        }
    }
}

/// The index of the counter of how often policies denied a packet that passed all the same, because its pod is
/// audited: once for each pod that is asked. It is no verdict: the packet has its own besides.
pub const AUDITED: u32 = 7;

/// Declares the reasons once: number, slug (metrics, JSON, case files), sentence (people).
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $slug:literal, $sentence:literal;)+) => {
        /// Why a packet was refused. The slug is the stable name, in counters, the walk and JSON.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $sentence] $name = $number,)+
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),+];

            /// The stable name.
            pub const fn slug(self) -> &'static str {
                match self { $(Reason::$name => $slug,)+ }
            }
            /// What it means, for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Reason::$name => $sentence,)+ }
            }
        }
    };
}

reasons! {
    Truncated = 1, "truncated", "The frame ends inside a header, or before the length its IP header states.";
    MalformedHeader = 2, "malformed-header", "A header length or version is impossible.";
    UnsupportedEtherType = 3, "unsupported-ethertype", "Neither IPv4, IPv6 nor ARP.";
    UnsupportedProtocol = 4, "unsupported-protocol", "The IP protocol is not TCP, UDP, SCTP, ICMP or ICMPv6.";
    UnknownFragment = 5, "unknown-fragment", "A later fragment of a packet whose first fragment did not come before it.";
    InvalidSource = 6, "invalid-source", "The source address is not the one of the pod behind the interface.";
    NoBackend = 7, "no-backend", "The Service has no ready endpoint.";
    NoLocalBackend = 31, "no-local-backend", "Only the node's own endpoints may answer for the Service, and there is none.";
    SourceRange = 32, "source-range", "The Service's loadBalancerSourceRanges do not have the client's address.";
    PolicyDenied = 8, "policy-denied", "A policy isolates the pod and no rule of it allows the flow, or a rule denies it.";
    PolicyFull = 37, "policy-full", "The policy table has no room for what policies say of the pod, so nobody knows whether they allow the flow.";
    ConntrackFull = 9, "conntrack-full", "The connection tracking table is full.";
    FlowConflict = 10, "flow-conflict", "A live flow with another translation already uses these addresses and ports.";
    MasqueradeFull = 11, "masquerade-full", "The masquerade table is full.";
    MasqueradePortsExhausted = 12, "masquerade-ports-exhausted", "No free source port was found for this destination.";
    Blackhole = 13, "blackhole", "The destination is nobody's in the cluster, or is never passed on.";
    TtlExceeded = 14, "ttl-exceeded", "The time to live ran out at this node.";
    UnknownTunnelSource = 15, "unknown-tunnel-source", "The outer source address is not a node of the cluster.";
    UnknownVni = 16, "unknown-vni", "The tunnel's network identifier is no identity.";
    NotLocal = 17, "not-local", "It arrived over the overlay for an address that is not on this node.";
    TooBig = 18, "too-big", "The packet does not fit the underlay after encapsulation.";
    WriteFailed = 19, "write-failed", "The engine could not change the packet.";
    UnknownIcmp = 20, "unknown-icmp", "An ICMP error, or an echo's answer, about a flow that nobody here has.";
    StaleMasquerade = 21, "stale-masquerade", "A reply to a masqueraded flow that has ended.";
    Spoofed = 22, "spoofed", "It arrived outside the overlay, with a source address of the cluster.";
    TunnelSpoofed = 24, "tunnel-spoofed", "It came through the tunnel from a node that its source address is not on.";
    OwnAddressAsked = 23, "own-address-asked", "A question about the asker's own address (ARP or neighbour discovery): silence says that it is free.";
    FragmentsFull = 30, "fragments-full", "The table of packets in fragments is full.";
    ExtensionHeader = 25, "extension-header", "IPv6 extension headers that the path does not walk: too many, too long, encrypted, signed, or routed by the sender.";
    SctpFragment = 36, "sctp-fragment", "The first fragment of an SCTP packet of which a port had to change: its checksum covers what is not there.";
    CongestionLost = 27, "congestion-lost", "The underlay marked congestion on the tunnel, and the sender inside knows no such mark.";
    NeedsNoAnswer = 26, "needs-no-answer", "Talk on the link alone that needs no answer: a router solicitation, a multicast report, an advertisement.";
}

impl Reason {
    /// The reason with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| *reason as u8 == number)
    }
    /// The reason with this slug, if there is one.
    pub fn from_slug(slug: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.slug() == slug)
    }
}

impl Verdict {
    /// Counters an engine keeps: one for each kind of verdict, and one for each reason.
    pub const COUNTERS: u32 = 64;

    /// The index of this verdict's counter, below [`Verdict::COUNTERS`].
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        match self {
            Self::Deliver(_) => 1,
            Self::Forward(_) => 2,
            Self::Answer => 3,
            Self::Stack => 4,
            Self::Reject(reason) | Self::Drop(reason) => 8 + reason as u32,
        }
    }
}

const _: () = assert!(8 + Reason::ALL.len() < Verdict::COUNTERS as usize);

/// What becomes of a frame at the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is nobody's here: neither for a frontend, nor an answer from behind one.
    Other,
    /// To a node: the frame is addressed.
    Sent,
    /// To a client: an answer, from the frontend again.
    Returned,
    /// Nowhere.
    Missed(Miss),
}

/// Why the load balancer refused a packet for a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Miss {
    /// Its headers are broken, or of a kind that is not balanced.
    Unreadable = 1,
    /// It is a fragment: only the first one says its ports, and they would part.
    Fragment = 2,
    /// Nobody behind the frontend answers probes.
    NoHealthyNode = 3,
    /// The table of pins is full, and without a row its answers would not be known.
    PinsFull = 4,
    /// An ICMP error, or a packet of SCTP, that would have to be translated.
    Untranslatable = 5,
    /// The engine could not change the packet.
    WriteFailed = 6,
    /// The address is a frontend's, the port is not.
    NoFrontend = 7,
}

impl Miss {
    /// Every miss, by number.
    pub const ALL: [Self; 7] = [
        Self::Unreadable,
        Self::Fragment,
        Self::NoHealthyNode,
        Self::PinsFull,
        Self::Untranslatable,
        Self::WriteFailed,
        Self::NoFrontend,
    ];
}

impl Fate {
    /// Counters an engine keeps.
    pub const COUNTERS: u32 = 16;

    /// The index of this fate's counter, below [`Fate::COUNTERS`].
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        match self {
            Self::Other => 0,
            Self::Sent => 1,
            Self::Returned => 2,
            Self::Missed(miss) => 8 + miss as u32,
        }
    }
}
