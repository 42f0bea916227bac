//! The load balancer in the kernel and in this process: the same rows and frames, the same fates, bytes, pins and
//! counters. And with real sockets: a client, the load balancer and a node on one bridge.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use dataplane::balance::outer_sum;
use dataplane::tables::{Balancer as Constants, Pin, Pinned, Real, Slot, Virtual};
use dataplane::verdict::{Fate, Miss};
use dataplane::wire::{Address, Be16, Mac, V4, V6};
use etherparse::PacketBuilder;
use userspace::engine::balancer::{Carrier, FamilyRows, Keeps, Rows};
use userspace::engine::emulator::balancer::Balancer as Emulated;
use userspace::engine::kernel::balancer::{Action, Balancer, Mode};
use userspace::plan::FrontendKey;

use crate::netns::Netns;

const SLOTS: u32 = 64;
const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;

/// Numbers as good as random, the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) as u32) % end
    }
}

fn v4(last: u8) -> V4 {
    V4([10, 240, 0, last])
}

fn v6(last: u8) -> V6 {
    let mut address = V6([0xfd, 0, 2, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    address.0[15] = last;
    address
}

/// A frontend with eight nodes in all states, and a ring in which some slots have moved.
fn family<A: Address>(of: fn(u8) -> A, forward: u8, dice: &mut Dice) -> FamilyRows<A> {
    let flags = if forward == Constants::NODE_PORT { Virtual::PINS } else { 0 };
    let mut rows = FamilyRows::default();
    let own = FrontendKey { address: of(80), port: 0, protocol: 0 };
    rows.virtuals.insert(own, Virtual { flags: Virtual::ADDRESS, ..Virtual::default() });
    for (protocol, number) in [(6, 1), (17, 2)] {
        let first = (u32::from(number) - 1) * SLOTS;
        let key = FrontendKey { address: of(80), port: PORT, protocol };
        rows.virtuals.insert(key, Virtual { first, count: SLOTS, number, flags, pad: 0 });
        if forward == Constants::NODE_PORT {
            for real in 1..8 {
                let key = FrontendKey { address: of(real), port: NODE_PORT, protocol };
                let first = u32::from(real);
                rows.virtuals
                    .insert(key, Virtual { first, count: 0, number, flags: Virtual::RETURN, pad: 0 });
            }
        }
    }
    rows.reals = (0..8_u8)
        .map(|number| Real {
            address: of(number),
            frontend: of(80),
            sum: outer_sum(of(number)),
            port: Be16::new(NODE_PORT),
            frontend_port: Be16::new(PORT),
            mac: Mac::of(of(number)),
            state: if number == 0 { Real::<A>::GONE } else { dice.below(3) as u8 },
            pad: 0,
        })
        .collect();
    rows.ring = (0..2 * SLOTS)
        .map(|_| {
            let moved_s = if dice.below(2) == 0 { 0 } else { 1 + dice.below(200) };
            let now = dice.below(8) as u16;
            Slot { now, home: if moved_s == 0 { now } else { dice.below(8) as u16 }, moved_s }
        })
        .collect();
    rows
}

/// A frame of any kind: for a frontend, from behind one, or neither; whole, cut, changed.
fn frame(dice: &mut Dice) -> Vec<u8> {
    let six = dice.below(2) == 1;
    let ends = match dice.below(8) {
        0 => (dice.below(8) as u8, 200),
        1 => (200, 81),
        _ => (200 + dice.below(4) as u8, 80),
    };
    let builder = PacketBuilder::ethernet2([2; 6], [3; 6]);
    let builder = if six {
        builder.ipv6(v6(ends.0).0, v6(ends.1).0, 64)
    } else {
        builder.ipv4(v4(ends.0).0, v4(ends.1).0, 64)
    };
    let client = 1000 + dice.below(12) as u16;
    let (from, to) = match ends.0 {
        0..8 => (NODE_PORT, client),
        _ => (client, if dice.below(8) == 0 { PORT + 1 } else { PORT }),
    };
    let payload = vec![7; dice.below(60) as usize];
    let mut frame = Vec::new();
    let written = match dice.below(6) {
        0 | 1 => builder.udp(from, to).write(&mut frame, &payload),
        2 => builder.tcp(from, to, 1, 100).syn().write(&mut frame, &payload),
        3 => builder.tcp(from, to, 1, 100).ack(7).syn().write(&mut frame, &payload),
        _ => builder.tcp(from, to, 1, 100).ack(7).write(&mut frame, &payload),
    };
    written.expect("a vector takes every byte");
    match dice.below(12) {
        0 => frame.truncate(14 + 40 + dice.below(20) as usize),
        1 => {
            let at = 14 + dice.below(frame.len() as u32 - 14) as usize;
            frame[at] = dice.below(256) as u8;
        }
        _ => {}
    }
    frame
}

fn pins<A: Address>(carrier: &impl Keeps<A>) -> Vec<(Pin<A>, Pinned)> {
    carrier.pins().expect("readable")
}

/// When flows were sent home, by slot.
fn homes<A: Address>(carrier: &impl Keeps<A>) -> Vec<u32> {
    (0..2 * SLOTS).map(|slot| carrier.at_home_s(slot).expect("readable")).collect()
}

/// Both engines forget the flows that were not seen since, and no others.
fn forget_some<A: Address>(kernel: &mut impl Keeps<A>, emulated: &mut impl Keeps<A>, seen_s: u32) {
    let before = pins(kernel);
    for (pin, _) in &before {
        kernel.forget(pin, seen_s).expect("writable");
        emulated.forget(pin, seen_s).expect("writable");
    }
    let left: Vec<_> = before.into_iter().filter(|(_, pinned)| pinned.seen_s > seen_s).collect();
    assert_eq!(pins(kernel), left);
    assert_eq!(pins(emulated), left);
}

#[test]
#[ignore = "needs root: make test"]
fn the_load_balancer_does_the_same_in_the_kernel_and_in_this_process() {
    let mut met = std::collections::BTreeSet::new();
    for forward in [Constants::FLOATING_IP, Constants::NODE_PORT, Constants::IP_IN_IP] {
        let mut dice = Dice(u64::from(forward) + 1);
        let constants = Constants {
            seed: 7,
            drain_s: 60,
            mac: Mac([9; 6]),
            gateway: Mac([8; 6]),
            forward,
            client_affinity: 0,
            pad: [0; 2],
        };
        let mut kernel = Balancer::load(constants, true).unwrap_or_else(|error| panic!("{error}"));
        let mut emulated = Emulated::new(constants);
        for round in 0..20 {
            let rows = Rows { v4: family(v4, forward, &mut dice), v6: family(v6, forward, &mut dice) };
            kernel.apply(&rows).expect("the tables take it");
            emulated.apply(&rows).expect("the tables take it");
            for number in 0..400 {
                let now_s = 100 + round * 10 + number / 50;
                let sent = frame(&mut dice);
                kernel.set_clock(now_s).expect("a word");
                // What is no whole header the kernel's test run may not take: neither engine is asked then.
                let Ok((action, bytes)) = kernel.push(&sent) else { continue };
                let carried = emulated.push(&sent, now_s);
                let expected = match carried.fate {
                    Fate::Sent | Fate::Returned => Action::Send,
                    Fate::Other => Action::Pass,
                    Fate::Missed(_) => Action::Drop,
                };
                assert_eq!(
                    action, expected,
                    "mode {forward}, frame {number}: {:?} of {sent:02x?}",
                    carried.fate
                );
                assert_eq!(bytes, carried.frame, "mode {forward}, frame {number}: {:?}", carried.fate);
                met.insert(carried.fate.counter());
            }
            assert_eq!(pins::<V4>(&kernel), pins::<V4>(&emulated));
            assert_eq!(pins::<V6>(&kernel), pins::<V6>(&emulated));
            assert_eq!(homes::<V4>(&kernel), homes::<V4>(&emulated));
            assert_eq!(homes::<V6>(&kernel), homes::<V6>(&emulated));
            assert_eq!(kernel.counts().expect("readable"), emulated.counts().expect("readable"));
            forget_some::<V4>(&mut kernel, &mut emulated, 100 + round * 10);
            forget_some::<V6>(&mut kernel, &mut emulated, 100 + round * 10);
        }
    }
    let counters =
        [Fate::Other, Fate::Sent, Fate::Returned, Fate::Missed(Miss::NoFrontend)].map(Fate::counter);
    assert!(counters.iter().all(|counter| met.contains(counter)), "{met:?}");
}

/// A host on the bridge of `fabric`, by a link of its own.
fn host(of: &str, fabric: &Netns, address: V4) -> Netns {
    let netns = Netns::new(of);
    let mac = Mac::of(address).to_string();
    fabric.ip(&["link", "add", of, "type", "veth", "peer", "name", "eth0", "netns", netns.name()]);
    fabric.ip(&["link", "set", of, "master", "br0", "up"]);
    netns.ip(&["link", "set", "eth0", "address", &mac, "up"]);
    netns.ip(&["link", "set", "lo", "up"]);
    netns.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
    netns
}

/// Has every packet that a link of this thread's namespace sends bear its whole checksum (`ETHTOOL_STXCSUM`): a
/// program in the driver knows nothing of one that is left to a network card.
fn complete_checksums(link: &str) {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const SET_SENT_CHECKSUMS: u32 = 0x17;
    let mut value = Value { command: SET_SENT_CHECKSUMS, data: 0 };
    // SAFETY: a request of zeroes is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("any socket will do");
    let socket = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the request and what it points to outlive the call.
    let code = unsafe { libc::ioctl(socket, libc::SIOCETHTOOL as _, &raw mut request) };
    assert_eq!(code, 0, "{link}: {}", std::io::Error::last_os_error());
}

#[test]
#[ignore = "needs root: make test"]
fn a_client_reaches_a_node_through_xdp_and_the_node_answers_it_directly() {
    let fabric = Netns::new("lbf");
    fabric.ip(&["link", "add", "br0", "type", "bridge"]);
    fabric.ip(&["link", "set", "br0", "up"]);
    let (client, balancer, node) =
        (host("lbc", &fabric, v4(200)), host("lbx", &fabric, v4(99)), host("lbn", &fabric, v4(1)));
    let frontend = v4(80).to_string();
    let mac = Mac::of(v4(99)).to_string();
    client.ip(&["neigh", "replace", &frontend, "lladdr", &mac, "dev", "eth0"]);
    node.ip(&["addr", "add", &format!("{frontend}/32"), "dev", "lo"]);

    let constants =
        Constants { mac: Mac::of(v4(99)), forward: Constants::FLOATING_IP, ..Constants::default() };
    let mut kernel = Balancer::load(constants, false).unwrap_or_else(|error| panic!("{error}"));
    let mut rows: FamilyRows<V4> = family(v4, Constants::FLOATING_IP, &mut Dice(1));
    rows.reals[1].state = Real::<V4>::ACTIVE;
    rows.ring.iter_mut().for_each(|slot| *slot = Slot { now: 1, home: 1, moved_s: 0 });
    kernel.apply(&Rows { v4: rows, ..Rows::default() }).expect("the tables take it");
    fabric.run(|| complete_checksums("lbx"));
    let (own, other) = (balancer.path(), fabric.path());
    let mode = kernel.attach((&own, "eth0"), (&other, "lbx")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(mode, Mode::Native, "a veth takes programs in its driver");

    let address = SocketAddr::new(std::net::IpAddr::from(v4(80).0), PORT);
    let listener = node.run(|| TcpListener::bind(address).expect("the node has the frontend's address"));
    let server = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("somebody comes");
        let mut bytes = vec![0; 100_000];
        stream.read_exact(&mut bytes).expect("all of it comes");
        stream.write_all(&bytes).expect("the client takes it");
        from
    });
    let wait = Duration::from_secs(5);
    let mut stream =
        client.run(|| TcpStream::connect_timeout(&address, wait).expect("the load balancer passes it on"));
    stream.set_read_timeout(Some(wait)).expect("a socket");
    stream.set_write_timeout(Some(wait)).expect("a socket");
    let said: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
    stream.write_all(&said).expect("the node takes it");
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard).expect("the node answers");
    assert_eq!(heard, said);
    let from = server.join().expect("the server does not panic");
    assert_eq!(from.ip(), std::net::IpAddr::from(v4(200).0), "the client's own address");
    let sent = kernel.counts().expect("readable")[Fate::Sent.counter() as usize].packets;
    assert!(sent > 10, "only {sent} packets went through the load balancer");
}
