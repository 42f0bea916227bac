//! What the user asks for: Kubernetes objects in, [`Cluster`] out.
//!
//! ```text
//! files -> read (text to values) -> strict (values to typed objects) -> validate (each by itself)   Objects
//!       -> workload (pods) -> place, service (names and addresses) -> resolve                       Cluster
//! ```

use std::path::PathBuf;

pub mod amount;
mod assign;
pub mod capacity;
mod choice;
pub mod cluster;
mod cluster_policy;
mod directory;
mod endpoint;
mod error;
mod fabric;
mod masquerade;
mod object;
mod own;
mod place;
mod ranges;
mod read;
mod resolve;
mod schema;
mod selector;
mod service;
pub mod settings;
mod stated;
mod strict;
mod syntax;
mod tier;
mod tiers;
mod validate;
mod words;
mod workload;

pub use cluster::*;
pub use cluster_policy::{AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy};
pub use directory::Directory;
pub use endpoint::{Endpoint, EndpointError, Found, Port, Way, Who};
pub use error::{Error, Origin};
pub(crate) use fabric::{PROBES, PROBES_V6, inside as virtual_network};
pub use object::{Change, Entry, Key, Kind, Object, Objects};
pub use own::{External as ExternalObject, ExternalPort, ExternalSpec, Testbed, TestbedSpec};
pub use schema::schema;
pub use settings::*;
pub use tier::{Action, ClusterPolicy, PodPeer, Tier, TierPeer, TierPort, TierRule};

/// The cluster that files, directories and standard input (`-`) describe.
///
/// # Errors
/// Everything that is wrong with single objects, all at once; or between them; or that addresses ran out.
pub fn load(paths: &[PathBuf]) -> Result<Cluster, Error> {
    Objects::read(paths)?.resolve(None)
}

/// The cluster that a text describes; `name` is what errors call it.
///
/// # Errors
/// As [`load`].
pub fn load_text(name: &str, text: &str) -> Result<Cluster, Error> {
    Objects::parse(name, text)?.resolve(None)
}
