//! Where the time of packets goes on a live cluster: `ebpf` with programs that look at the clock wherever a stage ends,
//! while requests and connections pass, to a pod of another node and by way of a Service.
//!
//! One packet in [`EVERY`] is timed, by lot, on both nodes. A look takes as long as a stage, and to time every packet
//! makes the median round trip about 8 % longer; with one in 32 the difference is lost in the noise. What a look takes by
//! itself is measured in the kernel's test run and taken off, as for [`crate::path`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dataplane::trace::Lap;
use testbed::dataplane::ebpf::{Ebpf, Stopwatches};
use testbed::dataplane::{Name, Up};
use userspace::engine::Hook;
use userspace::engine::kernel::Times;

use crate::matrix::{Run, Sizes, Way, Workload};
use crate::measure;
use crate::report::words::title;
use crate::results::{LIVE, Spread, Stage};
use crate::{cluster, path, sample};

/// One packet in so many is timed.
const EVERY: u32 = 32;

/// Fewer packets than this of a round tell nothing.
const FEWEST: u64 = 20;

/// What passes meanwhile.
const TRAFFIC: [(Workload, Way); 4] = [
    (Workload::TcpRr, Way::OtherNode),
    (Workload::TcpRr, Way::Service),
    (Workload::TcpCrr, Way::OtherNode),
    (Workload::TcpCrr, Way::Service),
];

/// The hooks that packets between two pods come to.
const HOOKS: [Hook; 2] = [Hook::FromPod, Hook::FromUnderlay];

/// Why nothing was timed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A cluster could not be built, or traffic did not pass, or the user has ended it.
    #[error(transparent)]
    Measure(#[from] measure::Error),
    /// What a look at the clock takes.
    #[error(transparent)]
    Path(#[from] path::Error),
    /// The stopwatches could not be read.
    #[error(transparent)]
    Engine(#[from] userspace::error::Error),
    /// Something of that, and the cluster is still there.
    #[error("{during}; and {left}")]
    Left {
        /// What had gone wrong before.
        during: Box<Error>,
        /// What is left.
        left: measure::Error,
    },
}

/// Builds a cluster, sends traffic so many rounds for so long each, and removes it. Needs root.
///
/// # Errors
/// [`Error`]. Nothing is left then, if not said otherwise.
pub fn live((rounds, time): (usize, Duration), stop: &AtomicBool) -> Result<Vec<Stage>, Error> {
    let look_ns = path::look_ns()?;
    let name = measure::cluster_name(Name::Ebpf.into(), "stages");
    let cluster = cluster::of(&name, Sizes::LEAST).map_err(measure::Error::from)?;
    let (dataplane, stopwatches) = Ebpf::timed(EVERY);
    let up = Up::with(&cluster, Box::new(dataplane)).map_err(measure::Error::from)?;
    let watched = Watched { up: &up, stopwatches: &stopwatches, look_ns };
    let timed = watched.all((rounds, time), stop);
    match (timed, measure::removed([up], Ok(()))) {
        (timed, Ok(())) => timed,
        (Ok(_), Err(left)) => Err(left.into()),
        (Err(during), Err(left)) => Err(Error::Left { during: Box::new(during), left }),
    }
}

/// A cluster that is up, with what it times.
struct Watched<'a> {
    up: &'a Up,
    stopwatches: &'a Stopwatches,
    look_ns: f64,
}

impl Watched<'_> {
    fn all(&self, (rounds, time): (usize, Duration), stop: &AtomicBool) -> Result<Vec<Stage>, Error> {
        let mut unused = sample::Unused::default();
        let mut kept = TRAFFIC.map(|_| HOOKS.map(|_| Vec::new()));
        for _ in 0..rounds {
            for ((workload, way), kept) in TRAFFIC.into_iter().zip(&mut kept) {
                if stop.load(Ordering::Relaxed) {
                    return Err(measure::Error::Interrupted.into());
                }
                let before = self.times()?;
                let run = Run::new(workload, way);
                sample::measure(self.up, &run, &mut unused, time).map_err(|source| {
                    measure::Error::Traffic { dataplane: self.up.name(), workload, source }
                })?;
                let pairs = self.times()?.into_iter().zip(before);
                for (kept, (after, before)) in kept.iter_mut().zip(pairs) {
                    let times = after - before;
                    if times.packets >= FEWEST {
                        kept.push(times.net_ns(self.look_ns));
                    }
                }
            }
        }
        let mut stages = Vec::new();
        for ((workload, way), kept) in TRAFFIC.into_iter().zip(kept) {
            for (hook, rounds) in HOOKS.into_iter().zip(kept) {
                let packet = format!("{}, {}", title(&Run::new(workload, way).point()), hook.program());
                stages.extend(medians(&packet, &rounds));
            }
        }
        Ok(stages)
    }

    fn times(&self) -> Result<[Times; HOOKS.len()], Error> {
        let mut all = [Times::default(); HOOKS.len()];
        for (times, hook) in all.iter_mut().zip(HOOKS) {
            *times = self.stopwatches.times(hook)?;
        }
        Ok(all)
    }
}

/// Of each stage the median of the rounds; nothing, if none told anything.
fn medians(packet: &str, rounds: &[[f64; Lap::ALL.len()]]) -> Vec<Stage> {
    let stage = |(at, (_, word)): (usize, &(Lap, &str))| {
        let ns = Spread::of(rounds.iter().map(|round| round[at]).collect())?.median;
        let (packet, source, stage) = (packet.to_owned(), LIVE.to_owned(), (*word).to_owned());
        Some(Stage { packet, source, stage, ns, flows: 0 })
    };
    Lap::ALL.iter().enumerate().filter_map(stage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: make test"]
    fn packets_of_a_live_cluster_are_timed_at_both_hooks_and_nothing_stays() {
        let stages = live((1, Duration::from_millis(200)), &AtomicBool::new(false));
        let stages = stages.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(stages.len(), TRAFFIC.len() * HOOKS.len() * Lap::ALL.len(), "{stages:?}");
        for packet in stages.chunks(Lap::ALL.len()) {
            assert!(packet.iter().all(|stage| stage.packet == packet[0].packet), "{packet:?}");
            assert!(packet.iter().map(|stage| stage.ns).sum::<f64>() > 0.0, "{packet:?}");
        }
        let ours = format!("podpath-{}", measure::cluster_name(Name::Ebpf.into(), "stages"));
        assert!(testbed::netns::Netns::list(&ours).expect("they can be listed").is_empty());
    }

    #[test]
    fn a_stage_is_the_median_of_its_rounds_and_no_rounds_have_none() {
        let round = |ns| [ns; Lap::ALL.len()];
        let stages = medians("a", &[round(3.0), round(-1.0), round(7.0)]);
        assert!(stages.len() == Lap::ALL.len() && stages.iter().all(|stage| stage.ns == 3.0), "{stages:?}");
        assert!(medians("a", &[]).is_empty());
    }
}
