//! What has been measured so far, so that a run that was interrupted can go on.
//!
//! A file of lines beside the results: first what the run is, then each sample as soon as it is taken, and behind each
//! round that it is over; last what was measured beside the samples. The last line may be torn, if the process ended
//! while it wrote. Only whole rounds are gone on with: what is compared within a round must have been measured in turn,
//! and not on two days.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::matrix::Suite;
use crate::report::words::title;
use crate::results::{Fabric, Machine, Point, Sample, VERSION};

/// What a run is: samples of another one are no part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    version: u32,
    suite: String,
    variants: Vec<String>,
    points: Vec<Point>,
    rounds: usize,
    seed: u64,
    time_s: f64,
    fabric: Fabric,
    /// As it was when the run began.
    machine: Machine,
}

/// What of a [`Head`] every version has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Why there is no journal, or no going on with one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("cannot {tried} the journal {}: {source}", path.display())]
    Io {
        /// What was tried.
        tried: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line that was not written here.
    #[error("cannot read line {line} of the journal {}: {source}; remove it to begin anew", path.display())]
    Line {
        /// Which.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Where in it, and what.
        source: serde_json::Error,
    },
    /// It is another run's.
    #[error("cannot go on with the journal {}: its {what} is {there}, and this run's is {here}; leave out --resume to begin anew", path.display())]
    Another {
        /// Which.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// In the journal.
        there: String,
        /// Now.
        here: String,
    },
}

/// What a run, or a part of it, has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// See [`Machine::took_s`].
    pub took_s: f64,
    /// See [`Machine::steal_percent`].
    pub steal_percent: f64,
}

impl Spent {
    /// Both parts together.
    pub fn and(self, other: Self) -> Self {
        let took_s = self.took_s + other.took_s;
        let stolen = self.took_s * self.steal_percent + other.took_s * other.steal_percent;
        Self { took_s, steal_percent: if took_s > 0.0 { stolen / took_s } else { 0.0 } }
    }
}

/// A line behind the first.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line<S> {
    Sample(S),
    /// What was measured beside the samples, and what of it.
    Part(String, serde_json::Value),
    /// A round, or such a part, is over: what all of the run has taken until then.
    Round(Spent),
}

/// The samples that were taken, and where the next are noted.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<(PathBuf, File)>,
    machine: Option<Machine>,
    samples: Vec<Sample>,
    parts: BTreeMap<String, serde_json::Value>,
    spent: Spent,
}

impl Head {
    /// Of a run that begins on this machine.
    pub fn new(suite: &Suite, machine: Machine) -> Self {
        let Suite { name, variants, rounds, seed, time, fabric, .. } = suite;
        Self {
            version: VERSION,
            suite: (*name).to_owned(),
            variants: variants.iter().map(ToString::to_string).collect(),
            points: suite.runs().map(|run| run.point()).collect(),
            rounds: *rounds,
            seed: *seed,
            time_s: time.as_secs_f64(),
            fabric: *fabric,
            machine,
        }
    }

    /// What makes it another run than this, if something does: its name, there and here. The load is not compared, nor
    /// when it began.
    fn differs(&self, here: &Self) -> Option<(&'static str, String, String)> {
        let others = |of: &Self, than: &Self| {
            let others = of.points.iter().filter(|point| !than.points.contains(point)).map(title);
            let others: Vec<_> = others.collect();
            if others.is_empty() { "no others".to_owned() } else { others.join("; ") }
        };
        let facts = |head: &Self| {
            let Machine { kernel, cpu, cpus, memory_bytes, commit, .. } = &head.machine;
            [
                ("suite", head.suite.clone()),
                ("list of dataplanes", head.variants.join(", ")),
                ("number of rounds", head.rounds.to_string()),
                ("seed", head.seed.to_string()),
                ("time of a measurement", format!("{} s", head.time_s)),
                ("fabric", head.fabric.to_string()),
                ("kernel", kernel.clone()),
                ("machine", format!("{cpus} x {cpu}, {memory_bytes} bytes")),
                ("commit", commit.clone()),
            ]
        };
        let pairs = facts(self).into_iter().zip(facts(here));
        let points = [("list of points", others(self, here), others(here, self))];
        let points = points.into_iter().filter(|_| self.points != here.points);
        let facts = pairs.map(|((what, there), (_, here))| (what, there, here));
        facts.filter(|(_, there, here)| there != here).chain(points).next()
    }
}

impl Journal {
    /// The journal of a file of results.
    pub fn beside(results: &Path) -> PathBuf {
        let mut name = results.as_os_str().to_owned();
        name.push(".journal");
        name.into()
    }

