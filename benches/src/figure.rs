//! The figures that samples may have: what each is called, and which way is better.
//!
//! A name ends in its unit, and in the percentile behind it where it is one. A figure that is not listed here is kept
//! and told with the raw ones, but nobody judges by it.

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Time, memory, loss.
    Lower,
    /// Rates.
    Higher,
}

/// What is known of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Its name in a sample.
    pub name: &'static str,
    /// The head of its column.
    pub head: &'static str,
    /// The same for the axis of a drawing, with the unit.
    pub axis: &'static str,
    /// Which way is better; none, if it only explains others.
    pub better: Option<Better>,
}

/// The latency that half of the requests stay below. Of `UPDATE`: until the change is in force.
pub const LATENCY_P50: &str = "latency_us_p50";
/// The latency that ninety-nine of a hundred stay below.
pub const LATENCY_P99: &str = "latency_us_p99";
/// Requests and their answers in a second; of `TCP_CRR` with a connection for each.
pub const TRANSACTIONS: &str = "transactions_per_s";
/// Payload of a stream.
pub const THROUGHPUT: &str = "throughput_gbit_per_s";
/// Thousands of packets a second that came out at the other end; of `FORWARD` as well.
pub const RECEIVED: &str = "received_kpps";
/// How long `PROGRAM` and `BOOT` took.
pub const TOOK: &str = "took_ms";
/// What of `PROGRAM` was to find out what to write, and what to write it.
pub const PLANNED: &str = "planned_ms";
/// See [`PLANNED`].
pub const WRITTEN: &str = "written_ms";
/// The same of `UPDATE`, each half of the changes stay below.
pub const PLANNED_P50: &str = "planned_us_p50";
/// See [`PLANNED_P50`].
pub const WRITTEN_P50: &str = "written_us_p50";
/// What rules or tables take of the memory.
pub const MEMORY: &str = "memory_bytes";

const LOWER: Option<Better> = Some(Better::Lower);
const HIGHER: Option<Better> = Some(Better::Higher);

/// Every figure, in the order of columns: of those that a sample has, the first is the telling one.
pub const ALL: [Figure; 22] = [
    figure(THROUGHPUT, "GBIT/S", "throughput, Gbit/s", HIGHER),
    figure(RECEIVED, "KPPS", "rate of packets, thousand/s", HIGHER),
    figure(LATENCY_P50, "P50 us", "latency p50, µs", LOWER),
    figure("latency_us_p90", "P90 us", "latency p90, µs", LOWER),
    figure(LATENCY_P99, "P99 us", "latency p99, µs", LOWER),
    figure("latency_us_p999", "P99.9 us", "latency p99.9, µs", LOWER),
    figure("latency_us_p9999", "P99.99 us", "latency p99.99, µs", LOWER),
    figure(TRANSACTIONS, "PER SECOND", "rate of transactions, 1/s", HIGHER),
    figure(TOOK, "TOOK ms", "time, ms", LOWER),
    figure(MEMORY, "BYTES", "memory, bytes", LOWER),
    figure("cpu_us_per_transaction", "CPU us EACH", "CPU time of a transaction, µs", LOWER),
    figure("cpu_ms_per_gbit", "CPU ms/GBIT", "CPU time of a gigabit, ms", LOWER),
    figure("cpu_ns_per_packet", "CPU ns EACH", "CPU time of a packet, ns", LOWER),
    figure(PLANNED, "PLANNED ms", "time to plan, ms", None),
    figure(WRITTEN, "WRITTEN ms", "time to write, ms", None),
    figure(PLANNED_P50, "PLANNED us P50", "time to plan p50, µs", None),
    figure(WRITTEN_P50, "WRITTEN us P50", "time to write p50, µs", None),
    figure("retransmits", "RETRANSMITS", "segments sent again", None),
    figure("lost", "LOST", "requests without an answer", LOWER),
    figure("sent_kpps", "KPPS SENT", "rate of packets sent, thousand/s", None),
    figure("rows", "ROWS", "rows in tables", None),
    figure("rules", "RULES", "rules", None),
];

const fn figure(
    name: &'static str,
    head: &'static str,
    axis: &'static str,
    better: Option<Better>,
) -> Figure {
    Figure { name, head, axis, better }
}

/// What is known of a figure of that name.
pub fn named(name: &str) -> Option<&'static Figure> {
    ALL.iter().find(|figure| figure.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_listed_once_and_rates_are_the_ones_that_may_grow() {
        for (at, figure) in ALL.iter().enumerate() {
            assert_eq!(ALL.iter().position(|other| other.name == figure.name), Some(at), "{figure:?}");
            let rate = figure.name.ends_with("_per_s") || figure.name.ends_with("kpps");
            assert!(figure.better != Some(Better::Higher) || rate, "{figure:?}");
        }
    }
}
