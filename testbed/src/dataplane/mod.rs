//! The dataplanes that are compared, each behind the same trait.
//!
//! | name | what carries packets | file |
//! | --- | --- | --- |
//! | `ebpf` | our tables, in the kernel | [`ebpf`] |
//! | `emulator` | our tables, in this process, with hosts of its own | [`emulator`] |
//! | `emulator` | the same tables, in userspace, on rings shared with the kernel | [`live::emulator`] |
//! | `chains` | rule chains, in userspace, on the same rings | [`chains`] |
//! | `bare` | a loop that only moves frames, on the same rings; only to measure against | [`live::bare`] |
//! | `iptables` | the same rule chains, in the kernel | [`netfilter`] |
//! | `nftables` | rules in maps, in the kernel | [`netfilter`] |
//! | `routed` | the kernel's routing and nothing else: no encapsulation, no Services, no policies | [`routed`] |
//! | `wire` | one cable between two pods: what no dataplane can beat | [`wire`] |

use std::fmt;
use std::str::FromStr;

pub use live::{Io, Tally};
use userspace::model::Cluster;

use crate::topology::{self, Layout, Topology};
use crate::{fabric, link, netns};

pub mod chains;
pub mod ebpf;
pub mod emulator;
pub mod live;
pub mod netfilter;
pub mod routed;
pub mod wire;

/// The name of a dataplane that runs on real links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// Our tables, in the kernel.
    Ebpf,
    /// Our tables, in userspace.
    Emulator,
    /// Rule chains in userspace.
    Chains,
    /// Rule chains in the kernel.
    Iptables,
    /// Rules in maps, in the kernel.
    Nftables,
    /// Plain kernel routing.
    Routed,
    /// One veth pair.
    Wire,
    /// The loop that `emulator` and `chains` are measured against. It is no answer to `--dataplane`.
    Bare,
}

impl Name {
    /// Every name of a dataplane, from the most to the least that is done per packet.
    pub const ALL: [Self; 7] =
        [Self::Ebpf, Self::Emulator, Self::Chains, Self::Iptables, Self::Nftables, Self::Routed, Self::Wire];

    /// The dataplane of that name, not started yet.
    pub fn dataplane(self) -> Box<dyn Dataplane> {
        self.dataplane_with(Io::default())
    }

    /// The same; one in this process reads and sends frames as `io` says.
    pub fn dataplane_with(self, io: Io) -> Box<dyn Dataplane> {
        match self {
            Self::Ebpf => Box::<ebpf::Ebpf>::default(),
            Self::Emulator => Box::new(InProcess::<live::emulator::Node>::new(self, io)),
            Self::Chains => Box::new(InProcess::<chains::Live>::new(self, io)),
            Self::Iptables | Self::Nftables => Box::new(netfilter::Netfilter::new(self)),
            Self::Routed => Box::new(routed::Routed),
            Self::Wire => Box::new(wire::Wire),
            Self::Bare => Box::new(InProcess::<live::bare::Loop>::new(self, io)),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ebpf => "ebpf",
            Self::Emulator => "emulator",
            Self::Chains => "chains",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Routed => "routed",
            Self::Wire => "wire",
            Self::Bare => "bare",
        })
    }
}

impl FromStr for Name {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        Self::ALL.into_iter().find(|name| name.to_string() == text).ok_or_else(|| Unknown(text.to_owned()))
    }
}

/// There is no dataplane of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dataplane {0:?}: expected one of {all}", all = Name::ALL.map(|name| name.to_string()).join(", "))]
pub struct Unknown(pub String);

