//! Two engines in step: whatever one is given, the other is given, and they must agree.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use dataplane::Verdict;
use dataplane::tables::IfIndex;
use dataplane::wire::{Address, V4, V6};
use userspace::engine::emulator::Emulator;
use userspace::engine::emulator::topology::Interfaces;
use userspace::engine::kernel::{Kernel, Options};
use userspace::engine::{Capacities, Claims, Clock, Count, Engine, Flows, Hook, Outcome, Pieces, Tracks};
use userspace::error::Error;
use userspace::model;
use userspace::plan::{NodePlan, NodeRows, Plan};

/// What was found to differ, in words, shared by all nodes of a cluster.
pub(crate) type Differences = Rc<RefCell<Vec<String>>>;

/// The emulator and the kernel as one engine: it answers what the emulator answers.
pub(crate) struct Twins {
    emulator: Emulator,
    kernel: Kernel,
    differences: Differences,
}

impl Twins {
    pub(crate) fn new(
        plan: &NodePlan,
        capacities: &Capacities,
        differences: Differences,
    ) -> Result<Self, Error> {
        let options =
            Options { capacities: capacities.clone(), trace: true, fixed_clock: true, ..Options::default() };
        let kernel = Kernel::load(plan, options)?;
        let mut emulator = Emulator::with_capacities(plan, capacities)?;
        emulator.trace(true);
        Ok(Self { emulator, kernel, differences })
    }

    fn compare<T: PartialEq + fmt::Debug>(&self, what: &str, emulator: &T, kernel: &T) {
        if emulator != kernel {
            self.differences
                .borrow_mut()
                .push(format!("{what} differ\n  emulator: {emulator:?}\n  kernel:   {kernel:?}"));
        }
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
        Ok(())
    }
}

impl Engine for Twins {
    fn apply(&mut self, rows: &NodeRows) -> Result<(), Error> {
        self.emulator.apply(rows)?;
        self.kernel.apply(rows)
    }

    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, Error> {
        let emulator = self.emulator.push(hook, interface, frame)?;
        if frame.len() < shortest(frame) {
            return Ok(emulator);
        }
        let kernel = self.kernel.push(hook, interface, frame)?;
        self.compare("verdicts", &emulator.verdict, &kernel.verdict);
        self.compare("bytes", &hex(&emulator.frame), &hex(&kernel.frame));
        self.compare("reports", &emulator.records, &kernel.records);
        Ok(emulator)
    }

    fn counts(&self) -> Result<Vec<Count>, Error> {
        let (emulator, kernel) = (self.emulator.counts()?, self.kernel.counts()?);
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
        let (emulator, kernel) = (self.emulator.connections()?, self.kernel.connections()?);
        self.compare("conntrack rows", &emulator, &kernel);
        Ok(emulator)
    }

    fn masquerades(&self) -> Result<Claims<A>, Error> {
        let (emulator, kernel) = (self.emulator.masquerades()?, self.kernel.masquerades()?);
        self.compare("masquerade rows", &emulator, &kernel);
        Ok(emulator)
    }

    fn fragments(&self) -> Result<Pieces<A>, Error> {
        let (emulator, kernel) = (self.emulator.fragments()?, self.kernel.fragments()?);
        self.compare("fragment rows", &emulator, &kernel);
        Ok(emulator)
    }
}

impl Clock for Twins {
    fn now_s(&self) -> Result<u32, Error> {
        let (emulator, kernel) = (self.emulator.now_s()?, self.kernel.now_s()?);
        self.compare("clocks", &emulator, &kernel);
        Ok(emulator)
    }

    fn wait(&mut self, seconds: u32) -> Result<(), Error> {
        self.emulator.wait(seconds)?;
        self.kernel.wait(seconds)
    }

    fn sweep(&mut self) -> Result<(), Error> {
        self.emulator.sweep()?;
        self.kernel.sweep()
    }
}

/// The shortest frame that the kernel's test run takes: one with an Ethernet header, and with an IPv4 header
/// if it says that it has one (`bpf_prog_test_run_skb` in `net/bpf/test_run.c`).
pub(crate) fn shortest(frame: &[u8]) -> usize {
    let ipv4 = frame.get(12..14).is_some_and(|kind| kind == [8, 0]);
    if ipv4 { 14 + 20 } else { 14 }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One thing that is done to a cluster.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// A frame enters a node.
    Frame { node: usize, hook: Hook, interface: IfIndex, frame: Vec<u8> },
    /// Seconds pass.
    Wait(u32),
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { node, hook, interface, frame } => {
                write!(f, "node {node} {hook:?} interface {}: {}", interface.0, hex(frame))
            }
            Self::Wait(seconds) => write!(f, "wait {seconds}s"),
        }
    }
}

