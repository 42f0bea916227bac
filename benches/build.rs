//! Notes the commit that this is built from, as `PODPATH_COMMIT`: what is measured later is this program, wherever its
//! sources stand by then. Empty where there is no repository; `-dirty` behind it where there was more than the commit.

use std::path::Path;
use std::process::Command;

/// What the program is made of, from the workspace's folder on.
const SOURCES: [&str; 6] = ["dataplane", "ebpf", "userspace", "testbed", "benches", "Cargo.lock"];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    for source in SOURCES {
        let sources = root.join(source).join("src");
        let watched = if sources.is_dir() { sources } else { root.join(source) };
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    // Whatever moves the head writes a line there.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| root.join(log).exists()) {
        println!("cargo::rerun-if-changed={}", root.join(log).display());
    }
    println!("cargo::rustc-env=PODPATH_COMMIT={}", commit(git).unwrap_or_default());
}

fn commit(git: impl Fn(&[&str]) -> Option<String>) -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let status = ["status", "--porcelain", "--untracked-files=no", "--", ":(exclude)benches/results"];
    let changed = git(&[&status[..], &SOURCES].concat()).is_some_and(|files| !files.is_empty());
    Some(if changed { commit + "-dirty" } else { commit })
}
