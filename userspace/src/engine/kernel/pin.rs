//! What outlives the process: a folder of the BPF file system for each node.
//!
//! ```text
//! /sys/fs/bpf/podpath/CLUSTER/NODE/maps/NAME               tables that the packet path fills
//! /sys/fs/bpf/podpath/CLUSTER/NODE/links/PROGRAM-INTERFACE programs, hooked in
//! ```
//! A link that is pinned stays where it is when its process ends, and packets go on. The next process finds
//! the tables as they are and puts its own programs into the links, each in one step.
//!
//! Tables that the agent fills are made anew and filled before any program that reads them is hooked in, so a
//! packet meets all of the old rows or all of the new ones. Those of Services are pinned then, to be read: the next
//! process goes on with their numbers (`held`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::warn;

use super::error::Error;

/// Where the BPF file system belongs.
const ROOT: &str = "/sys/fs/bpf";

/// A node's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    folder: PathBuf,
}

/// What a map must be like to be used again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// The map's name.
    pub name: &'static str,
    /// How it finds rows.
    pub kind: MapType,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a row.
    pub row: u32,
    /// Rows, or bytes of a ring buffer.
    pub rows: u32,
}

impl Pins {
    /// The folder of a node of a cluster. Nothing is made yet.
    pub fn of(cluster: &str, node: &str) -> Self {
        Self { folder: Path::new(ROOT).join("podpath").join(plain(cluster)).join(plain(node)) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Whether anything of the node is pinned.
    pub fn exists(&self) -> bool {
        self.folder.exists()
    }

    /// Makes the folder, and mounts the BPF file system if that has not been done.
    pub(super) fn create(&self) -> Result<(), Error> {
        mounted()?;
        for folder in [self.maps(), self.links()] {
            fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        }
        Ok(())
    }

    fn maps(&self) -> PathBuf {
        self.folder.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.folder.join("links")
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where a program is hooked in.
    pub(super) fn link(&self, program: &str, interface: &str) -> PathBuf {
        self.links().join(plain(&format!("{program}-{interface}")))
    }

    /// Removes every link but these: what they hooked in is so no longer.
    pub(super) fn keep_links(&self, keep: &[PathBuf]) -> Result<(), Error> {
        let folder = self.links();
        for entry in fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let path = entry.map_err(failed("read", &folder))?.path();
            if !keep.contains(&path) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes the pin of a map that cannot be used again, because another version of the program made it,
    /// or one that was told another capacity.
    pub(super) fn keep_if_alike(&self, layout: Layout) -> Result<(), Error> {
        let path = self.map(layout.name);
        let Ok(info) = MapInfo::from_pin(&path) else {
            return Ok(());
        };
        let alike = info.map_type().is_ok_and(|kind| kind == layout.kind)
            && (info.key_size(), info.value_size(), info.max_entries())
                == (layout.key, layout.row, layout.rows);
        if alike {
            return Ok(());
        }
        warn!(
            table = layout.name,
            "the pinned table has {} rows of {} + {} bytes, {} of {} + {} are needed: it is replaced, what was in it is lost",
            info.max_entries(),
            info.key_size(),
            info.value_size(),
            layout.rows,
            layout.key,
            layout.row,
        );
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    /// Removes everything: programs that were hooked in are so no longer. The cluster's folder goes with
    /// its last node.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(&self) -> Result<(), Error> {
        if !self.folder.exists() {
            return Ok(());
        }
        // Links first: a packet then meets no program, rather than one without its rows.
        for folder in [self.links(), self.maps(), self.folder.clone()] {
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(failed("remove", &folder))?;
            }
        }
        if let Some(cluster) = self.folder.parent() {
            // Fails while other nodes of the cluster have theirs.
            let _ = fs::remove_dir(cluster);
        }
        Ok(())
    }
}

/// A name as the BPF file system takes it: dots are reserved there, and `~` is in no name of ours.
fn plain(name: &str) -> String {
    name.replace('.', "~")
}

/// Says why a file could not be used.
pub(super) fn failed(tried: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |why| Error::File { tried, path: path.clone(), why: why.to_string() }
}

/// Mounts the BPF file system once. Under a lock, for a second mount would hide what is pinned in the first.
fn mounted() -> Result<(), Error> {
    let root = Path::new(ROOT);
    let wrong = |why: nix::Error| Error::File {
        tried: "mount the BPF file system on",
        path: root.to_owned(),
        why: why.to_string(),
    };
    let above = Path::new("/sys/fs");
    let lock = File::open(above).map_err(failed("open", above))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, why)| wrong(why))?;
    if statfs(root).map_err(wrong)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(wrong)
}
