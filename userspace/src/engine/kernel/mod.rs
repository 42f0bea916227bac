//! Engine 1: the packet path in the kernel, for one node.
//!
//! [`Kernel::load`] loads the programs with the node's constants, fills the tables the agent writes to, and
//! takes over the tables the path writes to, if they are pinned. [`Kernel::attach`] then hooks the programs
//! in. Nothing else touches the kernel's packets.
//!
//! ```text
//! load: programs -> tables filled -> attach: links, each given the new program in one step
//! ```

pub mod balancer;
mod batch;
pub mod bpf;
pub mod cgroup;
mod clock;
mod diag;
mod driver;
mod error;
mod events;
mod family;
mod generation;
mod held;
mod hook;
mod laps;
mod measure;
mod netns;
pub mod object;
mod pin;
mod renew;
mod run;
mod sockets;
mod spare;
mod summed;
mod sweep;
pub mod switch;
mod table;
mod uplink;
mod verified;
mod verifier;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use aya::maps::{Array, MapData, MapType, PerCpuArray};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use aya_log::{EbpfLogger, Level};
use dataplane::Verdict;
use dataplane::tables::{
    Affinities, Connections, Fragments, IfIndex, Masquerades, Node, Nodes, Policy, Sockets, Table,
};
use dataplane::trace::Record;
use dataplane::wire::{Address, V4, V6};
use tracing::warn;

pub use error::Error;
pub use hook::Way;
pub use laps::{Stopwatch, Times};
pub use measure::{Frames, Tested};
pub use pin::Pins;
pub use sockets::{Namespaces, cookie_of};
pub use sweep::{Sweeper, Swept};
pub use verified::{Verified, verified};

use crate::engine::{Capacities, Claims, Clients, Count, Engine, Flows, Hook, Outcome, Pieces, Tracks};
use crate::plan::{Legs, NodeChange, NodePlan, NodeRows, diff};
use error::sentence;
use events::Events;
use family::{Family, Tables};
use generation::Generation;
use hook::Hooked;
use netns::Netns;
use pin::Layout;
use table::{HashTable, Row};
use verifier::load_program;

/// Bytes of the ring buffer that reports go through. See `ebpf/src/maps.rs`.
const RECORDS_BYTES: u32 = 1 << 20;
/// Where a fixed clock starts, in seconds: a node that has been up for a while.
const START_S: u32 = 1000;

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 3] = [Self::FromPod, Self::FromUnderlay, Self::FromHost];

    /// The name of its program, which is its word in a walk.
    pub fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::FromUnderlay => "from_underlay",
            Self::FromHost => "from_host",
        }
    }
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// [`Table::NAME`].
    pub table: &'static str,
    /// Rows it holds.
    pub rows: usize,
    /// Rows it can hold.
    pub capacity: u32,
}

impl Pressure {
    /// Whether there is less room left than is taken.
    fn is_high(&self) -> bool {
        self.rows > self.capacity as usize / 2
    }
}

/// How a node's packet path is to be loaded.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Rows of each table.
    pub capacities: Capacities,
    /// Every stage reports.
    pub trace: bool,
    /// Time stands still but for [`Clock::wait`].
    pub fixed_clock: bool,
    /// It is loaded to be timed, and not to be attached: see [`Kernel::time`].
    pub measured: bool,
    /// One in so many packets is timed, by lot: see [`Kernel::take_stopwatch`]. 0: none, and its programs are as usual.
    pub timed: u32,
    /// Where what outlives this process is kept; without, nothing does.
    pub pins: Option<Pins>,
    /// The node's network namespace; without, the calling thread's.
    pub netns: Option<PathBuf>,
}

