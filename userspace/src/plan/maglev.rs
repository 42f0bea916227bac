//! Maglev: a table of slots that spreads flows evenly over backends, and few of which change hands when a
//! backend comes or goes.
//!
//! Every backend has a permutation of the slots, its order of preference; in turn, each takes the first
//! slot it prefers that is still free. One with a smaller weight than another has its turn less often. The
//! permutation is never written down: where it starts and how far it steps say all of it.
//!
//! Few backends need no table: they are listed, and the path asks each of them ([`Slots`]).
//!
//! Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4.

use dataplane::tables::Slots;

/// Sizes of tables: primes, so that every step leads through all slots, the largest below 2^8, 2^9, ...
const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];
/// Slots for each backend. With 327 for each of a hundred, it depends on who leaves whether more than one slot in
/// a hundred moves between those that stay (0.85 % on average, 1.01 % at worst); with 655, at most 0.7 % do.
const SLOTS_EACH: u64 = 350;
/// Slots for each unit of weight: shares are then within one in a hundred of what the weights say (section
/// 5.3 of the paper).
const SLOTS_PER_WEIGHT: u64 = 100;

/// Somebody who takes slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taker {
    /// A hash of its name.
    pub(super) hash: u64,
    /// Its share, against the others'; at least 1.
    pub(super) weight: u32,
}

/// Makes the weights as small as they can be without changing what they say of each other.
pub(super) fn reduce(weights: &mut [u32]) {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    weights.iter_mut().for_each(|weight| *weight /= divisor);
}

fn greatest_common_divisor(mut one: u32, mut other: u32) -> u32 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// Slots for backends of these weights, [reduced](reduce): a list of them, as long as their sum, where
/// that is no longer than [`Slots::FEW`]; else a table, of at least `size` slots.
pub(super) fn count(weights: &[u32], size: u32) -> u32 {
    let sum: u64 = weights.iter().copied().map(u64::from).sum();
    if sum <= u64::from(Slots::FEW) {
        return sum as u32;
    }
    let needed = (SLOTS_EACH * weights.len() as u64).max(SLOTS_PER_WEIGHT * sum).max(size.into());
    SIZES.into_iter().find(|size| u64::from(*size) >= needed).unwrap_or(SIZES[9])
}

/// Who has each slot of a run: the place among `takers`. `count` says how many slots there are. What comes
/// out depends on the takers' order only where two prefer the same slot in the same turn.
pub(super) fn slots(takers: &[Taker], count: u32) -> Vec<u32> {
    if count <= Slots::FEW {
        let listed = (0..).zip(takers);
        return listed.flat_map(|(place, taker)| (0..taker.weight).map(move |_| place)).collect();
    }
    let most = takers.iter().map(|taker| taker.weight).max().unwrap_or(0);
    let mut turns: Vec<_> = takers.iter().map(|taker| Turn::of(*taker, count)).collect();
    let mut free = Free::all(count);
    let mut slots = vec![0; count as usize];
    while free.left > 0 && most > 0 {
        for (place, turn) in (0..).zip(&mut turns) {
            turn.credit += turn.weight;
            if turn.credit < most {
                continue;
            }
            turn.credit -= most;
            slots[turn.take(&mut free) as usize] = place;
            if free.left == 0 {
                break;
            }
        }
    }
    slots
}

/// A backend's order of preference, and when it has its next turn.
struct Turn {
    next: u32,
    skip: u32,
    count: u32,
    weight: u32,
    /// Its weight for every round, less the highest weight for every slot that it took.
    credit: u32,
    /// What `skip` makes 1 of, times it and modulo `count`; 0 until somebody asks.
    inverse: u64,
}

impl Turn {
    fn of(taker: Taker, count: u32) -> Self {
        let Taker { hash, weight } = taker;
        let (next, skip) = ((hash >> 32) as u32 % count, hash as u32 % (count - 1) + 1);
        Self { next, skip, count, weight, credit: 0, inverse: 0 }
    }

