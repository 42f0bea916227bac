//! The engine in the kernel: loads, hooks in, outlives its process, leaves nothing behind.

mod agent;
mod balance;
mod equal;
mod netns;
mod tunnels;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use dataplane::tables::{Endpoint, Identity, IfIndex, Node, NodeId, Route, RuleSet, Timeouts};
use dataplane::wire::{Address, Be16, Mac, V4, V6};
use dataplane::{Reason, Verdict};
use userspace::engine::kernel::{Kernel, Options, Pins, Sweeper, Way};
use userspace::engine::{Claims, Clock, Engine, Flows, Hook, Tracks};
use userspace::plan::{Change, NodeChange, NodePlan, NodeRows, Prefix, Rows, Rules};

use netns::Netns;

const POD: V4 = V4([10, 244, 0, 2]);
const OTHER: V4 = V4([10, 244, 0, 3]);
const WORLD: V4 = V4([203, 0, 113, 7]);
const NODE: V4 = V4([10, 240, 0, 4]);
const TIMEOUTS: Timeouts = Timeouts {
    tcp_opening_s: 60,
    tcp_s: 8000,
    tcp_closed_s: 10,
    udp_s: 60,
    icmp_s: 60,
    quarantine_s: 60,
    fragment_s: 30,
};

/// Pins that are gone at the end of the test, whatever happens.
struct Folder(Pins);

impl Folder {
    fn new(of: &str) -> Self {
        Self(Pins::of(&format!("test-{}", std::process::id()), of))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.0.remove().expect("pins can be removed");
    }
}

fn plan(netns: &Netns) -> NodePlan {
    let endpoint = |link, address| Endpoint {
        interface: netns.interface(link),
        identity: Identity::FIRST,
        rules: RuleSet(1),
        mac: Mac::of(address),
        isolated: 0,
        flags: 0,
    };
    let world = Route { node: V6::default(), id: NodeId(0), mac: Mac::BROADCAST, kind: Route::WORLD, own: 0 };
    NodePlan {
        node: Node {
            underlay: NODE.to_v6(),
            uplink: netns.interface("eth0"),
            mtu: 1500,
            seed: 7,
            timeouts: TIMEOUTS,
            mac: Mac::of(NODE),
            tunnel_port: Be16::new(8472),
            masquerade_first: 32_768,
            masquerade_count: 1000,
            node_port_first: 30_000,
            node_port_count: 2768,
            encapsulation: Node::VXLAN,
            sockets: 0,
            balanced: 0,
            established: Node::KEEP,
            accelerated: 0,
            absent: 0,
            pad: [0; 2],
        },
        addresses: (NODE, V6::default()),
        rows: NodeRows {
            v4: Rows {
                endpoints: BTreeMap::from([(POD, endpoint("pod0", POD)), (OTHER, endpoint("pod1", OTHER))]),
                routes: BTreeMap::from([(Prefix { key: V4::default(), bits: 0 }, world)]),
                ..Rows::default()
            },
            ..NodeRows::default()
        },
        rules: Rules::default(),
    }
}

fn flows(kernel: &Kernel) -> Flows<V4> {
    kernel.connections().expect("readable")
}

fn claims(kernel: &Kernel) -> Claims<V4> {
    kernel.masquerades().expect("readable")
}

/// A UDP datagram from a pod.
fn datagram(target: V4, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(Mac::of(POD).0, Mac::GATEWAY.0)
        .ipv4(POD.0, target.0, 64)
        .udp(4000, port)
        .write(&mut frame, b"hello")
        .expect("a vector takes every byte");
    frame
}

fn traced(netns: &Netns, pins: Option<Pins>) -> Options {
    Options { trace: true, fixed_clock: true, netns: Some(netns.path()), pins, ..Options::default() }
}

