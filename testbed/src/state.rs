//! What is up on this machine, written down before it is made, so that it can always be taken down.
//!
//! `/run/podpath/<cluster>/state.json` is complete at every moment: it is written beside, brought to the
//! disk and renamed. The order of `up` is: [`lock`], [`Lock::save`], build. The order for a process is:
//! start it, note it, let it begin; a process that waits for its first line of input before it does
//! anything, and ends when there is none, thus never runs unknown ([`crate::listen`] does so).
//!
//! [`Lock::down`] trusts nothing more than it must: namespaces are found by name, with or without a
//! state; a process is killed only if it is the very one that was noted, not another with its number.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use userspace::model::Cluster;

use crate::netns::{self, Netns, check_cluster};
use crate::topology::{self, delete_namespaces};

/// Where clusters are written down.
const DIRECTORY: &str = "/run/podpath";
/// Where dataplanes pin what they load, below a folder for each cluster.
const PINS: &str = "/sys/fs/bpf/podpath";
/// How long a process has to end after SIGTERM, and again after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a state could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something with a namespace, or the name.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// Something with the links.
    #[error(transparent)]
    Topology(#[from] topology::Error),
    /// Two commands at once.
    #[error(
        "cannot change cluster {cluster}: another podpath is changing it; try again when that is through"
    )]
    Busy {
        /// The cluster.
        cluster: String,
    },
    /// The state is there, and not ours to read.
    #[error("cannot read {}: {why}; remove the cluster with `podpath down` and bring it up again", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// States are the superuser's.
    #[error("cannot {tried} {}: permission denied; run as root", path.display())]
    Permission {
        /// What was tried.
        tried: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {tried} {}: {source}", path.display())]
    File {
        /// What was tried.
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A process could not be noted, or does not end.
    #[error("cannot {tried} process {pid} ({role}): {source}")]
    Process {
        /// What was tried.
        tried: &'static str,
        /// Its number.
        pid: u32,
        /// What it is for.
        role: String,
        /// Why not.
        source: io::Error,
    },
    /// Some of the cluster is still there.
    #[error("cannot remove all of cluster {cluster}: {}; `podpath down {cluster}` tries again", sentences(.left))]
    Left {
        /// The cluster.
        cluster: String,
        /// Everything that went wrong.
        left: Vec<Error>,
    },
}

/// Errors, one after the other.
fn sentences(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What is to be known of a cluster in order to change it or to take it down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The value of `--dataplane`.
    pub dataplane: String,
    /// The objects as the user gave them, for `apply` and `get`.
    pub objects: Vec<serde_json::Value>,
    /// What was made of them.
    pub cluster: Cluster,
    /// How often it was changed.
    #[serde(default)]
    pub revision: u64,
    /// Rules in the kernel may be of another state: loading them was begun, and has not succeeded since.
    #[serde(default)]
    pub stale_rules: bool,
    /// Processes that belong to the cluster, in the order they were started.
    pub processes: Vec<Process>,
}

impl State {
    /// The state of a cluster of which nothing runs yet.
    pub fn new(dataplane: impl Into<String>, objects: Vec<serde_json::Value>, cluster: Cluster) -> Self {
        Self {
            dataplane: dataplane.into(),
            objects,
            cluster,
            revision: 0,
            stale_rules: false,
            processes: Vec::new(),
        }
    }
}

/// A process that can be told from every other one that had or will have its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is for, such as `listen`.
    pub role: String,
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks after the machine did (proc_pid_stat(5), field 22).
    started: u64,
    /// Which start of the machine that was (`/proc/sys/kernel/random/boot_id`).
    boot: String,
}

