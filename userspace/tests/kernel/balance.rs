//! The load balancer in the kernel and in this process: the same rows and frames, the same fates, bytes, pins and
//! counters.

use dataplane::balance::outer_sum;
use dataplane::tables::{Balancer as Constants, Real, Slot, Virtual};
use dataplane::verdict::Fate;
use dataplane::wire::{Address, Be16, Mac, V4, V6};
use etherparse::PacketBuilder;
use userspace::engine::balancer::{FamilyRows, Rows};
use userspace::engine::emulator::balancer::{Balancer as Emulated, Kept};
use userspace::engine::kernel::balancer::{Action, Balancer};
use userspace::plan::FrontendKey;

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
    let (from, to) = if ends.0 < 8 { (NODE_PORT, client) } else { (client, PORT) };
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
            let at = 14 + dice.below(30) as usize;
            frame[at] = dice.below(256) as u8;
        }
        _ => {}
    }
    frame
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
            assert_eq!(kernel.pins().expect("readable"), V4::pins(&emulated));
            assert_eq!(kernel.pins_v6().expect("readable"), V6::pins(&emulated));
            assert_eq!(kernel.counts().expect("readable"), emulated.counts());
        }
    }
    let counters = [Fate::Other, Fate::Sent, Fate::Returned].map(Fate::counter);
    assert!(counters.iter().all(|counter| met.contains(counter)), "{met:?}");
}
