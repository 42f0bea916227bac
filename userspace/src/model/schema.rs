//! What podpath's own kinds look like, as a JSON schema: for editors, which then complete fields, show what they mean,
//! and mark what the reader would refuse.
//!
//! It is made of the types that the reader fills ([`super::own`]). What the reader asks beyond a field's own type, words
//! and bounds (ranges that overlap, fields that go with each other) no schema says.

use std::collections::BTreeMap;

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

use super::own::{External, Testbed};

/// The name, and what else Kubernetes' `ObjectMeta` has.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "its fields are for the schema alone")]
pub(super) struct Metadata {
    /// A DNS label of at most 40 bytes; `lab` when left out.
    name: Option<String>,
    /// For people and their tools.
    labels: Option<BTreeMap<String, String>>,
    /// For people and their tools.
    annotations: Option<BTreeMap<String, String>>,
}

/// The same of what needs a name.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "its fields are for the schema alone")]
pub(super) struct Named {
    /// Unique.
    name: String,
    /// For people and their tools.
    labels: Option<BTreeMap<String, String>>,
    /// For people and their tools.
    annotations: Option<BTreeMap<String, String>>,
}

/// `80`, `"8000-8010"` or `"*"`.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "its values are for the schema alone")]
pub(super) enum PortRange {
    Number(#[schemars(range(min = 0, max = 65_535))] i64),
    Text(String),
}

/// Both kinds in one schema (JSON Schema 2020-12). An object of anybody else's kind fits whatever it is, so that one
/// file may hold them all.
pub fn schema() -> Value {
    let mut made = SchemaSettings::draft2020_12().into_generator();
    let mut kind = |name: &str, of: &dyn Fn(&mut SchemaGenerator) -> schemars::Schema| {
        json!({
            "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
            "then": of(&mut made),
        })
    };
    let kinds = [
        kind("Testbed", &|made| made.subschema_for::<Testbed>()),
        kind("External", &|made| made.subschema_for::<External>()),
    ];
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "podpath.dev/v1alpha1",
        "description": "podpath's own kinds, Testbed and External.",
        "if": {"properties": {"apiVersion": {"const": super::own::API_VERSION}}, "required": ["apiVersion"]},
        "then": {"required": ["kind"], "properties": {"kind": {"enum": ["Testbed", "External"]}}, "allOf": kinds},
        "$defs": made.take_definitions(true),
    });
    if let Some(types) = schema["$defs"].as_object_mut() {
        types.values_mut().for_each(may_be_without_value);
    }
    schema
}

/// A field without a value is a field left out: null may stand wherever nothing need.
fn may_be_without_value(of: &mut Value) {
    let needed = of["required"].clone();
    let Some(fields) = of.get_mut("properties").and_then(Value::as_object_mut) else { return };
    let is_needed = |name: &str| needed.as_array().is_some_and(|all| all.iter().any(|one| one == name));
    for (_, field) in fields.iter_mut().filter(|(name, _)| !is_needed(name)) {
        if let Some(kind) = field.get("type").cloned()
            && kind.is_string()
        {
            field["type"] = json!([kind, "null"]);
        }
        if let Some(words) = field.get_mut("enum").and_then(Value::as_array_mut) {
            words.push(Value::Null);
        }
        if let Some(to) = field.get("$ref").cloned() {
            let said = field["description"].take();
            *field = json!({"description": said, "anyOf": [{"$ref": to}, {"type": "null"}]});
        }
    }
}