/// The packet path of one node, in the kernel.
pub struct Kernel {
    ebpf: Ebpf,
    options: Options,
    /// What [`Options::capacities`] came to on this node.
    capacities: Capacities,
    /// What the programs know of the node.
    node: Node,
    netns: Option<Netns>,
    /// The rows that the tables hold which the agent writes to.
    rows: NodeRows,
    nodes: HashTable<Nodes>,
    v4: Tables<V4>,
    v6: Tables<V6>,
    counts: PerCpuArray<MapData, [u64; 2]>,
    clock: Array<MapData, u32>,
    generation: Generation,
    events: Events,
    /// Says what the programs have logged.
    flush_log: Option<Box<dyn FnMut() + Send>>,
    hooked: BTreeMap<(Hook, String), Hooked>,
    /// The program in the uplink's driver, and where.
    drivers: Vec<(String, Hooked)>,
    /// The programs that sockets meet.
    sockets: Vec<Hooked>,
    /// Its tables of Services are those that are pinned.
    held: bool,
    /// The same with tracing on, if it is off here, or off.
    spare: Option<Box<Kernel>>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("options", &self.options)
            .field("hooked", &self.hooked)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the packet path of a node, with its rows. Nothing is hooked in yet.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], [`Error::Object`], [`Error::Refused`]; or what [`Engine::apply`] says.
    pub fn load(plan: &NodePlan, options: Options) -> Result<Self, crate::error::Error> {
        let netns = options.netns.as_deref().map(Netns::open).transpose()?;
        let capacities = sized(plan, &options.capacities)?;
        if let Some(pins) = &options.pins {
            pins.create()?;
            for layout in lasting(&capacities) {
                pins.keep_if_alike(layout)?;
            }
        }
        let peer = inside(netns.as_ref(), || uplink::has_peer(plan.node.uplink))?;
        let mut ebpf = object(plan, (&options, peer), &capacities, VerifierLogLevel::default())?;
        let flush_log = program_log(&mut ebpf);
        for hook in Hook::ALL {
            load_program(&mut ebpf, hook.program())?;
        }
        for name in cgroup::PROGRAMS.iter().filter(|_| plan.node.sockets != 0) {
            load_program(&mut ebpf, name)?;
        }
        if driver::has_program(&plan.node) {
            load_program(&mut ebpf, driver::PROGRAM)?;
        }
        for name in measure::PROGRAMS.iter().filter(|_| options.measured) {
            load_program(&mut ebpf, name)?;
        }
        let mut kernel = Self {
            nodes: HashTable::new(take(&mut ebpf, Nodes::NAME)?)?,
            v4: Tables::new(&mut ebpf)?,
            v6: Tables::new(&mut ebpf)?,
            counts: typed(take(&mut ebpf, COUNTS)?, COUNTS)?,
            clock: typed(take(&mut ebpf, CLOCK)?, CLOCK)?,
            generation: Generation::new(&mut ebpf, options.fixed_clock && options.pins.is_none())?,
            events: Events::new(take(&mut ebpf, RECORDS)?, take(&mut ebpf, LOST)?)?,
            ebpf,
            netns,
            options,
            capacities,
            node: plan.node,
            rows: NodeRows::default(),
            flush_log,
            hooked: BTreeMap::new(),
            drivers: Vec::new(),
            sockets: Vec::new(),
            held: false,
            spare: None,
        };
        kernel.set_clock(START_S)?;
        kernel.apply(&plan.rows)?;
        kernel.generation.next()?;
        Ok(kernel)
    }

    /// Hooks the programs into these interfaces, and into no others: what was hooked in before, by this or
    /// by another process with the same pins, gets the new program in one step, or is taken off.
    ///
    /// # Errors
    /// [`Error::Attach`], [`Error::File`]. What is hooked in already stays so.
    pub fn attach(&mut self, places: &[(Hook, String)]) -> Result<(), Error> {
        self.attach_by(Way::best(), places)
    }

    /// [`Kernel::attach`] in a way of the caller's choice, for kernels and tests.
    ///
    /// # Errors
    /// As [`Kernel::attach`].
    pub fn attach_by(&mut self, way: Way, places: &[(Hook, String)]) -> Result<(), Error> {
        let mut before = std::mem::take(&mut self.hooked);
        for (hook, interface) in places {
            let program = scheduled(&mut self.ebpf, hook.program())?;
            let place = (hook.program(), interface.as_str());
            let pins = self.options.pins.as_ref();
            let held = before.remove(&(*hook, interface.clone()));
            let hooked = inside(self.netns.as_ref(), || match held {
                Some(held) if held.is_held_at(interface) => Ok(held),
                _ => hook::attach(program, place, way, pins),
            })??;
            self.hooked.insert((*hook, interface.clone()), hooked);
        }
        self.attach_drivers(places)?;
        self.attach_sockets()?;
        self.hold()?;
        if way == Way::Clsact {
            let gone = before.keys().filter(|place| !self.hooked.contains_key(place));
            for (hook, interface) in gone {
                inside(self.netns.as_ref(), || hook::detach_filter(hook.program(), interface))?;
            }
        } else if let Some(pins) = &self.options.pins {
            let packets = places.iter().map(|(hook, interface)| pins.link(hook.program(), interface));
            let others = self.driver_pins(pins).into_iter().chain(self.socket_pins(pins));
            let keep: Vec<_> = packets.chain(others).collect();
            pins.keep_links(&keep)?;
        }
        Ok(())
    }

    /// Takes the programs off their interfaces, and removes what was pinned. A node without pins needs no
    /// more than to be dropped, unless its programs are filters.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(mut self) -> Result<(), Error> {
        for ((hook, interface), hooked) in std::mem::take(&mut self.hooked) {
            if matches!(hooked, Hooked::Filter) {
                inside(self.netns.as_ref(), || hook::detach_filter(hook.program(), &interface))?;
            }
        }
        self.options.pins.as_ref().map_or(Ok(()), Pins::remove)
    }

    /// Loads the programs anew, with tracing on or off, and puts them into the places of these. The tables
    /// that the path writes to are kept if they are pinned.
    ///
    /// # Errors
    /// As [`Kernel::load`] and [`Kernel::attach`]; these programs go on then.
    pub fn reload(&mut self, plan: &NodePlan, trace: bool) -> Result<(), crate::error::Error> {
        let mut next = Self::load(plan, Options { trace, ..self.options.clone() })?;
        let places: Vec<_> = self.hooked.keys().cloned().collect();
        // A driver takes one program at a time. Until it has the next, packets walk the path behind it.
        self.drivers.clear();
        next.attach(&places)?;
        *self = next;
        Ok(())
    }

    /// How full the tables are that the path fills.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn pressure(&self) -> Result<Vec<Pressure>, Error> {
        let (v4, v6) = (self.v4.pressure(&self.capacities)?, self.v6.pressure(&self.capacities)?);
        Ok(v4.into_iter().chain(v6).collect())
    }

    /// The reports since the last time, in order.
    pub fn take_records(&mut self) -> Vec<Record> {
        if let Some(flush) = &mut self.flush_log {
            flush();
        }
        self.events.take()
    }

    /// Reports that found no room, because nobody took the earlier ones.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn lost(&self) -> Result<u64, Error> {
        self.events.lost()
    }

    /// The number by which the path knows whether the agent has written since.
    pub fn generation(&self) -> u32 {
        self.generation.number()
    }

    /// The rows that its tables hold which the agent writes to.
    pub fn rows(&self) -> &NodeRows {
        &self.rows
    }

    /// Whether every stage reports.
    pub fn tracing(&self) -> bool {
        self.options.trace
    }

    /// Room in a table that was asked for by name.
    fn capacity(&self, table: &'static str, usual: u32) -> u32 {
        self.capacities.named(table).unwrap_or(usual)
    }

    /// Room in the policy tables of IPv4 and IPv6.
    fn policy_rows(&self) -> (u32, u32) {
        let room = |table, usual| self.capacity(table, usual);
        (room(Policy::<V4>::NAME, Policy::<V4>::CAPACITY), room(Policy::<V6>::NAME, Policy::<V6>::CAPACITY))
    }

    fn set_clock(&mut self, seconds: u32) -> Result<(), Error> {
        self.clock.set(0, seconds, 0).map_err(table_failed("write", CLOCK))
    }

    /// Bytes of memory that each table takes, by its name.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn memory(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        let nodes = (Nodes::NAME, self.nodes.bytes()?);
        Ok([vec![nodes], self.v4.bytes()?, self.v6.bytes()?].concat())
    }
}

