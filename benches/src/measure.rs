//! How it is measured.
//!
//! All variants stand side by side, so that they share the machine's moods: in every round each is measured
//! once, in an order drawn from the seed, and every other round goes through it backwards. What is compared is a
//! variant and `routed` in the same round; of the rounds' ratios the median is told, with the lowest and the highest.
//!
//! Everything that a packet needs runs on CPU 0, for every variant: client, server, what the kernel does for packets
//! behind them, and the threads of dataplanes that live in this process. So a figure is what the whole path costs one
//! CPU, and no wake-up of another CPU hides it. Where [`Run::spreads`] says so the server has another CPU, and
//! dataplanes' threads run on any.
//!
//! A measurement during which the machine's host took much of the CPU time is done again, a few times; of those the
//! least disturbed counts. What is left of noise is told in [`Results::noise`], and the run is invalid then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use testbed::dataplane::chains::walk::Dice;
use testbed::dataplane::{self, Name, Up};
use testbed::traffic::Ticks;
use userspace::engine::kernel::switch::Switch;
use userspace::model;

use crate::affinity::{self, Held};
use crate::journal::{self, Journal, Spent};
use crate::matrix::{Run, Sizes, Suite, Variant};
use crate::report::words::title;
use crate::results::{Absent, Fabric, Point, Program, Results, Sample, Stage, VERSION};
use crate::{cluster, machine, noise, path, programs, rules, sample, stages};

