//! One node: the path, its tables in memory, a clock that is moved by hand.

use dataplane::conntrack;
use dataplane::flow::Flow;
use dataplane::tables::{
    Backend, BackendId, Backends, Connection, Connections, Endpoint, Endpoints, Frontend, Frontends, Holds,
    Identities, Identity, IfIndex, Maglev, Masquerade, Masqueraded, Masquerades, Node, NodeId, Nodes,
    NotAdded, Policy, PolicyKey, PolicyRow, Route, Routes, Slots, Tuple, Writes,
};
use dataplane::trace::Record;
use dataplane::wire::Address;
use dataplane::{Platform, Verdict, path};

use super::frame::Frame;
use super::tables::{ArrayTable, HashTable, LongestTable};
use crate::engine::{Capacities, Claims, Clock, Count, Engine, Flows, Hook, Outcome};
use crate::error::Error;
use crate::plan::{NodePlan, Rows};

/// Where the clock starts, in seconds: a node that has been up for a while.
const START_S: u32 = 1000;

/// Reports that are kept until somebody takes them; more are counted as lost.
const RECORDS: usize = 4096;

/// The packet path of one node, in this process.
#[derive(Debug)]
pub struct Emulator<A: Address> {
    node: Node<A>,
    endpoints: HashTable<Endpoints<A>>,
    frontends: HashTable<Frontends<A>>,
    maglev: ArrayTable<Maglev>,
    backends: ArrayTable<Backends<A>>,
    connections: HashTable<Connections<A>>,
    identities: LongestTable<Identities<A>>,
    policy: LongestTable<Policy>,
    masquerades: HashTable<Masquerades<A>>,
    routes: LongestTable<Routes<A>>,
    nodes: HashTable<Nodes<A>>,
    clock_s: u32,
    tracing: bool,
    records: Vec<Record>,
    lost: u64,
    counts: Vec<Count>,
}

impl<A: Address> Emulator<A> {
    /// A node with the plan's rows in tables of the usual capacities.
    ///
    /// # Errors
    /// [`Error::TableTooSmall`].
    pub fn new(plan: &NodePlan<A>) -> Result<Self, Error> {
        Self::with_capacities(plan, &Capacities::default())
    }

    /// A node with the plan's rows in tables of these capacities.
    ///
    /// # Errors
    /// [`Error::TableTooSmall`].
    pub fn with_capacities(plan: &NodePlan<A>, capacities: &Capacities) -> Result<Self, Error> {
        let mut emulator = Self {
            node: plan.node,
            endpoints: HashTable::new(capacities.rows::<Endpoints<A>>()),
            frontends: HashTable::new(capacities.rows::<Frontends<A>>()),
            maglev: ArrayTable::new(capacities.rows::<Maglev>()),
            backends: ArrayTable::new(capacities.rows::<Backends<A>>()),
            connections: HashTable::new(capacities.rows::<Connections<A>>()),
            identities: LongestTable::new(capacities.rows::<Identities<A>>()),
            policy: LongestTable::new(capacities.rows::<Policy>()),
            masquerades: HashTable::new(capacities.rows::<Masquerades<A>>()),
            routes: LongestTable::new(capacities.rows::<Routes<A>>()),
            nodes: HashTable::new(capacities.rows::<Nodes<A>>()),
            clock_s: START_S,
            tracing: true,
            records: Vec::new(),
            lost: 0,
            counts: vec![Count::default(); Verdict::COUNTERS as usize],
        };
        emulator.apply(&plan.rows)?;
        Ok(emulator)
    }

    /// Whether every stage reports (as at first), or only what must be known of any packet.
    pub fn trace(&mut self, tracing: bool) {
        self.tracing = tracing;
    }

    /// Runs one frame through a hook, in place: [`Engine::push`] without its copies. Reports gather until
    /// [`Emulator::take_records`].
    pub fn run(&mut self, hook: Hook, frame: &mut Frame) -> Verdict {
        match hook {
            Hook::FromPod => path::from_pod::<A, _, _>(self, frame),
            Hook::FromUnderlay => path::from_underlay::<A, _, _>(self, frame),
            Hook::FromHost => path::from_host::<A, _, _>(self, frame),
        }
    }

    /// The reports since the last time, in order.
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// Removes flows whose time is over, and the claims to source ports of flows that are gone: what the
    /// agent does now and then.
    pub fn sweep(&mut self) {
        let now_s = self.clock_s;
        self.connections.retain(|_, row| !conntrack::is_over(row, now_s));
        let connections = &self.connections;
        self.masquerades.retain(|key, row| {
            let flow = Flow {
                source: row.pod,
                source_port: row.pod_port,
                target: key.remote,
                target_port: key.remote_port,
                protocol: key.protocol,
                ..Flow::default()
            };
            let (tuple, _) = flow.tuple();
            connections.row(&tuple).is_some_and(|connection| connection.masquerade_port == key.port)
        });
    }

