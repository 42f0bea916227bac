//! The short way against the long one: the same node twice in this process, once with the short way shut.

use std::fmt;
use std::net::SocketAddr;

use dataplane::tables::{Connection, IfIndex, Way};
use dataplane::trace::Record;
use dataplane::wire::Address;
use testbed::sound::hex;
use userspace::engine::emulator::Emulator;
use userspace::engine::{
    Capacities, Claims, Clients, Clock, Count, Dialling, Engine, Flows, Hook, Outcome, Pieces, Tracks,
};
use userspace::error::Error;
use userspace::plan::{Legs, NodeChange, NodePlan, NodeRows};

use super::cluster::{Differences, Pair};

/// A node whose known flows take the short way, and the same with all packets on the long way.
pub(crate) struct Ways {
    short: Emulator,
    long: Emulator,
    differences: Differences,
}

impl Ways {
    fn compare<T: PartialEq + fmt::Debug>(&self, what: &str, short: &T, long: &T) {
        if short != long {
            let text = format!("{what} differ\n  short way: {short:?}\n  long way:  {long:?}");
            self.differences.borrow_mut().push(text);
        }
    }
}

impl<A: Address> Tracks<A> for Ways
where
    Emulator: Tracks<A>,
{
    fn connections(&self) -> Result<Flows<A>, Error> {
        let (short, long) = (self.short.connections()?, self.long.connections()?);
        self.compare("conntrack rows", &without_ways(&short), &without_ways(&long));
        Ok(short)
    }

    fn masquerades(&self) -> Result<Claims<A>, Error> {
        let (short, long) = (self.short.masquerades()?, self.long.masquerades()?);
        self.compare("masquerade rows", &short, &long);
        Ok(short)
    }

    fn fragments(&self) -> Result<Pieces<A>, Error> {
        let (short, long) = (self.short.fragments()?, self.long.fragments()?);
        self.compare("fragment rows", &short, &long);
        Ok(short)
    }

    fn affinities(&self) -> Result<Clients<A>, Error> {
        let (short, long) = (self.short.affinities()?, self.long.affinities()?);
        self.compare("affinity rows", &short, &long);
        Ok(short)
    }
}

impl Pair for Ways {
    fn new(
        plan: &NodePlan,
        capacities: &Capacities,
        traced: bool,
        differences: Differences,
    ) -> Result<Self, Error> {
        let [mut short, mut long] =
            [Emulator::with_capacities(plan, capacities)?, Emulator::with_capacities(plan, capacities)?];
        short.trace(traced);
        long.trace(traced);
        long.take_short_ways(false);
        Ok(Self { short, long, differences })
    }

    fn emulator(&self) -> &Emulator {
        &self.short
    }
}

impl Engine for Ways {
    fn legs(&self, rows: &NodeRows) -> Result<Legs, Error> {
        self.short.legs(rows)
    }

    fn change(&mut self, changes: &[NodeChange]) -> Result<(), Error> {
        self.short.change(changes)?;
        self.long.change(changes)
    }

    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, Error> {
        let short = self.short.push(hook, interface, frame)?;
        let long = self.long.push(hook, interface, frame)?;
        self.compare("verdicts", &short.verdict, &long.verdict);
        self.compare("bytes", &hex(&short.frame), &hex(&long.frame));
        self.compare("reports", &short.records, &long.records);
        Ok(short)
    }

    fn lead(&mut self, dialling: &Dialling) -> Result<(SocketAddr, Vec<Record>), Error> {
        let (short, long) = (self.short.lead(dialling)?, self.long.lead(dialling)?);
        self.compare("where a socket is led", &short, &long);
        Ok(short)
    }

    fn hang_up(&mut self, socket: u64) {
        self.short.hang_up(socket);
        self.long.hang_up(socket);
    }

    fn counts(&self) -> Result<Vec<Count>, Error> {
        let (short, long) = (self.short.counts()?, self.long.counts()?);
        self.compare("counters", &short, &long);
        Ok(short)
    }
}

impl Clock for Ways {
    fn now_s(&self) -> Result<u32, Error> {
        self.short.now_s()
    }

    fn wait(&mut self, seconds: u32) -> Result<(), Error> {
        self.short.wait(seconds)?;
        self.long.wait(seconds)
    }

    fn set_random(&mut self, number: u32) -> Result<(), Error> {
        self.short.set_random(number)?;
        self.long.set_random(number)
    }

    fn sweep(&mut self) -> Result<(), Error> {
        self.short.sweep()?;
        self.long.sweep()
    }
}

/// The rows, without what only one of the two goes by.
fn without_ways<A: Address>(rows: &Flows<A>) -> Flows<A> {
    rows.iter().map(|(tuple, row)| (*tuple, Connection { way: Way::default(), ..*row })).collect()
}