/// Why a dataplane does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster's namespaces and links.
    #[error(transparent)]
    Topology(#[from] topology::Error),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A link.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// A packet path in this process.
    #[error(transparent)]
    Live(#[from] live::Error),
    /// A cluster that the kernel's packet filter cannot carry.
    #[error(transparent)]
    Unable(#[from] netfilter::Unable),
    /// Rules in the kernel.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// What of the fabric between the nodes is not the kernel's.
    #[error(transparent)]
    Fabric(#[from] fabric::Error),
    /// `ebpf` itself.
    #[error(transparent)]
    Ebpf(#[from] userspace::error::Error),
    /// A link that should be there is not.
    #[error("cannot number the links of {netns}: {why}; was the cluster changed by hand?")]
    Number {
        /// Its namespace.
        netns: String,
        /// The kernel's reason.
        why: nix::Error,
    },
    /// `wire` has two ends.
    #[error(
        "cannot run `wire` on cluster {cluster}: it joins the first two pods with links, and there are fewer"
    )]
    TooFewPods {
        /// Its name.
        cluster: String,
    },
}

/// Carries the packets of a cluster that is up.
pub trait Dataplane: Send {
    /// Its name.
    fn name(&self) -> Name;

    /// The links it wants.
    fn layout(&self) -> Layout;

    /// What became of the frames that passed through this process; nothing where none do.
    fn tally(&self) -> Tally {
        Tally::default()
    }

    /// Builds the namespaces and links of a cluster, as this dataplane wants them.
    ///
    /// # Errors
    /// The first thing that went wrong; nothing is left then.
    fn build(&self, cluster: &Cluster) -> Result<Topology, Error> {
        Ok(Topology::build(cluster, self.layout())?)
    }

    /// Starts on links that it built. When it returns, packets pass.
    ///
    /// # Errors
    /// The first thing that went wrong; nothing runs then.
    fn start(&mut self, topology: &Topology) -> Result<(), Error>;

    /// Goes on with a cluster that has changed, the links with it.
    ///
    /// # Errors
    /// The first thing that went wrong; what did not fail is applied.
    fn apply(&mut self, topology: &Topology) -> Result<(), Error>;

    /// Stops. To stop what does not run succeeds. The links stay.
    ///
    /// # Errors
    /// What still runs, and why.
    fn stop(&mut self) -> Result<(), Error>;
}

/// A packet path of this process as one of the dataplanes.
struct InProcess<P> {
    name: Name,
    io: Io,
    live: Option<live::Live<P>>,
}

impl<P> InProcess<P> {
    fn new(name: Name, io: Io) -> Self {
        Self { name, io, live: None }
    }
}

impl<P: live::Path> Dataplane for InProcess<P> {
    fn name(&self) -> Name {
        self.name
    }

    fn layout(&self) -> Layout {
        P::LAYOUT
    }

    fn tally(&self) -> Tally {
        self.live.as_ref().map(live::Live::tally).unwrap_or_default()
    }

    fn start(&mut self, topology: &Topology) -> Result<(), Error> {
        self.live = Some(live::Live::start(topology, self.io)?);
        Ok(())
    }

    fn apply(&mut self, topology: &Topology) -> Result<(), Error> {
        match &mut self.live {
            Some(live) => Ok(live.apply(topology)?),
            None => self.start(topology),
        }
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.live = None;
        Ok(())
    }
}

/// A cluster that is up with a dataplane on it. Dropped, it is removed; [`Up::down`] tells whether that
/// went well.
pub struct Up {
    topology: Topology,
    fabric: Option<fabric::Running>,
    dataplane: Box<dyn Dataplane>,
    down: bool,
}

impl Up {
    /// Builds the cluster's links and starts the dataplane on them, and what of the fabric is not the kernel's.
    ///
    /// # Errors
    /// The first thing that went wrong; nothing is left then.
    pub fn new(cluster: &Cluster, name: Name) -> Result<Self, Error> {
        Self::with_io(cluster, name, Io::default())
    }

    /// The same; a dataplane in this process reads and sends frames as `io` says.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_io(cluster: &Cluster, name: Name, io: Io) -> Result<Self, Error> {
        Self::with(cluster, name.dataplane_with(io))
    }

    /// The same with a dataplane of one's own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(cluster: &Cluster, dataplane: Box<dyn Dataplane>) -> Result<Self, Error> {
        let topology = dataplane.build(cluster)?;
        // From here on whatever goes wrong takes the links away again.
        let mut up = Self { topology, fabric: None, dataplane, down: false };
        up.dataplane.start(&up.topology)?;
        // Its load balancer asks nodes at once how they are.
        up.fabric = fabric::Running::start(cluster)?;
        Ok(up)
    }

    /// The links.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Goes on with other Services, everything else as it is: for clients it happens at once.
    ///
    /// # Errors
    /// The first thing that went wrong; it can be tried again.
    pub fn change_services(&mut self, after: &Cluster) -> Result<(), Error> {
        self.topology.change_services(after)?;
        self.dataplane.apply(&self.topology)?;
        let cluster = self.topology.cluster();
        match &mut self.fabric {
            Some(fabric) => fabric.apply(cluster)?,
            None => self.fabric = fabric::Running::start(cluster)?,
        }
        Ok(())
    }

    /// What of the fabric is not the kernel's.
    pub fn fabric(&self) -> Option<&fabric::Running> {
        self.fabric.as_ref()
    }

    /// The dataplane's name.
    pub fn name(&self) -> Name {
        self.dataplane.name()
    }

    /// See [`Dataplane::tally`].
    pub fn tally(&self) -> Tally {
        self.dataplane.tally()
    }

    /// Stops the dataplane and removes every namespace.
    ///
    /// # Errors
    /// What is left, and why.
    pub fn down(mut self) -> Result<(), Error> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), Error> {
        self.down = true;
        let stopped = self.dataplane.stop();
        self.fabric = None;
        self.topology.delete()?;
        stopped
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if !self.down
            && let Err(error) = self.remove()
        {
            tracing::warn!("{error}");
        }
    }
}

impl fmt::Debug for Up {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Up").field("dataplane", &self.name()).finish_non_exhaustive()
    }
}
