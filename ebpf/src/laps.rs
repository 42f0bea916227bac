//! Where a packet's time goes: a stopwatch for each CPU, by the hook that the packet came to.
//!
//! ```text
//! begin -> lap(Parse) -> lap(Conntrack) -> ... -> end
//! ```
//! What passes from one to the next is the lap's, so all laps together are the whole, to the nanosecond. Looking at the
//! clock takes as long as a stage of the path, and [`calibrate`] says how long. Programs that are not timed have nothing
//! of this in their code: the verifier leaves it out. What the driver's program walks is not timed.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use dataplane::trace::Lap;
use dataplane::trace::stopwatch::{self, HOOKS, LAPS, WORDS};

use crate::bytes::constants;

constants! {
    /// One in so many packets is timed, by lot; 0: none.
    TIMED: u32;
}

/// Laps that [`calibrate`] takes of a packet.
const BACK_TO_BACK: u32 = 16;

/// What a CPU has timed, and is timing. Userspace reads it as the words of [`stopwatch`].
#[repr(C)]
struct Stopwatch {
    /// Not 0: a packet is being timed.
    running: u64,
    /// Which hook it came to.
    hook: u64,
    /// When it came.
    began_ns: u64,
    /// When the last lap ended.
    last_ns: u64,
    hooks: [Times; HOOKS],
}

/// All packets of a hook that were timed.
#[repr(C)]
struct Times {
    packets: u64,
    /// From the beginning to the end of each.
    whole_ns: u64,
    /// Nanoseconds, and how often it was measured, by [`Lap`].
    laps: [[u64; 2]; LAPS],
}

const _: () = assert!(size_of::<Stopwatch>() == 8 * WORDS);

#[map(name = "stopwatch")]
static STOPWATCH: PerCpuArray<Stopwatch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's.
#[inline(always)]
fn own() -> Option<&'static mut Stopwatch> {
    // SAFETY: programs are not preempted by each other on their CPU, each function asks once, and the row is there as
    // long as the map.
    STOPWATCH.get_ptr_mut(0).map(|row| unsafe { &mut *row })
}

/// A packet has come to a hook.
#[inline(always)]
pub(crate) fn begin(hook: usize) {
    let every = TIMED.load();
    if every != 0 {
        start(hook, every);
    }
}

/// What was done since the last lap was this.
#[inline(always)]
pub(crate) fn lap(lap: Lap) {
    if TIMED.load() != 0 {
        stop(lap as u32);
    }
}

/// The packet is done with; what was done since the last lap is this one's.
#[inline(always)]
pub(crate) fn end(lap: Lap) {
    if TIMED.load() != 0 {
        stop(lap as u32);
        finish();
    }
}

#[inline(never)]
fn start(hook: usize, every: u32) {
    let Some(row) = own() else { return };
    // SAFETY: it only gives a number.
    let number = if every == 1 { 0 } else { unsafe { bpf_get_prandom_u32() } };
    row.running = (number.checked_rem(every) == Some(0)) as u64;
    row.hook = hook as u64;
    if row.running != 0 {
        // SAFETY: as above.
        row.began_ns = unsafe { bpf_ktime_get_ns() };
        row.last_ns = row.began_ns;
    }
}

#[inline(never)]
fn stop(lap: u32) {
    let Some(row) = own() else { return };
    if row.running == 0 {
        return;
    }
    // SAFETY: it only gives a number.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let times = &mut row.hooks[row.hook as usize & (HOOKS - 1)];
    let [ns, count] = &mut times.laps[lap as usize & (LAPS - 1)];
    *ns += now_ns.wrapping_sub(row.last_ns);
    *count += 1;
    row.last_ns = now_ns;
}

#[inline(never)]
fn finish() {
    let Some(row) = own() else { return };
    if row.running == 0 {
        return;
    }
    row.running = 0;
    let times = &mut row.hooks[row.hook as usize & (HOOKS - 1)];
    times.packets += 1;
    times.whole_ns += row.last_ns.wrapping_sub(row.began_ns);
}

/// Laps back to back, in which nothing is done: what each of them says is what a lap takes by itself.
#[classifier]
pub fn calibrate(_context: TcContext) -> i32 {
    begin(stopwatch::CALIBRATE);
    let mut times = 1;
    while times < BACK_TO_BACK {
        lap(Lap::Rest);
        times += 1;
    }
    end(Lap::Rest);
    TC_ACT_UNSPEC
}
