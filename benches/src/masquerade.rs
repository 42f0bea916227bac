//! How full a masquerade's range gets, and what a port costs then: ours beside what others do.
//!
//! One node address, one remote end. Flows of many pods, each from a random port, claim ports until the
//! range is as full as it shall be; then many more try, one by one, and give back what they got. Others keep
//! a flow's own port too, but then take the next free port after a random one, for 32 or 128 tries (Cilium's
//! `SNAT_COLLISION_RETRIES`): their flows are let in by their own rule, so that the range has the clusters
//! that it makes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::hint::black_box;
use std::time::Instant;

use dataplane::flow::Flow;
use dataplane::nat;
use dataplane::tables::{
    Endpoint, Holds, Identity, IfIndex, Masquerade, Masqueraded, Masquerades, Node, NodeId, NotAdded, Route,
    RuleSet, Table, Writes,
};
use dataplane::trace::Record;
use dataplane::verdict::Turn;
use dataplane::wire::{Mac, Port, V4, V6, ip};
use dataplane::{Machine, Platform, Reason, Verdict};
use serde::Serialize;
use userspace::engine::emulator::Emulator;
use userspace::engine::kernel::{Kernel, Options};
use userspace::engine::{Engine, Hook};
use userspace::plan::{NodePlan, NodeRows, Prefix, Rules};

/// Shares of the range that are taken, in thousandths.
const LEVELS: [u32; 13] = [0, 100, 250, 500, 750, 900, 950, 980, 990, 995, 998, 999, 1000];
/// The range: as many ports as Linux gives to programs.
const FIRST: u16 = 32_768;
const COUNT: u16 = 28_232;
/// Flows that try at each level.
const TRIALS: u32 = 2000;
/// Flows in a row that are refused before a level counts as out of reach.
const PATIENCE: u32 = 20_000;
/// Frames that the kernel's cost is the median of.
const FRAMES: usize = 64;

const POD: V4 = V4([10, 244, 0, 2]);
const NODE: V4 = V4([10, 240, 0, 4]);
const REMOTE: V4 = V4([203, 0, 113, 7]);
/// The loopback interface has this number everywhere: the pod's frames come in by it.
const LOOPBACK: IfIndex = IfIndex(1);

/// How a port is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The path's own.
    Podpath,
    /// The next port after a random one, for 128 tries.
    Next128,
    /// For 32.
    Next32,
}

/// What came of a strategy at one level.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// How ports were looked for.
    pub strategy: Strategy,
    /// The share of the range that was taken, of 1.
    pub occupancy: f64,
    /// The share of flows that got a port, of 1.
    pub success: f64,
    /// Ports that a flow looked at, on average and at most.
    pub mean_tries: f64,
    /// As `mean_tries`.
    pub most_tries: u64,
    /// Nanoseconds for a claim in the emulator, on average, refused ones included.
    pub emulator_ns: f64,
    /// Nanoseconds that the kernel takes longer for a flow's first packet than with an empty range; none
    /// where it was not asked.
    pub kernel_ns: Option<f64>,
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
#[error("cannot measure the masquerade: {0}")]
pub struct Error(#[from] userspace::error::Error);

/// A node that counts how often somebody looks at a port.
struct Counting {
    node: Emulator,
    looks: Cell<u64>,
}

impl<T: Table> Holds<T> for Counting
where
    Emulator: Holds<T>,
{
    fn row(&self, key: &T::Key) -> Option<T::Row> {
        self.looks.set(self.looks.get() + 1);
        self.node.row(key)
    }
}

impl<T: Table> Writes<T> for Counting
where
    Emulator: Writes<T>,
{
    fn change<R>(&mut self, key: &T::Key, change: impl FnOnce(&mut T::Row) -> R) -> Option<R> {
        Writes::<T>::change(&mut self.node, key, change)
    }
    fn add(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        Writes::<T>::add(&mut self.node, key, row)
    }
    fn put(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        Writes::<T>::put(&mut self.node, key, row)
    }
    fn remove(&mut self, key: &T::Key) {
        Writes::<T>::remove(&mut self.node, key);
    }
}

impl Machine for Counting {
    fn node(&self) -> Node {
        self.node.node()
    }
    fn now_s(&self) -> u32 {
        Machine::now_s(&self.node)
    }
    fn random(&mut self) -> u32 {
        Machine::random(&mut self.node)
    }
    fn generation(&self) -> u32 {
        0
    }
    fn tracing(&self) -> bool {
        false
    }
    fn report(&mut self, _: &Record) {}
    fn count(&mut self, _: Verdict, _: u32) {}
    fn count_turn(&mut self, _: Turn) {}
    fn count_audited(&mut self) {}
}

impl Platform<V4> for Counting {
    fn address(&self) -> V4 {
        NODE
    }
}

/// Numbers as good as random, the same in every run (Steele et al., "Fast splittable pseudorandom number
/// generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word >> 32) as u32
    }

    /// A flow of one of many pods.
    fn flow(&mut self) -> Flow<V4> {
        let [_, _, high, low] = self.next().to_be_bytes();
        Flow {
            source: V4([10, 244, high, low]),
            source_port: Port::new(FIRST + (self.next() % u32::from(COUNT)) as u16),
            target: REMOTE,
            target_port: Port::new(443),
            protocol: ip::protocol::UDP,
            ..Flow::default()
        }
    }
}

