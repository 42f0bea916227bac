//! What the path's programs cost for a packet, in the kernel's own test run (`BPF_PROG_TEST_RUN`).
//!
//! One of two nodes is loaded with everything on: a thousand Services, policies for all of its pods, the overlay. Its
//! flows come from 32 pods of either node. Restoring the frame is measured as well and taken off, as for the load
//! balancer: see [`crate::micro`]. What goes into the tunnel or comes out of it changes its length, and restoring it
//! gives the room back: what that costs is measured apart, in one step and in two, so that the path's own step is
//! counted and the one that restores is not. One thing is not in the figures: what the kernel notes of a tunnel beside
//! the packet's bytes, where the inner headers are, since it does so once for a packet only.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use dataplane::tables::IfIndex;
use dataplane::wire::{Be16, Mac, V4, checksum};
use dataplane::{Reason, Verdict};
use serde_json::json;
use userspace::engine::emulator::Emulator;
use userspace::engine::kernel::{Frames, Kernel, Options, Tested};
use userspace::engine::{Engine, Hook};
use userspace::model::{Backend, Cluster, Node, Pod, Service, ServicePort};
use userspace::plan::{Links, NodePlan, Plan};

use crate::results::Cost;

/// Flows of a measurement.
const FLOWS: [u32; 3] = [1, 1024, 65_536];
/// Packets of one run.
const REPEAT: u32 = 8192;
/// Runs of each.
const ROUNDS: usize = 120;
/// Of so many runs one is quieter than the one that counts as quiet.
const QUIET: usize = 10;
/// New flows of one run, and of one table.
const NEW: u32 = 2048;
const NEW_IN_A_TABLE: u32 = 65_536;
/// As many flows as there can be: of 32 addresses and all ports.
const ALL: u32 = 1 << 21;
/// Rows that there are for flows: two for each that dials a Service.
const ROWS: u32 = 262_144;

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

const KINDS: [Kind; 6] = {
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
}

impl From<userspace::engine::kernel::Error> for Error {
    fn from(error: userspace::engine::kernel::Error) -> Self {
        Self::Engine(error.into())
    }
}

/// Measures every kind of packet with every number of flows: it needs root.
///
/// # Errors
/// [`Error`].
pub fn measure(mut progress: impl FnMut(&str)) -> Result<Vec<Cost>, Error> {
    let cluster = cluster();
    let plan = Plan::of(&cluster).map_err(userspace::error::Error::from)?;
    let (here, there) = (planned(&plan, &cluster, "n1")?, planned(&plan, &cluster, "n2")?);
    let mut costs = Vec::new();
    for kind in KINDS {
        progress(kind.words);
        let bench = Bench { plan: &here, frame: kind.frame(&there)?, kind };
        // A flow is new once, and one that is refused is never known: how many there are is the same to them.
        let flows: &[u32] = if bench.kind.flags == SYN { &[ALL] } else { &FLOWS };
        for flows in flows {
            costs.extend(bench.costs(*flows)?);
        }
    }
    Ok(costs)
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

    /// A frame of it: what comes from elsewhere as the other node wraps it.
    fn frame(&self, there: &NodePlan) -> Result<Vec<u8>, Error> {
        if self.hook == Hook::FromPod {
            return Ok(segment((HERE, 1024), self.target, self.flags));
        }
        let frame = segment((THERE, 1024), self.target, self.flags);
        Ok(Emulator::new(there)?.push(Hook::FromPod, LOOPBACK, &frame)?.frame)
    }

    /// What stands in its place: with the same end, in the given number of steps.
    fn stand_in(&self, steps: u8) -> Tested {
        match self.verdict {
            Verdict::Forward(_) => Tested::Opening(steps),
            Verdict::Deliver(_) => Tested::Closing(steps),
            _ => Tested::Trivial,
        }
    }
}

struct Bench<'a> {
    plan: &'a NodePlan,
    frame: Vec<u8>,
    kind: Kind,
}

