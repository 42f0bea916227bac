//! The JSON schema of podpath's own kinds says of a field what the reader says of it.

use std::fs;
use std::path::Path;

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use userspace::model::{load_text, schema};

fn validator() -> Validator {
    jsonschema::validator_for(&schema()).unwrap_or_else(|error| panic!("{error}"))
}

/// Everything that the reader says of an object, a line each.
fn complaints(object: &Value) -> Vec<String> {
    let read = load_text("test.yaml", &object.to_string());
    read.err().map(|error| error.each().iter().map(ToString::to_string).collect()).unwrap_or_default()
}

/// A schema, or the one that it refers to; of several the first.
fn meant<'a>(all: &'a Value, schema: &'a Value) -> &'a Value {
    let one = schema["anyOf"].get(0).unwrap_or(schema);
    let to = one["$ref"].as_str().and_then(|to| all.pointer(to.trim_start_matches('#')));
    to.map_or(one, |to| meant(all, to))
}

/// Whether a schema takes values of a type.
fn takes(schema: &Value, kind: &str) -> bool {
    schema["type"] == kind || schema["type"].as_array().is_some_and(|kinds| kinds.contains(&json!(kind)))
}

/// Something that is right for a field, as far as its own type, words and bounds go.
fn sample(all: &Value, name: &str, schema: &Value) -> Value {
    let schema = meant(all, schema);
    for word in [&schema["const"], &schema["enum"][0], &schema["minimum"]] {
        if !word.is_null() {
            return word.clone();
        }
    }
    let kind = schema["type"].as_str().or(schema["type"][0].as_str());
    match (kind, name) {
        (_, "prefix") => json!("203.0.113.0/24"),
        (_, "address") => json!("203.0.113.7"),
        (Some("object"), _) => {
            let needed = schema["required"].as_array().cloned().unwrap_or_default();
            let needed = needed.iter().filter_map(Value::as_str);
            let fields = needed.map(|name| (name.to_owned(), sample(all, name, &schema["properties"][name])));
            Value::Object(fields.collect())
        }
        (Some("string"), _) => json!("node:n1"),
        (Some("array"), _) => json!([]),
        (Some("boolean"), _) => json!(false),
        (kind, _) => panic!("nothing is known for {name}: {kind:?}"),
    }
}

/// A field of an object: the object with something else in its place, and what the field is called in complaints.
struct Field<'a> {
    all: &'a Value,
    whole: Value,
    pointer: String,
    path: String,
    schema: &'a Value,
}

impl Field<'_> {
    fn with(&self, value: Value) -> Value {
        let mut whole = self.whole.clone();
        *whole.pointer_mut(&self.pointer).expect("it is in the sample") = value;
        whole
    }
    fn is_refused(&self, validator: &Validator, value: Value) {
        let object = self.with(value);
        assert!(!validator.is_valid(&object), "the schema takes {object}");
        assert!(!complaints(&object).is_empty(), "the reader takes {object}");
    }
    /// Others may be missing or be wrong beside it.
    fn is_taken(&self, validator: &Validator, value: Value) {
        let object = self.with(value);
        let wrong: Vec<_> = validator.iter_errors(&object).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "the schema refuses {object}: {wrong:?}");
        let words = ["Unsupported value", "inclusive", "must be one of", "Required value", "expected"];
        let of_it = complaints(&object).into_iter().find(|line| {
            line.contains(&format!("{}: ", self.path)) && words.iter().any(|word| line.contains(word))
        });
        assert_eq!(of_it, None, "the reader refuses {object}");
    }
}

/// Calls with every field of an object, and of those in it; how many there were.
fn each(field: &Field<'_>, called: &mut dyn FnMut(&Field<'_>)) -> usize {
    called(field);
    let schema = meant(field.all, field.schema);
    let inner = |name: &str, schema, at: &str| {
        let value = sample(field.all, name, schema);
        let mut whole = field.whole.clone();
        let place = whole.pointer_mut(&field.pointer).expect("it is in the sample");
        let path = if at == "0" {
            *place = json!([value]);
            format!("{}[0]", field.path)
        } else {
            place.as_object_mut().expect("what has fields is an object").insert(at.to_owned(), value);
            format!("{}.{at}", field.path).trim_start_matches('.').to_owned()
        };
        Field { all: field.all, whole, pointer: format!("{}/{at}", field.pointer), path, schema }
    };
    let none = Map::new();
    let fields = schema["properties"].as_object().unwrap_or(&none);
    let mut fields: Vec<_> = fields.iter().map(|(name, schema)| inner(name, schema, name)).collect();
    fields.extend(schema.get("items").map(|items| inner("", items, "0")));
    1 + fields.iter().map(|field| each(field, called)).sum::<usize>()
}

