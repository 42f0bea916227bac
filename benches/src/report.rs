//! How it is told: a table for people, JSON with everything, CSV with the raw figures.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::matrix::{Figure, Workload};
use crate::results::{Point, Results, Spread};

/// One figure of one variant, as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The variant.
    pub variant: String,
    /// What was asked of it.
    #[serde(flatten)]
    pub point: Point,
    /// Its name, with the unit.
    pub figure: &'static str,
    /// Over the rounds.
    #[serde(flatten)]
    pub spread: Spread,
    /// Of the rounds' ratios to `routed`; none, if `routed` was not measured or the figure is not compared.
    pub ratio_to_routed: Option<Spread>,
}

/// Every figure of every variant, in the order of the suite.
pub fn rows(results: &Results) -> Vec<Row> {
    let mut rows = Vec::new();
    for point in results.points() {
        for variant in results.variants() {
            for figure in figures(point) {
                if let Some(spread) = results.spread(variant, point, figure.name) {
                    let ratio_to_routed = ratio(results, variant, point, *figure);
                    let (variant, point) = (variant.to_owned(), point.clone());
                    rows.push(Row { variant, point, figure: figure.name, spread, ratio_to_routed });
                }
            }
        }
    }
    rows
}

/// What is told of a point: nothing of a workload that is not ours.
fn figures(point: &Point) -> &'static [Figure] {
    point.workload.parse::<Workload>().map_or(&[], Workload::figures)
}

fn ratio(results: &Results, variant: &str, point: &Point, figure: Figure) -> Option<Spread> {
    let routed = ("routed", point);
    results.ratio((variant, point), routed, figure.name).filter(|_| figure.compared)
}

/// Everything: results first, then what they come from.
pub fn json(results: &Results) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Whole<'a> {
        results: Vec<Row>,
        #[serde(flatten)]
        raw: &'a Results,
    }
    serde_json::to_string_pretty(&Whole { results: rows(results), raw: results })
}

/// A line for every raw figure.
pub fn csv(results: &Results) -> String {
    let mut text = String::from("round,variant,workload,size,figure,value\n");
    for sample in &results.samples {
        let Point { workload, size_bytes, .. } = &sample.point;
        for (figure, value) in &sample.figures {
            let (round, variant) = (sample.round, &sample.variant);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{round},{variant},{workload},{size_bytes},{figure},{value}");
        }
    }
    text
}

/// A table for each workload: medians, with the lowest and highest round in brackets.
pub struct Table<'a>(pub &'a Results);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Results { machine, absent, noise, rounds, time_s, .. } = self.0;
        for point in self.0.points() {
            let Ok(workload) = point.workload.parse::<Workload>() else { continue };
            let size = if point.size_bytes > 0 { format!(", {} B", point.size_bytes) } else { String::new() };
            writeln!(f, "{workload}{size}: {}", workload.sentence())?;
            write_columns(f, &self.columns(point))?;
            writeln!(f)?;
        }
        for absent in absent {
            writeln!(f, "not measured: {}: {}", absent.variant, absent.why)?;
        }
        writeln!(f, "Medians of {rounds} rounds of {time_s} s, [lowest..highest]; ratios within a round.")?;
        writeln!(
            f,
            "{} x {}, Linux {}, {:.1} % stolen, load {} before; took {:.0} s.",
            machine.cpus, machine.cpu, machine.kernel, machine.steal_percent, machine.load, machine.took_s
        )?;
        for why in noise {
            writeln!(f, "NOISY: {why}.")?;
        }
        Ok(())
    }
}

impl Table<'_> {
    /// Head and cells of each column.
    fn columns(&self, point: &Point) -> Vec<Vec<String>> {
        let figures = figures(point);
        let is_measured = |name: &&str| {
            figures.first().is_some_and(|figure| self.0.spread(name, point, figure.name).is_some())
        };
        let measured: Vec<&str> = self.0.variants().into_iter().filter(is_measured).collect();
        let mut columns = vec![
            ["VARIANT".to_owned()]
                .into_iter()
                .chain(measured.iter().map(|name| (*name).to_owned()))
                .collect(),
        ];
        for figure in figures {
            let cells = measured.iter().map(|name| cell(self.0.spread(name, point, figure.name)));
            columns.push([figure.head.to_owned()].into_iter().chain(cells).collect());
            if figure.compared {
                let cells = measured.iter().map(|name| cell(ratio(self.0, name, point, *figure)));
                columns.push(["/ routed".to_owned()].into_iter().chain(cells).collect());
            }
        }
        columns
    }
}

fn cell(spread: Option<Spread>) -> String {
    let Some(Spread { median, min, max }) = spread else { return "-".to_owned() };
    if min == max {
        return number(median);
    }
    format!("{} [{}..{}]", number(median), number(min), number(max))
}

/// Three digits that tell, or all before the point.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn write_columns(f: &mut fmt::Formatter<'_>, columns: &[Vec<String>]) -> fmt::Result {
    let widths: Vec<usize> =
        columns.iter().map(|column| column.iter().map(String::len).max().unwrap_or_default()).collect();
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
    use crate::results::tests::results;

    #[test]
    fn json_has_the_results_the_machine_and_every_repeat() {
        let text = json(&results()).expect("numbers and strings");
        let value: serde_json::Value = serde_json::from_str(&text).expect("what was written");
        assert_eq!(value["samples"].as_array().map(Vec::len), Some(6));
        assert_eq!(value["rounds"], 3);
        assert_eq!(value["absent"][0]["variant"], "ebpf");
        let results = value["results"].as_array().expect("a list");
        let found =
            results.iter().find(|row| row["variant"] == "chains" && row["figure"] == "latency_us_p50");
        let row = found.expect("chains was measured");
        assert_eq!((&row["workload"], &row["median"]), (&"TCP_RR".into(), &60.0.into()));
        assert_eq!(row["ratio_to_routed"]["median"], 10.0);
    }

    #[test]
    fn the_table_has_a_row_for_each_variant_and_says_what_is_missing() {
        let text = Table(&results()).to_string();
        let chains = text.lines().find(|line| line.starts_with("chains")).unwrap_or_default();
        assert!(chains.contains("60.0 [50.0..90.0]   10.0 [6.00..15.0]"), "{text}");
        assert!(text.contains("not measured: ebpf: no object"), "{text}");
        assert!(!text.contains("wire"), "{text}");
    }

    #[test]
    fn csv_has_a_line_for_every_raw_figure() {
        let text = csv(&results());
        assert_eq!(text.lines().count(), 1 + 12, "{text}");
        assert!(text.contains("\n2,chains,TCP_RR,1,latency_us_p50,90\n"), "{text}");
    }
}
