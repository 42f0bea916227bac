//! Traffic that is measured: request and response, connect and close, a stream, a rate of packets.
//!
//! The kinds are netperf's, with its names in the table, so that figures can be laid beside others'.
//!
//! | netperf | here | gives |
//! | --- | --- | --- |
//! | `TCP_RR`, `UDP_RR` | [`request_response`] | a histogram of round trips |
//! | `TCP_CRR` | [`connect_request_close`] | a histogram of whole connections |
//! | `TCP_STREAM` | [`stream`] | bytes received, and what was sent twice |
//! | `UDP_STREAM` | [`packet_rate`] | packets sent and received |
//! | | [`forward`] | frames sent and received, by no socket's doing |
//! | | [`first_packets`] | a histogram of round trips, each the first of its flow |
//!
//! Client and server are threads of this process, each inside its own network namespace and pinned to a
//! CPU if one is given. To compare latencies give both the same CPU: across CPUs a round trip is mostly
//! the time to wake the other one up. What has several connections has a thread for each. Every run ends by itself, whatever the network does.

mod cpu;
mod exchange;
mod flood;
mod flows;
mod frames;
mod trips;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

use crate::netns::{self, Netns};

pub use cpu::Ticks;
pub use exchange::{connect_request_close, request_response};
pub use flood::{packet_rate, stream};
pub use flows::{first_packets, open_flows};
pub use frames::forward;
pub use trips::RoundTrips;

/// How long a socket call waits before it looks whether the run is over.
const TURN: Duration = Duration::from_millis(20);

/// How long a client waits for one answer; a datagram that takes longer is lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long one connection may take to open.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// The transport of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// RFC 9293, with `TCP_NODELAY`.
    Tcp,
    /// RFC 768, from a connected socket.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One end of a run.
#[derive(Clone, Debug)]
pub struct End {
    /// Where its sockets are.
    pub netns: Netns,
    /// The one CPU its thread may run on; any, if none.
    pub cpu: Option<usize>,
}

/// Who sends to whom.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Dials.
    pub client: End,
    /// Answers.
    pub server: End,
    /// What the client dials; may be a virtual address that leads to the server.
    pub dialled: SocketAddrV4,
    /// The port that the server listens on, on every address of its namespace.
    pub listening: u16,
}

/// What is asked in [`request_response`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// Bytes of a request, and of its answer.
    pub size: usize,
    /// At least 1; one request is under way on each at a time.
    pub connections: usize,
    /// Over all connections, whether or not the one before is answered: what is late counts from when it was due.
    /// 0: the next one follows the answer to the last.
    pub rate_per_s: u64,
}

impl Requests {
    /// One after the other, over one connection.
    pub const fn of(size: usize) -> Self {
        Self { size, connections: 1, rate_per_s: 0 }
    }
}

/// When a run ends: at whichever limit comes first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Traffic before it, the same in kind, is not counted.
    pub warm_up: Duration,
    /// How long traffic is counted.
    pub time: Duration,
    /// How many round trips, or datagrams, are counted at most.
    pub count: u64,
}

impl Limits {
    /// `time` of counted traffic, however much that is, after a tenth of it as warm-up.
    pub fn time(time: Duration) -> Self {
        Self { warm_up: time / 10, time, count: u64::MAX }
    }
}

/// What TCP connections carried one way.
#[derive(Clone, Copy, Debug)]
pub struct Streamed {
    /// Bytes that the server read while they were counted.
    pub bytes: u64,
    /// How long they were counted.
    pub elapsed: Duration,
    /// Segments that the client sent again in that time (`tcpi_total_retrans`).
    pub retransmits: u64,
    /// What the machine's CPUs did in that time.
    pub ticks: Ticks,
}

impl Streamed {
    /// Payload bits per second.
    pub fn rate_bits(&self) -> f64 {
        8.0 * per_second(self.bytes, self.elapsed)
    }
}

/// Datagrams sent one way as fast as the client can.
#[derive(Clone, Copy, Debug)]
pub struct Packets {
    /// What the client's kernel took.
    pub sent: u64,
    /// What the server read in that time.
    pub received: u64,
    /// How long the client sent; where the count ended it, until the last arrived.
    pub elapsed: Duration,
    /// What the machine's CPUs did in that time.
    pub ticks: Ticks,
}

impl Packets {
    /// Datagrams received per second of sending.
    pub fn rate(&self) -> f64 {
        per_second(self.received, self.elapsed)
    }
}

