//! `nftables`: Services in verdict maps, as kube-proxy's newer mode keeps them, and policies worked out into one map
//! for each pod and direction.
//!
//! | table | what is in it |
//! | --- | --- |
//! | `kube-proxy`, for `ip` and `ip6` | Services ([`services`]) |
//! | `network-policy`, for `ip` and `ip6` | policies, and what leaves under the node's address ([`policies`]) |

use std::net::IpAddr;

use userspace::model::Cluster;

mod decide;
mod peers;
mod policies;
mod ruleset;
mod services;

pub use ruleset::Ruleset;

/// A match on links that lead to pods of the node.
const PODS: &str = "\"pp*\"";
/// A set of the links by which packets come from elsewhere.
const OUTSIDE: &str = "{ \"eth0\", \"vxlan0\" }";

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Four,
    Six,
}

impl Family {
    /// The word for its tables and headers.
    const fn word(self) -> &'static str {
        match self {
            Self::Four => "ip",
            Self::Six => "ip6",
        }
    }

    /// The type of its addresses in sets.
    const fn address_type(self) -> &'static str {
        match self {
            Self::Four => "ipv4_addr",
            Self::Six => "ipv6_addr",
        }
    }

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::Four)
    }
}

/// The rules of a node; none if the cluster has no node of that name.
pub fn plan(cluster: &Cluster, node: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let Some(node) = cluster.node(node) else { return ruleset };
    for family in [Family::Four, Family::Six] {
        let has_pods = cluster.pods.iter().flat_map(|pod| &pod.addresses).any(|it| family.has(*it));
        if !has_pods && !node.addresses.iter().any(|it| family.has(*it)) {
            continue;
        }
        ruleset.add(format!("{} kube-proxy", family.word()), services::table(cluster, node, family));
        ruleset.add(format!("{} network-policy", family.word()), policies::table(cluster, node, family));
    }
    ruleset
}
