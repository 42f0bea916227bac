//! `iptables` and `nftables`: the kernel's own packet filter and connection tracking, filled as kube-proxy fills it.
//!
//! | name | Services | policies | text |
//! | --- | --- | --- | --- |
//! | `iptables` | chains that are walked in order | the same | the very text that [`chains`](super::chains) walks, for `iptables-restore` |
//! | `nftables` | verdict maps, chains of single Services | one map for each pod and direction | [`nftables`], for `nft -f -` |
//!
//! The kernel forwards, routes, tunnels (VXLAN), translates and masquerades ([`Layout::NETFILTER`]). A change is
//! loaded as a transaction of what differs, so that connections go on; but those over UDP to whom a Service leads no
//! more are forgotten.
//!
//! What these two cannot do, as kube-proxy cannot: keep the address of a client outside whose endpoint is on
//! another node (the node stands for it, so what policies say of such clients is left open), answer such a client
//! from there (`directReturn`), choose endpoints by Maglev, answer an echo request to a cluster address, and take
//! packets out of other IP packets from a load balancer. Of these [`check`] refuses `directReturn` and packets in
//! packets, and Geneve; with the others the cluster comes up, and endpoints are chosen by chance.

use userspace::model::{Cluster, Encapsulation, Model};

use super::{Dataplane, Name, chains};
use crate::doctor::filter;
use crate::netns::Netns;
use crate::topology::{Layout, Topology};

mod endpoints;
pub mod iptables;
pub mod nftables;
mod run;
mod stale;

pub use run::{Error, NFT, RESTORE, RESTORE_V6, Tool};
pub use stale::{forget, tracked};

/// What a cluster asks for that the kernel's packet filter does not do.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot bring the cluster to {dataplane}: {what} asks for {why}; choose `--dataplane ebpf` or `emulator`"
)]
pub struct Unable {
    dataplane: Name,
    what: &'static str,
    why: &'static str,
}

/// Checks that the dataplane does what a cluster asks for.
///
/// # Errors
/// The first setting that it cannot keep.
pub fn check(dataplane: Name, cluster: &Cluster) -> Result<(), Unable> {
    let settings = &cluster.settings;
    let geneve = settings.model == Model::Overlay && settings.encapsulation == Encapsulation::Geneve;
    let asked = [
        (geneve, "spec.encapsulation", "Geneve, and the kernel's tunnel here is VXLAN"),
        (
            settings.services.direct_return,
            "spec.services.directReturn",
            "answers past the node where a client came in, and netfilter translates on the way back",
        ),
        (
            chains::forwards_in_ip(cluster),
            "spec.loadBalancer.forward",
            "packets in packets, and nobody takes them out",
        ),
    ];
    match asked.into_iter().find(|(is_asked, ..)| *is_asked) {
        Some((_, what, why)) => Err(Unable { dataplane, what, why }),
        None => Ok(()),
    }
}

/// One of the two, on the nodes of a cluster.
#[derive(Debug)]
pub struct Netfilter {
    name: Name,
    /// Whose rules are in the kernel, and where.
    loaded: Option<Topology>,
}

impl Netfilter {
    /// The one of that name, which is `iptables` or `nftables`; nothing is loaded yet.
    pub fn new(name: Name) -> Self {
        Self { name, loaded: None }
    }
}

impl Dataplane for Netfilter {
    fn name(&self) -> Name {
        self.name
    }

    fn layout(&self) -> Layout {
        Layout::NETFILTER
    }

    fn build(&self, cluster: &Cluster) -> Result<Topology, super::Error> {
        check(self.name, cluster)?;
        Ok(Topology::build(cluster, self.layout())?)
    }

    fn start(&mut self, topology: &Topology) -> Result<(), super::Error> {
        apply(self.name, None, topology)?;
        self.loaded = Some(topology.clone());
        Ok(())
    }

    fn apply(&mut self, topology: &Topology) -> Result<(), super::Error> {
        let before = self.loaded.as_ref().map(Topology::cluster);
        apply(self.name, before, topology)?;
        self.loaded = Some(topology.clone());
        Ok(())
    }

    fn stop(&mut self) -> Result<(), super::Error> {
        let Some(topology) = self.loaded.take() else { return Ok(()) };
        Ok(remove(self.name, &topology)?)
    }
}

/// Brings the rules of every node to the cluster as it is now. `before` is the cluster whose rules are there; nodes
/// that it has not get all of theirs, as does a node that refuses the change alone.
///
/// # Errors
/// The first node whose rules were refused, and why; those before it have theirs, and it can be tried again.
pub fn apply(dataplane: Name, before: Option<&Cluster>, topology: &Topology) -> Result<(), Error> {
    let after = topology.cluster();
    for node in &after.nodes {
        let old = before.filter(|cluster| cluster.node(&node.name).is_some());
        let netns = topology.node(&node.name);
        match load(&netns, change(dataplane, old, after, &node.name)?) {
            // What is there is not what was thought: such as after a change that a later node refused.
            Err(Error::Refused { .. }) if old.is_some() => {
                load(&netns, change(dataplane, None, after, &node.name)?)?;
            }
            loaded => loaded?,
        }
        forget(&netns, before, after, &node.name)?;
    }
    Ok(())
}

/// What is refused because the kernel does not know something of it is said to be that.
fn load(netns: &Netns, told: Vec<(Tool, String)>) -> Result<(), Error> {
    told.into_iter().try_for_each(|(tool, rules)| {
        let refused = match tool.load(netns, &rules) {
            Err(refused @ Error::Refused { .. }) => refused,
            loaded => return loaded,
        };
        let lacking = filter::lacking(&tool, &rules);
        Err(lacking.map_or(refused, |lacking| Error::Lacking { netns: netns.name().to_owned(), lacking }))
    })
}

/// What the tools of a dataplane are told, to go from one cluster's rules of a node to another's. Empty where nothing
/// differs.
///
/// # Errors
/// The cluster has no such node.
pub fn change(
    dataplane: Name,
    before: Option<&Cluster>,
    after: &Cluster,
    node: &str,
) -> Result<Vec<(Tool, String)>, Error> {
    if dataplane == Name::Iptables {
        return Ok(iptables::change(before, after, node)?);
    }
    let old = before.map(|cluster| nftables::plan(cluster, node)).unwrap_or_default();
    let transaction = nftables::plan(after, node).change(&old);
    Ok(if transaction.is_empty() { Vec::new() } else { vec![(NFT, transaction)] })
}

/// Takes all rules off every node.
///
/// # Errors
/// The first node that keeps them, and why.
pub fn remove(dataplane: Name, topology: &Topology) -> Result<(), Error> {
    let cluster = topology.cluster();
    for node in &cluster.nodes {
        let told = match dataplane {
            Name::Iptables => iptables::removal(cluster),
            _ => vec![(NFT, nftables::plan(cluster, &node.name).removal())],
        };
        load(&topology.node(&node.name), told)?;
    }
    Ok(())
}
