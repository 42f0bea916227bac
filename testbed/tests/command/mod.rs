//! `podpath` as users run it, on input files and a cluster name of a test's own.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::netns::Netns;

/// A folder of input files, and a cluster name, both of one test alone.
pub(crate) struct Stage {
    directory: tempfile::TempDir,
    pub(crate) name: String,
}

impl Stage {
    pub(crate) fn new(test: &str) -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        Self { directory, name: format!("test-{}-{test}", std::process::id()) }
    }

    /// Writes a file; `NAME` in it becomes the cluster's name.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text.replace("NAME", &self.name)).expect("there is room");
        path
    }

    /// Where a file of this name is, or would be.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What is left of this test's clusters: their namespaces.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let all = Netns::list("podpath-").expect("they can be listed");
        let ours = all.into_iter().map(|netns| netns.name().to_owned());
        ours.filter(|name| name.contains(&self.name)).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Whatever a failed test left.
        let _ = podpath(&["down", &self.name]);
    }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podpath"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub(crate) fn podpath(arguments: &[&str]) -> Output {
    command(arguments).output().expect("it was built")
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("it writes UTF-8")
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("it writes UTF-8")
}

#[track_caller]
pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_str(stdout(output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[track_caller]
pub(crate) fn exits(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
}

/// Kills the agent of a node of a cluster that is up, and waits until it has ended: until then it may answer.
pub(crate) fn kill_agent(cluster: &str, node: &str) {
    let state = testbed::state::load(cluster).expect("a state").expect("it is up");
    let role = format!("agent of {node}");
    // One that was started anew comes after those before it.
    let agent = state.processes.iter().rfind(|one| one.role == role).expect("one for each node");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.pid).expect("a process"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    let deadline = Instant::now() + Duration::from_secs(20);
    while agent.runs() {
        assert!(Instant::now() < deadline, "it was killed");
        std::thread::yield_now();
    }
}
