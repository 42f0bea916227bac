//! Links between hosts and the fabric, and what they make of frames.
//!
//! A frame is lost by chance; or it waits for its turn, if there is a rate; then it is under way for the
//! delay, more or less the jitter. Each frame's delay is its own, so that one that takes longer is
//! overtaken by the next where there is jitter; one that overtakes by `reorder_ppm` is not delayed at all.
//! A second copy waits for its own turn, and has a delay of its own. So does `netem` (tc-netem(8)).
//!
//! Each link has two directions, and each direction its own chance. Four numbers are drawn for every
//! frame, whatever the settings: changing one of them does not change what chance makes of the others.

use std::collections::{BTreeMap, VecDeque};

use super::dice::Dice;
use super::seats::Seats;
use super::{Error, LinkReport, Loss, Port};
use crate::model::LinkQuality;

/// A direction of a link, seen from the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the host.
    In,
    /// To it.
    Out,
}

/// When a frame is over the link, or why it is not; and the same of its second copy, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) first: Result<u64, Loss>,
    pub(super) second: Option<Result<u64, Loss>>,
}

/// The links that are not perfect; all others are.
#[derive(Debug)]
pub(super) struct Links {
    seed: u64,
    /// As the cluster has it.
    asked: Vec<LinkQuality>,
    /// By the port they lead to.
    links: BTreeMap<Port, Link>,
}

#[derive(Debug)]
struct Link {
    report: LinkReport,
    from_host: Lane,
    to_host: Lane,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    dice: Dice,
    /// When the last frame that was taken has been sent whole.
    busy_until_ns: u64,
    /// When each frame that waits will have its turn.
    turns: VecDeque<u64>,
}

impl Links {
    pub(super) fn of(asked: &[LinkQuality], seats: &Seats, seed: u64) -> Result<Self, Error> {
        let mut links = Self { seed, asked: asked.to_vec(), links: BTreeMap::new() };
        links.set(asked, seats)?;
        Ok(links)
    }

    /// Other seats; and other links, if it is others that are asked for than last time.
    pub(super) fn apply(&mut self, asked: &[LinkQuality], seats: &Seats) -> Result<(), Error> {
        if asked != self.asked {
            self.set(asked, seats)?;
            self.asked = asked.to_vec();
            return Ok(());
        }
        // A host that is gone has taken its link along.
        let old = std::mem::take(&mut self.links).into_values();
        self.links = old.filter_map(|link| Some((seats.by_name(&link.report.quality.link)?, link))).collect();
        Ok(())
    }

    pub(super) fn set(&mut self, qualities: &[LinkQuality], seats: &Seats) -> Result<(), Error> {
        let unknown = |link: &str| Error::UnknownLink { link: link.to_owned() };
        let mut wanted = BTreeMap::new();
        for quality in qualities {
            let port = seats.by_name(&quality.link).ok_or_else(|| unknown(&quality.link))?;
            wanted.insert(port, quality);
        }
        let mut old: BTreeMap<String, Link> = std::mem::take(&mut self.links)
            .into_values()
            .map(|link| (link.report.quality.link.clone(), link))
            .collect();
        for (port, quality) in wanted {
            let link = match old.remove(&quality.link) {
                Some(link) if link.report.quality == *quality => link,
                before => Link::new(quality, self.seed, before.map(|link| link.report)),
            };
            self.links.insert(port, link);
        }
        Ok(())
    }

    /// A frame of so many bytes goes over the link of a port.
    pub(super) fn cross(&mut self, port: Port, way: Way, length: usize, now_ns: u64) -> Fate {
        match self.links.get_mut(&port) {
            Some(link) => link.cross(way, length, now_ns),
            None => Fate { first: Ok(now_ns), second: None },
        }
    }

    pub(super) fn report(&self) -> Vec<LinkReport> {
        self.links.values().map(|link| link.report.clone()).collect()
    }
}

impl Link {
    /// Counts on where the link before it stopped.
    fn new(quality: &LinkQuality, seed: u64, before: Option<LinkReport>) -> Self {
        let report = LinkReport { quality: quality.clone(), ..before.unwrap_or_default() };
        // Links of the same seed are not to lose the same frames.
        let name = quality
            .link
            .bytes()
            .fold(seed ^ quality.seed, |mixed, byte| Dice::new(mixed ^ u64::from(byte)).roll());
        let mut seeds = Dice::new(name);
        let mut lane = || Lane { dice: Dice::new(seeds.roll()), busy_until_ns: 0, turns: VecDeque::new() };
        Self { report, from_host: lane(), to_host: lane() }
    }

    fn cross(&mut self, way: Way, length: usize, now_ns: u64) -> Fate {
        let (lane, passed) = match way {
            Way::In => (&mut self.from_host, &mut self.report.passed_in),
            Way::Out => (&mut self.to_host, &mut self.report.passed_out),
        };
        let quality = &self.report.quality;
        let (lost, duplicated) =
            (lane.dice.happens(quality.loss_ppm), lane.dice.happens(quality.duplicate_ppm));
        let overtakes = lane.dice.happens(quality.reorder_ppm);
        let mut own = Dice::new(lane.dice.roll());
        if lost {
            self.report.lost += 1;
            return Fate { first: Err(Loss::LinkLoss), second: None };
        }
        let mut copy = |overtakes| {
            let sent_ns = lane.take_turn(quality, length, now_ns)?;
            let delay_ns = if overtakes { 0 } else { delay_ns(quality, &mut own) };
            Ok(sent_ns.saturating_add(delay_ns))
        };
        let fate = Fate { first: copy(overtakes), second: duplicated.then(|| copy(false)) };
        self.report.duplicated += u64::from(duplicated);
        for fate in std::iter::once(fate.first).chain(fate.second) {
            let counter = if fate.is_ok() { &mut *passed } else { &mut self.report.queue_full };
            *counter += 1;
        }
        fate
    }
}

impl Lane {
    /// When a frame of so many bytes has been sent whole.
    fn take_turn(&mut self, quality: &LinkQuality, length: usize, now_ns: u64) -> Result<u64, Loss> {
        if quality.rate_bps == 0 {
            return Ok(now_ns);
        }
        while self.turns.front().is_some_and(|turn_ns| *turn_ns <= now_ns) {
            self.turns.pop_front();
        }
        let turn_ns = self.busy_until_ns.max(now_ns);
        if turn_ns > now_ns {
            if self.turns.len() >= quality.queue as usize {
                return Err(Loss::LinkQueueFull);
            }
            self.turns.push_back(turn_ns);
        }
        let bits = length as u128 * 8;
        let takes_ns = (bits * 1_000_000_000).div_ceil(u128::from(quality.rate_bps));
        self.busy_until_ns = turn_ns.saturating_add(u64::try_from(takes_ns).unwrap_or(u64::MAX));
        Ok(self.busy_until_ns)
    }
}

/// The delay of one frame: evenly from `delay - jitter` to `delay + jitter`, and never below nothing.
fn delay_ns(quality: &LinkQuality, dice: &mut Dice) -> u64 {
    let spread = dice.below(quality.jitter_ns.saturating_mul(2).saturating_add(1));
    quality.delay_ns.saturating_add(spread).saturating_sub(quality.jitter_ns)
}
