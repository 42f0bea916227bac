//! For people at a terminal: a table for each point, then what must hold.

use std::fmt;

use testbed::output::Paint;

use super::words::{circumstances, figures, number, other_rounds, sentence, spread, title, variants_at};
use super::{YARDSTICK, to_routed, yardstick};
use crate::figure::{Figure, LATENCY_P50, LATENCY_P99, MEMORY, RECEIVED, THROUGHPUT, TOOK, TRANSACTIONS};
use crate::results::{Point, Results, Stage};
use crate::targets::{self, Judged, Outcome};

/// A table for each point: medians, with the lowest and highest round in brackets.
#[derive(Debug)]
pub struct Table<'a> {
    /// What was measured.
    pub results: &'a Results,
    /// Whether it may have colours.
    pub paint: Paint,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Results { absent, noise, .. } = self.results;
        for point in self.results.points() {
            writeln!(
                f,
                "{}: {}{}",
                title(point),
                sentence(&point.workload),
                other_rounds(self.results, point)
            )?;
            write_columns(f, &columns(self.results, point, is_brief))?;
            match yardstick(self.results, point) {
                Some(other) if other != point => {
                    writeln!(f, "/ {YARDSTICK}: what {YARDSTICK} does at {}", title(other))?;
                }
                _ => {}
            }
            writeln!(f)?;
        }
        self.write_costs(f)?;
        self.write_programs(f)?;
        self.write_targets(f)?;
        for absent in absent {
            writeln!(f, "not measured: {}: {}", absent.variant, absent.why)?;
        }
        for line in circumstances(self.results) {
            writeln!(f, "{line}")?;
        }
        for why in noise {
            writeln!(f, "{}", self.paint.bad(&format!("INVALID: {why}.")))?;
        }
        Ok(())
    }
}

impl Table<'_> {
    fn write_costs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let costs = &self.results.costs;
        if !costs.is_empty() {
            writeln!(
                f,
                "Nanoseconds a packet in the kernel's test run; nine of ten runs exceed the quiet one."
            )?;
            let rows = costs.iter().map(|cost| {
                let (flows, ns) = (cost.flows.to_string(), [cost.median_ns, cost.quiet_ns].map(number));
                [&[cost.packet.clone(), cost.program.clone(), flows][..], &ns[..]].concat()
            });
            write_columns(f, &by_column(["PACKET", "PROGRAM", "FLOWS", "MEDIAN NS", "QUIET NS"], rows))?;
            writeln!(f)?;
        }
        write_stages(f, &self.results.stages)
    }

    fn write_programs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let programs = &self.results.programs;
        if programs.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "What the verifier says of each program; it gives up at 1,000,000 instructions and 512 bytes."
        )?;
        let head = ["PROGRAM", "INSTRUCTIONS", "VERIFIED", "PEAK STATES", "STATES", "STACK", "LOAD ms"];
        let rows = programs.iter().map(|program| {
            let counts = [
                program.instructions,
                program.verified,
                program.peak_states,
                program.total_states,
                program.stack_bytes,
            ];
            let load = number(program.load_us as f64 / 1e3);
            [&[program.name.clone()][..], &counts.map(|count| count.to_string())[..], &[load][..]].concat()
        });
        write_columns(f, &by_column(head, rows))?;
        writeln!(f)
    }

    /// What was measured of what must hold; what was not stands in one line.
    fn write_targets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let judged = targets::judge(self.results);
        let (measured, open): (Vec<_>, Vec<_>) =
            judged.iter().partition(|judged| judged.outcome != Outcome::NotMeasured);
        if !measured.is_empty() {
            writeln!(f, "What must hold:")?;
            // Last, because colours have no width.
            let rows = measured.iter().map(|judged| {
                let outcome = judged.outcome.to_string();
                let outcome = match judged.outcome {
                    Outcome::Met => self.paint.good(&outcome),
                    Outcome::Missed => self.paint.bad(&outcome),
                    Outcome::NotJudged | Outcome::NotMeasured => outcome,
                };
                vec![judged.target.measure.to_owned(), target(judged), measured_as(judged), outcome]
            });
            write_columns(f, &by_column(["MEASURE", "TARGET", "MEASURED", ""], rows))?;
        }
        if !open.is_empty() {
            writeln!(f, "Of {} targets {} were not measured in this run.", judged.len(), open.len())?;
        }
        writeln!(f)
    }
}

