//! As much as goes through, one way.

use std::io::{self, Read, Write};
use std::mem::size_of;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::trips::side_by_side;
use super::{
    CONNECT_WITHIN, Ends, Error, Limits, Packets, Running, Streamed, TURN, Ticks, Transport, enlarge,
    exchange, is_timeout,
};

/// Bytes handed to the kernel at a time (netperf's default on Linux is of this order).
const CHUNK: usize = 128 << 10;

/// Datagrams handed to the kernel at a time.
const BATCH: usize = 32;

/// How long nothing may arrive before the last datagram counts as received.
const QUIET: Duration = Duration::from_millis(50);

/// How long datagrams on their way are waited for in all.
const DRAIN: Duration = Duration::from_secs(1);

/// Sends over TCP connections as fast as it goes. netperf's `TCP_STREAM`; [`Limits::count`] is not used.
///
/// # Errors
/// The server cannot listen, the client cannot connect, or a connection breaks. [`Error::Silent`]:
/// nothing arrived in the counted time.
pub fn stream(ends: &Ends, connections: usize, limits: Limits) -> Result<Streamed, Error> {
    let listener = ends.listener()?;
    let received = AtomicU64::new(0);
    let streamed = ends.beside(
        |running| swallow_all(&listener, connections, &received, running),
        || {
            let failed = ends.broken(Transport::Tcp);
            let mut streams = (0..connections).map(|_| dial(ends)).collect::<Result<Vec<_>, _>>()?;
            let again = |streams: &[TcpStream]| {
                streams.iter().map(retransmits).sum::<io::Result<u64>>().map_err(&failed)
            };
            side_by_side(&mut streams, |stream| {
                pour(stream, limits.warm_up).map_err(ends.broken(Transport::Tcp))
            })?;
            let (bytes, before) = (received.load(Ordering::Relaxed), again(&streams)?);
            let (ticks, begin) = (Ticks::now(), Instant::now());
            side_by_side(&mut streams, |stream| {
                pour(stream, limits.time).map_err(ends.broken(Transport::Tcp))
            })?;
            let (elapsed, ticks) = (begin.elapsed(), Ticks::now().since(ticks));
            let bytes = received.load(Ordering::Relaxed) - bytes;
            let retransmits = again(&streams)?.saturating_sub(before);
            Ok(Streamed { bytes, elapsed, retransmits, ticks })
        },
    )?;
    if streamed.bytes == 0 { Err(ends.silent(Transport::Tcp)) } else { Ok(streamed) }
}

/// Sends UDP datagrams of `size` bytes of payload as fast as the client's CPU can. netperf's `UDP_STREAM`.
/// The warm-up is a run of its own.
///
/// # Errors
/// The server cannot listen, or the client cannot send. [`Error::Silent`]: of all datagrams none arrived.
pub fn packet_rate(ends: &Ends, size: usize, limits: Limits) -> Result<Packets, Error> {
    let receiver = ends.receiver()?;
    let received = AtomicU64::new(0);
    let packets = ends.beside(
        |running| count(&receiver, &received, running),
        || {
            let socket = (|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(ends.dialled)?;
                socket.set_write_timeout(Some(TURN))?;
                enlarge(&socket);
                Ok(socket)
            })()
            .map_err(ends.dial_failed(Transport::Udp))?;
            let failed = ends.broken(Transport::Udp);
            let payload = vec![b'x'; size];
            blast(&socket, &payload, limits.warm_up, u64::MAX).map_err(&failed)?;
            settle(&received);
            let before = received.load(Ordering::Relaxed);
            let (ticks, begin) = (Ticks::now(), Instant::now());
            let sent = blast(&socket, &payload, limits.time, limits.count).map_err(&failed)?;
            // What is on its way yet was not received in that time, and what it costs is no part of it.
            let end = if sent < limits.count { Instant::now() } else { settle(&received) };
            let (elapsed, arrived) = (end.duration_since(begin), received.load(Ordering::Relaxed));
            let packets =
                Packets { sent, received: arrived - before, elapsed, ticks: Ticks::now().since(ticks) };
            // Nothing of it disturbs what is measured next.
            settle(&received);
            Ok(packets)
        },
    )?;
    if packets.received == 0 { Err(ends.silent(Transport::Udp)) } else { Ok(packets) }
}

fn dial(ends: &Ends) -> Result<TcpStream, Error> {
    let open = || {
        let stream = TcpStream::connect_timeout(&SocketAddr::V4(ends.dialled), CONNECT_WITHIN)?;
        stream.set_write_timeout(Some(TURN))?;
        Ok(stream)
    };
    open().map_err(ends.dial_failed(Transport::Tcp))
}