fn per_second(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// Why a run has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// Frames cannot be sent or counted.
    #[error("cannot open a packet socket on eth0 in {netns}: {source}")]
    Frames {
        /// The namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The server has no socket.
    #[error("cannot listen on {transport} port {port} in {netns}: {source}")]
    Listen {
        /// Of the run.
        transport: Transport,
        /// The port.
        port: u16,
        /// The server's namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The client has no connection.
    #[error(
        "cannot reach {dialled}/{transport} from {netns}: {source}; is the dataplane up, and does policy allow it?"
    )]
    Dial {
        /// What was dialled.
        dialled: SocketAddrV4,
        /// Of the run.
        transport: Transport,
        /// The client's namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The connection was open, and then broke.
    #[error("cannot exchange data with {dialled}/{transport} from {netns}: {source}")]
    Broken {
        /// What was dialled.
        dialled: SocketAddrV4,
        /// Of the run.
        transport: Transport,
        /// The client's namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The client sent, and nothing came back or arrived.
    #[error(
        "no answer from {dialled}/{transport} to {netns}; is the dataplane up, and does policy allow it?"
    )]
    Silent {
        /// What was dialled.
        dialled: SocketAddrV4,
        /// Of the run.
        transport: Transport,
        /// The client's namespace.
        netns: String,
    },
    /// The machine has no such CPU, or it may not be used.
    #[error("cannot pin a thread to CPU {cpu}: {source}; see `taskset -p $$` for those allowed")]
    Pin {
        /// Counted from 0.
        cpu: usize,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Ends {
    fn dial_failed(&self, transport: Transport) -> impl Fn(io::Error) -> Error {
        let (dialled, netns) = (self.dialled, self.client.netns.name().to_owned());
        move |source| Error::Dial { dialled, transport, netns: netns.clone(), source }
    }

    fn broken(&self, transport: Transport) -> impl Fn(io::Error) -> Error {
        let (dialled, netns) = (self.dialled, self.client.netns.name().to_owned());
        move |source| Error::Broken { dialled, transport, netns: netns.clone(), source }
    }

    fn silent(&self, transport: Transport) -> Error {
        Error::Silent { dialled: self.dialled, transport, netns: self.client.netns.name().to_owned() }
    }

    fn listen_failed(&self, transport: Transport) -> impl Fn(io::Error) -> Error {
        let (port, netns) = (self.listening, self.server.netns.name().to_owned());
        move |source| Error::Listen { transport, port, netns: netns.clone(), source }
    }

    /// The server's socket for connections; `accept` returns at least every [`TURN`].
    fn listener(&self) -> Result<TcpListener, Error> {
        let opened = self.server.netns.run(|| {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.listening))?;
            setsockopt(&listener, sockopt::ReceiveTimeout, &turn())?;
            Ok(listener)
        });
        opened?.map_err(self.listen_failed(Transport::Tcp))
    }

    /// The server's socket for datagrams; reading returns at least every [`TURN`].
    fn receiver(&self) -> Result<UdpSocket, Error> {
        let opened = self.server.netns.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, self.listening))?;
            socket.set_read_timeout(Some(TURN))?;
            enlarge(&socket);
            Ok(socket)
        });
        opened?.map_err(self.listen_failed(Transport::Udp))
    }

    /// Runs `server` beside `client`, each inside its namespace and on its CPU. The server is told to
    /// stop when the client is done, in whatever way.
    fn beside<T: Send>(
        &self,
        server: impl FnOnce(&Running) + Send,
        client: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let running = Running(AtomicBool::new(true));
        thread::scope(|scope| {
            let serving = scope.spawn(|| -> Result<(), Error> {
                self.server.netns.run(|| {
                    self.server.pin()?;
                    server(&running);
                    Ok(())
                })?
            });
            let stop = StopOnDrop(&running);
            let measured = self.client.netns.run(|| {
                self.client.pin()?;
                client()
            });
            drop(stop);
            // What keeps the server from serving is why the client fails.
            serving.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            measured?
        })
    }
}

impl End {
    /// Keeps the calling thread on this end's CPU.
    fn pin(&self) -> Result<(), Error> {
        let Some(cpu) = self.cpu else { return Ok(()) };
        let mut set = CpuSet::new();
        set.set(cpu)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
            .map_err(|errno| Error::Pin { cpu, source: errno.into() })
    }
}

/// Whether the run is still on; the server looks at it every [`TURN`].
struct Running(AtomicBool);

impl Running {
    fn still(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Ends the run when the client is done, by return or by panic.
struct StopOnDrop<'a>(&'a Running);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

fn turn() -> TimeVal {
    TimeVal::milliseconds(TURN.as_millis() as i64)
}

/// Asks for room for bursts. A smaller buffer shows in the figures, as loss: no error.
fn enlarge(socket: &impl AsFd) {
    const BYTES: usize = 8 << 20;
    let _ = setsockopt(socket, sockopt::RcvBufForce, &BYTES);
    let _ = setsockopt(socket, sockopt::SndBufForce, &BYTES);
}

/// Whether a socket call only ran into its time limit, or a signal.
fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
