//! Files and text in, documents out: YAML with several documents, JSON, lists taken apart.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::error::{Error, Faults, Origin};

/// One object, as it was written.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

/// Reads files, directories (their manifests in the order of their names, no deeper) and `-`.
pub(super) fn paths(paths: &[PathBuf]) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    let mut faults = Faults::default();
    for path in paths {
        match files(path) {
            Ok(files) => {
                for file in files {
                    let name = file.display().to_string();
                    match read(&file).and_then(|content| text(&name, &content)) {
                        Ok(found) => documents.extend(found),
                        Err(error) => faults.push(error),
                    }
                }
            }
            Err(error) => faults.push(error),
        }
    }
    faults.or(documents)
}

/// The files that a path stands for.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let unreadable = |source| Error::Unreadable { path: path.display().to_string(), source };
    let entries = fs::read_dir(path).map_err(unreadable)?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(unreadable)?.path();
        let manifest = matches!(file.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"));
        if manifest && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Error::NoManifests { path: path.display().to_string() });
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, Error> {
    let mut content = String::new();
    let result = if path.as_os_str() == "-" {
        io::stdin().lock().read_to_string(&mut content).map(drop)
    } else {
        fs::read_to_string(path).map(|found| content = found)
    };
    match result {
        Ok(()) => Ok(content),
        Err(source) => Err(Error::Unreadable { path: path.display().to_string(), source }),
    }
}

/// Every object in a text; `name` is what errors call it.
pub(super) fn text(name: &str, content: &str) -> Result<Vec<Document>, Error> {
    // Windows puts a byte order mark in front.
    let content = content.trim_start_matches('\u{feff}');
    // JSON is tried first where it can be, because a JSON stream may go on without separators, and
    // JSON strings have escapes that YAML's lack. What isn't JSON after all may still be YAML in flow style.
    let roots = match content.trim_start().starts_with('{').then(|| json(name, content)) {
        Some(Ok(roots)) => roots,
        Some(Err(error)) if Path::new(name).extension().is_some_and(|e| e == "json") => {
            return Err(error);
        }
        _ => yaml(name, content)?,
    };
    let mut documents = Vec::new();
    for Root { document, lines } in roots {
        take_apart(document, &lines, &mut documents);
    }
    Ok(documents)
}

/// A document, and the lines of its `items` if it is a list.
struct Root {
    document: Document,
    lines: Vec<u64>,
}

fn json(name: &str, content: &str) -> Result<Vec<Root>, Error> {
    let mut roots = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(content).into_iter::<Parsed>();
    loop {
        let offset = stream.byte_offset();
        let blank = content[offset..].find(|c: char| !c.is_whitespace()).unwrap_or(0);
        let line = 1 + content[..offset + blank].matches('\n').count() as u64;
        let origin = Origin { file: name.into(), line };
        match stream.next() {
            None => return Ok(roots),
            Some(Ok(Parsed { value, lines })) => {
                roots.push(Root { document: Document { origin, value }, lines })
            }
            Some(Err(error)) => {
                let line = error.line() as u64;
                return Err(Error::Syntax {
                    origin: Origin { line, ..origin },
                    why: without_place(&error.to_string()),
                });
            }
        }
    }
}

fn yaml(name: &str, content: &str) -> Result<Vec<Root>, Error> {
    let documents: Vec<Spanned<Parsed>> =
        serde_saphyr::from_multiple_with_options(content, options()).map_err(|error| syntax(name, &error))?;
    let roots =
        documents.into_iter().map(|Spanned { value: Parsed { value, lines }, referenced, .. }| {
            let origin = Origin { file: name.into(), line: referenced.line() };
            Root { document: Document { origin, value }, lines }
        });
    Ok(roots.collect())
}

/// As kubectl reads YAML, where `0644` is octal; but `y` and `on` stay text for as long as nobody asks for a
/// boolean (see `strict`), because there are namespaces called `y`.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // A dump of a large cluster has millions of scalars; depth and aliases stay limited.
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_depth: 256,
        },
        legacy_octal_numbers: true,
        strict_booleans: true,
    }
}

fn syntax(name: &str, error: &serde_saphyr::Error) -> Error {
    let line = error.location().map_or(0, |location| location.line());
    let why = match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("duplicate field {key:?}")
        }
        other => {
            let text = other.render_with_options(serde_saphyr::render_options! {
                snippets: serde_saphyr::SnippetMode::Off,
            });
            without_place(&text)
        }
    };
    Error::Syntax { origin: Origin { file: name.into(), line }, why }
}

/// Parsers say where they stopped at the end of their message; we say it at the beginning.
fn without_place(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(why, _)| why).to_owned()
}

/// `kind: List`, and the typed lists of the API (`PodList`), whose items may leave kind and version out.
fn take_apart(document: Document, lines: &[u64], documents: &mut Vec<Document>) {
    let Document { origin, mut value } = document;
    let text = |value: &Value, field| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let kind = text(&value, "kind").unwrap_or_default();
    let version = text(&value, "apiVersion");
    let Some(item_kind) =
        kind.strip_suffix("List").filter(|_| value.get("items").is_some_and(Value::is_array))
    else {
        if !value.is_null() {
            documents.push(Document { origin, value });
        }
        return;
    };
    let items = value.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
    for (index, mut item) in items.into_iter().enumerate() {
        if let (Some(fields), Some(version), false) = (item.as_object_mut(), &version, item_kind.is_empty()) {
            fields.entry("kind").or_insert_with(|| item_kind.into());
            fields.entry("apiVersion").or_insert_with(|| version.clone().into());
        }
        let line = lines.get(index).copied().unwrap_or(origin.line);
        let origin = Origin { file: origin.file.clone(), line };
        take_apart(Document { origin, value: item }, &[], documents);
    }
}

/// A value in which no object has a key twice, and the lines of its `items` where the parser knows of lines.
struct Parsed {
    value: Value,
    lines: Vec<u64>,
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut lines = Vec::new();
        let value = Strict { items: Items::In(&mut lines) }.deserialize(deserializer)?;
        Ok(Self { value, lines })
    }
}

/// A value by itself.
struct Plain(Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Strict { items: Items::Nowhere }.deserialize(deserializer).map(Self)
    }
}

/// Where the lines of list items go: this is the list, or an object that may have one, or neither.
enum Items<'a> {
    Here(&'a mut Vec<u64>),
    In(&'a mut Vec<u64>),
    Nowhere,
}

/// Builds a value.
struct Strict<'a> {
    items: Items<'a>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        match self.items {
            Items::Here(lines) => {
                while let Some(item) = items.next_element::<Spanned<Plain>>()? {
                    lines.push(item.referenced.line());
                    values.push(item.value.0);
                }
            }
            _ => {
                while let Some(value) = items.next_element_seed(Strict { items: Items::Nowhere })? {
                    values.push(value);
                }
            }
        }
        Ok(values.into())
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let items = match &mut self.items {
                Items::In(lines) if key == "items" => Items::Here(lines),
                _ => Items::Nowhere,
            };
            let value = entries.next_value_seed(Strict { items })?;
            if values.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate field {key:?}")));
            }
            values.insert(key, value);
        }
        Ok(values.into())
    }
}
