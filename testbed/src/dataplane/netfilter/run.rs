//! The kernel's own tools, run inside a node's namespace.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use crate::dataplane::chains;
use crate::netns::{self, Netns};

/// Lines of what a tool said that an error repeats.
const LINES: usize = 3;

/// Why rules are not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The cluster cannot be written as chains.
    #[error(transparent)]
    Plan(#[from] chains::Error),
    /// The tool is not there.
    #[error(
        "cannot run {program} in network namespace {netns}: it is not installed; apt-get install {package}, or make setup"
    )]
    Missing {
        /// Its name.
        program: &'static str,
        /// The namespace.
        netns: String,
        /// Where it comes from.
        package: &'static str,
    },
    /// It could not be run, or not be told.
    #[error("cannot run {program} in network namespace {netns}: {source}")]
    System {
        /// Its name.
        program: &'static str,
        /// The namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It, or the kernel, did not like the rules.
    #[error(
        "cannot load rules into network namespace {netns}: {program} says: {said}; `podpath doctor` says what this kernel lacks"
    )]
    Refused {
        /// Its name.
        program: &'static str,
        /// The namespace.
        netns: String,
        /// The first lines of what it said.
        said: String,
    },
    /// The kernel does not know what the rules have.
    #[error(
        "cannot load rules into network namespace {netns}: {lacking}: load the module, or choose `--dataplane ebpf` or `emulator`"
    )]
    Lacking {
        /// The namespace.
        netns: String,
        /// What it lacks, and what for.
        lacking: String,
    },
    /// The table of connections.
    #[error(
        "cannot look through the tracked connections of network namespace {netns} for those that lead to nobody: {source}; `podpath doctor` says whether this kernel lists them, else try again"
    )]
    Connections {
        /// The namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A tool of the kernel's packet filter that reads rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tool {
    /// Its name.
    pub program: &'static str,
    /// How it is told to read rules.
    pub arguments: &'static [&'static str],
    /// The package that it comes with.
    pub package: &'static str,
}

/// `nft`, reading a transaction.
pub const NFT: Tool = Tool { program: "nft", arguments: &["-f", "-"], package: "nftables" };

/// `iptables-restore`: what is not spoken of stays. Where somebody else changes rules, it waits for some seconds.
pub const RESTORE: Tool =
    Tool { program: "iptables-restore", arguments: &["--noflush", "--wait=5"], package: "iptables" };
/// The same for IPv6.
pub const RESTORE_V6: Tool =
    Tool { program: "ip6tables-restore", arguments: &["--noflush", "--wait=5"], package: "iptables" };

impl Tool {
    /// Feeds it rules in a namespace, and waits until the kernel has them, or has refused all of them.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Refused`], or why it could not be run.
    pub fn load(&self, netns: &Netns, rules: &str) -> Result<(), Error> {
        // A process belongs to the namespace of the thread that starts it.
        let ran = netns.run(|| self.fed(rules))?;
        let (program, name) = (self.program, || netns.name().to_owned());
        match ran {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(Error::Missing { program, netns: name(), package: self.package })
            }
            Err(source) => Err(Error::System { program, netns: name(), source }),
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let lines: Vec<&str> =
                    text.lines().filter(|line| !line.trim().is_empty()).take(LINES).collect();
                Err(Error::Refused { program, netns: name(), said: lines.join("; ") })
            }
        }
    }

    fn fed(&self, rules: &str) -> io::Result<Output> {
        let mut child = Command::new(self.program)
            .args(self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        // It may stop reading at the first mistake; what it says then tells more than the broken pipe.
        let told = input.map_or(Ok(()), |mut input| input.write_all(rules.as_bytes()));
        let output = child.wait_with_output()?;
        match told {
            Err(error) if output.status.success() => Err(error),
            _ => Ok(output),
        }
    }
}
