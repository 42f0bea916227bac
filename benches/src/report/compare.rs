//! What became better and what worse between two files of results.
//!
//! A figure became worse if its median moved the bad way by more than [`NOISE`], and the ranges from the lowest to the
//! highest round of the two do not even touch. Of a packet's cost the range goes from the quiet runs to the median;
//! what the verifier counts has none. Figures that only explain others are not judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use testbed::output::Paint;

use super::table::{by_column, write_columns};
use super::words::{self, facts, thousands};
use crate::figure::{self, Better};
use crate::results::{Point, Results, Spread};

/// A median that moved less has not moved.
const NOISE: f64 = 0.05;
/// Fewer rounds have no range to speak of.
const FEW: usize = 3;

/// Two runs, figure by figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What is in both.
    pub changes: Vec<Change>,
    /// What only the first has.
    pub only_before: Vec<String>,
    /// What only the second has.
    pub only_after: Vec<String>,
    /// Why the comparison is worth less than it looks.
    pub warnings: Vec<String>,
}

/// A figure in both.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Of what: a point, a packet, a program.
    pub what: String,
    /// Of which variant.
    pub variant: String,
    /// Its name.
    pub figure: String,
    /// In the first.
    pub before: Spread,
    /// In the second.
    pub after: Spread,
    /// The second by the first: of the medians, and what it is at least and at most; none where the first has a zero.
    pub ratio: Option<Spread>,
    /// What to make of it.
    pub verdict: Verdict,
}

/// What to make of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A regression.
    Worse,
    /// The contrary.
    Better,
    /// Nothing that could be told from noise.
    Same,
    /// The figure only explains others.
    Unjudged,
}

/// Why two files cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nothing that both have.
    #[error(
        "cannot compare suite {before} with suite {after}: they have no figure of the same variant at the same point; \
         run the same suite twice"
    )]
    Nothing {
        /// The first's.
        before: String,
        /// The second's.
        after: String,
    },
}

/// What a figure is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    point: Option<Point>,
    what: String,
    variant: String,
    figure: String,
}

/// Compares the second with the first.
///
/// # Errors
/// [`Error::Nothing`].
pub fn compare(before: &Results, after: &Results) -> Result<Comparison, Error> {
    let (old, new) = (figures(before), figures(after));
    let mut changes = Vec::new();
    for (key, (spread, better)) in &old {
        if let Some((after, _)) = new.get(key) {
            changes.push(Change::of(key, [*spread, *after], *better));
        }
    }
    if changes.is_empty() {
        return Err(Error::Nothing { before: before.suite.clone(), after: after.suite.clone() });
    }
    let (only_before, only_after) = (missing(&old, &new), missing(&new, &old));
    Ok(Comparison { changes, only_before, only_after, warnings: warnings(before, after) })
}

type Figures = BTreeMap<Key, (Spread, Option<Better>)>;

/// Everything that has a spread.
fn figures(results: &Results) -> Figures {
    let mut rounds: BTreeMap<Key, Vec<f64>> = BTreeMap::new();
    for sample in &results.samples {
        for (figure, value) in &sample.figures {
            let key = Key {
                point: Some(sample.point.clone()),
                what: words::title(&sample.point),
                variant: sample.variant.clone(),
                figure: figure.clone(),
            };
            rounds.entry(key).or_default().push(*value);
        }
    }
    let spreads = rounds.into_iter().filter_map(|(key, values)| {
        let better = figure::named(&key.figure).and_then(|figure| figure.better);
        Some((key, (Spread::of(values)?, better)))
    });
    let mut all: Figures = spreads.collect();
    let key = |what: String, figure: &str| Key {
        point: None,
        what,
        variant: "ebpf".to_owned(),
        figure: figure.to_owned(),
    };
    for cost in &results.costs {
        let what = format!("{}: {}, {} flows", cost.program, cost.packet, thousands(cost.flows as usize));
        all.insert(key(what, "cost_ns"), (cost.spread(), Some(Better::Lower)));
    }
    for program in &results.programs {
        for (figure, count) in [("verified", program.verified), ("stack_bytes", program.stack_bytes)] {
            let spread = Spread { median: count as f64, min: count as f64, max: count as f64 };
            all.insert(key(program.name.clone(), figure), (spread, Some(Better::Lower)));
        }
    }
    all
}

