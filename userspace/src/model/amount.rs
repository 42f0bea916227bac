//! Durations, percentages and rates, as people write them.

/// Seconds, minutes and the like in nanoseconds. Source: Go, `time.ParseDuration`.
const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
const SECOND: u64 = 1_000_000_000;

/// `30m`, `1h30m`, `1.5s`: nanoseconds.
///
/// # Errors
/// What it must be like, to follow the name of a field.
pub fn duration(text: &str) -> Result<u64, String> {
    parse_duration(text).ok_or_else(|| format!("must be a duration like 20ms, 60s or 1h30m, not {text:?}"))
}

fn parse_duration(text: &str) -> Option<u64> {
    let mut rest = text;
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_u64;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(number, *scale)?)?;
        rest = after;
    }
    Some(total)
}

/// A decimal number of units, in whole smallest units.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u64>().ok() };
    let part = u32::try_from(fraction.len()).ok().and_then(|length| 10_u64.checked_pow(length))?;
    let fraction = u128::from(digits(fraction)?) * u128::from(scale) / u128::from(part);
    digits(whole)?.checked_mul(scale)?.checked_add(u64::try_from(fraction).ok()?)
}

/// A duration of whole seconds between these.
pub(super) fn seconds(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let nanoseconds = duration(text)?;
    if !nanoseconds.is_multiple_of(SECOND) {
        return Err(format!("must be whole seconds, not {text:?}"));
    }
    let seconds = u32::try_from(nanoseconds / SECOND).ok();
    seconds.filter(|seconds| (least..=most).contains(seconds)).ok_or_else(|| {
        format!("must be between {} and {}, inclusive, not {text:?}", spell(least), spell(most))
    })
}

/// The shortest way to write so many seconds.
pub(super) fn spell(seconds: u32) -> String {
    match seconds {
        0 => "0s".into(),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// `1%`, `0.05%`: parts of a million.
///
/// # Errors
/// What it must be like, to follow the name of a field.
pub fn percentage(text: &str) -> Result<u32, String> {
    let parts = text.strip_suffix('%').and_then(|number| scaled(number, 10_000));
    let parts = parts.and_then(|parts| u32::try_from(parts).ok()).filter(|parts| *parts <= 1_000_000);
    parts.ok_or_else(|| format!("must be a percentage between 0% and 100%, like 1% or 0.05%, not {text:?}"))
}

/// `100mbit`: bits per second. Source: tc(8), whose units are decimal.
///
/// # Errors
/// What it must be like, to follow the name of a field.
pub fn rate(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 4] =
        [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
    let parsed = UNITS.iter().find_map(|(unit, scale)| scaled(text.strip_suffix(unit)?, *scale));
    parsed
        .filter(|rate| *rate > 0)
        .ok_or_else(|| format!("must be a rate like 512kbit, 100mbit or 1gbit, not {text:?}"))
}
