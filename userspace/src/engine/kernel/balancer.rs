//! The load balancer's walk in the kernel, as an XDP program.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray, ProgramArray};
use aya::programs::xdp::XdpLinkId;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun, TestRunOptions};
use dataplane::tables::{Balancer as Constants, Pin, Pinned, Pins, Reals, Ring, Table, Virtuals};
use dataplane::verdict::Fate;
use dataplane::wire::{Address, V4, V6};

use super::clock::coarse_clock_s;
use super::error::{Error, sentence};
use super::netns::Netns;
use super::object;
use super::table::{ArrayTable, HashTable, Row};
use super::{table_failed, take, typed, verifier};
use crate::engine::Count;
use crate::engine::balancer::{Carrier, FamilyRows, Keeps, Rows};

/// Room for what is put around a frame.
const OUTER_BYTES: usize = 40;
const COUNTS: &str = "counts";
const AT_HOME: &str = "at_home";
const AT_HOME_V6: &str = "at_home_v6";
const CLOCK: &str = "clock";
const TESTED: &str = "tested";
const TEMPLATE: &str = "template";

/// What the program says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is lost.
    Drop,
    /// It goes to the network stack.
    Pass,
    /// It goes out where it came in.
    Send,
    /// Something else: an error.
    Other(u32),
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tested {
    /// The program.
    Balance,
    /// One that does nothing, in its place.
    Trivial,
}

/// How the program is hooked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel makes anything of a frame.
    Native,
    /// In the kernel's own receive path, where the driver has no place for it.
    Generic {
        /// What the driver said.
        why: String,
    },
}

/// A link's end: its namespace's path, and its name there.
pub type Place<'a> = (&'a Path, &'a str);

/// A load balancer in the kernel. It is hooked in for as long as this lives.
pub struct Balancer {
    ebpf: Ebpf,
    v4: Tables<V4>,
    v6: Tables<V6>,
    counts: PerCpuArray<MapData, [u64; 2]>,
    clock: Array<MapData, u32>,
    tested: ProgramArray<MapData>,
    template: Array<MapData, [u32; 4]>,
}

struct Tables<A: Address> {
    rows: FamilyRows<A>,
    virtuals: HashTable<Virtuals<A>>,
    ring: ArrayTable<Ring<A>>,
    reals: ArrayTable<Reals<A>>,
    pins: HashTable<Pins<A>>,
    at_home: Array<MapData, u32>,
}

impl fmt::Debug for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer").finish_non_exhaustive()
    }
}

/// The rows of an array that are not as they were.
fn different<R: Copy + PartialEq>(from: &[R], to: &[R]) -> impl Iterator<Item = (u32, R)> {
    (0..)
        .zip(to)
        .enumerate()
        .filter(|(place, (_, row))| from.get(*place) != Some(row))
        .map(|(_, (index, row))| (index, *row))
}

/// Brings an array, of which these rows are known, to others. If that fails nothing is known of it any more, and the
/// next time all of it is written.
fn write<T: Table<Row: PartialEq>>(
    table: &mut ArrayTable<T>,
    known: &mut Vec<T::Row>,
    rows: &[T::Row],
) -> Result<(), Error> {
    let before = std::mem::take(known);
    table.write(different(&before, rows)).map_err(|stopped| stopped.why)?;
    known.extend_from_slice(rows);
    Ok(())
}

impl<A: Address> Tables<A> {
    fn new(ebpf: &mut Ebpf, at_home: &'static str) -> Result<Self, Error> {
        Ok(Self {
            rows: FamilyRows::default(),
            virtuals: HashTable::new(take(ebpf, Virtuals::<A>::NAME)?)?,
            ring: ArrayTable::new(take(ebpf, Ring::<A>::NAME)?)?,
            reals: ArrayTable::new(take(ebpf, Reals::<A>::NAME)?)?,
            pins: HashTable::new(take(ebpf, Pins::<A>::NAME)?)?,
            at_home: typed(take(ebpf, at_home)?, at_home)?,
        })
    }

    /// Nodes first, then slots, then frontends: no packet meets a row that points to one not yet there.
    fn apply(&mut self, rows: &FamilyRows<A>) -> Result<(), Error> {
        write(&mut self.reals, &mut self.rows.reals, &rows.reals)?;
        write(&mut self.ring, &mut self.rows.ring, &rows.ring)?;
        let known = &mut self.rows.virtuals;
        let gone: Vec<_> = known.keys().filter(|key| !rows.virtuals.contains_key(key)).copied().collect();
        for key in gone {
            self.virtuals.set(&key.into(), None)?;
            known.remove(&key);
        }
        for (key, row) in &rows.virtuals {
            if known.get(key) != Some(row) {
                self.virtuals.set(&(*key).into(), Some(*row))?;
                known.insert(*key, *row);
            }
        }
        Ok(())
    }

