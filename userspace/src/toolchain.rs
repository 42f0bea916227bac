//! What builds the eBPF object: a Rust compiler with the source of `core`, its cargo, and bpf-linker.
//!
//! Stands alone (only `std`), because three programs compile it: the build step of this crate, `make setup`, and
//! the crate itself, where `podpath doctor` shows what was looked for.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest compiler that the packet path is written for: `rust-version` of the workspace, as (major, minor).
pub const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// The bpf-linker that `make setup` installs, and that the remedies name.
pub const BPF_LINKER: &str = "0.13.0";

/// Set to a rustc, this one alone is tried.
pub const RUSTC_VARIABLE: &str = "PODPATH_BPF_RUSTC";
/// Set to a cargo, this one runs the nested build. Without it: the one beside the compiler, else the one that runs.
pub const CARGO_VARIABLE: &str = "PODPATH_BPF_CARGO";
/// Set to a bpf-linker, this one alone is tried.
pub const LINKER_VARIABLE: &str = "PODPATH_BPF_LINKER";

/// A complete toolchain: its parts were run, and their LLVM versions fit.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Compiles to the bpf target.
    pub rustc: Tool,
    /// Runs the nested build.
    pub cargo: PathBuf,
    /// Makes one eBPF object with BTF out of the compiler's bitcode.
    pub linker: Tool,
    /// Everything that was tried, in order; rejected candidates too.
    pub looked: Vec<Looked>,
}

/// One program of the toolchain.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Where it is.
    pub path: PathBuf,
    /// Its release, such as `1.96.0`.
    pub version: String,
    /// The major version of the LLVM in it; None where it does not tell.
    pub llvm: Option<u32>,
}

/// One candidate that was tried.
#[derive(Clone, Debug)]
pub struct Looked {
    /// What it would be: `rustc` or `bpf-linker`.
    pub what: &'static str,
    /// Where it was looked for.
    pub path: PathBuf,
    /// What it is, such as `1.96.0, LLVM 22`; or why it can't be used.
    pub found: Result<String, String>,
}

/// Why there is no toolchain. Displayed: what lacks, what was looked for, and the commands that bring it.
#[derive(Clone, Debug)]
pub struct Missing {
    /// The part that lacks.
    pub lacks: Lacks,
    /// Everything that was tried, in order.
    pub looked: Vec<Looked>,
}

/// The part of the toolchain that lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacks {
    /// No compiler that is new enough and has the source of `core`.
    Compiler,
    /// There is a compiler with this LLVM, but no bpf-linker that reads what it writes.
    Linker {
        /// The compiler's LLVM, major version.
        llvm: u32,
    },
}

/// Finds the toolchain: compilers in order of preference, the first for which there is a linker.
///
/// 1. `PODPATH_BPF_RUSTC`, then alone.
/// 2. The current toolchain, then rustup's nightlies, if they have the component rust-src.
/// 3. The distribution's: `/usr/bin/rustc`, then `/usr/lib/rust-1.*`, newest first.
///
/// Linkers: `PODPATH_BPF_LINKER`, then alone; else the one in cargo's bin, then every one on `PATH`.
///
/// # Errors
/// [`Missing`], if no compiler, or no linker that fits one, was found.
pub fn find() -> Result<Toolchain, Missing> {
    let mut looked = Vec::new();
    let rustcs = rustcs(&mut looked);
    let linkers = linkers(&mut looked);
    let Some(preferred) = rustcs.first() else {
        return Err(Missing { lacks: Lacks::Compiler, looked });
    };
    for rustc in &rustcs {
        if let Some(linker) = linkers.iter().find(|linker| reads(linker, rustc)) {
            let (rustc, linker) = (rustc.clone(), linker.clone());
            return Ok(Toolchain { cargo: cargo(&rustc.path), rustc, linker, looked });
        }
    }
    let llvm = preferred.llvm.expect("a rustc whose LLVM is unknown is not a candidate");
    for tried in looked.iter_mut().filter(|tried| tried.what == "bpf-linker") {
        if let Ok(found) = &tried.found {
            tried.found =
                Err(format!("{found}, is older than the LLVM {llvm} of {}", preferred.path.display()));
        }
    }
    Err(Missing { lacks: Lacks::Linker { llvm }, looked })
}

/// LLVM reads the bitcode of its own and of older versions. A linker that doesn't tell its version is tried.
fn reads(linker: &Tool, rustc: &Tool) -> bool {
    linker.llvm.is_none() || linker.llvm >= rustc.llvm
}

fn rustcs(looked: &mut Vec<Looked>) -> Vec<Tool> {
    let mut sysroots = BTreeSet::new();
    let mut usable = Vec::new();
    for candidate in rustc_candidates() {
        let sysroot = match output(&candidate, &["--print", "sysroot"]) {
            Ok(sysroot) => PathBuf::from(sysroot),
            Err(why) => {
                looked.push(Looked { what: "rustc", path: candidate, found: Err(why) });
                continue;
            }
        };
        if !sysroots.insert(fs::canonicalize(&sysroot).unwrap_or_else(|_| sysroot.clone())) {
            continue;
        }
        // Named by its own path, a rustup toolchain does not depend on what rustup thinks is current.
        let own = sysroot.join("bin/rustc");
        let path = if own.is_file() { own } else { candidate };
        let rustc = rustc(&path, &sysroot);
        let found = rustc.as_ref().map(describe).map_err(Clone::clone);
        looked.push(Looked { what: "rustc", path, found });
        usable.extend(rustc);
    }
    usable
}

