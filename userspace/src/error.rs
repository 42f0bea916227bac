//! What can fail while a node's packet path is built and run: what was tried, on what, why.

/// Why an engine could not do what it was asked. A packet that is refused is no error: see
/// [`dataplane::Reason`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster needs more rows than the table has.
    #[error(
        "cannot fill table {table}: it holds {capacity} rows, the cluster needs {rows}: \
         give the table more room, or the cluster fewer objects"
    )]
    TableTooSmall {
        /// [`dataplane::tables::Table::NAME`].
        table: &'static str,
        /// Rows that were to go in.
        rows: usize,
        /// Rows that fit.
        capacity: u32,
    },
    /// A table was given room for more rows than it can index.
    #[error("cannot size table {table}: there is no such table: the tables are {known}")]
    UnknownTable {
        /// As it was asked for.
        table: String,
        /// The names there are.
        known: String,
    },
    /// A host has no address from which it could send there.
    #[error(
        "cannot send from {host} to {target}: it has no address of that family; give it one, or dial another"
    )]
    NoAddress {
        /// Who was to send.
        host: String,
        /// Where to.
        target: std::net::IpAddr,
    },
    /// A node told the world the address of a pod.
    #[error(
        "the path of node {node} told {target}, which is outside of the cluster, the address {pod} of a pod: \
         this is a mistake in the path; please report it with the cluster's objects"
    )]
    Leaked {
        /// The node.
        node: String,
        /// The pod's address.
        pod: std::net::IpAddr,
        /// Who got to know it.
        target: std::net::IpAddr,
    },
    /// What lies between the nodes.
    #[error(transparent)]
    Fabric(#[from] crate::fabric::Error),
    /// An agent is asked about a path that it has not brought up.
    #[error("cannot say anything of node {node}: its agent has no cluster yet; send it one first")]
    Idle {
        /// The node.
        node: String,
    },
    /// A link that the cluster's pods hang on is not there.
    #[error("cannot number link {link} of node {node}: {why}; build the node's links first")]
    NoLink {
        /// The node.
        node: String,
        /// Its link.
        link: String,
        /// What the kernel says.
        why: &'static str,
    },
    /// A cluster cannot be planned into rows.
    #[error(transparent)]
    Plan(#[from] crate::plan::Error),
    /// The engine in the kernel.
    #[error(transparent)]
    Kernel(#[from] crate::engine::kernel::Error),
    /// A name that is nowhere in the cluster.
    #[error(
        "cannot find {name:?}: no pod, node or host outside is called so: names are ns/pod, node:name, ext:name"
    )]
    Unknown {
        /// As it was asked for.
        name: String,
    },
}
