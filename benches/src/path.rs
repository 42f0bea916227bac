//! What the path's programs cost for a packet, in the kernel's own test run (`BPF_PROG_TEST_RUN`).
//!
//! One of two nodes is loaded with everything on: a thousand Services, policies for all of its pods, the overlay. Its
//! flows come from 32 pods of either node. Restoring the frame is measured as well and taken off, as for the load
//! balancer: see [`crate::micro`]. What goes into the tunnel or comes out of it changes its length, and restoring it
//! gives the room back: what it costs to make room is measured apart, in one step and in two, so that the path's own
//! step is counted and the one that restores is not. One thing is not in the figures: what the kernel notes of a tunnel
//! beside the packet's bytes, where the inner headers are, since it does so once for a packet only.
//!
//! Then the same node has programs that look at the clock wherever a stage ends. What a look takes is measured back to
//! back in the same round and taken off for each. What the stages leave of what the packet costs without looks is called
//! `rest`: what belongs to none of them. It may be less than nothing, since a
//! processor that looks at the clock does one thing after the other meanwhile: so much the stages are told too long
//! together. The two take no turns, because each would find the other's tables in the caches, which no node shares.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use dataplane::tables::IfIndex;
use dataplane::trace::Lap;
use dataplane::wire::{Be16, Mac, V4, checksum};
use dataplane::{Reason, Verdict};
use serde_json::json;
use userspace::engine::emulator::Emulator;
use userspace::engine::kernel::{Frames, Kernel, Options, Stopwatch, Tested};
use userspace::engine::{Engine, Hook};
use userspace::model::{Backend, Cluster, Node, Pod, Service, ServicePort};
use userspace::plan::{Links, NodePlan, Plan};

use crate::report::write_stages;
use crate::results::{Cost, Spread, Stage, TEST_RUN};

/// Flows of a measurement.
const FLOWS: [u32; 3] = [1, 1024, 65_536];
/// Packets of one run.
const REPEAT: u32 = 8192;
/// Runs of each.
const ROUNDS: usize = 120;
/// Of so many runs one is quieter than the one that counts as quiet.
const QUIET: usize = 10;
/// Packets of a run that only looks at the clock.
const LOOKED: u32 = 512;
/// New flows of one run, and of one table.
const NEW: u32 = 2048;
const NEW_IN_A_TABLE: u32 = 65_536;
/// As many flows as there can be: of 32 addresses and all ports.
const ALL: u32 = 1 << 21;
/// Rows that there are for flows: two for each that dials a Service.
const ROWS: u32 = 262_144;

/// The headers of a tunnel and of Ethernet, and what stands before the target in that of IPv4.
const TARGET_IN_TUNNEL: usize = 50 + 14 + 16;

const PODS: u32 = 32;
const SERVICES: u32 = 1000;
const PORT: u16 = 8080;
/// All pods' frames come in by it: it has this number everywhere.
const LOOPBACK: IfIndex = IfIndex(1);
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A kind of packet.
struct Kind {
    words: &'static str,
    hook: Hook,
    flags: u8,
    target: (V4, u16),
    verdict: Verdict,
}

/// The first pod of each node, and a Service.
const HERE: V4 = V4([10, 244, 0, 32]);
const THERE: V4 = V4([10, 244, 1, 32]);
const FRONTEND: V4 = V4([10, 96, 1, 7]);

