//! How answers are written: tables for people, JSON and YAML for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

/// The value of `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns under heads.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

impl Format {
    /// The value as JSON or YAML; `None` where a table is wanted.
    ///
    /// # Errors
    /// The value has no such form, which is a bug of its type.
    pub fn document(self, value: &impl Serialize) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Table | Self::Wide => None,
            Self::Json => Some(serde_json::to_string_pretty(value)? + "\n"),
            Self::Yaml => Some(serde_saphyr::to_string(value)?),
        })
    }
}

/// Cells in columns, three spaces apart, as kubectl sets them.
pub fn columns<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let widths: [usize; N] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}   "));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Writes data to stdout. A reader that has gone away (`podpath get pods | head -1`) wants no more, and
/// that is no error.
///
/// # Errors
/// Whatever else stdout refuses.
pub fn print(text: &str) -> io::Result<()> {
    let written = io::stdout().lock().write_all(text.as_bytes());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Colours, where somebody looks: on a terminal, unless `NO_COLOR` is set (no-color.org).
#[derive(Clone, Copy, Debug, Default)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For what is written to stdout.
    pub fn stdout() -> Self {
        Self::on(io::stdout().is_terminal())
    }

    /// For what is written to stderr.
    pub fn stderr() -> Self {
        Self::on(io::stderr().is_terminal())
    }

    fn on(terminal: bool) -> Self {
        Self { on: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    /// What is wrong.
    pub fn bad(self, text: &str) -> String {
        self.wrapped("1;31", text)
    }

    /// What is as it should be.
    pub fn good(self, text: &str) -> String {
        self.wrapped("32", text)
    }

    fn wrapped(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() {
        let rows = [["web", "n1"], ["a-long-name", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(["NAME", "NODE"], rows), "NAME          NODE\nweb           n1\na-long-name\n");
    }

    #[test]
    fn a_document_ends_in_a_newline() {
        for format in [Format::Json, Format::Yaml] {
            let text = format.document(&["a", "b"]).unwrap().unwrap();
            assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{text:?}");
        }
        assert_eq!(Format::Wide.document(&1).unwrap(), None);
    }
}
