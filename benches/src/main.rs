//! `podpath-bench`: measures dataplanes side by side.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use benches::journal::{Head, Journal};
use benches::matrix::Suite;
use benches::report::{self, Command, Output};
use benches::results::{Fabric, Results};
use benches::services::Rounds;
use benches::{changes, grid, machine, masquerade, measure, memory, micro, path, policies, services};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Measures dataplanes side by side, on two pods of two nodes.
#[derive(Parser, Debug)]
#[command(name = "podpath-bench", version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to compare.
    #[arg(value_enum, default_value_t = Which::Quick)]
    suite: Which,
    /// Only these dataplanes, workloads and ways, parted by commas: ebpf,routed,tcp_crr,service. What goes no way
    /// (program, update, memory, boot) is left out where a way is named, unless it is named itself.
    #[arg(long)]
    only: Option<String>,
    /// How often each is measured; rules at most 3 times, traffic of the rarer ways at most 5, and by ebpf and routed
    /// three times as often what must hold of them.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// How long each time, in seconds.
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// What joins the nodes of every dataplane: a program that hands frames over at once, if nothing is said, or the
    /// kernel's bridge, which takes time of its own.
    #[arg(long, value_enum)]
    fabric: Option<Fabric>,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// What chance follows from: the order in which dataplanes take turns.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes all of the result to this file as JSON, whatever is printed; what is measured is noted beside it at once.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Goes on where a run of the same suite with the same --out was interrupted, behind its last whole round.
    #[arg(long, requires = "out")]
    resume: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    /// The main figures of every dataplane: less than a minute.
    Quick,
    /// Every workload every way, at the usual sizes: less than 25 minutes.
    Standard,
    /// How it goes with the number of services, policies and flows: an hour.
    Scale,
    /// How full a masquerade's range gets, and at what cost; in the kernel too, as root.
    Masquerade,
    /// What the load balancer's program costs for a packet, as root.
    Micro,
    /// What the path's programs cost for a packet, and each stage of it, as root.
    Path,
    /// How many frames a second go through the packet paths of this process: in memory, and as root on links.
    Memory,
    /// What it takes to say who may reach whom among 10,000 pods.
    Grid,
    /// What it takes to program many Services, to change one and to reach one among them; as root.
    Services,
    /// What it takes to plan many policies for one node, and one label more.
    Policies,
    /// How long packets are judged as before, after policies, labels and pods have changed; as root.
    Changes,
}

impl Which {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl Options {
    /// An option that was given, and that the suite has no use for.
    fn too_much(&self) -> Option<&'static str> {
        use Which::{Changes, Memory, Quick, Scale, Services, Standard};
        let compares = matches!(self.suite, Quick | Standard | Scale);
        let timed = compares || matches!(self.suite, Memory | Services);
        let given = [
            ("--only", self.only.is_some(), compares),
            ("--rounds", self.rounds.is_some(), timed || matches!(self.suite, Changes)),
            ("--seconds", self.seconds.is_some(), timed),
            ("--seed", self.seed.is_some(), compares),
            ("--fabric", self.fabric.is_some(), compares || matches!(self.suite, Memory)),
            ("--resume", self.resume, compares),
        ];
        given.into_iter().find(|(_, given, taken)| *given && !taken).map(|(name, ..)| name)
    }
}

/// Set by the first signal; the second ends the process as it would have without us.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> anyhow::Result<ExitCode> {
    match &options.command {
        Some(command) => command.run(),
        None => measured(&options).map(|()| ExitCode::SUCCESS),
    }
}

fn measured(options: &Options) -> anyhow::Result<()> {
    let has_page = matches!(options.suite, Which::Quick | Which::Standard | Which::Scale);
    if options.output == Output::Html && !has_page {
        anyhow::bail!("this suite has no page: print it with -o table, json or csv");
    }
    if let Some(option) = options.too_much() {
        anyhow::bail!("suite {} takes no {option}: leave it out", options.suite.name());
    }
    let suite = match options.suite {
        Which::Quick => Suite::quick(),
        Which::Standard => Suite::standard(),
        Which::Scale => Suite::scale(),
        Which::Masquerade => return fill(options),
        Which::Micro => return balance(options),
        Which::Path => return walk(options),
        Which::Memory => return forward(options),
        Which::Grid => return reach(options),
        Which::Services => return program(options),
        Which::Policies => return plan(options),
        Which::Changes => return change(options),
    };
    compare(options, suite)
}

/// Measures a suite, or what is left of it to measure.
fn compare(options: &Options, mut suite: Suite) -> anyhow::Result<()> {
    if let Some(only) = &options.only {
        suite = suite.only(only)?;
    }
    suite.rounds = options.rounds.map_or(suite.rounds, usize::from);
    suite.time = options.seconds.unwrap_or(suite.time);
    suite.seed = options.seed.unwrap_or(suite.seed);
    suite.fabric = options.fabric.unwrap_or(suite.fabric);
    listen_for_signals().context("cannot listen for signals")?;
    let mut journal = match &options.out {
        Some(out) => {
            let (path, head) = (Journal::beside(out), Head::new(&suite, machine::now()));
            if options.resume { Journal::resume(&path, &head)? } else { Journal::begin(&path, &head)? }
        }
        None => Journal::default(),
    };
    let mut progress = Progress::default();
    let measured = measure::compare(&suite, &mut journal, &STOP, &mut |what| progress.tell(what));
    progress.end();
    let results = match (measured, &options.out) {
        (Ok(results), _) => results,
        (Err(error), Some(_)) => {
            anyhow::bail!("{error}; the samples so far are kept: go on with --resume");
        }
        (Err(error), None) => return Err(error.into()),
    };
    if let Some(path) = &options.out {
        results.write(path)?;
    }
    journal.end()?;
    warn(&results);
    report::tell(&results, options.output)
}

