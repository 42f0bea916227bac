//! Who gets which address, in the `overlay` model.
//!
//! An address that the input states is never changed and never given to anybody else. The others are
//! chosen here, lowest first, in the order of the input: the same input gives the same addresses.
//!
//! | range | first given | never given |
//! | --- | --- | --- |
//! | node subnet | .4 | the first four and the last: the platform takes them in every subnet |
//! | pod range of a node, a /24 | .2 | .0 and .255; .1, by custom the gateway's; .254 is the last |
//! | service range | .2 | .0; .1 (`default/kubernetes`); .10 except to `kube-system/kube-dns` |
//!
//! Source: Azure CNI Overlay, "IP address planning" (a /24 for each node, 250 pods, 5 reserved addresses).

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Of the range that each node's pods get their addresses from.
pub const POD_RANGE_PREFIX: u8 = 24;
/// Pods that a node takes unless the user says less; also the most it can be told to take.
pub const MAX_PODS: u32 = 250;
/// Nodes that a cluster may have.
pub const MAX_NODES: u32 = 5000;
/// By convention the address of the cluster's DNS: the tenth of the service range.
pub const DNS_OFFSET: u32 = 10;

const FIRST_NODE: u32 = 4;
const FIRST_POD: u32 = 2;
const FIRST_SERVICE: u32 = 2;

/// A range that is too small for what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// All of the node subnet is in use.
    #[error(
        "cannot give node {node} an address: subnet {subnet} has {usable} usable ({size} less the 5 that the platform takes), all in use: choose a larger nodeSubnet"
    )]
    NodeSubnetFull {
        /// Whose turn it was.
        node: String,
        /// Where nodes get their addresses.
        subnet: Ipv4Net,
        /// Addresses in it.
        size: u64,
        /// Those that a node can have.
        usable: u64,
    },
    /// Every /24 of the pod CIDR belongs to a node.
    #[error(
        "cannot give node {node} a pod range: podCIDR {pod_cidr} holds {ranges} of size /24, one for each node, all in use: choose a larger podCIDR"
    )]
    PodRangesUsed {
        /// Whose turn it was.
        node: String,
        /// Where the nodes' ranges come from.
        pod_cidr: Ipv4Net,
        /// /24s in it.
        ranges: u64,
    },
    /// A node's pod range has no address left.
    #[error(
        "cannot give pod {pod} an address: pod range {range} of node {node} has {usable} usable ({size} less the network, gateway and broadcast addresses), all in use: place it on another node"
    )]
    PodRangeFull {
        /// Whose turn it was.
        pod: String,
        /// Where it runs.
        node: String,
        /// That node's range.
        range: Ipv4Net,
        /// Addresses in it.
        size: u64,
        /// Those that a pod can have.
        usable: u64,
    },
    /// All nodes have as many pods as they take.
    #[error(
        "cannot place pod {pod}: {nodes} nodes take {max_pods} pods each (maxPods), all {capacity} places are in use: add a node"
    )]
    NodesFull {
        /// Whose turn it was.
        pod: String,
        /// How many there are.
        nodes: u64,
        /// What each takes.
        max_pods: u32,
        /// Their product.
        capacity: u64,
    },
    /// All of the service range is in use.
    #[error(
        "cannot give service {service} an address: serviceCIDR {range} has {size} addresses, all in use or reserved (.0, .1 and .{DNS_OFFSET}): choose a larger serviceCIDR"
    )]
    ServiceRangeFull {
        /// Whose turn it was.
        service: String,
        /// Where Services get their addresses.
        range: Ipv4Net,
        /// Addresses in it.
        size: u64,
    },
    /// No range could be found that holds what the input states and overlaps nothing else.
    #[error(
        "cannot choose a {range}: none holds every address that the input states and overlaps nothing else: state {range} in a Testbed object, or change the addresses"
    )]
    NoRange {
        /// `nodeSubnet`, `podCIDR` or `serviceCIDR`.
        range: &'static str,
    },
}