fn of_each_field(called: &mut dyn FnMut(&Field<'_>)) {
    let all = schema();
    for kind in ["Testbed", "External"] {
        let schema = &all["$defs"][kind];
        let mut whole = sample(&all, kind, schema);
        whole["metadata"] = json!({"name": "one"});
        let field = Field { all: &all, whole, pointer: String::new(), path: String::new(), schema };
        let least = if kind == "Testbed" { 90 } else { 10 };
        let fields = each(&field, called);
        assert!(fields >= least, "{kind} has {fields} fields");
    }
}

#[test]
fn a_word_or_a_number_that_one_of_them_takes_the_other_takes() {
    let validator = validator();
    of_each_field(&mut |field| {
        let schema = meant(field.all, field.schema);
        for word in schema["enum"].as_array().into_iter().flatten() {
            field.is_taken(&validator, word.clone());
        }
        for bound in ["minimum", "maximum"] {
            if schema[bound].is_number() {
                field.is_taken(&validator, schema[bound].clone());
            }
        }
        if takes(schema, "null") {
            field.is_taken(&validator, Value::Null);
        }
    });
}

#[test]
fn a_word_or_a_number_that_one_of_them_refuses_the_other_refuses() {
    let validator = validator();
    of_each_field(&mut |field| {
        let schema = meant(field.all, field.schema);
        // What is of another version or kind is nobody's.
        if !schema["const"].is_null() {
            return;
        }
        if !schema["enum"].is_null() {
            field.is_refused(&validator, json!("stranger"));
        }
        for (bound, step) in [("minimum", -1), ("maximum", 1)] {
            if let Some(number) = schema[bound].as_i64() {
                field.is_refused(&validator, json!(number + step));
            }
        }
        if let Some(step) = schema["multipleOf"].as_i64() {
            field.is_refused(&validator, json!(schema["minimum"].as_i64().unwrap_or(0) + step / 2));
        }
        if !takes(schema, "object") {
            field.is_refused(&validator, json!({"a": "b"}));
        }
        if schema["additionalProperties"] == false {
            let mut value = field.whole.pointer(&field.pointer).cloned().expect("it is in the sample");
            value["stranger"] = json!(1);
            field.is_refused(&validator, value);
            for needed in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let mut value = field.whole.pointer(&field.pointer).cloned().expect("as before");
                value.as_object_mut().and_then(|value| value.remove(needed)).expect("it is needed");
                // As above.
                if schema["properties"][needed]["const"].is_null() {
                    field.is_refused(&validator, value);
                }
            }
        }
    });
}

/// The objects of podpath's own kinds in a text of several documents.
fn own(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    all.into_iter().filter(|object| object["apiVersion"] == "podpath.dev/v1alpha1").collect()
}

fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|it| it == "yaml") {
            found.push(fs::read_to_string(&path).expect("a text"));
        }
    }
}

#[test]
fn every_testbed_and_external_of_the_cases_and_examples_fits() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testbed");
    let (mut texts, mut objects) = (Vec::new(), Vec::new());
    files(&root.join("cases"), &mut texts);
    files(&root.join("examples"), &mut texts);
    for text in &texts {
        objects.extend(own(text));
        let cases: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_default();
        objects.extend(cases.iter().filter_map(|case| case["objects"].as_str()).flat_map(own));
    }
    assert!(objects.len() > 50, "only {}", objects.len());
    let validator = validator();
    for object in objects {
        let wrong: Vec<_> = validator.iter_errors(&object).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{object}: {wrong:?}");
    }
}

#[test]
fn what_is_nobody_of_ours_fits_and_a_kind_that_we_do_not_have_does_not() {
    let validator = validator();
    assert!(validator.is_valid(&json!({"apiVersion": "v1", "kind": "Pod", "spec": {"any": "thing"}})));
    assert!(!validator.is_valid(&json!({"apiVersion": "podpath.dev/v1alpha1", "kind": "Testbd"})));
}
