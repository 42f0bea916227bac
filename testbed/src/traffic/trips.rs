//! Round trips, one after the other or at a rate, and how long they took.

use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{Error, Limits, PATIENCE, Ticks, per_second};

/// The longest time that is told apart in a histogram, in nanoseconds: ten seconds.
pub(super) const LONGEST_NS: u64 = 10_000_000_000;

/// Round trips, one at a time on each connection.
#[derive(Clone, Debug)]
pub struct RoundTrips {
    /// Each one's time in nanoseconds, three digits exact.
    pub histogram: Histogram<u64>,
    /// Requests that were sent and answered: those of the histogram, but for what was lost, or due and never sent.
    pub answered: u64,
    /// Requests without an answer in half a second (UDP only). In the histogram they have waited for as long: who loses
    /// what is slow is no faster.
    pub lost: u64,
    /// From the first counted to the last.
    pub elapsed: Duration,
    /// What the machine's CPUs did in that time.
    pub ticks: Ticks,
}

impl RoundTrips {
    pub(super) fn new() -> Self {
        let histogram =
            Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("1 < LONGEST_NS, and 3 digits are allowed");
        Self { histogram, answered: 0, lost: 0, elapsed: Duration::ZERO, ticks: Ticks::default() }
    }

    /// The time below which this part (0 to 1) of the round trips stayed, in microseconds.
    pub fn quantile_us(&self, part: f64) -> f64 {
        self.histogram.value_at_quantile(part) as f64 / 1e3
    }

    /// Round trips per second: answers, not what was offered.
    pub fn rate(&self) -> f64 {
        per_second(self.answered, self.elapsed)
    }

    /// Counts an answer.
    pub(super) fn record(&mut self, taken: Duration) {
        self.answered += 1;
        self.wait(taken);
    }

    /// Counts a request that nobody answered.
    pub(super) fn lose(&mut self, waited: Duration) {
        self.lost += 1;
        self.wait(waited.max(PATIENCE));
    }

    /// Counts a time without an answer at its end.
    fn wait(&mut self, taken: Duration) {
        let taken = taken.as_nanos().min(LONGEST_NS.into()) as u64;
        self.histogram.saturating_record(taken.max(1));
    }

    fn counted(&self) -> u64 {
        self.histogram.len()
    }

