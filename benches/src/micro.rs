//! What the load balancer's program costs for a packet, in the kernel's own test run (`BPF_PROG_TEST_RUN`).
//!
//! A test run that repeats hands the program what the last repeat made of the frame. So a small program stands
//! before it, which makes the frame what it was, and one of the next of N flows; its cost, with a trivial program in
//! the other's place, is measured as well and taken off: what is left is the program's own.
//!
//! The runs are short, many, and in turn, so that what the machine does beside this meets some of each and not others.
//! Two figures are told of them: the median, and the quiet one, which is what nine of ten runs exceed, because whatever
//! disturbs a run only ever prolongs it. Between two builds compare the quiet ones.

use std::fmt;

use dataplane::balance;
use dataplane::tables::{Balancer as Constants, Real, Slot, Virtual};
use dataplane::wire::{Address, Be16, Mac, Port, V4, V6, checksum};
use serde::Serialize;
use userspace::engine::balancer::{FamilyRows, Rows};
use userspace::engine::kernel::Error as KernelError;
use userspace::engine::kernel::balancer::{Balancer, Tested};
use userspace::plan::FrontendKey;

/// Flows of a measurement.
const FLOWS: [u32; 3] = [1, 1024, 65_536];
/// Packets of one run: each flow comes once.
const REPEAT: u32 = 65_536;
/// Runs of each.
const ROUNDS: u32 = 48;
/// New flows of one run.
const NEW: u32 = 4096;
/// How many new flows a table is given: half of what it holds.
const NEW_IN_A_TABLE: u32 = 65_536;
/// Of so many runs one is quieter than the one that counts as quiet.
const QUIET: usize = 10;
/// Slots of the ring: the best known load balancer's has as many.
const SLOTS: u32 = 65_521;
/// Nodes behind the frontend.
const NODES: u32 = 64;

const FRONTEND: V4 = V4([20, 0, 0, 80]);
const PORT: u16 = 443;

/// What kind of packet is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packet {
    /// A segment of a connection, in a slot that has settled: the ring alone says where it goes.
    Established,
    /// The same over IPv6.
    EstablishedV6,
    /// The same, in a slot that has moved: its flow is pinned.
    Pinned,
    /// A connection's first segment, in a slot that has moved: the flow is pinned by it.
    New,
}

impl Packet {
    const ALL: [Self; 4] = [Self::Established, Self::EstablishedV6, Self::Pinned, Self::New];

    /// What it is, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Established => "established flow",
            Self::EstablishedV6 => "established flow, IPv6",
            Self::Pinned => "established flow of a moved slot",
            Self::New => "new flow of a moved slot",
        }
    }
}

/// What a kind of packet costs with so many flows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which.
    pub packet: Packet,
    /// How many.
    pub flows: u32,
    /// Nanoseconds a packet, without what restores it: the median of the runs.
    pub ns: f64,
    /// The same of the quiet runs: a tenth of them was quieter.
    pub quiet_ns: f64,
    /// What restoring it takes, with a trivial program behind, quiet.
    pub restore_ns: f64,
    /// What an empty program takes, without anything before it, quiet.
    pub empty_ns: f64,
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
#[error("cannot measure the load balancer: {0}")]
pub struct Error(#[from] KernelError);

/// Measures every kind of packet with every number of flows.
///
/// # Errors
/// The program cannot be loaded or run: it needs root.
pub fn measure(mut progress: impl FnMut(&str)) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for packet in Packet::ALL {
        progress(packet.words());
        // A flow is new once: there must be many for an average.
        for flows in FLOWS.into_iter().filter(|flows| packet != Packet::New || *flows > 1024) {
            rows.push(one(packet, flows)?);
        }
    }
    Ok(rows)
}

fn one(packet: Packet, flows: u32) -> Result<Row, Error> {
    let mut runs = [const { Vec::new() }; 3];
    let frame = frame(packet);
    let (flows, repeat) = if packet == Packet::New { (1 << 31, NEW) } else { (flows, REPEAT) };
    let mut balancer = loaded(packet, &frame, flows)?;
    let mut given = 0;
    for _ in 0..ROUNDS {
        if packet == Packet::New && given == NEW_IN_A_TABLE {
            balancer = loaded(packet, &frame, flows)?;
            given = 0;
        }
        given += repeat;
        let restore = balancer.time(Tested::Trivial, &frame, flows, REPEAT)?;
        let whole = balancer.time(Tested::Balance, &frame, flows, repeat)?;
        let empty = balancer.time_nothing(&frame, REPEAT)?;
        for (kept, value) in runs.iter_mut().zip([whole, restore, empty]) {
            kept.push(value.as_nanos() as f64);
        }
    }
    for values in &mut runs {
        values.sort_by(f64::total_cmp);
    }
    let [whole, restore, empty] = &runs;
    let [middle, quiet] = [whole.len() / 2, whole.len() / QUIET];
    Ok(Row {
        packet,
        flows: if packet == Packet::New { NEW_IN_A_TABLE } else { flows },
        ns: whole[middle] - restore[middle],
        quiet_ns: whole[quiet] - restore[quiet],
        restore_ns: restore[quiet],
        empty_ns: empty[quiet],
    })
}