/// The addresses of a cluster that are in use, and where to look for the next free one.
#[derive(Clone, Debug, Default)]
pub struct Ipam {
    taken: HashSet<Ipv4Addr>,
    pod_ranges: Vec<Ipv4Net>,
    next: HashMap<Ipv4Net, u32>,
}

impl Ipam {
    /// Marks an address as in use; false if it was already.
    pub fn reserve(&mut self, address: Ipv4Addr) -> bool {
        self.taken.insert(address)
    }

    /// Marks a range as some node's pod range.
    pub fn reserve_pod_range(&mut self, range: Ipv4Net) {
        self.pod_ranges.push(range);
    }

    /// An address for a node.
    pub fn node(&mut self, subnet: Ipv4Net, node: &str) -> Result<Ipv4Addr, Error> {
        let size = size(subnet);
        self.first_free(subnet, FIRST_NODE, 1).ok_or_else(|| Error::NodeSubnetFull {
            node: node.into(),
            subnet,
            size,
            usable: size.saturating_sub(u64::from(FIRST_NODE) + 1),
        })
    }

    /// A /24 for a node's pods.
    pub fn pod_range(&mut self, pod_cidr: Ipv4Net, node: &str) -> Result<Ipv4Net, Error> {
        let ranges = 1_u64 << POD_RANGE_PREFIX.saturating_sub(pod_cidr.prefix_len());
        let used = Error::PodRangesUsed { node: node.into(), pod_cidr, ranges };
        let from = self.next.get(&pod_cidr).copied().unwrap_or(0);
        let candidates = pod_cidr.subnets(POD_RANGE_PREFIX).map_err(|_| used.clone())?;
        for (index, range) in (from..).zip(candidates.skip(from as usize)) {
            if !self.pod_ranges.iter().any(|taken| overlap(*taken, range)) {
                self.next.insert(pod_cidr, index + 1);
                self.pod_ranges.push(range);
                return Ok(range);
            }
        }
        Err(used)
    }

    /// An address for a pod, out of its node's range.
    pub fn pod(&mut self, range: Ipv4Net, pod: &str, node: &str) -> Result<Ipv4Addr, Error> {
        let size = size(range);
        self.first_free(range, FIRST_POD, 1).ok_or_else(|| Error::PodRangeFull {
            pod: pod.into(),
            node: node.into(),
            range,
            size,
            usable: size.saturating_sub(u64::from(FIRST_POD) + 1),
        })
    }

    /// A virtual address for a Service; for the cluster's DNS the one it has by convention, if that is free.
    pub fn service(&mut self, range: Ipv4Net, service: &str) -> Result<Ipv4Addr, Error> {
        let dns = nth(range, DNS_OFFSET);
        if service == "kube-system/kube-dns"
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
        address.ok_or_else(|| Error::ServiceRangeFull { service: service.into(), range, size: size(range) })
    }

    /// The lowest free address of a range, and takes it. `first` addresses at its beginning and `last` at its
    /// end are left alone.
    fn first_free(&mut self, range: Ipv4Net, first: u32, last: u32) -> Option<Ipv4Addr> {
        let from = self.next.get(&range).copied().unwrap_or(first);
        let end = size(range).saturating_sub(u64::from(last));
        let mut offset = from;
        while u64::from(offset) < end {
            let address = nth(range, offset)?;
            offset += 1;
            if self.taken.insert(address) {
                self.next.insert(range, offset);
                return Some(address);
            }
        }
        None
    }
}

/// What is known of a range before it is chosen.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// Its name in a `Testbed` object, for errors.
    pub name: &'static str,
    /// Taken if nothing speaks against it.
    pub default: Ipv4Net,
    /// Addresses (as /32) and parts of it that the input states.
    pub holds: &'a [Ipv4Net],
    /// It has to hold them; otherwise some may lie outside where there is no other way.
    pub must_hold: bool,
}

