//! Who gets which address.
//!
//! An address that the input states is never changed and never given to anybody else. The others are
//! chosen here, lowest first, in the order of the input: the same input gives the same addresses.
//!
//! | range | first given | never given |
//! | --- | --- | --- |
//! | node subnet, pod subnet of `flat-dynamic` | the fifth | the first four and the last: the platform takes them in every subnet |
//! | pod range of a node, a /24 or a /64 | the third | the first; the second, by custom the gateway's; in IPv4 the last |
//! | frontends of the load balancer in the world | the second | the first; in IPv4 the last |
//! | service range | the third | the first; the second (`default/kubernetes`); the eleventh except to `kube-system/kube-dns` |
//!
//! Who takes what, by model:
//!
//! | model | a node that joins | a pod that starts |
//! | --- | --- | --- |
//! | `overlay` | an address, a pod range | an address of its node's range |
//! | `kubenet` | an address, a pod range, a route for it | an address of its node's range |
//! | `flat` | an address, and one for each pod it may ever run | one of those |
//! | `flat-dynamic` | an address, a batch of the pod subnet | one of its node's batches, which asks for more in time |
//!
//! Source: AKS, "IP address planning" of each model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod choose;
mod error;
mod pool;

pub use choose::{Wish, choose};
pub use error::Error;
pub use pool::{Batches, Draws, Join, Pool};

/// Pods that a node can be told to take at most; in `overlay` also what it takes unless told otherwise.
pub const MAX_PODS: u32 = 250;
/// Nodes that a cluster may have.
pub const MAX_NODES: u32 = 5000;
/// The Service that is the cluster's DNS.
pub const DNS: &str = "kube-system/kube-dns";
/// By convention the address of the cluster's DNS: the tenth after the first of the service range.
pub const DNS_OFFSET: u128 = 10;
/// Addresses of every subnet that the platform takes: the first four and the last.
pub const PLATFORM_TAKES: u128 = FIRST_IN_SUBNET + 1;
/// Routes that a route table of the cloud holds.
pub const ROUTES: u64 = 400;
/// Ports of the load balancer's outbound address that nodes can have, together. Source: Azure Load Balancer,
/// outbound rules.
pub const SNAT_PORTS: u32 = 64_000;
/// Addresses of the pod subnet that a node of `flat-dynamic` takes at once.
pub const BATCH: u32 = 16;
/// Free addresses below which a node of `flat-dynamic` asks for another batch.
pub const LOW_WATER: u32 = 8;
/// Addresses of a pod range that no pod gets: the first, the gateway's, in IPv4 the last.
pub const RANGE_TAKES: u128 = FIRST_POD + 1;

const FIRST_IN_SUBNET: u128 = 4;
const FIRST_POD: u128 = 2;
const FIRST_SERVICE: u128 = 2;

/// One of the two kinds of addresses, called as Kubernetes calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IpFamily {
    /// `IPv4`.
    V4,
    /// `IPv6`.
    V6,
}