/// Writes for as long as given.
fn pour(stream: &mut TcpStream, time: Duration) -> io::Result<()> {
    let chunk = vec![b'x'; CHUNK];
    let begin = Instant::now();
    while begin.elapsed() < time {
        match stream.write(&chunk) {
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads so many connections to their ends.
fn swallow_all(listener: &TcpListener, connections: usize, received: &AtomicU64, running: &Running) {
    thread::scope(|scope| {
        for _ in 0..connections {
            let Some(stream) = exchange::accept(listener, running) else { return };
            scope.spawn(move || swallow(stream, received, running));
        }
    });
}

fn swallow(mut stream: TcpStream, received: &AtomicU64, running: &Running) {
    if stream.set_read_timeout(Some(TURN)).is_err() {
        return;
    }
    let mut chunk = vec![0; CHUNK];
    // What is still on its way when the run is over is not waited for: it is not counted either.
    while running.still() {
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => {
                received.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
}

/// Segments that were sent again, since the connection began.
fn retransmits(stream: &TcpStream) -> io::Result<u64> {
    // SAFETY: all-zero bytes are a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to `info`, and the length to `size`.
    let read = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    if read == 0 { Ok(info.tcpi_total_retrans.into()) } else { Err(io::Error::last_os_error()) }
}

/// [`BATCH`] equal messages for `sendmmsg` and `recvmmsg` over one buffer each.
struct Batch<'a> {
    headers: [libc::mmsghdr; BATCH],
    _buffers: std::marker::PhantomData<&'a mut [u8]>,
}

impl<'a> Batch<'a> {
    /// All messages share `parts[0]` when there is one part only; else each has its own.
    fn new(parts: &'a mut [libc::iovec]) -> Self {
        // SAFETY: all-zero bytes are a valid mmsghdr: no name, no parts, no control data.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for (index, header) in headers.iter_mut().enumerate() {
            header.msg_hdr.msg_iov = &raw mut parts[index % parts.len()];
            header.msg_hdr.msg_iovlen = 1;
        }
        Self { headers, _buffers: std::marker::PhantomData }
    }

    /// How many of the first `limit` messages were sent.
    fn send(&mut self, socket: &UdpSocket, limit: usize) -> io::Result<u64> {
        let limit = limit.min(BATCH) as libc::c_uint;
        // SAFETY: `limit` headers are valid, and point to parts that outlive `self`.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), limit, 0) };
        u64::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// How many messages came; waits for the first.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<u64> {
        let (fd, flags) = (socket.as_raw_fd(), libc::MSG_WAITFORONE);
        // SAFETY: all headers are valid; the kernel writes into parts that outlive `self`.
        let received = unsafe {
            libc::recvmmsg(fd, self.headers.as_mut_ptr(), BATCH as libc::c_uint, flags, std::ptr::null_mut())
        };
        u64::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}

/// Sends for as long as given, or until `most` are sent; how many the kernel took.
fn blast(socket: &UdpSocket, payload: &[u8], time: Duration, most: u64) -> io::Result<u64> {
    // The kernel only reads what is sent.
    let base = payload.as_ptr().cast_mut().cast();
    let mut parts = [libc::iovec { iov_base: base, iov_len: payload.len() }];
    let mut batch = Batch::new(&mut parts);
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < time && sent < most {
        let limit = usize::try_from(most - sent).unwrap_or(BATCH);
        match batch.send(socket, limit) {
            Ok(count) => sent += count,
            // A full queue, or a server that is not there yet: what is not taken is not sent.
            Err(error) if is_timeout(&error) || error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Counts what arrives.
fn count(socket: &UdpSocket, received: &AtomicU64, running: &Running) {
    // Only counted: all may overwrite each other.
    let mut rubbish = [0_u8; 2048];
    let mut parts = [libc::iovec { iov_base: rubbish.as_mut_ptr().cast(), iov_len: rubbish.len() }];
    let mut batch = Batch::new(&mut parts);
    while running.still() {
        if let Ok(count) = batch.receive(socket) {
            received.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Waits until nothing has arrived for [`QUIET`], at most [`DRAIN`]; when the last arrived.
fn settle(received: &AtomicU64) -> Instant {
    let until = Instant::now() + DRAIN;
    let mut last = (received.load(Ordering::Relaxed), Instant::now());
    while last.1.elapsed() < QUIET && Instant::now() < until {
        std::thread::park_timeout(QUIET / 10);
        let now = received.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    last.1
}
