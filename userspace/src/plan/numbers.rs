//! Numbers for things, kept from one plan to the next.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// Numbers for things. Who asks in the same order gets the same numbers.
///
/// In a plan that follows another, a thing keeps its number, and a new thing never gets a number that the
/// previous plan used: while tables are brought from one plan to the next, a number means one thing.
#[derive(Clone, Debug)]
pub(super) struct Numbers<K> {
    given: HashMap<K, u32>,
    before: HashMap<K, u32>,
    reserved: HashSet<u32>,
    next: u32,
}

impl<K: Clone + Eq + Hash> Numbers<K> {
    /// Numbers from `first` on, following those of the previous plan, if there is one.
    pub(super) fn after(previous: Option<&Self>, first: u32) -> Self {
        let before = previous.map(|previous| previous.given.clone()).unwrap_or_default();
        let reserved = before.values().copied().collect();
        Self { given: HashMap::new(), before, reserved, next: first }
    }
    /// The number of the thing; it has one from here on.
    pub(super) fn give(&mut self, key: &K) -> u32 {
        if let Some(number) = self.given.get(key) {
            return *number;
        }
        let number = self.before.get(key).copied().unwrap_or_else(|| {
            while self.reserved.contains(&self.next) {
                self.next += 1;
            }
            self.next += 1;
            self.next - 1
        });
        self.given.insert(key.clone(), number);
        number
    }
    /// The number of the thing, if it has one.
    pub(super) fn find(&self, key: &K) -> Option<u32> {
        self.given.get(key).copied()
    }
}

/// Numbers that things have by what they are: whoever numbers them, and whenever, gives the same. Where two would
/// have the same number, the later has the next that nobody has: which is the later, then depends on who numbers.
///
/// Of a plan that follows another, as of [`Numbers`].
#[derive(Clone, Debug)]
pub(super) struct Marks<K> {
    given: HashMap<K, u32>,
    before: HashMap<K, u32>,
    /// All that were given, also before, and also those that were taken back.
    taken: HashSet<u32>,
    first: u32,
    count: u32,
}

impl<K: Clone + Eq + Hash> Marks<K> {
    /// So many numbers from `first` on, following those of the previous plan, if there is one.
    pub(super) fn after(previous: Option<&Self>, (first, count): (u32, u32)) -> Self {
        let before = previous.map(|previous| previous.given.clone()).unwrap_or_default();
        let taken = before.values().copied().collect();
        Self { given: HashMap::new(), before, taken, first, count }
    }
    /// The number of the thing with this hash; it has one from here on.
    pub(super) fn give(&mut self, key: &K, hash: u64) -> u32 {
        if let Some(number) = self.given.get(key) {
            return *number;
        }
        let number = self.before.get(key).copied().unwrap_or_else(|| {
            let mut place = (hash % u64::from(self.count)) as u32;
            while !self.taken.insert(self.first + place) {
                place = (place + 1) % self.count;
            }
            self.first + place
        });
        self.given.insert(key.clone(), number);
        number
    }
    /// The thing is gone; its number is nobody's until the next plan.
    pub(super) fn take_back(&mut self, key: &K) {
        self.given.remove(key);
    }
}

/// Numbers in turn: one that was given back comes again when all the others have had their turn, so that
/// what still speaks of it is over by then.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    /// Of the numbers from `first` on, who is taken.
    taken: Vec<bool>,
    first: u32,
    next: usize,
    most: usize,
}

impl Turns {
    /// So many numbers from `first` on. All up to `last` have had their turn; 0: none.
    pub(super) fn new(first: u32, most: u32, last: u32) -> Self {
        let next = (last + 1).saturating_sub(first);
        Self { taken: Vec::new(), first, next: next as usize, most: most as usize }
    }
    /// This number, if there is such a one that nobody has; else as [`Turns::take`].
    pub(super) fn claim(&mut self, number: Option<u32>) -> Option<u32> {
        let place = number.and_then(|number| number.checked_sub(self.first)).map(|place| place as usize);
        let free = |place: &usize| *place < self.most && !self.taken.get(*place).is_some_and(|taken| *taken);
        let Some(place) = place.filter(free) else { return self.take() };
        Some(self.mark(place))
    }
    /// The next that nobody has; `None` if all are taken.
    pub(super) fn take(&mut self) -> Option<u32> {
        let free = |place: &usize| !self.taken.get(*place).is_some_and(|taken| *taken);
        let place = (self.next..self.most).find(free).or_else(|| (0..self.next).find(free))?;
        self.next = place + 1;
        Some(self.mark(place))
    }
    fn mark(&mut self, place: usize) -> u32 {
        if place >= self.taken.len() {
            self.taken.resize(place + 1, false);
        }
        self.taken[place] = true;
        self.first + place as u32
    }
    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.iter().filter(|taken| **taken).count()
    }
    /// Nobody has it any more.
    pub(super) fn give_back(&mut self, number: u32) {
        self.taken[(number - self.first) as usize] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_given_back_comes_again_after_all_the_others() {
        let mut turns = Turns::new(1, 4, 0);
        assert_eq!([turns.take(), turns.take()], [Some(1), Some(2)]);
        turns.give_back(1);
        assert_eq!([turns.take(), turns.take(), turns.take()], [Some(3), Some(4), Some(1)]);
        assert_eq!(turns.take(), None);
        turns.give_back(3);
        assert_eq!(turns.take(), Some(3));
    }

    #[test]
    fn a_number_that_is_free_can_be_claimed_and_others_go_on_after_the_last() {
        let mut turns = Turns::new(1, 5, 3);
        assert_eq!([turns.claim(Some(2)), turns.claim(None), turns.claim(Some(2))], [2, 4, 5].map(Some));
        assert_eq!(
            [turns.claim(Some(0)), turns.claim(Some(6)), turns.claim(Some(3))],
            [Some(1), Some(3), None]
        );
    }

    #[test]
    fn numbers_are_given_in_the_order_of_asking() {
        let mut numbers = Numbers::after(None, 5);
        assert_eq!(["a", "b", "a", "c"].map(|key| numbers.give(&key)), [5, 6, 5, 7]);
        assert_eq!(numbers.find(&"d"), None);
    }

    #[test]
    fn a_thing_keeps_its_number_and_a_new_one_takes_no_number_just_freed() {
        let mut first = Numbers::after(None, 0);
        for key in ["a", "b", "c"] {
            first.give(&key);
        }
        let mut second = Numbers::after(Some(&first), 0);
        assert_eq!(["d", "c", "e"].map(|key| second.give(&key)), [3, 2, 4]);
        let mut third = Numbers::after(Some(&second), 0);
        assert_eq!(["f", "d", "g"].map(|key| third.give(&key)), [0, 3, 1]);
    }
}