fn rustc_candidates() -> Vec<PathBuf> {
    if let Some(only) = env::var_os(RUSTC_VARIABLE) {
        return vec![only.into()];
    }
    let mut candidates: Vec<PathBuf> = vec![env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()).into()];
    let rustup = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".rustup")));
    let toolchains = rustup.map(|rustup| rustup.join("toolchains"));
    candidates.extend(
        toolchains.iter().flat_map(|folder| entries(folder, "nightly")).map(|it| it.join("bin/rustc")),
    );
    candidates.push("/usr/bin/rustc".into());
    let mut versioned = entries(Path::new("/usr/lib"), "rust-1.");
    versioned.sort_by_key(|path| {
        std::cmp::Reverse(path.extension().and_then(|minor| minor.to_str()?.parse::<u32>().ok()))
    });
    candidates.extend(versioned.into_iter().map(|it| it.join("bin/rustc")));
    candidates
}

/// Checks one compiler; the error says why it can't be used.
fn rustc(path: &Path, sysroot: &Path) -> Result<Tool, String> {
    let facts = output(path, &["-vV"])?;
    let fact = |name: &str| facts.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let version = fact("release:").ok_or("does not tell its release")?.to_owned();
    let llvm = fact("LLVM version:").and_then(leading_number).ok_or("does not tell its LLVM")?;
    let mut numbers = version.split('.').map_while(leading_number);
    let (major, minor) = OLDEST_RUSTC;
    if (numbers.next(), numbers.next()) < (Some(major), Some(minor)) {
        return Err(format!("{version} is older than {major}.{minor}"));
    }
    let source = sysroot.join("lib/rustlib/src/rust/library/Cargo.lock");
    if !source.is_file() {
        return Err(format!("{version}, without the source of core ({} does not exist)", source.display()));
    }
    Ok(Tool { path: path.to_owned(), version, llvm: Some(llvm) })
}

fn linkers(looked: &mut Vec<Looked>) -> Vec<Tool> {
    let mut usable = Vec::new();
    let candidates = linker_candidates();
    for path in candidates.iter().filter(|path| path.is_file()) {
        let linker = output(path, &["--version"]).map(|line| Tool {
            path: path.clone(),
            version: line.rsplit(' ').next().unwrap_or_default().to_owned(),
            llvm: fs::read(path).ok().and_then(|bytes| llvm_in(&bytes)),
        });
        let found = linker.as_ref().map(describe).map_err(Clone::clone);
        looked.push(Looked { what: "bpf-linker", path: path.clone(), found });
        usable.extend(linker);
    }
    if let (Some(path), false) = (candidates.first(), candidates.iter().any(|path| path.is_file())) {
        let why = if candidates.len() == 1 { "does not exist" } else { "does not exist, nor on PATH" };
        looked.push(Looked { what: "bpf-linker", path: path.clone(), found: Err(why.into()) });
    }
    usable
}

/// Cargo's bin first: it is where `make setup` installs.
fn linker_candidates() -> Vec<PathBuf> {
    if let Some(only) = env::var_os(LINKER_VARIABLE) {
        return vec![only.into()];
    }
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
    let mut candidates: Vec<PathBuf> = Vec::new();
    let path = env::var_os("PATH").unwrap_or_default();
    for folder in cargo_home.map(|home| home.join("bin")).into_iter().chain(env::split_paths(&path)) {
        let linker = folder.join("bpf-linker");
        if !candidates.contains(&linker) {
            candidates.push(linker);
        }
    }
    candidates
}

/// The LLVM in a bpf-linker, major version. `--version` does not tell it, its bytes do: one linked dynamically needs
/// `libLLVM.so.22.1` or `libLLVM-22.so`, one linked statically carries the name that its bitcode reader signs with,
/// `LLVM22.1.8` or `LLVM 22.1.8`.
fn llvm_in(program: &[u8]) -> Option<u32> {
    let names = program.windows(4).enumerate().filter(|(_, window)| window == b"LLVM");
    names.map(|(start, _)| &program[start + 4..program.len().min(start + 20)]).find_map(|after| {
        let after =
            std::str::from_utf8(after.split(|byte| !byte.is_ascii_graphic() && *byte != b' ').next()?)
                .ok()?;
        if let Some(library) = after.strip_prefix(".so.").or_else(|| after.strip_prefix('-')) {
            return leading_number(library);
        }
        let signature = after.strip_prefix(' ').unwrap_or(after);
        let mut parts = signature.splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        parts.next()?.parse::<u32>().ok()?;
        leading_number(parts.next()?).map(|_| major)
    })
}

