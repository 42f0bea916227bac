//! One node: the path, its tables in memory, a clock that is moved by hand.

use std::net::{IpAddr, SocketAddr};

use dataplane::flow::{self, Flow};
use dataplane::overlay::{self, Carried};
use dataplane::socket::{self, Call};
use dataplane::tables::{
    Affine, Affinities, Affinity, Allowed, Backend, BackendId, Backends, Connection, Connections, Cookie,
    Dialled, Endpoint, Endpoints, Fragment, Fragmented, Fragments, Frontend, Frontends, Holds, Home, Homes,
    Identities, Identity, IfIndex, Maglev, Masquerade, Masqueraded, Masquerades, Node, NodeId, Nodes,
    NotAdded, Policy, PolicyKey, PolicyRow, Route, Routes, Service, Socket, Sockets, SourceRange,
    SourceRanges, Timeouts, Tuple, Writes,
};
use dataplane::trace::Record;
use dataplane::verdict::AUDITED;
use dataplane::wire::{Address, Be16, Family, V4, V6};
use dataplane::{Machine, Platform, Turn, Verdict, path};
use dataplane::{conntrack, fragment, service};

use super::frame::Frame;
use super::tables::{ArrayTable, HashTable, LongestTable};
use crate::engine::{
    Capacities, Claims, Clients, Clock, Count, Dialling, Engine, Flows, Hook, Outcome, Pieces, Tracks, after,
};
use crate::error::Error;
use crate::plan::{self, Change, Legs, NodeChange, NodePlan, NodeRows, Rows, diff};

/// Where the clock starts, in seconds: a node that has been up for a while.
const START_S: u32 = 1000;

/// Reports that are kept until somebody takes them; more are counted as lost.
const RECORDS: usize = 4096;

/// The packet path of one node, in this process.
#[derive(Debug)]
pub struct Emulator {
    node: Node,
    capacities: Capacities,
    /// The rows that the tables hold which the agent writes to.
    rows: NodeRows,
    nodes: HashTable<Nodes>,
    v4: Tables<V4>,
    v6: Tables<V6>,
    clock_s: u32,
    /// How often the agent has written.
    generation: u32,
    /// Whether a flow's way holds at all.
    short_ways: bool,
    /// What chance gives next.
    random: u32,
    tracing: bool,
    records: Vec<Record>,
    lost: u64,
    counts: Vec<Count>,
}

/// What a node has for one family.
#[derive(Debug)]
struct Tables<A: Address> {
    address: A,
    endpoints: HashTable<Endpoints<A>>,
    frontends: HashTable<Frontends<A>>,
    maglev: ArrayTable<Maglev<A>>,
    backends: ArrayTable<Backends<A>>,
    affinities: HashTable<Affinities<A>>,
    source_ranges: LongestTable<SourceRanges<A>>,
    connections: HashTable<Connections<A>>,
    identities: LongestTable<Identities<A>>,
    policy: LongestTable<Policy<A>>,
    masquerades: HashTable<Masquerades<A>>,
    routes: LongestTable<Routes<A>>,
    fragments: HashTable<Fragments<A>>,
    homes: HashTable<Homes<A>>,
    sockets: HashTable<Sockets<A>>,
}

impl<A: Address> Tables<A> {
    fn new(address: A, capacities: &Capacities) -> Self {
        Self {
            address,
            endpoints: HashTable::new(capacities.rows::<Endpoints<A>>()),
            frontends: HashTable::new(capacities.rows::<Frontends<A>>()),
            maglev: ArrayTable::new(capacities.rows::<Maglev<A>>()),
            backends: ArrayTable::new(capacities.rows::<Backends<A>>()),
            affinities: HashTable::new(capacities.rows::<Affinities<A>>()),
            source_ranges: LongestTable::new(capacities.rows::<SourceRanges<A>>()),
            connections: HashTable::new(capacities.rows::<Connections<A>>()),
            identities: LongestTable::new(capacities.rows::<Identities<A>>()),
            policy: LongestTable::new(capacities.rows::<Policy<A>>()),
            masquerades: HashTable::new(capacities.rows::<Masquerades<A>>()),
            routes: LongestTable::new(capacities.rows::<Routes<A>>()),
            fragments: HashTable::new(capacities.rows::<Fragments<A>>()),
            homes: HashTable::new(capacities.rows::<Homes<A>>()),
            sockets: HashTable::new(capacities.rows::<Sockets<A>>()),
        }
    }

