//! Maglev: a table of slots that spreads flows evenly over backends, and few of which change hands when a
//! backend comes or goes.
//!
//! Every backend has a permutation of the slots, its order of preference; in turn, each takes the first
//! slot it prefers that is still free.
//!
//! Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4.

use super::hash;

/// Sizes of tables: primes, so that every step leads through all slots, the largest below 2^8, 2^9, ...
const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];
/// Slots per backend: shares then differ by at most one in a hundred (section 5.3 of the paper).
const SLOTS_EACH: usize = 100;

/// Slots of a table for this many backends; 0 for none. A single backend needs no choice and one slot.
pub(super) fn size(backends: usize) -> u32 {
    match backends {
        0 => 0,
        1 => 1,
        _ => SIZES.into_iter().find(|size| *size as usize >= SLOTS_EACH * backends).unwrap_or(SIZES[9]),
    }
}

/// Who has each slot: the place of a backend in `names`. The names must differ; their order does not matter,
/// beyond that it is what the places count along.
pub(super) fn slots(names: &[String]) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let size = size(names.len());
    if names.len() < 2 {
        return vec![0; size as usize];
    }
    let mut turns: Vec<_> =
        names.iter().zip(0..).map(|(name, place)| (name, place, Preference::of(name, size))).collect();
    // Whose turn it is must depend on who is there, not on the order they are listed in.
    turns.sort_by_key(|(name, ..)| *name);
    let mut slots = vec![FREE; size as usize];
    let mut free = size;
    while free > 0 {
        for (_, place, preference) in turns.iter_mut().take(free as usize) {
            // Ends: the permutation meets every slot, and one is free.
            let slot = loop {
                let slot = preference.next();
                if slots[slot] == FREE {
                    break slot;
                }
            };
            slots[slot] = *place;
        }
        free = free.saturating_sub(turns.len() as u32);
    }
    slots
}

/// A backend's order of preference: (offset + turn * skip) mod size.
struct Preference {
    next: u32,
    skip: u32,
    size: u32,
}

impl Preference {
    fn of(name: &str, size: u32) -> Self {
        let hash = hash::mixed(name.as_bytes());
        Self { next: (hash >> 32) as u32 % size, skip: hash as u32 % (size - 1) + 1, size }
    }
    fn next(&mut self) -> usize {
        let slot = self.next;
        self.next = (self.next + self.skip) % self.size;
        slot as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("10.244.{}.{}:8080", index / 250, index % 250 + 1)).collect()
    }
    /// The names that have the slots.
    fn holders(names: &[String]) -> Vec<String> {
        slots(names).into_iter().map(|place| names[place as usize].clone()).collect()
    }

    #[test]
    fn sizes_are_the_largest_primes_below_powers_of_two() {
        let prime = |number: u32| {
            (2..).take_while(|factor| factor * factor <= number).all(|factor| !number.is_multiple_of(factor))
        };
        for (size, power) in SIZES.into_iter().zip(8..) {
            let largest = (1..1 << power).rev().find(|number| prime(*number));
            assert_eq!(Some(size), largest);
        }
        assert_eq!([0, 1, 2, 3, 10, 100, 5000].map(size), [0, 1, 251, 509, 1021, 16_381, 131_071]);
    }

    #[test]
    fn every_backend_gets_its_share() {
        for count in [2, 3, 7, 100, 1000] {
            let slots = slots(&names(count));
            let mut shares = vec![0; count];
            slots.iter().for_each(|place| shares[*place as usize] += 1);
            let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
            assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1, "{count}: {least:?} to {most:?}");
        }
    }

    #[test]
    fn the_order_of_the_backends_does_not_matter() {
        let forwards = names(17);
        let backwards: Vec<_> = forwards.iter().rev().cloned().collect();
        assert_eq!(holders(&forwards), holders(&backwards));
    }

    #[test]
    fn when_one_of_a_hundred_leaves_its_slots_move_and_few_of_the_others() {
        let all = names(100);
        let before = holders(&all);
        for leaver in [0, 42, 99] {
            let rest: Vec<_> = all.iter().filter(|name| **name != all[leaver]).cloned().collect();
            let after = holders(&rest);
            let pairs = before.iter().zip(&after).filter(|(before, _)| **before != all[leaver]);
            let moved = pairs.filter(|(before, after)| before != after).count();
            let percent = 100.0 * moved as f64 / after.len() as f64;
            assert!(percent <= 1.5, "{}: {percent} %", all[leaver]);
        }
    }

    #[test]
    fn one_backend_has_one_slot_and_none_has_none() {
        assert_eq!(slots(&names(1)), [0]);
        assert!(slots(&[]).is_empty());
    }
}
