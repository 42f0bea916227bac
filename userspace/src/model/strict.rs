//! A value in, a typed object out, and not a field lost on the way.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::Value;
use serde_path_to_error::Segment;

/// Decodes an object; an unknown field is an error in kubectl's words.
///
/// Objects that come from a server (`metadata.uid` present) may be newer than we are: what is unknown in
/// them is passed over. YAML 1.1's other words for true and false are read where a boolean belongs.
pub(super) fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    let mut value = Cow::Borrowed(value);
    loop {
        let mut unknown = Vec::new();
        let mut note = |path: Path<'_>| unknown.push(format!("unknown field {:?}", field(&path)));
        let deserializer = serde_ignored::Deserializer::new(value.as_ref(), &mut note);
        match serde_path_to_error::deserialize(deserializer) {
            Ok(object) => {
                let from_server = value.pointer("/metadata/uid").is_some();
                let passed_over = unknown.is_empty() || from_server;
                return passed_over
                    .then_some(object)
                    .ok_or_else(|| format!("strict decoding error: {}", unknown.join(", ")));
            }
            Err(error) => match with_boolean(&value, &error) {
                Some(mended) => value = Cow::Owned(mended),
                None => return Err(why(error)),
            },
        }
    }
}

fn why(error: serde_path_to_error::Error<serde_json::Error>) -> String {
    match error.path().to_string().as_str() {
        "." => error.into_inner().to_string(),
        path => format!("{path}: {}", error.into_inner()),
    }
}

/// The value with `yes` where the error is replaced by `true`, if it is that and a boolean belongs there.
fn with_boolean(value: &Value, error: &serde_path_to_error::Error<serde_json::Error>) -> Option<Value> {
    if !error.inner().to_string().ends_with("expected a boolean") {
        return None;
    }
    let mut mended = value.clone();
    let place = error.path().iter().try_fold(&mut mended, |value, segment| match segment {
        Segment::Seq { index } => value.get_mut(index),
        Segment::Map { key } => value.get_mut(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    })?;
    let boolean = match place.as_str()?.to_lowercase().as_str() {
        "y" | "yes" | "on" | "true" => true,
        "n" | "no" | "off" | "false" => false,
        _ => return None,
    };
    *place = boolean.into();
    Some(mended)
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
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            field(parent)
        }
    }
}
