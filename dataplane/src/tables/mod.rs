//! Every table of the packet path: the contract between whoever plans and the path that reads.
//!
//! A table is a type that names its key and its row; an engine [`Holds`] it. Tables the path only reads
//! are written by the agent; those that the path [`Writes`] are swept by the agent. Each family has its own
//! of every table but [`Nodes`]: what a number in one means is that family's affair.
//!
//! | table | key -> row | written by | read by |
//! | --- | --- | --- | --- |
//! | [`Endpoints`] | pod address -> interface, identity, rules | agent | `route`, `policy`, `overlay` |
//! | [`Frontends`] | virtual address, port -> Service, slots | agent | `service` |
//! | [`Maglev`] | slot -> backend | agent | `service` |
//! | [`Backends`] | backend -> address, port, state | agent | `service` |
//! | [`Affinities`] | Service, client -> backend | path; agent sweeps | `service` |
//! | [`SourceRanges`] | Service, address prefix -> allowed | agent | `service` |
//! | [`Connections`] | tuple -> state, translations | path; agent sweeps | `conntrack`, `nat` |
//! | [`Identities`] | address prefix -> identity | agent | `policy` |
//! | [`Policy`] | rules, identity, port prefix -> rule | agent | `policy` |
//! | [`Masquerades`] | remote, port -> pod, port | path; agent sweeps | `nat` |
//! | [`Fragments`] | packet -> ports | path; agent sweeps | `fragment` |
//! | [`Routes`] | address prefix -> next hop | agent | `route` |
//! | [`Nodes`] | node address -> node | agent | `overlay` |
//! | [`Homes`] | network namespace -> whose it is | agent | `socket` |
//! | [`Sockets`] | socket -> what it dialled, who answers | path; agent when it ends clients | `socket` |
//! | [`Virtuals`] | frontend, port -> slots | load balancer's element | `balance` |
//! | [`Ring`] | slot -> nodes that have it | load balancer's element | `balance` |
//! | [`Reals`] | number -> node behind a frontend | load balancer's element | `balance` |
//! | [`Pins`] | client, port, frontend -> node | `balance`; its element sweeps | `balance` |

use core::fmt::Debug;
use core::hash::Hash;
use core::marker::PhantomData;
use core::mem::size_of;

use crate::wire::{Address, Be32, Family, Mac, Plain, Port, V4, V6, plain};

mod balance;
mod policy;
mod service;
mod socket;

pub use balance::{Balancer, Pin, Pinned, Real, Slot, Virtual};
pub use policy::{PolicyKey, PolicyRow};
pub use service::{Affine, Affinity, Allowed, Backend, Frontend, Service, Slots, SourceRange};
pub use socket::{Cookie, Dialled, Home, Socket};

/// Declares host-order numbers that must not be mixed up.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident;)+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(transparent)]
        pub struct $name(pub u32);
        plain!($name);
    )+ };
}

numbers! {
    /// A network interface, as the kernel numbers it inside its network namespace.
    IfIndex;
    /// What policies can tell apart about an address: see [`Identity::HOST`] and its siblings.
    Identity;
    /// A node of the cluster, counted from 1 in the order of the cluster's nodes.
    NodeId;
    /// A row of [`Backends`]. 0 is never used.
    BackendId;
    /// A port of a Service. 0 is never used.
    ServiceId;
    /// A set of policy rules: pods with the same rules share it. 0 is never used.
    RuleSet;
    /// A rule of a policy, for the log: which one decided. 0: none.
    RuleId;
}

impl Identity {
    /// Matches whatever the rule is about: the key of rules that name no peer.
    pub const ANY: Self = Self(0);
    /// The pod's own node.
    pub const HOST: Self = Self(1);
    /// Any address that no policy tells from the others.
    pub const WORLD: Self = Self(2);
    /// Another node of the cluster.
    pub const REMOTE_NODE: Self = Self(6);
    /// The first that the planner gives to addresses policies tell apart.
    pub const FIRST: Self = Self(256);
}

/// How a table finds a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// By the whole key.
    Hash,
    /// By the longest prefix of the key's bits, first byte first.
    Longest,
    /// By a `u32` index; every index below the capacity has a row.
    Array,
}