    /// Reports that could not be kept, because nobody took the earlier ones.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl<A: Address> Engine<A> for Emulator<A> {
    /// Replaces every row: no packet is under way meanwhile.
    fn apply(&mut self, rows: &Rows<A>) -> Result<(), Error> {
        self.endpoints.fits(rows.endpoints.len())?;
        self.frontends.fits(rows.frontends.len())?;
        self.maglev.fits(rows.maglev.len())?;
        self.backends.fits(rows.backends.len())?;
        self.identities.fits(rows.identities.len())?;
        self.policy.fits(rows.policy.len())?;
        self.routes.fits(rows.routes.len())?;
        self.nodes.fits(rows.nodes.len())?;
        self.endpoints.replace(rows.endpoints.iter().map(|(key, row)| (*key, *row)));
        self.frontends.replace(rows.frontends.iter().map(|(key, row)| ((*key).into(), *row)));
        self.maglev.replace(&rows.maglev);
        self.backends.replace(&rows.backends);
        self.identities.replace(rows.identities.iter().map(|(prefix, row)| (*prefix, *row)));
        self.policy.replace(rows.policy.iter().map(|(prefix, row)| ((*prefix).into(), *row)));
        self.routes.replace(rows.routes.iter().map(|(prefix, row)| (*prefix, *row)));
        self.nodes.replace(rows.nodes.iter().map(|(key, row)| (*key, *row)));
        Ok(())
    }

    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, Error> {
        self.records.clear();
        let mut frame = Frame::new(frame, interface);
        let verdict = self.run(hook, &mut frame);
        Ok(Outcome { verdict, frame: frame.bytes().to_vec(), records: self.take_records() })
    }

    fn connections(&self) -> Result<Flows<A>, Error> {
        Ok(self.connections.sorted())
    }

    fn masquerades(&self) -> Result<Claims<A>, Error> {
        Ok(self.masquerades.sorted())
    }

    fn counts(&self) -> Result<Vec<Count>, Error> {
        Ok(self.counts.clone())
    }
}

impl<A: Address> Clock for Emulator<A> {
    fn now_s(&self) -> Result<u32, Error> {
        Ok(self.clock_s)
    }

    fn wait(&mut self, seconds: u32) -> Result<(), Error> {
        self.clock_s = self.clock_s.saturating_add(seconds);
        Ok(())
    }
}

impl<A: Address> Platform<A> for Emulator<A> {
    fn node(&self) -> Node<A> {
        self.node
    }

    fn now_s(&self) -> u32 {
        self.clock_s
    }

    fn tracing(&self) -> bool {
        self.tracing
    }

    fn report(&mut self, record: &Record) {
        if self.records.len() < RECORDS {
            self.records.push(*record);
        } else {
            self.lost += 1;
        }
    }

    fn count(&mut self, verdict: Verdict, bytes: u32) {
        let count = &mut self.counts[verdict.counter() as usize];
        count.packets += 1;
        count.bytes += u64::from(bytes);
    }
}

/// Says which field holds which table.
macro_rules! holds {
    ($($field:ident: $table:ty, $key:ty => $row:ty;)+) => { $(
        impl<A: Address> Holds<$table> for Emulator<A> {
            #[inline]
            fn row(&self, key: &$key) -> Option<$row> {
                self.$field.row(key)
            }
        }
    )+ };
}

holds! {
    endpoints: Endpoints<A>, A => Endpoint;
    frontends: Frontends<A>, Frontend<A> => Slots;
    maglev: Maglev, u32 => BackendId;
    backends: Backends<A>, u32 => Backend<A>;
    connections: Connections<A>, Tuple<A> => Connection<A>;
    identities: Identities<A>, A => Identity;
    policy: Policy, PolicyKey => PolicyRow;
    masquerades: Masquerades<A>, Masquerade<A> => Masqueraded<A>;
    routes: Routes<A>, A => Route<A>;
    nodes: Nodes<A>, A => NodeId;
}

/// Says which of them the path may change.
macro_rules! writes {
    ($($field:ident: $table:ty, $key:ty => $row:ty;)+) => { $(
        impl<A: Address> Writes<$table> for Emulator<A> {
            #[inline]
            fn change<R>(&mut self, key: &$key, change: impl FnOnce(&mut $row) -> R) -> Option<R> {
                self.$field.change(key, change)
            }
            #[inline]
            fn add(&mut self, key: &$key, row: &$row) -> Result<(), NotAdded> {
                self.$field.add(key, row)
            }
            #[inline]
            fn put(&mut self, key: &$key, row: &$row) -> Result<(), NotAdded> {
                self.$field.put(key, row)
            }
            #[inline]
            fn remove(&mut self, key: &$key) {
                self.$field.remove(key);
            }
        }
    )+ };
}

writes! {
    connections: Connections<A>, Tuple<A> => Connection<A>;
    masquerades: Masquerades<A>, Masquerade<A> => Masqueraded<A>;
}
