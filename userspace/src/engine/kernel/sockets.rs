//! Sockets that are translated as they connect and send: the programs in their places, and an end to clients
//! whose backend is gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use aya::programs::Program;
use dataplane::tables::{Backend, Dialled};
use dataplane::wire::{Address, V4, V6};

use super::error::Error;
use super::family::Family;
use super::netns::Netns;
use super::pin::Pins;
use super::{Kernel, cgroup, diag};
use crate::plan::Rows;

/// The network namespaces of a node as files, by their cookies.
pub type Namespaces = BTreeMap<u64, PathBuf>;

/// The cookie of a network namespace, such as `/run/netns/NAME`.
///
/// # Errors
/// [`Error::File`].
pub fn cookie_of(netns: &Path) -> Result<u64, Error> {
    let inside = Netns::open(netns)?;
    inside.run(super::netns::cookie)?.map_err(|why| Error::File {
        tried: "ask for the cookie of network namespace",
        path: netns.to_owned(),
        why: why.to_string(),
    })
}

impl Kernel {
    /// Whether this node translates sockets.
    pub(super) fn has_sockets(&self) -> bool {
        self.node.sockets != 0
    }

    /// Hooks the programs in that sockets meet, if the node translates them: all, or an error.
    pub(super) fn attach_sockets(&mut self) -> Result<(), Error> {
        let mut hooked = Vec::new();
        if self.has_sockets() {
            let root = cgroup::root()?;
            for name in cgroup::PROGRAMS {
                let program = self.ebpf.program_mut(name).ok_or_else(|| missing(name))?;
                hooked.push(cgroup::attach(program, name, &root, self.options.pins.as_ref())?);
            }
        }
        self.sockets = hooked;
        Ok(())
    }

    /// Where these programs' links are pinned.
    pub(super) fn socket_pins(&self, pins: &Pins) -> Vec<PathBuf> {
        let names = cgroup::PROGRAMS.iter().filter(|_| self.has_sockets());
        names.map(|name| cgroup::pin(pins, name)).collect()
    }

    /// Ends the connected UDP sockets that were led to a backend which takes no more, so that their owners
    /// connect anew: how many. TCP connections go on, and so do sockets that are not connected, which are led to
    /// another backend as they send again, and those that dialled a backend themselves.
    ///
    /// # Errors
    /// The tables could not be read, a namespace not be entered, or the kernel does not answer.
    pub fn end_stale_clients(&self, namespaces: &Namespaces) -> Result<usize, Error> {
        if !self.has_sockets() {
            return Ok(0);
        }
        let mut stale = HashMap::new();
        self.stale::<V4>(&self.rows.v4, &mut stale)?;
        self.stale::<V6>(&self.rows.v6, &mut stale)?;
        let homes: HashSet<u64> = stale.values().map(|(home, _, _)| *home).collect();
        let mut ended = 0;
        for home in homes {
            // A pod that is gone has no sockets that matter.
            let Some(path) = namespaces.get(&home) else { continue };
            let failed = |why: std::io::Error| Error::File {
                tried: "end sockets in",
                path: path.clone(),
                why: why.to_string(),
            };
            ended += Netns::open(path)?.run(|| end(&stale))?.map_err(failed)?;
        }
        Ok(ended)
    }

    /// What sockets were led to that takes no more, by the socket.
    fn stale<A: Family>(&self, rows: &Rows<A>, stale: &mut HashMap<u64, Led>) -> Result<(), Error> {
        for (key, row) in A::tables(self).sockets.sorted()? {
            let free = row.backend == A::default();
            if !free && !is_active(rows, &row) {
                let backend = row.backend.to_v6().0;
                stale.insert(key.cookie.number(), (row.home.number(), backend, row.backend_port.host()));
            }
        }
        Ok(())
    }
}

/// Where a socket is, and the backend that it was led to.
type Led = (u64, [u8; 16], u16);

/// As `dataplane::socket::is_active`, of the rows that were written last.
fn is_active<A: Address>(rows: &Rows<A>, row: &Dialled<A>) -> bool {
    rows.backends.get(row.id.0 as usize).is_some_and(|backend| {
        backend.state == Backend::<A>::ACTIVE
            && (backend.address, backend.port) == (row.backend, row.backend_port)
    })
}

/// Ends those sockets of this thread's namespace that are still connected to where they were led.
fn end(stale: &HashMap<u64, Led>) -> std::io::Result<usize> {
    let mut ended = 0;
    for found in diag::connected()? {
        let (address, port) = found.peer();
        let is_it = |(_, backend, backend_port): &Led| *backend_port == port && backend.ends_with(address);
        if stale.get(&found.cookie()).is_some_and(is_it) {
            diag::end(&found)?;
            ended += 1;
        }
    }
    Ok(ended)
}

fn missing(name: &'static str) -> Error {
    Error::Program { program: name, why: "the object has no such program".to_owned() }
}

/// Has the verifier look at one of these programs.
pub(super) fn load(program: &mut Program) -> Result<(), aya::programs::ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => Err(aya::programs::ProgramError::UnexpectedProgramType),
    }
}

#[cfg(test)]
mod tests {
    use dataplane::tables::BackendId;
    use dataplane::wire::Be16;

    use super::*;

    #[test]
    fn a_backend_is_active_while_its_row_says_so_and_is_still_its_own() {
        let port = Be16::new(53);
        let row =
            Backend { address: V4([10, 0, 0, 1]), port, state: Backend::<V4>::ACTIVE, ..Backend::default() };
        let mut rows = Rows { backends: vec![Backend::default(), row], ..Rows::default() };
        let led =
            Dialled { backend: row.address, backend_port: port, id: BackendId(1), ..Dialled::default() };
        assert!(is_active(&rows, &led));
        rows.backends[1].state = Backend::<V4>::DRAINING;
        assert!(!is_active(&rows, &led), "no new flows");
        rows.backends[1] = Backend { address: V4([10, 0, 0, 2]), ..row };
        assert!(!is_active(&rows, &led), "the number is another's");
        rows.backends.truncate(1);
        assert!(!is_active(&rows, &led), "there is no such row any more");
    }
}