/// What the first has and the second has not, without its figures' names.
fn missing(here: &Figures, there: &Figures) -> Vec<String> {
    let gone = here.keys().filter(|key| !there.contains_key(key));
    let gone: BTreeSet<String> = gone.map(|key| format!("{}: {}", key.variant, key.what)).collect();
    gone.into_iter().collect()
}

fn warnings(before: &Results, after: &Results) -> Vec<String> {
    let mut warnings = Vec::new();
    let [old, new] = [&before.machine, &after.machine];
    if (&old.cpu, old.cpus, old.memory_bytes) != (&new.cpu, new.cpus, new.memory_bytes) {
        warnings.push(format!("the machines differ: {}; and {}", facts(old), facts(new)));
    } else if old.kernel != new.kernel {
        warnings.push(format!("the kernels differ: {} and {}", old.kernel, new.kernel));
    }
    if old.commit.is_empty() || new.commit.is_empty() {
        warnings.push("of one of them it is not known which commit was measured".to_owned());
    } else if old.commit != new.commit {
        warnings.push(format!("the commits differ, as they may: {} and {}", old.commit, new.commit));
    }
    for (name, results) in [("first", before), ("second", after)] {
        let noise = results.noise.iter().map(|why| format!("the {name} run is invalid: {why}"));
        warnings.extend(noise);
        if results.rounds < FEW {
            warnings.push(format!("the {name} run has {} rounds: too few to know the noise", results.rounds));
        }
    }
    if before.fabric != after.fabric {
        warnings
            .push(format!("nodes were joined by another fabric: a {} and a {}", before.fabric, after.fabric));
    }
    if before.seed != after.seed {
        warnings.push(format!("the seeds differ: {} and {}", before.seed, after.seed));
    }
    warnings
}

impl Change {
    fn of(key: &Key, [before, after]: [Spread; 2], better: Option<Better>) -> Self {
        let ratio = (before.min > 0.0).then(|| Spread {
            median: after.median / before.median,
            min: after.min / before.max,
            max: after.max / before.min,
        });
        // Not by the ratio: what was nothing and is something has become more as well.
        let moved = (after.median - before.median).abs() > NOISE * before.median.abs();
        let grew = moved && after.min > before.max;
        let shrank = moved && after.max < before.min;
        let verdict = match better {
            None => Verdict::Unjudged,
            Some(_) if !grew && !shrank => Verdict::Same,
            Some(Better::Higher) if grew => Verdict::Better,
            Some(Better::Lower) if shrank => Verdict::Better,
            Some(_) => Verdict::Worse,
        };
        let Key { what, variant, figure, .. } = key.clone();
        Self { what, variant, figure, before, after, ratio, verdict }
    }
}

impl Comparison {
    /// How many figures are such.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.changes.iter().filter(|change| change.verdict == verdict).count()
    }

    /// As a table, with colours if it may have them.
    pub fn table(&self, paint: Paint) -> String {
        Told { comparison: self, paint }.to_string()
    }
}

