//! The hooks where sockets connect, send, receive and ask: a `bpf_sock_addr` becomes a `Call`, and what the path
//! makes of its address is written back.
//!
//! They are called for every socket of the machine, and let whatever is not their node's pass. A call may be
//! interrupted by another on the same CPU, so nothing of it lies in maps that a CPU has one of.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use dataplane::socket::{self, Call};
use dataplane::tables::Cookie;
use dataplane::wire::{Address, Be16, V4, V6};

use crate::platform::Kernel;

/// What a program returns so that the call goes on.
const GO_ON: i32 = 1;

/// `connect` to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    turn_v4(&context, |call| socket::connect(&mut Kernel, call))
}

/// `connect` to an IPv6 address, which may stand for an IPv4 one.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    turn_v6(&context, |call| socket::connect(&mut Kernel, call), |call| socket::connect(&mut Kernel, call))
}

/// `sendmsg` to an IPv4 address, of a UDP socket that is not connected to it.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    if is_connected(&context) {
        return GO_ON;
    }
    turn_v4(&context, |call| socket::send(&mut Kernel, call))
}

/// `sendmsg` to an IPv6 address, of a UDP socket that is not connected to it.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    if is_connected(&context) {
        return GO_ON;
    }
    turn_v6(&context, |call| socket::send(&mut Kernel, call), |call| socket::send(&mut Kernel, call))
}

/// What `recvmsg` says that a datagram came from.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    turn_v4(&context, |call| socket::name(&Kernel, call))
}

/// What `recvmsg` says that a datagram came from.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    turn_v6(&context, |call| socket::name(&Kernel, call), |call| socket::name(&Kernel, call))
}

/// What `getpeername` says.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    turn_v4(&context, |call| socket::name(&Kernel, call))
}

/// What `getpeername` says.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    turn_v6(&context, |call| socket::name(&Kernel, call), |call| socket::name(&Kernel, call))
}

/// A socket is closed.
#[cgroup_sock(sock_release)]
pub fn sock_release(context: SockContext) -> i32 {
    let place: *mut bpf_sock = context.sock;
    // SAFETY: the context is valid as long as the program runs.
    let cookie = Cookie::new(unsafe { bpf_get_socket_cookie(place.cast::<c_void>()) });
    socket::release::<V4>(&mut Kernel, cookie);
    socket::release::<V6>(&mut Kernel, cookie);
    GO_ON
}

/// Reads a word of the context: at a fixed offset from the context itself, for the reason that
/// `bytes::field` gives.
macro_rules! word {
    ($context:expr, $offset:expr) => {{
        let value: u64;
        // SAFETY: the context is valid as long as the program runs, and the word is in it.
        unsafe {
            asm!(
                "{value} = *(u32 *)({context} + {offset})",
                value = lateout(reg) value,
                context = in(reg) $context,
                offset = const $offset,
                options(readonly, nostack),
            );
        }
        value as u32
    }};
}

/// Writes a word of the context.
macro_rules! set_word {
    ($context:expr, $offset:expr, $value:expr) => {
        // SAFETY: as in `word`; the kernel lets programs of these hooks write their address.
        unsafe {
            asm!(
                "*(u32 *)({context} + {offset}) = {value}",
                context = in(reg) $context,
                offset = const $offset,
                value = in(reg) u64::from($value),
                options(nostack),
            );
        }
    };
}

const ADDRESS_V4: usize = offset_of!(bpf_sock_addr, user_ip4);
const ADDRESS_V6: usize = offset_of!(bpf_sock_addr, user_ip6);
const PORT: usize = offset_of!(bpf_sock_addr, user_port);

