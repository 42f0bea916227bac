//! Two engines in step: whatever one is given, the other is given, and they must agree.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;

use dataplane::tables::{
    Backends, Connection, Endpoints, Frontends, IfIndex, Maglev, Node, Nodes, PolicyRow, Table, Way,
};
use dataplane::trace::Record;
use dataplane::wire::{Address, V4, V6};
use testbed::sound::{Faults, Watched, hex};
use userspace::engine::emulator::Emulator;
use userspace::engine::kernel::{Kernel, Options};
use userspace::engine::{
    Capacities, Claims, Clients, Clock, Count, Dialling, Engine, Flows, Hook, Outcome, Pieces, Tracks,
};
use userspace::error::Error;
use userspace::plan::{Legs, Links, NodeChange, NodePlan, NodeRows, Rows};

use super::kinds::Kinds;

/// What was found to differ, in words, shared by all nodes of a cluster.
pub(crate) type Differences = Faults;

/// The emulator and the kernel as one engine: it answers what the emulator answers.
pub(crate) struct Twins {
    emulator: Emulator,
    /// Always there, until it is laid aside.
    kernel: Option<Kernel>,
    kind: Kind,
    differences: Differences,
}

/// What a kernel was loaded for, and cannot be changed.
#[derive(Clone, PartialEq)]
struct Kind {
    node: Node,
    addresses: (V4, V6),
    capacities: Capacities,
}

/// How many loaded nodes are laid aside.
const ASIDE: usize = 24;

thread_local! {
    /// Nodes that nobody uses any more, the latest last: to load one takes longer than to run a case.
    static LOADED: RefCell<Vec<(Kind, Kernel)>> = const { RefCell::new(Vec::new()) };
}

impl Kind {
    /// A node of this kind that was laid aside, if there is one.
    fn loaded(&self) -> Option<Kernel> {
        LOADED.with_borrow_mut(|loaded| {
            let place = loaded.iter().position(|(kind, _)| kind == self)?;
            Some(loaded.remove(place).1)
        })
    }
}

impl Twins {
    pub(crate) fn new(
        plan: &NodePlan,
        capacities: &Capacities,
        differences: Differences,
    ) -> Result<Self, Error> {
        let options =
            Options { capacities: capacities.clone(), trace: true, fixed_clock: true, ..Options::default() };
        let kind = Kind { node: plan.node, addresses: plan.addresses, capacities: capacities.clone() };
        let kernel = match kind.loaded() {
            Some(mut kernel) => kernel.renew(&plan.rows).map(|()| kernel)?,
            None => Kernel::load(plan, options)?,
        };
        let mut emulator = Emulator::with_capacities(plan, capacities)?;
        emulator.trace(true);
        Ok(Self { emulator, kernel: Some(kernel), kind, differences })
    }

    fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().expect("nobody has laid it aside")
    }

    fn kernel_mut(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("nobody has laid it aside")
    }

    fn compare<T: PartialEq + fmt::Debug>(&self, what: &str, emulator: &T, kernel: &T) {
        if emulator != kernel {
            self.note(what, &format!("{emulator:?}"), &format!("{kernel:?}"));
        }
    }

    fn note(&self, what: &str, emulator: &str, kernel: &str) {
        let text = format!("{what} differ\n  emulator: {emulator}\n  kernel:   {kernel}");
        self.differences.borrow_mut().push(text);
    }

    /// Compares every row that the path writes, and every counter.
    pub(crate) fn compare_rows(&self) -> Result<(), Error> {
        self.compare_family::<V4>()?;
        self.compare_family::<V6>()?;
        self.counts()?;
        Ok(())
    }
}

impl Twins {
    fn compare_family<A: Address>(&self) -> Result<(), Error>
    where
        Self: Tracks<A>,
    {
        self.connections()?;
        self.masquerades()?;
        self.fragments()?;
        self.affinities()?;
        Ok(())
    }
}

impl Drop for Twins {
    fn drop(&mut self) {
        let Some(kernel) = self.kernel.take() else { return };
        LOADED.with_borrow_mut(|loaded| {
            loaded.push((self.kind.clone(), kernel));
            if loaded.len() > ASIDE {
                loaded.remove(0);
            }
        });
    }
}

impl Engine for Twins {
    fn legs(&self, rows: &NodeRows) -> Result<Legs, Error> {
        self.emulator.legs(rows)
    }

    fn change(&mut self, changes: &[NodeChange]) -> Result<(), Error> {
        self.emulator.change(changes)?;
        self.kernel_mut().change(changes)
    }

    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, Error> {
        let chance = self.emulator.chance();
        let emulator = self.emulator.push(hook, interface, frame)?;
        if frame.len() < shortest(frame) {
            return Ok(emulator);
        }
        self.kernel_mut().set_random(chance)?;
        let kernel = self.kernel_mut().push(hook, interface, frame)?;
        self.compare("verdicts", &emulator.verdict, &kernel.verdict);
        if emulator.frame != kernel.frame {
            self.note("bytes", &hex(&emulator.frame), &hex(&kernel.frame));
        }
        self.compare("reports", &emulator.records, &kernel.records);
        Ok(emulator)
    }

