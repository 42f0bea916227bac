//! Sockets that connect, send, ask and close, call by call, on the emulator: the code that the kernel runs.

use std::collections::BTreeMap;

use dataplane::socket::{Call, connect, name, release, send};
use dataplane::tables::{
    Backend, BackendId, Cookie, Home, Node, Route, Service, ServiceId, Slots, Socket, Sockets, Table,
};
use dataplane::wire::{Address, Be16, V4, V6};
use dataplane::{Platform, Turn};
use userspace::engine::emulator::Emulator;
use userspace::engine::{Capacities, Engine};
use userspace::plan::{FrontendKey, NodePlan, NodeRows, Prefix, Rows, Rules};

/// The network namespaces of a pod, of the node itself, and of somebody else.
const POD: Cookie = Cookie::new(0x1_0000_0007);
const NODE: Cookie = Cookie::new(8);
const ELSEWHERE: Cookie = Cookie::new(9);
const SOCKET: Cookie = Cookie::new(4711);

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// A family's addresses in these tests.
trait Family: Address {
    fn numbered(range: u8, last: u8) -> Self;
    fn loopback() -> Self;
}

impl Family for V4 {
    fn numbered(range: u8, last: u8) -> Self {
        Self([10, range, 0, last])
    }
    fn loopback() -> Self {
        Self([127, 0, 0, 1])
    }
}