    /// Takes the first slot it prefers that is free; there must be one.
    fn take(&mut self, free: &mut Free) -> u32 {
        // Each way takes as long as the other where as many slots are free as a free one is steps away.
        if u64::from(free.left).pow(2) < self.count.into() {
            self.take_listed(free)
        } else {
            self.take_met(free)
        }
    }

    /// Steps until one is free. Ends, for the permutation meets every slot.
    fn take_met(&mut self, free: &mut Free) -> u32 {
        loop {
            let slot = self.next;
            self.next += self.skip;
            if self.next >= self.count {
                self.next -= self.count;
            }
            if free.is_free(slot) {
                free.take(slot);
                return slot;
            }
        }
    }

    /// Looks at every free slot for how many steps away it is.
    fn take_listed(&mut self, free: &mut Free) -> u32 {
        let count = u64::from(self.count);
        if self.inverse == 0 {
            self.inverse = inverse(self.skip.into(), count);
        }
        let (next, inverse) = (u64::from(self.next), self.inverse);
        let steps = |slot: u32| (u64::from(slot) + count - next) % count * inverse % count;
        let nearest = free.listed().iter().map(|slot| (steps(*slot), *slot)).min();
        let (steps, slot) = nearest.expect("a slot is free as long as turns are given");
        self.next = ((next + (steps + 1) * u64::from(self.skip)) % count) as u32;
        free.take(slot);
        slot
    }
}

/// What a number must be multiplied with to be 1, modulo a prime (Fermat's little theorem).
fn inverse(number: u64, prime: u64) -> u64 {
    let (mut inverse, mut power, mut exponent) = (1, number % prime, prime - 2);
    while exponent > 0 {
        if exponent & 1 == 1 {
            inverse = inverse * power % prime;
        }
        power = power * power % prime;
        exponent >>= 1;
    }
    inverse
}

/// Which slots nobody has yet.
struct Free {
    /// One bit each: all of them stay where the processor has them at hand.
    bits: Vec<u64>,
    left: u32,
    /// The numbers of those that are left; empty until somebody asks.
    list: Vec<u32>,
}

