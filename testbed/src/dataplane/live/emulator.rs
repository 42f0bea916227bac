//! `emulator`: the packet path of `dataplane` in this process, on real links. What `ebpf` does in the
//! kernel, at the price of `chains`' way in and out: the fair opponent of `chains`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ::dataplane::Verdict;
use ::dataplane::tables::IfIndex;
use ::dataplane::wire::Mac;
use userspace::engine::emulator::{Emulator, Frame};
use userspace::engine::{Clock, Engine, Hook};
use userspace::model::Cluster;
use userspace::plan::{Links, plan};

use super::{Out, Path, Refusal, Wire};

/// The number that the path knows the uplink by.
const UPLINK: IfIndex = IfIndex(1);

/// Seconds between two sweeps of flows that are over.
const SWEEP: Duration = Duration::from_secs(30);

/// One node of the cluster.
#[derive(Debug)]
pub struct Node {
    emulator: Emulator,
    mac: Mac,
    /// Numbers that the path knows pods' links by; one is never given twice.
    numbers: BTreeMap<IpAddr, IfIndex>,
    /// The same, the other way round.
    addresses: BTreeMap<IfIndex, IpAddr>,
    next: u32,
    /// The frame that is on its way.
    frame: Frame,
    /// How far the path's clock was moved.
    clock: Duration,
    swept: Duration,
}

impl Path for Node {
    fn new(cluster: &Cluster, node: &str) -> Result<Self, Refusal> {
        let (mut numbers, mut next) = (BTreeMap::new(), UPLINK.0 + 1);
        let links = numbered(cluster, node, &mut numbers, &mut next);
        let plan = plan(cluster, node, &links)?;
        let mut emulator = Emulator::new(&plan)?;
        emulator.trace(false);
        let (clock, swept) = (Duration::ZERO, Duration::ZERO);
        let (addresses, frame) = (turned(&numbers), Frame::new(&[], UPLINK));
        Ok(Self { emulator, mac: plan.node.mac, numbers, addresses, next, frame, clock, swept })
    }

    fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Refusal> {
        let (mut numbers, mut next) = (self.numbers.clone(), self.next);
        let links = numbered(cluster, node, &mut numbers, &mut next);
        self.emulator.apply(&plan(cluster, node, &links)?.rows)?;
        self.addresses = turned(&numbers);
        (self.numbers, self.next) = (numbers, next);
        Ok(())
    }

    fn pass(&mut self, at: Wire, frame: &[u8], now: Duration, out: &mut Out) {
        self.tick(now);
        let (hook, interface) = match at {
            Wire::Uplink => (Hook::FromUnderlay, UPLINK),
            Wire::Host => (Hook::FromHost, IfIndex(0)),
            Wire::Pod(address) => match self.numbers.get(&address) {
                Some(number) => (Hook::FromPod, *number),
                None => return,
            },
        };
        self.frame.refill(frame, interface);
        let verdict = self.emulator.run(hook, &mut self.frame);
        // The flow log is the agent's; here nobody reads it.
        self.emulator.forget_records();
        match verdict {
            Verdict::Deliver(number) => {
                if let Some(address) = self.addresses.get(&number) {
                    out.send(Wire::Pod(*address), self.frame.bytes());
                }
            }
            Verdict::Forward(_) => _ = out.send(Wire::Uplink, self.frame.bytes()),
            Verdict::Answer | Verdict::Reject(_) => _ = out.send(at, self.frame.bytes()),
            Verdict::Stack => self.to_host(at, out),
            Verdict::Drop(reason) => {
                tracing::debug!("the emulator dropped a frame from {at:?}: {}", reason.slug());
            }
        }
    }
}

impl Node {
    /// Moves the path's clock on, and now and then removes what is over.
    fn tick(&mut self, now: Duration) {
        let seconds = now.as_secs().saturating_sub(self.clock.as_secs());
        if seconds > 0 {
            self.clock = now;
            // The emulator's clock cannot fail: it is a number.
            let waited = Clock::wait(&mut self.emulator, u32::try_from(seconds).unwrap_or(u32::MAX));
            waited.expect("it is a number");
        }
        if now.saturating_sub(self.swept) >= SWEEP {
            self.swept = now;
            if let Err(error) = self.emulator.sweep() {
                tracing::warn!("what is over stays in the emulator's tables: {error}");
            }
        }
    }

    /// Up to the node's own stack: by the link that leads there, addressed to its end. ARP has reached the
    /// stack already, and what came from there does not go back.
    fn to_host(&self, from: Wire, out: &mut Out) {
        const IP: [[u8; 2]; 2] = [[8, 0], [0x86, 0xdd]];
        let frame = self.frame.bytes();
        if from != Wire::Host && IP.iter().any(|family| frame.get(12..14) == Some(family)) {
            out.send(Wire::Host, frame)[..6].copy_from_slice(&self.mac.0);
        }
    }
}

/// The links of a node as the planner wants them, pods without a number given the next.
fn numbered(cluster: &Cluster, node: &str, numbers: &mut BTreeMap<IpAddr, IfIndex>, next: &mut u32) -> Links {
    let mut links = Links { uplink: UPLINK, ..Links::default() };
    for pod in cluster.pods.iter().filter(|pod| pod.node == node && !pod.host_network) {
        let number = *numbers.entry(pod.address()).or_insert_with(|| {
            *next += 1;
            IfIndex(*next)
        });
        links.pods.insert(pod.id(), number);
    }
    links
}

fn turned(numbers: &BTreeMap<IpAddr, IfIndex>) -> BTreeMap<IfIndex, IpAddr> {
    numbers.iter().map(|(address, number)| (*number, *address)).collect()
}