/// A table of the packet path.
pub trait Table {
    /// What a row is found by.
    type Key: Plain + Eq + Hash + Debug;
    /// What is found.
    type Row: Plain + PartialEq + Debug;
    /// The table's name, in maps, metrics and cases.
    const NAME: &'static str;
    /// How rows are found.
    const SHAPE: Shape;
    /// Rows it can hold, unless the engine is told otherwise.
    const CAPACITY: u32;

    /// The row for this key.
    #[inline(always)]
    fn get<P: Holds<Self>>(platform: &P, key: &Self::Key) -> Option<Self::Row>
    where
        Self: Sized,
    {
        platform.row(key)
    }

    /// The same for what packet after packet asks of few keys: an engine may keep what it was told for as long as the
    /// agent writes nothing ([`Machine::generation`]). Not for what sockets ask: a packet may come in between, and
    /// what one of the two was told be kept under the key of the other.
    ///
    /// [`Machine::generation`]: crate::platform::Machine::generation
    #[inline(always)]
    fn often<P: Holds<Self>>(platform: &P, key: &Self::Key) -> Option<Self::Row>
    where
        Self: Sized,
    {
        platform.row_often(key)
    }
}

/// An engine that can read the table `T`.
pub trait Holds<T: Table> {
    /// The row for this key, found as [`Table::SHAPE`] says.
    fn row(&self, key: &T::Key) -> Option<T::Row>;
    /// The same, for [`Table::often`].
    #[inline(always)]
    fn row_often(&self, key: &T::Key) -> Option<T::Row> {
        self.row(key)
    }
}

/// An engine on which the path itself may change the hash table `T`.
pub trait Writes<T: Table>: Holds<T> {
    /// Changes the row in place, if it exists, and hands on what `change` returns.
    fn change<R>(&mut self, key: &T::Key, change: impl FnOnce(&mut T::Row) -> R) -> Option<R>;
    /// Adds the row if the key has none: of two CPUs with the same key exactly one succeeds.
    ///
    /// # Errors
    /// [`NotAdded`] says why it was not added.
    fn add(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded>;
    /// Adds or replaces the row.
    ///
    /// # Errors
    /// [`NotAdded::Full`] if it is new and the table is full.
    fn put(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded>;
    /// Removes the row, if it exists.
    fn remove(&mut self, key: &T::Key);
}

/// Why a row was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdded {
    /// The key already has a row.
    Taken,
    /// The table holds as many rows as it can.
    Full,
}

/// Declares table types: with `<A>`, one for each family.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident<A>, $key:ty => $row:ty, $label:literal, $label_v6:literal, $shape:ident, $capacity:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<A>(PhantomData<A>);
        impl<A: Address> Table for $name<A> {
            type Key = $key;
            type Row = $row;
            const NAME: &'static str = if A::VERSION == 4 { $label } else { $label_v6 };
            const SHAPE: Shape = Shape::$shape;
            const CAPACITY: u32 = $capacity;
        }
    };
    ($(#[$doc:meta])* $name:ident, $key:ty => $row:ty, $label:literal, $shape:ident, $capacity:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;
        impl Table for $name {
            type Key = $key;
            type Row = $row;
            const NAME: &'static str = $label;
            const SHAPE: Shape = Shape::$shape;
            const CAPACITY: u32 = $capacity;
        }
    };
}

