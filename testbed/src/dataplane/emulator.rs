//! `emulator`: the packet path in this process, a whole cluster of it.

use std::net::IpAddr;

use userspace::engine::emulator::network::Make;
use userspace::engine::emulator::{Answer, Dial, Emulator, Network};
use userspace::engine::{Clock, Engine};
use userspace::model::{Cluster, Who};

use crate::oracle::Oracle;
use crate::probe::{Flow, Measured, Prober, Verdict, family_of};

/// Decides what would otherwise be chance, so that a run can be repeated.
const SEED: u32 = 1;

/// Flows that are asked about before the nodes forget them again: far fewer than their tables hold.
const SETTLE: usize = 10_000;

/// Asks on an emulated cluster, whose nodes run on engines `E`.
pub struct Emulated<'a, E = Emulator> {
    oracle: Oracle<'a>,
    network: Network<E>,
}

impl<'a> Emulated<'a> {
    /// Plans the cluster, and emulates it.
    ///
    /// # Errors
    /// It cannot be planned, or does not fit into the tables.
    pub fn new(cluster: &'a Cluster) -> Result<Self, userspace::error::Error> {
        Self::on(cluster, Box::new(Emulator::new))
    }
}

impl<'a, E: Engine + Clock> Emulated<'a, E> {
    /// As [`Emulated::new`], on engines that `make` makes, one for each node.
    ///
    /// # Errors
    /// As [`Emulated::new`], or an engine cannot be made.
    pub fn on(cluster: &'a Cluster, make: Make<E>) -> Result<Self, userspace::error::Error> {
        let network = Network::with(cluster, SEED, make)?;
        Ok(Self { oracle: Oracle::of(cluster), network })
    }

    fn ask(&mut self, flow: &Flow) -> anyhow::Result<Measured> {
        self.make_listen(flow)?;
        let from = self.network.host(&flow.from.to_string())?;
        let target = self.oracle.directory().find(&flow.to)?;
        let own = &self.network.host_at(from).addresses;
        let over = |address: &&IpAddr| flow.over == Some(family_of(**address));
        let target =
            target.addresses().iter().find(over).copied().unwrap_or_else(|| target.address_from(own));
        let dial = Dial::Port(flow.protocol, flow.port);
        let attempt = self.network.connect(from, target, dial)?;
        Ok(Measured {
            verdict: attempt.answer.into(),
            reason: attempt.reason,
            decided_by: attempt.rule.map(|rule| rule.policy),
        })
    }

    /// Pods and nodes listen where they are dialled; an external that declares ports only there. A
    /// Service's backends listen already, also where a port of a node leads to them.
    fn make_listen(&mut self, flow: &Flow) -> anyhow::Result<()> {
        if matches!(flow.to, Who::Pod(_) | Who::Node(_)) {
            let host = self.network.host(&flow.to.to_string())?;
            let addresses = &self.network.host_at(host).addresses;
            let is_frontend = |at: &IpAddr| self.oracle.is_frontend(*at, flow.port, flow.protocol);
            if !addresses.iter().all(is_frontend) {
                self.network.listen(host, flow.protocol, flow.port);
            }
        }
        Ok(())
    }

    /// Lets so much time pass that every flow is over, and the agents sweep them away, or the tables fill up.
    fn settle(&mut self) -> Result<(), userspace::error::Error> {
        let it = &self.oracle.directory().cluster().settings.timeouts;
        let longest_s = it.tcp_s.max(it.udp_s).max(it.icmp_s).max(it.tcp_opening_s).max(it.quarantine_s);
        self.network.wait(longest_s)?;
        self.network.sweep()
    }
}

impl From<Answer> for Verdict {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Allow => Self::Allow,
            Answer::Deny => Self::Deny,
            Answer::Reject => Self::Reject,
        }
    }
}

impl<E: Engine + Clock> Prober for Emulated<'_, E> {
    fn dataplane(&self) -> &'static str {
        "emulator"
    }

    fn probe(&mut self, flows: &[Flow]) -> anyhow::Result<Vec<Measured>> {
        let mut measured = Vec::with_capacity(flows.len());
        for flows in flows.chunks(SETTLE) {
            for flow in flows {
                measured.push(self.ask(flow)?);
            }
            self.settle()?;
        }
        Ok(measured)
    }
}
