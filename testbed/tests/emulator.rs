//! Every case, on the emulator: the walk that is expected is the walk that is walked.

use std::path::Path;

use testbed::case::{self, Case};

/// `PODPATH_BLESS=1` writes what came of each case into its file, to be reviewed like any other change.
#[test]
fn every_case_walks_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let paths = case::all(&folder).expect("the cases can be listed");
    assert!(!paths.is_empty(), "no cases below {}", folder.display());
    let bless = std::env::var_os("PODPATH_BLESS").is_some();
    let mut failures = Vec::new();
    for path in &paths {
        let outcome = Case::read(path).and_then(|case| Ok((case.emulate()?, case)));
        match outcome {
            Ok((ran, case)) if bless => case.bless(&ran).expect("cases can be written"),
            Ok((ran, case)) => failures.extend(case.differs(&ran)),
            Err(why) => failures.push(why.to_string()),
        }
    }
    let count = failures.len();
    assert!(failures.is_empty(), "{count} of {} cases differ:\n\n{}", paths.len(), failures.join("\n"));
}

#[test]
fn every_case_says_in_its_first_line_what_it_shows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    for path in case::all(&folder).expect("the cases can be listed") {
        let text = std::fs::read_to_string(&path).expect("cases are text");
        let sentence = text.lines().next().unwrap_or_default();
        assert!(sentence.starts_with("# ") && sentence.ends_with('.'), "{}: {sentence:?}", path.display());
    }
}

#[test]
fn a_case_that_is_run_again_gives_the_same_walks_frames_and_rows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    for path in case::all(&folder).expect("the cases can be listed") {
        let case = Case::read(&path).expect("reads");
        assert_eq!(case.emulate().expect("runs"), case.emulate().expect("runs"), "{}", path.display());
    }
}
