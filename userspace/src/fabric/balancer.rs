//! The cloud's load balancer: what is for a frontend goes to a healthy node, by [`dataplane::balance`];
//! [`super::probe`] says who is healthy. Here its tables are planned; a [`Carrier`] carries packets by them.
//!
//! It is there for Services of kind `LoadBalancer`, at their load balancer's addresses. Behind each port of a
//! frontend are all nodes with an address of its family. Each slot of its ring prefers the node with the highest
//! hash of both (rendezvous hashing), of those that are healthy: when one leaves, only its own slots move, and when
//! it is back, it has them again.
//!
//! A slot that has moved settles once its home was sent nothing for [`LoadBalancer::idle_s`], and no pin holds a
//! flow of it at a third node: see [`dataplane::balance`].
//!
//! Where no node is healthy, new flows are dropped, as the clouds do.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use dataplane::balance;
use dataplane::flow::mix;
use dataplane::tables::{Balancer as Constants, Real, Reals, Slot, Table as _, Virtual, Virtuals};
use dataplane::verdict::Miss;
use dataplane::wire::{Be16, Mac, V4, V6};

use super::probe::Prober;
use super::seats::mac_of;
use super::{Error, FrontendReport, Loss};
use crate::engine::balancer::{Carrier, FamilyRows, Keeps, Rows};
use crate::error;
use crate::model::{Cluster, Forward, Service, ServiceKind, ServicePort};
use crate::plan::{Family, FrontendKey};

/// Slots of a frontend's port.
const SLOTS: u32 = 4096;
/// Ports of frontends that there may be in a family: what the ring has room for.
const MOST: usize = 256;
/// For how long after a slot has moved a datagram counts as an old flow's.
const DRAIN_S: u32 = 60;
const SECOND_NS: u64 = 1_000_000_000;

/// A port of a frontend.
type Front = (IpAddr, u16, u8);

/// The load balancer of a cluster.
#[derive(Debug)]
pub(super) struct LoadBalancer<C> {
    pub(super) carrier: C,
    rows: Rows,
    constants: Constants,
    idle_s: u32,
    fronts: Numbers<Front>,
    reals: Numbers<(Front, String)>,
    is_used: bool,
    pub(super) prober: Prober,
}

/// Numbers from 1 on, and one of so many places for each: the number's remainder. One that has come free is given out
/// again after all others: what still remembers whose it was, a pin of a flow, is over by then.
#[derive(Debug)]
struct Numbers<K> {
    given: BTreeMap<K, u16>,
    taken: HashSet<u32>,
    places: u32,
    last: u16,
}

impl<K: Ord> Numbers<K> {
    fn new(places: u32) -> Self {
        Self { given: BTreeMap::new(), taken: HashSet::new(), places, last: 0 }
    }

    /// The number of somebody, who has had it or has it from now on; there must be a place.
    fn of(&mut self, key: K) -> u16 {
        if let Some(number) = self.given.get(&key) {
            return *number;
        }
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if self.taken.insert(self.place(self.last)) {
                break;
            }
        }
        self.given.insert(key, self.last);
        self.last
    }

    /// Whoever does not stay gives back his number.
    fn retain(&mut self, stays: impl Fn(&K) -> bool) {
        self.given.retain(|key, _| stays(key));
        self.taken = self.given.values().map(|number| self.place(*number)).collect();
    }

    fn place(&self, number: u16) -> u32 {
        u32::from(number) % self.places
    }
}

/// Everything behind a port of a frontend.
struct Behind<'a> {
    front: Front,
    service: &'a Service,
    port: &'a ServicePort,
}

