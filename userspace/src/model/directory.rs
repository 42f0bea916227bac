//! Everybody in a cluster by name: for who asks about more than a few.

use std::collections::HashMap;

use super::cluster::{Cluster, External, Node, Pod, Service};
use super::endpoint::{EndpointError, Found, Who, frontend};

/// The names of a cluster. What [`Cluster::find`] looks for in a list, this looks up.
#[derive(Clone, Debug)]
pub struct Directory<'a> {
    cluster: &'a Cluster,
    pods: HashMap<(&'a str, &'a str), &'a Pod>,
    services: HashMap<(&'a str, &'a str), &'a Service>,
    nodes: HashMap<&'a str, &'a Node>,
    externals: HashMap<&'a str, &'a External>,
}

impl<'a> Directory<'a> {
    /// Reads the names of a cluster.
    pub fn of(cluster: &'a Cluster) -> Self {
        let Cluster { pods, services, nodes, externals, .. } = cluster;
        let names = |namespace: &'a String, name: &'a String| (namespace.as_str(), name.as_str());
        Self {
            cluster,
            pods: pods.iter().map(|pod| (names(&pod.namespace, &pod.name), pod)).collect(),
            services: services.iter().map(|it| (names(&it.namespace, &it.name), it)).collect(),
            nodes: nodes.iter().map(|node| (node.name.as_str(), node)).collect(),
            externals: externals.iter().map(|external| (external.name.as_str(), external)).collect(),
        }
    }

    /// The cluster that it is about.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// The pod with this `namespace/name`.
    pub fn pod(&self, id: &str) -> Option<&'a Pod> {
        self.pods.get(&id.split_once('/')?).copied()
    }

    /// The Service with this `namespace/name`.
    pub fn service(&self, id: &str) -> Option<&'a Service> {
        self.services.get(&id.split_once('/')?).copied()
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&'a Node> {
        self.nodes.get(name).copied()
    }

    /// The host outside the cluster of this name.
    pub fn external(&self, name: &str) -> Option<&'a External> {
        self.externals.get(name).copied()
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// As [`Cluster::find`].
    pub fn find(&self, who: &Who) -> Result<Found<'a>, EndpointError> {
        let found = match who {
            Who::Pod(id) => self.pod(id).map(Found::Pod),
            Who::Node(name) => self.node(name).map(Found::Node),
            Who::External(name) => self.external(name).map(Found::External),
            Who::Service(id) => self.service(id).map(Found::Service),
            Who::Frontend(id, way) => match self.service(id) {
                Some(service) => return frontend(service, *way),
                None => None,
            },
        };
        // The list knows the nearest names.
        found.map_or_else(|| self.cluster.find(who), Ok)
    }
}
