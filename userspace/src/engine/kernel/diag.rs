//! Asks the kernel for the sockets of this network namespace, and ends some of them (sock_diag(7)).
//!
//! Only UDP sockets that are connected: who is connected to a backend that is gone would not hear of it. A socket
//! that is ended says so to its owner, at once (`ECONNABORTED`), who then connects anew.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `SOCK_DIAG_BY_FAMILY`, `SOCK_DESTROY`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`.
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of a netlink header, of what names a socket (`inet_diag_sockid`), and where that stands in a question
/// (`inet_diag_req_v2`) and in an answer (`inet_diag_msg`).
const HEADER: usize = 16;
const NAME: usize = 48;
const IN_QUESTION: usize = HEADER + 8;
const IN_ANSWER: usize = HEADER + 4;
/// Bit of the state of a socket that is connected (`TCP_ESTABLISHED`, also of UDP).
const CONNECTED: u32 = 1 << 1;
/// Longer than any batch of answers.
const BATCH: usize = 64 * 1024;

/// A socket, as the kernel names it: ends, interface, cookie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    family: u8,
    name: [u8; NAME],
}

impl Found {
    /// Its cookie.
    pub(super) fn cookie(&self) -> u64 {
        u64::from(self.word(40)) | u64::from(self.word(44)) << 32
    }

    /// The far end, an IPv4 address as its socket has it: in sixteen bytes where the socket is an IPv6 one.
    pub(super) fn peer(&self) -> (&[u8], u16) {
        let address =
            if i32::from(self.family) == libc::AF_INET { &self.name[20..24] } else { &self.name[20..36] };
        (address, u16::from_be_bytes([self.name[2], self.name[3]]))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.name[at], self.name[at + 1], self.name[at + 2], self.name[at + 3]])
    }
}

/// The connected UDP sockets of this thread's network namespace.
pub(super) fn connected() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let socket = opened()?;
        let name = [0; NAME];
        ask(&socket, (BY_FAMILY, REQUEST | DUMP), &Found { family: family as u8, name })?;
        while !answers(&socket, |family, name| found.push(Found { family, name }))? {}
    }
    Ok(found)
}

/// Ends a socket. That it is gone already is as good.
pub(super) fn end(found: &Found) -> io::Result<()> {
    let socket = opened()?;
    ask(&socket, (DESTROY, REQUEST | ACKNOWLEDGE), found)?;
    match answers(&socket, |_, _| ()) {
        Err(why) if why.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        answered => answered.map(drop),
    }
}

fn opened() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkSockDiag;
    Ok(socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?)
}

fn ask(socket: &OwnedFd, (kind, flags): (u16, u16), about: &Found) -> io::Result<()> {
    let mut question = [0; IN_QUESTION + NAME];
    question[..4].copy_from_slice(&((IN_QUESTION + NAME) as u32).to_ne_bytes());
    question[4..6].copy_from_slice(&kind.to_ne_bytes());
    question[6..8].copy_from_slice(&flags.to_ne_bytes());
    question[HEADER] = about.family;
    question[HEADER + 1] = libc::IPPROTO_UDP as u8;
    question[HEADER + 4..IN_QUESTION].copy_from_slice(&CONNECTED.to_ne_bytes());
    question[IN_QUESTION..].copy_from_slice(&about.name);
    send(socket.as_raw_fd(), &question, MsgFlags::empty())?;
    Ok(())
}

/// Takes a batch of answers; whether it was the last.
fn answers(socket: &OwnedFd, mut take: impl FnMut(u8, [u8; NAME])) -> io::Result<bool> {
    let mut batch = vec![0; BATCH];
    let length = recv(socket.as_raw_fd(), &mut batch, MsgFlags::empty())?;
    let mut rest = &batch[..length];
    while rest.len() >= HEADER {
        let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        if length < HEADER || length > rest.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (message, next) = rest.split_at(length);
        match u16::from_ne_bytes([message[4], message[5]]) {
            DONE => return Ok(true),
            ERROR if message.len() >= HEADER + 4 => {
                let code = i32::from_ne_bytes([message[16], message[17], message[18], message[19]]);
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            _ => {
                if let Some(name) = message.get(IN_ANSWER..IN_ANSWER + NAME)
                    && let Ok(name) = name.try_into()
                {
                    take(message[HEADER], name);
                }
            }
        }
        // Messages begin at multiples of four.
        rest = next.get(length.next_multiple_of(4) - length..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_connected_socket_is_found_by_its_peer_and_one_that_is_not_is_not() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        let port = server.local_addr().expect("it is bound").port();
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        let ours = |found: &&Found| found.peer() == (&[127, 0, 0, 1][..], port);
        assert_eq!(connected().expect("the kernel tells").iter().filter(ours).count(), 0);
        client.connect(("127.0.0.1", port)).expect("nobody is asked");
        let found = connected().expect("the kernel tells");
        let [one] = found.iter().filter(ours).collect::<Vec<_>>()[..] else { panic!("{found:?}") };
        assert_ne!(one.cookie(), 0);
    }
}