impl IpFamily {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// That of a range.
    pub const fn of_range(range: IpNet) -> Self {
        match range {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The family's member of a list that has one of each at most.
    pub fn pick(self, ranges: &[IpNet]) -> Option<IpNet> {
        ranges.iter().copied().find(|range| Self::of_range(*range) == self)
    }

    /// Of the range that each node's pods get their addresses from, in `overlay` and `kubenet`.
    pub const fn pod_range_prefix(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// Bits of an address.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The addresses of a cluster that are in use, and where to look for the next free one.
#[derive(Clone, Debug, Default)]
pub struct Ipam {
    taken: HashSet<IpAddr>,
    pod_ranges: Disjoint<()>,
    next: HashMap<IpNet, u128>,
}

impl Ipam {
    /// Marks an address as in use; false if it was already.
    pub fn reserve(&mut self, address: IpAddr) -> bool {
        self.taken.insert(address)
    }

    /// Marks a range as some node's pod range.
    pub fn reserve_pod_range(&mut self, range: IpNet) {
        self.pod_ranges.insert(range, ());
    }

    /// An address for a node.
    ///
    /// # Errors
    /// All are in use.
    pub fn node(&mut self, subnet: IpNet, node: &str) -> Result<IpAddr, Error> {
        self.first_free(subnet, FIRST_IN_SUBNET, 1).ok_or_else(|| Error::NodeSubnetFull {
            node: node.into(),
            subnet,
            size: few(size(subnet)),
            usable: few(usable(subnet)),
        })
    }

    /// A range for a node's pods.
    ///
    /// # Errors
    /// All belong to nodes.
    pub fn pod_range(&mut self, pod_cidr: IpNet, node: &str) -> Result<IpNet, Error> {
        let prefix = IpFamily::of_range(pod_cidr).pod_range_prefix();
        let ranges = pod_ranges(pod_cidr);
        let span = size_of_prefix(IpFamily::of_range(pod_cidr).bits() - prefix);
        let mut index = self.next.get(&pod_cidr).copied().unwrap_or(0);
        while index < ranges {
            let first = nth(pod_cidr, index * span).expect("the index is below the number of ranges");
            let range = IpNet::new(first, prefix).expect("a prefix of its family");
            index += 1;
            if self.pod_ranges.insert(range, ()).is_none() {
                self.next.insert(pod_cidr, index);
                return Ok(range);
            }
        }
        Err(Error::PodRangesUsed { node: node.into(), pod_cidr, prefix, ranges: few(ranges) })
    }

    /// An address for a pod, out of its node's range.
    ///
    /// # Errors
    /// All are in use.
    pub fn pod(&mut self, range: IpNet, pod: &str, node: &str) -> Result<IpAddr, Error> {
        self.first_free(range, FIRST_POD, 1).ok_or_else(|| Error::PodRangeFull {
            pod: pod.into(),
            node: node.into(),
            range,
            size: few(size(range)),
            usable: few(size(range).saturating_sub(RANGE_TAKES)),
        })
    }

    /// A virtual address for a Service; for the cluster's DNS the one it has by convention, if that is free.
    ///
    /// # Errors
    /// All are in use.
    pub fn service(&mut self, range: IpNet, service: &str) -> Result<IpAddr, Error> {
        let dns = nth(range, DNS_OFFSET);
        if service == DNS
            && let Some(address) = dns.filter(|address| self.taken.insert(*address))
        {
            return Ok(address);
        }
        let mut address = self.first_free(range, FIRST_SERVICE, 0);
        if address.is_some() && address == dns {
            // It is kept for the DNS: given back, and passed over for good because the search goes on after it.
            let kept = address;
            address = self.first_free(range, FIRST_SERVICE, 0);
            if let Some(kept) = kept {
                self.taken.remove(&kept);
            }
        }
        let size = few(size(range));
        address.ok_or_else(|| Error::ServiceRangeFull { service: service.into(), range, size })
    }

    /// An address in the world for a Service, at the load balancer.
    ///
    /// # Errors
    /// All are in use.
    pub fn frontend(&mut self, range: IpNet, service: &str) -> Result<IpAddr, Error> {
        // A range of one or two addresses has nothing to spare for a network's own.
        let spare = u128::from(size(range) > 2);
        let last = if range.addr().is_ipv4() { spare } else { 0 };
        self.first_free(range, spare, last).ok_or_else(|| Error::FrontendsUsed {
            service: service.into(),
            name: "loadBalancer.frontendCIDRs",
            range,
            usable: few(size(range) - spare - last),
        })
    }

    /// An address of the node subnet for a Service, at an internal load balancer.
    ///
    /// # Errors
    /// All are in use.
    pub fn internal_frontend(&mut self, subnet: IpNet, service: &str) -> Result<IpAddr, Error> {
        self.first_free(subnet, FIRST_IN_SUBNET, 1).ok_or_else(|| Error::FrontendsUsed {
            service: service.into(),
            name: "nodeSubnet",
            range: subnet,
            usable: few(usable(subnet)),
        })
    }

    /// The lowest free address of a range, and takes it. `first` addresses at its beginning and `last` at its
    /// end are left alone.
    fn first_free(&mut self, range: IpNet, first: u128, last: u128) -> Option<IpAddr> {
        let mut offset = self.next.get(&range).copied().unwrap_or(first);
        let end = size(range).saturating_sub(last);
        while offset < end {
            let address = nth(range, offset)?;
            offset += 1;
            if self.taken.insert(address) {
                self.next.insert(range, offset);
                return Some(address);
            }
        }
        None
    }

    /// How many of a subnet's usable addresses are in use.
    fn in_use(&self, subnet: IpNet) -> u128 {
        let size = size(subnet);
        let usable = |address: &&IpAddr| {
            offset_in(subnet, **address)
                .is_some_and(|offset| (FIRST_IN_SUBNET..size.saturating_sub(1)).contains(&offset))
        };
        self.taken.iter().filter(usable).count() as u128
    }
}

/// Ranges no two of which overlap, and whose they are.
#[derive(Clone, Debug, Default)]
pub struct Disjoint<T>(BTreeMap<IpAddr, (IpNet, T)>);

impl<T: Clone> Disjoint<T> {
    /// Puts a range in, unless it overlaps one that is there: then that one comes back.
    pub fn insert(&mut self, range: IpNet, owner: T) -> Option<(IpNet, T)> {
        // Of ranges that don't overlap the last that begins before this one's end reaches farthest.
        let nearest = self.0.range(..=range.broadcast()).next_back().map(|(_, found)| found);
        if let Some(found) = nearest.filter(|(other, _)| overlap(*other, range)) {
            return Some(found.clone());
        }
        self.0.insert(range.network(), (range, owner));
        None
    }
}

/// They have an address in common.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Addresses of a range; the most that can be said of one that holds every address.
pub fn size(range: IpNet) -> u128 {
    size_of_prefix(IpFamily::of_range(range).bits() - range.prefix_len())
}

/// A count of what ran out, which is never large.
fn few(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn size_of_prefix(free_bits: u8) -> u128 {
    1_u128.checked_shl(free_bits.into()).unwrap_or(u128::MAX)
}

/// Addresses of a subnet that hosts can have.
pub fn usable(subnet: IpNet) -> u128 {
    size(subnet).saturating_sub(PLATFORM_TAKES)
}

/// Nodes' pod ranges in a pod CIDR.
pub fn pod_ranges(pod_cidr: IpNet) -> u128 {
    let prefix = IpFamily::of_range(pod_cidr).pod_range_prefix();
    prefix.checked_sub(pod_cidr.prefix_len()).map_or(0, size_of_prefix)
}

/// The address at this place of a range.
pub fn nth(range: IpNet, offset: u128) -> Option<IpAddr> {
    let in_range = offset < size(range);
    in_range.then(|| match range {
        IpNet::V4(range) => Ipv4Addr::from_bits(range.network().to_bits() + offset as u32).into(),
        IpNet::V6(range) => Ipv6Addr::from_bits(range.network().to_bits() + offset).into(),
    })
}

/// The place of an address in a range, if it is inside.
fn offset_in(range: IpNet, address: IpAddr) -> Option<u128> {
    match (range, address) {
        (IpNet::V4(range), IpAddr::V4(address)) if range.contains(&address) => {
            Some((address.to_bits() - range.network().to_bits()).into())
        }
        (IpNet::V6(range), IpAddr::V6(address)) if range.contains(&address) => {
            Some(address.to_bits() - range.network().to_bits())
        }
        _ => None,
    }
}