fn cargo(rustc: &Path) -> PathBuf {
    let beside = rustc.with_file_name("cargo");
    match env::var_os(CARGO_VARIABLE) {
        Some(only) => only.into(),
        None if beside.is_file() => beside,
        None => env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).into(),
    }
}

/// What a program prints, or why it does not run.
fn output(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let ran =
        Command::new(program).args(arguments).output().map_err(|error| format!("does not run: {error}"))?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        return Err(format!("does not run: {}", said.lines().next().unwrap_or("it says nothing")));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}

/// The entries of a folder whose names start so, sorted; none if there is no such folder.
fn entries(folder: &Path, start: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut names: Vec<OsString> = names.filter(|name| name.to_string_lossy().starts_with(start)).collect();
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}

fn leading_number(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().ok()
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from)
}

fn describe(tool: &Tool) -> String {
    match tool.llvm {
        Some(llvm) => format!("{}, LLVM {llvm}", tool.version),
        None => format!("{}, LLVM unknown", tool.version),
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = OLDEST_RUSTC;
        match self {
            Lacks::Compiler => {
                write!(to, "no rustc of {major}.{minor} or newer has the source of core (rust-src)")
            }
            Lacks::Linker { llvm } => {
                write!(to, "no bpf-linker with LLVM {llvm} or newer, as rustc's")
            }
        }
    }
}

impl Lacks {
    /// The commands that bring what lacks: (where they serve, what to type).
    pub fn remedies(self) -> Vec<(&'static str, String)> {
        match self {
            Lacks::Compiler => vec![
                ("with rustup", "rustup toolchain install nightly --component rust-src".into()),
                (
                    "on Debian",
                    "apt-get install --no-install-recommends rustc-web cargo-web rust-web-src".into(),
                ),
            ],
            Lacks::Linker { llvm } => vec![
                (
                    "with apt",
                    format!(
                        "apt-get install --no-install-recommends llvm-{llvm}-dev libzstd-dev zlib1g-dev libxml2-dev \
                         libffi-dev && PATH=/usr/lib/llvm-{llvm}/bin:$PATH LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo \
                         install --locked bpf-linker --version {BPF_LINKER} --no-default-features --features \
                         llvm-{llvm}"
                    ),
                ),
                ("ready made, with cargo-binstall", "cargo binstall bpf-linker".into()),
            ],
        }
    }
}

impl fmt::Display for Looked {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Ok(found) | Err(found)) = &self.found;
        write!(to, "{} {}: {found}", self.what, self.path.display())
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "the eBPF toolchain is incomplete: {}. Looked at:", self.lacks)?;
        for tried in &self.looked {
            writeln!(to, "  {tried}")?;
        }
        write!(to, "Next: make setup, and build again; or by hand:")?;
        for (place, command) in self.lacks.remedies() {
            write!(to, "\n  {place}: {command}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_rustc_is_the_one_the_workspace_declares() {
        let (major, minor) = OLDEST_RUSTC;
        assert_eq!(env!("CARGO_PKG_RUST_VERSION"), format!("{major}.{minor}"));
    }

    #[test]
    fn a_linker_tells_its_llvm_whether_linked_dynamically_or_statically() {
        assert_eq!(llvm_in(b"\0libgcc_s.so.1\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(llvm_in(b"\0libLLVM-21.so\0"), Some(21));
        assert_eq!(llvm_in(b"\0Reader: LLVM 23.1.0-rc2\0"), Some(23));
        assert_eq!(llvm_in(b"\0LLVM22.1.8\0"), Some(22));
    }

    #[test]
    fn prose_about_llvm_is_not_a_version() {
        assert_eq!(
            llvm_in(b"dwarfris. LLVM 22 builds also support it. LLVM issued a diagnostic; LLVM"),
            None
        );
    }

    #[test]
    fn a_linker_reads_what_its_own_and_older_compilers_write() {
        let tool = |llvm| Tool { path: PathBuf::new(), version: String::new(), llvm };
        assert!(reads(&tool(Some(22)), &tool(Some(22))));
        assert!(reads(&tool(Some(23)), &tool(Some(22))));
        assert!(!reads(&tool(Some(21)), &tool(Some(22))));
        assert!(reads(&tool(None), &tool(Some(22))));
    }

    #[test]
    fn what_is_missing_comes_with_what_was_looked_at_and_a_command() {
        let looked = Looked {
            what: "rustc",
            path: "/usr/bin/rustc".into(),
            found: Err("1.63.0 is older than 1.95".into()),
        };
        let text = Missing { lacks: Lacks::Compiler, looked: vec![looked] }.to_string();
        assert!(text.contains("rustc /usr/bin/rustc: 1.63.0 is older than 1.95"), "{text}");
        assert!(text.contains("rustup toolchain install nightly --component rust-src"), "{text}");
        let text = Missing { lacks: Lacks::Linker { llvm: 22 }, looked: vec![] }.to_string();
        assert!(text.contains("LLVM_PREFIX=/usr/lib/llvm-22 cargo install"), "{text}");
    }
}