    /// A packet may come between the look and the removal: then its flow is pinned anew, to who has its slot now.
    fn forget(&mut self, pin: &Pin<A>, seen_s: u32) -> Result<(), Error> {
        if self.pins.row(pin)?.is_some_and(|pinned| pinned.seen_s <= seen_s) {
            self.pins.set(pin, None)?;
        }
        Ok(())
    }

    fn at_home_s(&self, slot: u32) -> Result<u32, Error> {
        self.at_home.get(&slot, 0).map_err(table_failed("read", AT_HOME))
    }
}

impl Balancer {
    /// Loads the program, with empty tables; with a clock that stands still but for [`Self::set_clock`], or the
    /// kernel's.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], [`Error::Object`], [`Error::Refused`].
    pub fn load(constants: Constants, fixed_clock: bool) -> Result<Self, Error> {
        let bytes = object::BALANCER.map_err(Error::NotBuilt)?;
        let (constants, fixed_clock) = (Row(constants), u32::from(fixed_clock));
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("BALANCER", &constants, true);
        loader.override_global("FIXED_CLOCK", &fixed_clock, true);
        let mut ebpf = loader.load(bytes).map_err(|why| Error::Object { why: sentence(&why) })?;
        for name in ["balance", "pass", "empty", "trivial", "restore"] {
            load_program(&mut ebpf, name)?;
        }
        Ok(Self {
            v4: Tables::new(&mut ebpf, AT_HOME)?,
            v6: Tables::new(&mut ebpf, AT_HOME_V6)?,
            counts: typed(take(&mut ebpf, COUNTS)?, COUNTS)?,
            clock: typed(take(&mut ebpf, CLOCK)?, CLOCK)?,
            tested: typed(take(&mut ebpf, TESTED)?, TESTED)?,
            template: typed(take(&mut ebpf, TEMPLATE)?, TEMPLATE)?,
            ebpf,
        })
    }

