//! Inside another network namespace, for the length of a closure.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use super::error::Error;

/// A network namespace that a thread can step into and out of again.
#[derive(Debug)]
pub(super) struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// The namespace at this path, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|why| Error::File {
            tried: "open network namespace",
            path: path.to_owned(),
            why: why.to_string(),
        })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Runs `work` inside, on this thread, which is back where it was afterwards.
    ///
    /// # Errors
    /// [`Error::File`], if the namespace cannot be entered.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let failed =
            |why: String| Error::File { tried: "enter network namespace", path: self.path.clone(), why };
        let here = File::open("/proc/thread-self/ns/net").map_err(|why| failed(why.to_string()))?;
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|why| failed(why.to_string()))?;
        let way_back = WayBack(here);
        let result = work();
        drop(way_back);
        Ok(result)
    }
}

/// Leads the thread back, also when the work panics: a thread in the wrong namespace must not go on.
struct WayBack(File);

impl Drop for WayBack {
    fn drop(&mut self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET)
            .expect("this thread was there a moment ago, with the same rights");
    }
}
