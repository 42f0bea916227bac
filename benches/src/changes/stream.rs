//! A steady stream of new flows, and which of them arrived.
//!
//! One probe is a datagram to each target from a port that no probe before it had, so that policies judge each by
//! itself. What is told of it is when it was sent: by one clock, for nothing crosses machines.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testbed::netns::{self, Netns};

/// Between two probes.
const PACE: Duration = Duration::from_micros(200);
/// How long a probe may be under way.
const LAST: Duration = Duration::from_millis(60);
/// How long a receiver waits before it looks whether it is over.
const GLANCE: Duration = Duration::from_millis(20);
/// How long it may take until as many probes are sent as are waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Ports of probes.
const PORTS: std::ops::RangeInclusive<u16> = 1024..=64_999;
/// Probes before a change and after it.
const AROUND: usize = 60;

/// Why a stream did not flow.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace that could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A socket that could not be opened, or used.
    #[error("cannot {tried} {address}: {source}")]
    Socket {
        /// What was tried.
        tried: &'static str,
        /// With whom.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// It does not flow fast enough.
    #[error("only {0} probes were sent in {PATIENCE:?}: the machine is too busy to measure")]
    Slow(usize),
}

/// Who may be probed.
#[derive(Debug)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    socket: UdpSocket,
}

impl Target {
    /// Listens in a namespace.
    ///
    /// # Errors
    /// [`Error`].
    pub fn listen(netns: &Netns, address: SocketAddr) -> Result<Self, Error> {
        let socket = netns.run(|| UdpSocket::bind(address))?;
        let failed = |source| Error::Socket { tried: "listen at", address, source };
        let socket = socket.map_err(failed)?;
        socket.set_read_timeout(Some(GLANCE)).map_err(failed)?;
        Ok(Self { address, socket })
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// When it was sent, in microseconds since the stream began.
    pub sent_us: u64,
    /// Which of the targets it came to.
    pub came: Vec<bool>,
}

/// What was seen around a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Every probe, in order.
    pub probes: Vec<Probe>,
    /// When the change was told.
    pub told_us: u64,
    /// When it was acknowledged.
    pub acknowledged_us: u64,
}

/// Who sends probes.
#[derive(Debug)]
pub struct Prober {
    from: Netns,
    port: u16,
}

/// What the threads of a stream share.
struct Flowing {
    begin: Instant,
    over: AtomicBool,
    sent: AtomicUsize,
    log: Mutex<Vec<u64>>,
}

impl Flowing {
    fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Waits until so many more probes are sent.
    fn pass(&self, more: usize) -> Result<(), Error> {
        let (goal, since) = (self.sent.load(Ordering::Relaxed) + more, Instant::now());
        while self.sent.load(Ordering::Relaxed) < goal {
            if since.elapsed() > PATIENCE || self.over.load(Ordering::Relaxed) {
                return Err(Error::Slow(self.sent.load(Ordering::Relaxed)));
            }
            thread::sleep(PACE);
        }
        Ok(())
    }
}

impl Prober {
    /// Sends from this namespace.
    pub fn new(from: Netns) -> Self {
        Self { from, port: *PORTS.start() }
    }

    /// Probes all the while that `change` takes, and before and after it.
    ///
    /// # Errors
    /// [`Error`], or what `change` says.
    pub fn around<E: From<Error>>(
        &mut self,
        targets: &[Target],
        change: impl FnOnce() -> Result<(), E>,
    ) -> Result<Seen, E> {
        let flowing = Flowing {
            begin: Instant::now(),
            over: AtomicBool::new(false),
            sent: AtomicUsize::new(0),
            log: Mutex::default(),
        };
        let addresses: Vec<_> = targets.iter().map(|target| target.address).collect();
        let (times, arrived) = thread::scope(|scope| {
            let flowing = &flowing;
            let receivers: Vec<_> =
                targets.iter().map(|target| scope.spawn(|| receive(&target.socket, flowing))).collect();
            let sender = scope.spawn(|| {
                let sent = self.send(&addresses, flowing);
                flowing.over.store(true, Ordering::Relaxed);
                sent
            });
            let times = within(flowing, change);
            flowing.over.store(true, Ordering::Relaxed);
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let arrived = receivers
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            Ok::<_, Error>((times, arrived.collect::<Vec<_>>()))
        })?;
        let (told_us, acknowledged_us) = times?;
        let sent = flowing.log.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut probes: Vec<_> =
            sent.into_iter().map(|sent_us| Probe { sent_us, came: vec![false; targets.len()] }).collect();
        for (place, arrived) in arrived.into_iter().enumerate() {
            for number in arrived {
                if let Some(probe) = probes.get_mut(number as usize) {
                    probe.came[place] = true;
                }
            }
        }
        Ok(Seen { probes, told_us, acknowledged_us })
    }

    /// Sends until it is over.
    fn send(&mut self, to: &[SocketAddr], flowing: &Flowing) -> Result<(), Error> {
        let port = &mut self.port;
        self.from.run(|| {
            while !flowing.over.load(Ordering::Relaxed) {
                *port = if *port == *PORTS.end() { *PORTS.start() } else { *port + 1 };
                let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), *port);
                let socket = match UdpSocket::bind(own) {
                    Err(error) if error.kind() == ErrorKind::AddrInUse => continue,
                    bound => bound.map_err(|source| Error::Socket { tried: "open", address: own, source })?,
                };
                let number = {
                    let mut log = flowing.log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push(flowing.now_us());
                    log.len() as u32 - 1
                };
                for address in to {
                    let sent = socket.send_to(&number.to_be_bytes(), address);
                    sent.map_err(|source| Error::Socket { tried: "send to", address: *address, source })?;
                }
                flowing.sent.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PACE);
            }
            Ok(())
        })?
    }
}

/// The change, and when it was told and acknowledged.
fn within<E: From<Error>>(
    flowing: &Flowing,
    change: impl FnOnce() -> Result<(), E>,
) -> Result<(u64, u64), E> {
    flowing.pass(AROUND)?;
    let told_us = flowing.now_us();
    change()?;
    let acknowledged_us = flowing.now_us();
    flowing.pass(AROUND)?;
    Ok((told_us, acknowledged_us))
}

/// The numbers of the probes that come, until it has been over for a while.
fn receive(socket: &UdpSocket, flowing: &Flowing) -> Vec<u32> {
    let (mut numbers, mut number) = (Vec::new(), [0; 4]);
    let mut since = None;
    while since.is_none_or(|since: Instant| since.elapsed() < LAST) {
        if let Ok((4, _)) = socket.recv_from(&mut number) {
            numbers.push(u32::from_be_bytes(number));
        }
        if since.is_none() && flowing.over.load(Ordering::Relaxed) {
            since = Some(Instant::now());
        }
    }
    numbers
}