impl Strategy {
    const ALL: [Self; 3] = [Self::Podpath, Self::Next128, Self::Next32];

    fn claim(self, node: &mut Counting, flow: &Flow<V4>, random: &mut Random) -> Result<Port, Reason> {
        match self {
            Self::Podpath => nat::claim(node, flow, Port::default()),
            Self::Next128 => next_free(node, flow, random, 128),
            Self::Next32 => next_free(node, flow, random, 32),
        }
    }
}

/// The flow's own port; or the first free one of those from a random one on, `tries` of them.
fn next_free(node: &mut Counting, flow: &Flow<V4>, random: &mut Random, tries: u32) -> Result<Port, Reason> {
    let row = Masqueraded { pod: flow.source, pod_port: flow.source_port, pad: [0; 2] };
    let start = random.next();
    for tried in 0..=tries {
        let place = start.wrapping_add(tried) % u32::from(COUNT);
        let port = if tried == 0 { flow.source_port } else { Port::new(FIRST + place as u16) };
        let key = Masquerade {
            remote: flow.target,
            remote_port: flow.target_port,
            port,
            protocol: flow.protocol,
            pad: [0; 3],
        };
        node.looks.set(node.looks.get() + 1);
        if Writes::<Masquerades<V4>>::add(node, &key, &row).is_ok() {
            return Ok(port);
        }
    }
    Err(Reason::MasqueradePortsExhausted)
}

/// Measures every strategy; in the kernel too, if it is asked for (it needs root).
///
/// # Errors
/// An engine failed.
pub fn measure(in_kernel: bool, mut progress: impl FnMut(&str)) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for strategy in Strategy::ALL {
        progress(&format!("{strategy:?} in the emulator"));
        rows.extend(emulated(strategy)?);
    }
    if in_kernel {
        progress("Podpath in the kernel");
        let costs = kernel_costs()?;
        for row in rows.iter_mut().filter(|row| row.strategy == Strategy::Podpath) {
            row.kernel_ns = costs.get(&per_mille(row.occupancy)).copied();
        }
    }
    Ok(rows)
}

fn per_mille(share: f64) -> u32 {
    (share * 1000.0).round() as u32
}

/// Ports that are taken at a level.
fn taken(level: u32) -> u32 {
    u32::from(COUNT) * level / 1000
}

fn emulated(strategy: Strategy) -> Result<Vec<Row>, Error> {
    let mut node = Counting { node: Emulator::new(&plan())?, looks: Cell::new(0) };
    let mut random = Random(1);
    let (mut ports, mut rows) = (0, Vec::new());
    for level in LEVELS {
        let mut refused = 0;
        while ports < taken(level) && refused < PATIENCE {
            let got = strategy.claim(&mut node, &random.flow(), &mut random);
            (ports, refused) = if got.is_ok() { (ports + 1, 0) } else { (ports, refused + 1) };
        }
        if ports < taken(level) {
            break;
        }
        rows.push(trials(strategy, level, &mut node, &mut random));
    }
    Ok(rows)
}

/// Lets many flows try, one by one.
fn trials(strategy: Strategy, level: u32, node: &mut Counting, random: &mut Random) -> Row {
    let (mut got, mut looks, mut most, mut spent_ns) = (0, 0, 0, 0);
    for _ in 0..TRIALS {
        let flow = random.flow();
        node.looks.set(0);
        let start = Instant::now();
        let port = black_box(strategy.claim(node, &flow, random));
        spent_ns += start.elapsed().as_nanos();
        let looked = node.looks.get();
        (looks, most) = (looks + looked, most.max(looked));
        if let Ok(port) = port {
            got += 1;
            nat::release(node, &flow, port);
        }
    }
    Row {
        strategy,
        occupancy: f64::from(level) / 1000.0,
        success: f64::from(got) / f64::from(TRIALS),
        mean_tries: looks as f64 / f64::from(TRIALS),
        most_tries: most,
        emulator_ns: spent_ns as f64 / f64::from(TRIALS),
        kernel_ns: None,
    }
}

