//! Whether what leaves by the uplink may skip the wire.
//!
//! The uplink of a testbed's node is one end of a veth pair. A packet that is sent by it waits in a queue of the
//! processor for its other end to take it: that costs more than the whole program. `bpf_redirect_peer` puts the
//! packet at the other end at once. What sending would have done to it is left out then: so only where that is
//! nothing, because the link takes long segments and unfinished checksums as they are, and has no queue. The uplink's
//! own counters and captures do not see such packets; those of its other end do. Nothing may be hooked into what
//! leaves by the uplink, and its features are asked for once, when the programs are loaded.

use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use dataplane::tables::IfIndex;

/// Whether there is another end, and the link changes nothing of what is sent. No such link, or a kernel that does
/// not say, is a no. Called inside the node's namespace.
pub(super) fn has_peer(uplink: IfIndex) -> bool {
    /// `ETHTOOL_GTXCSUM`, `ETHTOOL_GTSO`, `ETHTOOL_GGSO` (`linux/ethtool.h`): checksums and segmentation are left to
    /// the link.
    const LEFT_TO_THE_LINK: [u32; 3] = [0x16, 0x1e, 0x23];
    let Ok(name) = if_indextoname(uplink.0) else { return false };
    let asked = |what| ask(name.to_bytes(), Value { command: what, value: 0 });
    driver(name.to_bytes()).is_ok_and(|driver| driver == b"veth")
        && LEFT_TO_THE_LINK.into_iter().all(|what| asked(what).is_ok_and(|answer| answer.value != 0))
        && is_direct(uplink).unwrap_or(false)
}

/// Whether the link has its other end in another namespace, because the kernel drops what is put to one in the same,
/// and no queue of its own (`RTM_GETLINK`, rtnetlink(7)).
fn is_direct(link: IfIndex) -> io::Result<bool> {
    const ASK: u16 = 18;
    const REQUEST: u16 = 1;
    /// `IFLA_QDISC`, `IFLA_LINK_NETNSID`.
    const QUEUE: u16 = 6;
    const ELSEWHERE: u16 = 37;
    /// Bytes of a netlink header and of `struct ifinfomsg`.
    const HEADERS: usize = 32;
    let mut question = [0; HEADERS];
    question[..4].copy_from_slice(&(HEADERS as u32).to_ne_bytes());
    question[4..6].copy_from_slice(&ASK.to_ne_bytes());
    question[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    question[20..24].copy_from_slice(&link.0.to_ne_bytes());
    let protocol = SockProtocol::NetlinkRoute;
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    send(socket.as_raw_fd(), &question, MsgFlags::empty())?;
    let mut answer = vec![0; 32 * 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let attributes = answer.get(HEADERS..length).unwrap_or_default();
    let queue = attribute(attributes, QUEUE);
    Ok(queue == Some(b"noqueue\0") && attribute(attributes, ELSEWHERE).is_some())
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const HEADER: usize = 4;
    while attributes.len() >= HEADER {
        let length = u16::from_ne_bytes([attributes[0], attributes[1]]) as usize;
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        let value = attributes.get(HEADER..length)?;
        if kind == wanted {
            return Some(value);
        }
        // Attributes begin at multiples of four.
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    value: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// The name of the link's driver.
fn driver(link: &[u8]) -> io::Result<Vec<u8>> {
    /// `ETHTOOL_GDRVINFO`.
    const DRIVER_INFO: u32 = 3;
    let answer = ask(link, DriverInfo { command: DRIVER_INFO, driver: [0; 32], rest: [0; 160] })?;
    Ok(answer.driver.iter().copied().take_while(|byte| *byte != 0).collect())
}

/// Asks a link's driver (`SIOCETHTOOL`); the answer comes in the question's place.
fn ask<T>(link: &[u8], mut question: T) -> io::Result<T> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // One byte stays zero, which ends the name.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(link) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut question).cast();
    // SAFETY: the kernel reads one ifreq and changes no more than the question's own structure, whose size its
    // command says; both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    Errno::result(done)?;
    Ok(question)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_their_kind_and_cut_off_ones_are_not() {
        let attributes = [6, 0, 1, 0, 7, 8, 0, 0, 5, 0, 6, 0, 9, 0, 0, 0, 9, 0, 37, 0];
        assert_eq!(attribute(&attributes, 1), Some(&[7, 8][..]));
        assert_eq!(attribute(&attributes, 6), Some(&[9][..]));
        assert_eq!(attribute(&attributes, 37), None);
    }

    #[test]
    fn a_link_that_is_no_pair_and_one_that_is_not_there_have_no_other_end() {
        assert!(!has_peer(IfIndex(1)));
        assert!(!has_peer(IfIndex(u32::MAX)));
    }
}