const KINDS: [Kind; 7] = {
    const OUT: Verdict = Verdict::Forward(IfIndex(0));
    const IN: Verdict = Verdict::Deliver(IfIndex(0));
    const NO: Verdict = Verdict::Drop(Reason::PolicyDenied);
    const fn kind(words: &'static str, hook: Hook, flags: u8, target: (V4, u16), verdict: Verdict) -> Kind {
        Kind { words, hook, flags, target, verdict }
    }
    [
        kind("egress to a Service", Hook::FromPod, ACK, (FRONTEND, 80), OUT),
        kind("egress to a pod", Hook::FromPod, ACK, (THERE, PORT), OUT),
        kind("overlay ingress to a pod", Hook::FromUnderlay, ACK, (HERE, PORT), IN),
        kind("answer of a Service, ingress", Hook::FromUnderlay, ACK, (FRONTEND, 80), IN),
        kind("new flow, egress", Hook::FromPod, SYN, (FRONTEND, 80), OUT),
        kind("new flow, ingress", Hook::FromUnderlay, SYN, (HERE, PORT), IN),
        kind("policy deny", Hook::FromPod, SYN, (THERE, 9999), NO),
    ]
};

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster could not be planned, or the kernel refused.
    #[error("cannot measure the path: {0}")]
    Engine(#[from] userspace::error::Error),
    /// Packets went another way than those that are meant.
    #[error("cannot measure {packet}: of {sent} packets {counted} came to the verdict that was expected")]
    Verdict {
        /// Which.
        packet: &'static str,
        /// How many were sent.
        sent: u64,
        /// How many came to it.
        counted: u64,
    },
    /// By the user.
    #[error("interrupted; nothing is left in the kernel")]
    Interrupted,
}

impl From<userspace::engine::kernel::Error> for Error {
    fn from(error: userspace::engine::kernel::Error) -> Self {
        Self::Engine(error.into())
    }
}

/// What packets cost, and what of it each stage.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Costs {
    /// Of each kind of packet and number of flows.
    pub costs: Vec<Cost>,
    /// Of the same, in the order of the walk.
    pub stages: Vec<Stage>,
}

/// Measures every kind of packet with every number of flows: it needs root. `stop` ends it early.
///
/// # Errors
/// [`Error`].
pub fn measure(stop: &AtomicBool, mut progress: impl FnMut(&str)) -> Result<Costs, Error> {
    let cluster = cluster();
    let plan = Plan::of(&cluster).map_err(userspace::error::Error::from)?;
    let (here, there) = (planned(&plan, &cluster, "n1")?, planned(&plan, &cluster, "n2")?);
    let mut all = Costs::default();
    for kind in KINDS {
        progress(kind.words);
        let bench = Bench { plan: &here, frame: kind.frame(&here, &there)?, kind, stop };
        let mut timed = None;
        for flows in bench.kind.flows() {
            let cost = bench.cost(*flows)?;
            let timed = match &mut timed {
                Some(timed) => timed,
                None => timed.insert(Timed::load(&here)?),
            };
            all.stages.extend(stages(&cost, bench.laps(timed, *flows)?));
            all.costs.push(cost);
        }
    }
    Ok(all)
}

/// What a look at the clock takes on this machine, in nanoseconds: the median of some runs.
///
/// # Errors
/// [`Error::Engine`].
pub fn look_ns() -> Result<f64, Error> {
    let cluster = cluster();
    let plan = Plan::of(&cluster).map_err(userspace::error::Error::from)?;
    let mut timed = Timed::load(&planned(&plan, &cluster, "n1")?)?;
    let looks = (0..ROUNDS).map(|_| timed.look_ns()).collect::<Result<Vec<_>, _>>()?;
    Ok(Spread::of(looks).map_or(0.0, |spread| spread.median))
}

fn planned(plan: &Plan, cluster: &Cluster, node: &str) -> Result<NodePlan, Error> {
    let pods = cluster.pods.iter().filter(|pod| pod.node == node).map(|pod| (pod.id(), LOOPBACK)).collect();
    let links = Links { uplink: LOOPBACK, pods, homes: None };
    Ok(plan.node(node, &links).map_err(userspace::error::Error::from)?)
}

impl Kind {
    /// Whether every packet of it opens a flow.
    fn opens(&self) -> bool {
        self.flags == SYN && !matches!(self.verdict, Verdict::Drop(_))
    }

    /// Whether it answers one that went to a Service.
    fn answers(&self) -> bool {
        self.hook == Hook::FromUnderlay && self.target.0 == FRONTEND
    }