impl Bench<'_> {
    fn costs(&self, flows: u32) -> Result<Vec<Cost>, Error> {
        let frames = Frames { first: &self.frame, tunnelled: self.kind.hook == Hook::FromUnderlay, flows };
        let repeat = if self.kind.opens() { NEW } else { REPEAT };
        let mut kernel = self.loaded()?;
        if !self.kind.opens() {
            self.time(&mut kernel, &frames, flows.clamp(1, 65_536))?;
        }
        let mut runs = [const { Vec::new() }; 3];
        let mut given = 0;
        for _ in 0..ROUNDS {
            if self.kind.opens() && given + repeat > NEW_IN_A_TABLE {
                kernel = self.loaded()?;
                given = 0;
            }
            given += repeat;
            let whole = self.time(&mut kernel, &frames, repeat)?;
            let once = kernel.time(self.kind.stand_in(1), &frames, REPEAT)?.as_nanos() as f64;
            let twice = kernel.time(self.kind.stand_in(2), &frames, REPEAT)?.as_nanos() as f64;
            for (kept, value) in runs.iter_mut().zip([whole, once, twice]) {
                kept.push(value);
            }
        }
        for values in &mut runs {
            values.sort_by(f64::total_cmp);
        }
        let at = |run: usize, place: usize| runs[run][place];
        let [median, quiet] = [ROUNDS / 2, ROUNDS / QUIET];
        let room = |place| at(2, place) - at(1, place);
        let cost = |packet: String, ns: &dyn Fn(usize) -> f64| Cost {
            program: self.kind.hook.program().to_owned(),
            packet,
            flows: if self.kind.flags == SYN { NEW_IN_A_TABLE } else { flows },
            median_ns: ns(median),
            quiet_ns: ns(quiet),
        };
        let mut costs =
            vec![cost(self.kind.words.to_owned(), &|place| at(0, place) - at(1, place) + room(place))];
        if self.kind.stand_in(1) != Tested::Trivial {
            let words = format!("{}, without the tunnel's room", self.kind.words);
            costs.push(cost(words, &|place| at(0, place) - at(1, place)));
        }
        Ok(costs)
    }

    fn loaded(&self) -> Result<Kernel, Error> {
        let mut options = Options { measured: true, ..Options::default() };
        options.capacities.set("conntrack", ROWS)?;
        Ok(Kernel::load(self.plan, options)?)
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

/// The costs as a table.
#[derive(Debug)]
pub struct Beside<'a>(pub &'a [Cost]);

impl fmt::Display for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:<52} {:>7} {:>9} {:>9}",
            "PROGRAM", "PACKET (VXLAN, IPv4)", "FLOWS", "MEDIAN NS", "QUIET NS"
        )?;
        for cost in self.0 {
            writeln!(
                f,
                "{:<14} {:<52} {:>7} {:>9.0} {:>9.0}",
                cost.program, cost.packet, cost.flows, cost.median_ns, cost.quiet_ns
            )?;
        }
        writeln!(
            f,
            "of {ROUNDS} runs in turn, without what restores the packet; quiet is what nine of ten runs exceed"
        )
    }
}

/// The costs as CSV, with a line of heads.
pub fn csv(costs: &[Cost]) -> String {
    let lines = costs.iter().map(|cost| {
        let Cost { program, packet, flows, median_ns, quiet_ns } = cost;
        format!("{program},\"{packet}\",{flows},{median_ns},{quiet_ns}\n")
    });
    let head = "program,packet,flows,median_ns,quiet_ns\n".to_owned();
    [head].into_iter().chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_a_field_for_each_head() {
        let (program, packet) = ("from_pod".to_owned(), "new flow, egress".to_owned());
        let cost = Cost { program, packet, flows: 7, median_ns: 1.5, quiet_ns: 1.0 };
        let wanted = "program,packet,flows,median_ns,quiet_ns\nfrom_pod,\"new flow, egress\",7,1.5,1\n";
        assert_eq!(csv(&[cost]), wanted);
    }
}
