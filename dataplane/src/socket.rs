//! A Service's address -> its backend's, as a socket connects or sends: before there is any packet, which then
//! needs no translation. Beside `path`, the other thing that calls a stage.
//!
//! Reads `homes`, and what `service` reads. Writes `sockets`, and what `service` writes. Drops nothing: what it
//! does not translate, the walk of the packets does, or refuses.
//!
//! A socket that connects ([`connect`]):
//! 1. Whoever lives in its network namespace is the client. If nobody of this node does, it is another's affair.
//! 2. What it dialled before is forgotten.
//! 3. `service` chooses the backend, as it would for the first packet, with the socket in place of its port,
//!    which nobody knows yet. If there is none, the address is left alone. The node itself has its node ports at
//!    its loopback addresses as well, where no packet would come by.
//! 4. What it dialled is remembered. If there is no room, the address is left alone as well.
//!
//! A socket that sends without being connected ([`send`]) may talk to several Services, and has a place for each:
//! 5. It stays with the backend that it was given for a Service as long as that is active.
//! 6. If it names a backend itself that it was led to before, it means that backend from then on.
//! 7. It is not led to one backend from two Services: nobody could tell whose answers those are. The later one is
//!    left to the packets' path.
//!
//! Who asks with whom such a socket speaks ([`name`]) is told what was dialled.
//!
//! **Invariant:** an address is replaced only after what was dialled is remembered, so that the answer can always
//! be given its name back.
//!
//! Source: Kubernetes, "Virtual IPs and Service Proxies"; the hooks are those of `bpf_sock_addr` (Linux 4.17, 5.8).

use crate::Turn;
use crate::flow::{Flow, mix};
use crate::platform::Platform;
use crate::service::{self, Choice};
use crate::tables::{Backend, Backends, Cookie, Dialled, Home, Homes, Socket, Sockets, Table, Writes};
use crate::trace::{self, Record, Stage};
use crate::wire::ip::protocol;
use crate::wire::{Address, Be16, Port};

/// An address that a socket names, or is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call<A> {
    /// The socket.
    pub socket: Cookie,
    /// The network namespace it is in.
    pub home: Cookie,
    /// The address.
    pub address: A,
    /// Its port.
    pub port: Port,
    /// As in the IP header.
    pub protocol: u8,
}

impl<A: Address> Call<A> {
    fn key(&self, place: u32) -> Socket {
        Socket { cookie: self.socket, place }
    }
}

/// A TCP or UDP socket connects. Whether the address was replaced.
#[inline(always)]
pub fn connect<A: Address>(platform: &mut impl Platform<A>, call: &mut Call<A>) -> bool {
    if call.protocol != protocol::TCP && call.protocol != protocol::UDP {
        return false;
    }
    // 1.
    let Some(home) = Homes::get(platform, &call.home) else {
        return false;
    };
    // 2.
    release::<A>(platform, call.socket);
    lead(platform, call, &home, 0, false)
}

/// A UDP socket sends to an address that it is not connected to. Whether the address was replaced.
#[inline(always)]
pub fn send<A: Address>(platform: &mut impl Platform<A>, call: &mut Call<A>) -> bool {
    if call.protocol != protocol::UDP {
        return false;
    }
    // 1.
    let Some(home) = Homes::get(platform, &call.home) else {
        return false;
    };
    let mut place = Socket::PLACES;
    let named = platform.first_of(Socket::PLACES, |platform, at| look(platform, call, at, &mut place));
    // 5.
    if named == SERVICE {
        let Some(row) = Sockets::<A>::get(platform, &call.key(place)) else {
            return false;
        };
        replace(platform, call, &row);
        return true;
    }
    // 6.
    if named == BACKEND {
        let empty = Dialled { home: call.home, ..Dialled::default() };
        let _ = Writes::<Sockets<A>>::put(platform, &call.key(place), &empty);
        return false;
    }
    lead(platform, call, &home, place, true)
}

/// What [`look`] gives where the socket names a Service that it was led from, to a backend that is active.
const SERVICE: u32 = 1;
/// Where it names a backend that it was led to.
const BACKEND: u32 = 2;
/// Where it names neither, here or further on.
const NEITHER: u32 = 3;

/// What a socket's place `at` says of the address that it sends to; 0: to look further. Leaves in `place` the one
/// that is meant, or else the first that may be taken.
#[inline(always)]
fn look<A: Address>(platform: &impl Platform<A>, call: &Call<A>, at: u32, place: &mut u32) -> u32 {
    let Some(row) = Sockets::<A>::get(platform, &call.key(at)) else {
        if *place == Socket::PLACES {
            *place = at;
        }
        return NEITHER;
    };
    let active = is_active(platform, &row);
    if is_end(call, row.frontend, row.frontend_port) {
        *place = at;
        return if active { SERVICE } else { NEITHER };
    }
    if is_end(call, row.backend, row.backend_port) {
        *place = at;
        return BACKEND;
    }
    if !active && *place == Socket::PLACES {
        *place = at;
    }
    0
}

