//! What the kernel allocates for somebody: charged to a memory control group that he belongs to for as long as he
//! makes it allocate.
//!
//! Source: Linux, Documentation/admin-guide/cgroup-v1/memory.rst (`memory.kmem.usage_in_bytes`) and cgroup-v2.rst
//! (`memory.stat`, `kernel`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use userspace::engine::kernel::cgroup::mounted;

/// Readings of the same number that are believed, one after the other, and how many are waited for at most.
const SAME: usize = 3;
const MOST_READINGS: usize = 100;

/// Why nobody is charged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither version has the controller.
    #[error("no memory control groups are mounted here, so nothing says what the kernel allocates for whom")]
    Absent,
    /// A file of theirs.
    #[error("memory control group: {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It says no number.
    #[error("memory control group: {} does not say what the kernel has allocated", .0.display())]
    Unsaid(PathBuf),
}

/// Which of the two versions has the memory of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The file that says what the kernel has allocated, and the word before the number.
    const fn counter(self) -> (&'static str, &'static str) {
        match self {
            Self::One => ("memory.kmem.usage_in_bytes", ""),
            Self::Two => ("memory.stat", "kernel"),
        }
    }

    /// How long a number may be behind: version 2 adds up what each CPU counts every two seconds.
    const fn behind(self) -> Duration {
        match self {
            Self::One => Duration::from_millis(20),
            Self::Two => Duration::from_millis(1100),
        }
    }
}

/// A control group, removed when it is dropped.
#[derive(Debug)]
pub struct Charged {
    version: Version,
    /// Of the group, and of the one that this process belongs to otherwise.
    group: PathBuf,
    home: PathBuf,
}

impl Charged {
    /// A new group of that name, in which nobody is.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(name: &str) -> Result<Self, Error> {
        let read = |path: &str| fs::read_to_string(path).map_err(failed(Path::new(path)));
        let (mounts, own) = (read("/proc/self/mounts")?, read("/proc/self/cgroup")?);
        let (version, root, home) = place(&mounts, &own).ok_or(Error::Absent)?;
        if version == Version::Two {
            let control = root.join("cgroup.subtree_control");
            fs::write(&control, "+memory").map_err(failed(&control))?;
        }
        let group = root.join(name);
        fs::create_dir(&group).map_err(failed(&group))?;
        Ok(Self { version, group, home })
    }

    /// Does it with this process in the group: what the kernel allocates for it, and for processes that it starts, is
    /// charged to the group, and stays so.
    ///
    /// # Errors
    /// [`Error`], also if the process could not be brought back.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        enter(&self.group)?;
        let done = work();
        enter(&self.home)?;
        Ok(done)
    }

    /// Bytes that are charged to it now, when what processes leave behind is gone.
    ///
    /// # Errors
    /// [`Error`].
    pub fn bytes(&self) -> Result<u64, Error> {
        let mut same = 0;
        let mut last = self.read()?;
        for _ in 0..MOST_READINGS {
            thread::sleep(self.version.behind());
            let now = self.read()?;
            same = if now == last { same + 1 } else { 0 };
            if same == SAME {
                break;
            }
            last = now;
        }
        Ok(last)
    }

    fn read(&self) -> Result<u64, Error> {
        let (file, word) = self.version.counter();
        let path = self.group.join(file);
        let text = fs::read_to_string(&path).map_err(failed(&path))?;
        number(&text, word).ok_or(Error::Unsaid(path))
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        // Work that has panicked leaves the process in it; nobody can be told of what fails here.
        let _ = enter(&self.home);
        let _ = fs::remove_dir(&self.group);
    }
}

/// Moves this process.
fn enter(group: &Path) -> Result<(), Error> {
    let path = group.join("cgroup.procs");
    fs::write(&path, "0").map_err(failed(&path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

/// The version that has the memory, its root, and the group of this process, by /proc/self/mounts and
/// /proc/self/cgroup.
fn place(mounts: &str, own: &str) -> Option<(Version, PathBuf, PathBuf)> {
    let one =
        mounted(mounts, |kind, options| kind == "cgroup" && options.split(',').any(|it| it == "memory"));
    let (version, root, controllers) = match one {
        Some(root) => (Version::One, root, "memory"),
        None => (Version::Two, mounted(mounts, |kind, _| kind == "cgroup2")?, ""),
    };
    let home = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let named = fields.next()?.split(',').any(|it| it == controllers);
        fields.next().filter(|_| named)
    })?;
    let home = root.join(home.trim_start_matches('/'));
    Some((version, root, home))
}

/// The number behind the word that a line begins with.
fn number(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| match word {
        "" => line.trim().parse().ok(),
        _ => line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "9:name=systemd:/\n4:memory:/jobs/a:b\n1:cpu,cpuacct:/\n0::/user.slice/x\n";

    #[test]
    fn the_version_that_has_the_memory_is_found_with_the_group_of_this_process() {
        for (case, mounts, version, root, home) in [
            (
                "both, as after an update",
                "cgroup /cg/cpu cgroup rw,cpu 0 0\ncgroup /cg/memory cgroup rw,relatime,memory 0 0\n\
                 cgroup2 /cg/unified cgroup2 rw 0 0\n",
                Version::One,
                "/cg/memory",
                "/cg/memory/jobs/a:b",
            ),
            ("the second alone", "cgroup2 /cg cgroup2 rw 0 0\n", Version::Two, "/cg", "/cg/user.slice/x"),
        ] {
            let wanted = Some((version, PathBuf::from(root), PathBuf::from(home)));
            assert_eq!(place(mounts, OWN), wanted, "{case}");
        }
        assert_eq!(place("cgroup /cg/cpu cgroup rw,cpu 0 0\n", OWN), None);
    }

    #[test]
    fn the_kernels_part_of_the_memory_is_read_of_either_version() {
        assert_eq!(number("6635520\n", Version::One.counter().1), Some(6_635_520));
        let stat = "anon 5\nkernel_stack 7\nkernel 11\nsock 13\n";
        assert_eq!(number(stat, Version::Two.counter().1), Some(11));
        assert_eq!(number("anon 5\n", Version::Two.counter().1), None);
    }
}
