//! What became of frames: every one that reached a link of a node is counted once as received or lost, every one that
//! was received as passed on or kept, and every one that was passed on as sent or lost.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a frame was lost that the path did not refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// It came while there was no room left for what had come before.
    Overrun,
    /// It is longer than what a link may carry.
    TooLong,
    /// The link it was sent over took no more, for as long as that was waited for.
    Full,
    /// The link it was sent over is down, or gone.
    Down,
    /// It was sent over a link that the node does not have.
    NoLink,
}

impl Loss {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Overrun, Self::TooLong, Self::Full, Self::Down, Self::NoLink];

    /// Why a link did not take a frame.
    pub(super) fn of(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => Self::TooLong,
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Self::Down,
            _ => Self::Full,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overrun => "no room for what came",
            Self::TooLong => "longer than a link may carry",
            Self::Full => "the link took no more",
            Self::Down => "the link is down",
            Self::NoLink => "no such link",
        })
    }
}

/// Frames since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that were read.
    pub received: u64,
    /// Those of them for which the path sent nothing: it refused them, or they were for it.
    pub kept: u64,
    /// Frames that a link took.
    pub sent: u64,
    /// Frames that were lost, by why; none that the path refused.
    pub lost: BTreeMap<Loss, u64>,
}

impl Tally {
    /// Adds another's frames.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.kept += other.kept;
        self.sent += other.sent;
        for (why, frames) in &other.lost {
            *self.lost.entry(*why).or_default() += frames;
        }
    }
}

/// A [`Tally`] that threads count in.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    received: AtomicU64,
    kept: AtomicU64,
    sent: AtomicU64,
    lost: [AtomicU64; Loss::ALL.len()],
}

impl Counts {
    /// Frames that were read, and how many of them the path kept.
    pub(super) fn received(&self, frames: u64, kept: u64) {
        self.received.fetch_add(frames, Ordering::Relaxed);
        self.kept.fetch_add(kept, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, frames: u64) {
        self.sent.fetch_add(frames, Ordering::Relaxed);
    }

    pub(super) fn lost(&self, why: Loss, frames: u64) {
        self.lost[why as usize].fetch_add(frames, Ordering::Relaxed);
    }

    pub(crate) fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let lost = Loss::ALL.into_iter().map(|why| (why, read(&self.lost[why as usize])));
        Tally {
            received: read(&self.received),
            kept: read(&self.kept),
            sent: read(&self.sent),
            lost: lost.filter(|(_, frames)| *frames > 0).collect(),
        }
    }
}