impl Engine for Kernel {
    fn legs(&self, rows: &NodeRows) -> Result<Legs, crate::error::Error> {
        let policy_rows = self.policy_rows();
        let legs = diff(&self.rows, &rows.fitting(policy_rows), policy_rows);
        self.capacities.check_room(&self.rows, legs.iter().flatten())?;
        Ok(legs)
    }

    fn change(&mut self, changes: &[NodeChange]) -> Result<(), crate::error::Error> {
        self.capacities.check_room(&self.rows, changes)?;
        // What is known of flows stays known where nothing changes.
        if changes.is_empty() {
            return Ok(());
        }
        self.spare = None;
        let remembers = changes.iter().any(|change| self.rows.remembers(change));
        self.generation.suspend()?;
        let written = self.write(changes);
        // Also where that failed half way: what was written is there, the next change begins with it, and as the tables do
        // not change any more, what they hold may be learned.
        let made = written.as_ref().err().map_or(changes.len(), |stopped| stopped.made);
        changes[..made].iter().for_each(|change| self.rows.make(*change));
        self.generation.next()?;
        if remembers {
            self.forget_clients()?;
        }
        Ok(written.map_err(|stopped| stopped.why)?)
    }

    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, crate::error::Error> {
        self.events.take();
        let driver = hook == Hook::FromUnderlay && self.is_accelerated();
        let (ebpf, name) = (&mut self.ebpf, hook.program());
        let (verdict, frame) = inside(self.netns.as_ref(), || {
            if driver {
                return driver::run(ebpf, interface, frame);
            }
            run::run(scheduled(ebpf, name)?, name, interface, frame)
        })??;
        Ok(Outcome { verdict, frame, records: self.events.take() })
    }