/// How many frames came to which kind of verdict.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kinds {
    delivered: usize,
    forwarded: usize,
    answered: usize,
    stack: usize,
    dropped: std::collections::BTreeMap<&'static str, usize>,
}

impl Kinds {
    fn note(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Deliver(_) => self.delivered += 1,
            Verdict::Forward(_) => self.forwarded += 1,
            Verdict::Answer => self.answered += 1,
            Verdict::Stack => self.stack += 1,
            Verdict::Reject(reason) | Verdict::Drop(reason) => {
                *self.dropped.entry(reason.slug()).or_default() += 1
            }
        }
    }

    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.delivered += other.delivered;
        self.forwarded += other.forwarded;
        self.answered += other.answered;
        self.stack += other.stack;
        for (reason, count) in &other.dropped {
            *self.dropped.entry(reason).or_default() += count;
        }
        self
    }

    /// Enough of everything that a path is for, and most of what it refuses.
    pub(crate) fn are_varied(&self) -> bool {
        let enough = [self.delivered, self.forwarded, self.stack].into_iter().all(|count| count >= 300);
        enough && self.answered >= 10 && self.dropped.len() >= 12
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delivered, forwarded, answered, stack, dropped } = self;
        write!(f, "{delivered} delivered, {forwarded} forwarded, {answered} answered, {stack} to the stack")?;
        dropped.iter().try_for_each(|(reason, count)| write!(f, ", {count} {reason}"))
    }
}

/// The nodes of a drawn cluster, each with both engines.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<(Twins, Vec<IfIndex>)>,
    /// Frames that came out of a node, as they were: what may enter the next.
    pub(crate) flying: Vec<Vec<u8>>,
    differences: Differences,
    kinds: Kinds,
    performed: usize,
}

impl Cluster {
    pub(crate) fn new(cluster: &model::Cluster, capacities: &Capacities) -> Result<Self, Error> {
        let differences: Differences = Rc::default();
        let mut interfaces = Interfaces::default();
        let plan = Plan::of(cluster)?;
        let mut nodes = Vec::new();
        for node in &cluster.nodes {
            let links = interfaces.of(cluster, &node.name);
            let twins = Twins::new(&plan.node(&node.name, &links)?, capacities, Rc::clone(&differences))?;
            nodes.push((twins, links.pods.values().copied().collect()));
        }
        Ok(Self { nodes, flying: Vec::new(), differences, kinds: Kinds::default(), performed: 0 })
    }

    pub(crate) fn kinds(&self) -> Kinds {
        self.kinds.clone()
    }

    /// Does it, and tells what differed. Rows are compared now and then, or every time.
    pub(crate) fn perform(&mut self, act: &Act, always: bool) -> Option<String> {
        self.performed += 1;
        match act {
            Act::Wait(seconds) => {
                for (twins, _) in &mut self.nodes {
                    twins.wait(*seconds).expect("clocks can be set");
                }
            }
            Act::Frame { node, hook, interface, frame } => {
                let (twins, _) = &mut self.nodes[*node];
                let outcome = twins.push(*hook, *interface, frame).expect("both engines take frames");
                self.kinds.note(outcome.verdict);
                if matches!(outcome.verdict, Verdict::Forward(_) | Verdict::Deliver(_)) {
                    self.flying.push(outcome.frame);
                    if self.flying.len() > 64 {
                        self.flying.remove(0);
                    }
                }
                if always || self.performed.is_multiple_of(8) {
                    twins.compare_rows().expect("tables can be read");
                }
            }
        }
        self.difference()
    }

    /// Compares every row of every node.
    pub(crate) fn compare_rows(&self) -> Option<String> {
        for (twins, _) in &self.nodes {
            twins.compare_rows().expect("tables can be read");
        }
        self.difference()
    }

    fn difference(&self) -> Option<String> {
        let differences = self.differences.borrow();
        (!differences.is_empty()).then(|| differences.join("\n"))
    }
}