table! {
    /// The pods of this node, by address.
    Endpoints<A>, A => Endpoint, "endpoints", "endpoints_v6", Hash, 1024
}
table! {
    /// The virtual addresses of Services.
    Frontends<A>, Frontend<A> => Service, "frontends", "frontends_v6", Hash, 65_536
}
table! {
    /// The slots of Services, one run after the other: see [`Slots`].
    /// Source: Eisenbud et al., "Maglev", NSDI 2016, section 3.4.
    Maglev<A>, u32 => BackendId, "maglev", "maglev_v6", Array, 1 << 20
}
table! {
    /// The endpoints of Services: one row for each port of a Service and each endpoint of it, also when two
    /// Services share an endpoint, so that a row's state is that Service's.
    Backends<A>, u32 => Backend<A>, "backends", "backends_v6", Array, 65_536
}
table! {
    /// Which backend a client was given, where a Service has session affinity.
    Affinities<A>, Affinity<A> => Affine, "affinities", "affinities_v6", Hash, 65_536
}
table! {
    /// From where a Service with `loadBalancerSourceRanges` may be reached. The key's address may be a prefix.
    SourceRanges<A>, SourceRange<A> => Allowed, "source_ranges", "source_ranges_v6", Longest, 16_384
}
table! {
    /// Flows that were let through, both directions of a flow in one row.
    Connections<A>, Tuple<A> => Connection<A>, "conntrack", "conntrack_v6", Hash, 131_072
}
table! {
    /// What policies can tell apart about addresses.
    Identities<A>, A => Identity, "identities", "identities_v6", Longest, 65_536
}
table! {
    /// What policies allow and deny. The key's last 24 bits, protocol and port, may be a prefix.
    Policy<A>, PolicyKey => PolicyRow, "policy", "policy_v6", Longest, 65_536
}
table! {
    /// Source ports of the node's address that are in use towards a remote address and port: for pods that speak
    /// to the world, and for clients outside whose Service's backend is elsewhere.
    /// Adding the row is the claim to the port.
    Masquerades<A>, Masquerade<A> => Masqueraded<A>, "masquerades", "masquerades_v6", Hash, 131_072
}
table! {
    /// Where addresses are that are not of a pod on this node.
    Routes<A>, A => Route, "routes", "routes_v6", Longest, 65_536
}
table! {
    /// The nodes whose encapsulated packets are accepted, by the address of their end of the tunnel
    /// ([`Address::to_v6`]).
    Nodes, V6 => NodeId, "nodes", Hash, 8192
}

table! {
    /// Ports of packets that come in fragments, of which only the first says them.
    Fragments<A>, Fragment<A> => Fragmented, "fragments", "fragments_v6", Hash, 8192
}

table! {
    /// Whose sockets are translated: the pods of this node and the node itself, by the cookie of the network
    /// namespace they live in. Empty where the node does not translate sockets.
    Homes<A>, Cookie => Home<A>, "homes", "homes_v6", Hash, 2048
}
table! {
    /// What sockets dialled that were led to a backend. A socket's rows go when it is closed.
    Sockets<A>, Socket => Dialled<A>, "sockets", "sockets_v6", Hash, 65_536
}
table! {
    /// Ports of frontends at the load balancer.
    Virtuals<A>, Frontend<A> => Virtual, "virtuals", "virtuals_v6", Hash, 16_384
}
table! {
    /// The slots of frontends' ports, one run after the other.
    Ring<A>, u32 => Slot, "ring", "ring_v6", Array, 1 << 20
}
table! {
    /// Nodes behind frontends' ports: one row for each node and port. 0 is never used.
    Reals<A>, u32 => Real<A>, "reals", "reals_v6", Array, 65_536
}
table! {
    /// Flows at the load balancer whose slot does not say who has them.
    Pins<A>, Pin<A> => Pinned, "pins", "pins_v6", Hash, 131_072
}

/// Row of [`Endpoints`]: a pod of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// The host side of its veth.
    pub interface: IfIndex,
    /// What policies can tell apart about it: what the tunnel says of what it sends.
    pub identity: Identity,
    /// The rules that apply to it.
    pub rules: RuleSet,
    /// The pod side of its veth.
    pub mac: Mac,
    /// Bits [`Endpoint::INGRESS`] and [`Endpoint::EGRESS`]: directions in which a policy has a say.
    pub isolated: u8,
    /// Bits [`Endpoint::AUDIT`] and [`Endpoint::INCOMPLETE`].
    pub flags: u8,
}

impl Endpoint {
    /// In [`Endpoint::isolated`]: what comes in needs a rule.
    pub const INGRESS: u8 = 1;
    /// In [`Endpoint::isolated`]: what goes out needs a rule.
    pub const EGRESS: u8 = 2;
    /// In [`Endpoint::flags`]: what policies deny it passes, and is noted.
    pub const AUDIT: u8 = 1;
    /// In [`Endpoint::flags`]: [`Policy`] has no room for its rules, so nobody knows what they say.
    pub const INCOMPLETE: u8 = 2;
}

/// Key of [`Connections`]: the two ends of a flow, the lower address (and port) first, so that both
/// directions find the same row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple<A> {
    /// The lower of the two addresses.
    pub low: A,
    /// The other.
    pub high: A,
    /// The port at the lower address.
    pub low_port: Port,
    /// The port at the other.
    pub high_port: Port,
    /// As in the IP header.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Row of [`Connections`]: a flow, after service translation and before masquerading. Or, of a flow that a Service
