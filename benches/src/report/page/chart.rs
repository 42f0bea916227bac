//! Drawings as SVG. Colours and dashes are classes: the page's style says what they look like.

use std::fmt::Write;

use super::axis::{Axis, short};
use super::escaped;
use crate::report::words::place;
use crate::results::Spread;

/// Where the drawing is: left, top, width and height of what the axes enclose, and the whole.
const LEFT: f64 = 66.0;
const TOP: f64 = 12.0;
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 250.0;
const WHOLE: (f64, f64) = (646.0, 312.0);
/// Of a bar, with what parts it from the next.
const ROW: f64 = 26.0;
/// Room for the names of bars.
const NAMES: f64 = 118.0;
/// About what a letter takes.
const LETTER: f64 = 7.0;

/// The classes of a variant: its colour and dash, which strangers share, and its own, by which it is hidden.
pub(super) fn classes(variants: &[&str], variant: &str) -> String {
    let (family, rest) = variant.split_once('/').map_or((variant, ""), |(family, rest)| (family, rest));
    let colour = place(family);
    let thin = if rest.is_empty() { "" } else { " thin" };
    let own = variants.iter().position(|other| *other == variant).unwrap_or(variants.len());
    format!("c{colour}{thin} v{own}")
}

/// A curve.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Its name.
    pub name: String,
    /// See [`classes`].
    pub classes: String,
    /// In the order of x.
    pub points: Vec<(f64, Spread)>,
}

/// A bar.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// Its name.
    pub name: String,
    /// See [`classes`].
    pub classes: String,
    /// How long, and from where to where it was.
    pub spread: Spread,
}

/// Curves over two axes; with a mark and the spread at each point, if `marked`.
pub(super) fn lines(sentence: &str, (x, y): (&Axis, &Axis), lines: &[Line], marked: bool) -> String {
    let mut svg = open(sentence, WHOLE);
    axes(&mut svg, x, y);
    let at = |x_value: f64, y_value: f64| {
        (LEFT + WIDTH * x.place(x_value), TOP + HEIGHT * (1.0 - y.place(y_value)))
    };
    for line in lines {
        let places = line.points.iter().map(|(x, spread)| at(*x, spread.median));
        let places: Vec<String> = places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<g class=\"{}\"><title>{}</title><polyline points=\"{}\"/>",
            line.classes,
            escaped(&line.name),
            places.join(" ")
        );
        for (x, spread) in line.points.iter().filter(|_| marked) {
            let ((x, low), (_, high), (_, middle)) =
                (at(*x, spread.min), at(*x, spread.max), at(*x, spread.median));
            let _ = write!(
                svg,
                "<path class=\"whisker\" d=\"M{x:.1} {low:.1}V{high:.1}\"/><circle cx=\"{x:.1}\" cy=\"{middle:.1}\" \
                 r=\"3\"/>"
            );
        }
        svg.push_str("</g>");
    }
    svg + "</svg>"
}

