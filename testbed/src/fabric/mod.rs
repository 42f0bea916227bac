//! What of a live cluster's fabric is not the kernel's own: with `fabric: {kind: emulator}` in its Testbed all of it,
//! [`userspace::fabric`] on packet sockets, in real time, instead of the kernel's bridge and routes; on a bridge the
//! load balancer, if there is one.
//!
//! [`Running`] is in this process, [`serve_from_stdin`] runs it in one of its own, for a cluster that stays up: that
//! one is told what to do in lines of JSON ([`crate::control`]), a [`Spec`] first, then [`Request`]s.

mod balancer;
mod live;
mod told;

use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use userspace::fabric::{self, Report};
use userspace::model::{Cluster, FabricKind, LinkQuality};

pub use balancer::Balancer;
pub use live::Live;
pub use told::Told;

use crate::control::{self, Control, read_line, write_line};
use crate::netns::{self, Netns, Part};
use crate::state;

/// Why there is no fabric.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster asks for something that no fabric has.
    #[error(transparent)]
    Fabric(#[from] fabric::Error),
    /// The fabric's namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The process could not be started, or does not answer.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// It answered that it could not.
    #[error("{0}")]
    Refused(String),
    /// The load balancer beside a bridge.
    #[error("cannot run the load balancer: {0}")]
    Balancer(userspace::error::Error),
    /// No packet socket.
    #[error("cannot {tried} link {link} in network namespace {netns}: {source}")]
    Socket {
        /// What was tried.
        tried: &'static str,
        /// The link's name.
        link: String,
        /// The fabric's namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The cluster has a bridge.
    #[error(
        "cannot {tried} cluster {cluster}: its fabric is the kernel's bridge, which knows nothing of it; bring it up with `fabric: {{kind: emulator}}` in its Testbed"
    )]
    Bridge {
        /// What was tried.
        tried: &'static str,
        /// The cluster.
        cluster: String,
    },
    /// The process itself cannot go on.
    #[error("cannot run the fabric: {0}")]
    Serve(#[from] io::Error),
}

/// Whether a cluster's frames are carried by [`userspace::fabric`], not by a bridge.
pub fn is_emulated(cluster: &Cluster) -> bool {
    cluster.settings.fabric.kind == FabricKind::Emulator
}

/// Whether there is something of a cluster's fabric that a process must run, now that its links are there.
pub fn is_served(cluster: &Cluster) -> bool {
    is_emulated(cluster) || Netns::of(&cluster.name, Part::Balancer).exists()
}

/// What of a cluster's fabric is not the kernel's own, as long as it lives.
#[derive(Debug)]
pub enum Running {
    /// All of it.
    Emulated(Live),
    /// The load balancer beside a bridge.
    Balancer(Balancer),
}

impl Running {
    /// Starts on the links of a cluster, if there is anything to be run. Frames pass when this returns.
    ///
    /// # Errors
    /// It cannot run. Nothing does then.
    pub fn start(cluster: &Cluster) -> Result<Option<Self>, Error> {
        if is_emulated(cluster) {
            return Live::start(cluster).map(Self::Emulated).map(Some);
        }
        is_served(cluster).then(|| Balancer::start(cluster).map(Self::Balancer)).transpose()
    }

    /// Goes on with a cluster that has changed, its links with it.
    ///
    /// # Errors
    /// There is no such fabric, and nothing is changed; or a link or a table cannot be used.
    pub fn apply(&mut self, cluster: &Cluster) -> Result<(), Error> {
        match self {
            Self::Emulated(live) => live.apply(cluster),
            Self::Balancer(balancer) => balancer.apply(cluster),
        }
    }

    /// What happened so far. Beside a bridge only the load balancer's part says anything.
    ///
    /// # Errors
    /// Counters cannot be read.
    pub fn report(&self) -> Result<Report, Error> {
        match self {
            Self::Emulated(live) => Ok(live.report()),
            Self::Balancer(balancer) => balancer.report(),
        }
    }

    /// All of the fabric.
    ///
    /// # Errors
    /// [`Error::Bridge`]: it is the kernel's.
    pub fn emulated(&self, tried: &'static str, cluster: &str) -> Result<&Live, Error> {
        match self {
            Self::Emulated(live) => Ok(live),
            Self::Balancer(_) => Err(Error::Bridge { tried, cluster: cluster.to_owned() }),
        }
    }
}

/// What the process is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Where it takes requests: the path of a unix socket, which it makes.
    pub control: PathBuf,
    /// The cluster, whose links are there.
    pub cluster: Cluster,
}

/// What a running fabric can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Go on with this cluster.
    Apply(Box<Cluster>),
    /// Make these the links' qualities, and every other link perfect.
    Links(Vec<LinkQuality>),
    /// Say what happened so far.
    Report,
    /// Follow packets from now on.
    Tell,
    /// Say what was done to them, and follow none any more.
    Told,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// What happened so far.
    Report(Box<Report>),
    /// What was done to the packets that were followed.
    Told(Vec<Told>),
    /// It is not done, and why.
    Failed(String),
}

/// Where a running fabric is asked.
#[derive(Clone, Debug)]
pub struct Client {
    control: Control,
    socket: PathBuf,
}

