//! What is over, out of the tables: the path takes no row away itself.
//!
//! 1. A flow that is of no more use is removed: see `conntrack::is_spent`.
//! 2. A source port that no flow has any more is removed when that was so twice in a row: between the claim
//!    of a port and the row of its flow lies a moment in which the port is nobody's.
//! 3. A packet in fragments, and a client that a Service remembers, is removed when its time is over. A client is
//!    forgotten as well when its backend is no candidate of the Service any more: at once where its frontend is led
//!    to others, and here, where a packet came in between, or slots have changed where they are.
//!
//! How long to wait until the next time follows from how many flows were over. Source: the constants of
//! Cilium's (`pkg/maps/ctmap`), which wait the longer the less there is to do. While
//! a table is more than half full, every wait is half of the one before at most.

use std::collections::HashSet;
use std::time::Duration;

use dataplane::conntrack::OPENED_BY_HIGH;
use dataplane::tables::{Affinities, Connection, Masquerade, Tuple};
use dataplane::wire::{Address, Be16, V4, V6};
use dataplane::{conntrack, fragment, service};

use super::table::HashTable;
use super::{Family, Kernel, Pressure};
use crate::engine::Clock;
use crate::error::Error;
use crate::plan::{self, Rows};

/// The first interval.
const FIRST: Duration = Duration::from_secs(300);
/// The shortest.
const SHORTEST: Duration = Duration::from_secs(10);
/// The longest.
const LONGEST: Duration = Duration::from_secs(12 * 3600);

/// What one sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows that were over.
    pub connections: usize,
    /// Source ports that no flow had.
    pub masquerades: usize,
    /// Flows that go on.
    pub kept: usize,
}

/// Sweeps a node's tables, and remembers what it must see twice.
#[derive(Clone, Debug)]
pub struct Sweeper {
    /// The source ports that no flow had at the last sweep.
    idle_v4: HashSet<Masquerade<V4>>,
    idle_v6: HashSet<Masquerade<V6>>,
    interval: Duration,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self { idle_v4: HashSet::new(), idle_v6: HashSet::new(), interval: FIRST }
    }
}

impl Sweeper {
    /// How long to wait until the next sweep.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Removes what is over.
    ///
    /// # Errors
    /// The tables could not be read or written.
    pub fn sweep(&mut self, kernel: &mut Kernel) -> Result<Swept, Error> {
        let now_s = kernel.now_s()?;
        let mut swept = Swept::default();
        sweep_family(kernel, &mut self.idle_v4, &mut swept, now_s)?;
        sweep_family(kernel, &mut self.idle_v6, &mut swept, now_s)?;
        kernel.forget_clients()?;
        let crowded = kernel.pressure()?.iter().any(Pressure::is_high);
        self.interval = next(self.interval, swept, crowded);
        Ok(swept)
    }
}

impl Kernel {
    /// Removes what Services remember of clients that they would lead elsewhere now.
    ///
    /// # Errors
    /// [`super::Error::Table`].
    pub(super) fn forget_clients(&mut self) -> Result<(), super::Error> {
        forget(&self.rows.v4, &mut self.v4.affinities)?;
        forget(&self.rows.v6, &mut self.v6.affinities)
    }
}

fn forget<A: Address>(rows: &Rows<A>, affinities: &mut HashTable<Affinities<A>>) -> Result<(), super::Error> {
    for client in plan::forgotten(rows, &affinities.sorted()?) {
        affinities.set(&client, None)?;
    }
    Ok(())
}

