//! What is drawn, and of which points.

use std::collections::{BTreeMap, BTreeSet};

use super::axis::Axis;
use super::chart::{self, Bar, Line, classes};
use super::{escaped, table};
use crate::figure::{Better, Figure, TRANSACTIONS};
use crate::report::table::stage_columns;
use crate::report::words::{self, figures, sentence, thousands, title, variants, variants_at};
use crate::results::{Point, Results, Spread};

/// Parts of the requests at which a distribution is drawn.
const PARTS: [f64; 17] =
    [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999];

/// Every drawing, by subject.
pub(super) fn all(results: &Results) -> String {
    let usual = |point: &&Point| (point.services, point.policies, point.flows) <= (1, 1, 1);
    let points = results.points();
    let (few, many): (Vec<&Point>, Vec<&Point>) = points.into_iter().partition(|point| usual(point));
    [
        section(
            "How much goes through",
            "Medians of the rounds, and a whisker from the lowest to the highest. More is better.",
            few.iter().filter_map(|point| rates(results, point)).collect(),
        ),
        section(
            "How long requests take",
            "Of all requests, how many were answered within a time: further left is better, and a curve that goes straight up \
             has no tail.",
            few.iter().filter_map(|point| distribution(results, point)).collect(),
        ),
        folded(
            "The same with many services, policies or flows",
            many.iter().filter_map(|point| distribution(results, point)).collect(),
        ),
        section(
            "What grows with the number of services",
            "Flat is better. Each point is the median of the rounds, with its spread.",
            scaling(results, "services", |point| point.services),
        ),
        section(
            "What grows with the number of policies",
            "",
            scaling(results, "policies", |point| point.policies),
        ),
        section(
            "What grows with the number of flows",
            "",
            scaling(results, "flows", |point| point.flows),
        ),
        section(
            "Where the time goes",
            "Nanoseconds of a packet's stages, without what it takes to look at the clock. The rest is what they leave of \
             what a packet costs without that; where it is less than nothing it is not drawn, but stands in the table. \
             On a live cluster they are of what is asked and what is answered together, and what a cold look at the clock \
             takes longer is in them.",
            stages(results),
        ),
    ]
    .concat()
}

fn section(heading: &str, words: &str, figures: Vec<String>) -> String {
    if figures.is_empty() {
        return String::new();
    }
    format!("<h2>{heading}</h2><p>{words}</p><div class=\"figures\">{}</div>", figures.concat())
}

fn folded(summary: &str, figures: Vec<String>) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let figures = figures.concat();
    format!("<details><summary>{summary}</summary><div class=\"figures\">{figures}</div></details>")
}

fn figure(caption: &str, svg: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>{svg}</figure>\n", escaped(caption))
}

/// Bars for what is better the more there is of it, if that is what the point tells: of requests over an open
/// connection the latency does.
fn rates(results: &Results, point: &Point) -> Option<String> {
    let mut figures = figures(results, point).filter(|figure| figure.better.is_some());
    let connects = point.workload == "TCP_CRR";
    let told = if connects { figures.find(|figure| figure.name == TRANSACTIONS) } else { figures.next() };
    let told = told.filter(|figure| figure.better == Some(Better::Higher))?;
    let all = variants(results);
    let bars = variants_at(results, point).into_iter().filter_map(|variant| {
        let spread = results.spread(variant, point, told.name)?;
        Some(Bar { name: variant.to_owned(), classes: classes(&all, variant), spread })
    });
    let bars: Vec<Bar> = bars.collect();
    let most = bars.iter().map(|bar| bar.spread.max).fold(0.0, f64::max);
    let caption = format!("How much {} carries: {}.", title(point), sentence(&point.workload));
    Some(figure(&caption, &chart::bars(&caption, &Axis::linear(told.axis, most), &bars)))
}

