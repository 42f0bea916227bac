//! What is wrong with policies, without a cluster.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use testbed::lint::{Check, Finding, Report, Severity, by_object};
use testbed::output::{self, Format, Paint};
use userspace::model::Objects;

use super::{Answer, resolved};

/// Show what is wrong with policies: rules that match nothing, typos, ports that nobody has, forgotten DNS
///
/// Needs neither root nor a cluster. Exit code 1: there are findings as bad as --fail-on.
#[derive(Debug, clap::Args)]
#[command(after_long_help = checks())]
pub(crate) struct Args {
    /// Kubernetes objects: files, directories, `-` for standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Look for these only; may be given again, or with commas
    #[arg(long, value_name = "CHECK", value_delimiter = ',', value_parser = check(), hide_possible_values = true)]
    only: Vec<Check>,
    /// Look for all but these
    #[arg(long, value_name = "CHECK", value_delimiter = ',', value_parser = check(), hide_possible_values = true)]
    skip: Vec<Check>,
    /// Findings that are as bad as this, or worse, are a failure
    #[arg(long, value_name = "SEVERITY", value_enum, default_value = "warning")]
    fail_on: Severity,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

fn check() -> impl TypedValueParser<Value = Check> {
    let slugs = Check::ALL.iter().map(|check| PossibleValue::new(check.slug()).help(check.sentence()));
    PossibleValuesParser::new(slugs)
        .map(|slug| Check::of(&slug).expect("the parser takes the names of checks only"))
}

/// The table of what is looked for.
fn checks() -> String {
    let mut text = "Checks, by the names that --only and --skip take:\n".to_owned();
    for check in Check::ALL {
        text.push_str(&format!("\n  {} ({})\n      {}\n", check.slug(), check.severity(), check.sentence()));
    }
    text
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let objects = Objects::read(&args.files)?;
    let cluster = resolved(&objects)?;
    let wanted = |check| (args.only.is_empty() || args.only.contains(&check)) && !args.skip.contains(&check);
    let report = Report::of(&objects, &cluster, wanted);
    let text = match args.output.document(&report)? {
        Some(document) => document,
        None => blocks(&report),
    };
    output::print(&text)?;
    Ok(if report.worst() >= Some(args.fail_on) { Answer::No } else { Answer::Yes })
}

/// A block for each object, a paragraph for each finding, and how many there are.
fn blocks(report: &Report) -> String {
    let paint = Paint::stdout();
    let mut text = String::new();
    for (object, findings) in by_object(&report.findings) {
        text.push_str(&format!("{object}\n"));
        for finding in findings {
            text.push_str(&paragraph(finding, paint));
        }
        text.push('\n');
    }
    let Report { findings, errors, warnings, notes } = report;
    let counts = format!("{} ({errors} errors, {warnings} warnings, {notes} notes)", findings.len());
    text + &match findings.len() {
        0 => format!("{} nothing found\n", paint.good("ok:")),
        1 => format!(
            "1 finding, a{}\n",
            if *errors == 1 {
                "n error"
            } else if *warnings == 1 {
                " warning"
            } else {
                " note"
            }
        ),
        _ => format!("findings: {counts}\n"),
    }
}

fn paragraph(finding: &Finding, paint: Paint) -> String {
    let Finding { file, line, field, severity, check, reason, next, .. } = finding;
    let severity = match severity {
        Severity::Note => severity.to_string(),
        Severity::Warning | Severity::Error => paint.bad(&severity.to_string()),
    };
    let place = if *line > 0 { format!("{file}:{line}") } else { file.clone() };
    format!("  {severity}: {check}: {field} ({place})\n    {reason}.\n    Next: {next}.\n")
}
