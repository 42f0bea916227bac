//! Points, numbers and spreads in words.

use std::collections::BTreeMap;

use super::YARDSTICK;
use crate::figure::{self, Figure};
use crate::noise;
use crate::results::{Machine, Point, Results, Spread};

/// The dataplanes in the order of reports.
pub(super) const KNOWN: [&str; 8] =
    ["ebpf", "emulator", "chains", "iptables", "nftables", "routed", "wire", "bare"];

/// What is measured, in a sentence without its full stop.
pub(super) fn sentence(workload: &str) -> &'static str {
    match workload {
        "TCP_RR" => "a request and its answer over an open TCP connection",
        "UDP_RR" => "a request and its answer in UDP datagrams",
        "TCP_CRR" => "connect, request, answer, close",
        "TCP_STREAM" => "TCP connections, filled",
        "UDP_STREAM" => "UDP datagrams, as many as go",
        "FIRST_PACKET" => "the first packet of a new flow",
        "PROGRAM" => "everything planned and written into an empty node",
        "UPDATE" => "one endpoint changed among all of them",
        "MEMORY" => {
            "what rules or tables take: of ebpf its maps, of paths in this process what they allocated, of the others what the \
             kernel allocated for who loaded them"
        }
        "BOOT" => "the cluster built, until packets pass",
        "FORWARD" => {
            "frames pushed through to a Service, as many as go; through `bare`, which knows none, to the pod itself"
        }
        _ => "as its suite says",
    }
}

/// The point's name: `TCP_RR, other node, 1 B, 32 connections`. What there is one of is left out.
pub(crate) fn title(point: &Point) -> String {
    let mut parts = vec![traffic(point)];
    if point.size_bytes > 0 {
        parts.push(format!("{} B", thousands(point.size_bytes)));
    }
    for (count, what) in [
        (point.connections, "connections"),
        (point.services, "services"),
        (point.policies, "policies"),
        (point.flows, "flows"),
    ] {
        match count {
            // Nobody measures a flow less than one.
            0 if matches!(what, "services" | "policies") => parts.push(format!("no {what}")),
            0 | 1 => {}
            _ => parts.push(format!("{} {what}", thousands(count))),
        }
    }
    if point.rate_per_s > 0 {
        parts.push(format!("{} offered/s", thousands(point.rate_per_s as usize)));
    }
    parts.join(", ")
}

/// The traffic and its way: `TCP_RR, other node`. What is done to a variant itself goes no way.
pub(super) fn traffic(point: &Point) -> String {
    let Point { workload, way, .. } = point;
    if way == "memory" && workload != "FORWARD" {
        return workload.clone();
    }
    format!("{workload}, {}", way.replace('-', " "))
}

/// `10,000`.
pub(super) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits that tell, or all before the point.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// `60.0 [50.0..90.0]`, or the number alone where there is no spread.
pub(super) fn spread(spread: Spread) -> String {
    let Spread { median, min, max } = spread;
    if min == max {
        return number(median);
    }
    format!("{} [{}..{}]", number(median), number(min), number(max))
}

/// The figures that were measured at a point, of those that are known, in the order of columns.
pub(super) fn figures<'a>(
    results: &'a Results,
    point: &'a Point,
) -> impl Iterator<Item = &'static Figure> + 'a {
    figure::ALL.iter().filter(|figure| {
        let here = results.samples.iter().filter(|sample| sample.point == *point);
        here.clone().any(|sample| sample.figures.contains_key(figure.name))
    })
}

/// Every variant, in the order of reports: our own first, the limits last, and a dataplane's with other IO behind it.
pub(super) fn variants(results: &Results) -> Vec<&str> {
    let mut variants = results.variants();
    variants.sort_by_key(|variant| {
        let (family, rest) = variant.split_once('/').unwrap_or((variant, ""));
        (place(family), rest)
    });
    variants
}

/// The place of a dataplane in [`KNOWN`], or the one behind.
pub(super) fn place(dataplane: &str) -> usize {
    KNOWN.iter().position(|known| *known == dataplane).unwrap_or(KNOWN.len())
}

/// The variants that were measured at a point, in the order of reports.
pub(super) fn variants_at<'a>(results: &'a Results, point: &Point) -> Vec<&'a str> {
    let here = |variant: &&str| {
        results.samples.iter().any(|sample| sample.variant == **variant && sample.point == *point)
    };
    variants(results).into_iter().filter(here).collect()
}

/// How often a point was measured, where that is not as often as the run says: by all variants, or by some.
pub(super) fn other_rounds(results: &Results, point: &Point) -> String {
    let variants = variants_at(results, point);
    let mut often: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for variant in &variants {
        often.entry(results.rounds_of(variant, point)).or_default().push(variant);
    }
    often.remove(&results.rounds);
    let said = often.into_iter().map(|(number, who)| match who.len() == variants.len() {
        true => format!("; {}", rounds(number)),
        false => format!("; {} of {}", rounds(number), who.join(" and ")),
    });
    said.collect()
}

/// How many rounds a run has, and who was measured in more of them where something must hold.
pub(super) fn all_rounds(results: &Results) -> String {
    let points = results.points();
    let mut more: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for variant in variants(results) {
        let most = points.iter().map(|point| results.rounds_of(variant, point)).max().unwrap_or_default();
        more.entry(most).or_default().push(format!("`{variant}`"));
    }
    let more = more.split_off(&(results.rounds + 1)).into_iter();
    let said = more.map(|(number, who)| {
        format!(" ({number} of {} where something must hold of them)", who.join(" and "))
    });
    rounds(results.rounds) + &said.collect::<String>()
}