    /// Takes up those of another connection in the same time.
    fn add(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("both have the same bounds");
        self.answered += other.answered;
        self.lost += other.lost;
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

/// Asks once over a connection, and says whether an answer came.
pub(super) type Trip<'a> = Box<dyn FnMut() -> Result<bool, Error> + Send + 'a>;

/// Repeats `trips`, each on a thread of its own, until a limit is reached; `rate_per_s` in all if it is not 0, or
/// else each as soon as it is answered.
pub(super) fn repeat(mut trips: Vec<Trip<'_>>, rate_per_s: u64, limits: Limits) -> Result<RoundTrips, Error> {
    let interval =
        (rate_per_s > 0).then(|| Duration::from_secs(1).mul_f64(trips.len() as f64 / rate_per_s as f64));
    let count = limits.count / trips.len().max(1) as u64;
    // All are warm before any is counted.
    side_by_side(&mut trips, |trip| {
        let begin = Instant::now();
        while begin.elapsed() < limits.warm_up {
            trip()?;
        }
        Ok(())
    })?;
    let before = Ticks::now();
    let each = side_by_side(&mut trips, |trip| match interval {
        None => back_to_back(trip, Limits { count, ..limits }),
        Some(interval) => offered(trip, interval, Limits { count, ..limits }),
    })?;
    let mut all = RoundTrips::new();
    each.iter().for_each(|one| all.add(one));
    all.ticks = Ticks::now().since(before);
    Ok(all)
}

/// Does something with each on a thread of its own, which runs where this one may; alone, on this one.
pub(super) fn side_by_side<C: Send, T: Send>(
    clients: &mut [C],
    drive: impl Fn(&mut C) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    if let [alone] = clients {
        return Ok(vec![drive(alone)?]);
    }
    thread::scope(|scope| {
        let drive = &drive;
        let threads: Vec<_> = clients.iter_mut().map(|client| scope.spawn(move || drive(client))).collect();
        threads.into_iter().map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// The next request follows the answer to the last.
fn back_to_back(trip: &mut Trip<'_>, limits: Limits) -> Result<RoundTrips, Error> {
    let mut trips = RoundTrips::new();
    let begin = Instant::now();
    let mut now = begin;
    while now.duration_since(begin) < limits.time && trips.counted() < limits.count {
        let answered = trip()?;
        let later = Instant::now();
        let waited = later.duration_since(now);
        if answered {
            trips.record(waited)
        } else {
            trips.lose(waited)
        }
        now = later;
    }
    trips.elapsed = now.duration_since(begin);
    Ok(trips)
}

/// Requests are due at fixed times, and one that is late, because the answer before it was, counts from when it was
/// due: else a path that stalls would be asked less just while it is slow. One that was due and could not even be
/// sent counts with the time that it has waited by the end.
fn offered(trip: &mut Trip<'_>, interval: Duration, limits: Limits) -> Result<RoundTrips, Error> {
    let mut trips = RoundTrips::new();
    let begin = Instant::now();
    let end = begin + limits.time;
    let (mut due, mut now) = (begin, begin);
    while due < end && now < end && trips.counted() < limits.count {
        // Whoever sleeps here wakes up late, and with a cold CPU; who yields leaves it to the server all the same.
        while now < due {
            thread::yield_now();
            now = Instant::now();
        }
        let answered = trip()?;
        now = Instant::now();
        let waited = now.duration_since(due);
        if answered {
            trips.record(waited)
        } else {
            trips.lose(waited)
        }
        due += interval;
    }
    trips.elapsed = now.duration_since(begin);
    while due < end && trips.counted() < limits.count {
        trips.wait(now.saturating_duration_since(due));
        due += interval;
    }
    Ok(trips)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(50);

    fn limits() -> Limits {
        Limits { warm_up: Duration::ZERO, time: TIME, count: u64::MAX }
    }

    /// Keeps the thread busy, as a server on the same CPU would.
    fn spin(time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_stall_is_counted_for_every_request_that_was_due_meanwhile() {
        let slow = |rate| {
            let mut asked = 0;
            let trip = || {
                asked += 1;
                if asked == 2 {
                    spin(Duration::from_millis(20));
                }
                Ok(true)
            };
            let trips = repeat(vec![Box::new(trip)], rate, limits()).expect("nothing fails here");
            trips.histogram.count_between(5_000_000, LONGEST_NS)
        };
        assert!(slow(1000) >= 14, "{}", slow(1000));
        assert!(slow(0) <= 10, "in 50 ms no more requests can take 5 ms, one after the other");
    }

    #[test]
    fn what_is_due_and_never_sent_is_counted_as_well() {
        let trip = || {
            spin(TIME);
            Ok(true)
        };
        let trips = repeat(vec![Box::new(trip)], 1000, limits()).expect("nothing fails here");
        assert_eq!(trips.histogram.len(), 50, "at 1000 a second, 50 are due in 50 ms");
        assert!(trips.answered == 1 && trips.rate() <= 20.0, "one was answered, in 50 ms: {}", trips.rate());
        assert!(trips.quantile_us(0.5) > 20_000.0, "{}", trips.quantile_us(0.5));
    }

    #[test]
    fn connections_are_counted_together_and_losses_apart() {
        let answers = |all: bool| -> Trip<'static> {
            let mut turn = false;
            Box::new(move || {
                turn = !turn;
                Ok(all || turn)
            })
        };
        let limits = Limits { time: Duration::from_secs(10), count: 40, ..limits() };
        let trips = repeat(vec![answers(true), answers(false)], 0, limits).expect("nothing fails here");
        let slow = trips.histogram.count_between(PATIENCE.as_nanos() as u64 / 2, LONGEST_NS);
        assert_eq!(slow, 10, "they have waited all the time");
        assert_eq!((trips.answered, trips.lost, trips.histogram.len()), (30, 10, 40));
    }
}
