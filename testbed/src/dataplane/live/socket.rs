//! A packet socket on one link: frames as they arrive, and frames to send.

use std::ffi::CString;
use std::io::{self, ErrorKind};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use pnet::datalink::{
    Channel, ChannelType, Config, DataLinkReceiver, DataLinkSender, NetworkInterface, linux,
};

/// How long a receiver waits for a frame before it says that there was none.
const TURN: Duration = Duration::from_millis(100);

/// The longest frame.
const FRAME: usize = 65_536;

/// Where frames are sent.
pub(crate) struct Sender(Box<dyn DataLinkSender>);

/// Where they arrive.
pub(crate) struct Receiver {
    channel: Box<dyn DataLinkReceiver>,
    socket: OwnedFd,
}

/// What became of the frames of a [`Receiver`].
#[derive(Debug)]
pub(crate) struct Statistics(OwnedFd);

impl Sender {
    /// Sends a frame.
    ///
    /// # Errors
    /// The link does not take it, or is gone.
    pub(crate) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.send_to(frame, None).unwrap_or_else(|| Err(ErrorKind::WouldBlock.into()))
    }
}

impl Statistics {
    /// Frames that found no room since the last time that somebody asked.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn overrun(&self) -> io::Result<u64> {
        overrun(&self.0)
    }
}

impl Receiver {
    /// What becomes of its frames.
    ///
    /// # Errors
    /// There are too many open files.
    pub(crate) fn statistics(&self) -> io::Result<Statistics> {
        self.socket.try_clone().map(Statistics)
    }

    /// The next frame; none if none came for a while, so that whoever waits can look whether he is to stop.
    ///
    /// # Errors
    /// The link went down (`ENETDOWN`, once), or the kernel's reason.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        match self.channel.next() {
            Ok(frame) => Ok(Some(frame)),
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Interrupted) => Ok(None),
            // The channel does not say what is wrong with the socket, and waits for nothing before it has been asked.
            Err(error) => Err(wrong(&self.socket).unwrap_or(error)),
        }
    }
}

/// A packet socket on the link of that name and number in the calling thread's namespace. It hears what
/// arrives, and not what it sends itself.
///
/// # Errors
/// The kernel's reason.
pub(crate) fn open(interface: &str, index: u32) -> io::Result<(Sender, Receiver)> {
    let socket = packet_socket()?;
    // Bursts are as long as a sender's window. With less room they are lost, and show as loss.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20));
    let _ = setsockopt(&socket, sockopt::SndBufForce, &(8 << 20));
    let interface = NetworkInterface {
        name: interface.to_owned(),
        description: String::new(),
        index,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    let config = Config {
        write_buffer_size: FRAME,
        read_buffer_size: FRAME,
        read_timeout: Some(TURN),
        write_timeout: Some(TURN),
        channel_type: ChannelType::Layer2,
        promiscuous: false,
        // The channel closes its own descriptor, also if it fails.
        socket_fd: Some(socket.try_clone()?.into_raw_fd()),
        ..Config::default()
    };
    match linux::channel(&interface, linux::Config::from(&config))? {
        Channel::Ethernet(sender, receiver) => Ok((Sender(sender), Receiver { channel: receiver, socket })),
        _ => Err(io::Error::other("the channel is not of Ethernet frames")),
    }
}

/// A packet socket that hears nothing yet, and never what it sends itself.
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    // Protocol 0 hears nothing: the rest is set before the first frame.
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let yes: libc::c_int = 1;
    set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &yes)?;
    Ok(socket)
}

/// Sets an option of a packet socket, of the type that the kernel wants for it.
pub(super) fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let (fd, size) = (socket.as_raw_fd(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads `size` bytes of a value that outlives the call.
    let set =
        unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), size) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What is wrong with a packet socket's link, if something has happened to it since the last time.
pub(super) fn wrong(socket: &impl AsFd) -> Option<io::Error> {
    let errno = getsockopt(socket, sockopt::SocketError).ok()?;
    (errno != 0).then(|| io::Error::from_raw_os_error(errno))
}

/// Frames that found no room at a packet socket since the last time that somebody asked.
pub(super) fn overrun(socket: &impl AsFd) -> io::Result<u64> {
    statistics(socket).map(|statistics| statistics.tp_drops.into())
}

/// Frames that reached a packet socket, and those that found no room, since the last time that somebody asked.
pub(crate) fn statistics(socket: &impl AsFd) -> io::Result<libc::tpacket_stats> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut size = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    let (fd, option) = (socket.as_fd().as_raw_fd(), libc::PACKET_STATISTICS);
    // SAFETY: the kernel writes at most `size` bytes to the statistics, and the length to `size`.
    let read = unsafe {
        libc::getsockopt(fd, libc::SOL_PACKET, option, (&raw mut statistics).cast(), &raw mut size)
    };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics) }
}

/// Binds a packet socket to the link of this number: frames of a protocol arrive from here on, none for 0.
pub(crate) fn bind(socket: &OwnedFd, index: u32, protocol: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = index as libc::c_int;
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of an address that outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The MTU of the link of that name in the calling thread's namespace.
pub(super) fn mtu(interface: &str) -> io::Result<usize> {
    let name = CString::new(interface)?;
    // SAFETY: all-zero bytes are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    let socket = packet_socket()?;
    // SAFETY: the kernel reads and writes one request, which outlives the call.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if asked < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written this part of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    usize::try_from(mtu).map_err(io::Error::other)
}