/// Whether there is room for a cluster's frontends.
///
/// # Errors
/// [`Error::Frontends`].
pub(super) fn check(cluster: &Cluster) -> Result<(), Error> {
    let (ports, nodes) = (behind(cluster).count(), cluster.nodes.len());
    let limit = match cluster.settings.load_balancer.forward {
        // A row for each port, one for its address, and the way back from each node.
        Forward::NodePort => Virtuals::<V4>::CAPACITY as usize / (nodes + 2),
        // Nobody has number 0.
        Forward::FloatingIp | Forward::IpInIp => (Reals::<V4>::CAPACITY as usize - 1) / nodes.max(1),
    };
    let limit = limit.min(MOST);
    if ports > limit { Err(Error::Frontends { ports, limit }) } else { Ok(()) }
}

/// The addresses at which a cluster's load balancer takes packets.
pub fn frontends(cluster: &Cluster) -> BTreeSet<IpAddr> {
    behind(cluster).map(|behind| behind.front.0).collect()
}

/// What the load balancer of a cluster does, from this hardware address, with this router beside it.
pub(super) fn constants(cluster: &Cluster, mac: Mac, gateway: Mac) -> Constants {
    let settings = &cluster.settings.load_balancer;
    Constants {
        seed: name_hash(&cluster.name),
        drain_s: DRAIN_S,
        mac,
        gateway,
        forward: match settings.forward {
            Forward::FloatingIp => Constants::FLOATING_IP,
            Forward::NodePort => Constants::NODE_PORT,
            Forward::IpInIp => Constants::IP_IN_IP,
        },
        client_affinity: u8::from(settings.client_affinity),
        pad: [0; 2],
    }
}

impl<C: Carrier> LoadBalancer<C> {
    /// One without frontends; the carrier does what the constants say.
    pub(super) fn new(carrier: C, constants: Constants) -> Self {
        Self {
            carrier,
            rows: Rows::default(),
            constants,
            idle_s: 0,
            fronts: Numbers::new(MOST as u32),
            reals: Numbers::new(Reals::<V4>::CAPACITY),
            is_used: false,
            prober: Prober::default(),
        }
    }

    /// Goes on with a cluster that [`check`] found possible, doing what these constants say.
    ///
    /// # Errors
    /// The carrier does not take the rows.
    pub(super) fn apply(
        &mut self,
        cluster: &Cluster,
        constants: Constants,
        now_ns: u64,
    ) -> Result<(), error::Error> {
        self.constants = constants;
        self.idle_s = cluster.settings.load_balancer.idle_timeout_s;
        self.prober.apply(cluster, constants.mac, now_ns);
        self.plan(cluster, now_ns)
    }

    /// Brings the tables to who is healthy now.
    ///
    /// # Errors
    /// The carrier does not take the rows.
    pub(super) fn plan(&mut self, cluster: &Cluster, now_ns: u64) -> Result<(), error::Error> {
        let now_s = seconds(now_ns);
        let there: HashSet<Front> = behind(cluster).map(|behind| behind.front).collect();
        let nodes: HashSet<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
        self.fronts.retain(|front| there.contains(front));
        self.reals.retain(|(front, node)| there.contains(front) && nodes.contains(node.as_str()));
        self.is_used |= !there.is_empty();
        let rows = Rows {
            v4: self.family(cluster, now_s, |rows| &rows.v4),
            v6: self.family(cluster, now_s, |rows| &rows.v6),
        };
        self.carrier.apply(&rows)?;
        self.rows = rows;
        Ok(())
    }

