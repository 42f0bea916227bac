//! A packet socket on one link: frames as they arrive, and frames to send.

use std::io::{self, ErrorKind};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use pnet_datalink::{
    Channel, ChannelType, Config, DataLinkReceiver, DataLinkSender, NetworkInterface, linux,
};

/// How long a receiver waits for a frame before it says that there was none.
const TURN: Duration = Duration::from_millis(100);

/// The longest frame.
const FRAME: usize = 65_536;

/// Where frames are sent.
pub(crate) struct Sender(Box<dyn DataLinkSender>);

/// Where they arrive.
pub(crate) struct Receiver(Box<dyn DataLinkReceiver>);

impl Sender {
    /// Sends a frame.
    ///
    /// # Errors
    /// The link does not take it, or is gone.
    pub(crate) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.send_to(frame, None).unwrap_or_else(|| Err(ErrorKind::WouldBlock.into()))
    }
}

impl Receiver {
    /// The next frame; none if none came for a while, so that whoever waits can look whether he is to stop.
    ///
    /// # Errors
    /// The link is gone.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        match self.0.next() {
            Ok(frame) => Ok(Some(frame)),
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A packet socket on the link of that name and number in the calling thread's namespace. It hears what
/// arrives, and not what it sends itself.
///
/// # Errors
/// The kernel's reason.
pub(crate) fn open(interface: &str, index: u32) -> io::Result<(Sender, Receiver)> {
    const IGNORE_OUTGOING: libc::c_int = 23;
    // Protocol 0 hears nothing yet: the rest is set before the first frame.
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let yes: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int, which outlives the call.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, IGNORE_OUTGOING, (&raw const yes).cast(), size)
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
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
        // From here on the descriptor is the channel's, also if it fails.
        socket_fd: Some(socket.into_raw_fd()),
        ..Config::default()
    };
    match linux::channel(&interface, linux::Config::from(&config))? {
        Channel::Ethernet(sender, receiver) => Ok((Sender(sender), Receiver(receiver))),
        _ => Err(io::Error::other("the channel is not of Ethernet frames")),
    }
}
