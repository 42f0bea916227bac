//! The time, whatever program asks for it; and what stands in for it, and for chance, where runs are to be repeated.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

use crate::bytes::constants;

constants! {
    /// Not 0: the time, and what chance gives, are what userspace wrote into `clock`.
    FIXED_CLOCK: u32;
}

const NANOSECONDS_IN_SECOND: u64 = 1_000_000_000;

/// The second it is, and the number that chance gives, where both stand still between packets.
#[map(name = "clock")]
static CLOCK: Array<u32> = Array::with_max_entries(2, 0);

/// The second that it was when a program asked last, in the upper half, and the kernel's tick that it was then, in the
/// lower one. The coarse clock moves on with the tick: as long as that is the same, so is the second, and nobody has to
/// call for it. (The lower half comes again after 2^32 ticks. That is 49 days at least, in which nobody may ask, and
/// then somebody in that very tick.)
#[unsafe(no_mangle)]
static SECOND: Shared = Shared(UnsafeCell::new(0));

/// A word that all CPUs read and write, at once: never halves of two.
struct Shared(UnsafeCell<u64>);

// SAFETY: see there. Which of two writes comes last is the same to everybody.
unsafe impl Sync for Shared {}

impl Shared {
    #[inline(always)]
    fn read(&self) -> u64 {
        // SAFETY: the word is there, and aligned.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn write(&self, word: u64) {
        // SAFETY: as in `read`.
        unsafe { self.0.get().write_volatile(word) }
    }
}

/// Seconds of a clock that does not go back.
#[inline(always)]
pub(crate) fn now_s() -> u32 {
    if let Some(second) = fixed(0) {
        return second;
    }
    // SAFETY: it only reads, and is no call: the kernel puts a load in its place.
    let tick = unsafe { bpf_jiffies64() } as u32;
    let known = SECOND.read();
    if known as u32 == tick {
        return (known >> 32) as u32;
    }
    // SAFETY: it only reads. The coarse clock is a tenth of the fine one's price, and ticks often
    // enough for seconds.
    let second = unsafe { bpf_ktime_get_coarse_ns() } / NANOSECONDS_IN_SECOND;
    SECOND.write(second << 32 | tick as u64);
    second as u32
}

/// Whether runs are to be repeated, with a clock that is told: test runs alone.
#[inline(always)]
pub(crate) fn is_fixed() -> bool {
    FIXED_CLOCK.load() != 0
}

/// A number of [`CLOCK`], if runs are to be repeated.
#[inline(always)]
pub(crate) fn fixed(row: u32) -> Option<u32> {
    if !is_fixed() {
        return None;
    }
    Some(CLOCK.get(row).copied().unwrap_or(0))
}
