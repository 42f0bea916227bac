//! The house rules of ARCHITECTURE.md, read off the sources.

use std::fs;
use std::path::{Path, PathBuf};

use dataplane::Reason;

/// Lines of a function, parameters of a function, lines of a file without its tests.
const LIMITS: (usize, usize, usize) = (70, 5, 600);
const STAGES: [&str; 9] =
    ["service", "conntrack", "policy", "route", "nat", "reject", "mss", "overlay", "neighbour"];
const BANNED: [&str; 6] = ["handle_", "process_", "do_", "get_", "_inner", "_impl"];
const BANNED_FILES: [&str; 5] = ["util", "helper", "common", "misc", "manager"];

/// One source file, its tests cut off.
struct Source {
    path: String,
    lines: Vec<String>,
}

impl Source {
    /// Lines with their numbers, comments left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.lines.iter().enumerate().map(|(index, line)| (index + 1, line.as_str()));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Every line of code that holds `word`, as `path:line: text`.
    fn find(&self, word: &str) -> Vec<String> {
        let hits = self.code().filter(|(_, line)| line.contains(word));
        hits.map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim())).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate lies in the workspace").to_path_buf()
}

/// Every Rust source below the crates' `src` folders, without what follows `#[cfg(test)]`.
fn sources(below: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(below)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|why| panic!("{}: {why}", folder.display()));
        for entry in entries {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).expect("sources are text");
                let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                let name = path.strip_prefix(root()).expect("below the root").display().to_string();
                found.push(Source { path: name, lines: code.lines().map(str::to_string).collect() });
            }
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    assert!(!found.is_empty(), "no sources below {below}");
    found
}

fn all_sources() -> Vec<Source> {
    ["dataplane/src", "ebpf/src", "userspace/src", "testbed/src", "benches/src"]
        .into_iter()
        .flat_map(sources)
        .collect()
}

fn assert_none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

/// `word` may stand only in files whose path starts with one of `places`.
fn only_in(word: &str, places: &[&str]) {
    let elsewhere = all_sources()
        .into_iter()
        .filter(|source| !places.iter().any(|place| source.path.starts_with(place)))
        .flat_map(|source| source.find(word))
        .collect::<Vec<_>>();
    assert_none(&format!("`{word}` belongs to {places:?} only"), &elsewhere);
}

#[test]
fn the_dataplane_depends_on_nothing() {
    let manifest = fs::read_to_string(root().join("dataplane/Cargo.toml")).expect("a manifest");
    assert!(!manifest.contains("dependencies"), "dataplane/Cargo.toml has dependencies");
    for word in ["std::", "alloc::", "etherparse", "pnet", "aya"] {
        let hits = sources("dataplane/src").iter().flat_map(|source| source.find(word)).collect::<Vec<_>>();
        assert_none(&format!("dataplane speaks of {word}"), &hits);
    }
}

#[test]
fn the_dataplane_has_no_cfg_and_one_unsafe_trait() {
    let dataplane = sources("dataplane/src");
    let cfg = dataplane.iter().flat_map(|source| source.find("cfg(")).collect::<Vec<_>>();
    assert_none("engines differ through Platform, not through cfg", &cfg);
    let unsafe_code = dataplane.iter().flat_map(|source| source.find("unsafe ")).collect::<Vec<_>>();
    let allowed = |hit: &String| hit.contains("trait Plain") || hit.contains("$crate::wire::Plain for");
    let others = unsafe_code.into_iter().filter(|hit| !allowed(hit)).collect::<Vec<_>>();
    assert_none("unsafe beside the marker trait", &others);
}

#[test]
fn stages_never_call_each_other() {
    let mut breaches = Vec::new();
    for stage in STAGES {
        let source = sources("dataplane/src")
            .into_iter()
            .find(|source| source.path == format!("dataplane/src/{stage}.rs"))
            .unwrap_or_else(|| panic!("the stage {stage} has a file of its own"));
        for other in STAGES.iter().copied().chain(["path"]).filter(|other| *other != stage) {
            breaches.extend(source.find(&format!("crate::{other}")));
            breaches.extend(source.find(&format!(" {other}::")));
        }
    }
    assert_none("only path.rs calls stages", &breaches);
}

