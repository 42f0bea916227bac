//! What policies said of one conversation: who decided, and what was missing where it was denied.

use std::fmt;
use std::net::Ipv6Addr;

use dataplane::trace::{Record, Stage};
use serde::Serialize;
use userspace::engine::emulator::Matrix;
use userspace::engine::emulator::matrix::{Decided, Verdict, Why};
use userspace::error::Error;
use userspace::model::{Cluster, Port, Protocol, Who};
use userspace::observe::nearest::nearest;
use userspace::observe::walk::{Event, Step};

/// Width of the left column, as in a walk.
const COLUMN: usize = 15;

/// What policies said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ruling {
    /// What each pod's policies said, the client's first.
    said: Vec<String>,
    /// Where they denied it: the nearest rule that would have allowed it, and what it lacks.
    nearest: Option<String>,
}

impl Ruling {
    /// What policies said of the conversation that somebody opened; none where they were not asked, or none of
    /// them had a say.
    ///
    /// # Errors
    /// The cluster cannot be planned.
    pub fn of(cluster: &Cluster, from: &Who, steps: &[Step]) -> Result<Option<Self>, Error> {
        let first = steps.iter().map(|step| step.packet).min();
        let judged =
            steps.iter().rev().filter(|step| Some(step.packet) == first).find_map(|step| match &step.event {
                Event::Stage { record, .. } if record.stage == Stage::Policy as u8 => Some(record),
                _ => None,
            });
        let Some((to, port)) = judged.and_then(|record| target(cluster, record)) else { return Ok(None) };
        let matrix = Matrix::of(cluster, &[port])?;
        let (Some(source), Some(target)) = (matrix.place(from), matrix.place(&to)) else { return Ok(None) };
        let over_v4 = judged.is_some_and(|record| record.target.is_v4());
        let said = matrix.judgements(source, target, 0).into_iter();
        let said: Vec<Decided> = said.filter(|one| one.is_over_v4() == over_v4).collect();
        let denied = said.iter().find(|one| one.verdict == Verdict::Deny);
        let nearest = denied.and_then(|one| nearest(cluster, (from, &to), port, one.direction, &one.why));
        let sentence = |one: &Decided| {
            let judged = if one.is_of_source() { from } else { &to };
            let audited = if one.audited() { ", and passes: policies are only tried out on it" } else { "" };
            format!("{} of {judged}: {}{audited}", one.direction, one.why)
        };
        let telling = said.iter().filter(|one| !matches!(one.why, Why::NotIsolated | Why::NotDenied));
        let ruling =
            Self { said: telling.map(sentence).collect(), nearest: nearest.map(|near| near.to_string()) };
        Ok((!ruling.said.is_empty()).then_some(ruling))
    }
}

/// Whom a packet went to, as policies saw it, and at which port.
fn target(cluster: &Cluster, record: &Record) -> Option<(Who, Port)> {
    let address = Ipv6Addr::from(record.target.0).to_canonical();
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = protocols.into_iter().find(|protocol| protocol.number() == record.protocol)?;
    let port = Port { number: record.target_port.host(), protocol };
    let own = |pod: &&userspace::model::Pod| !pod.host_network && pod.addresses.contains(&address);
    let who = if let Some(pod) = cluster.pods.iter().find(own) {
        Who::Pod(pod.id())
    } else if let Some(node) = cluster.nodes.iter().find(|node| node.addresses.contains(&address)) {
        Who::Node(node.name.clone())
    } else {
        Who::External(cluster.externals.iter().find(|external| external.address == address)?.name.clone())
    };
    Some((who, port))
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for said in &self.said {
            writeln!(f, "{:COLUMN$}{said}", "policies")?;
        }
        match &self.nearest {
            Some(nearest) => writeln!(f, "{:COLUMN$}{nearest}", ""),
            None => Ok(()),
        }
    }
}
