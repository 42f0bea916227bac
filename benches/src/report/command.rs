//! The commands that tell of results which are there already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use testbed::output::{self, Paint};

use super::compare::{Verdict, compare};
use super::{Table, csv, page, replaced};
use crate::results::Results;

/// What can be done with files of results.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Command {
    /// Compare two files of results: exit code 1 if something became worse
    Compare {
        /// The results before
        before: PathBuf,
        /// The results after
        after: PathBuf,
    },
    /// Print a file of results
    Report {
        /// What `--out` wrote
        results: PathBuf,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Write the README's results anew
    Readme {
        /// What they are made of
        #[arg(default_value = "benches/results/standard.json")]
        results: PathBuf,
        /// Where they stand
        #[arg(long, default_value = "README.md")]
        readme: PathBuf,
    },
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Tables, for a terminal.
    Table,
    /// Everything.
    Json,
    /// The raw figures.
    Csv,
    /// A page for a browser, which needs nothing else.
    Html,
}

impl Command {
    /// Does it: 0, or 1 if something became worse.
    ///
    /// # Errors
    /// A file cannot be read or written, or two cannot be compared.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Compare { before, after } => {
                let comparison = compare(&Results::read(before)?, &Results::read(after)?)?;
                for warning in &comparison.warnings {
                    eprintln!("warning: {warning}");
                }
                output::print(&comparison.table(Paint::stdout()))?;
                return Ok(ExitCode::from(u8::from(comparison.count(Verdict::Worse) > 0)));
            }
            Self::Report { results, output } => tell(&Results::read(results)?, *output)?,
            Self::Readme { results, readme } => renew(&Results::read(results)?, readme)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints results to stdout.
///
/// # Errors
/// Whatever stdout refuses.
pub fn tell(results: &Results, output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Table => Table { results, paint: Paint::stdout() }.to_string(),
        Output::Json => serde_json::to_string_pretty(results)? + "\n",
        Output::Csv => csv(results),
        Output::Html => page(results),
    };
    Ok(output::print(&text)?)
}

fn renew(results: &Results, readme: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let anew = replaced(&text, results).with_context(|| format!("cannot renew {}", readme.display()))?;
    if anew != text {
        fs::write(readme, anew).with_context(|| format!("cannot write {}", readme.display()))?;
    }
    Ok(())
}