/// Where a packet's time goes: a row for each kind of packet, a column for each stage, and the whole.
pub(crate) fn write_stages(f: &mut fmt::Formatter<'_>, stages: &[Stage]) -> fmt::Result {
    if stages.is_empty() {
        return Ok(());
    }
    writeln!(
        f,
        "Nanoseconds of a packet's stages, without what it takes to look at the clock: in the kernel's test run, where the \
         rest is what they\nleave of what the packet costs without looks; and on a live cluster, of what is asked and what \
         is answered together, where cold\nlooks at the clock take longer than those that are taken off."
    )?;
    write_columns(f, &stage_columns(stages))?;
    writeln!(f)
}

/// Head and cells of each column.
pub(super) fn stage_columns(stages: &[Stage]) -> Vec<Vec<String>> {
    let (names, rows) = stage_rows(stages);
    let mut columns = vec![vec!["PACKET".to_owned()], vec!["SOURCE".to_owned()], vec!["FLOWS".to_owned()]];
    columns.extend(names.iter().map(|name| vec![name.to_uppercase()]));
    columns.push(vec!["ALL".to_owned()]);
    for ((packet, source, flows), ns) in rows {
        let flows = if flows == 0 { "-".to_owned() } else { flows.to_string() };
        let all: f64 = ns.iter().flatten().sum();
        let times = ns.into_iter().chain([Some(all)]).map(|ns| ns.map_or("-".to_owned(), number));
        let cells = [packet.to_owned(), source.to_owned(), flows].into_iter().chain(times);
        columns.iter_mut().zip(cells).for_each(|(column, cell)| column.push(cell));
    }
    columns
}

/// The packet, where it was found out, and the number of flows.
type Timed<'a> = (&'a str, &'a str, u32);

/// The names of the stages in the order in which they first come; and of each kind of packet its nanoseconds in theirs.
fn stage_rows(stages: &[Stage]) -> (Vec<&str>, Vec<(Timed<'_>, Vec<Option<f64>>)>) {
    fn of(stage: &Stage) -> Timed<'_> {
        (&stage.packet, &stage.source, stage.flows)
    }
    let (mut names, mut timed) = (Vec::new(), Vec::new());
    for stage in stages {
        if !names.contains(&stage.stage.as_str()) {
            names.push(&stage.stage);
        }
        if !timed.contains(&of(stage)) {
            timed.push(of(stage));
        }
    }
    let rows = timed.into_iter().map(|one| {
        let named = |name: &&str| stages.iter().find(|it| of(it) == one && it.stage == *name).map(|it| it.ns);
        (one, names.iter().map(named).collect())
    });
    let rows = rows.collect();
    (names, rows)
}

/// `≤ 180 ns`.
pub(super) fn target(judged: &Judged) -> String {
    let targets::Target { bound, unit, .. } = judged.target;
    format!("{bound} {unit}").trim_end().to_owned()
}

/// The number with its spread, and what stands for what; a dash, if there is none.
pub(super) fn measured_as(judged: &Judged) -> String {
    let said = judged.measured.map_or_else(|| "-".to_owned(), spread);
    let said = format!("{said} {}", judged.target.unit).trim_end().to_owned();
    match judged.services {
        Some(services) => format!("{said}, at {services} services"),
        None => said,
    }
}

/// Whether a terminal has room for a figure, and for its ratio.
fn is_brief(figure: &Figure, point: &Point) -> (bool, bool) {
    let told = !["latency_us_p90", "latency_us_p999", "latency_us_p9999"].contains(&figure.name);
    let compared = match figure.name {
        TRANSACTIONS => point.workload == "TCP_CRR",
        name => [LATENCY_P50, LATENCY_P99, THROUGHPUT, RECEIVED, TOOK, MEMORY].contains(&name),
    };
    (told, compared)
}

