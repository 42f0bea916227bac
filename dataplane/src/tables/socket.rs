//! Keys and rows of the tables about sockets.

use core::fmt::{self, Debug, Formatter};
use core::mem::size_of;

use super::BackendId;
use crate::wire::{Port, V4, V6, plain};

/// What the kernel tells sockets and network namespaces apart by: no other has the same number, as long as the
/// machine is up. In two halves, so that rows lie at multiples of four.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Cookie {
    high: u32,
    low: u32,
}

impl Cookie {
    /// From the kernel's number.
    #[inline(always)]
    pub const fn new(number: u64) -> Self {
        Self { high: (number >> 32) as u32, low: number as u32 }
    }
    /// The kernel's number.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        (self.high as u64) << 32 | self.low as u64
    }
    /// Both halves in one, for hashes.
    #[inline(always)]
    pub const fn fold32(self) -> u32 {
        self.high.rotate_left(16) ^ self.low
    }
}

impl Debug for Cookie {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// Row of [`super::Homes`]: who lives in a network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Home<A> {
    /// Its address: the client's, as Services see it.
    pub address: A,
    /// 1 where it is the node itself, whose loopback addresses have the node ports as well; else 0.
    pub own: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Key of [`super::Sockets`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Socket {
    /// The socket.
    pub cookie: Cookie,
    /// Which of its translations, from 0 on, below [`Socket::PLACES`].
    pub place: u32,
}

impl Socket {
    /// How many Services a socket that is not connected can talk to; one that is connected has only one.
    pub const PLACES: u32 = 8;
}

/// Row of [`super::Sockets`]: what a socket dialled, and who answers. All zero but for `home`: a place that is
/// free again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Dialled<A> {
    /// The address that was dialled.
    pub frontend: A,
    /// The backend's address, which took its place.
    pub backend: A,
    /// Belongs to `frontend`.
    pub frontend_port: Port,
    /// Belongs to `backend`.
    pub backend_port: Port,
    /// The backend's row.
    pub id: BackendId,
    /// The network namespace that the socket is in.
    pub home: Cookie,
}

plain!(Cookie, Socket);
plain!(<A> Home, Dialled);

const _: () = assert!(size_of::<Cookie>() == 8 && size_of::<Socket>() == 12);
const _: () = assert!(size_of::<Home<V4>>() == 8 && size_of::<Home<V6>>() == 20);
const _: () = assert!(size_of::<Dialled<V4>>() == 24 && size_of::<Dialled<V6>>() == 48);