/// Which part of the requests took at most so long, if distributions were kept.
fn distribution(results: &Results, point: &Point) -> Option<String> {
    let all = variants(results);
    let mut lines = Vec::new();
    for variant in variants_at(results, point) {
        let rounds: Vec<&[(f64, f64)]> = results
            .samples
            .iter()
            .filter(|sample| sample.variant == variant && sample.point == *point)
            .map(|sample| sample.latencies_us.as_slice())
            .filter(|latencies| !latencies.is_empty())
            .collect();
        let at = |part: f64| {
            let spread = Spread::of(rounds.iter().filter_map(|round| within(round, part)).collect())?;
            (spread.median > 0.0).then_some((spread.median, same(part)))
        };
        let points: Vec<(f64, Spread)> = PARTS.into_iter().filter_map(at).collect();
        if !points.is_empty() {
            lines.push(Line { name: variant.to_owned(), classes: classes(&all, variant), points });
        }
    }
    let times = || lines.iter().flat_map(|line| &line.points).map(|(time, _)| *time);
    let (least, most) = (times().reduce(f64::min)?, times().reduce(f64::max)?);
    let x = Axis::logarithmic("latency, µs", least, most);
    let caption = format!("How long {} takes: {}.", title(point), sentence(&point.workload));
    let y = Axis::parts("of the requests");
    Some(figure(&caption, &chart::lines(&caption, (&x, &y), &lines, false)))
}

fn same(value: f64) -> Spread {
    Spread { median: value, min: value, max: value }
}

/// The time that a part of the requests stayed within; none beyond the parts that are known. Between two of them it is
/// straight as it is drawn: by how few are left.
fn within(latencies: &[(f64, f64)], part: f64) -> Option<f64> {
    let after = latencies.partition_point(|(known, _)| *known < part);
    let (high, high_us) = *latencies.get(after)?;
    if high == part {
        return Some(high_us);
    }
    let (low, low_us) = *latencies.get(after.checked_sub(1)?)?;
    let [low, part, high] = [low, part, high].map(|part| -(1.0 - part).max(1e-9).ln());
    Some(low_us + (high_us - low_us) * (part - low) / (high - low))
}

/// For all that was measured at two or more counts with everything else alike: the telling figures over the count.
fn scaling(results: &Results, what: &str, count: impl Fn(&Point) -> usize) -> Vec<String> {
    let mut families: BTreeMap<Point, BTreeSet<usize>> = BTreeMap::new();
    let family = |point: &Point| {
        let mut family = point.clone();
        match what {
            "services" => family.services = 0,
            "policies" => family.policies = 0,
            _ => family.flows = 0,
        }
        family
    };
    for point in results.points() {
        families.entry(family(point)).or_default().insert(count(point));
    }
    let mut drawn = Vec::new();
    for (of, counts) in families.into_iter().filter(|(_, counts)| counts.len() > 1) {
        let points: Vec<&Point> = results.points().into_iter().filter(|point| family(point) == of).collect();
        let counts: Vec<usize> = counts.into_iter().collect();
        for figure in telling(results, &points) {
            let places = points.iter().map(|point| (count(point), *point)).collect();
            drawn.extend(curve(results, (what, &counts), &places, figure));
        }
    }
    drawn
}

/// The first figure that judges; of what has both, the median and the tail.
fn telling(results: &Results, points: &[&Point]) -> Vec<&'static Figure> {
    let Some(point) = points.first() else { return Vec::new() };
    let mut figures: Vec<&Figure> =
        figures(results, point).filter(|figure| figure.better.is_some()).collect();
    let tail = figures.iter().copied().find(|figure| figure.name == crate::figure::LATENCY_P99);
    figures.truncate(1);
    figures.extend(tail);
    figures
}

fn curve(
    results: &Results,
    (what, counts): (&str, &[usize]),
    places: &BTreeMap<usize, &Point>,
    told: &Figure,
) -> Option<String> {
    let all = variants(results);
    let lines = all.iter().filter_map(|variant| {
        let at = |(count, point): (&usize, &&Point)| {
            Some((*count as f64, results.spread(variant, point, told.name)?))
        };
        let points: Vec<(f64, Spread)> = places.iter().filter_map(at).collect();
        let line = Line { name: (*variant).to_owned(), classes: classes(&all, variant), points };
        (line.points.len() > 1).then_some(line)
    });
    let lines: Vec<Line> = lines.collect();
    let values = || lines.iter().flat_map(|line| &line.points).map(|(_, spread)| *spread);
    let least = values().map(|spread| spread.min).reduce(f64::min)?;
    let most = values().map(|spread| spread.max).reduce(f64::max)?;
    // What spans factors is told by factors, the rest from zero.
    let spans = least > 0.0 && most / least > 12.0;
    let y = if spans { Axis::logarithmic(told.axis, least, most) } else { Axis::linear(told.axis, most) };
    let x = Axis::counts(&format!("number of {what}"), counts);
    let of = words::traffic(places.values().next()?);
    let (last, noun) = (thousands(*counts.last()?), told.axis.split(',').next().unwrap_or_default());
    let caption = format!("How the {noun} of {of} goes with up to {last} {what}.");
    Some(figure(&caption, &chart::lines(&caption, (&x, &y), &lines, true)))
}

