//! What this machine can and cannot do.

use serde::Serialize;
use testbed::doctor::{self, Finding};
use testbed::output::{self, Format, Paint, columns};

use super::Answer;

/// Say what this machine can and cannot do, with remedies
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
struct Report {
    /// Dataplanes, and whether they work here.
    dataplanes: Vec<Works>,
    requirements: Vec<Finding>,
}

#[derive(Serialize)]
struct Works {
    dataplane: &'static str,
    works: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let requirements = doctor::examine();
    let dataplanes = ["ebpf", "emulator"]
        .map(|dataplane| Works { dataplane, works: doctor::works(&requirements, dataplane) })
        .into();
    let report = Report { dataplanes, requirements };
    let text = args.output.document(&report)?.unwrap_or_else(|| table(&report));
    output::print(&text)?;
    Ok(if doctor::works(&report.requirements, "ebpf") { Answer::Yes } else { Answer::No })
}

fn table(report: &Report) -> String {
    let rows = report.requirements.iter().map(|one| {
        let found = match (one.found, one.needed_for) {
            (true, _) => "found",
            (false, []) => "missing, not always needed",
            (false, _) => "missing",
        };
        let needed = if one.needed_for.is_empty() { "-".to_owned() } else { one.needed_for.join(",") };
        [
            one.requirement.to_owned(),
            found.to_owned(),
            needed,
            one.detail.clone(),
            one.remedy.unwrap_or("-").to_owned(),
        ]
    });
    let mut text = columns(["REQUIREMENT", "FOUND", "NEEDED FOR", "SEEN", "REMEDY"], rows);
    text.push('\n');
    let paint = Paint::stdout();
    for Works { dataplane, works } in &report.dataplanes {
        let verdict = if *works { paint.good("works here") } else { paint.bad("does not work here") };
        text += &format!("{dataplane} {verdict}\n");
    }
    text
}
