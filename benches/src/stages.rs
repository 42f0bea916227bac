//! Where the time of packets goes on a live cluster: `ebpf` with programs that look at the clock wherever a stage ends,
//! while requests and connections pass, to a pod of another node and by way of a Service.
//!
//! One packet in [`EVERY`] is timed, by lot, on both nodes. A look takes as long as a stage, and to time every packet
//! makes the median round trip about 8 % longer; with one in 32 the difference is lost in the noise. What a look takes by
//! itself is measured in the kernel's test run and taken off, as for [`crate::path`]. But there it is warm, and here
//! another process has run meanwhile: what a cold look takes longer is in the stages' figures. And what a pod asks and
//! what it answers come to the same hook of two nodes: a figure is of both together.

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
use crate::results::{Fabric, LIVE, Spread, Stage};
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
    /// The cluster is still there.
    #[error(transparent)]
    Left(#[from] measure::Left),
}

/// Builds a cluster, its nodes joined like this, sends traffic so many rounds for so long each, and removes it. Needs
/// root.
///
/// # Errors
/// [`Error`]. Nothing is left then, if not said otherwise.
pub fn live(rounds: (usize, Duration), fabric: Fabric, stop: &AtomicBool) -> Result<Vec<Stage>, Error> {
    sampled(EVERY, rounds, fabric, stop)
}

/// The same, of one in `every` packets.
fn sampled(
    every: u32,
    rounds: (usize, Duration),
    fabric: Fabric,
    stop: &AtomicBool,
) -> Result<Vec<Stage>, Error> {
    let look_ns = path::look_ns()?;
    let name = measure::cluster_name(Name::Ebpf.into(), "stages");
    let cluster = cluster::of(&name, Sizes::LEAST).map_err(measure::Error::from)?;
    let (dataplane, stopwatches) = Ebpf::timed(every);
    let up = Up::with(&cluster, Box::new(dataplane)).map_err(measure::Error::from)?;
    let watched = Watched { up: &up, stopwatches: &stopwatches, look_ns };
    let timed =
        measure::joined(&up, fabric).map_err(measure::Error::from).map_err(Error::from).and_then(|switch| {
            let timed = watched.all(rounds, stop);
            drop(switch);
            timed
        });
    measure::removed([up], timed)
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

/// Of each stage the median of the rounds; nothing, if none told anything. All of them together are the median of whole
/// packets, and what medians leave of that is the rest's.
fn medians(packet: &str, rounds: &[[f64; Lap::ALL.len()]]) -> Vec<Stage> {
    let median = |of: &dyn Fn(&[f64; Lap::ALL.len()]) -> f64| {
        Spread::of(rounds.iter().map(of).collect()).map(|spread| spread.median)
    };
    let Some(whole) = median(&|round| round.iter().sum()) else { return Vec::new() };
    let mut laps: [f64; Lap::ALL.len()] = std::array::from_fn(|at| median(&|round| round[at]).unwrap_or(0.0));
    laps[Lap::Rest as usize] += whole - laps.iter().sum::<f64>();
    let stage = |(ns, (_, word)): (f64, &(Lap, &str))| {
        let (packet, source, stage) = (packet.to_owned(), LIVE.to_owned(), (*word).to_owned());
        Stage { packet, source, stage, ns, flows: 0 }
    };
    laps.into_iter().zip(&Lap::ALL).map(stage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: make test"]
    fn packets_of_a_live_cluster_are_timed_at_both_hooks_and_nothing_stays() {
        // Every packet: so a busy machine has enough of them as well.
        let stages = sampled(1, (1, Duration::from_millis(200)), Fabric::Switch, &AtomicBool::new(false));
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

    #[test]
    fn all_stages_together_are_the_median_of_whole_packets() {
        let round = |parse, policy| {
            let mut laps = [0.0; Lap::ALL.len()];
            (laps[Lap::Parse as usize], laps[Lap::Policy as usize]) = (parse, policy);
            laps
        };
        let stages = medians("a", &[round(1.0, 10.0), round(12.0, 1.0), round(10.0, 2.0)]);
        let of = |word: &str| stages.iter().find(|stage| stage.stage == word).map(|stage| stage.ns);
        assert_eq!((of("parse"), of("policy"), of("rest")), (Some(10.0), Some(2.0), Some(0.0)));
        let stages = medians("a", &[round(1.0, 10.0), round(12.0, 12.0), round(2.0, 1.0)]);
        assert_eq!(stages.iter().map(|stage| stage.ns).sum::<f64>(), 11.0, "{stages:?}");
    }
}