    /// A new one; what was there is gone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(path: &Path, head: &Head) -> Result<Self, Error> {
        let file = File::create(path).map_err(failed("write", path))?;
        let mut journal = Self { file: Some((path.to_owned(), file)), ..Self::default() };
        journal.note(head)?;
        Ok(journal)
    }

    /// The one that is there, to go on with; a new one, if there is none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn resume(path: &Path, head: &Head) -> Result<Self, Error> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::begin(path, head),
            Err(error) => return Err(failed("read", path)(error)),
        };
        // What has no end was not written to its end.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut lines = text[..whole].split_inclusive(|byte| *byte == b'\n').enumerate();
        let mut end = 0;
        let wrong = |at: usize| move |source| Error::Line { path: path.to_owned(), line: at + 1, source };
        let Some((_, first)) = lines.next() else { return Self::begin(path, head) };
        let Version { version } = serde_json::from_slice(first).map_err(wrong(0))?;
        if version != VERSION {
            let (there, here) = (version.to_string(), VERSION.to_string());
            return Err(Error::Another { path: path.to_owned(), what: "format", there, here });
        }
        let there: Head = serde_json::from_slice(first).map_err(wrong(0))?;
        end += first.len();
        if let Some((what, there, here)) = there.differs(head) {
            return Err(Error::Another { path: path.to_owned(), what, there, here });
        }
        let (mut samples, mut parts, mut spent) = (Vec::new(), BTreeMap::new(), Spent::default());
        let (mut known, mut kept, mut part) = (end, 0, None);
        for (at, line) in lines {
            end += line.len();
            match serde_json::from_slice(line).map_err(wrong(at))? {
                Line::Sample(sample) => samples.push(sample),
                Line::Part(what, measured) => part = Some((what, measured)),
                Line::Round(until) => {
                    (spent, known, kept) = (until, end, samples.len());
                    parts.extend(part.take());
                }
            }
        }
        samples.truncate(kept);
        let file = OpenOptions::new().append(true).open(path).map_err(failed("write", path))?;
        file.set_len(known as u64).map_err(failed("write", path))?;
        Ok(Self { file: Some((path.to_owned(), file)), machine: Some(there.machine), samples, parts, spent })
    }

    /// What the earlier parts of the run have taken.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// The machine as it was when the run began, if that was earlier.
    pub fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// The sample of an earlier part of the run, if it was taken then.
    pub fn sample(&self, variant: &str, point: &Point, round: usize) -> Option<&Sample> {
        self.samples.iter().find(|it| it.round == round && it.variant == variant && it.point == *point)
    }

    /// Whether an earlier part of the run has been through this round of a point. Who has no sample of it then could
    /// not be measured: to do so now would put it beside what others did at another time.
    pub fn is_over(&self, point: &Point, round: usize) -> bool {
        self.samples.iter().any(|it| it.round == round && it.point == *point)
    }

    /// What an earlier part of the run has measured beside the samples, if it has.
    pub fn part<T: DeserializeOwned>(&self, what: &str) -> Option<T> {
        // What cannot be read as that is measured again.
        serde_json::from_value(self.parts.get(what)?.clone()).ok()
    }

    /// Notes what was measured beside the samples: [`Self::end_round`] says that this is all of it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add_part(&mut self, what: &str, measured: &impl Serialize) -> Result<(), Error> {
        self.note(&Line::<&Sample>::Part(what.to_owned(), serde_json::json!(measured)))
    }

    /// Notes a sample.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, sample: &Sample) -> Result<(), Error> {
        self.note(&Line::Sample(sample))
    }

    /// Notes that a round is over, and what all of the run has taken until now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn end_round(&mut self, spent: Spent) -> Result<(), Error> {
        self.note(&Line::<&Sample>::Round(spent))
    }

    fn note(&mut self, line: &impl Serialize) -> Result<(), Error> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let text = serde_json::to_string(line).map_err(|error| failed("write", path)(error.into()))?;
        writeln!(file, "{text}").map_err(failed("write", path))
    }

    /// It is not needed any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn end(self) -> Result<(), Error> {
        let Some((path, _)) = self.file else { return Ok(()) };
        fs::remove_file(&path).map_err(failed("remove", &path))
    }
}