/// Sweeps the tables of a family. `idle` has the source ports that no flow had at the last sweep.
fn sweep_family<A: Family>(
    kernel: &mut Kernel,
    idle: &mut HashSet<Masquerade<A>>,
    swept: &mut Swept,
    now_s: u32,
) -> Result<(), Error> {
    let timeouts = kernel.node.timeouts;
    let is_spent =
        |row: &Connection<A>, tuple: &Tuple<A>| conntrack::is_spent(row, tuple.protocol, now_s, &timeouts);
    let tables = A::tables_mut(kernel);
    let mut named = HashSet::new();
    // 1.
    for (tuple, row) in tables.connections.sorted()? {
        // It may have begun anew since the table was read.
        let still_over =
            || Ok::<_, Error>(tables.connections.row(&tuple)?.is_some_and(|row| is_spent(&row, &tuple)));
        if is_spent(&row, &tuple) && still_over()? {
            tables.connections.set(&tuple, None)?;
            swept.connections += 1;
            continue;
        }
        swept.kept += 1;
        named.extend(masquerade(&tuple, &row));
    }
    for (key, row) in tables.fragments.sorted()? {
        if fragment::is_over(&row, now_s) {
            tables.fragments.set(&key, None)?;
        }
    }
    for (key, row) in tables.affinities.sorted()? {
        // Its client may have come again since the table was read.
        let still_over =
            || Ok::<_, Error>(tables.affinities.row(&key)?.is_some_and(|row| service::is_over(&row, now_s)));
        if service::is_over(&row, now_s) && still_over()? {
            tables.affinities.set(&key, None)?;
        }
    }
    // 2.
    let mut idle_now = HashSet::new();
    for (key, _) in tables.masquerades.sorted()? {
        if named.contains(&key) {
            continue;
        }
        if idle.contains(&key) {
            tables.masquerades.set(&key, None)?;
            swept.masquerades += 1;
        } else {
            idle_now.insert(key);
        }
    }
    *idle = idle_now;
    Ok(())
}

/// The source port that a flow has, if it has one.
fn masquerade<A: Address>(tuple: &Tuple<A>, row: &Connection<A>) -> Option<Masquerade<A>> {
    if row.masquerade_port == Be16::default() {
        return None;
    }
    let (remote, remote_port) = if row.flags & OPENED_BY_HIGH == 0 {
        (tuple.high, tuple.high_port)
    } else {
        (tuple.low, tuple.low_port)
    };
    Some(Masquerade { remote, remote_port, port: row.masquerade_port, protocol: tuple.protocol, pad: [0; 3] })
}

/// The interval after a sweep: shorter if more than a quarter of the flows were over, longer if fewer than
/// one in twenty. In half the time at most, if a table is crowded even so.
fn next(interval: Duration, swept: Swept, crowded: bool) -> Duration {
    let over = swept.connections as f64 / (swept.connections + swept.kept).max(1) as f64;
    let factor = if over > 0.25 {
        1.0 - over.min(0.9)
    } else if over < 0.05 {
        1.5
    } else {
        1.0
    };
    let factor = if crowded { f64::min(factor, 0.5) } else { factor };
    interval.mul_f64(factor).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_come_sooner_when_there_was_much_to_do_and_later_when_there_was_nothing() {
        let swept = |connections, kept| Swept { connections, masquerades: 0, kept };
        assert_eq!(next(FIRST, swept(50, 50), false), Duration::from_secs(150));
        assert_eq!(next(FIRST, swept(10, 90), false), FIRST);
        assert_eq!(next(FIRST, swept(0, 0), false), Duration::from_secs(450));
        assert_eq!(next(SHORTEST, swept(99, 1), false), SHORTEST);
        assert_eq!(next(LONGEST, swept(0, 9), false), LONGEST);
        assert_eq!(
            next(FIRST, swept(0, 9), true),
            Duration::from_secs(150),
            "a table is more than half full"
        );
        assert_eq!(next(FIRST, swept(90, 10), true), Duration::from_secs(30));
    }

    #[test]
    fn the_port_of_a_flow_is_looked_up_at_its_far_end() {
        let tuple = Tuple {
            low: V4([10, 244, 0, 2]),
            high: V4([203, 0, 113, 7]),
            low_port: Be16::new(4000),
            high_port: Be16::new(80),
            protocol: 6,
            pad: [0; 3],
        };
        let opened_by_low = Connection { masquerade_port: Be16::new(33_000), ..Connection::default() };
        let found = masquerade(&tuple, &opened_by_low).expect("it has a port");
        assert_eq!((found.remote, found.remote_port), (tuple.high, tuple.high_port));
        let opened_by_high = Connection { flags: OPENED_BY_HIGH, ..opened_by_low };
        assert_eq!(masquerade(&tuple, &opened_by_high).map(|found| found.remote), Some(tuple.low));
        assert_eq!(masquerade(&tuple, &Connection::default()), None);
    }
}