impl Client {
    /// The fabric of a cluster that is up; on a bridge its load balancer.
    ///
    /// # Errors
    /// [`Error::Bridge`]: it has none that could be asked.
    pub fn of(cluster: &Cluster, tried: &'static str) -> Result<Self, Error> {
        if !is_served(cluster) {
            return Err(Error::Bridge { tried, cluster: cluster.name.clone() });
        }
        Ok(Self::at(&state::directory(&cluster.name).join("fabric.sock")))
    }

    /// The fabric that takes requests there.
    pub fn at(socket: &Path) -> Self {
        Self { control: Control::new("the fabric", socket), socket: socket.to_owned() }
    }

    /// Starts it on links that are there, with `command`, which is to run [`serve_from_stdin`]. Frames pass
    /// when this returns. The process outlives us.
    ///
    /// # Errors
    /// It cannot be started or noted, or a link cannot be read. Then no process is left.
    pub fn start(
        &self,
        command: Command,
        cluster: &Cluster,
        note: impl FnOnce(u32) -> Result<(), state::Error>,
    ) -> Result<(), Error> {
        let spec = Spec { control: self.socket.clone(), cluster: cluster.clone() };
        done(self.control.start(command, &spec, note)?).map(drop)
    }

    /// Goes on with a cluster that has changed, its links with it.
    ///
    /// # Errors
    /// It does not answer, or cannot.
    pub fn apply(&self, cluster: &Cluster) -> Result<(), Error> {
        self.ask(&Request::Apply(Box::new(cluster.clone()))).map(drop)
    }

    /// Makes these the links' qualities, and every other link perfect.
    ///
    /// # Errors
    /// It does not answer, or there is no such link.
    pub fn set_links(&self, links: Vec<LinkQuality>) -> Result<(), Error> {
        self.ask(&Request::Links(links)).map(drop)
    }

    /// What happened so far.
    ///
    /// # Errors
    /// It does not answer.
    pub fn report(&self) -> Result<Report, Error> {
        match self.ask(&Request::Report)? {
            Answer::Report(report) => Ok(*report),
            other => Err(Error::Refused(format!("cannot read the fabric's report: it said {other:?}"))),
        }
    }

    /// Follows packets from now on.
    ///
    /// # Errors
    /// It does not answer.
    pub fn tell(&self) -> Result<(), Error> {
        self.ask(&Request::Tell).map(drop)
    }

    /// What was done to the packets that were followed, in the order in which it happened; follows none any more.
    ///
    /// # Errors
    /// It does not answer.
    pub fn told(&self) -> Result<Vec<Told>, Error> {
        match self.ask(&Request::Told)? {
            Answer::Told(told) => Ok(told),
            other => Err(Error::Refused(format!("cannot follow packets in the fabric: it said {other:?}"))),
        }
    }

    fn ask(&self, request: &Request) -> Result<Answer, Error> {
        done(self.control.ask(request)?)
    }
}

fn done(answer: Answer) -> Result<Answer, Error> {
    match answer {
        Answer::Failed(why) => Err(Error::Refused(why)),
        answer => Ok(answer),
    }
}

/// Runs a fabric in this process until it is killed: reads the [`Spec`] from standard input, and writes the
/// first [`Answer`] to standard output when frames pass. Ends at once if the input ends without a spec.
///
/// # Errors
/// The input is no spec, the control socket cannot be made, or the fabric cannot run; whoever started it is
/// told that, too.
pub fn serve_from_stdin() -> Result<(), Error> {
    let spec = match read_line::<Spec>(&mut io::stdin().lock()) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        spec => spec?,
    };
    // One that a killed process left behind.
    let _ = std::fs::remove_file(&spec.control);
    let control = UnixListener::bind(&spec.control)?;
    let name = spec.cluster.name.clone();
    let nothing = || Error::Bridge { tried: "run the fabric of", cluster: name.clone() };
    let mut running = match Running::start(&spec.cluster).and_then(|running| running.ok_or_else(nothing)) {
        Ok(running) => running,
        Err(error) => {
            write_line(&mut io::stdout().lock(), &Answer::Failed(error.to_string()))?;
            return Err(error);
        }
    };
    write_line(&mut io::stdout().lock(), &Answer::Done)?;
    for stream in control.incoming() {
        // Whoever asked may be gone; the next one may not.
        if let Err(error) = stream.and_then(|stream| converse(&mut running, &name, stream)) {
            tracing::debug!("a conversation ended: {error}");
        }
    }
    Ok(())
}

/// Answers the requests of one connection, in order.
fn converse(running: &mut Running, cluster: &str, mut stream: UnixStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let answer = match read_line::<Request>(&mut lines) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => Answer::Failed(format!("cannot read the request: {error}")),
            Ok(request) => {
                let answered = answer(running, cluster, request);
                answered.unwrap_or_else(|error| Answer::Failed(error.to_string()))
            }
        };
        write_line(&mut stream, &answer)?;
    }
}

fn answer(running: &mut Running, cluster: &str, request: Request) -> Result<Answer, Error> {
    let following = "follow packets in";
    Ok(match request {
        Request::Report => Answer::Report(Box::new(running.report()?)),
        Request::Tell => {
            running.emulated(following, cluster)?.tell();
            Answer::Done
        }
        Request::Told => Answer::Told(running.emulated(following, cluster)?.told()),
        Request::Apply(cluster) => {
            running.apply(&cluster)?;
            Answer::Done
        }
        Request::Links(links) => {
            running.emulated("change a link of", cluster)?.set_links(&links)?;
            Answer::Done
        }
    })
}
