//! Bytes of packets, and constants of programs, whatever program they are of.

use core::arch::asm;
use core::intrinsics::is_val_statically_known;
use core::mem::MaybeUninit;

use dataplane::wire::Plain;

use crate::mapped::copy;

/// Declares what userspace writes into the object before the programs are loaded: constants to the verifier,
/// which leaves out what they forbid, but not to the compiler.
macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)+) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        static $name: $crate::bytes::Constant<$type> =
            $crate::bytes::Constant(core::mem::MaybeUninit::zeroed());
    )+ };
}
pub(crate) use constants;

/// One of [`constants`].
#[repr(C, align(4))]
pub(crate) struct Constant<T>(pub(crate) MaybeUninit<T>);

impl<T: Plain> Constant<T> {
    /// The value. Only those parts of it are loaded that are used: a volatile read would copy all of it, and
    /// a node is long.
    #[inline(always)]
    pub(crate) fn load(&'static self) -> T {
        let mut place = self.0.as_ptr();
        // SAFETY: it changes nothing. The compiler is not to know what the place holds.
        unsafe { asm!("/* {place} */", place = inout(reg) place, options(pure, nomem, nostack)) };
        copy(place)
    }
}

/// An offset that the verifier knows to be below 2048, behind everything that the path looks into: Ethernet, an
/// IP header, ICMP, and the longest packet that it quotes.
///
/// An offset that was itself read from the packet loses its bounds where the compiler moves it through
/// memory or folds the check into later sums ("math between pkt pointer and register with unbounded min
/// value", kernel 6.18). It can go when every program loads without it.
#[inline(always)]
pub(crate) fn bounded(mut offset: usize) -> usize {
    if !is_val_statically_known(offset) {
        // SAFETY: it changes nothing but the register.
        unsafe { asm!("{offset} &= 2047", offset = inout(reg) offset, options(pure, nomem, nostack)) };
    }
    offset
}

/// Reads a field of a program's context, which is of this type.
///
/// In assembler, because the verifier wants a load at a fixed offset from the context itself: given a
/// choice, the compiler adds the offset first and keeps the sum ("dereference of modified ctx ptr"), or
/// hands the fields themselves to functions of its own making, where they are numbers and no pointers. It
/// can go when LLVM keeps both together for volatile loads; `make test` loads every program.
macro_rules! field {
    ($context:expr, $type:ty, $field:ident) => {{
        let value: u64;
        // SAFETY: the context is valid as long as the program runs, and the field is 32 bits wide.
        unsafe {
            core::arch::asm!(
                "{value} = *(u32 *)({context} + {offset})",
                value = lateout(reg) value,
                context = in(reg) $context,
                offset = const core::mem::offset_of!($type, $field),
                options(readonly, nostack),
            );
        }
        value
    }};
}
pub(crate) use field;

/// One load or store of a packet, at whatever address: the kernel allows it where the machine does, while
/// the compiler, which must also keep to what the kernel allows of the stack, would take bytes.
macro_rules! access {
    (load $size:literal, $place:expr) => {{
        let value: u64;
        asm!(
            concat!("{value} = *(", $size, " *)({place} + 0)"),
            value = lateout(reg) value,
            place = in(reg) $place,
            options(readonly, nostack),
        );
        value
    }};
    (store $size:literal, $place:expr, $value:expr) => {
        asm!(
            concat!("*(", $size, " *)({place} + 0) = {value}"),
            place = in(reg) $place,
            value = in(reg) $value as u64,
            options(nostack),
        )
    };
}

/// Reads a value from a packet, eight bytes at a time and then what is left.
///
/// # Safety
/// Its bytes lie between the packet's start and its end.
#[inline(always)]
pub(crate) unsafe fn load<T: Plain>(place: usize) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    let (to, size) = (value.as_mut_ptr().cast::<u8>(), size_of::<T>());
    let mut at = 0;
    // SAFETY: the caller's promise; each piece begins where the last one ended, and together they are the value.
    unsafe {
        while at + 8 <= size {
            to.add(at).cast::<u64>().write_unaligned(access!(load "u64", place + at));
            at += 8;
        }
        if size & 4 != 0 {
            to.add(at).cast::<u32>().write_unaligned(access!(load "u32", place + at) as u32);
            at += 4;
        }
        if size & 2 != 0 {
            to.add(at).cast::<u16>().write_unaligned(access!(load "u16", place + at) as u16);
            at += 2;
        }
        if size & 1 != 0 {
            to.add(at).write(access!(load "u8", place + at) as u8);
        }
        value.assume_init()
    }
}

/// Writes a value into a packet, in the same pieces.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub(crate) unsafe fn store<T: Plain>(place: usize, value: T) {
    let (from, size) = ((&raw const value).cast::<u8>(), size_of::<T>());
    let mut at = 0;
    // SAFETY: as in `load`.
    unsafe {
        while at + 8 <= size {
            access!(store "u64", place + at, from.add(at).cast::<u64>().read_unaligned());
            at += 8;
        }
        if size & 4 != 0 {
            access!(store "u32", place + at, from.add(at).cast::<u32>().read_unaligned());
            at += 4;
        }
        if size & 2 != 0 {
            access!(store "u16", place + at, from.add(at).cast::<u16>().read_unaligned());
            at += 2;
        }
        if size & 1 != 0 {
            access!(store "u8", place + at, from.add(at).read());
        }
    }
}

/// What a kernel helper returned, as the path wants it.
#[inline(always)]
pub(crate) fn done(code: i64) -> Option<()> {
    if code == 0 { Some(()) } else { None }
}
