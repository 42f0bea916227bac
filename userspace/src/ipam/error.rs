//! What runs out, with the arithmetic of it. What ran out is small enough to be counted in 64 bits.

use ipnet::IpNet;

use super::{BATCH, DNS_OFFSET, ROUTES};

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
        subnet: IpNet,
        /// Addresses in it.
        size: u64,
        /// Those that a node can have.
        usable: u64,
    },
    /// What is left of the node subnet is less than a node of `flat` reserves.
    #[error(
        "cannot give node {node} addresses: subnet {subnet} has {usable} usable, {reserved} reserved (flat reserves {each} per node; {fit} nodes fit): choose a larger nodeSubnet, or a smaller maxPods"
    )]
    ReservationTooLarge {
        /// Whose turn it was.
        node: String,
        /// Where nodes and pods get their addresses.
        subnet: IpNet,
        /// Those that hosts can have.
        usable: u64,
        /// Those that are no longer to be had.
        reserved: u64,
        /// One for the node, and one for each pod it may run.
        each: u32,
        /// Nodes that can join an empty subnet.
        fit: u64,
    },
    /// Every pod range belongs to a node.
    #[error(
        "cannot give node {node} a pod range: podCIDR {pod_cidr} holds {ranges} of size /{prefix}, one for each node, all in use: choose a larger podCIDR"
    )]
    PodRangesUsed {
        /// Whose turn it was.
        node: String,
        /// Where the nodes' ranges come from.
        pod_cidr: IpNet,
        /// Of each of them.
        prefix: u8,
        /// How many there are.
        ranges: u64,
    },
    /// The route table of `kubenet` has no room for the node's pod range.
    #[error(
        "cannot give node {node} a route: a route table holds {ROUTES}, {each} for each node{}, so {fit} nodes fit: choose another model", taken(.own)
    )]
    RouteTableFull {
        /// Whose turn it was.
        node: String,
        /// One for each of its pod ranges.
        each: u64,
        /// The user's own routes, which are in the same table.
        own: u64,
        /// Nodes that there is room for.
        fit: u64,
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
        range: IpNet,
        /// Addresses in it.
        size: u64,
        /// Those that a pod can have.
        usable: u64,
    },
    /// All of what a node of `flat` has reserved is in use.
    #[error(
        "cannot give pod {pod} an address: node {node} reserved {reserved} for its pods when it joined (maxPods), all in use: place it on another node, or choose a larger maxPods"
    )]
    ReservationUsed {
        /// Whose turn it was.
        pod: String,
        /// Where it runs.
        node: String,
        /// What it has.
        reserved: u32,
    },
    /// The batches of a node of `flat-dynamic` are in use, and there is no other.
    #[error(
        "cannot start pod {pod}: node {node} has no free address, and pod subnet {subnet} has {left} left, fewer than a batch of {BATCH}: of {usable} usable {running} are pods', {} are stranded ({left} too few for a batch, {elsewhere} in batches of other nodes): choose a larger podSubnet", .left + .elsewhere
    )]
    PodSubnetUsed {
        /// Whose turn it was.
        pod: String,
        /// Where it was to run.
        node: String,
        /// Where pods get their addresses.
        subnet: IpNet,
        /// Those that hosts can have.
        usable: u64,
        /// Those in no batch.
        left: u64,
        /// Pods that have one.
        running: u64,
        /// Those that other nodes have and don't need now.
        elsewhere: u64,
    },
    /// A node of `flat-dynamic` has as many addresses as pods it takes.
    #[error(
        "cannot start pod {pod}: node {node} has batches for the {max_pods} pods that it takes (maxPods), all in use: place it on another node, or choose a larger maxPods"
    )]
    BatchesUsed {
        /// Whose turn it was.
        pod: String,
        /// Where it was to run.
        node: String,
        /// What the node takes.
        max_pods: u32,
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
        range: IpNet,
        /// Addresses in it.
        size: u64,
    },
    /// All of the range for frontends of the load balancer is in use.
    #[error(
        "cannot give service {service} a frontend: {name} {range} has {usable} usable addresses, all in use: choose a larger {name}"
    )]
    FrontendsUsed {
        /// Whose turn it was.
        service: String,
        /// What the range is called in a Testbed object.
        name: &'static str,
        /// Where such frontends get their addresses.
        range: IpNet,
        /// Those that a frontend can have.
        usable: u64,
    },
    /// The ports of a node that a pod asks for are in use on every node that has room.
    #[error(
        "cannot place pod {pod}: every node with room for it has its host port in use ({ports}): add a node, or remove the hostPort"
    )]
    HostPortsTaken {
        /// Whose turn it was.
        pod: String,
        /// What it asks for.
        ports: String,
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

fn taken(own: &u64) -> String {
    if *own == 0 { String::new() } else { format!(" and {own} taken by fabric.routes") }
}