fn failed(tried: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { tried, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Program;
    use crate::results::tests::results;

    fn head() -> Head {
        Head::new(&Suite::quick(), Machine { cpus: 2, ..Machine::default() })
    }

    /// A journal with these lines of six samples, two a round, and what is behind them.
    fn written(samples: usize, torn: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = Journal::beside(&folder.path().join("results.json"));
        let mut journal = Journal::begin(&path, &head()).expect("a folder of our own");
        for (at, sample) in results().samples.iter().take(samples).enumerate() {
            journal.add(sample).expect("as before");
            if at % 2 == 1 {
                journal.end_round(Spent { took_s: at as f64, steal_percent: 2.0 }).expect("as before");
            }
        }
        let text = fs::read_to_string(&path).expect("it was written") + torn;
        fs::write(&path, text).expect("as before");
        (folder, path)
    }

    #[test]
    fn a_run_goes_on_behind_the_last_whole_round() {
        let all = results().samples;
        let torn = r#"{"sample":{"variant":"routed","point":{"work"#;
        let (_folder, path) = written(3, torn);
        let mut journal = Journal::resume(&path, &head()).unwrap_or_else(|error| panic!("{error}"));
        let taken = |journal: &Journal, at: usize| {
            let Sample { variant, point, round, .. } = &all[at];
            journal.sample(variant, point, *round).cloned()
        };
        assert_eq!((taken(&journal, 1), taken(&journal, 2)), (Some(all[1].clone()), None));
        assert_eq!(journal.spent(), Spent { took_s: 1.0, steal_percent: 2.0 });
        assert!(journal.is_over(&all[0].point, all[0].round) && !journal.is_over(&all[0].point, 9));
        journal.add(&all[2]).expect("as before");
        journal.end_round(Spent::default()).expect("as before");
        let journal = Journal::resume(&path, &head()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            taken(&journal, 2),
            Some(all[2].clone()),
            "what was torn is gone, and what follows is whole"
        );
        journal.end().expect("it is there");
        assert!(!path.exists());
    }

    #[test]
    fn what_was_measured_beside_the_samples_is_not_measured_again() {
        let (_folder, path) = written(2, "");
        let mut journal = Journal::resume(&path, &head()).unwrap_or_else(|error| panic!("{error}"));
        let programs = vec![Program { name: "from_pod".to_owned(), verified: 7, ..Program::default() }];
        assert_eq!(journal.part::<Vec<Program>>("its programs"), None);
        journal.add_part("its programs", &programs).expect("as before");
        journal.end_round(Spent { took_s: 5.0, steal_percent: 0.0 }).expect("as before");
        // What is behind it is torn.
        journal.add_part("the cost of a packet", &programs).expect("as before");
        let journal = Journal::resume(&path, &head()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(journal.part("its programs"), Some(programs));
        assert_eq!(journal.part::<Vec<Program>>("the cost of a packet"), None);
        assert_eq!((journal.samples.len(), journal.spent().took_s), (2, 5.0));
        assert_eq!(journal.part::<Vec<u8>>("its programs"), None, "it is something else");
    }

    #[test]
    fn a_journal_torn_in_its_first_line_begins_anew() {
        let (_folder, path) = written(0, "");
        fs::write(&path, "{\"version\":2,").expect("as before");
        let journal = Journal::resume(&path, &head()).unwrap_or_else(|error| panic!("{error}"));
        assert!(journal.samples.is_empty() && journal.machine().is_none());
        let again = Journal::resume(&path, &head()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again.machine().map(|it| it.cpus), Some(2));
    }

    #[test]
    fn a_journal_of_another_version_is_refused_by_that_whatever_else_it_has() {
        let (_folder, path) = written(0, "");
        fs::write(&path, "{\"version\":1,\"suite\":\"quick\"}\n").expect("as before");
        let error = Journal::resume(&path, &head()).expect_err("it is another format").to_string();
        assert!(error.contains("its format is 1, and this run's is 2"), "{error}");
    }

    #[test]
    fn another_suite_seed_or_machine_is_refused_by_name() {
        let (_folder, path) = written(1, "");
        let other = |change: fn(&mut Head)| {
            let mut head = head();
            change(&mut head);
            Journal::resume(&path, &head).expect_err("it is another run").to_string()
        };
        assert!(
            other(|head| head.suite = "scale".to_owned())
                .contains("its suite is quick, and this run's is scale")
        );
        assert!(other(|head| head.seed = 7).contains("its seed is 1"));
        assert!(other(|head| head.rounds = 9).contains("its number of rounds is 5, and this run's is 9"));
        assert!(other(|head| drop(head.variants.pop())).contains("its list of dataplanes is ebpf, "));
        let fewer = other(|head| drop(head.points.pop()));
        assert!(
            fewer.contains("its list of points is UDP_STREAM, other node, 64 B, and this run's is no others")
        );
        assert!(other(|head| head.machine.cpus = 64).contains("its machine is 2 x"));
        let later = Head { machine: Machine { load: 9.0, began_s: 9, ..head().machine }, ..head() };
        assert!(Journal::resume(&path, &later).is_ok(), "the same machine, at another time");
    }

    #[test]
    fn what_two_parts_of_a_run_have_taken_is_added_and_what_was_stolen_weighed_by_it() {
        let part = |took_s, steal_percent| Spent { took_s, steal_percent };
        assert_eq!(part(30.0, 4.0).and(part(10.0, 0.0)), part(40.0, 3.0));
        assert_eq!(Spent::default().and(Spent::default()), Spent::default());
    }

    #[test]
    fn a_line_that_is_none_of_ours_is_named() {
        let (_folder, path) = written(1, "nonsense\n");
        let error = Journal::resume(&path, &head()).expect_err("nonsense");
        assert!(error.to_string().contains("line 3"), "{error}");
        let (_folder, path) = written(2, "{}\n");
        let error = Journal::resume(&path, &head()).expect_err("neither a sample nor a round's end");
        assert!(error.to_string().contains("line 5"), "{error}");
    }
}
