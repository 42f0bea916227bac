//! Axes: from a number to a place, and the ticks between.

use crate::report::words::{number, thousands};

/// Parts of all requests that an axis of parts has ticks at.
const PARTS: [(f64, &str); 6] =
    [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];

/// Where numbers are, from 0 (where the axis begins) to 1 (where it ends).
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    /// Places and what is written there.
    pub ticks: Vec<(f64, String)>,
    scale: Scale,
}

#[derive(Clone, Copy, Debug)]
enum Scale {
    /// From zero.
    Linear {
        max: f64,
    },
    Logarithmic {
        min: f64,
        max: f64,
    },
    /// Logarithmic, with a place for zero before.
    Counts {
        min: f64,
        max: f64,
    },
    /// By how few are left: as far from 90 to 99 as from 99 to 99.9 percent.
    Parts,
}

impl Axis {
    /// From zero to beyond the largest value, in four to eight even steps.
    pub(super) fn linear(label: &str, largest: f64) -> Self {
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let size = 10f64.powf((largest / 4.0).log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * size).into_iter();
        let step = step.filter(|step| largest / step <= 6.0).fold(f64::INFINITY, f64::min);
        let steps = (largest / step).ceil() as usize;
        let max = step * steps as f64;
        let ticks = (0..=steps).map(|at| (at as f64 / steps as f64, short(step * at as f64)));
        Self { label: label.to_owned(), ticks: ticks.collect(), scale: Scale::Linear { max } }
    }

    /// From the power of ten, or two or five of it, below the least value to the one above the largest.
    pub(super) fn logarithmic(label: &str, least: f64, largest: f64) -> Self {
        let least = if least > 0.0 { least } else { 1e-3 };
        let largest = largest.max(least * 1.01);
        let first = least.log10().floor() as i32;
        let last = largest.log10().ceil() as i32;
        let marks = (first..=last).flat_map(|power| [1.0, 2.0, 5.0].map(|part| part * 10f64.powi(power)));
        let marks: Vec<f64> = marks.collect();
        let min = marks.iter().copied().rfind(|mark| *mark <= least).unwrap_or(least);
        let max = marks.iter().copied().find(|mark| *mark >= largest).unwrap_or(largest);
        let scale = Scale::Logarithmic { min, max };
        let few = max / min > 2000.0;
        let told = marks.into_iter().filter(|mark| (min..=max).contains(mark));
        let told = told.filter(|mark| !few || (mark.log10() - mark.log10().round()).abs() < 1e-9);
        let ticks = told.map(|mark| (scale.place(mark), short(mark))).collect();
        Self { label: label.to_owned(), ticks, scale }
    }

    /// Of counts, with a tick at each.
    pub(super) fn counts(label: &str, counts: &[usize]) -> Self {
        let positive = || counts.iter().copied().filter(|count| *count > 0);
        let min = positive().min().unwrap_or(1) as f64;
        let max = (positive().max().unwrap_or(1) as f64).max(min * 2.0);
        let with_zero = counts.contains(&0);
        let scale = if with_zero { Scale::Counts { min, max } } else { Scale::Logarithmic { min, max } };
        let ticks = counts.iter().map(|count| (scale.place(*count as f64), thousands(*count)));
        Self { label: label.to_owned(), ticks: ticks.collect(), scale }
    }

    /// Of parts of a whole.
    pub(super) fn parts(label: &str) -> Self {
        let ticks = PARTS.map(|(part, text)| (Scale::Parts.place(part), text.to_owned())).to_vec();
        Self { label: label.to_owned(), ticks, scale: Scale::Parts }
    }

    /// Where a value is; what is beyond the ends is at them.
    pub(super) fn place(&self, value: f64) -> f64 {
        self.scale.place(value)
    }
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        /// How much of an axis with zero comes after it.
        const BEHIND_ZERO: f64 = 0.85;
        let logarithmic = |min: f64, max: f64| (value.max(min) / min).ln() / (max / min).ln();
        let place = match self {
            Self::Linear { max } => value / max,
            Self::Logarithmic { min, max } => logarithmic(min, max),
            Self::Counts { .. } if value <= 0.0 => 0.0,
            Self::Counts { min, max } => 1.0 - BEHIND_ZERO + BEHIND_ZERO * logarithmic(min, max),
            Self::Parts => (1.0 - value).max(1e-9).log10() / -4.0,
        };
        place.clamp(0.0, 1.0)
    }
}

/// A number as it stands at a tick.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e9 => format!("{} G", trimmed(value / 1e9)),
        size if size >= 1e6 => format!("{} M", trimmed(value / 1e6)),
        size if size >= 1e4 => format!("{} k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = number(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn a_linear_axis_begins_at_zero_and_ends_at_a_round_number() {
        let axis = Axis::linear("Gbit/s", 9.3);
        assert_eq!(ticks(&axis), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!((axis.place(0.0), axis.place(5.0), axis.place(99.0)), (0.0, 0.5, 1.0));
        assert_eq!(ticks(&Axis::linear("none", 0.0)).first(), Some(&"0"));
    }

    #[test]
    fn a_logarithmic_axis_has_as_much_room_for_each_factor() {
        let axis = Axis::logarithmic("us", 11.0, 900.0);
        assert_eq!(ticks(&axis), ["10", "20", "50", "100", "200", "500", "1000"]);
        assert!((axis.place(100.0) - 0.5).abs() < 1e-9);
        assert_eq!(
            ticks(&Axis::logarithmic("us", 1.0, 1e6)),
            ["1", "10", "100", "1000", "10 k", "100 k", "1 M"]
        );
    }

    #[test]
    fn counts_have_a_place_for_none() {
        let axis = Axis::counts("policies", &[0, 10, 100, 1000]);
        assert_eq!(ticks(&axis), ["0", "10", "100", "1,000"]);
        assert!(axis.place(0.0) == 0.0 && axis.place(10.0) > 0.1 && axis.place(1000.0) == 1.0);
    }

    #[test]
    fn parts_are_placed_by_how_few_are_left() {
        let axis = Axis::parts("of the requests");
        let [half, nine, ninety_nine] = [0.5, 0.9, 0.99].map(|part| axis.place(part));
        assert!((nine - 0.25).abs() < 1e-9 && (ninety_nine - 0.5).abs() < 1e-9 && half < nine);
        assert_eq!(axis.place(1.0), 1.0);
    }
}
