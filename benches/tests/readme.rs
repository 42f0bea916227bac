//! The README's results are those of the committed file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use benches::report::replaced;
use benches::results::Results;

const RESULTS: &str = "benches/results/standard.json";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate lies in the workspace").to_path_buf()
}

#[test]
fn the_readme_says_what_the_file_of_results_gives() {
    let path = root().join("README.md");
    let results = Results::read(&root().join(RESULTS)).unwrap_or_else(|error| panic!("{error}"));
    let readme = fs::read_to_string(&path).expect("there is a README");
    let wanted = replaced(&readme, &results).unwrap_or_else(|error| panic!("{error}"));
    if std::env::var_os("PODPATH_BLESS").is_some() {
        fs::write(&path, &wanted).expect("the README can be written");
    } else {
        assert_eq!(readme, wanted, "run `podpath bench readme`, or this with PODPATH_BLESS=1");
    }
}

/// Runs the program in the workspace's folder: its code, and what it printed to stdout and stderr.
fn bench(words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podpath-bench"));
    let output = command.args(words).current_dir(root()).output().expect("it was built");
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_file_is_told_again_in_every_way() {
    for (way, start) in
        [("table", ""), ("json", "{\n  \"version\""), ("csv", "round,variant,"), ("html", "<!doctype html>")]
    {
        let (code, out, _) = bench(&["report", RESULTS, "-o", way]);
        assert!(code == Some(0) && out.starts_with(start) && out.len() > 1000, "{way}: {code:?}");
    }
}

#[test]
fn an_option_that_a_suite_does_not_take_is_refused() {
    for (suite, option, value) in
        [("grid", "--rounds", "3"), ("path", "--fabric", "bridge"), ("memory", "--seed", "1")]
    {
        let (code, out, error) = bench(&[suite, option, value]);
        assert!(code == Some(2) && out.is_empty(), "{suite} {option}: {code:?}");
        assert!(error.contains(&format!("suite {suite} takes no {option}")), "{error}");
    }
}

#[test]
fn compare_ends_with_0_with_1_if_something_became_worse_and_with_2_if_it_cannot() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut results = Results::read(&root().join(RESULTS)).unwrap_or_else(|error| panic!("{error}"));
    for sample in &mut results.samples {
        sample.figures.entry("latency_us_p50".to_owned()).and_modify(|value| *value *= 100.0);
    }
    let worse = folder.path().join("worse.json");
    results.write(&worse).expect("a folder of our own");
    let worse = worse.to_str().expect("a plain path");
    assert_eq!(bench(&["compare", RESULTS, RESULTS]).0, Some(0));
    let (code, out, _) = bench(&["compare", RESULTS, worse]);
    assert!(code == Some(1) && out.contains("worse"), "{out}");
    assert_eq!(bench(&["compare", worse, RESULTS]).0, Some(0), "the other way round it is better");
    let (code, out, error) = bench(&["compare", RESULTS, "README.md"]);
    assert!(code == Some(2) && out.is_empty() && error.contains("cannot read README.md"), "{error}");
}
