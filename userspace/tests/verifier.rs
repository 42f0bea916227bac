//! What the verifier says of each program, against what it said when somebody last looked. A file of its own, because
//! nothing else may run beside it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use userspace::engine::kernel::{Verified, verified};

/// Bytes of stack that a chain of calls may take.
const STACK: u64 = 512;
/// How far the count of what the verifier follows may go with another compiler or kernel, in percent.
const BAND: u64 = 10;

const HEAD: &str = "# What the verifier says of each program: PODPATH_BLESS=1 writes this anew.\n\
                    # program  instructions  verified  peak states  total states  stack\n";

/// A line for each program.
fn table(programs: &[Verified]) -> String {
    let mut text = HEAD.to_owned();
    for Verified { name, instructions, verified, peak_states, total_states, stack_bytes, .. } in programs {
        let counts = [instructions, verified, peak_states, total_states, stack_bytes];
        let counts: Vec<String> = counts.iter().map(|count| format!("{count:>9}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<13}{}", counts.join(""));
    }
    text
}

/// Name and number of verified instructions in each line of a table.
fn counts(text: &str) -> Vec<(&str, u64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let read = |line| {
        let words: Vec<&str> = str::split_whitespace(line).collect();
        (words[0], words[2].parse().expect("a number"))
    };
    lines.map(read).collect()
}

#[test]
#[ignore = "needs root: make test"]
fn the_verifier_follows_about_as_much_as_it_did() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/verifier.txt");
    let programs = verified().unwrap_or_else(|error| panic!("{error}"));
    let text = table(&programs);
    println!("{text}");
    for program in &programs {
        println!("{} is loaded in {:?}", program.name, program.load);
    }
    if std::env::var_os("PODPATH_BLESS").is_some() {
        fs::write(&path, &text).expect("the golden file can be written");
    }
    let golden = fs::read_to_string(&path).expect("the golden file is there: PODPATH_BLESS=1 makes it");
    let (wanted, found) = (counts(&golden), counts(&text));
    let names =
        |counts: &[(&str, u64)]| counts.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&wanted), "programs came or went: look, then PODPATH_BLESS=1");
    for ((name, found), (_, wanted)) in found.into_iter().zip(wanted) {
        let allowed = wanted * BAND / 100;
        assert!(
            found.abs_diff(wanted) <= allowed.max(1),
            "{name}: the verifier follows {found} instructions, and {wanted} when somebody last looked: if it is \
             meant, PODPATH_BLESS=1"
        );
    }
    for program in &programs {
        assert!(program.stack_bytes <= STACK, "{program:?}");
    }
}