impl Family for V6 {
    fn numbered(range: u8, last: u8) -> Self {
        Self([0xfd, range, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
    }
    fn loopback() -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    }
}

/// A Service's.
fn frontend<A: Family>(last: u8) -> A {
    A::numbered(96, last)
}

/// The node's.
fn own<A: Family>() -> A {
    A::numbered(240, 4)
}

fn backend<A: Family>(last: u8) -> Backend<A> {
    Backend {
        address: A::numbered(244, last),
        seed: u32::from(last).wrapping_mul(0x9e37_79b9),
        port: Be16::new(8080),
        state: Backend::<A>::ACTIVE,
        pad: 0,
    }
}

/// Services at nine addresses, over TCP and UDP, with two backends each; one at the twentieth without any; and a
/// node port with those of the first.
fn rows<A: Family>() -> Rows<A> {
    let mut frontends = BTreeMap::new();
    let row =
        |id, slots| Service { internal: slots, external: slots, id: ServiceId(id), ..Service::default() };
    let slots = |last: u8| Slots { first: 2 * u32::from(last) - 1, count: 2 };
    for protocol in [TCP, UDP] {
        let mut add = |address, port, row| frontends.insert(FrontendKey { address, port, protocol }, row);
        for last in 1..=9 {
            add(frontend(last), 80, row(u32::from(last), slots(last)));
        }
        add(frontend(20), 80, row(20, Slots::default()));
        add(A::default(), 30_080, row(21, slots(1)));
    }
    let here = Route { kind: Route::HOST, own: 1, ..Route::default() };
    let home = |address, own| Home { address, own, pad: [0; 3] };
    Rows {
        frontends,
        maglev: (0..=18).map(BackendId).collect(),
        backends: std::iter::once(Backend::default()).chain((1..=18).map(backend)).collect(),
        routes: BTreeMap::from([(Prefix { key: own(), bits: A::BITS }, here)]),
        homes: BTreeMap::from([(POD, home(A::numbered(244, 100), 0)), (NODE, home(own(), 1))]),
        ..Rows::default()
    }
}

fn node(capacities: &Capacities) -> (Emulator, NodeRows) {
    let rows = NodeRows { v4: rows(), v6: rows(), ..NodeRows::default() };
    let node = Node { node_port_first: 30_000, node_port_count: 2768, sockets: 1, ..Node::default() };
    let plan = NodePlan { node, addresses: (own(), own()), rows: rows.clone(), rules: Rules::default() };
    (Emulator::with_capacities(&plan, capacities).expect("it fits"), rows)
}

/// The pod's socket dials a Service.
fn call<A: Family>(protocol: u8, last: u8) -> Call<A> {
    Call { socket: SOCKET, home: POD, address: frontend(last), port: Be16::new(80), protocol }
}

fn turns(emulator: &Emulator) -> (u64, u64) {
    let counts = emulator.counts().expect("in memory");
    let of = |turn: Turn| counts[turn.counter() as usize].packets;
    (of(Turn::Backend), of(Turn::Full))
}

fn is_backend<A: Family>(call: &Call<A>) -> bool {
    (1..=18).map(backend::<A>).any(|one| (one.address, one.port) == (call.address, call.port))
}

/// The same of both families, each on a node of its own.
fn of_both(v4: impl Fn(&mut Emulator), v6: impl Fn(&mut Emulator)) {
    v4(&mut node(&Capacities::default()).0);
    v6(&mut node(&Capacities::default()).0);
}

fn led_and_told<A: Family>(emulator: &mut Emulator)
where
    Emulator: Platform<A>,
{
    for protocol in [TCP, UDP] {
        let mut dialled = call::<A>(protocol, 1);
        assert!(connect(emulator, &mut dialled));
        assert!(is_backend(&dialled), "{dialled:?}");
        let mut peer = dialled;
        assert!(name(emulator, &mut peer));
        assert_eq!(peer, call(protocol, 1));
        release::<A>(emulator, SOCKET);
        assert!(!name(emulator, &mut dialled), "it is forgotten");
    }
}

#[test]
fn a_socket_is_led_to_a_backend_and_told_what_it_dialled() {
    of_both(led_and_told::<V4>, led_and_told::<V6>);
}

#[test]
fn what_is_no_service_or_has_nobody_or_is_elsewhere_is_left_alone() {
    let (mut emulator, _) = node(&Capacities::default());
    let left = [
        call::<V4>(TCP, 50),
        call::<V4>(TCP, 20),
        call::<V4>(SCTP, 1),
        Call { home: ELSEWHERE, ..call::<V4>(TCP, 1) },
        Call { port: Be16::new(81), ..call::<V4>(TCP, 1) },
        Call { address: V4::loopback(), port: Be16::new(30_080), ..call(TCP, 1) },
    ];
    for before in left {
        let mut after = before;
        assert!(!connect(&mut emulator, &mut after), "{before:?}");
        assert!(!send(&mut emulator, &mut after), "{before:?}");
        assert_eq!(after, before);
    }
    assert_eq!(turns(&emulator), (0, 0));
}

fn node_ports<A: Family>(emulator: &mut Emulator)
where
    Emulator: Platform<A>,
{
    for (home, address) in [(POD, own()), (NODE, own()), (NODE, A::loopback())] {
        let before = Call { home, address, port: Be16::new(30_080), ..call(TCP, 1) };
        let mut after = before;
        assert!(connect(emulator, &mut after), "{before:?}");
        assert!(is_backend(&after));
        assert!(name(emulator, &mut after));
        assert_eq!(after, before);
    }
}

#[test]
fn a_node_port_is_at_the_nodes_addresses_and_for_itself_at_its_loopback_ones() {
    of_both(node_ports::<V4>, node_ports::<V6>);
}

#[test]
fn a_socket_that_connects_anew_forgets_what_it_dialled_before() {
    let (mut emulator, _) = node(&Capacities::default());
    let mut dialled = call::<V4>(UDP, 1);
    assert!(connect(&mut emulator, &mut dialled));
    // The backend itself, this time.
    let mut direct = dialled;
    assert!(!connect(&mut emulator, &mut direct));
    assert!(!name(&emulator, &mut direct), "nobody dialled anything else");
    assert_eq!(direct, dialled);
}

fn several_services<A: Family>(emulator: &mut Emulator)
where
    Emulator: Platform<A>,
{
    let mut led = Vec::new();
    for last in 1..=8 {
        let mut sent = call::<A>(UDP, last);
        assert!(send(emulator, &mut sent), "there is a place for {last}");
        led.push(sent);
    }
    for (last, sent) in (1..).zip(&led) {
        let mut again = call::<A>(UDP, last);
        assert!(send(emulator, &mut again));
        assert_eq!(again, *sent, "it stays with its backend");
    }
    let mut ninth = call::<A>(UDP, 9);
    assert!(!send(emulator, &mut ninth), "a ninth has no place");
    assert_eq!((ninth, turns(emulator)), (call(UDP, 9), (16, 1)));
    release::<A>(emulator, SOCKET);
    for place in 0..Socket::PLACES {
        assert_eq!(Sockets::<A>::get(emulator, &Socket { cookie: SOCKET, place }), None);
    }
}

#[test]
fn a_socket_that_is_not_connected_has_a_place_for_eight_services() {
    of_both(several_services::<V4>, several_services::<V6>);
}

#[test]
fn a_socket_that_is_not_connected_is_led_anew_when_its_backend_takes_no_more() {
    let (mut emulator, mut rows) = node(&Capacities::default());
    let mut first = call::<V4>(UDP, 1);
    assert!(send(&mut emulator, &mut first));
    let gone = rows.v4.backends.iter().position(|row| row.address == first.address).expect("one of them");
    let other = 3 - gone;
    // Nobody new is given to it; who has it keeps it.
    rows.v4.maglev = vec![BackendId(0), BackendId(other as u32)];
    for service in rows.v4.frontends.values_mut() {
        service.internal.count = service.internal.count.min(1);
    }
    emulator.apply(&rows).expect("it fits");
    let mut second = call::<V4>(UDP, 1);
    assert!(send(&mut emulator, &mut second));
    assert_eq!(second, first);
    // Now it may not.
    rows.v4.backends[gone].state = Backend::<V4>::DRAINING;
    emulator.apply(&rows).expect("it fits");
    let mut third = call::<V4>(UDP, 1);
    assert!(send(&mut emulator, &mut third));
    assert_eq!(third.address, rows.v4.backends[other].address);
    assert!(!name(&emulator, &mut first), "a late answer of the first comes as itself");
    assert!(name(&emulator, &mut third));
}

#[test]
fn a_socket_is_not_led_to_one_backend_from_two_services() {
    let (mut emulator, _) = node(&Capacities::default());
    let mut times = [0, 0];
    for socket in 1..=32 {
        let socket = Cookie::new(socket);
        let mut first = Call { socket, ..call::<V4>(UDP, 1) };
        assert!(send(&mut emulator, &mut first));
        let dialled =
            Call { address: own(), port: Be16::new(30_080), ..Call { socket, ..call::<V4>(UDP, 1) } };
        let mut second = dialled;
        let led = send(&mut emulator, &mut second);
        assert_eq!(led, second != dialled);
        assert_ne!(second.address, first.address);
        times[usize::from(led)] += 1;
        // Each answer is given the name of whom it is from.
        let mut answer = first;
        assert!(name(&emulator, &mut answer));
        assert_eq!(answer.address, frontend(1));
    }
    assert!(times[0] > 0 && times[1] > 0, "{times:?}");
}

#[test]
fn a_backend_that_is_named_itself_answers_as_itself_from_then_on() {
    let (mut emulator, _) = node(&Capacities::default());
    let mut led = call::<V4>(UDP, 1);
    assert!(send(&mut emulator, &mut led));
    let mut direct = led;
    assert!(!send(&mut emulator, &mut direct));
    assert!(!name(&emulator, &mut direct));
    assert_eq!(direct, led);
    // Its place is free for whoever is dialled next.
    assert!(send(&mut emulator, &mut call::<V4>(UDP, 2)));
    assert_eq!(Sockets::<V4>::get(&emulator, &Socket { cookie: SOCKET, place: 1 }), None);
}

#[test]
fn a_full_table_leaves_the_address_alone() {
    let mut capacities = Capacities::default();
    capacities.set("sockets", 1).expect("there is such a table");
    let (mut emulator, _) = node(&capacities);
    assert!(connect(&mut emulator, &mut call::<V4>(TCP, 1)));
    let other = Call { socket: Cookie::new(4712), ..call::<V4>(TCP, 1) };
    let mut left = other;
    assert!(!connect(&mut emulator, &mut left));
    assert_eq!((left, turns(&emulator)), (other, (1, 1)));
    release::<V4>(&mut emulator, SOCKET);
    assert!(connect(&mut emulator, &mut left));
}

#[test]
fn sockets_are_spread_over_the_backends() {
    let (mut emulator, _) = node(&Capacities::default());
    let mut first = 0;
    for number in 0..1000 {
        let mut led = Call { socket: Cookie::new(number), ..call::<V4>(TCP, 1) };
        assert!(connect(&mut emulator, &mut led));
        first += u32::from(led.address == backend::<V4>(1).address);
    }
    assert!((400..600).contains(&first), "{first} of 1000");
}