/// A socket asks whom it speaks with, or whom a message came from. Whether the address was replaced by what was
/// dialled.
#[inline(always)]
pub fn name<A: Address>(platform: &impl Platform<A>, call: &mut Call<A>) -> bool {
    let mut place = 0;
    while place < Socket::PLACES {
        let Some(row) = Sockets::<A>::get(platform, &call.key(place)) else {
            return false;
        };
        if is_end(call, row.backend, row.backend_port) {
            call.address = row.frontend;
            call.port = row.frontend_port;
            return true;
        }
        place += 1;
    }
    false
}

/// A socket is closed, or connects anew: what it dialled in a family is forgotten.
#[inline(always)]
pub fn release<A: Address>(platform: &mut impl Writes<Sockets<A>>, socket: Cookie) {
    let mut place = 0;
    while place < Socket::PLACES {
        let key = Socket { cookie: socket, place };
        if Sockets::<A>::get(platform, &key).is_none() {
            return;
        }
        platform.remove(&key);
        place += 1;
    }
}

/// Leads a socket to a backend, if what it names is a Service's and there is a place to remember it. `several`: it
/// may have been led to others.
#[inline(always)]
fn lead<A: Address>(
    platform: &mut impl Platform<A>,
    call: &mut Call<A>,
    home: &Home<A>,
    place: u32,
    several: bool,
) -> bool {
    // 3.
    let itself = home.own == 1 && call.address.is_loopback();
    let flow = Flow {
        source: home.address,
        target: if itself { home.address } else { call.address },
        source_port: Be16::new(mix(call.socket.fold32()) as u16),
        target_port: call.port,
        protocol: call.protocol,
        ..Flow::default()
    };
    let mut choice = Choice::default();
    if service::choose(platform, &flow, false, &mut choice).is_err() || !choice.is_some() {
        return false;
    }
    // 7.
    if several {
        let elsewhere =
            |platform: &mut _, at| if at == place { 0 } else { led_to(platform, call, at, &choice) };
        if platform.first_of(Socket::PLACES, elsewhere) == BACKEND {
            return false;
        }
    }
    // 4.
    let row = Dialled {
        frontend: call.address,
        backend: choice.address,
        frontend_port: call.port,
        backend_port: choice.port,
        id: choice.backend,
        home: call.home,
    };
    if place >= Socket::PLACES || Writes::<Sockets<A>>::put(platform, &call.key(place), &row).is_err() {
        platform.count_turn(Turn::Full);
        return false;
    }
    replace(platform, call, &row);
    true
}

/// [`BACKEND`] if this is whom the socket's place `at` leads to; 0: to look further, [`NEITHER`]: there is none.
#[inline(always)]
fn led_to<A: Address>(platform: &impl Platform<A>, call: &Call<A>, at: u32, choice: &Choice<A>) -> u32 {
    let Some(row) = Sockets::<A>::get(platform, &call.key(at)) else {
        return NEITHER;
    };
    if row.backend == choice.address && row.backend_port.host() == choice.port.host() { BACKEND } else { 0 }
}

/// The backend's address takes the place of what was dialled.
#[inline(always)]
fn replace<A: Address>(platform: &mut impl Platform<A>, call: &mut Call<A>, row: &Dialled<A>) {
    trace::step(platform, || Record {
        stage: Stage::Socket as u8,
        protocol: call.protocol,
        source: row.frontend.to_v6(),
        source_port: row.frontend_port,
        target: row.backend.to_v6(),
        target_port: row.backend_port,
        ..Record::default()
    });
    call.address = row.backend;
    call.port = row.backend_port;
    platform.count_turn(Turn::Backend);
}

/// Whether a backend still is who it was when a socket was led there, and may be given more.
#[inline(always)]
pub fn is_active<A: Address>(platform: &impl Platform<A>, row: &Dialled<A>) -> bool {
    let Some(backend) = Backends::<A>::get(platform, &row.id.0) else {
        return false;
    };
    backend.state == Backend::<A>::ACTIVE
        && backend.address == row.backend
        && backend.port.host() == row.backend_port.host()
}

#[inline(always)]
fn is_end<A: Address>(call: &Call<A>, address: A, port: Port) -> bool {
    call.address == address && call.port.host() == port.host()
}
