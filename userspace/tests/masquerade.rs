//! The masquerade's claim to a port: who gets it when two want it, and how full the range gets.

use std::net::IpAddr;

use dataplane::flow::Flow;
use dataplane::nat;
use dataplane::tables::{Holds, Node, NotAdded, Table, Writes};
use dataplane::trace::Record;
use dataplane::verdict::Turn;
use dataplane::wire::{Port, V4, ip};
use dataplane::{Machine, Platform, Reason, Verdict};
use userspace::engine::Tracks;
use userspace::engine::emulator::Emulator;
use userspace::plan::{NodePlan, NodeRows, Rules};

const FIRST: u16 = 32_768;
const COUNT: u16 = 28_232;

/// A node with so many ports.
fn node(count: u16) -> Emulator {
    let node = Node { masquerade_first: FIRST, masquerade_count: count, seed: 7, ..Node::default() };
    let addresses = (V4([10, 240, 0, 4]), Default::default());
    let plan = NodePlan { node, addresses, rows: NodeRows::default(), rules: Rules::default() };
    Emulator::new(&plan).expect("an empty plan fits")
}

/// A pod's flow to the one remote end that there is.
fn flow(pod: u16, port: u16) -> Flow<V4> {
    let [high, low] = pod.to_be_bytes();
    Flow {
        source: V4([10, 244, high, low]),
        source_port: Port::new(port),
        target: V4([203, 0, 113, 7]),
        target_port: Port::new(443),
        protocol: ip::protocol::TCP,
        ..Flow::default()
    }
}

/// A CPU that is held up between its look at a port and its claim, while another CPU does something.
struct HeldUp<F> {
    node: Emulator,
    meanwhile: Option<F>,
}

impl<T: Table, F> Holds<T> for HeldUp<F>
where
    Emulator: Holds<T>,
{
    fn row(&self, key: &T::Key) -> Option<T::Row> {
        self.node.row(key)
    }
}

impl<T: Table, F: FnOnce(&mut Emulator)> Writes<T> for HeldUp<F>
where
    Emulator: Writes<T>,
{
    fn change<R>(&mut self, key: &T::Key, change: impl FnOnce(&mut T::Row) -> R) -> Option<R> {
        Writes::<T>::change(&mut self.node, key, change)
    }
    fn add(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile(&mut self.node);
        }
        Writes::<T>::add(&mut self.node, key, row)
    }
    fn put(&mut self, key: &T::Key, row: &T::Row) -> Result<(), NotAdded> {
        Writes::<T>::put(&mut self.node, key, row)
    }
    fn remove(&mut self, key: &T::Key) {
        Writes::<T>::remove(&mut self.node, key);
    }
}

impl<F: FnOnce(&mut Emulator)> Machine for HeldUp<F> {
    fn node(&self) -> Node {
        self.node.node()
    }
    fn now_s(&self) -> u32 {
        Machine::now_s(&self.node)
    }
    fn random(&mut self) -> u32 {
        self.node.random()
    }
    fn generation(&self) -> u32 {
        self.node.generation()
    }
    fn tracing(&self) -> bool {
        false
    }
    fn report(&mut self, record: &Record) {
        self.node.report(record);
    }
    fn count(&mut self, verdict: Verdict, bytes: u32) {
        self.node.count(verdict, bytes);
    }
    fn count_turn(&mut self, turn: Turn) {
        self.node.count_turn(turn);
    }
    fn count_audited(&mut self) {
        self.node.count_audited();
    }
}

impl<F: FnOnce(&mut Emulator)> Platform<V4> for HeldUp<F> {
    fn address(&self) -> V4 {
        Platform::<V4>::address(&self.node)
    }
}

fn claim(node: &mut Emulator, flow: &Flow<V4>) -> Result<Port, Reason> {
    nat::claim(node, flow, Port::default())
}

/// Whom the ports stand for: port, pod, its port.
fn owners(node: &Emulator) -> Vec<(u16, IpAddr, u16)> {
    let rows = Tracks::<V4>::masquerades(node).expect("the emulator's tables can be read");
    let owner = |row: dataplane::tables::Masqueraded<V4>| (IpAddr::from(row.pod.0), row.pod_port.host());
    rows.into_iter().map(|(key, row)| (key.port.host(), owner(row).0, owner(row).1)).collect()
}

#[test]
fn of_two_cpus_that_want_one_port_exactly_one_gets_it_and_the_other_another() {
    let (slow, fast) = (flow(1, 40_000), flow(2, 40_000));
    let mut won = None;
    let mut cpu = HeldUp {
        node: node(COUNT),
        meanwhile: Some(|node: &mut Emulator| won = Some(claim(node, &fast).expect("the range is empty"))),
    };
    let lost = nat::claim(&mut cpu, &slow, Port::default()).expect("there are others");
    let node = cpu.node;
    assert_eq!(won, Some(Port::new(40_000)), "the faster one has the port that both wanted");
    assert_ne!(lost, Port::new(40_000));
    let mut expected =
        [(40_000, IpAddr::from(fast.source.0), 40_000), (lost.host(), IpAddr::from(slow.source.0), 40_000)];
    expected.sort_unstable();
    assert_eq!(owners(&node), expected);
}

#[test]
fn two_cpus_with_packets_of_the_same_flow_agree_on_one_port() {
    let same = flow(1, 40_000);
    let mut cpu = HeldUp {
        node: node(COUNT),
        meanwhile: Some(|node: &mut Emulator| {
            claim(node, &same).expect("the range is empty");
        }),
    };
    assert_eq!(nat::claim(&mut cpu, &same, Port::default()), Ok(Port::new(40_000)));
    assert_eq!(owners(&cpu.node).len(), 1);
}

#[test]
fn a_flow_keeps_the_port_it_had_although_others_are_free_again() {
    let (before, flow) = (flow(1, 40_000), flow(2, 40_000));
    let mut node = node(COUNT);
    claim(&mut node, &before).expect("the range is empty");
    let had = claim(&mut node, &flow).expect("there are others");
    nat::release(&mut node, &before, Port::new(40_000));
    assert_eq!(nat::claim(&mut node, &flow, had), Ok(had));
    assert_eq!(owners(&node).len(), 1);
}

#[test]
fn ninety_nine_percent_of_the_range_are_taken_before_a_flow_is_refused() {
    let mut node = node(COUNT);
    let wanted = u32::from(COUNT) * 99 / 100;
    // Pods that count their source ports up, as Linux does, from ports that have nothing to do with each other.
    for number in 0..wanted {
        let flow = flow((number % 110) as u16, FIRST + (number.wrapping_mul(7919) % u32::from(COUNT)) as u16);
        let port = claim(&mut node, &flow);
        assert!(port.is_ok(), "flow {number} of {wanted}: {port:?}");
    }
    assert_eq!(owners(&node).len() as u32, wanted);
}

#[test]
fn a_small_range_is_used_up_to_its_last_port() {
    for count in [1, 2, 3, 64] {
        let mut node = node(count);
        for pod in 0..count {
            let port = claim(&mut node, &flow(pod, 5000)).expect("a port is free").host();
            assert!((FIRST..FIRST + count).contains(&port), "{port} of {count} from {FIRST} on");
        }
        assert_eq!(claim(&mut node, &flow(count, 5000)), Err(Reason::MasqueradePortsExhausted));
    }
    assert_eq!(claim(&mut node(0), &flow(1, 5000)), Err(Reason::MasqueradePortsExhausted), "no range at all");
}