/// Runs what the path does with an IPv4 address, and writes back what it made of it.
#[inline(always)]
fn turn_v4(context: &SockAddrContext, turn: impl FnOnce(&mut Call<V4>) -> bool) -> i32 {
    let place = context.sock_addr;
    let mut call = call(place, V4(word!(place, ADDRESS_V4).to_ne_bytes()));
    if turn(&mut call) {
        set_word!(place, ADDRESS_V4, u32::from_ne_bytes(call.address.0));
        set_port(place, call.port);
    }
    GO_ON
}

/// As [`turn_v4`], with an IPv6 address or an IPv4 one in its clothes.
#[inline(always)]
fn turn_v6(
    context: &SockAddrContext,
    turn_v4: impl FnOnce(&mut Call<V4>) -> bool,
    turn_v6: impl FnOnce(&mut Call<V6>) -> bool,
) -> i32 {
    let place = context.sock_addr;
    let address = address_v6(place);
    if address.is_v4() {
        let mut call = call(place, V4::from_v6(address));
        if turn_v4(&mut call) {
            set_word!(place, ADDRESS_V6 + 12, u32::from_ne_bytes(call.address.0));
            set_port(place, call.port);
        }
        return GO_ON;
    }
    let mut call = call(place, address);
    if turn_v6(&mut call) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = call.address.0;
        set_word!(place, ADDRESS_V6, u32::from_ne_bytes([a, b, c, d]));
        set_word!(place, ADDRESS_V6 + 4, u32::from_ne_bytes([e, f, g, h]));
        set_word!(place, ADDRESS_V6 + 8, u32::from_ne_bytes([i, j, k, l]));
        set_word!(place, ADDRESS_V6 + 12, u32::from_ne_bytes([m, n, o, p]));
        set_port(place, call.port);
    }
    GO_ON
}

#[inline(always)]
fn address_v6(place: *mut bpf_sock_addr) -> V6 {
    let [a, b, c, d] = word!(place, ADDRESS_V6).to_ne_bytes();
    let [e, f, g, h] = word!(place, ADDRESS_V6 + 4).to_ne_bytes();
    let [i, j, k, l] = word!(place, ADDRESS_V6 + 8).to_ne_bytes();
    let [m, n, o, p] = word!(place, ADDRESS_V6 + 12).to_ne_bytes();
    V6([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
}

/// The call of the socket that the context is about.
#[inline(always)]
fn call<A: Address>(place: *mut bpf_sock_addr, address: A) -> Call<A> {
    // SAFETY: the context is valid as long as the program runs.
    let (socket, home) = unsafe { (bpf_get_socket_cookie(place.cast()), bpf_get_netns_cookie(place.cast())) };
    let [first, second, ..] = word!(place, PORT).to_ne_bytes();
    Call {
        socket: Cookie::new(socket),
        home: Cookie::new(home),
        address,
        port: Be16([first, second]),
        protocol: word!(place, offset_of!(bpf_sock_addr, protocol)) as u8,
    }
}

/// Whether the socket is connected. It may still be said to send to an address: an IPv6 socket that is connected to
/// an IPv4 address is, with each datagram. Whatever it sends elsewhere, it takes no answer but its peer's.
#[inline(always)]
fn is_connected(context: &SockAddrContext) -> bool {
    let socket: u64;
    let port: u64;
    // SAFETY: the context is valid as long as the program runs; its socket always is there.
    unsafe {
        asm!(
            "{socket} = *(u64 *)({context} + {offset})",
            socket = lateout(reg) socket,
            context = in(reg) context.sock_addr,
            offset = const offset_of!(bpf_sock_addr, __bindgen_anon_1),
            options(readonly, nostack),
        );
        asm!(
            "{port} = *(u16 *)({socket} + {offset})",
            port = lateout(reg) port,
            socket = in(reg) socket,
            offset = const offset_of!(bpf_sock, dst_port),
            options(readonly, nostack),
        );
    }
    port != 0
}

#[inline(always)]
fn set_port(place: *mut bpf_sock_addr, port: Be16) {
    set_word!(place, PORT, u32::from(u16::from_ne_bytes(port.0)));
}
