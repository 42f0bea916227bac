//! A switch between nodes: see `ebpf/src/switch/main.rs`.

use std::fmt;
use std::path::Path;

use aya::maps::{HashMap, MapData};
use aya::{Ebpf, EbpfLoader};
use dataplane::wire::Mac;
use nix::net::if_::if_nametoindex;

use super::error::{Error, sentence};
use super::hook::{self, Hooked, Way};
use super::netns::Netns;
use super::object;
use super::table::Row;
use super::verifier::load_program;
use super::{scheduled, table_failed, take, typed};

/// The program.
pub(super) const PROGRAM: &str = "switch";
const STATIONS: &str = "stations";

/// A switch over ports of one namespace, in front of the bridge they belong to. It is there for as long as this lives.
pub struct Switch {
    #[expect(dead_code, reason = "its links end with their last owner")]
    hooked: Vec<Hooked>,
    #[expect(dead_code, reason = "it keeps the program")]
    ebpf: Ebpf,
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").finish_non_exhaustive()
    }
}

impl Switch {
    /// Joins these ports of the namespace at a path: each by its name, with the station behind it. The ports are ends
    /// of veth pairs whose others lie in other namespaces.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], [`Error::Object`], [`Error::Program`] also before Linux 6.6, [`Error::Refused`],
    /// [`Error::File`], [`Error::Table`], [`Error::Attach`]; no port is joined then.
    pub fn join<'a>(netns: &Path, ports: impl IntoIterator<Item = (&'a str, Mac)>) -> Result<Self, Error> {
        if Way::best() == Way::Clsact {
            let why = "this kernel is older than 6.6, and has no links that end with their owner".to_owned();
            return Err(Error::Program { program: PROGRAM, why });
        }
        let bytes = object::SWITCH.map_err(Error::NotBuilt)?;
        let mut ebpf =
            EbpfLoader::new().btf(None).load(bytes).map_err(|why| Error::Object { why: sentence(&why) })?;
        load_program(&mut ebpf, PROGRAM)?;
        let mut stations: HashMap<MapData, Row<Mac>, u32> = typed(take(&mut ebpf, STATIONS)?, STATIONS)?;
        let hooked = Netns::open(netns)?.run(|| {
            let mut hooked = Vec::new();
            for (port, station) in ports {
                let index = if_nametoindex(port).map_err(|why| Error::Attach {
                    program: PROGRAM,
                    interface: port.to_owned(),
                    why: why.to_string(),
                })?;
                stations.insert(Row(station), index, 0).map_err(table_failed("write", STATIONS))?;
                let program = scheduled(&mut ebpf, PROGRAM)?;
                hooked.push(hook::attach(program, (PROGRAM, port), Way::Tcx, None)?);
            }
            Ok(hooked)
        })??;
        Ok(Self { hooked, ebpf })
    }
}
