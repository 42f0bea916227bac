//! What can stand in the way of a plan.

use dataplane::tables::Table;

/// Why a cluster, or a node of it, could not be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No node of the cluster has this name.
    #[error("cannot plan node {node}: the cluster has no such node: its nodes are {known}")]
    UnknownNode {
        /// The name that was asked for.
        node: String,
        /// The names there are.
        known: String,
    },
    /// A pod of the node has no interface.
    #[error("cannot plan node {node}: nobody said which interface leads to pod {pod}: create its link first")]
    NoInterface {
        /// The node.
        node: String,
        /// `namespace/name`.
        pod: String,
    },
    /// A policy says something that Kubernetes would have refused.
    #[error("cannot read {policy}: {part}: {why}")]
    Policy {
        /// `NetworkPolicy namespace/name`, or `ClusterNetworkPolicy name`.
        policy: String,
        /// The field, or the rule.
        part: String,
        /// What is wrong with it.
        why: String,
    },
    /// A table is too small for what it would have to hold.
    #[error("cannot plan {what}: table {table} holds {capacity} rows, {needed} are needed: {remedy}")]
    TableFull {
        /// The part of the plan.
        what: String,
        /// The table's name.
        table: &'static str,
        /// Rows it would have to hold.
        needed: usize,
        /// Rows it can hold.
        capacity: u32,
        /// What would make them fewer.
        remedy: &'static str,
    },
}

impl Error {
    /// The table `T` is too small.
    pub(super) fn full<T: Table>(what: &str, needed: usize) -> Self {
        Self::table_full(what, T::NAME, needed, T::CAPACITY)
    }
    pub(super) fn table_full(what: &str, table: &'static str, needed: usize, capacity: u32) -> Self {
        let remedy = match table {
            "endpoints" | "endpoints_v6" => "place fewer pods on the node",
            "frontends" | "frontends_v6" => "ask for fewer Services, or fewer ports of them",
            "maglev" | "maglev_v6" => {
                "set a smaller services.maglevTableSize, or ask for fewer Services with many endpoints"
            }
            "backends" | "backends_v6" => "ask for fewer endpoints behind Services",
            "source_ranges" | "source_ranges_v6" => "ask for fewer loadBalancerSourceRanges",
            "identities" | "identities_v6" => {
                "let policies tell fewer addresses apart: fewer ipBlocks, fewer distinct peers"
            }
            "policy" | "policy_v6" => "let policies tell fewer peers apart, or name fewer port ranges",
            "nodes" => "ask for fewer nodes",
            _ => "ask for fewer nodes, or for pods inside their nodes' ranges",
        };
        Self::TableFull { what: what.to_owned(), table, needed, capacity, remedy }
    }
}