/// A load balancer with the rows that such a packet asks for.
fn loaded(packet: Packet, frame: &[u8], flows: u32) -> Result<Balancer, Error> {
    let mut balancer = Balancer::load(constants(), false)?;
    balancer.apply(&rows_of(matches!(packet, Packet::Pinned | Packet::New)))?;
    if packet == Packet::Pinned {
        balancer.time(Tested::Balance, &with_flags(frame, SYN), flows, flows)?;
    }
    Ok(balancer)
}

fn constants() -> Constants {
    Constants {
        seed: 7,
        drain_s: 60,
        mac: Mac::of(V4([10, 240, 0, 2])),
        gateway: Mac::of(V4([10, 240, 0, 1])),
        forward: Constants::IP_IN_IP,
        client_affinity: 0,
        pad: [0; 2],
    }
}

fn rows_of(moved: bool) -> Rows {
    Rows { v4: family(FRONTEND, |node| V4([10, 240, 1, node]), moved), v6: family(six(80), six, moved) }
}

fn six(last: u8) -> V6 {
    let mut address = V6([0xfd, 0, 2, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    address.0[15] = last;
    address
}

fn family<A: Address>(frontend: A, node: impl Fn(u8) -> A, moved: bool) -> FamilyRows<A> {
    let key = FrontendKey { address: frontend, port: PORT, protocol: 6 };
    let service = Virtual { first: 0, count: SLOTS, number: 1, flags: 0, pad: 0 };
    let real = |number: u32| {
        let address = node(number as u8);
        Real {
            address,
            frontend,
            sum: balance::outer_sum(address),
            port: Port::new(30_080),
            frontend_port: Port::new(PORT),
            mac: Mac::of(address),
            state: if number == 0 { Real::<A>::GONE } else { Real::<A>::ACTIVE },
            pad: 0,
        }
    };
    let slot = |slot: u32| {
        let now = (slot.wrapping_mul(0x9e37_79b1) >> 16) % NODES + 1;
        let home = if moved { now % NODES + 1 } else { now };
        Slot { now: now as u16, home: home as u16, moved_s: u32::from(moved) }
    };
    FamilyRows {
        virtuals: [(key, service)].into(),
        ring: (0..SLOTS).map(slot).collect(),
        reals: (0..=NODES).map(real).collect(),
    }
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// A TCP segment of 64 bytes over IPv4, 84 over IPv6. Its transport checksum is nobody's concern here.
fn frame(packet: Packet) -> Vec<u8> {
    let flags = if packet == Packet::New { SYN } else { ACK };
    let mut frame = Vec::with_capacity(84);
    frame.extend(Mac::of(V4([10, 240, 0, 2])).0);
    frame.extend(Mac::of(V4([10, 240, 0, 1])).0);
    if packet == Packet::EstablishedV6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 30, 6, 64]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        frame.extend(six(80).0);
    } else {
        let mut header = [0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 6, 0, 0, 11, 0, 0, 7, 0, 0, 0, 0];
        header[16..].copy_from_slice(&FRONTEND.0);
        let words: [Be16; 10] = std::array::from_fn(|at| Be16([header[2 * at], header[2 * at + 1]]));
        header[10..12].copy_from_slice(&checksum::of(words, 0).0);
        frame.extend([0x08, 0]);
        frame.extend(header);
    }
    let [high, low] = PORT.to_be_bytes();
    frame.extend([0x80, 0, high, low, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend([0; 10]);
    frame
}

/// The same frame of IPv4 with other flags.
fn with_flags(frame: &[u8], flags: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[47] = flags;
    frame
}

/// The rows as a table.
#[derive(Debug)]
pub struct Beside<'a>(pub &'a [Row]);

impl fmt::Display for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<34} {:>7} {:>9} {:>9} {:>11} {:>9}",
            "PACKET (XDP, IP in IP)", "FLOWS", "MEDIAN NS", "QUIET NS", "RESTORE NS", "EMPTY NS"
        )?;
        for row in self.0 {
            writeln!(
                f,
                "{:<34} {:>7} {:>9.0} {:>9.0} {:>11.0} {:>9.0}",
                row.packet.words(),
                row.flows,
                row.ns,
                row.quiet_ns,
                row.restore_ns,
                row.empty_ns
            )?;
        }
        writeln!(
            f,
            "of {ROUNDS} runs in turn, without what restores the packet; quiet is what nine of ten runs exceed, and so \
             are restore and empty"
        )
    }
}

/// The rows as CSV.
pub fn csv(rows: &[Row]) -> String {
    let mut text = "packet,flows,median_ns,quiet_ns,quiet_restore_ns,quiet_empty_ns\n".to_owned();
    for row in rows {
        text += &format!(
            "{},{},{},{},{},{}\n",
            row.packet.words().replace(',', ""),
            row.flows,
            row.ns,
            row.quiet_ns,
            row.restore_ns,
            row.empty_ns
        );
    }
    text
}