/// Chooses a range that the user hasn't fixed.
///
/// 1. The default, where it holds all that is stated.
/// 2. What is stated, widened to a /16, else to a /24, else not at all.
/// 3. If some may lie outside: the default after all, then its neighbours in 10.0.0.0/8.
///
/// The first of these wins that overlaps nothing in `avoid`. A range that must hold what is stated may, as
/// the last way out, overlap single addresses in `avoid`: in a flat network pods and nodes share a subnet.
pub fn choose(wish: &Wish<'_>, avoid: &[Ipv4Net]) -> Result<Ipv4Net, Error> {
    let free = |range: &Ipv4Net| !avoid.iter().any(|other| overlap(*range, *other));
    let mut candidates = Vec::new();
    // 1.
    if wish.holds.iter().all(|part| wish.default.contains(part)) {
        candidates.push(wish.default);
    }
    // 2.
    let cover = cover(wish.holds);
    if let Some(cover) = cover {
        candidates.extend([16, 24, 32].map(|prefix| with_free_ends(widen(cover, prefix), wish.holds)));
    }
    // 3.
    if wish.holds.is_empty() || !wish.must_hold {
        candidates.extend(neighbours(wish.default));
    }
    let last_way_out = || {
        let cover = with_free_ends(cover.filter(|_| wish.must_hold)?, &[wish.holds, avoid].concat());
        let whole_ranges = avoid.iter().filter(|other| other.prefix_len() < 32);
        let overlaps = whole_ranges.into_iter().any(|other| overlap(*other, cover));
        (cover.prefix_len() >= 8 && !overlaps).then_some(cover)
    };
    let range =
        candidates.into_iter().filter(|range| range.prefix_len() >= 8).find(free).or_else(last_way_out);
    range.ok_or(Error::NoRange { range: wish.name })
}

/// The smallest range that holds all of these; none if there are none.
fn cover(parts: &[Ipv4Net]) -> Option<Ipv4Net> {
    let mut parts = parts.iter();
    let first = parts.next()?.trunc();
    Some(parts.fold(first, |mut cover, part| {
        while !cover.contains(part) {
            // A /0 holds everything, so there is always a larger one here.
            cover = cover.supernet().unwrap_or_default();
        }
        cover
    }))
}

/// The range, or one around it, whose network and broadcast addresses are nobody's.
fn with_free_ends(mut range: Ipv4Net, used: &[Ipv4Net]) -> Ipv4Net {
    let is_end = |range: &Ipv4Net, part: &Ipv4Net| {
        part.prefix_len() == 32 && (part.addr() == range.network() || part.addr() == range.broadcast())
    };
    while let Some(wider) = range.supernet().filter(|_| used.iter().any(|part| is_end(&range, part))) {
        range = wider;
    }
    range
}

/// The range with a prefix of at most this length around another.
fn widen(range: Ipv4Net, prefix: u8) -> Ipv4Net {
    Ipv4Net::new(range.addr(), range.prefix_len().min(prefix)).expect("a prefix of at most 32").trunc()
}

/// A range, and those after it in 10.0.0.0/8 with the same last two bytes.
fn neighbours(range: Ipv4Net) -> impl Iterator<Item = Ipv4Net> {
    let [_, second, third, fourth] = range.addr().octets();
    let prefix = range.prefix_len().max(16);
    std::iter::once(range).chain((1..=255).map(move |step: u8| {
        let address = Ipv4Addr::new(10, second.wrapping_add(step), third, fourth);
        Ipv4Net::new(address, prefix).expect("a prefix of at most 32").trunc()
    }))
}

/// They have an address in common.
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn size(range: Ipv4Net) -> u64 {
    1 << (32 - range.prefix_len())
}

fn nth(range: Ipv4Net, offset: u32) -> Option<Ipv4Addr> {
    let in_range = u64::from(offset) < size(range);
    in_range.then(|| Ipv4Addr::from_bits(range.network().to_bits() + offset))
}
