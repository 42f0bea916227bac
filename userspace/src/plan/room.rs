//! Room in a table of rows by index: who wants several in a row is given the smallest gap they fit in.

use std::collections::BTreeMap;

/// The gaps of a table.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// From where to where each reaches; none touches another.
    gaps: BTreeMap<u32, u32>,
    rows: u32,
}

impl Room {
    /// An empty table of so many rows.
    pub(super) fn new(rows: u32) -> Self {
        Self { gaps: [(0, rows)].into(), rows }
    }
    /// The first of so many rows; `None` where there is no gap as long as that.
    pub(super) fn take(&mut self, rows: u32) -> Option<u32> {
        let fitting = self.gaps.iter().filter(|(first, end)| **end - **first >= rows);
        let (first, end) = fitting.min_by_key(|(first, end)| **end - **first)?;
        let (first, end) = (*first, *end);
        self.gaps.remove(&first);
        if first + rows < end {
            self.gaps.insert(first + rows, end);
        }
        Some(first)
    }
    /// How many rows are taken.
    pub(super) fn taken(&self) -> usize {
        let free: u32 = self.gaps.iter().map(|(first, end)| end - first).sum();
        (self.rows - free) as usize
    }
    /// Nobody needs these rows any more.
    pub(super) fn give_back(&mut self, first: u32, rows: u32) {
        let mut gap = (first, first + rows);
        if let Some(end) = self.gaps.remove(&gap.1) {
            gap.1 = end;
        }
        if let Some((before, end)) = self.gaps.range(..first).next_back()
            && *end == first
        {
            gap.0 = *before;
        }
        self.gaps.insert(gap.0, gap.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_takes_the_smallest_gap_that_it_fits_in() {
        let mut room = Room::new(100);
        assert_eq!([10, 3, 10, 2].map(|rows| room.take(rows)), [Some(0), Some(10), Some(13), Some(23)]);
        room.give_back(0, 10);
        room.give_back(13, 10);
        assert_eq!(room.take(10), Some(0));
        assert_eq!(room.take(4), Some(13));
        assert_eq!(room.take(75), Some(25));
        assert_eq!(room.take(7), None);
        assert_eq!(room.take(6), Some(17));
    }

    #[test]
    fn gaps_that_touch_are_one() {
        let mut room = Room::new(9);
        assert_eq!([3, 3, 3].map(|rows| room.take(rows)), [Some(0), Some(3), Some(6)]);
        room.give_back(0, 3);
        room.give_back(6, 3);
        assert_eq!(room.take(4), None);
        room.give_back(3, 3);
        assert_eq!(room.take(9), Some(0));
    }
}
