//! A drawn cluster of which every node is there twice, and what can be done to it.

use std::fmt;
use std::rc::Rc;

use dataplane::conntrack::{self, Pod, Tracked};
use dataplane::flow::{self, Ends};
use dataplane::tables::{Backends, Endpoints, Frontends, IfIndex, Maglev, Nodes, PolicyRow, Table};
use dataplane::wire::{Address, Family, V4, V6};
use dataplane::{Platform, overlay};
use testbed::sound::{Faults, Watched, hex};
use userspace::engine::emulator::{Emulator, Frame};
use userspace::engine::{Capacities, Clock, Engine, Hook, Outcome, Tracks};
use userspace::error::Error;
use userspace::plan::{Links, NodePlan, NodeRows, Rows};

use super::kinds::Kinds;

/// What was found to differ, in words, shared by all nodes of a cluster.
pub(crate) type Differences = Faults;

/// A node twice, as one engine: whatever one is given, the other is given, and they must agree. It answers what the
/// first one answers.
pub(crate) trait Pair: Engine + Clock + Tracks<V4> + Tracks<V6> + Sized {
    /// The node with this plan. `traced`: every stage reports.
    fn new(
        plan: &NodePlan,
        capacities: &Capacities,
        traced: bool,
        differences: Differences,
    ) -> Result<Self, Error>;

    /// Compares every row that the path writes, and every counter.
    fn compare_rows(&self) -> Result<(), Error> {
        compare_family::<V4>(self)?;
        compare_family::<V6>(self)?;
        self.counts()?;
        Ok(())
    }

    /// The first one.
    fn emulator(&self) -> &Emulator;
}

/// Asks for what the path writes of one family: whoever is a pair compares what it answers.
fn compare_family<A: Address>(pair: &impl Tracks<A>) -> Result<(), Error> {
    pair.connections()?;
    pair.masquerades()?;
    pair.fragments()?;
    pair.affinities()?;
    Ok(())
}

/// The shortest frame that the kernel's test run takes: one with an Ethernet header, and with the IP header
/// that it says it has (`bpf_prog_test_run_skb` in `net/bpf/test_run.c`).
pub(crate) fn shortest(frame: &[u8]) -> usize {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        _ => 14,
    }
}

/// One thing that is done to a cluster.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// A frame enters a node.
    Frame { node: usize, hook: Hook, interface: IfIndex, frame: Vec<u8> },
    /// Seconds pass.
    Wait(u32),
    /// The agents remove what is over.
    Sweep,
    /// A backend comes to be in this state, on every node and in both families.
    Backend { number: usize, state: u8 },
    /// A rule denies from now on what it allowed, or the other way round, on every node and in both families: that
    /// of the policy table's row at this place, counted around.
    Turn(usize),
}

/// Turns the action of a policy row, if there are any.
fn turn<'a>(rows: impl ExactSizeIterator<Item = &'a mut PolicyRow>, place: usize) {
    let count = rows.len().max(1);
    for row in rows.skip(place % count).take(1) {
        row.action = PolicyRow::ALLOW + PolicyRow::DENY - row.action;
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { node, hook, interface, frame } => {
                write!(f, "node {node} {hook:?} interface {}: {}", interface.0, hex(frame))
            }
            Self::Wait(seconds) => write!(f, "wait {seconds}s"),
            Self::Sweep => f.write_str("sweep"),
            Self::Backend { number, state } => write!(f, "backend {number} state {state}"),
            Self::Turn(place) => write!(f, "turn the policy row at {place}"),
        }
    }
}

/// After how many frames of a node its rows and counters are compared, unless they are after each.
const INTERVAL: usize = 100;

/// The nodes of a drawn cluster, each of them twice.
pub(crate) struct Cluster<P> {
    nodes: Vec<Watched<P>>,
    /// What the agents have written on each.
    rows: Vec<NodeRows>,
    differences: Differences,
    kinds: Kinds,
    known: [usize; 2],
    performed: usize,
}

impl<P: Pair> Cluster<P> {
    pub(crate) fn new(
        nodes: &[(NodePlan, Links)],
        capacities: &Capacities,
        traced: bool,
    ) -> Result<Self, Error> {
        let differences: Differences = Rc::default();
        let rows = nodes.iter().map(|(plan, _)| plan.rows.clone()).collect();
        let nodes = nodes.iter().map(|(plan, _)| {
            let pair = P::new(plan, &fitting(plan, capacities), traced, Rc::clone(&differences))?;
            Ok(Watched::new(pair, plan, Rc::clone(&differences)))
        });
        let nodes = nodes.collect::<Result<_, Error>>()?;
        Ok(Self { nodes, rows, differences, kinds: Kinds::default(), known: [0; 2], performed: 0 })
    }