/// What a first packet costs in the kernel, by level, less what it costs in an empty range.
fn kernel_costs() -> Result<BTreeMap<u32, f64>, Error> {
    let mut kernel = Kernel::load(&plan(), Options { trace: true, ..Options::default() })?;
    let mut port = 0_u16;
    let mut push = |kernel: &mut Kernel| -> Result<(Verdict, f64), Error> {
        // No two flows with the same source port: the pod is one. Those outside of the range go first.
        port = port.wrapping_add(1);
        let frame = frame(port);
        let start = Instant::now();
        let outcome = kernel.push(Hook::FromPod, LOOPBACK, &frame)?;
        Ok((outcome.verdict, start.elapsed().as_nanos() as f64))
    };
    let (mut ports, mut costs) = (0, BTreeMap::new());
    for level in LEVELS {
        let mut refused = 0;
        while ports < taken(level) && refused < PATIENCE {
            let forwarded = matches!(push(&mut kernel)?.0, Verdict::Forward(_));
            (ports, refused) = if forwarded { (ports + 1, 0) } else { (ports, refused + 1) };
        }
        let mut spent = Vec::with_capacity(FRAMES);
        for _ in 0..FRAMES {
            let (verdict, ns) = push(&mut kernel)?;
            ports += u32::from(matches!(verdict, Verdict::Forward(_)));
            spent.push(ns);
        }
        spent.sort_by(f64::total_cmp);
        costs.insert(level, spent[FRAMES / 2]);
    }
    let empty = costs.get(&0).copied().unwrap_or_default();
    Ok(costs.into_iter().map(|(level, ns)| (level, ns - empty)).collect())
}

/// A node with a pod, and the world behind its uplink.
fn plan() -> NodePlan {
    let node = Node {
        masquerade_first: FIRST,
        masquerade_count: COUNT,
        mtu: 1500,
        seed: 1,
        timeouts: dataplane::tables::Timeouts { udp_s: 600, ..Default::default() },
        uplink: LOOPBACK,
        ..Node::default()
    };
    let mut rows = NodeRows::default();
    let pod = Endpoint {
        interface: LOOPBACK,
        identity: Identity::FIRST,
        rules: RuleSet(1),
        mac: Mac::of(POD),
        isolated: 0,
        flags: 0,
    };
    rows.v4.endpoints.insert(POD, pod);
    let world = Route { node: V6::default(), id: NodeId(0), mac: Mac::GATEWAY, kind: Route::WORLD, own: 0 };
    rows.v4.routes.insert(Prefix { key: V4::default(), bits: 0 }, world);
    NodePlan { node, addresses: (NODE, V6::default()), rows, rules: Rules::default() }
}

/// A datagram of the pod's to the remote end, without a checksum of its own (RFC 768).
fn frame(port: u16) -> Vec<u8> {
    let ethernet = [&Mac::GATEWAY.0[..], &Mac::of(POD).0, &[8, 0]].concat();
    let header =
        [&[0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, ip::protocol::UDP, 0, 0][..], &POD.0, &REMOTE.0].concat();
    let datagram = [&port.to_be_bytes()[..], &443_u16.to_be_bytes(), &[0, 8, 0, 0]].concat();
    [ethernet, header, datagram].concat()
}

/// The rows beside each other, for people.
#[derive(Debug)]
pub struct Beside<'a>(pub &'a [Row]);

impl fmt::Display for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = "success   tries  most      ns";
        writeln!(
            f,
            "One remote end, {COUNT} ports. Tries of a flow on average, at most, and what they take.\n"
        )?;
        writeln!(
            f,
            "{:8}  {:32}{:32}{:32}kernel",
            "", "podpath", "next port, 128 tries", "next port, 32 tries"
        )?;
        writeln!(f, "{:>8}  {titles}  {titles}  {titles}     +ns", "taken")?;
        for level in LEVELS {
            let share = f64::from(level) / 1000.0;
            let mut line = format!("{:>7.1}%", share * 100.0);
            let of = |strategy| self.0.iter().find(|row| row.strategy == strategy && row.occupancy == share);
            for strategy in Strategy::ALL {
                match of(strategy) {
                    Some(row) => write!(
                        line,
                        "  {:>6.1}% {:>7.1} {:>5} {:>7.0}",
                        row.success * 100.0,
                        row.mean_tries,
                        row.most_tries,
                        row.emulator_ns
                    )?,
                    None => write!(line, "  {:30}", "out of reach")?,
                }
            }
            if let Some(ns) = of(Strategy::Podpath).and_then(|row| row.kernel_ns) {
                write!(line, " {ns:>8.0}")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A line for every row.
pub fn csv(rows: &[Row]) -> String {
    let mut text = "strategy,occupancy,success,mean_tries,most_tries,emulator_ns,kernel_ns\n".to_owned();
    for row in rows {
        let Row { strategy, occupancy, success, mean_tries, most_tries, emulator_ns, kernel_ns } = row;
        let kernel_ns = kernel_ns.map(|ns| format!("{ns:.0}")).unwrap_or_default();
        writeln!(
            text,
            "{strategy:?},{occupancy},{success},{mean_tries:.2},{most_tries},{emulator_ns:.0},{kernel_ns}"
        )
        .expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_fills_the_range_where_the_next_port_is_long_given_up() {
        let at = |rows: &[Row], share: f64| rows.iter().find(|row| row.occupancy == share).cloned();
        let ours = emulated(Strategy::Podpath).expect("it fits");
        // Of tries at 99 %, 0.99 to the power of 1,025 find nothing: three in a hundred thousand.
        assert!(at(&ours, 0.99).expect("it gets there").success >= 0.999, "{ours:?}");
        let theirs = emulated(Strategy::Next32).expect("it fits");
        assert!(at(&theirs, 0.99).is_none_or(|row| row.success < 0.9), "{theirs:?}");
    }
}
