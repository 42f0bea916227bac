//! What was measured: the contract between those who measure and those who tell.
//!
//! A file of results is [`Results`] as JSON. It has the raw figures of every round, never ratios alone, so that
//! whoever reads it can ask something else of it than we did.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The version of the format: another one is refused.
pub const VERSION: u32 = 2;

/// Where the time of a stage was found out: in the kernel's test run, and on a live cluster.
pub const TEST_RUN: &str = "test-run";
/// See [`TEST_RUN`].
pub const LIVE: &str = "live";

/// What joins the nodes of every variant. What lies between them is none of a dataplane's, and hides what is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fabric {
    /// The kernel's bridge, behind a queue for each of its ports.
    #[default]
    Bridge,
    /// A program that hands each frame to the other node's uplink at once.
    Switch,
}

impl fmt::Display for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bridge => "bridge",
            Self::Switch => "switch",
        })
    }
}

/// Everything of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// [`VERSION`].
    pub version: u32,
    /// The suite's name.
    pub suite: String,
    /// What chance in it follows from.
    pub seed: u64,
    /// How often a point was measured; some were more often, or less: see [`Results::rounds_of`].
    pub rounds: usize,
    /// How long each time, in seconds.
    pub time_s: f64,
    /// What joins the nodes.
    pub fabric: Fabric,
    /// Where, and what it was like meanwhile.
    pub machine: Machine,
    /// Why the run is invalid; empty if it is valid.
    pub noise: Vec<String>,
    /// Variants that could not be measured.
    pub absent: Vec<Absent>,
    /// In the order they were taken.
    pub samples: Vec<Sample>,
    /// What a packet costs in the kernel's test run.
    pub costs: Vec<Cost>,
    /// What of that each stage of the path costs.
    pub stages: Vec<Stage>,
    /// What the verifier says of each program.
    pub programs: Vec<Program>,
}

/// A machine, and what it was like while it was measured on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// As the CPU calls itself.
    pub cpu: String,
    /// How many there are.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The commit that was measured, if it is known; `-dirty` behind it if there was more than that.
    pub commit: String,
    /// When it began, in seconds since 1970.
    pub began_s: u64,
    /// How long it took.
    pub took_s: f64,
    /// CPU time that the machine's host took away meanwhile.
    pub steal_percent: f64,
    /// Threads that wanted a CPU in the minute before it began (`/proc/loadavg`).
    pub load: f64,
}

/// A variant that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// Its name.
    pub variant: String,
    /// What stood against it.
    pub why: String,
}

/// What is asked of a variant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The kind of traffic, by netperf's name where it has one: `TCP_RR`, `UDP_RR`, `TCP_CRR`, `TCP_STREAM`,
    /// `UDP_STREAM`, `FIRST_PACKET`; or what is done to the variant itself: `PROGRAM` (everything, into an empty
    /// node), `UPDATE` (one endpoint), `MEMORY`, `BOOT`; or `FORWARD` (frames pushed through it as fast as they go).
    pub workload: String,
    /// Which way: `same-node`, `other-node`, `service`, `node-port`, `world`; or `memory` where no link is passed.
    pub way: String,
    /// Bytes of a request, an answer or a datagram; 0 where a stream is filled.
    pub size_bytes: usize,
    /// Side by side.
    pub connections: usize,
    /// Services that the cluster has.
    pub services: usize,
    /// Policies that it has.
    pub policies: usize,
    /// Flows that are open beside those that are measured, or that frames are of.
    pub flows: usize,
    /// Requests that are offered per second, whether or not the one before is answered: latencies count from the
    /// moment that a request was due. 0 where the next one follows the last.
    pub rate_per_s: u64,
}

/// One measurement of one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// The dataplane, and after a slash what differs from its default: `chains`, `chains/plain`.
    pub variant: String,
    /// What was asked of it.
    pub point: Point,
    /// Counted from 0.
    pub round: usize,
    /// Its figures by name, the unit last: `latency_us_p50`, `throughput_gbit_per_s`.
    pub figures: BTreeMap<String, f64>,
    /// The distribution of its latencies, where it has some: parts (0 to 1) and microseconds, both ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latencies_us: Vec<(f64, f64)>,
}

/// What a packet costs in the kernel's test run (`BPF_PROG_TEST_RUN`), without what restores it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Of what program.
    pub program: String,
    /// What kind of packet, in a few words: `egress to a Service`.
    pub packet: String,
    /// Flows that take turns.
    pub flows: u32,
    /// Nanoseconds a packet: the median of the runs.
    pub median_ns: f64,
    /// What nine of ten runs exceed.
    pub quiet_ns: f64,
}

