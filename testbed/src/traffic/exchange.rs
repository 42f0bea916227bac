//! A request, an answer, and the time between.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::{
    CONNECT_WITHIN, Ends, Error, LONGEST_NS, Limits, PATIENCE, RoundTrips, Running, TURN, Transport,
    is_timeout,
};

/// Sends a request of `size` bytes (at least 1, in UDP at most 65,507) over one connection, waits for an
/// answer as long, and again, until a limit is reached. netperf's `TCP_RR` and `UDP_RR`.
///
/// # Errors
/// The server cannot listen, the client cannot connect, or the connection breaks. [`Error::Silent`]: of
/// all datagrams none was answered.
pub fn request_response(
    ends: &Ends,
    transport: Transport,
    size: usize,
    limits: Limits,
) -> Result<RoundTrips, Error> {
    let mut buffer = vec![b'x'; size];
    match transport {
        Transport::Tcp => {
            let listener = ends.listener()?;
            let server = |running: &Running| echo_stream(&listener, size, running);
            ends.beside(server, || {
                let mut stream = connect(ends)?;
                timed(limits, || {
                    stream.write_all(&buffer).map_err(ends.broken(transport))?;
                    stream.read_exact(&mut buffer).map_err(ends.broken(transport))?;
                    Ok(true)
                })
            })
        }
        Transport::Udp => {
            let receiver = ends.receiver()?;
            let trips = ends.beside(
                |running: &Running| echo_datagrams(&receiver, running),
                || {
                    let socket = connect_udp(ends)?;
                    let mut number = 0_u8;
                    timed(limits, || {
                        // A late answer to a request counted as lost must not answer the next one.
                        number = number.wrapping_add(1);
                        buffer[0] = number;
                        ask(&socket, &mut buffer).map_err(ends.broken(transport))
                    })
                },
            )?;
            if trips.histogram.is_empty() { Err(ends.silent(transport)) } else { Ok(trips) }
        }
    }
}

/// Opens a connection, sends a request of `size` bytes, reads an answer as long to its end, and again, until
/// a limit is reached. netperf's `TCP_CRR`. The server closes first, so that the client's ports are free at
/// once.
///
/// # Errors
/// As [`request_response`]; one connection that cannot be opened ends the run.
pub fn connect_request_close(ends: &Ends, size: usize, limits: Limits) -> Result<RoundTrips, Error> {
    let listener = ends.listener()?;
    let mut buffer = vec![b'x'; size];
    ends.beside(
        |running| answer_connections(&listener, size, running),
        || {
            timed(limits, || {
                let mut stream = connect(ends)?;
                stream.write_all(&buffer).map_err(ends.broken(Transport::Tcp))?;
                stream.read_exact(&mut buffer).map_err(ends.broken(Transport::Tcp))?;
                let rest = stream.read(&mut [0]).map_err(ends.broken(Transport::Tcp))?;
                debug_assert_eq!(rest, 0, "the server sends `size` bytes and closes");
                Ok(true)
            })
        },
    )
}

/// Repeats `trip` until a limit is reached, and records how long each took. `trip` says whether an answer
/// came.
fn timed(limits: Limits, mut trip: impl FnMut() -> Result<bool, Error>) -> Result<RoundTrips, Error> {
    let begin = Instant::now();
    while begin.elapsed() < limits.warm_up {
        trip()?;
    }
    let mut trips = RoundTrips::new();
    let begin = Instant::now();
    let mut now = begin;
    while now.duration_since(begin) < limits.time && trips.histogram.len() + trips.lost < limits.count {
        let answered = trip()?;
        let later = Instant::now();
        if answered {
            let taken = later.duration_since(now).as_nanos().min(LONGEST_NS.into()) as u64;
            trips.histogram.saturating_record(taken.max(1));
        } else {
            trips.lost += 1;
        }
        now = later;
    }
    trips.elapsed = now.duration_since(begin);
    Ok(trips)
}

/// One datagram there and back; false if it was lost.
fn ask(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<bool> {
    let number = buffer[0];
    if let Err(error) = socket.send(buffer) {
        return refused(error);
    }
    let until = Instant::now() + PATIENCE;
    loop {
        match socket.recv(buffer) {
            Ok(_) if buffer[0] == number => return Ok(true),
            Ok(_) if Instant::now() < until => {}
            Ok(_) => return Ok(false),
            Err(error) => return refused(error),
        }
    }
}

/// A datagram that was dropped or refused is lost; anything else is an error.
fn refused(error: io::Error) -> io::Result<bool> {
    if is_timeout(&error) || error.kind() == ErrorKind::ConnectionRefused { Ok(false) } else { Err(error) }
}

fn connect(ends: &Ends) -> Result<TcpStream, Error> {
    let open = || {
        let stream = TcpStream::connect_timeout(&SocketAddr::V4(ends.dialled), CONNECT_WITHIN)?;
        stream.set_nodelay(true)?;
        // TCP mends losses itself; what takes as long as this is broken.
        stream.set_read_timeout(Some(Duration::from_nanos(LONGEST_NS)))?;
        stream.set_write_timeout(Some(Duration::from_nanos(LONGEST_NS)))?;
        Ok(stream)
    };
    open().map_err(ends.dial_failed(Transport::Tcp))
}

fn connect_udp(ends: &Ends) -> Result<UdpSocket, Error> {
    let open = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(ends.dialled)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    open().map_err(ends.dial_failed(Transport::Udp))
}

/// Waits for the next connection; none when the run is over.
pub(super) fn accept(listener: &TcpListener, running: &Running) -> Option<TcpStream> {
    while running.still() {
        // What fails to be accepted fails at the client too, where it is reported.
        if let Ok((stream, _)) = listener.accept() {
            return Some(stream);
        }
    }
    None
}

/// Sends back whatever comes over the first connection, `size` bytes at a time.
fn echo_stream(listener: &TcpListener, size: usize, running: &Running) {
    let Some(mut stream) = accept(listener, running) else { return };
    let mut buffer = vec![0; size];
    let ready = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(TURN)));
    // The client sees the connection close, and says what broke.
    if ready.is_err() {
        return;
    }
    while read_full(&mut stream, &mut buffer, running) {
        if stream.write_all(&buffer).is_err() {
            return;
        }
    }
}

/// Answers one request on each connection, and closes it.
fn answer_connections(listener: &TcpListener, size: usize, running: &Running) {
    let mut buffer = vec![0; size];
    while let Some(mut stream) = accept(listener, running) {
        let ready = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(TURN)));
        if ready.is_ok() && read_full(&mut stream, &mut buffer, running) {
            // The client sees a missing answer itself.
            let _ = stream.write_all(&buffer);
        }
    }
}

/// Fills the buffer; false at the connection's or the run's end.
fn read_full(stream: &mut TcpStream, buffer: &mut [u8], running: &Running) -> bool {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return false,
            Ok(count) => filled += count,
            Err(error) if is_timeout(&error) && running.still() => {}
            Err(_) => return false,
        }
    }
    true
}

/// Sends every datagram back.
fn echo_datagrams(socket: &UdpSocket, running: &Running) {
    let mut buffer = [0; 65_536];
    while running.still() {
        if let Ok((count, from)) = socket.recv_from(&mut buffer) {
            // An answer that is not sent is a lost one: the client counts it.
            let _ = socket.send_to(&buffer[..count], from);
        }
    }
}
