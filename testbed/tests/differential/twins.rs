//! Two engines in step: whatever one is given, the other is given, and they must agree.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;

use dataplane::Verdict;
use dataplane::tables::{Connection, IfIndex, Node, Way};
use dataplane::trace::Record;
use dataplane::wire::{Address, V4, V6};
use testbed::sound::hex;
use userspace::engine::emulator::Emulator;
use userspace::engine::kernel::{self, Kernel, Options};
use userspace::engine::{
    Capacities, Claims, Clients, Clock, Count, Dialling, Engine, Flows, Hook, Outcome, Pieces, Tracks,
};
use userspace::error::Error;
use userspace::plan::{Legs, NodeChange, NodePlan, NodeRows};

use super::cluster::{Differences, Pair, shortest};

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
    traced: bool,
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

impl Pair for Twins {
    fn new(
        plan: &NodePlan,
        capacities: &Capacities,
        traced: bool,
        differences: Differences,
    ) -> Result<Self, Error> {
        let options = Options {
            capacities: capacities.clone(),
            trace: traced,
            fixed_clock: true,
            ..Options::default()
        };
        let kind =
            Kind { node: plan.node, addresses: plan.addresses, capacities: capacities.clone(), traced };
        let kernel = match kind.loaded() {
            Some(mut kernel) => kernel.renew(&plan.rows).map(|()| kernel)?,
            None => Kernel::load(plan, options)?,
        };
        let mut emulator = Emulator::with_capacities(plan, capacities)?;
        emulator.trace(traced);
        Ok(Self { emulator, kernel: Some(kernel), kind, differences })
    }

    fn emulator(&self) -> &Emulator {
        &self.emulator
    }
}

impl Twins {
    fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().expect("nobody has laid it aside")
    }

    fn kernel_mut(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("nobody has laid it aside")
    }

    /// Whether the sum of a packet with this verdict is to be its own afterwards, where it came with one: not where
    /// headers were written anew, nor of what is dropped (see `dataplane::Packet::tell`).
    fn keeps_sum(&self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Deliver(_) | Verdict::Stack => true,
            Verdict::Forward(_) => self.kind.node.encapsulation == Node::PLAIN,
            Verdict::Answer | Verdict::Reject(_) | Verdict::Drop(_) => false,
        }
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
        let summed = is_summed(frame) && self.keeps_sum(emulator.verdict);
        let kernel = if summed {
            self.kernel_mut().push_summed(hook, interface, frame)
        } else {
            self.kernel_mut().push(hook, interface, frame)
        };
        if let Err(Error::Kernel(error @ kernel::Error::Sum { .. })) = &kernel {
            self.differences.borrow_mut().push(format!("{error}: {:?}", emulator.verdict));
            return Ok(emulator);
        }
        let kernel = kernel?;
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

/// Whether the kernel is given a frame as a network card hands it over, with the sum of its packet: every other one, and
/// the same one every time.
fn is_summed(frame: &[u8]) -> bool {
    frame.iter().fold(0, |all, byte| all ^ byte) & 1 == 0
}

/// The rows, each with 1 for the number of a way that still holds, and 0 for any other.
fn holding<A: Address>(rows: &Flows<A>, generation: u32) -> Flows<A> {
    let held = |way: Way| Way { generation: u32::from(way.generation == generation), ..way };
    rows.iter().map(|(tuple, row)| (*tuple, Connection { way: held(row.way), ..*row })).collect()
}
