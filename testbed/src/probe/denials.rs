//! Where denials come from: which policy isolates which pod, or which rule denies, and whom that keeps away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use dataplane::Reason;
use userspace::engine::emulator::Matrix;
use userspace::engine::emulator::matrix::{Direction, Verdict as Judged, Why};
use userspace::error::Error;
use userspace::model::{Cluster, Port, Who};
use userspace::observe::nearest::nearest;

use super::{Flow, Grid, Verdict};
use crate::oracle::Oracle;

/// Names of a list that are shown; of more their number.
const SHOWN: usize = 6;

/// Where the denials of a grid come from.
#[derive(Clone, Debug, Default)]
pub struct Denials {
    /// By the port that was dialled.
    by_port: BTreeMap<Port, Vec<Denial>>,
}

/// One source of denials.
#[derive(Clone, Debug)]
struct Denial {
    direction: Direction,
    why: Why,
    /// The pods that it is about.
    judged: BTreeSet<Who>,
    /// Whom it keeps away, or from whom, at the port that policies see.
    peers: BTreeMap<Who, Port>,
}

/// What one pod's end of flows says against them, before pods that say the same are put together.
type Said = BTreeMap<(Port, Direction, Why, Who), BTreeMap<Who, Port>>;

impl Denials {
    /// Finds the sources of what policies denied in a grid.
    ///
    /// # Errors
    /// The cluster cannot be planned.
    pub fn of(cluster: &Cluster, grid: &Grid) -> Result<Self, Error> {
        let denied = |row: &&super::Row| {
            let by_policy =
                matches!(row.measured.reason, None | Some(Reason::PolicyDenied | Reason::PolicyFull));
            row.measured.verdict == Verdict::Deny && by_policy
        };
        let behind = Behind::of(cluster);
        let denied: Vec<(&Flow, Vec<(Who, Port)>)> =
            grid.rows.iter().filter(denied).map(|row| (&row.flow, behind.ends(&row.flow))).collect();
        let ports: BTreeSet<Port> = denied.iter().flat_map(|(_, ends)| ends).map(|(_, port)| *port).collect();
        let ports: Vec<Port> = ports.into_iter().collect();
        if ports.is_empty() {
            return Ok(Self::default());
        }
        let matrix = Matrix::of(cluster, &ports)?;
        let mut said = Said::new();
        for (flow, ends) in denied {
            let dialled = Port { number: flow.port, protocol: flow.protocol };
            for (to, port) in ends {
                let at = ports.binary_search(&port).ok();
                let (Some(source), Some(target), Some(at)) =
                    (matrix.place(&flow.from), matrix.place(&to), at)
                else {
                    continue;
                };
                for one in matrix.judgements(source, target, at) {
                    if one.verdict == Judged::Allow {
                        continue;
                    }
                    let (judged, peer) = match one.direction {
                        Direction::Egress => (flow.from.clone(), to.clone()),
                        Direction::Ingress => (to.clone(), flow.from.clone()),
                    };
                    said.entry((dialled, one.direction, one.why, judged)).or_default().insert(peer, port);
                }
            }
        }
        Ok(Self { by_port: together(said) })
    }

    /// The sources of denials at a port, a line each; with what the nearest rule lacks, if the cluster is given.
    pub fn lines(&self, dialled: Port, cluster: Option<&Cluster>) -> String {
        let mut text = String::new();
        for denial in self.by_port.get(&dialled).into_iter().flatten() {
            text.push_str(&format!("  X {}\n", denial.sentence()));
            for line in cluster.map(|cluster| denial.nearest(cluster)).unwrap_or_default() {
                text.push_str(&format!("      {line}\n"));
            }
        }
        text
    }
}

/// Pods that say the same about the same others are one source.
fn together(said: Said) -> BTreeMap<Port, Vec<Denial>> {
    let mut alike: BTreeMap<_, BTreeSet<Who>> = BTreeMap::new();
    for ((dialled, direction, why, judged), peers) in said {
        alike.entry((dialled, direction, why, peers)).or_default().insert(judged);
    }
    let mut by_port: BTreeMap<Port, Vec<Denial>> = BTreeMap::new();
    for ((dialled, direction, why, peers), judged) in alike {
        by_port.entry(dialled).or_default().push(Denial { direction, why, judged, peers });
    }
    by_port
}

/// What stands behind whom.
struct Behind<'a> {
    oracle: Oracle<'a>,
    at: HashMap<IpAddr, Who>,
}

impl<'a> Behind<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        let outside = cluster.externals.iter().map(|it| (it.address, Who::External(it.name.clone())));
        let pods = cluster.pods.iter().rev();
        let pods = pods.flat_map(|pod| pod.addresses.iter().map(|address| (*address, Who::Pod(pod.id()))));
        Self { oracle: Oracle::of(cluster), at: outside.chain(pods).collect() }
    }

    /// Whom policies see a flow arrive at, and at which port: the endpoints of a Service, or who was dialled.
    fn ends(&self, flow: &Flow) -> Vec<(Who, Port)> {
        let dialled = Port { number: flow.port, protocol: flow.protocol };
        let Ok(found) = self.oracle.directory().find(&flow.to) else { return Vec::new() };
        if !self.oracle.is_frontend(found.address(), flow.port, flow.protocol) {
            return vec![(flow.to.clone(), dialled)];
        }
        let services = self.oracle.directory().cluster().services.iter().flat_map(|service| {
            let of = matches!(&flow.to, Who::Service(id) | Who::Frontend(id, _) if *id == service.id());
            service.ports.iter().filter(move |port| {
                let number = if of { Some(port.port) } else { port.node_port };
                (of || matches!(flow.to, Who::Node(_) | Who::Pod(_)))
                    && number == Some(flow.port)
                    && port.protocol == flow.protocol
            })
        });
        let backends = services.flat_map(|port| {
            port.backends.iter().map(|it| (it.address, Port { number: it.port, protocol: port.protocol }))
        });
        backends.filter_map(|(address, port)| Some((self.at.get(&address)?.clone(), port))).collect()
    }
}

impl Denial {
    fn sentence(&self) -> String {
        let Self { direction, why, judged, peers } = self;
        let (judged, peers) = (listed(judged.iter()), listed(peers.keys()));
        format!("{direction} of {judged}: {why}: {peers}")
    }

    /// For each that is kept away, what the nearest rule lacks.
    fn nearest(&self, cluster: &Cluster) -> Vec<String> {
        let Some(judged) = self.judged.first() else { return Vec::new() };
        let near = self.peers.iter().filter_map(|(peer, port)| {
            let flow = if self.direction == Direction::Egress { (judged, peer) } else { (peer, judged) };
            nearest(cluster, flow, *port, self.direction, &self.why).map(|near| near.to_string())
        });
        let near: BTreeSet<String> = near.collect();
        let more = near.len().saturating_sub(SHOWN);
        let more = (more > 0).then(|| format!("and {more} more"));
        near.into_iter().take(SHOWN).chain(more).collect()
    }
}

/// `a, b and 3 more`.
fn listed<T: ToString>(names: impl ExactSizeIterator<Item = T>) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.take(SHOWN).map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