struct Told<'a> {
    comparison: &'a Comparison,
    paint: Paint,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comparison = self.comparison;
        let rows = comparison.changes.iter().map(|change| {
            let verdict = match change.verdict {
                Verdict::Worse => self.paint.bad("worse"),
                Verdict::Better => self.paint.good("better"),
                Verdict::Same | Verdict::Unjudged => String::new(),
            };
            let [before, after] = [change.before, change.after].map(words::spread);
            let spreads = [before, after, change.ratio.map_or("-".to_owned(), words::spread)];
            let of = [&change.what, &change.variant, &change.figure].map(String::clone);
            [&of[..], &spreads[..], &[verdict][..]].concat()
        });
        write_columns(f, &by_column(["OF", "VARIANT", "FIGURE", "BEFORE", "AFTER", "RATIO", ""], rows))?;
        writeln!(f)?;
        for (which, only) in [("first", &comparison.only_before), ("second", &comparison.only_after)] {
            for what in only {
                writeln!(f, "only in the {which}: {what}")?;
            }
        }
        let [worse, better, same] =
            [Verdict::Worse, Verdict::Better, Verdict::Same].map(|verdict| comparison.count(verdict));
        writeln!(
            f,
            "{worse} worse, {better} better, {same} as before: worse and better by more than {:.0} %, and outside of \
             each other's range.",
            100.0 * NOISE
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::rich;
    use crate::results::tests::results;
    use crate::results::{Fabric, Results};

    /// The same with one figure of one variant changed by a factor.
    fn changed(mut results: Results, variant: &str, figure: &str, factor: f64) -> Results {
        for sample in results.samples.iter_mut().filter(|sample| sample.variant == variant) {
            sample.figures.entry(figure.to_owned()).and_modify(|value| *value *= factor);
        }
        results
    }

    #[test]
    fn a_run_compared_with_itself_is_as_before() {
        let comparison = compare(&rich(), &rich()).expect("they are alike");
        assert_eq!((comparison.count(Verdict::Worse), comparison.count(Verdict::Better)), (0, 0));
        assert!(comparison.count(Verdict::Same) > 100, "{}", comparison.count(Verdict::Same));
        assert!(comparison.only_before.is_empty() && comparison.only_after.is_empty());
        assert!(comparison.warnings.is_empty(), "{:?}", comparison.warnings);
    }

    #[test]
    fn latency_that_grows_beyond_its_range_is_worse_and_a_rate_that_grows_is_better() {
        let grown = changed(rich(), "ebpf", figure::LATENCY_P50, 1.2);
        let comparison = compare(&rich(), &grown).expect("they are alike");
        let worse: Vec<_> =
            comparison.changes.iter().filter(|change| change.verdict == Verdict::Worse).collect();
        assert!(!worse.is_empty());
        assert!(worse.iter().all(|change| change.variant == "ebpf" && change.figure == figure::LATENCY_P50));
        let grown = changed(rich(), "wire", figure::THROUGHPUT, 1.2);
        let comparison = compare(&rich(), &grown).expect("they are alike");
        assert_eq!((comparison.count(Verdict::Worse), comparison.count(Verdict::Better)), (0, 2));
    }

    #[test]
    fn what_stays_within_the_range_or_within_five_percent_is_noise() {
        // 5, 10, 6: a quarter more is still among them.
        let wide = changed(results(), "routed", figure::LATENCY_P50, 1.25);
        let comparison = compare(&results(), &wide).expect("they are alike");
        assert_eq!(comparison.count(Verdict::Worse), 0, "{comparison:?}");
        let little = changed(rich(), "ebpf", figure::LATENCY_P50, 1.045);
        assert_eq!(compare(&rich(), &little).expect("they are alike").count(Verdict::Worse), 0);
    }

    #[test]
    fn costs_and_verified_instructions_are_judged_and_retransmits_are_not() {
        let mut after = rich();
        after.costs[0].median_ns *= 1.3;
        after.costs[0].quiet_ns *= 1.3;
        after.programs[0].verified *= 2;
        let with = |results: Results| {
            let mut results = results;
            results.samples[0].figures.insert("retransmits".to_owned(), 7.0);
            results
        };
        let mut after = with(after);
        after.samples[0].figures.insert("retransmits".to_owned(), 700.0);
        let comparison = compare(&with(rich()), &after).expect("they are alike");
        assert_eq!(comparison.count(Verdict::Worse), 2);
        assert_eq!(comparison.count(Verdict::Unjudged), 1);
    }

    #[test]
    fn what_only_one_has_and_what_differs_about_the_runs_is_said() {
        let mut after = rich();
        after.samples.retain(|sample| sample.variant != "wire");
        after.machine.cpu = "Another".to_owned();
        after.machine.commit = "fedcba".to_owned();
        after.fabric = Fabric::Switch;
        after.noise.push("it was noisy".to_owned());
        let comparison = compare(&rich(), &after).expect("they are alike");
        assert!(comparison.only_before.iter().all(|what| what.starts_with("wire: ")));
        assert!(!comparison.only_before.is_empty() && comparison.only_after.is_empty());
        let said = comparison.warnings.join("\n");
        for part in [
            "machines differ",
            "commits differ",
            "another fabric: a bridge and a switch",
            "second run is invalid: it was noisy",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(
            comparison
                .table(Paint::default())
                .contains("\nonly in the first: wire: TCP_RR, other node, 1 B\n")
        );
    }

    #[test]
    fn runs_that_share_nothing_cannot_be_compared() {
        let error = compare(&results(), &Results { suite: "scale".to_owned(), ..Results::default() });
        assert!(error.expect_err("one is empty").to_string().contains("suite scale"));
    }
}
