//! How it is told: a table for people, JSON with everything, CSV with the raw figures.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::matrix::{Figure, Run};
use crate::measure::{Comparison, Spread};

/// One figure of one variant, as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The variant.
    pub dataplane: String,
    /// The workload and its size.
    #[serde(flatten)]
    pub run: Run,
    /// Its name, with the unit.
    pub figure: &'static str,
    /// Over the rounds.
    #[serde(flatten)]
    pub spread: Spread,
    /// Of the rounds' ratios to `routed`; none, if `routed` was not measured or the figure is not compared.
    pub ratio_to_routed: Option<Spread>,
}

/// Every figure of every variant, in the order of the suite.
pub fn rows(comparison: &Comparison) -> Vec<Row> {
    let mut rows = Vec::new();
    for run in &comparison.suite.runs {
        for name in &comparison.suite.dataplanes {
            let dataplane = name.to_string();
            for figure in run.workload.figures() {
                if let Some(spread) = comparison.spread(&dataplane, *run, figure.name) {
                    let ratio_to_routed = ratio(comparison, &dataplane, *run, *figure);
                    let dataplane = dataplane.clone();
                    rows.push(Row { dataplane, run: *run, figure: figure.name, spread, ratio_to_routed });
                }
            }
        }
    }
    rows
}

fn ratio(comparison: &Comparison, dataplane: &str, run: Run, figure: Figure) -> Option<Spread> {
    comparison.ratio(dataplane, run, figure.name).filter(|_| figure.compared)
}

/// Everything: results first, then what they come from.
pub fn json(comparison: &Comparison) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Whole<'a> {
        results: Vec<Row>,
        #[serde(flatten)]
        comparison: &'a Comparison,
    }
    serde_json::to_string_pretty(&Whole { results: rows(comparison), comparison })
}

/// A line for every raw figure.
pub fn csv(comparison: &Comparison) -> String {
    let mut text = String::from("round,dataplane,workload,size,figure,value\n");
    for sample in &comparison.samples {
        let Run { workload, size } = sample.run;
        for (figure, value) in &sample.figures {
            let (round, dataplane) = (sample.round, &sample.dataplane);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{round},{dataplane},{workload},{size},{figure},{value}");
        }
    }
    text
}

/// A table for each workload: medians, with the lowest and highest round in brackets.
pub struct Table<'a>(pub &'a Comparison);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { suite, machine, absent, noisy, .. } = self.0;
        for run in &suite.runs {
            let size = if run.size > 0 { format!(", {} B", run.size) } else { String::new() };
            writeln!(f, "{}{size}: {}", run.workload, run.workload.sentence())?;
            write_columns(f, &self.columns(*run))?;
            writeln!(f)?;
        }
        for absent in absent {
            writeln!(f, "not measured: {}: {}", absent.dataplane, absent.why)?;
        }
        let (rounds, time) = (suite.rounds, suite.time.as_secs_f64());
        writeln!(f, "Medians of {rounds} rounds of {time} s, [lowest..highest]; ratios within a round.")?;
        writeln!(
            f,
            "{} x {}, Linux {}, {:.1} % stolen, load {} before; took {:.0} s.",
            machine.cpus, machine.cpu, machine.kernel, machine.steal_percent, machine.load, machine.took_s
        )?;
        for why in noisy {
            writeln!(f, "NOISY: {why}.")?;
        }
        Ok(())
    }
}

impl Table<'_> {
    /// Head and cells of each column.
    fn columns(&self, run: Run) -> Vec<Vec<String>> {
        let measured: Vec<String> = self.0.suite.dataplanes.iter().map(ToString::to_string).collect();
        let telling = run.workload.figures()[0].name;
        let measured: Vec<&String> =
            measured.iter().filter(|name| self.0.spread(name, run, telling).is_some()).collect();
        let mut columns = vec![
            ["DATAPLANE".to_owned()].into_iter().chain(measured.iter().map(|name| (*name).clone())).collect(),
        ];
        for figure in run.workload.figures() {
            let cells = measured.iter().map(|name| cell(self.0.spread(name, run, figure.name)));
            columns.push([figure.head.to_owned()].into_iter().chain(cells).collect());
            if figure.compared {
                let cells = measured.iter().map(|name| cell(ratio(self.0, name, run, *figure)));
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
    use crate::measure::tests::comparison;

    #[test]
    fn json_has_the_results_the_machine_and_every_repeat() {
        let text = json(&comparison()).expect("numbers and strings");
        let value: serde_json::Value = serde_json::from_str(&text).expect("what was written");
        assert_eq!(value["samples"].as_array().map(Vec::len), Some(6));
        assert_eq!(value["suite"]["rounds"], 3);
        assert_eq!(value["absent"][0]["dataplane"], "ebpf");
        let results = value["results"].as_array().expect("a list");
        let found =
            results.iter().find(|row| row["dataplane"] == "chains" && row["figure"] == "latency_us_p50");
        let row = found.expect("chains was measured");
        assert_eq!((&row["workload"], &row["median"]), (&"TCP_RR".into(), &60.0.into()));
        assert_eq!(row["ratio_to_routed"]["median"], 10.0);
    }

    #[test]
    fn the_table_has_a_row_for_each_variant_and_says_what_is_missing() {
        let text = Table(&comparison()).to_string();
        let chains = text.lines().find(|line| line.starts_with("chains")).unwrap_or_default();
        assert!(chains.contains("60.0 [50.0..90.0]   10.0 [6.00..15.0]"), "{text}");
        assert!(text.contains("not measured: ebpf: no object"), "{text}");
        assert!(!text.contains("wire"), "{text}");
    }

    #[test]
    fn csv_has_a_line_for_every_raw_figure() {
        let text = csv(&comparison());
        assert_eq!(text.lines().count(), 1 + 12, "{text}");
        assert!(text.contains("\n2,chains,TCP_RR,1,latency_us_p50,90\n"), "{text}");
    }
}
