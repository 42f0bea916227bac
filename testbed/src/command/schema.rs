//! What podpath's own kinds look like, for editors.

use testbed::output;
use userspace::model;

use super::Answer;

/// Print the JSON schema of podpath's own kinds, Testbed and External, for editors to complete and check by
///
/// Write it to a file, and name that in the first line of yours: `# yaml-language-server: $schema=podpath.schema.json`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<Answer> {
    let schema = serde_json::to_string_pretty(&model::schema())?;
    output::print(&(schema + "\n"))?;
    Ok(Answer::Yes)
}