    /// Makes a change; whether it fits has been asked.
    fn make(&mut self, change: Change<A>) {
        match change {
            Change::Endpoint(key, row) => self.endpoints.set(key, row),
            Change::Frontend(key, row) => self.frontends.set(key.into(), row),
            Change::SourceRange(key, row) => self.source_ranges.set(key.into(), row),
            Change::Slot(index, row) => self.maglev.set(index, row),
            Change::Backend(index, row) => self.backends.set(index, row),
            Change::Identity(key, row) => self.identities.set(key, row),
            Change::Policy(key, row) => self.policy.set(key.into(), row),
            Change::Route(key, row) => self.routes.set(key, row),
            Change::Home(key, row) => self.homes.set(key, row),
        }
    }

    /// Clients that no Service remembers any more go.
    fn forget_clients(&mut self, rows: &Rows<A>) {
        for client in plan::forgotten(rows, &self.affinities.sorted()) {
            self.affinities.remove(&client);
        }
    }

    /// What is of no more use by `now_s` goes.
    fn sweep(&mut self, now_s: u32, timeouts: &Timeouts) {
        self.connections.retain(|key, row| !conntrack::is_spent(row, key.protocol, now_s, timeouts));
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
        self.fragments.retain(|_, row| !fragment::is_over(row, now_s));
        self.affinities.retain(|_, row| !service::is_over(row, now_s));
    }
}

impl Emulator {
    /// A node with the plan's rows in tables of the usual capacities.
    ///
    /// # Errors
    /// [`Error::TableTooSmall`].
    pub fn new(plan: &NodePlan) -> Result<Self, Error> {
        Self::with_capacities(plan, &Capacities::default())
    }

    /// A node with the plan's rows in tables of these capacities.
    ///
    /// # Errors
    /// [`Error::TableTooSmall`].
    pub fn with_capacities(plan: &NodePlan, capacities: &Capacities) -> Result<Self, Error> {
        let mut emulator = Self {
            node: plan.node,
            capacities: capacities.clone(),
            rows: NodeRows::default(),
            nodes: HashTable::new(capacities.rows::<Nodes>()),
            v4: Tables::new(plan.addresses.0, capacities),
            v6: Tables::new(plan.addresses.1, capacities),
            clock_s: START_S,
            generation: 0,
            short_ways: true,
            random: plan.node.seed,
            tracing: true,
            records: Vec::new(),
            lost: 0,
            counts: vec![Count::default(); Verdict::COUNTERS as usize],
        };
        emulator.apply(&plan.rows)?;
        emulator.generation = after(emulator.generation);
        Ok(emulator)
    }

    /// Whether every stage reports (as at first), or only what must be known of any packet.
    pub fn trace(&mut self, tracing: bool) {
        self.tracing = tracing;
    }

    /// Whether packets of known flows go the short way (as at first), or all of them the long way, as they do while an
    /// agent writes. Both come to the same.
    pub fn take_short_ways(&mut self, short: bool) {
        self.short_ways = short;
    }

    /// Runs one frame through a hook, in place: [`Engine::push`] without its copies. Reports gather until
    /// [`Emulator::take_records`].
    pub fn run(&mut self, hook: Hook, frame: &mut Frame) -> Verdict {
        match hook {
            Hook::FromPod => match flow::family(frame) {
                Family::V4 => path::from_pod::<V4, _, _>(self, frame, &mut path::Walk::default()),
                Family::V6 => path::from_pod::<V6, _, _>(self, frame, &mut path::Walk::default()),
            },
            Hook::FromHost => match flow::family(frame) {
                Family::V4 => path::from_host::<V4, _, _>(self, frame, &mut path::Walk::default()),
                Family::V6 => path::from_host::<V6, _, _>(self, frame, &mut path::Walk::default()),
            },
            Hook::FromUnderlay => {
                let (mut carried, mut verdict) = (Carried::default(), Verdict::Stack);
                let told = (&mut carried, &mut verdict);
                // What the short way has read is there for the long one.
                let (mut v4, mut v6) = (None, None);
                let known = match overlay::inside(frame) {
                    Family::V4 => {
                        let walk = v4.insert(path::Walk::default());
                        path::from_tunnel_known::<V4, _, _>(self, frame, walk, told)
                    }
                    Family::V6 => {
                        let walk = v6.insert(path::Walk::default());
                        path::from_tunnel_known::<V6, _, _>(self, frame, walk, told)
                    }
                };
                if known {
                    return verdict;
                }
                if let Err(reason) = path::from_tunnel(self, frame, &mut carried) {
                    return Verdict::Drop(reason);
                }
                match flow::family(frame) {
                    Family::V4 => {
                        path::from_underlay::<V4, _, _>(self, frame, v4.get_or_insert_default(), &carried)
                    }
                    Family::V6 => {
                        path::from_underlay::<V6, _, _>(self, frame, v6.get_or_insert_default(), &carried)
                    }
                }
            }
        }
    }

