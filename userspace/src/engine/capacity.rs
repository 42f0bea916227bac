//! How many rows each table may hold, where it is not what the table says itself.

use std::collections::BTreeMap;

use dataplane::tables::{
    Affinities, Backends, Connections, Endpoints, Fragments, Frontends, Homes, Identities, Maglev,
    Masquerades, Nodes, Policy, Routes, Sockets, SourceRanges, Table,
};
use dataplane::wire::{V4, V6};

use crate::error::Error;
use crate::plan::{NodeChange, NodeRows, Use, peak};

/// Every table: its name, and the rows it can hold.
const TABLES: [(&str, u32); 29] = [
    of::<Nodes>(),
    of::<Endpoints<V4>>(),
    of::<Frontends<V4>>(),
    of::<Maglev<V4>>(),
    of::<Backends<V4>>(),
    of::<Affinities<V4>>(),
    of::<SourceRanges<V4>>(),
    of::<Connections<V4>>(),
    of::<Identities<V4>>(),
    of::<Policy<V4>>(),
    of::<Masquerades<V4>>(),
    of::<Routes<V4>>(),
    of::<Fragments<V4>>(),
    of::<Homes<V4>>(),
    of::<Sockets<V4>>(),
    of::<Endpoints<V6>>(),
    of::<Frontends<V6>>(),
    of::<Maglev<V6>>(),
    of::<Backends<V6>>(),
    of::<Affinities<V6>>(),
    of::<SourceRanges<V6>>(),
    of::<Connections<V6>>(),
    of::<Identities<V6>>(),
    of::<Policy<V6>>(),
    of::<Masquerades<V6>>(),
    of::<Routes<V6>>(),
    of::<Fragments<V6>>(),
    of::<Homes<V6>>(),
    of::<Sockets<V6>>(),
];

const fn of<T: Table>() -> (&'static str, u32) {
    (T::NAME, T::CAPACITY)
}

/// Rows that tables may hold: [`Table::CAPACITY`] unless another number was set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacities {
    set: BTreeMap<&'static str, u32>,
}

impl Capacities {
    /// Whether the tables hold these rows while these changes are made to them.
    pub(super) fn check_room<'a>(
        &self,
        rows: &NodeRows,
        changes: impl IntoIterator<Item = &'a NodeChange>,
    ) -> Result<(), Error> {
        for Use { table, rows, capacity: usual } in peak(rows, changes) {
            let capacity = self.named(table).unwrap_or(usual);
            if rows > capacity as usize {
                return Err(Error::TableTooSmall { table, rows, capacity });
            }
        }
        Ok(())
    }

    /// Sets how many rows the table of this name may hold.
    ///
    /// # Errors
    /// [`Error::UnknownTable`].
    pub fn set(&mut self, table: &str, rows: u32) -> Result<(), Error> {
        let Some((name, _)) = TABLES.iter().find(|(name, _)| *name == table) else {
            let known = TABLES.map(|(name, _)| name).join(", ");
            return Err(Error::UnknownTable { table: table.to_owned(), known });
        };
        self.set.insert(name, rows);
        Ok(())
    }

    /// What was set for the table of this name, if anything was.
    pub fn named(&self, table: &str) -> Option<u32> {
        self.set.get(table).copied()
    }

    /// Everything that was set: tables' names, and rows.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.set.iter().map(|(name, rows)| (*name, *rows))
    }

    /// Rows that `T` may hold.
    pub fn rows<T: Table>(&self) -> u32 {
        self.set.get(T::NAME).copied().unwrap_or(T::CAPACITY)
    }
}

/// Whether so many rows fit a table with this capacity.
pub(super) fn fits<T: Table>(rows: usize, capacity: u32) -> Result<(), Error> {
    if rows > capacity as usize {
        return Err(Error::TableTooSmall { table: T::NAME, rows, capacity });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_holds_what_was_set_or_what_it_says() {
        let mut capacities = Capacities::default();
        capacities.set("conntrack", 7).expect("there is such a table");
        assert_eq!(capacities.rows::<Connections<V4>>(), 7);
        assert_eq!(capacities.rows::<Policy<V4>>(), Policy::<V4>::CAPACITY);
        assert!(capacities.set("contrack", 7).is_err());
    }
}