fn rounds(number: usize) -> String {
    format!("{number} round{}", if number == 1 { "" } else { "s" })
}

/// How it was measured, and on what.
pub(super) fn circumstances(results: &Results) -> Vec<String> {
    let Results { time_s, fabric, machine, .. } = results;
    let rounds = rounds(results.rounds);
    let other = results.points().into_iter().any(|point| !other_rounds(results, point).is_empty());
    let said = if other { " where no other number is said" } else { "" };
    let lines = [
        format!(
            "Medians of {rounds} of {time_s} s{said}, [lowest..highest]; ratios within a round. Nodes joined by a {fabric}."
        ),
        format!("{}.", facts(machine)),
    ];
    let but = unsteady(results).map(|points| format!("Of these figures {points}."));
    lines.into_iter().chain(but).collect()
}

/// What is not to be quoted of a run, as the end of a sentence; nothing, if all is.
pub(super) fn unsteady(results: &Results) -> Option<String> {
    let points =
        noise::unsteady(results).into_iter().map(|(what, percent)| format!("{what} ({percent:.0} %)"));
    let points = points.collect::<Vec<_>>().join("; ");
    (!points.is_empty()).then(|| {
        format!(
            "nothing is to be quoted where the middle half of `{YARDSTICK}`'s rounds is too wide: {points}"
        )
    })
}

/// A machine in a line.
pub(super) fn facts(machine: &Machine) -> String {
    let Machine { cpus, cpu, kernel, steal_percent, load, took_s, .. } = machine;
    let memory = match machine.memory_bytes {
        0 => String::new(),
        bytes => format!(", {:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
    };
    let commit = match machine.commit.as_str() {
        "" => String::new(),
        commit => format!(", commit {commit}"),
    };
    format!(
        "{cpus} x {cpu}{memory}, Linux {kernel}{commit}; {steal_percent:.1} % stolen, load {load} before; took \
         {took_s:.0} s"
    )
}

/// The day that a run began on, in UTC: `2026-11-21`.
pub(super) fn day(began_s: u64) -> String {
    // Days since 1 March of year 0, in eras of 400 years, because leap days come last in years that begin in March
    // (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = began_s / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + u64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Sample;
    use crate::results::tests::point;

    #[test]
    fn a_title_says_what_is_more_than_one() {
        assert_eq!(title(&point()), "TCP_RR, other node, 1 B");
        let many = Point { connections: 32, services: 10_000, size_bytes: 0, ..point() };
        assert_eq!(title(&many), "TCP_RR, other node, 32 connections, 10,000 services");
        let (workload, way) = ("UPDATE".to_owned(), "memory".to_owned());
        assert_eq!(title(&Point { workload, way, size_bytes: 0, ..point() }), "UPDATE");
        assert_eq!(title(&Point { policies: 0, ..point() }), "TCP_RR, other node, 1 B, no policies");
    }

    #[test]
    fn a_point_with_other_rounds_than_the_run_says_so() {
        let mut results = crate::results::tests::results();
        assert_eq!(other_rounds(&results, &point()), "");
        assert!(circumstances(&results)[0].starts_with("Medians of 3 rounds of 0 s, "));
        results.rounds = 1;
        assert!(circumstances(&results)[0].starts_with("Medians of 1 round of 0 s "));
        results.rounds = 7;
        assert_eq!(other_rounds(&results, &point()), "; 3 rounds");
        assert!(circumstances(&results)[0].contains("7 rounds of 0 s where no other number is said, "));
        assert_eq!(all_rounds(&results), "7 rounds");
    }

    #[test]
    fn variants_with_more_rounds_than_the_others_of_a_point_are_named() {
        let mut results = crate::results::tests::results();
        let own = results.samples.iter().rfind(|sample| sample.variant == "routed").cloned();
        results.samples.extend(own.map(|sample| Sample { round: 8, ..sample }));
        assert_eq!(other_rounds(&results, &point()), "; 9 rounds of routed");
        assert_eq!(all_rounds(&results), "3 rounds (9 of `routed` where something must hold of them)");
    }

    #[test]
    fn variants_are_told_in_one_order_whatever_the_order_they_were_taken_in() {
        let mut results = crate::results::tests::results();
        for (sample, variant) in
            results.samples.iter_mut().zip(["wire", "chains/plain", "new", "chains", "ebpf"])
        {
            sample.variant = variant.to_owned();
        }
        results.samples.truncate(5);
        assert_eq!(variants(&results), ["ebpf", "chains", "chains/plain", "wire", "new"]);
    }

    #[test]
    fn a_day_is_that_of_the_calendar() {
        assert_eq!(day(0), "1970-01-01");
        assert_eq!(day(951_782_399), "2000-02-28");
        assert_eq!(day(951_782_400), "2000-02-29");
        assert_eq!(day(1_798_761_599), "2026-12-31");
    }

    #[test]
    fn numbers_have_the_digits_that_tell() {
        let said = [0.0, 0.004, 0.25, 12.345, 1234.5].map(number);
        assert_eq!(said, ["0", "0.0040", "0.25", "12.3", "1234"]);
        assert_eq!([1, 999, 1000, 1_234_567].map(thousands), ["1", "999", "1,000", "1,234,567"]);
    }
}
