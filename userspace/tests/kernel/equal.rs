//! Frames of both families cut at every length, through the kernel's test run and through the emulator.
//!
//! The differential test of the testbed draws far more; these show at once what either engine makes of frames
//! that end in the middle of a header.

use dataplane::tables::IfIndex;
use dataplane::wire::{Address, Mac, V4, V6};
use dataplane::{Reason, Verdict};
use userspace::engine::emulator::Emulator;
use userspace::engine::kernel::{self, Kernel, Options};
use userspace::engine::{Engine, Hook, Outcome};
use userspace::error::Error;

use crate::tunnels::Side;

/// A UDP datagram between the two pods.
fn datagram(six: bool) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(Mac::of(Side::pod_v4(1)).0, Mac::GATEWAY.0);
    let builder = if six {
        builder.ipv6(Side::pod_v6(1).0, Side::pod_v6(2).0, 64)
    } else {
        builder.ipv4(Side::pod_v4(1).0, Side::pod_v4(2).0, 64)
    };
    let mut frame = Vec::new();
    builder.udp(4000, 7000).write(&mut frame, b"hello").expect("a vector takes every byte");
    frame
}

/// Both engines for one node.
struct Both {
    kernel: Kernel,
    emulator: Emulator,
}

impl Both {
    fn of(side: &Side, tunnel: fn(u8) -> V6) -> Self {
        let plan = side.plan(tunnel);
        let options =
            Options { trace: true, fixed_clock: true, netns: Some(side.node.path()), ..Options::default() };
        let kernel = Kernel::load(&plan, options).unwrap_or_else(|error| panic!("{error}"));
        Self { kernel, emulator: Emulator::new(&plan).expect("the plan fits") }
    }

    /// What both make of a frame; `None` where the kernel does not try: its test run wants a whole IP header
    /// of the family that the EtherType says (6.18).
    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Option<Outcome> {
        let in_process = self.emulator.push(hook, interface, frame).expect("the emulator takes any frame");
        let in_kernel = match self.kernel.push(hook, interface, frame) {
            Ok(outcome) => outcome,
            Err(_) => return None,
        };
        assert_eq!(in_kernel, in_process, "{hook:?}, a frame of {} bytes", frame.len());
        Some(in_kernel)
    }
}

fn every_length(of: &str, tunnel: fn(u8) -> V6) {
    let (left, right) = crate::tunnels::sides(of);
    let mut sender = Both::of(&left, tunnel);
    let mut receiver = Both::of(&right, tunnel);
    let (pod, uplink) = (left.node.interface("pod0"), right.node.interface("eth0"));
    for six in [false, true] {
        let frame = datagram(six);
        let shortest = 14 + if six { V6::HEADER } else { V4::HEADER };
        for length in 14..frame.len() {
            let cut = sender.push(Hook::FromPod, pod, &frame[..length]);
            assert!(cut.is_some() || length < shortest, "the kernel takes a frame of {length} bytes");
            let verdict = cut.map_or(Verdict::Drop(Reason::Truncated), |outcome| outcome.verdict);
            assert_eq!(verdict, Verdict::Drop(Reason::Truncated), "{length} bytes");
        }
        let wrapped = sender.push(Hook::FromPod, pod, &frame).expect("the kernel takes a whole frame");
        assert_eq!(wrapped.verdict, Verdict::Forward(left.node.interface("eth0")));
        for length in 14..wrapped.frame.len() {
            receiver.push(Hook::FromUnderlay, uplink, &wrapped.frame[..length]);
        }
        let opened = receiver.push(Hook::FromUnderlay, uplink, &wrapped.frame).expect("it is whole");
        assert_eq!(opened.verdict, Verdict::Deliver(right.node.interface("pod0")));
        assert_eq!(opened.frame[14..22], expected_start(&frame, six));
    }
}

/// The first eight bytes of the IP header, as they are after two hops where those are among them.
fn expected_start(frame: &[u8], six: bool) -> [u8; 8] {
    let mut start = [0; 8];
    start.copy_from_slice(&frame[14..22]);
    if six {
        start[7] -= 2;
    }
    start
}

#[test]
#[ignore = "needs root: make test"]
fn both_engines_make_the_same_of_frames_of_every_length_over_ipv4() {
    every_length("equal4", |number| Side::node_v4(number).to_v6());
}

#[test]
#[ignore = "needs root: make test"]
fn both_engines_make_the_same_of_frames_of_every_length_over_ipv6() {
    every_length("equal6", Side::node_v6);
}

#[test]
#[ignore = "needs root: make test"]
fn the_sum_that_a_packet_comes_with_is_its_own_where_it_is_delivered() {
    let (left, right) = crate::tunnels::sides("summed");
    let tunnel = |number: u8| Side::node_v4(number).to_v6();
    let (mut sender, mut receiver) = (Both::of(&left, tunnel), Both::of(&right, tunnel));
    let (pod, uplink) = (left.node.interface("pod0"), right.node.interface("eth0"));
    for six in [false, true] {
        let frame = datagram(six);
        let wrapped = sender.push(Hook::FromPod, pod, &frame).expect("the kernel takes a whole frame");
        let opened = receiver.push(Hook::FromUnderlay, uplink, &wrapped.frame).expect("it is whole");
        let summed = receiver.kernel.push_summed(Hook::FromUnderlay, uplink, &wrapped.frame);
        let summed = summed.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((summed.verdict, summed.frame), (opened.verdict, opened.frame));
        // The kernel does look: nobody tells it of a tunnel's headers.
        let told = sender.kernel.push_summed(Hook::FromPod, pod, &frame);
        assert!(matches!(told, Err(Error::Kernel(kernel::Error::Sum { .. }))), "{told:?}");
    }
}