    /// Brings the tables to exactly these rows; pins stay.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn apply(&mut self, rows: &Rows) -> Result<(), Error> {
        self.v4.apply(&rows.v4)?;
        self.v6.apply(&rows.v6)
    }

    /// Sets a clock that stands still.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn set_clock(&mut self, seconds: u32) -> Result<(), Error> {
        self.clock.set(0, seconds, 0).map_err(table_failed("write", CLOCK))
    }

    /// Walks one frame through: what the program says, and the frame as it is then.
    ///
    /// # Errors
    /// [`Error::Run`].
    pub fn push(&mut self, frame: &[u8]) -> Result<(Action, Vec<u8>), Error> {
        let mut out = vec![0; frame.len() + OUTER_BYTES];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..Default::default()
        };
        let result = program(&mut self.ebpf, "balance")?
            .test_run(options)
            .map_err(|why| failed("balance", frame, sentence(&why)))?;
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Send,
            other => Action::Other(other),
        };
        Ok((action, out))
    }

    /// Hooks the program into one end of a veth pair: in the driver, if it takes it.
    ///
    /// A veth sends back what came in only if its other end takes frames by NAPI, as one with a program there does:
    /// so that one is given a program that lets everything pass. What arrives must bear whole checksums, and be
    /// no longer than it would be on a wire.
    ///
    /// # Errors
    /// [`Error::Attach`], [`Error::File`]; nothing is hooked in then.
    pub fn attach(&mut self, place: Place<'_>, other_end: Place<'_>) -> Result<Mode, Error> {
        let refused = match self.attach_one("pass", other_end, XdpMode::Driver) {
            Ok(passing) => match self.attach_one("balance", place, XdpMode::Driver) {
                Ok(_) => return Ok(Mode::Native),
                Err(why) => {
                    let detached = program(&mut self.ebpf, "pass")?.detach(passing);
                    detached.map_err(|why| not_attached("pass", other_end.1, &why))?;
                    why
                }
            },
            Err(why) => why,
        };
        self.attach_one("balance", place, XdpMode::Skb).map(|_| Mode::Generic { why: refused.to_string() })
    }

    fn attach_one(
        &mut self,
        name: &'static str,
        (netns, interface): Place<'_>,
        mode: XdpMode,
    ) -> Result<XdpLinkId, Error> {
        let program = program(&mut self.ebpf, name)?;
        let attached = Netns::open(netns)?.run(|| program.attach(interface, mode))?;
        attached.map_err(|why| not_attached(name, interface, &why))
    }

    /// How long an empty program takes, on average of so many repeats.
    ///
    /// # Errors
    /// [`Error::Run`].
    pub fn time_nothing(&mut self, frame: &[u8], repeat: u32) -> Result<Duration, Error> {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..Default::default() };
        let result = program(&mut self.ebpf, "empty")?.test_run(options);
        result.map(|result| result.duration).map_err(|why| failed("empty", frame, sentence(&why)))
    }

    /// How long a frame takes on average of so many repeats, each of another one of `flows` flows (a power of
    /// two), with what makes it so. The next call goes on with the flow behind the last one's.
    ///
    /// # Errors
    /// [`Error::Run`], [`Error::Table`].
    pub fn time(&mut self, tested: Tested, frame: &[u8], flows: u32, repeat: u32) -> Result<Duration, Error> {
        let name = if tested == Tested::Balance { "balance" } else { "trivial" };
        let target = program(&mut self.ebpf, name)?
            .fd()
            .and_then(|fd| fd.try_clone().map_err(ProgramError::IOError))
            .map_err(|why| failed(name, frame, sentence(&why)))?;
        self.tested.set(0, &target, 0).map_err(table_failed("write", TESTED))?;
        let v6 = u32::from(frame.get(12) == Some(&0x86));
        let [_, _, next, _] = self.template.get(&0, 0).map_err(table_failed("read", TEMPLATE))?;
        self.template
            .set(0, [flows - 1, frame.len() as u32, next, v6], 0)
            .map_err(table_failed("write", TEMPLATE))?;
        let options = TestRunOptions { data_in: Some(frame), repeat, ..Default::default() };
        let result = program(&mut self.ebpf, "restore")?
            .test_run(options)
            .map_err(|why| failed("restore", frame, sentence(&why)))?;
        match result.return_value {
            3 => Ok(result.duration),
            other => {
                Err(failed("restore", frame, format!("it ended with action {other}, and was not sent back")))
            }
        }
    }

    /// What time it is by the clock of a program that has the kernel's.
    pub fn now_ns() -> u64 {
        u64::from(coarse_clock_s()) * 1_000_000_000
    }

    /// Packets and bytes by [`Fate::counter`].
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn counts(&self) -> Result<Vec<Count>, Error> {
        let mut counts = Vec::new();
        for index in 0..Fate::COUNTERS {
            let values = self.counts.get(&index, 0).map_err(table_failed("read", COUNTS))?;
            let sum = |count: Count, [packets, bytes]: &[u64; 2]| Count {
                packets: count.packets + packets,
                bytes: count.bytes + bytes,
            };
            counts.push(values.iter().fold(Count::default(), sum));
        }
        Ok(counts)
    }
}

impl Carrier for Balancer {
    fn apply(&mut self, rows: &Rows) -> Result<(), crate::error::Error> {
        rows.v4.fit()?;
        rows.v6.fit()?;
        Ok(Self::apply(self, rows)?)
    }

    fn counts(&self) -> Result<Vec<Count>, crate::error::Error> {
        Ok(Self::counts(self)?)
    }
}

/// Says which field holds which tables.
macro_rules! family {
    ($($field:ident: $family:ident;)+) => { $(
        impl Keeps<$family> for Balancer {
            fn pins(&self) -> Result<Vec<(Pin<$family>, Pinned)>, crate::error::Error> {
                Ok(self.$field.pins.sorted()?)
            }
            fn forget(&mut self, pin: &Pin<$family>, seen_s: u32) -> Result<(), crate::error::Error> {
                Ok(self.$field.forget(pin, seen_s)?)
            }
            fn at_home_s(&self, slot: u32) -> Result<u32, crate::error::Error> {
                Ok(self.$field.at_home_s(slot)?)
            }
        }
    )+ };
}

family! {
    v4: V4;
    v6: V6;
}

fn not_attached(program: &'static str, interface: &str, why: &dyn std::error::Error) -> Error {
    Error::Attach { program, interface: interface.to_owned(), why: sentence(why) }
}

fn failed(program: &'static str, frame: &[u8], why: String) -> Error {
    Error::Run { program, length: frame.len(), interface: 0, why }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, Error> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Error::Program { program: name, why: "the object has no such program".to_owned() })?;
    program.try_into().map_err(|why: ProgramError| Error::Program { program: name, why: sentence(&why) })
}

/// Has the verifier look at a program.
fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    verifier::said(name, program(ebpf, name)?.load())
}