fn stages(results: &Results) -> Vec<String> {
    let mut sources: Vec<&str> = Vec::new();
    for stage in &results.stages {
        if !sources.contains(&stage.source.as_str()) {
            sources.push(&stage.source);
        }
    }
    let of = |source: &str| {
        let mut rows: Vec<(String, Vec<(String, f64)>)> = Vec::new();
        for stage in results.stages.iter().filter(|stage| stage.source == source) {
            let part = (stage.stage.clone(), stage.ns);
            let name = match stage.flows {
                0 | 1 => stage.packet.clone(),
                flows => format!("{}, {} flows", stage.packet, thousands(flows as usize)),
            };
            match rows.iter_mut().find(|(packet, _)| *packet == name) {
                Some((_, parts)) => parts.push(part),
                None => rows.push((name, vec![part])),
            }
        }
        let longest = rows.iter().map(|(_, parts)| parts.iter().map(|(_, ns)| ns).sum()).fold(0.0, f64::max);
        let caption = match source {
            "test-run" => "What each stage adds in the kernel's test run.".to_owned(),
            "live" => "What each stage takes on a live cluster, sampled.".to_owned(),
            other => format!("What each stage takes, by {other}."),
        };
        let svg = chart::stacks(&caption, &Axis::linear("nanoseconds", longest * 1.08), &rows);
        let names = chart::order(&rows);
        let names = names.iter().enumerate().map(|(at, name)| {
            format!("<svg viewBox=\"0 0 12 12\" class=\"swatch\"><rect class=\"s{at}\" width=\"12\" height=\"12\"/></svg>{} ", escaped(name))
        });
        let names: String = names.collect();
        figure(&caption, &format!("{svg}<p class=\"names dim\">{names}</p>"))
    };
    let mut drawn: Vec<String> = sources.into_iter().map(of).collect();
    if !drawn.is_empty() {
        let columns = stage_columns(&results.stages);
        let heads: Vec<String> = columns.iter().map(|column| column[0].to_lowercase()).collect();
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        let rows =
            (1..columns[0].len()).map(|row| columns.iter().map(|column| column[row].clone()).collect());
        drawn.push(table(&heads, rows));
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::rich;

    #[test]
    fn between_two_known_parts_a_distribution_is_straight_and_beyond_them_unknown() {
        let known = [(0.5, 10.0), (0.9, 20.0), (0.99, 110.0)];
        assert_eq!(within(&known, 0.9), Some(20.0));
        // As far from 0.9 to this as from this to 0.99.
        let between = 1.0 - 0.1f64.powf(1.5);
        assert!(within(&known, between).is_some_and(|us| (us - 65.0).abs() < 1e-6));
        assert_eq!((within(&known, 0.3), within(&known, 0.999)), (None, None));
    }

    #[test]
    fn a_curve_is_drawn_for_what_was_measured_at_two_counts_and_only_then() {
        let services = scaling(&rich(), "services", |point| point.services);
        let caption = |drawn: &String| drawn.split("</figcaption>").next().unwrap_or_default().to_owned();
        let captions = services.iter().map(caption).collect::<Vec<_>>().join("\n");
        assert!(
            captions.contains("How the latency p50 of TCP_CRR, service goes with up to 10,000 services."),
            "{captions}"
        );
        assert!(captions.contains("How the memory of MEMORY goes with up to 10,000 services."), "{captions}");
        assert!(scaling(&rich(), "flows", |point| point.flows).is_empty());
    }

    #[test]
    fn a_distribution_has_a_curve_for_each_variant_that_kept_one() {
        let results = rich();
        let point =
            results.points().into_iter().find(|point| point.workload == "TCP_RR" && point.way == "service");
        let drawn = distribution(&results, point.expect("it was measured")).expect("latencies were kept");
        // Neither wire nor routed knows Services.
        assert_eq!(drawn.matches("<polyline").count(), 7);
    }
}