#[test]
fn lower_layers_of_the_dataplane_do_not_know_the_higher_ones() {
    let order = ["wire", "tables", "verdict", "platform", "header", "flow", "service", "path"];
    let mut breaches = Vec::new();
    for source in sources("dataplane/src") {
        let name = source.path.trim_start_matches("dataplane/src/").trim_end_matches(".rs").to_string();
        let layer = order.iter().position(|layer| name == *layer || name.starts_with(&format!("{layer}/")));
        let Some(layer) = layer else { continue };
        // `tables` and `verdict` are beside each other: a verdict names an interface.
        for higher in
            order.iter().skip(layer + 1).filter(|higher| !(name == "tables" && **higher == "verdict"))
        {
            if name != "path" {
                breaches.extend(source.find(&format!("crate::{higher}::")));
            }
        }
    }
    assert_none("wire < tables < platform < flow < stages < path", &breaches);
}

/// A socket's program can be interrupted by a packet's, in the middle of what its CPU was told.
#[test]
fn what_sockets_ask_is_never_an_answer_of_before() {
    let asked = sources("dataplane/src").into_iter();
    let asked =
        asked.filter(|source| ["/service.rs", "/socket.rs"].iter().any(|end| source.path.ends_with(end)));
    let stages: Vec<_> = asked.filter(|source| !source.path.contains("tables")).collect();
    assert_eq!(stages.len(), 2, "the stages that sockets walk");
    let hits = stages.iter().flat_map(|source| source.find("often(")).collect::<Vec<_>>();
    assert_none("Table::often is for packets alone", &hits);
}

#[test]
fn kernel_words_stay_in_their_rooms() {
    only_in("TC_ACT_", &["ebpf/src"]);
    only_in("XDP_", &["ebpf/src"]);
    only_in("aya_ebpf", &["ebpf/src"]);
    only_in("aya::", &["userspace/src/engine/kernel"]);
    only_in("pnet::datalink", &["testbed/src/dataplane"]);
}

#[test]
fn planning_is_pure() {
    for word in ["tokio", "aya", "std::time", "std::fs", "std::net::Tcp", "Instant", "SystemTime", "rand::"] {
        let hits =
            sources("userspace/src/plan").iter().flat_map(|source| source.find(word)).collect::<Vec<_>>();
        assert_none(&format!("plan speaks of {word}"), &hits);
    }
}

#[test]
fn the_oracle_shares_nothing_with_the_planner_nor_chains_with_the_path() {
    let oracle = sources("testbed/src").into_iter().filter(|source| source.path.contains("oracle"));
    let hits = oracle.flat_map(|source| source.find("userspace::plan")).collect::<Vec<_>>();
    assert_none("two readings of the same text", &hits);
    let chains = sources("testbed/src").into_iter().filter(|source| source.path.contains("dataplane/chains"));
    let hits = chains
        .flat_map(|source| [source.find("use dataplane::"), source.find("userspace::plan")].concat())
        .collect::<Vec<_>>();
    assert_none("the rival is written without our path", &hits);
}

#[test]
fn functions_and_files_keep_their_limits() {
    let (function_lines, parameters, file_lines) = LIMITS;
    let mut breaches = Vec::new();
    for source in all_sources() {
        if source.lines.len() > file_lines {
            breaches.push(format!("{}: {} lines", source.path, source.lines.len()));
        }
        for (start, name, length, count) in functions(&source) {
            if length > function_lines {
                breaches.push(format!("{}:{start}: fn {name} has {length} lines", source.path));
            }
            if count > parameters {
                breaches.push(format!("{}:{start}: fn {name} has {count} parameters", source.path));
            }
        }
    }
    assert_none("limits: function 70 lines, 5 parameters, file 600 lines", &breaches);
}