    /// How many flows are measured.
    fn flows(&self) -> &'static [u32] {
        match self.flags {
            // A flow is new once; one that is refused may come again and again.
            SYN if self.opens() => &[ALL],
            // Who answers is another for each flow; what is asked and what is answered are alike for one alone.
            _ if self.answers() => &[1],
            _ => &FLOWS,
        }
    }

    /// A frame of it: what comes from elsewhere as the other node wraps it.
    fn frame(&self, here: &NodePlan, there: &NodePlan) -> Result<Vec<u8>, Error> {
        let (own, mut there) = (segment((HERE, 1024), self.target, self.flags), Emulator::new(there)?);
        if self.hook == Hook::FromPod {
            return Ok(own);
        }
        let mut frame = segment((THERE, 1024), self.target, self.flags);
        if self.answers() {
            let asked = Emulator::new(here)?.push(Hook::FromPod, LOOPBACK, &own)?.frame;
            there.push(Hook::FromUnderlay, LOOPBACK, &asked)?;
            // Who was chosen stands where a packet in a tunnel says whom it is for.
            let chosen = asked.get(TARGET_IN_TUNNEL..).and_then(|rest| rest.first_chunk());
            let chosen = V4(*chosen.expect("what leaves into the tunnel has headers"));
            frame = segment((chosen, PORT), (HERE, 1024), self.flags);
        }
        Ok(there.push(Hook::FromPod, LOOPBACK, &frame)?.frame)
    }

    /// What stands in its place to be taken off, and how often what it costs to make room is added then: the path makes
    /// room as that does, or `restore` makes it again behind the path alone.
    fn stand_in(&self) -> (Tested, f64) {
        match self.verdict {
            Verdict::Forward(_) => (Tested::Opening(1), 1.0),
            Verdict::Deliver(_) => (Tested::Trivial, -1.0),
            _ => (Tested::Trivial, 0.0),
        }
    }
}

/// A node whose programs look at the clock wherever a stage ends.
struct Timed {
    kernel: Kernel,
    stopwatch: Stopwatch,
}

impl Timed {
    fn load(plan: &NodePlan) -> Result<Self, Error> {
        let mut kernel = loaded(plan, 1)?;
        let stopwatch = kernel.take_stopwatch()?;
        Ok(Self { kernel, stopwatch })
    }

    /// What a look takes by itself, in nanoseconds, over one run.
    fn look_ns(&mut self) -> Result<f64, Error> {
        let before = self.stopwatch.calibration()?;
        self.kernel.calibrate(LOOKED)?;
        Ok((self.stopwatch.calibration()? - before).lap_ns(Lap::Rest))
    }
}

struct Bench<'a> {
    plan: &'a NodePlan,
    frame: Vec<u8>,
    kind: Kind,
    stop: &'a AtomicBool,
}

