//! New flows: how long the first packet of each takes, and many that are only there.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::time::Instant;

use super::exchange::{ask, echo_datagrams, refused};
use super::{Ends, Error, Limits, PATIENCE, RoundTrips, Ticks, Transport};

/// Source ports of [`open_flows`], of which each is used with several ports of the server.
const PORTS: Range<u16> = 20_000..36_384;

/// Sockets that are open at a time.
const AT_A_TIME: usize = 256;

/// Sends a datagram of `size` bytes (at least 1) from a source port that was not used before, waits for the answer,
/// and again from the next port, until a limit is reached or `ports` are used up. What is timed is the datagram and
/// its answer, not the socket's making.
///
/// # Errors
/// The server cannot listen, or the client cannot send. [`Error::Silent`]: of all datagrams none was answered.
pub fn first_packets(
    ends: &Ends,
    size: usize,
    ports: Range<u16>,
    limits: Limits,
) -> Result<RoundTrips, Error> {
    let receiver = ends.receiver()?;
    let trips = ends.beside(
        |running| echo_datagrams(&receiver, running),
        || {
            let mut trips = RoundTrips::new();
            let mut buffer = vec![b'x'; size];
            let (before, begin) = (Ticks::now(), Instant::now());
            for port in ports {
                let counts = begin.elapsed() >= limits.warm_up;
                if begin.elapsed() >= limits.warm_up + limits.time || trips.histogram.len() >= limits.count {
                    break;
                }
                // A port that somebody else uses is left to him.
                let Some(socket) = bound(port).map_err(ends.dial_failed(Transport::Udp))? else { continue };
                socket.connect(ends.dialled).map_err(ends.dial_failed(Transport::Udp))?;
                let sent = Instant::now();
                let answered = ask(&socket, &mut buffer).map_err(ends.broken(Transport::Udp))?;
                match answered {
                    _ if !counts => {}
                    true => trips.record(sent.elapsed()),
                    false => trips.lose(sent.elapsed()),
                }
            }
            trips.elapsed = begin.elapsed();
            trips.ticks = Ticks::now().since(before);
            Ok(trips)
        },
    )?;
    if trips.answered == 0 { Err(ends.silent(Transport::Udp)) } else { Ok(trips) }
}

/// Opens `count` flows of UDP between the two ends, a datagram and its answer each, beside those that will be
/// measured; says how many were answered. Done again, it keeps them alive.
///
/// # Errors
/// As [`first_packets`].
pub fn open_flows(ends: &Ends, count: usize) -> Result<usize, Error> {
    // The first is the port that is measured.
    let targets = count.div_ceil(PORTS.len()).max(1) as u16;
    let aside = |place: u16| Ends {
        dialled: SocketAddrV4::new(*ends.dialled.ip(), ends.dialled.port() + 1 + place),
        listening: ends.listening + 1 + place,
        ..ends.clone()
    };
    let mut answered = 0;
    let mut left = count;
    for place in 0..targets {
        let ends = aside(place);
        let receiver = ends.receiver()?;
        let here = left.min(PORTS.len());
        answered += ends.beside(
            |running| echo_datagrams(&receiver, running),
            || each_port(&ends, here).map_err(ends.broken(Transport::Udp)),
        )?;
        left -= here;
    }
    if answered == 0 && count > 0 { Err(ends.silent(Transport::Udp)) } else { Ok(answered) }
}

/// A datagram from each of the first `count` ports, many at a time; how many were answered.
fn each_port(ends: &Ends, count: usize) -> io::Result<usize> {
    let ports: Vec<u16> = PORTS.take(count).collect();
    let mut answered = 0;
    for ports in ports.chunks(AT_A_TIME) {
        let sockets =
            ports.iter().filter_map(|port| bound(*port).transpose()).collect::<io::Result<Vec<_>>>()?;
        for socket in &sockets {
            socket.connect(ends.dialled)?;
            // What is not taken is not answered either.
            let _ = socket.send(b"x");
        }
        for socket in &sockets {
            // One that was lost, in a burst, is tried once more.
            let again = || {
                socket.send(b"x")?;
                socket.recv(&mut [0; 16])
            };
            match socket.recv(&mut [0; 16]).or_else(|_| again()) {
                Ok(_) => answered += 1,
                Err(error) => _ = refused(error)?,
            }
        }
    }
    Ok(answered)
}

/// A socket on this port of the namespace; none if it is taken.
fn bound(port: u16) -> io::Result<Option<UdpSocket>> {
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(socket) => {
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(Some(socket))
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}