#[test]
#[ignore = "needs root: make test"]
fn every_program_loads_and_says_what_the_verifier_walked() {
    let netns = Netns::with_links("loads");
    for trace in [false, true] {
        let options = Options { trace, netns: Some(netns.path()), ..Options::default() };
        let start = Instant::now();
        let mut plan = plan(&netns);
        (plan.node.sockets, plan.node.accelerated) = (1, 1);
        let kernel = Kernel::load(&plan, options).unwrap_or_else(|error| panic!("{error}"));
        let took = start.elapsed();
        println!("loaded in {took:?}, tracing {trace}");
        for (program, verified) in kernel.verified_instructions().expect("the kernel tells") {
            println!("  {program}: {verified} instructions verified");
            // The verifier gives up at a million.
            assert!(verified > 0 && verified < 500_000, "{program} leaves too little room to grow");
        }
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_frame_goes_to_a_pod_to_the_world_or_nowhere() {
    let netns = Netns::with_links("push");
    let plan = plan(&netns);
    let mut kernel = Kernel::load(&plan, traced(&netns, None)).expect("loads");
    let pod = netns.interface("pod0");

    let delivered = kernel.push(Hook::FromPod, pod, &datagram(OTHER, 80)).expect("runs");
    assert_eq!(delivered.verdict, Verdict::Deliver(netns.interface("pod1")));
    assert_eq!(delivered.frame[..6], Mac::of(OTHER).0);
    assert!(!delivered.records.is_empty());

    let sent = kernel.push(Hook::FromPod, pod, &datagram(WORLD, 53)).expect("runs");
    assert_eq!(sent.verdict, Verdict::Forward(plan.node.uplink));
    assert_eq!(sent.frame[26..30], NODE.0);

    let spoofed = kernel.push(Hook::FromPod, netns.interface("pod1"), &datagram(OTHER, 80)).expect("runs");
    assert_eq!(spoofed.verdict, Verdict::Drop(Reason::InvalidSource));

    assert_eq!(flows(&kernel).len(), 2);
    assert_eq!(claims(&kernel).len(), 1);
    let counts = kernel.counts().expect("readable");
    assert_eq!(counts[Verdict::Drop(Reason::InvalidSource).counter() as usize].packets, 1);
    assert_eq!(
        counts[Verdict::Deliver(IfIndex(0)).counter() as usize].bytes,
        datagram(OTHER, 80).len() as u64
    );
    assert_eq!(kernel.lost().expect("readable"), 0);
}

#[test]
#[ignore = "needs root: make test"]
fn what_is_over_is_swept_and_a_source_port_only_at_the_second_sight() {
    let netns = Netns::with_links("sweep");
    let mut kernel = Kernel::load(&plan(&netns), traced(&netns, None)).expect("loads");
    let pod = netns.interface("pod0");
    kernel.push(Hook::FromPod, pod, &datagram(WORLD, 53)).expect("runs");
    let mut sweeper = Sweeper::default();
    let swept = sweeper.sweep(&mut kernel).expect("sweeps");
    assert_eq!((swept.connections, swept.masquerades, swept.kept), (0, 0, 1));
    let pressure = kernel.pressure().expect("readable");
    let rows: Vec<_> = pressure.iter().map(|table| (table.table, table.rows)).collect();
    assert_eq!(rows[..3], [("conntrack", 1), ("masquerades", 1), ("fragments", 0)]);
    assert_eq!((pressure[0].capacity, pressure[4].capacity), (131_072, 1), "the node has no IPv6 address");
    kernel.wait(61).expect("the clock is ours");
    let swept = sweeper.sweep(&mut kernel).expect("sweeps");
    assert_eq!((swept.connections, swept.masquerades, swept.kept), (1, 0, 0));
    assert_eq!(claims(&kernel).len(), 1);
    let swept = sweeper.sweep(&mut kernel).expect("sweeps");
    assert_eq!((swept.connections, swept.masquerades, swept.kept), (0, 1, 0));
    assert!(claims(&kernel).is_empty());
}

#[test]
#[ignore = "needs root: make test"]
fn rows_follow_the_plan_and_a_table_too_small_is_named_before_anything_changes() {
    let netns = Netns::with_links("apply");
    let plan = plan(&netns);
    let mut options = traced(&netns, None);
    options.capacities.set("endpoints", 2).expect("there is such a table");
    let mut kernel = Kernel::load(&plan, options).expect("loads");
    let mut more = plan.rows.clone();
    let row = more.v4.endpoints[&POD];
    more.v4.endpoints.insert(V4([10, 244, 0, 9]), row);
    let refused = kernel.apply(&more).expect_err("three do not fit");
    assert!(refused.to_string().contains("endpoints"), "{refused}");
    let mut fewer = plan.rows.clone();
    fewer.v4.endpoints.remove(&OTHER);
    kernel.apply(&fewer).expect("one fits");
    let sent = kernel.push(Hook::FromPod, netns.interface("pod0"), &datagram(OTHER, 80)).expect("runs");
    assert_eq!(
        sent.verdict,
        Verdict::Forward(plan.node.uplink),
        "the pod is gone: the world's route is left"
    );
}

#[test]
#[ignore = "needs root: make test"]
fn restart_keeps_flows_and_links_and_stop_leaves_nothing() {
    let netns = Netns::with_links("restart");
    let folder = Folder::new("restart");
    let plan = plan(&netns);
    let places = [
        (Hook::FromUnderlay, "eth0".to_owned()),
        (Hook::FromPod, "pod0".to_owned()),
        (Hook::FromPod, "pod1".to_owned()),
    ];
    let mut first = Kernel::load(&plan, traced(&netns, Some(folder.0.clone()))).expect("loads");
    first.attach(&places).expect("attaches");
    first.push(Hook::FromPod, netns.interface("pod0"), &datagram(WORLD, 53)).expect("runs");
    let before = flows(&first);
    assert_eq!(before.len(), 1);
    drop(first);
    assert_eq!(links(&folder), ["from_pod-pod0", "from_pod-pod1", "from_underlay-eth0"]);
    assert_eq!(hooked(&netns, "pod0"), 1, "the program outlives its process");

    let mut second = Kernel::load(&plan, traced(&netns, Some(folder.0.clone()))).expect("loads");
    assert_eq!(flows(&second), before);
    second.attach(&places[..2]).expect("attaches");
    assert_eq!(links(&folder), ["from_pod-pod0", "from_underlay-eth0"]);
    assert_eq!(hooked(&netns, "pod0"), 1);
    assert!(is_let_go(&netns, "pod1"));

    second.reload(&plan, false).expect("reloads");
    assert!(!second.tracing());
    assert_eq!(flows(&second), before);
    assert_eq!(hooked(&netns, "pod0"), 1, "one program took the other's place");

    for on in [true, false, true, false] {
        second.trace(&plan, on).expect("they are put in the others' place");
        assert_eq!((second.tracing(), hooked(&netns, "pod0")), (on, 1));
        if on {
            let pushed = second.push(Hook::FromPod, netns.interface("pod0"), &datagram(WORLD, 53));
            assert!(!pushed.expect("runs").records.is_empty(), "they report");
        }
        assert_eq!(flows(&second).len(), 1, "they go on with its flow");
    }

    second.remove().expect("removes");
    assert!(!folder.0.exists());
    assert!(is_let_go(&netns, "pod0"));
}

#[test]
#[ignore = "needs root: make test"]
fn a_program_in_the_driver_gives_its_place_to_the_next_and_goes_where_it_is_not_wanted() {
    let netns = Netns::with_links("driver");
    let folder = Folder::new("driver");
    let mut plan = plan(&netns);
    plan.node.accelerated = 1;
    let places = [(Hook::FromUnderlay, "eth0".to_owned())];
    let load = |plan: &NodePlan, pins| {
        let mut kernel = Kernel::load(plan, traced(&netns, pins)).unwrap_or_else(|error| panic!("{error}"));
        kernel.attach(&places).unwrap_or_else(|error| panic!("{error}"));
        kernel
    };
    let pins = || Some(folder.0.clone());
    drop(load(&plan, pins()));
    assert_eq!(links(&folder), ["from_underlay-eth0", "from_wire-eth0"]);
    let mut second = load(&plan, pins());
    second.reload(&plan, false).unwrap_or_else(|error| panic!("{error}"));
    assert!(is_in_the_driver(&netns, "eth0"));
    plan.node.accelerated = 0;
    let third = load(&plan, pins());
    assert_eq!(links(&folder), ["from_underlay-eth0"]);
    drop(second);
    assert!(!is_in_the_driver(&netns, "eth0"));
    third.remove().expect("removes");

    plan.node.accelerated = 1;
    let mut alone = load(&plan, None);
    alone.reload(&plan, true).unwrap_or_else(|error| panic!("{error}"));
    assert!(is_in_the_driver(&netns, "eth0"));
    let uplink = netns.interface("eth0");
    let mut frame = datagram(NODE, 53);
    frame[..6].copy_from_slice(&Mac::of(NODE).0);
    let outcome = alone.push(Hook::FromUnderlay, uplink, &frame).expect("runs");
    assert_eq!((outcome.verdict, outcome.frame), (Verdict::Stack, frame));
    assert_eq!(outcome.records[0].number, uplink.0, "it is known where it came in");
}

#[test]
#[ignore = "needs root: make test"]
fn a_pinned_table_of_another_size_is_replaced_and_an_interface_of_the_same_name_is_hooked_anew() {
    let netns = Netns::with_links("layout");
    let folder = Folder::new("layout");
    let plan = plan(&netns);
    let places = [(Hook::FromPod, "pod0".to_owned())];
    let mut first = Kernel::load(&plan, traced(&netns, Some(folder.0.clone()))).expect("loads");
    first.attach(&places).expect("attaches");
    first.push(Hook::FromPod, netns.interface("pod0"), &datagram(WORLD, 53)).expect("runs");
    drop(first);
    netns.ip(&["link", "del", "pod0"]);
    netns.ip(&["link", "add", "pod0", "type", "veth", "peer", "name", "far1"]);

    let mut options = traced(&netns, Some(folder.0.clone()));
    options.capacities.set("conntrack", 64).expect("there is such a table");
    let mut second = Kernel::load(&plan, options).expect("loads");
    assert!(flows(&second).is_empty());
    assert_eq!(claims(&second).len(), 1, "this one is as it was");
    second.attach(&places).expect("attaches");
    assert_eq!(hooked(&netns, "pod0"), 1);
    second.remove().expect("removes");
}

#[test]
#[ignore = "needs root: make test"]
fn without_tcx_a_program_is_a_filter() {
    let netns = Netns::with_links("clsact");
    let plan = plan(&netns);
    let places = [(Hook::FromPod, "pod0".to_owned())];
    let filters = || {
        let output = Command::new("tc")
            .args(["-n", netns.name(), "filter", "show", "dev", "pod0", "ingress"])
            .output();
        let text = String::from_utf8(output.expect("tc is installed").stdout).expect("tc writes text");
        text.lines().filter(|line| line.contains("direct-action")).count()
    };
    let mut kernel = Kernel::load(&plan, traced(&netns, None)).expect("loads");
    kernel.attach_by(Way::Clsact, &places).expect("attaches");
    assert_eq!(filters(), 1);
    kernel.attach_by(Way::Clsact, &places).expect("attaches again");
    assert_eq!(filters(), 1, "one took the other's place");
    kernel.remove().expect("removes");
    assert_eq!(filters(), 0);
}

#[test]
#[ignore = "needs root: make test"]
fn an_interface_that_does_not_exist_is_named() {
    let netns = Netns::with_links("missing");
    let mut kernel = Kernel::load(&plan(&netns), traced(&netns, None)).expect("loads");
    let refused = kernel.attach(&[(Hook::FromPod, "nowhere".to_owned())]).expect_err("there is none");
    assert_eq!(refused.to_string(), "cannot attach from_pod to nowhere: interface does not exist");
}

#[test]
#[ignore = "needs root: make test"]
fn time_that_passes_brings_every_flow_nearer_to_its_end_also_on_the_kernels_own_clock() {
    let netns = Netns::with_links("clock");
    let options = Options { fixed_clock: false, ..traced(&netns, None) };
    let mut kernel = Kernel::load(&plan(&netns), options).expect("loads");
    kernel.push(Hook::FromPod, netns.interface("pod0"), &datagram(WORLD, 53)).expect("runs");
    let end = |kernel: &Kernel| flows(kernel)[0].1;
    let before = end(&kernel).expires_s;
    assert!(before > kernel.now_s().expect("there is a clock"));
    kernel.wait(30).expect("rows can be written");
    assert_eq!(end(&kernel).expires_s, before - 30);
}

/// The names of pinned links.
fn links(folder: &Folder) -> Vec<String> {
    let entries = std::fs::read_dir(folder.0.path().join("links")).expect("the folder is there");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Waits until no program hangs at the interface. The kernel takes a link away some time after its last pin: it
/// waits for everybody who may still look at it.
fn is_let_go(netns: &Netns, link: &str) -> bool {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while hooked(netns, link) != 0 {
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Whether a program hangs in the driver of an interface.
fn is_in_the_driver(netns: &Netns, link: &str) -> bool {
    let output = Command::new("ip").args(["-n", netns.name(), "link", "show", link]).output();
    let text = String::from_utf8(output.expect("ip is installed").stdout).expect("ip writes text");
    text.contains("prog/xdp")
}

/// How many programs hang on the ingress of an interface.
fn hooked(netns: &Netns, link: &str) -> usize {
    netns.run(|| {
        aya::programs::SchedClassifier::query_tcx(link, aya::programs::TcAttachType::Ingress)
            .expect("the interface is there")
            .1
            .len()
    })
}

#[test]
#[ignore = "needs root: make test"]
fn after_a_change_that_fails_flows_are_known_all_the_same() {
    let netns = Netns::with_links("failed");
    let (mut plan, far) = (plan(&netns), V4([10, 244, 1, 2]));
    let node = V4([10, 240, 0, 5]).to_v6();
    let route = Route { node, id: NodeId(2), mac: Mac::BROADCAST, kind: Route::REMOTE, own: 0 };
    plan.rows.v4.routes.insert(Prefix { key: far, bits: 32 }, route);
    let mut kernel = Kernel::load(&plan, traced(&netns, None)).expect("loads");
    // There are not so many bits in an address.
    let wrong = NodeChange::V4(Change::Route(Prefix { key: far, bits: 200 }, Some(route)));
    kernel.change(&[wrong]).expect_err("the kernel has no such route");
    kernel.push(Hook::FromPod, netns.interface("pod0"), &datagram(far, 53)).expect("it runs");
    let noted: Vec<u32> = flows(&kernel).iter().map(|(_, row)| row.way.generation).collect();
    assert!(noted == [kernel.generation()] && noted != [0], "{noted:?}");
}
