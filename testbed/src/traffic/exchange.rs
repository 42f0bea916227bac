//! A request, an answer, and the time between.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::trips::{LONGEST_NS, Trip, repeat};
use super::{
    CONNECT_WITHIN, Ends, Error, Limits, PATIENCE, Requests, RoundTrips, Running, TURN, Transport, is_timeout,
};

/// Sends a request of so many bytes (at least 1, in UDP at most 65,507) over each connection, waits for an answer as
/// long, and again, until a limit is reached. netperf's `TCP_RR` and `UDP_RR`.
///
/// # Errors
/// The server cannot listen, the client cannot connect, or the connection breaks. [`Error::Silent`]: of
/// all datagrams none was answered.
pub fn request_response(
    ends: &Ends,
    transport: Transport,
    requests: Requests,
    limits: Limits,
) -> Result<RoundTrips, Error> {
    let Requests { size, connections, rate_per_s } = requests;
    match transport {
        Transport::Tcp => {
            let listener = ends.listener()?;
            let server = |running: &Running| echo_streams(&listener, requests, running);
            ends.beside(server, || {
                let streams = (0..connections).map(|_| connect(ends)).collect::<Result<Vec<_>, _>>()?;
                repeat(
                    streams.into_iter().map(|stream| over_stream(ends, stream, size)).collect(),
                    rate_per_s,
                    limits,
                )
            })
        }
        Transport::Udp => {
            let receiver = ends.receiver()?;
            let server = |running: &Running| echo_datagrams(&receiver, running);
            let trips = ends.beside(server, || {
                let sockets = (0..connections).map(|_| connect_udp(ends)).collect::<Result<Vec<_>, _>>()?;
                repeat(
                    sockets.into_iter().map(|socket| over_socket(ends, socket, size)).collect(),
                    rate_per_s,
                    limits,
                )
            })?;
            if trips.answered == 0 { Err(ends.silent(transport)) } else { Ok(trips) }
        }
    }
}

fn over_stream(ends: &Ends, mut stream: TcpStream, size: usize) -> Trip<'_> {
    let mut buffer = vec![b'x'; size];
    Box::new(move || {
        stream.write_all(&buffer).map_err(ends.broken(Transport::Tcp))?;
        stream.read_exact(&mut buffer).map_err(ends.broken(Transport::Tcp))?;
        Ok(true)
    })
}

fn over_socket(ends: &Ends, socket: UdpSocket, size: usize) -> Trip<'_> {
    let mut buffer = vec![b'x'; size];
    Box::new(move || {
        // A late answer to a request counted as lost must not answer the next one.
        buffer[0] = buffer[0].wrapping_add(1);
        ask(&socket, &mut buffer).map_err(ends.broken(Transport::Udp))
    })
}

/// Opens a connection, sends a request of `size` bytes, reads an answer as long to its end, and again, until
/// a limit is reached. netperf's `TCP_CRR`. The client closes first, as most do: who closes first remembers the
/// connection for a minute (RFC 9293 section 3.6.1), and a server that did would take the next one by another way, from
/// the same port but with other numbers, for a late part of it, and be dialled again after some 10 ms.
///
/// # Errors
/// As [`request_response`]; one connection that cannot be opened ends the run.
pub fn connect_request_close(ends: &Ends, size: usize, limits: Limits) -> Result<RoundTrips, Error> {
    let listener = ends.listener()?;
    let mut buffer = vec![b'x'; size];
    ends.beside(
        |running| answer_connections(&listener, size, running),
        || {
            let trip = || {
                let mut stream = connect(ends)?;
                stream.write_all(&buffer).map_err(ends.broken(Transport::Tcp))?;
                stream.read_exact(&mut buffer).map_err(ends.broken(Transport::Tcp))?;
                Ok(true)
            };
            repeat(vec![Box::new(trip)], 0, limits)
        },
    )
}

/// One datagram there and back; false if it was lost.
pub(super) fn ask(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<bool> {
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
pub(super) fn refused(error: io::Error) -> io::Result<bool> {
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

/// Sends back whatever comes over each connection, so many bytes at a time.
fn echo_streams(listener: &TcpListener, requests: Requests, running: &Running) {
    thread::scope(|scope| {
        for _ in 0..requests.connections {
            let Some(stream) = accept(listener, running) else { return };
            scope.spawn(move || echo_stream(stream, requests.size, running));
        }
    });
}

fn echo_stream(mut stream: TcpStream, size: usize, running: &Running) {
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

/// Answers one request on each connection, and closes it when the client has.
fn answer_connections(listener: &TcpListener, size: usize, running: &Running) {
    let mut buffer = vec![0; size];
    while let Some(mut stream) = accept(listener, running) {
        let ready = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(TURN)));
        if ready.is_ok() && read_full(&mut stream, &mut buffer, running) {
            // The client sees a missing answer itself.
            let _ = stream.write_all(&buffer);
            read_full(&mut stream, &mut [0], running);
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
pub(super) fn echo_datagrams(socket: &UdpSocket, running: &Running) {
    let mut buffer = [0; 65_536];
    while running.still() {
        if let Ok((count, from)) = socket.recv_from(&mut buffer) {
            // An answer that is not sent is a lost one: the client counts it.
            let _ = socket.send_to(&buffer[..count], from);
        }
    }
}
