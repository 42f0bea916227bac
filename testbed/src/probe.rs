//! Who reaches whom, measured, and set beside what the oracle says.
//!
//! A [`Flow`] is a question, a [`Prober`] answers many of them, a [`Grid`] holds questions, answers and
//! expectations in the order they were asked.

use std::collections::BTreeSet;
use std::fmt;

use dataplane::Reason;
use serde::{Serialize, Serializer};
use userspace::model::{Cluster, ContainerPort, Protocol};

use crate::end::End;
use crate::oracle::{self, Expectation};

mod flows;
mod print;

pub use flows::{FlowsError, read_flows};

/// A question: is `to` reached from `from`, at this port?
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Flow {
    /// Who sends; never a Service.
    pub from: End,
    /// Who is dialled.
    pub to: End,
    /// The port dialled: a Service's own, not its backends'.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:{}/{}", self.from, self.to, self.port, self.protocol)
    }
}

/// What became of a flow, as its sender can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Answered.
    Allow,
    /// No answer: dropped on the way.
    Deny,
    /// Refused at once, by a reset or an ICMP error.
    Reject,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Reject => "reject",
        })
    }
}

/// A prober's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What became of the flow.
    pub verdict: Verdict,
    /// Why a packet of it was dropped, where the dataplane tells.
    pub reason: Option<Reason>,
    /// The policy, `namespace/name`, that decided; where one did and the dataplane tells.
    pub decided_by: Option<String>,
}

impl From<Verdict> for Measured {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, reason: None, decided_by: None }
    }
}

/// A way to find out what becomes of flows.
///
/// It sees to it that targets listen where they are dialled, unless they are externals that declare other
/// ports: what is asked is what the network does, and a pod may listen on ports it does not declare.
pub trait Prober {
    /// The value of `--dataplane`.
    fn dataplane(&self) -> &'static str;
    /// Measures every flow: as many answers, in the same order. All ends exist in the cluster.
    ///
    /// # Errors
    /// It could not be measured: a namespace is gone, an engine refused. A flow that does not arrive is
    /// not an error.
    fn probe(&mut self, flows: &[Flow]) -> anyhow::Result<Vec<Measured>>;
}

/// A flow, measured and judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The question.
    pub flow: Flow,
    /// The prober's answer.
    pub measured: Measured,
    /// The oracle's.
    pub expectation: Expectation,
}

impl Row {
    /// The verdict the oracle expects; `None` where Kubernetes leaves it open.
    pub fn expected(&self) -> Option<Verdict> {
        match self.expectation {
            Expectation::Allow => Some(Verdict::Allow),
            Expectation::Deny(_) => Some(Verdict::Deny),
            Expectation::Reject => Some(Verdict::Reject),
            Expectation::Undefined(_) => None,
        }
    }

    /// Whether the two answers differ. What is left open differs from nothing.
    pub fn differs(&self) -> bool {
        self.expected().is_some_and(|expected| expected != self.measured.verdict)
    }
}

/// The keys of `check -o json`.
impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Keys<'a> {
            #[serde(flatten)]
            flow: &'a Flow,
            verdict: Verdict,
            reason: Option<&'static str>,
            decided_by: Option<&'a str>,
            expected: Option<Verdict>,
        }
        Keys {
            flow: &self.flow,
            verdict: self.measured.verdict,
            reason: self.measured.reason.map(Reason::slug),
            decided_by: self.measured.decided_by.as_deref(),
            expected: self.expected(),
        }
        .serialize(serializer)
    }
}

/// Who reaches whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grid {
    /// The name of the testbed.
    pub cluster: String,
    /// The value of `--dataplane`.
    pub dataplane: String,
    /// In the order asked.
    #[serde(rename = "flows")]
    pub rows: Vec<Row>,
    /// Rows whose verdict is not the expected one.
    pub differences: usize,
}

impl Grid {
    /// Measures flows and sets the oracle's expectations beside them.
    ///
    /// # Errors
    /// The prober's.
    pub fn measure(cluster: &Cluster, flows: Vec<Flow>, prober: &mut dyn Prober) -> anyhow::Result<Self> {
        let answers = prober.probe(&flows)?;
        debug_assert_eq!(answers.len(), flows.len(), "an answer for each flow");
        let rows: Vec<Row> = (flows.into_iter().zip(answers))
            .map(|(flow, measured)| {
                let Flow { from, to, port, protocol } = &flow;
                let expectation = oracle::expect(cluster, from, to, *port, *protocol);
                Row { flow, measured, expectation }
            })
            .collect();
        Ok(Self {
            cluster: cluster.name.clone(),
            dataplane: prober.dataplane().to_owned(),
            differences: rows.iter().filter(|row| row.differs()).count(),
            rows,
        })
    }
}

/// Every pair at every declared port: from each pod and external, to each port that a pod, a Service or
/// an external declares. Left out: what never touches the cluster (external to external), and cluster IPs
/// dialled from outside.
pub fn all_pairs(cluster: &Cluster) -> Vec<Flow> {
    let pods = cluster.pods.iter().map(|pod| End::Pod(pod.id()));
    let externals = cluster.externals.iter().map(|external| End::External(external.name.clone()));
    let mut flows = Vec::new();
    for from in pods.chain(externals) {
        let outside = matches!(from, End::External(_));
        let mut dial = |to: End, ports: &mut dyn Iterator<Item = (u16, Protocol)>| {
            // The same port may be declared by several containers.
            let ports: BTreeSet<_> = ports.collect();
            flows.extend(ports.into_iter().map(|(port, protocol)| Flow {
                from: from.clone(),
                to: to.clone(),
                port,
                protocol,
            }));
        };
        let declared = |port: &ContainerPort| (port.port, port.protocol);
        for pod in &cluster.pods {
            dial(End::Pod(pod.id()), &mut pod.ports.iter().map(declared));
        }
        if outside {
            continue;
        }
        for service in &cluster.services {
            let mut ports = service.ports.iter().map(|port| (port.port, port.protocol));
            dial(End::Service(service.id()), &mut ports);
        }
        for external in &cluster.externals {
            dial(End::External(external.name.clone()), &mut external.ports.iter().map(declared));
        }
    }
    flows
}

#[cfg(test)]
mod tests;