    fn counts(&self) -> Result<Vec<Count>, crate::error::Error> {
        let mut counts = Vec::new();
        for index in 0..Verdict::COUNTERS {
            let values = self.counts.get(&index, 0).map_err(table_failed("read", COUNTS))?;
            let mut count = Count::default();
            for [packets, bytes] in values.iter() {
                count.packets += packets;
                count.bytes += bytes;
            }
            counts.push(count);
        }
        Ok(counts)
    }
}

impl<A: Family> Tracks<A> for Kernel {
    fn connections(&self) -> Result<Flows<A>, crate::error::Error> {
        Ok(A::tables(self).connections.sorted()?)
    }

    fn masquerades(&self) -> Result<Claims<A>, crate::error::Error> {
        Ok(A::tables(self).masquerades.sorted()?)
    }

    fn fragments(&self) -> Result<Pieces<A>, crate::error::Error> {
        Ok(A::tables(self).fragments.sorted()?)
    }

    fn affinities(&self) -> Result<Clients<A>, crate::error::Error> {
        Ok(A::tables(self).affinities.sorted()?)
    }
}

const COUNTS: &str = "counts";
const CLOCK: &str = "clock";
/// Where in it the number is that chance gives.
const RANDOM: u32 = 1;
const RECORDS: &str = "records";
const LOST: &str = "lost";

/// The capacities of a node's tables. One without an address of a family has no flows of it, and the tables
/// for them are the largest that there are.
fn sized(plan: &NodePlan, asked: &Capacities) -> Result<Capacities, crate::error::Error> {
    fn without<A: Address>(capacities: &mut Capacities) -> Result<(), crate::error::Error> {
        for table in
            [Connections::<A>::NAME, Masquerades::<A>::NAME, Affinities::<A>::NAME, Sockets::<A>::NAME]
        {
            if capacities.named(table).is_none() {
                capacities.set(table, 1)?;
            }
        }
        Ok(())
    }
    let mut capacities = asked.clone();
    if plan.node.sockets == 0 {
        for table in [Sockets::<V4>::NAME, Sockets::<V6>::NAME] {
            if capacities.named(table).is_none() {
                capacities.set(table, 1)?;
            }
        }
    }
    if plan.addresses.0 == V4::default() {
        without::<V4>(&mut capacities)?;
    }
    if plan.addresses.1 == V6::default() {
        without::<V6>(&mut capacities)?;
    }
    Ok(capacities)
}