    fn connect<A: Address>(&mut self, dialling: &Dialling, address: A) -> SocketAddr
    where
        Self: Platform<A>,
    {
        let mut call = Call {
            socket: Cookie::new(dialling.socket),
            home: Cookie::new(dialling.netns),
            address,
            port: Be16::new(dialling.target.port()),
            protocol: dialling.protocol,
        };
        socket::connect(self, &mut call);
        let address = IpAddr::from(call.address.to_v6().0).to_canonical();
        SocketAddr::new(address, call.port.host())
    }

    /// The number that chance gives the next packet that asks.
    pub fn chance(&self) -> u32 {
        self.random
    }

    /// The reports since the last time, in order.
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// Nobody wants the reports since the last time.
    pub fn forget_records(&mut self) {
        self.records.clear();
    }

    /// Reports that could not be kept, because nobody took the earlier ones.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl Engine for Emulator {
    fn legs(&self, rows: &NodeRows) -> Result<Legs, Error> {
        let policy_rows = (self.v4.policy.capacity(), self.v6.policy.capacity());
        let legs = diff(&self.rows, &rows.fitting(policy_rows), policy_rows);
        self.capacities.check_room(&self.rows, legs.iter().flatten())?;
        Ok(legs)
    }

    fn change(&mut self, changes: &[NodeChange]) -> Result<(), Error> {
        self.capacities.check_room(&self.rows, changes)?;
        // What is known of flows stays known where nothing changes.
        if changes.is_empty() {
            return Ok(());
        }
        let remembers = changes.iter().any(|change| self.rows.remembers(change));
        for change in changes {
            match *change {
                NodeChange::Node(key, row) => self.nodes.set(key, row),
                NodeChange::V4(change) => self.v4.make(change),
                NodeChange::V6(change) => self.v6.make(change),
            }
            self.rows.make(*change);
        }
        self.generation = after(self.generation);
        if remembers {
            self.v4.forget_clients(&self.rows.v4);
            self.v6.forget_clients(&self.rows.v6);
        }
        Ok(())
    }

    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, Error> {
        self.records.clear();
        let mut frame = Frame::new(frame, interface);
        let verdict = self.run(hook, &mut frame);
        Ok(Outcome { verdict, frame: frame.bytes().to_vec(), records: self.take_records() })
    }

    fn lead(&mut self, dialling: &Dialling) -> Result<(SocketAddr, Vec<Record>), Error> {
        self.records.clear();
        let target = match dialling.target.ip() {
            IpAddr::V4(address) => self.connect(dialling, V4(address.octets())),
            IpAddr::V6(address) => self.connect(dialling, V6(address.octets())),
        };
        Ok((target, self.take_records()))
    }

    fn hang_up(&mut self, socket: u64) {
        socket::release::<V4>(self, Cookie::new(socket));
        socket::release::<V6>(self, Cookie::new(socket));
    }

    fn counts(&self) -> Result<Vec<Count>, Error> {
        Ok(self.counts.clone())
    }
}

impl Clock for Emulator {
    fn now_s(&self) -> Result<u32, Error> {
        Ok(self.clock_s)
    }

    fn wait(&mut self, seconds: u32) -> Result<(), Error> {
        self.clock_s = self.clock_s.saturating_add(seconds);
        Ok(())
    }

    fn set_random(&mut self, number: u32) -> Result<(), Error> {
        self.random = number;
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), Error> {
        self.v4.sweep(self.clock_s, &self.node.timeouts);
        self.v6.sweep(self.clock_s, &self.node.timeouts);
        // Slots may have changed where they are.
        self.v4.forget_clients(&self.rows.v4);
        self.v6.forget_clients(&self.rows.v6);
        Ok(())
    }
}

impl Machine for Emulator {
    #[inline]
    fn node(&self) -> Node {
        self.node
    }

