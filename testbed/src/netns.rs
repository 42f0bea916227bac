//! A network namespace as a value: made, entered for the length of a closure, deleted.
//!
//! Namespaces are kept alive the way `ip netns` does it, by a bind mount in `/run/netns`, so that
//! `ip netns list` and `ip netns exec` see them. Nothing is entered on the caller's thread: a closure
//! runs on a thread made for it, which ends with it. A thread that a runtime reuses must never be moved.
//!
//! Names are `podpath-<cluster>-` and then `fabric`, `balancer`, `world`, `node-<node>` or `pod-<namespace>.<pod>`.
//! A dot parts namespace and pod, because a dash does not: `a/b-c` and `a-b/c` are two pods. They read
//! back without doubt, because a cluster's name has no part `node` or `pod` ([`check_cluster`]).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` keeps namespaces.
const DIRECTORY: &str = "/run/netns";

/// Bytes a file name may have (Linux, `NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// Bytes a cluster's name may have: what leaves room for the rest in a unix socket's path.
const LONGEST_CLUSTER: usize = 40;

/// Why something with a namespace did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name cannot be used for a cluster.
    #[error("cannot name a cluster {name:?}: {why}; choose another `metadata.name` for the Testbed")]
    Name {
        /// As it was given.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// Another cluster, or a killed `up`, left it.
    #[error(
        "cannot create network namespace {name}: it exists already; remove its cluster with `podpath down` first"
    )]
    Exists {
        /// The namespace.
        name: String,
    },
    /// It was never made, or is deleted.
    #[error("cannot enter network namespace {name}: there is none; is its cluster up?")]
    Missing {
        /// The namespace.
        name: String,
    },
    /// Namespaces are the superuser's.
    #[error("cannot {tried} {name}: permission denied; run as root")]
    Permission {
        /// What was tried.
        tried: &'static str,
        /// The namespace.
        name: String,
    },
    /// The kernel refused a setting.
    #[error("cannot set {key} to {value:?} in network namespace {name}: {source}")]
    Setting {
        /// The path below `/proc/sys`.
        key: String,
        /// What was to be written.
        value: String,
        /// The namespace.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Anything else that the kernel refused.
    #[error("cannot {tried} {name}: {source}")]
    System {
        /// What was tried.
        tried: &'static str,
        /// The namespace.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The name of a network namespace, which may or may not exist.
///
/// It holds nothing open, so a value that is kept keeps no deleted namespace alive.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Netns {
    name: String,
}

/// The parts of a cluster that have a namespace of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The network that the nodes stand in.
    Fabric,
    /// The load balancer, where it is no part of the fabric's own.
    Balancer,
    /// Everything outside the cluster.
    World,
    /// A node, by name; its host-network pods live there as well.
    Node(&'a str),
    /// A pod, by namespace and name.
    Pod(&'a str, &'a str),
}

impl Netns {
    /// The namespace of that name, made or not.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// The namespace of a part of `cluster`, made or not.
    ///
    /// A name that would be too long for a file is cut, and ends in a hash of the whole.
    pub fn of(cluster: &str, part: Part<'_>) -> Self {
        let name = match part {
            Part::Fabric => format!("podpath-{cluster}-fabric"),
            Part::Balancer => format!("podpath-{cluster}-balancer"),
            Part::World => format!("podpath-{cluster}-world"),
            Part::Node(node) => format!("podpath-{cluster}-node-{node}"),
            Part::Pod(namespace, pod) => format!("podpath-{cluster}-pod-{namespace}.{pod}"),
        };
        if name.len() <= LONGEST_NAME {
            return Self { name };
        }
        let hash = fnv1a(name.as_bytes());
        let kept: String = name.chars().take(LONGEST_NAME - 17).collect();
        Self { name: format!("{kept}-{hash:016x}") }
    }

    /// Makes a new, empty namespace, with its loopback up and IPv6 off on every link to come.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Permission`], or the kernel's reason. Nothing is left behind.
    pub fn create(name: impl Into<String>) -> Result<Self, Error> {
        let netns = Self::named(name);
        prepare_directory().map_err(netns.failed("prepare /run/netns for"))?;
        let path = netns.path();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path);
        match file {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists { name: netns.name });
            }
            opened => drop(opened.map_err(netns.failed("create network namespace"))?),
        }
        let made = thread::scope(|scope| joined(scope.spawn(|| unshare_onto(&path))));
        if let Err(error) = made {
            // The file is ours, and without the mount it is nothing.
            let _ = netns.delete();
            return Err(netns.failed("create network namespace")(error));
        }
        Ok(netns)
    }

    /// The namespace of that name, which must exist.
    ///
    /// # Errors
    /// [`Error::Missing`] if it does not, or if only the file is there.
    pub fn open(name: impl Into<String>) -> Result<Self, Error> {
        let netns = Self::named(name);
        netns.run(|| ())?;
        Ok(netns)
    }

    /// Its name, as `ip netns list` prints it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted; opening it gives what `setns` and netlink take.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Whether it is there, as a namespace or as what a killed `create` leaves.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Runs `work` inside, on a thread of its own, and gives back what it returned. Sockets opened in it
    /// stay in this namespace, whoever uses them later. A panic in `work` is the caller's panic.
    ///
    /// # Errors
    /// The namespace cannot be entered; `work` has not run then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let file = File::open(self.path()).map_err(self.failed("enter network namespace"))?;
        let ran = thread::scope(|scope| {
            joined(scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            }))
        });
        ran.map_err(|errno: Errno| match errno {
            // A file without a mount on it is no namespace.
            Errno::EINVAL => Error::Missing { name: self.name.clone() },
            errno => self.failed("enter network namespace")(errno.into()),
        })
    }

    /// Writes kernel settings inside: pairs of a path below `/proc/sys` and a value.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first that failed; later ones were not tried.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<(), Error> {
        self.run(|| {
            for (key, value) in settings {
                // /proc/sys/net shows the namespace of the thread that looks.
                fs::write(Path::new("/proc/sys").join(key), value).map_err(|source| Error::Setting {
                    key: (*key).to_owned(),
                    value: (*value).to_owned(),
                    name: self.name.clone(),
                    source,
                })?;
            }
            Ok(())
        })?
    }

    /// Deletes it, and with it every link inside. To delete what is not there succeeds.
    ///
    /// The links are gone when the last process and socket inside are: who needs them gone at once
    /// deletes them first.
    ///
    /// # Errors
    /// The kernel's reason; what failed can be tried again.
    pub fn delete(&self) -> Result<(), Error> {
        let path = self.path();
        loop {
            match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Mounts may lie upon one another.
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(self.failed("unmount network namespace")(errno.into())),
            }
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("delete network namespace")(error))
            }
            _ => Ok(()),
        }
    }

    /// All whose names begin with `prefix`, in order of name.
    ///
    /// # Errors
    /// `/run/netns` cannot be read. That there is none means that there are no namespaces.
    pub fn list(prefix: &str) -> Result<Vec<Self>, Error> {
        let failed = |source| Error::System { tried: "list", name: DIRECTORY.to_owned(), source };
        let entries = match fs::read_dir(DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
                && name.starts_with(prefix)
            {
                found.push(Self { name });
            }
        }
        found.sort();
        Ok(found)
    }

    /// The name of the cluster it belongs to, if it is one of podpath's.
    pub fn cluster(&self) -> Option<&str> {
        let rest = self.name.strip_prefix("podpath-")?;
        let parted = [rest.find("-node-"), rest.find("-pod-")];
        let end = parted.into_iter().flatten().min();
        let cluster = match end {
            Some(end) => &rest[..end],
            None => ["-fabric", "-balancer", "-world"].iter().find_map(|part| rest.strip_suffix(part))?,
        };
        check_cluster(cluster).is_ok().then_some(cluster)
    }

    /// The same namespace, deleted when the guard goes out of scope.
    pub fn guarded(self) -> Guard {
        Guard(self)
    }

    /// Turns the kernel's reason into an error that says what was tried on this namespace.
    fn failed(&self, tried: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| {
            let name = self.name.clone();
            match source.kind() {
                io::ErrorKind::NotFound => Error::Missing { name },
                io::ErrorKind::PermissionDenied => Error::Permission { tried, name },
                _ => Error::System { tried, name, source },
            }
        }
    }
}