/// translated, where it went: under what the client dialled, with [`Connection::DIALLED`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Connection<A> {
    /// The virtual address its client dialled; zero if none. Under what was dialled: the backend's address.
    pub frontend: A,
    /// The virtual port; 0 if none. Under what was dialled: the backend's port.
    pub frontend_port: Port,
    /// The port of the node's address that stands for the client; 0 if none.
    pub masquerade_port: Port,
    /// When it ends unless another packet comes, in seconds of the engine's clock.
    pub expires_s: u32,
    /// Who answers, as a number of [`Backends`]; 0 where no Service was dialled.
    pub backend: BackendId,
    /// The client's own port, where another had to stand for it because two flows of one client would have
    /// been the same behind two frontends; else 0. Under what was dialled: that other port.
    pub client_port: Port,
    /// What is known of it: bits of `conntrack`.
    pub flags: u8,
    /// Where its client dialled one node and is answered straight from the backend's, one of the constants; else 0.
    pub direct: u8,
    /// Where its packets went last.
    pub way: Way,
}

/// In a row of [`Connections`]: which way the flow's packets took between a pod of this node and another node, for
/// those that follow. It holds as long as the agent has written nothing since ([`Machine::generation`]).
///
/// [`Machine::generation`]: crate::platform::Machine::generation
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    /// What the agent had written when it was found; 0: nothing is known.
    pub generation: u32,
    /// The host side of the pod's veth.
    pub interface: IfIndex,
    /// What policies can tell apart about the pod.
    pub identity: Identity,
    /// The other node's end of the tunnel ([`Address::to_v6`]).
    pub node: V6,
    /// The neighbour on the underlay that takes frames for that node; zero as long as none was sent.
    pub mac: Mac,
    /// The pod side of its veth.
    pub pod_mac: Mac,
    /// 1 where the pod is at the higher end of the row's key; else 0.
    pub high: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl<A> Connection<A> {
    /// In [`Connection::direct`]: on the node that was dialled, which sees no answers.
    pub const AWAY: u8 = 1;
    /// In [`Connection::direct`]: on the backend's node.
    pub const HERE: u8 = 2;
    /// In [`Connection::flags`]: the row is under what the client dialled, and says where that went.
    pub const DIALLED: u8 = 64;
}

/// Key of [`Masquerades`]: a reply's addresses as it reaches the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Masquerade<A> {
    /// The host outside.
    pub remote: A,
    /// Its port; 0 for ICMP.
    pub remote_port: Port,
    /// The port of the node's address; the identifier for ICMP.
    pub port: Port,
    /// As in the IP header.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Row of [`Masquerades`]: whom a port stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Masqueraded<A> {
    /// The pod, or the client outside.
    pub pod: A,
    /// Its own port.
    pub pod_port: Port,
    /// Zero.
    pub pad: [u8; 2],
}

/// Row of [`Routes`]: the next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Route {
    /// The node's end of the tunnel, for [`Route::REMOTE`] ([`Address::to_v6`]); else zero.
    pub node: V6,
    /// The node, for [`Route::REMOTE`] and [`Route::ROUTED`]; else 0.
    pub id: NodeId,
    /// The neighbour on the underlay that takes the frame; zero where there is none.
    pub mac: Mac,
    /// One of the constants.
    pub kind: u8,
    /// 1 where the address is a node's own, so that its node ports are there; else 0.
    pub own: u8,
}

impl Route {
    /// The node itself: hand over to its network stack.
    pub const HOST: u8 = 1;
    /// Another node, or a pod on it: encapsulate.
    pub const REMOTE: u8 = 2;
    /// Outside the cluster, with the node's address.
    pub const WORLD: u8 = 3;
    /// Outside the cluster, with the pod's own address.
    pub const NATIVE: u8 = 4;
    /// Belongs to the cluster, but to nobody in it.
    pub const BLACKHOLE: u8 = 5;
    /// Another node, or a pod on it: the underlay knows the way.
    pub const ROUTED: u8 = 6;
}

/// Key of [`Fragments`]: what all fragments of a packet have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Fragment<A> {
    /// Who sends.
    pub source: A,
    /// Who receives.
    pub target: A,
    /// The number the sender gave the packet: 16 bits in IPv4.
    pub identification: Be32,
    /// As in the IP header.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Row of [`Fragments`]: what the first one said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragmented {
    /// The source's.
    pub source_port: Port,
    /// The target's.
    pub target_port: Port,
    /// When it is forgotten, in seconds of the engine's clock.
    pub expires_s: u32,
}