impl Bench<'_> {
    fn cost(&self, flows: u32) -> Result<Cost, Error> {
        let (frames, repeat) = (self.frames(flows), self.repeat());
        let mut kernel = loaded(self.plan, 0)?;
        self.warm(&mut kernel, &frames)?;
        let (stand_in, room) = self.kind.stand_in();
        let mut runs = [const { Vec::new() }; 4];
        let mut given = 0;
        for _ in 0..ROUNDS {
            self.check()?;
            if self.kind.opens() && given + repeat > NEW_IN_A_TABLE {
                kernel = loaded(self.plan, 0)?;
                given = 0;
            }
            given += repeat;
            let whole = self.time(&mut kernel, &frames, repeat)?;
            let mut time = |other| kernel.time(other, &frames, REPEAT).map(|time| time.as_nanos() as f64);
            let values = [whole, time(stand_in)?, time(Tested::Opening(1))?, time(Tested::Opening(2))?];
            for (kept, value) in runs.iter_mut().zip(values) {
                kept.push(value);
            }
        }
        for values in &mut runs {
            values.sort_by(f64::total_cmp);
        }
        // Quiet of each: where one of them is disturbed in a round, the difference is of nothing.
        let [whole, other, once, twice] = &runs;
        let ns = |place: usize| whole[place] - other[place] + room * (twice[place] - once[place]);
        Ok(Cost {
            program: self.kind.hook.program().to_owned(),
            packet: self.kind.words.to_owned(),
            flows: if self.kind.opens() { NEW_IN_A_TABLE } else { flows },
            median_ns: ns(ROUNDS / 2),
            quiet_ns: ns(ROUNDS / QUIET),
        })
    }

    /// Nanoseconds of a packet's stages, in the order of [`Lap::ALL`]: medians of as many runs as one table has flows
    /// for.
    fn laps(&self, timed: &mut Timed, flows: u32) -> Result<[f64; Lap::ALL.len()], Error> {
        let (frames, repeat, hook) = (self.frames(flows), self.repeat(), self.kind.hook);
        self.warm(&mut timed.kernel, &frames)?;
        let mut laps = [const { Vec::new() }; Lap::ALL.len()];
        for _ in 0..NEW_IN_A_TABLE / NEW {
            self.check()?;
            let (look_ns, before) = (timed.look_ns()?, timed.stopwatch.times(hook)?);
            self.time(&mut timed.kernel, &frames, repeat)?;
            let run = timed.stopwatch.times(hook)? - before;
            for (kept, ns) in laps.iter_mut().zip(run.net_ns(look_ns)) {
                kept.push(ns);
            }
        }
        Ok(laps.map(|values| Spread::of(values).map_or(0.0, |spread| spread.median)))
    }

    fn frames(&self, flows: u32) -> Frames<'_> {
        Frames { first: &self.frame, tunnelled: self.kind.hook == Hook::FromUnderlay, flows }
    }

    /// Packets of a run.
    fn repeat(&self) -> u32 {
        if self.kind.opens() { NEW } else { REPEAT }
    }

    /// Lets flows be known, where they are not to be new.
    fn warm(&self, kernel: &mut Kernel, frames: &Frames<'_>) -> Result<(), Error> {
        if self.kind.answers() {
            let asked = segment((HERE, 1024), self.kind.target, ACK);
            let asked = Frames { first: &asked, tunnelled: false, flows: 1 };
            kernel.time(Tested::Path(Hook::FromPod), &asked, 1)?;
        }
        if !self.kind.opens() {
            self.time(kernel, frames, frames.flows.clamp(1, 65_536))?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Nanoseconds a packet, all of which must come to the verdict.
    fn time(&self, kernel: &mut Kernel, frames: &Frames<'_>, repeat: u32) -> Result<f64, Error> {
        // What was reported is taken, as an agent does.
        kernel.take_records();
        let counter = self.kind.verdict.counter() as usize;
        let before = kernel.counts()?[counter].packets;
        let time = kernel.time(Tested::Path(self.kind.hook), frames, repeat)?;
        let counted = kernel.counts()?[counter].packets - before;
        let sent = u64::from(repeat);
        if counted != sent {
            return Err(Error::Verdict { packet: self.kind.words, sent, counted });
        }
        Ok(time.as_nanos() as f64)
    }
}

fn loaded(plan: &NodePlan, timed: u32) -> Result<Kernel, Error> {
    let mut options = Options { measured: true, timed, ..Options::default() };
    options.capacities.set("conntrack", ROWS)?;
    Ok(Kernel::load(plan, options)?)
}

/// What the laps of a packet are of what it costs: together they are all of it, and so the rest may be less than
/// nothing.
fn stages(cost: &Cost, laps: [f64; Lap::ALL.len()]) -> Vec<Stage> {
    let known: f64 =
        Lap::ALL.iter().zip(laps).filter(|((lap, _), _)| *lap != Lap::Rest).map(|(_, ns)| ns).sum();
    let stage = |((lap, word), ns): (&(Lap, &str), f64)| Stage {
        packet: cost.packet.clone(),
        source: TEST_RUN.to_owned(),
        stage: (*word).to_owned(),
        ns: if *lap == Lap::Rest { cost.median_ns - known } else { ns },
        flows: cost.flows,
    };
    Lap::ALL.iter().zip(laps).map(stage).collect()
}

fn address(first: V4, index: u32) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes(first.0) + index).into()
}

