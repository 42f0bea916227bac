//! Network namespaces for a test, gone at its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use dataplane::tables::IfIndex;
use nix::sched::{CloneFlags, setns};

/// A network namespace, removed at the end of the test.
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    /// An empty one.
    pub(crate) fn new(of: &str) -> Self {
        let name = format!("podpath-test-{}-{of}", std::process::id());
        ip(&["netns", "add", &name]);
        Self { name }
    }

    /// One with an uplink and the node's sides of two pods' links, which end in it.
    pub(crate) fn with_links(of: &str) -> Self {
        let netns = Self::new(of);
        for (link, peer) in [("eth0", "far0"), ("pod0", "far1"), ("pod1", "far2")] {
            netns.ip(&["link", "add", link, "type", "veth", "peer", "name", peer]);
        }
        netns
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn ip(&self, arguments: &[&str]) {
        let all: Vec<_> = ["-n", self.name.as_str()].iter().chain(arguments).copied().collect();
        ip(&all);
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub(crate) fn interface(&self, link: &str) -> IfIndex {
        let output = Command::new("ip")
            .args(["-n", &self.name, "-o", "link", "show", link])
            .output()
            .expect("ip is installed");
        let text = String::from_utf8(output.stdout).expect("ip writes text");
        let number = text.split(':').next().expect("a line begins with the number");
        IfIndex(number.trim().parse().unwrap_or_else(|_| panic!("no interface {link}: {text}")))
    }

    /// Runs `work` inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let file = File::open(path).expect("the namespace is there");
                setns(file, CloneFlags::CLONE_NEWNET).expect("this is root");
                work()
            });
            inside.join().expect("the work does not panic")
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip is installed");
    assert!(status.success(), "ip {}", arguments.join(" "));
}
