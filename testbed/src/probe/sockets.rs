//! The real measure: sockets in network namespaces, and whether they are answered.
//!
//! A socket stays in the namespace it was opened in, so one thread waits for the sockets of all of them.
//! TCP is answered when a connection stands, UDP when the same datagram comes back, SCTP when an association
//! is agreed to.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind,
    getsockname, setsockopt, socket, sockopt,
};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use userspace::model::Protocol;

use super::{Verdict, sctp};
use crate::interrupt::{Interrupt, Interrupted};
use crate::netns::{self, Netns};

/// How long an answer may take. Linux sends a lost SYN again after one second (RFC 6298), so that one
/// lost packet makes no denial.
const PATIENCE: Duration = Duration::from_secs(2);
/// Datagrams sent within [`PATIENCE`], evenly.
const DATAGRAMS: u32 = 4;
/// How often it is looked whether the user still wants an answer.
const GLANCE: Duration = Duration::from_millis(100);
/// Flows under way at one time: few enough for an ordinary limit of open files.
const AT_ONCE: usize = 512;

/// The ports that dials come from: below those that belong to masquerades, and to node ports.
const PORTS: Range<u16> = 20_000..30_000;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The sender's own socket failed, before anything was sent.
    #[error("cannot dial {target} over {protocol} from {source_address} in {netns}: {why}")]
    Socket {
        /// The sender's namespace.
        netns: String,
        /// The sender's address.
        source_address: IpAddr,
        /// Who was to be dialled.
        target: SocketAddr,
        /// How.
        protocol: Protocol,
        /// The kernel's reason.
        why: io::Error,
    },
    /// The user wants it to end.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// There is no runtime for it.
    #[error("cannot start measuring: {0}")]
    Runtime(io::Error),
}

/// A flow in the kernel's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// The sender's namespace.
    pub netns: Netns,
    /// The sender's address: a namespace may have several.
    pub source: IpAddr,
    /// Who is dialled.
    pub target: SocketAddr,
    /// How.
    pub protocol: Protocol,
}

/// What became of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialled {
    /// As the sender's socket could tell.
    pub verdict: Verdict,
    /// The sender's port, by which a dataplane's reports can be told apart.
    pub port: u16,
}

/// Dials them all, many at one time; as many answers, in the same order.
///
/// # Errors
/// The first that could not be measured; or the user does not want to wait for it.
pub fn dial_all(dials: &[Dial], interrupt: &Interrupt) -> Result<Vec<Dialled>, Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(async {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let mut under_way = JoinSet::new();
        let mut answers = vec![None; dials.len()];
        for (place, (dial, port)) in dials.iter().cloned().zip(ports(dials)).enumerate() {
            let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            interrupt.check()?;
            under_way.spawn(async move {
                let dialled = measure(&dial, port).await;
                drop(permit);
                (place, dialled)
            });
        }
        while !under_way.is_empty() {
            interrupt.check()?;
            let Ok(Some(joined)) = timeout(GLANCE, under_way.join_next()).await else { continue };
            // A panic in a task is ours; nobody cancels them.
            let (place, dialled) =
                joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            answers[place] = Some(dialled?);
        }
        Ok(answers.into_iter().flatten().collect())
    })
}

async fn measure(dial: &Dial, port: u16) -> Result<Dialled, Error> {
    let failed = |why: io::Error| Error::Socket {
        netns: dial.netns.name().to_owned(),
        source_address: dial.source,
        target: dial.target,
        protocol: dial.protocol,
        why,
    };
    let (socket, port) = dial.netns.run(|| open(dial, port))?.map_err(failed)?;
    let dialled = |verdict| Ok(Dialled { verdict, port });
    let answered = match dial.protocol {
        Protocol::Udp => within(exchange(socket, dial.target)).await,
        Protocol::Tcp => within(connect(socket, dial.target)).await,
        Protocol::Sctp => within(associate(socket, port, dial.target)).await,
    };
    match answered {
        Ok(()) => dialled(Verdict::Allow),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            _ if error.kind() == io::ErrorKind::TimedOut => dialled(Verdict::Deny),
            // Resets and ICMP errors, and a hook at the sender's own socket that says no.
            Some(
                Errno::ECONNREFUSED
                | Errno::ECONNRESET
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::ENOPROTOOPT
                | Errno::EACCES
                | Errno::EPERM,
            ) => dialled(Verdict::Reject),
            _ => Err(failed(error)),
        },
    }
}

/// The future's result, or [`io::ErrorKind::TimedOut`] after [`PATIENCE`].
async fn within(answer: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A port for each dial that no other one of the same sender has, as far as there are enough: one after the
/// other, so that no dataplane takes a dial for part of an earlier one. Processes begin at different ones.
fn ports(dials: &[Dial]) -> impl Iterator<Item = u16> {
    let first = std::process::id().wrapping_mul(101);
    let mut used: HashMap<(&str, IpAddr), u32> = HashMap::new();
    dials.iter().map(move |dial| {
        let count = used.entry((dial.netns.name(), dial.source)).or_default();
        *count += 1;
        let step = first.wrapping_add(*count) % PORTS.len() as u32;
        PORTS.start + u16::try_from(step).expect("there are fewer ports than that")
    })
}

/// Opens a socket in the calling thread's namespace, bound to the sender's address, and to this port unless
/// somebody has it; gives the port as well.
fn open(dial: &Dial, port: u16) -> io::Result<(OwnedFd, u16)> {
    let (kind, protocol) = match dial.protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => return Ok((sctp::open(dial.source, dial.target.ip())?, port)),
    };
    let family = match dial.source {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
    if dial.protocol == Protocol::Tcp {
        // Closed with a reset: no port lingers, and the dataplane forgets the flow at once.
        setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    let bound = |port| bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(dial.source, port)));
    match bound(port) {
        Err(Errno::EADDRINUSE) => bound(0)?,
        done => done?,
    }
    let bound: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let port = match dial.source {
        IpAddr::V4(_) => bound.as_sockaddr_in().map(SockaddrIn::port),
        IpAddr::V6(_) => bound.as_sockaddr_in6().map(SockaddrIn6::port),
    };
    Ok((socket, port.unwrap_or_default()))
}

async fn connect(socket: OwnedFd, target: SocketAddr) -> io::Result<()> {
    TcpSocket::from_std_stream(socket.into()).connect(target).await.map(drop)
}

/// Asks for an association until there is an answer.
async fn associate(socket: OwnedFd, port: u16, target: SocketAddr) -> io::Result<()> {
    let asking = sctp::Asking::new(socket, port, target)?;
    loop {
        asking.send().await?;
        if let Ok(answer) = timeout(PATIENCE / DATAGRAMS, asking.answer()).await {
            return answer;
        }
    }
}

/// Sends the same datagram until it comes back.
async fn exchange(socket: OwnedFd, target: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(target).await?;
    let port = socket.local_addr()?.port();
    let question = format!("podpath asks {target} from port {port}");
    let mut answer = [0; 128];
    loop {
        match socket.send(question.as_bytes()).await {
            // The queue is full: as good as lost on the way.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            sent => drop(sent?),
        }
        // Without an answer in time, it is time to ask again.
        if let Ok(received) = timeout(PATIENCE / DATAGRAMS, socket.recv(&mut answer)).await
            && answer[..received?] == *question.as_bytes()
        {
            return Ok(());
        }
    }
}
