//! Policies, and the pods that they are about.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use testbed::oracle::{self, Direction};
use testbed::output::{Format, columns};
use userspace::model::{Cluster, ClusterPolicy, Pod};

use super::listed;

pub(super) fn policies(cluster: &Cluster, format: Format) -> String {
    let row = |policy: &NetworkPolicy| {
        let selected =
            |direction| cluster.pods.iter().filter(move |pod| oracle::isolates(policy, direction, pod));
        let metadata = &policy.metadata;
        [
            metadata.namespace.clone().unwrap_or_default(),
            metadata.name.clone().unwrap_or_default(),
            counted(selected(Direction::Ingress), format),
            counted(selected(Direction::Egress), format),
        ]
    };
    columns(["NAMESPACE", "NAME", "ISOLATES INGRESS", "ISOLATES EGRESS"], cluster.policies.iter().map(row))
}

pub(super) fn of_cluster(cluster: &Cluster, format: Format) -> String {
    let row = |policy: &ClusterPolicy| {
        let subjects = cluster.pods.iter().filter(|pod| oracle::concerns(policy, cluster, pod));
        [
            policy.kind.name().to_owned(),
            policy.name.clone(),
            policy.tier.to_string(),
            policy.priority.to_string(),
            counted(subjects, format),
            policy.ingress.len().to_string(),
            policy.egress.len().to_string(),
        ]
    };
    columns(
        ["KIND", "NAME", "TIER", "PRIORITY", "PODS", "INGRESS RULES", "EGRESS RULES"],
        cluster.cluster_policies.iter().map(row),
    )
}

/// How many pods there are; which, if it may be wide.
fn counted<'a>(pods: impl Iterator<Item = &'a Pod>, format: Format) -> String {
    match format {
        Format::Wide => listed(pods.map(Pod::id)),
        _ => pods.count().to_string(),
    }
}
