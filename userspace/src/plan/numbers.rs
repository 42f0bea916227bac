//! Numbers for things, kept from one plan to the next.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// Numbers for things. Who asks in the same order gets the same numbers.
///
/// In a plan that follows another, a thing keeps its number, and a new thing never gets a number that the
/// previous plan used: while tables are brought from one plan to the next, a number means one thing. Where they were
/// not brought all the way to the previous plan, that is so also of what the plan before that one used.
#[derive(Clone, Debug)]
pub(super) struct Numbers<K> {
    given: HashMap<K, u32>,
    before: HashMap<K, u32>,
    strayed: bool,
    reserved: HashSet<u32>,
    next: u32,
}

impl<K: Clone + Eq + Hash> Numbers<K> {
    /// Numbers from `first` on, following those of the previous plan, if there is one.
    pub(super) fn after(previous: Option<&Self>, first: u32) -> Self {
        let before = previous
            .map(|previous| known(&previous.before, &previous.given, previous.strayed))
            .unwrap_or_default();
        let reserved = before.values().copied().collect();
        Self { given: HashMap::new(), before, strayed: false, reserved, next: first }
    }
    /// Tables may not be brought all the way to this plan.
    pub(super) fn stray(&mut self) {
        self.strayed = true;
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

/// What may still be in tables that were brought from one plan to another, or not all the way.
fn known<K: Clone + Eq + Hash>(
    before: &HashMap<K, u32>,
    given: &HashMap<K, u32>,
    strayed: bool,
) -> HashMap<K, u32> {
    let mut known = if strayed { before.clone() } else { HashMap::new() };
    known.extend(given.iter().map(|(key, number)| (key.clone(), *number)));
    known
}

/// Numbers that things have by what they are: whoever numbers them, and whenever, gives the same. Where two would
/// have the same number, the later has the next that nobody has: which is the later, then depends on who numbers.
///
/// Of a plan that follows another, as of [`Numbers`].
#[derive(Clone, Debug)]
pub(super) struct Marks<K> {
    given: HashMap<K, u32>,
    before: HashMap<K, u32>,
    strayed: bool,
    /// All that were given, also before, and also those that were taken back.
    taken: HashSet<u32>,
    first: u32,
    count: u32,
}

impl<K: Clone + Eq + Hash> Marks<K> {
    /// So many numbers from `first` on, following those of the previous plan, if there is one.
    pub(super) fn after(previous: Option<&Self>, (first, count): (u32, u32)) -> Self {
        let before = previous
            .map(|previous| known(&previous.before, &previous.given, previous.strayed))
            .unwrap_or_default();
        let taken = before.values().copied().collect();
        Self { given: HashMap::new(), before, strayed: false, taken, first, count }
    }
    /// As of [`Numbers`].
    pub(super) fn stray(&mut self) {
        self.strayed = true;
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
    /// The thing is gone; its number is nobody else's until the next plan.
    pub(super) fn take_back(&mut self, key: &K) {
        self.before.extend(self.given.remove_entry(key));
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
        // Where tables were not brought to the second plan, there may be anything in them of the first.
        second.stray();
        let mut third = Numbers::after(Some(&second), 0);
        assert_eq!(["f", "d", "a"].map(|key| third.give(&key)), [5, 3, 0]);
        third.stray();
        assert_eq!(Numbers::after(Some(&third), 0).give(&"h"), 6, "nor to the third");
    }

    #[test]
    fn a_mark_is_the_same_thing_s_again_where_tables_may_still_have_it() {
        let mut first = Marks::after(None, (10, 4));
        assert_eq!([first.give(&"a", 1), first.give(&"b", 1), first.give(&"c", 0)], [11, 12, 10]);
        first.take_back(&"c");
        let mut second = Marks::after(Some(&first), (10, 4));
        assert_eq!((second.give(&"b", 1), second.clone().give(&"d", 0)), (12, 10), "it is nobody's any more");
        second.stray();
        let mut third = Marks::after(Some(&second), (10, 4));
        assert_eq!([third.give(&"d", 1), third.give(&"a", 1)], [13, 11]);
    }
}
