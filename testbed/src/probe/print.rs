//! A grid, for people: rows under column heads, or a truth table for each port.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use super::crowd::{Crowds, Level};
use super::denials::Denials;
use super::{Grid, Row, Verdict};
use crate::output::{Paint, columns};
use userspace::model::{Cluster, Port, Who};

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

/// Columns of a truth table that are shown each by itself; of more, replicas are shown as one.
const COLUMNS: usize = 50;
/// Rows likewise.
const ROWS: usize = 100;

/// A grid as truth tables, one for each port: sources down, targets across, and below where denials come from.
#[derive(Debug)]
pub struct Tables<'a> {
    grid: &'a Grid,
    cluster: Option<&'a Cluster>,
    denials: Denials,
    crowds: Option<Crowds>,
    nearest: bool,
}

impl<'a> Tables<'a> {
    /// The tables alone.
    pub fn of(grid: &'a Grid) -> Self {
        Self { grid, cluster: None, denials: Denials::default(), crowds: None, nearest: false }
    }

    /// With the sources of denials.
    ///
    /// # Errors
    /// The cluster cannot be planned.
    pub fn with_denials(mut self, cluster: &'a Cluster) -> Result<Self, userspace::error::Error> {
        self.denials = Denials::of(cluster, self.grid)?;
        self.cluster = Some(cluster);
        Ok(self)
    }

    /// With what the nearest rule lacks, under each source of denials.
    pub fn with_nearest(self) -> Self {
        Self { nearest: true, ..self }
    }

    /// Too many to be shown each are shown as these.
    pub fn grouped(self, crowds: Crowds) -> Self {
        Self { crowds: Some(crowds), ..self }
    }

    /// A truth table for each port; then what the marks mean.
    pub fn text(&self, paint: Paint) -> String {
        let mut ports: Vec<_> = self.grid.rows.iter().map(|row| (row.flow.port, row.flow.protocol)).collect();
        ports.sort_unstable();
        ports.dedup();
        let (mut text, mut coarsest) = (String::new(), Level::Each);
        for (number, protocol) in ports {
            let of_port = |row: &&Row| (row.flow.port, row.flow.protocol) == (number, protocol);
            let table = Table::of(self.grid.rows.iter().filter(of_port), self.crowds.as_ref());
            coarsest = coarsest.max(table.level);
            table
                .write(&mut text, &format!("{number}/{protocol}"))
                .expect("a String takes whatever is written");
            let port = Port { number, protocol };
            text.push_str(&self.denials.lines(port, self.cluster.filter(|_| self.nearest)));
            text.push('\n');
        }
        let marks = "  . reaches   X denied   R rejected at once   ! differs from expected";
        let legend = match coarsest {
            Level::Each => format!("{marks}\n"),
            level => {
                let alike = if level == Level::Workload { "replicas" } else { "namespaces" };
                format!(
                    "{marks}   ~ some of them\n  {alike} are shown as one; see each with --all, or in a page with \
                     --html FILE\n"
                )
            }
        };
        // Names have no exclamation mark: these are the marks alone.
        (text + &legend).replace('!', &paint.bad("!"))
    }
}

/// One truth table.
struct Table {
    level: Level,
    sources: Vec<String>,
    targets: Vec<String>,
    marks: HashMap<(usize, usize), char>,
}

impl Table {
    /// As fine as there is room for.
    fn of<'a>(rows: impl Iterator<Item = &'a Row> + Clone, crowds: Option<&Crowds>) -> Self {
        let mut table = Self::at(Level::Each, rows.clone(), crowds);
        for level in [Level::Workload, Level::Namespace] {
            if crowds.is_some() && (table.targets.len() > COLUMNS || table.sources.len() > ROWS) {
                table = Self::at(level, rows.clone(), crowds);
            }
        }
        table
    }

    fn at<'a>(level: Level, rows: impl Iterator<Item = &'a Row>, crowds: Option<&Crowds>) -> Self {
        let label = |who: &Who| crowds.map_or_else(|| who.to_string(), |crowds| crowds.label(who, level));
        let (mut sources, mut targets) = (Places::default(), Places::default());
        let mut marks: HashMap<(usize, usize), char> = HashMap::new();
        let mut to_themselves = Vec::new();
        for row in rows {
            let at = (sources.of(label(&row.flow.from)), targets.of(label(&row.flow.to)));
            if level > Level::Each && row.flow.from == row.flow.to {
                to_themselves.push((at, mark(row)));
                continue;
            }
            let shown = marks.entry(at).or_insert(mark(row));
            *shown = match (*shown, mark(row)) {
                (one, other) if one == other => one,
                // Asked twice, answered twice: the last answer is shown, unless one differed.
                ('!', _) | (_, '!') => '!',
                (_, last) if level == Level::Each => last,
                _ => '~',
            };
        }
        // What a pod says to itself is shown where nobody else is like it.
        for (at, mark) in to_themselves {
            marks.entry(at).or_insert(mark);
        }
        Self { level, sources: sources.list, targets: targets.list, marks }
    }

    /// Column numbers stand for the targets, which are listed below: names are too long to stand side by side.
    fn write(&self, text: &mut String, port: &str) -> fmt::Result {
        let label = self.sources.iter().map(String::len).max().unwrap_or(0).max(port.len());
        let cell = self.targets.len().to_string().len();
        write!(text, "{port:label$} ")?;
        for number in 1..=self.targets.len() {
            write!(text, " {number:>cell$}")?;
        }
        for (row, source) in self.sources.iter().enumerate() {
            write!(text, "\n{source:label$} ")?;
            for column in 0..self.targets.len() {
                write!(text, " {:>cell$}", self.marks.get(&(row, column)).unwrap_or(&' '))?;
            }
            text.truncate(text.trim_end().len());
        }
        text.push('\n');
        for (index, target) in self.targets.iter().enumerate() {
            writeln!(text, "  {:>cell$} {target}", index + 1)?;
        }
        Ok(())
    }
}

fn mark(row: &Row) -> char {
    match row.measured.verdict {
        _ if row.differs() => '!',
        Verdict::Allow => '.',
        Verdict::Deny => 'X',
        Verdict::Reject => 'R',
    }
}

/// Each name once, where it first appears.
#[derive(Default)]
struct Places {
    list: Vec<String>,
    known: HashMap<String, usize>,
}

impl Places {
    fn of(&mut self, name: String) -> usize {
        if let Some(place) = self.known.get(&name) {
            return *place;
        }
        self.known.insert(name.clone(), self.list.len());
        self.list.push(name);
        self.list.len() - 1
    }
}
