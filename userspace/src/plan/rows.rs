//! The rows a node's tables must hold: what planning produces, and engines are brought to.

use std::collections::BTreeMap;

use dataplane::tables::{
    Allowed, Backend, BackendId, Cookie, Endpoint, Frontend, Home, Identity, Node, NodeId, PolicyKey,
    PolicyRow, Route, Service, ServiceId, SourceRange,
};
use dataplane::wire::{Address, V4, V6};
use serde::{Deserialize, Serialize};

/// A prefix of a longest-prefix table: the first `bits` bits of `key` count, the others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix<K> {
    /// The key.
    pub key: K,
    /// How many bits of it count.
    pub bits: u32,
}

/// Every row that the agent writes on one node, ordered, so that two plans can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRows {
    /// See [`dataplane::tables::Nodes`].
    pub nodes: BTreeMap<V6, NodeId>,
    /// The tables of IPv4.
    pub v4: Rows<V4>,
    /// The tables of IPv6.
    pub v6: Rows<V6>,
}

/// Those of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows<A: Address> {
    /// See [`dataplane::tables::Endpoints`].
    pub endpoints: BTreeMap<A, Endpoint>,
    /// See [`dataplane::tables::Frontends`].
    pub frontends: BTreeMap<FrontendKey<A>, Service>,
    /// See [`dataplane::tables::Maglev`]; shorter than the table: the rest is never read.
    pub maglev: Vec<BackendId>,
    /// See [`dataplane::tables::Backends`]; shorter than the table: the rest is never read.
    pub backends: Vec<Backend<A>>,
    /// See [`dataplane::tables::SourceRanges`].
    pub source_ranges: BTreeMap<RangePrefix<A>, Allowed>,
    /// See [`dataplane::tables::Identities`].
    pub identities: BTreeMap<Prefix<A>, Identity>,
    /// See [`dataplane::tables::Policy`]; the key's bytes in memory order, as the table compares them.
    pub policy: BTreeMap<PolicyPrefix, PolicyRow>,
    /// See [`dataplane::tables::Routes`].
    pub routes: BTreeMap<Prefix<A>, Route>,
    /// See [`dataplane::tables::Homes`].
    pub homes: BTreeMap<Cookie, Home<A>>,
}

impl<A: Address> Default for Rows<A> {
    fn default() -> Self {
        Self {
            endpoints: BTreeMap::new(),
            frontends: BTreeMap::new(),
            maglev: Vec::new(),
            backends: Vec::new(),
            source_ranges: BTreeMap::new(),
            identities: BTreeMap::new(),
            policy: BTreeMap::new(),
            routes: BTreeMap::new(),
            homes: BTreeMap::new(),
        }
    }
}

/// A key of [`Rows::frontends`] in an order: address, port (host order), protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey<A> {
    /// The virtual address; zero for a node port.
    pub address: A,
    /// Host order.
    pub port: u16,
    /// As in the IP header.
    pub protocol: u8,
}

impl<A: Address> From<FrontendKey<A>> for Frontend<A> {
    fn from(key: FrontendKey<A>) -> Self {
        Self {
            address: key.address,
            port: dataplane::wire::Be16::new(key.port),
            protocol: key.protocol,
            pad: 0,
        }
    }
}

impl<A: Address> From<Frontend<A>> for FrontendKey<A> {
    fn from(key: Frontend<A>) -> Self {
        Self { address: key.address, port: key.port.host(), protocol: key.protocol }
    }
}

/// A key of [`Rows::source_ranges`] in an order, with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangePrefix<A> {
    /// [`SourceRange::service`].
    pub service: u32,
    /// [`SourceRange::address`]; the bits that do not count are zero.
    pub address: A,
    /// How many bits of the address count.
    pub bits: u32,
}

impl<A: Address> From<RangePrefix<A>> for Prefix<SourceRange<A>> {
    fn from(prefix: RangePrefix<A>) -> Self {
        let key = SourceRange { service: ServiceId(prefix.service), address: prefix.address };
        Self { key, bits: u32::BITS + prefix.bits }
    }
}

/// A key of [`Rows::policy`] in an order, with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyPrefix {
    /// [`PolicyKey::rules`].
    pub rules: u32,
    /// [`PolicyKey::identity`].
    pub identity: u32,
    /// [`PolicyKey::direction`].
    pub direction: u8,
    /// [`PolicyKey::protocol`]; 0 where the prefix leaves it out.
    pub protocol: u8,
    /// [`PolicyKey::port`], host order; low bits 0 where the prefix leaves them out.
    pub port: u16,
    /// [`PolicyKey::FIXED_BITS`] to [`PolicyKey::BITS`].
    pub bits: u32,
}

impl From<PolicyPrefix> for Prefix<PolicyKey> {
    fn from(prefix: PolicyPrefix) -> Self {
        use dataplane::tables::RuleSet;
        let key = PolicyKey {
            rules: RuleSet(prefix.rules),
            identity: Identity(prefix.identity),
            direction: prefix.direction,
            protocol: prefix.protocol,
            port: dataplane::wire::Be16::new(prefix.port),
        };
        Self { key, bits: prefix.bits }
    }
}

/// Everything an engine needs to be one node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// Constants of the node.
    pub node: Node,
    /// The node's address of each family; zero where it has none.
    pub addresses: (V4, V6),
    /// Rows of its tables.
    pub rows: NodeRows,
    /// The names of its rules.
    pub rules: Rules,
}

/// What each [`dataplane::tables::RuleId`] stands for; index 0 is unused. Each family counts for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Those that records about IPv4 packets speak of.
    pub v4: Vec<RuleName>,
    /// As `v4`, for IPv6.
    pub v6: Vec<RuleName>,
}

/// A rule of a policy, as people name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleName {
    /// `namespace/name` of the NetworkPolicy.
    pub policy: String,
    /// `ingress[0]` or `egress[2]`: the rule's place in the spec.
    pub rule: String,
}
