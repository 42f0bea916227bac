//! Sockets that ask and answer.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, listen, socket, sockopt,
};
use testbed::netns::Netns;

/// Longer than any answer takes here, a lost first packet included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a large transfer.
const MUCH: usize = 2 << 20;

/// What is inside of a namespace that is there.
fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    netns.run(work).unwrap_or_else(|error| panic!("{error}"))
}

/// A TCP connection from an address to another.
fn dial(from: (&Netns, IpAddr), to: SocketAddr) -> io::Result<TcpStream> {
    dial_from((from.0, SocketAddr::new(from.1, 0)), to)
}

/// A TCP connection from an address and a port, which others may have towards somebody else, to an address.
pub(crate) fn dial_from(from: (&Netns, SocketAddr), to: SocketAddr) -> io::Result<TcpStream> {
    inside(from.0, || {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
        nix::sys::socket::setsockopt(&socket, sockopt::SendTimeout, &seconds())?;
        nix::sys::socket::setsockopt(&socket, sockopt::ReceiveTimeout, &seconds())?;
        nix::sys::socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from.1))?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(socket.into())
    })
}

fn seconds() -> nix::sys::time::TimeVal {
    nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0)
}

/// A listener that gives up in time.
pub(crate) fn listener(at: (&Netns, SocketAddr)) -> TcpListener {
    let made = inside(at.0, || {
        let family = if at.1.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
        nix::sys::socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        // It holds for accept(2) as well (socket(7)).
        nix::sys::socket::setsockopt(&socket, sockopt::ReceiveTimeout, &seconds())?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(at.1))?;
        listen(&socket, nix::sys::socket::Backlog::new(8)?)?;
        Ok(TcpListener::from(socket))
    });
    made.unwrap_or_else(|error| panic!("listening on {} in {}: {error}", at.1, at.0.name()))
}

/// Dials, says a word and hears it: the address that the server saw.
#[track_caller]
pub(crate) fn ask(from: (&Netns, IpAddr), server: (&Netns, SocketAddr), dialled: SocketAddr) -> IpAddr {
    let listener = listener(server);
    let answering = thread::spawn(move || -> io::Result<IpAddr> {
        let (mut stream, peer) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut word = [0; 4];
        stream.read_exact(&mut word)?;
        stream.write_all(&word)?;
        Ok(peer.ip())
    });
    let asked = dial(from, dialled).and_then(|mut stream| {
        let mut word = [0; 4];
        stream.write_all(b"ping")?;
        stream.read_exact(&mut word)?;
        Ok(word)
    });
    let seen = answering.join().expect("it does not panic");
    match (asked, seen) {
        (Ok(word), Ok(seen)) if word == *b"ping" => seen,
        (asked, seen) => panic!("{} to {dialled} by TCP: {asked:?}, {seen:?}", from.1),
    }
}

/// Sends a datagram, and hears the answer: the address that the server saw.
#[track_caller]
pub(crate) fn ask_by_udp(
    from: (&Netns, IpAddr),
    server: (&Netns, SocketAddr),
    dialled: SocketAddr,
) -> IpAddr {
    let bound = |netns, address: SocketAddr| {
        let socket = inside(netns, || UdpSocket::bind(address)).expect("the address is there, the port free");
        socket.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        socket
    };
    let (answering, asking) = (bound(server.0, server.1), bound(from.0, SocketAddr::new(from.1, 0)));
    let asked = (|| -> io::Result<IpAddr> {
        asking.connect(dialled)?;
        asking.send(b"ping")?;
        let (_, peer) = answering.recv_from(&mut [0; 4])?;
        answering.send_to(b"pong", peer)?;
        asking.recv(&mut [0; 4])?;
        Ok(peer.ip())
    })();
    asked.unwrap_or_else(|error| panic!("{} to {dialled} by UDP: {error}", from.1))
}

/// Dials a connection, and sends a datagram, to where nobody is: both are refused.
#[track_caller]
pub(crate) fn is_refused(from: (&Netns, IpAddr), dialled: SocketAddr) {
    let refused = |how: &str, answer: io::Result<()>| match answer {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        answer => panic!("{} to {dialled} by {how}: {answer:?}", from.1),
    };
    refused("TCP", dial(from, dialled).map(drop));
    let socket = inside(from.0, || UdpSocket::bind(SocketAddr::new(from.1, 0))).expect("the port is free");
    socket.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    let answer = socket.connect(dialled).and_then(|()| socket.send(b"ping"));
    refused("UDP", answer.and_then(|_| socket.recv(&mut [0; 4])).map(drop));
}

/// A ping that is answered.
#[track_caller]
pub(crate) fn ping(from: &Netns, to: IpAddr) {
    let socket = echo_socket(from, to);
    let question = echo(to, 1, 56);
    let answered = socket.send(&question).and_then(|_| {
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer)?;
        Ok(answer[..length].to_vec())
    });
    let answer = answered.unwrap_or_else(|error| panic!("a ping from {} to {to}: {error}", from.name()));
    assert_eq!(answer[0], if to.is_ipv4() { 0 } else { 129 }, "it is an echo reply");
    assert_eq!(answer[6..], question[6..], "of this request");
}

/// A socket that pings.
pub(crate) fn echo_socket(from: &Netns, to: IpAddr) -> UdpSocket {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let made = inside(from, || -> io::Result<OwnedFd> {
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
        Ok(socket)
    });
    let socket = UdpSocket::from(made.expect("anyone may ping here"));
    socket.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    socket
}

/// An echo request with so many bytes of data.
pub(crate) fn echo(to: IpAddr, number: u8, data: usize) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    // Checksum and identifier are the kernel's.
    let mut request = vec![kind, 0, 0, 0, 0, 0, 0, number];
    request.extend((0..data).map(|at| at as u8));
    request
}

/// Much data over one connection, which arrives as it was sent.
#[track_caller]
pub(crate) fn pour(from: (&Netns, IpAddr), server: (&Netns, SocketAddr)) {
    pour_by(from, server, server.1);
}

/// As [`pour`], by way of an address that stands for the server.
#[track_caller]
pub(crate) fn pour_by(from: (&Netns, IpAddr), server: (&Netns, SocketAddr), dialled: SocketAddr) {
    let listener = listener(server);
    let taking = thread::spawn(move || -> io::Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut taken = Vec::new();
        stream.read_to_end(&mut taken)?;
        Ok(taken)
    });
    let sent: Vec<u8> = (0..MUCH).map(|at| (at % 251) as u8).collect();
    let poured = dial(from, dialled).and_then(|mut stream| stream.write_all(&sent));
    poured.unwrap_or_else(|error| panic!("{} to {dialled}: {error}", from.1));
    let taken = taking.join().expect("it does not panic");
    let taken = taken.unwrap_or_else(|error| panic!("{} from {}: {error}", server.1, from.1));
    assert!(taken == sent, "{} bytes of {} came, or others", taken.len(), sent.len());
}