    #[inline]
    fn now_s(&self) -> u32 {
        self.clock_s
    }

    fn generation(&self) -> u32 {
        if self.short_ways { self.generation } else { 0 }
    }

    /// A sequence that the node's seed starts.
    fn random(&mut self) -> u32 {
        let number = self.random;
        self.random = flow::mix(number.wrapping_add(0x9e37_79b9));
        number
    }

    #[inline]
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

    #[inline]
    fn count(&mut self, verdict: Verdict, bytes: u32) {
        let count = &mut self.counts[verdict.counter() as usize];
        count.packets += 1;
        count.bytes += u64::from(bytes);
    }

    #[inline]
    fn count_turn(&mut self, turn: Turn) {
        self.counts[turn.counter() as usize].packets += 1;
    }

    #[inline]
    fn count_audited(&mut self) {
        self.counts[AUDITED as usize].packets += 1;
    }
}

impl Holds<Nodes> for Emulator {
    fn row(&self, key: &V6) -> Option<NodeId> {
        self.nodes.row(key)
    }
}

/// Says which field holds which table of a family.
macro_rules! holds {
    ($family:ident $address:ty; $($field:ident: $table:ident, $key:ty => $row:ty;)+) => { $(
        impl Holds<$table<$address>> for Emulator {
            #[inline]
            fn row(&self, key: &$key) -> Option<$row> {
                self.$family.$field.row(key)
            }
        }
    )+ };
}

/// Says which of them the path may change.
macro_rules! writes {
    ($family:ident $address:ty; $($field:ident: $table:ident, $key:ty => $row:ty;)+) => { $(
        impl Writes<$table<$address>> for Emulator {
            #[inline]
            fn change<R>(&mut self, key: &$key, change: impl FnOnce(&mut $row) -> R) -> Option<R> {
                self.$family.$field.change(key, change)
            }
            #[inline]
            fn add(&mut self, key: &$key, row: &$row) -> Result<(), NotAdded> {
                self.$family.$field.add(key, row)
            }
            #[inline]
            fn put(&mut self, key: &$key, row: &$row) -> Result<(), NotAdded> {
                self.$family.$field.put(key, row)
            }
            #[inline]
            fn remove(&mut self, key: &$key) {
                self.$family.$field.remove(key);
            }
        }
    )+ };
}

/// Everything that a node has for one family.
macro_rules! platform {
    ($($family:ident: $address:ty;)+) => { $(
        impl Platform<$address> for Emulator {
            #[inline]
            fn address(&self) -> $address {
                self.$family.address
            }
        }

        impl Tracks<$address> for Emulator {
            fn connections(&self) -> Result<Flows<$address>, Error> {
                Ok(self.$family.connections.sorted())
            }

            fn masquerades(&self) -> Result<Claims<$address>, Error> {
                Ok(self.$family.masquerades.sorted())
            }

            fn fragments(&self) -> Result<Pieces<$address>, Error> {
                Ok(self.$family.fragments.sorted())
            }

            fn affinities(&self) -> Result<Clients<$address>, Error> {
                Ok(self.$family.affinities.sorted())
            }
        }

        holds! { $family $address;
            endpoints: Endpoints, $address => Endpoint;
            frontends: Frontends, Frontend<$address> => Service;
            maglev: Maglev, u32 => BackendId;
            backends: Backends, u32 => Backend<$address>;
            affinities: Affinities, Affinity<$address> => Affine;
            source_ranges: SourceRanges, SourceRange<$address> => Allowed;
            connections: Connections, Tuple<$address> => Connection<$address>;
            identities: Identities, $address => Identity;
            policy: Policy, PolicyKey => PolicyRow;
            masquerades: Masquerades, Masquerade<$address> => Masqueraded<$address>;
            routes: Routes, $address => Route;
            fragments: Fragments, Fragment<$address> => Fragmented;
            homes: Homes, Cookie => Home<$address>;
            sockets: Sockets, Socket => Dialled<$address>;
        }

        writes! { $family $address;
            affinities: Affinities, Affinity<$address> => Affine;
            connections: Connections, Tuple<$address> => Connection<$address>;
            masquerades: Masquerades, Masquerade<$address> => Masqueraded<$address>;
            fragments: Fragments, Fragment<$address> => Fragmented;
            sockets: Sockets, Socket => Dialled<$address>;
        }
    )+ };
}

platform! {
    v4: V4;
    v6: V6;
}