/// The maps that outlive a process: what the path itself has written.
fn lasting(capacities: &Capacities) -> [Layout; 13] {
    fn of<T: Table>(capacities: &Capacities) -> Layout {
        let (key, row) = (size_of::<T::Key>() as u32, size_of::<T::Row>() as u32);
        Layout { name: T::NAME, kind: MapType::Hash, key, row, rows: capacities.rows::<T>() }
    }
    [
        of::<Connections<V4>>(capacities),
        of::<Masquerades<V4>>(capacities),
        of::<Fragments<V4>>(capacities),
        of::<Affinities<V4>>(capacities),
        of::<Sockets<V4>>(capacities),
        of::<Connections<V6>>(capacities),
        of::<Masquerades<V6>>(capacities),
        of::<Fragments<V6>>(capacities),
        of::<Affinities<V6>>(capacities),
        of::<Sockets<V6>>(capacities),
        Layout { name: COUNTS, kind: MapType::PerCpuArray, key: 4, row: 16, rows: Verdict::COUNTERS },
        Layout { name: LOST, kind: MapType::PerCpuArray, key: 4, row: 8, rows: 1 },
        Layout { name: RECORDS, kind: MapType::RingBuf, key: 0, row: 0, rows: RECORDS_BYTES },
    ]
}

/// Makes the maps, and the programs with the node's constants in them.
fn object(
    plan: &NodePlan,
    (options, peer): (&Options, bool),
    capacities: &Capacities,
    verifier_says: VerifierLogLevel,
) -> Result<Ebpf, Error> {
    let bytes = object::OBJECT.map_err(Error::NotBuilt)?;
    let (node, v4, v6) = (Row(plan.node), Row(plan.addresses.0), Row(plan.addresses.1));
    let (trace, fixed_clock) = (u32::from(options.trace), u32::from(options.fixed_clock));
    let uplink_peer = u32::from(peer);
    let measured = u32::from(options.measured);
    let log = if tracing::enabled!(tracing::Level::DEBUG) { Level::Debug as u8 } else { 0 };
    let mut loader = EbpfLoader::new();
    // Nothing in the object depends on the kernel's own types: not to read them saves most of the time.
    loader.btf(None);
    loader.verifier_log_level(verifier_says);
    loader.override_global("NODE", &node, true);
    loader.override_global("ADDRESS_V4", &v4, true);
    loader.override_global("ADDRESS_V6", &v6, true);
    loader.override_global("TRACE", &trace, true);
    loader.override_global("FIXED_CLOCK", &fixed_clock, true);
    loader.override_global("UPLINK_PEER", &uplink_peer, true);
    loader.override_global("MEASURED", &measured, true);
    loader.override_global("TIMED", &options.timed, true);
    loader.override_global(aya_log::LEVEL, &log, true);
    for (table, rows) in capacities.all() {
        loader.map_max_entries(table, rows);
    }
    if let Some(pins) = &options.pins {
        for layout in lasting(capacities) {
            loader.map_pin_path(layout.name, pins.map(layout.name));
        }
    }
    loader.load(bytes).map_err(|why| Error::Object { why: sentence(&why) })
}

/// The programs' own log, if they write one.
fn program_log(ebpf: &mut Ebpf) -> Option<Box<dyn FnMut() + Send>> {
    match EbpfLogger::init(ebpf) {
        Ok(mut logger) => Some(Box::new(move || logger.flush())),
        Err(why) => {
            warn!("no log of the programs: {}", sentence(&why));
            None
        }
    }
}

/// Takes a map out of the object.
fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, Error> {
    ebpf.take_map(name).ok_or_else(|| Error::Object { why: format!("it has no map {name}") })
}

/// A map of this engine alone.
fn typed<M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    map: aya::maps::Map,
    name: &'static str,
) -> Result<M, Error> {
    M::try_from(map).map_err(table_failed("open", name))
}

/// Says why a map of this engine alone could not be used.
fn table_failed(tried: &'static str, table: &'static str) -> impl Fn(aya::maps::MapError) -> Error {
    move |why| Error::Table { tried, table, why: sentence(&why) }
}

/// A program of the object.
fn scheduled<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, Error> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Error::Program { program: name, why: "the object has no such program".to_owned() })?;
    program.try_into().map_err(|why: ProgramError| Error::Program { program: name, why: sentence(&why) })
}

/// Runs `work` in the namespace, or here if there is none.
fn inside<T>(netns: Option<&Netns>, work: impl FnOnce() -> T) -> Result<T, Error> {
    match netns {
        Some(netns) => netns.run(work),
        None => Ok(work()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn names_with_dots_have_a_place_among_the_pins() {
        let pins = Pins::of("lab", "ip-10-0-0-1.internal");
        assert_eq!(pins.path(), Path::new("/sys/fs/bpf/podpath/lab/ip-10-0-0-1~internal"));
    }
}
