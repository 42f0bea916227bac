//! Frames that leave with one system call.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use super::tally::{Counts, Loss};

/// How long a link that takes no more is waited for.
const PATIENCE: Duration = Duration::from_millis(10);

/// Frames to send over one link, in order.
#[derive(Default)]
pub(crate) struct Burst<'a> {
    parts: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    frames: PhantomData<&'a [u8]>,
}

impl<'a> Burst<'a> {
    /// Adds a frame.
    #[inline]
    pub(crate) fn push(&mut self, frame: &'a [u8]) {
        // The kernel only reads what is sent.
        self.parts.push(libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() });
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// The same memory for other frames.
    pub(crate) fn again<'b>(mut self) -> Burst<'b> {
        self.parts.clear();
        Burst { parts: self.parts, headers: self.headers, frames: PhantomData }
    }

    /// Sends them over the link that a packet socket is bound to, and counts what became of each. A link that takes no
    /// more is waited for once.
    pub(crate) fn send(&mut self, socket: &OwnedFd, counts: &Counts) {
        let (mut sent, mut waited) = (0, false);
        let mut rest = self.headers();
        while !rest.is_empty() {
            match send(socket, rest) {
                Ok(taken) => {
                    sent += taken as u64;
                    rest = &mut rest[taken..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    wait_for_room(socket);
                }
                Err(error) => {
                    // It is about the first of them.
                    counts.lost(Loss::of(&error), 1);
                    rest = &mut rest[1..];
                }
            }
        }
        counts.sent(sent);
    }

    fn headers(&mut self) -> &mut [libc::mmsghdr] {
        // SAFETY: all-zero bytes are a valid mmsghdr: no name, no parts, no control data.
        self.headers.resize_with(self.parts.len(), || unsafe { std::mem::zeroed() });
        for (header, part) in self.headers.iter_mut().zip(&mut self.parts) {
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
        }
        &mut self.headers
    }
}

/// How many of the first messages the kernel took; the error is about the first.
fn send(socket: &OwnedFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let (fd, count) = (socket.as_raw_fd(), messages.len() as libc::c_uint);
    // SAFETY: the headers are valid, and each points to a part that points to a frame; all outlive the call.
    let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Waits until the link takes more, but no longer than [`PATIENCE`].
fn wait_for_room(socket: &OwnedFd) {
    let mut room = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which outlives the call. Whatever it says, sending is tried again.
    unsafe { libc::poll(&raw mut room, 1, PATIENCE.as_millis() as libc::c_int) };
}