impl Free {
    fn all(count: u32) -> Self {
        let mut bits = vec![u64::MAX; count.div_ceil(64) as usize];
        if let Some(last) = bits.last_mut() {
            *last >>= (64 - count % 64) % 64;
        }
        Self { bits, left: count, list: Vec::new() }
    }
    fn is_free(&self, slot: u32) -> bool {
        self.bits[slot as usize / 64] >> (slot % 64) & 1 == 1
    }
    fn take(&mut self, slot: u32) {
        self.bits[slot as usize / 64] &= !(1 << (slot % 64));
        self.left -= 1;
        if let Some(place) = self.list.iter().position(|other| *other == slot) {
            self.list.swap_remove(place);
        }
    }
    fn listed(&mut self) -> &[u32] {
        if self.list.is_empty() {
            for (word, first) in self.bits.iter().zip((0..).step_by(64)) {
                let mut word = *word;
                while word != 0 {
                    self.list.push(first + word.trailing_zeros());
                    word &= word - 1;
                }
            }
        }
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash;
    use super::*;

    fn takers(weights: &[u32]) -> Vec<Taker> {
        let name = |index| format!("10.244.{}.{}:8080", index / 250, index % 250 + 1);
        let hash = |index| hash::mixed(name(index).as_bytes());
        weights
            .iter()
            .enumerate()
            .map(|(index, weight)| Taker { hash: hash(index), weight: *weight })
            .collect()
    }
    fn alike(number: usize) -> Vec<Taker> {
        takers(&vec![1; number])
    }
    fn shares(takers: &[Taker], count: u32) -> Vec<u32> {
        let mut shares = vec![0; takers.len()];
        slots(takers, count).into_iter().for_each(|place| shares[place as usize] += 1);
        shares
    }
    fn size(number: usize, least: u32) -> u32 {
        count(&vec![1; number], least)
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
    }

    #[test]
    fn few_backends_are_listed_and_many_have_hundreds_of_slots_each() {
        assert_eq!([0, 1, 2, 16].map(|number| size(number, 16_381)), [0, 1, 2, 16]);
        assert_eq!(
            [17, 46, 47, 93, 94, 187, 188, 655].map(|number| size(number, 16_381)),
            [16_381, 16_381, 32_749, 32_749, 65_521, 65_521, 131_071, 131_071]
        );
        assert_eq!([size(17, 251), size(17, 4093), size(2000, 251)], [8191, 8191, 131_071]);
        assert_eq!(count(&[3, 1], 16_381), 4);
        assert_eq!(count(&[100, 1], 251), 16_381, "a hundred slots for each unit of weight");
    }

    #[test]
    fn weights_are_as_small_as_they_can_be() {
        let reduced = |mut weights: Vec<u32>| {
            super::reduce(&mut weights);
            weights
        };
        assert_eq!(reduced(vec![50, 100, 75]), [2, 4, 3]);
        assert_eq!(reduced(vec![7]), [1]);
        assert_eq!(reduced(vec![]), Vec::<u32>::new());
    }

    #[test]
    fn slots_are_those_that_the_paper_says() {
        for weights in [vec![1; 40], (1..=30).collect()] {
            let (takers, count) = (takers(&weights), count(&weights, 4093));
            let mut turns: Vec<_> = takers.iter().map(|taker| Turn::of(*taker, count)).collect();
            let mut expected = vec![None; count as usize];
            while expected.contains(&None) {
                for (place, turn) in (0..).zip(&mut turns) {
                    turn.credit += turn.weight;
                    while turn.credit >= weights[weights.len() - 1] && expected.contains(&None) {
                        turn.credit -= weights[weights.len() - 1];
                        while expected[turn.next as usize].is_some() {
                            turn.next = (turn.next + turn.skip) % count;
                        }
                        expected[turn.next as usize] = Some(place);
                    }
                }
            }
            let expected: Vec<_> = expected.into_iter().flatten().collect();
            assert!(slots(&takers, count) == expected, "{count}");
        }
    }

    #[test]
    fn a_list_has_each_backend_as_often_as_its_weight_says() {
        assert_eq!(slots(&takers(&[1, 3, 2]), 6), [0, 1, 1, 1, 2, 2]);
        assert_eq!(slots(&alike(1), 1), [0]);
        assert!(slots(&[], 0).is_empty());
    }

    #[test]
    fn every_backend_gets_its_share() {
        for number in [17, 100, 327, 600] {
            let shares = shares(&alike(number), size(number, 16_381));
            let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
            assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1, "{number}: {least:?} to {most:?}");
        }
    }

    #[test]
    fn shares_are_within_one_in_a_hundred_of_what_the_weights_say() {
        for weights in
            [vec![100, 1], vec![1, 2, 3, 100, 50], (1..=20).collect(), [vec![3; 20], vec![5; 20]].concat()]
        {
            let count = count(&weights, 16_381);
            let sum: u32 = weights.iter().sum();
            for (share, weight) in shares(&takers(&weights), count).into_iter().zip(&weights) {
                let due = f64::from(count) * f64::from(*weight) / f64::from(sum);
                let off = (f64::from(share) - due).abs() / due;
                assert!(off <= 0.01, "{weights:?}: {weight} has {share} of {due:.1}");
            }
        }
    }

    #[test]
    fn when_one_of_a_hundred_leaves_at_most_one_slot_in_a_hundred_moves_between_others() {
        let all = alike(100);
        let count = size(100, 16_381);
        let before = slots(&all, count);
        for leaver in 0..100 {
            let rest: Vec<_> = (0..100).filter(|place| *place != leaver).collect();
            let after = slots(&rest.iter().map(|place| all[*place as usize]).collect::<Vec<_>>(), count);
            let others = before.iter().zip(&after).filter(|(before, _)| **before != leaver);
            let moved = others.filter(|(before, after)| **before != rest[**after as usize]).count();
            let share = moved as f64 / f64::from(count);
            assert!(share <= 0.01, "without {leaver}: {:.2} %", share * 100.0);
        }
    }
}