    /// The emulator alone can be asked: `tests/sockets.rs` asks the kernel, with sockets.
    fn lead(&mut self, dialling: &Dialling) -> Result<(SocketAddr, Vec<Record>), Error> {
        self.emulator.lead(dialling)
    }

    fn hang_up(&mut self, socket: u64) {
        self.emulator.hang_up(socket);
    }

    fn counts(&self) -> Result<Vec<Count>, Error> {
        let (emulator, kernel) = (self.emulator.counts()?, self.kernel().counts()?);
        let differing = emulator.iter().zip(&kernel).enumerate().filter(|(_, (left, right))| left != right);
        self.compare("counters (number, emulator, kernel)", &Vec::new(), &differing.collect());
        Ok(emulator)
    }
}

impl<A: Address> Tracks<A> for Twins
where
    Emulator: Tracks<A>,
    Kernel: Tracks<A>,
{
    fn connections(&self) -> Result<Flows<A>, Error> {
        let (emulator, kernel) = (self.emulator.connections()?, self.kernel().connections()?);
        // Each engine numbers what its agent has written by itself: what counts is whether the way still holds.
        let emulated = holding(&emulator, dataplane::Machine::generation(&self.emulator));
        self.compare("conntrack rows", &emulated, &holding(&kernel, self.kernel().generation()));
        Ok(emulator)
    }

    fn masquerades(&self) -> Result<Claims<A>, Error> {
        let (emulator, kernel) = (self.emulator.masquerades()?, self.kernel().masquerades()?);
        self.compare("masquerade rows", &emulator, &kernel);
        Ok(emulator)
    }

    fn fragments(&self) -> Result<Pieces<A>, Error> {
        let (emulator, kernel) = (self.emulator.fragments()?, self.kernel().fragments()?);
        self.compare("fragment rows", &emulator, &kernel);
        Ok(emulator)
    }

    fn affinities(&self) -> Result<Clients<A>, Error> {
        let (emulator, kernel) = (self.emulator.affinities()?, self.kernel().affinities()?);
        self.compare("affinity rows", &emulator, &kernel);
        Ok(emulator)
    }
}

impl Clock for Twins {
    fn now_s(&self) -> Result<u32, Error> {
        let (emulator, kernel) = (self.emulator.now_s()?, self.kernel().now_s()?);
        self.compare("clocks", &emulator, &kernel);
        Ok(emulator)
    }

    fn wait(&mut self, seconds: u32) -> Result<(), Error> {
        self.emulator.wait(seconds)?;
        self.kernel_mut().wait(seconds)
    }

    fn set_random(&mut self, number: u32) -> Result<(), Error> {
        self.emulator.set_random(number)?;
        self.kernel_mut().set_random(number)
    }

    fn sweep(&mut self) -> Result<(), Error> {
        self.emulator.sweep()?;
        self.kernel_mut().sweep()
    }
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

/// The nodes of a drawn cluster, each with both engines.
pub(crate) struct Cluster {
    nodes: Vec<Watched<Twins>>,
    /// What the agents have written on each.
    rows: Vec<NodeRows>,
    differences: Differences,
    kinds: Kinds,
    performed: usize,
}

impl Cluster {
    pub(crate) fn new(nodes: &[(NodePlan, Links)], capacities: &Capacities) -> Result<Self, Error> {
        let differences: Differences = Rc::default();
        let rows = nodes.iter().map(|(plan, _)| plan.rows.clone()).collect();
        let nodes = nodes.iter().map(|(plan, _)| {
            let twins = Twins::new(plan, &fitting(plan, capacities), Rc::clone(&differences))?;
            Ok(Watched::new(twins, plan, Rc::clone(&differences)))
        });
        let nodes = nodes.collect::<Result<_, Error>>()?;
        Ok(Self { nodes, rows, differences, kinds: Kinds::default(), performed: 0 })
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
                let outcome = node.push(*hook, *interface, frame).expect("both engines take frames");
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

    /// What was found to differ, or not to be sound, so far.
    pub(crate) fn difference(&self) -> Option<String> {
        let differences = self.differences.borrow();
        (!differences.is_empty()).then(|| differences.join("\n"))
    }
}

/// The rows, each with 1 for the number of a way that still holds, and 0 for any other.
fn holding<A: Address>(rows: &Flows<A>, generation: u32) -> Flows<A> {
    let held = |way: Way| Way { generation: u32::from(way.generation == generation), ..way };
    rows.iter().map(|(tuple, row)| (*tuple, Connection { way: held(row.way), ..*row })).collect()
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
