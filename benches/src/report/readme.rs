//! The README's part: what must hold and does, and the dataplanes beside each other.

use std::cmp::Reverse;

use super::table::{measured_as, target};
use super::to_routed;
use super::words::{all_rounds, day, facts, spread, unsteady, variants, variants_at};
use crate::figure::{LATENCY_P50, RECEIVED, THROUGHPUT, TRANSACTIONS};
use crate::matrix::{Suite, Variant};
use crate::results::{Point, Results, Spread};
use crate::targets::{self, Outcome};

/// Where it begins and ends in the README.
const BEGIN: &str = "<!-- results: begin -->";
const END: &str = "<!-- results: end -->";

/// A column: its head, the traffic, the figure.
type Column = (&'static str, (&'static str, &'static str, Option<usize>), &'static str);

const COLUMNS: [Column; 5] = [
    ("request/response p50", ("TCP_RR", "other-node", None), LATENCY_P50),
    ("connect/close rate", ("TCP_CRR", "other-node", None), TRANSACTIONS),
    ("the same, via a Service", ("TCP_CRR", "service", None), TRANSACTIONS),
    ("TCP stream", ("TCP_STREAM", "other-node", None), THROUGHPUT),
    ("64 B UDP packets/s", ("UDP_STREAM", "other-node", Some(64)), RECEIVED),
];

/// A README without a place for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no `{BEGIN}` with a `{END}` behind it, each on a line of its own; add them where the results belong"
)]
pub struct NoPlace;

/// The README with its part made anew of these results.
///
/// # Errors
/// [`NoPlace`].
pub fn replaced(readme: &str, results: &Results) -> Result<String, NoPlace> {
    let (before, rest) = readme.split_once(&format!("{BEGIN}\n")).ok_or(NoPlace)?;
    let (_, after) = rest.split_once(&format!("{END}\n")).ok_or(NoPlace)?;
    Ok(format!("{before}{BEGIN}\n{}{END}\n{after}", block(results)))
}

/// What stands between the marks.
pub fn block(results: &Results) -> String {
    let mut lines = vec![validity(results), String::new()];
    lines.extend(side_by_side(results));
    lines.extend(must_hold(results));
    lines.push(format!(
        "Medians of {} of {} s, [lowest..highest], as ratio to `routed` in the same round; nodes joined by a {}. {}; measured on {}.",
        all_rounds(results),
        results.time_s,
        results.fabric,
        facts(&results.machine),
        day(results.machine.began_s)
    ));
    lines.join("\n") + "\n"
}

fn validity(results: &Results) -> String {
    let suite = &results.suite;
    if results.noise.is_empty() {
        let but = unsteady(results).map_or(String::new(), |points| format!("; {points}"));
        return format!("Suite `{suite}`: a valid run{but}.");
    }
    let why = results.noise.join("; ");
    format!("Suite `{suite}`: **INVALID, the machine was too noisy for figures to quote:** {why}.")
}

/// The dataplanes beside each other.
fn side_by_side(results: &Results) -> Vec<String> {
    let Some(Beside { heads, rows }) = beside(results) else { return Vec::new() };
    let line = |first: &str, cells: Vec<String>| format!("| {first} | {} |", cells.join(" | "));
    let mut lines = vec![line("÷ `routed`", heads.iter().map(|head| (*head).to_owned()).collect())];
    lines.push(line("---", vec!["---".to_owned(); heads.len()]));
    for (variant, cells) in rows {
        let cells = cells.into_iter().map(|cell| cell.map_or("-".to_owned(), spread));
        lines.push(line(&format!("`{variant}`"), cells.collect()));
    }
    let absent = results.absent.iter().filter(|absent| !is_lack(&absent.why));
    lines.extend(absent.map(|absent| format!("\nNot measured: `{}`: {}.", absent.variant, absent.why)));
    lines.push(String::new());
    lines
}

/// Whether somebody cannot be asked such a thing at all, which no run could mend.
fn is_lack(why: &str) -> bool {
    Variant::all().into_iter().any(|variant| {
        Suite::standard().runs().any(|run| variant.lacks(run).is_some_and(|lack| why.ends_with(lack)))
    })
}

/// The variants beside each other: a ratio to `routed` for each head, where there is one.
pub(super) struct Beside<'a> {
    /// Of what.
    pub heads: Vec<&'static str>,
    /// Each variant that has at least one.
    pub rows: Vec<(&'a str, Vec<Option<Spread>>)>,
}

/// The few figures that tell most; none, if none of them was measured.
pub(super) fn beside(results: &Results) -> Option<Beside<'_>> {
    let columns: Vec<(Column, &Point)> =
        COLUMNS.into_iter().filter_map(|column| Some((column, usual(results, column.1)?))).collect();
    let rows = variants(results).into_iter().map(|variant| {
        let cells = columns.iter().map(|((.., figure), point)| to_routed(results, variant, point, figure));
        (variant, cells.collect::<Vec<_>>())
    });
    let rows: Vec<_> = rows.filter(|(_, cells)| cells.iter().any(Option::is_some)).collect();
    let heads = columns.iter().map(|((head, ..), _)| *head).collect();
    (!rows.is_empty()).then_some(Beside { heads, rows })
}