    pub(crate) fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// Does it: what became of the frame, if it was one. Rows are compared now and then, or every time.
    pub(crate) fn perform(&mut self, act: &Act, always: bool) -> Option<Outcome> {
        self.performed += 1;
        match act {
            Act::Wait(seconds) => {
                for node in &mut self.nodes {
                    node.wait(*seconds).expect("clocks can be set");
                }
                None
            }
            Act::Sweep => {
                for node in &mut self.nodes {
                    node.sweep().expect("tables can be swept");
                    node.engine.compare_rows().expect("tables can be read");
                }
                None
            }
            Act::Backend { number, state } => {
                for (node, rows) in self.nodes.iter_mut().zip(&mut self.rows) {
                    if let Some(row) = rows.v4.backends.get_mut(*number) {
                        row.state = *state;
                    }
                    if let Some(row) = rows.v6.backends.get_mut(*number) {
                        row.state = *state;
                    }
                    node.apply(rows).expect("rows can be written");
                }
                None
            }
            Act::Turn(place) => {
                for (node, rows) in self.nodes.iter_mut().zip(&mut self.rows) {
                    turn(rows.v4.policy.values_mut(), *place);
                    turn(rows.v6.policy.values_mut(), *place);
                    node.apply(rows).expect("rows can be written");
                }
                None
            }
            Act::Frame { node, hook, interface, frame } => {
                let node = &mut self.nodes[*node];
                let (known, family) = way_known(node.engine.emulator(), *hook, frame);
                self.known[usize::from(family == Family::V6)] += usize::from(known);
                let outcome = node.push(*hook, *interface, frame).expect("both take frames");
                self.kinds.note(frame, outcome.verdict);
                if always || self.performed.is_multiple_of(INTERVAL) {
                    node.engine.compare_rows().expect("tables can be read");
                }
                Some(outcome)
            }
        }
    }

    /// Compares every row of every node.
    pub(crate) fn compare_rows(&self) {
        for node in &self.nodes {
            node.engine.compare_rows().expect("tables can be read");
        }
    }

    /// How many frames found their flow's way known, so that they went the short way unless they did not fit: of IPv4,
    /// and of IPv6.
    pub(crate) fn known(&self) -> [usize; 2] {
        self.known
    }

    /// What was found to differ, or not to be sound, so far.
    pub(crate) fn difference(&self) -> Option<String> {
        let differences = self.differences.borrow();
        (!differences.is_empty()).then(|| differences.join("\n"))
    }
}

/// Whether the way of a frame's flow is known where it comes in, and the family of what it holds.
fn way_known(emulator: &Emulator, hook: Hook, frame: &[u8]) -> (bool, Family) {
    let frame = &mut Frame::new(frame, IfIndex(0));
    let (family, start) = match hook {
        Hook::FromUnderlay => (overlay::inside(frame), overlay::PLAIN_V4),
        Hook::FromPod | Hook::FromHost => (flow::family(frame), 0),
    };
    let known = match family {
        Family::V4 => recalled::<V4>(emulator, frame, start),
        Family::V6 => recalled::<V6>(emulator, frame, start),
    };
    (known && hook != Hook::FromHost, family)
}

fn recalled<A: Address>(emulator: &Emulator, frame: &mut Frame, start: usize) -> bool
where
    Emulator: Platform<A>,
{
    let mut ends = Ends::<A>::default();
    flow::glance_behind(frame, start, &mut ends)
        && !conntrack::recall(emulator, &ends, &mut Tracked::default()).is(Pod::Unknown)
}

/// Tables just large enough for what the agent writes: to make large ones takes longer than to use them.
fn fitting(plan: &NodePlan, capacities: &Capacities) -> Capacities {
    fn of<A: Address>(rows: &Rows<A>, capacities: &mut Capacities) {
        let used = [
            (Endpoints::<A>::NAME, rows.endpoints.len()),
            (Frontends::<A>::NAME, rows.frontends.len()),
            (Maglev::<A>::NAME, rows.maglev.len()),
            (Backends::<A>::NAME, rows.backends.len()),
        ];
        for (table, rows) in used {
            capacities.set(table, rows.max(1) as u32).expect("there is such a table");
        }
    }
    let mut capacities = capacities.clone();
    of(&plan.rows.v4, &mut capacities);
    of(&plan.rows.v6, &mut capacities);
    capacities.set(Nodes::NAME, plan.rows.nodes.len().max(1) as u32).expect("there is such a table");
    capacities
}
