//! A page of its own, for a browser: no network, no scripts, light and dark as the reader has it.

mod axis;
mod chart;
mod drawings;

use super::readme::{Beside, beside};
use super::table::{columns, measured_as, target};
use super::words::{day, number, other_rounds, sentence, spread, title, unsteady, variants};
use crate::results::{Cost, Program, Results};
use crate::targets::{self, Outcome};

const TEMPLATE: &str = include_str!("page/page.html");

/// The page.
pub fn page(results: &Results) -> String {
    let parts = [
        ("/*HIDDEN*/", hidden(results)),
        ("<!--SUBTITLE-->", subtitle(results)),
        ("<!--VALIDITY-->", validity(results)),
        ("<!--BESIDE-->", side_by_side(results)),
        ("<!--TARGETS-->", must_hold(results)),
        ("<!--KEY-->", key(results)),
        ("<!--DRAWINGS-->", drawings::all(results) + &costs(&results.costs) + &programs(&results.programs)),
        ("<!--MACHINE-->", machine(results)),
        ("<!--RAW-->", raw(results)),
    ];
    // From place to place, so that nothing that is put in can be taken for a place.
    let (mut page, mut rest) = (String::new(), TEMPLATE);
    for (place, text) in parts {
        let (before, after) =
            rest.split_once(place).expect("the template has each place once, in this order");
        page.push_str(before);
        page.push_str(&text);
        rest = after;
    }
    page + rest
}

/// Text that cannot be taken for a part of the page.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(letter),
        }
    }
    safe
}

/// A table; the cells are escaped here.
fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = String>| {
        cells.map(|cell| format!("<{tag}>{}</{tag}>", escaped(&cell))).collect::<String>()
    };
    let head = cells("th", &mut heads.iter().map(|head| (*head).to_owned()));
    let rows = rows.into_iter().map(|row| format!("<tr>{}</tr>\n", cells("td", &mut row.into_iter())));
    format!("<div class=\"wide\"><table><tr>{head}</tr>\n{}</table></div>", rows.collect::<String>())
}

/// What hides a variant whose mark in the key is taken away, without a script.
fn hidden(results: &Results) -> String {
    let rule = |at| format!("body:has(#k{at}:not(:checked)) .v{at} {{ display: none; }}\n");
    (0..variants(results).len()).map(rule).collect()
}

fn subtitle(results: &Results) -> String {
    let Results { suite, rounds, time_s, machine, .. } = results;
    let text = format!(
        "Suite {suite}: {} points, {} variants, {rounds} rounds of {time_s} s; begun on {}.",
        results.points().len(),
        variants(results).len(),
        day(machine.began_s)
    );
    escaped(&text)
}

fn validity(results: &Results) -> String {
    let absent = results.absent.iter().map(|absent| {
        format!("<p>Not measured: <b>{}</b>: {}</p>", escaped(&absent.variant), escaped(&absent.why))
    });
    let absent: String = absent.collect();
    if results.noise.is_empty() {
        let but = unsteady(results).map(|points| format!("<p>Of these figures {}.</p>", escaped(&points)));
        return but.unwrap_or_default() + &absent;
    }
    let why = results.noise.iter().map(|why| format!("{}. ", escaped(why)));
    format!(
        "<p class=\"invalid\"><b>This run is invalid:</b> the machine was too noisy for figures to quote. {}</p>{absent}",
        why.collect::<String>()
    )
}

fn side_by_side(results: &Results) -> String {
    let Some(Beside { heads, rows }) = beside(results) else { return String::new() };
    let heads: Vec<&str> = ["variant"].into_iter().chain(heads).collect();
    let rows = rows.into_iter().map(|(variant, cells)| {
        let cells = cells.into_iter().map(|cell| cell.map_or("-".to_owned(), spread));
        [variant.to_owned()].into_iter().chain(cells).collect()
    });
    format!(
        "<h2>Beside the kernel's plain routing</h2><p>Ratios to <code>routed</code>: of the latency (less is better), then \
         of rates (more is better).</p>{}",
        table(&heads, rows)
    )
}

fn must_hold(results: &Results) -> String {
    let judged = targets::judge(results);
    let count = |outcome| judged.iter().filter(|judged| judged.outcome == outcome).count();
    let [met, missed, open] = [Outcome::Met, Outcome::Missed, Outcome::NotMeasured].map(count);
    let counted = match count(Outcome::NotJudged) {
        0 => format!("{met} met, {missed} missed"),
        unjudged => format!("{unjudged} measured, none judged: the run is invalid"),
    };
    let rows = judged.iter().map(|judged| {
        let class = match judged.outcome {
            Outcome::Met => "met",
            Outcome::Missed => "missed",
            Outcome::NotJudged | Outcome::NotMeasured => "not",
        };
        let cells = [judged.target.measure.to_owned(), target(judged), measured_as(judged)];
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escaped(cell))).collect();
        format!("<tr>{cells}<td class=\"{class}\">{}</td></tr>\n", judged.outcome)
    });
    format!(
        "<h2>What must hold</h2><p>{counted}; {open} not measured in this run. A packet's cost is judged by \
         the median; the range begins at the quiet runs.</p><div class=\"wide\"><table><tr><th>measure</th><th>target</th>\
         <th>measured</th><th></th></tr>\n{}</table></div>",
        rows.collect::<String>()
    )
}

