//! Inside another network namespace, for the length of a closure.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

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

/// The number that the kernel tells this thread's namespace apart by, from any socket in it (Linux 5.14).
pub(super) fn cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes no more than the length says, into a number that is there.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if code == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Leads the thread back, also when the work panics: a thread in the wrong namespace must not go on.
struct WayBack(File);

impl Drop for WayBack {
    fn drop(&mut self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET)
            .expect("this thread was there a moment ago, with the same rights");
    }
}
