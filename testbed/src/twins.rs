//! Two engines that are given the same rows, frames and time, and must do the same: how the kernel's path
//! and the emulator's are held against each other, packet by packet.

use std::cell::RefCell;
use std::fmt::Write;
use std::rc::Rc;

use dataplane::tables::IfIndex;
use dataplane::trace::{Record, Stage};
use dataplane::wire::V4;
use userspace::engine::emulator::network::Make;
use userspace::engine::{Claims, Clock, Count, Engine, Flows, Hook, Outcome};
use userspace::error::Error;
use userspace::plan::Rows;

use crate::case::side_by_side;

/// Where two engines did not do the same, in words: both sides beside each other.
pub type Differences = Rc<RefCell<Vec<String>>>;

/// What the two are called in [`Differences`].
pub type Titles = (&'static str, &'static str);

/// One node on two engines. What it says and does is what the left one says and does.
pub struct Twins<L, R> {
    left: L,
    right: R,
    titles: Titles,
    differences: Differences,
}

/// Makes each node on two engines, and the list in which it gathers where they differ.
pub fn make<L, R>(titles: Titles, mut left: Make<L>, mut right: Make<R>) -> (Make<Twins<L, R>>, Differences)
where
    L: 'static,
    R: 'static,
{
    let differences = Differences::default();
    let list = differences.clone();
    let make = Box::new(move |plan: &_| {
        Ok(Twins { left: left(plan)?, right: right(plan)?, titles, differences: list.clone() })
    });
    (make, differences)
}

impl<L, R> Twins<L, R> {
    fn compare(&self, what: &str, left: &str, right: &str) {
        if left != right {
            let (left_title, right_title) = self.titles;
            let sides = side_by_side(left_title, left, right_title, right);
            self.differences.borrow_mut().push(format!("{what}:\n{sides}"));
        }
    }
}

impl<L: Engine<V4> + Clock, R: Engine<V4> + Clock> Twins<L, R> {
    /// Compares the rows that the path writes.
    fn compare_rows(&self, what: &str) -> Result<(), Error> {
        let (left, right) = (self.left.connections()?, self.right.connections()?);
        self.compare(&format!("{what}: conntrack"), &lines(&left), &lines(&right));
        let (left, right) = (self.left.masquerades()?, self.right.masquerades()?);
        self.compare(&format!("{what}: masquerades"), &lines(&left), &lines(&right));
        Ok(())
    }
}

impl<L: Engine<V4> + Clock, R: Engine<V4> + Clock> Engine<V4> for Twins<L, R> {
    fn apply(&mut self, rows: &Rows<V4>) -> Result<(), Error> {
        self.left.apply(rows)?;
        self.right.apply(rows)
    }

    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, Error> {
        let left = self.left.push(hook, interface, frame)?;
        let right = self.right.push(hook, interface, frame)?;
        let what = format!("{hook:?} by interface {} of\n{}", interface.0, hex(frame));
        self.compare(&what, &told(&left), &told(&right));
        self.compare_rows(&what)?;
        Ok(left)
    }

    fn connections(&self) -> Result<Flows<V4>, Error> {
        self.left.connections()
    }

    fn masquerades(&self) -> Result<Claims<V4>, Error> {
        self.left.masquerades()
    }

    fn counts(&self) -> Result<Vec<Count>, Error> {
        let left = self.left.counts()?;
        self.compare("counters", &lines(&left), &lines(&self.right.counts()?));
        Ok(left)
    }
}

impl<L: Clock, R: Clock> Clock for Twins<L, R> {
    fn now_s(&self) -> Result<u32, Error> {
        self.left.now_s()
    }

    fn wait(&mut self, seconds: u32) -> Result<(), Error> {
        self.left.wait(seconds)?;
        self.right.wait(seconds)
    }
}

/// What came of a frame, a line for each thing.
fn told(outcome: &Outcome) -> String {
    let mut text = format!("{:?}\n", outcome.verdict);
    for record in &outcome.records {
        text += &said(record);
    }
    text + &hex(&outcome.frame)
}

fn said(record: &Record) -> String {
    let stage = Stage::from_number(record.stage).map_or("unknown", Stage::word);
    let Record { number, length, detail, direction, protocol, flags, .. } = record;
    format!(
        "{stage} {} {} -> {} {} number {number} detail {detail} direction {direction} protocol {protocol} \
         flags {flags} length {length}\n",
        record.source, record.source_port, record.target, record.target_port
    )
}

fn lines<T: std::fmt::Debug>(rows: &[T]) -> String {
    rows.iter().map(|row| format!("{row:?}\n")).collect()
}

/// Sixteen bytes a line, with their offset.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in bytes.chunks(16).enumerate() {
        let digits: String = line.iter().map(|byte| format!("{byte:02x} ")).collect();
        writeln!(text, "{:04x}  {}", index * 16, digits.trim_end()).expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use userspace::engine::Capacities;
    use userspace::engine::emulator::Emulator;

    use super::*;
    use crate::case::random::Random;
    use crate::case::{self, Case};

    /// Runs a case on an emulator with these capacities beside one with the case's own.
    fn differences(case: &Case, capacities: Capacities) -> Vec<String> {
        let own = case.capacities.clone();
        let left: Make<_> = Box::new(move |plan| Emulator::with_capacities(plan, &own));
        let right: Make<_> = Box::new(move |plan| Emulator::with_capacities(plan, &capacities));
        let (make, differences) = super::make(("left", "right"), left, right);
        case.run(make).expect("runs");
        differences.take()
    }

    fn cases() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
    }

    fn parse(text: &str) -> Case {
        Case::parse(&cases().join("flow/random.yaml"), text).expect("random cases are sound")
    }

    #[test]
    fn two_emulators_do_the_same_whatever_they_are_sent() {
        for path in case::all(&cases()).expect("the cases can be listed") {
            let case = Case::read(&path).expect("reads");
            assert_eq!(differences(&case, case.capacities.clone()), [""; 0], "{}", path.display());
        }
        for seed in 0..20 {
            let case = parse(&Random::new(seed).text());
            assert_eq!(differences(&case, Capacities::default()), [""; 0], "seed {seed}");
        }
    }

    #[test]
    fn a_smaller_table_is_noticed_and_the_case_shrinks_to_what_shows_it() {
        let fails = |text: &str| {
            let mut capacities = Capacities::default();
            capacities.set("conntrack", 2).expect("there is such a table");
            !differences(&parse(text), capacities).is_empty()
        };
        let random = (0..).map(Random::new).find(|random| fails(&random.text())).expect("one fills a table");
        let shrunk = random.shrink(fails);
        assert!(fails(&shrunk.text()));
        assert_eq!(shrunk.steps(), 3, "two rows fit, the third does not:\n{}", shrunk.text());
    }
}