/// After this, flows that are only open are used once, so that nobody forgets them: less than the shortest time that a
/// kernel's connection tracking remembers a datagram for (30 s).
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How often a measurement is done again, because too much CPU time was stolen meanwhile.
pub(crate) const REPEATS: usize = 2;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The built-in cluster.
    #[error("cannot read the built-in cluster: {0}")]
    Cluster(#[from] model::Error),
    /// No variant at all.
    #[error("nothing could be measured: {}", whys(.0))]
    None(Vec<Absent>),
    /// Traffic that did not pass.
    #[error("cannot measure {workload} on {dataplane}: {source}")]
    Traffic {
        /// The variant.
        dataplane: Name,
        /// The workload.
        workload: crate::matrix::Workload,
        /// What went wrong.
        source: sample::Error,
    },
    /// Clusters that are still there.
    #[error(transparent)]
    Left(#[from] Left),
    /// A cluster that was to be measured by itself.
    #[error("cannot build a cluster: {0}")]
    Build(#[from] dataplane::Error),
    /// What was to join the nodes of every variant.
    #[error(transparent)]
    Apart(#[from] Apart),
    /// Where threads run.
    #[error(transparent)]
    Affinity(#[from] affinity::Error),
    /// What was measured could not be noted.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// By the user.
    #[error("interrupted")]
    Interrupted,
}

/// Why the nodes of a cluster could not be joined.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot join nodes by a switch: {0}; measure on the kernel's bridge from the beginning, with --fabric bridge"
)]
pub struct Apart(#[source] userspace::engine::kernel::Error);

/// Clusters that could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{}could not remove {}", .during.as_ref().map(|error| format!("{error}; and ")).unwrap_or_default(), .clusters.join("; "))]
pub struct Left {
    /// What had gone wrong before.
    pub during: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// Each cluster that is left, why, and how to remove it.
    pub clusters: Vec<String>,
}

fn whys(absent: &[Absent]) -> String {
    absent.iter().map(|absent| format!("{}: {}", absent.variant, absent.why)).collect::<Vec<_>>().join("; ")
}

/// Builds all variants, measures them, and removes them, whatever happens. What the journal has is not measured again.
/// `stop` ends it early; `said` is told what is going on. A variant that cannot be asked something is left out of it,
/// and named.
///
/// # Errors
/// [`Error`]. Nothing is left then, if not said otherwise.
pub fn compare(
    suite: &Suite,
    journal: &mut Journal,
    stop: &AtomicBool,
    said: &mut dyn FnMut(&str),
) -> Result<Results, Error> {
    let mut facts = journal.machine().cloned().unwrap_or_else(machine::now);
    let mut session = Session::new(suite, journal, stop, said)?;
    for block in &suite.blocks {
        session.block(block)?;
    }
    let programs = session.programs()?;
    let path::Costs { costs, stages } = session.costs()?;
    let spent = session.spent();
    let Session { samples, absent, .. } = session;
    if samples.is_empty() {
        return Err(Error::None(absent));
    }
    (facts.took_s, facts.steal_percent) = (spent.took_s, spent.steal_percent);
    let mut results = Results {
        version: VERSION,
        suite: suite.name.to_owned(),
        seed: suite.seed,
        rounds: suite.rounds,
        time_s: suite.time.as_secs_f64(),
        fabric: suite.fabric,
        machine: facts,
        absent,
        samples,
        costs,
        stages,
        programs,
        ..Results::default()
    };
    results.noise = noise::of(&results);
    Ok(results)
}

/// A comparison under way.
struct Session<'a> {
    suite: &'a Suite,
    journal: &'a mut Journal,
    stop: &'a AtomicBool,
    said: &'a mut dyn FnMut(&str),
    held: Held,
    samples: Vec<Sample>,
    absent: Vec<Absent>,
    /// Samples that are still to be taken, and how long those took that are.
    left: usize,
    taken: usize,
    spent: Duration,
    /// What earlier parts of the run have taken, and when this one began.
    earlier: Spent,
    begin: (Instant, Ticks),
}

/// A variant's cluster that is up.
struct Stand {
    variant: Variant,
    sizes: Sizes,
    up: Up,
    /// What joins its nodes, where that is no bridge: there for as long as this is.
    switch: Option<Switch>,
    /// When the flows that are only open were last used.
    used: Option<Instant>,
    /// Ports that first packets may still come from.
    unused: sample::Unused,
}

impl<'a> Session<'a> {
    fn new(
        suite: &'a Suite,
        journal: &'a mut Journal,
        stop: &'a AtomicBool,
        said: &'a mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let mut session = Self {
            earlier: journal.spent(),
            begin: (Instant::now(), Ticks::now()),
            suite,
            journal,
            stop,
            said,
            held: Held::new()?,
            samples: Vec::new(),
            absent: Vec::new(),
            left: 0,
            taken: 0,
            spent: Duration::ZERO,
        };
        session.left = suite.runs().map(|run| session.missing(run).count()).sum();
        for variant in &suite.variants {
            session.leave_out_what_it_lacks(*variant);
        }
        Ok(session)
    }

    /// What the run has taken until now, earlier parts of it included.
    fn spent(&self) -> Spent {
        let (begin, before) = self.begin;
        let steal_percent = Ticks::now().since(before).steal_percent();
        self.earlier.and(Spent { took_s: begin.elapsed().as_secs_f64(), steal_percent })
    }

    /// The samples of a run that are neither taken nor out of the question.
    fn missing(&self, run: &Run) -> impl Iterator<Item = (Variant, usize)> {
        let (run, point) = (*run, run.point());
        let can = self.suite.variants.iter().filter(move |variant| variant.lacks(&run).is_none());
        let rounds = move |variant| 0..run.rounds(variant, self.suite.rounds);
        can.flat_map(move |variant| rounds(*variant).map(move |round| (*variant, round)))
            .filter(move |(_, round)| !self.journal.is_over(&point, *round))
    }

    /// One entry for each reason, with all that it is the reason for.
    fn leave_out_what_it_lacks(&mut self, variant: Variant) {
        let mut lacks: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for run in self.suite.runs() {
            if let Some(why) = variant.lacks(run) {
                let what = if run.is_traffic() { run.way.to_string() } else { run.workload.to_string() };
                lacks.entry(why).or_default().insert(what);
            }
        }
        for (why, what) in lacks {
            let what = what.into_iter().collect::<Vec<_>>().join(", ");
            self.absent.push(Absent { variant: variant.to_string(), why: format!("{what}: {why}") });
        }
    }

    /// Measures the runs of a block, on clusters that are up for as long.
    fn block(&mut self, block: &[Run]) -> Result<(), Error> {
        let mut stands = Vec::new();
        let measured = self.build(block, &mut stands).and_then(|()| self.rounds(block, &mut stands));
        removed(stands.into_iter().map(|stand| stand.up), measured)
    }

    /// A cluster for each variant and each size, of those that have something to measure.
    fn build(&mut self, block: &[Run], stands: &mut Vec<Stand>) -> Result<(), Error> {
        let mut wanted = BTreeSet::new();
        for run in block.iter().filter(|run| run.is_traffic()) {
            wanted.extend(self.missing(run).map(|(variant, _)| (run.sizes, variant)));
        }
        for (place, (sizes, variant)) in wanted.into_iter().enumerate() {
            check(self.stop)?;
            let Sizes { services, policies, flows } = sizes;
            (self.said)(&format!(
                "building {variant}: services {services}, policies {policies}, flows {flows}"
            ));
            // What is built here runs where it will be measured.
            self.held.to(Some(0))?;
            let cluster = cluster::of(&cluster_name(variant, place), sizes)?;
            let up = match Up::with_io(&cluster, variant.dataplane, variant.io) {
                Ok(up) => up,
                Err(error) => {
                    self.leave_out(variant, error.to_string());
                    continue;
                }
            };
            let unused = Default::default();
            // It is noted before anything else can fail: then it is taken down with the others.
            stands.push(Stand { variant, sizes, up, switch: None, used: None, unused });
            let stand = stands.last_mut().expect("it is the one before");
            stand.switch = joined(&stand.up, self.suite.fabric)?;
        }
        Ok(())
    }

    /// What the verifier says of our programs, where that is asked for.
    fn programs(&mut self) -> Result<Vec<Program>, Error> {
        self.part("its programs", |session| {
            (session.said)("having the verifier look at the programs");
            programs::measure()
        })
    }

    /// What packets cost in the kernel's test run, and where the time of packets goes, there and on a live cluster.
    fn costs(&mut self) -> Result<path::Costs, Error> {
        let mut costs: path::Costs = self.part("the cost of a packet", |session| {
            let said = &mut *session.said;
            path::measure(session.stop, |what| said(&format!("timing a packet: {what}")))
        })?;
        let live: Vec<Stage> = self.part("its stages, live", |session| {
            (session.said)("timing the stages of packets on a live cluster");
            let Suite { rounds, time, fabric, .. } = session.suite;
            stages::live((*rounds, *time), *fabric, session.stop)
        })?;
        costs.stages.extend(live);
        Ok(costs)
    }

    /// What is measured beside the samples, where the suite asks for it: what an earlier part of the run has of it, or
    /// else what is measured now, and noted at once. Nothing, and why is told, where it can't be measured.
    fn part<T, E>(&mut self, what: &str, measure: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, Error>
    where
        T: Default + Serialize + DeserializeOwned,
        E: fmt::Display,
    {
        if !self.suite.programs {
            return Ok(T::default());
        }
        if let Some(measured) = self.journal.part(what) {
            return Ok(measured);
        }
        check(self.stop)?;
        self.held.to(Some(0))?;
        let measured = measure(self);
        check(self.stop)?;
        match measured {
            Ok(measured) => {
                self.journal.add_part(what, &measured)?;
                self.journal.end_round(self.spent())?;
                Ok(measured)
            }
            Err(error) => {
                self.leave_out(Name::Ebpf.into(), format!("{what}: {error}"));
                Ok(T::default())
            }
        }
    }

    fn leave_out(&mut self, variant: Variant, why: String) {
        (self.said)(&format!("leaving out {variant}: {why}"));
        let absent = Absent { variant: variant.to_string(), why };
        if !self.absent.contains(&absent) {
            self.absent.push(absent);
        }
    }

    fn rounds(&mut self, block: &[Run], stands: &mut [Stand]) -> Result<(), Error> {
        // What failed once would fail again, and take its time.
        let mut failed = BTreeSet::new();
        let suite = self.suite;
        let rounds = |run: &Run| suite.variants.iter().map(|it| run.rounds(*it, suite.rounds)).max();
        for round in 0..block.iter().filter_map(rounds).max().unwrap_or_default() {
            for (at, run) in block.iter().enumerate() {
                for variant in order(&suite.variants, suite.seed, round) {
                    check(self.stop)?;
                    let has_it = round < run.rounds(variant, suite.rounds) && variant.lacks(run).is_none();
                    if !has_it || failed.contains(&(variant, at)) {
                        continue;
                    }
                    let own = |it: &&mut Stand| it.variant == variant && it.sizes == run.sizes;
                    let stand = stands.iter_mut().filter(|_| run.is_traffic()).find(own);
                    if !self.one(run, round, variant, stand)? {
                        failed.insert((variant, at));
                    }
                }
            }
            let spent = self.spent();
            self.journal.end_round(spent)?;
        }
        Ok(())
    }

    /// Takes a sample, if it is not there yet; false if it could not be taken.
    fn one(
        &mut self,
        run: &Run,
        round: usize,
        variant: Variant,
        stand: Option<&mut Stand>,
    ) -> Result<bool, Error> {
        let point = run.point();
        if let Some(sample) = self.journal.sample(&variant.to_string(), &point, round) {
            self.samples.push(sample.clone());
            return Ok(true);
        }
        if self.journal.is_over(&point, round) {
            let why = format!("{}: it could not be measured before the run was interrupted", title(&point));
            return Ok(self.give_up(variant, &point, why));
        }
        if run.is_traffic() && stand.is_none() {
            // It could not be built, which was said then.
            return Ok(false);
        }
        let (rounds, time_left) = (run.rounds(variant, self.suite.rounds), self.time_left());
        let what = title(&point);
        (self.said)(&format!("round {} of {rounds}: {what} on {variant}{time_left}", round + 1));
        self.held.to(if run.spreads() { None } else { Some(0) })?;
        let begin = Instant::now();
        let measured = match stand {
            Some(stand) => self.traffic(run, stand),
            None => rules::measure(variant, run, self.suite.time).map_err(|error| error.to_string()),
        };
        self.left = self.left.saturating_sub(1);
        self.taken += 1;
        self.spent += begin.elapsed();
        let measured = match measured {
            Ok(measured) => measured,
            Err(why) => {
                return Ok(self.give_up(variant, &point, format!("{what}: {why}")));
            }
        };
        let sample::Measured { figures, latencies_us } = measured;
        let sample = Sample { variant: variant.to_string(), point, round, figures, latencies_us };
        self.journal.add(&sample)?;
        self.samples.push(sample);
        Ok(true)
    }

    /// Leaves a variant out of a point: of some rounds there is no figure that could stand beside the others'.
    fn give_up(&mut self, variant: Variant, point: &Point, why: String) -> bool {
        self.leave_out(variant, why);
        let variant = variant.to_string();
        self.samples.retain(|sample| sample.variant != variant || sample.point != *point);
        false
    }

    /// Sends traffic, again if too much CPU time was stolen meanwhile; what was least disturbed counts.
    fn traffic(&self, run: &Run, stand: &mut Stand) -> Result<sample::Measured, String> {
        let mut best: Option<(f64, sample::Measured)> = None;
        for _ in 0..=REPEATS {
            if run.sizes.flows > 1 && stand.used.is_none_or(|used| used.elapsed() > KEEP_ALIVE) {
                let wanted = run.sizes.flows - 1;
                let open = sample::open_flows(&stand.up, wanted).map_err(|error| error.to_string())?;
                enough_flows(open, wanted)?;
                stand.used = Some(Instant::now());
            }
            let measured = sample::measure(&stand.up, run, &mut stand.unused, self.suite.time);
            let measured = measured.map_err(|error| error.to_string())?;
            let steal = measured.figures.get(noise::STEAL).copied().unwrap_or_default();
            if best.as_ref().is_none_or(|(least, _)| steal < *least) {
                best = Some((steal, measured));
            }
            if steal <= noise::MOST_STEAL_OF_ONE || self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(best.expect("it is measured at least once").1)
    }

    /// As an end of a sentence; nothing where nobody knows yet.
    fn time_left(&self) -> String {
        if self.taken == 0 {
            return String::new();
        }
        let left_s = (self.spent.as_secs_f64() / self.taken as f64 * self.left as f64).ceil() as u64;
        match left_s {
            0..60 => format!("; {left_s} s left"),
            _ => format!("; {} min {} s left", left_s / 60, left_s % 60),
        }
    }
}

/// What is measured beside fewer flows than it says is not what it says.
fn enough_flows(open: usize, wanted: usize) -> Result<(), String> {
    if open * 100 >= wanted * 99 {
        return Ok(());
    }
    Err(format!(
        "of {wanted} flows that were to be open beside it only {open} were answered, fewer than 99 %"
    ))
}

/// Takes all of these clusters down, whatever came of measuring them; what could not be removed is told beside it.
pub(crate) fn removed<T, E>(ups: impl IntoIterator<Item = Up>, measured: Result<T, E>) -> Result<T, E>
where
    E: std::error::Error + Send + Sync + From<Left> + 'static,
{
    let down = ups.into_iter().filter_map(|up| {
        let name = up.topology().cluster().name.clone();
        up.down().err().map(|why| format!("{name}: {why}; try `podpath down {name}`"))
    });
    beside(down.collect(), measured)
}

/// What came of measuring, and the clusters that could not be removed then.
fn beside<T, E>(clusters: Vec<String>, measured: Result<T, E>) -> Result<T, E>
where
    E: std::error::Error + Send + Sync + From<Left> + 'static,
{
    match measured {
        measured if clusters.is_empty() => measured,
        Ok(_) => Err(Left { during: None, clusters }.into()),
        Err(error) => Err(Left { during: Some(Box::new(error)), clusters }.into()),
    }
}

/// Joins the nodes of a cluster, where that is not left to the bridge, for as long as what comes back lives.
pub(crate) fn joined(up: &Up, fabric: Fabric) -> Result<Option<Switch>, Apart> {
    match fabric {
        Fabric::Switch => up.topology().switch().map_err(Apart),
        Fabric::Bridge => Ok(None),
    }
}

/// Of this process, and of nobody else in it: whose, and what tells it from its others.
pub(crate) fn cluster_name(variant: Variant, what: impl fmt::Display) -> String {
    format!("bench-{}-{}-{what}", variant.to_string().replace('/', "-"), std::process::id())
}

/// The variants as a pair of rounds takes them: by lot, and in the second of the two backwards.
fn order(variants: &[Variant], seed: u64, round: usize) -> Vec<Variant> {
    let mut order = variants.to_vec();
    let mut dice = Dice::new(seed.wrapping_add(round as u64 / 2));
    for last in (1..order.len()).rev() {
        order.swap(last, (dice.roll() % (last as u64 + 1)) as usize);
    }
    in_turn(&order, round).copied().collect()
}

/// Forwards in even rounds, backwards in odd ones.
pub(crate) fn in_turn<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    let last = all.len().saturating_sub(1);
    all.iter().enumerate().map(move |(at, _)| &all[if round.is_multiple_of(2) { at } else { last - at }])
}

pub(crate) fn check(stop: &AtomicBool) -> Result<(), Error> {
    if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_round_goes_backwards() {
        let all = [1, 2, 3];
        assert_eq!(in_turn(&all, 0).collect::<Vec<_>>(), [&1, &2, &3]);
        assert_eq!(in_turn(&all, 1).collect::<Vec<_>>(), [&3, &2, &1]);
    }

    #[test]
    fn what_is_left_is_told_beside_what_went_wrong_before() {
        fn told<E>(measured: Result<(), E>, clusters: &[&str]) -> String
        where
            E: std::error::Error + Send + Sync + From<Left> + 'static,
        {
            let clusters = clusters.iter().map(|cluster| (*cluster).to_owned()).collect();
            beside(clusters, measured).map_or_else(|error| error.to_string(), |()| String::new())
        }
        let left = ["bench-a: busy; try `podpath down bench-a`"];
        let wanted = "interrupted; and could not remove bench-a: busy; try `podpath down bench-a`";
        assert_eq!(told(Err(Error::Interrupted), &left), wanted);
        assert_eq!(told(Err(crate::memory::Error::Interrupted), &left), wanted);
        assert_eq!(told(Err(crate::stages::Error::from(Error::Interrupted)), &left), wanted);
        assert_eq!(told::<Error>(Ok(()), &left), &wanted["interrupted; and ".len()..]);
        assert_eq!(told::<Error>(Ok(()), &[]) + &told(Err(Error::Interrupted), &[]), "interrupted");
    }

    #[test]
    fn fewer_flows_than_ninety_nine_of_a_hundred_are_not_enough() {
        assert_eq!([enough_flows(1013, 1023), enough_flows(0, 0)], [Ok(()), Ok(())]);
        let why = enough_flows(1012, 1023).expect_err("that is 98.9 %");
        assert!(why.contains("1023") && why.contains("1012"), "{why}");
    }

    #[test]
    fn the_order_follows_from_the_seed_and_has_everyone_once() {
        let all = Variant::all();
        let rounds = |seed| (0..6).map(|round| order(&all, seed, round)).collect::<Vec<_>>();
        assert_eq!(rounds(1), rounds(1));
        assert_ne!(rounds(1), rounds(2));
        for pair in rounds(1).chunks(2) {
            assert!(pair[0].iter().eq(pair[1].iter().rev()), "{pair:?}");
            let once: BTreeSet<_> = pair[0].iter().collect();
            assert_eq!(once.len(), all.len());
        }
    }
}
