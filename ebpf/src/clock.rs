//! The time, whatever program asks for it; and what stands in for it, and for chance, where runs are to be repeated.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
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

/// Seconds of a clock that does not go back.
#[inline(always)]
pub(crate) fn now_s() -> u32 {
    if let Some(second) = fixed(0) {
        return second;
    }
    // SAFETY: it only reads. The coarse clock is a tenth of the fine one's price, and ticks often
    // enough for seconds.
    seconds(unsafe { bpf_ktime_get_coarse_ns() })
}

/// Whole seconds of so many nanoseconds, up to 68 years. By a multiplication: a division takes three times as long as
/// looking at the clock.
#[inline(always)]
const fn seconds(ns: u64) -> u32 {
    /// Seconds in 2^29 nanoseconds, times 2^32 and rounded down: a product is never too large.
    const OF_A_PIECE: u64 = (1 << 61) / NANOSECONDS_IN_SECOND;
    // The piece that has begun, and what is rounded, are less than a second together.
    let seconds = ((ns >> 29) * OF_A_PIECE) >> 32;
    let left = ns.wrapping_sub(seconds * NANOSECONDS_IN_SECOND);
    (seconds + (left >= NANOSECONDS_IN_SECOND) as u64) as u32
}

const _: () = {
    let mut second = 1;
    while second < 1 << 31 {
        let begins = second * NANOSECONDS_IN_SECOND;
        assert!(seconds(begins - 1) == second as u32 - 1 && seconds(begins) == second as u32);
        second += second / 5 + 1;
    }
};

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
