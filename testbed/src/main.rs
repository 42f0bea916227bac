//! `podpath`: a table of contents. Every command is a file of [`command`].

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod command;

use command::{
    apply, bench, check, completion, delete, demo, diff, doctor, down, exec, explain, fabric, get, link,
    lint, plan, schema, serve, up, upgrade, r#where,
};

/// A Kubernetes cluster's packet path on one machine, without the cluster.
#[derive(Debug, Parser)]
#[command(name = "podpath", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Up(up::Args),
    Down(down::Args),
    Get(get::Args),
    Exec(exec::Args),
    Apply(apply::Args),
    Delete(delete::Args),
    Upgrade(upgrade::Args),
    Check(check::Args),
    Explain(explain::Args),
    Where(r#where::Args),
    Plan(plan::Args),
    Lint(lint::Args),
    Diff(diff::Args),
    Link(link::Args),
    Bench(bench::Args),
    Schema(schema::Args),
    Completion(completion::Args),
    Doctor(doctor::Args),
    #[command(hide = true)]
    Serve(serve::Args),
    #[command(hide = true)]
    Fabric(fabric::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    command::finish(match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Up(args) => up::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Exec(args) => exec::run(&args),
        Command::Apply(args) => apply::run(&args),
        Command::Delete(args) => delete::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Where(args) => r#where::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Link(args) => link::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completion(args) => completion::run(&args, &Cli::command()),
        Command::Doctor(args) => doctor::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Fabric(args) => fabric::run(&args),
    })
}