impl Cost {
    /// Between the two figures, around the median. What restores the packet is taken off each by itself, so the quiet one
    /// may be the higher.
    pub fn spread(&self) -> Spread {
        let (median, quiet) = (self.median_ns, self.quiet_ns);
        Spread { median, min: median.min(quiet), max: median.max(quiet) }
    }
}

/// What one stage of the path adds for a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Of what kind of packet: as [`Cost::packet`]; of a live one, its traffic and the hook that it came to.
    pub packet: String,
    /// How it was found out: [`TEST_RUN`] or [`LIVE`].
    pub source: String,
    /// Which, by the words of [`dataplane::trace::Lap`].
    pub stage: String,
    /// Nanoseconds. Those of all stages of a packet come to what it costs, so what is left for the `rest` may be less
    /// than nothing.
    pub ns: f64,
    /// As [`Cost::flows`]; 0 of a live one.
    pub flows: u32,
}

/// What the verifier says of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that it is made of.
    pub instructions: u64,
    /// Instructions that the verifier followed; it gives up at a million.
    pub verified: u64,
    /// States that it kept, at most at a time and in all.
    pub peak_states: u64,
    /// See `peak_states`.
    pub total_states: u64,
    /// Bytes of stack along the deepest chain of calls; 512 are allowed.
    pub stack_bytes: u64,
    /// How long it took to load, in microseconds.
    pub load_us: u64,
}

/// A figure of a variant over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// Why a file is no file of results.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("cannot {tried} {}: {source}", path.display())]
    Io {
        /// What was tried: `read` or `write`.
        tried: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is something else, or of a version that had other fields.
    #[error("cannot read {}: {source}; is it what `podpath bench --out` wrote?", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// Where, and what.
        source: serde_json::Error,
    },
    /// Another version.
    #[error(
        "cannot read {}: its format is version {found}, and this podpath knows version {VERSION}; measure again, or \
         read it with the podpath that wrote it", path.display()
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl Results {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let text = fs::read_to_string(path).map_err(|source| Error::Io {
            tried: "read",
            path: path.to_owned(),
            source,
        })?;
        let wrong = |source| Error::Format { path: path.to_owned(), source };
        let Head { version } = serde_json::from_str(&text).map_err(wrong)?;
        if version != VERSION {
            return Err(Error::Version { path: path.to_owned(), found: version });
        }
        serde_json::from_str(&text).map_err(wrong)
    }

    /// Writes a file whole, or leaves the one that is there: each sample on a line of its own.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Io { tried: "write", path: path.to_owned(), source };
        let text = self.text().map_err(|error| failed(error.into()))?;
        let beside = path.with_extension("part");
        fs::write(&beside, text).map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)
    }

    fn text(&self) -> serde_json::Result<String> {
        let samples = self.samples.iter().map(|sample| Ok(format!("    {}", serde_json::to_string(sample)?)));
        let samples = samples.collect::<serde_json::Result<Vec<_>>>()?.join(",\n");
        let rest = serde_json::to_string_pretty(&Self { samples: Vec::new(), ..self.clone() })?;
        let lines = if samples.is_empty() { "[]".to_owned() } else { format!("[\n{samples}\n  ]") };
        Ok(rest.replacen("\n  \"samples\": [],", &format!("\n  \"samples\": {lines},"), 1) + "\n")
    }

    /// Every point, in the order they were first taken.
    pub fn points(&self) -> Vec<&Point> {
        let mut points: Vec<&Point> = Vec::new();
        for sample in &self.samples {
            if !points.contains(&&sample.point) {
                points.push(&sample.point);
            }
        }
        points
    }

    /// All samples of the block that a point was measured in, whose variants and points took turns with it: within a
    /// block rounds never go back. Of no other block's rounds can it be said how the machine was in this one's.
    pub fn beside(&self, point: &Point) -> &[Sample] {
        let Some(at) = self.samples.iter().position(|sample| sample.point == *point) else { return &[] };
        let ascend = |pair: &[Sample]| pair[0].round <= pair[1].round;
        let before = self.samples[..=at].windows(2).rev().take_while(|pair| ascend(pair)).count();
        let behind = self.samples[at..].windows(2).take_while(|pair| ascend(pair)).count();
        &self.samples[at - before..=at + behind]
    }

    /// How often a variant was measured at a point.
    pub fn rounds_of(&self, variant: &str, point: &Point) -> usize {
        let own = self.samples.iter().filter(|sample| sample.variant == variant && sample.point == *point);
        own.map(|sample| sample.round + 1).max().unwrap_or_default()
    }

    /// Every variant, in the order they were first taken.
    pub fn variants(&self) -> Vec<&str> {
        let mut variants: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if !variants.contains(&sample.variant.as_str()) {
                variants.push(&sample.variant);
            }
        }
        variants
    }

    /// A figure of a variant over the rounds, if it was measured.
    pub fn spread(&self, variant: &str, point: &Point, figure: &str) -> Option<Spread> {
        Spread::of(self.rounds(variant, point, figure).into_values().collect())
    }

    /// The same, as ratio to another variant in the same round: `(variant, point)` to `(variant, point)`.
    pub fn ratio(&self, own: (&str, &Point), yardstick: (&str, &Point), figure: &str) -> Option<Spread> {
        let measure = self.rounds(yardstick.0, yardstick.1, figure);
        let paired = self.rounds(own.0, own.1, figure).into_iter().filter_map(|(round, value)| {
            let measure = measure.get(&round).copied().filter(|measure| *measure > 0.0);
            measure.map(|measure| value / measure)
        });
        Spread::of(paired.collect())
    }

    fn rounds(&self, variant: &str, point: &Point, figure: &str) -> BTreeMap<usize, f64> {
        let own = self.samples.iter().filter(|sample| sample.variant == variant && sample.point == *point);
        own.filter_map(|sample| Some((sample.round, *sample.figures.get(figure)?))).collect()
    }
}