impl Process {
    /// Notes a process that runs, such as a child just started.
    ///
    /// # Errors
    /// [`Error::Process`] if there is none of that number.
    pub fn running(role: impl Into<String>, pid: u32) -> Result<Self, Error> {
        let role = role.into();
        let noted = started(pid).and_then(|started| Ok((started, boot()?)));
        match noted {
            Ok((started, boot)) => Ok(Self { role, pid, started, boot }),
            Err(source) => Err(Error::Process { tried: "note", pid, role, source }),
        }
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot) && started(self.pid).is_ok_and(|at| at == self.started)
    }

    /// Asks it to end, then ends it, and waits until it has. One that has ended already is fine.
    ///
    /// # Errors
    /// [`Error::Process`] if it is not ours to end, or does not end.
    pub fn end(&self) -> Result<(), Error> {
        // The handle first, the check after: from then on the number cannot pass to another process.
        let Ok(handle) = Handle::open(self.pid) else {
            return Ok(());
        };
        if !self.runs() {
            return Ok(());
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            match handle.signal(signal) {
                Err(Errno::ESRCH) => return Ok(()),
                Err(errno) => return Err(self.failed("end", errno.into())),
                Ok(()) => {}
            }
            if handle.wait(PATIENCE).map_err(|errno| self.failed("wait for", errno.into()))? {
                return Ok(());
            }
        }
        Err(self.failed("end", io::ErrorKind::TimedOut.into()))
    }

    fn failed(&self, tried: &'static str, source: io::Error) -> Error {
        Error::Process { tried, pid: self.pid, role: self.role.clone(), source }
    }
}

/// A handle on a process that stays on it when its number is used again (pidfd_open(2)).
struct Handle(OwnedFd);

impl Handle {
    fn open(pid: u32) -> Result<Self, Errno> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
        // SAFETY: the call reads two numbers; a descriptor that it gives is ours alone.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn signal(&self, signal: Signal) -> Result<(), Errno> {
        let (fd, none) = (self.0.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: without a siginfo the call reads three numbers.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, none, 0) };
        Errno::result(sent).map(drop)
    }

    /// Whether it ended within the time.
    fn wait(&self, patience: Duration) -> Result<bool, Errno> {
        let deadline = Instant::now() + patience;
        let mut ended = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            // SAFETY: poll reads and writes the one pollfd, which outlives the call.
            let ready = unsafe { libc::poll(&raw mut ended, 1, left.try_into().unwrap_or(libc::c_int::MAX)) };
            match Errno::result(ready) {
                Err(Errno::EINTR) => {}
                ready => return ready.map(|ready| ready > 0),
            }
        }
    }
}

/// When the process started. One that has ended, and that only its parent has not heard of, is none.
fn started(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets, and may hold spaces and brackets.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    match (fields.first(), fields.get(19).and_then(|ticks| ticks.parse().ok())) {
        (Some(&"Z" | &"X"), _) => Err(io::ErrorKind::NotFound.into()),
        (_, Some(ticks)) => Ok(ticks),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// This start of the machine.
fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The right to change one cluster, as long as it lives. It ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    cluster: String,
    file: Flock<File>,
}

/// Takes the right to change a cluster, whether or not there is one.
///
/// # Errors
/// [`Error::Busy`] if somebody else has it; the name cannot be one; the file system refuses.
pub fn lock(cluster: &str) -> Result<Lock, Error> {
    check_cluster(cluster)?;
    let directory = Path::new(DIRECTORY);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(failed("create", directory))?;
    let path = lock_path(cluster);
    loop {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(failed("open", &path))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Error::Busy { cluster: cluster.to_owned() });
            }
            Err((_, errno)) => return Err(failed("lock", &path)(errno.into())),
        };
        // Whoever had it before may have removed the file between our open and our lock.
        let ours = file.metadata().map_err(failed("read", &path))?.ino();
        if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
            return Ok(Lock { cluster: cluster.to_owned(), file });
        }
    }
}

/// The clusters of which there is anything, in order of name: a state, or only namespaces.
///
/// # Errors
/// `/run` cannot be read.
pub fn list() -> Result<Vec<String>, Error> {
    let directory = Path::new(DIRECTORY);
    let mut found = HashSet::new();
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.map_err(failed("read", directory))? {
                let name = entry.map_err(failed("read", directory))?.file_name();
                // A lock's name has a dot, and is none.
                found.extend(name.into_string().ok().filter(|name| check_cluster(name).is_ok()));
            }
        }
    }
    let namespaces = Netns::list("podpath-")?;
    found.extend(namespaces.iter().filter_map(|netns| netns.cluster().map(str::to_owned)));
    let mut found: Vec<String> = found.into_iter().collect();
    found.sort();
    Ok(found)
}

/// The state of a cluster, as it is now; others may be changing it.
///
/// # Errors
/// The file is there, and cannot be read or understood.
pub fn load(cluster: &str) -> Result<Option<State>, Error> {
    check_cluster(cluster)?;
    let path = directory(cluster).join("state.json");
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(failed("read", &path))?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::Unreadable { path, why: error.to_string() })
}

