//! The load balancer's walk in this process.

use std::collections::HashMap;

use dataplane::balance;
use dataplane::flow;
use dataplane::platform::Balancing;
use dataplane::tables::{
    Balancer as Constants, Frontend, Holds, IfIndex, NotAdded, Pin, Pinned, Pins, Real, Reals, Ring, Slot,
    Table, Virtual, Virtuals, Writes,
};
use dataplane::verdict::Fate;
use dataplane::wire::{Address, Family, V4, V6};

use super::frame::Frame;
use super::tables::{ArrayTable, HashTable};
use crate::engine::Count;
use crate::engine::balancer::{Carried, Carrier, FamilyRows, Keeps, Rows};
use crate::error::Error;

/// A load balancer.
#[derive(Debug)]
pub struct Balancer {
    constants: Constants,
    v4: Tables<V4>,
    v6: Tables<V6>,
    clock_s: u32,
    counts: Vec<Count>,
}

#[derive(Debug)]
struct Tables<A: Address> {
    virtuals: HashTable<Virtuals<A>>,
    ring: ArrayTable<Ring<A>>,
    reals: ArrayTable<Reals<A>>,
    pins: HashTable<Pins<A>>,
    /// When a flow of a moved slot was sent home last.
    at_home: HashMap<u32, u32>,
}

impl<A: Address> Tables<A> {
    fn new(pins: u32) -> Self {
        Self {
            virtuals: HashTable::new(Virtuals::<A>::CAPACITY),
            ring: ArrayTable::new(Ring::<A>::CAPACITY),
            reals: ArrayTable::new(Reals::<A>::CAPACITY),
            pins: HashTable::new(pins),
            at_home: HashMap::new(),
        }
    }

    fn replace(&mut self, rows: &FamilyRows<A>) {
        self.virtuals.replace(rows.virtuals.iter().map(|(key, row)| ((*key).into(), *row)));
        self.ring.replace(&rows.ring);
        self.reals.replace(&rows.reals);
    }
}

impl Balancer {
    /// One without frontends, whose table of pins has the usual size.
    pub fn new(constants: Constants) -> Self {
        Self::with_pins(constants, Pins::<V4>::CAPACITY)
    }

    /// One without frontends, with room for so many pins of each family.
    pub fn with_pins(constants: Constants, pins: u32) -> Self {
        Self {
            constants,
            v4: Tables::new(pins),
            v6: Tables::new(pins),
            clock_s: 0,
            counts: vec![Count::default(); Fate::COUNTERS as usize],
        }
    }

    /// Does what these say from now on.
    pub fn set_constants(&mut self, constants: Constants) {
        self.constants = constants;
    }

    /// Walks one frame through.
    pub fn push(&mut self, frame: &[u8], now_s: u32) -> Carried {
        self.clock_s = now_s;
        let mut frame = Frame::new(frame, IfIndex(1));
        let fate = match flow::family(&frame) {
            Family::V4 => balance::carry::<V4, _, _>(self, &mut frame),
            Family::V6 => balance::carry::<V6, _, _>(self, &mut frame),
        };
        Carried { fate, frame: frame.bytes().to_vec() }
    }
}

impl Carrier for Balancer {
    fn apply(&mut self, rows: &Rows) -> Result<(), Error> {
        rows.v4.fit()?;
        rows.v6.fit()?;
        self.v4.replace(&rows.v4);
        self.v6.replace(&rows.v6);
        Ok(())
    }

    fn counts(&self) -> Result<Vec<Count>, Error> {
        Ok(self.counts.clone())
    }
}

/// Says which field holds which tables.
macro_rules! family {
    ($($field:ident: $family:ident;)+) => { $(
        impl Balancing<$family> for Balancer {
            fn balancer(&self) -> Constants {
                self.constants
            }
            fn now_s(&self) -> u32 {
                self.clock_s
            }
            fn at_home(&mut self, slot: u32, now_s: u32) {
                self.$field.at_home.insert(slot, now_s);
            }
            fn count(&mut self, fate: Fate, bytes: u32) {
                let count = &mut self.counts[fate.counter() as usize];
                count.packets += 1;
                count.bytes += u64::from(bytes);
            }
        }

        impl Holds<Virtuals<$family>> for Balancer {
            fn row(&self, key: &Frontend<$family>) -> Option<Virtual> {
                self.$field.virtuals.row(key)
            }
        }

        impl Holds<Ring<$family>> for Balancer {
            fn row(&self, key: &u32) -> Option<Slot> {
                self.$field.ring.row(key)
            }
        }

        impl Holds<Reals<$family>> for Balancer {
            fn row(&self, key: &u32) -> Option<Real<$family>> {
                self.$field.reals.row(key)
            }
        }

        impl Holds<Pins<$family>> for Balancer {
            fn row(&self, key: &Pin<$family>) -> Option<Pinned> {
                self.$field.pins.row(key)
            }
        }

        impl Writes<Pins<$family>> for Balancer {
            fn change<R>(&mut self, key: &Pin<$family>, change: impl FnOnce(&mut Pinned) -> R) -> Option<R> {
                self.$field.pins.change(key, change)
            }
            fn add(&mut self, key: &Pin<$family>, row: &Pinned) -> Result<(), NotAdded> {
                self.$field.pins.add(key, row)
            }
            fn put(&mut self, key: &Pin<$family>, row: &Pinned) -> Result<(), NotAdded> {
                self.$field.pins.put(key, row)
            }
            fn remove(&mut self, key: &Pin<$family>) {
                self.$field.pins.remove(key);
            }
        }

        impl Keeps<$family> for Balancer {
            fn pins(&self) -> Result<Vec<(Pin<$family>, Pinned)>, Error> {
                Ok(self.$field.pins.sorted())
            }
            fn forget(&mut self, pin: &Pin<$family>, seen_s: u32) -> Result<(), Error> {
                if self.$field.pins.row(pin).is_some_and(|pinned| pinned.seen_s <= seen_s) {
                    self.$field.pins.remove(pin);
                }
                Ok(())
            }
            fn at_home_s(&self, slot: u32) -> Result<u32, Error> {
                Ok(self.$field.at_home.get(&slot).copied().unwrap_or(0))
            }
        }
    )+ };
}

family! {
    v4: V4;
    v6: V6;
}
