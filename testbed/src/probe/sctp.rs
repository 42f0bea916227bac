//! SCTP, dialled without a kernel that speaks it: the first packet of an association by hand, and what
//! comes back. Source: RFC 9260, sections 3.3.2 (INIT) and 3.3.3 (INIT ACK), appendix A (checksum).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, socket,
};
use tokio::net::UdpSocket;
use userspace::engine::emulator::message::crc32c;

/// The chunk that opens an association.
const INIT: u8 = 1;
/// The chunk that answers it.
const INIT_ACK: u8 = 2;
/// The chunk that refuses it.
const ABORT: u8 = 6;
/// Bytes before the first chunk.
const HEADER: usize = 12;

/// Opens a raw socket in the calling thread's namespace, which hears of `target` alone.
///
/// # Errors
/// The kernel's reason.
pub(super) fn open(source: IpAddr, target: IpAddr) -> io::Result<OwnedFd> {
    let family = match source {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Raw, flags, SockProtocol::Sctp)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(target, 0)))?;
    Ok(socket)
}

/// An association that was asked for.
pub(super) struct Asking {
    /// A raw socket that is connected sends and receives as a datagram socket does.
    socket: UdpSocket,
    ports: (u16, u16),
    /// IPv4's raw sockets show the IP header as well.
    headed: bool,
}

impl Asking {
    /// From a port to a target.
    ///
    /// # Errors
    /// There is no runtime to wait in.
    pub(super) fn new(socket: OwnedFd, port: u16, target: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket, ports: (port, target.port()), headed: target.is_ipv4() })
    }

    /// Sends the first packet, once more if it was before.
    ///
    /// # Errors
    /// The kernel's reason, or what ICMP said of an earlier one.
    pub(super) async fn send(&self) -> io::Result<()> {
        self.socket.send(&init(self.ports.0, self.ports.1)).await.map(drop)
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] if it is a refusal; or what ICMP said.
    pub(super) async fn answer(&self) -> io::Result<()> {
        let mut bytes = [0; 2048];
        loop {
            let length = self.socket.recv(&mut bytes).await?;
            match self.chunk(&bytes[..length]) {
                Some(INIT_ACK) => return Ok(()),
                Some(ABORT) => return Err(io::ErrorKind::ConnectionRefused.into()),
                _ => {} // Somebody else's.
            }
        }
    }

    /// The kind of the first chunk, if the packet is from where this one went to.
    fn chunk(&self, packet: &[u8]) -> Option<u8> {
        let header = if self.headed { usize::from(packet.first()? & 15) * 4 } else { 0 };
        let packet = packet.get(header..)?;
        let port = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        if (port(2)?, port(0)?) == self.ports { packet.get(HEADER).copied() } else { None }
    }
}

/// An INIT: one stream each way, and a tag that nobody will use.
fn init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
    // Verification tag, and room for the checksum.
    packet.extend([0; 8]);
    packet.extend([INIT, 0, 0, 20]);
    let (tag, window, first) = (1_u32 << 16 | u32::from(from), 65_536_u32, 1_u32);
    packet.extend([tag.to_be_bytes(), window.to_be_bytes(), [0, 1, 0, 1], first.to_be_bytes()].concat());
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..HEADER].copy_from_slice(&checksum);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_has_the_length_it_states_and_a_checksum_over_all_of_it() {
        let mut packet = init(20_001, 80);
        assert_eq!(packet.len(), HEADER + usize::from(packet[15]));
        let checksum: [u8; 4] = packet[8..HEADER].try_into().expect("four bytes");
        packet[8..HEADER].fill(0);
        assert_eq!(u32::from_le_bytes(checksum), crc32c(&packet));
    }
}