impl Spread {
    /// Of any numbers, if there are some.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let even = values.len().is_multiple_of(2);
        let median = if even { (values[half - 1] + values[half]) / 2.0 } else { values[half] };
        Some(Self { median, min, max })
    }

    /// From the lowest to the highest, in percent of the median.
    pub fn percent(self) -> f64 {
        if self.median > 0.0 { 100.0 * (self.max - self.min) / self.median } else { 0.0 }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One TCP connection to a pod of another node.
    pub(crate) fn point() -> Point {
        Point {
            workload: "TCP_RR".to_owned(),
            way: "other-node".to_owned(),
            size_bytes: 1,
            connections: 1,
            services: 1,
            policies: 1,
            flows: 1,
            rate_per_s: 0,
        }
    }

    /// Three rounds of two variants, without any machine.
    pub(crate) fn results() -> Results {
        let mut samples = Vec::new();
        for (round, (routed, chains)) in [(5.0, 50.0), (10.0, 60.0), (6.0, 90.0)].into_iter().enumerate() {
            for (variant, value) in [("routed", routed), ("chains", chains)] {
                let figures = [("latency_us_p50", value), ("latency_us_p99", 2.0 * value)];
                let figures = figures.map(|(name, value)| (name.to_owned(), value)).into();
                let latencies_us = vec![(0.5, value), (0.99, 2.0 * value)];
                samples.push(Sample {
                    variant: variant.to_owned(),
                    point: point(),
                    round,
                    figures,
                    latencies_us,
                });
            }
        }
        let absent = vec![Absent { variant: "ebpf".to_owned(), why: "no object".to_owned() }];
        Results { version: VERSION, rounds: 3, absent, samples, ..Results::default() }
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_not_of_medians() {
        let (results, point) = (results(), point());
        let ratio = results.ratio(("chains", &point), ("routed", &point), "latency_us_p50");
        assert_eq!(ratio, Some(Spread { median: 10.0, min: 6.0, max: 15.0 }));
    }

    #[test]
    fn a_block_ends_where_rounds_begin_again() {
        let (mut results, other) = (results(), Point { services: 1000, ..point() });
        let again = results.samples.clone();
        results.samples.extend(again.into_iter().map(|it| Sample { point: other.clone(), ..it }));
        assert!(results.beside(&point()).iter().all(|sample| sample.point == point()));
        assert_eq!([results.beside(&point()).len(), results.beside(&other).len()], [6, 6]);
        assert!(results.beside(&Point { flows: 7, ..other }).is_empty());
    }

    #[test]
    fn what_was_not_measured_has_no_figures() {
        let (results, point) = (results(), point());
        assert_eq!(results.spread("wire", &point, "latency_us_p50"), None);
        assert_eq!(results.spread("chains", &point, "lost"), None);
        assert_eq!(results.variants(), ["routed", "chains"]);
        assert_eq!(results.points(), [&point]);
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_another_version_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("results.json");
        let mut results = results();
        results.write(&path).expect("a folder of our own");
        assert_eq!(Results::read(&path).expect("what was written"), results);
        let text = fs::read_to_string(&path).expect("as before");
        let samples = text.lines().filter(|line| line.starts_with("    {\"variant\"")).count();
        assert_eq!(samples, results.samples.len(), "{text}");
        results.version = 7;
        results.write(&path).expect("as before");
        let error = Results::read(&path).expect_err("there is no such version");
        assert!(error.to_string().contains("version 7"), "{error}");
        // As the first version began: another version is what is told of it, and not that it lacks fields.
        fs::write(&path, r#"{"version":1,"suite":"quick"}"#).expect("as before");
        let error = Results::read(&path).expect_err("it is of another version").to_string();
        assert!(error.contains("its format is version 1, and this podpath knows version 2"), "{error}");
    }
}