    fn family<A: Family>(
        &mut self,
        cluster: &Cluster,
        now_s: u32,
        old: fn(&Rows) -> &FamilyRows<A>,
    ) -> FamilyRows<A> {
        let before = old(&self.rows).clone();
        let mut rows =
            FamilyRows { reals: before.reals.clone(), ring: before.ring.clone(), ..FamilyRows::default() };
        rows.reals.iter_mut().for_each(|real| real.state = Real::<A>::GONE);
        let pins = if self.constants.forward == Constants::NODE_PORT { Virtual::PINS } else { 0 };
        for behind in behind(cluster) {
            let Some(address) = A::of(behind.front.0) else { continue };
            // `check` has seen to it that there is a place.
            let number = self.fronts.of(behind.front);
            let first = self.fronts.place(number) * SLOTS;
            let service = Virtual { first, count: SLOTS, number, flags: pins, pad: 0 };
            let key = FrontendKey { address, port: behind.front.1, protocol: behind.front.2 };
            let known = before.virtuals.contains_key(&key);
            rows.virtuals.insert(key, service);
            let whole = FrontendKey { address, port: 0, protocol: 0 };
            rows.virtuals.insert(whole, Virtual { flags: Virtual::ADDRESS, ..Virtual::default() });
            let nodes = self.nodes(cluster, &behind, &mut rows);
            let end = (first + SLOTS) as usize;
            if rows.ring.len() < end {
                rows.ring.resize(end, Slot::default());
            }
            for slot in first..first + SLOTS {
                let best = nodes.iter().max_by_key(|(_, hash)| mix(hash ^ slot.wrapping_mul(0x9e37_79b9)));
                let now = best.map_or(0, |(real, _)| *real);
                let row = &mut rows.ring[slot as usize];
                *row = if known { moved(*row, now, now_s) } else { Slot { now, home: now, moved_s: 0 } };
            }
        }
        rows
    }

    /// The rows of the nodes behind a frontend's port: the numbers of those that are healthy, and what a slot's
    /// preference is made of.
    fn nodes<A: Family>(
        &mut self,
        cluster: &Cluster,
        behind: &Behind<'_>,
        rows: &mut FamilyRows<A>,
    ) -> Vec<(u16, u32)> {
        let mut healthy = Vec::new();
        for node in &cluster.nodes {
            let Some(address) = A::among(&node.addresses) else { continue };
            let number = self.reals.of((behind.front, node.name.clone()));
            let is_healthy = self.prober.is_healthy(&behind.service.id(), &node.name);
            let place = usize::from(number);
            if rows.reals.len() <= place {
                rows.reals.resize(place + 1, Real::default());
            }
            let port = behind.port.node_port.unwrap_or(behind.port.port);
            rows.reals[place] = Real {
                address,
                frontend: A::of(behind.front.0).unwrap_or_default(),
                sum: balance::outer_sum(address),
                port: Be16::new(port),
                frontend_port: Be16::new(behind.front.1),
                mac: mac_of(node.address()),
                state: if is_healthy { Real::<A>::ACTIVE } else { Real::<A>::DRAINING },
                pad: 0,
            };
            if self.constants.forward == Constants::NODE_PORT {
                let key = FrontendKey { address, port, protocol: behind.front.2 };
                let (first, virtual_number) = (u32::from(number), self.fronts.given[&behind.front]);
                let back =
                    Virtual { first, count: 0, number: virtual_number, flags: Virtual::RETURN, pad: 0 };
                rows.virtuals.entry(key).or_insert(back);
            }
            if is_healthy {
                healthy.push((number, name_hash(&node.name)));
            }
        }
        healthy
    }

    /// Forgets pins of flows that are over, and settles slots.
    ///
    /// # Errors
    /// The carrier's tables cannot be read, or written.
    pub(super) fn sweep(&mut self, now_ns: u64) -> Result<(), error::Error> {
        let (rows, times) = (&mut self.rows, (self.idle_s, seconds(now_ns)));
        settle::<V4>(&mut self.carrier, (&mut rows.v4, &self.constants), times)?;
        settle::<V6>(&mut self.carrier, (&mut rows.v6, &self.constants), times)?;
        self.carrier.apply(rows)
    }

    /// Whether it has, or had, frontends.
    pub(super) fn is_used(&self) -> bool {
        self.is_used
    }

