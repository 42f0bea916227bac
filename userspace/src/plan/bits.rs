//! Sets of small numbers.

/// A set of small numbers, one bit each. Equal sets are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// The numbers below `end`.
    pub fn below(end: usize) -> Self {
        let mut words = vec![u64::MAX; end / 64];
        words.extend((!end.is_multiple_of(64)).then(|| (1 << (end % 64)) - 1));
        Self(words)
    }
    /// Takes in a number.
    pub fn insert(&mut self, number: usize) {
        let word = number / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }
    /// Whether it has the number.
    pub fn contains(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// How many it has.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
    /// Whether some number is in both.
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(one, other)| one & other != 0)
    }
    /// Whether everything in it is in `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        let other = other.0.iter().copied().chain(std::iter::repeat(0));
        self.0.iter().zip(other).all(|(one, other)| one & !other == 0)
    }
    /// What both have.
    pub fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.intersect(other);
        both
    }
    /// Takes in what `other` has.
    pub fn unite(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }
    /// Gives up what `other` does not have.
    pub fn intersect(&mut self, other: &Self) {
        self.0.truncate(other.0.len());
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= other;
        }
        self.trim();
    }
    /// Gives up what `other` has.
    pub fn subtract(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= !other;
        }
        self.trim();
    }
    /// Its numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest.checked_sub(1)?;
                Some(index * 64 + bit)
            })
        })
    }
    /// Words at the end that hold nothing would make equal sets differ.
    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }
}

impl FromIterator<usize> for Bits {
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        let mut bits = Self::default();
        for number in numbers {
            bits.insert(number);
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> Bits {
        numbers.iter().copied().collect()
    }

    #[test]
    fn numbers_come_back_once_and_in_order() {
        let bits = set(&[130, 0, 63, 64, 0]);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 63, 64, 130]);
        assert!(bits.contains(130) && !bits.contains(129) && !bits.contains(10_000));
        for end in [0, 1, 64, 66, 128] {
            assert_eq!(Bits::below(end), (0..end).collect());
        }
    }

    #[test]
    fn equal_sets_are_equal_however_they_came_about() {
        let mut bits = set(&[1, 500]);
        bits.subtract(&set(&[500, 2]));
        assert_eq!(bits, set(&[1]));
        let mut bits = set(&[1, 500]);
        bits.intersect(&set(&[1, 499]));
        assert_eq!(bits, set(&[1]));
        bits.intersect(&Bits::default());
        assert!(bits.is_empty());
        bits.unite(&set(&[7, 70]));
        assert_eq!(bits, set(&[7, 70]));
    }

    #[test]
    fn sets_of_different_lengths_compare() {
        let (few, many) = (set(&[1, 3]), set(&[1, 3, 200]));
        assert!(few.is_within(&many) && !many.is_within(&few) && few.meets(&many));
        assert_eq!(few.and(&many).len(), 2);
    }
}