fn warn(results: &Results) {
    for why in &results.noise {
        eprintln!("INVALID: {why}; do not quote these figures");
    }
}

/// What is going on, on stderr: one line that changes on a terminal, elsewhere a line now and then.
#[derive(Default)]
struct Progress {
    told: Option<Instant>,
}

impl Progress {
    /// How often a line is written where each stays.
    const EVERY: Duration = Duration::from_secs(10);

    fn tell(&mut self, what: &str) {
        // What stderr refuses, it refuses.
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r\x1b[K{what}");
        } else if !what.starts_with("round") || self.told.is_none_or(|told| told.elapsed() >= Self::EVERY) {
            let _ = writeln!(stderr, "{what}");
            self.told = Some(Instant::now());
        }
    }

    fn end(&self) {
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r\x1b[K");
        }
    }
}

/// Fills a masquerade's range.
fn fill(options: &Options) -> anyhow::Result<()> {
    let rows = masquerade::measure(nix::unistd::geteuid().is_root(), |what| eprintln!("{what}"))?;
    tell(options, &serde_json::to_string_pretty(&rows)?, &masquerade::Beside(&rows), &masquerade::csv(&rows))
}

/// Times the load balancer's program.
fn balance(options: &Options) -> anyhow::Result<()> {
    let rows = micro::measure(|what| eprintln!("{what}"))?;
    tell(options, &serde_json::to_string_pretty(&rows)?, &micro::Beside(&rows), &micro::csv(&rows))
}

/// Times the path's programs.
fn walk(options: &Options) -> anyhow::Result<()> {
    listen_for_signals().context("cannot listen for signals")?;
    let costs = path::measure(&STOP, |what| eprintln!("{what}"))?;
    tell(options, &serde_json::to_string_pretty(&costs)?, &path::Beside(&costs), &path::csv(&costs))
}

/// Pushes frames through the packet paths of this process.
fn forward(options: &Options) -> anyhow::Result<()> {
    listen_for_signals().context("cannot listen for signals")?;
    let suite = Suite::standard();
    let rounds = (options.rounds.map_or(suite.rounds, usize::from), options.seconds.unwrap_or(suite.time));
    let links = nix::unistd::geteuid().is_root().then_some(options.fabric.unwrap_or(suite.fabric));
    let results = memory::measure(rounds, links, &STOP, |what| eprintln!("{what}"))?;
    if let Some(path) = &options.out {
        results.write(path)?;
    }
    warn(&results);
    report::tell(&results, options.output)
}

/// Judges each pod of a large cluster with each.
fn reach(options: &Options) -> anyhow::Result<()> {
    let rows = grid::measure(|what| eprintln!("{what}"))?;
    tell(options, &serde_json::to_string_pretty(&rows)?, &services::Below(&rows), &services::csv(&rows))
}

/// Programs Services.
fn program(options: &Options) -> anyhow::Result<()> {
    listen_for_signals().context("cannot listen for signals")?;
    let suite = Suite::standard();
    let rounds = Rounds {
        rounds: options.rounds.map_or(suite.rounds, usize::from),
        time: options.seconds.unwrap_or(suite.time),
    };
    let rows = services::measure(rounds, &STOP, |what| eprintln!("{what}"))?;
    tell(options, &serde_json::to_string_pretty(&rows)?, &services::Below(&rows), &services::csv(&rows))
}

/// Plans policies.
fn plan(options: &Options) -> anyhow::Result<()> {
    listen_for_signals().context("cannot listen for signals")?;
    let rows = policies::measure(&STOP, |what| eprintln!("{what}"))?;
    tell(options, &serde_json::to_string_pretty(&rows)?, &services::Below(&rows), &services::csv(&rows))
}

/// Changes a live cluster.
fn change(options: &Options) -> anyhow::Result<()> {
    listen_for_signals().context("cannot listen for signals")?;
    let rounds = options.rounds.map_or(changes::ROUNDS, usize::from);
    let rows = changes::measure(rounds, &STOP, |what| eprintln!("{what}"))?;
    tell(options, &serde_json::to_string_pretty(&rows)?, &changes::Below(&rows), &changes::csv(&rows))
}

/// Prints a result in the way that was asked for, and keeps it if that was.
fn tell(options: &Options, json: &str, table: &dyn std::fmt::Display, csv: &str) -> anyhow::Result<()> {
    if let Some(path) = &options.out {
        fs::write(path, format!("{json}\n"))
            .with_context(|| format!("cannot write the result to {}", path.display()))?;
    }
    print_as(options.output, json, table, csv);
    Ok(())
}

fn print_as(output: Output, json: &str, table: &dyn std::fmt::Display, csv: &str) {
    match output {
        Output::Table => print!("{table}"),
        Output::Json => println!("{json}"),
        Output::Csv => print!("{csv}"),
        Output::Html => unreachable!("such a suite is refused before it measures"),
    }
}

/// Until the first signal of each kind, whatever was built is removed before the process ends.
fn listen_for_signals() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    let allowed = (0.05..=600.0).contains(&seconds);
    if allowed {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("expected 0.05 to 600 seconds".to_owned())
    }
}
