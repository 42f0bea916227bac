//! What a shell needs to complete `podpath`'s commands and flags.

use testbed::output;

use super::Answer;

/// What a shell knows the program by.
const NAME: &str = "podpath";

/// Print a script by which a shell completes commands and flags: `source <(podpath completion bash)`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// `all` is everything that can be said on the command line. What is hidden there is completed no more than it is told.
pub(crate) fn run(args: &Args, all: &clap::Command) -> anyhow::Result<Answer> {
    let told = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut of = clap::Command::new(NAME).version(env!("CARGO_PKG_VERSION")).subcommands(told);
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut of, NAME, &mut script);
    output::print(&String::from_utf8(script)?)?;
    Ok(Answer::Yes)
}