/// Where most variants were measured, with as little beside the traffic as can be.
fn usual<'a>(results: &'a Results, traffic: (&str, &str, Option<usize>)) -> Option<&'a Point> {
    let (workload, way, size) = traffic;
    let points = results.points().into_iter().filter(|point| {
        (point.workload.as_str(), point.way.as_str()) == (workload, way)
            && size.is_none_or(|size| point.size_bytes == size)
    });
    points.min_by_key(|point| {
        let Point { services, policies, connections, flows, size_bytes, rate_per_s, .. } = **point;
        let many = Reverse(variants_at(results, point).len());
        (many, rate_per_s, connections, services, policies, flows, size_bytes)
    })
}

/// Those of the targets that were measured.
fn must_hold(results: &Results) -> Vec<String> {
    let all = targets::judge(results);
    let count = |outcome| all.iter().filter(|judged| judged.outcome == outcome).count();
    let [met, missed, unjudged] = [Outcome::Met, Outcome::Missed, Outcome::NotJudged].map(count);
    if met + missed + unjudged == 0 {
        return Vec::new();
    }
    let mut lines =
        vec!["| must hold | target | measured | |".to_owned(), "| --- | --- | --- | --- |".to_owned()];
    for judged in all.iter().filter(|judged| judged.outcome != Outcome::NotMeasured) {
        let outcome = match judged.outcome {
            Outcome::NotJudged => "(too noisy)",
            Outcome::Met => "met",
            _ => "**missed**",
        };
        let (measure, target, measured) = (judged.target.measure, target(judged), measured_as(judged));
        lines.push(format!("| {measure} | {target} | {measured} | {outcome} |"));
    }
    let open = all.len() - met - missed - unjudged;
    let open = if open > 0 { format!(", {open} not measured in this run") } else { String::new() };
    let judged = match unjudged {
        0 => format!("{met} met, {missed} missed"),
        _ if results.noise.is_empty() => {
            format!("{met} met, {missed} missed, {unjudged} not judged: too noisy")
        }
        _ => format!("{unjudged} measured, none judged: the run is invalid"),
    };
    lines.push(format!(
        "\nOf {} targets {judged}{open}. A packet's cost is the median, \
                        [what nine of ten runs exceed..median].\n",
        all.len()
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::rich;

    #[test]
    fn only_what_stands_between_the_marks_is_made_anew() {
        let readme = format!("# A\n{BEGIN}\nbygone\n{END}\nrest\n");
        let made = replaced(&readme, &rich()).expect("it has both marks");
        assert!(
            made.starts_with(&format!("# A\n{BEGIN}\nSuite")) && made.ends_with(&format!("{END}\nrest\n"))
        );
        assert!(!made.contains("bygone"));
        assert_eq!(replaced(&made, &rich()).as_deref(), Ok(made.as_str()));
        assert_eq!(replaced("# A\n", &rich()), Err(NoPlace));
    }

    #[test]
    fn it_has_every_variant_beside_routed_and_every_target_that_was_measured() {
        let block = block(&rich());
        let row =
            |start: &str| block.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(row("| `ebpf` |").contains("| 0.93 [0.92..0.94] |"), "{block}");
        assert!(row("| `wire` |").contains("| - |"), "no Services on a wire: {block}");
        assert!(row("| `routed` |").starts_with("| `routed` | 1.00 | 1.00 | - |"), "{block}");
        assert_eq!(block.matches("**missed**").count(), 2, "{block}");
        assert!(block.contains("Of 20 targets 18 met, 2 missed. "), "{block}");
    }

    #[test]
    fn whatever_failed_is_listed_and_what_nobody_can_ask_is_not() {
        let absent = |why: &str| crate::results::Absent { variant: "ebpf".to_owned(), why: why.to_owned() };
        let absent = vec![absent("TCP_RR, world: it broke"), absent("service: it knows no Services")];
        let block = block(&Results { absent, ..rich() });
        assert!(block.contains("`ebpf`: TCP_RR, world: it broke"), "{block}");
        assert!(!block.contains("it knows no Services"), "{block}");
    }

    #[test]
    fn an_invalid_run_is_called_so_first_of_all() {
        let block = block(&Results { noise: vec!["noise".to_owned()], ..rich() });
        assert!(block.starts_with("Suite `standard`: **INVALID"), "{block}");
        assert!(block.contains("| (too noisy) |") && !block.contains("| met |"), "{block}");
        assert!(!block.contains("missed") && block.contains("20 measured, none judged"), "{block}");
    }
}
