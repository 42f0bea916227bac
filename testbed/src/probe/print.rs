//! A grid, for people: rows under column heads, or a truth table for each port.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write as _};

use super::{Grid, Row, Verdict};
use crate::output::{Paint, columns};
use userspace::model::Who;

impl Grid {
    /// One line a flow, under heads.
    pub fn lines(&self) -> String {
        let head = ["FROM", "TO", "PORT", "VERDICT", "EXPECTED", "REASON", "DECIDED BY"];
        let rows = self.rows.iter().map(|row| {
            let Row { flow, measured, .. } = row;
            let expected = row.expected().map_or("-".to_owned(), |expected| {
                let mark = if row.differs() { " !" } else { "" };
                format!("{expected}{mark}")
            });
            [
                flow.from.to_string(),
                flow.to.to_string(),
                format!("{}/{}", flow.port, flow.protocol),
                measured.verdict.to_string(),
                expected,
                measured.reason.map_or("-", |reason| reason.slug()).to_owned(),
                measured.decided_by.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        });
        columns(head, rows)
    }

    /// A truth table for each port, its sources down and its targets across; then what the marks mean.
    pub fn truth_tables(&self, paint: Paint) -> String {
        let mut ports: Vec<_> = self.rows.iter().map(|row| (row.flow.port, row.flow.protocol)).collect();
        ports.sort_unstable();
        ports.dedup();
        let mut text = String::new();
        for (port, protocol) in ports {
            let rows = self.rows.iter().filter(|row| (row.flow.port, row.flow.protocol) == (port, protocol));
            truth_table(&mut text, &format!("{port}/{protocol}"), &rows.collect::<Vec<_>>())
                .expect("a String takes whatever is written");
        }
        // Names have no exclamation mark: these are the marks alone.
        text.replace('!', &paint.bad("!"))
            + "  . reaches   X denied   R rejected at once   ! differs from expected\n"
    }

    /// Every row that differs, with both sides; nothing if none does.
    pub fn differing(&self) -> String {
        let differing = self.rows.iter().filter(|row| row.differs());
        differing.fold(String::new(), |text, row| {
            let (flow, measured) = (&row.flow, &row.measured);
            let reason = measured.reason.map_or(String::new(), |reason| format!(": {}", reason.slug()));
            let by = measured.decided_by.as_ref().map_or(String::new(), |by| format!(" by {by}"));
            let verdict = measured.verdict;
            format!(
                "{text}! {flow}\n    measured  {verdict}{reason}{by}\n    expected  {}\n",
                row.expectation
            )
        })
    }

    /// `36 flows on emulator, 0 differences`.
    pub fn summary(&self) -> String {
        let count = |count: usize, one: &str| {
            if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
        };
        format!(
            "{} on {}, {}",
            count(self.rows.len(), "flow"),
            self.dataplane,
            count(self.differences, "difference")
        )
    }
}

/// Column numbers stand for the targets, which are listed below: names are too long to stand side by side.
fn truth_table(text: &mut String, port: &str, rows: &[&Row]) -> fmt::Result {
    let sources = in_order(rows.iter().map(|row| &row.flow.from));
    let targets = in_order(rows.iter().map(|row| &row.flow.to));
    let label = sources.iter().map(|source| source.to_string().len()).max().unwrap_or(0).max(port.len());
    let cell = targets.len().to_string().len();
    // Asked twice, answered twice: the last answer is shown, unless one differed.
    let mut marks: HashMap<(&Who, &Who), char> = HashMap::new();
    for row in rows {
        let shown = marks.entry((&row.flow.from, &row.flow.to)).or_insert(' ');
        if *shown != '!' {
            *shown = mark(row);
        }
    }
    write!(text, "{port:label$} ")?;
    for number in 1..=targets.len() {
        write!(text, " {number:>cell$}")?;
    }
    for source in sources {
        write!(text, "\n{:label$} ", source.to_string())?;
        for target in &targets {
            write!(text, " {:>cell$}", marks.get(&(source, *target)).unwrap_or(&' '))?;
        }
        text.truncate(text.trim_end().len());
    }
    text.push('\n');
    for (index, target) in targets.iter().enumerate() {
        writeln!(text, "  {:>cell$} {target}", index + 1)?;
    }
    text.push('\n');
    Ok(())
}

fn mark(row: &Row) -> char {
    match row.measured.verdict {
        _ if row.differs() => '!',
        Verdict::Allow => '.',
        Verdict::Deny => 'X',
        Verdict::Reject => 'R',
    }
}

/// Each end once, where it first appears.
fn in_order<'a>(ends: impl Iterator<Item = &'a Who>) -> Vec<&'a Who> {
    let mut seen = HashSet::new();
    ends.filter(|end| seen.insert(*end)).collect()
}
