//! The flows file: a JSON array of `[from, to, port, protocol]`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use userspace::model::{Cluster, Endpoint, EndpointError, Protocol, Who};

use super::Flow;

/// Why a flows file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// It cannot be opened or read.
    #[error("cannot read flows from {}: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        why: std::io::Error,
    },
    /// It is not JSON, or no array.
    #[error("{}: cannot read flows: {why}; expected a JSON array of [from, to, port, protocol]", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A row is wrong.
    #[error("{}: row {row}: {field}: {why}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        row: usize,
        /// `from`, `to`, `port` or `protocol`; `length` if there are not four of them.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads a flows file, and checks that every end is one of the cluster's.
///
/// # Errors
/// [`FlowsError`], of the first row that is wrong.
pub fn read_flows(path: &Path, cluster: &Cluster) -> Result<Vec<Flow>, FlowsError> {
    let text =
        std::fs::read_to_string(path).map_err(|why| FlowsError::Read { path: path.to_owned(), why })?;
    let shape = |why: String| FlowsError::Shape { path: path.to_owned(), why };
    let document: Value = serde_json::from_str(&text).map_err(|error| shape(error.to_string()))?;
    let Value::Array(rows) = document else {
        return Err(shape(format!("it is {}", kind(&document))));
    };
    (rows.iter().enumerate())
        .map(|(index, row)| {
            read_row(row, cluster).map_err(|(field, why)| FlowsError::Row {
                path: path.to_owned(),
                row: index + 1,
                field,
                why,
            })
        })
        .collect()
}

fn read_row(row: &Value, cluster: &Cluster) -> Result<Flow, (&'static str, String)> {
    let fields = row.as_array().map_or(&[][..], Vec::as_slice);
    let [from, to, port, protocol] = fields else {
        let found =
            row.as_array().map_or_else(|| kind(row).to_owned(), |fields| format!("{} values", fields.len()));
        return Err(("length", format!("expected [from, to, port, protocol], found {found}")));
    };
    let end = |field, value: &Value| {
        let text = value.as_str().ok_or((field, format!("expected a name, found {}", kind(value))))?;
        let wrong = |error: EndpointError| (field, error.to_string());
        let Endpoint { who, port } = text.parse().map_err(wrong)?;
        if let Some(port) = port {
            return Err((field, format!("expected a name alone, found {who} with port {port}")));
        }
        cluster.find(&who).map_err(wrong)?;
        Ok(who)
    };
    let from = end("from", from)?;
    if let Who::Service(_) | Who::Frontend(..) = from {
        return Err(("from", format!("{from} cannot send: a Service is only an address to dial")));
    }
    let to = end("to", to)?;
    let port = port
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| ("port", format!("expected 1 to 65535, found {port}")))?;
    let protocol = protocol.as_str().and_then(protocol_of).ok_or_else(|| {
        let why = format!(r#"expected "TCP", "UDP" or "SCTP", found {protocol}"#);
        ("protocol", why)
    })?;
    Ok(Flow { from, to, port, protocol, over: None })
}

fn protocol_of(name: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|one| one.to_string().eq_ignore_ascii_case(name))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
