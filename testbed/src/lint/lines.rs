//! The lines of fields in the files that they were read from.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use userspace::model::Objects;

use super::Finding;

/// Gives each finding the line of its field, as far as the file can be read again and has the field there.
pub(super) fn place(objects: &Objects, findings: &mut [Finding]) {
    // Where the objects of a file begin: each ends where the next begins.
    let mut starts: HashMap<&str, Vec<u64>> = HashMap::new();
    for entry in objects.iter() {
        starts.entry(&entry.origin.file).or_default().push(entry.origin.line);
    }
    starts.values_mut().for_each(|lines| lines.sort_unstable());
    let mut files: HashMap<String, Option<String>> = HashMap::new();
    let mut trees: HashMap<(String, u64), Option<Tree>> = HashMap::new();
    for finding in findings.iter_mut().filter(|finding| finding.line > 0) {
        let text = files.entry(finding.file.clone()).or_insert_with(|| reread(&finding.file));
        let (Some(text), Some(starts)) = (text, starts.get(finding.file.as_str())) else { continue };
        let start = finding.line;
        let end = starts.iter().find(|line| **line > start).copied();
        let tree = trees.entry((finding.file.clone(), start)).or_insert_with(|| tree(text, start, end));
        if let Some(line) = tree.as_ref().and_then(|tree| tree.line(&finding.field)) {
            finding.line = start + line - 1;
        }
    }
}

/// Standard input is gone, and a text that was built in has no file.
fn reread(file: &str) -> Option<String> {
    if Path::new(file).is_file() { fs::read_to_string(file).ok() } else { None }
}

/// The object that begins at a line, and goes on to another's or to the end of its document.
fn tree(text: &str, start: u64, end: Option<u64>) -> Option<Tree> {
    let start = usize::try_from(start).ok()?.checked_sub(1)?;
    let length = end.and_then(|end| usize::try_from(end).ok()).map_or(usize::MAX, |end| end - 1 - start);
    let lines = text.lines().skip(start).take(length);
    let own: Vec<&str> = lines
        .enumerate()
        .take_while(|(at, line)| *at == 0 || !line.starts_with("---"))
        .map(|(_, line)| line)
        .collect();
    let tree = serde_saphyr::from_str::<Spanned<Tree>>(&own.join("\n")).ok()?.value;
    // An item of a list, by itself, is a list of one.
    match tree {
        Tree::List(mut items) if items.len() == 1 => items.pop().map(|item| item.value),
        tree => Some(tree),
    }
}

/// A value of which only the lines matter.
#[derive(Debug)]
enum Tree {
    Fields(Vec<(Spanned<String>, Spanned<Tree>)>),
    List(Vec<Spanned<Tree>>),
    Scalar,
}

impl Tree {
    /// The line of `spec.ingress[0].from`, counted from the object's first; of the nearest field above it that
    /// is there, if it isn't.
    fn line(&self, path: &str) -> Option<u64> {
        let (mut here, mut line) = (self, None);
        for part in path.split('.') {
            let (name, index) = match part.trim_end_matches(']').split_once('[') {
                Some((name, index)) => (name, index.parse::<usize>().ok()),
                None => (part, None),
            };
            let Tree::Fields(fields) = here else { break };
            let Some((key, value)) = fields.iter().find(|(key, _)| key.value == name) else { break };
            line = Some(key.referenced.line());
            here = &value.value;
            let Some(index) = index else { continue };
            let Tree::List(items) = here else { break };
            let Some(item) = items.get(index) else { break };
            line = Some(item.referenced.line());
            here = &item.value;
        }
        line
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Trees)
    }
}

struct Trees;

impl<'de> Visitor<'de> for Trees {
    type Value = Tree;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Tree::List(all))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            all.push(entry);
        }
        Ok(Tree::Fields(all))
    }
}
