//! What became of frames: every one that reached a link of a node is counted once as received or lost, every one that
//! was received as passed on or kept, and every one that was passed on as sent or lost.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a frame was lost that the path did not refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// It came while there was no room left for what had come before.
    Overrun,
    /// It is longer than what a link may carry.
    TooLong,
    /// The link it was sent over took no more, for as long as that was waited for; or the kernel had no memory for it,
    /// which is not waited for.
    Full,
    /// The link it was sent over is down, or gone; or the one it came by was given up before it was read.
    Down,
    /// It was sent over a link that the node does not have.
    NoLink,
    /// The link it was sent over did not take it, for any other reason of the kernel's.
    Refused,
}

impl Loss {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Overrun, Self::TooLong, Self::Full, Self::Down, Self::NoLink, Self::Refused];

    /// Why a link did not take a frame.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => Self::TooLong,
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Self::Down,
            Some(libc::ENOBUFS) => Self::Full,
            // Who waited in vain himself has no number of the kernel's.
            _ if error.kind() == ErrorKind::WouldBlock => Self::Full,
            _ => Self::Refused,
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
            Self::Refused => "the kernel refused it",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_without_room_is_called_full() {
        let of = |errno| Loss::of(&io::Error::from_raw_os_error(errno));
        assert_eq!([libc::EAGAIN, libc::ENOBUFS].map(of), [Loss::Full; 2]);
        assert_eq!(Loss::of(&ErrorKind::WouldBlock.into()), Loss::Full);
        assert_eq!([libc::ENETDOWN, libc::ENXIO, libc::ENODEV].map(of), [Loss::Down; 3]);
        assert_eq!(of(libc::EMSGSIZE), Loss::TooLong);
        assert_eq!([libc::EINVAL, libc::EPERM].map(of), [Loss::Refused; 2]);
    }

    #[test]
    fn every_loss_is_counted_at_its_own_place() {
        let counts = Counts::default();
        (1..).zip(Loss::ALL).for_each(|(frames, why)| counts.lost(why, frames));
        let expected: BTreeMap<_, _> = Loss::ALL.into_iter().zip(1..).collect();
        assert_eq!(counts.tally().lost, expected);
    }
}
