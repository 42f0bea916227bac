//! The tables of Services whose numbers others speak of, flows above all: they stay pinned as long as the programs
//! run by them, so that the next agent can go on with the same numbers ([`crate::plan::Plan::resuming`]).

use std::fs;
use std::path::Path;

use aya::maps::{Map, MapData};
use dataplane::tables::{Backends, Frontends, Maglev, Table};
use dataplane::wire::{V4, V6};

use super::Kernel;
use super::error::{Error, sentence};
use super::family::Family;
use super::pin::{Pins, failed};
use super::table::{ArrayTable, HashTable};
use crate::plan::{NodeRows, Rows};

impl Kernel {
    /// Pins them in the place of those of the programs before, if that has not been done.
    pub(super) fn hold(&mut self) -> Result<(), Error> {
        if let Some(pins) = self.options.pins.as_ref().filter(|_| !self.held) {
            hold_family::<V4>(self, pins)?;
            hold_family::<V6>(self, pins)?;
            self.held = true;
        }
        Ok(())
    }

    /// The frontends, slots and backends that another process has left to this node's programs; `None` if there are
    /// none.
    ///
    /// # Errors
    /// [`Error::Table`], also where another version of this program has left them.
    pub fn held(pins: &Pins) -> Result<Option<NodeRows>, Error> {
        if !pins.map(Frontends::<V4>::NAME).exists() {
            return Ok(None);
        }
        Ok(Some(NodeRows { v4: rows::<V4>(pins)?, v6: rows::<V6>(pins)?, ..NodeRows::default() }))
    }
}

fn hold_family<A: Family>(kernel: &Kernel, pins: &Pins) -> Result<(), Error> {
    let tables = A::tables(kernel);
    hold::<Backends<A>>(tables.backends.map(), pins)?;
    hold::<Maglev<A>>(tables.maglev.map(), pins)?;
    hold::<Frontends<A>>(tables.frontends.map(), pins)
}

fn hold<T: Table>(map: &MapData, pins: &Pins) -> Result<(), Error> {
    let pin = pins.map(T::NAME);
    remove(&pin)?;
    map.pin(&pin).map_err(|why| Error::Table { tried: "pin", table: T::NAME, why: sentence(&why) })
}

fn remove(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", pin)(why)),
        _ => Ok(()),
    }
}

fn map<T: Table>(pins: &Pins) -> Result<Map, Error> {
    let opened = MapData::from_pin(pins.map(T::NAME)).and_then(Map::from_map_data);
    opened.map_err(super::table::failed::<T>("open"))
}

/// The rows, with nothing in the slots that no frontend names.
fn rows<A: Family>(pins: &Pins) -> Result<Rows<A>, Error> {
    let frontends = HashTable::<Frontends<A>>::new(map::<Frontends<A>>(pins)?)?.sorted()?;
    let slots = ArrayTable::<Maglev<A>>::new(map::<Maglev<A>>(pins)?)?;
    let backends = ArrayTable::<Backends<A>>::new(map::<Backends<A>>(pins)?)?;
    let mut rows = Rows { backends: backends.all()?, ..Rows::default() };
    for run in frontends.iter().flat_map(|(_, row)| [row.internal, row.external]) {
        let end = run.first.saturating_add(run.count) as usize;
        if rows.maglev.len() < end {
            rows.maglev.resize(end, Default::default());
        }
        for slot in run.first..end as u32 {
            rows.maglev[slot as usize] = slots.row(slot)?;
        }
    }
    rows.frontends = frontends.into_iter().map(|(key, row)| (key.into(), row)).collect();
    Ok(rows)
}
