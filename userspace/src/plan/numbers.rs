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

#[cfg(test)]
mod tests {
    use super::*;

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