fn axes(svg: &mut String, x: &Axis, y: &Axis) {
    let (right, bottom) = (LEFT + WIDTH, TOP + HEIGHT);
    svg.push_str("<g class=\"axis\">");
    for (place, text) in &x.ticks {
        let at = LEFT + WIDTH * place;
        let _ = write!(
            svg,
            "<path d=\"M{at:.1} {TOP}V{bottom}\"/><text x=\"{at:.1}\" y=\"{}\" class=\"middle\">{text}</text>",
            bottom + 16.0
        );
    }
    for (place, text) in &y.ticks {
        let at = TOP + HEIGHT * (1.0 - place);
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" class=\"end\">{text}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let (middle, below) = (LEFT + WIDTH / 2.0, bottom + 38.0);
    let _ =
        write!(svg, "<text x=\"{middle}\" y=\"{below}\" class=\"middle label\">{}</text>", escaped(&x.label));
    let beside = TOP + HEIGHT / 2.0;
    let _ = write!(
        svg,
        "<text transform=\"translate(13 {beside}) rotate(-90)\" class=\"middle label\">{}</text></g>",
        escaped(&y.label)
    );
}

/// Bars to the right, each with its number and a whisker from the lowest to the highest.
pub(super) fn bars(sentence: &str, axis: &Axis, bars: &[Bar]) -> String {
    let height = ROW * bars.len() as f64;
    let (left, width) = (NAMES, LEFT + WIDTH - NAMES - 60.0);
    let mut svg = open(sentence, (WHOLE.0, TOP + height + 46.0));
    upright(&mut svg, axis, (left, width, height));
    for (row, bar) in bars.iter().enumerate() {
        let Bar { name, classes, spread } = bar;
        let (top, middle) = (TOP + ROW * row as f64 + 5.0, TOP + ROW * (row as f64 + 0.5));
        let [low, end, high] =
            [spread.min, spread.median, spread.max].map(|value| left + width * axis.place(value));
        let (long, high_text) = (end - left, high + 6.0);
        let (name, value, tall) = (escaped(name), short(spread.median), ROW - 10.0);
        let (before, line, up, down) = (left - 6.0, middle + 4.0, middle - 4.0, middle + 4.0);
        let _ = write!(
            svg,
            "<g class=\"{classes}\"><text x=\"{before}\" y=\"{line:.1}\" class=\"end\">{name}</text>\
             <rect x=\"{left}\" y=\"{top:.1}\" width=\"{long:.1}\" height=\"{tall}\"/>\
             <path class=\"whisker over\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {up:.1}V{down:.1}M{high:.1} \
             {up:.1}V{down:.1}\"/><text x=\"{high_text:.1}\" y=\"{line:.1}\">{value}</text></g>"
        );
    }
    svg + "</svg>"
}

/// Ticks and label of an axis below rows.
fn upright(svg: &mut String, axis: &Axis, (left, width, height): (f64, f64, f64)) {
    let bottom = TOP + height;
    svg.push_str("<g class=\"axis\">");
    for (place, text) in &axis.ticks {
        let at = left + width * place;
        let _ = write!(
            svg,
            "<path d=\"M{at:.1} {TOP}V{bottom}\"/><text x=\"{at:.1}\" y=\"{}\" class=\"middle\">{text}</text>",
            bottom + 16.0
        );
    }
    let (middle, below) = (left + width / 2.0, bottom + 38.0);
    let _ = write!(
        svg,
        "<text x=\"{middle}\" y=\"{below}\" class=\"middle label\">{}</text></g>",
        escaped(&axis.label)
    );
}

/// Rows of parts, one after the other: what each is called, and its length. Parts of the same name look alike.
pub(super) fn stacks(sentence: &str, axis: &Axis, rows: &[(String, Vec<(String, f64)>)]) -> String {
    const TALL: f64 = 46.0;
    let height = TALL * rows.len() as f64;
    let longest = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let left = (LETTER * longest as f64).max(NAMES) + 12.0;
    let width = LEFT + WIDTH - 30.0 - left;
    let mut svg = open(sentence, (WHOLE.0, TOP + height + 46.0));
    upright(&mut svg, axis, (left, width, height));
    let names = order(rows);
    for (row, (name, parts)) in rows.iter().enumerate() {
        let (top, middle) = (TOP + TALL * row as f64 + 6.0, TOP + TALL * (row as f64 + 0.5));
        let _ = write!(
            svg,
            "<g><text x=\"{}\" y=\"{:.1}\" class=\"end\">{}</text>",
            left - 8.0,
            middle + 4.0,
            escaped(name)
        );
        let mut sum = 0.0;
        for (part, ns) in parts.iter().filter(|(_, ns)| *ns > 0.0) {
            let [begin, end] = [sum, sum + ns].map(|value| left + width * axis.place(value));
            sum += ns;
            let colour = names.iter().position(|name| name == part).unwrap_or_default();
            let (wide, centre) = (end - begin, (begin + end) / 2.0);
            let _ = write!(
                svg,
                "<rect class=\"s{colour}\" x=\"{begin:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{}\"><title>{}: {} \
                 ns</title></rect>",
                TALL - 12.0,
                escaped(part),
                short(*ns)
            );
            // The name where it has room, turned where it has not.
            let fits = LETTER * part.len() as f64 <= wide;
            let text = if fits { escaped(part) } else { short(*ns) };
            if fits || LETTER * text.len() as f64 <= wide {
                let _ = write!(
                    svg,
                    "<text x=\"{centre:.1}\" y=\"{:.1}\" class=\"middle on\">{text}</text>",
                    middle + 4.0
                );
            }
        }
        let end = left + width * axis.place(sum) + 6.0;
        let _ = write!(svg, "<text x=\"{end:.1}\" y=\"{:.1}\">{} ns</text></g>", middle + 4.0, short(sum));
    }
    svg + "</svg>"
}

/// The names of all parts, in the order in which they first come.
pub(super) fn order(rows: &[(String, Vec<(String, f64)>)]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (part, _) in rows.iter().flat_map(|(_, parts)| parts) {
        if !names.contains(&part.as_str()) {
            names.push(part);
        }
    }
    names
}

fn open(sentence: &str, (width, height): (f64, f64)) -> String {
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>",
        escaped(sentence)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_keeps_its_colour_in_every_run_and_its_siblings_are_thinner() {
        let variants = ["chains", "ebpf", "chains/plain", "other"];
        let of = |variant| classes(&variants, variant);
        assert_eq!(variants.map(of), ["c2 v0", "c0 v1", "c2 thin v2", "c8 v3"]);
    }

    #[test]
    fn a_bar_ends_at_the_median_and_its_whisker_at_the_extremes() {
        let spread = Spread { median: 5.0, min: 2.5, max: 10.0 };
        let bar = Bar { name: "<a>".to_owned(), classes: "c0 v0".to_owned(), spread };
        let svg = bars("A title.", &Axis::linear("kpps", 10.0), &[bar]);
        let width = LEFT + WIDTH - NAMES - 60.0;
        assert!(svg.contains(&format!("width=\"{:.1}\" height", width / 2.0)), "{svg}");
        assert!(svg.contains(&format!("M{:.1} 25.0H{:.1}", NAMES + width / 4.0, NAMES + width)), "{svg}");
        assert!(svg.contains("&lt;a&gt;") && !svg.contains("<a>"), "{svg}");
    }
}
