//! Builds the eBPF objects in a cargo of its own and hands them to the crate as `$OUT_DIR/object.rs`: an expression,
//! an array of `Ok(bytes)`, or `Err(why there is no toolchain)`, one for each. Without a toolchain the crate still
//! builds, and all but the eBPF engine works. With one, an object that does not build fails this build, with the
//! compiler's words.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[path = "src/toolchain.rs"]
#[expect(dead_code, unreachable_pub, reason = "the crate and make setup use the rest")]
mod toolchain;

use toolchain::{Lacks, Missing, Toolchain};

/// The bpf target, little endian as every machine that this runs on.
const TARGET: &str = "bpfel-unknown-none";

/// The objects: the packet path of a node, the load balancer, and a switch.
const OBJECTS: [&str; 3] = ["podpath-ebpf", "podpath-balancer", "podpath-switch"];

/// How they are compiled.
const FLAGS: [&str; 4] = [
    // bpf-linker makes BTF, with the source lines that the verifier quotes, out of debug information.
    "-Clink-arg=--btf",
    "-Cdebuginfo=2",
    // Short fills and comparisons in place: the linker's default makes a function call of each.
    "-Clink-arg=--disable-expand-memcpy-in-order",
    // 32-bit arithmetic and jumps, which the verifier follows better. Kernels from 5.1 have them.
    "-Ctarget-cpu=v3",
];

fn main() -> ExitCode {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it for build scripts"));
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a folder of the workspace");
    watch_sources(root);
    let expression = match toolchain::find() {
        Ok(toolchain) => match build(&toolchain, root, &shared_target(&out)) {
            Ok(folder) => {
                watch_programs(&toolchain);
                embed(&folder, &out)
            }
            Err(why) => {
                eprintln!("{why}");
                return ExitCode::FAILURE;
            }
        },
        Err(missing) => {
            println!("cargo::warning=built without the eBPF engine: {}. Next: make setup", missing.lacks);
            watch_toolchain(&missing);
            let why = format!("Err({:?})", missing.to_string());
            format!("[{}]", OBJECTS.map(|_| why.as_str()).join(", "))
        }
    };
    fs::write(out.join("object.rs"), expression).expect("OUT_DIR can be written");
    ExitCode::SUCCESS
}

/// Copies the objects out of the folder in which they were made: the expression that hands them to the crate.
fn embed(folder: &Path, out: &Path) -> String {
    let objects = OBJECTS.map(|name| {
        let copy = out.join(format!("{name}.o"));
        fs::copy(folder.join(name), &copy)
            .expect("OUT_DIR can be written, and the nested build made the object");
        format!("Ok(aya::include_bytes_aligned!({copy:?}))")
    });
    format!("[{}]", objects.join(", "))
}

/// Runs the nested cargo: the folder of the objects, or what to show the user.
fn build(toolchain: &Toolchain, root: &Path, target: &Path) -> Result<PathBuf, String> {
    let manifest = root.join("ebpf/Cargo.toml");
    let flags: Vec<String> = [format!("-Clinker={}", toolchain.linker.path.display())]
        .into_iter()
        .chain(FLAGS.map(str::to_owned))
        .collect();
    let mut cargo = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os().filter(|(name, _)| belongs_to_the_outer_build(&name.to_string_lossy())) {
        cargo.env_remove(name);
    }
    cargo
        .args(["build", "--locked", "--release", "--color=never", "-Zbuild-std=core", "--target", TARGET])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("RUSTC", &toolchain.rustc.path)
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        // A stable compiler builds core as well as a nightly one; this lets it.
        .env("RUSTC_BOOTSTRAP", "1");
    let ran = cargo
        .output()
        .map_err(|error| format!("cannot build the eBPF object: {}: {error}", toolchain.cargo.display()))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    if !ran.status.success() {
        let (rustc, linker) = (toolchain.rustc.path.display(), toolchain.linker.path.display());
        return Err(format!("cannot build the eBPF object with {rustc} and {linker}:\n\n{said}"));
    }
    for warning in warnings(&said) {
        println!("cargo::warning=ebpf: {warning}");
    }
    Ok(target.join(TARGET).join("release"))
}

/// True for what cargo, rustup and the outer crate's build put into the environment for themselves. Cargo's place, its
/// network settings and its job server serve the nested build too.
fn belongs_to_the_outer_build(name: &str) -> bool {
    const SHARED: [&str; 5] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_MAKEFLAGS"];
    const OUTER: [&str; 4] = ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTDOC"];
    const EXACT: [&str; 8] =
        ["RUSTUP_TOOLCHAIN", "OUT_DIR", "TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "NUM_JOBS"];
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    EXACT.contains(&name) || (starts(&OUTER) && !starts(&SHARED))
}

/// The compiler's warnings about `ebpf/` itself, a line each. Those about the packet path the host's build shows.
fn warnings(said: &str) -> Vec<String> {
    let mut lines = said.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let place = lines.peek().and_then(|next| next.trim_start().strip_prefix("--> src/"));
        if let (Some(warning), Some(place)) = (line.strip_prefix("warning: "), place) {
            found.push(format!("{warning} (ebpf/src/{place})"));
        }
    }
    found
}

/// One target directory for all profiles of the host's build, or each would compile `core` again.
fn shared_target(out: &Path) -> PathBuf {
    let target = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    target.unwrap_or(out).join("ebpf")
}

/// A newer compiler or linker builds the object anew.
fn watch_programs(toolchain: &Toolchain) {
    for tool in [&toolchain.rustc, &toolchain.linker] {
        println!("cargo::rerun-if-changed={}", tool.path.display());
    }
}

/// What lacks may be installed later: watches the folders where it would appear.
fn watch_toolchain(missing: &Missing) {
    let mut folders = BTreeSet::new();
    let programs = missing.looked.iter().map(|tried| tried.path.as_path());
    for bin in programs.filter_map(Path::parent).filter(|folder| folder.ends_with("bin")) {
        folders.insert(bin.to_owned());
        if let (Lacks::Compiler, Some(sysroot)) = (missing.lacks, bin.parent()) {
            // rust-src comes into the compiler's own sysroot; a new toolchain leaves its hash with rustup.
            folders.insert(sysroot.join("lib/rustlib"));
            folders.extend(sysroot.ancestors().nth(2).map(|rustup| rustup.join("update-hashes")));
        }
    }
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
}

fn watch_sources(root: &Path) {
    let sources = [
        "ebpf/src",
        "ebpf/Cargo.toml",
        "ebpf/Cargo.lock",
        "dataplane/src",
        "dataplane/Cargo.toml",
        "Cargo.toml",
    ];
    for source in sources {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    for source in ["build.rs", "src/toolchain.rs"] {
        println!("cargo::rerun-if-changed={source}");
    }
    for variable in [toolchain::RUSTC_VARIABLE, toolchain::CARGO_VARIABLE, toolchain::LINKER_VARIABLE] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
}
