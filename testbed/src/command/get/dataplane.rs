//! `podpath get dataplane`: what became of packets and of dialling sockets on each node, and how much room its tables
//! have left.

use std::collections::BTreeMap;

use dataplane::Reason;
use testbed::agents;
use testbed::output::{self, Format, columns};
use userspace::agent::Counts;

use super::super::{Answer, Subject};

/// # Errors
/// The cluster is not up on `ebpf`, or an agent does not answer.
pub(super) fn run(subject: &Subject, format: Format) -> anyhow::Result<Answer> {
    let Subject::Live(state) = subject else {
        anyhow::bail!("cannot show the dataplane of objects in files: there is none until the cluster is up");
    };
    if state.dataplane != "ebpf" {
        anyhow::bail!(
            "cannot show the dataplane of {}: it is {}, which counts nothing: bring it up with --dataplane ebpf",
            state.cluster.name,
            state.dataplane
        );
    }
    let counts = agents::counts(&state.cluster)?;
    output::print(&format.document(&counts)?.unwrap_or_else(|| tables(&counts)))?;
    Ok(Answer::Yes)
}

fn tables(counts: &BTreeMap<String, Counts>) -> String {
    let verdicts = counts.iter().flat_map(|(node, counts)| {
        counts.verdicts.iter().map(|(verdict, (packets, bytes))| {
            let meaning = Reason::from_slug(verdict).map_or("", Reason::sentence);
            [node.clone(), verdict.clone(), packets.to_string(), bytes.to_string(), meaning.to_owned()]
        })
    });
    let audited = counts.iter().filter(|(_, counts)| counts.audited > 0).map(|(node, counts)| {
        let meaning = "Policies deny it, and audit let it pass. Its verdict is counted besides.";
        [node.clone(), "audited".to_owned(), counts.audited.to_string(), String::new(), meaning.to_owned()]
    });
    let verdicts = verdicts.chain(audited);
    let sockets = counts.iter().flat_map(|(node, counts)| {
        counts
            .sockets
            .iter()
            .map(|(turn, times)| [node.clone(), turn.clone(), times.to_string(), meaning(turn).to_owned()])
    });
    let tables = counts.iter().flat_map(|(node, counts)| {
        counts.tables.iter().map(|(table, (rows, capacity))| {
            let pressure = 100.0 * *rows as f64 / f64::from((*capacity).max(1));
            [node.clone(), table.clone(), rows.to_string(), capacity.to_string(), format!("{pressure:.2} %")]
        })
    });
    let drivers = counts.iter().filter(|(_, counts)| counts.accelerated).map(|(node, _)| {
        [node.clone(), "native".to_owned(), "Packets from the uplink are met in its driver.".to_owned()]
    });
    let some = |there: bool, table: String| there.then_some(table);
    let parts = [
        Some(columns(["NODE", "VERDICT", "PACKETS", "BYTES", "MEANING"], verdicts)),
        some(
            counts.values().any(|counts| counts.accelerated),
            columns(["NODE", "ACCELERATION", "MEANING"], drivers),
        ),
        some(
            counts.values().any(|counts| !counts.sockets.is_empty()),
            columns(["NODE", "SOCKETS", "TIMES", "MEANING"], sockets),
        ),
        Some(columns(["NODE", "TABLE", "ROWS", "CAPACITY", "PRESSURE"], tables)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// What a word of [`Counts::sockets`] says.
fn meaning(turn: &str) -> &'static str {
    match turn {
        "backend" => "A socket dialled a Service and was led to a backend.",
        "full" => "There was no room to remember what a socket dialled: its packets are translated.",
        _ => "",
    }
}