/// Head and cells of each column of a point, of the figures, and their ratios, that are to be told.
pub(super) fn columns(
    results: &Results,
    point: &Point,
    is_told: impl Fn(&Figure, &Point) -> (bool, bool),
) -> Vec<Vec<String>> {
    let measured = variants_at(results, point);
    let column = |head: &str, cell: &dyn Fn(&str) -> Option<String>| {
        let cells = measured.iter().map(|variant| cell(variant).unwrap_or_else(|| "-".to_owned()));
        [head.to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let mut columns = vec![column("VARIANT", &|variant| Some(variant.to_owned()))];
    for figure in figures(results, point) {
        let (name, (told, compared)) = (figure.name, is_told(figure, point));
        if !told {
            continue;
        }
        columns.push(column(figure.head, &|variant| results.spread(variant, point, name).map(spread)));
        let ratio = |variant: &str| to_routed(results, variant, point, name).map(spread);
        if compared && figure.better.is_some() && measured.iter().any(|variant| ratio(variant).is_some()) {
            columns.push(column(&format!("/ {YARDSTICK}"), &ratio));
        }
    }
    columns
}

pub(super) fn by_column<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = Vec<String>>,
) -> Vec<Vec<String>> {
    let mut columns = head.map(|head| vec![head.to_owned()]).to_vec();
    for row in rows {
        columns.iter_mut().zip(row).for_each(|(column, cell)| column.push(cell));
    }
    columns
}

pub(super) fn write_columns(f: &mut fmt::Formatter<'_>, columns: &[Vec<String>]) -> fmt::Result {
    let wide =
        |column: &Vec<String>| column.iter().map(|cell| cell.chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = columns.iter().map(wide).collect();
    for row in 0..columns.first().map_or(0, Vec::len) {
        let cells: Vec<String> =
            columns.iter().zip(&widths).map(|(column, width)| format!("{:width$}", column[row])).collect();
        writeln!(f, "{}", cells.join("   ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::rich;
    use crate::results::tests::results;

    fn text(results: &Results) -> String {
        Table { results, paint: Paint::default() }.to_string()
    }

    #[test]
    fn it_has_a_row_for_each_variant_and_says_what_is_missing() {
        let text = text(&results());
        let chains = text.lines().find(|line| line.starts_with("chains")).unwrap_or_default();
        assert!(chains.contains("60.0 [50.0..90.0]   10.0 [6.00..15.0]"), "{text}");
        assert!(text.contains("not measured: ebpf: no object"), "{text}");
        assert!(!text.contains("wire"), "{text}");
    }

    #[test]
    fn what_must_hold_stands_below_with_target_and_number() {
        let text = text(&rich());
        let line =
            text.lines().find(|line| line.starts_with("pod egress to a Service, 1,024")).unwrap_or_default();
        assert!(
            line.contains("≤ 200 ns") && line.contains("188 [181..188] ns") && line.ends_with("met"),
            "{text}"
        );
        assert!(text.lines().any(|line| line.ends_with("missed")), "{text}");
        assert!(!text.contains("were not measured"), "{text}");
    }

    #[test]
    fn a_service_is_compared_with_routed_at_the_other_node_which_is_said() {
        let text = text(&rich());
        let at = text.find("TCP_CRR, service, 1 B: ").expect("it was measured");
        let table = text[at..].split("\n\n").next().unwrap_or_default();
        assert!(table.ends_with("/ routed: what routed does at TCP_CRR, other node, 1 B"), "{table}");
        let ebpf = table.lines().find(|line| line.starts_with("ebpf")).unwrap_or_default();
        assert!(ebpf.contains("0.88 ["), "{table}");
        assert!(!table.contains("P99.9"), "a terminal has no room for it: {table}");
    }

    #[test]
    fn where_the_time_goes_is_a_row_for_each_packet_and_what_is_less_than_nothing_is_told() {
        let mut results = rich();
        results.stages.iter_mut().filter(|it| it.stage == "redirect").for_each(|it| it.ns = -3.0);
        let text = text(&results);
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        let words = |start: &str| line(start).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(text.contains("PARSE") && text.contains("REDIRECT"), "{text}");
        let ingress = words("overlay ingress to a pod   test-run");
        assert_eq!(ingress[5..8], ["test-run", "1024", "24.0"], "{text}");
        assert_eq!(ingress[ingress.len() - 2..], ["-3.00", "114"], "{text}");
    }

    #[test]
    fn an_invalid_run_says_so_in_its_last_lines() {
        let noise = vec!["the machine's host took away 9.7 % of the CPU time".to_owned()];
        let text = text(&Results { noise, ..results() });
        assert!(text.ends_with("\nINVALID: the machine's host took away 9.7 % of the CPU time.\n"), "{text}");
        let text = self::text(&Results { noise: vec!["noise".to_owned()], ..rich() });
        let told = |word: &str| text.lines().filter(|line| line.ends_with(word)).count();
        assert_eq!([" met", " missed", "not judged: too noisy"].map(told), [0, 0, 20], "{text}");
    }
}