/// First line, name, lines and parameters of every function; the sources are formatted, so a function
/// ends at the first brace that stands where it began.
fn functions(source: &Source) -> Vec<(usize, String, usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in source.lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line.trim_start();
        let Some(at) = words.find("fn ").filter(|at| {
            let before = &words[..*at];
            before.split_whitespace().all(|word| {
                matches!(word, "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"")
                    || word.starts_with("pub(")
            })
        }) else {
            continue;
        };
        let name: String =
            words[at + 3..].chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
        let closing = format!("{}}}", " ".repeat(indent));
        let end =
            source.lines[start..].iter().position(|line| *line == closing || line.trim_end().ends_with(';'));
        let signature: String = source.lines[start..].iter().take(12).map(String::as_str).collect();
        let one_line = line.trim_end().ends_with('}') && line.contains('{');
        let length = if one_line {
            1
        } else {
            source.lines[start..].iter().position(|line| *line == closing).map_or(1, |end| end + 1)
        };
        let declared_only = end.is_some_and(|end| {
            source.lines[start + end].trim_end().ends_with(';')
                && end < 4
                && !source.lines[start..=start + end].iter().any(|line| line.contains('{'))
        });
        found.push((start + 1, name, if declared_only { 1 } else { length }, parameters_of(&signature)));
    }
    found
}

/// Parameters in a signature: commas at its own depth.
fn parameters_of(signature: &str) -> usize {
    let Some(open) = signature.find('(') else { return 0 };
    let (mut depth, mut count, mut any) = (0_i32, 0, false);
    for char in signature[open..].chars() {
        match char {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            ',' if depth == 1 => {
                count += 1;
                any = false;
            }
            char if !char.is_whitespace() => any = true,
            _ => {}
        }
    }
    count + usize::from(any)
}

#[test]
fn names_say_what_things_are() {
    let mut breaches = Vec::new();
    for source in all_sources() {
        let stem = Path::new(&source.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if BANNED_FILES.iter().any(|word| stem.contains(word)) {
            breaches.push(source.path.clone());
        }
        for (line, name, ..) in functions(&source) {
            let banned = BANNED.iter().any(|word| match word.strip_suffix('_') {
                Some(_) => name.starts_with(word),
                None => name.ends_with(word),
            });
            if banned || (name.ends_with('2') && !name.ends_with("32")) {
                breaches.push(format!("{}:{line}: fn {name}", source.path));
            }
        }
    }
    assert_none("banned words", &breaches);
}

#[test]
fn nothing_is_left_open_and_input_is_never_unwrapped() {
    let mut breaches = Vec::new();
    for source in all_sources() {
        for word in ["TODO", "FIXME", "XXX", "unimplemented!", "todo!(", ".unwrap()", "#[allow("] {
            let hits = source.lines.iter().enumerate().filter(|(_, line)| line.contains(word));
            breaches.extend(
                hits.map(|(number, line)| format!("{}:{}: {}", source.path, number + 1, line.trim())),
            );
        }
    }
    assert_none("open ends, unwrap, allow", &breaches);
}

#[test]
fn ignored_tests_say_why() {
    let mut breaches = Vec::new();
    for folder in ["userspace/tests", "testbed/tests", "benches/tests"] {
        if root().join(folder).is_dir() {
            let others = sources(folder).into_iter().filter(|source| !source.path.ends_with("tidy.rs"));
            breaches.extend(others.flat_map(|source| source.find("#[ignore]")));
        }
    }
    assert_none("#[ignore = \"needs root: make test\"]", &breaches);
}

#[test]
fn every_reason_has_a_case() {
    let mut cases = String::new();
    let mut folders = vec![root().join("testbed/cases")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the cases") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                cases.push_str(&fs::read_to_string(&path).expect("cases are text"));
            }
        }
    }
    let missing = Reason::ALL
        .iter()
        .filter(|reason| {
            !cases.lines().any(|line| {
                line.trim_start().starts_with("drop") && line.contains(&format!(" {}", reason.slug()))
            })
        })
        .map(|reason| reason.slug().to_string())
        .collect::<Vec<_>>();
    assert_none("reasons without a case in testbed/cases", &missing);
}

#[test]
fn the_readme_lists_every_reason() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let missing = Reason::ALL
        .iter()
        .map(|reason| format!("| `{}` | {} |", reason.slug(), reason.sentence()))
        .filter(|row| !readme.contains(row))
        .collect::<Vec<_>>();
    assert_none("rows missing from the README's table of drop reasons", &missing);
}

#[test]
fn the_readme_lists_every_loss_of_the_fabric() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let missing = userspace::fabric::Loss::ALL
        .iter()
        .map(|loss| format!("| `{}` | {} |", loss.slug(), loss.sentence()))
        .filter(|row| !readme.contains(row))
        .collect::<Vec<_>>();
    assert_none("rows missing from the README's table of the fabric's losses", &missing);
}
