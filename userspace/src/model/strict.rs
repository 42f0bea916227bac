//! A value in, a typed object out, and not a field lost on the way.

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::Value;

/// Decodes an object; an unknown field is an error in kubectl's words.
///
/// Objects that come from a server (`metadata.uid` present) may be newer than we are: what is unknown in
/// them is passed over.
pub(super) fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    let mut unknown = Vec::new();
    let mut note = |path: Path<'_>| unknown.push(format!("unknown field {:?}", field(&path)));
    let deserializer = serde_ignored::Deserializer::new(value, &mut note);
    let object = serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        match path.as_str() {
            "." => error.into_inner().to_string(),
            path => format!("{path}: {}", error.into_inner()),
        }
    })?;
    let from_server = value.pointer("/metadata/uid").is_some();
    if unknown.is_empty() || from_server {
        Ok(object)
    } else {
        Err(format!("strict decoding error: {}", unknown.join(", ")))
    }
}

/// `spec.ingress[0].ports[1].prot`.
fn field(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field(parent)),
        Path::Map { parent, key } => match field(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => field(parent),
    }
}
