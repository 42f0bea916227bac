//! What links leave to a network card, or do in packets longer than a wire takes.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::{Error, Links};

impl Links {
    /// Turns checksums, segmentation and its undoing on the link over to the kernel's fast ways, or off.
    ///
    /// Off, every frame that leaves by this link is what would stand on a real wire: at most an MTU
    /// long, and with its checksums filled in. A dataplane that reads frames in userspace needs that.
    ///
    /// # Errors
    /// [`Error::Missing`], or the kernel's reason.
    pub fn offload(&mut self, link: &str, on: bool) -> Result<(), Error> {
        OFFLOADS.into_iter().try_for_each(|offload| self.switch(link, offload, on))
    }

    /// Has every frame that leaves by this link bear its checksums, and takes those that come back from a program in
    /// the other end's driver, which knows nothing of a checksum that is left to a network card.
    ///
    /// # Errors
    /// As [`Self::offload`].
    pub fn face_driver(&mut self, link: &str) -> Result<(), Error> {
        self.switch(link, CHECKSUMS, false)?;
        self.switch(link, RECEIVE, true)
    }

    /// Switches one thing on or off.
    fn switch(&self, link: &str, (command, what): (u32, &str), on: bool) -> Result<(), Error> {
        let word = if on { "on" } else { "off" };
        let tried = format!("turn {what} {word} for {link}");
        match ethtool(&self.ioctl, link, command, u32::from(on)) {
            Ok(()) => Ok(()),
            Err(Errno::ENODEV) => Err(self.missing(&tried, link)),
            Err(errno) => Err(self.refused(&tried, errno.into(), None)),
        }
    }
}

/// Commands of ethtool that switch an offload, and what they switch (`linux/ethtool.h`). Checksums come
/// first: the kernel grants segmentation only together with them.
const OFFLOADS: [(u32, &str); 4] =
    [CHECKSUMS, (0x1f, "TCP segmentation"), (0x24, "generic segmentation"), RECEIVE];
/// See [`OFFLOADS`].
const CHECKSUMS: (u32, &str) = (0x17, "transmit checksums");
/// See [`OFFLOADS`].
const RECEIVE: (u32, &str) = (0x2c, "generic receive");

/// Sends one ethtool command with one value (`SIOCETHTOOL`, `struct ethtool_value`).
fn ethtool(socket: &UdpSocket, link: &str, command: u32, value: u32) -> Result<(), Errno> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let mut argument = [command, value];
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero, which ends the name.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut argument).cast();
    // SAFETY: SIOCETHTOOL reads one ifreq and the two words it points at; both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    Errno::result(done).map(drop)
}
