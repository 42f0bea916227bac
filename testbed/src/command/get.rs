//! What a cluster is made of, as tables or documents.

use clap::ValueEnum;
use serde::Serialize;
use testbed::output::{self, Format, columns};
use userspace::model::{Cluster, ContainerPort, External, Labels, Node, Pod};

use super::{Answer, Source};

mod dataplane;
mod fabric;
mod policies;
mod services;

/// Show what a cluster is made of
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to show
    #[arg(value_enum)]
    kind: Kind,
    #[command(flatten)]
    source: Source,
    /// Only what is in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces, as it is without -n
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(aliases = ["node", "no"])]
    Nodes,
    #[value(aliases = ["namespace", "ns"])]
    Namespaces,
    #[value(aliases = ["pod", "po"])]
    Pods,
    #[value(aliases = ["service", "svc"])]
    Services,
    /// Who answers Services; -o wide: each endpoint, and whether it is used
    #[value(aliases = ["endpoint", "ep", "endpointslices"])]
    Endpoints,
    #[value(aliases = ["policy", "netpol", "networkpolicy", "networkpolicies"])]
    Policies,
    /// Policies of the whole cluster, in the order in which they are asked
    #[value(aliases = [
        "clusterpolicy", "cnp", "clusternetworkpolicy", "clusternetworkpolicies", "anp", "adminnetworkpolicy",
        "adminnetworkpolicies", "banp", "baselineadminnetworkpolicy", "baselineadminnetworkpolicies",
    ])]
    ClusterPolicies,
    #[value(aliases = ["external", "ext"])]
    Externals,
    /// What the emulated fabric of a cluster that is up did so far; on a bridge its load balancer
    Fabric,
    /// What the nodes' paths did so far in a cluster that is up on ebpf, and how full their tables are
    Dataplane,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let subject = args.source.subject()?;
    let mut cluster = subject.cluster().clone();
    if let Some(namespace) = &args.namespace {
        cluster.namespaces.retain(|name, _| name == namespace);
        cluster.pods.retain(|pod| pod.namespace == *namespace);
        cluster.services.retain(|service| service.namespace == *namespace);
        cluster.policies.retain(|policy| policy.metadata.namespace.as_ref() == Some(namespace));
    }
    let text = match args.kind {
        Kind::Nodes => show(args.output, &cluster.nodes, || nodes(&cluster, args.output))?,
        Kind::Namespaces => show(args.output, &cluster.namespaces, || namespaces(&cluster))?,
        Kind::Pods => show(args.output, &cluster.pods, || pods(&cluster.pods, args.output))?,
        Kind::Services => {
            show(args.output, &cluster.services, || services::services(&cluster.services, args.output))?
        }
        Kind::Endpoints => services::endpoints(&cluster.services, args.output)?,
        Kind::Policies => show(args.output, &cluster.policies, || policies::policies(&cluster, args.output))?,
        Kind::ClusterPolicies => {
            show(args.output, &cluster.cluster_policies, || policies::of_cluster(&cluster, args.output))?
        }
        Kind::Externals => show(args.output, &cluster.externals, || externals(&cluster.externals))?,
        Kind::Fabric => return fabric::run(&subject, args.output),
        Kind::Dataplane => return dataplane::run(&subject, args.output),
    };
    output::print(&text)?;
    Ok(Answer::Yes)
}

fn show(format: Format, items: &impl Serialize, table: impl FnOnce() -> String) -> anyhow::Result<String> {
    Ok(format.document(items)?.unwrap_or_else(table))
}

fn nodes(cluster: &Cluster, format: Format) -> String {
    let pods = |node: &Node| cluster.pods.iter().filter(|pod| pod.node == node.name).count().to_string();
    let range = |node: &Node| node.pod_cidrs.first().map_or("-".to_owned(), |range| range.to_string());
    if format == Format::Wide {
        let rows = cluster.nodes.iter().map(|node| {
            [node.name.clone(), node.address().to_string(), pods(node), range(node), labels(&node.labels)]
        });
        return columns(["NAME", "ADDRESS", "PODS", "POD CIDR", "LABELS"], rows);
    }
    let rows = cluster.nodes.iter().map(|node| [node.name.clone(), node.address().to_string(), pods(node)]);
    columns(["NAME", "ADDRESS", "PODS"], rows)
}

fn namespaces(cluster: &Cluster) -> String {
    let rows = cluster.namespaces.iter().map(|(name, of_it)| [name.clone(), labels(of_it)]);
    columns(["NAME", "LABELS"], rows)
}

fn pods(pods: &[Pod], format: Format) -> String {
    let row = |pod: &Pod| {
        let ready = match (pod.ready, pod.terminating) {
            (_, true) => "terminating",
            (true, _) => "yes",
            (false, _) => "no",
        };
        let own = if pod.host_network { " (node's)" } else { "" };
        let address = format!("{}{own}", pod.address());
        [pod.namespace.clone(), pod.name.clone(), ready.to_owned(), address, pod.node.clone()]
    };
    if format == Format::Wide {
        let rows = pods.iter().map(|pod| {
            let [namespace, name, ready, address, node] = row(pod);
            [namespace, name, ready, address, node, ports(&pod.ports), labels(&pod.labels)]
        });
        return columns(["NAMESPACE", "NAME", "READY", "ADDRESS", "NODE", "PORTS", "LABELS"], rows);
    }
    columns(["NAMESPACE", "NAME", "READY", "ADDRESS", "NODE"], pods.iter().map(row))
}

fn externals(externals: &[External]) -> String {
    let rows = externals.iter().map(|external| {
        let ports = if external.ports.is_empty() { "all".to_owned() } else { ports(&external.ports) };
        [external.name.clone(), external.address.to_string(), ports]
    });
    columns(["NAME", "ADDRESS", "PORTS"], rows)
}

fn ports(ports: &[ContainerPort]) -> String {
    listed(ports.iter().map(|port| {
        let name = port.name.as_ref().map_or(String::new(), |name| format!("{name}:"));
        format!("{name}{}/{}", port.port, port.protocol)
    }))
}

fn labels(labels: &Labels) -> String {
    listed(labels.iter().map(|(key, value)| format!("{key}={value}")))
}

/// With commas between them; a dash for nothing.
fn listed(items: impl Iterator<Item = String>) -> String {
    let text = items.collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".to_owned() } else { text }
}
