//! Frames as they arrive at a link, and their checksums, computed anew.
//!
//! Where sums are left to the last link on the way, the kernel says from where to where (the header of
//! virtio-net, packet(7) `PACKET_VNET_HDR`); the rest is done here, as a network card would.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use testbed::netns::Netns;

/// `struct virtio_net_hdr`: flags, kind, header length, segment size, where the sum begins, where it stands.
const HEADER: usize = 10;
/// The sum is not done yet.
const NEEDS_CHECKSUM: u8 = 1;

/// A link that is listened to.
pub(crate) struct Capture(OwnedFd);

/// Listens to what arrives at a link of a namespace from now on.
pub(crate) fn at(netns: &Netns, link: &str) -> Capture {
    let opened = netns.run(|| open(link)).unwrap_or_else(|error| panic!("{error}"));
    Capture(opened.expect("root may listen"))
}

fn open(link: &str) -> io::Result<OwnedFd> {
    let index = if_nametoindex(link)?;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a system call without pointers; the descriptor that it gives is ours alone.
    let socket = unsafe {
        match libc::socket(libc::AF_PACKET, kind, 0) {
            fd if fd >= 0 => OwnedFd::from_raw_fd(fd),
            _ => return Err(io::Error::last_os_error()),
        }
    };
    setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20))?;
    const PACKET_VNET_HDR: libc::c_int = 15;
    const IGNORE_OUTGOING: libc::c_int = 23;
    for option in [PACKET_VNET_HDR, IGNORE_OUTGOING] {
        let (yes, size): (libc::c_int, _) = (1, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: setsockopt reads one int, which outlives the call.
        let set = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const yes).cast(), size)
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: bind reads one sockaddr_ll, which outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

impl Capture {
    /// Checks every frame that has arrived: how many had checksums.
    pub(crate) fn check(&self) -> usize {
        self.frames().iter().filter(|frame| check(frame)).count()
    }

    /// Checks the datagrams to a port that have arrived: how many there were.
    pub(crate) fn check_datagrams(&self, port: u16) -> usize {
        let is_to_port = |frame: &Vec<u8>| match LaxSlicedPacket::from_ethernet(frame).map(|it| it.transport)
        {
            Ok(Some(TransportSlice::Udp(udp))) => udp.destination_port() == port,
            _ => false,
        };
        self.frames().iter().filter(|frame| is_to_port(frame)).filter(|frame| check(frame)).count()
    }

    /// The frames that have arrived, with their sums done.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        let (mut frames, mut bytes) = (Vec::new(), vec![0; 1 << 17]);
        loop {
            // SAFETY: recv writes at most the buffer's length.
            let length = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            let Ok(length) = usize::try_from(length) else { return frames };
            let mut frame = bytes[HEADER..length].to_vec();
            if bytes[0] & NEEDS_CHECKSUM != 0 {
                let half = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
                let (start, place) = (half(6), half(6) + half(8));
                let sum = ones_complement(&frame[start..]);
                frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
            }
            frames.push(frame);
        }
    }
}

/// Sends a frame over a link of a namespace, of which the link is to do one sum: that of the bytes from `start` on, which
/// stands at `place` from there. The frame has the sum of the pseudo-header there.
pub(crate) fn send_with_a_sum_left(netns: &Netns, link: &str, (frame, start, place): (&[u8], u16, u16)) {
    let mut bytes = vec![NEEDS_CHECKSUM, 0, 0, 0, 0, 0];
    bytes.extend([start, place].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend(frame);
    let sent = netns.run(|| {
        nix::sys::socket::send(open(link)?.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(io::Error::from)
    });
    assert_eq!(sent.unwrap_or_else(|error| panic!("{error}")).expect("the link takes it"), bytes.len());
}

/// The Internet checksum of these bytes (RFC 1071).
fn ones_complement(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // A sum of nothing is sent as if it were -0 (RFC 768).
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

/// Whether the frame has checksums, which are right.
#[track_caller]
fn check(frame: &[u8]) -> bool {
    let sliced = LaxSlicedPacket::from_ethernet(frame).expect("it is a frame");
    let (Some(net), Some(transport)) = (&sliced.net, &sliced.transport) else { return false };
    let (stated, computed) = match (net, transport) {
        (LaxNetSlice::Ipv4(ip), transport) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "{header:?}");
            let ends = (header.source, header.destination);
            match transport {
                TransportSlice::Tcp(tcp) => (tcp.checksum(), tcp.calc_checksum_ipv4(ends.0, ends.1)),
                TransportSlice::Udp(udp) => {
                    let header = udp.to_header();
                    (udp.checksum(), header.calc_checksum_ipv4_raw(ends.0, ends.1, udp.payload()))
                }
                TransportSlice::Icmpv4(icmp) => {
                    (icmp.checksum(), Ok(icmp.icmp_type().calc_checksum(icmp.payload())))
                }
                TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => return false,
            }
        }
        (LaxNetSlice::Ipv6(ip), transport) => {
            let header = ip.header().to_header();
            let ends = (header.source, header.destination);
            match transport {
                TransportSlice::Tcp(tcp) => (tcp.checksum(), tcp.calc_checksum_ipv6(ends.0, ends.1)),
                TransportSlice::Udp(udp) => {
                    let header = udp.to_header();
                    (udp.checksum(), header.calc_checksum_ipv6_raw(ends.0, ends.1, udp.payload()))
                }
                TransportSlice::Icmpv6(icmp) => {
                    (icmp.checksum(), icmp.icmp_type().calc_checksum(ends.0, ends.1, icmp.payload()))
                }
                TransportSlice::Icmpv4(_) | TransportSlice::Igmp(_) => return false,
            }
        }
        (LaxNetSlice::Arp(_), _) => return false,
    };
    assert_eq!(stated, computed.expect("it is short enough"), "{net:?} {transport:?}");
    true
}