/// The cluster's folder, for what belongs beside its state, such as sockets. [`Lock::save`] makes it.
pub fn directory(cluster: &str) -> PathBuf {
    Path::new(DIRECTORY).join(cluster)
}

fn lock_path(cluster: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{cluster}.lock"))
}

impl Lock {
    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The cluster's state, if it has one.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(&self) -> Result<Option<State>, Error> {
        load(&self.cluster)
    }

    /// Writes the state down. When this returns it is on the disk; if it does not, the old one is.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, state: &State) -> Result<(), Error> {
        let directory = directory(&self.cluster);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(failed("create", &directory))?;
        let (path, beside) = (directory.join("state.json"), directory.join("state.json.new"));
        let written = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(state)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&directory)?.sync_all()
        };
        written().map_err(failed("write", &path))
    }

    /// Takes the cluster down: ends its processes, deletes its namespaces, removes what it pinned, and
    /// forgets it. Goes on where something fails, and can be called again; of nothing, it removes nothing.
    ///
    /// # Errors
    /// [`Error::Left`] with everything that went wrong; the state is kept then.
    pub fn down(self) -> Result<(), Error> {
        let mut left = Vec::new();
        match self.load() {
            // What cannot be read cannot be asked for processes; everything else is found by name.
            Err(Error::Unreadable { path, why }) => {
                tracing::warn!("cannot read {}: {why}", path.display())
            }
            Err(error) => left.push(error),
            Ok(state) => {
                let processes = state.map(|state| state.processes).unwrap_or_default();
                // The last started may need the others until it has ended.
                left.extend(processes.iter().rev().filter_map(|process| process.end().err()));
            }
        }
        left.extend(delete_namespaces(&self.cluster).err().map(Error::from));
        left.extend(remove(&Path::new(PINS).join(&self.cluster)).err());
        if left.is_empty() {
            left.extend(remove(&directory(&self.cluster)).err());
        }
        if left.is_empty() {
            left.extend(remove(&lock_path(&self.cluster)).err());
        }
        // Only now may the next one begin.
        drop(self.file);
        if left.is_empty() { Ok(()) } else { Err(Error::Left { cluster: self.cluster, left }) }
    }
}

/// Takes a cluster down, whatever is left of it: [`lock`] and [`Lock::down`].
///
/// # Errors
/// As both.
pub fn down(cluster: &str) -> Result<(), Error> {
    lock(cluster)?.down()
}

/// Removes a file, or a folder with all in it. To remove what is not there succeeds.
fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(tried: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Permission { tried, path: path.to_owned() },
        _ => Error::File { tried, path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A process that ends when the test says so.
    fn child() -> std::process::Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat starts")
    }

    #[test]
    fn a_noted_process_is_ended() {
        let mut child = child();
        let process = Process::running("cat", child.id()).expect("it runs");
        assert!(process.runs());
        process.end().expect("it ends");
        assert!(!child.wait().expect("it is ours").success());
        assert!(!process.runs());
    }

    #[test]
    fn a_process_that_does_not_heed_sigterm_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        // Its first byte says that the trap is set.
        let mut byte = [0];
        io::Read::read_exact(child.stdout.as_mut().expect("it is piped"), &mut byte).expect("it writes");
        let process = Process::running("sh", child.id()).expect("it runs");
        process.end().expect("it ends");
        let status = child.wait().expect("it is ours");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }

    #[test]
    fn another_process_with_the_same_number_is_left_alone() {
        let mut child = child();
        let noted = Process::running("cat", child.id()).expect("it runs");
        let before = Process { started: noted.started - 1, ..noted.clone() };
        let of_another_boot = Process { boot: "another".to_owned(), ..noted.clone() };
        before.end().expect("there is nothing to end");
        of_another_boot.end().expect("there is nothing to end");
        assert!(noted.runs());
        drop(child.stdin.take());
        assert!(child.wait().expect("it is ours").success());
    }

    #[test]
    fn a_process_that_ended_and_was_not_waited_for_does_not_run() {
        let mut child = child();
        let process = Process::running("cat", child.id()).expect("it runs");
        let handle = Handle::open(child.id()).expect("it runs");
        drop(child.stdin.take());
        assert!(handle.wait(PATIENCE).expect("it can be waited for"));
        assert!(!process.runs());
        child.wait().expect("it is ours");
    }
}