/// Deletes a namespace when dropped.
#[derive(Debug)]
pub struct Guard(Netns);

impl Guard {
    /// The namespace stays: it is somebody else's to delete now.
    pub fn keep(mut self) -> Netns {
        let kept = std::mem::replace(&mut self.0, Netns::named(""));
        std::mem::forget(self);
        kept
    }
}

impl std::ops::Deref for Guard {
    type Target = Netns;
    fn deref(&self) -> &Netns {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.0.delete() {
            tracing::warn!("{error}");
        }
    }
}

/// Checks that `name` can name a cluster: a DNS label (RFC 1123) of at most 40 bytes, without a part
/// `node` or `pod`, so that a namespace's name tells its cluster.
///
/// # Errors
/// [`Error::Name`], with the rule that is broken.
pub fn check_cluster(name: &str) -> Result<(), Error> {
    let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > LONGEST_CLUSTER {
        "it is longer than 40 bytes"
    } else if !name.chars().all(label) {
        "only lower case letters, digits and dashes may stand in it"
    } else if name.starts_with('-') || name.ends_with('-') {
        "it begins or ends with a dash"
    } else if name.split('-').any(|part| part == "node" || part == "pod") {
        "\"node\" and \"pod\" between dashes are kept for the names of namespaces"
    } else {
        return Ok(());
    };
    Err(Error::Name { name: name.to_owned(), why })
}