fn key(results: &Results) -> String {
    let variants = variants(results);
    let entry = |(at, variant): (usize, &&str)| {
        // Its own class would hide the entry with the curves.
        let classes = chart::classes(&variants, variant);
        let classes = classes.rsplit_once(" v").map_or("", |(classes, _)| classes);
        format!(
            "<label><input type=\"checkbox\" id=\"k{at}\" checked><svg viewBox=\"0 0 44 12\" class=\"{classes}\">\
             <polyline points=\"0,6 44,6\"/></svg>{}</label>",
            escaped(variant)
        )
    };
    variants.iter().enumerate().map(entry).collect()
}

fn costs(costs: &[Cost]) -> String {
    if costs.is_empty() {
        return String::new();
    }
    let rows = costs.iter().map(|cost| {
        let (packet, program) = (cost.packet.clone(), cost.program.clone());
        vec![packet, program, cost.flows.to_string(), number(cost.median_ns), number(cost.quiet_ns)]
    });
    format!(
        "<h2>What a packet costs in the kernel's test run</h2>{}",
        table(&["packet", "program", "flows", "median, ns", "quiet, ns"], rows)
    )
}

fn programs(programs: &[Program]) -> String {
    if programs.is_empty() {
        return String::new();
    }
    let rows = programs.iter().map(|program| {
        let Program { instructions, verified, peak_states, total_states, stack_bytes, .. } = program;
        let counts = [instructions, verified, peak_states, total_states, stack_bytes].map(u64::to_string);
        [&[program.name.clone()][..], &counts[..], &[number(program.load_us as f64 / 1e3)][..]].concat()
    });
    let heads = ["program", "instructions", "verified", "peak states", "states", "stack, bytes", "load, ms"];
    format!(
        "<h2>What the verifier says of each program</h2><p>It gives up at a million verified instructions, and at 512 bytes \
         of stack.</p>{}",
        table(&heads, rows)
    )
}

fn machine(results: &Results) -> String {
    let machine = &results.machine;
    let unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
    let facts = [
        ("CPU", format!("{} x {}", machine.cpus, machine.cpu)),
        ("memory", format!("{:.1} GiB", machine.memory_bytes as f64 / (1u64 << 30) as f64)),
        ("Linux", machine.kernel.clone()),
        ("commit", unknown(&machine.commit)),
        ("begun on", day(machine.began_s)),
        ("took", format!("{:.0} s", machine.took_s)),
        ("CPU time taken away by the host", format!("{:.1} %", machine.steal_percent)),
        ("load in the minute before", number(machine.load)),
        ("nodes joined by", format!("a {}", results.fabric)),
        ("seed", results.seed.to_string()),
    ];
    let facts = facts.map(|(name, fact)| format!("<dt>{name}</dt><dd>{}</dd>", escaped(&fact)));
    format!("<dl>{}</dl>", facts.concat())
}

fn raw(results: &Results) -> String {
    let points = results.points().into_iter().map(|point| {
        let columns = columns(results, point, |_, _| (true, true));
        let heads: Vec<&str> = columns.iter().map(|column| column[0].as_str()).collect();
        let rows =
            (1..columns[0].len()).map(|row| columns.iter().map(|column| column[row].clone()).collect());
        let (said, rounds) = (sentence(&point.workload), other_rounds(results, point));
        let said = escaped(&format!("{}: {said}{rounds}", title(point)));
        format!("<h3>{said}</h3>{}", table(&heads, rows))
    });
    points.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::rich;
    use crate::results::tests::results;

    #[test]
    fn it_has_every_part_and_asks_for_nothing_from_elsewhere() {
        let page = page(&rich());
        for part in [
            "What must hold",
            "Beside the kernel",
            "How long ",
            "How much ",
            "Where the time goes",
            "What the verifier says",
            "number of services",
            "number of policies",
            "On what it was measured",
        ] {
            assert!(page.contains(part), "{part} is not on the page");
        }
        for word in ["<script", "http://", "https://", "url(", "@import", "<link", "<img", "src="] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn what_came_from_elsewhere_is_escaped() {
        let mut results = rich();
        results.suite = "<!--RAW--><script>".to_owned();
        results.samples[0].variant = "<b>&".to_owned();
        let page = page(&results);
        assert!(page.contains("Imagined &lt;CPU&gt; &amp; Co"), "the machine's name");
        assert!(page.contains("&lt;no such link&gt; &amp; &quot;nothing&quot;"), "why one is absent");
        assert!(!page.contains("<script") && !page.contains("<b>&<"), "nothing gets through");
    }

    #[test]
    fn every_tag_that_is_opened_is_closed() {
        for results in [rich(), results(), Results::default()] {
            let page = page(&results);
            for tag in ["svg", "g", "table", "tr", "div", "figure", "text", "details", "label", "p", "h2"] {
                let opened =
                    page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
                assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
            }
            assert!(!page.contains("NaN") && !page.contains(">inf"), "no number is missing");
        }
    }

    #[test]
    fn a_run_that_is_invalid_says_so_above_everything() {
        let page = page(&Results { noise: vec!["load & steal".to_owned()], ..rich() });
        let at = page.find("This run is invalid").expect("it is said");
        assert!(at < page.find("What must hold").expect("targets"));
        assert!(page.contains("load &amp; steal. "));
        assert!(page.contains("20 measured, none judged: the run is invalid; 0 not measured in this run"));
        assert!(!page.contains("class=\"met\"") && !page.contains("class=\"missed\""), "nothing is judged");
    }
}