/// Two nodes of 32 pods each, Services whose endpoints are on the other one, and policies for all of them.
fn cluster() -> Cluster {
    let node = |name: &str, last, cidr: &str| Node {
        name: name.to_owned(),
        labels: Default::default(),
        addresses: vec![address(V4([10, 240, 0, last]), 0)],
        pod_cidrs: vec![cidr.parse().expect("a range")],
    };
    let pod = |node: &str, first, index| Pod {
        namespace: "bench".to_owned(),
        name: format!("{node}-{index}"),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        node: node.to_owned(),
        addresses: vec![address(first, index)],
        ready: true,
        ..Pod::default()
    };
    let service = |index: u32| Service {
        namespace: "bench".to_owned(),
        name: format!("s{index}"),
        addresses: vec![address(V4([10, 96, 1, 0]), index)],
        ports: vec![ServicePort {
            port: 80,
            backends: (0..3).map(|end| Backend::new(address(THERE, (index + end) % PODS), PORT)).collect(),
            ..ServicePort::default()
        }],
        ..Service::default()
    };
    let rule = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let ports = json!([{"port": PORT, "protocol": "TCP"}]);
    let policy = json!({
        "metadata": {"name": "web", "namespace": "bench"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": rule, "ports": ports}],
            "egress": [{"to": rule, "ports": ports}],
        },
    });
    let pods = |node: &'static str, first| (0..PODS).map(move |index| pod(node, first, index));
    Cluster {
        name: "bench".to_owned(),
        namespaces: [("bench".to_owned(), Default::default())].into(),
        nodes: vec![node("n1", 4, "10.244.0.0/24"), node("n2", 5, "10.244.1.0/24")],
        pods: pods("n1", HERE).chain(pods("n2", THERE)).collect(),
        services: (0..SERVICES).map(service).collect(),
        policies: vec![serde_json::from_value(policy).expect("the benchmark's own policy is valid")],
        ..Cluster::default()
    }
}

/// A TCP segment of 64 bytes. Its transport checksum is nobody's concern here.
fn segment(source: (V4, u16), target: (V4, u16), flags: u8) -> Vec<u8> {
    let mut frame = Vec::with_capacity(64);
    frame.extend(Mac::GATEWAY.0);
    frame.extend(Mac::of(source.0).0);
    frame.extend([0x08, 0]);
    let mut header = [0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&source.0.0);
    header[16..].copy_from_slice(&target.0.0);
    let words: [Be16; 10] = std::array::from_fn(|at| Be16([header[2 * at], header[2 * at + 1]]));
    header[10..12].copy_from_slice(&checksum::of(words, 0).0);
    frame.extend(header);
    frame.extend(source.1.to_be_bytes());
    frame.extend(target.1.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend([0; 10]);
    frame
}

/// The costs as tables.
#[derive(Debug)]
pub struct Beside<'a>(pub &'a Costs);

impl fmt::Display for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:<52} {:>7} {:>9} {:>9}",
            "PROGRAM", "PACKET (VXLAN, IPv4)", "FLOWS", "MEDIAN NS", "QUIET NS"
        )?;
        for cost in &self.0.costs {
            writeln!(
                f,
                "{:<14} {:<52} {:>7} {:>9.0} {:>9.0}",
                cost.program, cost.packet, cost.flows, cost.median_ns, cost.quiet_ns
            )?;
        }
        writeln!(
            f,
            "of {ROUNDS} runs in turn, without what restores the packet; quiet is what nine of ten runs exceed\n"
        )?;
        write_stages(f, &self.0.stages)
    }
}