/// A hash that is the same in every run: FNV-1a, 64 bits (Fowler, Noll, Vo; draft-eastlake-fnv).
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What the thread returned, or its panic as ours.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Moves the calling thread into a new namespace, and mounts that at `path`.
fn unshare_onto(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    loopback_up()?;
    let ipv6 = Path::new("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    if ipv6.exists() {
        fs::write(ipv6, "1")?;
    }
    let source = Some(Path::new("/proc/thread-self/ns/net"));
    mount(source, path, None::<&Path>, MsFlags::MS_BIND, None::<&Path>)?;
    Ok(())
}

/// Sets `lo` up in the calling thread's namespace (netdevice(7)).
fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let set = unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(set)?;
    Ok(())
}

/// Makes `/run/netns` what `ip netns` makes it: a directory that is a shared mount, so that a namespace
/// deleted in one mount namespace is deleted in all.
fn prepare_directory() -> io::Result<()> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory)?;
    // `ip netns` takes the same lock: two who both find no mount would hide each other's.
    let _lock = Flock::lock(File::open(directory)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let none = None::<&Path>;
    let share = || mount(none, directory, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        Err(Errno::EINVAL) => {
            mount(Some(directory), directory, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            share()?;
        }
        other => other?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_knows_its_cluster_even_among_clusters_with_names_alike() {
        for cluster in ["a", "a-b", "a-fabric", "world", "lab-1"] {
            let parts = [
                Part::Fabric,
                Part::Balancer,
                Part::World,
                Part::Node("node-pod-fabric"),
                Part::Pod("node", "x-node-y.z"),
            ];
            for part in parts {
                let netns = Netns::of(cluster, part);
                assert_eq!(netns.cluster(), Some(cluster), "{}", netns.name());
            }
        }
    }

    #[test]
    fn names_that_are_not_podpaths_have_no_cluster() {
        for name in
            ["cni-1234", "podpath-lab", "podpath--fabric", "podpath-Lab-fabric", "podpath-node-fabric"]
        {
            assert_eq!(Netns::named(name).cluster(), None, "{name}");
        }
    }

    #[test]
    fn a_dash_in_a_namespace_or_pod_does_not_make_two_pods_one() {
        let one = Netns::of("lab", Part::Pod("a", "b-c"));
        let other = Netns::of("lab", Part::Pod("a-b", "c"));
        assert_ne!(one, other);
    }

    #[test]
    fn a_long_name_is_cut_but_stays_one_of_a_kind() {
        let (one, other) = ("p".repeat(252) + "1", "p".repeat(252) + "2");
        let one = Netns::of("lab", Part::Pod("default", &one));
        let other = Netns::of("lab", Part::Pod("default", &other));
        assert!(one.name().len() <= LONGEST_NAME && one != other);
        assert_eq!(one.cluster(), Some("lab"));
    }

    #[test]
    fn a_cluster_name_that_could_not_be_read_back_is_refused() {
        for name in ["", "a_b", "A", "-a", "a-", "a/..", "my-node", "pod", &"a".repeat(41)] {
            assert!(check_cluster(name).is_err(), "{name}");
        }
        for name in ["lab", "nodes", "test-12-x", &"a".repeat(40)] {
            assert!(check_cluster(name).is_ok(), "{name}");
        }
    }
}