    /// The frontends, each with its nodes.
    pub(super) fn frontends(&self) -> Vec<FrontendReport> {
        let mut reports: BTreeMap<Front, FrontendReport> = BTreeMap::new();
        for ((front, node), number) in &self.reals.given {
            let slots = share(&self.rows.v4.ring, *number) + share(&self.rows.v6.ring, *number);
            let state = [
                self.rows.v4.reals.get(usize::from(*number)).map(|real| real.state),
                self.rows.v6.reals.get(usize::from(*number)).map(|real| real.state),
            ];
            let state = state.into_iter().flatten().max().unwrap_or(Real::<V4>::GONE);
            let word = match state {
                Real::<V4>::ACTIVE => "healthy",
                Real::<V4>::DRAINING => "unhealthy",
                _ => continue,
            };
            let report = reports.entry(*front).or_insert_with(|| FrontendReport {
                frontend: SocketAddr::new(front.0, front.1),
                protocol: front.2,
                nodes: Vec::new(),
            });
            report.nodes.push(super::RealReport { node: node.clone(), state: word.to_owned(), slots });
        }
        reports.into_values().collect()
    }
}

/// How many slots a node has.
fn share(ring: &[Slot], number: u16) -> u32 {
    ring.iter().filter(|slot| slot.now == number).count() as u32
}

/// A slot after its preference has become `now`.
fn moved(slot: Slot, now: u16, now_s: u32) -> Slot {
    if slot.now == now { slot } else { Slot { now, moved_s: now_s.max(1), ..slot } }
}

/// The slots of a family that have moved, and hold flows of nobody but who has them now, are settled.
fn settle<A: Family>(
    carrier: &mut impl Keeps<A>,
    (rows, constants): (&mut FamilyRows<A>, &Constants),
    (idle_s, now_s): (u32, u32),
) -> Result<(), error::Error> {
    let fronts: HashMap<u16, (FrontendKey<A>, Virtual)> = rows
        .virtuals
        .iter()
        .filter(|(_, row)| row.count > 0)
        .map(|(key, row)| (row.number, (*key, *row)))
        .collect();
    let mut held = HashSet::new();
    for (pin, pinned) in carrier.pins()? {
        if now_s.saturating_sub(pinned.seen_s) >= idle_s {
            carrier.forget(&pin, pinned.seen_s)?;
            continue;
        }
        let Some((key, service)) = fronts.get(&pin.number) else { continue };
        let slot = balance::slot(&pin, &(*key).into(), service, constants);
        let now = rows.ring.get(slot as usize).map_or(0, |row| u32::from(row.now));
        if pinned.real != now {
            held.insert(slot);
        }
    }
    for (slot, row) in (0..).zip(&mut rows.ring) {
        if row.moved_s == 0 || held.contains(&slot) {
            continue;
        }
        let used_s = carrier.at_home_s(slot)?.max(row.moved_s);
        if row.now == row.home || now_s.saturating_sub(used_s) >= idle_s {
            (row.home, row.moved_s) = (row.now, 0);
        }
    }
    Ok(())
}

fn behind(cluster: &Cluster) -> impl Iterator<Item = Behind<'_>> {
    let services = cluster.services.iter().filter(|service| service.kind == ServiceKind::LoadBalancer);
    services.flat_map(|service| {
        service.load_balancer_addresses.iter().flat_map(move |address| {
            let front = |port: &ServicePort| (*address, port.port, port.protocol.number());
            service.ports.iter().map(move |port| Behind { front: front(port), service, port })
        })
    })
}

/// Why a packet was not balanced, in the fabric's words.
pub(super) fn loss_of(miss: Miss) -> Loss {
    match miss {
        Miss::Unreadable => Loss::Unreadable,
        Miss::Fragment => Loss::BalancerFragment,
        Miss::NoFrontend => Loss::NoFrontend,
        Miss::NoHealthyNode => Loss::NoHealthyNode,
        Miss::PinsFull => Loss::BalancerFull,
        Miss::Untranslatable | Miss::WriteFailed => Loss::BalancerTranslation,
    }
}

/// The same on every machine: 32-bit FNV-1a, stirred.
fn name_hash(name: &str) -> u32 {
    mix(name.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)))
}

/// Of a clock in nanoseconds.
pub(super) fn seconds(now_ns: u64) -> u32 {
    u32::try_from(now_ns / SECOND_NS).unwrap_or(u32::MAX)
}