/// The costs as CSV, with a line of heads; behind them the stages, each with its name.
pub fn csv(all: &Costs) -> String {
    let costs = all.costs.iter().map(|cost| {
        let Cost { program, packet, flows, median_ns, quiet_ns } = cost;
        format!("{program},\"{packet}\",{flows},{median_ns},{quiet_ns},\n")
    });
    let stages = all.stages.iter().map(|stage| {
        let Stage { packet, flows, ns, stage, .. } = stage;
        format!(",\"{packet}\",{flows},{ns},,{stage}\n")
    });
    let head = "program,packet,flows,median_ns,quiet_ns,stage\n".to_owned();
    [head].into_iter().chain(costs).chain(stages).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_a_field_for_each_head() {
        let (program, packet) = ("from_pod".to_owned(), "new flow, egress".to_owned());
        let cost = Cost { program, packet, flows: 7, median_ns: 1.5, quiet_ns: 1.0 };
        let mut stages = stages(&cost, [0.0; Lap::ALL.len()]);
        stages.truncate(1);
        let wanted = "program,packet,flows,median_ns,quiet_ns,stage\nfrom_pod,\"new flow, egress\",7,1.5,1,\n\
                      ,\"new flow, egress\",7,0,,parse\n";
        assert_eq!(csv(&Costs { costs: vec![cost], stages }), wanted);
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn of_every_packet_that_is_timed_the_laps_are_the_whole_to_the_nanosecond() {
        const PACKETS: u32 = 64;
        let cluster = cluster();
        let plan = Plan::of(&cluster).expect("the benchmark's own cluster is sound");
        let [here, there] = ["n1", "n2"].map(|node| planned(&plan, &cluster, node).expect("as above"));
        for kind in KINDS {
            let (hook, words, opens) = (kind.hook, kind.words, kind.flags == SYN);
            let frame = kind.frame(&here, &there).unwrap_or_else(|error| panic!("{words}: {error}"));
            let bench = Bench { plan: &here, frame, kind, stop: &AtomicBool::new(false) };
            let mut timed = Timed::load(&here).unwrap_or_else(|error| panic!("{error}"));
            if bench.kind.answers() {
                bench.warm(&mut timed.kernel, &bench.frames(1)).unwrap_or_else(|error| panic!("{error}"));
            }
            let before = timed.stopwatch.times(hook).expect("it can be read");
            let frames = bench.frames(if bench.kind.answers() { 1 } else { ALL });
            bench.time(&mut timed.kernel, &frames, PACKETS).unwrap_or_else(|error| panic!("{error}"));
            let times = timed.stopwatch.times(hook).expect("it can be read") - before;
            let laps: u64 = times.laps.iter().map(|(ns, _)| ns).sum();
            assert_eq!((times.packets, laps), (u64::from(PACKETS), times.whole_ns), "{words}: {times:?}");
            let taken = |lap: Lap| times.laps[lap as usize].1;
            assert!(taken(Lap::Parse) > 0 && taken(Lap::Conntrack) > 0, "{words}: {times:?}");
            assert!(taken(Lap::Redirect) == u64::from(PACKETS), "{words}: {times:?}");
            assert!(taken(Lap::Policy) >= u64::from(opens), "{words}: {times:?}");
            assert!(timed.look_ns().expect("it can be calibrated") > 0.0);
        }
    }

    #[test]
    fn what_answers_for_a_service_reaches_its_client_under_the_address_that_he_dialled() {
        let cluster = cluster();
        let plan = Plan::of(&cluster).expect("the benchmark's own cluster is sound");
        let [here, there] = ["n1", "n2"].map(|node| planned(&plan, &cluster, node).expect("as above"));
        let kind = KINDS.into_iter().find(Kind::answers).expect("there is one");
        let frame = kind.frame(&here, &there).unwrap_or_else(|error| panic!("{error}"));
        let mut node = Emulator::new(&here).expect("as above");
        let asked = segment((HERE, 1024), kind.target, ACK);
        node.push(Hook::FromPod, LOOPBACK, &asked).expect("as above");
        let answer = node.push(Hook::FromUnderlay, LOOPBACK, &frame).expect("as above");
        assert_eq!(answer.verdict.counter(), kind.verdict.counter(), "{:?}", answer.verdict);
        assert_eq!(answer.frame[26..30], FRONTEND.0, "its source");
    }

    #[test]
    fn all_stages_together_are_the_whole_even_if_less_than_nothing_is_left() {
        let (program, packet) = ("from_pod".to_owned(), "policy deny".to_owned());
        let cost = Cost { program, packet, flows: 7, median_ns: 100.0, quiet_ns: 90.0 };
        let told = stages(&cost, [20.0, 10.0, 50.0, 0.0, 15.0, -2.0, 30.0, 5.0, 77.0]);
        let sum: f64 = told.iter().map(|stage| stage.ns).sum();
        let rest = told.last().map(|stage| (stage.stage.as_str(), stage.ns));
        assert_eq!((sum, rest, told.len()), (100.0, Some(("rest", -28.0)), 9));
    }
}