/// What a node's programs must know of it; constant while they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Node {
    /// The node's end of the tunnel ([`Address::to_v6`]): its address on the underlay.
    pub underlay: V6,
    /// The interface to the underlay.
    pub uplink: IfIndex,
    /// The largest IP packet the underlay takes, in bytes.
    pub mtu: u32,
    /// Mixed into every hash, so that runs can be told apart and repeated.
    pub seed: u32,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
    /// The uplink's hardware address.
    pub mac: Mac,
    /// The UDP port of the tunnel.
    pub tunnel_port: Port,
    /// The first source port for masqueraded flows, host order.
    pub masquerade_first: u16,
    /// How many there are.
    pub masquerade_count: u16,
    /// The first node port of Services, host order.
    pub node_port_first: u16,
    /// How many there are.
    pub node_port_count: u16,
    /// One of the constants.
    pub encapsulation: u8,
    /// 1 where sockets are translated as they connect and send; else 0.
    pub sockets: u8,
    /// 1 where the load balancer puts packets for the node into others, as [`crate::balance`] does; else 0.
    pub balanced: u8,
    /// What becomes of a flow that was allowed when it began: [`Node::KEEP`] or [`Node::CUT`].
    pub established: u8,
    /// 1 where a program in the uplink's driver walks the path before the one behind it; else 0.
    pub accelerated: u8,
    /// Families of which nobody in the cluster has an address: [`Node::NO_V4`], [`Node::NO_V6`].
    pub absent: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl Node {
    /// There is no tunnel.
    pub const PLAIN: u8 = 0;
    /// RFC 7348.
    pub const VXLAN: u8 = 1;
    /// RFC 8926.
    pub const GENEVE: u8 = 2;
    /// In [`Node::established`]: it goes on. Policies judge a flow's first packet.
    pub const KEEP: u8 = 0;
    /// In [`Node::established`]: it ends when it is not allowed any more. Policies judge every packet.
    pub const CUT: u8 = 1;
    /// In [`Node::absent`].
    pub const NO_V4: u8 = 1;
    /// In [`Node::absent`].
    pub const NO_V6: u8 = 2;

    /// Whether anybody in the cluster has an address of the family. Of one that nobody has, the verifier follows no more
    /// than finds that out.
    #[inline(always)]
    pub fn speaks<A: Address>(&self) -> bool {
        let absent = match A::FAMILY {
            Family::V4 => Self::NO_V4,
            Family::V6 => Self::NO_V6,
        };
        self.absent & absent == 0
    }
}

/// Seconds without a packet after which a flow ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Timeouts {
    /// A TCP connection whose handshake is not over.
    pub tcp_opening_s: u32,
    /// A TCP connection whose handshake is over.
    pub tcp_s: u32,
    /// A TCP connection that both sides have finished, or one has reset.
    pub tcp_closed_s: u32,
    /// UDP.
    pub udp_s: u32,
    /// ICMP echoes.
    pub icmp_s: u32,
    /// For which a closed flow's masquerade port is given to no other.
    pub quarantine_s: u32,
    /// In which later fragments may follow the first.
    pub fragment_s: u32,
}

plain!(Endpoint, Route, Fragmented, Node, Timeouts, Way);
plain!(<A> Tuple, Connection, Masquerade, Masqueraded, Fragment);

const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<Tuple<V4>>() == 16 && size_of::<Tuple<V6>>() == 40);
const _: () = assert!(size_of::<Connection<V4>>() == 64 && size_of::<Connection<V6>>() == 76);
const _: () = assert!(size_of::<Masquerade<V4>>() == 12 && size_of::<Masquerade<V6>>() == 24);
const _: () = assert!(size_of::<Masqueraded<V4>>() == 8 && size_of::<Masqueraded<V6>>() == 20);
const _: () = assert!(size_of::<Route>() == 28 && size_of::<Fragmented>() == 8);
const _: () = assert!(size_of::<Fragment<V4>>() == 16 && size_of::<Fragment<V6>>() == 40);
const _: () = assert!(size_of::<Node>() == 80 && size_of::<Timeouts>() == 28);
