//! Which flows open and close between two sets of objects.

use std::path::PathBuf;

use testbed::diff::{Change, Difference};
use testbed::output::{self, Format, Paint};
use testbed::progress::Progress;
use userspace::model::Objects;

use super::{Answer, resolved};

/// Show which flows policies open and close between two sets of objects, and which policies decide
///
/// Needs neither root nor a cluster. What is compared is what policies say of flows between pods, nodes and hosts
/// outside that are in both sets, after Services' addresses were replaced; new and removed pods are named.
/// Exit code 1: --fail-on-open or --fail-on-close was given, and some did.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kubernetes objects, given twice: the old set, then the new; each a file, a directory or `-`
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// It is a failure if a flow opens
    #[arg(long)]
    fail_on_open: bool,
    /// It is a failure if a flow closes
    #[arg(long)]
    fail_on_close: bool,
    /// How; a table is a paragraph for flows that change in the same way, and names of all ends if wide
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let [old, new] = args.files.as_slice() else {
        anyhow::bail!(
            "cannot compare {} with anything: give -f twice, the old set first: podpath diff -f OLD -f NEW",
            if args.files.len() == 1 { "one set of objects" } else { "more than two sets of objects" }
        );
    };
    let old = resolved(&Objects::read(std::slice::from_ref(old))?)?;
    // Who stays keeps its address.
    let new = Objects::read(std::slice::from_ref(new))?.resolve(Some(&old))?;
    let difference = {
        let _progress = Progress::start(format!("comparing {} pods with {}", old.pods.len(), new.pods.len()));
        Difference::between(&old, &new)?
    };
    let text = match args.output.document(&difference)? {
        Some(document) => document,
        None => paragraphs(&difference, args.output == Format::Wide),
    };
    output::print(&text)?;
    let failed = (args.fail_on_open && !difference.opened.is_empty())
        || (args.fail_on_close && !difference.closed.is_empty());
    Ok(if failed { Answer::No } else { Answer::Yes })
}

fn paragraphs(difference: &Difference, wide: bool) -> String {
    let paint = Paint::stdout();
    let mut text = String::new();
    for change in &difference.opened {
        text.push_str(&paragraph(&paint.bad("opens"), change, wide));
    }
    for change in &difference.closed {
        text.push_str(&paragraph(&paint.good("closes"), change, wide));
    }
    for (what, names) in [("new", &difference.added), ("removed", &difference.removed)] {
        if !names.is_empty() {
            text.push_str(&format!("{what}: {}\n", some(names, wide)));
        }
    }
    if difference.renamed > 0 {
        text.push_str(&format!(
            "replaced: {} compared with others of the same workload\n",
            counted(difference.renamed, "pod")
        ));
    }
    let pairs = |changes: &[Change]| changes.iter().map(|change| change.pairs).sum::<usize>();
    let (opened, closed) = (pairs(&difference.opened), pairs(&difference.closed));
    text + &format!("{} open, {} close\n", counted(opened, "pair"), counted(closed, "pair"))
}

fn paragraph(what: &str, change: &Change, wide: bool) -> String {
    let sides = |sides: &[testbed::diff::Side]| {
        let names = sides.iter().map(|side| match wide {
            true => side.members.join(", "),
            false => side.to_string(),
        });
        some(&names.collect::<Vec<_>>(), wide)
    };
    let Change { from, to, ports, before, after, .. } = change;
    format!(
        "{what}: {} -> {} at {}\n  before: {before}\n  after:  {after}\n\n",
        sides(from),
        sides(to),
        ports.join(", ")
    )
}

/// The first few, or all.
fn some(names: &[String], all: bool) -> String {
    const SHOWN: usize = 6;
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 && !all => format!("{} and {more} more", names[..SHOWN].join(", ")),
        _ => names.join(", "),
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
